"""Running a recipe: its stages in order, each only when something changed, then the table."""

from __future__ import annotations

import argparse
import json
import logging
import os
import shlex
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from brd_edge import __version__
from brd_edge.environment import describe_environment
from brd_edge.following import follow, is_follower, is_follower_lost, leading
from brd_edge.interrupt import Stop, listen_for_stop
from brd_edge.models.encoders import encoder_problem
from brd_edge.planning import (
    format_plan,
    missing_for,
    next_artifact,
    plan,
    reason_to_run,
    require_another_run,
    require_same_recipe,
)
from brd_edge.recipe import Recipe, load_recipe
from brd_edge.recipe_yaml import apply_override, read_yaml, used_variables
from brd_edge.run import Artifact, Run, code_digest, open_run
from brd_edge.runtime.errors import (
    BrdEdgeError,
    DataError,
    EngineError,
    GateError,
    InterruptedRunError,
    RecipeError,
    RunError,
    explain_error,
)
from brd_edge.runtime.files import write_json_atomic, write_text_atomic
from brd_edge.runtime.signature import SIGNATURE_NAME
from brd_edge.stages import STAGES
from brd_edge.stages.context import Context, Stage
from brd_edge.tracking import Tracker, describe_tracking, tracked

__all__ = ["execute"]

log = logging.getLogger("brd_edge")

_PUBLISHED = {
    "benchmark": ("benchmark.json", "images.npz", "latency.npz", "report.html", "attribution.json"),
    "bundle": ("bundle", "bundle.tar.gz"),
    "ship": ("ship.json",),
}

# labels as they were made before
_JOURNALS = {"prepare": ("data", "journal.jsonl"), "distill": ("unlabelled", "journal.jsonl")}

_EPILOG = """\
exit codes: 0 done, 1 a stage or an engine failed or something is missing, 2 the recipe or the command line is wrong,
3 a gate was not held, 130 interrupted (run it again, without --from and --force, to go on)
"""


def execute(given: Sequence[str]) -> int:
    """Run the command line `given` and return its exit code."""
    options = _parser().parse_args(given)
    try:
        recipe = load_recipe(options.recipe, overrides=options.set)
        _require_known_encoders(options.recipe, recipe)
        command = _command(options, given)
        stages = _selected(options.first, options.until)
        directory = options.run_dir or Path("runs") / recipe.name
        if options.plan:
            run = Run(directory.resolve())
            steps = plan(run, recipe, stages, first=options.first, force=options.force)
            print(format_plan(run, steps, recipe, stages))
            print(describe_tracking(run, recipe), end="")
            return 0
        if is_follower():
            with listen_for_stop() as stop:
                return follow(recipe, directory, stop)
        with open_run(directory) as run, listen_for_stop() as stop, _log_file(run), leading(recipe):
            log.info("%s", command)
            return _run(run, recipe, stages, stop, options, command)
    except (Exception, InterruptedRunError, KeyboardInterrupt) as error:
        return _explain(error)


def _explain(error: BaseException) -> int:
    """Tell the user what went wrong, without a traceback, and return the exit code."""
    if (told := explain_error(error, extra="train")) is not None:
        code, text = told
    elif is_follower_lost(error):
        code, text = 1, "error: another process of this training has ended; what it said tells why"
    else:
        code = 1
        text = f"unexpected error, please report it with the end of run.log: {type(error).__name__}: {error}"
    # where several processes train, what the product itself has to say is said by the first one
    silent = isinstance(error, BrdEdgeError | InterruptedRunError) and not isinstance(error, DataError)
    if not is_follower() or not (silent or is_follower_lost(error)):
        print(f"brd-edge: {text}", file=sys.stderr)
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="brd-edge",
        description="Run a recipe: from a data set and a teacher to a distilled student and its measured engines.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("recipe", type=Path, help="YAML file, for example pipelines/quickstart.yaml")
    parser.add_argument("--run-dir", type=Path, metavar="DIR", help="run directory (runs/<recipe name>)")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="override a key, such as distill.method=kd"
    )
    parser.add_argument(
        "--from",
        dest="first",
        choices=list(STAGES),
        metavar="STAGE",
        help=f"run this stage again and keep the ones before it as they are ({', '.join(STAGES)})",
    )
    parser.add_argument("--until", choices=list(STAGES), metavar="STAGE", help="stop after this stage")
    parser.add_argument("--plan", action="store_true", help="print what would be done and what is missing")
    parser.add_argument("--force", action="store_true", help="run the stages even where nothing changed")
    parser.add_argument("--version", action="version", version=f"brd-edge {__version__}")
    return parser


