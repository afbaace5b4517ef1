"""Which of the processes that `torchrun` starts this one is."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Mapping

from brd_edge.runtime.errors import RunError

__all__ = ["end_with_launcher", "is_follower", "local_processes", "local_rank", "started_processes"]

_LOOK_S = 1.0


def started_processes(environment: Mapping[str, str] | None = None) -> tuple[int, int]:
    """Return this process's number, from 0, and how many there are; `(0, 1)` without `torchrun`.

    A `RANK` alone, which schedulers and earlier work leave behind, makes no process one of several.

    Args:
        environment: Variables; the process's own when not given.

    Raises:
        RunError: A variable is not what `torchrun` would have set.
    """
    found = os.environ if environment is None else environment
    count = _number(found, "WORLD_SIZE", default=1)
    if count < 1:
        raise RunError("WORLD_SIZE: expected a number of processes from 1, got 0; unset it to train in one process")
    if count == 1:
        return 0, 1
    _number(found, "LOCAL_RANK", default=0)
    rank = _number(found, "RANK", default=None)
    if rank >= count:
        raise RunError(
            f"RANK: expected a number below WORLD_SIZE, which is {count}, got {rank}; {_WAY_OUT.format('WORLD_SIZE')}"
        )
    return rank, count


def local_rank() -> int:
    """Return this process's number on its machine, from 0, which is that of its GPU; 0 without `torchrun`.

    Raises:
        RunError: As `started_processes`.
    """
    _, count = started_processes()
    return _number(os.environ, "LOCAL_RANK", default=0) if count > 1 else 0


def local_processes() -> int:
    """Return how many processes `torchrun` started on this machine; 1 without it.

    Raises:
        RunError: As `started_processes`.
    """
    _, count = started_processes()
    # another launcher may not say it: then at least the ones up to this one
    return _number(os.environ, "LOCAL_WORLD_SIZE", default=local_rank() + 1) if count > 1 else 1


def is_follower() -> bool:
    """Return whether `torchrun` started this process beside a first one; variables that say nothing do not."""
    try:
        rank, _ = started_processes()
    except RunError:  # said by the process that trains, or tries to
        return False
    return rank > 0


def end_with_launcher() -> None:
    """Tell this process to end (SIGTERM) when the one that started it, `torchrun`, is gone.

    Torchrun tells its processes to end when it is told to; killed, it tells nobody, and they would train to the last
    step in a run directory that nobody else can take. Processes that were started otherwise, by a shell that may be
    closed, stay as they are.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return
    launcher = os.getppid()

    def look() -> None:
        while os.getppid() == launcher:
            time.sleep(_LOOK_S)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=look, name="end with the launcher", daemon=True).start()


_WAY_OUT = "start several processes with torchrun, or unset {} to train in one"


def _number(environment: Mapping[str, str], name: str, *, default: int | None) -> int:
    text = environment.get(name)
    if text is None and default is not None:
        return default
    if text is None or not (text.isascii() and text.isdecimal()):
        came = "it is not set" if text is None else f"got {text!r}"
        others = name if name == "WORLD_SIZE" else f"{name} and WORLD_SIZE"
        raise RunError(f"{name}: expected a whole number, as torchrun sets it, {came}; {_WAY_OUT.format(others)}")
    return int(text)
