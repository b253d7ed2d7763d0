"What was drawn is what was given; inputs stay as they were; empty input is one clear sentence."
import os
import subprocess
import sys
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import pytest
import torch

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.colors import to_rgb

from vdistill.looking import plots
from vdistill.core import InputError
from vdistill.reid.evaluation import retrieval_scores


ROOT = str(Path(__file__).resolve().parents[2])


@pytest.fixture(autouse=True)
def closed_figures_and_untouched_settings():
    before = dict(plt.rcParams.copy())
    yield
    after = dict(plt.rcParams.copy())
    plt.close("all")
    assert {k for k in before if before[k] != after[k]} == set()


def history(seeds=1, epochs=5):
    rng = np.random.default_rng(0)
    columns = ("vsd", "vcd", "vml", "loss")
    return pd.concat([pd.DataFrame(dict(epoch=range(1, epochs + 1), step=range(epochs), seed=s) | {c: rng.random(epochs) + .1 for c in columns}) for s in range(seeds)], ignore_index=True)


def drawn(figure): figure.canvas.draw(); return figure


def test_kl_curves_are_means_and_ranges_over_seeds():
    table = history(3)
    before = table.copy()
    ax = plots.plot_kl_curves(table.sample(frac=1, random_state=0))   # the order of rows does not matter
    assert [line.get_label().split()[0] for line in ax.lines] == ["VSD", "VCD", "VML"] and ax.get_xlabel() == "epoch" and "nats" in ax.get_ylabel()
    for line, band, term in zip(ax.lines, ax.collections, ("vsd", "vcd", "vml")):
        values = table.pivot(index="epoch", columns="seed", values=term)
        np.testing.assert_allclose(line.get_ydata(), values.mean(axis=1))
        low, high = band.get_paths()[0].get_extents().intervaly
        assert low == pytest.approx(values.min(axis=1).min()) and high == pytest.approx(values.max(axis=1).max())
    pd.testing.assert_frame_equal(table, before)
    assert len({line.get_linestyle() for line in ax.lines}) == 3   # not by colour alone


def test_kl_curves_of_one_seed_have_no_band_and_draw_into_given_axes():
    fig, (left, right) = plt.subplots(1, 2)
    assert plots.plot_kl_curves(history().drop(columns="seed"), ax=right, log=True) is right
    assert not right.collections and right.get_yscale() == "log" and not left.lines
    only = plots.plot_kl_curves(history().assign(vsd=0., vml=np.nan))
    assert [line.get_label().split()[0] for line in only.lines] == ["VCD"]
    assert plots.plot_kl_curves(history(epochs=1)).lines[0].get_marker() == "o"   # one epoch is still seen
    drawn(fig)


@pytest.mark.parametrize("table, message", [(history()[:0], "no row yet"), (history().assign(vsd=0, vcd=0, vml=0), "switched off"), (history().drop(columns="vml"), "no column vml"), (history().drop(columns="epoch"), "no column epoch")])
def test_kl_curves_say_what_is_missing(table, message):
    with pytest.raises(InputError, match=message): plots.plot_kl_curves(table)
    assert not plt.get_fignums()   # no empty figure stays behind


def test_a_history_has_a_panel_a_number():
    table = history(2).assign(triplet=0., **{"val_mAP z": [np.nan, 40., np.nan, np.nan, 60.]*2}, note="x")
    fig = drawn(plots.plot_history(table))
    assert [ax.get_title() for ax in fig.axes] == ["vsd (nats)", "vcd (nats)", "vml (nats)", "loss", "val mAP z (%)"]
    assert fig.axes[-1].lines[0].get_xdata().tolist() == [2, 5]
    assert [ax.get_xlabel() for ax in fig.axes] == ["", "", "epoch", "epoch", "epoch"]
    assert len(plots.plot_history(table, columns=["loss"]).axes) == 1
    for bad in (table[:0], table[["epoch", "step"]]):
        with pytest.raises(InputError): plots.plot_history(bad)


def features(n=40, dim=6): return torch.randn(n, dim, generator=torch.Generator().manual_seed(0))


