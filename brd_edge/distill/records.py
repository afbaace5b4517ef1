"""What a training writes down: `metrics.jsonl`, and the same for TensorBoard."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from brd_edge.runtime.files import write_text_atomic

__all__ = ["BOARD", "Records", "drop_records_after", "open_records", "remove_records"]

_FILE = "metrics.jsonl"
BOARD = "tensorboard"
"""Directory of TensorBoard's files beside `metrics.jsonl`."""


class Records:
    """Writes entries such as `{"step": 10, "epoch": 0.4, "lr": 0.001, "loss": {"ce": 1.2}}`."""

    def __init__(self, lines: TextIO, board: Any) -> None:
        """Write to an open file and to a TensorBoard writer."""
        self._lines = lines
        self._board = board

    def write(self, entry: dict[str, Any]) -> None:
        """Append an entry; it is on the disk when this returns, because a checkpoint counts on it."""
        self._lines.write(json.dumps(entry) + "\n")
        self._lines.flush()
        os.fsync(self._lines.fileno())
        self.show(entry)

    def show(self, entry: dict[str, Any]) -> None:
        """Show an entry in TensorBoard alone."""
        step = entry["step"]
        for name in ("lr", "miou"):
            if name in entry:
                self._board.add_scalar(name, entry[name], step)
        for name, value in entry.get("loss", {}).items():
            self._board.add_scalar(f"loss/{name}", value, step)


@contextmanager
def open_records(directory: Path, *, step: int) -> Iterator[Records]:
    """Open the records of a training for appending.

    Args:
        directory: Where they lie.
        step: The step that the training goes on from, by the entries that `drop_records_after` left; those of an
            interrupted one that it dropped are not shown any more.
    """
    from torch.utils.tensorboard import SummaryWriter

    # from the step itself: a validation of it may have been dropped, and TensorBoard tells entries by their step alone
    board = SummaryWriter(directory / BOARD, purge_step=step or None)
    path = directory / _FILE
    try:
        kept = path.read_text(encoding="utf-8").splitlines() if step and path.exists() else []
        with path.open("a", encoding="utf-8") as lines:
            records = Records(lines, board)
            for entry in map(json.loads, kept):
                if entry["step"] == step:
                    records.show(entry)
            yield records
    finally:
        board.close()


def drop_records_after(directory: Path, *, step: int, validated_step: int) -> None:
    """Remove what an interrupted process wrote after its last checkpoint: it is about to be done again.

    Args:
        directory: Where the records lie.
        step: The checkpoint's step.
        validated_step: The last validation that the checkpoint knows of.
    """
    path = directory / _FILE
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
        try:
            entry = json.loads(line)
        except ValueError:
            # the process was killed in the middle of this line
            continue
        if entry["step"] <= (validated_step if "miou" in entry else step):
            kept.append(line)
    write_text_atomic(path, "".join(kept))


def remove_records(directory: Path) -> None:
    """Remove the records of another training."""
    (directory / _FILE).unlink(missing_ok=True)
    shutil.rmtree(directory / BOARD, ignore_errors=True)
