"CIFAR-100: what is read and what is refused, the networks, the recipe, and runs that stop and go on."
import io
import math
import pickle
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from vdistill.studies import cifar as C
from vdistill.bounds import BoundWarning
from vdistill.core import InputError, generator
from vdistill.reid.evaluation import run_columns
from vdistill.knowledge_distillation import CRD, KD, VID, VSD

COUNTS = {"resnet20": 278324, "resnet32": 472756, "resnet56": 861620, "resnet110": 1736564, "resnet8x4": 1233540, "resnet32x4": 7433860, "ResNet50": 23705252, "wrn16-2": 703284, "wrn40-1": 569780,
          "wrn40-2": 2255156, "vgg8": 3965028, "vgg13": 9462180, "MobileNetV2": 812836, "ShuffleNetV1": 949258, "ShuffleNetV2": 1355528}
PUBLISHED = {"resnet20": .28, "resnet32": .47, "resnet56": .86, "resnet110": 1.74, "resnet8x4": 1.23, "resnet32x4": 7.43, "ResNet50": 23.71, "wrn16-2": .70, "wrn40-1": .57, "wrn40-2": 2.26,
             "vgg8": 3.97, "vgg13": 9.46, "MobileNetV2": .81, "ShuffleNetV1": .95, "ShuffleNetV2": 1.36} # millions


@pytest.fixture(scope="module")
def place(tmp_path_factory): return C.fake_cifar100(tmp_path_factory.mktemp("cifar"), images=150)

@pytest.fixture(scope="module")
def data(place): return C.read_cifar100(place)

@pytest.fixture
def tiny(monkeypatch):
    "Two networks small enough to train here."
    for name, width in dict(small=8, large=12).items():
        monkeypatch.setitem(C.NETWORKS, name, (lambda width=width: C.unit(3, width, 3, 2), width, C.basic, [(width, 1, 2), (2*width, 1, 2)], None, 2*width))
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

def copied(place, tmp_path): return Path(shutil.copytree(place/C.FOLDER, tmp_path/C.FOLDER))

def same(a, b): return all(torch.equal(x, y) for x, y in zip(a, b))


# ---- the data

def test_folder_parent_and_archive_give_the_same(place, data, tmp_path):
    with tarfile.open(tmp_path/"cifar-100-python.tar.gz", "w:gz") as archive: archive.add(place/C.FOLDER, C.FOLDER)
    assert data.images.shape == (150, 3, 32, 32) and data.images.dtype == torch.uint8 and data.test_images.shape == (75, 3, 32, 32) and data.labels.dtype == torch.int64
    assert same(data, C.read_cifar100(place/C.FOLDER)) and same(data, C.read_cifar100(str(tmp_path/"cifar-100-python.tar.gz")))
    assert data.name() == "150 training images" and C.Cifar100(torch.empty(0), torch.empty(50_000), torch.empty(0), torch.empty(10_000)).name() == "cifar100"

class Python2(pickle._Pickler):
    "Writes strings and bytes as Python 2 did, which made the official files."
    def string(self, value):
        value = value.encode("latin1") if isinstance(value, str) else value
        self.write(pickle.BINSTRING + len(value).to_bytes(4, "little") + value)
    dispatch = pickle._Pickler.dispatch | {str: string, bytes: string}

def test_a_file_as_python_2_wrote_it(place, data, tmp_path):
    folder = copied(place, tmp_path)
    for part in ("train", "test"):
        table = pickle.loads((folder/part).read_bytes())
        with open(folder/part, "wb") as f: Python2(f, protocol=2).dump(table)
        old = (folder/part).read_bytes().replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
        assert b"numpy.core.multiarray" in old and b"_codecs" not in old
        (folder/part).write_bytes(old)
    assert same(data, C.read_cifar100(folder))

def test_planes_are_red_green_blue_row_by_row(place, data):
    row = pickle.loads((place/C.FOLDER/"train").read_bytes())["data"][7]
    assert all(data.images[7, c, y, x] == row[1024*c + 32*y + x] for c, y, x in ((0, 0, 1), (1, 5, 31), (2, 31, 0)))

