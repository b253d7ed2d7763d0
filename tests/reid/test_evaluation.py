"Scores against a slow oracle on random, tied and degenerate rankings; protocols, rows and baselines."
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score

from vdistill.core import InputError
from vdistill.reid.data import load_dataset
from vdistill.reid.records import Protocol
from vdistill.reid.evaluation import (COLUMNS, DIRECTIONS, ProtocolScores, chance_scores, evaluate, gallery_draws, hog_features, mean_over_draws, official_scores, paired_differences,
                                 pairwise_distances, pixel_features, protocol_text, results_frame, retrieval_scores, run_columns, score_features, summarize)

exact = dict(atol=1e-12, rtol=0)
fuzz = settings(deadline=None, derandomize=True, max_examples=150)


def slow_query(row, query, gallery, dropped, cmc):
    "First rank, AP and INP of one query by explicit lists; None without a match."
    items = sorted((d, g == query, g) for d, g, out in zip(row, gallery, dropped) if not out)
    right = [r for _, r, _ in items]
    if not any(right): return None
    names = [g for _, _, g in items]
    if cmc == "identity": names = list(dict.fromkeys(names))
    steps, before = 0., 0
    for threshold in sorted({d for d, _, _ in items}):
        taken = [r for d, r, _ in items if d <= threshold]
        steps, before = steps + (sum(taken) - before) * sum(taken) / len(taken), sum(taken)
    last = max(k for k, r in enumerate(right, 1) if r)
    return names.index(query) + 1, steps / sum(right), sum(right) / last


@st.composite
def problems(draw):
    q, g = draw(st.integers(1, 6)), draw(st.integers(1, 12))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    levels = draw(st.sampled_from([1, 2, 3, 10, 10**6]))   # 1: all distances equal
    d = rng.integers(0, levels, (q, g)) / levels - draw(st.sampled_from([0., .5]))
    drop = rng.random((q, g)) < draw(st.sampled_from([0., .3, .9]))
    people = draw(st.integers(1, 5))
    return d, rng.integers(0, people, q), rng.integers(0, people, g), drop, draw(st.sampled_from(["image", "identity"]))


@fuzz
@given(problems())
def test_scores_are_those_of_the_loop(problem):
    d, q, g, drop, cmc = problem
    slow = [slow_query(*one, cmc) for one in zip(d, q, np.tile(g, (len(q), 1)), drop)]
    if not any(slow):
        with pytest.raises(InputError, match="has a match that counts"): retrieval_scores(d, q, g, exclude=drop, cmc=cmc)
        return
    s = retrieval_scores(d, q, g, exclude=drop, cmc=cmc)
    first, ap, inp = zip(*filter(None, slow))
    assert s.valid_queries == len(first)
    assert s.first_rank.tolist() == [x[0] if x else 0 for x in slow]
    assert np.isnan(s.average_precision).tolist() == [x is None for x in slow]
    np.testing.assert_allclose([s.mean_ap, s.mean_inp], [np.mean(ap), np.mean(inp)], **exact)
    np.testing.assert_allclose(s.cmc, [np.mean(np.array(first) <= k) for k in range(1, len(s.cmc) + 1)], **exact)
    assert len(s.cmc) == (len(g) if cmc == "image" else len(set(g))) and s.cmc[-1] == 1 and s.rank(10**6) == 1


@fuzz
@given(problems(), st.randoms(use_true_random=False))
def test_no_number_depends_on_the_order_of_gallery_or_queries(problem, random):
    d, q, g, drop, cmc = problem
    if not ((q[:, None] == g) & ~drop).any(): return
    rows, columns = (random.sample(range(n), n) for n in d.shape)
    a = retrieval_scores(d, q, g, exclude=drop, cmc=cmc)
    b = retrieval_scores(d[rows][:, columns], q[rows], g[columns], exclude=drop[rows][:, columns], cmc=cmc)
    np.testing.assert_allclose(a.cmc, b.cmc, **exact)
    np.testing.assert_array_equal(a.average_precision[rows], b.average_precision)
    np.testing.assert_array_equal(a.inverse_negative_penalty[rows], b.inverse_negative_penalty)
    np.testing.assert_array_equal(a.first_rank[rows], b.first_rank)


