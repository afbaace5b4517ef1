"""Stage `teacher`: the large model, trained here or taken from the user."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from brd_edge.recipe import Recipe
from brd_edge.run import tree_files
from brd_edge.runtime.errors import BrdEdgeError, ModelError
from brd_edge.runtime.files import expand_home, sha256_file
from brd_edge.stages.context import (
    Context,
    Outcome,
    Stage,
    counted,
    crops_beyond_frames,
    missing_gpu,
    slow_without_gpu,
    teacher_contract,
    training_device,
)
from brd_edge.stages.model_checks import check_models, require_same_classes, require_takes
from brd_edge.stages.training import (
    TRAINING_CODE,
    encoder_weights,
    label_terms,
    load_run_dataset,
    missing_weights,
    model_files,
    model_spec,
    supervised_loss,
    train_and_save,
    training_class_weights,
    training_settings,
    validation_miou,
    weight_files,
)
from brd_edge.stages.unlabelled import check_unlabelled

if TYPE_CHECKING:
    from torch import nn

    from brd_edge.models.segmentation import ModelSpec

__all__ = ["STAGE"]

_POOR_MIOU = 0.25
"""Below this a given teacher is more likely to be fed wrongly than to be worth its time."""


def _settings(recipe: Recipe) -> dict[str, Any]:
    exclude = {"train": {"checkpoint_s"}}
    return {**training_settings(recipe), "teacher": recipe.teacher.model_dump(mode="json", exclude=exclude)}


def _checkpoint(recipe: Recipe) -> Path | None:
    return expand_home(recipe.teacher.checkpoint).absolute() if recipe.teacher.checkpoint else None


def _files(recipe: Recipe) -> dict[str, str]:
    checkpoint = _checkpoint(recipe)
    found = weight_files(recipe.teacher)
    if checkpoint is not None and checkpoint.is_dir():
        # by their places: files of one name may lie in directories below
        found |= {f"teacher {path.relative_to(checkpoint)}": sha256_file(path) for path in tree_files(checkpoint)}
    return found


def _missing(recipe: Recipe) -> list[str]:
    checkpoint = _checkpoint(recipe)
    gpu = missing_gpu(recipe)
    if checkpoint is not None and not (checkpoint / "config.json").is_file():
        return [*gpu, f"teacher.checkpoint: {_no_model(checkpoint)}"]
    if checkpoint is not None:
        from brd_edge.models.storage import require_contract

        try:
            require_contract(checkpoint, teacher_contract(recipe))
        except BrdEdgeError as error:
            return [*gpu, f"teacher.checkpoint: {error}"]
    return [*gpu, *missing_weights("teacher", recipe.teacher)]


def _no_model(checkpoint: Path) -> str:
    """Say what is wrong with a path that is no saved model, and how one is made."""
    wanted = (
        "expected a directory with config.json and model.safetensors, which save_pretrained of "
        "segmentation_models_pytorch writes"
    )
    if not checkpoint.exists():
        return f"{checkpoint} does not exist; {wanted}"
    if checkpoint.is_file():
        return (
            f"{checkpoint} is a file, weights without the model that they belong to; {wanted}: build the model, "
            "load_state_dict these weights, then model.save_pretrained('teacher')"
        )
    return f"{checkpoint} has no config.json; {wanted}"


def _notes(recipe: Recipe) -> list[str]:
    return [
        *slow_without_gpu(recipe),
        *crops_beyond_frames("teacher", recipe.teacher.train, teacher_contract(recipe)),
    ]


def _plan(recipe: Recipe) -> str:
    teacher = recipe.teacher
    model = f"{teacher.arch} / {teacher.encoder}"
    if teacher.train is None:
        return f"take the teacher from {teacher.checkpoint}"
    return f"train {model} for {counted(teacher.train.epochs, 'epoch')}"


def _accepts(context: Context) -> None:
    """Refuse now, before results of an earlier run make way, what cannot be trained."""
    given = _given(context)[0] if context.recipe.teacher.train is None else None
    check_models(context.recipe, load_run_dataset(context), given=given)
    check_unlabelled(context)


def _work(context: Context) -> Outcome:
    return _load(context) if context.recipe.teacher.train is None else _train(context)


def _train(context: Context) -> Outcome:
    from brd_edge.distill.objective import supervised
    from brd_edge.models.segmentation import build_model

    recipe, section = context.recipe, context.recipe.teacher.train
    assert section is not None
    dataset = load_run_dataset(context)
    spec = model_spec(recipe.teacher, dataset)
    model = build_model(spec, encoder_weights=encoder_weights(recipe.teacher), seed=recipe.seed)
    weights = training_class_weights(dataset, section.class_weights, training_device(recipe))
    return train_and_save(
        context,
        title="teacher",
        model=model,
        spec=spec,
        section=section,
        dataset=dataset,
        objective=supervised(supervised_loss(section, weights), label_terms(section)),
        contract=teacher_contract(recipe),
        seed=recipe.seed,
    )


def _given(context: Context) -> tuple[nn.Module, ModelSpec]:
    """Return the teacher that the recipe names, once it is sure that it fits."""
    from brd_edge.models.segmentation import load_model, require_contract

    checkpoint = _checkpoint(context.recipe)
    assert checkpoint is not None
    dataset = load_run_dataset(context)
    model, spec = load_model(checkpoint)
    contract = teacher_contract(context.recipe)
    require_contract(checkpoint, contract)
    require_same_classes(checkpoint, spec, len(dataset.classes))
    for name, values in model.state_dict().items():
        if not values.isfinite().all():
            raise ModelError(f"{checkpoint}: the weights {name} are not finite; export the teacher again")
    require_takes(model, (contract.height, contract.width), f"{checkpoint} on data.size")
    return model, spec


def _load(context: Context) -> Outcome:
    from brd_edge.distill.checkpoint import set_aside
    from brd_edge.models.segmentation import save_model

    model, spec = _given(context)
    checkpoint, contract = _checkpoint(context.recipe), teacher_contract(context.recipe)
    if (spec.arch, spec.encoder) != (context.recipe.teacher.arch, context.recipe.teacher.encoder):
        context.say(f"note: {checkpoint} holds {spec.arch} / {spec.encoder}, which is used, not the recipe's model")
    directory = context.run.path("teacher", "model")
    # this teacher comes from no training here: curves go, and one that is not finished is kept
    set_aside(directory.parent)
    save_model(model, spec, directory, contract=contract)
    miou = validation_miou(context, model, contract)
    if miou < _POOR_MIOU:
        context.say(
            f"note: a teacher of {100 * miou:.1f} % mIoU has little to teach. Unless it was trained briefly: is the "
            "order of its classes that of the data set, and are data.mean and data.std what it was trained with?"
        )
    summary = f"{spec.arch} / {spec.encoder} from {checkpoint}, validation mIoU {100 * miou:.1f} %"
    # no result: what later stages depend on is the model
    return Outcome(model_files(directory), {}, summary)


STAGE = Stage(
    name="teacher",
    needs=("prepare",),
    code=(*TRAINING_CODE, "stages/teacher.py"),
    settings=_settings,
    work=_work,
    plan=_plan,
    files=_files,
    missing=_missing,
    notes=_notes,
    accepts=_accepts,
)
