"The types of the package, as a checker sees them in the checkout and as those see them who install it."
import os, subprocess, sys, tempfile
from pathlib import Path
import pytest

pytest.importorskip("mypy", reason="no mypy: pip install vdistill[dev]")
ROOT = Path(__file__).resolve().parent.parent

def mypy(*args, cwd=ROOT):
    alone = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} # which may lead back to the checkout
    with tempfile.TemporaryDirectory() as cache:
        done = subprocess.run([sys.executable, "-m", "mypy", "--cache-dir", cache, *map(str, args)], cwd=cwd, env=alone, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr

def test_package_and_public_names():
    "No error in the package; right uses of every public name pass, and each wrong one is refused."
    code, said = mypy("vdistill", "tests/typed_uses.py")
    assert code == 0, said

def test_types_reach_who_installs(tmp_path):
    "Outside the checkout a checker takes the package's types because of py.typed, and only because of it."
    from check_install import build, unpack
    site = tmp_path/"site"/"lib"/f"python{sys.version_info[0]}.{sys.version_info[1]}"/"site-packages"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path/"site"], check=True)
    unpack(build(tmp_path)[1], site)
    (tmp_path/"use.py").write_text("from vdistill.bounds import alpha_floor, ceiling\nreveal_type(ceiling(2))\nalpha_floor('a', 2)\n")
    python = tmp_path/"site"/"bin"/"python"
    code, said = mypy("--python-executable", python, "--ignore-missing-imports", "--follow-imports", "silent", "use.py", cwd=tmp_path)
    assert 'float"' in said and 'has incompatible type "str"; expected "int"' in said, said
    (site/"vdistill"/"py.typed").unlink()
    code, said = mypy("--python-executable", python, "use.py", cwd=tmp_path)
    assert "missing library stubs or py.typed marker" in said, said
