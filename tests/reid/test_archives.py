"Archives: trees of the true size from the official draw, and the oddities of real folders, of which the doctor misses none."
import os
import shutil
import tempfile
import unicodedata
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings, strategies as st
from scipy.io import savemat

from vdistill.reid import cache
from vdistill.reid.fakes import fake_llcm, fake_regdb, fake_sysu, plant, spread
from vdistill.reid.layouts import DRAW, PUBLISHED, camera_in_name, draw_faults, in_order, look_sysu, read_ids, read_list, read_permutations
from vdistill.reid.batches import IdentitySampler, load_batch
from vdistill.reid.cache import PixelCache, read_pixels
from vdistill.core import InputError
from vdistill.reid.data import load_dataset
from vdistill.reid.doctor import doctor
from vdistill.reid.evaluation import evaluate, pixel_features, retrieval_scores
from vdistill.reid.records import DataWarning
from vdistill.reid.training import Trainer, configure

settings.register_profile("fixed", derandomize=True, deadline=None, max_examples=40)
settings.load_profile("fixed")
ODD = "cam1 in cam3 Ünï ID" # a folder name with cam, blanks and unicode


def message(function, *args, **options):
    with pytest.raises(InputError) as error: function(*args, **options)
    return str(error.value)


def quiet(spec, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DataWarning)
        return load_dataset(spec, **options)


def check(report, name):
    found = [c for c in report.checks if c.name == name]
    assert len(found) == 1, (name, [c.name for c in report.checks])
    return found[0]


def wrong(report): return {c.name for c in report.checks if c.ok is False}


COUNTS = {"training images", "validation images", "test images"}


@pytest.fixture
def sysu(tmp_path): return fake_sysu(tmp_path / ODD / "SYSU", people=(4, 2, 3), image_size=(16, 8))


@pytest.fixture
def regdb(tmp_path): return fake_regdb(tmp_path / ODD / "RegDB", people=12, image_size=(16, 8))


@pytest.fixture
def llcm(tmp_path): return fake_llcm(tmp_path / ODD / "LLCM", people=(6, 3), image_size=(16, 8))


# ---- true size

@pytest.fixture(scope="module")
def roomy():
    "A folder for tens of thousands of small files: in memory where the system allows, since removing them from a disk takes long."
    memory = "/dev/shm"
    folder = tempfile.mkdtemp(prefix="vdistill-", dir=memory if os.access(memory, os.W_OK) else None)
    yield Path(folder)
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def true_sysu(protocol_dir, roomy): return fake_sysu(roomy / "SYSU-MM01", protocol_dir / DRAW, links=True)


@pytest.fixture(scope="module")
def true_dataset(true_sysu): return quiet(f"sysu:{true_sysu}", image_size=(16, 8))


def test_true_sysu_counts(true_dataset, true_sysu):
    assert true_dataset.summary().to_numpy().tolist() == [[296, 20284, 9929], [99, 1974, 1980], [96, 6775, 3803]]
    joined = quiet(f"sysu:{true_sysu}", validation=False)
    assert joined.summary().to_numpy().tolist() == [[395, 22258, 11909], [0, 0, 0], [96, 6775, 3803]]
    queries, gallery = true_dataset.query_gallery()
    cameras = true_dataset.records.camera
    assert cameras.iloc[queries].value_counts().to_dict() == {3: 1883, 6: 1920} and set(cameras.iloc[gallery]) == {1, 2, 4, 5}
    assert not true_dataset.notes and not draw_faults(true_dataset.records, true_dataset.permutations)


