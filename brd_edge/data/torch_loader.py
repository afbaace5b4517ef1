"""The reference backend of the training loader: Pillow and torch, in this process.

It resizes with Pillow's anti-aliased bilinear filter, the very one of the input contract, so without
augmentation its images are those that an engine is measured on. The next batch is made by threads
while the present one is used; nothing is forked. Images of a small data set stay in memory decoded, since
decoding takes longer than all the rest.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from threading import Lock

import numpy as np
import numpy.typing as npt
from PIL import Image

from brd_edge.data.dataset import IGNORE_ID, Sample
from brd_edge.data.loader import Batch, later_jitter, require_known_ids, require_label_format, require_size
from brd_edge.data.loader_state import decode_state, encode_state
from brd_edge.data.plan import Draw, Plan
from brd_edge.runtime.errors import DataError

__all__ = ["DecodedSamples", "TorchLoader", "decode_image", "decode_label"]

# one sample: float32 (3, h, w) and int64 (h, w), of the crop's size
_Loaded = tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]

_LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)


class DecodedSamples:
    """Decoded images and train ids by sample: the first ones that are asked for stay in memory."""

    def __init__(self, bytes_max: int) -> None:
        """Keep up to `bytes_max` bytes."""
        self._kept: dict[int, tuple[Image.Image, npt.NDArray[np.uint8]]] = {}
        self._bytes_left = bytes_max
        self._lock = Lock()

    def read(self, index: int, sample: Sample) -> tuple[Image.Image, npt.NDArray[np.uint8]]:
        """Return a sample's RGB image and train ids (H, W), which must not be written to.

        Raises:
            DataError: A file is missing, damaged or of the wrong format, or both differ in size.
        """
        found = self._kept.get(index)
        if found is not None:
            return found
        image, label = decode_image(sample.image), decode_label(sample.label)
        require_size(sample, (image.height, image.width), (label.height, label.width))
        ids = np.asarray(label)
        size_bytes = 4 * image.width * image.height + ids.nbytes
        with self._lock:
            if size_bytes <= self._bytes_left and index not in self._kept:
                self._bytes_left -= size_bytes
                self._kept[index] = image, ids
        return image, ids


class TorchLoader:
    """A `TrainLoader` on Pillow and torch; see `brd_edge.data.loader.open_train_loader`."""

    def __init__(self, plan: Plan, *, threads: int, kept_bytes_max: int) -> None:
        """Start `threads` decoding threads; nothing is read before the first batch."""
        self._plan = plan
        self._decoded = DecodedSamples(kept_bytes_max)
        self._batches = 0
        self._pending: list[Future[_Loaded]] | None = None
        self._executor: ThreadPoolExecutor | None = ThreadPoolExecutor(threads, thread_name_prefix="loader")

    @property
    def steps_per_epoch(self) -> int:
        """Batches in one epoch; the incomplete last one is dropped."""
        return self._plan.steps_per_epoch

    def next_batch(self) -> Batch:
        """Return the next batch.

        Raises:
            DataError: A file cannot be read, or the loader is closed; the message names every bad file.
        """
        import torch

        futures, self._pending = self._pending or self._submit(self._batches), None
        errors = [str(error) for future in futures if (error := _data_error(future)) is not None]
        if errors:
            raise DataError("\n".join(errors))
        images, labels = zip(*(future.result() for future in futures), strict=True)
        draws = self._plan.draws(self._batches)
        indices = tuple(draw.index for draw in draws)
        self._batches += 1
        self._pending = self._submit(self._batches)
        return Batch(
            torch.from_numpy(np.stack(images)),
            torch.from_numpy(np.stack(labels)),
            indices,
            later_jitter(self._plan, draws),
        )

    def state(self) -> bytes:
        """Return the position as bytes."""
        return encode_state(self._plan, self._batches)

    def restore(self, state: bytes) -> None:
        """Go to a saved position.

        Raises:
            DataError: The state is damaged, or was saved by a loader with other settings.
        """
        self._batches = decode_state(self._plan, state)
        self._drop_pending()

    def close(self) -> None:
        """End the decoding threads; the loader cannot be used afterwards."""
        self._drop_pending()
        if self._executor is not None:
            self._executor.shutdown(wait=True, cancel_futures=True)
            self._executor = None

    def _submit(self, batch: int) -> list[Future[_Loaded]]:
        if self._executor is None:
            raise DataError("loader: it is closed: open another one")
        return [self._executor.submit(_load, self._plan, draw, self._decoded) for draw in self._plan.draws(batch)]

    def _drop_pending(self) -> None:
        for future in self._pending or []:
            future.cancel()
        self._pending = None


def decode_image(path: Path) -> Image.Image:
    """Read an image file as RGB, at its own size and without regard to EXIF orientation.

    Raises:
        DataError: The file is missing or cannot be decoded.
    """
    return _decode(path, "RGB")


def decode_label(path: Path) -> Image.Image:
    """Read a label file as 8-bit train ids.

    Raises:
        DataError: The file is missing, cannot be decoded, or is not a single-channel 8-bit image.
    """
    require_label_format(path)
    return _decode(path, "L")


def _decode(path: Path, mode: str) -> Image.Image:
    try:
        with Image.open(path) as image:
            return image.convert(mode)
    # Pillow raises many kinds for damaged files, IndexError and struct.error among them
    except Exception as error:
        raise DataError(f"{path}: the file cannot be decoded ({error}): replace it, or remove its sample") from error


def _data_error(future: Future[_Loaded]) -> DataError | None:
    error = future.exception()
    if error is None or isinstance(error, DataError):
        return error
    raise error


def _load(plan: Plan, draw: Draw, decoded: DecodedSamples) -> _Loaded:
    # numpy, not torch: torch would start a pool of threads for every thread that calls it
    sample = plan.samples[draw.index]
    image, label = decoded.read(draw.index, sample)
    pixels = _resize_image(image, draw.source_box(sample), draw.size)
    ids = _resize_label(label, draw)
    require_known_ids(sample, ids, plan.classes)
    if draw.flip:
        pixels, ids = pixels[:, ::-1], ids[:, ::-1]
    values = pixels.astype(np.float32)
    if plan.augmentation.jitters:
        values = _jitter(values, draw.jitter)
    mean, std = (np.array(numbers, dtype=np.float32) for numbers in (plan.contract.mean, plan.contract.std))
    normalised = (values / np.float32(255) - mean) / std
    height, width = plan.augmentation.crop
    images = np.zeros((3, height, width), dtype=np.float32)
    labels = np.full((height, width), IGNORE_ID, dtype=np.int64)
    (top, left), (rows, cols) = draw.offset, draw.size
    images[:, top : top + rows, left : left + cols] = normalised.transpose(2, 0, 1)
    labels[top : top + rows, left : left + cols] = ids
    return images, labels


def _resize_image(
    image: Image.Image, box: tuple[float, float, float, float], size: tuple[int, int]
) -> npt.NDArray[np.uint8]:
    top, left, bottom, right = box
    # rounding may push the far edge past the image by an ulp, which Pillow refuses
    edges = (left, top, min(right, image.width), min(bottom, image.height))
    return np.asarray(image.resize((size[1], size[0]), Image.Resampling.BILINEAR, box=edges))


def _resize_label(label: npt.NDArray[np.uint8], draw: Draw) -> npt.NDArray[np.uint8]:
    """Cut the window out of the label scaled by nearest neighbour, in whole-number arithmetic."""
    rows, cols = (
        (2 * np.arange(origin, origin + size) + 1) * native // (2 * scaled)
        for origin, size, native, scaled in zip(draw.origin, draw.size, label.shape, draw.scaled, strict=True)
    )
    return label[np.ix_(rows, cols)]


def _jitter(values: npt.NDArray[np.float32], jitter: tuple[float, float, float, float]) -> npt.NDArray[np.float32]:
    brightness, contrast, saturation, gamma = (np.float32(value) for value in jitter)
    if gamma != 1:
        values = np.float32(255) * (values / np.float32(255)) ** gamma
    luma = np.einsum("hwc,c->hw", values, _LUMA)[..., None]
    saturated = luma + saturation * (values - luma)
    twisted: npt.NDArray[np.float32] = brightness * (contrast * saturated + np.float32(128) * (1 - contrast))
    return np.clip(twisted, 0, 255)
