"""How far DALI's pixels may lie from Pillow's, and where the difference comes from: not decoding, but resizing."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from brd_edge.data.dataset import Sample
from brd_edge.data.evaluation import read_for_evaluation
from brd_edge.data.scenes import draw_scene
from brd_edge.runtime.contract import SLIDING_WINDOW, InputContract

FORMATS: dict[str, dict[str, Any]] = {
    "png": {"format": "PNG"},
    "jpeg 4:4:4": {"format": "JPEG", "quality": 92, "subsampling": 0},
    "jpeg 4:2:2": {"format": "JPEG", "quality": 80, "subsampling": 1},
    "jpeg 4:2:0": {"format": "JPEG", "quality": 75, "subsampling": 2},
    "jpeg progressive": {"format": "JPEG", "quality": 85, "progressive": True},
}
NATIVE = (129, 251)
SIZES = ((48, 96), (100, 251), (129, 251), (200, 300))


@pytest.fixture(scope="module")
def scene() -> np.ndarray:
    return draw_scene(3, *NATIVE)[0]


def write(directory: Path, scene: np.ndarray, options: dict[str, Any]) -> Sample:
    buffer = io.BytesIO()
    Image.fromarray(scene).save(buffer, **options)
    image, label = directory / f"image.{options['format'].lower()}", directory / "label.png"
    image.write_bytes(buffer.getvalue())
    Image.new("L", NATIVE[::-1]).save(label)
    return Sample("a", image, label, *NATIVE, ())


def read(sample: Sample, contract: InputContract, backend: Any, gpu: int | None = None) -> np.ndarray:
    (item,) = read_for_evaluation([sample], contract=contract, backend=backend, threads=1, gpu=gpu)
    return item.image.astype(int)


def compare(sample: Sample, *, gpu: int | None, decoded: int, inside: int) -> None:
    for size in SIZES:
        contract = InputContract(*size, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
        native = replace(contract, resize=SLIDING_WINDOW)
        assert np.abs(read(sample, native, "torch") - read(sample, native, "dali", gpu)).max() <= decoded
        difference = np.abs(read(sample, contract, "torch") - read(sample, contract, "dali", gpu))
        assert difference[1:-1, 1:-1].max() <= inside
        # in the outermost ring an eighth of the filter's mass can lie beyond one edge, in a corner twice that
        assert difference.max() <= 2 * 255 / 8 + inside
        if size == NATIVE:
            assert difference.max() <= decoded


@pytest.mark.parametrize("name", FORMATS)
def test_the_cpu_decodes_alike_and_resizes_within_one_level(tmp_path: Path, scene: np.ndarray, name: str) -> None:
    compare(write(tmp_path, scene, FORMATS[name]), gpu=None, decoded=0, inside=1)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="decoding on a GPU needs a CUDA GPU, there is none here")
@pytest.mark.parametrize("name", FORMATS)
def test_the_gpu_decodes_within_a_few_levels(tmp_path: Path, scene: np.ndarray, name: str) -> None:
    pytest.importorskip("nvidia.dali", reason="nvidia-dali, which decodes on a GPU, is not installed")
    # nvJPEG's transformation and its chroma upsampling are its own; PNG is decoded by the CPU
    decoded = 0 if name == "png" else 8
    compare(write(tmp_path, scene, FORMATS[name]), gpu=0, decoded=decoded, inside=decoded + 1)
