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


ONE_SEED = """\
# Distillation under `recipe.yaml` with other settings

Set for the teacher and every cell, in place of the recipe's own: `data.size=[64, 96]`, `distill.train.epochs=1`.

Scores on the validation split, in points, of seed 3 alone. Lower connectivity error is better. Teacher: mIoU 61.2.

Not done yet: kd, seeds 0, 1; skd, seed 3.

|  | mIoU | Boundary IoU | boundary F | connectivity error |
| --- | ---: | ---: | ---: | ---: |
| none | 47.9 | 31.8 | - | 57.4 |
| kd | 47.3 | 30.9 | - | 60.1 |

Difference to `none`, paired by seed:

|  | mIoU | Boundary IoU | boundary F | connectivity error |
| --- | ---: | ---: | ---: | ---: |
| kd | -0.6 | -0.9 | - | +2.7 |

1 training on a GPU (16 cores), torch 2.0.
"""


def test_every_number_stands_in_its_place() -> None:
    result = _result(0.012, 0.010, 0.011, (-0.009, -0.021, 0.003))
    result |= {"hold_out": "b_*", "seeds": [0, 1], "cells": [_cell(None, 2), _cell("a GPU", 16)]}

    assert format_table(result) == EXPECTED


def test_it_says_what_is_not_as_the_recipe_has_it_and_promises_nothing_of_one_seed() -> None:
    result = _result(None, None, None, (-0.009, None, None))
    missing = [{"arm": arm, "seed": seed} for arm, seed in (("kd", 0), ("skd", 3), ("kd", 1))]
    changed = ["data.size=[64, 96]", "distill.train.epochs=1"]
    result |= {"hold_out": None, "seeds": [3], "cells": [_cell("a GPU", 16)]}

    assert format_table({**result, "overrides": changed, "not_done": missing}) == ONE_SEED


def test_it_promises_nothing_where_no_arm_has_two_seeds() -> None:
    result = _result(None, None, None, (-0.009, None, None))
    table = format_table({**result, "hold_out": None, "seeds": [0, 1], "cells": [_cell("a GPU", 16)]})
    assert "in points: mean over the seeds 0, 1. Lower" in table
    assert "Difference to `none`, paired by seed:" in table


def _result(
    miou: float | None, boundary: float | None, error: float | None, difference: tuple[float | None, ...]
) -> dict[str, Any]:
    """Return a result of two arms with these deviations, and this difference in Boundary IoU."""
    return {
        "recipe": "recipe.yaml",
        "overrides": [],
        "teacher": {"miou": 0.612},
        "summary": {
            "none": {
                "miou": _mean(0.479, miou),
                "boundary_iou": _mean(0.318, boundary),
                "boundary_f": _mean(None),
                "connectivity_error": _mean(0.574, error),
            },
            "kd": {
                "miou": _mean(0.473, none=(-0.006, None, None)),
                "boundary_iou": _mean(0.309, none=difference),
                "boundary_f": _mean(None),
                "connectivity_error": _mean(0.601, none=(0.027, None, None)),
            },
        },
    }


def _cell(gpu: str | None, cores: int) -> dict[str, Any]:
    return {"environment": {"gpu": gpu, "cpu": "a CPU", "cores": cores, "packages": {"torch": "2.0"}}}


def _mean(mean: float | None, deviation: float | None = None, **against: tuple[float | None, ...]) -> dict[str, Any]:
    differences = {control: dict(zip(("mean", "low", "high"), row, strict=True)) for control, row in against.items()}
    return {"mean": mean, "deviation": deviation, "count": 1 if deviation is None else 2, "against": differences}
