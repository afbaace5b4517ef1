"""Charts are read as XML; what is drawn is compared with the data it stands for."""

from __future__ import annotations

import math
import re
from xml.etree import ElementTree

import numpy as np
import pytest

from brd_edge.evaluate.report.plots import (
    Curve,
    EnginePoint,
    curves_svg,
    latency_distribution_svg,
    pareto_front,
    ratios_svg,
    tradeoff_svg,
)
from brd_edge.evaluate.report.waterfall import WaterfallStep, waterfall_svg


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
    svg = parsed(tradeoff_svg("x", points, [("teacher", 0.7), ("日本", 0.5)], score="mIoU"))
    assert {"a $x < fp32", "b & c", "teacher 70.0", "日本 50.0", "latency, ms", "mIoU, %"} <= set(texts(svg))


@pytest.mark.parametrize("latencies", [[3.0], [3.0, 3.0], [0.5, 50.0], [0.0, 1.0]])
def test_any_latencies_can_be_drawn(latencies: list[float]) -> None:
    points = [EnginePoint(f"engine {index}", value, 0.5, index) for index, value in enumerate(latencies)]
    svg = parsed(tradeoff_svg("x", points, [], score="mIoU"))
    assert ("latency, ms (logarithmic)" in texts(svg)) == (latencies == [0.5, 50.0])
    rows = [(point.label, point.series, [point.latency_ms] * 3) for point in points]
    assert {point.label for point in points} <= set(texts(parsed(latency_distribution_svg(rows))))


def test_labels_of_close_points_do_not_cover_each_other() -> None:
    points = [EnginePoint(f"openvino int{index}", 20 + 0.5 * index, 0.6, index) for index in range(4)]
    svg = tradeoff_svg("x", points, [("student", 0.6)], score="mIoU")
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


def test_the_front_is_what_no_other_engine_beats() -> None:
    rng = np.random.default_rng(4)
    points = [EnginePoint(str(index), *pair, index) for index, pair in enumerate(rng.random((40, 2)).round(1).tolist())]
    front = pareto_front(points)
    for point in points:
        beaten = [
            other
            for other in points
            if other.latency_ms <= point.latency_ms
            and other.score >= point.score
            and (other.latency_ms, other.score) != (point.latency_ms, point.score)
        ]
        # of equal ones, one stands for all
        assert bool(beaten) or any((point.latency_ms, point.score) == (f.latency_ms, f.score) for f in front)
        assert not (beaten and point in front)
    assert [point.latency_ms for point in front] == sorted(point.latency_ms for point in front)


def lines(svg: str, color: str) -> list[list[tuple[float, float]]]:
    """Return the ends of all straight lines of a colour, in the drawing's coordinates."""
    paths = re.findall(rf'<path d="([^"]+)"[^>]*stroke: {re.escape(color)}', svg)
    return [[(float(x), float(y)) for x, y in re.findall(r"[ML] (-?[\d.]+) (-?[\d.]+)", path)] for path in paths]


def test_intervals_are_drawn_to_scale() -> None:
    points = [EnginePoint("a", 10.0, 0.5, 0, (9.0, 12.0), (0.40, 0.55)), EnginePoint("b", 20.0, 0.6, 1)]
    svg = tradeoff_svg("x", points, [], score="mIoU")
    vertical, horizontal = lines(svg, "var(--s0)")[:2]
    assert vertical[0][0] == vertical[1][0]
    assert horizontal[0][1] == horizontal[1][1]
    up, down = horizontal[0][1] - vertical[1][1], vertical[0][1] - horizontal[0][1]
    assert down / up == pytest.approx(2.0, rel=1e-3)  # 10 points below, 5 above
    x = vertical[0][0]
    assert (horizontal[1][0] - x) / (x - horizontal[0][0]) == pytest.approx(2.0, rel=1e-3)


def test_a_waterfall_goes_from_score_to_score() -> None:
    steps = [
        WaterfallStep("as trained", None, 0.50),
        WaterfallStep("loader & co", 0.50, 0.49, (0.485, 0.495)),
        WaterfallStep("int8", 0.49, 0.47),
        WaterfallStep("elsewhere", 0.49, None),
        WaterfallStep("better", 0.49, 0.50),
    ]
    svg = waterfall_svg("w", steps, score="mIoU")
    assert {step.label for step in steps} | {"not measured", "mIoU, %"} <= set(texts(parsed(svg)))
    (small, large), (gain,) = lines(svg, "var(--bad)"), lines(svg, "var(--good)")
    assert (small[1][0] - small[0][0]) * 2 == pytest.approx(large[1][0] - large[0][0], rel=1e-3)
    assert gain[1][0] - gain[0][0] == pytest.approx(small[0][0] - small[1][0], rel=1e-3)
    assert large[0][0] == small[1][0]


def test_steps_that_lose_nothing_look_like_nothing() -> None:
    steps = [WaterfallStep("start", None, 0.5), WaterfallStep("same", 0.5, 0.50001)]
    (bar,) = lines(waterfall_svg("w", steps, score="mIoU"), "var(--good)")
    assert bar[1][0] - bar[0][0] < 2


def test_ratios_are_drawn_around_no_difference() -> None:
    svg = ratios_svg([("a", 0, (1.0, 0.99, 1.01)), ("b", 1, (1.03, 1.02, 1.04))], margin=0.01)
    assert {"a", "b", "slower than the undistilled engine, %"} <= set(texts(parsed(svg)))
    (even,), (slower,) = lines(svg, "var(--s0)")[:1], lines(svg, "var(--s1)")[:1]
    zero = (even[0][0] + even[1][0]) / 2
    assert slower[0][0] - zero == pytest.approx(even[1][0] - even[0][0], rel=1e-3)
