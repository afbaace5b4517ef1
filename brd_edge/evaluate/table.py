"""The table at the end of a run, for the terminal."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from brd_edge.evaluate.formats import latency_digits, megabytes, milliseconds, one_line, percent, quantity, target_of
from brd_edge.evaluate.gates import Limits, gate_excess
from brd_edge.evaluate.planned import graph_gates, is_planned, status_reason, status_text
from brd_edge.evaluate.report.verdict import verdict

__all__ = ["format_table"]

_GATES = {
    "miou_drop_max": "mIoU",
    "boundary_iou_drop_max": "B.IoU",
    "latency_ms_p95_max": "p95",
    "size_bytes_max": "size",
    "added_cost_max_percent": "cost",
}
"""What the gates are called where there is little room."""
_HEADERS = ("runtime", "precision", "target", "status", "p50\nms", "p95\nms", "mIoU\n%", "Boundary\nIoU %", "size\nMB")
_WIDTH = 100


def format_table(benchmark: Mapping[str, Any]) -> str:
    """Write a benchmark as text: one row an engine, why some were not measured, and the models.

    Args:
        benchmark: The content of `benchmark.json`. Any measured value may be null; it is shown as `-`.

    Returns:
        Several lines without a newline at the end. Control characters in names and reasons are taken out.
    """
    engines = benchmark.get("engines") or []
    costs = {cost["name"]: cost for cost in (benchmark.get("zero_cost") or {}).get("engines") or ()}
    parts = [_engine_table(engines, costs), *_reasons(engines)]
    models = _models(benchmark)
    if models:
        parts += ["", *models]
    parts += _verdict(benchmark)
    return "\n".join(parts)


def _engine_table(engines: Sequence[Mapping[str, Any]], costs: Mapping[str, Any]) -> str:
    from tabulate import tabulate

    if not engines:
        return "No engine was asked for."
    latencies = [engine.get("latency_ms") or {} for engine in engines]
    digits = latency_digits(latency.get("p50") for latency in latencies)
    rows = [
        [
            *(one_line(engine.get(key) or "-") for key in ("runtime", "precision")),
            one_line(target_of(engine)),
            "to build\non device" if is_planned(engine) else one_line(engine.get("status") or "-"),
            milliseconds(latency.get("p50"), digits=digits, missing="-"),
            milliseconds(latency.get("p95"), digits=digits, missing="-"),
            percent(engine.get("miou"), missing="-"),
            percent(engine.get("boundary_iou"), missing="-"),
            megabytes(engine.get("size_bytes"), missing="-"),
        ]
        for engine, latency in zip(engines, latencies, strict=True)
    ]
    headers, alignment = [*_HEADERS], ["left"] * 4 + ["right"] * 5
    gates = [_gates(engine, costs.get(str(engine.get("name")))) for engine in engines]
    if any(gates):
        headers.append("gates")
        alignment.append("left")
        rows = [[*row, text] for row, text in zip(rows, gates, strict=True)]
    table = tabulate(rows, headers=headers, tablefmt="simple", colalign=alignment, disable_numparse=True)
    if any("+" in text for text in gates):
        table += "\n\ngates that are missed: value minus limit; ≤ where only the 95 % interval reaches beyond the limit"
    return table


def _gates(engine: Mapping[str, Any], cost: Mapping[str, Any] | None) -> str:
    """Say whether an engine holds its gates, or else which ones it misses and by how much, one a line."""
    limits = engine.get("gates") or {}
    graph = graph_gates(engine) if is_planned(engine) else None
    if not set(limits) - {"uncertain"} or (engine.get("status") not in ("measured", "built") and graph is None):
        return ""
    broken = [line.partition(":")[0] for line in engine.get("gates_broken") or ()]
    excess = gate_excess(Limits(**limits), engine=engine, cost=cost) if broken else {}
    return "\n".join(f"{_GATES.get(gate, gate)} {excess.get(gate, '')}".strip() for gate in broken) or (
        "held" if graph is None else "held by\nits graph"
    )


def _reasons(engines: Sequence[Mapping[str, Any]]) -> list[str]:
    lines = [
        textwrap.fill(
            f"{_name(engine)} {one_line(status_text(engine, missing='not measured'))}: "
            f"{one_line(status_reason(engine, missing='no reason was given'))}",
            width=_WIDTH,
            subsequent_indent="  ",
            # a path or an install command must stay whole to be copied
            break_long_words=False,
            break_on_hyphens=False,
        )
        for engine in engines
        if engine.get("status") != "measured"
    ]
    return ["", *lines] if lines else []


def _verdict(benchmark: Mapping[str, Any]) -> list[str]:
    if not benchmark.get("engines") or "zero_cost" not in benchmark:
        return []
    texts = [f"{tile.title}: {tile.value}. {tile.detail}" for tile in verdict(benchmark) if tile.tone != "plain"]
    texts += [
        f"{_name(engine)}: latency: {warning}"
        for engine in benchmark["engines"]
        for warning in (engine.get("latency_ms") or {}).get("warnings") or ()
    ]
    return ["", *(textwrap.fill(one_line(text), width=_WIDTH, subsequent_indent="  ") for text in texts)]


def _name(engine: Mapping[str, Any]) -> str:
    return " ".join(
        one_line(text or "-") for text in (engine.get("runtime"), engine.get("precision"), target_of(engine))
    )


def _models(benchmark: Mapping[str, Any]) -> list[str]:
    from tabulate import tabulate

    rows = []
    for role in ("teacher", "student", "compared"):
        model = benchmark.get(role)
        if not model:
            continue
        detail = model.get("model")
        if detail and model.get("params") is not None:
            detail = (
                f"{detail}, {quantity(model['params'])} parameters, {quantity(model.get('macs'), missing='-')} MACs"
            )
        rows.append(
            [
                role if role != "compared" else f"compared with {one_line(model.get('name') or '-')}",
                f"mIoU {percent(model.get('miou'), missing='-')} %",
                f"Boundary IoU {percent(model.get('boundary_iou'), missing='-')} %",
                one_line(detail or ""),
            ]
        )
    return tabulate(rows, tablefmt="plain", disable_numparse=True).splitlines() if rows else []
