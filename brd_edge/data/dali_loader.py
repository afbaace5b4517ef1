"""The DALI backend of the training loader: a pipeline fed with file names and explicit draws.

The pipeline holds no random operator. Each iteration is told which files to read and where to cut,
by numbers from `Plan.draws`, so prefetched batches are simply dropped and made again when the loader
moves to another position. Images are decoded and varied on a GPU where one is given, else on the CPU;
labels always on the CPU.

Decoding and resampling equal Pillow's to within one level of 255, but for the outermost ring of the
scaled image's pixels when it is reduced: there DALI's filter repeats the edge where Pillow's leaves
out what lies beyond it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from brd_edge.data.dali_frames import decode_files, file_name, run_pipeline
from brd_edge.data.dataset import IGNORE_ID
from brd_edge.data.loader import Batch, later_jitter, require_known_ids, require_label_format, require_size
from brd_edge.data.loader_state import decode_state, encode_state
from brd_edge.data.plan import Draw, Plan
from brd_edge.runtime.errors import DataError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["DaliLoader"]

# for each input of the pipeline, one array a sample
_Columns = tuple[list[npt.NDArray[Any]], ...]


class DaliLoader:
    """A `TrainLoader` on a DALI pipeline; see `brd_edge.data.loader.open_train_loader`."""

    def __init__(self, plan: Plan, *, threads: int, gpu: int | None) -> None:
        """Keep the settings; the pipeline is built with the first batch."""
        self._plan = plan
        self._threads = threads
        self._gpu = gpu
        self._batches = 0
        self._pipeline: Any = None
        self._checked: set[int] = set()
        self._closed = False

    @property
    def steps_per_epoch(self) -> int:
        """Batches in one epoch; the incomplete last one is dropped."""
        return self._plan.steps_per_epoch

    def next_batch(self) -> Batch:
        """Return the next batch.

        Raises:
            DataError: A file cannot be read, or the loader is closed; the message names every bad file.
        """
        if self._closed:
            raise DataError("loader: it is closed: open another one")
        try:
            if self._pipeline is None:
                self._pipeline = _build_pipeline(self._plan, first=self._batches, threads=self._threads, gpu=self._gpu)
            draws = self._plan.draws(self._batches)
            batch = self._read_outputs(run_pipeline(self._pipeline, [self._plan.samples[d.index] for d in draws]))
        except BaseException:
            # a failed or interrupted pipeline is out of step with the position: make a new one next time
            self._pipeline = None
            raise
        self._batches += 1
        return batch

    def state(self) -> bytes:
        """Return the position as bytes; batches that are only prefetched do not count."""
        return encode_state(self._plan, self._batches)

    def restore(self, state: bytes) -> None:
        """Go to a saved position.

        Raises:
            DataError: The state is damaged, or was saved by a loader with other settings.
        """
        self._batches = decode_state(self._plan, state)
        self._pipeline = None

    def close(self) -> None:
        """Drop the pipeline, which ends its threads; the loader cannot be used afterwards."""
        self._pipeline = None
        self._closed = True

    def _read_outputs(self, outputs: tuple[Any, ...]) -> Batch:
        """Copy a pipeline's outputs into torch tensors, after checking that they belong together."""
        import torch
        from torch.utils.dlpack import from_dlpack

        images, labels, image_shapes, label_shapes, indices = (from_dlpack(output.as_tensor()) for output in outputs)
        draws = self._plan.draws(self._batches)
        expected = tuple(draw.index for draw in draws)
        found = tuple(indices.flatten().tolist())
        if found != expected:
            raise DataError(
                f"loader: DALI gave the samples {found} where {expected} were asked for: please report this"
            )
        shapes = zip(expected, image_shapes.tolist(), label_shapes.tolist(), labels.numpy(), strict=True)
        for index, image, label, ids in shapes:
            sample = self._plan.samples[index]
            require_size(sample, (image[0], image[1]), (label[0], label[1]))
            require_known_ids(sample, ids, self._plan.classes)
            if index not in self._checked:
                # a palette would have been turned into colours and then grey, and the ids lost
                require_label_format(sample.label)
                self._checked.add(index)
        # the pipeline uses its buffers again: both are copies, as `to` changes the type
        batch = Batch(
            _copy_in_range(self._plan, images),
            labels[..., 0].to(torch.int64),
            expected,
            later_jitter(self._plan, draws),
        )
        if images.is_cuda:
            # the copy is only queued: the next iteration must not overwrite what it still reads
            torch.cuda.current_stream(images.device).synchronize()
        return batch


