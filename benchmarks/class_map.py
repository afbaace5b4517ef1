"""Class maps from logits: dense numpy in two ways, PyTorch, and the sparse class map, which computes only mixed cells.

    python -m benchmarks.class_map [--size 512x1024] [--classes 19] [--stride 4 --stride 8] [--run RUN]

Smooth random logits are drawn so that a given share of their cells is mixed; with a finished run, its
student's logits on its validation images at the same size are measured too. In every round each contender makes
one class map in turn, in an order that rotates; times are medians, speedups medians of the rounds' ratios, both with
bootstrap 95 % intervals. Nothing else may run on the machine meanwhile. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import gc
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from benchmarks import argument_types
from benchmarks.output import output_file, publish
from brd_edge.environment import describe_environment, package_version
from brd_edge.progress import progress_bar
from brd_edge.runtime.class_map import ClassMapper, dense_class_map
from brd_edge.runtime.class_map_grid import interpolation_axis
from brd_edge.runtime.errors import BrdEdgeError, RuntimeMissingError
from brd_edge.runtime.statistics import bootstrap_percentiles

PLAIN, DENSE = "plain numpy", "dense"
"""Upsampling of the whole array and numpy's argmax, as people write it; and `dense_class_map`, the same row by row."""
SHARES = (0.05, 0.1, 0.15)
"""Of mixed cells: what street scenes have."""
STRIDES = (4, 8)

FloatArray = npt.NDArray[np.float32]
Contender = Callable[[FloatArray], npt.NDArray[np.uint8]]


@dataclass(frozen=True)
class Case:
    """What is measured together.

    Attributes:
        source: Where the logits are from.
        logits: float32 (1, K, h, w), one a round in turn.
        size: Rows and columns of the class map.
        align_corners: As in `brd_edge.runtime.class_map`.
    """

    source: str
    logits: Sequence[FloatArray]
    size: tuple[int, int]
    align_corners: bool


def smooth_logits(classes: int, rows: int, columns: int, share: float, seed: int) -> FloatArray:
    """Draw logits of which about a share of the cells is mixed, float32 (1, K, h, w).

    Noise is smoothed: the wider, the larger the regions of one class. The width is found by bisection.
    """
    from scipy.ndimage import gaussian_filter

    noise = np.random.default_rng(seed).standard_normal((classes, rows, columns))
    mapper = ClassMapper(classes, rows, columns, rows, columns, align_corners=False)
    narrow, wide = 0.2, float(max(rows, columns))
    logits = noise.astype(np.float32)[None]
    for _ in range(12):
        sigma = (narrow * wide) ** 0.5
        smooth = gaussian_filter(noise, (0, sigma, sigma), mode="nearest")
        logits = (4 * smooth / smooth.std()).astype(np.float32)[None]
        mapper.class_map(logits)
        if abs(mapper.mixed_share - share) < 0.02 * share:
            break
        narrow, wide = (sigma, wide) if mapper.mixed_share > share else (narrow, sigma)
    return logits


def student_logits(run: Path, count: int, size: tuple[int, int]) -> list[FloatArray]:
    """Return the logits of a run's student at its decoder's stride, float32 (1, K, h, w) an image.

    Args:
        run: Run directory, such as `runs/camvid_cpu`.
        count: Images of the run's validation split, spread over it.
        size: Rows and columns of the frames, to which the images are brought.

    Raises:
        DataError: The run has no prepared data set.
    """
    from brd_edge.data.dataset import read_frame
    from brd_edge.data.index import load_dataset
    from brd_edge.models.segmentation import forward_features, load_model
    from brd_edge.recipe import load_recipe
    from brd_edge.stages.context import input_contract

    contract = replace(input_contract(load_recipe(run / "recipe.yaml")), height=size[0], width=size[1])
    samples = load_dataset(run / "data").val
    model = load_model(run / "distill" / "model")[0].eval()
    mean, std = torch.tensor(contract.mean), torch.tensor(contract.std)
    found = []
    for index in np.linspace(0, len(samples) - 1, min(count, len(samples))).round():
        frame = torch.from_numpy(read_frame(samples[int(index)], contract))
        image = ((frame / 255 - mean) / std).permute(2, 0, 1)[None]
        with torch.inference_mode():
            found.append(forward_features(model, image).coarse_logits.numpy().astype(np.float32))
    return found


