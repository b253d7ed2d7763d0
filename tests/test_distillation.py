"The losses of variational distillation over many random cases, against oracles of their own."
import math
import sys
import warnings
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings, strategies as st
from scipy.special import rel_entr
from vdistill.core import InputError, LogitsWarning, generator
from torch._subclasses.fake_tensor import FakeTensorMode
from vdistill.bench.dispatch import count_operations
from vdistill.distillation import SimilarityDistillation, VariationalDistillation, released_loss, similarity_loss, vcd_loss, vml_loss, vsd_loss
from vdistill.reid.identity_losses import mutual_learning
from vdistill.information import (Table, conditional, cross_entropy, expected_divergence, extend, js_divergence, kl_divergence, marginal, mutual_information,
                                  random_distribution)
from vdistill.knowledge_distillation import kd_loss
from vdistill.reid.metric_losses import released_sinkhorn

quick = settings(max_examples=40, deadline=None, derandomize=True)
seeds, scales, classes = st.integers(0, 10**6), st.sampled_from([0.01, 1.0, 8.0]), st.integers(2, 50)


def logits(seed, scale=1.0, C=10, B=6, n=2, dtype=torch.float64):
    g = generator("logits", seed)
    return [(scale * torch.randn(B, C, generator=g, dtype=dtype)).requires_grad_() for _ in range(n)]


def oracle(p, q, T=1.0): return rel_entr(*((x.detach() / T).softmax(1).numpy() for x in (p, q))).sum(1)


@quick
@given(seeds, scales, classes, st.sampled_from([0.5, 1.0, 4.0]))
def test_vsd_and_vcd_are_the_divergence_from_the_observation(seed, scale, C, T):
    v, z = logits(seed, scale, C)
    for f in (vsd_loss, vcd_loss):
        assert np.allclose(f(v, z, T, reduction="none").detach(), oracle(v, z, T), rtol=1e-9, atol=1e-13)
        assert math.isclose(f(v, z, T).item(), oracle(v, z, T).mean(), rel_tol=1e-9, abs_tol=1e-13)


@quick
@given(seeds, scales, classes)
def test_vml_is_the_mean_divergence_from_the_mixture(seed, scale, C):
    z1, z2 = logits(seed, scale, C)
    m = ((z1.softmax(1) + z2.softmax(1)) / 2).log()
    assert np.allclose(vml_loss(z1, z2, reduction="none").detach(), (oracle(z1, m) + oracle(z2, m)) / 2, rtol=1e-6, atol=1e-13)
    assert 0 <= vml_loss(z1, z2) <= math.log(2)


@quick
@given(seeds, scales, classes, st.sampled_from([0.5, 1.0, 4.0]))
def test_gradients_have_their_closed_form(seed, scale, C, T):
    v, z = logits(seed, scale, C)
    p, q = ((x.detach() / T).softmax(1) for x in (v, z))
    to_v, to_z = torch.autograd.grad(vsd_loss(v, z, T), (v, z), allow_unused=True)
    assert to_v is None and torch.allclose(to_z, (q - p) / (T * 6), atol=1e-12)
    to_v, to_z = torch.autograd.grad(vsd_loss(v, z, T, detach=False), (v, z))
    log_ratio = ((v / T).log_softmax(1) - (z / T).log_softmax(1)).detach()
    assert torch.allclose(to_v, p * (log_ratio - (p * log_ratio).sum(1, keepdim=True)) / (T * 6), atol=1e-12)
    assert torch.allclose(to_z, (q - p) / (T * 6), atol=1e-12)


def test_gradcheck():
    v, z = logits(0, C=4, B=3)
    for f in (lambda a, b: vsd_loss(a, b, 2.0, detach=False), lambda a, b: vcd_loss(a, b, 2.0, detach=False), lambda a, b: vml_loss(a, b, 2.0)):
        assert torch.autograd.gradcheck(f, (v, z))
    assert torch.autograd.gradcheck(lambda b: released_loss(v, b), (z,))


