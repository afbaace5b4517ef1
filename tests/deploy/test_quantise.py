"""INT8 graphs, judged by float64 numpy, ONNX's reference evaluator, PyTorch and the three runtimes."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.parser
import pytest
import torch

from brd_edge.deploy.agreement import check_artefact
from brd_edge.deploy.calibration import calibrate, calibration_frames
from brd_edge.deploy.export import export_onnx
from brd_edge.deploy.graphs import opset_of
from brd_edge.deploy.groups import layer_groups
from brd_edge.deploy.qdq import activation_grid, quantise_weight
from brd_edge.deploy.quantise import NothingToQuantiseError, quantise_onnxruntime, quantise_tensorrt
from brd_edge.deploy.sensitivity import sensitivity
from brd_edge.evaluate.engine_cost import compare_structure
from brd_edge.models.build import build_stand_in
from brd_edge.models.spec import ModelSpec
from brd_edge.runtime.builders import build_engine
from brd_edge.runtime.contract import InputContract
from brd_edge.runtime.errors import EngineError
from brd_edge.runtime.runners.openvino import openvino_core

# less than of trained students: these are undecided in many places, and quantising decides them anew
AGREEMENT = 0.9
SMALL = ModelSpec("Unet", "tu-mobilenetv3_small_050", 5, {"encoder_depth": 3, "decoder_channels": [8, 8, 8]})


@pytest.fixture(scope="module")
def artefacts(mobile, tmp_path_factory):
    directory = tmp_path_factory.mktemp("artefacts")
    paths = {name: directory / f"{name}.onnx" for name in ("cpu", "fp32", "fp16")}
    quantise_onnxruntime(mobile.path, paths["cpu"], mobile.ranges)
    for rest in ("fp32", "fp16"):
        quantise_tensorrt(mobile.path, paths[rest], mobile.ranges, rest=rest)
    return paths


def initializers(path):
    return {item.name: onnx.numpy_helper.to_array(item) for item in onnx.load(path).graph.initializer}


def operators(path):
    return [node.op_type for node in onnx.load(path).graph.node]


def session(content, *, optimised=True, keep=None):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    if not optimised:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    if keep is not None:
        options.optimized_model_filepath = str(keep)
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("limit", [127, 64])
def test_weights_on_their_grid_equal_float64_numpy(limit):
    weight = np.random.default_rng(0).normal(size=(7, 3, 3, 3)).astype(np.float32)
    weight[2] = 0
    numbers, scales = quantise_weight(weight, limit=limit)
    assert (numbers.dtype, scales.dtype, scales.shape) == (np.int8, np.float32, (7,))
    for channel in range(7):
        largest = np.abs(weight[channel].astype(np.float64)).max()
        assert scales[channel] == pytest.approx(largest / limit, rel=1e-6, abs=1e-30)
        expected = np.round(weight[channel].astype(np.float64) / np.float64(scales[channel]))
        np.testing.assert_array_equal(numbers[channel], expected)
        error = np.abs(numbers[channel] * np.float64(scales[channel]) - weight[channel])
        assert error.max() <= scales[channel] / 2 + 1e-6 * largest


def test_weights_equal_those_of_onnxruntime():
    from onnxruntime.quantization.quant_utils import compute_scale_zp

    weight = np.random.default_rng(1).normal(size=(5, 4, 3, 3)).astype(np.float32)
    _, scales = quantise_weight(weight, limit=127)
    for channel, scale in zip(weight, scales, strict=True):
        zero_point, expected = compute_scale_zp(
            channel.min(), channel.max(), np.array(-127), np.array(127), symmetric=True
        )
        assert int(zero_point) == 0
        assert scale == pytest.approx(float(expected), rel=1e-6)


@pytest.mark.parametrize(("low", "high"), [(0.0, 5.1), (-0.375, 14.0), (-3.0, -1.0), (2.0, 7.0), (0.0, 0.0)])
def test_grids_hold_zero_and_both_ends(low, high):
    for signed, ends in ((False, (0, 255)), (True, (-127, 127))):
        grid = activation_grid(low, high, signed=signed)
        assert ends[0] <= grid.zero_point <= ends[1]
        assert not signed or grid.zero_point == 0
        smallest, largest = ((end - grid.zero_point) * grid.scale for end in ends)
        # the zero point is rounded, so one end can be half a step short
        assert smallest <= low + grid.scale / 2 + 1e-6
        assert largest >= high - grid.scale / 2 - 1e-6


def test_scales_are_half_where_the_rest_is():
    weight = (np.random.default_rng(2).normal(size=(4, 8)) * [[1], [1e-3], [1e-6], [0]]).astype(np.float32)
    numbers, scales = quantise_weight(weight, limit=127, half=True)
    np.testing.assert_array_equal(scales, scales.astype(np.float16).astype(np.float32))
    assert (scales > 0).all()
    assert np.abs(numbers * scales[:, None] - weight).max() <= np.abs(weight).max() / 250
    assert activation_grid(0, 1e-9, signed=True, half=True).scale > 0


def test_ranges_equal_those_of_pytorch(residual):
    frames = np.stack(residual.frames[:4])
    mean, std = (np.array(values, np.float64) for values in (residual.contract.mean, residual.contract.std))
    images = (frames.astype(np.float64) / 255 - mean) / std
    with torch.no_grad():
        logits = residual.model(torch.from_numpy(images).permute(0, 3, 1, 2).float()).numpy()
    graph = onnx.load(residual.path).graph
    argmax = next(node for node in graph.node if node.op_type == "ArgMax")
    assert residual.ranges["add"] == pytest.approx((images.min(), images.max()), rel=1e-5)
    assert residual.ranges[argmax.input[0]] == pytest.approx((logits.min(), logits.max()), rel=1e-3)


@pytest.mark.parametrize("method", ["percentile", "entropy"])
def test_other_methods_leave_outliers_out(residual, method):
    ranges = calibrate(residual.path, residual.frames[:2], method=method)
    widest = calibrate(residual.path, [np.stack(residual.frames[:2])], method="minmax")
    assert ranges.keys() == widest.keys()
    widths = [(ranges[name][1] - ranges[name][0], high - low) for name, (low, high) in widest.items()]
    # a histogram is wider than what is in it by a bin at most
    assert all(narrow <= 1.02 * wide + 1e-6 for narrow, wide in widths)
    assert sum(narrow < 0.999 * wide for narrow, wide in widths) >= 1


def test_calibration_says_what_is_wrong(residual):
    with pytest.raises(EngineError, match="there are none"):
        calibrate(residual.path, [])
    with pytest.raises(EngineError, match=r"frame 1: expected uint8 \(64, 96, 3\).*got float32"):
        list(calibration_frames([residual.frames[0], residual.frames[0].astype(np.float32)], 64, 96))
    with pytest.raises(EngineError, match=r"got uint8 \(2, 64, 90, 3\)"):
        list(calibration_frames([np.zeros((2, 64, 90, 3), np.uint8)], 64, 96))
    with pytest.raises(EngineError, match="no method 'median'; there are minmax, percentile, entropy"):
        calibrate(residual.path, residual.frames, method="median")
    assert [frame.shape for frame in calibration_frames([np.stack(residual.frames)], 64, 96)] == [(1, 64, 96, 3)] * 6


def test_groups_are_the_modules_in_order(mobile):
    groups = layer_groups(mobile.path)
    assert list(groups) == [
        "encoder.conv_stem",
        *(f"encoder.blocks.{index}" for index in range(6)),
        "decoder.aspp.0",
        "decoder.aspp.1",
        "decoder.block1.0",
        "decoder.block2.0",
        "head",
    ]
    nodes = [name for group in groups.values() for name in group]
    body = [node.name for node in onnx.load(mobile.path).graph.node][4:-2]
    assert sorted(nodes) == sorted(body)


@pytest.mark.parametrize("which", ["mobile", "residual"])
def test_the_graph_for_onnxruntime(which, request, tmp_path):
    exported = request.getfixturevalue(which)
    path = tmp_path / "int8.onnx"
    names = quantise_onnxruntime(exported.path, path, exported.ranges)
    check_artefact(path, exported.path, exported.frames, runtime="onnxruntime", threshold=AGREEMENT)
    kinds = {value.dtype for name, value in initializers(path).items() if name.endswith("_zero_point")}
    assert kinds == {np.dtype(np.uint8), np.dtype(np.int8)}
    assert operators(path)[:4] == ["Cast", "Transpose", "Mul", "Add"]
    assert operators(path)[-2:] == ["ArgMax", "Cast"]
    # every convolution that was to be int8 is: the runtime has found its pairs
    session(path.read_bytes(), keep=tmp_path / "optimised.onnx")
    assert operators(tmp_path / "optimised.onnx").count("QLinearConv") == len(names) >= 10
    if which == "residual":
        assert "Relu" not in operators(path)
        assert {"QLinearAdd", "QLinearConcat"} <= set(operators(tmp_path / "optimised.onnx"))


def test_convolutions_do_not_saturate_on_any_processor(tmp_path):
    """Weights and pixels at their ends, where x86 without VNNI overflows at 127 * 255 * 2."""
    model = onnx.parser.parse_model("""<ir_version: 10, opset_import: ["" : 20]>
    student (uint8[1,16,16,3] image) => (uint8[1,16,16] class_map) {
        pixels = Cast<to=1>(image)
        planes = Transpose<perm=[0,3,1,2]>(pixels)
        hidden = Conv<pads=[1,1,1,1]>(planes, weight, bias)
        logits = Conv(hidden, last)
        ids = ArgMax<axis=1, keepdims=0>(logits)
        class_map = Cast<to=2>(ids)
    }""")
    signs = np.where(np.random.default_rng(0).random((32, 3, 3, 3)) < 0.9, 1, -1).astype(np.float32)
    last = np.random.default_rng(1).normal(size=(5, 32, 1, 1)).astype(np.float32)
    values = {"weight": signs, "bias": np.arange(32, dtype=np.float32), "last": last}
    model.graph.initializer.extend(onnx.numpy_helper.from_array(value, name) for name, value in values.items())
    for index, node in enumerate(model.graph.node):
        node.name = f"node_{index}"
    onnx.save(model, tmp_path / "ends.onnx")
    white = np.full((16, 16, 3), 255, np.uint8)
    ranges = calibrate(tmp_path / "ends.onnx", [white, np.zeros_like(white)], method="minmax")
    assert quantise_onnxruntime(tmp_path / "ends.onnx", tmp_path / "int8.onnx", ranges) == ("node_2",)
    quantised = onnx.load(tmp_path / "int8.onnx")
    quantised.graph.output.append(onnx.helper.make_tensor_value_info("hidden_quantised", onnx.TensorProto.UINT8, None))
    found, exact = (
        session(quantised.SerializeToString(), optimised=optimised).run(["hidden_quantised"], {"image": white[None]})[0]
        for optimised in (True, False)
    )
    assert len(np.unique(exact)) > 10
    assert np.abs(found.astype(int) - exact.astype(int)).max() <= 1


def test_weights_keep_to_the_reduced_range_but_depthwise_ones(artefacts, mobile, tmp_path):
    quantise_onnxruntime(mobile.path, tmp_path / "full.onnx", mobile.ranges, reduce_range=False)
    largest = {}
    for name, path in (("reduced", artefacts["cpu"]), ("full", tmp_path / "full.onnx")):
        values = initializers(path)
        for depthwise in (True, False):
            chosen = [
                np.abs(value.astype(int)).max()
                for key, value in values.items()
                if key.endswith("_quantised") and value.dtype == np.int8 and (value.shape[1] == 1) == depthwise
            ]
            largest[name, depthwise] = max(chosen)
    assert largest == {("reduced", True): 127, ("reduced", False): 64, ("full", True): 127, ("full", False): 127}


def test_biases_are_int32_on_the_grid_of_the_products(artefacts, mobile):
    values, before = initializers(artefacts["cpu"]), initializers(mobile.path)
    nodes = {node.output[0]: node for node in onnx.load(artefacts["cpu"]).graph.node}
    for node in nodes.values():
        if node.op_type != "Conv" or len(node.input) < 3 or node.input[2] not in nodes:
            continue
        x, weight, bias = (nodes[name] for name in node.input)
        product = values[x.input[1]].astype(np.float64) * values[weight.input[1]].astype(np.float64)
        np.testing.assert_allclose(values[bias.input[1]], product, rtol=1e-6)
        found = values[bias.input[0]].astype(np.float64) * product
        np.testing.assert_allclose(
            found, before[bias.input[0].removesuffix("_quantised")], rtol=1e-5, atol=product.max()
        )


@pytest.mark.parametrize("rest", ["fp32", "fp16"])
def test_the_graph_for_tensorrt(artefacts, mobile, rest):
    path = artefacts[rest]
    check_artefact(path, mobile.path, mobile.frames, runtime="tensorrt", threshold=AGREEMENT)
    values = initializers(path)
    points = [value for name, value in values.items() if "_zero_point" in name]
    assert points
    assert all(value.dtype == np.int8 and not value.any() for value in points)
    assert not any(value.dtype in (np.uint8, np.int32) for value in values.values())
    scales = {value.dtype for name, value in values.items() if "_scale" in name}
    assert scales == {np.dtype(np.float16 if rest == "fp16" else np.float32)}


def test_the_graph_for_tensorrt_is_valid_whatever_the_exported_opset(tmp_path):
    """float16 scales are of operator set 19; ONNX's own checker tells."""
    model = build_stand_in(SMALL, seed=0)
    contract = InputContract(64, 96, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.25))
    palette = [(10 * index, 20, 30) for index in range(5)]
    export_onnx(
        model, tmp_path / "18.onnx", contract=contract, classes=list("abcde"), palette=palette, metadata={}, opset=18
    )
    frames = [np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8)]
    ranges = calibrate(tmp_path / "18.onnx", frames, method="minmax")
    for rest, opset in (("fp32", 18), ("fp16", 19)):
        path = tmp_path / f"{rest}.onnx"
        quantise_tensorrt(tmp_path / "18.onnx", path, ranges, rest=rest)
        onnx.checker.check_model(onnx.load(path), full_check=True)
        session(path.read_bytes(), optimised=False)
        assert opset_of(path) == opset


