"The explorers: what their sliders draw, held against the library's functions and against closed forms."
import base64, io, json
from pathlib import Path
import numpy as np
import pandas as pd
import pytest
import torch
W = pytest.importorskip("ipywidgets")
from matplotlib.figure import Figure
from PIL import Image
from scipy.stats import multivariate_normal
from vdistill import bounds, distillation, information
from vdistill.studies import claims
from vdistill.looking import panels as P
from vdistill.looking import widgets
from vdistill.core import InputError

ROOT = Path(__file__).resolve().parents[2]
CHAPTER = ROOT/"nbs/looking/22_widgets.ipynb"

@pytest.fixture(scope="module")
def history(): return pd.concat([widgets.train_tables(aim=aim, betas=(1., 5.), steps=60, progress=False) for aim in widgets.AIMS])

@pytest.fixture(scope="module")
def values(): return widgets.gaussian_values(truths=(2, 6), batches=(8, 16), alphas=(.01, .1, 1.), pairs=2**12, progress=False)

@pytest.fixture
def panels(history, values): return dict(two=widgets.two_distributions(), table=widgets.bottleneck_table(), plane=widgets.information_plane(history, .66), alpha=widgets.alpha_explorer(values))

def picture(panel): return np.asarray(Image.open(io.BytesIO(panel.image.value)).convert("L")).astype(int)

def other_value(control): # one that it does not have
    if hasattr(control, "options"): return next(v[1] if isinstance(v, tuple) else v for v in control.options if (v[1] if isinstance(v, tuple) else v) != control.value)
    return control.min if control.value != control.min else control.max

# ---------------------------------------------------------------- the panel

@pytest.mark.parametrize("name", ["two", "table", "plane", "alpha"])
def test_every_slider_changes_the_picture(panels, name):
    panel = panels[name]
    assert list(panel.controls) and all(getattr(panel, c) is panel.controls[c] for c in panel.controls)
    for control in panel.controls.values():
        before, said = picture(panel), panel.image.tooltip
        control.value = other_value(control)
        assert (abs(picture(panel) - before) > 60).sum() > 30, control.description
        assert panel.image.tooltip == panel.alt(panel.numbers)

@pytest.mark.parametrize("name", ["two", "table", "plane", "alpha"])
def test_a_redraw_leaves_nothing_behind(panels, name):
    panel = panels[name]
    count = lambda: [len([*ax.lines, *ax.patches, *ax.collections, *ax.texts, *ax.images]) for ax in panel.figure.axes] + [len(panel.figure.legends)]
    before = count()
    for _ in range(3): panel.redraw()
    assert count() == before and sum(before) > 5

@pytest.mark.parametrize("name", ["two", "table", "plane", "alpha"])
def test_all_limits_of_all_sliders(panels, name):
    panel = panels[name]
    for control in panel.controls.values():
        for value in ([control.min, control.max] if hasattr(control, "min") else [o[1] if isinstance(o, tuple) else o for o in control.options]):
            control.value = value
            assert picture(panel).std() > 5 and "nan" not in panel.image.tooltip and "inf" not in panel.image.tooltip

@pytest.mark.parametrize("name", ["two", "table", "plane", "alpha"])
def test_drawing_elsewhere_leaves_the_panel_alone(panels, name):
    panel = panels[name]
    before, said = panel.values, panel.image.value
    control = next(iter(panel.controls))
    sheet = panel.twin([{}, {control: other_value(panel.controls[control])}], columns=2)
    assert len(sheet.subfigs) == 2 and len(sheet.subfigs[0].axes) == len(panel.figure.axes)
    assert sheet._repr_png_()[1:4] == b"PNG" and tuple(sheet.get_size_inches()) == (2*panel.size[0], panel.size[1])
    one, two = panel.frames(control, [panel.controls[control].value, other_value(panel.controls[control])]).values()
    assert one != two and panel.values == before and panel.image.value == said

def test_a_panel_of_ones_own():
    def draw(figure, n):
        ax = figure.subplots(); ax.plot(range(n))
        return dict(sum=sum(range(n)))
    panel = P.Panel(draw, dict(n=W.IntSlider(3, 1, 9)), (3, 2), lambda numbers: f"sum {numbers['sum']}")
    panel.n.value = 5
    assert panel.numbers == dict(sum=10) and panel.image.tooltip == "sum 10" and len(panel.figure.axes) == 1
    assert Image.open(io.BytesIO(panel.image.value)).size == (216, 144)
    assert panel._repr_mimebundle_()["text/plain"] == "sum 10" and "application/vnd.jupyter.widget-view+json" in panel._repr_mimebundle_()
    with pytest.raises(InputError, match="no control m; there are n"): panel.draw(Figure(), m=1)

