"""What changed between two runs, as text for the terminal."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from brd_edge.evaluate.changes.runs import SCORE_NAMES, Changes, CommonImages, Difference, EngineChange
from brd_edge.evaluate.formats import latency_digits, megabytes, milliseconds, one_line, percent
from brd_edge.evaluate.intervals import ScoreChange
from brd_edge.runtime.statistics import Interval

__all__ = ["format_changes", "verdict_line"]

_WIDTH = 100
_SHOWN = 20
# more settings than this that only one run has are told together
_SECTION = 3
_VALUE_LENGTH_MAX = 36
_PROOF = {True: "held", False: "not held", None: "undecided"}


def format_changes(changes: Changes, *, names: tuple[str, str], latency: str) -> str:
    """Write the changes as tables of at most 100 columns, and the verdict on the last line.

    Args:
        changes: What changed.
        names: How the runs A and B are called.
        latency: How latencies were compared, a sentence.

    Returns:
        Several lines without a newline at the end. Control characters in names and reasons are taken out.
    """
    parts = [f"A  {one_line(names[0])}", f"B  {one_line(names[1])}", "", *_settings(changes), ""]
    for key, name in SCORE_NAMES.items():
        parts += [*_scores(changes, key, name), ""]
    parts += [*_latencies(changes.engines, latency), "", *_sizes(changes.engines), "", *_gates(changes), ""]
    return "\n".join([*parts, verdict_line(changes)])


def verdict_line(changes: Changes) -> str:
    """Return the verdict on all of it, on one line of at most 100 columns; it names what matters most."""
    groups = {name: items for name in ("worse", "undecided", "better") if (items := getattr(changes, name))}
    if not groups:
        return "verdict: equivalent in all that was compared"
    counts = [f"{len(items)} {name}" for name, items in groups.items()]
    head = f"verdict: {'' if changes.worse else 'nothing is worse, '}{counts[0]} ("
    tail = ", ".join([")", *counts[1:]])
    names = one_line(", ".join(next(iter(groups.values()))))
    return head + textwrap.shorten(names, _WIDTH - len(head) - len(tail), placeholder=" …") + tail


def _settings(changes: Changes) -> list[str]:
    groups = (
        ("recipe", changes.recipe),
        ("environment", changes.environment),
        ("data set", changes.dataset),
        ("input contract", changes.contract),
    )
    lines = ["what differs"]
    for title, differences in groups:
        if not differences:
            lines.append(f"  {title}: nothing")
            continue
        lines.append(f"  {title}:")
        texts = _grouped(differences) if title == "recipe" else [_difference(item) for item in differences]
        for text in texts[:_SHOWN]:
            lines += _wrapped(text, indent=4)
        if len(texts) > _SHOWN:
            lines.append(f"    and {len(texts) - _SHOWN} more (--json lists all)")
    return lines + _wrapped(_images(changes.images), indent=2)


def _grouped(differences: Sequence[Difference]) -> list[str]:
    """Return a line for each difference, with one for all of a section that only one of the runs has, at the end."""
    sections: dict[tuple[str, bool], list[Difference]] = {}
    for item in differences:
        if (item.before is None) != (item.after is None) and "." in item.key:
            sections.setdefault((item.key.rpartition(".")[0], item.before is None), []).append(item)
    large = {place: items for place, items in sections.items() if len(items) > _SECTION}
    hidden = {item.key for items in large.values() for item in items}
    lines = [_difference(item) for item in differences if item.key not in hidden]
    for (section, new), items in large.items():
        count = f"{len(items)} settings"
        lines.append(f"{one_line(section)}: {'nothing' if new else count} → {count if new else 'nothing'}")
    return lines


def _difference(item: Difference) -> str:
    before, after = (_value(value) for value in (item.before, item.after))
    return f"{one_line(item.key)}: {before} → {after}"


def _value(value: object) -> str:
    text = "nothing" if value is None else one_line(value)
    return text if len(text) <= _VALUE_LENGTH_MAX else f"{text[: _VALUE_LENGTH_MAX - 1]}…"


def _images(images: CommonImages) -> str:
    notes = [
        text
        for count, text in (
            (images.only_before, f"{images.only_before} only in A"),
            (images.only_after, f"{images.only_after} only in B"),
            (images.altered, f"{images.altered} of the same id, but with another picture or label, left out"),
        )
        if count
    ]
    if not images.checked:
        notes.append("compared by id alone: a run has no data/index.json")
    return f"validation images in common: {images.count}" + (f" ({'; '.join(notes)})" if notes else "")


def _scores(changes: Changes, key: str, name: str) -> list[str]:
    from tabulate import tabulate

    rows = [
        [
            one_line(title),
            percent(found[key].before),
            percent(found[key].after),
            _points(found[key].difference),
            _score_verdict(found[key], changes.margin),
        ]
        for title, found in changes.scores.items()
        if key in found
    ]
    heads = (f"{name}", "A %", "B %", "B - A, points [95 %]", "verdict")
    alignment = ("left", "right", "right", "left", "left")
    return tabulate(rows, headers=heads, colalign=alignment, disable_numparse=True).splitlines() if rows else []


def _points(interval: Interval) -> str:
    # adding 0 turns -0.0 into 0.0
    value, low, high = (round(100 * end, 2) + 0.0 for end in (interval.value, interval.low, interval.high))
    return f"{value:+.2f} [{low:+.2f}, {high:+.2f}]"


def _score_verdict(change: ScoreChange, margin: float) -> str:
    return f"equivalent within ±{100 * margin:g} points" if change.verdict == "equivalent" else change.verdict


def _latencies(engines: Sequence[EngineChange], latency: str) -> list[str]:
    from tabulate import tabulate

    compared = [(engine, engine.latency) for engine in engines if engine.latency is not None]
    digits = latency_digits(found.before_ms for _, found in compared)
    rows, notes = [], []
    for engine, found in compared:
        if found.ratio is not None and found.margin is not None:
            ratio = found.ratio
            equal = f"equivalent within ±{100 * found.margin:g} %"
            rows.append(
                [
                    one_line(engine.name),
                    *(milliseconds(value, digits=digits) for value in (found.before_ms, found.after_ms)),
                    f"{ratio.value:.3f} [{ratio.low:.3f}, {ratio.high:.3f}]",
                    equal if found.verdict == "equivalent" else str(found.verdict),
                ]
            )
        texts = [*(["not compared: " + found.reason] if found.verdict is None else [found.reason]), *found.warnings]
        notes += [f"{engine.name}: {text}" for text in texts if text]
    heads = ("latency", "A ms", "B ms", "B / A [95 %]", "verdict")
    alignment = ("left", "right", "right", "left", "left")
    table = tabulate(rows, headers=heads, colalign=alignment, disable_numparse=True).splitlines() if rows else []
    return [*(table or ["latency"]), *_wrapped(latency), *(line for note in notes for line in _wrapped(note))]


def _sizes(engines: Sequence[EngineChange]) -> list[str]:
    from tabulate import tabulate

    rows = []
    for engine in engines:
        (before, after), (status, now) = engine.size_bytes, engine.status
        change = f"{100 * (after / before - 1) + 0.0:+.1f} %" if before and after else ""
        rows.append(
            [
                one_line(engine.name),
                megabytes(before),
                megabytes(after),
                change if change != "-0.0 %" else "+0.0 %",
                status if status == now else f"{status or 'not in A'} → {now or 'not in B'}",
            ]
        )
    heads = ("size", "A MB", "B MB", "change", "status")
    alignment = ("left", "right", "right", "right", "left")
    return tabulate(rows, headers=heads, colalign=alignment, disable_numparse=True).splitlines()


def _gates(changes: Changes) -> list[str]:
    lines = []
    for engine in changes.engines:
        for title, found in (
            ("newly broken", engine.gates_newly_broken),
            ("still broken", engine.gates_still_broken),
            ("no longer broken", engine.gates_no_longer_broken),
        ):
            lines += [f"gate {title}: {engine.name}: {line}" for line in found]
        if engine.lost is not None:
            lines.append(f"{engine.name}: {engine.lost}{': ' + engine.reason if engine.reason else ''}")
    before, after = (_PROOF[held] for held in changes.proof)
    proof = f"zero-cost proof: {before}" + (" in both" if before == after else f" → {after}")
    return [line for text in [*(lines or ["gates: none broken, before or after"]), proof] for line in _wrapped(text)]


def _wrapped(text: str, *, indent: int = 0) -> list[str]:
    return textwrap.wrap(
        one_line(text),
        width=_WIDTH,
        initial_indent=" " * indent,
        subsequent_indent=" " * (indent + 2),
        # a path or a command must stay whole to be copied
        break_long_words=False,
        break_on_hyphens=False,
    )