@fuzz
@given(problems())
def test_average_precision_is_scikit_learns(problem):
    d, q, g, drop, _ = problem
    if not ((q[:, None] == g) & ~drop).any(): return
    ours = retrieval_scores(d, q, g, exclude=drop).average_precision
    for ap, row, query, out in zip(ours, d, q, drop):
        if not np.isnan(ap): assert ap == pytest.approx(average_precision_score(g[~out] == query, -row[~out]), abs=1e-12)


@fuzz
@given(problems())
def test_excluding_is_deleting_and_relations_between_scores_hold(problem):
    d, q, g, drop, cmc = problem
    keep = ~drop[0]
    if not (g[keep] == q[0]).any(): return
    a = retrieval_scores(d[:1], q[:1], g, exclude=drop[:1], cmc=cmc)
    b = retrieval_scores(d[:1, keep], q[:1], g[keep], cmc=cmc)
    assert (a.mean_ap, a.mean_inp, a.first_rank[0]) == (b.mean_ap, b.mean_inp, b.first_rank[0])
    image, identity = (retrieval_scores(d[:1], q[:1], g, exclude=drop[:1], cmc=rule) for rule in ("image", "identity"))
    assert identity.first_rank[0] <= image.first_rank[0] and identity.rank(1) == image.rank(1)
    assert 0 < a.mean_inp <= 1 and 0 < a.mean_ap <= 1


@pytest.mark.parametrize("ids", [np.array([3, 1, 2]), torch.tensor([3, 1, 2]), [3, 1, 2], np.array(["c", "a", "b"]), pd.Series(["c", "a", "b"]), np.array(["c", "a", "b"], object),
                                 np.array([-5, 2**40, 0]), np.array([3, 1, 2], np.uint8)])
def test_identities_of_every_sensible_type(ids):
    s = retrieval_scores(1 - np.eye(3), ids, ids)
    assert s.cmc.tolist() == [1, 1, 1] and s.mean_ap == s.mean_inp == 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int64])
def test_every_number_type_ranks_alike_and_nothing_is_changed(dtype):
    d = torch.randint(0, 8, (20, 30), generator=torch.Generator().manual_seed(0)).to(dtype)
    before, q, g = d.clone(), np.arange(20) % 5, np.arange(30) % 5
    drop = d == 3
    s = retrieval_scores(d, q, g, exclude=drop)
    assert s.mean_ap == retrieval_scores(d.double(), q, g, exclude=drop).mean_ap
    assert torch.equal(d, before) and torch.equal(drop, before == 3)


def test_blocks_of_queries_give_what_one_block_gives():
    rng = np.random.default_rng(0)
    d, q, g = rng.integers(0, 50, (300, 30_000)).astype(np.float32), rng.integers(0, 40, 300), rng.integers(0, 40, 30_000)   # 139 queries a block
    whole, parts = retrieval_scores(d, q, g), [retrieval_scores(d[i:i+1], q[i:i+1], g) for i in (0, 138, 139, 299)]
    assert [whole.average_precision[i] for i in (0, 138, 139, 299)] == [p.mean_ap for p in parts]
    assert whole.valid_queries == 300


def test_ties_by_hand():
    d, ids = np.zeros((1, 4)), [1, 2, 3, 1]
    s = retrieval_scores(d, [1], ids)
    assert (s.first_rank[0], s.mean_ap, s.mean_inp) == (3, .5, .5)
    assert retrieval_scores(d, [1], ids, cmc="identity").first_rank[0] == 3
    nearly = np.nextafter(np.float32(1), 2)   # one step of float32 apart is no tie
    assert retrieval_scores(np.array([[1, nearly]], np.float32), [1], [1, 2]).rank(1) == 1
    assert retrieval_scores(np.array([[0., -0.]]), [1], [1, 2]).rank(1) == 0   # the two zeros are one distance


