"""The module that is exported: an image in, a class map out, and nothing that an engine stumbles over."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, cast

import torch
from segmentation_models_pytorch.decoders.fpn.decoder import MergeBlock
from segmentation_models_pytorch.decoders.pspnet.decoder import PSPBlock
from segmentation_models_pytorch.decoders.segformer.decoder import MLP
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["BinnedMean", "FrameModel", "make_frame_model"]

_NEGLIGIBLE = 1e-30


class FrameModel(nn.Module):
    """A segmentation model with normalisation before it and argmax behind it.

    Input: uint8 (1, H, W, 3), RGB. Output: uint8 (1, H, W), class ids; the lower id wins a tie.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, model: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        """Fold `(x / 255 - mean) / std` into one multiplication and one addition per channel."""
        super().__init__()
        self.model = model
        # in float64: the folded constants are rounded once, to float32
        spread = torch.tensor(list(std), dtype=torch.float64)
        scale, shift = 1.0 / (255.0 * spread), -torch.tensor(list(mean), dtype=torch.float64) / spread
        self.register_buffer("scale", scale.float().reshape(1, 3, 1, 1))
        self.register_buffer("shift", shift.float().reshape(1, 3, 1, 1))

    def forward(self, image: Tensor) -> Tensor:
        """Map a frame to its class map."""
        # TensorRT refuses to transpose uint8: float first
        planes = image.to(torch.float32).permute(0, 3, 1, 2)
        logits: Tensor = self.model(planes * self.scale + self.shift)
        return logits.argmax(dim=1).to(torch.uint8)


class BinnedMean(nn.Module):
    """`nn.AdaptiveAvgPool2d` in slices, means and concatenations.

    The exporter turns bins that do not divide the grid into thousands of gathers, and a single
    bin behind a transposition into a stray reshape. This form is exact and small, and every
    runtime builds it.
    """

    def __init__(self, bins: tuple[int | None, int | None]) -> None:
        """Take the number of bins in height and width; None keeps that axis as it is."""
        super().__init__()
        self.bins = bins

    def forward(self, x: Tensor) -> Tensor:
        """Pool (N, C, H, W) to (N, C, bins, bins)."""
        if self.bins == (1, 1):
            return x.mean((2, 3), keepdim=True)
        for axis, bins in ((2, self.bins[0]), (3, self.bins[1])):
            x = _mean_of_bins(x, axis, bins)
        return x


class _PyramidLevel(nn.Module):
    """smp's `PSPBlock`, which on export would replace its pooling module with a functional one."""

    def __init__(self, block: PSPBlock) -> None:
        super().__init__()
        self.pool = block.pool

    def forward(self, x: Tensor) -> Tensor:
        return F.interpolate(self.pool(x), size=x.shape[2:], mode="bilinear", align_corners=True)


class _Sum(nn.Module):
    """smp's `MergeBlock` without stacking what it adds."""

    def forward(self, levels: Sequence[Tensor]) -> Tensor:
        total = levels[0]
        for level in levels[1:]:
            total = total + level
        return total


def make_frame_model(model: nn.Module, mean: Sequence[float], std: Sequence[float]) -> FrameModel:
    """Wrap a copy of a model for export; the model itself is left as it was.

    Args:
        model: float32 images (N, 3, H, W) to logits (N, classes, H, W).
        mean: Mean per channel, on the scale 0 to 1.
        std: Standard deviation per channel, on the scale 0 to 1.

    Returns:
        A module on the CPU in eval mode, float32, with contiguous weights that need no gradient.
    """
    plain = copy.deepcopy(model).cpu().float().to(memory_format=torch.contiguous_format)
    _replace_awkward(plain)
    _keep_zero_biases(plain)
    return FrameModel(plain, mean, std).eval().requires_grad_(False)


def _replace_awkward(module: nn.Module) -> None:
    for name, child in list(module.named_children()):
        if isinstance(child, PSPBlock):
            module.add_module(name, _PyramidLevel(child))
        elif isinstance(child, nn.AdaptiveAvgPool2d):
            size: int | tuple[int | None, int | None] = cast("Any", child.output_size)
            module.add_module(name, BinnedMean((size, size) if isinstance(size, int) else (size[0], size[1])))
        elif isinstance(child, MergeBlock) and child.policy == "add":
            module.add_module(name, _Sum())
        elif isinstance(child, MLP):
            module.add_module(name, _as_convolution(child.linear))
        _replace_awkward(module.get_submodule(name))


def _as_convolution(linear: nn.Linear) -> nn.Conv2d:
    # smp's Segformer flattens and transposes around this layer, and TensorRT-RTX has no fp32 product on SM75
    # (made on the meta device, it draws no random numbers)
    convolution = nn.Conv2d(linear.in_features, linear.out_features, kernel_size=1, device="meta")
    convolution.weight = nn.Parameter(linear.weight.detach()[:, :, None, None].clone())
    convolution.bias = nn.Parameter(linear.bias.detach().clone())
    return convolution


@torch.no_grad()
def _keep_zero_biases(model: nn.Module) -> None:
    """Stop the exporter from dropping biases because they happen to be zero.

    It drops them where all are zero, as in an untrained model: the graph would depend on what
    the weights are, and could not be compared with a trained one's. One negligible number, far
    below the resolution of what it is added to, keeps the bias in place.
    """
    for module in model.modules():
        if not isinstance(module, nn.BatchNorm2d | nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            continue
        shift = [module.bias, module.running_mean] if isinstance(module, nn.BatchNorm2d) else [module.bias]
        if module.bias is not None and not any(bool(item.any()) for item in shift if item is not None):
            module.bias[0] = _NEGLIGIBLE


def _mean_of_bins(x: Tensor, axis: int, bins: int | None) -> Tensor:
    size = x.shape[axis]
    if bins is None or bins == size:
        return x
    # the bounds of torch's adaptive pooling: bins overlap where they do not divide the axis
    bounds = [(index * size // bins, -(-(index + 1) * size // bins)) for index in range(bins)]
    return torch.cat([x.narrow(axis, low, high - low).mean(axis, keepdim=True) for low, high in bounds], axis)
