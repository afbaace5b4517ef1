"""The exported graph is the trained student: its class maps are compared with PyTorch's."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from brd_edge.recipe import load_recipe
from brd_edge.runtime.errors import EngineError, RuntimeMissingError
from brd_edge.stages import export
from brd_edge.stages.export import graph_agreement

QUICKSTART = Path(__file__).parents[2] / "pipelines" / "quickstart.yaml"


def make_context(said: list[str]) -> Any:
    recipe = load_recipe(QUICKSTART, overrides=["data.size=[24, 40]", "data.mean=[0, 0, 0]", "data.std=[1, 1, 1]"])
    return SimpleNamespace(recipe=recipe, say=said.append)


def make_model(graph: Path) -> torch.nn.Module:
    """The small graph's convolution in PyTorch, on frames of 0 to 1."""
    weight, bias = (
        torch.from_numpy(onnx.numpy_helper.to_array(item).copy()) for item in onnx.load(graph).graph.initializer
    )
    model = torch.nn.Conv2d(3, len(bias), 3, padding=1)
    model.load_state_dict({"weight": 255 * weight, "bias": bias})
    return model


@pytest.fixture
def compare(graph: Path, frames: list[np.ndarray], monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(export, "read_frame", lambda sample, _contract: sample)
    dataset: Any = SimpleNamespace(val=frames)
    said: list[str] = []
    return lambda path=graph, model=None: (
        export._compare_with_pytorch(make_context(said), model or make_model(graph), path, dataset),
        said,
    )


def test_a_graph_that_says_what_pytorch_says_is_kept(compare: Any) -> None:
    assert compare() == (1.0, [])


def test_a_graph_that_is_another_model_is_refused(compare: Any, graph: Path, tmp_path: Path) -> None:
    model = onnx.load(graph)
    values = onnx.numpy_helper.to_array(model.graph.initializer[1]).copy()
    values[2] += 100
    model.graph.initializer[1].CopyFrom(onnx.numpy_helper.from_array(values, "bias"))
    onnx.save(model, tmp_path / "student.onnx")
    with pytest.raises(
        EngineError, match=r"student\.onnx: expected .* at least 99\.99 % .* got \d\d\.\d+ % over 3 val"
    ):
        compare(tmp_path / "student.onnx")


@pytest.mark.parametrize(("wrong", "refused"), [(1, False), (2, True)])
def test_one_pixel_in_ten_thousand_may_differ(wrong: int, refused: bool) -> None:
    frame = np.zeros((100, 100, 3), np.uint8)
    spoiled = np.zeros((100, 100), np.uint8)
    spoiled.flat[:wrong] = 1

    def agreement() -> float:
        return graph_agreement(lambda _frame: np.zeros_like(spoiled), lambda _frame: spoiled, [frame], Path("a.onnx"))

    if not refused:
        assert agreement() == pytest.approx(0.9999)
        return
    with pytest.raises(EngineError, match=r"a\.onnx: .* got 99\.980 % .* number 0\): the export changed the model"):
        agreement()


def test_without_onnxruntime_it_is_said(compare: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_args: object) -> None:
        raise RuntimeMissingError("onnxruntime is not installed: pip install something")

    monkeypatch.setattr("brd_edge.deploy.agreement.import_runtime", missing)
    found, said = compare()
    assert found is None
    assert said == [
        "export: student.onnx was not compared with PyTorch: onnxruntime is not installed: pip install something"
    ]
