"A step as public code writes it has the losses, and the gradients, of ours; what is counted; the floor by hand. No speed is asserted."
import dataclasses
import time

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import vdistill.bench.speed as speed
from vdistill.bench.benchmark import COLUMNS
from vdistill.core import InputError, generator
from vdistill.reid.metric_losses import euclidean_distances, pair_masks, released_rank, released_sinkhorn, weighted_triplet
from vdistill.bench.speed import (GOALS, NOT_MEASURED, PARTS, LoopStep, Roofline, Step, compare_losses, floor_of, grey_on_host, layer_costs, loop_style_step, made_up_sysu, meta_step, plot_shares,
                            profile_step, random_batch, reader, recipe_rows, roofline, run_speed, settle, speed_config, step_counts, step_floor, step_times, verdicts, whole_loop, write_speed)
from vdistill.reid.training import Trainer

RECIPES = ("modern", "paper", "released", "baseline")
cuda = [pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")]


def on_gpu(test):
    for mark in cuda: test = mark(test)
    return test


@pytest.mark.parametrize("recipe", RECIPES)
def test_both_steps_have_the_same_losses(recipe):
    table = compare_losses(speed_config(recipe, quick=True), rtol=2e-4)
    assert {"classification", "triplet", "loss"} <= set(table.index) and np.isfinite(table.to_numpy()).all()
    assert set(table.index) >= ({"vsd", "vcd"} if recipe != "baseline" else set()) and ("vml" in table.index) == (recipe in ("modern", "paper"))
    if recipe in ("paper", "released"): assert table.ours["mutual_learning"] > 0


def test_the_true_backbone_too(): compare_losses(speed_config("modern"))


@pytest.mark.parametrize("recipe", RECIPES)
def test_both_steps_have_the_same_gradients(recipe):
    config = dataclasses.replace(speed_config(recipe, quick=True), precision="float32")
    batch, ours, loop = random_batch(config), Step(config), LoopStep(config)
    settle(ours.model, lambda: ours.network(batch))
    loop.model.load_state_dict(ours.model.state_dict())
    loop.model.eval()
    for step in (ours, loop): step.gradients(batch)
    for (name, p), q in zip(ours.model.named_parameters(), loop.model.parameters()):
        if p.requires_grad and p.grad is not None: assert (p.grad - q.grad).norm() <= 2e-3*p.grad.norm() + 1e-5, name


@pytest.mark.parametrize("scale", (1, 5, 100))
def test_loops_equal_the_vectorised_losses(scale):
    rng, label, infrared = generator("test", scale), torch.arange(4).repeat_interleave(3).repeat(2), torch.arange(24) >= 12
    x, a, b = torch.randn(24, 16, generator=rng), torch.randn(12, 30, generator=rng), torch.randn(12, 30, generator=rng)
    torch.testing.assert_close(speed.rank_by_anchors(scale*x, label, infrared), released_rank(scale*x, label, infrared), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(speed.weighted_by_anchors(scale*x, label), weighted_triplet(euclidean_distances(scale*x), *pair_masks(label)), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(speed.sinkhorn_by_rounds(a, b), released_sinkhorn(a, b), rtol=1e-3, atol=1e-5)


def test_the_grey_copy():
    images = torch.rand(3, 3, 4, 5, generator=generator("grey"))
    luma = torch.tensor([.2989, .5870, .1140])[:, None, None]
    torch.testing.assert_close(grey_on_host(images), (images*luma).sum(1, keepdim=True).expand_as(images))


def test_another_loss_is_found_out(monkeypatch):
    monkeypatch.setitem(speed.LOOPED_METRICS, "weighted", lambda v, i, label, c: 1.01*speed.weighted_by_anchors(torch.cat([v, i]), label.repeat(2)))
    with pytest.raises(AssertionError, match="same losses"): step_times(speed_config("modern", quick=True))


def test_the_loop_style_is_what_it_says():
    step = loop_style_step("paper", quick=True, precision="bfloat16")
    weights = [m.weight for m in step.model.modules() if isinstance(m, nn.Conv2d)]
    assert all(w.is_contiguous() for w in weights) and {g["foreach"] for g in step.optimizer.param_groups} == {False}
    out = step.network(random_batch(step.config))
    assert out.visible.v.dtype == torch.float32
    with pytest.raises(InputError, match="loop-style"): loop_style_step("modern", quick=True, metric="centres")


@pytest.mark.parametrize("recipe", ("modern", "paper", "released"))
def test_counts(recipe):
    config = speed_config(recipe, quick=True)
    more = dataclasses.replace(config, images_per_identity=4)
    (ours, loop), (ours_more, loop_more) = ([step_counts(kind(c), random_batch(c)) for kind in (Step, LoopStep)] for c in (config, more))
    assert ours.syncs == 0 and loop.syncs > 100 and loop.operations > ours.operations
    assert ours_more.operations == ours.operations and loop_more.syncs > 1.8*loop.syncs - 50


def test_our_step_runs_without_values():
    "A second witness that it never waits; at full size."
    config = speed_config("paper", "cuda", attention="none")
    assert step_counts(meta_step(config), random_batch(config, "meta")).syncs == 0


def two_layers(): return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 6, 1, bias=False))


def test_the_floor_by_hand():
    net, x = two_layers(), torch.rand(2, 3, 8, 8)
    costs = layer_costs(net, lambda: net(x))
    with FlopCounterMode(display=False) as counter: net(x).sum().backward()
    numbers = [2*(2*3*64 + 2*4*64 + 4*27), 8*2*4*64, 2*(2*4*64 + 2*4*16), 3*(2*4*16 + 2*6*16 + 24)]
    flops = [2*2*4*64*27*2, 0, 0, 3*2*6*16*4*2]
    assert (costs.kernels*costs.numbers).tolist() == numbers and (costs.kernels*costs.flops).tolist() == flops
    assert counter.get_total_flops() == sum(flops)
    slow = floor_of(costs, sum(flops), Roofline(1e6, 1e9, 2), 2, parameters=140, state=7)
    assert slow.bytes == 2*sum(numbers) + 4*7*140 and slow.seconds == pytest.approx(slow.bytes/1e6) and slow.rate == pytest.approx(2e6/slow.bytes) and slow.layered == pytest.approx(slow.seconds)
    busy = floor_of(costs, sum(flops), Roofline(1e9, 1e6, 2), 2)
    assert busy.seconds == pytest.approx(sum(flops)/1e6) and busy.layered == pytest.approx((sum(flops)/1e6) + 2*(numbers[1] + numbers[2])/1e9)
    net[0]._forward_hooks.clear() if net[0]._forward_hooks else None
    assert not any(m._forward_hooks for m in net.modules())


def test_the_floor_of_the_recipes():
    "30.6 GFLOP an image for one ResNet-50 at 288x144, 116 for the released recipe, as the peer study counted."
    roof = Roofline(3e12, 8e14, 2)
    modern, released = (step_floor(speed_config(r, "cuda"), roof) for r in ("modern", "released"))
    assert modern.flops/modern.images == pytest.approx(30.6e9, rel=.01) and released.flops/released.images == pytest.approx(116e9, rel=.01)
    assert modern.images == 64 and released.images == 128 and 250e6 < modern.bytes/64 < 350e6
    assert modern.layered >= modern.seconds and modern.seconds == pytest.approx(max(modern.bytes/3e12, modern.flops/8e14))


def test_the_ceilings():
    roof = roofline(copy=2**18, side=64)
    assert roof.element == 4 and 1e6 < roof.bandwidth < 1e14 and 1e6 < roof.rate < 1e16


def test_shares_sum_to_one():
    config = speed_config("modern", quick=True)
    with made_up_sysu(config) as data: read = reader(Trainer(config, dataset=data)); tables = [profile_step(kind(config), read, 1).assign(step=kind.__name__) for kind in (Step, LoopStep)]
    for t in tables:
        assert tuple(t.part) == PARTS and (t.milliseconds > 0).all() and t.share.sum() == pytest.approx(1)
        assert np.allclose(t.share, t.milliseconds/t.milliseconds.sum())
    ax = plot_shares(pd.concat(tables))
    assert len(ax.patches) == 2*len(PARTS) and sum(p.get_width() for p in ax.patches) == pytest.approx(2)


def test_the_front_end_is_no_part_of_the_network(monkeypatch):
    config = speed_config("modern", quick=True)
    step, batch = Step(config), random_batch(config)
    forward = step.model.front.forward
    usual = profile_step(step, lambda: batch, 1).set_index("part").milliseconds
    monkeypatch.setattr(step.model.front, "forward", lambda x: (time.sleep(1), forward(x))[1])
    took = profile_step(step, lambda: batch, 1).set_index("part").milliseconds
    assert took["front end"] >= 1000 and took["network"] - usual["network"] < 1000


def test_reading_goes_on_and_the_profiler_leaves_no_hook():
    config = speed_config("modern", quick=True)
    with made_up_sysu(config) as data:
        read, step = reader(Trainer(config, dataset=data)), Step(config)
        batches = [read() for _ in range(12)] # more than one pass
        assert all(b.visible.shape == (8, 3, 64, 32) and 0 <= b.visible.min() and b.visible.max() <= 1 for b in batches)
        profile_step(step, read, 1)
    assert not step.model.front._forward_hooks and not step.model.front._forward_pre_hooks


@pytest.mark.parametrize("cache", (False, True))
def test_the_whole_loop(cache):
    assert whole_loop("modern", quick=True, cache=cache, steps=2, warmup=1) > 0


def test_rows_are_complete(tmp_path, monkeypatch):
    table = run_speed(quick=True, device="cpu", recipes=("paper",))
    assert tuple(table) == COLUMNS and not table.duplicated(["part", "what"]).any() and set(table.part) == {"roofline", "step", "share", "loop", "goal"}
    waits = table.what.str.endswith("ours: waits")
    assert (table.value[(table.part != "goal") & ~waits] > 0).all() and (table.value[waits] == 0).all() and waits.sum() == 1 and table.what.str.contains("64x32").sum() >= 20
    shares = table[table.part == "share"]
    assert len(shares) == 2*len(PARTS) and shares.value.sum() == pytest.approx(200)
    goals = table[table.part == "goal"]
    assert list(goals.what) == list(GOALS) and goals.value.isna().all() and (goals.against == NOT_MEASURED).all() and (verdicts(table).verdict == "not measured").all()
    write_speed(table, tmp_path/"speed.csv", "cpu")
    assert {"date", "machine", "device", "versions", "commit"} < set(pd.read_csv(tmp_path/"speed.csv"))


def test_verdicts():
    rows = [dict(part="goal", what=name, value=wanted*f) for (name, (wanted, _)), f in zip(GOALS.items(), (1, .99, np.nan, 2))]
    assert verdicts(pd.DataFrame(rows)).verdict.tolist()[:4] == ["reached", "missed", "not measured", "reached"]
    assert (verdicts(pd.DataFrame(rows)).verdict[4:] == "not measured").all()


def test_nothing_global_is_left_behind():
    before = torch.backends.cudnn.allow_tf32, torch.backends.cudnn.enabled, torch.get_num_threads(), torch.get_default_device(), torch.get_float32_matmul_precision()
    config = speed_config("modern", quick=True)
    step_floor(config, Roofline(1e9, 1e9, 4))
    compare_losses(config)
    assert before == (torch.backends.cudnn.allow_tf32, torch.backends.cudnn.enabled, torch.get_num_threads(), torch.get_default_device(), torch.get_float32_matmul_precision())


def test_a_compiler_that_fails_leaves_the_step_whole(monkeypatch):
    config = speed_config("modern", quick=True)
    step, batch = Step(config), random_batch(config)
    monkeypatch.setattr(nn.Module, "compile", lambda self, **_: setattr(self, "_compiled_call_impl", lambda *a, **k: 1/0))
    assert speed.compile_backbones(step, batch) == "not compiled: ZeroDivisionError"
    assert torch.isfinite(step(batch))


@on_gpu
def test_the_machinery_of_the_goals_on_a_gpu():
    "Small and short: that every goal gets a value, not which."
    small = dict(data=dict(image_size=[64, 32]), identities_per_batch=4, images_per_identity=2)
    for recipe in ("modern", "released"):
        config = speed_config(recipe, "cuda", **small)
        table = step_times(config, seconds=.1, compiled=recipe == "modern")
        assert (table["median"] > 0).all() and table.waits[0] == 0 and table.waits[1] > 100
        assert step_floor(config, roofline("cuda", 2**20, 256)).seconds > 0
    assert whole_loop("modern", "cuda", quick=True, steps=2, warmup=1) > 0


@on_gpu
def test_rows_on_a_gpu():
    rows, measured = recipe_rows("modern", roofline("cuda", 2**24, 1024), torch.device("cuda"), quick=True)
    assert {"modern: our step", "modern: share of the roofline", "modern: the whole loop", "modern: our step against the loop-style step"} <= set(measured)
    shares = [r["value"] for r in rows if r["part"] == "share"]
    assert sum(shares) == pytest.approx(200)


@on_gpu
def test_our_step_never_waits_on_a_gpu():
    config = speed_config("modern", "cuda", quick=True)
    step, batch = Step(config), random_batch(config, "cuda")
    step(batch)
    torch.cuda.set_sync_debug_mode("error")
    try: step(batch)
    finally: torch.cuda.set_sync_debug_mode("default")
