"""Stage `build`: one engine for every runtime, precision and target of the recipe."""

from __future__ import annotations

import logging
import shutil
import time
from typing import TYPE_CHECKING, Any

from brd_edge.progress import progress_bar
from brd_edge.recipe import EngineSection, Recipe
from brd_edge.run import tree_files
from brd_edge.runtime.errors import BrdEdgeError, RuntimeMissingError
from brd_edge.stages.context import Context, Outcome, Stage, input_contract
from brd_edge.stages.training import load_run_dataset

if TYPE_CHECKING:
    from brd_edge.runtime.engine import EngineInfo

__all__ = ["STAGE", "engine_name"]

log = logging.getLogger("brd_edge")


def engine_name(engine: EngineSection) -> str:
    """Return the name of an engine's directory, such as `openvino-fp32-x86-cpu`."""
    return f"{engine.runtime}-{engine.precision}-{engine.target}"


def _settings(recipe: Recipe) -> dict[str, Any]:
    return {"engines": [engine.model_dump(mode="json") for engine in recipe.engines]}


def _files(recipe: Recipe) -> dict[str, str]:
    from brd_edge.runtime.builders import runtime_version

    # an engine belongs to the version of its runtime, and one that was skipped is built once it is installed
    runtimes = sorted({engine.runtime for engine in recipe.engines})
    return {f"runtime {name}": runtime_version(name) or "not installed" for name in runtimes}


def _plan(recipe: Recipe) -> str:
    return "build " + ", ".join(engine_name(engine) for engine in recipe.engines)


def _notes(recipe: Recipe) -> list[str]:
    return [
        f"{name.removeprefix('runtime ')} is not installed: its engines will be skipped "
        f'(pip install "brd-edge[{name.removeprefix("runtime ")}]")'
        for name, version in _files(recipe).items()
        if version == "not installed"
    ]


def _work(context: Context) -> Outcome:
    engines = context.recipe.engines
    entries = []
    wanted = {engine_name(engine) for engine in engines}
    for kind in ("engines", "plain"):
        for old in context.run.path(kind).glob("*"):
            if old.name not in wanted:
                shutil.rmtree(old, ignore_errors=True)
    with progress_bar(len(engines), "build", unit="engine") as bar:
        for engine in engines:
            bar.set_postfix_str(engine_name(engine))
            entries.append(_build(context, engine))
            bar.update(1)
    built = [context.run.path("engines", entry["name"]) for entry in entries if entry["status"] == "built"]
    built += [context.run.path("plain", entry["name"]) for entry in entries if entry["plain"]]
    outputs = [path for directory in built for path in tree_files(directory)]
    summary = ", ".join(f"{entry['name']} {entry['status']}" for entry in entries)
    return Outcome(outputs, {"engines": entries}, summary)


def _build(context: Context, engine: EngineSection) -> dict[str, Any]:
    start = time.perf_counter()
    entry: dict[str, Any] = {
        "name": engine_name(engine),
        **engine.model_dump(mode="json"),
        "status": "built",
        "reason": "",
        "size_bytes": None,
        "build_s": None,
        "runtime_version": None,
        "plain": False,
    }
    info, failure = _attempt(context, engine, "student.onnx", "engines")
    if info is None:
        return entry | failure
    entry |= {
        "size_bytes": info.size_bytes,
        "build_s": round(time.perf_counter() - start, 3),
        "runtime_version": info.runtime_version,
    }
    # what the engine would be without distillation, to compare its cost with; it is never shipped
    plain, _ = _attempt(context, engine, "plain.onnx", "plain")
    return {**entry, "plain": plain is not None}


def _attempt(
    context: Context, engine: EngineSection, graph: str, kind: str
) -> tuple[EngineInfo | None, dict[str, str]]:
    """Build one engine from a graph; return what it is, or else its status and the reason."""
    from brd_edge.runtime.builders import build_engine

    dataset = load_run_dataset(context)
    directory = context.run.path(kind, engine_name(engine))
    # an engine of an earlier build must not be taken for this one's when the build fails
    shutil.rmtree(directory, ignore_errors=True)
    try:
        info = build_engine(
            runtime=engine.runtime,
            precision=engine.precision,
            target=engine.target,
            onnx=context.run.path("export", graph),
            out=directory,
            contract=input_contract(context.recipe),
            classes=dataset.classes,
            palette=dataset.palette,
        )
    except RuntimeMissingError as error:
        return None, {"status": "skipped", "reason": str(error)}
    except BrdEdgeError as error:
        return None, {"status": "failed", "reason": str(error)}
    except Exception as error:
        # a vendor's library may raise anything; the other engines do not depend on it
        log.exception("%s failed", engine_name(engine))
        return None, {"status": "failed", "reason": f"{type(error).__name__}: {error}"}
    return info, {}


STAGE = Stage(
    name="build",
    needs=("prepare", "export"),
    code=("deploy", "runtime", "stages/build.py"),
    settings=_settings,
    work=_work,
    plan=_plan,
    files=_files,
    notes=_notes,
)
