"CIFAR-100: the recipe, runs that stop and go on, a given teacher, and what the command is told."
import math
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from vdistill.bounds import BoundWarning
from vdistill.core import InputError
from vdistill.knowledge_distillation import CRD, KD, VID, VSD
from vdistill.reid.evaluation import run_columns
from vdistill.studies import cifar as C, cifar_parts as parts

@pytest.fixture(scope="module")
def place(tmp_path_factory): return parts.fake_cifar100(tmp_path_factory.mktemp("cifar"), images=150)

@pytest.fixture(scope="module")
def data(place): return parts.read_cifar100(place)

@pytest.fixture
def tiny(monkeypatch):
    "Two networks small enough to train here."
    for name, width in dict(small=8, large=12).items():
        monkeypatch.setitem(parts.NETWORKS, name, (lambda width=width: parts.unit(3, width, 3, 2), width, parts.basic, [(width, 1, 2), (2*width, 1, 2)], None, 2*width))
    monkeypatch.setattr(C, "PAIRS", ("large-small",))

@pytest.fixture
def few(monkeypatch):
    "CRD with 64 negatives in place of 16,384."
    monkeypatch.setattr(C, "CRD", type("FewCRD", (CRD,), dict(__init__=lambda self, *args, negatives, **options: CRD.__init__(self, *args, negatives=64, **options))))

def refused(function, *args, **options):
    with pytest.raises(InputError) as error: function(*args, **options)
    text = str(error.value)
    assert "\n" not in text and len(text) < 700
    return text

class Bomb:
    def __init__(self, path): self.path = path
    def __reduce__(self): return exec, (f"open({str(self.path)!r}, 'w')",)


# ---- the recipe

def test_unknown_pairs():
    assert C.split_pair("wrn40-2-wrn16-2") == ("wrn40-2", "wrn16-2") and C.split_pair("resnet32x4-ShuffleNetV2") == ("resnet32x4", "ShuffleNetV2")
    assert "resnet56-resnet20" in refused(C.split_pair, "resnet56") and "vgg9" in refused(C.split_pair, "vgg13-vgg9")
    published = pd.read_csv(Path(__file__).resolve().parents[2]/"data"/"published"/"crd_cifar100.csv")
    assert tuple(f"{t}-{s}" for t, s in zip(published.teacher, published.student)) == C.PAIRS

def test_the_learning_rate_of_240_epochs():
    for name, first in (("resnet20", .05), ("ResNet50", .05), ("vgg8", .05), ("MobileNetV2", .01), ("ShuffleNetV1", .01), ("ShuffleNetV2", .01)):
        rates = [C.learning_rate(name, e) for e in range(240)]
        assert np.allclose(rates, np.repeat([first, first/10, first/100, first/1000], [150, 30, 30, 30]))
    assert [round(C.learning_rate("vgg8", e, 8), 9) for e in range(8)] == [.05]*5 + [.005, .0005, .00005]

@pytest.mark.parametrize("method, labels_weight, weight, kind", [("kd", .1, .9, KD), ("vsd", 1., 1., VSD), ("vid", 1., 1/64, VID), ("crd", 1., .8, CRD), ("cpc", 1., .8, CRD), ("ml_crd", 1., .8, CRD)])
def test_weights_and_losses(method, labels_weight, weight, kind, data):
    lesson = C.make_lesson(method, "resnet20", parts.Network("resnet20"), data.labels, alpha=.03)
    assert (lesson.cross_entropy, lesson.weight) == (labels_weight, weight) and isinstance(lesson.loss, kind)
    assert not lesson.teacher.training and not any(p.requires_grad for p in lesson.teacher.parameters())
    assert C.make_lesson(method, "resnet20", parts.Network("resnet20"), data.labels, weight=.25).weight == .25
    if kind is CRD: assert (lesson.loss.k, lesson.loss.temperature, lesson.loss.student_bank.momentum, lesson.loss.student.out_features, lesson.loss.bound, lesson.loss.alpha) == (16384, .07, .5, 128, dict(crd="nce", cpc="cpc", ml_crd="ml_cpc")[method], .03 if method == "ml_crd" else 1.)
    if kind is KD: assert lesson.loss.temperature == 4

