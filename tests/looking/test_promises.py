"Sufficiency, purity and MMD against slow and exact answers."
import matplotlib
import numpy as np
import pytest
from invented import people
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
matplotlib.use("Agg")
from vdistill.looking import probes as P
from vdistill.looking import promises as R
from vdistill.core import InputError


def test_class_means_are_linear_discriminant_analysis():
    x, identity, _ = people(8, 12, 5)
    rows = np.arange(0, 96, 2)
    n, K = len(rows), 8
    for s, d in zip(R.SHRINKAGE, R._mahalanobis(x, identity, rows)):
        log_q = -d*n/(n - K)
        theirs = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=s, priors=np.full(K, 1/K)).fit(x[rows], identity[rows]).predict_log_proba(x)
        np.testing.assert_allclose(log_q - np.logaddexp.reduce(log_q, 1)[:, None], theirs, atol=1e-6)


def test_sufficiency_knows_people_and_not_noise():
    x, identity, rng = people(30, 8, 12)
    known, noise = R.sufficiency(x, identity), R.sufficiency(rng.standard_normal(x.shape), identity)
    assert known["nats"].values.mean() > 2 and known["nats"].ceiling == pytest.approx(np.log(30)) and abs(known["nats"].null[0]) < .1
    assert -.1 < noise["nats"].values.mean() < .05
    np.testing.assert_allclose(R.sufficiency(7*x - 3, identity)["nats"].values, known["nats"].values, atol=1e-3)


def test_purity_against_a_slow_count():
    rng = np.random.default_rng(2)
    a, b = rng.standard_normal((20, 3)), rng.standard_normal((14, 3)) + .5
    x, own, who = np.concatenate([a, b]), np.repeat([0, 1], [20, 14]), rng.integers(0, 6, 34)
    for groups in (None, who):
        share, expected = R.modality_purity(a, b, 4, groups)
        for i in range(34):
            others = [j for j in range(34) if (j != i if groups is None else who[j] != who[i])]
            near = sorted(others, key=lambda j: -x[i] @ x[j]/np.linalg.norm(x[i])/np.linalg.norm(x[j]))[:4]
            assert share[i] == np.mean([own[j] == own[i] for j in near]) and expected[i] == np.mean([own[j] == own[i] for j in others])
    with pytest.raises(InputError, match="fewer than k=50"): R.modality_purity(a, b, 50)


def test_mmd_shuffles_within_groups():
    rng = np.random.default_rng(4)
    a, b = rng.standard_normal((30, 3)), rng.standard_normal((30, 3))
    alone = R.mmd(a, b, groups=np.arange(60))   # nobody to change places with
    np.testing.assert_allclose(alone.null, alone.value)
    assert alone.p == 1
    person = np.tile(np.arange(30), 2)
    centre = 4*rng.standard_normal((30, 3))
    paired = R.mmd(a + centre, b + centre, person)
    assert paired.p > .05 and R.mmd(a + centre, b + centre + 1.5, person).p < .02
    assert R.mmd(a, b, seed=3).p == R.mmd(a, b, seed=3).p
    with pytest.raises(InputError, match="at least 2"): R.mmd(a[:1], b)


def test_mmd_is_the_unbiased_estimate():
    rng = np.random.default_rng(7)
    a, b = rng.standard_normal((7, 2)), rng.standard_normal((5, 2)) + 1
    x = np.concatenate([a, b])
    square = ((x[:, None] - x)**2).sum(2)
    k = np.exp(-square/np.median(square[np.triu_indices(12, 1)]))
    aa, bb = (k[s, s][~np.eye(len(k[s, s]), dtype=bool)].mean() for s in (slice(7), slice(7, 12)))
    assert R.mmd(a, b).value == pytest.approx(aa + bb - 2*k[:7, 7:].mean())


@pytest.mark.parametrize("scale, far", [(1e-13, 0.), (1e-150, 0.), (1e9, 0.), (1., 2.**20)])
def test_neither_the_unit_nor_the_origin_of_a_feature_matters(scale, far):
    rng = np.random.default_rng(0)
    groups, x = np.repeat(np.arange(24), 4), rng.standard_normal((96, 5)).round(6)
    factor = (x[:, 0] > 0).astype(int)
    here, there = (P.probe(v, factor, groups, permutations=0).value for v in (x, x*scale + far))
    assert here["accuracy"] > 80
    np.testing.assert_allclose(there, here, rtol=0, atol=2.)                             # of 96 images at most one or two on the edge
    a, b = R.mmd(x[:48], x[48:] + .5, permutations=20), R.mmd(x[:48]*scale + far, (x[48:] + .5)*scale + far, permutations=20)
    assert a.value > .01 and b.value == pytest.approx(a.value, abs=1e-6) and b.p == a.p
