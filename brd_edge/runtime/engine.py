"""An engine on disk: a directory with a sidecar, `engine.json`, and the files that the runtime loads.

The sidecar says what the engine is and which frames it takes, and holds the SHA-256 of every
file. An engine is executable code, so `open_engine` compares the checksums, the target and the
version of the runtime before any runtime sees a byte of it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from brd_edge.runtime.contract import InputContract
from brd_edge.runtime.errors import ContractError, EngineError
from brd_edge.runtime.files import sha256_file, write_json_atomic

if TYPE_CHECKING:
    from typing import Self  # novm

__all__ = [
    "BATCH_MAX",
    "SCHEMA_VERSION",
    "SIDECAR",
    "THREADS_MAX",
    "CoarseLogits",
    "EngineFile",
    "EngineInfo",
    "Runner",
    "describe_files",
    "open_engine",
    "read_engine",
    "verify_files",
    "write_engine",
]

SIDECAR = "engine.json"
SCHEMA_VERSION = 3
BATCH_MAX = 64
"""The most frames that an engine may take at once."""
THREADS_MAX = 4096
"""The most threads that a runtime is asked for: more than machines have processors."""


@dataclass(frozen=True)
class EngineFile:
    """One file of an engine: the SHA-256 of its content in 64 hexadecimal digits, and its size."""

    sha256: str
    size_bytes: int


@dataclass(frozen=True)
class CoarseLogits:
    """What an engine returns in place of a class map: logits to be upsampled bilinearly; see `ClassMapper`.

    Attributes:
        align_corners: Whether the corners of both grids lie on each other, or their half pixels.
    """

    align_corners: bool


@dataclass(frozen=True)
class EngineInfo:
    """What the sidecar says.

    Attributes:
        runtime: `"onnxruntime"`, `"openvino"` or `"tensorrt"`.
        precision: For example `"fp32"`.
        target: The device profile that it was built for.
        runtime_version: Version of the runtime that built it; for `tensorrt` the package's name
            comes first, as in `"tensorrt_rtx 1.7.1"`, since the two packages do not read each other's engines.
        contract: The frames that it takes.
        classes: Names by class id.
        palette: RGB colours by class id, 0 to 255.
        files: The engine's files by name.
        entry: Name of the file that the runtime is given.
        created_by: Program and version that wrote it.
        logits: None where the engine returns the class map; else what it returns, which the runner finishes.
        batch_max: How many frames it takes at once, from 1 to this.
        schema_version: Version of the sidecar's format.
    """

    runtime: str
    precision: str
    target: str
    runtime_version: str
    contract: InputContract
    classes: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    files: Mapping[str, EngineFile]
    entry: str
    created_by: str
    logits: CoarseLogits | None = None
    batch_max: int = 1
    schema_version: int = SCHEMA_VERSION

    @property
    def size_bytes(self) -> int:
        """Size of all files together, without the sidecar."""
        return sum(file.size_bytes for file in self.files.values())

    def to_json(self) -> dict[str, Any]:
        """Return the sidecar's content as JSON types."""
        return {
            "schema_version": self.schema_version,
            "runtime": self.runtime,
            "precision": self.precision,
            "target": self.target,
            "runtime_version": self.runtime_version,
            "contract": self.contract.to_json(),
            "classes": list(self.classes),
            "palette": [list(colour) for colour in self.palette],
            "files": {name: asdict(file) for name, file in self.files.items()},
            "entry": self.entry,
            "created_by": self.created_by,
            "logits": None if self.logits is None else asdict(self.logits),
            "batch_max": self.batch_max,
        }


