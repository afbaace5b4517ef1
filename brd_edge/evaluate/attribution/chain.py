"""The chain of ways from an image file to a class map in which neighbours differ in one thing.

The first ways are shared; from the last of them every engine has a chain of its own: its graph in floating-point
arithmetic (precision), the engine (runtime), and, for one of coarse logits, the class map.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from brd_edge.data.dataset import Sample
from brd_edge.data.loader import Backend, choose_backend
from brd_edge.deploy.agreement import in_floating_point, stand_in
from brd_edge.deploy.lowering import is_exact, is_quantised
from brd_edge.evaluate.accuracy import ByteArray, Predictor, model_predictor
from brd_edge.evaluate.attribution.ways import (
    ClassMaps,
    dense_predictor,
    graph_logits_predictor,
    graph_normalisation_predictor,
    graph_predictor,
    segment_frames,
    segment_plain_batches,
)
from brd_edge.runtime.contract import InputContract
from brd_edge.runtime.engine import open_engine

if TYPE_CHECKING:
    import torch

__all__ = ["BuiltEngine", "Reading", "Student", "Way", "chain_ways", "count_ways"]

_SHARED_WAYS = 5
"""Ways before those of the engines, whose chains all begin at the last of these."""


@dataclass(frozen=True)
class Student:
    """A trained student and how images enter it.

    Attributes:
        model: float32 (1, 3, H, W) normalised to logits (1, K, H, W), in eval mode, on `device`.
        device: Where the model is.
        graph: The same as ONNX, uint8 frame to class map.
        contract: How frames enter both.
        classes: K.
    """

    model: torch.nn.Module
    device: torch.device
    graph: Path
    contract: InputContract
    classes: int


@dataclass(frozen=True)
class BuiltEngine:
    """An engine, and what it was built from.

    Attributes:
        directory: Its directory.
        runtime: For example `"openvino"`.
        precision: For example `"int8-bf16"`.
        lowered: The graph in its precision, from frame to class map; None where it is built from the exported graph,
            or where that is not known.
        sparse: Whether its class map is made from coarse logits.
    """

    directory: Path
    runtime: str
    precision: str
    lowered: Path | None = None
    sparse: bool = False


@dataclass(frozen=True)
class Way:
    """A way from the files to class maps.

    Attributes:
        step: Name of the step that leads to it.
        differs: What it does otherwise than the way before, in words.
        title: The way in words.
        run: Yields the class maps.
        engine: Name of the engine, if it is one.
        refused: Why it cannot be compared with the others, if it cannot.
    """

    step: str
    differs: str
    title: str
    run: Callable[[], ClassMaps]
    engine: str | None = None
    refused: str = ""


@dataclass(frozen=True)
class Reading:
    """How images are read.

    Attributes:
        backend: Of the training loader, as the student was trained with.
        threads: Reading threads, at least 1.
        gpu: Number of the CUDA GPU on which the training loader decodes; None uses the CPU.
    """

    backend: Backend = "auto"
    threads: int = 1
    gpu: int | None = None


def chain_ways(
    student: Student,
    samples: Sequence[Sample],
    *,
    engines: Mapping[str, BuiltEngine],
    reading: Reading,
    threads: int | None,
    known: Sequence[ByteArray] | None,
) -> list[Way]:
    """Return the ways in order; nothing is read or opened before one of them runs.

    Args:
        student: The trained student.
        samples: What each way is run on.
        engines: Engines by name; their ways come last, and those of each begin at the whole graph's.
        reading: How images are read.
        threads: Threads of the graph and the engines; None leaves the choice to the runtime.
        known: The class map of each sample by PyTorch with the reference preprocessing, where they are known already.
    """
    return [
        *_pytorch_ways(student, samples, reading, threads, known),
        *_graph_ways(student, samples, reading, threads),
        *(way for name in engines for way in _engine_ways(student, samples, name, engines[name], reading, threads)),
    ]


def count_ways(engines: Mapping[str, BuiltEngine]) -> int:
    """Return how many ways `chain_ways` returns."""
    return _SHARED_WAYS + sum(len(_engine_steps(name, engine)) for name, engine in engines.items())


def _pytorch_ways(
    student: Student,
    samples: Sequence[Sample],
    reading: Reading,
    threads: int | None,
    known: Sequence[ByteArray] | None,
) -> list[Way]:
    """Return the ways whose network is PyTorch's, which differ in how an image becomes its input."""
    model, contract, device = student.model, student.contract, student.device
    backend = choose_backend("auto") if reading.backend == "auto" else reading.backend

    def loaded() -> ClassMaps:
        return segment_plain_batches(
            model,
            samples,
            contract=contract,
            device=device,
            backend=backend,
            threads=reading.threads,
            gpu=reading.gpu,
        )

    def reference() -> ClassMaps:
        if known is not None:
            return (item for item in enumerate(known))
        predict = model_predictor(model, contract, device)
        return segment_frames(predict, samples, contract=contract, threads=reading.threads)

    def in_graph() -> ClassMaps:
        predict = graph_normalisation_predictor(student.graph, model, device, threads=threads)
        return segment_frames(predict, samples, contract=contract, threads=reading.threads)

    refused = "not comparable: images are segmented in windows at their own size, the training loader cuts crops"
    return [
        Way("", "", f"training loader ({backend}), PyTorch", loaded, refused=refused if contract.slides else ""),
        Way("loader", "training loader", "reference preprocessing, PyTorch", reference),
        Way("preprocessing", "preprocessing in the graph", "graph's preprocessing, PyTorch", in_graph),
    ]


