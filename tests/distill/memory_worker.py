"""CIRKD's memory in two processes, the second of which sees no label at first; run under torchrun."""

from __future__ import annotations

import faulthandler
import os
import sys

import torch

from brd_edge.distill.distributed import process_group, rank
from brd_edge.distill.peers import PixelMemory, memory_losses

# processes that wait for each other would wait for days
LIMIT_S = 30


def main() -> None:
    """Say what this process finds in the second of two steps."""
    faulthandler.dump_traceback_later(LIMIT_S, exit=True)
    generator = torch.Generator().manual_seed(rank())
    teacher, student = (torch.randn(1, channels, 4, 4, generator=generator) for channels in (6, 5))
    labels = torch.full((1, 4, 4), 255) if rank() == 1 else torch.zeros(1, 4, 4, dtype=torch.int64)
    memory = PixelMemory(2, 6, 5, pixel_slots=20, region_slots=4).eval()
    for _ in range(2):
        losses = memory_losses(memory, teacher, student, labels)
    value = float(torch.stack(losses).sum())
    # in one piece: the other process may write at the same time
    os.write(sys.stdout.fileno(), f"{rank()}:{'found' if value > 0 else value}\n".encode())


with process_group(torch.device("cpu")):
    main()
