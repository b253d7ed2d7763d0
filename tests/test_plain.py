"Settings as people have them: numbers of numpy and torch, arrays, paths and tables are taken for what they are."
import enum
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from vdistill.looking.comparison import Cell, same_dataset
from vdistill.reid.config import TrainConfig, configure
from vdistill.core import InputError, generator, plain
from vdistill.reid.data import load_dataset, parse_spec
from vdistill.reid.views import Jitter
from vdistill.reid.records import Protocol
from vdistill.reid.runs import read_config, start_run
from vdistill.reid.training import Trainer


class DotDict(dict): __getattr__ = dict.__getitem__
class Size(enum.IntEnum): SMALL = 8


PAIRS = [ # of one setting: as somebody has it, as one writes it
    (dict(learning_rate=np.float64(1e-3)), dict(learning_rate=1e-3)), (dict(learning_rate=np.float32(.5)), dict(learning_rate=.5)), (dict(vsd=np.linspace(0, 1, 5)[1]), dict(vsd=.25)),
    (dict(vsd=torch.tensor(.25)), dict(vsd=.25)), (dict(vsd=np.array(.25)), dict(vsd=.25)), (dict(beta=np.longdouble(2)), dict(beta=2.)), (dict(beta=np.int64(2)), dict(beta=2.)),
    (dict(hidden=[np.int64(16)]), dict(hidden=(16,))), (dict(hidden=np.array([16, 8])), dict(hidden=(16, 8))), (dict(hidden=torch.tensor([16, 8])), dict(hidden=(16, 8))), (dict(grid=torch.Size((4, 2))), dict(grid=(4, 2))),
    (dict(hidden=range(8, 24, 8)), dict(hidden=(8, 16))), (dict(decay_at=np.array([.5, .75])), dict(decay_at=(.5, .75))), (dict(decay_at=pd.Series([.5, .75])), dict(decay_at=(.5, .75))),
    (dict(epochs=np.int32(3)), dict(epochs=3)), (dict(epochs=torch.tensor(3)), dict(epochs=3)), (dict(width=Size.SMALL), dict(width=8)), (dict(hold_out=np.bool_(False)), dict(hold_out=False)),
    (dict(seed=np.int64(3)), dict(seed=3)), (dict(seed=np.uint8(3)), dict(seed=3)), (dict(method=np.str_("vcd")), dict(method="vcd")), (dict(device=torch.device("cpu")), dict(device="cpu")),
    (dict(weights=Path("w.pth")), dict(weights="w.pth")), (dict(start=Path("w.pth")), dict(start="w.pth")), (dict(precision=torch.bfloat16), dict(precision="bfloat16")),
    (dict(data=dict(identities=tuple(np.array([24, 8, 12])))), dict(data=dict(identities=[24, 8, 12]))), (dict(data=OrderedDict(image_size=np.array([64, 32]))), dict(data=dict(image_size=[64, 32]))),
    (dict(data=DotDict(views=np.int64(2))), dict(data=dict(views=2))), ({"data.cache": Path("pixels")}, {"data.cache": "pixels"}), ({"data.jitter": Jitter(shift=np.float64(0))}, {"data.jitter": vars(Jitter(shift=0.))}),
]


@pytest.mark.parametrize("given, written", PAIRS, ids=lambda v: str(v)[:40])
def test_a_setting_is_what_it_is(given, written, tmp_path):
    a, b = (configure("synthetic", **settings) for settings in (given, written))
    assert a == b and repr(a) == repr(b)
    texts = [(start_run(tmp_path/name, c)/"config.yaml").read_text(encoding="utf-8") for name, c in (("a", a), ("b", b))]
    assert texts[0] == texts[1] and "!!" not in texts[0] and read_config(tmp_path/"a") == read_config(tmp_path/"b")


def test_settings_changed_afterwards_are_written_too(tmp_path):
    config = configure("synthetic")
    config.vsd = np.float64(.25)
    assert read_config(start_run(tmp_path/"a", config)).vsd == .25