class Bomb:
    def __init__(self, path): self.path = path
    def __reduce__(self): return exec, (f"open({str(self.path)!r}, 'w')",)

@pytest.mark.parametrize("hide", [lambda b: b, lambda b: dict(data=b, fine_labels=[1])])
def test_a_pickle_that_would_run_code_is_refused(place, tmp_path, hide):
    folder = copied(place, tmp_path)
    (folder/"train").write_bytes(pickle.dumps(hide(Bomb(tmp_path/"ran")), protocol=2))
    said = refused(C.read_cifar100, folder)
    assert "exec" in said and "not opened" in said and not (tmp_path/"ran").exists()
    pickle.loads((folder/"train").read_bytes())
    assert (tmp_path/"ran").exists()                                               # it would have

@pytest.mark.parametrize("what", [np.load, np.frombuffer, Path, print, getattr])
def test_nothing_else_is_called(what):
    with pytest.raises(pickle.UnpicklingError, match="asks for"): C.PlainUnpickler(io.BytesIO(pickle.dumps(what, protocol=2))).load()

@pytest.mark.parametrize("change, part", [
    (dict(data=np.zeros((4, 3071), np.uint8)), r"uint8 (4, 3071)"), (dict(data=np.zeros((4, 3072), np.float32)), "float32"), (dict(data=[1, 2]), "list"), (dict(data=np.zeros((0, 3072), np.uint8), fine_labels=[]), "test"),
    (dict(fine_labels=[1, 2, 3]), "4 fine labels"), (dict(fine_labels=[1, 2, 3, 100]), "0 and 99"), (dict(fine_labels=[1, 2, 3, -1]), "0 and 99"), (dict(fine_labels=None), "fine labels")])
def test_wrong_contents_are_named(place, tmp_path, change, part):
    folder = copied(place, tmp_path)
    (folder/"test").write_bytes(pickle.dumps(dict(data=np.zeros((4, 3072), np.uint8), fine_labels=[0, 1, 2, 3]) | change, protocol=2))
    said = refused(C.read_cifar100, folder)
    assert part in said and str(folder/"test") in said

def test_what_is_missing_or_damaged_is_named(place, tmp_path):
    assert "nowhere" in refused(C.read_cifar100, tmp_path/"nowhere")
    assert "train is missing" in refused(C.read_cifar100, tmp_path)
    folder = copied(place, tmp_path)
    (folder/"test").unlink()
    assert "test is missing" in refused(C.read_cifar100, tmp_path)
    for damaged in ((folder/"train").read_bytes()[:1000], b"", b"\x80\x02}.", pickle.dumps([1])):
        (folder/"train").write_bytes(damaged)
        assert str(folder/"train") in refused(C.read_cifar100, folder)
    with tarfile.open(tmp_path/"other.tar.gz", "w:gz") as archive: archive.add(place/C.FOLDER/"meta", "meta")
    assert "holds no cifar-100-python/train" in refused(C.read_cifar100, tmp_path/"other.tar.gz")
    with tarfile.open(tmp_path/"whole.tar.gz", "w:gz") as archive: archive.add(place/C.FOLDER, C.FOLDER)
    (tmp_path/"half.tar.gz").write_bytes((tmp_path/"whole.tar.gz").read_bytes()[:20_000])
    (tmp_path/"text.tar.gz").write_text("no archive")
    for name in ("half.tar.gz", "text.tar.gz"): assert "download" in refused(C.read_cifar100, tmp_path/name)


# ---- what is done to images

def test_augment_against_a_slow_loop(data):
    images, b = data.images[:40], 40
    out = C.augment(images, generator("crops"))
    rng = generator("crops")
    top, left = torch.randint(9, (2, b, 1), generator=rng)
    mirrored = torch.rand(b, 1, generator=rng) < .5
    for i in range(b):
        padded = np.zeros((3, 40, 40), np.uint8)
        padded[:, 4:36, 4:36] = images[i]
        crop = padded[:, top[i]:top[i] + 32, left[i]:left[i] + 32]
        assert np.array_equal(out[i], crop[:, :, ::-1] if mirrored[i] else crop), i
    assert out.dtype == torch.uint8 and set(top.flatten().tolist()) == set(range(9)) and 10 < mirrored.sum() < 30

