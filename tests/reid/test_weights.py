"Files of others: what is refused, what is read, and where the weights are."
import argparse
import collections
import os
import pickle
import random
import shlex
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from vdistill.core import InputError
from vdistill.reid.pooling import NonLocal
from vdistill.reid.models import TwoStreamNet
from vdistill.reid.weight_files import CONVERT, PlainType, find_state, read_foreign
from vdistill.reid.weights import initialise


def message(function, *args, **kwargs):
    with pytest.raises(InputError) as error: function(*args, **kwargs)
    return str(error.value)


# what is refused

class Program:
    def __init__(self, target): self.target = target
    def __reduce__(self): return self.call()


class Touch(Program):
    def call(self): return Path.touch, (Path(self.target),)


class Shell(Program):
    def call(self): return os.system, (f"touch {self.target}",)


class Eval(Program):
    def call(self): return eval, (f"open({str(self.target)!r}, 'w')",)


class Hidden(Program): # as an argument of a name that is allowed
    def call(self): return np.dtype, (Shell(self.target),)


class Own: # a class that the program itself has declared safe
    def __setstate__(self, state): Path(state["target"]).touch()
    def __init__(self, target): self.target = str(target)


@pytest.mark.parametrize("program,name", [(Touch, "getattr"), (Shell, "system"), (Eval, "eval"), (Hidden, "system")])
@pytest.mark.parametrize("form", ["zip", "legacy"])
def test_a_program_is_refused_and_does_not_run(tmp_path, monkeypatch, program, name, form):
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1") # must not open the door
    file, target = tmp_path/"bad.pth", tmp_path/"it_ran"
    torch.save({"net": {"w": torch.ones(2)}, "mAP": program(target)}, file, _use_new_zipfile_serialization=form == "zip")
    said = message(read_foreign, file)
    assert not target.exists() and name in said and str(file) in said and CONVERT in said
    try: torch.load(file, weights_only=False)
    except Exception: pass # np.dtype does not take the shell's answer
    assert target.exists() # so the test can fail


def test_a_bare_pickle_is_not_opened(tmp_path):
    file, target = tmp_path/"bad.pkl", tmp_path/"it_ran"
    for protocol in (2, 4):
        file.write_bytes(pickle.dumps(Touch(target), protocol=protocol))
        assert "bare pickle" in message(read_foreign, file) and not target.exists()
    file.with_suffix(".safetensors").write_bytes(file.read_bytes())
    assert "bare pickle" in message(read_foreign, file.with_suffix(".safetensors")) # the name does not matter


def test_what_the_program_allows_elsewhere_is_not_allowed_here(tmp_path):
    file, target = tmp_path/"own.pt", tmp_path/"it_ran"
    torch.save({"w": torch.ones(2), "own": Own(target)}, file)
    with torch.serialization.safe_globals([Own]):
        before = set(torch.serialization.get_safe_globals())
        assert "Own" in message(read_foreign, file) and not target.exists()
        assert set(torch.serialization.get_safe_globals()) == before # and it is put back
        torch.load(file, weights_only=True)
        assert target.exists()


def test_a_saved_model_is_named(tmp_path):
    torch.save(nn.Linear(2, 2), tmp_path/"model.pt")
    assert "torch.nn.modules.linear.Linear" in message(read_foreign, tmp_path/"model.pt")


def test_the_conversion_that_is_advised_works(tmp_path):
    torch.save({"optimizer": {"state": {}}, "net": {"w": torch.arange(3.), "b": torch.ones(1)}, "extra": Touch(tmp_path/"x")}, tmp_path/"bad file.pth")
    said = message(read_foreign, tmp_path/"bad file.pth")
    assert said.endswith(f"{CONVERT}{tmp_path/'bad file.pth'} plain.pt")
    command = shlex.split(CONVERT)
    subprocess.run([sys.executable, *command[1:], tmp_path/"bad file.pth", tmp_path/"plain.pt"], check=True, env=os.environ | dict(PYTHONPATH=str(Path(__file__).parent)))
    assert torch.equal(read_foreign(tmp_path/"plain.pt")["w"], torch.arange(3.))


@pytest.mark.parametrize("data,words", [(b"", "empty"), (b"\n <!DOCTYPE html><title>Sign in", "web page"), (b"\xef\xbb\xbf<html>", "web page"), (b"version https://git-lfs.github.com/spec/v1\noid", "git lfs pull"),
                                        (b"\x1f\x8b\x08\0\0", "unpack"), (b"hello", "no weight file"), (b"PK\x03\x04" + bytes(99), "cut off"), (b"PK\x05\x06" + b"\xff"*18, "cut off")])
