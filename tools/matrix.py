"""Is `make test` green on every version that we say we support? For each cell of the matrix a fresh clone of the last
commit, a new environment (several GB, removed afterwards) and the whole of it. What a machine caps by a pip constraint of
its own is lifted here: a cell says which versions it wants. Its last results stand in CONTRIBUTING.

    python tools/matrix.py                        # all cells, half an hour or more each on two cores
    python tools/matrix.py oldest newest          # some of them
    python tools/matrix.py newest --busy          # while other work takes every core
    python tools/matrix.py newest --python /usr/bin/python3.14
"""
import argparse, contextlib, datetime, os, re, subprocess, sys, tempfile, time
from dataclasses import dataclass
from pathlib import Path
from check_install import ROOT, call, oldest

EXTRAS = ("", "plots", "baselines", "experiments", "notebook", "backbones", "export")
SHOWN = ("torch", "torchvision", "numpy", "pandas", "scikit-learn", "scipy", "matplotlib")
BEGIN, END = "<!-- matrix -->", "<!-- end of matrix -->"
HEADER = ["cell", "Python", *SHOWN, "notebooks", "pytest", "minutes", "date", "commit"]

@dataclass(frozen=True)
class Cell:
    "One row of the matrix."
    python: str = "3.11" # `3.11`, or `newest`: the newest that is found
    pins: tuple = () # requirements beside those of settings.ini
    constraints: bool = True # with the tested versions of constraints.txt

CELLS = {
    "oldest": Cell(pins=tuple(dict.fromkeys(r for extra in EXTRAS for r in oldest(extra))), constraints=False),
    "torch-2.14": Cell(pins=("torch==2.14.*", "torchvision==0.29.*")),
    "newest": Cell(),
    "newest-python": Cell(python="newest"),
}

def version_of(
    python, # a program
): # `(3, 13)`, or None where it is no Python
    "Ask a Python for its version: what lies on the PATH may be a stub that runs nothing."
    code = "import sys, venv; print(*sys.version_info[:2])"
    try: done = subprocess.run([python, "-c", code], capture_output=True, encoding="utf-8")
    except OSError: return None
    return None if done.returncode else tuple(map(int, done.stdout.split()))

def pythons():
    "Each Python from 3.11 on that is found: its version and its program."
    homes = [*map(Path, os.environ.get("PATH", "").split(os.pathsep))]
    homes += sorted(Path(os.environ.get("PYENV_ROOT", Path.home()/".pyenv")).glob("versions/*/bin"))
    programs = [sys.executable, *(str(p) for home in homes for p in sorted(home.glob("python3.[0-9][0-9]")))]
    found = {}
    for program in programs:
        version = version_of(program)
        if version and version >= (3, 11): found.setdefault(version, program)
    return found

def find_python(
    wanted, # `3.11` or `newest`
): # a program, or None
    there = pythons()
    return there.get(max(there) if wanted == "newest" else tuple(map(int, wanted.split("."))))

@contextlib.contextmanager
def cores_taken(
    taken, # bool
):
    "Other work on every core, for as long as this lasts."
    spin = [sys.executable, "-c", "while True: pass"]
    others = [subprocess.Popen(spin) for _ in range(os.cpu_count() if taken else 0)]
    try: yield
    finally:
        for other in others: other.kill()

def clone(
    folder, # where to
):
    "The last commit as a user gets it, beside the real pairs if there are any."
    call("git", "clone", "-q", ROOT, folder/"vdistill")
    if (ROOT.parent/"shared").is_dir(): (folder/"shared").symlink_to(ROOT.parent/"shared")
    return folder/"vdistill"

def make_test(
    checkout,
    cell: Cell,
    python, # a program
    log, # file for all that it prints
): # whether it is green
    "The README's second command, with a cell's versions."
    limits = checkout.parent/"constraints.txt" # pip takes it in place of a constraint that the machine has
    tested = (checkout/"constraints.txt").read_text("utf-8") if cell.constraints else ""
    limits.write_text("\n".join([tested, *cell.pins, ""]), "utf-8")
    env = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "MAKEFLAGS", "VIRTUAL_ENV")}
    env |= dict(PIP_CONSTRAINT=str(limits), UV_CONSTRAINT=str(limits))
    command = ["make", "test", f"PYTHON={python}", f"CONSTRAINTS={limits}"]
    with open(log, "w", encoding="utf-8") as out: return subprocess.run(command, cwd=checkout, stdout=out, stderr=out, env=env).returncode == 0

