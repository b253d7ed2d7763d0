"Garbage and nearly valid input for everything that reads: a result, or an `InputError` in one line that names the file. Never another error, a hang, a file left behind, or code that runs."
import contextlib
import datetime
import io
import json
import os
import pickle
import signal
import string
import struct
import tempfile
import warnings
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings, strategies as st
from PIL import Image
from safetensors.torch import save as safetensors_bytes
from scipy.io import savemat

from vdistill.reid.layouts import look_llcm, look_regdb, look_sysu, read_ids, read_list, read_permutations
from vdistill.reid.doctor import Report, doctor
from vdistill.reid.pretrained import read_weights
from vdistill.reid.checkpoints import CheckpointError, _sha256, check_checkpoint, load_state, load_weights, read_checksums
from vdistill.cli.base import parse_settings
from vdistill.cli.measures import read_columns
from vdistill.looking.comparison import read_grid
from vdistill.reid.config import TrainConfig, configure, read_recipe
from vdistill.core import InputError
from vdistill.reid.data import load_dataset, parse_spec
from vdistill.reid.manifests import CSVDataset, read_manifest
from vdistill.reid.pairs import PairsDataset, find_pairs, read_boxes
from vdistill.reid.images import as_size, image_shape, read_image
from vdistill.reid.tables import read_table
from vdistill.looking.embedding import Embeddings, read_embeddings, write_embeddings
from vdistill.reid.weight_files import read_foreign
from vdistill.reid.runs import read_config

PATIENCE = 60 # seconds for one example


# ---- what every reader must do

class Hang(BaseException): "Not an Exception, so that no reader can swallow it."


@contextlib.contextmanager
def watched():
    def ring(*_): raise Hang(f"no answer in {PATIENCE} s")
    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(PATIENCE)
    try: yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def content(folder): return {p.relative_to(folder): p.read_bytes() if p.is_file() else None for p in folder.rglob("*")}


def attempt(folder, names, read, *args, error=InputError, **options):
    "The result of a reader, or None where it refused with `error`. What would run as code makes `ran` in the folder."
    before = content(folder)
    try:
        with contextlib.chdir(folder), warnings.catch_warnings(), watched():
            warnings.simplefilter("ignore")
            result = read(*args, **options)
    except InputError as e:
        text, result = str(e), None
        assert isinstance(e, error), f"{type(e).__name__}, not {error}: {text[:500]}"
        assert len(text.splitlines()) == 1, f"not one line: {text[:500]!r}"
        assert not names or any(" ".join(str(name).splitlines()) in text for name in names), f"names nothing of {names}: {text[:500]}"
        assert len(text) < 500_000, f"{len(text)} characters: {text[:200]}"
    assert content(folder) == before, "the folder is not as it was"
    return result


def fuzz(long, *strategies, short=30):
    "A test of `short` examples, and the same of `long` ones, marked slow."
    def twice(check):
        @pytest.mark.parametrize("examples", [pytest.param(short, id="short"), pytest.param(long, id="long", marks=pytest.mark.slow)])
        def test(examples):
            def one(drawn):
                with tempfile.TemporaryDirectory() as folder: check(Path(folder), *drawn)
            one.__name__ = one.__qualname__ = check.__name__
            settings(max_examples=examples, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck))(given(st.tuples(*strategies))(one))()
        test.__name__, test.__doc__ = check.__name__, check.__doc__
        return test
    return twice


# ---- strategies

values = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.dates() | st.datetimes() | st.binary(max_size=4) | st.builds(pow, st.just(16), st.sampled_from([300, 4000])),
                      lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.none() | st.booleans() | st.integers() | st.text(max_size=6) | st.dates(), inner, max_size=4), max_leaves=8)
EXTREMES = [b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f", b"\0\0\x4e\x20", b"\x20\x4e\0\0", b"\x80\0\0\0", b"\0\0\0\x80", b"\0\0\0\1", b"\1\0\0\0"]


@st.composite
def mutated(draw, valid, most=5):
    "Valid bytes with a few edits: overwritten, inserted, cut out, doubled, cut off; near the beginning more often."
    data = bytearray(draw(st.sampled_from(valid)))
    for _ in range(draw(st.integers(0, most))):
        at = min(draw(st.one_of(st.integers(0, 64), st.integers(0, max(len(data), 1)))), len(data))
        n, how = draw(st.integers(1, 16)), draw(st.integers(0, 6))
        if how == 0: data[at:at + 1] = bytes([draw(st.integers(0, 255))])
        elif how == 1: data[at:at + 4] = draw(st.sampled_from(EXTREMES))
        elif how == 2: data[at:at] = draw(st.binary(min_size=1, max_size=16))
        elif how == 3: del data[at:at + n]
        elif how == 4: data[at:at] = data[at:at + n]
        elif how == 5: data[at:at + n] = draw(st.binary(min_size=n, max_size=n))
        else: del data[max(at, 8):]
    return bytes(data)


def garbled(valid, most=5): return st.one_of(mutated(valid, most), mutated(valid, most), mutated(valid, most), st.binary(max_size=300))


def members(data):
    with zipfile.ZipFile(io.BytesIO(data)) as z: return {name: z.read(name) for name in z.namelist()}


def zipped(parts):
    with zipfile.ZipFile(file := io.BytesIO(), "w") as z:
        for name, data in parts.items(): z.writestr(zipfile.ZipInfo(name), data)
    return file.getvalue()


@st.composite
def rezipped(draw, valid):
    "A zip archive whose members are garbled and whose checksums are right."
    parts = members(draw(st.sampled_from(valid)))
    name = draw(st.sampled_from(sorted(parts)))
    parts[name] = draw(garbled([parts[name]]))
    if draw(st.booleans()): parts.pop(draw(st.sampled_from(sorted(parts))))
    if draw(st.integers(0, 5)) == 0: parts[draw(st.sampled_from(["a\nb", "x/constants.pkl", "archive/data.pkl", "../up", "ä"]))] = b"x"
    return zipped(parts)


def put(file, data):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(data) if isinstance(data, bytes) else file.write_text(data, encoding="utf-8", errors="surrogateescape")
    return file


# ---- images

def scene(size=(24, 20), seed=0): return np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)


