"The triplet against a loop, over scales, types and batches without a triplet; mutual learning against scipy."
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings, strategies as st
from scipy.special import rel_entr, softmax

from vdistill.core import InputError, generator
from vdistill.identity_losses import cross_modal_triplet, hardest, mutual_learning, unit_distances

fuzz = settings(derandomize=True, deadline=None, max_examples=100)


def triplet_by_loops(v, i, yv, yi, s):
    v, i = ([x / max(np.linalg.norm(x), 1e-12) for x in side] for side in (v, i))
    sides = []
    for a, b, ya, yb in ((v, i, yv, yi), (i, v, yi, yv)):
        terms = []
        for x, y in zip(a, ya):
            right, wrong = ([np.linalg.norm(x - w) for w, z in zip(b, yb) if (z == y) == kind] for kind in (True, False))
            if right and wrong: terms.append(np.logaddexp(0, s * (max(right) - min(wrong))))
        sides.append(np.mean(terms) if terms else 0.)
    return np.mean(sides)


@st.composite
def batches(draw):
    n, m, people = draw(st.integers(1, 9)), draw(st.integers(1, 9)), draw(st.integers(1, 5))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    return rng.normal(size=(n, 4)), rng.normal(size=(m, 4)), rng.integers(0, people, n), rng.integers(0, people, m)


@fuzz
@given(batches(), st.floats(.1, 50), st.floats(-6, 6))
def test_triplet_equals_the_loop_at_any_scale(batch, s, power):
    v, i, yv, yi = batch
    ours = cross_modal_triplet(*map(torch.tensor, (v * 10**power, i, yv, yi)), sharpness=s)
    np.testing.assert_allclose(ours, triplet_by_loops(v, i, yv, yi, s), rtol=1e-7, atol=1e-12)


@fuzz
@given(batches())
def test_the_order_of_a_batch_has_no_influence(batch):
    v, i, yv, yi = map(torch.tensor, batch)
    p, q = torch.randperm(len(v), generator=generator("p")), torch.randperm(len(i), generator=generator("q"))
    torch.testing.assert_close(cross_modal_triplet(v[p], i[q], yv[p], yi[q]), cross_modal_triplet(v, i, yv, yi))
    torch.testing.assert_close(cross_modal_triplet(i, v, yi, yv), cross_modal_triplet(v, i, yv, yi))


