"CIFAR-100: what is read and what is refused, what is done to images, and the networks."
import io
import math
import pickle
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from vdistill.core import InputError, generator
from vdistill.studies import cifar_parts as C

COUNTS = {"resnet20": 278324, "resnet32": 472756, "resnet56": 861620, "resnet110": 1736564, "resnet8x4": 1233540, "resnet32x4": 7433860, "ResNet50": 23705252, "wrn16-2": 703284, "wrn40-1": 569780,
          "wrn40-2": 2255156, "vgg8": 3965028, "vgg13": 9462180, "MobileNetV2": 812836, "ShuffleNetV1": 949258, "ShuffleNetV2": 1355528}
PUBLISHED = {"resnet20": .28, "resnet32": .47, "resnet56": .86, "resnet110": 1.74, "resnet8x4": 1.23, "resnet32x4": 7.43, "ResNet50": 23.71, "wrn16-2": .70, "wrn40-1": .57, "wrn40-2": 2.26,
             "vgg8": 3.97, "vgg13": 9.46, "MobileNetV2": .81, "ShuffleNetV1": .95, "ShuffleNetV2": 1.36} # millions


@pytest.fixture(scope="module")
def place(tmp_path_factory): return C.fake_cifar100(tmp_path_factory.mktemp("cifar"), images=150)

@pytest.fixture(scope="module")
def data(place): return C.read_cifar100(place)

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

def test_unknown_networks(): assert "resnet56" in refused(C.Network, "resnet57")

def test_torchvision_waits_until_it_is_needed():
    code = "import sys, vdistill.studies.cifar; print('torchvision' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "False"
