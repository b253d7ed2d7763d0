"The protocols of SYSU-MM01, RegDB and LLCM against slow definitions, at the published sizes, and with every kind of bad input."
import random

import numpy as np
import pytest
import torch
import architecture
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import auc, average_precision_score, precision_recall_curve

from vdistill.reid import evaluation
from vdistill.core import InputError
from vdistill.reid.evaluation import DIRECTIONS, ProtocolScores, RetrievalScores, llcm_scores, pairwise_distances, regdb_scores, results_frame, retrieval_scores, run_columns, sysu_scores
from vdistill.reid.protocols import _device, camera_groups, evaluation_ratios, loop_scores, sysu_galleries
from vdistill.reid.retrieval import _count_within

exact = dict(atol=1e-12, rtol=0)
fuzz = settings(deadline=None, derandomize=True, max_examples=60)
LOCATION = {1: 1, 2: 2, 3: 2, 4: 4, 5: 5, 6: 6}


# --- slow definitions, float64, one query after the other

def slow_distance(a, b): return 1 - sum(float(x)*float(y) for x, y in zip(a, b)) / (sum(float(x)**2 for x in a)*sum(float(y)**2 for y in b))**.5


def slow_query(distances, names, identity, cmc, ap):
    "First rank, AP, INP of one query; None without a match. Among equal distances wrong comes first for ranks; AP takes them together."
    items = sorted(zip(distances, [n == identity for n in names], names))
    right = [r for _, r, _ in items]
    if not any(right): return None
    listed = [n for _, _, n in items]
    if cmc == "identity": listed = list(dict.fromkeys(listed))
    area, recall, precision = 0., 0., 1.
    for level in sorted(set(distances)):
        taken = [r for d, r, _ in items if d <= level]
        new_recall, new_precision = sum(taken)/sum(right), sum(taken)/len(taken)
        area += (new_recall - recall) * (new_precision if ap == "rectangle" else (precision + new_precision)/2)
        recall, precision = new_recall, new_precision
    return listed.index(identity) + 1, area, sum(right)/max(k for k, r in enumerate(right, 1) if r)


def slow_trial(distance, q_ids, g_ids, rows, allowed, cmc, ap):
    "(rank-1, rank-5, mAP, mINP, valid queries) of one gallery."
    found = []
    for q, identity in enumerate(q_ids):
        kept = [g for g in rows if allowed(q, g)]
        found.append(slow_query([distance[q][g] for g in kept], [g_ids[g] for g in kept], identity, cmc, ap) if kept else None)
    first, aps, inps = zip(*filter(None, found))
    return [np.mean([r <= 1 for r in first]), np.mean([r <= 5 for r in first]), np.mean(aps), np.mean(inps), len(first)]


def numbers(trial): return [trial.rank(1), trial.rank(5), trial.mean_ap, trial.mean_inp, trial.valid_queries]


def slow_sysu_gallery(ids, cameras, perms, allowed, shots, trial):
    gallery = []
    for i in sorted(set(ids)):
        for c in allowed:
            images = [r for r in range(len(ids)) if ids[r] == i and cameras[r] == c]   # in file order
            gallery += [images[p] for p in list(perms[c, i][trial])[:shots]] if images else []
    return gallery


def small_sysu(seed, people=8, most=5, tied=False, strings=False):
    "Both sides and permutations; who was seen where and how often is random. Tied: distances are 0, 1 and 2, without rounding."
    rng = np.random.default_rng(seed)
    draw = (lambda n: np.eye(4)[rng.integers(0, 4, n)]*rng.choice([-1., 1.], (n, 1))) if tied else (lambda n: rng.normal(size=(n, 6)))
    sides, perms = [], {}
    for cameras in ((3, 6), (1, 2, 4, 5)):
        seen = [(i, c, rng.integers(1, most + 1)) for i in range(people) for c in cameras if rng.random() < .7 or c in (6, 1)]
        ids, cams = (np.array([s[k] for s in seen for _ in range(s[2])]) for k in (0, 1))
        mixed = rng.permutation(len(ids))   # rows of an identity and camera need not lie together
        ids, cams = ids[mixed], cams[mixed]
        sides += [draw(len(ids)), ids.astype(str) if strings else ids + 100, cams]
        if 1 in cameras: perms = {(c, str(i) if strings else i + 100): np.stack([rng.permutation(n) for _ in range(10)]).astype(np.uint8) for i, c, n in seen}
    return *sides, perms


