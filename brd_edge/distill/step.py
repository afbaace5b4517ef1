"""One training step: forward, every loss on its own, backward, update."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from brd_edge.distill.clock import StepClock
from brd_edge.distill.cuda_graphs import StepGraphs
from brd_edge.distill.depthwise import fast_depthwise
from brd_edge.distill.distributed import average_gradients
from brd_edge.distill.grid import reduce_batch
from brd_edge.distill.objective import Objective
from brd_edge.distill.parallel import local_gradients
from brd_edge.models.segmentation import Features

__all__ = ["Stepper", "amp_dtype", "fast_bf16"]


@dataclass
class Stepper:
    """What a step needs beside its batch.

    Attributes:
        forward: Images to the student's features, through DistributedDataParallel where there are
            several processes.
        model: The student itself.
        objective: What is minimised.
        optimizer: Over the student's parameters and the objective's own layers.
        scaler: Scales the loss where gradients are in half precision; otherwise disabled.
        clock: Measures the parts of a step.
        dtype: Of the forward passes: float32, or what autocast uses.
        accumulate: Parts that a batch is divided into, to save memory.
        grad_clip: Largest gradient norm; 0 does not clip.
        graphs: Records what the objective says can be recorded; nothing launches every operation on its own.
    """

    forward: Any
    model: nn.Module
    objective: Objective
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    clock: StepClock
    dtype: torch.dtype
    accumulate: int
    grad_clip: float
    graphs: StepGraphs | None = None

    def gradients(self, images: Tensor, labels: Tensor, done: float, jitter: Tensor | None = None) -> Tensor:
        """Compute the gradients of a batch.

        Args:
            images: (N, 3, H, W), normalised, as the teacher sees them; N is divisible by `accumulate`.
            labels: (N, H, W) int64 class ids, 255 unknown.
            done: Share of the training that is done, 0 to 1.
            jitter: (N, 4) of colour, for the objective's `student_view`.

        Returns:
            The weighted terms, those of the labels first, in the order of `names`; means over the parts of the batch.
        """
        self.optimizer.zero_grad(set_to_none=True)
        factors = [None] * self.accumulate if jitter is None else jitter.chunk(self.accumulate)
        parts = zip(images.chunk(self.accumulate), labels.chunk(self.accumulate), factors, strict=True)
        values = []
        for number, (part, truth, colours) in enumerate(parts, 1):
            # processes exchange the sum of all parts' gradients, once
            with nullcontext() if number == self.accumulate else local_gradients(self.forward):
                values.append(self._part(part, truth, done, colours))
        return torch.stack(values).mean(0)

    @property
    def names(self) -> list[str]:
        """Names of the terms."""
        return ["ce", *self.objective.label_terms, *self.objective.terms]

    def update(self) -> bool:
        """Apply the gradients, unless one of them is not finite.

        Returns:
            Whether they were applied. In half precision a step may be left out now and then, because the
            scale of the loss is tried out.
        """
        with self.clock.part("update"):
            # before anything is decided by them: every process must decide alike
            average_gradients(self.objective.layers)
            self.scaler.unscale_(self.optimizer)
            limit = self.grad_clip or math.inf
            norms = [
                nn.utils.clip_grad_norm_(list(module.parameters()), limit)
                for module in (self.model, self.objective.layers)
            ]
            finite = all(math.isfinite(float(norm)) for norm in norms)
            if finite or self.scaler.is_enabled():
                self.scaler.step(self.optimizer)
            self.scaler.update()
        return finite

    def _part(self, images: Tensor, labels: Tensor, done: float, jitter: Tensor | None) -> Tensor:
        with self.clock.part("data"):
            whole = images
            images, labels = reduce_batch(images, labels, self.objective.teacher_scale)
            if jitter is not None and self.objective.student_view is not None:
                images = self.objective.student_view(images, jitter)
        if self.graphs is not None:
            images, labels = self.graphs.hold("images", images), self.graphs.hold("labels", labels)
            if self.objective.teacher_scale == 1 and self.objective.student_view is None:
                whole = images
            elif self.objective.teacher is not None:
                whole = self.graphs.hold("teacher's images", whole)
        with self._autocast(images):
            theirs = None
            if self.objective.teacher is not None and self.objective.terms:
                with self.clock.part("teacher"):
                    theirs = self._teacher(whole)
            with self.clock.part("student"):
                mine = self._student(images)
        # every loss gets leaves of its own to take gradients to: it can be timed, and its memory is freed at once
        leaves = _leaves(mine, self.graphs)
        factor, scale = self.objective.curriculum(done), self._scale(images.device)
        values = [self._term("ce", self.objective.supervised, (leaves.logits, labels), 1.0, scale)]
        for name, (weight, loss) in self.objective.label_terms.items():
            values.append(self._term(name, loss, (leaves.logits, labels), weight, scale))
        for name, (weight, term) in self.objective.terms.items():
            values.append(self._term(name, term, (theirs, leaves, labels), factor * weight, scale))
        with self.clock.part("student"):
            self._backward(_tensors(mine), [leaf.grad for leaf in _tensors(leaves)])
        return torch.stack(values)

    def _backward(self, outputs: Sequence[Tensor], gradients: Sequence[Tensor | None]) -> None:
        """Add the gradients of the student's parameters to what they have."""
        pairs = [pair for pair in zip(outputs, gradients, strict=True) if pair[1] is not None]
        reached, given = [whole for whole, _ in pairs], [gradient for _, gradient in pairs if gradient is not None]
        if self.graphs is None or "student" not in self.objective.recordable:
            torch.autograd.backward(reached, given)
            return
        parameters = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        for parameter, gradient in zip(
            parameters, self.graphs.backward("student's backward pass", reached, given, parameters), strict=True
        ):
            if gradient is None:
                continue
            if parameter.grad is not None:
                parameter.grad += gradient
            else:
                # the next part of the batch is replayed into the same memory
                parameter.grad = gradient if self.accumulate == 1 else gradient.clone()

    def _autocast(self, images: Tensor) -> torch.autocast:
        # a weight's copy in half precision must be part of what is recorded, not left over from before
        return torch.autocast(
            images.device.type, self.dtype, enabled=self.dtype != torch.float32, cache_enabled=self.graphs is None
        )

    def _teacher(self, images: Tensor) -> Features:
        teacher = self.objective.teacher
        assert teacher is not None, "there are terms"
        if self.graphs is None:
            return teacher(images)
        if "teacher" in self.objective.recordable:
            return self.graphs.replay("teacher", lambda: teacher(images))
        found = teacher(images)
        return _with_tensors(
            found, [self.graphs.hold(f"teacher {place}", values) for place, values in enumerate(_tensors(found))]
        )

    def _student(self, images: Tensor) -> Features:
        if self.graphs is not None and "student" in self.objective.recordable:
            recorded: Features = self.graphs.forward("student's forward pass", self.model, lambda: self.forward(images))
            return recorded
        with fast_depthwise(images.device):
            return self.forward(images)  # type: ignore[no-any-return]

    def _scale(self, device: torch.device) -> Tensor | None:
        """Return the scale of the loss, which changes from step to step, from where graphs read it."""
        if self.graphs is None or not self.scaler.is_enabled():
            return None
        return self.graphs.hold("scale of the loss", self.scaler.scale(torch.ones((), device=device)))

    def _term(self, name: str, loss: Any, inputs: tuple[Any, ...], weight: float, scale: Tensor | None) -> Tensor:
        def unweighted() -> Tensor:
            with self._autocast(inputs[-1]):
                return loss(*inputs)  # type: ignore[no-any-return]

        with self.clock.part(name):
            if self.graphs is not None and name in self.objective.recordable:
                leaves = _tensors(inputs[1]) if name in self.objective.terms else [inputs[0]]
                return self.graphs.term(name, unweighted, leaves, weight=weight, divisor=self.accumulate, scale=scale)
            value = weight * unweighted()
            self.scaler.scale(value / self.accumulate).backward()  # type: ignore[no-untyped-call]
        return value.detach().float()


