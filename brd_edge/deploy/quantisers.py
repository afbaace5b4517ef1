"""The quantisers of an OpenVINO model: which tensors lie on a grid of 8-bit numbers, and on which."""

from __future__ import annotations

from typing import Any

__all__ = ["RANGES", "activation_quantisers", "quantiser_form"]

RANGES = (1, 2, 3, 4)
"""The inputs of a FakeQuantize that say what range it takes and what it gives."""


def activation_quantisers(model: Any) -> dict[str, Any]:
    """Return the FakeQuantize operations of an `openvino.Model` that depend on the frame, by name, in its order."""
    found: dict[str, Any] = {}
    fed: set[str] = set()
    for operation in model.get_ordered_ops():
        kind, name = operation.get_type_name(), operation.get_friendly_name()
        sources = [value.get_node().get_friendly_name() for value in operation.input_values()]
        # a shape is known before the frame is
        if kind == "Parameter" or (kind != "ShapeOf" and any(source in fed for source in sources)):
            fed.add(name)
            if kind == "FakeQuantize":
                found[name] = operation
    return found


def quantiser_form(quantiser: Any) -> tuple[int, tuple[tuple[int, ...], ...]]:
    """Return what of a FakeQuantize is structure: its number of levels, and the shapes of its ranges."""
    shapes = (tuple(int(side) for side in quantiser.input_value(slot).get_shape()) for slot in RANGES)
    return int(quantiser.get_attributes()["levels"]), tuple(shapes)
