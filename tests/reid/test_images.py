"Images of more than 8 bits: robust limits, every kind of 16-bit file, and which are refused."
import struct
import zlib

import numpy as np
import pytest
from PIL import Image
from small_sets import message

from vdistill.reid.fakes import fake_looks
from vdistill.reid.cache import decode
from vdistill.core import InputError
from vdistill.reid.manifests import CSVDataset
from vdistill.reid.pairs import PairsDataset
from vdistill.reid.images import check_images, image_shape, read_image


def write_png(path, x, kind): # kind: 0 grey, 2 colour, 4 grey and alpha, 6 colour and alpha
    chunk = lambda name, data: struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in x)
    head = struct.pack(">IIBBBBB", x.shape[1], x.shape[0], 16, kind, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b""))


def write_tiff(path, x, order="<", deflated=False, planes=False, extra=None, turned=1):
    "One strip (or one for each plane) before the only directory."
    height, width, c = x.shape
    parts = [part.astype(order + "u2").tobytes() for part in (np.moveaxis(x, -1, 0) if planes else [x])]
    parts = [zlib.compress(part) if deflated else part for part in parts]
    places = (8 + np.cumsum([0, *map(len, parts)])).tolist()
    tags = {256: [width], 257: [height], 258: [16]*c, 259: [8 if deflated else 1], 262: [1 if c < 3 else 2], 273: places[:-1], 274: [turned],
            277: [c], 278: [height], 279: [len(part) for part in parts], 284: [2 if planes else 1]} | ({} if extra is None else {338: [extra]})
    body, tail, start = struct.pack(order + "H", len(tags)), b"", places[-1] + 6 + 12*len(tags)
    for tag, values in sorted(tags.items()):
        packed = struct.pack(f"{order}{len(values)}I", *values)
        body += struct.pack(order + "HHI", tag, 4, len(values)) + (packed if len(packed) == 4 else struct.pack(order + "I", start + len(tail)))
        tail += packed if len(packed) > 4 else b""
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", places[-1])
    path.write_bytes(head + b"".join(parts) + body + bytes(4) + tail)


def refused(path):
    with pytest.raises(InputError, match=path.name) as error: read_image(path)
    return str(error.value)


def thermal(height=64, width=32, seed=0):
    "Counts of a warm person before a wall, with a little noise: 14 bits in a range of some hundreds."
    y, x = np.mgrid[:height, :width]/(height, width)[0]
    x = x - x.mean()
    person = np.exp(-(np.abs(x)/.12)**4 - (np.abs(y - .55)/.4)**8)
    return 7200 + 60*y + 700*person*(1 - .3*y) + np.random.default_rng(seed).normal(0, 4, (height, width))


def grey(path, counts):
    Image.fromarray(counts.round().astype(np.uint16)).save(path)
    return read_image(path, "L").astype(int)


# ---- black and white

BAD = {"hot": [65535], "dead": [0], "both": [0, 65535], "14 bits": [16383], "not far": [8400], "just below": [7100]}


