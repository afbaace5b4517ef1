"""Every loss against a plain float64 numpy implementation, and against what its formula promises."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import ndimage
from scipy.special import log_softmax, softmax

from brd_edge.distill import relation, relation_tiles
from brd_edge.distill.boundary import (
    OPERATORS,
    boundary_class_loss,
    boundary_feature_loss,
    boundary_logit_loss,
    boundary_map,
    boundary_projections,
    boundary_residual,
    neighbour_map,
    projected_boundary_loss,
)
from brd_edge.distill.grid import known_cells, transitions
from brd_edge.distill.logits import logit_loss
from brd_edge.distill.relation import relation_loss, relation_pixels, streamed_relation

Array = NDArray[np.float64]


def _random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _labels(height: int = 32, width: int = 48, seed: int = 0) -> torch.Tensor:
    """Blocks of classes 0 to 4, with an ignored corner."""
    coarse = torch.randint(0, 5, (2, height // 8, width // 8), generator=torch.Generator().manual_seed(seed))
    labels = coarse.repeat_interleave(8, 1).repeat_interleave(8, 2)
    labels[:, :8, :8] = 255
    return labels


def _numpy_residual(features: Array, kernel: int, known: Array) -> Array:
    """Return the features less their mean over the known cells of the window, or of the image."""
    if kernel == 0:
        return features - (features * known).sum((2, 3), keepdims=True) / known.sum((2, 3), keepdims=True)
    # scipy's "mirror" is torch's "reflect": the edge is not repeated
    inside, cells = (
        ndimage.uniform_filter(values, (1, 1, kernel, kernel), mode="mirror") for values in (features * known, known)
    )
    return features - np.divide(inside, cells, out=np.zeros_like(features), where=cells > 1e-9)


def _numpy_map(features: Array, kernel: int, known: Array) -> Array:
    magnitude = np.sqrt((_numpy_residual(features, kernel, known) ** 2).mean(1, keepdims=True))
    return magnitude / np.average(magnitude, axis=(2, 3), weights=known, keepdims=True)


def _numpy_neighbours(features: Array, kernel: int, known: Array) -> Array:
    reach = kernel // 2
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    padded, counted = (
        np.pad(values, ((0, 0), (0, 0), (reach, reach), (reach, reach)), mode="reflect") for values in (unit, known)
    )
    height, width = features.shape[2:]
    found = []
    for down in (-reach, 0, reach):
        for right in (-reach, 0, reach):
            if (down, right) != (0, 0):
                rows, cols = reach + down, reach + right
                window = np.s_[:, :, rows : rows + height, cols : cols + width]
                found.append((1 - (unit * padded[window]).sum(1)) * counted[window][:, 0])
    return np.stack(found, 1)


def _numpy_band(labels: NDArray[np.int64], step: int) -> tuple[Array, Array]:
    band = np.zeros(labels.shape, bool)
    for image, label in enumerate(labels):
        for (y, x), value in np.ndenumerate(label):
            for other in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)):
                if 0 <= other[0] < label.shape[0] and 0 <= other[1] < label.shape[1]:
                    band[image, y, x] |= value != label[other] and 255 not in (value, label[other])
    images, height, width = labels.shape

    def pool(values: NDArray[np.bool_]) -> Array:
        cells = values.reshape(images, height // step, step, width // step, step)
        return cells.any((2, 4))[:, None].astype(float)

    return pool(band), pool(labels != 255)


def _numpy_band_mean(distance: Array, labels: torch.Tensor, band_weight: float) -> float:
    band, known = _numpy_band(labels.numpy(), labels.shape[1] // distance.shape[2])
    weight = known * (1 + band_weight * band)
    return float((distance * weight).sum() / weight.sum())


def test_transitions_and_known_cells_against_a_pixel_loop() -> None:
    labels = _labels()

    band, known = torch.nn.functional.adaptive_max_pool2d(transitions(labels), (8, 12)), known_cells(labels, 8, 12)

    expected_band, expected_known = _numpy_band(labels.numpy(), 4)
    np.testing.assert_array_equal(band, expected_band)
    np.testing.assert_array_equal(known, expected_known)
    assert 0 < band.mean() < 1
    assert known.min() == 0, "the ignored corner is not known"


@pytest.mark.parametrize("kernel", [3, 5])
@pytest.mark.parametrize("place", [(0, 0), (4, 6)])
def test_a_known_cell_alone_in_its_window_has_no_boundary(place: tuple[int, int], kernel: int) -> None:
    """It is the whole of its window's mean, however little of the window that is."""
    features, known = _random(1, 3, 8, 12), torch.zeros(1, 1, 8, 12)
    known[0, 0, place[0], place[1]] = 1

    residual = boundary_residual(features, kernel, known)

    assert residual[0, :, place[0], place[1]].tolist() == pytest.approx([0, 0, 0], abs=1e-6)


