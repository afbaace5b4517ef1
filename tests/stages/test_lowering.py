"""Which graph an engine of lower precision ends with, as it is judged by the runtime that will run it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from brd_edge.recipe import Recipe, load_recipe
from brd_edge.run import Run
from brd_edge.runtime.errors import EngineError, RuntimeMissingError
from brd_edge.stages import lowering
from brd_edge.stages.lowering import Bench, lowered_graphs

QUICKSTART = Path(__file__).parents[2] / "pipelines" / "quickstart.yaml"


def make_bench(directory: Path, *settings: str) -> Bench:
    recipe: Recipe = load_recipe(QUICKSTART, overrides=settings)
    said: list[str] = []
    return Bench(SimpleNamespace(recipe=recipe, run=Run(directory), say=said.append, said=said))  # type: ignore[arg-type]


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
    monkeypatch.setattr(lowering, "_exported", lambda _bench: None)
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


@pytest.mark.parametrize(
    ("engine", "auto"),
    [
        ("{runtime: onnxruntime, precision: int8}", True),
        ("{runtime: openvino, precision: int8-bf16}", True),
        ("{runtime: onnxruntime, precision: int8, target: arm64-cpu}", False),
        ("{runtime: openvino, precision: int8-fp16, target: intel-igpu}", False),
        ("{runtime: openvino, precision: int8-fp16, target: intel-npu}", False),
        ("{runtime: tensorrt, precision: int8, target: rtx}", False),
        ("{runtime: tensorrt, precision: int8, target: h100}", False),
    ],
)
@pytest.mark.parametrize("asked", ["auto", "true", "false"])
def test_weights_keep_to_7_bits_for_processors_that_may_saturate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, engine: str, auto: bool, asked: str
) -> None:
    given = []
    monkeypatch.setattr(
        lowering, "lower_graph", lambda *_args, reduce_range, **_rest: given.append(reduce_range) or tmp_path / "a"
    )
    monkeypatch.setattr(Bench, "frames", lambda _bench: [])
    bench = make_bench(tmp_path, f"engines=[{engine}]", f"int8.reduce_range={asked}")
    lowering._lower(bench, bench.context.recipe.engines[0], tmp_path, "student", ())
    assert given == [auto if asked == "auto" else asked == "true"]


def test_what_saturates_here_may_not_on_another_device(
    tmp_path: Path, written: list[tuple[str, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Graphics have no graph in common with this processor, nor are they judged by its int8 kernels."""
    here = []
    monkeypatch.setattr(lowering, "check_artefact", lambda *_args, **rest: here.append(rest["here"]) or {"A": 1.0})
    bench = make_bench(
        tmp_path,
        "engines=[{runtime: openvino, precision: int8}, {runtime: openvino, precision: int8, target: intel-igpu}]",
        "gates={}",
    )
    monkeypatch.setattr(lowering.platform, "machine", lambda: "x86_64")
    processor, graphics = (lowered_graphs(bench, engine).student for engine in bench.context.recipe.engines)
    assert processor != graphics
    assert here == [True, False]
    assert written.count(("student",)) == 2


EXACT = "engines=[{runtime: onnxruntime}, {runtime: openvino, precision: bf16}, {runtime: tensorrt, target: rtx}]"
HALF = "{runtime: tensorrt, precision: fp16, target: rtx}"


@pytest.fixture
def exported(
    named_graph: Path, frames: list[np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[], Bench]:
    """Makes a bench over a run whose student is a graph of the tests."""
    monkeypatch.setattr(lowering, "load_run_dataset", lambda _context: SimpleNamespace(train=frames))
    monkeypatch.setattr(lowering, "read_frame", lambda sample, _contract: sample)

    def make() -> Bench:
        (tmp_path / "export").mkdir(exist_ok=True)
        shutil.copy(named_graph, tmp_path / "export" / "student.onnx")
        return make_bench(tmp_path, EXACT)

    return make


def test_the_exported_graph_is_checked_once_for_all_engines_that_have_it(
    exported: Callable[[], Bench], monkeypatch: pytest.MonkeyPatch
) -> None:
    bench, checked = exported(), []
    whole = lowering.check_artefact
    monkeypatch.setattr(lowering, "check_artefact", lambda *args, **rest: checked.append(args) or whole(*args, **rest))
    found = [lowered_graphs(bench, engine) for engine in bench.context.recipe.engines]

    assert len(checked) == 1
    assert {item.student.name for item in found} == {"student.onnx"}
    # whole numbers are exact in float32
    for item in found:
        assert item.agreement == {"ONNX Runtime node by node": 1.0, "OpenVINO in floating point": 1.0}


@pytest.mark.parametrize("engine", ["{runtime: onnxruntime}", HALF])
def test_runtimes_that_read_the_graph_differently_fail_its_engines(
    exported: Callable[[], Bench], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, engine: str
) -> None:
    exported()
    bench = make_bench(tmp_path, f"engines=[{engine}]")
    wrong = {"ONNX Runtime node by node": 1.0, "OpenVINO in floating point": 0.9}
    monkeypatch.setattr(lowering, "check_artefact", lambda *_args, **_rest: wrong)
    with pytest.raises(
        EngineError, match=r"100\.00 % by ONNX .*, 90\.00 % by OpenVINO .*at least 99\.9 % are expected"
    ):
        lowered_graphs(bench, bench.context.recipe.engines[0])


def test_an_engine_does_not_need_the_runtime_that_would_check_it(
    exported: Callable[[], Bench], monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(*_args: object, **_rest: object) -> None:
        raise RuntimeMissingError("openvino is not installed")

    bench: Any = exported()
    monkeypatch.setattr(lowering, "check_artefact", missing)
    found = [lowered_graphs(bench, engine) for engine in bench.context.recipe.engines]
    assert [item.agreement for item in found] == [{}] * 3
    assert bench.context.said == ["build: student.onnx was not checked in two runtimes: openvino is not installed"]