def encoded(image, kind, **options):
    image.save(file := io.BytesIO(), kind, **options)
    return file.getvalue()


def oriented():
    exif = Image.Exif()
    exif[274], exif[270], exif[36867] = 6, "made up", "2020:01:01 00:00:00"
    return exif


RGB = Image.fromarray(scene())
DEEP = Image.fromarray(np.arange(480, dtype=np.uint16).reshape(20, 24)*100)
IMAGES = [*(encoded(RGB, kind) for kind in ("PNG", "JPEG", "BMP", "TIFF", "GIF", "WEBP", "PPM", "TGA")),
          *(encoded(RGB.convert(mode), "PNG") for mode in ("L", "P", "LA", "RGBA", "1")), encoded(DEEP, "PNG"), encoded(RGB.quantize(16), "PNG", transparency=3, bits=4),
          encoded(RGB, "JPEG", exif=oriented(), progressive=True), encoded(RGB.convert("CMYK"), "JPEG"), encoded(RGB, "PNG", exif=oriented()),
          encoded(DEEP, "TIFF"), encoded(RGB.convert("F"), "TIFF"), encoded(RGB, "TIFF", compression="tiff_lzw"), encoded(RGB, "TIFF", compression="tiff_adobe_deflate", exif=oriented()),
          encoded(RGB.convert("1"), "TIFF", compression="group4"), encoded(RGB.quantize(), "GIF", save_all=True, append_images=[RGB.quantize(8)]), encoded(RGB.quantize(), "BMP"),
          encoded(RGB, "TIFF", compression="jpeg"), encoded(RGB, "ICO"), encoded(RGB, "JPEG2000"), encoded(RGB.convert("RGBA"), "WEBP", lossless=True, exif=oriented())]
PNGS = [data for data in IMAGES if data[:4] == b"\x89PNG"]


def sealed(data):
    "A PNG with the checksums that its chunks should have."
    out, at = data[:8], 8
    while at + 8 <= len(data):
        n = min(struct.unpack(">I", data[at:at + 4])[0], len(data) - at - 8)
        out += struct.pack(">I", n) + data[at + 4:at + 8 + n] + struct.pack(">I", zlib.crc32(data[at + 4:at + 8 + n]))
        at += 12 + n
    return out


@fuzz(4000, st.one_of(garbled(IMAGES), garbled(IMAGES), mutated(PNGS).map(sealed)), st.sampled_from(["x.png", "x.JPG", "x.tif", "x", "x y.gif"]), st.sampled_from(["RGB", "L"]), short=40)
def test_images(folder, data, name, mode):
    file = put(folder / name, data)
    image = attempt(folder, [name], read_image, file, mode)
    assert image is None or image.dtype == np.uint8 and image.shape[2:] == (3,)*(mode == "RGB")
    shape = attempt(folder, [name], image_shape, file)
    assert shape is None or all(type(n) is int for n in shape)


# ---- tables

COLUMNS = {read_table: ["name", "x"], read_manifest: ["path", "identity", "modality", "split", "camera"], read_boxes: ["name", "x", "y", "w", "h", "identity"], read_columns: ["a", "b", "c d"]}
GOOD = dict(path=["v0.png", "v1.png", "i0.png", "i1.png", "./v0.png", "torn.png"], identity=["1", "2", "anna"], modality=["visible", "infrared", "0", "T"], split=["train", "test", "val", "Validation"], camera=["1", "2", "c"],
            name=["s0", "s1", "s0.png"], x=["0", "3"], y=["1", "2.5"], w=["10", "12"], h=["20", "24"])
ODD = ["", " ", "-1", "1e400", "1e300", "nan", "inf", "-inf", "0x10", "1_0", "9"*18, "9"*19, "9"*400, "9"*5000, "٣", "２", "²", "true", "2020-01-01", "\0", "\ufeff", "a\u2028b", "~", "~no-such-user/x", "../..", "/", ".", "a"*300, "b"*140_000,
       "\x1a", "=1+1", "line", "index", "\x85", "café", "\U0001f600", "1,5", "1;5", "'", "NA"]
cells = st.one_of(st.sampled_from(ODD), st.text(max_size=8), st.integers().map(str), st.floats().map(str))


def quoted(cell, how): return f'"{cell}"' if how == 1 else f'"{cell}\n"' if how == 2 else f'"{cell}' if how == 3 else cell


