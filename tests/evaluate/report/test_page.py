"""The report is read back with the standard library's parser and opened in a real browser."""

from __future__ import annotations

import base64
import copy
import hashlib
import json
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest

from brd_edge.evaluate.formats import MISSING
from brd_edge.evaluate.report.accuracy import ACCURACY_HEADERS
from brd_edge.evaluate.report.gallery import PLAIN_TITLE
from brd_edge.evaluate.report.page import Curve, ReportSample, write_report
from brd_edge.runtime.errors import DataError

CLASSES = ["road", "sky", "<script>alert('class')</script>", "thin & tall $pole"]
PALETTE = [[128, 64, 128], [70, 130, 180], [220, 20, 60], [153, 153, 153]]
VOID = {"img", "meta", "br", "link", "input", "hr"}
UNMEASURED = dict.fromkeys(
    (
        *("latency_ms", "engine_latency_ms", "throughput", "miou", "boundary_iou", "class_iou", "argmax_agreement"),
        *("intervals", "lost", "size_bytes", "build_s", "runtime_version"),
    )
)


class Page(HTMLParser):
    """Collects elements with their attributes, and the text that a reader sees."""

    def __init__(self, markup: str) -> None:
        super().__init__()
        self.markup = markup
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.open: list[str] = []
        self.rows: list[list[str]] = []
        self.words: list[str] = []
        self.feed(markup)
        self.close()
        assert self.open == [], f"elements were left open: {self.open}"
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in {"td", "th"}:
            self.rows[-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes another element"

    def handle_data(self, data: str) -> None:
        if {"style", "script"} & set(self.open):
            return
        self.words.append(data)
        if {"td", "th"} & set(self.open):
            self.rows[-1][-1] = " ".join(f"{self.rows[-1][-1]} {data}".split())

    def all(self, *tags: str) -> list[dict[str, str]]:
        return [attributes for tag, attributes in self.elements if tag in tags]


def a_benchmark() -> dict[str, Any]:
    samples = [42.6 + 0.01 * (index % 30) for index in range(120)]
    class_iou = [0.9, 0.8, None, 0.25]
    measured = {"miou": 0.6501, "boundary_iou": 0.341, "class_iou": class_iou, "reason": "", "status": "measured"}
    engines = [
        {
            **{"runtime": "onnxruntime", "precision": "fp32", "target": "x86-cpu", "runtime_version": "1.32.0"},
            **measured,
            **{"latency_ms": {"p50": 42.61, "p95": 45.5, "p99": 46.9, "mean": 43, "min": 41, "n": 120}},
            **{"samples_ms": samples, "argmax_agreement": 0.99998, "size_bytes": 4_412_345, "build_s": 1.2},
            "intervals": {"miou": [0.639, 0.661], "boundary_iou": [0.33, 0.35], "argmax_agreement": [0.9999, 1]},
            "engine_latency_ms": {
                **{"p50": 41.2, "p90": 43.0, "p95": 44.0, "p99": 45.0, "mean": 41.5, "min": 40.0, "n": 75},
                **{
                    "intervals": {"p50": [41.0, 41.4], "p99": [44.5, None]},
                    "stopped": "interval",
                    "warnings": ["the <clock> changed"],
                },
            },
            "throughput": {"rate_hz": 51.23, "interval": [50.0, 52.0], "streams": 2},
            "gates": {"size_bytes_max": 1, "uncertain": "broken"},
            "gates_broken": ["size_bytes_max: 4,412,345 bytes, the limit is 1"],
        },
        {
            **{"runtime": "openvino", "precision": "fp32", "target": "x86-cpu", "runtime_version": "2026.4.0"},
            **measured,
            **{"latency_ms": {"p50": 35.92, "p95": 38.3, "p99": 40.7, "mean": 36, "min": 34, "n": 120}},
            **{"samples_ms": [value - 7 for value in samples], "argmax_agreement": 0.9996, "size_bytes": 4_512_345},
        },
        {
            **{"runtime": "tensorrt", "precision": "fp32", "target": "rtx-sm75", **UNMEASURED, "size_bytes": 9_400_000},
            **{"status": "built", "reason": "This machine has no <NVIDIA> driver."},
        },
        {
            **{"runtime": "tensorrt", "precision": "fp16", "target": "jetson-orin", **UNMEASURED},
            **{"status": "skipped", "reason": "Not installed: pip install brd-edge[tensorrt]"},
        },
    ]
    return {
        "schema_version": 1,
        "recipe": "quick & start",
        "created": "2026-01-01T12:00:00Z",
        "command": "python -m brd_edge.pipeline pipelines/quickstart.yaml",
        "duration_s": {"prepare": 12.3, "teacher": 80.1},
        "dataset": {"name": "scenes", "classes": CLASSES, "palette": PALETTE, "train": 160, "val": 32},
        "contract": {"height": 96, "width": 128, "mean": [0.485, 0.456, 0.406], "layout": "NHWC"},
        "teacher": {
            **{"model": "DeepLabV3Plus / resnet34", "params": 22_400_000, "macs": 9_000_000_000},
            **{"miou": 0.71, "boundary_iou": 0.55, "class_iou": [0.95, 0.85, 0.4, 0.6]},
        },
        "student": {
            **{"model": "Fpn / small", "params": 1_120_000, "macs": 450_000_000, "method": "brd"},
            **{"miou": 0.6502, "boundary_iou": 0.342, "class_iou": class_iou},
        },
        "compared": {
            **{"name": "plain", "miou": 0.62, "boundary_iou": 0.3, "class_iou": [0.9, 0.7, 0.1, 0.2]},
            "lost": {"miou": {"value": 0.03, "low": 0.011, "high": 0.049, "confidence": 0.95}},
        },
        "engines": engines,
        "attribution": an_attribution(),
        "zero_cost": {
            **{"equal": True, "nodes": 97, "params_equal": True, "macs_equal": True, "differences": []},
            **{
                "margin_percent": 1.0,
                "engines": [a_cost("onnxruntime", "equivalent"), a_cost("openvino", "undecided")],
            },
        },
        "environment": {"cpu": "A CPU", "cores": 2, "os": "Linux", "gpu": None, "packages": {"torch": "2.15.0"}},
    }


def a_cost(runtime: str, verdict: str) -> dict[str, Any]:
    ratio = {"value": 1.001, "low": 0.996, "high": 1.006 if verdict == "equivalent" else 1.02, "confidence": 0.95}
    comparison = {"verdict": verdict, "ratio": ratio, "equivalence": ratio, "margin": 0.01, "pairs": 120}
    return {
        **{"name": f"{runtime}-fp32-x86-cpu", "held": verdict == "equivalent" or None, "reason": ""},
        **{"size_bytes": [10, 10], "layers": [138, 138], "differences": []},
        "latency": {"comparison": comparison, "control": comparison, "stopped": "budget", "warnings": []},
    }


def an_attribution() -> dict[str, Any]:
    def step(title: str, miou: float | None, lost: float | None, **more: Any) -> dict[str, Any]:
        found = None if lost is None else {"value": lost, "low": lost - 0.002, "high": lost + 0.001, "confidence": 0.95}
        scores = {"miou": miou, "boundary_iou": miou, "lost": found and {"miou": found, "boundary_iou": found}}
        worst = [{"image": "val/<worst>", "changed": 0.0123, "right": -0.004}] if found else []
        rest = {
            "name": title,
            "title": "something",
            "engine": None,
            "from": "",
            "to": title,
            "reason": "",
            "worst": worst,
        }
        return {**rest, "agreement": 0.99 if found else None, **scores, **more}

    steps = [
        step("loader & reading", 0.6502, -0.0002),
        step("onnxruntime: precision", 0.6202, 0.03, engine="onnxruntime"),
        step("tensorrt: precision", None, None, engine="tensorrt", reason="it does not run here"),
    ]
    return {"images": 32, "start": {"title": "as trained", "miou": 0.65, "boundary_iou": 0.65}, "steps": steps}


def a_sample(name: str, *, height: int = 72, width: int = 96, seed: int = 0) -> ReportSample:
    rows, columns = np.mgrid[:height, :width]
    label = np.where(rows < height // 2, 1, 0).astype(np.uint8)
    label[(rows - height // 2) ** 2 + (columns - width // 3) ** 2 < (height // 6) ** 2] = 2
    label[:, width // 2 : width // 2 + 2] = 3
    label[-4:] = 255
    image = np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)
    teacher = np.where(label == 255, 0, label).astype(np.uint8)
    student = np.roll(teacher, 2, axis=1)
    return ReportSample(
        name, image, label, {"teacher": teacher, "student": student, "onnxruntime fp32": student, "openvino": teacher}
    )


def some_curves() -> dict[str, list[Curve]]:
    steps = list(range(900))
    falling = [2 / (1 + step / 100) for step in steps]
    return {
        "distill <loss>": [
            Curve("boundary $b", steps, falling),
            Curve("relation", steps, [float("nan"), *falling[1:]]),
        ],
        "never measured": [Curve("empty", [], []), Curve("nothing finite", [1], [float("nan")])],
        "validation mIoU": [Curve("student", [100, 200, 300], [0.2, 0.4, 0.6])],
    }


def written(
    directory: Path, benchmark: dict[str, Any], samples: list[ReportSample], curves: dict[str, list[Curve]]
) -> Page:
    path = directory / "report.html"
    write_report(path, benchmark=benchmark, samples=samples, curves=curves)
    assert path.stat().st_size < 8_000_000
    return Page(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Page:
    samples = [a_sample("frame_1"), a_sample("<b>frame</b>", height=80, width=60)]
    return written(tmp_path_factory.mktemp("report"), a_benchmark(), samples, some_curves())


def test_nothing_is_loaded_from_anywhere(page: Page) -> None:
    for tag, attributes in page.elements:
        assert tag not in {"link", "iframe", "object", "embed"}
        for name in ("src", "href", "xlink:href", "srcset", "action", "data"):
            assert attributes.get(name, "#").startswith(("#", "data:image/")), (tag, name)
    assert re.findall(r"(?:https?:)?//[a-z]", re.sub(r"data:image/[a-z]+;base64,[\w+/=]+", "", page.markup)) == []
    assert re.findall(r"url\((?!#)|@import", page.markup) == []
    policies = [meta["content"] for meta in page.all("meta") if meta.get("http-equiv") == "Content-Security-Policy"]
    assert len(policies) == 1
    assert policies[0].startswith("default-src 'none'")
    # one script, the page's own: the policy names its hash, and no other can run
    (script,) = re.findall(r"<script>(.*?)</script>", page.markup, re.S)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policies[0]
    assert page.all("script") == [{}]


def test_ids_are_unique_and_links_lead_somewhere(page: Page) -> None:
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    targets = {attributes["href"][1:] for _, attributes in page.elements if "href" in attributes}
    targets |= set(re.findall(r"url\(#([^)]+)\)", page.markup))
    targets |= {attributes["aria-labelledby"] for _, attributes in page.elements if "aria-labelledby" in attributes}
    assert targets <= set(ids)
    assert {"engines", "gallery", "proof", "terms"} <= targets


def test_page_is_accessible(page: Page) -> None:
    assert page.all("html")[0]["lang"] == "en"
    assert len(page.all("h1")) == 1
    pictures = page.all("img")
    assert len(pictures) == 2 * 2 * 6
    assert all(len(picture["alt"]) > 10 for picture in pictures)
    assert all(int(picture["width"]) > 0 and int(picture["height"]) > 0 for picture in pictures)
    assert len({picture["alt"] for picture in pictures}) == len(pictures)
    assert page.all("th")
    assert all(header.get("scope") in {"col", "row", "colgroup"} for header in page.all("th"))
    charts = [attributes for _, attributes in page.elements if attributes.get("role") == "img"]
    assert len(charts) == len(page.all("svg")) == 8
    assert all(len(chart["aria-label"]) > 20 for chart in charts)
    regions = [attributes for _, attributes in page.elements if "scroll" in attributes.get("class", "").split()]
    assert len(regions) == len(page.all("table"))
    assert all(region["tabindex"] == "0" and region["aria-label"] for region in regions)


def test_colours_contrast_in_both_themes(page: Page) -> None:
    def luminance(color: str) -> float:
        channels = [int(color[index : index + 2], 16) / 255 for index in (1, 3, 5)]
        linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    themes = [
        dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", block))
        for block in re.findall(r":root \{(.*?)\}", page.markup, re.S)
    ]
    assert len(themes) == 2
    pairs = [(text, back) for text in ("ink", "muted", "accent") for back in ("page", "surface")]
    pairs += [(tone, f"{tone}-soft") for tone in ("good", "bad", "info", "quiet")] + [("ink", "soft")]
    pairs += [("ink", "good-soft"), ("ink", "bad-soft")]
    for theme in themes:
        for text, back in pairs:
            light, dark = sorted((luminance(theme[text]), luminance(theme[back])), reverse=True)
            assert (light + 0.05) / (dark + 0.05) >= 4.5, (text, back)  # WCAG 2.2, 1.4.3, level AA


def test_names_are_escaped(page: Page) -> None:
    for name in (*CLASSES, "<b>frame</b>", "This machine has no <NVIDIA> driver.", "quick & start", "distill <loss>"):
        assert name in page.text
    assert "boundary $b" in page.text
    assert page.all("b", "nvidia", "loss", "worst") == []
    assert len(page.all("script")) == 1


def test_engine_rows_show_the_measurements(page: Page) -> None:
    rows = {
        row[0].split(" x86")[0].split(" rtx")[0].split(" jetson")[0]: row for row in page.rows if len(row) in (4, 9)
    }
    scores = ["65.0 63.9 to 66.1", "34.1 33.0 to 35.0", ">99.99", "4.4"]
    assert rows["onnxruntime fp32"][2:] == ["42.6", "45.5", "46.9", *scores]
    assert rows["onnxruntime fp32"][1] == "✓ measured gate not held: size_bytes_max: 4,412,345 bytes, the limit is 1"
    assert rows["openvino fp32 lowest p50"][2:] == ["35.9", "38.3", "40.7", "65.0", "34.1", "99.96", "4.5"]
    assert rows["tensorrt fp32"][1:] == ["● built", "This machine has no <NVIDIA> driver.", "9.4"]
    assert rows["tensorrt fp16"][1] == "○ skipped"
    assert rows["tensorrt fp16"][2] == "Not installed: pip install brd-edge[tensorrt]"


def test_verdict_models_classes_and_setup_are_there(page: Page) -> None:
    sentences = (
        "Distillation added nothing to graph, size and layers; whether it added latency is undecided. "
        "The lowest p50, 35.9 ms a frame, is that of openvino fp32, with 65.0 % mIoU. "
        "The student is 6.0 points of mIoU below its teacher. 1 of 3 engines misses a gate. "
        "It is 3.0 points of mIoU above “plain”."
    )
    assert "95 % interval of the difference +1.1 to +4.9" in page.text
    assert sentences in page.text
    assert "5 % of its parameters, 5 % of its MACs" in page.text
    assert [
        "teacher",
        "DeepLabV3Plus / resnet34",
        f"{MISSING} not known",
        "22.4 M",
        "9.00 G",
        "71.0",
        "55.0",
        f"{MISSING} not known",
    ] in page.rows
    assert [CLASSES[2], "40.0", "10.0", f"{MISSING} absent", f"{MISSING} absent", f"{MISSING} absent"] in page.rows
    for fact in ("(97 nodes)", "A CPU", "torch 2.15.0", "96 × 128", "1 min 20 s", "pipelines/quickstart.yaml"):  # noqa: RUF001
        assert fact in page.text
    for term in ("mIoU", "Boundary IoU", "p50, p95, p99", "Argmax agreement"):
        assert f"<dt>{term}</dt>" in page.markup


def test_latencies_and_what_disturbed_them_are_there(page: Page) -> None:
    rows = [row for row in page.rows if row[0].startswith("onnxruntime fp32 engine alone")]
    assert rows == [
        [
            *("onnxruntime fp32 engine alone", "41.2 41.0 to 41.4", "43.0", "44.0", "45.0 from 44.5", "41.5"),
            *("40.0", "75"),
            "Stopped because the intervals were narrow enough. Warning: the <clock> changed.",
        ]
    ]
    assert "51.2 frames a second (50.0 to 52.0) with 2 streams at once" in page.text


def test_all_scores_stand_in_one_table_for_readers_and_screen_readers(page: Page) -> None:
    heading = ["Model or engine", *ACCURACY_HEADERS]
    start = page.rows.index(heading)
    rows = {row[0]: row[1:] for row in page.rows[start + 1 : start + 6]}
    assert list(rows) == [
        *("teacher PyTorch", "plain ONNX Runtime", "student PyTorch"),
        *("onnxruntime fp32 x86-cpu", "openvino fp32 x86-cpu"),
    ]
    found = rows["onnxruntime fp32 x86-cpu"]
    assert found[0] == "65.0 63.9 to 66.1"
    assert found[5] == ">99.99 99.99 to 100.00"
    # what is known of the earlier run is its paired loss
    assert rows["plain ONNX Runtime"][0] == "62.0 −3.00 (−4.90 to −1.10)"  # noqa: RUF001
    table = page.markup[page.markup.index('class="detail"') :].partition("</table>")[0]
    assert "<caption>" in table
    assert table.count("<th ") == table.count('scope="col"') + table.count('scope="row"') == 7 + 5


def test_the_distance_to_the_teacher_has_its_paired_interval(tmp_path: Path) -> None:
    benchmark = a_benchmark()
    lost = {"value": -0.0598, "low": -0.0712, "high": -0.0488, "confidence": 0.95}
    benchmark["teacher"]["lost"] = {"miou": lost}
    page = written(tmp_path, benchmark, [], {})
    assert [row[-1] for row in page.rows if row[:2] == ["student", "Fpn / small"]] == ["−6.0 −7.1 to −4.9"]  # noqa: RUF001


def test_what_a_device_builds_is_not_called_skipped(tmp_path: Path) -> None:
    benchmark = a_benchmark()
    lost = {"miou": {"value": 0.001, "low": 0.0, "high": 0.002, "confidence": 0.95}}
    benchmark["engines"][3] |= {
        "graph": "graphs/e/0/student.onnx",
        "gates": {"miou_drop_max": 1, "uncertain": "broken"},
    }
    benchmark["engines"][3] |= {"gates_broken": [], "attempts": [{"kept": [], "lost": lost, "missed": []}]}
    row = next(row for row in written(tmp_path, benchmark, [], {}).rows if "jetson-orin" in row[0])
    assert "to build on the device" in row[1]
    assert "python -m brd_edge.runtime build BUNDLE" in row[2]
    assert "its graph held the gates of accuracy" in row[2]
    assert not any("skipped" in cell or "Not installed" in cell for cell in row)


def test_classes_have_intervals_over_their_bars(tmp_path: Path) -> None:
    benchmark = a_benchmark()
    benchmark["student"]["intervals"] = {"miou": [0.64, 0.66], "class_iou": [[0.85, 0.925], [0.7, 0.9], None, None]}
    page = written(tmp_path, benchmark, [], {})
    rows = {row[0]: row[1:] for row in page.rows[[row[0] for row in page.rows].index("Class") :]}
    assert rows["road"] == ["95.0", "90.0", "90.0 85.0 to 92.5", "90.0", "90.0"]
    assert rows[CLASSES[3]][2] == "25.0"
    assert rows["Mean (mIoU)"][2] == "65.0 64.0 to 66.0"
    assert '<span class="ends" style="left: 85.0%; width: 7.5%">' in page.markup


def test_ends_that_are_not_known_and_ratios_have_their_intervals(tmp_path: Path) -> None:
    benchmark = a_benchmark()
    engine = benchmark["engines"][0]
    engine |= {"output": "sparse", "output_ratio": {"value": 0.9, "low": 0.88, "high": 0.923, "confidence": 0.95}}
    engine["engine_latency_ms"]["intervals"] |= {"p99": [44.1, None]}
    engine["latency_ms"]["intervals"] = {"p50": [42.0, None], "p95": [45.0, 46.0]}
    page = written(tmp_path, benchmark, [], {})
    assert "coarse logits (0.90 × dense, 0.88 to 0.92)" in page.text  # noqa: RUF001
    assert any("45.0 from 44.1" in row for row in page.rows)
    assert any("42.6 from 42.0" in row for row in page.rows)


def test_attribution_names_losses_and_images(page: Page) -> None:
    rows = {row[0].removesuffix(" swapped: something"): row[1:] for row in page.rows if row}
    assert rows["loader & reading"] == [
        *("65.02", "+0.02 −0.08 to +0.22", "65.02", "+0.02 −0.08 to +0.22", "99.00"),  # noqa: RUF001
        "val/<worst> (1.23 % of the pixels)",
    ]
    assert rows["onnxruntime: precision"][1] == "−3.00 −3.10 to −2.80"  # noqa: RUF001
    assert rows["tensorrt: precision"] == ["Not measured: it does not run here"]


def test_the_proof_of_each_engine_is_there(page: Page) -> None:
    rows = {row[0]: row[1:] for row in page.rows if row}
    assert rows["onnxruntime-fp32-x86-cpu"] == [
        *("✓ equal 138 layers", "✓ equivalent within ±1 %", "1.001 0.996 to 1.006", "120"),
        "control, the undistilled one against itself: 1.001, 0.996 to 1.006",
    ]
    assert rows["openvino-fp32-x86-cpu"][1] == "○ undecided"


def test_failed_proof_is_said_first_and_lists_differences(tmp_path: Path) -> None:
    benchmark = a_benchmark()
    benchmark["zero_cost"].update(equal=False, differences=[f"node {index} <Conv>" for index in range(25)])
    text = written(tmp_path, benchmark, [], {}).text
    assert "The zero-cost proof did not hold." in text
    assert "25 differences from the same student" in text
    assert "node 19 <Conv> and 5 more" in text
    assert "node 20 <Conv>" not in text


def nulled(value: Any) -> Any:
    """Put null where a number was measured, and keep names and structure."""
    if isinstance(value, dict):
        return {key: nulled(item) for key, item in value.items()}
    return value if isinstance(value, str | list) else None


@pytest.mark.parametrize("bare", [False, True])
def test_nothing_measured_is_no_error(tmp_path: Path, bare: bool) -> None:
    benchmark: dict[str, Any] = {"schema_version": 1, "recipe": "bare"}
    if not bare:
        full = a_benchmark()
        benchmark = {**nulled(full), "dataset": full["dataset"], "environment": full["environment"]}
        benchmark |= {"compared": None, "attribution": None}
        benchmark["zero_cost"]["engines"] = []
        benchmark["engines"] = [
            {**nulled(engine), **dict.fromkeys(UNMEASURED), "samples_ms": []} for engine in full["engines"]
        ]
    page = written(tmp_path, benchmark, [], {})
    for word in ("None", "nan", "null", "Undefined"):
        assert re.search(rf"\b{word}\b(?! measured)", page.text) is None
    assert "Zero added inference cost is not proven. No engine was measured." in page.text
    for engine in benchmark.get("engines", []):
        assert any(row[0].startswith(f"{engine['runtime']} {engine['precision']}") for row in page.rows)


def test_same_arguments_give_the_same_bytes_and_leave_matplotlib_alone(tmp_path: Path) -> None:
    settings = dict(mpl.rcParams)
    pages = [written(tmp_path, a_benchmark(), [a_sample("one")], some_curves()).markup for _ in range(2)]
    assert pages[0] == pages[1]
    assert dict(mpl.rcParams) == settings


def test_arguments_are_not_changed(tmp_path: Path) -> None:
    benchmark, sample = a_benchmark(), a_sample("one")
    before, masks = copy.deepcopy(benchmark), {title: mask.copy() for title, mask in sample.masks.items()}
    written(tmp_path, benchmark, [sample], {})
    assert benchmark == before
    assert all(np.array_equal(sample.masks[title], mask) for title, mask in masks.items())


def test_a_plain_students_mask_that_is_missing_is_said(tmp_path: Path) -> None:
    words, sample = "benchmark.compare_run names its run", a_sample("one")
    assert words in written(tmp_path, a_benchmark(), [sample], {}).text
    plain = replace(sample, masks={**sample.masks, PLAIN_TITLE: sample.label})
    assert words not in written(tmp_path, a_benchmark(), [plain], {}).text
    benchmark = a_benchmark()
    benchmark["student"]["method"] = "none"
    assert words not in written(tmp_path, benchmark, [sample], {}).text


def test_the_command_has_its_variables_and_its_source(tmp_path: Path) -> None:
    benchmark = a_benchmark()
    assert "Source:" not in written(tmp_path, benchmark, [], {}).text
    benchmark["command"] = "CAMVID_ROOT=… python -m brd_edge.pipeline pipelines/camvid_cpu.yaml"
    for commit, words in (
        ("abc123", "Source: commit abc123, without changes."),
        ("abc123 with changes", "Source: commit abc123, with changes that are in no commit"),
        (None, "brd_edge was not run from a checkout"),
    ):
        benchmark["environment"]["commit"] = commit
        text = written(tmp_path, benchmark, [], {}).text
        assert f"{benchmark['command']} … stands for a path or value of your own. {words}" in text


def test_file_stays_small_and_says_what_was_left_out(tmp_path: Path) -> None:
    noise = np.random.default_rng(0)
    masks = {f"engine {index}": noise.integers(0, 4, (420, 420)).astype(np.uint8) for index in range(8)}
    image = noise.integers(0, 256, (420, 420, 3)).astype(np.uint8)
    samples = [ReportSample(f"noise {index}", image, masks["engine 0"], masks) for index in range(12)]
    page = written(tmp_path, a_benchmark(), samples, {})
    shown = sum(f"noise {index}" in page.text for index in range(12))
    assert 1 <= shown < 12
    assert f"{12 - shown} more images are not shown" in page.text


def test_wrong_array_is_one_clear_error(tmp_path: Path) -> None:
    sample = a_sample("frame_7")
    logits = {"student": sample.label.astype(np.float32)}
    with pytest.raises(DataError, match=r"'frame_7': mask 'student' must be uint8 \(H, W\), got float32 \(72, 96\)"):
        write_report(
            tmp_path / "report.html",
            benchmark=a_benchmark(),
            samples=[ReportSample("frame_7", sample.image, sample.label, logits)],
            curves={},
        )
    assert not (tmp_path / "report.html").exists()


SORTER = """<!doctype html><body><pre id="found"></pre><iframe src="report.html"></iframe><script>
addEventListener("load", () => {
  const page = document.querySelector("iframe").contentDocument;
  const table = page.querySelector("table.sortable"), found = {};
  const order = () => [...table.tBodies[0].rows].map((row) => row.cells[0].firstChild.textContent.trim());
  found.start = order();
  for (const key of ["p50", "size", "name"]) {
    const heading = table.querySelector(`th[data-key=${key}]`);
    for (const way of ["up", "down"]) {
      heading.querySelector("button").click();
      found[`${key} ${way}`] = order();
      found[`${key} ${way} said`] = heading.getAttribute("aria-sort");
    }
  }
  found.marked = table.querySelectorAll("th[aria-sort]").length;
  document.getElementById("found").textContent = JSON.stringify(found);
});
</script></body>"""

WRAPPER = """<!doctype html><body><pre id="found"></pre>
<iframe src="report.html" style="width: 1280px; height: 900px"></iframe>
<iframe src="report.html" style="width: 390px; height: 800px"></iframe>
<script>
addEventListener("load", () => {
  const found = [...document.querySelectorAll("iframe")].map((frame) => {
    const page = frame.contentDocument, root = page.documentElement;
    const flat = [...page.querySelectorAll("svg, .scroll, .tiles")].filter((e) => e.clientHeight < 20);
    return {
      width: root.clientWidth, scroll: root.scrollWidth, height: root.scrollHeight,
      images: [...page.images].length, broken: [...page.images].filter((i) => !i.complete || !i.naturalWidth).length,
      flat: flat.length, columns: getComputedStyle(page.querySelector(".tiles")).gridTemplateColumns.split(" ").length,
    };
  });
  document.getElementById("found").textContent = JSON.stringify(found);
});
</script></body>"""


PRINTED = """<!doctype html><body><pre id="found"></pre>
<iframe src="report.html" style="width: 718px; height: 900px; border: 0"></iframe>
<script>
addEventListener("load", () => {
  const page = document.querySelector("iframe").contentDocument;
  // what holds for paper now holds here: a page of A4 between its margins, scrolled nowhere
  for (const sheet of page.styleSheets)
    for (const rule of sheet.cssRules)
      if (rule.media?.mediaText === "print") rule.media.mediaText = "all";
  const width = page.documentElement.clientWidth;
  const cut = [...page.querySelectorAll("th, td, .tile, dd, pre")].filter((e) => {
    const box = e.getBoundingClientRect();
    return box.right > width + 0.5 || e.scrollWidth > e.clientWidth + 1;
  });
  const found = {
    width, tables: page.querySelectorAll("table").length, nav: getComputedStyle(page.querySelector("nav")).display,
    cut: cut.map((e) => e.textContent.trim().slice(0, 40)),
  };
  document.getElementById("found").textContent = JSON.stringify(found);
});
</script></body>"""


def in_browser(directory: Path, page: Path, *arguments: str) -> str:
    """Open a page in a real browser, and return what it writes. Nothing may be written to the console."""
    names = ("chromium", "chromium-browser", "google-chrome")
    browser = next(filter(None, map(shutil.which, names)), None)
    if browser is None:
        pytest.skip(f"no headless browser: none of {', '.join(names)} is on PATH (apt-get install chromium)")
    run = subprocess.run(
        [
            browser,
            *("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"),
            *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
            *("--allow-file-access-from-files", "--enable-logging=stderr", "--virtual-time-budget=10000"),
            f"--user-data-dir={directory / 'profile'}",
            "--window-size=1400,1000",
            *arguments,
            page.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert [line for line in run.stderr.splitlines() if "CONSOLE" in line] == []
    return run.stdout


def found_in_browser(directory: Path, wrapper: str) -> Any:
    """Open a page beside the report in a real browser; return what it finds."""
    (directory / "wrapper.html").write_text(wrapper)
    markup = in_browser(directory, directory / "wrapper.html", "--dump-dom")
    match = re.search(r'<pre id="found">(.+?)</pre>', markup)
    assert match is not None, markup
    return json.loads(match[1])


def test_browser_sorts_the_engines(tmp_path: Path) -> None:
    written(tmp_path, a_benchmark(), [], {})
    found = found_in_browser(tmp_path, SORTER)
    recipe = ["onnxruntime fp32", "openvino fp32", "tensorrt fp32", "tensorrt fp16"]
    assert found["start"] == found["name up"] == recipe
    assert found["p50 up"] == ["openvino fp32", "onnxruntime fp32", *recipe[2:]]
    assert found["p50 down"] == recipe  # what was not measured stays last
    assert found["size down"] == ["tensorrt fp32", "openvino fp32", "onnxruntime fp32", "tensorrt fp16"]
    assert (found["size up said"], found["size down said"]) == ("ascending", "descending")
    assert found["name down"] == recipe[::-1]
    assert found["marked"] == 1


def test_browser_shows_it_at_desk_and_phone_width(tmp_path: Path) -> None:
    benchmark = a_benchmark()
    benchmark["recipe"] = "a_long_name_without_a_break_" * 5
    benchmark["engines"][3]["reason"] = "/a/path/that/does/not/end" * 8
    benchmark["engines"] += [{**benchmark["engines"][0], "precision": f"int8-{index}"} for index in range(6)]
    written(tmp_path, benchmark, [a_sample("frame_1"), a_sample("long_name_" * 12)], some_curves())
    desk, phone = found_in_browser(tmp_path, WRAPPER)
    assert desk["scroll"] <= desk["width"]
    assert phone["scroll"] <= phone["width"] <= 390
    assert desk["width"] > 1200
    for shown in (desk, phone):
        assert shown["images"] == 24
        assert shown["broken"] == shown["flat"] == 0
        assert shown["height"] > 2000
    assert desk["columns"] > phone["columns"] == 2


def test_browser_prints_it_whole(tmp_path: Path) -> None:
    benchmark = a_benchmark()
    # as many columns of classes as a recipe with nine engines has, and every cell with its interval
    benchmark["engines"][0]["intervals"]["class_iou"] = [[0.85, 0.925], [0.7, 0.9], None, [0.2, 0.3]]
    benchmark["engines"] += [{**benchmark["engines"][0], "precision": f"int8-bf16-{index}"} for index in range(6)]
    written(tmp_path, benchmark, [a_sample("frame_1")], some_curves())
    pdf = tmp_path / "report.pdf"
    in_browser(tmp_path, tmp_path / "report.html", f"--print-to-pdf={pdf}", "--no-pdf-header-footer")
    content = pdf.read_bytes()
    assert content.startswith(b"%PDF-")
    assert content.rstrip().endswith(b"%%EOF")
    assert 10_000 < len(content) < 8_000_000
    pages = len(re.findall(rb"/Type\s*/Page\b", content))
    assert 4 <= pages <= 20
    found = found_in_browser(tmp_path, PRINTED)
    assert found["nav"] == "none", "the print rules are in force"
    assert found["tables"] == 7
    assert found["cut"] == []
