"Recipes, the terms that they choose against slow versions, and short runs of each on made-up trees."
import warnings

import pandas as pd
import pytest
import torch
import torch.nn.functional as F
import yaml

from vdistill.reid.fakes import fake_llcm, fake_regdb, fake_sysu
from vdistill.reid.checkpoints import load_state, load_weights
from vdistill.reid.config import CHOICES, METHODS, TrainConfig, configure, read_recipe
from vdistill.core import InputError, generator
from vdistill.reid.data import load_dataset
from vdistill.reid.records import DataWarning
from vdistill.reid.models import ReIDNet, TwoStreamNet
from vdistill.reid.objective import METRICS, MUTUAL, REGULARISERS, objective
from vdistill.reid.runs import build_model, load_run
from vdistill.reid.training import Trainer, build_regulariser, make_optimizer, rate

KINDS = ("sysu", "regdb", "llcm")
SMALL = dict(epochs=2, validate_every=1, identities_per_batch=2, images_per_identity=2, width=4, features=16, z_features=8, hidden=(16,), backbone="conv", attention="none", weights=None, device="cpu") | {"data.image_size": [32, 16]}


def message(function, *args, **options):
    with pytest.raises(InputError) as error: function(*args, **options)
    return str(error.value)


# ---- recipes

@pytest.mark.parametrize("kind", KINDS)
def test_five_recipes_for_each_published_set(kind):
    found = {name: configure(f"{kind}:DIR", recipe=name) for name in CHOICES}
    assert configure(f"{kind}:DIR") == found["paper"]
    for name, c in found.items():
        backbone = "vit_b_16" if name == "modern-vit" else "resnet50"
        assert c.recipe == f"{name}-{kind}" and c.backbone == backbone and c.weights == "imagenet" and not c.hold_out
        assert c.epochs % c.validate_every == 0 and c.data["image_size"] in ([256, 128], [288, 144])
    assert {name: c.method for name, c in found.items()} == dict(paper="full", released="released", baseline="baseline", modern="full") | {"modern-vit": "full"}
    assert found["modern"].network == "two_stream" and found["modern"].erase and found["modern"].exchange
    assert found["released"].views == "grey" and found["released"].mutual == "sinkhorn" and found["released"].regulariser == "released"
    same = {f: v for f, v in vars(found["baseline"]).items() if f not in ("method", "recipe", "headline", "bottleneck")}
    assert all(getattr(found["paper"], f) == v for f, v in same.items()) # nothing but the bottleneck differs


def test_published_settings():
    "What section 3 of the protocol notes says of the paper and of the released code."
    paper, released = configure("sysu:DIR"), configure("sysu:DIR", recipe="released")
    assert (paper.alpha, paper.beta, paper.learning_rate, paper.epochs, paper.identities_per_batch*paper.images_per_identity*2) == (8, 2, 2.6e-4, 300, 64)
    assert (released.epochs, released.identities_per_batch*released.images_per_identity*2, released.alpha, released.beta, released.label_smoothing) == (600, 128, 8, 2, .1)
    for c, warm, decay in ((paper, 10, 200), (released, 10, 210)):
        at = lambda epoch: rate(epoch/c.epochs, c)
        assert at(warm + 1) == 1 and at(decay - 1) == 1 and at(decay + 1) == pytest.approx(.1) and at(1) < .2


def test_a_recipe_of_ones_own(tmp_path):
    file = tmp_path/"mine.yaml"
    file.write_text("base: modern-regdb\nerase: 0\ndata: {image_size: [64, 32]}\n")
    c = configure("regdb:DIR", "vcd", recipe=str(file), epochs=3)
    assert (c.network, c.erase, c.epochs, c.method, c.vsd, c.recipe) == ("two_stream", 0, 3, "vcd", 0, str(file)) and c.data["image_size"] == [64, 32]
    assert configure("csv:x.csv", recipe=str(file)).network == "two_stream"


@pytest.mark.parametrize("text, part", [("- a\n- b\n", "setting: value"), ("epochs: [", "not YAML"), ("epochz: 3", "epochs"), ("base: nobody-sysu", "nobody-sysu"), (None, "no recipe file"), ("epochs: 2.5", "whole number")])
def test_recipes_that_do_not_do(tmp_path, text, part):
    file = tmp_path/"mine.yaml"
    if text is not None: file.write_text(text)
    assert part in message(configure, "synthetic", recipe=str(file))


