"""The pages against the results that they are made from."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HEADERS = {
    "README.md, methods": "| | validation: mIoU | Boundary IoU | connectivity error | held out: mIoU |",
    "docs/evidence.md, aims": "| what `brd` has | aim |",
    "docs/evidence.md, recipe, validation, means": "| validation split, mean ± deviation |",
    "docs/evidence.md, recipe, held out, means": "| held-out sequence, mean ± deviation |",
    "docs/experiments.md, six seeds": "| six seeds | mIoU |",
    "docs/experiments.md, six seeds, held out": "| six seeds, held out | mIoU |",
    "docs/evidence.md, recipe, validation": "| validation split, today's recipe, three seeds |",
    "docs/evidence.md, recipe, held out": "| held-out sequence, today's recipe, three seeds |",
    "docs/evidence.md, tried": "| under today's recipe, three seeds |",
    "docs/experiments.md, stage 16 over brd": "| `stage 16` over `brd`, six seeds | mIoU |",
    "docs/experiments.md, stage 16 features x4 over stage 16": "| four times the weight over `stage 16`, three seeds |",
    "docs/experiments.md, teacher with overlap": "| validation split, teacher with overlap, three seeds |",
    "docs/experiments.md, stronger colours": "| held-out sequence, stronger colours, three seeds |",
    "docs/experiments.md, gamma, held out": "| held-out sequence, gamma, three seeds |",
    "docs/experiments.md, gamma, validation": "| validation split, gamma, three seeds |",
    "docs/experiments.md, images without labels": "| held-out half of the sequence, six seeds |",
    "docs/experiments.md, at a glance": "| student | schedule, hardware | settings of `brd` |",
    "docs/experiments.md, classes": "| none, brd, cwd | validation: H100 |",
}
"""How the table of each title that is printed begins on its page."""


def _table(title: str) -> list[str]:
    """Return the rows of the table of a title: page, what it shows."""
    page, _, _ = title.partition(",")
    lines = (ROOT / page).read_text(encoding="utf-8").splitlines()
    (start,) = (number for number, line in enumerate(lines) if line.startswith(HEADERS[title]))
    rows = lines[start + 2 :]
    end = next(number for number, line in enumerate(rows) if not line.startswith("|"))
    return rows[:end]


@pytest.fixture(scope="module")
def printed() -> dict[str, list[str]]:
    command = [sys.executable, "-m", "benchmarks.evidence"]
    text = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, encoding="utf-8").stdout
    tables = {}
    for part in text.strip().split("\n\n"):
        title, *rows = part.splitlines()
        tables[title.removesuffix(":")] = rows
    return tables


@pytest.mark.parametrize("title", HEADERS)
def test_the_pages_hold_what_the_results_give(printed: dict[str, list[str]], title: str) -> None:
    assert _table(title) == printed[title]


def test_the_page_counts_what_is_beyond_chance(printed: dict[str, list[str]]) -> None:
    assert list(printed) == [*HEADERS, "docs/experiments.md, beyond chance"]
    (sentence,) = printed["docs/experiments.md, beyond chance"]
    assert sentence in (ROOT / "docs/experiments.md").read_text(encoding="utf-8").splitlines()
