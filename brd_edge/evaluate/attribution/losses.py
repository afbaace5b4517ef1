"""Where accuracy went between the trained student and each engine: ways that differ in one thing, one after the other.

The ways from an image file to a class map form a chain: the training loader's images, the reference preprocessing
and the graph's own, all three into the student in PyTorch; then the graph's logits in ONNX Runtime, and its class map.
From there each engine has a chain of its own. What a step loses is what its one difference costs, on the same images
for both.
"""

from __future__ import annotations

import logging
import zlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from brd_edge.data.dataset import Sample, read_label
from brd_edge.evaluate.accuracy import ByteArray
from brd_edge.evaluate.attribution.chain import BuiltEngine, Reading, Student, Way, chain_ways
from brd_edge.evaluate.intervals import score_intervals, score_losses
from brd_edge.runtime.errors import BrdEdgeError, DataError, RuntimeMissingError
from brd_edge.runtime.frames import resize_class_map
from brd_edge.runtime.metrics import SegmentationMetrics
from brd_edge.runtime.statistics import Interval

__all__ = ["Attribution", "ChangedImage", "Step", "attribute_losses"]

log = logging.getLogger("brd_edge")

_SCORES = ("miou", "boundary_iou")
_WORST = 3
_COMPRESSION = 1


@dataclass(frozen=True)
class ChangedImage:
    """An image whose class map a step changed.

    Attributes:
        image: Its id.
        changed: Share of the class map's pixels that changed, above 0 to 1.
        right: By how much the share of right pixels changed, -1 to 1; below 0 where it fell.
    """

    image: str
    changed: float
    right: float


@dataclass(frozen=True)
class Step:
    """What one difference between two ways costs.

    Attributes:
        name: `"loader"`, `"preprocessing"`, `"onnx"` or `"class_map"`; of an engine `"precision"`, `"runtime"` or
            `"class_map"`, or `"engine"` where precision and runtime cannot be told apart.
        title: What differs, in words; several things where ways between could not be measured.
        engine: The engine's name, of a step on the way to an engine; the last one's `after` is that name.
        before: The way before, in words.
        after: The way after, in words; of a step that was not measured, the way that could not be run.
        scores: mIoU and Boundary IoU after the step, 0 to 1, by `"miou"` and `"boundary_iou"`; None for a score
            that is not defined, as without any labelled pixel. Nothing where the step was not measured.
        lost: By the same names, what was lost, above 0 where it is worse after the step.
        agreement: Share of pixels that are of the same class before and after, mean over images.
        worst: The images that changed most, the first one most.
        reason: Why the step could not be measured.
        failed: Whether that is a fault: not when the two ways cannot be compared, or a runtime is not here.
    """

    name: str
    title: str
    engine: str | None
    before: str
    after: str
    scores: Mapping[str, float | None]
    lost: Mapping[str, Interval | None]
    agreement: float | None
    worst: tuple[ChangedImage, ...]
    reason: str = ""
    failed: bool = False

    def to_json(self) -> dict[str, Any]:
        """Return the step as JSON types."""
        return {
            "name": self.name,
            "title": self.title,
            "engine": self.engine,
            "from": self.before,
            "to": self.after,
            **{name: self.scores.get(name) for name in _SCORES},
            "lost": {name: item and item.to_json() for name, item in self.lost.items()} or None,
            "agreement": self.agreement,
            "worst": [asdict(item) for item in self.worst],
            "reason": self.reason,
        }