@st.composite
def tables(draw, columns):
    "CSV: mostly right, with odd cells, quotes, columns, endings and encodings."
    header = list(columns)
    how = draw(st.integers(0, 6))
    if how == 0: header.append(draw(st.sampled_from(columns)))
    if how in (1, 2): header = draw(st.lists(st.one_of(st.sampled_from([*columns, *(c.upper() for c in columns), "line", "path", "Camera", ""]), cells), max_size=9))
    odds = draw(st.integers(1, 12))
    def cell(column):
        right = draw(st.sampled_from(GOOD.get(column, ["1", "2"])))
        return quoted(draw(cells), draw(st.integers(0, 30))) if draw(st.integers(0, odds)) == odds else right
    rows = [header] + [[cell(column) for column in header] for _ in range(draw(st.integers(0, 5)))]
    if draw(st.integers(0, 5)) == 0: rows[-1] = rows[-1][1:]
    if draw(st.integers(0, 7)) == 0: rows[-1][-1:] = ["b"*140_000] # more than a cell may hold
    text = draw(st.sampled_from(["\n", "\n", "\r\n", "\r", "\n\n"])).join(draw(st.sampled_from([",", ",", ",", ";", ", "])).join(row) for row in rows)
    data = text.encode(draw(st.sampled_from(["utf-8"]*5 + ["utf-8-sig", "utf-16", "utf-16-le", "utf-32", "cp1252"])), "replace")
    return draw(mutated([data], 3)) if draw(st.integers(0, 3)) == 0 else data


def with_images(folder):
    for name, data in zip(("v0.png", "v1.png", "i0.png", "i1.png"), PNGS): put(folder / name, data)
    put(folder / "torn.png", PNGS[0][:100])
    return folder


@fuzz(1500, st.one_of(tables(COLUMNS[read_manifest]), st.binary(max_size=200), st.text(max_size=200).map(lambda t: t.encode("utf-8", "replace"))))
def test_manifests(folder, data):
    file = put(with_images(folder) / "list.csv", data)
    attempt(folder, ["list.csv"], read_table, file, COLUMNS[read_table])
    table = attempt(folder, ["list.csv"], read_manifest, file)
    assert table is None or set(table.split) <= {"train", "val", "test"} and set(table.modality) <= {0, 1}
    dataset = attempt(folder, ["list.csv"], CSVDataset, file)
    assert dataset is None or len(dataset) == len(table) == len(dataset.images(range(len(dataset))))
    assert isinstance(attempt(folder, [], doctor, f"csv:{file}", error=()), (Report, type(None)))


@fuzz(2000, st.one_of(tables(COLUMNS[read_boxes]), tables(COLUMNS[read_boxes]), st.binary(max_size=200)))
def test_boxes(folder, data):
    file = put(folder / "boxes.csv", data)
    table = attempt(folder, ["boxes.csv"], read_boxes, file, ["s0", "s1"])
    assert table is None or (table[["height", "width"]] >= 2).all(axis=None) and set(table.scene) <= {"s0", "s1"}


@fuzz(2500, st.one_of(tables(COLUMNS[read_columns]), st.binary(max_size=200)), st.one_of(st.sampled_from(["a", "a,b", "A, c d", ",", ""]), st.text(max_size=8)), st.sampled_from(["b", "a", "c d,b"]))
def test_columns(folder, data, x, y):
    attempt(folder, ["t.csv", "--x"], read_columns, put(folder / "t.csv", data), x, y)


# ---- folders

odd_names = st.one_of(st.sampled_from(["a.png", "A.PNG", "a.jpg", "b.tif", ".hidden.png", "a.b.png", "ä.png", "a\u0308.png", "~.png", "a b.png", "x.txt", ".png", "..png", "-.bmp", "$HOME.png", "%s.png", "{x}.png", "\udcff.png", "a\nb.png", "[a].png", "x"*200 + ".png"]),
                      st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=12).filter(lambda t: t not in (".", "..") and len(t.encode()) < 200))


@st.composite
def pair_folders(draw):
    "What lies in a folder of pairs: name -> bytes, or None for a folder."
    tops = ["visible", "infrared"]
    files = {f"{top}/s{i}.png": PAIRS[m][i] for m, top in enumerate(tops) for i in range(3)} if draw(st.booleans()) else {}
    for _ in range(draw(st.integers(0, 4))):
        name = f"{draw(st.sampled_from([*tops, *tops, '.', 'other']))}/{draw(odd_names)}"
        files[name] = draw(st.one_of(st.none(), st.just(PAIRS[0][0]), st.just(b""), garbled(IMAGES)))
    if draw(st.booleans()): files = {name: data if data is None or draw(st.integers(0, 6)) else draw(garbled([data])) for name, data in files.items()}
    if draw(st.integers(0, 3)) == 0: files["boxes.csv"] = draw(tables(COLUMNS[read_boxes]))
    return files


def blocks(seed): return Image.fromarray(np.kron(np.random.default_rng(seed).integers(0, 256, (10, 12, 3), np.uint8), np.ones((11, 11, 1), np.uint8)))
PAIRS = [[encoded(blocks(seed).convert(mode), "PNG") for seed in range(3)] for mode in ("RGB", "L")]


