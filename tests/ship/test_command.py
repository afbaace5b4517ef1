from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from ship.harness import faulty_python

from brd_edge.cli import main


def test_shipping_to_this_machine(make_bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = make_bundle(tmp_path / "run" / "bundle")
    (tmp_path / "run" / "benchmark.json").write_text("{}")
    (tmp_path / "fleet.yaml").write_text(
        f"devices: ['loopback:{tmp_path}/a', 'loopback:{tmp_path}/b', 'nobody@127.0.0.1:1']\n"
        "waves: [1, 2, 100%]\nfailures_max: 0\n"
    )
    ship = ["ship", str(made.directory), "--key", str(made.private)]
    assert main([*ship, "--fleet", str(tmp_path / "fleet.yaml"), "--dry-run"]) == 1
    assert not (tmp_path / "a").exists()
    assert main([*ship, "--fleet", str(tmp_path / "fleet.yaml")]) == 1
    output = capsys.readouterr()
    assert "wave 3 of 3" in output.err
    assert "nobody@127.0.0.1:1: cannot be reached" in output.out
    outcome = json.loads((tmp_path / "run" / "ship.json").read_text())
    assert [device["status"] for device in outcome["devices"]] == ["serving", "serving", "failed"]
    assert outcome["bundle"]["name"] == "small"
    here = ["ship", "--to", f"loopback:{tmp_path}/a"]
    assert main([*here, "--status"]) == 0
    assert "0001-small" in capsys.readouterr().out
    assert main([*here, "--rollback"]) == 1
    assert "there is no earlier release" in capsys.readouterr().out


@pytest.mark.parametrize("sign", [False, True])
def test_a_dry_run_writes_nothing(make_bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str], sign: bool) -> None:
    made = make_bundle(tmp_path / "run" / "bundle", sign=sign)
    (tmp_path / "run" / "benchmark.json").write_text("{}")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    ship = ["ship", str(made.directory), "--to", f"loopback:{tmp_path}/device"]
    assert main([*ship, "--key", str(made.private), "--dry-run"]) == 0
    assert "would deliver onnxruntime-fp32 as the first release" in capsys.readouterr().out
    assert main([*ship[:1], *ship[2:], "--status"]) == 0
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
    # a bundle that could not be signed is found in a dry run too
    (made.directory / "student.onnx").write_bytes(b"altered")
    assert main([*ship, "--key", str(made.private), "--dry-run"]) == 1
    assert "student.onnx: " in capsys.readouterr().err


def test_a_device_root_that_cannot_be_is_told(bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    ship = ["ship", str(bundle.directory), "--public-key", str(bundle.public)]
    assert main([*ship, "--to", f"loopback:{tmp_path}/file/device"]) == 1
    assert "file/device: cannot be used as a device root (Not a directory)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--to", "loopback:x", "--fleet", "f.yaml"], "give either --to"),
        ([], "give either --to"),
        (["--fleet", "f.yaml", "--identity", "id"], "--identity: devices of a fleet say that"),
        (["--to", "loopback:x", "--keep", "0"], "--keep: expected at least 1"),
        (["--to", "loopback:x", "--engine", "tflite"], "has no engine 'tflite'"),
        (["--to", "not an address"], "expected user@host"),
    ],
)
def test_options_that_are_wrong(bundle, options: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["ship", str(bundle.directory), "--public-key", str(bundle.public), *options]
    assert main(given) == (1 if "tflite" in options else 2)
    error = capsys.readouterr().err
    assert words in error
    assert "Traceback" not in error


def test_what_is_refused_is_told_without_noise(make_bundle, tmp_path: Path) -> None:
    """In a process of its own, where what a library mutters when it is closed in a hurry would be seen."""
    newer = make_bundle(tmp_path / "newer", signed_at=2_000)
    older = make_bundle(tmp_path / "older", name="older", signed_at=1_000)
    for made, more, code in ((newer, (), 0), (older, (), 1), (newer, ("--latency-ms-p95-max", "1e-9"), 1)):
        command = [sys.executable, "-m", "brd_edge.ship", str(made.directory), "--to", f"loopback:{tmp_path}/device"]
        command += ["--key", str(made.private), *more]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == code, done.stderr
        assert "Warning" not in done.stderr
        assert "Traceback" not in done.stderr


def test_a_bundle_that_nobody_signed(make_bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = make_bundle(tmp_path / "bundle", sign=False)
    ship = ["ship", str(made.directory), "--to", f"loopback:{tmp_path}/device"]
    assert main(ship) == 1
    assert "give the key that signs it" in capsys.readouterr().err
    assert main([*ship, "--public-key", str(made.public)]) == 1
    assert "not signed" in capsys.readouterr().err
    assert main([*ship, "--key", str(made.public)]) == 1
    assert not (tmp_path / "device").exists()


def test_an_interrupted_delivery_is_reported(make_bundle, tmp_path: Path) -> None:
    made = make_bundle(tmp_path / "run" / "bundle")
    (tmp_path / "run" / "benchmark.json").write_text("{}")
    (tmp_path / "fleet.yaml").write_text(
        f"devices: ['loopback:{tmp_path}/a', 'loopback:{tmp_path}/b']\nwaves: [1, 100%]\n"
    )
    # the second device, whose environment is the command's, waits for long before it is done
    slow = faulty_python(tmp_path / "slow", FAULT="wait", FAULT_AT=12, FAULT_ROOT=(tmp_path / "b").resolve())
    # tests that were started in the background ignore Ctrl-C, and so would the command
    listening = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
    listening += "from brd_edge.ship.__main__ import main; sys.exit(main())"
    command = [str(slow), "-c", listening, str(made.directory), "--key", str(made.private)]
    process = subprocess.Popen([*command, "--fleet", str(tmp_path / "fleet.yaml")], stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    for line in process.stderr:
        if f"{tmp_path}/b" in line and ", gets " in line:
            process.send_signal(signal.SIGINT)
            break
    rest = process.stderr.read()
    process.stderr.close()
    assert process.wait(60) == 130
    assert "Traceback" not in rest
    outcome = json.loads((tmp_path / "run" / "ship.json").read_text())
    assert [device["status"] for device in outcome["devices"]] == ["serving", "interrupted"]
    assert (tmp_path / "a" / "current").exists()
    assert not (tmp_path / "b" / "current").exists()


@pytest.mark.parametrize("command", ["keys", "sign"])
def test_a_full_disk_is_told(make_bundle, tmp_path: Path, command: str) -> None:
    made = make_bundle(tmp_path / "bundle", sign=False)
    arguments = {"keys": [str(tmp_path / "new")], "sign": [str(made.directory), "--key", str(made.private)]}[command]
    # no file may grow beyond 0 bytes
    limited = ["sh", "-c", 'ulimit -f 0; exec "$0" -m brd_edge.cli "$@"', sys.executable, command, *arguments]
    done = subprocess.run(limited, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("brd-edge: error: ")
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "new.key").exists()
