from __future__ import annotations

import segmentation_models_pytorch as smp
import torch
import torch.nn.functional as F

from brd_edge.distill.depthwise import DepthwiseInFloat32


def test_depthwise_convolutions_are_computed_in_float32_and_others_in_bfloat16() -> None:
    torch.manual_seed(0)
    image, depthwise, pointwise = torch.randn(2, 6, 9, 9), torch.randn(6, 1, 3, 3), torch.randn(4, 6, 1, 1)
    with torch.autocast("cpu", torch.bfloat16), DepthwiseInFloat32():
        first = F.conv2d(image, depthwise, None, 1, 1, 2, 6)
        named = F.conv2d(image, depthwise, padding=1, dilation=2, groups=6)
        second = F.conv2d(first, pointwise)
        third = F.conv2d(second, pointwise[:, :4], groups=1)
    assert (first.dtype, second.dtype, third.dtype) == (torch.float32, torch.bfloat16, torch.bfloat16)
    assert torch.equal(first, named)
    torch.testing.assert_close(first, F.conv2d(image, depthwise, None, 1, 1, 2, 6))
    assert F.conv2d(image, depthwise, groups=6).dtype == torch.float32, "outside, nothing has changed"


def test_gradients_of_a_model_are_nearer_to_those_in_float32() -> None:
    torch.manual_seed(0)
    model = smp.Unet("tu-mobilenetv3_small_050", encoder_weights=None, classes=3).eval()
    image = torch.randn(2, 3, 64, 64)

    def gradients(*modes: object) -> torch.Tensor:
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=bool(modes)):
            if len(modes) > 1:
                with DepthwiseInFloat32():
                    logits = model(image)
            else:
                logits = model(image)
        logits.float().square().mean().backward()
        return torch.cat([parameter.grad.flatten() for parameter in model.parameters() if parameter.grad is not None])

    exact = gradients()
    ours, plain = gradients("bf16", "float32"), gradients("bf16")
    assert (ours - exact).norm() <= (plain - exact).norm()
    assert not torch.equal(ours, plain)
