"""Engines of a student on a processor, from the uint8 frame to the class map, against what people write today.

    python -m benchmarks.engines RUN [--size 512x1024] [--images 20] [--rounds 30] [--output FILE]

RUN is a run with a trained student, which is exported anew at the given size. The baseline is ONNX Runtime in fp32 with
normalisation in numpy before it, float logits at full size, and numpy's argmax behind it. Each engine is built with
its class map in the graph and, where the model upsamples its logits, from coarse logits. In every round each contender
segments one frame, in an order that rotates; what is compared are the ratios of a round. Accuracy is that over
validation images brought to the size, against the exported fp32 graph. Where OpenVINO's `benchmark_app` is installed,
it times the fp32 and the int8 engine in turns with the runner, each in a process of its own. Nothing else may run on
the machine meanwhile. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import gc
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks import argument_types
from benchmarks.output import output_file, publish
from brd_edge.data.dataset import Dataset, read_frame
from brd_edge.data.index import load_dataset
from brd_edge.deploy.agreement import stand_in
from brd_edge.deploy.calibration import calibrate
from brd_edge.deploy.export import export_onnx
from brd_edge.deploy.graphs import parts_of, read_graph, write_graph
from brd_edge.deploy.logits import cut_at_logits
from brd_edge.deploy.lowering import lower_graph
from brd_edge.environment import describe_environment
from brd_edge.evaluate.accuracy import Predictor, evaluate_predictor
from brd_edge.evaluate.intervals import score_losses
from brd_edge.models.segmentation import load_model
from brd_edge.progress import progress_bar
from brd_edge.recipe import load_recipe
from brd_edge.runtime.builders import build_engine
from brd_edge.runtime.contract import InputContract
from brd_edge.runtime.engine import CoarseLogits, open_engine
from brd_edge.runtime.errors import BrdEdgeError, DataError, EngineError
from brd_edge.runtime.metrics import SegmentationMetrics
from brd_edge.runtime.runners.checks import import_runtime
from brd_edge.runtime.runners.onnxruntime import INSTALL
from brd_edge.runtime.runners.openvino import NO_CACHE
from brd_edge.runtime.statistics import bootstrap_percentiles
from brd_edge.runtime.targets import TARGETS
from brd_edge.stages.context import input_contract

BASELINE = "onnxruntime fp32, numpy around it"
TARGET = "x86-cpu"
_CALIBRATED = 64
# seconds of a turn of the vendor's tool: a machine is not as fast in one minute as in the next
_VENDOR_S = 2

Frame = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Student:
    """What is measured.

    Attributes:
        graph: Exported fp32 graph.
        contract: Its frames.
        dataset: Where calibration and validation frames are from.
        threads: Of every contender.
    """

    graph: Path
    contract: InputContract
    dataset: Dataset
    threads: int


def export_student(run: Path, size: tuple[int, int], directory: Path, threads: int) -> Student:
    """Export a run's student for frames of another size.

    Raises:
        DataError: The run has no prepared data set, or no trained student.
    """
    if not (run / "distill" / "model").is_dir():
        raise DataError(f"{run}: expected the directory of a run whose student is trained, with distill/model in it")
    contract = replace(input_contract(load_recipe(run / "recipe.yaml")), height=size[0], width=size[1])
    dataset = load_dataset(run / "data")
    model, spec = load_model(run / "distill" / "model")
    path = directory / "student.onnx"
    metadata = {"model": f"{spec.arch} / {spec.encoder}"}
    export_onnx(model, path, contract=contract, classes=dataset.classes, palette=dataset.palette, metadata=metadata)
    return Student(path, contract, dataset, threads)


def baseline(student: Student, directory: Path) -> Predictor:
    """Return what people write: normalisation and argmax in numpy around a float graph in ONNX Runtime."""
    import onnx

    onnxruntime = import_runtime("onnxruntime", INSTALL)
    model = read_graph(student.graph)
    parts = parts_of(model, student.graph)
    contract, classes = student.contract, len(student.dataset.classes)
    shape = [1, 3, contract.height, contract.width]
    kind = onnx.TensorProto.FLOAT
    del model.graph.input[:], model.graph.output[:]
    model.graph.input.append(onnx.helper.make_tensor_value_info(parts.image, kind, shape))
    model.graph.output.append(onnx.helper.make_tensor_value_info(parts.logits, kind, [1, classes, *shape[2:]]))
    write_graph(model, directory / "float.onnx", nodes=parts.body)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = student.threads
    # takes nothing from its own speed, and leaves the cores to the contender after it
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session = onnxruntime.InferenceSession(directory / "float.onnx", options, providers=["CPUExecutionProvider"])
    mean, std = (np.array(values, np.float32) for values in (contract.mean, contract.std))

    def predict(frame: Frame) -> Frame:
        image = ((frame.astype(np.float32) / 255 - mean) / std).transpose(2, 0, 1)[None]
        (logits,) = session.run(None, {parts.image: np.ascontiguousarray(image)})
        found: Frame = logits.argmax(1)[0].astype(np.uint8)
        return found

    return predict


def build_engines(student: Student, directory: Path) -> dict[str, Path]:
    """Build every engine of `TARGET`, dense and sparse; the engines' directories by name."""
    chosen = spread(len(student.dataset.train), _CALIBRATED)
    frames = [read_frame(student.dataset.train[index], student.contract) for index in chosen]
    ranges = calibrate(student.graph, frames)
    names = [(runtime, each) for runtime, found in TARGETS[TARGET].precisions.items() for each in found]
    built = {}
    for runtime, precision in names:
        place = directory / f"{runtime}-{precision}"
        graph = lower_graph(
            student.graph, place, runtime=runtime, precision=precision, frames=frames, ranges=lambda: ranges
        )
        cut = place / f"logits{graph.suffix}"
        logits = cut_at_logits(graph, cut)
        forms: list[tuple[str, Path, CoarseLogits | None]] = [("dense", graph, None)]
        forms += [] if logits is None else [("sparse", cut, logits)]
        for form, source, coarse in forms:
            built[f"{runtime} {precision}, {form}"] = place / form
            build_engine(
                runtime=runtime,
                precision=precision,
                target=TARGET,
                onnx=source,
                out=place / form,
                contract=student.contract,
                classes=student.dataset.classes,
                palette=student.dataset.palette,
                logits=coarse,
            )
    return built