# --- SYSU-MM01

@fuzz
@given(st.integers(0, 2**20), st.sampled_from(["all", "indoor"]), st.sampled_from([1, 2, 10]), st.sampled_from(["identity", "image"]), st.sampled_from(["rectangle", "trapezoid"]), st.booleans(), st.booleans())
def test_sysu_is_the_definition(seed, mode, shots, cmc, ap, tied, strings):
    q, q_ids, q_cams, g, g_ids, g_cams, perms = small_sysu(seed, tied=tied, strings=strings)
    allowed = {"all": (1, 2, 4, 5), "indoor": (1, 2)}[mode]
    scores = sysu_scores(q, q_ids, q_cams, g, g_ids, g_cams, perms, mode=mode, shots=shots, trials=2, cmc=cmc, ap=ap)
    distance = [[slow_distance(a, b) for b in g] for a in q]
    for trial, ours in enumerate(scores.trials):
        rows = slow_sysu_gallery(g_ids.tolist(), g_cams.tolist(), perms, allowed, shots, trial)
        slow = slow_trial(distance, q_ids.tolist(), g_ids.tolist(), rows, lambda a, b: LOCATION[q_cams[a]] != LOCATION[g_cams[b]], cmc, ap)
        np.testing.assert_allclose(numbers(ours), slow, **exact)
    assert scores.queries == len(q_ids)
    np.testing.assert_allclose(scores.mean.mean_ap, np.mean([t.mean_ap for t in scores.trials]), **exact)


@fuzz
@given(st.integers(0, 2**20), st.booleans())
def test_order_of_queries_and_of_groups_has_no_say(seed, tied):
    q, q_ids, q_cams, g, g_ids, g_cams, perms = small_sysu(seed, tied=tied)
    rng = np.random.default_rng(seed)
    p = rng.permutation(len(q_ids))
    o = np.lexsort((np.arange(len(g_ids)), rng.permutation(700)[g_ids], g_cams))   # groups elsewhere, order within a group kept
    a = sysu_scores(q, q_ids, q_cams, g, g_ids, g_cams, perms, trials=3)
    b = sysu_scores(q[p], q_ids[p], q_cams[p], g[o], g_ids[o], g_cams[o], perms, trials=3)
    np.testing.assert_allclose(numbers(a.mean), numbers(b.mean), **exact)


def test_ten_shots_hold_the_one_shot_gallery_and_trials_differ():
    _, _, _, _, ids, cams, perms = small_sysu(3, people=20)
    one, two = (sysu_galleries(ids, cams, perms, shots=shots) for shots in (1, 2))
    assert len(one) == 10 and all(set(a) <= set(b) for a, b in zip(one, two)) and len({tuple(g) for g in one}) == 10
    for rows in one:
        keys = list(zip(ids[rows], cams[rows]))
        assert len(set(keys)) == len(keys) and set(keys) == set(zip(ids, cams)) and keys == sorted(keys)
    assert set(cams[sysu_galleries(ids, cams, perms, mode="indoor")[0]]) == {1, 2}


def test_camera_2_is_hidden_from_camera_3_and_only_from_it():
    "A query's only near match hangs in its own room."
    eye = np.eye(4)
    g, g_ids, g_cams = eye[[0, 1, 2]], np.array([1, 1, 2]), np.array([2, 1, 1])
    perms = {(c, i): np.zeros((10, 1), int) for c, i in ((2, 1), (1, 1), (1, 2))}
    def first(camera, **kw): return sysu_scores(eye[[0]] + .1*eye[[2]], [1], [camera], g, g_ids, g_cams, perms, **kw).trials[0].first_rank[0]
    assert first(6) == 1 and first(3) == 2   # from camera 3 only the far match at camera 1 is left, behind identity 2
    hidden = sysu_scores(eye[[0, 0]], [1, 2], [3, 3], eye[[0, 3]], [1, 2], [2, 1], {(2, 1): [[0]]*10, (1, 2): [[0]]*10})
    assert hidden.valid_queries == (1,)*10 and hidden.queries == 2 and "1 of 2 queries" in hidden.card() and "leave every mean" in hidden.card()


