"""Second derivatives: right where autograd has them, and refused where a gradient is written out."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from brd_edge.distill.depthwise import depthwise_convolution
from brd_edge.distill.distributed import shared_sum
from brd_edge.distill.overlap import boundary_overlap_loss
from brd_edge.distill.peers import PixelMemory, cross_image_loss, memory_losses
from brd_edge.distill.prototypes import class_relation_loss
from brd_edge.distill.relation import relation_loss, relation_pixels, streamed_relation

LABELS = torch.arange(40).reshape(2, 4, 5) // 4 % 3


def _random(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


TEACHER = _random(2, 6, 4, 5, seed=1)


def _student() -> Tensor:
    return _random(2, 3, 4, 5, seed=2).requires_grad_()


def _remembered(student: Tensor) -> Tensor:
    torch.manual_seed(0)
    memory = PixelMemory(3, 6, 3, pixel_slots=8, region_slots=4).double()
    memory_losses(memory, TEACHER, student.detach(), LABELS)
    return torch.stack(memory_losses(memory, TEACHER, student, LABELS)).sum()


def _streamed(student: Tensor) -> Tensor:
    teacher, mine = (relation_pixels(features, 4, 5)[0] for features in (TEACHER, student))
    return streamed_relation(teacher, mine, temperature=0.3, block=7)


def _convolved(student: Tensor) -> Tensor:
    # the sum of what is convolved: the gradient that comes in is a constant
    weight = student[0, :, :3, :3].unsqueeze(1)
    return depthwise_convolution(student, weight, None, padding=(2, 2), dilation=(2, 2)).sum()


def _overlap(student: Tensor) -> Tensor:
    return boundary_overlap_loss(_random(2, 3, 4, 5, seed=4).softmax(1), student.softmax(1), LABELS)


_WRITTEN_OUT: dict[str, Callable[[Tensor], Tensor]] = {
    "relation": lambda s: relation_loss(TEACHER, s, LABELS, temperature=0.3),
    "relation across images": lambda s: relation_loss(TEACHER, s, temperature=0.3, across_images=True),
    "streamed relation": _streamed,
    "relation to classes": lambda s: class_relation_loss(TEACHER, s, LABELS, temperature=0.3),
    "cross-image": lambda s: cross_image_loss(TEACHER, s, temperature=0.3),
    "memory": _remembered,
    "depthwise convolution": _convolved,
}


@pytest.mark.parametrize("squared", [False, True], ids=["a constant comes in", "a graph comes in"])
@pytest.mark.parametrize("name", _WRITTEN_OUT)
def test_a_second_derivative_is_refused(name: str, squared: bool) -> None:
    student = _student()
    loss = _WRITTEN_OUT[name](student)
    loss = loss.square() if squared else loss

    with pytest.raises(RuntimeError, match=r"can be differentiated once only.*without create_graph=True"):
        torch.autograd.grad(loss, student, create_graph=True)
    with pytest.raises(RuntimeError, match="can be differentiated once only"):
        _WRITTEN_OUT[name](student).backward(create_graph=True)  # type: ignore[no-untyped-call]


def _naive_relation(student: Tensor) -> Tensor:
    pixels = (relation_pixels(features, 4, 5)[0] for features in (TEACHER, student))
    target, found = ((rows @ rows.T / 0.3).log_softmax(1) for rows in pixels)
    return (target.exp() * (target - found)).sum(1).mean()


def test_the_first_derivative_is_the_naive_one_however_it_is_asked_for() -> None:
    student = _student()
    (expected,) = torch.autograd.grad(_naive_relation(student), student, create_graph=True)

    # twice of one graph, and once of a graph that is made again during the backward pass
    loss = _streamed(student)
    loss.backward(retain_graph=True)  # type: ignore[no-untyped-call]
    loss.backward()  # type: ignore[no-untyped-call]
    checkpoint(_streamed, student, use_reentrant=True).backward()

    assert student.grad is not None
    torch.testing.assert_close(student.grad, 3 * expected.detach())


# torch's own, where a graph breaks and a tensor is handed over
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize("name", ["relation across images", "relation to classes", "cross-image", "overlap"])
def test_the_first_derivative_survives_compilation(name: str) -> None:
    torch.compiler.reset()
    loss = _WRITTEN_OUT.get(name, _overlap)
    student, compiled = _student(), torch.compile(loss, backend="aot_eager")
    (expected,) = torch.autograd.grad(loss(student), student)

    (found,) = torch.autograd.grad(compiled(student), student)

    torch.testing.assert_close(found, expected)


def test_a_sum_over_processes_passes_second_derivatives_on() -> None:
    values = _random(7, seed=3).requires_grad_()
    (first,) = torch.autograd.grad(shared_sum(values.pow(3)).sum(), values, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), values)
    torch.testing.assert_close(second, 6 * values.detach())

    assert torch.autograd.gradgradcheck(_overlap, (_student(),))
