"""One training loop for teachers and students: resumable to the same final weights."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from brd_edge.data.loader import Batch, TrainLoader
from brd_edge.distill.average import update_average
from brd_edge.distill.checkpoint import (
    CHECKPOINT,
    TrainState,
    load_weights,
    restore_checkpoint,
    save_checkpoint,
    save_weights,
    set_aside,
)
from brd_edge.distill.clock import StepClock, describe_step
from brd_edge.distill.cuda_graphs import StepGraphs
from brd_edge.distill.distributed import (
    broadcast_object,
    copy_from_first,
    gather_objects,
    rank,
    share_batch_statistics,
    world,
)
from brd_edge.distill.objective import Objective
from brd_edge.distill.parallel import parallel_forward
from brd_edge.distill.records import Records, drop_records_after, open_records
from brd_edge.distill.schedule import learning_rate, make_optimizer
from brd_edge.distill.step import Stepper, amp_dtype
from brd_edge.interrupt import Stop
from brd_edge.progress import progress_bar
from brd_edge.runtime.errors import InterruptedRunError, TrainingError
from brd_edge.runtime.files import write_json_atomic

__all__ = ["FitResult", "TrainSettings", "fit"]

_STEPS_BETWEEN_RECORDS = 10
_UNSAVED_S = 5.0
_LEFT_OUT_MAX = 50


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
    accumulate: int
    validate_every: int
    checkpoint_s: float


@dataclass(frozen=True)
class FitResult:
    """What a training reached.

    Attributes:
        miou: Best validation mIoU, 0 to 1; the model holds the weights of that step.
        step: The step of the best validation.
        steps: Steps in all.
        earlier_s: Seconds that the interrupted parts of the training before this one took, up to their checkpoints.
    """

    miou: float
    step: int
    steps: int
    earlier_s: float = 0.0


@dataclass
class _Training:
    """What changes while a model is trained, and where it is written."""

    model: nn.Module
    average: nn.Module | None
    stepper: Stepper
    loader: TrainLoader
    state: TrainState
    directory: Path
    device: torch.device
    begun: float
    saved: float
    left_out: int = 0

    def save(self) -> None:
        """Write a checkpoint; process 0 alone does."""
        self.saved = time.monotonic()
        spent_s = self.state.seconds + self.saved - self.begun
        if rank() == 0:
            save_checkpoint(
                self.directory / CHECKPOINT,
                state=replace(self.state, seconds=spent_s),
                model=self.model,
                average=self.average,
                layers=self.stepper.objective.layers,
                optimizer=self.stepper.optimizer,
                scaler=self.stepper.scaler,
                loader_state=self.loader.state(),
                device=self.device,
            )


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
    say: Callable[[str], None] = lambda _text: None,
) -> FitResult:
    """Train a model, or go on with an interrupted training.

    In several processes each calls this with its own part of every batch; process 0 alone writes and
    validates, and all return the same.

    Args:
        model: Trained in place; at the end it holds the weights of the best validation.
        objective: What is minimised.
        loader: Gives the batches.
        settings: How to train.
        evaluate: Model in eval mode to its validation mIoU, 0 to 1.
        names: The samples' names by index, for messages.
        directory: Where `checkpoint.safetensors`, `best.safetensors`, `metrics.jsonl`,
            `step_time.json` and `tensorboard/` lie.
        key: Fingerprint of everything that decides the outcome.
        seed: Seed of torch's generator (dropout).
        device: Where to train.
        title: Title of the progress bar.
        stop: Asked between steps; a request saves a checkpoint first.
        say: Shows a line to the user.

    Raises:
        TrainingError: A loss term is not finite, or a checkpoint is damaged.
        InterruptedRunError: A stop was requested.
    """
    training = _prepare(model, objective, loader, settings, directory, key, seed, device)
    total = settings.epochs * loader.steps_per_epoch
    if training.state.step:
        say(f"      {title}: goes on at step {training.state.step} of {total}")
    with stop.cooperative(), _writing(training, total, title) as (bar, records):
        while _between_steps(training, settings, evaluate, records, bar, stop, title, total):
            _step(training, settings, names, device, records, bar, total)
            parts = training.stepper.clock.next_step()
            if parts is not None and rank() == 0:
                write_json_atomic(directory / "step_time.json", {"seconds": parts, "processes": world()})
                say(f"      {title}: {describe_step(parts, on_gpu=device.type == 'cuda')}")
    training.save()
    if _any(stop.requested):
        raise InterruptedRunError(f"{title}: stopped after its last step; run it again to go on")
    if training.state.best_step == 0:
        raise TrainingError(f"{title}: the validation split has no labelled pixel, so that no weights could be chosen")
    # what process 0 wrote is there for all once it has come here
    broadcast_object()
    best = load_weights(directory / "best.safetensors", model)
    earlier_s = training.state.seconds
    return FitResult(miou=float(best["miou"]), step=int(best["step"]), steps=total, earlier_s=earlier_s)


def _prepare(
    model: nn.Module,
    objective: Objective,
    loader: TrainLoader,
    settings: TrainSettings,
    directory: Path,
    key: str,
    seed: int,
    device: torch.device,
) -> _Training:
    begun = time.monotonic()
    directory.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    average = copy.deepcopy(model) if settings.ema > 0 else None
    for module in (model, objective.layers, *([average] if average is not None else [])):
        module.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    if average is not None:
        average.eval().requires_grad_(False)
    copy_from_first(objective.layers)
    share_batch_statistics(model.train(), device)
    share_batch_statistics(objective.layers.train(), device)
    stepper = _stepper(model, objective, settings, device)
    training = _Training(model, average, stepper, loader, TrainState(key=key), directory, device, begun, begun)
    if rank() == 0:
        for leftover in directory.glob(".*.safetensors"):
            # what a killed process was writing
            leftover.unlink()
    restored = restore_checkpoint(
        directory / CHECKPOINT,
        key=key,
        model=model,
        average=average,
        layers=objective.layers,
        optimizer=stepper.optimizer,
        scaler=stepper.scaler,
        device=device,
    )
    # every process has read before the first one changes anything
    gather_objects(None)
    if restored is None:
        if rank() == 0:
            set_aside(directory)
    else:
        training.state, loader_state = restored
        loader.restore(loader_state)
        if rank() == 0:
            drop_records_after(directory, step=training.state.step, validated_step=training.state.validated_step)
    if rank() > 0:
        # dropout must differ between the processes; process 0 keeps the stream that a single one would have
        torch.manual_seed(seed * 1_000_003 + training.state.step * 1009 + rank())
    return training


def _stepper(model: nn.Module, objective: Objective, settings: TrainSettings, device: torch.device) -> Stepper:
    dtype = amp_dtype(settings.precision, device)
    # in several processes the terms exchange sums
    recorded = device.type == "cuda" and world() == 1 and bool(objective.recordable)
    return Stepper(
        forward=parallel_forward(model, objective.forward, device, objective.strides),
        model=model,
        objective=objective,
        optimizer=make_optimizer(
            model,
            lr=settings.lr,
            encoder_lr_factor=settings.encoder_lr_factor,
            weight_decay=settings.weight_decay,
            layers=objective.layers,
        ),
        scaler=torch.amp.GradScaler(device.type, enabled=dtype == torch.float16),
        clock=StepClock(device),
        dtype=dtype,
        accumulate=settings.accumulate,
        grad_clip=settings.grad_clip,
        graphs=StepGraphs() if recorded else None,
    )


@contextmanager
def _writing(training: _Training, total: int, title: str) -> Iterator[tuple[Any, Records | None]]:
    """Yield the progress bar and the records; in other processes than the first, nothing."""
    if rank() > 0:
        yield None, None
        return
    with (
        open_records(training.directory, step=training.state.step) as records,
        progress_bar(total, title, unit="step", initial=training.state.step) as bar,
    ):
        yield bar, records


def _between_steps(
    training: _Training,
    settings: TrainSettings,
    evaluate: Callable[[nn.Module], float],
    records: Records | None,
    bar: Any,
    stop: Stop,
    title: str,
    total: int,
) -> bool:
    """Save and validate where it is time to; return whether there is a step to do."""
    step, an_epoch = training.state.step, training.loader.steps_per_epoch
    # also after the first epoch: what is wrong with a training should show early
    due = step > training.state.validated_step and (
        step % (settings.validate_every * an_epoch) == 0 or step in (an_epoch, total)
    )
    # a validation may take long, and is owed after an interruption: save before it
    wait_s = min(settings.checkpoint_s, _UNSAVED_S) if due else settings.checkpoint_s
    stopping = _any(stop.requested)
    if stopping or (rank() == 0 and time.monotonic() - training.saved > wait_s):
        training.save()
    if stopping:
        raise InterruptedRunError(f"{title}: stopped at step {step} of {total}; run it again to go on")
    if due:
        if bar is not None:
            bar.set_postfix_str("validating")
        miou = _validate(training, evaluate)
        if bar is not None:
            bar.set_postfix_str(f"mIoU {miou:.3f}")
        if records is not None:
            records.write({"step": step, "epoch": step / an_epoch, "miou": miou})
    return step < total


def _step(
    training: _Training,
    settings: TrainSettings,
    names: Sequence[str],
    device: torch.device,
    records: Records | None,
    bar: Any,
    total: int,
) -> None:
    stepper, step = training.stepper, training.state.step
    lr = learning_rate(step, total, highest=settings.lr, schedule=settings.schedule, warmup=settings.warmup)
    for group in stepper.optimizer.param_groups:
        group["lr"] = lr * group["lr_factor"]
    with stepper.clock.part("data"):
        batch = training.loader.next_batch()
        images = batch.images.to(device=device, memory_format=torch.channels_last, non_blocking=True)
        labels = batch.labels.to(device=device, non_blocking=True)
        jitter = None if batch.jitter is None else batch.jitter.to(device=device, non_blocking=True)
    values = stepper.gradients(images, labels, step / total, jitter)
    terms = dict(zip(stepper.names, _mean_over_processes(values), strict=True))
    _require_finite(training, terms, batch, names)
    _count_left_out(training, stepper.update(), batch, names)
    if training.average is not None:
        with stepper.clock.part("update"):
            update_average(training.average, training.model, settings.ema, step)
    step += 1
    training.state = replace(training.state, step=step)
    if records is None:
        return
    bar.update(1)
    if step % _STEPS_BETWEEN_RECORDS == 0 or step == total:
        records.write({"step": step, "epoch": step / training.loader.steps_per_epoch, "lr": lr, "loss": terms})
        bar.set_postfix_str(f"loss {sum(terms.values()):.3f}")


def _mean_over_processes(values: Tensor) -> list[float]:
    rows = gather_objects(values.tolist())
    return [sum(column) / len(rows) for column in zip(*rows, strict=True)]


def _any(flag: bool) -> bool:
    """Return whether any process says so: a signal may have reached only one of them."""
    return any(gather_objects(flag))


def _require_finite(training: _Training, terms: dict[str, float], batch: Batch, names: Sequence[str]) -> None:
    bad = next((name for name, value in terms.items() if not math.isfinite(value)), None)
    if bad is not None:
        raise TrainingError(
            f"loss term {bad!r} became {terms[bad]} {_where(training, batch, names)}. "
            "Lower the learning rate or the term's weight, or look at those files"
        )


def _count_left_out(training: _Training, applied: bool, batch: Batch, names: Sequence[str]) -> None:
    """Refuse to go on where gradients stay infinite; trying out the scale of half precision takes a few steps."""
    training.left_out = 0 if applied else training.left_out + 1
    limit = _LEFT_OUT_MAX if training.stepper.scaler.is_enabled() else 1
    if training.left_out >= limit:
        raise TrainingError(
            f"the gradient is not finite {_where(training, batch, names)}. "
            "Lower the learning rate, or train with precision fp32 or bf16"
        )


def _where(training: _Training, batch: Batch, names: Sequence[str]) -> str:
    """Return at which step and on which files something went wrong in any process, and what is left."""
    files = ", ".join(names[index] for indices in gather_objects(batch.indices) for index in indices)
    saved = (training.directory / CHECKPOINT).exists()
    kept = "the last checkpoint is kept" if saved else "there is no checkpoint yet"
    return f"at step {training.state.step}, on {files}; {kept}"


def _validate(training: _Training, evaluate: Callable[[nn.Module], float]) -> float:
    candidate = training.average if training.average is not None else training.model
    miou = 0.0
    if rank() == 0:
        candidate.eval()
        with torch.no_grad():
            miou = evaluate(candidate)
        training.model.train()
    miou = float(broadcast_object(miou))
    step = training.state.step
    training.state = replace(training.state, validated_step=step)
    if miou > training.state.best_miou:
        if rank() == 0:
            save_weights(training.directory / "best.safetensors", candidate, {"step": str(step), "miou": repr(miou)})
        training.state = replace(training.state, best_miou=miou, best_step=step)
    return miou
