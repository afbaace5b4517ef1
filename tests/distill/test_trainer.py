from __future__ import annotations

import json
import math
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from full_disk import full_disk
from made_stepper import made_stepper
from made_training import (
    SETTINGS,
    CountedLoader,
    assert_same_end,
    cross_entropy,
    fit_made,
    made_features,
    made_model,
    made_objective,
)
from safetensors.torch import save_file
from torch import Tensor, nn

from brd_edge.data.loader import Batch
from brd_edge.distill import step
from brd_edge.distill.checkpoint import TrainState, load_tensors, restore_checkpoint, save_checkpoint
from brd_edge.distill.schedule import learning_rate, make_optimizer
from brd_edge.distill.trainer import FitResult
from brd_edge.interrupt import Stop
from brd_edge.models.segmentation import Features
from brd_edge.runtime.errors import InterruptedRunError, TrainingError


class _LoaderWithJitter(CountedLoader):
    """The same batches with factors of colour beside them."""

    def next_batch(self) -> Batch:
        return replace(super().next_batch(), jitter=torch.full((2, 4), 3.0))


def test_the_best_validation_decides(tmp_path: Path) -> None:
    scores = iter([0.3, 0.6, 0.4, 0.5])
    seen: list[dict[str, Tensor]] = []

    def evaluate(model: nn.Module) -> float:
        assert not model.training
        seen.append({name: value.clone() for name, value in model.state_dict().items()})
        return next(scores)

    model, result = fit_made(tmp_path, evaluate=evaluate)

    assert result == FitResult(miou=0.6, step=6, steps=12)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, seen[1][name], rtol=0, atol=0)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [line["miou"] for line in lines if "miou" in line] == [0.3, 0.6, 0.4, 0.5]
    assert all(math.isfinite(line["loss"]["ce"]) for line in lines if "loss" in line)


def test_of_equal_validations_the_first_decides_and_training_goes_on_in_its_mode(tmp_path: Path) -> None:
    """Without a running average it is the model itself that is validated, with its dropout off."""
    scores = iter([0.6, 0.6, 0.5, 0.5])

    def forward(model: nn.Module, images: Tensor) -> Features:
        assert model.training
        return made_features(model, images)

    objective, settings = replace(made_objective(), forward=forward), replace(SETTINGS, ema=0.0)
    _, result = fit_made(tmp_path, objective=objective, settings=settings, evaluate=lambda _model: next(scores))

    assert result == FitResult(miou=0.6, step=3, steps=12)


def test_the_encoder_has_its_own_learning_rate(tmp_path: Path) -> None:
    before = dict(made_model().named_parameters())

    trained, _ = fit_made(tmp_path, settings=replace(SETTINGS, encoder_lr_factor=0.0))

    moved = {name for name, value in trained.named_parameters() if not torch.equal(value, before[name])}
    assert moved == {"head.weight", "head.bias"}


def test_the_first_epoch_is_validated_however_rarely_the_others_are(tmp_path: Path) -> None:
    fit_made(tmp_path, settings=replace(SETTINGS, epochs=5, validate_every=4))

    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [line["step"] for line in lines if "miou" in line] == [3, 12, 15]


