"""Colour jitter on tensors: for a student that sees other colours than its teacher."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["jitter_colours"]

_LUMA = (0.299, 0.587, 0.114)


def jitter_colours(images: Tensor, factors: Tensor, *, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Apply the loader's colour jitter, defined in `brd_edge.data.plan`, to normalised images.

    Args:
        images: (N, 3, H, W), `(colour - mean) / std` of colours from 0 to 1; 0 in all three channels is padding and
            stays so. (With a mean of 0 so does what is black in the frame.)
        factors: (N, 4): factors of brightness, contrast and saturation, and the exponent of the gamma.
        mean: Of the three channels.
        std: Of the three channels.

    Returns:
        (N, 3, H, W) in the same format; up to rounding what the loader gives when it jitters itself.
    """
    centre, spread, luma = (images.new_tensor(tuple(row)).view(1, 3, 1, 1) for row in (mean, std, _LUMA))
    brightness, contrast, saturation, gamma = factors.to(images).view(-1, 4, 1, 1, 1).unbind(1)
    # what rounding took below black has no power
    colours = (images * spread + centre).clamp(0, 1) ** gamma
    grey = (colours * luma).sum(1, keepdim=True)
    saturated = grey + saturation * (colours - grey)
    twisted = brightness * (contrast * saturated + 128 / 255 * (1 - contrast))
    padding = (images == 0).all(1, keepdim=True)
    return torch.where(padding, images, (twisted.clamp(0, 1) - centre) / spread)
