"""Stage `build`: one engine for every runtime, precision and target of the recipe."""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from brd_edge.deploy.lowering import is_quantised
from brd_edge.environment import describe_environment, package_version
from brd_edge.evaluate.planned import status_text
from brd_edge.progress import progress_bar
from brd_edge.recipe import EngineSection, Recipe
from brd_edge.recipe_gates import limits_of
from brd_edge.run import digest, tree_files
from brd_edge.runtime.errors import BrdEdgeError, RecipeError, RuntimeMissingError
from brd_edge.stages.context import Context, Outcome, Stage, input_contract
from brd_edge.stages.lowering import Bench, Lowered, lowered_graphs
from brd_edge.stages.outputs import build_output, chosen_by_time
from brd_edge.stages.training import load_run_dataset

if TYPE_CHECKING:
    from brd_edge.runtime.engine import CoarseLogits, EngineInfo

__all__ = ["STAGE", "engine_name", "what_changes_speed"]

log = logging.getLogger("brd_edge")

Made = TypeVar("Made")


def engine_name(engine: EngineSection) -> str:
    """Return the name of an engine's directory, such as `openvino-fp32-x86-cpu`, or that with `-batch4`."""
    batch = f"-batch{engine.batch_max}" if engine.batch_max > 1 else ""
    return f"{engine.runtime}-{engine.precision}-{engine.target}{batch}"


def _settings(recipe: Recipe) -> dict[str, Any]:
    settings: dict[str, Any] = {"engines": [engine.model_dump(mode="json") for engine in recipe.engines]}
    quantised = [engine for engine in recipe.engines if is_quantised(engine.precision)]
    if quantised:
        limits = [
            limits_of(recipe.gates, **engine.model_dump(include={"runtime", "precision", "target"}))
            for engine in quantised
        ]
        # the gates of accuracy decide what goes back to floating point
        accuracy = ("miou_drop_max", "boundary_iou_drop_max", "uncertain")
        settings["int8"] = recipe.int8.model_dump(mode="json")
        settings["gates"] = [{name: found[name] for name in accuracy} for found in limits]
    if any(chosen_by_time(engine) for engine in recipe.engines):
        settings["threads"] = recipe.benchmark.threads
    return settings


def _files(recipe: Recipe) -> dict[str, str]:
    found = _packages(recipe)
    if any(chosen_by_time(engine) for engine in recipe.engines):
        found["processor"] = digest([describe_environment()[key] for key in ("cpu", "cores")])
        found |= what_changes_speed()
    return found


def what_changes_speed() -> dict[str, str]:
    """Return, by name, what else here makes engines faster or slower."""
    from brd_edge.runtime.runners.openvino import NO_CACHE

    return {
        "package numba": package_version("numba") or "not installed",
        # some processors run what OpenVINO took from its cache at another speed
        "OpenVINO's model cache": "off" if os.environ.get(NO_CACHE) else "on",
    }


def _packages(recipe: Recipe) -> dict[str, str]:
    from brd_edge.runtime.packages import package_of, runtime_version
    from brd_edge.runtime.targets import TARGETS

    # an engine belongs to the version of its runtime, and one that was skipped is built once it is installed
    here = [engine for engine in recipe.engines if TARGETS[engine.target].built == "here"]
    packages = sorted({package_of(engine.runtime, engine.target) for engine in here})
    found = {f"runtime {name}": runtime_version(name) or "not installed" for name in packages}
    if any(engine.runtime == "openvino" and is_quantised(engine.precision) for engine in recipe.engines):
        found["package nncf"] = package_version("nncf") or "not installed"
    return found


def _plan(recipe: Recipe) -> str:
    return "build " + ", ".join(engine_name(engine) for engine in recipe.engines)


def _notes(recipe: Recipe) -> list[str]:
    extras = {
        "package nncf": ("OpenVINO's int8 engines", "quantise"),
        "runtime tensorrt_rtx": ("its engines", "tensorrt"),
    }
    notes = []
    for name, version in _packages(recipe).items():
        package = name.split()[1]
        engines, extra = extras.get(name, ("its engines", package))
        if version == "not installed":
            notes.append(f'{package} is not installed: {engines} will be skipped (pip install "brd-edge[{extra}]")')
    return notes


def _accepts(context: Context) -> None:
    """Refuse layers to keep in floating point that the student has not: after its export they can be told."""
    from brd_edge.deploy.groups import layer_groups

    recipe = context.recipe
    if not recipe.int8.keep or not any(is_quantised(engine.precision) for engine in recipe.engines):
        return
    groups = layer_groups(context.run.path("export", "student.onnx"))
    known = {*groups, *(node for nodes in groups.values() for node in nodes)}
    unknown = [name for name in recipe.int8.keep if name not in known]
    if unknown:
        raise RecipeError(
            f"int8.keep: the student has no group or node {', '.join(map(repr, unknown))}; "
            f"its groups are {', '.join(groups)}"
        )


