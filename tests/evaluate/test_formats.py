"""Numbers as people read them."""

from __future__ import annotations

import pytest

from brd_edge.evaluate.formats import agreement_percent


@pytest.mark.parametrize(
    ("fraction", "text"),
    [(1.0, "100.00"), (0.9999992, ">99.99"), (0.99996, ">99.99"), (0.99994, "99.99"), (0.5, "50.00"), (None, "-")],
)
def test_agreement_is_all_only_where_it_is(fraction: float | None, text: str) -> None:
    assert agreement_percent(fraction, missing="-") == text
