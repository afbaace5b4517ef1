"""A training that was interrupted ends as one that was not: weights, records, the epoch that it chose."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from made_training import SETTINGS, assert_same_end, cross_entropy, fit_made, made_objective
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn

from brd_edge.distill.checkpoint import load_tensors
from brd_edge.distill.objective import Objective
from brd_edge.distill.trainer import FitResult
from brd_edge.interrupt import Stop
from brd_edge.models.segmentation import Features
from brd_edge.runtime.errors import InterruptedRunError

SCORES = {3: 0.6, 6: 0.3, 9: 0.4, 12: 0.5}
"""Of each validated step: the best is the first, so that one which forgets it chooses another."""


class _Killed(BaseException):
    """Ends a training at once, as a kill does: nothing is saved any more."""


def _score(model: nn.Module) -> float:
    return SCORES[int(model.get_buffer("encoder.1.num_batches_tracked"))]


def _objective(*, stop: Stop, stopped: int = 0, killed: int = 0) -> Objective:
    """Return an objective with a layer of its own, which ends the training when the step of that number is made."""
    torch.manual_seed(5)
    layers = nn.ModuleDict({"project": nn.Conv2d(2, 2, 1)})

    def term(theirs: Features, mine: Features, _labels: Tensor) -> Tensor:
        return (layers["project"](mine.logits) - theirs.logits[:, :2]).square().mean()

    def supervised(logits: Tensor, labels: Tensor) -> Tensor:
        stop.requested = begun() == stopped
        if begun() == killed:
            raise _Killed
        return cross_entropy(logits, labels)

    model: list[nn.Module] = []

    def begun() -> int:
        # counted by batch normalisation, which a resumed training goes on with
        return int(model[0].get_buffer("encoder.1.num_batches_tracked"))

    objective = replace(made_objective(supervised, term=term), layers=layers)

    def forward(network: nn.Module, images: Tensor) -> Features:
        model[:] = [network]
        return made_objective().forward(network, images)

    return replace(objective, forward=forward)


def _train(directory: Path, *, checkpoint_s: float, stopped: int = 0, killed: int = 0) -> FitResult:
    stop = Stop()
    objective = _objective(stop=stop, stopped=stopped, killed=killed)
    settings = replace(SETTINGS, checkpoint_s=checkpoint_s)
    _, result = fit_made(directory, objective=objective, settings=settings, evaluate=_score, stop=stop)
    return replace(result, earlier_s=0.0)


def _curves(directory: Path) -> dict[str, list[tuple[int, float]]]:
    board = EventAccumulator(str(directory / "tensorboard")).Reload()
    return {tag: [(event.step, event.value) for event in board.Scalars(tag)] for tag in board.Tags()["scalars"]}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, FitResult]:
    directory = tmp_path_factory.mktemp("whole")
    return directory, _train(directory, checkpoint_s=1000)


@pytest.mark.parametrize(
    "interruptions",
    [
        # between two validations, and where one is due
        [{"stopped": 5}],
        [{"stopped": 3}],
        # after a validation whose step alone was saved; where a record was written at the checkpoint's own step
        [{"killed": 4, "checkpoint_s": 0}],
        [{"killed": 11, "checkpoint_s": 0}],
        # after records and validations that no checkpoint knows
        [{"stopped": 5}, {"killed": 11}],
        [{"stopped": 5}, {"killed": 11}, {"stopped": 10}, {"killed": 12}],
    ],
)
def test_an_interrupted_training_ends_as_one_that_was_not(
    whole: tuple[Path, FitResult],
    tmp_path: Path,
    interruptions: list[dict[str, int]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    passed, clock = 0, time.time
    # TensorBoard sorts files by the second in their names: one training after another, as if none were that short
    monkeypatch.setattr(time, "time", lambda: clock() + passed)
    for how in interruptions:
        with pytest.raises((InterruptedRunError, _Killed)):
            _train(tmp_path, **{"checkpoint_s": 1000, **how})
        passed += 10
    result = _train(tmp_path, checkpoint_s=1000)

    directory, expected = whole
    assert result == expected == FitResult(miou=0.6, step=3, steps=12)
    assert_same_end(directory, tmp_path)
    assert_same_end(directory, tmp_path, name="best.safetensors")
    assert (tmp_path / "metrics.jsonl").read_bytes() == (directory / "metrics.jsonl").read_bytes()
    assert _curves(tmp_path) == _curves(directory)
    assert [step for step, _ in _curves(tmp_path)["miou"]] == [3, 6, 9, 12]


def test_what_a_validation_would_lose_is_saved_before_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However rarely checkpoints are written else: a validation may take long."""
    passed, clock = 0.0, time.monotonic

    def slow(logits: Tensor, labels: Tensor) -> Tensor:
        nonlocal passed
        passed += 10
        return cross_entropy(logits, labels)

    def evaluate(model: nn.Module) -> float:
        _, metadata = load_tensors(tmp_path / "checkpoint.safetensors")
        saved.append(f'"step": {int(model.get_buffer("encoder.1.num_batches_tracked"))},' in metadata["state"])
        return 0.5

    saved: list[bool] = []
    monkeypatch.setattr(time, "monotonic", lambda: clock() + passed)
    fit_made(tmp_path, objective=made_objective(slow), settings=replace(SETTINGS, checkpoint_s=1e9), evaluate=evaluate)

    assert saved == [True] * 4
