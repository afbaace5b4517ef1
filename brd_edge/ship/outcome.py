"""What came of a delivery, as a table for people and as JSON for the run's report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from brd_edge import __version__
from brd_edge.ship.delivery import Delivered

__all__ = ["SCHEMA_VERSION", "delivery_json", "format_deliveries"]

SCHEMA_VERSION = 1


def delivery_json(results: Sequence[Delivered], bundle: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content of `ship.json`.

    Args:
        results: One a device.
        bundle: `name`, `manifest_sha256` and `signed_at` of what was delivered.
    """
    return {
        "schema_version": SCHEMA_VERSION,
        "created_by": f"brd-edge {__version__}",
        "bundle": dict(bundle),
        "devices": [result.to_json() for result in results],
    }


def format_deliveries(results: Sequence[Delivered]) -> str:
    """Return a table with a row per device, and why what failed did below it."""
    from tabulate import tabulate

    rows = []
    for result in results:
        check = result.checks.get(result.engine or "") or {}
        latency = check.get("latency_ms") or {}
        agreement = check.get("agreement")
        rows.append(
            [
                result.device,
                result.status,
                result.release or "",
                result.engine or ", ".join(result.engines),
                f"{latency['p50']:.1f}" if latency else "",
                f"{latency['p95']:.1f}" if latency else "",
                "" if agreement is None else f"{100 * agreement:.2f}",
            ]
        )
    table = tabulate(
        rows,
        headers=["device", "status", "release", "engine", "p50 ms", "p95 ms", "agreement %"],
        tablefmt="simple",
        disable_numparse=True,
        colalign=("left", "left", "left", "left", "right", "right", "right"),
    )
    notes = [f"{result.device}: {result.message}" for result in results if result.message]
    return "\n".join([table, "", *notes]) if notes else str(table)