@pytest.mark.parametrize("kernel", [3, 5])
@pytest.mark.parametrize(("operator", "reference"), [("residual", _numpy_map), ("neighbours", _numpy_neighbours)])
def test_boundary_feature_loss_against_numpy(
    operator: str, reference: Callable[[Array, int, Array], Array], kernel: int
) -> None:
    teacher = {4: _random(2, 6, 8, 12, seed=1), 8: _random(2, 9, 4, 6, seed=2)}
    student = {4: _random(2, 3, 8, 12, seed=3), 8: _random(2, 5, 4, 6, seed=4)}
    labels = _labels()

    found = boundary_feature_loss(
        teacher, student, labels, strides=(4, 8), operator=operator, kernel=kernel, band_weight=3.0
    )

    expected = []
    for stride in (4, 8):
        known = _numpy_band(labels.numpy(), stride)[1]
        maps = [reference(features[stride].double().numpy(), kernel, known) for features in (teacher, student)]
        expected.append(_numpy_band_mean(abs(maps[0] - maps[1]).mean(1, keepdims=True), labels, 3.0))
    assert float(found) == pytest.approx(np.mean(expected), rel=1e-4)


@pytest.mark.parametrize("kernel", [0, 3])
def test_projected_boundary_loss_against_numpy(kernel: int) -> None:
    teacher = {4: _random(2, 6, 8, 12, seed=1), 8: _random(2, 9, 4, 6, seed=2)}
    student = {4: _random(2, 3, 8, 12, seed=3), 8: _random(2, 5, 4, 6, seed=4)}
    teacher[4][:, 2] = 1e-3 * teacher[4][:, 2]  # a channel in which there is hardly anything
    labels, layers = _labels(), boundary_projections({4: (6, 3), 8: (9, 5)}).eval()

    found = projected_boundary_loss(teacher, student, labels, projections=layers, kernel=kernel, band_weight=3.0)

    expected = []
    for stride in (4, 8):
        weight = layers[str(stride)][0].weight.detach().double().numpy()[:, :, 0, 0]
        # batch normalisation as it is initialised, in eval mode
        mine = np.einsum("cd,ndhw->nchw", weight, student[stride].double().numpy()) / np.sqrt(1 + 1e-5)
        known = _numpy_band(labels.numpy(), stride)[1]
        target = _numpy_residual(teacher[stride].double().numpy(), kernel, known)
        power = np.average(target**2, axis=(0, 2, 3), weights=np.broadcast_to(known, target.shape), keepdims=True)
        power = np.maximum(power, 0.01 * power.mean())
        distance = ((_numpy_residual(mine, kernel, known) - target / np.sqrt(power)) ** 2).mean(1, keepdims=True)
        expected.append(_numpy_band_mean(distance, labels, 3.0))
    assert float(found.detach()) == pytest.approx(np.mean(expected), rel=1e-4)


def test_projections_are_the_same_at_every_call_and_leave_the_generator_alone() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = boundary_projections({4: (6, 3)}).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)
    second = boundary_projections({4: (6, 3)}).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("kernel", [0, 3])
