"Probes see no tested person, bounds stay bounds, differences are paired."
import matplotlib
import numpy as np
import pandas as pd
import pytest
from invented import people
from hypothesis import given, settings, strategies as st
from scipy import stats
from sklearn.linear_model import LogisticRegression
matplotlib.use("Agg")
from vdistill.looking import probes as P
from vdistill.core import InputError


def test_interval_is_the_clustered_t_interval_and_differences_are_paired():
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(9), 5)
    s, other = rng.standard_normal((2, 45))
    means = s.reshape(9, 5).mean(1)
    e = P.estimate(s, groups)
    np.testing.assert_allclose(e.interval(), stats.t.interval(.95, 8, means.mean(), stats.sem(means)))   # equal groups: the textbook interval over group means
    difference = P.estimate(s, groups) - P.estimate(other, groups)
    np.testing.assert_allclose(difference.interval(), P.estimate(s - other, groups).interval())
    both = P.mean_of([P.estimate(s, groups), P.estimate(other, groups)])
    np.testing.assert_allclose(both.interval(), P.estimate((s + other)/2, groups).interval())
    gaps = np.where(np.arange(45) % 4 == 0, np.nan, s)
    assert P.estimate(gaps, groups).value == pytest.approx(np.nanmean(gaps)) and abs(P.estimate(gaps, groups).pull.sum()) < 1e-12


def test_factors_are_cut_into_equal_bins_ties_together_and_unknown_stays_unknown():
    rng = np.random.default_rng(1)
    x = rng.random(600)
    assert set(np.bincount(P.as_factor(x, bins=5).labels)) == {120}
    tied = P.as_factor(np.r_[np.zeros(70), x[:30]], bins=4)
    assert len(set(tied.labels[:70])) == 1 and tied.classes == 3 and (tied.labels[70:] > 0).all()
    angle = P.as_factor(np.r_[-170., 190., 10., np.nan, 100.], period=360.)
    assert angle.labels[0] == angle.labels[1] and angle.labels[3] == -1
    np.testing.assert_allclose(angle.values[0], angle.values[1])
    assert list(P.as_factor(pd.Series([2, None, 5], dtype="Int64")).labels) == [0, -1, 1]
    with pytest.raises(InputError, match="none of the 3 values"): P.as_factor([np.nan]*3)


@settings(derandomize=True, deadline=None, max_examples=30)
@given(st.lists(st.integers(1, 9), min_size=8, max_size=30), st.integers(0, 99))
def test_no_group_is_on_two_sides_and_every_image_is_tested_once(sizes, seed):
    groups = np.repeat(np.arange(len(sizes))*7 - 3, sizes)
    splits = P.group_splits(groups, 5, seed)
    assert sorted(np.concatenate([s.test for s in splits])) == list(range(len(groups)))
    for s in splits:
        fit, choose, test = (set(groups[rows]) for rows in s)
        assert not fit & choose and not fit & test and not choose & test and fit | choose | test == set(groups)


def test_folds_do_not_follow_the_order_of_people():
    "Labels that repeat with the number of folds must not gather in one fold."
    rare = np.arange(500) % 5 == 0
    assert all(10 < rare[s.test].sum() < 35 for s in P.group_splits(np.arange(500)))


def test_known_identities_are_on_all_sides():
    y = np.random.default_rng(0).permutation(np.repeat(np.arange(12), 6))
    splits = P.image_splits(y)
    assert sorted(np.concatenate([s.test for s in splits])) == list(range(72))
    for s in splits:
        assert set(y[s.fit]) == set(y[s.choose]) == set(range(12)) and not set(s.fit) & set(s.choose) | set(s.fit) & set(s.test) | set(s.choose) & set(s.test)
    with pytest.raises(InputError, match="only 3 images"): P.image_splits(np.repeat([0, 1], 3))


def test_shuffling_keeps_the_level_of_a_factor():
    _, identity, rng = people()
    of_person, of_image = P.Factor(rng.integers(0, 3, 40)[identity]), P.Factor(np.where(rng.random(240) < .2, -1, rng.integers(0, 3, 240)))
    moved = of_person.labels[P.shuffled(of_person, identity, rng)]
    assert all(len(set(moved[identity == i])) == 1 for i in range(40)) and (np.bincount(moved) == np.bincount(of_person.labels)).all() and (moved != of_person.labels).any()
    moved = of_image.labels[P.shuffled(of_image, identity, rng)]
    assert (np.flatnonzero(moved < 0) == np.flatnonzero(of_image.labels < 0)).all() and sorted(moved) == sorted(of_image.labels)


def test_identity_alone_does_not_tell_an_attribute_of_new_people():
    x, identity, rng = people(60, d=40)
    attribute = rng.integers(0, 2, 60)[identity]
    fair, leak = P.probe(x, attribute, identity), P.probe(x, attribute, np.arange(len(x)))
    assert fair.low["accuracy"] < 55 and fair.low["nats"] < 0 and leak.low["nats"] > .1


def test_a_probe_reads_what_logistic_regression_reads():
    rng = np.random.default_rng(3)
    x = rng.standard_normal((900, 20))
    y = (2*x[:, :3] + rng.standard_normal((900, 3))).argmax(1)
    ours, log_q = P.probe(x, y, np.arange(900)), np.zeros((900, 3))
    for s in P.group_splits(np.arange(900)):
        train = np.r_[s.fit, s.choose]
        log_q[s.test] = LogisticRegression(C=1., solver="newton-cg", tol=1e-8, max_iter=1000).fit(x[train], y[train]).predict_log_proba(x[s.test])
    value, low, high = P.barber_agakov(log_q, y)
    assert abs(ours.value["nats"] - value) < .015 and low < ours.value["nats"] < high


