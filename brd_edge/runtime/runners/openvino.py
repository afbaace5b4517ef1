"""Runs engines with OpenVINO on the processor, on Intel's graphics, or on its NPU.

Graphics and NPU have not been run: none was at hand when this was written.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from brd_edge.runtime.engine import EngineInfo
from brd_edge.runtime.errors import EngineError, RuntimeMissingError
from brd_edge.runtime.runners.checks import (
    CONTRACT_HASH_KEY,
    Port,
    check_contract_hash,
    check_frame,
    import_runtime,
    in_batches,
)
from brd_edge.runtime.runners.outputs import Finish, checked_output
from brd_edge.runtime.targets import TARGETS

if TYPE_CHECKING:
    from typing import Self  # novm

__all__ = [
    "CACHE_BYTES_MAX",
    "CONTRACT_HASH_PATH",
    "INSTALL",
    "NO_CACHE",
    "PRECISION_HINTS",
    "OpenVinoRunner",
    "compile_model",
    "open_openvino",
    "openvino_core",
]

INSTALL = 'pip install "brd-edge[openvino]"'

NO_CACHE = "BRD_EDGE_NO_MODEL_CACHE"
"""Environment variable that, set to anything, keeps OpenVINO from keeping and reading compiled models."""

CACHE_BYTES_MAX = 1 << 30
"""What the compiled models in a cache may take together; each is about as large as its engine."""
_IN_USE_S = 600.0
"""Seconds for which a compiled model that was used stays in any case: another process may be about to read it."""

CONTRACT_HASH_PATH = ["framework", CONTRACT_HASH_KEY]
"""Where OpenVINO keeps the contract's hash of an ONNX graph's metadata."""

# On a CPU with BF16 OpenVINO's own choice is bf16: what is called fp32 must ask for it. Where a model is
# quantised, the hint is for what is not.
PRECISION_HINTS = {
    "fp32": "f32",
    "fp16": "f16",
    "bf16": "bf16",
    "int8": "f32",
    "int8-fp16": "f16",
    "int8-bf16": "bf16",
}
"""From an engine's precision to what OpenVINO is told to compute in."""


@cache
def openvino_core() -> Any:
    """Return OpenVINO's `Core`: one for the process, which lives as long as it does.

    Its CPU plugin moves the thread's alternate signal stack to memory of its own and puts it back when the core
    goes. Of two that do not end in the order in which they began, the later one puts back what the earlier one has
    freed, and the next signal that Python handles there, such as Ctrl-C, ends the process (seen with 2026.4).

    Raises:
        RuntimeMissingError: OpenVINO is not installed.
    """
    return import_runtime("openvino", INSTALL).Core()


def open_openvino(directory: Path, info: EngineInfo, threads: int | None) -> OpenVinoRunner:
    """Load an OpenVINO engine for its target's device, one frame at a time.

    What OpenVINO compiled is kept in this account's cache (`XDG_CACHE_HOME`, else `~/.cache`), so that opening
    the same engine again is faster, up to `CACHE_BYTES_MAX` in all; unless `BRD_EDGE_NO_MODEL_CACHE` is set, because on
    a processor some engines may be a little slower when they come out of it.

    Args:
        directory: The engine's directory; its files are verified already.
        info: Its sidecar.
        threads: Threads for inference; None leaves the choice to OpenVINO. Has no meaning but on a processor.

    Raises:
        RuntimeMissingError: OpenVINO is not installed, or the target's device is not here.
        EngineError: The model does not load, does not keep to the contract, or was exported for another one.
    """
    model, compiled = _load(directory, info, threads, _cache_directory())
    what = str(directory / info.entry)
    finish = checked_output(what, info, _ports(compiled.inputs), _ports(compiled.outputs))
    known = model.has_rt_info(CONTRACT_HASH_PATH)
    metadata = {CONTRACT_HASH_KEY: model.get_rt_info(CONTRACT_HASH_PATH).astype(str)} if known else {}
    check_contract_hash(what, info.contract, metadata)
    fixed = compiled.outputs[0].partial_shape.is_static
    return OpenVinoRunner(info, compiled.create_infer_request(), finish, fixed_output=fixed)