def test_boundary_class_loss_against_numpy(kernel: int) -> None:
    teacher, student, labels = _random(2, 5, 32, 48, seed=1), _random(2, 5, 32, 48, seed=2), _labels()

    found = boundary_class_loss(teacher, student, labels, kernel=kernel, band_weight=2.0)

    difference = softmax(teacher.double().numpy(), 1) - softmax(student.double().numpy(), 1)
    residual = _numpy_residual(difference, kernel, _numpy_band(labels.numpy(), 1)[1])
    expected = _numpy_band_mean(abs(residual).sum(1, keepdims=True), labels, 2.0)
    assert float(found) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("kernel", [0, 3])
def test_boundary_logit_loss_against_numpy(kernel: int) -> None:
    teacher, student, labels = _random(2, 5, 32, 48, seed=1), _random(2, 5, 32, 48, seed=2), _labels()
    teacher[:, 3] *= 1e-3  # a class of which the teacher hardly sees anything

    found = boundary_logit_loss(teacher, student, labels, kernel=kernel, band_weight=2.0)

    known = _numpy_band(labels.numpy(), 1)[1]
    target, mine = (_numpy_residual(logits.double().numpy(), kernel, known) for logits in (teacher, student))
    power = np.average(target**2, axis=(0, 2, 3), weights=np.broadcast_to(known, target.shape), keepdims=True)
    distance = ((mine - target) ** 2 / np.maximum(power, 0.01 * power.mean())).mean(1, keepdims=True)
    assert float(found) == pytest.approx(_numpy_band_mean(distance, labels, 2.0), rel=1e-4)


def test_logit_loss_against_numpy() -> None:
    teacher, student, labels = _random(2, 5, 32, 48, seed=1), _random(2, 5, 32, 48, seed=2), _labels()

    found = logit_loss(teacher, student, labels, temperature=2.0)

    target = log_softmax(teacher.double().numpy() / 2, 1)
    divergence = (np.exp(target) * (target - log_softmax(student.double().numpy() / 2, 1))).sum(1)
    assert float(found) == pytest.approx(4 * divergence[labels.numpy() != 255].mean(), rel=1e-5)


def test_logit_loss_on_a_coarse_grid_counts_cells_by_their_known_share() -> None:
    teacher, student, labels = _random(2, 5, 8, 12, seed=1), _random(2, 5, 8, 12, seed=2), _labels()
    labels[:, 30:, :] = 255

    found = logit_loss(teacher, student, labels, temperature=1.0)

    target = log_softmax(teacher.double().numpy(), 1)
    divergence = (np.exp(target) * (target - log_softmax(student.double().numpy(), 1))).sum(1)
    share = (labels.numpy() != 255).reshape(2, 8, 4, 12, 4).mean((2, 4))
    assert set(np.unique(share)) == {0, 0.5, 1}
    assert float(found) == pytest.approx(np.average(divergence, weights=share), rel=1e-5)


@pytest.mark.parametrize("across", [False, True], ids=["within images", "across images"])
@pytest.mark.parametrize("block", [7, 512])
def test_relation_loss_against_numpy(block: int, across: bool) -> None:
    teacher, student, labels = _random(2, 6, 8, 12, seed=1), _random(2, 3, 8, 12, seed=2), _labels()
    labels[1, :16] = 255  # the images have unlike numbers of known cells

    found = relation_loss(teacher, student, labels, temperature=0.3, across_images=across, block=block)

    def pixels(features: torch.Tensor, known: NDArray[np.bool_]) -> list[Array]:
        rows = features.double().numpy().transpose(0, 2, 3, 1)
        rows = rows / np.linalg.norm(rows, axis=3, keepdims=True)
        return [image[mask] for image, mask in zip(rows, known, strict=True)]

    known = _numpy_band(labels.numpy(), 4)[1][:, 0] > 0
    groups = list(zip(pixels(teacher, known), pixels(student, known), strict=True))
    if across:
        groups = [(np.concatenate([group[0] for group in groups]), np.concatenate([group[1] for group in groups]))]
    divergences = []
    for theirs, mine in groups:
        target = log_softmax(theirs @ theirs.T / 0.3, 1)
        divergences.append((np.exp(target) * (target - log_softmax(mine @ mine.T / 0.3, 1))).sum(1))
    assert float(found) == pytest.approx(np.concatenate(divergences).mean(), rel=1e-4)


