"Imported networks compute what the published ones do, as a network, as a start and as a run."
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn
from torchvision.models import resnet50

from vdistill.core import InputError
from vdistill.reid.foreign import import_checkpoint, import_run
from vdistill.reid.models import ReIDNet, TwoStreamNet
from vdistill.reid.runs import load_run
from vdistill.reid.weights import BUFFERS, PUBLIC, initialise, read_checkpoint, recognise

IDENTITIES = 7
NORMALISE = [torch.tensor(c)[:, None, None] for c in ((.485, .456, .406), (.229, .224, .225))]


def message(function, *args, **kwargs):
    with pytest.raises(InputError) as error: function(*args, **kwargs)
    return str(error.value)


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
    assert {n for n, p in net.named_parameters() if p.grad is None} == {n for n in summary.dead if not n.endswith(BUFFERS)} # dead is what gets no gradient
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


def test_a_run_of_ours_is_not_imported(tmp_path):
    save_file({k: t.contiguous() for k, t in TwoStreamNet(5).state_dict().items()}, tmp_path/"model.safetensors")
    assert "folder of its run" in message(import_checkpoint, tmp_path/"model.safetensors")


# a run folder

@pytest.mark.parametrize("name", ["agw wide", "vsd"])
def test_a_run_folder_that_scores(files, images, tmp_path, name):
    theirs, file = files(name)
    summary = import_run(file, tmp_path/"run", "synthetic", image_size=[64, 32], identities=[8, 4, 6], images_per_camera=1)
    embed, headline = load_run(tmp_path/"run", "cpu")
    assert headline == ("v shared" if "agw" in name else "v specific+shared") and embed.config.precision == "float32" and "mapped" in (tmp_path/"run"/"import.txt").read_text()
    model, _ = import_checkpoint(file)
    pixels = (images*255).to(torch.uint8)
    with torch.no_grad(): assert close(embed(pixels, 1)[headline], model.embed(pixels/255, 1)[headline])
    results = (tmp_path/"run"/"results.csv").read_text()
    assert "mAP" in results and headline in results
    assert "already holds a run" in message(import_run, file, tmp_path/"run", "synthetic", score=False)
