"""Runs engines with OpenVINO on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from brd_edge.runtime.engine import EngineInfo
from brd_edge.runtime.errors import EngineError
from brd_edge.runtime.runners.checks import Port, check_class_map, check_frame, check_interface, import_runtime

if TYPE_CHECKING:
    from typing import Self  # novm

__all__ = ["OpenVinoRunner", "compile_model", "open_openvino"]

INSTALL = 'pip install "brd-edge[openvino]"'

# On a CPU with BF16 OpenVINO's own choice is bf16: what is called fp32 must ask for it.
PRECISION_HINTS = {"fp32": "f32"}


def open_openvino(directory: Path, info: EngineInfo, threads: int | None) -> OpenVinoRunner:
    """Load an OpenVINO engine for the CPU, one frame at a time.

    Args:
        directory: The engine's directory; its files are verified already.
        info: Its sidecar.
        threads: Threads for inference; None leaves the choice to OpenVINO.

    Raises:
        RuntimeMissingError: OpenVINO is not installed.
        EngineError: The model does not load, or does not keep to the contract.
    """
    compiled = compile_model(directory, info, threads)
    check_interface(str(directory / info.entry), info.contract, _ports(compiled.inputs), _ports(compiled.outputs))
    return OpenVinoRunner(info, compiled.create_infer_request())


def compile_model(directory: Path, info: EngineInfo, threads: int | None) -> Any:
    """Return OpenVINO's compiled model of an engine; see `open_openvino`."""
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
    if threads is not None:
        settings["INFERENCE_NUM_THREADS"] = threads
    path = directory / info.entry
    try:
        core = openvino.Core()
        model = core.read_model(str(path), str(directory / weights))
        return core.compile_model(model, "CPU", settings)
    except Exception as error:
        raise EngineError(f"{path}: OpenVINO {openvino.__version__} cannot load it: {error}") from error


class OpenVinoRunner:
    """A loaded OpenVINO engine; see `brd_edge.runtime.engine.Runner`. Not thread-safe."""

    def __init__(self, info: EngineInfo, request: Any) -> None:
        """Take an inference request over; `open_openvino` makes one."""
        self.info = info
        self._request = request

    def infer(self, frame: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """Segment one frame: uint8 (H, W, 3) RGB to uint8 (H, W), the caller's own.

        Raises:
            EngineError: The frame has another shape or dtype, the runner is closed, or OpenVINO failed.
        """
        check_frame(frame, self.info.contract)
        if self._request is None:
            raise EngineError("the runner is closed: open the engine again")
        try:
            # the frame is read in place; the output is copied, since the request writes into the same buffer again
            results = self._request.infer([np.ascontiguousarray(frame[None])], share_inputs=True, share_outputs=False)
        except Exception as error:
            raise EngineError(f"OpenVINO failed on a frame: {error}") from error
        return check_class_map(results[0], self.info.contract)

    def bind(self, frame: npt.NDArray[np.uint8]) -> Callable[[], object]:
        """Return a call that runs the request alone, with its input tensor set; see `Runner.bind`.

        Raises:
            EngineError: The frame has another shape or dtype, or the runner is closed.
        """
        check_frame(frame, self.info.contract)
        request = self._request
        if request is None:
            raise EngineError("the runner is closed: open the engine again")
        openvino = import_runtime("openvino", INSTALL)
        request.set_input_tensor(openvino.Tensor(np.ascontiguousarray(frame[None]), shared_memory=False))

        def call() -> npt.NDArray[np.uint8]:
            request.start_async()
            request.wait()
            # the runtime's own buffer: nothing is copied
            class_map: npt.NDArray[np.uint8] = request.get_output_tensor().data
            return class_map

        return call

    def close(self) -> None:
        """Free the inference request and the compiled model with it."""
        self._request = None

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
