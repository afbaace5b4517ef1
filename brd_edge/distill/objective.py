"""What is minimised: cross-entropy, and the distillation terms of each method."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from brd_edge.distill.boundary import boundary_class_loss, boundary_feature_loss, common_strides
from brd_edge.distill.logits import logit_loss
from brd_edge.distill.relation import relation_loss
from brd_edge.models.segmentation import Features, feature_table, forward_features
from brd_edge.runtime.errors import ModelError

__all__ = ["METHODS", "DistillSettings", "Objective", "distillation_objective", "supervised_objective"]

Objective = Callable[[nn.Module, Tensor, Tensor], dict[str, Tensor]]
"""Model, images (N, 3, H, W), labels (N, H, W) to the weighted terms, whose sum is minimised."""

METHODS: dict[str, frozenset[str]] = {
    "none": frozenset(),
    "kd": frozenset({"kd"}),
    "boundary": frozenset({"boundary", "boundary_classes"}),
    "relation": frozenset({"relation"}),
    "brd": frozenset({"kd", "boundary", "boundary_classes", "relation"}),
}
"""Which terms join the cross-entropy under each method."""


@dataclass(frozen=True)
class DistillSettings:
    """The weights and shapes of the distillation terms; see the recipe's `distill` section."""

    method: str
    lambda_kd: float
    lambda_boundary: float
    lambda_boundary_classes: float
    lambda_relation: float
    kd_temperature: float
    boundary_kernel: int
    boundary_strides: tuple[int, ...]
    band_weight: float
    relation_temperature: float


def supervised_objective(class_weights: Tensor | None) -> Objective:
    """Return cross-entropy alone.

    Args:
        class_weights: (K,) float32 weights, or nothing for equal ones.
    """

    def objective(model: nn.Module, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        return {"ce": _cross_entropy(model(images), labels, class_weights)}

    return objective


def distillation_objective(
    teacher: nn.Module, student: nn.Module, settings: DistillSettings, class_weights: Tensor | None
) -> Objective:
    """Return cross-entropy joined by the terms of `settings.method`.

    Args:
        teacher: A trained model; it is put into eval mode and gets no gradient.
        student: The model that will be trained, to check before training that both can be matched.
        settings: Method, weights and shapes.
        class_weights: (K,) float32 weights of the cross-entropy, or nothing for equal ones.

    Raises:
        ModelError: The two models cannot be matched; the message shows both feature tables.
    """
    terms = METHODS[settings.method]
    if not terms:
        return supervised_objective(class_weights)
    teacher.eval().requires_grad_(False)
    strides = _matched_strides(teacher, student, settings) if "boundary" in terms else ()

    def objective(model: nn.Module, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        with torch.no_grad():
            theirs = forward_features(teacher, images)
        mine = forward_features(model, images)
        found = {"ce": _cross_entropy(mine.logits, labels, class_weights)}
        return found | _distillation_terms(terms, theirs, mine, labels, settings, strides)

    return objective


def _distillation_terms(
    terms: frozenset[str],
    theirs: Features,
    mine: Features,
    labels: Tensor,
    settings: DistillSettings,
    strides: tuple[int, ...],
) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    if "kd" in terms:
        loss = logit_loss(theirs.logits, mine.logits, labels, temperature=settings.kd_temperature)
        found["kd"] = settings.lambda_kd * loss
    if "boundary" in terms:
        loss = boundary_feature_loss(
            theirs.encoder,
            mine.encoder,
            labels,
            strides=strides,
            kernel=settings.boundary_kernel,
            band_weight=settings.band_weight,
        )
        found["boundary"] = settings.lambda_boundary * loss
    if "boundary_classes" in terms:
        loss = boundary_class_loss(
            theirs.logits,
            mine.logits,
            labels,
            kernel=settings.boundary_kernel,
            band_weight=settings.band_weight,
        )
        found["boundary_classes"] = settings.lambda_boundary_classes * loss
    if "relation" in terms:
        loss = relation_loss(
            theirs.encoder[max(theirs.encoder)],
            mine.encoder[max(mine.encoder)],
            labels,
            temperature=settings.relation_temperature,
        )
        found["relation"] = settings.lambda_relation * loss
    return found


def _cross_entropy(logits: Tensor, labels: Tensor, weights: Tensor | None) -> Tensor:
    # a crop without any known pixel must give 0, not the 0/0 of a mean over nothing
    if bool((labels == 255).all()):
        return logits.float().sum() * 0
    return F.cross_entropy(logits.float(), labels, weight=weights, ignore_index=255)


def _matched_strides(teacher: nn.Module, student: nn.Module, settings: DistillSettings) -> tuple[int, ...]:
    tables = {name: feature_table(model, 256, 256) for name, model in (("teacher", teacher), ("student", student))}
    try:
        return common_strides(
            [row.stride for row in tables["teacher"]],
            [row.stride for row in tables["student"]],
            settings.boundary_strides,
        )
    except ModelError as error:
        lines = [
            f"  {name} {row.name}: stride {row.stride}, {row.channels} channels"
            for name, table in tables.items()
            for row in table
        ]
        raise ModelError("\n".join([str(error), *lines])) from None
