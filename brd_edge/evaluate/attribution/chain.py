"""The chain of ways from an image file to a class map in which neighbours differ in one thing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from brd_edge.data.dataset import Sample
from brd_edge.data.loader import Backend, choose_backend
from brd_edge.evaluate.accuracy import ByteArray, model_predictor
from brd_edge.evaluate.attribution.ways import (
    ClassMaps,
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

__all__ = ["SHARED_WAYS", "Reading", "Student", "Way", "chain_ways"]

SHARED_WAYS = 5
"""Ways before those of the engines, which come one by one after the last of these."""


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
    engines: Mapping[str, Path],
    reading: Reading,
    threads: int | None,
    known: Sequence[ByteArray] | None,
) -> list[Way]:
    """Return the ways in order; nothing is read or opened before one of them runs.

    Args:
        student: The trained student.
        samples: What each way is run on.
        engines: Engine directories by name; their ways come last and all follow the whole graph's.
        reading: How images are read.
        threads: Threads of the graph and the engines; None leaves the choice to the runtime.
        known: The class map of each sample by PyTorch with the reference preprocessing, where they are known already.
    """
    return [
        *_pytorch_ways(student, samples, reading, threads, known),
        *_graph_ways(student, samples, reading, threads),
        *(_engine_way(student.contract, samples, item, reading, threads) for item in engines.items()),
    ]


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


def _engine_way(
    contract: InputContract, samples: Sequence[Sample], engine: tuple[str, Path], reading: Reading, threads: int | None
) -> Way:
    name, directory = engine

    def run() -> ClassMaps:
        with open_engine(directory, contract=contract, threads=threads) as runner:
            yield from segment_frames(runner.infer, samples, contract=contract, threads=reading.threads)

    return Way("engine", "runtime and precision", name, run, engine=name)