def test_unknown_recipes():
    assert all(name in message(configure, "sysu:DIR", recipe="modren") for name in CHOICES)
    assert "YAML" in message(configure, "synthetic", recipe="paper")


def test_a_method_replaces_the_recipes():
    for method in METHODS:
        c = configure("sysu:DIR", method, recipe="released")
        assert c.method == method and c.regulariser == TrainConfig(**(dict(method=method) | METHODS[method])).regulariser


@pytest.mark.parametrize("settings, part", [(dict(network="two"), "two_stream"), (dict(metric="triplet"), "batch_hard"), (dict(mutual="js"), "sinkhorn"), (dict(views="gray"), "grey"), (dict(triplet_on="z"), "pooled"),
    (dict(decay_at=(.5, 2.)), "decay_at=2.0"), (dict(decay_at=.5), "a list"), (dict(hold_out=1), "true or false"), (dict(margin=-1.), "margin=-1.0"), (dict(backbone_rate=-1.), "backbone_rate"), (dict(network="two_stream", views="grey"), "network=three")], ids=str)
def test_values_that_do_not_do(settings, part): assert part in message(configure, "synthetic", **settings)


# ---- what is minimised

def batch(n=8, seed=0): return [torch.rand(n, 3, 32, 16, generator=generator(name, seed=seed)) for name in ("visible", "infrared")], torch.arange(n)//2


def network(config, classes=4):
    torch.manual_seed(0)
    return build_model(config, classes).train(), build_regulariser(config, config.features, classes)


CHOSEN = [dict(network=n, metric=m, triplet_on=on, hetero_centre=h) for n in ("three", "two_stream") for m in METRICS for on, h in (("v", 0.), ("pooled", .5))] \
    + [dict(views="grey", metric=m, mutual="sinkhorn", shared_share=.5, method="released") for m in METRICS] + [dict(network="two_stream", method=m) for m in METHODS]

@pytest.mark.parametrize("settings", CHOSEN, ids=str)
def test_every_choice_learns(settings):
    "Finite loss, no dead parameter in network or regulariser, and the loss is the weighted sum of its terms."
    c = configure("synthetic", **(SMALL | settings))
    (model, regulariser), (images, label) = network(c), batch()
    terms = objective(model(*images), label, c, regulariser)
    assert terms["loss"].isfinite()
    terms["loss"].backward()
    for module in (model, regulariser):
        assert not [n for n, p in module.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.isfinite().all() or not p.grad.any())]
    if c.regulariser in ("distillation", "released"):
        total = terms["classification"] + c.triplet*terms["triplet"] + c.alpha*terms["mutual_learning"] + c.hetero_centre*terms.get("hetero_centre", 0) + c.beta*(c.vsd*terms["vsd"] + c.vcd*terms["vcd"] + c.vml*terms["vml"])
        torch.testing.assert_close(terms["loss"], total)
    assert ("hetero_centre" in terms) == (c.hetero_centre > 0)


def test_metric_terms_against_loops():
    v, i, label = (torch.randn(6, 5, generator=generator(n), dtype=torch.double) for n in "vi"), None, torch.arange(6)//2
    v, i = v
    c = configure("synthetic", margin=.4)
    x, who, side = torch.cat([v, i]), label.repeat(2).tolist(), [0]*6 + [1]*6
    d = [[float((a - b).norm()) for b in x] for a in x]
    near = lambda k, same: [d[k][j] for j in range(12) if j != k and (who[j] == who[k]) == same]
    hard = sum(max(0, .4 + max(near(k, True)) - min(near(k, False))) for k in range(12))/12
    assert float(METRICS["batch_hard"](v, i, label, c)) == pytest.approx(hard, rel=1e-5)
    soft = lambda row, sign: sum(w*a for w, a in zip(torch.tensor([sign*a for a in row], dtype=torch.double).softmax(0).tolist(), row))
    weighted = sum(float(F.softplus(torch.tensor(soft(near(k, True), 1) - soft(near(k, False), -1)))) for k in range(12))/12
    assert float(METRICS["weighted"](v, i, label, c)) == pytest.approx(weighted, rel=1e-4)


