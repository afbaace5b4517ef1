"""Turns validation errors into lines for people: path, what was expected, what came, nearest key."""

from __future__ import annotations

import difflib
import types
from collections.abc import Mapping, Sequence
from typing import Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

__all__ = ["describe_errors", "text_keys"]

_VALUE_LENGTH_MAX = 80
_WANTED = {
    "float_parsing": "a number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    # the only text with a pattern is the recipe's name, which is also that of its run directory
    "string_pattern_mismatch": "letters, digits, dots, dashes and underscores, a letter or digit first",
}


def describe_errors(error: ValidationError, model: type[BaseModel], content: Mapping[str, Any]) -> list[str]:
    """Describe every error of a validation.

    Args:
        error: What pydantic raised.
        model: The model that was validated.
        content: What was given to it.

    Returns:
        One line per error, such as `distill.lamda_kd: unknown key; did you mean lambda_kd?`.
    """
    found = error.errors(include_url=False)
    return [_describe(details, model, content) for details in found if not _follows(details, found)]


def text_keys(content: Any) -> Any:
    """Return `content` with every mapping key as text, so that paths can be printed."""
    if isinstance(content, Mapping):
        return {str(key): text_keys(value) for key, value in content.items()}
    if isinstance(content, list):
        return [text_keys(value) for value in content]
    return content


def _follows(details: Any, found: Sequence[Any]) -> bool:
    """Whether a list seems too short only because none of its items is valid, which is told of each of them."""
    place = details["loc"]
    return details["type"] == "too_short" and any(
        other["loc"][: len(place)] == place and len(other["loc"]) > len(place) for other in found
    )


def _describe(details: Any, model: type[BaseModel], content: Mapping[str, Any]) -> str:
    path = ".".join(str(part) for part in details["loc"])
    kind = details["type"]
    if kind == "extra_forbidden":
        known = _known_keys(model, details["loc"][:-1])
        key = str(details["loc"][-1])
        elsewhere = _places(model, key)
        nearest = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
        hint = f"did you mean {' or '.join(elsewhere or nearest)}?"
        return f"{path}: unknown key; {hint if elsewhere or nearest else 'known here: ' + ', '.join(known)}"
    if kind == "missing" and isinstance(details["loc"][-1], int):
        return f"{path}: missing; the list before it is too short"
    if kind == "missing":
        return f"{path}: missing; {_expected(model, details['loc'])}"
    if kind == "value_error":
        message = str(details["ctx"]["error"])
        return f"{path}: {message}" if path else message
    shapes = dict.fromkeys(("model_type", "model_attributes_type", "dict_type"), "a section with keys of its own")
    if kind in ("tuple_type", "list_type"):
        wanted = _expected(model, details["loc"]).partition(": ")[2].rstrip(".")
        shapes[kind] = f"a list in brackets ({wanted})" if wanted else "a list in brackets"
    if kind in shapes:
        return f"{path}: expected {shapes[kind]}, got {_show(details['input'])}"
    message = details["msg"].replace("Input should be", "expected").replace("Input should have", "expected")
    if kind in _WANTED:
        message = f"expected {_WANTED[kind]}"
    if kind == "too_short":
        count = details["ctx"]["min_length"]
        message = f"expected at least {count} item{'' if count == 1 else 's'}"
    return f"{path}: {message}, got {_show(_lookup(content, details['loc'], details['input']))}"


def _show(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _VALUE_LENGTH_MAX else text[: _VALUE_LENGTH_MAX - 1] + "…"


def _lookup(content: Any, location: Sequence[int | str], fallback: Any) -> Any:
    here = content
    for part in location:
        try:
            here = here[part]
        except (KeyError, IndexError, TypeError):
            return fallback
    return here


def _known_keys(model: type[BaseModel], location: Sequence[int | str]) -> list[str]:
    found = _model_at(model, location)
    return sorted(found.model_fields) if found is not None else []


def _places(model: type[BaseModel], key: str, path: str = "") -> list[str]:
    """Return the paths of the sections' keys of this name."""
    found = []
    for name, field in model.model_fields.items():
        inner = _model_in(field.annotation)
        # a list of sections has numbers in its paths, which nobody can guess
        if name == key and path:
            found.append(f"{path}{name}")
        if inner is not None and get_origin(field.annotation) not in (tuple, list):
            found += _places(inner, key, f"{path}{name}.")
    return found


def _expected(model: type[BaseModel], location: Sequence[int | str]) -> str:
    parent = _model_at(model, location[:-1])
    field = parent.model_fields.get(str(location[-1])) if parent is not None else None
    if field is None:
        return "it is needed"
    if field.description:
        return f"expected: {' '.join(field.description.split())}"
    inner = _model_in(field.annotation)
    what = "a list of sections" if get_origin(field.annotation) in (tuple, list) else "a section"
    return f"expected {what}: {' '.join((inner.__doc__ or '').split())}" if inner is not None else "it is needed"


def _model_at(model: type[BaseModel], location: Sequence[int | str]) -> type[BaseModel] | None:
    here: type[BaseModel] | None = model
    for part in location:
        if isinstance(part, int):
            continue
        field = here.model_fields.get(part) if here is not None else None
        if field is None:
            return None
        here = _model_in(field.annotation)
    return here


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if get_origin(annotation) in (Union, types.UnionType, tuple, list):
        for inner in get_args(annotation):
            found = _model_in(inner)
            if found is not None:
                return found
    return None
