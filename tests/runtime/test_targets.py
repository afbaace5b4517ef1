from __future__ import annotations

import pytest

from brd_edge.runtime.builders import BUILDERS
from brd_edge.runtime.runners import RUNNERS
from brd_edge.runtime.targets import TARGETS, check_combination


def test_targets_are_consistent() -> None:
    assert set(TARGETS) == {"x86-cpu", "arm64-cpu", "rtx", "jetson-orin", "jetson-thor", "h100"}
    for name, target in TARGETS.items():
        assert target.name == name
        assert target.built in ("here", "on device")
        assert set(target.runtimes) <= set(RUNNERS)
        for runtime in target.runtimes:
            for precision in target.precisions:
                assert check_combination(runtime, precision, name) is None
    # whatever can be built can be run, and the other way round
    assert set(BUILDERS) == set(RUNNERS)


@pytest.mark.parametrize(
    ("runtime", "precision", "target", "words"),
    [
        ("openvino", "fp32", "rtx", "its runtimes are tensorrt; openvino engines are for x86-cpu"),
        ("tensorrt", "fp32", "x86-cpu", "onnxruntime, openvino; tensorrt engines are for rtx, jetson-orin"),
        ("tflite", "fp32", "x86-cpu", "there is no runtime 'tflite'"),
        ("openvino", "fp8", "x86-cpu", "its precisions are fp32"),
        ("openvino", "fp32", "toaster", "unknown target 'toaster': there are x86-cpu, rtx, arm64-cpu, jetson-orin"),
    ],
)
def test_what_does_not_exist_is_explained(runtime: str, precision: str, target: str, words: str) -> None:
    reason = check_combination(runtime, precision, target)
    assert reason is not None
    assert words in reason