class Runner(Protocol):
    """An engine that is loaded; a context manager. Not thread-safe: open one a thread.

    Example:
        >>> with open_engine("engines/openvino-fp32-x86-cpu") as runner:
        ...     class_map = runner.infer(frame)
    """

    @property
    def info(self) -> EngineInfo:
        """What the sidecar says."""
        ...

    def infer(self, frame: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """Segment one frame, or several.

        Args:
            frame: uint8 (H, W, 3), RGB, at the contract's size; or (N, H, W, 3) with N from 1, which the engine takes
                `info.batch_max` at a time. Need not be contiguous.

        Returns:
            uint8 (H, W) class ids, or (N, H, W), in memory that is the caller's own.

        Raises:
            EngineError: The frame has another shape or dtype, the runner is closed, or the runtime failed.
        """
        ...

    def bind(self, frame: npt.NDArray[np.uint8]) -> Callable[[], object]:
        """Return a call that runs the engine alone, over and over on one frame.

        The frame lies where the runtime reads it, and the class map stays where the runtime writes it: what the
        call takes is what the vendor's own tool measures. `infer` is that, and all that lies around it.

        Args:
            frame: As for `infer`.

        Returns:
            A call that returns when the engine is done; it must not be called after `close`, nor between the
            calls of another one of the same runner.

        Raises:
            EngineError: The frame has another shape or dtype, or the runner is closed.
        """
        ...

    def close(self) -> None:
        """Free what the engine holds; calling it again does nothing."""
        ...

    def __enter__(self) -> Self:
        """Return the runner itself."""
        ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the runner."""
        ...


def describe_files(directory: Path, names: Iterable[str]) -> dict[str, EngineFile]:
    """Return checksum and size of the named files of a directory."""
    return {name: EngineFile(sha256_file(directory / name), (directory / name).stat().st_size) for name in names}


def write_engine(directory: Path, info: EngineInfo) -> None:
    """Write the sidecar of an engine whose files are in place.

    Raises:
        EngineError: A field is out of its range.
    """
    path, values = directory / SIDECAR, info.to_json()
    _parse(values, path)
    write_json_atomic(path, values)


def read_engine(directory: Path) -> EngineInfo:
    """Read and check the sidecar of an engine; its files are not touched (`verify_files` does that).

    Raises:
        EngineError: The sidecar is missing or not valid; the message names file and key.
    """
    path = directory / SIDECAR
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise EngineError(_not_an_engine(directory)) from error
    except NotADirectoryError as error:
        raise EngineError(f"{directory}: expected the directory of an engine, got a file of it") from error
    except OSError as error:
        raise EngineError(f"{path}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise EngineError(f"{path}: not JSON ({error}); rebuild the engine") from error
    return _parse(values, path)


def _not_an_engine(directory: Path) -> str:
    from brd_edge.runtime.manifest import MANIFEST_NAME, PLAN_GRAPH_NAME
    from brd_edge.runtime.targets import TARGETS

    if not (directory / PLAN_GRAPH_NAME).is_file():
        return f"{directory / SIDECAR}: not found; expected the directory of an engine, with {SIDECAR} in it"
    place = directory.resolve()
    # names are RUNTIME-PRECISION-TARGET, with -batchN where it takes several frames
    targets = [name for name in TARGETS if re.search(rf"-{re.escape(name)}(-batch\d+)?$", place.name)]
    bundle = place.parents[1] if len(place.parents) > 1 and (place.parents[1] / MANIFEST_NAME).is_file() else "BUNDLE"
    return (
        f"{directory}: not an engine yet, but a graph ({PLAN_GRAPH_NAME}) to be built on the device itself"
        f"{f', {targets[0]}' if targets else ''}: run  python -m brd_edge.runtime build {bundle}  there, which prints "
        "where the engine is then"
    )


def verify_files(directory: Path, info: EngineInfo) -> None:
    """Compare the engine's files with the sidecar's sizes and checksums.

    Raises:
        EngineError: A file is missing or is not the one that was built.
    """
    for name, expected in info.files.items():
        path = directory / name
        if not path.is_file():
            raise EngineError(f"{path}: missing; the engine was built with it: copy the whole directory, or rebuild")
        size_bytes = path.stat().st_size
        if size_bytes != expected.size_bytes:
            raise EngineError(
                f"{path}: expected {expected.size_bytes} bytes, got {size_bytes}: it is cut off, or not the file "
                "that was built; it is not loaded. Copy it again, or rebuild the engine"
            )
        sha256 = sha256_file(path)
        if sha256 != expected.sha256:
            raise EngineError(
                f"{path}: expected SHA-256 {expected.sha256}, got {sha256}: it is not the file that was built; "
                "it is not loaded. Copy it again, or rebuild the engine"
            )


def open_engine(directory: str | Path, *, contract: InputContract | None = None, threads: int | None = None) -> Runner:
    """Check an engine and load it.

    Args:
        directory: The engine's directory.
        contract: The frames that will be fed; an engine made for others is refused. None takes the engine's own.
        threads: CPU threads for the runtime, 1 to `THREADS_MAX`; None leaves the choice to it.

    Returns:
        A runner; close it, or use it as a context manager.

    Raises:
        ContractError: The engine was made for another contract; the message names the fields.
        EngineError: The sidecar or a file is not valid, the target is unknown, the runtime that
            is installed has another version than the engine needs, it cannot load it, or the graph was exported for
            another contract than the sidecar's.
        RuntimeMissingError: The runtime is not installed, or the target's processor or hardware is not here.
    """
    from brd_edge.runtime.packages import require_home
    from brd_edge.runtime.runners import RUNNERS

    directory = Path(directory)
    info = read_engine(directory)
    if info.runtime not in RUNNERS:
        raise EngineError(f"{directory / SIDECAR}: runtime: expected one of {sorted(RUNNERS)}, got {info.runtime!r}")
    if threads is not None and not 1 <= threads <= THREADS_MAX:
        raise EngineError(f"threads: expected 1 to {THREADS_MAX}, or None for the runtime's choice; got {threads}")
    if contract is not None:
        contract.require_equal(info.contract, f"the engine {directory}")
    verify_files(directory, info)
    require_home(directory / SIDECAR, info)
    return RUNNERS[info.runtime](directory, info, threads)


def _parse(values: Any, path: Path) -> EngineInfo:
    """Turn the sidecar's JSON into an `EngineInfo`, or raise an EngineError that names file and key."""
    _expect(isinstance(values, dict), path, "content", "an object", values)
    version = values.get("schema_version")
    if version != SCHEMA_VERSION or type(version) is not int:
        raise EngineError(
            f"{path}: schema_version: expected {SCHEMA_VERSION}, got {version!r}: rebuild the engine, or open it with "
            f"the brd-edge that wrote it"
        )
    texts = ("runtime", "precision", "target", "runtime_version", "entry", "created_by")
    keys = {"schema_version", "contract", "classes", "palette", "files", "logits", "batch_max", *texts}
    _expect(set(values) == keys, path, "keys", f"{sorted(keys)}", sorted(values))
    for key in texts:
        _expect(isinstance(values[key], str) and values[key] != "", path, key, "a text", values[key])
    files = _parse_files(values["files"], path)
    _expect(values["entry"] in files, path, "entry", f"one of the files {sorted(files)}", values["entry"])
    classes = _parse_classes(values["classes"], path)
    batch_max = values["batch_max"]
    _expect(_is_int(batch_max, 1, BATCH_MAX), path, "batch_max", f"a whole number from 1 to {BATCH_MAX}", batch_max)
    return EngineInfo(
        **{key: values[key] for key in texts},
        contract=_parse_contract(values["contract"], path),
        classes=classes,
        palette=_parse_palette(values["palette"], len(classes), path),
        files=files,
        logits=_parse_logits(values["logits"], path),
        batch_max=batch_max,
    )


def _parse_logits(values: Any, path: Path) -> CoarseLogits | None:
    if values is None:
        return None
    valid = isinstance(values, dict) and set(values) == {"align_corners"} and type(values["align_corners"]) is bool
    _expect(valid, path, "logits", "null, or an object with align_corners true or false", values)
    return CoarseLogits(values["align_corners"])


def _parse_files(values: Any, path: Path) -> dict[str, EngineFile]:
    _expect(isinstance(values, dict) and len(values) > 0, path, "files", "an object with at least one file", values)
    for name, file in values.items():
        # a plain name: the engine must not reach out of its directory
        plain = name == Path(name).name and "\\" not in name and name not in ("", ".", "..", SIDECAR)
        _expect(plain, path, "files", "names of files in this directory, without a path", name)
        _expect(
            isinstance(file, dict) and set(file) == {"sha256", "size_bytes"},
            path,
            f"files.{name}",
            "sha256 and size_bytes",
            file,
        )
        sha256, size_bytes = file["sha256"], file["size_bytes"]
        is_sha256 = isinstance(sha256, str) and len(sha256) == 64 and set(sha256) <= set("0123456789abcdef")
        _expect(is_sha256, path, f"files.{name}.sha256", "64 lower-case hexadecimal digits", sha256)
        _expect(_is_int(size_bytes, 0), path, f"files.{name}.size_bytes", "a whole number from 0", size_bytes)
    return {name: EngineFile(file["sha256"], file["size_bytes"]) for name, file in values.items()}


def _parse_classes(values: Any, path: Path) -> tuple[str, ...]:
    texts = isinstance(values, list) and all(isinstance(name, str) and name for name in values)
    _expect(texts and 1 <= len(values) <= 255, path, "classes", "1 to 255 names", values)
    _expect(len(set(values)) == len(values), path, "classes", "names that differ from each other", values)
    return tuple(values)


def _parse_palette(values: Any, classes: int, path: Path) -> tuple[tuple[int, int, int], ...]:
    _expect(
        isinstance(values, list) and len(values) == classes, path, "palette", f"{classes} colours, one a class", values
    )
    for index, colour in enumerate(values):
        rgb = isinstance(colour, list) and len(colour) == 3 and all(_is_int(part, 0, 255) for part in colour)
        _expect(rgb, path, f"palette[{index}]", "[red, green, blue], each 0 to 255", colour)
    return tuple((red, green, blue) for red, green, blue in values)


def _parse_contract(values: Any, path: Path) -> InputContract:
    _expect(isinstance(values, dict), path, "contract", "an object", values)
    for key in ("height", "width"):
        _expect(_is_int(values.get(key), 1), path, f"contract.{key}", "a whole number from 1", values.get(key))
    for key in ("mean", "std"):
        numbers = values.get(key)
        three = isinstance(numbers, list) and len(numbers) == 3
        real = three and all(type(number) in (int, float) for number in numbers)
        _expect(real, path, f"contract.{key}", "3 numbers", numbers)
    try:
        return InputContract.from_json(values)
    except ContractError as error:
        raise EngineError(f"{path}: {error}; rebuild the engine") from error


def _is_int(value: Any, smallest: int, largest: int | None = None) -> bool:
    return type(value) is int and value >= smallest and (largest is None or value <= largest)


def _expect(condition: bool, path: Path, key: str, expected: str, got: Any) -> None:
    if not condition:
        text = repr(got)
        text = text if len(text) <= 200 else text[:200] + "…"
        raise EngineError(f"{path}: {key}: expected {expected}, got {text}; rebuild the engine")
