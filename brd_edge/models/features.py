"""What a model computes on the way: hierarchical features, their sizes, and their cost."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar, cast

from brd_edge.models.spec import ARCHITECTURES
from brd_edge.runtime.errors import ModelError

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = [
    "FeatureInfo",
    "Features",
    "check_size",
    "count_macs",
    "count_parameters",
    "feature_table",
    "forward_features",
    "required_multiple",
    "stays_on_device",
    "trains_on_one_image",
]

_T = TypeVar("_T")


@dataclass(frozen=True)
class Features:
    """The outcome of one forward pass, with what it was made from.

    Attributes:
        logits: Float tensor (N, classes, H, W), equal to the model's own output.
        encoder: By stride (2, 4, 8, …), the encoder's deepest feature at that stride, (N, C, H/stride, W/stride).
        decoder: The decoder's output (N, C, h, w), which the segmentation head turns into logits.
        coarse_logits: The head's logits (N, classes, h, w) before they are resampled to the image's size.
    """

    logits: Tensor
    encoder: dict[int, Tensor]
    decoder: Tensor
    coarse_logits: Tensor


@dataclass(frozen=True)
class FeatureInfo:
    """The size of one feature.

    Attributes:
        name: `"encoder.<stride>"`, `"decoder"` or `"logits"`.
        stride: Pixels of the image per pixel of the feature.
        channels: Its channels.
        height: Its rows.
        width: Its columns.
    """

    name: str
    stride: int
    channels: int
    height: int
    width: int


def forward_features(model: nn.Module, images: Tensor) -> Features:
    """Run a model and keep its hierarchical features; gradients flow through all of them.

    Args:
        model: A model of `build_model` or `load_model`.
        images: Float tensor (N, 3, H, W), normalised by the input contract.

    Returns:
        Logits equal to `model(images)`, and the features. A dilated encoder has several stages at
        one stride; the deepest is kept.

    Raises:
        ModelError: H or W is not a size that the model takes.
    """
    check_size(model, images.shape[-2], images.shape[-1])
    parts = cast("Any", model)
    stages: list[Tensor] = list(parts.encoder(images))
    decoder: Tensor = parts.decoder(list(stages))
    # the head is a sequence of convolution, resampling and activation
    convolution, *rest = parts.segmentation_head
    coarse: Tensor = convolution(decoder)
    logits = coarse
    for layer in rest:
        logits = layer(logits)
    encoder: dict[int, Tensor] = {}
    for index, stage in enumerate(stages):
        # encoders put the image itself first, and transformers an empty tensor at stride 2
        if stage is images or stage.shape[1] == 0:
            continue
        encoder[min(2**index, int(parts.encoder.output_stride))] = stage
    return Features(logits=logits, encoder=encoder, decoder=decoder, coarse_logits=coarse)


def feature_table(model: nn.Module, height: int, width: int, what: str = "model") -> list[FeatureInfo]:
    """List the sizes of a model's features for an image of the given size, without computing them.

    Args:
        model: A model of `build_model` or `load_model`; it is left as it was.
        height: Rows of the image.
        width: Columns of the image.
        what: Which model it is, or where the size comes from, for messages.

    Returns:
        The encoder's features by rising stride, then the decoder's output, then the logits.

    Raises:
        ModelError: The model does not take this size, or its logits are not of the image's size.
    """
    check_size(model, height, width, what)
    features = _dry_run(model, height, width, forward_features, what=what)
    named = [(f"encoder.{stride}", feature) for stride, feature in sorted(features.encoder.items())]
    named += [("decoder", features.decoder), ("logits", features.logits)]
    table = [_info(name, feature, height) for name, feature in named]
    if (table[-1].height, table[-1].width) != (height, width):
        raise ModelError(
            f"{what}: the logits are {table[-1].height}x{table[-1].width} for an image of {height}x{width}; "
            "leave the options 'upsampling' and 'encoder_depth' at their defaults, or match them"
        )
    return table


def required_multiple(model: nn.Module) -> int:
    """Return the number that the image's height and width must be divisible by."""
    if ARCHITECTURES[type(model).__name__].any_size:
        return 1
    return int(cast("Any", model).encoder.output_stride)