def amp_dtype(precision: str, device: torch.device) -> torch.dtype:
    """Return the number format of the forward passes.

    Args:
        precision: `fp32`, `bf16`, `fp16` or `auto`: bf16 where the processor computes it fast, else
            fp16 on a GPU and fp32 on a CPU.
        device: Where the model is trained.
    """
    if precision == "auto":
        if fast_bf16(device):
            return torch.bfloat16
        return torch.float16 if device.type == "cuda" else torch.float32
    return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]


def fast_bf16(device: torch.device) -> bool:
    """Return whether the device computes bfloat16 in hardware."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags


def _tensors(features: Features) -> list[Tensor]:
    return [features.logits, features.coarse_logits, features.decoder, *features.encoder.values()]


def _leaves(features: Features, graphs: StepGraphs | None) -> Features:
    """Return the features cut off from the student: where graphs read them, in place and without gradients."""
    found = _tensors(features)
    if graphs is None:
        return _with_tensors(features, [values.detach().requires_grad_() for values in found])
    leaves = [graphs.hold(f"student {place}", values).requires_grad_() for place, values in enumerate(found)]
    for leaf in leaves:
        leaf.grad = None
    return _with_tensors(features, leaves)


def _with_tensors(features: Features, tensors: Sequence[Tensor]) -> Features:
    """Return features of the same strides with other tensors, in the order of `_tensors`."""
    logits, coarse_logits, decoder, *stages = tensors
    return Features(
        logits=logits,
        encoder=dict(zip(features.encoder, stages, strict=True)),
        decoder=decoder,
        coarse_logits=coarse_logits,
    )
