"""A training of a dozen steps of a network of four channels, in milliseconds."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from brd_edge.data.loader import Batch
from brd_edge.distill.checkpoint import load_tensors
from brd_edge.distill.objective import Objective, Supervised, Term
from brd_edge.distill.trainer import FitResult, TrainSettings, fit
from brd_edge.interrupt import Stop
from brd_edge.models.segmentation import Features

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
    accumulate=1,
    validate_every=1,
    checkpoint_s=30.0,
)


class CountedLoader:
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


def made_model() -> nn.Module:
    torch.manual_seed(7)
    encoder = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5))
    model = nn.Sequential()
    model.add_module("encoder", encoder)
    model.add_module("head", nn.Conv2d(4, 2, 1))
    return model


def made_features(model: nn.Module, images: Tensor) -> Features:
    logits = model(images)
    return Features(logits=logits, encoder={}, decoder=logits, coarse_logits=logits)


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    return nn.functional.cross_entropy(logits, labels)


def made_objective(supervised: Supervised = cross_entropy, **terms: Term) -> Objective:
    def teacher(images: Tensor) -> Features:
        return Features(logits=images, encoder={}, decoder=images, coarse_logits=images)

    return Objective(
        supervised=supervised,
        teacher=teacher,
        terms={name: (1.0, term) for name, term in terms.items()},
        forward=made_features,
    )


def fit_made(
    directory: Path,
    *,
    loader: CountedLoader | None = None,
    objective: Objective | None = None,
    settings: TrainSettings = SETTINGS,
    evaluate: Callable[[nn.Module], float] = lambda _model: 0.5,
    stop: Stop | None = None,
    key: str = "key",
    model: nn.Module | None = None,
    say: Callable[[str], None] = lambda _text: None,
) -> tuple[nn.Module, FitResult]:
    model = made_model() if model is None else model
    result = fit(
        model,
        objective=objective or made_objective(),
        loader=loader or CountedLoader(),
        settings=settings,
        evaluate=evaluate,
        names=[f"file{number}.png" for number in range(99)],
        directory=directory,
        key=key,
        seed=3,
        device=torch.device("cpu"),
        title="test",
        stop=stop or Stop(),
        say=say,
    )
    return model, result


def assert_same_end(first: Path, second: Path, *, name: str = "checkpoint.safetensors") -> None:
    """Compare the last checkpoints: weights, running average, moments of the optimiser, generator, loader, counts."""
    (one, about), (two, about_too) = (load_tensors(path / name) for path in (first, second))
    assert _without_seconds(about) == _without_seconds(about_too)
    assert list(one) == list(two)
    for key, values in one.items():
        torch.testing.assert_close(two[key], values, rtol=0, atol=0, msg=key)


def _without_seconds(metadata: dict[str, str]) -> dict[str, object]:
    return {**metadata, "state": {**json.loads(metadata.get("state", "{}")), "seconds": None}}