def spread(count: int, wanted: int) -> list[int]:
    """Return `wanted` indices spread evenly over `count`."""
    return sorted({int(index) for index in np.linspace(0, count - 1, min(count, wanted)).round()})


def measure(student: Student, contenders: Mapping[str, Predictor], images: int, rounds: int) -> dict[str, Any]:
    """Measure accuracy, then time: an entry a contender."""
    val = student.dataset.val
    samples = [val[index] for index in spread(len(val), images)]
    reference = _score(student, stand_in(student.graph, runtime="onnxruntime"), samples, "fp32 graph")
    entries: dict[str, Any] = {}
    for name, predict in contenders.items():
        found = _score(student, predict, samples, name)
        losses = score_losses(found, reference)
        entries[name] = {
            **{key: value for key, value in found.to_json().items() if key in ("miou", "boundary_iou")},
            "lost": {key: losses[key].to_json() for key in ("miou", "boundary_iou")},
        }
    frames = [read_frame(sample, student.contract) for sample in samples]
    times = _times(contenders, frames, rounds)
    for name, taken in times.items():
        entries[name] |= {"ms": _median(taken), "ratio": _median(taken / times[BASELINE])}
    return entries


def _score(student: Student, predict: Predictor, samples: Sequence[Any], title: str) -> SegmentationMetrics:
    with progress_bar(len(samples), title, unit="image") as bar:
        return evaluate_predictor(
            predict,
            samples,
            contract=student.contract,
            metrics=SegmentationMetrics(len(student.dataset.classes), connectivity=False, keep_images=True),
            on_class_map=lambda _index, _class_map: bar.update(1),
        )


def _times(
    contenders: Mapping[str, Predictor], frames: Sequence[Frame], rounds: int
) -> dict[str, npt.NDArray[np.float64]]:
    """Return the milliseconds of every contender in every round."""
    names = list(contenders)
    times = {name: np.empty(rounds) for name in names}
    for predict in contenders.values():
        for frame in frames[:3]:
            predict(frame)
    gc.collect()
    gc.disable()
    try:
        with progress_bar(rounds, "timing", unit="round") as bar:
            for turn in range(rounds):
                first = turn % len(names)
                for name in [*names[first:], *names[:first]]:
                    start = time.perf_counter_ns()
                    contenders[name](frames[turn % len(frames)])
                    times[name][turn] = (time.perf_counter_ns() - start) / 1e6
                bar.update(1)
    finally:
        gc.enable()
    return times


def _median(values: npt.NDArray[np.float64]) -> dict[str, float]:
    return bootstrap_percentiles(values, [50])[0].to_json()


