"""The run directory: what each stage left there, and whether it is still current.

A stage's fingerprint covers its settings, the content of its inputs and the code that it runs. A
record in `stages/<stage>.json` holds the fingerprint and the checksum of every file that the stage
left; a stage is current while its fingerprint and those files are unchanged.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import IO, Any

from brd_edge.runtime.errors import RunError
from brd_edge.runtime.files import sha256_file, write_json_atomic

__all__ = [
    "Artifact",
    "Run",
    "changed_inputs",
    "changed_settings",
    "code_digest",
    "digest",
    "is_run_directory",
    "open_run",
    "require_run_directory",
    "stat_digest",
    "tree_files",
]

log = logging.getLogger("brd_edge")

_LOCK = ".lock"


@dataclass(frozen=True)
class Artifact:
    """What a stage left in the run directory.

    Attributes:
        stage: Name of the stage.
        fingerprint: Of the settings, inputs and code that made it.
        settings: The resolved settings.
        inputs: Content digests of what it was made from.
        code: Digest of the code that made it.
        outputs: Path in the run directory to SHA-256 of each file.
        result: What later stages and people want to know, as JSON types.
        duration_s: Seconds it took, with the interrupted parts of a training.
        essence: Digest of what later stages take from it, where the files hold more, such as their places.
    """

    stage: str
    fingerprint: str
    settings: dict[str, Any]
    inputs: dict[str, str]
    code: str
    outputs: dict[str, str] = field(default_factory=dict)
    result: dict[str, Any] = field(default_factory=dict)
    duration_s: float = 0.0
    essence: str | None = None

    @property
    def content(self) -> str:
        """Digest of what the stage left; later stages depend on it, not on how it was made."""
        return digest({"outputs": self.essence or self.outputs, "result": self.result})


@dataclass(frozen=True)
class Run:
    """One execution of a recipe.

    Attributes:
        directory: The run directory.
    """

    directory: Path

    def path(self, *parts: str) -> Path:
        """Return a path in the run directory."""
        return self.directory.joinpath(*parts)

    def artifact(self, stage: str) -> Artifact | None:
        """Return what a stage left, or nothing when it has not finished yet."""
        path = self.path("stages", f"{stage}.json")
        try:
            return Artifact(**json.loads(path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError) as error:
            log.warning("%s: not readable (%s); the stage runs again", path, error)
            return None

    def keep(self, artifact: Artifact, outputs: Sequence[Path]) -> Artifact:
        """Record a finished stage with the checksums of the files that it left."""
        sums = {str(path.relative_to(self.directory)): sha256_file(path) for path in sorted(outputs)}
        kept = Artifact(**{**asdict(artifact), "outputs": sums})
        write_json_atomic(self.path("stages", f"{artifact.stage}.json"), asdict(kept))
        return kept

    def forget(self, stage: str) -> None:
        """Remove a stage's record, so that an interruption leaves it to be done again."""
        self.path("stages", f"{stage}.json").unlink(missing_ok=True)

    def damaged(self, artifact: Artifact) -> str | None:
        """Return which of a stage's files is missing or changed, if any."""
        for name, checksum in artifact.outputs.items():
            path = self.directory / name
            if not path.is_file():
                return f"{name} is missing"
            if sha256_file(path) != checksum:
                return f"{name} was changed"
        return None


@contextmanager
def open_run(directory: Path) -> Iterator[Run]:
    """Open a run directory, made when it is not there, and keep other processes out of it.

    Raises:
        RunError: Another process works in it, it cannot be written, or it holds something else.
    """
    try:
        require_run_directory(directory)
        directory.mkdir(parents=True, exist_ok=True)
        lock = (directory / _LOCK).open("a+", encoding="utf-8")
    except OSError as error:
        raise RunError(
            f"{directory}: cannot be used as a run directory: {error.strerror}; choose another --run-dir"
        ) from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise RunError(
                f"{directory}: another process{_holder(lock)} works in this run directory; wait or stop it"
            ) from None
        _sign(lock)
        yield Run(directory.resolve())


def _sign(lock: IO[str]) -> None:
    """Write into a lock who holds it, for the message of those who come later."""
    with suppress(OSError):
        lock.truncate(0)
        lock.write(f"{os.getpid()} on {socket.gethostname()}")
        lock.flush()


def _holder(lock: IO[str]) -> str:
    """Return who holds a lock, to go on with after "another process", as far as it is known."""
    lock.seek(0)
    holder = lock.read().strip()
    return f" ({holder})" if holder else ""


def is_run_directory(directory: Path) -> bool:
    """Return whether a run made or used a directory: its lock tells, which nothing else is likely to hold."""
    return (directory / _LOCK).is_file()


def require_run_directory(directory: Path) -> None:
    """Refuse a directory of something else, in which a run would replace what has the names of its results.

    Raises:
        RunError: It is a file, or holds what no run has made; one that is not there is taken.
        OSError: It cannot be read.
    """
    if not directory.exists():
        return
    if directory.is_file():
        raise RunError(f"{directory}: cannot be used as a run directory: it is a file; choose another --run-dir")
    others = sorted(path.name for path in directory.iterdir() if path.suffix != ".log")
    # a copy of a run may lack hidden files
    if others and not is_run_directory(directory) and not (directory / "stages").is_dir():
        listed = ", ".join(others[:3]) + (", …" if len(others) > 3 else "")
        raise RunError(
            f"{directory.resolve()}: is no run directory, and holds something else ({listed}); a run would replace "
            "what has the names of its own results: choose a new --run-dir"
        )


def digest(content: Any) -> str:
    """Return 16 hexadecimal digits that are equal for equal JSON content."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@cache
def code_digest(names: tuple[str, ...]) -> str:
    """Return a digest of the package's source under some files or directories of it.

    It is computed once in a process: what matters is the code that was loaded, not a later edit.

    Args:
        names: Paths in the package, such as `distill` or `deploy/export.py`.
    """
    package = Path(__file__).parent
    files: set[Path] = set()
    for name in names:
        path = package / name
        files.update(p for p in path.rglob("*") if p.suffix in {".py", ".jinja"}) if path.is_dir() else files.add(path)
    return digest({str(path.relative_to(package)): sha256_file(path) for path in sorted(files)})


def tree_files(directory: Path, *, skip: Callable[[Path], bool] = lambda _directory: False) -> list[Path]:
    """Return all files under a directory, sorted, but hidden ones and those in hidden directories.

    These are what file managers, version control and killed processes leave; no stage reads one.

    Args:
        directory: Where to look.
        skip: Whether a directory below it is left out, with all that it holds.
    """
    found: list[Path] = []
    for root, directories, names in os.walk(directory):
        directories[:] = [name for name in directories if not name.startswith(".") and not skip(Path(root, name))]
        found += [Path(root) / name for name in names if not name.startswith(".")]
    return sorted(found)


def stat_digest(files: Mapping[str, Path]) -> str:
    """Return a digest of files' names, sizes and times, by which many gigabytes are known unread, in seconds."""
    return digest({name: _stat(path) for name, path in files.items()})


def _stat(path: Path) -> list[int]:
    try:
        found = path.stat()
    except OSError:
        return []
    return [found.st_size, found.st_mtime_ns]


def changed_settings(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return the names of the settings that differ; records went through JSON, fresh ones did not."""
    return sorted(key for key in before.keys() | now.keys() if digest(before.get(key)) != digest(now.get(key)))


def changed_inputs(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """Return the names of the inputs that differ."""
    return sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))
