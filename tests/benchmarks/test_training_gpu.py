from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks import training_gpu

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"


def test_a_miss_in_time_is_one() -> None:
    # of an H100: 0.081 of the memory, 1.22 of the time
    found, held = training_gpu.read_relation(RESULTS / "relation_loss_cuda.json")

    assert [row["n"] for row in found["rows"]] == [1024, 8192, 32768]
    assert held == (found["rows"][1]["memory_ratio"] <= 0.1 and found["rows"][1]["time_ratio"] <= 1)


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
