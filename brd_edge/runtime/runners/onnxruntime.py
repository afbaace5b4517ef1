"""Runs engines with ONNX Runtime on the processor, or by its CUDA provider on an NVIDIA GPU.

The CUDA provider has not been run: no GPU was at hand when this was written.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from brd_edge.runtime.engine import EngineInfo
from brd_edge.runtime.errors import EngineError, RuntimeMissingError
from brd_edge.runtime.runners.checks import Port, check_contract_hash, check_frame, import_runtime, in_batches
from brd_edge.runtime.runners.outputs import Finish, checked_output
from brd_edge.runtime.targets import TARGETS

if TYPE_CHECKING:
    from typing import Self  # novm

__all__ = ["OnnxRuntimeRunner", "open_onnxruntime", "provider_of"]

# ONNX's name of it
_DTYPES = {"float": "float32"}

# unasked, its products of float32 are rounded to the 10 bits of TF32
_PROVIDER_OPTIONS = {"CUDAExecutionProvider": {"use_tf32": "0"}}

INSTALL = 'pip install "brd-edge[onnxruntime]"'


def provider_of(info: EngineInfo, ort: Any) -> str:
    """Return the name of the execution provider that runs an engine.

    Args:
        info: The engine's sidecar.
        ort: The `onnxruntime` module.

    Raises:
        RuntimeMissingError: This ONNX Runtime has no such provider.
    """
    device = TARGETS[info.target].device if info.target in TARGETS else "CPU"
    provider = f"{device}ExecutionProvider"
    found = ort.get_available_providers()
    if provider not in found:
        raise RuntimeMissingError(
            f"ONNX Runtime {ort.__version__} has no {provider} here, only {', '.join(found)}: "
            "for an NVIDIA GPU, replace onnxruntime by onnxruntime-gpu"
        )
    return provider


def open_onnxruntime(directory: Path, info: EngineInfo, threads: int | None) -> OnnxRuntimeRunner:
    """Load an ONNX Runtime engine for its target's device.

    Args:
        directory: The engine's directory; its files are verified already.
        info: Its sidecar.
        threads: Threads within an operator; None leaves the choice to ONNX Runtime.

    Raises:
        RuntimeMissingError: ONNX Runtime is not installed, or has no provider for the device.
        EngineError: The model does not load, does not keep to the contract, or was exported for another one.
    """
    ort = import_runtime("onnxruntime", INSTALL)
    provider = provider_of(info, ort)
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads or 0
    options.inter_op_num_threads = 1
    # else its threads keep a core busy for milliseconds after each frame, at the expense of what comes next
    options.add_session_config_entry("session.force_spinning_stop", "1")
    path = directory / info.entry
    try:
        session = ort.InferenceSession(
            str(path), sess_options=options, providers=[(provider, _PROVIDER_OPTIONS.get(provider, {}))]
        )
    except Exception as error:
        raise EngineError(f"{path}: ONNX Runtime {ort.__version__} cannot load it: {error}") from error
    if session.get_providers()[0] != provider:
        # where CUDA does not start, ONNX Runtime goes on without it and only logs that
        raise RuntimeMissingError(f"{path}: ONNX Runtime {ort.__version__} cannot use {provider} on this machine")
    finish = checked_output(str(path), info, _ports(session.get_inputs()), _ports(session.get_outputs()))
    check_contract_hash(str(path), info.contract, session.get_modelmeta().custom_metadata_map)
    return OnnxRuntimeRunner(info, session, finish)


class OnnxRuntimeRunner:
    """A loaded ONNX Runtime engine; see `brd_edge.runtime.engine.Runner`. Not thread-safe."""

    def __init__(self, info: EngineInfo, session: Any, finish: Finish) -> None:
        """Take a session over; `open_onnxruntime` makes one."""
        self.info = info
        self._finish = finish
        self._session = session

    def infer(self, frame: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """Segment one frame, uint8 (H, W, 3) RGB to uint8 (H, W), or several; see `Runner.infer`.

        Raises:
            EngineError: The frame has another shape or dtype, the runner is closed, or ONNX Runtime failed.
        """
        return in_batches(frame, self.info, self._run)

    def _run(self, frames: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        if self._session is None:
            raise EngineError("the runner is closed: open the engine again")
        try:
            # ONNX Runtime makes a new output for every run, so the result is not shared with the session
            (output,) = self._session.run(None, {"image": frames})
        except Exception as error:
            raise EngineError(f"ONNX Runtime failed on a frame: {error}") from error
        return self._finish(output)

    def bind(self, frame: npt.NDArray[np.uint8]) -> Callable[[], object]:
        """Return a call that runs the session alone, with input and output bound; see `Runner.bind`.

        Raises:
            EngineError: The frame has another shape or dtype, or the runner is closed.
        """
        session = self._session
        check_frame(frame, self.info.contract)
        if session is None:
            raise EngineError("the runner is closed: open the engine again")
        binding = session.io_binding()
        ((name, kind, shape),) = _ports(session.get_outputs())
        if TARGETS[self.info.target].device == "CUDA":
            return _bound_on_gpu(session, binding, frame, name)
        binding.bind_cpu_input("image", np.ascontiguousarray(frame[None]))
        output = np.empty([1, *(int(str(side)) for side in shape[1:])], np.dtype(_DTYPES.get(kind, kind)))
        binding.bind_output(name, "cpu", 0, output.dtype.type, output.shape, output.ctypes.data)

        def call() -> npt.NDArray[Any]:
            session.run_with_iobinding(binding)
            # named here, so that the buffer lives as long as the call does
            return output

        return call

    def close(self) -> None:
        """Free the session."""
        self._session = None

    def __enter__(self) -> Self:
        """Return the runner itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the runner."""
        self.close()


def _bound_on_gpu(session: Any, binding: Any, frame: npt.NDArray[np.uint8], output: str) -> Callable[[], object]:
    ort = import_runtime("onnxruntime", INSTALL)
    image = ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(frame[None]), "cuda", 0)
    binding.bind_ortvalue_input("image", image)
    binding.bind_output(output, "cuda", 0)

    def call() -> object:
        session.run_with_iobinding(binding)
        binding.synchronize_outputs()
        return image

    return call


def _ports(nodes: Any) -> list[Port]:
    return [(node.name, node.type.removeprefix("tensor(").removesuffix(")"), tuple(node.shape)) for node in nodes]
