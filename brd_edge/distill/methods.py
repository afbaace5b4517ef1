"""The distillation methods, and which terms each has: without torch, for recipes and plans."""

from __future__ import annotations

__all__ = ["METHODS"]

METHODS: dict[str, tuple[str, ...]] = {
    "none": (),
    "kd": ("kd",),
    "skd": ("kd", "skd"),
    "cwd": ("cwd",),
    "cirkd": ("kd", "cirkd_batch", "cirkd_memory"),
    "boundary": ("boundary", "boundary_classes"),
    "relation": ("relation",),
    "brd": ("boundary", "boundary_classes", "relation"),
    "brd_kd": ("kd", "boundary", "boundary_classes", "relation"),
}
"""Which terms join the cross-entropy under each method, each with its weight `lambda_…`; SKD is without its adversarial
term."""