@pytest.fixture(scope="module")
def layout(protocol_dir):
    "Identities and cameras of the true test set, and its permutations."
    from scipy.io import loadmat
    cells, ids = loadmat(protocol_dir / "rand_perm_cam.mat")["rand_perm_cam"], sorted(loadmat(protocol_dir / "test_id.mat")["id"].ravel().tolist())
    perms = {}
    for camera in range(1, 7):
        table = cells[camera - 1][0].squeeze()
        perms |= {(camera, i): table[i - 1].astype(int) - 1 for i in ids if i <= len(table) and table[i - 1].size}
    side = lambda cameras: np.array([(i, c) for i in ids for c in cameras if (c, i) in perms for _ in range(perms[c, i].shape[1])]).T
    return *side((3, 6)), *side((1, 2, 4, 5)), perms


@pytest.mark.parametrize("mode, shots, images, people, valid", [("all", 1, 301, 96, 3803), ("all", 10, 3010, 96, 3803), ("indoor", 1, 112, 56, 2208), ("indoor", 10, 1120, 56, 2208)])
def test_published_sizes(layout, mode, shots, images, people, valid):
    q_ids, q_cams, g_ids, g_cams, perms = layout
    rng = np.random.default_rng(0)
    centre = rng.normal(size=(600, 8))
    scores = sysu_scores(centre[q_ids] + rng.normal(size=(len(q_ids), 8)), q_ids, q_cams, centre[g_ids] + rng.normal(size=(len(g_ids), 8)), g_ids, g_cams, perms, mode=mode, shots=shots, trials=2)
    assert scores.queries == 3803 and scores.valid_queries == (valid, valid)
    galleries = sysu_galleries(g_ids, g_cams, perms, mode=mode, shots=shots)
    assert {len(g) for g in galleries} == {images} and len(galleries) == 10 and len(np.unique(g_ids[galleries[0]])) == people
    assert f"gallery of {images:,} images of {people} identities" in scores.protocol and f"{valid:,} of 3,803 queries" in scores.card()


def test_the_published_draw_by_hand(layout):
    "The table counts from 1; the first identity's images in the first trial, straight from it."
    *_, g_ids, g_cams, perms = layout
    first = sysu_galleries(g_ids, g_cams, perms, trials=1)[0]
    identity = g_ids.min()
    expected = [np.flatnonzero((g_ids == identity) & (g_cams == c))[perms[c, identity][0][0]] for c in (1, 2, 4, 5) if (c, identity) in perms]
    assert first[:len(expected)].tolist() == expected


def test_agw_draws_like_its_code(layout):
    "random.seed(trial), then random.choice for identities in order and cameras in order, on lists of file names."
    *_, g_ids, g_cams, perms = layout
    for trial, rows in enumerate(sysu_galleries(g_ids, g_cams, None, draw="agw")):
        random.seed(trial)
        names = []
        for i in sorted(set(g_ids.tolist())):
            for c in (1, 2, 4, 5):
                files = sorted(f"cam{c}/{i:04d}/{k:04d}.jpg" for k in range(1, 1 + ((g_ids == i) & (g_cams == c)).sum()))
                if files: names.append(random.choice(files))
        position = [int((np.flatnonzero((g_ids == g_ids[r]) & (g_cams == g_cams[r])) == r).argmax()) + 1 for r in rows]
        assert [f"cam{c}/{i:04d}/{k:04d}.jpg" for c, i, k in zip(g_cams[rows], g_ids[rows], position)] == names
    random.seed(0)
    before = random.getstate()
    sysu_galleries(g_ids, g_cams, None, draw="agw")
    assert random.getstate() == before   # the program's own stream is left alone


# --- RegDB and LLCM

def regdb_trial(seed, people=6, images=3):
    rng = np.random.default_rng(seed)
    centre, ids = rng.normal(size=(people, 5)), np.arange(people).repeat(images)
    return centre[ids] + rng.normal(size=(len(ids), 5)), ids, centre[ids] + rng.normal(size=(len(ids), 5)), rng.permutation(ids)


