from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest

from brd_edge.runtime.builders import build_engine
from brd_edge.runtime.builders.tensorrt import builder_config, require_exact, set_timing_cache
from brd_edge.runtime.contract import InputContract
from brd_edge.runtime.engine import SIDECAR, EngineInfo, open_engine, read_engine, verify_files
from brd_edge.runtime.errors import EngineError, RuntimeMissingError
from brd_edge.runtime.packages import runtime_version
from brd_edge.runtime.runners.openvino import openvino_core
from brd_edge.runtime.runners.tensorrt import collecting_logger

CLASSES = ("road", "sky", "car")
PALETTE = ((128, 64, 128), (70, 130, 180), (0, 0, 142))
CONTRACT = InputContract(height=16, width=32, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
HEAD = '<ir_version: 10, opset_import: ["" : 20]>\nstudent (uint8[1,16,32,3] image) => (uint8[1,16,32] class_map)'
BODY = """
    pixels = Cast<to=1>(image)
    planes = Transpose<perm=[0,3,1,2]>(pixels)
    ids = ArgMax<axis=1, keepdims=0>(planes)
    class_map = Cast<to=2>(ids)
"""


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    """The class of a pixel is its largest channel: what an engine must return is plain."""
    return write_graph(tmp_path / "student.onnx", f"{HEAD} {{ {BODY} }}")


def write_graph(path: Path, text: str) -> Path:
    onnx.save(onnx.parser.parse_model(text), path)
    return path


def build(graph: Path, out: Path, **changes: Any) -> EngineInfo:
    settings = {"runtime": "onnxruntime", "precision": "fp32", "target": "x86-cpu", "contract": CONTRACT, **changes}
    return build_engine(onnx=graph, out=out, classes=CLASSES, palette=PALETTE, **settings)


@pytest.mark.parametrize(
    ("runtime", "files"), [("onnxruntime", ["model.onnx"]), ("openvino", ["model.xml", "model.bin"])]
)
def test_cpu_engines_run(graph: Path, tmp_path: Path, runtime: str, files: list[str]) -> None:
    out = tmp_path / "engines" / runtime
    info = build(graph, out, runtime=runtime)
    assert info == read_engine(out)
    assert (info.runtime_version, info.entry, list(info.files)) == (runtime_version(runtime), files[0], files)
    assert info.created_by.startswith("brd-edge ")
    assert sorted(path.name for path in out.parent.rglob("*")) == sorted([runtime, SIDECAR, *files])
    for name, file in info.files.items():
        assert hashlib.sha256((out / name).read_bytes()).hexdigest() == file.sha256
    frame = np.random.default_rng(0).integers(0, 256, (16, 32, 3), dtype=np.uint8)
    with open_engine(out, contract=CONTRACT, threads=1) as runner:
        np.testing.assert_array_equal(runner.infer(frame), frame.argmax(2))


def test_openvino_weights_stay_fp32(tmp_path: Path) -> None:
    weight = np.random.default_rng(0).standard_normal((3, 3, 1, 1)).astype(np.float32)
    model = onnx.parser.parse_model(
        f"{HEAD} {{ {BODY.replace('ArgMax<axis=1, keepdims=0>(planes)', 'ArgMax<axis=1, keepdims=0>(scores)')} }}"
    )
    model.graph.node.insert(2, onnx.helper.make_node("Conv", ["planes", "weight"], ["scores"]))
    model.graph.initializer.append(onnx.numpy_helper.from_array(weight, "weight"))
    onnx.save(model, tmp_path / "conv.onnx")
    build(tmp_path / "conv.onnx", tmp_path / "engine", runtime="openvino")
    assert weight.tobytes() in (tmp_path / "engine" / "model.bin").read_bytes()


def test_tensorrt_rtx_builds_ahead_of_time(graph: Path, tmp_path: Path) -> None:
    trt = pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is not installed")
    info = build(graph, tmp_path / "engine", runtime="tensorrt", target="rtx")
    assert info.runtime_version == f"tensorrt_rtx {trt.__version__}"
    verify_files(tmp_path / "engine", info)
    content = (tmp_path / "engine" / info.entry).read_bytes()
    assert len(content) == info.size_bytes
    # TensorRT writes the architectures' names into the engine
    assert {int(number) for number in re.findall(rb"\bsm(\d{2,3})\b", content)} == {75, 80, 86, 89, 120, 121}


def test_float32_is_not_rounded_to_tf32() -> None:
    trt = pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is not installed")
    logger, messages = collecting_logger(trt)
    builder = trt.Builder(logger)
    assert builder.create_builder_config().get_flag(trt.BuilderFlag.TF32), "TensorRT's own choice is TF32"
    assert not builder_config(trt, builder, CONTRACT, 1, messages).get_flag(trt.BuilderFlag.TF32)


def test_tensorrt_names_the_node_that_it_does_not_take(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is not installed")
    body = BODY.replace("(pixels)", "(image)").replace("pixels = Cast<to=1>(image)", "").replace("(planes)", "(floats)")
    body = body.replace("ids =", "floats = Cast<to=1>(planes)\n ids =")
    model = onnx.parser.parse_model(f"{HEAD} {{ {body} }}")
    model.graph.node[0].name = "transpose_on_bytes"
    onnx.save(model, tmp_path / "student.onnx")
    with pytest.raises(EngineError, match="transpose_on_bytes"):
        build(tmp_path / "student.onnx", tmp_path / "engine", runtime="tensorrt", target="rtx")
    assert not (tmp_path / "engine").exists()


@pytest.mark.parametrize(
    ("runtime", "target"), [("onnxruntime", "x86-cpu"), ("openvino", "x86-cpu"), ("tensorrt", "rtx")]
)
def test_a_graph_that_is_none_or_does_not_fit(graph: Path, tmp_path: Path, runtime: str, target: str) -> None:
    if runtime == "tensorrt":
        pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is not installed")
    settings = {"runtime": runtime, "target": target}
    other = InputContract(height=32, width=32, mean=CONTRACT.mean, std=CONTRACT.std)
    with pytest.raises(EngineError, match=r"expected image uint8 \(1, 32, 32, 3\).*got image uint8 \(1, 16, 32, 3\)"):
        build(graph, tmp_path / "engine", **settings, contract=other)
    graph.write_bytes(b"not a graph")
    with pytest.raises(EngineError, match=r"student\.onnx"):
        build(graph, tmp_path / "engine", **settings)
    graph.unlink()
    with pytest.raises(EngineError, match=r"student\.onnx: not found"):
        build(graph, tmp_path / "engine", **settings)
    assert list(tmp_path.iterdir()) == []


def test_weights_in_other_files_are_refused(tmp_path: Path) -> None:
    body = BODY.replace("ArgMax<axis=1, keepdims=0>(planes)", "ArgMax<axis=1, keepdims=0>(scores)")
    model = onnx.parser.parse_model(f"{HEAD} {{ {body} }}")
    model.graph.node.insert(2, onnx.helper.make_node("Mul", ["planes", "one"], ["scores"]))
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.ones((1, 3, 16, 32), np.float32), "one"))
    onnx.save(model, tmp_path / "student.onnx", save_as_external_data=True, location="weights", size_threshold=0)
    assert (tmp_path / "weights").exists()
    with pytest.raises(EngineError, match=r"student\.onnx: ONNX Runtime .* does not take the graph"):
        build(tmp_path / "student.onnx", tmp_path / "engine")


