"""What `benchmark.json` says of models and engines: one class a JSON object, one docstring a field."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

__all__ = [
    "ComparedEntry",
    "Count",
    "EngineEntry",
    "Entry",
    "IntervalEntry",
    "LatencyEntry",
    "Losses",
    "ModelEntry",
    "NotNegative",
    "Scores",
    "Stopped",
    "StudentEntry",
    "TeacherEntry",
    "Unit",
]

NotNegative = Annotated[float, Field(ge=0)]
Unit = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0)]
Ends = tuple[float, float]
OpenEnds = tuple[float, float | None]
Stopped = Literal["interval", "samples", "budget"]

_SCORES = (
    *("miou", "boundary_iou", "pixel_accuracy", "boundary_f", "connectivity_error"),
    *("class_iou", "class_boundary_iou", "class_boundary_f", "class_connectivity_error", "intervals"),
)
_MEASURED = (*_SCORES, "latency_ms", "samples_ms", "engine_latency_ms", "argmax_agreement", "lost")


class Entry(BaseModel):
    """An object of the file: unknown keys and other types than JSON's own are refused."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
    )


class IntervalEntry(Entry):
    """An estimate with its interval."""

    value: float
    """The estimate."""
    low: float
    """Lower end of the interval."""
    high: float
    """Upper end of the interval."""
    confidence: Unit
    """Confidence of the interval."""


class ScoreIntervals(Entry):
    """95 % intervals of the scores, drawn over images: lower and upper end; a score that is null has none.

    Nor has the connectivity error of a single image, since it has no upper bound.
    """

    miou: Ends | None = None
    """Of mIoU."""
    boundary_iou: Ends | None = None
    """Of Boundary IoU."""
    pixel_accuracy: Ends | None = None
    """Of the share of right pixels."""
    boundary_f: Ends | None = None
    """Of the boundary F-score."""
    connectivity_error: Ends | None = None
    """Of the connectivity error."""
    argmax_agreement: Ends | None = None
    """Of the agreement with this run's student in PyTorch."""
    class_iou: tuple[Ends | None, ...] | None = None
    """Of the IoU of each class, by class id."""


class Losses(Entry):
    """What is lost against something else on the same images, as fractions; above 0 where a score fell."""

    miou: IntervalEntry | None = None
    """Of mIoU."""
    boundary_iou: IntervalEntry | None = None
    """Of Boundary IoU."""
    pixel_accuracy: IntervalEntry | None = None
    """Of the share of right pixels."""
    boundary_f: IntervalEntry | None = None
    """Of the boundary F-score."""
    connectivity_error: IntervalEntry | None = None
    """Of the connectivity error, which is an error: below 0 where it grew; null also of a single image, since it has
    no bound."""


class Scores(Entry):
    """Scores over the validation split: fractions, null where no pixel or region was there to count."""

    miou: Unit | None = None
    """Mean IoU over the classes that are present."""
    boundary_iou: Unit | None = None
    """Mean Boundary IoU over the classes that are present."""
    pixel_accuracy: Unit | None = None
    """Share of the pixels that are right."""
    boundary_f: Unit | None = None
    """Mean boundary F-score at 3 pixels."""
    connectivity_error: NotNegative | None = None
    """Mean share by which connected regions are not one to one with the label's; 0 is best."""
    class_iou: tuple[Unit | None, ...] | None = None
    """IoU by class id."""
    class_boundary_iou: tuple[Unit | None, ...] | None = None
    """Boundary IoU by class id."""
    class_boundary_f: tuple[Unit | None, ...] | None = None
    """Boundary F-score by class id."""
    class_connectivity_error: tuple[NotNegative | None, ...] | None = None
    """Connectivity error by class id."""
    intervals: ScoreIntervals | None = None
    """Intervals of the scores."""


