from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import training_gpu

RECIPE = Path(__file__).parents[2] / "pipelines" / "quickstart.yaml"


@pytest.mark.parametrize(("memory", "time", "held"), [(0.081, 1.22, False), (0.12, 0.9, False), (0.08, 0.9, True)])
def test_the_relation_is_held_to_its_bounds_at_8192_pixels(
    memory: float, time: float, held: bool, tmp_path: Path
) -> None:
    rows = [
        {"n": 1024, "memory_ratio": 0.9, "time_ratio": 2.0},
        {"n": 8192, "memory_ratio": memory, "time_ratio": time},
    ]
    (tmp_path / "relation.json").write_text(json.dumps({"operations": "triton", "rows": rows}), encoding="utf-8")

    found, holds = training_gpu.read_relation(tmp_path / "relation.json")

    assert holds is held
    assert found["operations"] == "triton"


@pytest.mark.parametrize(("script", "code"), [("pass", 0), ("raise SystemExit(3)", 3)])
def test_a_check_without_a_result_does_not_hold(script: str, code: int, tmp_path: Path) -> None:
    check = training_gpu.Check(
        "nothing", (sys.executable, "-c", script), lambda: training_gpu.read_step_time(tmp_path / "step_time.json")
    )

    found = training_gpu.run(check, 60)

    assert (found["held"], found["exit_code"]) == (False, code)


@pytest.mark.parametrize("listens", [True, False])
def test_a_check_that_hangs_is_told_to_end_and_then_ended(
    listens: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = tmp_path / "told"
    script = (
        "import pathlib, signal, sys, time\n"
        "def end(*_):\n    pathlib.Path(sys.argv[1]).touch()\n    sys.argv[2] and sys.exit()\n"
        "signal.signal(signal.SIGTERM, end)\n"
        "while True: time.sleep(0.1)"
    )
    command = (sys.executable, "-c", script, str(told), "listens" if listens else "")
    monkeypatch.setattr(training_gpu, "_GRACE_S", 30 if listens else 1)

    found = training_gpu.run(training_gpu.Check("hangs", command, lambda: ({}, True)), 3)

    assert (found["held"], found["exit_code"]) == (False, None)
    assert told.exists()
    assert found["duration_s"] < 25


@pytest.mark.parametrize(("relation_s", "share", "held"), [(0.005, 0.1, True), (0.025, 0.25, False)])
def test_terms_share(relation_s: float, share: float, held: bool, tmp_path: Path) -> None:
    seconds = {"data": 0.02, "teacher": 0.02, "student": 0.05, "boundary": 0.005, "relation": relation_s}
    (tmp_path / "step_time.json").write_text(json.dumps({"seconds": seconds}), encoding="utf-8")

    found, holds = training_gpu.read_step_time(tmp_path / "step_time.json")

    assert found["terms_share"] == pytest.approx((0.005 + relation_s) / sum(seconds.values()))
    assert held == holds
    assert share == pytest.approx(found["terms_share"], abs=0.001)


def _nccl(directory: Path, gpus: int) -> training_gpu.Check:
    return next(check for check in training_gpu.checks(RECIPE, directory, 3, gpus) if check.name.endswith("nccl"))


@pytest.mark.parametrize(("gpus", "batch"), [(2, 8), (3, 9), (5, 10), (6, 12), (16, 16)])
def test_every_gpu_gets_an_equal_share_of_a_batch(gpus: int, batch: int, tmp_path: Path) -> None:
    check = _nccl(tmp_path, gpus)

    assert check.skipped is None
    assert f"--nproc-per-node={gpus}" in check.command
    assert f"distill.train.batch_size={batch}" in check.command


def test_no_training_is_kept_from_an_earlier_command(tmp_path: Path) -> None:
    pipelines = [
        check.command for check in training_gpu.checks(RECIPE, tmp_path, 3, 2) if "brd_edge.pipeline" in check.command
    ]

    assert len(pipelines) == 5
    assert all("--force" in command for command in pipelines)


def test_a_given_teacher_is_not_trained(tmp_path: Path) -> None:
    checks = training_gpu.checks(RECIPE, tmp_path, 3, 1, tmp_path / "given")

    assert {check.name: check.skipped for check in checks}["teacher"] == "a teacher was given"
    students = [check.command for check in checks if check.name.startswith("distillation")]
    assert all(f'teacher.checkpoint="{tmp_path / "given"}"' in command for command in students)


def _on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
    monkeypatch.setattr(training_gpu, "describe_environment", dict)


def test_only_some_checks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    named = [
        training_gpu.Check(name, (sys.executable, "-c", "pass"), lambda: ({}, True)) for name in ("a, b", "c", "d")
    ]
    output = tmp_path / "found.json"
    _on_a_gpu(monkeypatch)
    monkeypatch.setattr(training_gpu, "checks", lambda *_arguments: named)
    options = [str(RECIPE), "--directory", str(tmp_path), "--output", str(output), "--only"]

    assert training_gpu.main([*options, "d; a, b"]) == 0
    result = json.loads(output.read_text(encoding="utf-8"))
    assert [entry["check"] for entry in result["checks"]] == ["a, b", "d"]
    assert result["options"] == {"epochs": 3, "limit_s": 600, "only": "d; a, b", "teacher": "trained"}

    with pytest.raises(SystemExit):
        training_gpu.main([*options, "c;e"])
    assert "no check is called e; there are a, b; c; d" in capfd.readouterr().err


@pytest.mark.parametrize("code", [0, 3])
def test_one_gpu_joins_nothing_and_that_is_no_failure(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    script = (sys.executable, "-c", f"raise SystemExit({code})")
    first = training_gpu.Check("first", script, lambda: ({"share": 1}, True))
    chosen = [first, _nccl(tmp_path, 1)]
    output = tmp_path / "found.json"
    _on_a_gpu(monkeypatch)
    monkeypatch.setattr(training_gpu, "checks", lambda *_arguments: chosen)

    assert training_gpu.main([str(RECIPE), "--directory", str(tmp_path), "--output", str(output)]) == int(code > 0)

    lines = capfd.readouterr().out.splitlines()
    assert lines[0].split("  ")[0] == ("DOES NOT HOLD" if code else "holds")
    assert lines[1] == "skipped        distillation, nccl (NCCL joins two GPUs or more)"
    first, nccl = json.loads(output.read_text(encoding="utf-8"))["checks"]
    assert first["held"] is (code == 0)
    assert nccl == {"check": "distillation, nccl", "held": None, "reason": "NCCL joins two GPUs or more"}


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what it says without a GPU")
def test_without_a_gpu_nothing_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "found.json"

    assert training_gpu.main(["pipelines/quickstart.yaml", "--output", str(output)]) == 2

    assert "no GPU" in capsys.readouterr().err
    assert not output.exists()
