"Tasks hold what they say; critics score pairs; estimates are held out, repeatable, and say when not to be believed."
import math
import sys
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings, strategies as st
from scipy import stats

from vdistill import bounds, estimation as E
from vdistill.core import InputError, generator

fuzz = settings(derandomize=True, deadline=None, max_examples=40)
QUICK = dict(batch=32, steps=150, check=50, seeds=(0,), hidden=32, learning_rate=2e-3)


@pytest.fixture(autouse=True)
def quiet():
    with warnings.catch_warnings():
        for kind in (E.EstimateWarning, bounds.BoundWarning): warnings.simplefilter("ignore", kind)
        yield


@fuzz
@given(st.floats(0, 12), st.integers(1, 30))
def test_a_correlation_holds_the_information_asked_for(information, dim):
    rho = E.correlation_for(information, dim)
    assert 0 <= rho < 1 and -dim/2*math.log1p(-rho**2) == pytest.approx(information, rel=1e-6, abs=1e-9)


def test_gaussians_have_the_covariance_that_they_claim():
    task = E.correlated_gaussian(3., 2)
    x, y = task.sample(200_000)
    covariance = np.cov(torch.cat([x, y], 1).T.double())
    sign = np.linalg.slogdet
    by_determinants = .5*(sign(covariance[:2, :2])[1] + sign(covariance[2:, 2:])[1] - sign(covariance)[1])
    assert by_determinants == pytest.approx(3., abs=.02) and task.mutual_information == 3.
    torch.testing.assert_close(E.correlated_gaussian(3., 2, cubic=True).draw(9, generator("a"))[1], task.draw(9, generator("a"))[1]**3)


def test_student_t_is_scipys():
    for dim, dof, information in ((1, 3., .4), (2, 5., 0.), (2, 4., 1.)):
        task, rho = E.student_t(information, dim, dof), E.correlation_for(information, dim)
        shape = np.block([[np.eye(dim), rho*np.eye(dim)], [rho*np.eye(dim), np.eye(dim)]])
        both, one = stats.multivariate_t(np.zeros(2*dim), shape, df=dof), stats.multivariate_t(np.zeros(dim), np.eye(dim), df=dof)
        assert task.mutual_information == pytest.approx(2*one.entropy() - both.entropy(), abs=1e-9)
        x, y = (v.double().numpy() for v in task.sample(100_000))
        ratio = both.logpdf(np.concatenate([x, y], 1)) - one.logpdf(x) - one.logpdf(y)
        assert ratio.mean() == pytest.approx(task.mutual_information, abs=5*ratio.std()/len(ratio)**.5)


def test_bijections_can_be_undone():
    base = E.correlated_gaussian(1., 4)
    (x, y), (wound, same), (_, tamed) = (t.sample(500) if t is base else t.draw(500, generator("task", base.name, seed=0)) for t in (base, E.spiral(base), E.asinh(base)))
    assert torch.equal(y, same) and not torch.allclose(x, wound)
    torch.testing.assert_close(tamed.sinh(), y)
    torch.testing.assert_close((wound**2).sum(1), (x**2).sum(1))                    # turned, not stretched
    assert E.spiral(base).mutual_information == E.asinh(base).mutual_information == 1.
    with pytest.raises(InputError, match="even"): E.spiral(E.correlated_gaussian(1., 3)).sample(5)


@pytest.mark.parametrize("width, low, high", [(.05, -.05, 1.05), (.5, -.5, 1.5), (2., -2., 3.)])
def test_additive_noise_by_quadrature(width, low, high):
    y = np.linspace(low, high, 400_001)
    p = (np.minimum(1, y + width) - np.maximum(0, y - width)).clip(min=0)/(2*width)
    entropy = np.trapezoid(np.where(p > 0, -p*np.log(np.maximum(p, 1e-300)), 0), y)
    assert E.additive_noise(width).mutual_information == pytest.approx(entropy - math.log(2*width), abs=1e-4)
    x, y = E.additive_noise(width).sample(1000)
    assert (y - x).abs().max() <= width + 1e-6 and 0 <= x.min() and x.max() <= 1


def test_mixtures_and_tables():
    far, near = E.mixture(3, 40.), E.mixture(3, 0.)
    assert far.mutual_information == pytest.approx(math.log(3), abs=1e-4) and near.mutual_information == pytest.approx(0, abs=1e-6) and far.error < 1e-6
    joint = np.array([[.4, .1, .1], [.05, .3, .05]])
    task = E.discrete(joint)
    x, y = task.sample(100_000)
    assert abs((x.T @ y/len(x)).numpy() - joint).max() < .01
    q = joint.sum(0)*joint.sum(1, keepdims=True)
    assert task.mutual_information == pytest.approx((joint*np.log(joint/q)).sum())