def test_true_sysu_draw(true_dataset):
    "Sizes of the official galleries, and the valid queries, through reader, draw and evaluator."
    records, draw = true_dataset.records, true_dataset.permutations
    queries, gallery = true_dataset.query_gallery()
    q, g = records.iloc[queries], records.iloc[gallery]
    shot = np.array([np.flatnonzero(draw[c, i][0] == p)[0] for c, i, p in zip(g.camera, g.identity, g.position)]) # place of each image in trial 1
    for cameras, single, multi, valid in (((1, 2, 4, 5), 301, 3010, 3803), ((1, 2), 112, 1120, 2208)):
        inside = g.camera.isin(cameras).to_numpy()
        assert (inside & (shot < 1)).sum() == single and (inside & (shot < 10)).sum() == multi
        part = g[inside & (shot < 1)]
        exclude = torch.from_numpy((q.camera.to_numpy()[:, None] == 3) & (part.camera.to_numpy() == 2))
        distances = torch.rand(len(q), len(part), generator=torch.Generator().manual_seed(0))
        assert retrieval_scores(distances, q.identity.to_numpy(), part.identity.to_numpy(), exclude=exclude, cmc="identity").valid_queries == valid


def test_true_sysu_sampler(true_dataset):
    train = true_dataset.indices("train")
    identity, modality = (true_dataset.records[c].to_numpy()[train] for c in ("identity", "modality"))
    sampler = IdentitySampler(identity, modality, 8, 4)
    assert len(sampler.identities) == 296 and len(sampler) == 37
    visible, infrared = next(iter(sampler))
    assert (identity[visible] == identity[infrared]).all() and not modality[visible].any() and modality[infrared].all()
    batch = load_batch(true_dataset, train[visible], train[infrared], sampler.label[visible])
    assert batch.visible.shape == (32, 3, 16, 8) and batch.visible.std() > .1


def test_true_sysu_without_validation_list(true_dataset, true_sysu):
    kept = {f.name: f.read_bytes() for f in (true_sysu / "exp").glob("val_id.*")}
    for name in kept: (true_sysu / "exp" / name).unlink()
    try:
        with pytest.warns(DataWarning, match="no exp/val_id"): dataset = load_dataset(f"sysu:{true_sysu}")
    finally:
        for name, content in kept.items(): (true_sysu / "exp" / name).write_bytes(content)
    pd.testing.assert_frame_equal(dataset.records, true_dataset.records)


def test_true_sysu_doctor(true_sysu):
    report = doctor(f"sysu:{true_sysu}", images=300)
    assert report.ok, str(report)
    assert check(report, "identities in no list").found == "22 with 1,118 images, not read"
    assert check(report, "images").found == "300 of 44,745, drawn at random, can be read"
    assert check(report, "official draw").found == "fits the images of 491 identities"


def test_true_regdb(roomy):
    folder = fake_regdb(roomy / "RegDB", links=True)
    for trial in (1, 10):
        assert quiet(f"regdb:{folder}", trial=trial, validation=0).summary().to_numpy().tolist() == [[206, 2060, 2060], [0, 0, 0], [206, 2060, 2060]]
    dataset = quiet(f"regdb:{folder}")
    assert dataset.summary().identities.tolist() == [165, 41, 206] and [len(rows) for rows in dataset.query_gallery("visible")] == [2060, 2060]
    report = doctor(f"regdb:{folder}", images=100)
    assert report.ok, str(report)


def test_true_llcm(roomy):
    folder = fake_llcm(roomy / "LLCM", links=True)
    dataset = quiet(f"llcm:{folder}", validation=0)
    assert dataset.summary().to_numpy().tolist() == [[713, 16946, 13975], [0, 0, 0], [351, 8680, 7166]] and len(dataset) == 46767
    report = doctor(f"llcm:{folder}", images=100)
    assert report.ok, str(report)


# ---- lists

@given(st.lists(st.integers(0, 9999), min_size=1, max_size=30), st.sampled_from([",", ", ", "\n", "\r\n", ",\r\n", " , "]), st.sampled_from(["", ",", "\r\n", ",\r\n\r\n"]), st.booleans())
def test_ids_however_they_are_written(tmp_path_factory, ids, between, end, bom):
    folder = tmp_path_factory.getbasetemp() / "ids"
    folder.mkdir(exist_ok=True)
    (folder / "a_id.txt").write_bytes(b"\xef\xbb\xbf" * bom + (between.join(f"{i:04d}" for i in ids) + end).encode())
    assert read_ids(folder, "a_id") == sorted(set(ids))


