"""The forward pass of one model in several processes."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from brd_edge.distill.distributed import world
from brd_edge.models.segmentation import Features
from brd_edge.runtime.errors import ModelError

__all__ = ["local_gradients", "parallel_forward"]


class _Forward(nn.Module):
    """A model whose forward pass returns all its features, as DistributedDataParallel must see it.

    What reaches any of them gets a gradient, it believes, and it waits for that; so stages that nothing reads are cut
    off. An encoder may have layers that lead to nothing else, as HRNet's stage at stride 4 has under PSPNet.
    """

    def __init__(
        self, model: nn.Module, forward: Callable[[nn.Module, Tensor], Features], strides: frozenset[int] | None = None
    ) -> None:
        super().__init__()
        self.model = model
        self._forward = forward
        self._strides = strides

    def forward(self, images: Tensor) -> Features:
        found = self._forward(self.model, images)
        if self._strides is None:
            return found
        stages = found.encoder.items()
        return replace(
            found, encoder={stride: stage if stride in self._strides else stage.detach() for stride, stage in stages}
        )


def parallel_forward(
    model: nn.Module,
    forward: Callable[[nn.Module, Tensor], Features],
    device: torch.device,
    strides: frozenset[int],
) -> nn.Module:
    """Return a module from images to features, through DistributedDataParallel where there are several processes.

    Args:
        model: What is trained, on `device`; the parameters stay its own.
        forward: Model and images to features.
        device: This process's device.
        strides: Of the encoder's stages that a loss may read; in several processes the others give no gradient.
    """
    if world() == 1:
        return _Forward(model, forward)
    return nn.parallel.DistributedDataParallel(
        _Forward(model, forward, strides),
        device_ids=[device.index] if device.type == "cuda" else None,
        find_unused_parameters=_has_unused(model, forward),
    )


def local_gradients(forward: Any) -> AbstractContextManager[None]:
    """Return a context in which gradients are added up in each process, to be averaged by a later backward pass.

    Args:
        forward: What `parallel_forward` returned.
    """
    return forward.no_sync() if isinstance(forward, nn.parallel.DistributedDataParallel) else nullcontext()


def _has_unused(model: nn.Module, forward: Callable[[nn.Module, Tensor], Features]) -> bool:
    """Return whether some parameters may get no gradient: PSPNet leaves out stages, EfficientNets have a head."""
    shadow = copy.deepcopy(model).cpu().eval().requires_grad_(True)
    parameters = list(shadow.parameters())
    try:
        logits = forward(shadow, torch.zeros(1, 3, 64, 64, dtype=parameters[0].dtype)).logits
    except (RuntimeError, ValueError, AssertionError, ModelError):
        # it takes no images of this size; to look for unused parameters in every step is slower, never wrong
        return True
    logits.sum().backward()  # type: ignore[no-untyped-call]
    return any(parameter.grad is None for parameter in parameters)
