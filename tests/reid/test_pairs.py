"Grids, faults and files that are too dull for the chapter on pairs; real pairs where there are some."
import pickle
import shutil
import unicodedata
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings, strategies as st
from PIL import Image
from scipy.ndimage import map_coordinates
from small_sets import NFC, NFD, boxes, message, pairs, plain_disk, rename, scene, write # noqa: F401 (a fixture among them)

from vdistill.reid.data import load_dataset
from vdistill.reid.pairs import PairsDataset, block_splits, disjoint, find_pairs, grid_windows, near_duplicates, read_boxes, thumbnail
from vdistill.reid.views import Jitter, cut, sample_views, uniform, view_parameters
from vdistill.reid.images import as_size, read_image, size_for
from vdistill.reid.records import DataWarning, Protocol

settings.register_profile("fixed", derandomize=True, deadline=None, max_examples=40)
settings.load_profile("fixed")


# ---- real pairs

@pytest.fixture(scope="module")
def real(pairs_dir):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        dataset = load_dataset(f"pairs:{pairs_dir}")
    return dataset, [str(w.message) for w in caught]


@pytest.mark.pairs
def test_real_counts(real, pairs_dir):
    if pairs_dir.name != "roadscene": pytest.skip("counts are known for roadscene only")
    dataset, said = real
    identities = dataset.summary().identities
    assert identities["train"] + identities["val"] == 986 and identities["test"] == 495 # 506 with the scene that is there twice
    assert len(said) == 1 and "FLIR_06128 (like FLIR_06099)" in said[0] and "1 of 129" in said[0]
    assert dataset.protocol == Protocol(300, 1, 3) and dataset.name == "roadscene" and dataset.image_size == (64, 64)
    everything = PairsDataset(pairs_dir, duplicates=None)
    assert everything.summary().identities["test"] == 506 and everything.records.scene.nunique() == 129
    assert set(everything.records.scene[everything.records.split != "test"]) == set(find_pairs(pairs_dir).scene[:90])


@pytest.mark.pairs
def test_real_records(real):
    records = real[0].records
    assert (records.groupby("scene")["split"].nunique() == 1).all() and (records.groupby("identity")["split"].nunique() == 1).all()
    assert (records.groupby(["identity", "modality"]).size() == 4).all()
    order = records.drop_duplicates("scene").set_index("scene")["split"].sort_index()
    assert list(order.map({"train": 0, "val": 1, "test": 2})) == sorted(order.map({"train": 0, "val": 1, "test": 2}))
    assert sorted(records.identity.unique()) == list(range(records.identity.nunique()))


@pytest.mark.pairs
def test_real_margin_of_duplicates(pairs_dir):
    if pairs_dir.name != "roadscene": pytest.skip("the margin was looked at on roadscene only")
    pairs = find_pairs(pairs_dir)
    thumbs = np.array([[thumbnail(read_image(p)), thumbnail(read_image(q, "L"))] for p, q in zip(pairs.visible, pairs.infrared)])
    likeness = np.einsum("imd,jmd->mij", thumbs, thumbs).min(0)[np.triu_indices(len(thumbs), 1)]
    assert not ((likeness > .42) & (likeness < .6)).any() # nothing near the threshold


# ---- views

def test_views_do_not_depend_on_the_batch(pairs):
    dataset = PairsDataset(pairs)
    some = np.random.default_rng(0).integers(0, len(dataset), 150)
    together = dataset.images(some, draw=3)
    assert together.dtype == torch.uint8 and together.shape == (150, 3, 64, 64)
    assert torch.equal(together, torch.cat([dataset.images([i], draw=3) for i in some]))
    assert torch.equal(together, dataset.images(torch.tensor(some), draw=3))
    assert torch.equal(together, pickle.loads(pickle.dumps(dataset)).images(some, draw=3))
    for other in (dataset.images(some, draw=4), PairsDataset(pairs, seed=1).images(some, draw=3)):
        assert (other != together).flatten(1).any(1).float().mean() > .9
    infrared = dataset.indices()[dataset.records.modality == 1]
    assert (dataset.images(infrared)[:, :1] == dataset.images(infrared)).all()
    assert dataset.images([]).shape == (0, 3, 64, 64)


