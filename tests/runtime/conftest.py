"""A small graph and the engines made from it; small enough to build and run in milliseconds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest

from brd_edge.runtime.builders import build_engine
from brd_edge.runtime.contract import InputContract

CLASSES = ("road", "sky", "car", "tree", "pole")
PALETTE = ((128, 64, 128), (70, 130, 180), (0, 0, 142), (107, 142, 35), (153, 153, 153))
GRAPH = """<ir_version: 10, opset_import: ["" : 20]>
student (uint8[1,24,40,3] image) => (uint8[1,24,40] class_map) {
    pixels = Cast<to=1>(image)
    planes = Transpose<perm=[0,3,1,2]>(pixels)
    scores = Conv<pads=[1,1,1,1]>(planes, weight, bias)
    ids = ArgMax<axis=1, keepdims=0>(scores)
    class_map = Cast<to=2>(ids)
}"""


@pytest.fixture(scope="session")
def contract() -> InputContract:
    return InputContract(height=24, width=40, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


@pytest.fixture(scope="session")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Whole numbers and fractions that tell classes apart: float32 is exact, so all runtimes must agree."""
    rng = np.random.default_rng(7)
    model = onnx.parser.parse_model(GRAPH)
    weight = rng.integers(-8, 9, (len(CLASSES), 3, 3, 3)).astype(np.float32)
    bias = np.arange(len(CLASSES), dtype=np.float32) / 8
    model.graph.initializer.extend(
        [onnx.numpy_helper.from_array(weight, "weight"), onnx.numpy_helper.from_array(bias, "bias")]
    )
    onnx.checker.check_model(model)
    path = tmp_path_factory.mktemp("graph") / "student.onnx"
    onnx.save(model, path)
    return path


@pytest.fixture(scope="session")
def frames() -> list[np.ndarray]:
    rng = np.random.default_rng(11)
    return [rng.integers(0, 256, (24, 40, 3), dtype=np.uint8) for _ in range(3)]


@pytest.fixture(scope="session")
def engines(tmp_path_factory: pytest.TempPathFactory, graph: Path, contract: InputContract) -> dict[str, Path]:
    """Engine directories by runtime; not to be written to."""
    pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is not installed")
    root = tmp_path_factory.mktemp("engines")
    for runtime, target in (("onnxruntime", "x86-cpu"), ("openvino", "x86-cpu"), ("tensorrt", "rtx")):
        build_engine(
            runtime=runtime,
            precision="fp32",
            target=target,
            onnx=graph,
            out=root / runtime,
            contract=contract,
            classes=CLASSES,
            palette=PALETTE,
        )
    return {path.name: path for path in sorted(root.iterdir())}
