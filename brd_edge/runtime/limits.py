"""Limits on measured values: the same rule at home and on a device."""

from __future__ import annotations

from typing import Literal

__all__ = ["Judgement", "Uncertain", "judge_limit"]

Uncertain = Literal["broken", "held"]
Judgement = Literal["held", "above", "uncertain"]


def judge_limit(value: float, high: float | None, limit: float, *, uncertain: str = "broken") -> Judgement:
    """Judge whether a value is at most its limit.

    Args:
        value: What was measured.
        high: Upper end of its interval; None or infinite where there is none.
        limit: The limit.
        uncertain: What a limit is that lies within the interval: `"broken"`, or `"held"`, with which the value alone
            decides.

    Returns:
        `"held"`; `"above"` where the value is; `"uncertain"` where only the interval is, and that counts as not held.
    """
    if value > limit:
        return "above"
    if uncertain == "broken" and (high is None or high > limit):
        return "uncertain"
    return "held"
