"""Checking source images, and converting those that are not plain 8-bit RGB."""

from __future__ import annotations

import io
import re
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

from brd_edge.runtime.errors import DataError
from brd_edge.runtime.frames import read_orientation, upright_rgb

__all__ = ["check_image", "encode_png", "is_turned", "require_whole_png"]

_PNG = b"\x89PNG\r\n\x1a\n"
# EXIF orientations that change height and width for each other
_TURNED = (5, 6, 7, 8)
# channels by the colour type in the header; first row, first column and both steps of each pass of an interlaced
# file (PNG specification, sections 11.2.1 and 8.2)
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
_PASSES = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))
# parts of a PNG that no decoder stumbles over
_PLAIN_PARTS = frozenset(b"IHDR IDAT IEND gAMA cHRM sRGB iCCP pHYs sBIT tEXt zTXt iTXt tIME".split())
# within the coded data of a JPEG: a marker other than a stuffed byte or a restart
_NEXT_MARKER = re.compile(rb"\xff+[^\x00\xd0-\xd7\xff]")


def check_image(path: Path) -> tuple[int, int, bytes | None]:
    """Decode an image in full; return its width, its height, and a PNG when it cannot stay as it is."""
    try:
        content = path.read_bytes()
        require_whole_png(content)
        with Image.open(path) as image:
            image.load()
            if _is_plain(image, content):
                return image.width, image.height, None
            upright = upright_rgb(image)
            return upright.width, upright.height, encode_png(upright)
    # Pillow raises many kinds for damaged files, IndexError and struct.error among them
    except Exception as error:
        raise DataError(f"{path}: the image cannot be read ({error}); replace it with an intact copy") from error


def is_turned(path: Path) -> bool:
    """Return whether an image's EXIF orientation changes its height and width for each other."""
    with Image.open(path) as image:
        return read_orientation(image) in _TURNED


def require_whole_png(content: bytes) -> None:
    """Refuse a PNG that is damaged or cut short where Pillow would fill in zeros or look away; other files pass.

    Raises:
        ValueError: A checksum is wrong, or pixels or the end are missing.
    """
    if not content.startswith(_PNG):
        return
    parts = _png_parts(content)
    header = next((data for kind, data in parts if kind == b"IHDR"), b"")
    width, height, depth, color, *_, interlaced = struct.unpack(">IIBBBBB", header)
    if width * height > 2 * (Image.MAX_IMAGE_PIXELS or width * height):
        raise ValueError(f"{width}x{height} pixels are more than Pillow reads")
    passes = _PASSES if interlaced else ((0, 0, 1, 1),)
    expected = 0
    for row, column, down, right in passes:
        rows, columns = -((row - height) // down), -((column - width) // right)
        expected += rows * (1 + (columns * depth * _CHANNELS.get(color, 1) + 7) // 8) if columns > 0 else 0
    # no more than is needed: a few bytes can unfold into gigabytes
    stream = zlib.decompressobj()
    found = len(stream.decompress(b"".join(data for kind, data in parts if kind == b"IDAT"), expected + 1))
    if found < expected:
        raise ValueError(f"{expected - found} of {expected} bytes of its pixels are missing")


def _png_parts(content: bytes) -> list[tuple[bytes, bytes]]:
    """Return kind and data of each part up to the end that the file declares."""
    parts: list[tuple[bytes, bytes]] = []
    place = len(_PNG)
    while not parts or parts[-1][0] != b"IEND":
        length = int.from_bytes(content[place : place + 4], "big")
        kind, data = content[place + 4 : place + 8], content[place + 8 : place + 8 + length]
        if place + length + 12 > len(content):
            raise ValueError("the file is cut short")
        place += length + 12
        if zlib.crc32(kind + data) != int.from_bytes(content[place - 4 : place], "big"):
            raise ValueError(f"the checksum of its part {kind.decode(errors='replace')!r} is wrong")
        parts.append((kind, data))
    return parts


def _is_whole_jpeg(content: bytes) -> bool:
    """Say whether one marker follows the other from start to end; what lies between them stops some decoders."""
    place = 2
    while place + 4 <= len(content) and content[place] == 0xFF:
        marker = content[place + 1]
        place += 2 + int.from_bytes(content[place + 2 : place + 4], "big")
        if marker in {0x00, 0xFF} or place > len(content):
            return False
        if marker == 0xDA:
            found = _NEXT_MARKER.search(content, place)
            if found is None:
                return False
            place = found.end() - 2
        if content[place : place + 2] == b"\xff\xd9":
            return True
    return False


def _is_plain(image: Image.Image, content: bytes) -> bool:
    """Say whether every decoder gives the same 8-bit RGB pixels for this file."""
    if image.mode != "RGB" or image.format not in {"JPEG", "PNG"} or "transparency" in image.info:
        return False
    if read_orientation(image) != 1:
        return False
    if image.format == "JPEG":
        return _is_whole_jpeg(content)
    # Pillow shows 16-bit RGB as RGB; the depth stands in byte 24 of a PNG, and bytes 26 and 27 are always 0
    # (PNG specification, IHDR)
    parts = {kind for kind, _ in _png_parts(content)}
    return content[24] == 8 and content[26:28] == b"\0\0" and parts <= _PLAIN_PARTS


def encode_png(image: Image.Image) -> bytes:
    """Encode pixels as PNG without any metadata."""
    buffer = io.BytesIO()
    Image.fromarray(np.asarray(image)).save(buffer, "PNG")
    return buffer.getvalue()
