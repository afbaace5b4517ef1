"""Several processes against one: real processes, real gloo."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

ROOT = Path(__file__).parents[2]
WORKER = str(Path(__file__).parent / "training_worker.py")


def _run(processes: int, *arguments: str, seconds: float = 300) -> subprocess.CompletedProcess[str]:
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"] if processes > 1 else []
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *launcher, *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done


def _losses(directory: Path) -> dict[int, dict[str, float]]:
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return {line["step"]: line["loss"] for line in lines if "loss" in line}


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("alone")
    _run(1, WORKER, str(directory), "0")
    return directory


def _assert_same_training(directory: Path, alone: Path) -> None:
    """In float64 what is left is rounding, which 20 steps of training amplify."""
    expected, found = _losses(alone), _losses(directory)
    assert list(found) == list(expected) == [10, 20]
    for step, terms in expected.items():
        assert found[step] == pytest.approx(terms, rel=1e-5), step
    first, second = (load_file(path / "checkpoint.safetensors") for path in (alone, directory))
    assert list(second) == list(first)
    for name, values in first.items():
        if name != "random/cpu":
            np.testing.assert_allclose(second[name], values, rtol=1e-4, atol=1e-5, err_msg=name)


def test_two_processes_train_like_one(alone: Path, tmp_path: Path) -> None:
    _run(2, WORKER, str(tmp_path), "0")

    _assert_same_training(tmp_path, alone)


@pytest.mark.parametrize(("first", "then"), [(2, 1), (1, 2)])
def test_a_training_goes_on_with_another_number_of_processes(
    alone: Path, tmp_path: Path, first: int, then: int
) -> None:
    stopped = _run(first, WORKER, str(tmp_path), "13")
    assert "stopped" in stopped.stdout
    assert (tmp_path / "checkpoint.safetensors").is_file()

    _run(then, WORKER, str(tmp_path), "0")

    _assert_same_training(tmp_path, alone)


def test_the_pipeline_under_torchrun(tmp_path: Path) -> None:
    """The command itself, with two processes and with one: the first alone writes, and both end."""
    settings = (
        "data.size=[64, 96]",
        "data.scenes={train: 20, val: 3}",
        "data.threads=1",
        "teacher.options={decoder_channels: 16, decoder_aspp_dropout: 0.0}",
        "teacher.encoder=tu-mobilenetv3_small_050",
        "teacher.train.epochs=2",
        "teacher.train.batch_size=4",
        "teacher.train.lr=0.0005",
        "student.options={decoder_channels: 16, decoder_aspp_dropout: 0.0}",
        "distill.train.epochs=2",
        "distill.train.batch_size=4",
        "distill.train.lr=0.0005",
    )
    overrides = [part for setting in settings for part in ("--set", setting)]
    for processes in (1, 2):
        directory = tmp_path / str(processes)
        command = ["pipelines/quickstart.yaml", "--run-dir", str(directory), "--until", "distill", *overrides]
        done = _run(processes, "-m", "brd_edge.pipeline", *command)
        assert done.stderr.count("[3/8] distill: train") == 1, done.stderr
    for stage in ("teacher", "distill"):
        alone, together = (_losses(tmp_path / str(processes) / stage) for processes in (1, 2))
        assert list(together) == list(alone) == [10]
        # float32, whose rounding Adam amplifies
        assert together[10] == pytest.approx(alone[10], rel=0.02), stage
