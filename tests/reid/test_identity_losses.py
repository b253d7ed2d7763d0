"The triplets and centres against loops, over scales, types and batches without a triplet; mutual learning against scipy; the transport term against loops that stop."
import ast
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings, strategies as st
from scipy.optimize import linear_sum_assignment
from scipy.special import logsumexp, rel_entr, softmax

import vdistill.reid.metric_losses
from vdistill.core import InputError, generator
from vdistill.reid.identity_losses import cross_modal_triplet, hardest, mutual_learning, unit_distances
from vdistill.reid.metric_losses import (batch_hard, euclidean_distances, hetero_centre, hetero_centre_triplet, identity_centres, masked_softmax, pair_masks,
                                    released_sinkhorn, weighted_triplet)

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


# ---- label smoothing: torch has it

@fuzz
@given(st.integers(1, 6), st.integers(2, 30), st.floats(0, 1), st.floats(0, 40), st.integers(0, 99))
def test_smoothed_cross_entropy_is_the_published_one(n, c, eps, scale, seed):
    rng = np.random.default_rng(seed)
    logits, label = rng.normal(size=(n, c))*scale, rng.integers(0, c, n)
    want = np.mean([sum(-((1 - eps)*(k == y) + eps/c)*(row[k] - logsumexp(row)) for k in range(c)) for row, y in zip(logits, label)])
    np.testing.assert_allclose(F.cross_entropy(torch.tensor(logits), torch.tensor(label), label_smoothing=eps), want, rtol=1e-9, atol=1e-12)


# ---- chapter 14b: distances and masks

@fuzz
@given(st.integers(1, 6), st.integers(1, 6), st.integers(1, 5), st.floats(-8, 8), st.integers(0, 99))
def test_euclidean_distances(n, m, d, power, seed):
    rng = np.random.default_rng(seed)
    a, b = rng.normal(size=(n, d))*10**power, rng.normal(size=(m, d))
    want = [[np.linalg.norm(x - y) for y in b] for x in a]
    np.testing.assert_allclose(euclidean_distances(torch.tensor(a), torch.tensor(b)), want, rtol=1e-12)
    np.testing.assert_allclose(euclidean_distances(torch.tensor(a).float(), torch.tensor(b).float()), want, rtol=1e-5, atol=1e-6*max(1, 10**power))


def test_small_distances_far_from_the_origin():
    a = 100 + 1e-3*torch.randn(9, 64, generator=generator("far"))
    torch.testing.assert_close(euclidean_distances(a), torch.cdist(a.double(), a.double(), compute_mode="donot_use_mm_for_euclid_dist").float(), rtol=1e-5, atol=0)
    assert not euclidean_distances(a).diagonal().any()


@pytest.mark.parametrize("a, b", [((3, 4), (3, 5)), ((3,), (3,)), ((3, 4), (2, 3, 4))])
def test_distances_refuse(a, b):
    with pytest.raises(InputError, match="pass"): euclidean_distances(torch.zeros(a), torch.zeros(b))


@fuzz
@given(st.integers(1, 12), st.integers(1, 4), st.sampled_from(["all", "within", "across"]), st.integers(0, 99))
def test_pair_masks(n, people, pairs, seed):
    rng = np.random.default_rng(seed)
    y, m = rng.integers(0, people, n), rng.integers(0, 2, n)
    positive, negative = pair_masks(torch.tensor(y), torch.tensor(m), pairs)
    for i in range(n):
        for j in range(n):
            counts = pairs == "all" or (m[i] == m[j]) == (pairs == "within")
            assert positive[i, j] == (counts and y[i] == y[j] and i != j) and negative[i, j] == (counts and y[i] != y[j])


def test_masks_refuse():
    with pytest.raises(InputError, match="needs the modality"): pair_masks(torch.arange(3), pairs="within")
    with pytest.raises(InputError, match="all, within or across"): pair_masks(torch.arange(3), torch.arange(3), "between")


