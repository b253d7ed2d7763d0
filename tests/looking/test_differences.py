"Sides and differences: what is held against what, and how sure."
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings, strategies as st
from scipy.stats import t
from vdistill.looking.differences import compare, cost_text, differences_text, family, family_table, family_text, headlines, holm
from vdistill.looking.differences import mean_table, sentence, two_way, with_references
from vdistill.core import InputError


@settings(derandomize=True, deadline=None, max_examples=100)
@given(st.lists(st.floats(1e-6, 1), min_size=1, max_size=12))
def test_holm_is_its_definition(p):
    "Reject in order while p(k) <= level/(m - k + 1); the adjusted p-value is the least level at which one is rejected."
    adjusted, order = holm(p), np.argsort(p)
    assert (adjusted >= np.asarray(p) - 1e-15).all() and (adjusted <= 1).all()
    for level in (.01, .05, .3):
        rejected = []
        for k, i in enumerate(order):
            if p[i]*(len(p) - k) > level: break
            rejected.append(i)
        assert set(np.flatnonzero(adjusted <= level)) == set(rejected)


def test_holm_leaves_out_what_is_missing():
    np.testing.assert_allclose(holm([.01, np.nan, .02]), [.02, np.nan, .02])


def results(methods=("baseline", "bottleneck", "full"), seeds=range(4), gain=dict(full=2.)):
    "Invented: z two points above v; `v b` is best on validation, although `v a` is better on test."
    rng, rows = np.random.default_rng(0), []
    for method in methods:
        for seed in seeds:
            for feature, value, validation in (("v a", 60, 50), ("v b", 50, 55), *([] if method == "baseline" else [("z a", 52, 56), ("z b", 58, 51)])):
                for direction in ("infrared→visible", "visible→infrared"):
                    rows.append(dict(dataset="invented", method=method, seed=seed, split="test", feature=feature, direction=direction, protocol="p", metric="mAP",
                                     value=value + 10*seed + gain.get(method, 0) + rng.normal(0, .1), seconds=60., device="cpu", headline=feature == ("v b" if method == "baseline" else "z a"), validation=float(validation)))
    chance = [dict(rows[0], method="chance", feature="none", value=1., headline=True, validation=np.nan, seed=s, direction=d, seconds=0.) for s in seeds for d in ("infrared→visible", "visible→infrared")]
    return pd.DataFrame(chance + rows)


def test_sides_are_chosen_on_validation():
    table = results()
    for side, low in (("v", 50), ("z", 52), ("headline", 50)):
        chosen = headlines(table, side)
        assert set(chosen.feature) == {side} and not chosen.duplicated(["method", "seed", "direction"]).any()
        assert ((chosen[chosen.method == "bottleneck"].value - 10*chosen.seed[chosen.method == "bottleneck"] - (low if side != "headline" else 52)).abs() < 1).all()
        assert "chance" in set(chosen.method)
    assert "baseline" not in set(headlines(table, "z").method)
    with pytest.raises(InputError, match="side"): headlines(table, "w")
    with pytest.raises(InputError, match="older"): headlines(table.drop(columns="validation"), "z")


def test_differences_are_paired_and_hand_made():
    table = results()
    c = compare(table, "bottleneck").set_index(["side", "method"])
    wide = headlines(table, "z").groupby(["method", "seed"]).value.mean().unstack("method")
    d = wide.full - wide.bottleneck
    half = t.ppf(.975, 3)*d.std(ddof=1)/2
    np.testing.assert_allclose(c.loc[("z", "full"), ["difference", "difference_interval"]].astype(float), [d.mean(), half])
    assert abs(c.loc[("z", "full"), "p"] - 2*t.sf(abs(d.mean())/(d.std(ddof=1)/2), 3)) < 1e-12
    assert c.loc[("z", "full"), "p_holm"] < .01 and c.loc[("v", "full"), "interval"] > 10 > c.loc[("v", "full"), "difference_interval"]
    other = compare(table, "baseline").set_index(["side", "method"])
    assert 3.5 < other.loc[("z", "full"), "difference"] < 4.5, "where the reference has no z, its v"


