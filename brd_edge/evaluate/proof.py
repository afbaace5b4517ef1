"""What a benchmark's zero-cost proof comes to: graphs, and engine by engine size, layers and latency."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
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
        verdict: Latency in words, such as `"equivalent within ±1 %"`, with the 90 % interval that was judged where it
            is slower or faster; an empty text where nothing was timed.
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
        held: False as soon as one comparison found a difference; else None where one is missing: of the graphs, of a
            built engine, of the latency of any engine at all; or where an engine's latency is undecided.
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

    @property
    def compared(self) -> tuple[EngineProof, ...]:
        """The engines whose size and layers were compared."""
        return tuple(engine for engine in self.engines if engine.structure != "not checked")

    @property
    def timed(self) -> tuple[EngineProof, ...]:
        """The engines whose latency was compared."""
        return tuple(engine for engine in self.engines if engine.ratio is not None)


def judge_proof(found: Mapping[str, Any] | None) -> Proof:
    """Judge the `zero_cost` entry of `benchmark.json`, which has an entry for every engine that was built.

    It is held only where the graphs and every engine were compared and nothing differs. An engine whose comparison
    failed, or that has no undistilled counterpart, leaves it open, and so does one whose latency is undecided. An
    engine that does not run here is compared in size, and in layers where its runtime can tell; that is told, and
    is enough where at least one other engine was timed.
    """
    found = found or {}
    checks = (
        ("Exported graphs are equal, node for node", _check(found.get("equal"))),
        ("Numbers of parameters are equal", _check(found.get("params_equal"))),
        ("Numbers of multiply-accumulates (MACs) are equal", _check(found.get("macs_equal"))),
    )
    engines = tuple(_judge_engine(entry) for entry in found.get("engines") or ())
    proof = Proof(None, checks, engines, found.get("nodes"), tuple(found.get("differences") or ()))
    results = [result for _, result in checks] + [
        item for engine in engines for item in (engine.structure, engine.latency)
    ]
    missing = "not checked" in results[: len(checks)] or len(proof.compared) < len(engines) or not proof.timed
    held = False if "different" in results else None if missing or "undecided" in results else True
    return replace(proof, held=held)


def judge_cost(verdict: str, interval: tuple[float, float], *, margin: float) -> Check:
    """Judge whether an engine costs what the undistilled one does.

    Both answers are judged at the same level. "equal" needs the verdict `equivalent`: two one-sided tests at 5 %
    place the ratio within the margin, which is to say that the 90 % interval lies within. "different" is said where
    that interval lies beyond the margin as a whole: one of these tests at 5 % the other way round. Faster is not what
    was claimed either: it would mean that the session measured something else.

    Args:
        verdict: Of the session that compared both; nothing is concluded from one that is `undecided`.
        interval: Ends of the ratio's 90 % interval.
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
    inner = comparison["equivalence"]
    latency = judge_cost(comparison["verdict"], (inner["low"], inner["high"]), margin=comparison["margin"])
    return EngineProof(
        name=entry["name"],
        structure=structure,
        layers=layers,
        latency=latency,
        ratio=(ratio["value"], ratio["low"], ratio["high"]),
        verdict=_in_words(comparison, latency),
        pairs=comparison["pairs"],
        notes=(*differences, *reason, *_timed(entry), *entry["latency"]["warnings"], *_control(entry["latency"])),
    )


def _in_words(comparison: Mapping[str, Any], judged: Check) -> str:
    """Say what came of a comparison of latencies, such as `slower by 1.4 % [1.0, 1.7]; not within ±1 %`."""
    verdict, inner, margin = comparison["verdict"], comparison["equivalence"], f"±{100 * comparison['margin']:g} %"
    if verdict not in ("slower", "faster"):
        return f"{verdict} within {margin}" if verdict == "equivalent" else str(verdict)
    low, value, high = sorted(abs(100 * (inner[key] - 1)) for key in ("low", "value", "high"))
    certain = "not within" if judged == "different" else "perhaps within"
    return f"{verdict} by {value:.1f} % [{low:.1f}, {high:.1f}]; {certain} {margin}"


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