def test_normalise_against_torchvision(data):
    from torchvision.transforms.functional import normalize, to_tensor
    one = data.images[3]
    expected = normalize(to_tensor(one.permute(1, 2, 0).numpy()), (.5071, .4867, .4408), (.2675, .2565, .2761))
    torch.testing.assert_close(C.normalise(one[None])[0], expected)


# ---- the networks

@pytest.mark.parametrize("name", C.NETWORKS)
def test_parameter_counts(name):
    assert C.parameters(name) == COUNTS[name] and round(COUNTS[name]/1e6, 2) == PUBLISHED[name]

@pytest.mark.parametrize("name", [n for n in C.NETWORKS if n not in ("ResNet50", "resnet110", "resnet32x4")])
def test_forward_and_backward(name):
    network = C.Network(name)
    out = network(torch.randn(2, 3, 32, 32, generator=generator("x")))
    assert out.features.shape == (2, network.features) and out.logits.shape == (2, 100)
    (out.logits.square().mean() + out.features.mean()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters()) and sum(p.grad.abs().sum() for p in network.parameters()) > 0

@pytest.mark.parametrize("name", ["ResNet50", "resnet110", "resnet32x4"])
def test_shapes_of_the_big_ones_without_computing(name):
    with torch.device("meta"): network, x = C.Network(name), torch.empty(2, 3, 32, 32)
    assert network(x).features.shape == (2, network.features) and network(x).logits.shape == (2, 100)

@pytest.mark.parametrize("name, convolutions", [("resnet20", 19), ("resnet56", 55), ("resnet110", 109), ("resnet8x4", 7), ("wrn16-2", 13), ("wrn40-2", 37), ("vgg8", 5), ("vgg13", 10), ("ResNet50", 49)])
def test_depth_is_in_the_name(name, convolutions):
    "Convolutions but for the shortcuts', which a wide network counts in its depth; of vgg's three linear layers one is left, and counted as such."
    with torch.device("meta"): network = C.Network(name)
    assert sum(isinstance(m, torch.nn.Conv2d) and "side" not in n.split(".") for n, m in network.named_modules()) == convolutions

def test_bottlenecks_against_torchvision():
    "The same weights in torchvision's ResNet-50, with the stem for small images, give the same features."
    from torchvision.models import resnet50
    torch.manual_seed(0)
    ours, theirs = C.Network("ResNet50").eval(), resnet50(num_classes=100).eval()
    theirs.conv1, theirs.maxpool = torch.nn.Conv2d(3, 64, 3, 1, 1, bias=False), torch.nn.Identity()
    theirs.load_state_dict(dict(zip(theirs.state_dict(), ours.state_dict().values())))
    x = torch.randn(1, 3, 32, 32)
    with torch.no_grad(): torch.testing.assert_close(ours(x).logits, theirs(x), rtol=1e-3, atol=1e-4)

def test_a_wide_block_by_hand():
    torch.manual_seed(0)
    x = torch.randn(2, 4, 8, 8)
    same, changing = C.wide(4, 4, 1).eval(), C.wide(4, 6, 2).eval()
    conv = lambda x, m: F.conv2d(x, m.weight, stride=m.stride, padding=m.padding)
    norm = lambda x: F.relu(x/math.sqrt(1 + 1e-5))                                  # a fresh batch norm
    c1, c2 = [m for m in same.modules() if isinstance(m, torch.nn.Conv2d)]
    torch.testing.assert_close(same(x.clone()), x + conv(norm(conv(norm(x), c1)), c2))
    c1, c2, short = [m for m in changing.modules() if isinstance(m, torch.nn.Conv2d)]
    torch.testing.assert_close(changing(x.clone()), conv(norm(conv(norm(x), c1)), c2) + conv(norm(x), short))

