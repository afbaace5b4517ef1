"""What holds a limit, above all at the limit itself."""

from __future__ import annotations

import math

import pytest

from brd_edge.runtime.limits import Judgement, Uncertain, judge_limit


@pytest.mark.parametrize(
    ("value", "high", "uncertain", "expected"),
    [
        # at most: what is at the limit holds it
        (2.0, 2.0, "broken", "held"),
        (2.0, 2.0, "held", "held"),
        (1.0, 2.0, "broken", "held"),
        (math.nextafter(2, 3), 3.0, "broken", "above"),
        (math.nextafter(2, 3), None, "held", "above"),
        (1.0, math.nextafter(2, 3), "broken", "uncertain"),
        (1.0, None, "broken", "uncertain"),
        (1.0, math.inf, "broken", "uncertain"),
        (1.0, None, "held", "held"),
        (1.0, math.inf, "held", "held"),
    ],
)
def test_a_limit_is_the_largest_value_that_holds(
    value: float, high: float | None, uncertain: Uncertain, expected: Judgement
) -> None:
    assert judge_limit(value, high, 2.0, uncertain=uncertain) == expected
