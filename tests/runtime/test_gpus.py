"""What `nvidia-smi` says, by a script in its place."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from brd_edge.runtime import gpus
from brd_edge.runtime.gpus import GpuState, gpu_warnings, read_gpus
from brd_edge.runtime.latency import measure_latency

NEW = """case "$1" in *clocks_event_reasons*) ;; *) exit 2 ;; esac
echo "0, 1410, 84, 0x0000000000000024"
echo "1, 210, [N/A], 0x0000000000000001"
"""
OLD = """case "$1" in *clocks_event_reasons*) echo "Field is not a valid field to query."; exit 2 ;; esac
echo "0, 1980, 41, [N/A]"
"""
STATES = (
    GpuState(0, 1410, 84, ("it reached its power limit", "the driver slows it down because of heat")),
    GpuState(1, 210, None, ()),
)


def make_tool(root: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = root / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\n{script}")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{root}:/usr/bin:/bin")


def test_clocks_and_reasons_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_tool(tmp_path, NEW, monkeypatch)
    assert read_gpus() == STATES
    assert gpu_warnings(STATES) == [
        "GPU 0 was slower than it could be (it reached its power limit; the driver slows it down because of heat) at "
        "1410 MHz and 84 °C"
    ]


def test_earlier_drivers_have_another_name_for_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_tool(tmp_path, OLD, monkeypatch)
    assert read_gpus() == (GpuState(0, 1980, 41, ()),)


@pytest.mark.parametrize("script", ["exit 9\n", "echo No devices were found\n", "echo 0, 1, 2\n"])
def test_what_is_no_answer_says_nothing(script: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_tool(tmp_path, script, monkeypatch)
    assert read_gpus() == ()
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    assert read_gpus() == ()


def test_a_tool_that_hangs_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_tool(tmp_path, "exec sleep 20\n", monkeypatch)
    monkeypatch.setattr(gpus, "_TIMEOUT_S", 0.1)
    calls: list[None] = []
    start = time.monotonic()
    assert read_gpus(busy=lambda: calls.append(None)) == ()
    assert len(calls) > 2
    assert time.monotonic() - start < 10


def test_a_measurement_warns_and_keeps_the_gpu_busy_while_it_asks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_tool(tmp_path, f"sleep 0.1\n{NEW}", monkeypatch)
    calls: list[None] = []

    def call() -> None:
        calls.append(None)
        time.sleep(0.001)

    found = measure_latency(call, warmup_min=0, samples_min=3, samples_max=3)
    assert [text for text in found.warnings if "GPU" in text] == gpu_warnings(STATES)
    assert len(calls) > found.n == 3