@pytest.mark.parametrize("settings, part", [
    (dict(learning_rate=np.float64("nan")), "learning_rate=nan"), (dict(learning_rate=torch.tensor(torch.nan)), "learning_rate=nan"), (dict(learning_rate=np.float64("inf")), "learning_rate=inf"),
    (dict(learning_rate=np.array([1e-3])), "learning_rate=[0.001]"), (dict(epochs=np.float64(3)), "epochs=3.0"), (dict(epochs=np.bool_(True)), "epochs=True"), (dict(hold_out=np.int64(1)), "hold_out=1"),
    (dict(learning_rate=np.complex128(1)), "a number"), (dict(method=np.int64(3)), "3"), (dict(hidden=np.array([16.5])), "16.5"), (dict(weights=np.int64(5)), "weights=5"),
    ({"data.views": ...}, "data.views"), ({"data.views": {1: {2}}}, "data.views"), (dict(data=np.array([1])), "a table")], ids=str)
def test_what_cannot_be_is_refused_in_a_sentence(settings, part):
    with pytest.raises(InputError) as error: configure("synthetic", **settings)
    assert part in str(error.value) and "\n" not in str(error.value)


def test_plain_leaves_its_argument():
    given = {"a": (np.int64(1), [np.float32(.5)]), Path("b"): torch.tensor([[1, 2]])}
    assert plain(given) == {"a": (1, [.5]), "b": [[1, 2]]} and type(given["a"][0]) is np.int64
    assert [type(plain(x)) for x in (True, np.bool_(True), 1, 1., "a", None)] == [bool, bool, int, float, str, type(None)]


def test_seeds_and_names_of_streams():
    ours = generator("a", 2, seed=3).initial_seed()
    for seed, key in ((np.int64(3), 2), (torch.tensor(3), 2), (3, torch.tensor(2)), (np.array(3), np.uint8(2))): assert generator("a", key, seed=seed).initial_seed() == ours


# ---- datasets

def test_options_of_datasets():
    plainly, numpy = load_dataset("synthetic", identities=(8, 4, 4), images_per_camera=2, image_size=(32, 16), seed=3), load_dataset("synthetic", identities=np.array([8, 4, 4]), images_per_camera=np.int8(2), image_size=torch.tensor([32, 16]), seed=np.int64(3))
    pd.testing.assert_frame_equal(plainly.factors, numpy.factors)
    assert plainly.image_size == numpy.image_size and type(numpy.image_size[0]) is int
    pd.testing.assert_frame_equal(plainly.factors, load_dataset("synthetic", identities=[8, 4, 4], images_per_camera=torch.tensor(2), seed=torch.tensor(3)).factors)


def test_protocols():
    assert Protocol(np.int64(5), np.array(1), torch.tensor(3)) == Protocol(5, 1, 3) and "tensor" not in str(Protocol(torch.tensor(5)))
    for wrong in (dict(identities=2.5), dict(draws=np.nan), dict(shots="1"), dict(draws=0)):
        with pytest.raises(InputError, match=next(iter(wrong))): Protocol(**wrong)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    from vdistill.bench.benchmark import write_pairs
    return Path(write_pairs(tmp_path_factory.mktemp("scenes")/"pairs", 10))


def test_a_path_is_a_spec(scenes, tmp_path):
    from vdistill.cli.base import open_for_evaluation
    from vdistill.reid.foreign import import_run # noqa: F401
    spec, options = Path(f"pairs:{scenes}"), dict(duplicates=None, image_size=(16, 16))
    assert parse_spec(spec) == ("pairs", str(scenes))
    assert load_dataset(spec, **options).name == load_dataset(scenes, **options).name == "pairs"
    assert configure(scenes).dataset == configure(spec).dataset == TrainConfig(dataset=scenes).dataset == f"pairs:{scenes}" and configure(scenes).recipe == configure(f"pairs:{scenes}").recipe and configure(scenes).recipe in ("pretrained-pairs", "scratch-pairs")
    assert Cell(scenes, "full", np.int64(1), ("vsd", np.float64(.25))) == Cell(f"pairs:{scenes}", "full", 1, ("vsd", .25)) and same_dataset(scenes, f"pairs:{scenes}")
    assert open_for_evaluation(configure(scenes, **{f"data.{k}": v for k, v in options.items()}), scenes)[2] == "test"
    file = tmp_path/"list.csv"
    file.write_text("path,identity,modality,split\n", encoding="utf-8")
    assert parse_spec(file) == ("csv", str(file))
    with pytest.raises(InputError, match="no such kind"): load_dataset(str(scenes)) # text is a spec: nothing is guessed
    with pytest.raises(InputError, match="nowhere"): load_dataset(tmp_path/"nowhere")


