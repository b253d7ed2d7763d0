"k-reciprocal re-ranking against its definition in plain Python, on random, tied, repeated and degenerate features."

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vdistill.core import InputError
from vdistill.reid.evaluation import rerank, retrieval_scores
from vdistill.reid.reranking import _distance_blocks, _nearest, _unit, rerank_densely

fuzz = settings(deadline=None, derandomize=True, max_examples=80)


def by_sets(d, queries, k1, k2, share):
    "Eqs. (1) to (4) with sets, sums and sorted lists, on a float64 matrix of 1 - cos."
    n = len(d)
    d = [[x / max(max(row), 1e-300) for x in row] for row in d]
    order = [sorted(range(n), key=lambda j: (row[j], j)) for row in d]
    def reciprocal(i, k): return {j for j in order[i][:k + 1] if i in order[j][:k + 1]}
    half, codes = int(np.around(k1/2)), []
    for i in range(n):
        members = reciprocal(i, k1)
        grown = set(members)
        for c in members:
            circle = reciprocal(c, half)
            if 3*len(circle & members) > 2*len(circle): grown |= circle
        weight = {j: np.exp(-d[i][j]) for j in grown}
        codes.append({j: w/sum(weight.values()) for j, w in weight.items()})
    means = [{j: sum(codes[m].get(j, 0.) for m in order[i][:k2])/len(order[i][:k2]) for j in set().union(*(codes[m] for m in order[i][:k2]))} for i in range(n)]
    def jaccard(a, b):
        keys = a.keys() | b.keys()
        return 1 - sum(min(a.get(k, 0), b.get(k, 0)) for k in keys)/sum(max(a.get(k, 0), b.get(k, 0)) for k in keys)
    return np.array([[(1 - share)*jaccard(means[i], means[j]) + share*d[i][j] for j in range(queries, n)] for i in range(queries)])


@st.composite
def problems(draw):
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    q, g, people = draw(st.integers(1, 14)), draw(st.integers(1, 20)), draw(st.integers(1, 6))
    centre, noise = rng.normal(size=(people, 5)), draw(st.sampled_from([.05, .5, 3.]))
    f = [torch.from_numpy(centre[rng.integers(0, people, n)] + noise*rng.normal(size=(n, 5))) for n in (q, g)]
    return *f, draw(st.sampled_from([1, 2, 3, 5, 7, 20, 60])), draw(st.sampled_from([1, 2, 6, 50])), draw(st.sampled_from([0., .3, 1.]))


@fuzz
@given(problems())
def test_it_is_the_definition(problem):
    q, g, k1, k2, share = problem
    d = torch.cat([rows for _, rows in _distance_blocks(_unit(q, g))])
    expected = by_sets(d.tolist(), len(q), k1, k2, share)
    np.testing.assert_allclose(rerank(q, g, k1, k2, share), expected, rtol=0, atol=1e-9)
    np.testing.assert_allclose(rerank_densely(q, g, k1, k2, share), expected, rtol=0, atol=1e-9)


@fuzz
@given(st.integers(0, 2**20), st.sampled_from([1, 3, 20]))
def test_repeated_features_and_ties(seed, k1):
    "Signs of coordinate axes: distances 0, 1 and 2 only, all exact, so every neighbourhood ends in a tie."
    rng = np.random.default_rng(seed)
    q, g = (torch.from_numpy(np.eye(6)[rng.integers(0, 6, n)]*rng.choice([-1, 1], (n, 1))) for n in (9, 17))
    d = torch.cat([rows for _, rows in _distance_blocks(_unit(q, g))])
    np.testing.assert_allclose(rerank(q, g, k1, 2), by_sets(d.tolist(), 9, k1, 2, .3), rtol=0, atol=1e-9)


@fuzz
@given(st.integers(1, 6), st.integers(1, 700), st.integers(1, 60), st.sampled_from([2, 5, 10**6]), st.integers(0, 2**20))
def test_neighbours_are_those_of_a_stable_sort(rows, columns, k, levels, seed):
    d = torch.from_numpy(np.random.default_rng(seed).integers(0, levels, (rows, columns)).astype(np.float32))
    k = min(k, columns)
    assert torch.equal(_nearest(d, k), d.sort(dim=1, stable=True).indices[:, :k])


def groups(people=100, images=6, size=32, noise=1.2, dtype=torch.float32):
    stream = torch.Generator().manual_seed(0)
    ids = torch.arange(people).repeat_interleave(images)
    centre = torch.randn(people, size, generator=stream)
    return *((centre[ids] + noise*torch.randn(len(ids), size, generator=stream)).to(dtype) for _ in range(2)), ids


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_across_blocks_it_is_the_dense_form_within_rounding(dtype):
    q, g, ids = groups(dtype=dtype)   # 1,200 images, three blocks
    ours = rerank(q, g)
    assert ours.shape == (600, 600) and ours.dtype == dtype and ours.min() >= 0 and ours.max() <= 1
    torch.testing.assert_close(ours, rerank_densely(q, g), rtol=0, atol=1e-5 if dtype == torch.float32 else 1e-12)
    plain, again = (retrieval_scores(d, ids, ids) for d in (1 - torch.nn.functional.normalize(q) @ torch.nn.functional.normalize(g).T, ours))
    assert again.mean_ap > plain.mean_ap + .05