def test_an_engine_is_replaced_only_by_a_complete_one(graph: Path, tmp_path: Path) -> None:
    out = tmp_path / "engine"
    build(graph, out, runtime="openvino")
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    bad = tmp_path / "bad.onnx"
    bad.write_bytes(b"not a graph")
    with pytest.raises(EngineError):
        build(bad, out, runtime="openvino")
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    # what a build that was killed at the worst moments leaves behind is cleared away, or put back
    out.rename(tmp_path / ".engine.replaced")
    (tmp_path / ".engine.building").mkdir()
    (tmp_path / ".engine.building" / "junk").touch()
    with pytest.raises(EngineError):
        build(bad, out, runtime="openvino")
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert build(graph, out).runtime == "onnxruntime"
    assert sorted(path.name for path in out.iterdir()) == [SIDECAR, "model.onnx"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad.onnx", "engine", "student.onnx"]


def test_other_peoples_directories_are_left_alone(graph: Path, tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.txt").touch()
    for out in (tmp_path / "home", tmp_path / "home" / "thesis.txt"):
        with pytest.raises(EngineError, match="expected an engine's directory to replace"):
            build(graph, out)
    assert (tmp_path / "home" / "thesis.txt").exists()
    (tmp_path / "empty").mkdir()
    build(graph, tmp_path / "empty")


def test_combinations_that_do_not_exist(graph: Path, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="its precisions are fp32"):
        build(graph, tmp_path / "engine", precision="fp16")
    with pytest.raises(EngineError, match="tensorrt engines are for rtx"):
        build(graph, tmp_path / "engine", runtime="tensorrt")
    with pytest.raises(RuntimeMissingError, match="built on the device itself"):
        build(graph, tmp_path / "engine", runtime="tensorrt", target="jetson-orin")


WITHOUT = """
import importlib.abc, sys
from pathlib import Path

class Block(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name in ("onnxruntime", "openvino", "tensorrt", "tensorrt_rtx"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Block())
from brd_edge.runtime.builders import build_engine
from brd_edge.runtime.contract import InputContract
from brd_edge.runtime.errors import RuntimeMissingError
from brd_edge.runtime.packages import package_of, runtime_version
contract = InputContract(16, 32, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
for runtime, target in (("onnxruntime", "x86-cpu"), ("openvino", "x86-cpu"), ("tensorrt", "rtx")):
    try:
        build_engine(runtime=runtime, precision="fp32", target=target, onnx=Path(sys.argv[1]), out=Path("engine"),
                     contract=contract, classes=["a"], palette=[(0, 0, 0)])
    except RuntimeMissingError as error:
        print(runtime_version(package_of(runtime, target)), error)
"""


def test_a_runtime_that_is_not_installed(graph: Path) -> None:
    command = [sys.executable, "-W", "error", "-c", WITHOUT, str(graph)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=graph.parent, env=environment)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 3
    for runtime, line in zip(("onnxruntime", "openvino", "tensorrt"), lines, strict=True):
        assert line.startswith("None ")
        assert f'pip install "brd-edge[{runtime}]"' in line
    assert not (graph.parent / "engine").exists()


def test_tensorrt_builds_for_the_gpus_that_the_precision_has(graph: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is not installed")
    found = {}
    for precision, target in (("fp32", "rtx-sm89"), ("bf16", "rtx")):
        info = build(graph, tmp_path / "engine", runtime="tensorrt", precision=precision, target=target)
        content = (tmp_path / "engine" / info.entry).read_bytes()
        found[target] = {int(number) for number in re.findall(rb"\bsm(\d{2,3})\b", content)}
    assert found == {"rtx-sm89": {89}, "rtx": {80, 86, 89, 120, 121}}


def test_tensorrt_refuses_what_it_would_read_as_other_numbers(tmp_path: Path) -> None:
    """uint8 around zero: TensorRT takes it for int8, and only warns."""
    pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is not installed")
    body = """
        pixels = Cast<to=1>(image)
        planes = Transpose<perm=[0,3,1,2]>(pixels)
        quantised = QuantizeLinear(planes, scale, zero)
        scores = DequantizeLinear(quantised, scale, zero)
        ids = ArgMax<axis=1, keepdims=0>(scores)
        class_map = Cast<to=2>(ids)
    """
    model = onnx.parser.parse_model(f"{HEAD} {{ {body} }}")
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(0.5, np.float32), "scale"))
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(0, np.uint8), "zero"))
    onnx.save(model, tmp_path / "student.onnx")
    with pytest.raises(EngineError, match="quantised for another runtime"):
        build(tmp_path / "student.onnx", tmp_path / "engine", runtime="tensorrt", target="rtx-sm89")


