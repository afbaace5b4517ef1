from __future__ import annotations

from typing import Any

from benchmarks.distillation_table import format_table

EXPECTED = """\
# Distillation under `recipe.yaml`

Scores on held-out train images `b_*`, in points: mean ± standard deviation over the seeds 0, 1. \
Lower connectivity error is better. Teacher: mIoU 61.2.

|  | mIoU | Boundary IoU | boundary F | connectivity error |
| --- | ---: | ---: | ---: | ---: |
| none | 47.9 ± 1.2 | 31.8 ± 1.0 | - | 57.4 ± 1.1 |
| kd (1 of 2 seeds) | 47.3 | 30.9 | - | 60.1 |

Difference to `none`, paired by seed, with 95 % interval:

|  | mIoU | Boundary IoU | boundary F | connectivity error |
| --- | ---: | ---: | ---: | ---: |
| kd | -0.6 | -0.9 [-2.1, +0.3] | - | +2.7 |

2 trainings on a CPU (2 cores), torch 2.0 and a GPU (16 cores), torch 2.0.
"""


def test_every_number_stands_in_its_place() -> None:
    cells = [
        {"environment": {"gpu": gpu, "cpu": "a CPU", "cores": cores, "packages": {"torch": "2.0"}}}
        for gpu, cores in ((None, 2), ("a GPU", 16))
    ]
    result: dict[str, Any] = {
        "recipe": "recipe.yaml",
        "hold_out": "b_*",
        "seeds": [0, 1],
        "teacher": {"miou": 0.612},
        "cells": cells,
        "summary": {
            "none": {
                "miou": _mean(0.479, 0.012),
                "boundary_iou": _mean(0.318, 0.010),
                "boundary_f": _mean(None),
                "connectivity_error": _mean(0.574, 0.011),
            },
            "kd": {
                "miou": _mean(0.473, none=(-0.006, None, None)),
                "boundary_iou": _mean(0.309, none=(-0.009, -0.021, 0.003)),
                "boundary_f": _mean(None),
                "connectivity_error": _mean(0.601, none=(0.027, None, None)),
            },
        },
    }

    assert format_table(result) == EXPECTED


def _mean(mean: float | None, deviation: float | None = None, **against: tuple[float | None, ...]) -> dict[str, Any]:
    differences = {control: dict(zip(("mean", "low", "high"), row, strict=True)) for control, row in against.items()}
    return {"mean": mean, "deviation": deviation, "count": 1 if deviation is None else 2, "against": differences}
