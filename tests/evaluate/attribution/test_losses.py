"""A planted fault is found at its step and only there; without one, no step loses anything."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest
import torch
from PIL import Image
from torch import nn

from brd_edge.data.dataset import Sample, find_class_pixels, read_frame, read_label
from brd_edge.deploy.logits import cut_at_logits
from brd_edge.evaluate.accuracy import model_predictor
from brd_edge.evaluate.attribution.chain import BuiltEngine, Reading, Student, chain_ways, count_ways
from brd_edge.evaluate.attribution.losses import Attribution, attribute_losses
from brd_edge.runtime.builders import build_engine
from brd_edge.runtime.contract import SLIDING_WINDOW, InputContract
from brd_edge.runtime.engine import open_engine
from brd_edge.runtime.errors import DataError
from brd_edge.runtime.frames import resize_class_map
from brd_edge.runtime.statistics import Interval

CLASSES = 5
CONTRACT = InputContract(24, 32, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.25))
NATIVE = (48, 64)
STEPS = ("loader", "preprocessing", "onnx", "class_map", "runtime")
GRAPH = """<ir_version: 10, opset_import: ["" : 20]>
student (uint8[1,24,32,3] image) => (uint8[1,24,32] class_map) {
    pixels = Cast<to=1>(image)
    planes = Transpose<perm=[0,3,1,2]>(pixels)
    scaled = Mul(planes, scale)
    normal = Add(scaled, shift)
    hidden = Conv<pads=[1,1,1,1]>(normal, w1, b1)
    active = Relu(hidden)
    logits = Conv<pads=[1,1,1,1]>(active, w2, b2)
    ids = ArgMax<axis=1, keepdims=0>(logits)
    chosen = Gather(order, ids)
    class_map = Cast<to=2>(chosen)
}"""

COARSE = """<ir_version: 10, opset_import: ["" : 20]>
student (uint8[1,24,32,3] image) => (uint8[1,24,32] class_map) {
    pixels = Cast<to=1>(image)
    planes = Transpose<perm=[0,3,1,2]>(pixels)
    scaled = Mul(planes, scale)
    normal = Add(scaled, shift)
    logits = Conv<strides=[4,4], kernel_shape=[4,4]>(normal, w)
    full = Resize<mode="linear", coordinate_transformation_mode="half_pixel">(logits, , scales)
    ids = ArgMax<axis=1, keepdims=0>(full)
    class_map = Cast<to=2>(ids)
}"""


@dataclass(frozen=True)
class Made:
    student: Student
    samples: list[Sample]
    write_graph: Callable[..., Path]
    build: Callable[..., BuiltEngine]


def network() -> nn.Sequential:
    generator = torch.Generator().manual_seed(3)
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, CLASSES, 3, padding=1)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / 3)
    return model.requires_grad_(requires_grad=False)


def constants(model: nn.Sequential) -> dict[str, np.ndarray]:
    std = np.array(CONTRACT.std)
    shape = (1, 3, 1, 1)
    found = {
        "scale": (1 / (255 * std)).astype(np.float32).reshape(shape),
        "shift": (-np.array(CONTRACT.mean) / std).astype(np.float32).reshape(shape),
        "order": np.arange(CLASSES),
    }
    for name, layer in (("1", model[0]), ("2", model[2])):
        found |= {f"w{name}": layer.weight.numpy(), f"b{name}": layer.bias.numpy()}
    return found


@pytest.fixture
def made(tmp_path: Path) -> Made:
    """Pictures of blobs whose labels are what the network says of them, apart from a margin that is ignored."""
    model = network()

    def write_graph(name: str = "student", **changes: np.ndarray) -> Path:
        graph = onnx.parser.parse_model(GRAPH)
        values = {**constants(model), **changes}
        graph.graph.initializer.extend(onnx.numpy_helper.from_array(value, key) for key, value in values.items())
        onnx.checker.check_model(graph)
        path = tmp_path / f"{name}.onnx"
        onnx.save(graph, path)
        return path

    def build(path: Path, runtime: str, *, precision: str = "fp32", **described: Any) -> BuiltEngine:
        out = tmp_path / f"{path.stem}-{runtime}-{precision}"
        palette = tuple((index, 0, 0) for index in range(CLASSES))
        build_engine(
            runtime=runtime,
            precision=precision,
            target="x86-cpu",
            onnx=path,
            out=out,
            contract=CONTRACT,
            classes=tuple("abcde"),
            palette=palette,
            logits=described.pop("logits", None),
        )
        return BuiltEngine(out, runtime, precision, **described)

    student = Student(model, torch.device("cpu"), write_graph(), CONTRACT, CLASSES)
    predict = model_predictor(model, CONTRACT, student.device)
    samples = []
    for index in range(6):
        rng = np.random.default_rng(index)
        small = Image.fromarray(rng.integers(0, 256, (8, 10, 3), np.uint8))
        image, label = tmp_path / f"{index}.png", tmp_path / f"{index}_label.png"
        small.resize(NATIVE[::-1], Image.Resampling.BICUBIC).save(image)
        sample = Sample(f"image {index}", image, label, *NATIVE, ())
        truth = resize_class_map(predict(read_frame(sample, CONTRACT)), *NATIVE).copy()
        truth[:3] = 255
        Image.fromarray(truth).save(label)
        samples.append(replace(sample, classes=find_class_pixels(truth)))
    return Made(student, samples, write_graph, build)


def attribute(made: Made, engines: dict[str, BuiltEngine] | None = None, **changes: Any) -> Attribution:
    student = replace(made.student, **{key: changes.pop(key) for key in ("graph", "contract") if key in changes})
    if engines is None:
        engines = {"ort": made.build(student.graph, "onnxruntime")}
    settings = {"reading": Reading("torch", threads=1), "threads": 1, **changes}
    return attribute_losses(student, made.samples, engines=engines, **settings)


def require_fault_only_at(found: Attribution, place: int) -> None:
    for number, step in enumerate(found.steps):
        assert step.reason == "", step.name
        if number == place:
            assert step.lost["miou"].low > 0.01, step.name
            assert step.lost["boundary_iou"].value > 0.01
            assert step.agreement < 0.99
            assert len(step.worst) == 3
            assert all(item.right < 0 for item in step.worst)
        else:
            assert abs(step.lost["miou"].value) < 0.002, step.name
            assert step.agreement > 0.999, step.name


def test_without_a_fault_nothing_is_lost(made: Made) -> None:
    graph = made.student.graph
    engines = {name: made.build(graph, name) for name in ("onnxruntime", "openvino")}
    found = attribute(made, engines)
    assert tuple(step.name for step in found.steps) == (*STEPS, "runtime")
    assert [step.engine for step in found.steps[-2:]] == ["onnxruntime", "openvino"]
    assert found.images == 6
    assert found.scores["miou"] > 0.999
    require_fault_only_at(found, -1)
    assert found.steps[0].agreement == 1
    assert found.steps[0].worst == ()
    # the ways form a chain, and all engines begin where it ends
    ways = [found.title, *(step.after for step in found.steps[:4])]
    assert [step.before for step in found.steps] == [*ways[:4], ways[4], ways[4]]
    assert found.title == "training loader (torch), PyTorch"


def test_a_wrong_normalisation(made: Made) -> None:
    shift = constants(made.student.model)["shift"] + np.float32(24 / 255 / 0.25)
    require_fault_only_at(attribute(made, graph=made.write_graph("wrong", shift=shift)), STEPS.index("preprocessing"))


def test_a_weight_that_is_another_in_the_graph(made: Made) -> None:
    bias = constants(made.student.model)["b2"].copy()
    bias[1] += 0.5
    require_fault_only_at(attribute(made, graph=made.write_graph("wrong", b2=bias)), STEPS.index("onnx"))


def test_two_classes_swapped_in_the_class_map(made: Made) -> None:
    graph = made.write_graph("wrong", order=np.array([1, 0, 2, 3, 4]))
    require_fault_only_at(attribute(made, graph=graph), STEPS.index("class_map"))


def test_an_engine_of_another_graph(made: Made) -> None:
    other = made.write_graph("other", b2=constants(made.student.model)["b2"][::-1].copy())
    engines = {"right": made.build(made.student.graph, "openvino"), "wrong": made.build(other, "openvino")}
    found = attribute(made, engines)
    require_fault_only_at(found, 5)
    # scores and changes as numpy counts them from the engine's own class maps
    shares, right = [], []
    predict = model_predictor(made.student.model, CONTRACT, made.student.device)
    with open_engine(engines["wrong"].directory) as runner:
        for sample in made.samples:
            frame, label = read_frame(sample, CONTRACT), read_label(sample)
            before, after = predict(frame), runner.infer(frame)
            shares.append(np.mean(before != after))
            hits = [(resize_class_map(item, *NATIVE) == label)[label != 255].mean() for item in (before, after)]
            right.append(hits[1] - hits[0])
    step = found.steps[5]
    assert step.agreement == pytest.approx(1 - np.mean(shares), abs=1e-3)
    first = int(np.argmax(shares))
    assert step.worst[0].image == made.samples[first].id
    assert step.worst[0].changed == pytest.approx(shares[first], abs=2e-3)
    assert step.worst[0].right == pytest.approx(right[first], abs=2e-3)


def test_precision_and_runtime_are_told_apart(made: Made) -> None:
    """An engine whose graph was lowered wrongly, and one that computes something else than its graph says."""
    graph, bias = made.student.graph, constants(made.student.model)["b2"].copy()
    bias[1] += 0.5
    wrong = made.write_graph("wrong", b2=bias)
    engines = {
        "lowered": made.build(wrong, "onnxruntime", precision="int8", lowered=wrong),
        "computed": made.build(wrong, "openvino", precision="int8", lowered=graph),
    }
    found = attribute(made, engines)
    first, second, third, fourth = found.steps[4:]
    assert [step.name for step in found.steps[4:]] == ["precision", "runtime"] * 2
    assert [step.after for step in (first, second)] == ["lowered: in float", "lowered"]
    # the second engine's chain begins where the shared one ends, not at the first engine
    assert first.before == third.before == found.steps[3].after
    assert (second.before, fourth.before) == (first.after, third.after)
    require_fault_only_at(replace(found, steps=found.steps[:6]), 4)
    require_fault_only_at(replace(found, steps=(*found.steps[:4], third, fourth)), 5)


def test_a_precision_that_is_told_when_the_engine_is_opened_comes_after_the_runtime(made: Made) -> None:
    graph = made.student.graph
    engines = {
        "whole": made.build(graph, "openvino", precision="bf16"),
        "rest": made.build(graph, "openvino", precision="int8-bf16", lowered=graph),
        # built by a version that did not keep its graph
        "unknown": BuiltEngine(Path("nowhere"), "onnxruntime", "int8"),
    }
    found = attribute(made, engines)
    assert [(step.engine, step.name, step.title, step.after) for step in found.steps[4:]] == [
        ("whole", "runtime", "runtime", "whole: in fp32"),
        ("whole", "precision", "precision (bf16)", "whole"),
        ("rest", "precision", "precision (int8)", "rest: in float"),
        ("rest", "runtime", "runtime", "rest: rest in fp32"),
        ("rest", "precision", "precision (bf16)", "rest"),
        ("unknown", "engine", "runtime and precision", "unknown"),
    ]
    assert [step.agreement for step in found.steps[7:8]] == [1]
    reading = {"engines": engines, "reading": Reading("torch"), "threads": 1, "known": None}
    assert count_ways(engines) == len(chain_ways(made.student, made.samples, **reading)) == len(found.steps) + 1


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_the_class_map_from_coarse_logits_is_a_step_of_its_own_and_loses_nothing(made: Made, runtime: str) -> None:
    generator = torch.Generator().manual_seed(5)
    convolution = nn.Conv2d(3, CLASSES, 4, stride=4, bias=False)
    with torch.no_grad():
        convolution.weight.copy_(torch.randn(convolution.weight.shape, generator=generator))
    model = nn.Sequential(convolution, nn.Upsample(scale_factor=4, mode="bilinear")).eval().requires_grad_(False)
    known = constants(made.student.model)
    values = {"w": convolution.weight.numpy(), "scales": np.array([1, 1, 4, 4], np.float32)}
    graph = onnx.parser.parse_model(COARSE)
    for name, value in {**values, "scale": known["scale"], "shift": known["shift"]}.items():
        graph.graph.initializer.append(onnx.numpy_helper.from_array(value, name))
    path = made.student.graph.with_name("coarse.onnx")
    onnx.save(graph, path)
    cut = path.with_name("cut.onnx")
    logits = cut_at_logits(path, cut)
    student = replace(made.student, model=model, graph=path)
    engines = {"sparse": made.build(cut, runtime, logits=logits, sparse=True)}
    found = attribute(replace(made, student=student), engines)
    *_, upsampled, sparse = found.steps
    assert [(step.name, step.after) for step in (upsampled, sparse)] == [
        ("runtime", "sparse: dense argmax"),
        ("class_map", "sparse"),
    ]
    assert upsampled.agreement is not None
    assert upsampled.agreement > 0.999
    assert sparse.agreement == 1
    assert sparse.lost["miou"] == Interval(0, 0, 0)


def test_an_image_that_training_reads_otherwise(made: Made) -> None:
    for sample in made.samples:
        with Image.open(sample.image) as opened:
            exif = opened.getexif()
            exif[0x0112] = 3
            turned = opened.transpose(Image.Transpose.ROTATE_180)
        turned.save(sample.image, exif=exif)
    found = attribute(made)
    # training scored less than the reference: what is lost is below 0
    assert found.steps[0].lost["miou"].high < -0.01
    assert found.steps[0].agreement < 0.9
    assert all(step.agreement > 0.999 for step in found.steps[1:])


def test_losses_add_up_and_known_class_maps_change_nothing(made: Made) -> None:
    shift = constants(made.student.model)["shift"] + np.float32(0.2)
    graph = made.write_graph("wrong", shift=shift, order=np.array([0, 2, 1, 3, 4]))
    engines = {"ort": made.build(graph, "onnxruntime")}
    found = attribute(made, engines, graph=graph).to_json()
    for name in ("miou", "boundary_iou"):
        total = sum(step["lost"][name]["value"] for step in found["steps"])
        assert found["start"][name] - total == pytest.approx(found["steps"][-1][name], abs=1e-12)
    predict = model_predictor(made.student.model, CONTRACT, made.student.device)
    known = [predict(read_frame(sample, CONTRACT)) for sample in made.samples]
    calls: list[int] = []
    again = attribute(made, engines, graph=graph, known=known, on_image=lambda: calls.append(1))
    assert again.to_json() == found
    assert len(calls) == 6 * 6


def test_windows_have_no_loader_step(made: Made) -> None:
    contract = replace(CONTRACT, resize=SLIDING_WINDOW)
    found = attribute(made, {}, contract=contract)
    loader, *others = found.steps
    assert (loader.name, loader.lost, loader.agreement) == ("loader", {}, None)
    assert "windows" in loader.reason
    assert not loader.failed
    assert found.title == loader.before == "reference preprocessing, PyTorch"
    # what was measured is not called unmeasured
    assert loader.after.startswith("training loader (")
    assert loader.after.endswith("), PyTorch")
    assert [step.name for step in others] == list(STEPS[1:-1])
    assert all(step.agreement > 0.999 for step in others)


def test_what_cannot_run_says_why_and_hides_nothing(made: Made) -> None:
    gone = BuiltEngine(Path("nowhere"), "onnxruntime", "fp32")
    engines = {"ort": made.build(made.student.graph, "onnxruntime"), "gone": gone}
    damaged = made.build(made.write_graph("damaged"), "onnxruntime")
    (damaged.directory / "model.onnx").write_bytes(b"damaged")
    broken = made.student.graph.with_name("broken.onnx")
    broken.write_bytes(b"not a graph")
    found = attribute(made, {**engines, "damaged": damaged}, graph=broken)
    assert [step.failed for step in found.steps] == [False, True, True, True, False, True, True]
    for step in found.steps[1:4]:
        assert "broken.onnx" in step.reason
        assert step.lost == {}
    reached = found.steps[4]
    assert reached.before == "reference preprocessing, PyTorch"
    assert reached.title == "preprocessing in the graph + ONNX fp32 + class map in the graph + runtime"
    assert reached.agreement > 0.999
    assert "nowhere" in found.steps[5].reason
    assert "SHA-256" in found.steps[6].reason or "bytes" in found.steps[6].reason
    assert found.to_json()["steps"][5] == {
        "name": "runtime",
        "title": "runtime",
        "engine": "gone",
        "from": "reference preprocessing, PyTorch",
        "to": "gone",
        "miou": None,
        "boundary_iou": None,
        "lost": None,
        "agreement": None,
        "worst": [],
        "reason": found.steps[5].reason,
    }


def test_samples_that_cannot_be_read(made: Made) -> None:
    made.samples[3].image.write_bytes(b"")
    with pytest.raises(DataError, match=r"3\.png"):
        attribute(made, {})
    with pytest.raises(DataError, match="at least one sample"):
        attribute(replace(made, samples=[]), {})
