"""What this machine has beyond a processor, for tests that do one thing with it and another without."""

from __future__ import annotations

from functools import cache

from brd_edge.runtime.errors import RuntimeMissingError
from brd_edge.runtime.runners.tensorrt import require_gpu


@cache
def gpu() -> int | None:
    """Return the NVIDIA GPU's compute capability, 10 x major + minor, or None where there is no GPU."""
    try:
        return require_gpu()
    except RuntimeMissingError:
        return None