def test_unknown_networks_and_pairs():
    assert "resnet56" in refused(C.Network, "resnet57")
    assert C.split_pair("wrn40-2-wrn16-2") == ("wrn40-2", "wrn16-2") and C.split_pair("resnet32x4-ShuffleNetV2") == ("resnet32x4", "ShuffleNetV2")
    assert "resnet56-resnet20" in refused(C.split_pair, "resnet56") and "vgg9" in refused(C.split_pair, "vgg13-vgg9")
    published = pd.read_csv(Path(__file__).resolve().parents[2]/"data"/"published"/"crd_cifar100.csv")
    assert tuple(f"{t}-{s}" for t, s in zip(published.teacher, published.student)) == C.PAIRS


# ---- the recipe

def test_the_learning_rate_of_240_epochs():
    for name, first in (("resnet20", .05), ("ResNet50", .05), ("vgg8", .05), ("MobileNetV2", .01), ("ShuffleNetV1", .01), ("ShuffleNetV2", .01)):
        rates = [C.learning_rate(name, e) for e in range(240)]
        assert np.allclose(rates, np.repeat([first, first/10, first/100, first/1000], [150, 30, 30, 30]))
    assert [round(C.learning_rate("vgg8", e, 8), 9) for e in range(8)] == [.05]*5 + [.005, .0005, .00005]

@pytest.mark.parametrize("method, labels_weight, weight, kind", [("kd", .1, .9, KD), ("vsd", 1., 1., VSD), ("vid", 1., 1/64, VID), ("crd", 1., .8, CRD), ("cpc", 1., .8, CRD), ("ml_crd", 1., .8, CRD)])
def test_weights_and_losses(method, labels_weight, weight, kind, data):
    lesson = C.make_lesson(method, "resnet20", C.Network("resnet20"), data.labels, alpha=.03)
    assert (lesson.cross_entropy, lesson.weight) == (labels_weight, weight) and isinstance(lesson.loss, kind)
    assert not lesson.teacher.training and not any(p.requires_grad for p in lesson.teacher.parameters())
    assert C.make_lesson(method, "resnet20", C.Network("resnet20"), data.labels, weight=.25).weight == .25
    if kind is CRD: assert (lesson.loss.k, lesson.loss.temperature, lesson.loss.student_bank.momentum, lesson.loss.student.out_features, lesson.loss.bound, lesson.loss.alpha) == (16384, .07, .5, 128, dict(crd="nce", cpc="cpc", ml_crd="ml_cpc")[method], .03 if method == "ml_crd" else 1.)
    if kind is KD: assert lesson.loss.temperature == 4

