"""The graphs that engines are built from, each checked in two runtimes; part of the stage `build`.

An int8 graph that misses a gate of accuracy gets groups of layers back in floating point, the one that loses most
first, until the gates hold or no more may be given back.
"""

from __future__ import annotations

import platform
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from brd_edge.data.dataset import read_frame
from brd_edge.deploy.agreement import THRESHOLDS, check_artefact, stand_in
from brd_edge.deploy.lowering import is_exact, is_quantised, lower_graph
from brd_edge.evaluate.gates import Limits, broken_accuracy_gates
from brd_edge.progress import progress_bar
from brd_edge.recipe import EngineSection
from brd_edge.recipe_gates import limits_of
from brd_edge.runtime.errors import EngineError, RunError, RuntimeMissingError
from brd_edge.runtime.targets import TARGETS
from brd_edge.stages.context import Context, input_contract
from brd_edge.stages.reporting import sample_indices
from brd_edge.stages.training import load_run_dataset

if TYPE_CHECKING:
    from brd_edge.deploy.calibration import Ranges
    from brd_edge.evaluate.accuracy import Predictor
    from brd_edge.runtime.metrics import SegmentationMetrics

__all__ = ["Bench", "Lowered", "lowered_graphs"]

# NNCF wants to see images, but what it finds in an untrained student is replaced by the student's
_PLAIN_IMAGES = 1
# two executions of each, node by node, take their time
_CHECKED_IMAGES = 8
# where nothing was rounded, fewer do
_EXPORTED_IMAGES = 4
# two ways of executing a graph round differently, and no more than that
_SPREAD_MAX = 0.02


@dataclass(frozen=True)
class Lowered:
    """The graphs of an engine.

    Attributes:
        student: What the engine is built from.
        plain: The same for the student that was never distilled.
        agreement: Share of pixels as in fp32, by the way in which the graph was executed to check it.
        kept: Groups of layers that int8 leaves in floating point.
        attempts: What was tried: `kept`, `lost` in points by score, and `missed`, as JSON types.
    """

    student: Path
    plain: Path
    agreement: Mapping[str, float] = field(default_factory=dict)
    kept: tuple[str, ...] = ()
    attempts: tuple[dict[str, Any], ...] = ()

    def to_json(self, root: Path) -> dict[str, Any]:
        """Return what the engine's entry says of it; `graph` and `lowered` are relative to `root`."""
        graph = self.student.relative_to(root).as_posix()
        return {
            # what the engine is built from may be a part of the graph that goes from frame to class map
            "graph": graph,
            "lowered": graph,
            "agreement": dict(self.agreement),
            "kept": list(self.kept),
            "attempts": list(self.attempts),
        }


@dataclass(frozen=True)
class Bench:
    """What the engines of one recipe share while their graphs are made; everything is made when it is first needed.

    Attributes:
        context: Where the stage works.
        images: The calibration frames, once they were read.
        calibrated: The ranges of the student's tensors, under `student`.
        reference: What the fp32 graph scores, under `fp32`.
        sensitive: The groups of layers by their loss, for each form of int8 and range of its weights.
        lowered: Graphs of lower precision, by all that decides what is in them.
        made: Graphs that several engines may share.
    """

    context: Context
    images: list[NDArray[np.uint8]] = field(default_factory=list)
    calibrated: dict[str, Ranges] = field(default_factory=dict)
    reference: dict[str, SegmentationMetrics] = field(default_factory=dict)
    sensitive: dict[tuple[str, bool], list[str]] = field(default_factory=dict)
    lowered: dict[tuple[object, ...], Path] = field(default_factory=dict)
    made: dict[tuple[object, ...], Lowered] = field(default_factory=dict)

    def frames(self) -> list[NDArray[np.uint8]]:
        """Train images as the engines get them; none of them is in the validation split."""
        if not self.images:
            settings, contract = self.context.recipe.int8, input_contract(self.context.recipe)
            train = load_run_dataset(self.context).train
            chosen = [sample for sample in train if fnmatchcase(sample.id, settings.choice)]
            if not chosen:
                raise RunError(
                    f"int8.choice: no train image matches {settings.choice!r}; there are {len(train)}, "
                    f"such as {train[0].id!r}"
                )
            indices = sample_indices(len(chosen), settings.images)
            with progress_bar(len(indices), "calibration", unit="image") as bar:
                for index in indices:
                    self.images.append(read_frame(chosen[index], contract))
                    bar.update(1)
        return self.images

    def ranges(self) -> Ranges:
        """Range of every tensor of `student.onnx` on those images; `plain.onnx` is quantised with the same ones."""
        from brd_edge.deploy.calibration import calibrate

        if "student" not in self.calibrated:
            self.context.say("build: calibrating student.onnx")
            graph, method = self.context.run.path("export", "student.onnx"), self.context.recipe.int8.method
            self.calibrated["student"] = calibrate(graph, self.frames(), method=method)
        return self.calibrated["student"]

    def losses(self, predict: Predictor, title: str) -> dict[str, Any]:
        """What a predictor loses against the fp32 graph over the validation split, as in `benchmark.json`."""
        from brd_edge.evaluate.intervals import score_losses

        if "fp32" not in self.reference:
            exported = stand_in(self.context.run.path("export", "student.onnx"), runtime="onnxruntime")
            self.reference["fp32"] = _score(self.context, exported, "fp32")
        found = score_losses(_score(self.context, predict, title), self.reference["fp32"])
        return {name: item.to_json() for name, item in found.items() if item.finite}


