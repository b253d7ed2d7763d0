"Shapes, randomness and closed forms of the bottlenecks and of the objectives that the paper is held against."
import math
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch.distributions import Normal, kl_divergence as torch_kl
from vdistill.bottlenecks import (CEB, MIB, VIB, EstimatedBottleneck, InformationBottleneck, MutualLearning, VariationalBottleneck, gaussian_kl, js_information,
                                  over_branches, sample_gaussian, symmetrised_kl, vib_loss)
from vdistill.core import InputError, generator

quick = settings(max_examples=40, deadline=None, derandomize=True)
both = pytest.mark.parametrize("cls", [InformationBottleneck, VariationalBottleneck])


def first(out): return out[0] if isinstance(out, tuple) else out


@quick
@given(st.integers(0, 10**6), st.integers(1, 9), st.floats(0.01, 6))
def test_the_closed_form_is_that_of_torch(seed, dim, scale):
    g = generator("kl", seed)
    mean, log_variance = (scale * torch.randn(5, dim, generator=g, dtype=torch.float64) for _ in range(2))
    truth = torch_kl(Normal(mean, (log_variance / 2).exp()), Normal(torch.zeros(()).double(), 1.0)).sum(1)
    kl = gaussian_kl(mean, log_variance)
    assert kl.shape == (5,) and torch.allclose(kl, truth, rtol=1e-10, atol=1e-12) and (kl >= 0).all()


def test_half_precision_is_summed_in_single():
    mean = torch.full((1, 4096), 8.0, dtype=torch.float16)
    assert torch.isclose(gaussian_kl(mean, torch.zeros_like(mean)), torch.tensor(4096 * 32.0))


@both
@pytest.mark.parametrize("normalization", ["batch", "layer", "none"])
@pytest.mark.parametrize("hidden", [(), (7,), (9, 5)])
def test_shapes_and_gradients(cls, normalization, hidden):
    module = cls(6, 4, hidden=hidden, normalization=normalization)
    v = torch.randn(3, 6, requires_grad=True)
    first(module(v)).square().sum().backward()
    assert first(module(v)).shape == (3, 4) and v.grad.isfinite().all()
    assert all(p.grad is not None for p in module.parameters())


@both
def test_defaults_are_the_papers_widths(cls):
    widths = [m.out_features for m in cls(32).layers if isinstance(m, torch.nn.Linear)]
    assert widths == [1024, 512, 256 if cls is InformationBottleneck else 512]


@both
def test_a_batch_of_one(cls):
    v = torch.randn(1, 6)
    with pytest.raises(InputError, match="2 samples or more"): cls(6, 4, hidden=(5,))(v)
    for module in (cls(6, 4, hidden=(5,)).eval(), cls(6, 4, hidden=(5,), normalization="layer"), cls(6, 4, hidden=(5,), normalization="none"), cls(6, 4, hidden=())):
        assert first(module(v)).isfinite().all()


@both
def test_bad_sizes_are_told_in_one_sentence(cls):
    for bad, words in [(lambda: cls(6, 0), "1 or more"), (lambda: cls(0), "1 or more"), (lambda: cls(6, hidden=(0,)), "1 or more"), (lambda: cls(6, normalization="rms"), "'rms'"),
                       (lambda: cls(6)(torch.randn(3, 5)), r"\(3, 5\)"), (lambda: cls(6)(torch.randn(6)), r"\(B, 6\)")]:
        with pytest.raises(InputError, match=words): bad()


def test_randomness_comes_from_the_generator_and_only_in_training():
    module, v = VariationalBottleneck(6, 4, hidden=(5,), normalization="none"), torch.randn(3, 6)
    state = torch.get_rng_state()
    a, b, c = (module(v, generator("z", seed=s))[0] for s in (1, 1, 2))
    assert torch.equal(a, b) and not torch.equal(a, c) and torch.equal(torch.get_rng_state(), state)
    module.eval()
    z, kl = module(v)
    assert torch.equal(z, module(v)[0]) and torch.equal(z, module.encode(v)[0]) and torch.equal(kl, gaussian_kl(*module.encode(v)))


def test_samples_have_the_mean_and_variance_asked_for():
    mean, log_variance = torch.tensor([[1.0, -3.0]]), torch.tensor([[0.0, 2.0]])
    draws = sample_gaussian(mean.expand(100_000, 2), log_variance.expand(100_000, 2), generator("draws"))
    assert torch.allclose(draws.mean(0), mean[0], atol=0.05) and torch.allclose(draws.var(0).log(), log_variance[0], atol=0.03)


def test_enormous_inputs_stay_finite():
    module = VariationalBottleneck(6, 4, hidden=(), normalization="none")
    v = (1e4 * torch.randn(3, 6, generator=generator("big"))).requires_grad_()
    z, kl = module(v, generator("z"))
    (z.sum() + kl.sum()).backward()
    assert z.isfinite().all() and kl.isfinite().all() and v.grad.isfinite().all()


def test_vib_loss_is_a_sum():
    logits, labels, kl = torch.randn(5, 3), torch.tensor([0, 1, 2, 0, 1]), torch.rand(5)
    assert torch.isclose(vib_loss(logits, labels, kl, 0.5), torch.nn.functional.cross_entropy(logits, labels) + 0.5 * kl.mean())
    with pytest.raises(InputError, match="beta"): vib_loss(logits, labels, kl, -1)