def contenders(case: Case) -> dict[str, Contender | str]:
    """Return what makes class maps of a case's logits, by name, or why it cannot be measured."""
    (_, classes, rows, columns), (height, width) = case.logits[0].shape, case.size
    threads = torch.get_num_threads()

    def with_torch(count: int) -> Contender:
        def run(logits: FloatArray) -> npt.NDArray[np.uint8]:
            torch.set_num_threads(count)
            with torch.inference_mode():
                planes = torch.from_numpy(logits)
                whole = F.interpolate(planes, size=case.size, mode="bilinear", align_corners=case.align_corners)
                found: npt.NDArray[np.uint8] = whole.argmax(1)[0].to(torch.uint8).numpy()
            return found

        return run

    def mapper(compiled: bool) -> Contender:
        return ClassMapper(
            classes, rows, columns, height, width, align_corners=case.align_corners, compiled=compiled
        ).class_map  # fmt: skip

    found: dict[str, Contender | str] = {
        PLAIN: _plain(rows, columns, case),
        DENSE: lambda logits: dense_class_map(logits, height, width, align_corners=case.align_corners),
        "torch, 1 thread": with_torch(1),
        f"torch, {threads} threads": with_torch(threads),
        "sparse": mapper(False),
    }
    try:
        found["sparse, numba"] = mapper(True)
    except RuntimeMissingError:
        found["sparse, numba"] = "numba is not installed"
    return found


def _plain(rows: int, columns: int, case: Case) -> Contender:
    down, across = (
        interpolation_axis(count, pixels, align_corners=case.align_corners)
        for count, pixels in zip((rows, columns), case.size, strict=True)
    )
    top, bottom = down.before[down.cell], down.after[down.cell]
    left, right = across.before[across.cell], across.after[across.cell]

    def run(logits: FloatArray) -> npt.NDArray[np.uint8]:
        along = logits[0][:, :, left] * across.weight_before + logits[0][:, :, right] * across.weight_after
        whole = along[:, top] * down.weight_before[:, None] + along[:, bottom] * down.weight_after[:, None]
        found: npt.NDArray[np.uint8] = whole.argmax(0).astype(np.uint8)
        return found

    return run


def measure(case: Case, rounds: int, bar: Any) -> dict[str, Any]:
    """Measure all contenders on one case; `bar` is told of each round."""
    (_, classes, rows, columns), (height, width) = case.logits[0].shape, case.size
    mapper = ClassMapper(classes, rows, columns, height, width, align_corners=case.align_corners)
    expected = [dense_class_map(logits, height, width, align_corners=case.align_corners) for logits in case.logits]
    shares = [_mixed_share(mapper, logits) for logits in case.logits]
    entries: dict[str, Any] = {}
    runs: dict[str, Contender] = {}
    for name, run in contenders(case).items():
        if isinstance(run, str):
            entries[name] = {"status": "not measured", "reason": run}
            continue
        maps = [run(logits) for logits in case.logits]
        agreement = np.mean([np.mean(found == right) for found, right in zip(maps, expected, strict=True)])
        runs[name], entries[name] = run, {"agreement": float(agreement)}
    times = _times(runs, case.logits, rounds, bar)
    for name, taken in times.items():
        speedups = {base: _median(times[base] / taken) for base in (PLAIN, DENSE)}
        entries[name] |= {"ms": _median(taken), "speedup_over": speedups}
    return {
        "logits": case.source,
        "shape": list(case.logits[0].shape),
        "frames": len(case.logits),
        "size": list(case.size),
        "align_corners": case.align_corners,
        "mixed_share": float(np.mean(shares)),
        "contenders": entries,
    }


def _mixed_share(mapper: ClassMapper, logits: FloatArray) -> float:
    mapper.class_map(logits)
    return mapper.mixed_share


