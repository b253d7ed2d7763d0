"Backbones, weight files, parameters that learn, and blindness to the sign of contrast."
import os
import pickle

import pytest
import torch
from hypothesis import given, settings, strategies as st
from safetensors.torch import save_file

from vdistill.core import InputError, generator
from vdistill.distillation import VariationalDistillation
from vdistill.models import EdgeFront, Encoder, PixelFront, ReIDNet, box_mean, conv_backbone, join, load_backbone_weights, resnet50_backbone
from vdistill.training import TrainConfig, objective

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


def test_each_image_goes_to_its_branches():
    "In eval mode rows are independent: the specific branches see one modality each, the shared one both."
    model, v, i = net().eval(), images(3), images(3, seed=1)
    out = model(v, i)
    for got, (branch, x) in zip(out, ((model.visible, v), (model.infrared, i), (model.shared, v), (model.shared, i))):
        for a, b in zip(got, branch(model.front(x))): torch.testing.assert_close(a, b) if a is not None else None
    for modality, x in enumerate((v, i)):
        features = model.embed(x, modality)
        for s in "vz":
            specific, shared = getattr(out[modality], s), getattr(out[2 + modality], s)
            torch.testing.assert_close(features[f"{s} shared"], shared)
            torch.testing.assert_close(features[f"{s} specific+shared"], join(specific, shared))
            torch.testing.assert_close(features[f"{s} specific+shared"].norm(dim=1), torch.full((3,), 2**.5))


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


@pytest.mark.parametrize("settings, part", [(dict(backbone="resnet18"), "resnet18"), (dict(front="sobel"), "sobel")])
def test_unknown_parts(settings, part): assert part in message(lambda: ReIDNet(5, **settings))


# ---- ResNet-50 and its weight files

@pytest.fixture(scope="module")
def resnet():
    torch.manual_seed(1)
    return resnet50_backbone()


@pytest.fixture(scope="module")
def files(resnet, tmp_path_factory):
    "One state dict in two formats, with a classifier as torchvision's files have it."
    folder = tmp_path_factory.mktemp("weights")
    state = resnet.state_dict() | {"fc.weight": torch.zeros(1000, 2048), "fc.bias": torch.zeros(1000)}
    torch.save(state, folder / "w.pth")
    save_file(state, folder / "w.safetensors")
    return folder


def test_resnet50_keeps_its_last_resolution(resnet):
    sizes = {}
    hooks = [layer.register_forward_hook(lambda m, x, y, n=n: sizes.update({n: tuple(y.shape[2:])})) for n, layer in resnet.named_children() if n.startswith("layer")]
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
def test_weight_files_that_do_not_do(resnet, tmp_path, name):
    BAD[name](tmp_path / name, resnet.state_dict())
    said = message(load_backbone_weights, resnet, tmp_path / name)
    assert str(tmp_path / name) in said and "ResNet-50" in said
    assert "weights_only" not in said # no advice to run what is in the file
    assert not (tmp_path / "trap").exists()
    if name == "shape.pth": assert "conv1.weight" in said


def test_files_from_before_batches_were_counted(resnet, tmp_path):
    torch.save({k: v for k, v in resnet.state_dict().items() if not k.endswith("num_batches_tracked")}, tmp_path / "old.pth")
    load_backbone_weights(resnet, tmp_path / "old.pth")


def test_no_download_without_a_network(monkeypatch):
    import torch.hub
    def offline(*args, **options): raise OSError("no route to host")
    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: "/nonexistent/hub")
    monkeypatch.setattr(os, "makedirs", lambda *args, **options: None)
    assert "could not be downloaded" in message(resnet50_backbone, "imagenet")
