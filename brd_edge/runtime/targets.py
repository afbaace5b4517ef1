"""The device profiles that engines are built for, and which combinations exist."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from brd_edge.runtime.versions import ONNXRUNTIME_RANGE

__all__ = [
    "RTX_COMPUTE_CAPABILITIES",
    "TARGETS",
    "Target",
    "check_combination",
    "compute_capabilities",
    "lacks_matrix_products",
]


@dataclass(frozen=True)
class Target:
    """A kind of device.

    Attributes:
        name: The target's name in a recipe.
        precisions: Runtimes that have engines for it, and the precisions that each has.
        versions: Which versions of each runtime build and run engines for it. What is built may need fewer of them
            (`brd_edge.runtime.versions.version_range`): a TensorRT engine only the one that built it.
        machines: Processor names (`platform.machine()`) of such devices.
        built: `"here"` on the machine that runs the recipe, or `"on device"`.
        description: One line for people.
        device: What OpenVINO calls it; or `"CUDA"` where ONNX Runtime's provider of that name runs the engine.
        compute_capabilities: NVIDIA GPUs of it, as 10 x major + minor compute capability.
    """

    name: str
    precisions: Mapping[str, tuple[str, ...]]
    versions: Mapping[str, str]
    machines: tuple[str, ...]
    built: Literal["here", "on device"]
    description: str
    device: str = "CPU"
    compute_capabilities: tuple[int, ...] = ()

    @property
    def runtimes(self) -> tuple[str, ...]:
        """Runtimes that have engines for it."""
        return tuple(self.precisions)


_X86 = ("x86_64", "AMD64")
_ARM64 = ("aarch64", "arm64")
_ORT_VERSIONS = {"onnxruntime": ONNXRUNTIME_RANGE}
_OPENVINO_VERSIONS = {"openvino": ">=2025.0"}
_RTX_VERSIONS = {"tensorrt": ">=1.3"}
_TENSORRT = ("fp32", "fp16", "bf16", "int8", "int8-fp16")
_TURING = ("fp32", "fp16", "int8", "int8-fp16")
RTX_COMPUTE_CAPABILITIES = (75, 80, 86, 89, 120, 121)
"""The GPUs that TensorRT-RTX builds engines for."""


def _rtx(capability: int, description: str) -> Target:
    # Turing has no bfloat16
    precisions = _TURING if capability < 80 else _TENSORRT
    return Target(
        f"rtx-sm{capability}",
        {"tensorrt": precisions},
        _RTX_VERSIONS,
        _X86,
        "here",
        f"{description} (SM{capability}), TensorRT-RTX; built without a GPU",
        compute_capabilities=(capability,),
    )


TARGETS: dict[str, Target] = {
    target.name: target
    for target in (
        Target(
            "x86-cpu",
            {"onnxruntime": ("fp32", "int8"), "openvino": ("fp32", "bf16", "int8", "int8-bf16")},
            _ORT_VERSIONS | _OPENVINO_VERSIONS,
            _X86,
            "here",
            "x86-64 processor",
        ),
        Target(
            "arm64-cpu",
            {"onnxruntime": ("fp32", "int8"), "openvino": ("fp32", "fp16")},
            _ORT_VERSIONS | _OPENVINO_VERSIONS,
            _ARM64,
            "here",
            "64-bit ARM processor, from a Raspberry Pi upwards; the graph is the same on every processor",
        ),
        Target(
            "intel-igpu",
            {"openvino": ("fp32", "fp16", "int8", "int8-fp16")},
            _OPENVINO_VERSIONS,
            _X86,
            "here",
            "graphics of an Intel processor, or an Arc GPU; OpenVINO compiles for it when the engine is opened",
            device="GPU",
        ),
        Target(
            "intel-npu",
            {"openvino": ("fp16", "int8-fp16")},
            _OPENVINO_VERSIONS,
            _X86,
            "here",
            "NPU of an Intel Core Ultra processor; OpenVINO compiles for it when the engine is opened",
            device="NPU",
        ),
        Target(
            "rtx",
            {"tensorrt": _TENSORRT},
            _RTX_VERSIONS,
            _X86,
            "here",
            "RTX-class GPU (SM75, 80, 86, 89, 120, 121; bf16 from SM80); one TensorRT-RTX engine for all, "
            "built without a GPU",
            compute_capabilities=RTX_COMPUTE_CAPABILITIES,
        ),
        Target(
            "cuda",
            {"onnxruntime": ("fp32", "fp16")},
            _ORT_VERSIONS,
            _X86,
            "here",
            "NVIDIA GPU by ONNX Runtime's CUDA provider (onnxruntime-gpu); the graph is the same on every GPU",
            device="CUDA",
        ),
        _rtx(75, "Turing GPU"),
        _rtx(80, "A100, A30"),
        _rtx(86, "Ampere GPU"),
        _rtx(89, "Ada GPU"),
        _rtx(120, "Blackwell GPU"),
        Target(
            "jetson-orin",
            {"tensorrt": _TENSORRT},
            # of JetPack 6 and 7; 10.3 is the first that reads the exported operators
            {"tensorrt": ">=10.3,<11"},
            _ARM64,
            "on device",
            "Jetson Orin (SM87), JetPack's TensorRT",
            compute_capabilities=(87,),
        ),
        Target(
            "jetson-thor",
            {"tensorrt": _TENSORRT},
            # of JetPack 7
            {"tensorrt": ">=10.13"},
            _ARM64,
            "on device",
            "Jetson Thor (SM110), JetPack's TensorRT",
            compute_capabilities=(110,),
        ),
        Target(
            "h100",
            {"tensorrt": _TENSORRT},
            {"tensorrt": ">=10.3"},
            _X86,
            "on device",
            "H100 data-centre GPU (SM90), TensorRT",
            compute_capabilities=(90,),
        ),
    )
}
"""The targets by name."""


def check_combination(runtime: str, precision: str, target: str, batch_max: int = 1) -> str | None:
    """Say why there is no such engine, and what there is instead.

    Args:
        runtime: For example `"openvino"`.
        precision: For example `"fp32"`.
        target: For example `"x86-cpu"`.
        batch_max: How many frames at once, at most.

    Returns:
        The reason, or None when the combination exists.

    Example:
        >>> check_combination("onnxruntime", "bf16", "arm64-cpu")
        "target 'arm64-cpu' has no bf16 engines of onnxruntime: its precisions are fp32, int8"
    """
    if target not in TARGETS:
        return f"unknown target {target!r}: there are {', '.join(TARGETS)}"
    known = TARGETS[target]
    if runtime not in known.runtimes:
        others = [other.name for other in TARGETS.values() if runtime in other.runtimes]
        end = f"{runtime} engines are for {', '.join(others)}" if others else f"there is no runtime {runtime!r}"
        return f"target {target!r} has no {runtime} engines: its runtimes are {', '.join(known.runtimes)}; {end}"
    precisions = known.precisions[runtime]
    if precision not in precisions:
        return f"target {target!r} has no {precision} engines of {runtime}: its precisions are {', '.join(precisions)}"
    if batch_max > 1 and known.device == "NPU":
        return f"target {target!r} takes graphs of fixed shape, one frame at a time: leave batch_max out"
    return None


def compute_capabilities(precision: str, target: str) -> tuple[int, ...]:
    """Return the NVIDIA GPUs that an engine is built for; Turing, SM75, has no bfloat16."""
    return tuple(found for found in TARGETS[target].compute_capabilities if found >= 80 or precision != "bf16")


def lacks_matrix_products(runtime: str, precision: str, target: str) -> bool:
    """Return whether such an engine cannot multiply matrices: TensorRT-RTX has no float32 product for Turing, SM75.

    What is not quantised of an `int8` engine is float32 too; fp16 products there are.
    """
    return runtime == "tensorrt" and precision in ("fp32", "int8") and 75 in TARGETS[target].compute_capabilities