def _selected(first: str | None, until: str | None) -> list[str]:
    names = list(STAGES)
    start = names.index(first) if first else 0
    end = names.index(until) + 1 if until else len(names)
    if start >= end:
        _parser().error(f"--from {first} comes after --until {until}; the order is {', '.join(names)}")
    return names[start:end]


def _require_known_encoders(path: Path, recipe: Recipe) -> None:
    """Refuse a recipe with an encoder that there is not, which else would be found when the data is prepared."""
    names = {"teacher": recipe.teacher.encoder, "student": recipe.student.encoder}
    problems = {role: problem for role, name in names.items() if (problem := encoder_problem(name)) is not None}
    if problems:
        count = f"{len(problems)} error" + ("s" if len(problems) > 1 else "")
        lines = [f"  {role}.encoder: {problem}" for role, problem in problems.items()]
        raise RecipeError("\n".join([f"{path}: {count}", *lines]))


def _command(options: argparse.Namespace, given: Sequence[str]) -> str:
    """Return what repeats this run; of the environment only names are told, its values are private paths."""
    content = read_yaml(options.recipe)
    for override in options.set:
        apply_override(content, override)
    names = used_variables(content, os.environ)
    command = " ".join([*(f"{name}=…" for name in names), shlex.join(["python", "-m", "brd_edge.pipeline", *given])])
    # a file's name may be no UTF-8, what it is written into has to be
    return command.encode("utf-8", "backslashreplace").decode()


def _run(run: Run, recipe: Recipe, stages: Sequence[str], stop: Stop, options: argparse.Namespace, command: str) -> int:
    require_same_recipe(run, recipe)
    require_another_run(run, recipe)
    missing = missing_for(recipe, stages)
    if missing:
        raise RunError("\n".join(missing))
    for stage in STAGES.values():
        # now, before anybody edits the code that this process has loaded
        code_digest(stage.code)
    try:
        with tracked(run, recipe, _say) as tracking:
            artifacts = _run_stages(run, recipe, stages, stop, options, command, tracking)
            return _conclude(run, artifacts)
    except (InterruptedRunError, KeyboardInterrupt):
        # where it was does not matter to anybody
        log.info("not finished: interrupted")
        raise
    except BaseException:
        log.info("not finished", exc_info=True)
        raise


def _describe_run(run: Run, recipe: Recipe) -> None:
    write_text_atomic(run.path("recipe.yaml"), yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False))
    write_json_atomic(run.path("environment.json"), describe_environment())


def _run_stages(
    run: Run,
    recipe: Recipe,
    stages: Sequence[str],
    stop: Stop,
    options: argparse.Namespace,
    command: str,
    tracking: Tracker,
) -> dict[str, Artifact]:
    artifacts = _kept(run, recipe, stages)
    tracking.done.update(artifacts)
    for name in stages:
        stage = STAGES[name]
        inputs = {need: artifacts[need] for need in stage.needs}
        wanted = next_artifact(stage, recipe, inputs)
        forced = options.force or name == options.first
        reason = ("--force" if options.force else "--from") if forced else reason_to_run(run, stage, wanted)
        position = f"[{list(STAGES).index(name) + 1}/{len(STAGES)}] {name}"
        if reason is None:
            found = run.artifact(name)
            assert found is not None
            artifacts[name] = found
            tracking.done.add(name)
            _say(f"{position}: unchanged")
            continue
        _say(f"{position}: {stage.plan(recipe)} ({reason})")
        context, begun = Context(recipe, run, inputs, stop, _say, command, wanted.fingerprint), time.monotonic()
        if forced and name in _JOURNALS:
            run.path(*_JOURNALS[name]).unlink(missing_ok=True)
        stage.accepts(context)
        if forced:
            # what an interrupted training left is not wanted
            run.path(name, "checkpoint.safetensors").unlink(missing_ok=True)
        if name != "prepare":
            _describe_run(run, recipe)
            _withdraw(run, name, recipe)
        with tracking.stage(name):
            artifacts[name] = _run_stage(stage, context, wanted, begun)
        if name == "prepare":
            # only now: data that cannot be used, or that turn out to be the same, make no result untrue
            _describe_run(run, recipe)
            if not _measured_with(run, artifacts[name]):
                _withdraw(run, name, recipe)
    return artifacts