@dataclass(frozen=True)
class Attribution:
    """All steps from the trained student to its engines.

    Attributes:
        images: Number of images that every way was run on.
        title: The way that the first step starts from, in words.
        scores: What that way scores, as `Step.scores`.
        steps: In the order of the chain; the first of each engine starts from the last way that all share.
    """

    images: int
    title: str
    scores: Mapping[str, float | None]
    steps: tuple[Step, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the entry `attribution` of `benchmark.json`."""
        start = {"title": self.title, **self.scores}
        return {"images": self.images, "steps": [step.to_json() for step in self.steps], "start": start}


@dataclass(frozen=True)
class _Result:
    """What came of a way.

    Attributes:
        way: The way.
        maps: Compressed class maps, by position of the sample: a whole split of them must fit into memory.
        counts: What `SegmentationMetrics` counts of each image.
        reason: Why it could not be run.
        failed: Whether that is a fault.
    """

    way: Way
    maps: Mapping[int, bytes]
    counts: Mapping[int, NDArray[np.int64]]
    reason: str = ""
    failed: bool = False


def attribute_losses(
    student: Student,
    samples: Sequence[Sample],
    *,
    engines: Mapping[str, BuiltEngine],
    reading: Reading,
    threads: int | None = None,
    known: Sequence[ByteArray] | None = None,
    on_image: Callable[[], None] = lambda: None,
) -> Attribution:
    """Measure what each step from the trained student to its engines costs in accuracy.

    A way that cannot be run does not end the measurement: its step says why, and the next step starts from the last
    way that ran, so that the losses of the measured steps still add up.

    Args:
        student: The trained student.
        samples: What every way is run on, at least one.
        engines: Engines by name.
        reading: How images are read.
        threads: Threads of the graph and the engines; None leaves the choice to the runtime.
        known: The class map of each sample by PyTorch with the reference preprocessing, where they are known already.
        on_image: Called after each image of each way.

    Returns:
        One step for each pair of neighbouring ways, those of the engines last.

    Raises:
        DataError: There are no samples, or they cannot be read.

    Example:
        >>> engine = BuiltEngine(Path("engines/openvino-int8-x86-cpu"), "openvino", "int8", Path("graphs/student.xml"))
        >>> found = attribute_losses(student, dataset.val, engines={"openvino-int8": engine}, reading=Reading())
        >>> [step.name for step in found.steps]
        ['loader', 'preprocessing', 'onnx', 'class_map', 'precision', 'runtime']
    """
    if not samples:
        raise DataError("attribution: expected at least one sample, got none")
    ways = chain_ways(student, samples, engines=engines, reading=reading, threads=threads, known=known)
    shared = _Chain()
    chain, engine = shared, None
    steps: list[Step] = []
    for way in ways:
        if way.engine != engine:
            # every engine's chain begins where the shared one ends
            chain, engine = replace(shared, skipped=[*shared.skipped]), way.engine
        found = _run(way, samples, student.classes, chain.last, on_image)
        if chain.last is not None:
            steps.append(_step(chain.last, found, chain.skipped, samples, student.classes))
        elif chain.skipped and found.reason:
            raise DataError(f"attribution: the student cannot be run on the images: {found.reason}")
        elif chain.skipped:
            # the chain begins here; what was not measured is the way that should have been its beginning
            steps.append(_unmeasured(found.way, found.way.title, chain.skipped[0]))
        chain.add(found)
    assert shared.start is not None
    scores = _scores(_total(shared.start, student.classes))
    return Attribution(len(samples), shared.start.way.title, scores, tuple(steps))


@dataclass
class _Chain:
    """Where a chain is: its first way that ran, its last one, and those since then that could not be run."""

    start: _Result | None = None
    last: _Result | None = None
    skipped: list[_Result] = field(default_factory=list)

    def add(self, found: _Result) -> None:
        if found.reason:
            self.skipped.append(found)
        else:
            self.start, self.last, self.skipped = self.start or found, found, []


def _run(
    way: Way, samples: Sequence[Sample], classes: int, before: _Result | None, on_image: Callable[[], None]
) -> _Result:
    """Run a way; what the way before has counted of a class map that is the same is not counted again."""
    maps: dict[int, bytes] = {}
    counts: dict[int, NDArray[np.int64]] = {}
    if way.refused:
        return _Result(way, maps, counts, way.refused)
    try:
        with closing(way.run()) as class_maps:
            for index, class_map in class_maps:
                maps[index] = zlib.compress(class_map.tobytes(), _COMPRESSION)
                if before is not None and before.maps[index] == maps[index]:
                    counts[index] = before.counts[index]
                else:
                    counts[index] = _count(class_map, samples[index], classes)
                on_image()
    except RuntimeMissingError as error:
        return _Result(way, {}, {}, str(error))
    except BrdEdgeError as error:
        return _Result(way, {}, {}, str(error), failed=True)
    except Exception as error:
        # a vendor's library may raise anything; the other ways do not depend on it
        log.exception("%s failed", way.title)
        return _Result(way, {}, {}, f"{type(error).__name__}: {error}", failed=True)
    return _Result(way, maps, counts)


def _count(class_map: ByteArray, sample: Sample, classes: int) -> NDArray[np.int64]:
    metrics, label = _metrics(classes), read_label(sample)
    metrics.update(resize_class_map(class_map, label.shape[0], label.shape[1]), label)
    return metrics.per_image[0]


def _metrics(classes: int) -> SegmentationMetrics:
    return SegmentationMetrics(classes, connectivity=False, keep_images=True)


def _total(result: _Result, classes: int) -> SegmentationMetrics:
    """Return metrics that hold the counts of each image and nothing else, which is all that intervals need."""
    metrics = _metrics(classes)
    metrics.per_image = [result.counts[index] for index in sorted(result.counts)]
    metrics.images = len(metrics.per_image)
    return metrics


def _scores(metrics: SegmentationMetrics) -> dict[str, float | None]:
    found = {name: _known(item) for name, item in score_intervals(metrics).items()}
    return {name: item.value if (item := found[name]) is not None else None for name in _SCORES}


def _known(interval: Interval) -> Interval | None:
    """Return an interval, or nothing where it is not defined, as of boundaries in a split that has none."""
    return interval if interval.finite else None


def _step(before: _Result, after: _Result, skipped: Sequence[_Result], samples: Sequence[Sample], classes: int) -> Step:
    if after.reason:
        return _unmeasured(after.way, before.way.title, after)
    first, second = _total(before, classes), _total(after, classes)
    lost = score_losses(second, first)
    changes = [_change(before, after, index, sample) for index, sample in enumerate(samples)]
    worst = sorted((item for item in changes if item.changed > 0), key=lambda item: (-item.changed, item.right))
    return Step(
        name=after.way.step,
        title=" + ".join(result.way.differs for result in (*skipped, after)),
        engine=after.way.engine,
        before=before.way.title,
        after=after.way.title,
        scores=_scores(second),
        lost={name: _known(lost[name]) for name in _SCORES},
        agreement=1 - float(np.mean([item.changed for item in changes])),
        worst=tuple(worst[:_WORST]),
    )


def _unmeasured(step: Way, before: str, cause: _Result) -> Step:
    """Return the step of a way that was not measured: from the way `before`, which was, to the one that was not."""
    after, failed = cause.way.title, cause.failed
    return Step(step.step, step.differs, step.engine, before, after, {}, {}, None, (), cause.reason, failed=failed)


def _change(before: _Result, after: _Result, index: int, sample: Sample) -> ChangedImage:
    if before.maps[index] == after.maps[index]:
        return ChangedImage(sample.id, 0.0, 0.0)
    first, second = (np.frombuffer(zlib.decompress(result.maps[index]), np.uint8) for result in (before, after))
    right = _right(after.counts[index]) - _right(before.counts[index])
    return ChangedImage(sample.id, float(np.mean(first != second)), right)


def _right(counts: NDArray[np.int64]) -> float:
    """Return the share of an image's labelled pixels that are right."""
    hit, either = int(counts[0].sum()), int(counts[1].sum())
    # each labelled pixel lies in the mask of its label and in that of its prediction
    return 2 * hit / (hit + either) if hit + either else 0.0
