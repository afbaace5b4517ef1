"""The training loader: endless, shuffled, augmented batches that can be resumed exactly.

Every random decision is drawn here, by numpy, from (seed, epoch, position in the epoch) alone, and
handed to a backend (`dali` or `torch`) as explicit numbers. A loader therefore has no hidden state:
its position is the number of batches it has given out, resuming costs nothing, and both backends
cut the same pixels from the same files.

The colour jitter is `b * (c * (l + s * (x - l)) + 128 * (1 - c))` on the scale 0 to 255, with the
factors b (brightness), c (contrast), s (saturation) and the luma l = 0.299 R + 0.587 G + 0.114 B: the
definition of DALI's `color_twist`, which centres contrast on mid-grey instead of on the image's mean.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from brd_edge.data.dataset import Sample
from brd_edge.runtime.contract import InputContract
from brd_edge.runtime.errors import DataError, RuntimeMissingError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "Augmentation",
    "Batch",
    "Draw",
    "Plan",
    "TrainLoader",
    "open_train_loader",
    "require_label_format",
    "require_size",
]


@dataclass(frozen=True)
class Augmentation:
    """How training samples are varied.

    Attributes:
        crop: Rows and columns of the training window, in pixels, each at least 1.
        scale: Lowest and highest factor on the contract's size, above 0; drawn uniformly.
        flip: Probability of a horizontal flip, 0 to 1.
        brightness: Jitter x, 0 to 1: the factor is uniform in [1 - x, 1 + x].
        contrast: As brightness.
        saturation: As brightness.

    Raises:
        DataError: A field is out of its range.

    Example:
        >>> Augmentation(crop=(360, 360), scale=(0.5, 2.0), flip=0.5, brightness=0.2, contrast=0.2, saturation=0.2)
    """

    crop: tuple[int, int]
    scale: tuple[float, float]
    flip: float
    brightness: float
    contrast: float
    saturation: float

    def __post_init__(self) -> None:
        """Check every field."""
        if len(self.crop) != 2 or min(self.crop) < 1:
            raise DataError(f"augmentation: crop must be (height, width), each at least 1, got {self.crop}")
        if len(self.scale) != 2 or not 0 < self.scale[0] <= self.scale[1] < float("inf"):
            raise DataError(f"augmentation: scale must be (low, high) with 0 < low <= high, got {self.scale}")
        for name in ("flip", "brightness", "contrast", "saturation"):
            if not 0 <= getattr(self, name) <= 1:
                raise DataError(f"augmentation: {name} must be from 0 to 1, got {getattr(self, name)}")

    @property
    def jitters(self) -> bool:
        """Whether any colour factor can differ from 1."""
        return max(self.brightness, self.contrast, self.saturation) > 0


@dataclass(frozen=True)
class Batch:
    """One training batch.

    Attributes:
        images: float32 (N, 3, h, w), normalised by the contract; padding is 0, the mean colour.
        labels: int64 (N, h, w), train ids; padding and ignored pixels are 255.
        indices: Positions of the samples in the sequence that the loader was opened with.
    """

    images: Tensor
    labels: Tensor
    indices: tuple[int, ...]


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


@dataclass(frozen=True)
class Draw:
    """All random decisions about one sample of a batch, in whole pixels.

    The image is thought of as resized to `scaled`; a window of `size` at `origin` is cut out of it,
    flipped if `flip`, and placed at `offset` in the otherwise padded crop.

    Attributes:
        index: Position of the sample in the loader's sequence.
        scaled: Rows and columns of the whole image after scaling.
        origin: Top and left of the window in the scaled image.
        size: Rows and columns of the window.
        offset: Top and left of the window in the crop.
        flip: Whether the window is mirrored left to right.
        jitter: Factors of brightness, contrast and saturation.
    """

    index: int
    scaled: tuple[int, int]
    origin: tuple[int, int]
    size: tuple[int, int]
    offset: tuple[int, int]
    flip: bool
    jitter: tuple[float, float, float]

    def source_box(self, sample: Sample) -> tuple[float, float, float, float]:
        """Return the window as (top, left, bottom, right) in the file's own pixels."""
        rows, cols = sample.height / self.scaled[0], sample.width / self.scaled[1]
        (top, left), (height, width) = self.origin, self.size
        return top * rows, left * cols, (top + height) * rows, (left + width) * cols


