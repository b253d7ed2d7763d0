"What of a step is counted and timed, its parts, the rows and the verdicts. No speed is asserted."
import dataclasses
import time

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

import vdistill.bench.speed as speed
from vdistill.bench.benchmark import COLUMNS, Step
from vdistill.bench.loops import LoopStep, compare_losses
from vdistill.bench.roofline import Roofline, random_batch, roofline, speed_config, step_floor
from vdistill.bench.speed import GOALS, NOT_MEASURED, PARTS, loop_rate, made_up_sysu, profile_step, reader, recipe_rows, run_speed, step_counts, step_times, verdicts, write_speed
from vdistill.reid.training import Trainer

cuda = [pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")]


def on_gpu(test):
    for mark in cuda: test = mark(test)
    return test


@pytest.mark.parametrize("recipe", ("modern", "paper", "released"))
def test_counts(recipe):
    config = speed_config(recipe, quick=True)
    more = dataclasses.replace(config, images_per_identity=4)
    (ours, loop), (ours_more, loop_more) = ([step_counts(kind(c), random_batch(c)) for kind in (Step, LoopStep)] for c in (config, more))
    assert ours.syncs == 0 and loop.syncs > 100 and loop.operations > ours.operations
    assert ours_more.operations == ours.operations and loop_more.syncs > 1.8*loop.syncs - 50


def test_shares_sum_to_one():
    config = speed_config("modern", quick=True)
    with made_up_sysu(config) as data: read = reader(Trainer(config, dataset=data)); tables = [profile_step(kind(config), read, 1).assign(step=kind.__name__) for kind in (Step, LoopStep)]
    for t in tables:
        assert tuple(t.part) == PARTS and (t.milliseconds > 0).all() and t.share.sum() == pytest.approx(1)
        assert np.allclose(t.share, t.milliseconds/t.milliseconds.sum())


def test_the_front_end_is_no_part_of_the_network(monkeypatch):
    config = speed_config("modern", quick=True)
    step, batch = Step(config), random_batch(config)
    forward = step.model.front.forward
    usual = profile_step(step, lambda: batch, 1).set_index("part").milliseconds
    monkeypatch.setattr(step.model.front, "forward", lambda x: (time.sleep(1), forward(x))[1])
    took = profile_step(step, lambda: batch, 1).set_index("part").milliseconds
    assert took["front end"] >= 1000 and took["network"] - usual["network"] < 1000


def test_reading_goes_on_and_the_profiler_leaves_no_name():
    config = speed_config("modern", quick=True)
    with made_up_sysu(config) as data:
        read, step = reader(Trainer(config, dataset=data)), Step(config)
        batches = [read() for _ in range(12)] # more than one pass
        assert all(b.visible.shape == (8, 3, 64, 32) and 0 <= b.visible.min() and b.visible.max() <= 1 for b in batches)
        profile_step(step, read, 1)
    assert "forward" not in vars(step.model.front)


@pytest.mark.parametrize("cache", (False, True))
def test_the_whole_loop(cache):
    config = speed_config("modern", quick=True)
    with made_up_sysu(config, cache=cache) as data: assert loop_rate(Trainer(config, dataset=data), steps=2, warmup=1) > 0


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
    config = speed_config("modern", "cuda", quick=True)
    with made_up_sysu(config) as data: assert loop_rate(Trainer(config, dataset=data), steps=2, warmup=1) > 0


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
