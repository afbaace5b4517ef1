"""Damaged, odd and hostile files for `test_fuzz.py`; equal generators give equal bytes."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

__all__ = [
    "CLASS_FILES",
    "HOSTILE_NAMES",
    "LISTS",
    "damage",
    "damage_png",
    "encode",
    "odd_images",
    "odd_mats",
    "with_exif",
    "with_part",
]

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_SIZES = (0, 1, 7, 23, 25, 31, 33, 255, 20_000, 2**16, 2**31 - 1, 2**31, 2**32 - 1)
_CHUNKS = (b"tRNS", b"pHYs", b"gAMA", b"iCCP", b"eXIf", b"zTXt", b"iTXt", b"tEXt", b"acTL", b"fcTL", b"fdAT", b"PLTE",
           b"sRGB", b"cHRM", b"sBIT", b"bKGD", b"hIST", b"tIME", b"IDAT", b"IEND", b"IHDR", b"\xff\0\0\0")  # fmt: skip

# cut short, an orientation of 99, one that is text, and one of 6 beside a tag that is longer than the file
_EXIF = (
    b"",
    b"II",
    b"II*\0\x08\0\0\0\xff\xff",
    b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x63\0\0",
    b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x02\0\0\0\x01six\0\0\0",
    b"MM\0*\0\0\0\x08\0\x02\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\x01\x0f\0\x02\xff\xff\xff\xff\0\0\0\0",
)

Damage = Callable[[np.random.Generator, bytes], bytes]


def encode(pixels: Any, kind: str = "PNG", mode: str | None = None, **options: Any) -> bytes:
    """Encode an array (or a picture) as an image file, after converting it to `mode`."""
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(np.asarray(pixels))
    buffer = io.BytesIO()
    (image if mode is None else image.convert(mode)).save(buffer, kind, **options)
    return buffer.getvalue()


# any file


def _flip(rng: np.random.Generator, content: bytes, count: int) -> bytes:
    changed = np.frombuffer(content, np.uint8).copy()
    places = rng.integers(0, len(changed), count)
    np.bitwise_xor.at(changed, places, (1 << rng.integers(0, 8, count)).astype(np.uint8))
    return changed.tobytes()


def _zero_block(rng: np.random.Generator, content: bytes) -> bytes:
    start, length = int(rng.integers(len(content))), int(rng.integers(1, 200))
    return (content[:start] + bytes(length) + content[start + length :])[: len(content)]


def _cut_out(rng: np.random.Generator, content: bytes) -> bytes:
    start, length = int(rng.integers(len(content))), int(rng.integers(1, 200))
    return content[:start] + content[start + length :]


def _put_in(rng: np.random.Generator, content: bytes) -> bytes:
    start = int(rng.integers(len(content)))
    return content[:start] + rng.bytes(int(rng.integers(1, 200))) + content[start:]


_DAMAGES: tuple[Damage, ...] = (
    lambda rng, content: _flip(rng, content, int(rng.integers(1, 4))),
    lambda rng, content: _flip(rng, content, max(1, len(content) // 20)),
    lambda rng, content: content[: int(rng.integers(len(content)))],
    lambda rng, content: content[: int(rng.choice([0, 1, 2, 8, 16, 25, 26, 33, 128, 136]))],
    lambda rng, content: content[: -int(rng.integers(1, 30))],
    lambda rng, content: rng.bytes(int(rng.integers(1, 40))) + content[int(rng.integers(1, 40)) :],
    _zero_block,
    _cut_out,
    _put_in,
    lambda rng, content: content + rng.bytes(100),
)


def damage(rng: np.random.Generator, content: bytes, other: bytes, number: int) -> bytes:
    """Damage a file in the `number`th of several ways; `other` is what parts of another file are taken from."""
    number %= len(_DAMAGES) + 1
    if number < len(_DAMAGES):
        return _DAMAGES[number](rng, content)
    return content[: int(rng.integers(len(content)))] + other[int(rng.integers(len(other))) :]


# PNG files whose checksums are right all the same: decoders look closer at what is in them


def _read_chunks(content: bytes) -> list[tuple[bytes, bytes]]:
    chunks, place = [], len(_SIGNATURE)
    while place < len(content):
        (length,) = struct.unpack(">I", content[place : place + 4])
        chunks.append((content[place + 4 : place + 8], content[place + 8 : place + 8 + length]))
        place += 12 + length
    return chunks


def _join_chunks(chunks: list[tuple[bytes, bytes]]) -> bytes:
    parts = (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )
    return _SIGNATURE + b"".join(parts)


def _other_header(rng: np.random.Generator, data: bytes) -> bytes:
    header = list(struct.unpack(">IIBBBBB", data))
    field = int(rng.integers(len(header)))
    choices: tuple[tuple[int, ...], ...] = (_SIZES, _SIZES, (0, 1, 2, 3, 4, 8, 16, 255), tuple(range(8)), (1,), (1,))
    header[field] = int(rng.choice(np.array((*choices, (1, 2))[field])))
    return struct.pack(">IIBBBBB", *header)


def damage_png(rng: np.random.Generator, content: bytes, number: int) -> bytes:
    """Damage a PNG file with right checksums: its header, its chunks, its stream, or its rows."""
    chunks = _read_chunks(content)
    kind = number % 5
    if kind == 0:
        chunks[0] = (b"IHDR", _other_header(rng, chunks[0][1]))
    elif kind == 1:
        odd = (bytes(rng.choice(np.array(_CHUNKS, object))), rng.bytes(int(rng.choice([0, 1, 2, 3, 4, 9, 40]))))
        chunks.insert(int(rng.integers(1, len(chunks) + 1)), odd)
    elif kind == 2:
        place = int(rng.integers(1, len(chunks)))
        chunks.pop(place) if rng.random() < 0.5 else chunks.insert(place, chunks[place])
    else:
        place = [name for name, _ in chunks].index(b"IDAT")
        data = chunks[place][1]
        if kind == 3:
            data = _flip(rng, data, int(rng.integers(1, 4)))
        else:
            rows = zlib.decompress(data)
            data = zlib.compress(rows[: int(rng.integers(len(rows)))] if rng.random() < 0.5 else _flip(rng, rows, 300))
        chunks[place] = (b"IDAT", data)
    return _join_chunks(chunks)


def with_part(png: bytes, kind: bytes, data: bytes) -> bytes:
    """Put a part of any content before the end of a PNG file."""
    chunks = _read_chunks(png)
    return _join_chunks([*chunks[:-1], (kind, data), chunks[-1]])


def with_exif(jpeg: bytes, exif: bytes) -> bytes:
    """Put an Exif block of any content behind the start of a JPEG file."""
    body = b"Exif\0\0" + exif
    return jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body + jpeg[2:]


# whole files of another kind


def odd_images(rgb: NDArray[np.uint8]) -> Iterator[tuple[str, bytes]]:
    """Yield files that are no plain RGB picture, or none at all, each with a word for it."""
    picture = Image.fromarray(rgb)
    for mode in ("1", "L", "LA", "P", "RGBA", "I;16"):
        yield f"png-{mode}", encode(picture.convert("L") if mode == "I;16" else picture, "PNG", mode)
    yield "png-P-see-through", encode(picture.quantize(9), "PNG", transparency=bytes(range(9)))
    yield "png-RGB-see-through", encode(picture, "PNG", transparency=(1, 2, 3))
    for mode in ("L", "CMYK", "YCbCr"):
        yield f"jpeg-{mode}", encode(picture, "JPEG", mode)
    yield "jpeg-progressive", encode(picture, "JPEG", progressive=True)
    yield "jpeg-rgb", encode(picture, "JPEG", keep_rgb=True)
    for kind in ("BMP", "GIF", "TIFF", "WEBP", "PPM", "ICO", "TGA", "PCX", "JPEG2000", "DIB", "SGI"):
        yield kind.lower(), encode(picture.convert("P") if kind == "GIF" else picture, kind)
    yield "tiff-float", encode(rgb[..., 0].astype(np.float32), "TIFF")
    yield "tiff-int", encode(rgb[..., 0].astype(np.int32) - 9, "TIFF")
    yield "tiff-cmyk", encode(picture, "TIFF", "CMYK")
    yield "text", b"this is no picture\n"
    yield "html", b"<!DOCTYPE html><html><head><title>404 Not Found</title></head><body>gone</body></html>"
    yield "elf", b"\x7fELF\x02\x01\x01" + bytes(9) + b"\x03\0\x3e\0\x01\0\0\0" + bytes(40)
    yield "git-lfs", b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
    yield "eps", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 32 24\n%%EndComments\nshowpage\n"
    yield "zip", b"PK\x03\x04" + bytes(60)
    yield "zeros", bytes(4000)
    for i, exif in enumerate(_EXIF):
        yield f"jpeg-exif-{i}", with_exif(encode(picture, "JPEG"), exif)


def odd_mats(ids: NDArray[Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield MATLAB variables that are no label, each with a word for it."""
    from scipy.sparse import csc_array

    yield "none", {}
    yield "other-name", {"T": ids}
    yield "three-dims", {"S": np.stack([ids] * 3, -1)}
    yield "empty", {"S": np.zeros((0, 0), np.uint16)}
    yield "transposed", {"S": ids.T}
    yield "text", {"S": "segmentation"}
    yield "cell", {"S": np.array([ids, ids], object)}
    yield "struct", {"S": {"map": ids}}
    yield "sparse", {"S": csc_array(ids.astype(float))}
    yield "complex", {"S": ids.astype(complex) + 1j}
    yield "complex-whole", {"S": ids.astype(complex)}
    for word, value in (("nan", np.nan), ("infinite", np.inf), ("huge", 1e300), ("half", 0.5), ("minus", -1.0)):
        wrong = ids.astype(float)
        wrong[3, 4] = value
        yield word, {"S": wrong}
    yield "logical", {"S": ids > 3}
    yield "wide", {"S": ids.astype(np.int64) + 2**40}


