"""The JSON schema of a recipe, for editors: `python -m brd_edge.recipe_schema --write FILE`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from brd_edge.recipe import Recipe
from brd_edge.runtime.files import write_text_atomic

__all__ = ["json_schema", "main"]


def json_schema() -> dict[str, Any]:
    """Return the JSON schema of a recipe."""
    schema = Recipe.model_json_schema()
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": "brd_edge recipe"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the schema, or check that the written one is current; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m brd_edge.recipe_schema", description=main.__doc__)
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument("--write", type=Path, metavar="FILE")
    action.add_argument("--check", type=Path, metavar="FILE")
    options = parser.parse_args(arguments)
    text = json.dumps(json_schema(), indent=2) + "\n"
    if options.write:
        write_text_atomic(options.write, text)
    elif not options.check.is_file() or options.check.read_text(encoding="utf-8") != text:
        print(f"{options.check} is not current; run `make schema`", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