def test_the_running_average_is_what_is_validated(tmp_path: Path) -> None:
    """Against the formula in float64: `a <- d a + (1 - d) w`, d being at most `ema` and small at first."""
    weights: list[dict[str, np.ndarray]] = []
    validated: list[dict[str, np.ndarray]] = []

    def state(model: nn.Module) -> dict[str, np.ndarray]:
        return {name: value.double().numpy().copy() for name, value in model.state_dict().items()}

    class Watching(CountedLoader):
        def next_batch(self) -> Batch:
            weights.append(state(model))
            return super().next_batch()

    def evaluate(average: nn.Module) -> float:
        validated.append(state(average))
        return 0.5

    model = made_model()
    fit_made(
        tmp_path, model=model, loader=Watching(), settings=replace(SETTINGS, epochs=3, ema=0.15), evaluate=evaluate
    )

    expected = weights[0]
    for done in range(6):
        decay = min(0.15, (done + 1) / (done + 10))
        after = weights[done + 1]
        expected = {
            name: after[name] if name.endswith("num_batches_tracked") else decay * old + (1 - decay) * after[name]
            for name, old in expected.items()
        }
    assert list(validated[1]) == list(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(validated[1][name], value, rtol=1e-5, atol=1e-7, err_msg=name)
    assert any("running_var" in name for name in expected)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_teacher_sees_the_frames_own_colours(tmp_path: Path, accumulate: int) -> None:
    taught: list[Tensor] = []

    def term(theirs: Features, mine: Features, _labels: Tensor) -> Tensor:
        # the teacher of these tests gives back what it sees
        taught.append(theirs.logits.clone())
        return mine.logits.sum() * 0

    seen: list[Tensor] = []

    def features(model: nn.Module, images: Tensor) -> Features:
        seen.append(images.clone())
        return made_features(model, images)

    view = replace(made_objective(term=term), student_view=lambda images, factors: images * factors[:, :3, None, None])
    settings = replace(SETTINGS, epochs=1, accumulate=accumulate)
    fit_made(tmp_path, objective=replace(view, forward=features), settings=settings, loader=_LoaderWithJitter())

    loader = CountedLoader()
    frames = torch.cat([loader.next_batch().images for _ in range(3)])
    torch.testing.assert_close(torch.cat(taught), frames, rtol=0, atol=0)
    torch.testing.assert_close(torch.cat(seen), 3 * frames, rtol=0, atol=0)


def test_the_time_of_every_part_is_counted(tmp_path: Path) -> None:
    """The checkpoint of a part without a count, as there were before, counts as nothing."""
    stop, steps = Stop(), 0

    def slow(logits: Tensor, labels: Tensor) -> Tensor:
        nonlocal steps
        steps += 1
        stop.requested = steps in {4, 7}
        time.sleep(0.05)
        return cross_entropy(logits, labels)

    def seconds() -> float:
        spent = json.loads(load_tensors(checkpoint)[1]["state"])["seconds"]
        assert isinstance(spent, float)
        return spent

    checkpoint = tmp_path / "checkpoint.safetensors"
    for least in (0.2, 0.35):
        with pytest.raises(InterruptedRunError):
            fit_made(tmp_path, objective=made_objective(slow), stop=stop)
        stop.requested = False
        assert seconds() >= least
    before = seconds()
    _, result = fit_made(tmp_path, objective=made_objective(slow))
    assert result.earlier_s == before
    assert seconds() >= before + 0.25

    tensors, metadata = load_tensors(checkpoint)
    state = {name: value for name, value in json.loads(metadata["state"]).items() if name != "seconds"}
    save_file(tensors, checkpoint, {**metadata, "state": json.dumps(state)})
    _, result = fit_made(tmp_path)
    assert result.earlier_s == 0.0


def test_terms_are_weighted_and_follow_the_curriculum(tmp_path: Path) -> None:
    objective = replace(
        made_objective(
            cross_entropy, extra=lambda _theirs, mine, _labels: mine.logits.new_ones(()) + 0 * mine.logits.sum()
        ),
        curriculum=lambda done: 1 - done,
    )
    objective = replace(objective, terms={"extra": (3.0, objective.terms["extra"][1])})

    fit_made(tmp_path, objective=objective)

    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    found = {line["step"]: line["loss"]["extra"] for line in lines if "loss" in line}
    # a record describes the step before its number, of 12
    assert found == pytest.approx({10: 3 * (1 - 9 / 12), 12: 3 * (1 - 11 / 12)})


def test_the_gradient_is_that_of_the_sum() -> None:
    """Every loss is differentiated on its own; together that must be the gradient of their sum."""
    model = made_model().eval()
    objective = made_objective(cross_entropy, square=lambda _theirs, mine, _labels: mine.coarse_logits.square().mean())
    objective = replace(objective, label_terms={"known": (0.5, lambda logits, labels: (logits[:, 0] * labels).mean())})
    images, labels = torch.randn(4, 3, 8, 8), torch.randint(0, 2, (4, 8, 8))

    def features(batch: torch.Tensor) -> Features:
        return replace(made_features(model, batch), coarse_logits=nn.functional.avg_pool2d(model(batch), 2))

    stepper = made_stepper(model, features, objective, accumulate=2)

    values = stepper.gradients(images, labels, 0.0)
    found = [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]
    model.zero_grad()
    logits = model(images)
    terms = [cross_entropy(logits, labels), 0.5 * (logits[:, 0] * labels).mean()]
    terms.append(nn.functional.avg_pool2d(logits, 2).square().mean())
    torch.stack(terms).sum().backward()

    assert stepper.names == ["ce", "known", "square"]
    torch.testing.assert_close(values, torch.stack(terms).detach())
    for mine, parameter in zip(found, model.parameters(), strict=True):
        torch.testing.assert_close(mine, parameter.grad)


@pytest.mark.parametrize("limit", [0.0, 1e-3])
def test_gradients_are_clipped_to_a_norm(limit: float) -> None:
    """Those of the student, and those of the layers that only its training has, each on their own."""
    model, layers = made_model(), nn.ModuleDict({"project": nn.Conv2d(2, 2, 1)})
    parts = [list(part.parameters()) for part in (model, layers)]
    before = [[parameter.detach().clone() for parameter in parameters] for parameters in parts]

    def term(_theirs: Features, mine: Features, _labels: Tensor) -> Tensor:
        return (layers["project"](mine.logits) - 1).square().mean()

    objective = replace(made_objective(term=term), layers=layers)
    stepper = made_stepper(model, lambda images: made_features(model, images), objective, lr=1.0, grad_clip=limit)

    stepper.gradients(torch.randn(4, 3, 8, 8), torch.randint(0, 2, (4, 8, 8)), 0.0)
    whole = [_norm([p.grad for p in parameters if p.grad is not None]) for parameters in parts]
    assert stepper.update()

    moved = [
        _norm([now.detach() - old for now, old in zip(*pair, strict=True)]) for pair in zip(parts, before, strict=True)
    ]
    assert min(whole) > 0.01
    assert moved == pytest.approx([limit or norm for norm in whole], rel=1e-3)


def _norm(values: list[Tensor]) -> float:
    return math.sqrt(sum(float(value.square().sum()) for value in values))


@pytest.mark.parametrize(
    ("kind", "bf16", "expected"),
    [
        ("cuda", True, torch.bfloat16),
        ("cuda", False, torch.float16),
        ("cpu", True, torch.bfloat16),
        ("cpu", False, torch.float32),
    ],
)
def test_the_precision_of_the_device(
    kind: str, bf16: bool, expected: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which formats there are is the device's; what is made of it is ours."""
    monkeypatch.setattr(step, "fast_bf16", lambda _device: bf16)

    assert step.amp_dtype("auto", torch.device(kind)) == expected
    assert step.amp_dtype("fp16", torch.device(kind)) == torch.float16


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_reduced_precision_trains_and_resumes(tmp_path: Path, precision: str) -> None:
    settings = replace(SETTINGS, precision=precision)
    fit_made(tmp_path / "whole", settings=settings)
    stop = Stop()
    calls = 0

    def stopping(logits: Tensor, labels: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        stop.requested = calls == 7
        assert logits.dtype == {"bf16": torch.bfloat16, "fp16": torch.float16}[precision]
        return cross_entropy(logits.float(), labels)

    with pytest.raises(InterruptedRunError):
        fit_made(tmp_path / "parts", objective=made_objective(stopping), settings=settings, stop=stop)
    fit_made(tmp_path / "parts", settings=settings)

    trained, _ = load_tensors(tmp_path / "whole" / "checkpoint.safetensors")
    assert all(not torch.equal(trained[f"model/{name}"], first) for name, first in made_model().named_parameters())
    assert_same_end(tmp_path / "whole", tmp_path / "parts")


def test_gradients_that_stay_infinite_stop_the_training(tmp_path: Path) -> None:
    def broken(_theirs: Features, mine: Features, _labels: Tensor) -> Tensor:
        # the value is finite, the gradient is not
        return (mine.logits.square().sum() * 0).sqrt()

    with pytest.raises(TrainingError, match=r"the gradient is not finite at step 0, on file1\.png, file2\.png"):
        fit_made(tmp_path, objective=made_objective(broken=broken))


def test_half_precision_leaves_out_steps_but_not_fifty_in_a_row(tmp_path: Path) -> None:
    def overflowing(_theirs: Features, mine: Features, _labels: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        total = mine.logits.float().square().sum() * 0
        return total.sqrt() if calls in bad else total

    objective = made_objective(overflowing=overflowing)
    settings = replace(SETTINGS, epochs=34, precision="fp16", validate_every=34)
    calls, bad = 0, {*range(1, 50), *range(51, 100)}
    fit_made(tmp_path / "ends", objective=objective, settings=settings)
    assert calls == 102

    calls, bad = 0, {*range(11, 61)}
    with pytest.raises(TrainingError, match="the gradient is not finite at step 59, on "):
        fit_made(tmp_path / "stops", objective=objective, settings=settings)


def test_step_times_and_curves_are_written(tmp_path: Path) -> None:
    lines: list[str] = []
    objective = made_objective(relation=lambda _theirs, mine, _labels: mine.logits.square().mean())
    fit_made(tmp_path, objective=objective, settings=replace(SETTINGS, epochs=9), say=lines.append)

    seconds = json.loads((tmp_path / "step_time.json").read_text(encoding="utf-8"))["seconds"]
    assert list(seconds) == ["data", "teacher", "student", "ce", "relation", "update"]
    assert all(0 < value < 1 for value in seconds.values())
    assert "ms a step: data " in lines[0]
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    for name in ("ce", "relation"):
        assert [event.step for event in board.Scalars(f"loss/{name}")] == [10, 20, 27]
    assert [event.value for event in board.Scalars("miou")] == [0.5] * 9


def test_a_checkpoint_of_other_settings_is_not_used(tmp_path: Path) -> None:
    fit_made(tmp_path / "first", key="old")
    fit_made(tmp_path / "again", key="other", settings=replace(SETTINGS, lr=0.02))
    with pytest.raises(AssertionError):
        assert_same_end(tmp_path / "first", tmp_path / "again")
    fit_made(tmp_path / "again", key="old")

    assert_same_end(tmp_path / "first", tmp_path / "again")


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_term_that_is_not_finite_stops_and_is_named(tmp_path: Path, bad: float) -> None:
    """The last checkpoint is one from before it; once the cause is mended, the training ends as if nothing had been."""

    def relation(_theirs: Features, mine: Features, _labels: Tensor) -> Tensor:
        nonlocal steps
        steps += 1
        return mine.logits.square().mean() * (bad if steps == broken else 1)

    settings = replace(SETTINGS, checkpoint_s=0.0)
    steps, broken = 0, 8
    with pytest.raises(TrainingError) as caught:
        fit_made(tmp_path / "parts", objective=made_objective(relation=relation), settings=settings)

    assert "'relation'" in str(caught.value)
    assert "at step 7, on file8.png, file9.png; the last checkpoint is kept" in str(caught.value)
    assert (tmp_path / "parts" / "best.safetensors").is_file()
    tensors, metadata = load_tensors(tmp_path / "parts" / "checkpoint.safetensors")
    assert json.loads(metadata["state"])["step"] == 7
    assert all(torch.isfinite(values.float()).all() for values in tensors.values())

    broken = 0
    fit_made(tmp_path / "parts", objective=made_objective(relation=relation), settings=settings)
    fit_made(tmp_path / "whole", objective=made_objective(relation=relation), settings=settings)
    assert_same_end(tmp_path / "whole", tmp_path / "parts")


def test_that_there_is_no_checkpoint_is_said(tmp_path: Path) -> None:
    def bad(_theirs: Features, mine: Features, _labels: Tensor) -> Tensor:
        return mine.logits.mean() * math.nan

    with pytest.raises(TrainingError, match=r"'bad' became nan at step 0, on .*; there is no checkpoint yet\."):
        fit_made(tmp_path, objective=made_objective(bad=bad))


def test_lost_best_weights_are_named_with_what_looks_for_them(tmp_path: Path) -> None:
    fit_made(tmp_path)
    (tmp_path / "best.safetensors").unlink()

    with pytest.raises(TrainingError, match=r"best\.safetensors: .* delete it and checkpoint\.safetensors beside it"):
        fit_made(tmp_path)
    (tmp_path / "checkpoint.safetensors").unlink()
    fit_made(tmp_path)


class _LoaderThatGrows(CountedLoader):
    """Its state takes up much room from the eighth batch on."""

    def state(self) -> bytes:
        return super().state() + b" " * (100_000 if self._next > 7 else 0)


def test_a_full_disk_is_named_and_the_last_checkpoint_kept(tmp_path: Path) -> None:
    settings = replace(SETTINGS, checkpoint_s=0.0)
    with (
        full_disk(50_000),
        pytest.raises(TrainingError, match=r"/checkpoint\.safetensors: cannot be written \(.*too large.*free space"),
    ):
        fit_made(tmp_path / "parts", loader=_LoaderThatGrows(), settings=settings)
    _, metadata = load_tensors(tmp_path / "parts" / "checkpoint.safetensors")
    assert json.loads(metadata["state"])["step"] == 7
    assert not list((tmp_path / "parts").glob(".*")), "no part of a file is left"

    fit_made(tmp_path / "parts", loader=_LoaderThatGrows(), settings=settings)
    fit_made(tmp_path / "whole", loader=_LoaderThatGrows(), settings=settings)
    assert_same_end(tmp_path / "whole", tmp_path / "parts")


def test_a_damaged_checkpoint_is_named(tmp_path: Path) -> None:
    (tmp_path / "checkpoint.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{not json at all")

    with pytest.raises(TrainingError, match=r"checkpoint\.safetensors: cannot be read"):
        fit_made(tmp_path)


def test_a_checkpoint_holds_no_pickle_and_every_state(tmp_path: Path) -> None:
    fit_made(tmp_path)

    tensors, metadata = load_tensors(tmp_path / "checkpoint.safetensors")
    assert json.loads(metadata["state"])["step"] == 12
    assert {name.split("/")[0] for name in tensors} >= {"model", "average", "optimizer", "random", "loader"}


def test_a_training_on_the_cpu_leaves_a_gpu_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def touched(*_arguments: object) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_rng_state", touched)
    monkeypatch.setattr(torch.cuda, "set_rng_state", touched)
    path, model = tmp_path / "checkpoint.safetensors", made_model()
    kept: dict[str, Any] = {
        "model": model,
        "average": None,
        "layers": nn.ModuleDict(),
        "optimizer": torch.optim.SGD(model.parameters()),
        "scaler": torch.amp.GradScaler("cpu", enabled=False),
        "device": torch.device("cpu"),
    }
    save_checkpoint(path, state=TrainState("key", step=5), loader_state=b"7", **kept)
    tensors, metadata = load_tensors(path)
    assert "random/cuda" not in tensors

    # as a training on a GPU would have left it
    save_file({**tensors, "random/cuda": torch.zeros(16, dtype=torch.uint8)}, path, metadata)
    assert restore_checkpoint(path, key="key", **kept) == (TrainState("key", step=5), b"7")


def test_the_scale_of_half_precision_is_kept(tmp_path: Path) -> None:
    def kept(scaler: torch.amp.GradScaler) -> dict[str, Any]:
        model = made_model()
        optimizer = torch.optim.SGD(model.parameters())
        return {
            "model": model,
            "average": None,
            "layers": nn.ModuleDict(),
            "optimizer": optimizer,
            "scaler": scaler,
            "device": torch.device("cpu"),
        }

    scalers = [torch.amp.GradScaler("cpu", init_scale=scale) for scale in (128.0, 65536.0)]
    path = tmp_path / "checkpoint.safetensors"
    save_checkpoint(path, state=TrainState("key"), loader_state=b"7", **kept(scalers[0]))
    restore_checkpoint(path, key="key", **kept(scalers[1]))

    assert scalers[1].get_scale() == 128.0


def test_schedules() -> None:
    rates = [learning_rate(s, 100, highest=2.0, schedule="poly", warmup=0.1) for s in range(100)]
    reference = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=2.0)
    schedule = torch.optim.lr_scheduler.PolynomialLR(reference, total_iters=90, power=0.9)
    expected = []
    for _ in range(90):
        expected.append(reference.param_groups[0]["lr"])
        reference.step()
        schedule.step()

    np.testing.assert_allclose(rates[:10], np.arange(1, 11) * 0.2)
    np.testing.assert_allclose(rates[10:], expected, rtol=1e-9)
    assert learning_rate(55, 100, highest=2.0, schedule="cosine", warmup=0.1) == pytest.approx(1.0)
    # a tenth of 15 steps are 2, not 1
    assert [learning_rate(step, 15, highest=2.0, schedule="poly", warmup=0.1) for step in (0, 1)] == [1.0, 2.0]


def test_optimizer_groups() -> None:
    optimizer = make_optimizer(made_model(), lr=0.1, encoder_lr_factor=0.5, weight_decay=0.01)

    found = {
        (group["lr_factor"], group["weight_decay"]): sum(p.numel() for p in group["params"])
        for group in optimizer.param_groups
    }
    assert found == {(0.5, 0.01): 108, (0.5, 0.0): 12, (1.0, 0.01): 8, (1.0, 0.0): 2}
