"""What is minimised: cross-entropy, and the distillation terms of each method."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from brd_edge.distill.boundary import (
    boundary_class_loss,
    boundary_feature_loss,
    boundary_logit_loss,
    boundary_place_loss,
    boundary_projections,
    projected_boundary_loss,
)
from brd_edge.distill.frozen import freeze
from brd_edge.distill.grid import wide
from brd_edge.distill.logits import logit_loss
from brd_edge.distill.matching import (
    Layer,
    Pair,
    Stride,
    layer_channels,
    layer_stride,
    matched_layers,
    matched_strides,
    pair_up,
    pick_layer,
)
from brd_edge.distill.methods import METHODS
from brd_edge.distill.overlap import boundary_overlap_loss
from brd_edge.distill.peers import PixelMemory, channel_wise_loss, cross_image_loss, memory_losses, pair_wise_loss
from brd_edge.distill.prototypes import class_relation_loss
from brd_edge.distill.relation import relation_loss
from brd_edge.models.segmentation import Features, forward_features, stays_on_device

__all__ = ["CURRICULA", "DistillSettings", "Objective", "Supervised", "Term", "distillation", "supervised"]

Supervised = Callable[[Tensor, Tensor], Tensor]
"""Logits (N, K, H, W) and labels (N, H, W) to a scalar."""

Term = Callable[[Features, Features, Tensor], Tensor]
"""Teacher's and student's features and labels to a scalar, not yet weighted."""

StudentView = Callable[[Tensor, Tensor], Tensor]
"""Images (N, 3, H, W) and the jitter of their colours (N, 4) to images."""

_PIXELS, _REGIONS = 20_000, 2_000
"""How many pixels and regions of every class CIRKD remembers: its authors' sizes, for each class as there."""

CURRICULA: dict[str, Callable[[float], float]] = {
    "constant": lambda _done: 1.0,
    "fall": lambda done: 0.5 * (1 + math.cos(math.pi * done)),
    "rise": lambda done: 0.5 * (1 - math.cos(math.pi * done)),
}
"""Share of the training that is done (0 to 1) to a factor on every distillation term."""


@dataclass(frozen=True)
class DistillSettings:
    """The weights and shapes of the distillation terms; see the recipe's `distill` section."""

    method: str
    lambda_kd: float
    lambda_boundary: float
    lambda_boundary_classes: float
    lambda_relation: float
    lambda_skd: float
    lambda_cwd: float
    lambda_cirkd_batch: float
    lambda_cirkd_memory: float
    curriculum: str
    kd_temperature: float
    kd_class_balance: float
    cwd_temperature: float
    boundary_operator: str
    boundary_kernel: int
    boundary_strides: tuple[Stride, ...]
    band_weight: float
    boundary_class_space: str
    boundary_class_kernels: tuple[int, ...]
    boundary_class_balance: float
    relation_to: str
    relation_layers: tuple[Layer, ...]
    relation_class_balance: float
    relation_temperature: float
    relation_across_images: bool
    relation_cells_max: int
    compile_teacher: bool
    cuda_graphs: bool


@dataclass(frozen=True)
class Objective:
    """A supervised loss and the weighted terms that join it.

    Attributes:
        supervised: The loss `ce` of the logits and the labels.
        label_terms: What joins it without a teacher, by name, with its weight.
        teacher: Images (N, 3, H, W) to the teacher's features, without gradient; nothing without terms.
        terms: The distillation terms by name, with their weights.
        curriculum: Share of the training that is done to a factor on the terms.
        layers: Layers that exist only for distillation: they are trained, and never exported.
        forward: Student and images to the student's features.
        strides: Of the stages of the student's encoder that the terms read.
        recordable: What a CUDA graph can hold, of `teacher`, `student`, `ce` and the terms: it has always the same
            shapes, trains no layers of its own and never waits for the GPU.
        teacher_scale: Ratio of the side lengths of the batch's images, which the teacher sees, to the student's.
        student_view: What the student sees of the images, given (N, 4) of the batch's jitter; nothing where
            it is what the teacher sees.
    """

    supervised: Supervised
    label_terms: Mapping[str, tuple[float, Supervised]] = field(default_factory=dict)
    teacher: Callable[[Tensor], Features] | None = None
    terms: Mapping[str, tuple[float, Term]] = field(default_factory=dict)
    curriculum: Callable[[float], float] = CURRICULA["constant"]
    layers: nn.ModuleDict = field(default_factory=nn.ModuleDict)
    forward: Callable[[nn.Module, Tensor], Features] = forward_features
    strides: frozenset[int] = frozenset()
    recordable: frozenset[str] = frozenset()
    teacher_scale: int = 1
    student_view: StudentView | None = None


