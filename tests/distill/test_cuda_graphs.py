from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, is_dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from brd_edge.distill import cuda_graphs
from brd_edge.distill.clock import StepClock
from brd_edge.distill.cuda_graphs import StepGraphs
from brd_edge.distill.objective import StudentView, distillation
from brd_edge.distill.overlap import label_overlap_loss
from brd_edge.distill.step import Stepper
from brd_edge.distill.supervised import cross_entropy
from brd_edge.models.segmentation import ModelSpec, build_model, forward_features
from brd_edge.recipe_training import DistillSection, TrainSection
from brd_edge.stages.training import distill_settings

METHODS = ("none", "kd", "skd", "cwd", "cirkd", "boundary", "relation", "brd")
# convolutions may choose other algorithms, and pooling adds in another order
TOLERANCE = {"cpu": 1e-5, "cuda": 2e-3}


class _Rerun:
    """What a recorded graph does, without a GPU: the work again, its results in the same memory."""

    def __init__(self, work: Callable[[], Any], result: Any) -> None:
        self.work, self.result = work, result

    def replay(self) -> None:
        for old, new in zip(_tensors(self.result), _tensors(self.work()), strict=True):
            # a graph's backward pass reads what its forward pass has just left
            _cut_off(old).copy_(new)


def _cut_off(tensor: Tensor) -> Tensor:
    return tensor.detach_() if tensor.requires_grad else tensor


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if is_dataclass(value):
        return [tensor for field in fields(value) for tensor in _tensors(getattr(value, field.name))]
    if isinstance(value, dict):
        value = tuple(value.values())
    return [tensor for part in value if part is not None for tensor in _tensors(part)]


@pytest.fixture(params=["cpu", "cuda"])
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> torch.device:
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("torch finds no GPU here")
    if request.param == "cpu":

        def record(work: Callable[[], Any]) -> tuple[_Rerun, Any]:
            result = work()
            # a replay must bring the values, not the recording
            for tensor in _tensors(result):
                _cut_off(tensor).fill_(torch.nan)
            return _Rerun(work, result), result

        monkeypatch.setattr(cuda_graphs, "_record", record)
    return torch.device(request.param)


def _stepper(
    method: str,
    device: torch.device,
    *,
    graphs: bool,
    accumulate: int = 1,
    dtype: torch.dtype = torch.float32,
    scale: int = 1,
    statistics: bool = False,
    student_view: StudentView | None = None,
    scaled: bool = False,
) -> Stepper:
    def model(arch: str, encoder: str, **options: object) -> nn.Module:
        built = build_model(ModelSpec(arch, encoder, 3, dict(options)), encoder_weights=None, seed=0)
        return built.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]

    teacher = model("FPN", "resnet18")
    student = model("DeepLabV3Plus", "tu-mobilenetv3_small_050", decoder_channels=32).train(statistics)
    section = DistillSection.model_validate({"train": TrainSection(epochs=1), "method": method})
    settings = distill_settings(section)
    objective = distillation(
        teacher,
        student,
        settings,
        lambda z, y: cross_entropy(z, y, None),
        classes=3,
        label_terms={"overlap": (0.5, label_overlap_loss)},
        static_loss=True,
        teacher_scale=scale,
        student_view=student_view,
    )
    objective.layers.to(device)
    return Stepper(
        forward=lambda images: forward_features(student, images),
        model=student,
        objective=objective,
        optimizer=torch.optim.SGD(student.parameters(), lr=0.005),
        # another scale after every step
        scaler=torch.amp.GradScaler(device.type, init_scale=64.0, growth_interval=1, enabled=scaled),
        clock=StepClock(device),
        dtype=dtype,
        accumulate=accumulate,
        grad_clip=0.0,
        graphs=StepGraphs() if graphs else None,
    )


