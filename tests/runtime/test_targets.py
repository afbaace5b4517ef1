from __future__ import annotations

import pytest

from brd_edge.runtime.builders import BUILDERS
from brd_edge.runtime.runners import RUNNERS
from brd_edge.runtime.targets import TARGETS, check_combination, compute_capabilities
from brd_edge.runtime.versions import is_specifier


def test_targets_are_consistent() -> None:
    assert {"x86-cpu", "arm64-cpu", "intel-igpu", "intel-npu", "jetson-orin", "jetson-thor", "h100"} <= set(TARGETS)
    assert {f"rtx-sm{number}" for number in (75, 80, 86, 89, 120)} <= set(TARGETS)
    for name, target in TARGETS.items():
        assert target.name == name
        assert target.built in ("here", "on device")
        assert set(target.runtimes) <= set(RUNNERS)
        assert set(target.versions) == set(target.runtimes)
        assert all(is_specifier(versions) for versions in target.versions.values())
        for runtime in target.runtimes:
            for precision in target.precisions[runtime]:
                assert check_combination(runtime, precision, name) is None
    # whatever can be built can be run, and the other way round
    assert set(BUILDERS) == set(RUNNERS)


@pytest.mark.parametrize(
    ("runtime", "precision", "target", "words"),
    [
        ("openvino", "fp32", "rtx", "its runtimes are tensorrt; openvino engines are for x86-cpu"),
        ("tensorrt", "fp32", "x86-cpu", "onnxruntime, openvino; tensorrt engines are for rtx, rtx-sm75"),
        ("tflite", "fp32", "x86-cpu", "there is no runtime 'tflite'"),
        ("openvino", "fp8", "x86-cpu", "its precisions are fp32, bf16, int8, int8-bf16"),
        ("tensorrt", "bf16", "rtx-sm75", "its precisions are fp32, fp16, int8, int8-fp16"),
        ("openvino", "fp32", "toaster", "unknown target 'toaster': there are x86-cpu, arm64-cpu, intel-igpu"),
    ],
)
def test_what_does_not_exist_is_explained(runtime: str, precision: str, target: str, words: str) -> None:
    reason = check_combination(runtime, precision, target)
    assert reason is not None
    assert words in reason


def test_turing_has_no_bfloat16() -> None:
    assert compute_capabilities("fp16", "rtx") == (75, 80, 86, 89, 120, 121)
    assert compute_capabilities("bf16", "rtx") == (80, 86, 89, 120, 121)
    assert compute_capabilities("fp32", "x86-cpu") == ()