def vendor_overhead(engine: Path, precision: str, threads: int, turns: int) -> dict[str, Any]:
    """Time OpenVINO's own tool and our runner in turns, each in a process of its own: the medians, and their ratios.

    A model that OpenVINO takes from its cache may be slower than one that it has just compiled. The runner has the
    cache on by default and the tool off, so both are timed either way.

    Args:
        engine: Directory of an OpenVINO engine with the class map in its graph.
        precision: What its layers compute in that are not quantised, as `benchmark_app` calls it.
        threads: Of both.
        turns: How often each is timed; none leaves it out.
    """
    tool = shutil.which("benchmark_app", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    if tool is None or turns < 1:
        return {"status": "not measured", "reason": "not asked for" if tool else "benchmark_app is not installed"}
    theirs = [tool, "-m", str(engine / "model.xml"), "-d", "CPU", "-hint", "none", "-nstreams", "1", "-api", "sync"]
    theirs += ["-nireq", "1", "-nthreads", str(threads), "-infer_precision", precision, "-t", str(_VENDOR_S)]
    ours = [sys.executable, "-m", "benchmarks.engine_process", str(engine), "--threads", str(threads)]
    ours += ["--seconds", str(_VENDOR_S), "--call"]
    commands: tuple[tuple[list[str], dict[str, str]], ...] = (
        ([*theirs, "-cdir", str(engine.parent / "cache")], {}),
        (theirs, {}),
        ([*ours, "bind"], {}),
        ([*ours, "infer"], {}),
        ([*ours, "infer"], {NO_CACHE: "1"}),
    )
    taken = np.empty((turns, len(commands)))
    try:
        # what is not in a cache yet is compiled and put there
        for command in (commands[0], commands[3]):
            _told_ms(*command)
        for turn in range(turns):
            for place in range(len(commands)):
                which = (turn + place) % len(commands)
                taken[turn, which] = _told_ms(*commands[which])
    except EngineError as error:
        return {"status": "not measured", "reason": str(error)}
    vendor, uncached, alone, whole, compiled = taken.T
    return {
        "benchmark_app_ms": _median(vendor),
        "benchmark_app_no_cache_ms": _median(uncached),
        "engine_ms": _median(alone),
        "infer_ms": _median(whole),
        "infer_no_cache_ms": _median(compiled),
        "engine_ratio": _median(alone / vendor),
        "infer_ratio": _median(whole / vendor),
        "cache_ratio": _median(vendor / uncached),
        "infer_no_cache_ratio": _median(compiled / uncached),
        "infer_to_no_cache_ratio": _median(whole / uncached),
    }


def _told_ms(command: Sequence[str], environment: Mapping[str, str]) -> float:
    """Run a command that times an engine and return the median in milliseconds that it prints.

    Args:
        command: What to run.
        environment: Variables that it gets beside this process's.

    Raises:
        EngineError: It failed, or printed none.
    """
    variables = {**os.environ, **environment}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=variables)  # noqa: S603
    told = re.search(r"(?:Median:\s+|^)([\d.]+) (ms|us)$", done.stdout, re.MULTILINE)
    if done.returncode or told is None:
        raise EngineError(f"{command[0]}: {(done.stderr or done.stdout)[-300:]}")
    return float(told[1]) / (1000 if told[2] == "us" else 1)


def format_result(result: Mapping[str, Any]) -> str:
    """Return times, ratios and losses as a table."""
    from tabulate import tabulate

    rows = [
        [
            name,
            f"{entry['ms']['value']:.1f}",
            f"{entry['ratio']['value']:.3f} [{entry['ratio']['low']:.3f}, {entry['ratio']['high']:.3f}]",
            *(f"{100 * entry['lost'][key]['value']:.2f}" for key in ("miou", "boundary_iou")),
        ]
        for name, entry in result["contenders"].items()
    ]
    headers = ["contender", "ms", "times the baseline", "mIoU lost", "Boundary IoU lost"]
    return tabulate(rows, headers, disable_numparse=True, colalign=["left", *["right"] * 4])


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    options = _parser().parse_args(arguments)
    try:
        with tempfile.TemporaryDirectory() as scratch, ExitStack() as stack:
            student = export_student(options.run, options.size, Path(scratch), options.threads)
            contenders: dict[str, Predictor] = {BASELINE: baseline(student, Path(scratch))}
            built = build_engines(student, Path(scratch))
            for name, path in built.items():
                contenders[name] = stack.enter_context(open_engine(path, threads=options.threads)).infer
            entries = measure(student, contenders, options.images, options.rounds)
            stack.close()
            vendor = {
                name: vendor_overhead(built[f"{name}, dense"], precision, options.threads, options.vendor_turns)
                for name, precision in (("openvino fp32", "f32"), ("openvino int8", "f32"))
            }
    except BrdEdgeError as error:
        print(f"engines: {error}", file=sys.stderr)
        return error.exit_code
    result = {
        "benchmark": "engines",
        "run": options.run.name,
        "size": list(options.size),
        "images": options.images,
        "rounds": options.rounds,
        "threads": options.threads,
        "contenders": entries,
        "benchmark_app": vendor,
        "environment": describe_environment(),
    }
    print(format_result(result))
    return publish(result, options.output)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.engines", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("run", type=Path, help="a run with a trained student, such as runs/camvid_cpu")
    parser.add_argument("--size", type=argument_types.size, default=(512, 1024), metavar="HxW", help="of the frames")
    parser.add_argument(
        "--images", type=argument_types.count, default=20, help="of the validation split, spread over it"
    )
    parser.add_argument("--rounds", type=argument_types.rounds, default=30)
    parser.add_argument("--threads", type=argument_types.count, default=2)
    parser.add_argument("--vendor-turns", type=int, default=15, help="of benchmark_app; 0 leaves it out")
    parser.add_argument("--output", type=output_file, help="also write the JSON here")
    return parser


if __name__ == "__main__":
    sys.exit(main())
