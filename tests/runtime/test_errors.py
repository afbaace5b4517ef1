"""In which words, and with which exit code, a command ends."""

from __future__ import annotations

import pytest

from brd_edge.runtime.errors import GateError, InterruptedRunError, RecipeError, explain_error, tell_error


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (RecipeError("name: missing"), (2, "error: name: missing")),
        (GateError("int8: too large"), (3, "error: int8: too large")),
        (InterruptedRunError("stopped while training"), (130, "stopped while training")),
        (InterruptedRunError(), (130, "interrupted")),
        (KeyboardInterrupt(), (130, "interrupted")),
        (FileNotFoundError(2, "No such file or directory", "a.png"), (1, "error: a.png: No such file or directory")),
        (OSError("gone"), (1, "error: the system says: gone")),
        (ZeroDivisionError(), None),
        (ModuleNotFoundError("No module named 'brd_edge.x'", name="brd_edge.x"), None),
        (
            ModuleNotFoundError("No module named 'onnx.x'", name="onnx.x"),
            (1, 'error: the package onnx.x is not installed; pip install "brd-edge[train]" brings it'),
        ),
    ],
)
def test_what_is_known_is_told_and_the_rest_is_left_to_a_traceback(
    error: BaseException, expected: tuple[int, str] | None
) -> None:
    assert explain_error(error, extra="train") == expected


def test_a_command_ends_with_a_line_or_with_the_error_itself(capsys: pytest.CaptureFixture[str]) -> None:
    assert tell_error(RecipeError("name: missing"), extra="train") == 2
    assert capsys.readouterr() == ("", "brd-edge: error: name: missing\n")
    with pytest.raises(ZeroDivisionError):
        tell_error(ZeroDivisionError(), extra="train")
