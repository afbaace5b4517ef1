"""The zero-cost proof on built engines: the distilled student's against the undistilled one's.

For each runtime: weights of equal size, equal quantisers, equal layers after the runtime's own optimisation, and
latency that is equivalent within a margin. The structural half, on the graphs, is `brd_edge.evaluate.zero_cost`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from brd_edge.evaluate.contents import read_contents
from brd_edge.evaluate.layers import list_layers
from brd_edge.evaluate.proof import judge_cost
from brd_edge.runtime.compare import Open, PairedLatency, compare_latency, frames_by_turn
from brd_edge.runtime.engine import open_engine, read_engine
from brd_edge.runtime.errors import RuntimeMissingError

__all__ = ["EngineCost", "LatencyOf", "compare_engines", "compare_structure"]

LatencyOf = Literal["frame to class map", "engine alone"]

Told = TypeVar("Told")

_METADATA_BYTES = 4096
"""Files may differ by as much beside the weights: they hold texts, such as the name of the method, names that are
numbered as they are made, and numbers written out; and equal constants may be stored once."""
_SHOWN = 5


@dataclass(frozen=True)
class EngineCost:
    """What came of comparing two engines.

    Attributes:
        size_bytes: Size of the distilled student's engine, and of the undistilled one's.
        layers: Number of layers that the runtime executes, of both; None where it cannot tell.
        differences: What differs in size or layers, a sentence each.
        latency: The session in which both were timed, or None where they cannot run here.
        latency_of: `"frame to class map"`, or `"engine alone"` where the class map is made from coarse logits
            outside of it; None where nothing was timed.
        weight_bytes: Size of the constants of both, which must be equal to the byte; None where the files do not tell.
    """

    size_bytes: tuple[int, int]
    layers: tuple[int, int] | None
    differences: tuple[str, ...]
    latency: PairedLatency | None
    latency_of: LatencyOf | None = None
    weight_bytes: tuple[int, int] | None = None

    @property
    def held(self) -> bool | None:
        """Whether distillation costs nothing: False as soon as one part differs, None where a part is undecided."""
        if self.differences:
            return False
        if self.latency is None:
            return None
        found = self.latency.comparison
        judged = judge_cost(found.verdict, (found.equivalence.low, found.equivalence.high), margin=found.margin)
        return {"equal": True, "different": False}.get(judged)

    def to_json(self) -> dict[str, Any]:
        """Return everything but the samples, as JSON types."""
        return {
            "held": self.held,
            "size_bytes": list(self.size_bytes),
            "weight_bytes": None if self.weight_bytes is None else list(self.weight_bytes),
            "layers": None if self.layers is None else list(self.layers),
            "differences": list(self.differences),
            "latency": None if self.latency is None else self.latency.to_json(),
            "latency_of": self.latency_of,
        }


def compare_structure(student: Path, plain: Path, *, threads: int | None = None) -> EngineCost:
    """Compare size, weights, quantisers and layers of two engines; nothing is timed.

    Layers are not compared where the runtime or the device that could tell them is not here.

    Args:
        student: Directory of the distilled student's engine.
        plain: Directory of the undistilled student's, built alike.
        threads: Threads of the runtime; None leaves the choice to it.

    Raises:
        EngineError: An engine is not valid or cannot be loaded, or they are of different kinds.
    """
    sizes = tuple(sum(file.size_bytes for file in read_engine(path).files.values()) for path in (student, plain))
    differences = []
    if abs(sizes[0] - sizes[1]) > _METADATA_BYTES:
        differences.append(f"size: {sizes[0]:,} bytes against {sizes[1]:,}")
    contents = _of_both(read_contents, student, plain)
    weights = None if contents is None else (contents[0].weight_bytes, contents[1].weight_bytes)
    if contents is not None and weights is not None:
        if weights[0] != weights[1]:
            differences.append(f"weights: {weights[0]:,} bytes against {weights[1]:,}")
        differences += _differences("quantisers", contents[0].quantisers, contents[1].quantisers)
    listed = _of_both(partial(list_layers, threads=threads), student, plain)
    layers = None if listed is None else (len(listed[0]), len(listed[1]))
    if listed is not None:
        differences += _differences("layers", *listed)
    return EngineCost((sizes[0], sizes[1]), layers, tuple(differences), None, weight_bytes=weights)


def compare_engines(
    student: Path,
    plain: Path,
    frames: Sequence[NDArray[np.uint8]],
    *,
    threads: int | None,
    margin: float,
    budget_s: float,
) -> EngineCost:
    """Compare size, layers and latency of two engines.

    Args:
        student: Directory of the distilled student's engine.
        plain: Directory of the undistilled student's, built alike.
        frames: What they are timed on, turn by turn: at least one, uint8 (H, W, 3) of the contract's size.
        threads: Threads of the runtime; None leaves the choice to it.
        margin: Largest difference of latency that counts as none, as a share.
        budget_s: Seconds for the timing.

    Raises:
        EngineError: An engine is not valid or cannot be run.
        RuntimeMissingError: The runtime or its hardware is missing.
    """
    structure = compare_structure(student, plain, threads=threads)
    # how long a class map from coarse logits takes depends on how many boundaries the picture has, and the
    # undistilled student's weights draw another picture: that is not what distillation adds to the engine
    alone = read_engine(student).logits is not None
    current, on_turn = frames_by_turn(frames)

    def opener(path: Path) -> Open:
        @contextmanager
        def opened() -> Iterator[Callable[[], object]]:
            with open_engine(path, threads=threads) as runner:
                yield runner.bind(frames[0]) if alone else lambda: runner.infer(current())

        return opened

    latency = compare_latency(opener(plain), opener(student), margin=margin, budget_s=budget_s, on_turn=on_turn)
    return replace(structure, latency=latency, latency_of="engine alone" if alone else "frame to class map")


def _of_both(read: Callable[[Path], Told | None], student: Path, plain: Path) -> tuple[Told, Told] | None:
    """Read something of both engines; nothing where it cannot be told here."""
    try:
        mine, theirs = read(student), read(plain)
    except RuntimeMissingError:
        return None
    return None if mine is None or theirs is None else (mine, theirs)


def _differences(what: str, mine: Sequence[str], theirs: Sequence[str]) -> list[str]:
    if list(mine) == list(theirs):
        return []
    more, less = Counter(mine) - Counter(theirs), Counter(theirs) - Counter(mine)
    if not more and not less:
        return [f"{what}: the same ones in another order"]
    parts = [f"{count} more {kind}" for kind, count in more.most_common(_SHOWN)]
    parts += [f"{count} fewer {kind}" for kind, count in less.most_common(_SHOWN)]
    return [f"{what}: {len(mine)} against {len(theirs)}: {', '.join(parts)}"]
