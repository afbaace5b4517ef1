"""The run that a benchmark's student is compared with: where it is, and whether it can be compared at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from brd_edge.evaluate.benchmark.file import read_benchmark
from brd_edge.recipe import Recipe
from brd_edge.run import digest
from brd_edge.runtime.engine import read_engine
from brd_edge.runtime.errors import BrdEdgeError, RunError
from brd_edge.runtime.files import expand_home, sha256_file
from brd_edge.stages.context import Context, input_contract

__all__ = ["compared_engine", "compared_files", "compared_problems", "compared_run", "require_same_classes"]


def compared_run(recipe: Recipe) -> Path | None:
    """Return the directory of the run that the recipe names, if it does."""
    compared = recipe.benchmark.compare_run
    return expand_home(compared).absolute() if compared is not None else None


def compared_engine(directory: Path) -> Path | None:
    """Return the measured ONNX Runtime engine of an earlier run; one that its benchmark does not know is not used."""
    try:
        before = read_benchmark(directory / "benchmark.json")
    except RunError:
        return None
    wanted = ("onnxruntime", "fp32", "measured")
    found = (entry.name for entry in before.engines if (entry.runtime, entry.precision, entry.status) == wanted)
    return next((directory / "engines" / name for name in found), None)


def compared_files(recipe: Recipe) -> dict[str, str]:
    """Return digests of what is read of that run, by name."""
    compared = compared_run(recipe)
    if compared is None:
        return {}
    path = compared / "benchmark.json"
    found = {"compared run": sha256_file(path) if path.is_file() else "missing"}
    engine = compared_engine(compared)
    if engine is not None:
        found["compared engine"] = digest(read_engine(engine).to_json())
    return found


def compared_problems(recipe: Recipe) -> list[str]:
    """Return why that run cannot be compared with one of this recipe, as far as the recipe tells."""
    compared = compared_run(recipe)
    if compared is None:
        return []
    try:
        read_benchmark(compared / "benchmark.json")
        engine = compared_engine(compared)
        if engine is not None:
            input_contract(recipe).require_equal(read_engine(engine).contract, f"the engine {engine}")
    except BrdEdgeError as error:
        return [f"benchmark.compare_run: {error}"]
    if engine is None:
        return [f"benchmark.compare_run: {compared} has no measured onnxruntime fp32 engine; add one to its recipe"]
    return []


def require_same_classes(context: Context) -> None:
    """Refuse a run of other classes.

    Raises:
        RunError: The classes of the two data sets differ.
    """
    compared = compared_run(context.recipe)
    if compared is None:
        return
    classes: list[Any] = list(context.inputs["prepare"].result["classes"])
    if list(read_benchmark(compared / "benchmark.json").dataset.classes) != classes:
        raise RunError(f"benchmark.compare_run: {compared} has other classes than this run; compare like with like")
