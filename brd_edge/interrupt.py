"""Stopping a run on Ctrl-C or SIGTERM without losing what was done."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from brd_edge.runtime.errors import InterruptedRunError

__all__ = ["Stop", "handle_signals", "listen_for_stop"]


class Stop:
    """Whether the run was asked to stop.

    Code that can save its state wraps itself in `cooperative` and asks `requested` between steps;
    everything else is interrupted by `InterruptedRunError` at once, as is anything on a second signal.
    """

    def __init__(self) -> None:
        """Start without a request."""
        self.requested = False
        self._cooperative = False

    @contextmanager
    def cooperative(self) -> Iterator[Stop]:
        """Within this block a first signal only sets `requested`."""
        self._cooperative = True
        try:
            yield self
        finally:
            self._cooperative = False

    def handle(self, number: int, _frame: FrameType | None) -> None:
        """Take a signal."""
        again, self.requested = self.requested, True
        if again or not self._cooperative:
            raise InterruptedRunError(f"stopped by {signal.Signals(number).name}; run it again to go on")


@contextmanager
def listen_for_stop() -> Iterator[Stop]:
    """Take SIGINT and SIGTERM while the block runs, then restore the handlers that were there."""
    stop = Stop()
    with handle_signals(stop.handle, signal.SIGINT, signal.SIGTERM):
        yield stop


@contextmanager
def handle_signals(handler: Callable[[int, FrameType | None], None], *numbers: signal.Signals) -> Iterator[None]:
    """Give signals to a handler while the block runs, then restore the handlers that were there."""
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)
