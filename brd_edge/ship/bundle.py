"""The bundle: engines, graph and golden frames in one directory, with a manifest of checksums.

The bundle is not signed yet; its manifest says so.
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

from brd_edge.runtime.files import sha256_file, write_json_atomic

__all__ = ["MANIFEST_VERSION", "GoldenFrame", "write_bundle"]

MANIFEST_VERSION = 1


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


def write_bundle(
    out: Path,
    *,
    engines: Mapping[str, Path],
    onnx: Path,
    golden: Sequence[GoldenFrame],
    agreement_min: float,
    manifest: Mapping[str, Any],
) -> list[Path]:
    """Write a bundle, replacing an earlier one only when it is complete.

    Args:
        out: The bundle's directory.
        engines: Engine directories by name.
        onnx: The student's graph, for engines that are built on a device.
        golden: Frames with the class maps to expect.
        agreement_min: Share of the pixels (0 to 1) of a golden frame that must agree.
        manifest: What else the manifest says, as JSON types.

    Returns:
        The bundle's files, `manifest.json` first.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    for leftover in out.parent.glob(f".{out.name}-*"):
        # what a killed process was writing
        shutil.rmtree(leftover, ignore_errors=True)
    work = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        work.chmod(0o755)
        shutil.copyfile(onnx, work / "student.onnx")
        for name, directory in sorted(engines.items()):
            shutil.copytree(directory, work / "engines" / name)
        (work / "golden").mkdir()
        for item in golden:
            Image.fromarray(item.frame).save(work / "golden" / f"{item.name}.frame.png")
            Image.fromarray(item.class_map).save(work / "golden" / f"{item.name}.class_map.png")
        files = sorted(path for path in work.rglob("*") if path.is_file())
        sums = {
            path.relative_to(work).as_posix(): {"sha256": sha256_file(path), "size_bytes": path.stat().st_size}
            for path in files
        }
        content = {
            "schema_version": MANIFEST_VERSION,
            **manifest,
            "engines": sorted(engines),
            "golden": {"frames": [item.name for item in golden], "agreement_min": agreement_min},
            "files": sums,
            "signature": None,
        }
        write_json_atomic(work / "manifest.json", content)
        _swap(work, out)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return [out / "manifest.json", *(out / name for name in sums)]


def _swap(work: Path, out: Path) -> None:
    """Put the finished directory in place; a directory cannot be renamed over one that is not empty."""
    if not out.exists():
        work.rename(out)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{out.name}-old-", dir=out.parent)) / "bundle"
    out.rename(old)
    work.rename(out)
    shutil.rmtree(old.parent)
