"""Which stages of a run are current, which have to run, and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import yaml

from brd_edge.data.index import load_dataset
from brd_edge.recipe import Recipe
from brd_edge.run import (
    Artifact,
    Run,
    changed_inputs,
    changed_settings,
    code_digest,
    digest,
    require_run_directory,
)
from brd_edge.runtime.errors import BrdEdgeError, RecipeError, RunError
from brd_edge.runtime.files import expand_home
from brd_edge.stages import STAGES
from brd_edge.stages.context import Stage
from brd_edge.tracking import missing_for_tracking

__all__ = [
    "Step",
    "format_plan",
    "missing_for",
    "next_artifact",
    "plan",
    "reason_to_run",
    "require_another_run",
    "require_same_recipe",
]


@dataclass(frozen=True)
class Step:
    """What a run would do with one stage.

    Attributes:
        stage: The stage.
        action: `run`, `cached` (nothing to do), `kept` (taken as it is) or `left out`.
        reason: Why.
    """

    stage: Stage
    action: str
    reason: str


def next_artifact(stage: Stage, recipe: Recipe, inputs: Mapping[str, Artifact]) -> Artifact:
    """Return the record that a stage would have if it ran now, still without outputs."""
    settings = stage.settings(recipe)
    contents = {f"stage {name}": artifact.content for name, artifact in inputs.items()} | stage.files(recipe)
    code = code_digest(stage.code)
    return Artifact(
        stage=stage.name,
        fingerprint=digest({"stage": stage.name, "settings": settings, "inputs": contents, "code": code}),
        settings=settings,
        inputs=contents,
        code=code,
    )


def reason_to_run(run: Run, stage: Stage, wanted: Artifact) -> str | None:
    """Return why a stage has to run, or nothing when what it left is current."""
    found = run.artifact(wanted.stage)
    if found is None:
        return "not done yet"
    if found.fingerprint != wanted.fingerprint:
        keys = changed_settings(found.settings, wanted.settings)
        inputs = changed_inputs(found.inputs, wanted.inputs)
        changes = [f"changed settings: {', '.join(keys)}"] if keys else []
        changes += [f"changed: {', '.join(inputs)}"] if inputs else []
        changes += ["changed code"] if found.code != wanted.code else []
        return "; ".join(changes) or "changed"
    return run.damaged(found) or stage.check(run)


def plan(run: Run, recipe: Recipe, stages: Sequence[str], *, first: str | None, force: bool) -> list[Step]:
    """Return what a run would do, without doing anything.

    Args:
        run: The run directory.
        recipe: The recipe.
        stages: Names of the stages to run, in order.
        first: A stage that runs even when it is current; earlier ones are kept as they are.
        force: Every one of `stages` runs.
    """
    steps: list[Step] = []
    artifacts: dict[str, Artifact] = {}
    for name, stage in STAGES.items():
        step = _step(run, recipe, stage, stages, artifacts, first=first, force=force)
        found = run.artifact(name)
        if step.action in ("cached", "kept") and found is not None:
            artifacts[name] = found
        steps.append(step)
    return steps


def missing_for(recipe: Recipe, stages: Sequence[str]) -> list[str]:
    """Return what the stages cannot do without and do not find."""
    found = [problem for name in stages for problem in STAGES[name].missing(recipe)] + missing_for_tracking(recipe)
    # two stages may lack the same
    return list(dict.fromkeys(found))


def require_same_recipe(run: Run, recipe: Recipe) -> None:
    """Keep one recipe from overwriting the trained models of another.

    Raises:
        RunError: The directory holds a run of another recipe.
    """
    path = run.path("recipe.yaml")
    try:
        before = yaml.safe_load(path.read_text(encoding="utf-8"))["name"]
    except (OSError, ValueError, TypeError, KeyError, yaml.YAMLError):
        return
    if before != recipe.name:
        raise RunError(
            f"{run.directory}: holds a run of the recipe {before!r}, this is {recipe.name!r}; "
            "choose another --run-dir, or delete that one"
        )


def require_another_run(run: Run, recipe: Recipe) -> None:
    """Refuse to compare a run with itself, whose results it is about to replace.

    Raises:
        RecipeError: `benchmark.compare_run` is the run directory.
    """
    compared = recipe.benchmark.compare_run
    if compared is not None and expand_home(compared).resolve() == run.directory:
        raise RecipeError(
            f"benchmark.compare_run: {compared} is the run directory itself; give that of another run, "
            "or this one another --run-dir"
        )


def format_plan(run: Run, steps: Sequence[Step], recipe: Recipe, stages: Sequence[str]) -> str:
    """Return a plan as text: the stages, then what is missing and what would be refused."""
    from tabulate import tabulate

    rows = [[step.stage.name, step.action, step.stage.plan(recipe), step.reason] for step in steps]
    table = tabulate(
        rows, headers=["stage", "action", "would", "why"], tablefmt="simple", maxcolwidths=[None, None, 60, 40]
    )
    missing = [f"missing: {problem}" for problem in missing_for(recipe, stages)]
    refused = [*_run_problems(run, recipe), *_model_problems(run, steps, recipe)]
    missing += [f"refused: {problem}" for problem in refused]
    notes = [f"note: {note}" for name in stages for note in STAGES[name].notes(recipe)]
    return "\n".join([table, *missing, *notes] if missing or notes else [table, "nothing is missing"])


def _run_problems(run: Run, recipe: Recipe) -> list[str]:
    """Return why the run directory cannot take a run of this recipe."""
    checks = (
        partial(require_run_directory, run.directory),
        partial(require_same_recipe, run, recipe),
        partial(require_another_run, run, recipe),
    )
    found = []
    for check in checks:
        try:
            check()
        except (BrdEdgeError, OSError) as error:
            found.append(str(error))
    return found


def _model_problems(run: Run, steps: Sequence[Step], recipe: Recipe) -> list[str]:
    """Return why what would be trained cannot be; a second or two are little against finding out after the data."""
    if not any(step.action == "run" and step.stage.name in ("teacher", "distill") for step in steps):
        return []
    try:
        from brd_edge.stages.model_checks import model_problems

        return model_problems(recipe, classes=_prepared_classes(run, steps))
    except ImportError:
        # a plan can be made where nothing can be trained
        return []


def _prepared_classes(run: Run, steps: Sequence[Step]) -> int | None:
    """Return how many classes the data have, where they are prepared."""
    if not any(step.stage.name == "prepare" and step.action in ("cached", "kept") for step in steps):
        return None
    return len(load_dataset(run.path("data")).classes)


def _step(
    run: Run,
    recipe: Recipe,
    stage: Stage,
    stages: Sequence[str],
    artifacts: Mapping[str, Artifact],
    *,
    first: str | None,
    force: bool,
) -> Step:
    found = run.artifact(stage.name)
    if stage.name not in stages:
        order = list(STAGES)
        before = bool(stages) and order.index(stage.name) < order.index(stages[0])
        if before and found is not None:
            return Step(stage, "kept", "before --from")
        return Step(stage, "left out", "before --from, and not done yet" if before else "after --until")
    if force or stage.name == first:
        return Step(stage, "run", "--force" if force else "--from")
    absent = [name for name in stage.needs if name not in artifacts]
    if absent:
        return Step(stage, "run", f"after {', '.join(absent)}")
    reason = reason_to_run(run, stage, next_artifact(stage, recipe, {name: artifacts[name] for name in stage.needs}))
    return Step(stage, "cached", "unchanged") if reason is None else Step(stage, "run", reason)
