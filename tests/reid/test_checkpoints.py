"Kills, damage and foreign files."
import hashlib
import json
import os
import pickle
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import nn

import vdistill
from vdistill.reid.checkpoints import (CheckpointError, check_checkpoint, foreign, load_state, load_weights, read_checksums, save_checkpoint,
                                  save_state, save_weights)
from vdistill.core import InputError

FILES = ("model.safetensors", "state.pt", "checksums.json")


def generation(n, size=1000): return {"w": torch.full((size,), float(n))}, {"epoch": n, "w": torch.full((size,), float(n))}


def load_checkpoint(folder, model=None): return load_weights(folder, model), load_state(folder)


def message(function, *args):
    with pytest.raises(CheckpointError) as error: function(*args)
    return str(error.value)


@pytest.fixture
def run(tmp_path):
    save_checkpoint(tmp_path / "run", *generation(1))
    return tmp_path / "run"


def test_round_trip(tmp_path):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2)).to(torch.float32)
    model[2].weight.data = model[2].weight.data.t().contiguous().t() # not contiguous
    optimizer = torch.optim.AdamW(model.parameters()); model[2](torch.ones(1, 4)).sum().backward(); optimizer.step()
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "scheduler": torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 5).state_dict(),
             "epoch": 4, "best": 61.25, "name": "Zoë", "nothing": None, "flag": True, "rng": torch.get_rng_state(), "nested": [(1, 2.5), {3: torch.zeros(2, dtype=torch.bfloat16)}]}
    save_checkpoint(tmp_path / "a" / "b", model, state)
    assert sorted(p.name for p in (tmp_path / "a" / "b").iterdir()) == sorted(FILES)
    other = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2))
    weights, back = load_checkpoint(tmp_path / "a" / "b", other)
    assert all(torch.equal(a, b) for a, b in zip(other.state_dict().values(), model.state_dict().values()))
    assert back["epoch"] == 4 and back["nested"][0] == (1, 2.5) and torch.equal(back["rng"], state["rng"])
    torch.optim.AdamW(other.parameters()).load_state_dict(back["optimizer"])


def test_tied_weights_are_written(tmp_path):
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)); model[1].weight = model[0].weight
    save_weights(tmp_path, model)
    assert torch.equal(load_weights(tmp_path)["1.weight"], model[0].weight)


def test_one_file_leaves_the_other(run):
    weights = (run / "model.safetensors").read_bytes()
    save_state(run, generation(2)[1])
    assert (run / "model.safetensors").read_bytes() == weights and load_state(run)["epoch"] == 2 and check_checkpoint(run) == []
    save_weights(run, generation(3)[0])
    assert load_state(run)["epoch"] == 2 and load_weights(run)["w"][0] == 3


def test_rng_goes_on(tmp_path):
    save_state(tmp_path, {"rng": torch.get_rng_state()})
    want = torch.rand(3); torch.manual_seed(5); torch.set_rng_state(load_state(tmp_path)["rng"])
    assert torch.equal(torch.rand(3), want)


@pytest.mark.parametrize("bad, part", [({"a": np.float64(1)}, "numpy.float64"), ({"a": [Path("x")]}, "state['a'][0] is a pathlib"), ({(1, np.int64(2)): 1}, "a key of state[1]"), ({"f": len}, "builtin")])
def test_foreign_state_is_refused_when_saved(run, bad, part):
    assert part in message(save_state, run, bad) and load_state(run)["epoch"] == 1 and check_checkpoint(run) == []


plain = st.recursive(st.none() | st.booleans() | st.integers(-2**60, 2**60) | st.floats(allow_nan=False) | st.text(), lambda x: st.lists(x, max_size=3) | st.dictionaries(st.text() | st.integers(-2**60, 2**60), x, max_size=3), max_leaves=8)

