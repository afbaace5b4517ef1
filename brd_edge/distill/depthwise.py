"""Depthwise convolutions whose training is fast on a CPU.

PyTorch has no fast gradient of a depthwise convolution on CPUs in bfloat16, nor of a dilated one in any format:
with EfficientNet-lite2 under DeepLabV3+, two fifths of a step went there. What is computed here is the same, in
another order.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from brd_edge.distill.derivatives import first_derivative_only

__all__ = ["FastDepthwise", "depthwise_convolution", "fast_depthwise"]

_ARGUMENTS = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
_DEFAULTS = {"stride": 1, "padding": 0, "dilation": 1}
_FAST_KERNEL = 3
"""Up to this side, PyTorch's own gradient of a kernel without a dilation is fast."""
_SMALL_MAP = 512
"""Up to so many cells of a map, the gradient of the weights is faster as a convolution by the whole map."""


class FastDepthwise(TorchFunctionMode):
    """Within this context, depthwise convolutions leave autocast and take the fast ways of this module.

    Other convolutions gain from bfloat16 and keep it. Nothing about the model changes.

    Example:
        >>> with torch.autocast("cpu", torch.bfloat16), FastDepthwise():
        ...     logits = model(images)
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call `func`; `torch.conv2d` with a group for each channel, with autocast off."""
        kwargs = kwargs or {}
        if func is not torch.conv2d:
            return func(*args, **kwargs)
        given = dict(zip(_ARGUMENTS, args, strict=False)) | kwargs
        image, weight, groups = given["input"], given["weight"], given.get("groups", 1)
        if not 1 < groups == image.shape[1] == weight.shape[0]:
            return func(*args, **kwargs)
        stride, padding, dilation = (given.get(name, default) for name, default in _DEFAULTS.items())
        ours = not isinstance(padding, str) and _pair(stride) == (1, 1) and _has_slow_gradient(image, weight, dilation)
        if not torch.is_grad_enabled():
            if not ours or _pair(dilation) == (1, 1):
                return func(*args, **kwargs)
            weight = weight.to(image.dtype)
        with torch.autocast("cpu", enabled=False):
            # as wide as the weights, which autocast leaves in float32
            given["input"] = image.to(weight.dtype)
            if not ours:
                return func(**given)
            place = {"padding": _pair(padding), "dilation": _pair(dilation)}
            return depthwise_convolution(given["input"], weight, given.get("bias"), **place)


def fast_depthwise(device: torch.device) -> AbstractContextManager[object]:
    """Return `FastDepthwise` for a CPU; other devices have fast kernels of their own, and nothing changes."""
    return FastDepthwise() if device.type == "cpu" else nullcontext()


def _has_slow_gradient(image: Tensor, weight: Tensor, dilation: int | tuple[int, ...]) -> bool:
    small = image.shape[2] * image.shape[3] <= _SMALL_MAP
    return _pair(dilation) != (1, 1) or (small and min(weight.shape[2:]) > _FAST_KERNEL)


def depthwise_convolution(
    image: Tensor, weight: Tensor, bias: Tensor | None, *, padding: tuple[int, int], dilation: tuple[int, int]
) -> Tensor:
    """Convolve every channel with its own kernel, as `conv2d(image, weight, bias, 1, padding, dilation, C)` does.

    Args:
        image: (N, C, H, W).
        weight: (C, 1, k, l), of the image's dtype.
        bias: (C), or none.
        padding: Rows and columns of zeros that are added on each side.
        dilation: Steps between the kernel's rows and columns.

    Returns:
        (N, C, H + 2 padding - dilation (k - 1), W + …), equal to `conv2d` up to rounding, as its gradients are.
        It can be differentiated once; `backward` with `create_graph=True` raises a RuntimeError.
    """
    (rows, columns), (row_step, column_step) = padding, dilation
    weight, rows = _within_reach(weight, 2, image.shape[2], rows, row_step)
    weight, columns = _within_reach(weight, 3, image.shape[3], columns, column_step)
    if weight.shape[2:] == (1, 1) and not rows and not columns:
        convolved = image * weight.view(1, -1, 1, 1)
    else:
        convolved = _Depthwise.apply(image, weight, (rows, columns), dilation)
    return convolved if bias is None else convolved + bias.to(convolved.dtype).view(1, -1, 1, 1)


