"""What the stages `teacher` and `distill` share: loader, validation, saving."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from brd_edge.data.dataset import Dataset, count_class_pixels
from brd_edge.data.index import load_dataset
from brd_edge.recipe import Recipe
from brd_edge.recipe_training import DistillSection, ModelSection, TrainSection
from brd_edge.runtime.contract import InputContract
from brd_edge.runtime.errors import InterruptedRunError
from brd_edge.runtime.files import expand_home, sha256_file
from brd_edge.stages.context import Context, Outcome, input_contract, training_device

if TYPE_CHECKING:
    import torch
    from torch import nn

    from brd_edge.data.loader import TrainLoader
    from brd_edge.data.plan import Augmentation
    from brd_edge.distill.objective import DistillSettings, Objective, Supervised
    from brd_edge.models.segmentation import ModelSpec

__all__ = [
    "TRAINING_CODE",
    "augmentation_of",
    "deciding_settings",
    "distill_settings",
    "encoder_weights",
    "label_terms",
    "load_run_dataset",
    "missing_weights",
    "model_files",
    "model_spec",
    "supervised_loss",
    "train_and_save",
    "training_class_weights",
    "training_settings",
    "training_size",
    "validation_miou",
    "weight_files",
]

_GLANCE = 100
"""Validation images that show whether a model is fed as it was trained."""

TRAINING_CODE = (
    "data/dataset.py",
    "data/evaluation.py",
    "data/index.py",
    "data/loader.py",
    "data/loader_state.py",
    "data/dali_frames.py",
    "data/dali_loader.py",
    "data/plan.py",
    "data/torch_loader.py",
    "models",
    "distill",
    "evaluate/accuracy.py",
    "runtime/contract.py",
    "runtime/contours.py",
    "runtime/frames.py",
    "runtime/metrics.py",
    "runtime/regions.py",
    "runtime/windows.py",
    "stages/context.py",
    "stages/training.py",
)


def load_run_dataset(context: Context) -> Dataset:
    """Return the data set that `prepare` left."""
    return load_dataset(context.run.path("data"))


def model_spec(section: ModelSection, dataset: Dataset) -> ModelSpec:
    """Return the specification of a recipe's model for a data set's classes."""
    from brd_edge.models.segmentation import ModelSpec

    return ModelSpec(
        arch=section.arch, encoder=section.encoder, classes=len(dataset.classes), options=dict(section.options)
    )


def training_settings(recipe: Recipe) -> dict[str, Any]:
    """Return what decides every training of a recipe, beside the stage's own section."""
    return {
        "seed": recipe.seed,
        "device": recipe.device,
        "loader": recipe.data.loader,
        "contract": input_contract(recipe).to_json(),
    }


def training_size(recipe: Recipe) -> tuple[int, int]:
    """Return height and width of the images that the student is trained on."""
    height, width = recipe.distill.train.crop or recipe.data.size
    return height, width


def distill_settings(section: DistillSection) -> DistillSettings:
    """Return what of a recipe's section decides the distillation terms."""
    from brd_edge.distill.objective import DistillSettings

    return DistillSettings(
        **section.model_dump(exclude={"train", "teacher_sees_jitter", "unlabelled", "unlabelled_confidence"})
    )


def deciding_settings(section: DistillSection) -> dict[str, Any]:
    """Return what of a recipe's section decides what a student becomes, as JSON types.

    Of images without labels it is which there are, not where they lie; the stage's files tell that.
    """
    exclude: dict[str, Any] = {"train": {"checkpoint_s"}, "unlabelled": True}
    if section.unlabelled is None:
        exclude["unlabelled_confidence"] = True
    return section.model_dump(mode="json", exclude=exclude)


def weight_files(section: ModelSection) -> dict[str, str]:
    """Return the checksum of the local weights that a model starts from, if any."""
    if section.encoder_weights in (None, "imagenet"):
        return {}
    path = expand_home(str(section.encoder_weights))
    return {"encoder weights": sha256_file(path)} if path.is_file() else {}