def test_ids_from_matlab_and_their_faults(tmp_path):
    savemat(tmp_path / "m.mat", {"id": np.array([[3, 1, 2]], np.uint16)})
    assert read_ids(tmp_path, "m") == [1, 2, 3] and read_ids(tmp_path, "neither") is None
    (tmp_path / "m.txt").write_text("7")
    assert read_ids(tmp_path, "m") == [7] # the text goes first
    (tmp_path / "w.txt").write_text("1,two")
    assert "w.txt: 'two' is no identity" in message(read_ids, tmp_path, "w")
    (tmp_path / "e.txt").write_text("\n")
    assert "e.txt: '' is no identity" in message(read_ids, tmp_path, "e")
    (tmp_path / "u.txt").write_bytes("1,2".encode("utf-16"))
    assert read_ids(tmp_path, "u") == [1, 2]
    (tmp_path / "u.txt").write_bytes(b"1,\r\n2\xe9")
    assert "u.txt is not UTF-8" in (said := message(read_ids, tmp_path, "u")) and "line 2 has the byte 0xE9" in said
    (tmp_path / "u.txt").write_bytes(b"1\0,\0")
    assert "u.txt: line 1 holds a NUL" in message(read_ids, tmp_path, "u")
    savemat(tmp_path / "n.mat", {"ids": np.array([[1]])})
    assert "has no variable 'id'" in message(read_ids, tmp_path, "n")
    (tmp_path / "g.mat").write_bytes(b"garbage")
    assert "g.mat is no MATLAB file" in message(read_ids, tmp_path, "g")


@given(st.lists(st.tuples(st.text("ab 7_ü/-,", min_size=1, max_size=12).map(lambda t: f"x{t}y.jpg"), st.integers(0, 500)), min_size=1, max_size=8),
       st.sampled_from([" ", "\t", ", ", "  "]), st.sampled_from(["\n", "\r\n", ",\r\n", " \n\n"]), st.booleans())
def test_image_lists_however_they_are_written(tmp_path_factory, rows, between, end, bom):
    file = tmp_path_factory.getbasetemp() / "list.txt"
    file.write_bytes(b"\xef\xbb\xbf" * bom + "".join(f"{path}{between}{label}{end}" for path, label in rows).encode())
    table = read_list(file)
    assert list(zip(table.path, table.label)) == rows


def test_image_lists_faults(tmp_path):
    file = tmp_path / "list.txt"
    assert "list.txt: missing" in message(read_list, file)
    file.write_text("a.jpg 1\nb.jpg\nc.jpg one\n")
    assert "2 of 3 lines" in message(read_list, file) and "line 2: 'b.jpg'" in message(read_list, file)
    file.write_text("\n\n")
    assert "is empty" in message(read_list, file)
    file.write_bytes("Visible/1/a\u2028b\fc.bmp 0\r\nd.bmp 1\r".encode())
    assert read_list(file).values.tolist() == [["Visible/1/a\u2028b\fc.bmp", 0, 1], ["d.bmp", 1, 2]]


# ---- order and draw

@given(st.lists(st.integers(1, 9999), unique=True, max_size=20))
def test_order(numbers):
    padded = [f"{n:04d}.{'jpg' if n % 2 else 'JPG'}" for n in numbers]
    assert sorted(padded, key=in_order) == sorted(padded) # what the official draw assumes
    assert [int(name.partition(".")[0]) for name in sorted((f"{n}.jpg" for n in numbers), key=in_order)] == sorted(numbers)
    words = [f"a_f{n}.jpg" for n in numbers]
    assert sorted(words, key=in_order) == sorted(words)


def test_permutations_round_trip(sysu):
    draw = read_permutations(sysu / "exp" / DRAW)
    counts = load_dataset(f"sysu:{sysu}").records.groupby(["camera", "identity"]).size().to_dict()
    assert {key: cell.shape for key, cell in draw.items()} == {key: (10, n) for key, n in counts.items()}
    assert all((np.sort(cell, 1) == np.arange(cell.shape[1])).all() for cell in draw.values())
    assert len({tuple(row) for row in draw[1, 1]}) > 5 # trials differ


