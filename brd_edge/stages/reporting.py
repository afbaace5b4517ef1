"""What the report shows beside the numbers: validation images and training curves."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from brd_edge.data.dataset import Dataset, read_input, read_label
from brd_edge.evaluate.accuracy import ByteArray, to_label_size
from brd_edge.run import Run
from brd_edge.runtime.contract import InputContract

if TYPE_CHECKING:
    from brd_edge.evaluate.report.page import Curve, ReportSample

__all__ = ["report_curves", "report_samples", "sample_indices"]

_TITLES = ("teacher", "earlier student", "student")


def sample_indices(count: int, wanted: int) -> list[int]:
    """Return `wanted` indices spread evenly over `count` samples, without regard to how they look."""
    return sorted({int(index) for index in np.linspace(0, count - 1, min(count, wanted)).round()})


def report_samples(
    dataset: Dataset, shown: Mapping[int, Mapping[str, ByteArray]], contract: InputContract
) -> list[ReportSample]:
    """Return validation images with their labels and class maps, all of the size that was segmented."""
    from brd_edge.evaluate.report.page import ReportSample

    samples = []
    for index, found in sorted(shown.items()):
        sample = dataset.val[index]
        first = [title for title in _TITLES if title in found]
        masks = {title: found[title] for title in [*first, *(title for title in found if title not in first)]}
        image, label = read_input(sample, contract), read_label(sample)
        label = to_label_size(label, image.shape[0], image.shape[1])
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
