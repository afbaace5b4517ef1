"""What command lines take, beside plain text."""

from __future__ import annotations

import argparse

from brd_edge.runtime.engine import THREADS_MAX

__all__ = ["count", "positive", "threads"]


def count(text: str) -> int:
    """Return a whole number from 1.

    Raises:
        argparse.ArgumentTypeError: It is something else.
    """
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1, got {text!r}")
    return int(text)


def threads(text: str) -> int:
    """Return a number of threads that a machine may have.

    Raises:
        argparse.ArgumentTypeError: It is something else.
    """
    found = count(text)
    if found > THREADS_MAX:
        raise argparse.ArgumentTypeError(f"expected at most {THREADS_MAX}, got {text}")
    return found


def positive(text: str) -> float:
    """Return a finite number above 0.

    Raises:
        argparse.ArgumentTypeError: It is something else.
    """
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"expected a number above 0, got {text!r}")
    return value
