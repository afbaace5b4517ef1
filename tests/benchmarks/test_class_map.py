from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.class_map import main, smooth_logits
from brd_edge.runtime.class_map import ClassMapper

ROOT = Path(__file__).parents[2]


def test_the_command_prints_one_json_line_last(tmp_path: Path) -> None:
    output = tmp_path / "class_map.json"
    small = ["--size", "48x64", "--classes", "5", "--stride", "4", "--mixed", "0.2", "--rounds", "3"]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.class_map", *small, "--output", str(output)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )

    result = json.loads(done.stdout.splitlines()[-1])
    assert result == json.loads(output.read_text(encoding="utf-8"))
    (case,) = result["cases"]
    assert (case["shape"], case["size"], case["align_corners"]) == ([1, 5, 12, 16], [48, 64], True)
    found = {name: entry for name, entry in case["contenders"].items() if "reason" not in entry}
    assert {"plain numpy", "dense", "torch, 1 thread", "sparse"} <= set(found)
    assert found["sparse"]["agreement"] == found["plain numpy"]["agreement"] == 1
    assert found["torch, 1 thread"]["agreement"] > 0.999
    for entry in found.values():
        assert 0 < entry["ms"]["low"] <= entry["ms"]["value"] <= entry["ms"]["high"]
        assert set(entry["speedup_over"]) == {"plain numpy", "dense"}
    assert all(found[base]["speedup_over"][base]["value"] == 1 for base in ("plain numpy", "dense"))


@pytest.mark.parametrize("share", [0.05, 0.2])
def test_logits_have_the_share_of_mixed_cells(share: float) -> None:
    logits = smooth_logits(7, 48, 96, share, seed=1)
    mapper = ClassMapper(7, 48, 96, 192, 384, align_corners=True)
    mapper.class_map(logits)

    assert mapper.mixed_share == pytest.approx(share, rel=0.2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--size", "512"], "HEIGHTxWIDTH such as 512x1024, came '512'"),
        (["--stride", "0"], "a whole number from 1, got '0'"),
    ],
)
def test_what_is_refused(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as refused:
        main(arguments)

    assert refused.value.code == 2
    assert message in capsys.readouterr().err


def test_a_run_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--run", str(tmp_path / "none")]) == 2
    assert "none/recipe.yaml: no such recipe" in capsys.readouterr().err