def lay(folder, files):
    folder.mkdir(exist_ok=True)
    for name, data in files.items():
        with contextlib.suppress(FileExistsError, NotADirectoryError, IsADirectoryError): # two names can be at odds
            (folder / name).mkdir(parents=True, exist_ok=True) if data is None else put(folder / name, data)
    return folder


@fuzz(500, pair_folders(), short=8)
def test_pairs(folder, files):
    pairs = lay(folder / "pairs", files)
    attempt(folder, ["pairs", *files], find_pairs, pairs)
    dataset = attempt(folder, ["pairs", "boxes.csv", *(Path(name).name for name in files)], PairsDataset, pairs)
    assert dataset is None or dataset.images([0]).shape == (1, 3, *dataset.image_size)
    assert isinstance(attempt(folder, [], doctor, f"pairs:{pairs}", error=()), (Report, type(None)))


@fuzz(3000, st.one_of(st.sampled_from(["synthetic", "pairs:", "csv:", "sysu:", "regdb:", "llcm:", "sysuu:", "synthetic:", "", ":", "csv", "Pairs:"]), st.text(max_size=10)), st.one_of(st.sampled_from([word for word in ODD if len(word) < 10_000]), st.text(max_size=20)), short=40)
def test_specs(folder, kind, where):
    spec = kind + where
    attempt(folder, [], parse_spec, spec)
    if spec.strip() != "synthetic": attempt(folder, [], load_dataset, spec)


@fuzz(3000, values)
def test_image_sizes(folder, value):
    size = attempt(folder, ["image_size"], as_size, value)
    assert size is None or len(size) == 2


# ---- lists and folders of archives

def matrix(**variables):
    savemat(file := io.BytesIO(), variables)
    return file.getvalue()


def squeezed(**variables):
    savemat(file := io.BytesIO(), variables, do_compression=True)
    return file.getvalue()


def draw_of(*cells):
    out = np.empty((6, 1), object)
    for c in range(6):
        out[c, 0] = np.empty((len(cells), 1), object)
        for i, cell in enumerate(cells): out[c, 0][i, 0] = np.array(cell)
    return out


ORDER = np.array([[1, 2], [2, 1]], np.uint8)
cube = np.empty((1, 2), object)
cube[0] = [np.array([1, 2]), np.array(["a", "bc"])]
VARIABLES = [np.array([[1, 2, 3]], np.uint16), np.array([[1., 2.5, np.nan]]), np.array(["a", "b"]), np.zeros((0, 0)), cube, dict(a=1, b=[1, 2]), np.array([[1 + 2j]]), np.array([[True]]), np.array([[2**63]], np.uint64), "text",
             draw_of(ORDER, np.zeros((0, 0))), draw_of(ORDER), draw_of(["a", "b"]), draw_of([[1, 1]]), draw_of(1.5), draw_of(np.nan)]
MATS = [save(**{name: value}) for value in VARIABLES for name in ("id", "rand_perm_cam") for save in (matrix, squeezed)] + [matrix(other=1), matrix()]
ID_LISTS = [b"1,2,3", b"1\n2\n3\n", b"\xef\xbb\xbf1, 2;3", b"", b",,,", b"1,a", b"1.5", "٣,２".encode(), "²".encode(), b"-1", b"1"*5000, b"0", b"9"*25]
IMAGE_LISTS = [b"Visible/1/a.bmp 0\nVisible/2/b.bmp 1\n", b"Thermal\\1\\a.bmp\t0", b"Visible/1/a.bmp, 0,\n\n", b"", b"Visible/1/a b.bmp 0", b"x " + b"1"*5000, b"x " + b"9"*30, b"Visible/" + b"9"*30 + b"/a.bmp 0", b"vis/0001/a.jpg 0\n" + b"vis/0001/a.jpg 0",
               "Visible/٣/a.bmp ３".encode(), b"Visible/1/\0.bmp 0", b"../../x 1", b"/etc/passwd 1", b"1 1", b"//// 1", b"Visible/1/a.bmp 0\x0cThermal/1/a.bmp 0"]
# No edits inside of .mat bytes: scipy's reader takes their sizes on trust, and one such file ended the whole process with a bus error, which nothing here can catch.
mats = st.one_of(st.sampled_from(MATS), st.sampled_from(MATS), st.builds(lambda data, n: data[:n], st.sampled_from(MATS), st.integers(0, 800)), st.binary(max_size=300))
id_lists, image_lists = (st.one_of(st.sampled_from(some), garbled(some)) for some in (ID_LISTS, IMAGE_LISTS))


@fuzz(3000, id_lists, image_lists, mats)
def test_lists(folder, ids, lines, mat):
    put(folder / "a_id.txt", ids), put(folder / "b_id.mat", mat)
    for name, file in (("a_id", "a_id.txt"), ("b_id", "b_id.mat"), ("c_id", "none")):
        assert isinstance(attempt(folder, [file], read_ids, folder, name), (list, type(None)))
    table = attempt(folder, ["lines.txt"], read_list, put(folder / "lines.txt", lines))
    assert table is None or len(table)
    draw = attempt(folder, ["draw.mat"], read_permutations, put(folder / "draw.mat", mat))
    assert draw is None or all(cell.dtype == np.int64 and cell.ndim == 2 for cell in draw.values())


