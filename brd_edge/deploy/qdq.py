"""Quantised tensors in a graph: grids of 8-bit numbers, and the Q/DQ pairs that put them there."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from brd_edge.deploy.graphs import unused_name

if TYPE_CHECKING:
    import onnx

__all__ = ["Grid", "QuantisedWeight", "activation_grid", "insert_pairs", "quantise_weight"]

_SMALLEST_SCALE = float(np.finfo(np.float32).tiny)
# in float16 the numbers below 2 ** -14 thin out; a weight channel this small adds nothing anyway
_SMALLEST_FP16_SCALE = 2.0**-20
_INT32_MARGIN = 2.0**30


@dataclass(frozen=True)
class Grid:
    """The numbers `(q - zero_point) * scale` that an 8-bit tensor can hold.

    Attributes:
        scale: Distance of two neighbours, above 0.
        zero_point: The q that means 0.
        signed: Whether q is int8 (-128 to 127) or uint8 (0 to 255).
    """

    scale: float
    zero_point: int
    signed: bool


@dataclass(frozen=True)
class QuantisedWeight:
    """How the weight of one node is quantised.

    Attributes:
        limit: The largest magnitude of the int8 numbers: 127, or 64 where processors without VNNI must not saturate.
        bias: Whether the bias becomes int32 on the grid of weight times input, as ONNX Runtime's kernels want it.
        half: Whether scales must be float16 numbers.
    """

    limit: int
    bias: bool
    half: bool


def activation_grid(low: float, high: float, *, signed: bool, half: bool = False) -> Grid:
    """Return the grid of a tensor that takes values from `low` to `high`; it holds 0 exactly.

    Args:
        low: Lowest value.
        high: Highest value.
        signed: int8, symmetric about a zero point of 0; else uint8, from the lower of `low` and 0 upwards.
        half: Whether the scale must be a float16 number.

    Example:
        >>> activation_grid(0.0, 5.1, signed=False)
        Grid(scale=0.019999999552965164, zero_point=0, signed=False)
    """
    low, high = min(low, 0.0), max(high, 0.0)
    if signed:
        return Grid(_scale(max(-low, high) / 127, half), 0, signed=True)
    scale = _scale((high - low) / 255, half)
    return Grid(scale, round(-low / scale), signed=False)


def quantise_weight(
    weight: NDArray[np.float32], *, limit: int, half: bool = False, floor: NDArray[np.float64] | None = None
) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Quantise a weight symmetrically, with one scale per output channel.

    Args:
        weight: float32 (C_out, …).
        limit: The largest magnitude of the int8 numbers.
        half: Whether the scales must be float16 numbers.
        floor: Smallest scale of each channel, float64 (C_out,).

    Returns:
        int8 of the weight's shape, and the scales, float32 (C_out,).
    """
    exact = weight.astype(np.float64)
    largest = np.abs(exact).reshape(len(exact), -1).max(axis=1)
    wanted = np.maximum(largest / limit, 0.0 if floor is None else floor)
    scales = np.array([_scale(value, half) for value in wanted], np.float32)
    steps = exact / scales.astype(np.float64).reshape(-1, *[1] * (exact.ndim - 1))
    return np.clip(np.rint(steps), -limit, limit).astype(np.int8), scales


def insert_pairs(
    model: onnx.ModelProto,
    grids: Mapping[str, Grid],
    weights: Mapping[str, QuantisedWeight],
    readers: Collection[str] | None,
) -> list[onnx.NodeProto]:
    """Return the nodes of a graph with Q/DQ pairs behind tensors and before weights.

    Args:
        model: The graph; its initializers grow and its nodes are rewired.
        grids: Grid by tensor.
        weights: How the weight (and bias) of a Conv is quantised, by the node's name.
        readers: The nodes that read the quantised form of a tensor; None means all.

    Returns:
        The nodes in topological order; the graph itself still holds the old list.
    """
    taken = {name for node in model.graph.node for name in (*node.input, *node.output)}
    taken |= {tensor.name for tensor in model.graph.initializer}
    pairs = _Pairs(model, taken)
    result: list[onnx.NodeProto] = []
    for node in model.graph.node:
        grid = grids.get(node.input[0]) if node.input else None
        if readers is None or node.name in readers:
            for slot, name in enumerate(node.input):
                if name in grids:
                    node.input[slot] = pairs.dequantised[name]
        if node.name in weights:
            assert grid is not None
            result += pairs.weight(node, grid, weights[node.name])
        result.append(node)
        for name in node.output:
            if name in grids:
                result += pairs.tensor(name, grids[name])
    return result


