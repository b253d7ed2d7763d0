"What is shown is what the evaluator ranks, and what is drawn follows the controls."
import io
import numpy as np
import pandas as pd
import pytest
from invented import noise
from matplotlib.colors import to_rgb
from PIL import Image
from vdistill.looking import dashboard as D
from vdistill.looking import explorers as X
from vdistill.looking import report
from vdistill.core import InputError
from vdistill.reid.evaluation import evaluate
from vdistill.looking.plots import RIGHT, WRONG
from vdistill.reid.reranking import rerank
from vdistill.reid.retrieval import pairwise_distances


@pytest.fixture(scope="module")
def explorer(runs): return X.RetrievalExplorer.of_runs(runs[0], runs[1], queries=5, depth=6)


def pictures(n, seed=0): return np.random.default_rng(seed).integers(0, 256, (n, 3, 64, 32), dtype=np.uint8)


def drawn(explorer): return np.asarray(Image.open(io.BytesIO(explorer.image.value)).convert("RGB"))


def small(features, ids, **options):
    "An explorer of arrays: queries first."
    q = len(features[0])
    return X.RetrievalExplorer({"a": features}, (pictures(q), pictures(len(features[1]), 1)), (ids[:q], ids[q:]), **options)


def test_every_list_is_ranked_as_the_evaluator_ranks_it(runs, explorer):
    folders, dataset = runs
    embeds = {name: X.load_run(folder)[0] for name, folder in folders.items()}
    assert list(explorer.ranked[False]) == ["baseline · v shared", "full · v shared", "full · z shared"]
    for name, (d, scores) in explorer.ranked[False].items():
        method, feature = name.split(" · ")
        rows = {(r["feature"], r["direction"], r["metric"]): r["value"] for r in evaluate(dataset, embeds[method], seed=3)}
        for metric, value in scores.percent().items(): assert value == pytest.approx(rows[feature, "infrared→visible", metric], abs=1e-9)
    infrared, visible = (np.flatnonzero((dataset.records.split == "test") & (dataset.records.modality == m)) for m in (1, 0))
    a, b = (report.features_of(dataset, embeds["full"], rows)["z shared"] for rows in (infrared, visible))
    for again, d in {False: pairwise_distances(a, b), True: rerank(a, b)}.items():
        for _, q in explorer.query.options:
            table = explorer.ranking("full · z shared", q, again)
            np.testing.assert_allclose(explorer.ranked[again]["full · z shared"][0][q], d[q], atol=1e-6)
            np.testing.assert_array_equal(table.distance, np.sort(explorer.ranked[again]["full · z shared"][0][q])[:6])
            np.testing.assert_array_equal(table.identity, dataset.records.identity.to_numpy()[visible][table.gallery])


def test_what_is_shown_follows_the_query_and_re_ranking(explorer):
    first, second = (q for _, q in explorer.query.options[:2])
    explorer.query.value, explorer.rerank.value = first, False
    before, table = explorer.image.value, explorer.numbers
    explorer.query.value = second
    assert explorer.image.value != before and not explorer.numbers.equals(table) and explorer.stack.selected_index == 1
    np.testing.assert_array_equal(explorer.numbers.distance, np.concatenate([explorer.ranking(name, second).distance for name in explorer.ranked[False]]))
    plain = explorer.image.value
    explorer.rerank.value = True
    assert explorer.image.value != plain and explorer.stack.children[0].value == b""   # the others are out of date
    np.testing.assert_array_equal(explorer.numbers.distance, np.concatenate([explorer.ranking(name, second, True).distance for name in explorer.ranked[True]]))
    explorer.query.value = first
    assert explorer.stack.children[0].value == explorer.image.value != b""
    explorer.rerank.value = False
    assert explorer.image.value == before and "first" in explorer.words


def test_every_button_has_its_picture_from_the_start(runs):
    fresh = X.RetrievalExplorer.of_runs({"full": runs[0]["full"]}, runs[1], queries=3, depth=4)
    values = [image.value for image in fresh.stack.children]
    assert len(set(values)) == 3
    for (_, q), value in zip(fresh.query.options, values):
        fresh.query.value = q
        assert fresh.image.value == value


def test_frames_tell_right_from_wrong_by_colour_line_and_sign():
    one, other = np.eye(2, dtype=np.float32)
    e = small((one[None], np.stack([one, other])), np.array([7, 7, 8]), queries=1)
    assert list(e.numbers.right) == [True, False] and list(e.numbers.distance) == [0, 1]
    (w, h), picture = e.cell, np.asarray(e.paint(0)[0].picture)
    for k, (colour, solid) in enumerate(((RIGHT, True), (WRONG, False))):
        x = X.LEFT + 3 + k*(w + 16)
        edge = picture[25, x:x + w]/255   # the frame's upper edge
        coloured = np.isclose(edge, to_rgb(colour), atol=.01).all(1)
        assert coloured.all() == solid and coloured.mean() > .5, (k, coloured.mean())
        sign = picture[27 + h - 12:27 + h, x + w - 12:x + w]/255
        assert np.isclose(sign, to_rgb(colour), atol=.01).all(2).any() and (sign > .9).all(2).any()


