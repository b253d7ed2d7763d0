"SYSU-MM01, RegDB and LLCM from end to end: made-up trees, one epoch, the published protocols."
import warnings

import numpy as np
import pandas as pd
import pytest

from vdistill.reid import evaluation as E
from vdistill.reid.fakes import fake_llcm, fake_regdb, fake_sysu
from vdistill.cli.main import main
from vdistill.core import InputError
from vdistill.reid.data import load_dataset
from vdistill.reid.records import DataWarning
from vdistill.reid.training import Trainer, configure

TREES = dict(sysu=lambda f: fake_sysu(f, people=(4, 2, 3), image_size=(16, 8)), regdb=lambda f: fake_regdb(f, people=12, image_size=(16, 8)), llcm=lambda f: fake_llcm(f, people=(8, 4), image_size=(16, 8)))


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    "A folder with a tree and a run of each dataset."
    folder, small = tmp_path_factory.mktemp("official"), dict(epochs=1, identities_per_batch=2, images_per_identity=1, width=8, features=16, z_features=16, hidden=(16,), backbone="conv", weights=None, device="cpu")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DataWarning)
        for kind, plant in TREES.items():
            plant(folder/kind)
            Trainer(configure(f"{kind}:{folder/kind}", "full", **small, **{"data.image_size": [32, 16]}), folder/f"run-{kind}").fit()
    return folder


def call(monkeypatch, capsys, *args):
    monkeypatch.setattr("sys.argv", ["vdistill", "evaluate", *map(str, args)])
    with warnings.catch_warnings(), pytest.raises(SystemExit) as stop:
        warnings.simplefilter("ignore", DataWarning)
        main()
    return stop.value.code or 0, capsys.readouterr()


@pytest.mark.parametrize("kind, file, cards, directions", [("sysu", "SYSU-MM01", 4, 1), ("regdb", "RegDB-trial-1", 2, 2), ("llcm", "LLCM", 2, 2)])
def test_a_run_is_scored_by_the_published_protocol(runs, monkeypatch, capsys, kind, file, cards, directions):
    code, said = call(monkeypatch, capsys, runs/f"run-{kind}")
    assert code == 0 and said.out.count("queries have a match that counts") == cards
    table = pd.read_csv(runs/f"run-{kind}"/f"evaluate-{file}-official.csv", dtype=dict(commit=str))
    assert set(E.COLUMNS) <= set(table) and table.direction.nunique() == directions and table.value.between(0, 100).all()
    assert table.headline.sum() == cards*table.metric.nunique() and set(table.feature) == {"v shared", "z shared", "v specific+shared", "z specific+shared"}
    if kind == "sysu":
        assert table.protocol.nunique() == 4 and table.protocol.str.contains("official draws").all()
        code, said = call(monkeypatch, capsys, runs/"run-sysu", "--mode", "indoor", "--shots", 1, "--draws", 3, "--rerank")
        one = pd.read_csv(runs/"run-sysu"/"evaluate-SYSU-MM01-official-indoor-1-shot-3-draws-reranked.csv")
        assert code == 0 and one.protocol.nunique() == 1 and "indoor" in one.protocol[0] and "re-rank" in one.protocol[0] and set(one.trials) == {3}
        assert pd.read_csv(runs/"run-sysu"/"evaluate-SYSU-MM01-official.csv").protocol.nunique() == 4, "a part does not take the place of the whole"


def test_the_scores_are_those_of_the_protocol(runs):
    "One feature, put in by hand, in file order."
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DataWarning)
        dataset = load_dataset(f"sysu:{runs/'sysu'}", image_size=(16, 8))
    extract = lambda images, modality: dict(x=images.flatten(1).double()[:, ::7])
    ours = dict(zip(((m, k) for m in ("all", "indoor") for k in (1, 10)), (s for _, s in E.official_scores(dataset, extract))))
    test = dataset.records[dataset.records.split == "test"]
    x = {m: np.concatenate([extract(dataset.images([i]), m)["x"].numpy() for i in test.index[test.modality == m]]) for m in (0, 1)}
    side = lambda m: (x[m], test.identity[test.modality == m].to_numpy(), test.camera[test.modality == m].to_numpy())
    for (mode, shots), scores in ours.items():
        assert scores.mean.mean_ap == pytest.approx(E.sysu_scores(*side(1), *side(0), dataset.permutations, mode=mode, shots=shots).mean.mean_ap, abs=1e-9)


