from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import engine_process
from benchmarks.engines import spread

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("call", ["infer", "bind"])
def test_an_engine_is_timed_in_a_process_of_its_own(engines: dict[str, Path], call: str) -> None:
    command = [sys.executable, "-m", "benchmarks.engine_process", str(engines["openvino"]), "--call", call]
    done = subprocess.run(
        [*command, "--seconds", "0.1"], cwd=ROOT, capture_output=True, text=True, check=True
    )  # fmt: skip
    assert 0 < float(done.stdout.removesuffix(" ms\n")) < 1000


def test_the_median_is_that_of_the_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    # start and end of five calls, of 1, 5, 2, 9 and 3 ms, and the clock that says that time is up
    ends = iter([0, 1, 10, 15, 20, 22, 30, 39, 40, 43])
    left = iter([0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 2.0])
    monkeypatch.setattr(engine_process.time, "perf_counter_ns", lambda: next(ends) * 1_000_000)
    monkeypatch.setattr(engine_process.time, "perf_counter", lambda: next(left))
    assert engine_process.median_ms(lambda: None, 1.0) == 3.0


def test_the_vendors_tool_and_the_runner_are_timed_in_turns(
    engines: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    if shutil.which("benchmark_app", path=str(Path(sys.executable).parent)) is None:
        pytest.skip("benchmark_app is not installed")
    from benchmarks.engines import vendor_overhead

    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("benchmarks.engines._VENDOR_S", 1)
    found = vendor_overhead(engines["openvino"], "f32", threads=1, turns=1)
    assert "reason" not in found, found
    assert found["infer_ratio"]["value"] == pytest.approx(
        found["infer_ms"]["value"] / found["benchmark_app_ms"]["value"]
    )
    assert found["cache_ratio"]["value"] == pytest.approx(
        found["benchmark_app_ms"]["value"] / found["benchmark_app_no_cache_ms"]["value"]
    )
    assert found["infer_no_cache_ratio"]["value"] == pytest.approx(
        found["infer_no_cache_ms"]["value"] / found["benchmark_app_no_cache_ms"]["value"]
    )
    assert list((engines["openvino"].parent / "cache").iterdir()), "the tool had its cache on"


def test_indices_are_spread_over_all() -> None:
    assert spread(101, 3) == [0, 50, 100]
    assert spread(2, 5) == [0, 1]
