"Every augmentation against one image at a time with the same random numbers; seeds, types, ranges, nothing mutated."
import ast
import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings, strategies as st

import vdistill.reid.augmentation
from vdistill.reid.augmentation import Augmentation, exchange_channels, random_crop, random_erase, random_flip, random_grey, rectangles
from vdistill.reid.batches import load_batch
from vdistill.core import InputError, generator

fuzz = settings(derandomize=True, deadline=None, max_examples=80)
TYPES = [torch.uint8, torch.float32, torch.float64]


def pixels(b, h, w, dtype, key=0):
    out = torch.randint(0, 256, (b, 3, h, w), generator=generator("pixels", b, h, w, key), dtype=torch.uint8)
    return out if dtype == torch.uint8 else out.to(dtype) / 255


batches = st.builds(pixels, st.integers(0, 5), st.integers(2, 14), st.integers(2, 14), st.sampled_from(TYPES), st.integers(0, 9))
chances, seeds = st.sampled_from([0., .3, .5, 1.]), st.integers(0, 10**6)
rng = lambda seed: generator("test", seed=seed)


def numbers(images, k, seed):
    "The random numbers that a function of k an image draws first, and the generator after it."
    g = rng(seed)
    return torch.rand(len(images), k, generator=g).double().tolist(), g


# ---- each against a loop over images

@fuzz
@given(batches, chances, seeds)
def test_flip(images, p, seed):
    want = [x.flip(-1) if u[0] < p else x for x, u in zip(images, numbers(images, 1, seed)[0])]
    got = random_flip(images, p, rng(seed))
    assert got.dtype == images.dtype and len(got) == len(want) and all(map(torch.equal, got, want))


@fuzz
@given(batches, st.integers(0, 13), seeds)
def test_crop(images, pad, seed):
    h, w = images.shape[-2:]
    if pad >= min(h, w):
        with pytest.raises(InputError, match="out of the frame"): random_crop(images, pad, rng(seed))
        return
    got = random_crop(images, pad, rng(seed))
    assert got.shape == images.shape and got.dtype == images.dtype and got.is_contiguous()
    for x, y, (a, b) in zip(images, got, numbers(images, 2, seed)[0]):
        top, left = int((2*pad + 1)*a), int((2*pad + 1)*b)
        assert torch.equal(y, F.pad(x, (pad,)*4)[:, top:top + h, left:left + w])


@fuzz
@given(batches, chances, seeds)
def test_grey(images, p, seed):
    for x, y, (u,) in zip(images, random_grey(images, p, rng(seed)), numbers(images, 1, seed)[0]):
        if u >= p: assert torch.equal(x, y); continue
        r, g, b = x.double()
        luma = (299*r + 587*g + 114*b)/1000
        assert torch.equal(y[0], y[1]) and torch.equal(y[1], y[2]) and y.dtype == x.dtype
        torch.testing.assert_close(y[0].double(), luma, rtol=0, atol=.501 if x.dtype == torch.uint8 else 1e-6)


@fuzz
@given(batches, chances, seeds)
def test_exchange(images, p, seed):
    for x, y, (gate, which) in zip(images, exchange_channels(images, p, rng(seed)), numbers(images, 2, seed)[0]):
        assert torch.equal(y, torch.stack([x[int(3*which)]]*3) if gate < p else x)


@fuzz
@given(batches, chances, seeds, st.sampled_from(["mean", "noise"]), st.sampled_from([((.02, .4), (.3, 1/.3)), ((.5, .9), (.1, 10.)), ((.05, .05), (1., 1.))]), st.sampled_from([1, 4, 10]))
def test_erase(images, p, seed, fill, ranges, tries):
    area, aspect = ranges
    got = random_erase(images, p, rng(seed), area, aspect, fill, tries)
    u, after = numbers(images, 3 + 2*tries, seed)
    noise = torch.rand(images.shape, generator=after)
    noise = (256*noise).floor().to(torch.uint8) if images.dtype == torch.uint8 else noise.to(images.dtype)
    for x, y, n, (gate, place_y, place_x, *rest) in zip(images, got, noise, u):
        want, (_, height, width) = x.clone(), x.shape
        for share, shape in zip(rest[:tries], rest[tries:]):
            s, r = (area[0] + share*(area[1] - area[0]))*height*width, aspect[0]*(aspect[1]/aspect[0])**shape
            h, w = int(np.rint(np.sqrt(s*r))), int(np.rint(np.sqrt(s/r)))
            if h < height and w < width:
                if gate >= p: break
                at = np.s_[:, int(place_y*(height - h + 1)):, int(place_x*(width - w + 1)):]
                colour = x.double().mean((1, 2), keepdim=True)
                colour = (colour.round() if x.dtype == torch.uint8 else colour).to(x.dtype).expand_as(x)
                want[at][:, :h, :w] = (colour if fill == "mean" else n)[at][:, :h, :w]
                break
        torch.testing.assert_close(y, want, rtol=1e-6, atol=1e-6)