def test_probing_together_is_probing_one_by_one():
    x, identity, rng = people()
    labels = rng.integers(0, 3, (4, 240))
    labels[2, ::5] = -1
    splits = P.group_splits(identity)
    for kind in P.PROBES:
        together = P.Prober(x, splits)(labels, kind)
        np.testing.assert_allclose(np.exp(together).sum(2), 1, atol=1e-6)
        if kind == "linear":   # the hidden layers of an MLP start at random, each head at its own place
            for h in range(4): np.testing.assert_allclose(together[h], P.Prober(x, splits)(labels[[h]], kind)[0], atol=1e-4)
        prober = P.Prober(x, splits)
        prober(labels[[1, 0]], "linear")
        np.testing.assert_allclose(prober(labels, kind), together, atol=1e-4)   # what is remembered changes nothing
    with pytest.raises(InputError, match="linear or mlp"): prober(labels, "tree")


def test_what_is_unknown_is_neither_learned_nor_scored():
    x, identity, rng = people(d=4)
    y = (x[:, 0] > 0).astype(int)
    unknown = rng.random(240) < .3
    wrong = np.where(unknown, -1, y)
    scores = P.probe_factors(P.Prober(x, P.group_splits(identity)), {"y": P.Factor(wrong)}, np.arange(240))
    assert (np.isnan(scores["y", "nats"].values) == unknown).all() and np.nanmean(scores["y", "accuracy"].values) > 90


def test_directions_without_variance_are_not_blown_up():
    "More dimensions than images: rounding errors must not be stretched to unit variance."
    x, identity, rng = people(12, 4, 64)
    spread = x*np.r_[np.ones(8), np.full(56, 1e-12)]   # 56 dimensions that are nothing but rounding
    y = rng.integers(0, 3, 48)
    for features in (x, x @ np.diag(np.arange(64) < 8) @ rng.standard_normal((64, 64)), spread + 5):
        for kind in P.PROBES: assert P.Prober(features, P.group_splits(identity))(y[None], kind).min() > -100
    nearly = np.ones((240, 8)) + 1e-8*np.random.default_rng(0).standard_normal((240, 8))
    nearly[:6] += 1   # saturated for everybody but one person
    who, coin = np.repeat(np.arange(40), 6), np.random.default_rng(1).integers(0, 2, 240)
    for kind in P.PROBES: assert P.Prober(nearly, P.group_splits(who))(coin[None], kind).min() > -100


def test_a_probe_of_noise_gives_no_number_below_minus_the_entropy():
    x, identity, rng = people(12, 4, 200)
    few = P.probe(x, np.arange(48) % 2, identity, "mlp", permutations=1)
    assert not (few.value < -few.ceiling).any() and not (few.null < -few.ceiling).any() and np.isfinite(few.value["accuracy"])
    certain = np.where(np.arange(2) == rng.integers(0, 2, (48, 1)), 0., -60.)   # sure of itself, and wrong half of the time
    numbers = P.score_columns(P.estimate(P.score(certain, P.Factor(np.arange(48) % 2))["nats"], identity), [-.1], np.log(2))
    assert np.isnan([numbers[k] for k in ("value", "low", "high")]).all() and numbers["null"] == -.1


@settings(derandomize=True, deadline=None, max_examples=50)
@given(st.integers(2, 5), st.integers(0, 10**6))
def test_no_decoder_scores_more_than_the_entropy(K, seed):
    rng = np.random.default_rng(seed)
    y = np.r_[np.arange(K), rng.integers(0, K, 50)]
    log_q = np.log(rng.dirichlet(np.full(K, .3), len(y)) + 1e-300)
    log_q -= np.logaddexp.reduce(log_q, 1)[:, None]
    entropy = P.Factor(y).entropy()
    assert P.barber_agakov(log_q, y)[0] <= entropy + 1e-9
    assert P.barber_agakov(np.log(np.eye(K)[y] + 1e-300), y)[0] == pytest.approx(entropy)
    prior = np.tile(np.log(np.bincount(y)/len(y)), (len(y), 1))
    assert P.barber_agakov(prior, y)[0] == pytest.approx(0, abs=1e-9)


def test_the_bound_lies_under_a_known_information():
    rng = np.random.default_rng(5)
    y = np.arange(2000) % 2
    x = rng.standard_normal((2000, 5))
    x[:, 0] += 2*y
    t = np.linspace(-9, 11, 4001)
    p = stats.norm.pdf(t[:, None], [0, 2])
    truth = np.trapezoid((p*np.log(2*p/p.sum(1, keepdims=True))).sum(1)/2, t)
    for kind in P.PROBES:
        r = P.probe(x, y, np.arange(2000), kind).loc["nats"]
        assert r.low < truth and truth - r.value < .04, (kind, truth, r)


def test_unknown_images_leave_no_trace_in_a_regression():
    rng = np.random.default_rng(6)
    x = np.concatenate([rng.standard_normal((5, 80)), np.ones((1, 80))]).astype(np.float32)
    labels = rng.integers(0, 3, (1, 80))
    gaps = labels.copy()
    gaps[0, ::3] = -1
    keep, start = gaps[0] >= 0, np.zeros((3, 1, 6), np.float32)
    np.testing.assert_allclose(P.fit_softmax(x, gaps, np.array([.1]), start, 300), P.fit_softmax(x[:, keep], labels[:, keep], np.array([.1]), start, 300), atol=1e-3)
