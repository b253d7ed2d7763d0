"What a run remembers of its images: datasets that were moved, and people who come back in another list, trial or copy."
import json, shutil, warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from test_main import call, sets

from vdistill.reid.fakes import fake_regdb
from vdistill.reid.seen import SeenWarning, check_data, describe_data, image_marks, known_people, recall, remember, same_data
from vdistill.looking.comparison import Cell, run_cells
from vdistill.core import InputError
from vdistill.reid.data import load_dataset
from vdistill.reid.runs import load_run, move_run, read_config
from vdistill.reid.training import Trainer, configure

SMALL = dict(epochs=1, width=8, features=16, z_features=8, hidden=[16], validate_every=1, identities_per_batch=2, images_per_identity=1, grid=[1, 1], device="cpu", backbone="conv", weights=None, attention="none")
pytestmark = pytest.mark.filterwarnings("ignore::vdistill.reid.records.DataWarning")


def write_images(folder, people, looks=2):
    rng = np.random.default_rng(0)
    for k in range(people):
        for m in ("visible", "infrared"):
            for i in range(looks):
                (folder/m).mkdir(parents=True, exist_ok=True)
                Image.fromarray(rng.integers(0, 256, (32, 16, 3), dtype=np.uint8)).save(folder/m/f"{k}-{i}.png")


def write_list(file, people, names=str): # people: number -> split
    lines = [f"{m}/{k}-{i}.png,{names(k)},{m},{split}" for k, split in people.items() for m in ("visible", "infrared") for i in range(2)]
    file.write_text("\n".join(["path,identity,modality,split", *lines]), encoding="utf-8")
    return file


def splits(train, val, test): return {k: split for split, part in dict(train=train, val=val, test=test).items() for k in part}


@pytest.fixture
def place(tmp_path):
    write_images(tmp_path/"day", 12)
    write_list(tmp_path/"day"/"list.csv", splits(range(6), range(6, 8), range(8, 12)))
    return tmp_path


@pytest.fixture
def run(place):
    settings = [f"{k}={'null' if v is None else v}" for k, v in SMALL.items()]
    done = call(place, "train", "csv:day/list.csv", "--out", "run", *sets(*settings, "data.image_size=[32, 16]"))
    assert done.returncode == 0, done.stderr
    return place/"run"


# ---- marks

def test_marks_know_an_image_wherever_it_lies(place):
    shutil.copytree(place/"day", place/"night")
    a, b = (load_dataset(f"csv:{place}/{name}/list.csv", image_size=size) for name, size in (("day", 16), ("night", 32)))
    assert list(image_marks(a, range(len(a)))) == list(image_marks(b, range(len(b)))) and len(set(image_marks(a, range(len(a))))) == len(a)
    assert describe_data(a)["digest"] == describe_data(b)["digest"]


def test_marks_of_drawn_people_and_of_pixels():
    a, b, c = load_dataset("synthetic", identities=(4, 2, 2), seed=1), load_dataset("synthetic", identities=(4, 2, 2), seed=1, image_size=(32, 16)), load_dataset("synthetic", identities=(4, 2, 2), seed=2)
    marks = [set(image_marks(d, range(len(d)))) for d in (a, b, c)]
    assert marks[0] == marks[1] and not marks[0] & marks[2]
    a.pixels # drawn while its factors are there
    a.factors = None
    assert len(set(image_marks(a, range(20)))) == 20 and list(image_marks(a, [3, 1])) == [image_marks(a, [3])[0], image_marks(a, [1])[0]]


def test_a_cache_knows_the_marks_of_its_files(tmp_path):
    folder = fake_regdb(tmp_path/"RegDB", people=8, image_size=(16, 8))
    with_cache, without = load_dataset(f"regdb:{folder}", image_size=(16, 8), cache=tmp_path/"pixels"), load_dataset(f"regdb:{folder}", image_size=(16, 8))
    assert list(image_marks(with_cache, range(len(without)))) == list(image_marks(without, range(len(without))))


# ---- moved

