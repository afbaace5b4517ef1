"""The training loader: endless, shuffled, augmented batches that can be resumed exactly.

Every random decision comes from `brd_edge.data.plan` and is handed to a backend (`dali` or `torch`) as
explicit numbers. A loader therefore has no hidden state: its position is the number of batches it has
given out, resuming costs nothing, and both backends cut the same pixels from the same files.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np
import numpy.typing as npt

from brd_edge.data.dataset import IGNORE_ID, Sample
from brd_edge.data.plan import Augmentation, Draw, Plan
from brd_edge.runtime.contract import InputContract
from brd_edge.runtime.errors import DataError, RuntimeMissingError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "Backend",
    "Batch",
    "TrainLoader",
    "choose_backend",
    "later_jitter",
    "open_train_loader",
    "require_known_ids",
    "require_label_format",
    "require_size",
]

Backend = Literal["auto", "dali", "torch"]


@dataclass(frozen=True)
class Batch:
    """One training batch.

    Attributes:
        images: float32 (N, 3, h, w), normalised by the contract; padding is 0, the mean colour. On the GPU
            where one decodes, else on the CPU.
        labels: int64 (N, h, w), train ids; padding and ignored pixels are 255.
        indices: Positions of the samples in the sequence that the loader was opened with.
        jitter: float32 (N, 4), with `Augmentation.jitter_later` the factors of brightness, contrast and saturation,
            and the exponent of the gamma; None without it.
    """

    images: Tensor
    labels: Tensor
    indices: tuple[int, ...]
    jitter: Tensor | None = None


class TrainLoader(Protocol):
    """What the trainer needs of a loader."""

    @property
    def steps_per_epoch(self) -> int:
        """Batches in one epoch; the incomplete last one is dropped."""
        ...

    def next_batch(self) -> Batch:
        """Return the next batch; endless, with a new order in every epoch.

        Raises:
            DataError: A file cannot be read or is not what the index says; the message names it.
        """
        ...

    def state(self) -> bytes:
        """Return the position as bytes, to be kept in a checkpoint."""
        ...

    def restore(self, state: bytes) -> None:
        """Go to a saved position: the next batches equal those of an uninterrupted loader.

        Raises:
            DataError: The state is damaged, or was saved by a loader with other settings.
        """
        ...

    def close(self) -> None:
        """Free the loader's threads and buffers; it cannot be used afterwards."""
        ...


KEPT_BYTES_MAX = 512 * 1024**2
"""How many bytes of decoded images the `torch` backend keeps in memory, in each process."""


def open_train_loader(
    samples: Sequence[Sample],
    *,
    contract: InputContract,
    augmentation: Augmentation,
    batch_size: int,
    seed: int,
    backend: Backend,
    threads: int,
    rank: int = 0,
    world: int = 1,
    gpu: int | None = None,
    classes: int = IGNORE_ID,
    kept_bytes_max: int = KEPT_BYTES_MAX,
) -> TrainLoader:
    """Open the training loader.

    Args:
        samples: Prepared samples; at least one batch of them.
        contract: Size that scale 1 stands for, and the normalisation.
        augmentation: How samples are varied.
        batch_size: Samples in a batch, at least 1.
        seed: From 0; the whole stream follows from it, whatever the number of threads.
        backend: `"dali"`; `"torch"`, the slower reference that needs no more than Pillow and torch; or
            `"auto"`, DALI where it is installed.
        threads: Decoding threads, at least 1.
        rank: Number of this process among those that share every batch.
        world: Their number, which divides `batch_size`.
        gpu: Number of the CUDA GPU on which DALI decodes and varies the images; None uses the CPU. The `torch`
            backend always does.
        classes: Number of classes; a label with another id (255 apart) is refused when it is read.
        kept_bytes_max: Up to how many bytes of decoded images the `torch` backend keeps in memory, so that a small
            data set is decoded once; 0 decodes every sample each time, as DALI does.

    Raises:
        DataError: An argument is out of its range, or there are fewer samples than one batch.
        RuntimeMissingError: `"dali"` was asked for and is not installed.

    Example:
        >>> loader = open_train_loader(dataset.train, contract=contract, augmentation=augmentation,
        ...                            batch_size=8, seed=0, backend="auto", threads=2)
        >>> batch = loader.next_batch()
    """
    for name, value, least in (("batch_size", batch_size, 1), ("threads", threads, 1), ("seed", seed, 0)):
        if value < least:
            raise DataError(f"loader: {name} must be at least {least}, got {value}")
    if len(samples) < batch_size:
        raise DataError(
            f"loader: one batch needs {batch_size} samples and there are {len(samples)}: "
            "lower the batch size or add training samples"
        )
    if batch_size % world:
        raise DataError(
            f"loader: batch_size {batch_size} cannot be divided among {world} processes: make it a multiple of {world}"
        )
    chosen = choose_backend(backend)
    plan = Plan(tuple(samples), contract, augmentation, batch_size, seed, chosen, rank, world, classes)
    if chosen == "dali":
        from brd_edge.data.dali_loader import DaliLoader

        return DaliLoader(plan, threads=threads, gpu=gpu)
    from brd_edge.data.torch_loader import TorchLoader

    return TorchLoader(plan, threads=threads, kept_bytes_max=kept_bytes_max)


