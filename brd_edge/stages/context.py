"""What every stage is given and gives back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from brd_edge.environment import gpu_names
from brd_edge.interrupt import Stop
from brd_edge.processes import local_processes, local_rank
from brd_edge.recipe import Recipe
from brd_edge.recipe_training import TrainSection
from brd_edge.run import Artifact, Run
from brd_edge.runtime.contract import RESIZED, SLIDING_WINDOW, InputContract
from brd_edge.runtime.errors import RunError

if TYPE_CHECKING:
    import torch

__all__ = [
    "Context",
    "Outcome",
    "Stage",
    "counted",
    "crops_beyond_frames",
    "input_contract",
    "missing_gpu",
    "slow_without_gpu",
    "teacher_contract",
    "training_device",
]


_CPU_PIXELS_MAX = 320 * 480


@dataclass(frozen=True)
class Context:
    """Where a stage works.

    Attributes:
        recipe: The whole recipe.
        run: The run directory.
        inputs: What the stages before it left, by stage.
        stop: Whether the user asked to stop.
        say: Shows a line to the user and writes it into the log.
        command: The command line, for the report.
        key: Fingerprint of this stage; unfinished work of another key must not be used.
    """

    recipe: Recipe
    run: Run
    inputs: Mapping[str, Artifact]
    stop: Stop
    say: Callable[[str], None]
    command: str
    key: str


@dataclass(frozen=True)
class Outcome:
    """What a stage made.

    Attributes:
        outputs: Files in the run directory that belong to the artifact.
        result: What later stages and people want to know, as JSON types.
        summary: One line for the user.
        essence: Digest of what later stages take from the files, where these hold more, such as their own places.
        earlier_s: Seconds that was worked on it before, by a process that was interrupted.
    """

    outputs: list[Path]
    result: dict[str, Any] = field(default_factory=dict)
    summary: str = ""
    essence: str | None = None
    earlier_s: float = 0.0


@dataclass(frozen=True)
class Stage:
    """One step of a run.

    Attributes:
        name: Its name on the command line.
        needs: The stages whose artifacts it reads.
        code: The parts of the package that decide its outcome.
        settings: The part of the recipe that decides its outcome, as JSON types.
        work: Does it.
        plan: One line on what it would do.
        files: Content digests of what it reads from outside the run directory, by name.
        missing: What it cannot do without and does not find; nothing when all is there.
        notes: What it can do without, but people should know.
        accepts: Raises where it cannot work with its inputs, before results of an earlier run make way.
        check: What is wrong with the files that it left and that are too many for the record.
    """

    name: str
    needs: tuple[str, ...]
    code: tuple[str, ...]
    settings: Callable[[Recipe], dict[str, Any]]
    work: Callable[[Context], Outcome]
    plan: Callable[[Recipe], str]
    files: Callable[[Recipe], dict[str, str]] = lambda _recipe: {}
    missing: Callable[[Recipe], list[str]] = lambda _recipe: []
    notes: Callable[[Recipe], list[str]] = lambda _recipe: []
    accepts: Callable[[Context], None] = lambda _context: None
    check: Callable[[Run], str | None] = lambda _run: None


def counted(count: int, noun: str) -> str:
    """Return a number with its noun, such as `1 epoch` or `2 epochs`."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def input_contract(recipe: Recipe) -> InputContract:
    """Return the input contract that a recipe's `data` section describes."""
    data = recipe.data
    return InputContract(
        height=data.size[0],
        width=data.size[1],
        mean=data.mean,
        std=data.std,
        resize=SLIDING_WINDOW if data.sliding_window else RESIZED,
    )


def teacher_contract(recipe: Recipe) -> InputContract:
    """Return the input contract of the teacher: the student's, with frames that are `teacher.scale` times larger."""
    contract, scale = input_contract(recipe), recipe.teacher.scale
    return replace(contract, height=scale * contract.height, width=scale * contract.width)


def missing_gpu(recipe: Recipe) -> list[str]:
    """Return that the recipe asks for a GPU which is not here, if so."""
    if recipe.device == "cuda" and not gpu_names():
        return ["device: the recipe asks for cuda, but there is no NVIDIA GPU here; --set device=cpu is slow but works"]
    return []


def crops_beyond_frames(name: str, train: TrainSection | None, contract: InputContract) -> list[str]:
    """Return a note where crops are larger than frames, as when only `data.size` of a ready-made recipe was changed."""
    if train is None or train.crop is None or contract.resize != RESIZED:
        return []
    (rows, columns), height, width = train.crop, contract.height, contract.width
    if rows <= height and columns <= width:
        return []
    return [
        f"{name}.train.crop: {rows}x{columns} (height x width) is larger than a frame of {height}x{width}: most crops "
        "are padded; null takes whole frames"
    ]


def slow_without_gpu(recipe: Recipe) -> list[str]:
    """Return a note when large frames would be trained on the CPU."""
    scale = 1 if recipe.teacher.train is None else recipe.teacher.scale
    pixels = scale**2 * recipe.data.size[0] * recipe.data.size[1]
    if recipe.device == "auto" and pixels > _CPU_PIXELS_MAX and not gpu_names():
        return [f"no GPU here: training on {recipe.data.size[1]}x{recipe.data.size[0]} frames takes days on a CPU"]
    return []


def training_device(recipe: Recipe) -> torch.device:
    """Return where models are trained and evaluated; every process of `torchrun` has a GPU of its own.

    Raises:
        RunError: The recipe asks for a GPU and there is none, or there are fewer than processes on this machine.
    """
    import torch

    if recipe.device == "cuda" and not torch.cuda.is_available():
        raise RunError("device: the recipe asks for cuda, but torch finds no GPU here; --set device=cpu works anywhere")
    if recipe.device == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    processes, gpus = local_processes(), torch.cuda.device_count()
    if processes > gpus:
        # in every process, not only in those that get none: what the first one says is what is shown
        raise RunError(
            f"device: torchrun started {processes} processes here, torch finds {gpus} GPU{'s' if gpus > 1 else ''}; "
            f"each process needs one of its own: start it with --nproc-per-node={gpus}, or --set device=cpu"
        )
    return torch.device("cuda", local_rank())
