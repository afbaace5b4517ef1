from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from brd_edge.runtime.device import describe_device, misfit
from brd_edge.runtime.manifest import BundledEngine

H100 = {
    "machine": "x86_64",
    "gpu_compute_capability": 90,
    "openvino_devices": [],
    "onnxruntime_providers": [],
    "runtimes": {"onnxruntime": None, "openvino": None, "tensorrt": "10.13.3", "tensorrt_rtx": "1.7.1"},
}


def engine(**changes: Any) -> BundledEngine:
    values = {
        **{"name": "e", "runtime": "tensorrt", "precision": "fp16", "target": "h100", "runtime_range": ">=10.3"},
        **{"batch_max": 1, "build": True, "agreement_min": 0.9, "gates": {}, "metrics": {}, **changes},
    }
    return BundledEngine(**values)


def test_a_device_tells_every_package(tmp_path: Path) -> None:
    assert set(describe_device(tmp_path)["runtimes"]) == set(H100["runtimes"])


@pytest.mark.parametrize(
    ("changes", "device", "reason"),
    [
        ({}, {}, None),
        ({}, {"runtimes": {"tensorrt": None, "tensorrt_rtx": "1.7.1"}}, "tensorrt is not installed on the device"),
        ({}, {"runtimes": {"tensorrt": "8.6.1"}}, "it needs tensorrt >=10.3, the device has 8.6.1"),
        ({"target": "rtx-sm89", "runtime_range": "==1.7.1"}, {"gpu_compute_capability": 89}, None),
        (
            {"target": "rtx-sm89", "runtime_range": "==1.6.0"},
            {"gpu_compute_capability": 89},
            "it needs tensorrt_rtx ==1.6.0, the device has 1.7.1",
        ),
        (
            {"target": "jetson-orin"},
            {"machine": "aarch64", "gpu_compute_capability": 87, "runtimes": {"tensorrt": "11.0.0"}},
            "it needs tensorrt >=10.3,<11, the device has 11.0.0",
        ),
        (
            {"target": "jetson-thor"},
            {"machine": "aarch64", "gpu_compute_capability": 110, "runtimes": {"tensorrt": "10.3.0"}},
            "it needs tensorrt >=10.13, the device has 10.3.0",
        ),
        ({"target": "toaster"}, {}, "unknown target 'toaster'"),
        ({"target": "jetson-orin"}, {}, "it is for aarch64 or arm64, the device is x86_64"),
    ],
)
def test_what_does_not_fit_is_explained(changes: dict[str, Any], device: dict[str, Any], reason: str | None) -> None:
    assert misfit(engine(**changes), H100 | device) == reason
