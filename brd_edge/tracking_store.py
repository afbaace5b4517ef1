"""What is asked of MLflow, through its own client."""

from __future__ import annotations

import getpass
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from brd_edge import __version__
from brd_edge.tracking_content import Point

__all__ = [
    "DATABASES",
    "Target",
    "connect",
    "create_run",
    "exists",
    "last_steps",
    "log_parameters",
    "log_points",
    "log_tags",
    "scheme",
]

DATABASES = ("sqlite", "postgresql", "mysql", "mssql")
"""Schemes of the databases that MLflow writes to without a server."""

# where the user says nothing else: nothing is sent to MLflow's makers, and a server that does not answer is
# given up after seconds, because it is tried again after the next stage
_SETTINGS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
}
# what MLflow takes at once
_METRICS_MAX, _PARAMETERS_MAX, _TAGS_MAX = 1000, 100, 100


@dataclass(frozen=True)
class Target:
    """Where a run is tracked.

    Attributes:
        uri: MLflow's tracking URI.
        experiment: Name of the experiment.
    """

    uri: str
    experiment: str

    @property
    def shown(self) -> str:
        """The URI without a name and password, for people and files."""
        return re.sub(r"//[^/@]*@", "//", self.uri)


def scheme(uri: str) -> str:
    """Return the scheme of a tracking URI, without the database's driver: `sqlite`, `https`, or nothing for a path."""
    return urlsplit(uri).scheme.partition("+")[0]


def connect(uri: str) -> Any:
    """Return MLflow's client for a tracking URI; nothing is asked of it yet."""
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri)


def exists(client: Any, run_id: str) -> bool:
    """Return whether MLflow has a run that nobody deleted."""
    from mlflow.exceptions import MlflowException

    try:
        run = client.get_run(run_id)
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return False
        raise
    return bool(run.info.lifecycle_stage == "active")


def create_run(client: Any, target: Target, directory: Path, *, replaces: str | None) -> str:
    """Begin an MLflow run for a run directory, in an experiment that is made where it is not there.

    Args:
        client: MLflow's client.
        target: Where.
        directory: The run directory; the MLflow run gets its name.
        replaces: The MLflow run of the same directory that this one takes the place of.

    Returns:
        The MLflow run's id.
    """
    tags = {
        "brd_edge.version": __version__,
        "mlflow.source.name": "brd-edge",
        "mlflow.source.type": "LOCAL",
        "mlflow.user": _user(),
    }
    tags |= {"brd_edge.replaces": replaces} if replaces is not None else {}
    run = client.create_run(_experiment(client, target, directory), tags=tags, run_name=directory.name)
    return str(run.info.run_id)


def last_steps(client: Any, run_id: str, prefixes: Sequence[str]) -> dict[str, int]:
    """Return the last step of each curve that MLflow has and whose name begins with `<prefix>/`."""
    names = [name for name in client.get_run(run_id).data.metrics if name.partition("/")[0] in prefixes]
    return {name: max(point.step for point in client.get_metric_history(run_id, name)) for name in names}


def log_points(client: Any, run_id: str, points: Sequence[Point], time_ms: int) -> None:
    """Log points of curves, all with one time in milliseconds since 1970."""
    from mlflow.entities import Metric

    metrics = [Metric(name, value, time_ms, step) for name, step, value in points]
    for start in range(0, len(metrics), _METRICS_MAX):
        client.log_batch(run_id, metrics=metrics[start : start + _METRICS_MAX], synchronous=True)


def log_parameters(client: Any, run_id: str, parameters: Mapping[str, str]) -> None:
    """Log parameters; the same ones may be logged again, others of the same name may not."""
    from mlflow.entities import Param

    found = [Param(name, value) for name, value in parameters.items()]
    for start in range(0, len(found), _PARAMETERS_MAX):
        client.log_batch(run_id, params=found[start : start + _PARAMETERS_MAX], synchronous=True)


def log_tags(client: Any, run_id: str, tags: Mapping[str, str]) -> None:
    """Set tags."""
    from mlflow.entities import RunTag

    found = [RunTag(name, value) for name, value in tags.items()]
    for start in range(0, len(found), _TAGS_MAX):
        client.log_batch(run_id, tags=found[start : start + _TAGS_MAX], synchronous=True)


def _experiment(client: Any, target: Target, directory: Path) -> str:
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(target.experiment)
    if found is None:
        try:
            location = _artifact_location(target.uri, directory)
            return str(client.create_experiment(target.experiment, artifact_location=location))
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        # another run made it at the same time
        found = client.get_experiment_by_name(target.experiment)
    return str(found.experiment_id)


def _artifact_location(uri: str, directory: Path) -> str | None:
    """Return where files go without a server to decide it; MLflow would put them into the working directory."""
    if scheme(uri) not in DATABASES:
        return None
    # as SQLAlchemy reads it, to whom # is a part of a name
    file = uri.partition("///")[2].partition("?")[0] if scheme(uri) == "sqlite" else ""
    parent = Path(file).absolute().parent if file else directory.parent
    return (parent / "mlartifacts").as_uri()


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        # in a container the user may have no name
        return "unknown"
