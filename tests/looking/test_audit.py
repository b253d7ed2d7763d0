"Probes see no tested person, bounds stay bounds, differences are paired, and bad input is one sentence."
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings, strategies as st
from scipy import stats
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from vdistill.looking import audit as A
from vdistill.cli.main import main
from vdistill.core import InputError
from vdistill.reid.data import load_dataset
from vdistill.reid.training import Trainer, configure


@pytest.fixture(autouse=True)
def closed_figures():
    yield
    plt.close("all")


def people(n=40, each=6, d=10, seed=0):
    "Features that hold a person's code, and identities."
    rng = np.random.default_rng(seed)
    identity = np.repeat(np.arange(n), each)
    return rng.standard_normal((n, d))[identity] + .5*rng.standard_normal((n*each, d)), identity, rng


def test_interval_is_the_clustered_t_interval_and_differences_are_paired():
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(9), 5)
    s, other = rng.standard_normal((2, 45))
    means = s.reshape(9, 5).mean(1)
    e = A.estimate(s, groups)
    np.testing.assert_allclose(e.interval(), stats.t.interval(.95, 8, means.mean(), stats.sem(means)))   # equal groups: the textbook interval over group means
    difference = A.estimate(s, groups) - A.estimate(other, groups)
    np.testing.assert_allclose(difference.interval(), A.estimate(s - other, groups).interval())
    both = A.mean_of([A.estimate(s, groups), A.estimate(other, groups)])
    np.testing.assert_allclose(both.interval(), A.estimate((s + other)/2, groups).interval())
    gaps = np.where(np.arange(45) % 4 == 0, np.nan, s)
    assert A.estimate(gaps, groups).value == pytest.approx(np.nanmean(gaps)) and abs(A.estimate(gaps, groups).pull.sum()) < 1e-12


def test_factors_are_cut_into_equal_bins_ties_together_and_unknown_stays_unknown():
    rng = np.random.default_rng(1)
    x = rng.random(600)
    assert set(np.bincount(A.as_factor(x, bins=5).labels)) == {120}
    tied = A.as_factor(np.r_[np.zeros(70), x[:30]], bins=4)
    assert len(set(tied.labels[:70])) == 1 and tied.classes == 3 and (tied.labels[70:] > 0).all()
    angle = A.as_factor(np.r_[-170., 190., 10., np.nan, 100.], period=360.)
    assert angle.labels[0] == angle.labels[1] and angle.labels[3] == -1
    np.testing.assert_allclose(angle.values[0], angle.values[1])
    assert list(A.as_factor(pd.Series([2, None, 5], dtype="Int64")).labels) == [0, -1, 1]
    with pytest.raises(InputError, match="none of the 3 values"): A.as_factor([np.nan]*3)


@settings(derandomize=True, deadline=None, max_examples=30)
@given(st.lists(st.integers(1, 9), min_size=8, max_size=30), st.integers(0, 99))
def test_no_group_is_on_two_sides_and_every_image_is_tested_once(sizes, seed):
    groups = np.repeat(np.arange(len(sizes))*7 - 3, sizes)
    splits = A.group_splits(groups, 5, seed)
    assert sorted(np.concatenate([s.test for s in splits])) == list(range(len(groups)))
    for s in splits:
        fit, choose, test = (set(groups[rows]) for rows in s)
        assert not fit & choose and not fit & test and not choose & test and fit | choose | test == set(groups)


def test_folds_do_not_follow_the_order_of_people():
    "Labels that repeat with the number of folds must not gather in one fold."
    rare = np.arange(500) % 5 == 0
    assert all(10 < rare[s.test].sum() < 35 for s in A.group_splits(np.arange(500)))


def test_known_identities_are_on_all_sides():
    y = np.random.default_rng(0).permutation(np.repeat(np.arange(12), 6))
    splits = A.image_splits(y)
    assert sorted(np.concatenate([s.test for s in splits])) == list(range(72))
    for s in splits:
        assert set(y[s.fit]) == set(y[s.choose]) == set(range(12)) and not set(s.fit) & set(s.choose) | set(s.fit) & set(s.test) | set(s.choose) & set(s.test)
    with pytest.raises(InputError, match="only 3 images"): A.image_splits(np.repeat([0, 1], 3))


