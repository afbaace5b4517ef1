"""The Triton kernels of the relation: in Triton's interpreter against numpy, and through the compiler for GPUs.

Triton decides when it is imported whether it interprets, so each test is a process of its own.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

pytest.importorskip("triton", reason="Triton, which comes with PyTorch's CUDA packages for Linux, is not installed")

_AGAINST_NUMPY = """
import numpy as np
import torch
from scipy.special import log_softmax

from brd_edge.distill.relation import streamed_relation
from brd_edge.distill.relation_kernels import OPERATIONS

generator = torch.Generator().manual_seed(0)
# tiles that are smaller and larger than what one program does, cut off at the edge, and one for all
for count, block in ((130, 70), (90, 512), (64, 32), (70, 20)):
    for temperature in (0.05, 0.5):
        maps = [torch.randn(count, channels, generator=generator) for channels in (8, 6)]
        teacher, student = (torch.nn.functional.normalize(values, dim=1) for values in maps)
        student.requires_grad_()
        loss = streamed_relation(teacher, student, temperature=temperature, block=block, operations=OPERATIONS)
        loss.backward()

        theirs, mine = teacher.double().numpy(), student.detach().double().numpy()
        target, found = (log_softmax(rows @ rows.T / temperature, 1) for rows in (theirs, mine))
        np.testing.assert_allclose(float(loss.detach()), (np.exp(target) * (target - found)).sum(1).mean(), rtol=1e-5)
        by_z = (np.exp(found) - np.exp(target)) / count
        gradient = (by_z + by_z.T) @ mine / temperature
        np.testing.assert_allclose(student.grad.numpy(), gradient, rtol=1e-4, atol=1e-5 * np.abs(gradient).max())
print("equal")
"""

_TRIED = """
import torch

from brd_edge.distill import relation, relation_kernels

assert relation._tried_kernels(torch.device("cpu")) is relation_kernels.OPERATIONS
print("tried")
"""

_COMPILED = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from brd_edge.distill import relation_kernels

for kernel in (relation_kernels._sum_powers, relation_kernels._subtract):
    constants = {"lines": relation_kernels._LINES, "step": relation_kernels._STEP, "side": relation_kernels._SIDE}
    signature, found = {}, {}
    for place, name in enumerate(kernel.arg_names):
        signature[name] = "constexpr" if name in constants else "i32" if name in ("height", "width") else "*fp32"
        if name in constants:
            found[(place,)] = constants[name]
    source = ASTSource(fn=kernel, signature=signature, constexprs=found)
    for capability in (75, 80, 90, 100):
        compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=relation_kernels._OPTIONS)
        assert compiled.asm["cubin"][:4] == b"\\x7fELF", capability
print("compiled")
"""


def _run(script: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script],
        env=os.environ | environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if "runtime/interpreter.py" in done.stderr and "only 0-dimensional arrays" in done.stderr:
        pytest.skip("this Triton's interpreter fails with this NumPy, as that of 3.6 does with 2.5")
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_kernels_against_numpy() -> None:
    assert _run(_AGAINST_NUMPY, TRITON_INTERPRET="1") == "equal"


def test_kernels_are_tried_before_they_are_used() -> None:
    assert _run(_TRIED, TRITON_INTERPRET="1") == "tried"


def test_kernels_compile_for_gpus_that_are_not_here(tmp_path_factory: pytest.TempPathFactory) -> None:
    assert _run(_COMPILED, TRITON_CACHE_DIR=str(tmp_path_factory.mktemp("triton"))) == "compiled"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="the kernels themselves need a CUDA GPU, there is none here")
@pytest.mark.parametrize("count", [1024, 5000])
def test_kernels_on_a_gpu_equal_pytorch(count: int) -> None:
    from brd_edge.distill import relation_kernels, relation_tiles
    from brd_edge.distill.relation import streamed_relation

    generator = torch.Generator().manual_seed(0)
    teacher, student = (
        torch.nn.functional.normalize(torch.randn(count, 32, generator=generator), dim=1) for _ in range(2)
    )
    found = []
    # kernels in float32, PyTorch in float64
    for dtype, operations in ((torch.float32, relation_kernels.OPERATIONS), (torch.float64, relation_tiles.OPERATIONS)):
        mine = student.to("cuda", dtype).requires_grad_()
        loss = streamed_relation(teacher.to("cuda", dtype), mine, temperature=0.1, operations=operations)
        loss.backward()
        assert mine.grad is not None
        found.append((loss.detach().double(), mine.grad.double()))

    torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-5, atol=0.0)
    torch.testing.assert_close(found[0][1], found[1][1], rtol=1e-4, atol=1e-5 * float(found[1][1].abs().max()))
