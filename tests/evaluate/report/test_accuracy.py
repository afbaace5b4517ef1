"""The table of all scores, on a made benchmark whose metrics are known."""

from __future__ import annotations

import numpy as np
from made_runs import ENGINE, made_benchmark, made_metrics

from brd_edge.evaluate.report.accuracy import ACCURACY_HEADERS, accuracy_rows, change_text


def test_every_score_has_its_interval_and_its_change() -> None:
    benchmark = made_benchmark(engine=0.1)
    rows = accuracy_rows(benchmark, benchmark["engines"], ["ort fp32", "trt fp32"])
    # the engine that was only built has no row
    assert [row["label"] for row in rows] == ["teacher", "plain (made)", "student", "ort fp32"]
    metrics, student = made_metrics(0.1), made_metrics(0.05)
    scores = {
        "mIoU": (metrics.miou(), student.miou()),
        "Boundary IoU": (metrics.boundary_iou(), student.boundary_iou()),
        "Boundary F": (metrics.boundary_f(), student.boundary_f()),
        "Connectivity error": (metrics.connectivity_error(), student.connectivity_error()),
        "Pixel accuracy": (metrics.pixel_accuracy(), student.pixel_accuracy()),
    }
    cells = dict(zip(ACCURACY_HEADERS, rows[3]["cells"], strict=True))
    for name, (mine, theirs) in scores.items():
        value, interval, change = cells[name]
        assert value == f"{100 * mine:.1f}"
        low, high = map(float, interval.split(" to "))
        assert low < 100 * mine < high
        # the paired interval lies around the difference, and on its side
        texts = change.replace("−", "-").replace("(", "").replace(")", "").replace("to ", "").split()  # noqa: RUF001
        middle, lower, upper = map(float, texts)
        assert np.isclose(middle, 100 * (mine - theirs), atol=0.006)
        assert lower < middle < upper
    assert cells["Agreement"] == ("100.00", "", "")
    assert benchmark["engines"][0]["name"] == ENGINE


def test_what_is_missing_stays_empty() -> None:
    assert accuracy_rows({"teacher": {"miou": None}}, [], []) == []
    assert change_text(None) == ""
    # an error that grew is above 0, a score that fell below
    assert change_text({"value": 0.001, "low": -0.0005, "high": 0.003}) == "−0.10 (−0.30 to +0.05)"  # noqa: RUF001
    assert change_text({"value": 0.0, "low": 0.0, "high": 0.0}) == "±0.00"
