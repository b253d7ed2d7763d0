"The digits experiment: parts are apart, one test set for all seeds, weights chosen on validation digits only, information of noisy codes against slow versions and closed forms."
import inspect
import math

import pandas as pd
import pytest
import torch

from vdistill.studies import digits as D
from vdistill.core import generator


def rows_of(x): return {tuple(r) for r in x.tolist()}


def test_parts_are_apart_and_follow_the_seed():
    parts, again, other = D.digits(1), D.digits(1), D.digits(2)
    assert {k: len(x) for k, (x, _) in parts.items()} == dict(test=797, validation=300, student=200, others=500, teacher=700)
    assert all(torch.equal(parts[k][0], again[k][0]) for k in parts)
    assert torch.equal(parts["test"][0], other["test"][0]) and not torch.equal(parts["student"][0], other["student"][0])       # one test set for all seeds
    assert rows_of(parts["student"][0]) | rows_of(parts["others"][0]) == rows_of(parts["teacher"][0])
    rows = {k: rows_of(parts[k][0]) for k in ("test", "validation", "student", "others")}
    assert sum(len(r) for r in rows.values()) - len(set().union(*rows.values())) <= 2                                          # equal drawings aside
    assert not rows_of(parts["test"][0]) & rows_of(other["validation"][0]) - rows["validation"]
    assert parts["test"][0].min() == 0 and parts["test"][0].max() == 1


def test_a_seed_runs_and_repeats():
    methods = ("labels alone", "VSD", "ML-CRD, α = 0.1")
    table = D.run_seed(0, methods, epochs=2)
    pd.testing.assert_frame_equal(table.drop(columns="seconds"), D.run_seed(0, methods, epochs=2).drop(columns="seconds"))
    students = table[(table.split == "test") & (table.metric == "accuracy") & (table.seconds > 0)]
    assert len(students) == 1 + 2*len(D.METHODS["VSD"][1]) + 2*len(D.METHODS["ML-CRD, α = 0.1"][1])      # with teachers of other images, and untrained ones
    assert set(students.method) == {"labels alone", "VSD", "VSD, teacher of other images", "ML-CRD, α = 0.1", "ML-CRD, α = 0.1, untrained teacher"}
    value = table[table.split == "test"].set_index(["method", "metric", "weight"]).value
    assert value["teacher", "accuracy", 0] > 93 and value["teacher, of other images", "accuracy", 0] > 92 and value["teacher, untrained", "accuracy", 0] < 30 and value["logistic regression", "accuracy", 0] > 85
    assert table[(table.split == "student") & (table.method == "teacher")].value.item() > 99 > table[(table.split == "student") & (table.method == "teacher, of other images")].value.item()
    for noise in D.NOISES: assert (table[table.metric == f"I(T;S), noise {noise}"].value.between(0, math.log(797))).all()


def test_another_teacher_is_really_another():
    usual, never, others = (D.open_seed(0, learned) for learned in ("teacher", None, "others"))
    assert all(torch.equal(usual[0][k][0], other[0][k][0]) for other in (never, others) for k in usual[0])
    assert not torch.equal(usual[2].logits, never[2].logits) and not torch.equal(usual[2].logits, others[2].logits)
    students = [D.train_student(ready, "KD", 1., 0, epochs=2)(usual[0]["test"][0]).logits for ready in (usual, never, others)]
    assert not torch.equal(students[0], students[1]) and not torch.equal(students[0], students[2])
    smoothed = [D.train_student(ready, "labels, smoothed", 1., 0, epochs=2)(usual[0]["test"][0]).logits for ready in (usual, never)]
    assert torch.equal(*smoothed)                                                                        # no teacher is asked


def table_of(*rows): return pd.DataFrame([dict(method=m, weight=w, seed=s, split=split, metric="accuracy", value=v) for m, w, s, validation, test in rows for split, v in (("validation", validation), ("test", test))])


def test_weights_are_chosen_on_validation_over_all_seeds():
    best = D.chosen(table_of(("m", 1., 0, 50., 99.), ("m", 1., 1, 50., 99.), ("m", 2., 0, 90., 10.), ("m", 2., 1, 80., 20.)))
    assert best.weight.unique().tolist() == [2.] and best.value.tolist() == [10., 20.]


