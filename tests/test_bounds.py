"Bounds against their definitions, hand-made cases, and each other; nothing is mutated."
import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from vdistill import bounds as B
from vdistill.core import InputError, generator

fuzz = settings(derandomize=True, deadline=None, max_examples=60)


def noise(*shape, key=0, dtype=torch.float64): return torch.randn(*shape, generator=generator("test", key), dtype=dtype)

@pytest.fixture(autouse=True)
def quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", B.BoundWarning)
        yield


def oracle(f, g, alpha, multi):
    "The definition in 80-bit floats, with loops."
    f, g = (x.numpy().astype(np.longdouble) for x in (f.double(), g.double()))
    n, m = g.shape[0], g.shape[1] + 1
    beta, top = (m - np.longdouble(alpha))/(m - 1), max(f.max(), g.max())
    f, g = np.exp(f - top), np.exp(g - top)
    below = [alpha*f.sum() + beta*g.sum()]*n if multi else [alpha*f[i] + beta*g[i].sum() for i in range(n)]
    return float(sum(np.log((n*m if multi else m)*f[i]/below[i]) for i in range(n))/n)


@fuzz
@given(st.integers(2, 12), st.one_of(st.none(), st.integers(2, 9)), st.floats(0, 80), st.floats(1e-4, 1.99), st.integers(0, 99))
def test_contrastive_bounds_are_their_definitions(n, m, scale, alpha, key):
    scores = scale*noise(n, n, key=key).clamp(-1, 1) if m is None else scale*noise(n, key=key).clamp(-1, 1)
    negatives = None if m is None else scale*noise(n, m - 1, key=key + 1).clamp(-1, 1)
    f, g = B.positives_and_negatives(scores, negatives)
    for bound, multi in ((B.cpc, False), (B.ml_cpc, True)):
        truth = oracle(f, g, alpha, multi)
        value = bound(scores, negatives, alpha=alpha)
        assert value.item() == pytest.approx(truth, rel=1e-10, abs=1e-10)
        assert value.item() <= B.ceiling(g.shape[1] + 1, alpha) + 1e-9
        single = bound(scores.float(), None if negatives is None else negatives.float(), alpha=alpha)
        assert single.dtype == torch.float32 and abs(single.item() - oracle(f.float(), g.float(), alpha, multi)) < 1e-4


@pytest.mark.parametrize("n", [2, 31, 128, 512])
@pytest.mark.parametrize("alpha", [1., .3, 1e-3])
def test_ml_cpc_at_every_size_and_scores_to_80(n, alpha):
    scores = 160*torch.rand(n, n, generator=generator("large", n), dtype=torch.float64) - 80
    truth = oracle(*B.positives_and_negatives(scores), alpha, True)
    assert B.ml_cpc(scores, alpha=alpha).item() == pytest.approx(truth, rel=1e-10)
    assert abs(B.ml_cpc(scores.float(), alpha=alpha).item() - oracle(*B.positives_and_negatives(scores.float()), alpha, True)) < 1e-4
    for kind in (torch.float16, torch.bfloat16):
        half = scores.to(kind).requires_grad_()
        B.ml_cpc(half, alpha=alpha).backward()
        assert B.ml_cpc(half, alpha=alpha).isfinite() and half.grad.isfinite().all() and half.grad.dtype == kind


def test_positives_and_negatives_of_a_matrix():
    x = noise(6, 6)
    f, g = B.positives_and_negatives(x)
    assert torch.equal(f, x.diag()) and all(torch.equal(g[i], torch.cat([x[i, :i], x[i, i + 1:]])) for i in range(6))


