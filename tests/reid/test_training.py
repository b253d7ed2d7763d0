"Configuration, the objective's terms, runs that repeat, stop and go on, and who reads which identity when."
import copy
import dataclasses
import math

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from PIL import Image

import vdistill.reid.config
import vdistill.reid.training as training
from vdistill.bench.benchmark import write_pairs
from vdistill.reid.checkpoints import check_checkpoint, load_state, load_weights
from vdistill.core import InputError, generator
from vdistill.reid.data import load_dataset
from vdistill.distillation import VariationalDistillation
from vdistill.reid.evaluation import COLUMNS, DIRECTIONS
from vdistill.reid.models import Prediction, Predictions
from vdistill.reid.config import METHODS, missing_weights, read_recipe
from vdistill.reid.runs import Embedder, autocast, build_model, load_run, pick_device, read_config
from vdistill.reid.objective import REGULARISERS, objective
from vdistill.reid.training import TrainConfig, Trainer, configure, make_optimizer, rate

SMALL = dict(width=8, features=24, z_features=16, hidden=(32,), grid=(2, 1), epochs=5, identities_per_batch=8, images_per_identity=1, validate_every=2, device="cpu")
TINY = SMALL | dict(data=dict(identities=(24, 8, 12)))
TERMS = ("classification", "triplet", "mutual_learning", "vsd", "vcd", "vml")


@pytest.fixture(scope="module")
def people(): return load_dataset("synthetic", identities=(24, 8, 12))


def message(function, *args, **options):
    with pytest.raises(InputError) as error: function(*args, **options)
    text = str(error.value)
    assert "\n" not in text and len(text) < 800
    return text


def history(trainer): return pd.DataFrame(trainer.history).drop(columns="seconds")


def same_weights(a, b): return a.keys() == b.keys() and all(torch.equal(a[k].cpu(), b[k].cpu()) for k in a)


# ---- configure

@pytest.mark.parametrize("wrong, right", [("learnign_rate", "learning_rate"), ("epoch", "epochs"), ("idenitties_per_batch", "identities_per_batch"), ("lr_warmup", "warmup"), ("bata", "beta")])
def test_an_unknown_setting_names_near_ones(wrong, right):
    said = message(configure, "synthetic", **{wrong: 1})
    near = said.split("did you mean ")[1].rstrip("?").split(" or ")
    assert repr(wrong) in said and right in near and len(near) <= 3


def test_a_setting_like_no_other_lists_all():
    with pytest.raises(InputError) as error: configure("synthetic", qqq=1)
    said = str(error.value) # as long as the list is
    assert "'qqq'" in said and "\n" not in said and all(f.name in said for f in dataclasses.fields(TrainConfig))


@pytest.mark.parametrize("settings, part", [(dict(method="fool"), "full"), (dict(optimizer="adamax"), "adamw"), (dict(schedule="linear"), "cosine"), (dict(precision="float8"), "bfloat16"), (dict(epochs=0), "epochs=0"),
                                            (dict(width=0), "width=0"), (dict(validate_every=0), "validate_every=0")])
def test_values_that_do_not_do(settings, part): assert part in message(configure, "synthetic", **settings)


@pytest.mark.parametrize("settings", [dict(epochs="ten"), dict(epochs=2.5), dict(epochs=None), dict(width=True), dict(identities_per_batch="8"), dict(hidden=128), dict(grid=4), dict(seed="a"), dict(learning_rate="fast"),
                                      dict(learning_rate=-1.), dict(learning_rate=0.), dict(flip=2.), dict(warmup=-1.), dict(label_smoothing=2.), dict(alpha=-1.), dict(triplet=-1.), dict(beta=-1.), dict(temperature=0.)], ids=str)
def test_types_and_ranges(settings): assert repr(*settings.values()) in message(configure, "synthetic", **settings)


def test_numbers_as_yaml_reads_them():
    c = configure("synthetic", learning_rate="1e-3", beta=2, decay_at=["6e-1", .85])
    assert (c.learning_rate, c.beta, c.decay_at) == (.001, 2., (.6, .85)) and type(c.beta) is float


@pytest.mark.parametrize("settings, part", [({"grid": [4]}, "rows and columns"), ({"grid": [4, 4, 4]}, "rows and columns"), ({"data.seed": 3}, "data.seed"), ({"data.spec": "a"}, "data.spec"), ({"seed": -1}, "seed=-1")])
def test_what_would_fail_later(settings, part): assert part in message(configure, "synthetic", **settings)


