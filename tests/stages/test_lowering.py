"""Which graph an engine of lower precision ends with, as it is judged by the runtime that will run it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from brd_edge.recipe import Recipe, load_recipe
from brd_edge.run import Run
from brd_edge.stages import lowering
from brd_edge.stages.lowering import Bench, lowered_graphs

QUICKSTART = Path(__file__).parents[2] / "pipelines" / "quickstart.yaml"


def make_bench(directory: Path, *settings: str) -> Bench:
    recipe: Recipe = load_recipe(QUICKSTART, overrides=settings)
    return Bench(SimpleNamespace(recipe=recipe, run=Run(directory), say=lambda _line: None))  # type: ignore[arg-type]


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """Graphs are empty files; returns what each was made with."""
    made: list[tuple[str, ...]] = []

    def lower_graph(source: Path, directory: Path, *, exclude: tuple[str, ...], **_others: Any) -> Path:
        directory.mkdir(parents=True, exist_ok=True)
        path = directory / f"{source.stem}.xml"
        path.write_text(" ".join(exclude), encoding="utf-8")
        made.append((source.stem, *exclude))
        return path

    monkeypatch.setattr(lowering, "lower_graph", lower_graph)
    monkeypatch.setattr(Bench, "frames", lambda _bench: [])
    monkeypatch.setattr(lowering, "_by_loss", lambda _bench, _engine: ["stem", "head", "decoder"])
    return made


def test_what_the_rest_of_an_int8_engine_loses_gives_layers_back(
    tmp_path: Path, written: list[tuple[str, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only with its rest in bf16 the graph loses too much, until two groups are back in floating point."""
    monkeypatch.setattr(
        lowering,
        "check_artefact",
        lambda *_args, precision, **_others: {"OpenVINO": 0.95 if precision == "int8-bf16" else 0.98, "plain": 0.98},
    )
    monkeypatch.setattr(lowering, "stand_in", lambda graph, *, precision, **_others: (graph, precision))

    def losses(_bench: Bench, predict: tuple[Path, str], _title: str) -> dict[str, Any]:
        graph, precision = predict
        left = 2 - len(graph.read_text(encoding="utf-8").split())
        points = left if precision == "int8-bf16" else 0
        return {"miou": {"value": points / 100, "low": points / 100, "high": points / 100}}

    monkeypatch.setattr(Bench, "losses", losses)
    bench = make_bench(
        tmp_path,
        "engines=[{runtime: openvino, precision: int8}, {runtime: openvino, precision: int8-bf16}]",
        "gates={miou_drop_max: 0.5}",
    )
    int8, int8_bf16 = (lowered_graphs(bench, engine) for engine in bench.context.recipe.engines)

    assert (int8.kept, len(int8.attempts)) == ((), 1)
    assert (int8_bf16.kept, len(int8_bf16.attempts)) == (("stem", "head"), 3)
    assert [bool(attempt["missed"]) for attempt in int8_bf16.attempts] == [True, True, False]
    assert (int8.agreement["OpenVINO"], int8_bf16.agreement["OpenVINO"]) == (0.98, 0.95)
    # the graph without anything in floating point is the same for both, and made once
    assert written.count(("student",)) == 1
    assert int8_bf16.student.read_text(encoding="utf-8") == int8_bf16.plain.read_text(encoding="utf-8") == "stem head"


@pytest.mark.parametrize(
    ("precision", "shares", "problem"),
    [
        ("int8", {"OpenVINO": 0.95, "plain": 0.96}, ""),
        ("int8", {"OpenVINO": 0.94, "plain": 0.98}, "one of the two computes something else"),
        ("int8-bf16", {"OpenVINO": 0.94, "plain": 0.98}, ""),
        ("int8-bf16", {"OpenVINO": 0.91, "plain": 0.98}, "one of the two computes something else"),
        ("bf16", {"OpenVINO": 0.96, "plain": 0.96}, "at least 97.0 % are expected"),
    ],
)
def test_ways_may_differ_by_rounding_alone(precision: str, shares: dict[str, float], problem: str) -> None:
    engine = SimpleNamespace(runtime="openvino", precision=precision)
    found = "".join(lowering._disagreement(engine, shares))  # type: ignore[arg-type]
    assert (problem in found) if problem else not found
