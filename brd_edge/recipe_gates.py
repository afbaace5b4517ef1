"""The gates of a recipe: limits for all engines, and others for some."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from brd_edge.recipe_fields import NotNegative, OptionalText, Positive, Section

__all__ = ["GateOverride", "GatesSection", "LimitsSection", "limits_of"]

_SELECTORS = ("runtime", "precision", "target")


class LimitsSection(Section):
    """Limits that a measured engine must hold before it is bundled."""

    miou_drop_max: NotNegative | None = None
    """Largest loss of mIoU against PyTorch, in percentage points."""
    boundary_iou_drop_max: NotNegative | None = None
    """Largest loss of Boundary IoU against PyTorch, in percentage points."""
    latency_ms_p95_max: Annotated[float, Field(gt=0)] | None = None
    """Largest p95 latency in milliseconds."""
    size_bytes_max: Positive | None = None
    """Largest size of the engine's files."""
    added_cost_max_percent: NotNegative | None = None
    """Largest difference of latency, in percent, by which an engine may be slower than the undistilled student's."""
    uncertain: Literal["broken", "held"] = "broken"
    """What a gate is whose limit lies within the 95 % interval of what was measured."""


class GateOverride(LimitsSection):
    """Limits for the engines that it names; a limit that is null is none, one that is left out stays as it is."""

    runtime: OptionalText = None
    """Only engines of this runtime."""
    precision: OptionalText = None
    """Only engines of this precision."""
    target: OptionalText = None
    """Only engines for this target."""

    @model_validator(mode="after")
    def _names_and_limits(self) -> GateOverride:
        given = set(self.model_fields_set)
        if not any(getattr(self, name) is not None for name in _SELECTORS):
            raise ValueError(f"say for which engines: give at least one of {', '.join(_SELECTORS)}")
        if given <= set(_SELECTORS):
            raise ValueError(f"has no limit: give at least one of {', '.join(LimitsSection.model_fields)}")
        return self

    @model_serializer(mode="wrap")
    def _only_what_was_given(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # a limit that was left out must not come back as one that is null
        return {name: value for name, value in handler(self).items() if name in self.model_fields_set}


class GatesSection(LimitsSection):
    """Limits that a measured engine must hold before it is bundled; for all engines, or for some."""

    overrides: tuple[GateOverride, ...] = ()
    """Other limits for some engines; where several name an engine, they are merged limit by limit, later ones first."""


def limits_of(gates: GatesSection, *, runtime: str, precision: str, target: str) -> dict[str, Any]:
    """Return the limits of one engine: `LimitsSection`'s fields by name.

    Example:
        >>> gates = GatesSection(miou_drop_max=0.5, overrides=[{"precision": "int8", "miou_drop_max": 1.0}])
        >>> limits_of(gates, runtime="openvino", precision="int8", target="x86-cpu")["miou_drop_max"]
        1.0
    """
    engine = {"runtime": runtime, "precision": precision, "target": target}
    limits = {name: getattr(gates, name) for name in LimitsSection.model_fields}
    for override in gates.overrides:
        if all(getattr(override, name) in (None, engine[name]) for name in _SELECTORS):
            given = override.model_fields_set - set(_SELECTORS)
            limits |= {name: getattr(override, name) for name in given}
    return limits
