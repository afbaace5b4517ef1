"""What a result was measured with: packages, processor, GPU, driver, commit."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

__all__ = ["describe_environment", "gpu_names", "package_version"]

_PACKAGES = (
    "brd-edge",
    "numpy",
    "pillow",
    "torch",
    "torchvision",
    "timm",
    "segmentation-models-pytorch",
    "onnx",
    "onnxscript",
    "onnxruntime",
    "openvino",
    "tensorrt",
    "tensorrt-rtx",
    "nncf",
    "numba",
    "nvidia-dali-cuda130",
)


def describe_environment() -> dict[str, Any]:
    """Return packages, processor, GPU, driver and the source's commit as JSON types.

    What cannot be found out is `None`.
    """
    gpus = gpu_names()
    return {
        "cpu": _cpu_name(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "os": platform.platform(),
        "python": platform.python_version(),
        "gpu": gpus[0][0] if gpus else None,
        "driver": gpus[0][1] if gpus else None,
        "commit": _commit(),
        "packages": {name: found for name in _PACKAGES if (found := package_version(name)) is not None},
    }


def gpu_names() -> list[tuple[str, str]]:
    """Return name and driver version of every NVIDIA GPU; empty where there is none."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return []
    text = _output([tool, "--query-gpu=name,driver_version", "--format=csv,noheader"])
    rows = [line.split(", ") for line in (text or "").splitlines()]
    return [(row[0], row[1]) for row in rows if len(row) == 2]


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _commit() -> str | None:
    here = Path(__file__).parent
    git = shutil.which("git")
    if git is None:
        return None
    # the package may lie inside somebody else's repository, whose commit says nothing about it
    tracked = _output([git, "-C", str(here), "ls-files", "--error-unmatch", Path(__file__).name])
    commit = _output([git, "-C", str(here), "rev-parse", "HEAD"]) if tracked else None
    if commit is None:
        return None
    changed = _output([git, "-C", str(here), "status", "--porcelain", "--untracked-files=no", "--", "."])
    return commit.strip() + (" with changes" if changed and changed.strip() else "")


def _output(command: list[str]) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)  # noqa: S603
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout if done.returncode == 0 else None


def package_version(name: str) -> str | None:
    """Return an installed package's version from its metadata, without importing it."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None
