from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import pytest

from benchmarks import argument_types
from brd_edge.recipe_yaml import apply_override


@pytest.mark.parametrize(
    ("take", "text", "value"),
    [
        (argument_types.size, "512x1024", (512, 1024)),
        (argument_types.count, "1", 1),
        (argument_types.rounds, "2", 2),
        (argument_types.share, "0.05", 0.05),
    ],
)
def test_taken(take: Callable[[str], object], text: str, value: object) -> None:
    assert take(text) == value


@pytest.mark.parametrize(
    ("take", "text", "message"),
    [
        (argument_types.size, "100", "expected HEIGHTxWIDTH such as 512x1024, came '100'"),
        (argument_types.size, "0x8", "expected HEIGHTxWIDTH"),
        (argument_types.count, "0", "expected a whole number from 1, got '0'"),
        (argument_types.rounds, "1", "one round has no interval"),
        (argument_types.share, "3", "expected a share above 0 and below 1, such as 0.1, came '3'"),
        (argument_types.share, "nan", "expected a share"),
        (argument_types.share, "much", "expected a share"),
    ],
)
def test_refused(take: Callable[[str], object], text: str, message: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match=message.replace("(", r"\(")):
        take(text)


@pytest.mark.parametrize("text", ["*_L", "[ab]*", "0001", "yes", "", "a: b #c", 'one " and \\', "\N{GRINNING FACE} ü"])
def test_an_override_is_read_back_as_the_same_text(text: str) -> None:
    content: dict[str, Any] = {}
    apply_override(content, argument_types.override("data.hold_out", text))
    assert content == {"data": {"hold_out": text}}
