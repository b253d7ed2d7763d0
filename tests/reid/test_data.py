"Grids, faults and files that are too dull for the chapter; real pairs where there are some."
import os
import pickle
import shutil
import subprocess
import sys
import unicodedata
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings, strategies as st
from PIL import Image, ImageDraw
from scipy.ndimage import map_coordinates

from vdistill.core import InputError
from vdistill.reid.data import (CSVDataset, DataWarning, Jitter, PairsDataset, Protocol, ReIDDataset, as_size, block_splits, check_images, codes, image_shape,
                           complain, cut, disjoint, find_pairs, grid_windows, load_dataset, near_duplicates, read_boxes, read_image, read_manifest,
                           read_table, sample_views, size_for, thumbnail, uniform, view_parameters)

settings.register_profile("fixed", derandomize=True, deadline=None, max_examples=40)
settings.load_profile("fixed")


def scene(seed, size=(300, 210), shift=0):
    "Blocks of random grey, unlike each other from seed to seed."
    rng, images = np.random.default_rng(seed), []
    blocks = rng.integers(0, 300, (40, 4))
    for mode in ("RGB", "L"):
        image = Image.new(mode, size)
        pen = ImageDraw.Draw(image)
        for x, y, w, h in blocks:
            colour = rng.integers(0, 256, 3)
            pen.rectangle([x + shift - 20, y - 20, x + shift - 10 + w // 5, y - 10 + h // 5], fill=tuple(map(int, colour)) if mode == "RGB" else int(colour[0]))
        images.append(image)
    return images


def write(folder, scenes, endings=("png", "png")):
    for m, modality in enumerate(("visible", "infrared")):
        (folder / modality).mkdir(parents=True, exist_ok=True)
        for name, images in scenes.items(): images[m].save(folder / modality / f"{name}.{endings[m]}")
    return folder


@pytest.fixture
def pairs(tmp_path): return write(tmp_path / "Pairs Ünï", {f"s{k}": scene(k) for k in range(6)})


def message(function, *args, **options):
    with pytest.raises(InputError) as error: function(*args, **options)
    return str(error.value)


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


def test_many_faults_are_counted():
    said = message(complain, [f"file {k}" for k in range(30)], "bad line", "Mend them")
    assert said.startswith("30 bad lines: file 0; ") and "file 19; and 10 more. Mend them" in said and "file 20" not in said


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


def test_images_of_other_kinds(tmp_path):
    grey16 = Image.fromarray(np.linspace(20_000, 21_000, 64 * 64).reshape(64, 64).astype(np.uint16))
    grey16.save(tmp_path / "deep.png"); Image.new("RGBA", (20, 10), (9, 8, 7, 0)).save(tmp_path / "alpha.png"); Image.new("P", (20, 10)).save(tmp_path / "palette.png")
    deep = read_image(tmp_path / "deep.png", "L")
    assert deep.min() == 0 and deep.max() == 255 and abs(deep.mean() - 127.5) < 1
    assert read_image(tmp_path / "alpha.png").shape == (10, 20, 3) and read_image(tmp_path / "palette.png").shape == (10, 20, 3)
    assert len(check_images([tmp_path / "deep.png", tmp_path, tmp_path / "gone"])) == 2


def test_pixels_that_are_no_number(tmp_path):
    "A dead pixel of a thermal camera is dark, one out of range bright, and the others keep their contrast."
    ramp = np.arange(12, dtype=np.float32).reshape(3, 4)
    odd = ramp.copy(); odd[0, :3] = np.nan, np.inf, -np.inf
    Image.fromarray(ramp[0:3]).save(tmp_path / "ramp.tif"); Image.fromarray(odd).save(tmp_path / "odd.tif")
    assert list(read_image(tmp_path / "odd.tif", "L")[0]) == [0, 255, 0, 0]
    assert (read_image(tmp_path / "odd.tif", "L")[1:] == np.round((ramp[1:] - 3) * 255/8)).all() and read_image(tmp_path / "ramp.tif", "L").max() == 255
    Image.fromarray(np.full((3, 4), np.nan, np.float32)).save(tmp_path / "none.tif")
    assert "none.tif: no pixel" in message(read_image, tmp_path / "none.tif")


def test_memory_is_estimated_first(pairs):
    said = message(PairsDataset, pairs, max_gigabytes=1e-3)
    assert "GB" in said and "max_scenes=" in said
    assert PairsDataset(pairs, max_scenes=3).records.scene.nunique() == 3


@pytest.mark.parametrize("size", [(64, 0), (64,) * 3, (64., 32), "64", None, 4])
def test_bad_sizes(size): assert "image_size" in message(as_size, size)


def test_sizes(pairs):
    assert as_size(48) == (48, 48) and as_size([np.int64(64), 32]) == (64, 32)
    assert PairsDataset(pairs, image_size=(48, 80)).images([0, 5]).shape == (2, 3, 48, 80)
    assert size_for([2, 2.5, 1]) == (64, 32) and size_for([1]) == (64, 64) and size_for([.3]) == (32, 64)


def test_unknown_split_and_spec(pairs):
    dataset = PairsDataset(pairs)
    assert "no split 'query'" in message(dataset.indices, "query")
    assert sorted(np.concatenate([dataset.indices(s) for s in ("train", "val", "test")])) == list(dataset.indices())
    assert "pairs:DIR" in message(load_dataset, "pair:x") and "dm.dongguk.edu" in message(load_dataset, "regdb:x")
    assert "write it as pairs:DIR" in message(load_dataset, "pairs:") and f"pairs:{pairs}" in message(load_dataset, str(pairs))
    assert "no option vews" in message(load_dataset, f"pairs:{pairs}", vews=3)


# ---- boxes

def boxes(folder, rows, header="name,x,y,w,h,identity"):
    (folder / "boxes.csv").write_text("\n".join([header, *rows]), encoding="utf-8")
    return folder


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


# ---- manifests

def manifest(folder, rows, header="path,identity,camera,modality,split", end="\n", bom=""):
    (folder / "set.csv").write_bytes((bom + end.join([header, *rows]) + end).encode())
    return folder / "set.csv"


@pytest.fixture
def images(tmp_path):
    for k in range(8):
        for m, image in zip("vi", scene(k, (20, 44))): image.save(tmp_path / f"{k}{m}.png")
    return tmp_path


def rows_of(n=8, split="train", names="{}"): return [f"{k}{m}.png,{names.format(k)},{c},{word},{split}" for k in range(n) for c, (m, word) in enumerate([("v", "visible"), ("i", "ir")])]


@pytest.mark.parametrize("end, bom", [("\n", ""), ("\r\n", "\ufeff"), ("\r\n\r\n", "\ufeff"), ("\n\n \n", "")])
def test_manifest_forms(images, end, bom):
    dataset = load_dataset(f"csv:{manifest(images, rows_of(), end=end, bom=bom)}")
    assert len(dataset) == 16 and dataset.name == "set" and dataset.image_size == (64, 32) and dataset.protocol == Protocol()
    assert torch.equal(dataset.images([3, 0], draw=9), dataset.images([0, 3]).flip(0))


def test_manifest_pixels(images):
    dataset = CSVDataset(manifest(images, rows_of()), image_size=(44, 20))
    assert torch.equal(dataset.images([4])[0], torch.tensor(np.array(Image.open(images / "2v.png"))).permute(2, 0, 1))
    assert (dataset.images(dataset.indices()[dataset.records.modality == 1]).float().std(dim=1) == 0).all()


def test_validation_is_drawn_by_the_seed(images):
    rows = rows_of(6) + [row.replace(",train", ",test") for row in rows_of(8)[12:]]
    file = manifest(images, rows)
    drawn = {tuple(sorted(set(d.records.identity[d.indices("val")]))) for d in (CSVDataset(file, seed=s) for s in range(8))}
    assert all(len(ids) == 1 for ids in drawn) and len(drawn) > 1
    assert set(CSVDataset(file).records.identity[CSVDataset(file).indices("test")]) == {6, 7}
    with_val = CSVDataset(manifest(images, rows_of(6) + [row.replace(",train", ",Validation") for row in rows_of(8)[12:]]))
    assert with_val.summary().identities.to_dict() == {"train": 6, "val": 2, "test": 0}


def test_names_and_missing_cameras(images):
    rows = [",".join(np.array(row.split(","))[[0, 1, 3, 4]]) for row in rows_of(names="Zoë {}")]
    dataset = CSVDataset(manifest(images, rows, "PATH, Identity ,modality,split"))
    assert (dataset.records.camera == dataset.records.modality).all() and dataset.records.identity.nunique() == 8
    assert list(codes(["7", "9", "7"])) == [7, 9, 7] and list(codes(["b", "9", "b"])) == [0, 1, 0]


def test_one_sided_identities_are_reported(images):
    with pytest.warns(DataWarning, match="1 identity seen in one modality only.*: 7"): dataset = CSVDataset(manifest(images, rows_of()[:-1]))
    assert 7 not in set(dataset.records.identity[dataset.indices("val")])


def test_manifest_faults(images):
    assert "2 bad lines" in message(CSVDataset, manifest(images, ["0v.png,0,0,x,train", "0i.png,0,0,ir,trainn"]))
    assert "1 identity in more than one split" in message(CSVDataset, manifest(images, ["0v.png,a,0,v,train", "0i.png,a,1,i,test"]))
    assert "0v.png is listed before" in message(CSVDataset, manifest(images, ["0v.png,a,0,v,train", "0v.png,b,0,v,train"]))
    assert "has no column modality" in message(CSVDataset, manifest(images, ["0v.png,a"], "path,identity"))
    assert "no file" in message(load_dataset, f"csv:{images/'none.csv'}")
    (images / "0v.png").write_bytes(b""); (images / "1v.png").write_bytes(b"text"); (images / "2v.png").unlink()
    said = message(CSVDataset, manifest(images, rows_of()))
    assert "3 unusable images" in said and "0v.png: empty" in said and "2v.png: missing" in said
    assert "max_gigabytes" in message(CSVDataset, manifest(images, rows_of()), max_gigabytes=1e-6)


def test_identities_that_are_one_number_or_negative(images):
    rows = ["0v.png,7,0,v,train", "0i.png,7,1,i,train", "1v.png,007,0,v,test", "1i.png,007,1,i,test", "2v.png,8,0,v,train"]
    assert "1 number under several names in" in (said := message(CSVDataset, manifest(images, rows))) and "7 and 007" in said
    assert "1 negative identity in" in (said := message(CSVDataset, manifest(images, ["0v.png,-1,0,v,train", "0i.png,3,1,i,train"]))) and "line 2: -1" in said
    assert len(CSVDataset(manifest(images, ["0v.png,007,0,v,train", "0i.png,007,1,i,train", "1v.png,0,1,v,test", "1i.png,0,01,i,test"]))) == 4


def test_quoted_cells(images):
    (images / "a, b.png").write_bytes((images / "0v.png").read_bytes())
    assert len(CSVDataset(manifest(images, ['"a, b.png","O\'Neill, x",0,v,train', "0i.png,\"O'Neill, x\",1,i,train"]))) == 2


# ---- names as people have them

NFC, NFD = unicodedata.normalize("NFC", "Zoë"), unicodedata.normalize("NFD", "Zoë") # they look alike
plain_disk = pytest.mark.skipif(os.name == "nt" or os.uname().sysname == "Darwin", reason="this system takes both forms of a name, and both cases, for one")


def rename(path, name): return path.rename(path.with_name(name))


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


@plain_disk
@pytest.mark.parametrize("kind", ["pairs", "csv"])
def test_the_folder_itself_in_another_form(images, kind):
    home = images/f"{NFD} set"
    write(home, {f"s{k}": scene(k) for k in range(4)})
    for k in range(8):
        for m in "vi": shutil.copy(images/f"{k}{m}.png", home)
    manifest(home, rows_of())
    end = "/set.csv" if kind == "csv" else ""
    assert len(load_dataset(f"{kind}:{images}/{NFC} set{end}")) == len(load_dataset(f"{kind}:{home}{end}"))
    assert f"{NFD} set', which differs in capitals" in message(load_dataset, f"{kind}:{images}/{NFC.upper()} set{end}").replace(f"{NFD} set{end}", f"{NFD} set")
    home.rename(images/f"{NFC} set"), (images/f"{NFD} set").mkdir()
    assert f"{NFC} set" in str(find_pairs(f"{images}/{NFC} set").visible[0]) if kind == "pairs" else True


@plain_disk
def test_manifests_in_either_normal_form(images):
    rename(images/"0v.png", f"{NFD}.png"), rename(images/"0i.png", f"{NFC}.i.png")
    rows = [f"{NFC}.png,{NFC},0,v,train", f"{NFD}.i.png,{NFD},1,ir,train", *rows_of()[2:]]
    dataset = CSVDataset(manifest(images, rows))
    assert dataset.records.identity.nunique() == 8 and not dataset.notes # two forms of a name are one person
    said = message(CSVDataset, manifest(images, [*rows[:2], rows[2].replace("1v", "1V"), *rows[3:]]))
    assert "line 4: 1V.png" in said and "1v.png', which differs in capitals" in said
    for name in ("e\u0323\u0307", "e\u0307\u0323"): shutil.copy(images/"1v.png", images/f"{name}.png")
    said = message(CSVDataset, manifest(images, ["\u1eb9\u0307.png,x,0,v,train", *rows]))
    assert "line 2" in said and "2 of this name" in said


@pytest.mark.parametrize("spelled", ["./0v.png", "{home}/0v.png", "../{name}/0v.png", "link.png", "hard.png", "folder/0v.png", "copy.png", ".//0v.png"])
def test_one_file_under_two_names_is_a_leak(images, spelled):
    try: os.symlink("0v.png", images/"link.png"), os.link(images/"0v.png", images/"hard.png"), os.symlink(images, images/"folder", target_is_directory=True)
    except OSError: pytest.skip("no links here")
    shutil.copy(images/"0v.png", images/"copy.png")
    again = spelled.format(home=images.resolve(), name=images.name)
    rows = rows_of(6) + [f"{again},x,0,v,test", "7i.png,x,1,i,test"]
    said = message(CSVDataset, manifest(images, rows))
    assert "line 2" in said and "line 14" in said and "0v.png" in said and ("copy.png" in said if spelled == "copy.png" else True)


def test_copies_within_a_split_are_taken(images):
    "They may be frames of a black camera; the doctor names them."
    shutil.copy(images/"0v.png", images/"copy.png"), os.link(images/"0v.png", images/"hard.png")
    rows = ["copy.png,5,0,v,train", "hard.png,6,0,v,train", *rows_of()]
    assert len(CSVDataset(manifest(images, rows))) == 18
    assert "line 6: ./1v.png is listed before, in line 4 as 1v.png" in message(CSVDataset, manifest(images, [*rows_of()[:4], "./1v.png,1,0,v,train"]))


@pytest.mark.parametrize("names, shown", [(("7", "7.0"), "7 and 7.0"), (("P1", "p1"), "P1 and p1"), (("Ann B", "Ann\u00a0B"), r"Ann B and 'Ann\xa0B'"), (("Ann", "A\u200bnn"), r"Ann and 'A\u200bnn'"),
                                          (("no 1", "no1"), "no 1 and no1"), (("\uff11\uff12a", "12A"), "\uff11\uff12a and 12A"), (("07.0", "7.00"), "07.0 and 7.00")])
def test_identities_that_are_nearly_the_same_are_named(images, names, shown):
    rows = [f"{k}{m}.png,{names[m == 'i'] if k == 0 else k},0,{m},train" for k in range(8) for m in "vi"]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        CSVDataset(manifest(images, rows))
    first, *_ = [str(w.message) for w in caught if issubclass(w.category, DataWarning)]
    assert "1 identity written in several ways" in first and shown in first


def test_nearly_the_same_cameras_and_boxed_people_are_named(images, pairs):
    with pytest.warns(DataWarning, match="1 camera written in several ways.*C1 and c1"): CSVDataset(manifest(images, ["0v.png,0,C1,v,train", "0i.png,0,x,i,train", "1v.png,1,c1,v,train", "1i.png,1,x,i,train"]))
    with pytest.warns(DataWarning, match="1 identity written in several ways.*P1 and p1"): PairsDataset(boxes(pairs, [f"s{k},10,20,30,70,{who}" for k, who in enumerate(["P1", "p1", "7", "8"])]))


@pytest.mark.parametrize("names", [("70", " 70"), ("70", "70\u00a0"), ("Ann", "\u3000Ann "), (NFC, NFD)])
def test_blanks_around_a_name_and_its_normal_form_do_not_count(images, names):
    dataset = CSVDataset(manifest(images, [f"{k}{m}.png,{names[m == 'i'] if k == 0 else k},0,{m},train" for k in range(8) for m in "vi"]))
    assert dataset.records.identity.nunique() == 8 and not dataset.notes


# ---- tables as programs write them

def test_paths_of_windows(images):
    (images/"sub").mkdir()
    for file in images.glob("*.png"): shutil.copy(file, images/"sub")
    dataset = CSVDataset(manifest(images, [f"sub\\{row}" for row in rows_of()]))
    assert len(dataset) == 16 and torch.equal(dataset.images([3]), CSVDataset(manifest(images, rows_of())).images([3]))
    if os.name != "nt":
        shutil.copy(images/"0v.png", images/"sub\\9v.png") # a name of its own here
        assert len(CSVDataset(manifest(images, ["sub\\9v.png,9,0,v,train", *rows_of()]))) == 17
        for place in (r"C:\set\0v.png", "C:/set/0v.png", r"\\server\set\0v.png"):
            said = message(CSVDataset, manifest(images, [f"{place},0,0,v,train", *rows_of()]))
            assert "line 2" in said and place in said and "Windows" in said


ENCODINGS = ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"]
MARKS = {"utf-16-le": b"\xff\xfe", "utf-16-be": b"\xfe\xff"}


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_separators_and_encodings(images, separator, encoding):
    text = "\r\n".join(["path,identity,camera,modality,split", *rows_of(names="Zoë {}")]).replace(",", separator) + "\r\n"
    (images/"set.csv").write_bytes(MARKS.get(encoding, b"") + text.encode(encoding))
    dataset = CSVDataset(images/"set.csv")
    assert len(dataset) == 16 and dataset.records.identity_name[0] == "Zoë 0" and dataset.records.path[3] == images/"1i.png"


def test_what_separates_and_encodes_is_said_where_it_cannot_be_told(images):
    file, text = images/"set.csv", "\n".join(["path,identity,camera,modality,split", *rows_of(names="Zoë {}")])
    for data, parts in {text.encode("cp1252"): ("line 2", "0xEB", "ë", "cp1252", "UTF-8"), text.encode("utf-16-le"): ("line 1", "NUL", "UTF-16"), text.replace(",", "|").encode(): ("no column path", "path|identity", "semicolons"),
                        text.replace("Zoë 3", "\0").encode(): ("line 8", "NUL"), b"\xff\xfea": ("not UTF-16",), text.encode("cp1252").replace(b"\xeb", b"\x81"): ("0x81",)}.items():
        file.write_bytes(data)
        said = message(CSVDataset, file)
        assert str(file) in said and all(part in said for part in parts), said
    file.write_text('sep=;\npath;identity;modality;split\n"0v.png";a;v;train\n0i.png; "a";i;train\n', encoding="utf-8")
    assert list(read_table(file, ["path", "split"]).line) == [3, 4] and list(read_table(file, ["path", "split"]).identity) == ["a", "a"]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("odd", ["a\fb", "a\u2028b", "a\x85b", "a\x1cb", "a\vb"])
def test_odd_characters_within_a_cell(tmp_path, odd, end):
    (tmp_path/"t.csv").write_bytes(end.join(["name,x", f"{odd},1", "c,2", ""]).encode())
    table = read_table(tmp_path/"t.csv", ["name", "x"])
    assert list(table.name) == [odd, "c"] and list(table.line) == [2, 3]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_line_breaks_within_a_cell(tmp_path, end):
    "A row counts as the line on which it begins."
    (tmp_path/"t.csv").write_bytes(end.join(["name,x", '"a', 'b",1', "", 'c,"2', "", '3"', "d,4", ""]).encode())
    table = read_table(tmp_path/"t.csv", ["name", "x"])
    assert list(table.name) == [f"a{end}b", "c", "d"] and list(table.line) == [2, 5, 8]
    (tmp_path/"t.csv").write_bytes(end.join(["name,x", '"a', 'b",1', "c,", "d,4", ""]).encode())
    assert "line 4 has no x" in message(read_table, tmp_path/"t.csv", ["name", "x"])


def test_quotes_that_are_left_open(tmp_path):
    "They would swallow the lines that follow."
    for line in ('"a,1', '"a"b,1', '"a\nb,1\n'):
        (tmp_path/"t.csv").write_text(f"name,x\nz,0\n{line}\nc,2\n")
        assert "line 3" in (said := message(read_table, tmp_path/"t.csv", ["name", "x"])) and "quote" in said


READ_ONLY = """
import warnings, numpy as np, pandas as pd, torch
warnings.simplefilter("error"); torch.set_warn_always(True)
if pd.__version__ < "3": pd.options.mode.copy_on_write = True # as from pandas 3 on
from vdistill.reid.data import CSVDataset
from vdistill.reid.retrieval import as_features, retrieval_scores
dataset = CSVDataset("set.csv", image_size=16)
rows = dataset.records[dataset.records.modality == 1].index
fixed = np.arange(4); fixed.setflags(write=False)
for indices in (rows, rows.to_series(), rows.to_numpy(), dataset.records.identity.to_numpy(), fixed, [0, 1], torch.arange(3)): assert dataset.images(indices).shape[1:] == (3, 16, 16)
frame = pd.DataFrame(np.eye(4))
as_features(frame.to_numpy(), "a")
retrieval_scores(frame.to_numpy(), dataset.records.identity[:4].to_numpy(), dataset.records.identity[:4], exclude=(frame > 2).to_numpy())
assert not fixed.flags.writeable
"""


def test_columns_of_pandas_that_cannot_be_written_to(images, tmp_path):
    "torch says that writing to them is undefined; nobody writes."
    manifest(images, rows_of())
    subprocess.run([sys.executable, "-c", READ_ONLY], cwd=images, check=True, env=os.environ | dict(PYTHONPATH=os.pathsep.join(sys.path)))


# ---- the base class

def test_base_class():
    rows = pd.DataFrame({"identity": [0, 0], "camera": [1, 4], "modality": [0, 1], "split": ["train", "train"]}, index=[7, 9])
    dataset = ReIDDataset("x", [8, 8], rows, notes=())
    assert len(dataset) == 2 and list(dataset.records.index) == [0, 1] and dataset.records.modality.dtype == np.int8 and dataset.factors is None
    with pytest.raises(NotImplementedError): dataset.images([0])
    assert str(Protocol(300, 1, 3)) == "gallery of 300 identities, 1 image each, mean of 3 draws" and str(Protocol(None, 10)) == "gallery of all identities, 10 images each, 1 draw"


def test_disjoint_keeps_the_first_scene():
    windows = pd.DataFrame({"identity": list("abab"), "split": ["train", "train", "test", "train"]})
    kept, notes = disjoint(windows)
    assert list(kept.index) == [0, 1, 3] and len(notes) == 1


@pytest.mark.parametrize("orientation, turn", [(1, 0), (3, 2), (6, -1), (8, 1)])
def test_images_stand_as_a_viewer_shows_them(tmp_path, orientation, turn):
    "Cameras write how they were held into the file."
    x = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[274] = orientation
    Image.fromarray(x).save(tmp_path/"x.png", exif=exif)
    got = read_image(tmp_path/"x.png")
    np.testing.assert_array_equal(got, np.rot90(x, turn))
    assert image_shape(tmp_path/"x.png") == got.shape[:2]
