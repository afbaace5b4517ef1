from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from brd_edge.distill.frozen import _pairs, fold_normalisations, freeze
from brd_edge.models.segmentation import Features, ModelSpec, build_model, forward_features


def _model(arch: str, encoder: str) -> nn.Module:
    model = build_model(ModelSpec(arch, encoder, 3), encoder_weights=None, seed=0).eval()
    generator = torch.Generator().manual_seed(1)
    # as training leaves them: none of the statistics at their start
    for module in _normalisations(model):
        for values, least in ((module.running_var, 0.5), (module.weight.data, 0.5), (module.running_mean, -0.2)):
            assert values is not None
            values.copy_(least + torch.rand(values.shape, generator=generator))
        module.bias.data.copy_(torch.rand(module.bias.shape, generator=generator) - 0.5)
    return model


def _normalisations(model: nn.Module) -> Iterator[nn.BatchNorm2d]:
    return (module for module in model.modules() if isinstance(module, nn.BatchNorm2d))


def _tensors(features: Features) -> list[Tensor]:
    return [features.logits, features.coarse_logits, features.decoder, *features.encoder.values()]


@pytest.mark.parametrize(
    ("arch", "encoder", "left"),
    [
        ("DeepLabV3Plus", "tu-tf_efficientnet_lite2", 0),
        ("FPN", "resnet18", 0),
        ("Unet", "tu-mobilenetv3_small_050", 0),
        # in 58 dense layers, 3 transitions and at the end, one comes before any convolution
        ("Unet", "densenet121", 62),
    ],
)
def test_the_features_stay_and_the_normalisations_go(arch: str, encoder: str, left: int) -> None:
    model = _model(arch, encoder)
    before = copy.deepcopy(model.state_dict())
    images = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))

    folded = fold_normalisations(model)

    assert len(list(_normalisations(folded))) == left
    with torch.no_grad():
        for found, expected in zip(
            _tensors(forward_features(folded, images)), _tensors(forward_features(model, images)), strict=True
        ):
            torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items()), "the model is left"


def test_a_convolution_that_goes_elsewhere_too_keeps_its_normalisation() -> None:
    """Its output is added to the normalised one: folded, both would change."""

    class Twice(nn.Module):
        def __init__(self, convolution: nn.Conv2d, norm: nn.BatchNorm2d) -> None:
            super().__init__()
            self.convolution, self.norm = convolution, norm

        def forward(self, image: Tensor) -> Tensor:
            convolved = self.convolution(image)
            return convolved + self.norm(convolved)

    model = _model("FPN", "resnet18")
    model.encoder.layer1[0].conv1 = Twice(nn.Conv2d(64, 64, 3, padding=1), nn.BatchNorm2d(64, eps=1.0).eval())

    assert any(name.endswith("conv1.norm") for _, name in _pairs(model, torch.rand(1, 3, 64, 64))), (
        "a pair by its looks"
    )
    assert fold_normalisations(model) is model


def test_a_model_without_normalisations_is_returned() -> None:
    model = build_model(
        ModelSpec("Segformer", "mit_b0", 3, {"decoder_segmentation_channels": 16}), encoder_weights=None, seed=0
    )
    for module in [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]:
        module.track_running_stats = False

    assert fold_normalisations(model.eval()) is model


def test_a_frozen_teacher_is_in_eval_mode_and_gives_no_gradients() -> None:
    teacher = build_model(ModelSpec("FPN", "resnet18", 3), encoder_weights=None, seed=0).train()
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0), requires_grad=True)

    found = freeze(teacher, compiled=False)(images)

    assert not teacher.training
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    assert not any(tensor.requires_grad for tensor in _tensors(found))
    torch.testing.assert_close(found.logits, teacher(images).detach(), rtol=1e-3, atol=1e-3)
