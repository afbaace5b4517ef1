"""Depthwise convolutions that train in float32 on a CPU, where their gradients in half precision are slow."""

from __future__ import annotations

from typing import Any

import torch
from torch.overrides import TorchFunctionMode

__all__ = ["DepthwiseInFloat32"]

_GROUPS = 6  # where `groups` stands among the arguments of `torch.conv2d`


class DepthwiseInFloat32(TorchFunctionMode):
    """Within this context, depthwise convolutions leave autocast and are computed in float32.

    PyTorch has no fast kernel on CPUs for the gradient of a depthwise convolution in bfloat16, least of
    all for a dilated one: with EfficientNet-lite2 under DeepLabV3+, a third of a step went there. Other
    convolutions gain from bfloat16 and keep it. Nothing about the model changes.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call `func`; `torch.conv2d` with a group for each channel, with autocast off."""
        kwargs = kwargs or {}
        if func is not torch.conv2d:
            return func(*args, **kwargs)
        image, *others = args
        groups = others[_GROUPS - 1] if len(args) > _GROUPS else kwargs.get("groups", 1)
        if not 1 < groups == image.shape[1]:
            return func(*args, **kwargs)
        with torch.autocast("cpu", enabled=False):
            return func(image.float(), *others, **kwargs)
