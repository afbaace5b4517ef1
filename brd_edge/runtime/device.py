"""What a device is: processor, runtimes, GPU, power mode and clocks, free space; and which engines fit it."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from brd_edge import __version__
from brd_edge.runtime.errors import RuntimeMissingError
from brd_edge.runtime.manifest import BundledEngine
from brd_edge.runtime.packages import DISTRIBUTIONS, package_of, runtime_version
from brd_edge.runtime.runners.checks import import_runtime
from brd_edge.runtime.runners.openvino import openvino_core
from brd_edge.runtime.runners.tensorrt import require_gpu
from brd_edge.runtime.targets import TARGETS, compute_capabilities
from brd_edge.runtime.versions import version_fits

__all__ = ["describe_device", "misfit"]


def describe_device(root: Path) -> dict[str, Any]:
    """Describe this machine as JSON types.

    Args:
        root: Where releases go; it need not exist yet.

    Returns:
        `machine`, `os`, `python`, `brd_edge`, `cores`, `runtimes` (version by package, None where it is not
        installed; TensorRT has two packages), `gpu_compute_capability` (10 x major + minor, or None),
        `openvino_devices` (CPU, GPU, NPU), `onnxruntime_providers`, `model`, `power_mode`,
        `cpu_mhz` (None where the system does not say), `free_bytes`.
    """
    place = root
    while not place.exists():
        place = place.parent
    return {
        "machine": platform.machine(),
        "model": _first_line(Path("/proc/device-tree/model")) or _processor(),
        "os": platform.platform(),
        "python": platform.python_version(),
        "brd_edge": __version__,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "runtimes": {package: runtime_version(package) for package in DISTRIBUTIONS},
        "gpu_compute_capability": _gpu(),
        "openvino_devices": _openvino_devices(),
        "onnxruntime_providers": _onnxruntime_providers(),
        "power_mode": _power_mode(),
        "cpu_mhz": _cpu_mhz(),
        "free_bytes": shutil.disk_usage(place).free,
    }


def misfit(engine: BundledEngine, device: Mapping[str, Any]) -> str | None:
    """Say why an engine does not fit a device, or None when it fits.

    Args:
        engine: An engine of a bundle, or a plan to build one.
        device: What `describe_device` returned there.
    """
    target = TARGETS.get(engine.target)
    if target is None:
        return f"unknown target {engine.target!r}"
    if device["machine"] not in target.machines:
        return f"it is for {' or '.join(target.machines)}, the device is {device['machine']}"
    missing = _missing_accelerator(engine, device)
    if missing is not None:
        return missing
    package = package_of(engine.runtime, engine.target)
    installed = device["runtimes"].get(package)
    if installed is None:
        return f"{package} is not installed on the device"
    for wanted in (engine.runtime_range, target.versions.get(engine.runtime, engine.runtime_range)):
        if not version_fits(installed, wanted):
            return f"it needs {package} {wanted}, the device has {installed}"
    return None


def _missing_accelerator(engine: BundledEngine, device: Mapping[str, Any]) -> str | None:
    target = TARGETS[engine.target]
    capabilities, capability = compute_capabilities(engine.precision, engine.target), device["gpu_compute_capability"]
    if capabilities and capability not in capabilities:
        has = "no NVIDIA GPU" if capability is None else f"one of compute capability {capability}"
        wanted = ", ".join(map(str, capabilities))
        return f"it needs a GPU of compute capability {wanted}, the device has {has}"
    if target.device == "CUDA":
        providers = device.get("onnxruntime_providers", [])
        if "CUDAExecutionProvider" not in providers:
            return f"it needs ONNX Runtime's CUDAExecutionProvider, the device has {', '.join(providers) or 'none'}"
        return None
    devices = device["openvino_devices"]
    if target.device != "CPU" and target.device not in devices:
        return f"it needs OpenVINO's device {target.device}, the device has {', '.join(devices) or 'none'}"
    return None


def _gpu() -> int | None:
    try:
        return require_gpu()
    except RuntimeMissingError:
        return None


def _openvino_devices() -> list[str]:
    if runtime_version("openvino") is None:
        return []
    try:
        # several of a kind are GPU.0, GPU.1; the first of them is also called GPU
        devices = openvino_core().available_devices
        return sorted({name.split(".")[0] for name in devices})
    except RuntimeMissingError:
        return []


def _onnxruntime_providers() -> list[str]:
    if runtime_version("onnxruntime") is None:
        return []
    try:
        return [str(name) for name in import_runtime("onnxruntime", "").get_available_providers()]
    except RuntimeMissingError:
        return []


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith(("model name", "Model", "Hardware"))]
    return names[0] if names else platform.processor()


def _power_mode() -> str | None:
    """Return the Jetson's power mode (nvpmodel), or the processor's frequency governor."""
    mode = _first_line(Path("/var/lib/nvpmodel/status"))
    governor = _first_line(Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"))
    return f"nvpmodel {mode}" if mode else governor


def _cpu_mhz() -> float | None:
    kilohertz = _first_line(Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq"))
    return int(kilohertz) / 1000 if kilohertz and kilohertz.isdigit() else None


def _first_line(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip("\0\n ").splitlines()[0]
    except (OSError, IndexError):
        return None