@pytest.mark.parametrize("values", BAD.values(), ids=BAD)
@pytest.mark.parametrize("size", [(64, 32), (16, 8), (320, 256), (40, 3)])
def test_bad_pixels_decide_nothing(tmp_path, size, values):
    "The clean image and the one with bad pixels agree elsewhere, wherever these lie: inside, on the rim, in the corner."
    clean = thermal(*size)
    good = grey(tmp_path / "clean.png", clean)
    assert good.max() - good.min() > 200
    for spot in ((0, 0), (0, size[1]//2), (size[0]//2, size[1] - 1), (size[0]//2, size[1]//2)):
        counts, bad = clean.copy(), np.zeros(size, bool)
        for k, value in enumerate(values):
            place = (spot[0] + k*(size[0] > 20)*3) % size[0], (spot[1] + k*4) % size[1]
            counts[place], bad[place] = value, True
        got = grey(tmp_path / "bad.png", counts)
        assert np.abs(got - good)[~bad].max() <= 2, spot
        if values == [65535]: assert (got[bad] == 255).all()
        if values == [0]: assert (got[bad] == 0).all()


@pytest.mark.parametrize("share", [.0005, .005])
def test_many_bad_pixels(tmp_path, share):
    clean, rng = thermal(320, 256), np.random.default_rng(1)
    bad = rng.random(clean.shape) < share
    counts = np.where(bad, rng.choice([0, 65535], clean.shape), clean)
    assert np.abs(grey(tmp_path / "bad.png", counts) - grey(tmp_path / "clean.png", clean))[~bad].max() <= 2


@pytest.mark.parametrize("line", [np.s_[20], np.s_[:, 9], np.s_[0], np.s_[:, -1], np.s_[20:22], np.s_[:, 9:11], np.s_[20:22, 9:11], np.s_[:2, :2]])
def test_bad_lines(tmp_path, line):
    clean = thermal()
    counts, good = clean.copy(), np.ones(clean.shape, bool)
    counts[line], good[line] = 0, False
    assert np.abs(grey(tmp_path / "bad.png", counts) - grey(tmp_path / "clean.png", clean))[good].max() <= 3


@pytest.mark.parametrize("size", [(512, 640), (64, 32)])
def test_a_small_warm_person_is_not_cut_off(tmp_path, size):
    "Thirty pixels that are warm together keep their differences, but for the outermost two; a percentile would make all of them white."
    counts = np.random.default_rng(0).normal(7000, 5, size)
    counts[10:20, 5:8] = 7400 + 20*np.arange(10)[:, None]
    got = grey(tmp_path / "small.png", counts)
    assert (np.diff(got[10:18, 6]) > 5).all() and got[10:20, 5:8].min() > 150 and np.median(got) < 15


def test_saturated_regions_are_seen(tmp_path):
    counts = thermal()
    counts[:8, :8] = 65535
    got = grey(tmp_path / "lamp.png", counts)
    assert (got[:8, :8] == 255).all() and got[8:, 8:].max() < 50 # a lamp is a lamp


def test_flat_images_and_steps(tmp_path):
    flat = np.full((20, 20), 5000.)
    assert (grey(tmp_path / "flat.png", flat) == 0).all()
    flat[3, 3], flat[9, 9] = 60000, 0
    got = grey(tmp_path / "spots.png", flat)
    assert got[3, 3] == 255 and (np.delete(got.ravel(), 63) == 0).all()
    assert list(np.unique(grey(tmp_path / "step.png", np.where(np.arange(20) < 10, 300, 301)*np.ones((20, 1))))) == [0, 255]


@pytest.mark.parametrize("kind", ["u2", ">u2", "i4", "f4"])
def test_every_kind_of_grey(tmp_path, kind):
    "12 bits in a wider file, whatever the order of the bytes."
    counts = thermal()/2
    counts[5, 5] = 30000
    file = tmp_path / "x.tif"
    x = counts.round().astype(kind)
    if kind == ">u2": write_tiff(file, x[..., None], ">")
    else: Image.fromarray(x).save(file)
    got = read_image(file, "L")
    assert got[5, 5] == 255 and np.abs(got.astype(int) - grey(tmp_path / "clean.png", thermal()))[np.arange(64) != 5].max() <= 2
    assert (read_image(file) == got[..., None]).all()


def test_numbers_that_are_none_set_no_limit(tmp_path):
    "Where half of a float image is masked, the other half keeps its contrast; an odd value in it does not count."
    clean = thermal().astype(np.float32)
    Image.fromarray(clean[:, :16].copy()).save(tmp_path / "half.tif")
    clean[:, 16:], clean[20, 4] = np.nan, -1e30
    clean[:2, :2] = np.inf
    Image.fromarray(clean).save(tmp_path / "x.tif")
    got, half = read_image(tmp_path / "x.tif", "L").astype(int), read_image(tmp_path / "half.tif", "L").astype(int)
    assert (got[:, 16:] == 0).all() and got[20, 4] == 0 and (got[:2, :2] == 255).all()
    assert np.abs(got[:, :14] - half[:, :14])[2:][np.arange(62) != 18].max() <= 3


def test_nothing_is_changed(tmp_path):
    "Between the limits the stretch is a straight line, and a ramp keeps its ends."
    ramp = np.linspace(900, 1900, 64*64).reshape(64, 64).round()
    got = grey(tmp_path / "ramp.png", ramp)
    low, high = ramp[2, 2], ramp[-3, -3]
    assert (got == np.clip((ramp - low)/(high - low)*255, 0, 255).round()).all()


# ---- colours of 16 bits

def colours(depth, height=40, width=24):
    "Four channels: a picture, and an alpha that is not a picture."
    y, x = np.mgrid[:height, :width]
    picture = np.stack([y/height, x/width, 1 - .5*(y + x)/(height + width)], -1)*.75 + .1
    return np.concatenate([picture*(2**depth - 1), 65535*(x % 2)[..., None]], -1).round().astype(np.uint16)


def write(path, kind, x):
    "All kinds of file that have colours, or grey and alpha, of 16 bits."
    if kind == "png colour": write_png(path, x[..., :3], 2)
    if kind == "png colour and alpha": write_png(path, x, 6)
    if kind == "png grey and alpha": write_png(path, x[..., [0, 3]], 4)
    if kind.startswith("tiff"):
        options = dict(order=">" if "big" in kind else "<", deflated="deflated" in kind)
        write_tiff(path, x if "alpha" in kind else x[..., :3], extra=2 if "alpha" in kind else None, **options)


KINDS = ["png colour", "png colour and alpha", "png grey and alpha"] + [f"tiff {what}{order}{how}" for what in ("colour", "alpha") for order in ("", " big") for how in ("", " deflated")]


@pytest.mark.parametrize("depth", [12, 16])
@pytest.mark.parametrize("kind", KINDS)
def test_colours_keep_their_bits(tmp_path, kind, depth):
    "One black and one white for all channels; 12 bits give 256 levels as 16 do, not 16."
    x, file = colours(depth), tmp_path / f"x.{kind[:3]}"
    write(file, kind, x)
    got, shown = read_image(file).astype(float), x[..., :1 if "grey" in kind else 3].astype(float)
    line = np.polyfit(shown.ravel(), (got if shown.shape[2] == 3 else got[..., :1]).ravel(), 1)
    assert np.abs(np.polyval(line, shown) - got)[2:-2, 2:-2].max() < 3 and got.min() == 0 and got.max() == 255
    assert len(np.unique(got)) > (30 if "grey" in kind else 90) and image_shape(file) == got.shape[:2]
    assert read_image(file, "L").shape == got.shape[:2] and (decode(file, (20, 12)).shape == (3, 20, 12))


@pytest.mark.parametrize("kind", KINDS)
def test_bad_pixels_in_colours(tmp_path, kind):
    x = colours(12)
    write(tmp_path / f"clean.{kind[:3]}", kind, x)
    x[7, 7, :3] = 65535
    write(tmp_path / f"bad.{kind[:3]}", kind, x)
    clean, bad = (read_image(tmp_path / f"{name}.{kind[:3]}").astype(int) for name in ("clean", "bad"))
    assert (bad[7, 7] == 255).all() and np.abs(clean - bad)[np.arange(40) != 7].max() <= 2


def write_ppm(path, x): path.write_bytes(b"P6 %d %d 65535\n" % (x.shape[1], x.shape[0]) + x[..., :3].astype(">u2").tobytes())


def write_sgi(path, x):
    head = struct.pack(">HBBHHHH", 474, 0, 2, 3, x.shape[1], x.shape[0], 3)
    path.write_bytes(head.ljust(512, b"\0") + np.moveaxis(x[::-1, :, :3], -1, 0).astype(">u2").tobytes())


REFUSED = {"planes": ("x.tif", lambda p, x: write_tiff(p, x[..., :3], planes=True)), "deflated planes": ("x.tif", lambda p, x: write_tiff(p, x[..., :3], planes=True, deflated=True)),
           "premultiplied": ("x.tif", lambda p, x: write_tiff(p, x, extra=1)), "grey and alpha": ("x.tif", lambda p, x: write_tiff(p, x[..., [0, 3]], extra=2)),
           "ppm": ("x.ppm", write_ppm), "sgi": ("x.rgb", write_sgi)}


@pytest.mark.parametrize("name, writer", REFUSED.values(), ids=REFUSED)
def test_what_would_lose_bits_is_refused(tmp_path, name, writer):
    writer(tmp_path / name, colours(12))
    assert "save it as PNG" in refused(tmp_path / name) and len(check_images([tmp_path / name])) == 1


@pytest.mark.parametrize("bits", [8, 16])
def test_jpeg2000(tmp_path, bits):
    "The header tells; whoever cannot write one of 16 bits may still change what it says."
    file = tmp_path / "x.jp2"
    try: Image.fromarray(colours(8)[..., :3].astype(np.uint8)).save(file)
    except (OSError, KeyError): pytest.skip("this pillow writes no JPEG 2000")
    data = bytearray(file.read_bytes())
    data[data.find(b"\xffO\xffQ") + 42] = bits - 1
    file.write_bytes(data)
    if bits == 8: assert read_image(file).shape == (40, 24, 3)
    else: assert "save it as PNG" in refused(file)


def test_readers_take_deep_files(tmp_path):
    "Pairs and manifests go the same way."
    rng = np.random.default_rng(0)
    for m, c in (("visible", 3), ("infrared", 1)):
        (tmp_path / m).mkdir()
        for k in range(4):
            x = np.kron(rng.integers(200, 4000, (8, 8, c)), np.ones((20, 20, 1), int))
            x[3, 3] = 65535
            write_png(tmp_path / m / f"s{k}.png", x, 2 if c == 3 else 0)
    patches = PairsDataset(tmp_path, window=64, duplicates=None).patches
    assert all(patch.float().std() > 40 for patch in patches)
    lines = [f"{m}/s{k}.png,{k},{m},{'train' if k < 2 else 'test'}" for k in range(4) for m in ("visible", "infrared")]
    (tmp_path / "m.csv").write_text("\n".join(["path,identity,modality,split", *lines]))
    assert CSVDataset(tmp_path / "m.csv", 32, validation=0).pixels.float().std() > 40


@pytest.mark.parametrize("turned", range(1, 9))
@pytest.mark.parametrize("bits", [8, 16])
def test_turned_tiffs(tmp_path, turned, bits):
    "Pillow turns a TIFF by itself, sizes included."
    x = colours(12)[..., :3]
    if bits == 16: write_tiff(tmp_path / "x.tif", x, turned=turned)
    else:
        exif = Image.Exif()
        exif[274] = turned
        Image.fromarray((x >> 4).astype(np.uint8)).save(tmp_path / "x.tif", exif=exif)
    got = read_image(tmp_path / "x.tif")
    assert image_shape(tmp_path / "x.tif") == got.shape[:2] == ((40, 24) if turned < 5 else (24, 40))
    corner = [np.s_[0, 0], np.s_[0, -1], np.s_[-1, -1], np.s_[-1, 0]][[0, 1, 2, 3, 0, 1, 2, 3][turned - 1]]
    assert got[corner][0] < 40 and got[corner][1] < 40 # the first pixel of the file has no red and no green


def test_files_of_8_bits_are_as_they_were(tmp_path):
    x = np.array([[[3, 9, 27], [81, 4, 12]]], np.uint8)
    for name in ("x.png", "x.tif", "x.bmp"):
        Image.fromarray(x).save(tmp_path / name)
        assert (read_image(tmp_path / name) == x).all()
    for look, mode in zip(fake_looks((9, 7)), ("RGB", "L")):
        (tmp_path / "x.jpg").write_bytes(look[0])
        assert (read_image(tmp_path / "x.jpg", mode) == np.asarray(Image.open(tmp_path / "x.jpg"))).all()


@pytest.mark.parametrize("turned", [6, 8])
@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_a_grey_tiff_that_lies_on_its_side(tmp_path, kind, turned):
    "Pillow maps such a file into memory, where it knows its path, and turns the size alone."
    counts = (np.arange(24*40).reshape(24, 40) % 200).astype(kind)
    exif = Image.Exif()
    exif[274] = turned
    for name in ("lies.tif", "lies.png"): Image.fromarray(counts).save(tmp_path / name, exif=exif)
    lies, same = (read_image(tmp_path / name, "L") for name in ("lies.tif", "lies.png"))
    assert np.array_equal(lies, same) and image_shape(tmp_path / "lies.tif") == lies.shape == (40, 24)


# ---- of every kind

def test_images_of_other_kinds(tmp_path):
    grey16 = Image.fromarray(np.linspace(20_000, 21_000, 64 * 64).reshape(64, 64).astype(np.uint16))
    grey16.save(tmp_path / "deep.png"); Image.new("RGBA", (20, 10), (9, 8, 7, 0)).save(tmp_path / "alpha.png"); Image.new("P", (20, 10)).save(tmp_path / "palette.png")
    deep = read_image(tmp_path / "deep.png", "L")
    assert deep.min() == 0 and deep.max() == 255 and abs(deep.mean() - 127.5) < 1
    assert read_image(tmp_path / "alpha.png").shape == (10, 20, 3) and read_image(tmp_path / "palette.png").shape == (10, 20, 3)
    assert len(check_images([tmp_path / "deep.png", tmp_path, tmp_path / "gone"])) == 2


def test_pixels_that_are_no_number(tmp_path):
    "A dead pixel of a thermal camera is dark, one out of range bright, and the others keep their contrast."
    ramp = np.arange(12, dtype=np.float32).reshape(3, 4)
    odd = ramp.copy(); odd[0, :3] = np.nan, np.inf, -np.inf
    Image.fromarray(ramp[0:3]).save(tmp_path / "ramp.tif"); Image.fromarray(odd).save(tmp_path / "odd.tif")
    assert list(read_image(tmp_path / "odd.tif", "L")[0]) == [0, 255, 0, 0]
    assert (read_image(tmp_path / "odd.tif", "L")[1:] == np.round((ramp[1:] - 3) * 255/8)).all() and read_image(tmp_path / "ramp.tif", "L").max() == 255
    Image.fromarray(np.full((3, 4), np.nan, np.float32)).save(tmp_path / "none.tif")
    assert "none.tif: no pixel" in message(read_image, tmp_path / "none.tif")


@pytest.mark.parametrize("orientation, turn", [(1, 0), (3, 2), (6, -1), (8, 1)])
def test_images_stand_as_a_viewer_shows_them(tmp_path, orientation, turn):
    "Cameras write how they were held into the file."
    x = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[274] = orientation
    Image.fromarray(x).save(tmp_path/"x.png", exif=exif)
    got = read_image(tmp_path/"x.png")
    np.testing.assert_array_equal(got, np.rot90(x, turn))
    assert image_shape(tmp_path/"x.png") == got.shape[:2]
