"""The training loaders against each other: decoded, varied and normalised images per second.

    python -m benchmarks.loader [--camvid DIR] [--case png-large] [--step] [--output FILE]

The contenders (see `benchmarks.loader_contenders`) work on the same files, made here: photographs of CamVid,
which are enlarged for the size of Cityscapes, or drawn scenes. Rounds are interleaved: in each, every
contender in turn is opened alone, warmed up, and timed for the same number of batches. Rates are medians of
the rounds; ratios are medians of the rounds' ratios with a bootstrap 95 % interval. `--step` also trains the
student of `pipelines/camvid_cpu.yaml` and tells which share of a step waits for data. The last line is one
JSON object.
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.argument_types import count
from benchmarks.loader_contenders import CONTENDERS, PREFETCH, Contender, Workload, open_contender, unavailable
from benchmarks.loader_files import JPEG_QUALITY, NOISE_SIGMA, Case, make_files
from benchmarks.output import output_file, publish
from brd_edge.data.dataset import Sample
from brd_edge.data.plan import Augmentation
from brd_edge.distill.supervised import cross_entropy
from brd_edge.environment import describe_environment, package_version
from brd_edge.models.segmentation import ModelSpec, build_model
from brd_edge.progress import progress_bar
from brd_edge.runtime.contract import InputContract
from brd_edge.runtime.errors import BrdEdgeError

BASES = ("reference", "dataloader")
"""The contenders that the others are divided by."""
STEP_CONTENDERS = ("dali-cpu", "reference", "dataloader", "albumentations")
CLASSES = 11
"""Of CamVid; drawn scenes have fewer."""
CAMVID_SIZE = (360, 480)
CASES = (
    Case("png-large", "png", (1024, 2048), (512, 1024), 24),
    Case("jpeg-large", "jpeg", (1024, 2048), (512, 1024), 24),
    Case("png-small", "png", CAMVID_SIZE, CAMVID_SIZE, 64),
    Case("jpeg-small", "jpeg", CAMVID_SIZE, CAMVID_SIZE, 64),
)


@dataclass(frozen=True)
class Settings:
    """How cases are measured.

    Attributes:
        batch_size: Images in a batch.
        threads: Decoding threads, or worker processes.
        rounds: Times that every contender is opened.
        seconds: Time for which the reference is measured in a case, over all rounds; the others do as many batches.
    """

    batch_size: int = 8
    threads: int = 2
    rounds: int = 5
    seconds: float = 20.0

    @property
    def warm_up(self) -> int:
        """Batches before the clock starts: at least two, and as many from every worker process."""
        return self.whole(2)

    def whole(self, batches: float) -> int:
        """Return at least so many batches, a multiple of the threads.

        Worker processes each make a batch at the same time: a part of such a group would be had too cheaply.
        """
        return self.threads * max(1, -int(-batches // self.threads))


@dataclass(frozen=True)
class StepSettings:
    """The training whose steps are measured: that of `pipelines/camvid_cpu.yaml`.

    Attributes:
        case: Its files.
        frame: Rows and columns of the frames that the student sees, and of the training window.
        steps: Timed steps a round.
        warm_up: Steps before them.
        rounds: Times that every contender is opened.
    """

    case: Case = CASES[2]
    frame: tuple[int, int] = (176, 240)
    steps: int = 20
    warm_up: int = 3
    rounds: int = 3


def workload(
    samples: Sequence[Sample], size: tuple[int, int], crop: tuple[int, int], settings: Settings, seed: int
) -> Workload:
    """Return the work of one round: scale 0.5 to 2 of `size`, mirrored half of the time, colours by 0.2."""
    return Workload(
        samples=tuple(samples),
        contract=InputContract(size[0], size[1], mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
        augmentation=Augmentation(
            crop=crop, scale=(0.5, 2.0), flip=0.5, brightness=0.2, contrast=0.2, saturation=0.2
        ),
        batch_size=settings.batch_size,
        threads=settings.threads,
        seed=seed,
    )  # fmt: skip


def measure_rate(name: str, work: Workload, *, warm_up: int, batches: int) -> float:
    """Return the images per second of one contender, over a number of batches after some others."""
    contender = open_contender(name, work)
    try:
        for _ in range(warm_up):
            contender.next_batch()
        _synchronise()
        start = time.perf_counter()
        for _ in range(batches):
            contender.next_batch()
        _synchronise()
        return batches * work.batch_size / (time.perf_counter() - start)
    finally:
        contender.close()


def _synchronise() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def rotated(names: Sequence[str], turn: int) -> list[str]:
    """Return the names in the order of a round: each of them is first, second, … as often as the others."""
    first = turn % len(names)
    return [*names[first:], *names[:first]]


def summarise_ratio(values: Sequence[float], base: Sequence[float]) -> dict[str, float | None]:
    """Return the median of paired ratios, and its bootstrap 95 % interval (null for a single pair)."""
    ratios = np.array(values) / np.array(base)
    low = high = None
    if len(ratios) > 1:
        chosen = np.random.default_rng(0).choice(ratios, (10_000, len(ratios)))
        low, high = np.percentile(np.median(chosen, axis=1), (2.5, 97.5)).tolist()
    return {"median": float(np.median(ratios)), "low": low, "high": high}


def measure_case(case: Case, samples: Sequence[Sample], settings: Settings, bar: Any) -> dict[str, Any]:
    """Measure every contender on one kind of files; `bar` is told of each one and round."""
    reasons = {name: unavailable(name) for name in CONTENDERS}
    names = [name for name, reason in reasons.items() if reason is None]
    for path in itertools.chain.from_iterable((sample.image, sample.label) for sample in samples):
        # into the page cache, if it is not there from writing
        path.read_bytes()
    first = workload(samples, case.size, case.crop, settings, 0)
    rate = measure_rate("reference", first, warm_up=1, batches=settings.whole(2))
    batches = settings.whole(settings.seconds / settings.rounds * rate / settings.batch_size)
    rates: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(settings.rounds):
        work = workload(samples, case.size, case.crop, settings, turn)
        for name in rotated(names, turn):
            bar.set_postfix_str(f"{case.name} {name}")
            rates[name].append(measure_rate(name, work, warm_up=settings.warm_up, batches=batches))
            bar.update(1)
    contenders: dict[str, Any] = {}
    for name, reason in reasons.items():
        contenders[name] = _entry(name, rates) if reason is None else {"status": "not measured", "reason": reason}
    return {
        "case": case.name,
        "format": case.format,
        "size": list(case.size),
        "crop": list(case.crop),
        "images": len(samples),
        "file_bytes_mean": statistics.fmean(sample.image.stat().st_size for sample in samples),
        "batches_per_round": batches,
        "contenders": contenders,
    }


def _entry(name: str, rates: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    return {
        "images_per_s": statistics.median(rates[name]),
        "rounds": list(rates[name]),
        **{f"ratio_to_{base}": summarise_ratio(rates[name], rates[base]) for base in BASES},
    }


class Training:
    """The student of `pipelines/camvid_cpu.yaml` and its optimiser, on the CPU."""

    def __init__(self) -> None:
        """Build both; the weights are random."""
        spec = ModelSpec("DeepLabV3Plus", "tu-mobilenetv3_small_050", CLASSES, {"decoder_channels": 128})
        self._model = build_model(spec, encoder_weights=None, seed=0)
        self._optimizer = torch.optim.AdamW(self._model.parameters(), lr=0.003)

    def step(self, contender: Contender) -> tuple[float, float]:
        """Take one step, and return the seconds spent on waiting for its batch, and those of the whole."""
        start = time.perf_counter()
        batch = contender.next_batch()
        waited = time.perf_counter() - start
        self._optimizer.zero_grad()
        torch.autograd.backward(cross_entropy(self._model(batch.images), batch.labels, None))
        self._optimizer.step()
        return waited, time.perf_counter() - start


def measure_step(samples: Sequence[Sample], settings: Settings, step: StepSettings, bar: Any) -> dict[str, Any]:
    """Measure which share of a training step waits for data; `bar` is told of each contender and round."""
    training = Training()
    reasons = {name: unavailable(name) for name in STEP_CONTENDERS}
    names = [name for name, reason in reasons.items() if reason is None]
    times: dict[str, list[list[tuple[float, float]]]] = {name: [] for name in names}
    for turn in range(step.rounds):
        work = workload(samples, step.frame, step.frame, settings, turn)
        for name in rotated(names, turn):
            bar.set_postfix_str(f"step {name}")
            contender = open_contender(name, work)
            try:
                taken = [training.step(contender) for _ in range(step.warm_up + step.steps)]
            finally:
                contender.close()
            times[name].append(taken[step.warm_up :])
            bar.update(1)
    contenders: dict[str, Any] = {}
    for name, reason in reasons.items():
        contenders[name] = {"status": "not measured", "reason": reason} if reason else _step_entry(times[name])
    return {"settings": asdict(step), "torch_threads": torch.get_num_threads(), "contenders": contenders}


def _step_entry(rounds: Sequence[Sequence[tuple[float, float]]]) -> dict[str, Any]:
    shares = [sum(waited for waited, _ in steps) / sum(whole for _, whole in steps) for steps in rounds]
    milliseconds = [1000 * statistics.median(whole for _, whole in steps) for steps in rounds]
    return {
        "wait_share": statistics.median(shares),
        "step_ms": statistics.median(1000 * whole for steps in rounds for _, whole in steps),
        "rounds": [{"wait_share": share, "step_ms": ms} for share, ms in zip(shares, milliseconds, strict=True)],
    }


def format_result(result: Mapping[str, Any]) -> str:
    """Return the rates, and the steps if they were measured, as tables."""
    from tabulate import tabulate

    def ratio(value: Mapping[str, float | None]) -> str:
        low, high = value["low"], value["high"]
        return f"{value['median']:.2f}" + ("" if low is None or high is None else f" [{low:.2f}, {high:.2f}]")

    rows = [
        [case["case"], name, entry["reason"], "", ""]
        if "reason" in entry
        else [case["case"], name, f"{entry['images_per_s']:.1f}", *(ratio(entry[f"ratio_to_{base}"]) for base in BASES)]
        for case in result["cases"]
        for name, entry in case["contenders"].items()
    ]
    headers = ["case", "contender", "images/s", *(f"to {base}" for base in BASES)]
    text = tabulate(rows, headers, disable_numparse=True, colalign=["left", "left", *["right"] * 3])
    if result["step"] is None:
        return text
    steps = [
        [name, entry["reason"], ""]
        if "reason" in entry
        else [name, f"{100 * entry['wait_share']:.1f} %", f"{entry['step_ms']:.0f}"]
        for name, entry in result["step"]["contenders"].items()
    ]
    return f"{text}\n\n" + tabulate(
        steps, ["training step", "waits for data", "ms"], disable_numparse=True, colalign=["left", "right", "right"]
    )


def main(
    arguments: Sequence[str] | None = None, *, cases: Sequence[Case] = CASES, step: StepSettings | None = None
) -> int:
    """Run the command and return its exit code; other files than the published cases' serve to test it."""
    options = _parser(cases).parse_args(arguments)
    settings = Settings(threads=options.threads, rounds=options.rounds, seconds=options.seconds)
    chosen = [case for case in cases if not options.case or case.name in options.case]
    training = (step or StepSettings()) if options.step else None
    extra = [training.case] if training is not None and training.case not in chosen else []
    turns = len(chosen) * settings.rounds * sum(unavailable(name) is None for name in CONTENDERS)
    if training is not None:
        turns += training.rounds * sum(unavailable(name) is None for name in STEP_CONTENDERS)
    with tempfile.TemporaryDirectory() as directory:
        try:
            files = make_files(Path(directory), [*chosen, *extra], options.camvid)
        except BrdEdgeError as error:
            print(f"loader: error: {error}", file=sys.stderr)
            return error.exit_code
        with progress_bar(turns, "loaders", unit="turn") as bar:
            measured = [measure_case(case, files[case.name], settings, bar) for case in chosen]
            steps = None if training is None else measure_step(files[training.case.name], settings, training, bar)
    photographs = {"pictures": "CamVid", "resampling": "Lanczos, where enlarged", "noise_sigma": NOISE_SIGMA}
    source = {"pictures": "drawn scenes"} if options.camvid is None else photographs
    environment = describe_environment()
    others = {name: package_version(name) for name in ("albumentations", "opencv-python-headless", "tabulate")}
    environment["packages"] |= {name: version for name, version in others.items() if version is not None}
    result = {
        "benchmark": "loader",
        "environment": environment,
        "settings": {**asdict(settings), "prefetch": PREFETCH, **source, "jpeg_quality": JPEG_QUALITY},
        "cases": measured,
        "step": steps,
    }
    print(format_result(result))
    return publish(result, options.output)


def _parser(cases: Sequence[Case]) -> argparse.ArgumentParser:
    camvid = os.environ.get("CAMVID_ROOT")
    parser = argparse.ArgumentParser(prog="python -m benchmarks.loader", description=__doc__.split("\n")[0])
    parser.add_argument("--camvid", type=Path, default=Path(camvid) if camvid else None, help="default: $CAMVID_ROOT")
    parser.add_argument("--case", action="append", choices=[case.name for case in cases], help="all when not given")
    parser.add_argument("--seconds", type=float, default=20.0, help="for the reference in a case, over all rounds")
    parser.add_argument("--rounds", type=count, default=5)
    parser.add_argument("--threads", type=count, default=2, help="decoding threads, or worker processes")
    parser.add_argument("--step", action="store_true", help="also measure training steps")
    parser.add_argument("--output", type=output_file, help="also write the JSON here")
    return parser


if __name__ == "__main__":
    sys.exit(main())
