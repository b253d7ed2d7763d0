"Files of others: what is refused, what is read, and that imported networks compute what the published ones do."
import argparse
import collections
import dataclasses
import os
import pickle
import random
import shlex
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn
from torchvision.models import resnet50

from vdistill.reid import foreign, training
from vdistill.reid.backbones import NonLocal
from vdistill.core import InputError
from vdistill.reid.foreign import (CONVERT, PUBLIC, PlainType, assign, file_kind, find_state, import_checkpoint, import_run, initialise, read_checkpoint, read_foreign, recognise,
                              settings_of)
from vdistill.reid.models import ReIDNet, TwoStreamNet

IDENTITIES = 7
NORMALISE = [torch.tensor(c)[:, None, None] for c in ((.485, .456, .406), (.229, .224, .225))]


def message(function, *args, **kwargs):
    with pytest.raises(InputError) as error: function(*args, **kwargs)
    return str(error.value)


# what is refused

class Program:
    def __init__(self, target): self.target = target
    def __reduce__(self): return self.call()


class Touch(Program):
    def call(self): return Path.touch, (Path(self.target),)


class Shell(Program):
    def call(self): return os.system, (f"touch {self.target}",)


class Eval(Program):
    def call(self): return eval, (f"open({str(self.target)!r}, 'w')",)


class Hidden(Program): # as an argument of a name that is allowed
    def call(self): return np.dtype, (Shell(self.target),)


class Own: # a class that the program itself has declared safe
    def __setstate__(self, state): Path(state["target"]).touch()
    def __init__(self, target): self.target = str(target)


@pytest.mark.parametrize("program,name", [(Touch, "getattr"), (Shell, "system"), (Eval, "eval"), (Hidden, "system")])
@pytest.mark.parametrize("form", ["zip", "legacy"])
def test_a_program_is_refused_and_does_not_run(tmp_path, monkeypatch, program, name, form):
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1") # must not open the door
    file, target = tmp_path/"bad.pth", tmp_path/"it_ran"
    torch.save({"net": {"w": torch.ones(2)}, "mAP": program(target)}, file, _use_new_zipfile_serialization=form == "zip")
    said = message(read_foreign, file)
    assert not target.exists() and name in said and str(file) in said and CONVERT in said
    try: torch.load(file, weights_only=False)
    except Exception: pass # np.dtype does not take the shell's answer
    assert target.exists() # so the test can fail


def test_a_bare_pickle_is_not_opened(tmp_path):
    file, target = tmp_path/"bad.pkl", tmp_path/"it_ran"
    for protocol in (2, 4):
        file.write_bytes(pickle.dumps(Touch(target), protocol=protocol))
        assert "bare pickle" in message(read_foreign, file) and not target.exists()
    file.with_suffix(".safetensors").write_bytes(file.read_bytes())
    assert "bare pickle" in message(read_foreign, file.with_suffix(".safetensors")) # the name does not matter


def test_what_the_program_allows_elsewhere_is_not_allowed_here(tmp_path):
    file, target = tmp_path/"own.pt", tmp_path/"it_ran"
    torch.save({"w": torch.ones(2), "own": Own(target)}, file)
    with torch.serialization.safe_globals([Own]):
        before = set(torch.serialization.get_safe_globals())
        assert "Own" in message(read_foreign, file) and not target.exists()
        assert set(torch.serialization.get_safe_globals()) == before # and it is put back
        torch.load(file, weights_only=True)
        assert target.exists()


def test_a_saved_model_is_named(tmp_path):
    torch.save(nn.Linear(2, 2), tmp_path/"model.pt")
    assert "torch.nn.modules.linear.Linear" in message(read_foreign, tmp_path/"model.pt")


def test_the_conversion_that_is_advised_works(tmp_path):
    torch.save({"optimizer": {"state": {}}, "net": {"w": torch.arange(3.), "b": torch.ones(1)}, "extra": Touch(tmp_path/"x")}, tmp_path/"bad file.pth")
    said = message(read_foreign, tmp_path/"bad file.pth")
    assert said.endswith(f"{CONVERT}{tmp_path/'bad file.pth'} plain.pt")
    command = shlex.split(CONVERT)
    subprocess.run([sys.executable, *command[1:], tmp_path/"bad file.pth", tmp_path/"plain.pt"], check=True, env=os.environ | dict(PYTHONPATH=str(Path(__file__).parent)))
    assert torch.equal(read_foreign(tmp_path/"plain.pt")["w"], torch.arange(3.))


