"""Values and gradients of every term in this process's part of a batch, averaged over the processes.

    python terms_worker.py FILE     (or under torchrun)

Process 0 writes FILE: by variant and term the value, and the gradient of the student's first layer.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from brd_edge.distill.distributed import gather_objects, process_group, rank, world
from brd_edge.distill.objective import distillation
from brd_edge.distill.supervised import cross_entropy
from brd_edge.models.segmentation import ModelSpec, build_model, forward_features
from brd_edge.recipe_training import DistillSection, TrainSection
from brd_edge.stages.training import distill_settings

BATCH = 6
SETTINGS = distill_settings(DistillSection(train=TrainSection(epochs=1)))
VARIANTS = {
    "brd_kd": replace(SETTINGS, method="brd_kd"),
    "skd": replace(SETTINGS, method="skd"),
    "cwd": replace(SETTINGS, method="cwd"),
    "neighbours, probabilities, pixels": replace(
        SETTINGS,
        boundary_operator="neighbours",
        boundary_class_space="probabilities",
        boundary_class_balance=0.5,
        relation_to="pixels",
        relation_layers=("deepest", "decoder"),
    ),
    "projected, logits": replace(SETTINGS, boundary_operator="projected", boundary_class_space="logits"),
    "projected to the whole image, overlaps": replace(
        SETTINGS, boundary_operator="projected", boundary_kernel=0, boundary_class_space="overlaps"
    ),
    "balanced": replace(SETTINGS, method="brd_kd", kd_class_balance=1.0, relation_class_balance=1.0, band_weight=0.0),
}


def _model(encoder: str) -> nn.Module:
    spec = ModelSpec("DeepLabV3Plus", encoder, 3, {"decoder_channels": 16})
    return build_model(spec, encoder_weights=None, seed=1).double().eval()


def _loss(logits: Tensor, labels: Tensor) -> Tensor:
    return cross_entropy(logits, labels, torch.tensor([0.5, 1.0, 3.0], dtype=torch.float64))


def main() -> None:
    """Write what the processes find together."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(BATCH, 3, 64, 64, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, 3, (BATCH, 4, 4), generator=generator)
    labels = labels.repeat_interleave(16, 1).repeat_interleave(16, 2)
    labels[0, :40] = 255  # the processes have unlike numbers of known pixels
    with process_group(torch.device("cpu")):
        mine = slice(rank(), None, world())
        found = {name: _variant(name, images[mine], labels[mine]) for name in VARIANTS}
        if rank() == 0:
            Path(sys.argv[1]).write_text(json.dumps(found), encoding="utf-8")


def _variant(name: str, images: Tensor, labels: Tensor) -> dict[str, list[float]]:
    teacher, student = _model("resnet18"), _model("tu-mobilenetv3_small_050")
    objective = distillation(teacher, student, VARIANTS[name], _loss, classes=3)
    objective.layers.double().eval()
    assert objective.teacher is not None
    theirs = objective.teacher(images)
    terms = {"ce": (1.0, lambda _theirs, mine, truth: _loss(mine.logits, truth)), **objective.terms}
    found = {}
    for term, (_, compute) in terms.items():
        value = compute(theirs, forward_features(student, images), labels)
        first = next(student.parameters())
        (gradient,) = torch.autograd.grad(value, first)
        rows = gather_objects([float(value.detach()), *gradient.flatten().tolist()])
        found[term] = [sum(column) / len(rows) for column in zip(*rows, strict=True)]
    return found


if __name__ == "__main__":
    main()
