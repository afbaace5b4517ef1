"""Training with several processes: who is who, sums over all of them, and shared batch statistics.

Every function also works in a single process, where it changes nothing. A batch is divided among
the processes. Cross-entropy, logit distillation, boundaries and relations within images are means
over the whole batch, so that they train alike with any number of processes, up to rounding; what
relates the images of a batch, or looks for the hardest of its pixels, sees one process's part.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from typing import Any, cast

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from brd_edge.distill.grid import wide
from brd_edge.processes import local_rank, started_processes

__all__ = [
    "average_gradients",
    "broadcast_object",
    "copy_from_first",
    "gather_objects",
    "global_mean",
    "process_group",
    "rank",
    "share_batch_statistics",
    "sum_over_processes",
    "world",
]

# a process that waits for the first one to prepare data or measure engines must not give up
_PATIENCE = timedelta(days=7)


@contextmanager
def process_group(device: torch.device) -> Iterator[None]:
    """Join the processes that `torchrun` has started; does nothing in a single process.

    Args:
        device: Where models are trained; on CUDA, tensors travel by NCCL and everything else by gloo.
    """
    if started_processes()[1] == 1 or dist.is_initialized():
        yield
        return
    if device.type == "cuda":
        torch.cuda.set_device(local_rank())
    dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", timeout=_PATIENCE)
    yield
    # Whoever leaves first would cut the others off in the middle of a message. And a thread of gloo's may hold the
    # tensors of the last message for a moment longer: Python's, it would abort a process that is ending; a barrier's
    # are none of Python's.
    dist.barrier()
    # not after an error: NCCL would wait here for processes that wait elsewhere
    dist.destroy_process_group()


def world() -> int:
    """Return the number of processes that train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Return this process's number, from 0; process 0 alone writes files."""
    return dist.get_rank() if dist.is_initialized() else 0


def sum_over_processes(values: Tensor) -> Tensor:
    """Return the element-wise sum over all processes; no gradient is taken."""
    if world() == 1:
        return values.detach()
    total = values.detach().clone()
    dist.all_reduce(total)
    return total


def shared_sum(values: Tensor) -> Tensor:
    """Return the element-wise sum over all processes, through which every process's loss gives its gradient."""
    return _Sum.apply(values)  # type: ignore[no-any-return]


def global_mean(total: Tensor, weight: Tensor, *, least: float = 1e-6) -> Tensor:
    """Divide a sum over this process's part of a batch so that the processes' average is the batch's mean.

    Args:
        total: Scalar sum over this process's pixels, with gradient.
        weight: Scalar weight of this process's pixels, without gradient.
        least: Smallest divisor: without any weight the mean is 0.

    Returns:
        `total / (sum of all processes' weights / number of processes)`.
    """
    return total / (sum_over_processes(weight) / world()).clamp_min(least)


def average_gradients(module: nn.Module) -> None:
    """Average the gradients of a module that DistributedDataParallel does not hold."""
    if world() == 1:
        return
    for parameter in module.parameters():
        if parameter.grad is not None:
            dist.all_reduce(parameter.grad)
            parameter.grad /= world()


def copy_from_first(module: nn.Module) -> None:
    """Give every process the first one's parameters and buffers."""
    if world() > 1:
        for values in module.state_dict().values():
            dist.broadcast(values, src=0)


def broadcast_object(value: Any = None) -> Any:
    """Return process 0's value in every process."""
    box = [value]
    if world() > 1:
        dist.broadcast_object_list(box, src=0, device=torch.device("cpu"))
    return box[0]


def gather_objects(value: Any) -> list[Any]:
    """Return every process's value, by rank."""
    if world() == 1:
        return [value]
    found: list[Any] = [None] * world()
    dist.all_gather_object(found, value)
    return found


def share_batch_statistics(model: nn.Module, device: torch.device) -> nn.Module:
    """Let batch normalisation see the whole batch, whatever the number of processes.

    Parameters, buffers and their names stay as they are. On CUDA these are torch's `SyncBatchNorm`
    layers; torch has none for the CPU, where `_shared_batch_norm` takes their place.

    Args:
        model: Changed in place, the layers below it; it is no such layer itself.
        device: Where it is trained.
    """
    if world() == 1:
        return model
    if device.type == "cuda":
        from timm.layers import convert_sync_batchnorm

        return cast("nn.Module", convert_sync_batchnorm(model))
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            cast("Any", module).forward = partial(_shared_batch_norm, module)
    return model


def _shared_batch_norm(layer: Any, values: Tensor) -> Tensor:
    """Compute batch normalisation (N, C, ...) with the statistics of all processes.

    timm's layers carry an activation and a dropout, `act` and `drop`, which follow.
    """
    if not layer.training:
        found = F.batch_norm(
            values, layer.running_mean, layer.running_var, layer.weight, layer.bias, training=False, eps=layer.eps
        )
    else:
        found = _normalise(layer, wide(values)).to(values.dtype)
    return layer.act(layer.drop(found)) if hasattr(layer, "act") else found


def _normalise(layer: Any, values: Tensor) -> Tensor:

    axes = [axis for axis in range(values.ndim) if axis != 1]
    shape = [1, -1] + [1] * (values.ndim - 2)
    count = sum_over_processes(values.new_tensor(float(values.numel() // values.shape[1])))
    mean = shared_sum(values.sum(axes)) / count
    centred = values - mean.view(shape)
    variance = shared_sum(centred.square().sum(axes)) / count
    if layer.track_running_stats:
        layer.num_batches_tracked += 1
        unbiased = variance.detach() * count / (count - 1).clamp_min(1)
        layer.running_mean.lerp_(mean.detach(), layer.momentum)
        layer.running_var.lerp_(unbiased, layer.momentum)
    scaled: Tensor = centred * (variance + layer.eps).rsqrt().view(shape)
    if layer.affine:
        scaled = scaled * layer.weight.view(shape) + layer.bias.view(shape)
    return scaled


class _Sum(torch.autograd.Function):
    """The sum over all processes; its gradient is the sum of theirs, as each of them uses it."""

    @staticmethod
    def forward(_ctx: Any, values: Tensor) -> Tensor:
        return sum_over_processes(values)

    @staticmethod
    def backward(_ctx: Any, *gradients: Any) -> Tensor:
        # itself a sum that is differentiated: a second derivative passes through it
        return shared_sum(gradients[0].contiguous())
