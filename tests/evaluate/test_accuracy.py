"""What a network's logits become: class ids, and 255 where it is not sure enough."""

from __future__ import annotations

import math

import pytest
import torch

from brd_edge.data.dataset import IGNORE_ID
from brd_edge.evaluate.accuracy import network_predictor


class Said(torch.nn.Module):
    """Says the same of every image: class 0 certainly, as surely as class 1, a bit less surely, and class 2."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits = torch.tensor([[9.0, 0.0, -math.inf], [0.0, 0.0, -math.inf], [0.0, 0.0, -9.0], [0.0, 0.0, 1.0]])
        return logits.T[None, :, None].expand(len(images), 3, 1, 4)


@pytest.mark.parametrize(
    ("least", "expected"),
    [
        (0.0, [0, 0, 0, 2]),
        # a half is as sure as the limit, 1 / (2 + exp(-9)) is not
        (0.5, [0, 0, IGNORE_ID, 2]),
        # exp(1) / (2 + exp(1)) is 0.576
        (0.57, [0, IGNORE_ID, IGNORE_ID, 2]),
        (0.58, [0, IGNORE_ID, IGNORE_ID, IGNORE_ID]),
    ],
)
def test_a_pixel_is_kept_that_is_as_sure_as_the_limit(least: float, expected: list[int]) -> None:
    predict = network_predictor(Said(), torch.device("cpu"), confidence_min=least)

    assert predict(torch.zeros(1, 3, 1, 4)).tolist() == [expected]