def test_png_leaves_the_figure_as_it_is():
    figure = Figure((2, 1), dpi=100, facecolor="white")
    figure.subplots().plot([0, 1], color="#0072B2", lw=9)
    canvas, small, large = figure.canvas, P.png(figure), P.png(figure, dpi=144)
    assert figure.dpi == 100 and figure.canvas is canvas
    assert Image.open(io.BytesIO(small)).size == (144, 72) and Image.open(io.BytesIO(large)).size == (288, 144)
    pixels = np.asarray(Image.open(io.BytesIO(small)).convert("RGB")).reshape(-1, 3).astype(int)
    assert (pixels[0] == 255).all() and abs(pixels - [0, 0x72, 0xB2]).sum(1).min() <= 6 # white is white, blue is blue

def test_flipbook_is_linked_in_the_front_end(panels, monkeypatch):
    links = []
    monkeypatch.setattr(P.W, "jslink", lambda *ends: links.append(ends))
    frames = panels["two"].frames("q1", [-1., 0., 1.])
    slider, stack = P.flipbook(frames, "q1").children
    assert links == [((slider, "index"), (stack, "selected_index"))]
    assert [image.value for image in stack.children] == list(frames.values()) and slider.options == ("-1.0", "0.0", "1.0") and stack.selected_index == 0
    assert P.flipbook({"a": Figure((1, 1))}).children[1].children[0].value[1:4] == b"PNG"
    with pytest.raises(InputError, match="at least one picture"): P.flipbook({})

# ---------------------------------------------------------------- two distributions

def test_two_distributions_against_the_library():
    panel = widgets.two_distributions([1., 0., -1., .5], [0., 0., 0., 0.])
    panel.q2.value, panel.p1.value = 1.5, 2.
    p, q = torch.tensor([[2., 0., -1., .5]]).double(), torch.tensor([[0., 1.5, 0., 0.]]).double().requires_grad_()
    for name, loss in {"KL[p‖q]": information.kl_divergence(p, q), "KL[q‖p]": information.kl_divergence(q, p), "JS[p‖q]": information.js_divergence(p, q), "released": distillation.released_loss(p, q)}.items():
        assert np.isclose(panel.numbers["nats"][name], float(loss.detach()), atol=1e-12)
        assert np.allclose(panel.numbers["gradients"][name], torch.autograd.grad(loss, q)[0][0], atol=1e-12)
    assert np.allclose(panel.numbers["gradients"]["KL[p‖q]"], panel.numbers["q"] - panel.numbers["p"]) # closed form

def test_equal_logits():
    panel = widgets.two_distributions([2., 0., -1.], [0., 0., 0.])
    panel.q1.value, panel.q3.value = 2., -1.
    n = panel.numbers
    p = np.exp([2, 0, -1])/np.exp([2, 0, -1]).sum()
    inner = np.log(p) - p
    assert np.allclose(n["gradients"]["released"], p*(inner - p @ inner)/3) and abs(n["gradients"]["released"]).max() > .01
    for name in ("KL[p‖q]", "KL[q‖p]", "JS[p‖q]"): assert abs(n["nats"][name]) < 1e-12 and abs(n["gradients"][name]).max() < 1e-12

def test_best_student_of_the_released_loss():
    p = np.array([3., 0., -2.])
    best = widgets.compare_logits(p, np.zeros(3))["least"]
    at_best = widgets.compare_logits(p, np.log(best))
    assert abs(at_best["gradients"]["released"]).max() < 1e-12
    for step in np.eye(3): assert widgets.compare_logits(p, np.log(best) + .1*step)["nats"]["released"] > at_best["nats"]["released"]

@pytest.mark.parametrize("p, q, says", [([1, 2], [1, 2, 3], "same classes"), ([1, np.inf], [1, 2], "p_logits holds NaN or infinite"), ([[1, 2]], [1, 2], r"p_logits has shape \(1, 2\)"), (np.zeros(7), np.zeros(7), "2 to 6")])
def test_bad_logits(p, q, says):
    with pytest.raises(InputError, match=says) as e: widgets.two_distributions(p, q)
    assert "\n" not in str(e.value)

def test_large_logits_of_ones_own(): assert widgets.two_distributions(torch.tensor([20., 0.]), torch.tensor([0., -3.])).p1.max == 20

# ---------------------------------------------------------------- the bottleneck's table

