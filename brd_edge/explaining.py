"""The command `brd-edge explain`: where accuracy went between a run's trained student and each of its engines."""

from __future__ import annotations

import argparse
import json
import platform
import sys
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from brd_edge.data.dataset import Dataset
from brd_edge.data.index import load_dataset
from brd_edge.evaluate.attribution.losses import Attribution, Step
from brd_edge.evaluate.formats import agreement_percent, one_line, percent
from brd_edge.interrupt import listen_for_stop
from brd_edge.recipe import Recipe, load_recipe
from brd_edge.run import Artifact, Run, digest, open_run
from brd_edge.runtime.errors import InterruptedRunError, RecipeError, RunError
from brd_edge.runtime.files import sha256_file, write_json_atomic
from brd_edge.runtime.statistics import Interval
from brd_edge.runtime.targets import TARGETS
from brd_edge.stages.attribution import attribute_run
from brd_edge.stages.context import input_contract
from brd_edge.stages.reporting import sample_indices

__all__ = ["explain_losses"]

_NEEDED = ("prepare", "distill", "export", "build")
_GRAPH = "export/student.onnx"
_SCORES = {"miou": "mIoU", "boundary_iou": "Boundary IoU"}
_HEADERS = ("way from files to class maps", "mIoU\n%", "lost\npoints", "Boundary\nIoU %", "lost\npoints", "agrees\n%")
_WIDTH = 100
_SHOWN = 0.00005
"""The least share that two decimals of a percentage show."""


def explain_losses(arguments: Sequence[str]) -> int:
    """Measure each step from a run's trained student to its engines, print what it costs, and keep it in the run.

    Args:
        arguments: The command line after `brd-edge explain`.

    Returns:
        The exit code: 1 where a step failed, or an engine that was asked for could not be measured.

    Raises:
        BrdEdgeError: The run is not far enough or damaged, or the command line names an engine that is not there.
    """
    options = _parser().parse_args(arguments)
    if not (options.run / "recipe.yaml").is_file():
        raise RunError(f"{options.run}: expected a run directory with recipe.yaml in it, such as runs/quickstart")
    try:
        with open_run(options.run) as run, listen_for_stop():
            found = _measure(run, options.engine, options.images)
            path = run.path("attribution.json")
            write_json_atomic(path, found.to_json())
    except (InterruptedRunError, KeyboardInterrupt):
        print("brd-edge: interrupted", file=sys.stderr)
        return InterruptedRunError.exit_code
    print(json.dumps(found.to_json(), indent=2) if options.json else f"{_format(found)}\n\nas data: {path}")
    unmeasured = {step.engine for step in found.steps if step.reason and step.after == step.engine}
    return 1 if any(step.failed for step in found.steps) or unmeasured & set(options.engine or ()) else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="brd-edge explain",
        description="Say where accuracy went between a run's trained student and each of its engines.",
        epilog="exit codes: 0 done, 1 not far enough, a step failed or --engine cannot run, 2 wrong command line",
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="run directory, such as runs/quickstart")
    parser.add_argument("--images", type=_count, metavar="N", help="only N validation images, evenly spread (all)")
    parser.add_argument("--engine", action="append", metavar="NAME", help="only this engine; may be given again (all)")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    return parser


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1, got {text!r}")
    return int(text)


def _measure(run: Run, wanted: Sequence[str] | None, images: int | None) -> Attribution:
    recipe = _load_recipe(run)
    artifacts = {stage: _require(run, stage) for stage in _NEEDED}
    _require_one_run(run, recipe, artifacts)
    _check_graph(run, artifacts["export"])
    engines = _choose_engines(run, artifacts["build"], wanted)
    dataset: Dataset = load_dataset(run.path("data"))
    places = sample_indices(len(dataset.val), images or len(dataset.val))
    return attribute_run(
        recipe,
        run,
        [dataset.val[place] for place in places],
        classes=len(dataset.classes),
        engines=engines,
        title="explain",
    )


def _load_recipe(run: Run) -> Recipe:
    try:
        return load_recipe(run.path("recipe.yaml"), environment={})
    except RecipeError as error:
        # not the command line's fault: it is the run's own copy
        raise RunError(f"{error}\nexpected the recipe that this version wrote; run it again") from error


def _require(run: Run, stage: str) -> Artifact:
    found = run.artifact(stage)
    if found is None:
        raise RunError(f"{run.directory}: the stage {stage} has not been done; {_again(run, '--until build')}")
    return found


def _require_one_run(run: Run, recipe: Recipe, artifacts: Mapping[str, Artifact]) -> None:
    """Refuse a run directory whose stages were made from different data or for different frames."""
    for name, artifact in artifacts.items():
        for need, earlier in artifacts.items():
            made_from = artifact.inputs.get(f"stage {need}")
            if made_from is not None and made_from != earlier.content:
                raise RunError(
                    f"{run.directory}: the stage {need} was done again after {name}, with another outcome; "
                    f"{_again(run, '--until build')}"
                )
    wanted = input_contract(recipe).to_json()
    if digest(artifacts["export"].settings.get("contract")) != digest(wanted):
        raise RunError(
            f"{run.directory}: its recipe.yaml describes other frames (data.size, mean or std) than the student was "
            f"exported for; {_again(run, '--until build')}"
        )