@settings(derandomize=True, deadline=None, max_examples=40)
@given(plain)
def test_plain_states_come_back(tmp_path_factory, state):
    folder = tmp_path_factory.mktemp("plain")
    assert foreign(state) == []
    save_state(folder, {"x": state})
    assert load_state(folder)["x"] == state


# ---- damage

def flip(path):
    data = bytearray(path.read_bytes()); data[len(data) // 3] ^= 4; path.write_bytes(data)


@pytest.mark.parametrize("name, load", [("model.safetensors", load_weights), ("state.pt", load_state)])
@pytest.mark.parametrize("change, part", [(flip, "does not match its checksum"), (lambda p: p.write_bytes(p.read_bytes()[:-1]), "does not match"), (lambda p: p.write_bytes(p.read_bytes() + b"\0"), "does not match"),
                                          (lambda p: p.write_bytes(b""), "is empty"), (Path.unlink, "is missing")])
def test_damage_is_named(run, name, load, change, part):
    change(run / name)
    said = message(load, run)
    assert str(run / name) in said and part in said and "copy it again" in said and check_checkpoint(run) == [said]
    other = {"model.safetensors": load_state, "state.pt": load_weights}[name]
    other(run) # the other file is still good


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", "null", '{"format": 1}', '{"format": 1, "sha256": [], "pending": {}}', '{"format": "1", "sha256": {}, "pending": {}}', "\xff"])
def test_damaged_checksums(run, text):
    (run / "checksums.json").write_bytes(text.encode("latin1"))
    assert "checksums.json is damaged" in message(load_checkpoint, run) and check_checkpoint(run)


def test_checksums_of_the_future_and_missing(run, tmp_path):
    (run / "checksums.json").write_text('{"format": 2, "files": []}')
    assert "upgrade vdistill" in message(load_state, run)
    assert "upgrade vdistill" in message(save_state, run, {}) # nor is a newer run overwritten
    (run / "checksums.json").unlink()
    assert "is missing" in message(load_state, run)
    assert "no folder" in message(load_state, tmp_path / "none") and issubclass(CheckpointError, InputError)


def test_a_file_that_was_never_saved(tmp_path):
    save_state(tmp_path, {})
    assert "model.safetensors is missing" in message(load_weights, tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"x")
    assert "is not listed" in message(load_weights, tmp_path)


def test_weights_that_do_not_fit_change_nothing(run):
    save_weights(run, nn.Linear(3, 2)); model = nn.Linear(3, 4); before = model.weight.clone()
    said = message(load_weights, run, model)
    assert "weight (2, 3) in the file, (4, 3) in the model" in said and torch.equal(model.weight, before)
    model = nn.Sequential(nn.Linear(3, 2)); before = model[0].weight.clone()
    assert "absent" in message(load_weights, run, model) and torch.equal(model[0].weight, before)


# ---- foreign files

class Payload:
    def __init__(self, path): self.path = path
    def __reduce__(self): return os.mkdir, (str(self.path),)


def forge(run, name, data):
    (run / name).write_bytes(data)
    table = json.loads((run / "checksums.json").read_text()); table["sha256"][name] = hashlib.sha256(data).hexdigest()
    (run / "checksums.json").write_text(json.dumps(table))


def test_pickles_are_not_run(run, tmp_path):
    trap = tmp_path / "trap"
    raw = pickle.dumps(Payload(trap), protocol=2)
    torch.save({"epoch": 1, "x": Payload(trap)}, tmp_path / "zip.pt")
    for data in (raw, (tmp_path / "zip.pt").read_bytes()):
        for name, load in (("model.safetensors", load_weights), ("state.pt", load_state)):
            (run / name).write_bytes(data); assert "checksum" in message(load, run)
            forge(run, name, data); assert name in message(load, run)
            assert not trap.exists()
    torch.load(tmp_path / "zip.pt", weights_only=False); assert trap.exists() # the trap works


@settings(derandomize=True, deadline=None, max_examples=60)
@given(st.binary(max_size=200))
def test_any_bytes_are_refused_in_one_way(tmp_path_factory, data):
    run = tmp_path_factory.mktemp("fuzz"); save_checkpoint(run, *generation(1, 4))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, load in (("model.safetensors", load_weights), ("state.pt", load_state)):
            forge(run, name, data)
            try: load(run)
            except CheckpointError: pass # a few short strings are valid pickles of plain values


# ---- kills

class Killed(BaseException): pass


@pytest.mark.parametrize("first", [True, False])
def test_every_step_of_a_save(tmp_path, monkeypatch, first):
    "Die before and after each rename: what loads is one of the two generations, and the weights are never older than the state."
    rename, seen = os.replace, set()
    for moment in range(8):
        run = tmp_path / str(moment)
        if not first: save_checkpoint(run, *generation(1))
        count = [0]
        def counted(a, b):
            if count[0] == moment: raise Killed
            rename(a, b); count[0] += 1
            if count[0] == moment: raise Killed
            count[0] += 1
        monkeypatch.setattr(os, "replace", counted)
        with pytest.raises(Killed): save_checkpoint(run, *generation(2))
        monkeypatch.setattr(os, "replace", rename)
        if first: # nothing was there before: whole files load, the others are said to be missing
            for load in (load_weights, load_state):
                try: load(run)
                except CheckpointError as e: assert "is missing" in str(e)
        else:
            weights, state = load_checkpoint(run)
            seen.add((int(weights["w"][0]), state["epoch"])); assert check_checkpoint(run) == []
            save_state(run, generation(3)[1]) # only one of the files: the other stays good
            assert int(load_weights(run)["w"][0]) == int(weights["w"][0]) and load_state(run)["epoch"] == 3
        save_checkpoint(run, *generation(4))
        assert load_state(run)["epoch"] == 4 and sorted(p.name for p in run.iterdir()) == sorted(FILES) and read_checksums(run)[1] == {}
    if not first: assert seen == {(1, 1), (2, 1), (2, 2)}


def test_a_save_under_the_readers_hands(run, monkeypatch):
    "A save between reading the checksums and reading the file is no damage."
    import vdistill.reid.checkpoints as module
    read, calls = module.read_checksums, []
    def interrupted(folder):
        recorded = read(folder); calls.append(folder)
        if len(calls) == 1: save_checkpoint(run, *generation(2))
        return recorded
    monkeypatch.setattr(module, "read_checksums", interrupted)
    assert module.load_state(run)["epoch"] == 2


CHILD = """
import sys, torch
from vdistill.reid.checkpoints import *
run, start = sys.argv[1], int(sys.argv[2])
for n in range(start + 1, start + 100_000):
    save_checkpoint(run, {"w": torch.full((50_000,), float(n))}, {"epoch": n, "w": torch.full((50_000,), float(n))})
    if n == start + 2: print("going", flush=True)
"""

def test_kill_9_while_saving(tmp_path):
    rng, run, epoch = np.random.default_rng(0), tmp_path / "run", 0
    environment = os.environ | {"PYTHONPATH": str(Path(vdistill.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    for _ in range(5):
        child = subprocess.Popen([sys.executable, "-c", CHILD, str(run), str(epoch)], env=environment, stdout=subprocess.PIPE, text=True)
        try:
            assert child.stdout.readline() == "going\n"
            stop = time.monotonic() + rng.uniform(0, .15)
            while time.monotonic() < stop: load_state(run); load_weights(run) # a reader beside the writer
        finally: child.send_signal(signal.SIGKILL); child.wait(); child.stdout.close()
        weights, state = load_checkpoint(run)
        assert len(set(weights["w"].tolist())) == 1 == len(set(state["w"].tolist())) and state["w"][0] == state["epoch"]
        assert state["epoch"] >= epoch + 2 and weights["w"][0] - state["epoch"] in (0, 1)
        epoch = state["epoch"]
    save_state(run, {"epoch": -1})
    assert sorted(p.name for p in run.iterdir()) == sorted(FILES)