@quick
@given(seeds, scales, st.sampled_from([torch.float32, torch.bfloat16]))
def test_silence_at_equality(seed, scale, dtype):
    v = logits(seed, scale, 395)[0].detach().to(dtype)
    for f in (vsd_loss, vcd_loss, vml_loss):
        z = v.clone().requires_grad_()
        value = f(v, z)
        value.backward()
        assert abs(value.item()) < 1e-6 and z.grad.abs().max() < 1e-6


@quick
@given(seeds, st.sampled_from([0.3, 1.0, 4.0]))
def test_the_expected_loss_is_the_information_lost(seed, scale):
    g = generator("chain", seed)
    p = extend(Table(random_distribution(3, generator=g), "y"), "v", "y", random_distribution(3, 6, scale=scale, generator=g))
    p = extend(p, "z", "v", random_distribution(6, 4, scale=scale, generator=g))
    assert expected_divergence(p, "v", "z", divergence=vsd_loss) == pytest.approx(mutual_information(p, "v", "y", given="z"), abs=1e-12)


@quick
@given(seeds, st.sampled_from([0.3, 1.0, 4.0]))
def test_the_expected_gradient_is_that_of_cross_entropy(seed, scale):
    g = generator("gradient", seed)
    p = extend(Table(random_distribution(3, generator=g), "y"), "v", "y", random_distribution(3, 6, scale=scale, generator=g))
    p = extend(p, "z", "v", random_distribution(6, 4, scale=scale, generator=g))
    head = torch.randn(4, 3, generator=g, dtype=torch.float64, requires_grad=True)
    y, v, z = torch.tensor(np.indices(p.p.shape).reshape(3, -1))
    weights = torch.tensor(p.p.ravel())
    teacher = torch.tensor(conditional(p, "y", "v")).log()[v]
    a, b = (torch.autograd.grad((weights * loss).sum(), head)[0] for loss in (vsd_loss(teacher, head[z], reduction="none"), F.cross_entropy(head[z], y, reduction="none")))
    assert torch.allclose(a, b, atol=1e-12)


def test_the_optimum_of_cross_distillation_is_the_other_views_expected_opinion():
    g = generator("cross")
    both = random_distribution(2, 16, scale=2, generator=g).reshape(2, 4, 4)
    p = extend(Table(both / 2, "y v1 v2"), "z1", "v1", random_distribution(4, 3, scale=2, generator=g))
    v2, z1 = (x.ravel() for x in np.indices((4, 3)))
    weights = torch.tensor(marginal(p, ["v2", "z1"]).p.ravel())
    head = torch.tensor(np.log(conditional(p, "v2", "z1") @ conditional(p, "y", "v2"))).requires_grad_()
    loss = (weights * vcd_loss(torch.tensor(conditional(p, "y", "v2")).log()[v2], head[z1], reduction="none")).sum()
    assert torch.autograd.grad(loss, head)[0].abs().max() < 1e-12


# -- the released loss

@quick
@given(seeds, st.sampled_from([0.01, 1.0, 30.0, 1e4]), classes)
def test_released_loss_is_the_released_call_and_stays_in_its_range(seed, scale, C):
    v, z = logits(seed, scale, C)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        call = F.kl_div(v.softmax(1).detach(), z.softmax(1))
    assert torch.isclose(released_loss(v, z), call, atol=1e-12)
    assert -math.log(C - 1 + math.e) / C - 1e-12 <= released_loss(v, z) <= 1e-12
    to_v, to_z = torch.autograd.grad(released_loss(v, z), (v, z), allow_unused=True)
    assert to_v is None and to_z.isfinite().all()


@pytest.mark.filterwarnings("ignore::vdistill.core.LogitsWarning") # its best logits are probabilities
@quick
@given(seeds, scales, classes)
def test_released_loss_is_least_at_the_softmax_of_the_probabilities(seed, scale, C):
    v, other = logits(seed, scale, C)
    best = v.softmax(1).detach().requires_grad_()
    assert torch.autograd.grad(released_loss(v, best), best)[0].abs().max() < 1e-12
    assert released_loss(v, best) <= released_loss(v, other) and best.softmax(1).max() / best.softmax(1).min() <= math.e