def test_a_lesson_is_the_weighted_sum(data, tiny):
    torch.manual_seed(0)
    student, teacher = parts.Network("small"), parts.Network("large")
    x, y, index = parts.normalise(data.images[:8]), data.labels[:8], torch.arange(8)
    out = student(x)
    lesson = C.make_lesson("kd", "small", teacher, data.labels)
    with torch.no_grad(): theirs = teacher(x)
    p, q = (theirs.logits/4).double().softmax(1), (out.logits/4).double().softmax(1)
    torch.testing.assert_close(lesson(out, x, y, index).double(), .1*F.cross_entropy(out.logits, y).double() + .9*16*(p*(p/q).log()).sum(1).mean(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(C.Lesson()(out, x, y, index), F.cross_entropy(out.logits, y))

def test_vid_has_the_gradient_of_a_mean_over_features(data, tiny):
    "Weight 1 of the published mean is 1/D of our sum."
    torch.manual_seed(0)
    student, teacher = parts.Network("small"), parts.Network("large")
    lesson = C.make_lesson("vid", "small", teacher, data.labels)
    x, y, index = parts.normalise(data.images[:8]), data.labels[:8], torch.arange(8)
    ours = torch.autograd.grad(lesson(student(x), x, y, index) - F.cross_entropy(student(x).logits, y), list(lesson.loss.parameters()))
    with torch.no_grad(): t, s = teacher(x).features, student(x).features
    v = lesson.loss.variance()
    theirs = torch.autograd.grad((.5*((lesson.loss.mean(s) - t)**2/v + v.log())).mean(), list(lesson.loss.parameters()))
    for a, b in zip(ours, theirs): torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-6)


# ---- runs

def test_training_learns(data, tiny, tmp_path):
    before = C.accuracy(parts.Network("large"), data)
    network, seconds = C.train("large", data, C.Lesson(), tmp_path/"run", epochs=30)
    assert C.accuracy(network, data) > 70 > 40 > before and seconds > 0

def test_an_epoch_shows_every_image_once_in_batches_of_64(data, tiny):
    seen, network, bar = [], parts.Network("small"), type("Bar", (), dict(update=lambda self: None))()
    class Watch(C.Lesson):
        def __call__(self, out, x, labels, index):
            seen.append(index)
            assert torch.equal(labels, data.labels[index])
            return super().__call__(out, x, labels, index)
    optimizer = torch.optim.SGD(network.parameters(), .01)
    C.accuracy(network, data)                                                       # leaves it in evaluation
    for epoch in (0, 1, 0): C.train_epoch(network, data, Watch(), optimizer, epoch, 0, bar)
    assert network.training
    assert [len(i) for i in seen[:3]] == [64, 64, 22] and sorted(torch.cat(seen[:3]).tolist()) == list(range(150))
    assert not torch.equal(seen[0], seen[3]) and all(torch.equal(a, b) for a, b in zip(seen[:3], seen[6:]))

@pytest.mark.parametrize("method", ["labels", "vid", "crd", "ml_crd"])
def test_a_run_that_was_cut_off_ends_with_the_same_weights(method, data, tiny, few, tmp_path, monkeypatch):
    teacher = parts.Network("large")
    lesson = lambda: C.make_lesson(method, "small", teacher, data.labels, seed=3)
    whole, _ = C.train("small", data, lesson(), tmp_path/"whole", 3, epochs=3)
    real, calls = C.train_epoch, []
    def cut(*args):
        calls.append(args[4])
        if len(calls) == 2: raise KeyboardInterrupt
        return real(*args)
    monkeypatch.setattr(C, "train_epoch", cut)
    with pytest.raises(KeyboardInterrupt): C.train("small", data, lesson(), tmp_path/"cut", 3, epochs=3)
    resumed, _ = C.train("small", data, lesson(), tmp_path/"cut", 3, epochs=3)
    assert calls == [0, 1, 1, 2]
    assert all(torch.equal(v, resumed.state_dict()[k]) for k, v in whole.state_dict().items())
    again, _ = C.train("small", data, lesson(), tmp_path/"cut", 3, epochs=3)        # finished: read
    assert calls == [0, 1, 1, 2] and all(torch.equal(v, again.state_dict()[k]) for k, v in whole.state_dict().items())
    assert (tmp_path/"cut"/"state.pt").stat().st_size < 3000                        # optimizer and banks are gone

def test_projections_learn_with_the_student(data, tiny, few, tmp_path, monkeypatch):
    lesson = C.make_lesson("ml_crd", "small", parts.Network("large"), data.labels)
    before = {k: v.clone() for k, v in lesson.loss.named_parameters()}
    C.train("small", data, lesson, tmp_path/"run", epochs=1)
    assert len(before) == 4 and all(not torch.equal(v, before[k]) for k, v in lesson.loss.named_parameters())

def test_a_loss_that_is_no_number_stops(data, tiny, tmp_path):
    lesson = C.Lesson(cross_entropy=math.nan)
    assert "--weight" in refused(C.train, "small", data, lesson, tmp_path/"bad run", epochs=1) and not (tmp_path/"bad run"/"model.safetensors").exists()

def test_pairs_from_end_to_end(place, tiny, few, tmp_path, monkeypatch):
    to = tmp_path/"out"/"rows.csv"
    rows = C.run_pairs(place, to, ["all"], ["labels", "kd", "ml_crd"], alpha=.5, seeds=2, epochs=2, device="cpu")
    assert list(rows) == [*C.KEY, "metric", "value", "seconds", "device", "versions", "commit"]
    assert len(rows) == 7 and set(rows.epochs) == {2} and set(rows.dataset) == {"150 training images"} and rows.value.between(0, 100).all() and set(rows.metric) == {"accuracy"}
    table = {(r.teacher, r.student, r.method, r.seed): r for r in rows.itertuples()}
    assert set(table) == {("none", "small", "labels", 0), ("none", "small", "labels", 1), ("none", "large", "labels", 0), *((("large", "small", m, s)) for m in ("kd", "ml_crd") for s in (0, 1))}
    assert table["large", "small", "ml_crd", 1].alpha == .5 and math.isnan(table["large", "small", "kd", 0].alpha) and table["large", "small", "kd", 0].weight == .9
    assert rows.device.iloc[0] == run_columns("cpu")["device"]
    monkeypatch.setattr(C, "train_epoch", None)                                     # nothing is trained any more
    pd.testing.assert_frame_equal(rows, C.run_pairs(place, to, ["large-small"], ["ml_crd", "labels", "kd"], alpha=.5, seeds=2, epochs=2, device="cpu"))
    shutil.rmtree(to.with_suffix(""))                                               # rows alone are enough
    C.run_pairs(place, to, ["large-small"], ["kd"], seeds=2, epochs=2, device="cpu")
    with pytest.raises(TypeError): C.run_pairs(place, to, ["large-small"], ["kd"], weight=.3, seeds=1, epochs=2, device="cpu") # another weight is another run
    s = C.summary(rows)
    kd = s[s.method == "kd"].iloc[0]
    assert len(s) == 4 and kd.seeds == 2 and kd.accuracy == pytest.approx(np.mean([table["large", "small", "kd", i].value for i in (0, 1)]))

def test_a_finished_run_without_its_row_gets_it(place, tiny, tmp_path, monkeypatch):
    to = tmp_path/"rows.csv"
    rows = C.run_pairs(place, to, ["large-small"], ["kd"], seeds=1, epochs=1, device="cpu")
    rows[rows.method != "kd"].to_csv(to, index=False)
    monkeypatch.setattr(C, "train_epoch", None)
    pd.testing.assert_frame_equal(rows, C.run_pairs(place, to, ["large-small"], ["kd"], seeds=1, epochs=1, device="cpu"))

def test_ctrl_c_passes_and_the_command_goes_on(place, tiny, tmp_path, monkeypatch):
    options = dict(pairs=["large-small"], methods=["vsd"], seeds=1, epochs=2, device="cpu")
    whole = C.run_pairs(place, tmp_path/"whole.csv", **options)
    real, calls = C.train_epoch, []
    def cut(*args):
        calls.append(1)
        if len(calls) == 4: raise KeyboardInterrupt                                 # in the student's second epoch
        return real(*args)
    monkeypatch.setattr(C, "train_epoch", cut)
    with pytest.raises(KeyboardInterrupt): C.run_pairs(place, tmp_path/"cut.csv", **options)
    assert C.read_rows(tmp_path/"cut.csv").method.tolist() == ["labels"]
    gone_on = C.run_pairs(place, tmp_path/"cut.csv", **options)
    assert len(calls) == 5
    pd.testing.assert_frame_equal(whole.drop(columns="seconds"), gone_on.drop(columns="seconds"))
    name = "150-training-images_large_small_vsd_1.0_0_2/model.safetensors"
    assert (tmp_path/"whole"/name).read_bytes() == (tmp_path/"cut"/name).read_bytes()

def test_the_same_seed_starts_every_method_alike(data, tiny, tmp_path):
    "A learning rate of 0: what a run ends with is what it began with."
    ends = [C.train("small", data, lesson, tmp_path/str(i), seed, epochs=0)[0] for i, (lesson, seed) in enumerate(((C.Lesson(), 0), (C.make_lesson("vid", "small", parts.Network("large"), data.labels), 0), (C.Lesson(), 1)))]
    first = [next(iter(e.parameters())) for e in ends]
    assert torch.equal(first[0], first[1]) and not torch.equal(first[0], first[2])


# ---- a given teacher

def test_a_given_teacher_is_used_and_named(place, data, tiny, tmp_path):
    torch.manual_seed(1)
    teacher = parts.Network("large")
    torch.save(dict(model=teacher.state_dict()), tmp_path/"t.pt")
    save_file(teacher.state_dict(), tmp_path/"t.safetensors")
    torch.save({f"other.{i}": v for i, (k, v) in enumerate(teacher.state_dict().items()) if "num_batches" not in k}, tmp_path/"foreign.pt")
    for name in ("t.pt", "t.safetensors", "foreign.pt"): assert all(torch.equal(v, teacher.state_dict()[k]) for k, v in C.read_weights(tmp_path/name, "large").state_dict().items())
    options = dict(pairs=["large-small"], methods=["kd"], seeds=1, epochs=1, device="cpu")
    rows = C.run_pairs(place, tmp_path/"rows.csv", teacher=tmp_path/"t.pt", **options)
    assert rows[["teacher", "student", "method", "epochs"]].values.tolist() == [["none", "large", "given", 0], ["large (given)", "small", "kd", 1]]
    assert rows.value[0] == pytest.approx(C.accuracy(teacher, data), abs=.006)
    assert len(C.run_pairs(place, tmp_path/"rows.csv", teacher=tmp_path/"t.safetensors", **options | dict(seeds=2))) == 3
    torch.save(parts.Network("large").state_dict(), tmp_path/"other.pt")
    assert "another" in refused(C.run_pairs, place, tmp_path/"rows.csv", teacher=tmp_path/"other.pt", **options | dict(seeds=3))
    assert len(C.run_pairs(place, tmp_path/"rows.csv", **options)) == 5                # a trained one is another teacher

def test_weights_that_do_not_fit_are_refused(tiny, tmp_path):
    assert "nothing.pt" in refused(C.read_weights, tmp_path/"nothing.pt", "large")
    save_file(parts.Network("small").state_dict(), tmp_path/"small.safetensors")
    assert "does not fit large" in refused(C.read_weights, tmp_path/"small.safetensors", "large")
    torch.save(Bomb(tmp_path/"ran"), tmp_path/"bomb.pt")
    (tmp_path/"text.safetensors").write_text("no weights")
    torch.save([1, 2], tmp_path/"list.pt")
    torch.save(dict(epoch=3), tmp_path/"numbers.pt")
    for name, why in {"bomb.pt": "not opened", "text.safetensors": "no weight file", "list.pt": "holds a list", "numbers.pt": "no tensors"}.items():
        said = refused(C.read_weights, tmp_path/name, "large")
        assert why in said and name in said
    assert not (tmp_path/"ran").exists()


# ---- what the command is told

@pytest.mark.parametrize("options, part", [(dict(methods=["fitnet"]), "ml_crd"), (dict(alpha=0.), "alpha=0.0"), (dict(alpha=16385.), "16385"), (dict(weight=-1.), "weight=-1.0"), (dict(weight=math.nan), "weight=nan"),
    (dict(seeds=0), "seeds=0"), (dict(epochs=0), "epochs=0"), (dict(pairs=["resnet56"]), "TEACHER-STUDENT"), (dict(to="rows.txt"), ".csv"), (dict(pairs=["vgg13-vgg8", "resnet56-resnet20"], teacher="t.pt"), "2"), (dict(device="tpu9"), "tpu9")])
def test_bad_options_are_named_before_anything_runs(place, tmp_path, options, part):
    to = tmp_path/options.pop("to", "rows.csv")
    assert part in refused(C.run_pairs, place, to, **options) and not to.exists()

def test_files_that_hold_something_else_are_left_alone(place, tmp_path):
    for text, part in (("a,b\n1,2\n", "no column dataset"), ("", "no table"), ("\"", "no table")):
        (tmp_path/"rows.csv").write_text(text)
        assert part in refused(C.run_pairs, place, tmp_path/"rows.csv") and (tmp_path/"rows.csv").read_text() == text
    (tmp_path/"taken").write_text("")
    assert "taken is a file" in refused(C.run_pairs, place, tmp_path/"taken.csv")

def test_a_small_alpha_warns(data, tiny, few, tmp_path):
    with pytest.warns(BoundWarning, match="alpha=0.001"): C.train("small", data, C.make_lesson("ml_crd", "small", parts.Network("large"), data.labels, alpha=.001), tmp_path/"run", epochs=1)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_pair_on_a_gpu(place, tmp_path):
    rows = C.run_pairs(place, tmp_path/"rows.csv", ["resnet56-resnet20"], ["all"], seeds=1, epochs=1, device="cuda")
    assert len(rows) == 8 and rows.device.str.startswith("cuda").all()
