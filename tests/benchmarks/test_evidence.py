"""The pages against the results that they are made from."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PLACES = {
    "README.md, methods": ("README.md", "| | validation: mIoU | Boundary IoU | connectivity error | held out: mIoU |"),
    "docs/evidence.md, at a glance": ("docs/evidence.md", "| student | schedule, hardware | settings of `brd` |"),
    "docs/evidence.md, six seeds": ("docs/evidence.md", "| six seeds | mIoU |"),
    "docs/evidence.md, six seeds, held out": ("docs/evidence.md", "| six seeds, held out | mIoU |"),
    "docs/evidence.md, recipe, validation": ("docs/evidence.md", "| validation split, today's recipe, three seeds |"),
    "docs/evidence.md, recipe, held out": ("docs/evidence.md", "| held-out sequence, today's recipe, three seeds |"),
    "docs/evidence.md, stage 16 over brd": ("docs/evidence.md", "| `stage 16` over `brd`, six seeds | mIoU |"),
    "docs/evidence.md, stage 16 features x4 over stage 16": (
        "docs/evidence.md",
        "| four times the weight over `stage 16`, three seeds | mIoU |",
    ),
    "docs/evidence.md, teacher with overlap": (
        "docs/evidence.md",
        "| validation split, teacher with overlap, three seeds |",
    ),
    "docs/evidence.md, stronger colours": (
        "docs/evidence.md",
        "| held-out sequence, stronger colours, three seeds |",
    ),
    "docs/evidence.md, gamma, held out": ("docs/evidence.md", "| held-out sequence, gamma, three seeds |"),
    "docs/evidence.md, gamma, validation": ("docs/evidence.md", "| validation split, gamma, three seeds |"),
    "docs/evidence.md, images without labels": (
        "docs/evidence.md",
        "| held-out half of the sequence, six seeds |",
    ),
    "docs/evidence.md, classes": ("docs/evidence.md", "| none, brd, cwd | validation: H100 |"),
}


def _table(page: str, header: str) -> list[str]:
    """Return the rows of the table under a header."""
    lines = (ROOT / page).read_text(encoding="utf-8").splitlines()
    (start,) = (number for number, line in enumerate(lines) if line.startswith(header))
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


@pytest.mark.parametrize("title", PLACES)
def test_the_pages_hold_what_the_results_give(printed: dict[str, list[str]], title: str) -> None:
    assert _table(*PLACES[title]) == printed[title]


def test_the_page_counts_what_is_beyond_chance(printed: dict[str, list[str]]) -> None:
    assert list(printed) == [*PLACES, "docs/evidence.md, beyond chance"]
    (sentence,) = printed["docs/evidence.md, beyond chance"]
    assert sentence in (ROOT / "docs/evidence.md").read_text(encoding="utf-8").splitlines()
