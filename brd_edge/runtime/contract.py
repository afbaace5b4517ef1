"""The input contract: what an engine expects of a frame, and how it is checked.

One frozen dataclass is shared by the loader, the exporter, the engines and the device. Its hash is
written into checkpoints and into the graphs of ONNX Runtime and OpenVINO, sidecars hold the contract
itself; parts that differ refuse each other.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from brd_edge.runtime.errors import ContractError

__all__ = ["RESIZED", "SLIDING_WINDOW", "InputContract"]

RESIZED = "bilinear-antialias"
SLIDING_WINDOW = "sliding-window"


@dataclass(frozen=True)
class InputContract:
    """How a frame enters an engine.

    Attributes:
        height: Rows of the frame, in pixels.
        width: Columns of the frame, in pixels.
        mean: Mean per RGB channel, on the scale 0 to 1.
        std: Standard deviation per RGB channel, on the scale 0 to 1, above 0.
        channel_order: Always `"RGB"`.
        layout: Always `"NHWC"`.
        dtype: Always `"uint8"`; the graph itself computes `(frame / 255 - mean) / std`.
        resize: `"bilinear-antialias"`: an image is resized by Pillow's `BILINEAR` straight to (height, width);
            the aspect ratio is not kept. `"sliding-window"`: it is not resized, but segmented in windows of
            (height, width), see `brd_edge.runtime.windows`.

    Raises:
        ContractError: A field is out of its range.
    """

    height: int
    width: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    channel_order: str = "RGB"
    layout: str = "NHWC"
    dtype: str = "uint8"
    resize: str = RESIZED

    def __post_init__(self) -> None:
        """Check every field."""
        if self.height < 1 or self.width < 1:
            raise ContractError(f"contract: height and width must be at least 1, got {self.height}x{self.width}")
        if len(self.mean) != 3 or len(self.std) != 3:
            raise ContractError(f"contract: mean and std need 3 values, got {self.mean} and {self.std}")
        if min(self.std) <= 0:
            raise ContractError(f"contract: every std must be above 0, got {self.std}")
        if self.resize not in (RESIZED, SLIDING_WINDOW):
            raise ContractError(
                f"contract: resize must be {RESIZED!r} or {SLIDING_WINDOW!r}, got {self.resize!r}; "
                "a newer version may know it"
            )
        fixed = {"channel_order": "RGB", "layout": "NHWC", "dtype": "uint8"}
        for name, only in fixed.items():
            if getattr(self, name) != only:
                raise ContractError(f"contract: {name} must be {only!r}, got {getattr(self, name)!r}")

    @property
    def slides(self) -> bool:
        """Whether images are segmented window by window at their own size."""
        return self.resize == SLIDING_WINDOW

    @property
    def hash(self) -> str:
        """Sixteen hexadecimal digits that are equal exactly for equal contracts."""
        text = json.dumps(self.to_json(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON types."""
        values = asdict(self)
        return {**values, "mean": list(self.mean), "std": list(self.std)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> InputContract:
        """Make a contract from `to_json`'s output.

        Raises:
            ContractError: A field is missing, unknown, or out of its range.
        """
        known = {field.name for field in fields(cls)}
        if set(values) != known:
            missing, unknown = sorted(known - set(values)), sorted(set(values) - known)
            raise ContractError(f"contract: expected the fields {sorted(known)}; missing {missing}, unknown {unknown}")
        return cls(**{**values, "mean": tuple(values["mean"]), "std": tuple(values["std"])})

    def differences(self, other: InputContract) -> list[str]:
        """Name the fields that differ, as `"height: 512 against 256"`; empty when equal."""
        mine, theirs = self.to_json(), other.to_json()
        return [f"{name}: {mine[name]} against {theirs[name]}" for name in mine if mine[name] != theirs[name]]

    def require_equal(self, other: InputContract, what: str) -> None:
        """Refuse `other` when it differs.

        Args:
            other: The contract that was found.
            what: Who carries `other`, for the message (for example an engine's path).

        Raises:
            ContractError: The contracts differ; the message names each field.
        """
        found = self.differences(other)
        if found:
            raise ContractError(
                f"{what} was made for another input contract ({'; '.join(found)}): "
                "rebuild it with this contract, or feed it the frames that it was made for"
            )
