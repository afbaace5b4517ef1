"""What a model is: architecture, encoder, classes and options, as plain values.

Importing this module costs nothing: neither torch nor any model library is touched.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from brd_edge.runtime.errors import ModelError

__all__ = ["ARCHITECTURES", "RESERVED_OPTIONS", "Architecture", "ModelSpec", "has_matrix_products", "nearest"]


@dataclass(frozen=True)
class Architecture:
    """One decoder design.

    Attributes:
        class_name: Its class in `segmentation_models_pytorch`.
        any_size: It takes any height and width; otherwise both must be divisible by the stride of
            the encoder's deepest feature.
        matrix_products: Its decoder multiplies matrices; convolutions are none.
        upsamples: Its head ends in bilinear upsampling, which an engine with sparse output leaves to the runtime.
    """

    class_name: str
    any_size: bool = False
    matrix_products: bool = False
    upsamples: bool = False


ARCHITECTURES: dict[str, Architecture] = {
    "DeepLabV3": Architecture("DeepLabV3", upsamples=True),
    "DeepLabV3Plus": Architecture("DeepLabV3Plus", upsamples=True),
    "FPN": Architecture("FPN", upsamples=True),
    "Linknet": Architecture("Linknet"),
    "MAnet": Architecture("MAnet", matrix_products=True),
    "PSPNet": Architecture("PSPNet", upsamples=True),
    "Segformer": Architecture("Segformer", upsamples=True),
    "UPerNet": Architecture("UPerNet", upsamples=True),
    "Unet": Architecture("Unet", any_size=True),
    "UnetPlusPlus": Architecture("UnetPlusPlus"),
}

# How the names of encoders begin that hold attention, or linear layers in place of 1x1 convolutions: timm's, and smp's
# `mit_`. ConvNeXts of these sizes have linear layers unless `conv_mlp` is asked for.
_MATRIX_ENCODERS = re.compile(
    r"mit_|aimv2|bat_|beit|botnet|caformer|cait|coat|convit|cpubone|crossvit|csatv2|davit|deepseek|deit|eca_botnext|"
    r"eca_halonext|edgenext|(tf_)?efficientnet_cc_|efficientformer|efficientvim|efficientvit|eva|fastvit_(ma|mci|sa)|flexivit|gc_|gcresne|"
    r"gcvit|gemma|gmixer|gmlp|halo|hiera|iformer|lambda|lamhalo|levit|lowformer_(b|e3)|mambaout|maxvit|maxxvit|mixer|"
    r"mobilenetv4_hybrid|mobilenetv5|mobilevit_|mvitv2|naflexvit|nest_|nextvit|pit_|pvt|qwen|resmlp|sam2|samvit|"
    r"sebotnet|sehalonet|sequencer|shvit|swiftformer|swin|test_(coatnet|convnext|mambaout|maxvit|vit)|tiny_vit|tnt|twins|visformer|vit|volo|xcit"
)
_CONVNEXT = re.compile(r"convnext_(tiny(?!_hnf)|small|base|x*large)|convnextv2_(tiny|small|base|large|huge)")

# Arguments of the model class that a spec sets by other means, or that would change what the model returns
RESERVED_OPTIONS: dict[str, str] = {
    "activation": "models return logits",
    "aux_params": "models have no second output",
    "classes": "give it as `classes`",
    "encoder_name": "give it as `encoder`",
    "encoder_weights": "give them to `build_model`",
    "in_channels": "frames have 3 channels",
}


@dataclass(frozen=True)
class ModelSpec:
    """Which model to build.

    Attributes:
        arch: A name in `ARCHITECTURES`.
        encoder: An encoder of `segmentation_models_pytorch` (`"resnet18"`), or `tu-` and the name
            of any timm model that yields feature maps (`"tu-mobilenetv3_small_050"`).
        classes: Number of classes, 2 to 255 (255 is the ignore label).
        options: Further arguments of the model class, such as `{"decoder_channels": 64}`; for
            `tu-` encoders also arguments of the timm model. JSON types; tuples become lists.

    Raises:
        ModelError: A field is out of its range; the message lists what there is.

    Example:
        >>> ModelSpec("DeepLabV3Plus", "tu-mobilenetv3_small_050", classes=11, options={"decoder_channels": 128})
    """

    arch: str
    encoder: str
    classes: int
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        """Check the fields and reduce the options to JSON types, so that saved specs compare equal."""
        if self.arch not in ARCHITECTURES:
            raise ModelError(
                f"unknown architecture {self.arch!r}{nearest(self.arch, ARCHITECTURES)}; "
                f"there are {', '.join(ARCHITECTURES)}"
            )
        if not isinstance(self.encoder, str) or not self.encoder:
            raise ModelError(f"model: encoder must be a name such as 'resnet18' or 'tu-resnet18', got {self.encoder!r}")
        if isinstance(self.classes, bool) or not isinstance(self.classes, int) or not 2 <= self.classes <= 255:
            raise ModelError(f"model: classes must be a whole number from 2 to 255, got {self.classes!r}")
        for name, why in RESERVED_OPTIONS.items():
            if name in self.options:
                raise ModelError(f"model: option {name!r} cannot be set: {why}")
        try:
            plain = json.loads(json.dumps(dict(self.options), allow_nan=False))
        except (TypeError, ValueError) as error:
            raise ModelError(f"model: options must be JSON values, got {dict(self.options)!r} ({error})") from error
        object.__setattr__(self, "options", plain)

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON types."""
        return {"arch": self.arch, "encoder": self.encoder, "classes": self.classes, "options": dict(self.options)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> ModelSpec:
        """Make a spec from `to_json`'s output.

        Raises:
            ModelError: A field is missing, unknown, or out of its range.
        """
        known = {"arch", "encoder", "classes", "options"}
        if set(values) != known:
            missing, unknown = sorted(known - set(values)), sorted(set(values) - known)
            raise ModelError(f"model spec: expected the keys {sorted(known)}; missing {missing}, unknown {unknown}")
        if not isinstance(values["options"], Mapping):
            raise ModelError(f"model spec: options must be an object, got {values['options']!r}")
        return cls(**values)


def has_matrix_products(arch: str, encoder: str, options: Mapping[str, Any] | None = None) -> bool:
    """Return whether a model is known to multiply matrices, as attention and linear layers do.

    Told by names, since a recipe is read without building the model.

    Args:
        arch: A name in `ARCHITECTURES`. SegFormer's decoder has none: its linear layers are exported as convolutions.
        encoder: As in `ModelSpec`.
        options: As in `ModelSpec`.
    """
    if ARCHITECTURES[arch].matrix_products:
        return True
    name = encoder.removeprefix("tu-")
    linear = _CONVNEXT.match(name) is not None and not (options or {}).get("conv_mlp", False)
    return linear or _MATRIX_ENCODERS.match(name) is not None


def nearest(name: str, known: Mapping[str, Any] | list[str]) -> str:
    """Return `" (did you mean 'x'?)"` for the known name most like `name`, or an empty string."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""
