"""Words at regular intervals from work that gives none of its own, such as an engine's build."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

__all__ = ["heartbeat"]


@contextmanager
def heartbeat(what: str, say: Callable[[str], None], *, every_s: float = 10.0) -> Iterator[None]:
    """Say that something begins, every so often that it goes on, and how long it took.

    Args:
        what: What is done, for example `"openvino-fp32: building"`.
        say: Is given the lines, from another thread while the work goes on.
        every_s: Seconds between two lines.
    """
    start, done = time.monotonic(), threading.Event()
    say(what)

    def tell() -> None:
        # whoever listened may have gone; that is for the work itself to notice
        with suppress(Exception):
            while not done.wait(every_s):
                say(f"{what}, {time.monotonic() - start:.0f} s so far")

    thread = threading.Thread(target=tell, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
    say(f"{what}: done in {time.monotonic() - start:.0f} s")
