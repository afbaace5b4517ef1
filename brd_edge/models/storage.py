"""Saving and loading models in the directory format of `segmentation_models_pytorch`.

A directory holds `config.json` and `model.safetensors`, which the library's `from_pretrained`
reads as well, and `brd_edge.json` with the spec, the checksum of the weights, and the input contract that
they were trained with.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from brd_edge.models.build import build_model, model_class
from brd_edge.models.spec import ARCHITECTURES, RESERVED_OPTIONS, ModelSpec
from brd_edge.models.weights import load_strictly, read_safetensors
from brd_edge.runtime.contract import InputContract
from brd_edge.runtime.errors import ContractError, ModelError
from brd_edge.runtime.files import atomic_path, sha256_file, write_json_atomic

if TYPE_CHECKING:
    from torch import nn

__all__ = ["load_model", "require_contract", "save_model"]

_CONFIG = "config.json"
_WEIGHTS = "model.safetensors"
_SIDECAR = "brd_edge.json"
_FORMAT_VERSION = 1

# What older releases of the library called an option
_RENAMED_OPTIONS = {"decoder_use_batchnorm": "decoder_use_norm", "psp_use_batchnorm": "decoder_use_norm"}


# what the weights depend on; a fully convolutional network takes frames of other sizes
_TRAINED_WITH = ("mean", "std", "channel_order", "layout", "dtype")


def save_model(model: nn.Module, spec: ModelSpec, directory: Path, *, contract: InputContract | None = None) -> None:
    """Write a model to a directory, each file atomically and `brd_edge.json` last.

    An interruption between the files leaves a directory that `load_model` refuses, never one that
    mixes two models. Other files in the directory stay.

    Args:
        model: The model that `spec` describes, on any device.
        spec: Its spec.
        directory: Where to; it is made where it is missing.
        contract: What it was trained with, where that is known.

    Raises:
        ModelError: `spec` is not this model's, or the weights cannot be written.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_model as save_safetensors

    config = {**cast("dict[str, Any]", cast("Any", model).config), "encoder_weights": None}
    config["_model_class"] = type(model).__name__
    found = (config["_model_class"], config["encoder_name"], config["classes"])
    if found != (ARCHITECTURES[spec.arch].class_name, spec.encoder, spec.classes):
        raise ModelError(f"{directory}: the model to save is {found}, its spec says {spec.to_json()}")
    directory.mkdir(parents=True, exist_ok=True)
    try:
        with atomic_path(directory / _WEIGHTS) as temporary:
            save_safetensors(model, str(temporary))
            checksum = sha256_file(temporary)
    # what safetensors raises when the disk is full is no OSError
    except (OSError, SafetensorError) as error:
        raise ModelError(
            f"{directory / _WEIGHTS}: cannot be written ({error}); free space and run it again: "
            "what was saved before is kept"
        ) from error
    write_json_atomic(directory / _CONFIG, dict(sorted(config.items())))
    # last: until then the checksum of an earlier save refuses the new weights
    sidecar = {"format_version": _FORMAT_VERSION, "spec": spec.to_json(), "weights_sha256": checksum}
    if contract is not None:
        sidecar |= {"contract": contract.to_json(), "contract_hash": contract.hash}
    write_json_atomic(directory / _SIDECAR, sidecar)


def load_model(directory: Path) -> tuple[nn.Module, ModelSpec]:
    """Read a model from a directory, on the CPU and in eval mode.

    Args:
        directory: Written by `save_model`, or by the `save_pretrained` of
            `segmentation_models_pytorch` (a published checkpoint, for example). An activation or
            a classification head that such a model has is left out: models here return logits.

    Returns:
        The model and its spec.

    Raises:
        ModelError: A file is missing or damaged, or the weights do not fit; the message names the
            file and the key.
    """
    config_path, weights_path = directory / _CONFIG, directory / _WEIGHTS
    spec = read_spec(directory)
    state = read_safetensors(weights_path)
    try:
        model = build_model(spec, encoder_weights=None, seed=0)
    except ModelError as error:
        raise ModelError(f"{config_path}: {error}") from error
    state = {key: tensor for key, tensor in state.items() if not key.startswith("classification_head.")}
    load_strictly(model, state, f"{weights_path}: weights of {spec.arch} with encoder {spec.encoder!r}")
    return model.eval(), spec


