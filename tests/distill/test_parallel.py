from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from made_stepper import made_stepper
from torch import Tensor, nn

from brd_edge.distill.objective import supervised
from brd_edge.distill.parallel import _Forward, _has_unused
from brd_edge.models.segmentation import Features, ModelSpec, build_model, forward_features


@pytest.mark.parametrize(
    "encoder", ["tu-gcvit_xxtiny", "tu-efficientformer_l1"], ids=["of a shape", "of a table of positions"]
)
def test_an_encoder_of_a_fixed_size_may_have_unused_parameters(encoder: str) -> None:
    model = build_model(ModelSpec("FPN", encoder, 3, {}), encoder_weights=None, seed=0)

    assert _has_unused(model, forward_features)


def test_gradients_are_exchanged_once_a_step(tmp_path: Path) -> None:
    """A batch in three parts, in a group of one real process that counts what is exchanged."""
    model, exchanged = nn.Conv2d(3, 2, 1), 0

    def features(of: nn.Module, images: Tensor) -> Features:
        logits = of(images)
        return Features(logits, {}, logits, logits)

    # PyTorch reads the annotations of hooks, and takes none that are text
    def counting(_state, bucket):  # type: ignore[no-untyped-def]
        nonlocal exchanged
        exchanged += 1
        done: torch.futures.Future[Tensor] = torch.futures.Future()
        done.set_result(bucket.buffer())
        return done

    images, labels = torch.randn(6, 3, 4, 4), torch.randint(0, 2, (6, 4, 4))
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        forward = nn.parallel.DistributedDataParallel(_Forward(model, features))
        forward.register_comm_hook(None, counting)
        objective = supervised(nn.functional.cross_entropy)
        made_stepper(model, forward, objective, accumulate=3).gradients(images, labels, 0.0)
    finally:
        dist.destroy_process_group()

    assert exchanged == 1
    found = [parameter.grad for parameter in model.parameters()]
    expected = torch.autograd.grad(nn.functional.cross_entropy(model(images), labels), list(model.parameters()))
    torch.testing.assert_close(found, list(expected))