LAYOUTS = {"sysu": (["cam1", "cam2", "cam3", "cam6", "exp"], ["train_id", "val_id", "test_id"], "rand_perm_cam.mat"),
           "regdb": (["Visible", "Thermal", "idx"], ["train_visible_1", "train_thermal_1", "test_visible_1", "test_thermal_2"], None),
           "llcm": (["vis", "nir", "test_vis/cam1", "test_nir/cam2", "test_nir", "idx"], ["train_vis", "train_nir", "test_id", "test_vis"], None)}
PEOPLE = ["1", "0001", "2", "3", "٣", "²", "x", "1 ", "9"*25, ".1", "-1", "cam1"]
FILES = ["0001.jpg", "1.bmp", "a.bmp", "b.bmp", "0001_c01_s1_f1_vis.jpg", "0001_c" + "9"*30 + "_x.jpg", "٣.png", "x.txt", ".a.jpg", "9"*200 + ".png", "Thumbs.db", "a\nb.jpg", "\udcff.jpg"]


@st.composite
def archive_folders(draw, kind):
    tops, names, extra = LAYOUTS[kind]
    files = {f"{draw(st.sampled_from(tops))}/{draw(st.one_of(st.sampled_from(PEOPLE), odd_names))}/{draw(st.sampled_from(FILES))}": draw(st.sampled_from([*IMAGES[:3], b"", None])) for _ in range(draw(st.integers(0, 6)))}
    for name in names:
        how = draw(st.integers(0, 5))
        if how < 4: files[f"{tops[-1]}/{name}.txt"] = draw(id_lists if name.endswith("id") else image_lists)
        elif how == 4: files[f"{tops[-1]}/{name}.mat"] = draw(mats)
    if extra and draw(st.booleans()): files[f"{tops[-1]}/{extra}"] = draw(mats)
    if draw(st.integers(0, 3)) == 0: files[draw(st.sampled_from(tops))] = draw(st.sampled_from([b"a file", None]))
    return files


def looked(folder, kind, files):
    root = lay(folder / "tree", files)
    attempt(folder, ["tree"], {"sysu": look_sysu, "regdb": look_regdb, "llcm": look_llcm}[kind], root)
    report = attempt(folder, ["tree"], doctor, f"{kind}:{root}", error=())
    if report: assert str(report) and json.loads(report.to_json())["ok"] == report.ok
    attempt(folder, ["tree"], load_dataset, f"{kind}:{root}")


@fuzz(400, archive_folders("sysu"), short=8)
def test_sysu(folder, files): looked(folder, "sysu", files)


@fuzz(150, archive_folders("regdb"), short=4)
def test_regdb(folder, files): looked(folder, "regdb", files)


@fuzz(400, archive_folders("llcm"), short=8)
def test_llcm(folder, files): looked(folder, "llcm", files)


# ---- YAML

FIELDS = list(TrainConfig.__dataclass_fields__)
RUN = ["!!python/object/apply:os.mkdir [ran]", "!!python/object/new:os.mkdir [ran]", "!!python/name:os.system", "!!python/module:os", "!!python/object/apply:builtins.exec [\"open('ran','w')\"]"]
LAUGHS = "a0: &a0 [x,x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}']*9)}]\n" for i in range(1, 10))
ODD_YAML = [*RUN, "2001-99-99", "2001-01-01 99:99:99", "2001-01-01", "!!timestamp x", "!!bool x", "!!int ''", "!!int x", "!!float x", "!!binary x", "!!set {a, b}", "!!omap [a: 1]", "!!pairs [a: 1]", "!!str [a]", "!!null x",
            "0x" + "f"*5000, "9"*5000, "1" + "0"*400, ".nan", ".inf", "-.inf", "1e400", "0b", "0x_", "0o9", "1:99", "190:20:30", "~", "''", "no", "*a", "&a [*a]", "&a {b: *a}", "{? [a] : b}", "{? {a: b} : c}", "{1: 2}", "{null: 1}", "{2001-01-01: 1}",
            "["*600, "["*100, "["*60 + "]"*60, "{a: "*300 + "1" + "}"*300, "|\n  a\n  b", ">\n  a", "'a\n\n b'", "\"\\0\"", "\"\\ud800\"", "- 1", "<<: {a: 1}", "<<: 1", "? a", "@", "%", "`", "\t", "---", "--- a\n--- b", "# x", "\0", "\x85", "\ufeff", "é", "data", "full", "!x y",
            "{a: &b [1], c: *b}", "[]", "{}", "[1, 2]", "[[1], [2, 3]]", "{image_size: 64}", "../x", "/dev/null", "$HOME", "true", "1", "0", "-1", "1.5", "1e-3", "x"]
def dumped(value, **options):
    try: return yaml.safe_dump(value, allow_unicode=True, width=10**6, **options).removesuffix("...\n").strip()
    except ValueError: return "9"*5000 # a whole number that Python will not write