def test_released_ranking_looks_at_both_kinds_of_pair():
    from vdistill.reid.metric_losses import released_rank
    v, i, label = *(torch.randn(6, 5, generator=generator(n)) for n in "vi"), torch.arange(6)//2
    torch.testing.assert_close(METRICS["released"](v, i, label, None), released_rank(torch.cat([v, i]), label.repeat(2), torch.arange(12) >= 6))
    swapped = METRICS["released"](i, v, label, None)
    torch.testing.assert_close(METRICS["released"](v, i, label, None), swapped)


def test_grey_views_count_every_image_and_its_copy():
    "Against the objective of each view by itself: with equal branches and grey images the two views agree, and nothing is left to distil across."
    c = configure("synthetic", **(SMALL | dict(views="grey", front="pixels", mutual="sinkhorn", alpha=0., metric="released")))
    (model, regulariser), (images, label) = network(c), batch()
    out = model(*images)
    assert all(len(p.v) == 16 for p in out)
    ce = sum(.5*F.cross_entropy(logits, label.repeat(2), label_smoothing=.1) for p in out for logits in (p.v_logits, p.z_logits))
    torch.testing.assert_close(objective(out, label, c, regulariser)["classification"], ce)


# ---- runs

@pytest.fixture(scope="module")
def trees(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trees")
    fake_sysu(folder/"sysu", people=(4, 2, 3), image_size=(16, 8))
    fake_regdb(folder/"regdb", people=12, image_size=(16, 8))
    fake_llcm(folder/"llcm", people=(8, 4), image_size=(16, 8))
    return folder


@pytest.fixture(autouse=True)
def quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DataWarning)
        yield


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("recipe", CHOICES)
def test_each_recipe_trains(trees, tmp_path, kind, recipe):
    "Two epochs with a small backbone: all training identities, no choice, the official protocol at the end."
    trainer = Trainer(configure(f"{kind}:{trees/kind}", recipe=recipe, **SMALL), tmp_path/"run")
    results = trainer.fit()
    dataset = trainer.dataset
    assert set(trainer.train) == set(dataset.indices("train")) | set(dataset.indices("val")) and not len(trainer.validation)
    assert len(trainer.sampler.identities) == dataset.records.identity.iloc[trainer.train].nunique()
    assert trainer.best["epoch"] == 1 and "val_mAP" not in pd.DataFrame(trainer.history)
    headline = set(results[results.headline].feature)
    assert headline == {trainer.config.headline} and results.value.between(0, 100).all()
    assert results.direction.nunique() == (1 if kind == "sysu" else 2) and "valid_queries" in results
    embed, feature = load_run(tmp_path/"run")
    assert feature == trainer.config.headline
    again = embed.score(dataset, headline=feature)
    pd.testing.assert_series_equal(again.value, results.value, rtol=1e-6)
    last = {k: v.cpu() for k, v in trainer.model.state_dict().items()}
    assert all(torch.equal(v, last[k]) for k, v in load_weights(tmp_path/"run").items()) # the last weights, not the best of some


@pytest.mark.parametrize("recipe", ["released", "modern"])
def test_a_cut_run_goes_on(trees, tmp_path, recipe):
    config = configure(f"regdb:{trees/'regdb'}", recipe=recipe, **(SMALL | dict(epochs=3)))
    whole = Trainer(config, tmp_path/"whole")
    whole.fit()

    class Cut(Trainer):
        def train_epoch(self, bar):
            if self.epoch == 2: raise KeyboardInterrupt
            return super().train_epoch(bar)
    with pytest.raises(KeyboardInterrupt): Cut(config, tmp_path/"cut").fit()
    resumed = Trainer.resume(tmp_path/"cut")
    assert resumed.epoch == 2
    resumed.fit()
    assert pd.DataFrame(resumed.history).drop(columns="seconds").equals(pd.DataFrame(whole.history).drop(columns="seconds"))
    assert all(torch.equal(a, b) for a, b in zip(whole.model.state_dict().values(), resumed.model.state_dict().values()))
    assert load_state(tmp_path/"cut")["best"] == load_state(tmp_path/"whole")["best"]


def test_hold_out_is_a_setting(trees):
    kept = Trainer(configure(f"sysu:{trees/'sysu'}", **SMALL, hold_out=True))
    assert set(kept.validation) == set(kept.dataset.indices("val")) and set(kept.train) == set(kept.dataset.indices("train"))
    assert "hold_out=false" in message(Trainer, configure(f"sysu:{trees/'sysu'}", **(SMALL | {"data.validation": False}), hold_out=True))


