"""A run directory made by hand, tracked into a store of its own and read back with MLflow's own client."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from made_runs import made_cost

import brd_edge.tracking as tracking_module
from brd_edge.pipeline import main
from brd_edge.recipe import Recipe, load_recipe
from brd_edge.run import Run
from brd_edge.runtime.errors import GateError, InterruptedRunError, RecipeError
from brd_edge.tracking import Tracker, missing_for_tracking, tracked
from brd_edge.tracking_content import benchmark_tags, curve_points, flat_parameters, training_mark

ROOT = Path(__file__).parents[1]
QUICKSTART = ROOT / "pipelines" / "quickstart.yaml"
STAGES = ("prepare", "teacher", "distill", "export", "build", "benchmark", "bundle", "ship")
# MLflow has not followed SQLAlchemy 2.1 yet
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy")
needs_mlflow = pytest.mark.skipif(
    any(tracking_module.find_spec(name) is None for name in ("mlflow", "sqlalchemy", "alembic")),
    reason="MLflow is not installed",
)


def _recipe(*overrides: str) -> Recipe:
    return load_recipe(QUICKSTART, overrides=["tracking=mlflow", *overrides])


def _entries(training: str, steps: int, *, first: float = 2.0) -> list[dict[str, Any]]:
    terms = ("ce",) if training == "teacher" else ("ce", "kd", "boundary")
    entries: list[dict[str, Any]] = []
    for number in range(1, steps + 1):
        loss = {name: first / (number + index) for index, name in enumerate(terms)}
        entries.append({"step": 10 * number, "epoch": number / 2, "lr": 0.1 / number, "loss": loss})
        if number % 2 == 0:
            entries.append({"step": 10 * number, "epoch": number / 2, "miou": number / 100})
    return entries


def _write_records(run: Run, training: str, entries: list[dict[str, Any]]) -> None:
    path = run.path(training, "metrics.jsonl")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries), encoding="utf-8")


def _benchmark() -> dict[str, Any]:
    engine = {"runtime": "onnxruntime", "precision": "fp32", "target": "x86-cpu"}
    model = {"miou": 0.4, "boundary_iou": 0.3, "params": 1000, "macs": 5000}
    measured = {
        **engine,
        "name": "onnxruntime-fp32-x86-cpu",
        "status": "measured",
        "reason": "",
        "size_bytes": 1234,
        "latency_ms": {"p50": 3.5, "p95": 4.25, "p99": 5.0, "throughput_hz": 285.5},
        "engine_latency_ms": {"p50": 3.25, "p95": 4.0, "p99": 4.5},
        "miou": 0.39,
        "boundary_iou": 0.29,
        "argmax_agreement": 0.9995,
        "gates_broken": [],
    }
    built = {**measured, "name": "tensorrt-fp32-rtx", "status": "built", "reason": "no GPU here", "miou": None}
    return {
        "created": "2026-11-23T01:22:38Z",
        "teacher": {**model, "miou": 0.5},
        "student": model,
        "compared": None,
        "engines": [measured, {**built, "latency_ms": None, "boundary_iou": None, "argmax_agreement": None}],
        "zero_cost": {
            **{"equal": True, "params_equal": True, "macs_equal": True, "nodes": 3, "differences": []},
            "engines": [made_cost()],
        },
    }


def _work(run: Run, recipe: Recipe, stage: str) -> None:
    """Leave what a stage would."""
    run.path("recipe.yaml").write_text(yaml.safe_dump(recipe.model_dump(mode="json")), encoding="utf-8")
    run.path("environment.json").write_text('{"cpu": "a processor", "gpu": null, "packages": {"torch": "2"}}')
    with run.path("run.log").open("a", encoding="utf-8") as file:
        file.write(f"{stage}\n")
    if stage in ("teacher", "distill"):
        _write_records(run, stage, _entries(stage, 4))
    if stage == "export":
        run.path("export").mkdir(exist_ok=True)
        run.path("export", "student.onnx").write_bytes(bytes(range(256)))
    if stage == "benchmark":
        run.path("benchmark.json").write_text(json.dumps(_benchmark()))
        run.path("report.html").write_text("<p>report</p>")
        run.path("images.npz").write_bytes(b"counts")
    if stage == "bundle":
        run.path("bundle.tar.gz").write_bytes(b"bundle")


def _track(run: Run, recipe: Recipe, *stages: str, said: list[str] | None = None) -> None:
    with tracked(run, recipe, (said if said is not None else []).append) as tracking:
        tracking.done.update(STAGES[: STAGES.index(stages[0])])
        for name in stages:
            with tracking.stage(name):
                _work(run, recipe, name)


@dataclass(frozen=True)
class _Made:
    """A run directory beside an empty store."""

    run: Run
    client: Any

    @property
    def state(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.run.path("tracking.json").read_text())
        return found

    def tracked_run(self) -> Any:
        return self.client.get_run(self.state["run_id"])

    def history(self, key: str) -> list[tuple[int, float]]:
        points = self.client.get_metric_history(self.state["run_id"], key)
        return sorted((point.step, point.value) for point in points)

    def runs(self) -> list[Any]:
        found = self.client.search_experiments()
        return list(self.client.search_runs([experiment.experiment_id for experiment in found]))


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_ALLOW_FILE_STORE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Making MLflow's tables takes seconds: once is enough."""
    from brd_edge.tracking_store import connect

    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    connect(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def made(tmp_path: Path, empty_store: Path) -> Iterator[_Made]:
    from brd_edge.tracking_store import connect

    shutil.copy(empty_store, tmp_path / "mlflow.db")
    run = Run(tmp_path / "quickstart")
    run.directory.mkdir()
    yield _Made(run, connect(f"sqlite:///{tmp_path / 'mlflow.db'}"))


@needs_mlflow
def test_everything_is_there_and_equal(made: _Made) -> None:
    recipe = _recipe("tracking={backend: mlflow, bundle: true, experiment: small models}")
    said: list[str] = []
    _track(made.run, recipe, *STAGES, said=said)

    found = made.tracked_run()
    assert found.info.status == "FINISHED"
    assert found.info.run_name == "quickstart"
    assert made.client.get_experiment(found.info.experiment_id).name == "small models"
    assert found.data.params == flat_parameters(recipe.model_dump(mode="json"))
    assert found.data.params["distill.train.lr"] == "0.003"
    assert found.data.params["engines.2.runtime"] == "tensorrt"
    for training in ("teacher", "distill"):
        last: dict[str, tuple[int, float]] = {}
        for entry in map(json.loads, made.run.path(training, "metrics.jsonl").read_text().splitlines()):
            last |= {f"{training}/{name}": (entry["step"], entry[name]) for name in ("lr", "miou") if name in entry}
            last |= {f"{training}/loss/{name}": (entry["step"], v) for name, v in entry.get("loss", {}).items()}
        for key, point in last.items():
            history = made.history(key)
            assert len(history) == (2 if key.endswith("miou") else 4), key
            assert history[-1] == point
    assert {key for key in found.data.metrics if key.startswith("distill/loss/")} == {
        f"distill/loss/{name}" for name in ("ce", "kd", "boundary")
    }
    assert found.data.metrics["engine/onnxruntime-fp32-x86-cpu/latency_ms_p95"] == 4.25
    assert found.data.metrics["engine/onnxruntime-fp32-x86-cpu/engine_latency_ms_p50"] == 3.25
    assert found.data.metrics["engine/onnxruntime-fp32-x86-cpu/throughput_hz"] == 285.5
    assert found.data.metrics["engine/onnxruntime-fp32-x86-cpu/boundary_iou"] == 0.29
    assert found.data.metrics["engine/tensorrt-fp32-rtx/size_bytes"] == 1234
    assert "engine/tensorrt-fp32-rtx/miou" not in found.data.metrics
    assert found.data.metrics["benchmark/teacher/miou"] == 0.5
    tags = found.data.tags
    assert (tags["zero_cost"], tags["gates"]) == ("held", "held")
    failed = [{**engine, "status": "failed"} for engine in _benchmark()["engines"]]
    assert benchmark_tags({**_benchmark(), "engines": failed})["gates"] == "not measured"
    assert tags["engine.tensorrt-fp32-rtx.status"] == "built"
    assert (tags["environment.cpu"], tags["environment.packages.torch"]) == ("a processor", "2")
    assert "environment.gpu" not in tags
    names = (
        *("export/student.onnx", "recipe.yaml", "environment.json"),
        *("benchmark.json", "images.npz", "report.html", "bundle.tar.gz"),
    )
    assert found.info.artifact_uri.startswith((made.run.directory.parent / "mlartifacts").as_uri())
    for path in (made.run.path(name) for name in (*names, "run.log")):
        kept = Path(made.client.download_artifacts(found.info.run_id, path.name))
        assert kept.read_bytes() == path.read_bytes(), path
    assert len(said) == 1
    assert found.info.run_id in said[0]


@needs_mlflow
def test_what_explain_found_later_is_kept_by_the_next_run(made: _Made) -> None:
    _track(made.run, _recipe(), *STAGES)
    made.run.path("attribution.json").write_text('{"images": 3}')
    with tracked(made.run, _recipe(), pytest.fail) as tracking:
        tracking.done.update(STAGES)
    kept = Path(made.client.download_artifacts(made.tracked_run().info.run_id, "attribution.json"))
    assert kept.read_text() == '{"images": 3}'


@needs_mlflow
def test_tracking_again_adds_nothing(made: _Made) -> None:
    _track(made.run, _recipe(), *STAGES)
    before, state = made.tracked_run(), made.state

    with tracked(made.run, _recipe(), pytest.fail) as tracking:
        tracking.done.update(STAGES)
    assert made.tracked_run().to_dictionary() == before.to_dictionary()

    # without what tracking.json remembers, MLflow itself is asked what it has
    path = made.run.path("tracking.json")
    path.write_text(json.dumps(state | {"logged": {}}))
    _track(made.run, _recipe(), "benchmark", "bundle", "ship")
    assert len(made.runs()) == 1
    for key in before.data.metrics:
        curve = key.startswith(("teacher/", "distill/"))
        assert len(made.history(key)) == (1 if not curve else 2 if key.endswith("/miou") else 4), key


@needs_mlflow
def test_an_interrupted_training_goes_on_in_the_same_mlflow_run(made: _Made) -> None:
    recipe = _recipe()
    entries = _entries("distill", 6)
    _track(made.run, recipe, "prepare", "teacher")

    def stopped(run: Run) -> None:
        with tracked(run, recipe, pytest.fail) as tracking:
            tracking.done.update(("prepare", "teacher"))
            with tracking.stage("distill"):
                assert made.tracked_run().info.status == "RUNNING"
                _write_records(run, "distill", entries[:6])
                raise InterruptedRunError("stopped by SIGINT")

    with pytest.raises(InterruptedRunError):
        stopped(made.run)
    assert made.tracked_run().info.status == "KILLED"
    assert [step for step, _ in made.history("distill/loss/kd")] == [10, 20, 30, 40]

    with tracked(made.run, recipe, pytest.fail) as tracking:
        tracking.done.update(("prepare", "teacher"))
        with tracking.stage("distill"):
            # from the last checkpoint on, steps are done again
            _write_records(made.run, "distill", entries[:3])
            _write_records(made.run, "distill", entries)
    assert made.tracked_run().info.status == "FINISHED"
    assert made.history("distill/loss/kd") == [(e["step"], e["loss"]["kd"]) for e in entries if "loss" in e]
    assert made.history("distill/miou") == [(e["step"], e["miou"]) for e in entries if "miou" in e]
    assert len(made.runs()) == 1


@needs_mlflow
def test_curves_come_while_a_model_is_trained(made: _Made, monkeypatch: pytest.MonkeyPatch) -> None:
    import threading

    monkeypatch.setattr(tracking_module, "_LIVE_S", 0.01)
    logged = threading.Event()
    original = tracking_module.log_points

    def log_points(*arguments: Any) -> None:
        original(*arguments)
        logged.set()

    monkeypatch.setattr(tracking_module, "log_points", log_points)
    _write_records(made.run, "teacher", _entries("teacher", 9, first=7.0))
    with tracked(made.run, _recipe(), lambda _text: None) as tracking, tracking.stage("teacher"):
        # the curve that lies there is of another training
        assert not logged.wait(0.3)
        _work(made.run, _recipe(), "teacher")
        assert logged.wait(60)
        assert len(made.history("teacher/loss/ce")) == 4
    assert len(made.history("teacher/loss/ce")) == 4


@needs_mlflow
@pytest.mark.parametrize(
    ("error", "status"), [(ValueError, "FAILED"), (KeyboardInterrupt, "KILLED"), (GateError, "FINISHED")]
)
def test_the_status_says_how_a_run_ended(made: _Made, error: type[BaseException], status: str) -> None:
    def fail(tracking: Tracker) -> None:
        with tracking.stage("prepare"):
            _work(made.run, _recipe(), "prepare")
        raise error

    with pytest.raises(error), tracked(made.run, _recipe(), lambda _text: None) as tracking:
        fail(tracking)
    assert made.tracked_run().info.status == status


@needs_mlflow
def test_other_parameters_or_another_training_are_another_mlflow_run(made: _Made) -> None:
    _track(made.run, _recipe(), *STAGES)
    first = made.state["run_id"]

    _track(made.run, _recipe("export.opset=21"), "export", "build", "benchmark", "bundle", "ship")
    second = made.state["run_id"]
    assert second != first
    assert made.tracked_run().data.tags["brd_edge.replaces"] == first
    assert made.tracked_run().data.params["export.opset"] == "21"
    assert len(made.history("teacher/loss/ce")) == 4, "what is kept of the run belongs to the new one too"

    with tracked(made.run, _recipe("export.opset=21"), lambda _text: None) as tracking:
        tracking.done.update(("prepare", "teacher"))
        with tracking.stage("distill"):
            _write_records(made.run, "distill", _entries("distill", 2, first=3.0))
    assert made.state["run_id"] not in (first, second)
    assert len(made.history("distill/loss/kd")) == 2
    assert "benchmark/student/miou" not in made.tracked_run().data.metrics, "it is of the student before"
    assert {run.info.status for run in made.runs()} == {"FINISHED"}
    assert len(made.runs()) == 3


@needs_mlflow
def test_a_deleted_mlflow_run_and_a_copied_run_directory_begin_another(made: _Made) -> None:
    _track(made.run, _recipe(), "prepare", "teacher")
    first = made.state["run_id"]
    made.client.delete_run(first)
    _track(made.run, _recipe(), "distill")
    second = made.state["run_id"]
    assert second != first
    assert len(made.history("teacher/loss/ce")) == 4

    copy = Run(made.run.directory.with_name("copy"))
    shutil.copytree(made.run.directory, copy.directory)
    _track(copy, _recipe(), "export")
    assert _Made(copy, made.client).state["run_id"] != second


@needs_mlflow
def test_a_server_that_cannot_be_reached_costs_nothing_but_a_warning(
    made: _Made, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        # bound and not listening: nobody answers there
        port = free.getsockname()[1]
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://user:secret@127.0.0.1:{port}")
        said: list[str] = []
        _track(made.run, _recipe(), *STAGES, said=said)
    assert len(said) == 2
    assert "the run goes on" in said[0]
    assert "again" in said[1]
    assert "secret" not in " ".join(said)
    assert not any(capfd.readouterr())
    assert not made.run.path("tracking.json").exists()

    # the next run, which has nothing to do, logs what was missed
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    with tracked(made.run, _recipe(), lambda _text: None) as tracking:
        tracking.done.update(STAGES)
    assert made.tracked_run().info.status == "FINISHED"
    assert len(made.history("distill/loss/kd")) == 4
    assert made.tracked_run().data.params["distill.method"] == "brd"


@needs_mlflow
def test_a_store_that_comes_back_gets_what_it_missed(made: _Made, monkeypatch: pytest.MonkeyPatch) -> None:
    original = tracking_module.log_points
    lost = iter([True, True])

    def log_points(*arguments: Any) -> None:
        # the server takes the points, and its answer is lost
        original(*arguments)
        if next(lost, False):
            raise ConnectionError("no answer from https://user:secret@server/")

    monkeypatch.setattr(tracking_module, "log_points", log_points)
    said: list[str] = []
    _track(made.run, _recipe(), *STAGES, said=said)
    assert [text.split()[0] for text in said] == ["tracking:", "warning:"]
    assert "secret" not in said[1]
    assert made.tracked_run().info.status == "FINISHED"
    assert len(made.history("teacher/loss/ce")) == 4
    assert len(made.history("distill/loss/kd")) == 4


@needs_mlflow
def test_mlflow_sends_nothing_to_its_makers() -> None:
    hidden = {"PYTEST_CURRENT_TEST", "CI", "MLFLOW_DISABLE_TELEMETRY", "DO_NOT_TRACK"}
    environment = {key: value for key, value in os.environ.items() if key not in hidden}
    code = (
        "import sys, brd_edge.execution; assert 'mlflow' not in sys.modules\n"
        "from brd_edge.tracking_store import connect; connect('sqlite://')\n"
        "from mlflow.telemetry import get_telemetry_client; assert get_telemetry_client() is None"
    )
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, timeout=120)


def test_without_the_key_nothing_is_tracked(tmp_path: Path) -> None:
    run = Run(tmp_path)
    recipe = load_recipe(QUICKSTART)
    _track(run, recipe, "prepare", "teacher")

    assert not run.path("tracking.json").exists()
    assert missing_for_tracking(recipe) == []


def test_a_missing_mlflow_is_said_before_the_first_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tracking_module, "find_spec", lambda _name: None)
    arguments = [str(QUICKSTART), "--run-dir", str(tmp_path / "run"), "--set", "tracking=mlflow"]

    assert main([*arguments, "--plan"]) == 0
    plan = capsys.readouterr().out
    assert "missing: tracking: mlflow, sqlalchemy, alembic is not installed" in plan
    assert f"tracking: MLflow, experiment 'quickstart', sqlite:///{tmp_path / 'mlflow.db'}" in plan
    assert main(arguments) == 1
    assert 'pip install "brd-edge[tracking]"' in capsys.readouterr().err
    assert not (tmp_path / "run" / "data").exists()