def _times(
    runs: Mapping[str, Contender], logits: Sequence[FloatArray], rounds: int, bar: Any
) -> dict[str, npt.NDArray[np.float64]]:
    """Return the milliseconds of every contender in every round."""
    names = list(runs)
    times = {name: np.empty(rounds) for name in names}
    threads = torch.get_num_threads()
    gc.collect()
    gc.disable()
    try:
        for turn in range(rounds):
            first = turn % len(names)
            for name in [*names[first:], *names[:first]]:
                start = time.perf_counter_ns()
                runs[name](logits[turn % len(logits)])
                times[name][turn] = (time.perf_counter_ns() - start) / 1e6
            bar.update(1)
    finally:
        gc.enable()
        torch.set_num_threads(threads)
    return times


def _median(values: npt.NDArray[np.float64]) -> dict[str, float]:
    return bootstrap_percentiles(values, [50])[0].to_json()


def format_result(result: Mapping[str, Any]) -> str:
    """Return the times and speedups as a table."""
    from tabulate import tabulate

    def show(value: Mapping[str, float]) -> str:
        return f"{value['value']:.2f} [{value['low']:.2f}, {value['high']:.2f}]"

    rows = []
    for case in result["cases"]:
        shape = "x".join(str(side) for side in case["shape"][1:])
        where = f"{case['logits']} {shape}, {100 * case['mixed_share']:.1f} % mixed"
        for name, entry in case["contenders"].items():
            if "reason" in entry:
                rows.append([where, name, entry["reason"], "", "", ""])
                continue
            agreement = f"{100 * entry['agreement']:.4f} %"
            speedups = [show(entry["speedup_over"][base]) for base in (PLAIN, DENSE)]
            rows.append([where, name, show(entry["ms"]), *speedups, agreement])
    headers = ["logits", "contender", "ms", *(f"times as fast as {base}" for base in (PLAIN, DENSE)), "agreement"]
    return tabulate(rows, headers, disable_numparse=True, colalign=["left", "left", *["right"] * 4])


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    options = _parser().parse_args(arguments)
    height, width = options.size
    aligned = not options.half_pixel
    cases = []
    for stride in options.stride or STRIDES:
        rows, columns = -(-height // stride), -(-width // stride)
        for share in options.mixed or SHARES:
            logits = smooth_logits(options.classes, rows, columns, share, seed=0)
            cases.append(Case(f"smooth, {share:g}", [logits], options.size, aligned))
    if options.run is not None:
        try:
            frames = student_logits(options.run, options.frames, options.size)
        except BrdEdgeError as error:
            print(f"class_map: {error}", file=sys.stderr)
            return error.exit_code
        cases.append(Case(options.run.name, frames, options.size, aligned))
    with progress_bar(len(cases) * options.rounds, "class map", unit="round") as bar:
        measured = [measure(case, options.rounds, bar) for case in cases]
    environment = describe_environment()
    environment["packages"] |= {"scipy": package_version("scipy")}
    result = {
        "benchmark": "class_map",
        "rounds": options.rounds,
        "torch_threads": torch.get_num_threads(),
        "environment": environment,
        "cases": measured,
    }
    print(format_result(result))
    return publish(result, options.output)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.class_map", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--size", type=argument_types.size, default=(512, 1024), metavar="HxW", help="of the class map")
    parser.add_argument("--classes", type=argument_types.count, default=19)
    parser.add_argument("--stride", type=argument_types.count, action="append", help="4 and 8 when not given")
    parser.add_argument(
        "--mixed", type=argument_types.share, action="append", help="share of mixed cells; 0.05, 0.1, 0.15 by default"
    )
    parser.add_argument("--half-pixel", action="store_true", help="align_corners=False, unlike the models' heads")
    parser.add_argument("--rounds", type=argument_types.rounds, default=60)
    parser.add_argument("--run", type=Path, help="a finished run, such as runs/camvid_cpu")
    parser.add_argument(
        "--frames", type=argument_types.count, default=8, help="of the run's validation split, spread over it"
    )
    parser.add_argument("--output", type=output_file, help="also write the JSON here")
    return parser


if __name__ == "__main__":
    sys.exit(main())
