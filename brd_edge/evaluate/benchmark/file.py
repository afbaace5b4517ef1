"""`benchmark.json`: its format, and how it is read. The JSON schema made from this is `docs/benchmark.schema.json`.

A new field stands here, or in the modules of its parts, with a docstring. With a default, files written before it
stay readable; a field that nobody can do without, and every other change, raises `SCHEMA_VERSION`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from brd_edge.evaluate.benchmark.archives import AGAIN
from brd_edge.evaluate.benchmark.entries import ComparedEntry, Count, EngineEntry, Entry, StudentEntry, TeacherEntry
from brd_edge.evaluate.benchmark.evidence import AttributionEntry, ZeroCostEntry
from brd_edge.runtime.errors import RunError

__all__ = ["SCHEMA_VERSION", "Benchmark", "check_benchmark", "read_benchmark"]

SCHEMA_VERSION = 3

_VALUE_LENGTH_MAX = 80

Channel = Annotated[int, Field(ge=0, le=255)]
Three = tuple[float, float, float]


class DatasetEntry(Entry):
    """The data set."""

    name: str
    """Its name."""
    classes: tuple[str, ...]
    """Names by class id."""
    palette: tuple[tuple[Channel, Channel, Channel], ...]
    """RGB colours by class id."""
    train: Count
    """Images to train on."""
    val: Count
    """Images that scores are counted on."""
    unlabelled: Count = 0
    """Images without labels that the student was trained on beside `train`, with the labels that the teacher gave."""


class ContractEntry(Entry):
    """The input contract: how a frame enters an engine."""

    height: Annotated[int, Field(ge=1)]
    """Rows of the frame."""
    width: Annotated[int, Field(ge=1)]
    """Columns of the frame."""
    mean: Three
    """Mean per RGB channel on the scale 0 to 1."""
    std: Three
    """Standard deviation per RGB channel on the scale 0 to 1."""
    channel_order: str
    """Order of the channels."""
    layout: str
    """Order of the axes."""
    dtype: str
    """Type of the frame's numbers."""
    resize: str
    """How an image becomes a frame."""


class EnvironmentEntry(Entry):
    """What it was measured with. What could not be found out is null."""

    cpu: str
    """Name of the processor."""
    cores: Count
    """Cores that the process may use."""
    memory_bytes: Count
    """Memory of the machine."""
    os: str
    """Operating system."""
    python: str
    """Version of Python."""
    gpu: str | None
    """Name of the first NVIDIA GPU."""
    driver: str | None
    """Version of its driver."""
    commit: str | None
    """Commit of brd_edge's source."""
    packages: dict[str, str]
    """Versions of the packages that matter."""


class Benchmark(Entry):
    """The content of `benchmark.json`: everything that a run measured."""

    schema_version: Literal[3]
    """Version of this format."""
    recipe: str
    """Name of the recipe."""
    created: str
    """When it was written, in UTC, ISO 8601."""
    command: str
    """The command line of the run."""
    duration_s: dict[str, float]
    """Seconds that each stage before the benchmark took, by its name."""
    dataset: DatasetEntry
    """The data set."""
    contract: ContractEntry
    """The input contract."""
    teacher: TeacherEntry
    """The teacher in PyTorch."""
    student: StudentEntry
    """The student in PyTorch."""
    compared: ComparedEntry | None
    """The student of an earlier run; null without `benchmark.compare_run`."""
    engines: tuple[EngineEntry, ...]
    """The recipe's engines."""
    zero_cost: ZeroCostEntry
    """The proof that distillation added nothing to the cost of inference."""
    attribution: AttributionEntry | None = None
    """Which step lost how much accuracy."""
    environment: EnvironmentEntry
    """What it was measured with."""
    timed_images: Annotated[tuple[str, ...], Field(min_length=1)]
    """Ids of the validation images whose frames took turns while latency was measured, the same for every engine."""
    threads: int | None = None
    """CPU threads of each engine while it was measured, `benchmark.threads`; null leaves the choice to the runtime."""


def read_benchmark(path: Path) -> Benchmark:
    """Read and check a `benchmark.json`.

    Args:
        path: The file.

    Returns:
        Its content; `model_dump` gives it back as a dict.

    Raises:
        RunError: It is missing, was written in another version of the format, or is not valid; the message names
            the file and the first key that is wrong.

    Example:
        >>> read_benchmark(Path("runs/quickstart/benchmark.json")).engines[0].latency_ms.p50
        3.1
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise RunError(
            f"{path}: not found; expected the run directory of a recipe that has been run up to its stage benchmark"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise RunError(f"{path}: cannot be read as UTF-8 text: {error}") from None
    try:
        content = json.loads(text)
    except ValueError as error:
        raise RunError(f"{path}: not JSON ({error}); {AGAIN}") from None
    version = content.get("schema_version") if isinstance(content, dict) else None
    if type(version) is not int or version != SCHEMA_VERSION:
        found = "no benchmark" if version is None else repr(version)
        raise RunError(
            f"{path}: schema_version: expected {SCHEMA_VERSION}, got {found}: it was written by another version of "
            f"brd-edge; {AGAIN}"
        )
    try:
        return Benchmark.model_validate_json(text)
    except ValidationError as error:
        raise RunError(f"{path}: {_describe(error)}; it was changed, or written by another version; {AGAIN}") from None


def check_benchmark(content: Mapping[str, Any]) -> None:
    """Check what is about to be written as `benchmark.json`.

    Raises:
        RunError: It does not follow the format; the message names the first key that is wrong.
    """
    try:
        Benchmark.model_validate_json(json.dumps(content))
    except ValidationError as error:
        raise RunError(f"benchmark.json: {_describe(error)}; this is an error of brd-edge: please report it") from None


def _describe(error: ValidationError) -> str:
    """Say what is wrong with the first key, and how many others are."""
    errors = error.errors(include_url=False)
    first = errors[0]
    key = _key(first["loc"])
    kind, value = first["type"], repr(first["input"])
    got = value if len(value) <= _VALUE_LENGTH_MAX else value[: _VALUE_LENGTH_MAX - 1] + "…"
    if kind == "extra_forbidden":
        text = f"{key}: expected no such key, got {got}"
    elif kind == "missing":
        text = f"{key}: expected a value, got none"
    elif kind == "value_error":
        text = f"{key}: {first['ctx']['error']}"
    else:
        text = f"{key}: {first['msg'].replace('Input should be', 'expected')}, got {got}"
    return text if len(errors) == 1 else f"{text} (and {len(errors) - 1} more)"


def _key(location: Sequence[int | str]) -> str:
    """Write a place as `engines[0].latency_ms.p50`."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location).lstrip(".") or "content"