def test_where_a_run_is_tracked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(tmp_path / "run")
    monkeypatch.setattr(tracking_module, "find_spec", lambda _name: object())
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://me:secret@there/")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "from outside")
    line = tracking_module.describe_tracking(run, _recipe())
    assert "'from outside', https://there/" in line
    own = _recipe("tracking={backend: mlflow, uri: 'sqlite:////own.db', experiment: own}")
    assert "'own', sqlite:////own.db" in tracking_module.describe_tracking(run, own)
    files = _recipe("tracking={backend: mlflow, uri: ./mlruns}")
    assert "sqlite:///" in missing_for_tracking(files)[0]
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    assert missing_for_tracking(files) == []


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("tracking=wandb", "expected 'none' or 'mlflow'"),
        ("tracking.experiment=x", "tracking.backend: missing"),
        ("tracking={backend: mlflow, uri: 'https://me:secret@there'}", "MLFLOW_TRACKING_PASSWORD"),
    ],
)
def test_a_wrong_section_is_explained(setting: str, words: str) -> None:
    with pytest.raises(RecipeError, match=words) as caught:
        load_recipe(QUICKSTART, overrides=[setting])
    assert "secret" not in str(caught.value)


def test_parameters_are_flat_and_within_limits() -> None:
    recipe = _recipe(
        "ship.devices=[someone@somewhere]",
    ).model_dump(mode="json")
    found = flat_parameters(recipe)

    assert found["data.size"] == "[128, 256]"
    assert found["teacher.checkpoint"] == "null"
    assert found["name"] == "quickstart"
    assert not [key for key in found if key.startswith(("ship", "tracking"))]
    long = flat_parameters({"a": "x" * 7000, "b" * 300: [1], "odd key:": {"c": []}})
    assert len(long["a"]) == 6000
    assert long["b" * 250] == "[1]"
    assert long["odd key_.c"] == "[]"


def test_a_line_that_is_being_written_is_left_for_later() -> None:
    records = '{"step": 10, "lr": 0.5, "loss": {"ce": 1.5}}\n{"step": 20, "lr'

    assert curve_points("teacher", records) == [("teacher/lr", 10, 0.5), ("teacher/loss/ce", 10, 1.5)]
    assert training_mark(records) == training_mark(records[:45])
    assert training_mark(records[:20]) is None


def test_a_hash_in_a_path_is_a_part_of_its_name() -> None:
    from brd_edge.tracking_store import _artifact_location

    expected = Path("/data/exp#1/mlartifacts").as_uri()
    assert _artifact_location("sqlite:////data/exp#1/mlflow.db", Path("/data/exp#1/run")) == expected
    assert _artifact_location("sqlite:////data/exp#1/mlflow.db?timeout=3", Path("/other/run")) == expected
