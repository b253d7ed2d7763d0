"A step as public code writes it has the losses, and the gradients, of ours."
import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from vdistill.bench import loops
from vdistill.bench.benchmark import Step
from vdistill.bench.loops import LoopStep, compare_losses, grey_on_host, settle
from vdistill.bench.roofline import random_batch, speed_config
from vdistill.bench.speed import step_times
from vdistill.core import InputError, generator
from vdistill.reid.metric_losses import euclidean_distances, pair_masks, released_rank, released_sinkhorn, weighted_triplet

RECIPES = ("modern", "paper", "released", "baseline")


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
    torch.testing.assert_close(loops.rank_by_anchors(scale*x, label, infrared), released_rank(scale*x, label, infrared), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(loops.weighted_by_anchors(scale*x, label), weighted_triplet(euclidean_distances(scale*x), *pair_masks(label)), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(loops.sinkhorn_by_rounds(a, b), released_sinkhorn(a, b), rtol=1e-3, atol=1e-5)


def test_the_grey_copy():
    images = torch.rand(3, 3, 4, 5, generator=generator("grey"))
    luma = torch.tensor([.2989, .5870, .1140])[:, None, None]
    torch.testing.assert_close(grey_on_host(images), (images*luma).sum(1, keepdim=True).expand_as(images))


def test_another_loss_is_found_out(monkeypatch):
    monkeypatch.setitem(loops.LOOPED_METRICS, "weighted", lambda v, i, label, c: 1.01*loops.weighted_by_anchors(torch.cat([v, i]), label.repeat(2)))
    with pytest.raises(AssertionError, match="same losses"): step_times(speed_config("modern", quick=True))


def test_the_loop_style_is_what_it_says():
    step = LoopStep(speed_config("paper", quick=True, precision="bfloat16"))
    weights = [m.weight for m in step.model.modules() if isinstance(m, nn.Conv2d)]
    assert all(w.is_contiguous() for w in weights) and {g["foreach"] for g in step.optimizer.param_groups} == {False}
    out = step.network(random_batch(step.config))
    assert out.visible.v.dtype == torch.float32
    with pytest.raises(InputError, match="loop-style"): LoopStep(speed_config("modern", quick=True, metric="centres"))
