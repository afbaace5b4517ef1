"""Stage `distill`: the student learns from the labels and the teacher."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

from brd_edge.recipe import Recipe
from brd_edge.recipe_training import DistillSection
from brd_edge.stages.context import (
    Context,
    Outcome,
    Stage,
    counted,
    crops_beyond_frames,
    input_contract,
    missing_gpu,
    training_device,
)
from brd_edge.stages.model_checks import check_models
from brd_edge.stages.training import (
    TRAINING_CODE,
    deciding_settings,
    distill_settings,
    encoder_weights,
    label_terms,
    load_run_dataset,
    missing_weights,
    model_spec,
    supervised_loss,
    train_and_save,
    training_class_weights,
    training_settings,
    training_size,
    weight_files,
)
from brd_edge.stages.unlabelled import (
    UNLABELLED_CODE,
    label_unlabelled,
    missing_images,
    unlabelled_files,
    unlabelled_plan,
    with_teacher_labels,
)

__all__ = ["STAGE"]


def _settings(recipe: Recipe) -> dict[str, Any]:
    return {
        **training_settings(recipe),
        "student": recipe.student.model_dump(mode="json"),
        "distill": deciding_settings(recipe.distill),
    }


def _files(recipe: Recipe) -> dict[str, str]:
    return weight_files(recipe.student) | unlabelled_files(recipe)


def _missing(recipe: Recipe) -> list[str]:
    return [*missing_gpu(recipe), *missing_weights("student", recipe.student), *missing_images(recipe)]


def _notes(recipe: Recipe) -> list[str]:
    return crops_beyond_frames("distill", recipe.distill.train, input_contract(recipe))


def _plan(recipe: Recipe) -> str:
    student, distill = recipe.student, recipe.distill
    more = unlabelled_plan(recipe)
    epochs = counted(distill.train.epochs, "epoch")
    return f"train {student.arch} / {student.encoder} for {epochs} {_method(distill)}{more}"


def _method(distill: DistillSection) -> str:
    """Return the method with the terms that it has and their weights."""
    from brd_edge.distill.methods import METHODS

    weights = {term: getattr(distill, f"lambda_{term}") for term in METHODS[distill.method]}
    terms = ", ".join(f"{term} {weight:g}" for term, weight in weights.items() if weight)
    return f"with {distill.method} ({terms})" if terms else "without distillation"


def _accepts(context: Context) -> None:
    """Refuse now, before results of an earlier run make way, what cannot be trained."""
    from brd_edge.models.segmentation import load_model

    dataset = load_run_dataset(context)
    teacher, _ = load_model(context.run.path("teacher", "model"))
    check_models(context.recipe, dataset, given=teacher)
    # images that cannot be used are found by labelling them
    label_unlabelled(context, teacher, dataset)


def _work(context: Context) -> Outcome:
    from brd_edge.distill.jitter import jitter_colours
    from brd_edge.distill.objective import distillation
    from brd_edge.models.segmentation import build_model, load_model

    recipe = context.recipe
    device = training_device(recipe)
    dataset = load_run_dataset(context)
    spec = model_spec(recipe.student, dataset)
    student = build_model(spec, encoder_weights=encoder_weights(recipe.student), seed=recipe.seed)
    teacher, _ = load_model(context.run.path("teacher", "model"))
    contract = input_contract(recipe)
    teacher.to(device=device)
    labelled = len(dataset.train)
    dataset = with_teacher_labels(context, dataset)
    weights = training_class_weights(dataset, recipe.distill.train.class_weights, device)
    loss = supervised_loss(recipe.distill.train, weights)
    outcome = train_and_save(
        context,
        title="distill",
        model=student,
        spec=spec,
        section=recipe.distill.train,
        dataset=dataset,
        objective=distillation(
            teacher,
            student,
            distill_settings(recipe.distill),
            loss,
            classes=len(dataset.classes),
            label_terms=label_terms(recipe.distill.train),
            # which pixels are hard is found anew in every batch
            static_loss=recipe.distill.train.loss == "ce",
            teacher_scale=recipe.teacher.scale,
            size=training_size(recipe),
            student_view=(
                None
                if recipe.distill.teacher_sees_jitter
                else partial(jitter_colours, mean=contract.mean, std=contract.std)
            ),
        ),
        contract=contract,
        seed=recipe.seed,
    )
    more = len(dataset.train) - labelled
    return replace(outcome, result={**outcome.result, "unlabelled": more}) if more else outcome


STAGE = Stage(
    name="distill",
    needs=("prepare", "teacher"),
    code=(*TRAINING_CODE, *UNLABELLED_CODE, "stages/distill.py"),
    settings=_settings,
    work=_work,
    plan=_plan,
    files=_files,
    missing=_missing,
    notes=_notes,
    accepts=_accepts,
)
