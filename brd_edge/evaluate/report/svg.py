"""What all charts of the report have in common: one style, and SVG that takes colours and font from the page.

Every chart is drawn on a `Figure` of its own; nothing touches pyplot's global state. Colours are written as
placeholders and exchanged for CSS variables, so that one drawing serves the light and the dark page. The same data
always give the same bytes.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure
    from matplotlib.text import Annotation
    from matplotlib.transforms import Bbox

__all__ = [
    "BAD",
    "GOOD",
    "INK",
    "LINE",
    "MUTED",
    "SERIES",
    "SOFT",
    "SURFACE",
    "new_figure",
    "place_label",
    "plain_ticks",
    "series_color",
    "style_axes",
    "to_svg",
]

SERIES = 8  # how many series colours the page defines, as --s0 to --s7

INK, MUTED, LINE, SURFACE = "#010203", "#010204", "#010205", "#010206"
GOOD, BAD, SOFT = "#010207", "#010208", "#010209"
_CSS = {
    INK: "var(--ink)",
    MUTED: "var(--muted)",
    LINE: "var(--line)",
    SURFACE: "var(--surface)",
    GOOD: "var(--good)",
    BAD: "var(--bad)",
    SOFT: "var(--soft)",
}
_WIDTH_PT = 460


@contextmanager
def new_figure(*, height_pt: float) -> Iterator[Figure]:
    """Yield a figure of the page's width whose settings hold only until it is written."""
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


def style_axes(axes: Axes, *, grid: str) -> None:
    """Give axes the report's style; `grid` is `"x"` for lines across only, or `"both"`."""
    axes.set_facecolor("none")
    for side, spine in axes.spines.items():
        spine.set_visible(side in {"left", "bottom"})
        spine.set_color(LINE)
    axes.tick_params(which="both", color=MUTED)
    axes.tick_params(colors=MUTED, labelcolor=MUTED, length=3, labelsize=11)
    axes.xaxis.label.set_color(MUTED)
    axes.yaxis.label.set_color(MUTED)
    axes.set_axisbelow(True)
    axes.grid(visible=True, axis="x" if grid == "x" else "both", color=LINE, linewidth=0.8)


def plain_ticks(axis: Axis) -> None:
    """Write a logarithmic axis's numbers out, without the powers of ten that need mathematical setting."""
    from matplotlib.ticker import NullFormatter, StrMethodFormatter

    axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.set_minor_formatter(NullFormatter())


def place_label(
    axes: Axes, label: Annotation, taken: list[Bbox], candidates: Sequence[tuple[int, int, str, str]]
) -> None:
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


def series_color(index: int) -> str:
    """Return the placeholder of a series' colour; colours repeat after `SERIES`."""
    return f"#0a0b{index % SERIES:02x}"


def to_svg(figure: Figure, name: str) -> str:
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
        text = text.replace(series_color(index), f"var(--s{index})")
    for placeholder, variable in _CSS.items():
        text = text.replace(placeholder, variable)
    return re.sub(r"\n\s*\n+", "\n", text).strip()
