"""What `benchmark.json` says of the zero-cost proof and of where accuracy was lost."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from brd_edge.evaluate.benchmark.entries import Count, Entry, IntervalEntry, Losses, NotNegative, Stopped, Unit

__all__ = ["AttributionEntry", "EngineCostEntry", "ZeroCostEntry"]

Verdict = Literal["faster", "slower", "equivalent", "undecided"]


class ComparisonEntry(Entry):
    """B against A, in ratios of latencies."""

    verdict: Verdict
    """`equivalent` within the margin, else `slower` or `faster` where the 95 % interval does not hold 1."""
    ratio: IntervalEntry
    """Median ratio B / A with its 95 % interval."""
    equivalence: IntervalEntry
    """The same with the 90 % interval of the two one-sided tests."""
    margin: NotNegative
    """Largest difference that counts as none, as a share."""
    pairs: Count
    """Number of ratios."""


class SessionEntry(Entry):
    """A session in which two engines took turns."""

    comparison: ComparisonEntry
    """The distilled student's engine against the undistilled one's."""
    control: ComparisonEntry
    """The undistilled one's against itself."""
    stopped: Stopped
    """Why the session ended."""
    warnings: tuple[str, ...]
    """What may have disturbed the session."""


class EngineCostEntry(Entry):
    """What distillation added to the cost of an engine. What could not be compared is null or not there."""

    name: str
    """The engine's name."""
    held: bool | None
    """Whether nothing was added; null where a part is undecided or was not compared."""
    reason: str
    """What was not compared, and why."""
    size_bytes: tuple[Count, Count] | None = None
    """Size of the distilled student's engine and of the undistilled one's."""
    weight_bytes: tuple[Count, Count] | None = None
    """Size of the constants of both, equal to the byte where the proof holds."""
    layers: tuple[Count, Count] | None = None
    """Layers that the runtime executes, of both."""
    differences: tuple[str, ...] = ()
    """What differs in size, weights, quantisers or layers."""
    latency: SessionEntry | None = None
    """The session in which both were timed."""
    latency_of: Literal["frame to class map", "engine alone"] | None = None
    """What was timed: engines whose class map is made from coarse logits are timed without that."""


class ZeroCostEntry(Entry):
    """The proof that distillation added nothing to the cost of inference."""

    equal: bool
    """Whether the exported graph equals the undistilled student's, node for node."""
    nodes: Count
    """Nodes of the graph."""
    params_equal: bool
    """Whether the numbers of parameters are equal."""
    macs_equal: bool
    """Whether the numbers of multiply-accumulates are equal."""
    differences: tuple[str, ...]
    """What differs in the graphs."""
    margin_percent: NotNegative
    """Largest difference of latency that counts as none, in percent."""
    engines: tuple[EngineCostEntry, ...]
    """The same on built engines."""


class WorstImage(Entry):
    """An image that a step changed much."""

    image: str
    """Id of the sample."""
    changed: Unit
    """Share of its pixels whose class the step changed."""
    right: Annotated[float, Field(ge=-1, le=1)]
    """By how much the share of its right pixels changed; below 0 where it fell."""


class AttributionStart(Entry):
    """What the first step starts from."""

    title: str
    """What it is."""
    miou: Unit | None
    """Its mIoU."""
    boundary_iou: Unit | None
    """Its Boundary IoU."""


class AttributionStep(Entry):
    """One step on the way from the student in PyTorch to an engine, and what it lost."""

    name: str
    """`loader`, `preprocessing`, `onnx` or `class_map`; of an engine `precision`, `runtime` or `class_map`, or `engine`
    where precision and runtime could not be told apart."""
    title: str
    """What is swapped, in words; several things where what lies between them could not be measured."""
    engine: str | None
    """The engine whose chain it belongs to, which begins where the shared one ends; null where it belongs to all."""
    before: Annotated[str, Field(alias="from")]
    """What it is compared with."""
    after: Annotated[str, Field(alias="to")]
    """What it leads to; of an engine's last step, the engine's name; of one that was not measured, what could not be
    run."""
    miou: Unit | None
    """mIoU after it; null where it could not be taken."""
    boundary_iou: Unit | None
    """Boundary IoU after it."""
    lost: Losses | None
    """What it lost, on the same images."""
    agreement: Unit | None
    """Mean share of the pixels that it left as they were."""
    worst: tuple[WorstImage, ...]
    """The images that it changed most."""
    reason: str
    """Why it could not be taken; empty where it was."""


class AttributionEntry(Entry):
    """Which step lost how much accuracy."""

    images: Count
    """Images that were looked at."""
    start: AttributionStart
    """What the first step starts from."""
    steps: tuple[AttributionStep, ...]
    """The steps, in order."""
