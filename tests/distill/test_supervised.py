from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.special import log_softmax

from brd_edge.distill.supervised import class_weights, cross_entropy, hard_cross_entropy


def _batch() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(2, 3, 8, 9, generator=generator)
    labels = torch.randint(0, 3, (2, 8, 9), generator=generator)
    labels[0, :2] = 255
    return logits, labels, torch.tensor([1.0, 2.0, 0.5])


def _losses(logits: torch.Tensor, labels: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    known = labels.numpy() != 255
    rows = log_softmax(logits.double().numpy(), 1).transpose(0, 2, 3, 1)[known]
    truth = labels.numpy()[known]
    return -rows[np.arange(len(truth)), truth], truth


def test_cross_entropy_equals_torch_and_numpy() -> None:
    logits, labels, weights = _batch()
    losses, truth = _losses(logits, labels)

    found = float(cross_entropy(logits, labels, weights))

    assert found == pytest.approx(np.average(losses, weights=weights.numpy()[truth]), rel=1e-6)
    torch_value = torch.nn.functional.cross_entropy(logits, labels, weight=weights, ignore_index=255)
    assert found == pytest.approx(float(torch_value), rel=1e-6)
    assert float(cross_entropy(logits, labels, None)) == pytest.approx(losses.mean(), rel=1e-6)


@pytest.mark.parametrize(("probability", "kept_min"), [(0.7, 0.01), (0.05, 0.3), (0.999999, 0.1)])
def test_hard_cross_entropy_counts_the_hard_pixels_alone(probability: float, kept_min: float) -> None:
    logits, labels, weights = _batch()
    losses, truth = _losses(logits, labels)
    by_hardness = np.sort(losses)[::-1]
    least = max(1, round(kept_min * len(losses)))
    limit = min(-np.log(probability), by_hardness[least - 1])
    kept = losses >= limit - 1e-6

    found = float(hard_cross_entropy(logits, labels, weights, probability=probability, kept_min=kept_min))

    assert kept.sum() >= least
    assert found == pytest.approx(np.average(losses[kept], weights=weights.numpy()[truth][kept]), rel=1e-5)


@pytest.mark.parametrize("loss", [cross_entropy, hard_cross_entropy])
def test_a_batch_without_labels_gives_zero(loss: object) -> None:
    assert callable(loss)
    logits = _batch()[0].requires_grad_()

    value = loss(logits, torch.full((2, 8, 9), 255), None)
    value.backward()

    assert float(value.detach()) == 0
    assert logits.grad is not None
    assert torch.count_nonzero(logits.grad) == 0


def test_class_weights_favour_the_rare() -> None:
    weights = class_weights([90, 10, 0], "log_frequency")

    expected = 1 / np.log(1.1 + np.array([0.9, 0.1, 0.0]))
    assert weights is not None
    np.testing.assert_allclose(weights.numpy(), expected / expected.mean(), rtol=1e-6)
    assert class_weights([1, 2], "none") is None