def versions(
    checkout,
): # one for each of SHOWN, or `?`
    listed = call(checkout/".venv/bin/python", "-c", "from importlib.metadata import distributions as d; print(*{f'{x.name}=={x.version}' for x in d()}, sep='\\n')")
    found = dict(line.lower().split("==", 1) for line in listed.split() if "==" in line)
    return [found.get(name, "?") for name in SHOWN]

def run_cell(
    name, # of CELLS
    python=None, # a program; None: as the cell says
    busy=False, # with every core taken by other work
    logs=Path("."), # folder for what was printed
): # a row for the table, and whether it is green
    cell, label = CELLS[name], name + " (cores taken)"*busy
    today = datetime.date.today().isoformat()
    if not (python := python or find_python(cell.python)): return [label, f"no Python {cell.python} found here", *[""]*(len(HEADER) - 4), today, ""], False
    log, started = logs/f"matrix-{label.replace(' ', '-')}.log", time.time()
    with tempfile.TemporaryDirectory() as folder, cores_taken(busy):
        checkout = clone(Path(folder))
        commit = call("git", "rev-parse", "--short", "HEAD", cwd=checkout).strip()
        green, minutes = make_test(checkout, cell, python, log), round((time.time() - started) / 60)
        number = call(python, "-c", "import platform; print(platform.python_version())").strip()
        said, seen = log.read_text("utf-8", errors="replace"), versions(checkout) if (checkout/".venv/bin/python").exists() else ["?"]*len(SHOWN)
    tests = re.findall(r"(\d+ (?:passed|failed).*?) in [\d.]+s", said)
    ran = len(re.findall(r"^\S+\.ipynb: \d+ secs", said, re.M)) or "?"
    return [label, number, *seen, ran, tests[-1] if tests else f"not begun, see {log.name}", minutes, today, commit], green

def table(rows):
    line = lambda cells: "| " + " | ".join(map(str, cells)) + " |"
    return "\n".join([line(HEADER), line(["---"]*len(HEADER)), *map(line, rows)])

def write(
    rows, # of `run_cell`
    path=ROOT/"CONTRIBUTING.md",
):
    "Put rows into the table of a page, in place of those of the same cell."
    page = path.read_text("utf-8")
    before, _, rest = page.partition(BEGIN)
    old, _, after = rest.partition(END)
    kept = [[c.strip() for c in line.strip()[1:-1].split("|")] for line in old.strip().splitlines()[2:]]
    merged = {row[0]: row for row in [*kept, *rows]}
    path.write_text(f"{before}{BEGIN}\n{table(merged.values())}\n{END}{after}", "utf-8")

def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cells", nargs="*", metavar="CELL", help=f"default: all of {', '.join(CELLS)}")
    parser.add_argument("--python", help="a program, in place of the one that the cell looks for")
    parser.add_argument("--busy", action="store_true", help="while other work takes every core")
    parser.add_argument("--logs", type=Path, default=Path(tempfile.gettempdir()), help="folder for what is printed")
    args = parser.parse_args()
    if unknown := set(args.cells) - set(CELLS): parser.error(f"no cell {', '.join(unknown)}; there are {', '.join(CELLS)}")
    if call("git", "status", "--porcelain", "--untracked-files=no", cwd=ROOT): print("What is not committed is not tested.", flush=True)
    greens = []
    for name in args.cells or CELLS:
        print(f"{name}: make test, in a fresh clone …", flush=True)
        row, green = run_cell(name, args.python, args.busy, args.logs)
        print(f"{'green' if green else 'RED'}: {' | '.join(map(str, row))}", flush=True)
        write([row])
        greens.append(green)
    sys.exit(not all(greens))

if __name__ == "__main__": main()