def test_pca_is_the_largest_spread_of_the_directions():
    x = features()
    before = x.clone()
    points, name = plots.embed_2d(x, method="pca")
    unit = torch.nn.functional.normalize(x).double()
    singular = torch.linalg.svdvals(unit - unit.mean(0))[:2]
    np.testing.assert_allclose(np.linalg.norm(points, axis=0), singular, rtol=1e-4)
    assert name == "PCA" and points.dtype == np.float32 and torch.equal(x, before)
    np.testing.assert_allclose(points, plots.embed_2d(5*x.numpy(), method="pca")[0], atol=1e-4)   # length does not count


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
    points, name = plots.embed_2d(features())
    assert name.startswith("PCA") and "pip install vdistill[plots]" in name
    np.testing.assert_array_equal(points, plots.embed_2d(features(), method="pca")[0])
    with pytest.raises(InputError, match="needs umap-learn, which is not installed"): plots.embed_2d(features(), method="umap")
    drawn(plots.plot_embedding(points, np.arange(40) % 2, np.arange(40) // 4, method=name))   # nor seaborn
    assert not recwarn


NO_CACHE = "raise RuntimeError('cannot cache function: no locator available for file')"

@pytest.mark.parametrize("source, why", [(NO_CACHE, "is installed, but cannot be used here .RuntimeError: cannot cache function: no locator"), ("import nothing_of_this_name", "is installed, but"),
    ("raise ImportError('Numba needs NumPy 2.1 or less')", "is installed, but"), ("", "has failed .AttributeError"), ("def UMAP(**options): raise OSError('No space left on device')", "has failed .OSError: No space")])
def test_umap_that_is_there_and_of_no_use_counts_as_absent(spoilt, source, why):
    spoilt(umap=source)
    with pytest.warns(UserWarning, match=f"umap-learn {why}"): points, name = plots.embed_2d(features())
    assert name == "PCA (UMAP cannot be used here)"
    np.testing.assert_array_equal(points, plots.embed_2d(features(), method="pca")[0])
    with pytest.raises(InputError, match=why): plots.embed_2d(features(), method="umap")


@pytest.mark.parametrize("source, why", [(NO_CACHE, "cannot be used here"), ("def kdeplot(**options): raise TypeError('no such option')", "has failed .TypeError")])
def test_a_map_without_contours_where_seaborn_is_of_no_use(spoilt, source, why):
    spoilt(seaborn=source)
    points = np.random.default_rng(0).normal(size=(40, 2))
    with pytest.warns(UserWarning, match=f"seaborn .*{why}.*no contours"): drawn(plots.plot_embedding(points, np.arange(40) % 2))


@pytest.mark.parametrize("backend", ["module://backend_of_another_environment", "webagg", "qtagg"])
def test_figures_for_files_whatever_the_back_end(tmp_path, backend):
    "A kernel hands its own on, to a program whose environment has none of it."
    block = "import sys\nfor name in ('PyQt6', 'PySide6', 'PyQt5', 'PySide2', 'gi', 'tornado', 'tkinter', '_tkinter'): sys.modules[name] = None\n"
    code = block + """
import numpy as np, matplotlib.pyplot as plt
from vdistill.looking.plots import plot_cmc, plot_embedding
from vdistill.looking.report import save_figure
for figure in (plot_cmc({"z": [.5, 1.]}).figure, plot_embedding(np.random.rand(4, 2), [0, 1, 0, 1])): save_figure(figure, sys.argv[1] + "/x.png")
print(plt.get_backend().lower())
"""
    done = subprocess.run([sys.executable, "-W", "default", "-c", code, str(tmp_path)], env=dict(os.environ, MPLBACKEND=backend, PYTHONPATH=ROOT), capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.strip() == "agg" and (tmp_path/"x.png").read_bytes()[:4] == b"\x89PNG", done.stderr[-2000:]
    assert done.stderr.count("figures go into files only") == 1 or backend == "qtagg" # without a display matplotlib itself takes Agg for that one


def test_a_back_end_that_works_stays():
    "An error of another kind is not the back end's."
    with pytest.raises(ValueError): plots.new_axes(0)
    fig, _ = plots.new_axes(1, 2)
    assert fig in map(plt.figure, plt.get_fignums()) and plt.get_backend().lower() == "agg"


def test_umap_repeats_with_its_seed():
    pytest.importorskip("umap")
    (a, name), (b, _) = (plots.embed_2d(features(), seed=3) for _ in range(2))
    assert name == "UMAP" and a.shape == (40, 2)
    np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("x", [features(2), features(3, 1), torch.zeros(5, 4), torch.ones(12, 2)])
def test_small_and_degenerate_features_have_a_map(x):
    points, _ = plots.embed_2d(x, method="pca")
    assert points.shape == (len(x), 2) and np.isfinite(points).all()
    drawn(plots.plot_embedding(points, np.arange(len(x)) % 2, np.arange(len(x))))


@pytest.mark.parametrize("call, message", [
    (lambda: plots.embed_2d(features()[:1]), "at least two"), (lambda: plots.embed_2d(features()[0]), "shape"), (lambda: plots.embed_2d(features()/0), "40 of 40"), (lambda: plots.embed_2d(features(), "tsne"), "'tsne'"),
    (lambda: plots.plot_embedding(np.zeros((0, 2)), []), "at least one image"), (lambda: plots.plot_embedding(np.zeros((3, 3)), [0, 1, 0]), "needed: \\(images, 2\\)"),
    (lambda: plots.plot_embedding(np.zeros((3, 2)), [0, 1]), "each of 3 points"), (lambda: plots.plot_embedding(np.zeros((3, 2)), [0, 1, 2]), "0 \\(visible\\)"), (lambda: plots.plot_embedding(np.zeros((3, 2)), [0, 1, 1], [1]), "1 identities for 3"),
    (lambda: plots.plot_cmc({}), "no curve"), (lambda: plots.plot_cmc({"z": []}), "no curve"),
    (lambda: plots.plot_results(pd.DataFrame(columns=["method"])), "without the columns"), (lambda: plots.plot_results(results(), metric="mINP"), "metrics there: mAP"),
    (lambda: plots.plot_results(pd.concat([results().assign(dataset="a"), results().assign(dataset="b")])), "dataset: a, b"),
])
def test_bad_input_is_one_clear_sentence(call, message):
    with pytest.raises(InputError, match=message): call()
    assert not plt.get_fignums()


def test_embedding_has_two_panels_markers_by_modality_and_ten_colours():
    points, modality, identity = np.random.default_rng(0).normal(size=(200, 2)), np.arange(200) % 2, np.arange(200) // 4
    copies = points.copy(), modality.copy(), identity.copy()
    fig = drawn(plots.plot_embedding(points, modality, identity, method="UMAP"))
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
    assert len(plots.plot_embedding(points, modality).axes) == 1
    assert plots.plot_embedding(points, modality, identity, highlight=3).axes[1].get_title() == "by identity, 3 of 50 in colour"


def pictures(*lead, shape=(3, 8, 4)): return torch.randint(0, 256, (*lead, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_ranked_lists_frame_right_and_wrong_in_three_ways():
    queries, gallery, matches, distances = pictures(2), pictures(2, 3), np.array([[1, 0, 1], [0, 0, 0]], bool), np.array([[.1, .2, .3], [.4, .5, .6]])
    copies = queries.clone(), gallery.clone(), matches.copy(), distances.copy()
    fig = drawn(plots.plot_ranked_lists(queries, gallery, matches, distances, titles=["a", "b"], query_title="infrared"))
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
    fig = drawn(plots.plot_ranked_lists(pictures(2, shape=shape), pictures(2, 4, shape=shape), np.ones((2, 4), bool), np.full((2, 4), 1.23), titles=["person 1234", "x"]))
    box = fig.get_tightbbox()
    assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= fig.get_figwidth() and box.y1 <= fig.get_figheight()
    for ax in fig.axes:   # the place kept for an image has its shape, so that gaps are even
        place = ax.get_position(original=True)
        assert place.height*fig.get_figheight() / (place.width*fig.get_figwidth()) == pytest.approx(shape[1]/shape[2], rel=1e-6)


def test_channels_last_is_the_same_picture():
    q, g = pictures(1), pictures(1, 2)
    a, b = plots.plot_ranked_lists(q, g, [[True, False]]), plots.plot_ranked_lists(q.permute(0, 2, 3, 1).numpy(), g.permute(0, 1, 3, 4, 2).numpy(), [[True, False]])
    for x, y in zip(a.axes, b.axes): np.testing.assert_array_equal(x.images[0].get_array(), y.images[0].get_array())


@pytest.mark.parametrize("change, message", [
    (dict(query_images=pictures(2).float()), "float32"), (dict(query_images=pictures(3)), "query images are for"), (dict(gallery_images=pictures(2)), "needed: uint8"), (dict(matches=np.ones((2, 2), bool)), "matches are for"),
    (dict(distances=np.ones(3)), "distances are for"), (dict(titles=["a"]), "1 titles for 2"), (dict(query_images=pictures(0), gallery_images=pictures(0, 3), matches=np.ones((0, 3))), "at least one"),
    (dict(query_images=pictures(2, shape=(1, 8, 4))), "3 channels"),
])
def test_ranked_lists_say_what_does_not_fit(change, message):
    with pytest.raises(InputError, match=message): plots.plot_ranked_lists(**(dict(query_images=pictures(2), gallery_images=pictures(2, 3), matches=np.ones((2, 3), bool)) | change))


def test_cmc_curves():
    d, ids = torch.rand(30, 30, generator=torch.Generator().manual_seed(0)), torch.arange(30)
    s = retrieval_scores(d, ids, ids)
    ax = plots.plot_cmc({"z": s, "chance": np.arange(1, 31)/30}, top=20)
    np.testing.assert_allclose(ax.lines[0].get_ydata(), 100*s.cmc[:20])
    assert [t.get_text() for t in ax.get_legend().get_texts()] == [f"z ({100*s.rank(1):.1f})", "chance (3.3)"]
    assert ax.lines[1].get_color() == "#888888" and ax.get_xlim() == (1, 20)
    drawn(plots.plot_cmc({"a gallery of one": [1.]}).figure)


def results(seeds=3):
    rows = [dict(method=m, seed=s, feature=f, direction=d, metric="mAP", value=10*i + s + shift) for i, m in enumerate(("baseline", "full")) for f in ("v", "z") for d, shift in (("there", 0), ("back", 50)) for s in range(seeds)]
    return pd.DataFrame(rows + [dict(method="HOG", seed=0, feature="HOG", direction=d, metric="mAP", value=5.) for d in ("there", "back")])


def test_results_show_means_intervals_and_every_seed():
    table = results()
    before = table.copy()
    fig = drawn(plots.plot_results(table))
    there, back = fig.axes
    assert [there.get_title(), back.get_title()] == ["there", "back"] and there.get_xlabel() == "mAP (%)"
    assert [t.get_text() for t in there.get_yticklabels()] == ["baseline", "full", "HOG"] and [t.get_text() for t in fig.legends[0].get_texts()] == ["v", "z"]
    for ax, shift in ((there, 0), (back, 50)):
        assert sorted(round(float(c[0].get_xdata()[0]), 6) for c in ax.containers) == sorted([1. + shift, 1. + shift, 11. + shift, 11. + shift, 5.])
        low, high = ax.get_xlim()
        assert low <= 0 and all(low <= x <= high for c in ax.collections for x in c.get_offsets()[:, 0])   # the first panel must not cut the second
    half = 4.302652729749462/3**.5
    assert there.containers[0][2][0].get_segments()[0][:, 0] == pytest.approx([1 - half, 1 + half])
    pd.testing.assert_frame_equal(table, before)


def test_results_without_references_and_with_one_seed():
    fig = drawn(plots.plot_results(results(), references=False))
    assert [t.get_text() for t in fig.axes[0].get_yticklabels()] == ["baseline", "full"]
    single = drawn(plots.plot_results(results(1)))
    assert not single.axes[0].collections or all(len(c.get_offsets()) == 0 for c in single.axes[0].collections if hasattr(c, "get_offsets") and c.get_label() == "seed")
    with pytest.raises(InputError, match="no result"): plots.plot_results(results().query("feature == method"), references=False)


def test_importing_plots_loads_neither_umap_nor_seaborn():
    code = "import sys, vdistill.looking.plots; print([m for m in ('umap', 'seaborn', 'numba', 'torch') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() in ("[]", "['torch']")


def test_an_embedding_leaves_the_number_of_threads_alone():
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        plots.embed_2d(np.random.default_rng(0).normal(size=(40, 5)))
        assert torch.get_num_threads() == 1
    finally: torch.set_num_threads(before)


def test_sides_are_where_the_table_says():
    table = pd.DataFrame([dict(method=m, side=s, mean=x, interval=i) for m, s, x, i in (("b", "v", 60., 2.), ("b", "z", 50., np.nan), ("a", "v", 61., 1.))])
    before = table.copy()
    ax = plots.plot_sides(table)
    drawn(ax.figure)
    assert [t.get_text() for t in ax.get_yticklabels()] == ["b", "a"]
    points = {c.get_label(): c.lines[0].get_xydata().tolist() for c in ax.containers}
    assert points == {"observation v": [[60, 0], [61, 1]], "representation z": [[50, 0]]}
    pd.testing.assert_frame_equal(table, before)
    with pytest.raises(InputError, match="one dataset"): plots.plot_sides(pd.concat([table, table]))
    with pytest.raises(InputError, match="interval"): plots.plot_sides(table.drop(columns="interval"))


def test_an_estimate_is_drawn_as_it_was_learned():
    table = pd.DataFrame([dict(seed=s, step=100*k, train=1. + k, validation=.5 + k + s) for s in (0, 1) for k in (1, 2, 3)])
    ax = plots.plot_estimate(table, value=2., ceiling=np.inf, truth=3.)
    lines = {line.get_label(): line.get_ydata() for line in ax.lines if not line.get_label().startswith("_")}
    assert set(lines) == {"seed 0, held out", "seed 1, held out", "estimate 2.00", "truth 3.00"}
    np.testing.assert_allclose(lines["seed 1, held out"], [2.5, 3.5, 4.5])
    with pytest.raises(InputError, match="validation"): plots.plot_estimate(table.drop(columns="validation"))
