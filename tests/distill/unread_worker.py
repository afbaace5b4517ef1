"""Three steps of a model one of whose stages nothing reads, in two processes; run under torchrun."""

from __future__ import annotations

import faulthandler
import os
import sys

import torch

from brd_edge.distill.distributed import process_group, rank
from brd_edge.distill.objective import supervised
from brd_edge.distill.parallel import parallel_forward
from brd_edge.distill.supervised import cross_entropy
from brd_edge.models.segmentation import ModelSpec, build_model

# processes that wait for each other would wait for days
LIMIT_S = 100


def main() -> None:
    """Say that all steps were done."""
    faulthandler.dump_traceback_later(LIMIT_S, exit=True)
    # to the head of its stage at stride 4 leads no other output
    model = build_model(ModelSpec("PSPNet", "tu-hrnet_w18_small", 3, {}), encoder_weights=None, seed=1).eval()
    objective = supervised(lambda logits, labels: cross_entropy(logits, labels, None))
    forward = parallel_forward(model, objective.forward, torch.device("cpu"), objective.strides)
    images = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(rank()))
    for _ in range(3):
        model.zero_grad()
        objective.supervised(forward(images).logits, (images[:, 0] > 0).long()).backward()
    # in one piece: the other process may write at the same time
    os.write(sys.stdout.fileno(), b"done\n")


with process_group(torch.device("cpu")):
    main()
