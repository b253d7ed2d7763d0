"What is counted, every kind of wait, and the loss block: under 2,000 operations and no wait at batch 64."
import ast
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

import vdistill.bench.dispatch
from vdistill.bench.benchmark import random_predictions, triplet_by_anchors
from vdistill.reid.config import METHODS
from vdistill.core import generator
from vdistill.bench.dispatch import count_operations
from vdistill.reid.metric_losses import batch_hard, euclidean_distances, hetero_centre, hetero_centre_triplet, pair_masks, released_sinkhorn, weighted_triplet
from vdistill.reid.objective import objective
from vdistill.reid.training import build_regulariser, configure

x = torch.arange(6.)


def test_counts_by_hand():
    "Operations called by their own names: what torch makes of a line of Python is not ours to assert."
    add, total = torch.ops.aten.add.Tensor, torch.ops.aten.sum.default
    assert count_operations(lambda: total(add(x, x))) == (2, 0, {"add": 1, "sum": 1}, {})
    w = torch.ones(3, requires_grad=True)
    counts = count_operations(lambda: (w*2).sum().backward())
    assert counts.operations == sum(counts.names.values()) > count_operations(lambda: (w*2).sum()).operations and not counts.syncs
    assert count_operations(lambda: [add(x, x) for _ in range(7)]).names == {"add": 7}
    assert count_operations(lambda: None) == (0, 0, {}, {})


def waits(name, *args, **kwargs):
    "What the mode says of an operation of this name, which does nothing."
    operation, mode = lambda *args, **kwargs: None, vdistill.bench.dispatch._Operations()
    operation.overloadpacket = SimpleNamespace(__name__=name)
    mode.__torch_dispatch__(operation, (), args, kwargs)
    assert mode.names == {name: 1}
    return mode.waits


@pytest.mark.parametrize("name", sorted(vdistill.bench.dispatch.WAITS))
def test_every_name_on_the_list_is_a_wait(name): assert waits(name, x) == {name: 1} and not waits(name + "_of_another_kind", x)


@pytest.mark.parametrize("name", ("index", "index_put", "index_put_", "_index_put_impl_"))
def test_an_index_waits_if_it_is_a_mask(name):
    for mask in (x > 2, (x > 2).to(torch.uint8)): assert waits(name, x, [mask]) == waits(name, x, [None, mask]) == {name: 1}
    assert not waits(name, x, [torch.arange(3)]) and not waits(name, x, [None])


def test_repeats_wait_unless_their_sum_is_given():
    assert waits("repeat_interleave", torch.arange(6)) == {"repeat_interleave": 1} and not waits("repeat_interleave", torch.arange(6), output_size=15)


# What brings a value to the host, or a shape that hangs on values, must wait in every version of torch.
WAITING = {"item": lambda: x.sum().item(), "bool": lambda: bool(x.sum() > 0), "float": lambda: float(x[0]), "int": lambda: int(x[0]), "format": lambda: f"{x[0]:.2f}", "nonzero": lambda: x.nonzero(), "argwhere": lambda: torch.argwhere(x),
           "where": lambda: torch.where(x > 2), "mask": lambda: x[x > 2], "mask of rows": lambda: torch.zeros(6, 2)[x > 2], "masked_select": lambda: x.masked_select(x > 2),
           "cpu": lambda: x.cpu(), "to": lambda: x.to("cpu"), "to device": lambda: x.to(torch.device("cpu")), "to keyword": lambda: x.to(device="cpu"), "numpy": lambda: x.numpy(), "tolist": lambda: x.tolist()}


@pytest.mark.parametrize("f", WAITING.values(), ids=WAITING)
def test_waits(f):
    counts = count_operations(f)
    assert counts.syncs >= 1 and counts.syncs == sum(counts.waits.values())


def test_a_copy_from_a_device_waits():
    "Meta stands in for a device: copying out of it is refused, after it was counted."
    mode = vdistill.bench.dispatch._Operations()
    copy, meta = torch.ops.aten._to_copy.default, torch.zeros(2, device="meta")
    with mode, pytest.raises(NotImplementedError): copy(meta, device="cpu")
    with mode: copy(torch.zeros(2), device="meta"); copy(meta, dtype=torch.double)
    assert mode.waits == {"_to_copy": 1} and mode.names["_to_copy"] == 3
    assert waits("copy_", torch.zeros(2), meta) == {"copy_": 1} and not waits("copy_", meta, torch.zeros(2))


