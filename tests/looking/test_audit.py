"What an audit asks of a run, and bad input is one sentence."
import matplotlib
import shutil
from dataclasses import replace
from functools import partial
import numpy as np
import pandas as pd
import pytest
from invented import people
matplotlib.use("Agg")
from vdistill.looking import audit as A
from vdistill.looking import probes as P
from vdistill.cli.main import main
from vdistill.core import InputError
from vdistill.reid.data import load_dataset
from vdistill.reid.training import Trainer, configure


def test_what_cannot_be_measured_is_said_and_not_given_as_a_number():
    assert P.measurable(-.9, 1.) and P.measurable(.5, 1.) and P.measurable(-1e9, np.nan) and not P.measurable(-1.1, 1.) and not P.measurable(np.nan, 1.)
    pull = np.zeros(12)
    key = lambda feature, factor, metric="nats": (feature, "visible", "shared_identity", factor, "linear", metric)
    good, bad = A.Cell(P.Estimate(.5, pull), [-.1, -.3], .7), A.Cell(P.Estimate(-3e5, pull), [-4e5, -.1], .7)
    cells = {key("v shared", "coat"): good, key("z shared", "coat"): bad, key("v shared", "coat", "accuracy"): A.Cell(P.Estimate(3., pull), [50.], 100.)}
    cells |= A._group_means(cells)
    rows = A._rows(cells | A._dropped(cells), "people").set_index(["feature", "factor", "metric"])
    lost = rows.index.isin([(f, n, "nats") for f in ("z shared", "v shared - z shared") for n in ("coat", "mean of 1")])
    assert (rows.remark[lost] == "not measurable on 12 people").all() and (rows.remark[~lost] == "").all() and lost.sum() == 4
    assert rows.loc[lost, ["value", "low", "high", "null", "null_high"]].isna().all(axis=None) and rows.value[~lost].notna().all()
    assert rows.null["v shared", "coat", "nats"] == pytest.approx(-.2) and rows.null_high["v shared", "coat", "nats"] == -.1


def test_everyone_gives_equally_many_images_from_many_cameras():
    d = load_dataset("synthetic", identities=(2, 2, 12), images_per_camera=3)
    rows = A.sample_rows(d.records, d.indices("test"), 4, 10, seed=1)
    drawn = d.records.iloc[rows]
    assert (drawn.groupby(["identity", "modality"]).size() == 4).all() and drawn.identity.nunique() == 10 and set(drawn.split) == {"test"}
    assert (drawn[drawn.modality == 0].groupby("identity").camera.nunique() == 4).all() and (drawn[drawn.modality == 1].groupby(["identity", "camera"]).size() == 2).all()
    assert (rows == A.sample_rows(d.records, d.indices("test"), 4, 10, seed=1)).all() and (rows != A.sample_rows(d.records, d.indices("test"), 4, 10, seed=2)).any()
    with pytest.raises(InputError, match="7 images in both"): A.sample_rows(d.records, d.indices("test"), least=7)


def test_factors_of_drawn_people_and_of_real_pairs(pairs_dir):
    d = load_dataset("synthetic", identities=(2, 2, 12))
    groups, periods = A.known_factors(d, d.indices("test"))
    assert set(periods) <= set(groups["shared_nuisance"]) and {"visible_control", "infrared_control"} <= set(groups)
    nuisance = groups["shared_nuisance"]
    assert (nuisance["occlusion_side"].isna() == (nuisance["occlusion"] == 0)).all() and nuisance["occlusion_side"].isna().any()
    d = load_dataset(f"pairs:{pairs_dir}", max_scenes=12)
    rows = d.indices("test")[:64]
    groups, _ = A.known_factors(d, rows)
    assert set(groups) == {"own_intensity", "other_intensity", "place", "view"}
    records, own = d.records.iloc[rows], groups["own_intensity"]["mean_grey"].to_numpy()
    for i in (0, 5, 40):
        other = (records.identity == records.identity.iloc[i]) & (records.modality != records.modality.iloc[i])
        assert groups["other_intensity"]["mean_grey"].iloc[i] == pytest.approx(own[other].mean())
    flat = A.intensities(np.full((1, 3, 8, 8), 100, np.uint8)).iloc[0]
    assert flat.mean_grey == pytest.approx(100, abs=.1) and flat.contrast_grey == pytest.approx(0, abs=1e-3) and flat.gradient == 0