def test_official_permutations(protocol_dir):
    draw = read_permutations(protocol_dir / DRAW)
    assert len(draw) == 2298 and {c for c, _ in draw} == set(range(1, 7)) and sum(cell.shape[1] for cell in draw.values()) == 30071 + 15792
    assert draw[1, 1].dtype == np.int64 and all(cell.shape[0] == 10 and cell.min() == 0 for cell in draw.values())


def test_permutations_faults(tmp_path):
    cell = np.empty((2, 1), object)
    cell[:, 0] = [np.array([[1, 2], [2, 1]], np.uint8), np.array([[1, 1]], np.uint8)]
    cameras = np.empty((1, 1), object)
    cameras[0, 0] = cell
    savemat(tmp_path / DRAW, {"rand_perm_cam": cameras})
    assert "camera 1, identity 2 holds no permutations" in message(read_permutations, tmp_path / DRAW)
    assert "missing" in message(read_permutations, tmp_path / "none.mat")


def test_reader_order_is_that_of_the_draw(sysu):
    folder = sysu / "cam1" / "0007" # 20 and more images
    for file in sorted(folder.iterdir()): file.rename(folder / f"{int(file.stem)}.jpg") # leading zeros are lost
    records = load_dataset(f"sysu:{sysu}").records
    part = records[(records.camera == 1) & (records.identity == 7)]
    assert len(part) > 10 and [int(path.stem) for path in part.path] == list(range(1, len(part) + 1)) and part.position.tolist() == list(range(len(part)))


# ---- SYSU-MM01

def test_sysu_records(sysu):
    dataset = load_dataset(f"sysu:{sysu}", image_size=(16, 8))
    records = dataset.records
    assert dataset.name == "SYSU-MM01" and not dataset.notes and dataset.permutations and dataset.summary().identities.tolist() == [4, 2, 3]
    for row in records.sample(40, random_state=0).itertuples():
        assert row.path == sysu / f"cam{row.camera}" / f"{row.identity:04d}" / f"{row.position + 1:04d}.jpg" and row.modality == (row.camera in (3, 6))
    assert dataset.images([0, 5, 5]).shape == (3, 3, 16, 8) and dataset.images([0, 5, 5]).dtype == torch.uint8
    assert records.groupby("identity")["split"].nunique().max() == 1
    queries, gallery = dataset.query_gallery()
    assert set(records.camera[queries]) == {3, 6} and set(records.camera[gallery]) == {1, 2, 4, 5} and set(records.split[queries]) == {"test"}
    assert [len(rows) for rows in dataset.query_gallery("visible", "val")] == [(records.split == "val")[records.modality == m].sum() for m in (0, 1)]


def test_sysu_odd_folders_change_nothing(sysu):
    before = load_dataset(f"sysu:{sysu}").records
    (sysu / "cam1" / "0001" / "0003.jpg").rename(sysu / "cam1" / "0001" / "0003.JPG")
    (sysu / "cam2" / "0002" / "0001.jpg").rename(sysu / "cam2" / "0002" / "0001.JPEG")
    for place in ("cam1/0001/Thumbs.db", "cam1/.DS_Store", "cam3/0002/._0001.jpg", "cam4/notes.txt"): (sysu / place).write_bytes(b"x")
    (sysu / "cam5" / "__MACOSX").mkdir()
    (sysu / "exp" / "test_id.txt").write_bytes(b"\xef\xbb\xbf" + (sysu / "exp" / "test_id.txt").read_bytes().strip() + b",\r\n")
    after = load_dataset(f"sysu:{sysu}").records
    pd.testing.assert_frame_equal(before.drop(columns="path"), after.drop(columns="path"))
    report = doctor(f"sysu:{sysu}")
    assert wrong(report) == COUNTS and check(report, "other files").found.startswith("5 passed over, such as cam1/.DS_Store")


def test_sysu_joined(sysu):
    dataset = load_dataset(f"sysu:{sysu}", validation=False)
    assert dataset.summary().identities.tolist() == [6, 0, 3]