def test_the_reference_evaluator_agrees(residual, tmp_path):
    from onnx.reference import ReferenceEvaluator

    frame = {"image": residual.frames[0][None]}
    quantise_onnxruntime(residual.path, tmp_path / "cpu.onnx", residual.ranges)
    quantise_tensorrt(residual.path, tmp_path / "tensorrt.onnx", residual.ranges, rest="fp32")
    for path in (tmp_path / "cpu.onnx", tmp_path / "tensorrt.onnx"):
        found = ReferenceEvaluator(str(path)).run(None, frame)[0]
        expected = session(path.read_bytes(), optimised=False).run(None, frame)[0]
        assert (found == expected).mean() >= 0.99


@pytest.mark.parametrize("rest", ["fp32", "fp16"])
def test_tensorrt_builds_ahead_of_time_without_a_word_about_zero_points(artefacts, rest):
    trt = pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is not installed")
    from brd_edge.runtime.runners.tensorrt import collecting_logger

    logger, messages = collecting_logger(trt)
    builder = trt.Builder(logger)
    network = builder.create_network()
    parser = trt.OnnxParser(network, logger)
    assert parser.parse(artefacts[rest].read_bytes()), messages
    config = builder.create_builder_config()
    config.num_compute_capabilities = 1
    config.set_compute_capability(trt.ComputeCapability.SM89, 0)
    assert builder.build_serialized_network(network, config) is not None, messages
    assert not [message for message in messages if "zero" in message.lower() or "uint8" in message.lower()]


