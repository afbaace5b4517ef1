from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from benchmarks.statistics import paired_difference, summarise


def test_the_interval_is_scipys_of_a_paired_t_test() -> None:
    ours, control = [0.52, 0.55, 0.51, 0.56], [0.50, 0.51, 0.50, 0.52]

    found = paired_difference(dict(enumerate(ours)), dict(enumerate(control)))

    expected = stats.ttest_rel(ours, control).confidence_interval(0.95)
    assert found is not None
    assert found["mean"] == pytest.approx(np.mean(np.subtract(ours, control)))
    assert (found["low"], found["high"]) == pytest.approx((expected.low, expected.high))


def test_only_common_seeds_are_paired() -> None:
    found = paired_difference({0: 1.0, 1: 2.0, 5: 9.0}, {0: 0.5, 1: 1.0, 7: 3.0})

    assert found is not None
    assert found["seeds"] == [0, 1]
    assert found["mean"] == pytest.approx(0.75)
    assert paired_difference({0: 1.0}, {1: 1.0}) is None
    single = paired_difference({0: 1.0}, {0: 0.75})
    assert single == {"mean": 0.25, "low": None, "high": None, "seeds": [0]}


def test_summary() -> None:
    found = summarise([1.0, 2.0, 4.0])
    assert found["mean"] == pytest.approx(7 / 3)
    assert found["deviation"] == pytest.approx(np.std([1, 2, 4], ddof=1))
    assert summarise([3.0])["deviation"] is None
