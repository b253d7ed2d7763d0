"""A rehearsal of CUDA without a GPU. Fake tensors on `cuda` have a device, a type and a shape, and no values: what mixes devices or asks
the host for a value fails here as it would wait or fail there. Their backward pass needs a real GPU, so that runs on `meta`."""
import contextlib
import dataclasses

import numpy as np
import pytest
import torch
import torch._dynamo # by itself: torch 2.6 would do so among fake tensors, and fail

import vdistill.reid.batches
import vdistill.reid.pixels
import vdistill.reid.parallel
import vdistill.reid.runs
from vdistill.reid.augmentation import Augmentation, Counter
from vdistill.reid.batches import Batch, load_batch
from vdistill.reid.pixels import Pixels
from vdistill.reid.config import CHOICES, METHODS, RECIPES, configure
from vdistill.bench.dispatch import count_operations
from vdistill.reid.evaluation import extract_features
from vdistill.reid.guard import Watch
from vdistill.reid.metric_losses import hetero_centre
from vdistill.reid.objective import METRICS, MUTUAL, objective
from vdistill.reid.parallel import OwnRows
from vdistill.reid.retrieval import pairwise_distances
from vdistill.bench.roofline import meta_step
from vdistill.reid.synthetic import SyntheticDataset
from vdistill.reid.runs import Embedder, build_model
from vdistill.reid.training import build_regulariser

fake_tensors = pytest.importorskip("torch._subclasses.fake_tensor", reason="this torch has no fake tensors") # not public: entered here alone
VERSION = tuple(map(int, torch.__version__.split(".")[:2]))
GPU, CLASSES, BATCH = torch.device("cuda", 0), 395, 64 # as many classes as SYSU-MM01 has in training


@contextlib.contextmanager
def rehearsed():
    "Fake tensors on a GPU that is not there; an operation that this torch cannot fake skips the test."
    if VERSION < (2, 14): pytest.skip("torch 2.6 asks for a GPU behind fake tensors; 2.14 was seen not to")
    with fake_tensors.FakeTensorMode(allow_non_fake_inputs=True):
        try: yield
        except fake_tensors.UnsupportedOperatorException as e: pytest.skip(f"this torch has no fake form of {e}")


@contextlib.contextmanager
def bfloat16(device, precision="auto"):
    "`autocast` for a GPU that is not there: torch's own context switches itself off without one."
    assert torch.device(device).type == "cuda" and precision == "auto"
    before = torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")
    torch.set_autocast_enabled("cuda", True)
    torch.set_autocast_dtype("cuda", torch.bfloat16)
    try: yield
    finally:
        torch.set_autocast_enabled("cuda", before[0])
        torch.set_autocast_dtype("cuda", before[1])
        torch.clear_autocast_cache()


def built(build, *args):
    "A module without values; fake tensors come in afterwards, since not all that builds a module can be faked."
    try:
        with torch.device("meta"): return build(*args).train()
    except RuntimeError as e:
        if "meta" not in str(e): raise
        pytest.skip(f"this torch cannot build a module without values: {e}")


def on_gpu(module):
    "The module, as if it had been moved: parameters and buffers on the fake GPU."
    moved = lambda t: torch.empty_strided(t.size(), t.stride(), dtype=t.dtype, device=GPU)
    for part in module.modules():
        for name, p in part._parameters.items():
            if p is not None: part._parameters[name] = torch.nn.Parameter(moved(p))
        for name, b in part._buffers.items():
            if b is not None: part._buffers[name] = moved(b)
    return module


def images(config, n=BATCH, dtype=torch.float32):
    size = config.data.get("image_size", (64, 32))
    return torch.empty(n, 3, *size, dtype=dtype, device=GPU)


def check(terms):
    "Every term lies on the GPU, in float32."
    wrong = {name: (t.device, t.dtype) for name, t in terms.items() if t.device != GPU or t.dtype != torch.float32 or t.ndim}
    assert not wrong and "loss" in terms, wrong


def asks(function):
    "How often the host waits; what it would be told is not there, so most questions fail at once."
    return count_operations(function).waits


def configured(recipe):
    choice, _, kind = recipe.rpartition("-")
    return configure(kind if kind == "synthetic" else f"{kind}:somewhere", recipe=choice or None, weights=None)


