"""The JSON schemas of recipes, for editors, and of benchmarks, for programs that read them.

`python -m brd_edge.json_schemas NAME --write FILE`
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from brd_edge.evaluate.benchmark.file import Benchmark
from brd_edge.recipe import Recipe
from brd_edge.runtime.files import write_text_atomic

__all__ = ["SCHEMAS", "json_schema", "main"]


SCHEMAS: dict[str, type[BaseModel]] = {"recipe": Recipe, "benchmark": Benchmark}
"""What describes each kind of file."""


def json_schema(name: str) -> dict[str, Any]:
    """Return the JSON schema of one of `SCHEMAS`."""
    schema = SCHEMAS[name].model_json_schema()
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": f"brd_edge {name}"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Write a schema, or check that the written one is current; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m brd_edge.json_schemas", description=main.__doc__)
    parser.add_argument("name", choices=list(SCHEMAS), help="the kind of file")
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument("--write", type=Path, metavar="FILE")
    action.add_argument("--check", type=Path, metavar="FILE")
    options = parser.parse_args(arguments)
    text = json.dumps(json_schema(options.name), indent=2) + "\n"
    if options.write:
        write_text_atomic(options.write, text)
    elif not options.check.is_file() or options.check.read_text(encoding="utf-8") != text:
        print(f"{options.check} is not current; run `make schema`", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
