"""The runtime as a device gets it: its wheel in a bare virtual environment."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]
UV = ROOT / ".uv" / "bin" / "uv"


@pytest.fixture(scope="module")
def device(bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment with the bundle's wheel and ONNX Runtime, and nothing else."""
    if not UV.exists():
        pytest.skip("uv is not here: make install brings it")
    (wheel,) = (bundle.directory / "wheel").iterdir()
    directory = tmp_path_factory.mktemp("device") / "venv"
    subprocess.run([UV, "venv", "--quiet", "--python", sys.executable, directory], check=True)
    install = [UV, "pip", "install", "--quiet", "--python", directory / "bin" / "python", f"{wheel}[onnxruntime]"]
    done = subprocess.run(install, capture_output=True, text=True, check=False)
    if done.returncode != 0 and "error sending request" in done.stderr:
        pytest.skip(f"packages cannot be fetched: {done.stderr.splitlines()[-1]}")
    assert done.returncode == 0, done.stderr
    return directory


def _python(device: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [device / "bin" / "python", *map(str, arguments)]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=device, env=environment)


def test_the_wheel_is_what_pip_expects(bundle) -> None:
    (wheel,) = (bundle.directory / "wheel").iterdir()
    with zipfile.ZipFile(wheel) as packed:
        names = packed.namelist()
        record, metadata = (
            packed.read(next(name for name in names if name.endswith(end))).decode() for end in ("RECORD", "METADATA")
        )
    assert sorted(line.split(",")[0] for line in record.splitlines()) == sorted(names)
    extras = {line.split(": ")[1] for line in metadata.splitlines() if line.startswith("Provides-Extra: ")}
    assert extras == {"onnxruntime", "openvino", "tensorrt", "video", "fast"}
    assert not any(name.startswith(("brd_edge/distill", "brd_edge/ship", "brd_edge/stages")) for name in names)


def test_the_bare_runtime_verifies_measures_and_infers(bundle, device: Path, tmp_path: Path) -> None:
    Image.fromarray(bundle.frame).save(tmp_path / "frame.png")
    key, run = ("--key", bundle.public), ("-m", "brd_edge.runtime")
    verified = _python(device, *run, "verify", bundle.directory, *key)
    assert verified.returncode == 0, verified.stderr
    assert "onnxruntime-fp32: golden frames agree (100.000 %)" in verified.stdout
    assert "openvino is not installed on the device" in verified.stderr
    timed = _python(device, *run, "bench", bundle.directory, *key, "--budget-s", "0.2")
    assert "p50" in timed.stdout, timed.stderr
    done = _python(device, *run, "infer", bundle.directory, tmp_path / "frame.png", "-o", tmp_path / "out", *key)
    assert done.returncode == 0, done.stderr
    assert np.array_equal(np.asarray(Image.open(tmp_path / "out" / "frame.class_map.png")), bundle.class_map)
    (tmp_path / "film.mp4").touch()
    video = _python(device, *run, "infer", bundle.directory, tmp_path / "film.mp4", "-o", tmp_path / "out", *key)
    assert video.returncode == 1
    assert "brd-edge[video]" in video.stderr
    assert "Traceback" not in verified.stderr + timed.stderr + done.stderr + video.stderr


def test_it_holds_no_torch_and_imports_fast(device: Path) -> None:
    packages = {path.name.split("-")[0].lower() for path in device.rglob("*.dist-info")}
    assert "torch" not in packages
    assert not any("dali" in name for name in packages)
    own = ("brd_edge", "pil", "pillow", "cryptography", "cffi", "_cffi_backend", "pycparser")
    site = next(device.glob("lib/python*/site-packages"))
    mine = [path for path in site.iterdir() if path.name.lower().startswith(own)]
    size_bytes = sum(path.stat().st_size for entry in mine for path in (entry, *entry.rglob("*")) if path.is_file())
    # numpy is not counted here: every runtime brings it
    assert size_bytes < 60e6
    # half a second is promised, which a busy machine cannot be held to: what takes time is what is imported
    script = "import sys, brd_edge.runtime.segmenter; print(*sys.modules)"
    imported = _python(device, "-c", script).stdout.split()
    assert len(imported) < 400
    heavy = {"onnx", "onnxruntime", "openvino", "tensorrt", "tensorrt_rtx", "pydantic", "yaml", "numba", "scipy"}
    assert not heavy & set(imported)


def test_its_help_names_every_command(device: Path) -> None:
    done = _python(device, "-m", "brd_edge.runtime", "--help")
    assert done.returncode == 0
    for command in ("verify", "build", "bench", "infer", "unpack", "status", "rollback"):
        assert command in done.stdout