@pytest.mark.parametrize("name", ["cpc", "ml_cpc", "nwj", "tuba", "interpolated", "dv", "js", "js_loss", "smile", "club", "leave_one_out"])
def test_batches_of_problems_and_untouched_scores(name):
    bound, x = getattr(B, name), noise(3, 2, 5, 5)
    before = x.clone()
    values = bound(x)
    assert values.shape == (3, 2) and torch.equal(x, before)
    torch.testing.assert_close(values, torch.stack([torch.stack([bound(m) for m in row]) for row in x]))
    assert bound(x[0, 0].half()).dtype == torch.float32


@pytest.mark.parametrize("bound", [B.cpc, B.ml_cpc])
def test_a_grid_of_alpha_costs_one_reduction_and_changes_nothing(bound):
    x, grid = noise(2, 7, 7), (2., 1., .2, 0.)
    torch.testing.assert_close(bound(x, alpha=grid), torch.stack([bound(x, alpha=a) for a in grid]))
    f, g = B.positives_and_negatives(x[0])
    torch.testing.assert_close(bound(f, g, alpha=list(grid)), bound(x[0], alpha=grid))


def test_alpha_zero_is_donsker_varadhan_and_one_row_is_cpc():
    x, f, g = noise(8, 8), noise(1), noise(1, 5, key=1)
    torch.testing.assert_close(B.ml_cpc(x, alpha=0), B.dv(x))
    for alpha in (.3, 1., 2.): torch.testing.assert_close(B.ml_cpc(f, g, alpha=alpha), B.cpc(f, g, alpha=alpha))
    assert B.alpha_floor(1, 6) == 1.


@pytest.mark.parametrize("bound, alpha, warns", [(B.cpc, 1., False), (B.cpc, .99, True), (B.ml_cpc, B.alpha_floor(4, 4), False), (B.ml_cpc, .9*B.alpha_floor(4, 4), True), (B.ml_cpc, (1., .01), True)])
def test_an_alpha_below_the_floor_warns_with_the_number(bound, alpha, warns):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        bound(torch.zeros(4, 4), alpha=alpha)
    assert len(caught) == warns
    if warns: assert "below" in str(caught[0].message) and caught[0].filename == __file__ and ("1," in str(caught[0].message) or "0.3077" in str(caught[0].message))


def test_how_far_below_the_information_a_bound_is():
    "x = y, one of N letters: with the best critic CPC is about log(m N/(N + m - 1)), and the information log N."
    for m, N in (128, 1000), (512, 200), (64, 10**6):
        assert math.log(N) - (value := math.log(m*N/(N + m - 1))) == pytest.approx(B.shortfall(value, math.log(m)), abs=1.01/(m - 1))
    assert B.shortfall(3., math.inf) == 0 and B.shortfall(4., 4.) == B.shortfall(5., 4.) == math.inf


def test_when_a_batch_is_too_small():
    "One dimension of a Gaussian with correlation r: the squared density ratio has mean 1/(1 - r^2) over independent pairs."
    for nats in (.5, 1.5):
        r = math.sqrt(1 - math.exp(-2*nats))
        grid = torch.linspace(-14, 14, 1401, dtype=torch.float64)
        x, y = torch.meshgrid(grid, grid, indexing="ij")
        log_ratio = -.5*math.log(1 - r*r) - (r*r*(x*x + y*y) - 2*r*x*y)/(2*(1 - r*r))
        spread = float((2*log_ratio - (x*x + y*y)/2).exp().sum())*(.02**2)/(2*math.pi) - 1
        for n in range(2, 12): assert B.too_few(nats, n) == (spread/(n*(n - 1)) > .25)
    assert B.too_few(1e4, 10**6) and not B.too_few(0., 2) and not B.too_few(-3., 2)


@pytest.mark.parametrize("alpha", [-.1, 4, 5., (1., 4.), ()])
def test_alpha_that_cannot_be(alpha):
    with pytest.raises(InputError, match="alpha"): B.ml_cpc(torch.zeros(4, 4), alpha=alpha)