def test_sysu_faults_all_at_once(sysu):
    shutil.rmtree(sysu / "cam6")
    shutil.rmtree(sysu / "cam2")
    (sysu / "cam2").mkdir()
    (sysu / "exp" / "test_id.txt").write_text("1,7,8,99")
    (sysu / "exp" / "train_id.txt").write_text("1,2;3 x4")
    said = message(load_dataset, f"sysu:{sysu}")
    for part in ("cam2; cam6", "train_id.txt: 'x4' is no identity", "absent identity: 99", "Unpack", "vdistill doctor sysu:"): assert part in said, said
    (sysu / "exp" / "train_id.txt").write_text("1,2,3,4")
    assert "1 in train and test" in message(load_dataset, f"sysu:{sysu}")


def test_sysu_lists_missing(sysu):
    for ending in ("txt", "mat"): (sysu / "exp" / f"test_id.{ending}").unlink()
    assert "test_id.txt: missing" in message(load_dataset, f"sysu:{sysu}")
    report = doctor(f"sysu:{sysu}")
    assert wrong(report) == {"identity lists"} | COUNTS


def test_sysu_validation_recovered(sysu):
    before = load_dataset(f"sysu:{sysu}").records
    for ending in ("txt", "mat"): (sysu / "exp" / f"val_id.{ending}").unlink()
    shutil.copytree(sysu / "cam1" / "0001", sysu / "cam1" / "0033") # seen in one modality only: nobody's
    with pytest.warns(DataWarning, match="no exp/val_id"): dataset = load_dataset(f"sysu:{sysu}")
    pd.testing.assert_frame_equal(before, dataset.records)
    assert check(doctor(f"sysu:{sysu}"), "identities in no list").found.startswith("1 with")


def test_sysu_without_draw(sysu, tmp_path):
    moved = (sysu / "exp" / DRAW).rename(tmp_path / "elsewhere.mat")
    with pytest.warns(DataWarning, match="wuancong/SYSU-MM01"): assert load_dataset(f"sysu:{sysu}").permutations is None
    report = doctor(f"sysu:{sysu}")
    assert check(report, "official draw").ok is None and wrong(report) == COUNTS
    with warnings.catch_warnings():
        warnings.simplefilter("error", DataWarning)
        assert load_dataset(f"sysu:{sysu}", permutations=moved).permutations
    moved.write_bytes(b"half")
    assert "elsewhere.mat is no MATLAB file" in message(load_dataset, f"sysu:{sysu}", permutations=moved)


def test_sysu_draw_misfits(sysu):
    (sysu / "cam3" / "0008" / "0002.jpg").unlink()
    (sysu / "cam1" / "0001" / "copy.jpg").write_bytes((sysu / "cam1" / "0001" / "0001.jpg").read_bytes())
    with pytest.warns(DataWarning, match="cam3/0008 has .* no 0002"): dataset = load_dataset(f"sysu:{sysu}")
    faults = draw_faults(dataset.records, dataset.permutations)
    assert len(faults) == 2 and faults[0].startswith("cam1/0001 has") and faults[0].endswith("images")
    assert "official draw" in wrong(doctor(f"sysu:{sysu}"))


def test_unlisted_people_are_not_checked_against_the_draw(sysu):
    "Most people of the real draw are in no small tree, and a missing camera is told once."
    records, checks = look_sysu(sysu)
    draw = read_permutations(sysu / "exp" / DRAW) | {(1, 77): np.zeros((10, 1), np.int64)}
    assert draw_faults(records, draw) == [] and draw_faults(records[records.camera != 6], draw) == []


# ---- RegDB

def test_regdb_records(regdb):
    dataset = load_dataset(f"regdb:{regdb}", trial=3, validation=0, image_size=(16, 8))
    assert dataset.name == "RegDB trial 3" and dataset.trial == 3 and dataset.summary().to_numpy().tolist() == [[6, 60, 60], [0, 0, 0], [6, 60, 60]]
    for row in dataset.records.sample(30, random_state=0).itertuples():
        assert row.path.parent == regdb / ("Visible", "Thermal")[row.modality] / str(row.identity) and row.camera == row.modality + 1
    other = load_dataset(f"regdb:{regdb}", trial=4, validation=0)
    people = lambda d: set(d.records.identity[d.records.split == "train"])
    assert people(dataset) != people(other) and len(people(dataset)) == 6
    assert load_dataset(f"regdb:{regdb}", validation=.5).summary().identities.tolist() == [3, 3, 6]


