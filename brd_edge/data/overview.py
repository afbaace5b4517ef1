"""What is in a prepared data set, in numbers; no image is read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from brd_edge.data.dataset import Dataset, Sample, count_class_pixels
from brd_edge.data.findings import Skipped

__all__ = ["ClassOverview", "Overview", "SplitOverview", "describe_absent", "describe_dataset"]

_MOSTLY_IGNORED = 0.5
_SHOWN = 10


@dataclass(frozen=True)
class SplitOverview:
    """One split.

    Attributes:
        name: `"train"` or `"val"`.
        images: How many.
        sizes: Height, width and how many images have them, the most frequent first.
        formats: How many images there are of each kind of file, such as `"png"`.
        ignored: Share of its label pixels that are ignored, 0 to 1.
    """

    name: str
    images: int
    sizes: tuple[tuple[int, int, int], ...]
    formats: Mapping[str, int]
    ignored: float


@dataclass(frozen=True)
class ClassOverview:
    """One class.

    Attributes:
        id: Train id.
        name: Its name.
        share: Of the labelled pixels of each split, 0 to 1, by the split's name.
        images: How many images of each split hold it, by the split's name.
    """

    id: int
    name: str
    share: Mapping[str, float]
    images: Mapping[str, int]


@dataclass(frozen=True)
class Overview:
    """A whole data set.

    Attributes:
        splits: Train and validation split.
        classes: Every class, by id.
        problems: What people should look at, a sentence each.
    """

    splits: tuple[SplitOverview, ...]
    classes: tuple[ClassOverview, ...]
    problems: tuple[str, ...]


def describe_dataset(dataset: Dataset, skipped: Skipped, checksums: Mapping[str, Mapping[str, str]]) -> Overview:
    """Count what a data set holds.

    Args:
        dataset: As prepared.
        skipped: What preparation left out.
        checksums: SHA-256 of each image, by split and id (`brd_edge.data.index.load_checksums`).

    Returns:
        Counts, shares, and what is odd.

    Example:
        >>> describe_dataset(dataset, load_skipped(directory), load_checksums(directory)).splits[0].images
        367
    """
    splits = {"train": dataset.train, "val": dataset.val}
    classes = _describe_classes(dataset, splits)
    problems = [
        *_skipped_problems(skipped),
        *describe_absent(dataset),
        *_shared_problems(checksums),
        *_ignored_problems(splits),
    ]
    return Overview(tuple(_describe_split(*item) for item in splits.items()), classes, tuple(problems))


def describe_absent(dataset: Dataset) -> list[str]:
    """Say which classes no label of a split holds, a sentence for each split.

    Example:
        >>> describe_absent(dataset)
        ['weed is in no train image: it cannot be learnt (12 % of the pixels are ignored)']
    """
    sentences = []
    for name, samples, effect in (("train", dataset.train, "learnt"), ("val", dataset.val, "judged")):
        present = {found.id for sample in samples for found in sample.classes}
        missing = [title for number, title in enumerate(dataset.classes) if number not in present]
        if missing:
            listed = ", ".join(missing[:_SHOWN]) + (f" and {len(missing) - _SHOWN} more" if missing[_SHOWN:] else "")
            ignored = 100 * _describe_split(name, samples).ignored
            verb, they = ("is", "it") if len(missing) == 1 else ("are", "they")
            share = f" ({ignored:.0f} % of the pixels are ignored)" if ignored else ""
            sentences.append(f"{listed} {verb} in no {name} image: {they} cannot be {effect}{share}")
    return sentences


def _describe_split(name: str, samples: Sequence[Sample]) -> SplitOverview:
    sizes = Counter((sample.height, sample.width) for sample in samples)
    ordered = sorted(sizes.items(), key=lambda item: (-item[1], item[0]))
    formats = Counter(sample.image.suffix.lower().lstrip(".") for sample in samples)
    total = sum(sample.height * sample.width for sample in samples)
    ignored = sum(_ignored_pixels(sample) for sample in samples)
    return SplitOverview(
        name,
        len(samples),
        tuple((height, width, count) for (height, width), count in ordered),
        dict(sorted(formats.items())),
        ignored / total,
    )


def _describe_classes(dataset: Dataset, splits: Mapping[str, Sequence[Sample]]) -> tuple[ClassOverview, ...]:
    pixels = {name: count_class_pixels(samples, len(dataset.classes)) for name, samples in splits.items()}
    images = {
        name: Counter(found.id for sample in samples for found in sample.classes) for name, samples in splits.items()
    }
    return tuple(
        ClassOverview(
            number,
            title,
            {name: counts[number] / max(1, sum(counts)) for name, counts in pixels.items()},
            {name: counts[number] for name, counts in images.items()},
        )
        for number, title in enumerate(dataset.classes)
    )


def _ignored_pixels(sample: Sample) -> int:
    return sample.height * sample.width - sum(found.count for found in sample.classes)


def _skipped_problems(skipped: Skipped) -> list[str]:
    lines = [f"left out of {sample.split}: {'; '.join(sample.reasons)}" for sample in skipped.samples]
    return _shorten([*lines, *skipped.general])


def _shared_problems(checksums: Mapping[str, Mapping[str, str]]) -> list[str]:
    trained = {digest: name for name, digest in checksums["train"].items()}
    return _shorten(
        [
            f"val image {name} is train image {trained[digest]}, to the byte: scores on it flatter"
            for name, digest in checksums["val"].items()
            if digest in trained
        ]
    )


def _ignored_problems(splits: Mapping[str, Sequence[Sample]]) -> list[str]:
    lines = []
    for name, samples in splits.items():
        for sample in samples:
            share = _ignored_pixels(sample) / (sample.height * sample.width)
            if share > _MOSTLY_IGNORED:
                lines.append(f"{name} image {sample.id}: {100 * share:.0f} % of its label is ignored")
    return _shorten(lines)


def _shorten(lines: list[str]) -> list[str]:
    more = len(lines) - _SHOWN
    return lines if more <= 0 else [*lines[:_SHOWN], f"... and {more} more like these"]