@pytest.mark.parametrize("power", range(-6, 7))
def test_scale_in_float32(power):
    rng, label = generator("scale"), torch.arange(6).repeat_interleave(3)
    v, i = torch.randn(18, 64, generator=rng), torch.randn(18, 64, generator=rng)
    def run(scale):
        x, y = (v * scale).requires_grad_(), (i * scale).requires_grad_()
        loss = cross_modal_triplet(x, y, label)
        return loss, *(g * scale for g in torch.autograd.grad(loss, (x, y)))
    torch.testing.assert_close(run(10.**power), run(1.), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("scale", [.01, 1., 100.])
def test_half_precision(dtype, scale):
    "What autocast hands over: half features, a float32 loss, finite gradients."
    rng, label = generator("half"), torch.arange(8).repeat_interleave(4)
    v, i = ((torch.randn(32, 256, generator=rng) * scale).to(dtype).requires_grad_() for _ in range(2))
    loss = cross_modal_triplet(v, i, label)
    loss.backward()
    assert loss.dtype == torch.float32 and v.grad.dtype == dtype and v.grad.isfinite().all() and i.grad.isfinite().all()
    torch.testing.assert_close(loss, cross_modal_triplet(v.detach().float(), i.detach().float(), label))
    assert 0 < v.grad.abs().max()


def test_gradient_by_differences():
    rng = generator("differences")
    v, i = (torch.randn(n, 3, generator=rng, dtype=torch.float64).requires_grad_() for n in (5, 6))
    yv, yi = torch.tensor([0, 0, 1, 1, 2]), torch.tensor([0, 1, 1, 2, 2, 3])
    assert torch.autograd.gradcheck(lambda a, b: cross_modal_triplet(a, b, yv, yi, 2.), (v, i))


# ---- batches in which something is missing

one, two = torch.eye(4)[:3], torch.eye(4)[1:]
DEGENERATE = {"one identity": (one, two, [0, 0, 0], [0, 0, 0]), "no common identity": (one, two, [0, 1, 2], [3, 4, 5]), "one image a side, same": (one[:1], two[:1], [0], [0]),
              "one image a side, other": (one[:1], two[:1], [0], [1])}

@pytest.mark.parametrize("v, i, yv, yi", DEGENERATE.values(), ids=DEGENERATE.keys())
def test_no_triplet_costs_nothing(v, i, yv, yi):
    v, i = v.clone().requires_grad_(), i.clone().requires_grad_()
    loss = cross_modal_triplet(v, i, torch.tensor(yv), torch.tensor(yi))
    loss.backward()
    assert loss == 0 and not v.grad.any() and not i.grad.any()


def test_an_anchor_without_a_triplet_is_left_out():
    "The third visible image has no partner: it still serves as a negative, and does not thin out the mean."
    v, i = torch.randn(3, 4, generator=generator(1)), torch.randn(2, 4, generator=generator(2))
    d = unit_distances(v, i)
    a, b = F.softplus(10 * (d[0, 0] - d[0, 1])), F.softplus(10 * (d[1, 1] - d[1, 0]))
    torch.testing.assert_close(hardest(d, torch.tensor([[True, False], [False, True], [False, False]]), 10.), (a + b) / 2)


@pytest.mark.parametrize("kind", ["equal", "unit", "zero", "opposite"])
def test_coinciding_features_keep_finite_gradients(kind):
    label = torch.tensor([0, 0, 1, 1])
    v = dict(equal=torch.ones(4, 8), unit=torch.eye(8)[:1].repeat(4, 1), zero=torch.zeros(4, 8), opposite=torch.ones(4, 8))[kind].requires_grad_()
    i = (-v if kind == "opposite" else v).detach().clone().requires_grad_()
    loss = cross_modal_triplet(v, i, label)
    loss.backward()
    torch.testing.assert_close(loss, torch.tensor(2.).log()) # softplus(0): the furthest positive is as far as the nearest negative
    assert v.grad.isfinite().all() and i.grad.isfinite().all()


def test_distances():
    a, b = (torch.randn(n, 5, generator=generator(n), dtype=torch.float64) for n in (4, 7))
    torch.testing.assert_close(unit_distances(a, b), torch.cdist(F.normalize(a), F.normalize(b), compute_mode="donot_use_mm_for_euclid_dist"))
    assert unit_distances(a.half(), b.half()).dtype == torch.float32 and unit_distances(a, a).diagonal().max() < 1e-3


@pytest.mark.parametrize("v, i, yv, yi", [((4, 8), (4, 8), 3, None), ((4, 8), (5, 8), 4, None), ((4, 8), (5, 8), 4, 4), ((4,), (4,), 4, None), ((4, 2, 2), (4, 2, 2), 4, None)])
def test_shapes_that_do_not_fit(v, i, yv, yi):
    with pytest.raises(InputError, match="one label a row"): cross_modal_triplet(torch.zeros(v), torch.zeros(i), torch.zeros(yv), None if yi is None else torch.zeros(yi))


# ---- mutual learning

@fuzz
@given(st.integers(1, 6), st.integers(2, 30), st.floats(0, 30), st.integers(0, 99))
def test_mutual_learning_is_the_symmetrised_kl(n, c, scale, seed):
    a, b = np.random.default_rng(seed).normal(size=(2, n, c)) * scale
    p, q = softmax(a, 1), softmax(b, 1)
    want = (rel_entr(p, q) + rel_entr(q, p)).sum(1).mean()
    for detach in (True, False):
        ours = mutual_learning(torch.tensor(a), torch.tensor(b), detach)
        np.testing.assert_allclose(ours, want, rtol=1e-8, atol=1e-12)
        assert ours == mutual_learning(torch.tensor(b), torch.tensor(a), detach)


def test_mutual_learning_gradients():
    rng = generator("dml")
    a, b = (torch.randn(5, 7, generator=rng, dtype=torch.float64).requires_grad_() for _ in range(2))
    assert torch.autograd.gradcheck(lambda a, b: mutual_learning(a, b, detach=False), (a, b))
    p, q = a.detach().softmax(1), b.detach().softmax(1)
    for got, want in zip(torch.autograd.grad(mutual_learning(a, b), (a, b)), ((p - q) / 5, (q - p) / 5)): torch.testing.assert_close(got, want)
    for g in torch.autograd.grad(mutual_learning(a, a.detach().clone().requires_grad_()), (a,)): assert not g.any()


def test_mutual_learning_refuses_other_shapes():
    with pytest.raises(InputError): mutual_learning(torch.zeros(4, 3), torch.zeros(5, 3))
    with pytest.raises(InputError): mutual_learning(torch.zeros(0, 3), torch.zeros(0, 3))
