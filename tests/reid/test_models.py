"Backbones, weight files, parameters that learn, and blindness to the sign of contrast."
import os
import pickle

import pytest
import torch
from hypothesis import given, settings, strategies as st
from safetensors.torch import save_file

from vdistill.core import InputError, generator
from vdistill.distillation import VariationalDistillation
from vdistill.reid.backbones import ATTENTIONS, STAGES, Encoder, conv_backbone, library_backbone, take_stem
from vdistill.reid.pretrained import load_weights, read_weights
from vdistill.reid.models import EdgeFront, PixelFront, ReIDNet, TwoStreamNet, box_mean, join
from vdistill.reid.pooling import ChannelAttention, GeM, NonLocal
from vdistill.reid.objective import objective
from vdistill.reid.training import TrainConfig

fuzz = settings(derandomize=True, deadline=None, max_examples=40)
SMALL = dict(width=4, features=12, grid=(2, 1))


def net(bottleneck=True, classes=5, **settings):
    torch.manual_seed(0)
    return ReIDNet(classes, bottleneck, 6, (8,), **(SMALL | settings))


def images(n, size=(16, 8), seed=0): return torch.rand(n, 3, *size, generator=generator("images", seed=seed))


def message(function, *args):
    with pytest.raises(InputError) as error: function(*args)
    text = str(error.value)
    assert "\n" not in text
    return text


# ---- the network

@pytest.mark.parametrize("bottleneck", [True, False])
@pytest.mark.parametrize("front", ["edges", "pixels"])
@pytest.mark.parametrize("size", [(64, 32), (16, 8), (33, 47)])
def test_shapes(bottleneck, front, size):
    model = net(bottleneck, front=front)
    out = model(images(4, size), images(4, size, 1))
    for p in out:
        assert p.v.shape == (4, 12) and p.v_logits.shape == (4, 5)
        assert (p.z is None and p.z_logits is None) if not bottleneck else (p.z.shape == (4, 6) and p.z_logits.shape == (4, 5))
    widths = {"v shared": 12, "v specific+shared": 24} | ({"z shared": 6, "z specific+shared": 12} if bottleneck else {})
    assert {k: f.shape[1] for k, f in model.eval().embed(images(4, size), 1).items()} == widths


def close(a, b): torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4) # rows of batches of another size, in other roundings


def test_each_image_goes_to_its_branches():
    "In eval mode rows are independent: the specific branches see one modality each, the shared one both."
    model, v, i = net().eval(), images(3), images(3, seed=1)
    out = model(v, i)
    for got, (branch, x) in zip(out, ((model.visible, v), (model.infrared, i), (model.shared, v), (model.shared, i))):
        for a, b in zip(got, branch(model.front(x))): close(a, b) if a is not None else None
    for modality, x in enumerate((v, i)):
        features = model.embed(x, modality)
        for s in "vz":
            specific, shared = getattr(out[modality], s), getattr(out[2 + modality], s)
            close(features[f"{s} shared"], shared)
            close(features[f"{s} specific+shared"], join(specific, shared))
            close(features[f"{s} specific+shared"].norm(dim=1), torch.full((3,), 2**.5))


@pytest.mark.parametrize("bottleneck", [True, False])
@pytest.mark.parametrize("front", ["edges", "pixels"])
def test_every_parameter_learns(bottleneck, front):
    model, config = net(bottleneck, front=front), TrainConfig(bottleneck=bottleneck)
    label = torch.tensor([0, 0, 1, 1, 2, 2, 3, 4])
    terms = objective(model(images(8), images(8, seed=1)), label, config, VariationalDistillation())
    terms["loss"].backward()
    fixed = {n for n, p in model.named_parameters() if not p.requires_grad}
    assert fixed == {f"{b}.encoder.norm.bias" for b in ("visible", "infrared", "shared")}
    dead = [n for n, p in model.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]
    assert not dead and all(p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)


