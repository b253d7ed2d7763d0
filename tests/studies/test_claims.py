"Thousands of random systems: no violation where a claim holds, one within seconds where it fails."
import math
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings, strategies as st
from vdistill.studies.claims import CLAIMS, FAMILIES, check, code_divergence, coin_information, distillation_terms, inconsistency, lost, opinion_gap, verdict, verdicts
from vdistill.studies.systems import TOLERANCE, Family, Systems, expected, implies, kl, search_violation, simple_systems, smallest_counterexample

ALWAYS = ["(6)", "(6), slack", "Theorem 1", "Corollary 1", "(14), in general", "bound by KL of p(z|v)", "(15), in general", "VML, what it measures", "VML = 0, equal information"]
IF = {"(4)": ["y → x → v → z"], "(5)": ["y → x → v → z"], "(7), I(v;z) held fixed": ["y → x → v → z"], "Corollary 1, as an equation": ["y → x → v → z"], "Corollary 1, classifier on z": ["chain, classifiers a of v and b of z"],
      "Theorem 2, with sufficient codes": ["each view sufficient", "views and codes sufficient"], "VML = 0, one code sufficient": ["each view sufficient"], "I(v1;z1), decomposition": ["z1 sees v1 only"], "(14)": ["each view sufficient"],
      "bound by KL of p(y|z)": ["the label fixes both views"], "bound by JS of p(y|z)": [], "Theorem 2, what it measures": ["each view sufficient"], "(15)": ["each view sufficient"], "(15) equals (8)": ["each view sufficient"], "(17), its DML term": ["each view sufficient"],
      "VSD = 0 makes VCD and VML zero": ["each view sufficient"], "VML = 0, consistency": ["views and codes sufficient"], "against MIB, different views": ["each view sufficient"],
      "(7) and I(v;z|y)": [], "Corollary 1, two classifiers": [], "averaged predictions": [], "Theorem 2": [], "Theorem 2, converse": [], "against MIB, irrelevant but shared": []}
HOLDS = [(n, f) for n in ALWAYS for f in CLAIMS[n].families] + [(n, f) for n, families in IF.items() for f in families]
FAILS = [(n, f) for n, families in IF.items() for f in CLAIMS[n].families if f not in families]

quick = settings(max_examples=8, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
seeds, scales = st.integers(0, 10**6), st.sampled_from([0.1, 0.5, 1.0, 2.0, 4.0, 8.0])


def test_every_claim_has_a_verdict_to_be_tested():
    assert set(ALWAYS) | set(IF) == set(CLAIMS)


def test_what_holds_says_why_and_always_was_tried_on_more_than_one_family():
    assert all(CLAIMS[name].because for name, _ in HOLDS)
    assert all(len(CLAIMS[name].families) > 1 for name in ALWAYS)


@pytest.mark.parametrize("name, family", HOLDS)
@quick
@given(seed=seeds, scale=scales)
def test_no_violation_where_it_holds(name, family, seed, scale):
    assert CLAIMS[name].gap(FAMILIES[family].draw(50, seed, scale)).max() <= TOLERANCE


@pytest.mark.parametrize("name, family", HOLDS)
def test_the_search_finds_none_where_it_holds(name, family):
    assert search_violation(CLAIMS[name].gap, FAMILIES[family], restarts=8, steps=40, seed=1)[0] <= TOLERANCE


@pytest.mark.parametrize("name, family", FAILS)
def test_a_violation_is_found_within_seconds_where_it_fails(name, family):
    largest, table = search_violation(CLAIMS[name].gap, FAMILIES[family])
    assert largest > 0.1
    again = CLAIMS[name].gap(Systems(torch.tensor(table.p)[None], table.names)).item()
    assert again == pytest.approx(largest, rel=1e-4)


@pytest.mark.parametrize("name", [n for n in IF if n != "(8)"])
def test_the_smallest_counterexample_is_one(name):
    claim = CLAIMS[name]
    table = smallest_counterexample(claim.gap, claim.small, claim.such_that)
    assert (table.p > 0).sum() <= 3 and set(np.unique(table.p)) <= {0, 0.25, 0.5, 1}
    assert claim.gap(Systems(torch.tensor(table.p)[None], table.names)).item() > 0.1


@pytest.mark.parametrize("name", ["bound by KL of p(z|v)", "(14), in general", "VML, what it measures", "(15), in general"])
def test_no_simple_system_violates_what_holds_for_any_two_views(name):
    two = Family("y, v1 v2|y, z1|v1, z2|v2", y=2, v1=2, v2=2, z1=2, z2=2)
    gaps = CLAIMS[name].gap(simple_systems(two))
    assert gaps[gaps.isfinite()].max() <= TOLERANCE


@quick
@given(seeds)
def test_the_families_are_what_their_names_say(seed):
    draw = lambda name: FAMILIES[name].draw(50, seed)
    small = lambda x: x.abs().max() < 1e-11
    s = draw("each view sufficient")
    assert small(s.I("v1", "y", "v2")) and small(s.I("v2", "y", "v1")) and s.I("v1", "v2", "y").max() > 0.01
    s = draw("views and codes sufficient")
    assert small(lost(s, "v1", "z1")) and small(lost(s, "v2", "z2")) and small(s.I("v1 v2", "y") - s.I("v1", "y")) and s.I("v1", "z1", "v2").max() > 0.01
    s = draw("complementary views")
    assert small(s.H("y", "v1 v2")) and small(s.H("v1 v2", "y")) and s.H("y", "v1").min() > 0
    s = draw("the label fixes both views")
    assert small(s.H("v1 v2", "y")) and s.H("y", "v1 v2").max() > 0.01
    assert small(draw("views independent given y").I("v1", "v2", "y"))
    assert small(draw("y → x → v → z").I("z", "y x", "v")) and draw("z sees y as well").I("z", "y", "v").max() > 0.01


def test_vcd_of_a_blind_second_view_is_infinite_and_its_opinion_is_the_prior():
    p = np.zeros((2, 2, 1, 2)); p[0, 0, 0, 0] = p[1, 1, 0, 1] = 0.5
    s = Systems(torch.tensor(p)[None], "y v1 v2 z1")
    assert expected(kl, s, "v2", "z1").item() == math.inf == opinion_gap(s).item()
    assert s.extend("u", "v2", s.posterior("y", "v2")).posterior("u", "z1")[0].tolist() == [[0.5, 0.5]] * 2


def test_constant_codes_are_the_zero_of_every_loss_and_of_theorem_2():
    f = Family("y, v1 v2|y, z1|v1, z2|v2", y=2, v1=2, v2=2, z1=1, z2=1)
    s = f.draw(20, 3)
    assert distillation_terms(s)[2].abs().max() < 1e-12 and coin_information(s).abs().max() < 1e-12 and code_divergence(s).abs().max() < 1e-12
    assert torch.allclose(inconsistency(s), s.I("v1 v2", "y"))
    assert implies(torch.zeros(2), torch.tensor([0.0, 1.0])).tolist() == pytest.approx([0, 1], abs=1e-5)


def test_a_verdict_is_what_was_measured():
    rows = check(CLAIMS["(5)"], n=200)
    assert rows.violated.tolist() == [0, 1] and verdict(rows) == "holds if: y → x → v → z" and verdict(rows[:1]) == "holds always" and verdict(rows[1:]) == "fails"
    table = verdicts(rows)
    assert table.counterexample.item() == "yvz: 000 1/2, 101 1/2" and table.violation.item() > 0.5 and table.systems.item() == 400
