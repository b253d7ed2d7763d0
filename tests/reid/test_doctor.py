"The doctor: what is told of folders that are whole, broken or not there, and whom to ask."
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_archives import check, llcm, message, regdb, sysu, wrong # noqa: F401 (fixtures among them)

from vdistill.reid import data
from vdistill.reid.fakes import fake_sysu
from vdistill.reid.data import load_dataset
from vdistill.reid.doctor import doctor


def test_unreadable_images_are_named(sysu):
    bad = [sysu / "cam1" / "0001" / "0001.jpg", sysu / "cam3" / "0002" / "0001.jpg", sysu / "cam5" / "0003" / "0002.jpg"]
    bad[0].write_bytes(bad[0].read_bytes()[:200]); bad[1].write_bytes(b""); bad[2].write_text("Dear camera")
    found = check(doctor(f"sysu:{sysu}"), "images")
    assert found.ok is False and found.found.startswith("3 unreadable files") and all(str(path) in found.found for path in bad)
    dataset = load_dataset(f"sysu:{sysu}", image_size=(16, 8))
    rows = dataset.records.index[dataset.records.path.isin(bad)]
    said = message(dataset.images, rows)
    assert all(str(path) in said for path in bad) and "vdistill doctor" in said


def test_doctor_sample(sysu):
    assert check(doctor(f"sysu:{sysu}", images=7), "images").found.startswith("7 of ")
    assert check(doctor(f"sysu:{sysu}", images="10000000"), "images").found.startswith("all ")
    assert "images='some'" in message(doctor, f"sysu:{sysu}", images="some")


@pytest.mark.parametrize("kind, who", [("sysu", "wuancong/SYSU-MM01"), ("regdb", "dm.dongguk.edu"), ("llcm", "ZYK100/LLCM")])
def test_nothing_there(tmp_path, kind, who):
    assert who in message(load_dataset, f"{kind}:{tmp_path / 'nothing'}")
    report = doctor(f"{kind}:{tmp_path / 'nothing'}")
    assert not report.ok and who in str(report)
    (tmp_path / "empty").mkdir()
    assert who in str(doctor(f"{kind}:{tmp_path / 'empty'}")) and "nothing in" in str(doctor(f"{kind}:{tmp_path / 'empty'}"))


def test_one_level_off(llcm):
    assert f"Pass llcm:{llcm}" in message(load_dataset, f"llcm:{llcm.parent}") and f"Pass llcm:{llcm}" in str(doctor(f"llcm:{llcm.parent}"))


def test_report(sysu):
    report = doctor(f"sysu:{sysu}", cache=None)
    data = json.loads(report.to_json())
    assert data["spec"] == f"sysu:{sysu}" and data["ok"] is False and [c["name"] for c in data["checks"]] == [c.name for c in report.checks]
    assert set(data["checks"][0]) == {"name", "ok", "found", "expected", "advice"}
    assert str(report).splitlines()[0].endswith("3 of 12 checks found something wrong") and len(str(report).splitlines()) == 13
    assert "expected: 395 identities, 22,258 visible, 11,909 infrared, as published" in str(report)


@pytest.mark.filterwarnings("ignore::vdistill.reid.records.DataWarning")
def test_doctor_looks_at_caches(regdb, tmp_path, monkeypatch):
    assert all(check.name != "caches" for check in doctor(f"regdb:{regdb}", cache=tmp_path / "c").checks)
    one, two = (load_dataset(f"regdb:{regdb}", image_size=size, cache=tmp_path / "c").cache.file for size in ((16, 8), (20, 10)))
    found = check(doctor(f"regdb:{regdb}", cache=tmp_path / "c"), "caches")
    assert found.ok and "2 files" in found.found and one.name in found.found
    one.write_bytes(one.read_bytes()[:-1] + b"?")
    two.with_suffix(".json").unlink()
    found = check(doctor(f"regdb:{regdb}", cache=tmp_path / "c"), "caches")
    assert found.ok is False and f"{one}: 1 of" in found.found and f"{two}: the .json" in found.found and "Remove" in found.advice
    assert not doctor(f"regdb:{regdb}", cache=None).checks[-1].name == "caches"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (tmp_path / "c").rename(tmp_path / "vdistill")
    assert check(doctor(f"regdb:{regdb}"), "caches").ok is False


def test_doctor_for_pairs(tmp_path):
    rng = np.random.default_rng(0)
    for m in ("visible", "infrared"):
        (tmp_path / "p" / m).mkdir(parents=True)
        for k in range(5): Image.fromarray(rng.integers(0, 256, (200, 200, 3), dtype=np.uint8)).save(tmp_path / "p" / m / f"s{k}.png")
    report = doctor(f"pairs:{tmp_path / 'p'}")
    assert report.ok and "all 10 can be read" in str(report) and "PairsDataset" in check(report, "reader").found
    (tmp_path / "p" / "infrared" / "s3.png").unlink()
    (tmp_path / "p" / "visible" / "s1.png").write_bytes(b"")
    report = doctor(f"pairs:{tmp_path / 'p'}")
    assert wrong(report) == {"pairs", "reader", "images"} and "s3.png" in check(report, "pairs").found and "s1.png: empty file" in check(report, "images").found
    assert "no folder" in str(doctor(f"pairs:{tmp_path / 'q'}"))


