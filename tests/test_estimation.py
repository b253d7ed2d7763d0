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
    with pytest.warns(E.EstimateWarning, match="1 of 1 trainings stopped"): E.estimate_mi(x, y, **QUICK | dict(steps=20, check=25))
    with pytest.warns(E.EstimateWarning, match="near the ceiling 4.85.*nats short"): E.estimate_mi(*E.correlated_gaussian(6., 4).sample(8000), bound="cpc", critic="bilinear", batch=128, steps=1500, learning_rate=1e-2, seeds=(0,))
    with pytest.warns(E.EstimateWarning, match="too rare"): E.estimate_mi(*E.correlated_gaussian(8., 4).sample(4000), bound="nwj", critic="bilinear", batch=32, steps=1000, learning_rate=1e-2, seeds=(0,))
    with pytest.warns(E.EstimateWarning, match="above the truth"): E.estimate_mi(x, y, bound="cpc", alpha=.1, **QUICK)


def fake(**changes): # an estimate as `doubts` sees it
    table = pd.DataFrame([dict(seed=s, value=changes.get("value", 1.), noise=.1, steps=100, gap=changes.pop("gap", 0.), stopped=changes.pop("stopped", "plateau")) for s in (0, 1)])
    return E.MIEstimate(**dict(value=1., spread=0., noise=.1, ceiling=9., bound="ml_cpc", critic="joint", alpha=1., batch=128, pairs=(9, 9, 9), seeds=table, history=None, remarks=[]) | changes)


@pytest.mark.parametrize("changes, word", [(dict(), None), (dict(gap=3.), "by heart"), (dict(stopped="steps"), "1 of 2 trainings stopped"), (dict(stopped="diverged"), "infinite"), (dict(value=-.3), "below zero"), (dict(value=8.5), "near the ceiling"),
    (dict(noise=2.), "scatters"), (dict(bound="nwj", ceiling=math.inf, value=6.), "too rare"), (dict(bound="nwj", ceiling=math.inf, value=2.), None), (dict(bound="smile", ceiling=math.inf), "above the truth"), (dict(alpha=.001), "above the truth")])
def test_each_doubt_has_its_reason(changes, word):
    said = E.doubts(fake(**changes))
    assert (not said) if word is None else (len(said) == 1 and word in said[0])


def test_a_slow_climb_is_no_plateau(monkeypatch):
    "Gains below the noise add up: what counts is the gain since the last that counted. A standstill ends it."
    looks = []
    def scripted(network, x, y, aim, batch):
        looks.append(1)
        mean = .01*min(len(looks), 40)
        return mean + .06*torch.tensor([-1., 1.]*4)                                     # eight batches, two passes: an error of about .03
    monkeypatch.setattr(E, "held_out", scripted)
    x, y = E.correlated_gaussian(1., 2).sample(300)
    estimate = E.estimate_mi(x, y, **QUICK | dict(steps=400, check=2, patience=5))
    assert estimate.seeds.stopped[0] == "plateau" and 40 < len(estimate.history) < 60 and estimate.seeds.steps[0] >= 80


def test_batches_hold_no_row_twice():
    stream = E._batches(torch.arange(10), 4, generator("b"))
    passes = [torch.cat([next(stream), next(stream)]).tolist() for _ in range(50)]
    assert all(len(set(p)) == 8 for p in passes) and len({tuple(p) for p in passes}) == 50 and set(sum(passes, [])) == set(range(10))


def test_one_held_out_batch_has_no_noise():
    estimate = E.estimate_mi(*E.correlated_gaussian(1., 2).sample(160), **QUICK)
    assert math.isnan(estimate.noise) and not any("scatters" in r for r in estimate.remarks)


def test_a_stream_of_students_does_not_repeat_itself():
    g, task = generator("stream"), E.student_t(0., 1)
    (a, _), (b, _) = task.draw(5, g), task.draw(5, g)
    lengths = [E.student_t(0., 1, dof=1.).draw(4, generator("s", k))[0].abs().sum().item() for k in range(3)]
    assert not torch.equal(a, b) and len(set(lengths)) == 3
    x = E.correlated_gaussian(10., 1)
    u, v = x.sample(1000)
    assert not torch.equal(u, v) and (u - v).std() == pytest.approx(math.exp(-10.), rel=.2)
    with pytest.raises(InputError, match="float32"): E.correlated_gaussian(20., 1)


