"Two processes on one batch: the loss curve and gradients of one; one writer; and what happens when a process dies."
import inspect, itertools, json, os, shutil, signal, socket, subprocess, sys, threading, time, warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from vdistill.core import InputError
from vdistill.reid.data import load_dataset
import vdistill.reid.parallel as P
from vdistill.reid.parallel import OwnRows, all_rows, check_share, first_process, gather_features, join_world, launched, meet, own_device, own_part, spread, world
from vdistill.reid.runs import load_run

ROOT = Path(__file__).resolve().parents[2]
ENV = dict(os.environ, OMP_NUM_THREADS="1", PYTHONPATH=str(ROOT))
SMALL = dict(width=4, features=16, z_features=8, hidden=(16,), grid=(2, 1), identities_per_batch=8, images_per_identity=2, epochs=7, validate_every=7, device="cpu", flip=.5, pad=2, erase=.3, grey=.3, learning_rate=.01,
             data=dict(identities=(24, 6, 8)))

SCRIPT = """
import json, sys, torch
torch.set_num_threads(1)
from torch import nn
from vdistill.reid.training import Trainer, configure
from vdistill.reid.parallel import leave_world, world
settings = eval(sys.argv[2])
trainer = Trainer(configure("synthetic", **settings), sys.argv[1] + "/run")
for m in trainer.model.modules(): # torch has no synchronised batch norm on CPUs: statistics are held
    if isinstance(m, nn.modules.batchnorm._BatchNorm):
        m.eval()
        m.train = lambda mode=True, m=m: m
losses, gradients, update = [], [], Trainer.update
def note(self, loss):
    losses.append(loss.item())
    gradients.append([p.grad.norm().item() for p in self.parts.parameters() if p.grad is not None])
    update(self, loss)
Trainer.update = note
results = trainer.fit()
if world()[0] == 0: json.dump(dict(losses=losses, gradients=gradients, results=results.value.tolist(), world=world()[1]), open(sys.argv[1] + "/out.json", "w"))
leave_world()
"""


def torchrun(*args, processes=2): return [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), *map(str, args)]


def curve(folder, processes, settings, script=SCRIPT):
    folder.mkdir()
    (folder/"script.py").write_text(script)
    command = torchrun(folder/"script.py", folder, repr(settings), processes=processes) if processes > 1 else [sys.executable, str(folder/"script.py"), str(folder), repr(settings)]
    done = subprocess.run(command, env=ENV, capture_output=True, text=True, timeout=3000)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((folder/"out.json").read_text())


@pytest.mark.parametrize("settings", [pytest.param(dict(), id="three encoders, the three losses"), pytest.param(dict(network="two_stream", metric="weighted", triplet_on="pooled", hetero_centre=.1, pooling="gem"), id="two streams"),
    pytest.param(dict(method="estimated"), id="a regulariser that learns", marks=pytest.mark.slow), pytest.param(dict(views="grey", front="pixels", metric="released", mutual="sinkhorn", method="released"), id="released, grey views", marks=pytest.mark.slow)])
def test_two_processes_are_one(tmp_path, settings):
    "More than 20 steps with augmentation: losses, gradients and scores of one process with the same batch."
    settings = SMALL | settings
    one, two = (curve(tmp_path/str(n), n, settings) for n in (1, 2))
    assert (one["world"], two["world"]) == (1, 2) and len(one["losses"]) == len(two["losses"]) == 3*settings["epochs"]
    np.testing.assert_allclose(two["losses"][0], one["losses"][0], rtol=1e-4)
    np.testing.assert_allclose(two["losses"][:3], one["losses"][:3], rtol=2e-3) # roundings grow from step to step
    np.testing.assert_allclose(two["losses"], one["losses"], rtol=.02)
    np.testing.assert_allclose(two["gradients"][0], one["gradients"][0], rtol=1e-3, atol=1e-5)
    embed, headline = load_run(tmp_path/"2"/"run", "cpu") # scores that two processes found together are those that one finds
    np.testing.assert_allclose(embed.score(load_dataset("synthetic", seed=0, **SMALL["data"]), headline=headline).value, two["results"], atol=.5) # percent: two images that are equally far may change places
    assert sorted(p.name for p in (tmp_path/"2"/"run").iterdir()) == sorted(p.name for p in (tmp_path/"1"/"run").iterdir())


