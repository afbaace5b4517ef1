"""Checking source images, and converting those that are not plain 8-bit RGB."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from brd_edge.runtime.errors import DataError
from brd_edge.runtime.frames import UNREADABLE

__all__ = ["check_image", "encode_png"]

_EXIF_ORIENTATION = 0x0112


def check_image(path: Path) -> tuple[int, int, bytes | None]:
    """Decode an image in full; return its width, its height, and a PNG when it cannot stay as it is."""
    try:
        with path.open("rb") as file:
            header = file.read(26)
        with Image.open(path) as image:
            image.load()
            if _is_plain(image, header):
                return image.width, image.height, None
            upright = ImageOps.exif_transpose(_to_rgb(image))
            return upright.width, upright.height, encode_png(upright)
    except UNREADABLE as error:
        raise DataError(f"{path}: the image cannot be read ({error}); replace it with an intact copy") from error


def _is_plain(image: Image.Image, header: bytes) -> bool:
    """Say whether every decoder gives the same 8-bit RGB pixels for this file."""
    if image.mode != "RGB" or image.format not in {"JPEG", "PNG"} or "transparency" in image.info:
        return False
    if image.getexif().get(_EXIF_ORIENTATION, 1) != 1:
        return False
    # Pillow shows 16-bit RGB as RGB; the depth stands in byte 24 of a PNG (PNG specification, IHDR)
    return image.format == "JPEG" or header[24] == 8


def _to_rgb(image: Image.Image) -> Image.Image:
    """Convert to RGB: 16-bit grey is scaled to 8 bits, transparency is dropped, EXIF data is kept."""
    if image.mode.startswith("I;16") or image.mode == "I":
        grey = np.array(image)
        if grey.size and (grey.min() < 0 or grey.max() > 65535):
            raise ValueError(f"expected at most 16 bits a pixel, got values from {grey.min()} to {grey.max()}")
        scaled = (grey.astype(np.uint32) * 255 + 32767) // 65535
        return _with_exif(Image.fromarray(scaled.astype(np.uint8)).convert("RGB"), image)
    if image.mode == "F":
        raise ValueError("expected 8 or 16 bits a channel, got floating point")
    # a palette with transparency reaches RGB only by way of RGBA
    straight = image.convert("RGBA") if image.mode == "P" and "transparency" in image.info else image
    return _with_exif(straight.convert("RGB"), image)


def _with_exif(converted: Image.Image, original: Image.Image) -> Image.Image:
    converted.info.pop("transparency", None)
    converted.getexif()[_EXIF_ORIENTATION] = original.getexif().get(_EXIF_ORIENTATION, 1)
    return converted


def encode_png(image: Image.Image) -> bytes:
    """Encode pixels as PNG without any metadata."""
    buffer = io.BytesIO()
    Image.fromarray(np.asarray(image)).save(buffer, "PNG")
    return buffer.getvalue()