def _check_graph(run: Run, export: Artifact) -> None:
    path = run.path(_GRAPH)
    if not path.is_file():
        raise RunError(f"{path}: missing; {_again(run, '--from export')}")
    if sha256_file(path) != export.outputs.get(_GRAPH):
        print(f"note: {path} was changed after the stage export wrote it", file=sys.stderr)


def _again(run: Run, options: str) -> str:
    return f"run  python -m brd_edge.pipeline RECIPE --run-dir {run.directory} {options}"


def _choose_engines(run: Run, build: Artifact, wanted: Sequence[str] | None) -> list[dict[str, Any]]:
    """Return the entries of the engines that were built for machines like this one, or of them the wanted ones."""
    entries = {str(entry["name"]): entry for entry in build.result["engines"]}
    there = [
        name
        for name, entry in entries.items()
        if entry["status"] == "built" and platform.machine() in TARGETS[entry["target"]].machines
    ]
    for name in wanted or []:
        if name in entries and name not in there:
            entry = entries[name]
            reason = f"its status is {entry['status']}" if entry["status"] != "built" else "it is for other machines"
            raise RecipeError(f"--engine {name}: {reason}; there are {', '.join(there) or 'none'}")
        if name not in there:
            raise RecipeError(
                f"--engine {name}: {run.directory} has no such engine; it has {', '.join(there) or 'none'}"
            )
    return [entries[name] for name in there if wanted is None or name in wanted]


def _format(found: Attribution) -> str:
    from tabulate import tabulate

    start = [found.title, _percent(found.scores["miou"]), "", _percent(found.scores["boundary_iou"]), "", ""]
    rows = [start, *(_row(step) for step in found.steps)]
    table = tabulate(
        rows, _HEADERS, tablefmt="simple", disable_numparse=True, colalign=["left", *["right"] * (len(_HEADERS) - 1)]
    )
    lines = [f"{found.images} images, 95 % intervals over images; each way differs from the one above it in one thing,"]
    lines += ["and every engine begins at the last way before the engines", "", table]
    notes = [_fill(f"{step.after}: not measured: {step.reason}") for step in found.steps if step.reason]
    notes += [
        _fill(f"{step.after}: against {step.before}, so the loss is of {step.title} together")
        for step in found.steps
        if not step.reason and " + " in step.title
    ]
    lines += ["", *notes] if notes else []
    changed = [step for step in found.steps if step.worst]
    if changed:
        lines += [
            "",
            "images that changed most: share of pixels that changed (change of the share that is right, points)",
        ]
        lines += [_fill(f"{step.after}: {', '.join(_images(step))}") for step in changed]
    return "\n".join([*lines, "", _fill(_in_words(found))])


def _row(step: Step) -> list[str]:
    cells = [step.after]
    for name in _SCORES:
        lost = step.lost.get(name)
        cells += [_percent(step.scores.get(name)), "-" if lost is None else _interval(lost)]
    return [*(one_line(cell) for cell in cells), agreement_percent(step.agreement, missing="-")]


def _images(step: Step) -> list[str]:
    return [f"{one_line(item.image)} {_share(item.changed)} % ({_signed(item.right)})" for item in step.worst]


def _signed(fraction: float) -> str:
    return _points(fraction) if abs(fraction) < _SHOWN or fraction < 0 else f"+{_points(fraction)}"


def _share(changed: float) -> str:
    # what did change must not look as if it had not
    return f"{100 * changed:.2f}" if changed >= _SHOWN else "<0.01"


def _percent(fraction: float | None) -> str:
    return percent(fraction, digits=2, missing="-")


def _interval(lost: Interval) -> str:
    return f"{_points(lost.value)} [{_points(lost.low)}, {_points(lost.high)}]"


def _points(fraction: float) -> str:
    # no minus before a zero
    return f"{round(100 * fraction, 2) + 0.0:.2f}"


def _fill(text: str) -> str:
    return textwrap.fill(one_line(text), _WIDTH, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)


def _in_words(found: Attribution) -> str:
    """Return one sentence on the largest loss."""
    measured = [step for step in found.steps if not step.reason]
    if not measured:
        return "No step could be measured."
    if all(step.agreement == 1 for step in measured):
        missing = len(found.steps) - len(measured)
        rest = f"; {missing} {'was' if missing == 1 else 'were'} not measured" if missing else ""
        return f"Nothing was lost: all ways that were measured give the same class maps{rest}."
    losses = [(lost, name, step) for step in measured for name, lost in step.lost.items() if lost is not None]
    if all(lost.value < _SHOWN for lost, _, _ in losses):
        return "Class maps differ, but no step lost 0.01 points of mIoU or Boundary IoU."
    certain = [item for item in losses if item[0].low > 0]
    lost, name, step = max(certain or losses, key=lambda item: item[0].value)
    what = f"{_points(lost.value)} points of {_SCORES[name]} [{_points(lost.low)}, {_points(lost.high)}]"
    where = step.title if step.engine is None else f"{step.title} of {step.engine}"
    if certain:
        return f"The largest loss is that of {where}: {what}."
    most = min(measured, key=lambda item: 1.0 if item.agreement is None else item.agreement)
    pixels = f"the way that changed most, to {most.after}, changed {_share(1 - (most.agreement or 0))} % of the pixels"
    return f"No step lost accuracy for certain; the largest loss, of {where}, is {what}; {pixels}."