# ---- triplets on features as they come

def triplets_by_loops(x, y, m, pairs, margin, kind):
    d, terms = [[np.linalg.norm(a - b) for b in x] for a in x], []
    for i in range(len(x)):
        others = [j for j in range(len(x)) if j != i and (pairs == "all" or (m[i] == m[j]) == (pairs == "within"))]
        right, wrong = np.array([d[i][j] for j in others if y[j] == y[i]]), np.array([d[i][j] for j in others if y[j] != y[i]])
        if not len(right) or not len(wrong): continue
        gap = right.max() - wrong.min() if kind == "hard" else softmax(right)@right - softmax(-wrong)@wrong
        terms.append(np.logaddexp(0, gap) if margin is None else max(0., gap + margin))
    return np.mean(terms) if terms else 0.


crowds = st.builds(lambda n, d, people, power, seed: (lambda rng: (rng.normal(size=(n, d))*10**power, rng.integers(0, people, n), rng.integers(0, 2, n)))(np.random.default_rng(seed)),
                   st.integers(1, 10), st.integers(1, 5), st.integers(1, 5), st.floats(-3, 3), st.integers(0, 2**32 - 1))
METRIC = {"hard": batch_hard, "soft": lambda *a: batch_hard(*a, margin=None), "weighted": weighted_triplet}


@fuzz
@given(crowds, st.sampled_from(["all", "within", "across"]), st.sampled_from([0., .3, 2., None]))
def test_batch_hard_equals_the_loop(crowd, pairs, margin):
    x, y, m = map(torch.tensor, crowd)
    np.testing.assert_allclose(batch_hard(euclidean_distances(x), *pair_masks(y, m, pairs), margin), triplets_by_loops(*crowd, pairs, margin, "hard"), rtol=1e-9, atol=1e-12)


@fuzz
@given(crowds, st.sampled_from(["all", "within", "across"]))
def test_weighted_triplet_equals_the_loop(crowd, pairs):
    x, y, m = map(torch.tensor, crowd)
    np.testing.assert_allclose(weighted_triplet(euclidean_distances(x), *pair_masks(y, m, pairs)), triplets_by_loops(*crowd, pairs, None, "weighted"), rtol=1e-9, atol=1e-12)


@fuzz
@given(crowds, st.integers(0, 99), st.sampled_from(sorted(METRIC)))
def test_the_order_of_a_crowd_has_no_influence(crowd, seed, name):
    x, y, m = map(torch.tensor, crowd)
    p = torch.from_numpy(np.random.default_rng(seed).permutation(len(x)))
    loss = lambda x, y, m: METRIC[name](euclidean_distances(x), *pair_masks(y, m, "across"))
    torch.testing.assert_close(loss(x[p], y[p], m[p]), loss(x, y, m))


def people(scale, dtype, d=32):
    "24 images of 6 people in both modalities, mean distance of negatives `scale`."
    rng, y = generator("people"), torch.arange(6).repeat_interleave(4)
    x = torch.randn(6, d, generator=rng).repeat_interleave(4, 0) + .7*torch.randn(24, d, generator=rng)
    return (x*scale/euclidean_distances(x)[pair_masks(y)[1]].mean()).to(dtype).requires_grad_(), y, torch.arange(24) % 2


