"What happens to a run while it runs: each of these does the thing."
import errno, json, os, shutil, signal, stat, subprocess, sys, time, warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import vdistill.reid.checkpoints as K
import vdistill.reid.training as T
from vdistill.reid.checkpoints import CheckpointError, CheckpointWarning, check_checkpoint, load_state, load_weights
from vdistill.cli.output import forget_lost
from vdistill.reid.config import configure
from vdistill.core import InputError, generator
from vdistill.reid.data import load_dataset
from vdistill.reid.guard import FolderLock, Interrupted, Signals, Watch, out_of_memory
from vdistill.reid.runs import load_run, write_csv
from vdistill.reid.training import Trainer

SMALL = dict(epochs=4, validate_every=2, width=4, features=16, z_features=8, hidden=(16,), z_hidden=(8,), grid=(2, 1), identities_per_batch=6, images_per_identity=1, flip=.5, device="cpu", data=dict(identities=(24, 6, 8)))
ENV = dict(os.environ, OMP_NUM_THREADS="1", PYTHONPATH=str(Path(__file__).resolve().parents[2]))
STEPS = 16

SCRIPT = """
import sys, torch
torch.set_num_threads(1)
from pathlib import Path
from vdistill.reid.training import Trainer, configure
run = Path(sys.argv[1])
trainer = Trainer.resume(run) if (run/"config.yaml").exists() else Trainer(configure("synthetic", **eval(sys.argv[2])), run)
print("ready", flush=True)
trainer.fit()
"""


def message(function, *args, **options):
    with pytest.raises(InputError) as error: function(*args, **options)
    text = str(error.value)
    assert "\n" not in text
    return text


def history(run): return pd.read_csv(Path(run)/"history.csv").drop(columns="seconds")


def equal_runs(a, b):
    "History, weights and last state, bit for bit."
    pd.testing.assert_frame_equal(history(a), history(b), check_exact=True)
    x, y = load_weights(a), load_weights(b)
    assert x.keys() == y.keys() and all(torch.equal(x[k], y[k]) for k in x)
    x, y = load_state(a), load_state(b)
    assert all(torch.equal(x["model"][k], y["model"][k]) for k in x["model"]) and x["best"] == y["best"] and x["step"] == y["step"]


@pytest.fixture(scope="module")
def people(): return load_dataset("synthetic", identities=(24, 6, 8))


@pytest.fixture(scope="module")
def whole(tmp_path_factory, people):
    "An uninterrupted run."
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    run = tmp_path_factory.mktemp("whole")/"run"
    Trainer(configure("synthetic", **SMALL), run, people).fit()
    torch.set_num_threads(threads)
    return run


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# ---- stopped at a step, anywhere

class Told(Trainer):
    "Gets a signal within a step."
    at, number = 0, signal.SIGTERM
    def train_step(self, *batch):
        if self.step == self.at: os.kill(os.getpid(), self.number)
        return super().train_step(*batch)


@pytest.mark.parametrize("at", [0, 2, 3, 4, 6, 7, 8, 15])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_the_run_goes_on_bit_for_bit(people, whole, tmp_path, at, number):
    "In the middle of an epoch, at its last step, after a validation, at the last step of all."
    told = Told(configure("synthetic", **SMALL), tmp_path/"run", people)
    told.at, told.number = at, number
    with pytest.raises(Interrupted) as stop: told.fit()
    assert stop.value.number == number and load_state(tmp_path/"run")["step"] == at + 1 and not check_checkpoint(tmp_path/"run")
    resumed = Trainer.resume(tmp_path/"run", dataset=people)
    assert resumed.step == at + 1 and resumed.done == (at % 4) + 1
    resumed.fit()
    equal_runs(tmp_path/"run", whole)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL # as it was


OTHERS = [getattr(signal, name) for name in ("SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU") if hasattr(signal, name)]