def compile_model(directory: Path, info: EngineInfo, threads: int | None, *, cache: Path | None = None) -> Any:
    """Return OpenVINO's compiled model of an engine; see `open_openvino`."""
    return _load(directory, info, threads, cache)[1]


def _load(directory: Path, info: EngineInfo, threads: int | None, cache: Path | None) -> tuple[Any, Any]:
    """Return an engine's model as it was read, and compiled."""
    if info.precision not in PRECISION_HINTS:
        raise EngineError(f"openvino: expected a precision of {sorted(PRECISION_HINTS)}, got {info.precision!r}")
    weights = str(Path(info.entry).with_suffix(".bin"))
    if weights not in info.files:
        # OpenVINO would take whatever lies beside the .xml, and nobody has verified that
        raise EngineError(f"{directory}: expected {weights} among the sidecar's files {sorted(info.files)}; rebuild")
    openvino = import_runtime("openvino", INSTALL)
    settings: dict[str, Any] = {
        "INFERENCE_PRECISION_HINT": PRECISION_HINTS[info.precision],
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
    }
    device = TARGETS[info.target].device if info.target in TARGETS else "CPU"
    if threads is not None and device == "CPU":
        settings["INFERENCE_NUM_THREADS"] = threads
    if cache is not None:
        settings["CACHE_DIR"] = str(cache)
    path = directory / info.entry
    core = openvino_core()
    found = sorted({name.split(".")[0] for name in core.available_devices})
    if device not in found:
        raise RuntimeMissingError(f"OpenVINO finds no {device} on this machine, only {', '.join(found)}")
    try:
        model = core.read_model(str(path), str(directory / weights))
        compiled = core.compile_model(model, device, settings)
    except Exception as error:
        raise EngineError(f"{path}: OpenVINO {openvino.__version__} cannot load it: {error}") from error
    if cache is not None:
        _trim_cache(cache)
    return model, compiled


def _cache_directory() -> Path | None:
    """Return where compiled models are kept, or None where that is not wanted or cannot be written to."""
    if os.environ.get(NO_CACHE):
        return None
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    directory = base / "brd-edge" / "openvino"
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None
    return directory if os.access(directory, os.W_OK) else None


def _trim_cache(directory: Path) -> None:
    """Remove compiled models, first those that were not used for longest, until the rest is within the limit.

    OpenVINO never removes one, and every engine that is built anew adds another. Other processes may trim the same
    cache meanwhile, or have removed it; what they have opened stays readable for them, and what is missed is compiled
    again. Where the file system does not keep times of reading, what was written last stays.
    """
    found = []
    with suppress(OSError):
        for path in directory.glob("*.blob"):
            with suppress(OSError):
                state = path.stat()
                found.append((max(state.st_mtime, state.st_atime), state.st_size, path))
    total, recent = sum(size for _, size, _ in found), time.time() - _IN_USE_S
    for used, size, path in sorted(found):
        if total <= CACHE_BYTES_MAX or used > recent:
            return
        with suppress(OSError):
            path.unlink(missing_ok=True)
            total -= size


