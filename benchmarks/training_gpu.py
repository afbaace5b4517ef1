"""What only a CUDA GPU can show of the training, in one command of a few minutes.

    python -m benchmarks.training_gpu pipelines/camvid_cpu.yaml

In this order: the streaming relation loss, which at 8192 pixels may take a tenth of the naive memory and no more than
the naive time; a short teacher; short distillations alone on the GPU, in bf16 and fp16, whose own terms may take a
tenth of a step, with relations of pixels to each other, for which there are Triton kernels, and with `torchrun` on
every GPU, which is left out where there is one; the tests that need a GPU. A check that fails, or takes more than
`--limit` seconds, does not stop the others. Nothing is kept from an earlier command: every training is done again.
`--only` does some of it; `--teacher` spares the training of one.

Written after each check is a JSON file with what was found and how long it took; the exit code is 1 if one failed.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks import argument_types
from benchmarks.output import output_file
from brd_edge.distill.methods import METHODS
from brd_edge.environment import describe_environment
from brd_edge.recipe import load_recipe
from brd_edge.runtime.errors import BrdEdgeError
from brd_edge.runtime.files import write_json_atomic

MEMORY_RATIO_MAX, TIME_RATIO_MAX, TERMS_SHARE_MAX = 0.1, 1.0, 0.1
_GRACE_S = 60
_TESTS = ("tests/distill", "tests/data/test_parity.py", "tests/data/test_loader.py", "-k", "cuda or gpu or kernel")
# most of their time is that of processes which begin; a plugin for benchmarks, where there is one, warns of several
_TEST_OPTIONS = ("-q", "-n", "4", "-p", "no:benchmark")


@dataclass(frozen=True)
class Check:
    """A command and what its outcome must be.

    Attributes:
        name: What is shown.
        command: Program and arguments.
        read: Returns what was found, and whether it holds, once the command has succeeded.
        skipped: Why it is left out here, if it is.
    """

    name: str
    command: tuple[str, ...]
    read: Callable[[], tuple[dict[str, Any], bool]]
    skipped: str | None = None


def checks(recipe: Path, directory: Path, epochs: int, gpus: int, given: Path | None = None) -> list[Check]:
    """Return all checks, in order; trainings go to `directory`, and students learn from a teacher that is `given`.

    Raises:
        BrdEdgeError: The recipe cannot be used.
    """
    train = load_recipe(recipe).distill.train
    python, relation = sys.executable, directory / "relation_loss.json"
    sizes = [part for count in (1024, 8192, 32768) for part in ("--n", str(count))]
    model = given or directory / "teacher" / "teacher" / "model"
    teacher = ["teacher.train=null", argument_types.override("teacher.checkpoint", str(model))]

    def pipeline(name: str, until: str, settings: Sequence[str]) -> tuple[str, ...]:
        parts = [part for setting in ("device=cuda", *settings) for part in ("--set", setting)]
        # what an earlier command did says nothing about this machine and this code
        place = ("--run-dir", str(directory / name), "--until", until, "--force")
        return ("-m", "brd_edge.pipeline", str(recipe), *place, *parts)

    def distillation(name: str, precision: str, program: Sequence[str], *more: str) -> Check:
        settings = [f"distill.train.epochs={epochs}", f"distill.train.precision={precision}", *teacher, *more]
        return Check(
            f"distillation, {name}",
            (*program, *pipeline(name, "distill", settings)),
            lambda: read_step_time(directory / name / "distill" / "step_time.json"),
        )

    several = [python, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={gpus}"]
    # whatever the number of GPUs, they must have equal shares
    parts = gpus * train.accumulate
    batch = f"distill.train.batch_size={math.ceil(train.batch_size / parts) * parts}"
    return [
        Check(
            "relation loss",
            (python, "-m", "benchmarks.relation_loss", "--device", "cuda", *sizes, "--output", str(relation)),
            lambda: read_relation(relation),
        ),
        Check(
            "teacher",
            (python, *pipeline("teacher", "teacher", [f"teacher.train.epochs={epochs}"])),
            lambda: ({}, True),
            skipped="a teacher was given" if given else None,
        ),
        distillation("bf16", "bf16", [python]),
        distillation("fp16", "fp16", [python]),
        # these relations cost more than those to the classes, of which BRD is made and which are held to the bound
        replace(
            distillation("relations of pixels", "bf16", [python], "distill.relation_to=pixels"),
            read=lambda: (read_step_time(directory / "relations of pixels" / "distill" / "step_time.json")[0], True),
        ),
        # the terms' share is that of one process, above
        replace(
            distillation("nccl", "bf16", several, batch),
            read=lambda: ({"gpus": gpus}, True),
            skipped="NCCL joins two GPUs or more" if gpus == 1 else None,
        ),
        # last: nothing of them is timed, so that whoever waits for the GPU may begin
        Check("tests", (python, "-m", "pytest", *_TEST_OPTIONS, *_TESTS), lambda: ({}, True)),
    ]


def read_relation(file: Path) -> tuple[dict[str, Any], bool]:
    """Return what `benchmarks.relation_loss` found, by which operations, and whether 8192 pixels hold the bounds."""
    result = json.loads(file.read_text(encoding="utf-8"))
    rows = result["rows"]
    row = next(row for row in rows if row["n"] == 8192)
    held = row["memory_ratio"] <= MEMORY_RATIO_MAX and row["time_ratio"] <= TIME_RATIO_MAX
    bounds = {"memory_ratio_max": MEMORY_RATIO_MAX, "time_ratio_max": TIME_RATIO_MAX}
    return {"operations": result["operations"], "rows": rows, "bounds": bounds}, held


def read_step_time(file: Path) -> tuple[dict[str, Any], bool]:
    """Return where a step's time went and whether the distillation's own terms hold their bound."""
    seconds = json.loads(file.read_text(encoding="utf-8"))["seconds"]
    share = sum(seconds.get(term, 0.0) for term in METHODS["brd"]) / sum(seconds.values())
    found = {"step_seconds": seconds, "terms_share": share, "bounds": {"terms_share_max": TERMS_SHARE_MAX}}
    return found, share <= TERMS_SHARE_MAX


def run(check: Check, limit_s: float) -> dict[str, Any]:
    """Run one check for `limit_s` seconds at most, unless it is left out, and say how it went."""
    if check.skipped is not None:
        print(f"{check.name}: skipped, {check.skipped}\n", file=sys.stderr, flush=True)
        return {"check": check.name, "held": None, "reason": check.skipped}
    print(f"{check.name}: {' '.join(check.command)}", file=sys.stderr, flush=True)
    start = time.monotonic()
    found, held = dict[str, Any](), False
    code = _wait(check.command, limit_s)
    how = f"failed with code {code}" if code is not None else f"was ended after {limit_s:g} s"
    seconds = time.monotonic() - start
    if code == 0:
        try:
            found, held = check.read()
            how = "holds" if held else "does not hold"
        except OSError as error:
            # a training of less than 24 steps has not said where its time went
            how = f"has left no result ({error})"
    print(f"{check.name}: {how}, {seconds:.0f} s\n", file=sys.stderr, flush=True)
    return {"check": check.name, "held": held, "exit_code": code, "duration_s": seconds, **found}


def _wait(command: Sequence[str], limit_s: float) -> int | None:
    """Return a command's exit code, or nothing where it was ended: processes may wait for each other for days."""
    with subprocess.Popen(command, stdout=sys.stderr) as child:  # noqa: S603
        try:
            return child.wait(limit_s)
        except subprocess.TimeoutExpired:
            # told before it is killed: torchrun ends its own processes, which else would keep the GPUs
            child.terminate()
        try:
            child.wait(_GRACE_S)
        except subprocess.TimeoutExpired:
            child.kill()
    return None


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.training_gpu", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--epochs", type=argument_types.count, default=3, help="of each short training (3)")
    parser.add_argument("--limit", type=argument_types.count, default=600, help="seconds that a check may take (600)")
    parser.add_argument("--teacher", type=Path, help="a saved model to learn from (one is trained)")
    parser.add_argument("--only", metavar="NAMES", help="names of checks, separated by semicolons (all)")
    parser.add_argument("--directory", type=Path, default=Path("runs") / "training_gpu", help="where the runs go")
    parser.add_argument("--output", type=output_file, default="benchmarks/results/training_gpu.json", help="JSON")
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        print("training_gpu: torch finds no GPU here; nothing of this can be shown without one", file=sys.stderr)
        return 2
    gpus, found = torch.cuda.device_count(), list[dict[str, Any]]()
    try:
        wanted = checks(options.recipe, options.directory, options.epochs, gpus, options.teacher)
    except BrdEdgeError as error:
        print(f"training_gpu: {error}", file=sys.stderr)
        return error.exit_code
    if options.only is not None:
        named = {name.strip() for name in options.only.split(";")}
        if unknown := sorted(named - {check.name for check in wanted}):
            names = "; ".join(check.name for check in wanted)
            parser.error(f"--only: no check is called {' or '.join(unknown)}; there are {names}")
        wanted = [check for check in wanted if check.name in named]
    options.directory.mkdir(parents=True, exist_ok=True)
    environment = describe_environment() | {"gpu": torch.cuda.get_device_name(), "gpus": gpus}
    # what made the difference between two results: short trainings of a given teacher cost other shares of a step
    chosen = {"epochs": options.epochs, "limit_s": options.limit, "only": options.only}
    chosen["teacher"] = "trained" if options.teacher is None else "given"
    result: dict[str, Any] = {"benchmark": "training_gpu", "recipe": str(options.recipe), "options": chosen}
    result |= {"checks": found, "environment": environment}
    for check in wanted:
        found.append(run(check, options.limit))
        write_json_atomic(options.output, result)
    for entry in found:
        print(describe(entry))
    print(f"written: {options.output}")
    return 1 if any(entry["held"] is False for entry in found) else 0


def describe(entry: Mapping[str, Any]) -> str:
    """Return the line of the printed table that says how a check went."""
    how = {True: "holds", False: "DOES NOT HOLD", None: "skipped"}[entry["held"]]
    return f"{how:14} {entry['check']}" + (f" ({entry['reason']})" if "reason" in entry else "")


if __name__ == "__main__":
    sys.exit(main())
