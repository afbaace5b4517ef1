"""Runs engines with OpenVINO on the processor, on Intel's graphics, or on its NPU.

Graphics and NPU have not been run: none was at hand when this was written.
"""

from __future__ import annotations

import os
from collections.abc import Callable
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
    "CONTRACT_HASH_PATH",
    "INSTALL",
    "PRECISION_HINTS",
    "OpenVinoRunner",
    "compile_model",
    "open_openvino",
    "openvino_core",
]

INSTALL = 'pip install "brd-edge[openvino]"'

CONTRACT_HASH_PATH = ["framework", CONTRACT_HASH_KEY]
"""Where OpenVINO keeps the contract's hash of an ONNX graph's metadata."""

# so often in a row frames must lie at one place before they are read there
_IN_PLACE_AFTER = 8

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
    the same engine again is faster.

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
    return OpenVinoRunner(info, compiled.create_infer_request(), finish)


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
        return model, core.compile_model(model, device, settings)
    except Exception as error:
        raise EngineError(f"{path}: OpenVINO {openvino.__version__} cannot load it: {error}") from error


def _cache_directory() -> Path | None:
    """Return where compiled models are kept, or None where that cannot be written to."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    directory = base / "brd-edge" / "openvino"
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None
    return directory if os.access(directory, os.W_OK) else None


class OpenVinoRunner:
    """A loaded OpenVINO engine; see `brd_edge.runtime.engine.Runner`. Not thread-safe."""

    def __init__(self, info: EngineInfo, request: Any, finish: Finish) -> None:
        """Take an inference request over; `open_openvino` makes one."""
        self.info = info
        self._finish = finish
        self._request = request
        self._own: npt.NDArray[np.uint8] | None = None
        self._held: npt.NDArray[np.uint8] | None = None
        self._place: tuple[int, tuple[int, ...]] = (0, ())
        self._in_place = False
        self._times = 0

    def infer(self, frame: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """Segment one frame, uint8 (H, W, 3) RGB to uint8 (H, W), or several; see `Runner.infer`.

        The last frame is held until the next one comes: a buffer that is filled anew is then read in place.

        Raises:
            EngineError: The frame has another shape or dtype, the runner is closed, or OpenVINO failed.
        """
        return in_batches(frame, self.info, self._run)

    def _run(self, frames: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        request = self._request
        if request is None:
            raise EngineError("the runner is closed: open the engine again")
        try:
            self._put(frames)
            # class maps are copied, since the request writes into the same buffer again; logits are read in place
            output = request.infer(share_outputs=self.info.logits is not None)[0]
        except Exception as error:
            raise EngineError(f"OpenVINO failed on a frame: {error}") from error
        return self._finish(output)

    def _put(self, frames: npt.NDArray[np.uint8]) -> None:
        """Let the request read frames: in place where they lie in the memory of those before, else from a copy.

        A buffer that a camera or decoder fills again and again is bound once and never copied. Frames elsewhere each
        time are copied to one place: the first inference after another tensor is set takes longer by much more than
        a copy, so a buffer must have come several times in a row.

        Args:
            frames: uint8 (n, H, W, 3), contiguous.
        """
        place = frames.__array_interface__["data"][0], frames.shape
        # what lay at the last place is still held, so nothing else can lie there by chance
        again = self._held is not None and place == self._place
        self._times = self._times + 1 if again else 0
        if self._times >= _IN_PLACE_AFTER and not self._in_place and frames.flags.writeable:
            openvino = import_runtime("openvino", INSTALL)
            self._request.set_input_tensor(openvino.Tensor(frames, shared_memory=True))
            self._in_place = True
        if again and self._in_place:
            return
        if self._own is None or self._in_place or self._own.shape != frames.shape:
            openvino = import_runtime("openvino", INSTALL)
            tensor = openvino.Tensor(openvino.Type.u8, openvino.Shape(list(frames.shape)))
            self._request.set_input_tensor(tensor)
            self._own, self._in_place = tensor.data, False
        # only now: until here the request may have been bound to what was held
        self._held, self._place = frames, place
        np.copyto(self._own, frames)

    def bind(self, frame: npt.NDArray[np.uint8]) -> Callable[[], object]:
        """Return a call that runs the request alone, with its input tensor set; see `Runner.bind`.

        Raises:
            EngineError: The frame has another shape or dtype, or the runner is closed.
        """
        check_frame(frame, self.info.contract)
        request = self._request
        if request is None:
            raise EngineError("the runner is closed: open the engine again")
        self._put(np.ascontiguousarray(frame[None]))

        def call() -> npt.NDArray[Any]:
            request.infer(share_outputs=True)
            # the runtime's own buffer: nothing is copied
            output: npt.NDArray[Any] = request.get_output_tensor().data
            return output

        return call

    def close(self) -> None:
        """Free the inference request and the compiled model with it."""
        self._request = None
        self._own = self._held = None

    def __enter__(self) -> Self:
        """Return the runner itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the runner."""
        self.close()


def _ports(nodes: Any) -> list[Port]:
    return [
        (
            node.any_name,
            np.dtype(node.element_type.to_dtype()).name,
            tuple(side.get_length() if side.is_static else str(side) for side in node.partial_shape),
        )
        for node in nodes
    ]
