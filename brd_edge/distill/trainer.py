"""One training loop for teachers and students: resumable to the same final weights."""

from __future__ import annotations

import copy
import json
import math
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from brd_edge.data.loader import Batch, TrainLoader
from brd_edge.distill.checkpoint import TrainState, load_weights, restore_checkpoint, save_checkpoint, save_weights
from brd_edge.distill.objective import Objective
from brd_edge.distill.schedule import learning_rate, make_optimizer
from brd_edge.interrupt import Stop
from brd_edge.progress import progress_bar
from brd_edge.runtime.errors import InterruptedRunError, TrainingError
from brd_edge.runtime.files import write_text_atomic

__all__ = ["FitResult", "TrainSettings", "class_weights", "fast_bf16", "fit"]

_STEPS_BETWEEN_RECORDS = 10
_UNSAVED_S = 5.0


@dataclass(frozen=True)
class TrainSettings:
    """How to train; see the recipe's `train` sections for the meaning of each field."""

    epochs: int
    lr: float
    encoder_lr_factor: float
    weight_decay: float
    schedule: str
    warmup: float
    grad_clip: float
    ema: float
    precision: str
    validate_every: int
    checkpoint_s: float


@dataclass(frozen=True)
class FitResult:
    """What a training reached.

    Attributes:
        miou: Best validation mIoU, 0 to 1; the model holds the weights of that step.
        step: The step of the best validation.
        steps: Steps in all.
    """

    miou: float
    step: int
    steps: int


@dataclass
class _Training:
    """What changes while a model is trained."""

    model: nn.Module
    average: nn.Module | None
    optimizer: torch.optim.Optimizer
    loader: TrainLoader
    state: TrainState