# text


LISTS: dict[str, bytes] = {
    "empty": b"",
    "blank": b"\n \n\t\n",
    "invalid-utf-8": b"t0\n\xff\xfe\xfa\n",
    "utf-16": "t0\nt1\n".encode("utf-16"),
    "byte-order-mark": b"\xef\xbb\xbft0\nt1\n",
    "carriage-returns": b"t0\r\nt1\r\n",
    "nul": b"t0\0\nt1\n",
    "absolute": b"/etc/passwd\n/t0\n",
    "upwards": b"../..\n../../t0\n..\n.\n/\n",
    "binary": bytes(range(256)),
    "long-line": b"t0" * 3000 + b"\nt1\n",
    "long-name": b"x" * 252 + b"\nt0\n",
    "html": b"<!DOCTYPE html>\n<html><body><h1>404 Not Found</h1></body></html>\n",
    "twice": b"t0\nt0\nt1\n",
    "validated": b"t0\nv0\n",
    "paths": b"JPEGImages/t0.jpg SegmentationClass/t0.png\n",
    "with-numbers": b"t0 1\nt1 -1\n",
    "tabs": b"\tt0\t\n",
    "missing": b"t0\nt9\n",
    "percent": b"t0\n%s%n%x\n{t1}\n$HOME\n`id`\n",
}  # fmt: skip

