"""The journal of a preparation: one line a finished sample, so that an interrupted one can go on."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from brd_edge.data.dataset import ClassPixels
from brd_edge.runtime.files import write_text_atomic

__all__ = ["Converted", "open_journal", "read_journal"]


@dataclass(frozen=True)
class Converted:
    """A finished sample.

    Attributes:
        image: Path of the image, relative to the output directory when it was converted, else absolute.
        label: Path of the label, relative to the output directory.
        height: Rows, in pixels.
        width: Columns, in pixels.
        image_sha256: Checksum of the image file.
        label_sha256: Checksum of the label file.
        classes: What the label holds.
        state: Path, size and modification time of the source image and of the source label.
    """

    image: str
    label: str
    height: int
    width: int
    image_sha256: str
    label_sha256: str
    classes: tuple[ClassPixels, ...]
    state: tuple[str | int, ...]


def read_journal(path: Path, header: Mapping[str, Any]) -> dict[str, Converted]:
    """Read what an earlier preparation finished; what cannot be understood counts as not done."""
    if not path.is_file():
        return {}
    lines = path.read_bytes().splitlines()
    items: dict[str, Converted] = {}
    try:
        if json.loads(lines[0]) != dict(header):
            return {}
        for line in lines[1:]:
            values = json.loads(line)
            key = values.pop("key")
            classes = tuple(ClassPixels.from_json(found) for found in values["classes"])
            items[key] = Converted(**{**values, "classes": classes, "state": tuple(values["state"])})
    except (ValueError, TypeError, KeyError, AttributeError, IndexError):
        # the last line of an interrupted preparation may be cut short; the lines before it hold
        return items
    return items


@contextmanager
def open_journal(
    path: Path, header: Mapping[str, Any], known: Mapping[str, Converted]
) -> Iterator[Callable[[str, Converted], None]]:
    """Rewrite the journal with what is known, and yield a function that adds a line."""

    def line(key: str, item: Converted) -> str:
        values = {**asdict(item), "classes": [found.to_json() for found in item.classes]}
        return json.dumps({"key": key, **values}) + "\n"

    lines = [json.dumps(dict(header)) + "\n", *(line(key, item) for key, item in known.items())]
    write_text_atomic(path, "".join(lines))
    with path.open("a", encoding="utf-8") as file:

        def note(key: str, item: Converted) -> None:
            file.write(line(key, item))
            file.flush()

        yield note