# -- the weighted sum

@quick
@given(seeds, st.sampled_from([0.0, 0.5, 2.0]), st.sampled_from([0.0, 1.0]), st.sampled_from([0.0, 3.0]), st.sampled_from([0.0, 1.0, 2.0]), st.integers(0, 3), st.booleans())
def test_the_weighted_sum(seed, vsd, vcd, vml, beta, branches, paired):
    xs = logits(seed, n=2 * branches + 4)
    specific = list(zip(xs[4::2], xs[5::2]))
    (v1, z1), (v2, z2) = shared = ((xs[0], xs[1]), (xs[2], xs[3]))
    distil = VariationalDistillation(vsd, vcd, vml, beta, temperature=2.0)
    if not (specific or paired):
        with pytest.raises(InputError, match="nothing to distil"): distil(specific, None)
        return
    terms = distil(specific, shared if paired else None)
    expected = {"vsd": sum(oracle(v, z, 2.0).mean() for v, z in specific) if vsd else 0,
                "vcd": (oracle(v2, z1, 2.0).mean() + oracle(v1, z2, 2.0).mean()) / 2 if vcd and paired else 0,
                "vml": vml_loss(z1, z2, 2.0).item() if vml and paired else 0}
    assert list(terms) == ["vsd", "vcd", "vml", "total"]
    for k, value in expected.items(): assert terms[k].item() == pytest.approx(value, rel=1e-9)
    assert terms["total"].item() == pytest.approx(beta * (vsd * expected["vsd"] + vcd * expected["vcd"] + vml * expected["vml"]), rel=1e-9)


@quick
@given(seeds, st.sampled_from([1.0, 2.0]))
def test_who_teaches_the_other_view(seed, temperature):
    "Both views' mean, and the better of them, against sums in float64."
    v1, z1, v2, z2 = xs = logits(seed, n=4)
    label = torch.arange(len(v1)) % v1.shape[1]
    vcd = lambda kind, labels=label: VariationalDistillation(vcd_teacher=kind, temperature=temperature)(shared=((v1, z1), (v2, z2)), labels=labels)["vcd"]
    p1, p2 = (v.detach().double().softmax(1) for v in (v1, v2))
    both = ((p1 + p2)/2).log()
    assert vcd("mean").item() == pytest.approx((oracle(both, z1, temperature).mean() + oracle(both, z2, temperature).mean()).item()/2, rel=1e-6)
    better = p2[range(len(label)), label] > p1[range(len(label)), label]
    wanted = (torch.as_tensor(oracle(v2, z1, temperature))*better + torch.as_tensor(oracle(v1, z2, temperature))*~better).mean()/2
    assert vcd("better").item() == pytest.approx(wanted.item(), rel=1e-6)
    with pytest.raises(InputError, match="pass labels"): vcd("better", None)
    vcd("mean").backward()
    assert v1.grad is None and v2.grad is None and z1.grad.abs().sum() > 0


def test_a_term_that_is_off_touches_nothing():
    z1, z2 = (torch.zeros(2, 3, requires_grad=True) for _ in range(2))
    poison = torch.full((2, 3), math.nan)
    terms = VariationalDistillation(vcd=0)(shared=((poison, z1), (poison, z2)))
    assert terms["vcd"] == 0 and terms["total"].isfinite()
    terms["total"].backward()
    assert z1.grad.isfinite().all()


def test_detach_decides_who_learns():
    for detach in (True, False):
        xs = logits(7, n=8)
        pairs = list(zip(xs[::2], xs[1::2]))
        VariationalDistillation(detach=detach)(pairs[:2], tuple(pairs[2:]))["total"].backward()
        assert all(z.grad.abs().sum() > 0 for _, z in pairs) and all((v.grad is None) == detach for v, _ in pairs)