def lowered_graphs(bench: Bench, engine: EngineSection) -> Lowered:
    """Make the graphs of an engine, or return those of an engine that has the same.

    Raises:
        EngineError: There is no such graph, or it says something else than the fp32 graph.
        RuntimeMissingError: What makes or checks it is not installed.
    """
    context = bench.context
    # whatever is made of the exported graph is compared with it
    exported = _exported(bench)
    if is_exact(engine.runtime, engine.precision):
        return exported
    kind = {"runtime": engine.runtime, "precision": engine.precision, "target": engine.target}
    limits = Limits(**limits_of(context.recipe.gates, **kind))
    key = (engine.runtime, engine.precision, _reduce_range(bench, engine), _is_here(engine), limits)
    if key not in bench.made:
        directory = context.run.path("graphs", "-".join(kind.values()))
        if is_quantised(engine.precision):
            bench.made[key] = _quantised(bench, engine, directory, limits)
        else:
            bench.made[key] = _halved(bench, engine, directory)
    return bench.made[key]


def _exported(bench: Bench) -> Lowered:
    """Return the exported graphs; the student's is compared in two runtimes, once for all engines that have it."""
    if ("exported",) not in bench.made:
        context = bench.context
        student, plain = (context.run.path("export", f"{name}.onnx") for name in ("student", "plain"))
        train, contract = load_run_dataset(context).train, input_contract(context.recipe)
        frames = [read_frame(train[index], contract) for index in sample_indices(len(train), _EXPORTED_IMAGES)]
        agreement: dict[str, float] = {}
        try:
            agreement = check_artefact(student, student, frames, runtime="onnxruntime", here=False, threshold=0.0)
        except RuntimeMissingError as error:
            # the engine itself may not need it
            context.say(f"build: student.onnx was not checked in two runtimes: {error}")
        if agreement and min(agreement.values()) < THRESHOLDS["fp32"]:
            raise EngineError(
                f"{student}: {_figures(agreement)} of the pixels are as in ONNX Runtime, at least "
                f"{100 * THRESHOLDS['fp32']:.1f} % are expected: the runtimes read the graph differently; "
                "try another export.opset"
            )
        bench.made["exported",] = Lowered(student, plain, agreement)
    return bench.made["exported",]


def _halved(bench: Bench, engine: EngineSection, directory: Path) -> Lowered:
    student, plain = (_lower(bench, engine, directory, name, ()) for name in ("student", "plain"))
    agreement = _agreement(bench, engine, student)
    problems = _disagreement(engine, agreement)
    if problems:
        raise EngineError(f"{student}: {problems[0]}; use another precision for this model")
    return Lowered(student, plain, agreement)


def _quantised(bench: Bench, engine: EngineSection, directory: Path, limits: Limits) -> Lowered:
    """Quantise; give groups back until the gates hold, the budget is spent, or nothing is left to quantise."""
    from brd_edge.deploy.quantise import NothingToQuantiseError

    settings = bench.context.recipe.int8
    kept, attempts = settings.keep, list[dict[str, Any]]()
    for place in _places(directory, settings.keep_max + 1):
        bench.context.say(f"build: {directory.name}" + (f", in floating point: {', '.join(kept)}" if attempts else ""))
        try:
            student = _lower(bench, engine, place, "student", kept)
        except NothingToQuantiseError:
            if not attempts:
                raise
            break
        agreement = _agreement(bench, engine, student)
        lost, missed = _missed(bench, engine, student, limits)
        attempts.append({"kept": list(kept), "lost": lost, "missed": [*missed, *_disagreement(engine, agreement)]})
        found = Lowered(student, student, agreement, kept, tuple(attempts))
        # a gate may stay open to the last: that the engine misses it is what the benchmark says
        sensitive = [name for name in _by_loss(bench, engine) if name not in kept] if attempts[-1]["missed"] else []
        if not sensitive:
            break
        kept = (*kept, sensitive[0])
    problems = _disagreement(engine, found.agreement)
    if problems:
        raise EngineError(f"{found.student}: {problems[0]}; calibrate on more images, or use another precision")
    plain = _lower(bench, engine, found.student.parent, "plain", found.kept, like=found.student)
    return replace(found, plain=plain)


def _places(directory: Path, count: int) -> Iterator[Path]:
    """Yield a directory for each attempt, with nothing of an earlier build beside it."""
    shutil.rmtree(directory, ignore_errors=True)
    for number in range(count):
        yield directory / str(number)


