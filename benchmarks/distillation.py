"""Every distillation method under one recipe, seed by seed.

    python -m benchmarks.distillation pipelines/camvid_cpu.yaml --methods none,kd,brd --seeds 0,1,2

One teacher is trained; then every method trains the recipe's student once per seed, from the same
initial weights and in the same order of data as the other methods with that seed. A cell that is done
is not done again, and an interrupted one goes on from its checkpoint, so the command can be stopped
and repeated; `--finished` writes the table of what is done so far, and names what is not. A table may also
be made in parts, on several machines: `--reuse FILE` takes cells from an earlier result, where settings,
teacher, code and data are the same. `--hold-out PATTERN` trains and validates on other parts of the train
split; `--arms FILE` compares settings instead of methods (name to a list of KEY=VALUE).

The epoch of each training is chosen on the split that is scored, for all arms alike.

Written are a JSON file with every cell, and beside it a Markdown table.
"""

from __future__ import annotations

import argparse
import json
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from benchmarks.argument_types import count, override
from benchmarks.distillation_cells import (
    SCORES,
    Cell,
    EarlierResult,
    cells_of,
    check_cells,
    is_scored,
    kept_scores,
    read_result,
    score,
    score_teacher,
)
from benchmarks.distillation_runs import (
    TRAINING_LOG,
    PipelineRunError,
    PipelineRuns,
    pipeline_runs,
)
from benchmarks.distillation_table import format_table
from benchmarks.output import output_file
from benchmarks.statistics import paired_difference, summarise
from brd_edge.data.workers import open_processes
from brd_edge.distill.methods import METHODS
from brd_edge.environment import describe_environment
from brd_edge.recipe import load_recipe
from brd_edge.run import digest
from brd_edge.runtime.errors import BrdEdgeError, RecipeError
from brd_edge.runtime.files import write_json_atomic, write_text_atomic
from brd_edge.unique_yaml import parse_yaml

CONTROLS = ("none", "kd")


@dataclass(frozen=True)
class _Plan:
    """What is to be done; `shared` are the overrides of the teacher and every cell."""

    recipe: Path
    shared: tuple[str, ...]
    directory: Path
    arms: Mapping[str, Sequence[str]]
    cells: Sequence[Cell]
    earlier: Sequence[EarlierResult]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.only and options.arms is None:
        parser.error("--only chooses among --arms, which is not given; --methods names methods")
    if options.methods and options.arms is not None:
        parser.error("--methods: --arms compares settings instead of methods; leave one out (--only chooses --arms)")
    try:
        plan = _planned(options)
        result = _carried_out(plan, options)
    except BrdEdgeError as error:
        print(f"benchmarks.distillation: error: {error}", file=sys.stderr)
        return error.exit_code
    except PipelineRunError as error:
        print(f"benchmarks.distillation: {error}", file=sys.stderr)
        return error.code
    except KeyboardInterrupt:
        print("benchmarks.distillation: interrupted; run it again to go on", file=sys.stderr)
        return 130
    compared = "distillation" if options.arms is None else options.arms.stem
    output = options.output or Path("benchmarks") / "results" / f"{compared}_{plan.directory.name}.json"
    output.parent.mkdir(parents=True, exist_ok=True)
    write_json_atomic(output, result)
    table = format_table(result)
    write_text_atomic(output.with_suffix(".md"), table)
    print(f"\n{table}\nwritten: {output} and {output.with_suffix('.md')}")
    return 0


def _names(text: str) -> list[str]:
    found = [part.strip() for part in text.split(",") if part.strip()]
    if not found:
        raise argparse.ArgumentTypeError(f"expected one name or more, separated by commas, came {text!r}")
    return _once(found)


def _seeds(text: str) -> list[int]:
    found = [part.strip() for part in text.split(",") if part.strip()]
    if not found or not all(part.isdecimal() for part in found):
        raise argparse.ArgumentTypeError(f"expected whole numbers such as 0,1,2, came {text!r}")
    # 0 and 00 are one seed
    return [int(part) for part in _once([str(int(part)) for part in found])]


def _once(found: list[str]) -> list[str]:
    if twice := sorted({part for part in found if found.count(part) > 1}):
        raise argparse.ArgumentTypeError(f"every one stands once, but twice stands {', '.join(twice)}")
    return found