def test_regdb_odd_lists_change_nothing(regdb):
    before = load_dataset(f"regdb:{regdb}").records
    lists = regdb / "idx"
    (lists / "train_visible_1.txt").write_bytes(b"\xef\xbb\xbf" + (lists / "train_visible_1.txt").read_bytes().replace(b"\n", b",\r\n"))
    (lists / "test_thermal_1.txt").write_bytes((lists / "test_thermal_1.txt").read_bytes().replace(b"/", b"\\"))
    file = before.path[3]
    file.rename(file.with_suffix(".BMP"))
    (file.parent / "Thumbs.db").write_bytes(b"x")
    after = load_dataset(f"regdb:{regdb}").records
    pd.testing.assert_frame_equal(before.drop(columns="path"), after.drop(columns="path"))
    report = doctor(f"regdb:{regdb}")
    assert wrong(report) == {"training images", "test images", "trials 2 to 10"} and "1 passed over" in check(report, "other files").found # it is a small tree


def test_regdb_faults(regdb):
    lists = regdb / "idx"
    train = (lists / "train_visible_1.txt").read_text().splitlines()
    gone = regdb / train[0].split()[0]
    gone.unlink()
    thermal = (lists / "test_thermal_1.txt").read_text().splitlines()
    (lists / "train_visible_1.txt").write_text("\n".join([*train, train[1], thermal[0], "Visible/anna/1.bmp 7"]))
    (lists / "test_thermal_1.txt").write_text("\n".join([thermal[0].rpartition(" ")[0] + " 99", *thermal[1:]]))
    said = message(load_dataset, f"regdb:{regdb}")
    for part in (f"train_visible_1.txt line 1: {train[0].split()[0]}", f"train_visible_1.txt line 61: {train[1].split()[0]}", f"train_visible_1.txt line 62: {thermal[0].split()[0]}",
                 "line 63: Visible/anna/1.bmp", "test label 99 is folder", "in train and test"): assert part in said, said
    report = doctor(f"regdb:{regdb}")
    assert {"listed images", "folders of listed images", "repetitions", "labels", "splits"} <= wrong(report)


def test_regdb_missing_lists_and_trials(regdb):
    (regdb / "idx" / "test_visible_7.txt").unlink()
    assert "test_visible_7.txt: missing" in message(load_dataset, f"regdb:{regdb}", trial=7)
    assert "trial 7, image lists" in check(doctor(f"regdb:{regdb}"), "trials 2 to 10").found
    for trial in (0, 11, "3"): assert "trials 1 to 10" in message(load_dataset, f"regdb:{regdb}", trial=trial)
    for file in (regdb / "idx").glob("*_1.txt"): file.unlink()
    assert message(load_dataset, f"regdb:{regdb}").count(".txt: missing") == 4
    shutil.rmtree(regdb / "Thermal")
    assert {"folders", "image lists"} <= wrong(doctor(f"regdb:{regdb}"))


# ---- LLCM

def test_llcm_records(llcm):
    dataset = load_dataset(f"llcm:{llcm}", validation=0, image_size=(16, 8))
    assert dataset.summary().identities.tolist() == [6, 0, 3] and sorted(dataset.records.camera.unique()) == list(range(1, 10))
    train = dataset.records[dataset.records.split == "train"]
    assert all(path.parent.parent.name == ("vis", "nir")[m] and int(path.parent.name) == i for path, m, i in zip(train.path, train.modality, train.identity))
    test = dataset.records[dataset.records.split == "test"]
    assert all(path.parts[-3:-1] == (f"cam{c}", f"{i:04d}") and path.parts[-4] == ("test_vis", "test_nir")[m] for path, c, i, m in zip(test.path, test.camera, test.identity, test.modality))
    assert not ((test.modality == 1) & (test.camera == 3)).any()


