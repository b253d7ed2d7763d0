"Grids and cells: what is run, what is taken for done, what is gathered."
import numpy as np
import pandas as pd
import pytest
from vdistill.reid.fakes import fake_regdb
from vdistill.looking.comparison import HOGS, SCENES, Cell, collect_histories, collect, read_grid, reference_scores
from vdistill.looking.comparison import run_cell, run_cells, shard
from vdistill.looking.differences import compare
from vdistill.looking.differences import two_way
from vdistill.core import InputError
from vdistill.reid.runs import start_run


def grid(folder, text):
    (folder/"grid.yaml").write_text(text)
    return read_grid(folder/"grid.yaml")


def test_hog_is_left_out_where_no_block_fits():
    from vdistill.reid.data import load_dataset
    found = lambda size: set(reference_scores(load_dataset("synthetic", identities=(4, 2, 2), image_size=size)).method) & {*HOGS, "pixels"}
    assert found((24, 16)) == {"pixels", "HOG"} and found((12, 12)) == {"pixels"} and found((64, 32)) == {"pixels", *HOGS}


def test_a_sweep_changes_one_setting_at_a_time(tmp_path):
    cells, settings = grid(tmp_path, "datasets: [synthetic]\nmethods: [vsd, full]\nseeds: [3, 4]\nsettings: {epochs: 2}\nsweep: {beta: [0.5, 8], hidden: [[], [64]]}\n")
    assert len(cells) == len({c.folder() for c in cells}) == 16 and settings == {"epochs": 2}
    assert [c.seed for c in cells] == sorted(c.seed for c in cells)
    one = next(c for c in cells if c.label() == "full hidden=()")
    config = one.configure(**settings)
    assert (config.hidden, config.epochs, config.beta, config.seed) == ((), 2, 2., 3)
    assert {c: 1 for c in cells} and sorted(sum((shard(cells, f"{i}/3") for i in (1, 2, 3)), []), key=str) == sorted(cells, key=str)


@pytest.mark.parametrize("text, word", [("methods: [full]\nseeds: [0]\n", "datasets"), ("datasets: [synthetic]\nmethods: full\nseeds: [0]\n", "list"), ("datasets: []\nmethods: [full]\nseeds: [0]\n", "list"),
    ("datasets: [synthetic]\nmethods: [full]\nseeds: [0]\nsweeps: {}\n", "sweeps"), ("datasets: [synthetic]\nmethods: [full]\nseeds: [0]\nsweep: {beta: 2}\n", "list of values"),
    ("datasets: [synthetic]\nmethods: [full]\nseeds: [0]\nsweep: {betta: [2]}\n", "beta"), ("datasets: [synthetic]\nmethods: [full]\nseeds: [0]\nsettings: {epochs: 0}\n", "epochs")])
def test_a_wrong_grid_is_one_sentence(tmp_path, text, word):
    with pytest.raises(InputError) as error: grid(tmp_path, text)
    assert word in str(error.value) and "\n" not in str(error.value)


def test_no_history_is_an_empty_table(tmp_path): assert collect_histories([Cell("synthetic", "full", 0)], tmp_path).empty


TINY = dict(epochs=1, width=8, features=16, z_features=16, hidden=[16], identities_per_batch=4, validate_every=1)


@pytest.mark.filterwarnings("ignore")
def test_a_sweep_of_the_data_runs_on_each_of_them(tmp_path):
    cells = [Cell("synthetic", "bottleneck", 0, ("data.identities", n)) for n in ((6, 4, 5), (6, 4, 8))]
    table = run_cells(cells, tmp_path, **TINY)
    assert set(table.method[table.metric.eq("mAP") & table.method.str.startswith(("chance", "bottleneck"))]) == {f"{m} data.identities=(6, 4, {n})" for m in ("chance", "bottleneck") for n in (5, 8)}
    chance = table[table.method.str.startswith("chance") & (table.metric == "rank-1")].groupby("method").value.mean()
    np.testing.assert_allclose(chance, [20, 12.5])                       # one of 5 people, one of 8
    pd.testing.assert_frame_equal(run_cells(cells, tmp_path, **TINY), table)  # done before: read, not run
    gathered, missing = collect(cells, tmp_path)
    assert not missing and sorted(gathered.method) == sorted(table.method)


@pytest.mark.filterwarnings("ignore")
def test_a_finished_cell_is_not_taken_for_another(tmp_path):
    cell, data = Cell("synthetic", "bottleneck", 0), dict(identities=[6, 4, 5])
    first = run_cells([cell], tmp_path, data=data, **TINY)
    pd.testing.assert_frame_equal(run_cells([cell], tmp_path, data=data, **TINY), first)
    with pytest.raises(InputError, match="z_features=16.*asks for 8"): run_cells([cell], tmp_path, data=data, **TINY | dict(z_features=8))
    with pytest.raises(InputError, match="identities"): run_cells([cell], tmp_path, **TINY)
    assert (tmp_path/cell.folder()/"results.csv").is_file()


@pytest.mark.parametrize("one, other", [("csv:day/list.csv", "csv:night/list.csv"), ("pairs:photos.v1", "pairs:photos.v2"), ("sysu:a/data", "regdb:b/data")])
def test_two_datasets_do_not_share_a_run_folder(tmp_path, one, other):
    with pytest.raises(InputError, match="rename") as error: grid(tmp_path, f"datasets: ['{one}', '{other}']\nmethods: [baseline]\nseeds: [0]\n")
    assert one in str(error.value) and other in str(error.value)
    with pytest.raises(InputError, match="full and seed 3 twice"): grid(tmp_path, f"datasets: ['{one}']\nmethods: [full, full]\nseeds: [3]\n")


