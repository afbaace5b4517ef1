"""What cannot be trained is refused before hours of training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from brd_edge.data.dataset import Dataset
from brd_edge.recipe import Recipe
from brd_edge.recipe_training import TrainSection
from brd_edge.runtime.errors import ModelError
from brd_edge.stages.context import input_contract, teacher_contract
from brd_edge.stages.training import distill_settings, model_spec, supervised_loss, training_size

if TYPE_CHECKING:
    from torch import nn

__all__ = ["check_models", "require_takes"]


def check_models(recipe: Recipe, dataset: Dataset) -> None:
    """Build the models that are trained once, so that what cannot work is refused before hours of training.

    Raises:
        ModelError: A model cannot be built, does not take the frames or crops, or both cannot be matched.
    """
    from brd_edge.distill.objective import distillation
    from brd_edge.models.segmentation import build_model

    models = {}
    for name, section, train, contract in (
        ("teacher", recipe.teacher, recipe.teacher.train, teacher_contract(recipe)),
        ("student", recipe.student, recipe.distill.train, input_contract(recipe)),
    ):
        if name == "teacher" and train is None:
            continue
        models[name] = build_model(model_spec(section, dataset), encoder_weights=None, seed=recipe.seed)
        larger = f" times {recipe.teacher.scale}" if name == "teacher" and recipe.teacher.scale > 1 else ""
        require_takes(models[name], (contract.height, contract.width), f"{name} on data.size{larger}")
        if train is not None:
            _require_equal_shares(name, train)
            require_takes(models[name], train.crop, f"{name} on train.crop")
            _require_parts(name, models[name], train, train.crop or (contract.height, contract.width))
    if recipe.teacher.train is None:
        return
    seen = training_size(recipe)
    if recipe.teacher.scale > 1:
        larger = f"distill.train.crop times {recipe.teacher.scale}"
        require_takes(models["teacher"], tuple(recipe.teacher.scale * side for side in seen), f"teacher on {larger}")
    distillation(
        models["teacher"],
        models["student"],
        distill_settings(recipe.distill),
        supervised_loss(recipe.distill.train, None),
        classes=len(dataset.classes),
        teacher_scale=recipe.teacher.scale,
        size=seen,
    )


def require_takes(model: nn.Module, size: Sequence[int] | None, what: str) -> None:
    """Refuse a model that takes no images of a size, if one is given."""
    from brd_edge.models.segmentation import check_size, feature_table

    if size is None:
        return
    height, width = size
    check_size(model, height, width, what=what)
    try:
        feature_table(model, height, width)
    except ModelError as error:
        raise ModelError(f"{what}: {str(error).removeprefix('model: ')}") from None


def _require_parts(name: str, model: nn.Module, train: TrainSection, size: Sequence[int]) -> None:
    """Refuse steps whose parts are single images where the model's batch normalisation needs more."""
    from brd_edge.distill.distributed import wanted_processes
    from brd_edge.models.segmentation import trains_on_one_image

    # several processes normalise over all their images
    if train.batch_size > train.accumulate or wanted_processes() > 1 or trains_on_one_image(model, *size):
        return
    raise ModelError(
        f"{name}: a batch_size of {train.batch_size} in {train.accumulate} part(s) is one image at a time, over which "
        f"{type(model).__name__} cannot normalise a feature of one pixel; make batch_size at least "
        f"{2 * train.accumulate}, or accumulate smaller"
    )


def _require_equal_shares(name: str, train: TrainSection) -> None:
    from brd_edge.distill.distributed import wanted_processes

    parts = wanted_processes() * train.accumulate
    if train.batch_size % parts:
        raise ModelError(
            f"{name}: a batch_size of {train.batch_size} cannot be divided among {wanted_processes()} processes in "
            f"{train.accumulate} parts each; make it a multiple of {parts}"
        )