def test_samples_follow_their_seed():
    for task in (E.correlated_gaussian(1., 3), E.student_t(.3, 2), E.additive_noise(), E.mixture(), E.discrete([[.5, 0], [0, .5]]), E.spiral(E.correlated_gaussian(1., 2))):
        (a, b), (c, d), (e, f) = task.sample(50, seed=1), task.sample(50, seed=1), task.sample(50, seed=2)
        assert torch.equal(a, c) and torch.equal(b, d) and not (torch.equal(a, e) and torch.equal(b, f))


@pytest.mark.parametrize("name", E.CRITICS)
def test_critics_score_every_pair(name):
    torch.manual_seed(0)
    critic, x, y = E.CRITICS[name](3, 5), torch.randn(4, 3), torch.randn(6, 5)
    if name == "bilinear": torch.nn.init.normal_(critic.weight)
    scores = critic(x, y)
    assert scores.shape == (4, 6)
    for i in range(4):
        for j in range(6): torch.testing.assert_close(critic(x[i:i + 1], y[j:j + 1])[0, 0], scores[i, j], rtol=1e-4, atol=1e-5)
    if name == "hypersphere": assert scores.abs().max() <= 1/.07 + 1e-4


def test_a_bilinear_critic_finds_a_gaussian():
    task = E.correlated_gaussian(1., 3)
    estimate = E.estimate_mi(*task.sample(6000), critic="bilinear", batch=64, steps=1500, learning_rate=1e-2, seeds=(0, 1))
    assert estimate.value == pytest.approx(1., abs=.15) and estimate.spread < .1 and estimate.ceiling > 8
    again = E.estimate_mi(*task.sample(6000), critic="bilinear", batch=64, steps=1500, learning_rate=1e-2, seeds=(0, 1))
    assert again.value == estimate.value and again.history.equals(estimate.history)


@pytest.mark.parametrize("bound", ["cpc", "ml_cpc", "nwj", "dv", "mine", "js", "smile"])
def test_every_bound_trains(bound):
    estimate = E.estimate_mi(*E.correlated_gaussian(1.5, 2).sample(1500), bound=bound, **QUICK | dict(steps=300))
    assert .4 < estimate.value < 2.2 and estimate.bound == bound and estimate.pairs == (900, 300, 300)
    assert any("not a lower bound" in r for r in estimate.remarks) == (bound in ("dv", "mine", "smile"))


def test_independent_columns_hold_nothing():
    x, y = E.correlated_gaussian(0., 3).sample(2000)
    assert abs(E.estimate_mi(x, y, **QUICK).value) < .05


def test_doubts_are_raised_and_warned_of():
    x, y = E.correlated_gaussian(8., 4).sample(2000)
    with pytest.warns(E.EstimateWarning, match="ceiling 2.08"): at_ceiling = E.estimate_mi(x, y, bound="cpc", **QUICK | dict(batch=8, steps=400))
    assert at_ceiling.value < at_ceiling.ceiling and "careful" in str(at_ceiling)
    with pytest.warns(E.EstimateWarning, match="by heart"): E.estimate_mi(*E.correlated_gaussian(.5, 8).sample(200), **QUICK | dict(critic="joint", steps=400, hidden=128, patience=99))
    with pytest.warns(E.EstimateWarning, match="its 50 steps were over"): E.estimate_mi(x, y, **QUICK | dict(steps=50, check=25))
    with pytest.warns(E.EstimateWarning, match="above the truth"): E.estimate_mi(x, y, bound="cpc", alpha=.1, **QUICK)


def test_it_stops_at_the_plateau():
    x, y = E.correlated_gaussian(.2, 1).sample(2000)
    estimate = E.estimate_mi(x, y, **QUICK | dict(steps=5000, check=20, patience=3))
    assert estimate.history.step.max() < 3000 and estimate.seeds.steps[0] < estimate.history.step.max()