def test_predictions_start_uniform():
    out = net(classes=50).train()(images(16), images(16, seed=1))
    for p in out:
        for logits in (p.v_logits, p.z_logits): assert logits.softmax(1).max() < 2 / 50


# ---- fronts

@fuzz
@given(st.integers(0, 99), st.integers(8, 40), st.integers(8, 40))
def test_edges_do_not_see_polarity(seed, h, w):
    x, front = images(2, (h, w), seed), EdgeFront()
    torch.testing.assert_close(front(1 - x), front(x), atol=2e-4, rtol=1e-3)


def test_a_network_on_edges_does_not_see_polarity_and_one_on_pixels_does():
    for front, blind in (("edges", True), ("pixels", False)):
        model = net(front=front)
        model(images(8), images(8, seed=1)) # running statistics
        a, b = (model.eval().embed(x, 0)["z specific+shared"] for x in (images(4, seed=2), 1 - images(4, seed=2)))
        assert (torch.allclose(a, b, atol=1e-3)) is blind


def test_edges_on_flat_images():
    x = torch.full((2, 3, 16, 8), .4).requires_grad_()
    y = EdgeFront()(x)
    y.square().sum().backward()
    assert y.isfinite().all() and y.abs().max() < .05 and x.grad.isfinite().all()


def test_edges_turn_with_the_image():
    "A quarter turn leaves the strength and changes the sign of both angle channels."
    x = images(1, (21, 21))
    strength, a, b = EdgeFront()(x)[0]
    turned = EdgeFront()(x.rot90(1, (2, 3)))[0]
    for got, want in zip(turned, (strength, -a, -b)): torch.testing.assert_close(got, want.rot90(1, (0, 1)), atol=1e-4, rtol=1e-3)


@fuzz
@given(st.integers(1, 12), st.integers(1, 12), st.sampled_from([1, 3, 5, 17]))
def test_box_mean(h, w, window):
    x = torch.rand(1, 1, h, w, generator=generator(h, w), dtype=torch.float64)
    half = window // 2
    want = [[x[0, 0, max(r - half, 0):r + half + 1, max(c - half, 0):c + half + 1].mean() for c in range(w)] for r in range(h)]
    torch.testing.assert_close(box_mean(x, window)[0, 0], torch.tensor(want, dtype=torch.float64))


def test_pixels():
    x = images(2)
    want = (x - torch.tensor([.485, .456, .406])[:, None, None]) / torch.tensor([.229, .224, .225])[:, None, None]
    torch.testing.assert_close(PixelFront()(x), want)


@pytest.mark.parametrize("settings, part", [(dict(backbone="resnet51"), "resnet51"), (dict(front="sobel"), "sobel")])
def test_unknown_parts(settings, part): assert part in message(lambda: ReIDNet(5, **settings))


# ---- ResNet-50 and its weight files

def named(resnet): return {k.partition(".")[2]: v for k, v in resnet.state_dict().items()} # as torchvision names them


@pytest.fixture(scope="module")
def resnet():
    torch.manual_seed(1)
    return library_backbone("resnet50", size=(64, 32))


@pytest.fixture(scope="module")
def theirs():
    from torchvision.models import resnet50
    return resnet50(weights=None)


@pytest.fixture(scope="module")
def files(resnet, tmp_path_factory):
    "One state dict in two formats, with a classifier as torchvision's files have it."
    folder = tmp_path_factory.mktemp("weights")
    state = named(resnet) | {"fc.weight": torch.zeros(1000, 2048), "fc.bias": torch.zeros(1000)}
    torch.save(state, folder / "w.pth")
    save_file(state, folder / "w.safetensors")
    return folder


