"""Devices that are not what they should be: their answers are not believed, and they end no delivery but their own."""

from __future__ import annotations

import asyncio
import json
import shlex
import sys
from pathlib import Path

import pytest
from ship.test_delivery import serves, ship

from brd_edge.ship.delivery import roll_back


def _device_python(path: Path, lines: str) -> str:
    """Return a Python of a device that does something before, or in place of, what it is asked for."""
    path.write_text(f'#!/bin/sh\n{lines}\nexec {shlex.quote(sys.executable)} "$@"\n')
    path.chmod(0o755)
    return str(path)


def _needs(files: object, incoming: Path) -> str:
    event = json.dumps({"event": "need", "incoming": str(incoming), "files": files})
    done = json.dumps({"event": "done", "release": "0001-a", "engine": "onnxruntime-fp32", "checks": {}, "device": {}})
    return f'case "$*" in *receive*) read x; echo {shlex.quote(event)}; read x; echo {shlex.quote(done)}; exit 0;; esac'


@pytest.mark.parametrize("asked", ["absolute", "upwards", "of this delivery, too much of it", "no mapping"])
def test_a_device_is_sent_nothing_but_the_bundle(server, bundle, tmp_path: Path, asked: str) -> None:
    secret, loot = tmp_path / "team.key", tmp_path / "loot"
    secret.write_text("a secret")
    loot.mkdir()
    graph = json.loads((bundle.directory / "manifest.json").read_text())["files"]["student.onnx"]["sha256"]
    files = {
        "absolute": {"stolen": {"size_bytes": 8, "have": 0, "path": str(secret)}},
        "upwards": {"stolen": {"size_bytes": 8, "have": 0, "path": "../" * 20 + str(secret)}},
        "of this delivery, too much of it": {graph: {"size_bytes": 1, "have": -1, "path": "student.onnx"}},
        "no mapping": {graph: 1},
    }[asked]
    python = _device_python(tmp_path / "python", _needs(files, loot))
    result = ship(server.device(tmp_path / "device", python=python), bundle)
    assert result.status == "failed"
    assert "the device" in result.message
    assert list(loot.iterdir()) == []


def test_what_a_login_prints_is_no_answer(server, bundle, make_bundle, tmp_path: Path) -> None:
    root = tmp_path / "device"
    python = _device_python(tmp_path / "python", "echo 0; echo null; echo '[]'; echo welcome")
    device = server.device(root, python=python)
    assert ship(device, bundle).status == "serving"
    other = make_bundle(tmp_path / "other", name="other", signed_at=2_000)
    assert ship(device, other).status == "serving"
    back = asyncio.run(roll_back(device, lambda _line: None))
    assert (back.status, back.release) == ("serving", (root / "current").resolve().name)
    assert serves(root, bundle)


def test_an_answer_that_is_none_is_told(server, bundle, tmp_path: Path) -> None:
    python = _device_python(tmp_path / "python", "echo 1; exit 0")
    device = server.device(tmp_path / "device", python=python)
    assert "its answer was not understood ('1')" in ship(device, bundle).message
    assert "may be rolled back, see --status" in asyncio.run(roll_back(device, lambda _line: None)).message
