"Maps and lists show what was given; without UMAP or seaborn there is a picture all the same."
import matplotlib
import sys
import numpy as np
import pytest
import torch
matplotlib.use("Agg")
from matplotlib.colors import to_rgb
from vdistill.looking import pictures as P
from vdistill.looking import plots
from vdistill.core import InputError

pytestmark = pytest.mark.usefixtures("untouched_settings")


def drawn(figure): figure.canvas.draw(); return figure


def features(n=40, dim=6): return torch.randn(n, dim, generator=torch.Generator().manual_seed(0))


def test_pca_is_the_largest_spread_of_the_directions():
    x = features()
    before = x.clone()
    points, name = P.embed_2d(x, method="pca")
    unit = torch.nn.functional.normalize(x).double()
    singular = torch.linalg.svdvals(unit - unit.mean(0))[:2]
    np.testing.assert_allclose(np.linalg.norm(points, axis=0), singular, rtol=1e-4)
    assert name == "PCA" and points.dtype == np.float32 and torch.equal(x, before)
    np.testing.assert_allclose(points, P.embed_2d(5*x.numpy(), method="pca")[0], atol=1e-4)   # length does not count


@pytest.fixture
def spoilt(tmp_path, monkeypatch):
    "Packages that are installed and fail: at their import, or later."
    def spoil(**sources):
        for name, source in sources.items():
            for known in [m for m in sys.modules if m.partition(".")[0] == name]: monkeypatch.delitem(sys.modules, known)
            (tmp_path/name).mkdir()
            (tmp_path/name/"__init__.py").write_text(source)
        monkeypatch.syspath_prepend(tmp_path)
    yield spoil
    for name in [m for m, module in sys.modules.items() if str(tmp_path) in str(getattr(module, "__file__", ""))]: del sys.modules[name]