@pytest.fixture(scope="module")
def sample():
    x, identity, rng = people(30, 8, 6)
    modality = np.tile(np.repeat([0, 1], 4), 30)
    v = x + modality[:, None]*np.eye(6)[0]*4
    factors = dict(shared={"sign": pd.Series((v[:, 2] > 0).astype(int)), "size": pd.Series(v[:, 3])}, visible_only={"kind": pd.Series(rng.integers(0, 3, 30)[identity])})
    return A.Sample({"v shared": v, "z shared": v.copy()}, identity, modality, identity, factors, {})


def test_an_audit_of_equal_features_finds_no_difference(sample):
    table = A.audit(sample, sample, seed=1)
    dropped = table[table.feature == "v shared - z shared"]
    assert len(dropped) and (dropped.value.abs() < 1e-4).all() and (dropped.low.abs() < 1e-3).all()
    rows = table[(table.feature == "v shared") & (table.probe == "linear") & (table.metric == "nats")].set_index(["images", "group", "factor"])
    assert ("visible", "visible_only", "kind") in rows.index and ("infrared", "visible_only", "kind") not in rows.index
    pair = rows.loc[[("visible", "shared", "sign"), ("visible", "shared", "size")]]
    assert rows.loc[("visible", "shared", "mean of 2")].value == pytest.approx(pair.value.mean()) and pair.value.min() > .3
    assert rows.loc[("both", "modality", "modality")].value > .2
    assert set(table.metric) == {"accuracy", "nats", "R2", "purity", "MMD2"} and not table.value.isna().any()
    pd.testing.assert_frame_equal(table, A.audit(sample, sample, seed=1), atol=1e-4)


def test_what_a_bottleneck_drops_is_seen(sample):
    z = sample.features["v shared"].copy()
    z[:, [0, 2]] = np.random.default_rng(0).standard_normal((240, 2))   # modality and `sign` are gone
    rows = A.audit(replace(sample, features={"v shared": sample.features["v shared"], "z shared": z}), None, kinds=("linear",))
    dropped = rows[(rows.feature == "v shared - z shared") & (rows.metric == "nats")].set_index(["images", "factor"])
    for images in ("visible", "infrared"):
        assert dropped.loc[(images, "sign")].low > .2 and abs(dropped.loc[(images, "size")].value) < .15
    assert dropped.loc[("both", "modality")].low > .1 and "identity" not in set(rows.group)


def test_pictures_draw_what_the_table_says(sample, monkeypatch):
    monkeypatch.setattr(A, "embed_2d", partial(A.embed_2d, method="pca"))   # UMAP takes its time
    table = A.audit(sample, sample, kinds=("linear",))
    before = table.copy()
    bars = [p.get_width() for p in A.plot_factors(table).axes[0].patches]
    want = table[(table.images == "visible") & (table.metric == "nats") & table.feature.isin(["v shared", "z shared"]) & table.factor.isin(["sign", "size", "kind"])].value.clip(lower=0)
    np.testing.assert_allclose(sorted(bars), sorted(want))
    assert A.plot_sufficiency(table).axes and A.plot_consistency(table, A.embed_sample(sample)).subfigs
    pd.testing.assert_frame_equal(table, before)
    for draw in (lambda: A.plot_factors(table, "none"), lambda: A.plot_sufficiency(table[:0]), lambda: A.embed_sample(sample, "none"), lambda: A.plot_consistency(table, A.embed_sample(sample)[:0])):
        with pytest.raises(InputError): draw()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("audit")/"run"
    small = {"data.identities": (24, 8, 12), "data.images_per_camera": 2}
    Trainer(configure("synthetic", "full", epochs=1, width=8, features=32, z_features=32, hidden=(32,), identities_per_batch=8, **small), folder).fit()
    return folder


