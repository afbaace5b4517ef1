"""Engines from an exported ONNX graph: one builder a runtime, and what they have in common.

An engine is built in a temporary directory beside its place, checked, and renamed into it, so
that its place holds the old engine or the new one, never a part.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np

from brd_edge import __version__
from brd_edge.runtime.builders.onnxruntime import build_onnxruntime
from brd_edge.runtime.builders.openvino import build_openvino
from brd_edge.runtime.builders.tensorrt import build_tensorrt, build_tensorrt_here
from brd_edge.runtime.bundle import Bundle
from brd_edge.runtime.contract import InputContract
from brd_edge.runtime.engine import SIDECAR, CoarseLogits, EngineInfo, describe_files, write_engine
from brd_edge.runtime.errors import EngineError, RuntimeMissingError
from brd_edge.runtime.files import flush_path, sha256_file
from brd_edge.runtime.manifest import MANIFEST_NAME
from brd_edge.runtime.packages import package_of, runtime_version
from brd_edge.runtime.runners import RUNNERS
from brd_edge.runtime.targets import TARGETS, check_combination, compute_capabilities

__all__ = ["BUILDERS", "build_engine", "build_planned", "built_directory"]

Builder = Callable[[Path, Path, InputContract, int], tuple[str, ...]]
BUILDERS: dict[str, Builder] = {
    "onnxruntime": build_onnxruntime,
    "openvino": build_openvino,
    "tensorrt": build_tensorrt,
}
"""From a runtime's name to what writes its files from (ONNX graph, directory, contract, frames at once at most).

It returns their names, the entry first.
"""

# Engines that run on the processor; a TensorRT engine needs the GPU that it was built for.
CHECKED_BY_RUNNING = ("onnxruntime", "openvino")


def build_engine(
    *,
    runtime: str,
    precision: str,
    target: str,
    onnx: Path,
    out: Path,
    contract: InputContract,
    classes: Sequence[str],
    palette: Sequence[tuple[int, int, int]],
    logits: CoarseLogits | None = None,
    batch_max: int = 1,
    on_device: bool = False,
) -> EngineInfo:
    """Build one engine from an ONNX graph.

    Engines for processors are opened and run on black frames, as many as they take at once, before they count as built.

    Args:
        runtime: One of `BUILDERS`.
        precision: One of the target's precisions.
        target: One of `brd_edge.runtime.targets.TARGETS`.
        onnx: Graph with the input `image`, uint8 (1, H, W, 3), and the output `class_map`, uint8 (1, H, W), in
            that precision (`brd_edge.deploy.lowering` makes it of the exported one); for OpenVINO also the `.xml`
            of a model.
        out: The engine's directory; an engine that is there already is replaced when the new one is complete.
        contract: The frames that the graph takes.
        classes: Names by class id.
        palette: RGB colours by class id, 0 to 255.
        logits: How the graph's output, `logits` in place of `class_map`, is upsampled; not for TensorRT.
        batch_max: How many frames the engine takes at once, at most; above 1, the graph's first dimension is open
            (`brd_edge.deploy.batch` makes such a graph).
        on_device: Whether this machine is the target itself; then engines that must be built there are built too.

    Returns:
        What the sidecar in `out` says.

    Raises:
        RuntimeMissingError: The runtime is not installed, or the target's engines are built on the device.
        EngineError: There is no such combination, or the runtime does not take the graph, or `out` is in the way.
    """
    reason = check_combination(runtime, precision, target, batch_max)
    if reason is not None:
        raise EngineError(reason)
    if TARGETS[target].built == "on device" and not on_device:
        raise RuntimeMissingError(
            f"engines for {target} are built on the device itself ({TARGETS[target].description}), not on this machine"
        )
    if not onnx.is_file():
        raise EngineError(f"{onnx}: not found; export the student first")
    with _replacing(out) as work:
        names = _builder(runtime, precision, target)(onnx, work, contract, batch_max)
        info = EngineInfo(
            runtime=runtime,
            precision=precision,
            target=target,
            runtime_version=_built_by(runtime, target),
            contract=contract,
            classes=tuple(classes),
            palette=tuple(palette),
            files=describe_files(work, names),
            entry=names[0],
            created_by=f"brd-edge {__version__}",
            logits=logits,
            batch_max=batch_max,
        )
        write_engine(work, info)
        if runtime in CHECKED_BY_RUNNING and TARGETS[target].device == "CPU":
            # not by open_engine, which refuses engines for other processors: these run here too
            with RUNNERS[runtime](work, info, None) as runner:
                runner.infer(np.zeros((batch_max, contract.height, contract.width, 3), np.uint8))
    return info


def _builder(runtime: str, precision: str, target: str) -> Builder:
    if runtime != "tensorrt":
        return BUILDERS[runtime]
    if package_of(runtime, target) == "tensorrt":
        return build_tensorrt_here
    return partial(build_tensorrt, capabilities=compute_capabilities(precision, target))


def _built_by(runtime: str, target: str) -> str:
    package = package_of(runtime, target)
    version = runtime_version(package)
    if version is None:
        raise EngineError(f"{package} does not say its version; install it again")
    return f"{package} {version}" if runtime == "tensorrt" else version


def built_directory(bundle: Bundle, name: str) -> Path:
    """Return where an engine of a bundle lies: in it, or among the engines that this account has built."""
    if not bundle.manifest.engines[name].build:
        return bundle.engine_directory(name)
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "brd-edge" / "built" / sha256_file(bundle.directory / MANIFEST_NAME) / name


def build_planned(bundle: Bundle, name: str, out: Path) -> EngineInfo:
    """Build an engine on this device as a bundle's plan says.

    Args:
        bundle: The verified bundle.
        name: One of its engines whose `build` is true.
        out: The engine's directory.

    Raises:
        RuntimeMissingError: The runtime or its hardware is not here.
        EngineError: The runtime does not take the graph.
    """
    plan = bundle.manifest.engines[name]
    return build_engine(
        runtime=plan.runtime,
        precision=plan.precision,
        target=plan.target,
        onnx=bundle.plan_graph(name),
        out=out,
        contract=bundle.manifest.contract,
        classes=bundle.manifest.classes,
        palette=bundle.manifest.palette,
        batch_max=plan.batch_max,
        on_device=True,
    )


@contextmanager
def _replacing(out: Path) -> Iterator[Path]:
    """Yield an empty directory beside `out`; on success it takes `out`'s place, on an error it is removed."""
    if out.exists() and not (out.is_dir() and ((out / SIDECAR).exists() or not any(out.iterdir()))):
        raise EngineError(f"{out}: expected an engine's directory to replace, or nothing; got something else: move it")
    # fixed names, so that what a killed build left behind is cleared by the next one
    work, old = out.parent / f".{out.name}.building", out.parent / f".{out.name}.replaced"
    _restore(out, old)
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    try:
        yield work
        for path in (*work.iterdir(), work):
            flush_path(path)
        if out.exists():
            out.rename(old)
        work.rename(out)
        flush_path(out.parent)
    finally:
        shutil.rmtree(work, ignore_errors=True)
        _restore(out, old)


def _restore(out: Path, old: Path) -> None:
    """Put the old engine back if nothing took its place; remove it otherwise."""
    if old.exists() and not out.exists():
        old.rename(out)
    shutil.rmtree(old, ignore_errors=True)
