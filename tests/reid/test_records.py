"Datasets as torch's own tools see them: records by number, subsets, loaders with workers."
import pickle

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from small_sets import message
from torch.utils.data import ConcatDataset, DataLoader, Dataset, RandomSampler, Subset

from vdistill.reid.fakes import fake_llcm, fake_regdb, fake_sysu
from vdistill.reid.data import load_dataset
from vdistill.reid.findings import complain
from vdistill.reid.images import as_size
from vdistill.reid.records import Protocol, Record, ReIDDataset

pytestmark = pytest.mark.filterwarnings("ignore::vdistill.reid.records.DataWarning")


def write_people(folder):
    rng, lines = np.random.default_rng(0), ["path,identity,camera,modality,split"]
    for k in range(8):
        for m in ("visible", "infrared"):
            (folder / m).mkdir(exist_ok=True, parents=True)
            Image.fromarray(np.kron(rng.integers(0, 256, (12, 12, 3), dtype=np.uint8), np.ones((10, 10, 1), np.uint8))).save(folder / m / f"{k}.png")
            lines.append(f"{m}/{k}.png,{k},{m},{m},{'train' if k < 6 else 'test'}")
    (folder / "people.csv").write_text("\n".join(lines))
    return folder


def opened(kind, folder):
    if kind == "synthetic": return load_dataset("synthetic", identities=(4, 2, 2), images_per_camera=1, image_size=(16, 8))
    if kind == "pairs": return load_dataset(f"pairs:{write_people(folder)}", window=48, duplicates=None, image_size=16)
    if kind == "csv": return load_dataset(f"csv:{write_people(folder) / 'people.csv'}", image_size=16)
    if kind == "regdb": return load_dataset(f"regdb:{fake_regdb(folder, 12)}", image_size=16)
    if kind == "llcm": return load_dataset(f"llcm:{fake_llcm(folder, (6, 4))}", image_size=16, cache=folder / "cache")
    return load_dataset(f"sysu:{fake_sysu(folder, people=(4, 2, 2))}", image_size=16, cache=folder / "cache" if kind == "cached sysu" else None)


KINDS = ["synthetic", "pairs", "csv", "sysu", "cached sysu", "regdb", "llcm"]


@pytest.fixture(scope="module", params=KINDS)
def dataset(request, tmp_path_factory): return opened(request.param, tmp_path_factory.mktemp(request.param.replace(" ", "")))


def test_one_record(dataset):
    record, row = dataset[3], dataset.records.iloc[3]
    assert isinstance(dataset, Dataset) and isinstance(record, Record) and Record._fields == ("pixels", "identity", "camera", "modality")
    assert torch.equal(record.pixels, dataset.images([3])[0]) and record.pixels.dtype == torch.uint8
    assert record[1:] == (row.identity, row.camera, row.modality) and all(type(n) is int for n in record[1:])


def test_numbers(dataset):
    n = len(dataset)
    for index in (n - 1, -1, np.int64(n - 1), np.uint8(min(n - 1, 255)), torch.tensor(n - 1), np.array(-1)):
        want = int(index) % n
        assert torch.equal(dataset[index].pixels, dataset.images([want])[0]) and dataset[index].identity == dataset.records.identity[want]
    for index in (n, -n - 1, 10**30):
        with pytest.raises(IndexError, match=str(n)): dataset[index]
    for index in ("3", 1.5, slice(3), None, [0, 1]):
        with pytest.raises(TypeError): dataset[index]