@pytest.mark.parametrize("number", OTHERS)
def test_what_terminals_queues_and_limits_send_saves_as_well(people, whole, tmp_path, number):
    told = Told(configure("synthetic", **SMALL), tmp_path/"run", people)
    told.at, told.number = 6, number
    with pytest.raises(Interrupted) as stop: told.fit()
    assert stop.value.number == number and load_state(tmp_path/"run")["step"] == 7
    assert signal.getsignal(number) == signal.SIG_DFL # as it was
    Trainer.resume(tmp_path/"run", dataset=people).fit()
    equal_runs(tmp_path/"run", whole)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, *OTHERS])
def test_what_is_ignored_stays_ignored(number):
    "`nohup` ignores SIGHUP, and a shell's `&` in a script SIGINT."
    before = signal.signal(number, signal.SIG_IGN)
    try:
        with Signals() as signals:
            os.kill(os.getpid(), number)
            assert not signals.caught
        assert signal.getsignal(number) == signal.SIG_IGN
    finally: signal.signal(number, before)


@pytest.mark.parametrize("number", OTHERS)
def test_a_program_keeps_a_handler_of_its_own(number):
    seen = []
    before = signal.signal(number, lambda *_: seen.append(number))
    try:
        with Signals() as signals: os.kill(os.getpid(), number)
        assert seen == [number] and not signals.caught
    finally: signal.signal(number, before)


COMMAND = [sys.executable, "-m", "vdistill", "train", "synthetic", "--out", "run", *(x for k, v in (SMALL | dict(epochs=100000, hidden="[16]", z_hidden="[8]", grid="[2, 1]", data="{identities: [24, 6, 8]}")).items()
           for x in ("--set", f"{k}={v}"))]

def until_saved(run, process):
    "A first state lies in the folder: steps are being taken."
    for _ in range(6000):
        if (run/"state.pt").exists(): return
        assert process.poll() is None
        time.sleep(.05)
    raise AssertionError("nothing was saved")


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="no terminals of this kind")
def test_what_a_closed_terminal_did_not_take_is_given_up():
    "It would decide the exit code (120 on Python 3.14); what a full disk did not take is an error, and stays one."
    try: ours, theirs = os.openpty()
    except OSError as e: pytest.skip(f"no terminal can be opened here ({e.strerror})")
    with open(theirs, "w", encoding="utf-8") as stream:
        os.close(ours)
        stream.write("words")
        with pytest.raises(OSError): stream.flush()
        forget_lost(stream)
        stream.flush()
        stream.write("more")
    forget_lost(stream) # closed by now


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
def test_what_a_full_disk_did_not_take_is_kept():
    stream = open("/dev/full", "w", encoding="utf-8")
    stream.write("words")
    forget_lost(stream)
    with pytest.raises(OSError, match="space"): stream.close()


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="no terminals of this kind")
def test_a_terminal_that_closes(tmp_path):
    "Nobody can read any more what is said; the state is saved, and the exit code is that of SIGHUP."
    try: ours, theirs = os.openpty()
    except OSError as e: pytest.skip(f"no terminal can be opened here ({e.strerror})")
    hold = "import fcntl, os, sys, termios; os.setsid(); fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execv(sys.argv[1], sys.argv[1:])"
    process = subprocess.Popen([sys.executable, "-c", hold, *COMMAND], stdin=theirs, stdout=theirs, stderr=theirs, env=ENV, cwd=tmp_path)
    os.close(theirs)
    os.set_blocking(ours, False)
    until_saved(tmp_path/"run", process)
    with_it = load_state(tmp_path/"run")["step"]
    os.close(ours)
    assert process.wait(300) == 128 + signal.SIGHUP
    assert load_state(tmp_path/"run")["step"] > with_it and not check_checkpoint(tmp_path/"run")