def _graph_ways(student: Student, samples: Sequence[Sample], reading: Reading, threads: int | None) -> list[Way]:
    """Return the ways that run the exported graph in ONNX Runtime: as far as its logits, and to its end."""
    path, contract = student.graph, student.contract

    def logits() -> ClassMaps:
        predict = graph_logits_predictor(path, threads=threads)
        return segment_frames(predict, samples, contract=contract, threads=reading.threads)

    def class_map() -> ClassMaps:
        predict = graph_predictor(path, contract, threads=threads)
        return segment_frames(predict, samples, contract=contract, threads=reading.threads)

    return [
        Way("onnx", "ONNX fp32", "ONNX fp32, argmax by numpy", logits),
        Way("class_map", "class map in the graph", "ONNX fp32, argmax in the graph", class_map),
    ]


@dataclass(frozen=True)
class _EngineStep:
    """A step within an engine's chain: `Way`'s own, and what makes the class map after it."""

    step: str
    differs: str
    title: str
    by: Literal["graph", "runtime", "engine, dense", "engine"]


def _engine_steps(name: str, engine: BuiltEngine) -> list[_EngineStep]:
    """Return the steps from the exported graph to an engine, one thing at a time."""
    steps: list[_EngineStep] = []
    first, _, second = engine.precision.partition("-")
    told = engine.runtime == "openvino" and (second or first) in ("fp16", "bf16")
    if engine.lowered is not None:
        precision = first if told else engine.precision
        steps.append(_EngineStep("precision", f"precision ({precision})", f"{name}: in float", "graph"))
    if told:
        # what OpenVINO computes the rest in is no part of the graph: it is told when the engine is opened
        rest = "rest in fp32" if is_quantised(engine.precision) else "in fp32"
        steps.append(_EngineStep("runtime", "runtime", f"{name}: {rest}", "runtime"))
        last = ("precision", f"precision ({second or first})")
    elif engine.lowered is None and not is_exact(engine.runtime, engine.precision):
        last = ("engine", "runtime and precision")
    else:
        last = ("runtime", "runtime")
    if not engine.sparse:
        return [*steps, _EngineStep(*last, name, "engine")]
    steps.append(_EngineStep(*last, f"{name}: dense argmax", "engine, dense"))
    return [*steps, _EngineStep("class_map", "class map from coarse logits", name, "engine")]


def _engine_ways(
    student: Student,
    samples: Sequence[Sample],
    name: str,
    engine: BuiltEngine,
    reading: Reading,
    threads: int | None,
) -> list[Way]:
    contract = student.contract

    def segment(predict: Predictor) -> ClassMaps:
        return segment_frames(predict, samples, contract=contract, threads=reading.threads)

    def run(by: str) -> ClassMaps:
        if by == "graph" and engine.lowered is not None:
            yield from segment(in_floating_point(engine.lowered))
        elif by == "runtime":
            yield from segment(stand_in(engine.lowered or student.graph, runtime=engine.runtime))
        else:
            with open_engine(engine.directory, contract=contract, threads=threads) as runner:
                yield from segment(runner.infer if by == "engine" else dense_predictor(runner))

    return [
        Way(item.step, item.differs, item.title, partial(run, item.by), engine=name)
        for item in _engine_steps(name, engine)
    ]
