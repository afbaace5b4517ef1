"""The report's charts of latency, accuracy and training, as inline SVG; see `brd_edge.evaluate.report.svg`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from brd_edge.evaluate.report.svg import (
    INK,
    MUTED,
    SERIES,
    SOFT,
    SURFACE,
    new_figure,
    place_label,
    plain_ticks,
    series_color,
    style_axes,
    to_svg,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.transforms import Bbox

__all__ = [
    "Curve",
    "EnginePoint",
    "curves_svg",
    "latency_distribution_svg",
    "pareto_front",
    "ratios_svg",
    "tradeoff_svg",
]

_MARKERS = "osD^vPXh"
_MAX_POINTS = 300
_MAX_DOTS = 160
_NEAR_PT = 15


@dataclass(frozen=True)
class Curve:
    """One line of a training chart.

    Attributes:
        name: What the line shows, for the legend.
        steps: Optimiser steps, rising.
        values: One value a step; values that are not finite leave a gap.
    """

    name: str
    steps: list[int]
    values: list[float]


@dataclass(frozen=True)
class EnginePoint:
    """An engine in a chart of latency against a score.

    Attributes:
        label: Its name.
        latency_ms: p50.
        score: For example mIoU, 0 to 1.
        series: Number of its colour and marker.
        latency_interval_ms: Ends of the interval of p50, or None.
        score_interval: Ends of the interval of the score, or None.
    """

    label: str
    latency_ms: float
    score: float
    series: int
    latency_interval_ms: tuple[float, float] | None = None
    score_interval: tuple[float, float] | None = None


def pareto_front(points: Sequence[EnginePoint]) -> list[EnginePoint]:
    """Return the engines that no other one beats in both latency and score, the fastest first."""
    front: list[EnginePoint] = []
    for point in sorted(points, key=lambda point: (point.latency_ms, -point.score)):
        if not front or point.score > front[-1].score:
            front.append(point)
    return front


def tradeoff_svg(
    name: str, points: Sequence[EnginePoint], references: Sequence[tuple[str, float]], *, score: str
) -> str:
    """Draw engines by latency and a score, with models that have no engine as dashed levels.

    Args:
        name: A word that is unique among the page's charts; it prefixes the drawing's ids.
        points: At least one engine.
        references: Name and score (0 to 1) of each level, such as the teacher.
        score: What the score is called.

    Returns:
        An `<svg>` element.
    """
    with new_figure(height_pt=280 + 14 * max(0, len(points) - 4)) as figure:
        axes = figure.add_subplot()
        style_axes(axes, grid="both")
        _latency_axis(axes, [point.latency_ms for point in points], from_zero=True)
        ends = [end for point in points for end in point.score_interval or (point.score,)]
        levels = [100 * level for level in (*ends, *(level for _, level in references))]
        middle, half = (max(levels) + min(levels)) / 2, max((max(levels) - min(levels)) / 2, 2.0)
        axes.set_ylim(middle - 1.25 * half, middle + 1.25 * half)
        axes.set_ylabel(f"{score}, %")
        _draw_front(axes, pareto_front(points))
        for point in points:
            _draw_point(axes, point)
        figure.draw_without_rendering()
        taken = [box for point in points for box in _marker_boxes(axes, point)]
        _label_levels(axes, references, taken)
        _label_points(axes, points, taken)
        return to_svg(figure, name)


def _draw_front(axes: Axes, front: Sequence[EnginePoint]) -> None:
    """Draw the steps of the front: for every latency, the best score that can be had within it."""
    if len(front) < 2:
        return
    axes.step(
        [point.latency_ms for point in front],
        [100 * point.score for point in front],
        where="post",
        color=MUTED,
        linewidth=1.2,
        zorder=1.5,
    )


def _draw_point(axes: Axes, point: EnginePoint) -> None:
    color = series_color(point.series)
    if point.score_interval is not None:
        ends = [100 * end for end in point.score_interval]
        axes.plot([point.latency_ms] * 2, ends, color=color, linewidth=1.4, alpha=0.7)
    if point.latency_interval_ms is not None:
        axes.plot(point.latency_interval_ms, [100 * point.score] * 2, color=color, linewidth=1.4, alpha=0.7)
    axes.plot(
        [point.latency_ms],
        [100 * point.score],
        linestyle="none",
        marker=_MARKERS[point.series % len(_MARKERS)],
        markersize=8.5,
        color=color,
        markeredgecolor=SURFACE,
    )


def latency_distribution_svg(rows: Sequence[tuple[str, int, Sequence[float]]]) -> str:
    """Draw every engine's latency samples: dots, the middle half as a bar, the median and p95.

    Args:
        rows: Label, series number and samples in milliseconds (at least one) of each engine.

    Returns:
        An `<svg>` element.
    """
    with new_figure(height_pt=52 + (70 if len(rows) <= 3 else 48) * len(rows)) as figure:
        axes = figure.add_subplot()
        style_axes(axes, grid="x")
        everything = np.array([value for _, _, samples in rows for value in samples])
        # one stray sample must not squeeze all the others into a corner
        _latency_axis(axes, everything[everything <= np.percentile(everything, 99.7)], from_zero=False)
        for row, (label, series, samples) in enumerate(rows):
            _distribution_row(axes, row, series_color(series), np.asarray(samples, dtype=np.float64))
            # above its row, where a long name takes no width from the chart
            axes.text(0, row - 0.37, label, transform=axes.get_yaxis_transform(), color=INK, va="center")
        axes.set_yticks([])
        axes.set_ylim(len(rows) - 0.5, -0.55)
        axes.spines["left"].set_visible(False)
        return to_svg(figure, "latency-distribution")


def ratios_svg(rows: Sequence[tuple[str, int, Sequence[float]]], *, margin: float) -> str:
    """Draw ratios of latency with their intervals, and the margin within which they count as none.

    Args:
        rows: Label, series number, and the ratio with the ends of its interval, of each engine.
        margin: As a share, such as 0.01.

    Returns:
        An `<svg>` element.
    """
    with new_figure(height_pt=56 + 44 * len(rows)) as figure:
        axes = figure.add_subplot()
        style_axes(axes, grid="x")
        axes.axvspan(-100 * margin, 100 * margin, color=SOFT, zorder=0.5)
        axes.axvline(0, color=MUTED, linewidth=1)
        reach = 100 * margin
        for row, (label, series, (ratio, low, high)) in enumerate(rows):
            value, ends = 100 * (ratio - 1), [100 * (low - 1), 100 * (high - 1)]
            reach = max(reach, *(abs(end) for end in ends))
            axes.plot(ends, [row + 0.1] * 2, color=series_color(series), linewidth=2)
            axes.plot([value], [row + 0.1], marker=_MARKERS[series % len(_MARKERS)], color=series_color(series))
            axes.text(0, row - 0.34, label, transform=axes.get_yaxis_transform(), color=INK, va="center")
        axes.set_xlim(-1.15 * reach, 1.15 * reach)
        axes.set_yticks([])
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.spines["left"].set_visible(False)
        axes.set_xlabel("slower than the undistilled engine, %")
        return to_svg(figure, "added-cost")


def curves_svg(name: str, curves: Sequence[Curve]) -> str:
    """Draw training curves in one chart, in the series colours 0, 1, 2, …; the page writes the legend.

    A long curve is drawn as the means of equal runs of steps.

    Args:
        name: A word that is unique among the page's charts; it prefixes the drawing's ids.
        curves: At least one curve with at least one value.

    Returns:
        An `<svg>` element.
    """
    from matplotlib.ticker import MaxNLocator

    with new_figure(height_pt=230) as figure:
        axes = figure.add_subplot()
        style_axes(axes, grid="both")
        seen: list[float] = []
        for index, curve in enumerate(curves):
            steps, values = _condensed(curve)
            seen += [value for value in values.tolist() if math.isfinite(value)]
            axes.plot(
                steps,
                values,
                color=series_color(index),
                linewidth=1.8,
                linestyle="solid" if index < SERIES else "dashed",
                marker="o" if len(steps) <= 12 else "none",
                markersize=4,
            )
        if seen and min(seen) > 0 and max(seen) / min(seen) > 100:
            axes.set_yscale("log")
            plain_ticks(axes.yaxis)
        axes.set_xlabel("step")
        axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True))
        axes.margins(x=0.02)
        return to_svg(figure, name)


def _latency_axis(axes: Axes, latencies_ms: Sequence[float] | np.ndarray, *, from_zero: bool) -> None:
    from matplotlib.ticker import LogLocator

    least, most = float(np.min(latencies_ms)), float(np.max(latencies_ms))
    if least > 0 and most / least > 10:
        axes.set_xscale("log")
        axes.set_xlim(least / 1.5, most * 1.8)
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        plain_ticks(axes.xaxis)
        axes.set_xlabel("latency, ms (logarithmic)")
        return
    margin = 0.08 * (most - least) or 0.1 * most or 1.0
    axes.set_xlim(*((0.0, 1.18 * most or 1.0) if from_zero else (max(0.0, least - margin), most + margin)))
    axes.set_xlabel("latency, ms")


def _label_levels(axes: Axes, references: Sequence[tuple[str, float]], taken: list[Bbox]) -> None:
    """Draw the dashed levels; a name that would cover another goes under its line or to the right."""
    from matplotlib.transforms import Bbox

    frame = axes.get_window_extent()
    lines = []
    for name, level in references:
        height = axes.transData.transform((0, 100 * level))[1]
        lines.append(Bbox.from_extents(frame.x0, height - 1, frame.x1, height + 1))
        axes.axhline(100 * level, color=MUTED, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
        label = axes.annotate(
            f"{name} {100 * level:.1f}",
            (0.0, 100 * level),
            xycoords=("axes fraction", "data"),
            xytext=(4, 3),
            textcoords="offset points",
            color=MUTED,
            fontsize=10.5,
        )
        place_label(axes, label, taken, [(4, 3, "left", "bottom"), (4, -3, "left", "top"), (110, 3, "left", "bottom")])
    # the names of the points keep off the lines too
    taken += lines


def _marker_boxes(axes: Axes, point: EnginePoint) -> list[Bbox]:
    """Return what a point takes: its marker, and the line of its score's interval."""
    from matplotlib.transforms import Bbox

    x, y = axes.transData.transform((point.latency_ms, 100 * point.score))
    boxes = [Bbox.from_extents(x - 5, y - 5, x + 5, y + 5)]
    if point.score_interval is not None:
        low, high = (axes.transData.transform((0, 100 * end))[1] for end in point.score_interval)
        boxes.append(Bbox.from_extents(x - 2, low, x + 2, high))
    return boxes


