from __future__ import annotations

import pytest
import timm
from segmentation_models_pytorch.encoders import get_encoder_names

from brd_edge.models.encoders import encoder_problem, names_in_source


def test_the_libraries_source_names_what_they_have() -> None:
    """Else every plan would import torch, or take a name for an encoder that is none."""
    assert names_in_source() == {*get_encoder_names(), *(f"tu-{name}" for name in timm.list_models())}


@pytest.mark.parametrize(
    "name",
    [
        *("resnet18", "efficientnet-b0", "tu-resnet10t", "tu-resnet50.a1_in1k", "tu-hf-hub:timm/resnet18.a1_in1k"),
        # deprecated, but they load
        *("timm-efficientnet-b0", "timm-mobilenetv3_large_100", "tu-tf_efficientnet_b0_ns"),
    ],
)
def test_what_there_is_has_no_problem(name: str) -> None:
    assert encoder_problem(name) is None


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("mobilenetv3_small_050", "did you mean 'tu-mobilenetv3_small_050', 'tu-mobile"),
        ("resnet10t", "did you mean 'tu-resnet10t', 'resnet101' or"),
        ("resnet19", "did you mean 'resnet18'"),
        ("tu-mobilenet_v9", "did you mean 'tu-mobilenet"),
        ("xyzzy", "unknown encoder 'xyzzy'; segmentation_models_pytorch.encoders.get_encoder_names() lists"),
        ("tu-", "timm.list_models()"),
    ],
)
def test_a_wrong_name_is_told_with_the_closest(name: str, words: str) -> None:
    problem = encoder_problem(name)
    assert problem is not None
    assert words in problem
    assert len(problem) < 400
