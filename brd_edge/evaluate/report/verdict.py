"""What a benchmark says in a sentence and a few tiles: the proof, the fastest engine, the gaps between models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from brd_edge.evaluate.formats import (
    engine_labels,
    latency_digits,
    milliseconds,
    milliseconds_interval,
    percent,
    points,
)
from brd_edge.evaluate.proof import Proof, judge_proof

__all__ = ["VerdictTile", "best_engine", "gap", "p50_ms", "verdict"]

_BEST_WITHIN = 0.01  # how much mIoU the best engine may lack to the most accurate one


@dataclass(frozen=True)
class VerdictTile:
    """One statement of the verdict: a tile (`title`, `value`, `detail`) and the same as a `sentence`."""

    tone: Literal["good", "bad", "open", "plain"]
    title: str
    value: str
    detail: str
    sentence: str


def verdict(benchmark: Mapping[str, Any]) -> list[VerdictTile]:
    """State the proof, the engine with the lowest p50, and the student's distance to its teacher and to an earlier run.

    Args:
        benchmark: The content of `benchmark.json`; every measured value may be null.

    Returns:
        Three tiles, one more where there are gates, and one more where an earlier run was compared.
    """
    teacher, student = benchmark.get("teacher") or {}, benchmark.get("student") or {}
    compared = benchmark.get("compared") or {}
    tiles = [
        _proof_tile(judge_proof(benchmark.get("zero_cost"))),
        _engine_tile(benchmark.get("engines") or []),
        _teacher_tile(student, teacher),
    ]
    if any(set(engine.get("gates") or ()) - {"uncertain"} for engine in benchmark.get("engines") or []):
        tiles.append(_gates_tile(benchmark["engines"]))
    if compared:
        name = str(compared.get("name") or "earlier run")
        tiles.append(_gap_tile(student, compared, name, "It", f"“{name}”"))
    return tiles


def best_engine(engines: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """Choose the fastest (p50) of the measured engines whose mIoU is within one point of the highest.

    An engine without an mIoU counts only where no engine has one; one that misses a gate, or without a latency,
    never does.
    """
    return min(_candidates(engines), key=lambda engine: p50_ms(engine) or 0.0, default=None)


def _candidates(engines: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return the engines that the one with the lowest p50 is chosen from; see `best_engine`."""
    timed = [engine for engine in engines if p50_ms(engine) is not None and not engine.get("gates_broken")]
    accurate = [engine for engine in timed if engine.get("miou") is not None]
    if not accurate:
        return timed
    highest = max(float(engine["miou"]) for engine in accurate)
    return [engine for engine in accurate if engine["miou"] >= highest - _BEST_WITHIN]


def p50_ms(engine: Mapping[str, Any]) -> float | None:
    """Return an engine's median latency in milliseconds, None where it was not measured."""
    value = (engine.get("latency_ms") or {}).get("p50")
    return None if value is None else float(value)


def gap(first: Mapping[str, Any], second: Mapping[str, Any], key: str) -> float | None:
    """Return `first[key] - second[key]`, None where either is missing."""
    if first.get(key) is None or second.get(key) is None:
        return None
    return float(first[key]) - float(second[key])


def _proof_tile(proof: Proof) -> VerdictTile:
    title = "Zero added inference cost"
    if proof.held:
        nodes = f"All {proof.nodes} graph nodes" if proof.nodes else "The graph"
        detail = f"{nodes}, parameters and MACs equal those of the same student trained plainly. {_compared(proof)}"
        return VerdictTile("good", title, "Held", detail, "The zero-cost proof held.")
    if proof.held is False:
        detail = " ".join([*_graph_differences(proof), *_engine_differences(proof)])
        detail += " Listed under Zero-cost proof."
        return VerdictTile("bad", title, "Not held", detail, "The zero-cost proof did not hold.")
    graphs = all(result == "equal" for _, result in proof.checks)
    undecided = [f"{engine.name} ({engine.verdict})" for engine in proof.engines if engine.latency == "undecided"]
    if undecided and graphs and len(proof.compared) == len(proof.engines):
        detail = "Graph, parameters, MACs, sizes and layers are equal; the latency of "
        detail += f"{', '.join(undecided)} is open. A quiet machine or a larger benchmark.cost_budget_s may decide it."
        sentence = "Distillation added nothing to graph, size and layers; whether it added latency is undecided."
        return VerdictTile("open", title, "Latency undecided", detail, sentence)
    detail = "The student was not, or not fully, compared with the same student trained plainly"
    detail += f": {_compared(proof)}" if graphs else "."
    return VerdictTile("open", title, "Not proven", detail, "Zero added inference cost is not proven.")