def test_specific_branches_may_have_batches_of_their_own_and_inputs_are_not_changed():
    a, b = logits(1, B=4), logits(2, B=9)
    before = [x.detach().clone() for x in (*a, *b)]
    terms = VariationalDistillation()([tuple(a), tuple(b)])
    assert terms["vsd"].item() == pytest.approx(oracle(*a).mean() + oracle(*b).mean())
    assert all(torch.equal(x, y) for x, y in zip((*a, *b), before))


def test_half_precision_logits_give_single_precision_terms():
    xs = [x.detach().bfloat16() for x in logits(3, n=6)]
    terms = VariationalDistillation()([(xs[0], xs[1])], ((xs[2], xs[3]), (xs[4], xs[5])))
    assert all(t.dtype == torch.float32 and t.isfinite() for t in terms.values())


def test_bad_arguments_are_told_in_one_sentence():
    v, z = logits(0)
    distil = VariationalDistillation()
    for bad, words in [(lambda: distil((v, z)), r"write \[\(v, z\)\]"), (lambda: distil(v), r"write \[\(v, z\)\]"), (lambda: distil([(v, z, z)]), "pairs"), (lambda: distil(shared=(v, z)), "two pairs"),
                       (lambda: distil(shared=[(v, z)]), "two pairs"), (lambda: distil(), "nothing to distil"), (lambda: distil([(v, z[:2])]), "one shape"),
                       (lambda: VariationalDistillation(vml=-1), "'vml': -1"), (lambda: VariationalDistillation(beta=math.nan), "beta"), (lambda: vsd_loss(v, z, reduction="mean"), "refused")]:
        with pytest.raises(InputError, match=words): bad()


# -- logits that are none, and classes that cannot be

MASKED_V = torch.tensor([[.3, -1., -math.inf, 2.], [1., .5, -math.inf, 0.]], dtype=torch.float64)
MASKED_Z = torch.tensor([[1., 0., -math.inf, -.5], [0., .2, -math.inf, 1.]], dtype=torch.float64)


def released_oracle(v, z): # a term with P_z = 0 is 0, as its limit
    v, z = v.softmax(1), z.softmax(1)
    return (torch.special.xlogy(z, z) - z * v).sum(1).mean() / v.shape[1]


def test_a_masked_class_adds_nothing_to_the_released_loss():
    z = MASKED_Z.clone().requires_grad_()
    loss = released_loss(MASKED_V, z)
    loss.backward()
    assert loss.item() == pytest.approx(released_oracle(MASKED_V, MASKED_Z).item(), abs=1e-12)
    assert loss.item() * 4 / 3 == pytest.approx(released_loss(MASKED_V[:, [0, 1, 3]], MASKED_Z[:, [0, 1, 3]]).item(), abs=1e-12)  # only the C of the mean is larger
    part = MASKED_Z[:, [0, 1, 3]].clone().requires_grad_()
    released_loss(MASKED_V[:, [0, 1, 3]], part).backward()
    assert z.grad[:, 2].tolist() == [0, 0]
    torch.testing.assert_close(z.grad[:, [0, 1, 3]] * 4, part.grad * 3)
    open_v = MASKED_V.clamp(min=-1)                                                     # masked in the student alone
    assert released_loss(open_v, MASKED_Z).item() == pytest.approx(released_oracle(open_v, MASKED_Z).item(), abs=1e-12)
    z = MASKED_Z.clamp(min=-1)                                                          # in the teacher alone: P_v is 0
    assert released_loss(MASKED_V, z).item() == pytest.approx(released_oracle(MASKED_V, z).item(), abs=1e-12)


@pytest.mark.parametrize("loss", [vsd_loss, vcd_loss, vml_loss, kl_divergence, js_divergence, cross_entropy, mutual_learning])
def test_a_class_masked_on_both_sides_is_as_if_it_were_not_there(loss):
    inputs = [x.clone().requires_grad_() for x in (MASKED_V, MASKED_Z)]
    parts = [x[:, [0, 1, 3]].clone().requires_grad_() for x in (MASKED_V, MASKED_Z)]
    value, without = loss(*inputs), loss(*parts)
    assert value.item() == pytest.approx(without.item(), abs=1e-12)
    value.backward(), without.backward()
    for x, part in zip(inputs, parts):
        if part.grad is None: continue
        assert x.grad[:, 2].tolist() == [0, 0]
        torch.testing.assert_close(x.grad[:, [0, 1, 3]], part.grad)