def test_a_run_is_audited_on_unseen_people(run):
    ready = A.open_audit(run, people=16)
    assert ready.sample.identity.min() >= 32 and len(set(ready.sample.identity)) == 16   # 24 trained, 8 validated
    assert set(ready.sample.features) == {"v shared", "z shared", "v specific+shared", "z specific+shared"}
    shared = replace(ready.sample, features={k: x for k, x in ready.sample.features.items() if k in ("v shared", "z shared")})
    table = A.audit_run(replace(ready, sample=shared))
    assert list(table.columns) == list(A.AUDIT_COLUMNS) and set(table.feature) == {"v shared", "z shared", "v shared - z shared"}
    text = A.audit_text(table)
    assert all(word in text for word in ("shared identity", "16 identities", "MMD", "modality", "identity"))


def test_what_is_no_finished_run_is_said(run, tmp_path):
    with pytest.raises(InputError, match="no config.yaml"): A.open_audit(tmp_path)
    cut = tmp_path/"cut"
    shutil.copytree(run, cut)
    (cut/"results.csv").unlink()
    with pytest.raises(InputError, match="--resume"): A.open_audit(cut)


def test_the_command_writes_a_table_and_pictures(run, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(A, "embed_2d", partial(A.embed_2d, method="pca"))
    folder = tmp_path/"run"
    shutil.copytree(run, folder)

    def call(*args):
        monkeypatch.setattr("sys.argv", ["vdistill", "audit", *map(str, args)])
        with pytest.raises(SystemExit) as stop: main()
        return stop.value.code or 0, capsys.readouterr()

    code, said = call(folder, "--people", 12)
    assert code == 0 and "shared identity" in said.out and {p.name for p in folder.glob("audit*")} == {"audit.csv", "audit_points.csv", "audit_factors.png", "audit_sufficiency.png", "audit_consistency.png", "audit_bounds.csv", "audit_bounds.png"} and "I(visible; infrared)" in said.out
    table = pd.read_csv(folder/"audit.csv", dtype=dict(commit=str))
    assert set(table.columns) == set(A.AUDIT_COLUMNS) and set(table.method) == {"full"} and {"v specific+shared", "v shared - z shared"} <= set(table.feature)
    assert {"linear", "mlp"} <= set(table.probe)
    points = pd.read_csv(folder/"audit_points.csv")
    assert points.groupby(["feature", "modality"]).size().nunique() == 1 and set(points.feature) == {"v shared", "z shared"} and np.isfinite(points[["x", "y"]]).all(axis=None)
    code, said = call(folder, "--people", 12, "--probe", "mlp")
    one = pd.read_csv(folder/"audit.csv")
    assert code == 0 and "probe reads (mlp)" in said.out and "linear" not in set(one.probe)
    key = ["feature", "images", "group", "factor", "probe", "metric"]
    both = one.merge(table, on=key)
    assert len(both) == len(one) and np.nanmedian((both.value_x - both.value_y).abs()) < .01   # the same probes, learned in other batches
    for some in (one, table):   # twelve people are few: what cannot be measured on them has no number, and says so
        lost = some.remark.notna()
        assert (some.value.isna() == lost).all() and (some.remark[lost] == "not measurable on 12 people").all() and not (some[["value", "null"]].lt(-some.ceiling, axis=0)).any(axis=None)
    assert ("not measurable" in said.out) == one[one.factor.str.startswith("mean of") & (one.probe == "mlp") & ~one.feature.str.contains(" - ")].value.isna().any()
    for args, word in (([tmp_path/"nowhere"], "nowhere"), ([folder, "pairs:nowhere"], "nowhere"), ([folder, "--people", 3], "people=3"), ([folder, "--probe", "svm"], "svm")):
        code, said = call(*args)
        lines = [line for line in said.err.splitlines() if line]
        assert code == 2 and len(lines) == 1 and lines[0].startswith("error: ") and word in lines[0]