def test_what_is_no_weight_file(tmp_path, data, words):
    (tmp_path/"f.pth").write_bytes(data)
    said = message(read_foreign, tmp_path/"f.pth")
    assert words in said and str(tmp_path/"f.pth") in said


def test_other_archives_folders_and_nothing(tmp_path):
    with zipfile.ZipFile(tmp_path/"a.zip", "w") as z: z.writestr("readme.txt", "x")
    assert "readme.txt" in message(read_foreign, tmp_path/"a.zip")
    with zipfile.ZipFile(tmp_path/"t.pt", "w") as z: [z.writestr(f"t/{n}", "x") for n in ("data.pkl", "constants.pkl")]
    assert "TorchScript" in message(read_foreign, tmp_path/"t.pt")
    assert "folder" in message(read_foreign, tmp_path) and "no file" in message(read_foreign, tmp_path/"missing.pth")
    torch.save([torch.ones(2)], tmp_path/"list.pt")
    assert "holds a list" in message(read_foreign, tmp_path/"list.pt")


@pytest.mark.parametrize("form", ["zip", "legacy", "safetensors"])
def test_cut_off_anywhere(tmp_path, form):
    whole, cut = tmp_path/"whole", tmp_path/"cut"
    state = {"a.weight": torch.randn(40, 5), "a.bias": torch.randn(40)}
    if form == "safetensors": save_file(state, whole)
    else: torch.save(state, whole, _use_new_zipfile_serialization=form == "zip")
    assert torch.equal(read_foreign(whole)["a.bias"], state["a.bias"])
    data = whole.read_bytes()
    for n in sorted({*range(1, 60), *range(60, len(data), 37), len(data) - 1}):
        cut.write_bytes(data[:n])
        said = message(read_foreign, cut)
        if n > 600: assert "cut off" in said or "unfinished" in said, said


@pytest.mark.parametrize("form", ["zip", "legacy", "safetensors"])
def test_flipped_bytes_end_in_a_sentence_or_a_dict(tmp_path, form):
    whole, bad, rng = tmp_path/"whole", tmp_path/"bad", random.Random(0)
    content = {"w": torch.randn(6, 5), "n": torch.ones(3)}
    if form == "safetensors": save_file(content, whole)
    else: torch.save(content | {"cmc": np.linspace(0, 1, 5), "mAP": np.float64(.5), "o": collections.OrderedDict(a=1)}, whole, _use_new_zipfile_serialization=form == "zip")
    data = whole.read_bytes()
    for _ in range(300):
        changed = bytearray(data)
        for _ in range(rng.choice((1, 1, 3))): changed[rng.randrange(len(data))] = rng.randrange(256)
        bad.write_bytes(changed)
        try: assert isinstance(read_foreign(bad), dict)
        except InputError: pass


# what is read

@pytest.mark.parametrize("form", ["zip", "legacy"])
def test_numbers_of_numpy_become_plain(tmp_path, form):
    grid = np.arange(6).reshape(2, 3)
    content = dict(mAP=np.float64(.4765), epoch=np.int64(46), half=np.float16(.5), flag=np.bool_(True), byte=np.uint8(200), cmc=np.linspace(0, 1, 4, dtype=np.float32), fortran=np.asfortranarray(grid),
                   big=grid.astype(">i4"), empty=np.zeros((0, 3)), args=argparse.Namespace(lr=.1, gpu="0", nested=argparse.Namespace(a=np.float32(2))), root=Path("data")/"sysu",
                   ordered=collections.OrderedDict(a=torch.ones(1)), shared=[(1, 2)]*2, bools=np.array([True, False]), none=None, parameter=nn.Parameter(torch.ones(2)))
    torch.save(content, tmp_path/"f.t", _use_new_zipfile_serialization=form == "zip")
    back = read_foreign(tmp_path/"f.t")
    assert back["mAP"] == .4765 and type(back["mAP"]) is float and back["epoch"] == 46 and type(back["epoch"]) is int and back["half"] == .5 and back["flag"] is True and back["byte"] == 200
    assert back["cmc"].tolist() == content["cmc"].tolist() and back["fortran"].tolist() == back["big"].tolist() == grid.tolist() and back["empty"].shape == (0, 3)
    assert back["args"] == dict(lr=.1, gpu="0", nested=dict(a=2.)) and back["root"] == "data/sysu" and type(back["ordered"]) is dict and back["shared"] == [[1, 2], [1, 2]]
    assert back["bools"].tolist() == [True, False] and not back["parameter"].requires_grad and type(back["parameter"]) is torch.Tensor