JOINT = np.array([[.2, .1, .05, .05], [.05, .1, .15, .3]])

def test_table_against_exact_tables():
    panel = widgets.bottleneck_table(JOINT*1000) # counts will do
    panel.noise.value, panel.compression.value = .2, .4
    seen = .8*np.eye(4) + .05
    guess = (JOINT @ seen).argmax(0)
    to = np.eye(4)[[list(guess).index(g) for g in guess]]
    table = information.extend(information.extend(information.Table(JOINT, "y x"), "v", "x", seen), "z", "v", .6*np.eye(4) + .4*to)
    I, H, n = lambda *a, **k: information.mutual_information(table, *a, **k), information.entropy, panel.numbers["nats"]
    expected = {"I(z;y)": I("z", "y"), "I(v;y|z)": I("v", "y", given="z"), "I(v;z|y)": I("v", "z", given="y"), "H(v|y,z)": H(table, "v", given=["y", "z"]), "I(v;y)": I("v", "y"), "I(v;z)": I("v", "z"), "H(y|v)": H(table, "y", given="v"), "H(z|v)": H(table, "z", given="v")} | {f"H({a})": H(table, a) for a in "yvz"}
    assert n == pytest.approx(expected, abs=1e-12) and n["I(v;y|z)"] > .001
    diagram = next(ax for ax in panel.figure.axes if ax.get_xlabel() == "nats")
    rows = {a: [(bar.get_x(), bar.get_width()) for bar in diagram.patches if round(bar.get_y() + bar.get_height()/2) == row] for row, a in enumerate("yvz", 1)}
    for a, bars in rows.items(): assert sum(width for _, width in bars) == pytest.approx(n[f"H({a})"]) # each row is its entropy
    shared = lambda a, b: sum(max(0, min(x + w, u + v) - max(x, u)) for x, w in rows[a] for u, v in rows[b])
    assert (shared("v", "y"), shared("v", "z"), shared("z", "y")) == pytest.approx((n["I(v;y)"], n["I(v;z)"], n["I(z;y)"])) # and what lies above each other is shared

def test_every_claim_gets_its_verdict():
    panel = widgets.bottleneck_table(JOINT)
    v = panel.numbers["verdicts"]
    assert list(v.index) == list(claims.CLAIMS) and set(v.verdict) <= set(widgets.MARKS)
    one, two = widgets.bottleneck_systems(JOINT, panel.noise.value, panel.compression.value)
    for name in ("(5)", "Theorem 1", "averaged predictions"): assert v.gap[name] == float(claims.CLAIMS[name].gap(one))
    for name in ("(14)", "(15)", "(17), its DML term"): assert v.gap[name] == float(claims.CLAIMS[name].gap(two)) and v.verdict[name] == "fails"
    assert (v.verdict[["(4)", "(5)", "(6)", "Theorem 1", "Corollary 1, as an equation", "(15), in general"]] == "holds").all()
    assert v.verdict["Theorem 2"] == "not asked" # noisy views are not sufficient

def test_verdicts_move_with_the_sliders():
    panel = widgets.bottleneck_table()
    fails = lambda **values: set((v := panel.draw(P.Sheet(panel.size), **values)["verdicts"]).index[v.verdict == "fails"])
    assert fails(noise=0, compression=0) == {"Theorem 2, converse", "against MIB, irrelevant but shared"}
    assert {"(14)", "(15)", "(15) equals (8)"} < fails(noise=.02, compression=0) and not {"(4)", "(5)", "(6)"} & fails(noise=.02, compression=0)
    assert fails(noise=1, compression=1) == set()

def test_ends_of_the_table():
    panel = widgets.bottleneck_table(JOINT)
    panel.noise.value, panel.compression.value = 0, 0
    n = panel.numbers["nats"]
    assert n["I(v;z)"] == pytest.approx(n["H(v)"]) and n["I(z;y)"] == pytest.approx(information.mutual_information(JOINT, 0, 1))
    panel.noise.value = 1
    assert panel.numbers["nats"]["I(v;y)"] == pytest.approx(0, abs=1e-12) and panel.numbers["nats"]["H(v)"] == pytest.approx(np.log(4))
    assert "seed" in widgets.bottleneck_table().controls and "seed" not in panel.controls

@pytest.mark.parametrize("joint, says", [([[1, 0], [1, 0]], "no empty row or column"), ([[1, -1], [1, 1]], "0 or more"), (np.ones((2, 9)), "2 to 8"), ([[1, np.nan], [1, 1]], "NaN"), (np.ones(4), "shape")])
def test_bad_tables(joint, says):
    with pytest.raises(InputError, match=says) as e: widgets.bottleneck_table(joint)
    assert "\n" not in str(e.value)

