"Grids over sizes, seeds and faults that would be dull to read in the chapter."
import numpy as np, pandas as pd, pytest, torch
from hypothesis import given, settings, strategies as st
from vdistill.core import InputError
from vdistill.reid.data import load_dataset
from vdistill.reid.records import MODALITIES
from vdistill.reid.evaluation import retrieval_scores
from vdistill.reid.drawing import BODY, FACTOR_GROUPS, LEVELS, MATERIALS, PALETTES, _columns, _layers, render
from vdistill.reid.synthetic import CAMERAS, SyntheticDataset, factor_matcher_distances, sample_captures, sample_identities

IDENTITY = [*FACTOR_GROUPS["shared_identity"], *FACTOR_GROUPS["visible_identity"]]

def factors(n=12, seed=0): return pd.concat([sample_identities(n, seed), sample_captures(np.arange(n) % 6 + 1, seed)], axis=1)

@pytest.mark.parametrize("size", [(8, 8), (9, 31), (16, 8), (33, 17), (64, 32), (65, 33), (32, 64), (128, 64), (200, 77), (256, 128)])
@pytest.mark.parametrize("modality", MODALITIES)
def test_any_size(size, modality):
    f = factors()
    images = render(f, modality, *size)
    assert images.shape == (12, 3, *size) and images.dtype == torch.uint8
    assert torch.equal(images[3:7], render(f.iloc[3:7], modality, *size, chunk=1))
    assert all(image.float().std() > 5 for image in images) # something is to be seen
    assert (images[:, :1] == images).all() == (modality == "infrared")

@pytest.mark.parametrize("size", [(96, 48), (97, 51)])
def test_size_changes_the_sampling_and_not_the_picture(size):
    quiet = factors(24).assign(thermal_noise=0.)
    coarse = torch.nn.functional.adaptive_avg_pool2d(render(quiet, "infrared", *size).float(), (16, 8))
    assert (coarse - torch.nn.functional.adaptive_avg_pool2d(render(quiet, "infrared", 128, 64).float(), (16, 8))).abs().mean() < 4

@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.integers(0, 2**40), st.integers(1, 40), st.integers(1, 50))
def test_bytes_depend_on_the_factors_alone(seed, n, chunk):
    f, order = factors(n, seed), np.random.default_rng(seed).permutation(n)
    for modality in (0, 1):
        images = render(f, modality, 24, 12)
        assert torch.equal(images, render(f, modality, 24, 12, chunk=chunk))
        assert torch.equal(images[torch.from_numpy(order)], render(f.iloc[order], modality, 24, 12))
    assert factors(n + 7, seed).head(n).equals(f)

@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.integers(0, 2**40))
def test_each_pixel_is_shared_out(seed):
    f = _columns(factors(24, seed))
    canvas = _layers(f, 40, 20, np.zeros((24, 1), np.float32), np.zeros((24, 1), np.float32))
    shares = canvas.material[:, :MATERIALS.index("texture")]
    assert shares.min() >= 0 and canvas.through.min() >= 0
    np.testing.assert_allclose(canvas.through + shares.sum(1), 1, atol=1e-5)
    np.testing.assert_allclose(canvas.shade, 1 - canvas.through, atol=1e-5) # without edges and light nothing is shaded
    assert (np.abs(canvas.material[:, -1]) <= shares[:, MATERIALS.index("upper")] + 1e-6).all()

@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.integers(0, 2**40))
def test_a_modality_ignores_what_only_the_other_sees(seed):
    f, other = factors(seed=seed), factors(seed=seed + 1)
    swap = lambda *groups: f.assign(**{name: other[name] for group in groups for name in FACTOR_GROUPS[group]})
    assert torch.equal(render(f, "infrared", 32, 16), render(swap("visible_identity", "visible_nuisance"), "infrared", 32, 16))
    assert torch.equal(render(f, "visible", 32, 16), render(swap("infrared_nuisance"), "visible", 32, 16))
    assert not torch.equal(render(f, "visible", 32, 16), render(swap("visible_identity"), "visible", 32, 16))
    assert not torch.equal(render(f, "infrared", 32, 16), render(swap("infrared_nuisance"), "infrared", 32, 16))

def test_coverage_against_supersampling():
    "A part's share of a pixel is its area there: against 16 times as many rows and columns, averaged."
    f, zero = _columns(factors(24).assign(texture=0)), np.zeros((24, 1), np.float32)
    fine = _layers(f, 64*16, 32*16, zero, zero).material.reshape(24, len(MATERIALS), 64, 16, 32, 16).mean((3, 5))
    coarse = _layers(f, 64, 32, zero, zero).material
    assert np.abs(fine - coarse)[:, :-1].mean() < .004 and abs(fine - coarse)[:, :-1].sum((2, 3)).max() < 25

