"""Reading files with DALI: what the training pipeline and the evaluation pipeline share, and the latter."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from brd_edge.data.dataset import Sample
from brd_edge.data.loader import require_label_format, require_size
from brd_edge.runtime.contract import InputContract
from brd_edge.runtime.errors import DataError

__all__ = ["decode_files", "explain_failure", "file_name", "read_with_dali", "run_pipeline"]

_Item = tuple[int, npt.NDArray[np.uint8], npt.NDArray[np.uint8]]


def file_name(path: Path) -> npt.NDArray[np.uint8]:
    """Return a file's name as the bytes that DALI's file reader takes."""
    return np.frombuffer(bytes(path), dtype=np.uint8)


def decode_files(image_file: Any, label_file: Any, *, gpu: bool) -> tuple[Any, Any]:
    """Decode image and label inside a pipeline's definition.

    Args:
        image_file: Node with the image's file name, as of `file_name`.
        label_file: Node with the label's.
        gpu: Decode the image on the GPU (what it has no decoder for, PNG for example, goes there decoded by
            the CPU). Labels are always decoded on the CPU: they are PNG.

    Returns:
        Nodes uint8 (H, W, 3) RGB and uint8 (H, W, 1).
    """
    from nvidia.dali import fn, types

    image = fn.decoders.image(
        _read(image_file),
        device="mixed" if gpu else "cpu",
        output_type=types.RGB,
        # orientation tags are left alone, as Pillow does when it reads frames for the engines
        adjust_orientation=False,
        # a GPU repeats chroma where a CPU interpolates it, which makes tens of levels of difference at edges
        jpeg_fancy_upsampling=gpu,
    )
    label = fn.decoders.image(_read(label_file), device="cpu", output_type=types.GRAY, adjust_orientation=False)
    return image, label


def _read(name: Any) -> Any:
    from nvidia.dali import fn

    # a mapped file that shrinks while it is read would end the process with SIGBUS
    return fn.io.file.read(name, dont_use_mmap=True)


def run_pipeline(pipeline: Any, samples: Sequence[Sample]) -> tuple[Any, ...]:
    """Run one iteration.

    Args:
        pipeline: A built pipeline.
        samples: What the iteration reads, for the message.

    Raises:
        DataError: A file cannot be decoded; the message names every one of `samples` that is bad.
    """
    try:
        outputs: tuple[Any, ...] = pipeline.run()
    except RuntimeError as error:
        raise DataError(explain_failure(samples, error)) from error
    return outputs


def explain_failure(samples: Sequence[Sample], error: RuntimeError) -> str:
    """Say which files of a batch cannot be used; DALI itself does not name them."""
    from brd_edge.data.torch_loader import decode_image, decode_label

    found = []
    for sample in samples:
        for decode, path in ((decode_image, sample.image), (decode_label, sample.label)):
            try:
                decode(path)
            except DataError as problem:
                found.append(str(problem))
    if found:
        return "\n".join(found)
    names = ", ".join(str(path) for sample in samples for path in (sample.image, sample.label))
    reason = " ".join(str(error).split())
    return f"loader: DALI cannot make a batch of {names}, though Pillow reads each of them; its words: {reason}"


def read_with_dali(
    samples: Sequence[Sample], places: Sequence[int], *, contract: InputContract, threads: int, gpu: int | None
) -> Iterator[_Item]:
    """Read samples one after the other, at the size at which they are segmented.

    Args:
        samples: The samples.
        places: Which of them, in order; the last batch may be smaller than the others.
        contract: Size that images are brought to, unless they are segmented in windows.
        threads: Decoding threads, also the number of images in a batch.
        gpu: Number of the CUDA GPU on which images are decoded and resized; None uses the CPU.

    Yields:
        Position, image uint8 (H, W, 3) and label uint8 (h, w).

    Raises:
        DataError: A file cannot be read or is not what the index says.
    """
    batches = [places[first : first + threads] for first in range(0, len(places), threads)]
    pipeline = _build_pipeline([[samples[place] for place in batch] for batch in batches], contract, threads, gpu)
    for batch in batches:
        images, labels, image_shapes, label_shapes = run_pipeline(pipeline, [samples[place] for place in batch])
        if gpu is not None:
            images = images.as_cpu()
        for i, place in enumerate(batch):
            sizes = [np.array(shapes.at(i)) for shapes in (image_shapes, label_shapes)]
            require_size(samples[place], *((int(size[0]), int(size[1])) for size in sizes))
            # a palette would have been turned into colours and then grey, and the ids lost
            require_label_format(samples[place].label)
            yield place, np.array(images.at(i)), np.array(labels.at(i))[..., 0]


def _build_pipeline(batches: Sequence[Sequence[Sample]], contract: InputContract, threads: int, gpu: int | None) -> Any:
    from nvidia.dali import Pipeline, fn, types

    def feed() -> Iterator[tuple[list[npt.NDArray[np.uint8]], ...]]:
        for batch in batches:
            yield [file_name(sample.image) for sample in batch], [file_name(sample.label) for sample in batch]

    stream = feed()
    pipeline = Pipeline(batch_size=threads, num_threads=threads, device_id=gpu, prefetch_queue_depth=2)
    with pipeline:
        image_file, label_file = fn.external_source(
            source=lambda: next(stream), num_outputs=2, dtype=[types.UINT8, types.UINT8], ndim=1
        )
        image, label = decode_files(image_file, label_file, gpu=gpu is not None)
        shapes = image.shape(), label.shape()
        if not contract.slides:
            size = (contract.height, contract.width)
            image = fn.resize(image, size=size, interp_type=types.INTERP_LINEAR, antialias=True)
        pipeline.set_outputs(image, label, *shapes)
    pipeline.build()
    return pipeline
