"Critics score pairs; estimates are held out, repeatable, and say when not to be believed."
import math
import sys
import warnings

import pandas as pd
import pytest
import torch

from vdistill import bounds, estimation as E
from vdistill.core import InputError, generator

QUICK = dict(batch=32, steps=150, check=50, seeds=(0,), hidden=32, learning_rate=2e-3)


@pytest.fixture(autouse=True)
def quiet():
    with warnings.catch_warnings():
        for kind in (E.EstimateWarning, bounds.BoundWarning): warnings.simplefilter("ignore", kind)
        yield


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


def test_it_stops_at_the_plateau():
    x, y = E.correlated_gaussian(.2, 1).sample(2000)
    estimate = E.estimate_mi(x, y, **QUICK | dict(steps=5000, check=20, patience=3))
    assert estimate.history.step.max() < 3000 and estimate.seeds.stopped[0] == "plateau" and estimate.remarks == []


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


def test_a_value_far_below_zero_is_never_shown_without_a_word():
    seeds = pd.DataFrame([dict(seed=s, value=v, noise=.1, steps=100, gap=0., stopped="plateau") for s, v in enumerate((0., -70350., 0.))])
    said = E.doubts(fake(value=-23450., seeds=seeds))
    assert any("below zero" in r for r in said)
    few = pd.DataFrame([dict(seed=s, value=v, noise=.1, steps=100, gap=0., stopped="plateau") for s, v in enumerate((-.05, .01, .0))])
    assert not E.doubts(fake(value=-.0133, seeds=few))                                  # about nothing, and as it should scatter
