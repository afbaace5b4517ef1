"""The report's charts, as inline SVG that takes its colours and its font from the page.

Every chart is drawn on a `Figure` of its own; nothing touches pyplot's global state. Colours are
written as placeholders and exchanged for CSS variables, so that one drawing serves the light and
the dark page. The same data always give the same bytes.
"""

from __future__ import annotations

import io
import math
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure
    from matplotlib.text import Annotation
    from matplotlib.transforms import Bbox

__all__ = ["SERIES", "Curve", "EnginePoint", "curves_svg", "latency_distribution_svg", "latency_miou_svg"]

SERIES = 8  # how many series colours the page defines, as --s0 to --s7

_INK, _MUTED, _LINE, _SURFACE = "#010203", "#010204", "#010205", "#010206"
_CSS = {_INK: "var(--ink)", _MUTED: "var(--muted)", _LINE: "var(--line)", _SURFACE: "var(--surface)"}
_MARKERS = "osD^vPXh"
_WIDTH_PT = 460
_MAX_POINTS = 300
_MAX_DOTS = 160


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
    """An engine in the chart of latency against mIoU: p50 in milliseconds, mIoU from 0 to 1."""

    label: str
    latency_ms: float
    miou: float
    series: int


def latency_miou_svg(points: Sequence[EnginePoint], references: Sequence[tuple[str, float]]) -> str:
    """Draw engines by latency and mIoU, with models that have no engine as dashed levels.

    Args:
        points: At least one engine.
        references: Name and mIoU (0 to 1) of each level, such as the teacher.

    Returns:
        An `<svg>` element.
    """
    with _figure(height_pt=280 + 14 * max(0, len(points) - 4)) as figure:
        axes = figure.add_subplot()
        _style(axes, grid="both")
        _latency_axis(axes, [point.latency_ms for point in points], from_zero=True)
        levels = [100 * point.miou for point in points] + [100 * level for _, level in references]
        middle, half = (max(levels) + min(levels)) / 2, max((max(levels) - min(levels)) / 2, 2.0)
        axes.set_ylim(middle - 1.25 * half, middle + 1.25 * half)
        axes.set_ylabel("mIoU, %")
        for point in points:
            axes.plot(
                [point.latency_ms],
                [100 * point.miou],
                linestyle="none",
                marker=_MARKERS[point.series % len(_MARKERS)],
                markersize=8.5,
                color=_series(point.series),
                markeredgecolor=_SURFACE,
            )
        figure.draw_without_rendering()
        taken = [_marker_box(axes, point) for point in points]
        _label_levels(axes, references, taken)
        _label_points(axes, points, taken)
        return _svg(figure, "latency-miou")


def latency_distribution_svg(rows: Sequence[tuple[str, int, Sequence[float]]]) -> str:
    """Draw every engine's latency samples: dots, the middle half as a bar, the median and p95.

    Args:
        rows: Label, series number and samples in milliseconds (at least one) of each engine.

    Returns:
        An `<svg>` element.
    """
    with _figure(height_pt=52 + (70 if len(rows) <= 3 else 48) * len(rows)) as figure:
        axes = figure.add_subplot()
        _style(axes, grid="x")
        everything = np.array([value for _, _, samples in rows for value in samples])
        # one stray sample must not squeeze all the others into a corner
        _latency_axis(axes, everything[everything <= np.percentile(everything, 99.7)], from_zero=False)
        for row, (label, series, samples) in enumerate(rows):
            _distribution_row(axes, row, _series(series), np.asarray(samples, dtype=np.float64))
            # above its row, where a long name takes no width from the chart
            axes.text(0, row - 0.37, label, transform=axes.get_yaxis_transform(), color=_INK, va="center")
        axes.set_yticks([])
        axes.set_ylim(len(rows) - 0.5, -0.55)
        axes.spines["left"].set_visible(False)
        return _svg(figure, "latency-distribution")


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

    with _figure(height_pt=230) as figure:
        axes = figure.add_subplot()
        _style(axes, grid="both")
        seen: list[float] = []
        for index, curve in enumerate(curves):
            steps, values = _condensed(curve)
            seen += [value for value in values.tolist() if math.isfinite(value)]
            axes.plot(
                steps,
                values,
                color=_series(index),
                linewidth=1.8,
                linestyle="solid" if index < SERIES else "dashed",
                marker="o" if len(steps) <= 12 else "none",
                markersize=4,
            )
        if seen and min(seen) > 0 and max(seen) / min(seen) > 100:
            axes.set_yscale("log")
            _plain_ticks(axes.yaxis)
        axes.set_xlabel("step")
        axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True))
        axes.margins(x=0.02)
        return _svg(figure, name)