def test_llcm_camera_three_is_not_missed(llcm):
    (llcm / "test_nir" / "cam3").rmdir()
    load_dataset(f"llcm:{llcm}")
    shutil.rmtree(llcm / "test_nir" / "cam4")
    assert "1 missing or empty folder: test_nir/cam4" in message(load_dataset, f"llcm:{llcm}")
    assert wrong(doctor(f"llcm:{llcm}")) == {"test cameras", "training images", "test images"}


def test_llcm_faults(llcm):
    before = (llcm / "idx" / "test_id.txt").read_text()
    leak = (llcm / "idx" / "train_vis.txt").read_text().split("/")[1]
    (llcm / "idx" / "test_id.txt").write_text(f"{before},{int(leak)}")
    assert f"{int(leak)} in train and test" in message(load_dataset, f"llcm:{llcm}")
    (llcm / "idx" / "test_id.txt").unlink()
    assert "test_id.txt: missing" in message(load_dataset, f"llcm:{llcm}")


def test_llcm_camera_in_name(llcm):
    assert [camera_in_name(f"cam8/0351/{name}") for name in ("0351_c06_s200656_f4830_nir.jpg", "0351_c12.jpg", "0351.jpg", "0351_cam3_x.jpg")] == [6, 12, 0, 0]
    file = next((llcm / "vis").rglob("*.jpg"))
    renamed = file.with_name("whoever.jpg")
    file.rename(renamed)
    text = (llcm / "idx" / "train_vis.txt").read_text().replace(file.name, renamed.name)
    (llcm / "idx" / "train_vis.txt").write_text(text)
    report = doctor(f"llcm:{llcm}")
    assert check(report, "cameras of training images").ok is None and "whoever.jpg" in check(report, "cameras of training images").found


# ---- pixels

def test_cache(regdb, tmp_path, monkeypatch):
    plain, cached = (load_dataset(f"regdb:{regdb}", image_size=(16, 8), cache=c) for c in (None, tmp_path / "pixels"))
    rows = np.array([7, 0, 100, 100, len(plain) - 1])
    assert torch.equal(plain.images(rows), cached.images(rows)) and not torch.equal(plain.images([0]), plain.images([60]))
    monkeypatch.setattr(cache, "read_image", lambda path: 1/0) # nothing is decoded from here on
    for trial in (1, 2): load_dataset(f"regdb:{regdb}", image_size=(16, 8), trial=trial, cache=tmp_path / "pixels").images(rows)
    monkeypatch.undo()
    other = load_dataset(f"regdb:{regdb}", image_size=(16, 8), trial=2, cache=tmp_path / "pixels")
    assert torch.equal(other.images(rows), load_dataset(f"regdb:{regdb}", image_size=(16, 8), trial=2).images(rows)) and len(list((tmp_path / "pixels").glob("*.npy"))) == 1
    plain.records.path[0].write_bytes(plain.records.path[60].read_bytes())
    again = load_dataset(f"regdb:{regdb}", image_size=(16, 8), cache=tmp_path / "pixels")
    assert torch.equal(again.images([0]), again.images([60])) and len(list((tmp_path / "pixels").glob("*.npy"))) == 2


def test_cache_is_whole_or_not_there(regdb, tmp_path):
    paths = list((regdb / "Visible").rglob("*.bmp"))
    paths[5].write_bytes(b"no image")
    assert str(paths[5]) in message(PixelCache, paths, (16, 8), tmp_path / "pixels", "x") and not list((tmp_path / "pixels").iterdir())


def test_read_pixels_of_nothing(): assert read_pixels([], (16, 8)).shape == (0, 3, 16, 8)


# ---- evaluators, training

def test_evaluate(regdb):
    dataset = load_dataset(f"regdb:{regdb}", image_size=(16, 8))
    rows = evaluate(dataset, lambda images, modality: {"pixels": pixel_features(images)}, dataset.indices("test"))
    assert len(rows) == 10 and all(0 <= row["value"] <= 100 for row in rows)