def test_a_moved_dataset_is_told_and_remembered(run, place):
    (place/"day").rename(place/"archive")
    before = pd.read_csv(run/"results.csv")
    for args in (["evaluate", "run"], ["show", "run"], ["show", "run", "--cases"], ["audit", "run"], ["train", "--resume", "run"]):
        done = call(place, *args)
        assert done.returncode == 2 and "--dataset csv:FILE" in done.stderr and len(done.stderr.strip().splitlines()) == 1, done.stderr
    done = call(place, "evaluate", "run", "--dataset", "csv:archive/list.csv")
    assert done.returncode == 0, done.stderr
    table = pd.read_csv(run/"evaluate-list-test.csv")
    assert table.value.to_numpy() == pytest.approx(before.value.to_numpy()) and "trained on" not in "".join(table.protocol)
    assert read_config(run).dataset == f"csv:{place/'archive'/'list.csv'}"
    assert call(place, "show", "run").returncode == 0
    (place/"archive").rename(place/"third")
    assert call(place, "train", "--resume", "run", "--dataset", "csv:third/list.csv").returncode == 0
    (place/"third").rename(place/"fourth")
    assert call(place, "show", "run", "--dataset", "csv:fourth/list.csv").returncode == 0


@pytest.mark.parametrize("change, words", [
    (lambda folder: (folder/"visible"/"2-0.png").write_bytes((folder/"visible"/"3-0.png").read_bytes()), "1 image missing or changed"),
    (lambda folder: write_list(folder/"list.csv", splits(range(6), range(6, 8), range(8, 11))), "4 images missing"),
    (lambda folder: write_list(folder/"list.csv", splits(range(6), range(8, 10), [6, 7, 10, 11])), "the same images in another order, or in other splits"),
    (lambda folder: write_list(folder/"list.csv", splits(range(6), range(6, 8), range(8, 12)), lambda k: f"p{k}"), "48 images missing or changed and 48 images new")])
def test_another_dataset_is_refused(run, place, change, words):
    shutil.copytree(place/"day", place/"other")
    change(place/"other")
    kept = (run/"config.yaml").read_text(encoding="utf-8")
    for args in (["evaluate", "run"], ["train", "--resume", "run"]):
        done = call(place, *args, "--dataset", "csv:other/list.csv")
        assert done.returncode == 2 and words in done.stderr and "--dataset" in done.stderr and len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert (run/"config.yaml").read_text(encoding="utf-8") == kept
    change(place/"day") # and at its own place: a run does not go on with it
    done = call(place, "train", "--resume", "run")
    assert done.returncode == 2 and words in done.stderr, done.stderr


def test_other_kinds_and_uses(run, place):
    assert "csv:FILE" in call(place, "evaluate", "run", "--dataset", "pairs:day").stderr
    assert "--resume" in call(place, "train", "csv:day/list.csv", "--dataset", "csv:day/list.csv").stderr
    assert call(place, "show", "run", "--dataset", "csv:nowhere.csv").returncode == 2


def test_a_run_of_an_older_version(run, place):
    (run/"seen.json").unlink()
    shutil.copytree(place/"day", place/"copy")
    with pytest.warns(SeenWarning, match="does not remember"): move_run(run, f"csv:{place}/copy/list.csv")
    assert call(place, "evaluate", "run").returncode == 0
    done = call(place, "evaluate", "run", "csv:day/list.csv")
    assert done.returncode == 0 and "does not remember whom it was trained on" in done.stderr
    write_list(place/"copy"/"list.csv", splits(range(5), range(6, 8), range(8, 12)))
    done = call(place, "train", "--resume", "run")
    assert done.returncode == 2 and "6 identities" in done.stderr and "has 5" in done.stderr and not (run/"seen.json").exists()
    write_list(place/"copy"/"list.csv", splits(range(6), range(6, 8), range(8, 12)))
    assert call(place, "train", "--resume", "run").returncode == 0 and recall(run)["people"].keys() == {"train", "val", "test"}


def test_damaged(run, place):
    for text in ("{", "[]", "{}", json.dumps(dict(people=dict(train=3)))):
        (run/"seen.json").write_text(text, encoding="utf-8")
        done = call(place, "evaluate", "run", "csv:day/list.csv")
        assert done.returncode == 2 and "seen.json" in done.stderr and len(done.stderr.strip().splitlines()) == 1


def test_a_grid_of_a_moved_dataset(place):
    cells = lambda where: [Cell(f"csv:{place}/{where}/list.csv", "baseline", 0)]
    settings = {k: v for k, v in SMALL.items()} | {"data.image_size": [32, 16]}
    first = run_cells(cells("day"), place/"runs", **settings)
    (place/"day").rename(place/"archive")
    pd.testing.assert_frame_equal(first, run_cells(cells("archive"), place/"runs", **settings))
    write_list(place/"archive"/"list.csv", splits(range(5), range(6, 8), range(8, 12)))
    (place/"archive").rename(place/"third")
    with pytest.raises(InputError, match="dataset="): run_cells(cells("third"), place/"runs", **settings)