def test_a_jitter_as_a_table(scenes):
    assert load_dataset(scenes, duplicates=None, jitter=dict(shift=0)).jitter == load_dataset(scenes, duplicates=None, jitter=Jitter(shift=0)).jitter == Jitter(shift=0)
    with pytest.raises(InputError, match="shifft"): load_dataset(scenes, duplicates=None, jitter=dict(shifft=0))


def test_a_run_of_such_settings(tmp_path):
    settings = dict(epochs=np.int64(1), width=np.int8(8), features=24, z_features=16, hidden=[np.int64(16)], grid=np.array([2, 1]), identities_per_batch=8, images_per_identity=1, learning_rate=np.float32(1e-3), device=torch.device("cpu"))
    Trainer(configure("synthetic", seed=np.int64(1), data=dict(identities=tuple(np.array([16, 8, 8]))), **settings), tmp_path/"a").fit()
    assert read_config(tmp_path/"a").seed == 1 and "!!" not in (tmp_path/"a"/"config.yaml").read_text(encoding="utf-8")
    assert Trainer.resume(tmp_path/"a").epoch == 1


# ---- single functions

def test_bottlenecks():
    from vdistill.bottlenecks import InformationBottleneck, VariationalBottleneck
    for kind in (InformationBottleneck, VariationalBottleneck):
        for hidden in (np.array([8, 4]), [np.int64(8), np.int16(4)], torch.tensor([8, 4]), range(8, 0, -4)):
            net = kind(np.int64(6), torch.tensor(5), hidden=hidden)
            assert [tuple(p.shape) for p in net.parameters()] == [tuple(p.shape) for p in kind(6, 5, hidden=(8, 4)).parameters()] and (net.in_features, net.out_features) == (6, 5)
        with pytest.raises(InputError, match="2.5"): kind(6, 5, hidden=[2.5])


def test_estimates():
    from vdistill.estimation import EstimateWarning, correlated_gaussian, estimate_mi
    x, y = correlated_gaussian(1., dim=2).draw(200, generator("plain"))
    with pytest.warns(EstimateWarning):
        ours = estimate_mi(x, y, critic="separable", seeds=3, batch=16, steps=20, check=10, alpha=1., hidden=8, layers=1)
        theirs = estimate_mi(x, y, critic="separable", seeds=np.int64(3), batch=np.int64(16), steps=torch.tensor(20), check=np.int8(10), alpha=np.float64(1), learning_rate=np.float64(5e-4), hidden=np.int64(8), layers=np.int64(1))
        several = estimate_mi(x, y, critic="separable", seeds=np.arange(3, 5), batch=16, steps=20, check=10, alpha=1., hidden=8, layers=1)
    assert ours.value == theirs.value == several.seeds.value[0] and (type(theirs.alpha), type(theirs.batch)) == (float, int)
    with pytest.raises(InputError, match="batch"): estimate_mi(x, y, batch=np.float64(16.5))


def test_ranks_and_protocols():
    from vdistill.reid.protocols import llcm_scores
    from vdistill.reid.retrieval import retrieval_scores
    scores = retrieval_scores(np.eye(3), np.arange(3), np.arange(3))
    assert scores.rank(np.int64(1)) == scores.rank(torch.tensor(1)) == scores.rank(1)
    x, ids, cameras = torch.randn(12, 4, generator=generator("x")), np.repeat(np.arange(4), 3), np.tile([1, 2, 4], 4)
    assert str(llcm_scores(x, ids, cameras, x, ids, cameras, trials=np.int64(2))) == str(llcm_scores(x, ids, cameras, x, ids, cameras, trials=2))
