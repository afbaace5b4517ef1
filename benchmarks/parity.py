"""How far the ways from a file to a network differ: in pixels, and in the scores of one trained student.

    python -m benchmarks.parity RUN [--output FILE]

RUN is a run directory with its stages up to `export` done. Pixels are compared in levels of 255, first as
decoded, then as resized, so that it shows where a difference comes from; then the student is evaluated on the
validation split through each way, everything else being equal. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tabulate import tabulate
from torch import nn

from benchmarks.output import output_file, publish
from brd_edge.data.dataset import Sample, read_frame, read_label
from brd_edge.data.evaluation import read_for_evaluation
from brd_edge.data.index import load_dataset
from brd_edge.data.loader import Backend
from brd_edge.environment import describe_environment
from brd_edge.evaluate.accuracy import model_predictor
from brd_edge.evaluate.attribution.ways import (
    ClassMaps,
    graph_normalisation,
    graph_predictor,
    plain_batches,
    segment_frames,
    segment_plain_batches,
)
from brd_edge.models.segmentation import load_model
from brd_edge.progress import progress_bar
from brd_edge.recipe import load_recipe
from brd_edge.runtime.contract import RESIZED, SLIDING_WINDOW, InputContract
from brd_edge.runtime.errors import BrdEdgeError, DataError
from brd_edge.runtime.frames import resize_class_map
from brd_edge.runtime.metrics import SegmentationMetrics
from brd_edge.stages.context import input_contract

ByteArray = NDArray[np.uint8]


@dataclass(frozen=True)
class Student:
    """A trained student and what it is evaluated on.

    Attributes:
        model: float32 (1, 3, H, W) normalised to logits (1, K, H, W), in eval mode.
        graph: The same as ONNX: uint8 frame to class map.
        contract: How frames enter both.
        classes: K.
        samples: Validation samples.
    """

    model: nn.Module
    graph: Path
    contract: InputContract
    classes: int
    samples: tuple[Sample, ...]


def load_student(run: Path) -> Student:
    """Return the student of a run directory.

    Raises:
        BrdEdgeError: The run is not that far, or is damaged.
    """
    recipe = load_recipe(run / "recipe.yaml")
    dataset = load_dataset(run / "data")
    model, _ = load_model(run / "distill/model")
    contract = input_contract(recipe)
    if contract.slides:
        raise DataError(f"{run}: its images are not resized but segmented in windows; expected a run that resizes them")
    return Student(model, run / "export/student.onnx", contract, len(dataset.classes), dataset.val)


def difference(pairs: Iterable[tuple[NDArray[Any], NDArray[Any]]]) -> dict[str, float]:
    """Return by how many levels of 255 pairs of images differ: all pixels, and without the outermost ring."""
    largest = inner = 0.0
    total = above = count = 0.0
    for a, b in pairs:
        found = np.abs(a.astype(np.float64) - b.astype(np.float64))
        largest, inner = max(largest, found.max()), max(inner, found[1:-1, 1:-1].max())
        total, above, count = total + found.sum(), above + (found > 1.001).sum(), count + found.size
    return {"max": largest, "max_inside": inner, "mean": total / count, "share_above_1": above / count}


def compare_pixels(student: Student, gpu: int | None) -> dict[str, dict[str, float]]:
    """Compare each reader with Pillow, as decoded and as resized, and the graph's normalisation with the loader's."""

    def images(contract: InputContract, backend: Backend, device: int | None) -> Iterator[ByteArray]:
        items = read_for_evaluation(student.samples, contract=contract, backend=backend, threads=2, gpu=device)
        return (item.image for item in items)

    found = {}
    for name, device in (("dali-cpu", None), *([("dali-gpu", gpu)] if gpu is not None else [])):
        for step, resize in (("decoded", SLIDING_WINDOW), ("resized", RESIZED)):
            contract = replace(student.contract, resize=resize)
            pairs = zip(images(contract, "torch", None), images(contract, "dali", device), strict=True)
            found[f"{name}, {step}"] = difference(pairs)
    found["graph, normalised"] = difference(_normalised_pairs(student))
    return found


def _normalised_pairs(student: Student) -> Iterator[tuple[NDArray[Any], NDArray[Any]]]:
    """Yield what the loader and the graph hand to the first convolution, in levels of 255 (the mean left out)."""
    normalise = graph_normalisation(student.graph)
    scale = 255 * np.array(student.contract.std)[:, None, None]
    batches = plain_batches(student.samples, contract=student.contract, backend="torch", threads=2)
    for images, _, index in batches:
        frame = read_frame(student.samples[index], student.contract)
        pair = (values[0].astype(np.float64) * scale for values in (images.numpy(), normalise(frame)))
        mine, theirs = (np.moveaxis(values, 0, -1) for values in pair)
        yield mine, theirs


def class_maps_by_way(student: Student, gpu: int | None) -> dict[str, Callable[[], ClassMaps]]:
    """Return, by name, the ways from the files to the student's class maps at the contract's size."""
    cpu = torch.device("cpu")
    reading: dict[str, Any] = {"contract": student.contract, "threads": 2}
    predict = model_predictor(student.model, student.contract, cpu)

    def evaluated(backend: Backend, device: int | None = None) -> ClassMaps:
        return segment_frames(predict, student.samples, backend=backend, gpu=device, **reading)

    def trained(backend: Backend, device: int | None = None) -> ClassMaps:
        return segment_plain_batches(student.model, student.samples, device=cpu, backend=backend, gpu=device, **reading)

    def in_graph() -> ClassMaps:
        return segment_frames(graph_predictor(student.graph, student.contract), student.samples, **reading)

    ways: dict[str, Callable[[], ClassMaps]] = {
        "Pillow, PyTorch": lambda: evaluated("torch"),
        "Pillow, normalised in the graph": in_graph,
        "training loader torch": lambda: trained("torch"),
        "DALI CPU, PyTorch": lambda: evaluated("dali"),
        "training loader DALI CPU": lambda: trained("dali"),
    }
    if gpu is not None:
        ways["DALI GPU, PyTorch"] = lambda: evaluated("dali", gpu)
        ways["training loader DALI GPU"] = lambda: trained("dali", gpu)
    return ways


def score_ways(student: Student, gpu: int | None) -> list[dict[str, Any]]:
    """Evaluate the student through each way; the first one is the reference of the differences."""
    ways = class_maps_by_way(student, gpu)
    labels = [read_label(sample) for sample in student.samples]
    reference: dict[int, ByteArray] = {}
    rows: list[dict[str, Any]] = []
    with progress_bar(len(ways) * len(labels), "parity", unit="image") as bar:
        for name, run in ways.items():
            metrics, equal = SegmentationMetrics(student.classes, connectivity=False), []
            for index, class_map in run():
                metrics.update(resize_class_map(class_map, *labels[index].shape), labels[index])
                equal.append(float(np.mean(class_map == reference.setdefault(index, class_map))))
                bar.update(1)
            scores = {"miou": metrics.miou(), "boundary_iou": metrics.boundary_iou()}
            lost = {f"{key}_lost": (rows[0][key] if rows else value) - value for key, value in scores.items()}
            rows.append({"way": name, "images": metrics.images, **scores, **lost, "agreement": float(np.mean(equal))})
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the comparison."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.parity", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("run", type=Path, metavar="RUN", help="run directory, such as runs/camvid_cpu")
    parser.add_argument("--output", type=output_file, metavar="FILE", help="write the result as JSON")
    options = parser.parse_args(arguments)
    try:
        student = load_student(options.run)
    except BrdEdgeError as error:
        print(f"parity: error: {error}; expected a run with its stages up to export done", file=sys.stderr)
        return 1
    gpu = 0 if torch.cuda.is_available() else None
    result = {
        "benchmark": "parity",
        "recipe": options.run.name,
        "contract": student.contract.to_json(),
        "images": len(student.samples),
        "pixels": compare_pixels(student, gpu),
        "scores": score_ways(student, gpu),
        "not_measured": {} if gpu is not None else {"dali-gpu": "no GPU here"},
        "environment": describe_environment(),
    }
    pixels = [[name, *found.values()] for name, found in result["pixels"].items()]
    print(tabulate(pixels, ["levels of 255", "max", "max inside the ring", "mean", "share > 1"], floatfmt=".4g"))
    print()
    percent = [
        [
            row["way"],
            *(100 * row[key] for key in ("miou", "miou_lost", "boundary_iou", "boundary_iou_lost", "agreement")),
        ]
        for row in result["scores"]
    ]
    headers = ["way", "mIoU %", "lost", "Boundary IoU %", "lost", "agreement %"]
    print(tabulate(percent, headers, floatfmt=(".0f", ".2f", ".3f", ".2f", ".3f", ".3f")))
    return publish(result, options.output)


if __name__ == "__main__":
    sys.exit(main())