def _naive_relation(teacher: torch.Tensor, student: torch.Tensor, temperature: float) -> torch.Tensor:
    target = (teacher @ teacher.T / temperature).log_softmax(1)
    found = (student @ student.T / temperature).log_softmax(1)
    return torch.nn.functional.kl_div(found, target, reduction="batchmean", log_target=True)


def test_streamed_relation_gradient_equals_the_naive_one() -> None:
    teacher, student = _random(1, 6, 8, 12, seed=1), _random(1, 3, 8, 12, seed=2).requires_grad_()
    naive_student = student.detach().clone().requires_grad_()

    relation_loss(teacher, student, temperature=0.2, block=17).backward()
    _naive_relation(relation_pixels(teacher, 8, 12)[0], relation_pixels(naive_student, 8, 12)[0], 0.2).backward()

    assert student.grad is not None
    assert naive_student.grad is not None
    torch.testing.assert_close(student.grad, naive_student.grad, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("count", [1, 63, 64, 65, 3072, 3073, 4096, 8192, 9216, 9217, 32768, 100000])
def test_a_gpus_tiles_are_few_and_alike(count: int) -> None:
    side = relation._tile_side(count, torch.device("cuda"))

    assert side <= 3072
    assert side % 64 == 0
    # no more spans than the largest tiles make, and the last one lacks less than what all were rounded up by
    spans = math.ceil(count / 3072)
    assert math.ceil(count / side) <= spans
    assert spans * side - count < spans * 64


def test_streamed_relation_gradcheck() -> None:
    teacher = torch.nn.functional.normalize(_random(9, 4, seed=1).double(), dim=1)
    student = torch.nn.functional.normalize(_random(9, 3, seed=2).double(), dim=1).requires_grad_()

    assert torch.autograd.gradcheck(lambda s: streamed_relation(teacher, s, temperature=0.3, block=4), (student,))


def test_kernels_that_do_not_run_are_left_out_and_it_is_said_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(_device: torch.device) -> relation_tiles.TileOperations:
        raise RuntimeError("Failed to find C compiler")

    monkeypatch.setattr(relation, "find_spec", lambda _name: True)
    monkeypatch.setattr(relation, "_tried_kernels", fail)
    on_gpu: Any = SimpleNamespace(is_cuda=True, dtype=torch.float32, device=torch.device("cuda", 7))

    assert {relation.tile_operations(on_gpu) for _ in range(3)} == {relation_tiles.OPERATIONS}

    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert "do not run on cuda:7 (RuntimeError: Failed to find C compiler)" in record.message
    assert "Triton needs a C compiler" in record.message


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_relation_under_autocast_is_computed_in_float32(dtype: torch.dtype) -> None:
    teacher, student = _random(1, 64, 8, 12, seed=1), _random(1, 32, 8, 12, seed=2)
    half = [features.to(dtype) for features in (teacher, student)]

    with torch.autocast("cpu", dtype):
        found = relation_loss(*half, temperature=0.05)

    assert found.dtype == torch.float32
    rounded = relation_loss(*(features.float() for features in half), temperature=0.05)
    assert float(found) == pytest.approx(float(rounded), rel=1e-6)


# the most of which half the sides are needed, and the least that one image has but not both together
@pytest.mark.parametrize("cells_max", [2 * 4 * 6, 8 * 12])
def test_too_many_cells_are_averaged_down(cells_max: int) -> None:
    teacher, student = _random(2, 6, 8, 12, seed=1), _random(2, 3, 8, 12, seed=2)

    found = relation_loss(teacher, student, across_images=True, cells_max=cells_max)

    pooled = [torch.nn.functional.avg_pool2d(features, 2) for features in (teacher, student)]
    assert float(found) == pytest.approx(float(relation_loss(*pooled, across_images=True)), rel=1e-5)


_GRADIENTS: dict[str, Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "kd": logit_loss,
    "boundary residual": lambda t, s, y: boundary_feature_loss({4: t}, {4: s}, y, strides=(4,)),
    "boundary neighbours": lambda t, s, y: boundary_feature_loss(
        {4: t}, {4: s}, y, strides=(4,), operator="neighbours"
    ),
    "boundary classes": boundary_class_loss,
    "boundary logits": boundary_logit_loss,
    "boundary logits, whole image": lambda t, s, y: boundary_logit_loss(t, s, y, kernel=0),
    "boundary projected": lambda t, s, y: projected_boundary_loss(
        {4: t}, {4: s}, y, projections=boundary_projections({4: (3, 3)}).double()
    ),
    "relation": lambda t, s, y: relation_loss(t, s, y, temperature=0.4, block=5),
    "relation across images": lambda t, s, y: relation_loss(t, s, y, temperature=0.4, across_images=True),
}


@pytest.mark.parametrize("name", _GRADIENTS)
def test_gradcheck(name: str) -> None:
    teacher, student = _random(2, 3, 4, 5, seed=1).double(), _random(2, 3, 4, 5, seed=2).double().requires_grad_()
    labels = torch.arange(40).reshape(2, 4, 5) // 4 % 3
    labels[0, 0, 0] = 255

    assert torch.autograd.gradcheck(lambda s: _GRADIENTS[name](teacher, s, labels), (student,))


def test_losses_vanish_when_student_and_teacher_are_equal() -> None:
    features, logits, labels = _random(2, 6, 8, 12), _random(2, 5, 32, 48), _labels()

    assert float(boundary_feature_loss({4: features}, {4: features}, labels, strides=(4,))) == 0
    assert float(boundary_feature_loss({4: features}, {4: features}, labels, strides=(4,), operator="neighbours")) == 0
    assert float(boundary_class_loss(logits, logits, labels)) == 0
    assert float(boundary_logit_loss(logits, logits, labels)) == 0
    # a projection that divides every channel by the power of the teacher's boundaries
    known = known_cells(labels, 8, 12)
    power = (boundary_residual(features, 3, known).square() * known).sum((0, 2, 3)) / known.sum()
    scaling = torch.nn.Conv2d(6, 6, 1, bias=False)
    scaling.weight.data = torch.diag(power.rsqrt())[..., None, None]
    found = projected_boundary_loss(
        {4: features}, {4: features}, labels, projections=torch.nn.ModuleDict({"4": scaling})
    )
    assert float(found.detach()) == pytest.approx(0, abs=1e-9)
    assert float(logit_loss(logits, logits, labels)) == pytest.approx(0, abs=1e-6)
    assert float(relation_loss(features, features, labels)) == pytest.approx(0, abs=1e-6)


def test_invariances() -> None:
    features, logits, labels = _random(2, 6, 8, 12), _random(2, 5, 32, 48), _labels()
    turn, _ = np.linalg.qr(_random(6, 6, seed=5).numpy())
    turned = torch.einsum("cd,ndhw->nchw", torch.from_numpy(turn), features)

    torch.testing.assert_close(boundary_map(7 * features + 3, 3), boundary_map(features, 3), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(boundary_map(turned, 3), boundary_map(features, 3), rtol=1e-4, atol=1e-5)
    pixelwise = 1 + _random(2, 1, 8, 12, seed=6).abs()
    torch.testing.assert_close(neighbour_map(pixelwise * turned, 3), neighbour_map(features, 3), rtol=1e-4, atol=1e-5)
    shifted = logits + _random(2, 5, 1, 1, seed=7)
    assert float(boundary_logit_loss(logits, shifted, labels, kernel=0)) == pytest.approx(0, abs=1e-9)
    assert float(boundary_logit_loss(3 * logits, 3 * shifted, labels)) == pytest.approx(0, abs=1e-9)
    assert float(logit_loss(logits + 2, logits, labels)) == pytest.approx(0, abs=1e-5)
    assert float(relation_loss(5 * features, features, labels)) == pytest.approx(0, abs=1e-5)
    assert float(relation_loss(turned, features, labels)) == pytest.approx(0, abs=1e-5)


def test_unlike_grids_and_channels_are_compared_on_the_coarser_grid() -> None:
    teacher, student, labels = _random(2, 6, 16, 24, seed=1), _random(2, 3, 8, 12, seed=2), _labels()
    pooled = torch.nn.functional.avg_pool2d(teacher, 2)

    for loss in (
        lambda features: boundary_feature_loss({4: features}, {4: student}, labels, strides=(4,)),
        lambda features: relation_loss(features, student, labels),
    ):
        assert float(loss(teacher)) == pytest.approx(float(loss(pooled)), rel=1e-5)


def test_ignored_pixels_do_not_leak_in() -> None:
    """What the student says anywhere inside an ignored region must not change the loss."""
    labels = _labels()
    labels[:, :16] = 255
    teacher, student = _random(2, 5, 32, 48, seed=1), _random(2, 5, 32, 48, seed=2)
    other = student.clone()
    other[:, :, :16] = _random(2, 5, 16, 48, seed=9)

    assert float(logit_loss(teacher, other, labels)) == float(logit_loss(teacher, student, labels))
    for loss in (boundary_class_loss, boundary_logit_loss):
        for kernel in (0, 3, 5):
            before, after = (float(loss(teacher, logits, labels, kernel=kernel)) for logits in (student, other))
            assert after == pytest.approx(before, rel=1e-6)
    coarse_teacher, coarse = _random(2, 6, 8, 12, seed=3), _random(2, 3, 8, 12, seed=4)
    changed = coarse.clone()
    changed[:, :, :4] = _random(2, 3, 4, 12, seed=8)
    pairs = [({4: coarse_teacher}, {4: features}) for features in (coarse, changed)]
    for operator in OPERATORS:
        before, after = (float(boundary_feature_loss(*pair, labels, strides=(4,), operator=operator)) for pair in pairs)
        assert after == pytest.approx(before, rel=1e-6)
    layers = boundary_projections({4: (6, 3)}).eval()
    for kernel in (0, 3):
        before, after = (
            float(projected_boundary_loss(*pair, labels, projections=layers, kernel=kernel).detach()) for pair in pairs
        )
        assert after == pytest.approx(before, rel=1e-6)
    assert float(relation_loss(coarse_teacher, changed, labels)) == float(relation_loss(coarse_teacher, coarse, labels))


def test_a_batch_without_any_label_gives_zero_and_finite_gradients() -> None:
    labels = torch.full((2, 32, 48), 255)
    student = _random(2, 5, 32, 48, seed=2).requires_grad_()
    teacher = _random(2, 5, 32, 48, seed=1)
    total = (
        logit_loss(teacher, student, labels)
        + boundary_class_loss(teacher, student, labels)
        + boundary_logit_loss(teacher, student, labels)
        + boundary_feature_loss({1: teacher}, {1: student}, labels, strides=(1,))
        + relation_loss(teacher, student, labels)
    )

    total.backward()

    assert float(total.detach()) == 0
    assert student.grad is not None
    assert torch.count_nonzero(student.grad) == 0


@pytest.mark.parametrize("constant", [0.0, 3.0])
def test_constant_features_have_finite_gradients(constant: float) -> None:
    student = torch.full((1, 3, 8, 12), constant, requires_grad=True)

    loss = boundary_feature_loss({4: _random(1, 6, 8, 12)}, {4: student}, _labels()[:1], strides=(4,))
    loss = loss + relation_loss(_random(1, 6, 8, 12), student, _labels()[:1])
    loss.backward()

    assert student.grad is not None
    assert torch.isfinite(loss)
    assert torch.isfinite(student.grad).all()