@dataclass(frozen=True)
class Plan:
    """Everything that decides the content of every batch; shared by the backends.

    Attributes:
        samples: The training samples.
        contract: Base size and normalisation.
        augmentation: How samples are varied.
        batch_size: Samples in a batch, over all processes together.
        seed: Any integer from 0.
        backend: Who carries the plan out, `"dali"` or `"torch"`; part of the fingerprint because
            their pixels differ by rounding.
        rank: Number of this process, from 0.
        world: Processes that share every batch; each gets every `world`-th sample of it.
    """

    samples: tuple[Sample, ...]
    contract: InputContract
    augmentation: Augmentation
    batch_size: int
    seed: int
    backend: str
    rank: int = 0
    world: int = 1

    @property
    def steps_per_epoch(self) -> int:
        """Full batches in one epoch."""
        return len(self.samples) // self.batch_size

    def draws(self, batch: int) -> tuple[Draw, ...]:
        """Return the decisions for this process's part of a batch, counted from 0 over all epochs."""
        epoch, step = divmod(batch, self.steps_per_epoch)
        order = _epoch_order(self.seed, epoch, len(self.samples))
        first = step * self.batch_size
        return tuple(
            _draw(self.contract, self.augmentation, int(order[place]), _generator(self.seed, epoch, place))
            for place in range(first + self.rank, first + self.batch_size, self.world)
        )

    def fingerprint(self) -> dict[str, Any]:
        """Return what must be equal for a saved position to be valid, as JSON types.

        The number of processes may differ: it does not change the batches.
        """
        ids = "\n".join(sample.id for sample in self.samples)
        return {
            "backend": self.backend,
            "seed": self.seed,
            "batch_size": self.batch_size,
            "samples": len(self.samples),
            "sample_ids": hashlib.sha256(ids.encode()).hexdigest()[:16],
            "contract": self.contract.hash,
            "augmentation": json.loads(json.dumps(asdict(self.augmentation))),
        }


def open_train_loader(
    samples: Sequence[Sample],
    *,
    contract: InputContract,
    augmentation: Augmentation,
    batch_size: int,
    seed: int,
    backend: Literal["auto", "dali", "torch"],
    threads: int,
    rank: int = 0,
    world: int = 1,
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

    Raises:
        DataError: An argument is out of its range, or there are fewer samples than one batch.
        RuntimeMissingError: `"dali"` was asked for and is not installed.

    Example:
        >>> loader = open_train_loader(dataset.train, contract=contract, augmentation=augmentation,
        ...                            batch_size=8, seed=0, backend="auto", threads=2)
        >>> batch = loader.next_batch()
    """
    if backend not in ("auto", "dali", "torch"):
        raise DataError(f"loader: backend must be 'auto', 'dali' or 'torch', got {backend!r}")
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
    chosen = _choose_backend(backend)
    plan = Plan(tuple(samples), contract, augmentation, batch_size, seed, chosen, rank, world)
    if chosen == "dali":
        from brd_edge.data.dali_loader import DaliLoader

        return DaliLoader(plan, threads=threads)
    from brd_edge.data.torch_loader import TorchLoader

    return TorchLoader(plan, threads=threads)


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


def _choose_backend(backend: str) -> str:
    if backend == "torch":
        return backend
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


def _generator(seed: int, *key: int) -> np.random.Generator:
    # a spawn key keeps (seed, epoch) and (seed, epoch, 0) apart; a plain entropy list would not
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key))


@lru_cache(maxsize=4)
def _epoch_order(seed: int, epoch: int, count: int) -> npt.NDArray[np.int64]:
    order = _generator(seed, epoch).permutation(count)
    order.flags.writeable = False
    return order


def _draw(contract: InputContract, augmentation: Augmentation, index: int, generator: np.random.Generator) -> Draw:
    # always seven numbers in one order, so that changing one setting leaves the other draws as they were
    scale, top, left, flip, *colour = generator.random(7).tolist()
    low, high = augmentation.scale
    factor = low + (high - low) * scale
    rows = _place(round(contract.height * factor), augmentation.crop[0], top)
    cols = _place(round(contract.width * factor), augmentation.crop[1], left)
    spread = (augmentation.brightness, augmentation.contrast, augmentation.saturation)
    brightness, contrast, saturation = (1 + x * (2 * u - 1) for x, u in zip(spread, colour, strict=True))
    return Draw(
        index=index,
        scaled=(rows[0], cols[0]),
        origin=(rows[1], cols[1]),
        size=(rows[2], cols[2]),
        offset=(rows[3], cols[3]),
        flip=flip < augmentation.flip,
        jitter=(brightness, contrast, saturation),
    )


def _place(scaled: int, crop: int, u: float) -> tuple[int, int, int, int]:
    """Return (scaled, origin, size, offset) along one axis for u uniform in [0, 1)."""
    scaled = max(1, scaled)
    shift = int(u * (abs(scaled - crop) + 1))
    return (scaled, shift, crop, 0) if scaled >= crop else (scaled, 0, scaled, shift)