def test_views_do_not_depend_on_threads(pairs):
    dataset, threads = PairsDataset(pairs), torch.get_num_threads()
    try: torch.set_num_threads(1); one = dataset.images(np.arange(70)); torch.set_num_threads(2); two = dataset.images(np.arange(70))
    finally: torch.set_num_threads(threads)
    assert torch.equal(one, two)


def slow_view(image, window, parameters, mean, image_size):
    top, left, h, w = window
    down, right, s, theta, k, b = parameters
    v, u = np.meshgrid(*((2 * np.arange(n) + 1) / n - 1 for n in image_size), indexing="ij")
    x = left + w / 2 + right * w + s * (np.cos(theta) * u * w / 2 - np.sin(theta) * v * h / 2)
    y = top + h / 2 + down * h + s * (np.sin(theta) * u * w / 2 + np.cos(theta) * v * h / 2)
    return np.clip(k * (map_coordinates(image.astype(np.float64), [y - .5, x - .5], order=1, mode="mirror") - mean) + mean + 255 * b, 0, 255)


@given(st.integers(0, 2**32), st.sampled_from([(0, 0), (57, 102), (114, 204)]), st.sampled_from([(64, 64), (40, 70), (128, 96)]))
def test_views_against_a_slow_oracle(seed, corner, image_size):
    image = np.asarray(scene(1)[1]) # 300x210; two of the corners touch the image's border
    window = (*corner, 96, 96)
    patch = torch.tensor(cut(image, window, (96, 96)))[None]
    parameters = view_parameters(uniform(seed, 0, [0], 6), Jitter())
    fast = sample_views(patch, patch.float().mean((1, 2, 3)), parameters, image_size)[0, 0].numpy()
    slow = slow_view(image, window, parameters[0].double().numpy(), patch.float().mean().item(), image_size)
    assert np.abs(fast - slow).max() < 1.


def test_farthest_views_stay_in_the_patch():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (300, 300)).astype(np.uint8)
    corners = np.array([[a, b, c, d, .5, .5] for a in (0, 1) for b in (0, 1) for c in (0, 1) for d in (0, 1)], dtype=float)
    patch = torch.tensor(cut(image, (100, 100, 96, 96), (96, 96)))[None].expand(16, -1, -1, -1)
    parameters = view_parameters(corners, Jitter())
    fast = sample_views(patch, torch.zeros(16), parameters, (96, 96))[:, 0].numpy()
    for f, p in zip(fast, parameters.double().numpy()): assert np.abs(f - slow_view(image, (100, 100, 96, 96), p, 0, (96, 96))).max() < 1.


def test_jitter_ranges():
    p = view_parameters(uniform(0, 0, np.arange(20_000), 6), Jitter()).numpy() * [96, 96, 1, 180 / np.pi, 1, 1]
    for column, (low, high) in zip(p.T, [(-8, 8), (-8, 8), (.9, 1.1), (-8, 8), (.7, 1.3), (-.15, .15)]):
        assert low - 1e-5 <= column.min() < low + .01 * (high - low) and high - .01 * (high - low) < column.max() <= high + 1e-5


@given(st.integers(-2**63, 2**63 - 1), st.integers(0, 2**40), st.lists(st.integers(0, 2**40), min_size=1, max_size=8), st.integers(1, 8))
def test_uniform_is_a_function_of_its_key(seed, draw, indices, count):
    u = uniform(seed, draw, indices, count)
    assert ((0 <= u) & (u < 1)).all() and (uniform(seed, draw, indices[::-1], count)[::-1] == u).all() and (uniform(seed, draw, indices, count + 1)[:, :count] == u).all()


def test_uniform_is_uniform_and_independent():
    u = uniform(3, 1, np.arange(50_000), 6)
    counts = np.histogram(u, 64, (0, 1))[0]
    assert ((counts - counts.mean())**2 / counts.mean()).sum() < 64 + 6 * np.sqrt(128) # chi-square, 63 degrees of freedom
    assert np.abs(np.corrcoef(u.T) - np.eye(6)).max() < .03