@pytest.mark.parametrize("name", METRIC)
@pytest.mark.parametrize("power", [-3, -2, -1, 0, 1, 1.25, 1.5, 2, 3])
def test_float32_at_every_distance(name, power):
    "Value and gradient as in float64, where the copied form is wrong from 19 on and infinite at 127 in fp16."
    results = []
    for dtype in (torch.float32, torch.float64):
        x, y, m = people(10.**power, dtype)
        loss = METRIC[name](euclidean_distances(x), *pair_masks(y, m))
        results.append((loss.detach().double(), torch.autograd.grad(loss, x)[0].double()))
    (value, gradient), (want, exact) = results
    assert value.isfinite() and gradient.isfinite().all()
    torch.testing.assert_close(value, want, rtol=1e-4, atol=1e-6)
    assert (gradient - exact).norm() <= 2e-3*exact.norm() + 1e-9
    assert exact.norm() > 0 or (name == "hard" and power > 0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("power", [-2, 0, 2, 3])
@pytest.mark.parametrize("name", METRIC)
def test_half_features_of_any_scale(name, power, dtype):
    x, y, m = people(10.**power, dtype)
    loss = METRIC[name](euclidean_distances(x), *pair_masks(y, m))
    loss.backward()
    assert loss.dtype == torch.float32 and loss.isfinite() and x.grad.dtype == dtype and x.grad.isfinite().all()


@pytest.mark.parametrize("name", METRIC)
def test_gradients_of_the_triplets_by_differences(name):
    x, y, m = people(2., torch.float64, 4)
    assert torch.autograd.gradcheck(lambda x: METRIC[name](euclidean_distances(x), *pair_masks(y, m, "across")), x)


@pytest.mark.parametrize("name", METRIC)
@pytest.mark.parametrize("kind", ["equal", "zero", "one outside"])
def test_coinciding_features_keep_finite_gradients_without_normalisation(name, kind):
    x = torch.zeros(8, 4) + (kind == "equal")
    if kind == "one outside": x[0] = 1
    x.requires_grad_()
    loss = METRIC[name](euclidean_distances(x), *pair_masks(torch.arange(4).repeat_interleave(2)))
    loss.backward()
    assert loss.isfinite() and x.grad.isfinite().all()
    if kind != "one outside": torch.testing.assert_close(loss, torch.tensor(.3 if name == "hard" else np.log(2)).float())


def test_anchors_are_weighed():
    d, y = torch.rand(5, 5, generator=generator("w"), dtype=torch.float64), torch.tensor([0, 0, 1, 1, 2])
    w, masks = torch.tensor([1., 2., 3., 4., 99.], dtype=torch.float64), pair_masks(y)
    single = torch.stack([batch_hard(d[[i]], masks[0][[i]], masks[1][[i]]) for i in range(4)])
    torch.testing.assert_close(batch_hard(d, *masks, weight=w), (single*w[:4]).sum()/w[:4].sum()) # the fifth has no positive


@fuzz
@given(st.integers(1, 5), st.integers(1, 6), st.floats(-3, 3), st.integers(0, 99))
def test_masked_softmax(n, m, power, seed):
    rng = np.random.default_rng(seed)
    scores, mask = rng.normal(size=(n, m))*10**power, rng.random((n, m)) < .5
    want = np.zeros((n, m))
    for row, s, k in zip(want, scores, mask):
        if k.any(): row[k] = softmax(s[k])
    np.testing.assert_allclose(masked_softmax(torch.tensor(scores), torch.tensor(mask)), want, rtol=1e-10, atol=1e-300)
    assert masked_softmax(torch.tensor(scores).float(), torch.tensor(mask)).isfinite().all()


@pytest.mark.parametrize("loss", METRIC.values(), ids=METRIC)
@pytest.mark.parametrize("y", [[0, 0, 0, 0], [0, 1, 2, 3], [0]])
def test_a_crowd_without_a_triplet_costs_nothing(loss, y):
    x = torch.randn(len(y), 3, generator=generator(1)).requires_grad_()
    value = loss(euclidean_distances(x), *pair_masks(torch.tensor(y)))
    value.backward()
    assert value == 0 and not x.grad.any()


# ---- hetero-centre

def centres_by_loops(v, i, yv, yi, margin):
    centre = {(side, y): x[ys == y].mean(0) for side, x, ys in (("v", v, yv), ("i", i, yi)) for y in set(ys.tolist())}
    pulls, terms = [], []
    for (side, y), c in centre.items():
        other = centre.get(("i" if side == "v" else "v", y))
        if other is None: continue
        if side == "v": pulls.append(((c - other)**2).sum())
        away = [np.linalg.norm(c - w) for (_, who), w in centre.items() if who != y]
        if away:
            gap = np.linalg.norm(c - other) - min(away)
            terms.append(np.logaddexp(0, gap) if margin is None else max(0., margin + gap))
    return np.mean(pulls) if pulls else 0., np.mean(terms) if terms else 0.


@fuzz
@given(batches(), st.floats(-3, 3), st.sampled_from([0., .3, None]))
def test_centres_equal_the_loop(batch, power, margin):
    v, i, yv, yi = batch
    batch = v*10**power, i*10**power, yv, yi
    pull, triplet = centres_by_loops(*batch, margin)
    np.testing.assert_allclose(hetero_centre(*map(torch.tensor, batch)), pull, rtol=1e-8, atol=1e-12)
    np.testing.assert_allclose(hetero_centre_triplet(*map(torch.tensor, batch), margin=margin), triplet, rtol=1e-8, atol=1e-12)
    np.testing.assert_allclose(hetero_centre(*map(torch.tensor, (i, v, yi, yv))), hetero_centre(*map(torch.tensor, (v, i, yv, yi))), rtol=1e-9, atol=1e-12)


@fuzz
@given(batches())
def test_the_order_has_no_influence_on_centres(batch):
    v, i, yv, yi = map(torch.tensor, batch)
    p, q = torch.randperm(len(v), generator=generator("p")), torch.randperm(len(i), generator=generator("q"))
    for loss in (hetero_centre, hetero_centre_triplet): torch.testing.assert_close(loss(v[p], i[q], yv[p], yi[q]), loss(v, i, yv, yi))


@pytest.mark.parametrize("power", [-3, 0, 3])
@pytest.mark.parametrize("loss", [hetero_centre, hetero_centre_triplet])
def test_centres_at_every_scale(loss, power):
    x, y, m = people(10.**power, torch.float32)
    value = loss(x[m == 0], x[m == 1], y[m == 0])
    gradient = torch.autograd.grad(value, x)[0]
    double = loss(x[m == 0].double(), x[m == 1].double(), y[m == 0])
    assert gradient.isfinite().all()
    torch.testing.assert_close(value.double(), double, rtol=1e-4, atol=1e-9)
    same = x[m == 0].detach().requires_grad_() # distance 0
    assert torch.autograd.grad(loss(same, same.detach(), y[m == 0]), same)[0].isfinite().all()


def test_gradients_of_the_centres_by_differences():
    x, y, m = people(2., torch.float64, 4)
    for loss in (hetero_centre, lambda *a: hetero_centre_triplet(*a, margin=None)): assert torch.autograd.gradcheck(lambda x: loss(x[m == 0], x[m == 1], y[m == 0]), x)


def test_identity_centres():
    x = torch.tensor([[1., 2], [3, 4], [5, 9]])
    centres, count = identity_centres(x, torch.tensor([7, 7, 8]), torch.tensor([8, 7, 5]))
    assert centres.tolist() == [[5, 9], [2, 3], [0, 0]] and count.tolist() == [1, 2, 0]


@pytest.mark.parametrize("v, i, yv, yi", [((4, 8), (4, 8), 3, None), ((4, 8), (5, 8), 4, None), ((4,), (4,), 4, None), ((4, 8), (4, 7), 4, None)])
@pytest.mark.parametrize("loss", [hetero_centre, hetero_centre_triplet])
def test_centres_refuse(loss, v, i, yv, yi):
    with pytest.raises(InputError, match="one label a row"): loss(torch.zeros(v), torch.zeros(i), torch.zeros(yv), None if yi is None else torch.zeros(yi))


# ---- the transport term

def transport_by_loops(a, b, eps=.01, rounds=100, tolerance=.1):
    p, q = softmax(a, 1), softmax(b, 1)
    cost, u, v = ((p[:, None] - q)**2).sum(2), np.zeros(len(p)), np.zeros(len(q))
    for r in range(rounds):
        before, u = u, np.array([u[i] + eps*(np.log(1/len(p) + 1e-8) - np.log(np.exp((u[i] + v - cost[i])/eps).sum() + 1e-6)) for i in range(len(p))])
        v = np.array([v[j] + eps*(np.log(1/len(q) + 1e-8) - np.log(np.exp((u + v[j] - cost[:, j])/eps).sum() + 1e-6)) for j in range(len(q))])
        if abs(u - before).sum() < tolerance: break
    return (np.exp((u[:, None] + v - cost)/eps)*cost).sum(), r + 1, cost


clouds = st.builds(lambda n, m, c, scale, seed: (lambda rng: (rng.normal(size=(n, c))*scale, rng.normal(size=(m, c))*scale))(np.random.default_rng(seed)),
                   st.integers(1, 9), st.integers(1, 9), st.integers(2, 12), st.floats(0, 20), st.integers(0, 999))


@settings(derandomize=True, deadline=None, max_examples=40)
@given(clouds, st.sampled_from([(.01, 100, .1), (.1, 7, .01), (.01, 1, 0.)]))
def test_transport_equals_the_loop_that_stops(cloud, options):
    np.testing.assert_allclose(released_sinkhorn(*map(torch.tensor, cloud), *options), transport_by_loops(*cloud, *options)[0], rtol=1e-7, atol=1e-12)


def test_transport_stops_where_the_loop_does():
    "All three ways to end are met: at once, on the way, never; one round more would be seen."
    ends = set()
    for scale in (.2, 4., 9.):
        a, b = np.random.default_rng(3).normal(size=(2, 24, 12))*scale
        value, r, _ = transport_by_loops(a, b)
        ends.add(r)
        np.testing.assert_allclose(released_sinkhorn(*map(torch.tensor, (a, b))), value, rtol=1e-8)
        if r < 100: assert abs(transport_by_loops(a, b, tolerance=0., rounds=r + 1)[0] - value) > 1e-7*value or r <= 2
    assert len(ends) == 3


def test_transport_gradients():
    a, b = (2*torch.randn(4, 5, generator=generator("t", k), dtype=torch.float64).requires_grad_() for k in (0, 1))
    a, b = a.detach().requires_grad_(), b.detach().requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: released_sinkhorn(a, b, .1, 20), (a, b))
    for scale in (0., 1e-3, 1., 1e3):
        x = (a.detach().float()*scale).requires_grad_()
        value = released_sinkhorn(x, b.detach().float()*scale)
        assert value.isfinite() and torch.autograd.grad(value, x)[0].isfinite().all()


def test_what_transport_is_blind_to():
    "It compares clouds: who is who plays no part; and it can lie below the optimum of every transport plan."
    a, b = (8*torch.randn(32, 40, generator=generator("clouds", k), dtype=torch.float64) for k in (0, 1))
    other = b[torch.randperm(32, generator=generator("o"))]
    torch.testing.assert_close(released_sinkhorn(a, b), released_sinkhorn(a, other))
    assert abs(mutual_learning(a, b) - mutual_learning(a, other)) > .1
    value, r, cost = transport_by_loops(a.numpy(), b.numpy())
    assert value < cost[linear_sum_assignment(cost)].mean() and r < 100


def test_transport_refuses():
    with pytest.raises(InputError, match="pass"): released_sinkhorn(torch.zeros(4, 3), torch.zeros(4, 2))
    with pytest.raises(InputError, match="pass"): released_sinkhorn(torch.zeros(4), torch.zeros(4))


def test_metric_losses_are_a_room_of_re_identification():
    tree = ast.parse(Path(vdistill.reid.metric_losses.__file__).read_text(encoding="utf-8"))
    assert {n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.level} == {"core"}
