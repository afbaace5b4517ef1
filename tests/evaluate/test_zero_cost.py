"""The structural proof must pass for equal models and notice every planted difference."""

from __future__ import annotations

import re
from dataclasses import asdict

import numpy as np
import onnx
import pytest
import torch
from made_runs import made_cost
from onnx import TensorProto, helper, numpy_helper

from brd_edge.deploy.export import export_onnx
from brd_edge.evaluate.proof import judge_proof
from brd_edge.evaluate.zero_cost import compare_graphs, count_graph_parameters
from brd_edge.models.segmentation import ModelSpec, build_model
from brd_edge.runtime.contract import InputContract
from brd_edge.runtime.errors import EngineError


def export(path, *, seed=0, train=False, channels=8, planted=False):
    spec = ModelSpec("Unet", "tu-resnet10t", 3, {"encoder_depth": 3, "decoder_channels": [channels, 8, 8]})
    model = build_model(spec, encoder_weights=None, seed=seed)
    if train:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
        model(images).square().mean().backward()
        optimizer.step()
    if planted:
        # as a method may need it to compare features with the teacher's, and must take out again
        projection = torch.nn.Conv2d(8, 8, 1)
        model.segmentation_head = torch.nn.Sequential(projection, model.segmentation_head)
    contract = InputContract(32, 32, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    export_onnx(model, path, contract=contract, classes=["a", "b", "c"], palette=[(0, 0, 0)] * 3, metadata={})
    return path


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return export(tmp_path_factory.mktemp("plain") / "plain.onnx")


@pytest.fixture
def edited(plain, tmp_path):
    """Save the plain graph after a change."""

    def edit(change):
        proto = onnx.load(plain)
        change(proto)
        onnx.save(proto, tmp_path / "edited.onnx")
        return tmp_path / "edited.onnx"

    return edit


def first(proto, op):
    return next(node for node in proto.graph.node if node.op_type == op)


def test_a_trained_student_equals_an_untrained_one(plain, tmp_path):
    distilled = export(tmp_path / "distilled.onnx", seed=1, train=True)
    found = compare_graphs(distilled, plain)
    assert found.differences == ()
    assert found.equal
    assert found.nodes == len(onnx.load(plain).graph.node)
    assert distilled.read_bytes() != plain.read_bytes()
    assert count_graph_parameters(distilled) == count_graph_parameters(plain)


def test_what_a_graph_says_of_itself_is_no_difference(plain, edited):
    about = {"commit": "0" * 40, "val_miou": "0.5"}
    assert compare_graphs(edited(lambda proto: helper.set_model_props(proto, about)), plain).equal


def test_a_distillation_only_layer_in_the_student_breaks_the_proof(plain, tmp_path):
    """Planted in the PyTorch model; the engines are said to be alike, so that the graphs alone decide."""
    for planted in (True, False):
        student = export(tmp_path / "student.onnx", planted=planted)
        found = compare_graphs(student, plain)
        params = count_graph_parameters(student) == count_graph_parameters(plain)
        counted = {"params_equal": params, "macs_equal": True, "engines": [made_cost()]}
        proof = judge_proof({**asdict(found), **counted})
        assert proof.held is not planted
        assert params is not planted
        assert any("Conv: only in the distilled graph" in text for text in proof.differences) is planted


def test_one_more_channel_is_a_difference(plain, tmp_path):
    found = compare_graphs(export(tmp_path / "wider.onnx", channels=9), plain)
    assert not found.equal
    assert any("Conv: input 1 is float[9, 192, 3, 3] against float[8, 192, 3, 3]" in text for text in found.differences)


def test_one_more_convolution_is_a_difference(plain, edited):
    def plant(proto):
        index = next(i for i, node in enumerate(proto.graph.node) if node.op_type == "Relu")
        relu = proto.graph.node[index]
        weight = np.eye(24, dtype=np.float32).reshape(24, 24, 1, 1)
        proto.graph.initializer.append(numpy_helper.from_array(weight, "planted"))
        planted = helper.make_node("Conv", ["hidden", "planted"], [relu.output[0]], kernel_shape=[1, 1])
        relu.output[0] = "hidden"
        proto.graph.node.insert(index + 1, planted)

    found = compare_graphs(edited(plant), plain)
    assert not found.equal
    index = next(i for i, node in enumerate(onnx.load(plain).graph.node) if node.op_type == "Relu") + 1
    assert f"node {index} Conv: only in the distilled graph" in found.differences
    # one node, its successor's input, and the count: the rest of the graph is recognised
    assert len(found.differences) <= 4
    assert compare_graphs(plain, edited(plant)).differences[1].endswith("only in the plain graph")


def test_names_and_weights_are_no_difference(plain, edited):
    def rename(proto):
        for number, node in enumerate(proto.graph.node):
            node.name = f"n{number}"
            node.input[:] = [f"v_{name}" if name else "" for name in node.input]
            node.output[:] = [f"v_{name}" for name in node.output]
        for item in (*proto.graph.initializer, *proto.graph.value_info, *proto.graph.input, *proto.graph.output):
            item.name = f"v_{item.name}"
        for tensor in proto.graph.initializer:
            if tensor.data_type == TensorProto.FLOAT and tensor.dims:
                tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * 2, tensor.name))

    assert compare_graphs(edited(rename), plain).equal


def set_attribute(op, name, value):
    def change(proto):
        attributes = first(proto, op).attribute
        for item in list(attributes):
            if item.name == name:
                attributes.remove(item)
        attributes.append(helper.make_attribute(name, value))

    return change


