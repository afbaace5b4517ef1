from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from benchmarks import relation_loss

ROOT = Path(__file__).parents[2]


def test_the_command_prints_one_json_line_last(tmp_path: Path) -> None:
    output = tmp_path / "relation.json"
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.relation_loss", "--n", "4096", "--pairs", "1", "--output", str(output)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )

    result = json.loads(done.stdout.splitlines()[-1])
    assert result == json.loads(output.read_text(encoding="utf-8"))
    (row,) = result["rows"]
    assert row["n"] == 4096
    # memory and gradients do not depend on what else the machine is doing; time does, and is not asserted
    assert row["memory_ratio"] <= 1 / 6
    assert row["max_relative_gradient_error"] < 1e-3
    # a 4096 x 4096 matrix of float32 takes 64 MiB, and the naive loss holds several
    assert row["naive_bytes"] > 3 * 64 * 2**20
    assert row["time_ratio"] > 0


def test_streaming_multiplies_no_more_than_naive() -> None:
    """The time depends on the machine, the products do not: a tile computed twice would show here."""
    from torch.utils.flop_counter import FlopCounterMode

    products = {}
    for name in ("naive", "streaming"):
        teacher, student = relation_loss.inputs(2048, 64, "cpu")
        with FlopCounterMode(display=False) as counter:
            relation_loss.gradient(name, teacher, student)
        products[name] = counter.get_total_flops()

    # two matrices of similarities, and two products for the student's gradient
    assert products["naive"] == 4 * 2 * 2048 * 2048 * 64
    assert 0 < products["streaming"] <= products["naive"]
