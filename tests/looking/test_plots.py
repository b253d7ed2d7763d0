"What was drawn is what was given; inputs stay as they were; empty input is one clear sentence."
import matplotlib
import os
import subprocess
import sys
from pathlib import Path
import numpy as np
import pandas as pd
import pytest
import torch
matplotlib.use("Agg")
import matplotlib.pyplot as plt
from vdistill.looking import pictures as P
from vdistill.looking import plots
from vdistill.core import InputError
from vdistill.reid.evaluation import retrieval_scores

pytestmark = pytest.mark.usefixtures("untouched_settings")


ROOT = str(Path(__file__).resolve().parents[2])


def history(seeds=1, epochs=5):
    rng = np.random.default_rng(0)
    columns = ("vsd", "vcd", "vml", "loss")
    return pd.concat([pd.DataFrame(dict(epoch=range(1, epochs + 1), step=range(epochs), seed=s) | {c: rng.random(epochs) + .1 for c in columns}) for s in range(seeds)], ignore_index=True)


def drawn(figure): figure.canvas.draw(); return figure


def test_kl_curves_are_means_and_ranges_over_seeds():
    table = history(3)
    before = table.copy()
    ax = plots.plot_kl_curves(table.sample(frac=1, random_state=0))   # the order of rows does not matter
    assert [line.get_label().split()[0] for line in ax.lines] == ["VSD", "VCD", "VML"] and ax.get_xlabel() == "epoch" and "nats" in ax.get_ylabel()
    for line, band, term in zip(ax.lines, ax.collections, ("vsd", "vcd", "vml")):
        values = table.pivot(index="epoch", columns="seed", values=term)
        np.testing.assert_allclose(line.get_ydata(), values.mean(axis=1))
        low, high = band.get_paths()[0].get_extents().intervaly
        assert low == pytest.approx(values.min(axis=1).min()) and high == pytest.approx(values.max(axis=1).max())
    pd.testing.assert_frame_equal(table, before)
    assert len({line.get_linestyle() for line in ax.lines}) == 3   # not by colour alone


def test_kl_curves_of_one_seed_have_no_band_and_draw_into_given_axes():
    fig, (left, right) = plt.subplots(1, 2)
    assert plots.plot_kl_curves(history().drop(columns="seed"), ax=right, log=True) is right
    assert not right.collections and right.get_yscale() == "log" and not left.lines
    only = plots.plot_kl_curves(history().assign(vsd=0., vml=np.nan))
    assert [line.get_label().split()[0] for line in only.lines] == ["VCD"]
    assert plots.plot_kl_curves(history(epochs=1)).lines[0].get_marker() == "o"   # one epoch is still seen
    drawn(fig)


@pytest.mark.parametrize("table, message", [(history()[:0], "no row yet"), (history().assign(vsd=0, vcd=0, vml=0), "switched off"), (history().drop(columns="vml"), "no column vml"), (history().drop(columns="epoch"), "no column epoch")])
def test_kl_curves_say_what_is_missing(table, message):
    with pytest.raises(InputError, match=message): plots.plot_kl_curves(table)
    assert not plt.get_fignums()   # no empty figure stays behind


def test_a_history_has_a_panel_a_number():
    table = history(2).assign(triplet=0., **{"val_mAP z": [np.nan, 40., np.nan, np.nan, 60.]*2}, note="x")
    fig = drawn(plots.plot_history(table))
    assert [ax.get_title() for ax in fig.axes] == ["vsd (nats)", "vcd (nats)", "vml (nats)", "loss", "val mAP z (%)"]
    assert fig.axes[-1].lines[0].get_xdata().tolist() == [2, 5]
    assert [ax.get_xlabel() for ax in fig.axes] == ["", "", "epoch", "epoch", "epoch"]
    assert len(plots.plot_history(table, columns=["loss"]).axes) == 1
    for bad in (table[:0], table[["epoch", "step"]]):
        with pytest.raises(InputError): plots.plot_history(bad)


