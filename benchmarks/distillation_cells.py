"""The cells of `benchmarks.distillation`: whether one is done with what there is now, and its scores."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from brd_edge.distill.methods import METHODS
from brd_edge.environment import describe_environment
from brd_edge.models.encoders import encoder_problem
from brd_edge.recipe import Recipe, load_recipe
from brd_edge.run import Run, code_digest, digest
from brd_edge.runtime.errors import RecipeError, RunError
from brd_edge.runtime.files import sha256_file, write_json_atomic
from brd_edge.stages import STAGES
from brd_edge.stages.training import deciding_settings

if TYPE_CHECKING:
    from brd_edge.runtime.metrics import SegmentationMetrics

__all__ = [
    "SCORES",
    "Cell",
    "EarlierResult",
    "cells_of",
    "check_cells",
    "decides",
    "is_scored",
    "kept_scores",
    "read_result",
    "score",
    "score_teacher",
    "validations",
]

_DATA_SET = "data set"
SCORES = ("miou", "boundary_iou", "boundary_f", "connectivity_error")


@dataclass(frozen=True)
class Cell:
    """One training: an arm and a seed.

    Attributes:
        arm: Name of the method or of the set of settings.
        seed: Seed of the student's first weights and of the order and variation of the data.
        directory: Its run directory.
        overrides: What differs from the recipe.
    """

    arm: str
    seed: int
    directory: Path
    overrides: tuple[str, ...]

    @property
    def name(self) -> str:
        """What people are told."""
        return f"{self.arm}, seed {self.seed}"

    @property
    def score_file(self) -> Path:
        """Where the finished cell's scores lie."""
        return self.directory / "scores.json"


@dataclass(frozen=True)
class EarlierResult:
    """An earlier result of this benchmark, of this machine or another.

    Attributes:
        file: Where it was read.
        made_from: Digests of the content of the data set, the code and the teacher's weights.
        cells: The scores of its cells by the digest of their settings.
    """

    file: Path
    made_from: Mapping[str, str]
    cells: Mapping[str, Mapping[str, Any]]


def check_cells(recipe: Path, cells: Sequence[Cell], *, source: Path | None, trains: bool) -> None:
    """Refuse now, before a teacher is trained, settings with which a cell could not be.

    Args:
        recipe: The recipe.
        cells: All cells.
        source: The file that the arms' settings stand in, if they do.
        trains: Whether cells are trained: else the files that they are trained from may lie elsewhere.

    Raises:
        RecipeError: An arm's settings are wrong.
        RunError: What an arm is trained from is not there.
    """
    # the cells of an arm differ in a number alone, the seed: the largest stands for all
    for cell in {cell.arm: cell for cell in sorted(cells, key=lambda cell: cell.seed)}.values():
        where = f"{cell.arm}: " if source is None else f"{source}: {cell.arm}: "
        try:
            resolved = load_recipe(recipe, overrides=cell.overrides)
        except RecipeError as error:
            raise RecipeError(where + str(error)) from None
        if (problem := encoder_problem(resolved.student.encoder)) is not None:
            raise RecipeError(f"{where}student.encoder: {problem}")
        if trains and (missing := STAGES["distill"].missing(resolved)):
            raise RunError(where + "\n".join(missing))


