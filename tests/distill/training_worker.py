"""One process of a small training in float64; the tests start it alone and under torchrun.

    training_worker.py DIRECTORY:STEPS_UNTIL_STOP:PARTS…

One training for each argument, one after the other; with 0 steps until its stop a training goes to its end.
Every batch is divided into so many parts.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import Tensor, nn

from brd_edge.data.loader import Batch
from brd_edge.distill.distributed import process_group, rank, world
from brd_edge.distill.objective import distillation
from brd_edge.distill.overlap import label_overlap_loss
from brd_edge.distill.supervised import cross_entropy
from brd_edge.distill.trainer import TrainSettings, fit
from brd_edge.interrupt import Stop
from brd_edge.models.segmentation import ModelSpec, build_model
from brd_edge.recipe_training import DistillSection, TrainSection
from brd_edge.runtime.errors import InterruptedRunError
from brd_edge.stages.training import distill_settings

BATCH = 4
OVERLAP = {"overlap": (1.0, label_overlap_loss)}


class Loader:
    """Whole batches are a function of their number; a process takes its part."""

    steps_per_epoch = 4

    def __init__(self) -> None:
        self._next = 0

    def next_batch(self) -> Batch:
        generator = torch.Generator().manual_seed(self._next)
        self._next += 1
        images = torch.randn(BATCH, 3, 32, 64, generator=generator, dtype=torch.float64)
        labels = torch.randint(0, 3, (BATCH, 2, 4), generator=generator)
        labels = labels.repeat_interleave(16, 1).repeat_interleave(16, 2)
        labels[0, :24] = 255  # the processes have unlike numbers of known pixels
        mine = slice(rank(), None, world())
        return Batch(images[mine], labels[mine], tuple(range(BATCH))[mine])

    def state(self) -> bytes:
        return str(self._next).encode()

    def restore(self, state: bytes) -> None:
        self._next = int(state)

    def close(self) -> None:
        pass


def _model(encoder: str) -> nn.Module:
    spec = ModelSpec("DeepLabV3Plus", encoder, 3, {"decoder_channels": 16, "decoder_aspp_dropout": 0.0})
    return build_model(spec, encoder_weights=None, seed=1).double()


def _train(directory: Path, until: int, accumulate: int) -> None:
    student, teacher = _model("tu-mobilenetv3_small_050"), _model("resnet18")
    section = DistillSection(method="brd_kd", train=TrainSection(epochs=1))
    settings = distill_settings(section)
    stop, steps = Stop(), 0

    def supervised(logits: Tensor, labels: Tensor) -> Tensor:
        nonlocal steps
        steps += 1
        # the request reaches one process only, as a signal may
        stop.requested = steps == until and rank() == world() - 1
        return cross_entropy(logits, labels, None)

    fit(
        student,
        objective=distillation(teacher, student, settings, supervised, classes=3, label_terms=OVERLAP),
        loader=Loader(),
        settings=TrainSettings(
            epochs=5,
            lr=0.002,
            encoder_lr_factor=1.0,
            weight_decay=0.01,
            schedule="poly",
            warmup=0.1,
            grad_clip=1.0,
            ema=0.9,
            precision="fp32",
            accumulate=accumulate,
            validate_every=5,
            checkpoint_s=30.0,
        ),
        evaluate=lambda _model: 0.5,
        names=[str(number) for number in range(BATCH)],
        directory=directory,
        key="key",
        seed=0,
        device=torch.device("cpu"),
        title="test",
        stop=stop,
    )


def main() -> None:
    with process_group(torch.device("cpu")):
        for task in sys.argv[1:]:
            directory, until, accumulate = task.rsplit(":", 2)
            try:
                _train(Path(directory), int(until), int(accumulate))
            except InterruptedRunError:
                print("stopped", directory)


main()
