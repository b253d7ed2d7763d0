"Tiles change nothing, and two processes are one."
import os
import warnings

import pytest
import torch
from hypothesis import given, settings, strategies as st

from vdistill.bounds import BoundWarning, ml_cpc
from vdistill.core import InputError, generator
from vdistill.large_batches import ml_cpc_embedded, ml_cpc_pooled

fuzz = settings(derandomize=True, deadline=None, max_examples=60)


def noise(*shape, key=0, dtype=torch.float64): return torch.randn(*shape, generator=generator("test", key), dtype=dtype)

@pytest.fixture(autouse=True)
def quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", BoundWarning)
        yield


@fuzz
@given(st.integers(2, 9), st.one_of(st.none(), st.integers(1, 20)), st.integers(1, 25), st.integers(0, 9))
def test_tiles_change_nothing(n, k, tile, key):
    a, b, more = noise(n, 3, key=key).requires_grad_(), noise(n, 3, key=key + 10).requires_grad_(), noise(k or 1, 3, key=key + 20).requires_grad_()
    scores = (a @ b.T,) if k is None else ((a*b).sum(1), a @ more.T)
    inputs = [a, b] if k is None else [a, b, more]
    ours, plain = ml_cpc_embedded(a, b, None if k is None else more, alpha=.7, tile=tile), ml_cpc(*scores, alpha=.7)
    torch.testing.assert_close(ours, plain)
    for x, y in zip(torch.autograd.grad(ours, inputs), torch.autograd.grad(plain, inputs)): torch.testing.assert_close(x, y, rtol=1e-9, atol=1e-12)


def test_tiles_refuse_what_does_not_fit():
    for bad in ((torch.zeros(3, 2), torch.zeros(4, 2)), (torch.zeros(3, 2), torch.zeros(3, 2), torch.zeros(5, 3)), (torch.zeros(3), torch.zeros(3))):
        with pytest.raises(InputError): ml_cpc_embedded(*bad)


def _process(rank, size, folder):
    import torch.distributed as dist
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=size)
    scores, negatives = noise(2, 4, key=5)[rank].clone().requires_grad_(), noise(2, 4, 6, key=6)[rank].clone().requires_grad_()
    value = ml_cpc_pooled(scores, negatives, alpha=.3)
    value.backward()
    torch.save((value.detach(), scores.grad, negatives.grad), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_are_one(tmp_path):
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    torch.multiprocessing.spawn(_process, (2, tmp_path), nprocs=2)
    f, g = noise(2, 4, key=5).requires_grad_(), noise(2, 4, 6, key=6).requires_grad_()
    whole = ml_cpc(f.flatten(), g.flatten(0, 1), alpha=.3)
    whole.backward()
    for rank in range(2):
        value, to_f, to_g = torch.load(tmp_path/f"{rank}.pt", weights_only=True)
        torch.testing.assert_close(value, whole.detach())
        torch.testing.assert_close(to_f/2, f.grad[rank])      # averaged over two processes
        torch.testing.assert_close(to_g/2, g.grad[rank])


def test_a_queue_asks_for_no_gradient_and_autocast_changes_nothing():
    a, b, queue = noise(6, 3, dtype=torch.float32).requires_grad_(), noise(6, 3, key=1, dtype=torch.float32), noise(9, 3, key=2, dtype=torch.float32)
    value = ml_cpc_embedded(a, b, queue, tile=4)
    value.backward()
    assert a.grad.isfinite().all() and queue.grad is None
    with torch.autocast("cpu", torch.bfloat16): torch.testing.assert_close(ml_cpc_embedded(a, b, queue, tile=4), value, rtol=1e-6, atol=1e-6)
    for bad in (dict(negatives=queue[:0]), dict(negatives=queue, tile=0)):
        with pytest.raises(InputError, match="at least"): ml_cpc_embedded(a, b, **bad)