# every level holds the one before nine times
_BOMB = b"a: &a0 [x]\n" + b"".join(
    b"b%d: &a%d [%s]\n" % (i, i, b", ".join([b"*a%d" % (i - 1)] * 9)) for i in range(1, 12)
)

CLASS_FILES: tuple[bytes, ...] = (
    b"", b"\0", b"\xff\xfe", b"names", b"names:", b"names: 3", b"[road, car]", b"names: [road, [car]]",
    b"names: 2001-99-99", b"names: !!int road", b"names: !!timestamp road", b"names: !!bool road",
    b"names: !!python/object/apply:os.getcwd []", b"names: [0b_, car]", b"names: &a [*a]", b"names: *a",
    b"names: {1: road, 1: car}", b"names: {{a: b}: road}", b"names: {? [1] : road}", b"<<: 3", b"names: {.inf: a}",
    b"names: {1e3: a}", b"names: {yes: a}", b"names: {9223372036854775808: a}", b"names: [a, a]", b"names: [a, null]",
    b"names: [road, car]\n---\nnames: [road]", b"names: [road, car]\ncolors: [[0, 0, 0]]", b"names: [~, '', ' ']",
    b"names: [road, car]\nignore: [[255]]", b"names: [road, car]\nignore: 1.5", b"names: [road, car]\nignore: {}",
    b"names: [road, car]\nignore_color: black", b"names: [road, car]\ncolours: []", b"names: [road, car]\n\t- x",
    b"names: [road, car]\ncolors: [[0, 0, 0], [0, 0, 0]]", b"names: [road, car]\ncolors: [[0, 0, 0], [0, 0, .nan]]",
    b"[" * 4000, b"{a: " * 4000, b"names: [" + b"a, " * 300 + b"]", b"- " * 3000,
    _BOMB + b"names: *a11\n", b"names: &a0 [x]\n" + _BOMB.partition(b"\n")[2],
    b"n: &a0 [x, x]\nnames: {0: [[[[[[[[[*a0, *a0]]]]]]]]]}",
    b"names: {0: &a0 [x]}\nignore: " + b"&a [" * 400 + b"255" + b"]" * 400,
)  # fmt: skip

HOSTILE_NAMES: tuple[str, ...] = (
    "two words", " leading", "trailing ", "grün", "道路", "🚗", "a\nb", "a\rb", "a\tb", "-rf", "--help", "..a", "a..",
    "a'b", 'a"b', "a`b", "a$HOME", "a;b", "a|b", "a&b", "a<b>", "a*b?", "a[b]", "a{b}", "%s%n", "a%20b", "~", "#a",
    "a\\b", "a:b", "A", "a", "Ä", "A\u0308", "x" * 200, "x" * 251, "ü" * 100, "\udcff\udcfe", "a\udc80b", "\u202egnp",
    "a\u2028b", "\x01\x7f", "CON", "nul", "file:a", "s3:", "index", "a.png", "a.tar.gz", "\ufeffbom",
)  # fmt: skip