@st.composite
def documents(draw, fields, valid):
    "YAML: settings with odd values, valid documents that are garbled, and anything at all."
    how = draw(st.integers(0, 5))
    if how == 0: return draw(garbled([text.encode() for text in valid]))
    if how == 1: return draw(st.text(st.sampled_from(string.printable + "é"), max_size=60)).encode()
    if how == 2: return dumped(draw(values)).encode("utf-8", "surrogatepass")
    if how == 3: return draw(st.sampled_from([*ODD_YAML, LAUGHS, *(f"{LAUGHS}{field}: *a9\n" for field in fields)])).encode()
    keys = draw(st.lists(st.one_of(st.sampled_from(fields), st.sampled_from(fields), st.sampled_from(["data.x", "1", "null", "base", "2001-01-01", "é"])), min_size=1, max_size=3, unique=True))
    odd = [draw(st.one_of(st.sampled_from(ODD_YAML), st.sampled_from(ODD_YAML), values.map(lambda v: dumped(v, default_flow_style=True)))) for _ in keys]
    lines = "".join(f"{key}: {value}\n" for key, value in zip(keys, odd))
    return ((draw(st.sampled_from(valid)) if draw(st.booleans()) else "") + lines).encode("utf-8", "surrogatepass")


RECIPES = ["epochs: 3\nmethod: full\n", "base: modern-sysu\nepochs: 4\ndata: {image_size: [64, 32]}\n", "base: self\nvsd: 1e-3\n", "grid: [2, 2]\ndecay_at: [.5]\nhidden: [8]\nflip: .5\n"]


@fuzz(3000, documents(FIELDS, RECIPES), short=40)
def test_recipes(folder, data):
    file = put(folder / "recipe.yaml", data)
    found = attempt(folder, ["recipe.yaml"], read_recipe, "synthetic", str(file))
    assert found is None or isinstance(found[1], dict)
    config = attempt(folder, ["recipe.yaml", *FIELDS], configure, "synthetic", recipe=str(file))
    assert config is None or isinstance(config, TrainConfig)


@fuzz(3000, st.dictionaries(st.one_of(st.sampled_from(FIELDS), st.sampled_from(["data.x", "epoch", "é", ""])).filter(lambda k: k not in ("dataset", "method", "seed", "recipe")), values, max_size=3), short=40)
def test_settings(folder, given_settings):
    config = attempt(folder, [*FIELDS, *map(repr, given_settings)], configure, **given_settings)
    assert config is None or isinstance(config, TrainConfig)


@fuzz(3000, st.lists(st.one_of(st.text(max_size=20), st.builds("{}={}".format, st.sampled_from(["epochs", "", "a b", "é"]), st.one_of(st.sampled_from(ODD_YAML), st.text(max_size=10)))), max_size=2))
def test_command_line_settings(folder, pairs):
    found = attempt(folder, ["--set"], parse_settings, pairs)
    assert found is None or isinstance(found, dict)


CONFIGS = [yaml.safe_dump({k: list(v) if isinstance(v, tuple) else v for k, v in vars(configure("synthetic")).items()}, sort_keys=False), "epochs: 3\n", ""]


@fuzz(3000, documents(FIELDS, CONFIGS), short=40)
def test_configs(folder, data):
    put(folder / "run" / "config.yaml", data)
    config = attempt(folder, ["config.yaml", *FIELDS], read_config, folder / "run")
    assert config is None or isinstance(config, TrainConfig)


GRIDS = ["datasets: [synthetic]\nmethods: [full, vsd]\nseeds: [0, 1]\n", "datasets: [synthetic, 'pairs:$HOME']\nmethods: [baseline]\nseeds: [0]\nsettings: {epochs: 1, data: {image_size: 32}}\nsweep: {beta: [.1, 1], data.people: [4], hidden: [[8], [16]]}\n"]


@fuzz(3000, documents(["datasets", "methods", "seeds", "settings", "sweep"], GRIDS), short=40)
def test_grids(folder, data):
    found = attempt(folder, ["grid.yaml", *FIELDS], read_grid, put(folder / "grid.yaml", data))
    assert found is None or found[0] and isinstance(found[1], dict)


# ---- weights and checkpoints

class Bomb:
    def __reduce__(self): return exec, ("open('ran', 'w')",)


class Maker:
    def __reduce__(self): return os.mkdir, ("ran",)


def torch_bytes(value, **options):
    torch.save(value, file := io.BytesIO(), **options)
    return file.getvalue()


STATE = {"epoch": 3, "best": {"epoch": 1, "feature": "v"}, "w": torch.arange(6.).reshape(2, 3), "half": torch.ones(2, dtype=torch.bfloat16), "nested": [(1, 2.5), None, "x"]}
SPARSE = {"s": torch.eye(3).to_sparse()}
TORCH = [torch_bytes(STATE), torch_bytes(STATE, _use_new_zipfile_serialization=False), torch_bytes({"a": np.ones(3)}), torch_bytes(SPARSE), torch_bytes([1, 2]), torch_bytes(torch.ones(2)), torch_bytes({"a": Bomb()}), torch_bytes(Maker()),
         torch_bytes({"a": Bomb()}, _use_new_zipfile_serialization=False), pickle.dumps(Bomb()), pickle.dumps({"a": 1})]
ZIPS = [data for data in TORCH if data[:2] == b"PK"]
SAFE = [safetensors_bytes({"w": torch.arange(6.).reshape(2, 3), "fc.b": torch.ones(2, dtype=torch.int8), "e": torch.zeros(0, 3)}), safetensors_bytes({}), safetensors_bytes({"w": torch.ones(())}, {"format": "pt"})]