def _work(context: Context) -> Outcome:
    engines = context.recipe.engines
    entries = []
    wanted = {engine_name(engine) for engine in engines}
    for kind in ("engines", "plain", "graphs"):
        for old in context.run.path(kind).glob("*"):
            if old.name not in wanted:
                shutil.rmtree(old, ignore_errors=True)
    bench = Bench(context)
    with progress_bar(len(engines), "build", unit="engine") as bar:
        for engine in engines:
            bar.set_postfix_str(engine_name(engine))
            entries.append(_build(bench, engine))
            bar.update(1)
    built = [context.run.path("engines", entry["name"]) for entry in entries if entry["status"] == "built"]
    built += [context.run.path("plain", entry["name"]) for entry in entries if entry["plain"]]
    outputs = [path for directory in built for path in tree_files(directory)]
    exported = context.run.path("export")
    graphs = {
        context.run.path(entry[key]) for entry in entries for key in ("graph", "lowered") if entry[key] is not None
    }
    outputs += sorted(path for graph in graphs if graph.parent != exported for path in tree_files(graph.parent))
    summary = ", ".join(f"{entry['name']} {status_text(entry)}" for entry in entries)
    return Outcome(outputs, {"engines": entries}, summary)


def _build(bench: Bench, engine: EngineSection) -> dict[str, Any]:
    context, start = bench.context, time.perf_counter()
    entry: dict[str, Any] = {
        "name": engine_name(engine),
        **engine.model_dump(mode="json"),
        "status": "built",
        "reason": "",
        "size_bytes": None,
        "build_s": None,
        "runtime_version": None,
        "plain": False,
        "graph": None,
        "lowered": None,
        "output": "dense",
    }
    lowered, failure = _attempt(engine, lambda: _with_batch(context, engine, lowered_graphs(bench, engine)))
    if lowered is None:
        return entry | failure
    entry |= lowered.to_json(context.run.directory)
    build = partial(_engine, context, engine)
    directory = context.run.path("engines", entry["name"])
    built, failure = _attempt(engine, lambda: build_output(context, engine, lowered.student, directory, build))
    if built is None:
        return entry | failure
    entry |= {
        "size_bytes": built.info.size_bytes,
        "build_s": round(time.perf_counter() - start, 3),
        "runtime_version": built.info.runtime_version,
        "graph": built.graph.relative_to(context.run.directory).as_posix(),
        "output": built.output,
        "output_ratio": None if built.ratio is None else built.ratio.to_json(),
    }
    # what the engine would be without distillation, to compare its cost with; it is never shipped
    alike = engine.model_copy(update={"output": built.output})
    place = context.run.path("plain", entry["name"])
    plain, _ = _attempt(engine, lambda: build_output(context, alike, lowered.plain, place, build))
    return {**entry, "plain": plain is not None}


def _with_batch(context: Context, engine: EngineSection, lowered: Lowered) -> Lowered:
    """Return graphs that take as many frames at once as the engine is to; everything before works on one."""
    if engine.batch_max == 1:
        return lowered
    from brd_edge.deploy.batch import set_batch

    def opened(graph: Path, role: str) -> Path:
        path = context.run.path("graphs", engine_name(engine), f"{role}-batch{graph.suffix}")
        set_batch(graph, path, frames_max=engine.batch_max)
        return path

    return replace(lowered, student=opened(lowered.student, "student"), plain=opened(lowered.plain, "plain"))


def _engine(
    context: Context, engine: EngineSection, graph: Path, directory: Path, logits: CoarseLogits | None
) -> EngineInfo:
    from brd_edge.runtime.builders import build_engine

    dataset = load_run_dataset(context)
    # an engine of an earlier build must not be taken for this one's when the build fails
    shutil.rmtree(directory, ignore_errors=True)
    return build_engine(
        runtime=engine.runtime,
        precision=engine.precision,
        target=engine.target,
        onnx=graph,
        out=directory,
        contract=input_contract(context.recipe),
        classes=dataset.classes,
        palette=dataset.palette,
        logits=logits,
        batch_max=engine.batch_max,
    )


def _attempt(engine: EngineSection, make: Callable[[], Made]) -> tuple[Made | None, dict[str, str]]:
    """Return what was made, or else the engine's status and the reason."""
    try:
        return make(), {}
    except RuntimeMissingError as error:
        return None, {"status": "skipped", "reason": str(error)}
    except BrdEdgeError as error:
        return None, {"status": "failed", "reason": str(error)}
    except Exception as error:
        # a vendor's library may raise anything; the other engines do not depend on it
        log.exception("%s failed", engine_name(engine))
        return None, {"status": "failed", "reason": f"{type(error).__name__}: {error}"}


STAGE = Stage(
    name="build",
    needs=("prepare", "export"),
    code=(
        "data/dataset.py",
        "data/evaluation.py",
        "deploy",
        "evaluate/accuracy.py",
        "evaluate/gates.py",
        "evaluate/intervals.py",
        "evaluate/planned.py",
        "runtime",
        "stages/build.py",
        "stages/lowering.py",
        "stages/outputs.py",
        "stages/reporting.py",
    ),
    settings=_settings,
    work=_work,
    plan=_plan,
    files=_files,
    notes=_notes,
    accepts=_accepts,
)