# ---- windows and splits

@given(st.integers(1, 500), st.integers(1, 500), st.integers(8, 200))
def test_grid_windows(height, width, side):
    windows = grid_windows(height, width, side)
    assert len(windows) == (height // side) * (width // side)
    if len(windows):
        assert windows[:, :2].min() >= 0 and (windows[:, 0] + side).max() <= height and (windows[:, 1] + side).max() <= width
        assert abs(windows[:, 0].min() - (height - (windows[:, 0] + side).max())) <= 1 # in the middle
        assert len(np.unique(windows, axis=0)) == len(windows)


@given(st.integers(0, 300))
def test_block_splits(n):
    splits = block_splits(n)
    assert len(splits) == n and list(splits) == sorted(splits, key=["train", "val", "test"].index)
    if n >= 3: assert set(splits) == {"train", "val", "test"}
    if n >= 20: assert abs((splits == "test").mean() - .3) < .03 and abs((splits == "val").mean() - .14) < .03


def test_scene_without_places_and_tiny_images(tmp_path):
    scenes = {f"s{k}": scene(k) for k in range(4)} | {"flat": [Image.new("RGB", (300, 210)), Image.new("L", (300, 210))], "tiny": [Image.new("RGB", (40, 40)), Image.new("L", (40, 40))]}
    dataset = PairsDataset(write(tmp_path / "p", scenes))
    assert set(dataset.records.scene) <= {f"s{k}" for k in range(4)}
    said = message(PairsDataset, write(tmp_path / "q", {"flat": scenes["flat"], "tiny": scenes["tiny"]}))
    assert "no 96x96 window" in said and "smaller window" in said


def test_near_duplicates_drop_the_later_and_need_both_modalities(tmp_path):
    one, other = scene(0), scene(1)
    def nearly(image): # equal bytes would be refused, being in several splits
        image = np.array(image)
        image[0, 0] ^= 1
        return Image.fromarray(image)
    scenes = {"a": one, "b": other, "c": scene(0, shift=2), "d": [nearly(one[0]), nearly(other[1])], "e": scene(0)}
    with pytest.warns(DataWarning, match=r"2 of 5 scenes .*c \(like a\), e \(like a\)"): dataset = PairsDataset(write(tmp_path / "p", scenes), contrast=1)
    assert set(dataset.records.scene) == {"a", "b", "d"} and dataset.notes
    assert set(PairsDataset(tmp_path / "p", contrast=1, duplicates=None).records.scene) == set(scenes)


def test_near_duplicates_of_flat_scenes():
    assert near_duplicates(np.zeros((4, 2, 576))) == {} and near_duplicates(np.zeros((1, 2, 576))) == {}


# ---- folders and faults

def test_layout_is_forgiving(tmp_path):
    folder = write(tmp_path / "Any NAME", {"a b": scene(0), "ü.1": scene(1), "c": scene(2)}, ("JPG", "png"))
    for junk in ("Thumbs.db", ".DS_Store", "._c.jpg", "notes.txt"): (folder / "visible" / junk).write_bytes(b"junk")
    dataset = load_dataset(f" pairs:{folder} ")
    assert dataset.name == "any name" and set(dataset.records.scene) == {"a b", "ü.1", "c"}


def test_all_faults_in_one_error(pairs):
    v, i = pairs / "visible", pairs / "infrared"
    (v / "s0.png").write_bytes((v / "s0.png").read_bytes()[:400])
    (i / "s1.png").write_bytes(b"")
    (i / "s2.png").unlink()
    scene(3)[1].resize((300, 209)).save(i / "s3.png")
    data = bytearray((v / "s4.png").read_bytes()); data[len(data) // 2] ^= 255; (v / "s4.png").write_bytes(data)
    said = message(PairsDataset, pairs)
    assert said.startswith("5 faults")
    for part in ("visible/s0.png: no image", "infrared/s1.png: empty", "visible/s2.png: no infrared", "300x210 in visible but 300x209", "s4.png"): assert part in said
    assert "s5" not in said


def test_truncated_jpeg(tmp_path):
    folder = write(tmp_path / "p", {f"s{k}": scene(k) for k in range(3)}, ("jpg", "jpg"))
    data = (folder / "visible" / "s1.jpg").read_bytes()
    for part in (.9, .5, .1):
        (folder / "visible" / "s1.jpg").write_bytes(data[:int(part * len(data))])
        assert "s1.jpg: no image, or not all of it" in message(PairsDataset, folder)


def test_missing_folders(tmp_path):
    assert "no folder" in message(load_dataset, f"pairs:{tmp_path/'none'}")
    (tmp_path / "ir").mkdir(); (tmp_path / "visible").mkdir()
    said = message(load_dataset, f"pairs:{tmp_path}")
    assert "has no infrared/" in said and "found: ir, visible" in said
    (tmp_path / "infrared").mkdir()
    assert "no image" in message(load_dataset, f"pairs:{tmp_path}")


def test_namesakes(pairs):
    scene(9)[0].save(pairs / "visible" / "s1.jpg")
    assert "1 image with a namesake" in message(PairsDataset, pairs)


def test_memory_is_estimated_first(pairs):
    said = message(PairsDataset, pairs, max_gigabytes=1e-3)
    assert "GB" in said and "max_scenes=" in said
    assert PairsDataset(pairs, max_scenes=3).records.scene.nunique() == 3


def test_sizes(pairs):
    assert as_size(48) == (48, 48) and as_size([np.int64(64), 32]) == (64, 32)
    assert PairsDataset(pairs, image_size=(48, 80)).images([0, 5]).shape == (2, 3, 48, 80)
    assert size_for([2, 2.5, 1]) == (64, 32) and size_for([1]) == (64, 64) and size_for([.3]) == (32, 64)


# ---- boxes

def test_boxes(pairs):
    rows = [f"s{k},{10 + 5 * k},20,30,70,p{k % 5}" for k in range(6)] + ["s0.png,-14,100,30,70,rim", "s1,260.4,140.2,30,69.7,p1"]
    with pytest.warns(DataWarning, match="1 window of 1 identity left out"): dataset = PairsDataset(boxes(pairs, rows)) # s5 shows p0, which belongs to s0's split
    r = dataset.records
    assert dataset.image_size == (64, 32) and dataset.images(np.arange(len(dataset)))[0].shape == (3, 64, 32)
    assert r.identity.nunique() == 6 and (r.groupby("identity")["split"].nunique() == 1).all() and (r.groupby("scene")["split"].nunique() == 1).all()
    assert r[(r.scene == "s1") & (r.top == 140)].height.unique() == [70] and "s5" not in set(r.scene)


@pytest.mark.parametrize("names, part", [(("7", "07"), "7 and 07"), (("7", "-7"), "line 3: -7")])
def test_boxes_of_identities_that_are_one_number_or_negative(pairs, names, part):
    assert part in (said := message(PairsDataset, boxes(pairs, [f"s0,10,10,48,64,{names[0]}", f"s5,10,10,48,64,{names[1]}"]))) and "boxes.csv" in said


def test_one_image_in_two_splits_of_boxed_pairs(pairs):
    "Under two names, for a person each: learned and asked."
    rows = [f"s{k},10,20,30,70,p{k}" for k in range(6)]
    for m in ("visible", "infrared"): (pairs / m / "s5.png").write_bytes((pairs / m / "s0.png").read_bytes())
    said = message(PairsDataset, boxes(pairs, rows))
    assert "2 images in several splits" in said and "visible/s0.png (train), visible/s5.png (test)" in said
    assert len(PairsDataset(pairs, duplicates=None))


def test_boxes_name_scenes_in_either_form(tmp_path):
    (tmp_path / "boxes.csv").write_text("name,x,y,w,h,identity\nZo\u00e9,1,2,30,40,p\n", encoding="utf-8")
    for form in ("NFC", "NFD"):
        scene = unicodedata.normalize(form, "Zo\u00e9")
        assert read_boxes(tmp_path / "boxes.csv", [scene]).scene.tolist() == [scene]


def test_box_pixels(pairs):
    still, image = Jitter(0, 0, 0, 0, 0), np.asarray(Image.open(pairs / "visible" / "s0.png"))
    dataset = PairsDataset(boxes(pairs, ["s0,40,50,48,96,1", "s1,0,0,48,96,2", "s2,0,0,48,96,3"]), jitter=still, image_size=(64, 32))
    want = Image.fromarray(image[50:146, 40:88]).resize((32, 64), Image.Resampling.BILINEAR)
    assert np.abs(dataset.images([0])[0].permute(1, 2, 0).numpy().astype(float) - np.asarray(want)).mean() < 6 # antialiased against bilinear


@pytest.mark.parametrize("row, part", [("s0,0,0,30,70,", "line 2 has no identity"), ("s0,0,0,30,70", "line 2 has 5 of 6 cells"), ("s0,a,0,30,70,1", "line 2: x, y, w, h"),
    ("s0,0,0,nan,70,1", "line 2: x, y, w, h"), ("s0,0,0,-3,70,1", "line 2: x, y, w, h"), ("zz,0,0,30,70,1", "no scene 'zz'"), ("s0,290,0,30,70,1", "more than half of the box lies outside s0 (300x210)")])
def test_bad_boxes(pairs, row, part): assert part in message(PairsDataset, boxes(pairs, [row]))


def test_bad_box_tables(pairs):
    assert "has no column identity; found: name, x, y, w, h" in message(PairsDataset, boxes(pairs, ["s0,1,2,3,4"], "name,x,y,w,h"))
    assert "no rows" in message(PairsDataset, boxes(pairs, []))
    (pairs / "boxes.csv").write_bytes(b""); assert "found: nothing" in message(PairsDataset, pairs)
    (pairs / "boxes.csv").write_bytes(b"name\xff\xfe"); assert "not UTF-8" in message(PairsDataset, pairs)


def test_disjoint_keeps_the_first_scene():
    windows = pd.DataFrame({"identity": list("abab"), "split": ["train", "train", "test", "train"]})
    kept, notes = disjoint(windows)
    assert list(kept.index) == [0, 1, 3] and len(notes) == 1


# ---- names as people have them

@plain_disk
@pytest.mark.parametrize("visible, infrared", [(NFC, NFD), (NFD, NFC), (NFD, NFD)])
def test_pairs_in_either_normal_form(pairs, visible, infrared):
    "Archives from macOS write an accented letter as two characters."
    before = PairsDataset(write(pairs.parent/"plain", {f"s{k}": scene(k) for k in range(5)} | {NFC: scene(5)}))
    rename(pairs/"visible"/"s5.png", f"{visible}.png"), rename(pairs/"infrared"/"s5.png", f"{infrared}.png")
    dataset = PairsDataset(pairs)
    pd.testing.assert_frame_equal(dataset.records, before.records)
    boxed = boxes(pairs, [f"{name},10,20,30,70,{who}" for name, who in zip(["s0", "s1.png", "visible\\s2.png", NFC, f"{NFD}.png"], "abcde")])
    assert list(read_boxes(boxed/"boxes.csv", find_pairs(boxed).scene).scene) == [NFC, NFC, "s0", "s1", "s2"]


@plain_disk
def test_names_that_look_alike_in_one_folder(pairs):
    shutil.copy(rename(pairs/"visible"/"s1.png", f"{NFC}.png"), pairs/"visible"/f"{NFD}.png")
    assert "1 image with a namesake" in (said := message(find_pairs, pairs)) and "accents" in said


@plain_disk
def test_names_that_differ_in_capitals(pairs):
    rename(pairs/"infrared"/"s1.png", "S1.png")
    said = message(PairsDataset, pairs)
    assert "s1.png: no infrared image of this name" in said and "S1 and s1" in said and "capitals" in said
    assert "no scene 'S2'" in (said := message(PairsDataset, boxes(pairs, ["S2,0,0,30,70,1"]))) and "s2, which differs in capitals" in said
