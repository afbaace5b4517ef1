"""The manifest of a bundle: what is in it, and what every file must be.

`manifest.json` names each file with size and SHA-256, the engines with their runtime versions, the
engines that a device must build itself, and the golden frames. Its signature stands in
`manifest.sig`; nothing here is believed before that was verified.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from brd_edge.runtime.contract import InputContract
from brd_edge.runtime.engine import BATCH_MAX, EngineFile
from brd_edge.runtime.errors import BundleError, ContractError
from brd_edge.runtime.versions import is_specifier

__all__ = [
    "GRAPH_NAME",
    "MANIFEST_BYTES_MAX",
    "MANIFEST_NAME",
    "MANIFEST_VERSION",
    "PLAN_GRAPH_NAME",
    "BundledEngine",
    "Manifest",
    "parse_manifest",
]

MANIFEST_NAME = "manifest.json"
MANIFEST_VERSION = 5
MANIFEST_BYTES_MAX = 4 << 20
GRAPH_NAME = "student.onnx"
PLAN_GRAPH_NAME = "graph.onnx"

_FILES_MAX = 10_000
_SIZE_BYTES_MAX = 16 << 30
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_KEYS = {
    *("schema_version", "name", "model", "classes", "palette", "contract", "contract_hash", "engines"),
    *("golden", "files", "provenance", "licence"),
}
_ENGINE_KEYS = {
    *("name", "runtime", "precision", "target", "runtime_range", "batch_max"),
    *("build", "agreement_min", "gates", "metrics"),
}


@dataclass(frozen=True)
class BundledEngine:
    """An engine of the bundle, or the plan to build it on the device.

    Attributes:
        name: For example `openvino-fp32-x86-cpu`.
        runtime: `"onnxruntime"`, `"openvino"` or `"tensorrt"`.
        precision: For example `"fp32"`.
        target: The device profile.
        runtime_range: Versions of the runtime that load it, such as `">=1.20"` or `"==1.7.1"`.
        batch_max: How many frames it takes at once, at most.
        build: Whether the device builds it; then the graph for that, in its precision, is its only file.
        agreement_min: Share of the pixels (0 to 1) of a golden frame that must be as in PyTorch.
        gates: Limits that it was held to at home, as JSON types.
        metrics: What was measured at home, as JSON types.
    """

    name: str
    runtime: str
    precision: str
    target: str
    runtime_range: str
    batch_max: int
    build: bool
    agreement_min: float
    gates: Mapping[str, Any]
    metrics: Mapping[str, Any]

    @property
    def latency_ms_p95_max(self) -> float | None:
        """Gate that it must hold on the device too, or None."""
        limit = self.gates.get("latency_ms_p95_max")
        return None if limit is None else float(limit)

    @property
    def uncertain(self) -> str:
        """What a gate is whose limit lies within the interval of what was measured: `"broken"` or `"held"`."""
        return str(self.gates.get("uncertain", "broken"))


@dataclass(frozen=True)
class Manifest:
    """The content of `manifest.json`.

    Attributes:
        name: The recipe's name.
        classes: Names by class id.
        palette: RGB colours by class id, 0 to 255.
        contract: The frames that all engines take.
        engines: The engines and build plans by name.
        golden_frames: Names of the golden frames.
        files: Every file of the bundle but the manifest and its signature, by path.
    """

    name: str
    classes: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    contract: InputContract
    engines: Mapping[str, BundledEngine]
    golden_frames: tuple[str, ...]
    files: Mapping[str, EngineFile]

    def engine_files(self, name: str) -> list[str]:
        """Return the paths of an engine's files: of one that the device builds, the graph."""
        return [path for path in self.files if path.startswith(f"engines/{name}/")]

    def common_files(self) -> list[str]:
        """Return the paths of the files that every delivery needs, whatever engines it takes."""
        return [path for path in self.files if not path.startswith("engines/")]


def parse_manifest(content: bytes, what: str) -> Manifest:
    """Parse and check `manifest.json`.

    Args:
        content: The file's bytes, whose signature was verified.
        what: The bundle, for the message.

    Raises:
        BundleError: A key is missing or out of its range; the message names it.
    """
    try:
        values: Any = json.loads(content.decode("utf-8"))
        return _parse(values)
    except (ValueError, TypeError, KeyError, AttributeError, ContractError) as error:
        raise BundleError(f"{what}: {MANIFEST_NAME}: {error}; bundle again with this version of brd-edge") from error


