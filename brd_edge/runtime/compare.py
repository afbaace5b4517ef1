"""Two engines against each other: interleaved, in turns A B B A, with a control of A against itself.

Taking turns makes both see the same clocks and the same neighbours; A B B A cancels a linear drift. Where an
engine's buffers happen to lie in memory makes a difference of up to a percent that lasts as long as it is open,
so everything is opened anew in every round, and the interval is over rounds as well as over pairs. The control
runs a second A in the same turns: where A differs from A, the session cannot judge B.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, replace
from itertools import permutations
from typing import Any, TypeVar

import numpy as np

from brd_edge.runtime.clocks import clock_warnings, read_clocks
from brd_edge.runtime.errors import EngineError
from brd_edge.runtime.gpus import gpu_warnings, read_gpus
from brd_edge.runtime.latency import Stopped, collector_off, warm_up
from brd_edge.runtime.statistics import Comparison, FloatArray, compare_ratios

__all__ = ["Open", "PairedLatency", "compare_latency", "frames_by_turn"]

Frame = TypeVar("Frame")
Call = Callable[[], object]
Open = Callable[[], AbstractContextManager[Call]]
"""Opens an engine anew and yields a call that returns only when its work is done."""

_WARMUP_MIN = 8
_WARM_S = 1.0
_TURNS = 18
"""Turns in a round, each of which gives a ratio: every order three times."""
# each call comes after each other one, and first in a turn, as often as the others: what one leaves in the caches
# favours none. Rounds begin with another order each, because what comes first after the warm-up may differ too
_ORDERS = tuple(permutations(("a", "b", "c")))


@dataclass(frozen=True)
class PairedLatency:
    """What came of a session.

    Attributes:
        comparison: B against A.
        control: A against itself.
        samples_ms: Every sample by `"a"`, `"b"` and `"control"`: one tuple a round, in the order taken, two a turn.
        stopped: Why it ended: the `"interval"` was narrow enough, the number of rounds (`"samples"`) was reached, or
            the time `"budget"` was spent.
        warnings: What may have disturbed the session, a sentence each.
    """

    comparison: Comparison
    control: Comparison
    samples_ms: Mapping[str, tuple[tuple[float, ...], ...]]
    stopped: Stopped
    warnings: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Return everything but the samples, as JSON types."""
        return {
            "comparison": self.comparison.to_json(),
            "control": self.control.to_json(),
            "stopped": self.stopped,
            "warnings": list(self.warnings),
        }


def compare_latency(
    open_a: Open,
    open_b: Open,
    *,
    margin: float = 0.01,
    rounds_min: int = 4,
    rounds_max: int = 60,
    budget_s: float = 60.0,
    on_turn: Callable[[int], object] = lambda _turn: None,
) -> PairedLatency:
    """Time two engines in turns.

    The session ends when half the width of the ratio's interval is below a third of the margin, after
    `rounds_max`, or at the end of the budget; never because of what the verdict would be.

    Args:
        open_a: Opens what is compared with; also the control.
        open_b: Opens what is judged.
        margin: Largest difference that counts as none, as a share above 0.
        rounds_min: Rounds that are made whatever they cost, at least 3.
        rounds_max: Rounds after which to stop.
        budget_s: Seconds for all of it, above 0.
        on_turn: Is told which turn begins, from 0 over all rounds: what all of them work on may change there, and is
            the same within a turn (`frames_by_turn`).

    Returns:
        The verdict, `"undecided"` where the control differs from itself.

    Raises:
        EngineError: An argument is out of its range; or whatever opening and calling raise.

    Example:
        >>> compare_latency(open_plain, open_student).comparison.verdict
        'equivalent'
    """
    if margin <= 0 or not 3 <= rounds_min <= rounds_max or budget_s <= 0:
        raise EngineError(
            "compare: expected margin > 0, 3 <= rounds_min <= rounds_max and budget_s > 0, "
            f"got {margin}, {rounds_min}, {rounds_max} and {budget_s}"
        )
    openers = {"a": open_a, "b": open_b, "c": open_a}
    rounds: list[dict[str, list[float]]] = []
    end = time.perf_counter() + budget_s
    stopped: Stopped = "samples"
    before = read_clocks()
    while len(rounds) < rounds_max:
        rounds.append(_run_round(openers, len(rounds), on_turn))
        if len(rounds) < rounds_min:
            continue
        interval = compare_ratios(_ratios(rounds, "b"), margin=margin).ratio
        if (interval.high - interval.low) / 2 < margin / 3:
            stopped = "interval"
            break
        if time.perf_counter() >= end:
            stopped = "budget"
            break
    return _conclude(rounds, margin, stopped, clock_warnings(before, read_clocks()) + gpu_warnings(read_gpus()))


def frames_by_turn(frames: Sequence[Frame]) -> tuple[Callable[[], Frame], Callable[[int], None]]:
    """Let frames take turns, so that what is compared works on the same one.

    Args:
        frames: At least one.

    Returns:
        A call that returns the frame whose turn it is, and `compare_latency`'s `on_turn`.

    Example:
        >>> current, on_turn = frames_by_turn(frames)  # openers' calls: `lambda: runner.infer(current())`
    """
    place = [0]

    def on_turn(turn: int) -> None:
        place[0] = turn % len(frames)

    return lambda: frames[place[0]], on_turn


def _run_round(openers: Mapping[str, Open], number: int, on_turn: Callable[[int], object]) -> dict[str, list[float]]:
    """Open everything in the order of this round, warm it up, and take the turns; return the milliseconds."""
    order = _ORDERS[number % len(_ORDERS)]
    times: dict[str, list[float]] = {name: [] for name in openers}
    with ExitStack() as stack:
        calls = {name: stack.enter_context(openers[name]()) for name in order}
        with collector_off():
            for call in calls.values():
                warm_up(call, least=_WARMUP_MIN, budget_s=_WARM_S)
            for turn in range(_TURNS):
                on_turn(number * _TURNS + turn)
                forth = _ORDERS[(number + turn) % len(_ORDERS)]
                _take_turn(calls, times, (*forth, *reversed(forth)))
    return times


def _take_turn(calls: Mapping[str, Call], times: Mapping[str, list[float]], order: tuple[str, ...]) -> None:
    clock = time.perf_counter_ns
    for name in order:
        call = calls[name]
        before = clock()
        call()
        times[name].append((clock() - before) / 1e6)


def _ratios(rounds: list[dict[str, list[float]]], name: str) -> FloatArray:
    """Return the ratios to A, (rounds, turns): of the sums of two samples a turn, in which a linear drift cancels."""
    mine, base = (np.array([times[key] for times in rounds]).reshape(len(rounds), -1, 2).sum(2) for key in (name, "a"))
    ratios: FloatArray = mine / base
    return ratios


def _conclude(
    rounds: list[dict[str, list[float]]], margin: float, stopped: Stopped, warnings: list[str]
) -> PairedLatency:
    comparison, control = (compare_ratios(_ratios(rounds, name), margin=margin) for name in ("b", "c"))
    if control.verdict in ("faster", "slower"):
        warnings = [*warnings, f"the control, A against itself, was {control.describe()}: nothing can be concluded"]
        comparison = replace(comparison, verdict="undecided")
    names = {"a": "a", "b": "b", "control": "c"}
    samples = {title: tuple(tuple(times[key]) for times in rounds) for title, key in names.items()}
    return PairedLatency(comparison, control, samples, stopped, tuple(warnings))
