"""The tables of the evidence in README.md and docs, made from the committed results of `benchmarks.distillation`.

    python -m benchmarks.evidence

Nothing is trained: `benchmarks/evidence.yaml` says which row comes from which file of `benchmarks/results`. A test
compares what is printed with the pages.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from benchmarks.distillation_table import format_difference, format_mean
from benchmarks.statistics import paired_difference, summarise
from brd_edge.distill.methods import METHODS

__all__ = [
    "aim_rows",
    "beyond_chance",
    "change_rows",
    "class_rows",
    "glance_rows",
    "mean_rows",
    "method_rows",
    "pooled_rows",
]

RESULTS = Path(__file__).parent / "results"
ROWS = Path(__file__).with_suffix(".yaml")
_SCORES = ("miou", "boundary_iou", "connectivity_error")
_ALL_SCORES = ("miou", "boundary_iou", "boundary_f", "connectivity_error")
_PEERS = ("kd", "cwd")
_COUNTS = {1: "one seed", 2: "two seeds"}
_FULL = 3
"""Seeds that a row has without saying so."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    description = (__doc__ or "").split("\n")[0]
    argparse.ArgumentParser(prog="python -m benchmarks.evidence", description=description).parse_args(arguments)
    rows = yaml.safe_load(ROWS.read_text(encoding="utf-8"))
    for title, lines in (
        ("README.md, methods", method_rows(rows["methods"])),
        *((title, aim_rows(results)) for title, results in rows["aims"].items()),
        *((title, mean_rows(result)) for title, result in rows["means"].items()),
        *((title, pooled_rows(**of)) for title, of in rows["pooled"].items()),
        *((title, change_rows(of)) for title, of in rows["changes"].items()),
        ("docs/experiments.md, at a glance", glance_rows(rows["glance"])),
        ("docs/experiments.md, classes", class_rows(**rows["classes"])),
        ("docs/experiments.md, beyond chance", [beyond_chance(rows["glance"])]),
    ):
        print("\n".join([f"{title}:", *lines, ""]))
    return 0


def method_rows(results: Sequence[str]) -> list[str]:
    """Return a row a method: mean ± deviation of mIoU, Boundary IoU and connectivity error of every result."""
    tables = [_scores(name) for name in results]
    lines = []
    for arm in dict.fromkeys(arm for table in tables for arm in table):
        cells = [
            format_mean(summarise(list(table[arm][score].values()))) if arm in table else "n. t."
            for table in tables
            for score in _SCORES
        ]
        lines.append(_row([f"**{arm}**" if arm == "brd" else arm, *cells]))
    return lines


def aim_rows(results: Sequence[str]) -> list[str]:
    """Return a row an aim: what `brd` has over the others in every result, and whether that reaches the aim."""
    tables = [_scores(name) for name in results]
    # every peer has its row, also one that is slow to train
    peers = [method for method in METHODS if method not in ("none", "kd", "brd", "brd_kd")]
    aims = [
        ("mIoU over `none`", "miou", "none", 0.0275, "+2.75"),
        ("Boundary IoU over `none`", "boundary_iou", "none", 0.03, "+3.0"),
        ("connectivity error over `none`", "connectivity_error", "none", -0.1, "-10 %"),
        ("mIoU over `kd`", "miou", "kd", 0.01, "+1.0"),
        *((f"mIoU over `{peer}`", "miou", peer, 0.0, "ahead") for peer in peers),
    ]
    return [
        _row([row, text, *(_reached(table, arm, score, aim) for table in tables)])
        for row, score, arm, aim, text in aims
    ]


def _reached(table: Mapping[str, Mapping[str, Mapping[int, float]]], arm: str, score: str, aim: float) -> str:
    """Return what `brd` has over an arm and whether the mean reaches an aim; of connectivity errors it is relative."""
    if arm not in table:
        return "n. t."
    values, control = table["brd"][score], table[arm][score]
    found = paired_difference(values, control)
    assert found is not None, "no seed in common"
    text, mean, reached = format_difference(found), found["mean"], found["mean"] > aim
    if score == "connectivity_error":
        change = mean / (sum(control[seed] for seed in found["seeds"]) / len(found["seeds"]))
        text, reached = f"{100 * change:+.1f} % ({text})", change <= aim
    by_chance = reached and found["low"] is not None and found["low"] <= 0 <= found["high"]
    return f"{text} {'reached' if reached else '**missed**'}{', within chance' if by_chance else ''}"


def mean_rows(result: str) -> list[str]:
    """Return a row a method of one result: mean ± deviation of all scores over the seeds."""
    return [
        _row([arm, *(format_mean(summarise(list(scores[score].values()))) for score in _ALL_SCORES)])
        for arm, scores in _scores(result).items()
    ]


def pooled_rows(results: Sequence[str], arms: Sequence[str]) -> list[str]:
    """Return a row an arm, over the seeds of several results: mIoU, all scores over plain training, mIoU over peers."""
    pooled = _pooled(results)
    lines = []
    for arm in arms:
        differences = [_difference(pooled[arm][score], pooled["none"][score]) for score in _ALL_SCORES]
        mine = pooled[arm]["miou"]
        over = ["" if peer == arm else _difference(mine, pooled[peer]["miou"]) for peer in _PEERS]
        lines.append(_row([arm, format_mean(summarise(list(mine.values()))), *differences, *over]))
    return lines


