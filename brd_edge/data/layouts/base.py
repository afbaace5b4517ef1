"""What a layout is, and how a directory is found to be laid out as one.

A layout says how a published data set, or a user's own, lies on the disk: where its images and labels
are, what its classes are, and how its label files become train ids.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

__all__ = ["Classes", "Content", "Layout", "Palette", "Source", "find_base", "find_layout_problem", "make_palette"]

Classes = tuple[str, ...]
Palette = tuple[tuple[int, int, int], ...]

_SHOWN_ENTRIES = 10


@dataclass(frozen=True)
class Source:
    """An image and its label as the data set ships them; either may turn out to be missing.

    Attributes:
        id: Name of the pair, unique in its split; may hold `/` where the data set has sub-directories. Text that UTF-8
            can hold, whatever the names of the files are.
        image: Image file of any format that Pillow reads.
        label: Label file that the content's `read_label` reads.
    """

    id: str
    image: Path
    label: Path


@dataclass(frozen=True)
class Content:
    """What a layout found under a root.

    Attributes:
        classes: Class names; the position is the train id.
        palette: One RGB colour (0 to 255) a class.
        splits: The pairs of `"train"` and `"val"`, sorted by id or in the order of the official list.
        read_label: Reads one label file as uint8 train ids (height, width), 255 ignored; raises
            `DataError` naming the file when it cannot be read or holds an unknown id.
        problems: What is wrong with the directories or lists themselves, one sentence each.
        fingerprint: Changes when the same label files are to be read differently.
        val_problems: The same as `problems` of what the validation split alone needs.
    """

    classes: Classes
    palette: Palette
    splits: Mapping[str, tuple[Source, ...]]
    read_label: Callable[[Path], NDArray[np.uint8]]
    problems: tuple[str, ...] = ()
    fingerprint: str = ""
    val_problems: tuple[str, ...] = ()

    def without_val(self) -> Content:
        """Return the content as if the validation split held nothing, with nothing wrong in it."""
        return replace(self, splits={**self.splits, "val": ()}, val_problems=())


@dataclass(frozen=True)
class Layout:
    """How one data set lies on the disk.

    Attributes:
        name: Name in recipes.
        variable: Environment variable that recipes use for the root.
        title: Name for people.
        homepage: Where a user gets the data set.
        expected_tree: Drawing of the directories, for messages.
        required: Paths, relative to the base, that must exist.
        scan: Reads the base and returns its content; raises `DataError` when that cannot be done at all.
        bases: Where below the root the data set may begin, tried in this order.
    """

    name: str
    variable: str
    title: str
    homepage: str
    expected_tree: str
    required: tuple[str, ...]
    scan: Callable[[Path], Content] = field(repr=False)
    bases: tuple[str, ...] = (".",)


def find_base(layout: Layout, root: Path) -> Path | None:
    """Return the first of the layout's bases under `root` that holds all that is required, or None."""
    return next((base for base in _bases(layout, root) if not _missing(layout, base)), None)


def find_layout_problem(layout: Layout, root: Path | None) -> str | None:
    """Say why `root` cannot be used as this layout, quickly and without reading the data.

    Args:
        layout: The expected layout.
        root: The directory, or None when the user has not named one.

    Returns:
        None when all that is required exists; else a text that says which variable to set, where to get
        the data set, what is expected, and what was found instead.

    Example:
        >>> print(find_layout_problem(LAYOUTS["camvid"], None))
        CamVid: CAMVID_ROOT is not set. ...
    """
    cure = f"Let the recipe's data.root, or {layout.variable} where it is taken from there, be"
    if root is None:
        found, cure = f"{layout.variable} is not set", f"Set {layout.variable} to"
    elif not root.exists():
        found = f"{root} does not exist"
    elif not root.is_dir():
        found = f"{root} is not a directory"
    elif find_base(layout, root) is not None:
        return None
    else:
        base = min(_bases(layout, root), key=lambda base: len(_missing(layout, base)))
        missing = _missing(layout, base)
        found = f"{base} lacks {', '.join(missing)}; it holds {_entries(base)}"
        if all("val" in name for name in missing):
            cure = (
                "Without a validation split of its own, give it empty directories for one, and let data.hold_out name "
                f"the train images to validate on. {cure}"
            )
    tree = "\n".join(f"    {line}" for line in layout.expected_tree.strip("\n").splitlines())
    return (
        f"{layout.title}: {found}. {cure} the data set's directory "
        f"(get it from {layout.homepage}), which must look like this:\n{tree}"
    )


def make_palette(count: int) -> Palette:
    """Return `count` distinct colours, none of them black.

    These are entries 1 to `count` of the PASCAL VOC colour map, whose rule spreads the bits of the
    index over the channels, highest bit first (VOC development kit, `VOClabelcolormap`).

    Args:
        count: How many colours, 0 to 255.
    """
    return tuple(_voc_color(i) for i in range(1, count + 1))


def _voc_color(index: int) -> tuple[int, int, int]:
    red = green = blue = 0
    for bit in range(8):
        triple = index >> (3 * bit)
        red |= (triple & 1) << (7 - bit)
        green |= (triple >> 1 & 1) << (7 - bit)
        blue |= (triple >> 2 & 1) << (7 - bit)
    return red, green, blue


def _bases(layout: Layout, root: Path) -> list[Path]:
    """The bases that exist; the root itself stands in when none does."""
    return [root / base for base in layout.bases if (root / base).is_dir()] or [root]


def _missing(layout: Layout, base: Path) -> list[str]:
    return [name for name in layout.required if not (base / name).exists()]


def _entries(directory: Path) -> str:
    try:
        names = sorted(f"{path.name}/" if path.is_dir() else path.name for path in directory.iterdir())
    except OSError as error:
        return f"what cannot be listed ({error})"
    if not names:
        return "nothing"
    more = len(names) - _SHOWN_ENTRIES
    return ", ".join(names[:_SHOWN_ENTRIES]) + (f" and {more} more" if more > 0 else "")