@pytest.mark.parametrize("value", [np.array([Path("a")], dtype=object), np.zeros(2, dtype=[("a", "f4")]), np.array(["text"]), np.datetime64("2020-01-01"), np.longdouble(1)])
def test_other_arrays_are_refused(tmp_path, value):
    torch.save({"w": torch.ones(2), "x": value}, tmp_path/"f.t")
    assert "was not opened" in message(read_foreign, tmp_path/"f.t")


def test_flags_of_a_dtype_are_not_believed():
    "A dtype's state can say that its bytes are pointers; NumPy believes it."
    kind = PlainType("f8", False, True)
    kind.__setstate__((3, "<", None, None, None, -1, -1, 63))
    assert kind.read(np.arange(3.).tobytes()).tolist() == [0, 1, 2] and kind.read(b"").dtype.flags == 0
    for code in ("O", "V8", "U3", "O8", "f8, f8", b"f8", "f16"):
        with pytest.raises(ValueError): PlainType(code).read(bytes(16))


def test_a_structure_that_holds_itself_is_refused(tmp_path):
    loop = []
    loop.append(loop)
    torch.save({"w": torch.ones(2), "loop": loop}, tmp_path/"f.t")
    assert "was not opened" in message(read_foreign, tmp_path/"f.t")
    bomb = []
    for _ in range(60): bomb = [bomb, bomb] # 2^60 lists if each were walked
    nested = {"w": torch.ones(1)}
    for _ in range(60): nested = {"a": nested, "b": nested}
    torch.save({"w": torch.ones(2), "v": torch.ones(3), "bomb": bomb, "nested": nested}, tmp_path/"f.t")
    assert list(find_state(read_foreign(tmp_path/"f.t")).state) == ["w", "v"]


@pytest.mark.parametrize("wrap,place", [(lambda s: s, ""), (lambda s: {"net": s}, "net"), (lambda s: {"model": s, "optimizer": {"state": {0: {"exp_avg": torch.ones(9)}}, "flat": {f"m{i}": torch.ones(1) for i in range(9)}}}, "model"),
                                        (lambda s: {"state_dict_1": s, "state_dict_2": dict(list(s.items())[:2])}, "state_dict_1"), (lambda s: {"a": {"b": {f"module.model.{k}": t for k, t in s.items()}}}, "a.b")])
def test_where_the_weights_are(wrap, place):
    state = {f"layer{i}.weight": torch.full((2,), float(i)) for i in range(4)}
    found = find_state(wrap(state) | {"epoch": 5, "mAP": .1 + .2, "note": "x"})
    assert list(found.state) == list(state) and found.place == place and found.facts == dict(epoch=5, mAP=.3, note="x")
    assert found.others == (("state_dict_2",) if "state_dict" in place else ())
    assert "epoch" in message(find_state, {"epoch": 5})
    assert find_state(wrap(state) | {"note": "\x1b[2J", "log": "x"*999}).facts == {} # nothing that would trouble a terminal


# where they go

def test_zeros_around_a_narrow_block_stay_zeros():
    torch.manual_seed(0)
    block = NonLocal(8)
    nn.init.ones_(block.W[1].weight)
    with torch.no_grad():
        for layer in (block.theta, block.phi, block.g): layer.weight[1:], layer.bias[1:] = 0, 0
        block.W[0].weight[:, 1:] = 0
    block(torch.randn(3, 8, 4, 4)).square().sum().backward()
    for layer in (block.theta, block.phi, block.g): assert not layer.weight.grad[1:].any() and layer.weight.grad[:1].any()
    assert not block.W[0].weight.grad[:, 1:].any()


def test_initialise_from_our_own(tmp_path):
    torch.manual_seed(1)
    a, b = TwoStreamNet(5), TwoStreamNet(9)
    save_file({k: t.contiguous() for k, t in a.state_dict().items()}, tmp_path/"model.safetensors")
    summary = initialise(b, tmp_path/"model.safetensors")
    assert set(summary.homeless) == {"shared.v_classifier.weight", "shared.z_classifier.weight"} and summary.classes == 5
    assert torch.equal(a.shared.bottleneck.layers[0].weight, b.shared.bottleneck.layers[0].weight)