@pytest.mark.parametrize("number", [signal.SIGTERM, *OTHERS[:2]])
def test_a_grid_ends_with_the_exit_code_of_its_signal(tmp_path, number):
    (tmp_path/"grid.yaml").write_text(json.dumps(dict(datasets=["synthetic"], methods=["baseline"], seeds=[0], settings=SMALL | dict(epochs=100000, hidden=[16], z_hidden=[8], grid=[2, 1], data=dict(identities=[24, 6, 8])))))
    process = subprocess.Popen([sys.executable, "-m", "vdistill", "ablate", "grid.yaml", "--out", "runs"], env=ENV, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    until_saved(tmp_path/"runs"/"synthetic-baseline-0", process)
    process.send_signal(number)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 128 + number and "Traceback" not in err and "and saved: the same command goes on" in err, err[-2000:]


def test_a_second_interrupt_ends_at_once():
    with pytest.raises(KeyboardInterrupt), Signals() as signals:
        os.kill(os.getpid(), signal.SIGINT)
        assert signals.caught == signal.SIGINT
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(1)


@pytest.mark.parametrize("accumulate, at, saved", [(2, 4, 6), (2, 5, 6), (3, 5, 7), (3, 7, 8), (4, 0, 4)])
def test_accumulation_stops_where_no_gradient_is_pending(people, tmp_path, accumulate, at, saved):
    "An epoch of four batches ends a step as well; the state is that of the next complete step."
    settings = SMALL | dict(accumulate=accumulate)
    Trainer(configure("synthetic", **settings), tmp_path/"whole", people).fit()
    told = Told(configure("synthetic", **settings), tmp_path/"run", people)
    told.at = at
    with pytest.raises(Interrupted): told.fit()
    assert load_state(tmp_path/"run")["step"] == saved
    Trainer.resume(tmp_path/"run", dataset=people).fit()
    equal_runs(tmp_path/"run", tmp_path/"whole")


def test_a_signal_while_the_last_epoch_is_validated(people, whole, tmp_path):
    class Late(Trainer):
        def validate(self):
            if self.epoch == self.config.epochs: os.kill(os.getpid(), signal.SIGTERM)
            return super().validate()
    with pytest.raises(Interrupted): Late(configure("synthetic", **SMALL), tmp_path/"run", people).fit()
    assert not (tmp_path/"run"/"results.csv").exists()
    Trainer.resume(tmp_path/"run", dataset=people).fit()
    equal_runs(tmp_path/"run", whole)


def test_a_state_of_another_device_goes_on(people, whole, tmp_path):
    "A GPU's optimiser is fused and a CPU's is not; a state brings the word along, and the device at hand decides."
    told = Told(configure("synthetic", **SMALL), tmp_path/"run", people)
    told.at = 6
    for group in told.optimizer.param_groups: group["fused"] = None
    told.optimizer.state_dict = lambda real=told.optimizer.state_dict: (state := real()) | dict(param_groups=[g | dict(fused=True) for g in state["param_groups"]])
    with pytest.raises(Interrupted): told.fit()
    assert all(g["fused"] for g in load_state(tmp_path/"run")["optimizer"]["param_groups"])
    resumed = Trainer.resume(tmp_path/"run", dataset=people)
    assert not any(g["fused"] for g in resumed.optimizer.param_groups)
    resumed.fit()
    equal_runs(tmp_path/"run", whole)


# ---- killed

def killed(folder, whole, moments, settings=SMALL):
    "Start, kill -9 after so many seconds, resume, until the run ends: the same run."
    run, kills = folder/"run", 0
    for wait in [*moments, None]:
        process = subprocess.Popen([sys.executable, "-c", SCRIPT, str(run), repr(settings)], env=ENV, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        process.stdout.readline()
        if wait is not None:
            time.sleep(wait)
            kills += process.poll() is None
            process.kill()
        out, err = process.communicate()
        assert wait is not None or process.returncode == 0, err[-2000:]
    equal_runs(run, whole)
    return kills


def test_kill_9_a_few_times(whole, tmp_path):
    assert killed(tmp_path, whole, [.3, .8]) >= 1


@pytest.mark.slow
@pytest.mark.parametrize("attempt", range(20))
def test_kill_9_at_random_moments(whole, tmp_path, attempt):
    moments = torch.rand(3, generator=generator("kill", attempt)).mul(1.5).tolist()
    killed(tmp_path, whole, moments)


# ---- one folder, one run

def test_two_runs_in_one_folder(people, tmp_path):
    trainer = Trainer(configure("synthetic", **SMALL), tmp_path/"run", people)
    with FolderLock(tmp_path/"run"): assert "another process" in message(trainer.fit)
    assert "already holds a run" in message(Trainer, configure("synthetic", **SMALL), tmp_path/"run", people)


def test_a_lock_dies_with_its_holder(tmp_path):
    code = "import sys, time; from vdistill.reid.guard import FolderLock; lock = FolderLock(sys.argv[1]); lock.__enter__(); print('held', flush=True); time.sleep(600)"
    holder = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], env=ENV, stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "held\n"
    assert f"process {holder.pid}" in message(FolderLock(tmp_path).__enter__)
    holder.kill()
    holder.wait()
    with FolderLock(tmp_path): pass


def test_a_file_system_without_locks_or_folder_flushes(people, whole, tmp_path, monkeypatch):
    "As some network file systems answer: a word of warning, and the same run."
    def none(*_): raise OSError(errno.ENOSYS, "Function not implemented")
    fsync = os.fsync
    def files_only(handle):
        if stat.S_ISDIR(os.fstat(handle).st_mode): raise OSError(errno.EINVAL, "Invalid argument")
        fsync(handle)
    monkeypatch.setattr("vdistill.core._lock", none)
    monkeypatch.setattr(os, "fsync", files_only)
    with pytest.warns(UserWarning, match="without locks"): Trainer(configure("synthetic", **SMALL), tmp_path/"run", people).fit()
    equal_runs(tmp_path/"run", whole)


# ---- files

FAULTS = {"flipped byte": lambda b: b[:len(b)//2] + bytes([b[len(b)//2] ^ 1]) + b[len(b)//2 + 1:], "cut off": lambda b: b[:-100], "empty": lambda b: b"", "gone": None}

@pytest.mark.parametrize("name", ["state.pt", "model.safetensors"])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_damaged_file_is_named_and_the_one_before_is_used(people, tmp_path, name, fault):
    run = tmp_path/"run"
    Trainer(configure("synthetic", **SMALL), run, people).fit()
    before = load_state(run/"previous")["epoch"]
    path = run/name
    path.unlink() if FAULTS[fault] is None else path.write_bytes(FAULTS[fault](path.read_bytes()))
    assert (run/"previous"/name).is_file() and not check_checkpoint(run/"previous")
    if name == "state.pt":
        with pytest.warns(CheckpointWarning, match="the checkpoint before it is used") as noted: again = Trainer.resume(run, dataset=people)
        assert str(path) in str(noted[0].message) and again.epoch == before == 2
        again.fit()
        assert not check_checkpoint(run)
    else:
        with pytest.warns(CheckpointWarning, match="model.safetensors"): load_run(run, "cpu")
    with pytest.raises(CheckpointError): (load_state if name == "state.pt" else load_weights)(run/"nowhere")


def test_no_room_keeps_the_last_checkpoint(people, tmp_path, monkeypatch):
    "A file system that is full: here files of more than 2 kB cannot be written."
    run = tmp_path/"run"
    code = SCRIPT.replace("trainer.fit()", """
import resource, signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
original = Trainer.run_epoch
def run_epoch(self, bar):
    if self.epoch == 2: resource.setrlimit(resource.RLIMIT_FSIZE, (2000, resource.RLIM_INFINITY))
    original(self, bar)
Trainer.run_epoch = run_epoch
from vdistill.core import InputError
try: trainer.fit()
except InputError as e: print("said:", e)
""")
    done = subprocess.run([sys.executable, "-c", code, str(run), repr(SMALL)], env=ENV, capture_output=True, text=True)
    said = [line for line in done.stdout.splitlines() if line.startswith("said:")]
    assert said and "MB are needed" in said[0] and "--resume" in said[0], done.stdout + done.stderr[-1500:]
    assert load_state(run)["epoch"] == 2 and not check_checkpoint(run) and not [p for p in run.iterdir() if p.name.startswith(".") and "state" in p.name]
    Trainer.resume(run, dataset=people).fit()


SMALL_DISK = """
import os, pathlib, resource
full = Path(sys.argv[1]).parent/"filler"
original = Trainer.run_epoch
def run_epoch(self, bar):
    if self.epoch == 2: fill()
    original(self, bar)
def fill():
    with open(full, "wb", buffering=0) as f:
        try:
            while True: f.write(bytes(4096))
        except OSError as e: print("disk:", e.strerror)
Trainer.run_epoch = run_epoch
from vdistill.reid.checkpoints import check_checkpoint, load_state
from vdistill.core import InputError
try: trainer.fit()
except InputError as e: print("said:", e)
print("kept:", load_state(run)["epoch"], check_checkpoint(run), sorted(p.name for p in run.iterdir() if p.name.startswith(".")))
full.unlink()
Trainer.run_epoch = original
Trainer.resume(run).fit()
print("finished:", load_state(run)["epoch"], check_checkpoint(run))
"""


def own_disk(folder, code, *args):
    "Run Python code in which `folder` is a file system of 8 MB of its own."
    mount = f"mount -t tmpfs -o size=8m tmpfs '{folder}' && exec \"$@\""
    for flags in (["--mount"], ["--user", "--map-root-user", "--mount"]):
        if shutil.which("unshare") and not subprocess.run(["unshare", *flags, "sh", "-c", mount, "sh", "true"], capture_output=True).returncode:
            return subprocess.run(["unshare", *flags, "sh", "-c", mount, "sh", sys.executable, "-c", code, *args], env=ENV, capture_output=True, text=True)
    pytest.skip("no small file system can be mounted here")


def test_a_disk_that_is_full(tmp_path):
    "A real file system without a free block, from the middle of the run on; then there is room again."
    done = own_disk(tmp_path, SCRIPT.replace("trainer.fit()", SMALL_DISK), str(tmp_path/"run"), repr(SMALL))
    said = dict(line.split(": ", 1) for line in done.stdout.splitlines() if ": " in line)
    assert said["disk"] == "No space left on device", done.stdout + done.stderr[-1500:]
    for part in ("No space left on device", "whole", "--resume"): assert part in said.get("said", ""), done.stdout + done.stderr[-1500:] # of weights where they are better ones, else of the history
    assert said["kept"] == "2 [] []", said # epoch, faults, litter
    assert said["finished"] == "4 []"


@pytest.mark.parametrize("number, part", [(errno.ENOSPC, "MB are needed"), (errno.EROFS, "cannot be written")])
def test_what_is_said_of_a_disk(tmp_path, monkeypatch, number, part):
    K.save_checkpoint(tmp_path/"run", dict(w=torch.ones(1000)), dict(epoch=1))
    def full(*args, **options): raise OSError(number, os.strerror(number))
    monkeypatch.setattr(Path, "write_bytes", full)
    said = message(K.save_checkpoint, tmp_path/"run", dict(w=torch.zeros(1000)), dict(epoch=2))
    assert part in said and str(tmp_path/"run") in said
    assert load_state(tmp_path/"run")["epoch"] == 1 and load_weights(tmp_path/"run")["w"].sum() == 1000


def test_a_table_without_room(tmp_path):
    "Also the last bytes, which a file system takes only when the file is closed."
    file = tmp_path/"t.csv"
    write_csv(file, pd.DataFrame(dict(a=[1])))
    class Full(pd.DataFrame):
        def to_csv(self, path, **options): Path(path).write_text("half"); raise OSError(errno.ENOSPC, "No space left on device")
    said = message(write_csv, file, Full(dict(a=[2])))
    assert str(file) in said and "No space left" in said and file.read_text() == "a\n1\n" and [p.name for p in tmp_path.iterdir()] == ["t.csv"]


def test_one_fault_does_not_hit_both(tmp_path, monkeypatch):
    "Weights that no later epoch has bettered lie in the run's folder and in previous/: as two files."
    run = tmp_path/"run"
    K.save_checkpoint(run, dict(w=torch.ones(3)), dict(epoch=1))
    K.keep_previous(run)
    K.save_checkpoint(run, state=dict(epoch=2))
    with open(run/"model.safetensors", "r+b") as f: f.seek(-1, 2); f.write(b"!")
    assert check_checkpoint(run) and not check_checkpoint(run/"previous")
    with pytest.warns(CheckpointWarning): assert K.or_previous(load_weights, run)["w"].sum() == 3
    def full(*_): raise OSError(errno.ENOSPC, "No space left on device")
    monkeypatch.setattr(shutil, "copyfile", full)
    K.save_checkpoint(run, dict(w=torch.zeros(3)), dict(epoch=3))
    K.keep_previous(run)
    assert load_state(run/"previous")["epoch"] == 1 and not list(run.glob(".*"))


def test_keeping_the_one_before(tmp_path):
    run = tmp_path/"run"
    K.keep_previous(run) if run.exists() else None
    for epoch in (1, 2, 3):
        if epoch > 1: K.keep_previous(run)
        K.save_checkpoint(run, dict(w=torch.full((3,), float(epoch))), dict(epoch=epoch))
    assert load_state(run)["epoch"] == 3 and load_state(run/"previous")["epoch"] == 2 and load_weights(run/"previous")["w"][0] == 2
    assert not list(run.glob(".*"))


# ---- numbers that are none

class Spoiled(Trainer):
    "A weight becomes infinite before some steps, for this step only."
    at = ()
    def train_step(self, *batch):
        if self.step not in self.at: return super().train_step(*batch)
        weight = self.model.shared.v_classifier.weight
        kept = weight.detach().clone()
        weight.data.fill_(float("inf"))
        try: return super().train_step(*batch)
        finally: weight.data.copy_(kept)


def test_a_loss_that_is_no_number_stops_with_a_report(people, tmp_path):
    spoiled = Spoiled(configure("synthetic", **SMALL), tmp_path/"run", people)
    spoiled.at = (10,)
    said = message(spoiled.fit)
    report = json.loads((tmp_path/"run"/"nonfinite.json").read_text())
    assert "step 10" in said and "skip_nonfinite" in said and "--resume" in said and str(tmp_path/"run"/"nonfinite.json") in said
    assert (report["step"], report["epoch"], report["seed"], len(report["images"])) == (10, 2, 0, 12)
    rows = spoiled.batch_of(10)
    assert report["images"] == [f"record {i}, identity {people.records.identity[i]}" for i in rows]
    assert all(p.isfinite().all() for p in spoiled.model.parameters()) # the step was not taken
    assert load_state(tmp_path/"run")["epoch"] == 2


def test_a_loss_that_is_no_number_stops_under_a_scaler_too(people, tmp_path):
    "Gradients too large for float16 are the scaler's business; a loss that is no number is not."
    spoiled = Spoiled(configure("synthetic", **SMALL, precision="float16"), tmp_path/"run", people)
    spoiled.at = (10,)
    said = message(spoiled.fit)
    assert "step 10" in said and "precision=bfloat16" in said
    plain = Trainer(configure("synthetic", **SMALL, precision="float16"), None, people)
    plain.fit()
    assert plain.watch.read()[0] == 0 and all(np.isfinite(row["loss"]) for row in plain.history)


def test_some_may_be_left_out(people, tmp_path):
    spoiled = Spoiled(configure("synthetic", **SMALL, skip_nonfinite=2), tmp_path/"run", people)
    spoiled.at = (3, 10)
    spoiled.fit()
    assert spoiled.watch.read() == (2, 3) and all(p.isfinite().all() for p in spoiled.model.parameters())
    third = Spoiled(configure("synthetic", **SMALL, skip_nonfinite=2), tmp_path/"other", people)
    third.at = (3, 5, 10)
    assert "3 steps" in message(third.fit)


def test_gradients_count_as_well():
    w, watch = torch.nn.Parameter(torch.zeros(2)), Watch("cpu")
    loss = w.sqrt().sum()
    loss.backward()
    assert loss.isfinite() and watch.see(loss, [w], 5) and watch.read() == (1, 5)


# ---- memory, precision, compiling

def test_out_of_memory_says_what_to_lower(people, tmp_path, monkeypatch):
    trainer = Trainer(configure("synthetic", **SMALL), tmp_path/"run", people)
    step = Trainer.train_step
    def greedy(self, *batch):
        if self.step == 9: torch.empty(2**60)
        return step(self, *batch)
    monkeypatch.setattr(Trainer, "train_step", greedy)
    said = message(trainer.fit)
    assert "identities_per_batch=6" in said and "image_size" in said and "--resume" in said
    monkeypatch.undo()
    Trainer.resume(tmp_path/"run", dataset=people).fit()
    assert not out_of_memory(RuntimeError("mat1 and mat2 shapes")) and out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))


@pytest.mark.parametrize("method", ["train_step", "validate"])
@pytest.mark.parametrize("error, words", [(RuntimeError("CUDA error: unspecified launch failure\nmore"), "the GPU has failed (CUDA error: unspecified launch failure)"), (torch.OutOfMemoryError("CUDA out of memory"), "identities_per_batch=6")])
def test_errors_of_the_machine_are_explained_wherever_they_come_up(people, tmp_path, monkeypatch, method, error, words):
    trainer = Trainer(configure("synthetic", **SMALL), tmp_path/"run", people)
    original = getattr(Trainer, method)
    def fail(self, *args):
        if self.epoch >= 3: raise error
        return original(self, *args)
    monkeypatch.setattr(Trainer, method, fail)
    said = message(trainer.fit)
    assert words in said and "--resume" in said and load_state(tmp_path/"run")["epoch"] == 2
    def own_fault(*_): raise RuntimeError("shapes that do not fit")
    monkeypatch.setattr(Trainer, method, own_fault)
    with pytest.raises(RuntimeError, match="^shapes that do not fit$"): Trainer.resume(tmp_path/"run", dataset=people).fit()


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_that_fails(tmp_path):
    "A kernel reads beyond its tensor: CUDA then refuses this process every further call."
    code = SCRIPT.replace("trainer.fit()", """
original = Trainer.train_step
def train_step(self, *batch):
    if self.step == 10: torch.zeros(3, device="cuda")[torch.tensor([7], device="cuda")]
    return original(self, *batch)
Trainer.train_step = train_step
from vdistill.core import InputError
try: trainer.fit()
except InputError as e: print("said:", e)
""")
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path/"run"), repr(SMALL | dict(device="cuda"))], env=ENV, capture_output=True, text=True, timeout=3000)
    assert "said: the GPU has failed" in done.stdout and "--resume" in done.stdout, done.stdout + done.stderr[-1500:]
    assert load_state(tmp_path/"run")["epoch"] == 2 and not check_checkpoint(tmp_path/"run")


