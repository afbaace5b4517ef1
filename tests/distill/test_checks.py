"""What the losses refuse: whatever would give a plausible number for nonsense, or an error from deep inside."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from brd_edge.distill.boundary import (
    boundary_class_loss,
    boundary_feature_loss,
    boundary_logit_loss,
    boundary_map,
    boundary_place_loss,
    boundary_projections,
    boundary_residual,
    neighbour_map,
    projected_boundary_loss,
)
from brd_edge.distill.checks import check_labels, check_maps, check_rows, check_same_classes, check_stages
from brd_edge.distill.logits import logit_loss
from brd_edge.distill.overlap import boundary_overlap_loss, label_overlap_loss
from brd_edge.distill.peers import PixelMemory, channel_wise_loss, cross_image_loss, memory_losses, pair_wise_loss
from brd_edge.distill.prototypes import class_relation_loss
from brd_edge.distill.relation import relation_loss, relation_pixels, streamed_relation
from brd_edge.distill.similarities import similarity_divergence
from brd_edge.distill.supervised import class_weights, cross_entropy, hard_cross_entropy

Loss = Callable[..., object]


def _random(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def _stages(teacher: Tensor, student: Tensor, labels: Tensor, **numbers: float) -> Tensor:
    return boundary_feature_loss({4: teacher}, {4: student}, labels, strides=(4,), **numbers)  # type: ignore[arg-type]


def _projected(teacher: Tensor, student: Tensor, labels: Tensor, **numbers: float) -> Tensor:
    layers = boundary_projections({4: (5, 5)})
    return projected_boundary_loss({4: teacher}, {4: student}, labels, projections=layers, **numbers)  # type: ignore[arg-type]


def _overlap(teacher: Tensor, student: Tensor, labels: Tensor, **numbers: int) -> Tensor:
    return boundary_overlap_loss(teacher.softmax(1), student.softmax(1), labels, **numbers)


def _remembered(teacher: Tensor, student: Tensor, labels: Tensor, **numbers: float) -> tuple[Tensor, Tensor]:
    memory = PixelMemory(5, 5, 5, pixel_slots=4, region_slots=2)
    return memory_losses(memory, teacher, student, labels, **numbers)  # type: ignore[arg-type]


# each of (teacher, student, labels, **numbers)
_OF_CLASSES: dict[str, Loss] = {
    "kd": logit_loss,
    "boundary classes": boundary_class_loss,
    "boundary logits": boundary_logit_loss,
    "boundary places": boundary_place_loss,
    "boundary overlaps": _overlap,
    "cwd": lambda t, s, _y, **numbers: channel_wise_loss(t, s, **numbers),
}
_OF_FEATURES: dict[str, Loss] = {
    "boundary": _stages,
    "boundary projected": _projected,
    "relation": relation_loss,
    "relation to classes": class_relation_loss,
    "skd": lambda t, s, _y, **numbers: pair_wise_loss(t, s, **numbers),
    "cirkd batch": lambda t, s, _y, **numbers: cross_image_loss(t, s, **numbers),
    "cirkd memory": _remembered,
}
_LOSSES = _OF_CLASSES | _OF_FEATURES
_WITHOUT_LABELS = {"cwd", "skd", "cirkd batch"}
_LEAST_TEMPERATURE = dict.fromkeys(("kd", "boundary places", "cwd", "relation to classes"), "above 0") | dict.fromkeys(
    ("relation", "cirkd batch", "cirkd memory"), "at least 0.02"
)
_WITH_KERNEL = [name for name in _LOSSES if name.startswith("boundary")]


def _batch(images: int = 2, classes: int = 5) -> Tensor:
    return _random(images, classes, 8, 12)


LABELS = torch.arange(2 * 32 * 48).reshape(2, 32, 48) // 64 % 5


@pytest.mark.parametrize("name", _LOSSES)
def test_teacher_and_student_are_of_the_same_images(name: str) -> None:
    # of 3 and 2 images, and of 1, which broadcasting would spread over 2
    for images in (3, 1):
        with pytest.raises(ValueError, match="teacher and student must be of the same images") as caught:
            _LOSSES[name](_batch(images), _batch(), LABELS)
        assert f"({images}, 5, 8, 12) of the teacher and (2, 5, 8, 12) of the student" in str(caught.value)
    with pytest.raises(ValueError, match=r"must be maps \(N, C, H, W\), got \(5, 8, 12\) of the teacher"):
        _LOSSES[name](_batch()[0], _batch(), LABELS)


@pytest.mark.parametrize("name", sorted(_LOSSES.keys() - _WITHOUT_LABELS))
def test_labels_are_of_the_same_images(name: str) -> None:
    for labels in (LABELS[:1], torch.cat([LABELS, LABELS]), LABELS[:, None], LABELS[0]):
        with pytest.raises(ValueError, match=r"labels must be \(N, h, w\) of the same 2 images") as caught:
            _LOSSES[name](_batch(), _batch(), labels)
        assert f"got {tuple(labels.shape)}" in str(caught.value)


@pytest.mark.parametrize("name", _OF_CLASSES)
def test_teacher_and_student_have_the_same_classes(name: str) -> None:
    # of 4, and of 1, which broadcasting would spread over 5
    for classes in (4, 1):
        with pytest.raises(ValueError, match=rf"must have the same classes, got {classes} and 5 in \(2, {classes}, 8"):
            _OF_CLASSES[name](_batch(classes=classes), _batch(), LABELS)


@pytest.mark.parametrize("name", _LEAST_TEMPERATURE)
def test_a_temperature_is_above_its_least(name: str) -> None:
    least = _LEAST_TEMPERATURE[name]
    too_low = [-1.0, 0.0, math.nan, math.inf] + ([0.019] if least != "above 0" else [])
    for temperature in too_low:
        with pytest.raises(ValueError, match=f"temperature must be {least}, got {temperature}"):
            _LOSSES[name](_batch(), _batch(), LABELS, temperature=temperature)
    _LOSSES[name](_batch(), _batch(), LABELS, temperature=0.02)


@pytest.mark.parametrize("kernel", [-3, 1, 2, 4])
@pytest.mark.parametrize("name", _WITH_KERNEL)
def test_a_window_is_odd(name: str, kernel: int) -> None:
    with pytest.raises(ValueError, match=rf"kernel must be odd and at least 3, or 0 .* got {kernel}"):
        _LOSSES[name](_batch(), _batch(), LABELS, kernel=kernel)


def test_operators_refuse_windows_that_they_cannot_take() -> None:
    with pytest.raises(ValueError, match=r"odd and at least 3; 0, the whole image, has no neighbours, got 0"):
        boundary_feature_loss({4: _batch()}, {4: _batch()}, LABELS, strides=(4,), operator="neighbours", kernel=0)
    for kernel in (0, 1, 4):
        with pytest.raises(ValueError, match=f"got {kernel}"):
            neighbour_map(_batch(), kernel)
    for read in (boundary_map, boundary_residual):
        with pytest.raises(ValueError, match="got 2"):
            read(_batch(), 2)
        assert read(_batch(), 0).shape[2:] == (8, 12)


def test_stages_stand_in_both_mappings() -> None:
    maps = {4: _batch(), 8: _batch()}
    for strides in ((4, 16), ()):
        with pytest.raises(ValueError, match=r"strides must name at least one stage.*\[4, 8\] of the teacher"):
            boundary_feature_loss(maps, maps, LABELS, strides=strides)
    with pytest.raises(ValueError, match=r"got \[8\] with \[4, 8\] of the teacher and \[4\] of the student"):
        layers = boundary_projections({8: (5, 5)})
        projected_boundary_loss(maps, {4: _batch()}, LABELS, projections=layers)
    with pytest.raises(ValueError, match=r"operator must be one of \['residual', 'neighbours'\], got 'sobel'"):
        boundary_feature_loss(maps, maps, LABELS, strides=(4,), operator="sobel")


def test_projections_end_in_the_teachers_channels() -> None:
    # of one channel, which broadcasting would spread over 5
    with pytest.raises(ValueError, match=r"the teacher's channels, 1 at stride 4, got 5"):
        _projected(_batch(classes=1), _batch(), LABELS)
    with pytest.raises(ValueError, match=r"must have the 5 channels of the memory, got 4 in \(2, 4, 8, 12\)"):
        _remembered(_batch(classes=4), _batch(), LABELS)


@pytest.mark.parametrize(
    ("name", "number", "value", "wanted"),
    [
        *((name, "band_weight", -0.5, "at least 0") for name in ("boundary", "boundary projected", "boundary logits")),
        ("boundary classes", "class_balance", 1.5, "from 0 to 1"),
        ("kd", "class_balance", -1.0, "from 0 to 1"),
        ("relation to classes", "class_balance", math.nan, "from 0 to 1"),
        ("relation to classes", "classes", 0, "at least 1"),
        ("relation", "cells_max", 1, "at least 2"),
        ("relation", "block", 0, "at least 1"),
        ("relation", "block", -1, "at least 1"),
        ("skd", "patch", 0, "at least 1"),
        ("cirkd memory", "pixels", 0, "at least 1"),
        ("cirkd memory", "regions", 0, "at least 1"),
    ],
)
def test_numbers_are_in_their_range(name: str, number: str, value: float, wanted: str) -> None:
    with pytest.raises(ValueError, match=f"{number} must be {wanted}, got {value}"):
        _LOSSES[name](_batch(), _batch(), LABELS, **{number: value})


def test_streamed_relation_takes_rows_of_the_same_pixels() -> None:
    rows = torch.nn.functional.normalize(_random(6, 3), dim=1)
    for teacher in (rows[:5], rows[None], rows[:0]):
        with pytest.raises(ValueError, match="rows of teacher and student must be") as caught:
            streamed_relation(teacher, rows if len(teacher) else teacher, temperature=0.1)
        assert str(tuple(teacher.shape)) in str(caught.value)
    with pytest.raises(ValueError, match=r"both be float32 or both float64, got torch.float64 and torch.float32"):
        streamed_relation(rows.double(), rows, temperature=0.1)
    with pytest.raises(ValueError, match=r"both float64, got torch.bfloat16"):
        streamed_relation(rows.bfloat16(), rows.bfloat16(), temperature=0.1)
    with pytest.raises(ValueError, match=r"temperature must be at least 0.02, got 0.001"):
        streamed_relation(rows, rows, temperature=0.001)
    for block in (0, -4):
        with pytest.raises(ValueError, match=f"block must be at least 1, got {block}"):
            streamed_relation(rows, rows, temperature=0.1, block=block)


def test_the_coldest_relation_of_unit_rows_is_a_number_and_right() -> None:
    """Rows that are alike and opposite have the largest exponentials that unit rows can have."""
    rows = torch.nn.functional.normalize(_random(40, 3), dim=1)
    teacher, student = torch.cat([rows, rows, -rows]), torch.cat([rows, -rows, rows]).requires_grad_()

    loss = streamed_relation(teacher, student, temperature=0.02)
    loss.backward()  # type: ignore[no-untyped-call]

    logs = [(part.double() @ part.double().T / 0.02).log_softmax(1) for part in (teacher, student.detach())]
    assert float(loss.detach()) == pytest.approx(float((logs[0].exp() * (logs[0] - logs[1])).sum(1).mean()), rel=1e-5)
    assert student.grad is not None and bool(student.grad.isfinite().all())


def test_pixels_of_a_relation_lie_on_no_finer_grid() -> None:
    with pytest.raises(ValueError, match=r"at least the grid's 9 x 12 cells, got \(2, 5, 8, 12\)"):
        relation_pixels(_batch(), 9, 12)


def test_similarities_belong_together() -> None:
    rows, keys, weights = _random(6, 3), _random(4, 3), torch.ones(6)
    with pytest.raises(ValueError, match=r"^rows of teacher .* got \(5, 3\) of the teacher and \(6, 3\)"):
        similarity_divergence((rows[:5], keys), (rows, keys), weights, temperature=0.1)
    with pytest.raises(ValueError, match=r"^keys of teacher .* got \(3, 3\) of the teacher and \(4, 3\)"):
        similarity_divergence((rows, keys[:3]), (rows, keys), weights, temperature=0.1)
    with pytest.raises(ValueError, match=r"weights must be one number a row, \(6,\), got \(1,\)"):
        similarity_divergence((rows, keys), (rows, keys), weights[:1], temperature=0.1)
    for block in (0, -4):
        with pytest.raises(ValueError, match=f"block must be at least 1, got {block}"):
            similarity_divergence((rows, keys), (rows, keys), weights, temperature=0.1, block=block)
    with pytest.raises(ValueError, match=r"temperature must be at least 0.02, got 0"):
        similarity_divergence((rows, keys), (rows, keys), weights, temperature=0)


def test_supervised_losses_take_labels_of_their_size() -> None:
    logits = _random(2, 5, 32, 48)
    of_labels: tuple[Loss, ...] = (
        label_overlap_loss,
        lambda z, y: cross_entropy(z, y, None),
        lambda z, y: hard_cross_entropy(z, y, None),
    )
    for loss in of_labels:
        with pytest.raises(ValueError, match=r"as high and wide as the logits \(2, 5, 32, 48\), got \(2, 48, 32\)"):
            loss(logits, LABELS.mT)
        with pytest.raises(ValueError, match=r"labels must be .* of the same 2 images"):
            loss(logits, LABELS[:1])
    for supervised in (cross_entropy, hard_cross_entropy):
        with pytest.raises(ValueError, match=r"one number a class, \(5,\), got \(7,\)"):
            supervised(logits, LABELS, torch.ones(7))
    with pytest.raises(ValueError, match="kept_min must be from 0 to 1, got 2"):
        hard_cross_entropy(logits, LABELS, None, kept_min=2)
    with pytest.raises(ValueError, match="kind must be none or log_frequency, got 'sqrt'"):
        class_weights([1, 2], "sqrt")


def test_memories_have_room() -> None:
    with pytest.raises(ValueError, match="region_slots must be at least 1, got 0"):
        PixelMemory(3, 6, 4, pixel_slots=8, region_slots=0)


class _Nothing(TorchDispatchMode):
    def __torch_dispatch__(self, func: object, types: object, args: object = (), kwargs: object = None) -> object:
        raise AssertionError(f"a check ran {func}")


def test_checks_look_at_no_values() -> None:
    """Any operation could wait for a GPU, and would be part of a CUDA graph."""
    maps, rows = (_batch(), _batch()), (_random(6, 3), _random(6, 3))
    with _Nothing():
        check_maps(*maps)
        check_same_classes(*maps)
        check_labels(LABELS, maps[1])
        check_stages({4: maps[0]}, {4: maps[1]}, (4,))
        check_rows(*rows)