@fuzz
@given(st.integers(0, 2**20), st.integers(1, 3), st.sampled_from(["identity", "image"]), st.sampled_from(["rectangle", "trapezoid"]))
def test_regdb_is_the_definition(seed, trials, cmc, ap):
    data = [regdb_trial(seed + k) for k in range(trials)]
    scores = regdb_scores(iter(data), cmc=cmc, ap=ap)
    assert list(scores) == list(DIRECTIONS) and all(len(s.trials) == trials and s.queries == 18 for s in scores.values())
    for k, (v, v_ids, i, i_ids) in enumerate(data):
        for direction, a, a_ids, b, b_ids in ((DIRECTIONS[0], i, i_ids, v, v_ids), (DIRECTIONS[1], v, v_ids, i, i_ids)):
            distance = [[slow_distance(x, y) for y in b] for x in a]
            np.testing.assert_allclose(numbers(scores[direction].trials[k]), slow_trial(distance, a_ids, b_ids, range(len(b)), lambda q, g: True, cmc, ap), **exact)
            assert f"gallery of all 18 images of 6 identities" in scores[direction].protocol
    assert ("one trial" in scores[DIRECTIONS[0]].protocol) == (trials == 1)


def llcm_side(rng, people, cameras, n):
    seen = [(i, c) for i in range(people) for c in cameras if rng.random() < .6 or c == 1 + i % 2]
    ids, cams = np.repeat(seen, n, axis=0).T
    return rng.normal(size=(people, 5))[ids] + rng.normal(size=(len(ids), 5)), ids, cams


@fuzz
@given(st.integers(0, 2**20), st.sampled_from(["identity", "image"]))
def test_llcm_is_the_definition(seed, cmc):
    rng = np.random.default_rng(seed)
    sides = {"visible": llcm_side(rng, 6, (1, 2, 3, 4), 3), "infrared": llcm_side(rng, 6, (1, 2, 4), 2)}
    scores = llcm_scores(*sides["visible"], *sides["infrared"], trials=2, cmc=cmc)
    for direction, result in scores.items():
        (a, a_ids, a_cams), (b, b_ids, b_cams) = (sides[name] for name in direction.split("→"))
        distance = [[slow_distance(x, y) for y in b] for x in a]
        for trial, ours in enumerate(result.trials):
            stream, rows = random.Random(trial), []
            for i, c in sorted(set(zip(b_ids.tolist(), b_cams.tolist()))):
                rows.append(stream.choice([r for r in range(len(b)) if (b_ids[r], b_cams[r]) == (i, c)]))
            slow = slow_trial(distance, a_ids, b_ids, rows, lambda q, g: (a_ids[q], a_cams[q]) != (b_ids[g], b_cams[g]), cmc, "rectangle")
            np.testing.assert_allclose(numbers(ours), slow, **exact)
        assert result.queries == len(a)


# --- conventions and counting

@st.composite
def rankings(draw):
    q, g = draw(st.integers(1, 6)), draw(st.integers(1, 14))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    levels = draw(st.sampled_from([1, 2, 4, 10**6]))
    d = rng.integers(0, levels, (q, g))/levels - draw(st.sampled_from([0., .5]))
    return d.astype(draw(st.sampled_from([np.float32, np.float64]))), rng.integers(0, 3, q), rng.integers(0, 3, g), rng.random((q, g)) < draw(st.sampled_from([0., .4]))


@settings(fuzz, max_examples=150)
@given(rankings())
def test_both_areas_are_scikit_learns(problem):
    d, q, g, drop = problem
    if not ((q[:, None] == g) & ~drop).any(): return
    both = [retrieval_scores(d, q, g, exclude=drop, ap=ap).average_precision for ap in ("rectangle", "trapezoid")]
    for rectangle, trapezoid, row, query, out in zip(*both, d, q, drop):
        if np.isnan(rectangle): assert np.isnan(trapezoid); continue
        precision, recall, _ = precision_recall_curve(g[~out] == query, -row[~out])
        assert rectangle == pytest.approx(average_precision_score(g[~out] == query, -row[~out]), abs=1e-12)
        assert trapezoid == pytest.approx(auc(recall, precision), abs=1e-12)


