"What goes to an index: sdist and wheel, built without network, and what they hold."
import configparser, hashlib, subprocess, sys, tarfile, zipfile
from pathlib import Path
import pytest
from check_install import ROOT, build, check, commands, requirements, unpack
from vdistill.cli.lab import lay_out

def contents(archive): return {n: hashlib.sha256(archive.read(n)).hexdigest() for n in archive.namelist()}

@pytest.fixture(scope="module")
def built(tmp_path_factory): return build(tmp_path_factory.mktemp("built"))

def test_wheel_holds_the_package_and_nothing_else(built):
    wheel = zipfile.ZipFile(built[1])
    found = set(wheel.namelist())
    package = {str(p.relative_to(ROOT)) for p in (ROOT/"vdistill").rglob("*") if p.is_file() and "__pycache__" not in p.parts} | {"vdistill/chapters.zip"}
    assert {n for n in found if n.startswith("vdistill/")} == package
    assert {"vdistill/py.typed", "vdistill/reid/training.py", "vdistill/recipes/csv.yaml"} <= package
    about = {n.partition("/")[2] for n in found - package}
    assert about == {"METADATA", "RECORD", "WHEEL", "entry_points.txt", "top_level.txt", "licenses/LICENSE"}
    assert not [n for n in found if n.endswith(".ipynb") or "test" in n]
    licence = next(n for n in found if n.endswith("licenses/LICENSE"))
    assert wheel.read(licence) == (ROOT/"LICENSE").read_bytes()

def test_the_notebooks_come_along(built, tmp_path):
    "In one archive, from which `vdistill lab` lays them out with what they read; no checkpoint of JupyterLab, and not the site's own settings."
    unpack(built[1], tmp_path)
    lay_out(tmp_path/"mine", tmp_path/"vdistill"/"chapters.zip")
    found = {p.relative_to(tmp_path/"mine").as_posix() for p in (tmp_path/"mine").rglob("*") if p.is_file()}
    here = {p.relative_to(ROOT).as_posix() for folder, pattern in (("nbs", "*.ipynb"), ("data", "*.csv")) for p in (ROOT/folder).rglob(pattern) if ".ipynb_checkpoints" not in p.parts}
    assert here <= found and {"nbs/start.ipynb", "nbs/images/demo_kl.png", "data/README.md"} <= found
    assert {Path(n).suffix for n in found} <= {".ipynb", ".csv", ".md", ".yaml", ".png", ".svg", ".json", ".npz"} and all((ROOT/n).read_bytes() == (tmp_path/"mine"/n).read_bytes() for n in found)

def test_metadata_is_that_of_settings(built):
    wheel = zipfile.ZipFile(built[1])
    said = wheel.read(next(n for n in wheel.namelist() if n.endswith("METADATA"))).decode()
    lines = said.partition("\n\n")[0].splitlines()
    settings = configparser.ConfigParser(delimiters=["="])
    settings.read(ROOT/"settings.ini", encoding="utf-8")
    assert f"Version: {settings['DEFAULT']['version']}" in lines and "License-Expression: Apache-2.0" in lines
    assert f"Requires-Python: >={settings['DEFAULT']['min_python']}" in lines
    assert [l for l in lines if l.startswith("Requires-Dist:") and "extra ==" not in l] == [f"Requires-Dist: {r}" for r in requirements()]
    assert all(">=" in r for r in requirements()) # so that `oldest` knows them

def test_sdist_builds_the_same_wheel(built, tmp_path):
    "The sdist alone is enough, and nothing of the checkout or of an earlier build gets into the wheel."
    with tarfile.open(built[0]) as sdist:
        names = {n.partition("/")[2] for n in sdist.getnames()}
        sdist.extractall(tmp_path, filter="data")
    assert {"settings.ini", "setup.py", "pyproject.toml", "LICENSE", "README.md"} <= names
    assert not [n for n in names if n.startswith("tests") or ".ipynb_checkpoints" in n]
    again = build(tmp_path/"again", next(p for p in tmp_path.iterdir() if p.is_dir() and p.name.startswith("vdistill-")))
    assert contents(zipfile.ZipFile(again[1])) == contents(zipfile.ZipFile(built[1]))

def test_wheel_is_imported_from_its_folder(built, tmp_path):
    "From a folder, without the checkout: version, entry point, and recipes."
    unpack(built[1], tmp_path)
    code = """import vdistill, importlib.metadata as m; from vdistill.reid.config import configure
print(vdistill.__path__[0], vdistill.__version__, m.version("vdistill"), [e.value for e in m.entry_points(group="console_scripts", name="vdistill")], configure("csv:FILE").recipe)"""
    done = subprocess.run([sys.executable, "-I", "-c", f"import sys; sys.path.insert(0, {str(tmp_path)!r}); {code}"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    settings = (ROOT/"settings.ini").read_text(encoding="utf-8")
    where, version, installed, entry, recipe = done.stdout.split()
    assert Path(where) == tmp_path/"vdistill" and version == installed and f"version = {version}\n" in settings
    assert entry == "['vdistill.cli.main:main']" and recipe == "csv"

def test_every_command_is_found_in_the_help():
    "The check of an installed package asks each command for help: it has to see them all."
    helped = subprocess.run([sys.executable, "-m", "vdistill", "--help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert set(commands(helped)) >= {"demo", "train", "evaluate", "doctor", "show", "embed", "export", "audit", "ablate", "mi", "bench"}

def test_modules_that_need_an_extra_say_so(tmp_path):
    "Where ipywidgets cannot be imported, each module works or says in a sentence what to install."
    (tmp_path/"hidden.py").write_text(f"""import importlib, pkgutil, sys
sys.path.insert(0, {str(ROOT)!r})
for name in ("ipywidgets", "jupyterlab", "umap", "seaborn", "skimage", "mlxtend", "onnx", "onnxscript", "onnxruntime", "pyarrow"): sys.modules[name] = None
import vdistill
for module in pkgutil.walk_packages(vdistill.__path__, "vdistill."):
    if module.name == "vdistill.__main__": continue
    try: importlib.import_module(module.name)
    except ImportError as e: print(module.name, "|", e)""")
    said = subprocess.run([sys.executable, "hidden.py"], cwd=tmp_path, capture_output=True, text=True, check=True).stdout.splitlines()
    assert said == [f"vdistill.looking.{name} | the explorers need ipywidgets: pip install 'vdistill[notebook]'" for name in ("atlas", "dashboard", "explorers", "panels", "widgets")]

@pytest.mark.slow
@pytest.mark.parametrize("pins", [[], ["oldest"]], ids=["newest", "oldest"])
def test_whole_empty_environment(built, tmp_path, pins):
    "Installed where nothing else is: every module, every command's help, a short demo. Takes several GB of downloads."
    print(check(tmp_path, built[1], pins))
