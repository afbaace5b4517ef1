"""A recipe's YAML: reading it, `--set` overrides, and `${VAR}` from the environment."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from brd_edge.recipe_errors import text_keys
from brd_edge.runtime.errors import RecipeError
from brd_edge.unique_yaml import parse_yaml

__all__ = ["apply_override", "read_yaml", "resolve_variables", "used_variables"]

_VARIABLE = re.compile(r"\$\{(?P<name>[A-Za-z_][A-Za-z0-9_]*)(?::-(?P<default>[^}]*))?\}")


def _parse(text: str, what: str) -> Any:
    """Return what a YAML text holds; `what` begins the message if it cannot be used."""
    try:
        content = parse_yaml(text)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise RecipeError(f"{what}: not valid YAML: {' '.join(str(error).split())}") from None
    if _holds_itself(content, (), set()):
        raise RecipeError(
            f"{what}: an alias (*name) stands within the value that it names (&name), which has no end; "
            "expected an alias of a value before it: write out what is meant"
        )
    return content


def _holds_itself(value: Any, around: tuple[int, ...], seen: set[int]) -> bool:
    if id(value) in around:
        return True
    if not isinstance(value, dict | list | tuple) or id(value) in seen:
        return False
    seen.add(id(value))
    items = value.values() if isinstance(value, dict) else value
    return any(_holds_itself(item, (*around, id(value)), seen) for item in items)


def read_yaml(path: Path) -> dict[str, Any]:
    """Return a YAML file's mapping, with all keys as text.

    Raises:
        RecipeError: It cannot be read, is not YAML, holds a key twice or itself, or is not a mapping.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise RecipeError(f"{path}: no such recipe; the ready-made ones lie in pipelines/") from None
    except IsADirectoryError:
        raise RecipeError(f"{path}: a directory; expected a recipe, a YAML file such as those in pipelines/") from None
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: cannot be read as UTF-8 text: {error}") from None
    content = _parse(text, str(path))
    if not isinstance(content, dict):
        found = "an empty file" if content is None else f"{type(content).__name__}"
        raise RecipeError(f"{path}: expected a mapping with name, data, teacher, …; got {found}")
    result: dict[str, Any] = text_keys(content)
    return result


def apply_override(content: dict[str, Any], override: str) -> None:
    """Set `key.path=value` in a recipe's mapping; the value is read as YAML.

    Raises:
        RecipeError: The override is not of that form, or the path leads nowhere.
    """
    key, separator, text = override.partition("=")
    if not separator or not key.strip("."):
        raise RecipeError(f"--set {override}: expected key=value, for example --set distill.train.epochs=2")
    value = _parse(text, f"--set {override}") if text else ""
    parts = key.split(".")
    here: Any = content
    for number, part in enumerate(parts[:-1]):
        if isinstance(here, dict):
            here = here.setdefault(part, {})
            if here is None:
                raise RecipeError(f"--set {override}: {'.'.join(parts[: number + 1])} is empty in the recipe")
        else:
            here = _item(here, part, override, ".".join(parts[:number]))
    if isinstance(here, dict):
        here[parts[-1]] = value
    else:
        _item(here, parts[-1], override, ".".join(parts[:-1]))
        here[int(parts[-1])] = value


def _item(here: Any, part: str, override: str, path: str) -> Any:
    if not isinstance(here, list):
        raise RecipeError(f"--set {override}: {path} holds {here!r}, which has no keys")
    if not part.isdecimal() or int(part) >= len(here):
        raise RecipeError(f"--set {override}: {path} is a list of {len(here)}; expected a number below it, got {part}")
    return here[int(part)]


def resolve_variables(value: Any, environment: Mapping[str, str], missing: list[str], path: str = "") -> Any:
    """Return `value` with `${VAR}` and `${VAR:-default}` replaced in every text of it.

    Args:
        value: A mapping, list or scalar of a recipe.
        environment: The variables.
        missing: Gets a line for every variable that is neither set nor has a default.
        path: Where `value` stands in the recipe.
    """
    if isinstance(value, dict):
        return {
            key: resolve_variables(item, environment, missing, f"{path}.{key}".lstrip("."))
            for key, item in value.items()
        }
    if isinstance(value, list):
        return [resolve_variables(item, environment, missing, f"{path}.{number}") for number, item in enumerate(value)]
    if not isinstance(value, str):
        return value

    def replace(match: re.Match[str]) -> str:
        name, default = match["name"], match["default"]
        # as in a shell, `:-` also replaces a variable that is set but empty
        found = environment.get(name) or default if default is not None else environment.get(name)
        if found is None:
            missing.append(f"{path}: {match[0]} needs the environment variable {name}; set it, or --set {path}=…")
            return ""
        return found

    return _VARIABLE.sub(replace, value)


def used_variables(value: Any, environment: Mapping[str, str]) -> list[str]:
    """Return the names of the variables that a recipe takes from the environment, in order, each once.

    Args:
        value: A mapping, list or scalar of a recipe, before `resolve_variables`.
        environment: The variables; one that is not set, or set to nothing, is not used.
    """
    if isinstance(value, dict | list):
        items = value.values() if isinstance(value, dict) else value
        return list(dict.fromkeys(name for item in items for name in used_variables(item, environment)))
    names = [match["name"] for match in _VARIABLE.finditer(value)] if isinstance(value, str) else []
    return list(dict.fromkeys(name for name in names if environment.get(name)))