def test_resnet50_keeps_its_last_resolution(resnet):
    sizes = {}
    hooks = [layer.register_forward_hook(lambda m, x, y, n=n: sizes.update({n: tuple(y.shape[2:])})) for n in STAGES for layer in [getattr(resnet.trunk, n)[-1]]]
    with torch.no_grad(): assert resnet.eval()(images(1, (64, 32))).shape == (1, 2048)
    for hook in hooks: hook.remove()
    assert sizes == {"layer1": (16, 8), "layer2": (8, 4), "layer3": (4, 2), "layer4": (4, 2)}


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
def test_weights_from_a_file(resnet, files, name):
    torch.manual_seed(2)
    encoder = Encoder("resnet50", weights=str(files / name))
    for (key, a), b in zip(encoder.backbone.state_dict().items(), resnet.state_dict().values()): assert torch.equal(a, b), key
    assert encoder.out_features == 2048
    with torch.no_grad(): assert encoder.eval()(images(1, (32, 16))).shape == (1, 2048)


class Payload:
    "A pickle that makes a folder when it is run."
    def __init__(self, path): self.path = path
    def __reduce__(self): return os.mkdir, (str(self.path),)


def stem(state): return {k: v for k, v in state.items() if k.startswith(("conv1", "bn1"))}


BAD = { # file name: what is written, given the path and a good state dict
    "missing.pth": lambda p, s: None, "folder.pth": lambda p, s: p.mkdir(), "empty.pth": lambda p, s: p.touch(), "empty.safetensors": lambda p, s: p.touch(),
    "text.pth": lambda p, s: p.write_text("no weights\nat all\n"), "text.safetensors": lambda p, s: p.write_text("no weights\nat all\n" * 9),
    "list.pth": lambda p, s: torch.save([1, 2], p), "number.pth": lambda p, s: torch.save(1., p), "keys.pth": lambda p, s: torch.save({1: torch.ones(1)}, p),
    "part.pth": lambda p, s: torch.save(stem(s), p), "part.safetensors": lambda p, s: save_file(stem(s), p), "other.pth": lambda p, s: torch.save(conv_backbone(4).state_dict(), p),
    "more.pth": lambda p, s: torch.save(s | {"surplus": torch.ones(1)}, p), "shape.pth": lambda p, s: torch.save(s | {"conv1.weight": torch.ones(64, 1, 7, 7)}, p),
    "code.pth": lambda p, s: torch.save({"conv1.weight": Payload(p.parent / "trap")}, p), "pickle.pth": lambda p, s: p.write_bytes(pickle.dumps(Payload(p.parent / "trap"), protocol=2)),
    "cut.pth": lambda p, s: (torch.save(stem(s), p), p.write_bytes(p.read_bytes()[:-2000])),
    "cut.safetensors": lambda p, s: (save_file(stem(s), p), p.write_bytes(p.read_bytes()[:-2000])),
}

@pytest.mark.parametrize("name", BAD)
def test_weight_files_that_do_not_do(resnet, theirs, tmp_path, name):
    BAD[name](tmp_path / name, named(resnet))
    said = message(lambda: load_weights(theirs, read_weights(tmp_path / name), tmp_path / name, "resnet50"))
    fits = {"missing": "no weight file", "folder": "no weight file"} | dict.fromkeys(("part", "other", "more", "shape"), "does not fit resnet50")
    assert str(tmp_path / name) in said and fits.get(name.partition(".")[0], "is not a state dict") in said
    assert "weights_only" not in said # no advice to run what is in the file
    assert not (tmp_path / "trap").exists()
    if name == "shape.pth": assert "conv1.weight" in said


def test_files_from_before_batches_were_counted(resnet, theirs, tmp_path):
    torch.save({k: v for k, v in named(resnet).items() if not k.endswith("num_batches_tracked")}, tmp_path / "old.pth")
    load_weights(theirs, read_weights(tmp_path / "old.pth"))
    for key, tensor in named(resnet).items(): assert torch.equal(theirs.state_dict()[key], tensor) or key.endswith("num_batches_tracked")


