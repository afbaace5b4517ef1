"""Sessions whose right answer is known: what is written down of them, for engines of more than one runtime."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from benchmarks.verdicts import main, mean_ratio, slowed


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_the_command_prints_one_json_line_last(
    runtime: str, engines: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "verdicts.json"
    few = ["--sessions", "2", "--slowdowns", "1", "--share", "0.5", "--budget", "0.1"]
    assert main([str(engines[runtime]), *few, "--output", str(output)]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result == json.loads(output.read_text(encoding="utf-8"))
    assert (result["runtime"], result["timed"], result["budget_s"]) == (runtime, "frame to class map", 0.1)
    assert sorted(session["slowdown"] for session in result["sessions"]) == [0, 0, 0.5]
    assert all(session["rounds"] >= 4 for session in result["sessions"])
    controls = [session["control"]["ratio"]["value"] for session in result["sessions"]]
    assert result["a_a_ratio"]["controls"]["value"] == pytest.approx(stats.gmean(controls))
    assert result["a_a_ratio"]["sessions"]["low"] <= result["a_a_ratio"]["sessions"]["value"]


def test_what_cannot_be_read_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path), "--sessions", "1", "--slowdowns", "0"]) == 1
    assert "verdicts: error: " in capsys.readouterr().err


def test_the_mean_ratio_is_students() -> None:
    ratios = np.exp(np.random.default_rng(0).normal(0.002, 0.004, 20))
    found = mean_ratio(list(ratios))
    theirs = stats.ttest_1samp(np.log(ratios), 0).confidence_interval(0.95)
    assert found is not None
    assert (found["low"], found["high"]) == pytest.approx((np.exp(theirs.low), np.exp(theirs.high)))
    assert mean_ratio([1.0]) is None


@pytest.mark.parametrize(("share", "least_s"), [(1.0, 0.02), (0.5, 0.015)])
def test_a_planted_slowdown_adds_its_share_to_the_call(share: float, least_s: float) -> None:
    """By less the sessions would look for a slowdown that is not there."""
    calls = []

    def call() -> None:
        calls.append(time.perf_counter())
        time.sleep(0.01)

    start = time.perf_counter()
    slowed(call, share)()

    assert len(calls) == 1
    # a sleep may last longer, and what is added with it, but never less
    assert time.perf_counter() - start >= 0.99 * least_s
