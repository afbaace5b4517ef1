"""What the sections of a recipe are made of."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

__all__ = ["Deviation", "Fraction", "NotNegative", "OptionalText", "Positive", "Section", "Unit", "require_known"]

Positive = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(ge=0, le=1)]
NotNegative = Annotated[float, Field(ge=0)]
Unit = Annotated[float, Field(ge=0, le=1)]
Deviation = Annotated[float, Field(gt=0, le=1)]
# an environment variable that is not set and has an empty default means "not given"
OptionalText = Annotated[str | None, BeforeValidator(lambda value: None if value == "" else value)]


class Section(BaseModel):
    """A section of a recipe: unknown keys are refused, and what was read does not change."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)


def require_known(what: str, name: str, known: Sequence[str]) -> str:
    """Return `name` if it is known; else raise, for pydantic, what there is."""
    if name not in known:
        nearest = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {nearest[0]}? " if nearest else ""
        raise ValueError(f"unknown {what} {name!r}; {hint}There are {', '.join(known)}")
    return name
