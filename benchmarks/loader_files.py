"""The files that `benchmarks.loader` works on: photographs of CamVid, or drawn scenes, in two formats."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from brd_edge.data.dataset import IGNORE_ID, Sample
from brd_edge.data.scenes import draw_scene
from brd_edge.progress import progress_bar
from brd_edge.runtime.errors import DataError

__all__ = ["JPEG_QUALITY", "NOISE_SIGMA", "Case", "make_files"]

_CAMVID_VOID = 11
JPEG_QUALITY = 90
NOISE_SIGMA = 0.5
"""Levels of 255, added to enlarged photographs, which are too smooth: brings a PNG of 1024 x 2048 to
2.4 MB, the size of those of Cityscapes."""
_SUFFIXES = {"png": ".png", "jpeg": ".jpg"}

_Picture = tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]


@dataclass(frozen=True)
class Case:
    """One kind of files.

    Attributes:
        name: For the command line and the result.
        format: `"png"` or `"jpeg"`; labels are always PNG.
        size: Rows and columns of the files, which scale 1 stands for.
        crop: Rows and columns of the training window.
        images: Number of files.
    """

    name: str
    format: str
    size: tuple[int, int]
    crop: tuple[int, int]
    images: int


def pictures(size: tuple[int, int], count: int, camvid: Path | None) -> Iterator[_Picture]:
    """Yield images (rows, cols, 3) and labels (rows, cols) of train ids.

    Args:
        size: Rows and columns.
        count: How many.
        camvid: Directory with `train` and `trainannot`; scenes are drawn without it.

    Raises:
        DataError: There are fewer photographs, or one has no label or cannot be read.
    """
    if camvid is None:
        yield from (draw_scene(seed, *size) for seed in range(count))
        return
    files = sorted(path for path in (camvid / "train").glob("*") if path.suffix in (".jpg", ".png"))
    if len(files) < count:
        raise DataError(
            f"{camvid / 'train'}: expected at least {count} images, found {len(files)}; "
            "give --camvid the directory with train and trainannot, or leave it out to draw scenes"
        )
    generator = np.random.default_rng(0)
    for path in files[:: len(files) // count][:count]:
        try:
            with Image.open(path) as image, Image.open(camvid / "trainannot" / f"{path.stem}.png") as label:
                pixels, ids = np.asarray(image.convert("RGB")), np.asarray(label)
        except OSError as error:
            raise DataError(f"{path}: it or its label in trainannot cannot be read ({error})") from error
        ids = np.where(ids == _CAMVID_VOID, np.uint8(IGNORE_ID), ids)
        if pixels.shape[:2] != size:
            shape = size[1], size[0]
            smooth = np.asarray(Image.fromarray(pixels).resize(shape, Image.Resampling.LANCZOS))
            noise = generator.normal(0, NOISE_SIGMA, smooth.shape)
            pixels = np.clip(np.rint(smooth + noise), 0, 255).astype(np.uint8)
            ids = np.asarray(Image.fromarray(ids).resize(shape, Image.Resampling.NEAREST))
        yield pixels, ids


def make_files(directory: Path, cases: Sequence[Case], camvid: Path | None) -> dict[str, tuple[Sample, ...]]:
    """Write the files of cases, and return the samples by the case's name; cases of one size share pictures."""
    found: dict[str, list[Sample]] = {case.name: [] for case in cases}
    needed = {case.size: max(other.images for other in cases if other.size == case.size) for case in cases}
    with progress_bar(sum(needed.values()), "files", unit="image") as bar:
        for size, count in needed.items():
            for i, (pixels, ids) in enumerate(pictures(size, count, camvid)):
                stem = directory / f"{size[0]}x{size[1]}_{i:03d}"
                label = stem.with_name(f"{stem.name}_label.png")
                Image.fromarray(ids).save(label)
                for case in cases:
                    if case.size == size and i < case.images:
                        image = stem.with_suffix(_SUFFIXES[case.format])
                        # only JPEG knows a quality
                        Image.fromarray(pixels).save(image, quality=JPEG_QUALITY)
                        found[case.name].append(Sample(stem.name, image, label, *size, classes=()))
                bar.update(1)
    return {name: tuple(samples) for name, samples in found.items()}