def test_without_umap_it_is_pca_and_says_so(monkeypatch, recwarn):
    for name in ("umap", "seaborn"): monkeypatch.setitem(sys.modules, name, None)
    points, name = P.embed_2d(features())
    assert name.startswith("PCA") and "pip install vdistill[plots]" in name
    np.testing.assert_array_equal(points, P.embed_2d(features(), method="pca")[0])
    with pytest.raises(InputError, match="needs umap-learn, which is not installed"): P.embed_2d(features(), method="umap")
    drawn(P.plot_embedding(points, np.arange(40) % 2, np.arange(40) // 4, method=name))   # nor seaborn
    assert not recwarn


NO_CACHE = "raise RuntimeError('cannot cache function: no locator available for file')"


@pytest.mark.parametrize("source, why", [(NO_CACHE, "is installed, but cannot be used here .RuntimeError: cannot cache function: no locator"), ("import nothing_of_this_name", "is installed, but"),
    ("raise ImportError('Numba needs NumPy 2.1 or less')", "is installed, but"), ("", "has failed .AttributeError"), ("def UMAP(**options): raise OSError('No space left on device')", "has failed .OSError: No space")])
def test_umap_that_is_there_and_of_no_use_counts_as_absent(spoilt, source, why):
    spoilt(umap=source)
    with pytest.warns(UserWarning, match=f"umap-learn {why}"): points, name = P.embed_2d(features())
    assert name == "PCA (UMAP cannot be used here)"
    np.testing.assert_array_equal(points, P.embed_2d(features(), method="pca")[0])
    with pytest.raises(InputError, match=why): P.embed_2d(features(), method="umap")


@pytest.mark.parametrize("source, why", [(NO_CACHE, "cannot be used here"), ("def kdeplot(**options): raise TypeError('no such option')", "has failed .TypeError")])
def test_a_map_without_contours_where_seaborn_is_of_no_use(spoilt, source, why):
    spoilt(seaborn=source)
    points = np.random.default_rng(0).normal(size=(40, 2))
    with pytest.warns(UserWarning, match=f"seaborn .*{why}.*no contours"): drawn(P.plot_embedding(points, np.arange(40) % 2))


def test_umap_repeats_with_its_seed():
    pytest.importorskip("umap")
    (a, name), (b, _) = (P.embed_2d(features(), seed=3) for _ in range(2))
    assert name == "UMAP" and a.shape == (40, 2)
    np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("x", [features(2), features(3, 1), torch.zeros(5, 4), torch.ones(12, 2)])
def test_small_and_degenerate_features_have_a_map(x):
    points, _ = P.embed_2d(x, method="pca")
    assert points.shape == (len(x), 2) and np.isfinite(points).all()
    drawn(P.plot_embedding(points, np.arange(len(x)) % 2, np.arange(len(x))))


def test_embedding_has_two_panels_markers_by_modality_and_ten_colours():
    points, modality, identity = np.random.default_rng(0).normal(size=(200, 2)), np.arange(200) % 2, np.arange(200) // 4
    copies = points.copy(), modality.copy(), identity.copy()
    fig = drawn(P.plot_embedding(points, modality, identity, method="UMAP"))
    left, right = fig.axes
    assert left.get_title() == "by modality" and right.get_title() == "by identity, 10 of 50 in colour" and fig.get_supylabel() == "UMAP"
    assert [t.get_text() for t in left.get_legend().get_texts()] == ["visible", "infrared"]
    assert len(right.lines) == 10 and len({line.get_color() for line in right.lines}) == 10   # a line joins each pair
    ends = {tuple(np.round(line.get_xydata().ravel(), 6)) for line in right.lines}
    medians = {i: tuple(np.round(np.ravel([np.median(points[(identity == i) & (modality == code)], 0) for code in (0, 1)]), 6)) for i in range(50)}
    assert ends <= set(medians.values())
    shown = {code: np.concatenate([c.get_offsets() for c in left.collections if len(c.get_offsets()) and c.get_facecolors().size and np.allclose(c.get_facecolors()[0, :3], to_rgb(plots.MODALITY_COLOURS[code]))]) for code in (0, 1)}
    for code in (0, 1): assert {tuple(p) for p in shown[code]} == {tuple(p) for p in points[modality == code]}
    for a, b in zip(copies, (points, modality, identity)): np.testing.assert_array_equal(a, b)
    assert len(P.plot_embedding(points, modality).axes) == 1
    assert P.plot_embedding(points, modality, identity, highlight=3).axes[1].get_title() == "by identity, 3 of 50 in colour"


def pictures(*lead, shape=(3, 8, 4)): return torch.randint(0, 256, (*lead, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_ranked_lists_frame_right_and_wrong_in_three_ways():
    queries, gallery, matches, distances = pictures(2), pictures(2, 3), np.array([[1, 0, 1], [0, 0, 0]], bool), np.array([[.1, .2, .3], [.4, .5, .6]])
    copies = queries.clone(), gallery.clone(), matches.copy(), distances.copy()
    fig = drawn(P.plot_ranked_lists(queries, gallery, matches, distances, titles=["a", "b"], query_title="infrared"))
    axes = np.array(fig.axes).reshape(2, 4)
    assert [ax.get_title() for ax in axes[0]] == ["infrared", "1", "2", "3"] and [ax.get_ylabel() for ax in axes[:, 0]] == ["a", "b"]
    for r in range(2):
        np.testing.assert_array_equal(axes[r, 0].images[0].get_array(), queries[r].permute(1, 2, 0))
        for k in range(3):
            ax = axes[r, k + 1]
            np.testing.assert_array_equal(ax.images[0].get_array(), gallery[r, k].permute(1, 2, 0))
            colour, line, sign = (plots.RIGHT, "-", "✓") if matches[r, k] else (plots.WRONG, (0, (2, 1.2)), "✗")
            assert {s.get_edgecolor()[:3] for s in ax.spines.values()} == {to_rgb(colour)} and ax.texts[0].get_text() == sign
            assert {s.get_linestyle() for s in ax.spines.values()} == {line}
            assert ax.get_xlabel() == f"{distances[r, k]:.2f}"
    for a, b in zip(copies, (queries, gallery, matches, distances)): assert (a == b).all()
    assert to_rgb(plots.RIGHT)[1] > .5 > to_rgb(plots.RIGHT)[0] and to_rgb(plots.WRONG)[0] > .5 > to_rgb(plots.WRONG)[1]   # green and red


@pytest.mark.parametrize("shape", [(3, 64, 32), (3, 64, 64), (3, 40, 80)])
def test_ranked_lists_clip_nothing_and_squeeze_nothing(shape):
    fig = drawn(P.plot_ranked_lists(pictures(2, shape=shape), pictures(2, 4, shape=shape), np.ones((2, 4), bool), np.full((2, 4), 1.23), titles=["person 1234", "x"]))
    box = fig.get_tightbbox()
    assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= fig.get_figwidth() and box.y1 <= fig.get_figheight()
    for ax in fig.axes:   # the place kept for an image has its shape, so that gaps are even
        place = ax.get_position(original=True)
        assert place.height*fig.get_figheight() / (place.width*fig.get_figwidth()) == pytest.approx(shape[1]/shape[2], rel=1e-6)


def test_channels_last_is_the_same_picture():
    q, g = pictures(1), pictures(1, 2)
    a, b = P.plot_ranked_lists(q, g, [[True, False]]), P.plot_ranked_lists(q.permute(0, 2, 3, 1).numpy(), g.permute(0, 1, 3, 4, 2).numpy(), [[True, False]])
    for x, y in zip(a.axes, b.axes): np.testing.assert_array_equal(x.images[0].get_array(), y.images[0].get_array())


@pytest.mark.parametrize("change, message", [
    (dict(query_images=pictures(2).float()), "float32"), (dict(query_images=pictures(3)), "query images are for"), (dict(gallery_images=pictures(2)), "needed: uint8"), (dict(matches=np.ones((2, 2), bool)), "matches are for"),
    (dict(distances=np.ones(3)), "distances are for"), (dict(titles=["a"]), "1 titles for 2"), (dict(query_images=pictures(0), gallery_images=pictures(0, 3), matches=np.ones((0, 3))), "at least one"),
    (dict(query_images=pictures(2, shape=(1, 8, 4))), "3 channels"),
])
def test_ranked_lists_say_what_does_not_fit(change, message):
    with pytest.raises(InputError, match=message): P.plot_ranked_lists(**(dict(query_images=pictures(2), gallery_images=pictures(2, 3), matches=np.ones((2, 3), bool)) | change))


def test_an_embedding_leaves_the_number_of_threads_alone():
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        P.embed_2d(np.random.default_rng(0).normal(size=(40, 5)))
        assert torch.get_num_threads() == 1
    finally: torch.set_num_threads(before)
