"""The teacher while it teaches: without gradients, and as fast as inference can be made."""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from brd_edge.distill.depthwise import fast_depthwise
from brd_edge.models.segmentation import Features, forward_features, required_multiple

__all__ = ["fold_normalisations", "freeze"]

_LEAST_SIDE = 64
_CLOSE = 0.01
"""Share of a feature's norm by which it may differ: more than rounding does (also TF32's), less than a wrong pair."""


def freeze(teacher: nn.Module, *, compiled: bool) -> Callable[[Tensor], Features]:
    """Put a teacher into eval mode, without gradients, and return its forward pass, channels last.

    Args:
        teacher: A trained model, on the device on which it will teach.
        compiled: Whether PyTorch compiles the forward pass; else batch normalisations are folded into convolutions.
    """
    teacher.eval().requires_grad_(False)
    forward: Any = torch.compile(forward_features) if compiled else forward_features
    model = teacher if compiled else fold_normalisations(teacher)
    model.to(memory_format=torch.channels_last)

    @torch.no_grad()
    def run(images: Tensor) -> Features:
        with nullcontext() if compiled else fast_depthwise(images.device):
            return forward(model, images)  # type: ignore[no-any-return]

    return run


@torch.no_grad()
def fold_normalisations(model: nn.Module) -> nn.Module:
    """Return a model for inference whose batch normalisations are part of the convolutions before them.

    In eval mode a normalisation multiplies each channel and adds to it; a convolution whose output goes nowhere else
    can do both at no cost. Which pairs there are is found by a dry run, and the result is compared with the model.

    Args:
        model: A model of `build_model` or `load_model` in eval mode; it is left as it was.

    Returns:
        A copy with the same features up to rounding; the model itself where nothing can be folded, for example because
        it takes no images of another size than its own.
    """
    side = math.lcm(required_multiple(model), _LEAST_SIDE)
    parameter = next(model.parameters())
    images = torch.rand((2, 3, side, side), generator=torch.Generator().manual_seed(0))
    images = images.to(device=parameter.device, dtype=parameter.dtype)
    folded = copy.deepcopy(model)
    try:
        pairs = _pairs(folded, images)
    except (RuntimeError, ValueError, AssertionError):
        # libraries' models raise these at a size that they do not take; every other size is the training's own
        return model
    for convolution, name in pairs:
        _fold(folded, convolution, name)
    if pairs and _same(forward_features(folded, images), forward_features(model, images)):
        return folded
    return model


def _pairs(model: nn.Module, images: Tensor) -> list[tuple[nn.Conv2d, str]]:
    """Return each convolution that is called once and whose output a normalisation takes, with the latter's name."""
    names = {module: name for name, module in model.named_modules()}
    last: tuple[nn.Conv2d, Tensor, int] | None = None
    found: list[tuple[nn.Conv2d, str]] = []
    calls: Counter[nn.Module] = Counter()

    def called(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal last
        calls[module] += 1
        if isinstance(module, nn.Conv2d):
            last = module, output, output._version
        elif last is not None and last[1] is inputs[0] and last[2] == inputs[0]._version:
            found.append((last[0], names[module]))

    handles = [
        module.register_forward_hook(called)
        for module in names
        if isinstance(module, nn.Conv2d) or (isinstance(module, nn.BatchNorm2d) and module.track_running_stats)
    ]
    try:
        forward_features(model, images)
    finally:
        for handle in handles:
            handle.remove()
    once = {module for module, count in calls.items() if count == 1}
    return [(convolution, name) for convolution, name in found if {convolution, model.get_submodule(name)} <= once]


def _fold(model: nn.Module, convolution: nn.Conv2d, name: str) -> None:
    """Make a normalisation part of a convolution; what else its module does, such as timm's activation, stays."""
    norm: Any = model.get_submodule(name)
    convolution.weight, convolution.bias = fuse_conv_bn_weights(
        convolution.weight, convolution.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
    )
    rest = [part for part in (getattr(norm, "drop", None), getattr(norm, "act", None)) if part is not None]
    parent, _, last = name.rpartition(".")
    setattr(model.get_submodule(parent), last, nn.Sequential(*rest))


def _same(first: Features, second: Features) -> bool:
    pairs = zip(
        [first.logits, first.decoder, *first.encoder.values()],
        [second.logits, second.decoder, *second.encoder.values()],
        strict=True,
    )
    return all(bool((one - other).norm() <= _CLOSE * other.norm()) for one, other in pairs)
