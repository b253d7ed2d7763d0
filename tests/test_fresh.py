"The check that a notebook's outputs are those of its code: what counts as a change, and what does not."
import importlib.util, sys
from pathlib import Path

import nbformat
import pytest

spec = importlib.util.spec_from_file_location("fresh", Path(__file__).resolve().parent.parent/"tools"/"fresh.py")
fresh = importlib.util.module_from_spec(spec)
spec.loader.exec_module(fresh)


@pytest.fixture
def root(tmp_path):
    "A small project: two modules, a table and a notebook that has run."
    for folder in ("nbs", "vdistill/room", "data/results"): (tmp_path/folder).mkdir(parents=True)
    (tmp_path/"vdistill"/"one.py").write_text("a = 1 # a number\n")
    (tmp_path/"vdistill"/"two.py").write_text("b = 2\n")
    (tmp_path/"vdistill"/"room"/"three.py").write_text("c = 3\n")
    (tmp_path/"data"/"results"/"t.csv").write_text("x\n1\n")
    cells = ["import json\nfrom vdistill.room import three\nfrom vdistill.one import a", "print('{a} # no comment', 1 + 1) # a sum\n\n", "table = 't.csv'"]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("# A title"), *map(nbformat.v4.new_code_cell, cells)])
    notebook.metadata["nbdev"] = dict(outputs_of=fresh.fingerprint(notebook, tmp_path))
    nbformat.write(notebook, tmp_path/"nbs"/"n.ipynb")
    return tmp_path


def change(root, cell, old, new):
    notebook = nbformat.read(root/"nbs"/"n.ipynb", 4)
    assert old in notebook.cells[cell].source
    notebook.cells[cell].source = notebook.cells[cell].source.replace(old, new)
    nbformat.write(notebook, root/"nbs"/"n.ipynb")


@pytest.mark.parametrize("cell, old, new, same", [
    (0, "A title", "Another", True), (2, "# a sum", "# the sum", True), (2, "1 + 1", "1 + 2", False), (2, "# no comment", "# a comment", False),
    (2, "\n\n", "\n# more\n", True), (1, "import json", "import json, sys", False)])
def test_cells(root, cell, old, new, same):
    change(root, cell, old, new)
    assert fresh.is_fresh(root/"nbs"/"n.ipynb", root) == same


@pytest.mark.parametrize("file, text, same", [("vdistill/one.py", "a = 1\n\n# other\n", True), ("vdistill/one.py", "a = 2\n", False), ("vdistill/two.py", "b = 3\n", True), ("vdistill/room/three.py", "c = 4\n", False), ("data/results/t.csv", "x\n2\n", False)])
def test_what_it_reads(root, file, text, same):
    assert fresh.is_fresh(root/"nbs"/"n.ipynb", root)
    (root/file).write_text(text)
    assert fresh.is_fresh(root/"nbs"/"n.ipynb", root) == same


def test_imports():
    code = "from vdistill.core import x\nfrom vdistill.reid import cache as C, data\nimport vdistill.reid.models as M, numpy"
    assert fresh.imported(code) == {"core", "core.x", "reid", "reid.cache", "reid.data", "reid.models"} # x may be a module
    assert fresh.imported("%time x") == set() and fresh.code_of("%time x # y\n") == "%time x"


def test_running(root):
    path = root/"nbs"/"n.ipynb"
    change(root, 1, "from vdistill.room import three\nfrom vdistill.one import a", "")
    change(root, 2, "1 + 1", "40 + 2")
    assert "n.ipynb: " in fresh.run(path, root) and fresh.is_fresh(path, root)
    change(root, 3, "table = 't.csv'", "#| eval: false\n1/0")
    assert "FAILED" not in fresh.run(path, root) and nbformat.read(path, 4).cells[3].metadata == {}
    assert nbformat.read(path, 4).cells[2].outputs[0].text == "{a} # no comment 42\n"
    for shown in (0, 1): # a widget is kept where it can be seen
        change(root, 3, "#| eval: false\n1/0" if not shown else "slider;", "import ipywidgets\nslider = ipywidgets.IntSlider()\nslider;" if not shown else "slider")
        assert "FAILED" not in fresh.run(path, root) and ("widgets" in nbformat.read(path, 4).metadata) == shown
    change(root, 2, "40 + 2", "1/0")
    before = path.read_bytes()
    assert "FAILED" in fresh.run(path, root) and path.read_bytes() == before and not fresh.is_fresh(path, root)