def supervised(loss: Supervised, label_terms: Mapping[str, tuple[float, Supervised]] | None = None) -> Objective:
    """Return an objective without a teacher."""
    return Objective(supervised=loss, label_terms=label_terms or {})


def distillation(
    teacher: nn.Module,
    student: nn.Module,
    settings: DistillSettings,
    loss: Supervised,
    *,
    classes: int,
    label_terms: Mapping[str, tuple[float, Supervised]] | None = None,
    static_loss: bool = False,
    teacher_scale: int = 1,
    student_view: StudentView | None = None,
    size: tuple[int, int] | None = None,
) -> Objective:
    """Return the objective of `settings.method`.

    Args:
        teacher: A trained model; it is put into eval mode and gets no gradient.
        student: The model that will be trained, to check before training that both can be matched.
        settings: Method, weights and shapes.
        loss: The supervised loss.
        classes: Number of classes.
        label_terms: What joins the supervised loss, by name, with its weight.
        static_loss: Whether the supervised loss has the same shapes whatever the labels are, and never waits for the
            GPU, so that a CUDA graph can hold it.
        teacher_scale: How many times as high and as wide the images are that the teacher sees.
        student_view: What the student sees of the images, where that is not what the teacher sees.
        size: Height and width of the student's images; about 256 x 256 when not given.

    Raises:
        ModelError: The two models cannot be matched; the message shows both feature tables. Or one takes no images of
            that size.
    """
    names = _active(settings)
    recordable = _recordable(settings, teacher, student, static_loss=static_loss)
    if not names:
        return Objective(
            supervised=loss,
            label_terms=label_terms or {},
            recordable=recordable,
            teacher_scale=teacher_scale,
            student_view=student_view,
        )
    pair = pair_up(teacher, student, size=size, scale=teacher_scale)
    layers = nn.ModuleDict()
    builders = _builders(settings, pair)
    if "boundary" in names:
        builders["boundary"] = _boundary(settings, pair, layers)
    if "cirkd_memory" in names:
        layers["memory"], builders["cirkd_memory"] = _memory(pair, classes)
    return Objective(
        supervised=loss,
        label_terms=label_terms or {},
        teacher=freeze(teacher, compiled=settings.compile_teacher),
        terms={name: (getattr(settings, f"lambda_{name}"), builders[name]) for name in names},
        curriculum=CURRICULA[settings.curriculum],
        layers=layers,
        strides=_strides(settings, pair),
        recordable=recordable,
        teacher_scale=teacher_scale,
        student_view=student_view,
    )


def _recordable(
    settings: DistillSettings, teacher: nn.Module, student: nn.Module, *, static_loss: bool
) -> frozenset[str]:
    if not settings.cuda_graphs:
        return frozenset()
    names = {"overlap", "kd", "cwd", "skd", "boundary_classes"}
    if settings.boundary_operator != "projected":
        names.add("boundary")
    if settings.relation_to == "classes":
        # which pixels are related to each other depends on the labels
        names.add("relation")
    if not settings.compile_teacher and stays_on_device(teacher):
        names.add("teacher")
    if static_loss:
        names.add("ce")
    if stays_on_device(student):
        names.add("student")
    return frozenset(names)


def _active(settings: DistillSettings) -> list[str]:
    """Return the method's terms; a weight of 0 leaves a term out, and costs nothing."""
    return [name for name in METHODS[settings.method] if getattr(settings, f"lambda_{name}") > 0]


def _strides(settings: DistillSettings, pair: Pair) -> frozenset[int]:
    """Return the strides of the stages of the student's encoder that the active terms read."""
    names = _active(settings)
    of_boundary = matched_strides(pair, settings.boundary_strides) if "boundary" in names else ()
    layers = matched_layers(pair, settings.relation_layers) if "relation" in names else ()
    of_relation = (layer_stride(pair.student, layer) for layer in layers if layer != "decoder")
    return frozenset((*of_boundary, *of_relation))


