"""The table at the end of a run."""

from __future__ import annotations

from typing import Any

from made_runs import made_cost

from brd_edge.evaluate.gates import Limits, broken_gates
from brd_edge.evaluate.table import format_table


def an_engine(runtime: str, **fields: Any) -> dict[str, Any]:
    unmeasured = dict.fromkeys(("latency_ms", "miou", "boundary_iou", "size_bytes"))
    return {"runtime": runtime, "precision": "fp32", "target": "x86-cpu", "reason": "", **unmeasured, **fields}


BENCHMARK: dict[str, Any] = {
    "engines": [
        an_engine(
            "onnxruntime",
            status="measured",
            latency_ms={"p50": 42.64, "p95": 145.51, "p99": 190.0},
            miou=0.6123,
            boundary_iou=0.4056,
            size_bytes=4_412_345,
        ),
        an_engine("tensorrt", status="built", reason="This machine has no NVIDIA driver.", size_bytes=900_000),
        an_engine("openvino", status="failed", reason="line one\n\x1b[31mline two\x07 " + "and so on " * 20),
    ],
    "teacher": {
        "model": "DeepLabV3Plus / resnet34",
        "params": 22_400_000,
        "macs": None,
        "miou": 0.71,
        "boundary_iou": None,
    },
    "student": {"model": "Fpn / small", "params": 1_120_000, "macs": 450_000_000, "miou": 0.61, "boundary_iou": 0.4},
    "compared": {"name": "plain", "miou": 0.58, "boundary_iou": 0.35},
}


def test_rows_hold_the_measurements_under_their_headings() -> None:
    lines = format_table(BENCHMARK).splitlines()
    heading = " ".join(f"{lines[0]} {lines[1]}".split())
    for word in ("runtime", "precision", "target", "status", "p50", "p95", "mIoU", "Boundary", "IoU %", "ms", "MB"):
        assert word in heading
    assert lines[3].split() == ["onnxruntime", "fp32", "x86-cpu", "measured", "42.6", "145.5", "61.2", "40.6", "4.4"]
    assert lines[4].split() == ["tensorrt", "fp32", "x86-cpu", "built", "-", "-", "-", "-", "0.90"]
    # the numbers end where their headings end
    assert len(lines[3]) == len(lines[4]) == len(lines[2])


def test_every_engine_that_was_not_measured_has_its_reason() -> None:
    text = format_table(BENCHMARK)
    assert "tensorrt fp32 x86-cpu built: This machine has no NVIDIA driver." in text
    assert "openvino fp32 x86-cpu failed: line one [31mline two and so on" in text
    assert "onnxruntime fp32 x86-cpu measured:" not in text
    reasons = text.split("\n\n")[1].splitlines()
    assert len(reasons) == 4  # the long one is wrapped
    assert max(map(len, reasons)) <= 100


def test_nothing_in_a_name_reaches_the_terminal_as_a_control() -> None:
    engine = an_engine("open\x1b[2Jvino", status="measured", target="x86\ncpu")
    text = format_table({"engines": [engine], "compared": {"name": "\x1b]0;title\x07"}})
    assert all(character.isprintable() or character == "\n" for character in text)
    assert "x86 cpu" in text


def test_models_follow_with_their_accuracy() -> None:
    lines = format_table(BENCHMARK).splitlines()[-3:]
    assert " ".join(lines[0].split()) == (
        "teacher mIoU 71.0 % Boundary IoU - % DeepLabV3Plus / resnet34, 22.4 M parameters, - MACs"
    )
    assert " ".join(lines[1].split()) == (
        "student mIoU 61.0 % Boundary IoU 40.0 % Fpn / small, 1.12 M parameters, 450 M MACs"
    )
    assert " ".join(lines[2].split()) == "compared with plain mIoU 58.0 % Boundary IoU 35.0 %"