def later_jitter(plan: Plan, draws: Sequence[Draw]) -> Tensor | None:
    """Return the jitter of colours that a batch has beside its images, float32 (N, 4), if it has it."""
    import torch

    if not plan.augmentation.jitter_later:
        return None
    return torch.tensor([draw.jitter for draw in draws], dtype=torch.float32)


def require_size(sample: Sample, image: tuple[int, int], label: tuple[int, int]) -> None:
    """Refuse decoded (rows, columns) that differ from the index.

    Raises:
        DataError: They differ; the message names the file.
    """
    expected = (sample.height, sample.width)
    for path, got in ((sample.image, image), (sample.label, label)):
        if got != expected:
            raise DataError(
                f"{path}: the index says {expected[0]}x{expected[1]} pixels (rows x columns) and the file has "
                f"{got[0]}x{got[1]}: run the prepare stage again"
            )


def require_known_ids(sample: Sample, ids: npt.NDArray[np.uint8], classes: int) -> None:
    """Refuse a label, or a part of it, that holds an id which is no class's: it was changed after preparation.

    Args:
        sample: The sample, for the message.
        ids: uint8, any shape.
        classes: Number of classes.

    Raises:
        DataError: There is such an id; the message names the file.
    """
    unknown = ids[(ids >= classes) & (ids != IGNORE_ID)]
    if unknown.size:
        raise DataError(
            f"{sample.label}: holds the id {unknown.min()}, expected ids below {classes} or {IGNORE_ID}: the file "
            "was changed after it was prepared; run the prepare stage again"
        )


def require_label_format(path: Path) -> None:
    """Refuse a label that decoders would not hand over as it is: a palette, 16 bits, several channels.

    Reads the first 26 bytes only (PNG specification, section 11.2.1, IHDR).

    Raises:
        DataError: The file is missing or is not a single-channel 8-bit PNG; the message names it.
    """
    try:
        with path.open("rb") as file:
            header = file.read(26)
    except OSError as error:
        raise DataError(f"{path}: the label cannot be read ({error}): run the prepare stage again") from error
    bit_depth, grey = 8, 0
    if header[:8] != b"\x89PNG\r\n\x1a\n" or header[24:] != bytes((bit_depth, grey)):
        raise DataError(
            f"{path}: a label must be a single-channel 8-bit PNG of train ids (no palette), and this file is not: "
            "run the prepare stage again"
        )


def choose_backend(backend: Backend) -> Literal["dali", "torch"]:
    """Return which backend `"auto"` stands for here, or the asked one if it is there.

    Raises:
        DataError: There is no such backend.
        RuntimeMissingError: `"dali"` was asked for and is not installed.
    """
    if backend not in ("auto", "dali", "torch"):
        raise DataError(f"loader: backend must be 'auto', 'dali' or 'torch', got {backend!r}")
    if backend == "torch":
        return "torch"
    try:
        import nvidia.dali  # noqa: F401  (only whether it imports)
    except ImportError as error:
        if backend == "auto":
            return "torch"
        raise RuntimeMissingError(
            'loader: the backend "dali" needs NVIDIA DALI, which is not installed: run pip install "brd-edge[train]", '
            'or choose the backend "torch"'
        ) from error
    return "dali"
