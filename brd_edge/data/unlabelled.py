"""Images without labels, which get those that a model gives them.

Writes `labels/NAME.png` (train ids, 255 where the model is unsure), `images/NAME.png` for images that are not plain
8-bit RGB, and a journal that remembers what is done, so that an interrupted labelling goes on where it was.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from brd_edge.data._convert import cannot_convert, is_intact, is_naming, write_file
from brd_edge.data._images import check_image, encode_png
from brd_edge.data._journal import Converted, open_journal, read_journal
from brd_edge.data.dataset import Sample, find_class_pixels
from brd_edge.data.findings import Skipped, SkippedSample, describe_problems, save_skipped
from brd_edge.data.layouts._files import IMAGE_SUFFIXES, as_text, walk_files
from brd_edge.data.workers import work_ahead
from brd_edge.runtime.errors import DataError
from brd_edge.runtime.files import sha256_file
from brd_edge.runtime.frames import read_image, resize_class_map

__all__ = [
    "JOURNAL_NAME",
    "FoundImages",
    "LabelledImages",
    "check_images",
    "find_images",
    "label_images",
    "load_labelled",
]

JOURNAL_NAME = "journal.jsonl"

_VERSION = 1

Segment = Callable[[NDArray[np.uint8]], NDArray[np.uint8]]
"""Image uint8 (H, W, 3), RGB, to class map uint8 of any size, 255 where there is none."""


@dataclass(frozen=True)
class FoundImages:
    """Images below a directory.

    Attributes:
        root: The directory.
        paths: The images by name, their path in it, sorted.
        problems: What is wrong with the directory, a sentence each.
    """

    root: Path
    paths: Mapping[str, Path]
    problems: tuple[str, ...]


@dataclass(frozen=True)
class LabelledImages:
    """What became of a directory of images.

    Attributes:
        samples: Those that have labels now, by name.
        known: How many were left out since the data set has them already.
        skipped: What cannot be used, if that was asked to be left out.
    """

    samples: tuple[Sample, ...]
    known: int
    skipped: Skipped


@dataclass(frozen=True)
class _Image:
    """An image that was read: pixels, its PNG where it cannot stay as it is, and the checksum of what is used."""

    path: Path
    pixels: NDArray[np.uint8]
    png: bytes | None
    sha256: str
    state: tuple[str | int, ...]


def find_images(root: Path, *, skip: Callable[[Path], bool] = lambda _directory: False) -> FoundImages:
    """Find the images below a directory. Files of other kinds do not count, nor hidden ones.

    Args:
        root: The directory.
        skip: Whether a directory below it is left out, with all that it holds.
    """
    paths, problems = walk_files(root, skip=skip)
    images: dict[str, Path] = {}
    for path in paths:
        name = as_text(path.relative_to(root).as_posix())
        if path.suffix.lower() not in IMAGE_SUFFIXES:
            continue
        if name in images:
            problems.append(f"{name}: two files have this name once it is written as text; rename one")
        images.setdefault(name, path)
    return FoundImages(root, images, tuple(problems))


def check_images(found: FoundImages, *, threads: int, progress: Callable[[int, int], None] | None = None) -> None:
    """Read all images, so that what is wrong is known before hours of work.

    Raises:
        DataError: Images cannot be read; one error lists all of them.
    """
    problems = [*found.problems]
    with closing(work_ahead(_problem, found.paths.values(), threads=threads, name="unlabelled")) as results:
        for count, problem in enumerate(results, 1):
            problems += [] if problem is None else [problem]
            if progress is not None:
                progress(count, len(found.paths))
    if problems:
        raise DataError(_describe(found, problems, skippable=len(problems) < len(found.paths)))


def label_images(
    found: FoundImages,
    out: Path,
    *,
    segment: Segment,
    maker: str,
    known: Collection[str],
    threads: int,
    skip_bad: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> LabelledImages:
    """Label images under `out`.

    Those whose files are unchanged since an earlier, even interrupted, labelling by the same maker are not labelled
    again. Labels of images that are there no more are removed.

    Args:
        found: The images; they are not changed.
        out: Directory to write, in which none of them lies.
        segment: The model. Its class maps are brought to the images' sizes as `resize_class_map` does.
        maker: What tells this model, and how it is used, from another.
        known: SHA-256 of images that are to be left out, as the data set's own.
        threads: Reading threads, at least 1.
        skip_bad: Leave out images that cannot be used and list them in `out/skipped.json`, with the reasons.
        progress: Called with the number of images done and the number of all.

    Returns:
        The labelled images; `load_labelled` reads them again.

    Raises:
        DataError: There is no image, or none that the data set does not have, or none with a labelled pixel; images
            cannot be read; or `out` cannot be written. One error lists all images.

    Example:
        >>> label_images(find_images(Path("frames")), Path("runs/mine/unlabelled"), segment=predict,
        ...              maker="teacher 3", known=(), threads=2).samples[0].label
    """
    images = found.paths
    journal = out / JOURNAL_NAME
    header = _header(maker)
    earlier = {name: item for name, item in read_journal(journal, header).items() if name in images}
    done: dict[str, Converted] = {}
    bad: dict[str, list[str]] = {}
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / "skipped.json").unlink(missing_ok=True)
        with open_journal(journal, header, earlier) as note, ExitStack() as stack:
            read = partial(_read, images=images, earlier=earlier, known=frozenset(known), out=out)
            results = stack.enter_context(closing(work_ahead(read, images, threads=threads, name="unlabelled")))
            for count, (name, result) in enumerate(zip(images, results, strict=True), 1):
                item = _label(name, result, segment, out) if isinstance(result, _Image) else result
                if isinstance(item, Converted):
                    done[name] = item
                    if item is not earlier.get(name):
                        note(name, item)
                elif item is not None:
                    bad[name] = item
                if progress is not None:
                    progress(count, len(images))
        # what the data set has meanwhile, or what is gone, counts no more
        with open_journal(journal, header, done):
            pass
        _remove_others(out, done)
    except OSError as error:
        raise DataError(f"distill.unlabelled: {cannot_convert(found.root, out, error)}") from error
    return _conclude(found, out, done, bad, skip_bad)


def load_labelled(out: Path, maker: str) -> tuple[Sample, ...]:
    """Return what `label_images` left under `out`, by name.

    Raises:
        DataError: There is nothing of this maker.
    """
    done = read_journal(out / JOURNAL_NAME, _header(maker))
    if not done:
        raise DataError(f"{out}: holds no labels of this teacher; run it again")
    return _samples(done, out)


def _header(maker: str) -> dict[str, Any]:
    return {"version": _VERSION, "maker": maker}


def _read(
    name: str, *, images: Mapping[str, Path], earlier: Mapping[str, Converted], known: frozenset[str], out: Path
) -> _Image | Converted | list[str] | None:
    """Read an image; return what was made of it before, what is wrong with it, or None where it is to be left out."""
    path = images[name]
    if (problem := _no_file(path)) is not None:
        return [problem]
    try:
        stat = path.stat()
        state: tuple[str | int, ...] = (str(path), stat.st_size, stat.st_mtime_ns)
        before = earlier.get(name)
        if before is not None and before.state == state and is_intact(before, out):
            return None if before.image_sha256 in known else before
        _, _, png = check_image(path)
        digest = _sha256(path, png)
        return None if digest in known else _Image(path, read_image(path), png, digest, state)
    except OSError as error:
        return [f"{path}: cannot be read ({error.strerror}); change its permissions, or take it away"]
    except DataError as error:
        return [str(error)]


def _problem(path: Path) -> str | None:
    """Return what is wrong with an image, if anything."""
    if (problem := _no_file(path)) is not None:
        return problem
    try:
        check_image(path)
    except DataError as error:
        return str(error)
    return None


def _no_file(path: Path) -> str | None:
    # a pipe would be read for ever
    if path.is_file():
        return None
    return f"{path}: {'not a regular file' if path.exists() else 'a link to nothing'}; take it away"


def _sha256(path: Path, png: bytes | None) -> str:
    return sha256_file(path) if png is None else hashlib.sha256(png).hexdigest()


def _label(name: str, image: _Image, segment: Segment, out: Path) -> Converted | list[str]:
    height, width = image.pixels.shape[:2]
    label = resize_class_map(segment(image.pixels), height, width)
    label_path, image_path = f"labels/{name}.png", f"images/{name}.png"
    try:
        label_sha256 = write_file(out / label_path, encode_png(Image.fromarray(label)))
        if image.png is not None:
            write_file(out / image_path, image.png)
    except OSError as error:
        if not is_naming(error):
            raise
        return [f"{image.path}: {out / label_path} cannot be written ({error.strerror}); give it another name"]
    return Converted(
        image=str(image.path) if image.png is None else image_path,
        label=label_path,
        height=height,
        width=width,
        image_sha256=image.sha256,
        label_sha256=label_sha256,
        classes=find_class_pixels(label),
        state=image.state,
    )


def _remove_others(out: Path, done: Mapping[str, Converted]) -> None:
    """Remove labels and images that an earlier labelling left of what is there no more."""
    kept = {out / place for item in done.values() for place in (item.label, item.image)}
    for kind in ("labels", "images"):
        for path in (out / kind).rglob("*.png"):
            if path not in kept and path.is_file():
                path.unlink()


def _conclude(
    found: FoundImages, out: Path, done: Mapping[str, Converted], bad: Mapping[str, list[str]], skip_bad: bool
) -> LabelledImages:
    """Return what was found, or refuse it with all that is wrong."""
    known = len(found.paths) - len(done) - len(bad)
    sentences = [*found.problems, *(reason for reasons in bad.values() for reason in reasons)]
    if sentences and not (skip_bad and done):
        raise DataError(_describe(found, sentences, skippable=bool(done)))
    if not done:
        own = f"; {known} of the data set's own are there" if known else ""
        raise DataError(
            f"distill.unlabelled: {found.root}: expected images without labels, got none{own}; give a directory of "
            "other images, or leave it out"
        )
    if not any(item.classes for item in done.values()):
        raise DataError(
            f"distill.unlabelled: the teacher is sure of no pixel of the {len(done)} images of {found.root}; "
            "lower distill.unlabelled_confidence"
        )
    skipped = Skipped(
        tuple(SkippedSample("unlabelled", name, tuple(reasons)) for name, reasons in bad.items()), found.problems
    )
    if skipped:
        save_skipped(out, skipped)
    return LabelledImages(_samples(done, out), known, skipped)


def _describe(found: FoundImages, problems: Sequence[str], *, skippable: bool) -> str:
    return describe_problems("distill.unlabelled", found.root, problems, skippable=skippable, again="run it again")


def _samples(done: Mapping[str, Converted], out: Path) -> tuple[Sample, ...]:
    return tuple(
        Sample(name, out / item.image, out / item.label, item.height, item.width, item.classes)
        for name, item in sorted(done.items())
    )