def test_gates_that_are_missed_are_named_with_by_how_much() -> None:
    ends = {"value": 0.002, "low": -0.001, "high": 0.0065, "confidence": 0.95}
    latency = {"p50": 2.0, "p95": 6.3, "p99": 7.0, "intervals": {"p95": [6.0, 6.6]}}
    limits = {"size_bytes_max": 2_000_000, "latency_ms_p95_max": 4.0, "miou_drop_max": 0.5, "uncertain": "broken"}
    measured = {"latency_ms": latency, "miou": 0.376, "boundary_iou": 0.253, "status": "measured"}
    missing = an_engine("openvino", **measured, size_bytes=2_100_793, gates=limits, lost={"miou": ends})
    missing["name"] = "openvino-fp32-x86-cpu"
    missing["gates_broken"] = broken_gates(Limits(**limits), engine=missing)
    assert len(missing["gates_broken"]) == 3
    holding = {**missing, "gates": {"size_bytes_max": 3_000_000, "uncertain": "broken"}, "gates_broken": []}
    skipped = an_engine("tensorrt", status="skipped", gates=limits, gates_broken=[])
    lines = format_table({"engines": [missing, holding, skipped]}).splitlines()
    column = lines[0].index("gates") if "gates" in lines[0] else lines[1].index("gates")
    texts = [line[column:].strip() for line in lines[3:8]]
    assert texts == ["size +0.10 MB", "mIoU ≤+0.15 pt", "p95 +2.30 ms", "held", ""]
    assert max(map(len, lines[:8])) <= 100
    assert "gates that are missed: value minus limit" in " ".join(lines)
    # without gates there is no such column
    assert "gates" not in format_table(BENCHMARK)


def test_what_a_device_builds_is_not_called_skipped() -> None:
    lost = {"miou": {"value": 0.007, "low": 0.006, "high": 0.008, "confidence": 0.95}}
    planned = {
        **an_engine("tensorrt", status="skipped", target="jetson-orin", graph="g.onnx", gates_broken=[]),
        **{"gates": {"miou_drop_max": 1.0, "uncertain": "broken"}, "reason": "engines are built on the device itself"},
        **{"name": "tensorrt-int8-jetson-orin", "attempts": [{"kept": [], "lost": lost, "missed": []}]},
    }
    unknown = {**planned, "attempts": []}
    missing = {**planned, "gates": {"miou_drop_max": 0.5, "uncertain": "broken"}}
    missing["gates_broken"] = broken_gates(Limits(miou_drop_max=0.5), engine=missing)
    lines = format_table({"engines": [planned, unknown, missing]}).splitlines()
    assert "skipped" not in "\n".join(lines)
    column, status = (next(line.index(head) for line in lines[:2] if head in line) for head in ("gates", "status"))
    assert [line[column:].strip() for line in lines[3:9]] == ["held by", "its graph", "", "", "mIoU +0.20 pt", ""]
    assert [line[status : status + 10].strip() for line in lines[3:5]] == ["to build", "on device"]
    text = " ".join(" ".join(lines).split())
    assert (
        "tensorrt fp32 jetson-orin to build on the device: in the bundle; `brd-edge ship` builds it on the device, or "
        "run `python -m brd_edge.runtime build BUNDLE` there; its graph held the gates of accuracy"
    ) in text
    assert "there tensorrt" in text, "of an unknown loss nothing is claimed"
    assert "its graph misses a gate, so it is not in the bundle" in text
    # without its graph it cannot be built anywhere
    text = format_table({"engines": [{**planned, "graph": None}]})
    assert "jetson-orin skipped: engines are" in " ".join(text.split())


def test_the_proof_and_what_disturbed_a_measurement_are_told() -> None:
    latency = {"p50": 2.0, "p95": 3.0, "warnings": ["other programs took 25 % of the processor's time meanwhile"]}
    proof = {"equal": True, "params_equal": True, "macs_equal": True, "nodes": 3, "differences": []}
    proof["engines"] = [made_cost()]
    engine = an_engine("onnxruntime", status="measured", latency_ms=latency, miou=0.5)
    text = " ".join(format_table({"engines": [engine], "zero_cost": proof}).split())
    assert "onnxruntime fp32 x86-cpu: latency: other programs took 25 %" in text
    assert "Zero added inference cost: Held." in text
    text = format_table({"engines": [engine], "zero_cost": {**proof, "equal": False}})
    assert "Zero added inference cost: Not held." in text


def test_small_latencies_keep_three_digits() -> None:
    engines = [an_engine("a", status="measured", latency_ms={"p50": value, "p95": 2 * value}) for value in (0.724, 8.5)]
    rows = [line.split() for line in format_table({"engines": engines}).splitlines()[3:5]]
    assert [row[4:6] for row in rows] == [["0.724", "1.448"], ["8.500", "17.000"]]


def test_empty_benchmark_is_no_error() -> None:
    assert format_table({}) == "No engine was asked for."
    assert format_table({"engines": None, "teacher": None}) == "No engine was asked for."
