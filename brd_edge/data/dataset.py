"""The canonical form of a data set: RGB images, and label PNGs of train ids.

After preparation nothing knows where a data set came from. Every sample has its native size; labels are
single-channel 8-bit PNGs whose pixels are train ids, with 255 for pixels that are ignored.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from itertools import chain
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from brd_edge.runtime.contract import InputContract
from brd_edge.runtime.errors import DataError
from brd_edge.runtime.frames import UNREADABLE, fit_frame, read_image

__all__ = [
    "IGNORE_ID",
    "ClassPixels",
    "Dataset",
    "Sample",
    "count_class_pixels",
    "find_class_pixels",
    "hold_out_split",
    "read_frame",
    "read_input",
    "read_label",
    "require_hold_out",
]

IGNORE_ID = 255
"""The train id of pixels that neither train nor count."""

_POINTS = 4


@dataclass(frozen=True)
class ClassPixels:
    """Where a class is in a label.

    Attributes:
        id: Train id, 0 to 254.
        count: Its pixels, at least 1.
        points: Row and column of a few of its pixels, spread over them from top to bottom.
    """

    id: int
    count: int
    points: tuple[tuple[int, int], ...]

    def to_json(self) -> list[int]:
        """Return `[id, count, row, column, row, column, …]`."""
        return [self.id, self.count, *chain.from_iterable(self.points)]

    @classmethod
    def from_json(cls, values: Sequence[int]) -> ClassPixels:
        """Make one from `to_json`'s list."""
        number, count, *flat = values
        return cls(number, count, tuple(zip(flat[::2], flat[1::2], strict=True)))


@dataclass(frozen=True)
class Sample:
    """One image and its label.

    Attributes:
        id: Name of the sample, unique in its split.
        image: 8-bit RGB image (JPEG or PNG) at native size.
        label: Single-channel 8-bit PNG of train ids at the same size, 255 ignored.
        height: Rows of both files, in pixels.
        width: Columns of both files, in pixels.
        classes: The classes in the label, by ascending id.
    """

    id: str
    image: Path
    label: Path
    height: int
    width: int
    classes: tuple[ClassPixels, ...]


@dataclass(frozen=True)
class Dataset:
    """A prepared data set.

    Attributes:
        name: Name of the data set.
        classes: Class names; the position is the train id.
        palette: One RGB colour (0 to 255) a class, for pictures.
        train: Samples to train on.
        val: Samples to validate on.
    """

    name: str
    classes: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    train: tuple[Sample, ...]
    val: tuple[Sample, ...]


def find_class_pixels(label: NDArray[np.uint8]) -> tuple[ClassPixels, ...]:
    """Count a label's classes and pick a few pixels of each.

    Args:
        label: uint8 (H, W) of train ids; 255 is left out.

    Returns:
        One entry a class, by ascending id.
    """
    flat = label.ravel()
    counts = np.bincount(flat, minlength=IGNORE_ID + 1)
    # stable: the pixels of a class stay in reading order
    order = np.argsort(flat, kind="stable")
    ends = np.cumsum(counts)
    found = []
    for number in np.flatnonzero(counts[:IGNORE_ID]).tolist():
        count = int(counts[number])
        steps = (2 * np.arange(_POINTS) + 1) * count // (2 * _POINTS)
        rows, columns = np.divmod(order[ends[number] - count + np.unique(steps)], label.shape[1])
        found.append(ClassPixels(number, count, tuple(zip(rows.tolist(), columns.tolist(), strict=True))))
    return tuple(found)


def count_class_pixels(samples: Sequence[Sample], classes: int) -> list[int]:
    """Return how many label pixels each of `classes` classes has in all samples together."""
    counts = [0] * classes
    for sample in samples:
        for found in sample.classes:
            counts[found.id] += found.count
    return counts


def hold_out_split(dataset: Dataset, pattern: str) -> Dataset:
    """Validate on some of the train samples instead of the validation split.

    Video data sets often cut their validation split out of the train sequences, which flatters
    overfitting; holding out whole sequences does not.

    Args:
        dataset: The data set as published; its validation split is left out of the result.
        pattern: Shell pattern of sample ids, for example `0001TP_*`.

    Returns:
        The data set whose validation split is the matching train samples, and whose train split is the rest.

    Raises:
        DataError: No train sample matches, or all do.
    """
    ids = [sample.id for sample in dataset.train]
    held = require_hold_out(ids, pattern)
    kept = tuple(sample for sample in dataset.train if sample.id not in held)
    return replace(dataset, train=kept, val=tuple(sample for sample in dataset.train if sample.id in held))


def require_hold_out(ids: Sequence[str], pattern: str) -> set[str]:
    """Return the ids that a pattern holds out, which must be some but not all of the train images'.

    Raises:
        DataError: None or all match; with some of the ids.
    """
    held = {name for name in ids if fnmatchcase(name, pattern)}
    if not 0 < len(held) < len(set(ids)):
        raise DataError(
            f"data.hold_out: {pattern!r} matches {len(held)} of {len(set(ids))} train images; "
            f"expected some but not all. Ids look like {', '.join(ids[:3])}"
        )
    return held


def read_frame(sample: Sample, contract: InputContract) -> NDArray[np.uint8]:
    """Read a sample's image at the contract's size.

    Args:
        sample: The sample to read.
        contract: Gives height and width; the resize rule is Pillow's anti-aliased `BILINEAR`.

    Returns:
        uint8 array (contract.height, contract.width, 3), RGB, 0 to 255, C-contiguous and writable.

    Raises:
        DataError: The image cannot be read.
    """
    try:
        return fit_frame(read_image(sample.image), contract)
    except DataError as error:
        raise DataError(f"{error}; prepare the data set again") from error


def read_input(sample: Sample, contract: InputContract) -> NDArray[np.uint8]:
    """Read a sample's image at the size at which it is segmented: the contract's, or its own in windows.

    Returns:
        uint8 array (H, W, 3), RGB, 0 to 255, C-contiguous and writable.

    Raises:
        DataError: The image cannot be read.
    """
    if not contract.slides:
        return read_frame(sample, contract)
    try:
        return read_image(sample.image)
    except DataError as error:
        raise DataError(f"{error}; prepare the data set again") from error


def read_label(sample: Sample) -> NDArray[np.uint8]:
    """Read a sample's label at its native size.

    Args:
        sample: The sample to read.

    Returns:
        uint8 array (sample.height, sample.width) of train ids, 255 ignored, C-contiguous and writable.

    Raises:
        DataError: The label cannot be read, is not a single-channel 8-bit image, or has another size.
    """
    try:
        with Image.open(sample.label) as opened:
            mode, label = opened.mode, np.array(opened)
    except UNREADABLE as error:
        raise DataError(f"{sample.label}: the label cannot be read ({error}); prepare the data set again") from error
    if mode not in {"L", "P"} or label.shape != (sample.height, sample.width):
        raise DataError(
            f"{sample.label}: expected a single-channel 8-bit label of {sample.width}x{sample.height} pixels, "
            f"got mode {mode} of {'x'.join(map(str, label.shape[1::-1]))}; prepare the data set again"
        )
    return label