def _compared(proof: Proof) -> str:
    """Say how many engines were compared, in what, and which were not."""
    timed, equal = len(proof.timed), sum(engine.latency == "equal" for engine in proof.timed)
    text = f"{len(proof.compared)} of {len(proof.engines)} engines compared"
    if proof.compared:
        text += f", in latency {timed}, of which {equal} {'is' if equal == 1 else 'are'} equivalent"
    alone = sum(engine.layers is None for engine in proof.compared)
    text += f", {alone} in size alone" if alone else ""
    missing = [engine.name for engine in proof.engines if engine not in proof.compared]
    return f"{text}; not compared: {', '.join(missing)}." if missing else f"{text}."


def _graph_differences(proof: Proof) -> list[str]:
    count = len(proof.differences)
    if count:
        named = f"{count} {'difference' if count == 1 else 'differences'}"
        return [f"The graph has {named} from the same student trained plainly."]
    return [f"{text}: no." for text, result in proof.checks if result == "different"]


def _engine_differences(proof: Proof) -> list[str]:
    found = []
    for engine in proof.engines:
        structure = ["size or layers differ from the undistilled student's"] if engine.structure == "different" else []
        latency = [engine.verdict] if engine.latency == "different" else []
        if structure or latency:
            found.append(f"{engine.name}: {'; '.join([*structure, *latency])}.")
    return found


def _engine_tile(engines: Sequence[Mapping[str, Any]]) -> VerdictTile:
    title, best = "Lowest p50", best_engine(engines)
    if best is None and any(p50_ms(engine) is not None for engine in engines):
        return VerdictTile(
            "bad", title, "Not held", "No measured engine holds its gates.", "No engine holds its gates."
        )
    if best is None:
        return VerdictTile("open", title, "None measured", "The table below says why.", "No engine was measured.")
    label = next(name for name, engine in zip(engine_labels(engines), engines, strict=True) if engine is best)
    digits = latency_digits([p50_ms(best)])
    latency = f"{milliseconds(p50_ms(best), digits=digits)} ms"
    interval = milliseconds_interval(_p50_ends(best), digits=digits)
    accuracy = f"{percent(best['miou'])} % mIoU" if best.get("miou") is not None else "mIoU not measured"
    boundary = f", {percent(best['boundary_iou'])} % Boundary IoU" if best.get("boundary_iou") is not None else ""
    detail = f"{label} on {best.get('target') or '?'}"
    detail += f" (95 % interval in ms: {interval})" if interval else " (its interval is not known)"
    detail += f", with {accuracy}{boundary}."
    sentence = f"The lowest p50, {latency} a frame, is that of {label}, with {accuracy}"
    level = _level_with(engines, best)
    if level:
        detail += (
            f" Level with {', '.join(level)}, whose {'interval overlaps' if len(level) == 1 else 'intervals overlap'}."
        )
        sentence += f", level with {', '.join(level)}"
    if (best.get("latency_ms") or {}).get("warnings"):
        detail += " Something disturbed the measurement: see its notes under Latency."
        return VerdictTile("open", title, latency, detail, f"{sentence}, measured on a machine that was not quiet.")
    return VerdictTile("plain", title, latency, detail, f"{sentence}.")


def _level_with(engines: Sequence[Mapping[str, Any]], best: Mapping[str, Any]) -> list[str]:
    """Name the other engines that could have been chosen and whose p50 has an interval that overlaps with the best's.

    The sessions were not paired, so this is no verdict on which one is faster, only on what they cannot show.
    """
    ends = _p50_ends(best)
    low, high = ends or (p50_ms(best), p50_ms(best))
    candidates = _candidates(engines)
    found = []
    for label, engine in zip(engine_labels(engines), engines, strict=True):
        others = _p50_ends(engine)
        if engine is best or others is None or not any(engine is candidate for candidate in candidates):
            continue
        # an end that is not known excludes nothing
        if (high is None or others[0] is None or others[0] <= high) and (others[1] is None or (low or 0) <= others[1]):
            found.append(label)
    return found


