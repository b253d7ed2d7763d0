"The digits experiment: parts are apart, seeds repeat, weights are chosen on validation digits only."
import pandas as pd
import pytest
import torch

from vdistill import digits as D


def test_parts_are_apart_and_follow_the_seed():
    parts, again, other = D.digits(1), D.digits(1), D.digits(2)
    assert {k: len(x) for k, (x, _) in parts.items()} == dict(test=897, validation=200, teacher=700, student=200)
    assert all(torch.equal(parts[k][0], again[k][0]) for k in parts) and not torch.equal(parts["test"][0], other["test"][0])
    assert torch.equal(parts["student"][0], parts["teacher"][0][:200])              # the student's are some of the teacher's
    rows = {k: {tuple(r) for r in parts[k][0].tolist()} for k in ("test", "validation", "teacher")}
    assert len(rows["test"] & rows["teacher"]) + len(rows["test"] & rows["validation"]) + len(rows["teacher"] & rows["validation"]) <= 2    # equal drawings aside
    assert parts["test"][0].min() == 0 and parts["test"][0].max() == 1


def test_a_seed_runs_and_repeats():
    methods = ("labels alone", "VSD", "ML-CRD, α = 0.1")
    table = D.run_seed(0, methods, epochs=3)
    assert len(table) == 2*(1 + sum(len(D.METHODS[m][1]) for m in methods)) and table.value.between(0, 100).all()
    pd.testing.assert_frame_equal(table.drop(columns="seconds"), D.run_seed(0, methods, epochs=3).drop(columns="seconds"))
    assert table[(table.method == "teacher") & (table.split == "test")].value.item() > 90


def test_weights_are_chosen_on_validation_over_all_seeds():
    rows = [dict(method="m", weight=w, seed=s, split=split, value=v) for w, s, validation, test in ((1., 0, 50., 99.), (1., 1, 50., 99.), (2., 0, 90., 10.), (2., 1, 40., 20.)) for split, v in (("validation", validation), ("test", test))]
    best = D.chosen(pd.DataFrame(rows))
    assert best.weight.unique().tolist() == [2.] and best.value.tolist() == [10., 20.]


@pytest.mark.filterwarnings("ignore")
def test_shared_information_is_looked_at_when_asked():
    table = D.shared_information(0, methods=("labels alone",), at=(0, 1))
    assert table.epoch.tolist() == [1, 2] and table.nats.notna().all() and set(table.method) == {"labels alone"}
