"Tables and divergences over many random cases, against scipy in float64."
import math
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings, strategies as st
from scipy.special import log_softmax, rel_entr
from scipy.stats import entropy as scipy_entropy
from vdistill.core import InputError, generator
from vdistill.information import (Table, as_table, conditional, cross_entropy, entropy, expected_divergence, extend, information_regions, interaction_information, js_divergence,
                                  kl_divergence, marginal, mutual_information, random_distribution, relative_entropy)

quick = settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
seeds, scales = st.integers(0, 10**6), st.sampled_from([1e-6, 1e-3, 0.1, 1.0, 10.0, 100.0, 1e4])
classes, temperatures = st.integers(1, 60), st.sampled_from([0.25, 1.0, 2.0, 10.0])


def logits(seed, scale, C, B=7, dtype=torch.float64, n=2):
    g = generator("logits", seed)
    return [scale * torch.randn(B, C, generator=g, dtype=dtype) for _ in range(n)]


def log_p(x, T=1.0): return log_softmax(x.double().numpy() / T, 1) # probabilities would underflow, and lose digits before they do


def divergence(a, b): return (np.exp(a) * (a - b)).sum(1) # of log-probabilities, in the textbook's form


def oracle_kl(p, q, T=1.0): return divergence(log_p(p, T), log_p(q, T))


def table(seed, shape, zeros=0.0):
    g = generator("table", seed)
    p = random_distribution(math.prod(shape), scale=2, generator=g).reshape(shape)
    p = np.where(torch.rand(shape, generator=g).numpy() < zeros, 0, p)
    p.flat[0] += 1e-3
    return Table(p / p.sum(), [f"x{i}" for i in range(len(shape))])


shapes = st.lists(st.integers(1, 4), min_size=2, max_size=5).map(tuple)


# -- tables

@quick
@given(seeds, shapes, st.sampled_from([0.0, 0.5]))
def test_entropy_is_scipys_and_obeys_the_chain_rule(seed, shape, zeros):
    t = table(seed, shape, zeros)
    assert entropy(t) == pytest.approx(scipy_entropy(t.p.ravel()), abs=1e-12)
    assert entropy(t) == pytest.approx(sum(entropy(t, n, given=t.names[:i]) for i, n in enumerate(t.names)), abs=1e-12)
    assert -1e-12 <= entropy(t, t.names[0], given=t.names[1:]) <= entropy(t, t.names[0]) + 1e-12 <= math.log(shape[0]) + 2e-12


@quick
@given(seeds, shapes, st.sampled_from([0.0, 0.5]))
def test_mutual_information_is_a_divergence_and_obeys_the_chain_rule(seed, shape, zeros):
    t = table(seed, shape, zeros)
    a, b, rest = t.names[0], t.names[1], t.names[2:]
    pair = marginal(t, [a, b]).p
    assert mutual_information(t, a, b) == pytest.approx(rel_entr(pair, pair.sum(1, keepdims=True) * pair.sum(0)).sum(), abs=1e-12)
    assert mutual_information(t, a, b, given=rest) >= -1e-12
    assert mutual_information(t, a, b) == pytest.approx(mutual_information(t, b, a), abs=1e-12)
    assert mutual_information(t, a, [b, *rest]) == pytest.approx(mutual_information(t, a, b) + mutual_information(t, a, rest, given=b), abs=1e-12)
    assert mutual_information(t, a, a) == pytest.approx(entropy(t, a), abs=1e-12)


@quick
@given(seeds, shapes)
def test_positions_names_and_torch_give_the_same(seed, shape):
    t = table(seed, shape)
    assert entropy(t.p, (0, -1)) == entropy(t, ["x0", t.names[-1]])
    assert mutual_information(t.p, 0, 1) == mutual_information(t, "x0", "x1")
    as_tensor = mutual_information(torch.tensor(t.p, requires_grad=True), 0, 1)
    assert torch.is_tensor(as_tensor) and as_tensor.requires_grad and float(as_tensor.detach()) == pytest.approx(mutual_information(t, "x0", "x1"), abs=1e-12)
    assert isinstance(entropy(t), float)


def test_a_marginal_of_an_unnamed_table_counts_its_axes_anew():
    t = table(0, (2, 3, 4))
    m = marginal(t.p, [0, 2])
    assert m.names == (0, 1) and m.p.shape == (2, 4) and entropy(m, 1) == pytest.approx(entropy(t, "x2"), abs=1e-12)


