"Shapes, randomness and the closed form of the bottlenecks."
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch.distributions import Normal, kl_divergence as torch_kl
from vdistill.bottlenecks import InformationBottleneck, VariationalBottleneck, gaussian_kl, sample_gaussian, vib_loss
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