# ---- the foils

def entries(n=6, seed=0):
    g = generator("entries", seed=seed)
    return dict(v=torch.randn(n, 5, generator=g), z=torch.randn(n, 3, generator=g), mean=torch.randn(n, 3, generator=g), log_variance=torch.randn(n, 3, generator=g),
                v_logits=torch.randn(n, 4, generator=g), z_logits=torch.randn(n, 4, generator=g))


LABELS = torch.tensor([0, 1, 2, 3, 0, 1])
FOILS = {"vib": lambda: VIB(.3), "ceb": lambda: CEB(3, 4, .3), "estimated": lambda: EstimatedBottleneck(5, 3, 4, .3, hidden=8), "mib": lambda: MIB(3, .3, hidden=8), "dml": lambda: MutualLearning(.3)}


@pytest.mark.parametrize("name", FOILS)
def test_one_calling_form(name):
    "Called as the distillation losses are; named finite terms and a total that depends on z; the input is left alone."
    torch.manual_seed(0)
    foil, four = FOILS[name](), [entries(seed=k) for k in range(4)]
    before = [{k: t.clone() for k, t in e.items()} for e in four]
    leaves = [[e[r].requires_grad_() for r in foil.reads] for e in four]
    terms = foil(leaves[:2], leaves[2:], LABELS)
    assert "total" in terms and len(terms) > 1 and all(t.shape == () and t.isfinite() for t in terms.values())
    used = [t for pair in (leaves[2:] if name in ("mib", "dml") else leaves) for t, r in zip(pair, foil.reads) if r not in ("v", "v_logits")]
    assert all(g.any() for g in torch.autograd.grad(terms["total"], used))
    assert all(torch.equal(b[k], e[k].detach()) for b, e in zip(before, four) for k in b)


def test_the_teacher_side_of_the_estimate_is_held():
    torch.manual_seed(0)
    foil, e = EstimatedBottleneck(5, 3, 4, branches=1), entries()
    v, z = e["v"].requires_grad_(), e["z"].requires_grad_()
    assert torch.autograd.grad(foil([(v, z)], (), LABELS)["total"], v, allow_unused=True)[0] is None


def test_critics_climb_while_the_code_descends():
    "One step against each gradient: the critic's estimate rises, and with the critic fixed the code's estimate falls."
    torch.manual_seed(0)
    foil, e = EstimatedBottleneck(5, 3, 4, beta=5., branches=1), entries(32)
    labels, v, z = LABELS.repeat(6)[:32], e["v"], e["v"][:, :3].clone().requires_grad_()
    value = lambda z: js_information(foil.kept[0](v, z)).item()
    before = value(z)
    foil([(v, z)], (), labels)["total"].backward()
    assert value((z - 1e-2 * z.grad / z.grad.norm()).detach()) < before
    with torch.no_grad():
        for p in foil.kept.parameters(): p -= 1e-2 * p.grad
    assert value(z) > before


@quick
@given(st.integers(0, 10**6), st.integers(2, 12))
def test_js_information_is_a_bound_and_counts_pairs_once(seed, n):
    "Against a double loop; at most 2 log 2; a constant critic says 0."
    scores = 5 * torch.randn(n, n, generator=generator("scores", seed), dtype=torch.float64)
    softplus = lambda x: math.log1p(math.exp(-abs(x))) + max(x, 0)
    slow = 2 * math.log(2) - sum(softplus(-scores[i, i].item()) for i in range(n)) / n - sum(softplus(scores[i, j].item()) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    assert js_information(scores).item() == pytest.approx(slow, abs=1e-9) and slow <= 2 * math.log(2)
    assert js_information(torch.zeros(n, n)).item() == pytest.approx(0, abs=1e-6)


@quick
@given(st.integers(0, 10**6), st.integers(1, 6))
def test_symmetrised_kl(seed, d):
    m1, s1, m2, s2 = torch.randn(4, 7, d, generator=generator("skl", seed), dtype=torch.float64)
    n1, n2 = (Normal(m, (s / 2).exp()) for m, s in ((m1, s1), (m2, s2)))
    want = (torch_kl(n1, n2) + torch_kl(n2, n1)).sum(1) / 2
    torch.testing.assert_close(symmetrised_kl(m1, s1, m2, s2), want)
    assert (symmetrised_kl(m1, s1, m1, s1) == 0).all()


def test_conditional_rate_is_zero_at_the_class_means():
    ceb = CEB(3, 4, branches=1)
    mean = ceb.class_mean[0].weight.detach()[LABELS]
    assert ceb([(mean, torch.zeros(6, 3))], (), LABELS)["conditional_rate"] == 0
    assert VIB()([(mean, torch.zeros(6, 3))])["rate"] > 0


@pytest.mark.parametrize("make", [lambda: VIB(-1.), lambda: MIB(3, math.nan), lambda: js_information(torch.zeros(1, 1)), lambda: js_information(torch.zeros(3, 4)), lambda: over_branches(lambda x: x)])
def test_foils_refuse(make):
    with pytest.raises(InputError) as error: make()
    assert "\n" not in str(error.value)
