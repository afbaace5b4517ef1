"""What to do about a frame that a runner does not take; asked only once it was refused."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

__all__ = ["frame_advice"]


def frame_advice(frame: object, size: tuple[int, int] | None) -> str:
    """Say how to make of something what a runner takes.

    Args:
        frame: What was given in place of uint8 (H, W, 3), RGB, or (N, H, W, 3).
        size: Height and width that it must have, in pixels; None where any will do.

    Returns:
        One piece of advice for each thing that is wrong, joined by semicolons.
    """
    if not isinstance(frame, np.ndarray):
        return _of_no_array(frame)
    if frame.ndim == 4 and not len(frame):
        return "there is no frame in it: give one at least"
    shape = frame.shape[1:] if frame.ndim == 4 else frame.shape
    layout, found = _of_layout(shape, 1 if frame.ndim == 4 else 0)
    advice = [_of_dtype(frame.dtype), layout]
    if size is not None and found is not None and found != size:
        which = "it" if frame.ndim < 4 else "each of them"
        advice.append(
            f"bring {which} to the contract's size with brd_edge.runtime.frames.fit_frame(image, contract), "
            "or use brd_edge.runtime.segmenter.Segmenter, which takes images of any size"
        )
    return "; ".join(text for text in advice if text)


def _of_no_array(frame: object) -> str:
    if isinstance(frame, (str, os.PathLike)):
        return "read the file first, with brd_edge.runtime.frames.read_image(path)"
    if type(frame).__module__.split(".")[0] == "torch":
        return "give a numpy array: tensor.cpu().numpy(), uint8 and with the channels last"
    if type(frame).__module__.split(".")[0] == "PIL":
        return 'give a numpy array: numpy.asarray(image.convert("RGB"))'
    return "give a numpy array"


def _of_dtype(dtype: np.dtype[Any]) -> str:
    if dtype == np.uint8:
        return ""
    if dtype.kind == "f":
        return (
            "give the pixels as they come from the file, uint8 from 0 to 255: the graph normalises them "
            "(values from 0 to 1 become that with (255 * frame).round().astype(numpy.uint8))"
        )
    return "give uint8 from 0 to 255 (values in that range become it with frame.astype(numpy.uint8))"


def _of_layout(shape: tuple[int, ...], axis: int) -> tuple[str, tuple[int, int] | None]:
    """Return what to do about a layout, and the height and width that it has, where that can be told.

    Args:
        shape: Of one frame.
        axis: Where its own dimensions begin: 1 in a batch.
    """
    if len(shape) == 2:
        return "it is grey: make three channels with numpy.stack([frame] * 3, axis=-1)", (shape[0], shape[1])
    if len(shape) == 3:
        first, second, last = shape
        if last == 3:
            return "", (first, second)
        if first == 3:
            return f"the channels go last: numpy.moveaxis(frame, {axis}, -1)", (second, last)
        if last == 4:
            return "it has a fourth channel: leave that out with frame[..., :3]", (first, second)
        if last == 1:
            return "it is grey: make three channels with numpy.repeat(frame, 3, axis=-1)", (first, second)
    return "give three channels, RGB, as the last dimension", None