@fuzz
@given(st.integers(2, 300), st.integers(2, 300), seeds)
def test_rectangles_lie_inside(height, width, seed):
    top, left, h, w = rectangles(torch.rand(64, 22, generator=rng(seed)), height, width, (.02, .4), (.3, 1/.3))
    assert (top >= 0).all() and (left >= 0).all() and (top + h <= height).all() and (left + w <= width).all()
    assert (h < height).all() and (w < width).all()


def test_rectangles_at_the_ends_of_the_random_numbers():
    for value in (0., 1 - 2**-24):
        top, left, h, w = rectangles(torch.full((1, 22), value), 20, 10, (.1, .2), (.9, 1.1))
        assert top + h <= 20 and left + w <= 10 and h*w > 0
        assert (top + h == 20 and left + w == 10) == (value > 0)


# ---- all of them

ALL = dict(flip=random_flip, crop=lambda x, p, g=None: random_crop(x, 1, g), grey=random_grey, exchange=exchange_channels, erase=random_erase, noise=lambda x, p, g=None: random_erase(x, p, g, fill="noise"),
           everything=lambda x, p, g=None: Augmentation(p, 1, p, p, p)(x, g))


@pytest.mark.parametrize("dtype", [*TYPES, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("change", ALL.values(), ids=ALL)
def test_same_type_in_range_and_nothing_mutated(change, dtype):
    images = pixels(16, 12, 8, torch.uint8)
    images = images if dtype == torch.uint8 else (images.float()/255).to(dtype)
    before, state = images.clone(), torch.get_rng_state()
    got = change(images, .7, rng(3))
    assert got.dtype == dtype and got.shape == images.shape and torch.equal(images, before) and not torch.equal(got, images)
    assert torch.equal(torch.get_rng_state(), state)
    if dtype != torch.uint8: assert got.min() >= 0 and got.max() <= 1.001
    got.zero_()
    assert torch.equal(images, before) # nothing shared


@pytest.mark.parametrize("change", ALL.values(), ids=ALL)
def test_seeds_repeat_and_differ(change):
    images = pixels(32, 12, 8, torch.uint8)
    assert torch.equal(change(images, .5, rng(1)), change(images, .5, rng(1))) and not torch.equal(change(images, .5, rng(1)), change(images, .5, rng(2)))
    torch.manual_seed(5); one = change(images, .5)
    torch.manual_seed(5); two = change(images, .5)
    assert torch.equal(one, two)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("name", ["flip", "grey", "exchange", "erase", "noise"])
def test_chance_zero_is_the_identity(name, dtype):
    images = pixels(20, 12, 8, dtype)
    assert torch.equal(ALL[name](images, 0., rng(1)), images) and torch.equal(random_crop(images, 0, rng(1)), images)


@pytest.mark.parametrize("name", ["flip", "grey", "exchange", "erase"])
def test_a_chance_is_a_share(name):
    images = pixels(1, 8, 8, torch.uint8).expand(20000, -1, -1, -1)
    got = ALL[name](images, .3, rng(4))
    assert abs((got != images).flatten(1).any(1).float().mean() - .3) < .015


def test_channels_are_drawn_evenly():
    images = torch.tensor([1, 2, 3], dtype=torch.uint8).view(1, 3, 1, 1).expand(30000, 3, 1, 1)
    counts = torch.bincount(exchange_channels(images, 1., rng(0))[:, 0, 0, 0].long())[1:]
    assert (counts/30000 - 1/3).abs().max() < .01


def test_shifts_are_drawn_evenly():
    "One white pixel in the middle: where it goes is where the image goes."
    images = torch.zeros(25000, 3, 9, 9); images[..., 4, 4] = 1
    where = random_crop(images, 2, rng(0))[:, 0].mean(0)
    assert (where[2:7, 2:7] - 1/25).abs().max() < .005 and where.sum().sub(1).abs() < 1e-4


def test_infrared_images_keep_equal_channels():
    images = pixels(32, 12, 8, torch.uint8)[:, :1].expand(-1, 3, -1, -1)
    got = Augmentation(.5, 2, .5, .5, 1.)(images, rng(0))
    assert (got == got[:, :1]).all()
    assert torch.equal(random_grey(images, 1.), images) and torch.equal(exchange_channels(images, 1.), images)


def test_the_rows_of_a_batch_are_drawn_apart():
    images = pixels(1, 12, 8, torch.uint8).expand(64, -1, -1, -1)
    for change in ALL.values(): assert len(torch.unique(change(images, .5, rng(0)).flatten(1), dim=0)) > 1


def test_no_loop_over_images_in_the_module():
    "The only loop is over the kinds of change and over channels."
    tree = ast.parse(Path(vdistill.reid.augmentation.__file__).read_text(encoding="utf-8"))
    loops = [n for n in ast.walk(tree) if isinstance(n, (ast.For, ast.While))]
    assert len(loops) == 2 and not any("images" in ast.dump(n.iter) for n in loops if isinstance(n, ast.For))
    assert {n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.level} == {"core"} # a re-ID room


# ---- the composition

def test_off_by_default():
    images = pixels(4, 12, 8, torch.uint8)
    assert Augmentation()(images, rng(0)) is images and all(not getattr(Augmentation(), f.name) for f in dataclasses.fields(Augmentation) if f.name != "fill")


def test_the_order():
    images, g = pixels(8, 12, 8, torch.uint8), rng(9)
    want = random_erase(exchange_channels(random_grey(random_crop(random_flip(images, .5, g), 2, g), .4, g), .6, g), .7, g, fill="noise")
    assert torch.equal(Augmentation(.5, 2, .4, .6, .7, "noise")(images, rng(9)), want)


@pytest.mark.parametrize("wrong, part", [(dict(flip=-.1), "flip=-0.1"), (dict(erase=1.1), "erase=1.1"), (dict(grey=float("nan")), "grey=nan"), (dict(exchange=2), "exchange=2"), (dict(pad=-1), "pad=-1"), (dict(pad=1.5), "pad=1.5"), (dict(fill="black"), "mean, noise")])
def test_impossible_strengths(wrong, part):
    with pytest.raises(InputError, match=part): Augmentation(**wrong)


@pytest.mark.parametrize("images", [torch.zeros(3, 8, 8), torch.zeros(2, 1, 8, 8), torch.zeros(2, 3, 8, 8, dtype=torch.long), torch.zeros(2, 3, 8, 8, dtype=torch.bool)])
def test_impossible_images(images):
    for change in (random_grey, exchange_channels, random_erase):
        with pytest.raises(InputError, match=r"pass \(B, 3, H, W\)"): change(images)


def test_unknown_fill():
    with pytest.raises(InputError, match="mean, noise"): random_erase(pixels(1, 8, 8, torch.uint8), fill="zero")


def test_of_a_configuration():
    @dataclasses.dataclass
    class Config: flip: float = .5; pad: int = 2; grey: float = .1; exchange: float = .2; erase: float = .3; fill: str = "noise"; epochs: int = 40
    assert Augmentation.of(Config()) == Augmentation(.5, 2, .1, .2, .3, "noise")


# ---- in a batch

class Noise:
    "A dataset of random pixels."
    def images(self, indices, draw=0): return torch.stack([pixels(1, 12, 8, torch.uint8, (int(i), draw))[0] for i in indices])


def test_load_batch_augments_bytes_of_both_halves():
    data, (v, i), augment = Noise(), (np.arange(4), np.arange(4, 8)), Augmentation(.5, 2, .2, .5, .5)
    batch = load_batch(data, v, i, np.arange(4), 3, augment, rng(1))
    want = augment(data.images(np.arange(8), 3), rng(1)).float()/255
    assert torch.equal(batch.visible, want[:4]) and torch.equal(batch.infrared, want[4:])


def test_a_number_means_a_flip_and_draws_as_it_always_did():
    "Runs made before there was more than a flip can be repeated."
    data, (v, i) = Noise(), (np.arange(8), np.arange(8, 16))
    batch = load_batch(data, v, i, np.arange(8), 0, .5, rng(2))
    mirrored = torch.rand(16, generator=rng(2)) < .5
    images = data.images(np.arange(16))
    assert torch.equal(torch.cat(batch[:2]), torch.where(mirrored[:, None, None, None], images.flip(-1), images).float()/255) and 0 < mirrored.sum() < 16


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_the_same_pictures_on_a_gpu():
    images, augment = pixels(32, 24, 16, torch.uint8), Augmentation(.5, 3, .3, .5, .7, "noise")
    assert torch.equal(augment(images.cuda(), rng(1)).cpu(), augment(images, rng(1)))