def test_the_gradient_is_a_softmax():
    x = noise(6, 6).requires_grad_()
    alpha, n = .4, 6
    grad, = torch.autograd.grad(B.ml_cpc(x, alpha=alpha), x)
    eye = torch.eye(n, dtype=torch.float64)
    weights = (x + eye*math.log(alpha) + (1 - eye)*math.log((n - alpha)/(n - 1))).flatten().softmax(0).reshape(n, n)
    torch.testing.assert_close(grad, eye/n - weights)
    for bound in (B.cpc, B.ml_cpc, B.nwj, B.tuba, B.interpolated, B.dv, B.js, B.js_loss): assert torch.autograd.gradcheck(bound, (x,))


def test_half_precision_is_finite():
    x = (60*noise(16, 16)).half().requires_grad_()
    for bound in (B.cpc, B.ml_cpc, B.dv, B.js_loss):
        value = bound(x)
        grad, = torch.autograd.grad(value, x)
        assert value.isfinite() and grad.isfinite().all()


def test_linear_bounds_by_hand():
    f, g = torch.tensor([1., 2.], dtype=torch.float64), torch.tensor([[0., 1.], [-1., 2.]], dtype=torch.float64)
    e = (math.exp(0) + math.exp(1) + math.exp(-1) + math.exp(2))/4
    assert B.nwj(f, g).item() == pytest.approx(1.5 - e/math.e)
    assert B.dv(f, g).item() == pytest.approx(1.5 - math.log(e))
    a = torch.tensor([.5, -.5], dtype=torch.float64)
    rows = [(math.exp(0) + math.exp(1))/2, (math.exp(-1) + math.exp(2))/2]
    assert B.tuba(f, g, log_baseline=a).item() == pytest.approx(1 + 1.5 - (rows[0]*math.exp(-.5) + rows[1]*math.exp(.5))/2)
    assert B.js(f, g).item() == pytest.approx(1 + 1.5 - e) == pytest.approx(B.nwj(f + 1, g + 1).item())
    assert B.js_loss(f, g).item() == pytest.approx(sum(math.log1p(math.exp(-x)) for x in (1, 2))/2 + sum(math.log1p(math.exp(x)) for x in (0, 1, -1, 2))/4)
    assert B.smile(f, g, clip=1.).item() == pytest.approx(1.5 - math.log((1 + math.e + math.exp(-1) + math.e)/4))
    assert B.ba(torch.tensor([-1., -2.]), entropy=3.).item() == pytest.approx(1.5)


def test_interpolation_ends_at_tuba_and_at_cpc():
    f, g = noise(5), noise(5, 4, key=1)
    torch.testing.assert_close(B.interpolated(f, g, mix=0., log_baseline=.3), B.tuba(f, g, log_baseline=.3))
    torch.testing.assert_close(B.interpolated(f, g, mix=1.), B.cpc(f, g[:, 1:]))          # the second expectation is exactly 1
    middle = [B.interpolated(f, g, mix=mix).item() for mix in (1e-9, 1 - 1e-9)]
    assert middle == pytest.approx([B.interpolated(f, g, mix=mix).item() for mix in (0., 1.)], abs=1e-6)
    with pytest.raises(InputError): B.interpolated(f, g, mix=1.5)


def test_no_critic_beats_the_truth_with_linear_bounds():
    "Exact enumeration: the expectation of a linear bound and of the interpolated one stays under I for any critic and baseline."
    joint = torch.tensor([[.4, .1], [.05, .45]], dtype=torch.float64)
    I = (joint*(joint/(joint.sum(0)*joint.sum(1, keepdim=True))).log()).sum().item()
    for key in range(40):
        critic, a = 2*noise(2, 2, key=key), noise(2, key=key + 100)
        x, y, others, p = B.outcomes(joint, 2, 3, "fresh")
        f, g = critic[x, y], critic[x[..., None], others]
        for value in (B.tuba(f, g, log_baseline=a[x]), B.interpolated(f, g, mix=.4, log_baseline=a[x]), B.nwj(f, g), B.cpc(f, g)): assert (p*value).sum().item() <= I + 1e-12
    best = (joint/(joint.sum(0)*joint.sum(1, keepdim=True))).log()
    assert (p*B.js(best[x, y], best[x[..., None], others])).sum().item() == pytest.approx(I)
    assert p.sum().item() == pytest.approx(1)