def test_what_the_parameters_mean():
    q, g, ids = groups(20, 3, dtype=torch.float64)
    old = torch.cat([rows for _, rows in _distance_blocks(_unit(q, g))])
    torch.testing.assert_close(rerank(q, g, lambda_value=1), old[:60, 60:]/old[:60].amax(1, keepdim=True))   # only the old distance
    assert not torch.equal(rerank(q, g, k2=1), rerank(q, g, k2=6)) and not torch.equal(rerank(q, g, k1=3), rerank(q, g))
    torch.testing.assert_close(rerank(q, g), rerank(7*q, g/3), rtol=0, atol=1e-9)   # an angle knows no length
    torch.testing.assert_close(rerank(q, g), rerank(q, g, 20, 6, .3))


def test_order_has_no_say_without_ties():
    q, g, _ = groups(15, 3, dtype=torch.float64)
    p, o = (torch.randperm(45, generator=torch.Generator().manual_seed(k)) for k in (1, 2))
    torch.testing.assert_close(rerank(q[p], g[o]), rerank(q, g)[p][:, o], rtol=0, atol=1e-9)


@pytest.mark.parametrize("q, g", [(1, 1), (1, 5), (5, 1), (2, 40)])
def test_small_lists(q, g):
    stream = torch.Generator().manual_seed(q*100 + g)
    a, b = (torch.randn(n, 4, generator=stream, dtype=torch.float64) for n in (q, g))
    d = torch.cat([rows for _, rows in _distance_blocks(_unit(a, b))])
    np.testing.assert_allclose(rerank(a, b), by_sets(d.tolist(), q, 20, 6, .3), rtol=0, atol=1e-9)


def test_collapsed_features_give_numbers_and_no_rank():
    d = rerank(torch.ones(6, 4), torch.ones(8, 4))
    assert d.isfinite().all() and (d >= 0).all() and (d <= 1).all()
    zeros = rerank(torch.zeros(3, 4), torch.zeros(5, 4))   # no direction at all
    assert zeros.isfinite().all()


@pytest.mark.parametrize("arguments, message", [
    ((torch.rand(2, 8), torch.rand(3, 7)), "8 dimensions and gallery features 7"), ((torch.rand(2, 8)*torch.nan, torch.rand(3, 8)), "NaN or infinite"), ((torch.rand(2, 8), torch.rand(3, 8)*torch.inf), "NaN or infinite"),
    ((torch.rand(0, 8), torch.rand(3, 8)), "at least one image"), ((torch.rand(2, 8), torch.rand(0, 8)), "at least one image"), ((torch.rand(8), torch.rand(3, 8)), "shape"),
    ((torch.rand(2, 8), torch.rand(3, 8), 0), "k1 = 0"), ((torch.rand(2, 8), torch.rand(3, 8), 20, 0), "k2 = 0"), ((torch.rand(2, 8), torch.rand(3, 8), 20, 6, 1.1), "lambda_value = 1.1"), ((torch.rand(2, 8), torch.rand(3, 8), 20, 6, float("nan")), "lambda_value"),
])
def test_bad_input_is_one_clear_sentence(arguments, message):
    with pytest.raises(InputError, match=message) as error: rerank(*arguments)
    assert "\n" not in str(error.value)


def test_nothing_is_changed_and_other_types_work():
    q, g, _ = groups(10, 3)
    before = q.clone(), g.clone()
    a = rerank(q, g)
    assert torch.equal(q, before[0]) and torch.equal(g, before[1])
    torch.testing.assert_close(rerank(q.numpy(), g.numpy()), a)
    assert rerank(q.half(), g.half()).dtype == torch.float32


def test_it_holds_no_stack_of_squares():
    "1,800 images; how long it takes at full size is measured by `evaluation_ratios`."
    import tracemalloc
    q, g, _ = groups(150, 6)
    rerank(q, g)
    tracemalloc.start()
    rerank(q, g)
    assert tracemalloc.get_traced_memory()[1] < 1800**2*4*2   # numpy's part: no stack of squares
    tracemalloc.stop()


@pytest.mark.cuda
def test_on_a_cuda_device():
    if not torch.cuda.is_available(): pytest.skip("no CUDA device")
    q, g, _ = groups(40, 5, dtype=torch.float64)
    torch.testing.assert_close(rerank(q.cuda(), g.cuda()).cpu(), rerank(q, g), rtol=0, atol=1e-9)
