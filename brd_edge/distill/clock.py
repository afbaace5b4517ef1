"""Where the time of a training step goes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

__all__ = ["StepClock", "describe_step"]

_WAITING_SHARE = 0.2

_FIRST, _LAST = 3, 23


class StepClock:
    """Measures the parts of some steps after the first ones, which are slower than the rest.

    On CUDA every part is synchronised while it is measured; the other steps are synchronised once, where
    the losses are read.

    Example:
        >>> clock = StepClock(torch.device("cpu"))
        >>> with clock.part("teacher"):
        ...     features = teacher(images)
        >>> clock.next_step()
    """

    def __init__(self, device: torch.device) -> None:
        """Start before the first step.

        Args:
            device: Where the steps run.
        """
        self._device = device
        self._step = 0
        self._seconds: dict[str, float] = {}

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Add the block's time to a part; the parts must not lie in each other."""
        if not _FIRST <= self._step < _LAST:
            yield
            return
        self._synchronise()
        start = time.perf_counter()
        yield
        self._synchronise()
        self._seconds[name] = self._seconds.get(name, 0.0) + time.perf_counter() - start

    def next_step(self) -> dict[str, float] | None:
        """End a step.

        Returns:
            Once, after the last measured step: seconds a step by part.
        """
        self._step += 1
        if self._step != _LAST:
            return None
        return {name: seconds / (_LAST - _FIRST) for name, seconds in self._seconds.items()}

    def _synchronise(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)


def describe_step(parts: dict[str, float], *, on_gpu: bool) -> str:
    """Return one line that says how long a step is, which share every part has, and what to do about waiting."""
    total = sum(parts.values())
    shares = ", ".join(f"{name} {100 * seconds / total:.0f} %" for name, seconds in parts.items())
    # a processor that trains has no core to spare for more threads
    waits = on_gpu and parts.get("data", 0.0) > _WAITING_SHARE * total
    advice = "; it waits for images, which more data.threads would load faster" if waits else ""
    return f"{1000 * total:.0f} ms a step: {shares}{advice}"