@quick
@given(seeds, st.integers(2, 4), st.integers(2, 6), st.integers(1, 5), st.sampled_from([0.1, 1.0, 4.0]))
def test_a_chain_loses_information_by_the_expected_divergence(seed, n_y, n_v, n_z, scale):
    g = generator("chain", seed)
    p = extend(Table(random_distribution(n_y, generator=g), "y"), "v", "y", random_distribution(n_y, n_v, scale=scale, generator=g))
    p = extend(p, "z", "v", random_distribution(n_v, n_z, scale=scale, generator=g))
    assert mutual_information(p, "y", "z", given="v") == pytest.approx(0, abs=1e-12)
    gap = mutual_information(p, "v", "y") - mutual_information(p, "z", "y")
    assert gap >= -1e-12 and gap == pytest.approx(expected_divergence(p, "v", "z"), abs=1e-12)


@quick
@given(seeds, shapes, st.sampled_from([0.0, 0.5]), st.permutations(range(5)))
def test_chain_rules_hold_in_any_order_and_given_anything(seed, shape, zeros, order):
    t = table(seed, shape, zeros)
    *a, b = [t.names[i] for i in order if i < len(shape)]
    assert entropy(t) == pytest.approx(sum(entropy(t, x, given=[*a, b][:i]) for i, x in enumerate([*a, b])), abs=1e-12)
    assert mutual_information(t, a, b) == pytest.approx(sum(mutual_information(t, x, b, given=a[:i]) for i, x in enumerate(a)), abs=1e-12)


@quick
@given(seeds, st.lists(st.integers(1, 4), min_size=4, max_size=6), st.sampled_from([0.1, 1.0, 4.0]))
def test_information_falls_along_a_chain(seed, sizes, scale):
    g = generator("long", seed)
    t = Table(random_distribution(sizes[0], scale=scale, generator=g), "x0")
    for i, (m, n) in enumerate(zip(sizes, sizes[1:])): t = extend(t, f"x{i + 1}", f"x{i}", random_distribution(m, n, scale=scale, generator=g))
    known = [mutual_information(t, "x0", x) for x in t.names[1:]]
    assert all(b <= a + 1e-12 for a, b in zip(known, known[1:]))
    assert all(mutual_information(t, "x0", x, given="x1") == pytest.approx(0, abs=1e-12) for x in t.names[2:])


@quick
@given(seeds, shapes.filter(lambda s: len(s) >= 3), st.sampled_from([0.0, 0.5]))
def test_interaction_information_is_symmetric_and_a_region(seed, shape, zeros):
    t = table(seed, shape, zeros)
    a, b, c, *rest = t.names
    x = interaction_information(t, a, b, c, given=rest)
    assert x == pytest.approx(mutual_information(t, a, b, given=rest) - mutual_information(t, a, b, given=[c, *rest]), abs=1e-12)
    assert all(interaction_information(t, *order, given=rest) == pytest.approx(x, abs=1e-12) for order in ((b, c, a), (c, a, b), (b, a, c)))
    assert information_regions(marginal(t, [a, b, c]))[a, b, c] == pytest.approx(interaction_information(t, a, b, c), abs=1e-12)
    assert interaction_information(t.p, 0, 1, 2, given=range(3, len(shape))) == x


@quick
@given(seeds, shapes, st.sampled_from([0.0, 0.5]))
def test_the_regions_of_a_diagram_add_up(seed, shape, zeros):
    t = table(seed, shape, zeros)
    regions = information_regions(t)
    assert len(regions) == 2 ** len(shape) - 1 and sum(regions.values()) == pytest.approx(entropy(t), abs=1e-11)
    for n in t.names: assert sum(x for s, x in regions.items() if n in s) == pytest.approx(entropy(t, n), abs=1e-11)
    first, *others = t.names
    assert regions[(first,)] == pytest.approx(entropy(t, first, given=others), abs=1e-12)
    assert information_regions(t, [first, others[0]]).keys() == {(first,), (others[0],), (first, others[0])}


@quick
@given(seeds, shapes, st.sampled_from([0.0, 0.5]))
def test_relative_entropy_is_scipys(seed, shape, zeros):
    p, q = table(seed, shape, zeros), table(seed + 1, shape, zeros)
    truth = rel_entr(p.p, q.p).sum()
    assert relative_entropy(p, q) == pytest.approx(truth, abs=1e-12) and relative_entropy(p, p) == 0
    assert float(relative_entropy(torch.tensor(p.p), q.p)) == pytest.approx(truth, abs=1e-12)