@contextmanager
def _figure(*, height_pt: float) -> Iterator[Figure]:
    """Yield a figure whose settings hold only until it is written."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    settings = mpl.rc_context(
        {
            "svg.fonttype": "none",
            "svg.hashsalt": "brd-edge",
            "text.parse_math": False,  # a name may hold a dollar sign
            "font.size": 11.5,
        }
    )
    with settings, warnings.catch_warnings():
        # the page's own font draws the text; matplotlib's only measures it
        warnings.filterwarnings("ignore", message=r"Glyph .* missing from", category=UserWarning)
        figure = Figure(figsize=(_WIDTH_PT / 72, height_pt / 72), dpi=72, layout="constrained", facecolor="none")
        yield figure


def _style(axes: Axes, *, grid: str) -> None:
    axes.set_facecolor("none")
    for side, spine in axes.spines.items():
        spine.set_visible(side in {"left", "bottom"})
        spine.set_color(_LINE)
    axes.tick_params(which="both", color=_MUTED)
    axes.tick_params(colors=_MUTED, labelcolor=_MUTED, length=3, labelsize=11)
    axes.xaxis.label.set_color(_MUTED)
    axes.yaxis.label.set_color(_MUTED)
    axes.set_axisbelow(True)
    axes.grid(visible=True, axis="x" if grid == "x" else "both", color=_LINE, linewidth=0.8)


def _latency_axis(axes: Axes, latencies_ms: Sequence[float] | np.ndarray, *, from_zero: bool) -> None:
    from matplotlib.ticker import LogLocator

    least, most = float(np.min(latencies_ms)), float(np.max(latencies_ms))
    if least > 0 and most / least > 10:
        axes.set_xscale("log")
        axes.set_xlim(least / 1.5, most * 1.8)
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        _plain_ticks(axes.xaxis)
        axes.set_xlabel("latency, ms (logarithmic)")
        return
    margin = 0.08 * (most - least) or 0.1 * most or 1.0
    axes.set_xlim(*((0.0, 1.18 * most or 1.0) if from_zero else (max(0.0, least - margin), most + margin)))
    axes.set_xlabel("latency, ms")


def _plain_ticks(axis: Axis) -> None:
    """Write a logarithmic axis's numbers out, without the powers of ten that need mathematical setting."""
    from matplotlib.ticker import NullFormatter, StrMethodFormatter

    axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.set_minor_formatter(NullFormatter())


def _label_levels(axes: Axes, references: Sequence[tuple[str, float]], taken: list[Bbox]) -> None:
    """Draw the dashed levels; a name that would cover another goes under its line or to the right."""
    for name, level in references:
        axes.axhline(100 * level, color=_MUTED, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
        label = axes.annotate(
            f"{name} {100 * level:.1f}",
            (0.0, 100 * level),
            xycoords=("axes fraction", "data"),
            xytext=(4, 3),
            textcoords="offset points",
            color=_MUTED,
            fontsize=10.5,
        )
        _place(axes, label, taken, [(4, 3, "left", "bottom"), (4, -3, "left", "top"), (110, 3, "left", "bottom")])


def _marker_box(axes: Axes, point: EnginePoint) -> Bbox:
    from matplotlib.transforms import Bbox

    x, y = axes.transData.transform((point.latency_ms, 100 * point.miou))
    return Bbox.from_extents(x - 5, y - 5, x + 5, y + 5)


def _label_points(axes: Axes, points: Sequence[EnginePoint], taken: list[Bbox]) -> None:
    candidates = [
        (0, 10, "center", "bottom"),
        (0, -10, "center", "top"),
        *(
            (side * 10, 14 * rise, where, "center")
            for rise in (0, 1, -1)
            for side, where in ((1, "left"), (-1, "right"))
        ),
        *((0, 10 + 15 * lane, "center", "bottom") for lane in (1, 2, 3)),
        *((0, -10 - 15 * lane, "center", "top") for lane in (1, 2, 3)),
    ]
    for point in points:
        label = axes.annotate(
            point.label,
            (point.latency_ms, 100 * point.miou),
            xytext=(0, 10),
            textcoords="offset points",
            color=_INK,
        )
        _place(axes, label, taken, candidates)


def _place(axes: Axes, label: Annotation, taken: list[Bbox], candidates: Sequence[tuple[int, int, str, str]]) -> None:
    """Move a label to the first of its places that is free and inside the axes; else to the first of all."""
    frame = axes.get_window_extent()
    for dx, dy, horizontal, vertical in [*candidates, candidates[0]]:
        label.set_position((dx, dy))
        label.set_horizontalalignment(horizontal)  # type: ignore[arg-type]
        label.set_verticalalignment(vertical)  # type: ignore[arg-type]
        box = label.get_window_extent()
        inside = box.x0 >= frame.x0 and box.x1 <= frame.x1 and box.y0 >= frame.y0 and box.y1 <= frame.y1
        if inside and not any(box.overlaps(other) for other in taken):
            break
    taken.append(label.get_window_extent())


def _distribution_row(axes: Axes, row: float, color: str, samples: np.ndarray) -> None:
    chosen = samples[np.linspace(0, len(samples) - 1, min(len(samples), _MAX_DOTS)).astype(int)]
    # the golden ratio spreads the dots evenly, and alike in every run
    spread = (np.arange(len(chosen)) * 0.618034 % 1 - 0.5) * 0.36
    row = row + 0.08
    axes.plot(chosen, row + spread, linestyle="none", marker="o", markersize=3, color=color, alpha=0.35, mew=0)
    low, median, high, late = np.percentile(samples, [25, 50, 75, 95])
    axes.plot([low, high], [row, row], color=color, linewidth=9, solid_capstyle="butt", alpha=0.55)
    axes.plot([median, median], [row - 0.24, row + 0.24], color=_INK, linewidth=2)
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


def _series(index: int) -> str:
    return f"#0a0b{index % SERIES:02x}"


def _svg(figure: Figure, name: str) -> str:
    """Write a figure as an `<svg>` element that fits into a page beside others."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    # what matplotlib puts there for viewers of lone files; its <style> would reach the whole page
    text = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", text, flags=re.DOTALL)
    view_box = re.search(r'viewBox="[^"]*"', text)
    assert view_box is not None
    text = re.sub(r"<svg\b[^>]*>", f'<svg {view_box.group()} aria-hidden="true" focusable="false">', text, count=1)
    text = text.replace("xlink:href", "href")
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r'href="#', f'href="#{name}-', text).replace("url(#", f"url(#{name}-")
    for index in range(SERIES):
        text = text.replace(_series(index), f"var(--s{index})")
    for placeholder, variable in _CSS.items():
        text = text.replace(placeholder, variable)
    return re.sub(r"\n\s*\n+", "\n", text).strip()