def test_infinity_is_allowed_where_it_does_not_count():
    d = np.array([[np.nan, .2, .3]])
    assert retrieval_scores(d, [1], [1, 1, 2], exclude=np.isnan(d)).rank(1) == 1
    with pytest.raises(InputError, match="1 of 3 distances are NaN or infinite, the first for query 0"): retrieval_scores(d, [1], [1, 1, 2])


@pytest.mark.parametrize("change, message", [
    (dict(distances=np.zeros(3)), "shape"), (dict(distances=np.zeros((2, 0)), gallery_ids=[]), "gallery of 0"), (dict(distances=np.zeros((0, 3)), query_ids=[]), "0 queries"),
    (dict(query_ids=[1, 2, 3]), "query_ids holds 3"), (dict(gallery_ids=[[1, 2, 3]]), "one identity an image"), (dict(gallery_ids=[1., 2., 3.]), "float64"),
    (dict(gallery_ids=np.array([1, "a", None], object)), "object"), (dict(gallery_ids=["a", "b", "c"]), "never match"), (dict(query_ids=[8, 9]), "none of the 2 queries"),
    (dict(exclude=np.zeros((3, 2), bool)), "exclude"), (dict(exclude=np.zeros((2, 3))), "needed: bool"), (dict(cmc="id"), "'id'"), (dict(exclude=np.ones((2, 3), bool)), "none of the 2"),
    (dict(distances=np.array([[np.inf, 1, 1], [1, 1, 1]])), "NaN or infinite"),
])
def test_bad_input_is_one_clear_sentence(change, message):
    arguments = dict(distances=np.ones((2, 3)), query_ids=[1, 2], gallery_ids=[1, 2, 3]) | change
    with pytest.raises(InputError, match=message) as error: retrieval_scores(arguments.pop("distances"), arguments.pop("query_ids"), arguments.pop("gallery_ids"), **arguments)
    assert "\n" not in str(error.value)


@fuzz
@given(st.integers(1, 7), st.data())
def test_chance_is_the_mean_over_all_orders(n, data):
    from itertools import combinations
    m = data.draw(st.integers(1, n))
    gallery = np.array([1]*m + [0]*(n - m))
    chance = chance_scores([1], gallery)
    places = list(combinations(range(n), m))   # every order, up to those that look alike
    all_orders = [retrieval_scores(np.arange(n)[None], [1], [int(i in at) for i in range(n)]) for at in places]
    np.testing.assert_allclose(chance.cmc, np.mean([s.cmc for s in all_orders], axis=0), **exact)
    assert chance.mean_ap == pytest.approx(np.mean([s.mean_ap for s in all_orders]), abs=1e-12)
    assert chance.mean_inp == pytest.approx(np.mean([s.mean_inp for s in all_orders]), abs=1e-12)


def test_chance_of_large_galleries_and_of_queries_without_a_match():
    s = chance_scores([0, 1, 99], np.repeat(np.arange(1000), 30))
    assert s.valid_queries == 3 and np.isfinite(s.cmc).all() and 0 < s.mean_inp < s.mean_ap < .01
    assert chance_scores([0, 7777], [0, 1]).valid_queries == 1
    with pytest.raises(InputError, match="none of the 1"): chance_scores([5], [0])
    with pytest.raises(InputError, match="gallery of 0"): chance_scores([5], [])


def test_distances():
    a, b = torch.randn(5, 7, dtype=torch.float64), torch.randn(4, 7, dtype=torch.float64)
    torch.testing.assert_close(pairwise_distances(a, b), torch.stack([1 - torch.nn.functional.cosine_similarity(x[None], b) for x in a]))
    torch.testing.assert_close(pairwise_distances(a, b, "euclidean"), torch.stack([(x - b).norm(dim=1) for x in a]))
    assert pairwise_distances(a.half(), b.half()).dtype == torch.float32
    assert pairwise_distances(torch.zeros(1, 7), torch.ones(1, 7)).item() == 1   # a zero feature has no direction
    for bad, message in ((lambda: pairwise_distances(a, b[:, :6]), "7 and of 6"), (lambda: pairwise_distances(a[:0], b), "shape"), (lambda: pairwise_distances(a, b*torch.nan), "28 values"),
                         (lambda: pairwise_distances(a, b, "cos"), "'cos'")):
        with pytest.raises(InputError, match=message): bad()