def encoder_weights(section: ModelSection) -> str | None:
    """Return what a model's encoder starts from, with `~` resolved in the name of a file."""
    given = section.encoder_weights
    return given if given in (None, "imagenet") else str(expand_home(str(given)))


def missing_weights(name: str, section: ModelSection) -> list[str]:
    """Return that the local weights which a model starts from are not there, if so."""
    if section.encoder_weights in (None, "imagenet") or expand_home(str(section.encoder_weights)).is_file():
        return []
    return [
        f"{name}.encoder_weights: there is no file {section.encoder_weights}; "
        "expected `imagenet` or a safetensors file in timm's naming"
    ]


def model_files(directory: Path) -> list[Path]:
    """Return the files of a saved model, without what a killed process may have left beside them."""
    return sorted(path for path in directory.iterdir() if path.is_file() and not path.name.startswith("."))


def training_class_weights(dataset: Dataset, kind: str, device: torch.device) -> torch.Tensor | None:
    """Return the cross-entropy weights of the classes of a train split."""
    from brd_edge.distill.supervised import class_weights

    if kind == "none":
        return None
    weights = class_weights(count_class_pixels(dataset.train, len(dataset.classes)), kind)
    return None if weights is None else weights.to(device)


def supervised_loss(section: TrainSection, weights: torch.Tensor | None) -> Supervised:
    """Return the loss of the labels that a training section asks for."""
    from brd_edge.distill.supervised import cross_entropy, hard_cross_entropy

    if section.loss == "ce":
        return lambda logits, labels: cross_entropy(logits, labels, weights)
    return lambda logits, labels: hard_cross_entropy(
        logits, labels, weights, probability=section.ohem_probability, kept_min=section.ohem_kept_min
    )


def label_terms(section: TrainSection) -> dict[str, tuple[float, Supervised]]:
    """Return what joins the supervised loss without a teacher, by name, with its weight."""
    from brd_edge.distill.overlap import label_overlap_loss

    return {"overlap": (section.lambda_overlap, label_overlap_loss)} if section.lambda_overlap else {}


def train_and_save(
    context: Context,
    *,
    title: str,
    model: nn.Module,
    spec: ModelSpec,
    section: TrainSection,
    dataset: Dataset,
    objective: Objective,
    contract: InputContract,
    seed: int,
) -> Outcome:
    """Train a model as a recipe's section says and save its best weights in `<title>/model`.

    Frames are those of the contract; batches are as many times larger as the objective's teacher sees them. Where there
    are several processes, the first one calls the others to its side.

    Returns:
        The files of the model, its curves, and as result `miou` (best validation, 0 to 1), `step` and `steps`.
    """
    from brd_edge.distill.distributed import broadcast_object, rank
    from brd_edge.distill.trainer import fit
    from brd_edge.models.segmentation import save_model

    if rank() == 0:
        broadcast_object({"stage": title, "key": context.key})
    device = training_device(context.recipe)
    directory = context.run.path(title)
    loader = _open_batches(
        context.recipe, section, dataset, contract,
        seed=seed, scale=objective.teacher_scale, jitter_later=objective.student_view is not None,
    )  # fmt: skip
    try:
        result = fit(
            model,
            objective=objective,
            loader=loader,
            settings=_fit_settings(section),
            evaluate=_validation(context, dataset, contract, device),
            names=[str(sample.image) for sample in dataset.train],
            directory=directory,
            key=context.key,
            seed=seed,
            device=device,
            title=title,
            stop=context.stop,
            say=context.say,
        )
    finally:
        loader.close()
    found = {"miou": result.miou, "step": result.step, "steps": result.steps}
    files: list[Path] = []
    if rank() == 0:
        save_model(model, spec, directory / "model", contract=contract)
        files = [*model_files(directory / "model"), directory / "metrics.jsonl"]
    best = f"step {result.step} of {result.steps}" if result.step < result.steps else "the end"
    summary = f"best validation mIoU {100 * result.miou:.1f} %, at {best}"
    return Outcome(files, found, summary, earlier_s=result.earlier_s)