SHIPPED = sorted(file.name.removesuffix(".yaml") for file in RECIPES.iterdir() if file.name.endswith(".yaml"))
LABEL = np.arange(BATCH//4).repeat(4)


def step(config):
    "Network in bfloat16, then the objective, as in `Trainer.train_step`; the waits."
    model = built(build_model, config, CLASSES)
    regulariser = built(build_regulariser, config, model.shared.encoder.out_features, CLASSES)
    def run():
        with bfloat16(GPU): out = model(images(config), images(config), *[torch.Generator().manual_seed(0)]*config.stochastic)
        assert out.shared_visible.v_logits.dtype == torch.bfloat16 and out.shared_visible.v.device == GPU
        check(objective(out, torch.empty(BATCH, dtype=torch.int64, device=GPU), config, regulariser))
    with rehearsed():
        for module in (model, regulariser): on_gpu(module)
        return asks(run)


def test_all_recipes_are_here(): assert len(SHIPPED) >= 15 and {f"{choice}-sysu" for choice in CHOICES} <= set(SHIPPED)


@pytest.mark.parametrize("recipe", SHIPPED)
def test_a_step_of_every_recipe(recipe):
    assert not step(configured(recipe))


@pytest.mark.parametrize("method", METHODS)
def test_a_step_of_every_method(method):
    assert not step(configure("synthetic", method))


def alike(config):
    "What of a configuration decides how a step runs, but for sizes: recipes of one family differ in their schedules."
    return repr(dataclasses.replace(config, dataset="", recipe="", epochs=1, validate_every=1, identities_per_batch=2, images_per_identity=2))


@pytest.mark.parametrize("recipe", sorted({alike(configured(recipe)): recipe for recipe in SHIPPED}.values()))
def test_backward_of_every_family(recipe):
    "On tensors without values and without a device."
    config = configured(recipe)
    size = config.data.get("image_size", (64, 32))
    with torch.device("meta"): batch = Batch(torch.empty(BATCH, 3, *size), torch.empty(BATCH, 3, *size), torch.empty(BATCH, dtype=torch.int64))
    run = meta_step(config)
    assert not asks(lambda: run.gradients(batch))
    assert all(p.grad is not None and p.grad.shape == p.shape for p in run.model.parameters() if p.requires_grad)


@pytest.mark.parametrize("method", METHODS)
def test_types_of_every_method(method):
    "Fake tensors let products of two types pass, so this is done with values: what a network says in bfloat16 is taken, and gives float32."
    config, rng = configure("synthetic", method, features=16, z_features=8, hidden=(12,), width=4), torch.Generator().manual_seed(0)
    model, x, label = build_model(config, 6).train(), torch.rand(2, 12, 3, 32, 16, generator=rng), torch.arange(6).repeat_interleave(2)
    regulariser = build_regulariser(config, model.shared.encoder.out_features, 6)
    with torch.autocast("cpu", torch.bfloat16): out = model(*x, *[rng]*config.stochastic)
    terms = objective(out, label, config, regulariser)
    assert out.shared_visible.v.dtype == torch.bfloat16 and all(t.dtype == torch.float32 and t.isfinite() for t in terms.values())
    terms["loss"].backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in [*model.parameters(), *regulariser.parameters()])


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", [*METRICS, *MUTUAL, "hetero_centre"])
def test_every_metric_loss(name, kind):
    config = configure("synthetic")
    with rehearsed():
        v, i, label = torch.empty(BATCH, 256, dtype=kind, device=GPU), torch.empty(BATCH, 256, dtype=kind, device=GPU), torch.empty(BATCH, dtype=torch.int64, device=GPU)
        losses = METRICS | {key: lambda v, i, y, c, f=f: f(v, i) for key, f in MUTUAL.items()} | dict(hetero_centre=lambda v, i, y, c: hetero_centre(v, i, y))
        assert not asks(lambda: check(dict(loss=losses[name](v, i, label, config))))