class ModelEntry(Scores):
    """A model in PyTorch."""

    model_config = ConfigDict(json_schema_extra={"required": ["model", "params", "macs", *_SCORES]})

    model: str
    """Architecture and encoder."""
    params: Count
    """Number of parameters."""
    macs: Count
    """Multiply-accumulates for one frame."""

    @model_validator(mode="after")
    def _is_scored(self) -> ModelEntry:
        _require(self, _SCORES)
        return self


class TeacherEntry(ModelEntry):
    """The teacher in PyTorch."""

    argmax_agreement: Unit | None = None
    """Mean share of the pixels on which it agrees with this run's student."""
    lost: Losses | None = None
    """What it loses against this run's student: below 0 where it is the better one."""


class StudentEntry(ModelEntry):
    """The distilled student in PyTorch."""

    model_config = ConfigDict(json_schema_extra={"required": ["model", "params", "macs", "method", *_SCORES]})

    method: str
    """How it was distilled, such as `brd`; `none` is plain training."""


class ComparedEntry(Scores):
    """An earlier run's student (`benchmark.compare_run`), through its ONNX Runtime engine."""

    model_config = ConfigDict(json_schema_extra={"required": ["name", "argmax_agreement", "lost", *_SCORES]})

    name: str
    """Method and recipe of the earlier run."""
    argmax_agreement: Unit
    """Mean share of the pixels on which it agrees with this run's student."""
    lost: Losses
    """What it loses against this run's student."""

    @model_validator(mode="after")
    def _is_scored(self) -> ComparedEntry:
        _require(self, _SCORES)
        return self


class LatencyIntervals(Entry):
    """95 % intervals, lower and upper end; the upper end is null where the samples are too few to have one."""

    p50: OpenEnds
    """Of the median, in milliseconds."""
    p90: OpenEnds
    """Of the 90th percentile, in milliseconds."""
    p95: OpenEnds
    """Of the 95th percentile, in milliseconds."""
    p99: OpenEnds
    """Of the 99th percentile, in milliseconds."""
    mean: OpenEnds
    """Of the mean, in milliseconds."""
    throughput_hz: OpenEnds
    """Of the calls a second, one after the other."""


class LatencyEntry(Entry):
    """Milliseconds of one call."""

    p50: NotNegative
    """Median."""
    p90: NotNegative
    """90th percentile."""
    p95: NotNegative
    """95th percentile."""
    p99: NotNegative
    """99th percentile."""
    mean: NotNegative
    """Mean."""
    min: NotNegative
    """Smallest sample."""
    intervals: LatencyIntervals
    """Intervals of the percentiles, the mean and the throughput."""
    throughput_hz: NotNegative
    """Calls a second, one after the other."""
    n: Annotated[int, Field(ge=1)]
    """Number of samples."""
    frames: Annotated[int, Field(ge=1)]
    """Number of frames that took turns, call by call: the first ones of `timed_images`."""
    warmup_n: Count
    """Calls before the first sample."""
    warm: bool
    """Whether the warm-up ended because calls took alike."""
    drift: NotNegative
    """Median of the last third of the samples over that of the first third."""
    stopped: Stopped
    """Why sampling ended: the intervals were narrow enough, enough samples were taken, or the time was spent."""
    warnings: tuple[str, ...]
    """What may have disturbed the measurement."""


class ThroughputEntry(Entry):
    """Frames a second of streams side by side, each with an engine of its own."""

    rate_hz: NotNegative
    """Frames a second of all streams together."""
    interval: OpenEnds
    """95 % interval of the rate, over windows of time; the upper end is null where there are too few."""
    streams: Annotated[int, Field(ge=1)]
    """Streams at once."""
    frames: Count
    """Frames that were done while all streams ran."""
    duration_s: NotNegative
    """Seconds in which all streams ran."""
    warnings: tuple[str, ...]
    """What may have disturbed the measurement."""


