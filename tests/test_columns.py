"Columns far from zero, and rows that repeat: as numbers, and in an estimate."
import math
import warnings

import numpy as np
import pandas as pd
import pytest
import torch

from vdistill import bounds, estimation as E
from vdistill.columns import as_columns, distinct_rows
from vdistill.core import InputError

QUICK = dict(batch=32, steps=150, check=50, seeds=(0,), hidden=32, learning_rate=2e-3)


@pytest.fixture(autouse=True)
def quiet():
    with warnings.catch_warnings():
        for kind in (E.EstimateWarning, bounds.BoundWarning): warnings.simplefilter("ignore", kind)
        yield


def test_columns_of_a_data_frame():
    frame = pd.DataFrame(dict(a=[1., 2., 4.]*40, kind=["x", "y", "z"]*40, flag=[True, False, True]*40))
    columns = as_columns(frame)
    assert columns.shape == (120, 5) and columns.mean(0).abs().max() < 1e-6
    assert as_columns(np.arange(7.)).shape == (7, 1) and as_columns(torch.ones(3, 2)).abs().max() == 0
    estimate = E.estimate_mi(frame[["a"]], frame[["kind"]], **QUICK | dict(batch=24))
    assert estimate.value > .7                                                        # log 3 = 1.1
    assert as_columns(torch.ones(4, 2, dtype=torch.bfloat16)).dtype == torch.float32 and as_columns(np.array([True, False])).shape == (2, 1)
    tiny = as_columns(1e-13*np.random.default_rng(0).standard_normal(500))
    assert tiny.std().item() == pytest.approx(1, abs=.01) and as_columns(np.full(9, 7.1)).abs().max() == 0
    names = pd.DataFrame(dict(id=[f"n{k}" for k in range(60)]))
    for bad in (pd.DataFrame(dict(a=[1., np.nan])), np.array([1., np.inf]), pd.DataFrame(), np.ones((2, 2, 2)), np.float64(3), np.ones(4)*1j, names):
        with pytest.raises(InputError): as_columns(bad)


NOW = 1_732_870_000_000_000_000 # nanoseconds since 1970
SECONDS = np.random.default_rng(0).uniform(0, 4, 3000)


def stamps(): # the same moments, as people have them
    ns = (SECONDS*1e9).astype(np.int64)
    exact = ns/1e9
    return exact, {"int64": ns + NOW, "uint64": (ns + NOW).astype(np.uint64), "top of uint64": np.uint64(2**64 - 1) - ns.astype(np.uint64), "tensor": torch.from_numpy(ns + NOW), "big-endian": (ns + NOW).astype(">i8"), "Int64": pd.array(ns + NOW, "Int64"), "datetime64": pd.Series(pd.to_datetime(ns + NOW)),
                   "array of datetime64": (ns + NOW).astype("datetime64[ns]"), "with a zone": pd.Series(pd.to_datetime(ns + NOW, utc=True)), "Timestamps": [pd.Timestamp(int(n)) for n in ns + NOW], "timedelta": pd.Series(pd.to_timedelta(ns)), "object": np.array((ns + NOW).tolist(), dtype=object)}


@pytest.mark.parametrize("kind", stamps()[1])
def test_stamps_are_what_they_are_in_seconds(kind):
    exact, given = stamps()
    sign = -1 if kind == "top of uint64" else 1
    torch.testing.assert_close(as_columns(pd.Series(given[kind]) if kind == "Int64" else given[kind]), sign*as_columns(exact), rtol=0, atol=1e-6)


def test_what_is_constant_is_decided_by_the_numbers_themselves():
    seconds = as_columns(SECONDS)
    for far in (as_columns(SECONDS*1e9 + NOW), as_columns(torch.from_numpy(SECONDS*1e9 + NOW)), as_columns(SECONDS + 1e12)):
        torch.testing.assert_close(far, seconds, rtol=0, atol=1e-3)                     # as exactly as float64 holds them
    for scale in (1e-300, 1e-200, 1e-9, 1e9, 1e200, 4e307): torch.testing.assert_close(as_columns(SECONDS*scale), seconds, rtol=0, atol=1e-5)
    wide = np.array([-1.7e308, 1.7e308]*10)
    assert as_columns(wide).abs().max() == 1
    rounding = np.array([.1 + .2, .3]*20)
    for constant in (rounding, np.full(9, 7.1), np.full(9, NOW), np.zeros(9), np.full(9, 1e-310), np.array([2**63, 2**63], np.uint64)): assert as_columns(constant).abs().max() == 0
    assert as_columns(np.array([2**62, 2**62 + 1])).abs().max() == 1                  # whole numbers are exact
    for bad, word in ((pd.Series(pd.to_datetime([NOW, None])), "1 missing"), (np.array(["NaT", "2020-01-01"], "datetime64[s]"), "1 missing"), (np.ones(3)*1j, "complex"), ([[1, 2], [3]], "missing")):
        with pytest.raises(InputError, match=word): as_columns(bad)


