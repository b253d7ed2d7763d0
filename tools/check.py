"Are the notebooks clean, their outputs those of their code, and are library and README what the notebooks say? Works on a copy and changes nothing."
import shutil, subprocess, sys, tempfile
from pathlib import Path
from fresh import is_fresh, notebooks

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = Path(sys.executable).parent
SOURCES = ("nbs", "vdistill", "tools", "pyproject.toml", "settings.ini", "setup.py", "README.md", "_quarto.yml", "data")

def copy(target):
    for name in SOURCES:
        source = ROOT/name
        if source.is_dir(): shutil.copytree(source, target/name, ignore=shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints"))
        else: shutil.copy(source, target/name)

def changed(target, pattern):
    "Files that differ between the checkout and the copy, missing ones included."
    names = {p.relative_to(base) for base in (ROOT, target) for p in base.glob(pattern) if ".ipynb_checkpoints" not in p.parts}
    read = lambda p: p.read_bytes() if p.exists() else None
    return sorted(str(n) for n in names if read(ROOT/n) != read(target/n))

def check(target, what, command, pattern, remedy):
    "Run a command in the copy and compare."
    done = subprocess.run(command, cwd=target, capture_output=True, encoding="utf-8", errors="replace")
    if done.returncode: sys.exit(f"{what}: {' '.join(map(str, command))} failed\n{done.stdout}{done.stderr}")
    if files := changed(target, pattern): sys.exit(f"{what}: {', '.join(files)} would change. Run `{remedy}` and commit the result.")
    print(f"{what}: yes")

with tempfile.TemporaryDirectory() as folder:
    target = Path(folder)
    copy(target)
    check(target, "Notebooks clean", [SCRIPTS/"nbdev-clean"], "nbs/**/*.ipynb", "nbdev-clean")
    check(target, "Library in sync with the notebooks", [SCRIPTS/"nbdev-export"], "vdistill/**/*.py", "nbdev-export")
    check(target, "Start page in sync with the sidebar", [sys.executable, "tools/start.py"], "nbs/start.ipynb", "python tools/start.py")
    check(target, "README in sync with index.ipynb", [sys.executable, "tools/readme.py"], "README.md", "python tools/readme.py")
if old := [str(path.relative_to(ROOT)) for path in notebooks() if not is_fresh(path)]: sys.exit(f"Outputs are those of the code: not in {', '.join(old)}. Run `make fresh` and commit the result.")
print("Outputs are those of the code: yes")