class TimingConfig:
    """A builder's settings that take these contents of a timing cache only."""

    def __init__(self, readable: tuple[bytes, ...], taken: tuple[bytes, ...]) -> None:
        self.readable, self.taken = readable, taken

    def create_timing_cache(self, content: bytes) -> bytes | None:
        return content if content in self.readable else None

    def set_timing_cache(self, cache: bytes, *, ignore_mismatch: bool) -> bool:
        assert not ignore_mismatch
        return cache in self.taken


def test_a_timing_cache_that_cannot_be_used_is_replaced() -> None:
    good = TimingConfig((b"known", b""), (b"known", b""))
    assert set_timing_cache(good, b"known", []) == b"known"
    damaged, of_another = TimingConfig((b"",), (b"",)), TimingConfig((b"known", b""), (b"",))
    for config in (damaged, of_another):
        assert set_timing_cache(config, b"known", []) == b""
    with pytest.raises(EngineError, match="takes no timing cache: ERROR: why"):
        set_timing_cache(TimingConfig((), ()), b"known", ["ERROR: why"])


@pytest.mark.parametrize(
    "text", ["zero_point of UINT8", "the zeroPoint is uint8", "uint8 zero-point", "zero point: Uint8"]
)
def test_warnings_of_zero_points_are_found_however_they_are_written(text: str) -> None:
    with pytest.raises(EngineError, match=r"graph\.onnx: quantised for another runtime"):
        require_exact(Path("graph.onnx"), ["WARNING: something else", f"WARNING: {text}"])
    require_exact(Path("graph.onnx"), ["WARNING: uint8 is slow", "WARNING: the zero point is int8"])


def test_engines_for_cuda_are_built_without_it(graph: Path, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this ONNX Runtime has the CUDA provider")
    build(graph, tmp_path / "engine", runtime="onnxruntime", precision="fp16", target="cuda")
    with pytest.raises(RuntimeMissingError, match=r"has no CUDAExecutionProvider here, only .*CPUExecutionProvider"):
        open_engine(tmp_path / "engine")


@pytest.mark.parametrize(("target", "device"), [("intel-igpu", "GPU"), ("intel-npu", "NPU")])
def test_engines_for_intels_accelerators_are_built_without_them(
    graph: Path, tmp_path: Path, target: str, device: str
) -> None:
    pytest.importorskip("openvino", reason="openvino is not installed")
    if any(name.startswith(device) for name in openvino_core().available_devices):
        pytest.skip(f"this machine has a {device}")
    build(graph, tmp_path / "engine", runtime="openvino", precision="fp16", target=target)
    with pytest.raises(RuntimeMissingError, match=f"OpenVINO finds no {device} on this machine, only CPU"):
        open_engine(tmp_path / "engine")
