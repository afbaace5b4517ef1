"""What cannot be trained is refused before hours of training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from brd_edge.data.dataset import Dataset
from brd_edge.processes import started_processes
from brd_edge.recipe import Recipe
from brd_edge.recipe_training import TrainSection
from brd_edge.runtime.contract import InputContract
from brd_edge.runtime.errors import ModelError
from brd_edge.runtime.files import expand_home
from brd_edge.stages.context import input_contract, teacher_contract
from brd_edge.stages.training import (
    distill_settings,
    encoder_weights,
    model_spec,
    supervised_loss,
    training_size,
)
from brd_edge.stages.unlabelled import unlabelled_count

if TYPE_CHECKING:
    from torch import nn

    from brd_edge.models.segmentation import ModelSpec

__all__ = ["check_models", "model_problems", "require_same_classes", "require_takes"]


def check_models(recipe: Recipe, dataset: Dataset, *, given: nn.Module | None = None) -> None:
    """Build the models that are trained once, so that what cannot work is refused before hours of training.

    Args:
        recipe: The recipe.
        dataset: The data set that `prepare` left.
        given: The teacher, where it is trained already.

    Raises:
        ModelError: A model cannot be built, does not take the frames or crops, its first weights do not fit or cannot
            be had, a batch is larger than the train split, or both models cannot be matched.
    """
    from brd_edge.models.segmentation import build_model

    teacher = given
    if teacher is None and recipe.teacher.train is not None:
        teacher = build_model(model_spec(recipe.teacher, dataset), encoder_weights=None, seed=recipe.seed)
        check_training("teacher", teacher, recipe.teacher.train, teacher_contract(recipe), scale=recipe.teacher.scale)
        _require_enough("teacher", recipe.teacher.train, len(dataset.train))
    # the student's weights, too, which else would be read when the teacher is done; the teacher's are next
    weights = encoder_weights(recipe.student)
    student = build_model(model_spec(recipe.student, dataset), encoder_weights=weights, seed=recipe.seed)
    check_training("student", student, recipe.distill.train, input_contract(recipe))
    _require_enough("student", recipe.distill.train, len(dataset.train) + unlabelled_count(recipe))
    if teacher is not None:
        _require_match(recipe, teacher, student, classes=len(dataset.classes))


def require_same_classes(checkpoint: Path, spec: ModelSpec, classes: int) -> None:
    """Refuse a given teacher that tells other classes apart than the data have.

    Raises:
        ModelError: Their numbers differ.
    """
    if spec.classes != classes:
        raise ModelError(
            f"{checkpoint}: the teacher has {spec.classes} classes, the data set has {classes}; "
            "give a teacher that was trained on the same classes, or leave out teacher.checkpoint to train one"
        )


def model_problems(recipe: Recipe, *, classes: int | None) -> list[str]:
    """Return why models of a recipe cannot be trained, as far as that can be told without data: for a plan.

    Args:
        recipe: The recipe.
        classes: How many classes the data have, where that is known.
    """
    from brd_edge.models.segmentation import ModelSpec, build_model

    teacher, found = recipe.teacher, list[str]()
    models: dict[str, nn.Module] = {}
    students = ("student", recipe.student, recipe.distill.train, input_contract(recipe), 1)
    teachers = ("teacher", teacher, teacher.train, teacher_contract(recipe), teacher.scale)
    for name, section, train, contract, scale in (teachers, students):
        if train is None:
            continue
        try:
            # where the number of classes is not known yet, it matters to nothing here
            spec = ModelSpec(section.arch, section.encoder, classes=classes or 2, options=dict(section.options))
            model = build_model(spec, encoder_weights=None, seed=0)
            check_training(name, model, train, contract, scale=scale)
            models[name] = model
        except ModelError as error:
            found.append(str(error) if str(error).startswith(name) else f"{name}: {error}")
    if len(models) == len((teachers, students)):
        try:
            _require_match(recipe, models["teacher"], models["student"], classes=classes or 2)
        except ModelError as error:
            found.append(str(error))
    return [*found, *_given_problems(recipe, classes)]


def _given_problems(recipe: Recipe, classes: int | None) -> list[str]:
    """Return why a given teacher is none for data of so many classes; that there is none is said elsewhere."""
    from brd_edge.models.segmentation import read_spec

    checkpoint = None if recipe.teacher.checkpoint is None else expand_home(recipe.teacher.checkpoint).absolute()
    if checkpoint is None or classes is None or not (checkpoint / "config.json").is_file():
        return []
    try:
        require_same_classes(checkpoint, read_spec(checkpoint), classes)
    except ModelError as error:
        return [str(error)]
    return []


def _require_match(recipe: Recipe, teacher: nn.Module, student: nn.Module, *, classes: int) -> None:
    """Refuse a teacher and a student that the recipe's distillation cannot match."""
    from brd_edge.distill.objective import distillation

    distillation(
        teacher,
        student,
        distill_settings(recipe.distill),
        supervised_loss(recipe.distill.train, None),
        classes=classes,
        teacher_scale=recipe.teacher.scale,
        size=training_size(recipe),
    )


def check_training(
    name: str, model: nn.Module, train: TrainSection, contract: InputContract, *, scale: int = 1
) -> None:
    """Refuse a model that cannot be trained as its section says, or validated on its frames.

    Raises:
        ModelError: It does not take the frames or crops, or a step cannot be divided as asked.
    """
    larger = f" times {scale}" if scale > 1 else ""
    require_takes(model, (contract.height, contract.width), f"{name} on data.size{larger}")
    _require_equal_shares(name, train)
    section = "distill" if name == "student" else name
    require_takes(model, train.crop, f"{name} on {section}.train.crop")
    _require_parts(name, model, train, train.crop or (contract.height, contract.width))


def _require_enough(name: str, train: TrainSection, images: int) -> None:
    if train.batch_size > images:
        raise ModelError(
            f"{name}: a batch_size of {train.batch_size} is more than the {images} train images; "
            f"make it {images} or less"
        )


def require_takes(model: nn.Module, size: Sequence[int] | None, what: str) -> None:
    """Refuse a model that takes no images of a size, if one is given."""
    from brd_edge.models.segmentation import feature_table

    if size is not None:
        height, width = size
        feature_table(model, height, width, what)


def _require_parts(name: str, model: nn.Module, train: TrainSection, size: Sequence[int]) -> None:
    """Refuse steps whose parts are single images where the model's batch normalisation needs more."""
    from brd_edge.models.segmentation import trains_on_one_image

    # several processes normalise over all their images
    if train.batch_size > train.accumulate or started_processes()[1] > 1 or trains_on_one_image(model, *size):
        return
    raise ModelError(
        f"{name}: a batch_size of {train.batch_size} in {train.accumulate} part(s) is one image at a time, over which "
        f"{type(model).__name__} cannot normalise a feature of one pixel; make batch_size at least "
        f"{2 * train.accumulate}, or accumulate smaller"
    )


def _require_equal_shares(name: str, train: TrainSection) -> None:
    processes = started_processes()[1]
    parts = processes * train.accumulate
    if train.batch_size % parts:
        raise ModelError(
            f"{name}: a batch_size of {train.batch_size} cannot be divided among {processes} processes in "
            f"{train.accumulate} parts each; make it a multiple of {parts}"
        )
