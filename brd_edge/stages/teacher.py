"""Stage `teacher`: the large model, trained here or taken from the user."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from brd_edge.recipe import Recipe
from brd_edge.run import tree_files
from brd_edge.runtime.errors import BrdEdgeError, ModelError
from brd_edge.runtime.files import sha256_file
from brd_edge.stages.context import (
    Context,
    Outcome,
    Stage,
    crops_beyond_frames,
    missing_gpu,
    slow_without_gpu,
    teacher_contract,
    training_device,
)
from brd_edge.stages.model_checks import check_models, require_takes
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
    weight_files,
)

__all__ = ["STAGE"]


def _settings(recipe: Recipe) -> dict[str, Any]:
    exclude = {"train": {"checkpoint_s"}}
    return {**training_settings(recipe), "teacher": recipe.teacher.model_dump(mode="json", exclude=exclude)}


def _checkpoint(recipe: Recipe) -> Path | None:
    return Path(recipe.teacher.checkpoint).expanduser().absolute() if recipe.teacher.checkpoint else None


def _files(recipe: Recipe) -> dict[str, str]:
    checkpoint = _checkpoint(recipe)
    given = tree_files(checkpoint) if checkpoint is not None and checkpoint.is_dir() else []
    return {**weight_files(recipe.teacher), **{f"teacher {path.name}": sha256_file(path) for path in given}}


def _missing(recipe: Recipe) -> list[str]:
    checkpoint = _checkpoint(recipe)
    gpu = missing_gpu(recipe)
    if checkpoint is not None and not (checkpoint / "config.json").is_file():
        return [*gpu, f"teacher.checkpoint: {checkpoint} has no config.json; expected a saved segmentation model"]
    if checkpoint is not None:
        from brd_edge.models.storage import require_contract

        try:
            require_contract(checkpoint, teacher_contract(recipe))
        except BrdEdgeError as error:
            return [*gpu, f"teacher.checkpoint: {error}"]
    return [*gpu, *missing_weights("teacher", recipe.teacher)]


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
    return f"train {model} for {teacher.train.epochs} epochs"


def _work(context: Context) -> Outcome:
    recipe = context.recipe
    check_models(recipe, load_run_dataset(context))
    return _load(context) if recipe.teacher.train is None else _train(context)


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


def _load(context: Context) -> Outcome:
    from brd_edge.models.segmentation import load_model, require_contract, save_model

    checkpoint = _checkpoint(context.recipe)
    assert checkpoint is not None
    dataset = load_run_dataset(context)
    model, spec = load_model(checkpoint)
    contract = teacher_contract(context.recipe)
    require_contract(checkpoint, contract)
    if spec.classes != len(dataset.classes):
        raise ModelError(
            f"{checkpoint}: the teacher has {spec.classes} classes, the data set has {len(dataset.classes)}; "
            "give a teacher that was trained on the same classes, or leave out teacher.checkpoint to train one"
        )
    if (spec.arch, spec.encoder) != (context.recipe.teacher.arch, context.recipe.teacher.encoder):
        context.say(f"note: {checkpoint} holds {spec.arch} / {spec.encoder}, which is used, not the recipe's model")
    require_takes(model, (contract.height, contract.width), f"{checkpoint} on data.size")
    directory = context.run.path("teacher", "model")
    save_model(model, spec, directory, contract=contract)
    # curves of a training that this teacher does not come from
    context.run.path("teacher", "metrics.jsonl").unlink(missing_ok=True)
    return Outcome(model_files(directory), {}, f"{spec.arch} / {spec.encoder} from {checkpoint}")


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
)