def test_it_stops_at_the_plateau():
    x, y = E.correlated_gaussian(.2, 1).sample(2000)
    estimate = E.estimate_mi(x, y, **QUICK | dict(steps=5000, check=20, patience=3))
    assert estimate.history.step.max() < 3000 and estimate.seeds.stopped[0] == "plateau" and estimate.remarks == []


def test_columns_of_a_data_frame():
    frame = pd.DataFrame(dict(a=[1., 2., 4.]*40, kind=["x", "y", "z"]*40, flag=[True, False, True]*40))
    columns = E.as_columns(frame)
    assert columns.shape == (120, 5) and columns.mean(0).abs().max() < 1e-6
    assert E.as_columns(np.arange(7.)).shape == (7, 1) and E.as_columns(torch.ones(3, 2)).abs().max() == 0
    estimate = E.estimate_mi(frame[["a"]], frame[["kind"]], **QUICK | dict(batch=24))
    assert estimate.value > .7                                                        # log 3 = 1.1
    assert E.as_columns(torch.ones(4, 2, dtype=torch.bfloat16)).dtype == torch.float32 and E.as_columns(np.array([True, False])).shape == (2, 1)
    tiny = E.as_columns(1e-13*np.random.default_rng(0).standard_normal(500))
    assert tiny.std().item() == pytest.approx(1, abs=.01) and E.as_columns(np.full(9, 7.1)).abs().max() == 0
    names = pd.DataFrame(dict(id=[f"n{k}" for k in range(60)]))
    for bad in (pd.DataFrame(dict(a=[1., np.nan])), np.array([1., np.inf]), pd.DataFrame(), np.ones((2, 2, 2)), np.float64(3), np.ones(4)*1j, names):
        with pytest.raises(InputError): E.as_columns(bad)


def test_self_consistency_finds_a_cheat():
    x, y = E.correlated_gaussian(1., 2).sample(2000)
    honest = E.self_consistency(x, y, **QUICK | dict(steps=400)).set_index("test").holds
    assert honest.iloc[0] is None and honest.iloc[1:].all()
    cheat = E.self_consistency(x, y, bound="smile", clip=.1, **QUICK | dict(steps=400)).set_index("test")
    assert not cheat.holds.iloc[1:].all()                                               # the clipped ratio makes it not add up
    with pytest.raises(InputError, match="halves"): E.self_consistency(x[:250], y[:250], **QUICK)


def test_a_staircase_climbs():
    curve = E.staircase(alpha=.1, stages=(1., 3.), steps=150, batch=32, dim=4, hidden=32, learning_rate=3e-3)
    assert len(curve) == 300 and curve.stage.tolist() == [0]*150 + [1]*150 and curve.step.tolist() == list(range(1, 301))
    table = E.plateaus(curve)
    low, high = table["mean"]
    assert low < 1.1 and low + .5 < high < 3
    v = curve.value[curve.mutual_information == 3.].to_numpy()[-38:]
    row = table.iloc[1]
    assert (row.bias, row.sd, row.mse) == pytest.approx((v.mean() - 3, v.std(), ((v - 3)**2).mean()))
    assert curve.equals(E.staircase(alpha=.1, stages=(1., 3.), steps=150, batch=32, dim=4, hidden=32, learning_rate=3e-3))


@pytest.mark.parametrize("options, word", [(dict(bound="infonce"), "infonce"), (dict(critic="deep"), "deep"), (dict(batch=300), "300"), (dict(alpha=-1.), "alpha"), (dict(learning_rate=1e6, bound="nwj"), "learning_rate"), (dict(steps=0), "steps"), (dict(check=0), "check"), (dict(batch=1), "batch"), (dict(batch=2.5), "batch"), (dict(seeds=()), "seed"), (dict(device="cuda:99"), "cuda:99"), (dict(critic="bilinear"), "hidden")])
def test_errors_for_people(options, word):
    x, y = E.correlated_gaussian(1., 2).sample(400)
    with pytest.raises(InputError, match=word): E.estimate_mi(x, y, **QUICK | options)