@settings(fuzz, max_examples=100)
@given(st.integers(1, 40), st.integers(1, 5000), st.integers(1, 5), st.integers(0, 2**20), st.sampled_from([np.float32, np.float64]))
def test_three_ways_to_count(rows, columns, limits, seed, dtype):
    rng = np.random.default_rng(seed)
    d, limit = (torch.from_numpy(rng.integers(-3, 4, (rows, n)).astype(dtype)) for n in (columns, limits))
    limit[0, 0], d[-1, -1] = torch.inf, torch.inf
    expected = (d[:, None] <= limit[:, :, None]).sum(2)
    assert torch.equal(_count_within(d, limit), expected) and torch.equal(_count_within(d, limit, most=0), expected)


def test_many_matches_and_wide_galleries():
    "Over a hundred matches take the sort, more than 2,040 columns several words' sums, and both say what the slow loop says."
    rng = np.random.default_rng(0)
    d, q, g = rng.integers(0, 90, (6, 5000)).astype(np.float32), np.arange(6) % 3, np.where(np.arange(5000) % 20, 9, rng.integers(0, 3, 5000))
    for matches, ids in ((g, 3), (np.where(g == 9, 9, g), 2)):
        s = retrieval_scores(d, q, matches, cmc="identity")
        slow = [slow_query(row.tolist(), matches.tolist(), identity, "identity", "rectangle") for row, identity in zip(d, q)]
        np.testing.assert_allclose(np.transpose([s.first_rank, s.average_precision, s.inverse_negative_penalty]), slow, **exact)


def test_the_loop_of_the_benchmark_and_the_counts_agree():
    table = evaluation_ratios(small=True)
    assert list(table.what) == ["SYSU-MM01, 10 trials", "RegDB", "Market-1501", "re-ranking"] and (table.ratio > 0).all() # how fast is for the benchmark to say
    d, q, g = np.array([[.1, .2, .3]]), np.array([1]), np.array([2, 1, 1])
    curve, ap, inp = loop_scores(d, q, g)
    assert curve[:3].tolist() == [0, 1, 1] and ap == pytest.approx((1/2 + 2/3)/2) and inp == pytest.approx(2/3)
    assert loop_scores(d, q, g, np.array([[True, False, False]]))[1] == 1


# --- results

def test_a_result_is_rows_with_the_whole_protocol_and_a_card():
    scores = sysu_scores(*small_sysu(1), mode="indoor", shots=2, trials=3)
    rows = scores.rows("z")
    assert [r["metric"] for r in rows] == ["rank-1", "rank-5", "rank-10", "mAP", "mINP"] and all(r["protocol"] == scores.protocol for r in rows)
    for word in ("indoor-search", "2 shots", "cameras 1, 2", "mean of 3 trials", "official", "camera 3 do not see camera 2", "CMC over identities", "AP over images by rectangles", "cosine"):
        assert word in scores.protocol and word in scores.card(), word
    assert "re-ranked" not in scores.protocol
    table = results_frame(rows, method="m", seed=0, split="test", seconds=1., **run_columns())
    assert {"queries", "valid_queries", "trials", "spread"} <= set(table) and (table.value == [r["value"] for r in rows]).all()
    assert rows[3]["value"] == pytest.approx(100*np.mean([t.mean_ap for t in scores.trials])) and rows[3]["spread"] == pytest.approx(100*np.std([t.mean_ap for t in scores.trials], ddof=1))
    single = sysu_scores(*small_sysu(1), trials=1)
    assert "one trial" in single.protocol and "±" not in single.card() and np.isnan(single.rows()[0]["spread"])


def test_every_rule_is_in_the_words():
    data = small_sysu(2)
    for change, words in ((dict(cmc="image"), "CMC over images"), (dict(ap="trapezoid"), "by trapezoids"), (dict(metric="euclidean"), "euclidean distance"), (dict(draw="agw"), "AGW's draws"),
                          (dict(reranking=(5, 2, .1)), "re-ranked by k-reciprocal neighbours with k1 = 5, k2 = 2, lambda = 0.1"), (dict(shots=50), "fewer images where there are fewer")):
        assert words in sysu_scores(*data, trials=2, **change).protocol


