"Are the notebooks clean, their outputs those of their code, and are library and README what the notebooks say? Works on a copy and changes nothing."
import shutil, subprocess, sys, tempfile
from pathlib import Path
import nbformat
from fresh import is_fresh, notebooks

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = Path(sys.executable).parent
SOURCES = ("nbs", "vdistill", "tools", "pyproject.toml", "settings.ini", "setup.py", "README.md", "ARCHITECTURE.md", "_quarto.yml", "data")

WIDTH = 120 # of a line of code

def long_lines():
    "Where a line of a notebook's code cell or of the library is too long; the head of a module is nbdev's own."
    for path in notebooks():
        for cell in nbformat.read(path, 4).cells:
            lines = cell.source.splitlines() if cell.cell_type == "code" else []
            yield from (f"{path.name}, cell {cell.id}, line {i}" for i, line in enumerate(lines, 1) if len(line) > WIDTH)
    for path in sorted((ROOT/"vdistill").rglob("*.py")):
        if path.name == "_modidx.py": continue
        head, mark, cells = path.read_text("utf-8").partition("\n# %% ../")
        lines = enumerate(cells.splitlines(), head.count("\n") + 2)
        yield from (f"{path.relative_to(ROOT)}, line {i}" for i, line in lines if len(line) > WIDTH)

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

def check(target, what, command, patterns, remedy):
    "Run a command in the copy and compare the files of one or several patterns."
    done = subprocess.run(command, cwd=target, capture_output=True, encoding="utf-8", errors="replace")
    if done.returncode: sys.exit(f"{what}: {' '.join(map(str, command))} failed\n{done.stdout}{done.stderr}")
    patterns = [patterns] if isinstance(patterns, str) else patterns
    if files := [file for pattern in patterns for file in changed(target, pattern)]: sys.exit(f"{what}: {', '.join(files)} would change. Run `{remedy}` and commit the result.")
    print(f"{what}: yes")

with tempfile.TemporaryDirectory() as folder:
    target = Path(folder)
    copy(target)
    check(target, "Notebooks clean", [SCRIPTS/"nbdev-clean"], "nbs/**/*.ipynb", "nbdev-clean")
    check(target, "Library in sync with the notebooks", [SCRIPTS/"nbdev-export"], "vdistill/**/*.py", "nbdev-export")
    check(target, "Start page in sync with the sidebar", [sys.executable, "tools/start.py"], "nbs/start.ipynb", "python tools/start.py")
    check(target, "README in sync with index.ipynb", [sys.executable, "tools/readme.py"], "README.md", "python tools/readme.py")
    check(target, "Picture and table of the rooms in sync with the library", [sys.executable, "tools/architecture.py"],
        ["nbs/images/rooms.svg", "ARCHITECTURE.md"], "python tools/architecture.py")
if long := list(long_lines()): sys.exit(f"Lines of code have at most {WIDTH} characters: not {', '.join(long[:20])}" + (f" and {len(long) - 20} more" if len(long) > 20 else ""))
print(f"Lines of code have at most {WIDTH} characters: yes")
if old := [str(path.relative_to(ROOT)) for path in notebooks() if not is_fresh(path)]: sys.exit(f"Outputs are those of the code: not in {', '.join(old)}. Run `make fresh` and commit the result.")
print("Outputs are those of the code: yes")