@pytest.mark.parametrize("network", ["three", "two_stream"])
def test_backbones_learn_at_their_own_rate(network):
    config = configure("synthetic", **(SMALL | dict(network=network, backbone_rate=.1, optimizer="sgd", learning_rate=.2, weight_decay=.5)))
    model = build_model(config, 4)
    groups, names = make_optimizer(model, config).param_groups, {p: n for n, p in model.named_parameters()}
    scale = {names[p]: (g["scale"], g["weight_decay"]) for g in groups for p in g["params"]}
    assert set(scale) == {n for n, p in model.named_parameters() if p.requires_grad} and sum(len(g["params"]) for g in groups) == len(scale)
    for name, (factor, decay) in scale.items():
        assert (factor == .1) == (".backbone." in name or name.startswith("stems")) and (decay == .5) == (model.get_parameter(name).ndim > 1)
    people = load_dataset("synthetic", identities=(12, 6, 6))
    trainer = Trainer(configure("synthetic", **(SMALL | dict(network=network, backbone_rate=0., epochs=1))), dataset=people)
    before = {k: v.clone() for k, v in trainer.model.named_parameters()}
    trainer.fit()
    moved = {k for k, v in trainer.model.named_parameters() if not torch.equal(v, before[k])}
    assert moved and not any(".backbone." in k or k.startswith("stems") for k in moved)


def test_seeds_and_networks():
    "The lean network starts from the seed alone, and old configurations mean what they meant."
    config = configure("synthetic", **(SMALL | dict(network="two_stream")))
    a, b = (build_model(config, 4).state_dict() for _ in range(2))
    assert all(torch.equal(x, y) for x, y in zip(a.values(), b.values()))
    assert isinstance(build_model(config, 4), TwoStreamNet) and isinstance(build_model(configure("synthetic", **SMALL), 4), ReIDNet)
    old = yaml.safe_load("{dataset: synthetic, method: vcd, seed: 3, vsd: 0.0, hidden: [512], schedule: step}")
    c = TrainConfig(**old)
    assert (c.network, c.metric, c.mutual, c.hold_out, c.decay_at, c.shared_share) == ("three", "cross", "kl", True, (.6, .85), 1.)
    assert set(REGULARISERS) >= {"distillation", "released"} and set(MUTUAL) == {"kl", "sinkhorn"} and read_recipe("nothing")[1] == {}


# ---- weights of others, and of earlier runs, as a start

def test_a_run_begins_with_the_weights_of_another(tmp_path):
    people = load_dataset("synthetic", identities=(12, 6, 6))
    settings = SMALL | dict(epochs=1, identities_per_batch=6)
    first = Trainer(configure("synthetic", **settings), tmp_path/"first", people)
    first.fit()
    config = configure("synthetic", "baseline", 1, **settings, start=str(tmp_path/"first"/"model.safetensors"))
    second = Trainer(config, tmp_path/"second", people)
    theirs, ours, fresh = load_weights(tmp_path/"first"), second.model.state_dict(), build_model(config, 12).state_dict()
    backbone = [k for k in ours if ".backbone." in k and "num_batches" not in k]
    assert all(torch.equal(ours[k], theirs[k]) for k in backbone) and not all(torch.equal(fresh[k], theirs[k]) for k in backbone)
    assert "no such" in str(second.started) or second.started.mapped
    second.fit()
    (tmp_path/"first"/"model.safetensors").unlink() # what a resumed run starts from is its own
    assert Trainer.resume(tmp_path/"second", dataset=people).config.start == config.start
    assert "no file" in message(Trainer, configure("synthetic", **settings, start=str(tmp_path/"nothing.pt")), dataset=people)


def test_imported_runs_are_not_resumed(tmp_path):
    from vdistill.reid.checkpoints import save_checkpoint
    from vdistill.reid.runs import start_run
    config = TrainConfig(method="imported", data=dict(identities=(12, 6, 6), image_size=[32, 16]))
    save_checkpoint(start_run(tmp_path/"run", config), build_model(config, 4), dict(best=dict(epoch=-1, feature="v shared", value=-1., scores={})))
    assert "start=" in message(Trainer.resume, tmp_path/"run")
