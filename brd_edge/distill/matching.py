"""Which layers of a teacher and a student are compared."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn

from brd_edge.models.segmentation import FeatureInfo, Features, feature_table, required_multiple
from brd_edge.runtime.errors import ModelError

__all__ = ["Layer", "layer_channels", "matched_layers", "matched_strides", "pick_layer", "require_same_classes"]

Layer = Literal["deepest", "decoder", 2, 4, 8, 16, 32]
"""The backbone's last stage, the decoder's output, or the backbone's stage of a stride."""


def pick_layer(features: Features, layer: Layer) -> Tensor:
    """Return a layer's feature (N, C, h, w).

    Args:
        features: Of one forward pass.
        layer: Which one; a stride must be one that the backbone has.
    """
    if layer == "decoder":
        return features.decoder
    return features.encoder[max(features.encoder) if layer == "deepest" else layer]


def layer_channels(model: nn.Module, layer: Layer | int) -> int:
    """Return the channels of a layer, given by name or stride."""
    rows = _rows(model)
    if layer == "decoder":
        return next(row.channels for row in rows if row.name == "decoder")
    stages = {row.stride: row.channels for row in rows if row.name.startswith("encoder.")}
    return stages[max(stages) if layer == "deepest" else int(layer)]


def matched_strides(teacher: nn.Module, student: nn.Module, wanted: Sequence[int]) -> tuple[int, ...]:
    """Return the wanted strides that both backbones have, in the wanted order.

    Raises:
        ModelError: There is none; the message shows both feature tables.
    """
    common = _strides(teacher) & _strides(student)
    found = tuple(stride for stride in wanted if stride in common)
    if not found:
        raise _mismatch("boundary_strides", f"none of {list(wanted)} is a stage of both backbones", teacher, student)
    return found


def matched_layers(teacher: nn.Module, student: nn.Module, wanted: Sequence[Layer]) -> tuple[Layer, ...]:
    """Return the wanted layers after checking that both models have every one of them.

    Raises:
        ModelError: One has not; the message shows both feature tables.
    """
    common = _strides(teacher) & _strides(student)
    lacking = [layer for layer in wanted if isinstance(layer, int) and layer not in common]
    if lacking:
        raise _mismatch("relation_layers", f"{lacking} are not stages of both backbones", teacher, student)
    return tuple(wanted)


def require_same_classes(teacher: nn.Module, student: nn.Module) -> None:
    """Refuse a teacher and a student of different classes.

    Raises:
        ModelError: Their logits differ in channels; the message shows both feature tables.
    """
    counts = [_rows(model)[-1].channels for model in (teacher, student)]
    if counts[0] != counts[1]:
        text = f"the teacher has {counts[0]} classes, the student {counts[1]}"
        raise _mismatch("method", text, teacher, student)


def _rows(model: nn.Module) -> list[FeatureInfo]:
    side = 256 + -256 % required_multiple(model)
    return feature_table(model, side, side)


def _strides(model: nn.Module) -> set[int]:
    return {row.stride for row in _rows(model) if row.name.startswith("encoder.")}


def _mismatch(key: str, text: str, teacher: nn.Module, student: nn.Module) -> ModelError:
    lines = [
        f"  {name} {row.name}: stride {row.stride}, {row.channels} channels"
        for name, model in (("teacher", teacher), ("student", student))
        for row in _rows(model)
    ]
    return ModelError("\n".join([f"distill.{key}: {text}", *lines]))
