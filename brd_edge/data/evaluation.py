"""Images and labels for evaluation: every sample exactly once, in order, read ahead of their use.

The `torch` backend reads with Pillow, which is the contract's own rule and what devices do; DALI's pixels
differ from it by rounding (`python -m benchmarks.parity` says by how much), and it is faster.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from brd_edge.data.dataset import Sample, read_input, read_label
from brd_edge.data.loader import Backend, choose_backend
from brd_edge.data.workers import work_ahead
from brd_edge.runtime.contract import InputContract
from brd_edge.runtime.errors import DataError

__all__ = ["EvaluationItem", "read_for_evaluation"]


@dataclass(frozen=True)
class EvaluationItem:
    """One image to evaluate on.

    Attributes:
        index: Position of the sample in the sequence that was given.
        image: uint8 (H, W, 3), RGB: at the contract's size, or at its own where it is segmented in windows.
        label: uint8 (h, w) of train ids, 255 ignored, at its own size.
    """

    index: int
    image: NDArray[np.uint8]
    label: NDArray[np.uint8]


def read_for_evaluation(
    samples: Sequence[Sample],
    *,
    contract: InputContract,
    backend: Backend,
    threads: int,
    gpu: int | None = None,
    rank: int = 0,
    world: int = 1,
) -> Iterator[EvaluationItem]:
    """Read samples one after the other, some ahead.

    Args:
        samples: What to read; images may differ in size.
        contract: Size that images are brought to, or that of the windows they are segmented in.
        backend: `"torch"` (Pillow, exactly the contract's rule), `"dali"`, or `"auto"`: DALI where it is installed.
        threads: Reading threads, at least 1.
        gpu: Number of the CUDA GPU on which DALI decodes; None uses the CPU.
        rank: Number of this process among those that share the samples.
        world: Their number; each reads every `world`-th sample, and all together each sample once.

    Yields:
        This process's samples in order. Closing the iterator early ends its threads.

    Raises:
        DataError: An argument is out of its range; or, when it is reached, a file cannot be read or is not
            what the index says.
        RuntimeMissingError: DALI was asked for and is not installed.
    """
    if threads < 1 or not 0 <= rank < world:
        raise DataError(
            f"evaluation: expected at least 1 thread and a rank below world, got threads={threads}, rank={rank}, "
            f"world={world}"
        )
    places = range(rank, len(samples), world)
    if choose_backend(backend) == "torch":
        return _read_with_pillow(samples, places, contract, threads)
    from brd_edge.data.dali_frames import read_with_dali

    found = read_with_dali(samples, places, contract=contract, threads=threads, gpu=gpu)
    return (EvaluationItem(*item) for item in found)


def _read_with_pillow(
    samples: Sequence[Sample], places: Sequence[int], contract: InputContract, threads: int
) -> Iterator[EvaluationItem]:
    def read(place: int) -> EvaluationItem:
        return EvaluationItem(place, read_input(samples[place], contract), read_label(samples[place]))

    return work_ahead(read, places, threads=threads, name="evaluation")