def _label_points(axes: Axes, points: Sequence[EnginePoint], taken: list[Bbox]) -> None:
    candidates = [
        (0, 10, "center", "bottom"),
        (0, -10, "center", "top"),
        *(
            (side * 10, 14 * rise, where, "center")
            for rise in (0, 1, -1)
            for side, where in ((1, "left"), (-1, "right"))
        ),
        # farther and farther away, each with a line to its point
        *(
            (across, way * (10 + 15 * lane), where, side)
            for lane in range(1, 8)
            for way, side in ((1, "bottom"), (-1, "top"))
            for across, where in ((0, "center"), (14, "left"), (-14, "right"))
        ),
    ]
    for point in points:
        label = axes.annotate(
            point.label,
            (point.latency_ms, 100 * point.score),
            xytext=(0, 10),
            textcoords="offset points",
            color=INK,
        )
        place_label(axes, label, taken, candidates)
        _draw_leader(axes, point, label.get_position())


def _draw_leader(axes: Axes, point: EnginePoint, offset_pt: tuple[float, float]) -> None:
    """Draw a line from a point to its label, where that lies some way off."""
    if abs(offset_pt[1]) > _NEAR_PT:
        axes.annotate(
            "",
            (point.latency_ms, 100 * point.score),
            xytext=offset_pt,
            textcoords="offset points",
            arrowprops={"arrowstyle": "-", "color": MUTED, "linewidth": 0.6, "shrinkA": 0, "shrinkB": 5},
        )