@st.composite
def liars(draw):
    "safetensors whose header lies: types, shapes, offsets."
    number = st.one_of(st.integers(0, 32), st.integers(-2, 2**70), st.just(2**63), st.just(2**32), st.none(), st.floats())
    entry = st.fixed_dictionaries({}, optional=dict(dtype=st.one_of(st.sampled_from(["F32", "F64", "I8", "U8", "BOOL", "BF16", "F16", "U16", "U64", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F4", "F6_E2M3", "C64", "X", ""]), values.filter(lambda v: jsonable(v))),
                                                    shape=st.lists(number, max_size=4), data_offsets=st.lists(number, max_size=3), extra=st.just(1)))
    fair = st.builds(lambda n, kind: dict(dtype=kind[0], shape=[n], data_offsets=[0, n*kind[1]]), st.integers(0, 4), st.sampled_from([("F32", 4), ("F8_E8M0", 1), ("F8_E4M3", 1), ("C64", 8), ("U64", 8), ("U16", 2), ("BOOL", 1), ("F4", 1), ("I16", 2), ("BF16", 2)]))
    header = draw(st.one_of(st.dictionaries(st.sampled_from(["w", "", "fc.x", "__metadata__", "a\nb"]), st.one_of(entry, fair), max_size=3), fair.map(lambda e: {"w": e})))
    text = json.dumps(header, default=str).encode()
    n = draw(st.one_of(st.just(len(text)), st.just(len(text)), st.just(len(text)), st.integers(0, 2**64 - 1)))
    size = draw(st.one_of(st.integers(0, 40), st.just(max([e["data_offsets"][-1] for e in header.values() if e.get("data_offsets") and isinstance(e["data_offsets"][-1], int) and 0 <= e["data_offsets"][-1] < 1000], default=0))))
    return struct.pack("<Q", n) + text + b"\1"*size


def jsonable(value):
    try: json.dumps(value)
    except (TypeError, ValueError): return False
    return True


weight_bytes = st.one_of(st.sampled_from(TORCH + SAFE), garbled(TORCH), rezipped(ZIPS), garbled(SAFE), liars(), garbled(IMAGES[:2]))
LEDGER = json.dumps(dict(format=1, sha256={"model.safetensors": "0"*64, "state.pt": "1"*64}, pending={}), indent=1).encode()
ODD_JSON = [LEDGER, b"[" * 100_000, b"{" * 2000, b'{"format": ' + b"9"*5000 + b"}", b'{"format": 1e999, "sha256": {}, "pending": {}}', b'{"format": true, "sha256": {}, "pending": {}}', b'{"format": 99999999999999999999999}', b'{"format": NaN}', b"null", b"", b"\xff\xfe", b'{"a": "\\ud800"}',
            b'{"format": 1, "sha256": {"model.safetensors": {}, "state.pt": [1]}, "pending": {"": null}}', b'{"format": 1, "sha256": {"../../up": "x", "\\u0000": "y", "' + b"a"*300 + b'": "z", "a\\nb": "c", "/": 1, ".": 2}, "pending": {}}']


@fuzz(2500, weight_bytes, weight_bytes, st.booleans(), st.one_of(st.just(LEDGER), st.sampled_from(ODD_JSON), garbled([LEDGER])))
def test_checkpoints(folder, weights, state, match, ledger):
    "Garbage under a checksum that is right must still be refused in our own words."
    put(folder / "run" / "model.safetensors", weights), put(folder / "run" / "state.pt", state)
    if match: ledger = json.dumps(dict(format=1, sha256={"model.safetensors": _sha256(weights), "state.pt": _sha256(state)}, pending={})).encode()
    put(folder / "run" / "checksums.json", ledger)
    tables = attempt(folder, ["checksums.json"], read_checksums, folder / "run", error=CheckpointError)
    assert tables is None or all(isinstance(table, dict) for table in tables)
    found = attempt(folder, ["model.safetensors", "checksums.json"], load_weights, folder / "run", error=CheckpointError)
    assert found is None or all(torch.is_tensor(t) for t in found.values())
    attempt(folder, ["model.safetensors", "checksums.json"], load_weights, folder / "run", torch.nn.Linear(3, 2), error=CheckpointError)
    found = attempt(folder, ["state.pt", "checksums.json"], load_state, folder / "run", error=CheckpointError)
    assert found is None or isinstance(found, dict)
    assert isinstance(attempt(folder, ["run"], check_checkpoint, folder / "run"), list)


@fuzz(4000, weight_bytes, st.sampled_from(["w.pt", "w.pth", "w.safetensors", "w", "a b.bin"]), short=40)
def test_weight_files(folder, data, name):
    file = put(folder / name, data)
    found = attempt(folder, [name], read_weights, file)
    assert found is None or all(torch.is_tensor(t) for t in found.values())
    assert isinstance(attempt(folder, [name], read_foreign, file), (dict, type(None)))


# ---- embeddings

def embedding_files():
    out = {}
    with tempfile.TemporaryDirectory() as folder:
        for ending in (".npz", ".parquet"):
            write_embeddings(file := Path(folder, "e" + ending), Embeddings(np.array(["a.png", "b.png"]), np.array(["visible"]*2), dict(v=np.ones((2, 3), np.float32), z=np.zeros((2, 1), np.float32)), dict(run="r", seed=0)))
            out[ending] = file.read_bytes()
    return out


def packed(**arrays):
    np.savez_compressed(file := io.BytesIO(), **arrays)
    return file.getvalue()


with contextlib.suppress(InputError): TABLES = embedding_files()
NPZ = [TABLES[".npz"], packed(path=np.array(["a"]), modality=np.array(["visible"]), metadata=np.array("{}"), v=np.ones((1, 2))), packed(path=np.array(["a"]), modality=np.array(["visible"]), metadata=np.array("["*5000)),
       packed(path=np.array([Bomb()], object), modality=np.array([1]), metadata=np.array(b"{}")), packed(path=np.ones(3), modality=np.ones(2), metadata=np.array(["a", "b"])), packed(), packed(x=np.ones(1))]
BARE = io.BytesIO()
np.save(BARE, np.ones(3))


@fuzz(3000, st.one_of(st.sampled_from(NPZ), garbled(NPZ), rezipped(NPZ[:-2]), garbled([BARE.getvalue(), *TORCH[:1], *SAFE[:1]])))
def test_embeddings(folder, data):
    found = attempt(folder, ["e.npz"], read_embeddings, put(folder / "e.npz", data))
    assert found is None or isinstance(found, Embeddings)


@fuzz(3000, garbled([TABLES[".parquet"]]))
def test_embedding_tables(folder, data):
    pytest.importorskip("pyarrow")
    found = attempt(folder, ["e.parquet"], read_embeddings, put(folder / "e.parquet", data))
    assert found is None or isinstance(found, Embeddings)


# ---- faults that are known and wait to be put right

BIG = "9"*25
PLACES = [f"cam{camera}/{person}" for camera in range(1, 7) for person in ("1", "2", BIG)]
MANY_DIGITS = {f"{place}/0001.jpg": IMAGES[1] for place in PLACES} | {"exp/train_id.txt": BIG.encode(), "exp/val_id.txt": b"2", "exp/test_id.txt": b"1"}
FAULTS = { # what is wrong -> an example
    "core, InputError: a line break in a name comes back in the message": lambda f: attempt(f, [], read_image, f / "a\nb.png"),
    "core, InputError: so does one in the name of a tensor": lambda f: attempt(f, ["w.pt"], read_foreign, put(f / "w.pt", lying({"a\nb": dict(dtype="F32", shape=[9], data_offsets=[4, 40])}))),
    "core, InputError: so does one in the name of a member": lambda f: attempt(f, ["w.pt"], read_foreign, put(f / "w.pt", zipped({"a\nb": b""}))),
    "archives, read_ids: cells in place of numbers": lambda f: attempt(f, ["a.mat"], read_ids, put(f / "a.mat", matrix(id=cube)).parent, "a"),
    "archives, read_ids: text and fractions are taken for identities": lambda f: whole(attempt(f, ["a.mat"], read_ids, put(f / "a.mat", matrix(id=np.array([[1., 2.5, np.nan]]))).parent, "a")),
    "archives, read_ids: a number of 5000 digits": lambda f: attempt(f, ["a.txt"], read_ids, put(f / "a.txt", "1"*5000).parent, "a"),
    "archives, read_list: a label of 5000 digits": lambda f: attempt(f, ["a.txt"], read_list, put(f / "a.txt", "a.jpg " + "1"*5000)),
    "archives, _check_people: a list of text beside a list of numbers": lambda f: attempt(f, [], doctor, f"sysu:{lay(f / 't', {'cam1': None, 'exp/train_id.mat': matrix(id='text'), 'exp/test_id.txt': b'1'})}"),
    "archives, look_lists: a folder of 25 digits": lambda f: attempt(f, [], doctor, f"regdb:{lay(f / 't', {f'Visible/{BIG}/a.bmp': IMAGES[2], 'idx/train_visible_1.txt': f'Visible/{BIG}/a.bmp 0'.encode()})}"),
    "archives, scan_people: a folder of 25 digits": lambda f: attempt(f, ["t"], load_dataset, f"sysu:{lay(f / 't', MANY_DIGITS)}"),
    "archives, look_folder: a name that is too long": lambda f: attempt(f, [], doctor, "sysu:" + "a"*300),
    "archives, look_folder: the home of nobody": lambda f: attempt(f, [], load_dataset, "sysu:~no-such-user/x"),
    **{f"cli, parse_settings: {value[:16]}": lambda f, value=value: attempt(f, ["--set"], parse_settings, [f"epochs={value}"]) for value in ("2001-99-99", "!!bool x", "!!int ''", "!!timestamp x", "["*600)},
    "cli, read_columns: a line break in a header": lambda f: attempt(f, ["t.csv"], read_columns, put(f / "t.csv", '"a\nb",c\n1,2'), "x", "c"),
    **{f"training, read_config: {value[:16]}": lambda f, value=value: attempt(f, ["config.yaml"], read_config, put(f / "config.yaml", f"epochs: {value}").parent) for value in ("2001-99-99", "!!bool x", "!!int ''", "!!timestamp x", "["*600)},
}


def lying(header): return struct.pack("<Q", len(json.dumps(header))) + json.dumps(header).encode() + b"\1"*36


def whole(ids): assert ids is None or all(type(i) is int for i in ids)


@pytest.mark.parametrize("fault", FAULTS)
def test_faults(tmp_path, fault):
    "What the fuzzing has found, and what was put right."
    FAULTS[fault](tmp_path)