@pytest.mark.parametrize("T", [.5, 1., 4.])
def test_a_class_masked_on_one_side_is_infinite_or_free(T):
    open_v = MASKED_V.clamp(min=-1)
    z = MASKED_Z.clone().requires_grad_()
    loss = vsd_loss(open_v, z, T, reduction="none")
    assert loss.tolist() == [math.inf]*2
    loss.sum().backward()                                                               # P_z - P_v, also where the value is infinite
    torch.testing.assert_close(z.grad, ((z.detach()/T).softmax(1) - (open_v/T).softmax(1))/T)
    z = MASKED_Z.clamp(min=-1).requires_grad_()
    loss = vsd_loss(MASKED_V, z, T, reduction="none")
    assert np.allclose(loss.detach(), oracle(MASKED_V, z, T))
    loss.sum().backward()
    torch.testing.assert_close(z.grad, ((z.detach()/T).softmax(1) - (MASKED_V/T).softmax(1))/T)
    a, b = MASKED_V.clone().requires_grad_(), MASKED_Z.clamp(min=-1).requires_grad_()
    js = vml_loss(a, b, T)
    m = ((a/T).softmax(1) + (b/T).softmax(1)).log().detach() - math.log(2)
    assert js.item() == pytest.approx(np.mean(rel_entr((a/T).softmax(1).detach(), m.exp()).sum(1).numpy() + rel_entr((b/T).softmax(1).detach(), m.exp()).sum(1).numpy())/2, abs=1e-12)
    js.backward()
    assert a.grad.isfinite().all() and b.grad.isfinite().all()


P, Q = (torch.tensor(x) for x in ([[.7, .2, .1], [.1, .3, .6]], [[.5, .25, .25], [.2, .2, .6]]))


@pytest.fixture
def loud(): # every warning, each time
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        yield said


def told(said): return [w for w in said if issubclass(w.category, LogitsWarning)]


EVERY_LOSS = dict(vsd=vsd_loss, vcd=vcd_loss, vml=vml_loss, released=released_loss, kl=kl_divergence, js=js_divergence, cross=cross_entropy, dml=mutual_learning, kd=kd_loss, transport=released_sinkhorn,
                  module=lambda v, z: VariationalDistillation()([(v, z)], ((v, z), (v, z)))["total"])


@pytest.mark.parametrize("name", EVERY_LOSS)
def test_probabilities_in_the_place_of_logits_are_told(name, loud):
    loss = EVERY_LOSS[name]
    right = loss(P.log(), Q.log())
    assert not told(loud)
    wrong = loss(P, Q)
    assert told(loud) and "probabilities" in str(told(loud)[0].message) and wrong != right
    assert told(loud)[0].filename == __file__ or name == "module"                       # the line that has the mistake
    before = len(told(loud))
    loss(P, 3*torch.randn(2, 3, generator=generator("other")))                          # one side is enough
    assert len(told(loud)) > before


def test_what_is_meant_as_logits_is_left_alone(loud):
    g = generator("alone")
    eye = torch.eye(3)
    for x in (torch.randn(64, 10, generator=g), torch.rand(64, 10, generator=g), torch.zeros(4, 5), torch.ones(4, 5), eye, torch.tensor([[1., 0.]]), torch.ones(4, 1), P.log(), P[:0], torch.tensor([[.7, .2, .1], [3., 1., 0.]]), torch.full((2, 3), math.nan),
              torch.tensor([[math.inf, 0., 0.]]), torch.tensor([[1., 0., -math.inf]])):
        kl_divergence(x, x.flip(0), reduction="none")
    assert not told(loud)
    for x in (P.half(), P.double(), torch.tensor([[.333, .333, .333]]), P.clone().requires_grad_(), torch.nn.Parameter(P), torch.tensor([[0., 1., 0.], [.5, .5, 0.]])):
        before = len(told(loud))
        kl_divergence(x, torch.zeros_like(x), reduction="none")
        assert len(told(loud)) == before + 1, x


