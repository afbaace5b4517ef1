"""Throughput of streams whose rate is known."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import numpy as np
import pytest

from brd_edge.runtime.engine import open_engine
from brd_edge.runtime.errors import EngineError
from brd_edge.runtime.throughput import _summarise, measure_throughput


def test_streams_add_up() -> None:
    seen: set[int] = set()

    @contextmanager
    def opened() -> Iterator[Callable[[], object]]:
        seen.add(threading.get_ident())
        yield lambda: time.sleep(0.01)

    found = measure_throughput(opened, streams=4, budget_s=1.0)
    assert (found.streams, len(seen)) == (4, 4)
    # a sleep is never shorter than asked for, and little longer unless the machine is very busy
    assert 0.5 * 400 < found.rate_hz.value <= 400
    assert found.rate_hz.low <= found.rate_hz.value <= found.rate_hz.high
    assert np.mean(found.windows_hz) == pytest.approx(found.rate_hz.value)
    assert found.frames == pytest.approx(found.rate_hz.value * 1.0, abs=8)
    assert found.to_json()["interval"] == [found.rate_hz.low, found.rate_hz.high]


def _taking(seconds: float) -> Callable[[], AbstractContextManager[Callable[[], object]]]:
    @contextmanager
    def opened() -> Iterator[Callable[[], object]]:
        yield lambda: time.sleep(seconds)

    return opened


def test_frames_that_take_longer_than_the_budget_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("brd_edge.runtime.throughput.warm_up", lambda _call, **_options: (0, True))
    found = measure_throughput(_taking(0.05), streams=2, budget_s=0.01)
    assert 0 < found.rate_hz.value <= 40.5
    assert found.duration_s >= 12 * 0.05
    assert found.frames >= 2 * 12 - 2
    assert len(found.windows_hz) >= 3
    assert found.rate_hz.low <= found.rate_hz.value <= found.rate_hz.high < np.inf


def test_a_frame_counts_where_it_was_worked_on() -> None:
    # of two streams the slower one is under way when the other stops, and neither began at the same time
    fast, slow = np.arange(0.0, 8.5, 0.5), np.arange(0.25, 12.0, 1.0)
    found = _summarise([fast.tolist(), slow.tolist()], [])
    assert found.duration_s == 7.75
    assert found.windows_hz == pytest.approx([3.0] * len(found.windows_hz))
    assert (found.rate_hz.value, found.frames) == (pytest.approx(3.0), 16 + 7)


def test_engines_run_side_by_side(engines: dict[str, Path], frames: list[np.ndarray]) -> None:
    @contextmanager
    def opened() -> Iterator[Callable[[], object]]:
        with open_engine(engines["onnxruntime"], threads=1) as runner:
            yield lambda: runner.infer(frames[0])

    assert measure_throughput(opened, streams=2, budget_s=0.2).frames > 2


def test_what_fails_in_a_stream_fails_the_measurement() -> None:
    number, before = iter(range(3)), threading.active_count()

    @contextmanager
    def opened() -> Iterator[Callable[[], object]]:
        if next(number) == 1:
            raise EngineError("no memory for another one")
        yield lambda: time.sleep(0.001)

    with pytest.raises(EngineError, match="no memory for another one"):
        measure_throughput(opened, streams=3, budget_s=30.0)
    assert threading.active_count() == before
    with pytest.raises(EngineError, match="streams >= 1 and budget_s > 0, got 0 and 1"):
        measure_throughput(opened, streams=0, budget_s=1)


def test_a_stream_that_fails_later_ends_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("brd_edge.runtime.throughput.warm_up", lambda _call, **_options: (0, True))
    number = iter(range(2))

    @contextmanager
    def opened() -> Iterator[Callable[[], object]]:
        calls = iter(range(3) if next(number) == 0 else range(10**9))

        def call() -> None:
            time.sleep(0.001)
            if next(calls, None) is None:
                raise EngineError("the device is gone")

        yield call

    with pytest.raises(EngineError, match="the device is gone"):
        measure_throughput(opened, streams=2, budget_s=30.0)
