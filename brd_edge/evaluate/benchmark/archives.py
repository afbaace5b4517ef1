"""NumPy archives of a run, read without pickle."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from brd_edge.runtime.errors import RunError

__all__ = ["AGAIN", "read_archive"]

AGAIN = "run the benchmark stage again with --from benchmark"
# what NumPy and zipfile raise on files that are damaged, or are something else
_UNREADABLE = (OSError, ValueError, TypeError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error)


def read_archive(path: Path) -> dict[str, NDArray[Any]]:
    """Return the arrays of an `.npz` file by name.

    Raises:
        RunError: The file is missing or damaged.
    """
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except FileNotFoundError:
        raise RunError(f"{path}: not found; {AGAIN}, which writes it") from None
    except _UNREADABLE as error:
        raise RunError(f"{path}: not a readable NumPy archive ({error}); {AGAIN}") from None
