"""Keeping a run in MLflow: one MLflow run for one run directory, continued when the run goes on.

`RUN/tracking.json` says which MLflow run that is and what it has. Nothing that happens to the tracking may
cost a training: what fails is said once, and what was missed is logged after the next stage or in the next run.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from brd_edge.evaluate.formats import one_line
from brd_edge.recipe import Recipe
from brd_edge.run import Run, digest
from brd_edge.runtime.errors import GateError, InterruptedRunError
from brd_edge.runtime.files import sha256_file, write_json_atomic
from brd_edge.tracking_content import (
    TRAININGS,
    benchmark_figures,
    benchmark_tags,
    curve_points,
    environment_tags,
    flat_parameters,
    measured_at_ms,
    training_mark,
    wanted_files,
)
from brd_edge.tracking_store import (
    DATABASES,
    Target,
    connect,
    create_run,
    exists,
    last_steps,
    log_parameters,
    log_points,
    log_tags,
    scheme,
)

__all__ = ["Tracker", "describe_tracking", "missing_for_tracking", "tracked"]

log = logging.getLogger("brd_edge")

_FILE = "tracking.json"
_INSTALL = 'pip install "brd-edge[tracking]"'
_LIVE_S, _LIVE_AGAIN_S = 15.0, 300.0


@dataclass(frozen=True)
class _State:
    """The content of `tracking.json`: which MLflow run belongs to a run directory, and what it has."""

    uri: str
    experiment: str
    directory: str
    run_id: str = ""
    status: str | None = None
    parameters: str | None = None
    trainings: dict[str, str] = field(default_factory=dict)
    """First entry of each training that was logged; another one is another training."""
    logged: dict[str, str] = field(default_factory=dict)
    """SHA-256 of each file, by its path in the run directory, as it was logged."""


def missing_for_tracking(recipe: Recipe) -> list[str]:
    """Return what the recipe's tracking cannot do without and does not find, as lines for people."""
    if recipe.tracking.backend == "none":
        return []
    uri = _given_uri(recipe)
    wanted = ("mlflow", "sqlalchemy", "alembic") if uri is None or scheme(uri) in DATABASES else ("mlflow",)
    absent = [name for name in wanted if find_spec(name) is None]
    if absent:
        return [f"tracking: {', '.join(absent)} is not installed; {_INSTALL}, or --set tracking=none"]
    allowed = os.environ.get("MLFLOW_ALLOW_FILE_STORE", "").lower() in ("true", "1")
    if uri is not None and uri != "databricks" and scheme(uri) in ("", "file") and not allowed:
        return [
            f"tracking.uri: MLflow does not write plain files any more, as {uri} asks for; expected a server "
            "(https://…) or a database (sqlite:////absolute/path/mlflow.db). MLFLOW_ALLOW_FILE_STORE=true allows files"
        ]
    return []


def describe_tracking(run: Run, recipe: Recipe) -> str:
    """Return a line on where a run would be tracked, or nothing where it would not."""
    if recipe.tracking.backend == "none":
        return ""
    target = _target(run, recipe)
    return f"tracking: MLflow, experiment {target.experiment!r}, {target.shown}\n"


@contextmanager
def tracked(run: Run, recipe: Recipe, say: Callable[[str], None]) -> Iterator[Tracker]:
    """Track what happens in the block, and how it ends, if the recipe asks for it.

    Args:
        run: The run directory.
        recipe: The recipe.
        say: Shows a line to the user.

    Example:
        >>> with tracked(run, recipe, print) as tracking, tracking.stage("teacher"):
        ...     train()
    """
    tracker = Tracker(run, recipe, say)
    status = "FAILED"
    try:
        yield tracker
        status = "FINISHED"
    except GateError:
        # all was done and measured; the tag `gates` says what came of it
        status = "FINISHED"
        raise
    except (InterruptedRunError, KeyboardInterrupt):
        status = "KILLED"
        raise
    finally:
        tracker.end(status)


