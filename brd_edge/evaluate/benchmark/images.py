"""`images.npz`: what was counted in each validation image, so that two runs can be compared image by image.

A NumPy archive without pickled objects: `ids`, the samples' ids as text (N,), and for `teacher`, `student` and each
measured engine's name int64 (N, 10, K) as `SegmentationMetrics.per_image` counts it, by class id: pixels in both masks,
pixels in either, the same two within the boundary regions, four counts of contour pixels, and two of regions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from brd_edge.evaluate.benchmark.archives import AGAIN, read_archive
from brd_edge.runtime.errors import DataError, RunError
from brd_edge.runtime.files import atomic_path

__all__ = ["FILE_NAME", "ImageCounts", "read_image_counts", "write_image_counts"]

FILE_NAME = "images.npz"

_IDS = "ids"


@dataclass(frozen=True)
class ImageCounts:
    """The counts of a run.

    Attributes:
        ids: The samples' ids (N), each once.
        counts: int64 (N, 10, K) by `"teacher"`, `"student"` and the names of engines.
    """

    ids: tuple[str, ...]
    counts: Mapping[str, NDArray[np.int64]]


def write_image_counts(path: Path, ids: Sequence[str], counts: Mapping[str, NDArray[np.int64]]) -> None:
    """Write the counts atomically.

    Args:
        path: The file, which ends in `.npz`.
        ids: The samples' ids (N), each once.
        counts: int64 (N, 10, K) by name; no name is `ids`.

    Raises:
        DataError: The counts are not of these images, or not of the same classes.
    """
    problem = _problem(ids, counts)
    if problem is not None:
        raise DataError(f"{path}: {problem}")
    arrays: dict[str, Any] = {_IDS: np.array(ids, np.str_), **counts}
    with atomic_path(path) as temporary:
        np.savez_compressed(temporary, **arrays)


def read_image_counts(path: Path) -> ImageCounts:
    """Read and check the counts of a run.

    Raises:
        RunError: The file is missing or damaged.

    Example:
        >>> read_image_counts(Path("runs/quickstart/images.npz")).counts["student"].shape
        (40, 10, 9)
    """
    arrays = read_archive(path)
    found = arrays.pop(_IDS, None)
    if found is None or found.ndim != 1 or found.dtype.kind != "U":
        got = "none" if found is None else f"{found.dtype} {found.shape}"
        raise RunError(f"{path}: {_IDS}: expected texts (N,), got {got}; {AGAIN}")
    ids = tuple(str(name) for name in found)
    problem = _problem(ids, arrays)
    if problem is not None:
        raise RunError(f"{path}: {problem}; {AGAIN}")
    return ImageCounts(ids, arrays)


def _problem(ids: Sequence[str], counts: Mapping[str, NDArray[Any]]) -> str | None:
    if not ids or len(set(ids)) != len(ids):
        return f"{_IDS}: expected at least one, each once, got {len(ids)}, of which {len(set(ids))} differ"
    wanted: tuple[int, ...] | None = None
    for name, array in counts.items():
        shape = wanted or (len(ids), 10, array.shape[-1] if array.ndim == 3 else 1)
        if array.dtype != np.int64 or array.shape != shape or array.min(initial=0) < 0:
            return f"{name}: expected int64 {shape} from 0, got {array.dtype} {array.shape}"
        wanted = array.shape
    return None
