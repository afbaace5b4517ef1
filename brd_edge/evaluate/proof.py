"""What a benchmark's zero-cost proof comes to: graphs, and engine by engine size, layers and latency."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

__all__ = ["Check", "EngineProof", "Proof", "judge_cost", "judge_proof"]

Check = Literal["equal", "different", "undecided", "not checked"]


@dataclass(frozen=True)
class EngineProof:
    """An engine against the undistilled student's, built alike.

    Attributes:
        name: The engine.
        structure: Whether size and executed layers are equal.
        layers: Number of layers that the runtime executes; None where it cannot tell.
        latency: Whether latency is equivalent.
        ratio: The ratio of latency and the ends of its 95 % interval, or None.
        verdict: The session's words on latency, such as `"equivalent within ±1 %"`, or an empty text.
        pairs: Number of paired ratios.
        notes: What differs, what was not compared and why, and what may have disturbed the session.
    """

    name: str
    structure: Check
    layers: int | None
    latency: Check
    ratio: tuple[float, float, float] | None
    verdict: str
    pairs: int
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Proof:
    """The zero-cost proof.

    Attributes:
        held: False as soon as one comparison found a difference; else None where one of the graphs' is missing, or
            where an engine's latency was compared and is undecided.
        checks: The comparisons of the graphs, with what came of each.
        engines: The comparisons of the engines.
        nodes: Number of nodes of the graph, or None.
        differences: What differs between the graphs, a sentence each.
    """

    held: bool | None
    checks: tuple[tuple[str, Check], ...]
    engines: tuple[EngineProof, ...]
    nodes: int | None
    differences: tuple[str, ...]


def judge_proof(found: Mapping[str, Any] | None) -> Proof:
    """Judge the `zero_cost` entry of `benchmark.json`: held only where the graphs were compared and nothing differs.

    An engine that could not be compared, such as one that does not run here, does not break the proof; it is told.
    One whose latency is undecided leaves it open.
    """
    found = found or {}
    checks = (
        ("Exported graphs are equal, node for node", _check(found.get("equal"))),
        ("Numbers of parameters are equal", _check(found.get("params_equal"))),
        ("Numbers of multiply-accumulates (MACs) are equal", _check(found.get("macs_equal"))),
    )
    engines = tuple(_judge_engine(entry) for entry in found.get("engines") or ())
    results = [result for _, result in checks] + [
        item for engine in engines for item in (engine.structure, engine.latency)
    ]
    open_ = "not checked" in results[: len(checks)] or "undecided" in results
    held = False if "different" in results else None if open_ else True
    return Proof(held, checks, engines, found.get("nodes"), tuple(found.get("differences") or ()))


def judge_cost(verdict: str, interval: tuple[float, float], *, margin: float) -> Check:
    """Judge whether an engine costs what the undistilled one does.

    Where many engines are compared, one is found slower or faster by a hair now and then. Neither "equal" nor
    "different" is said of what is not certain: the first needs the verdict `equivalent`, the second an interval
    that lies beyond the margin as a whole. Faster is not what was claimed either: it would mean that the session
    measured something else.

    Args:
        verdict: Of the session that compared both.
        interval: Ends of the ratio's 95 % interval.
        margin: Largest difference that counts as none, as a share.
    """
    if verdict == "equivalent":
        return "equal"
    beyond = interval[0] > 1 + margin or interval[1] < 1 - margin
    return "different" if beyond and verdict != "undecided" else "undecided"


def _check(equal: bool | None) -> Check:
    return "not checked" if equal is None else "equal" if equal else "different"


def _judge_engine(entry: Mapping[str, Any]) -> EngineProof:
    reason = (entry["reason"],) if entry["reason"] else ()
    if "size_bytes" not in entry:
        return EngineProof(entry["name"], "not checked", None, "not checked", None, "", 0, reason)
    differences = tuple(entry["differences"])
    layers = None if entry["layers"] is None else int(entry["layers"][0])
    structure = _check(not differences)
    if entry["latency"] is None:
        return EngineProof(entry["name"], structure, layers, "not checked", None, "", 0, (*differences, *reason))
    comparison = entry["latency"]["comparison"]
    ratio = comparison["ratio"]
    verdict, within = comparison["verdict"], f"within ±{100 * comparison['margin']:g} %"
    latency = judge_cost(verdict, (ratio["low"], ratio["high"]), margin=comparison["margin"])
    return EngineProof(
        name=entry["name"],
        structure=structure,
        layers=layers,
        latency=latency,
        ratio=(ratio["value"], ratio["low"], ratio["high"]),
        verdict=f"{verdict} {within}" if verdict == "equivalent" else verdict,
        pairs=comparison["pairs"],
        notes=(*differences, *reason, *_timed(entry), *entry["latency"]["warnings"], *_control(entry["latency"])),
    )


def _timed(entry: Mapping[str, Any]) -> tuple[str, ...]:
    if entry.get("latency_of") != "engine alone":
        return ()
    return ("timed without the class map from its logits, which takes as long as the picture has boundaries",)


def _control(session: Mapping[str, Any]) -> tuple[str, ...]:
    if "control" not in session:
        return ()
    ratio = session["control"]["ratio"]
    return (
        f"control, the undistilled one against itself: {ratio['value']:.3f}, {ratio['low']:.3f} to {ratio['high']:.3f}",
    )
