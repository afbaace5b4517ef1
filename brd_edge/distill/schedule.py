"""The learning rate and the optimiser."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import nn

__all__ = ["SCHEDULES", "learning_rate", "make_optimizer"]

SCHEDULES: dict[str, Callable[[float], float]] = {
    "poly": lambda done: (1 - done) ** 0.9,
    "cosine": lambda done: 0.5 * (1 + math.cos(math.pi * done)),
}
"""Share of the steps after the warm-up (0 to 1) to the share of the highest learning rate."""


def learning_rate(step: int, total: int, *, highest: float, schedule: str, warmup: float) -> float:
    """Return the learning rate of a step.

    Args:
        step: The step, from 0.
        total: Steps in all.
        highest: The rate at the end of the warm-up.
        schedule: A key of `SCHEDULES`.
        warmup: Share of the steps in which the rate rises linearly, 0 to 1.
    """
    rising = round(total * warmup)
    if step < rising:
        return highest * (step + 1) / rising
    return highest * SCHEDULES[schedule]((step - rising) / max(1, total - rising))


def make_optimizer(
    model: nn.Module, *, lr: float, encoder_lr_factor: float, weight_decay: float, layers: nn.Module | None = None
) -> torch.optim.AdamW:
    """Return AdamW over a model's parameters, and those of layers that only its training needs.

    Biases and normalisation get no weight decay; the encoder's learning rate is multiplied by
    `encoder_lr_factor`. Every group carries its factor as `lr_factor`.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    extra = () if layers is None else layers.named_parameters(prefix="layers")
    for name, parameter in (*model.named_parameters(), *extra):
        factor = encoder_lr_factor if name.startswith("encoder.") else 1.0
        decay = weight_decay if parameter.ndim > 1 else 0.0
        groups.setdefault((factor, decay), []).append(parameter)
    return torch.optim.AdamW(
        [
            {"params": parameters, "lr": lr * factor, "lr_factor": factor, "weight_decay": decay}
            for (factor, decay), parameters in groups.items()
        ],
        lr=lr,
        # one launch for many parameters
        fused=all(parameter.is_cuda for parameters in groups.values() for parameter in parameters),
    )
