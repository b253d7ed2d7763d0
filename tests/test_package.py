"The package as people meet it: version, what an import costs, and the walls between the rooms."
import ast, configparser, json, subprocess, sys
from pathlib import Path
import pytest
import vdistill

ROOT = Path(__file__).resolve().parent.parent

def imports_of(module):
    "Modules of this package that a module imports anywhere."
    tree = ast.parse((ROOT/"vdistill"/f"{module}.py").read_text(encoding="utf-8"))
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom): names.add(("vdistill." if node.level else "") + (node.module or ""))
        elif isinstance(node, ast.Import): names |= {a.name for a in node.names}
    return {n.split(".")[1] for n in names if n.startswith("vdistill.") and len(n) > 9}

MODULES = [p.stem for p in (ROOT/"vdistill").glob("[a-z]*.py")]
THEORY = {"information", "bottlenecks", "distillation", "claims", "bounds", "estimation", "knowledge_distillation"}
REID = {"data", "archives", "synthetic", "augmentation", "cache", "batches", "pooling", "backbones", "models", "identity_losses", "metric_losses", "retrieval", "protocols", "reranking", "evaluation"}

def test_version_agrees_with_settings():
    settings = configparser.ConfigParser(delimiters=["="])
    settings.read(ROOT/"settings.ini", encoding="utf-8")
    assert vdistill.__version__ == settings["DEFAULT"]["version"]

def test_theory_knows_nothing_of_images():
    for module in THEORY: assert imports_of(module) <= THEORY | {"core"}, module

def test_reid_knows_nothing_of_the_distillation_losses():
    for module in REID: assert "distillation" not in imports_of(module), module
    for module in REID - {"models", "identity_losses"}: assert not imports_of(module) & THEORY, module

def test_nothing_imports_the_command_line():
    for module in MODULES: assert "cli" not in imports_of(module), module

def test_no_circle():
    graph = {m: imports_of(m) for m in MODULES}
    done = set()
    while ready := {m for m in graph if m not in done and graph[m] - {"synthetic", "archives", "foreign"} <= done | {m}}: done |= ready
    assert done == set(graph), set(graph) - done

def test_import_loads_nothing_heavy():
    heavy = {"umap", "torchvision", "ipywidgets", "seaborn", "sklearn", "skimage", "numba", "IPython", "fastcore", "nbdev"}
    code = f"import sys, vdistill, vdistill.distillation, vdistill.reid.training, vdistill.cli.main; print(sorted({heavy!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"

@pytest.mark.parametrize("name", ["distillation:vsd_loss vcd_loss vml_loss released_loss VariationalDistillation", "information:entropy mutual_information kl_divergence js_divergence",
    "bottlenecks:InformationBottleneck VariationalBottleneck", "bounds:cpc ml_cpc nwj dv js smile tuba alpha_floor ceiling", "estimation:correlated_gaussian estimate_mi", "data:load_dataset", "evaluation:retrieval_scores", "training:TrainConfig Trainer"])
def test_names_that_others_call(name):
    module, names = name.split(":")
    __import__(f"vdistill.{module}")
    for n in names.split(): assert hasattr(sys.modules[f"vdistill.{module}"], n), n

def test_no_machine_paths_in_the_project():
    "Stored outputs and texts hold no absolute path of a machine."
    for path in [*ROOT.glob("nbs/**/*.ipynb"), *ROOT.glob("*.md"), *ROOT.glob("vdistill/*.py")]:
        if ".ipynb_checkpoints" in path.parts: continue
        text = path.read_text(encoding="utf-8")
        for trace in ("/home/", "/root/", "/work/", "/tmp/"): assert trace not in text, f"{path.name} holds {trace}"

def test_imports_have_cells_of_their_own():
    "The site's builder runs every cell that imports something: with other code in it, it would run that code alone, and fail."
    for path in ROOT.glob("nbs/**/*.ipynb"):
        if ".ipynb_checkpoints" in path.parts: continue
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
            body = ast.parse("".join(cell["source"])).body if cell["cell_type"] == "code" else []
            imports = [isinstance(node, (ast.Import, ast.ImportFrom)) for node in body]
            assert all(imports) or not any(imports), f"{path.name}, cell {cell['id']}: move its imports into a cell before it"