# ---------------------------------------------------------------- the information plane

def test_trained_tables_obey_the_inequalities(history):
    limit = information.mutual_information(widgets.ring(), 0, 1)
    assert (history["I(z;y)"] <= history["I(v;z)"] + 1e-12).all() and (history["I(z;y)"] <= limit + 1e-12).all() and (history["I(v;z)"] <= np.log(12) + 1e-12).all()

def test_first_step_is_the_start(history):
    first = history[(history.step == 0) & (history.start == "knows everything")]
    g = widgets.generator("plane", seed=0)
    noise = torch.randn(2, 12, 12, generator=g, dtype=torch.float64)[1]
    z = (8*torch.eye(12, dtype=torch.float64) + .3*noise).softmax(1).numpy()
    table = information.extend(information.Table(widgets.ring(), "y v"), "z", "v", z)
    assert np.allclose(first["I(v;z)"], information.mutual_information(table, "v", "z")) and np.allclose(first["I(z;y)"], information.mutual_information(table, "z", "y"))

def test_what_training_does():
    ends = lambda **options: (h := widgets.train_tables(steps=200, progress=False, **options))[h.step == 200].set_index(["start", "beta"])
    bottleneck = ends(betas=(1., 4.))
    assert (bottleneck.xs(1., level="beta")["I(v;z)"] < 1e-3).all() and (bottleneck.xs(4., level="beta")["I(z;y)"] > .5).all()
    distillation = ends(aim="distillation", betas=(0., 10.))
    assert np.allclose(distillation.xs(0., level="beta")[["I(v;z)", "I(z;y)"]], distillation.xs(10., level="beta")[["I(v;z)", "I(z;y)"]], atol=1e-4) # β changes nothing
    assert distillation["I(v;z)"].min() > 2 # and nothing is compressed

def test_plane_shows_the_rows_of_its_history(history):
    panel = widgets.information_plane(history, .66)
    panel.aim.value, panel.beta.value, panel.step.value = "distillation", 1., 10
    row = history[(history.aim == "distillation") & (history.beta == 1) & (history.step == 10) & (history.start == "knows nothing")].iloc[0]
    assert panel.numbers.loc["knows nothing", "step"] == 10
    for name in ("I(v;z)", "I(z;y)"): assert panel.numbers.loc["knows nothing", name] == row[name]

def test_a_history_of_ones_own():
    own = pd.DataFrame({"aim": "mine", "start": "seed 0", "beta": [1., 1., 2.], "step": [0, 5, 0], "I(v;z)": [.1, .5, .3], "I(z;y)": [.05, .2, .1]})
    panel = widgets.information_plane(own)
    panel.beta.value = 1.
    assert panel.numbers.loc["seed 0"].to_dict() == {"step": 5, "I(v;z)": .5, "I(z;y)": .2}
    panel.step.value = 0
    assert panel.numbers.loc["seed 0", "I(v;z)"] == .1

@pytest.mark.parametrize("call, says", [(lambda: widgets.information_plane(pd.DataFrame({"beta": [1.]})), "without the columns aim"), (lambda: widgets.information_plane(widgets.train_tables(steps=1, progress=False)[:0]), "no row"),
    (lambda: widgets.train_tables(aim="both"), "no aim 'both': choose one of bottleneck, distillation"), (lambda: widgets.train_tables([[1, 0], [1, 0]]), "no empty row")])
def test_bad_histories(call, says):
    with pytest.raises(InputError, match=says): call()

# ---------------------------------------------------------------- α

def test_ratio_of_gaussians():
    I, dim = 1.2, 2
    rho = np.sqrt(1 - np.exp(-2*I/dim))
    x, y = (v.double().numpy() for v in widgets.correlated_gaussian(I, dim).draw(6, widgets.generator("α", 6, seed=0)))
    joint = multivariate_normal(np.zeros(4), np.block([[np.eye(2), rho*np.eye(2)], [rho*np.eye(2), np.eye(2)]]))
    slow = [[joint.logpdf(np.r_[a, b]) - multivariate_normal(np.zeros(2)).logpdf(a) - multivariate_normal(np.zeros(2)).logpdf(b) for b in y] for a in x]
    assert np.allclose(widgets.gaussian_ratios(I, 6, 1, dim)[0], slow, atol=1e-4)