def fit(
    model: nn.Module,
    *,
    objective: Objective,
    loader: TrainLoader,
    settings: TrainSettings,
    evaluate: Callable[[nn.Module], float],
    names: Sequence[str],
    directory: Path,
    key: str,
    seed: int,
    device: torch.device,
    title: str,
    stop: Stop,
) -> FitResult:
    """Train a model, or go on with an interrupted training.

    Args:
        model: Trained in place; at the end it holds the weights of the best validation.
        objective: Gives the weighted loss terms of a batch.
        loader: Gives the batches.
        settings: How to train.
        evaluate: Model in eval mode to its validation mIoU, 0 to 1.
        names: The samples' names by index, for messages.
        directory: Where `checkpoint.safetensors`, `best.safetensors` and `metrics.jsonl` lie.
        key: Fingerprint of everything that decides the outcome.
        seed: Seed of torch's generator (dropout).
        device: Where to train.
        title: Title of the progress bar.
        stop: Asked between steps; a request saves a checkpoint first.

    Raises:
        TrainingError: A loss term is not finite, or a checkpoint is damaged.
        InterruptedRunError: A stop was requested.
    """
    model.to(device=device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    training = _prepare(model, loader, settings, directory, key, seed)
    total = settings.epochs * loader.steps_per_epoch
    validate_steps = settings.validate_every * loader.steps_per_epoch
    saved = time.monotonic()
    with (
        stop.cooperative(),
        progress_bar(total, title, unit="step", initial=training.state.step) as bar,
        (directory / "metrics.jsonl").open("a", encoding="utf-8") as records,
    ):
        while True:
            step = training.state.step
            due = step > training.state.validated_step and (step % validate_steps == 0 or step == total)
            # a validation may take long, and is owed after an interruption: save before it
            wait_s = min(settings.checkpoint_s, _UNSAVED_S) if due else settings.checkpoint_s
            if stop.requested or time.monotonic() - saved > wait_s:
                _save(training, directory)
                saved = time.monotonic()
            if stop.requested:
                raise InterruptedRunError(f"{title}: stopped at step {step} of {total}; run it again to go on")
            if due:
                bar.set_postfix_str("validating")
                miou = _validate(training, evaluate, directory)
                _record(records, {"step": step, "epoch": step / loader.steps_per_epoch, "miou": miou})
            if step == total:
                break
            terms, lr = _step(training, objective, settings, total, names, device)
            step += 1
            training.state = replace(training.state, step=step)
            bar.update(1)
            if step % _STEPS_BETWEEN_RECORDS == 0 or step == total:
                _record(records, {"step": step, "epoch": step / loader.steps_per_epoch, "lr": lr, "loss": terms})
                bar.set_postfix_str(f"loss {sum(terms.values()):.3f}")
    _save(training, directory)
    if stop.requested:
        raise InterruptedRunError(f"{title}: stopped after its last step; run it again to go on")
    if training.state.best_step == 0:
        raise TrainingError(f"{title}: the validation split has no labelled pixel, so that no weights could be chosen")
    load_weights(directory / "best.safetensors", model)
    return FitResult(miou=training.state.best_miou, step=training.state.best_step, steps=total)


def fast_bf16(device: torch.device) -> bool:
    """Return whether the device computes bfloat16 in hardware."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags


def _prepare(
    model: nn.Module, loader: TrainLoader, settings: TrainSettings, directory: Path, key: str, seed: int
) -> _Training:
    directory.mkdir(parents=True, exist_ok=True)
    for leftover in directory.glob(".*.safetensors"):
        # what a killed process was writing
        leftover.unlink()
    torch.manual_seed(seed)
    average = copy.deepcopy(model).eval().requires_grad_(False) if settings.ema > 0 else None
    optimizer = make_optimizer(
        model, lr=settings.lr, encoder_lr_factor=settings.encoder_lr_factor, weight_decay=settings.weight_decay
    )
    restored = restore_checkpoint(
        directory / "checkpoint.safetensors", key=key, model=model, average=average, optimizer=optimizer
    )
    if restored is None:
        _set_aside(directory)
        return _Training(model, average, optimizer, loader, TrainState(key=key))
    state, loader_state = restored
    loader.restore(loader_state)
    _drop_records_after(directory / "metrics.jsonl", state)
    return _Training(model, average, optimizer, loader, state)


def _set_aside(directory: Path) -> None:
    """Make room for a new training; an unfinished one of other settings is kept under another name, once."""
    checkpoint = directory / "checkpoint.safetensors"
    if checkpoint.exists():
        other = directory / "other-settings.checkpoint.safetensors"
        checkpoint.replace(other)
        print(f"{directory.name}: an unfinished training of other settings was set aside as {other}", file=sys.stderr)
    for name in ("best.safetensors", "metrics.jsonl"):
        (directory / name).unlink(missing_ok=True)


def _step(
    training: _Training,
    objective: Objective,
    settings: TrainSettings,
    total: int,
    names: Sequence[str],
    device: torch.device,
) -> tuple[dict[str, float], float]:
    lr = learning_rate(
        training.state.step, total, highest=settings.lr, schedule=settings.schedule, warmup=settings.warmup
    )
    for group in training.optimizer.param_groups:
        group["lr"] = lr * group["lr_factor"]
    batch = training.loader.next_batch()
    images = batch.images.to(device=device, memory_format=torch.channels_last, non_blocking=True)
    labels = batch.labels.to(device=device, non_blocking=True)
    bf16 = settings.precision == "bf16" or (settings.precision == "auto" and fast_bf16(device))
    with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
        terms = objective(training.model, images, labels)
    values = {name: float(term.detach()) for name, term in terms.items()}
    _require_finite(values, training.state.step, batch, names)
    training.optimizer.zero_grad(set_to_none=True)
    torch.stack(list(terms.values())).sum().backward()  # type: ignore[no-untyped-call]
    if settings.grad_clip > 0:
        nn.utils.clip_grad_norm_(training.model.parameters(), settings.grad_clip)
    training.optimizer.step()
    if training.average is not None:
        _average(training.average, training.model, settings.ema, training.state.step)
    return values, lr


def _require_finite(values: dict[str, float], step: int, batch: Batch, names: Sequence[str]) -> None:
    for name, value in values.items():
        if not math.isfinite(value):
            files = ", ".join(names[index] for index in batch.indices)
            raise TrainingError(
                f"loss term {name!r} became {value} at step {step}, on {files}; the last checkpoint is kept. "
                "Lower the learning rate or the term's weight, or look at those files"
            )


@torch.no_grad()
def _average(average: nn.Module, model: nn.Module, decay: float, step: int) -> None:
    # a young average follows closely, or it would keep the random first weights for too long
    decay = min(decay, (step + 1) / (step + 10))
    for mine, theirs in zip(average.state_dict().values(), model.state_dict().values(), strict=True):
        if mine.is_floating_point():
            mine.lerp_(theirs, 1 - decay)
        else:
            mine.copy_(theirs)


def _validate(training: _Training, evaluate: Callable[[nn.Module], float], directory: Path) -> float:
    candidate = training.average if training.average is not None else training.model
    candidate.eval()
    with torch.no_grad():
        miou = evaluate(candidate)
    training.model.train()
    step = training.state.step
    training.state = replace(training.state, validated_step=step)
    if miou > training.state.best_miou:
        save_weights(directory / "best.safetensors", candidate, {"step": str(step), "miou": repr(miou)})
        training.state = replace(training.state, best_miou=miou, best_step=step)
    return miou


def _save(training: _Training, directory: Path) -> None:
    save_checkpoint(
        directory / "checkpoint.safetensors",
        state=training.state,
        model=training.model,
        average=training.average,
        optimizer=training.optimizer,
        loader_state=training.loader.state(),
    )


def _record(records: Any, entry: dict[str, Any]) -> None:
    records.write(json.dumps(entry) + "\n")
    records.flush()
    # a checkpoint counts on the records before it
    os.fsync(records.fileno())


def _drop_records_after(path: Path, state: TrainState) -> None:
    """Remove what an interrupted process wrote after its last checkpoint: it is about to be done again."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
        try:
            entry = json.loads(line)
        except ValueError:
            # the process was killed in the middle of this line
            continue
        if entry["step"] <= (state.validated_step if "miou" in entry else state.step):
            kept.append(line)
    write_text_atomic(path, "".join(kept))


def class_weights(pixels: Sequence[int], kind: str) -> Tensor | None:
    """Return cross-entropy weights from how often each class occurs.

    Args:
        pixels: Pixels of each class in the train split.
        kind: `none` gives nothing; `log_frequency` gives `1 / ln(1.1 + share of pixels)`, divided
            by its mean (Paszke et al., ENet, arXiv 1606.02147, section 5.2, with their 1.02 as 1.1).
    """
    if kind == "none":
        return None
    share = torch.tensor(pixels, dtype=torch.float64) / max(1, sum(pixels))
    weights = 1 / torch.log(1.1 + share)
    return (weights / weights.mean()).float()