def test_counting_changes_nothing_and_ends():
    with pytest.raises(ZeroDivisionError): count_operations(lambda: 1/0)
    out = []
    count_operations(lambda: out.append((x*2).sum().item()))
    assert out == [30.] and count_operations(lambda: torch.ops.aten.add.Tensor(x, x)).operations == 1


def problem(method, size, device="cpu"):
    config, label = configure("synthetic", method), torch.arange(size//4).repeat_interleave(4).to(device)
    out = random_predictions(label, config, 395)
    out = type(out)(*(type(p)(*(None if t is None else t.detach().to(device).requires_grad_() for t in p)) for p in out))
    return objective, out, label, config, build_regulariser(config, config.features, 395).to(device)


def step(method, size, device="cpu"):
    loss, *args = problem(method, size, device)
    return lambda: loss(*args)["loss"].backward()


BLOCKS = [m for m in METHODS if configure("synthetic", m).regulariser in ("distillation", "released", "dml")]


@pytest.mark.parametrize("method", BLOCKS)
def test_the_loss_block_keeps_to_its_budget(method):
    "Cross-entropy, triplet, VSD, VCD, VML and mutual learning, forward and backward, at batch 64."
    counts = count_operations(step(method, 64))
    assert 200 < counts.operations < 2000 and counts.syncs == 0, (counts.operations, counts.waits)


def test_every_term_is_in_the_block():
    loss, *args = problem("full", 64)
    terms = loss(*args)
    assert all(terms[k] > 0 for k in ("classification", "triplet", "mutual_learning", "vsd", "vcd", "vml"))


def test_the_count_does_not_depend_on_the_batch():
    assert count_operations(step("full", 64)).names == count_operations(step("full", 8)).names


def test_the_loss_block_runs_without_values():
    "On meta tensors nobody can ask for one: a second witness, which needs no list of names."
    step("full", 64, "meta")()
    _, out, label, *_ = problem("full", 16, "meta")
    with pytest.raises((NotImplementedError, RuntimeError)): triplet_by_anchors(out.visible.v, out.infrared.v, label, 10.)


def losses(device):
    v, i, a, b = (torch.randn(64, n, generator=generator("losses", k)).to(device).requires_grad_() for k, n in enumerate((32, 32, 40, 40)))
    y, side = torch.arange(16).repeat_interleave(4).to(device), torch.arange(2).repeat_interleave(64).to(device)
    y2 = torch.cat([y, y])
    return dict(hard=lambda: batch_hard(euclidean_distances(torch.cat([v, i])), *pair_masks(y2, side, "across")), weighted=lambda: weighted_triplet(euclidean_distances(torch.cat([v, i])), *pair_masks(y2, side, "across")), centre=lambda: hetero_centre(v, i, y), centres=lambda: hetero_centre_triplet(v, i, y),
                transport=lambda: released_sinkhorn(a, b), smoothed=lambda: F.cross_entropy(a, y, label_smoothing=.1))


@pytest.mark.parametrize("name", losses("cpu"))
def test_the_other_losses_never_wait(name):
    loss = losses("cpu")[name]
    counts = count_operations(lambda: loss().backward())
    assert counts.syncs == 0 and counts.operations < (10_000 if name == "transport" else 300)
    losses("meta")[name]().backward()


def test_a_loop_is_seen():
    "The released form of the triplet: it waits for every anchor."
    _, out, label, *_ = problem("full", 64)
    counts = count_operations(lambda: triplet_by_anchors(out.visible.v, out.infrared.v, label, 10.).backward())
    assert counts.operations > 2000 and counts.syncs >= 2*64


def test_dispatch_knows_nothing_of_this_project():
    tree = ast.parse(Path(vdistill.bench.dispatch.__file__).read_text(encoding="utf-8"))
    assert not [n for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.level]


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_gpu_agrees():
    run = step("full", 64, "cuda")
    run()
    torch.cuda.set_sync_debug_mode("error")
    try: run()
    finally: torch.cuda.set_sync_debug_mode("default")