def read_spec(directory: Path) -> ModelSpec:
    """Read what a saved model is, without its weights.

    Args:
        directory: As for `load_model`.

    Raises:
        ModelError: A file is missing or damaged; the message names the file and the key.
    """
    config_path, sidecar = directory / _CONFIG, directory / _SIDECAR
    if not directory.is_dir():
        raise ModelError(f"{directory}: no such directory; a model is a directory with {_CONFIG} and {_WEIGHTS}")
    if sidecar.exists():
        return _spec_from_sidecar(sidecar, directory / _WEIGHTS)
    return _spec_from_config(_read_object(config_path), config_path)


def require_contract(directory: Path, contract: InputContract) -> None:
    """Refuse a saved model that was trained on frames of other values than a contract's.

    The frame size may differ. A model that does not say what it was trained with is taken.

    Args:
        directory: Written by `save_model`, or by the library's `save_pretrained`.
        contract: How frames will enter the model.

    Raises:
        ContractError: Normalisation, channel order, layout or type differ; the message names each field.
        ModelError: The sidecar is damaged.
    """
    sidecar = directory / _SIDECAR
    values = _read_object(sidecar).get("contract") if sidecar.is_file() else None
    if values is None:
        return
    if not isinstance(values, dict):
        raise ModelError(f"{sidecar}: key 'contract' must be an object, got {values!r}")
    found = [
        line for line in contract.differences(InputContract.from_json(values)) if line.split(":")[0] in _TRAINED_WITH
    ]
    if found:
        raise ContractError(
            f"{directory} was trained with another input contract ({'; '.join(found)}): set data.mean and data.std to "
            "what it was trained with, or train it again"
        )


def _spec_from_sidecar(sidecar: Path, weights: Path) -> ModelSpec:
    values = _read_object(sidecar)
    if values.get("format_version") != _FORMAT_VERSION:
        raise ModelError(
            f"{sidecar}: format_version is {values.get('format_version')!r}, this release reads {_FORMAT_VERSION}"
        )
    if not isinstance(values.get("spec"), dict):
        raise ModelError(f"{sidecar}: key 'spec' must be an object, got {values.get('spec')!r}")
    if not weights.is_file():
        raise ModelError(f"{weights}: no such file")
    found = sha256_file(weights)
    if values.get("weights_sha256") != found:
        raise ModelError(
            f"{weights}: SHA-256 is {found}, {sidecar.name} says {values.get('weights_sha256')}: the file is damaged "
            f"or from another model. Save it again; if you replaced the weights on purpose, delete {sidecar.name}"
        )
    try:
        return ModelSpec.from_json(values["spec"])
    except ModelError as error:
        raise ModelError(f"{sidecar}: {error}") from error


def _spec_from_config(config: Mapping[str, Any], path: Path) -> ModelSpec:
    for key in ("_model_class", "encoder_name", "classes"):
        if key not in config:
            raise ModelError(
                f"{path}: key {key!r} is missing; expected the config of a segmentation_models_pytorch model"
            )
    arch = config["_model_class"]
    if config.get("in_channels", 3) != 3:
        raise ModelError(f"{path}: key 'in_channels' must be 3 (RGB frames), got {config['in_channels']!r}")
    if arch not in ARCHITECTURES:
        raise ModelError(f"{path}: key '_model_class' is {arch!r}; there are {', '.join(ARCHITECTURES)}")
    defaults = {name: item.default for name, item in inspect.signature(model_class(arch).__init__).parameters.items()}
    options: dict[str, Any] = {}
    for key, value in config.items():
        name = _RENAMED_OPTIONS.get(key, key)
        if key.startswith("_") or key in RESERVED_OPTIONS or (name in defaults and _plain(defaults[name]) == value):
            continue
        options[name] = value
    try:
        return ModelSpec(arch, config["encoder_name"], classes=config["classes"], options=options)
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from error


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _read_object(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ModelError(f"{path}: no such file; a model is a directory with {_CONFIG} and {_WEIGHTS}") from error
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: not readable as JSON ({error})") from error
    if not isinstance(values, dict):
        raise ModelError(f"{path}: expected a JSON object, got {type(values).__name__}")
    return values