@pytest.mark.parametrize("scheme, n, m", [("batch", 2, 2), ("fresh", 2, 3), ("per row", 2, 2)])
def test_violations_appear_only_below_the_floor(scheme, n, m):
    joint = .98*torch.eye(2, dtype=torch.float64)/2 + .02/4
    assert B.largest_violation(joint, n, m, B.alpha_floor(n, m), scheme) < 0
    assert B.largest_violation(joint, n, m, .5*B.alpha_floor(n, m), scheme) > .01


def test_mine_corrects_the_gradient():
    x, mine = noise(6, 6).requires_grad_(), B.MINE(rate=.5)
    first = mine(x)
    torch.testing.assert_close(first, -B.dv(x))
    torch.testing.assert_close(torch.autograd.grad(first, x)[0], torch.autograd.grad(-B.dv(x), x)[0])      # the first batch is the mean
    y = (x.detach() + 1).requires_grad_()
    value = mine(y)
    torch.testing.assert_close(value, -B.dv(y))
    f, g = B.positives_and_negatives(y)
    mean = .5*x.detach()[~torch.eye(6, dtype=bool)].exp().mean() + .5*g.detach().exp().mean()
    expected, = torch.autograd.grad(g.exp().mean()/mean - f.mean(), y)
    torch.testing.assert_close(torch.autograd.grad(value, y)[0], expected, rtol=1e-5, atol=1e-7)           # the buffer is float32
    mine.eval()
    before = mine.log_mean.clone()
    mine(y)
    assert torch.equal(mine.log_mean, before)


def test_the_ratio_comes_back_from_every_critic():
    r = noise(300, 300)
    own = r.diag()
    r = r - math.log(r[~torch.eye(300, dtype=bool)].exp().mean())     # E_q[r] = 1 in this sample
    f, g = B.positives_and_negatives(r)
    e = .01
    for name, scores, options in (("nwj", r + 1, {}), ("js", r, {}), ("dv", r - 7, {}), ("smile", r, {})):
        back, others = B.log_density_ratio(scores, bound=name, **options)
        torch.testing.assert_close(back, f); torch.testing.assert_close(others, g)
    best = B.optimal_critic(r, epsilon=e)
    own, other = B.positives_and_negatives(best)
    best = best - (e*own.exp().mean() + (1 - e)*other.exp().mean()).log()  # so that the mixture's mean is 1 in this sample too
    back, others = B.log_density_ratio(best + 3, epsilon=e)
    again = (1 - e)*best.exp()/(1 - e*best.exp())
    torch.testing.assert_close(back.exp(), again.diagonal()); torch.testing.assert_close(others, B.positives_and_negatives(again.log())[1])
    assert (back - f).abs().max() < .3
    for name in ("cpc", "dv", "js", "smile", "mine"): assert torch.equal(B.optimal_critic(r, name), r)
    assert torch.equal(B.optimal_critic(r, "nwj"), r + 1)
    rows = B.log_density_ratio(r + noise(300, 1, key=2), bound="cpc")[0]
    torch.testing.assert_close(rows, f - B._log_mean(g))
    for bad in (dict(bound="nothing"), dict(bound="ml_cpc"), dict(bound="ml_cpc", epsilon=1.)):
        with pytest.raises(InputError): B.log_density_ratio(r, **bad)


