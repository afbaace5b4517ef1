from __future__ import annotations

import pytest

from brd_edge.distill.clock import describe_step


@pytest.mark.parametrize(
    ("data_s", "on_gpu", "waits"), [(0.03, True, True), (0.02, True, False), (0.03, False, False), (0.0, True, False)]
)
def test_only_a_gpu_that_waits_for_images_is_helped_by_more_threads(data_s: float, on_gpu: bool, waits: bool) -> None:
    said = describe_step({"data": data_s, "student": 0.08}, on_gpu=on_gpu)

    assert said.startswith(
        f"{1000 * (data_s + 0.08):.0f} ms a step: data {100 * data_s / (data_s + 0.08):.0f} %, student"
    )
    assert ("data.threads" in said) is waits
