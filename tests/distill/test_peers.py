"""The published losses against plain float64 numpy, written from the papers' formulas."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.special import log_softmax

from brd_edge.distill.peers import PixelMemory, channel_wise_loss, cross_image_loss, memory_losses, pair_wise_loss

Array = NDArray[np.float64]


def _random(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _unit(rows: Array) -> Array:
    # all units of a small random projection may be off, which leaves a row of zeros
    return rows / np.maximum(np.linalg.norm(rows, axis=-1, keepdims=True), 1e-6)


def _blocks(features: torch.Tensor, reduce: Callable[..., Array]) -> Array:
    """Return every block of 2 x 2 cells of an image (C, H, W) reduced to one row; odd edges cut blocks off."""
    count, height, width = features.shape
    padded = np.pad(features.numpy(), ((0, 0), (0, height % 2), (0, width % 2)), constant_values=np.nan)
    return reduce(padded.reshape(count, -(-height // 2), 2, -(-width // 2), 2), axis=(2, 4)).reshape(count, -1).T


def _divergence(target: Array, found: Array, axis: int) -> Array:
    first, second = log_softmax(target, axis), log_softmax(found, axis)
    return np.asarray((np.exp(first) * (first - second)).sum(axis))


@pytest.mark.parametrize("size", [(6, 8), (5, 7)])
def test_pair_wise_loss(size: tuple[int, int]) -> None:
    teacher, student = _random(2, 6, *size, seed=1), _random(2, 4, *size, seed=2)

    expected = []
    for image in range(2):
        tables = []
        for features in (teacher, student):
            rows = _unit(_blocks(features[image], np.nanmax))
            tables.append(rows @ rows.T)
        expected.append(((tables[0] - tables[1]) ** 2).sum() / 12**2)
    assert float(pair_wise_loss(teacher, student)) == pytest.approx(np.mean(expected), rel=1e-9)


def test_channel_wise_loss() -> None:
    teacher, student = _random(2, 5, 6, 8, seed=1), _random(2, 5, 6, 8, seed=2)

    flat = [logits.numpy().reshape(2, 5, 48) / 4 for logits in (teacher, student)]
    expected = 16 * _divergence(flat[0], flat[1], 2).mean()
    assert float(channel_wise_loss(teacher, student, temperature=4.0)) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("size", [(4, 6), (5, 7)])
def test_cross_image_loss(size: tuple[int, int]) -> None:
    teacher, student = _random(3, 6, *size, seed=1), _random(3, 4, *size, seed=2)

    def pixels(features: torch.Tensor, image: int) -> Array:
        return _unit(_blocks(features[image], np.nanmean))

    losses = []
    for first in range(3):
        for second in range(3):
            target, found = (pixels(f, first) @ pixels(f, second).T / 0.5 for f in (teacher, student))
            losses.append(_divergence(target, found, 1).mean())
    assert float(cross_image_loss(teacher, student, temperature=0.5)) == pytest.approx(np.mean(losses), rel=1e-9)


@pytest.mark.parametrize(
    ("loss", "numbers"),
    [
        (pair_wise_loss, {"patch": 2}),
        (channel_wise_loss, {"temperature": 4.0}),
        (cross_image_loss, {"temperature": 0.1}),
    ],
)
def test_numbers_that_are_not_given_are_the_papers(
    loss: Callable[..., torch.Tensor], numbers: dict[str, float]
) -> None:
    teacher, student = _random(2, 5, 6, 8, seed=1), _random(2, 5, 6, 8, seed=2)

    assert float(loss(teacher, student)) == float(loss(teacher, student, **numbers))


@pytest.mark.parametrize("loss", [pair_wise_loss, channel_wise_loss, cross_image_loss])
def test_zero_at_equality_and_gradients(loss: object) -> None:
    assert callable(loss)
    teacher, student = _random(2, 3, 4, 4, seed=1), _random(2, 3, 4, 4, seed=2).requires_grad_()

    assert float(loss(teacher, teacher)) == pytest.approx(0, abs=1e-12)
    assert torch.autograd.gradcheck(lambda values: loss(teacher, values), (student,))


def _memory() -> PixelMemory:
    torch.manual_seed(0)
    return PixelMemory(3, 6, 4, pixel_slots=8, region_slots=4).double()


def test_memory_remembers_pixels_and_class_centres() -> None:
    memory = _memory()
    rows = torch.nn.functional.normalize(_random(1, 12, 6, seed=1), dim=2)
    labels = torch.tensor([[0] * 5 + [2] * 6 + [255]])

    memory.remember(rows, labels, pixels_per_image=3)

    assert memory.counts.tolist() == [[3, 0, 3], [1, 0, 1]]
    centre = _unit(rows[0, :5].numpy().mean(0))
    np.testing.assert_allclose(memory.regions[0, 0], centre, rtol=1e-9)
    kept = {tuple(row) for row in memory.pixels[2, :3].tolist()}
    assert kept <= {tuple(row) for row in rows[0, 5:11].tolist()}
    assert len(kept) == 3


def test_full_queues_forget_the_oldest() -> None:
    memory = _memory()
    for value in range(10):
        memory.remember(torch.full((1, 1, 6), float(value + 1)).double(), torch.tensor([[1]]))

    assert sorted(memory.pixels[1, :, 0].tolist()) == [3, 4, 5, 6, 7, 8, 9, 10]
    assert memory.sample(0, 99).shape == (8, 6)
    assert memory.sample(1, 99).shape == (4, 6)


def test_full_queues_are_drawn_from_alike() -> None:
    memory = _memory()
    for name in (0, 2):
        memory.remember(torch.full((1, 9, 6), float(name)).double(), torch.full((1, 9), name))

    # a third of what is asked for from every class, also from the one of which nothing is remembered
    assert memory.sample(0, 6)[:, 0].tolist() == [0, 0, 2, 2]


def test_numbers_of_the_memory_that_are_not_given_are_the_authors() -> None:
    torch.manual_seed(0)
    memory = PixelMemory(2, 6, 4, pixel_slots=3000, region_slots=3000).double().eval()
    # more of both kinds than are compared with
    memory.pixels.copy_(torch.nn.functional.normalize(_random(2, 3000, 6, seed=3), dim=2))
    memory.regions.copy_(torch.nn.functional.normalize(_random(2, 3000, 6, seed=4), dim=2))
    memory.counts.fill_(3000)
    teacher, student = _random(1, 6, 5, 8, seed=1), _random(1, 4, 5, 8, seed=2)
    batch, other = (teacher, student, torch.ones(1, 5, 8, dtype=torch.int64)), deepcopy(memory)

    found = memory_losses(memory, *batch)

    expected = memory_losses(other, *batch, temperature=0.1, pixels=4096, regions=1024)
    assert [float(loss.detach()) for loss in found] == [float(loss.detach()) for loss in expected]
    # of the 40 cells of the one class 16 are kept
    assert memory.counts.tolist() == [[3000, 3016], [3000, 3001]]


def test_the_memory_leaves_the_dropout_of_the_student_alone() -> None:
    """An arm that drew from torch's generator would train another student than its controls."""
    memory, before = _memory(), torch.get_rng_state()
    rows = torch.nn.functional.normalize(_random(1, 40, 6, seed=1), dim=2)
    drawn = []
    for _ in range(2):
        memory.remember(rows, torch.ones(1, 40, dtype=torch.int64), pixels_per_image=4)
        drawn.append(memory.sample(0, 3))

    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(memory.sample(0, 3), drawn[1]), "a resumed training draws the same"
    assert not torch.equal(drawn[0], drawn[1])
    assert memory.counts[0].tolist() == [0, 8, 0]