def _copy_in_range(plan: Plan, images: Tensor) -> Tensor:
    """Copy normalised images, with colours that the jitter took out of 0 to 255 cut off."""
    import torch

    if not plan.augmentation.jitters:
        return images.clone()
    copy = torch.empty_like(images)
    for channel, (mean, std) in enumerate(zip(plan.contract.mean, plan.contract.std, strict=True)):
        torch.clamp(images[:, channel], (0 - mean) / std, (1 - mean) / std, out=copy[:, channel])
    return copy


def _build_pipeline(plan: Plan, *, first: int, threads: int, gpu: int | None) -> Any:
    """Build the pipeline whose first iteration is the batch `first`."""
    from nvidia.dali import Pipeline, fn, types

    stream = _feed(plan, first)
    kinds = [types.UINT8, types.UINT8, types.INT32, types.FLOAT, types.FLOAT, types.FLOAT, types.INT32]
    if plan.augmentation.jitters:
        kinds.append(types.FLOAT)
    crop = plan.augmentation.crop
    pipeline = Pipeline(
        batch_size=plan.batch_size // plan.world, num_threads=threads, device_id=gpu, prefetch_queue_depth=2
    )
    with pipeline:
        # in the order of `_columns`
        image_file, label_file, index, start, end, size, anchor, *jitter = fn.external_source(
            source=lambda: next(stream), num_outputs=len(kinds), dtype=kinds, ndim=1
        )
        image, label = decode_files(image_file, label_file, gpu=gpu is not None)
        shapes = image.shape(), label.shape()
        # one region for both: it scales, cuts and, where its ends are exchanged, mirrors
        region: dict[str, Any] = {"roi_start": start, "roi_end": end, "size": size}
        image = fn.resize(image, interp_type=types.INTERP_LINEAR, antialias=True, **region)
        label = fn.resize(label, interp_type=types.INTERP_NN, antialias=False, **region)
        for factors in jitter:
            image = _jitter(image, factors, with_gamma=plan.augmentation.gamma > 0)
        image = fn.crop_mirror_normalize(
            image,
            dtype=types.FLOAT,
            output_layout="CHW",
            mean=[255 * value for value in plan.contract.mean],
            std=[255 * value for value in plan.contract.std],
        )
        place: dict[str, Any] = {"start": anchor, "shape": list(crop), "out_of_bounds_policy": "pad"}
        image = fn.slice(image, axes=[1, 2], fill_values=0, **place)
        label = fn.slice(label, axes=[0, 1], fill_values=IGNORE_ID, **place)
        pipeline.set_outputs(image, label, *shapes, index)
    pipeline.build()
    return pipeline


def _jitter(image: Any, jitter: Any, *, with_gamma: bool) -> Any:
    """Change the colours as `brd_edge.data.plan` defines it; what is out of range is cut off with the copy."""
    from nvidia.dali import fn, math, types

    # DALI takes three times as long where the result has whole numbers
    brightness, contrast, saturation = jitter[0], jitter[1], jitter[2]
    if not with_gamma:
        return fn.color_twist(image, brightness=brightness, contrast=contrast, saturation=saturation, dtype=types.FLOAT)
    image = 255 * math.pow(image / 255, jitter[3])
    # of a fractional image `color_twist` takes 0.5 to be the mid-grey
    image = fn.saturation(image, saturation=saturation, dtype=types.FLOAT)
    return fn.brightness_contrast(
        image, brightness=brightness, contrast=contrast, contrast_center=128.0, dtype=types.FLOAT
    )


def _feed(plan: Plan, first: int) -> Iterator[_Columns]:
    batch = first
    while True:
        rows = [_columns(plan, draw) for draw in plan.draws(batch)]
        yield tuple(list(column) for column in zip(*rows, strict=True))
        batch += 1


def _columns(plan: Plan, draw: Draw) -> tuple[npt.NDArray[Any], ...]:
    """Return one sample's inputs of the pipeline."""
    sample = plan.samples[draw.index]
    top, left, bottom, right = draw.source_box(sample)
    if draw.flip:
        left, right = right, left
    jitter = (np.array(draw.jitter, dtype=np.float32),) if plan.augmentation.jitters else ()
    return (
        file_name(sample.image),
        file_name(sample.label),
        np.array([draw.index], dtype=np.int32),
        np.array([top, left], dtype=np.float32),
        np.array([bottom, right], dtype=np.float32),
        np.array(draw.size, dtype=np.float32),
        np.negative(draw.offset, dtype=np.int32),
        *jitter,
    )