def test_a_compiler_that_fails_is_no_end(people, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda model: lambda *inputs: 1/0)
    trainer = Trainer(configure("synthetic", **SMALL, compile="always"), dataset=people)
    with pytest.warns(UserWarning, match="compile=never"): trainer.fit()
    plain = Trainer(configure("synthetic", **SMALL), dataset=people)
    plain.fit()
    assert pd.DataFrame(trainer.history).drop(columns="seconds").equals(pd.DataFrame(plain.history).drop(columns="seconds"))


def test_compiling_starts_after_the_first_epoch(people, monkeypatch):
    calls = []
    def fake(model):
        def run(*inputs):
            calls.append(trainer.epoch)
            return model(*inputs)
        return run
    monkeypatch.setattr(torch, "compile", fake)
    trainer = Trainer(configure("synthetic", **SMALL, compile="always"), dataset=people)
    trainer.fit()
    assert set(calls) == {1, 2, 3} and len(calls) == 12
    calls.clear()
    never = Trainer(configure("synthetic", **SMALL), dataset=people) # auto, on a CPU
    never.fit()
    assert not calls


def test_accumulated_gradients_are_those_of_the_mean_loss(people):
    a = Trainer(configure("synthetic", **SMALL, accumulate=2, optimizer="sgd", weight_decay=0.), dataset=people)
    steps, seen = [], []
    step = a.optimizer.step
    a.optimizer.step = lambda: (steps.append(a.step), seen.append([p.grad.clone() for p in a.model.parameters() if p.grad is not None]), step())
    a.fit()
    assert steps == [1, 3, 5, 7, 9, 11, 13, 15]


