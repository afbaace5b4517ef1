"""What the teacher makes of images without labels, before the student learns from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import PIL

from brd_edge.data.dataset import Dataset, Sample, count_class_pixels, read_label
from brd_edge.data.index import load_checksums
from brd_edge.data.unlabelled import (
    FoundImages,
    LabelledImages,
    check_images,
    find_images,
    label_images,
    load_labelled,
)
from brd_edge.progress import progress_bar
from brd_edge.recipe import Recipe
from brd_edge.run import code_digest, digest, is_run_directory, stat_digest
from brd_edge.runtime.contract import RESIZED
from brd_edge.runtime.errors import DataError
from brd_edge.runtime.files import atomic_path, expand_home, sha256_file
from brd_edge.runtime.frames import fit_frame, read_image, resize_class_map, segment_image
from brd_edge.stages.context import Context, counted, teacher_contract, training_device
from brd_edge.stages.prepare import data_root
from brd_edge.stages.training import model_files

if TYPE_CHECKING:
    from torch import nn

__all__ = [
    "UNLABELLED_CODE",
    "check_unlabelled",
    "label_unlabelled",
    "missing_images",
    "unlabelled_count",
    "unlabelled_files",
    "unlabelled_plan",
    "with_teacher_labels",
]

UNLABELLED_CODE = (
    "data/unlabelled.py",
    "data/_convert.py",
    "data/_images.py",
    "data/_journal.py",
    "data/workers.py",
    "data/layouts/_files.py",
    "stages/unlabelled.py",
)

# what a label follows from
_LABELLING_CODE = (
    "models",
    "data/dataset.py",
    "evaluate/accuracy.py",
    "runtime/frames.py",
    "runtime/windows.py",
    *UNLABELLED_CODE,
)

_DIRECTORY = "unlabelled"
_SHOWN = 12
_TOLD = 3


def unlabelled_files(recipe: Recipe) -> dict[str, str]:
    """Return a digest of the images without labels, by names, sizes and times."""
    found = _find(recipe)
    if found is None:
        return {}
    # now, at the start of the run: the labels are of the code that is loaded, whatever is edited meanwhile
    code_digest(_LABELLING_CODE)
    return {"unlabelled images": stat_digest(found.paths)}


def unlabelled_count(recipe: Recipe) -> int:
    """Return how many images without labels there are, the data set's own among them."""
    found = _find(recipe)
    return 0 if found is None else len(found.paths)


def unlabelled_plan(recipe: Recipe) -> str:
    """Return what a plan tells about the images without labels; nothing where there are none."""
    found = _find(recipe)
    if found is None or not found.paths:
        return ""
    return f", also on up to {counted(len(found.paths), 'image')} of {found.root} that the teacher labels"


def missing_images(recipe: Recipe) -> list[str]:
    """Return why there are no images without labels to be had where the recipe names them, if so."""
    root = _root(recipe)
    if root is None:
        return []
    if not root.is_dir():
        what = "is a file" if root.exists() else "does not exist"
        return [f"distill.unlabelled: {root} {what}; expected a directory of images, or none (null)"]
    data = data_root(recipe)
    if data is not None and data.resolve().is_relative_to(root.resolve()):
        return [
            f"distill.unlabelled: the data set {data} lies in {root}, so that its labels would be taken for images; "
            "give the directory of its images, or another one"
        ]
    found = _find(recipe)
    assert found is not None
    if found.paths:
        return []
    return ["\n  ".join([f"distill.unlabelled: there is no image in {root} or below it", *found.problems])]


def check_unlabelled(context: Context) -> None:
    """Read the images without labels, so that what is wrong with them is known before the teacher is trained.

    Raises:
        DataError: They cannot be used.
    """
    found = _find(context.recipe)
    if found is None:
        return
    _refuse_own(context, found.root)
    if context.recipe.data.on_bad_sample == "skip":
        return
    with progress_bar(len(found.paths), "unlabelled", unit="image") as bar:
        check_images(found, threads=context.recipe.data.threads, progress=lambda done, _total: bar.update(done - bar.n))