def _scale(value: float, half: bool) -> float:
    if half:
        return float(np.float16(max(value, _SMALLEST_FP16_SCALE)))
    return float(np.float32(max(value, _SMALLEST_SCALE)))


class _Pairs:
    """Makes pairs and remembers those that are there."""

    def __init__(self, model: onnx.ModelProto, taken: set[str]) -> None:
        self.dequantised: dict[str, str] = {}
        self._model = model
        self._taken = taken
        self._constants = {tensor.name: tensor for tensor in model.graph.initializer}

    def tensor(self, name: str, grid: Grid) -> list[onnx.NodeProto]:
        """A pair behind a tensor."""
        import onnx

        kind: type[np.int8 | np.uint8] = np.int8 if grid.signed else np.uint8
        constants = [
            self._constant(f"{name}_scale", np.array(grid.scale, np.float32)),
            self._constant(f"{name}_zero_point", np.array(grid.zero_point, kind)),
        ]
        quantised, back = self._name(f"{name}_quantised"), self._name(f"{name}_dequantised")
        self.dequantised[name] = back
        make: Callable[..., onnx.NodeProto] = onnx.helper.make_node
        return [
            make("QuantizeLinear", [name, *constants], [quantised], name=f"{name}_QuantizeLinear"),
            make("DequantizeLinear", [quantised, *constants], [back], name=f"{name}_DequantizeLinear"),
        ]

    def weight(self, node: onnx.NodeProto, grid: Grid, how: QuantisedWeight) -> list[onnx.NodeProto]:
        """The DQ before a Conv's weight, and before its bias where it is quantised too."""
        import onnx

        bias = node.input[2] if how.bias and len(node.input) > 2 and node.input[2] else None
        values = onnx.numpy_helper.to_array(self._constants[node.input[1]])
        shift = None if bias is None else onnx.numpy_helper.to_array(self._constants[bias]).astype(np.float64)
        floor = None if shift is None else np.abs(shift) / (grid.scale * _INT32_MARGIN)
        numbers, scales = quantise_weight(values, limit=how.limit, half=how.half, floor=floor)
        zeros = self._constant(f"{node.input[1]}_zero_point", np.zeros(len(scales), np.int8))
        found = [self._dequantise(node, 1, numbers, scales, zeros)]
        if shift is not None:
            # the product in float32, as the runtime computes it
            product = np.float32(grid.scale) * scales
            rounded = np.rint(shift / product.astype(np.float64)).astype(np.int32)
            found.append(self._dequantise(node, 2, rounded, product, None))
        return found

    def _dequantise(
        self,
        node: onnx.NodeProto,
        slot: int,
        numbers: NDArray[np.int8] | NDArray[np.int32],
        scales: NDArray[np.float32],
        zeros: str | None,
    ) -> onnx.NodeProto:
        import onnx

        name = node.input[slot]
        inputs = [self._constant(f"{name}_quantised", numbers), self._constant(f"{name}_scale", scales)]
        back = node.input[slot] = self._name(f"{name}_dequantised")
        inputs += [zeros] if zeros else []
        return onnx.helper.make_node("DequantizeLinear", inputs, [back], name=f"{back}_DequantizeLinear", axis=0)

    def _constant(self, wanted: str, values: NDArray[np.generic]) -> str:
        import onnx

        name = self._name(wanted)
        self._model.graph.initializer.append(onnx.numpy_helper.from_array(values, name))
        return name

    def _name(self, wanted: str) -> str:
        name = unused_name(wanted, self._taken)
        self._taken.add(name)
        return name
