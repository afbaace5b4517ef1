"""The parts of a training step as CUDA graphs: one launch each, instead of one for every operation.

A small student on a large GPU spends its step on launching kernels that take a few microseconds each.
What has always the same shapes and never waits for the GPU is recorded once and replayed from then on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from brd_edge.runtime.errors import TrainingError

__all__ = ["StepGraphs"]

_WARM_UP = 3
_T = TypeVar("_T")


class StepGraphs:
    """Records parts of a training step at their first use and replays them afterwards.

    A graph reads and writes the same memory at every replay. Whatever goes into one is therefore copied
    to a place of its own first (`hold`), and what comes out is overwritten by the next replay.

    Example:
        >>> graphs = StepGraphs()
        >>> images = graphs.hold("images", images)
        >>> features = graphs.replay("teacher", lambda: teacher(images))
    """

    def __init__(self) -> None:
        """Start with nothing recorded; a GPU is not needed yet."""
        self._held: dict[str, Tensor] = {}
        self._recorded: dict[str, tuple[torch.cuda.CUDAGraph, Any]] = {}

    def hold(self, name: str, values: Tensor) -> Tensor:
        """Copy values to the place that graphs read them from.

        Args:
            name: Of the place.
            values: On the GPU; the same shape and dtype at every call.

        Returns:
            The place: the same tensor at every call.
        """
        with torch.no_grad():
            if name not in self._held:
                self._held[name] = values.clone(memory_format=torch.preserve_format)
            return self._held[name].copy_(values)

    def replay(self, name: str, work: Callable[[], _T]) -> _T:
        """Do work on the GPU that reads nothing but held tensors, graphs' results, parameters and constants.

        Args:
            name: Of the graph.
            work: Called a few times when the graph is recorded, and not afterwards. It must not wait for the GPU.

        Returns:
            What `work` returned while it was recorded: tensors whose values are now those of this call.

        Raises:
            TrainingError: The work cannot be recorded.
        """
        if name not in self._recorded:
            self._record(name, work)
        graph, result = self._recorded[name]
        graph.replay()
        return result  # type: ignore[no-any-return]

    def forward(self, name: str, model: nn.Module, work: Callable[[], _T]) -> _T:
        """Replay a forward pass of a model that is trained; see `backward`.

        Recording leaves the statistics of the model's normalisation and the random numbers as they were.

        Args:
            name: Of the graph.
            model: Whose forward pass it is.
            work: As for `replay`.
        """
        if name not in self._recorded:
            with _unchanged(model):
                self._record(name, work)
        return self.replay(name, work)

    def backward(
        self, name: str, outputs: Sequence[Tensor], gradients: Sequence[Tensor], parameters: Sequence[nn.Parameter]
    ) -> list[Tensor | None]:
        """Replay the backward pass through what `forward` returned.

        Args:
            name: Of the graph.
            outputs: Tensors of the forward pass, the same ones at every call.
            gradients: Gradients with respect to them.
            parameters: What the outputs are differentiated by.

        Returns:
            The parameters' gradients in the parameters' memory layout, or nothing for a parameter that has no part in
            the outputs; the next replay overwrites them.
        """
        held = [self.hold(f"{name} {place}", gradient) for place, gradient in enumerate(gradients)]

        def work() -> list[Tensor | None]:
            # the graph of operations is needed by each trial and by the recording
            found = torch.autograd.grad(outputs, parameters, held, allow_unused=True, retain_graph=True)
            return [_laid_out_as(parameter, values) for parameter, values in zip(parameters, found, strict=True)]

        return self.replay(name, work)

    def term(
        self,
        name: str,
        loss: Callable[[], Tensor],
        leaves: Sequence[Tensor],
        *,
        weight: float,
        divisor: int,
        scale: Tensor | None = None,
    ) -> Tensor:
        """Replay a weighted loss and add its gradient to that of its leaves.

        Args:
            name: Of the loss.
            loss: Returns a scalar, not yet weighted, of held tensors.
            leaves: Held tensors that gradients are taken to; those that the loss does not use are left alone.
            weight: The loss's weight, which may change from call to call.
            divisor: What the gradient, and not the value, is divided by.
            scale: A held scalar that the gradient, and not the value, is multiplied by; nothing for 1.

        Returns:
            The weighted loss, float32.
        """
        factor = self._factor(f"{name}: weight", weight, leaves[0].device)

        def work() -> tuple[Tensor, tuple[Tensor | None, ...]]:
            value = factor * loss()
            share = value / divisor if scale is None else value / divisor * scale
            return value.detach().float(), torch.autograd.grad(share, leaves, allow_unused=True)

        value, gradients = self.replay(name, work)
        for leaf, gradient in zip(leaves, gradients, strict=True):
            if gradient is not None:
                # the graph's own memory must not become the leaf's: the next term would add to it
                leaf.grad = gradient.clone() if leaf.grad is None else leaf.grad.add_(gradient)
        return value

    def _record(self, name: str, work: Callable[[], Any]) -> None:
        try:
            self._recorded[name] = _record(work)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            first_line = str(error).partition("\n")[0]
            raise TrainingError(
                f"{name}: cannot be recorded as a CUDA graph ({first_line}); "
                "set distill.cuda_graphs: false, so that every operation is launched on its own"
            ) from error

    def _factor(self, name: str, value: float, device: torch.device) -> Tensor:
        if name not in self._held:
            self._held[name] = torch.zeros((), device=device)
        return self._held[name].fill_(value)


def _laid_out_as(parameter: Tensor, values: Tensor | None) -> Tensor | None:
    """Return values in a parameter's memory layout: fused optimisers walk through both in the order of memory."""
    if values is None or values.stride() == parameter.stride():
        return values
    return torch.empty_like(parameter).copy_(values).detach()


@contextmanager
def _unchanged(model: nn.Module) -> Iterator[None]:
    """Give a model's buffers and the random generators back as they were."""
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices, device_type="cuda"):
        yield
    with torch.no_grad():
        for buffer, before in buffers:
            # past the version counter: the backward pass that is recorded next was promised these very buffers
            buffer.data.copy_(before)


def _record(work: Callable[[], _T]) -> tuple[torch.cuda.CUDAGraph, _T]:
    # libraries set themselves up in their first calls, which must not be recorded
    aside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(_WARM_UP):
            work()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    # other threads, such as those that load data, may use the GPU meanwhile
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        result = work()
    return graph, result
