from __future__ import annotations

import ctypes
import dataclasses
import enum
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hardware import gpu
from onnx.reference import ReferenceEvaluator
from PIL import Image

from brd_edge.runtime.contract import InputContract
from brd_edge.runtime.engine import SIDECAR, open_engine, read_engine, verify_files, write_engine
from brd_edge.runtime.errors import EngineError, RuntimeMissingError
from brd_edge.runtime.runners import RUNNERS
from brd_edge.runtime.runners.tensorrt import TensorRtRunner
from brd_edge.runtime.targets import RTX_COMPUTE_CAPABILITIES

CPU_RUNTIMES = ["onnxruntime", "openvino"]

BLOCKED = """
import importlib.abc, sys

class Block(importlib.abc.MetaPathFinder):
    def __init__(self, names):
        self.names = names

    def find_spec(self, name, path=None, target=None):
        if any(name == blocked or name.startswith(blocked + ".") for blocked in self.names):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

def block(*names):
    sys.meta_path.insert(0, Block(names))
"""


def run_python(script: str, *arguments: str) -> str:
    """Run a script in a fresh interpreter and return what it printed."""
    command = [sys.executable, "-W", "error", "-c", BLOCKED + script, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def expected_class_maps(graph: Path, frames: list[np.ndarray]) -> list[np.ndarray]:
    reference = ReferenceEvaluator(str(graph))
    return [reference.run(None, {"image": frame[None]})[0][0] for frame in frames]


def test_compiled_models_that_are_not_used_make_room(
    engines: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("BRD_EDGE_NO_MODEL_CACHE", raising=False)
    cache, now, day = tmp_path / "brd-edge" / "openvino", time.time(), 86400
    cache.mkdir(parents=True)
    # days since it was used, and since it was written; they take no space, but say that they do
    for name, used, written in (("old", 3, 3), ("used", 1, 9), ("new", 0, 0), ("other.txt", 9, 9)):
        path = cache / (name if "." in name else f"{name}.blob")
        path.touch()
        os.truncate(path, 400 << 20)
        os.utime(path, (now - used * day, now - written * day))
    open_engine(engines["openvino"], threads=1).close()
    (written,) = {path.name for path in cache.iterdir()} - {"used.blob", "new.blob", "other.txt"}
    assert written != "old.blob"
    # however much it is, what may be in use stays
    for name in ("used", "new"):
        os.truncate(cache / f"{name}.blob", 2 << 30)
    os.utime(cache / "used.blob", (now - day, now - day))
    open_engine(engines["openvino"], threads=1).close()
    assert {path.name for path in cache.iterdir()} == {written, "new.blob", "other.txt"}


@pytest.mark.parametrize("runtime", CPU_RUNTIMES)
@pytest.mark.parametrize("threads", [None, 1])
def test_class_maps_equal_the_reference(
    engines: dict[str, Path],
    graph: Path,
    frames: list[np.ndarray],
    contract: InputContract,
    runtime: str,
    threads: int | None,
) -> None:
    with open_engine(engines[runtime], contract=contract, threads=threads) as runner:
        assert runner.info == read_engine(engines[runtime])
        for frame, expected in zip(frames, expected_class_maps(graph, frames), strict=True):
            class_map = runner.infer(frame)
            assert (class_map.shape, class_map.dtype) == ((24, 40), np.uint8)
            np.testing.assert_array_equal(class_map, expected)
    assert len(np.unique(expected)) == 5


@pytest.mark.parametrize("runtime", CPU_RUNTIMES)
def test_results_are_the_callers_own(engines: dict[str, Path], frames: list[np.ndarray], runtime: str) -> None:
    with open_engine(engines[runtime], threads=1) as runner:
        first = runner.infer(frames[0])
        before = first.copy()
        second = runner.infer(frames[1])
        assert not np.shares_memory(first, second)
        np.testing.assert_array_equal(first, before)
        first[:] = 0
        np.testing.assert_array_equal(runner.infer(frames[0]), before)
    assert (before != second).any()
    first[:] = 1  # still there after the engine is gone
    assert first.all()


@pytest.mark.parametrize("runtime", CPU_RUNTIMES)
def test_buffers_that_are_filled_again_and_again(
    engines: dict[str, Path], frames: list[np.ndarray], runtime: str
) -> None:
    """A camera's buffer comes back with another frame in it, and others come between."""
    with open_engine(engines[runtime], threads=1) as runner:
        expected = [runner.infer(frame.copy()) for frame in frames[:2]]
        buffers = [np.empty_like(frames[0]) for _ in range(2)]
        # which buffer and which frame: the same buffer many times in a row, then by turns, then the other
        turns = [*[(0, 0), (0, 1)] * 8, (1, 0), (1, 1), (0, 1), *[(1, 1), (1, 0)] * 8, (0, 0), (0, 1)]
        for which, number in turns:
            buffers[which][...] = frames[number]
            np.testing.assert_array_equal(runner.infer(buffers[which]), expected[number])
            # what was segmented is not written to
            np.testing.assert_array_equal(buffers[which], frames[number])
        locked = frames[1].copy()
        locked.flags.writeable = False
        for _ in range(12):
            np.testing.assert_array_equal(runner.infer(locked), expected[1])
        for _ in range(20):  # each is gone before the next one is made, perhaps at the same place
            np.testing.assert_array_equal(runner.infer(frames[0].copy()), expected[0])
            np.testing.assert_array_equal(runner.infer(frames[1].copy()), expected[1])
        call = runner.bind(buffers[0][:, ::1])
        buffers[0][...] = frames[0]
        np.testing.assert_array_equal(runner.infer(buffers[0]), expected[0])
        call()
        np.testing.assert_array_equal(runner.infer(frames[1].copy()), expected[1])


def test_a_failed_frame_is_not_taken_for_the_one_before(engines: dict[str, Path], frames: list[np.ndarray]) -> None:
    first, second = frames[0].copy(), frames[1].copy()
    with open_engine(engines["openvino"], threads=1) as runner:
        # what a camera gives that has no frame
        with pytest.raises(EngineError, match="frame: expected uint8"):
            runner.infer(None)  # type: ignore[arg-type]
        expected = runner.infer(first)
        request = runner._request  # type: ignore[attr-defined]
        runner._request = _Failing(request)  # type: ignore[attr-defined]
        with pytest.raises(EngineError, match="OpenVINO failed on a frame"):
            runner.infer(second)
        runner._request = request  # type: ignore[attr-defined]
        np.testing.assert_array_equal(runner.infer(first), expected)


class _Failing:
    """A request that takes its input and fails when it is started."""

    def __init__(self, request: Any) -> None:
        self.set_input_tensor = request.set_input_tensor

    def start_async(self) -> None:
        raise RuntimeError("the device is gone")


def test_compiled_models_are_kept_unless_that_is_not_wanted(
    engines: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for wanted in (False, True):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / str(wanted)))
        monkeypatch.setenv("BRD_EDGE_NO_MODEL_CACHE", "" if wanted else "1")
        open_engine(engines["openvino"], threads=1).close()
        assert bool(list(tmp_path.rglob("*.blob"))) == wanted


@pytest.mark.parametrize("runtime", CPU_RUNTIMES)
@pytest.mark.parametrize("threads", [0, -1, 4097, 5_000_000_000])
def test_thread_counts_that_no_machine_has_are_refused(engines: dict[str, Path], runtime: str, threads: int) -> None:
    with pytest.raises(EngineError, match=f"threads: expected 1 to 4096, or None.* got {threads}"):
        open_engine(engines[runtime], threads=threads)


@pytest.mark.parametrize("runtime", CPU_RUNTIMES)
def test_any_memory_layout(engines: dict[str, Path], frames: list[np.ndarray], runtime: str) -> None:
    frame = frames[0].copy()
    with open_engine(engines[runtime], threads=1) as runner:
        expected = runner.infer(frame)
        wide = np.zeros((24, 80, 3), np.uint8)
        wide[:, ::2] = frame
        fortran = np.asfortranarray(frame)
        flipped = frame[:, :, ::-1].copy()[:, :, ::-1]
        frame.flags.writeable = False
        for same in (wide[:, ::2], fortran, flipped, frame):
            np.testing.assert_array_equal(runner.infer(same), expected)


@pytest.mark.parametrize("runtime", CPU_RUNTIMES)
@pytest.mark.parametrize(
    ("frame", "got", "advice"),
    [
        (np.zeros((24, 40, 3), np.float32), "float32 (24, 40, 3)", ["as they come from the file, uint8 from 0 to 255"]),
        (np.zeros((24, 40, 3), np.int64), "int64 (24, 40, 3)", ["give uint8 from 0 to 255"]),
        (np.zeros((40, 24, 3), np.uint8), "uint8 (40, 24, 3)", ["bring it to the contract's size"]),
        (np.zeros((2, 40, 24, 3), np.uint8), "uint8 (2, 40, 24, 3)", ["bring each of them to the contract's size"]),
        (np.zeros((2, 24, 40, 3), np.int64), "int64 (2, 24, 40, 3)", ["give uint8 from 0 to 255"]),
        (np.zeros((0, 24, 40, 3), np.uint8), "uint8 (0, 24, 40, 3)", ["there is no frame in it"]),
        (np.zeros((3, 24, 40), np.uint8), "uint8 (3, 24, 40)", ["channels go last: numpy.moveaxis(frame, 0, -1)"]),
        (np.zeros((2, 3, 24, 40), np.uint8), "uint8 (2, 3, 24, 40)", ["numpy.moveaxis(frame, 1, -1)"]),
        (
            np.zeros((3, 20, 30), np.float32),
            "float32 (3, 20, 30)",
            ["uint8 from 0 to 255", "channels go last", "bring it to the contract's size"],
        ),
        (np.zeros((24, 40, 4), np.uint8), "uint8 (24, 40, 4)", ["leave that out with frame[..., :3]"]),
        (np.zeros((24, 40), np.uint8), "uint8 (24, 40)", ["it is grey"]),
        (np.zeros((24, 40, 1), np.uint8), "uint8 (24, 40, 1)", ["it is grey"]),
        (np.zeros((1, 1, 24, 40, 3), np.uint8), "uint8 (1, 1, 24, 40, 3)", ["give three channels, RGB"]),
        ([[0]], "list", ["give a numpy array"]),
        ("photo.jpg", "str", ["read the file first"]),
        (Path("photo.jpg"), "PosixPath", ["read the file first"]),
        (Image.new("RGB", (40, 24)), "Image", ['numpy.asarray(image.convert("RGB"))']),
        (torch.zeros((24, 40, 3), dtype=torch.uint8), "Tensor", ["tensor.cpu().numpy()"]),
    ],
)
def test_other_frames_are_refused(
    engines: dict[str, Path], runtime: str, frame: Any, got: str, advice: list[str]
) -> None:
    with open_engine(engines[runtime], threads=1) as runner, pytest.raises(EngineError) as caught:
        runner.infer(frame)
    expected, _, text = str(caught.value).partition(f", got {got}: ")
    assert expected == "frame: expected uint8 (24, 40, 3), or (N, 24, 40, 3) for several frames"
    assert all(part in text for part in advice)
    assert text.count(";") == len(advice) - 1, "advice that the frame does not need"


@pytest.mark.parametrize("runtime", CPU_RUNTIMES)
def test_closed_runner(engines: dict[str, Path], frames: list[np.ndarray], runtime: str) -> None:
    runner = open_engine(engines[runtime], threads=1)
    runner.close()
    runner.close()
    with pytest.raises(EngineError, match="closed"):
        runner.infer(frames[0])


@pytest.mark.parametrize("runtime", CPU_RUNTIMES)
def test_a_bound_call_runs_the_engine_alone(engines: dict[str, Path], frames: list[np.ndarray], runtime: str) -> None:
    with open_engine(engines[runtime], threads=1) as runner:
        expected = [runner.infer(frame) for frame in frames]
        for frame, class_map in zip(frames, expected, strict=True):
            given = np.asfortranarray(frame)
            call = runner.bind(given)
            given[:] = 0  # the frame was taken over
            for _ in range(2):
                np.testing.assert_array_equal(np.asarray(call())[0], class_map)
        np.testing.assert_array_equal(runner.infer(frames[0]), expected[0])
        with pytest.raises(EngineError, match="expected uint8"):
            runner.bind(frames[0][:-1])
    with pytest.raises(EngineError, match="closed"):
        runner.bind(frames[0])


@pytest.mark.parametrize("runtime", CPU_RUNTIMES)
def test_a_graph_of_another_size_than_its_sidecar_says(engines: dict[str, Path], tmp_path: Path, runtime: str) -> None:
    directory = shutil.copytree(engines[runtime], tmp_path / runtime)
    values = json.loads((directory / SIDECAR).read_text())
    values["contract"]["height"] = 32
    (directory / SIDECAR).write_text(json.dumps(values))
    with pytest.raises(EngineError, match=r"expected image uint8 \(1, 32, 40, 3\).*got image uint8 \(1, 24, 40, 3\)"):
        open_engine(directory)


@pytest.mark.parametrize("runtime", CPU_RUNTIMES)
def test_a_file_that_the_runtime_cannot_load(engines: dict[str, Path], tmp_path: Path, runtime: str) -> None:
    directory = shutil.copytree(engines[runtime], tmp_path / runtime)
    values = json.loads((directory / SIDECAR).read_text())
    path = directory / values["entry"]
    path.write_bytes(b"not a model")
    values["files"][path.name] = {
        "sha256": "19cf4e0de9c9e56eadd2ed59b39c5b3ef09a2bbd9f0a7d3b9eff0f46d43d8e4a",
        "size_bytes": 11,
    }
    (directory / SIDECAR).write_text(json.dumps(values))
    info = read_engine(directory)
    with pytest.raises(EngineError, match="SHA-256"):
        verify_files(directory, info)
    with pytest.raises(EngineError, match=f"{path.name}: .*cannot load it"):
        RUNNERS[runtime](directory, info, None)


def test_openvino_fp32_is_fp32_and_other_precisions_are_refused(engines: dict[str, Path], tmp_path: Path) -> None:
    directory = shutil.copytree(engines["openvino"], tmp_path / "engine")
    with open_engine(directory, threads=1) as runner:
        compiled = runner._request.get_compiled_model()  # type: ignore[attr-defined]
        assert compiled.get_property("INFERENCE_PRECISION_HINT").to_string() == "f32"
        assert compiled.get_property("INFERENCE_NUM_THREADS") == 1
    values = json.loads((directory / SIDECAR).read_text())
    (directory / SIDECAR).write_text(json.dumps({**values, "precision": "fp8"}))
    with pytest.raises(EngineError, match=r"expected a precision of .*, got 'fp8'"):
        open_engine(directory)


def test_cuda_computes_float32_in_float32(
    engines: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What ONNX Runtime is told for a GPU; a session on the processor stands in for one there."""
    ort = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    directory = shutil.copytree(engines["onnxruntime"], tmp_path / "engine")
    values = json.loads((directory / SIDECAR).read_text())
    (directory / SIDECAR).write_text(json.dumps({**values, "target": "cuda"}))
    real, asked = ort.InferenceSession, []

    def session(path: str, *, sess_options: Any, providers: list[Any]) -> Any:
        asked.append(providers)
        made = real(path, sess_options=sess_options, providers=["CPUExecutionProvider"])
        monkeypatch.setattr(made, "get_providers", lambda: ["CUDAExecutionProvider"])
        return made

    monkeypatch.setattr(ort, "InferenceSession", session)
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    open_engine(directory).close()
    assert asked == [[("CUDAExecutionProvider", {"use_tf32": "0"})]]


@pytest.mark.skipif(gpu() is not None, reason="this machine has an NVIDIA GPU")
def test_tensorrt_without_a_gpu(engines: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(RuntimeMissingError, match=r"no NVIDIA driver|finds no GPU"):
        open_engine(engines["tensorrt"])
    info = read_engine(engines["tensorrt"])
    assert info.runtime_version.startswith("tensorrt_rtx 1.")
    directory = shutil.copytree(engines["tensorrt"], tmp_path / "engine")
    values = json.loads((directory / SIDECAR).read_text())
    (directory / SIDECAR).write_text(json.dumps({**values, "runtime_version": "tensorrt 10.3.0"}))
    # the other package's engine: it is that package which is missing
    with pytest.raises(RuntimeMissingError, match="tensorrt cannot be imported here"):
        open_engine(directory)
    (directory / SIDECAR).write_text(json.dumps({**values, "runtime_version": "10.3.0"}))
    with pytest.raises(EngineError, match="runtime_version: expected one of"):
        open_engine(directory)


@pytest.mark.skipif(gpu() not in RTX_COMPUTE_CAPABILITIES, reason="no GPU here that TensorRT-RTX engines run on")
def test_tensorrt_on_a_gpu(engines: dict[str, Path], graph: Path, frames: list[np.ndarray]) -> None:
    with open_engine(engines["tensorrt"]) as runner:
        for frame, expected in zip(frames, expected_class_maps(graph, frames), strict=True):
            np.testing.assert_array_equal(runner.infer(frame), expected)


class HostMemoryCuda:
    """CUDA's calls over the host's memory: shows what the runner copies where, not that a GPU does it."""

    cudaMemcpyKind = SimpleNamespace(cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2)  # noqa: N815
    cudaStreamCaptureMode = SimpleNamespace(cudaStreamCaptureModeThreadLocal=1)  # noqa: N815
    cudaStreamNonBlocking = 1  # noqa: N815
    ok = (0,)

    def __init__(self, *, captures: bool = True, instantiates: bool = True) -> None:
        self.held: dict[int, Any] = {}
        self.pinned: dict[int, Any] = {}
        self.streams = 0
        self.captures = captures
        self.instantiates = instantiates
        self.captured: list[Callable[[], None]] | None = None
        self.graphs: dict[int, list[Callable[[], None]]] = {}
        self.launches = 0

    def put(self, work: Callable[[], None]) -> None:
        """Do it now, or, while a stream is captured, only write it down."""
        if self.captured is None:
            work()
        else:
            self.captured.append(work)

    def cudaMallocHost(self, size: int) -> tuple[int, int]:  # noqa: N802
        buffer = ctypes.create_string_buffer(size)
        self.pinned[ctypes.addressof(buffer)] = buffer
        return 0, ctypes.addressof(buffer)

    def cudaFreeHost(self, pointer: int) -> tuple[int]:  # noqa: N802
        del self.pinned[pointer]
        return self.ok

    def cudaStreamBeginCapture(self, stream: int, mode: int) -> tuple[int]:  # noqa: N802
        assert (stream, mode, self.captured) == (5, 1, None)
        self.captured = []
        return self.ok

    def cudaStreamEndCapture(self, stream: int) -> tuple[Any, Any]:  # noqa: N802
        assert stream == 5
        graph, self.captured = self.captured, None
        return (0, graph) if self.captures else (Failed.cudaErrorStreamCaptureUnsupported, None)

    def cudaGraphInstantiate(self, graph: list[Callable[[], None]], flags: int) -> tuple[Any, Any]:  # noqa: N802
        assert flags == 0
        if not self.instantiates:
            return Failed.cudaErrorMemoryAllocation, None
        self.graphs[id(graph)] = graph
        return 0, id(graph)

    def cudaGraphDestroy(self, _graph: list[Callable[[], None]]) -> tuple[int]:  # noqa: N802
        return self.ok

    def cudaGraphExecDestroy(self, graph: int) -> tuple[int]:  # noqa: N802
        del self.graphs[graph]
        return self.ok

    def cudaGraphLaunch(self, graph: int, stream: int) -> tuple[int]:  # noqa: N802
        assert stream == 5
        self.launches += 1
        for work in self.graphs[graph]:
            work()
        return self.ok

    def cudaMalloc(self, size: int) -> tuple[int, int]:  # noqa: N802
        buffer = ctypes.create_string_buffer(size)
        self.held[ctypes.addressof(buffer)] = buffer
        return 0, ctypes.addressof(buffer)

    def cudaFree(self, pointer: int) -> tuple[int]:  # noqa: N802
        del self.held[pointer]
        return self.ok

    def cudaStreamCreateWithFlags(self, flags: int) -> tuple[int, int]:  # noqa: N802
        assert flags == self.cudaStreamNonBlocking
        self.streams += 1
        return 0, 5

    def cudaStreamDestroy(self, stream: int) -> tuple[int]:  # noqa: N802
        assert stream == 5
        self.streams -= 1
        return self.ok

    def cudaMemcpyAsync(self, to: int, source: int, size: int, kind: int, stream: int) -> tuple[int]:  # noqa: N802
        device, host = (to, source) if kind == self.cudaMemcpyKind.cudaMemcpyHostToDevice else (source, to)
        assert len(self.held[device]) >= size
        assert len(self.pinned[host]) >= size
        assert stream == 5
        self.put(lambda: ctypes.memmove(to, source, size))
        return self.ok

    def cudaStreamSynchronize(self, stream: int) -> tuple[int]:  # noqa: N802
        assert stream == 5
        assert self.captured is None, "waiting ends a capture"
        return self.ok


class HostContext:
    def __init__(self, reference: ReferenceEvaluator, cuda: HostMemoryCuda) -> None:
        self.reference = reference
        self.cuda = cuda
        self.addresses: dict[str, int] = {}
        self.count = 1
        self.works = True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        assert name == "image"
        self.count = shape[0]
        return self.count <= 2 and shape[1:] == (24, 40, 3)

    def set_tensor_address(self, name: str, pointer: int) -> bool:
        self.addresses[name] = pointer
        return True

    def execute_async_v3(self, stream: int) -> bool:
        assert stream == 5
        if self.works:
            self.cuda.put(self.execute)
        return self.works

    def execute(self) -> None:
        size = self.count * 24 * 40 * 3
        frames = np.frombuffer(ctypes.string_at(self.addresses["image"], size), np.uint8).reshape(-1, 1, 24, 40, 3)
        class_maps = b"".join(self.reference.run(None, {"image": frame})[0].tobytes() for frame in frames)
        ctypes.memmove(self.addresses["class_map"], class_maps, len(class_maps))


class Failed(enum.IntEnum):
    """A status of CUDA."""

    cudaErrorMemoryAllocation = 2  # noqa: N815
    cudaErrorStreamCaptureUnsupported = 900  # noqa: N815


@pytest.mark.parametrize(("captures", "instantiates"), [(True, True), (False, True), (True, False)])
def test_tensorrt_copies_frames_in_and_class_maps_out(
    engines: dict[str, Path], graph: Path, frames: list[np.ndarray], *, captures: bool, instantiates: bool
) -> None:
    reference, cuda = ReferenceEvaluator(str(graph)), HostMemoryCuda(captures=captures, instantiates=instantiates)
    engine = SimpleNamespace(create_execution_context=lambda: HostContext(reference, cuda))
    with TensorRtRunner(read_engine(engines["tensorrt"]), cuda, None, engine) as runner:
        results = [runner.infer(frame[:, ::-1]) for frame in frames]
        for frame, result in zip(frames, results, strict=True):
            np.testing.assert_array_equal(result, reference.run(None, {"image": frame[None, :, ::-1]})[0][0])
            call = runner.bind(frame)
            call()
            written = np.frombuffer(ctypes.string_at(runner._buffers[1], 24 * 40), np.uint8).reshape(1, 24, 40)
            np.testing.assert_array_equal(written, reference.run(None, {"image": frame[None]})[0])
        assert (len(cuda.held), len(cuda.pinned)) == (2, 2)
        # all but the first frame, and each bound call; or, what cannot be captured, call by call
        assert cuda.launches == (len(frames) - 1 + 2 * len(frames) if captures and instantiates else 0)
    assert (cuda.held, cuda.pinned, cuda.graphs, cuda.streams) == ({}, {}, {}, 0)
    with pytest.raises(EngineError, match="closed"):
        runner.infer(frames[0])
    full = SimpleNamespace(create_execution_context=lambda: None)
    with pytest.raises(EngineError, match="no execution context"):
        TensorRtRunner(read_engine(engines["tensorrt"]), cuda, None, full)
    assert cuda.streams == 0


def test_tensorrt_is_asked_for_the_layers_as_json(engines: dict[str, Path], graph: Path) -> None:
    reference, cuda = ReferenceEvaluator(str(graph)), HostMemoryCuda()
    engine = SimpleNamespace(
        create_execution_context=lambda: HostContext(reference, cuda),
        create_engine_inspector=lambda: SimpleNamespace(get_engine_information=lambda form: form.name),
    )
    with TensorRtRunner(read_engine(engines["tensorrt"]), cuda, None, engine) as runner:
        assert runner.inspect() == "JSON"
    with pytest.raises(EngineError, match="closed"):
        runner.inspect()


def test_onnxruntime_reports_nothing_to_its_makers(engines: dict[str, Path], tmp_path: Path) -> None:
    """What it would report it first gathers in a file of its own under the home directory."""
    code = """
import sys
from pathlib import Path
from brd_edge.runtime.engine import open_engine
with open_engine(Path(sys.argv[1])):
    pass
"""
    environment = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    environment |= {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    subprocess.run([sys.executable, "-c", code, str(engines["onnxruntime"])], env=environment, check=True)
    assert not list(tmp_path.rglob("*onnxruntime*"))


def test_openvino_does_not_report_that_it_was_imported() -> None:
    code = """
import sys
from brd_edge.runtime.runners.openvino import openvino_core
openvino_core()
assert "openvino_telemetry" not in sys.modules
import openvino_telemetry  # it is installed, and can be had again
from openvino.tools.ovc import telemetry_utils
print(telemetry_utils.tm.__name__)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "openvino.tools.ovc.telemetry_stub"


def test_tensorrt_is_told_how_many_frames_come(engines: dict[str, Path], graph: Path, frames: list[np.ndarray]) -> None:
    reference, cuda = ReferenceEvaluator(str(graph)), HostMemoryCuda()
    engine = SimpleNamespace(create_execution_context=lambda: HostContext(reference, cuda))
    info = dataclasses.replace(read_engine(engines["tensorrt"]), batch_max=2)
    three = np.stack([*frames, *frames])[:3]
    expected = [reference.run(None, {"image": frame[None]})[0][0] for frame in three]
    with TensorRtRunner(info, cuda, None, engine) as runner:
        np.testing.assert_array_equal(runner.infer(three), expected)
        np.testing.assert_array_equal(runner.infer(three[1]), expected[1])


def test_tensorrt_runs_as_before_after_a_number_of_frames_that_failed(
    engines: dict[str, Path], graph: Path, frames: list[np.ndarray]
) -> None:
    """The engine still stands at one frame then: two more must not be answered by maps that lie there from before."""
    reference, cuda = ReferenceEvaluator(str(graph)), HostMemoryCuda()
    context = HostContext(reference, cuda)
    info = dataclasses.replace(read_engine(engines["tensorrt"]), batch_max=2)
    with TensorRtRunner(info, cuda, None, SimpleNamespace(create_execution_context=lambda: context)) as runner:
        runner.infer(np.stack(frames[:2]))
        context.works = False
        with pytest.raises(EngineError, match="failed on a frame"):
            runner.infer(frames[0])
        context.works = True
        turned = np.stack([frames[1], frames[0]])
        expected = [reference.run(None, {"image": frame[None]})[0][0] for frame in turned]
        np.testing.assert_array_equal(runner.infer(turned), expected)


def test_tensorrt_rtx_compiles_for_a_number_of_frames_before_they_are_captured(
    engines: dict[str, Path], graph: Path
) -> None:
    trt = pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is not installed")
    reference, cuda, given = ReferenceEvaluator(str(graph)), HostMemoryCuda(), []
    kinds = trt.DynamicShapesKernelSpecializationStrategy

    def context(*settings: Any) -> HostContext:
        given.append(settings)
        return HostContext(reference, cuda)

    def opened(batch_max: int, settings: Any) -> list[Any]:
        engine = SimpleNamespace(create_execution_context=context, create_runtime_config=lambda: settings)
        info = dataclasses.replace(read_engine(engines["tensorrt"]), batch_max=batch_max)
        TensorRtRunner(info, cuda, None, engine).close()
        return [item.dynamic_shapes_kernel_specialization_strategy for item in given.pop()]

    assert opened(2, SimpleNamespace(dynamic_shapes_kernel_specialization_strategy=kinds.LAZY)) == [kinds.EAGER]
    assert opened(1, SimpleNamespace(dynamic_shapes_kernel_specialization_strategy=kinds.LAZY)) == []
    assert opened(2, SimpleNamespace()) == [], "TensorRT has settings too, but not this one"


OPEN_WITHOUT = """
block("onnxruntime", "openvino", "tensorrt_rtx")
from pathlib import Path
from brd_edge.runtime.engine import open_engine
from brd_edge.runtime.errors import EngineError, RuntimeMissingError
for directory in sys.argv[1:]:
    try:
        open_engine(Path(directory))
    except EngineError as error:
        print(type(error).__name__, str(error).replace(chr(10), " "))
"""


def test_a_missing_runtime_is_named_with_its_install_command(engines: dict[str, Path], tmp_path: Path) -> None:
    tampered = shutil.copytree(engines["openvino"], tmp_path / "tampered")
    (tampered / "model.bin").write_bytes(bytes((tampered / "model.bin").stat().st_size))
    order = ["onnxruntime", "openvino", "tensorrt"]
    lines = run_python(OPEN_WITHOUT, *(str(engines[runtime]) for runtime in order), str(tampered)).splitlines()
    assert len(lines) == 4
    for runtime, line in zip(order, lines[:3], strict=True):
        assert line.startswith("RuntimeMissingError")
        assert f'pip install "brd-edge[{runtime}]"' in line
    # checksums come first: what was tampered with is refused before its runtime is even looked for
    assert lines[3].startswith("EngineError")
    assert "SHA-256" in lines[3]


IMPORT_ALL = """
block("torch", "torchvision", "nvidia", "onnx", "onnxruntime", "openvino", "tensorrt", "tensorrt_rtx", "pydantic",
      "yaml", "scipy", "matplotlib", "jinja2", "timm", "cuda")
import importlib, pkgutil
before = set(sys.modules)  # what the interpreter's own start brought
import brd_edge.runtime
names = [module.name for module in pkgutil.walk_packages(brd_edge.runtime.__path__, "brd_edge.runtime.")]
for name in names:
    importlib.import_module(name)
print(*names)
print(*sorted({name.split(".")[0] for name, module in sys.modules.items()
               if name not in before and "site-packages" in (getattr(module, "__file__", None) or "")}))
print(*sorted(name for name in sys.modules if name.startswith("brd_edge.") and name != "brd_edge.runtime"
              and not name.startswith("brd_edge.runtime.")))
"""


def test_every_module_of_the_runtime_imports_in_a_bare_environment() -> None:
    names, third_party, house = run_python(IMPORT_ALL).split("\n")[:3]
    assert {"brd_edge.runtime.metrics", "brd_edge.runtime.runners.tensorrt"} <= set(names.split())
    assert set(third_party.split()) <= {"numpy", "PIL"}
    assert house == ""


def test_written_sidecars_are_stable(engines: dict[str, Path], tmp_path: Path) -> None:
    write_engine(tmp_path, read_engine(engines["onnxruntime"]))
    assert (tmp_path / SIDECAR).read_bytes() == (engines["onnxruntime"] / SIDECAR).read_bytes()


INTERRUPTED = """
import os, signal, sys, time
from pathlib import Path
from brd_edge.runtime.engine import open_engine

# what runs in the background inherits that the signal is ignored
signal.signal(signal.SIGINT, signal.default_int_handler)
runners = [open_engine(Path(path)) for path in sys.argv[1:]]
for runner in runners:
    runner.close()
del runner, runners
try:
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(10)
except KeyboardInterrupt:
    print("interrupted")
"""


def test_ctrl_c_still_works_after_several_engines(engines: dict[str, Path]) -> None:
    """OpenVINO's plugin leaves the signal stack in freed memory where two of its cores overlap."""
    paths = [str(engines["openvino"]), str(engines["onnxruntime"]), str(engines["openvino"])]
    done = subprocess.run([sys.executable, "-c", INTERRUPTED, *paths], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "interrupted\n"), done.stderr
