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
    assert judge_proof(found).held is held
    tone = {True: "good", False: "bad", None: "open"}[held]
    assert verdict({"zero_cost": found})[0].tone == tone


def test_a_latency_that_is_undecided_leaves_the_proof_open() -> None:
    engine = {"name": "a", "reason": "", "size_bytes": [1, 1], "layers": [7, 7], "differences": []}
    elsewhere = {**engine, "name": "b", "reason": "not timed: it does not run here", "latency": None}
    graph = {"equal": True, "params_equal": True, "macs_equal": True, "nodes": 97, "differences": []}
    for found, low, high, held, value in (
        ("undecided", 0.97, 1.03, None, "Latency undecided"),
        ("equivalent", 0.995, 1.005, True, "Held"),
        ("equivalent", 1.001, 1.009, True, "Held"),
        ("slower", 1.011, 1.03, False, "Not held"),
        ("slower", 1.001, 1.03, None, "Latency undecided"),
        ("faster", 0.9, 0.98, False, "Not held"),
        # the control differed from itself
        ("undecided", 1.02, 1.03, None, "Latency undecided"),
    ):
        ratio = {"value": (low + high) / 2, "low": low, "high": high, "confidence": 0.95}
        comparison = {"verdict": found, "ratio": ratio, "margin": 0.01, "pairs": 80}
        timed = {**engine, "latency": {"comparison": comparison, "warnings": []}}
        proof = {**graph, "engines": [timed, elsewhere]}
        assert judge_proof(proof).held is held
        assert verdict({"zero_cost": proof})[0].value == value


def test_gap_has_its_sign_and_an_equal_model_is_level() -> None:
    student = {"miou": 0.6, "boundary_iou": 0.4, "params": 1e6, "macs": 1e9}
    teacher = {"miou": 0.7, "boundary_iou": 0.5, "params": 4e6, "macs": 8e9}
    tiles = verdict({"student": student, "teacher": teacher, "compared": {"name": "plain", "miou": 0.6003}})
    assert [tile.value for tile in tiles[2:]] == ["−10.0 points", "±0.0 points"]  # noqa: RUF001
    assert tiles[2].detail == (
        "mIoU 60.0 % against 70.0 %, Boundary IoU −10.0 points; 25 % of its parameters, 12 % of its MACs."  # noqa: RUF001
    )
    assert tiles[3].sentence == "It is level in mIoU with “plain”."


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
    ],
)
def test_gates_are_told(broken: list[str], status: str, tone: str, words: str) -> None:
    engine = {**an_engine("fast", 10, 0.6), "status": status, "gates_broken": broken, "gates": {"miou_drop_max": 1}}
    tile = verdict({"engines": [engine]})[3]
    assert (tile.title, tile.tone) == ("Gates", tone)
    assert tile.detail.startswith(words)
    if tone == "good":
        assert tile.detail.endswith("Limits: miou_drop_max 1.")
    without = verdict({"engines": [{**engine, "gates": {"uncertain": "broken"}}]})
    assert len(without) == 3