def command(monkeypatch, capsys, *args):
    from vdistill.cli.main import main
    monkeypatch.setattr(sys, "argv", ["vdistill", *map(str, args)])
    with pytest.raises(SystemExit) as stop: main()
    return stop.value.code or 0, capsys.readouterr()


def test_the_commands(tmp_path, monkeypatch, capsys):
    x, y = E.correlated_gaussian(1., 1).sample(1000)
    pd.DataFrame(dict(a=x[:, 0], b=y[:, 0], c=[1.] + [None]*999)).to_csv(tmp_path/"t.csv", index=False)
    code, said = command(monkeypatch, capsys, "mi", tmp_path/"t.csv", "--x", "a,a", "--y", "b", "--steps", 200, "--alpha", 0, "--batch", 32, "--seeds", 2, "--plot", tmp_path/"p.png")
    assert code == 0 and "nats" in said.out and (tmp_path/"p.png").is_file()
    code, said = command(monkeypatch, capsys, "staircase", tmp_path/"s.csv", "--stages", "1,2", "--steps", 20, "--batch", 16, "--alpha", .01)
    assert code == 0 and len(pd.read_csv(tmp_path/"s.csv")) == 40 and set(pd.read_csv(tmp_path/"s-plateaus.csv").alpha) == {.01}
    before = sorted(tmp_path.iterdir())
    for args, word in ((["mi", tmp_path/"t.csv", "--x", "a", "--y", "d"], "no column d"), (["mi", tmp_path/"t.csv", "--x", "a", "--y", "c"], "999 of 1000"), (["mi", tmp_path/"no.csv", "--x", "a", "--y", "b"], "no.csv"),
                       (["mi", tmp_path/"t.csv", "--x", "", "--y", "b"], "--x"), (["mi", tmp_path/"p.png", "--x", "a", "--y", "b"], "p.png"), (["mi", tmp_path/"t.csv", "--x", "a", "--y", "b", "--plot", tmp_path/"p.xyz"], "p.xyz"), (["mi", tmp_path/"t.csv", "--x", "a", "--y", "b", "--steps", 0], "steps=0"), (["mi", tmp_path/"t.csv", "--x", "a", "--y", "b", "--seeds", 0], "seeds"),
                       (["staircase", tmp_path/"u.csv", "--critic", "deep"], "deep"), (["staircase", tmp_path/"u.csv", "--steps", 0], "steps=0"), (["staircase", tmp_path/"s.txt"], ".csv"), (["staircase", tmp_path/"u.csv", "--stages", "two"], "two")):
        code, said = command(monkeypatch, capsys, *args)
        lines = [line for line in said.err.splitlines() if line.strip()]
        assert code == 2 and len(lines) == 1 and lines[0].startswith("error: ") and word in lines[0], said.err
    assert sorted(tmp_path.iterdir()) == before


# -- columns far from zero, and rows that repeat

NOW = 1_732_870_000_000_000_000 # nanoseconds since 1970
SECONDS = np.random.default_rng(0).uniform(0, 4, 3000)


def stamps(): # the same moments, as people have them
    ns = (SECONDS*1e9).astype(np.int64)
    exact = ns/1e9
    return exact, {"int64": ns + NOW, "uint64": (ns + NOW).astype(np.uint64), "top of uint64": np.uint64(2**64 - 1) - ns.astype(np.uint64), "tensor": torch.from_numpy(ns + NOW), "big-endian": (ns + NOW).astype(">i8"), "Int64": pd.array(ns + NOW, "Int64"), "datetime64": pd.Series(pd.to_datetime(ns + NOW)),
                   "array of datetime64": (ns + NOW).astype("datetime64[ns]"), "with a zone": pd.Series(pd.to_datetime(ns + NOW, utc=True)), "Timestamps": [pd.Timestamp(int(n)) for n in ns + NOW], "timedelta": pd.Series(pd.to_timedelta(ns)), "object": np.array((ns + NOW).tolist(), dtype=object)}


