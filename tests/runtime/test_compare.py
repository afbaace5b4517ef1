"""Sessions with calls whose times are known; what real engines give is measured by `benchmarks.verdicts`."""

from __future__ import annotations

import gc
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from itertools import pairwise

import numpy as np
import pytest

from brd_edge.runtime import compare
from brd_edge.runtime.compare import Open, compare_latency, frames_by_turn
from brd_edge.runtime.errors import EngineError


class Clock:
    """A clock that calls move: times are exact, and nothing waits."""

    def __init__(self) -> None:
        self.now_ns = 0
        self.taken: list[str] = []
        self.opened: list[str] = []
        self.rng = np.random.default_rng(0)

    def call(self, name: str, ms: float, *, noise: float = 0.02, drift: float = 0.0) -> Callable[[], None]:
        def run() -> None:
            self.taken.append(name)
            slower = 1 + drift * len(self.taken)
            self.now_ns += int(1e6 * ms * slower * np.exp(self.rng.normal(0, noise)))

        return run

    def opener(self, name: str, ms: float, *, noise: float = 0.02, drift: float = 0.0, layout: float = 0.0) -> Open:
        """Open a call of a known time; where it lies in memory changes that by `layout` each time it is opened."""

        @contextmanager
        def opened() -> Iterator[Callable[[], None]]:
            place = float(np.exp(self.rng.normal(0, layout))) if layout else 1.0
            self.opened.append(name)
            yield self.call(name, ms * place, noise=noise, drift=drift)

        return opened


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(time, "perf_counter_ns", lambda: made.now_ns)
    monkeypatch.setattr(time, "perf_counter", lambda: made.now_ns / 1e9)
    # between rounds it takes long in a process that has run many tests
    monkeypatch.setattr(gc, "collect", lambda: 0)
    return made


def test_calls_that_are_equal_are_equivalent(clock: Clock) -> None:
    found = compare_latency(clock.opener("a", 10), clock.opener("b", 10))
    assert found.comparison.verdict == found.control.verdict == "equivalent"
    assert found.stopped == "interval"
    rounds = len(found.samples_ms["a"])
    assert clock.opened.count("a") == 2 * rounds
    assert clock.opened.count("b") == rounds
    assert {len(times) for times in found.samples_ms["control"]} == {36}
    assert found.comparison.pairs == 18 * rounds


@pytest.mark.parametrize(("ms", "verdict"), [(10.3, "slower"), (9.7, "faster")])
def test_three_percent_are_seen(clock: Clock, ms: float, verdict: str) -> None:
    found = compare_latency(clock.opener("a", 10), clock.opener("b", ms))
    assert found.comparison.verdict == verdict
    assert found.comparison.ratio.value == pytest.approx(ms / 10, rel=0.005)


def test_a_drift_that_all_share_does_not_matter(clock: Clock) -> None:
    """Everything becomes half as slow again in the course of the session."""
    found = compare_latency(
        *(clock.opener(name, 10, noise=0.005, drift=0.5 / 1800) for name in "ab"), rounds_min=12, budget_s=1000
    )
    assert found.comparison.verdict == "equivalent"
    assert abs(found.comparison.ratio.value - 1) < 0.003


def test_what_lasts_as_long_as_an_engine_is_open_is_part_of_the_interval(clock: Clock) -> None:
    """Places in memory that differ by a percent are not taken for a difference between the engines."""
    sessions = [
        compare_latency(*(clock.opener(name, 10, noise=0.01, layout=0.01) for name in "ab"), rounds_max=20)
        for _ in range(10)
    ]
    verdicts = [session.comparison.verdict for session in sessions]
    assert sum(verdict in ("faster", "slower") for verdict in verdicts) <= 1
    assert max(len(session.samples_ms["a"]) for session in sessions) > 4


def test_a_control_that_differs_from_itself_judges_nothing(clock: Clock) -> None:
    """Whatever is opened last in a round is slow."""
    openings = iter(range(1_000))

    @contextmanager
    def biased() -> Iterator[Callable[[], None]]:
        # of the two A of a round, the first by name is opened before the second in half of the rounds only
        yield clock.call("a", 10 if next(openings) % 2 == 0 else 10.5)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compare, "_ORDERS", (("a", "c", "b"),))
        found = compare_latency(biased, clock.opener("b", 10.6))
    assert found.comparison.verdict == "undecided"
    assert found.control.verdict == "slower"
    assert "nothing can be concluded" in found.warnings[-1]


def test_the_budget_ends_a_noisy_session(clock: Clock) -> None:
    found = compare_latency(*(clock.opener(name, 10, noise=0.5) for name in "ab"), budget_s=3)
    assert found.stopped == "budget"
    assert len(found.samples_ms["a"]) >= 4
    assert found.comparison.verdict in ("undecided", "equivalent")


def test_turns_are_balanced(clock: Clock) -> None:
    compare_latency(*(clock.opener(name, 10) for name in "ab"), rounds_min=6, rounds_max=6)
    assert [clock.opened[i : i + 3].count("b") for i in range(0, 18, 3)] == [1] * 6
    assert sorted(clock.opened[i : i + 3].index("b") for i in range(0, 18, 3)) == [0, 0, 1, 1, 2, 2]


def test_each_call_stands_in_each_place_as_often(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """In every round, whatever number of them there are, of which the rounds' first turns are balanced as well."""
    turns: list[tuple[str, ...]] = []
    take = compare._take_turn

    def taken(
        calls: Mapping[str, Callable[[], object]], times: Mapping[str, list[float]], order: tuple[str, ...]
    ) -> None:
        turns.append(order)
        take(calls, times, order)

    monkeypatch.setattr(compare, "_take_turn", taken)
    found = compare_latency(*(clock.opener(name, 10) for name in "ab"), rounds_min=6, rounds_max=6)
    count = len(turns) // len(found.samples_ms["a"])
    for begin in range(0, len(turns), count):
        for place in range(6):
            assert Counter(order[place] for order in turns[begin : begin + count]) == dict.fromkeys("abc", count / 3)
        followed = Counter(
            pair for order in turns[begin : begin + count] for pair in pairwise(order) if len({*pair}) > 1
        )
        assert len(set(followed.values())) == 1
        assert len(followed) == 6
    assert Counter(turns[begin][0] for begin in range(0, len(turns), count)) == dict.fromkeys("abc", 2)
    assert all(order == order[::-1] for order in turns)


def test_frames_take_turns_and_all_see_the_same(clock: Clock) -> None:
    seen: dict[str, list[int]] = {"a": [], "b": []}
    current, on_turn = frames_by_turn(range(8))

    def opener(name: str) -> Open:
        @contextmanager
        def opened() -> Iterator[Callable[[], None]]:
            def call() -> None:
                seen[name].append(current())
                clock.now_ns += 1_000_000 * (10 + current())

            yield call

        return opened

    found = compare_latency(opener("a"), opener("b"), rounds_min=4, rounds_max=4, on_turn=on_turn)
    # frames that take longer are in both times
    assert found.comparison.ratio.value == found.control.ratio.value == 1
    turns = [10 + turn % 8 for turn in range(4 * 18)]
    assert [ms for times in found.samples_ms["b"] for ms in times] == [ms for ms in turns for _ in range(2)]
    assert set(seen["a"]) == set(seen["b"]) == set(range(8))


def test_wrong_arguments() -> None:
    with pytest.raises(EngineError, match="rounds_min <= rounds_max"):
        compare_latency(nullcontext, nullcontext, rounds_min=10, rounds_max=5)  # type: ignore[arg-type]
