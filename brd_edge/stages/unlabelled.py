"""What the teacher makes of images without labels, before the student learns from it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import PIL
from numpy.typing import NDArray

from brd_edge.data.dataset import Dataset, Sample, read_label
from brd_edge.data.index import load_checksums
from brd_edge.data.unlabelled import find_images, label_images, load_labelled
from brd_edge.progress import progress_bar
from brd_edge.recipe import Recipe
from brd_edge.run import code_digest, digest, stat_digest
from brd_edge.runtime.contract import RESIZED
from brd_edge.runtime.errors import DataError, InterruptedRunError
from brd_edge.runtime.files import atomic_path, sha256_file
from brd_edge.runtime.frames import fit_frame, read_image, resize_class_map, segment_image
from brd_edge.stages.context import Context, teacher_contract, training_device

if TYPE_CHECKING:
    from torch import nn

__all__ = [
    "UNLABELLED_CODE",
    "missing_images",
    "refuse_run_inside",
    "unlabelled_files",
    "unlabelled_plan",
    "with_teacher_labels",
]

UNLABELLED_CODE = (
    "data/unlabelled.py",
    "data/_convert.py",
    "data/_images.py",
    "data/_journal.py",
    "stages/unlabelled.py",
)

_DIRECTORY = "unlabelled"
_SHOWN = 12


def unlabelled_files(recipe: Recipe) -> dict[str, str]:
    """Return a digest of the images without labels, by names, sizes and times."""
    root = _root(recipe)
    return {"unlabelled images": stat_digest(find_images(root)[0])} if root is not None and root.is_dir() else {}


def unlabelled_plan(recipe: Recipe) -> str:
    """Return what a plan tells about the images without labels; nothing where there are none."""
    root = _root(recipe)
    if root is None or not root.is_dir():
        return ""
    count = len(find_images(root)[0])
    return f", also on {count} image{'' if count == 1 else 's'} of {root} that the teacher labels"


def missing_images(recipe: Recipe) -> list[str]:
    """Return that the directory of images without labels is not there or empty, if so."""
    root = _root(recipe)
    if root is None:
        return []
    if not root.is_dir():
        what = "is a file" if root.exists() else "does not exist"
        return [f"distill.unlabelled: {root} {what}; expected a directory of images"]
    return [] if find_images(root)[0] else [f"distill.unlabelled: there is no image in {root} or below it"]


def refuse_run_inside(context: Context) -> None:
    """Refuse images among which the run's own pictures would be taken for more of them.

    Raises:
        DataError: The run directory lies in the directory of images.
    """
    root = _root(context.recipe)
    if root is not None and context.run.directory.is_relative_to(root.resolve()):
        raise DataError(
            f"distill.unlabelled: the run directory {context.run.directory} lies within {root}, so that its own "
            "pictures would be taken for images: choose another --run-dir"
        )


def with_teacher_labels(context: Context, teacher: nn.Module, dataset: Dataset) -> Dataset:
    """Return a data set whose train split also holds the recipe's images without labels, as the teacher labels them.

    Labels are written below `unlabelled/` of the run directory, with a picture of some. Only the first of several
    processes labels.

    Args:
        context: Of the stage.
        teacher: The network, on the training's device.
        dataset: As prepared.

    Raises:
        DataError: The images cannot be used.
        InterruptedRunError: The user asked to stop.
    """
    from brd_edge.distill.distributed import rank

    root = _root(context.recipe)
    if root is None:
        return dataset
    out, maker = context.run.path(_DIRECTORY), _maker(context)
    if rank() == 0:
        _label(context, teacher, dataset, root, out, maker)
    return replace(dataset, train=(*dataset.train, *load_labelled(out, maker)))


def _root(recipe: Recipe) -> Path | None:
    """Return the directory of images without labels that a recipe names, if any."""
    given = recipe.distill.unlabelled
    return Path(given).expanduser().absolute() if given else None


def _maker(context: Context) -> str:
    """Return what decides the labels, the images apart."""
    parts = [
        sha256_file(context.run.path("teacher", "model", "model.safetensors")),
        teacher_contract(context.recipe).hash,
        context.recipe.distill.unlabelled_confidence,
        code_digest(("models", "evaluate/accuracy.py", "runtime/frames.py", "runtime/windows.py", *UNLABELLED_CODE)),
        PIL.__version__,
    ]
    return digest(parts)


def _label(context: Context, teacher: nn.Module, dataset: Dataset, root: Path, out: Path, maker: str) -> None:
    from brd_edge.evaluate.accuracy import model_predictor

    recipe, contract = context.recipe, teacher_contract(context.recipe)
    predict = model_predictor(
        teacher.eval(), contract, training_device(recipe), confidence_min=recipe.distill.unlabelled_confidence
    )

    def segment(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        if context.stop.requested:
            raise InterruptedRunError("stopped while the teacher was labelling; run it again to go on")
        return segment_image(predict, image, contract)

    checksums = load_checksums(context.run.path("data"))
    with progress_bar(len(find_images(root)[0]), "unlabelled", unit="image") as bar:
        found = label_images(
            root,
            out,
            segment=segment,
            maker=maker,
            known={found for split in checksums.values() for found in split.values()},
            threads=recipe.data.threads,
            skip_bad=recipe.data.on_bad_sample == "skip",
            progress=lambda done, _total: bar.update(done - bar.n),
        )
    sheet = _draw(context, dataset, found.samples, out)
    own = f"; {found.known} more are the data set's own and are left out" if found.known else ""
    bad = f"; {len(found.skipped.samples)} cannot be used, see {out / 'skipped.json'}" if found.skipped else ""
    context.say(f"      the teacher labelled {len(found.samples)} images of {root}, some of them in {sheet}{own}{bad}")


def _draw(context: Context, dataset: Dataset, samples: tuple[Sample, ...], out: Path) -> Path:
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
    path = out / "contact_sheet.png"
    with atomic_path(path) as temporary:
        picture.save(temporary, "PNG")
    return path