def test_a_lesson_is_the_weighted_sum(data, tiny):
    torch.manual_seed(0)
    student, teacher = C.Network("small"), C.Network("large")
    x, y, index = C.normalise(data.images[:8]), data.labels[:8], torch.arange(8)
    out = student(x)
    lesson = C.make_lesson("kd", "small", teacher, data.labels)
    with torch.no_grad(): theirs = teacher(x)
    p, q = (theirs.logits/4).double().softmax(1), (out.logits/4).double().softmax(1)
    torch.testing.assert_close(lesson(out, x, y, index).double(), .1*F.cross_entropy(out.logits, y).double() + .9*16*(p*(p/q).log()).sum(1).mean(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(C.Lesson()(out, x, y, index), F.cross_entropy(out.logits, y))

def test_vid_has_the_gradient_of_a_mean_over_features(data, tiny):
    "Weight 1 of the published mean is 1/D of our sum."
    torch.manual_seed(0)
    student, teacher = C.Network("small"), C.Network("large")
    lesson = C.make_lesson("vid", "small", teacher, data.labels)
    x, y, index = C.normalise(data.images[:8]), data.labels[:8], torch.arange(8)
    ours = torch.autograd.grad(lesson(student(x), x, y, index) - F.cross_entropy(student(x).logits, y), list(lesson.loss.parameters()))
    with torch.no_grad(): t, s = teacher(x).features, student(x).features
    v = lesson.loss.variance()
    theirs = torch.autograd.grad((.5*((lesson.loss.mean(s) - t)**2/v + v.log())).mean(), list(lesson.loss.parameters()))
    for a, b in zip(ours, theirs): torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-6)


# ---- runs

def test_training_learns(data, tiny, tmp_path):
    before = C.accuracy(C.Network("large"), data)
    network, seconds = C.train("large", data, C.Lesson(), tmp_path/"run", epochs=30)
    assert C.accuracy(network, data) > 70 > 40 > before and seconds > 0

def test_an_epoch_shows_every_image_once_in_batches_of_64(data, tiny):
    seen, network, bar = [], C.Network("small"), type("Bar", (), dict(update=lambda self: None))()
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
    teacher = C.Network("large")
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
    lesson = C.make_lesson("ml_crd", "small", C.Network("large"), data.labels)
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
    ends = [C.train("small", data, lesson, tmp_path/str(i), seed, epochs=0)[0] for i, (lesson, seed) in enumerate(((C.Lesson(), 0), (C.make_lesson("vid", "small", C.Network("large"), data.labels), 0), (C.Lesson(), 1)))]
    first = [next(iter(e.parameters())) for e in ends]
    assert torch.equal(first[0], first[1]) and not torch.equal(first[0], first[2])


# ---- a given teacher

def test_a_given_teacher_is_used_and_named(place, data, tiny, tmp_path):
    torch.manual_seed(1)
    teacher = C.Network("large")
    torch.save(dict(model=teacher.state_dict()), tmp_path/"t.pt")
    save_file(teacher.state_dict(), tmp_path/"t.safetensors")
    torch.save({f"other.{i}": v for i, (k, v) in enumerate(teacher.state_dict().items()) if "num_batches" not in k}, tmp_path/"foreign.pt")
    for name in ("t.pt", "t.safetensors", "foreign.pt"): assert all(torch.equal(v, teacher.state_dict()[k]) for k, v in C.read_weights(tmp_path/name, "large").state_dict().items())
    options = dict(pairs=["large-small"], methods=["kd"], seeds=1, epochs=1, device="cpu")
    rows = C.run_pairs(place, tmp_path/"rows.csv", teacher=tmp_path/"t.pt", **options)
    assert rows[["teacher", "student", "method", "epochs"]].values.tolist() == [["none", "large", "given", 0], ["large (given)", "small", "kd", 1]]
    assert rows.value[0] == pytest.approx(C.accuracy(teacher, data), abs=.006)
    assert len(C.run_pairs(place, tmp_path/"rows.csv", teacher=tmp_path/"t.safetensors", **options | dict(seeds=2))) == 3
    torch.save(C.Network("large").state_dict(), tmp_path/"other.pt")
    assert "another" in refused(C.run_pairs, place, tmp_path/"rows.csv", teacher=tmp_path/"other.pt", **options | dict(seeds=3))
    assert len(C.run_pairs(place, tmp_path/"rows.csv", **options)) == 5                # a trained one is another teacher

def test_weights_that_do_not_fit_are_refused(tiny, tmp_path):
    assert "nothing.pt" in refused(C.read_weights, tmp_path/"nothing.pt", "large")
    save_file(C.Network("small").state_dict(), tmp_path/"small.safetensors")
    assert "does not fit large" in refused(C.read_weights, tmp_path/"small.safetensors", "large")
    torch.save(Bomb(tmp_path/"ran"), tmp_path/"bomb.pt")
    (tmp_path/"text.safetensors").write_text("no weights")
    torch.save([1, 2], tmp_path/"list.pt")
    for name in ("bomb.pt", "text.safetensors", "list.pt"): assert "holds no weights" in refused(C.read_weights, tmp_path/name, "large")
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
    with pytest.warns(BoundWarning, match="alpha=0.001"): C.train("small", data, C.make_lesson("ml_crd", "small", C.Network("large"), data.labels, alpha=.001), tmp_path/"run", epochs=1)

def test_torchvision_waits_until_it_is_needed():
    code = "import sys, vdistill.studies.cifar; print('torchvision' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "False"


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_pair_on_a_gpu(place, tmp_path):
    rows = C.run_pairs(place, tmp_path/"rows.csv", ["resnet56-resnet20"], ["all"], seeds=1, epochs=1, device="cuda")
    assert len(rows) == 8 and rows.device.str.startswith("cuda").all()