def _parser() -> argparse.ArgumentParser:
    summary, _example, *details = (__doc__ or "").split("\n\n")
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.distillation",
        description=summary,
        epilog="\n\n".join(details),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--methods", type=_names, help=f"of {','.join(METHODS)} (all)")
    parser.add_argument("--arms", type=Path, metavar="FILE", help="YAML of settings to compare instead of methods")
    parser.add_argument("--only", type=_names, metavar="NAMES", help="only these of --arms")
    parser.add_argument("--seeds", type=_seeds, default=[0, 1, 2], help="comma-separated (0,1,2)")
    parser.add_argument("--hold-out", metavar="PATTERN", help="validate on the train images of these names")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="override the recipe, for the teacher and every cell",
    )
    parser.add_argument("--jobs", type=count, default=1, help="cells trained at the same time (1)")
    parser.add_argument("--finished", action="store_true", help="train nothing: the table of the cells that are done")
    parser.add_argument(
        "--reuse",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="take cells from this earlier result (JSON) where nothing that decides them differs",
    )
    parser.add_argument("--directory", type=Path, help="where the runs go (runs/distillation/<name in the recipe>)")
    parser.add_argument(
        "--output",
        type=output_file,
        help="JSON (benchmarks/results/distillation_<directory>.json; with --arms, its name for distillation)",
    )
    return parser


def _planned(options: argparse.Namespace) -> _Plan:
    """Return what the command line asks for, once all of it is known to be right: a teacher takes its time.

    Raises:
        RecipeError: Something is wrong.
        RunError: What a cell is trained from is not there.
    """
    arms = _arms(options)
    held = [] if options.hold_out is None else [override("data.hold_out", options.hold_out)]
    shared = (*options.set, *held)
    recipe = load_recipe(options.recipe, overrides=shared)
    where = options.directory or Path("runs") / "distillation" / (
        recipe.name + ("" if options.hold_out is None else "-" + digest(options.hold_out)[:6])
    )
    model = (where / "teacher" / "teacher" / "model").resolve()
    teacher = [override("teacher.checkpoint", str(model)), "teacher.train=null"]
    cells = [
        Cell(arm, seed, where / f"{arm}-{seed}", (*shared, *teacher, f"seed={seed}", *settings))
        for seed in options.seeds
        for arm, settings in arms.items()
    ]
    check_cells(options.recipe, cells, source=options.arms, trains=not options.finished)
    return _Plan(options.recipe, shared, where, arms, cells, [read_result(file) for file in options.reuse])


def _arms(options: argparse.Namespace) -> dict[str, list[str]]:
    if options.arms is None:
        methods = options.methods or list(METHODS)
        unknown = [name for name in methods if name not in METHODS]
        if unknown:
            raise RecipeError(f"--methods: unknown {', '.join(unknown)}; there are {', '.join(METHODS)}")
        return {name: [f"distill.method={name}"] for name in methods}
    arms = _read_arms(options.arms)
    unknown = [name for name in options.only or [] if name not in arms]
    if unknown:
        raise RecipeError(f"--only: unknown {', '.join(unknown)}; {options.arms} has {', '.join(arms)}")
    return {name: settings for name, settings in arms.items() if not options.only or name in options.only}