@pytest.mark.parametrize("kind", stamps()[1])
def test_stamps_are_what_they_are_in_seconds(kind):
    exact, given = stamps()
    sign = -1 if kind == "top of uint64" else 1
    torch.testing.assert_close(E.as_columns(pd.Series(given[kind]) if kind == "Int64" else given[kind]), sign*E.as_columns(exact), rtol=0, atol=1e-6)


def test_what_is_constant_is_decided_by_the_numbers_themselves():
    seconds = E.as_columns(SECONDS)
    for far in (E.as_columns(SECONDS*1e9 + NOW), E.as_columns(torch.from_numpy(SECONDS*1e9 + NOW)), E.as_columns(SECONDS + 1e12)):
        torch.testing.assert_close(far, seconds, rtol=0, atol=1e-3)                     # as exactly as float64 holds them
    for scale in (1e-300, 1e-200, 1e-9, 1e9, 1e200, 4e307): torch.testing.assert_close(E.as_columns(SECONDS*scale), seconds, rtol=0, atol=1e-5)
    wide = np.array([-1.7e308, 1.7e308]*10)
    assert E.as_columns(wide).abs().max() == 1
    rounding = np.array([.1 + .2, .3]*20)
    for constant in (rounding, np.full(9, 7.1), np.full(9, NOW), np.zeros(9), np.full(9, 1e-310), np.array([2**63, 2**63], np.uint64)): assert E.as_columns(constant).abs().max() == 0
    assert E.as_columns(np.array([2**62, 2**62 + 1])).abs().max() == 1                  # whole numbers are exact
    for bad, word in ((pd.Series(pd.to_datetime([NOW, None])), "1 missing"), (np.array(["NaT", "2020-01-01"], "datetime64[s]"), "1 missing"), (np.ones(3)*1j, "complex"), ([[1, 2], [3]], "missing")):
        with pytest.raises(InputError, match=word): E.as_columns(bad)


def test_stamps_have_the_information_of_seconds():
    y = SECONDS + .5*np.random.default_rng(1).standard_normal(3000)
    values = [E.estimate_mi(x, y, **QUICK | dict(steps=300)).value for x in (SECONDS, (SECONDS*1e9).astype(np.int64) + NOW)]
    assert values[0] > .5 and values[1] == pytest.approx(values[0], abs=.01)


def test_a_value_far_below_zero_is_never_shown_without_a_word():
    seeds = pd.DataFrame([dict(seed=s, value=v, noise=.1, steps=100, gap=0., stopped="plateau") for s, v in enumerate((0., -70350., 0.))])
    said = E.doubts(fake(value=-23450., seeds=seeds))
    assert any("below zero" in r for r in said)
    few = pd.DataFrame([dict(seed=s, value=v, noise=.1, steps=100, gap=0., stopped="plateau") for s, v in enumerate((-.05, .01, .0))])
    assert not E.doubts(fake(value=-.0133, seeds=few))                                  # about nothing, and as it should scatter


def independent(rows, seed=0): return np.random.default_rng(seed).standard_normal((2, rows))


def test_repeated_rows_are_on_one_side():
    x, y = np.tile(independent(60), 20)
    with pytest.warns(E.EstimateWarning, match="1140 of 1200 rows repeat an earlier one.*60 rows"): estimate = E.estimate_mi(x, y, **QUICK | dict(batch=128, steps=600))
    assert abs(estimate.value) < .35 and sum(estimate.pairs) == 60 and estimate.batch == 12 and "careful: 1140 of 1200" in str(estimate)
    frame = pd.DataFrame(dict(x=x, kind=np.where(y > 0, "high", "low")))
    with pytest.warns(E.EstimateWarning, match="60 rows"): mixed = E.estimate_mi(frame[["x"]], frame[["kind"]], **QUICK | dict(steps=600))
    assert abs(mixed.value) < .35                                                       # by the numbers of one side alone


