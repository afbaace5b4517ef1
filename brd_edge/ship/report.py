"""What was measured on devices, added to a report that was written before anything was shipped."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from brd_edge.runtime.files import write_text_atomic

__all__ = ["BEGIN", "END", "LINK_BEGIN", "LINK_END", "add_devices", "clear_devices", "devices_section"]

BEGIN, END = "<!-- devices -->", "<!-- /devices -->"
"""The report's template holds these two, one after the other."""
LINK_BEGIN, LINK_END = "<!-- link to devices -->", "<!-- /link to devices -->"
"""The same for the way to them."""
_LINK = '<li><a href="#devices">Devices</a></li>'

_HEADERS = ("Device", "Status", "Release", "Engine", "p50, ms", "p95, ms", "Agreement, %", "mJ a frame")
_TEXT_COLUMNS = 4
_UNKNOWN = "\N{EN DASH}"


def add_devices(path: Path, outcome: Mapping[str, Any]) -> bool:
    """Put the devices' own figures into a report, in place of those of an earlier delivery.

    Args:
        path: The report.
        outcome: The content of `ship.json`.

    Returns:
        Whether the report had a place for them.
    """
    return _replace(path, devices_section(outcome))


def clear_devices(path: Path) -> None:
    """Remove the devices' figures from a report, if there is one: they were of an earlier bundle."""
    if path.is_file():
        _replace(path, "")


def _replace(path: Path, section: str) -> bool:
    text = _between(path.read_text(encoding="utf-8"), BEGIN, END, section)
    if text is None:
        return False
    # a report of an earlier version has no place for the link
    write_text_atomic(path, _between(text, LINK_BEGIN, LINK_END, _LINK if section else "") or text)
    return True


def _between(text: str, begin: str, end: str, content: str) -> str | None:
    before, found, rest = text.partition(begin)
    _, closed, after = rest.partition(end)
    return before + begin + content + end + after if found and closed else None


def devices_section(outcome: Mapping[str, Any]) -> str:
    """Return the section as HTML; everything that came from a device is escaped."""
    kinds = [""] * _TEXT_COLUMNS + [' class="num"'] * (len(_HEADERS) - _TEXT_COLUMNS)
    head = "".join(f'<th scope="col"{kind}>{name}</th>' for kind, name in zip(kinds, _HEADERS, strict=True))
    rows = "".join(_row(device) for device in outcome["devices"])
    return (
        '\n<section id="devices" aria-labelledby="devices-title">\n'
        '  <h2 id="devices-title">Devices</h2>\n'
        '  <p class="lead">Measured on each device before the release began to serve: golden frames against the '
        "PyTorch student, and the latency protocol of this report.</p>\n"
        '  <div class="scroll" tabindex="0" role="region" aria-label="Device table"><table>\n'
        f"    <thead><tr>{head}</tr></thead>\n    <tbody>{rows}</tbody>\n  </table></div>\n</section>\n"
    )


def _row(device: Mapping[str, Any]) -> str:
    check = (device["checks"] or {}).get(device["engine"] or "") or {}
    latency = check.get("latency_ms") or {}
    agreement = check.get("agreement")
    numbers = (
        latency.get("p50"),
        latency.get("p95"),
        None if agreement is None else 100 * agreement,
        check.get("energy_mj_per_frame"),
    )
    name = str((device["profile"] or {}).get("model") or "")
    sub = f'<span class="sub">{escape(name)}</span>' if name else ""
    message = f'<span class="sub">{escape(device["message"])}</span>' if device["message"] else ""
    cells = [
        f'<th scope="row">{escape(device["device"])}{sub}</th>',
        f"<td>{escape(device['status'])}{message}</td>",
        *(f"<td>{escape(device[key] or _UNKNOWN)}</td>" for key in ("release", "engine")),
        *(f'<td class="num">{_UNKNOWN if number is None else format(number, ".2f")}</td>' for number in numbers),
    ]
    return f"<tr>{''.join(cells)}</tr>"