def _read_arms(file: Path) -> dict[str, list[str]]:
    expected = f"{file}: expected a mapping of names to lists of KEY=VALUE, such as `kd: [distill.method=kd]`"
    try:
        found = parse_yaml(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise RecipeError(f"{expected} ({error})") from None
    if not isinstance(found, dict) or not found:
        raise RecipeError(f"{expected}, came {found!r}")
    for name, settings in found.items():
        if not isinstance(settings, list) or not all(isinstance(setting, str) for setting in settings):
            # quoted, as a value may be a list itself
            right = json.dumps([settings] if isinstance(settings, str) else ["distill.method=kd"], ensure_ascii=False)
            raise RecipeError(
                f"{file}: {name}: expected a list of KEY=VALUE, such as `{name}: {right}` "
                f"(`{name}: []` changes nothing), came {settings!r}"
            )
    return {str(name): settings for name, settings in found.items()}


def _carried_out(plan: _Plan, options: argparse.Namespace) -> dict[str, Any]:
    """Train and score what is not done yet, and return the result."""
    directory = plan.directory / "teacher"
    if not options.finished:
        with pipeline_runs() as runs:
            runs.run(plan.recipe, plan.shared, directory, "teacher", name="the teacher")
    reused = _reused(plan)
    cells = _finished(plan.recipe, plan.cells, reused) if options.finished else plan.cells
    with pipeline_runs() as runs:
        _train_cells(plan.recipe, [cell for cell in cells if cell not in reused], options.jobs, runs)
    teacher = score_teacher(plan.recipe, plan.shared, directory)
    done = {arm: settings for arm, settings in plan.arms.items() if any(cell.arm == arm for cell in cells)}
    result = _result(options, done, [reused.get(cell) or kept_scores(cell) for cell in cells], teacher)
    return {**result, "not_done": [{"arm": cell.arm, "seed": cell.seed} for cell in plan.cells if cell not in cells]}


def _reused(plan: _Plan) -> dict[Cell, dict[str, Any]]:
    found: dict[Cell, dict[str, Any]] = {}
    for earlier in plan.earlier:
        held, why = cells_of(earlier, plan.recipe, plan.cells, plan.directory / "teacher")
        taken = f"{len(held)} of {len(plan.cells)} cells are taken from it"
        _say(f"{earlier.file}: {taken}" + ("" if why is None else f" ({why})"))
        found = held | found
    return found


def _finished(recipe: Path, cells: Sequence[Cell], reused: Mapping[Cell, Any]) -> list[Cell]:
    """Return the cells that are done, here or in an earlier result.

    Raises:
        RecipeError: There is none.
    """
    found = [cell for cell in cells if cell in reused or is_scored(recipe, cell)]
    if not found:
        raise RecipeError(
            f"--finished: none of the {len(cells)} cells is done with these settings and files; leave it out first "
            "(where only the times of files changed, nothing is trained again)"
        )
    return found


def _train_cells(recipe: Path, cells: Sequence[Cell], jobs: int, runs: PipelineRuns) -> None:
    start, trained = time.monotonic(), 0
    lock, failed = threading.Lock(), threading.Event()

    def train(cell: Cell) -> None:
        nonlocal trained
        if failed.is_set() or is_scored(recipe, cell):
            return
        steps = "" if jobs == 1 else f" (steps: {cell.directory / TRAINING_LOG})"
        _say(f"{cell.name}: training{steps}")
        try:
            runs.run(recipe, cell.overrides, cell.directory, "distill", name=cell.name, jobs=jobs)
        except BaseException:
            failed.set()
            raise
        try:
            scores = scorers.submit(score, recipe, cell).result()
        except BrokenProcessPool:
            if runs.stopped:  # the signal ended the worker, too
                raise KeyboardInterrupt from None
            raise
        with lock:
            trained += 1
            left = sum(not other.score_file.exists() for other in cells)
            each_s = (time.monotonic() - start) / trained
        _say(
            f"{cell.name}: mIoU {100 * scores['miou']:.1f}; "
            f"{len(cells) - left} of {len(cells)} cells done, about {left * each_s / 60:.0f} min left"
        )

    # threads that score side by side would wait for each other; the workers start when the first cell is scored
    with open_processes(jobs) as scorers, ThreadPoolExecutor(jobs) as executor:
        for future in [executor.submit(train, cell) for cell in cells]:
            future.result()


def _result(
    options: argparse.Namespace,
    arms: Mapping[str, Sequence[str]],
    scores: Sequence[Mapping[str, Any]],
    teacher: Mapping[str, Any],
) -> dict[str, Any]:
    table = {
        arm: {
            name: {entry["seed"]: entry[name] for entry in scores if entry["arm"] == arm and entry[name] is not None}
            for name in SCORES
        }
        for arm in arms
    }
    controls = [name for name in CONTROLS if name in arms]
    summary = {
        arm: {
            name: {
                **summarise(list(values.values())),
                "against": {
                    control: paired_difference(values, table[control][name]) for control in controls if control != arm
                },
            }
            for name, values in rows.items()
        }
        for arm, rows in table.items()
    }
    return {
        "benchmark": "distillation",
        "recipe": str(options.recipe),
        "hold_out": options.hold_out,
        "overrides": options.set,
        "arms": {arm: list(settings) for arm, settings in arms.items()},
        "seeds": [seed for seed in options.seeds if any(entry["seed"] == seed for entry in scores)],
        "teacher": dict(teacher),
        "summary": summary,
        "cells": list(scores),
        "environment": describe_environment(),
    }


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
