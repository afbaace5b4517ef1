"""The Markdown table of `benchmarks.distillation`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
    summary, seeds, changed = result["summary"], result["seeds"], result["overrides"]
    lines = [f"# Distillation under `{result['recipe']}`" + (" with other settings" if changed else ""), ""]
    if changed:
        settings = ", ".join(f"`{setting}`" for setting in changed)
        lines += [f"Set for the teacher and every cell, in place of the recipe's own: {settings}.", ""]
    lines += [_scores(result), ""]
    # results of earlier code do not tell
    if missing := result.get("not_done"):
        lines += [f"Not done yet: {_by_arm(missing)}.", ""]
    lines += _markdown(
        ["", *_COLUMNS.values()],
        [[arm + _missing(rows, len(seeds)), *_means(rows)] for arm, rows in summary.items()],
    )
    controls = sorted({control for rows in summary.values() for control in rows["miou"]["against"]}, reverse=True)
    for control in controls:
        others = {arm: rows for arm, rows in summary.items() if arm != control}
        lines += [
            "",
            f"Difference to `{control}`, paired by seed{_with_interval(others, control)}:",
            "",
            *_markdown(["", *_COLUMNS.values()], [[arm, *_differences(rows, control)] for arm, rows in others.items()]),
        ]
    # the table may be written elsewhere than its cells were trained
    machines = sorted({_machine(cell["environment"]) for cell in result["cells"]})
    number = len(result["cells"])
    lines += ["", f"{number} {'training' if number == 1 else 'trainings'} on {' and '.join(machines)}."]
    return "\n".join(lines) + "\n"


def _scores(result: Mapping[str, Any]) -> str:
    """Tell what the scores are of, and of a deviation only where one can be: of two seeds or more."""
    split = "the validation split" if result["hold_out"] is None else f"held-out train images `{result['hold_out']}`"
    seeds = result["seeds"]
    if len(seeds) == 1:
        which = f", of seed {seeds[0]} alone"
    else:
        spread = any(rows["miou"]["deviation"] is not None for rows in result["summary"].values())
        deviation = " ± standard deviation" if spread else ""
        which = f": mean{deviation} over the seeds {', '.join(map(str, seeds))}"
    miou = result["teacher"]["miou"]
    teacher = f" Teacher: mIoU {100 * miou:.1f}." if miou else ""
    return f"Scores on {split}, in points{which}. Lower connectivity error is better.{teacher}"


def _by_arm(cells: Sequence[Mapping[str, Any]]) -> str:
    seeds: dict[str, list[str]] = {}
    for cell in cells:
        seeds.setdefault(cell["arm"], []).append(str(cell["seed"]))
    return "; ".join(
        f"{arm}, {'seed' if len(numbers) == 1 else 'seeds'} {', '.join(numbers)}" for arm, numbers in seeds.items()
    )


def _with_interval(summary: Mapping[str, Any], control: str) -> str:
    found = [rows[name]["against"].get(control) for rows in summary.values() for name in _COLUMNS]
    has_one = any(difference is not None and difference["low"] is not None for difference in found)
    return ", with 95 % interval" if has_one else ""


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