def table(identities=6, visible=3, infrared=2):
    parts = [pd.DataFrame(dict(identity=i, modality=[0]*visible + [1]*infrared)) for i in range(identities)]
    return pd.concat([*parts, pd.DataFrame(dict(identity=[90, 91], modality=[0, 1]))], ignore_index=True).sample(frac=1, random_state=0, ignore_index=True)


@fuzz
@given(st.sampled_from([None, 1, 4, 6, 50]), st.sampled_from([None, 1, 2, 3, 9]), st.integers(1, 3), st.integers(0, 5))
def test_draws_follow_the_protocol(identities, shots, draws, seed):
    records = table()
    indices = np.arange(len(records))[::-1]
    result = gallery_draws(records, indices, Protocol(identities, shots, draws), seed)
    assert len(result) == draws
    for sides in result:
        for code, (side, there) in enumerate(zip(sides, (3, 2))):
            assert (records.modality[side] == code).all() and len(set(side)) == len(side)
            counts = records.identity[side].value_counts()
            assert len(counts) == min(identities or 6, 6) and (counts == min(shots or 9, there)).all() and counts.index.max() < 6   # 90 and 91 lack a modality
        assert set(records.identity[sides[0]]) == set(records.identity[sides[1]])
    for a, b in zip(result, gallery_draws(records, np.arange(len(records))[::-1], Protocol(identities, shots, draws + 2), seed)):
        assert all(np.array_equal(x, y) for x, y in zip(a, b))


def test_draws_stay_in_their_split_and_differ():
    records = table(40)
    split = np.flatnonzero(records.identity < 20)
    (a, b), (c, d) = gallery_draws(records, split, Protocol(10, 1, 2))
    assert set(a) | set(b) | set(c) | set(d) <= set(split) and not np.array_equal(a, c)
    assert not np.array_equal(a, gallery_draws(records, split, Protocol(10, 1, 2), seed=1)[0][0])
    with pytest.raises(InputError, match="none of 2 identities has images in both"): gallery_draws(records, np.flatnonzero(records.identity >= 90), Protocol())


def test_the_protocol_text_says_what_was_followed():
    records, everything = table(), np.arange(32)
    for protocol in (Protocol(), Protocol(6, 2, 3), Protocol(4, 1)): assert protocol_text(records, everything, protocol) == str(protocol)
    assert protocol_text(records, everything, Protocol(300, 1, 3)) == f"{Protocol(300, 1, 3)} (only 6 identities there)"
    assert "only 6 identities there, some with only 2 images" in protocol_text(records, everything, Protocol(300, 3, 3))


def test_directions_are_query_to_gallery():
    visible, infrared = torch.randn(6, 8), torch.randn(4, 8)
    v_ids, i_ids = [0, 0, 0, 1, 1, 2], [0, 1, 1, 3]
    drop = torch.zeros(6, 4, dtype=torch.bool)
    drop[0, 0] = drop[3, 2] = True
    rows = score_features({"z": (visible, infrared)}, v_ids, i_ids, exclude=drop)
    d = pairwise_distances(visible, infrared)
    expected = {DIRECTIONS[0]: retrieval_scores(d.T, i_ids, v_ids, exclude=drop.T), DIRECTIONS[1]: retrieval_scores(d, v_ids, i_ids, exclude=drop)}
    assert [r["metric"] for r in rows[:5]] == ["rank-1", "rank-5", "rank-10", "mAP", "mINP"]
    for r in rows: assert r["value"] == pytest.approx(expected[r["direction"]].percent()[r["metric"]], abs=1e-4)
    assert DIRECTIONS[0].startswith("infrared")