def test_stamps_have_the_information_of_seconds():
    y = SECONDS + .5*np.random.default_rng(1).standard_normal(3000)
    values = [E.estimate_mi(x, y, **QUICK | dict(steps=300)).value for x in (SECONDS, (SECONDS*1e9).astype(np.int64) + NOW)]
    assert values[0] > .5 and values[1] == pytest.approx(values[0], abs=.01)


def independent(rows, seed=0): return np.random.default_rng(seed).standard_normal((2, rows))


def test_repeated_rows_are_on_one_side():
    x, y = np.tile(independent(60), 20)
    with pytest.warns(E.EstimateWarning, match="1140 of 1200 rows repeat an earlier one.*60 rows"): estimate = E.estimate_mi(x, y, **QUICK | dict(batch=128, steps=600))
    assert abs(estimate.value) < .35 and sum(estimate.pairs) == 60 and estimate.batch == 12 and "careful: 1140 of 1200" in str(estimate)
    frame = pd.DataFrame(dict(x=x, kind=np.where(y > 0, "high", "low")))
    with pytest.warns(E.EstimateWarning, match="60 rows"): mixed = E.estimate_mi(frame[["x"]], frame[["kind"]], **QUICK | dict(steps=600))
    assert abs(mixed.value) < .35                                                       # by the numbers of one side alone


def test_rows_repeated_in_part_as_by_a_join():
    x, y = independent(2000)
    twice = np.concatenate([np.arange(2000), np.arange(1000)])
    with pytest.warns(E.EstimateWarning, match="1000 of 3000 rows"): joined = E.estimate_mi(x[twice], y[twice], **QUICK)
    assert joined.pairs == (1200, 400, 400) and abs(joined.value) < .05
    assert joined.batch == 32 and not E.estimate_mi(x, y, **QUICK).remarks[:-1]
    checks = E.self_consistency(x[twice], y[twice], **QUICK)
    assert checks.value.iloc[0] == pytest.approx(joined.value, abs=.02)


def test_rows_that_repeat_by_right_are_kept():
    "Counts of discrete things: every row is a sample."
    rng = np.random.default_rng(0)
    x = rng.integers(0, 2, 10_000)
    y = np.where(rng.random(10_000) < .9, x, 1 - x)
    truth = math.log(2) + .9*math.log(.9) + .1*math.log(.1)
    for a, b in ((x, y), (x.astype(bool), y.astype(bool)), (np.array([.1, .7])[x], np.array([-3.3, 12.])[y])):
        estimate = E.estimate_mi(a, b, **QUICK)
        assert sum(estimate.pairs) == 10_000 and estimate.value == pytest.approx(truth, abs=.03) and not any("repeat" in r for r in estimate.remarks)
    codes, towns = rng.integers(0, 60, 4000), rng.integers(0, 40, 4000)
    for a, b, why in ((rng.poisson(20, 5000), rng.poisson(3, 5000), "counts"), (rng.integers(18, 90, 4000), rng.integers(0, 2, 4000), "ages"), (codes, 7*codes % 60, "codes, one to one"),
                      (pd.Series([f"town {i}" for i in towns]), rng.uniform(1e3, 1e6, 40)[towns], "inhabitants of towns"),
                      (rng.uniform(1, 99, 40).round(2)[rng.integers(0, 40, 4000)], rng.uniform(1, 99, 30).round(2)[rng.integers(0, 30, 4000)], "prices"),
                      (rng.standard_normal(4000).round(1), rng.standard_normal(4000).round(1), "one decimal"),
                      (rng.standard_normal(4000).round(2), rng.standard_normal(4000).round(2), "two decimals"),
                      (gaps(rng, 5000), gaps(rng, 5000), "many zeros"), (*[gaps(rng, 5000)]*2, "many zeros, twice the same"),
                      (rng.standard_normal(5000).clip(0), rng.standard_normal(5000).clip(0), "cut off at zero"),
                      (*[rng.zipf(1.5, 5000).clip(0, 5_000)]*2, "a long tail of whole numbers, twice the same"),
                      (*[rng.lognormal(4, 1, 5000).round()]*2, "sizes"), (np.array([.3, 1.7])[x], np.array([.3, 1.7])[x], "a coin, twice the same")):
        assert len(distinct_rows(as_columns(a), as_columns(b))) == len(a), why


def gaps(rng, n): return np.where(rng.random(n) < .9, 0., rng.standard_normal(n))


@pytest.mark.parametrize("rows", [np.random.default_rng(0).integers(0, 100, (2, 60)), independent(60).round(1), independent(60)], ids=["whole", "decimal", "normal"])
def test_copies_of_a_whole_table(rows):
    "As many rows as were there before, whatever the numbers are: also where some of them were equal already."
    for times in (2, 20):
        kept = distinct_rows(*map(as_columns, np.tile(rows, times)))
        assert kept.tolist() == list(range(60))


def test_zeros_are_no_copies():
    "Independent, and it stays so: of rows without the frequent one some are no sample."
    rng = np.random.default_rng(0)
    estimate = E.estimate_mi(gaps(rng, 4000), gaps(rng, 4000), **QUICK)
    assert sum(estimate.pairs) == 4000 and abs(estimate.value) < .05
