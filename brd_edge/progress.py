"""Progress bars with the time left, for a terminal and for a log file."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO

from brd_edge.processes import is_follower

__all__ = ["progress_bar"]

_SECONDS_BETWEEN_LINES = 15.0


class _Lines:
    """A text stream that turns a bar's redraws into lines, not too many, for output that is not a terminal."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._last = time.monotonic()

    def write(self, text: str) -> int:
        line, now = text.strip("\r\n "), time.monotonic()
        # a bar is also redrawn when what stands beside it changes, such as the loss
        if line and now - self._last >= _SECONDS_BETWEEN_LINES:
            self._stream.write(line + "\n")
            self._last = now
        return len(text)

    def flush(self) -> None:
        self._stream.flush()


@contextmanager
def progress_bar(total: int, title: str, *, unit: str = "it", initial: int = 0) -> Iterator[Any]:
    """Yield a tqdm bar on stderr; where that is not a terminal, a line every 15 seconds, the first after as many.

    Args:
        total: Steps in all.
        title: What is going on.
        unit: Name of a step.
        initial: Steps that were done before.

    Yields:
        An object with `update(n)` and `set_postfix_str(text)`.
    """
    from tqdm import tqdm

    terminal = sys.stderr.isatty()
    with tqdm(
        total=total,
        desc=title,
        unit=unit,
        initial=initial,
        leave=False,
        # of several processes that train together, the first one shows how far they are
        disable=is_follower(),
        dynamic_ncols=terminal,
        ncols=None if terminal else 100,
        ascii=not terminal,
        file=sys.stderr if terminal else _Lines(sys.stderr),
        mininterval=0.2 if terminal else _SECONDS_BETWEEN_LINES,
        maxinterval=10.0 if terminal else _SECONDS_BETWEEN_LINES,
        smoothing=0.1,
    ) as bar:
        yield bar