def test_shuffling_keeps_the_level_of_a_factor():
    _, identity, rng = people()
    of_person, of_image = A.Factor(rng.integers(0, 3, 40)[identity]), A.Factor(np.where(rng.random(240) < .2, -1, rng.integers(0, 3, 240)))
    moved = of_person.labels[A.shuffled(of_person, identity, rng)]
    assert all(len(set(moved[identity == i])) == 1 for i in range(40)) and (np.bincount(moved) == np.bincount(of_person.labels)).all() and (moved != of_person.labels).any()
    moved = of_image.labels[A.shuffled(of_image, identity, rng)]
    assert (np.flatnonzero(moved < 0) == np.flatnonzero(of_image.labels < 0)).all() and sorted(moved) == sorted(of_image.labels)


def test_identity_alone_does_not_tell_an_attribute_of_new_people():
    x, identity, rng = people(60, d=40)
    attribute = rng.integers(0, 2, 60)[identity]
    fair, leak = A.probe(x, attribute, identity), A.probe(x, attribute, np.arange(len(x)))
    assert fair.low["accuracy"] < 55 and fair.low["nats"] < 0 and leak.low["nats"] > .1


def test_a_probe_reads_what_logistic_regression_reads():
    rng = np.random.default_rng(3)
    x = rng.standard_normal((900, 20))
    y = (2*x[:, :3] + rng.standard_normal((900, 3))).argmax(1)
    ours, log_q = A.probe(x, y, np.arange(900)), np.zeros((900, 3))
    for s in A.group_splits(np.arange(900)):
        train = np.r_[s.fit, s.choose]
        log_q[s.test] = LogisticRegression(C=1., solver="newton-cg", tol=1e-8, max_iter=1000).fit(x[train], y[train]).predict_log_proba(x[s.test])
    value, low, high = A.barber_agakov(log_q, y)
    assert abs(ours.value["nats"] - value) < .015 and low < ours.value["nats"] < high


def test_probing_together_is_probing_one_by_one():
    x, identity, rng = people()
    labels = rng.integers(0, 3, (4, 240))
    labels[2, ::5] = -1
    splits = A.group_splits(identity)
    for kind in A.PROBES:
        together = A.Prober(x, splits)(labels, kind)
        np.testing.assert_allclose(np.exp(together).sum(2), 1, atol=1e-6)
        if kind == "linear":   # the hidden layers of an MLP start at random, each head at its own place
            for h in range(4): np.testing.assert_allclose(together[h], A.Prober(x, splits)(labels[[h]], kind)[0], atol=1e-4)
        prober = A.Prober(x, splits)
        prober(labels[[1, 0]], "linear")
        np.testing.assert_allclose(prober(labels, kind), together, atol=1e-4)   # what is remembered changes nothing
    with pytest.raises(InputError, match="linear or mlp"): prober(labels, "tree")


def test_what_is_unknown_is_neither_learned_nor_scored():
    x, identity, rng = people(d=4)
    y = (x[:, 0] > 0).astype(int)
    unknown = rng.random(240) < .3
    wrong = np.where(unknown, -1, y)
    scores = A.probe_factors(A.Prober(x, A.group_splits(identity)), {"y": A.Factor(wrong)}, np.arange(240))
    assert (np.isnan(scores["y", "nats"].values) == unknown).all() and np.nanmean(scores["y", "accuracy"].values) > 90


def test_directions_without_variance_are_not_blown_up():
    "More dimensions than images: rounding errors must not be stretched to unit variance."
    x, identity, rng = people(12, 4, 64)
    spread = x*np.r_[np.ones(8), np.full(56, 1e-12)]   # 56 dimensions that are nothing but rounding
    y = rng.integers(0, 3, 48)
    for features in (x, x @ np.diag(np.arange(64) < 8) @ rng.standard_normal((64, 64)), spread + 5):
        for kind in A.PROBES: assert A.Prober(features, A.group_splits(identity))(y[None], kind).min() > -100
    nearly = np.ones((240, 8)) + 1e-8*np.random.default_rng(0).standard_normal((240, 8))
    nearly[:6] += 1   # saturated for everybody but one person
    who, coin = np.repeat(np.arange(40), 6), np.random.default_rng(1).integers(0, 2, 240)
    for kind in A.PROBES: assert A.Prober(nearly, A.group_splits(who))(coin[None], kind).min() > -100