class OpenVinoRunner:
    """A loaded OpenVINO engine; see `brd_edge.runtime.engine.Runner`. Not thread-safe."""

    def __init__(self, info: EngineInfo, request: Any, finish: Finish, *, fixed_output: bool) -> None:
        """Take an inference request over; `open_openvino` makes one.

        Args:
            info: The engine's sidecar.
            request: The request.
            finish: Makes class maps of its output.
            fixed_output: Whether the output has always the same shape, and with it the same memory.
        """
        self.info = info
        self._finish = finish
        self._request = request
        self._fixed_output = fixed_output
        self._output: npt.NDArray[Any] | None = None
        self._frames: npt.NDArray[np.uint8] | None = None
        self._last: npt.NDArray[np.uint8] | None = None
        self._tensor = import_runtime("openvino", INSTALL).Tensor

    def infer(self, frame: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """Segment one frame, uint8 (H, W, 3) RGB to uint8 (H, W), or several; see `Runner.infer`.

        Frames are read where they lie; the last ones are held until the next come.

        Raises:
            EngineError: The frame has another shape or dtype, the runner is closed, or OpenVINO failed.
        """
        if self._last is not None and frame is self._last:
            # a camera's buffer that is filled again and again: it was looked at, and the request reads it already. An
            # inference leaves the processor's caches cold, so that every line of Python counts
            only: npt.NDArray[np.uint8] = self._segmented()[0]
            return only
        self._last = None
        class_maps = in_batches(frame, self.info, self._run)
        in_place = frame.ndim == 3 and self._frames is not None and _place(frame)[0] == _place(self._frames)[0]
        self._last = frame if in_place else None
        return class_maps

    def _run(self, frames: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        if self._request is None:
            raise EngineError("the runner is closed: open the engine again")
        try:
            self._put(frames)
        except Exception as error:
            raise EngineError(f"OpenVINO refused a frame: {error}") from error
        return self._segmented()

    def _segmented(self) -> npt.NDArray[np.uint8]:
        """Segment the frames that were put, to class maps uint8 (n, H, W) in memory of their own."""
        try:
            output = self._inferred()
        except Exception as error:
            raise EngineError(f"OpenVINO failed on a frame: {error}") from error
        # class maps are copied, since the request writes into the same buffer again; logits are read in place
        return self._finish(output.copy() if self.info.logits is None else output)

    def _inferred(self) -> npt.NDArray[Any]:
        """Run the request and return its output in the runtime's own buffer."""
        # starting it and waiting for it takes less time than `infer`, which makes a dictionary of outputs at every call
        self._request.start_async()
        self._request.wait()
        output = self._output
        if output is None:
            output = self._request.get_output_tensor().data
            self._output = output if self._fixed_output else None
        return output

    def _put(self, frames: npt.NDArray[np.uint8]) -> None:
        """Let the request read frames, uint8 (n, H, W, 3) and contiguous, where they lie: copying them takes longer."""
        if self._frames is not None and _place(frames) == _place(self._frames):
            # a camera's buffer that is filled again and again; it cannot be other memory, since it is held
            return
        # OpenVINO does not share what must not be written to
        frames = frames if frames.flags.writeable else frames.copy()
        self._request.set_input_tensor(self._tensor(frames, shared_memory=True))
        # the request points to them until the next ones come
        self._frames = frames

    def bind(self, frame: npt.NDArray[np.uint8]) -> Callable[[], object]:
        """Return a call that runs the request alone, with its input tensor set; see `Runner.bind`.

        Raises:
            EngineError: The frame has another shape or dtype, or the runner is closed.
        """
        check_frame(frame, self.info.contract)
        if self._request is None:
            raise EngineError("the runner is closed: open the engine again")
        self._put(np.ascontiguousarray(frame[None]))
        self._last = None
        return self._bound

    def _bound(self) -> npt.NDArray[Any]:
        if self._request is None:
            raise EngineError("the runner is closed: open the engine again")
        return self._inferred()

    def close(self) -> None:
        """Free the inference request and the compiled model with it."""
        self._request = self._output = self._frames = self._last = None

    def __enter__(self) -> Self:
        """Return the runner itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the runner."""
        self.close()


def _place(frames: npt.NDArray[np.uint8]) -> tuple[int, tuple[int, ...]]:
    """Return where contiguous frames lie in memory, and their shape."""
    return frames.__array_interface__["data"][0], frames.shape


def _ports(nodes: Any) -> list[Port]:
    return [
        (
            node.any_name,
            np.dtype(node.element_type.to_dtype()).name,
            tuple(side.get_length() if side.is_static else str(side) for side in node.partial_shape),
        )
        for node in nodes
    ]