def test_looking_at_logits_asks_no_device_and_disturbs_no_transform(loud):
    assert count_operations(lambda: vsd_loss(P, Q)).syncs == 0
    told(loud) or pytest.fail("not looked at")
    logs = P.log(), Q.log()
    computed = lambda *x: count_operations(lambda: vsd_loss(*x)).names.keys()
    assert computed(P, Q) == computed(*logs)
    loud.clear()
    assert vsd_loss(P.to("meta"), Q.to("meta")).device.type == "meta"
    with FakeTensorMode():
        for device in ("cpu", "cuda"):
            if device == "cuda" and not torch.cuda.is_available() and torch.version.cuda is None: continue
            v, z = (torch.empty(4, 3, device=device) for _ in range(2))
            assert vsd_loss(v, z).device.type == device
    alone = torch.func.vmap(lambda v, z: vsd_loss(v[None], z[None]))(P, Q)
    torch.testing.assert_close(alone.mean(), vsd_loss(P, Q))
    torch.testing.assert_close(torch.func.grad(lambda z: vsd_loss(P, z))(Q), ((Q.softmax(1) - P.softmax(1))/2))
    torch.func.vmap(torch.func.grad(lambda z, v: vsd_loss(v[None], z[None])))(Q, P)
    torch.func.jvp(lambda z: vsd_loss(P, z), (Q,), (torch.ones_like(Q),))
    with torch.inference_mode(): vsd_loss(P, Q)


@pytest.mark.skipif(sys.version_info >= (3, 14), reason="torch 2.9 compiles nothing on Python 3.14")
def test_looking_at_logits_leaves_no_trace_in_a_graph():
    compiled = torch.compile(vsd_loss, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(P, Q), vsd_loss(P, Q))
    class Loss(torch.nn.Module):
        def forward(self, v, z): return vsd_loss(v, z)
    for strict in (False, True): assert torch.export.export(Loss(), (P, Q), strict=strict).module()(P, Q) == vsd_loss(P, Q)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(vsd_loss, (P, Q), check_trace=False)
    assert traced(P, Q) == vsd_loss(P, Q)


@quick
@given(seeds, st.integers(2, 12), st.sampled_from([.05, .5]))
def test_similarities_are_distilled_as_by_loops(seed, B, temperature):
    "Each image's neighbours in the other view, in float64; z may be turned, stretched and of another size."
    v1, v2 = logits(seed, C=5, B=B)
    z1, z2 = logits(seed + 1, C=3, B=B)
    def row(a, b, i): # P(. | i)
        cosines = np.array([np.dot(a[i], x)/np.linalg.norm(a[i])/np.linalg.norm(x) for x in b])
        return np.exp(cosines/temperature)/np.exp(cosines/temperature).sum()
    plain = [x.detach().numpy() for x in (v1, v2, z1, z2)]
    want = np.mean([rel_entr(row(plain[a], plain[1 - a], i), row(plain[2 + a], plain[3 - a], i)).sum() for a in (0, 1) for i in range(B)])
    loss = SimilarityDistillation(beta=2., temperature=temperature)(shared=((v1, z1), (v2, z2)))
    assert loss["similarity"].item() == pytest.approx(want, rel=1e-9, abs=1e-12) and loss["total"].item() == pytest.approx(2*want, rel=1e-9, abs=1e-12)
    loss["total"].backward()
    assert v1.grad is None and v2.grad is None and z1.grad is not None
    turn = torch.linalg.qr(torch.randn(5, 5, generator=generator("turn", seed), dtype=torch.float64))[0]
    assert abs(similarity_loss((v1, v2), (3*v1 @ turn, v2 @ turn), temperature).item()) < 1e-10
    assert similarity_loss((v1, v2), (z1, z2), temperature, detach=False).backward() is None and v1.grad.abs().sum() > 0
