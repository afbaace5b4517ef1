"""Several processes against one: real processes, real gloo."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from running import pipelines_in, wait_for
from safetensors.numpy import load_file
from tiny import TINY

ROOT = Path(__file__).parents[2]
WORKER = str(Path(__file__).parent / "training_worker.py")
TERMS_WORKER = str(Path(__file__).parent / "terms_worker.py")
UNREAD_WORKER = str(Path(__file__).parent / "unread_worker.py")
MEMORY_WORKER = str(Path(__file__).parent / "memory_worker.py")


ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def _command(processes: int, *arguments: str) -> list[str]:
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"] if processes > 1 else []
    return [sys.executable, *launcher, *arguments]


def _run(processes: int, *arguments: str, seconds: float = 300) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        _command(processes, *arguments),
        cwd=ROOT,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done


def _losses(directory: Path) -> dict[int, dict[str, float]]:
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    losses = {line["step"]: line["loss"] for line in lines if "loss" in line}
    assert sum("loss" in line for line in lines) == len(losses), "one process alone writes"
    return losses


@pytest.fixture(scope="module")
def trainings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Trainings by the numbers of processes that they ran with, one after the other."""
    root = tmp_path_factory.mktemp("trainings")
    one, two = root / "one", root / "two"
    one_parts, two_parts = root / "one in parts", root / "two in parts"
    one_two, two_one = root / "one-two", root / "two-one"
    assert f"stopped {one_two}" in _run(1, WORKER, f"{one}:0:1", f"{one_two}:13:1", f"{one_parts}:0:2").stdout
    assert (one_two / "checkpoint.safetensors").is_file()
    tasks = f"{two}:0:1", f"{one_two}:0:1", f"{two_one}:13:1", f"{two_parts}:0:2"
    assert f"stopped {two_one}" in _run(2, WORKER, *tasks).stdout
    assert (two_one / "checkpoint.safetensors").is_file()
    _run(1, WORKER, f"{two_one}:0:1")
    return {path.name: path for path in (one, two, one_two, two_one, one_parts, two_parts)}


@pytest.mark.parametrize(
    ("processes", "one"),
    [("two", "one"), ("one-two", "one"), ("two-one", "one"), ("two in parts", "one in parts")],
)
def test_any_number_of_processes_trains_like_one(trainings: dict[str, Path], processes: str, one: str) -> None:
    """In float64 what is left is rounding, which 20 steps of training amplify."""
    alone, directory = trainings[one], trainings[processes]
    expected, found = _losses(alone), _losses(directory)
    assert list(found) == list(expected) == [10, 20]
    for step, terms in expected.items():
        assert found[step] == pytest.approx(terms, rel=1e-5), step
    first, second = (load_file(path / "checkpoint.safetensors") for path in (alone, directory))
    assert list(second) == list(first)
    for name, values in first.items():
        if name != "random/cpu":
            np.testing.assert_allclose(second[name], values, rtol=1e-4, atol=1e-5, err_msg=name)


def test_every_term_of_two_processes_is_that_of_one(tmp_path: Path) -> None:
    """Values and gradients, averaged over the processes as DistributedDataParallel does."""
    for processes in (1, 2):
        _run(processes, TERMS_WORKER, str(tmp_path / f"{processes}.json"))
    alone, together = (json.loads((tmp_path / f"{count}.json").read_text(encoding="utf-8")) for count in (1, 2))

    assert list(together) == list(alone)
    for variant, terms in alone.items():
        assert list(together[variant]) == list(terms)
        for term, values in terms.items():
            scale = max(map(abs, values[1:]))
            assert scale > 0, (variant, term)
            np.testing.assert_allclose(
                together[variant][term], values, rtol=1e-6, atol=1e-8 * scale, err_msg=f"{variant}: {term}"
            )


def test_a_process_that_remembers_nothing_yet_keeps_no_other_waiting() -> None:
    """The second process has no label at first: its memory is still empty where that of the first one is not."""
    assert sorted(_run(2, MEMORY_WORKER, seconds=120).stdout.split()) == ["0:found", "1:0.0"]


def test_a_stage_that_nothing_reads_is_not_waited_for() -> None:
    assert _run(2, UNREAD_WORKER, seconds=200).stdout.count("done") == 2


def test_processes_end_with_a_torchrun_that_is_killed_and_one_goes_on(tmp_path: Path) -> None:
    """Killed, torchrun tells nobody; its processes save what they have and let go of the run directory."""
    run, stderr = tmp_path / "run", tmp_path / "stderr"
    settings = (*TINY, "teacher.train.epochs=9999", "teacher.train.checkpoint_s=0.3")
    overrides = [part for setting in settings for part in ("--set", setting)]
    arguments = ["-m", "brd_edge.pipeline", "pipelines/quickstart.yaml", "--run-dir", str(run), "--until", "teacher"]
    with (
        stderr.open("w") as file,
        subprocess.Popen(_command(2, *arguments, *overrides), cwd=ROOT, env=ENVIRONMENT, stderr=file) as launcher,
    ):
        try:
            wait_for((run / "teacher" / "checkpoint.safetensors").exists, launcher)
        finally:
            launcher.kill()
    wait_for(lambda: not pipelines_in(run))
    told = stderr.read_text(encoding="utf-8")
    assert re.search(r"stopped (at step \d+ of 19998|while validating); run it again to go on", told), told

    goes_on = re.compile(r"teacher: goes on at step [1-9]\d* of 19998")
    with (
        stderr.open("w") as file,
        subprocess.Popen(_command(1, *arguments, *overrides), cwd=ROOT, env=ENVIRONMENT, stderr=file) as alone,
    ):
        try:
            wait_for(lambda: goes_on.search(stderr.read_text(encoding="utf-8")) is not None, alone)
        finally:
            alone.terminate()
    assert alone.returncode == 130


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
        assert len(list((directory / "distill" / "tensorboard").iterdir())) == 1
    for stage in ("teacher", "distill"):
        alone, together = (_losses(tmp_path / str(processes) / stage) for processes in (1, 2))
        assert list(together) == list(alone) == [10]
        # float32, whose rounding Adam amplifies, and a softmax at temperature 0.1 more so; above it is float64
        assert together[10].keys() == alone[10].keys()
        for term, value in alone[10].items():
            assert together[10][term] == pytest.approx(value, rel=0.1 if term == "relation" else 0.02), (stage, term)
