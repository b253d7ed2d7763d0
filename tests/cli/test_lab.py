"JupyterLab at the start page: what is unpacked, what is left alone, and that the server answers."
import json, re, urllib.request
from pathlib import Path
from zipfile import ZipFile

import nbformat
import pytest

from vdistill.cli import lab
from vdistill.core import InputError

ROOT = Path(__file__).resolve().parents[2]
NBS = sorted(p.relative_to(ROOT/"nbs").as_posix() for p in (ROOT/"nbs").rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts)


@pytest.fixture
def archive(tmp_path):
    with ZipFile(tmp_path/"chapters.zip", "w") as z:
        for name in ("nbs/start.ipynb", "nbs/cli/30_cli.ipynb", "data/results/demo.csv"): z.writestr(name, f"{name}, as it came")
    return tmp_path/"chapters.zip"


def message(function, *args):
    with pytest.raises(InputError) as error: function(*args)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_what_is_the_readers_own_stays(archive, tmp_path):
    assert lab.lay_out(tmp_path/"mine", archive) == 3
    (tmp_path/"mine"/"nbs"/"start.ipynb").write_text("notes")
    (tmp_path/"mine"/"nbs"/"cli"/"30_cli.ipynb").unlink()
    assert lab.lay_out(tmp_path/"mine", archive) == 1
    assert (tmp_path/"mine"/"nbs"/"start.ipynb").read_text() == "notes" and (tmp_path/"mine"/"nbs"/"cli"/"30_cli.ipynb").read_text().endswith("as it came")
    assert not list((tmp_path/"mine").rglob(".*"))


def test_bad_places(archive, tmp_path):
    assert "name a folder" in message(lab.lay_out, archive, archive)
    assert "did not come with" in message(lab.lay_out, tmp_path/"mine", tmp_path/"none.zip") and not (tmp_path/"mine").exists()


def test_without_jupyterlab(monkeypatch):
    found = lab.importlib.util.find_spec
    monkeypatch.setattr(lab.importlib.util, "find_spec", lambda name: None if name == "jupyterlab" else found(name))
    assert "vdistill[notebook]" in message(lab.open_lab)


def test_this_is_a_checkout(): assert lab.checkout() == ROOT


def test_the_server_opens_at_the_start_page(tmp_path, served_lab):
    pytest.importorskip("jupyterlab")
    with served_lab(ROOT, tmp_path, "--port-retries=50", JUPYTER_DATA_DIR=str(tmp_path/"data")) as address:
        start, path, token = re.fullmatch(r"(.*)/lab/tree/(\S+)\?token=(\w+)", address).groups()
        assert path == "nbs/start.ipynb"
        with urllib.request.urlopen(f"{start}/api/contents/{path}?content=0&token={token}") as answer: assert json.load(answer)["name"] == "start.ipynb"


def test_the_start_page_leads_to_every_notebook():
    page = nbformat.read(ROOT/"nbs"/"start.ipynb", 4)
    linked = {link for cell in page.cells if cell.cell_type == "markdown" for link in re.findall(r"\]\(([^)#]+\.ipynb)\)", cell.source)}
    assert sorted(linked | {"start.ipynb"}) == NBS
