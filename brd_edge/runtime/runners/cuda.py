"""What the TensorRT runner asks of CUDA: checked calls, pinned memory, and work that is launched as one graph.

Not run on a GPU yet: none was at hand when this was written. The order of the calls is tested over the host's memory.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from brd_edge.runtime.errors import EngineError

__all__ = ["PinnedBuffer", "allocate_pinned", "call", "capture", "free_pinned"]


@dataclass(frozen=True)
class PinnedBuffer:
    """Memory of the host that a GPU copies from and to without staging it once more.

    Attributes:
        pointer: Its address.
        array: The same memory as uint8, flat.
    """

    pointer: int
    array: npt.NDArray[np.uint8]


def call(cudart: Any, name: str, *arguments: Any) -> Any:
    """Call a function of CUDA's runtime and return its value.

    Args:
        cudart: The module `cuda.bindings.runtime`.
        name: For example `"cudaMalloc"`.
        arguments: What it takes.

    Raises:
        EngineError: Its status says that it failed.
    """
    status, *values = getattr(cudart, name)(*arguments)
    if int(status) != 0:
        raise EngineError(f"{name} failed: {status.name}")
    return values[0] if values else None


def allocate_pinned(cudart: Any, size_bytes: int) -> PinnedBuffer:
    """Allocate pinned memory; `free_pinned` frees it, and the array must not be used after that.

    Raises:
        EngineError: CUDA has none left.
    """
    pointer = int(call(cudart, "cudaMallocHost", size_bytes))
    return PinnedBuffer(pointer, np.ctypeslib.as_array((ctypes.c_uint8 * size_bytes).from_address(pointer)))


def free_pinned(cudart: Any, buffer: PinnedBuffer) -> None:
    """Free pinned memory.

    Raises:
        EngineError: CUDA refuses.
    """
    call(cudart, "cudaFreeHost", buffer.pointer)


def capture(cudart: Any, stream: Any, work: Callable[[], None]) -> Any | None:
    """Record what `work` puts into a stream, to be launched at once with `cudaGraphLaunch`.

    Args:
        cudart: The module `cuda.bindings.runtime`.
        stream: The stream; nothing may run in it meanwhile.
        work: Puts its calls into the stream, and waits for nothing.

    Returns:
        A `cudaGraphExec_t`, to be freed with `cudaGraphExecDestroy`; None where the work cannot be captured, such as
        that of an engine with a loop: then it has to be done call by call.
    """
    mode = cudart.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
    call(cudart, "cudaStreamBeginCapture", stream, mode)
    failed = False
    try:
        work()
    except EngineError:
        failed = True
    try:
        # ends the capture also where the work failed; the stream is of no use before
        graph = call(cudart, "cudaStreamEndCapture", stream)
    except EngineError:
        return None
    try:
        return None if failed else call(cudart, "cudaGraphInstantiate", graph, 0)
    except EngineError:
        # a node that no graph takes, or no memory left for one
        return None
    finally:
        call(cudart, "cudaGraphDestroy", graph)