def test_the_model_for_openvino(residual, tmp_path, capfd):
    pytest.importorskip("nncf", reason="nncf is not installed")

    from brd_edge.deploy.quantise_openvino import quantise_openvino

    path = tmp_path / "model.xml"
    assert quantise_openvino(residual.path, path, residual.frames[:2]) == ("model.xml", "model.bin")
    assert sorted(item.name for item in tmp_path.iterdir()) == ["model.bin", "model.xml"]
    check_artefact(path, residual.path, residual.frames, runtime="openvino", threshold=AGREEMENT)

    def quantised():
        found = openvino_core().read_model(path).get_ops()
        return sum(operation.get_type_name() == "FakeQuantize" for operation in found)

    everything = quantised()
    quantise_openvino(residual.path, path, residual.frames[:1], exclude=["decoder.blocks.1", "head"])
    assert 5 < quantised() < everything
    with pytest.raises(NothingToQuantiseError, match="nothing is left"):
        quantise_openvino(residual.path, path, residual.frames[:1], exclude=layer_groups(residual.path))
    assert capfd.readouterr().out == ""


def test_what_is_excluded_stays_in_floating_point(mobile, tmp_path):
    groups, path = layer_groups(mobile.path), tmp_path / "int8.onnx"
    whole = quantise_onnxruntime(mobile.path, path, mobile.ranges)
    some = quantise_onnxruntime(mobile.path, path, mobile.ranges, exclude=["encoder.blocks.1", whole[0]])
    assert set(whole) - set(some) == {whole[0], *(set(groups["encoder.blocks.1"]) & set(whole))}
    before, behind = (
        {node.name: node for node in onnx.load(item).graph.node if node.op_type == "Conv"}
        for item in (mobile.path, path)
    )
    for name in set(whole) - set(some):
        assert behind[name].input[1] == before[name].input[1]
    with pytest.raises(EngineError, match=r"no node or group 'blocks\.1'; the groups are encoder\.conv_stem, "):
        quantise_onnxruntime(mobile.path, path, mobile.ranges, exclude=["blocks.1"])
    for write in (quantise_onnxruntime, quantise_tensorrt):
        with pytest.raises(NothingToQuantiseError, match="nothing is left to quantise"):
            write(mobile.path, path, mobile.ranges, exclude=groups)