def _parse(values: Any) -> Manifest:
    _expect(isinstance(values, dict), "content", "an object", values)
    version = values.get("schema_version")
    _expect(type(version) is int and version == MANIFEST_VERSION, "schema_version", str(MANIFEST_VERSION), version)
    _expect(set(values) == _KEYS, "keys", str(sorted(_KEYS)), sorted(values))
    _expect(_is_name(values["name"]), "name", "letters, digits, '.', '_' and '-'", values["name"])
    contract = InputContract.from_json(values["contract"])
    _expect(values["contract_hash"] == contract.hash, "contract_hash", contract.hash, values["contract_hash"])
    classes = tuple(str(name) for name in values["classes"])
    palette = tuple((int(red), int(green), int(blue)) for red, green, blue in values["palette"])
    _expect(1 <= len(classes) == len(palette) <= 255, "classes", "1 to 255, with a colour each", len(classes))
    files, frames = _parse_files(values["files"]), tuple(values["golden"]["frames"])
    needed = [f"golden/{name}.{kind}.png" for name in frames for kind in ("frame", "class_map")]
    missing = [path for path in (*needed, GRAPH_NAME) if path not in files]
    _expect(not missing, "files", "the graph, and both files of every golden frame", f"none for {missing}")
    engines = {entry["name"]: _parse_engine(entry) for entry in values["engines"]}
    _expect(len(engines) == len(values["engines"]), "engines", "names that differ", sorted(engines))
    manifest = Manifest(values["name"], classes, palette, contract, engines, frames, files)
    for engine in engines.values():
        found = manifest.engine_files(engine.name)
        planned = found == [f"engines/{engine.name}/{PLAN_GRAPH_NAME}"]
        _expect(bool(found) and planned == engine.build, f"engines.{engine.name}", "files, or a graph to build", found)
    return manifest


def _parse_engine(values: Any) -> BundledEngine:
    _expect(isinstance(values, dict) and set(values) == _ENGINE_KEYS, "engines", str(sorted(_ENGINE_KEYS)), values)
    for key in ("name", "runtime", "precision", "target"):
        _expect(_is_name(values[key]), f"engines.{key}", "letters, digits, '.', '_' and '-'", values[key])
    _expect(is_specifier(values["runtime_range"]), "engines.runtime_range", "such as '>=1.20'", values["runtime_range"])
    count = values["batch_max"]
    _expect(type(count) is int and 1 <= count <= BATCH_MAX, "engines.batch_max", f"from 1 to {BATCH_MAX}", count)
    _expect(type(values["build"]) is bool, "engines.build", "true or false", values["build"])
    share = values["agreement_min"]
    _expect(type(share) in (int, float) and 0 < share <= 1, "engines.agreement_min", "above 0, up to 1", share)
    _expect(isinstance(values["gates"], dict), "engines.gates", "an object", values["gates"])
    limit = values["gates"].get("latency_ms_p95_max")
    _expect(limit is None or type(limit) in (int, float), "engines.gates.latency_ms_p95_max", "a number or null", limit)
    uncertain = values["gates"].get("uncertain", "broken")
    _expect(uncertain in ("broken", "held"), "engines.gates.uncertain", "'broken' or 'held'", uncertain)
    _expect(isinstance(values["metrics"], dict), "engines.metrics", "an object", values["metrics"])
    return BundledEngine(**values)


def _parse_files(values: Any) -> dict[str, EngineFile]:
    _expect(isinstance(values, dict) and len(values) <= _FILES_MAX, "files", f"at most {_FILES_MAX} files", values)
    for path, file in values.items():
        parts = PurePosixPath(path).parts
        plain = bool(parts) and path == "/".join(parts) and all(_is_name(part) for part in parts)
        _expect(plain and len(parts) <= 4, "files", "relative paths of plain names, without '..'", path)
        _expect(isinstance(file, dict) and set(file) == {"sha256", "size_bytes"}, path, "sha256 and size_bytes", file)
        sha256, size_bytes = file["sha256"], file["size_bytes"]
        _expect(isinstance(sha256, str) and bool(_SHA256.fullmatch(sha256)), f"{path}.sha256", "64 digits", sha256)
        _expect(type(size_bytes) is int and size_bytes >= 0, f"{path}.size_bytes", "a whole number", size_bytes)
    total = sum(file["size_bytes"] for file in values.values())
    _expect(total <= _SIZE_BYTES_MAX, "files", f"at most {_SIZE_BYTES_MAX:,} bytes in all", f"{total:,}")
    return {path: EngineFile(file["sha256"], file["size_bytes"]) for path, file in values.items()}


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and bool(_NAME.fullmatch(value))


def _expect(condition: bool, key: str, expected: str, got: Any) -> None:
    if not condition:
        raise ValueError(f"{key}: expected {expected}, got {str(got)[:200]!r}")
