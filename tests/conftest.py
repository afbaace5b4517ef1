"""A small graph and the engines made from it; small enough to build and run in milliseconds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

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


# a file runs in one process: what takes longest begins first, or the others wait for it at the end
_LONGEST_FIRST = (
    "test_pipeline.py",
    "test_matrix.py",
    "test_faults.py",
    "test_distillation.py",
    "test_distributed.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sort test files by how long they take; within a file the order stays."""
    order = {name: place for place, name in enumerate(_LONGEST_FIRST)}
    items.sort(key=lambda item: order.get(item.path.name, len(order)))


@pytest.fixture(scope="session")
def contract() -> InputContract:
    return InputContract(height=24, width=40, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


@pytest.fixture(scope="session")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Whole numbers and fractions that tell classes apart: float32 is exact, so all runtimes must agree."""
    import onnx
    import onnx.parser

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
def named_graph(graph: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same graph with a name for every node, as the exporter writes them."""
    import onnx

    model = onnx.load(graph)
    for index, node in enumerate(model.graph.node):
        node.name = f"node_{index}"
    path = tmp_path_factory.mktemp("named") / "student.onnx"
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
    from brd_edge.runtime.builders import build_engine

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


@dataclass(frozen=True)
class MadeBundle:
    """A signed bundle and the keys around it."""

    directory: Path
    private: Path
    public: Path
    class_map: np.ndarray
    frame: np.ndarray


MakeBundle = Callable[..., MadeBundle]


@pytest.fixture(scope="session")
def signing_key(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from brd_edge.ship.keys import make_keys

    path = tmp_path_factory.mktemp("keys") / "team.key"
    make_keys(path)
    return path


@pytest.fixture(scope="session")
def make_bundle(
    engines: dict[str, Path], graph: Path, contract: InputContract, frames: list[np.ndarray], signing_key: Path
) -> MakeBundle:
    """Make a bundle of the small engines, with the class maps that ONNX Runtime finds for its golden frames."""
    from brd_edge.runtime.builders import build_engine
    from brd_edge.runtime.engine import open_engine
    from brd_edge.runtime.versions import version_range
    from brd_edge.ship.bundle import GoldenFrame, PlannedEngine, write_bundle
    from brd_edge.ship.keys import read_private_key, sign_bundle

    with open_engine(engines["onnxruntime"]) as runner:
        class_maps = [runner.infer(frame) for frame in frames]
    versions = {name: open_engine_info(path) for name, path in engines.items()}

    def make(
        out: Path,
        *,
        name: str = "small",
        signed_at: int = 1_000,
        runtimes: Sequence[str] = ("onnxruntime",),
        targets: Mapping[str, str] = {},
        plans: Sequence[str] = (),
        wrong: bool = False,
        latency_ms_p95_max: float | None = None,
        uncertain: str = "broken",
        sign: bool = True,
        padding_bytes: int = 0,
        rebuilt: bool = False,
        measured_ms: Mapping[str, float] = {},
    ) -> MadeBundle:
        import onnx

        directories = dict(engines)
        for runtime in runtimes if rebuilt else ():
            # for other targets than the usual ones
            directories[runtime] = out.with_name(f"{out.name}-{runtime}")
            build_engine(
                runtime=runtime,
                precision="fp32",
                target=targets[runtime],
                onnx=graph,
                out=directories[runtime],
                contract=contract,
                classes=CLASSES,
                palette=PALETTE,
            )

        model = onnx.load(graph)
        if padding_bytes:
            padding = np.random.default_rng(1).integers(97, 123, padding_bytes, dtype=np.uint8).tobytes().decode()
            onnx.helper.set_model_props(model, {"padding": padding})
        source = out.with_name(f"{out.name}.onnx")
        source.parent.mkdir(parents=True, exist_ok=True)
        onnx.save(model, source)
        planned = [
            PlannedEngine(
                name=f"{runtime}-fp32",
                runtime=runtime,
                precision="fp32",
                target=targets.get(runtime, "rtx" if runtime == "tensorrt" else "x86-cpu"),
                runtime_range=version_range(runtime, versions[runtime]),
                batch_max=1,
                directory=None if runtime in plans else directories[runtime],
                graph=source,
                agreement_min=0.999,
                gates={"latency_ms_p95_max": latency_ms_p95_max, "uncertain": uncertain},
                metrics={"miou": 0.5, "latency_ms": {"p50": measured_ms[runtime]} if runtime in measured_ms else None},
            )
            for runtime in runtimes
        ]
        expected = [(class_map + 1) % len(CLASSES) if wrong else class_map for class_map in class_maps]
        golden = [GoldenFrame(f"{index:02d}", *pair) for index, pair in enumerate(zip(frames, expected, strict=True))]
        manifest = {
            "name": name,
            "model": {"arch": "Small"},
            "classes": list(CLASSES),
            "palette": [list(colour) for colour in PALETTE],
            "contract": contract.to_json(),
            "contract_hash": contract.hash,
            "provenance": {},
            "licence": "CC0-1.0",
        }
        write_bundle(out, engines=planned, onnx=source, golden=golden, manifest=manifest)
        if sign:
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("SOURCE_DATE_EPOCH", str(signed_at))
                sign_bundle(out, read_private_key(signing_key))
        return MadeBundle(out, signing_key, signing_key.with_suffix(".pub"), expected[0], frames[0])

    return make


def open_engine_info(directory: Path) -> str:
    from brd_edge.runtime.engine import read_engine

    return read_engine(directory).runtime_version


@pytest.fixture(scope="session")
def bundle(make_bundle: MakeBundle, tmp_path_factory: pytest.TempPathFactory) -> MadeBundle:
    """A signed bundle; not to be written to."""
    return make_bundle(tmp_path_factory.mktemp("made") / "bundle", runtimes=("onnxruntime", "openvino", "tensorrt"))