@pytest.mark.parametrize("tied, middle", [((1.,), 1.), ((1., 3.), 1.), ((.1, 1., 10.), 1.), ((10., .1, 1.), 1.)])
def test_of_equally_good_weights_the_middle_one(tied, middle):
    rows = [("m", w, 0, 90., 1.) for w in tied] + [("m", 100., 0, 80., 99.), ("n", 7., 0, 10., 5.)]
    assert D.chosen_weights(table_of(*rows)) == dict(m=middle, n=7.)


def test_weights_that_cannot_be_told_apart():
    "Over two seeds: 1 and 3 differ from the best one, 10, by less than the standard error of the difference; .1 is clearly worse."
    values = {.1: (80., 81.), 1.: (90., 88.), 3.: (88., 91.), 10.: (89., 91.)}
    rows = [("m", w, seed, v, 0.) for w, both in values.items() for seed, v in enumerate(both)]
    assert D.chosen_weights(table_of(*rows)) == dict(m=3.)
    assert D.chosen_weights(table_of(*[r for r in rows if r[1] != 1.])) == dict(m=3.)                    # of two the smaller


def slow_information(a, b, y=None): # means of densities, one image at a time
    total = 0.
    for i in range(len(a)):
        some = [j for j in range(len(a)) if y is None or y[j] == y[i]]
        joint = sum(math.exp(a[i, j] + b[i, j]) for j in some)/len(some)
        total += math.log(joint/(sum(math.exp(a[i, j]) for j in some)/len(some)*sum(math.exp(b[i, j]) for j in some)/len(some)))
    return total/len(a)


def test_information_of_codes():
    x, w = (torch.randn(12, d, generator=generator("codes", d)) for d in (3, 5))
    a, b, y = D.noisy_codes(x, .5, "a"), D.noisy_codes(w, .5, "b"), torch.arange(12) % 3
    assert D.code_information(a, b) == pytest.approx(slow_information(a, b)) and D.code_information(a, b, y) == pytest.approx(slow_information(a, b, y))
    code = (x - x.mean(0))/(x - x.mean(0)).square().sum(1).mean().sqrt()
    noisy = code.double() + .5*torch.randn(12, 3, generator=generator("code", "a"), dtype=torch.float64)
    slow = torch.distributions.Normal(code.double(), .5)                                                 # of image i's code at image j's features
    expected = torch.stack([slow.log_prob(v).sum(1) for v in noisy])
    torch.testing.assert_close(a - a[:, :1], expected - expected[:, :1], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(a, D.noisy_codes(100*x - 7, .5, "a"), rtol=1e-3, atol=1e-3)               # neither scale nor place matters


def test_limits_of_the_information_of_codes():
    x = torch.randn(60, 4, generator=generator("limits"))
    info = lambda x, noise, *y: D.code_information(D.noisy_codes(x, noise, "a"), D.noisy_codes(x, noise, "b"), *y)
    assert info(x, 1e-3) == pytest.approx(math.log(60), abs=1e-6) and abs(info(x, 1e3)) < 1e-4
    classes = torch.arange(60) % 4
    only = torch.nn.functional.one_hot(classes, 4).float()                                               # features that know the class and no more
    assert info(only, .05) == pytest.approx(math.log(4), abs=1e-6) and abs(info(only, .05, classes)) < 1e-6
    assert D.code_information(D.noisy_codes(torch.zeros(9, 3), .1, "a"), D.noisy_codes(torch.zeros(9, 3), .1, "b")) == pytest.approx(0., abs=1e-6)   # features that died


def test_shared_information_is_looked_at_when_asked():
    table = D.shared_information(0, methods=("labels alone", "KD"), weights={"KD": 7.}, at=(0, 1), noises=(.2,))
    assert table.epoch.tolist() == [0, 1]*2 and set(table.weight[table.method == "KD"]) == {7.} and set(table.noise) == {.2}
    assert (table.nats > table.given_class).all() and table.given_class.gt(0).all()
    before = table[table.epoch == 0]
    assert before.nats.nunique() == 1                                                                    # the same student begins every method


def test_the_command_finds_what_it_calls(): assert {"seed", "progress"} <= set(inspect.signature(D.run_seed).parameters) & set(inspect.signature(D.shared_information).parameters)
