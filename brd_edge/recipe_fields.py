"""What the sections of a recipe are made of."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo, field_validator

__all__ = ["Deviation", "Fraction", "NotNegative", "OptionalText", "Positive", "Section", "Unit", "require_known"]

Positive = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(ge=0, le=1)]
NotNegative = Annotated[float, Field(ge=0)]
Unit = Annotated[float, Field(ge=0, le=1)]
Deviation = Annotated[float, Field(gt=0, le=1)]
# an environment variable that is not set and has an empty default means "not given"
OptionalText = Annotated[str | None, BeforeValidator(lambda value: None if value == "" else value)]


class Section(BaseModel):
    """A section of a recipe: unknown keys and booleans for numbers are refused, and what was read does not change."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)

    @field_validator("*", mode="before")
    @classmethod
    def _no_boolean_for_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        # pydantic takes true for 1, and YAML takes yes and on for true
        if _holds_boolean(value) and _is_numeric(cls.model_fields[str(info.field_name)].annotation):
            several = "numbers" if isinstance(value, list | tuple) else "a number"
            raise ValueError(
                f"expected {several}, got {value!r} (YAML reads yes, on and true as True, no, off and false as False)"
            )
        return value


def _holds_boolean(value: Any) -> bool:
    return isinstance(value, bool) or (isinstance(value, list | tuple) and any(map(_holds_boolean, value)))


def _is_numeric(annotation: Any) -> bool:
    """Return whether a field takes numbers, on their own or in a list, and no booleans."""
    kinds = _kinds(annotation)
    return bool(kinds & {int, float}) and not kinds & {bool, Any}


def _kinds(annotation: Any) -> set[Any]:
    """Return the types that an annotation is made of."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return {type(value) for value in inner}
    if origin is Annotated:
        return _kinds(inner[0])
    return {kind for part in inner for kind in _kinds(part)} if inner else {annotation}


def require_known(what: str, name: str, known: Sequence[str]) -> str:
    """Return `name` if it is known; else raise, for pydantic, what there is."""
    if name not in known:
        nearest = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {nearest[0]}? " if nearest else ""
        raise ValueError(f"unknown {what} {name!r}; {hint}there are {', '.join(known)}")
    return name
