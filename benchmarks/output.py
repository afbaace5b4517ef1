"""Where a benchmark's result goes: checked before anything is measured, printed before it is written."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from brd_edge.runtime.files import write_text_atomic

__all__ = ["output_file", "publish"]


def output_file(text: str) -> Path:
    """Return the path of `--output`, whose directory is made where it is missing.

    Raises:
        argparse.ArgumentTypeError: No file can be written there.
    """
    path = Path(text)
    if path.is_dir():
        raise argparse.ArgumentTypeError(f"expected a file such as {path / 'result.json'}, came the directory {text}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # permissions alone do not tell: of a file system that is read-only, or for root
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise argparse.ArgumentTypeError(
            f"nothing can be written to {path.parent} ({error.strerror}); give a file in a directory of yours"
        ) from None
    return path


def publish(result: Mapping[str, Any], output: Path | None) -> int:
    """Print a result as one line of JSON, then write it to a file if one is given.

    Args:
        result: What was measured; `benchmark` is the command's name.
        output: The file.

    Returns:
        The exit code: 1 if the file could not be written.
    """
    # first: what took minutes to measure must outlive a disk that is full by now
    print(json.dumps(result), flush=True)
    if output is None:
        return 0
    try:
        write_text_atomic(output, json.dumps(result, indent=1) + "\n")
    except OSError as error:
        why = f"{output}: cannot be written ({error.strerror}); the result is the line of JSON that was printed"
        print(f"{result['benchmark']}: error: {why}", file=sys.stderr)
        return 1
    return 0
