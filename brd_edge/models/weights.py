"""Weights of encoders, from local safetensors files; nothing here reads pickles."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from brd_edge.runtime.errors import ModelError

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["load_encoder_weights", "load_strictly", "read_safetensors"]

_SHOWN = 6


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Read every tensor of a safetensors file into the CPU's memory.

    Raises:
        ModelError: The file is missing, of another kind, or damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if path.suffix != ".safetensors":
        raise ModelError(f"{path}: weights are read from .safetensors files only (a pickle could run code); convert it")
    if not path.is_file():
        raise ModelError(f"{path}: no such file; give the path of a safetensors file")
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path}: not a readable safetensors file, perhaps cut short ({error})") from error


def load_encoder_weights(encoder: nn.Module, name: str, path: Path) -> None:
    """Load a local file of classification weights into a segmentation encoder, strictly.

    For a `tu-` encoder the file has the names of the timm model of that name. Tensors that the
    whole timm model has and the encoder lacks (its classifier head, and stages deeper than the
    encoder's depth) are left out; every other tensor must find its place. Other encoders take
    files with their own names.

    Args:
        encoder: The encoder of a segmentation model; its weights are replaced.
        name: The encoder's name, such as `"tu-tf_efficientnet_lite2"`.
        path: A safetensors file.

    Raises:
        ModelError: The file cannot be read, or its tensors are not this encoder's; the message
            names them.
    """
    state = read_safetensors(path)
    what = f"{path}: weights of encoder {name!r}"
    if name.startswith("timm-"):
        raise ModelError(
            f"{what}: 'timm-' encoders differ from timm's models (BatchNorm, padding) and would take these weights "
            f"and yield other features; use 'tu-{name.removeprefix('timm-')}'"
        )
    if name.startswith("tu-"):
        state = _rename_timm(encoder, name.removeprefix("tu-"), state, what)
    load_strictly(encoder, state, what)


def load_strictly(module: nn.Module, state: Mapping[str, Tensor], what: str) -> None:
    """Load `state` into `module`; every tensor must fit, by name and shape.

    Args:
        module: Takes the weights.
        state: Tensors by name.
        what: What `state` is, for the message (begin with the file's path).

    Raises:
        ModelError: A name is missing or unexpected, or a shape differs.
    """
    try:
        # the libraries' own load_state_dict renames old keys and drops heads, in place: give it a copy
        module.load_state_dict(dict(state), strict=True)
    except (RuntimeError, KeyError, ValueError) as error:
        lines = [line.strip() for line in str(error).splitlines()[1:]] or [str(error)]
        wrappers = {name.split(".")[0] for name in state}
        if len(wrappers) == 1 and not wrappers <= {name.split(".")[0] for name in module.state_dict()}:
            lines = [f"every name begins with {wrappers.pop()!r}, as a wrapper's do: save the model within it"]
        raise ModelError(
            f"{what} do not fit the model: {' '.join(_shorten(line) for line in lines[:_SHOWN])}"
        ) from error


def _rename_timm(encoder: nn.Module, name: str, state: Mapping[str, Tensor], what: str) -> dict[str, Tensor]:
    # timm flattens some models when it turns them into feature extractors: "stages.0.x" becomes "stages_0.x"
    wanted = {_canonical(key.removeprefix("model.")): key for key in encoder.state_dict()}
    whole = {_canonical(key) for key in _timm_keys(name)}
    renamed: dict[str, Tensor] = {}
    unexpected: list[str] = []
    for key, tensor in state.items():
        target = wanted.get(_canonical(key))
        if target is not None:
            renamed[target] = tensor
        elif _canonical(key) not in whole:
            unexpected.append(key)
    # files from before PyTorch 1.0 lack these counters, which matter to no output
    missing = [key for key in wanted.values() if key not in renamed and not key.endswith("num_batches_tracked")]
    if missing or unexpected:
        found = [f"missing {_listed(missing)}"] if missing else []
        found += [f"unexpected {_listed(unexpected)}"] if unexpected else []
        raise ModelError(
            f"{what} do not fit: {'; '.join(found)}. Expected a file with the names of the timm model {name!r}"
        )
    for key, tensor in encoder.state_dict().items():
        renamed.setdefault(key, tensor)
    return renamed


def _timm_keys(name: str) -> list[str]:
    import timm
    import torch

    # only the names are wanted: on the meta device no memory is taken and no random number drawn
    with torch.device("meta"):
        return list(timm.create_model(name, pretrained=False).state_dict())


def _canonical(key: str) -> str:
    return key.replace("_", ".")


def _listed(keys: Iterable[str]) -> str:
    names = sorted(keys)
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def _shorten(text: str) -> str:
    return text if len(text) <= 400 else f"{text[:400]}…"