def test_no_download_without_a_network(monkeypatch):
    import torch.hub
    def offline(*args, **options): raise OSError("no route to host")
    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: "/nonexistent/hub")
    monkeypatch.setattr(os, "makedirs", lambda *args, **options: None)
    assert "could not be downloaded" in message(library_backbone, "resnet50", "imagenet")


# ---- pooling, attention, and the lean network

@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
def test_edges_of_a_flat_image_in_half_precision(precision):
    front, x = EdgeFront(), torch.zeros(2, 3, 24, 16)
    x[1] = torch.rand(3, 24, 16, generator=generator("flat"))
    with torch.autocast("cpu", getattr(torch, precision)): half = front(x)
    assert not half[0].any() or half[0].abs().max() < .02
    torch.testing.assert_close(half, front(x), rtol=0, atol=.05)


def test_gem_against_float64():
    x, p = images(3, (7, 5)).sub(.3), 2.5 # some below zero
    slow = [[(max(float(v), 1e-6)**p) for v in x[b, c].double().flatten()] for b in range(3) for c in range(3)]
    want = torch.tensor([(sum(row)/len(row))**(1/p) for row in slow]).view(3, 3)
    torch.testing.assert_close(GeM(p=p, eps=1e-6)(x).flatten(1), want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("scale", [1e-3, 1., 1e3, 1e4])
def test_gem_learns_at_every_scale(scale):
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        pool, x = GeM(), (images(2, (6, 3))*scale).to(dtype).requires_grad_()
        pool(x).sum().backward()
        assert x.grad.isfinite().all() and pool.p.grad.isfinite().all() and pool.p.grad.abs().sum() > 0


def test_gem_gradient():
    x = torch.rand(2, 2, 3, 2, dtype=torch.double, generator=generator("gem")) + .1
    pool = GeM().double()
    # the pool works in float32 on purpose, so the gradient is held against the formula, not against differences
    x.requires_grad_()
    pool(x).sum().backward()
    y = x.detach().pow(3).mean((2, 3), keepdim=True).pow(1/3)
    torch.testing.assert_close(x.grad, x.detach().pow(2)*y.pow(-2)/6, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_attention_starts_as_nothing(resnet, attention):
    with torch.no_grad():
        other = library_backbone("resnet50", size=(64, 32), attention=attention)
        other.load_state_dict(resnet.state_dict(), strict=False)
        torch.testing.assert_close(other.eval()(images(2, (32, 16))), resnet.eval()(images(2, (32, 16))), rtol=1e-4, atol=1e-4)
        assert set(other.trunk.attention) == set(ATTENTIONS[attention])
        for module in other.trunk.attention.values(): (module.gamma if attention == "channel" else module.W[1].weight).data.fill_(.5)
        if attention != "none": assert (other(images(2, (32, 16))) - resnet(images(2, (32, 16)))).abs().max() > 1e-3


def test_attention_keeps_order():
    "Moving positions moves the answer of both; mixing channels moves that of channel attention only in kind."
    x, perm = torch.randn(2, 6, 4, 3, generator=generator("attention")), torch.randperm(12, generator=generator("perm"))
    for module in (ChannelAttention(), NonLocal(6).eval()):
        (module.gamma if isinstance(module, ChannelAttention) else module.W[1].weight).data.fill_(.5)
        moved = x.flatten(2)[..., perm].view_as(x)
        torch.testing.assert_close(module(moved), module(x).flatten(2)[..., perm].view_as(x), rtol=1e-4, atol=1e-4)


def lean(**settings):
    torch.manual_seed(0)
    return TwoStreamNet(5, **(dict(bottleneck=True, z_features=6, hidden=(8,)) | SMALL | settings))


@pytest.mark.parametrize("backbone", [{}, dict(pooling="gem"), dict(backbone="resnet50", pooling="gem"), dict(backbone="resnet50", attention="channel"), dict(backbone="resnet50", attention="nonlocal", bottleneck=False), dict(stochastic=True)])
def test_lean_network_has_no_dead_parameter(backbone):
    "After one step, that is: what starts at zero holds the gradient of what stands before it back. Maps of more than one position a cell: the mean of one number has no exponent."
    model, label = lean(**backbone), torch.tensor([0, 0, 1, 1, 2, 2, 3, 4])
    config = TrainConfig(bottleneck=model.shared.bottleneck is not None)
    for lr in (.1, 0):
        model.zero_grad()
        objective(model(images(8, (64, 32)), images(8, (64, 32), 1)), label, config, VariationalDistillation())["loss"].backward()
        for p in model.parameters():
            if p.grad is not None and lr: p.data -= lr*p.grad
    assert [n for n, p in model.named_parameters() if not p.requires_grad] == ["shared.encoder.norm.bias"]
    dead = [n for n, p in model.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]
    assert not dead and all(p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)


def test_lean_network_parts_and_joins():
    model, v, i = lean().eval(), images(3), images(3, seed=1)
    out = model(v, i)
    assert out.visible is None and out.pairs == (out.shared,) and out.specific is out.shared or out.specific == out.shared
    for stem, half, x, modality in zip(model.stems, out.shared, (v, i), (0, 1)):
        for a, b in zip(half, model.shared(stem(model.front(x)))): close(a, b) if a is not None else None
        features = model.embed(x, modality)
        assert set(features) == {"v shared", "z shared"}
        close(features["z shared"], half.z)
    for p in model.stems[0].parameters(): p.data.add_(.5)
    assert torch.equal(model.embed(i, 1)["v shared"], features["v shared"]) and not torch.allclose(model.embed(v, 0)["v shared"], out.shared_visible.v)


def test_all_three_losses_work_on_the_lean_network():
    model, label = lean().train(), torch.tensor([0, 0, 1, 1, 2, 2, 3, 4])
    (v1, z1), (v2, z2) = ((p.v_logits, p.z_logits) for p in model(images(8), images(8, seed=1)).shared)
    terms = objective(model(images(8), images(8, seed=1)), label, TrainConfig(), VariationalDistillation())
    kl = lambda p, q: (p.log_softmax(1).exp()*(p.log_softmax(1) - q.log_softmax(1))).sum(1).mean()
    for term, want in dict(vsd=kl(v1, z1) + kl(v2, z2), vcd=(kl(v2, z1) + kl(v1, z2))/2).items(): torch.testing.assert_close(terms[term], want, rtol=1e-4, atol=1e-6)
    assert terms["vml"] > 0


def test_stem_and_trunk_make_the_whole():
    for backbone in ("conv", "resnet50"):
        torch.manual_seed(0)
        encoder = Encoder(backbone, **({} if backbone == "resnet50" else SMALL)).eval()
        x = images(2, (32, 16))
        with torch.no_grad():
            whole, names = encoder(x), len(list(encoder.parameters()))
            stem = take_stem(encoder)
            torch.testing.assert_close(encoder(stem(x)), whole)
        assert names == len(list(encoder.parameters())) + len(list(stem.parameters()))


def test_grey_views_are_those_of_the_released_code():
    "E_V sees the images, E_I their grey copies, E_S both; rows: visible images, then infrared ones."
    model, v, i = net(views="grey", front="pixels").eval(), images(3), images(3, seed=1)
    out, x = model(v, i), model.front(torch.cat([v, i]))
    grey = (.2989*x[:, 0] + .5870*x[:, 1] + .1140*x[:, 2])[:, None].expand(-1, 3, -1, -1)
    for got, (branch, seen) in zip(out, ((model.visible, x), (model.infrared, grey), (model.shared, x), (model.shared, grey))): close(got.z, branch(seen).z)
    features = model.embed(v, 0)
    close(features["v specific+shared"], torch.cat([p.v[:3] for p in (out.infrared, out.shared_infrared, out.visible, out.shared_visible)], 1))
    assert torch.equal(features["z shared"], model.embed(v, 1)["z shared"]) # which modality it is plays no part
