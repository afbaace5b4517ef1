"""What the losses ask of their arguments.

Broadcasting would turn a wrong batch into a plausible number. Shapes and plain numbers alone are looked at, never a
tensor's values: a check costs microseconds, does not wait for a GPU, and a CUDA graph can be recorded around it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

__all__ = [
    "COLDEST",
    "check_kernel",
    "check_labels",
    "check_maps",
    "check_number",
    "check_rows",
    "check_same_classes",
    "check_stages",
    "check_temperature",
]

COLDEST = 0.02
"""The least temperature of a softmax over cosines whose maximum is not taken off before the exponential."""


def check_maps(teacher: Tensor, student: Tensor) -> None:
    """Raise ValueError unless both are maps (N, C, H, W) of the same N; heights and widths may differ."""
    if teacher.ndim != 4 or student.ndim != 4:
        raise ValueError(f"teacher and student must be maps (N, C, H, W), got {_both(teacher, student)}")
    if len(teacher) != len(student):
        raise ValueError(
            f"teacher and student must be of the same images, got {len(teacher)} and {len(student)} of them in "
            f"{_both(teacher, student)}: give the same batch to both models"
        )


def check_same_classes(teacher: Tensor, student: Tensor) -> None:
    """Raise ValueError unless both maps have as many channels, in which classes are told apart."""
    if teacher.shape[1] != student.shape[1]:
        raise ValueError(
            f"teacher and student must have the same classes, got {teacher.shape[1]} and {student.shape[1]} in "
            f"{_both(teacher, student)}: take models of the same classes, or losses of features, whose channels may "
            "differ"
        )


def check_labels(labels: Tensor, maps: Tensor, *, same_size: bool = False) -> None:
    """Raise ValueError unless labels are (N, h, w) for maps (N, C, H, W).

    Args:
        labels: Class ids.
        maps: What they are the labels of.
        same_size: Whether h and w must be H and W too.
    """
    if labels.ndim != 3 or len(labels) != len(maps):
        raise ValueError(
            f"labels must be (N, h, w) of the same {len(maps)} images as {_shape(maps)}, got {_shape(labels)}: give "
            "one map of class ids an image, without an axis of channels"
        )
    if same_size and labels.shape[1:] != maps.shape[2:]:
        raise ValueError(
            f"labels must be as high and wide as the logits {_shape(maps)}, got {_shape(labels)}: resize the logits "
            "first; class ids cannot be averaged"
        )


def check_stages(teacher: Mapping[int, Tensor], student: Mapping[int, Tensor], strides: Sequence[int]) -> None:
    """Raise ValueError unless there are strides, and each has a map in both mappings, of the same images."""
    lacking = [stride for stride in strides if stride not in teacher or stride not in student]
    if lacking or not strides:
        raise ValueError(
            f"strides must name at least one stage, and each must stand in both mappings, got {list(strides)} with "
            f"{list(teacher)} of the teacher and {list(student)} of the student: compare stages that both have"
        )
    for stride in strides:
        check_maps(teacher[stride], student[stride])


def check_rows(teacher: Tensor, student: Tensor, *, what: str = "rows") -> None:
    """Raise ValueError unless both are (N, C) of the same N, at least 1, and of one dtype, float32 or float64."""
    if teacher.ndim != 2 or student.ndim != 2 or len(teacher) != len(student) or not len(student):
        raise ValueError(
            f"{what} of teacher and student must be (N, C_T) and (N, C_S) of the same N, at least 1, got "
            f"{_both(teacher, student)}: give the same pixels of both, one a row"
        )
    if teacher.dtype != student.dtype or student.dtype not in (torch.float32, torch.float64):
        raise ValueError(
            f"{what} of teacher and student must both be float32 or both float64, got {teacher.dtype} and "
            f"{student.dtype}: convert them with .float()"
        )


def check_temperature(temperature: float, *, least: float | None = None) -> None:
    """Raise ValueError unless a temperature is finite and above 0, or at least `least`."""
    if least is None:
        if not 0 < temperature < math.inf:
            raise ValueError(
                f"temperature must be above 0, got {temperature}: 1 leaves the softmax as it is, more softens it"
            )
    elif not least <= temperature < math.inf:
        raise ValueError(
            f"temperature must be at least {least}, got {temperature}: cosines are divided by it, and float32 must "
            "hold exp(1 / temperature); 0.1 is usual"
        )


def check_kernel(kernel: int, *, whole_image: bool) -> None:
    """Raise ValueError unless a window's side is odd and at least 3, or 0 where that stands for the whole image."""
    if kernel == 0 and whole_image:
        return
    if kernel < 3 or kernel % 2 == 0:
        advice = ", or 0 for the whole image" if whole_image else "; 0, the whole image, has no neighbours"
        raise ValueError(f"kernel must be odd and at least 3{advice}, got {kernel}: 3 is usual")


def check_number(name: str, value: float, least: float, most: float = math.inf) -> None:
    """Raise ValueError unless a number is finite and from `least` to `most`."""
    if not least <= value <= most or value == math.inf:
        wanted = f"at least {least}" if most == math.inf else f"from {least} to {most}"
        raise ValueError(f"{name} must be {wanted}, got {value}: choose it in that range or leave it at its default")


def _shape(values: Tensor) -> str:
    return str(tuple(values.shape))


def _both(teacher: Tensor, student: Tensor) -> str:
    return f"{_shape(teacher)} of the teacher and {_shape(student)} of the student"