def rewire_relu(proto):
    relus = [node for node in proto.graph.node if node.op_type == "Relu"]
    shapes = {item.name: item.type.SerializeToString() for item in proto.graph.value_info}
    for late in relus[1:]:
        early = next(node for node in relus if shapes[node.input[0]] == shapes[late.input[0]])
        if early is not late:
            late.input[0] = early.input[0]
            return
    raise AssertionError("no two activations of one shape")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (set_attribute("Conv", "dilations", [1, 2]), r"node 4 Conv: dilations \[1, 2\] against \[1, 1\]"),
        (set_attribute("Resize", "mode", "linear"), "Resize: mode linear against nearest"),
        (set_attribute("ArgMax", "select_last_index", 1), "ArgMax: select_last_index 1 against"),
        (rewire_relu, r"Relu: input 0 comes from node \d+ \w+ \(output 0\) against node \d+"),
        (lambda proto: setattr(proto.opset_import[0], "version", 21), "opset of domain ai.onnx: 21 against 20"),
        (lambda proto: proto.opset_import.append(helper.make_opsetid("ai.onnx.ml", 3)), "ai.onnx.ml: 3 against None"),
    ],
)
def test_planted_differences_are_named(change, message, plain, edited):
    found = compare_graphs(edited(change), plain)
    assert not found.equal
    text = "\n".join(found.differences)
    assert re.search(message, text), text


def small(path, nodes, constants=(), inputs=("x",)):
    """Save a graph of float (4, 4) inputs and an output y."""
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [4, 4]) for name in inputs]
    tensors = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants]
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", "columns"])
    graph = helper.make_graph(nodes, "small", values, [output], tensors)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)]), path)
    return path


def sliced(path, start):
    nodes = [helper.make_node("Slice", ["x", "start", "end", "axis"], ["y"])]
    return small(path, nodes, [("start", [start]), ("end", [start + 2]), ("axis", [1])])


def clipped(path, top):
    return small(path, [helper.make_node("Clip", ["x", "", "top"], ["y"])], [("top", np.float32(top))])


def scaled(path, factor):
    return small(path, [helper.make_node("Mul", ["x", "w"], ["y"])], [("w", np.full((4, 4), factor, np.float32))])


def branched(path, op):
    out = helper.make_tensor_value_info("out", TensorProto.FLOAT, [4, 4])
    branches = [helper.make_graph([helper.make_node(kind, ["x"], ["out"])], kind, [], [out]) for kind in (op, "Abs")]
    node = helper.make_node("If", ["flag"], ["y"], then_branch=branches[0], else_branch=branches[1])
    return small(path, [node], [("flag", np.array(True))])


@pytest.mark.parametrize(
    ("make", "first_value", "second_value", "message"),
    [
        (sliced, 0, 1, "Slice: input 1 is [0] against [1]"),
        (clipped, 6.0, 7.0, "Clip: input 2 is 6.0 against 7.0"),
        (branched, "Relu", "Neg", "If: then_branch"),
        (scaled, 1.0, 2.0, None),
    ],
)
def test_constants_that_are_structure_are_compared_by_value(make, first_value, second_value, message, tmp_path):
    found = compare_graphs(make(tmp_path / "a.onnx", first_value), make(tmp_path / "b.onnx", second_value))
    assert found.equal == (message is None)
    if message:
        assert message in found.differences[0]
    assert compare_graphs(make(tmp_path / "a.onnx", first_value), make(tmp_path / "b.onnx", first_value)).equal


def test_swapped_inputs_of_the_graph_are_a_difference(tmp_path):
    a = small(tmp_path / "a.onnx", [helper.make_node("Sub", ["x", "z"], ["y"])], inputs=("x", "z"))
    b = small(tmp_path / "b.onnx", [helper.make_node("Sub", ["z", "x"], ["y"])], inputs=("x", "z"))
    assert compare_graphs(a, b).differences == (
        "node 0 Sub: input 0 comes from graph input 0 against graph input 1",
        "node 0 Sub: input 1 comes from graph input 1 against graph input 0",
    )


def test_constant_nodes_count_as_initialisers(tmp_path):
    weight = numpy_helper.from_array(np.ones((4, 4), np.float32))
    nodes = [helper.make_node("Constant", [], ["w"], value=weight), helper.make_node("Mul", ["x", "w"], ["y"])]
    found = compare_graphs(small(tmp_path / "a.onnx", nodes), scaled(tmp_path / "b.onnx", 3.0))
    assert (found.equal, found.nodes) == (True, 1)
    assert count_graph_parameters(tmp_path / "a.onnx") == count_graph_parameters(tmp_path / "b.onnx") == 16
    assert count_graph_parameters(sliced(tmp_path / "c.onnx", 0)) == 0


def test_a_weight_dropped_by_the_converter_is_reported(plain, edited):
    def drop(proto):
        node = first(proto, "Conv")
        del node.input[2]

    assert "node 4 Conv: 2 inputs against 3" in compare_graphs(edited(drop), plain).differences


def test_long_lists_are_cut(tmp_path, plain):
    found = compare_graphs(sliced(tmp_path / "a.onnx", 0), plain)
    assert len(found.differences) == 21
    assert re.fullmatch(r"and \d+ more differences", found.differences[-1])


@pytest.mark.parametrize("content", [b"", b"not an ONNX file", None])
def test_files_that_are_not_onnx_are_refused(content, tmp_path, plain):
    path = tmp_path / "broken.onnx"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(EngineError, match=r"broken\.onnx"):
        compare_graphs(plain, path)
    with pytest.raises(EngineError, match=r"broken\.onnx"):
        count_graph_parameters(path)
