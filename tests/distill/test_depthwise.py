from __future__ import annotations

import pytest
import segmentation_models_pytorch as smp
import torch
import torch.nn.functional as F

from brd_edge.distill.depthwise import FastDepthwise, depthwise_convolution

SHAPES = [
    # height, width, kernel, padding, dilation
    pytest.param(8, 11, (3, 3), (12, 12), (12, 12), id="an ASPP's dilation beyond the map"),
    pytest.param(8, 15, (3, 3), (12, 12), (12, 12), id="beyond the rows alone"),
    pytest.param(9, 13, (5, 5), (2, 2), (2, 1), id="dilated rows alone"),
    pytest.param(9, 9, (3, 3), (6, 5), (2, 2), id="more padding than the kernel is wide"),
    pytest.param(12, 15, (5, 5), (0, 0), (2, 2), id="padded before"),
    pytest.param(7, 7, (5, 5), (2, 2), (1, 1), id="large kernel, small map"),
    pytest.param(9, 9, (5, 5), (8, 8), (2, 2), id="output larger than the image"),
    pytest.param(9, 10, (2, 4), (1, 2), (2, 1), id="even kernel"),
    pytest.param(24, 25, (3, 3), (2, 2), (2, 2), id="large map"),
    pytest.param(3, 4, (7, 1), (6, 0), (2, 1), id="kernel of one column"),
]


@pytest.mark.parametrize(("height", "width", "kernel", "padding", "dilation"), SHAPES)
@pytest.mark.parametrize("with_bias", [False, True])
def test_it_is_what_conv2d_computes_and_so_are_its_gradients(
    height: int,
    width: int,
    kernel: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    with_bias: bool,
) -> None:
    torch.manual_seed(0)
    inputs = [torch.randn(2, 3, height, width), torch.randn(3, 1, *kernel), *([torch.randn(3)] if with_bias else [])]
    inputs = [values.double().requires_grad_() for values in inputs]
    bias = inputs[2] if with_bias else None
    expected = F.conv2d(inputs[0], inputs[1], bias, 1, padding, dilation, 3)
    found = depthwise_convolution(inputs[0], inputs[1], bias, padding=padding, dilation=dilation)
    torch.testing.assert_close(found, expected)
    weight = torch.randn_like(expected)
    for ours, theirs in zip(
        torch.autograd.grad(found, inputs, weight), torch.autograd.grad(expected, inputs, weight), strict=True
    ):
        torch.testing.assert_close(ours, theirs)


def test_gradients_are_those_of_finite_differences() -> None:
    torch.manual_seed(0)
    image = torch.randn(2, 2, 5, 6, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(2, 1, 3, 3, dtype=torch.float64, requires_grad=True)

    def convolved(image: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return depthwise_convolution(image, weight, None, padding=(2, 2), dilation=(2, 2))

    assert torch.autograd.gradcheck(convolved, (image, weight))
    assert torch.autograd.gradcheck(lambda image: convolved(image, weight.detach()), image)


def test_depthwise_convolutions_are_computed_in_float32_and_others_in_bfloat16() -> None:
    torch.manual_seed(0)
    image, depthwise, pointwise = torch.randn(2, 6, 9, 9), torch.randn(6, 1, 3, 3), torch.randn(4, 6, 1, 1)
    depthwise.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16), FastDepthwise():
        first = F.conv2d(image, depthwise, None, 1, 1, 2, 6)
        named = F.conv2d(image, depthwise, padding=1, dilation=2, groups=6)
        second = F.conv2d(first, pointwise)
        third = F.conv2d(second, pointwise[:, :4], groups=1)
    assert (first.dtype, second.dtype, third.dtype) == (torch.float32, torch.bfloat16, torch.bfloat16)
    assert torch.equal(first, named)
    torch.testing.assert_close(first, F.conv2d(image, depthwise, None, 1, 1, 2, 6))
    assert F.conv2d(image.bfloat16(), depthwise.bfloat16(), groups=6).dtype == torch.bfloat16, "as ever outside"


@pytest.mark.parametrize(
    "options",
    [
        {"stride": 2, "padding": 2, "dilation": 2},
        {"stride": (1, 2)},
        {"padding": "same", "dilation": 12},
        {"padding": (12, 12), "dilation": (12, 12)},
        {"padding": 1},
    ],
    ids=str,
)
@pytest.mark.parametrize("training", [True, False])
def test_whatever_the_options_the_result_is_the_same(options: dict[str, object], training: bool) -> None:
    torch.manual_seed(0)
    image, weight, bias = torch.randn(2, 4, 9, 15), torch.randn(4, 1, 3, 3), torch.randn(4)
    expected = F.conv2d(image, weight, bias, groups=4, **options)  # type: ignore[arg-type]
    with FastDepthwise(), torch.set_grad_enabled(training):
        found = F.conv2d(image, weight, bias, groups=4, **options)  # type: ignore[arg-type]
    torch.testing.assert_close(found, expected)


def test_more_outputs_than_inputs_are_left_to_torch() -> None:
    torch.manual_seed(0)
    image, weight = torch.randn(1, 2, 5, 5), torch.randn(4, 1, 3, 3)
    with FastDepthwise():
        found = F.conv2d(image, weight, None, 1, 2, 2, 2)
    assert torch.equal(found, F.conv2d(image, weight, None, 1, 2, 2, 2))


@pytest.mark.parametrize("with_bias", [False, True])
def test_inference_keeps_the_format_and_drops_what_sees_only_padding(with_bias: bool) -> None:
    torch.manual_seed(0)
    image, weight = torch.randn(2, 4, 9, 9), torch.randn(4, 1, 3, 3)
    bias = torch.randn(4) if with_bias else None
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        expected = F.conv2d(image, weight, bias, 1, 12, 12, 4)
        with FastDepthwise():
            found = F.conv2d(image.bfloat16(), weight, bias, 1, 12, 12, 4)
    assert found.dtype == expected.dtype == torch.bfloat16
    torch.testing.assert_close(found, expected, rtol=0.02, atol=0.02)
    centre = image * weight[:, 0, 1, 1, None, None] + (0 if bias is None else bias[:, None, None])
    torch.testing.assert_close(found.float(), centre, rtol=0.02, atol=0.03)


def test_gradients_of_a_model_are_nearer_to_those_in_float32() -> None:
    torch.manual_seed(0)
    model = smp.DeepLabV3Plus("tu-mobilenetv3_small_050", encoder_weights=None, classes=3).eval()
    image = torch.randn(2, 3, 64, 64)

    def gradients(*modes: object) -> torch.Tensor:
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=bool(modes)):
            if len(modes) > 1:
                with FastDepthwise():
                    logits = model(image)
            else:
                logits = model(image)
        logits.float().square().mean().backward()
        return torch.cat([parameter.grad.flatten() for parameter in model.parameters() if parameter.grad is not None])

    exact = gradients()
    ours, plain = gradients("bf16", "float32"), gradients("bf16")
    assert (ours - exact).norm() <= (plain - exact).norm()
    assert not torch.equal(ours, plain)