def test_tables_agree():
    assert {"upper_cut", "texture"} <= set(LEVELS)
    for name, levels in LEVELS.items(): assert sum(levels.values()) == pytest.approx(1)
    for factor, *values in BODY.values(): assert len(values) == len(LEVELS[factor])
    names = [name for group in FACTOR_GROUPS.values() for name in group]
    assert len(names) == len(set(names))
    assert all(0 <= v <= 1 for palette in PALETTES.values() for colour in palette for v in colour)
    assert CAMERAS.modality.tolist() == [0, 0, 1, 0, 0, 1]

def test_dataset():
    data = load_dataset("synthetic", seed=3, image_size=(32, 16), identities=(5, 3, 4), images_per_camera=2)
    r, n = data.records, 12*6*2
    assert data.name == "synthetic" and len(data) == len(data.factors) == n and data.image_size == (32, 16)
    assert (r.groupby(["identity", "camera"]).size() == 2).all() and (r.modality == CAMERAS.modality.loc[r.camera].to_numpy()).all()
    assert r.groupby("split").identity.nunique().to_dict() == dict(train=5, val=3, test=4) and r.groupby("identity").split.nunique().max() == 1
    assert (data.factors[IDENTITY].groupby(r.identity).nunique() == 1).all(axis=None)
    assert all(np.issubdtype(t, np.number) for t in data.factors.dtypes) and data.factors.notna().all(axis=None)
    rows = np.array([100, 3, 3, 77])
    for i, image in zip(rows, data.images(rows)): assert torch.equal(image, render(data.factors.iloc[[i]], int(r.modality[i]), 32, 16)[0])
    assert data.images([]).shape == (0, 3, 32, 16)
    assert data.images(rows).data_ptr() != data.pixels.data_ptr()

def test_more_images_keep_the_people():
    a, b = (SyntheticDataset((4, 2, 2), n, seed=9) for n in (1, 3))
    for name in IDENTITY: assert a.factors.groupby(a.records.identity)[name].first().equals(b.factors.groupby(b.records.identity)[name].first())

@pytest.mark.parametrize("seed", range(3))
def test_ceiling_is_the_share_of_people_without_a_double(seed):
    data = SyntheticDataset((2, 2, 100), 1, seed=seed)
    test = data.indices("test")
    f, ids, m = data.factors.iloc[test], data.records.identity.to_numpy()[test], data.records.modality.to_numpy()[test]
    scores = retrieval_scores(factor_matcher_distances(f[m == 1], f[m == 0]), ids[m == 1], ids[m == 0])
    people = f.groupby(ids)[list(LEVELS)].first()
    assert scores.cmc[0] == pytest.approx(1 - people.duplicated(keep=False).mean())

def test_factor_matcher_against_a_loop():
    a, b = sample_identities(9, 0), sample_identities(7, 1)
    d = factor_matcher_distances(a, b)
    assert d.dtype == torch.float32
    assert d.tolist() == [[sum(a[c][i] != b[c][j] for c in LEVELS) for j in range(7)] for i in range(9)]

@pytest.mark.parametrize("n", [0, -1, 2.5, "3", None])
def test_counts(n):
    with pytest.raises(InputError, match="whole number"): sample_identities(n)
    with pytest.raises(InputError, match="whole number"): SyntheticDataset((3, 3, n))
    with pytest.raises(InputError, match="whole number"): SyntheticDataset((3, 3, 3), n)

@pytest.mark.parametrize("broken,word", [
    (lambda f: f.drop(columns=["bag", "view"]), "bag, view"),
    (lambda f: f.assign(hair=4), "hair has the code 4"),
    (lambda f: f.assign(upper_colour=-1), "upper_colour has the code -1"),
    (lambda f: f.assign(scene=6), "scene has the code 6"),
])
def test_broken_factors(broken, word):
    with pytest.raises(InputError, match=word): render(broken(factors(2)), "visible")

def test_faults():
    for cameras in ([], [0], [1, 7]):
        with pytest.raises(InputError, match="cameras"): sample_captures(cameras)
    for size in ((7, 32), (64, 0), (64.5, 32)):
        with pytest.raises(InputError, match="image_size"): render(factors(1), "visible", *size)
    with pytest.raises(InputError, match="modality"): render(factors(1), "depth")
    with pytest.raises(InputError, match="three numbers"): SyntheticDataset((3, 3))
    with pytest.raises(InputError, match="colour"): factor_matcher_distances(factors(1), factors(1), ("colour",))
