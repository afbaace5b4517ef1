"""The Markdown table of `benchmarks.distillation`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["format_difference", "format_mean", "format_table"]

_COLUMNS = {
    "miou": "mIoU",
    "boundary_iou": "Boundary IoU",
    "boundary_f": "boundary F",
    "connectivity_error": "connectivity error",
}


def format_table(result: Mapping[str, Any]) -> str:
    """Write a result as Markdown: a row an arm, then the paired differences to each control.

    Args:
        result: The content of the benchmark's JSON file.

    Returns:
        Markdown with a newline at the end; all scores in points of a hundred.
    """
    summary = result["summary"]
    split = "the validation split" if result["hold_out"] is None else f"held-out train images `{result['hold_out']}`"
    lines = [
        f"# Distillation under `{result['recipe']}`",
        "",
        f"Scores on {split}, in points: mean ± standard deviation over the seeds "
        f"{', '.join(map(str, result['seeds']))}. Lower connectivity error is better."
        + (f" Teacher: mIoU {100 * result['teacher']['miou']:.1f}." if result["teacher"]["miou"] else ""),
        "",
        *_markdown(
            ["", *_COLUMNS.values()],
            [[arm + _missing(rows, len(result["seeds"])), *_means(rows)] for arm, rows in summary.items()],
        ),
    ]
    controls = sorted({control for rows in summary.values() for control in rows["miou"]["against"]}, reverse=True)
    for control in controls:
        rows = [[arm, *_differences(rows, control)] for arm, rows in summary.items() if arm != control]
        lines += [
            "",
            f"Difference to `{control}`, paired by seed, with 95 % interval:",
            "",
            *_markdown(["", *_COLUMNS.values()], rows),
        ]
    # the table may be written elsewhere than its cells were trained
    machines = sorted({_machine(cell["environment"]) for cell in result["cells"]})
    lines += ["", f"{len(result['cells'])} trainings on {' and '.join(machines)}."]
    return "\n".join(lines) + "\n"


def _machine(environment: Mapping[str, Any]) -> str:
    where = environment["gpu"] or environment["cpu"]
    return f"{where} ({environment['cores']} cores), torch {environment['packages']['torch']}"


def _missing(rows: Mapping[str, Any], seeds: int) -> str:
    done = rows["miou"]["count"]
    return "" if done == seeds else f" ({done} of {seeds} seeds)"


def _means(rows: Mapping[str, Any]) -> list[str]:
    return ["-" if rows[name]["mean"] is None else format_mean(rows[name]) for name in _COLUMNS]


def format_mean(summary: Mapping[str, Any]) -> str:
    """Write a result of `benchmarks.statistics.summarise` in points."""
    mean, deviation = summary["mean"], summary["deviation"]
    return f"{100 * mean:.1f}" + (f" ± {100 * deviation:.1f}" if deviation is not None else "")


def _differences(rows: Mapping[str, Any], control: str) -> list[str]:
    found = []
    for name in _COLUMNS:
        difference = rows[name]["against"].get(control)
        found.append("-" if difference is None else format_difference(difference))
    return found


def format_difference(difference: Mapping[str, Any]) -> str:
    """Write a result of `benchmarks.statistics.paired_difference` in points, with its interval if it has one."""
    text = f"{100 * difference['mean']:+.1f}"
    if difference["low"] is not None:
        text += f" [{100 * difference['low']:+.1f}, {100 * difference['high']:+.1f}]"
    return text


def _markdown(headers: list[str], rows: list[list[str]]) -> list[str]:
    rule = ["---"] + ["---:"] * (len(headers) - 1)
    return [f"| {' | '.join(row)} |" for row in (headers, rule, *rows)]