def _within_reach(weight: Tensor, axis: int, size: int, padding: int, step: int) -> tuple[Tensor, int]:
    """Return the kernel and its padding without the rows or columns that see nothing but padding anywhere.

    With the dilations of an ASPP (12, 24, 36), on a map of 11 rows only the kernel's centre is left.
    """
    reach = weight.shape[axis] // 2
    used = min(reach, (size - 1) // step)
    if used == reach or padding != reach * step or weight.shape[axis] % 2 == 0:
        return weight, padding
    return weight.narrow(axis, reach - used, 2 * used + 1), used * step


class _Depthwise(torch.autograd.Function):
    """A convolution whose gradients are forward convolutions, which are fast also with a dilation or a large kernel."""

    @staticmethod
    def forward(ctx: Any, image: Tensor, weight: Tensor, padding: tuple[int, int], dilation: tuple[int, int]) -> Tensor:
        ctx.save_for_backward(image, weight)
        ctx.padding, ctx.dilation = padding, dilation
        return F.conv2d(image, weight, None, 1, padding, dilation, weight.shape[0])

    @staticmethod
    @first_derivative_only("depthwise_convolution, which FastDepthwise puts in place of conv2d,")
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        image, weight = ctx.saved_tensors
        of_image, of_weight = ctx.needs_input_grad[:2]
        place = ctx.padding, ctx.dilation
        with torch.autocast("cpu", enabled=False):
            return (
                _image_gradient(gradient, weight, *place) if of_image else None,
                _weight_gradient(gradient, image, weight, *place) if of_weight else None,
                None,
                None,
            )


def _image_gradient(gradient: Tensor, weight: Tensor, padding: tuple[int, int], dilation: tuple[int, int]) -> Tensor:
    """Return the gradient of the image: the output's, convolved with the turned kernel."""
    kernel = weight.shape[2:]
    whole = [step * (side - 1) - pad for step, side, pad in zip(dilation, kernel, padding, strict=True)]
    # more padding than the kernel reaches would leave the fast kernels
    given = [min(max(0, pad), step * (side // 2)) for pad, step, side in zip(whole, dilation, kernel, strict=True)]
    rows, columns = (pad - part for pad, part in zip(whole, given, strict=True))
    if rows or columns:
        gradient = F.pad(gradient, (columns, columns, rows, rows))
    return F.conv2d(gradient, weight.flip(2, 3), None, 1, given, dilation, weight.shape[0])


def _weight_gradient(
    gradient: Tensor, image: Tensor, weight: Tensor, padding: tuple[int, int], dilation: tuple[int, int]
) -> Tensor:
    """Return the gradient of the weights: the image, convolved with the output's gradient of the same map."""
    count, channels, height, width = image.shape
    if gradient.shape[2] * gradient.shape[3] > _SMALL_MAP:
        found = torch.ops.aten.convolution_backward(
            gradient, image, weight, None, (1, 1), padding, dilation, False, (0, 0), channels, (False, True, False)
        )
        return found[1]  # type: ignore[no-any-return]
    maps = image.reshape(1, count * channels, height, width)
    kernels = gradient.reshape(count * channels, 1, *gradient.shape[2:])
    per_image = F.conv2d(maps, kernels, None, dilation, padding, 1, count * channels)
    return per_image.view(count, *weight.shape).sum(0)


def _pair(value: int | tuple[int, ...]) -> tuple[int, int]:
    first, last = (value, value) if isinstance(value, int) else (value[0], value[-1])
    return first, last