class Patches:
    "A data set of 12 identities whose images carry their identity in the first pixel; views differ by draw."
    def __init__(self):
        self.records = pd.DataFrame(dict(identity=np.repeat(np.arange(12), 4), modality=np.tile([0, 0, 1, 1], 12), split="test"))
        self.protocol, self.seen = Protocol(8, 1, 2), []
    def indices(self, split): return np.flatnonzero(self.records.split == split)
    def images(self, indices, draw=0):
        self.seen.append((draw, len(indices)))
        out = torch.zeros(len(indices), 3, 8, 8, dtype=torch.uint8)
        out[:, 0, 0, 0], out[:, 1, 0, 0] = torch.from_numpy(self.records.identity.to_numpy()[indices]), draw
        return out


def test_evaluate_reads_each_draw_in_batches_and_averages():
    patches = Patches()
    def extract(images, modality):
        one_hot = torch.nn.functional.one_hot(images[:, 0, 0, 0].long(), 12).float()
        return {"right": one_hot, "right in draw 0": one_hot if images[0, 1, 0, 0] == 0 else torch.ones_like(one_hot)}
    rows = pd.DataFrame(evaluate(patches, extract, batch_size=3)).set_index(["feature", "direction", "metric"]).value
    assert len(rows) == 20 and (rows["right"] == 100).all()
    assert rows["right in draw 0", DIRECTIONS[0], "rank-1"] == 50   # 100 and, collapsed, 0
    assert {draw for draw, _ in patches.seen} == {0, 1} and max(n for _, n in patches.seen) <= 3


def test_mean_over_draws_keeps_the_order():
    rows = [dict(feature="z", direction="b", metric="mAP", value=1.), dict(feature="a", direction="a", metric="mAP", value=3.)]
    assert mean_over_draws([rows, [dict(r, value=r["value"] + 2) for r in rows]]) == [dict(r, value=r["value"] + 1) for r in rows]


def tidy(seeds=3, methods=("a", "b")):
    rows = [dict(feature="z", direction=d, metric="mAP", method=m, seed=s, value=10*s + k) for k, m in enumerate(methods) for d in DIRECTIONS for s in range(seeds)]
    return results_frame(rows, dataset="x", split="test", protocol="p", seconds=1., **run_columns())


def test_summaries():
    results = tidy()
    before = results.copy()
    s = summarize(results)
    assert len(s) == 4 and (s.seeds == 3).all() and s["mean"].tolist() == [10, 10, 11, 11]
    np.testing.assert_allclose(s.interval, 4.302652729749462 * 10 / 3**.5)
    difference = paired_differences(results, "b", "a")
    assert difference["mean"].tolist() == [1, 1] and (difference.interval == 0).all() and (difference.method == "b - a").all()
    assert summarize(tidy(1)).interval.isna().all()
    unequal = results[~((results.method == "b") & (results.seed == 2))]
    assert (paired_differences(unequal, "b", "a").seeds == 2).all()
    pd.testing.assert_frame_equal(results, before)
    for bad, message in ((lambda: summarize(pd.concat([results, results])), "occur twice"), (lambda: summarize(results.drop(columns="seed")), "seed"), (lambda: summarize(results[:0]), "empty"),
                         (lambda: paired_differences(results, "b", "c"), "methods there: a, b")):
        with pytest.raises(InputError, match=message): bad()


def test_results_carry_all_columns():
    assert list(tidy().columns) == list(COLUMNS)
    columns = run_columns(torch.device("cpu"))
    assert columns["device"] == "cpu" and torch.__version__ in columns["versions"] and isinstance(columns["commit"], str)
    with pytest.raises(InputError, match="seed, split"): results_frame([dict(value=1)], dataset="x", method="y")


