"Bounds on codes: pairs are pairs, intervals agree with a slow jackknife, nothing exceeds the truth, and doubts are said."
import math

import matplotlib
import numpy as np
import pandas as pd
import pytest
import torch

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from vdistill.looking import audit_bounds as B
from vdistill.looking.audit import Sample
from vdistill.bounds import alpha_floor, ceiling, cpc, ml_cpc
from vdistill.core import InputError


def people(nats, dim=16, n=100, each=2, seed=0):
    "Codes of two views with a known I(z_visible; z_infrared)."
    rho, rng = math.sqrt(-math.expm1(-2*nats/dim)), np.random.default_rng(seed)
    who, m = np.repeat(np.arange(n), 2*each), np.tile(np.repeat([0, 1], each), n)
    return math.sqrt(rho)*rng.standard_normal((n, dim))[who] + math.sqrt(1 - rho)*rng.standard_normal((len(who), dim)), who, m


def test_pairs_are_of_one_person_and_every_image_has_its_turn():
    rng = np.random.default_rng(0)
    who, m = rng.integers(5, 40, 400), rng.integers(0, 2, 400)
    who[:3], m[:3] = 99, 0                                                       # one person was never seen in infrared
    names, rows = B.pair_rows(who, m, times=300, seed=1)
    assert 99 not in names and rows.shape == (2, 300, len(names)) and (who[rows] == names).all()
    assert (m[rows] == np.array([0, 1])[:, None, None]).all()
    assert set(rows.ravel()) == set(np.flatnonzero(np.isin(who, names)))
    np.testing.assert_array_equal(rows, B.pair_rows(who, m, times=300, seed=1)[1])
    with pytest.raises(InputError, match="9 people"): B.pair_rows(np.repeat(np.arange(9), 2), np.tile([0, 1], 9))


