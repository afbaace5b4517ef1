"""A training step without anything that its test does not ask for."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from brd_edge.distill.clock import StepClock
from brd_edge.distill.objective import Objective
from brd_edge.distill.step import Stepper


def made_stepper(
    model: nn.Module,
    forward: Any,
    objective: Objective,
    *,
    accumulate: int = 1,
    lr: float = 0.1,
    grad_clip: float = 0.0,
) -> Stepper:
    """Return a step on the CPU in float32 with plain gradient descent."""
    return Stepper(
        forward=forward,
        model=model,
        objective=objective,
        optimizer=torch.optim.SGD([*model.parameters(), *objective.layers.parameters()], lr=lr),
        scaler=torch.amp.GradScaler("cpu", enabled=False),
        clock=StepClock(torch.device("cpu")),
        dtype=torch.float32,
        accumulate=accumulate,
        grad_clip=grad_clip,
    )
