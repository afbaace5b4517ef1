"""Two exported students, untrained but with weights that all differ from their initial values, and frames for them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from brd_edge.deploy.calibration import Ranges, calibrate
from brd_edge.deploy.export import export_onnx
from brd_edge.models.segmentation import ModelSpec, build_model
from brd_edge.runtime.contract import InputContract

CLASSES = ["road", "sky", "tree", "car", "pole"]


@dataclass(frozen=True)
class Exported:
    model: torch.nn.Module
    path: Path
    contract: InputContract
    frames: list[np.ndarray]
    ranges: Ranges


def make(spec: ModelSpec, directory: Path) -> Exported:
    contract = InputContract(64, 96, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.25))
    model = build_model(spec, encoder_weights=None, seed=0).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name.endswith("running_var"):
                tensor.uniform_(0.5, 1.5, generator=generator)
            elif tensor.is_floating_point():
                tensor.add_(torch.randn(tensor.shape, generator=generator) * 0.02)
    # smooth in space, as images are: noise alone looks alike to every layer
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (6, 8, 12, 3), dtype=np.uint8)
    noise = rng.integers(-16, 17, (6, 64, 96, 3))
    frames = np.clip(coarse.repeat(8, axis=1).repeat(8, axis=2) + noise, 0, 255).astype(np.uint8)
    _balance(model, (frames / 255 - contract.mean) / contract.std)
    path = directory / "student.onnx"
    palette = [(10 * index, 20, 30) for index in range(5)]
    export_onnx(model, path, contract=contract, classes=CLASSES, palette=palette, metadata={"recipe": "test"})
    return Exported(model, path, contract, list(frames), calibrate(path, frames[:4], method="minmax"))


def _balance(model: torch.nn.Module, images: np.ndarray) -> None:
    """Let every class win somewhere: if one won everywhere, any two graphs would agree."""
    with torch.no_grad():
        logits = model(torch.from_numpy(images).permute(0, 3, 1, 2).float())
        model.segmentation_head[0].bias -= logits.mean((0, 2, 3))
        assert torch.bincount(model(torch.from_numpy(images).permute(0, 3, 1, 2).float()).argmax(1).flatten()).min() > 0


@pytest.fixture(scope="session")
def export_student() -> Callable[[ModelSpec, Path], Exported]:
    """Exports an untrained student of a specification into a directory."""
    return make


@pytest.fixture(scope="session")
def mobile(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """Depthwise convolutions, HardSwish, squeeze and excite, bilinear resizing, concatenation."""
    spec = ModelSpec("DeepLabV3Plus", "tu-mobilenetv3_small_050", 5, {})
    return make(spec, tmp_path_factory.mktemp("mobile"))


@pytest.fixture(scope="session")
def residual(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """Relu, sums of residuals, nearest resizing, pooling."""
    spec = ModelSpec("Unet", "tu-resnet10t", 5, {"encoder_depth": 3, "decoder_channels": [16, 16, 16]})
    return make(spec, tmp_path_factory.mktemp("residual"))
