"""What the report says first."""

from __future__ import annotations

from typing import Any

import pytest

from brd_edge.evaluate.proof import judge_proof
from brd_edge.evaluate.report.verdict import best_engine, verdict


def an_engine(name: str, p50: float | None, miou: float | None) -> dict[str, Any]:
    latency = None if p50 is None else {"p50": p50}
    return {"runtime": name, "precision": "fp32", "target": "cpu", "latency_ms": latency, "miou": miou}


@pytest.mark.parametrize(
    ("engines", "best"),
    [
        ([("accurate", 40, 0.60), ("near", 30, 0.595), ("collapsed", 10, 0.40)], "near"),
        ([("slow", 40, None), ("fast", 30, None)], "fast"),
        ([("untested", 5, None), ("tested", 30, 0.5)], "tested"),
        ([("untimed", None, 0.9), ("timed", 30, 0.5)], "timed"),
        ([("untimed", None, 0.9)], None),
        ([], None),
    ],
)
def test_best_engine_is_fast_but_not_at_the_cost_of_accuracy(
    engines: list[tuple[str, float | None, float | None]], best: str | None
) -> None:
    found = best_engine([an_engine(*engine) for engine in engines])
    assert (found["runtime"] if found else None) == best


@pytest.mark.parametrize(
    ("equal", "params", "macs", "held"),
    [
        (True, True, True, True),
        (True, True, False, False),
        (False, None, None, False),
        (True, True, None, None),
        (None, None, None, None),
    ],
)
def test_proof_is_held_only_where_everything_was_compared(
    equal: bool | None, params: bool | None, macs: bool | None, held: bool | None
) -> None:
    found = {"equal": equal, "params_equal": params, "macs_equal": macs, "nodes": 97, "differences": []}
    proof = {**found, "engines": [compared("equivalent", 0.995, 1.005)]}
    assert judge_proof(proof).held is held
    tone = {True: "good", False: "bad", None: "open"}[held]
    assert verdict({"zero_cost": proof})[0].tone == tone
    # graphs alone prove nothing about engines
    assert judge_proof(found).held is (False if held is False else None)


def compared(found: str, low: float, high: float, name: str = "a") -> dict[str, Any]:
    """An engine's entry of a session whose 90 % interval is given."""
    value = (low + high) / 2
    inner = {"value": value, "low": low, "high": high, "confidence": 0.9}
    ratio = {"value": value, "low": low - 0.001, "high": high + 0.001, "confidence": 0.95}
    comparison = {"verdict": found, "ratio": ratio, "equivalence": inner, "margin": 0.01, "pairs": 80}
    engine = {"name": name, "reason": "", "size_bytes": [1, 1], "layers": [7, 7], "differences": []}
    return {**engine, "latency": {"comparison": comparison, "warnings": []}}


GRAPH = {"equal": True, "params_equal": True, "macs_equal": True, "nodes": 97, "differences": []}
ELSEWHERE = {
    **{"name": "b", "reason": "not timed: it does not run here", "size_bytes": [1, 1], "layers": None},
    **{"differences": [], "latency": None},
}


@pytest.mark.parametrize(
    ("found", "low", "high", "held", "value", "words"),
    [
        ("undecided", 0.97, 1.03, None, "Latency undecided", "a (undecided) is open"),
        ("equivalent", 0.995, 1.005, True, "Held", "in latency 1, of which 1 is equivalent, 1 in size alone."),
        ("equivalent", 1.001, 1.009, True, "Held", "2 of 2 engines compared"),
        ("slower", 1.011, 1.03, False, "Not held", "a: slower by 2.0 % [1.1, 3.0]; not within ±1 %."),
        # as measured once: the 95 % interval, from 1.0095, is not beyond the margin as a whole
        ("slower", 1.0102, 1.0165, False, "Not held", "a: slower by 1.3 % [1.0, 1.6]; not within ±1 %."),
        ("slower", 1.002, 1.03, None, "Latency undecided", "a (slower by 1.6 % [0.2, 3.0]; perhaps within ±1 %)"),
        ("faster", 0.9, 0.98, False, "Not held", "a: faster by 6.0 % [2.0, 10.0]; not within ±1 %."),
        # the control differed from itself
        ("undecided", 1.02, 1.03, None, "Latency undecided", "a (undecided) is open"),
    ],
)
def test_latency_is_judged_on_the_interval_of_the_equivalence_test(
    found: str, low: float, high: float, held: bool | None, value: str, words: str
) -> None:
    proof = {**GRAPH, "engines": [compared(found, low, high), ELSEWHERE]}
    assert judge_proof(proof).held is held
    tile = verdict({"zero_cost": proof})[0]
    assert tile.value == value
    assert words in tile.detail


@pytest.mark.parametrize(
    ("engines", "words"),
    [
        ([], "0 of 0 engines compared"),
        ([ELSEWHERE], "1 of 1 engines compared, in latency 0"),
        ([compared("equivalent", 0.999, 1.001), {"name": "c", "reason": "RuntimeError: boom"}], "not compared: c."),
        ([{"name": "c", "reason": "the undistilled student's engine was not built"}], "0 of 1 engines compared"),
    ],
)
def test_an_engine_that_was_not_compared_leaves_the_proof_open(engines: list[dict[str, Any]], words: str) -> None:
    proof = {**GRAPH, "engines": engines}
    assert judge_proof(proof).held is None
    tile = verdict({"zero_cost": proof})[0]
    assert (tile.tone, tile.value) == ("open", "Not proven")
    assert words in tile.detail