def _projected(memory: PixelMemory, rows: Array) -> Array:
    """Return what the memory's projection makes of rows of the student's features once it is trained."""
    parts = {name: values.numpy() for name, values in memory.project.state_dict().items()}
    hidden = rows @ parts["0.weight"][:, :, 0, 0].T
    hidden = (hidden - parts["1.running_mean"]) / np.sqrt(parts["1.running_var"] + 1e-5)
    hidden = np.maximum(hidden * parts["1.weight"] + parts["1.bias"], 0)
    return np.asarray(hidden @ parts["3.weight"][:, :, 0, 0].T)


def test_memory_losses() -> None:
    memory = _memory().eval()
    # as after some training
    memory.get_buffer("project.1.running_mean").copy_(_random(6, seed=3))
    memory.get_buffer("project.1.running_var").copy_(_random(6, seed=4).exp())
    teacher, student = _random(2, 6, 4, 4, seed=1), _random(2, 4, 4, 4, seed=2)
    labels = torch.arange(32).reshape(2, 4, 4) // 8 % 3
    labels[0, 0] = 255

    first = memory_losses(memory, teacher, student, labels)
    assert [float(value.detach()) for value in first] == [0, 0], "nothing is remembered yet"
    # everything in the queues is used, so that the order of drawing does not matter
    banks = [memory.sample(kind, 999).numpy() for kind in (0, 1)]
    found = memory_losses(memory, teacher, student, labels, temperature=0.2, pixels=999, regions=999)

    # a cell without a known label takes no part
    ids = labels.numpy().ravel()
    theirs, mine = (f.numpy().transpose(0, 2, 3, 1).reshape(32, -1)[ids != 255] for f in (teacher, student))
    theirs, mine = _unit(theirs), _unit(_projected(memory, mine))
    for value, bank in zip(found, banks, strict=True):
        expected = _divergence(theirs @ bank.T / 0.2, mine @ bank.T / 0.2, 1).mean()
        assert float(value.detach()) == pytest.approx(expected, rel=1e-6)
    # what is remembered of a class is what the teacher says where it is
    for name, filled in enumerate(memory.counts[0].clamp_max(8).tolist()):
        kept, seen = memory.pixels[name, :filled].numpy(), theirs[ids[ids != 255] == name]
        assert filled > 0
        np.testing.assert_allclose(abs(kept[:, None] - seen).max(2).min(1), 0, atol=1e-9)


