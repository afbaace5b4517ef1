"""What preparation finds wrong with a data set, and the list of what it left out."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from brd_edge.data.layouts.base import Content
from brd_edge.runtime.errors import DataError
from brd_edge.runtime.files import write_json_atomic

__all__ = [
    "SKIPPED_NAME",
    "Findings",
    "Skipped",
    "SkippedSample",
    "describe_problems",
    "find_repeated",
    "load_skipped",
    "save_skipped",
]

SKIPPED_NAME = "skipped.json"

_VERSION = 1
_SHOWN_PROBLEMS = 50


@dataclass(frozen=True)
class SkippedSample:
    """A sample that was left out.

    Attributes:
        split: Its split.
        id: Its id.
        reasons: What is wrong with it, a sentence each.
    """

    split: str
    id: str
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class Skipped:
    """What was left out of a data set.

    Attributes:
        samples: The samples.
        general: Sentences on directories, lists and files that belong to no sample.
    """

    samples: tuple[SkippedSample, ...] = ()
    general: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        """Say whether anything was left out."""
        return bool(self.samples or self.general)


@dataclass(frozen=True)
class Findings:
    """What is wrong with a data set.

    Attributes:
        general: Sentences on directories, lists and files that belong to no sample.
        repeated: Sentences on samples that come again, by split and place in it.
        bad: Sentences on samples that cannot be used, by `SPLIT/ID`.
    """

    general: Sequence[str]
    repeated: Mapping[tuple[str, int], str]
    bad: Mapping[str, Sequence[str]]

    @property
    def sentences(self) -> list[str]:
        """All that is wrong, a sentence each."""
        return [*self.general, *self.repeated.values(), *(reason for found in self.bad.values() for reason in found)]

    def skipped(self, content: Content) -> Skipped:
        """Return what goes when all of it is left out."""
        first: dict[str, tuple[str, int]] = {}
        for split, sources in content.splits.items():
            for place, source in enumerate(sources):
                first.setdefault(f"{split}/{source.id}", (split, place))
        reasons = {place: [reason] for place, reason in self.repeated.items()}
        for key, found in self.bad.items():
            reasons.setdefault(first[key], []).extend(found)
        samples = tuple(
            SkippedSample(split, content.splits[split][place].id, tuple(found))
            for (split, place), found in reasons.items()
        )
        return Skipped(samples, tuple(self.general))


def find_repeated(content: Content) -> dict[tuple[str, int], str]:
    """Find samples that are listed again, and train samples that validate as well.

    Returns:
        What is wrong with each, by split and place in it; leaving these out keeps one of each.
    """
    found = {}
    for split, sources in content.splits.items():
        seen: set[str] = set()
        for place, source in enumerate(sources):
            if source.id in seen:
                found[split, place] = f"{source.image}: listed twice in split {split!r}; list it once"
            seen.add(source.id)
    validated = {source.image for source in content.splits["val"]}
    for place, source in enumerate(content.splits["train"]):
        if source.image in validated:
            found["train", place] = f"{source.image}: in both splits, train and val; take it out of one"
    return found


def describe_problems(
    title: str, root: Path, problems: Sequence[str], *, skippable: bool, again: str = "prepare again"
) -> str:
    """Write all problems of a data set as one message; a very long list is cut and counted.

    Args:
        title: The data set's.
        root: Where it lies.
        problems: A sentence each.
        skippable: Whether what is left without the samples that they are about can be used.
        again: What to do when they are mended.
    """
    shown = [f"  - {problem}" for problem in problems[:_SHOWN_PROBLEMS]]
    more = len(problems) - _SHOWN_PROBLEMS
    tail = [f"  ... and {more} more"] if more > 0 else []
    noun, them = ("problem", "it") if len(problems) == 1 else ("problems", "them")
    skip = " (or leave the samples out: data.on_bad_sample=skip)" if skippable else ""
    head = f"{title}: {root} cannot be used, {len(problems)} {noun}; mend {them} and {again}{skip}:"
    return "\n".join([head, *shown, *tail])


def save_skipped(directory: Path, skipped: Skipped) -> Path:
    """Write `directory/skipped.json` atomically and return its path."""
    path = directory / SKIPPED_NAME
    write_json_atomic(path, {"version": _VERSION, **asdict(skipped)})
    return path


def load_skipped(directory: Path) -> Skipped:
    """Read `directory/skipped.json`; without that file nothing was left out.

    Raises:
        DataError: The file is damaged.
    """
    path = directory / SKIPPED_NAME
    if not path.is_file():
        return Skipped()
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        samples = tuple(
            SkippedSample(entry["split"], entry["id"], tuple(entry["reasons"])) for entry in values["samples"]
        )
        return Skipped(samples, tuple(values["general"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: cannot be read ({error!r}); prepare the data set again") from error