# ---- people who come back

def test_the_same_people_in_another_list(run, place):
    write_list(place/"day"/"second.csv", splits(range(6, 12), [], range(6)), lambda k: f"person {k}")
    done = call(place, "evaluate", "run", "csv:day/second.csv")
    assert done.returncode == 0 and "note: 8 of 12 identities of second" in done.stderr and "has never seen" in done.stderr, done.stderr
    table = pd.read_csv(run/"evaluate-second-all.csv")
    assert table[table.method == "full"].protocol.str.endswith("; 8 of 12 identities trained on").all() and "8 of 12 identities trained on" in done.stdout
    own = call(place, "evaluate", "run", "--split", "train")
    assert own.returncode == 0 and "never seen" not in own.stderr
    assert "never seen" not in call(place, "evaluate", "run").stderr


def test_a_copy_of_the_folder(tmp_path):
    from vdistill.bench.benchmark import write_pairs
    write_pairs(tmp_path/"pairs", 10)
    options = dict(duplicates=None, image_size=[16, 16], views=2)
    Trainer(configure(f"pairs:{tmp_path}/pairs", recipe="scratch", **SMALL, data=options), tmp_path/"run").fit()
    shutil.copytree(tmp_path/"pairs", tmp_path/"copy")
    done = call(tmp_path, "evaluate", "run", "pairs:copy")
    known, people = (load_dataset(f"pairs:{tmp_path}/copy", **options).records.query(q).identity.nunique() for q in ("split != 'test'", "identity >= 0"))
    assert done.returncode == 0 and f"{known} of {people} identities of copy" in done.stderr and 0 < known < people, done.stderr
    assert same_data(tmp_path/"run", load_dataset(f"pairs:{tmp_path}/copy", **options))


def test_another_trial(tmp_path):
    folder = fake_regdb(tmp_path/"RegDB", people=8, image_size=(16, 8)) # with more, some would share their images
    Trainer(configure(f"regdb:{folder}", recipe="baseline", **(SMALL | {"data.image_size": [16, 8]})), tmp_path/"run").fit()
    table = pd.read_csv(tmp_path/"run"/"results.csv")
    assert set(table.dataset) == {"RegDB trial 1"} and not table.protocol.str.contains("trained on").any()
    embed, headline = load_run(tmp_path/"run")
    other = load_dataset(f"regdb:{folder}", trial=3, image_size=(16, 8))
    seen = set(load_dataset(f"regdb:{folder}", image_size=(16, 8)).records.query("split != 'test'").identity) & set(other.records.query("split == 'test'").identity)
    assert seen
    with pytest.warns(SeenWarning, match=f"{len(seen)} of 4 identities of RegDB trial 3"): rows, scores = embed.score_officially(other, headline)
    assert set(rows.dataset) == {"RegDB trial 3"} and rows.protocol.str.endswith(f"; {len(seen)} of 4 identities trained on").all()
    assert "RegDB trial 3" in scores[0][1].card() and "trained on" in scores[0][1].card()
    for file in folder.rglob("*.bmp"): file.write_bytes(file.read_bytes() + b" ") # other bytes, the same people: their numbers tell
    with warnings.catch_warnings():
        warnings.simplefilter("error", SeenWarning)
        with pytest.raises(SeenWarning): embed.score(load_dataset(f"regdb:{folder}", trial=3, image_size=(16, 8)))


def test_people_of_the_weights_that_a_run_began_with(run, place):
    write_list(place/"day"/"second.csv", splits(range(6, 12), [], range(4)))
    second = load_dataset(f"csv:{place}/day/second.csv", image_size=[32, 16], validation=.34)
    config = configure(f"csv:{place}/day/second.csv", start=str(run/"model.safetensors"), **(SMALL | {"data.image_size": [32, 16], "data.validation": .34}))
    memory = recall(run)
    remember(place/"next", second, second.indices("train"), second.indices("val"), memory)
    assert known_people(recall(place/"next"), second, second.indices("test")) == (4, 4)
    assert check_data(place/"next", second) and config.start


def test_an_audit_says_it_too(run, place):
    from vdistill.looking.audit import open_audit
    write_list(place/"day"/"second.csv", splits([], [], range(12)))
    second = load_dataset(f"csv:{place}/day/second.csv", image_size=[32, 16])
    with pytest.warns(SeenWarning, match="8 of 12"): assert "8 of 12 identities trained on" in open_audit(run, second, second.indices(), "all").columns["protocol"]