def test_what_cannot_be(runs, monkeypatch, capsys):
    for args, word in ((["--mode", "outdoor"], "outdoor"), (["--shots", 5], "5"), (["--split", "train", "--mode", "all"], "--mode"), (["--split", "train", "--shots", 0], "--shots"),
                       (["--split", "val"], "hold_out=false"), (["--gallery", 3], "--gallery 3")):
        code, said = call(monkeypatch, capsys, runs/"run-sysu", *args)
        lines = [line for line in said.err.splitlines() if line.startswith("error: ")]
        assert code == 2 and len(lines) == 1 and word in lines[0]
    for kind, option, value in (("regdb", "--mode", "indoor"), ("regdb", "--shots", 10), ("regdb", "--gallery", 3), ("regdb", "--draws", 5), ("llcm", "--mode", "all"), ("llcm", "--gallery", 3)):
        code, said = call(monkeypatch, capsys, runs/f"run-{kind}", option, value)
        assert code == 2 and said.out == "" and f"{option} {value}" in said.err, said.err
    for option, value in (("--gallery", -2), ("--gallery", 0), ("--draws", -1), ("--draws", 0)):
        code, said = call(monkeypatch, capsys, runs/"run-llcm", option, value)
        assert code == 2 and option in said.err and "written" not in said.out
    with pytest.raises(InputError, match="no published protocol"): E.official_scores(load_dataset("synthetic", identities=(4, 2, 2)), None)


TRUE = dict(sysu=lambda f, draw: fake_sysu(f, permutations_file=draw), regdb=lambda f, draw: fake_regdb(f), llcm=lambda f, draw: fake_llcm(f))

@pytest.mark.slow
@pytest.mark.parametrize("kind, counts, queries", [("sysu", "395 identities, 22,258 visible, 11,909 infrared", ["3,803 of 3,803", "2,208 of 3,803"]), ("regdb", "206 identities, 2,060 visible, 2,060 infrared", ["2,060 of 2,060"]), ("llcm", "713 identities, 16,946 visible, 13,975 infrared", [" queries have a match"])])
def test_true_to_size_from_doctor_to_show(tmp_path, protocol_dir, monkeypatch, capsys, kind, counts, queries):
    "As many people and images as published, made up and tiny: doctor, train, evaluate, show and show --cases, as a shell calls them."
    TRUE[kind](tmp_path/kind, protocol_dir/"rand_perm_cam.mat")
    monkeypatch.chdir(tmp_path)
    def shell(*args):
        monkeypatch.setattr("sys.argv", ["vdistill", *map(str, args)])
        with warnings.catch_warnings(), pytest.raises(SystemExit) as stop:
            warnings.simplefilter("ignore", DataWarning)
            main()
        said = capsys.readouterr()
        assert not stop.value.code, said.err
        return said.out
    spec = f"{kind}:{tmp_path/kind}"
    assert counts in shell("doctor", spec, "--images", 200)
    small = dict(epochs=1, backbone="conv", weights="null", width=4, features=16, z_features=16, hidden="[16]") | {"data.image_size": "[16, 8]"}
    shell("train", spec, "--out", "run", *(x for k, v in small.items() for x in ("--set", f"{k}={v}")))
    cards = shell("evaluate", "run")
    assert all(q in cards for q in queries) and cards.count("queries have a match") == dict(sysu=4, regdb=2, llcm=2)[kind]
    table = pd.read_csv(next((tmp_path/"run").glob("evaluate-*-official.csv")), dtype=dict(commit=str))
    assert set(table.trials) == ({10} if kind != "regdb" else {1}) and table.value.between(0, 100).all()
    if kind == "sysu": assert {int(s.split("gallery of ")[1].split()[0].replace(",", "")) for s in table.protocol} == {301, 3010, 112, 1120}
    assert "headline feature" in shell("show", "run") and (tmp_path/"run"/"ranked_infrared_to_visible.png").is_file()
    assert "queries missed" in shell("show", "run", "--cases") and len(pd.read_csv(tmp_path/"run"/"cases.csv")) >= 2060


def test_another_published_set_is_scored_by_its_own_protocol(runs, monkeypatch, capsys):
    code, said = call(monkeypatch, capsys, runs/"run-sysu", f"regdb:{runs/'regdb'}")
    assert code == 0 and said.out.count("queries have a match that counts") == 2
    table = pd.read_csv(runs/"run-sysu"/"evaluate-RegDB-trial-1-official.csv", dtype=dict(commit=str))
    assert set(table.dataset) == {"RegDB trial 1"} or set(table.dataset) == {"RegDB"}


@pytest.mark.parametrize("kind", TREES)
def test_results_of_training_follow_the_protocol(runs, kind):
    "What training writes is what evaluation finds."
    table = pd.read_csv(runs/f"run-{kind}"/"results.csv", dtype=dict(commit=str))
    assert "valid_queries" in table and table.protocol.nunique() == dict(sysu=4, regdb=1, llcm=1)[kind] or kind != "sysu"