def test_a_reranked_number_is_that_of_reranked_distances():
    q, q_ids, q_cams, g, g_ids, g_cams, perms = small_sysu(4)
    ours = sysu_scores(q, q_ids, q_cams, g, g_ids, g_cams, perms, trials=2, reranking=(4, 2, .3))
    for rows, trial in zip(sysu_galleries(g_ids, g_cams, perms, trials=2), ours.trials):
        out = (q_cams[:, None] == 3) & (g_cams[rows] == 2)
        by_hand = retrieval_scores(evaluation.rerank(torch.from_numpy(q), torch.from_numpy(g[rows]), 4, 2, .3), q_ids, g_ids[rows], exclude=out, cmc="identity")
        assert numbers(trial) == numbers(by_hand)


def test_trials_of_unequal_length_average():
    one, two = (RetrievalScores(np.array(c), .5, .5, n) for c, n in (([.5, 1.], 3), ([.25, .5, 1.], 2)))
    s = ProtocolScores("x", "a→b", "p", 4, (one, two))
    assert s.mean.cmc.tolist() == [.375, .75, 1.] and s.mean.valid_queries == 2 and "2 to 3 of 4 queries" in s.card()


def test_the_names_are_in_evaluation():
    names = {"sysu_scores", "regdb_scores", "llcm_scores", "retrieval_scores", "rerank", "pairwise_distances", "chance_scores", "ProtocolScores", "RetrievalScores", "DIRECTIONS"}
    assert names <= set(evaluation.__all__) and all(hasattr(evaluation, n) for n in names)


def test_evaluation_side_knows_nothing_of_the_theory():
    links = architecture.graph()
    for module in ("reid.retrieval", "reid.protocols", "reid.reranking"):
        above = {m for m in links[module] if architecture.room_of(m) == "theory"} | links[module] & {"reid.training", "reid.data", "reid.evaluation"}
        assert not above, module


def test_no_images_are_no_groups(): assert camera_groups(np.array([], int), np.array([], int)) == {}


# --- bad input

def corrupt(position, change): return lambda data: data[:position] + (change(data[position]),) + data[position + 1:]


@pytest.mark.parametrize("change, options, message", [
    (corrupt(0, lambda x: np.where(np.arange(len(x))[:, None] == 1, np.nan, x)), {}, "NaN or infinite"),
    (corrupt(3, lambda x: np.where(np.arange(len(x))[:, None] == 1, np.inf, x)), {}, "NaN or infinite"),
    (corrupt(0, lambda x: x[:, :3]), {}, "dimensions"), (corrupt(0, lambda x: x[0]), {}, "shape"), (corrupt(0, lambda x: x[1:]), {}, "query_ids holds"),
    (corrupt(1, lambda x: x.astype(float)), {}, "float64"), (corrupt(4, lambda x: x.astype(str)), {}, "permutation|never match"), (corrupt(2, lambda x: x[1:]), {}, "query_cameras"),
    (corrupt(2, lambda x: x.astype(float)), {}, "query_cameras is float64"), (corrupt(2, lambda x: np.full_like(x, 1)), {}, "cameras 3, 6"), (corrupt(5, lambda x: np.full_like(x, 3)), {}, "cameras 1, 2, 4, 5"),
    (corrupt(6, lambda p: {k: v + 1 for k, v in p.items()}), {}, "counts from 1"), (corrupt(6, lambda p: {}), {}, "no permutation"), (corrupt(6, lambda p: None), {}, "rand_perm_cam"),
    (corrupt(6, lambda p: {k: v[:, :-1] if v.shape[1] > 1 else v for k, v in p.items()}), {}, "images are missing or too many"), (corrupt(6, lambda p: {k: v[:2] for k, v in p.items()}), {}, "10 trials, but the permutations hold 2"),
    (lambda d: d[:3] + tuple(x[d[5] != 1] for x in d[3:6]) + d[6:], {}, "folder may be missing"), (lambda d: d[:3] + (d[3][:0], d[4][:0], d[5][:0]) + d[6:], {}, "at least one image"),
    (corrupt(1, lambda x: x*0 - 5), {}, "none of the"), (tuple, dict(mode="outdoor"), "'outdoor'"), (tuple, dict(shots=0), "0 shots"), (tuple, dict(trials=0), "0 trials"), (tuple, dict(draw="random"), "'random'"),
    (tuple, dict(draw="agw", shots=10), "not 10"), (tuple, dict(cmc="id"), "'id'"), (tuple, dict(ap="interpolated"), "'interpolated'"), (tuple, dict(metric="cos"), "'cos'"), (tuple, dict(reranking=True), "k1, k2"),
    (tuple, dict(reranking=(0, 6, .3)), "at least 1"),
])
def test_bad_input_of_sysu_is_one_clear_sentence(change, options, message):
    with pytest.raises(InputError, match=message) as error: sysu_scores(*change(small_sysu(5)), **options)
    assert "\n" not in str(error.value)