def test_memory_losses_have_the_gradients_of_their_values() -> None:
    memory = _memory().eval()
    teacher, student = _random(2, 6, 4, 4, seed=1), _random(2, 4, 4, 4, seed=2).requires_grad_()
    labels = torch.arange(32).reshape(2, 4, 4) // 8 % 3
    memory_losses(memory, teacher, student, labels)

    def losses(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        again = _memory().eval()
        again.load_state_dict(memory.state_dict())
        return memory_losses(again, teacher, values, labels)

    assert torch.autograd.gradcheck(losses, (student,), atol=1e-6)


def test_memory_losses_without_any_label_are_zero() -> None:
    memory = _memory().eval()
    teacher, student = _random(2, 6, 4, 4, seed=1), _random(2, 4, 4, 4, seed=2).requires_grad_()
    memory_losses(memory, teacher, student, torch.ones(2, 4, 4, dtype=torch.int64))
    remembered = memory.counts.clone()

    found = memory_losses(memory, teacher, student, torch.full((2, 4, 4), 255))
    torch.stack(found).sum().backward()

    assert [float(value.detach()) for value in found] == [0, 0]
    assert student.grad is not None
    assert torch.count_nonzero(student.grad) == 0
    assert torch.equal(memory.counts, remembered)


@pytest.mark.parametrize("loss", [pair_wise_loss, cross_image_loss])
def test_under_autocast_losses_stay_in_float32(loss: object) -> None:
    assert callable(loss)
    teacher = _random(2, 32, 8, 8, seed=1).float()
    student = teacher + 0.01 * _random(2, 32, 8, 8, seed=2).float()

    with torch.autocast("cpu", torch.bfloat16):
        found = loss(teacher, student)

    assert found.dtype == torch.float32
    assert float(found) == pytest.approx(float(loss(teacher.double(), student.double())), rel=1e-3)