def test_values_against_the_bound(values):
    panel = widgets.alpha_explorer(values)
    panel.truth.value, panel.batch.value, panel.alpha.value = 6, 16, .1
    ratios = widgets.gaussian_ratios(6, 16, 2**12//16**2)
    direct = torch.stack([bounds.ml_cpc(bounds.optimal_critic(r, epsilon=.1/16), alpha=.1) for r in ratios])
    n = panel.numbers
    assert n["mean"] == pytest.approx(float(direct.mean()), abs=1e-4) and n["sd"] == pytest.approx(float(direct.std()), abs=1e-4)
    assert n["bias"] == pytest.approx(n["mean"] - 6) and n["ceiling"] == bounds.ceiling(16, .1) and n["floor"] == bounds.alpha_floor(16, 16)
    assert (values["mean"] <= values.ceiling).all()

def test_scores_of_ones_own():
    flat = widgets.score_values(np.ones((20, 20)), truth=0., batches=(8, 16, 32), draws=3)
    assert np.allclose(flat["mean"], 0, atol=1e-5) and sorted(flat.batch.unique()) == [8, 16] # a critic that knows nothing: 0, at every α
    scores = torch.randn(16, 16, generator=widgets.generator("test"), dtype=torch.float64)
    all_of_them = widgets.score_values(scores, batches=(16,), alphas=(.2, 1.), draws=2)
    assert np.allclose(all_of_them["mean"], bounds.ml_cpc(scores, alpha=(.2, 1.)))
    panel = widgets.alpha_explorer(widgets.score_values(scores, batches=(8, 16), draws=4)) # no truth, so no bias
    panel.alpha.value = .01
    assert list(panel.controls) == ["batch", "alpha"] and panel.numbers["alpha"] == .01

@pytest.mark.parametrize("call, says", [(lambda: widgets.score_values(np.zeros((20, 10))), "score of every x with every y"), (lambda: widgets.score_values(np.zeros(9)), "shape"), (lambda: widgets.score_values(np.full((9, 9), np.nan)), "NaN"),
    (lambda: widgets.alpha_explorer(pd.DataFrame(dict(alpha=[1.]))), "without the columns truth, batch"), (lambda: widgets.alpha_explorer(widgets.score_values(np.zeros((9, 9)))[:0]), "no row")])
def test_bad_scores(call, says):
    with pytest.raises(InputError, match=says) as e: call()
    assert "\n" not in str(e.value)

# ---------------------------------------------------------------- the chapter, and the wall

def chapter(): return json.loads(CHAPTER.read_text(encoding="utf-8"))

def test_each_widget_of_the_chapter_has_its_static_twin_and_its_flipbook():
    cells = [("".join(c["source"]), c.get("outputs", [])) for c in chapter()["cells"] if c["cell_type"] == "code" and not "".join(c["source"]).startswith("#| export")]
    for made, name in (("two_distributions()", "two"), ("bottleneck_table()", "table"), ("information_plane(", "plane"), ("alpha_explorer(", "alpha")):
        assert any(f"{name} = {made}" in s and s.endswith(f"\n{name}") and "application/vnd.jupyter.widget-view+json" in json.dumps(o) for s, o in cells), name
        twin = [(s, o) for s, o in cells if f"{name}.twin(" in s]
        assert len(twin) == 1 and "#| fig-alt:" in twin[0][0]
        assert Image.open(io.BytesIO(base64.b64decode(twin[0][1][0]["data"]["image/png"]))).size[0] >= 700
        assert sum(f"flipbook({name}.frames(" in s for s, _ in cells) == 1

def test_the_chapter_stores_what_it_shows():
    notebook = chapter()
    state = notebook["metadata"]["widgets"]["application/vnd.jupyter.widget-state+json"]["state"]
    shown = [o["data"]["application/vnd.jupyter.widget-view+json"]["model_id"] for c in notebook["cells"] for o in c.get("outputs", []) if "application/vnd.jupyter.widget-view+json" in o.get("data", {})]
    assert len(shown) == 8 and set(shown) <= set(state) # four panels, four flipbooks
    for link in (m["state"] for m in state.values() if m["model_name"] == "LinkModel"):
        (slider, index), (stack, selected) = ((state[end.removeprefix("IPY_MODEL_")], trait) for end, trait in (link["source"], link["target"]))
        assert (slider["model_name"], index, stack["model_name"], selected) == ("SelectionSliderModel", "index", "StackModel", "selected_index")
        assert len(slider["state"]["_options_labels"]) == len(stack["state"]["children"])
    assert CHAPTER.stat().st_size < 1_000_000

