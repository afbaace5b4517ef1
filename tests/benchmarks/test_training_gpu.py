from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import training_gpu


@pytest.mark.parametrize(("memory", "time", "held"), [(0.081, 1.22, False), (0.12, 0.9, False), (0.08, 0.9, True)])
def test_the_relation_is_held_to_its_bounds_at_8192_pixels(
    memory: float, time: float, held: bool, tmp_path: Path
) -> None:
    rows = [
        {"n": 1024, "memory_ratio": 0.9, "time_ratio": 2.0},
        {"n": 8192, "memory_ratio": memory, "time_ratio": time},
    ]
    (tmp_path / "relation.json").write_text(json.dumps({"rows": rows}), encoding="utf-8")

    assert training_gpu.read_relation(tmp_path / "relation.json")[1] is held


@pytest.mark.parametrize(("script", "code"), [("pass", 0), ("raise SystemExit(3)", 3)])
def test_a_check_without_a_result_does_not_hold(script: str, code: int, tmp_path: Path) -> None:
    check = training_gpu.Check(
        "nothing", (sys.executable, "-c", script), lambda: training_gpu.read_step_time(tmp_path / "step_time.json")
    )

    found = training_gpu.run(check)

    assert (found["held"], found["exit_code"]) == (False, code)


@pytest.mark.parametrize(("relation_s", "share", "held"), [(0.005, 0.1, True), (0.025, 0.25, False)])
def test_terms_share(relation_s: float, share: float, held: bool, tmp_path: Path) -> None:
    seconds = {"data": 0.02, "teacher": 0.02, "student": 0.05, "boundary": 0.005, "relation": relation_s}
    (tmp_path / "step_time.json").write_text(json.dumps({"seconds": seconds}), encoding="utf-8")

    found, holds = training_gpu.read_step_time(tmp_path / "step_time.json")

    assert found["terms_share"] == pytest.approx((0.005 + relation_s) / sum(seconds.values()))
    assert held == holds
    assert share == pytest.approx(found["terms_share"], abs=0.001)


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what it says without a GPU")
def test_without_a_gpu_nothing_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "found.json"

    assert training_gpu.main(["pipelines/quickstart.yaml", "--output", str(output)]) == 2

    assert "no GPU" in capsys.readouterr().err
    assert not output.exists()