def test_relative_entropy_compares_tables_over_the_same_variables():
    with pytest.raises(InputError, match="same variables"): relative_entropy(Table([1.0], "a"), Table([1.0], "b"))
    with pytest.raises(InputError, match="same variables"): relative_entropy([0.5, 0.5], [1.0])


def test_impossible_observations_do_not_disturb_an_expectation():
    p = extend(Table([0.5, 0.5, 0.0], "v"), "y", "v", [[1, 0], [0.5, 0.5], [0.3, 0.7]])
    p = extend(p, "z", "v", np.ones((3, 1)))
    assert conditional(p, "y", "v")[2].tolist() == [0, 0]
    assert expected_divergence(p, "v", "z") == pytest.approx(mutual_information(p, "v", "y"), abs=1e-12)


def test_conditional_orients_itself_by_the_arguments():
    t = table(3, (2, 3, 4))
    for a, b in (("x0", "x2"), ("x2", "x0")):
        c = conditional(t, a, given=b)
        assert c.shape == (t.p.shape[t.names.index(b)], t.p.shape[t.names.index(a)]) and np.allclose(c.sum(1), 1)
    assert np.allclose(conditional(t, "x0", "x2") * marginal(t, "x2").p[:, None], marginal(t, ["x0", "x2"]).p.T)


@pytest.mark.parametrize("bad, words", [
    (lambda: Table([0.5, 0.6]), "sum to 1.1"), (lambda: Table([1.5, -0.5]), "negative"), (lambda: Table([math.nan, 1.0]), "not a number"),
    (lambda: Table([[0.5, 0.5]], "y"), "2 axes"), (lambda: Table([[0.5, 0.5]], "y y"), "different names"), (lambda: entropy([1.0], 1), "no axis 1"),
    (lambda: entropy(Table([1.0], "y"), "v"), "no axis 'v'"), (lambda: extend(Table([1.0], "y"), "v", "y", [[0.5, 0.4]]), "sum to 1"),
    (lambda: extend(Table([1.0], "y"), "v", "y", [[1.0], [1.0]]), "shape (1, n)"), (lambda: conditional(table(0, (2, 2)), "x0", "x0"), "different axes"),
])
def test_a_bad_table_is_told_in_one_sentence(bad, words):
    with pytest.raises(InputError, match=words.replace("(", r"\(").replace(")", r"\)")): bad()


def test_random_distributions_repeat_and_are_normal():
    a, b = (random_distribution(5, 7, scale=3, generator=generator("r")) for _ in range(2))
    assert (a == b).all() and np.allclose(a.sum(1), 1) and np.allclose(random_distribution(4, scale=0), 0.25)


# -- logits

@quick
@given(seeds, scales, classes, temperatures)
def test_kl_is_scipys(seed, scale, C, T):
    p, q = logits(seed, scale, C)
    truth = oracle_kl(p, q, T)
    got = kl_divergence(p, q, T, reduction="none")
    assert np.allclose(got.numpy(), truth, rtol=1e-9, atol=1e-13) and got.isfinite().all()
    single = kl_divergence(p.float(), q.float(), T, reduction="none").double()
    assert torch.allclose(single, got, rtol=1e-4, atol=1e-5)
    assert torch.isclose(kl_divergence(p, q, T), got.mean()) and torch.isclose(kl_divergence(p, q, T, reduction="sum"), got.sum())


@quick
@given(seeds, scales, classes, temperatures)
def test_js_is_scipys_symmetric_and_bounded(seed, scale, C, T):
    p, q = logits(seed, scale, C)
    a, b = (log_p(x, T) for x in (p, q))
    m = np.logaddexp(a, b) - math.log(2)
    truth = (divergence(a, m) + divergence(b, m)) / 2
    got = js_divergence(p, q, T, reduction="none")
    assert np.allclose(got.numpy(), truth, rtol=1e-9, atol=1e-13)
    assert torch.equal(got, js_divergence(q, p, T, reduction="none"))
    for dtype in (torch.float64, torch.float32):
        x = js_divergence(p.to(dtype), q.to(dtype), T, reduction="none")
        assert (x >= 0).all() and (x <= math.log(2)).all()
        assert torch.allclose(x.double(), got, rtol=1e-4, atol=1e-5)


@quick
@given(seeds, scales, classes, st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16]))
def test_divergences_vanish_with_their_gradient_at_equality(seed, scale, C, dtype):
    p = logits(seed, min(scale, 1e4), C)[0].to(dtype)
    for f in (kl_divergence, js_divergence):
        for order in (1, -1):
            q = p.clone().requires_grad_()
            value = f(*(p, q)[::order])
            value.backward()
            assert abs(value.item()) <= (0 if f is kl_divergence else 1e-6) and q.grad.abs().max() < 1e-6
            if f is kl_divergence: assert q.grad.abs().max() == 0


