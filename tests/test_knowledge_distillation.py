"Distillation losses against slow versions; banks by brute force; gradients go to the student and never to the teacher."
import copy
import math
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings, strategies as st

from vdistill import knowledge_distillation as K
from vdistill.bounds import BoundWarning, cpc, ml_cpc
from vdistill.core import InputError, generator

fuzz = settings(derandomize=True, deadline=None, max_examples=40)
CLASSES = torch.arange(40) % 5


def noise(*shape, key=0): return torch.randn(*shape, generator=generator("kd", key))

def batch(b=8, key=0): # student and teacher, labels, index
    index = torch.randperm(40, generator=generator("index", key))[:b]
    return K.Outputs(noise(b, 6, key=key), noise(b, 5, key=key + 1)), K.Outputs(noise(b, 9, key=key + 2), noise(b, 5, key=key + 3)), CLASSES[index], index

def make(name):
    torch.manual_seed(0)
    return dict(KD=K.KD, VSD=K.VSD, FitNet=lambda: K.FitNet(6, 9), VID=lambda: K.VID(6, 9), VID_deep=lambda: K.VID(6, 9, hidden=7), CRD=lambda: K.CRD(6, 9, CLASSES, negatives=12, embedding=4),
                CPC=lambda: K.CRD(6, 9, CLASSES, "cpc", negatives=12, embedding=4), ML_CRD=lambda: K.CRD(6, 9, CLASSES, "ml_cpc", .5, negatives=12, embedding=4), InBatch=lambda: K.InBatch(6, 9, embedding=4))[name]()

METHODS = ("KD", "VSD", "FitNet", "VID", "VID_deep", "CRD", "CPC", "ML_CRD", "InBatch")


@pytest.mark.parametrize("name", METHODS)
def test_one_calling_form_and_where_gradients_go(name):
    loss, (student, teacher, labels, index) = make(name), batch()
    student, teacher = (K.Outputs(*(x.clone().requires_grad_() for x in o)) for o in (student, teacher))
    value = loss(student, teacher, labels, index)
    assert value.shape == () and value.isfinite()
    value.backward()
    assert teacher.features.grad is None and teacher.logits.grad is None
    read = student.logits if name in ("KD", "VSD") else student.features
    assert read.grad is not None and read.grad.abs().sum() > 0
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in loss.parameters())   # VID's variance among them
    assert torch.isfinite(loss(student, teacher, labels, index))                            # and again, after the banks have moved


@fuzz
@given(st.integers(1, 6), st.integers(2, 5), st.floats(.5, 20), st.integers(0, 99))
def test_kd_is_its_definition(b, c, temperature, key):
    s, t = (3*noise(b, c, key=key + i).double() for i in (0, 1))
    p, q = (np.exp(x/temperature)/np.exp(x/temperature).sum(1, keepdims=True) for x in (t.numpy(), s.numpy()))
    assert K.kd_loss(s, t, temperature).item() == pytest.approx(temperature**2*(p*np.log(p/q)).sum(1).mean(), rel=1e-6, abs=1e-9)


def test_vid_is_a_gaussian_log_likelihood():
    loss, (student, teacher, *_) = make("VID"), batch()
    with torch.no_grad(): loss.raw.copy_(noise(9, key=7))
    normal = torch.distributions.Normal(loss.mean(student.features), loss.variance().sqrt())
    torch.testing.assert_close(loss(student, teacher), -normal.log_prob(teacher.features).sum(1).mean())
    torch.testing.assert_close(make("VID").variance(), torch.ones(9), rtol=1e-3, atol=1e-3)


@fuzz
@given(st.integers(0, 50), st.integers(1, 30))
def test_negatives_are_of_other_classes(key, k):
    classes = torch.randint(0, 4, (25,), generator=generator("classes", key))
    classes[:4] = torch.arange(4)
    bank, labels = K.MemoryBank(classes, 3), torch.arange(4)
    drawn = bank.negatives(labels, k, generator("draw", key))
    assert drawn.shape == (4, k) and (classes[drawn] != labels[:, None]).all() and drawn.min() >= 0 and drawn.max() < 25


def test_a_class_without_images_is_drawn_from_like_any():
    bank = K.MemoryBank(torch.tensor([0, 0, 3, 3]), 2)                                      # classes 1 and 2 have none
    assert set(bank.negatives(torch.tensor([3]), 200, generator("a"))[0].tolist()) == {0, 1} and set(bank.negatives(torch.tensor([0]), 200, generator("a"))[0].tolist()) == {2, 3}


