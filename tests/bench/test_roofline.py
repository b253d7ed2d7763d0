"The floor of a step, by hand and as the peer study counted."
import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from vdistill.bench.roofline import Roofline, floor_of, layer_costs, meta_step, random_batch, roofline, speed_config, step_floor
from vdistill.bench.speed import step_counts


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


def test_our_step_runs_without_values():
    "A second witness that it never waits; at full size."
    config = speed_config("paper", "cuda", attention="none")
    assert step_counts(meta_step(config), random_batch(config, "meta")).syncs == 0