def label_unlabelled(context: Context, teacher: nn.Module, dataset: Dataset) -> None:
    """Let the teacher label the images without labels.

    Labels are written below `unlabelled/` of the run directory, with a picture of some.

    Args:
        context: Of the stage.
        teacher: The network.
        dataset: As prepared.

    Raises:
        DataError: The images cannot be used.
    """
    from brd_edge.evaluate.accuracy import model_predictor

    recipe, contract = context.recipe, teacher_contract(context.recipe)
    found = _find(recipe)
    if found is None:
        return
    _refuse_own(context, found.root)
    device = training_device(recipe)
    predict = model_predictor(
        teacher.eval().to(device), contract, device, confidence_min=recipe.distill.unlabelled_confidence
    )

    checksums = load_checksums(context.run.path("data"))
    out = context.run.path(_DIRECTORY)
    sheet = out / "contact_sheet.png"
    sheet.unlink(missing_ok=True)
    with progress_bar(len(found.paths), "unlabelled", unit="image") as bar:
        labelled = label_images(
            found,
            out,
            segment=lambda image: segment_image(predict, image, contract),
            maker=_maker(context),
            known={digest for split in checksums.values() for digest in split.values()},
            threads=recipe.data.threads,
            skip_bad=recipe.data.on_bad_sample == "skip",
            progress=lambda done, _total: bar.update(done - bar.n),
        )
    _draw(context, dataset, labelled.samples, sheet)
    context.say(f"      {_describe(labelled, found.root, out)}")
    context.say(f"      they are {_shares(labelled, dataset)}; some are shown in {sheet}")


def with_teacher_labels(context: Context, dataset: Dataset) -> Dataset:
    """Return a data set whose train split also holds the images that `label_unlabelled` labelled.

    Raises:
        DataError: There are no labels of this teacher.
    """
    if _root(context.recipe) is None:
        return dataset
    more = load_labelled(context.run.path(_DIRECTORY), _maker(context))
    return replace(dataset, train=(*dataset.train, *more))


def _root(recipe: Recipe) -> Path | None:
    """Return the directory of images without labels that a recipe names, if any."""
    given = recipe.distill.unlabelled
    return expand_home(given).absolute() if given else None


def _find(recipe: Recipe) -> FoundImages | None:
    """Return the images without labels, but for pictures of runs that lie among them."""
    root = _root(recipe)
    return find_images(root, skip=is_run_directory) if root is not None and root.is_dir() else None


def _refuse_own(context: Context, root: Path) -> None:
    """Refuse images in the run directory, whose own pictures would be taken for more of them."""
    if root.resolve().is_relative_to(context.run.directory):
        raise DataError(
            f"distill.unlabelled: {root} lies in the run directory, whose own pictures would be taken for images: "
            "move it, or choose another --run-dir"
        )


def _maker(context: Context) -> str:
    """Return what decides the labels, the images apart."""
    model = context.run.path("teacher", "model")
    parts = [
        {path.name: sha256_file(path) for path in model_files(model)},
        teacher_contract(context.recipe).hash,
        context.recipe.distill.unlabelled_confidence,
        code_digest(_LABELLING_CODE),
        PIL.__version__,
    ]
    return digest(parts)


def _describe(labelled: LabelledImages, root: Path, out: Path) -> str:
    pixels = sum(sample.height * sample.width for sample in labelled.samples)
    share = sum(found.count for sample in labelled.samples for found in sample.classes) / pixels
    told = f"the teacher labelled {counted(len(labelled.samples), 'image')} of {root}"
    told += f", {100 * share:.0f} % of their pixels" if share < 1 else ""
    told += f"; {counted(labelled.known, 'image')} left out: the data set's own" if labelled.known else ""
    bad = len(labelled.skipped.samples) + len(labelled.skipped.general)
    return told + (f"; {counted(bad, 'problem')}: see {out / 'skipped.json'}" if bad else "")


def _shares(labelled: LabelledImages, dataset: Dataset) -> str:
    """Say which classes the labels are made of: a teacher that is fed wrongly sees one everywhere."""
    counts = count_class_pixels(labelled.samples, len(dataset.classes))
    ordered = sorted(range(len(counts)), key=lambda number: -counts[number])
    told = [f"{dataset.classes[number]} {100 * counts[number] / sum(counts):.0f} %" for number in ordered[:_TOLD]]
    others = sum(count > 0 for count in counts) - len(told)
    return ", ".join(told) + (f" and {others} other class{'' if others == 1 else 'es'}" if others > 0 else "")


def _draw(context: Context, dataset: Dataset, samples: Sequence[Sample], path: Path) -> None:
    """Draw some of the images with their labels, so that people see what the student is going to be taught."""
    from brd_edge.data.contact_sheet import Tile, draw_contact_sheet

    contract = replace(teacher_contract(context.recipe), resize=RESIZED)
    step = -(-len(samples) // _SHOWN)
    tiles = [
        Tile(
            sample.id,
            fit_frame(read_image(sample.image), contract),
            resize_class_map(read_label(sample), contract.height, contract.width),
        )
        for sample in samples[::step]
    ]
    title = f"{context.recipe.name}: images without labels as the teacher labels them"
    picture = draw_contact_sheet(tiles, title=title, classes=dataset.classes, palette=dataset.palette)
    with atomic_path(path) as temporary:
        picture.save(temporary, "PNG")