def validation_miou(context: Context, model: nn.Module, contract: InputContract) -> float:
    """Return the mIoU (0 to 1) of a trained model on validation images, a hundred at most, evenly chosen.

    Frames are those of the contract.
    """
    device, dataset = training_device(context.recipe), load_run_dataset(context)
    some = replace(dataset, val=dataset.val[:: -(-len(dataset.val) // _GLANCE)])
    return _validation(context, some, contract, device)(model.to(device))


def augmentation_of(section: TrainSection, contract: InputContract, *, scale: int = 1) -> Augmentation:
    """Return how a training section varies its samples; the crops are `scale` times as high and wide as it says."""
    from brd_edge.data.plan import Augmentation

    brightness, contrast, saturation = section.jitter
    height, width = section.crop or (contract.height, contract.width)
    return Augmentation(
        crop=(scale * height, scale * width),
        scale=section.scale,
        flip=section.flip,
        brightness=brightness,
        contrast=contrast,
        saturation=saturation,
        gamma=section.gamma,
        class_balance=section.class_balance,
    )


def _open_batches(
    recipe: Recipe,
    section: TrainSection,
    dataset: Dataset,
    contract: InputContract,
    *,
    seed: int,
    scale: int,
    jitter_later: bool,
) -> TrainLoader:
    """Open the loader of a training: frames of the contract and crops, both `scale` times as high and wide.

    With `jitter_later` the colours are changed by the objective, not by the loader.
    """
    from brd_edge.data.loader import open_train_loader
    from brd_edge.distill.distributed import rank, world

    device = training_device(recipe)
    return open_train_loader(
        dataset.train,
        contract=replace(contract, height=scale * contract.height, width=scale * contract.width),
        augmentation=replace(augmentation_of(section, contract, scale=scale), jitter_later=jitter_later),
        batch_size=section.batch_size,
        seed=seed,
        backend=recipe.data.loader,
        threads=recipe.data.threads,
        rank=rank(),
        world=world(),
        gpu=device.index if device.type == "cuda" else None,
        classes=len(dataset.classes),
    )


def _fit_settings(section: TrainSection) -> Any:
    from brd_edge.distill.trainer import TrainSettings

    return TrainSettings(
        epochs=section.epochs,
        lr=section.lr,
        encoder_lr_factor=section.encoder_lr_factor,
        weight_decay=section.weight_decay,
        schedule=section.schedule,
        warmup=section.warmup,
        grad_clip=section.grad_clip,
        ema=section.ema,
        precision=section.precision,
        accumulate=section.accumulate,
        validate_every=section.validate_every,
        checkpoint_s=section.checkpoint_s,
    )


def _validation(
    context: Context, dataset: Dataset, contract: InputContract, device: torch.device
) -> Callable[[nn.Module], float]:
    from brd_edge.evaluate.accuracy import evaluate_predictor, model_predictor
    from brd_edge.runtime.metrics import SegmentationMetrics

    def look(_index: int, _class_map: object) -> None:
        if context.stop.requested:
            raise InterruptedRunError("stopped while validating; run it again to go on")

    def evaluate(model: nn.Module) -> float:
        metrics = evaluate_predictor(
            model_predictor(model, contract, device),
            dataset.val,
            contract=contract,
            metrics=SegmentationMetrics(len(dataset.classes), boundaries=False, connectivity=False),
            on_class_map=look,
            backend=context.recipe.data.loader,
            threads=context.recipe.data.threads,
            gpu=device.index if device.type == "cuda" else None,
        )
        return metrics.miou()

    return evaluate
