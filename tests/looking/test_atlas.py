"Maps follow the controls, and their numbers are what a loop counts."
import base64
import io
import re
import numpy as np
import pandas as pd
import pytest
from invented import noise
import torch
from PIL import Image
from vdistill.looking import atlas as A
from vdistill.core import InputError
from vdistill.looking.plots import MODALITY_COLOURS
from vdistill.reid.runs import read_config
from vdistill.reid.training import Trainer


def pictures(n, seed=0): return np.random.default_rng(seed).integers(0, 256, (n, 3, 64, 32), dtype=np.uint8)


def atlas(n=12, epochs=(0, 5), **options):
    about = pd.DataFrame(dict(modality=np.arange(n) % 2, identity=np.arange(n)//4, hair=np.array(["long", "cap", "short"])[np.arange(n) % 3], view=np.linspace(-90, 90, n)))
    return A.EmbeddingExplorer({e: {name: noise(n, 6, seed=e + k) for k, name in enumerate(("v", "z"))} for e in epochs}, pictures(n), about, method="pca", **options)


def fills(picture):
    "Number of a dot -> its colour, as the rules of the picture say."
    return {int(i): colour for who, colour in re.findall(r"\.p:is\(([^)]*)\)\{fill:(#[0-9a-fA-F]{6})\}", picture) for i in re.findall(r"\.n(\d+)", who)}


def test_colours_follow_what_is_chosen():
    a = atlas()
    a.colour.value = "modality"
    assert fills(a.picture) == {i: MODALITY_COLOURS[i % 2] for i in range(12)} and list(a.numbers.level[:2]) == ["visible", "infrared"]
    a.colour.value = "hair"
    colours = fills(a.picture)
    assert len(colours) == 12 and all((colours[i] == colours[j]) == (i % 3 == j % 3) for i in range(12) for j in range(12))
    assert a.numbers.colour.to_dict() == colours and list(a.numbers.level[:3]) == ["long", "cap", "short"] and "cap (4)" in a.picture
    a.colour.value = "view"
    assert len(set(fills(a.picture).values())) == 5 and a.numbers.level.iloc[0].startswith("-90")


def test_maps_follow_epoch_and_feature():
    a = atlas()
    seen = set()
    for a.epoch.value in (0, 5):
        for a.feature.value in ("v", "z"):
            seen.add(a.picture)
            assert f"{a.feature.value}, epoch {a.epoch.value}" in a.picture and f"same identity {A.agreement(a.features[a.epoch.value][a.feature.value], a.about.identity):.0f} %" in a.picture
            np.testing.assert_array_equal(a.numbers[["x", "y"]], a.points[a.feature.value][a.epoch.value])
    assert len(seen) == 4 and ">PCA</text>" in a.picture   # the map says what made it
    spots = re.findall(r'n(\d+)" tabindex="0" (cx|d)="M?(\d+)', a.picture)
    assert {int(i) for i, kind, _ in spots if kind == "cx"} == set(range(0, 12, 2)) and len(spots) == 12   # circles are visible images
    x = {int(i): int(at) for i, _, at in spots}
    assert np.corrcoef([x[i] for i in range(12)], a.numbers.x)[0, 1] > .999


def test_more_values_than_colours():
    names, codes, colours = A.colour_levels(np.r_[np.repeat(np.arange(9), 3), np.arange(20, 40)])
    assert names[-1] == "others" and len(names) == len(colours) == A.MOST and (codes[:27] == np.repeat(np.arange(9), 3)).all() and (codes[27:] == 9).all()
    names, codes, colours = A.colour_levels(np.arange(10))
    assert names == [*map(str, range(10))] and len(set(colours)) == 10


def test_a_turned_map_is_turned_back():
    points, angle = noise(30, 2), 2.
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    for matrix in (turn, turn @ np.diag([1, -1])): np.testing.assert_allclose(A.align(points @ matrix + 3, points), points - points.mean(0), atol=1e-5)


def test_agreement_is_what_a_loop_counts():
    x, codes = noise(15, 4), np.arange(15) % 4
    unit = x/np.linalg.norm(x, axis=1, keepdims=True)
    shares = [np.mean([codes[j] == codes[i] for j in sorted(set(range(15)) - {i}, key=lambda j: -unit[i] @ unit[j])[:5]]) for i in range(15)]
    assert A.agreement(x, codes) == pytest.approx(100*np.mean(shares))
    assert A.chance(codes) == pytest.approx(100*np.mean([codes[i] == codes[j] for i in range(15) for j in range(15) if i != j]))


def test_maps_need_an_image_a_row():
    about = pd.DataFrame(dict(modality=[0, 1, 0]))
    for features, images, known, words in [({}, pictures(3), about, "no features"), ({0: {"v": noise(4, 2)}}, pictures(3), about, "epoch 0, v: features of 4 images, but `about` has 3"), ({0: {"v": noise(3, 2)}}, pictures(4), about, "4 images for 3"),
                                           ({0: {"v": noise(3, 2)}}, pictures(3), about.rename(columns=dict(modality="m")), "`modality`"), ({0: {"v": noise(3, 2)}, 1: {"z": noise(3, 2)}}, pictures(3), about, "the same")]:
        with pytest.raises(InputError, match=words) as e: A.EmbeddingExplorer(features, images, known)
        assert "\n" not in str(e.value)


def test_twins_of_maps_are_drawn():
    figure = atlas().twin([dict(epoch=e, colour="hair") for e in (0, 5)], columns=2)
    assert [ax.get_title() for ax in figure.axes] == ["v, epoch 0", "v, epoch 5"] and np.asarray(Image.open(io.BytesIO(figure._repr_png_())).convert("L")).std() > 1 # not blank


def plain(history): return pd.DataFrame(history).drop(columns="seconds")


def test_looking_between_epochs_changes_nothing(runs):
    config, dataset = read_config(runs[0]["full"]), runs[1]
    trainer, rows = Trainer(config, None, dataset), dataset.indices("test")[:30]
    before = torch.get_rng_state()
    kept = A.features_by_epoch(trainer, rows, ("v shared",), at=(0, 2, 4))
    assert torch.equal(before, torch.get_rng_state()) and list(kept) == [0, 2, 4]
    pd.testing.assert_frame_equal(plain(trainer.history), plain(pd.read_csv(runs[0]["full"]/"history.csv")), rtol=1e-12)
    for row, x in zip(rows, kept[4]["v shared"]):   # in the order of the rows, whatever their modality
        np.testing.assert_allclose(x, trainer.embed(dataset.images([row]), int(dataset.records.modality[row]))["v shared"][0], atol=1e-4)
    assert not np.allclose(kept[0]["v shared"], kept[4]["v shared"])


def test_a_dot_shows_its_own_image_and_words():
    a = atlas()
    side = a.box.children[-1].children[1].children[0].value
    rule = re.search(r"\.n3:hover\)[^{]*\{--at:(-?\d+)px (-?\d+)px;--on:1;--says:'([^']*)'", side)
    assert rule.groups() == ("-315", "0", "modality infrared, identity 0, hair long, view -40.9091")
    sheet = Image.open(io.BytesIO(base64.b64decode(re.search(r"base64,([^)]*)\)", side).group(1))))
    assert sheet.size == (20*32, 64)
