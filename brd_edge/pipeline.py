"""The command: `python -m brd_edge.pipeline RECIPE`, also installed as `brd-edge`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a recipe.

    Args:
        arguments: The command line without the program; the process's own when not given.

    Returns:
        The exit code: 0 done, 1 a stage or an engine failed or something is missing, 2 the recipe or the command line
        is wrong, 3 a gate was not held, 130 interrupted.
    """
    try:
        from brd_edge.execution import execute
    except ModuleNotFoundError as error:
        # a device installs the package bare, to run engines and not recipes
        if (error.name or "").startswith("brd_edge"):
            raise
        print(
            f"brd-edge: error: running a recipe needs the package {error.name}, which is not installed; "
            'pip install "brd-edge[all]" brings everything',
            file=sys.stderr,
        )
        return 1
    return execute(sys.argv[1:] if arguments is None else arguments)


if __name__ == "__main__":
    sys.exit(main())
