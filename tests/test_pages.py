"""The links of the pages lead to files and headings that are there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / "README.md",
    ROOT / "CHANGELOG.md",
    ROOT / "benchmarks/README.md",
    *sorted((ROOT / "docs").glob("*.md")),
]
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_ELSEWHERE = ("https://", "http://", "mailto:")


def _anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings as GitHub makes them: lower case, hyphens, no punctuation."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_links_of_a_page_lead_somewhere(page: Path) -> None:
    lost = []
    for link in _LINK.findall(page.read_text(encoding="utf-8")):
        if link.startswith(_ELSEWHERE):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        if not target.exists() or (anchor and anchor not in _anchors(target)):
            lost.append(link)
    assert not lost


def test_a_heading_that_is_not_there_is_no_anchor(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# Title\n\n## Why `brd`: it's *small*\n", encoding="utf-8")
    assert _anchors(page) == {"title", "why-brd-its-small"}


def test_every_result_is_listed_with_what_it_is_of() -> None:
    listed = set(re.findall(r"[\w-]+", (ROOT / "benchmarks/README.md").read_text(encoding="utf-8")))
    names = {path.stem for path in (ROOT / "benchmarks/results").glob("*.json")}

    # a table's row names the validation split's result, and by `H` that the held-out sequence has one too
    assert not {name for name in names if name not in listed and name.removesuffix("-0001TP") not in listed}


def test_a_teacher_that_is_taken_over_is_one_that_a_command_of_the_page_trains() -> None:
    text = (ROOT / "docs/experiments.md").read_text(encoding="utf-8")
    trained = set(re.findall(r"--directory (runs/distillation/[\w-]+)", text))
    trained |= {f"runs/distillation/{path.stem}" for path in (ROOT / "benchmarks").glob("*.yaml") if path.stem in text}

    taken = re.findall(r"teacher\.checkpoint=(runs/distillation/[\w-]+)/teacher/teacher/model", text)
    assert len(taken) > 3
    assert set(taken) <= trained