def test_columns_of_a_data_frame():
    frame = pd.DataFrame(dict(a=[1., 2., 4.]*40, kind=["x", "y", "z"]*40, flag=[True, False, True]*40))
    columns = E.as_columns(frame)
    assert columns.shape == (120, 5) and columns.mean(0).abs().max() < 1e-6
    assert E.as_columns(np.arange(7.)).shape == (7, 1) and E.as_columns(torch.ones(3, 2)).abs().max() == 0
    estimate = E.estimate_mi(frame[["a"]], frame[["kind"]], **QUICK | dict(batch=24))
    assert estimate.value > .7                                                        # log 3 = 1.1
    for bad in (pd.DataFrame(dict(a=[1., np.nan])), np.array([1., np.inf]), pd.DataFrame()):
        with pytest.raises(InputError): E.as_columns(bad)


def test_self_consistency_finds_a_cheat():
    x, y = E.correlated_gaussian(1., 2).sample(2000)
    assert E.self_consistency(x, y, **QUICK | dict(steps=400)).holds.all()
    cheat = E.self_consistency(x, y, bound="smile", **QUICK | dict(steps=400)).set_index("test")
    assert len(cheat) == 4 and np.isfinite(cheat.value).all()


def test_a_staircase_climbs():
    curve = E.staircase(alpha=.1, stages=(1., 3.), steps=150, batch=32, dim=4, hidden=32, learning_rate=3e-3)
    assert len(curve) == 300 and curve.step.tolist() == list(range(1, 301))
    table = E.plateaus(curve)
    low, high = table["mean"]
    assert low < 1.1 and low + .5 < high < 3
    v = curve.value[curve.mutual_information == 3.].to_numpy()[-38:]
    row = table.iloc[1]
    assert (row.bias, row.sd, row.mse) == pytest.approx((v.mean() - 3, v.std(), ((v - 3)**2).mean()))
    assert curve.equals(E.staircase(alpha=.1, stages=(1., 3.), steps=150, batch=32, dim=4, hidden=32, learning_rate=3e-3))


@pytest.mark.parametrize("options, word", [(dict(bound="infonce"), "infonce"), (dict(critic="deep"), "deep"), (dict(batch=300), "300"), (dict(alpha=-1.), "alpha"), (dict(learning_rate=1e6, bound="nwj"), "learning_rate")])
def test_errors_for_people(options, word):
    x, y = E.correlated_gaussian(1., 2).sample(400)
    with pytest.raises(InputError, match=word): E.estimate_mi(x, y, **QUICK | options)


def command(monkeypatch, capsys, *args):
    from vdistill.cli import main
    monkeypatch.setattr(sys, "argv", ["vdistill", *map(str, args)])
    with pytest.raises(SystemExit) as stop: main()
    return stop.value.code or 0, capsys.readouterr()


def test_the_commands(tmp_path, monkeypatch, capsys):
    x, y = E.correlated_gaussian(1., 1).sample(1000)
    pd.DataFrame(dict(a=x[:, 0], b=y[:, 0], c=[1.] + [None]*999)).to_csv(tmp_path/"t.csv", index=False)
    code, said = command(monkeypatch, capsys, "mi", tmp_path/"t.csv", "--x", "a", "--y", "b", "--steps", 200, "--batch", 32, "--seeds", 2, "--plot", tmp_path/"p.png")
    assert code == 0 and "nats" in said.out and (tmp_path/"p.png").is_file()
    code, said = command(monkeypatch, capsys, "staircase", tmp_path/"s.csv", "--stages", "1,2", "--steps", 20, "--batch", 16, "--alpha", .01)
    assert code == 0 and len(pd.read_csv(tmp_path/"s.csv")) == 40 and set(pd.read_csv(tmp_path/"s-plateaus.csv").alpha) == {.01}
    before = sorted(tmp_path.iterdir())
    for args, word in ((["mi", tmp_path/"t.csv", "--x", "a", "--y", "d"], "no column d"), (["mi", tmp_path/"t.csv", "--x", "a", "--y", "c"], "999 of 1000"), (["mi", tmp_path/"no.csv", "--x", "a", "--y", "b"], "no.csv"),
                       (["mi", tmp_path/"t.csv", "--x", "", "--y", "b"], "--x"), (["mi", tmp_path/"p.png", "--x", "a", "--y", "b"], "p.png"), (["staircase", tmp_path/"s.txt"], ".csv"), (["staircase", tmp_path/"u.csv", "--stages", "two"], "two")):
        code, said = command(monkeypatch, capsys, *args)
        lines = [line for line in said.err.splitlines() if line.strip()]
        assert code == 2 and len(lines) == 1 and lines[0].startswith("error: ") and word in lines[0], said.err
    assert sorted(tmp_path.iterdir()) == before