def test_the_commit_is_that_of_the_package_and_not_of_the_folder_one_works_in(tmp_path):
    code = "import sys; sys.path.insert(0, sys.argv[1]); from vdistill.reid.evaluation import run_columns; import vdistill; print(vdistill.__file__); print('commit', run_columns()['commit'])"
    import shutil
    import vdistill
    inside = tmp_path/"site"
    shutil.copytree(vdistill.__path__[0], inside/"vdistill", ignore=shutil.ignore_patterns("__pycache__"))
    subprocess.run("git init -q . && git -c user.name=a -c user.email=a@b commit -q --allow-empty -m x", shell=True, cwd=tmp_path, check=True)
    out = subprocess.run([sys.executable, "-c", code, str(inside)], cwd=tmp_path, capture_output=True, text=True, check=True).stdout.split("\n")
    assert out[0].startswith(str(inside)) and out[1] == "commit "   # a copy inside somebody's checkout, as a virtual environment is


def test_handcrafted_features(monkeypatch):
    images = torch.randint(0, 256, (3, 3, 64, 64), dtype=torch.uint8)
    before = images.clone()
    pixels, hog = pixel_features(images), hog_features(images)
    assert pixels.shape == (3, 64*64) and hog.shape == (3, 7*7*4*9) and torch.equal(images, before)
    torch.testing.assert_close(pixels.mean(1), torch.zeros(3), atol=1e-5, rtol=0)
    assert torch.isfinite(pixel_features(torch.zeros(1, 3, 8, 8, dtype=torch.uint8))).all()   # a black image
    for bad in (images.float(), images[:, :1], images[0]):
        with pytest.raises(InputError, match="needed: uint8"): pixel_features(bad)
    with pytest.raises(InputError, match="smaller than one HOG block"): hog_features(images[..., :12])
    monkeypatch.setitem(sys.modules, "skimage.feature", None)
    with pytest.raises(InputError, match=r"pip install vdistill\[baselines\]"): hog_features(images)


@pytest.mark.parametrize("kind", ["sysu", "regdb", "llcm"])
def test_official_scores_are_computed_where_the_features_are_made(monkeypatch, kind):
    asked = []
    def scores(*args, device=None, **options):
        asked.append(device)
        return {} if kind != "sysu" else ProtocolScores("", "", "", 1, ())
    monkeypatch.setattr(f"vdistill.reid.evaluation.{kind}_scores", scores)
    records = pd.DataFrame(dict(identity=[1, 1], camera=[1, 3], modality=[0, 1]))
    dataset = SimpleNamespace(published=kind, records=records, permutations={}, images=lambda rows, draw: torch.zeros(len(rows), 3, 4, 4), query_gallery=lambda query: (np.array([1]), np.array([0])))
    extract = lambda images, modality: dict(x=images.flatten(1))
    official_scores(dataset, extract)
    extract.device = torch.device("cpu")
    official_scores(dataset, extract)
    half = len(asked)//2
    assert asked == [None]*half + [torch.device("cpu")]*half and half


@pytest.mark.pairs
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_hog_on_real_pairs_lies_where_it_was_measured(pairs_dir):
    "Far above chance (0.3) and pixels (4), far below certainty: the views are jittered."
    dataset = load_dataset(f"pairs:{pairs_dir}")
    rows = pd.DataFrame(evaluate(dataset, lambda x, modality: {"HOG": hog_features(x), "pixels": pixel_features(x)}, protocol=Protocol(100, 1, 1)))
    rank_1 = rows[rows.metric == "rank-1"].set_index(["feature", "direction"]).value
    assert (rank_1["HOG"] > 25).all() and (rank_1["HOG"] < 75).all() and (rank_1["pixels"] < 20).all()


@pytest.mark.cuda
def test_scores_on_a_cuda_device():
    if not torch.cuda.is_available(): pytest.skip("no CUDA device")
    d = torch.randint(0, 9, (50, 400), generator=torch.Generator().manual_seed(0)).float()
    q, g = torch.arange(50) % 7, torch.arange(400) % 9
    a, b = retrieval_scores(d, q, g), retrieval_scores(d.cuda(), q.cuda(), g.cuda())
    np.testing.assert_allclose([a.mean_ap, a.mean_inp, *a.cmc], [b.mean_ap, b.mean_inp, *b.cmc], **exact)
