"""The format of `benchmark.json`: what is read and what the published schema says, which must be the same."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from made_runs import ENGINE, made_benchmark

from brd_edge.evaluate.benchmark.file import check_benchmark, read_benchmark
from brd_edge.runtime.errors import RunError

SCHEMA = Path(__file__).parents[3] / "docs" / "benchmark.schema.json"
MADE = made_benchmark()
Change = Callable[[dict[str, Any]], object]


def changed(change: Change) -> dict[str, Any]:
    benchmark = copy.deepcopy(MADE)
    change(benchmark)
    return benchmark


def written(path: Path, benchmark: object) -> Path:
    path.write_text(json.dumps(benchmark), encoding="utf-8")
    return path


WRONG: dict[str, tuple[Change, str]] = {
    "unknown key": (lambda b: b.update(speed=1), "speed: expected no such key, got 1"),
    "missing": (lambda b: b.pop("dataset"), "dataset: expected a value, got none"),
    "a text for a number": (
        lambda b: b["engines"][0]["latency_ms"].update(p50="3.1"),
        "engines[0].latency_ms.p50: expected a valid number, got '3.1'",
    ),
    "a truth value for a count": (
        lambda b: b["teacher"].update(params=True),
        "teacher.params: expected a valid integer",
    ),
    "above 1": (lambda b: b["student"].update(miou=36.1), "student.miou: expected less than or equal to 1, got 36.1"),
    "three ends": (lambda b: b["student"]["intervals"].update(miou=[0, 0, 1]), "student.intervals.miou"),
    "no such status": (lambda b: b["engines"][1].update(status="ready"), "engines[1].status: expected 'measured'"),
    "measured without a score": (
        lambda b: b["engines"][0].pop("boundary_f"),
        "engines[0]: expected the keys boundary_f",
    ),
    "measured without latency": (lambda b: b["engines"][0].update(latency_ms=None), "engines[0]: latency_ms is null"),
    "student without a score": (lambda b: b["student"].pop("class_iou"), "student: expected the keys class_iou"),
    "a step without its origin": (lambda b: b["attribution"]["steps"][0].pop("from"), "attribution.steps[0].from"),
    "a verdict of another kind": (
        lambda b: b["zero_cost"]["engines"][0]["latency"]["comparison"].update(verdict="same"),
        "zero_cost.engines[0].latency.comparison.verdict",
    ),
}
RIGHT: dict[str, Change] = {
    "everything": lambda _: None,
    "nothing compared": lambda b: b.update(compared=None),
    "before attribution": lambda b: b.pop("attribution"),
    "no class in the labels": lambda b: b["student"].update(miou=None),
    "an engine that was skipped": lambda b: b["engines"][1].update(status="skipped", size_bytes=None, build_s=None),
}


@pytest.mark.parametrize("change", RIGHT.values(), ids=RIGHT)
def test_what_is_right_is_read_and_valid_under_the_published_schema(change: Change, tmp_path: Path) -> None:
    benchmark = changed(change)
    check_benchmark(benchmark)
    found = read_benchmark(written(tmp_path / "benchmark.json", benchmark))
    # what is read is what stands there
    assert json.loads(found.model_dump_json(by_alias=True, exclude_unset=True)) == benchmark

    jsonschema = pytest.importorskip("jsonschema", reason="jsonschema is not installed: make install")
    validator = jsonschema.Draft202012Validator(json.loads(SCHEMA.read_text(encoding="utf-8")))
    assert list(validator.iter_errors(benchmark)) == []


@pytest.mark.parametrize(("change", "message"), WRONG.values(), ids=WRONG)
def test_what_is_wrong_is_named_and_not_valid_under_the_published_schema(
    change: Change, message: str, tmp_path: Path
) -> None:
    benchmark = changed(change)
    path = written(tmp_path / "benchmark.json", benchmark)
    with pytest.raises(RunError) as caught:
        read_benchmark(path)
    assert str(caught.value).startswith(f"{path}: {message}")
    assert str(caught.value).endswith("run the benchmark stage again with --from benchmark")
    with pytest.raises(RunError, match="please report it"):
        check_benchmark(benchmark)

    jsonschema = pytest.importorskip("jsonschema", reason="jsonschema is not installed: make install")
    validator = jsonschema.Draft202012Validator(json.loads(SCHEMA.read_text(encoding="utf-8")))
    assert list(validator.iter_errors(benchmark))


def test_the_published_schema_is_one() -> None:
    jsonschema = pytest.importorskip("jsonschema", reason="jsonschema is not installed: make install")
    jsonschema.Draft202012Validator.check_schema(json.loads(SCHEMA.read_text(encoding="utf-8")))


def test_numbers_are_finite() -> None:
    with pytest.raises(RunError, match=r"student\.miou"):
        check_benchmark(changed(lambda b: b["student"].update(miou=math.nan)))


@pytest.mark.parametrize("version", [1, 2, "3", True, None])
def test_other_versions_are_refused_before_anything_else(version: object, tmp_path: Path) -> None:
    path = written(tmp_path / "benchmark.json", {"schema_version": version, "engines": 3})
    with pytest.raises(RunError, match=r"schema_version: expected 3, got .*another version.*--from benchmark"):
        read_benchmark(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"{", "not JSON"), (b"\xff", "UTF-8"), (b"[]", "schema_version: expected 3, got no benchmark")],
)
def test_what_is_no_benchmark_is_refused(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "benchmark.json"
    with pytest.raises(RunError, match="not found; expected the run directory"):
        read_benchmark(path)
    path.write_bytes(content)
    with pytest.raises(RunError, match=message):
        read_benchmark(path)


def test_fields_are_there_by_name(tmp_path: Path) -> None:
    found = read_benchmark(written(tmp_path / "benchmark.json", MADE))
    assert found.engines[0].name == ENGINE
    assert found.attribution is not None
    assert found.attribution.steps[0].before == "student"
    with pytest.raises(ValueError, match="frozen"):
        found.recipe = "other"  # type: ignore[misc]