def _train(stepper: Stepper, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Return the losses of three steps, and the gradients and the statistics after the last one."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(1)
    values = []
    for step in range(3):
        images = torch.randn(4, 3, 64, 96, generator=generator).contiguous(memory_format=torch.channels_last)
        labels = torch.randint(0, 3, (4, 8, 12), generator=generator)
        labels = labels.repeat_interleave(8, 1).repeat_interleave(8, 2)
        labels[:, :8] = 255
        jitter = torch.full((4, 3), 1.5 + step / 2)
        values.append(stepper.gradients(images.to(device), labels.to(device), step / 3, jitter.to(device)))
        stepper.update()
    gradients = [parameter.grad.flatten() for parameter in stepper.model.parameters() if parameter.grad is not None]
    buffers = [buffer.flatten().float() for buffer in stepper.model.buffers()]
    return torch.stack(values).cpu(), torch.cat(gradients).cpu(), torch.cat(buffers).cpu()


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("method", METHODS)
def test_recorded_steps_are_the_same(device: torch.device, method: str, accumulate: int) -> None:
    both = [_train(_stepper(method, device, graphs=graphs, accumulate=accumulate), device) for graphs in (False, True)]

    (losses, gradients, _), (recorded_losses, recorded_gradients, _) = both
    tolerance = TOLERANCE[device.type]
    torch.testing.assert_close(recorded_losses, losses, rtol=tolerance, atol=tolerance)
    assert float((recorded_gradients - gradients).norm() / gradients.norm()) <= tolerance * 5
    assert len(losses[0]) >= (1 if method == "none" else 2)
    assert not torch.equal(losses[0], losses[2]), "the replay must read the new batch"


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_scaled_loss_is_the_same(device: torch.device, accumulate: int) -> None:
    # in float32 a scale that is a power of two changes no rounding
    losses, gradients, _ = _train(_stepper("brd", device, graphs=False, accumulate=accumulate), device)
    stepper = _stepper("brd", device, graphs=True, accumulate=accumulate, scaled=True)
    recorded_losses, recorded_gradients, _ = _train(stepper, device)

    assert stepper.scaler.get_scale() == 64 * 2**3
    tolerance = TOLERANCE[device.type]
    torch.testing.assert_close(recorded_losses, losses, rtol=tolerance, atol=tolerance)
    assert float((recorded_gradients - gradients).norm() / gradients.norm()) <= tolerance * 5


def test_a_recording_leaves_no_trace_in_statistics_and_random_numbers(device: torch.device) -> None:
    found, recorded = (
        _train(_stepper("none", device, graphs=graphs, statistics=True), device) for graphs in (False, True)
    )

    # statistics of few values amplify what rounding leaves; dropout and the counted batches would differ by far more
    torch.testing.assert_close(recorded[0], found[0], rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(recorded[2], found[2], rtol=1e-2, atol=1e-2)


def test_recorded_steps_of_a_teacher_that_sees_more(device: torch.device) -> None:
    both = [_train(_stepper("brd", device, graphs=graphs, scale=2), device)[0] for graphs in (False, True)]

    torch.testing.assert_close(both[1], both[0], rtol=TOLERANCE[device.type], atol=TOLERANCE[device.type])


@pytest.mark.parametrize("scale", [1, 2])
def test_recorded_steps_of_a_student_that_sees_other_colours(device: torch.device, scale: int) -> None:
    def view(images: Tensor, jitter: Tensor) -> Tensor:
        return images * jitter[:, :, None, None]

    both = [
        _train(_stepper("brd", device, graphs=graphs, scale=scale, student_view=view), device)[0]
        for graphs in (False, True)
    ]
    same = _train(_stepper("brd", device, graphs=False, scale=scale), device)[0]

    torch.testing.assert_close(both[1], both[0], rtol=TOLERANCE[device.type], atol=TOLERANCE[device.type])
    assert not torch.allclose(both[0], same, rtol=TOLERANCE[device.type], atol=TOLERANCE[device.type])


def test_recorded_steps_in_bfloat16(device: torch.device) -> None:
    both = [_train(_stepper("brd", device, graphs=graphs, dtype=torch.bfloat16), device)[0] for graphs in (False, True)]

    torch.testing.assert_close(both[1], both[0], rtol=0.02, atol=0.02)


def test_a_held_tensor_keeps_its_place_and_its_layout() -> None:
    graphs = StepGraphs()
    first = torch.randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last)

    held = graphs.hold("images", first)
    again = graphs.hold("images", first + 1)

    assert again is held
    assert held.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(held, first + 1)
    assert not torch.equal(first, held), "the values that were given are left alone"