def test_missing_seeds_are_left_out():
    table = results()
    table = table[~((table.method == "full") & (table.seed == 3))]
    r = compare(table, "bottleneck", sides=("z",)).set_index("method").loc["full"]
    assert r.seeds == 3 and abs(r.difference - 2) < .3
    with pytest.raises(InputError, match="nobody"): compare(table, "nobody")


def test_in_words():
    c = compare(results(), "bottleneck")
    assert "full - bottleneck = +2.0 ± 0." in sentence(c, "invented", "full", "z") and "4 seeds" in sentence(c, "invented", "full", "z")
    with pytest.raises(InputError): sentence(c, "invented", "nobody", "z")
    assert cost_text(results()) == "invented: 12 runs of 1.0 minutes, 12 in all, on cpu"
    assert "+2.0 ± 0." in differences_text(c) and "chance" not in differences_text(c)


def test_tables_put_together_may_number_their_rows_alike():
    table = results()
    parts = [part.reset_index(drop=True) for _, part in table.groupby("method", sort=False)]
    for side in ("headline", "v", "z"): assert headlines(pd.concat(parts), side).value.tolist() == headlines(table, side).value.tolist()


def published(seeds=range(3)):
    "Invented: SYSU-MM01 by four protocols 10 points apart, in one direction, nothing chosen; `full` one point above `baseline`."
    protocols = [f"{mode}-search, {shots} shots: gallery of {n} images; rules" for n, (mode, shots) in enumerate((m, s) for m in ("all", "indoor") for s in (1, 10))]
    return pd.DataFrame([dict(dataset="SYSU-MM01", method=method, seed=seed, feature=feature, direction="infrared→visible", protocol=p, metric="mAP", value=10.*k + (method == "full") + .1*seed*(method == "full"),
                              headline=feature == "v shared", validation=np.nan) for method in ("baseline", "full") for seed in seeds for feature in ("v shared", "v all") for k, p in enumerate(protocols)])


def test_protocols_are_not_averaged():
    table = compare(published(), "baseline")
    assert list(table.dataset.unique()) == [f"SYSU-MM01, {m}-search, {s} shots" for m in ("all", "indoor") for s in (1, 10)]
    assert set(table.side) == {"headline"} and table.seeds.eq(3).all() and set(table.direction) == {"infrared→visible"}
    np.testing.assert_allclose(table["mean"], [0, 1.1, 10, 11.1, 20, 21.1, 30, 31.1])
    np.testing.assert_allclose(table.difference, [0, 1.1]*4)
    assert "Percent, infrared→visible, mean ±" in differences_text(table) and "Percent, mean of both directions, mean ±" in differences_text(compare(results(), "baseline"))
    assert "where there are both" in differences_text(compare(pd.concat([published(), results()]), "baseline"))


def test_runs_that_chose_nothing_are_compared_by_their_headline():
    nothing, several = results().assign(validation=np.nan), pd.concat([results(), results().assign(dataset="other", validation=np.nan)])
    assert set(compare(nothing, "baseline").side) == {"headline"}
    assert compare(several, "bottleneck").groupby("dataset").side.unique().map(set).to_dict() == {"invented": {"v", "z"}, "other": {"headline"}}
    with pytest.raises(InputError, match="hold_out"): compare(nothing, "baseline", sides=("v", "z"))


def test_seeds_and_scenes_are_both_resampled():
    "Where only seeds differ, the variance is that of a mean of seeds; where only scenes do, that of a mean of scenes."
    rng, of_seed, of_scene = np.random.default_rng(0), np.array([-2., 0, 1, 3]), np.random.default_rng(1).normal(size=25)
    def interval(gain):
        rows = pd.DataFrame(dict(seed=np.repeat(range(4), 25), scene=np.tile(range(25), 4), queries=3, feature="v"))
        table = pd.concat([rows.assign(method="A", mAP=50.), rows.assign(method="B", mAP=50 + gain.ravel())])
        r = two_way(table, ("B", "v"), ("A", "v"), draws=20_000)
        np.testing.assert_allclose(r["difference"], gain.mean())
        return (r["high"] - r["low"])/2/1.96
    assert interval(np.tile(of_seed[:, None], 25)) == pytest.approx(of_seed.std()/2, rel=.06)
    assert interval(np.tile(of_scene, (4, 1))) == pytest.approx(of_scene.std()/5, rel=.03)
    both = interval(of_seed[:, None] + of_scene)
    assert both == pytest.approx(np.hypot(of_seed.std()/2, of_scene.std()/5), rel=.06)


