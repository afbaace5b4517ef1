"""Where class boundaries lie, against numpy in float64 and against what the formula promises."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage
from scipy.special import log_softmax

from brd_edge.distill.boundary import boundary_place_loss
from brd_edge.distill.grid import known_cells
from brd_edge.distill.peers import channel_wise_loss


def _random(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _labels() -> torch.Tensor:
    labels = torch.zeros((3, 32, 48), dtype=torch.int64)
    labels[0, :12, :8] = 255
    labels[2] = 255
    return labels


@pytest.mark.parametrize(("kernel", "temperature"), [(0, 4.0), (3, 0.7)])
def test_against_numpy(kernel: int, temperature: float) -> None:
    """Of three images the first has unknown cells, and the last has no others, so that it does not count."""
    teacher, student = _random(3, 5, 8, 12, seed=1), _random(3, 5, 8, 12, seed=2)

    found = boundary_place_loss(teacher, student, _labels(), kernel=kernel, temperature=temperature)

    def places(logits: torch.Tensor, image: int) -> np.ndarray:
        values = logits[image].double().numpy()
        known = (_labels()[image].numpy() != 255).reshape(8, 4, 12, 4).any((1, 3))
        if kernel:
            inside, cells = (
                ndimage.uniform_filter(part, (1, kernel, kernel), mode="mirror")
                for part in (values * known, known[None].astype(float))
            )
            values = values - np.divide(inside, cells, out=np.zeros_like(values), where=cells > 1e-9)
        return np.asarray(log_softmax(values[:, known] / temperature, 1))

    expected = []
    for image in (0, 1):
        target, mine = places(teacher, image), places(student, image)
        expected.append((np.exp(target) * (target - mine)).sum(1).mean() * temperature**2)
    assert float(found) == pytest.approx(np.mean(expected), rel=1e-4)


def test_for_the_whole_of_a_known_image_it_is_cwd() -> None:
    teacher, student = _random(2, 5, 8, 12, seed=1), _random(2, 5, 16, 24, seed=2)
    labels = torch.zeros((2, 32, 48), dtype=torch.int64)

    found = boundary_place_loss(teacher, student, labels, kernel=0, temperature=4.0)

    assert float(found) == pytest.approx(float(channel_wise_loss(teacher, student, temperature=4.0)), rel=1e-5)


def test_gradcheck() -> None:
    teacher, student = _random(2, 3, 4, 5, seed=1).double(), _random(2, 3, 4, 5, seed=2).double().requires_grad_()
    labels = torch.zeros((2, 4, 5), dtype=torch.int64)
    labels[0, 0, :2] = 255

    assert torch.autograd.gradcheck(lambda s: boundary_place_loss(teacher, s, labels), (student,))


@pytest.mark.parametrize("kernel", [0, 3])
def test_zero_for_equal_models_and_for_a_constant_per_class(kernel: int) -> None:
    logits = _random(3, 5, 8, 12, seed=1)

    assert float(boundary_place_loss(logits, logits, _labels(), kernel=kernel)) == 0
    shifted = logits + _random(3, 5, 1, 1, seed=3)
    assert float(boundary_place_loss(logits, shifted, _labels(), kernel=kernel)) == pytest.approx(0, abs=1e-5)


def test_a_class_of_few_cells_counts_like_any_other() -> None:
    teacher = torch.zeros((1, 3, 8, 12))
    teacher[0, 1, :, 6:] = 8  # half of the image
    teacher[0, 2, 3, 3] = 8  # one cell
    labels = torch.zeros((1, 32, 48), dtype=torch.int64)
    student = teacher.clone()
    student[0, 1] = 0
    common = float(boundary_place_loss(teacher, student, labels, kernel=0))
    student = teacher.clone()
    student[0, 2] = 0
    rare = float(boundary_place_loss(teacher, student, labels, kernel=0))

    assert rare > common > 0, "the fewer the cells, the more is said by naming them"


@pytest.mark.parametrize("kernel", [0, 3])
def test_ignored_pixels_do_not_leak_in(kernel: int) -> None:
    teacher, student = _random(3, 5, 8, 12, seed=1), _random(3, 5, 8, 12, seed=2)
    other = student.clone()
    other[2] = _random(5, 8, 12, seed=9)
    unknown = known_cells(_labels(), 8, 12) == 0
    other = torch.where(unknown, other + 7, other)
    before, after = (
        float(boundary_place_loss(teacher, logits, _labels(), kernel=kernel)) for logits in (student, other)
    )

    assert unknown[0].any()
    assert after == pytest.approx(before, rel=1e-6)


def test_a_batch_without_any_label_gives_zero_and_finite_gradients() -> None:
    student = _random(2, 3, 8, 12, seed=2).requires_grad_()

    loss = boundary_place_loss(_random(2, 3, 8, 12, seed=1), student, torch.full((2, 32, 48), 255))
    loss.backward()

    assert float(loss.detach()) == 0
    assert student.grad is not None
    assert torch.count_nonzero(student.grad) == 0
