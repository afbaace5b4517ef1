"""What training batches are made of: every random decision, drawn beforehand.

Each decision is drawn by numpy from (seed, epoch, position in the epoch) alone, so that a loader has no
hidden state: its position is the number of batches it has given out.

The colour jitter is `b * (c * (l + s * (x - l)) + 128 * (1 - c))` on the scale 0 to 255, cut off at both
ends and not rounded, with the factors b (brightness), c (contrast), s (saturation) and the luma
l = 0.299 R + 0.587 G + 0.114 B: the definition of DALI's `color_twist`, which centres contrast on mid-grey
instead of on the image's mean. Before it comes the gamma, `x = 255 * (v / 255) ** g` of a colour v, which
darkens or brightens what lies between black and white and, unlike a factor, cuts nothing off.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from brd_edge.data.dataset import IGNORE_ID, Sample
from brd_edge.runtime.contract import InputContract
from brd_edge.runtime.errors import DataError

__all__ = ["Augmentation", "Draw", "Plan"]


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
        gamma: Jitter x, at least 0: the exponent of the colours is from 1 / (1 + x) to 1 + x, its logarithm uniform.
        class_balance: Probability, 0 to 1, that the window is laid around a pixel of a class of the image, each
            class being as likely as the others, instead of anywhere: small classes are seen more often.
        jitter_later: Whether the colours are left as they are and a batch has the factors beside them.

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
    gamma: float = 0.0
    class_balance: float = 0.0
    jitter_later: bool = False

    def __post_init__(self) -> None:
        """Check every field."""
        if len(self.crop) != 2 or min(self.crop) < 1:
            raise DataError(f"augmentation: crop must be (height, width), each at least 1, got {self.crop}")
        if len(self.scale) != 2 or not 0 < self.scale[0] <= self.scale[1] < float("inf"):
            raise DataError(f"augmentation: scale must be (low, high) with 0 < low <= high, got {self.scale}")
        for name in ("flip", "brightness", "contrast", "saturation", "class_balance"):
            if not 0 <= getattr(self, name) <= 1:
                raise DataError(f"augmentation: {name} must be from 0 to 1, got {getattr(self, name)}")
        if not 0 <= self.gamma < float("inf"):
            raise DataError(f"augmentation: gamma must be at least 0, got {self.gamma}")

    @property
    def jitters(self) -> bool:
        """Whether the loader changes colours: any factor can differ from 1, and it is not left for later."""
        return max(self.brightness, self.contrast, self.saturation, self.gamma) > 0 and not self.jitter_later


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
        jitter: Factors of brightness, contrast and saturation, and the exponent of the gamma.
    """

    index: int
    scaled: tuple[int, int]
    origin: tuple[int, int]
    size: tuple[int, int]
    offset: tuple[int, int]
    flip: bool
    jitter: tuple[float, float, float, float]

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
        contract: Base size (of images that are segmented in windows: their own) and normalisation.
        augmentation: How samples are varied.
        batch_size: Samples in a batch, over all processes together.
        seed: Any integer from 0.
        backend: Who carries the plan out, `"dali"` or `"torch"`; part of the fingerprint because
            their pixels differ by rounding.
        rank: Number of this process, from 0.
        world: Processes that share every batch; each gets every `world`-th sample of it.
        classes: Train ids that labels may hold, beside 255: those below this number.
    """

    samples: tuple[Sample, ...]
    contract: InputContract
    augmentation: Augmentation
    batch_size: int
    seed: int
    backend: str
    rank: int = 0
    world: int = 1
    classes: int = IGNORE_ID

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
            _draw(self, int(order[place]), _generator(self.seed, epoch, place))
            for place in range(first + self.rank, first + self.batch_size, self.world)
        )

    def base_size(self, sample: Sample) -> tuple[int, int]:
        """Return the rows and columns that scale 1 stands for: the contract's, or the image's own in windows."""
        if self.contract.slides:
            return sample.height, sample.width
        return self.contract.height, self.contract.width

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


def _generator(seed: int, *key: int) -> np.random.Generator:
    # a spawn key keeps (seed, epoch) and (seed, epoch, 0) apart; a plain entropy list would not
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key))


@lru_cache(maxsize=4)
def _epoch_order(seed: int, epoch: int, count: int) -> npt.NDArray[np.int64]:
    order = _generator(seed, epoch).permutation(count)
    order.flags.writeable = False
    return order


def _draw(plan: Plan, index: int, generator: np.random.Generator) -> Draw:
    augmentation, sample = plan.augmentation, plan.samples[index]
    # always seven numbers in one order, so that changing one setting leaves the other draws as they were
    scale, top, left, flip, *colour = generator.random(7).tolist()
    low, high = augmentation.scale
    factor = low + (high - low) * scale
    point = _pick_point(sample, augmentation.class_balance, generator) or (None, None)
    height, width = plan.base_size(sample)
    rows = _place(round(height * factor), augmentation.crop[0], top, point[0])
    cols = _place(round(width * factor), augmentation.crop[1], left, point[1])
    spread = (augmentation.brightness, augmentation.contrast, augmentation.saturation)
    brightness, contrast, saturation = (1 + x * (2 * u - 1) for x, u in zip(spread, colour, strict=True))
    gamma = (1 + augmentation.gamma) ** (2 * float(generator.random()) - 1)
    return Draw(
        index=index,
        scaled=(rows[0], cols[0]),
        origin=(rows[1], cols[1]),
        size=(rows[2], cols[2]),
        offset=(rows[3], cols[3]),
        flip=flip < augmentation.flip,
        jitter=(brightness, contrast, saturation, gamma),
    )


def _pick_point(sample: Sample, probability: float, generator: np.random.Generator) -> tuple[float, float] | None:
    """Return where in the image, from 0 to 1 along both sides, a pixel of a random class lies; or nothing."""
    use, which, place = generator.random(3).tolist()
    if use >= probability or not sample.classes:
        return None
    points = sample.classes[int(which * len(sample.classes))].points
    row, column = points[int(place * len(points))]
    return (row + 0.5) / sample.height, (column + 0.5) / sample.width


def _place(scaled: int, crop: int, u: float, point: float | None) -> tuple[int, int, int, int]:
    """Return (scaled, origin, size, offset) along one axis for u uniform in [0, 1).

    A point (0 to 1 along the image) lies at `u` of the window, or as near to it as the image allows.
    """
    scaled = max(1, scaled)
    if scaled < crop:
        return scaled, 0, scaled, int(u * (crop - scaled + 1))
    if point is None:
        return scaled, int(u * (scaled - crop + 1)), crop, 0
    origin = int(point * scaled) - int(u * crop)
    return scaled, min(max(origin, 0), scaled - crop), crop, 0
