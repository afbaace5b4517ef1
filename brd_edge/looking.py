"""The command `brd-edge data`: what a recipe's data set holds, what is odd about it, and how it looks in training."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from brd_edge.data.contact_sheet import Tile, draw_contact_sheet
from brd_edge.data.dataset import Dataset
from brd_edge.data.findings import load_skipped
from brd_edge.data.index import load_checksums, load_dataset
from brd_edge.data.overview import Overview, SplitOverview, describe_dataset
from brd_edge.evaluate.formats import one_line
from brd_edge.execution import execute
from brd_edge.recipe import Recipe, load_recipe
from brd_edge.run import Run, changed_settings
from brd_edge.runtime.errors import DataError, RunError
from brd_edge.runtime.files import atomic_path
from brd_edge.stages import STAGES
from brd_edge.stages.context import input_contract, teacher_contract

__all__ = ["look_at_data"]

_SHOWN_SIZES = 3
_IMAGES_MAX = 60


def look_at_data(arguments: Sequence[str]) -> int:
    """Prepare a recipe's data as its run does, describe it, and draw a contact sheet.

    Args:
        arguments: The command line after `brd-edge data`.

    Returns:
        The exit code.

    Raises:
        BrdEdgeError: The recipe or what was prepared cannot be read.
    """
    options = _parser().parse_args(arguments)
    if options.output is not None and options.output.suffix.lower() != ".png":
        raise DataError(f"{options.output}: expected a name that ends in .png")
    recipe = load_recipe(options.recipe, overrides=options.set)
    directory = options.run_dir or Path("runs") / recipe.name
    _require_same_data(directory, recipe)
    overrides = [word for override in options.set for word in ("--set", override)]
    # a look is no run that anybody would compare with others
    overrides += ["--set", "tracking=none"]
    code = execute([str(options.recipe), "--run-dir", str(directory), *overrides, "--until", "prepare"])
    if code:
        return code
    data = directory.resolve() / "data"
    dataset = load_dataset(data)
    # names of files need not be text
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")
    print(_format(dataset, describe_dataset(dataset, load_skipped(data), load_checksums(data))))
    path = options.output or data / "contact_sheet.png"
    _draw(recipe, dataset, path, options.images)
    print(f"\ncontact sheet: {path}")
    return 0


def _require_same_data(directory: Path, recipe: Recipe) -> None:
    """Refuse to look at other data in the directory of a run, whose models would no longer be of its data."""
    run, stage = Run(directory.resolve()), STAGES["prepare"]
    before = run.artifact("prepare")
    if before is None or run.artifact("teacher") is None:
        return
    changed = changed_settings(before.settings, stage.settings(recipe))
    if changed:
        raise RunError(
            f"{directory}: holds other data ({', '.join(changed)} differs); look at these with a --run-dir "
            "of their own, or run the recipe"
        )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="brd-edge data",
        description="Show what a recipe's data set holds, what is odd about it, and how it looks in training.",
    )
    parser.add_argument("recipe", type=Path, help="YAML file, for example pipelines/quickstart.yaml")
    parser.add_argument("--run-dir", type=Path, metavar="DIR", help="run directory (runs/<recipe name>)")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override a key of the recipe")
    parser.add_argument(
        "-o", "--output", type=Path, metavar="FILE.png", help="contact sheet (data/contact_sheet.png in the run)"
    )
    parser.add_argument("--images", type=_count, default=12, metavar="N", help="images on the contact sheet (12)")
    return parser


def _count(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= _IMAGES_MAX:
        raise argparse.ArgumentTypeError(f"expected 1 to {_IMAGES_MAX}, got {text!r}")
    return int(text)


def _format(dataset: Dataset, overview: Overview) -> str:
    from tabulate import tabulate

    rows = [
        [
            item.id,
            one_line(item.name),
            *(f"{100 * item.share[name]:.2f}" if item.images[name] else "none" for name in ("train", "val")),
            *(item.images[name] for name in ("train", "val")),
        ]
        for item in overview.classes
    ]
    headers = ["id", "class", "% of train pixels", "% of val", "train images", "val images"]
    table = tabulate(rows, headers, disable_numparse=True, colalign=["right", "left", *["right"] * 4])
    lines = [f"\n{dataset.name}, {len(dataset.classes)} classes", *(_format_split(split) for split in overview.splits)]
    lines += ["", table, ""]
    if not overview.problems:
        return "\n".join([*lines, "nothing odd was found"])
    # a name that is no text stays recognisable
    problems = (one_line(problem.encode(errors="backslashreplace").decode()) for problem in overview.problems)
    return "\n".join([*lines, "to look at:", *(f"  - {problem}" for problem in problems)])


def _format_split(split: SplitOverview) -> str:
    shown = _SHOWN_SIZES if len(split.sizes) > _SHOWN_SIZES + 1 else len(split.sizes)
    sizes = ", ".join(f"{width}x{height} ({count})" for height, width, count in split.sizes[:shown])
    more = len(split.sizes) - shown
    if more > 0:
        by_area = sorted(split.sizes, key=lambda size: size[0] * size[1])
        (low, left, _), (high, right, _) = by_area[0], by_area[-1]
        sizes += f" and {more} other sizes, from {left}x{low} to {right}x{high}"
    formats = ", ".join(f"{count} {name}" for name, count in split.formats.items())
    return f"{split.name}: {split.images} images, {sizes}; {formats}; {100 * split.ignored:.1f} % of the pixels ignored"


def _draw(recipe: Recipe, dataset: Dataset, path: Path, images: int) -> None:
    title = f"{recipe.name}: train images as the student is trained on them"
    sheet = draw_contact_sheet(
        _augmented(recipe, dataset, images), title=title, classes=dataset.classes, palette=dataset.palette
    )
    with atomic_path(path) as temporary:
        sheet.save(temporary, "PNG")


def _augmented(recipe: Recipe, dataset: Dataset, images: int) -> list[Tile]:
    """Return the first images that the student is trained on."""
    from brd_edge.data.loader import open_train_loader
    from brd_edge.distill.grid import reduce_batch
    from brd_edge.stages.training import augmentation_of

    contract, scale = input_contract(recipe), recipe.teacher.scale
    loader = open_train_loader(
        dataset.train,
        contract=teacher_contract(recipe),
        augmentation=augmentation_of(recipe.distill.train, contract, scale=scale),
        batch_size=min(recipe.distill.train.batch_size, len(dataset.train)),
        seed=recipe.seed,
        backend=recipe.data.loader,
        threads=recipe.data.threads,
        classes=len(dataset.classes),
    )
    tiles: list[Tile] = []
    try:
        while len(tiles) < images:
            batch = loader.next_batch()
            crops, labels = reduce_batch(batch.images, batch.labels, scale)
            pixels = 255 * (crops.permute(0, 2, 3, 1).numpy() * contract.std + contract.mean)
            for image, label, index in zip(pixels, labels.numpy(), batch.indices, strict=True):
                shown = np.clip(np.rint(image), 0, 255).astype(np.uint8)
                tiles.append(Tile(dataset.train[index].id, shown, label.astype(np.uint8)))
    finally:
        loader.close()
    return tiles[:images]
