"One door: specs, options, and what all readers do alike."
import shutil

import numpy as np
import pytest
from small_sets import NFC, NFD, boxes, images, manifest, message, pairs, plain_disk, rows_of, scene, write # noqa: F401 (fixtures among them)

from vdistill.reid.data import load_dataset
from vdistill.reid.manifests import CSVDataset
from vdistill.reid.pairs import PairsDataset, find_pairs
from vdistill.reid.records import DataWarning


def test_unknown_split_and_spec(pairs):
    dataset = PairsDataset(pairs)
    assert "no split 'query'" in message(dataset.indices, "query")
    assert sorted(np.concatenate([dataset.indices(s) for s in ("train", "val", "test")])) == list(dataset.indices())
    assert "pairs:DIR" in message(load_dataset, "pair:x") and "dm.dongguk.edu" in message(load_dataset, "regdb:x")
    assert "write it as pairs:DIR" in message(load_dataset, "pairs:") and f"pairs:{pairs}" in message(load_dataset, str(pairs))
    assert "no option vews" in message(load_dataset, f"pairs:{pairs}", vews=3)


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


def test_nearly_the_same_cameras_and_boxed_people_are_named(images, pairs):
    with pytest.warns(DataWarning, match="1 camera written in several ways.*C1 and c1"): CSVDataset(manifest(images, ["0v.png,0,C1,v,train", "0i.png,0,x,i,train", "1v.png,1,c1,v,train", "1i.png,1,x,i,train"]))
    with pytest.warns(DataWarning, match="1 identity written in several ways.*P1 and p1"): PairsDataset(boxes(pairs, [f"s{k},10,20,30,70,{who}" for k, who in enumerate(["P1", "p1", "7", "8"])]))