def test_what_cannot_be_measured_is_said_and_not_given_as_a_number():
    assert A.measurable(-.9, 1.) and A.measurable(.5, 1.) and A.measurable(-1e9, np.nan) and not A.measurable(-1.1, 1.) and not A.measurable(np.nan, 1.)
    pull = np.zeros(12)
    key = lambda feature, factor, metric="nats": (feature, "visible", "shared_identity", factor, "linear", metric)
    good, bad = A.Cell(A.Estimate(.5, pull), [-.1, -.3], .7), A.Cell(A.Estimate(-3e5, pull), [-4e5, -.1], .7)
    cells = {key("v shared", "coat"): good, key("z shared", "coat"): bad, key("v shared", "coat", "accuracy"): A.Cell(A.Estimate(3., pull), [50.], 100.)}
    cells |= A._group_means(cells)
    rows = A._rows(cells | A._dropped(cells), "people").set_index(["feature", "factor", "metric"])
    lost = rows.index.isin([(f, n, "nats") for f in ("z shared", "v shared - z shared") for n in ("coat", "mean of 1")])
    assert (rows.remark[lost] == "not measurable on 12 people").all() and (rows.remark[~lost] == "").all() and lost.sum() == 4
    assert rows.loc[lost, ["value", "low", "high", "null", "null_high"]].isna().all(axis=None) and rows.value[~lost].notna().all()
    assert rows.null["v shared", "coat", "nats"] == pytest.approx(-.2) and rows.null_high["v shared", "coat", "nats"] == -.1


def test_a_probe_of_noise_gives_no_number_below_minus_the_entropy():
    x, identity, rng = people(12, 4, 200)
    few = A.probe(x, np.arange(48) % 2, identity, "mlp", permutations=1)
    assert not (few.value < -few.ceiling).any() and not (few.null < -few.ceiling).any() and np.isfinite(few.value["accuracy"])
    certain = np.where(np.arange(2) == rng.integers(0, 2, (48, 1)), 0., -60.)   # sure of itself, and wrong half of the time
    numbers = A._numbers(A.estimate(A.score(certain, A.Factor(np.arange(48) % 2))["nats"], identity), [-.1], np.log(2))
    assert np.isnan([numbers[k] for k in ("value", "low", "high")]).all() and numbers["null"] == -.1


@settings(derandomize=True, deadline=None, max_examples=50)
@given(st.integers(2, 5), st.integers(0, 10**6))
def test_no_decoder_scores_more_than_the_entropy(K, seed):
    rng = np.random.default_rng(seed)
    y = np.r_[np.arange(K), rng.integers(0, K, 50)]
    log_q = np.log(rng.dirichlet(np.full(K, .3), len(y)) + 1e-300)
    log_q -= np.logaddexp.reduce(log_q, 1)[:, None]
    entropy = A.Factor(y).entropy()
    assert A.barber_agakov(log_q, y)[0] <= entropy + 1e-9
    assert A.barber_agakov(np.log(np.eye(K)[y] + 1e-300), y)[0] == pytest.approx(entropy)
    prior = np.tile(np.log(np.bincount(y)/len(y)), (len(y), 1))
    assert A.barber_agakov(prior, y)[0] == pytest.approx(0, abs=1e-9)


def test_the_bound_lies_under_a_known_information():
    rng = np.random.default_rng(5)
    y = np.arange(2000) % 2
    x = rng.standard_normal((2000, 5))
    x[:, 0] += 2*y
    t = np.linspace(-9, 11, 4001)
    p = stats.norm.pdf(t[:, None], [0, 2])
    truth = np.trapezoid((p*np.log(2*p/p.sum(1, keepdims=True))).sum(1)/2, t)
    for kind in A.PROBES:
        r = A.probe(x, y, np.arange(2000), kind).loc["nats"]
        assert r.low < truth and truth - r.value < .04, (kind, truth, r)


def test_class_means_are_linear_discriminant_analysis():
    x, identity, _ = people(8, 12, 5)
    rows = np.arange(0, 96, 2)
    n, K = len(rows), 8
    for s, d in zip(A.SHRINKAGE, A._mahalanobis(x, identity, rows)):
        log_q = -d*n/(n - K)
        theirs = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=s, priors=np.full(K, 1/K)).fit(x[rows], identity[rows]).predict_log_proba(x)
        np.testing.assert_allclose(log_q - np.logaddexp.reduce(log_q, 1)[:, None], theirs, atol=1e-6)


