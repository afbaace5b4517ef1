from __future__ import annotations

import dataclasses
import json
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from PIL import Image

from brd_edge.deploy.export import METADATA_PREFIX
from brd_edge.runtime.builders import build_engine
from brd_edge.runtime.contract import InputContract
from brd_edge.runtime.engine import SIDECAR, open_engine, read_engine, verify_files, write_engine
from brd_edge.runtime.errors import ContractError, EngineError, RuntimeMissingError
from brd_edge.runtime.targets import TARGETS

RUNTIMES = ["onnxruntime", "openvino", "tensorrt"]


@pytest.fixture
def engine(engines: dict[str, Path], tmp_path: Path) -> Callable[[str], Path]:
    """Copy an engine, so that a test may spoil it."""
    return lambda runtime: shutil.copytree(engines[runtime], tmp_path / runtime)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_sidecar_round_trip(engines: dict[str, Path], contract: InputContract, runtime: str, tmp_path: Path) -> None:
    info = read_engine(engines[runtime])
    assert (info.runtime, info.precision, info.contract) == (runtime, "fp32", contract)
    on_disk = {path.name: path.stat().st_size for path in engines[runtime].iterdir() if path.name != SIDECAR}
    assert {name: file.size_bytes for name, file in info.files.items()} == on_disk
    assert info.size_bytes == sum(on_disk.values())
    write_engine(tmp_path, info)
    assert read_engine(tmp_path) == info


@pytest.mark.parametrize(
    ("change", "field"),
    [({"height": 48}, "height: 48 against 24"), ({"mean": (0.5, 0.5, 0.5)}, "mean"), ({"std": (0.5, 1.0, 1.0)}, "std")],
)
def test_another_contract_is_refused(
    engines: dict[str, Path], contract: InputContract, change: dict[str, Any], field: str
) -> None:
    with pytest.raises(ContractError, match=field):
        open_engine(engines["onnxruntime"], contract=dataclasses.replace(contract, **change))


@pytest.mark.parametrize(
    ("runtime", "name"),
    [("onnxruntime", "model.onnx"), ("openvino", "model.xml"), ("openvino", "model.bin"), ("tensorrt", "model.engine")],
)
def test_a_changed_file_is_refused(engine: Callable[[str], Path], runtime: str, name: str) -> None:
    directory = engine(runtime)
    path = directory / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(EngineError, match=f"{name}: expected SHA-256"):
        open_engine(directory)
    path.write_bytes(content[:-1])
    with pytest.raises(EngineError, match=f"{name}: expected {len(content)} bytes, got {len(content) - 1}"):
        open_engine(directory)
    path.unlink()
    with pytest.raises(EngineError, match=f"{name}: missing"):
        verify_files(directory, read_engine(directory))


def test_weights_that_the_sidecar_does_not_list_are_not_loaded(engine: Callable[[str], Path]) -> None:
    directory = engine("openvino")
    values = json.loads((directory / SIDECAR).read_text())
    del values["files"]["model.bin"]
    (directory / SIDECAR).write_text(json.dumps(values))
    with pytest.raises(EngineError, match=r"expected model\.bin among the sidecar's files"):
        open_engine(directory)


ZEROS = {"sha256": "0" * 64, "size_bytes": 1}
SPOILED: list[tuple[dict[str, Any], str]] = [
    ({"schema_version": 1}, "schema_version: expected 3, got 1: rebuild the engine, or open it with"),
    ({"schema_version": True}, "schema_version"),
    ({"runtime": ""}, "runtime"),
    ({"runtime": "tflite"}, r"runtime: expected one of .*onnxruntime"),
    ({"precision": None}, "precision"),
    ({"created_by": 3}, "created_by"),
    ({"more": 1}, "keys"),
    ({"entry": "other.onnx"}, "entry"),
    ({"entry": ["model.onnx"]}, "entry"),
    ({"files": {}}, "files"),
    ({"files": {"../model.onnx": ZEROS}, "entry": "../model.onnx"}, "files"),
    ({"files": {"/etc/passwd": ZEROS}, "entry": "/etc/passwd"}, "files"),
    ({"files": {SIDECAR: ZEROS}, "entry": SIDECAR}, "files"),
    ({"files": {"model.onnx": {"sha256": "0" * 63, "size_bytes": 1}}}, r"files\.model\.onnx\.sha256"),
    ({"files": {"model.onnx": {"sha256": "0" * 64, "size_bytes": -1}}}, r"files\.model\.onnx\.size_bytes"),
    ({"files": {"model.onnx": {"sha256": "0" * 64}}}, r"files\.model\.onnx"),
    ({"classes": []}, "classes"),
    ({"classes": ["road", "road", "a", "b", "c"]}, "classes"),
    ({"classes": [1, 2, 3, 4, 5]}, "classes"),
    ({"palette": [[0, 0, 0]]}, "palette"),
    ({"palette": [[0, 0, 256]] * 5}, r"palette\[0\]"),
    ({"contract": None}, "contract"),
    ({"batch_max": 0}, "batch_max"),
    ({"batch_max": 65}, "batch_max"),
    ({"batch_max": True}, "batch_max"),
    ({"logits": {}}, "logits"),
    ({"logits": {"align_corners": 1}}, "logits"),
]


