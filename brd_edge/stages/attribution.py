"""Where accuracy went between the trained student and each engine of a run; part of the stage `benchmark`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from brd_edge.data.dataset import Dataset, Sample
from brd_edge.deploy.lowering import is_exact
from brd_edge.evaluate.accuracy import ByteArray
from brd_edge.evaluate.attribution.chain import BuiltEngine, Reading, Student, count_ways
from brd_edge.evaluate.attribution.losses import Attribution, attribute_losses
from brd_edge.progress import progress_bar
from brd_edge.recipe import Recipe
from brd_edge.run import Run
from brd_edge.stages.context import Context, input_contract, training_device

__all__ = ["attribute_run", "attribution_entry"]


def attribute_run(
    recipe: Recipe,
    run: Run,
    samples: Sequence[Sample],
    *,
    classes: int,
    engines: Sequence[Mapping[str, Any]],
    title: str,
    known: Sequence[ByteArray] | None = None,
) -> Attribution:
    """Measure what each step from a run's trained student to its engines costs in accuracy, with a progress bar.

    Args:
        recipe: The run's recipe.
        run: The run directory, with its stages up to `build` done.
        samples: What to measure on.
        classes: Number of classes.
        engines: Entries of the engines, as the stage `build` left them.
        title: Of the progress bar.
        known: The class map of each sample by PyTorch, where they are known already.

    Raises:
        BrdEdgeError: The student cannot be loaded, or the samples cannot be read.
    """
    from brd_edge.models.segmentation import load_model

    device = training_device(recipe)
    model, _ = load_model(run.path("distill", "model"))
    student = Student(
        model=model.to(device).eval(),
        device=device,
        graph=run.path("export", "student.onnx"),
        contract=input_contract(recipe),
        classes=classes,
    )
    built = {str(entry["name"]): _built_engine(run, entry) for entry in engines}
    gpu = (device.index or 0) if device.type == "cuda" else None
    with progress_bar(count_ways(built) * len(samples), title, unit="image") as bar:
        return attribute_losses(
            student,
            samples,
            engines=built,
            reading=Reading(recipe.data.loader, recipe.data.threads, gpu),
            threads=recipe.benchmark.threads,
            known=known,
            on_image=lambda: bar.update(1),
        )


def attribution_entry(
    context: Context, dataset: Dataset, engines: Sequence[Mapping[str, Any]], known: Sequence[ByteArray]
) -> dict[str, Any] | None:
    """Return the entry `attribution` of `benchmark.json`, or nothing where the recipe switches it off.

    Args:
        context: Where the stage works.
        dataset: The run's data set.
        engines: The entries of the engines; those that were measured are taken.
        known: The class map of each validation sample by PyTorch.
    """
    if not context.recipe.benchmark.attribution:
        return None
    found = attribute_run(
        context.recipe,
        context.run,
        dataset.val,
        classes=len(dataset.classes),
        engines=[engine for engine in engines if engine["status"] == "measured"],
        title="benchmark attribution",
        known=known,
    )
    return found.to_json()


def _built_engine(run: Run, entry: Mapping[str, Any]) -> BuiltEngine:
    runtime, precision, lowered = str(entry["runtime"]), str(entry["precision"]), entry.get("lowered")
    return BuiltEngine(
        directory=run.path("engines", str(entry["name"])),
        runtime=runtime,
        precision=precision,
        lowered=None if lowered is None or is_exact(runtime, precision) else run.path(lowered),
        sparse=entry.get("output") == "sparse",
    )
