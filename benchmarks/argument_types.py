"""What the benchmarks' options take, with a message that says what was expected."""

from __future__ import annotations

import argparse
import json

from brd_edge.runtime.argument_types import count

__all__ = ["count", "override", "rounds", "share", "size"]


def size(text: str) -> tuple[int, int]:
    """Return height and width of `512x1024`."""
    height, _, width = text.partition("x")
    if not (height.isdecimal() and width.isdecimal() and int(height) and int(width)):
        raise argparse.ArgumentTypeError(f"expected HEIGHTxWIDTH such as 512x1024, came {text!r}")
    return int(height), int(width)


def override(key: str, value: str) -> str:
    """Return the `--set` of a recipe's key to a text, which YAML would else take for what it looks like.

    Example:
        >>> override("data.hold_out", "0001")
        'data.hold_out="0001"'
    """
    # YAML does not put a character together from JSON's surrogate pairs
    return f"{key}={json.dumps(value, ensure_ascii=False)}"


def rounds(text: str) -> int:
    """Return a whole number from 2: one measurement has no interval."""
    if not text.isdecimal() or int(text) < 2:
        raise argparse.ArgumentTypeError(f"expected a whole number from 2 (one round has no interval), came {text!r}")
    return int(text)


def share(text: str) -> float:
    """Return a number above 0 and below 1."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"expected a share above 0 and below 1, such as 0.1, came {text!r}")
    return value
