"""The runtime on an arm64 processor, emulated: verify, bench and infer from the bundle's own wheel."""

from __future__ import annotations

import os
import subprocess
import zipfile
from pathlib import Path
from shutil import which

import numpy as np
import pytest
from PIL import Image

QEMU = which("qemu-aarch64-static")
ROOT = os.environ.get("ARM64_ROOT", "")


@pytest.mark.skipif(
    QEMU is None or not ROOT,
    reason="no arm64 user-space: tests/arm64_root.sh DIRECTORY makes one (as root), then set ARM64_ROOT=DIRECTORY",
)
def test_an_arm64_device_verifies_measures_and_infers(make_bundle, tmp_path: Path) -> None:
    made = make_bundle(tmp_path / "bundle", targets={"onnxruntime": "arm64-cpu"}, rebuilt=True)
    (wheel,) = (made.directory / "wheel").iterdir()
    with zipfile.ZipFile(wheel) as packed:
        packed.extractall(tmp_path / "installed")
    Image.fromarray(made.frame).save(tmp_path / "frame.png")
    path = f"PYTHONPATH={ROOT}/opt/packages:{tmp_path / 'installed'}"
    python = [QEMU, "-L", ROOT, "-E", path, f"{ROOT}/usr/bin/python3.11"]

    def run(*arguments: object) -> str:
        command = [*python, "-m", "brd_edge.runtime", *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        return done.stdout

    key = ("--key", made.public)
    assert "golden frames agree (100.000 %)" in run("verify", made.directory, *key)
    assert "p50" in run("bench", made.directory, *key, "--budget-s", "1", "--samples-min", "3")
    run("infer", made.directory, tmp_path / "frame.png", "-o", tmp_path / "out", *key)
    found = np.asarray(Image.open(tmp_path / "out" / "frame.class_map.png"))
    assert np.array_equal(found, made.class_map)
    assert '"machine": "aarch64"' in run("probe", "--root", tmp_path / "device")
