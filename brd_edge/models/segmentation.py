"""Segmentation models: any architecture here, with any timm encoder.

Importing this module is cheap: torch and the model libraries are imported on the first call.

Example:
    >>> spec = ModelSpec("DeepLabV3Plus", "tu-mobilenetv3_small_050", classes=11)
    >>> model = build_model(spec, encoder_weights=None, seed=0)
    >>> features = forward_features(model, images)
    >>> sorted(features.encoder)
    [2, 4, 8, 16]
"""

from __future__ import annotations

from brd_edge.models.build import build_model, build_stand_in
from brd_edge.models.features import (
    FeatureInfo,
    Features,
    check_size,
    count_macs,
    count_parameters,
    feature_table,
    forward_features,
    required_multiple,
    stays_on_device,
    trains_on_one_image,
)
from brd_edge.models.spec import ARCHITECTURES, Architecture, ModelSpec
from brd_edge.models.storage import load_model, read_spec, require_contract, save_model

__all__ = [
    "ARCHITECTURES",
    "Architecture",
    "FeatureInfo",
    "Features",
    "ModelSpec",
    "build_model",
    "build_stand_in",
    "check_size",
    "count_macs",
    "count_parameters",
    "feature_table",
    "forward_features",
    "load_model",
    "read_spec",
    "require_contract",
    "required_multiple",
    "save_model",
    "stays_on_device",
    "trains_on_one_image",
]
