"""The device profiles that engines are built for, and which combinations exist."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["TARGETS", "Target", "check_combination"]


@dataclass(frozen=True)
class Target:
    """A kind of device.

    Attributes:
        name: The target's name in a recipe.
        runtimes: Runtimes that have engines for it.
        precisions: Precisions that can be built for it.
        machines: Processor names (`platform.machine()`) of such devices.
        built: `"here"` on the machine that runs the recipe, or `"on device"`.
        description: One line for people.
    """

    name: str
    runtimes: tuple[str, ...]
    precisions: tuple[str, ...]
    machines: tuple[str, ...]
    built: Literal["here", "on device"]
    description: str


_X86 = ("x86_64", "AMD64")
_ARM64 = ("aarch64", "arm64")

TARGETS: dict[str, Target] = {
    target.name: target
    for target in (
        Target("x86-cpu", ("onnxruntime", "openvino"), ("fp32",), _X86, "here", "x86-64 processor"),
        Target(
            "rtx",
            ("tensorrt",),
            ("fp32",),
            _X86,
            "here",
            "RTX-class GPU (SM75, 80, 86, 89, 120, 121); one TensorRT-RTX engine for all, built without a GPU",
        ),
        Target(
            "arm64-cpu",
            ("onnxruntime", "openvino"),
            ("fp32",),
            _ARM64,
            "here",
            "64-bit ARM processor, from a Raspberry Pi upwards; the graph is the same on every processor",
        ),
        Target("jetson-orin", ("tensorrt",), ("fp32",), _ARM64, "on device", "Jetson Orin (SM87), JetPack's TensorRT"),
        Target("jetson-thor", ("tensorrt",), ("fp32",), _ARM64, "on device", "Jetson Thor (SM110), JetPack's TensorRT"),
        Target("h100", ("tensorrt",), ("fp32",), _X86, "on device", "H100 data-centre GPU (SM90), TensorRT"),
    )
}
"""The targets by name."""


def check_combination(runtime: str, precision: str, target: str) -> str | None:
    """Say why there is no such engine, and what there is instead.

    Args:
        runtime: For example `"openvino"`.
        precision: For example `"fp32"`.
        target: For example `"x86-cpu"`.

    Returns:
        The reason, or None when the combination exists.

    Example:
        >>> check_combination("openvino", "fp32", "rtx")
        "target 'rtx' has no openvino engines: its runtimes are tensorrt; openvino engines are for x86-cpu, arm64-cpu"
    """
    if target not in TARGETS:
        return f"unknown target {target!r}: there are {', '.join(TARGETS)}"
    known = TARGETS[target]
    if runtime not in known.runtimes:
        others = [other.name for other in TARGETS.values() if runtime in other.runtimes]
        end = f"{runtime} engines are for {', '.join(others)}" if others else f"there is no runtime {runtime!r}"
        return f"target {target!r} has no {runtime} engines: its runtimes are {', '.join(known.runtimes)}; {end}"
    if precision not in known.precisions:
        return f"target {target!r} has no {precision} engines: its precisions are {', '.join(known.precisions)}"
    return None
