"""What the processes that `torchrun` starts beside the first one do: they train with it, and nothing else.

The first process runs the recipe as if it were alone. Where it trains, it tells the others which stage
and which fingerprint; they run the same stage's code on their part of every batch, and write nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from brd_edge.interrupt import Stop
from brd_edge.processes import end_with_launcher, is_follower, started_processes
from brd_edge.recipe import Recipe
from brd_edge.run import Run
from brd_edge.runtime.errors import EngineError, GateError, RunError
from brd_edge.stages import STAGES
from brd_edge.stages.context import Context, training_device

__all__ = ["follow", "is_follower", "is_follower_lost", "leading"]


def is_follower_lost(error: BaseException) -> bool:
    """Return whether an error only says that another process of the training is gone."""
    words = ("Connection closed by peer", "Connection reset", "NCCL", "gloo")
    if not isinstance(error, RuntimeError) or not any(word in str(error) for word in words):
        return False
    try:
        _, count = started_processes()
    except RunError:
        return False
    return count > 1


@contextmanager
def leading(recipe: Recipe) -> Iterator[None]:
    """Within this block the other processes, if there are any, follow this first one.

    Raises:
        RunError: Who they are cannot be read from the environment.
    """
    _, count = started_processes()
    if count == 1:
        yield
        return
    from brd_edge.distill.distributed import broadcast_object, process_group

    end_with_launcher()
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
    end_with_launcher()
    with process_group(training_device(recipe)):
        while (order := broadcast_object()) is not None:
            context = Context(recipe, run, {}, stop, lambda _text: None, "", order["key"])
            STAGES[order["stage"]].work(context)
    return 0