@pytest.mark.parametrize("fill", ["mean", "noise"])
@pytest.mark.parametrize("kind", [torch.uint8, torch.float32])
@pytest.mark.parametrize("rng", [lambda: Counter(0, "augmentation", 3), lambda: OwnRows(BATCH//2, 0, "augmentation", 3)])
def test_augmentation(rng, kind, fill):
    "Every change at once, drawn where the images are."
    change = Augmentation(flip=.5, pad=10, grey=.5, exchange=.5, erase=.5, fill=fill)
    with rehearsed():
        x, out = images(configure("synthetic"), dtype=kind), []
        assert not asks(lambda: out.append(change(x, rng())))
        assert out[0].device == GPU and out[0].dtype == kind and out[0].shape == x.shape


@pytest.fixture
def resident(monkeypatch):
    "A data set whose images lie in the memory of the GPU, and how they get there and are fetched."
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device=None: (10**9, 10**9))
    def on_device(array, device):
        assert torch.device(device).type == "cuda"
        array = torch.as_tensor(array)
        return array if array.device == torch.device(device) else torch.empty_like(array, device=device) # by way of pinned memory, which needs a GPU
    for module in (vdistill.reid.pixels, vdistill.reid.batches, vdistill.reid.parallel): monkeypatch.setattr(module, "on_device", on_device)
    dataset = SyntheticDataset((6, 3, 3), 2, (16, 8))
    return dataset, dataset.pixels # drawn before anything is fake


def test_batches_are_gathered_on_the_gpu(resident):
    dataset, _ = resident
    rows, out = dataset.indices("train"), []
    with rehearsed():
        pixels = Pixels(dataset, rows, GPU)
        assert pixels.table.device == GPU and "in the memory of cuda" in repr(pixels)
        change, rng = Augmentation(flip=.5, pad=2, erase=.5), Counter(0, "augmentation", 0)
        assert not asks(lambda: out.append(load_batch(pixels, rows[:8], rows[8:16], LABEL[:8], augment=change, rng=rng, device=GPU)))
        batch = out[0]
        assert all(t.device == GPU for t in batch) and batch.visible.shape == batch.infrared.shape == (8, 3, 16, 8)
        assert batch.visible.dtype == torch.float32 and batch.label.dtype == torch.int64


@pytest.mark.parametrize("recipe", [name for name in SHIPPED if name.endswith(("sysu", "synthetic", "pairs"))])
def test_embedding(recipe, monkeypatch):
    "Features leave the GPU once each, at the end, in float32."
    config = configured(recipe)
    monkeypatch.setattr(vdistill.reid.runs, "autocast", bfloat16)
    model = built(build_model, config, CLASSES)
    with rehearsed():
        embed, x, out = Embedder(on_gpu(model), config, GPU), torch.empty(BATCH, 3, *config.data.get("image_size", (64, 32)), dtype=torch.uint8), []
        for modality in (0, 1):
            waits = asks(lambda: out.append(embed(x, modality)))
            assert waits == {"_to_copy": len(out[-1])}, waits
        assert all(f.device.type == "cpu" and f.dtype == torch.float32 and len(f) == BATCH for features in out for f in features.values())


def test_features_of_a_data_set(resident, monkeypatch):
    dataset, _ = resident
    config = configure("synthetic", data=dict(image_size=[16, 8]))
    monkeypatch.setattr(vdistill.reid.runs, "autocast", bfloat16)
    model = built(build_model, config, CLASSES)
    with rehearsed():
        features = extract_features(dataset, Embedder(on_gpu(model), config, GPU), dataset.indices("test"), 0, batch_size=16)
        assert all(len(f) == len(dataset.indices("test")) and f.device.type == "cpu" for f in features.values())


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("kind", [torch.float32, torch.float64, torch.bfloat16])
def test_distances(metric, kind, monkeypatch):
    "Scoring may ask one question of each side, whether all values are finite; here it is told yes."
    asked = []
    monkeypatch.setattr(torch.Tensor, "__bool__", lambda self: asked.append(self.shape) or True)
    with rehearsed():
        d = pairwise_distances(torch.empty(30, 256, dtype=kind, device=GPU), torch.empty(40, 256, dtype=kind, device=GPU), metric)
    assert d.device == GPU and d.shape == (30, 40) and d.dtype == (torch.float64 if kind == torch.float64 else torch.float32) and asked == [(), ()]


def test_the_watch_does_not_ask():
    with rehearsed():
        watch, p, out = Watch(GPU), torch.nn.Parameter(torch.empty(5, 3, device=GPU)), []
        p.grad = torch.empty(5, 3, device=GPU)
        assert not asks(lambda: out.append(watch.see(torch.empty((), device=GPU), [p], 3)))
        assert out[0].device == watch.count.device == watch.first.device == GPU and out[0].dtype == torch.bool


# ---- what the rehearsal sees

def questions(loss, x):
    return {"item": lambda: loss.item(), "bool": lambda: loss if loss > 0 else x, "mask": lambda: x[x > 0], "list": lambda: x.sum(1).tolist(), "nonzero": lambda: x.nonzero(), "unique": lambda: x.unique(),
            "numpy": lambda: x.numpy(), "another device": lambda: x + torch.zeros(BATCH, 4), "labels": lambda: torch.nn.functional.cross_entropy(x, torch.zeros(BATCH, dtype=torch.int64)), "index": lambda: x.gather(1, torch.zeros(BATCH, 1, dtype=torch.int64))}


@pytest.mark.parametrize("name", questions(None, None))
def test_mistakes_fail(name):
    with rehearsed():
        x = torch.empty(BATCH, 4, device=GPU)
        with pytest.raises(Exception) as e: questions(x.sum(), x)[name]()
        assert not isinstance(e.value, fake_tensors.UnsupportedOperatorException)


def test_copies_to_the_host_are_counted():
    with rehearsed():
        x = torch.empty(BATCH, 4, device=GPU)
        assert asks(lambda: x.cpu()) and asks(lambda: x.to("cpu")) and not asks(lambda: x.double().sum())


@pytest.mark.parametrize("mistake", [lambda loss: loss.cpu(), lambda loss: loss.double(), lambda loss: loss.bfloat16(), lambda loss: loss + loss.item(), lambda loss: (loss + torch.zeros(3)).mean(), lambda loss: loss[None]])
def test_a_mistake_in_one_loss_is_found(mistake, monkeypatch):
    "In the metric term of the recipe for SYSU-MM01."
    right = METRICS["released"]
    def wrong(*args):
        loss = mistake(right(*args))
        return loss
    monkeypatch.setitem(METRICS, "released", wrong)
    config = configured("paper-sysu")
    with pytest.raises(Exception): assert not step(config)
