"""Charts are read as XML; what is drawn is compared with the data it stands for."""

from __future__ import annotations

import math
import re
from xml.etree import ElementTree

import numpy as np
import pytest

from brd_edge.evaluate.plots import Curve, EnginePoint, curves_svg, latency_distribution_svg, latency_miou_svg


def parsed(svg: str) -> ElementTree.Element:
    assert svg.startswith("<svg ")
    assert re.findall(r"#0[0-9a-f]{5}\b", svg) == []  # every colour was exchanged for the page's
    for foreign in ("<style", "<metadata", "http", "DOCTYPE", "<?xml"):
        assert foreign not in svg
    return ElementTree.fromstring(svg)  # noqa: S314 (our own output)


def texts(svg: ElementTree.Element) -> list[str]:
    return ["".join(element.itertext()).strip() for element in svg.iter("text")]


def test_engines_and_levels_are_named_as_text() -> None:
    points = [EnginePoint("a $x < fp32", 40.0, 0.61, 0), EnginePoint("b & c", 30.0, 0.60, 1)]
    svg = parsed(latency_miou_svg(points, [("teacher", 0.7), ("日本", 0.5)]))
    assert {"a $x < fp32", "b & c", "teacher 70.0", "日本 50.0", "latency, ms"} <= set(texts(svg))


@pytest.mark.parametrize("latencies", [[3.0], [3.0, 3.0], [0.5, 50.0], [0.0, 1.0]])
def test_any_latencies_can_be_drawn(latencies: list[float]) -> None:
    points = [EnginePoint(f"engine {index}", value, 0.5, index) for index, value in enumerate(latencies)]
    svg = parsed(latency_miou_svg(points, []))
    assert ("latency, ms (logarithmic)" in texts(svg)) == (latencies == [0.5, 50.0])
    rows = [(point.label, point.series, [point.latency_ms] * 3) for point in points]
    assert {point.label for point in points} <= set(texts(parsed(latency_distribution_svg(rows))))


def test_labels_of_close_points_do_not_cover_each_other() -> None:
    points = [EnginePoint(f"openvino int{index}", 20 + 0.5 * index, 0.6, index) for index in range(4)]
    svg = latency_miou_svg(points, [("student", 0.6)])
    number = r"(-?[\d.]+)"
    anchors = re.findall(rf'<text[^>]*(?:translate\({number} {number}\)|x="{number}" y="{number}")[^>]*>openvino', svg)
    places = [(float(a or c), float(b or d)) for a, b, c, d in anchors]
    assert len(places) == 4
    for index, (x, y) in enumerate(places):
        for other_x, other_y in places[:index]:
            assert abs(y - other_y) > 9 or abs(x - other_x) > 60


def test_many_samples_stay_few_marks() -> None:
    samples = np.random.default_rng(0).gamma(2, 1, 20_000) + 10
    svg = latency_distribution_svg([("engine", 0, samples.tolist())])
    assert svg.count("<use") < 300
    assert len(svg) < 60_000


def test_long_curves_are_condensed_and_gaps_stay_gaps() -> None:
    steps = list(range(50_000))
    values = [math.nan if 20_000 <= step < 30_000 else 1.0 + step / 1e5 for step in steps]
    svg = curves_svg("loss", [Curve("x", steps, values)])
    parsed(svg)
    assert len(svg) < 40_000
    line = re.search(r'<g id="loss-line2d_\d+">\s*<path d="([^"]+)"[^>]*stroke: var\(--s0\)', svg)
    assert line is not None
    assert line[1].count("M") == 2


def test_curves_spanning_decades_get_a_logarithmic_axis() -> None:
    steep = curves_svg("c0", [Curve("x", [0, 1, 2], [1000.0, 10.0, 0.1])])
    flat = curves_svg("c0", [Curve("x", [0, 1, 2], [3.0, 2.0, 1.0])])
    assert {"0.1", "10", "1000"} <= set(texts(parsed(steep)))
    assert {"1.0", "2.0", "3.0"} <= set(texts(parsed(flat)))


def test_same_data_give_the_same_bytes_and_ids_carry_the_charts_name() -> None:
    curves = [Curve("x", [0, 1, 2], [3.0, 2.0, 1.0])]
    assert curves_svg("c0", curves) == curves_svg("c0", curves)
    ids = {element.get("id") for element in parsed(curves_svg("c1", curves)).iter() if element.get("id")}
    assert ids
    assert all(name is not None and name.startswith("c1-") for name in ids)