@pytest.mark.parametrize("field, value", [("compile", "yes"), ("accumulate", 0), ("skip_nonfinite", -1), ("checkpointing", 1), ("precision", "float8")])
def test_settings_that_do_not_do(field, value): assert field in message(configure, "synthetic", **{field: value})


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("precision", ["bfloat16", "float16", "float32"])
def test_on_a_gpu_without_asking_it(people, precision):
    "No step between two looks makes the host wait."
    trainer = Trainer(configure("synthetic", **(SMALL | dict(device="cuda", precision=precision, compile="never"))), dataset=people)
    trainer.model.train()
    trainer.sampler.set_epoch(0)
    with Signals() as trainer.signals:
        batches = list(trainer.sampler)
        for visible, infrared in batches[:2]: trainer.train_step(visible, infrared)
        if precision != "float16": # its scaler asks, by design
            torch.cuda.set_sync_debug_mode("error")
            try: trainer.train_step(*batches[2])
            finally: torch.cuda.set_sync_debug_mode("default")
        trainer.fit()
    assert trainer.watch.read()[0] == 0


# ---- a fork

FORK = """
import os, sys, warnings
import torch
torch.set_num_threads(2)
from vdistill.reid.data import load_dataset
from vdistill.estimation import estimate_mi
from vdistill.reid.training import Trainer, configure
people = load_dataset("synthetic", identities=(24, 6, 8))
config = configure("synthetic", **eval(sys.argv[1]))
x = torch.randn(200, 2)
work = dict(train=lambda: Trainer(config, dataset=people).fit(), read=lambda: people.images(range(30)), score=lambda: Trainer.test(trained),
            mi=lambda: estimate_mi(x, x, batch=32, steps=4, seeds=1), torch=lambda: torch.rand(10**6).exp().sum())
if "score" in sys.argv[3]:
    trained = Trainer(config, dataset=people)
    trained.fit()
warnings.simplefilter("ignore")
work[sys.argv[2]]()
warnings.simplefilter("always")
if os.fork(): os._exit(os.waitstatus_to_exitcode(os.wait()[1]) != 0)
work[sys.argv[3]]()
print("done", flush=True)
os._exit(0)
"""