def test_sufficiency_knows_people_and_not_noise():
    x, identity, rng = people(30, 8, 12)
    known, noise = A.sufficiency(x, identity), A.sufficiency(rng.standard_normal(x.shape), identity)
    assert known["nats"].values.mean() > 2 and known["nats"].ceiling == pytest.approx(np.log(30)) and abs(known["nats"].null[0]) < .1
    assert -.1 < noise["nats"].values.mean() < .05
    np.testing.assert_allclose(A.sufficiency(7*x - 3, identity)["nats"].values, known["nats"].values, atol=1e-3)


def test_purity_against_a_slow_count():
    rng = np.random.default_rng(2)
    a, b = rng.standard_normal((20, 3)), rng.standard_normal((14, 3)) + .5
    x, own, who = np.concatenate([a, b]), np.repeat([0, 1], [20, 14]), rng.integers(0, 6, 34)
    for groups in (None, who):
        share, expected = A.modality_purity(a, b, 4, groups)
        for i in range(34):
            others = [j for j in range(34) if (j != i if groups is None else who[j] != who[i])]
            near = sorted(others, key=lambda j: -x[i] @ x[j]/np.linalg.norm(x[i])/np.linalg.norm(x[j]))[:4]
            assert share[i] == np.mean([own[j] == own[i] for j in near]) and expected[i] == np.mean([own[j] == own[i] for j in others])
    with pytest.raises(InputError, match="fewer than k=50"): A.modality_purity(a, b, 50)


def test_mmd_shuffles_within_groups():
    rng = np.random.default_rng(4)
    a, b = rng.standard_normal((30, 3)), rng.standard_normal((30, 3))
    alone = A.mmd(a, b, groups=np.arange(60))   # nobody to change places with
    np.testing.assert_allclose(alone.null, alone.value)
    assert alone.p == 1
    person = np.tile(np.arange(30), 2)
    centre = 4*rng.standard_normal((30, 3))
    paired = A.mmd(a + centre, b + centre, person)
    assert paired.p > .05 and A.mmd(a + centre, b + centre + 1.5, person).p < .02
    assert A.mmd(a, b, seed=3).p == A.mmd(a, b, seed=3).p
    with pytest.raises(InputError, match="at least 2"): A.mmd(a[:1], b)


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


def test_unknown_images_leave_no_trace_in_a_regression():
    rng = np.random.default_rng(6)
    x = np.concatenate([rng.standard_normal((5, 80)), np.ones((1, 80))]).astype(np.float32)
    labels = rng.integers(0, 3, (1, 80))
    gaps = labels.copy()
    gaps[0, ::3] = -1
    keep, start = gaps[0] >= 0, np.zeros((3, 1, 6), np.float32)
    np.testing.assert_allclose(A.fit_softmax(x, gaps, np.array([.1]), start, 300), A.fit_softmax(x[:, keep], labels[:, keep], np.array([.1]), start, 300), atol=1e-3)


def test_mmd_is_the_unbiased_estimate():
    rng = np.random.default_rng(7)
    a, b = rng.standard_normal((7, 2)), rng.standard_normal((5, 2)) + 1
    x = np.concatenate([a, b])
    square = ((x[:, None] - x)**2).sum(2)
    k = np.exp(-square/np.median(square[np.triu_indices(12, 1)]))
    aa, bb = (k[s, s][~np.eye(len(k[s, s]), dtype=bool)].mean() for s in (slice(7), slice(7, 12)))
    assert A.mmd(a, b).value == pytest.approx(aa + bb - 2*k[:7, 7:].mean())


@pytest.mark.parametrize("scale, far", [(1e-13, 0.), (1e-150, 0.), (1e9, 0.), (1., 2.**20)])
def test_neither_the_unit_nor_the_origin_of_a_feature_matters(scale, far):
    rng = np.random.default_rng(0)
    groups, x = np.repeat(np.arange(24), 4), rng.standard_normal((96, 5)).round(6)
    factor = (x[:, 0] > 0).astype(int)
    here, there = (A.probe(v, factor, groups, permutations=0).value for v in (x, x*scale + far))
    assert here["accuracy"] > 80
    np.testing.assert_allclose(there, here, rtol=0, atol=2.)                             # of 96 images at most one or two on the edge
    a, b = A.mmd(x[:48], x[48:] + .5, permutations=20), A.mmd(x[:48]*scale + far, (x[48:] + .5)*scale + far, permutations=20)
    assert a.value > .01 and b.value == pytest.approx(a.value, abs=1e-6) and b.p == a.p
