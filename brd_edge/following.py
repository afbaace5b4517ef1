"""What the processes that `torchrun` starts beside the first one do: they train with it, and nothing else.

The first process runs the recipe as if it were alone. Where it trains, it tells the others which stage
and which fingerprint; they run the same stage's code on their part of every batch, and write nothing.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from brd_edge.interrupt import Stop
from brd_edge.recipe import Recipe
from brd_edge.run import Run
from brd_edge.runtime.errors import EngineError, GateError
from brd_edge.stages import STAGES
from brd_edge.stages.context import Context, training_device

__all__ = ["follow", "is_follower", "is_follower_lost", "leading"]


def is_follower() -> bool:
    """Return whether `torchrun` started this process beside a first one."""
    return int(os.environ.get("RANK", "0")) > 0


def is_follower_lost(error: BaseException) -> bool:
    """Return whether an error only says that another process of the training is gone."""
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    words = ("Connection closed by peer", "Connection reset", "NCCL", "gloo")
    return several and isinstance(error, RuntimeError) and any(word in str(error) for word in words)


@contextmanager
def leading(recipe: Recipe) -> Iterator[None]:
    """Within this block the other processes, if there are any, follow this first one."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield
        return
    from brd_edge.distill.distributed import broadcast_object, process_group

    with process_group(training_device(recipe)):
        try:
            yield
        except (GateError, EngineError):
            # everything has been done; after any other error torchrun ends the others
            broadcast_object(None)
            raise
        broadcast_object(None)


def follow(recipe: Recipe, directory: Path, stop: Stop) -> int:
    """Train whenever the first process does, until it has finished.

    Args:
        recipe: The same recipe.
        directory: The run directory, on a file system that all processes share.
        stop: Whether the user asked to stop.

    Returns:
        The exit code.
    """
    from brd_edge.distill.distributed import broadcast_object, process_group

    run = Run(directory.resolve())
    with process_group(training_device(recipe)):
        while (order := broadcast_object()) is not None:
            context = Context(recipe, run, {}, stop, lambda _text: None, "", order["key"])
            STAGES[order["stage"]].work(context)
    return 0