@quick
@given(seeds, scales, classes, temperatures, st.floats(1e-6, 1 - 1e-6))
def test_weighted_js_is_the_information_about_the_coin(seed, scale, C, T, weight):
    p, q = logits(seed, scale, C)
    a, b = (log_p(x, T) for x in (p, q))
    m, bound = np.logaddexp(a + math.log(weight), b + math.log1p(-weight)), scipy_entropy([weight, 1 - weight])
    got = js_divergence(p, q, T, reduction="none", weight=weight)
    assert np.allclose(got, weight * divergence(a, m) + (1 - weight) * divergence(b, m), rtol=1e-9, atol=1e-13)
    assert (got >= 0).all() and (got <= bound + 1e-15).all()
    assert torch.allclose(got, js_divergence(q, p, T, reduction="none", weight=1 - weight), rtol=1e-9, atol=1e-13)
    assert torch.allclose(js_divergence(p.float(), q.float(), T, reduction="none", weight=weight).double(), got, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("weight", [0, 1, -0.5, 2, math.nan])
def test_a_weight_outside_the_unit_interval_is_told(weight):
    with pytest.raises(InputError, match="weight must lie between 0 and 1"): js_divergence(*logits(0, 1.0, 3), weight=weight)


@quick
@given(seeds, scales, classes, temperatures)
def test_cross_entropy_is_the_divergence_and_the_entropy_of_the_target(seed, scale, C, T):
    p, q = logits(seed, scale, C)
    H = torch.special.entr((p / T).softmax(1)).sum(1)
    assert torch.allclose(cross_entropy(p, q, T, "none"), kl_divergence(p, q, T, "none") + H, rtol=1e-9, atol=1e-12)
    label = torch.arange(7) % C
    hard = torch.full_like(p, -math.inf).scatter(1, label[:, None], 0.0)
    assert torch.allclose(cross_entropy(hard, q), torch.nn.functional.cross_entropy(q, label), rtol=1e-9, atol=1e-12)


@quick
@given(seeds, st.sampled_from([0.1, 1.0, 10.0]), classes, st.floats(-50, 50))
def test_a_shift_of_logits_changes_nothing_and_kl_is_never_negative(seed, scale, C, shift):
    p, q = logits(seed, scale, C)
    for f in (kl_divergence, js_divergence):
        assert torch.allclose(f(p, q), f(p + shift, q - shift), rtol=1e-6, atol=1e-11)
    near = (p + 1e-4 * q).float()
    assert (kl_divergence(p.float(), near, reduction="none") >= 0).all() and (kl_divergence(p, q, reduction="none") >= 0).all()


def test_kl_is_right_close_to_equality_in_single_precision():
    p, q = logits(9, 8.0, 395, B=256)
    p, near = p.float(), (p + 1e-5 * q).float()
    truth = kl_divergence(p.double(), near.double(), reduction="none")
    assert (kl_divergence(p, near, reduction="none") - truth).abs().max() < 2.5e-7     # the textbook sum is 4e-7 off


def test_gradients_where_an_outcome_is_impossible():
    logits = torch.zeros(3, 4, dtype=torch.float64)
    logits[0, 1] = -math.inf
    logits.requires_grad_()
    value = mutual_information(logits.flatten().softmax(0).view(3, 4), 0, 1)
    value.backward()
    assert logits.grad.isfinite().all() and logits.grad[0, 1] == 0 and logits.grad.abs().max() > .01
    free = torch.zeros(12, dtype=torch.float64, requires_grad=True) # the same without that outcome
    p = torch.cat([free[:1], free[2:]]).softmax(0)
    mutual_information(torch.cat([p[:1], p.new_zeros(1), p[1:]]).view(3, 4), 0, 1).backward()
    torch.testing.assert_close(logits.grad.flatten(), free.grad)


@pytest.mark.parametrize("f", [kl_divergence, js_divergence])
@pytest.mark.parametrize("T", [0.5, 1.0, 3.0])
def test_gradients_are_those_of_finite_differences(f, T):
    p, q = (x.requires_grad_() for x in logits(1, 2.0, 5, B=3))
    assert torch.autograd.gradcheck(lambda a, b: f(a, b, T, "none"), (p, q))
    assert torch.autograd.gradgradcheck(lambda a, b: f(a, b, T, "sum"), (p, q))


@pytest.mark.parametrize("f", [kl_divergence, js_divergence])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_extreme_logits_give_finite_values_and_gradients(f, dtype):
    rows = torch.tensor([[1e4, -1e4, 0.0], [-1e4, 1e4, 0.0], [0.0, 0.0, 0.0], [1e4, 1e4, 1e4]], dtype=dtype)
    p, q = (x.clone().requires_grad_() for x in (rows.repeat_interleave(4, 0), rows.repeat(4, 1)))
    value = f(p, q, reduction="none")
    value.sum().backward()
    assert value.isfinite().all() and p.grad.isfinite().all() and q.grad.isfinite().all()
    assert value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


def test_excluded_classes_count_as_zero_probability():
    p = torch.tensor([[-math.inf, 0.0, 1.0]], dtype=torch.float64, requires_grad=True)
    q = torch.tensor([[-math.inf, 1.0, 0.0]], dtype=torch.float64, requires_grad=True)
    for f in (kl_divergence, js_divergence):
        gradients = torch.autograd.grad(f(p, q), (p, q))
        assert torch.isclose(f(p, q), f(p[:, 1:], q[:, 1:])) and all(g.isfinite().all() for g in gradients)
    gradients = torch.autograd.grad(cross_entropy(p, q), (p, q))
    assert torch.isclose(cross_entropy(p, q), cross_entropy(p[:, 1:], q[:, 1:])) and all(g.isfinite().all() for g in gradients)
    open_q = torch.zeros(1, 3, dtype=torch.float64)
    assert kl_divergence(p, open_q).isfinite() and kl_divergence(open_q, p) == math.inf
    assert js_divergence(p, open_q).isfinite()


def test_autocast_does_not_cost_precision():
    p, q = logits(5, 3.0, 40, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(kl_divergence(p, q), kl_divergence(p, q)) and kl_divergence(p, q).dtype == torch.float32
        inside = kl_divergence(p, q)
    assert torch.isclose(inside, kl_divergence(p, q), rtol=1e-5)


def test_temperature_brings_no_square():
    "T² KL tends to half the squared distance of centred logits over C, so KL alone falls like 1/T²."
    p, q = logits(2, 1.0, 10)
    d = (p - p.mean(1, keepdim=True)) - (q - q.mean(1, keepdim=True))
    assert torch.isclose(1e6 * kl_divergence(p, q, 1000.0), d.square().sum(1).mean() / 20, rtol=1e-2)


@pytest.mark.parametrize("f", [kl_divergence, js_divergence, cross_entropy])
def test_bad_logits_are_told_in_one_sentence(f):
    p, q = logits(0, 1.0, 4)
    for bad, words in [(lambda: f(p, q, reduction="mean"), "divides by B"), (lambda: f(p, q, reduction="max"), "'max'"), (lambda: f(p, q[:, :2]), r"\(7, 4\) and \(7, 2\)"),
                       (lambda: f(p[0], q[0]), r"\(B, C\)"), (lambda: f(p, q[:1]), "one shape"), (lambda: f(p, q, temperature=0), "temperature"), (lambda: f(p, q, -1.0), "temperature"),
                       (lambda: f(p.long(), q), "floating"), (lambda: f(p[:0], q[:0]), "empty batch")]:
        with pytest.raises(InputError, match=words): bad()
    assert f(p[:0], q[:0], reduction="sum") == 0


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("f", [kl_divergence, js_divergence])
def test_cuda_gives_what_the_cpu_gives(f):
    p, q = logits(0, 3.0, 395, dtype=torch.float32)
    assert torch.allclose(f(p.cuda(), q.cuda()).cpu(), f(p, q), rtol=1e-5)


def test_the_diagram_shows_the_regions_and_marks_the_negative_one():
    matplotlib = pytest.importorskip("matplotlib"); matplotlib.use("Agg")
    from vdistill.looking.plots import plot_information_diagram
    xor = np.zeros((2, 2, 2))
    for a in (0, 1):
        for b in (0, 1): xor[a, b, a ^ b] = 1 / 4
    ax = plot_information_diagram(information_regions(Table(xor, "a b c")))
    numbers = [t.get_text() for t in ax.texts]
    assert numbers.count("0.693") == 3 and numbers.count("0") == 3 and numbers.count("−0.693") == 1 and set("abc") <= set(numbers)
    assert sum(bool(c.hatches[0]) for c in ax.collections) == 1
    matplotlib.pyplot.close(ax.figure)
    with pytest.raises(InputError, match="two variables or 7 of three"): plot_information_diagram(information_regions(table(0, (2, 2, 2, 2))))