def test_a_headline_that_the_network_has_not(people):
    config = configure("synthetic", **SMALL, hold_out=False, headline="z specific+share")
    assert "z specific+shared" in message(Trainer, config, None, people)
    for name in ("v shared", "z specific+shared"): Trainer(dataclasses.replace(config, headline=name), None, people)
    Trainer(configure("synthetic", "baseline", **SMALL, hold_out=False, headline="z shared"), None, people) # without a bottleneck it is that of v
    Trainer(dataclasses.replace(config, hold_out=True), None, people)                                       # validation chooses


def test_a_run_finds_its_dataset_from_any_folder(people, tmp_path, monkeypatch):
    (tmp_path/"day").mkdir()
    monkeypatch.chdir(tmp_path/"day")
    monkeypatch.setenv("HOME", str(tmp_path))
    for where, spec in (("a", "csv:list.csv"), ("b", "csv:~/day/list.csv"), ("c", f"csv:{tmp_path}/x/../day/list.csv")):
        Trainer(configure(spec, **SMALL), tmp_path/where, people)
        assert read_config(tmp_path/where).dataset == f"csv:{tmp_path/'day'/'list.csv'}"
    Trainer(configure("synthetic", **SMALL), tmp_path/"d", people)
    assert read_config(tmp_path/"d").dataset == "synthetic"


def test_methods_set_terms():
    distilling = [m for m in METHODS if configure("synthetic", m).regulariser == "distillation"]
    on = {m: {k for k in ("vsd", "vcd", "vml") if getattr(configure("synthetic", m), k)} for m in distilling}
    assert on == dict(baseline={"vsd", "vcd", "vml"}, bottleneck=set(), full={"vsd", "vcd", "vml"}) | {"z twice": set()} | {m: set(m.split("+")) for m in ("vsd", "vcd", "vml", "vsd+vcd", "vsd+vml", "vcd+vml")}
    assert {configure("synthetic", m).regulariser for m in METHODS} == set(REGULARISERS)
    assert [m for m in METHODS if not configure("synthetic", m).bottleneck] == ["baseline"]


def test_what_wins_over_what(monkeypatch):
    "Recipe under method under settings; `data` is merged key by key."
    recipe = dict(epochs=7, vsd=3., beta=5., data=dict(views=2, window=64))
    monkeypatch.setattr(vdistill.reid.config, "read_recipe", lambda kind, name: (kind, copy.deepcopy(recipe) if kind == "pairs" else {}))
    c = configure("pairs:here", "vcd", 4, beta=2., data=dict(views=3), **{"data.contrast": 5})
    assert (c.epochs, c.vsd, c.vcd, c.vml, c.beta, c.seed, c.method, c.dataset) == (7, 0, 1, 0, 2, 4, "vcd", "pairs:here")
    assert c.data == dict(views=3, window=64, contrast=5)
    assert configure("pairs:here", "vcd", vsd=.5).vsd == .5 and configure("csv:x").epochs == TrainConfig().epochs
    assert recipe["data"] == dict(views=2, window=64)


@pytest.mark.parametrize("kind", ["synthetic", "pairs", "csv"])
def test_recipes_are_made_of_settings(kind):
    name, recipe = read_recipe(kind)
    assert name == (kind if kind != "pairs" else "scratch-pairs" if missing_weights("pretrained", kind) else "pretrained-pairs")
    assert recipe and set(recipe) <= {f.name for f in dataclasses.fields(TrainConfig)}
    c = configure(f"{kind}:x", recipe.get("method", "full"))
    for name, value in recipe.items():
        if name != "data": assert getattr(c, name) == (tuple(value) if isinstance(value, list) else value)
    assert read_recipe("nothing") == ("nothing", {})


def test_configurations_do_not_share():
    a, b = configure("synthetic"), configure("synthetic")
    a.data["x"] = 1
    assert b.data == {} and configure("synthetic").data == {}


# ---- the objective

def predictions(n=8, classes=5, bottleneck=True, dtype=torch.float32):
    rng = generator("out")
    def one():
        v, v_logits, z, z_logits = ((torch.randn(n, k, generator=rng).to(dtype)).requires_grad_() for k in (6, classes, 4, classes))
        return Prediction(v, v_logits, *((z, z_logits) if bottleneck else (None, None)))
    return Predictions(*(one() for _ in range(4)))


LABEL = torch.tensor([0, 0, 1, 1, 2, 2, 3, 4])
SWITCH = dict(triplet="triplet", alpha="mutual_learning", vsd="vsd", vcd="vcd", vml="vml") # setting: term


def terms_of(out, **settings):
    c = TrainConfig(**settings)
    return c, objective(out, LABEL, c, VariationalDistillation(c.vsd, c.vcd, c.vml, c.beta, c.temperature, c.detach))


def total(c, t): return t["classification"] + c.triplet*t["triplet"] + c.alpha*t["mutual_learning"] + c.beta*(c.vsd*t["vsd"] + c.vcd*t["vcd"] + c.vml*t["vml"])