def test_going_through_ends(dataset):
    small = Subset(dataset, range(0, len(dataset), -(-len(dataset)//7)))
    assert [r.identity for r in small] == dataset.records.identity.iloc[list(small.indices)].to_list()
    if len(dataset) < 100: assert [r.camera for r in dataset] == dataset.records.camera.to_list()


def test_batches_in_order(dataset):
    batches = list(DataLoader(dataset, batch_size=5))
    assert all(isinstance(b, Record) for b in batches) and all(getattr(batches[0], name).dtype == torch.int64 for name in Record._fields[1:])
    assert torch.equal(torch.cat([b.pixels for b in batches]), dataset.images(np.arange(len(dataset))))
    for name in Record._fields[1:]: assert torch.cat([getattr(b, name) for b in batches]).tolist() == dataset.records[name].to_list()


def test_shuffled_splits(dataset):
    split = Subset(dataset, dataset.indices("train"))
    seen = [b.identity for b in DataLoader(split, batch_size=4, shuffle=True, generator=torch.Generator().manual_seed(0), drop_last=False)]
    assert sorted(torch.cat(seen).tolist()) == sorted(dataset.records.identity[dataset.records.split == "train"])
    one = next(iter(DataLoader(dataset, batch_size=None, sampler=RandomSampler(dataset, generator=torch.Generator().manual_seed(1)))))
    assert one.pixels.shape == (3, *dataset.image_size)
    assert len(ConcatDataset([dataset, split])) == len(dataset + split) == len(dataset) + len(split)


def test_batches_are_read_in_one_go(dataset, monkeypatch):
    calls, images = [], type(dataset).images
    monkeypatch.setattr(type(dataset), "images", lambda self, rows, draw=0: calls.append(len(rows)) or images(self, rows, draw))
    next(iter(DataLoader(Subset(dataset, range(12)), batch_size=12)))
    assert calls == [12]


def test_copies_agree(dataset):
    twin = pickle.loads(pickle.dumps(dataset))
    assert torch.equal(twin[5].pixels, dataset[5].pixels) and twin[5][1:] == dataset[5][1:]


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning") # Python 3.12 and later say that there are threads
@pytest.mark.parametrize("kind, start", [*((kind, "fork") for kind in KINDS), ("cached sysu", "spawn")])
def test_workers(kind, start, tmp_path):
    if start not in torch.multiprocessing.get_all_start_methods(): pytest.skip(f"no {start} here")
    dataset = opened(kind, tmp_path)
    some = Subset(dataset, np.arange(0, len(dataset), max(1, len(dataset)//12)))
    got = list(DataLoader(some, batch_size=4, num_workers=2, multiprocessing_context=start))
    assert torch.equal(torch.cat([b.pixels for b in got]), dataset.images(some.indices))
    assert torch.cat([b.identity for b in got]).tolist() == dataset.records.identity.iloc[some.indices].to_list()


def test_records_stay_as_they_are():
    dataset = opened("synthetic", None)
    before = dataset.records.copy()
    dataset[0].pixels.zero_()
    assert dataset[0].pixels.any()
    pd.testing.assert_frame_equal(dataset.records, before)


# ---- the ground floor

def test_base_class():
    rows = pd.DataFrame({"identity": [0, 0], "camera": [1, 4], "modality": [0, 1], "split": ["train", "train"]}, index=[7, 9])
    dataset = ReIDDataset("x", [8, 8], rows, notes=())
    assert len(dataset) == 2 and list(dataset.records.index) == [0, 1] and dataset.records.modality.dtype == np.int8 and dataset.factors is None
    with pytest.raises(NotImplementedError): dataset.images([0])
    assert str(Protocol(300, 1, 3)) == "gallery of 300 identities, 1 image each, mean of 3 draws" and str(Protocol(None, 10)) == "gallery of all identities, 10 images each, 1 draw"


def test_many_faults_are_counted():
    said = message(complain, [f"file {k}" for k in range(30)], "bad line", "Mend them")
    assert said.startswith("30 bad lines: file 0; ") and "file 19; and 10 more. Mend them" in said and "file 20" not in said


@pytest.mark.parametrize("size", [(64, 0), (64,) * 3, (64., 32), "64", None, 4])
def test_bad_sizes(size): assert "image_size" in message(as_size, size)