def _distribution_row(axes: Axes, row: float, color: str, samples: np.ndarray) -> None:
    chosen = samples[np.linspace(0, len(samples) - 1, min(len(samples), _MAX_DOTS)).astype(int)]
    # the golden ratio spreads the dots evenly, and alike in every run
    spread = (np.arange(len(chosen)) * 0.618034 % 1 - 0.5) * 0.36
    row = row + 0.08
    axes.plot(chosen, row + spread, linestyle="none", marker="o", markersize=3, color=color, alpha=0.35, mew=0)
    low, median, high, late = np.percentile(samples, [25, 50, 75, 95])
    axes.plot([low, high], [row, row], color=color, linewidth=9, solid_capstyle="butt", alpha=0.55)
    axes.plot([median, median], [row - 0.24, row + 0.24], color=INK, linewidth=2)
    axes.plot([late, late], [row - 0.18, row + 0.18], color=color, linewidth=2)


def _condensed(curve: Curve) -> tuple[np.ndarray, np.ndarray]:
    steps, values = np.asarray(curve.steps, dtype=np.float64), np.asarray(curve.values, dtype=np.float64)
    values = np.where(np.isfinite(values), values, np.nan)
    if len(steps) <= _MAX_POINTS:
        return steps, values
    edges = np.linspace(0, len(steps), _MAX_POINTS + 1).astype(int)
    parts = [slice(start, stop) for start, stop in pairwise(edges)]
    means = [np.nanmean(values[part]) if np.isfinite(values[part]).any() else math.nan for part in parts]
    return np.array([steps[part].mean() for part in parts]), np.array(means)