@pytest.mark.filterwarnings("ignore")
def test_a_run_of_another_dataset_is_not_taken(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cell = Cell("csv:day/list.csv", "baseline", 0)
    start_run(tmp_path/"runs"/cell.folder(), cell.configure())
    (tmp_path/"runs"/cell.folder()/"results.csv").write_text("dataset,validation,commit,method\nlist,1,a,baseline\n")
    assert len(run_cell(cell, "runs")) == len(run_cell(Cell(f"csv:{tmp_path/'day'/'list.csv'}", "baseline", 0), "runs")) == 1, "however the path is written"
    assert len(run_cell(cell, "runs", skip_nonfinite=3, checkpointing=True)) == 1, "what may change while a run goes on"
    with pytest.raises(InputError, match="dataset=.*night"): run_cell(Cell("csv:night/list.csv", "baseline", 0), "runs")


@pytest.mark.filterwarnings("ignore")
def test_a_published_set_has_no_references_of_another_protocol(tmp_path):
    fake_regdb(tmp_path/"regdb", people=12, image_size=(16, 8))
    cells = [Cell(f"regdb:{tmp_path/'regdb'}", m, 0) for m in ("baseline", "full")]
    table = run_cells(cells, tmp_path/"runs", **TINY | dict(identities_per_batch=2, backbone="conv", weights=None, data=dict(image_size=[32, 16])))
    gathered, missing = collect(cells, tmp_path/"runs")
    assert not missing and set(table.method) == set(gathered.method) == {"baseline", "full"} and not table.protocol.str.contains("all images each").any()
    assert set(compare(gathered, "baseline").direction) == {"both"}


@pytest.fixture
def two_sets(tmp_path):
    "Two folders of aligned scenes, each of its own noise."
    from PIL import Image
    for k, name in enumerate(("one", "two")):
        for kind in ("visible", "infrared"): (tmp_path/name/kind).mkdir(parents=True)
        for i in range(8):
            scene = np.random.default_rng([k, i]).integers(0, 256, (60, 80), dtype=np.uint8)
            for kind in ("visible", "infrared"): Image.fromarray(scene if kind == "visible" else 255 - scene).save(tmp_path/name/kind/f"{i}.png")
    return [f"pairs:{tmp_path/name}" for name in ("one", "two")]


@pytest.mark.filterwarnings("ignore")
def test_a_run_searches_another_set(tmp_path, two_sets):
    "What is written of scenes averages to the results; the feature was chosen at home; a second call reads."
    data, settings = dict(window=32, image_size=[24, 24], duplicates=None), TINY | dict(backbone="conv", weights=None, recipe="scratch", identities_per_batch=2)
    cells = [Cell(two_sets[0], m, 0, (), tuple(two_sets)) for m in ("baseline", "full")]
    table = run_cells(cells, tmp_path/"runs", data=data, **settings)
    pd.testing.assert_frame_equal(run_cells(cells, tmp_path/"runs", data=data, **settings), table)
    assert list(table[table.feature != "none"].dataset.unique()) == ["one", "one → two"]
    chosen = table[table.headline & (table.feature != "none")].groupby(["method", "dataset"]).feature.unique().map(list)
    assert all(len(f) == 1 for f in chosen) and chosen["full"].map(tuple).nunique() == 1 and table[table.dataset == "one → two"].validation.notna().all()
    scenes = collect_histories(cells, tmp_path/"runs", SCENES)
    assert set(scenes.dataset) == {"one", "one → two"} and set(scenes.method) == {"baseline", "full"}
    keys = ["dataset", "method", "feature", "direction"]
    for metric in ("mAP", "rank-1"):
        means = scenes.groupby(keys).apply(lambda g: np.average(g[metric], weights=g.queries), include_groups=False)
        want = table[(table.feature != "none") & (table.metric == metric)].set_index(keys).value
        np.testing.assert_allclose(means[want.index], want)
    assert set(collect(cells, tmp_path/"runs")[0].dataset) == {"one", "one → two"}
    r = two_way(scenes[scenes.dataset == "one"], ("full", "v shared"), ("baseline", "v shared"), draws=200)
    by_hand = table[(table.dataset == "one") & (table.metric == "mAP") & (table.feature == "v shared")].groupby("method").value.mean()
    np.testing.assert_allclose(r["difference"], by_hand["full"] - by_hand["baseline"])
    assert r["low"] <= r["difference"] <= r["high"] and (r["seeds"], 0 < r["p"] <= 1) == (1, True)
    with pytest.raises(InputError, match="no scenes of z of baseline; there are v shared of baseline"): two_way(scenes, ("full", "v shared"), ("baseline", "z"))


def test_transfer_is_a_list_of_datasets(tmp_path):
    cells, _ = grid(tmp_path, "datasets: [synthetic]\nmethods: [full]\nseeds: [0]\ntransfer: ['pairs:a', 'pairs:b']\n")
    assert cells[0].transfer == ("pairs:a", "pairs:b") and cells[0].folder() == "synthetic-full-0"
    with pytest.raises(InputError, match="transfer is a list"): grid(tmp_path, "datasets: [synthetic]\nmethods: [full]\nseeds: [0]\ntransfer: pairs:a\n")
    with pytest.raises(InputError, match="not set"): grid(tmp_path, "datasets: [synthetic]\nmethods: [full]\nseeds: [0]\ntransfer: ['pairs:$NOT_SET_ANYWHERE']\n")
