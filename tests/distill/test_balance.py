from __future__ import annotations

import numpy as np
import pytest
import torch

from brd_edge.distill.balance import balanced_share, known_pixels, rarity
from brd_edge.distill.boundary import boundary_class_loss, boundary_logit_loss
from brd_edge.distill.grid import known_share
from brd_edge.distill.logits import logit_loss


def _labels() -> torch.Tensor:
    """Class 0 nearly everywhere, class 1 in six pixels, class 7 in one, one row unknown."""
    labels = torch.zeros((2, 8, 12), dtype=torch.int64)
    labels[0, 1:3, 2:5] = 1
    labels[1, 4, 4] = 7
    labels[0, 7] = 255
    return labels


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
def test_rarity_against_numpy(power: float) -> None:
    labels = _labels()

    found = rarity(known_pixels(labels), power)

    known = labels.numpy()[labels.numpy() != 255]
    ids, counts = np.unique(known, return_counts=True)
    assert list(ids) == [0, 1, 7]
    np.testing.assert_allclose(found[ids], (known.size / counts.astype(np.float64)) ** power, rtol=1e-6)
    assert found[255] == 0


def test_with_power_1_every_class_that_occurs_counts_alike() -> None:
    labels = _labels()
    weights = rarity(known_pixels(labels), 1.0)[labels]

    totals = [float(weights[labels == value].sum()) for value in (0, 1, 7)]

    assert totals == pytest.approx([labels.ne(255).sum().item()] * 3, rel=1e-6)


def test_shares_are_means_over_cells_and_plain_without_power() -> None:
    labels = _labels()

    found = balanced_share(labels, 4, 6, power=0.5)

    pixels = rarity(known_pixels(labels), 0.5)[labels].double().numpy()
    np.testing.assert_allclose(found[:, 0], pixels.reshape(2, 4, 2, 6, 2).mean((2, 4)), rtol=1e-6)
    assert torch.equal(balanced_share(labels, 4, 6, power=0.0), known_share(labels, 4, 6))


@pytest.mark.parametrize("loss", [logit_loss, boundary_class_loss, boundary_logit_loss])
def test_losses_weigh_pixels_by_rarity(loss: object) -> None:
    """A student that is wrong in the one pixel of a class loses the more, the more rare classes count."""
    assert callable(loss)
    labels, teacher = _labels(), torch.randn((2, 8, 8, 12), generator=torch.Generator().manual_seed(0))
    student = teacher.clone()
    student[1, 7, 4, 4] -= 4

    plain, half, full = (float(loss(teacher, student, labels, class_balance=power)) for power in (0.0, 0.5, 1.0))

    assert 0 < plain < half < full
    assert float(loss(teacher, teacher, labels, class_balance=1.0)) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("loss", [boundary_class_loss, boundary_logit_loss])
def test_a_little_balance_changes_little(loss: object) -> None:
    """Also in cells of which a part is known: they count as without it, and not by their known share."""
    assert callable(loss)
    generator = torch.Generator().manual_seed(0)
    teacher, student = (torch.randn((2, 8, 4, 6), generator=generator) for _ in range(2))
    labels = _labels()
    # the last row of cells is half unknown in this image, and wholly in the other
    labels[1, 6:] = 255

    plain, little = (float(loss(teacher, student, labels, class_balance=power)) for power in (0.0, 1e-6))

    assert little == pytest.approx(plain, rel=1e-4)


def test_balanced_logit_loss_against_numpy() -> None:
    from scipy.special import log_softmax

    labels = _labels()
    teacher, student = (torch.randn((2, 8, 8, 12), generator=torch.Generator().manual_seed(seed)) for seed in (1, 2))

    found = logit_loss(teacher, student, labels, temperature=1.5, class_balance=0.7)

    target = log_softmax(teacher.double().numpy() / 1.5, 1)
    divergence = (np.exp(target) * (target - log_softmax(student.double().numpy() / 1.5, 1))).sum(1)
    weights = rarity(known_pixels(labels), 0.7)[labels].double().numpy()
    assert float(found) == pytest.approx(1.5**2 * np.average(divergence, weights=weights), rel=1e-5)
