"""The running average of a model's weights."""

from __future__ import annotations

import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

__all__ = ["update_average"]


@torch.no_grad()
def update_average(average: nn.Module, model: nn.Module, decay: float, step: int) -> None:
    """Move an exponential moving average towards a model, after one of its steps.

    `a <- d a + (1 - d) w` with `d = min(decay, (step + 1) / (step + 10))`: a young average follows closely, or it
    would keep the random first weights for too long. Statistics of batch normalisation are averaged like weights;
    whole numbers, its counters, are copied.

    Args:
        average: A copy of the model, changed in place.
        model: The model after the step.
        decay: d of an old average, 0 to below 1.
        step: How many steps were done before this one.
    """
    decay = min(decay, (step + 1) / (step + 10))
    pairs = list(zip(average.state_dict().values(), model.state_dict().values(), strict=True))
    mine, theirs = zip(*[pair for pair in pairs if pair[0].is_floating_point()], strict=True)
    get_ema_multi_avg_fn(decay)(mine, theirs, step)  # type: ignore[no-untyped-call]
    counters = [pair for pair in pairs if not pair[0].is_floating_point()]
    if counters:
        torch._foreach_copy_([mine for mine, _ in counters], [theirs for _, theirs in counters])