def is_scored(recipe: Path, cell: Cell) -> bool:
    """Return whether a cell is done with these very settings and files."""
    try:
        found = json.loads(cell.score_file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    resolved = load_recipe(recipe, overrides=cell.overrides)
    # scores of before they told their files: what the run's stages recorded
    files = found.get("files", _recorded_files(Run(cell.directory.resolve())))
    return bool(found["settings"] == _settings(resolved) and files == _files(resolved))


def kept_scores(cell: Cell) -> dict[str, Any]:
    """Return a finished cell's scores and the validations of its training."""
    scores: dict[str, Any] = json.loads(cell.score_file.read_text(encoding="utf-8"))
    return {**scores, "validations": validations(cell)}


def read_result(file: Path) -> EarlierResult:
    """Read an earlier result of this benchmark.

    Raises:
        RecipeError: The file is none of this benchmark, or does not tell what its cells were made from.
    """
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        if found["benchmark"] != "distillation":
            raise ValueError(f"it is of the benchmark {found['benchmark']}")
        made_from = {name: found["teacher"][name] for name in ("data_set", "code", "weights")}
        return EarlierResult(file, made_from, {entry["settings"]: entry for entry in found["cells"]})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RecipeError(
            f"--reuse {file}: expected a result of benchmarks.distillation that tells what it was made from ({error!r})"
        ) from None


def cells_of(
    earlier: EarlierResult, recipe: Path, cells: Sequence[Cell], teacher: Path
) -> tuple[dict[Cell, dict[str, Any]], str | None]:
    """Find cells in an earlier result.

    A cell of it counts where everything that decides a training is the same: settings, seed, teacher, code, other
    files, and the content of the data set, whose own files may lie elsewhere.

    Args:
        earlier: The earlier result.
        recipe: The recipe.
        cells: What is looked for; their names in the earlier result may be others.
        teacher: Run directory of the teacher.

    Returns:
        The scores of those that it holds, as `kept_scores` returns them, and why others may be missing, if that is of
        all cells alike.
    """
    made_from = earlier.made_from
    run = Run(teacher.resolve())
    prepared, place = run.artifact("prepare"), _recorded_files(run).get(_DATA_SET)
    if prepared is None or run.artifact("teacher") is None:
        return {}, "the teacher is not trained yet"
    reused = {}
    for cell in cells:
        resolved = load_recipe(recipe, overrides=cell.overrides)
        now = _files(resolved)
        # of the data set the content is compared, which is known if its files are still those that were prepared
        if prepared.content != made_from["data_set"] or now.get(_DATA_SET) != place:
            return {}, "its data set is another"
        entry = earlier.cells.get(_settings(resolved))
        if entry is not None and _others(entry.get("files", {})) == _others(now):
            reused[cell] = {**entry, "arm": cell.arm}
    if made_from["code"] != code_digest(STAGES["distill"].code):
        return reused, "its code of the training is another"
    same = made_from["weights"] == sha256_file(run.path("teacher", "model", "model.safetensors"))
    return reused, None if same else "its teacher is another"


def _others(files: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in files.items() if name != _DATA_SET}


def _files(recipe: Recipe) -> dict[str, str]:
    """Return digests of the files that a cell is trained from, as the pipeline's stages see them now."""
    return STAGES["prepare"].files(recipe) | STAGES["distill"].files(recipe)


def _recorded_files(run: Run) -> dict[str, str]:
    """Return what `_files` returned when a cell was trained."""
    found = [artifact.inputs for stage in ("prepare", "distill") if (artifact := run.artifact(stage)) is not None]
    # inputs that are no files are what other stages left
    return {name: value for inputs in found for name, value in inputs.items() if not name.startswith("stage ")}


def _settings(recipe: Recipe) -> str:
    """Return a digest of what else decides a cell: its settings, the teacher if it has one, code."""
    parts = {"data", "student", "seed", "device"}
    settings = recipe.model_dump(mode="json", include=parts)
    # where the data lie is another thing than what they are, which `_files` tells
    del settings["data"]["root"]
    distill = deciding_settings(recipe.distill)
    # of all arms: what the student sees is made from what the teacher sees
    settings["teacher_scale"] = recipe.teacher.scale
    settings["distill"] = {key: value for key, value in distill.items() if decides(key, distill["method"])}
    assert recipe.teacher.checkpoint is not None, "cells share a trained teacher"
    taught = bool(METHODS[distill["method"]]) or recipe.distill.unlabelled is not None
    teacher = sha256_file(Path(recipe.teacher.checkpoint) / "model.safetensors") if taught else None
    return digest([settings, teacher, code_digest(STAGES["distill"].code)])


def decides(key: str, method: str) -> bool:
    """Return whether a setting of `distill` changes anything under a method: other terms' settings do not."""
    terms = METHODS[method]
    if key in {"method", "train", "cuda_graphs", "teacher_sees_jitter", "unlabelled", "unlabelled_confidence"}:
        return True
    if key in {"curriculum", "compile_teacher"}:
        return bool(terms)
    if key == "band_weight":
        return "boundary" in terms or "boundary_classes" in terms
    # the longest term that the key begins with is its own: boundary_class_kernels belongs to boundary_classes
    owners = {"kd_": "kd", "cwd_": "cwd", "boundary_class_": "boundary_classes", "boundary_": "boundary"}
    owners |= {"relation_": "relation", **{f"lambda_{term}": term for names in METHODS.values() for term in names}}
    prefix = max((prefix for prefix in owners if key.startswith(prefix)), key=len)
    return owners[prefix] in terms


def score(recipe: Path, cell: Cell) -> dict[str, Any]:
    """Evaluate a trained student on the whole validation split and keep its scores."""
    resolved, run = load_recipe(recipe, overrides=cell.overrides), Run(cell.directory.resolve())
    artifact = run.artifact("distill")
    assert artifact is not None, "the pipeline has just made it"
    metrics = _evaluate(resolved, run, "distill")
    timing = run.path("distill", "step_time.json")
    scores = {
        "arm": cell.arm,
        "seed": cell.seed,
        "settings": _settings(resolved),
        "files": _recorded_files(run),
        **metrics.to_json(),
        "images": metrics.images,
        "best_step": artifact.result["step"],
        "steps": artifact.result["steps"],
        "duration_s": artifact.duration_s,
        "step_seconds": json.loads(timing.read_text(encoding="utf-8"))["seconds"] if timing.exists() else None,
        "code": artifact.code,
        "environment": describe_environment(),
    }
    write_json_atomic(cell.score_file, scores)
    return scores


def validations(cell: Cell) -> list[dict[str, Any]]:
    """Return `step` and `miou` (0 to 1) of every validation of a cell's training."""
    lines = Run(cell.directory.resolve()).path("distill", "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [{name: row[name] for name in ("step", "miou")} for row in map(json.loads, lines) if "miou" in row]


def score_teacher(recipe: Path, overrides: Sequence[str], directory: Path) -> dict[str, Any]:
    """Return the teacher's scores and how long it took: one that was given has no validation of its own."""
    from brd_edge.stages.context import teacher_contract

    resolved, run = load_recipe(recipe, overrides=overrides), Run(directory.resolve())
    prepared, artifact = run.artifact("prepare"), run.artifact("teacher")
    assert prepared is not None and artifact is not None, "cells share a trained teacher"
    decided_by = {
        "weights": sha256_file(run.path("teacher", "model", "model.safetensors")),
        "data_set": prepared.content,
        "contract": teacher_contract(resolved).hash,
        "code": code_digest(STAGES["distill"].code),
    }
    kept = directory / "scores.json"
    try:
        found = json.loads(kept.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        found = {}
    if any(found.get(name) != value for name, value in decided_by.items()):
        metrics = _evaluate(resolved, run, "teacher")
        found = {**decided_by, **{name: getattr(metrics, name)() for name in SCORES}}
        write_json_atomic(kept, found)
    return {**found, "duration_s": artifact.duration_s}


def _evaluate(recipe: Recipe, run: Run, stage: str) -> SegmentationMetrics:
    from brd_edge.data.index import load_dataset
    from brd_edge.evaluate.accuracy import evaluate_predictor, model_predictor
    from brd_edge.models.segmentation import load_model
    from brd_edge.runtime.metrics import SegmentationMetrics
    from brd_edge.stages.context import input_contract, teacher_contract, training_device

    dataset, device = load_dataset(run.path("data")), training_device(recipe)
    contract = teacher_contract(recipe) if stage == "teacher" else input_contract(recipe)
    model, _ = load_model(run.path(stage, "model"))
    return evaluate_predictor(
        model_predictor(model.eval().to(device), contract, device),
        dataset.val,
        contract=contract,
        metrics=SegmentationMetrics(len(dataset.classes)),
    )