@pytest.mark.parametrize("data,words", [(b"", "empty"), (b"\n <!DOCTYPE html><title>Sign in", "web page"), (b"\xef\xbb\xbf<html>", "web page"), (b"version https://git-lfs.github.com/spec/v1\noid", "git lfs pull"),
                                        (b"\x1f\x8b\x08\0\0", "unpack"), (b"hello", "no weight file"), (b"PK\x03\x04" + bytes(99), "cut off"), (b"PK\x05\x06" + b"\xff"*18, "cut off")])
def test_what_is_no_weight_file(tmp_path, data, words):
    (tmp_path/"f.pth").write_bytes(data)
    said = message(read_foreign, tmp_path/"f.pth")
    assert words in said and str(tmp_path/"f.pth") in said


def test_other_archives_folders_and_nothing(tmp_path):
    with zipfile.ZipFile(tmp_path/"a.zip", "w") as z: z.writestr("readme.txt", "x")
    assert "readme.txt" in message(read_foreign, tmp_path/"a.zip")
    with zipfile.ZipFile(tmp_path/"t.pt", "w") as z: [z.writestr(f"t/{n}", "x") for n in ("data.pkl", "constants.pkl")]
    assert "TorchScript" in message(read_foreign, tmp_path/"t.pt")
    assert "folder" in message(read_foreign, tmp_path) and "no file" in message(read_foreign, tmp_path/"missing.pth")
    torch.save([torch.ones(2)], tmp_path/"list.pt")
    assert "holds a list" in message(read_foreign, tmp_path/"list.pt")


@pytest.mark.parametrize("form", ["zip", "legacy", "safetensors"])
def test_cut_off_anywhere(tmp_path, form):
    whole, cut = tmp_path/"whole", tmp_path/"cut"
    state = {"a.weight": torch.randn(40, 5), "a.bias": torch.randn(40)}
    if form == "safetensors": save_file(state, whole)
    else: torch.save(state, whole, _use_new_zipfile_serialization=form == "zip")
    assert torch.equal(read_foreign(whole)["a.bias"], state["a.bias"])
    data = whole.read_bytes()
    for n in sorted({*range(1, 60), *range(60, len(data), 37), len(data) - 1}):
        cut.write_bytes(data[:n])
        said = message(read_foreign, cut)
        if n > 600: assert "cut off" in said or "unfinished" in said, said


@pytest.mark.parametrize("form", ["zip", "legacy", "safetensors"])
def test_flipped_bytes_end_in_a_sentence_or_a_dict(tmp_path, form):
    whole, bad, rng = tmp_path/"whole", tmp_path/"bad", random.Random(0)
    content = {"w": torch.randn(6, 5), "n": torch.ones(3)}
    if form == "safetensors": save_file(content, whole)
    else: torch.save(content | {"cmc": np.linspace(0, 1, 5), "mAP": np.float64(.5), "o": collections.OrderedDict(a=1)}, whole, _use_new_zipfile_serialization=form == "zip")
    data = whole.read_bytes()
    for _ in range(300):
        changed = bytearray(data)
        for _ in range(rng.choice((1, 1, 3))): changed[rng.randrange(len(data))] = rng.randrange(256)
        bad.write_bytes(changed)
        try: assert isinstance(read_foreign(bad), dict)
        except InputError: pass


# what is read