@pytest.mark.parametrize(("change", "key"), SPOILED)
def test_a_spoiled_sidecar_is_refused(engine: Callable[[str], Path], change: dict[str, Any], key: str) -> None:
    directory = engine("onnxruntime")
    values = json.loads((directory / SIDECAR).read_text())
    (directory / SIDECAR).write_text(json.dumps({**values, **change}))
    with pytest.raises(EngineError, match=rf"engine\.json: {key}"):
        open_engine(directory)


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"height": "24"}, r"contract\.height"),
        ({"width": 0}, r"contract\.width"),
        ({"mean": [0, 0]}, r"contract\.mean"),
        ({"std": [1, 1, "1"]}, r"contract\.std"),
        ({"std": [1, 1, 0]}, "contract: every std"),
        ({"layout": "NCHW"}, "contract: layout"),
        ({"gamma": 1}, r"contract: .*unknown \['gamma'\]"),
    ],
)
def test_a_spoiled_contract_is_refused(engine: Callable[[str], Path], change: dict[str, Any], key: str) -> None:
    directory = engine("onnxruntime")
    values = json.loads((directory / SIDECAR).read_text())
    values["contract"] |= change
    (directory / SIDECAR).write_text(json.dumps(values))
    with pytest.raises(EngineError, match=rf"engine\.json: {key}"):
        read_engine(directory)


def test_no_sidecar_and_no_json(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"engine\.json: not found"):
        read_engine(tmp_path / "nowhere")
    for content in (b"{", b"\xff\xfe", b""):
        (tmp_path / SIDECAR).write_bytes(content)
        with pytest.raises(EngineError, match=r"engine\.json: not JSON"):
            read_engine(tmp_path)
    with pytest.raises(EngineError, match=r"engine\.json: expected the directory of an engine, got a file of it"):
        read_engine(tmp_path / SIDECAR)
    (tmp_path / SIDECAR).write_text("[]")
    with pytest.raises(EngineError, match=r"engine\.json: content: expected an object"):
        read_engine(tmp_path)


def test_write_refuses_what_read_would_refuse(engines: dict[str, Path], tmp_path: Path) -> None:
    info = read_engine(engines["onnxruntime"])
    with pytest.raises(EngineError, match="entry"):
        write_engine(tmp_path, dataclasses.replace(info, entry="other"))
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def labelled(graph: Path, contract: InputContract, tmp_path: Path) -> Path:
    """The graph with its contract in its metadata, as the exporter writes it."""
    model = onnx.load(graph)
    onnx.helper.set_model_props(model, {f"{METADATA_PREFIX}contract_hash": contract.hash})
    onnx.save(model, tmp_path / "labelled.onnx")
    return tmp_path / "labelled.onnx"


def build(graph: Path, out: Path, runtime: str, contract: InputContract) -> None:
    build_engine(
        runtime=runtime,
        precision="fp32",
        target="x86-cpu",
        onnx=graph,
        out=out,
        contract=contract,
        classes=["a", "b", "c", "d", "e"],
        palette=[(0, 0, 0)] * 5,
    )


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_a_contract_that_is_not_the_graphs_is_refused(
    labelled: Path, contract: InputContract, tmp_path: Path, runtime: str
) -> None:
    build(labelled, tmp_path / "engine", runtime, contract)
    open_engine(tmp_path / "engine").close()
    path = tmp_path / "engine" / SIDECAR
    values = json.loads(path.read_text())
    values["contract"]["mean"] = [0.5, 0.5, 0.5]
    path.write_text(json.dumps(values))
    changed = read_engine(tmp_path / "engine").contract
    words = rf"for the input contract {contract.hash}, the contract in engine\.json is {changed.hash}"
    with pytest.raises(EngineError, match=words):
        open_engine(tmp_path / "engine")
    with pytest.raises(EngineError, match=words):
        build(labelled, tmp_path / "other", runtime, changed)
    assert not (tmp_path / "other").exists()


