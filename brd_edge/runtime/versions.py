"""Version ranges of runtimes, as a bundle states them: `>=1.20`, `==1.7.1`, or several with commas."""

from __future__ import annotations

import re
from collections.abc import Callable

from brd_edge.runtime.errors import EngineError

__all__ = ["ONNXRUNTIME_RANGE", "is_specifier", "version_fits", "version_range"]

ONNXRUNTIME_RANGE = ">=1.18"
"""From the first that reads ONNX IR 10 and operator set 21."""

# the newest operator set that versions load, and from which: tried with 1.18.1, 1.19.2, 1.20.1, 1.21.1, 1.22.1, 1.23.2
_ONNXRUNTIME_RANGES = {21: ONNXRUNTIME_RANGE, 22: ">=1.21", 23: ">=1.23"}

_CLAUSE = re.compile(r"(>=|==|<)(\d+(?:\.\d+)*)")

_COMPARE: dict[str, Callable[[tuple[int, ...], tuple[int, ...]], bool]] = {
    ">=": lambda version, limit: version >= limit,
    "<": lambda version, limit: version < limit,
    "==": lambda version, limit: version == limit,
}


def is_specifier(text: object) -> bool:
    """Return whether a text is a version range."""
    return isinstance(text, str) and all(_CLAUSE.fullmatch(part.strip()) for part in text.split(","))


def version_fits(version: str, specifier: str) -> bool:
    """Return whether a version lies in a range; only its leading numbers count.

    Example:
        >>> version_fits("1.32.0", ">=1.20,<2")
        True
    """
    found = re.match(r"\d+(?:\.\d+)*", version)
    if found is None:
        return False
    for part in specifier.split(","):
        clause = _CLAUSE.fullmatch(part.strip())
        if clause is None:
            return False
        limit = _numbers(clause[2])
        numbers = _numbers(found[0])
        width = max(len(limit), len(numbers))
        if not _COMPARE[clause[1]](_padded(numbers, width), _padded(limit, width)):
            return False
    return True


def version_range(runtime: str, built_by: str, *, opset: int | None = None) -> str:
    """Return which versions load an engine that a runtime built.

    ONNX Runtime's engine is the exported graph: its operator set decides, whatever version checked it. OpenVINO reads
    its intermediate representation of the last years; a TensorRT engine belongs to the very version that built it.

    Args:
        runtime: `"onnxruntime"`, `"openvino"` or `"tensorrt"`.
        built_by: For example `"1.32.0"`, or `"tensorrt_rtx 1.7.1"`.
        opset: ONNX operator set of the graph, for ONNX Runtime. Where it is not known, some of the versions may turn
            out not to load the engine.

    Raises:
        EngineError: `built_by` holds no version, or the operator set is newer than any that is known here.
    """
    version = re.search(r"\d+(?:\.\d+)*", built_by)
    if version is None:
        raise EngineError(f"runtime_version: expected a version such as '1.20.0', got {built_by!r}; rebuild the engine")
    if runtime == "onnxruntime":
        return _onnxruntime_range(opset)
    if runtime == "openvino":
        return f">={_numbers(version[0])[0]}.0"
    return f"=={version[0]}"


def _onnxruntime_range(opset: int | None) -> str:
    if opset is None:
        return ONNXRUNTIME_RANGE
    for newest, versions in _ONNXRUNTIME_RANGES.items():
        if opset <= newest:
            return versions
    raise EngineError(
        f"opset: expected an ONNX operator set up to {max(_ONNXRUNTIME_RANGES)}, got {opset}: which versions of ONNX "
        "Runtime load it is not known; export the student again with a lower export.opset"
    )


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))


def _padded(numbers: tuple[int, ...], width: int) -> tuple[int, ...]:
    return numbers + (0,) * (width - len(numbers))
