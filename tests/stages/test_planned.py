"""Engines that a device builds: what is known of their graph decides whether their plan is bundled."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from brd_edge.evaluate.planned import graph_gates, is_planned
from brd_edge.recipe import load_recipe
from brd_edge.run import Run
from brd_edge.stages import benchmark
from brd_edge.stages.bundle import left_out

QUICKSTART = Path(__file__).parents[2] / "pipelines" / "quickstart.yaml"


def make_entry(points: float | None, **changes: Any) -> dict[str, Any]:
    value = 0 if points is None else points / 100
    lost = None if points is None else {"miou": {"value": value, "low": value, "high": value, "confidence": 0.95}}
    entry = {
        **{"name": "tensorrt-int8-jetson-orin", "runtime": "tensorrt", "precision": "int8", "target": "jetson-orin"},
        **{"status": "skipped", "reason": "it is built on the device", "size_bytes": None, "runtime_version": None},
        **{"batch_max": 1, "graph": "graphs/tensorrt-int8-jetson-orin/0/student.onnx", "agreement": {"A": 0.97}},
        "attempts": [{"kept": [], "lost": lost, "missed": []}],
    }
    return {**entry, **changes}


@pytest.mark.parametrize(
    ("entry", "broken", "bundled"),
    [
        (make_entry(0.4), 0, True),
        (make_entry(0.6), 1, False),
        (make_entry(None), 0, True),
        # its graph could not be had, so there is nothing to build from
        (make_entry(None, graph=None, attempts=[]), 0, False),
        (make_entry(0.6, target="rtx"), 0, False),
    ],
    ids=["held", "missed", "no gate asked", "no graph", "not for a device"],
)
def test_a_plan_is_held_to_what_its_graph_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, entry: dict[str, Any], broken: int, bundled: bool
) -> None:
    recipe = load_recipe(QUICKSTART, overrides=["gates={miou_drop_max: 0.5, size_bytes_max: 1}"])
    context: Any = SimpleNamespace(
        recipe=recipe, run=Run(tmp_path), inputs={"build": SimpleNamespace(result={"engines": [entry]})}
    )
    monkeypatch.setattr(benchmark, "read_frame", lambda _sample, _contract: None)
    validation: Any = SimpleNamespace(dataset=SimpleNamespace(val=[None]), contract=None, timed=[0])
    (measured,), costs = benchmark._measure_all(context, validation)

    assert costs == []
    assert len(measured["gates_broken"]) == broken
    assert all(line.startswith("miou_drop_max: lost 0.60 points") for line in measured["gates_broken"])
    assert (left_out(measured) is None) == bundled
    assert is_planned(entry) == (entry["target"] == "jetson-orin" and entry["graph"] is not None)
    if broken:
        assert "its graph as executed here by A" in (left_out(measured) or "")


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        (make_entry(0.4), "held"),
        (make_entry(0.6, gates_broken=["miou_drop_max: lost 0.60 points, the limit is 0.5"]), "missed"),
        # another gate says nothing of what the graph loses
        (make_entry(0.4, gates_broken=["size_bytes_max: 2 bytes, the limit is 1"]), "held"),
        # what the engine itself lost is known
        (make_entry(0.4, latency_ms={"p50": 1.0}), None),
        (make_entry(0.4, gates={"size_bytes_max": 1, "uncertain": "broken"}), None),
        (make_entry(None), None),
        (make_entry(0.4, attempts=[]), None),
    ],
    ids=["held", "missed", "another missed", "measured", "no gate of accuracy", "not known", "no graph"],
)
def test_only_the_graph_of_an_engine_that_was_not_measured_is_judged(
    entry: dict[str, Any], expected: str | None
) -> None:
    assert graph_gates({"gates": {"miou_drop_max": 0.5, "uncertain": "broken"}, **entry}) == expected
