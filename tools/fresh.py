"""Is what a notebook shows the output of its code? `python tools/fresh.py [NOTEBOOK ...]` runs those of which that is not known.

A hash of a notebook's code cells, of the modules of vdistill that it imports and of the tables of `data/results` that it names
is kept in its metadata, written when it has run from top to bottom. Comments and blank lines do not count. Modules that are
imported by those modules are not looked at: `make test` runs every notebook with them, whatever its hash says.
"""
import ast, hashlib, io, json, re, subprocess, sys, time, tokenize
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
import nbformat

ROOT = Path(__file__).resolve().parent.parent

def notebooks():
    "Every notebook of the project, in the order of their names."
    return sorted(p for p in (ROOT/"nbs").rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts)

def code_of(source):
    "Python code without comments and blank lines."
    lines = source.splitlines()
    try:
        for token in tokenize.generate_tokens(io.StringIO(source).readline):
            if token.type == tokenize.COMMENT: lines[token.start[0] - 1] = lines[token.start[0] - 1][:token.start[1]]
    except (tokenize.TokenError, SyntaxError): pass # a cell magic: as it stands
    return "\n".join(line.rstrip() for line in lines if line.strip())

def imported(source):
    "The modules of vdistill that some code imports, and names that may be modules: `reid.data`, `reid.data.load_dataset`."
    try: tree = ast.parse(source)
    except SyntaxError: return set()
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module: names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return {name.removeprefix("vdistill.") for name in names if name.startswith("vdistill.")}

def fingerprint(notebook, root=ROOT):
    "The hash of everything that a notebook's output follows from."
    cells = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    modules = [root/"vdistill"/f"{name.replace('.', '/')}.py" for name in sorted(set().union(*map(imported, cells)))]
    tables = [root/"data"/"results"/name for name in sorted(set(re.findall(r"[\w-]+\.csv", "\n".join(cells))))]
    parts = [*map(code_of, cells), *(code_of(p.read_text("utf-8")) for p in modules if p.is_file()), *(p.read_text("utf-8") for p in tables if p.is_file())]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]

def is_fresh(path, root=ROOT):
    "Whether the notebook has run with the code that it shows, and with the modules as they are."
    notebook = nbformat.read(path, 4)
    return notebook.metadata.get("nbdev", {}).get("outputs_of") == fingerprint(notebook, root)

def run(path, root=ROOT):
    "Run a notebook from top to bottom, keep its outputs, and note the hash; one line that says how it went."
    from nbclient import NotebookClient
    notebook, started = nbformat.read(path, 4), time.time()
    for cell in notebook.cells:
        if re.search(r"^#\|\s*eval:\s*false", cell.source, re.M): cell.metadata["tags"] = ["skip-execution"] # cleaned away below
    try: NotebookClient(notebook, timeout=1200, kernel_name="python3", resources={"metadata": {"path": str(path.parent)}}).execute()
    except Exception as e: return f"{path.name}: FAILED, left as it was\n{e}"
    if not any("application/vnd.jupyter.widget-view+json" in out.get("data", {}) for cell in notebook.cells for out in cell.get("outputs", [])): notebook.metadata.pop("widgets", None) # of bars that nobody sees
    notebook.metadata.setdefault("nbdev", {})["outputs_of"] = fingerprint(notebook, root)
    nbformat.write(notebook, path)
    subprocess.run([str(Path(sys.executable).parent/"nbdev-clean"), "--fname", str(path)], check=True)
    return f"{path.name}: {time.time() - started:.0f} s"

if __name__ == "__main__":
    old = [path for path in [*map(Path.resolve, map(Path, sys.argv[1:]))] or notebooks() if not is_fresh(path)]
    with ThreadPoolExecutor(2) as pool: said = [(print(line, flush=True), line)[1] for line in pool.map(run, old)]
    sys.exit(any("FAILED" in line for line in said))