@pytest.mark.parametrize("bound,alpha", [("cpc", 1.), ("ml_cpc", 1.), ("ml_cpc", .3)])
def test_pulls_agree_with_leaving_one_out(bound, alpha):
    "The slow way: the value without each pair, the constants held at those of all pairs."
    n = 400
    s = torch.randn(n, n, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    def value(keep):
        t, k = s[keep][:, keep], len(keep)
        if bound == "cpc":
            off = (t.exp().sum(1) - t.diagonal().exp())*(n - 1)/(k - 1)
            return (t.diagonal() - (t.diagonal().exp() + off).log()).mean()
        positives, negatives = t.diagonal().exp().mean(), (t.exp().sum() - t.diagonal().exp().sum())/(k*(k - 1))
        return t.diagonal().mean() - (alpha*positives + (n - alpha)*negatives).log()
    everyone = torch.arange(n)
    slow = torch.stack([(value(everyone) - value(everyone[everyone != i]))*(n - 1)/n for i in range(0, n, 7)])
    quick = B.pulls(s, bound, alpha)
    assert abs(quick.sum()) < 1e-9
    centred = quick[::7] - quick[::7].mean()
    torch.testing.assert_close(centred, slow - slow.mean(), rtol=.05, atol=2e-5)
    batch = torch.stack([s[:9, :9], s[9:18, 9:18]])
    torch.testing.assert_close(B.pulls(batch, bound, alpha), torch.stack([B.pulls(b, bound, alpha) for b in batch]))


@pytest.mark.parametrize("alpha", [1., .4])
def test_pulls_are_derivatives_where_pairs_are_few(alpha):
    "Three pairs, each of which counts w times; the positives' own share is large here."
    n, w = 3, torch.ones(3, dtype=torch.float64, requires_grad=True)
    s = torch.randn(n, n, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    f, off = s.diagonal(), s.exp()*~torch.eye(n, dtype=torch.bool)
    value = (w*f).sum()/w.sum() - (alpha*(w*f.exp()).sum()/w.sum() + (n - alpha)/(n - 1)*n*(w @ off @ w)/w.sum()**2).log()
    slope, = torch.autograd.grad(value, w)
    torch.testing.assert_close(B.pulls(s, "ml_cpc", alpha), slope, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("critic", ["cosine", "metric"])
def test_bounds_of_codes_with_a_known_answer(critic):
    for nats, least in ((0., -.1), (2., 1.3)):
        z, who, m = people(nats)
        out = B.across(z, who, m, who, critic)
        for name, x in out.items():
            assert least < x.estimate.value and x.estimate.interval()[0] < nats + .02, name
            assert abs(x.estimate.pull.sum()) < 1e-6 and len(x.estimate.pull) == 100
        assert out["CPC"].ceiling == pytest.approx(math.log(20)) and out["ML-CPC"].ceiling == pytest.approx(ceiling(20, alpha_floor(20, 20)))
    assert out["ML-CPC"].estimate.value > out["CPC"].estimate.value
    assert abs(B.across(z, who, m, who, critic, shuffled=True)["ML-CPC"].estimate.value) < .1
    again = B.across(z, who, m, who, critic)["ML-CPC"]
    assert again.estimate.value == out["ML-CPC"].estimate.value and again.gap == out["ML-CPC"].gap


def test_batches_hold_everybody_once_and_strangers_are_strangers():
    rows = np.arange(2*6*50).reshape(2, 6, 50)
    batches = B.in_batches(rows, 12)
    assert batches.shape == (2, 24, 12) and (batches[1] - batches[0] == 300).all() and all(len(set(b % 50)) == 12 for b in batches[0])
    assert B.in_batches(rows, 60).shape == (2, 6, 50)
    for seed in range(20):
        a, b = B._strangers(rows, seed)
        assert ((b - a) % 50 != 0).all() and sorted(b[0] % 50) == list(range(50))


def test_no_critic_sees_a_tested_scene(monkeypatch):
    z, who, m = people(2.)
    scene, seen = who//4, []
    choose = B.best_temperature
    monkeypatch.setattr(B, "best_temperature", lambda x, y: seen.append({tuple(r.tolist()) for r in torch.cat([x, y]).flatten(0, 1)}) or choose(x, y))
    tested = []
    off = B.read_off
    monkeypatch.setattr(B, "read_off", lambda scores, items, groups: tested.append(set(np.unique(items))) or off(scores, items, groups))
    B.across(z, who, m, scene)
    unit = torch.nn.functional.normalize(torch.from_numpy(z.astype(np.float32)), dim=1)
    assert sorted(i for t in tested for i in t) == list(range(100))
    for t, rows in zip(tested, seen):
        in_test = {tuple(r.tolist()) for r in unit[np.isin(scene, scene[np.isin(who, list(t))])]}
        assert in_test and not in_test & rows


def test_a_perfect_code_says_no_more_than_the_entropy():
    y = np.repeat(np.arange(50), 3)
    sure = np.log(np.where(y[:, None] == np.arange(50), .999, .001/49))
    out = B.by_classes(sure, y, y, batch=32, times=500)
    assert out["BA"].estimate.value == pytest.approx(math.log(50), abs=.01) and out["BA"].ceiling == pytest.approx(math.log(50))
    assert abs(out["ML-CPC"].estimate.value - math.log(50)) < .1 and out["CPC"].estimate.value < math.log(32)      # a batch without repeats would add log(3/2)
    rare = np.r_[np.zeros(270, int), np.ones(30, int)]                             # uneven classes: a critic without the prior would miss most of it
    for x in B.by_classes(np.log(np.where(rare[:, None] == np.arange(2), .999, .001)), rare, np.arange(300), times=300).values(): assert abs(x.estimate.value - .325) < .03
    y5 = np.arange(100) % 5
    half = np.where(np.arange(100) % 4, y5, -1)                                    # labels that are not known are left out
    log_q = np.log(np.where(y5[:, None] == np.arange(5), .96, .01))
    for name, x in B.by_classes(log_q, half, np.arange(100), times=300).items(): assert abs(x.estimate.value - B.by_classes(log_q, y5, np.arange(100), times=300)[name].estimate.value) < .05
    blind = B.by_classes(np.full((150, 50), -math.log(50)), y, y, batch=32)
    assert all(abs(x.estimate.value) < 1e-5 for x in blind.values())


def test_read_off_is_the_mean_of_the_bounds():
    s = torch.randn(5, 7, 7, generator=torch.Generator().manual_seed(0))
    out = B.read_off(s, np.tile(np.arange(7), (5, 1)), np.array([0, 0, 1, 1, 2, 2, 3]))
    assert out["CPC"].estimate.value == pytest.approx(float(torch.stack([cpc(x) for x in s]).mean()), abs=1e-5)
    assert out["ML-CPC"].estimate.value == pytest.approx(float(torch.stack([ml_cpc(x, alpha=alpha_floor(7, 7)) for x in s]).mean()), abs=1e-5)
    assert out["CPC"].estimate.pull.shape == (4,)


def sample(each=4, n=30, seed=0):
    z, who, m = people(3., n=n, each=each, seed=seed)
    v = np.concatenate([z, np.random.default_rng(seed).standard_normal((len(z), 8))], 1)
    return Sample({"v shared": v.astype(np.float32), "z shared": z.astype(np.float32)}, who, m, who, {}, {})


def test_a_measurement_has_every_number_and_its_doubts():
    table = B.measure(sample(), sample(each=6, seed=1))
    assert len(table) == 2*(2*2 + 2*3 + 3) and np.isfinite(table[["value", "low", "high", "ceiling"]]).all(axis=None)
    assert (table.low <= table.value).all() and (table.value <= table.ceiling + 1e-9).all()
    assert (table.null.abs() < .3).all() and set(table.n) == {6, 64} and (table.groups == 30).all()
    text = B.measure_text(table)
    assert "I(visible; infrared)" in text and "careful: near the ceiling" in text and "z gives" in text          # z is read more easily than v, of which it is a part
    B.plot_bounds(table)
    plt.close("all")
    assert (B.measure(sample(), None, critics=("cosine",)).about != "identity").all()


def test_each_doubt_is_said_where_it_holds():
    fine = dict(feature="z shared", about="visible; infrared", images="both", critic="metric", bound="CPC", value=1., low=.8, high=1.2, null=0., null_high=.01, ceiling=4., gap=.1, n=60, groups=100)
    def said(**change): return B.doubts(pd.DataFrame([fine | change]))[0]
    assert said() == ""
    for change, words in (dict(value=3.5), "near the ceiling"), (dict(low=-.1), "holds 0"), (dict(bound="ML-CPC", value=3.6, ceiling=8.), "few pairs"), (dict(gap=.8), "by heart"), (dict(null_high=.4), "shuffled"), (dict(groups=12), "groups"):
        assert words in said(**change)
    both = pd.DataFrame([fine, fine | dict(feature="v shared", value=.7)])
    assert B.order_broken(both).nats.item() == pytest.approx(.3) and not len(B.order_broken(both.assign(value=1.)))


def test_the_modality_of_two_tables_is_counted_once():
    "A run that was audited keeps its own row, one that was only bounded gets one; other bounds stay out."
    where = dict(dataset="d", method="full", feature="z shared", images="both")
    audits = pd.DataFrame([where | dict(seed=0, group=g, factor=g, probe="linear", metric="nats", value=v) for g, v in (("modality", .1), ("identity", 2.))])
    bounds = pd.DataFrame([where | dict(seed=s, about=about, bound=b, value=v, gap=0.)
        for s, about, b, v in ((0, "modality", "BA", .1004), (5, "modality", "BA", .3), (5, "modality", "CPC", .4), (5, "identity", "BA", 3.))])
    both = B.with_modality(audits, bounds)
    assert list(both) == list(audits) and len(both) == 3
    assert both[both.group == "modality"].set_index("seed").value.to_dict() == {0: .1, 5: .3}