def _lower(
    bench: Bench, engine: EngineSection, directory: Path, name: str, kept: Iterable[str], *, like: Path | None = None
) -> Path:
    quantised = is_quantised(engine.precision)
    # OpenVINO is told at run time what the rest is computed in: its int8 engines begin with the same graph
    precision = "int8" if quantised and engine.runtime == "openvino" else engine.precision
    exclude = tuple(kept) if quantised else ()
    key = (engine.runtime, precision, _reduce_range(bench, engine), name, exclude)
    # an engine that failed may have been tried in the same place since
    if key not in bench.lowered or not bench.lowered[key].is_file():
        frames: list[NDArray[np.uint8]] = []
        if quantised:
            frames = bench.frames() if name == "student" else bench.frames()[:_PLAIN_IMAGES]
        bench.lowered[key] = lower_graph(
            bench.context.run.path("export", f"{name}.onnx"),
            directory,
            runtime=engine.runtime,
            precision=engine.precision,
            frames=frames,
            ranges=bench.ranges,
            exclude=exclude,
            reduce_range=_reduce_range(bench, engine),
            like=like,
        )
    return bench.lowered[key]


def _reduce_range(bench: Bench, engine: EngineSection) -> bool:
    asked, target = bench.context.recipe.int8.reduce_range, TARGETS[engine.target]
    if asked != "auto":
        return asked
    # of x86 processors those without VNNI saturate, and to which ones an engine goes is not known here
    return engine.runtime != "tensorrt" and target.device == "CPU" and "x86_64" in target.machines


def _is_here(engine: EngineSection) -> bool:
    target = TARGETS[engine.target]
    return target.device == "CPU" and platform.machine() in target.machines


def _agreement(bench: Bench, engine: EngineSection, graph: Path) -> dict[str, float]:
    """Execute a graph in two ways and return on how many pixels each says what fp32 says."""
    return check_artefact(
        graph,
        bench.context.run.path("export", "student.onnx"),
        bench.frames()[:_CHECKED_IMAGES],
        runtime=engine.runtime,
        precision=engine.precision,
        here=_is_here(engine),
        threshold=0.0,
    )


def _disagreement(engine: EngineSection, agreement: Mapping[str, float]) -> list[str]:
    low, high = min(agreement.values()), max(agreement.values())
    form, _, rest = engine.precision.partition("-")
    threshold = THRESHOLDS[form]
    # OpenVINO in floating point does not round what is not quantised
    spread_max = _SPREAD_MAX + (1 - THRESHOLDS[rest] if rest and engine.runtime == "openvino" else 0)
    figures = _figures(agreement)
    if low < threshold:
        return [f"agrees with fp32 on {figures} of the pixels, at least {100 * threshold:.1f} % are expected"]
    if high - low > spread_max:
        return [f"agrees with fp32 on {figures} of the pixels: one of the two computes something else"]
    return []


def _figures(agreement: Mapping[str, float]) -> str:
    return ", ".join(f"{100 * share:.2f} % by {way}" for way, share in agreement.items())


def _missed(
    bench: Bench, engine: EngineSection, graph: Path, limits: Limits
) -> tuple[dict[str, Any] | None, list[str]]:
    """Return what a graph loses over the validation split and which gates that breaks; nothing without such gates."""
    if limits.miou_drop_max is None and limits.boundary_iou_drop_max is None:
        return None, []
    predict = stand_in(graph, runtime=engine.runtime, precision=engine.precision, here=_is_here(engine))
    losses = bench.losses(predict, f"{engine.runtime} {engine.precision}")
    return losses, broken_accuracy_gates(limits, losses)


def _by_loss(bench: Bench, engine: EngineSection) -> list[str]:
    """Return the groups of layers, the one that loses most in int8 first."""
    from brd_edge.deploy.sensitivity import sensitivity

    form: Literal["onnxruntime", "tensorrt"] = "tensorrt" if engine.runtime == "tensorrt" else "onnxruntime"
    reduce_range = _reduce_range(bench, engine)
    if (form, reduce_range) not in bench.sensitive:
        bench.context.say("build: which groups of layers lose most in int8")
        found = sensitivity(
            bench.context.run.path("export", "student.onnx"),
            bench.frames()[:_CHECKED_IMAGES],
            bench.ranges(),
            runtime=form,
            reduce_range=reduce_range,
        )
        bench.sensitive[form, reduce_range] = [loss.group for loss in found]
    return bench.sensitive[form, reduce_range]


def _score(context: Context, predict: Predictor, title: str) -> SegmentationMetrics:
    from brd_edge.evaluate.accuracy import evaluate_predictor
    from brd_edge.runtime.metrics import SegmentationMetrics

    dataset = load_run_dataset(context)
    with progress_bar(len(dataset.val), f"build {title}", unit="image") as bar:
        return evaluate_predictor(
            predict,
            dataset.val,
            contract=input_contract(context.recipe),
            metrics=SegmentationMetrics(len(dataset.classes), keep_images=True),
            on_class_map=lambda _index, _class_map: bar.update(1),
        )
