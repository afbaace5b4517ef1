"""What changed between two made runs, whose differences are known."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from made_runs import ENGINE, IMAGES, RECIPE, UNMEASURED, made_benchmark, made_metrics, made_samples

from brd_edge.evaluate.benchmark.file import Benchmark
from brd_edge.evaluate.benchmark.images import ImageCounts
from brd_edge.evaluate.changes.latency import LatencyChange, recorded_change
from brd_edge.evaluate.changes.runs import SCORE_NAMES, Changes, Difference, RunRecord, compare_runs, require_comparable
from brd_edge.evaluate.changes.table import format_changes, verdict_line
from brd_edge.runtime.errors import RunError

Change = Callable[[dict[str, Any]], object]
IDS = tuple(f"{index:03d}" for index in range(IMAGES))


def a_run(name: str = "B", *, change: Change = lambda _: None, **noises: float) -> RunRecord:
    benchmark = made_benchmark()
    change(benchmark)
    found = {"teacher": 0.02, "student": 0.05, ENGINE: 0.05} | noises
    counts = {title: np.stack(made_metrics(noise).per_image) for title, noise in found.items()}
    if not any(entry["status"] == "measured" for entry in benchmark["engines"]):
        del counts[ENGINE]
    return RunRecord(name, Benchmark.model_validate_json(_json(benchmark)), ImageCounts(IDS, counts), RECIPE)


def _json(benchmark: dict[str, Any]) -> str:
    import json

    return json.dumps(benchmark)


@pytest.fixture(scope="module")
def before() -> RunRecord:
    return a_run("A")


EQUAL = {ENGINE: LatencyChange("equivalent")}


def changes_to(before: RunRecord, after: RunRecord, *, margin: float = 0.005, **kinds: Any) -> Changes:
    return compare_runs(before, after, margin=margin, latencies={**EQUAL, **kinds})


def test_a_run_equals_its_copy(before: RunRecord) -> None:
    found = changes_to(before, a_run())
    assert found.overall == "equivalent"
    assert (found.worse, found.undecided, found.better) == ([], [], [])
    assert found.recipe == found.environment == found.dataset == found.contract == ()
    assert set(found.scores) == {"teacher", "student", ENGINE}
    for scores in found.scores.values():
        for change in scores.values():
            assert change.verdict == "equivalent"
            assert (change.difference.value, change.difference.low, change.difference.high) == (0, 0, 0)
    assert verdict_line(found) == "verdict: equivalent in all that was compared"


def test_a_worse_engine_is_found_and_a_better_student(before: RunRecord) -> None:
    found = changes_to(before, a_run(student=0.02, **{ENGINE: 0.1}))
    # the connectivity error grew, which is worse
    assert found.worse == [f"{ENGINE} {name}" for name in SCORE_NAMES.values()]
    assert found.better == [f"student {name}" for name in SCORE_NAMES.values()]
    grown = found.scores[ENGINE]["connectivity_error"]
    assert grown.difference.low > 0
    assert grown.after == pytest.approx(made_metrics(0.1).connectivity_error(), abs=1e-12)
    assert found.overall == "worse"
    change = found.scores[ENGINE]["miou"]
    assert change.before == pytest.approx(made_metrics(0.05).miou(), abs=1e-12)
    assert change.after == pytest.approx(made_metrics(0.1).miou(), abs=1e-12)
    assert changes_to(before, a_run(student=0.02)).overall == "better"
    # a large enough margin makes it equivalent
    assert changes_to(before, a_run(**{ENGINE: 0.1}), margin=5.0).overall == "equivalent"


GATE = "latency_ms_p95_max: p95 is 12.0 ms, the limit is 10"


def engines(**values: Any) -> Change:
    return lambda b: b["engines"][0].update(values)


def fails(benchmark: dict[str, Any]) -> None:
    entry = benchmark["engines"][0]
    entry.update(status="failed", reason="out of memory", latency_ms=None)


def proof(**values: Any) -> Change:
    return lambda b: b["zero_cost"].update(values)


@pytest.mark.parametrize(
    ("old", "new", "worse"),
    [
        (engines(), engines(gates_broken=[GATE]), [f"{ENGINE} gate latency_ms_p95_max"]),
        (engines(gates_broken=[GATE]), engines(), []),
        (engines(gates_broken=[GATE.replace("12.0", "11.0")]), engines(gates_broken=[GATE]), []),
        (engines(), fails, [f"{ENGINE} no longer measured (failed)"]),
        (fails, engines(), []),
        (fails, fails, []),
        (engines(), lambda b: b["engines"].pop(0), [f"{ENGINE} no longer measured (not in the recipe)"]),
        (engines(), lambda b: b["engines"][1].update(status="failed"), [f"{UNMEASURED} failed"]),
        (engines(), proof(equal=False, differences=["node 3"]), ["the zero-cost proof no longer holds"]),
        (proof(equal=False), proof(equal=False), []),
        (proof(equal=False), proof(), []),
    ],
    ids=range(11),
)
def test_what_is_newly_failing_is_worse(old: Change, new: Change, worse: list[str]) -> None:
    assert changes_to(a_run("A", change=old), a_run(change=new)).worse == worse


def test_what_is_decided_about_latency(before: RunRecord) -> None:
    for verdict, worse, undecided, better in (
        ("slower", [f"{ENGINE} is slower"], [], []),
        ("faster", [], [], [f"{ENGINE} is faster"]),
        ("undecided", [], [f"{ENGINE} latency"], []),
        (None, [], [f"{ENGINE} latency"], []),
    ):
        found = changes_to(before, a_run(), **{ENGINE: LatencyChange(verdict, reason="why")})
        assert (found.worse, found.undecided, found.better) == (worse, undecided, better)
    # an engine that no run could measure is not missed
    assert changes_to(before, a_run(), **{UNMEASURED: LatencyChange(None, reason="no GPU")}).undecided == []


def test_recorded_samples_that_are_a_fifth_slower_are_found() -> None:
    entries = [
        Benchmark.model_validate_json(_json(made_benchmark(samples=made_samples(slower=slower, seed=seed)))).engines
        for slower, seed in ((1, 1), (1, 2), (1.2, 3))
    ]
    (base, missing), (same, _), (slower, _) = entries
    assert recorded_change(base, same, margin=0.2).verdict == "equivalent"
    found = recorded_change(base, slower, margin=0.03)
    assert found.verdict == "slower"
    assert found.ratio is not None
    assert found.ratio.low < 1.2 / 1.1 < 1.2 < 1.2 * 1.1 < found.ratio.high
    assert recorded_change(slower, base, margin=0.03).verdict == "faster"
    assert recorded_change(base, slower, margin=0.03, machine="other cores").verdict == "undecided"
    assert recorded_change(base, missing, margin=0.03) == LatencyChange(None, reason="only one of the runs recorded it")


@pytest.mark.parametrize(
    ("slower", "verdict"), [(1.0, "undecided"), (1.08, "undecided"), (1 / 1.08, "undecided"), (1.14, "slower")]
)
def test_what_sessions_may_differ_by_is_no_verdict(slower: float, verdict: str) -> None:
    # each session alone is certain to a third of a percent
    first, second = (
        Benchmark.model_validate_json(_json(made_benchmark(samples=samples))).engines[0]
        for samples in (made_samples(seed=1), made_samples(slower=slower, seed=2))
    )
    found = recorded_change(first, second, margin=0.03)
    assert found.verdict == verdict
    assert found.ratio is not None
    assert found.ratio.high / found.ratio.low > 1.1**2


def test_settings_and_environment_that_differ_are_listed(before: RunRecord) -> None:
    def other(benchmark: dict[str, Any]) -> None:
        benchmark["environment"]["packages"] |= {"torch": "2.16.0", "timm": "1.0"}
        benchmark["environment"]["cores"] = 4
        benchmark["contract"]["mean"] = [0.5, 0.5, 0.5]
        benchmark["engines"][0]["runtime_version"] = "1.33.0"

    recipe = {"name": "made", "distill": {"method": "none"}, "engines": [{"runtime": "openvino"}, {"runtime": "x"}]}
    found = changes_to(before, replace(a_run(change=other), recipe=recipe))
    assert found.recipe == (
        Difference("distill.method", "brd", "none"),
        Difference("engines.0.runtime", "onnxruntime", "openvino"),
        Difference("engines.1.runtime", None, "x"),
    )
    assert [item.key for item in found.environment] == [
        *("cores", "packages.torch", f"runtime_version.{ENGINE}", "packages.timm"),
    ]
    assert found.contract == (Difference("mean", [0, 0, 0], [0.5, 0.5, 0.5]),)
    # what differs is told, and not judged
    assert found.overall == "equivalent"


def test_a_section_that_one_recipe_lacks_is_one_line(before: RunRecord) -> None:
    train = {f"setting{index}": index for index in range(30)}
    recipe = {**before.recipe, "teacher": {"train": train}, "zone": {"lr": 1}}
    found = compare_runs(replace(before, recipe=recipe), before, margin=0.01, latencies={})
    lines = [line.strip() for line in format_changes(found, names=("a", "b"), latency="").splitlines()]
    assert "teacher.train: 30 settings → nothing" in lines
    assert "zone.lr: 1 → nothing" in lines
    assert not [line for line in lines if "setting7" in line]


def test_scores_are_compared_on_common_images(before: RunRecord) -> None:
    after = a_run(student=0.1)
    places = [*range(20, 2, -1), 22]
    kept = ImageCounts(
        (*(IDS[place] for place in places), "new"),
        {name: counts[[*places, 0]] for name, counts in after.counts.counts.items()},
    )
    after = replace(a_run(change=lambda b: b["dataset"].update(val=20)), counts=kept)
    found = changes_to(before, after)
    assert (found.images.count, found.images.only_before, found.images.only_after) == (19, 5, 1)
    assert not found.images.checked
    rows = np.stack(made_metrics(0.1).per_image)[places].sum(0)
    assert found.scores["student"]["miou"].after == pytest.approx(np.mean(rows[0] / rows[1]), abs=1e-12)

    # the same ids, but other pictures or labels: they are left out as well
    contents = {name: name for name in IDS}
    altered = {**contents, IDS[4]: "other", "new": "new"}
    found = changes_to(replace(before, contents=contents), replace(after, contents=altered))
    assert (found.images.count, found.images.altered, found.images.checked) == (18, 1, True)
    # without the contents of one of them, nothing is known about the content
    assert changes_to(replace(before, contents=contents), after).images.count == 19


def test_runs_that_cannot_be_compared_are_refused(before: RunRecord) -> None:
    other = a_run(change=lambda b: b["dataset"].update(classes=["road", "car", "sky"]))
    with pytest.raises(RunError, match=r"B: expected the classes of A \(3: road, sky, car\), got 3: road, car"):
        require_comparable(before, other)
    renamed = replace(a_run(), counts=ImageCounts(tuple(f"x{name}" for name in IDS), a_run().counts.counts))
    with pytest.raises(RunError, match="B: expected validation images of A, got none: it has other ids"):
        require_comparable(before, renamed)
    contents = dict.fromkeys(IDS, "1"), dict.fromkeys(IDS, "2")
    runs = [replace(run, contents=found) for run, found in zip((before, a_run()), contents, strict=True)]
    with pytest.raises(RunError, match="other pictures or labels under the same ids"):
        require_comparable(*runs)
    counts = {name: found for name, found in a_run().counts.counts.items() if name != ENGINE}
    with pytest.raises(RunError, match=rf"B: images\.npz: {ENGINE}: expected counts \(24, 10, 3\)"):
        require_comparable(before, replace(a_run(), counts=ImageCounts(IDS, counts)))


def test_the_table_fits_a_terminal_and_ends_with_the_verdict(before: RunRecord) -> None:
    def bad(benchmark: dict[str, Any]) -> None:
        benchmark["environment"]["packages"] = {f"package-{index}\x1b[31m": "1" for index in range(40)}
        benchmark["dataset"]["name"] = "a name\nof two lines " + "that is long " * 20
        benchmark["engines"][0]["gates_broken"] = [GATE + " and much more" * 10]
        benchmark["engines"][1].update(status="failed", reason="a reason that is long " * 20)

    after = a_run("B", change=bad, student=0.1, **{ENGINE: 0.1})
    warned = replace(recorded_change(before.benchmark.engines[0], after.benchmark.engines[0], margin=0.03))
    found = changes_to(before, after, **{ENGINE: replace(warned, warnings=("a warning " * 30,))})
    text = format_changes(found, names=("runs/a", "runs/b"), latency="recorded " * 30)
    lines = text.splitlines()
    assert max(map(len, lines)) <= 100
    assert "\x1b" not in text
    assert lines[-1].startswith("verdict: 12 worse (student mIoU, student Boundary IoU, student boundary F, ")
    assert lines[-1].endswith(" …), 1 undecided")
    assert "    and 21 more (--json lists all)" in lines
    rows = [line.split() for line in lines if line.startswith(ENGINE)]
    assert {row[-1] for row in rows[: len(SCORE_NAMES)]} == {"worse"}
    for name in SCORE_NAMES.values():
        assert any(line.startswith(f"{name} ") for line in lines)
    assert [line for line in lines if line.startswith(f"gate newly broken: {ENGINE}: latency_ms_p95_max")]
