"""What the variables of `torchrun` make of a process, and what a stray or a broken one does not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from brd_edge.pipeline import main
from brd_edge.processes import is_follower, local_processes, local_rank, started_processes
from brd_edge.progress import progress_bar
from brd_edge.recipe import load_recipe
from brd_edge.runtime.errors import RunError
from brd_edge.stages.context import training_device

ROOT = Path(__file__).parents[1]
VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, (0, 1)),
        ({"RANK": "1"}, (0, 1)),
        ({"RANK": "a", "LOCAL_RANK": "b"}, (0, 1)),
        ({"RANK": "0", "WORLD_SIZE": "1"}, (0, 1)),
        ({"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}, (0, 2)),
        ({"RANK": "3", "WORLD_SIZE": "4"}, (3, 4)),
    ],
)
@pytest.mark.usefixtures("alone")
def test_a_process_is_one_of_several_where_there_are_several(
    environment: dict[str, str], expected: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert started_processes(environment) == expected
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert started_processes() == expected
    assert is_follower() == (expected[0] > 0)


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"LOCAL_RANK": "2"}, 0),
        ({"LOCAL_RANK": "a", "WORLD_SIZE": "1"}, 0),
        ({"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}, 1),
    ],
)
@pytest.mark.usefixtures("alone")
def test_one_process_takes_the_first_gpu_whatever_was_left_behind(
    environment: dict[str, str], expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert local_rank() == expected


@pytest.mark.parametrize(
    ("environment", "processes"),
    [
        ({"LOCAL_WORLD_SIZE": "4"}, 1),
        ({"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}, 2),
        ({"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"}, 4),
    ],
)
@pytest.mark.usefixtures("alone")
def test_how_many_processes_share_a_machine(
    environment: dict[str, str], processes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert local_processes() == processes


@pytest.mark.parametrize("rank", ["0", "3"])
@pytest.mark.usefixtures("alone")
def test_every_process_refuses_more_processes_than_gpus(rank: str, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = load_recipe(ROOT / "pipelines" / "quickstart.yaml", overrides=["device=auto"])
    for name, value in {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "4"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)

    with pytest.raises(RunError, match=r"torchrun started 4 processes here, torch finds 2 GPUs.*nproc-per-node=2"):
        training_device(recipe)

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert training_device(recipe) == torch.device("cuda", int(rank))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert training_device(recipe) == torch.device("cpu")


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"WORLD_SIZE": "a"}, "WORLD_SIZE: expected a whole number, as torchrun sets it, got 'a'; .*unset WORLD_SIZE"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE: expected a number of processes from 1, got 0"),
        ({"WORLD_SIZE": ""}, "WORLD_SIZE: expected a whole number, as torchrun sets it, got ''"),
        ({"WORLD_SIZE": "2"}, "RANK: expected a whole number, as torchrun sets it, it is not set"),
        ({"WORLD_SIZE": "2", "RANK": "a"}, "RANK: expected .* got 'a'; .*unset RANK and WORLD_SIZE"),
        ({"WORLD_SIZE": "2", "RANK": "-1"}, "RANK: expected .* got '-1'"),
        ({"WORLD_SIZE": "2", "RANK": "2"}, "RANK: expected a number below WORLD_SIZE, which is 2, got 2"),
        ({"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "x"}, "LOCAL_RANK: expected a whole number"),
    ],
)
@pytest.mark.usefixtures("alone")
def test_what_torchrun_would_not_set_is_one_line_that_names_it(
    environment: dict[str, str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(RunError, match=message):
        started_processes(environment)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    recipe = str(ROOT / "pipelines" / "quickstart.yaml")

    assert main([recipe, "--run-dir", str(tmp_path), "--until", "prepare"]) == 1

    (line,) = capsys.readouterr().err.splitlines()
    name = message.partition(":")[0]
    assert line.startswith(f"brd-edge: error: {name}: expected")
    assert not (tmp_path / "data").exists()


@pytest.mark.usefixtures("alone")
def test_a_stray_rank_does_not_keep_a_run_from_being_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", "1")
    recipe = str(ROOT / "pipelines" / "quickstart.yaml")
    few = ["--set", "data.scenes={train: 2, val: 1}", "--set", "data.size=[64, 96]"]

    assert main([recipe, "--run-dir", str(tmp_path), "--until", "prepare", *few]) == 0

    assert "2 train and 1 validation images" in capsys.readouterr().err
    record = json.loads((tmp_path / "stages" / "prepare.json").read_text(encoding="utf-8"))
    assert record["result"]["train"] == 2
    with progress_bar(3, "steps") as bar:
        assert not bar.disable
    monkeypatch.setenv("WORLD_SIZE", "2")
    with progress_bar(3, "steps") as bar:
        assert bar.disable, "of several processes the first one shows how far they are"
