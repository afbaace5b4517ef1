from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from brd_edge.data.loader import Batch
from brd_edge.distill.checkpoint import load_tensors
from brd_edge.distill.schedule import learning_rate, make_optimizer
from brd_edge.distill.trainer import FitResult, TrainSettings, class_weights, fit
from brd_edge.interrupt import Stop
from brd_edge.runtime.errors import InterruptedRunError, TrainingError

SETTINGS = TrainSettings(
    epochs=4,
    lr=0.01,
    encoder_lr_factor=0.5,
    weight_decay=0.01,
    schedule="poly",
    warmup=0.1,
    grad_clip=1.0,
    ema=0.5,
    precision="fp32",
    validate_every=1,
    checkpoint_s=30.0,
)


class _Loader:
    """Batches that are a function of their number."""

    steps_per_epoch = 3

    def __init__(self) -> None:
        self._next = 0

    def next_batch(self) -> Batch:
        generator = torch.Generator().manual_seed(self._next)
        self._next += 1
        images = torch.randn(2, 3, 8, 8, generator=generator)
        return Batch(images, (images[:, 0] > 0).long(), (self._next, self._next + 1))

    def state(self) -> bytes:
        return str(self._next).encode()

    def restore(self, state: bytes) -> None:
        self._next = int(state)

    def close(self) -> None:
        pass


def _model() -> nn.Module:
    torch.manual_seed(7)
    encoder = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5))
    model = nn.Sequential()
    model.add_module("encoder", encoder)
    model.add_module("head", nn.Conv2d(4, 2, 1))
    return model


def _cross_entropy(model: nn.Module, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
    return {"ce": nn.functional.cross_entropy(model(images), labels)}


def _fit(
    directory: Path,
    *,
    objective: Callable[[nn.Module, Tensor, Tensor], dict[str, Tensor]] = _cross_entropy,
    evaluate: Callable[[nn.Module], float] = lambda _model: 0.5,
    stop: Stop | None = None,
    key: str = "key",
) -> tuple[nn.Module, FitResult]:
    model = _model()
    result = fit(
        model,
        objective=objective,
        loader=_Loader(),
        settings=SETTINGS,
        evaluate=evaluate,
        names=[f"file{number}.png" for number in range(99)],
        directory=directory,
        key=key,
        seed=3,
        device=torch.device("cpu"),
        title="test",
        stop=stop or Stop(),
    )
    return model, result


def test_the_best_validation_decides(tmp_path: Path) -> None:
    scores = iter([0.3, 0.6, 0.4, 0.5])
    seen: list[dict[str, Tensor]] = []

    def evaluate(model: nn.Module) -> float:
        assert not model.training
        seen.append({name: value.clone() for name, value in model.state_dict().items()})
        return next(scores)

    model, result = _fit(tmp_path, evaluate=evaluate)

    assert result == FitResult(miou=0.6, step=6, steps=12)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, seen[1][name], rtol=0, atol=0)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [line["miou"] for line in lines if "miou" in line] == [0.3, 0.6, 0.4, 0.5]
    assert all(math.isfinite(line["loss"]["ce"]) for line in lines if "loss" in line)


def test_a_stopped_training_goes_on_to_the_same_weights(tmp_path: Path) -> None:
    whole, _ = _fit(tmp_path / "whole")
    stop = Stop()
    steps = 0

    def stopping(model: nn.Module, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        nonlocal steps
        steps += 1
        stop.requested = steps == 5
        return _cross_entropy(model, images, labels)

    with pytest.raises(InterruptedRunError, match="stopped at step 5 of 12"):
        _fit(tmp_path / "parts", objective=stopping, stop=stop)
    resumed, _ = _fit(tmp_path / "parts")

    for first, second in zip(whole.state_dict().values(), resumed.state_dict().values(), strict=True):
        torch.testing.assert_close(first, second, rtol=0, atol=0)


def test_a_checkpoint_of_other_settings_is_not_used(tmp_path: Path) -> None:
    first, _ = _fit(tmp_path / "first", key="old")
    _fit(tmp_path / "again", key="other")
    second, _ = _fit(tmp_path / "again", key="old")

    for mine, theirs in zip(first.state_dict().values(), second.state_dict().values(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=0)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_term_that_is_not_finite_stops_and_is_named(tmp_path: Path, bad: float) -> None:
    stop = Stop()
    steps = 0

    def objective(model: nn.Module, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        nonlocal steps
        steps += 1
        terms = _cross_entropy(model, images, labels)
        return {**terms, "relation": terms["ce"] * (bad if steps == 8 else 1)}

    with pytest.raises(TrainingError) as caught:
        _fit(tmp_path, objective=objective, stop=stop)

    assert "'relation'" in str(caught.value)
    assert "at step 7, on file8.png, file9.png" in str(caught.value)
    assert (tmp_path / "best.safetensors").is_file()


def test_a_damaged_checkpoint_is_named(tmp_path: Path) -> None:
    (tmp_path / "checkpoint.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{not json at all")

    with pytest.raises(TrainingError, match=r"checkpoint\.safetensors: cannot be read"):
        _fit(tmp_path)


def test_a_checkpoint_holds_no_pickle_and_every_state(tmp_path: Path) -> None:
    _fit(tmp_path)

    tensors, metadata = load_tensors(tmp_path / "checkpoint.safetensors")
    assert json.loads(metadata["state"])["step"] == 12
    assert {name.split("/")[0] for name in tensors} >= {"model", "average", "optimizer", "random", "loader"}


def test_schedules() -> None:
    rates = [learning_rate(s, 100, highest=2.0, schedule="poly", warmup=0.1) for s in range(100)]
    reference = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=2.0)
    schedule = torch.optim.lr_scheduler.PolynomialLR(reference, total_iters=90, power=0.9)
    expected = []
    for _ in range(90):
        expected.append(reference.param_groups[0]["lr"])
        reference.step()
        schedule.step()

    np.testing.assert_allclose(rates[:10], np.arange(1, 11) * 0.2)
    np.testing.assert_allclose(rates[10:], expected, rtol=1e-9)
    assert learning_rate(55, 100, highest=2.0, schedule="cosine", warmup=0.1) == pytest.approx(1.0)


def test_optimizer_groups() -> None:
    optimizer = make_optimizer(_model(), lr=0.1, encoder_lr_factor=0.5, weight_decay=0.01)

    found = {
        (group["lr_factor"], group["weight_decay"]): sum(p.numel() for p in group["params"])
        for group in optimizer.param_groups
    }
    assert found == {(0.5, 0.01): 108, (0.5, 0.0): 12, (1.0, 0.01): 8, (1.0, 0.0): 2}


def test_class_weights_favour_the_rare() -> None:
    weights = class_weights([90, 10, 0], "log_frequency")

    expected = 1 / np.log(1.1 + np.array([0.9, 0.1, 0.0]))
    assert weights is not None
    np.testing.assert_allclose(weights.numpy(), expected / expected.mean(), rtol=1e-6)
    assert class_weights([1, 2], "none") is None
