"""Building a model from its spec, with initial weights that depend on the seed alone."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from brd_edge.models.encoders import encoder_problem
from brd_edge.models.spec import ARCHITECTURES, RESERVED_OPTIONS, ModelSpec, nearest
from brd_edge.models.weights import load_encoder_weights, load_strictly
from brd_edge.runtime.errors import ModelError

if TYPE_CHECKING:
    from torch import nn

__all__ = ["build_model", "build_stand_in", "model_class"]


def build_model(spec: ModelSpec, *, encoder_weights: str | Path | None, seed: int) -> nn.Module:
    """Build a segmentation model on the CPU, in training mode.

    The initial weights depend on the seed alone, and the caller's random state is left as it was.
    What a given encoder file does not cover (decoder and head) is the same with and without it.

    Args:
        spec: What to build.
        encoder_weights: None for random weights, `"imagenet"` to download the encoder's ImageNet
            weights, or the path of a local safetensors file with the encoder's own names (for
            `tu-` encoders: timm's names).
        seed: Seed of the random weights.

    Returns:
        A `segmentation_models_pytorch` model: float32 images (N, 3, H, W) to logits (N, classes, H, W).

    Raises:
        ModelError: The encoder or an option is unknown, or the weights cannot be had or do not fit.

    Example:
        >>> model = build_model(ModelSpec("FPN", "resnet18", classes=4), encoder_weights=None, seed=0)
    """
    _check_options(spec)
    with _seeded(seed):
        model = _construct(spec, encoder_weights=None)
    if encoder_weights is None:
        return model
    if encoder_weights == "imagenet":
        load_strictly(model.get_submodule("encoder"), _imagenet(spec, seed), f"ImageNet weights of {spec.encoder!r}")
    else:
        load_encoder_weights(model.get_submodule("encoder"), spec.encoder, Path(encoder_weights))
    return model


def build_stand_in(spec: ModelSpec, *, seed: int) -> nn.Module:
    """Build a model that looks trained: no two of its vectors of weights are alike, as after any training.

    An untrained model has many equal biases and statistics, which exporters and runtimes store once; compared
    with it, a trained one would seem to cost more.

    Args:
        spec: What to build.
        seed: Seed of the weights.

    Returns:
        As `build_model`, in eval mode; its output means nothing.
    """
    import torch

    model = build_model(spec, encoder_weights=None, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if tensor.ndim != 1 or not tensor.is_floating_point():
                continue
            if name.endswith(("weight", "running_var")):
                tensor.copy_(0.5 + torch.rand(tensor.shape, generator=generator))
            else:
                tensor.copy_(0.1 * torch.randn(tensor.shape, generator=generator))
    return model.eval()


def model_class(arch: str) -> Any:
    """Return the class of `segmentation_models_pytorch` behind a name in `ARCHITECTURES`."""
    import segmentation_models_pytorch

    return getattr(segmentation_models_pytorch, ARCHITECTURES[arch].class_name)


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    import torch

    # torch.manual_seed would also reseed the GPUs, whose state fork_rng(devices=[]) does not restore
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


def _construct(spec: ModelSpec, *, encoder_weights: str | bool | None) -> nn.Module:
    with warnings.catch_warnings():
        # published checkpoints with a "timm-" encoder still have to load
        warnings.filterwarnings("ignore", message="`timm-` encoders are deprecated", category=DeprecationWarning)
        try:
            model: nn.Module = model_class(spec.arch)(
                encoder_name=spec.encoder,
                encoder_weights=encoder_weights,
                in_channels=3,
                classes=spec.classes,
                **spec.options,
            )
        except Exception as error:
            if encoder_weights is not None:
                raise
            problem = encoder_problem(spec.encoder)
            if problem is not None:
                raise ModelError(problem) from error
            raise ModelError(
                f"model: {spec.arch} with encoder {spec.encoder!r} and options {dict(spec.options)} "
                f"cannot be built: {type(error).__name__}: {error}"
            ) from error
    return model


def _imagenet(spec: ModelSpec, seed: int) -> dict[str, Any]:
    try:
        with _seeded(seed):
            pretrained = _construct(spec, encoder_weights=True if spec.encoder.startswith("tu-") else "imagenet")
    except Exception as error:
        cause = str(error).strip().splitlines() or [""]
        raise ModelError(
            f"encoder_weights: the ImageNet weights of encoder {spec.encoder!r} could not be downloaded "
            f"({type(error).__name__}: {cause[0]}). Is there a network? Without one, "
            "give the path of a local safetensors file instead of 'imagenet' (teacher.encoder_weights or "
            "student.encoder_weights; some recipes read it from TEACHER_WEIGHTS), or null to start from random weights"
        ) from error
    return pretrained.get_submodule("encoder").state_dict()


def _check_options(spec: ModelSpec) -> None:
    parameters = inspect.signature(model_class(spec.arch).__init__).parameters
    known = [name for name, item in parameters.items() if item.kind is not item.VAR_KEYWORD]
    known = [name for name in known if name != "self" and name not in RESERVED_OPTIONS]
    for name in spec.options:
        # what the class does not name goes to the timm model of a "tu-" encoder; other encoders would drop it silently
        if name not in known and not spec.encoder.startswith("tu-"):
            raise ModelError(
                f"model: {spec.arch} has no option {name!r}{nearest(name, known)}; there are {', '.join(known)}"
            )
