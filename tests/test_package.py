"The package as people meet it: version, what an import costs, and the walls between the rooms."
import ast, configparser, importlib, json, subprocess, sys
from pathlib import Path
import pytest
import architecture, vdistill

ROOT = Path(__file__).resolve().parent.parent

LINKS, FILES = architecture.graph(), architecture.modules()
THEORY = {module for module in LINKS if architecture.room_of(module) == "theory"}
IMAGES_AND_SCORES = {f"reid.{name}" for floor in ("images", "networks", "scores")
    for name in architecture.FLOORS["reid"][floor].split()} - {"reid.objective"}
MAY_USE_THEORY = {"reid.models", "reid.identity_losses"}

def test_version_agrees_with_settings():
    settings = configparser.ConfigParser(delimiters=["="])
    settings.read(ROOT/"settings.ini", encoding="utf-8")
    assert vdistill.__version__ == settings["DEFAULT"]["version"]

def test_theory_knows_nothing_of_images():
    for module in THEORY: assert LINKS[module] <= THEORY | {"core"}, module

def test_reid_knows_nothing_of_the_distillation_losses():
    for module in IMAGES_AND_SCORES: assert "distillation" not in LINKS[module], module
    for module in IMAGES_AND_SCORES - MAY_USE_THEORY: assert not LINKS[module] & THEORY, module

def test_nothing_imports_what_only_people_use():
    for module, used in LINKS.items():
        if architecture.room_of(module) != "cli": assert not {m for m in used if m.startswith("cli.")}, module
        assert not used & {f"looking.{name}" for name in ("widgets", "explorers", "atlas", "dashboard")}, module
        assert ("import ipywidgets" in FILES[module].read_text("utf-8")) == (module == "looking.panels"), module

def test_studies_serve_commands_and_pictures_alone():
    for module, used in LINKS.items():
        if architecture.room_of(module) in ("studies", "cli", "looking"): continue
        assert not {m for m in used if m.startswith("studies.")}, module

def test_no_circle(): assert architecture.circle(LINKS) == []

def test_a_circle_is_found():
    "What leads into a ring, and out of it, does not belong to it."
    links = dict(top={"a"}, a={"b"}, b={"a", "low"}, low=set())
    assert architecture.circle(links) == ["a", "b"] and architecture.circle(links | dict(b={"low"})) == []

def test_rooms_are_entered_from_above():
    order = list(architecture.ROOMS)
    upwards = [(a, b) for a, used in LINKS.items() for b in used
        if order.index(architecture.room_of(b)) < order.index(architecture.room_of(a))]
    assert upwards == []

def test_each_test_file_lies_in_the_room_of_its_module():
    names = {module.rpartition(".")[2] for module in LINKS}
    for path in ROOT.glob("tests/**/test_*.py"):
        name, room = path.stem.removeprefix("test_"), path.parent.relative_to(ROOT/"tests").parts
        if name in names: assert ".".join([*room, name]) in LINKS, path

def test_import_loads_nothing_heavy():
    heavy = {"umap", "torchvision", "ipywidgets", "seaborn", "sklearn", "skimage", "numba", "IPython", "fastcore", "nbdev"}
    code = f"import sys, vdistill, vdistill.distillation, vdistill.reid.training, vdistill.cli.main; print(sorted({heavy!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"

@pytest.mark.parametrize("module, names", [
    ("distillation", "vsd_loss vcd_loss vml_loss released_loss VariationalDistillation"),
    ("information", "entropy mutual_information kl_divergence js_divergence"),
    ("bottlenecks", "InformationBottleneck VariationalBottleneck"),
    ("bounds", "cpc ml_cpc nwj dv js smile tuba alpha_floor ceiling"),
    ("estimation", "correlated_gaussian estimate_mi"),
    ("reid.data", "load_dataset"),
    ("reid.evaluation", "retrieval_scores sysu_scores regdb_scores llcm_scores rerank"),
    ("reid.training", "TrainConfig Trainer")])
def test_names_that_others_call(module, names):
    "From their module, and from the top."
    found = importlib.import_module(f"vdistill.{module}")
    for name in names.split(): assert getattr(vdistill, name) is getattr(found, name), name

def test_the_list_of_names():
    "What `dir()` shows, what type checkers see and what is imported with a star are the same names."
    tree = ast.parse((ROOT/"vdistill/__init__.py").read_text(encoding="utf-8"))
    told = {alias.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module != "typing" for alias in node.names}
    assert told == set(vdistill.MODULE_OF) == set(vdistill._all_) and told < set(dir(vdistill))
    with pytest.raises(AttributeError, match="'vdistill' has no attribute 'vsd_los'"): vdistill.vsd_los

def test_no_machine_paths_in_the_project():
    "Stored outputs and texts hold no absolute path of a machine."
    for path in [*ROOT.glob("nbs/**/*.ipynb"), *ROOT.glob("*.md"), *ROOT.glob("vdistill/**/*.py")]:
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

LOOPS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)

def loops_within(node): # how deep comprehensions lie in each other
    return isinstance(node, LOOPS) + max(map(loops_within, ast.iter_child_nodes(node)), default=0)

def is_condition(node):
    if isinstance(node, ast.Call): return getattr(node.func, "id", "") in ("bool", "isinstance", "any", "all", "hasattr")
    return isinstance(node, ast.Compare | ast.UnaryOp) and not isinstance(getattr(node, "op", ast.Not()), ast.USub)

def is_text_or_list(node):
    return isinstance(node, ast.List | ast.Tuple | ast.JoinedStr) or isinstance(getattr(node, "value", None), str)

def riddles(tree):
    "Lines where a condition multiplies a text or a list, or where more than two comprehensions are nested."
    for node in ast.walk(tree):
        product = isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult) and (node.left, node.right)
        if product and any(map(is_condition, product)) and any(map(is_text_or_list, product)): yield node.lineno
        if isinstance(node, LOOPS) and loops_within(node) > 2: yield node.lineno

def test_conditions_say_if():
    "No `'s'*(n > 1)` and no comprehension within a comprehension within a comprehension."
    code = "['s'*(n > 1), [x]*bool(x), 'ab'*3, 2*(n > 1), [0]*n, [[1 for _ in a] for _ in a], [[[1 for _ in a] for _ in a] for _ in a]]"
    assert len(list(riddles(ast.parse(code)))) == 3
    assert [] == [f"{name}, line {n}" for name, file in FILES.items() for n in riddles(ast.parse(file.read_text("utf-8")))]