def test_nce_is_two_binary_cross_entropies():
    f, g, noise_weight = noise(5), noise(5, 7, key=1), .3
    p, q = f.double().exp(), g.double().exp()
    expected = -(p/(p + noise_weight)).log().mean() - (noise_weight/(q + noise_weight)).log().sum(1).mean()
    torch.testing.assert_close(K.nce_loss(f, g, noise_weight).double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("bound", ["nce", "cpc", "ml_cpc"])
def test_crd_is_written_out(bound):
    "Both directions by hand: features chosen out of the banks, one image at a time."
    torch.manual_seed(0)
    loss, (student, teacher, labels, index) = K.CRD(6, 9, CLASSES, bound, negatives=12, embedding=4), batch()
    s, t = F.normalize(loss.student(student.features), dim=1), F.normalize(loss.teacher(teacher.features), dim=1)
    banks = [loss.teacher_bank.memory.clone(), loss.student_bank.memory.clone()]
    again = generator("negatives", seed=0)
    chosen = loss.teacher_bank.negatives(labels, 12, again)
    total = 0.
    for x, bank in zip((s, t), banks):
        f, g = (x*bank[index]).sum(1)/.07, (x[:, None]*bank[chosen]).sum(2)/.07
        if bound == "nce":
            z = torch.cat([f[:, None], g], 1).detach().exp().mean()*40
            p, q = f.exp()/z, g.exp()/z
            total = total - (p/(p + 12/40)).log().mean() - (12/40/(q + 12/40)).log().sum(1).mean()
        else: total = total - dict(cpc=cpc, ml_cpc=ml_cpc)[bound](f, g)
    torch.testing.assert_close(loss(student, teacher, labels, index), total, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(loss.teacher_bank.memory[index], F.normalize(.5*banks[0][index] + .5*t, dim=1))
    rest = torch.ones(40, dtype=bool); rest[index] = False
    assert torch.equal(loss.student_bank.memory[rest], banks[1][rest])


def test_z_is_taken_from_the_first_batch_only():
    loss = make("CRD")
    loss(*batch())
    first = loss.log_z.clone()
    loss(*batch(key=5))
    assert first.isfinite().all() and torch.equal(loss.log_z, first)


def test_in_batch_is_minus_a_bound():
    loss, (student, teacher, *_) = make("InBatch"), batch()
    s, t = F.normalize(loss.student(student.features), dim=1), F.normalize(loss.teacher(teacher.features), dim=1)
    torch.testing.assert_close(loss(student, teacher), -ml_cpc(s @ t.T/.07))
    assert loss(student, teacher) >= -math.log(8)


def test_a_student_learns_and_repeats():
    x, y = noise(200, 4), (noise(200, 4).sum(1) > 0).long()
    def student():
        torch.manual_seed(3)
        return K.fit(K.Net(4, 8, 2), x, y, epochs=20, learning_rate=.02, seed=1)
    a, b, seen = student(), student(), []
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters()))
    assert (a(x).logits.argmax(1) == y).float().mean() > .9
    K.fit(K.Net(4, 8, 2), x, y, epochs=3, each=lambda epoch, network: seen.append(epoch))
    assert seen == [0, 1, 2]


def test_a_set_smaller_than_a_batch_and_leftovers():
    x, y, sizes = noise(40, 2), torch.arange(40) % 2, []
    class Watched(K.Net):
        def forward(self, v): sizes.append(len(v)); return super().forward(v)
    K.fit(Watched(2, 4, 2), x, y, epochs=2)
    K.fit(Watched(2, 4, 2), x, y, epochs=2, batch=16)
    assert sizes == [40]*2 + [16]*4                                                         # a bound's ceiling is the same in every batch


@pytest.mark.parametrize("rows", [4, 41, 47, 48, 49, 200])
def test_scores_are_the_same_either_way(rows, monkeypatch):
    "12 negatives of 4 features: up to 48 images all cosines are taken, above that the features are chosen first."
    bank = K.MemoryBank(torch.arange(rows) % 3, 4)
    x, index = F.normalize(noise(6, 4), dim=1), torch.randint(rows, (6, 12), generator=generator("index"))
    torch.testing.assert_close(bank.scores(x, index), (x[:, None]*bank.memory[index]).sum(2))
    products = []
    monkeypatch.setattr(K, "cosines", lambda *args, cosines=K.cosines: (products.append(1), cosines(*args))[1])
    bank.scores(x, index)
    assert bool(products) == (rows <= 48)


@pytest.mark.parametrize("name", ["CRD", "CPC", "ML_CRD"])
def test_evaluation_moves_nothing_and_has_a_value(name):
    loss = make(name).eval()                                                                # before any training step
    banks, stream = [b.memory.clone() for b in (loss.student_bank, loss.teacher_bank)], loss.rng.get_state()
    with torch.no_grad(): first, second = loss(*batch()), loss(*batch())
    assert first.isfinite() and torch.equal(first, second) and torch.equal(stream, loss.rng.get_state())
    assert all(torch.equal(b.memory, before) for b, before in zip((loss.student_bank, loss.teacher_bank), banks))
    loss.train()(*batch())
    assert not torch.equal(loss.teacher_bank.memory, banks[1]) and not torch.equal(stream, loss.rng.get_state())