@pytest.mark.parametrize("form", ["zip", "legacy"])
def test_numbers_of_numpy_become_plain(tmp_path, form):
    grid = np.arange(6).reshape(2, 3)
    content = dict(mAP=np.float64(.4765), epoch=np.int64(46), half=np.float16(.5), flag=np.bool_(True), byte=np.uint8(200), cmc=np.linspace(0, 1, 4, dtype=np.float32), fortran=np.asfortranarray(grid),
                   big=grid.astype(">i4"), empty=np.zeros((0, 3)), args=argparse.Namespace(lr=.1, gpu="0", nested=argparse.Namespace(a=np.float32(2))), root=Path("data")/"sysu",
                   ordered=collections.OrderedDict(a=torch.ones(1)), shared=[(1, 2)]*2, bools=np.array([True, False]), none=None, parameter=nn.Parameter(torch.ones(2)))
    torch.save(content, tmp_path/"f.t", _use_new_zipfile_serialization=form == "zip")
    back = read_foreign(tmp_path/"f.t")
    assert back["mAP"] == .4765 and type(back["mAP"]) is float and back["epoch"] == 46 and type(back["epoch"]) is int and back["half"] == .5 and back["flag"] is True and back["byte"] == 200
    assert back["cmc"].tolist() == content["cmc"].tolist() and back["fortran"].tolist() == back["big"].tolist() == grid.tolist() and back["empty"].shape == (0, 3)
    assert back["args"] == dict(lr=.1, gpu="0", nested=dict(a=2.)) and back["root"] == "data/sysu" and type(back["ordered"]) is dict and back["shared"] == [[1, 2], [1, 2]]
    assert back["bools"].tolist() == [True, False] and not back["parameter"].requires_grad and type(back["parameter"]) is torch.Tensor


@pytest.mark.parametrize("value", [np.array([Path("a")], dtype=object), np.zeros(2, dtype=[("a", "f4")]), np.array(["text"]), np.datetime64("2020-01-01"), np.longdouble(1)])
def test_other_arrays_are_refused(tmp_path, value):
    torch.save({"w": torch.ones(2), "x": value}, tmp_path/"f.t")
    assert "was not opened" in message(read_foreign, tmp_path/"f.t")


def test_flags_of_a_dtype_are_not_believed():
    "A dtype's state can say that its bytes are pointers; NumPy believes it."
    kind = PlainType("f8", False, True)
    kind.__setstate__((3, "<", None, None, None, -1, -1, 63))
    assert kind.read(np.arange(3.).tobytes()).tolist() == [0, 1, 2] and kind.read(b"").dtype.flags == 0
    for code in ("O", "V8", "U3", "O8", "f8, f8", b"f8", "f16"):
        with pytest.raises(ValueError): PlainType(code).read(bytes(16))


def test_a_structure_that_holds_itself_is_refused(tmp_path):
    loop = []
    loop.append(loop)
    torch.save({"w": torch.ones(2), "loop": loop}, tmp_path/"f.t")
    assert "was not opened" in message(read_foreign, tmp_path/"f.t")
    bomb = []
    for _ in range(60): bomb = [bomb, bomb] # 2^60 lists if each were walked
    nested = {"w": torch.ones(1)}
    for _ in range(60): nested = {"a": nested, "b": nested}
    torch.save({"w": torch.ones(2), "v": torch.ones(3), "bomb": bomb, "nested": nested}, tmp_path/"f.t")
    assert list(find_state(read_foreign(tmp_path/"f.t")).state) == ["w", "v"]


@pytest.mark.parametrize("wrap,place", [(lambda s: s, ""), (lambda s: {"net": s}, "net"), (lambda s: {"model": s, "optimizer": {"state": {0: {"exp_avg": torch.ones(9)}}, "flat": {f"m{i}": torch.ones(1) for i in range(9)}}}, "model"),
                                        (lambda s: {"state_dict_1": s, "state_dict_2": dict(list(s.items())[:2])}, "state_dict_1"), (lambda s: {"a": {"b": {f"module.model.{k}": t for k, t in s.items()}}}, "a.b")])
def test_where_the_weights_are(wrap, place):
    state = {f"layer{i}.weight": torch.full((2,), float(i)) for i in range(4)}
    found = find_state(wrap(state) | {"epoch": 5, "mAP": .1 + .2, "note": "x"})
    assert list(found.state) == list(state) and found.place == place and found.facts == dict(epoch=5, mAP=.3, note="x")
    assert found.others == (("state_dict_2",) if "state_dict" in place else ())
    assert "epoch" in message(find_state, {"epoch": 5})
    assert find_state(wrap(state) | {"note": "\x1b[2J", "log": "x"*999}).facts == {} # nothing that would trouble a terminal


