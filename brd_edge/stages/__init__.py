"""The stages of a run: each takes the recipe and the artifacts before it, and leaves one of its own."""

from __future__ import annotations

from brd_edge.stages import benchmark, build, bundle, distill, export, prepare, ship, teacher
from brd_edge.stages.context import Stage

__all__ = ["STAGES"]

STAGES: dict[str, Stage] = {
    stage.name: stage
    for stage in (
        prepare.STAGE,
        teacher.STAGE,
        distill.STAGE,
        export.STAGE,
        build.STAGE,
        benchmark.STAGE,
        bundle.STAGE,
        ship.STAGE,
    )
}
"""All stages in the order in which they run."""