def _measured_with(run: Run, prepared: Artifact) -> bool:
    """Return whether the results in a run directory are of this data."""
    benchmark = run.artifact("benchmark")
    return benchmark is not None and benchmark.inputs.get("stage prepare") == prepared.content


def _run_stage(stage: Stage, context: Context, wanted: Artifact, begun: float) -> Artifact:
    """Do a stage's work; `begun` is when it began to look at its inputs, on the monotonic clock."""
    context.run.forget(stage.name)
    outcome = stage.work(context)
    duration_s = round(outcome.earlier_s + time.monotonic() - begun, 1)
    finished = replace(wanted, result=outcome.result, duration_s=duration_s, essence=outcome.essence)
    kept = context.run.keep(finished, outcome.outputs)
    # only now is the unfinished work of a training not needed any more
    context.run.path(stage.name, "checkpoint.safetensors").unlink(missing_ok=True)
    _say(f"      {outcome.summary} [{duration_s:.0f} s]")
    return kept


def _withdraw(run: Run, name: str, recipe: Recipe) -> None:
    """Remove published results that a stage which runs again may make untrue."""
    order, removed = list(STAGES), []
    signed = run.path("bundle", SIGNATURE_NAME).exists()
    for stage, results in _PUBLISHED.items():
        if order.index(stage) < order.index(name):
            continue
        run.forget(stage)
        for result in results:
            path = run.path(result)
            removed += [result] if path.exists() else []
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    if removed:
        _say(f"      removed, as it is made anew: {', '.join(removed)}")
    if signed and recipe.bundle.key is None:
        _say("note: that bundle was signed; the new one is not before you sign it (brd-edge sign, or bundle.key)")


def _kept(run: Run, recipe: Recipe, stages: Sequence[str]) -> dict[str, Artifact]:
    """Return the artifacts of the stages before the first one; with --from they are kept as they are."""
    kept: dict[str, Artifact] = {}
    for name in list(STAGES)[: list(STAGES).index(stages[0])]:
        artifact = run.artifact(name)
        if artifact is None:
            raise RunError(f"--from {stages[0]}: the stage {name} has not been done in {run.directory}; run it first")
        damage = run.damaged(artifact)
        if damage is not None:
            raise RunError(f"--from {stages[0]}: the stage {name} cannot be kept: {damage}; run it again")
        wanted = next_artifact(STAGES[name], recipe, {need: kept[need] for need in STAGES[name].needs})
        if wanted.fingerprint != artifact.fingerprint:
            _say(f"note: {name} is kept, but was made otherwise ({reason_to_run(run, STAGES[name], wanted)})")
        kept[name] = artifact
    return kept


def _conclude(run: Run, artifacts: dict[str, Artifact]) -> int:
    from brd_edge.evaluate.table import format_table

    if "benchmark" not in artifacts:
        built = artifacts["build"].result["engines"] if "build" in artifacts else []
        failed = _failed_engines(built)
        if failed:
            raise EngineError("\n".join(failed))
        return 0
    benchmark = json.loads(run.path("benchmark.json").read_text(encoding="utf-8"))
    print(f"\n{format_table(benchmark)}\n")
    print(f"report: {run.path('report.html')}")
    failed = _failed_engines(benchmark["engines"])
    broken = artifacts["benchmark"].result["gates_broken"]
    lines = [*failed, *(["gates that were not held:", *(f"  {line}" for line in broken)] if broken else [])]
    if failed:
        raise EngineError("\n".join(lines))
    if broken:
        raise GateError("\n".join(lines))
    return 0


def _failed_engines(entries: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return lines that say which engines failed and why; none where none did."""
    failed = [f"  {entry['name']}: {entry['reason']}" for entry in entries if entry["status"] == "failed"]
    return ["engines that failed (--from build tries again):", *failed] if failed else []


@contextmanager
def _log_file(run: Run) -> Iterator[None]:
    """Write what is said, and what libraries warn about, into `run.log`."""
    # a file's name need not be text
    handler = logging.FileHandler(run.path("run.log"), encoding="utf-8", errors="backslashreplace")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    loggers = [logging.getLogger(name) for name in ("brd_edge", "py.warnings")]
    # warnings of libraries help whoever reads the log, and nobody who watches the run
    logging.captureWarnings(True)
    for logger in loggers:
        logger.setLevel(logging.INFO)
        logger.propagate = False
        logger.addHandler(handler)
    try:
        yield
    finally:
        logging.captureWarnings(False)
        for logger in loggers:
            logger.removeHandler(handler)
            logger.propagate = True
        handler.close()


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
    log.info("%s", text)