def _p50_ends(engine: Mapping[str, Any]) -> Sequence[float | None] | None:
    found: Sequence[float | None] | None = ((engine.get("latency_ms") or {}).get("intervals") or {}).get("p50")
    return found


def _gates_tile(engines: Sequence[Mapping[str, Any]]) -> VerdictTile:
    title, labels = "Gates", engine_labels(engines)
    held = [engine for engine in engines if engine.get("status") in ("measured", "built") or engine.get("gates_broken")]
    missed = [label for label, engine in zip(labels, engines, strict=True) if engine.get("gates_broken")]
    if missed:
        count = f"{len(missed)} of {len(held)} engines"
        detail = f"{', '.join(missed)}: not bundled; the table says which gate and by how much."
        return VerdictTile(
            "bad", title, "Not held", detail, f"{count} {'misses' if len(missed) == 1 else 'miss'} a gate."
        )
    if not held:
        return VerdictTile(
            "open", title, "Not measured", "No engine was built.", "No engine could be held to its gates."
        )
    measured = sum(engine.get("status") == "measured" for engine in held)
    detail = f"{measured} measured {'engine holds all of its' if measured == 1 else 'engines hold all of their'} gates."
    if measured < len(held):
        detail += " Engines that do not run here are held to their size, int8 to its graph's accuracy too."
    limits = [
        {name: limit for name, limit in (engine.get("gates") or {}).items() if name != "uncertain"} for engine in held
    ]
    if all(found == limits[0] for found in limits):
        detail += f" Limits: {', '.join(f'{name} {limit:g}' for name, limit in limits[0].items())}."
    return VerdictTile("good", title, "Held", detail, "All gates held.")


def _teacher_tile(student: Mapping[str, Any], teacher: Mapping[str, Any]) -> VerdictTile:
    tile = _gap_tile(student, teacher, "teacher", "The student", "its teacher")
    difference, lost = gap(student, teacher, "miou"), (teacher.get("lost") or {}).get("miou")
    if difference is None or difference <= 0 or (lost is not None and lost["low"] <= 0):
        return tile
    advice = (
        " A teacher below its student has little to teach: train it longer; or, if it was given, see whether its "
        "classes have the order of the data set's, and whether data.mean and data.std are those it was trained with."
    )
    return replace(tile, tone="open", detail=tile.detail + advice)


def _gap_tile(
    student: Mapping[str, Any], other: Mapping[str, Any], name: str, subject: str, called: str
) -> VerdictTile:
    title, difference = f"Student against {name}", gap(student, other, "miou")
    if difference is None:
        detail = "The mIoU of one of the two is missing."
        return VerdictTile("open", title, "Not measured", detail, f"{subject} was not compared with {called}.")
    # what the other one loses against the student, image by image
    lost = (other.get("lost") or {}).get("miou")
    ends = "not known" if lost is None else f"{points(lost['low'])} to {points(lost['high'])}"
    parts = [
        f"95 % interval of the difference {ends}",
        f"mIoU {percent(student['miou'])} % against {percent(other['miou'])} %",
    ]
    boundary, paired = gap(student, other, "boundary_iou"), (other.get("lost") or {}).get("boundary_iou")
    if boundary is not None:
        ends = "" if paired is None else f" ({points(paired['low'])} to {points(paired['high'])})"
        parts.append(f"Boundary IoU {points(boundary)} points{ends}")
    detail = ", ".join(parts)
    shares = [
        f"{100 * float(student[key]) / float(other[key]):.0f} % of its {noun}"
        for key, noun in (("params", "parameters"), ("macs", "MACs"))
        if student.get(key) and other.get(key)
    ]
    if shares:
        detail += "; " + ", ".join(shares)
    size = f"{abs(100 * difference):.1f}"
    side = "above" if difference > 0 else "below"
    place = f"{size} points of mIoU {side}" if size != "0.0" else "level in mIoU with"
    sentence = f"{subject} is {place} {called}"
    if lost is not None and lost["low"] <= 0 <= lost["high"] and size != "0.0":
        sentence += ", which may be chance: the interval holds 0"
    return VerdictTile("plain", title, f"{points(difference)} points", f"{detail}.", f"{sentence}.")