def test_doctor_for_manifests(tmp_path):
    sysu = fake_sysu(tmp_path / "SYSU", people=(3, 2, 3), image_size=(16, 8)) # eight people, since there are eight made-up images
    records = load_dataset(f"sysu:{sysu}").records[["path", "identity", "modality", "split"]]
    rows = [f"{p},{i},{m},{s}" for p, i, m, s in records.groupby(["split", "identity", "modality"]).head(1).itertuples(index=False)]
    (tmp_path / "m.csv").write_text("\n".join(["path,identity,modality,split", *rows, "gone.jpg,999,0,train"]), encoding="utf-8")
    report = doctor(f"csv:{tmp_path / 'm.csv'}")
    assert wrong(report) == {"images"} and "gone.jpg: missing" in str(report) and check(report, "identities in one modality only").ok is None
    for missing, found in ((("1,test", "0,test"), {"test images"}), (("1,test",), {"test images"}), (("1,train",), {"train images"}), (("1,val",), {"val images"}), (("0,val", "1,val"), set())):
        (tmp_path / "m.csv").write_text("\n".join(["path,identity,modality,split", *(row for row in rows if not row.endswith(missing))]), encoding="utf-8")
        assert wrong(doctor(f"csv:{tmp_path / 'm.csv'}")) == found
    (tmp_path / "m.csv").write_text("path,identity\n")
    assert wrong(doctor(f"csv:{tmp_path / 'm.csv'}")) == {"manifest"}


def test_doctor_finds_copies_and_names_that_are_nearly_the_same(tmp_path):
    sysu = fake_sysu(tmp_path / "SYSU", people=(3, 2, 3), image_size=(16, 8))
    records = load_dataset(f"sysu:{sysu}").records.groupby(["split", "identity", "modality"]).head(1)
    rows = [f"{r.path},P{r.identity},{r.modality},{r.split}" for r in records.itertuples()]
    shutil.copy(records.path.iloc[0], tmp_path / "copy.jpg")
    def look(*more):
        (tmp_path / "m.csv").write_text("\n".join(["path,identity,modality,split", *rows, *more]), encoding="utf-8")
        return doctor(f"csv:{tmp_path / 'm.csv'}")
    assert not wrong(look()) and check(look(), "exact copies").ok and check(look(), "copies between splits").found == "none"
    report = look("copy.jpg,p1,0,train")
    assert not wrong(report) and "copy.jpg" in (found := check(report, "exact copies")).found and found.ok is None
    assert "P1 and p1" in check(report, "names").found
    report = look("copy.jpg,P9,0,test")
    assert wrong(report) == {"copies between splits"} and "line 2 (0001.jpg, train), line 18 (copy.jpg, test)" in check(report, "copies between splits").found
    assert "line 18: " in check(look("SYSU/" + Path(records.path.iloc[0]).relative_to(sysu).as_posix() + ",P9,0,test"), "manifest").found


def test_doctor_finds_copies_of_pairs(tmp_path):
    rng = np.random.default_rng(0)
    for m in ("visible", "infrared"):
        (tmp_path / "p" / m).mkdir(parents=True)
        for k in range(4): Image.fromarray(rng.integers(0, 256, (200, 200, 3), dtype=np.uint8)).save(tmp_path / "p" / m / f"s{k}.png")
    shutil.copy(tmp_path / "p" / "visible" / "s0.png", tmp_path / "p" / "visible" / "s1.png")
    report = doctor(f"pairs:{tmp_path / 'p'}")
    assert report.ok and check(report, "exact copies").ok is None and "visible/s1.png" in check(report, "exact copies").found
    shutil.copy(tmp_path / "p" / "visible" / "s0.png", tmp_path / "p" / "visible" / "s3.png") # of another split
    report = doctor(f"pairs:{tmp_path / 'p'}")
    assert not report.ok and "in several splits" in str(report)


def test_doctor_for_the_rest():
    assert doctor("synthetic").ok
    assert "no such kind" in message(doctor, "sisu:x") and "write it as sysu:DIR" in message(doctor, "sysu:")


def test_a_kind_of_ones_own_is_opened(monkeypatch, sysu):
    "What the doctor knows nothing of is opened by its reader, and that is what is told."
    monkeypatch.setitem(data.KINDS, "mine", "mine:DIR")
    monkeypatch.setitem(data.READERS, "mine", data.READERS["sysu"])
    found = check(doctor(f"mine:{sysu}"), "reader")
    assert found.ok and "SYSU" in found.found