def test_an_indoor_gallery_of_nobody():
    q, q_ids, q_cams, g, g_ids, g_cams, perms = small_sysu(5)
    out = np.isin(g_cams, (4, 5))
    with pytest.raises(InputError, match="no gallery image of cameras 1, 2"): sysu_scores(q, q_ids, q_cams, g[out], g_ids[out], g_cams[out], {k: v for k, v in perms.items() if k[0] > 2}, mode="indoor")


@pytest.mark.parametrize("trials, message", [
    ([], "no trial"), ([regdb_trial(0)[:3]], "has 3 parts"), ([regdb_trial(0), regdb_trial(1, people=7)], "18, 21 queries"), ([(regdb_trial(0)[0]*np.nan, *regdb_trial(0)[1:])], "NaN or infinite"),
    ([(*regdb_trial(0)[:3], regdb_trial(0)[3] + 100)], "none of the 18"), ([(*regdb_trial(0)[:3], regdb_trial(0)[3].astype(str))], "never match"), ([(*regdb_trial(0)[:2], regdb_trial(0)[2][:, :2], regdb_trial(0)[3])], "dimensions"),
])
def test_bad_input_of_regdb_is_one_clear_sentence(trials, message):
    with pytest.raises(InputError, match=message): regdb_scores(trials)


def test_bad_input_of_llcm_is_one_clear_sentence():
    rng = np.random.default_rng(0)
    v, i = llcm_side(rng, 4, (1, 2, 3), 2), llcm_side(rng, 4, (1, 2), 2)
    for sides, options, message in (((*v, i[0], i[1], i[2][1:]), {}, "infrared_cameras"), ((*v, *i), dict(trials=0), "0 trials"), ((*v, i[0][:, :2], *i[1:]), {}, "dimensions"), ((*v, *i), dict(cmc="x"), "'x'"),
                                    ((v[0][:0], v[1][:0], v[2][:0], *i), {}, "at least one image"), ((v[0], v[1].tolist()[:-1] + [None], v[2], *i), {}, "object|identities")):
        with pytest.raises(InputError, match=message): llcm_scores(*sides, **options)


def test_nothing_is_changed_and_tensors_arrays_and_lists_are_alike():
    data = small_sysu(6)
    copies = [x.copy() for x in data[:6]]
    a = sysu_scores(*data, trials=2)
    assert all((x == y).all() for x, y in zip(data, copies))
    b = sysu_scores(*(torch.from_numpy(x) for x in data[:6]), data[6], trials=2)
    c = sysu_scores(*(x.tolist() for x in data[:6]), data[6], trials=2)
    np.testing.assert_allclose(numbers(a.mean), numbers(b.mean), **exact)
    assert numbers(c.mean)[-1] == numbers(a.mean)[-1] and numbers(c.mean)[2] == pytest.approx(numbers(a.mean)[2], abs=1e-3)   # a list of floats becomes float32


def test_where_distances_are_computed():
    assert _device("cpu").type == _device(torch.device("mps")).type == "cpu"   # Apple's GPUs have no float64
    assert _device(torch.device("cuda", 1)) == torch.device("cuda", 1)


@pytest.mark.cuda
def test_on_a_cuda_device():
    if not torch.cuda.is_available(): pytest.skip("no CUDA device")
    data = small_sysu(7, people=30)
    for options in ({}, dict(cmc="image", ap="trapezoid"), dict(reranking=(20, 6, .3))):
        np.testing.assert_allclose(numbers(sysu_scores(*data, device="cpu", **options).mean), numbers(sysu_scores(*data, **options).mean), atol=1e-9)
