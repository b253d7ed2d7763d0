"What commands print where the output knows few letters, and files that are UTF-8 wherever they are written."
import ast, io, os, subprocess, sys, warnings
from pathlib import Path
from types import SimpleNamespace

import pytest

from vdistill.cli.main import app, main
from vdistill.cli.output import spell_out

ROOT = Path(__file__).resolve().parents[2]
SMALL = ["epochs=1", "width=8", "features=32", "z_features=32", "hidden=[32]", "validate_every=1", "identities_per_batch=8", "data.identities=[16, 8, 8]", "data.images_per_camera=2", "device=cpu"]
COMMANDS = [info.name or info.callback.__name__ for info in app.registered_commands]


def call(encoding, *args, errors="strict"):
    "The console script's function, with standard output and error in an encoding."
    streams, before, code = [io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors=errors) for _ in range(2)], (sys.argv, sys.stdout, sys.stderr), 0
    sys.argv, sys.stdout, sys.stderr = ["vdistill", *map(str, args)], *streams
    try:
        with warnings.catch_warnings(): main()
    except SystemExit as e: code = e.code or 0
    finally:
        for s in streams: s.flush()
        sys.argv, sys.stdout, sys.stderr = before
    said = [s.buffer.getvalue().decode(encoding, "surrogateescape") for s in streams]
    return SimpleNamespace(returncode=code, stdout=said[0], stderr=said[1])


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("output")
    done = call("cp1252", "train", "synthetic", "--out", folder/"run", *(x for s in SMALL for x in ("--set", s)))
    assert done.returncode == 0 and "step" in done.stderr and "?|" not in done.stderr and "|?" not in done.stderr, done.stderr # its bar is of plain letters
    return folder/"run"


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "latin-1", "cp437"])
def test_tables_are_printed(run, encoding):
    for args in (["show", run], ["evaluate", run]):
        done = call(encoding, *args)
        assert done.returncode == 0, done.stderr
        assert "infrared->visible" in done.stdout and "visible->infrared" in done.stdout and "mAP" in done.stdout


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_every_command_helps(encoding):
    for command in COMMANDS:
        done = call(encoding, command, "--help")
        assert done.returncode == 0 and "Usage" in done.stdout and "?" not in done.stdout.replace("right? ", ""), (command, done.stdout)
        done.stdout.encode(encoding)


def test_what_utf8_shows_stays(run):
    assert "infrared→visible" in call("utf-8", "show", run).stdout


@pytest.mark.parametrize("encoding, name, shown", [("ascii", "Straße é α ²½ 10⁻⁶", "Stra"), ("cp1252", "→ ± é", "-> ± é"), ("ascii", "→ ± é", "-> +- e"), ("ascii", "x² ½ 10⁻⁶ α − … 人", "x^2 1/2 10^-6 alpha - ... ?"), ("utf-8", "caf\udce9", "caf\\udce9")])
@pytest.mark.parametrize("errors", ["strict", "surrogateescape", "backslashreplace"])
def test_names_of_files_in_errors(encoding, name, shown, errors, tmp_path):
    done = call(encoding, "train", f"pairs:{tmp_path}/{name}", errors=errors)
    assert done.returncode == 2 and done.stderr.startswith("error: ") and shown in done.stderr, done.stderr


@pytest.mark.parametrize("environment", [dict(PYTHONIOENCODING="ascii"), dict(PYTHONIOENCODING="cp1252"), dict(LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0")], ids=str)
def test_from_a_shell(run, environment, without_umap):
    env = {k: v for k, v in os.environ.items() if k not in ("PYTHONIOENCODING", "PYTHONUTF8", "LC_ALL")} | dict(PYTHONPATH=without_umap) | environment
    done = subprocess.run([sys.executable, "-m", "vdistill", "show", run], capture_output=True, env=env)
    assert done.returncode == 0, done.stderr
    assert b"infrared->visible" in done.stdout and b"Traceback" not in done.stderr


@pytest.mark.parametrize("encoding, shown", [("ascii", b"caf\xe9 -> e"), ("utf-8", "caf\udce9 → é".encode("utf-8", "surrogateescape")), ("cp1252", b"caf\xe9 -> \xe9")])
def test_bytes_of_a_name_stay_these_bytes(encoding, shown):
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    spell_out(stream)
    stream.write("caf\udce9 → é")
    stream.flush()
    assert stream.buffer.getvalue() == shown


# ---- files

WRITES = {"open": 1, "read_text": 0, "write_text": 1, "fdopen": 1}

def _without_encoding(path):
    "Calls that read or write text in whatever encoding the machine prefers."
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call): continue
        words, name = {k.arg for k in node.keywords}, getattr(node.func, "attr", getattr(node.func, "id", ""))
        owner = getattr(getattr(node.func, "value", None), "id", "")
        if name in ("run", "Popen", "check_output") and "text" in words and "encoding" not in words: yield node.lineno, name
        if name not in WRITES or "encoding" in words or owner in ("os", "Image", "tarfile", "webbrowser", "zipfile"): continue
        mode = next((k.value for k in node.keywords if k.arg == "mode"), node.args[1] if name == "open" and len(node.args) > 1 and isinstance(node.func, ast.Name) else node.args[0] if name == "open" and node.args else None)
        if name == "open" and isinstance(mode, ast.Constant) and "b" in str(mode.value): continue
        if name in ("read_text", "write_text") and len(node.args) > WRITES[name]: continue # the encoding by position
        yield node.lineno, name


@pytest.mark.parametrize("path", sorted([*(ROOT/"vdistill").rglob("*.py"), *(ROOT/"tools").glob("*.py")]), ids=lambda p: p.name)
def test_text_is_utf8(path): assert not list(_without_encoding(path))


def test_no_command_asks_the_machine_for_its_encoding(run, tmp_path, without_umap):
    "The whole life of a run; Python warns, here raises, where an encoding is left to the machine."
    env = dict(os.environ, PYTHONPATH=without_umap, PYTHONWARNDEFAULTENCODING="1", PYTHONWARNINGS="ignore")
    code = ("import sys, warnings; from vdistill.cli.main import main; warnings.filterwarnings('error', category=EncodingWarning, module=r'vdistill'); "
            f"sys.argv = ['vdistill', 'train', 'synthetic', '--out', {str(tmp_path/'run')!r}, " + ", ".join(f"'--set', {s!r}" for s in SMALL) + "]; main()")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, encoding="utf-8", env=env, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