def change_rows(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return a row each, over the seeds of its results: the differences of all scores of one arm over another.

    The other arm may be one of other results, `control_results`.
    """
    lines = []
    for row in rows:
        arm = _pooled(row["results"])[row["arm"]]
        control = _pooled(row.get("control_results", row["results"]))[row["control"]]
        lines.append(_row([row["row"], *(_difference(arm[score], control[score]) for score in _ALL_SCORES)]))
    return lines


def class_rows(names: Sequence[str], arms: Sequence[str], results: Sequence[str]) -> list[str]:
    """Return a row a class: in every result the mean IoU of every arm over the seeds, in points without decimals."""
    found = [_class_iou(result) for result in results]
    return [
        _row([name, *(", ".join(f"{100 * table[arm][number]:.0f}" for arm in arms) for table in found)])
        for number, name in enumerate(names)
    ]


def _pooled(results: Sequence[str]) -> dict[str, dict[str, dict[int, float]]]:
    """Return the scores of several results by arm, score and seed."""
    pooled: dict[str, dict[str, dict[int, float]]] = {}
    for name in results:
        for arm, scores in _scores(name).items():
            for score, values in scores.items():
                pooled.setdefault(arm, {}).setdefault(score, {}).update(values)
    return pooled


def _class_iou(name: str) -> dict[str, list[float]]:
    """Return the IoU of every class, the mean over the seeds, of a result by arm."""
    cells: dict[str, list[list[float]]] = {}
    for cell in json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))["cells"]:
        cells.setdefault(cell["arm"], []).append(cell["class_iou"])
    return {arm: [sum(values) / len(values) for values in zip(*rows, strict=True)] for arm, rows in cells.items()}


def _difference(values: Mapping[int, float], control: Mapping[int, float]) -> str:
    found = paired_difference(values, control)
    assert found is not None, "no seed in common"
    return format_difference(found)


def beyond_chance(rows: Sequence[Mapping[str, str]]) -> str:
    """Return how many of the intervals over plain training leave 0 out, of mIoU and of connectivity error."""
    found = dict.fromkeys(("miou", "connectivity_error"), 0)
    for row in rows:
        table = _with_peers(row)
        for score in found:
            difference = paired_difference(table[row["arm"]][score], table["none"][score])
            assert difference is not None, row
            low, high = difference["low"], difference["high"]
            found[score] += low is not None and (low > 0 or high < 0)
    of_miou, of_errors = found.values()
    return f"Of {len(rows)} intervals over `none`, {of_miou} of mIoU and {of_errors} of connectivity error leave 0 out."


def glance_rows(rows: Sequence[Mapping[str, str]]) -> list[str]:
    """Return a row a setting and split: gains in mIoU and Boundary IoU, regions less broken, mIoU over the peers."""
    lines = []
    for row in rows:
        table = _with_peers(row)
        mine, plain = table[row["arm"]], table["none"]
        gains = {score: paired_difference(mine[score], plain[score]) for score in _SCORES}
        errors, miou, boundaries = (gains[score] for score in ("connectivity_error", "miou", "boundary_iou"))
        assert miou is not None, row
        assert boundaries is not None, row
        assert errors is not None, row
        base = sum(plain["connectivity_error"][seed] for seed in errors["seeds"]) / len(errors["seeds"])
        change, seeds = round(100 * errors["mean"] / base), _seeds(miou)
        split = "held out" if row["result"].endswith("-0001TP") else "validation"
        cells = [
            row["student"],
            row["schedule"],
            row["settings"],
            split + (f", {seeds}" if seeds else ""),
            format_difference(miou),
            format_difference(boundaries),
            f"{change:+d} %" if change else "0 %",
        ]
        # a peer may have been trained with a setting of its own
        lines.append(_row([*cells, *(_over(mine["miou"], table, row.get(peer, peer)) for peer in _PEERS)]))
    return lines


def _with_peers(row: Mapping[str, str]) -> dict[str, dict[str, dict[int, float]]]:
    """Return the scores of a row's result, and of other arms those of the result with its peers, if it names one."""
    return (_scores(row["peers"]) if "peers" in row else {}) | _scores(row["result"])


def _over(values: Mapping[int, float], table: Mapping[str, Mapping[str, Mapping[int, float]]], peer: str) -> str:
    found = paired_difference(values, table[peer]["miou"]) if peer in table else None
    return "n. t." if found is None else f"{100 * found['mean']:+.1f}"


def _scores(name: str) -> dict[str, dict[str, dict[int, float]]]:
    """Return the scores of a result by arm, score and seed."""
    found: dict[str, dict[str, dict[int, float]]] = {}
    for cell in json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))["cells"]:
        arm = found.setdefault(cell["arm"], {score: {} for score in _ALL_SCORES})
        for score in _ALL_SCORES:
            arm[score][cell["seed"]] = cell[score]
    return found


def _seeds(difference: Mapping[str, Any]) -> str:
    """Return how many seeds a difference is of, unless it is the usual number."""
    count = len(difference["seeds"])
    return "" if count == _FULL else _COUNTS.get(count, f"{count} seeds")


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    sys.exit(main())
