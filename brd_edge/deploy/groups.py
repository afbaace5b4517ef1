"""The parts of a student by name: encoder stages, decoder, head, each with its nodes."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from brd_edge.deploy.graphs import parts_of, read_graph
from brd_edge.runtime.errors import EngineError

if TYPE_CHECKING:
    import onnx

__all__ = ["excluded_nodes", "group_nodes", "layer_groups"]

# model.encoder.model.blocks.2.1.conv_pw.weight: the stage is the first part, with its number where it has one
_WEIGHT = re.compile(r"^model\.(?:(encoder)(?:\.model)?|(decoder)|(segmentation_head))\.(.+)$")


def layer_groups(source: Path) -> dict[str, tuple[str, ...]]:
    """Divide the body of an exported graph into groups that can be kept in floating point.

    Args:
        source: The exported fp32 graph.

    Returns:
        From the group's name, such as `encoder.blocks.2`, `decoder.aspp.0` or `head`, to the names of its nodes,
        in the order of the graph. Nodes without weights belong to the group before them.

    Raises:
        EngineError: The graph is not the exporter's.

    Example:
        >>> list(layer_groups(Path("export/student.onnx")))[:2]
        ['encoder.conv_stem', 'encoder.blocks.0']
    """
    model = read_graph(source)
    return group_nodes(model, parts_of(model, source).body)


def group_nodes(model: onnx.ModelProto, body: Iterable[onnx.NodeProto]) -> dict[str, tuple[str, ...]]:
    """Do what `layer_groups` does, with a graph that is read already."""
    weights = {tensor.name for tensor in model.graph.initializer}
    groups: dict[str, list[str]] = {}
    producers: dict[str, str] = {}
    for node in body:
        named = [found for name in node.input if name in weights and (found := _group_of_weight(name))]
        before = [producers[name] for name in node.input if name in producers]
        # of several inputs the latest group counts: a sum of encoder and decoder is the decoder's
        group = named[0] if named else max(before, key=list(groups).index, default="body")
        groups.setdefault(group, []).append(node.name)
        producers.update(dict.fromkeys(node.output, group))
    return {name: tuple(nodes) for name, nodes in groups.items()}


def excluded_nodes(
    model: onnx.ModelProto, body: Collection[onnx.NodeProto], exclude: Iterable[str], source: Path
) -> set[str]:
    """Turn names of nodes and groups into names of nodes.

    Args:
        model: The graph.
        body: The nodes of its body.
        exclude: Names of nodes or of groups.
        source: The graph's file, for the message.

    Raises:
        EngineError: There is no node or group of a name.
    """
    groups: Mapping[str, tuple[str, ...]] = group_nodes(model, body)
    nodes = {node.name for node in body}
    chosen: set[str] = set()
    for name in exclude:
        if name not in groups and name not in nodes:
            raise EngineError(
                f"{source}: exclude: there is no node or group {name!r}; the groups are {', '.join(groups)}"
            )
        chosen |= set(groups.get(name, (name,)))
    return chosen


def _group_of_weight(name: str) -> str | None:
    found = _WEIGHT.match(name)
    if found is None:
        return None
    encoder, decoder, _, rest = found.groups()
    if not encoder and not decoder:
        return "head"
    first, *others = rest.split(".")
    numbered = len(others) > 1 and others[0].isdecimal()
    return ".".join([encoder or decoder, first, *(others[:1] if numbered else [])])
