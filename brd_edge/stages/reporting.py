"""What the report shows beside the numbers: validation images and training curves."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from brd_edge.data.dataset import Dataset, read_input, read_label
from brd_edge.evaluate.accuracy import ByteArray
from brd_edge.evaluate.formats import engine_labels
from brd_edge.evaluate.report.gallery import PLAIN_TITLE, most_differing
from brd_edge.run import Run
from brd_edge.runtime.contract import InputContract
from brd_edge.runtime.frames import resize_class_map

if TYPE_CHECKING:
    from brd_edge.evaluate.report.page import Curve, ReportSample

__all__ = ["PackedMap", "pack_map", "report_curves", "report_samples", "sample_indices", "unpack_map"]

_TITLES = {"teacher": "teacher", "compared": PLAIN_TITLE, "student": "student"}
"""From the names of models to the columns of the report, in their order."""


def sample_indices(count: int, wanted: int) -> list[int]:
    """Return `wanted` indices spread evenly over `count` samples, without regard to how they look."""
    return sorted({int(index) for index in np.linspace(0, count - 1, min(count, wanted)).round()})


@dataclass(frozen=True)
class PackedMap:
    """A class map, compressed: which images are shown is decided when everything has been measured."""

    shape: tuple[int, ...]
    content: bytes


def pack_map(class_map: ByteArray) -> PackedMap:
    """Compress a class map, uint8 (H, W)."""
    return PackedMap(class_map.shape, zlib.compress(class_map.tobytes(), level=1))


def unpack_map(packed: PackedMap) -> ByteArray:
    """Return the class map, uint8 (H, W)."""
    return np.frombuffer(zlib.decompress(packed.content), np.uint8).reshape(packed.shape)


def report_samples(
    dataset: Dataset,
    class_maps: Mapping[str, Mapping[int, PackedMap]],
    counts: Mapping[str, NDArray[np.int64]],
    contract: InputContract,
    *,
    engines: Sequence[Mapping[str, Any]],
    wanted: int,
) -> list[ReportSample]:
    """Return the validation images whose class maps and labels differ most near boundaries, the most differing first.

    Args:
        dataset: The run's data set.
        class_maps: By name (`teacher`, `student`, `compared` and the names of engines), then by index of the sample;
            a name may lack samples.
        counts: What was counted in each image, int64 (N, 10, K), by name (`most_differing`).
        contract: The engines' input contract.
        engines: The entries of `benchmark.json`, in the order of the columns.
        wanted: How many images.

    Returns:
        The images with their labels and class maps, all of the size that was segmented.
    """
    from brd_edge.evaluate.report.page import ReportSample

    samples = []
    labels = zip((engine["name"] for engine in engines), engine_labels(engines), strict=True)
    # several engines may have the same runtime and precision: titled as in the tables
    titles = {name: title for name, title in (*_TITLES.items(), *labels) if name in class_maps}
    for index in most_differing(counts.values(), wanted):
        sample = dataset.val[index]
        masks = {
            title: unpack_map(class_maps[name][index]) for name, title in titles.items() if index in class_maps[name]
        }
        image, label = read_input(sample, contract), read_label(sample)
        label = resize_class_map(label, image.shape[0], image.shape[1])
        samples.append(ReportSample(sample.id, image, label, masks))
    return samples


def report_curves(run: Run) -> dict[str, list[Curve]]:
    """Return loss terms and validation mIoU of both trainings."""
    from brd_edge.evaluate.report.page import Curve

    groups: dict[str, list[Curve]] = {}
    for stage in ("teacher", "distill"):
        path = run.path(stage, "metrics.jsonl")
        if not path.exists():
            continue
        points: dict[str, list[tuple[int, float]]] = {}
        for line in path.read_text(encoding="utf-8").splitlines():
            entry = json.loads(line)
            for name, value in entry.get("loss", {}).items():
                points.setdefault(f"{stage} loss\t{name}", []).append((entry["step"], value))
            if "miou" in entry:
                points.setdefault(f"validation mIoU (%)\t{stage}", []).append((entry["step"], 100 * entry["miou"]))
        for key, values in points.items():
            group, name = key.split("\t")
            steps, heights = zip(*values, strict=True)
            groups.setdefault(group, []).append(Curve(name, list(steps), list(heights)))
    return groups