@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.parametrize("first, then", [("train", "train"), ("torch", "train"), ("read", "train"), ("mi", "mi"), ("train", "mi"), ("train", "score")])
def test_training_again_in_a_forked_process(first, then):
    "The parent's threads are not there: the child computes on one, and says so."
    try: done = subprocess.run([sys.executable, "-c", FORK, repr(SMALL | dict(epochs=1)), first, then], env=ENV, capture_output=True, text=True, timeout=300)
    except subprocess.TimeoutExpired: pytest.fail("the child hangs")
    assert done.returncode == 0 and "done" in done.stdout, done.stderr[-2000:]
    assert done.stderr.count("this process was forked") == 1 and "spawn" in done.stderr


def test_processes_that_only_read_hear_nothing(people, recwarn):
    "Workers of a loader have one thread anyway."
    class Rows(torch.utils.data.Dataset):
        def __len__(self): return 8
        def __getitem__(self, i): return people.images([i])[0]
    people.images([0])
    loader = torch.utils.data.DataLoader(Rows(), batch_size=4, num_workers=1, multiprocessing_context="fork" if hasattr(os, "fork") else None)
    assert torch.equal(torch.cat(list(loader)), people.images(range(8))) and not [w for w in recwarn if "forked" in str(w.message)]


@pytest.mark.parametrize("words", ["Cannot re-initialize CUDA in forked subprocess. To use …", "Unable to handle autograd's threading in combination with fork-based multiprocessing. See …"])
def test_what_pytorch_refuses_after_a_fork_is_explained(people, monkeypatch, words):
    trainer = Trainer(configure("synthetic", **SMALL), dataset=people)
    def refuse(*_): raise RuntimeError(words)
    monkeypatch.setattr(Trainer, "train_step", refuse)
    assert "get_context('spawn')" in message(trainer.fit)
    monkeypatch.setattr(torch.cuda, "_is_in_bad_fork", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert T.pick_device("auto").type == "cpu" # the parent only asked whether there are GPUs
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert "get_context('spawn')" in message(T.pick_device, "cuda") and "get_context('spawn')" in message(T.pick_device, "auto") and T.pick_device("cpu").type == "cpu"
