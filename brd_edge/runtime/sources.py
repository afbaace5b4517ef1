"""Where images come from and go to: files, folders, videos and cameras.

Videos and cameras need OpenCV (`pip install "brd-edge[video]"`, or the one that JetPack brings);
images do not.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from brd_edge.runtime.errors import DataError, RuntimeMissingError
from brd_edge.runtime.runners.checks import import_runtime

__all__ = [
    "CLASS_MAP_ENDING",
    "IMAGE_SUFFIXES",
    "OVERLAY_ENDING",
    "Pace",
    "Video",
    "VideoWriter",
    "image_files",
    "open_video",
    "write_image",
]

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")
CLASS_MAP_ENDING = ".class_map.png"
OVERLAY_ENDING = ".overlay.png"
INSTALL = 'pip install "brd-edge[video]"'

_NO_VIDEO = (
    f"no image by its name, and OpenCV cannot read it as a video; expected an image ({', '.join(IMAGE_SUFFIXES)}), "
    "a folder of images, a video that OpenCV reads (such as .mp4, .avi, .mkv, .mov), or camera[:N]"
)

_RATE_PARTS_MAX = 65535
"""MPEG-4 holds a rate as a fraction whose numerator is at most this; OpenCV writes it with 0 to 3 decimals."""
_RATE_LOWEST = 0.01
"""Of what lies within 0.001 of a whole number OpenCV makes that number, and none can be 0."""

Frame = npt.NDArray[np.uint8]


def image_files(source: Path) -> list[Path] | None:
    """Return the image files that a path stands for, sorted; None where it is no image and no folder.

    Of a folder, class maps and overlays are left out: what was found in images is no image to segment. So is what is
    hidden, such as the `._a.png` that macOS leaves beside an `a.png`: it is named like an image, and is none.

    Raises:
        DataError: There is no such image, or the folder holds none.
    """
    if source.is_dir():
        images = (path for path in source.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file())
        made = (CLASS_MAP_ENDING, OVERLAY_ENDING)
        found = sorted(path for path in images if not path.name.endswith(made) and not _hidden(path, source))
        if not found:
            raise DataError(
                f"{source}: no image in this folder; expected {', '.join(IMAGE_SUFFIXES)}, "
                f"but for {' and '.join(f'*{ending}' for ending in made)}, which are results, and hidden files"
            )
        return found
    if source.suffix.lower() not in IMAGE_SUFFIXES:
        return None
    if not source.exists():
        raise DataError(f"{source}: there is no such file")
    return [source]


def _hidden(path: Path, below: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(below).parts)


def write_image(path: Path, image: Frame, palette: tuple[tuple[int, int, int], ...] | None = None) -> None:
    """Write a PNG: RGB from (H, W, 3), class ids from (H, W), with a palette so that viewers show colours."""
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(image)
    if palette is not None:
        picture.putpalette([part for colour in palette for part in colour])
    picture.save(path)


@dataclass
class Video:
    """An opened video or camera.

    Attributes:
        rate_hz: Frames a second; None where the source does not say.
        count: Number of frames, or None for a camera.
        live: Whether frames come whether they are taken or not.
    """

    capture: Any
    rate_hz: float | None
    count: int | None
    live: bool

    def skip(self) -> bool:
        """Drop a frame; return whether there was one."""
        return bool(self.capture.grab())

    def read(self) -> Frame | None:
        """Return the next frame, uint8 (H, W, 3) RGB, or None at the end."""
        found, frame = self.capture.read()
        return np.ascontiguousarray(frame[:, :, ::-1]) if found else None


@contextmanager
def open_video(source: str) -> Iterator[Video]:
    """Open a video file, `camera` (the first one), `camera:1`, or a pipeline or address that OpenCV understands.

    Raises:
        RuntimeMissingError: OpenCV is not installed.
        DataError: The source cannot be opened.
    """
    name, _, number = source.partition(":")
    # a longer number is no camera's, and OpenCV takes no more than 32 bits
    live = name == "camera" and (not number or (number.isdecimal() and len(number) < 10))
    is_file = Path(source).is_file()
    if not live and not is_file and not any(mark in source for mark in ("://", "!")):
        raise DataError(f"{source}: not found; expected an image, a folder of images, a video file or camera[:N]")
    try:
        cv2 = import_runtime("cv2", INSTALL)
    except RuntimeMissingError as error:
        kind = f"no image by its name ({', '.join(IMAGE_SUFFIXES)}); a video needs OpenCV, and " if is_file else ""
        raise RuntimeMissingError(f"{source}: {kind}{error}") from error
    capture = cv2.VideoCapture(int(number or 0)) if live else cv2.VideoCapture(source)
    try:
        if not capture.isOpened():
            raise DataError(f"{source}: {'there is no such camera, or it is in use' if live else _NO_VIDEO}")
        rate, count = capture.get(cv2.CAP_PROP_FPS), capture.get(cv2.CAP_PROP_FRAME_COUNT)
        yield Video(capture, rate if rate and rate > 0 else None, int(count) if is_file and count > 0 else None, live)
    finally:
        capture.release()


class VideoWriter:
    """Writes RGB frames into a video file (MP4); opened with the first frame, whose size it takes.

    The file has sides of even length: of an odd one the last row or column is repeated, which OpenCV would cut off.
    """

    def __init__(self, path: Path, rate_hz: float) -> None:
        """Remember where to write; the folder must exist, and the rate becomes the nearest that the file can hold."""
        self._cv2 = import_runtime("cv2", INSTALL)
        self._path, self._rate_hz = path, _held_rate(rate_hz)
        self._writer: Any = None

    def write(self, frame: Frame) -> None:
        """Append a frame, uint8 (H, W, 3) RGB.

        Raises:
            DataError: The file cannot be written.
        """
        height, width = frame.shape[:2]
        if height % 2 or width % 2:
            frame = np.pad(frame, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
        if self._writer is None:
            code = self._cv2.VideoWriter_fourcc(*"mp4v")
            size = (frame.shape[1], frame.shape[0])
            self._writer = self._cv2.VideoWriter(str(self._path), code, self._rate_hz, size)
            if not self._writer.isOpened():
                raise DataError(
                    f"{self._path}: OpenCV cannot write a video of {size[0]} x {size[1]} pixels at {self._rate_hz:g} "
                    "frames a second; is the folder writable, and is there space?"
                )
        self._writer.write(np.ascontiguousarray(frame[:, :, ::-1]))

    def close(self) -> None:
        """Finish the file."""
        if self._writer is not None:
            self._writer.release()
            self._writer = None


def _held_rate(rate_hz: float) -> float:
    """Return the rate that MPEG-4 can hold and that is nearest to one above 0: fewer decimals the higher it is."""
    decimals = next((count for count in (3, 2, 1) if round(rate_hz * 10**count) <= _RATE_PARTS_MAX), 0)
    return min(max(round(rate_hz, decimals), _RATE_LOWEST), float(_RATE_PARTS_MAX))


@dataclass
class Pace:
    """A steady rate: frame n is due at start + n / rate, and what is late by a whole frame is dropped.

    Attributes:
        rate_hz: Frames a second; None goes as fast as it can and drops nothing.
        done: Frames that were processed.
        dropped: Frames that were skipped because their time had passed.
    """

    rate_hz: float | None
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    done: int = 0
    dropped: int = 0
    _start: float | None = field(default=None, repr=False)

    def overdue(self) -> int:
        """Return how many frames must be dropped to be in time again."""
        if self.rate_hz is None or self._start is None:
            return 0
        return max(0, int((self.clock() - self._start) * self.rate_hz) - (self.done + self.dropped))

    def wait(self) -> None:
        """Wait until the next frame is due, and count it as done."""
        if self._start is None:
            self._start = self.clock()
        if self.rate_hz is not None:
            due = self._start + (self.done + self.dropped) / self.rate_hz
            self.sleep(max(0.0, due - self.clock()))
        self.done += 1

    @property
    def achieved_hz(self) -> float:
        """Frames a second that were processed so far."""
        span = self.clock() - self._start if self._start is not None else 0.0
        return self.done / span if span > 0 else 0.0
