from __future__ import annotations

import gc
import shutil
import statistics
import time

import numpy as np
import pytest

from brd_edge.runtime.errors import EngineError
from brd_edge.runtime.latency import Narrow, in_rotation, latency_of, measure_latency, warm_up


def test_percentiles_of_known_samples() -> None:
    samples = [float((37 * index) % 101) for index in range(101)]  # 0 to 100, shuffled
    latency = latency_of(samples, warmup_n=3, stopped="samples")
    values = [latency.p50.value, latency.p90.value, latency.p95.value, latency.p99.value]
    assert values == [50, 90, 95, 99]
    assert (latency.p50_ms, latency.p95_ms, latency.mean.value, latency.min_ms) == (50, 95, 50, 0)
    assert latency.samples_ms == tuple(samples)
    found = latency.to_json()
    assert {key: found[key] for key in ("p50", "p90", "p95", "p99", "mean", "min", "n", "throughput_hz")} == {
        "p50": 50,
        "p90": 90,
        "p95": 95,
        "p99": 99,
        "mean": 50,
        "min": 0,
        "n": 101,
        "throughput_hz": 20,
    }
    for name, value in (*zip(("p50", "p90", "p95"), values, strict=False), ("mean", 50), ("throughput_hz", 20)):
        low, high = found["intervals"][name]
        assert low < value < high
    # 101 samples do not tell how high p99 may be
    low, high = found["intervals"]["p99"]
    assert (low < 99, high) == (True, None)


def test_percentiles_between_samples() -> None:
    samples = [1.0, 2.0, 4.0, 8.0]
    latency = latency_of(samples, warmup_n=0, stopped="budget")
    cuts = statistics.quantiles(samples, n=100, method="inclusive")
    assert latency.p50.value == pytest.approx(cuts[49])
    assert latency.p90.value == pytest.approx(cuts[89])
    assert latency.p95.value == pytest.approx(cuts[94])
    assert latency.p99.value == pytest.approx(cuts[98])


def test_a_known_sleep() -> None:
    calls = []

    def call() -> None:
        calls.append(None)
        time.sleep(0.002)

    latency = measure_latency(call, warmup_min=2, samples_min=3, samples_max=10, budget_s=0.5)
    # a sleep never ends early; how late it ends is the machine's affair
    assert latency.min_ms >= 2
    assert latency.min_ms <= latency.p50_ms <= latency.p95_ms <= latency.p99.value <= max(latency.samples_ms)
    # where there is an NVIDIA GPU it is kept busy while it is asked what slows it down
    assert len(calls) == latency.warmup_n + latency.n or shutil.which("nvidia-smi")
    assert latency.warmup_n >= 2
    assert latency.n == len(latency.samples_ms)


def test_stops_at_the_samples() -> None:
    latency = measure_latency(lambda: None, warmup_min=1, samples_min=2, samples_max=7, budget_s=600.0)
    assert (latency.n, latency.stopped) == (7, "samples")


def test_stops_at_the_budget_but_not_before_the_least_samples() -> None:
    slow = measure_latency(lambda: time.sleep(0.01), warmup_min=0, samples_min=4, samples_max=100, budget_s=0.001)
    assert (slow.n, slow.warmup_n, slow.stopped) == (4, 0, "budget")
    more = measure_latency(lambda: time.sleep(0.005), warmup_min=0, samples_min=1, samples_max=1000, budget_s=0.05)
    assert 1 <= more.n <= 11
    assert more.stopped == "budget"


def test_stops_when_the_interval_is_narrow() -> None:
    # a sleep of two milliseconds takes nearly always the same
    narrow = Narrow(after_s=0.3, after_samples=60, p50=0.05)
    latency = measure_latency(lambda: time.sleep(0.002), samples_min=50, samples_max=5000, budget_s=60, narrow=narrow)
    assert latency.stopped == "interval"
    assert latency.n >= 60
    assert sum(latency.samples_ms) >= 300
    assert latency.p50.relative_width < 0.05
    assert latency.warm


def test_what_is_narrow_enough() -> None:
    samples = list(np.random.default_rng(0).normal(10, 0.2, 400))
    assert Narrow().holds(samples)
    # 3 seconds and 300 samples are the least
    assert not Narrow().holds(samples[:299])
    assert not Narrow().holds([value / 2 for value in samples])
    assert Narrow(after_s=1.5).holds([value / 2 for value in samples])
    assert not Narrow(p50=0).holds(samples)
    # the median is narrow, its neighbour in the tail is not, as one call in fifteen had to wait
    waits = [2 * value if i % 15 == 0 else value for i, value in enumerate(samples)]
    assert Narrow().holds(waits)
    assert not Narrow(p95=0.02).holds(waits)
    assert Narrow(p95=0.05).holds(samples)


def test_a_call_that_goes_on_becoming_faster_is_not_warm() -> None:
    waits = iter(0.02 * 0.9**i for i in range(1000))
    number, warm = warm_up(lambda: time.sleep(next(waits)), least=5, budget_s=0.1)
    assert not warm
    assert number >= 5
    latency = latency_of([1.0] * 9 + [1.2] * 9, warmup_n=number, stopped="budget", warm=warm)
    assert latency.warnings == (
        "the calls still became faster or slower when the time for warming up was over",
        "the last third of the samples was 20 % slower than the first",
    )


def test_calls_in_rotation_are_compared_with_those_on_the_same_frame() -> None:
    seen: list[int] = []
    calls = [lambda place=place: (seen.append(place), time.sleep((0.0002, 0.004)[place == 2])) for place in range(8)]
    number, warm = warm_up(in_rotation(calls), least=5, budget_s=5, frames=8)
    # windows have all frames: two of eight calls, and never the slow frame in one of them alone
    assert (warm, number >= 16) == (True, True)
    assert seen[:10] == [0, 1, 2, 3, 4, 5, 6, 7, 0, 1]
    # half of the frames take three times as long, each always the same: nothing else has run
    samples = [10.0 + 20 * (i % 2) + 0.01 * (i % 7) for i in range(200)]
    assert latency_of(samples, warmup_n=0, stopped="samples", frames=2).warnings == ()
    (warning,) = latency_of([10, 20, 20, 20] * 9, warmup_n=0, stopped="samples").warnings
    assert "2.0 times the fastest call" in warning


def test_garbage_collector_is_off_and_restored() -> None:
    seen = []
    assert gc.isenabled()
    measure_latency(lambda: seen.append(gc.isenabled()), warmup_min=1, samples_min=1, samples_max=2, budget_s=0.01)
    assert set(seen) == {False}
    assert gc.isenabled()

    def fail() -> None:
        raise RuntimeError("engine")

    with pytest.raises(RuntimeError, match="engine"):
        measure_latency(fail)
    assert gc.isenabled()
    gc.disable()
    try:
        measure_latency(lambda: None, warmup_min=0, samples_min=1, samples_max=1, budget_s=0.01)
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_arguments_are_checked() -> None:
    with pytest.raises(EngineError, match="samples_min <= samples_max"):
        measure_latency(lambda: None, samples_min=5, samples_max=4)
    with pytest.raises(EngineError, match="at least 1 sample"):
        latency_of([], warmup_n=0, stopped="budget")
