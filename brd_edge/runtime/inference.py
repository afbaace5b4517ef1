"""`infer`: class maps and overlays of images, folders, videos and cameras."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from brd_edge.runtime.errors import DataError
from brd_edge.runtime.files import write_json_atomic
from brd_edge.runtime.frames import overlay, read_image
from brd_edge.runtime.segmenter import Segmenter
from brd_edge.runtime.sources import (
    CLASS_MAP_ENDING,
    OVERLAY_ENDING,
    Pace,
    Video,
    VideoWriter,
    image_files,
    open_video,
    write_image,
)

__all__ = ["infer"]

_SAY_EVERY = 50
_RATE_UNKNOWN_HZ = 25.0
_CLASS_MAP_NAME = re.compile(r"[0-9]{6,}\.png")
_RESULT_KEYS = {"frames", "dropped", "interrupted"}


def infer(
    segmenter: Segmenter,
    source: str,
    out: Path,
    *,
    rate_hz: float | None = None,
    frames_max: int | None = None,
    say: Callable[[str], None] = lambda _line: None,
) -> dict[str, Any]:
    """Segment a source and write what was found.

    Images give `NAME.class_map.png` (class ids, with the palette) and `NAME.overlay.png`, where NAME is without its
    ending (`a` of `a.jpg`) unless a folder has both `a.jpg` and `a.png`; a video or camera gives
    `class_map/NNNNNN.png`, `overlay.mp4` and `infer.json`, also when it is interrupted; where `infer.json` says that
    these are of an earlier video, they are removed first.

    Args:
        segmenter: The model.
        source: An image, a folder (its class maps and overlays are left out), a video file, or `camera[:N]`.
        out: Folder to write to.
        rate_hz: Frames a second of a video: frames that are late are dropped. None takes every frame
            of a file, and the pace of a camera.
        frames_max: Most frames of a video or camera.
        say: Is told how far it is.

    Returns:
        `frames`, and for videos `dropped`, `rate_hz` (achieved), `wanted_hz`, `engine` and `interrupted`.

    Raises:
        DataError: The source cannot be read, or is what would be written. Of a folder, the images that can be read
            are done before it is raised.
        RuntimeMissingError: A video needs OpenCV, which is not installed.
    """
    files = image_files(Path(source))
    if files is None:
        if (out / "overlay.mp4").exists() and Path(source).exists() and (out / "overlay.mp4").samefile(source):
            raise DataError(f"{source}: the overlay would be written over this video; choose another folder than {out}")
        with open_video(source) as video:
            return _video(segmenter, video, out, rate_hz, frames_max, say)
    if rate_hz is not None or frames_max is not None:
        raise DataError(f"{source}: --rate and --frames are for videos and cameras, not for images")
    base = Path(source) if Path(source).is_dir() else Path(source).parent
    stems = Counter(path.with_suffix("") for path in files)
    unread: list[str] = []
    for number, path in enumerate(files, 1):
        try:
            image = read_image(path)
        except DataError as error:
            unread.append(str(error))
            continue
        class_map = segmenter.infer(image)
        target = out / path.relative_to(base)
        name = path.stem if stems[path.with_suffix("")] == 1 else path.name
        write_image(target.with_name(f"{name}{CLASS_MAP_ENDING}"), class_map, segmenter.palette)
        write_image(target.with_name(f"{name}{OVERLAY_ENDING}"), overlay(image, class_map, segmenter.palette))
        if number % _SAY_EVERY == 0 or number == len(files):
            say(f"{number} of {len(files)} images")
    if unread:
        done = len(files) - len(unread)
        raise DataError("\n".join(unread) + (f"; the other {done} of {len(files)} are done: {out}" if done else ""))
    return {"frames": len(files)}


def _video(
    segmenter: Segmenter,
    video: Video,
    out: Path,
    rate_hz: float | None,
    frames_max: int | None,
    say: Callable[[str], None],
) -> dict[str, Any]:
    _remove_earlier(out)
    (out / "class_map").mkdir(parents=True, exist_ok=True)
    pace = Pace(rate_hz)

    def note(*, interrupted: bool) -> dict[str, Any]:
        result = {
            "frames": pace.done,
            "dropped": pace.dropped,
            "rate_hz": round(pace.achieved_hz, 2),
            "wanted_hz": rate_hz,
            "engine": segmenter.engine,
            "interrupted": interrupted,
        }
        write_json_atomic(out / "infer.json", result)
        return result

    # says whose the files are also where the power fails before the end
    note(interrupted=True)
    writer = VideoWriter(out / "overlay.mp4", rate_hz or video.rate_hz or _RATE_UNKNOWN_HZ)
    interrupted = True
    try:
        while frames_max is None or pace.done < frames_max:
            # a camera drops by itself what nobody takes; of a file, what is late is passed over
            for _ in range(0 if video.live else pace.overdue()):
                pace.dropped += video.skip()
            image = video.read()
            if image is None:
                break
            number = pace.done + pace.dropped
            pace.wait()
            class_map = segmenter.infer(image)
            write_image(out / "class_map" / f"{number:06d}.png", class_map, segmenter.palette)
            writer.write(overlay(image, class_map, segmenter.palette))
            if pace.done % _SAY_EVERY == 0:
                whole = f" of {video.count}" if video.count else ""
                say(f"{pace.done}{whole} frames, {pace.achieved_hz:.1f} a second, {pace.dropped} dropped")
        interrupted = False
    finally:
        writer.close()
        result = note(interrupted=interrupted)
    return result


def _remove_earlier(out: Path) -> None:
    """Remove what an earlier video left in a folder; nothing of a folder that holds no `infer.json` of ours."""
    try:
        before = json.loads((out / "infer.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return
    if not isinstance(before, dict) or not before.keys() >= _RESULT_KEYS:
        return
    class_maps = (path for path in (out / "class_map").glob("*.png") if _CLASS_MAP_NAME.fullmatch(path.name))
    for old in (*class_maps, out / "overlay.mp4", out / "infer.json"):
        old.unlink(missing_ok=True)