def _builders(settings: DistillSettings, pair: Pair) -> dict[str, Term]:
    """Return every term that can have no layers of its own."""
    return {
        "kd": lambda theirs, mine, labels: logit_loss(
            theirs.coarse_logits,
            mine.coarse_logits,
            labels,
            temperature=settings.kd_temperature,
            class_balance=settings.kd_class_balance,
        ),
        "cwd": lambda theirs, mine, _labels: channel_wise_loss(
            theirs.coarse_logits, mine.coarse_logits, temperature=settings.cwd_temperature
        ),
        "skd": lambda theirs, mine, _labels: pair_wise_loss(theirs.decoder, mine.decoder),
        "cirkd_batch": lambda theirs, mine, _labels: cross_image_loss(theirs.decoder, mine.decoder),
        "boundary_classes": _boundary_classes(settings),
        "relation": _relation(settings, pair),
    }


def _boundary_classes(settings: DistillSettings) -> Term:
    """Return the term of the boundaries of classes: the mean over its windows."""
    space, kernels = settings.boundary_class_space, settings.boundary_class_kernels

    def of_window(theirs: Tensor, mine: Tensor, labels: Tensor, kernel: int) -> Tensor:
        if space == "places":
            # for the whole image CWD's temperature; what stands out of a small window is weaker
            temperature = 4.0 if kernel == 0 else 1.0
            return boundary_place_loss(theirs, mine, labels, kernel=kernel, temperature=temperature)
        if space == "overlaps":
            return boundary_overlap_loss(theirs, mine, labels, kernel=kernel)
        loss = boundary_class_loss if space == "probabilities" else boundary_logit_loss
        weights = {"band_weight": settings.band_weight, "class_balance": settings.boundary_class_balance}
        return loss(theirs, mine, labels, kernel=kernel, **weights)

    def boundary_classes(theirs: Features, mine: Features, labels: Tensor) -> Tensor:
        maps = theirs.coarse_logits, mine.coarse_logits
        if space == "overlaps":
            # of probabilities, for all windows
            maps = wide(maps[0]).softmax(1), wide(maps[1]).softmax(1)
        return torch.stack([of_window(*maps, labels, kernel) for kernel in kernels]).mean()

    return boundary_classes


def _relation(settings: DistillSettings, pair: Pair) -> Term:
    """Return the term of the pixels' relations, to each other or to the classes."""
    used = "relation" in _active(settings)
    layers = matched_layers(pair, settings.relation_layers) if used else ()

    def related(theirs: Tensor, mine: Tensor, labels: Tensor) -> Tensor:
        if settings.relation_to == "classes":
            return class_relation_loss(
                theirs,
                mine,
                labels,
                temperature=settings.relation_temperature,
                class_balance=settings.relation_class_balance,
                classes=pair.student[-1].channels,
            )
        return relation_loss(
            theirs,
            mine,
            labels,
            temperature=settings.relation_temperature,
            across_images=settings.relation_across_images,
            cells_max=settings.relation_cells_max,
        )

    def relation(theirs: Features, mine: Features, labels: Tensor) -> Tensor:
        losses = [related(pick_layer(theirs, layer), pick_layer(mine, layer), labels) for layer in layers]
        return torch.stack(losses).mean()

    return relation


def _boundary(settings: DistillSettings, pair: Pair, layers: nn.ModuleDict) -> Term:
    """Return the term of the backbones' boundaries; what it needs to learn is put into `layers`."""
    strides = matched_strides(pair, settings.boundary_strides)
    kernel, band_weight = settings.boundary_kernel, settings.band_weight
    if settings.boundary_operator == "projected":
        layers["boundary"] = projections = boundary_projections(
            {stride: (layer_channels(pair.teacher, stride), layer_channels(pair.student, stride)) for stride in strides}
        )
        return lambda theirs, mine, labels: projected_boundary_loss(
            theirs.encoder, mine.encoder, labels, projections=projections, kernel=kernel, band_weight=band_weight
        )
    return lambda theirs, mine, labels: boundary_feature_loss(
        theirs.encoder,
        mine.encoder,
        labels,
        strides=strides,
        operator=settings.boundary_operator,
        kernel=kernel,
        band_weight=band_weight,
    )


def _memory(pair: Pair, classes: int) -> tuple[PixelMemory, Term]:
    channels = layer_channels(pair.teacher, "decoder"), layer_channels(pair.student, "decoder")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        memory = PixelMemory(classes, *channels, pixel_slots=_PIXELS, region_slots=_REGIONS)

    def loss(theirs: Features, mine: Features, labels: Tensor) -> Tensor:
        return torch.stack(memory_losses(memory, theirs.decoder, mine.decoder, labels)).sum()

    return memory, loss