def test_gap_has_its_sign_and_an_equal_model_is_level() -> None:
    student = {"miou": 0.6, "boundary_iou": 0.4, "params": 1e6, "macs": 1e9}
    teacher = {"miou": 0.7, "boundary_iou": 0.5, "params": 4e6, "macs": 8e9}
    tiles = verdict({"student": student, "teacher": teacher, "compared": {"name": "plain", "miou": 0.6003}})
    assert [tile.value for tile in tiles[2:]] == ["−10.0 points", "±0.0 points"]  # noqa: RUF001
    assert tiles[2].detail == (
        "95 % interval of the difference not known, mIoU 60.0 % against 70.0 %, "
        "Boundary IoU −10.0 points; 25 % of its parameters, 12 % of its MACs."  # noqa: RUF001
    )
    assert tiles[3].sentence == "It is level in mIoU with “plain”."


@pytest.mark.parametrize(("low", "tone"), [(0.02, "open"), (-0.01, "plain")])
def test_a_teacher_below_its_student_is_questioned_unless_it_may_be_chance(low: float, tone: str) -> None:
    lost = {"value": 0.05, "low": low, "high": 0.08, "confidence": 0.95}
    tile = verdict({"student": {"miou": 0.5}, "teacher": {"miou": 0.45, "lost": {"miou": lost}}})[2]
    assert tile.tone == tone
    assert ("has little to teach" in tile.detail) == (tone == "open")


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [
        (-0.12, -0.08, "below its teacher."),
        (-0.22, 0.02, "below its teacher, which may be chance: the interval holds 0."),
    ],
)
def test_gap_has_its_paired_interval(low: float, high: float, words: str) -> None:
    lost = {"value": -0.1, "low": low, "high": high, "confidence": 0.95}
    teacher = {"miou": 0.7, "boundary_iou": 0.5, "lost": {"miou": lost, "boundary_iou": lost}}
    tile = verdict({"student": {"miou": 0.6, "boundary_iou": 0.4}, "teacher": teacher})[2]
    ends = f"{100 * low:+.1f} to {100 * high:+.1f}".replace("-", "−")  # noqa: RUF001
    assert tile.detail == (
        f"95 % interval of the difference {ends}, mIoU 60.0 % against 70.0 %, Boundary IoU −10.0 points ({ends})."  # noqa: RUF001
    )
    assert tile.sentence == f"The student is 10.0 points of mIoU {words}"


@pytest.mark.parametrize(
    ("ends", "level", "shown"),
    [
        (([9.9, 10.1], [10.0, 10.4]), True, "95 % interval in ms: 9.9 to 10.1"),
        (([9.9, 10.1], [10.2, 10.4]), False, "95 % interval in ms: 9.9 to 10.1"),
        # an end that is not known excludes nothing
        (([9.9, None], [10.2, 10.4]), True, "95 % interval in ms: from 9.9"),
        ((None, [10.2, 10.4]), False, "its interval is not known"),
        (([9.9, 10.1], None), False, "95 % interval in ms: 9.9 to 10.1"),
    ],
)
def test_lowest_p50_has_its_interval_and_names_what_is_level(
    ends: tuple[list[float] | None, list[float] | None], level: bool, shown: str
) -> None:
    engines = [an_engine(name, p50, 0.6) for name, p50 in (("fast", 10.0), ("near", 10.3), ("inaccurate", 10.0))]
    for engine, found in zip(engines, [*ends, [1.0, 20.0]], strict=True):
        engine["latency_ms"]["intervals"] = {"p50": found}
    engines[2]["miou"] = 0.4  # could not have been chosen, so that it is no rival
    tile = verdict({"engines": engines})[1]
    assert (tile.title, tile.value) == ("Lowest p50", "10.0 ms")
    assert shown in tile.detail
    assert ("Level with near fp32, whose interval overlaps." in tile.detail) is level
    assert ("level with near fp32" in tile.sentence) is level
    assert "inaccurate" not in tile.detail


def test_an_engine_that_misses_a_gate_is_not_the_best() -> None:
    fast, slow = an_engine("fast", 10, 0.6), an_engine("slow", 20, 0.6)
    assert best_engine([{**fast, "gates_broken": ["size_bytes_max"]}, slow]) is slow
    both = [{**engine, "gates_broken": ["size_bytes_max"]} for engine in (fast, slow)]
    assert best_engine(both) is None


@pytest.mark.parametrize(
    ("broken", "status", "tone", "words"),
    [
        ([], "measured", "good", "1 measured engine holds all of its gates."),
        (["miou_drop_max: lost 2.00 points"], "measured", "bad", "fast fp32: not bundled"),
        ([], "skipped", "open", "No engine was built."),
        (["miou_drop_max: lost 2.00 points"], "skipped", "bad", "fast fp32: not bundled"),
    ],
)
def test_gates_are_told(broken: list[str], status: str, tone: str, words: str) -> None:
    engine = {**an_engine("fast", 10, 0.6), "status": status, "gates_broken": broken, "gates": {"miou_drop_max": 1}}
    tile = verdict({"engines": [engine]})[3]
    assert (tile.title, tile.tone) == ("Gates", tone)
    assert tile.detail.startswith(words)
    if tone == "bad":
        assert tile.sentence == "1 of 1 engines misses a gate."
    if tone == "good":
        assert tile.detail.endswith("Limits: miou_drop_max 1.")
    without = verdict({"engines": [{**engine, "gates": {"uncertain": "broken"}}]})
    assert len(without) == 3