# the published networks, restated

@pytest.fixture(scope="module", autouse=True)
def quick():
    "torchvision draws every weight a second time; here the first draw is scaled."
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nn.init, "kaiming_normal_", lambda tensor, *args, **kwargs: tensor.data.mul_((6*tensor.shape[1]/tensor.shape[0])**.5))
        yield


def net50(fc=False):
    net = resnet50(weights=None)
    net.layer4[0].conv2.stride = net.layer4[0].downsample[0].stride = (1, 1)
    if not fc: del net.fc
    return net


def stem(net, x):
    if isinstance(net, nn.ModuleDict): return net["maxpool"](net["bn1"](net["conv1"](x)).relu())
    return net.maxpool(net.bn1(net.conv1(x)).relu())


class AGW(nn.Module):
    def __init__(self, width=None, attention=True, whole=False):
        super().__init__()
        def own(): # `whole`: with the stages that nothing uses, as in their files
            net = net50()
            return net if whole else nn.ModuleDict(dict(conv1=net.conv1, bn1=net.bn1, maxpool=net.maxpool))
        self.visible_module, self.thermal_module, self.base_resnet = nn.ModuleDict(dict(visible=own())), nn.ModuleDict(dict(thermal=own())), nn.ModuleDict(dict(base=net50()))
        self.attention = attention
        if attention: self.NL_2, self.NL_3 = (nn.ModuleList(self.block(c, width or c//2) for _ in range(n)) for c, n in ((512, 2), (1024, 3)))
        self.bottleneck, self.classifier = nn.BatchNorm1d(2048), nn.Linear(2048, IDENTITIES, bias=False)

    def block(self, c, w):
        return nn.ModuleDict(dict(g=nn.Sequential(nn.Conv2d(c, w, 1)), theta=nn.Conv2d(c, w, 1), phi=nn.Conv2d(c, w, 1), W=nn.Sequential(nn.Conv2d(w, c, 1), nn.BatchNorm2d(c))))

    def attend(self, b, x):
        theta, phi, g = (b[n](x).flatten(2) for n in ("theta", "phi", "g"))
        y = torch.einsum("bcn,bcm,bdm->bdn", theta, phi, g)/theta.shape[2]
        return x + b["W"](y.reshape(len(x), -1, *x.shape[2:]))

    def pooled(self, x, modality):
        base = self.base_resnet["base"]
        x = base.layer1(stem(self.thermal_module["thermal"] if modality else self.visible_module["visible"], x))
        if not self.attention: return base.layer4(base.layer3(base.layer2(x))).mean((2, 3))
        for stage, blocks, first in ((base.layer2, self.NL_2, 2), (base.layer3, self.NL_3, 3)):
            for i, layer in enumerate(stage): x = self.attend(blocks[i - first], layer(x)) if i >= first else layer(x)
        return ((base.layer4(x).flatten(2)**3).mean(2) + 1e-12)**(1/3)

    def forward(self, x, modality): return self.bottleneck(self.pooled(x, modality))


class VSDEncoder(nn.Module):
    def __init__(self):
        super().__init__()
        for c in (256, 512, 1024):
            module = nn.Module()
            module._cam_module = nn.Module()
            module._cam_module.gamma = nn.Parameter(torch.tensor([c**.5/80]))
            setattr(self, f"cam_{c}", module)
        self.base, self.bottleneck, self.classifier = net50(fc=True), nn.BatchNorm1d(2048), nn.Sequential(nn.Linear(2048, IDENTITIES))

    def attend(self, module, x):
        flat = x.flatten(2)
        energy = torch.einsum("bcn,bdn->bcd", flat, flat)
        weights = F.softmax(energy.max(2, keepdim=True).values - energy, dim=2)
        return module._cam_module.gamma*torch.einsum("bcd,bdn->bcn", weights, flat).reshape(x.shape) + x

    def forward(self, x):
        x = self.base.layer1(stem(self.base, x))
        for c, stage in ((256, self.base.layer2), (512, self.base.layer3), (1024, self.base.layer4)): x = stage(self.attend(getattr(self, f"cam_{c}"), x))
        v = self.bottleneck(x.mean((2, 3)))
        return self.classifier(v), v


class VSDBottleneck(nn.Module):
    def __init__(self, z_dim=256):
        super().__init__()
        self.bottleneck = nn.Module()
        self.bottleneck.model = nn.Sequential(nn.Linear(2048, 1000), nn.BatchNorm1d(1000), nn.ReLU(), nn.Linear(1000, 500), nn.BatchNorm1d(500), nn.ReLU(), nn.Linear(500, 2*z_dim))
        self.classifier = nn.Sequential(nn.Linear(2*z_dim, z_dim), nn.BatchNorm1d(z_dim), nn.LeakyReLU(.1), nn.Dropout(.5), nn.Linear(z_dim, IDENTITIES))

    def forward(self, v):
        z = self.bottleneck.model(v)
        return self.classifier(z), z


class VSD(nn.Module):
    def __init__(self):
        super().__init__()
        for name in ("IR", "RGB", "shared"):
            setattr(self, f"{name}_backbone", VSDEncoder())
            setattr(self, f"{name}_Bottleneck", VSDBottleneck())

    def forward(self, x): # (v, z, logits of v, logits of z) of: infrared and shared branch on grey, visible and shared on colour
        grey = (.2989*x[:, 0] + .5870*x[:, 1] + .1140*x[:, 2])[:, None].repeat(1, 3, 1, 1)
        out = []
        for name, image in (("IR", grey), ("shared", grey), ("RGB", x), ("shared", x)):
            p_v, v = getattr(self, f"{name}_backbone")(image)
            p_z, z = getattr(self, f"{name}_Bottleneck")(v)
            out.append((v, z, p_v, p_z))
        return out


class MPANet(nn.Module): # without its modules of attention, as its configuration can have it
    def __init__(self):
        super().__init__()
        self.backbone, self.bn_neck, self.classifier = net50(), nn.BatchNorm1d(2048), nn.Linear(2048, IDENTITIES, bias=False)

    def forward(self, x, modality=0):
        b = self.backbone
        return self.bn_neck(b.layer4(b.layer3(b.layer2(b.layer1(stem(b, x))))).mean((2, 3)))


IMAGES = torch.rand(3, 3, 4, 2, generator=torch.Generator().manual_seed(5)).repeat_interleave(16, 2).repeat_interleave(16, 3)
INPUT = (IMAGES - NORMALISE[0])/NORMALISE[1]


def shaken(net, *calls):
    "Batch norms and biases at random, with the statistics of the images, so that none could be left out."
    g = torch.Generator().manual_seed(0)
    for m in net.modules():
        if isinstance(m, (nn.BatchNorm1d, nn.BatchNorm2d)): m.weight.data.uniform_(.5, 1.5, generator=g), m.bias.data.uniform_(-.3, .3, generator=g), setattr(m, "momentum", .5)
        elif isinstance(m, nn.Linear) and m.bias is not None: m.bias.data.uniform_(-.5, .5, generator=g)
    with torch.no_grad():
        for arguments in calls: net.train()(INPUT, *arguments)
    return net.eval()


@pytest.fixture(scope="module")
def images(): return IMAGES


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    "Each published network once: (restated network, file as its code saves it)."
    folder, made = tmp_path_factory.mktemp("published"), {}

    def get(name):
        if name in made: return made[name]
        torch.manual_seed(3)
        make = {"agw": lambda: AGW(1, whole=True), "agw wide": AGW, "agw base": lambda: AGW(attention=False), "vsd": VSD, "mpanet": MPANet, "torchvision resnet50": lambda: net50(fc=True)}[name]
        net = shaken(make(), *[(0,), (1,)] if "agw" in name else [()])
        content = net.state_dict()
        if name.startswith("agw"): content = {"net": content, "cmc": np.linspace(.4, 1, 20), "mAP": np.float64(.4765), "mINP": np.float32(.35), "epoch": 46}
        if name == "agw wide": content["net"] = {f"module.{k}": t for k, t in content["net"].items()}
        if name == "vsd": content = {"model": content, "epoch": 571, "best_top1": torch.tensor(.6)}
        file = folder/f"{name.replace(' ', '_')}.pth"
        torch.save(content, file, _use_new_zipfile_serialization=name != "vsd")
        made[name] = net, file
        return made[name]
    return get


def close(a, b): return a.shape == b.shape and (a - b).abs().max() <= 1e-4*max(1, b.abs().max())


def accounted(summary):
    "Every tensor in exactly one of the three."
    names = [*summary.mapped, *summary.dead, *summary.homeless]
    return sorted(names) == sorted(summary.found.state) and len(set(names)) == len(names)


@pytest.mark.parametrize("name", ["agw", "agw wide", "agw base", "mpanet"])
def test_features_of_two_streams_are_the_published_ones(files, images, name):
    theirs, file = files(name)
    ours, summary = import_checkpoint(file)
    with torch.no_grad():
        for modality in (0, 1):
            feature = theirs(INPUT, modality)
            assert feature.std(0).mean() > .05 # images differ
            assert close(ours.embed(images, modality)["v shared"], feature)
        if name == "agw": assert ((theirs.pooled(INPUT, 0) - 1e-4).abs() < 1e-7).any() # some channels are zero everywhere: the floor under the root is at work
    assert accounted(summary) and summary.exact and not summary.homeless and summary.classes == IDENTITIES
    assert torch.equal(ours.shared.v_classifier.weight, theirs.classifier.weight)
    assert summary.network == name.split()[0] and summary.found.facts.get("epoch") == (46 if "agw" in name else None)
    assert set(summary.missing) == ({"shared.encoder.backbone.pool.p"} if name in ("agw", "agw wide") else set())
    assert ("zero" in str(summary)) == (name == "agw")
    if "agw" in name: assert not torch.equal(ours.stems[0].conv1.weight, ours.stems[1].conv1.weight)


def test_what_of_agw_is_alive(files):
    net, file = files("agw")
    _, summary = import_checkpoint(file)
    alive, dead = summary.parameters(summary.mapped), summary.parameters(summary.dead)
    assert alive + dead == sum(p.numel() for p in net.parameters())
    net.classifier(torch.cat([net(INPUT, 0), net(INPUT, 1)])).logsumexp(1).sum().backward()
    assert {n for n, p in net.named_parameters() if p.grad is None} == {n for n in summary.dead if not n.endswith(foreign.BUFFERS)} # dead is what gets no gradient
    net.zero_grad()
    assert f"{dead/1e6:.2f} M" in str(summary)


def test_features_of_the_released_code(files, images):
    theirs, file = files("vsd")
    ours, summary = import_checkpoint(file)
    with torch.no_grad():
        passes = theirs(INPUT)
        for modality in (0, 1): # their test does not ask which it is
            got = ours.embed(images, modality)
            assert close(got["v specific+shared"], torch.cat([p[0] for p in passes], 1)) and got["v specific+shared"].shape[1] == 8192
            assert close(got["z specific+shared"], torch.cat([p[1] for p in passes], 1)) and got["z specific+shared"].shape[1] == 2048
        out = ours.shared(ours.front(images))
        assert close(out.z_logits, passes[3][3])
        bias = theirs.shared_backbone.classifier[0].bias
        assert close(out.v_logits + bias, passes[3][2]) and not close(out.v_logits, passes[3][2])
    assert accounted(summary) and summary.exact and not summary.missing and summary.classes == IDENTITIES
    assert set(summary.homeless) == {f"{b}_backbone.classifier.0.bias" for b in ("RGB", "IR", "shared")} and "constant" in str(summary)
    assert set(summary.dead) == {f"{b}_backbone.base.fc.{n}" for b in ("RGB", "IR", "shared") for n in ("weight", "bias")}


def test_mpanet_with_its_own_modules_is_a_start_and_not_its_feature(files, tmp_path):
    state = dict(files("mpanet")[0].state_dict())
    del state["classifier.weight"]
    for n in ("weight", "bias", "running_mean", "running_var"): state[f"bn_neck.{n}"] = torch.ones(2048*7)
    state |= {"backbone.MAM4.channel_attention.0.weight": torch.ones(128, 2048, 1, 1), "spatial_attention.weight": torch.ones(6, 2048, 1, 1), "spatial_attention.bias": torch.ones(6),
              **{f"{m}_classifier{u}.weight": torch.ones(IDENTITIES, 2048*7) for m in ("visible", "infrared") for u in ("", "_")}, "surprise.weight": torch.ones(3)}
    torch.save(state, tmp_path/"mpanet.pth")
    ours, summary = import_checkpoint(tmp_path/"mpanet.pth")
    assert accounted(summary) and not summary.exact and "not those of the published network" in str(summary) and summary.classes == IDENTITIES
    assert summary.homeless["surprise.weight"] == "the map to this network has no rule for it" and "training only" in summary.homeless["visible_classifier_.weight"]
    assert {"shared.encoder.norm.weight", "shared.v_classifier.weight"} <= set(summary.missing)
    assert torch.equal(ours.stems[0].conv1.weight, state["backbone.conv1.weight"]) and torch.equal(ours.stems[1].bn1.running_var, state["backbone.bn1.running_var"])


def test_imagenet_weights(files, images):
    theirs, file = files("torchvision resnet50")
    ours, summary = import_checkpoint(file)
    assert summary.network == "torchvision resnet50" and summary.classes == 1000 and set(summary.homeless) == {"fc.weight", "fc.bias"} and not summary.exact
    with torch.no_grad(): feature = theirs.layer4(theirs.layer3(theirs.layer2(theirs.layer1(stem(theirs, INPUT))))).mean((2, 3))
    with torch.no_grad(): assert close(ours.embed(images, 1)["v shared"], feature/(1 + 1e-5)**.5)


def test_zeros_around_a_narrow_block_stay_zeros():
    torch.manual_seed(0)
    block = NonLocal(8)
    nn.init.ones_(block.W[1].weight)
    with torch.no_grad():
        for layer in (block.theta, block.phi, block.g): layer.weight[1:], layer.bias[1:] = 0, 0
        block.W[0].weight[:, 1:] = 0
    block(torch.randn(3, 8, 4, 4)).square().sum().backward()
    for layer in (block.theta, block.phi, block.g): assert not layer.weight.grad[1:].any() and layer.weight.grad[:1].any()
    assert not block.W[0].weight.grad[:, 1:].any()


def test_recognise_tells_networks_apart(files):
    for name in ("agw", "agw wide", "agw base", "vsd", "mpanet", "torchvision resnet50"):
        assert read_checkpoint(files(name)[1])[0] == (name if name in PUBLIC else "agw")
    assert recognise(TwoStreamNet(3, backbone="resnet50").state_dict()) == recognise(ReIDNet(3).state_dict()) == "vdistill"
    state = dict(files("agw")[0].state_dict())
    state["base_resnet.base.layer4.2.conv3.weight"] = torch.ones(512, 512, 3, 3) # ResNet-18
    said = message(recognise, state)
    assert all(network in said for network in PUBLIC) and "(2048, 512, 1, 1)" in said


def test_incomplete_and_broken_weights(files, tmp_path):
    file = tmp_path/"x.pth"
    state = dict(files("mpanet")[0].state_dict())
    torch.save(state | {"backbone.layer3.1.bn2.running_var": torch.ones(3)}, file)
    assert "layer3.1.bn2.running_var" in message(import_checkpoint, file)
    bad = state["bn_neck.weight"].clone()
    bad[5] = float("nan")
    torch.save(state | {"bn_neck.weight": bad}, file)
    assert "NaN" in message(import_checkpoint, file)
    torch.save({k: t.half() if t.is_floating_point() else t for k, t in state.items() if "num_batches" not in k}, file) # half precision, and no counters
    ours, summary = import_checkpoint(file)
    assert ours.stems[0].conv1.weight.dtype == torch.float32 and summary.exact


def test_one_network_in_several_files(files, tmp_path):
    state = files("mpanet")[0].state_dict()
    names = list(state)
    for i, part in enumerate((names[:100], names[100:])): save_file({n: state[n] for n in part}, tmp_path/f"{i}.safetensors")
    assert "layer" in message(import_checkpoint, tmp_path/"0.safetensors")
    _, summary = import_checkpoint([tmp_path/"0.safetensors", tmp_path/"1.safetensors"])
    assert accounted(summary) and summary.exact
    assert "more than one" in message(import_checkpoint, [tmp_path/"0.safetensors"]*2)


# a start for training

def test_initialise_fills_what_fits(files):
    _, file = files("agw base")
    net = TwoStreamNet(3, backbone="resnet50", front="edges", z_features=8, hidden=(8,))
    summary = initialise(net, file)
    assert accounted(summary) and torch.equal(net.stems[1].conv1.weight, summary.found.state["thermal_module.thermal.conv1.weight"])
    assert "(3, 2048)" in summary.homeless["classifier.weight"] and set(summary.homeless) == {"classifier.weight"}
    assert summary.exact is None and "published" not in str(summary) and any("bottleneck" in n for n in summary.missing) and not any("layer" in n and "bottleneck" not in n for n in summary.missing)


def test_initialise_three_encoders_and_the_other_way(files):
    state = read_checkpoint(files("agw wide")[1])[1].state
    net = ReIDNet(IDENTITIES, bottleneck=False, backbone="resnet50")
    summary = initialise(net, files("agw wide")[1])
    for branch, own in (("visible", "visible_module.visible"), ("infrared", "thermal_module.thermal"), ("shared", "visible_module.visible")):
        backbone = getattr(net, branch).encoder.backbone
        assert torch.equal(backbone.stem.conv1.weight, state[f"{own}.conv1.weight"]) and torch.equal(backbone.trunk.layer4[2].conv3.weight, state["base_resnet.base.layer4.2.conv3.weight"])
    assert accounted(summary)
    lean = TwoStreamNet(IDENTITIES, bottleneck=False, backbone="resnet50")
    summary = initialise(lean, files("vsd")[1])
    assert torch.equal(lean.shared.encoder.backbone.layer1[0].conv1.weight, files("vsd")[0].shared_backbone.base.layer1[0].conv1.weight) and accounted(summary)
    assert "backbone=resnet50" in message(initialise, TwoStreamNet(3), files("agw wide")[1])


def test_initialise_from_our_own(tmp_path):
    torch.manual_seed(1)
    a, b = TwoStreamNet(5), TwoStreamNet(9)
    save_file({k: t.contiguous() for k, t in a.state_dict().items()}, tmp_path/"model.safetensors")
    summary = initialise(b, tmp_path/"model.safetensors")
    assert set(summary.homeless) == {"shared.v_classifier.weight", "shared.z_classifier.weight"} and summary.classes == 5
    assert torch.equal(a.shared.bottleneck.layers[0].weight, b.shared.bottleneck.layers[0].weight)
    assert "folder of its run" in message(import_checkpoint, tmp_path/"model.safetensors")


# a run folder

@pytest.mark.parametrize("name", ["agw wide", "vsd"])
def test_a_run_folder_that_scores(files, images, tmp_path, name):
    theirs, file = files(name)
    summary = import_run(file, tmp_path/"run", "synthetic", image_size=[64, 32], identities=[8, 4, 6], images_per_camera=1)
    embed, headline = training.load_run(tmp_path/"run", "cpu")
    assert headline == ("v shared" if "agw" in name else "v specific+shared") and embed.config.precision == "float32" and "mapped" in (tmp_path/"run"/"import.txt").read_text()
    model, _ = import_checkpoint(file)
    pixels = (images*255).to(torch.uint8)
    with torch.no_grad(): assert close(embed(pixels, 1)[headline], model.embed(pixels/255, 1)[headline])
    results = (tmp_path/"run"/"results.csv").read_text()
    assert "mAP" in results and headline in results
    assert "already holds a run" in message(import_run, file, tmp_path/"run", "synthetic", score=False)