def test_the_strip_says_how_many_lists_are_right():
    one, other = np.eye(2, dtype=np.float32)
    features = {name: (one[None], np.stack([one, other])) for name in ("good", "too")} | {"bad": (one[None], np.stack([other, one]))}
    e = X.RetrievalExplorer(features, (pictures(1), pictures(2)), (np.array([7]), np.array([7, 8])))
    assert "'2 of 3'" in e.marks.value and e.query.tooltips[0].startswith("query 0: person 7")


def test_factors_that_differ_are_named():
    asked = pd.DataFrame(dict(hair=["long"], bag=["none"], height=["tall"]))
    found = pd.DataFrame(dict(hair=["long", "cap", "long"], bag=["none", "none", "none"], height=["tall", "short", "tall"]))
    x = np.eye(3, dtype=np.float32)
    e = small((x[:1] + .1*x[1:2], x), np.array([1, 1, 2, 3]), factors=(asked, found))
    differs = dict(zip(e.numbers.identity, e.numbers.differs))
    assert differs == {1: [], 2: ["hair", "height"], 3: []}
    under = {row.identity: X._under(row, True) for row in e.numbers.itertuples()}
    assert under == {1: [], 2: ["hair", "height"], 3: ["twin"]}
    with pytest.raises(InputError, match="factors of 2 gallery images for 3"): small((x[:1], x), np.array([1, 1, 2, 3]), factors=(asked, found[:2]))


def test_mistakes_are_counted_as_a_loop_counts_them(explorer):
    table, (asked, found), (q_ids, g_ids) = explorer.mistakes(), explorer.factors, explorer.identity
    d = explorer.ranked[False]["full · v shared"][0]
    wrong = [(q, d[q].argmin()) for q in range(len(d)) if g_ids[d[q].argmin()] != q_ids[q]]
    anybody = [(q, g) for q in range(len(d)) for g in range(d.shape[1]) if g_ids[g] != q_ids[q]]
    for factor in ("hair", "upper_cut"):
        share = lambda pairs: 100*np.mean([asked[factor].iloc[q] != found[factor].iloc[g] for q, g in pairs])
        assert table.loc[factor.replace("_", " "), "full · v shared"] == pytest.approx(share(wrong))
        assert table.loc[factor.replace("_", " "), "anybody else"] == pytest.approx(share(anybody))


def test_pairs_that_do_not_count_are_not_shown():
    x = np.eye(3, dtype=np.float32)
    e = small((x[:1], x), np.array([1, 5, 1, 2]), exclude=np.array([[True, False, False]]))
    assert list(e.numbers.gallery) == [1, 2] and e.ranked[False]["a"][1].first_rank[0] == 2   # a tie counts against it


def test_own_arrays_of_any_shape_and_chosen_queries():
    square = np.random.default_rng(0).integers(0, 256, (4, 3, 40, 40), dtype=np.uint8)
    e = X.RetrievalExplorer({"a": (noise(4, 5), noise(4, 5, seed=1))}, (square, square), (np.arange(4), np.arange(4)), queries=[3, 1], depth=99)
    assert [q for _, q in e.query.options] == [3, 1] and len(e.numbers) == 4 and drawn(e).shape[2] == 3
    with pytest.raises(InputError, match="no factors"): e.mistakes()


@pytest.mark.parametrize("change, words", [
    (dict(features={}), "no features"), (dict(features={"a": (noise(3, 5), noise(7, 5))}), "a: features of 3 query images for 4"), (dict(features={"a": (noise(4, 5), noise(6, 5))}), "a: features of 6 gallery images for 7"),
    (dict(features={"a": (noise(4, 5), noise(7, 6))}), "dimensions"), (dict(features={"a": (noise(4, 5)*np.nan, noise(7, 5))}), "NaN"),
    (dict(images=(pictures(4), pictures(6))), "6 gallery images for 7"), (dict(images=(pictures(4)/255, pictures(7))), "uint8"), (dict(queries=[4]), "0 to 3"), (dict(queries=[]), "0 to 3"), (dict(queries=[-1]), "0 to 3")])
def test_what_does_not_belong_together_is_one_sentence(change, words):
    given = dict(features={"a": (noise(4, 5), noise(7, 5))}, images=(pictures(4), pictures(7)), identity=(np.arange(4), np.arange(7))) | change
    with pytest.raises(InputError, match=words) as e: X.RetrievalExplorer(**given)
    assert "\n" not in str(e.value)


def test_a_folder_that_holds_no_run(tmp_path):
    for call in (lambda: X.RetrievalExplorer.of_runs({"a": tmp_path/"none"}), lambda: D.Dashboard(tmp_path/"none"), lambda: X.RetrievalExplorer.of_runs({})):
        with pytest.raises(InputError) as e: call()
        assert "\n" not in str(e.value) and ("config.yaml" in str(e.value) or "no run" in str(e.value))
