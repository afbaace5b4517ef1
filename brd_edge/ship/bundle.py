"""The bundle: engines, graph, golden frames and the device's runtime in one directory, and in one archive.

The same inputs give the same bytes: nothing in a bundle is a time or a place.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from brd_edge.runtime.archive import ARCHIVE_SUFFIX, write_archive
from brd_edge.runtime.errors import BundleError
from brd_edge.runtime.files import sha256_file, write_json_atomic
from brd_edge.runtime.manifest import GRAPH_NAME, MANIFEST_NAME, MANIFEST_VERSION, PLAN_GRAPH_NAME, parse_manifest
from brd_edge.runtime.signature import SIGNATURE_NAME
from brd_edge.ship.wheel import write_runtime_wheel

__all__ = ["GoldenFrame", "PlannedEngine", "bundle_files", "pack_bundle", "write_bundle"]


@dataclass(frozen=True)
class GoldenFrame:
    """A frame and the class map that an engine must return for it.

    Attributes:
        name: File name stem.
        frame: uint8 (H, W, 3) RGB of the contract's size.
        class_map: uint8 (H, W), from the PyTorch student.
    """

    name: str
    frame: np.ndarray[Any, np.dtype[np.uint8]]
    class_map: np.ndarray[Any, np.dtype[np.uint8]]


@dataclass(frozen=True)
class PlannedEngine:
    """An engine of the bundle.

    Attributes:
        name: For example `openvino-fp32-x86-cpu`.
        runtime: What runs it.
        precision: For example `"fp32"`.
        target: The device profile.
        runtime_range: Versions of the runtime that load it; see `brd_edge.runtime.versions`.
        batch_max: How many frames it takes at once, at most.
        directory: Its files, or None where the device builds it.
        graph: What it was built from, or what the device builds it from.
        agreement_min: Share of the pixels (0 to 1) of a golden frame that must be as in PyTorch.
        gates: Limits that it was held to, as JSON types; a device holds it to `latency_ms_p95_max`.
        metrics: What was measured, as JSON types.
    """

    name: str
    runtime: str
    precision: str
    target: str
    runtime_range: str
    batch_max: int
    directory: Path | None
    graph: Path
    agreement_min: float
    gates: Mapping[str, Any]
    metrics: Mapping[str, Any]

    def to_json(self) -> dict[str, Any]:
        """Return the manifest's entry."""
        return {
            "name": self.name,
            "runtime": self.runtime,
            "precision": self.precision,
            "target": self.target,
            "runtime_range": self.runtime_range,
            "batch_max": self.batch_max,
            "build": self.directory is None,
            "agreement_min": self.agreement_min,
            "gates": dict(self.gates),
            "metrics": dict(self.metrics),
        }


def write_bundle(
    out: Path,
    *,
    engines: Sequence[PlannedEngine],
    onnx: Path,
    golden: Sequence[GoldenFrame],
    manifest: Mapping[str, Any],
) -> list[Path]:
    """Write an unsigned bundle, replacing an earlier one only when it is complete.

    Args:
        out: The bundle's directory.
        engines: The engines and build plans.
        onnx: The student's graph.
        golden: Frames with the class maps to expect.
        manifest: The manifest's other keys: `name`, `model`, `classes`, `palette`, `contract`,
            `contract_hash`, `provenance` and `licence`, as JSON types.

    Returns:
        The bundle's files, `manifest.json` first.

    Raises:
        BundleError: A key of the manifest is missing or out of its range.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    for leftover in out.parent.glob(f".{out.name}-*"):
        # what a killed process was writing
        shutil.rmtree(leftover, ignore_errors=True)
    work = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        work.chmod(0o755)
        shutil.copyfile(onnx, work / GRAPH_NAME)
        for engine in engines:
            if engine.directory is not None:
                shutil.copytree(engine.directory, work / "engines" / engine.name)
            else:
                (work / "engines" / engine.name).mkdir(parents=True)
                shutil.copyfile(engine.graph, work / "engines" / engine.name / PLAN_GRAPH_NAME)
        (work / "golden").mkdir()
        for item in golden:
            Image.fromarray(item.frame).save(work / "golden" / f"{item.name}.frame.png")
            Image.fromarray(item.class_map).save(work / "golden" / f"{item.name}.class_map.png")
        write_runtime_wheel(work / "wheel")
        files = sorted(path for path in work.rglob("*") if path.is_file())
        content = {
            "schema_version": MANIFEST_VERSION,
            **manifest,
            "engines": [engine.to_json() for engine in sorted(engines, key=lambda engine: engine.name)],
            "golden": {"frames": [item.name for item in golden]},
            "files": {
                path.relative_to(work).as_posix(): {"sha256": sha256_file(path), "size_bytes": path.stat().st_size}
                for path in files
            },
        }
        write_json_atomic(work / MANIFEST_NAME, content)
        parse_manifest((work / MANIFEST_NAME).read_bytes(), str(out))
        _swap(work, out)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return [out / MANIFEST_NAME, *(out / path.relative_to(work) for path in files)]


def bundle_files(directory: Path) -> list[str]:
    """Return the files of a bundle in the order in which they are packed: manifest and signature first.

    Raises:
        BundleError: It is no bundle.
    """
    if not (directory / MANIFEST_NAME).is_file():
        raise BundleError(f"{directory}: has no {MANIFEST_NAME}; expected the directory of a bundle")
    manifest = parse_manifest((directory / MANIFEST_NAME).read_bytes(), str(directory))
    signature = [SIGNATURE_NAME] if (directory / SIGNATURE_NAME).is_file() else []
    return [MANIFEST_NAME, *signature, *sorted(manifest.files)]


def pack_bundle(directory: Path) -> Path:
    """Pack a bundle into one archive beside its directory and return the archive's path.

    Raises:
        BundleError: It is no bundle.
    """
    archive = directory.with_name(directory.name + ARCHIVE_SUFFIX)
    write_archive(archive, directory, bundle_files(directory))
    return archive


def _swap(work: Path, out: Path) -> None:
    """Put the finished directory in place; a directory cannot be renamed over one that is not empty."""
    if not out.exists():
        work.rename(out)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{out.name}-old-", dir=out.parent)) / "bundle"
    out.rename(old)
    work.rename(out)
    shutil.rmtree(old.parent)