class Tracker:
    """Logs what stages leave in a run directory; does nothing where the recipe does not ask for it.

    Attributes:
        done: The stages whose results belong to this run; add those that are not run again.
    """

    def __init__(self, run: Run, recipe: Recipe, say: Callable[[str], None]) -> None:
        """Read what was tracked before; nothing is opened yet."""
        self.done: set[str] = set()
        self._run = run
        self._bundle = recipe.tracking.bundle
        self._say = say
        self._active = recipe.tracking.backend != "none"
        self._target = _target(run, recipe)
        self._parameters = flat_parameters(recipe.model_dump(mode="json"))
        self._state = _read_state(run, self._target)
        self._status_before = self._state.status
        self._client: Any = None
        self._opened = self._working = self._failed = False
        # last step of each curve that MLflow has
        self._steps: dict[str, int] | None = None
        # what the running stage found of an earlier training, or of itself where it goes on
        self._found: dict[str, str | None] = {}
        self._lock = threading.Lock()

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Track a stage: its curves while it trains, and everything that it leaves when it is done."""
        if not self._active:
            yield
            return
        self._working = True
        self._found = {name: self._records(name)} if name in TRAININGS else {}
        self._attempt(self._open)
        with self._following(name):
            yield
        self._found = {}
        self.done.add(name)
        self._attempt(self._log_everything)

    def end(self, status: str) -> None:
        """Log what is left to log, and set the MLflow run's status: `FINISHED`, `FAILED` or `KILLED`."""
        if not self._active:
            return
        # without a stage that ran, there may still be something to log that MLflow missed
        looked = self.done and status != "KILLED"
        if not self._working and not (looked and (status != self._state.status or self._curves() or self._files())):
            return

        def finish() -> None:
            self._log_everything()
            self._client.set_terminated(self._state.run_id, status)
            self._keep(status=status)

        if not self._attempt(finish):
            self._say("tracking: MLflow has not got everything; run the same command again to log what is missing")

    def _attempt(self, work: Callable[[], None]) -> bool:
        """Do something with MLflow, its database or the network, which may raise anything; that ends no training."""
        with self._lock:
            try:
                work()
            except Exception as error:
                self._opened, self._steps = False, None
                if not self._failed:
                    log.info("tracking failed", exc_info=True)
                    self._say(
                        f"warning: MLflow at {self._target.shown} cannot be used ({_reason(error)}); the run goes on, "
                        "and what MLflow misses is logged after the next stage or in the next run"
                    )
                self._failed = True
                return False
            return True

    @contextmanager
    def _following(self, name: str) -> Iterator[None]:
        """Log the curves of a training in a thread of its own, which no slow server can make it wait for."""
        if name not in TRAININGS:
            yield
            return
        over = threading.Event()

        def follow() -> None:
            wait_s = _LIVE_S
            while not over.wait(wait_s):
                wait_s = _LIVE_S if self._attempt(self._log_curves) else _LIVE_AGAIN_S

        thread = threading.Thread(target=follow, name="tracking", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def _open(self) -> None:
        """Connect, and see that the run directory's MLflow run is there and, where stages run, is running."""
        if self._opened:
            return
        self._client = self._client or connect(self._target.uri)
        before = self._state.run_id
        if not before or not exists(self._client, before):
            self._create()
        elif self._working and self._state.parameters not in (None, digest(self._parameters)):
            # parameters of an MLflow run cannot be changed
            self._create(replaces=before)
        if self._working and self._state.status != "RUNNING":
            self._client.update_run(self._state.run_id, status="RUNNING")
            self._keep(status="RUNNING")
        if self._state.parameters is None:
            log_parameters(self._client, self._state.run_id, self._parameters)
            self._keep(parameters=digest(self._parameters))
        self._opened = True

    def _create(self, *, replaces: str | None = None) -> None:
        """Begin another MLflow run; one that it replaces keeps the status that it had before this process."""
        target, directory = self._target, self._run.directory
        if replaces is not None and self._state.status == "RUNNING":
            status = self._status_before
            self._client.set_terminated(replaces, "KILLED" if status in (None, "RUNNING") else status)
        run_id = create_run(self._client, target, directory, replaces=replaces)
        self._status_before = self._steps = None
        self._state = _State(target.shown, target.experiment, str(directory))
        self._keep(run_id=run_id, status="RUNNING")
        self._say(f"tracking: MLflow run {run_id}, experiment {target.experiment!r}, {target.shown}")

    def _log_everything(self) -> None:
        self._open()
        self._log_curves()
        for name, checksum in self._files().items():
            path = self._run.path(name)
            if name == "environment.json":
                log_tags(self._client, self._state.run_id, environment_tags(_read_json(path)))
            if name == "benchmark.json":
                benchmark = _read_json(path)
                points = [(key, 0, value) for key, value in benchmark_figures(benchmark).items()]
                # at the time of the measurement: logging them twice adds nothing
                log_points(self._client, self._state.run_id, points, measured_at_ms(benchmark))
                log_tags(self._client, self._state.run_id, benchmark_tags(benchmark))
            self._client.log_artifact(self._state.run_id, str(path))
            self._keep(logged=self._state.logged | {name: checksum})
        self._client.log_artifact(self._state.run_id, str(self._run.path("run.log")))

    def _log_curves(self) -> None:
        curves = self._curves()
        if not curves:
            return
        self._open()
        marks = {name: str(training_mark(text)) for name, text in curves.items()}
        if any(self._state.trainings.get(name, mark) != mark for name, mark in marks.items()):
            # points of an MLflow run cannot be taken back, and these are of another training
            self._opened = False
            self._create(replaces=self._state.run_id)
            self._open()
            curves = self._curves()
        self._keep(
            trainings={**self._state.trainings, **{name: str(training_mark(text)) for name, text in curves.items()}}
        )
        if self._steps is None:
            self._steps = last_steps(self._client, self._state.run_id, TRAININGS)
        for name, text in curves.items():
            new = [point for point in curve_points(name, text) if point[1] > self._steps.get(point[0], -1)]
            log_points(self._client, self._state.run_id, new, int(time.time() * 1000))
            # entries of one curve stand in the order of their steps
            self._steps |= {key: step for key, step, _ in new}
            self._keep(logged=self._state.logged | {f"{name}/metrics.jsonl": _checksum(text)})

    def _curves(self) -> dict[str, str]:
        """Return the records of the trainings that belong to this run, where MLflow has not got all of them."""
        found = {}
        for name in TRAININGS:
            text = self._records(name) if name in self.done or name in self._found else None
            if text is None or training_mark(text) is None or text == self._found.get(name):
                continue
            if self._state.logged.get(f"{name}/metrics.jsonl") != _checksum(text):
                found[name] = text
        return found

    def _files(self) -> dict[str, str]:
        """Return the files, with their checksums, that MLflow has not got as they are."""
        paths = wanted_files(self._run.directory, self.done, bundle=self._bundle)
        sums = {str(path.relative_to(self._run.directory)): sha256_file(path) for path in paths}
        return {name: checksum for name, checksum in sums.items() if self._state.logged.get(name) != checksum}

    def _records(self, training: str) -> str | None:
        try:
            return self._run.path(training, "metrics.jsonl").read_text(encoding="utf-8")
        except FileNotFoundError:
            return None

    def _keep(self, **changes: Any) -> None:
        self._state = replace(self._state, **changes)
        write_json_atomic(self._run.path(_FILE), asdict(self._state))


def _given_uri(recipe: Recipe) -> str | None:
    return recipe.tracking.uri or os.environ.get("MLFLOW_TRACKING_URI") or None


def _target(run: Run, recipe: Recipe) -> Target:
    uri = _given_uri(recipe) or f"sqlite:///{run.directory.parent / 'mlflow.db'}"
    return Target(uri, recipe.tracking.experiment or os.environ.get("MLFLOW_EXPERIMENT_NAME") or recipe.name)


def _read_state(run: Run, target: Target) -> _State:
    """Return what `tracking.json` says, unless it is about another store or experiment, or was copied along."""
    new = _State(target.shown, target.experiment, str(run.directory))
    path = run.path(_FILE)
    try:
        state = _State(**_read_json(path))
    except FileNotFoundError:
        return new
    except (OSError, ValueError, TypeError) as error:
        log.warning("%s: not readable (%s); another MLflow run is begun", path, error)
        return new
    copied = state.directory != new.directory and (Path(state.directory) / _FILE).exists()
    if copied or (state.uri, state.experiment) != (new.uri, new.experiment):
        return new
    return replace(state, directory=new.directory)


def _read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _checksum(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _reason(error: Exception) -> str:
    # an address in a message may hold a password
    return re.sub(r"//[^/@\s]*@", "//", one_line(f"{type(error).__name__}: {error}"))[:300]