def test_rows_repeated_in_part_as_by_a_join():
    x, y = independent(2000)
    twice = np.concatenate([np.arange(2000), np.arange(1000)])
    with pytest.warns(E.EstimateWarning, match="1000 of 3000 rows"): joined = E.estimate_mi(x[twice], y[twice], **QUICK)
    assert joined.pairs == (1200, 400, 400) and abs(joined.value) < .05
    assert joined.batch == 32 and not E.estimate_mi(x, y, **QUICK).remarks[:-1]
    checks = E.self_consistency(x[twice], y[twice], **QUICK)
    assert checks.value.iloc[0] == pytest.approx(joined.value, abs=.02)


def test_rows_that_repeat_by_right_are_kept():
    "Counts of discrete things: every row is a sample."
    rng = np.random.default_rng(0)
    x = rng.integers(0, 2, 10_000)
    y = np.where(rng.random(10_000) < .9, x, 1 - x)
    truth = math.log(2) + .9*math.log(.9) + .1*math.log(.1)
    for a, b in ((x, y), (x.astype(bool), y.astype(bool)), (np.array([.1, .7])[x], np.array([-3.3, 12.])[y])):
        estimate = E.estimate_mi(a, b, **QUICK)
        assert sum(estimate.pairs) == 10_000 and estimate.value == pytest.approx(truth, abs=.03) and not any("repeat" in r for r in estimate.remarks)
    codes, towns = rng.integers(0, 60, 4000), rng.integers(0, 40, 4000)
    for a, b, why in ((rng.poisson(20, 5000), rng.poisson(3, 5000), "counts"), (rng.integers(18, 90, 4000), rng.integers(0, 2, 4000), "ages"), (codes, 7*codes % 60, "codes, one to one"),
                      (pd.Series([f"town {i}" for i in towns]), rng.uniform(1e3, 1e6, 40)[towns], "inhabitants of towns"),
                      (rng.uniform(1, 99, 40).round(2)[rng.integers(0, 40, 4000)], rng.uniform(1, 99, 30).round(2)[rng.integers(0, 30, 4000)], "prices"),
                      (rng.standard_normal(4000).round(1), rng.standard_normal(4000).round(1), "one decimal"),
                      (rng.standard_normal(4000).round(2), rng.standard_normal(4000).round(2), "two decimals"),
                      (gaps(rng, 5000), gaps(rng, 5000), "many zeros"), (*[gaps(rng, 5000)]*2, "many zeros, twice the same"),
                      (rng.standard_normal(5000).clip(0), rng.standard_normal(5000).clip(0), "cut off at zero"),
                      (*[rng.zipf(1.5, 5000).clip(0, 5_000)]*2, "a long tail of whole numbers, twice the same"),
                      (*[rng.lognormal(4, 1, 5000).round()]*2, "sizes"), (np.array([.3, 1.7])[x], np.array([.3, 1.7])[x], "a coin, twice the same")):
        assert len(E.distinct_rows(E.as_columns(a), E.as_columns(b))) == len(a), why


def gaps(rng, n): return np.where(rng.random(n) < .9, 0., rng.standard_normal(n))


@pytest.mark.parametrize("rows", [np.random.default_rng(0).integers(0, 100, (2, 60)), independent(60).round(1), independent(60)], ids=["whole", "decimal", "normal"])
def test_copies_of_a_whole_table(rows):
    "As many rows as were there before, whatever the numbers are: also where some of them were equal already."
    for times in (2, 20):
        kept = E.distinct_rows(*map(E.as_columns, np.tile(rows, times)))
        assert kept.tolist() == list(range(60))


def test_zeros_are_no_copies():
    "Independent, and it stays so: of rows without the frequent one some are no sample."
    rng = np.random.default_rng(0)
    estimate = E.estimate_mi(gaps(rng, 4000), gaps(rng, 4000), **QUICK)
    assert sum(estimate.pairs) == 4000 and abs(estimate.value) < .05
