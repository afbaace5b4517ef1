"""Which layers of a teacher and a student are compared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from brd_edge.models.segmentation import FeatureInfo, Features, feature_table, required_multiple
from brd_edge.runtime.errors import ModelError

__all__ = [
    "Layer",
    "Pair",
    "Stride",
    "layer_channels",
    "layer_stride",
    "matched_layers",
    "matched_strides",
    "pair_up",
    "pick_layer",
]

Layer = Literal["deepest", "decoder", 2, 4, 8, 16, 32]
"""The backbone's last stage, the decoder's output, or the backbone's stage of a stride."""

Stride = Literal["auto", 2, 4, 8, 16, 32]
"""The backbone's stage of a stride, or `auto`, as `matched_strides` reads it."""

# measured: strides 4 and 8 beside it make no score better
_USUAL_STRIDE = 16


def pick_layer(features: Features, layer: Layer) -> Tensor:
    """Return a layer's feature (N, C, h, w).

    Args:
        features: Of one forward pass.
        layer: Which one; a stride must be one that the backbone has.
    """
    if layer == "decoder":
        return features.decoder
    return features.encoder[max(features.encoder) if layer == "deepest" else layer]


@dataclass(frozen=True)
class Pair:
    """The layers of a teacher and a student.

    Attributes:
        teacher: The teacher's features, as `feature_table` lists them.
        student: The student's features.
    """

    teacher: Sequence[FeatureInfo]
    student: Sequence[FeatureInfo]


def pair_up(teacher: nn.Module, student: nn.Module, *, size: tuple[int, int] | None = None, scale: int = 1) -> Pair:
    """Return the layers of both models.

    Args:
        teacher: A model of `build_model` or `load_model`.
        student: Another.
        size: Height and width of the images that the student is trained on, which matters where a model takes no
            other; 256 x 256 when not given, or what is divisible as it must be.
        scale: How many times as high and as wide the teacher's images are.

    Raises:
        ModelError: A model does not take its size, or the two have different classes; the latter message shows both
            feature tables.
    """
    tables = [
        feature_table(
            model,
            *(_any_size(model) if size is None else (times * size[0], times * size[1])),
            what=f"{name} on the size of the student's training" + (f" times {times}" if times > 1 else ""),
        )
        for name, model, times in (("teacher", teacher, scale), ("student", student, 1))
    ]
    pair = Pair(*tables)
    counts = [table[-1].channels for table in tables]
    if counts[0] != counts[1]:
        raise _mismatch("method", f"the teacher has {counts[0]} classes, the student {counts[1]}", pair)
    return pair


def layer_channels(table: Sequence[FeatureInfo], layer: Layer | int) -> int:
    """Return the channels of a layer, given by name or stride."""
    if layer == "decoder":
        return next(row.channels for row in table if row.name == "decoder")
    stages = {row.stride: row.channels for row in table if row.name.startswith("encoder.")}
    return stages[layer_stride(table, layer)]


def layer_stride(table: Sequence[FeatureInfo], layer: Layer | int) -> int:
    """Return the stride of a stage of the backbone, given by name or stride."""
    return max(row.stride for row in table if row.name.startswith("encoder.")) if layer == "deepest" else int(layer)


def matched_strides(pair: Pair, wanted: Sequence[Stride]) -> tuple[int, ...]:
    """Return the wanted strides that both backbones have, in the wanted order.

    Args:
        pair: The layers of both models.
        wanted: Strides; `auto` is 16, or where one backbone has no such stage the deepest that both have.

    Raises:
        ModelError: There is none; the message shows both feature tables.
    """
    common = _common_strides(pair)
    usual = _USUAL_STRIDE if _USUAL_STRIDE in common else max(common, default=_USUAL_STRIDE)
    strides = dict.fromkeys(usual if stride == "auto" else stride for stride in wanted)
    found = tuple(stride for stride in strides if stride in common)
    if not found:
        raise _mismatch("boundary_strides", f"none of {list(wanted)} is a stage of both backbones", pair)
    return found


def matched_layers(pair: Pair, wanted: Sequence[Layer]) -> tuple[Layer, ...]:
    """Return the wanted layers after checking that both models have every one of them.

    Raises:
        ModelError: One has not; the message shows both feature tables.
    """
    common = _common_strides(pair)
    lacking = [layer for layer in wanted if isinstance(layer, int) and layer not in common]
    if lacking:
        raise _mismatch("relation_layers", f"{lacking} are not stages of both backbones", pair)
    return tuple(wanted)


def _any_size(model: nn.Module) -> tuple[int, int]:
    side = 256 + -256 % required_multiple(model)
    return side, side


def _common_strides(pair: Pair) -> set[int]:
    of_teacher, of_student = (
        {row.stride for row in table if row.name.startswith("encoder.")} for table in (pair.teacher, pair.student)
    )
    return of_teacher & of_student


def _mismatch(key: str, text: str, pair: Pair) -> ModelError:
    lines = [
        f"  {name} {row.name}: stride {row.stride}, {row.channels} channels"
        for name, table in (("teacher", pair.teacher), ("student", pair.student))
        for row in table
    ]
    return ModelError("\n".join([f"distill.{key}: {text}", *lines]))