def test_ranges_of_another_graph_are_refused(mobile, residual, tmp_path):
    with pytest.raises(EngineError, match=r"has no calibrated range: calibrate this graph"):
        quantise_tensorrt(mobile.path, tmp_path / "int8.onnx", residual.ranges)


def test_a_broken_artefact_is_refused_with_both_figures(residual, tmp_path):
    narrow = {name: (low / 30, high / 30) for name, (low, high) in residual.ranges.items()}
    path = tmp_path / "int8.onnx"
    quantise_onnxruntime(residual.path, path, narrow)
    with pytest.raises(EngineError, match=r"at least 90\.00 % .*\d % by ONNX Runtime, .*\d % by OpenVINO in floating"):
        check_artefact(path, residual.path, residual.frames, runtime="onnxruntime", threshold=AGREEMENT)


@pytest.mark.parametrize("runtime", ["onnxruntime", "tensorrt"])
def test_the_group_with_the_worst_ranges_is_found(residual, runtime):
    group = "decoder.blocks.0"
    graph, names = onnx.load(residual.path).graph, layer_groups(residual.path)[group]
    read_elsewhere = {name for node in graph.node if node.name not in names for name in node.input}
    inner = {name for node in graph.node if node.name in names for name in node.output} - read_elsewhere
    assert inner
    spoiled = {
        name: (40 * low, 40 * high) if name in inner else (low, high) for name, (low, high) in residual.ranges.items()
    }
    losses = sensitivity(residual.path, residual.frames[:2], spoiled, runtime=runtime)
    assert losses[0].group == group
    assert losses[0].logits_error > 2 * losses[1].logits_error > 0
    assert [loss.logits_error for loss in losses] == sorted((loss.logits_error for loss in losses), reverse=True)
    assert {loss.group for loss in losses} <= set(layer_groups(residual.path))


