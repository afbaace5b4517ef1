"""Runs engines with TensorRT or TensorRT-RTX on an NVIDIA GPU.

`tensorrt` and `tensorrt_rtx` have one API but do not read each other's engines; the sidecar's
`runtime_version` begins with the package that built the engine, and that one is used.

Inference has not been run: it needs a GPU, and none was at hand when this was written. What a
machine without one sees (the errors, and the order of the calls) is tested.

TensorRT-RTX is told to compile the kernels of an engine for several frames before it runs them, not in the background.
A frame is copied into pinned memory; the copy to the GPU, the engine and the copy back are captured as one CUDA graph
when the first frame was run, and launched at once for those that follow.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from brd_edge.runtime.engine import EngineInfo
from brd_edge.runtime.errors import EngineError, RuntimeMissingError
from brd_edge.runtime.runners.checks import (
    Port,
    check_class_maps,
    check_frame,
    check_interface,
    import_runtime,
    in_batches,
)
from brd_edge.runtime.runners.cuda import PinnedBuffer, allocate_pinned, call, capture, free_pinned
from brd_edge.runtime.targets import compute_capabilities

if TYPE_CHECKING:
    from typing import Self  # novm

    import tensorrt

__all__ = ["INSTALL", "TensorRtRunner", "collecting_logger", "open_tensorrt", "require_gpu", "sides"]

INSTALL = {
    "tensorrt": "the device's own TensorRT (JetPack brings it), or  pip install tensorrt",
    "tensorrt_rtx": 'pip install "brd-edge[tensorrt]"',
}
"""How to install each of the two packages."""


_SPECIALISATION = "dynamic_shapes_kernel_specialization_strategy"


def open_tensorrt(directory: Path, info: EngineInfo, threads: int | None) -> TensorRtRunner:
    """Load a TensorRT engine on the first GPU.

    Args:
        directory: The engine's directory; its files are verified already.
        info: Its sidecar.
        threads: Has no meaning on a GPU.

    Raises:
        RuntimeMissingError: The package, the driver or a fitting GPU is not here.
        EngineError: TensorRT refuses the engine, or it does not keep to the contract.
    """
    del threads
    package = info.runtime_version.split()[0]
    if package not in INSTALL:
        raise EngineError(f"{directory}: runtime_version: expected one of {sorted(INSTALL)} first, got {package!r}")
    trt = import_runtime(package, INSTALL[package])
    capability = require_gpu()
    capabilities = compute_capabilities(info.precision, info.target)
    if package == "tensorrt_rtx" and capability not in capabilities:
        raise RuntimeMissingError(
            f"{directory}: the engine is for GPUs of compute capability {', '.join(map(str, capabilities))} "
            f"(10 x major + minor), the GPU here has {capability}: run it on one of those"
        )
    cudart = import_runtime("cuda.bindings.runtime", "pip install cuda-bindings")
    logger, messages = collecting_logger(trt)
    runtime: tensorrt.Runtime = trt.Runtime(logger)
    engine = runtime.deserialize_cuda_engine((directory / info.entry).read_bytes())
    if engine is None:
        raise EngineError(
            f"{directory / info.entry}: {package} {trt.__version__} refuses it, built by {info.runtime_version}; "
            f"rebuild it, engines do not move between versions or GPUs. TensorRT says: {'; '.join(messages)}"
        )
    inputs, outputs = _ports(trt, engine)
    check_interface(str(directory / info.entry), info.contract, inputs, outputs, batch_max=info.batch_max)
    return TensorRtRunner(info, cudart, runtime, engine)


class TensorRtRunner:
    """A loaded TensorRT engine; see `brd_edge.runtime.engine.Runner`. Not thread-safe.

    Not run on a GPU yet; see the module.
    """

    def __init__(self, info: EngineInfo, cudart: Any, runtime: tensorrt.Runtime, engine: tensorrt.ICudaEngine) -> None:
        """Take an engine over and allocate its buffers, on the GPU and pinned on the host; `open_tensorrt` makes one.

        Raises:
            EngineError: CUDA or TensorRT failed, for example for lack of memory.
        """
        self.info = info
        self._cudart = cudart
        # TensorRT frees in the wrong order unless runtime and engine outlive the context
        self._owners: tuple[Any, ...] = (runtime, engine)
        self._buffers: list[int] = []
        self._staging: list[PinnedBuffer] = []
        self._count = 0
        self._graph: Any = None
        self._bound: list[Any] = []
        self._stream: Any = None
        self._context: tensorrt.IExecutionContext | None = None
        try:
            self._allocate(engine)
        except BaseException:
            self.close()
            raise

    def infer(self, frame: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """Segment one frame, uint8 (H, W, 3) RGB to uint8 (H, W), or several; see `Runner.infer`.

        Raises:
            EngineError: The frame has another shape or dtype, the runner is closed, or CUDA failed.
        """
        return in_batches(frame, self.info, self._run)

    def _run(self, frames: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        if self._context is None:
            raise EngineError("the runner is closed: open the engine again")
        contract, count = self.info.contract, len(frames)
        size = count * contract.height * contract.width
        image, class_map = self._staging
        image.array[: frames.nbytes] = frames.reshape(-1)
        if count != self._count:
            self._prepare(count)
        elif self._graph is None:
            self._work(count)
        else:
            call(self._cudart, "cudaGraphLaunch", self._graph, self._stream)
        call(self._cudart, "cudaStreamSynchronize", self._stream)
        found = class_map.array[:size].reshape(count, contract.height, contract.width)
        return check_class_maps(found.copy(), contract)

    def _prepare(self, count: int) -> None:
        """Run the frames that lie ready, and capture that for the frames to come."""
        assert self._context is not None, "only open runners run"
        self._free_graph()
        # until all of it has worked, the context has no number of frames that a caller can count on
        self._count = 0
        # the stubs know a shape as TensorRT's own class alone; it takes a tuple too
        shape: Any = (count, self.info.contract.height, self.info.contract.width, 3)
        if self.info.batch_max > 1 and not self._context.set_input_shape("image", shape):
            raise EngineError(f"TensorRT does not take {count} frames at once")
        # the first run after a change allocates and compiles, which cannot be captured
        self._work(count)
        call(self._cudart, "cudaStreamSynchronize", self._stream)
        self._graph = capture(self._cudart, self._stream, lambda: self._work(count))
        self._count = count

    def _work(self, count: int) -> None:
        """Put the copies and the engine itself into the stream."""
        pixels = count * self.info.contract.height * self.info.contract.width
        image, class_map = self._staging
        image_buffer, class_map_buffer = self._buffers
        cudart, kind, stream = self._cudart, self._cudart.cudaMemcpyKind, self._stream
        to_device, to_host = kind.cudaMemcpyHostToDevice, kind.cudaMemcpyDeviceToHost
        call(cudart, "cudaMemcpyAsync", image_buffer, image.pointer, 3 * pixels, to_device, stream)
        self._execute()
        call(cudart, "cudaMemcpyAsync", class_map.pointer, class_map_buffer, pixels, to_host, stream)

    def _execute(self) -> None:
        if self._context is None:
            raise EngineError("the runner is closed: open the engine again")
        if not self._context.execute_async_v3(int(self._stream)):
            raise EngineError("TensorRT failed on a frame")

    def bind(self, frame: npt.NDArray[np.uint8]) -> Callable[[], object]:
        """Return a call that runs the engine alone, on a frame that lies on the GPU already; see `Runner.bind`.

        Raises:
            EngineError: The frame has another shape or dtype, the runner is closed, or CUDA failed.
        """
        check_frame(frame, self.info.contract)
        self.infer(frame)  # leaves the frame in the engine's input
        cudart, stream = self._cudart, self._stream
        graph = capture(cudart, stream, self._execute)
        if graph is not None:
            self._bound.append(graph)

        def run() -> None:
            if graph is None:
                self._execute()
            else:
                call(cudart, "cudaGraphLaunch", graph, stream)
            call(cudart, "cudaStreamSynchronize", stream)

        return run

    def inspect(self) -> str:
        """Return what TensorRT's inspector says of the engine's layers, as JSON.

        Raises:
            EngineError: The runner is closed, or TensorRT says nothing.
        """
        if not self._owners:
            raise EngineError("the runner is closed: open the engine again")
        engine: tensorrt.ICudaEngine = self._owners[1]
        package = self.info.runtime_version.split()[0]
        trt = import_runtime(package, INSTALL[package])
        inspector: tensorrt.EngineInspector | None = engine.create_engine_inspector()
        if inspector is None:
            raise EngineError("TensorRT makes no inspector for the engine")
        text: str = inspector.get_engine_information(trt.LayerInformationFormat.JSON)
        return text

    def _allocate(self, engine: tensorrt.ICudaEngine) -> None:
        # one that does not wait for the default stream, nor lets it wait
        flag = self._cudart.cudaStreamNonBlocking
        self._stream = call(self._cudart, "cudaStreamCreateWithFlags", flag)
        self._context = self._make_context(engine)
        if self._context is None:
            raise EngineError("TensorRT makes no execution context: is the GPU's memory full?")
        pixels = self.info.batch_max * self.info.contract.height * self.info.contract.width
        for name, size_bytes in (("image", 3 * pixels), ("class_map", pixels)):
            self._buffers.append(int(call(self._cudart, "cudaMalloc", size_bytes)))
            self._staging.append(allocate_pinned(self._cudart, size_bytes))
            if not self._context.set_tensor_address(name, self._buffers[-1]):
                raise EngineError(f"TensorRT takes no buffer for {name}")

    def _make_context(self, engine: tensorrt.ICudaEngine) -> tensorrt.IExecutionContext | None:
        # typed as anything: TensorRT-RTX has settings that the stubs, which are TensorRT's, do not know
        vendor: Any = engine
        several = self.info.batch_max > 1 and hasattr(vendor, "create_runtime_config")
        settings = vendor.create_runtime_config() if several else None
        strategy = getattr(settings, _SPECIALISATION, None)
        context: tensorrt.IExecutionContext | None
        if strategy is None:
            context = vendor.create_execution_context()
            return context
        # unasked, TensorRT-RTX compiles the kernels of a number of frames in the background and makes do with slower
        # ones until then, and those would be what is captured
        setattr(settings, _SPECIALISATION, type(strategy).EAGER)
        self._owners = (*self._owners, settings)
        context = vendor.create_execution_context(settings)
        return context

    def _free_graph(self) -> None:
        if self._graph is not None:
            graph, self._graph = self._graph, None
            call(self._cudart, "cudaGraphExecDestroy", graph)

    def close(self) -> None:
        """Free the graphs, the context, the buffers and the engine."""
        self._free_graph()
        while self._bound:
            call(self._cudart, "cudaGraphExecDestroy", self._bound.pop())
        self._context = None
        while self._buffers:
            call(self._cudart, "cudaFree", self._buffers.pop())
        while self._staging:
            free_pinned(self._cudart, self._staging.pop())
        if self._stream is not None:
            stream, self._stream = self._stream, None
            call(self._cudart, "cudaStreamDestroy", stream)
        self._owners = ()

    def __enter__(self) -> Self:
        """Return the runner itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the runner."""
        self.close()


def require_gpu() -> int:
    """Return the compute capability of the first GPU as 10 x major + minor, for example 87.

    Asks the driver's own library, so nothing of CUDA need be installed.

    Raises:
        RuntimeMissingError: There is no driver, or it finds no GPU.
    """
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        raise RuntimeMissingError(
            "no NVIDIA driver on this machine (libcuda.so.1 does not load): run the engine where its GPU is"
        ) from error
    count, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    status = driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count))
    if status or count.value < 1:
        raise RuntimeMissingError(f"the NVIDIA driver finds no GPU on this machine (CUDA status {status})")
    # 75 and 76: CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR of cuda.h
    status = driver.cuDeviceGetAttribute(ctypes.byref(major), 75, 0)
    status = status or driver.cuDeviceGetAttribute(ctypes.byref(minor), 76, 0)
    if status:
        raise RuntimeMissingError(f"the NVIDIA driver does not answer for the first GPU (CUDA status {status})")
    return 10 * major.value + minor.value


def collecting_logger(trt: Any) -> tuple[tensorrt.ILogger, list[str]]:
    """Make a TensorRT logger that prints nothing and keeps warnings and errors.

    Args:
        trt: The `tensorrt` or `tensorrt_rtx` module.

    Returns:
        The logger, which must live as long as what it is given to, and the list that it appends to.
    """
    messages: list[str] = []

    class Collector(trt.ILogger):  # type: ignore[misc]  # the API takes nothing but a subclass
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: tensorrt.ILogger.Severity, message: str) -> None:
            if severity in (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR, trt.ILogger.WARNING):
                messages.append(f"{severity.name}: {message.strip()}")

    return Collector(), messages


def _ports(trt: Any, engine: tensorrt.ICudaEngine) -> tuple[list[Port], list[Port]]:
    inputs: list[Port] = []
    outputs: list[Port] = []
    for index in range(engine.num_io_tensors):
        name = engine.get_tensor_name(index)
        port: Port = (name, engine.get_tensor_dtype(name).name.lower(), sides(engine.get_tensor_shape(name)))
        (inputs if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT else outputs).append(port)
    return inputs, outputs


def sides(shape: tensorrt.Dims) -> tuple[int, ...]:
    """Return TensorRT's shape as a tuple; -1 stands for a side that is open."""
    return tuple(int(shape[index]) for index in range(len(shape)))
