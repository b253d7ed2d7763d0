"The instruments: thousands of tables at once are what one table is, and the search keeps to its family."
import math
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings, strategies as st
from vdistill.core import InputError
from vdistill.information import Table, conditional, entropy, expected_divergence, js_divergence, mutual_information
from vdistill.studies.claims import FAMILIES
from vdistill.studies.systems import Family, Systems, expected, js, kl, outcomes, search_violation, simple_systems, smallest_counterexample

quick = settings(max_examples=8, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
seeds, scales = st.integers(0, 10**6), st.sampled_from([0.1, 0.5, 1.0, 2.0, 4.0, 8.0])


@quick
@given(seeds, scales)
def test_systems_are_tables(seed, scale):
    s = FAMILIES["any two views"].draw(3, seed, scale)
    for i in range(3):
        t = s[i]
        assert t.p.sum() == pytest.approx(1, abs=1e-12)
        assert s.H("v1 z2", given="y")[i].item() == pytest.approx(entropy(t, ["v1", "z2"], given="y"), abs=1e-11)
        assert s.I("v1 v2", "z1", given="y z2")[i].item() == pytest.approx(mutual_information(t, ["v1", "v2"], "z1", given=["y", "z2"]), abs=1e-11)
        assert np.allclose(s.posterior("y", "z1")[i], conditional(t, "y", "z1"), atol=1e-12) and np.allclose(s.posterior("z1", "y")[i], conditional(t, "z1", "y"), atol=1e-12)
        for ours, theirs in ((kl, None), (js, js_divergence)):
            assert expected(ours, s, "z1", "z2")[i].item() == pytest.approx(expected_divergence(t, "z1", "z2", divergence=theirs), rel=1e-9, abs=1e-11)
    assert mutual_information(t, "z1", ["v2", "y"], given="v1") == pytest.approx(0, abs=1e-11)      # a code reads its view and nothing else


def test_simple_systems_are_all_of_them_once():
    s = simple_systems(Family("y, v|y", y=2, v=2))
    assert len(s) == 3 ** 3 and set(s.p.unique().tolist()) <= {0, 0.25, 0.5, 1}
    assert len({tuple(p.flatten().tolist()) for p in simple_systems(Family("y", y=3)).p}) == 6
    assert smallest_counterexample(lambda s: -s.H("y"), Family("y", y=2)) is None


def test_support_is_kept():
    f = Family("t, v|t", {"v": [[True, False, False], [False, True, True]]}, t=2, v=3)
    assert (f.draw(100).marginal("t v")[:, [0, 0, 1], [1, 2, 0]] == 0).all() and (simple_systems(f).p[:, [0, 0, 1], [1, 2, 0]] == 0).all()
    value, table = search_violation(lambda s: s.H("v"), f)
    assert value == pytest.approx(math.log(3), abs=0.01) and table.p[0, 1] < 1e-20


def test_the_counterexample_is_displayed_as_fractions():
    frame = outcomes(Table([[0.5, 0], [1 / 6, 1 / 3]], "y z"), [("y", "z")])
    assert frame.probability.tolist() == ["1/2", "1/6", "1/3"] and frame["p(y|z)"].tolist() == ["(3/4, 1/4)", "(3/4, 1/4)", "(0, 1)"]


@pytest.mark.parametrize("bad, words", [(lambda: Family("y, v|y", y=2), "how many values v may take"), (lambda: Systems(torch.ones(1, 2, 2) / 4, "y"), "1 names"),
                                        (lambda: FAMILIES["any two views"].draw(1).I("v3", "y"), "no variable v3"), (lambda: simple_systems(FAMILIES["any two views"]), "fewer values")])
def test_a_mistake_is_told_in_one_sentence(bad, words):
    with pytest.raises(InputError, match=words): bad()


def test_a_variable_that_depends_on_another():
    "As on one table: `information.extend`."
    s = FAMILIES["any two views"].draw(3)
    more = s.extend("u", "v2", s.posterior("y", "v2"))
    assert more.names == (*s.names, "u") and torch.allclose(more.marginal("y v1 v2 z1 z2"), s.p) and torch.allclose(more.posterior("u", "v2"), s.posterior("y", "v2"))
    assert more.I("u", "y v1 z1 z2", "v2").abs().max() < 1e-12