def test_a_page_is_one_family():
    "Each question in each dataset, asked as `two_way` asks it; the correction counts all of them."
    rng, rows = np.random.default_rng(0), pd.DataFrame(dict(seed=np.repeat(range(4), 9), scene=np.tile(range(9), 4), queries=3, feature="v"))
    lifted = lambda name, gain: rows.assign(dataset=name, method=f"+{gain}", mAP=50 + gain + rng.normal(size=36))
    scenes = pd.concat([lifted(name, gain) for name in ("one", "two") for gain in (0, 1, 5)])
    questions = [(("+5", "v"), ("+0", "v")), (("+1", "v"), ("+0", "v"))]
    page = family(scenes, questions, draws=500)
    assert list(zip(page.dataset, page.ours)) == [(name, q[0]) for name in ("one", "two") for q in questions]
    np.testing.assert_allclose(page.p_holm, holm(page.p))
    assert (page.p_holm >= page.p).all() and page.p_holm[0] > page.p[0]
    two = two_way(scenes[scenes.dataset == "two"], *questions[1], draws=500)
    assert {k: page.iloc[3][k] for k in two} == two
    lines = family_text(page).splitlines()
    assert len(lines) == 5 and lines[3].startswith("two: v of +1 - v of +0") and f"p = {page.p_holm[3]:.2g}" in lines[3] and "two: 4 seeds, 9 scenes" in lines[4]
    table = family_table(page)
    assert list(table) == ["one", "two"] and list(table.index) == ["v: +5 - +0", "v: +1 - +0"]
    last = page.iloc[3]
    assert table.iloc[1, 1].startswith(f"{last.difference:+.1f} ({last.low:+.1f}, {last.high:+.1f})")
    assert table.iloc[1, 1].endswith("*") == (last.p_holm < .05) and table.iloc[0, 0].endswith("*")
    assert not family_table(page.assign(p_holm=1.)).map(lambda text: "*" in text).any(axis=None)
    with pytest.raises(InputError, match="no scenes"): family(scenes, [(("+5", "z"), ("+0", "v"))])


def rows_of(dataset, method, feature, values, metric="mAP"):
    "Tidy rows: a value a seed and direction."
    return [dict(dataset=dataset, method=method, feature=feature, seed=s, direction=d, metric=metric, value=v)
        for s, both in enumerate(values) for d, v in zip(("infrared→visible", "visible→infrared"), both)]


def test_mean_table():
    "A seed is a mean over directions; one seed has no interval; an empty place is empty; columns keep their order."
    rows = pd.DataFrame([*rows_of("b", "full", "v shared", [(80, 90), (84, 94)]), *rows_of("b", "full", "v shared", [(1, 2)], "rank-1"),
        *rows_of("a", "HOG", "none", [(50, 60)])])
    table = mean_table(rows)
    assert list(table) == ["b", "a"] and table.loc[("HOG", "none")].tolist() == ["", "55.0"]
    mean, half = map(float, table.loc[("full", "v shared"), "b"].split(" ± "))
    assert mean == 87 and abs(half - 12.706*2) < .06 # t of one degree of freedom; the seeds are 4 apart
    both = mean_table(rows, ("rank-1", "mAP"))
    assert list(both) == [("b", "rank-1"), ("b", "mAP"), ("a", "mAP")] and both.loc[("full", "v shared"), ("b", "rank-1")] == "1.5"


def test_references_of_a_searched_set():
    "Those of the set that is searched, under the name of the transfer; learned rows are not copied."
    rows = pd.DataFrame([*rows_of("a", "HOG", "none", [(1, 1)]), *rows_of("b", "HOG", "none", [(2, 2)]), *rows_of("b", "full", "v shared", [(3, 3)]),
        *rows_of("a → b", "full", "v shared", [(4, 4)])])
    found = with_references(rows)
    there = found[found.dataset == "a → b"]
    assert len(found) == len(rows) + 2 and sorted(there.value) == [2, 2, 4, 4] and set(there.method) == {"HOG", "full"}