@pytest.mark.parametrize("name", ["CRD", "ML_CRD"])
def test_a_resumed_loss_goes_on_as_if_nothing_had_been(name, tmp_path):
    loss = make(name)
    loss(*batch())
    torch.save(loss.state_dict(), tmp_path/"state.pt")
    again = make(name)
    again.load_state_dict(torch.load(tmp_path/"state.pt", weights_only=True))
    values = [[l(*batch(key=k)).item() for k in (1, 2, 3)] for l in (loss, again)]
    assert values[0] == values[1]
    state = copy.deepcopy(loss.state_dict())
    state["_extra_state"] = dict(device="cuda", negatives=torch.zeros(16, dtype=torch.uint8))    # another device's stream is not this one's
    again.load_state_dict(state)


def test_classes_are_the_banks():
    "Labels that contradict the bank, or none, change nothing; classes come as a list or an array too."
    student, teacher, labels, index = batch()
    values = [make("ML_CRD")(student, teacher, given, index).item() for given in (labels, None, (labels + 1) % 5)]
    assert values[0] == values[1] == values[2]
    for classes in (CLASSES.tolist(), CLASSES.numpy(), CLASSES.int(), CLASSES.numpy().astype(np.uint8)):
        torch.manual_seed(0)
        assert K.CRD(6, 9, classes, "ml_cpc", .5, negatives=12, embedding=4)(student, teacher, None, index.numpy()).item() == values[0]


@pytest.mark.parametrize("name", METHODS)
def test_half_precision_is_lifted(name):
    "Under autocast the value is float32, and close to the one without: scores are divided by .07."
    args, plain = batch(), make(name)(*batch())
    with torch.autocast("cpu", torch.bfloat16): value = make(name)(*args)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, plain, rtol=.02, atol=.02)
    if name in ("CRD", "CPC", "ML_CRD"):
        bank, x = K.MemoryBank(CLASSES, 4), F.normalize(noise(6, 4), dim=1)
        index = torch.arange(12).expand(6, 12)
        for k in (4, 12):
            with torch.autocast("cpu", torch.bfloat16): half = bank.scores(x, index[:, :k])
            assert torch.allclose(half, (x @ bank.memory.T)[:, :k], atol=1e-6)


def test_a_small_alpha_is_told_once_and_in_words_for_a_bank():
    loss = K.CRD(6, 9, CLASSES, "ml_cpc", .02, negatives=12, embedding=4)
    with pytest.warns(BoundWarning, match="alpha=0.02.*out of a bank it never is one") as seen: loss(*batch())
    assert len(seen) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error", BoundWarning)
        loss(*batch(key=3))
        K.CRD(6, 9, CLASSES, "ml_cpc", .2, negatives=12, embedding=4)(*batch())


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("name", METHODS)
def test_losses_on_a_gpu(name):
    "Positions may come from the CPU, and `fit` takes inputs where they are."
    loss, (student, teacher, labels, index) = make(name).cuda(), batch()
    student, teacher = (K.Outputs(*(x.cuda() for x in o)) for o in (student, teacher))
    assert loss(student, teacher, labels.cuda(), index).isfinite() and loss(student, teacher, labels.cuda(), index.cuda()).isfinite()
    x = noise(40, 4).cuda()
    with torch.no_grad(): outputs = K.Outputs(*K.Net(4, 9, 5).cuda()(x))
    K.fit(K.Net(4, 6, 5).cuda(), x, CLASSES.cuda(), outputs, make(name).cuda(), epochs=1, batch=16)


BAD = [lambda: K.CRD(4, 4, CLASSES, negatives=0), lambda: K.CRD(4, 4, CLASSES, temperature=0), lambda: K.CRD(4, 4, CLASSES - 1), lambda: K.CRD(4, 4, CLASSES.float()), lambda: K.CRD(4, 4, ["a", "b"]), lambda: K.CRD(4, 4, []),
       lambda: make("CRD")(*batch()[:3]), lambda: make("CRD")(*batch()[:3], torch.arange(3)), lambda: K.fit(K.Net(2, 4, 2), noise(0, 2), CLASSES[:0]), lambda: K.fit(K.Net(2, 4, 2), noise(9, 2), CLASSES[:8]), lambda: K.fit(K.Net(2, 4, 2), noise(1, 2), CLASSES[:1], K.Outputs(noise(1, 3), noise(1, 2)), K.InBatch(4, 3))]

@pytest.mark.parametrize("case", [*BAD, lambda: K.CRD(4, 4, CLASSES, "infonce"), lambda: K.CRD(4, 4, torch.zeros(5, dtype=torch.long)), lambda: K.InBatch(4, 4, "nwj"), lambda: K.fit(K.Net(2, 4, 2), noise(9, 2), CLASSES[:9], loss=K.KD())])
def test_errors_for_people(case):
    with pytest.raises(InputError): case()