def test_openvino_engines_carry_the_contract_of_graphs_that_do_not(
    engine: Callable[[str], Path], contract: InputContract
) -> None:
    directory = engine("openvino")
    values = json.loads((directory / SIDECAR).read_text())
    values["contract"]["std"] = [0.5, 1.0, 1.0]
    (directory / SIDECAR).write_text(json.dumps(values))
    with pytest.raises(EngineError, match=f"for the input contract {contract.hash}, the contract in"):
        open_engine(directory)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("tensorrt-fp16-jetson-orin", ", jetson-orin: run  "),
        ("tensorrt-fp16-h100-batch4", ", h100: run  "),
        ("mine", "on the device itself: run  "),
    ],
)
def test_a_graph_to_be_built_on_the_device(graph: Path, tmp_path: Path, name: str, words: str) -> None:
    directory = tmp_path / "bundle" / "engines" / name
    directory.mkdir(parents=True)
    shutil.copy(graph, directory / "graph.onnx")
    with pytest.raises(EngineError, match=rf"{name}: not an engine yet.*{words}python .* build BUNDLE  there"):
        open_engine(directory)
    (tmp_path / "bundle" / "manifest.json").touch()
    with pytest.raises(EngineError, match=rf"{words}python -m brd_edge\.runtime build {tmp_path / 'bundle'}  there"):
        open_engine(directory)


def test_paths_may_be_texts(engines: dict[str, Path]) -> None:
    open_engine(str(engines["onnxruntime"]), threads=1).close()


def test_the_snippet_of_the_readme_runs(
    engines: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    (snippet,) = (text for text in re.findall(r"```python\n(.*?)```", readme, re.DOTALL) if "open_engine" in text)
    place = tmp_path / "runs" / "quickstart" / "engines" / "openvino-fp32-x86-cpu"
    shutil.copytree(engines["openvino"], place)
    Image.new("RGB", (100, 50), (200, 30, 60)).save(tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(compile(snippet, "README.md", "exec"), names)  # noqa: S102 - our own text
    assert (names["class_map"].shape, names["class_map"].dtype) == ((24, 40), np.uint8)


def test_threads_are_checked(engines: dict[str, Path]) -> None:
    with pytest.raises(EngineError, match="threads: expected 1 to 4096, or None"):
        open_engine(engines["onnxruntime"], threads=0)


LOADED = """
import sys
from pathlib import Path
from brd_edge.runtime.engine import open_engine
from brd_edge.runtime.errors import EngineError
try:
    open_engine(Path(sys.argv[1]))
except EngineError as error:
    print(type(error).__name__, error)
print(sorted({"onnxruntime", "openvino", "tensorrt_rtx"} & set(sys.modules)))
"""


@pytest.mark.parametrize(
    ("runtime", "change", "kind", "words"),
    [
        (
            "onnxruntime",
            {"target": "toaster"},
            "EngineError",
            "engine.json: target: expected one of x86-cpu, arm64-cpu",
        ),
        ("tensorrt", {"target": "toaster"}, "EngineError", "got 'toaster'"),
        ("onnxruntime", {"target": "OTHER"}, "RuntimeMissingError", "this machine is"),
        ("openvino", {"runtime_version": "2999.1.0"}, "EngineError", "needs openvino >=2999.0, installed is 20"),
        ("openvino", {"runtime_version": "unknown"}, "EngineError", "engine.json: runtime_version: expected a version"),
        ("onnxruntime", {"runtime_version": "abc"}, "EngineError", "engine.json: runtime_version: expected a version"),
        (
            "tensorrt",
            {"runtime_version": "tensorrt_rtx 1.0.0"},
            "EngineError",
            "needs tensorrt_rtx ==1.0.0, installed is 1",
        ),
    ],
)
def test_what_belongs_elsewhere_is_refused_before_it_is_loaded(
    engine: Callable[[str], Path], runtime: str, change: dict[str, str], kind: str, words: str
) -> None:
    directory = engine(runtime)
    values = json.loads((directory / SIDECAR).read_text())
    if change.get("target") == "OTHER":
        change = {"target": "arm64-cpu" if platform.machine() in TARGETS["x86-cpu"].machines else "x86-cpu"}
    (directory / SIDECAR).write_text(json.dumps({**values, **change}))
    command = [sys.executable, "-W", "error", "-c", LOADED, str(directory)]
    refused, loaded = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert refused.startswith(f"{kind} ")
    assert words in refused
    assert loaded == "[]"


def test_engines_for_other_processors_are_built_here(graph: Path, contract: InputContract, tmp_path: Path) -> None:
    other = "arm64-cpu" if platform.machine() in TARGETS["x86-cpu"].machines else "x86-cpu"
    for runtime in ("onnxruntime", "openvino"):
        build_engine(
            runtime=runtime,
            precision="fp32",
            target=other,
            onnx=graph,
            out=tmp_path / runtime,
            contract=contract,
            classes=["a", "b", "c", "d", "e"],
            palette=[(0, 0, 0)] * 5,
        )
        with pytest.raises(RuntimeMissingError, match="run the engine on such a device"):
            open_engine(tmp_path / runtime)