def test_skew_divergence_on_a_table():
    joint = torch.tensor([[.4, .1], [.05, .45]], dtype=torch.float64)
    q = joint.sum(0)*joint.sum(1, keepdim=True)
    for e in (.5, .1, 1e-6):
        exact = (joint*(joint/(e*joint + (1 - e)*q)).log()).sum()
        log_ratio = (joint/q).log().flatten()
        ours = (joint.flatten()*B.optimal_critic(log_ratio, epsilon=e)).sum()
        torch.testing.assert_close(ours, exact)
        samples = log_ratio.repeat_interleave((1000*joint.flatten()).long())
        torch.testing.assert_close(B.skew_kl(samples, e), exact, rtol=1e-2, atol=1e-2)
        few = samples[torch.randint(len(samples), (200, 50), generator=generator("few"))]
        plain, helped = B.skew_kl(few, e), B.skew_kl(few, e, (joint.flatten()*log_ratio).sum().item())
        assert helped.var() < .5*plain.var() and abs(helped.mean() - exact) < .03


def test_what_is_proven_and_what_is_not():
    assert B.standing("ml_cpc", "per row") == "proven" and B.standing("ml_cpc", "batch") == B.standing("ml_cpc", "fresh") == "only checked"
    assert B.standing("ml_cpc", "per row", n=4, m=4, alpha=.3) == "no proof" and B.standing("ml_cpc", "per row", n=4, m=4, alpha=.31) == "proven"
    assert B.standing("cpc", "batch", alpha=.9) == "no proof" and B.standing("cpc", "batch", alpha=2.) == "proven" and B.standing("ml_cpc", "batch", n=1, m=5) == "proven" and B.standing("ml_cpc", "batch", n=1, alpha=.5) == "no proof"
    assert {B.standing(b, s) for b in ("cpc", "nwj", "ml_cpc") for s in ("queue", "bank", "other classes")} == {"not a bound"} == {B.standing(b, "per row") for b in ("dv", "smile")}
    for bad in (("infonce", "batch"), ("cpc", "stale")):
        with pytest.raises(InputError): B.standing(*bad)


def test_a_large_experiment_is_refused():
    with pytest.raises(InputError, match="too many"): B.outcomes(torch.full((4, 4), 1/16), 6, 6)
    with pytest.raises(InputError, match="not 2"): B.outcomes(torch.full((2, 2), .25), 3, 2)
    with pytest.raises(InputError, match="bank"): B.outcomes(torch.full((2, 2), .25), 3, 3, "bank")


def test_numbers_of_other_kinds():
    x = noise(4, 4)
    for alpha in (np.float32(.5), torch.tensor(.5), 1): assert B.ml_cpc(x, alpha=alpha) == B.ml_cpc(x, alpha=float(alpha))
    torch.testing.assert_close(B.ml_cpc(x, alpha=torch.tensor([.5, 1.])), B.ml_cpc(x, alpha=(.5, 1.)))
    for epsilon in (0., 1.):
        with pytest.raises(InputError, match="epsilon"): B.skew_kl(x[0], epsilon)
    assert B.ceiling(8, 0) == math.inf


def test_closed_form_agrees_with_the_table_of_the_facts(pairs_dir):
    "K of the 20-dimensional Gaussians, m = 128, against values that others computed (200,000 samples, two digits)."
    import pandas as pd
    file = pairs_dir.parent/"facts"/"ml_cpc_oracle.csv"
    if not file.is_file(): pytest.skip("no facts/ml_cpc_oracle.csv beside the pairs")
    table = pd.read_csv(file).set_index("alpha")
    x, e = torch.randn(2, 100_000, 20, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for name in table:
        I = float(name.removeprefix("mi_"))
        rho2 = -math.expm1(-2*I/20)
        y = rho2**.5*x + (1 - rho2)**.5*e
        log_r = I - (rho2*(x**2 + y**2).sum(1) - 2*rho2**.5*(x*y).sum(1))/(2*(1 - rho2))
        for alpha, value in table[name].items(): assert abs(B.skew_kl(log_r, alpha/128, I).item() - value) < .03, (I, alpha)
