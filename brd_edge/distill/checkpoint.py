"""The state of an unfinished training, in one safetensors file and without pickle."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from brd_edge.distill.records import remove_records
from brd_edge.runtime.errors import TrainingError
from brd_edge.runtime.files import atomic_path

__all__ = [
    "CHECKPOINT",
    "TrainState",
    "load_tensors",
    "load_weights",
    "restore_checkpoint",
    "save_checkpoint",
    "save_weights",
    "set_aside",
]

CHECKPOINT = "checkpoint.safetensors"
"""The file of an unfinished training."""


@dataclass(frozen=True)
class TrainState:
    """Where a training stands.

    Attributes:
        key: Fingerprint of everything that decides the outcome; a checkpoint of another key is not used.
        step: Optimiser steps done.
        best_miou: Best validation mIoU so far, 0 to 1; -1 before the first validation.
        best_step: Step of that validation.
        validated_step: Step of the last validation, good or not.
        seconds: How long it took to come here, over all the parts of an interrupted training.
    """

    key: str
    step: int = 0
    best_miou: float = -1.0
    best_step: int = 0
    validated_step: int = 0
    # a checkpoint of before it was counted has none
    seconds: float = 0.0


def save_checkpoint(
    path: Path,
    *,
    state: TrainState,
    model: nn.Module,
    average: nn.Module | None,
    layers: nn.Module,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    loader_state: bytes,
    device: torch.device,
) -> None:
    """Write everything that is needed to go on to the same final weights, atomically.

    A training on the CPU leaves a GPU that is here alone.

    Raises:
        TrainingError: It cannot be written; an earlier checkpoint stays.
    """
    tensors = {f"model/{name}": value for name, value in model.state_dict().items()}
    if average is not None:
        tensors |= {f"average/{name}": value for name, value in average.state_dict().items()}
    tensors |= {f"layers/{name}": value for name, value in layers.state_dict().items()}
    for index, moments in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer/{index}/{name}": value for name, value in moments.items()}
    tensors["random/cpu"] = torch.get_rng_state()
    if device.type == "cuda":
        tensors["random/cuda"] = torch.cuda.get_rng_state(device)
    tensors["loader"] = torch.frombuffer(bytearray(loader_state), dtype=torch.uint8)
    _save(path, tensors, {"state": json.dumps(asdict(state)), "scaler": json.dumps(scaler.state_dict())})


def restore_checkpoint(
    path: Path,
    *,
    key: str,
    model: nn.Module,
    average: nn.Module | None,
    layers: nn.Module,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    device: torch.device,
) -> tuple[TrainState, bytes] | None:
    """Read a checkpoint back into everything that `save_checkpoint` was given, and torch's generators.

    The number of processes, and the kind of device, may be another one than when it was saved.

    Returns:
        The state and the loader's state; nothing when there is no checkpoint of this key.

    Raises:
        TrainingError: The file is damaged.
    """
    if not path.exists():
        return None
    tensors, metadata = load_tensors(path)
    try:
        state = TrainState(**json.loads(metadata["state"]))
        if state.key != key:
            return None
        model.load_state_dict(_under(tensors, "model/"))
        if average is not None:
            average.load_state_dict(_under(tensors, "average/"))
        layers.load_state_dict(_under(tensors, "layers/"))
        _restore_optimizer(optimizer, _under(tensors, "optimizer/"))
        scale = json.loads(metadata["scaler"])
        # empty if it was saved where the precision needs no scale
        if scaler.is_enabled() and scale:
            scaler.load_state_dict(scale)
        torch.set_rng_state(tensors["random/cpu"])
        if "random/cuda" in tensors and device.type == "cuda":
            torch.cuda.set_rng_state(tensors["random/cuda"], device)
        return state, bytes(tensors["loader"].numpy())
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise TrainingError(f"{path}: damaged checkpoint ({error}); delete it to train from the start") from error


def save_weights(path: Path, model: nn.Module, metadata: Mapping[str, str]) -> None:
    """Write a model's weights and buffers, atomically.

    Raises:
        TrainingError: They cannot be written; earlier ones stay.
    """
    _save(path, model.state_dict(), metadata)


def load_weights(path: Path, model: nn.Module) -> dict[str, str]:
    """Read the file of `save_weights` into a model and return its metadata.

    Raises:
        TrainingError: It cannot be read.
    """
    # a checkpoint beside it would end in looking for it again
    tensors, metadata = load_tensors(path, lost=f"it and {CHECKPOINT} beside it")
    model.load_state_dict(tensors)
    return metadata


def load_tensors(path: Path, *, lost: str = "it") -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read a safetensors file.

    Args:
        path: The file.
        lost: What has to be deleted if it cannot be read.

    Raises:
        TrainingError: It cannot be read.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise TrainingError(f"{path}: cannot be read ({error}); delete {lost} to train from the start") from error


def set_aside(directory: Path) -> None:
    """Make room for a new training; an unfinished one of other settings is kept under another name, once."""
    checkpoint = directory / CHECKPOINT
    if checkpoint.exists():
        other = directory / "other-settings.checkpoint.safetensors"
        checkpoint.replace(other)
        print(f"{directory.name}: an unfinished training of other settings was set aside as {other}", file=sys.stderr)
    for name in ("best.safetensors", "step_time.json"):
        (directory / name).unlink(missing_ok=True)
    remove_records(directory)


def _save(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    # clone: safetensors refuses tensors that share memory, and wants them contiguous
    plain = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    try:
        with atomic_path(path) as temporary:
            save_file(plain, temporary, dict(metadata))
    # what safetensors raises when the disk is full is no OSError
    except (OSError, SafetensorError) as error:
        raise TrainingError(
            f"{path}: cannot be written ({error}); free space and run it again: the last checkpoint is kept"
        ) from error


def _under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    moments: dict[int, dict[str, Any]] = {}
    for name, value in tensors.items():
        index, _, moment = name.partition("/")
        parameter = parameters[int(index)]
        # the parameter's memory format decides the order of later sums, hence the last bits
        kept = torch.empty_like(parameter).copy_(value) if value.shape == parameter.shape else value
        moments.setdefault(int(index), {})[moment] = kept.detach()
    optimizer.load_state_dict({**optimizer.state_dict(), "state": moments})