@pytest.mark.cuda
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_two_gpus_with_synchronised_batch_norm_are_one(tmp_path):
    "NCCL, and batch norm over both parts of the batch: no statistics are held here."
    moving = SCRIPT[:SCRIPT.index("for m in trainer")] + SCRIPT[SCRIPT.index("losses, gradients"):]
    settings = SMALL | dict(device="cuda", precision="float32", compile="never")
    one, two = (curve(tmp_path/str(n), n, settings, moving) for n in (1, 2))
    np.testing.assert_allclose(two["losses"][:3], one["losses"][:3], rtol=1e-3)
    np.testing.assert_allclose(two["gradients"][0], one["gradients"][0], rtol=1e-2, atol=1e-4)
    np.testing.assert_allclose(two["losses"], one["losses"], rtol=.05)


SETS = [x for k, v in dict(epochs=2, validate_every=1, width=4, features=16, z_features=8, hidden="[16]", identities_per_batch=8).items() for x in ("--set", f"{k}={v}")] + ["--set", "data.identities=[24, 6, 8]"]

def test_the_command_under_torchrun(tmp_path, without_umap):
    "One folder, one table, and it reads back."
    done = subprocess.run(torchrun("-m", "vdistill", "train", "synthetic", "--out", "run", *SETS), env=ENV | dict(PYTHONPATH=without_umap), cwd=tmp_path, capture_output=True, text=True, timeout=3000)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("headline feature") == 1 and len(pd.read_csv(tmp_path/"run"/"history.csv")) == 2 and [p.name for p in tmp_path.iterdir()] == ["run"]
    alone = subprocess.run([sys.executable, "-m", "vdistill", "evaluate", "run"], env=ENV, cwd=tmp_path, capture_output=True, text=True, timeout=3000)
    assert alone.returncode == 0, alone.stderr[-2000:]
    odd = subprocess.run(torchrun("-m", "vdistill", "train", "synthetic", "--out", "odd", *SETS, "--set", "identities_per_batch=7"), env=ENV, cwd=tmp_path, capture_output=True, text=True, timeout=3000)
    assert odd.returncode != 0 and "multiple of 2" in odd.stderr and not (tmp_path/"odd").exists()


