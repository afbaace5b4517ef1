from __future__ import annotations

import argparse
import json
import sys
from importlib import import_module
from pathlib import Path

import pytest

from benchmarks.output import output_file, publish

# no directory for anybody's files, not for root's either
NOWHERE = "/proc/self/result.json"


@pytest.mark.parametrize(
    ("command", "given"),
    [
        ("class_map", []),
        ("distillation", ["pipelines/quickstart.yaml"]),
        ("engines", ["runs/quickstart"]),
        ("loader", []),
        ("parity", ["runs/quickstart"]),
        ("relation_loss", []),
        ("training_gpu", ["pipelines/quickstart.yaml"]),
        ("verdicts", ["runs/quickstart/engines/onnxruntime-fp32"]),
    ],
)
def test_every_command_refuses_it_before_it_measures(
    command: str, given: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [command, *given, "--output", NOWHERE])
    with pytest.raises(SystemExit, match="2"):
        import_module(f"benchmarks.{command}").main()
    told = capsys.readouterr()
    assert "argument --output: nothing can be written to /proc/self (" in told.err
    assert told.out == ""


def test_a_missing_directory_is_made(tmp_path: Path) -> None:
    path = tmp_path / "results" / "cpu" / "found.json"
    assert output_file(str(path)) == path
    assert list(path.parent.iterdir()) == []


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(argparse.ArgumentTypeError, match=r"expected a file such as .*/result.json, came the directory"):
        output_file(str(tmp_path))
    with pytest.raises(argparse.ArgumentTypeError, match=r"nothing can be written to .*file "):
        output_file(str(tmp_path / "file" / "found.json"))


def test_the_result_is_printed_though_it_cannot_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = {"benchmark": "verdicts", "sessions": [1.5]}
    assert publish(result, None) == publish(result, tmp_path / "found.json") == 0
    assert json.loads((tmp_path / "found.json").read_text(encoding="utf-8")) == result
    capsys.readouterr()

    assert publish(result, Path(NOWHERE)) == 1

    told = capsys.readouterr()
    assert json.loads(told.out) == result
    assert told.err.startswith(f"verdicts: error: {NOWHERE}: cannot be written (")
