from __future__ import annotations

import pytest

from brd_edge.distill.parallel import _has_unused
from brd_edge.models.segmentation import ModelSpec, build_model, forward_features


@pytest.mark.parametrize(
    "encoder", ["tu-gcvit_xxtiny", "tu-efficientformer_l1"], ids=["of a shape", "of a table of positions"]
)
def test_an_encoder_of_a_fixed_size_may_have_unused_parameters(encoder: str) -> None:
    model = build_model(ModelSpec("FPN", encoder, 3, {}), encoder_weights=None, seed=0)

    assert _has_unused(model, forward_features)