def test_a_run_with_a_number_alone_writes_and_speaks(tmp_path, without_umap):
    done = subprocess.run([sys.executable, "-m", "vdistill", "train", "synthetic", "--out", "run", *SETS], env=ENV | dict(RANK="1", PYTHONPATH=without_umap), cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and "headline feature" in done.stdout and (tmp_path/"run"/"results.csv").is_file(), done.stderr[-2000:]
    half = subprocess.run([sys.executable, "-m", "vdistill", "train", "synthetic", "--out", "half", *SETS], env=ENV | dict(WORLD_SIZE="4"), cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert half.returncode == 2 and half.stderr.startswith("error: WORLD_SIZE=4") and half.stderr.count("\n") == 1 and not (tmp_path/"half").exists()


@pytest.mark.skipif(not shutil.which("pgrep"), reason="no pgrep, which finds the processes of a launcher")
def test_a_lost_process_ends_the_others(tmp_path):
    "kill -9 of one: all end by themselves, and the run goes on."
    long = [*SETS, "--set", "epochs=2000"]
    process = subprocess.Popen(torchrun("-m", "vdistill", "train", "synthetic", "--out", "run", *long), env=ENV, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    until = time.time() + 1200
    while not (tmp_path/"run"/"state.pt").exists() and time.time() < until: time.sleep(.2)
    children = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True).stdout.split()
    assert len(children) == 2
    os.kill(int(children[1]), signal.SIGKILL)
    process.communicate(timeout=1200)
    assert process.returncode != 0
    (tmp_path/"run"/"config.yaml").write_text((tmp_path/"run"/"config.yaml").read_text().replace("epochs: 2000", "epochs: 3"))
    epochs = len(pd.read_csv(tmp_path/"run"/"history.csv"))
    assert epochs >= 1


def test_a_process_that_waits_in_vain_says_so(tmp_path):
    "Machines may be ready minutes apart, while one of them decodes a dataset; where the others never come, one sentence."
    assert inspect.signature(join_world).parameters["seconds"].default >= 1800
    code = "import torch\nfrom vdistill.core import InputError\nfrom vdistill.reid.parallel import join_world\ntry: join_world(torch.device('cpu'), 1)\nexcept InputError as e: print(e)"
    with socket.socket() as free: free.bind(("localhost", 0)); port = free.getsockname()[1]
    alone = ENV | dict(RANK="0", WORLD_SIZE="2", MASTER_ADDR="localhost", MASTER_PORT=str(port))
    done = subprocess.run([sys.executable, "-c", code], env=alone, cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0 and done.stdout.startswith("process 0 of 2 has not met the others within 1 s: process 1 of 2 did not come"), done.stderr[-2000:]


@pytest.fixture
def store(monkeypatch):
    "The variables of a launcher that keeps the store itself, as torchrun does; and the threads of this process as processes."
    with socket.socket() as free: free.bind(("localhost", 0)); port = free.getsockname()[1]
    monkeypatch.setattr(P, "_meetings", itertools.repeat(0))
    for name, value in dict(MASTER_ADDR="localhost", MASTER_PORT=str(port), TORCHELASTIC_USE_AGENT_STORE="True").items(): monkeypatch.setenv(name, value)
    return lambda: torch.distributed.TCPStore("localhost", port, is_master=True, wait_for_workers=False)


def meeting(ranks, size, seconds, first=1e9):
    "What each of these says, and the warnings of all."
    said, told = {}, []
    def come(rank):
        try: said[rank] = meet(rank, size, seconds, first)
        except InputError as e: said[rank] = str(e)
    threads = [threading.Thread(target=come, args=(rank,)) for rank in ranks]
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for thread in threads: thread.start()
        for thread in threads: thread.join(300)
    return said, [str(w.message) for w in told]


def test_who_does_not_come_is_named_while_the_others_wait(store):
    kept = store()
    said, told = meeting([1, 3], 4, 8, .5)
    assert all(f"process {rank} of 4 has not met the others within 8 s: processes 0, 2 of 4 did not come to localhost:" in said[rank] for rank in (1, 3)), said
    assert any("waiting for processes 0, 2 of 4 at localhost:" in words for words in told), told
    del kept


def test_no_store_is_process_0_that_does_not_come(store):
    said, told = meeting([1], 2, 1, .2)
    assert "process 0 of 2 did not come to localhost:" in said[1] and "waiting for process 0 of 2" in told[0]


def test_all_meet_and_two_of_one_number_do_not(store):
    kept = store()
    said, told = meeting([2, 0, 1], 3, 300)
    assert all(isinstance(s, torch.distributed.Store) for s in said.values()) and len(said) == 3 and not told
    said, _ = meeting([1], 3, 300)
    assert "two processes say that they are number 1" in said[1]
    del kept


WHOLE = dict(WORLD_SIZE="4", RANK="3", LOCAL_RANK="1", MASTER_ADDR="localhost", MASTER_PORT="29500")

@pytest.mark.parametrize("change, words", [
    (dict(RANK=None, MASTER_ADDR=None, MASTER_PORT=None, LOCAL_RANK=None), ["one of 4 processes", "RANK, MASTER_ADDR, MASTER_PORT are not set", "torchrun"]), (dict(RANK=None), ["RANK is not set"]), (dict(MASTER_PORT=" "), ["MASTER_PORT is not set"]),
    (dict(WORLD_SIZE=""), ["WORLD_SIZE= ", "unset WORLD_SIZE"]), (dict(WORLD_SIZE="four"), ["WORLD_SIZE=four"]), (dict(WORLD_SIZE="0"), ["WORLD_SIZE=0", "from 1 on"]), (dict(WORLD_SIZE="²"), ["WORLD_SIZE=²"]),
    (dict(RANK="4"), ["RANK=4", "0 to 3"]), (dict(RANK="-1"), ["RANK=-1"]), (dict(MASTER_PORT="http"), ["MASTER_PORT=http"]), (dict(MASTER_PORT="65536"), ["1 to 65535"])])
def test_half_of_what_a_launcher_sets_is_said(monkeypatch, change, words):
    for name, value in (WHOLE | change).items(): monkeypatch.delenv(name, raising=False) if value is None else monkeypatch.setenv(name, value)
    for call in (launched, first_process, lambda: join_world(torch.device("cpu")), lambda: own_device(torch.device("cuda"))):
        with pytest.raises(InputError) as error: call()
        assert all(w in str(error.value) for w in words), error.value


@pytest.mark.parametrize("said", [dict(), dict(RANK="1"), dict(RANK="x", LOCAL_RANK="3"), dict(RANK="1", WORLD_SIZE="1"), dict(MASTER_ADDR="nowhere", MASTER_PORT="x")])
def test_a_number_without_a_world_is_one_process(monkeypatch, said):
    for name in WHOLE: monkeypatch.delenv(name, raising=False)
    for name, value in said.items(): monkeypatch.setenv(name, value)
    assert launched() == (0, 1) and first_process() and own_device(torch.device("cuda")) == torch.device("cuda")
    join_world(torch.device("cpu"))
    assert world() == (0, 1)


@pytest.mark.parametrize("local, gpus, right", [("1", 2, "cuda:1"), (None, 1, "cuda"), (None, 2, "LOCAL_RANK is not set"), ("2", 2, "GPUs that this process sees: 2"), ("a", 2, "LOCAL_RANK=a"), ("0", 0, "cuda:0")])
def test_the_gpu_of_a_process(monkeypatch, local, gpus, right):
    for name, value in (WHOLE | dict(LOCAL_RANK=local)).items(): monkeypatch.delenv(name, raising=False) if value is None else monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    if right.startswith("cuda"): assert str(own_device(torch.device("cuda"))) == right
    else:
        with pytest.raises(InputError, match=right): own_device(torch.device("cuda"))
    assert str(own_device(torch.device("cuda:3"))) == "cuda:3" and str(own_device(torch.device("cpu"))) == "cpu"


def test_alone_nothing_is_shared():
    x = torch.rand(4, 2)
    assert world() == (0, 1) and all_rows(x) is x and (own_part(np.arange(5)) == np.arange(5)).all() and gather_features(dict(v=x))["v"] is x
    model = torch.nn.Linear(2, 2)
    assert spread(model) is model
    check_share(7)


def test_what_cannot_be_shared(monkeypatch):
    import vdistill.reid.parallel as P
    monkeypatch.setattr(P, "world", lambda: (1, 3))
    with pytest.raises(InputError, match="multiple of 3"): check_share(8)
    assert (own_part(np.arange(9)) == [3, 4, 5]).all()


def test_rows_draw_what_one_process_would(monkeypatch):
    import vdistill.reid.parallel as P
    whole = OwnRows(6, 4, "augmentation", 9).uniform(12, 5)
    parts = []
    for rank in range(3):
        monkeypatch.setattr(P, "world", lambda: (rank, 3))
        parts.append(OwnRows(6, 4, "augmentation", 9).uniform(4, 5))
    for rank, part in enumerate(parts): assert torch.equal(part, whole[[2*rank, 2*rank + 1, 6 + 2*rank, 7 + 2*rank]])


EXAMPLES = sorted((ROOT/"examples").rglob("*.*"))

@pytest.mark.parametrize("file", EXAMPLES, ids=lambda f: f.name)
def test_examples_for_clusters_are_well_formed(file):
    "A shell reads the scripts, a parser the YAML, and every option of vdistill in them exists."
    import re, yaml
    text = file.read_text()
    if file.suffix == ".sbatch":
        done = subprocess.run(["bash", "-n", str(file)], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    else:
        documents = list(yaml.safe_load_all(text))
        assert [d["kind"] for d in documents][-1] == "Job"
    command = "ablate" if "ablate" in file.name else "train"
    known = subprocess.run([sys.executable, "-m", "vdistill", command, "--help"], env=dict(ENV, COLUMNS="200"), capture_output=True, text=True).stdout
    used = set(re.findall(r"--(?:out|recipe|resume|shard|set|collect)\b", text))
    assert used and all(option in known for option in used)
