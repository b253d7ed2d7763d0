"Manifests with all that people and programs write into them."
import os
import shutil
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
from PIL import Image
from small_sets import NFC, NFD, images, manifest, message, plain_disk, rename, rows_of # noqa: F401 (a fixture among them)

from vdistill.reid.data import load_dataset
from vdistill.reid.manifests import CSVDataset
from vdistill.reid.names import codes
from vdistill.reid.records import DataWarning, Protocol


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


READ_ONLY = """
import warnings, numpy as np, pandas as pd, torch
warnings.simplefilter("error"); torch.set_warn_always(True)
if pd.__version__ < "3": pd.options.mode.copy_on_write = True # as from pandas 3 on
from vdistill.reid.manifests import CSVDataset
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


# ---- names as people have them

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


@pytest.mark.parametrize("names", [("70", " 70"), ("70", "70\u00a0"), ("Ann", "\u3000Ann "), (NFC, NFD)])
def test_blanks_around_a_name_and_its_normal_form_do_not_count(images, names):
    dataset = CSVDataset(manifest(images, [f"{k}{m}.png,{names[m == 'i'] if k == 0 else k},0,{m},train" for k in range(8) for m in "vi"]))
    assert dataset.records.identity.nunique() == 8 and not dataset.notes
