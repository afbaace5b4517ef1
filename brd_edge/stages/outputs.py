"""Where an engine's class map is computed: in its graph, or from coarse logits; part of the stage `build`."""

from __future__ import annotations

import platform
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from brd_edge.data.dataset import read_frame
from brd_edge.recipe import EngineSection
from brd_edge.runtime.errors import EngineError
from brd_edge.runtime.latency import collector_off
from brd_edge.runtime.statistics import Interval, bootstrap_percentiles
from brd_edge.runtime.targets import TARGETS
from brd_edge.stages.context import Context, input_contract
from brd_edge.stages.reporting import sample_indices
from brd_edge.stages.training import load_run_dataset

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from brd_edge.runtime.engine import CoarseLogits, EngineInfo, Runner

__all__ = ["Build", "Built", "build_output"]

Build = Callable[[Path, Path, "CoarseLogits | None"], "EngineInfo"]
"""Builds an engine from a graph into a directory."""

_WARMUP = 5
_PAIRS = 40
_FRAMES = 5


@dataclass(frozen=True)
class Built:
    """An engine as it is kept.

    Attributes:
        info: Its sidecar.
        graph: What it was built from.
        ratio: Latency of sparse over that of dense, where both were timed to choose.
    """

    info: EngineInfo
    graph: Path
    ratio: Interval | None = None

    @property
    def output(self) -> str:
        """`"dense"` or `"sparse"`."""
        return "dense" if self.info.logits is None else "sparse"


def build_output(context: Context, engine: EngineSection, graph: Path, directory: Path, build: Build) -> Built:
    """Build an engine with the output that the recipe asks for; `auto` takes what is faster on this machine.

    Args:
        context: Where the stage works.
        engine: The engine.
        graph: From frame to class map, in the engine's precision.
        directory: Where the engine goes; beside it the other form lies while both are timed.
        build: Builds it.

    Raises:
        EngineError: `sparse` is asked for, and the graph does not end in bilinear upsampling and ArgMax.
        RuntimeMissingError: The runtime is not installed.
    """
    if engine.runtime == "tensorrt" or (engine.output != "sparse" and not chosen_by_time(engine)):
        return Built(build(graph, directory, None), graph)
    from brd_edge.deploy.logits import cut_at_logits

    cut = context.run.path("graphs", directory.name, f"{graph.stem}-logits{graph.suffix}")
    logits = cut_at_logits(graph, cut)
    if logits is None and engine.output == "sparse":
        raise EngineError(
            f"{graph}: output: sparse needs a graph that ends in bilinear upsampling and ArgMax; "
            "say auto or dense for this one"
        )
    if logits is None:
        return Built(build(graph, directory, None), graph)
    if engine.output == "sparse":
        return Built(build(cut, directory, logits), cut)
    dense, sparse = build(graph, directory, None), directory.with_name(f".{directory.name}.sparse")
    build(cut, sparse, logits)
    ratio = _ratio(context, directory, sparse)
    shutil.rmtree(sparse)
    if ratio.high >= 1:
        return Built(dense, graph, ratio)
    return Built(build(cut, directory, logits), cut, ratio)


def chosen_by_time(engine: EngineSection) -> bool:
    """Return whether an engine's output is the one that is faster on this machine."""
    here = platform.machine() in TARGETS[engine.target].machines and TARGETS[engine.target].device == "CPU"
    return engine.output == "auto" and engine.runtime != "tensorrt" and here


def _ratio(context: Context, dense: Path, sparse: Path) -> Interval:
    """Time both in turns, A B B A, on validation images: the median of the pairs' ratios."""
    from brd_edge.runtime.engine import open_engine

    contract, threads = input_contract(context.recipe), context.recipe.benchmark.threads
    val = load_run_dataset(context).val
    # how long a class map from coarse logits takes depends on the picture
    frames = [read_frame(val[index], contract) for index in sample_indices(len(val), _FRAMES)]
    with (
        open_engine(dense, contract=contract, threads=threads) as first,
        open_engine(sparse, contract=contract, threads=threads) as second,
        collector_off(),
    ):
        for runner in (first, second) * _WARMUP:
            runner.infer(frames[0])
        ratios = []
        for number in range(_PAIRS):
            order = (first, second) if number % 2 == 0 else (second, first)
            taken = {id(runner): _time(runner, frames[number // 2 % len(frames)]) for runner in order}
            ratios.append(taken[id(second)] / taken[id(first)])
    return bootstrap_percentiles(np.asarray(ratios), (50.0,))[0]


def _time(runner: Runner, frame: NDArray[np.uint8]) -> float:
    start = time.perf_counter()
    runner.infer(frame)
    return time.perf_counter() - start