@pytest.mark.parametrize("weights", [{}, dict(triplet=.3, alpha=8., beta=2.), dict(vsd=.5, vcd=3., vml=.1, beta=.7), dict(triplet=0., alpha=0., beta=0.)])
def test_the_loss_is_the_weighted_sum(weights):
    c, t = terms_of(predictions(), **weights)
    torch.testing.assert_close(t["loss"], torch.as_tensor(total(c, t)))
    assert set(t) == {*TERMS, "loss"} and all(x.shape == () and x.dtype == torch.float32 for x in t.values())


@pytest.mark.parametrize("setting, term", SWITCH.items())
def test_one_setting_switches_one_term_off(setting, term):
    out = predictions()
    _, everything = terms_of(out)
    c, t = terms_of(out, **{setting: 0.})
    assert t[term] == 0 and everything[term] > 0 and all(t[k] == everything[k] for k in TERMS if k != term)
    torch.testing.assert_close(t["loss"], torch.as_tensor(total(c, t)))


def test_the_terms_are_what_they_are_called():
    "Each against its definition, by plain loops over softmax tables."
    out = predictions()
    c, t = terms_of(out, label_smoothing=.2)
    p = [{s: getattr(x, f"{s}_logits").detach().double().softmax(1) for s in "vz"} for x in out]
    kl = lambda a, b: sum(float((a[r]*(a[r].log() - b[r].log())).sum()) for r in range(8))/8
    js = lambda a, b: .5*kl(a, (a + b)/2) + .5*kl(b, (a + b)/2)
    ce = lambda a: -sum(float(.8*a[r, LABEL[r]].log() + .2*a[r].log().mean()) for r in range(8))/8
    assert t["classification"].item() == pytest.approx(.5*sum(ce(x[s]) for x in p for s in "vz"), rel=1e-5)
    assert t["mutual_learning"].item() == pytest.approx(kl(p[0]["v"], p[1]["v"]) + kl(p[1]["v"], p[0]["v"]), rel=1e-5)
    assert t["vsd"].item() == pytest.approx(kl(p[0]["v"], p[0]["z"]) + kl(p[1]["v"], p[1]["z"]), rel=1e-5)
    assert t["vcd"].item() == pytest.approx(.5*(kl(p[3]["v"], p[2]["z"]) + kl(p[2]["v"], p[3]["z"])), rel=1e-5)
    assert t["vml"].item() == pytest.approx(js(p[2]["z"], p[3]["z"]), rel=1e-5)


REACH = dict(triplet={f"{b}.{s}" for b in range(4) for s in "vz"}, mutual_learning={"0.v_logits", "1.v_logits"}, vsd={"0.z_logits", "1.z_logits"}, vcd={"2.z_logits", "3.z_logits"}, vml={"2.z_logits", "3.z_logits"},
             classification={f"{b}.{s}_logits" for b in range(4) for s in "vz"})

@pytest.mark.parametrize("term", REACH)
@pytest.mark.parametrize("detach", [True, False])
def test_which_outputs_a_term_pulls(term, detach):
    out = predictions()
    _, t = terms_of(out, detach=detach)
    leaves = {f"{b}.{name}": getattr(p, name) for b, p in enumerate(out) for name in ("v", "v_logits", "z", "z_logits")}
    grads = torch.autograd.grad(t[term], leaves.values(), allow_unused=True)
    reached = {name for name, g in zip(leaves, grads) if g is not None and g.any()}
    teachers = dict(vsd={"0.v_logits", "1.v_logits"}, vcd={"2.v_logits", "3.v_logits"}).get(term, set())
    assert reached == REACH[term] | (set() if detach else teachers)