def test_an_undistilled_student_is_quantised_like_the_distilled_one(tmp_path):
    """Left to itself, NNCF takes other tensors of it for unsigned ones, and other kernels compute them."""
    pytest.importorskip("nncf", reason="nncf is not installed")

    from brd_edge.deploy.quantise_openvino import quantise_openvino

    contract, classes = InputContract(64, 96, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.25)), tuple("abcde")
    palette = [(10 * index, 20, 30) for index in range(5)]
    for seed, name in enumerate(("student", "plain")):
        model = build_stand_in(SMALL, seed=seed)
        described = {"classes": classes, "palette": palette, "metadata": {"recipe": "test"}}
        export_onnx(model, tmp_path / f"{name}.onnx", contract=contract, **described)
    frames = [np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8)]
    quantise_openvino(tmp_path / "student.onnx", tmp_path / "student.xml", frames)
    quantise_openvino(tmp_path / "plain.onnx", tmp_path / "alone.xml", frames)
    quantise_openvino(tmp_path / "plain.onnx", tmp_path / "like.xml", frames, like=tmp_path / "student.xml")
    engines = {}
    for name in ("student", "alone", "like"):
        engines[name] = tmp_path / name
        build_engine(
            runtime="openvino",
            precision="int8",
            target="x86-cpu",
            onnx=tmp_path / f"{name}.xml",
            out=engines[name],
            contract=contract,
            classes=classes,
            palette=tuple(palette),
        )
    (alone,) = compare_structure(engines["student"], engines["alone"], threads=1).differences
    assert alone.startswith("quantisers: ")
    assert "unsigned" in alone
    found = compare_structure(engines["student"], engines["like"], threads=1)
    assert found.differences == ()
    assert found.weight_bytes is not None
    assert found.weight_bytes[0] == found.weight_bytes[1] > 0
    # the weights are its own
    assert (engines["like"] / "model.bin").read_bytes() != (engines["student"] / "model.bin").read_bytes()
