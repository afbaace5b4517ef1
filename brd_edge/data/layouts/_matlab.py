"""Reading matrices from MATLAB 5 files, bounded and checked: damaged ones end scipy's reader, and the process with it.

Source: MathWorks, "MAT-File Format", the level 5 format.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Variable", "read_matlab"]

_HEADER = 128
_MATRIX, _COMPRESSED = 14, 15
_NUMBERS = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
# the classes double to uint64; others are cells, structures, text, ...
_NUMERIC_CLASSES = range(6, 16)
_COMPLEX = 0x0800
_MAX_BYTES = 1 << 28


@dataclass(frozen=True)
class Variable:
    """A variable of a MATLAB file.

    Attributes:
        shape: Its size in every dimension.
        numbers: Its values, of the type in which they are stored; None where it is not a real, full matrix.
    """

    shape: tuple[int, ...]
    numbers: NDArray[Any] | None


def read_matlab(content: bytes) -> dict[str, Variable]:
    """Read the variables of a MATLAB 5 file.

    Raises:
        ValueError: The content is not such a file, or is damaged.
    """
    order = {b"IM": "<", b"MI": ">"}.get(content[126:_HEADER])
    if order is None:
        raise ValueError("its header is not that of a MATLAB 5 file")
    if content[124:126] not in {b"\x00\x01", b"\x01\x00"}:
        raise ValueError("MATLAB 7.3 or another version; save with -v7")
    found = {}
    for kind, data in _elements(content[_HEADER:], order):
        part = [(kind, data)] if kind != _COMPRESSED else list(_elements(_inflate(data), order))
        for inner, matrix in part:
            if inner == _MATRIX and matrix:
                name, variable = _variable(matrix, order)
                found[name] = variable
    return found


def _elements(content: bytes, order: str) -> Iterator[tuple[int, bytes]]:
    """Yield type and data of each element; small ones hold both in eight bytes."""
    place = 0
    while place < len(content):
        if place + 8 > len(content):
            raise ValueError("it is cut short")
        kind, length = struct.unpack_from(f"{order}II", content, place)
        if kind >> 16:
            kind, length, start, end = kind & 0xFFFF, kind >> 16, place + 4, place + 8
        else:
            start = place + 8
            # all but compressed elements are filled up to a multiple of eight bytes
            end = start + (length if kind == _COMPRESSED else -(-length // 8) * 8)
        if start + length > min(end, len(content)):
            raise ValueError("it is cut short or damaged")
        yield kind, content[start : start + length]
        place = end


def _inflate(data: bytes) -> bytes:
    stream = zlib.decompressobj()
    try:
        content = stream.decompress(data, _MAX_BYTES)
    except zlib.error as error:
        raise ValueError(f"it is damaged: {error}") from error
    if not stream.eof:
        raise ValueError("it is cut short, or holds more than a label")
    return content


def _variable(matrix: bytes, order: str) -> tuple[str, Variable]:
    elements = _elements(matrix, order)
    parts = list(islice(elements, 3))
    if [kind for kind, _ in parts] != [6, 5, 1] or len(parts[0][1]) != 8 or len(parts[1][1]) % 4:
        raise ValueError("it is damaged")
    flags = struct.unpack(f"{order}I", parts[0][1][:4])[0]
    shape = struct.unpack(f"{order}{len(parts[1][1]) // 4}i", parts[1][1])
    name = parts[2][1].decode("ascii", errors="replace")
    if flags & 0xFF not in _NUMERIC_CLASSES or flags & _COMPLEX:
        return name, Variable(shape, None)
    kind, data = next(elements, (0, b""))
    if kind not in _NUMBERS:
        raise ValueError("it is damaged")
    numbers = np.frombuffer(data, order + _NUMBERS[kind]) if len(data) % int(_NUMBERS[kind][1]) == 0 else None
    if numbers is None or min(shape, default=0) < 0 or math.prod(shape) != numbers.size:
        raise ValueError("it is damaged")
    return name, Variable(shape, numbers.reshape(shape, order="F"))
