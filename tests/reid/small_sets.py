"Small sets that several tests read: scenes as pairs, with boxes, and in manifests."
import os
import unicodedata

import numpy as np
import pytest
from PIL import Image, ImageDraw

from vdistill.core import InputError

NFC, NFD = unicodedata.normalize("NFC", "Zoë"), unicodedata.normalize("NFD", "Zoë") # they look alike
plain_disk = pytest.mark.skipif(os.name == "nt" or os.uname().sysname == "Darwin", reason="this system takes both forms of a name, and both cases, for one")


def scene(seed, size=(300, 210), shift=0):
    "Blocks of random grey, unlike each other from seed to seed."
    rng, images = np.random.default_rng(seed), []
    blocks = rng.integers(0, 300, (40, 4))
    for mode in ("RGB", "L"):
        image = Image.new(mode, size)
        pen = ImageDraw.Draw(image)
        for x, y, w, h in blocks:
            colour = rng.integers(0, 256, 3)
            pen.rectangle([x + shift - 20, y - 20, x + shift - 10 + w // 5, y - 10 + h // 5], fill=tuple(map(int, colour)) if mode == "RGB" else int(colour[0]))
        images.append(image)
    return images


def write(folder, scenes, endings=("png", "png")):
    for m, modality in enumerate(("visible", "infrared")):
        (folder / modality).mkdir(parents=True, exist_ok=True)
        for name, images in scenes.items(): images[m].save(folder / modality / f"{name}.{endings[m]}")
    return folder


@pytest.fixture
def pairs(tmp_path): return write(tmp_path / "Pairs Ünï", {f"s{k}": scene(k) for k in range(6)})


def boxes(folder, rows, header="name,x,y,w,h,identity"):
    (folder / "boxes.csv").write_text("\n".join([header, *rows]), encoding="utf-8")
    return folder


def manifest(folder, rows, header="path,identity,camera,modality,split", end="\n", bom=""):
    (folder / "set.csv").write_bytes((bom + end.join([header, *rows]) + end).encode())
    return folder / "set.csv"


@pytest.fixture
def images(tmp_path):
    for k in range(8):
        for m, image in zip("vi", scene(k, (20, 44))): image.save(tmp_path / f"{k}{m}.png")
    return tmp_path


def rows_of(n=8, split="train", names="{}"): return [f"{k}{m}.png,{names.format(k)},{c},{word},{split}" for k in range(n) for c, (m, word) in enumerate([("v", "visible"), ("i", "ir")])]


def rename(path, name): return path.rename(path.with_name(name))


def message(function, *args, **options):
    with pytest.raises(InputError) as error: function(*args, **options)
    return str(error.value)