def test_a_baseline_has_no_distillation():
    out = predictions(bottleneck=False)
    c, t = terms_of(out, bottleneck=False)
    assert t["vsd"] == t["vcd"] == t["vml"] == 0 and t["triplet"] > 0
    torch.testing.assert_close(t["loss"], torch.as_tensor(total(c, t)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_outputs_give_float32_terms(dtype):
    _, t = terms_of(predictions(dtype=dtype))
    assert all(x.dtype == torch.float32 and x.isfinite() for x in t.values())


# ---- schedule, optimiser, device

@pytest.mark.parametrize("schedule", ["cosine", "step"])
@pytest.mark.parametrize("warmup", [0., .05, .5, 1.])
def test_rates(schedule, warmup):
    r = [rate(k/200, TrainConfig(schedule=schedule, warmup=warmup)) for k in range(200)]
    peak = int(np.argmax(r))
    assert all(0 < x <= 1 for x in r) and np.all(np.diff(r[:peak + 1]) >= 0) and np.all(np.diff(r[peak:]) <= 0)
    if schedule == "step" and warmup <= .05: assert [r[k] for k in (100, 140, 190)] == pytest.approx([1, .1, .01])


@pytest.mark.parametrize("optimizer", ["adamw", "adam", "sgd"])
def test_every_parameter_is_optimised_and_norms_do_not_decay(optimizer):
    config = configure("synthetic", **SMALL, optimizer=optimizer, weight_decay=.5)
    model = build_model(config, 5)
    o, names = make_optimizer(model, config), {p: n for n, p in model.named_parameters()}
    decay = {names[p]: g["weight_decay"] for g in o.param_groups for p in g["params"]}
    assert set(decay) == {n for n, p in model.named_parameters() if p.requires_grad} and sum(len(g["params"]) for g in o.param_groups) == len(decay)
    assert all((wd == .5) == (model.get_parameter(n).ndim > 1) for n, wd in decay.items())


def test_initial_weights_follow_from_the_seed_alone():
    config = configure("synthetic", **SMALL)
    torch.manual_seed(5)
    one, state = build_model(config, 5).state_dict(), torch.get_rng_state()
    torch.manual_seed(6)
    assert same_weights(one, build_model(config, 5).state_dict())
    assert not same_weights(one, build_model(dataclasses.replace(config, seed=1), 5).state_dict())
    torch.manual_seed(5)
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("name", ["cuda:99", "gpu", "tpu:0", ""])
def test_devices_that_are_not_there(name): assert "device=" in message(pick_device, name)


# ---- a run

@pytest.fixture(scope="module")
def run(people, tmp_path_factory):
    "One finished run of five epochs, validated after 2, 4 and 5."
    trainer = Trainer(configure("synthetic", "full", **TINY), tmp_path_factory.mktemp("runs") / "full", people)
    return trainer, trainer.fit()


def test_the_best_epoch_is_a_row_of_the_history(run):
    h = pd.DataFrame(run[0].history).set_index("epoch")
    assert h.val_mAP[run[0].best["epoch"]] == run[0].best["value"]


def test_history(run):
    trainer, _ = run
    h = pd.DataFrame(trainer.history)
    assert len(h) == 5 and h.step.tolist() == [3, 6, 9, 12, 15] and h.val_mAP.notna().tolist() == [False, True, False, True, True]
    assert (h[list(TERMS)] > 0).all().all() and np.isfinite(h[[*TERMS, "loss", "lr"]]).all().all() and (h.seconds.diff().dropna() >= 0).all()
    np.testing.assert_allclose(h.loss, total(trainer.config, h), rtol=1e-5)
    assert h.loss.iloc[-1] < h.loss.iloc[0]
    features = [c for c in h if c.startswith("val_mAP ")]
    assert set(features) == {f"val_mAP {s} {b}" for s in "vz" for b in ("shared", "specific+shared")}
    np.testing.assert_array_equal(h.val_mAP, h[features].max(axis=1))
    assert trainer.best["value"] == h.val_mAP.max() == h[f"val_mAP {trainer.best['feature']}"].max()


def test_results(run):
    trainer, results = run
    assert list(results)[:len(COLUMNS)] == list(COLUMNS) and len(results) == 4*2*5
    assert set(results.direction) == set(DIRECTIONS) and (results.split == "test").all() and results.value.between(0, 100).all()
    assert set(results.feature[results.headline]) == {trainer.best["feature"]}
    assert (results.method == "full").all() and (results.seed == 0).all() and results.protocol.nunique() == 1 and "identities" in results.protocol[0]


def test_the_folder(run):
    trainer, results = run
    assert {p.name for p in trainer.run_dir.iterdir()} == {"config.yaml", "history.csv", "results.csv", "model.safetensors", "state.pt", "checksums.json", "seen.json", "previous"}
    assert check_checkpoint(trainer.run_dir) == []
    pd.testing.assert_frame_equal(pd.read_csv(trainer.run_dir / "history.csv"), pd.DataFrame(trainer.history), check_dtype=False)
    pd.testing.assert_frame_equal(pd.read_csv(trainer.run_dir / "results.csv", dtype=dict(commit=str)), results, check_dtype=False) # a commit may look like a number: 3e95110
    config = read_config(trainer.run_dir)
    assert config.data == dict(identities=[24, 8, 12], image_size=[64, 32])
    assert dataclasses.replace(config, data={}) == dataclasses.replace(trainer.config, data={})
    assert yaml.safe_load((trainer.run_dir / "config.yaml").read_text()).keys() == {f.name for f in dataclasses.fields(TrainConfig)}
    assert same_weights(load_weights(trainer.run_dir), trainer.best_weights)
    state = load_state(trainer.run_dir)
    assert state["epoch"] == 5 and state["step"] == 15 and state["best"] == trainer.best


def test_a_run_reads_back(run, people):
    trainer, results = run
    embed, headline = load_run(trainer.run_dir, "cpu")
    assert headline == trainer.best["feature"]
    pd.testing.assert_series_equal(embed.score(people, headline=headline).value, results.value)
    images = people.images(people.indices("test")[:3])
    for name, f in embed(images, 0).items(): assert f.dtype == torch.float32 and f.shape[0] == 3 and torch.equal(f, embed(images, 0)[name])
    alone = [embed(images[k:k + 1], 0) for k in range(3)] # an image's features do not hang on its batch
    for name, f in embed(images, 0).items(): torch.testing.assert_close(f, torch.cat([a[name] for a in alone]), rtol=1e-4, atol=1e-4)
    assert same_weights(embed.model.state_dict(), load_weights(trainer.run_dir)) # nor do they leave a trace


@pytest.mark.parametrize("seed, equal", [(0, True), (1, False)])
def test_a_run_follows_from_its_seed(run, people, seed, equal):
    torch.manual_seed(123); np.random.seed(9) # nothing hangs on the global streams
    again = Trainer(configure("synthetic", "full", seed, **TINY), dataset=people)
    results = again.fit()
    assert history(again).equals(history(run[0])) is equal and same_weights(again.model.state_dict(), run[0].model.state_dict()) is equal
    assert results.value.equals(run[1].value) is equal


def test_the_seed_sets_the_data_too():
    one, two = (Trainer(configure("synthetic", seed=s, **TINY)).dataset.factors for s in (0, 1))
    assert not one.equals(two)


@pytest.mark.parametrize("at", [1, 2, 3])
def test_an_interrupted_run_goes_on_bit_for_bit(run, people, tmp_path, monkeypatch, at):
    "Ctrl-C in the middle of an epoch: batch 1 or 2 of the third, or batch 3 of the fourth; both after the validation of epoch 2."
    whole, results = run
    load, calls = training.load_batch, [0]
    def interrupted(*args, **options):
        calls[0] += 1
        if calls[0] == {1: 7, 2: 8, 3: 12}[at]: raise KeyboardInterrupt
        return load(*args, **options)
    monkeypatch.setattr(training, "load_batch", interrupted)
    with pytest.raises(KeyboardInterrupt): Trainer(whole.config, tmp_path / "run", people).fit()
    monkeypatch.setattr(training, "load_batch", load)
    assert not (tmp_path / "run" / "results.csv").exists() and len(pd.read_csv(tmp_path / "run" / "history.csv")) == 2
    torch.manual_seed(99)
    resumed = Trainer.resume(tmp_path / "run", dataset=people)
    assert resumed.epoch == 2 and resumed.step == 6
    again = resumed.fit()
    assert history(resumed).equals(history(whole)) and again.value.equals(results.value) and resumed.best == whole.best
    for name in ("model", "optimizer"): assert_equal(load_state(tmp_path / "run")[name], load_state(whole.run_dir)[name])
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == (whole.run_dir / "model.safetensors").read_bytes()


def test_weights_that_are_newer_than_the_state(run, people, tmp_path, monkeypatch):
    "Cut off after a validation wrote better weights and before the state was written."
    whole, save, calls = run[0], training.save_state, [0]
    def interrupted(*args):
        calls[0] += 1
        if calls[0] == 2: raise KeyboardInterrupt
        save(*args)
    monkeypatch.setattr(training, "save_state", interrupted)
    with pytest.raises(KeyboardInterrupt): Trainer(whole.config, tmp_path / "run", people).fit()
    monkeypatch.setattr(training, "save_state", save)
    resumed = Trainer.resume(tmp_path / "run", dataset=people)
    assert resumed.epoch == 2 and resumed.fit().value.equals(run[1].value) and history(resumed).equals(history(whole))


@pytest.mark.parametrize("where", ["load_batch", "save_state"])
def test_cut_off_before_the_first_state(run, people, tmp_path, monkeypatch, where):
    original = getattr(training, where)
    def interrupted(*args): raise KeyboardInterrupt
    monkeypatch.setattr(training, where, interrupted)
    with pytest.raises(KeyboardInterrupt): Trainer(run[0].config, tmp_path / "run", people).fit()
    monkeypatch.setattr(training, where, original)
    resumed = Trainer.resume(tmp_path / "run", dataset=people)
    assert resumed.fit().value.equals(run[1].value) and history(resumed).equals(history(run[0]))


def assert_equal(a, b):
    if torch.is_tensor(a): assert torch.equal(a, b)
    elif isinstance(a, dict):
        assert a.keys() == b.keys()
        for k in a: assert_equal(a[k], b[k])
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b)
        for x, y in zip(a, b): assert_equal(x, y)
    else: assert a == b


def test_a_finished_run_resumes_to_its_results(run, people):
    pd.testing.assert_series_equal(Trainer.resume(run[0].run_dir, dataset=people).fit().value, run[1].value)


def test_resuming_opens_the_dataset_of_the_configuration(run): assert Trainer.resume(run[0].run_dir).dataset.records.equals(run[0].dataset.records)


def test_a_folder_with_a_run_is_refused(run, people, tmp_path):
    before = {p: p.read_bytes() for p in run[0].run_dir.rglob("*") if p.is_file()}
    assert "already holds a run" in message(Trainer, run[0].config, run[0].run_dir, people)
    assert {p: p.read_bytes() for p in run[0].run_dir.rglob("*") if p.is_file()} == before
    (tmp_path / "file").touch()
    assert "is a file" in message(Trainer, run[0].config, tmp_path / "file", people)


def test_other_files_in_the_folder_are_left_alone(people, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    Trainer(configure("synthetic", "baseline", **(TINY | dict(epochs=1))), tmp_path, people).fit()
    assert (tmp_path / "notes.txt").read_text() == "mine" and (tmp_path / "results.csv").exists()


@pytest.mark.parametrize("text", ["", "- 1\n", "a: b: c", "epochs: 3\nnot_a_setting: 1\n", "method: fool\n", "\x00"])
def test_damaged_configurations(tmp_path, text):
    (tmp_path / "config.yaml").write_text(text)
    message(read_config, tmp_path)


def test_no_run(tmp_path):
    for function in (read_config, load_run, Trainer.resume): assert str(tmp_path / "none") in message(function, tmp_path / "none")


def test_a_loss_that_explodes_says_so_and_keeps_the_state(people, tmp_path, monkeypatch):
    trainer = Trainer(configure("synthetic", "baseline", **TINY), tmp_path / "run", people)
    objective = training.objective
    monkeypatch.setattr(training, "objective", lambda *a: {k: v * (math.nan if trainer.epoch == 3 else 1) for k, v in objective(*a).items()})
    said = message(trainer.fit)
    assert "no number" in said and "learning rate" in said
    assert load_state(tmp_path / "run")["epoch"] == 2 and all(t.isfinite().all() for t in load_weights(tmp_path / "run").values())


# ---- methods

METHOD_TERMS = dict(baseline=set(), bottleneck=set(), full={"vsd", "vcd", "vml"}, released={"vsd", "vcd"}, vib={"rate"}, ceb={"conditional_rate"},
                    estimated={"kept", "told"}, mib={"agreement", "skl"})


@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains(people, method):
    trainer = Trainer(configure("synthetic", method, **(TINY | dict(epochs=1))), dataset=people)
    results, row = trainer.fit(), trainer.history[0]
    terms = set(row) - {"epoch", "step", "lr", "seconds", "loss", "classification", "triplet", "mutual_learning"} - {k for k in row if k.startswith("val")}
    assert {k for k in terms if row[k] != 0} == (METHOD_TERMS | {"z twice": set()}).get(method, set(method.split("+")))
    assert math.isfinite(row["loss"])
    assert any(f.startswith("z") for f in results.feature) == (method != "baseline")


@pytest.mark.parametrize("settings", [dict(optimizer="sgd", schedule="step"), dict(flip=.5), dict(front="pixels"), dict(images_per_identity=3), dict(precision="bfloat16")])
def test_other_settings_train(people, settings):
    trainer = Trainer(configure("synthetic", "full", **(TINY | dict(epochs=1) | settings)), dataset=people)
    trainer.fit()
    assert np.isfinite(trainer.history[0]["loss"]) and all(p.dtype == torch.float32 for p in trainer.model.parameters())


def test_flips_change_the_run_and_repeat(people):
    losses = [Trainer(configure("synthetic", "baseline", **(TINY | dict(epochs=1, flip=f))), dataset=people).train_epoch(Bar())["loss"] for f in (0., .5, .5)]
    assert losses[0] != losses[1] == losses[2]


class Bar:
    def update(self): pass


# ---- who is read when

class Spy:
    "A dataset that writes down which records are read, and how far the training is."
    def __init__(self, dataset): self.dataset, self.read, self.phase = dataset, [], "start"
    def __getattr__(self, name): return getattr(self.dataset, name)
    def __len__(self): return len(self.dataset)
    def images(self, indices, draw=0):
        self.read.append((self.phase, set(np.asarray(indices).tolist()), draw))
        return self.dataset.images(indices, draw)


def test_each_split_is_read_in_its_time_only(people, monkeypatch):
    spy = Spy(people)
    trainer = Trainer(configure("synthetic", "full", **TINY), dataset=spy)
    assert not spy.read
    for name in ("train_epoch", "validate", "test"):
        def phased(self, *args, name=name, original=getattr(Trainer, name)):
            spy.phase = name
            return original(self, *args)
        monkeypatch.setattr(Trainer, name, phased)
    trainer.fit()
    rows = {split: set(people.indices(split).tolist()) for split in ("train", "val", "test")}
    for phase, split in dict(train_epoch="train", validate="val", test="test").items():
        seen = [indices for p, indices, _ in spy.read if p == phase]
        assert seen and set().union(*seen) <= rows[split]
    assert set(p for p, _, _ in spy.read) == {"train_epoch", "validate", "test"}
    phases = [p for p, _, _ in spy.read]
    assert phases.index("test") == len(phases) - phases.count("test") # once, at the end
    assert set().union(*(i for p, i, _ in spy.read if p == "test")) == rows["test"]
    batches = [indices for p, indices, _ in spy.read if p == "train_epoch"]
    assert len(set(map(frozenset, batches))) == 15 # each epoch is drawn anew
    assert [d for p, _, d in spy.read if p == "train_epoch"] == [e for e in range(5) for _ in range(3)] # fresh views each epoch
    identity = people.records.identity
    assert len(set(identity[list(rows["train"])]) & set(identity[list(rows["val"])])) == 0 == len(set(identity[list(rows["test"])]) & set(identity[list(rows["train"] | rows["val"])]))


def test_what_is_chosen_does_not_hang_on_the_test_identities(people):
    "Other test pixels, same checkpoint and headline."
    class Other(Spy):
        def images(self, indices, draw=0):
            pixels = self.dataset.images(indices, draw).clone()
            pixels[torch.from_numpy(self.records.split.to_numpy()[np.asarray(indices)] == "test")] = 0
            return pixels
    runs = [Trainer(configure("synthetic", "full", **TINY), dataset=d) for d in (people, Other(people))]
    results = [r.fit() for r in runs]
    assert runs[0].best == runs[1].best and same_weights(*(r.best_weights for r in runs)) and not results[0].value.equals(results[1].value)


def falling_scores(monkeypatch):
    "The first validation is the best; nothing is tested."
    scores = iter([50., 40., 30., 20.])
    rows = lambda value: [dict(feature="v shared", direction=d, metric="mAP", value=value) for d in DIRECTIONS]
    monkeypatch.setattr(training, "evaluate", lambda *a, **k: rows(next(scores)))
    monkeypatch.setattr(Embedder, "score", lambda *a, **k: pd.DataFrame(dict(feature=["v shared"], value=[0.])))


def test_the_best_weights_are_tested(people, monkeypatch):
    falling_scores(monkeypatch)
    trainer, kept = Trainer(configure("synthetic", "baseline", **TINY), dataset=people), []
    validate = trainer.validate
    monkeypatch.setattr(trainer, "validate", lambda: (validate(), kept.append({k: v.clone() for k, v in trainer.model.state_dict().items()}))[0])
    trainer.fit()
    assert trainer.best["feature"] == "v shared" and trainer.best["value"] == 50
    assert same_weights(trainer.model.state_dict(), kept[0]) and not same_weights(kept[0], kept[1])


def test_the_best_weights_outlive_an_interruption(people, tmp_path, monkeypatch):
    "Interrupted two validations after the best one."
    falling_scores(monkeypatch)
    trainer = Trainer(configure("synthetic", "baseline", **TINY), tmp_path / "run", people)
    epoch = trainer.train_epoch
    def interrupted(bar):
        if trainer.epoch == 4: raise KeyboardInterrupt
        return epoch(bar)
    trainer.train_epoch = interrupted
    with pytest.raises(KeyboardInterrupt): trainer.fit()
    resumed = Trainer.resume(tmp_path / "run", dataset=people)
    assert resumed.epoch == 4 and resumed.best == trainer.best and same_weights(resumed.best_weights, trainer.best_weights)
    resumed.fit()
    assert same_weights(resumed.model.state_dict(), trainer.best_weights) and same_weights(load_weights(tmp_path / "run"), trainer.best_weights)


# ---- other data

def write_csv_set(folder, splits=(("train", 12), ("val", 4), ("test", 4)), per=2):
    "People as colours with noise, in both modalities."
    rng, rows, person = np.random.default_rng(0), [], 0
    folder.mkdir(parents=True, exist_ok=True)
    for split, n in splits:
        for person in range(person, person + n):
            base = rng.integers(0, 256, (16, 8, 3))
            for modality in ("visible", "infrared"):
                for k in range(per):
                    name = f"{person}_{modality}_{k}.png"
                    noisy = np.clip(base + rng.integers(-20, 20, base.shape), 0, 255).astype(np.uint8)
                    Image.fromarray(noisy if modality == "visible" else noisy[..., 0]).save(folder / name)
                    rows.append((name, f"person {person}", modality, split))
        person += 1
    pd.DataFrame(rows, columns=["path", "identity", "modality", "split"]).to_csv(folder / "set.csv", index=False)
    return folder / "set.csv"


def test_a_manifest_end_to_end(tmp_path):
    file = write_csv_set(tmp_path / "data")
    trainer = Trainer(configure(f"csv:{file}", "full", **(SMALL | dict(epochs=2, identities_per_batch=4))), tmp_path / "run")
    results = trainer.fit()
    assert (results.dataset == "set").all() and len(results) == 40 and trainer.config.data["image_size"] == [64, 32]
    embed, headline = load_run(tmp_path / "run", "cpu")
    data = load_dataset(f"csv:{file}", **read_config(tmp_path / "run").data)
    pd.testing.assert_series_equal(embed.score(data, headline=headline).value, results.value)
    pd.testing.assert_series_equal(Trainer.resume(tmp_path / "run").fit().value, results.value)


def test_pairs_end_to_end(tmp_path):
    write_pairs(tmp_path / "Scenes", 8)
    config = configure(f"pairs:{tmp_path / 'Scenes'}", "full", recipe="scratch", **(SMALL | dict(epochs=2, identities_per_batch=16, data=dict(duplicates=None))))
    trainer = Trainer(config, tmp_path / "run")
    results = trainer.fit()
    assert (results.dataset == "scenes").all() and results.protocol[0].endswith("1 image each, mean of 3 draws")
    assert Trainer.resume(tmp_path / "run").fit().value.equals(results.value)


def test_no_validation_identities(tmp_path):
    file = write_csv_set(tmp_path, (("train", 2), ("test", 2)))
    assert "no validation identities" in message(Trainer, configure(f"csv:{file}", **SMALL, **{"data.validation": 0.}))


@pytest.mark.filterwarnings("ignore:.*one modality only")
@pytest.mark.parametrize("split", ["val", "test"])
def test_nothing_to_search_is_said_at_once(tmp_path, split):
    file = write_csv_set(tmp_path)
    table = pd.read_csv(file)
    table[(table.split != split) | (table.modality == "visible")].to_csv(file, index=False)
    assert split in message(Trainer, configure(f"csv:{file}", **(SMALL | dict(identities_per_batch=4))))


def test_too_few_identities(people): assert "lower identities_per_batch" in message(Trainer, configure("synthetic", **(TINY | dict(identities_per_batch=25))), None, people)


# ---- GPU

@pytest.mark.cuda
def test_a_step_on_a_gpu(people):
    if not torch.cuda.is_available(): pytest.skip("no CUDA device: run on a machine with one")
    config = configure("synthetic", "full", **(TINY | dict(device="cuda", epochs=2)))
    trainer, seen = Trainer(config, dataset=people), []
    trainer.model.shared.v_classifier.register_forward_hook(lambda m, x, y: seen.append((y.dtype, y.device.type, m.weight.dtype)) if m.training else None)
    results = trainer.fit()
    assert set(seen) == {(torch.bfloat16, "cuda", torch.float32)}
    assert np.isfinite(pd.DataFrame(trainer.history).loss).all() and results.device.str.startswith("cuda").all()
    on_cpu = Trainer(dataclasses.replace(config, device="cpu"), dataset=people)
    a, b = on_cpu.train_epoch(Bar())["loss"], trainer.history[0]["loss"]
    assert abs(a - b) < .05*abs(a) # the same batches, weights and objective, in bfloat16


def test_autocast():
    cpu = torch.device("cpu")
    x = torch.randn(3, 3)
    for precision, dtype in (("auto", torch.float32), ("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        with autocast(cpu, precision): assert (x @ x).dtype == dtype


def test_given_labels_reach_the_sampler_and_nothing_else(people):
    options = dict(seed=3, width=8, features=16, z_features=16, hidden=(16,), identities_per_batch=4)
    plain, spoiled = (Trainer(configure("synthetic", "bottleneck", **options, **more), dataset=people) for more in ({}, dict(wrong_labels=.5, missing_labels=.3)))
    n = len(plain.sampler.identities)
    assert len(spoiled.sampler.identities) == n - round(.3*n) and len(spoiled.train) < len(plain.train)
    true = people.records.identity.to_numpy()
    given = spoiled.sampler.identities[spoiled.sampler.label]
    wrong = (given != true[spoiled.train]).mean()
    assert .3 < wrong <= .5 and (plain.sampler.identities[plain.sampler.label] == true[plain.train]).all()
    assert (spoiled.validation == plain.validation).all() and (people.records.identity.to_numpy() == true).all()
    again = Trainer(spoiled.config, dataset=people)
    assert (again.sampler.label == spoiled.sampler.label).all()