def features(n=40, dim=6): return torch.randn(n, dim, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("backend", ["module://backend_of_another_environment", "webagg", "qtagg"])
def test_figures_for_files_whatever_the_back_end(tmp_path, backend):
    "A kernel hands its own on, to a program whose environment has none of it."
    block = "import sys\nfor name in ('PyQt6', 'PySide6', 'PyQt5', 'PySide2', 'gi', 'tornado', 'tkinter', '_tkinter'): sys.modules[name] = None\n"
    code = block + """
import numpy as np, matplotlib.pyplot as plt
from vdistill.looking.pictures import plot_embedding
from vdistill.looking.plots import plot_cmc
from vdistill.looking.report import save_figure
for figure in (plot_cmc({"z": [.5, 1.]}).figure, plot_embedding(np.random.rand(4, 2), [0, 1, 0, 1])): save_figure(figure, sys.argv[1] + "/x.png")
print(plt.get_backend().lower())
"""
    done = subprocess.run([sys.executable, "-W", "default", "-c", code, str(tmp_path)], env=dict(os.environ, MPLBACKEND=backend, PYTHONPATH=ROOT), capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.strip() == "agg" and (tmp_path/"x.png").read_bytes()[:4] == b"\x89PNG", done.stderr[-2000:]
    assert done.stderr.count("figures go into files only") == 1 or backend == "qtagg" # without a display matplotlib itself takes Agg for that one


def test_a_back_end_that_works_stays():
    "An error of another kind is not the back end's."
    with pytest.raises(ValueError): plots.new_axes(0)
    fig, _ = plots.new_axes(1, 2)
    assert fig in map(plt.figure, plt.get_fignums()) and plt.get_backend().lower() == "agg"


@pytest.mark.parametrize("call, message", [
    (lambda: P.embed_2d(features()[:1]), "at least two"), (lambda: P.embed_2d(features()[0]), "shape"), (lambda: P.embed_2d(features()/0), "40 of 40"), (lambda: P.embed_2d(features(), "tsne"), "'tsne'"),
    (lambda: P.plot_embedding(np.zeros((0, 2)), []), "at least one image"), (lambda: P.plot_embedding(np.zeros((3, 3)), [0, 1, 0]), "needed: \\(images, 2\\)"),
    (lambda: P.plot_embedding(np.zeros((3, 2)), [0, 1]), "each of 3 points"), (lambda: P.plot_embedding(np.zeros((3, 2)), [0, 1, 2]), "0 \\(visible\\)"), (lambda: P.plot_embedding(np.zeros((3, 2)), [0, 1, 1], [1]), "1 identities for 3"),
    (lambda: plots.plot_cmc({}), "no curve"), (lambda: plots.plot_cmc({"z": []}), "no curve"),
    (lambda: plots.plot_results(pd.DataFrame(columns=["method"])), "without the columns"), (lambda: plots.plot_results(results(), metric="mINP"), "metrics there: mAP"),
    (lambda: plots.plot_results(pd.concat([results().assign(dataset="a"), results().assign(dataset="b")])), "dataset: a, b"),
])
def test_bad_input_is_one_clear_sentence(call, message):
    with pytest.raises(InputError, match=message): call()
    assert not plt.get_fignums()


def test_cmc_curves():
    d, ids = torch.rand(30, 30, generator=torch.Generator().manual_seed(0)), torch.arange(30)
    s = retrieval_scores(d, ids, ids)
    ax = plots.plot_cmc({"z": s, "chance": np.arange(1, 31)/30}, top=20)
    np.testing.assert_allclose(ax.lines[0].get_ydata(), 100*s.cmc[:20])
    assert [t.get_text() for t in ax.get_legend().get_texts()] == [f"z ({100*s.rank(1):.1f})", "chance (3.3)"]
    assert ax.lines[1].get_color() == "#888888" and ax.get_xlim() == (1, 20)
    drawn(plots.plot_cmc({"a gallery of one": [1.]}).figure)


def results(seeds=3):
    rows = [dict(method=m, seed=s, feature=f, direction=d, metric="mAP", value=10*i + s + shift) for i, m in enumerate(("baseline", "full")) for f in ("v", "z") for d, shift in (("there", 0), ("back", 50)) for s in range(seeds)]
    return pd.DataFrame(rows + [dict(method="HOG", seed=0, feature="HOG", direction=d, metric="mAP", value=5.) for d in ("there", "back")])


def test_results_show_means_intervals_and_every_seed():
    table = results()
    before = table.copy()
    fig = drawn(plots.plot_results(table))
    there, back = fig.axes
    assert [there.get_title(), back.get_title()] == ["there", "back"] and there.get_xlabel() == "mAP (%)"
    assert [t.get_text() for t in there.get_yticklabels()] == ["baseline", "full", "HOG"] and [t.get_text() for t in fig.legends[0].get_texts()] == ["v", "z"]
    for ax, shift in ((there, 0), (back, 50)):
        assert sorted(round(float(c[0].get_xdata()[0]), 6) for c in ax.containers) == sorted([1. + shift, 1. + shift, 11. + shift, 11. + shift, 5.])
        low, high = ax.get_xlim()
        assert low <= 0 and all(low <= x <= high for c in ax.collections for x in c.get_offsets()[:, 0])   # the first panel must not cut the second
    half = 4.302652729749462/3**.5
    assert there.containers[0][2][0].get_segments()[0][:, 0] == pytest.approx([1 - half, 1 + half])
    pd.testing.assert_frame_equal(table, before)


def test_results_without_references_and_with_one_seed():
    fig = drawn(plots.plot_results(results(), references=False))
    assert [t.get_text() for t in fig.axes[0].get_yticklabels()] == ["baseline", "full"]
    single = drawn(plots.plot_results(results(1)))
    assert not single.axes[0].collections or all(len(c.get_offsets()) == 0 for c in single.axes[0].collections if hasattr(c, "get_offsets") and c.get_label() == "seed")
    with pytest.raises(InputError, match="no result"): plots.plot_results(results().query("feature == method"), references=False)


def test_importing_plots_loads_neither_umap_nor_seaborn():
    code = "import sys, vdistill.looking.pictures, vdistill.looking.plots; print([m for m in ('umap', 'seaborn', 'numba', 'torch') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() in ("[]", "['torch']")


def test_sides_are_where_the_table_says():
    table = pd.DataFrame([dict(method=m, side=s, mean=x, interval=i) for m, s, x, i in (("b", "v", 60., 2.), ("b", "z", 50., np.nan), ("a", "v", 61., 1.))])
    before = table.copy()
    ax = plots.plot_sides(table)
    drawn(ax.figure)
    assert [t.get_text() for t in ax.get_yticklabels()] == ["b", "a"]
    points = {c.get_label(): c.lines[0].get_xydata().tolist() for c in ax.containers}
    assert points == {"observation v": [[60, 0], [61, 1]], "representation z": [[50, 0]]}
    pd.testing.assert_frame_equal(table, before)
    with pytest.raises(InputError, match="one dataset"): plots.plot_sides(pd.concat([table, table]))
    with pytest.raises(InputError, match="interval"): plots.plot_sides(table.drop(columns="interval"))


def test_an_estimate_is_drawn_as_it_was_learned():
    table = pd.DataFrame([dict(seed=s, step=100*k, train=1. + k, validation=.5 + k + s) for s in (0, 1) for k in (1, 2, 3)])
    ax = plots.plot_estimate(table, value=2., ceiling=np.inf, truth=3.)
    lines = {line.get_label(): line.get_ydata() for line in ax.lines if not line.get_label().startswith("_")}
    assert set(lines) == {"seed 0, held out", "seed 1, held out", "estimate 2.00", "truth 3.00"}
    np.testing.assert_allclose(lines["seed 1, held out"], [2.5, 3.5, 4.5])
    with pytest.raises(InputError, match="validation"): plots.plot_estimate(table.drop(columns="validation"))