class GatesEntry(Entry):
    """The limits that an engine was held to; one that is not there is none."""

    miou_drop_max: NotNegative | None = None
    """Points of mIoU that it may lose against PyTorch."""
    boundary_iou_drop_max: NotNegative | None = None
    """Points of Boundary IoU that it may lose against PyTorch."""
    latency_ms_p95_max: NotNegative | None = None
    """Milliseconds."""
    size_bytes_max: Count | None = None
    """Bytes of its files."""
    added_cost_max_percent: NotNegative | None = None
    """Percent by which it may be slower than the undistilled student's engine."""
    uncertain: Literal["broken", "held"]
    """What a gate is whose limit lies within the interval of what was measured."""


class QuantisationEntry(Entry):
    """An int8 graph that was tried."""

    kept: tuple[str, ...]
    """Groups of layers that it leaves in floating point."""
    lost: Losses | None
    """What it loses against the fp32 graph over the validation split; null where no gate asked."""
    missed: tuple[str, ...]
    """Gates of accuracy that it does not hold."""


class EngineEntry(Scores):
    """One engine of the recipe. What was not measured is null or not there."""

    model_config = ConfigDict(
        json_schema_extra={
            "if": {"properties": {"status": {"const": "measured"}}},
            "then": {"required": list(_MEASURED), "properties": {"latency_ms": {"type": "object"}}},
        }
    )

    name: str
    """Runtime, precision and target: the name of its directory under `engines/`."""
    runtime: str
    """What runs it: `onnxruntime`, `openvino` or `tensorrt`."""
    precision: str
    """Number format."""
    target: str
    """Device profile."""
    status: Literal["measured", "built", "skipped", "failed"]
    """`built`: it exists, but does not run here; `skipped`: its runtime is not here, or the device builds it."""
    reason: str
    """Why it was not measured; empty where it was."""
    size_bytes: Count | None
    """Size of its files without the sidecar."""
    build_s: NotNegative | None
    """Seconds that building took."""
    runtime_version: str | None
    """Version of the runtime that built it."""
    plain: bool
    """Whether the undistilled student's engine was built too."""
    graph: str | None
    """The file that it was built from, below the run directory."""
    lowered: str | None = None
    """The graph in its precision, from frame to class map, which `graph` is a part of where the output is sparse."""
    batch_max: Annotated[int, Field(ge=1, le=64)] = 1
    """How many frames it takes at once, at most; latency is that of one."""
    output: Literal["dense", "sparse"] = "dense"
    """Where the class map is computed: in the graph, or by the runtime from coarse logits."""
    output_ratio: IntervalEntry | None = None
    """Latency of sparse over that of dense, where both were timed to choose."""
    agreement: dict[str, Unit] = {}
    """Share of the pixels on which its graph says what the fp32 graph says, by what executed it to check it."""
    kept: tuple[str, ...] = ()
    """Groups of layers that int8 leaves in floating point."""
    attempts: tuple[QuantisationEntry, ...] = ()
    """Int8 graphs that were tried, the last of which was built."""
    gates: GatesEntry
    """Gates of the recipe for it."""
    gates_broken: tuple[str, ...]
    """Gates that it does not hold, as `gate: by how much`."""
    latency_ms: LatencyEntry | None = None
    """Latency from frame to class map."""
    engine_latency_ms: LatencyEntry | None = None
    """Latency of the engine alone: frame and class map lie where the runtime wants them."""
    throughput: ThroughputEntry | None = None
    """Saturated throughput, where the recipe asked for it."""
    samples_ms: tuple[NotNegative, ...] | None = None
    """Every sample of `latency_ms` in milliseconds, in the order taken."""
    argmax_agreement: Unit | None = None
    """Mean share of the pixels on which it agrees with the student in PyTorch."""
    lost: Losses | None = None
    """What it loses against the student in PyTorch."""

    @model_validator(mode="after")
    def _is_measured(self) -> EngineEntry:
        if self.status == "measured":
            _require(self, _MEASURED)
            if self.latency_ms is None:
                raise ValueError("latency_ms is null, but the status is measured")
        return self


def _require(entry: Entry, keys: Sequence[str]) -> None:
    missing = [key for key in keys if key not in entry.model_fields_set]
    if missing:
        raise ValueError(f"expected the keys {', '.join(missing)}, which may be null, got none")
