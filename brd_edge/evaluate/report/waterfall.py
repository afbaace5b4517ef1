"""The report's chart of where accuracy went: one bar a step, from the score before it to the score after it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from brd_edge.evaluate.report.svg import BAD, GOOD, INK, MUTED, new_figure, series_color, style_axes, to_svg

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["WaterfallStep", "waterfall_svg"]

_SPAN_MIN = 0.5
"""Points that the axis shows at least: differences of nothing must not look like something."""


@dataclass(frozen=True)
class WaterfallStep:
    """A step between two scores (0 to 1).

    Attributes:
        label: What was swapped.
        before: Score before it; None for the first row, which only has a level.
        after: Score after it; None where the step could not be measured.
        interval: Ends of the interval of `after`, from that of the paired difference; or None.
        apart: Whether a line above it says that it does not go on from the row before, as where an engine begins.
    """

    label: str
    before: float | None
    after: float | None
    interval: tuple[float, float] | None = None
    apart: bool = False


def waterfall_svg(name: str, steps: Sequence[WaterfallStep], *, score: str) -> str:
    """Draw the steps from top to bottom.

    Args:
        name: A word that is unique among the page's charts; it prefixes the drawing's ids.
        steps: At least one with a score.
        score: What the score is called.

    Returns:
        An `<svg>` element.
    """
    with new_figure(height_pt=56 + 44 * len(steps)) as figure:
        axes = figure.add_subplot()
        style_axes(axes, grid="x")
        axes.set_xlim(*_limits(steps))
        for row, step in enumerate(steps):
            _draw_step(axes, row, step)
        axes.set_yticks([])
        axes.set_ylim(len(steps) - 0.4, -0.6)
        axes.spines["left"].set_visible(False)
        axes.set_xlabel(f"{score}, %")
        return to_svg(figure, name)


def _limits(steps: Sequence[WaterfallStep]) -> tuple[float, float]:
    values = [100 * value for step in steps for value in (step.after, *(step.interval or ())) if value is not None]
    low, high = min(values), max(values)
    margin = max(0.12 * (high - low), (_SPAN_MIN - (high - low)) / 2)
    return low - margin, high + margin


def _draw_step(axes: Axes, row: int, step: WaterfallStep) -> None:
    if step.apart:
        axes.axhline(row - 0.6, color=MUTED, linewidth=0.6)
    # above its row, where a long name takes no width from the chart
    axes.text(0, row - 0.34, step.label, transform=axes.get_yaxis_transform(), color=INK, va="center")
    place = row + 0.12
    if step.after is None:
        axes.text(0, place, "not measured", transform=axes.get_yaxis_transform(), color=MUTED, va="center")
        return
    after = 100 * step.after
    if step.before is None:
        axes.plot([after], [place], marker="D", markersize=7, color=series_color(0))
    else:
        before = 100 * step.before
        color = GOOD if after >= before else BAD
        axes.plot([before, after], [place, place], color=color, linewidth=11, solid_capstyle="butt", alpha=0.55)
        axes.plot([after, after], [place - 0.2, place + 0.2], color=INK, linewidth=2)
    if step.interval is not None:
        axes.plot([100 * end for end in step.interval], [place, place], color=INK, linewidth=1.2)
