"Where the tests find real visible / infrared pairs, and the official draw of SYSU-MM01."
import contextlib, os, re, signal, subprocess, time
from pathlib import Path

import pytest


def find_pairs_dir():
    "The folder of real pairs: VDISTILL_PAIRS, else ../shared/roadscene beside the checkout; a reason where there is none."
    named = os.environ.get("VDISTILL_PAIRS")
    folder = Path(named) if named else Path(__file__).resolve().parents[2] / "shared" / "roadscene"
    if (folder / "visible").is_dir() and (folder / "infrared").is_dir(): return folder, None
    return None, f"no real pairs: {folder} has no visible/ and infrared/; set VDISTILL_PAIRS to a folder that has"


@pytest.fixture(scope="session")
def pairs_dir():
    folder, reason = find_pairs_dir()
    if folder is None: pytest.skip(reason)
    return folder


def find_protocol_dir():
    "The folder of SYSU-MM01's official draw: VDISTILL_SYSU_PROTOCOL, else sysu-mm01-protocol beside the pairs or in ../shared; a reason where there is none."
    named, pairs = os.environ.get("VDISTILL_SYSU_PROTOCOL"), find_pairs_dir()[0]
    beside = [folder / "sysu-mm01-protocol" for folder in [*([] if pairs is None else [pairs.parent]), Path(__file__).resolve().parents[2] / "shared"]]
    folders = [Path(named)] if named else beside
    for folder in folders:
        if (folder / "rand_perm_cam.mat").is_file(): return folder, None
    return None, f"no official draw: {folders[-1]} has no rand_perm_cam.mat; set VDISTILL_SYSU_PROTOCOL to a folder that has, with train_id.mat and test_id.mat"


@pytest.fixture(scope="session")
def protocol_dir():
    folder, reason = find_protocol_dir()
    if folder is None: pytest.skip(reason)
    return folder


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory):
    "Pixels that readers keep go into a folder of the tests."
    before = os.environ.get("XDG_CACHE_HOME")
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))
    yield
    os.environ.pop("XDG_CACHE_HOME") if before is None else os.environ.update(XDG_CACHE_HOME=before)


@pytest.fixture(scope="session")
def without_umap(tmp_path_factory):
    "A PYTHONPATH on which UMAP is broken, for programs that draw and are tried for something else: it compiles for half a minute."
    folder = tmp_path_factory.mktemp("broken")
    (folder/"umap.py").write_text("raise ImportError('left out of this test')\n")
    return os.pathsep.join([str(folder), str(Path(__file__).resolve().parents[1])])


@pytest.fixture(autouse=True)
def signals_are_heard():
    "`nohup` has SIGHUP ignored, and a shell that starts something in the background SIGINT; here they do what they do."
    names = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU")
    ignored = [s for s in (getattr(signal, n, None) for n in names) if s and signal.getsignal(s) == signal.SIG_IGN]
    for number in ignored: signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    yield
    for number in ignored: signal.signal(number, signal.SIG_IGN)


@contextlib.contextmanager
def _served(folder, home, *options, **environment):
    "JupyterLab on a folder, started as `vdistill lab` starts it, with everything of its own below `home`; the address that it prints."
    from vdistill.cli.lab import lab_command
    env = dict(os.environ, PYTHONPATH=str(folder), OMP_NUM_THREADS="1", JUPYTER_CONFIG_DIR=str(home), JUPYTER_RUNTIME_DIR=str(home/"runtime"), **environment)
    with open(home/"log", "w") as log: server = subprocess.Popen([*lab_command(folder, browser=False, allow_root=True), *options], stdout=log, stderr=log, env=env, cwd=folder)
    try:
        until, found = time.time() + 600, None
        while found is None and time.time() < until and server.poll() is None:
            time.sleep(.2)
            found = re.search(r"http://(?:localhost|127\.0\.0\.1):\d+/lab/tree/\S+\?token=\w+", (home/"log").read_text())
        assert found, (home/"log").read_text()[-2000:]
        yield found[0]
    finally:
        server.terminate()
        server.wait(300)


@pytest.fixture(scope="session")
def served_lab(): return _served
