"""Which package each runtime is, and which version of it is installed here; none is imported unless it has to be."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import platform
from pathlib import Path
from typing import TYPE_CHECKING

from brd_edge.runtime.errors import EngineError, RuntimeMissingError
from brd_edge.runtime.runners.checks import import_runtime
from brd_edge.runtime.targets import TARGETS
from brd_edge.runtime.versions import version_fits, version_range

if TYPE_CHECKING:
    from brd_edge.runtime.engine import EngineInfo

__all__ = ["DISTRIBUTIONS", "package_of", "recorded_versions", "require_home", "runtime_version"]

DISTRIBUTIONS: dict[str, tuple[str, ...]] = {
    "onnxruntime": ("onnxruntime", "onnxruntime-gpu", "onnxruntime-openvino", "onnxruntime-directml"),
    "openvino": ("openvino", "openvino-nightly"),
    "tensorrt": ("tensorrt", "tensorrt-cu12", "tensorrt-cu13"),
    "tensorrt_rtx": ("tensorrt-rtx", "tensorrt-rtx-cu12", "tensorrt-rtx-cu13"),
}
"""From the package of a runtime to the distributions that bring it.

The runtime `tensorrt` has two packages with one API, which do not read each other's engines and may both be installed.
"""


def package_of(runtime: str, target: str) -> str:
    """Return the package that builds and runs a runtime's engines for a target: one of `DISTRIBUTIONS`.

    Args:
        runtime: For example `"tensorrt"`.
        target: One of `brd_edge.runtime.targets.TARGETS`; ahead of time and without a GPU only TensorRT-RTX builds.
    """
    if runtime != "tensorrt":
        return runtime
    return "tensorrt_rtx" if TARGETS[target].built == "here" else "tensorrt"


def recorded_versions(package: str) -> tuple[str, ...]:
    """Return the versions that the installer's records have for a package, each once.

    None where it cannot be imported, or came without a record; more than one where distributions overlap, and then
    the records do not tell whose files are there.
    """
    try:
        spec = importlib.util.find_spec(package)
    except (ImportError, ValueError):
        return ()
    # a directory of that name without the package, such as type stubs leave, has no origin
    if spec is None or spec.origin is None:
        return ()
    found = []
    for name in DISTRIBUTIONS[package]:
        try:
            found.append(importlib.metadata.version(name))
        except importlib.metadata.PackageNotFoundError:
            continue
    return tuple(dict.fromkeys(found))


def runtime_version(package: str) -> str | None:
    """Return the version of a runtime's package that is installed, or None.

    It is imported, which takes seconds, only where the installer's records do not tell.

    Args:
        package: One of `DISTRIBUTIONS`.

    Raises:
        EngineError: There is no such package.
    """
    if package not in DISTRIBUTIONS:
        raise EngineError(f"unknown runtime {package!r}: there are {', '.join(DISTRIBUTIONS)}")
    recorded = recorded_versions(package)
    if len(recorded) == 1:
        return recorded[0]
    try:
        # OpenVINO appends its commit and branch
        return str(import_runtime(package, "").__version__).split("-", maxsplit=1)[0]
    except RuntimeMissingError:
        return None


def require_home(path: Path, info: EngineInfo) -> None:
    """Refuse an engine that is not for this machine, or not for the runtime that is installed; nothing is imported.

    What the installer's records do not tell is left to the runner.

    Args:
        path: The sidecar, for the message.
        info: What it says.

    Raises:
        RuntimeMissingError: The target has another processor.
        EngineError: The target is unknown, or the runtime has a version that does not load the engine.
    """
    target = TARGETS.get(info.target)
    if target is None:
        raise EngineError(
            f"{path}: target: expected one of {', '.join(TARGETS)}, got {info.target!r}; "
            f"use a brd-edge that knows it ({info.created_by} wrote it), or rebuild the engine"
        )
    machine = platform.machine()
    if machine not in target.machines:
        raise RuntimeMissingError(
            f"{path}: target: {info.target} is for {' or '.join(target.machines)}, this machine is {machine}: "
            "run the engine on such a device, or build one for this one"
        )
    # TensorRT's two packages do not read each other's engines, so the sidecar names the one
    package = info.runtime_version.split()[0] if info.runtime == "tensorrt" else info.runtime
    recorded = recorded_versions(package) if package in DISTRIBUTIONS else ()
    try:
        wanted = version_range(info.runtime, info.runtime_version)
    except EngineError as error:
        raise EngineError(f"{path}: {error}") from error
    if recorded and not any(version_fits(version, wanted) for version in recorded):
        raise EngineError(
            f"{path}: runtime_version: the engine was built by {info.runtime_version} and needs {package} {wanted}, "
            f"installed is {' and '.join(recorded)}: install such a version, or rebuild the engine"
        )