def test_one_epoch(sysu):
    config = configure(f"sysu:{sysu}", "full", epochs=1, identities_per_batch=2, images_per_identity=1, width=8, features=16, z_features=16, hidden=(16,), backbone="conv", weights=None, device="cpu", **{"data.image_size": [32, 16]})
    results = Trainer(config).fit()
    assert set(results.dataset) == {"SYSU-MM01"} and results.value.between(0, 100).all()


def test_query_gallery_names(sysu):
    assert "query 'thermal'" in message(load_dataset(f"sysu:{sysu}").query_gallery, "thermal")


# ---- names

plain_disk = pytest.mark.skipif(os.name == "nt" or os.uname().sysname == "Darwin", reason="this system takes both forms of a name, and both cases, for one")


@plain_disk
def test_lists_and_folders_in_either_normal_form(regdb):
    files = sorted((regdb / "Visible" / "3").iterdir())
    composed, apart = (unicodedata.normalize(form, "é") for form in ("NFC", "NFD"))
    for k, (disk, listed) in enumerate([(composed, apart), (apart, composed)]):
        files[k].rename(files[k].with_name(f"{disk}{k}.bmp"))
        for name in ("train_visible_1", "test_visible_1"):
            file = regdb / "idx" / f"{name}.txt"
            file.write_text(file.read_text("utf-8").replace(f"3/{files[k].name}", f"3/{listed}{k}.bmp"), encoding="utf-8-sig" if k else "utf-8")
    for file in (regdb / "idx").glob("*_1.txt"): file.write_bytes(file.read_text("utf-8-sig").encode("utf-16"))
    assert len(load_dataset(f"regdb:{regdb}")) == 240
    regdb.rename(regdb.with_name(f"Reg{apart}"))
    assert len(load_dataset(f"regdb:{regdb.with_name(f'Reg{composed}')}")) == 240
    assert "which differs in capitals" in message(load_dataset, f"regdb:{regdb.with_name(f'REG{composed}')}")


@plain_disk
def test_files_of_a_list_that_differ_in_capitals(regdb):
    "The list says which of them; today's disks may hold both."
    first = sorted((regdb / "Visible" / "3").iterdir())[0]
    (first.with_name(first.name.upper())).write_bytes(b"another file")
    assert first in set(load_dataset(f"regdb:{regdb}").records.path)
    lists = [regdb / "idx" / f"{split}_visible_1.txt" for split in ("train", "test")]
    file = next(f for f in lists if first.name in f.read_text("utf-8"))
    before = file.read_text("utf-8")
    file.write_text(before.replace(first.name, first.name.capitalize()), encoding="utf-8")
    assert "missing file" in message(load_dataset, f"regdb:{regdb}")
    label = next(line for line in before.splitlines() if line.startswith(f"Visible/3/{first.name}")).split()[-1]
    file.write_text(before + f"./Visible/3/{first.name} {label}\n", encoding="utf-8")
    assert "1 repetition" in message(load_dataset, f"regdb:{regdb}")


# ---- fakes

@given(st.integers(0, 500), st.integers(1, 40))
def test_spread(total, n):
    parts = spread(total, n)
    assert len(parts) == n and min(parts) >= 1 and max(parts) - min(parts) <= 1 and (total < n or sum(parts) == total)


def test_links(tmp_path):
    for links in (False, True):
        plant(tmp_path / str(links), [("a/1.jpg", b"same"), ("b/2.jpg", b"same"), ("b/3.jpg", b"other")], links)
        files = [(tmp_path / str(links) / p) for p in ("a/1.jpg", "b/2.jpg", "b/3.jpg")]
        assert [f.read_bytes() for f in files] == [b"same", b"same", b"other"] and files[0].samefile(files[1]) == links


def test_published_numbers_add_up():
    images = {kind: sum(v + i for name, _, _, v, i in rows if name != "validation") for kind, rows in PUBLISHED.items()}
    assert images == {"sysu": 22258 + 11909 + 6775 + 3803, "regdb": 8240, "llcm": 46767}
