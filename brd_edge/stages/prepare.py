"""Stage `prepare`: the data set in its canonical form."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import PIL

from brd_edge.data.dataset import Dataset
from brd_edge.data.findings import SKIPPED_NAME, load_skipped
from brd_edge.data.index import load_checksums, load_dataset, load_essence
from brd_edge.data.overview import describe_absent
from brd_edge.progress import progress_bar
from brd_edge.recipe import Recipe
from brd_edge.run import Run, code_digest, digest, is_run_directory, stat_digest, tree_files
from brd_edge.runtime.errors import DataError
from brd_edge.runtime.files import expand_home
from brd_edge.stages.context import Context, Outcome, Stage

__all__ = ["STAGE", "data_root"]


def _settings(recipe: Recipe) -> dict[str, Any]:
    data = recipe.data
    if data.layout == "scenes":
        return {
            "layout": "scenes",
            "scenes": data.scenes.model_dump(),
            "size": list(data.size),
            "seed": recipe.seed,
        }
    return {
        "layout": data.layout,
        "root": str(data_root(recipe)),
        "hold_out": data.hold_out,
        "on_bad_sample": data.on_bad_sample,
    }


def data_root(recipe: Recipe) -> Path | None:
    """Return the recipe's root, or else the one that the layout's variable names."""
    from brd_edge.data.layouts import LAYOUTS

    layout = LAYOUTS.get(recipe.data.layout)
    root = recipe.data.root or (os.environ.get(layout.variable) if layout is not None else None)
    return expand_home(root).absolute() if root else None


def _files(recipe: Recipe) -> dict[str, str]:
    root = data_root(recipe)
    if recipe.data.layout == "scenes" or root is None or not root.is_dir():
        return {}
    # a run below the data, as one that was started there, changes by itself
    files = tree_files(root, skip=is_run_directory)
    return {"data set": stat_digest({str(path.relative_to(root)): path for path in files})}


def _missing(recipe: Recipe) -> list[str]:
    from brd_edge.data.layouts import LAYOUTS, find_layout_problem

    if recipe.data.layout == "scenes":
        return []
    problem = find_layout_problem(LAYOUTS[recipe.data.layout], data_root(recipe))
    return [problem] if problem is not None else []


def _plan(recipe: Recipe) -> str:
    data = recipe.data
    if data.layout == "scenes":
        return f"draw {data.scenes.train} + {data.scenes.val} street scenes of {data.size[1]}x{data.size[0]}"
    return f"check {data.layout} and convert its labels to train ids"


def _work(context: Context) -> Outcome:
    recipe = context.recipe
    problems = _missing(recipe)
    if problems:
        raise DataError(problems[0])
    out = context.run.path("data")
    dataset = _draw(recipe, out) if recipe.data.layout == "scenes" else _convert(recipe, out)
    _require_labels(dataset)
    _require_two_classes(dataset)
    skipped = load_skipped(out)
    checksums = load_checksums(out)
    shared = len(set(checksums["train"].values()) & set(checksums["val"].values()))
    if shared:
        context.say(f"note: {shared} validation images are train images as well, to the byte: scores on them flatter")
    for sentence in describe_absent(dataset):
        context.say(f"note: {sentence}")
    left_out = f"; {len(skipped.samples)} left out, see {out / SKIPPED_NAME}" if skipped else ""
    return Outcome(
        outputs=[out / "index.json", *([out / SKIPPED_NAME] if skipped else [])],
        result={
            "train": len(dataset.train),
            "val": len(dataset.val),
            "skipped": len(skipped.samples),
            "classes": list(dataset.classes),
        },
        summary=f"{len(dataset.train)} train and {len(dataset.val)} validation images, "
        f"{len(dataset.classes)} classes{left_out}",
        essence=digest(load_essence(out)),
    )


def _require_labels(dataset: Dataset) -> None:
    """Refuse a split without a labelled pixel before hours of training: nothing could be learnt, or chosen, from it."""
    for name, samples in (("train", dataset.train), ("val", dataset.val)):
        if not any(sample.classes for sample in samples):
            raise DataError(
                f"{dataset.name}: no pixel of the {len(samples)} labels of the split {name} is of a known class; "
                "expected class ids below the number of classes, or the colours of classes"
            )


def _require_two_classes(dataset: Dataset) -> None:
    """Refuse labels between which there is nothing to tell apart, whose scores would be perfect."""
    present = {found.id for sample in dataset.train for found in sample.classes}
    if len(present) > 1:
        return
    name, count = dataset.classes[min(present)], len(dataset.classes)
    what = f"{name} is the only class" if count == 1 else f"of {count} classes only {name} is in the train labels"
    hint = (
        "; a mask of 0 and 255 needs names for both, such as names: [other, road], and colors: [[0, 0, 0], "
        "[255, 255, 255]] in classes.yaml, since 255 is void otherwise"
        if dataset.name == "folder"
        else ""
    )
    raise DataError(
        f"{dataset.name}: {what}, so that there is nothing to tell apart; expected two classes or more{hint}"
    )


def _check(run: Run) -> str | None:
    try:
        load_dataset(run.path("data"))
    except DataError as error:
        return str(error)
    return None


def _draw(recipe: Recipe, out: Path) -> Dataset:
    from brd_edge.data.prepare import prepare_scenes

    scenes = recipe.data.scenes
    with progress_bar(scenes.train + scenes.val, "prepare", unit="scene") as bar:
        return prepare_scenes(
            out,
            train=scenes.train,
            val=scenes.val,
            height=recipe.data.size[0],
            width=recipe.data.size[1],
            seed=recipe.seed,
            progress=lambda done, _total: bar.update(done - bar.n),
        )


def _convert(recipe: Recipe, out: Path) -> Dataset:
    from brd_edge.data.layouts import LAYOUTS
    from brd_edge.data.prepare import prepare

    root = data_root(recipe)
    assert root is not None
    with progress_bar(1, "prepare", unit="image") as bar:

        def show(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        return prepare(
            LAYOUTS[recipe.data.layout],
            root,
            out,
            workers=recipe.data.threads,
            # the same file may be read otherwise by other code, and by another Pillow
            maker=f"{code_digest(STAGE.code)}, Pillow {PIL.__version__}",
            hold_out=recipe.data.hold_out,
            skip_bad=recipe.data.on_bad_sample == "skip",
            progress=show,
        )


STAGE = Stage(
    name="prepare",
    needs=(),
    code=(
        "data/layouts",
        "data/prepare.py",
        "data/_convert.py",
        "data/_images.py",
        "data/_journal.py",
        "data/workers.py",
        "data/dataset.py",
        "data/findings.py",
        "data/index.py",
        "data/overview.py",
        "data/scenes.py",
        "data/scene_canvas.py",
        "data/scene_objects.py",
        "data/scene_posts.py",
        "data/scene_street.py",
        "runtime/frames.py",
        "stages/prepare.py",
    ),
    settings=_settings,
    work=_work,
    plan=_plan,
    files=_files,
    missing=_missing,
    check=_check,
)
