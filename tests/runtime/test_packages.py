from __future__ import annotations

import importlib.metadata
import importlib.util
from pathlib import Path
from types import SimpleNamespace

import pytest

from brd_edge.runtime import builders
from brd_edge.runtime.builders import build_engine
from brd_edge.runtime.contract import InputContract
from brd_edge.runtime.errors import EngineError
from brd_edge.runtime.packages import DISTRIBUTIONS, package_of, recorded_versions, runtime_version
from brd_edge.runtime.targets import TARGETS


def install(monkeypatch: pytest.MonkeyPatch, versions: dict[str, str]) -> None:
    """Let these distributions be installed, and no others."""

    def version(name: str) -> str:
        if name not in versions:
            raise importlib.metadata.PackageNotFoundError(name)
        return versions[name]

    there = {package for package, names in DISTRIBUTIONS.items() if set(names) & set(versions)}
    monkeypatch.setattr(importlib.metadata, "version", version)
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: SimpleNamespace(origin="here") if name in there else None
    )


def test_versions_are_the_packages_own() -> None:
    onnxruntime, openvino = pytest.importorskip("onnxruntime"), pytest.importorskip("openvino")
    assert runtime_version("onnxruntime") == onnxruntime.__version__
    assert openvino.__version__.startswith(str(runtime_version("openvino")))
    with pytest.raises(EngineError, match="unknown runtime 'tflite': there are onnxruntime"):
        runtime_version("tflite")


def test_a_package_that_other_distributions_bring(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    install(monkeypatch, {"onnxruntime-gpu": "1.22.0"})
    assert runtime_version("onnxruntime") == "1.22.0"
    # whose files lie there is not recorded: the package itself is asked
    real = __import__("onnxruntime").__version__
    install(monkeypatch, {"onnxruntime-gpu": "1.22.0", "onnxruntime": "1.19.0"})
    assert recorded_versions("onnxruntime") == ("1.19.0", "1.22.0")
    assert runtime_version("onnxruntime") == real


def test_the_target_decides_which_tensorrt() -> None:
    found = {name: package_of("tensorrt", name) for name, target in TARGETS.items() if "tensorrt" in target.runtimes}
    assert found.pop("rtx") == found.pop("rtx-sm89") == "tensorrt_rtx"
    assert {found[name] for name in ("jetson-orin", "jetson-thor", "h100")} == {"tensorrt"}
    assert package_of("openvino", "x86-cpu") == "openvino"


def test_an_engine_names_the_tensorrt_that_built_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both are installed: each engine belongs to the one that its target has."""
    install(monkeypatch, {"tensorrt-rtx": "1.7.1", "tensorrt": "10.13.3"})

    def build(_onnx: Path, directory: Path, *_more: object, **_settings: object) -> tuple[str, ...]:
        (directory / "model.engine").write_bytes(b"engine")
        return ("model.engine",)

    monkeypatch.setattr(builders, "build_tensorrt", build)
    monkeypatch.setattr(builders, "build_tensorrt_here", build)
    (tmp_path / "graph.onnx").touch()
    for target, expected in (("rtx", "tensorrt_rtx 1.7.1"), ("h100", "tensorrt 10.13.3")):
        info = build_engine(
            runtime="tensorrt",
            precision="fp32",
            target=target,
            onnx=tmp_path / "graph.onnx",
            out=tmp_path / target,
            contract=InputContract(16, 32, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)),
            classes=["road"],
            palette=[(0, 0, 0)],
            on_device=True,
        )
        assert info.runtime_version == expected