def check_size(model: nn.Module, height: int, width: int, what: str = "model") -> None:
    """Refuse an image size that the model does not take.

    Args:
        model: A model of `build_model` or `load_model`.
        height: Rows of the image.
        width: Columns of the image.
        what: Where the size comes from, for the message.

    Raises:
        ModelError: The size is not divisible as it must be; the message names the nearest sizes.
    """
    multiple = required_multiple(model)
    if height >= 1 and width >= 1 and height % multiple == 0 and width % multiple == 0:
        return
    sizes = [f"{_near(height, multiple, up)}x{_near(width, multiple, up)}" for up in (False, True)]
    raise ModelError(
        f"{what}: {type(model).__name__} needs a height and width divisible by {multiple}, got {height}x{width}; "
        f"the nearest sizes are {' and '.join(dict.fromkeys(sizes))}"
    )


def count_parameters(model: nn.Module) -> int:
    """Count the learnable parameters, frozen ones included, buffers not."""
    return sum(parameter.numel() for parameter in model.parameters())


def count_macs(model: nn.Module, height: int, width: int) -> int:
    """Count the multiply-accumulates of one image's forward pass, as PyTorch's own counter does.

    Convolutions, matrix products and attention are counted; additions, activations, normalisation
    and resampling are not.

    Args:
        model: A model of `build_model` or `load_model`; it is left as it was.
        height: Rows of the image.
        width: Columns of the image.

    Raises:
        ModelError: The model does not take this size.
    """
    from torch.utils.flop_counter import FlopCounterMode

    def count(shadow: nn.Module, images: Tensor) -> int:
        with FlopCounterMode(display=False) as counter:
            shadow(images)
        return int(counter.get_total_flops())

    check_size(model, height, width)
    return _dry_run(model, height, width, count) // 2


def stays_on_device(model: nn.Module) -> bool:
    """Return whether a training pass stays on one device, so that a CUDA graph can hold it.

    It is judged by a dry run without values: a pass that copies a tensor from the CPU on purpose is not found out.
    """
    import torch

    size = math.lcm(required_multiple(model), 64)
    try:
        with torch.no_grad():
            forward_features(copy.deepcopy(model).to("meta").train(), torch.zeros(2, 3, size, size, device="meta"))
    except Exception:
        # whatever a model of a library raises; transformers may take no other size than their own
        return False
    return True


def trains_on_one_image(model: nn.Module, height: int, width: int) -> bool:
    """Return whether a batch of one image can be trained on.

    It cannot where a feature of one pixel is normalised over the batch, as in the pooling of DeepLabV3.

    Args:
        model: A model of `build_model` or `load_model`; it is left as it was.
        height: Rows of the image.
        width: Columns of the image.

    Raises:
        ModelError: The model does not take this size.
    """
    check_size(model, height, width)
    try:
        _dry_run(model, height, width, forward_features, training=True)
    except ValueError:  # batch normalisation's
        return False
    return True


def _dry_run(
    model: nn.Module,
    height: int,
    width: int,
    run: Callable[[nn.Module, Tensor], _T],
    *,
    training: bool = False,
    what: str = "model",
) -> _T:
    """Run a copy of a model on the meta device, where shapes are computed and values are not.

    Raises:
        ModelError: The model does not take images of this size.
    """
    import torch

    # a batch normalisation that cannot train on one image raises the latter, which whoever asks for that wants to see
    refusals = (RuntimeError,) if training else (RuntimeError, ValueError)

    def attempt(device: str) -> _T:
        shadow = copy.deepcopy(model).to(device).float().train(training)
        return run(shadow, torch.zeros(1, 3, height, width, device=device))

    with torch.no_grad():
        try:
            try:
                return attempt("meta")
            except refusals:
                # some encoders make tensors on the CPU within their forward pass: these are really run
                return attempt("cpu")
        except (AssertionError, *refusals) as error:
            # transformers take one size, or multiples of one that depends on their options
            raise ModelError(f"{what}: {type(model).__name__} takes no images of {height}x{width}: {error}") from None


def _info(name: str, feature: Tensor, image_height: int) -> FeatureInfo:
    channels, height, width = feature.shape[1:]
    stride = int(name.removeprefix("encoder.")) if name.startswith("encoder.") else round(image_height / height)
    return FeatureInfo(name=name, stride=stride, channels=channels, height=height, width=width)


def _near(size: int, multiple: int, up: bool) -> int:
    below = max(size // multiple, 1) * multiple
    return below + multiple if up and size > below else below
