"""Gates: what is above its limit, what may be, and what was not measured."""

from __future__ import annotations

from typing import Any

import pytest

from brd_edge.evaluate.gates import Limits, broken_gates, gate_excess, present_limits


def make_engine(**changes: Any) -> dict[str, Any]:
    lost = {"value": 0.003, "low": 0.001, "high": 0.006, "confidence": 0.95}
    latency = {"p95": 10.0, "intervals": {"p95": [9.5, 11.0]}}
    engine = {"size_bytes": 1000, "latency_ms": latency, "lost": {"miou": lost, "boundary_iou": lost}}
    return {**engine, **changes}


def make_cost(value: float, high: float) -> dict[str, Any]:
    return {"latency": {"comparison": {"ratio": {"value": value, "low": 0.9, "high": high}}}}


def test_all_hold_with_room() -> None:
    limits = Limits(1.0, 1.0, 12.0, 1000, 2.0)
    assert broken_gates(limits, engine=make_engine(), cost=make_cost(1.0, 1.01)) == []
    assert broken_gates(Limits(), engine=make_engine()) == []


@pytest.mark.parametrize(
    ("limits", "line"),
    [
        (Limits(miou_drop_max=0.2), "miou_drop_max: lost 0.30 points, the limit is 0.2"),
        (Limits(boundary_iou_drop_max=0.1), "boundary_iou_drop_max: lost 0.30 points, the limit is 0.1"),
        (Limits(latency_ms_p95_max=9), "latency_ms_p95_max: p95 is 10.0 ms, the limit is 9"),
        (Limits(size_bytes_max=999), "size_bytes_max: 1,000 bytes, the limit is 999"),
        (
            Limits(added_cost_max_percent=2),
            "added_cost_max_percent: 3.00 % slower than the undistilled engine, the limit is 2",
        ),
    ],
)
def test_what_is_above_its_limit(limits: Limits, line: str) -> None:
    assert broken_gates(limits, engine=make_engine(), cost=make_cost(1.03, 1.04)) == [line]


def test_a_limit_within_the_interval_is_not_held_unless_wanted() -> None:
    limits: dict[str, Any] = {"miou_drop_max": 0.5, "latency_ms_p95_max": 10.5, "added_cost_max_percent": 1}
    assert broken_gates(Limits(**limits), engine=make_engine(), cost=make_cost(1.005, 1.02)) == [
        "miou_drop_max: lost 0.30 points, but up to 0.60 within the 95 % interval, the limit is 0.5",
        "latency_ms_p95_max: p95 is 10.0 ms, but up to 11.00 within the 95 % interval, the limit is 10.5",
        "added_cost_max_percent: 0.50 % slower than the undistilled engine, but up to 2.00 within the 95 % interval, "
        "the limit is 1",
    ]
    assert broken_gates(Limits(**limits, uncertain="held"), engine=make_engine(), cost=make_cost(1.005, 1.02)) == []


@pytest.mark.parametrize("verdict", ["slower", "faster"])
@pytest.mark.parametrize("ratio", [0.99, 1.03])
def test_a_session_whose_control_differs_from_itself_says_nothing_of_added_cost(ratio: float, verdict: str) -> None:
    limits = {"added_cost_max_percent": 2.0}
    cost = make_cost(ratio, ratio + 0.005)
    cost["latency"]["control"] = {"verdict": verdict}
    assert broken_gates(Limits(**limits), engine=make_engine(), cost=cost) == [
        f"added_cost_max_percent: the undistilled engine was {verdict} than itself, so nothing can be concluded, "
        "the limit is 2"
    ]
    assert broken_gates(Limits(**limits, uncertain="held"), engine=make_engine(), cost=cost) == []
    assert gate_excess(Limits(**limits), engine=make_engine(), cost=cost) == {}
    cost["latency"]["control"] = {"verdict": "equivalent"}
    assert len(broken_gates(Limits(**limits), engine=make_engine(), cost=cost)) == (ratio > 1)


def test_only_limits_that_there_are_are_written_down() -> None:
    assert present_limits(Limits(miou_drop_max=0.0)) == {"miou_drop_max": 0.0, "uncertain": "broken"}


def test_what_could_not_be_measured_is_not_held() -> None:
    limits = Limits(miou_drop_max=0.5, added_cost_max_percent=1)
    assert broken_gates(limits, engine=make_engine(lost=None)) == [
        "miou_drop_max: could not be measured, the limit is 0.5",
        "added_cost_max_percent: could not be measured, the limit is 1",
    ]


def test_an_engine_that_was_only_built_is_held_to_its_size() -> None:
    limits = Limits(0.1, 0.1, 1.0, 999, 0.1)
    assert len(broken_gates(limits, engine=make_engine(latency_ms=None, lost=None))) == 1


@pytest.mark.parametrize("size_bytes", [1000, None], ids=["built", "planned"])
def test_what_the_graph_of_an_unmeasured_engine_is_known_to_lose_counts(size_bytes: int | None) -> None:
    lost = {"value": 0.008, "low": 0.007, "high": 0.009}
    attempts = [{"kept": [], "lost": {"miou": {**lost, "high": 0.2}}}, {"kept": ["head"], "lost": {"miou": lost}}]
    engine = make_engine(
        latency_ms=None,
        lost=None,
        size_bytes=size_bytes,
        attempts=attempts,
        agreement={"A node by node": 0.9, "B": 1.0},
    )
    limits = Limits(miou_drop_max=0.5, latency_ms_p95_max=1.0, size_bytes_max=1000)
    assert broken_gates(limits, engine=engine) == [
        "miou_drop_max: lost 0.80 points, the limit is 0.5 "
        "(its graph as executed here by A node by node; the engine itself was not measured)"
    ]
    assert broken_gates(Limits(miou_drop_max=1.0), engine=engine) == []
    # without gates of accuracy nothing was lost, because nobody looked
    assert broken_gates(limits, engine={**engine, "attempts": [{"kept": [], "lost": None}]}) == []
    # what was measured counts, not what its graph was thought to lose
    measured = make_engine(attempts=attempts, lost={"miou": {"value": 0.001, "low": 0.0, "high": 0.002}})
    assert broken_gates(Limits(miou_drop_max=0.5), engine=measured) == []


def test_a_value_without_an_upper_end_is_not_held_unless_wanted() -> None:
    engine = make_engine(latency_ms={"p95": 10.0, "intervals": {"p95": [9.5, None]}})
    assert broken_gates(Limits(latency_ms_p95_max=12), engine=engine) == [
        "latency_ms_p95_max: p95 is 10.0 ms, but the samples are too few to tell how much more it may be "
        "(raise benchmark.budget_s), the limit is 12"
    ]
    assert broken_gates(Limits(latency_ms_p95_max=12, uncertain="held"), engine=engine) == []
    assert len(broken_gates(Limits(latency_ms_p95_max=9, uncertain="held"), engine=engine)) == 1
