from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from brd_edge.run import Artifact, Run, changed_inputs, code_digest, digest, open_run, tree_files
from brd_edge.runtime.errors import RunError
from brd_edge.runtime.files import atomic_path, write_bytes_atomic, write_json_atomic


def _artifact(stage: str = "export") -> Artifact:
    return Artifact(stage=stage, fingerprint="f", settings={"a": 1}, inputs={"stage x": "y"}, code="c")


def test_a_kept_artifact_comes_back_and_notices_damage(tmp_path: Path) -> None:
    run = Run(tmp_path)
    output = tmp_path / "export" / "student.onnx"
    write_bytes_atomic(output, b"graph")
    kept = run.keep(_artifact(), [output])

    found = run.artifact("export")

    assert found == kept
    assert found is not None
    assert run.damaged(found) is None
    output.write_bytes(b"other")
    assert run.damaged(found) == "export/student.onnx was changed"
    output.unlink()
    assert run.damaged(found) == "export/student.onnx is missing"


def test_a_damaged_record_counts_as_not_done(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.keep(_artifact(), [])
    (tmp_path / "stages" / "export.json").write_text('{"stage": ', encoding="utf-8")

    assert run.artifact("export") is None


def test_content_depends_on_what_was_made_not_on_how_long_it_took() -> None:
    fast, slow = (Artifact("s", "f", {}, {}, "c", {"a": "1"}, {"n": 1}, seconds) for seconds in (1.0, 9.0))
    other = Artifact("s", "f", {}, {}, "c", {"a": "2"}, {"n": 1}, 1.0)

    assert fast.content == slow.content != other.content


def test_a_run_directory_belongs_to_one_process(tmp_path: Path) -> None:
    code = "import sys, pathlib, brd_edge.run as r\nwith r.open_run(pathlib.Path(sys.argv[1])): pass"
    with open_run(tmp_path):
        other = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False)
        holder = f"{os.getpid()} on {socket.gethostname()}"
        assert f"another process ({holder}) works in this run directory" in other.stderr
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)


def test_a_run_directory_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    with pytest.raises(RunError, match="cannot be used as a run directory: Not a"), open_run(tmp_path / "file" / "run"):
        pass
    with (
        pytest.raises(RunError, match="file: cannot be used as a run directory: it is a f"),
        open_run(tmp_path / "file"),
    ):
        pass


def test_a_directory_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "bundle").mkdir()
    (tmp_path / "report.html").write_text("mine")

    with (
        pytest.raises(RunError, match=r"is no run directory, and holds something else \(bundle, report\.html\)"),
        open_run(tmp_path),
    ):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle", "report.html"]
    # what is empty but for a log becomes one, and stays one
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "training.log").touch()
    for name in ("first", "second"):
        with open_run(tmp_path / "run") as run:
            run.path(name).touch()


def test_an_atomic_write_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json_atomic(path, {"old": 1})

    with pytest.raises(ValueError, match="JSON"):
        write_json_atomic(path, {"new": float("nan")})
    with pytest.raises(RuntimeError), atomic_path(path) as temporary:
        temporary.write_bytes(b"half")
        raise RuntimeError

    assert json.loads(path.read_text(encoding="utf-8")) == {"old": 1}
    assert os.listdir(tmp_path) == ["a.json"]  # noqa: PTH208


def test_a_pipe_is_written_to_and_not_replaced(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    write_bytes_atomic(pipe, b"content")
    assert os.read(reader, 100) == b"content"
    os.close(reader)
    assert pipe.is_fifo()


def test_digests() -> None:
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1}) != digest({"a": 1, "b": 3})
    assert code_digest(("run.py",)) != code_digest(("run.py", "runtime"))
    assert changed_inputs({"a": "1", "b": "2"}, {"a": "1", "b": "3", "c": "4"}) == ["b", "c"]


def test_a_tree_has_no_hidden_files(tmp_path: Path) -> None:
    for name in ("val/b.png", "a.png", ".DS_Store", "val/.b-x.png", ".git/config", ".git/objects/c"):
        write_bytes_atomic(tmp_path / name, b"")

    assert tree_files(tmp_path) == [tmp_path / "a.png", tmp_path / "val" / "b.png"]
