"""What the stage `benchmark` keeps of engines, and hands to the report."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from brd_edge.data.dataset import Sample
from brd_edge.runtime.contract import InputContract
from brd_edge.runtime.metrics import SegmentationMetrics
from brd_edge.stages import benchmark
from brd_edge.stages.reporting import report_samples

NAMES = ("onnxruntime-fp32-x86-cpu", "onnxruntime-fp32-x86-cpu-batch2")


def make_entry(name: str, batch_max: int) -> dict[str, Any]:
    kind = {"runtime": "onnxruntime", "precision": "fp32", "target": "x86-cpu"}
    return {"name": name, **kind, "batch_max": batch_max, "status": "built", "reason": None}


def make_dataset(directory: Path, contract: InputContract) -> Any:
    """One image of two classes."""
    label = np.zeros((contract.height, contract.width), np.uint8)
    label[:, 20:] = 1
    Image.fromarray(label).save(directory / "label.png")
    Image.fromarray(np.repeat(label[..., None], 3, 2)).save(directory / "image.png")
    files = directory / "image.png", directory / "label.png"
    return SimpleNamespace(classes=("a", "b"), val=[Sample("a", *files, contract.height, contract.width, ())])


def test_engines_of_one_runtime_and_precision_have_columns_of_their_own(
    contract: InputContract, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = {name: np.full((24, 40), number, np.uint8) for number, name in enumerate(NAMES)}

    @contextmanager
    def opened(directory: Path, **_options: object) -> Iterator[Any]:
        yield SimpleNamespace(infer=lambda _frame: found[directory.name])

    monkeypatch.setattr(benchmark, "open_engine", opened)
    monkeypatch.setattr(benchmark, "time_engine", lambda *_arguments, **_options: ({}, {}))
    monkeypatch.setattr(benchmark.platform, "machine", lambda: "x86_64")
    settings = SimpleNamespace(threads=1, budget_s=1.0)
    context: Any = SimpleNamespace(
        recipe=SimpleNamespace(benchmark=settings),
        run=SimpleNamespace(path=tmp_path.joinpath),
        say=lambda _text: None,
    )
    dataset = make_dataset(tmp_path, contract)
    student = SegmentationMetrics(2, keep_images=True)
    student.update(found[NAMES[0]], np.asarray(Image.open(tmp_path / "label.png")))
    validation = benchmark._Validation(dataset, contract, [found[NAMES[0]]], student)
    entries = [make_entry(name, number) for number, name in enumerate(NAMES, 1)]
    engines = [benchmark._measure(context, validation, entry, [], gated=False) for entry in entries]
    assert [engine["status"] for engine in engines] == ["measured", "measured"], engines
    # one image says nothing of others
    assert [engine["intervals"]["argmax_agreement"] for engine in engines] == [[0.0, 1.0]] * 2
    (sample,) = report_samples(dataset, validation.class_maps, validation.counts, contract, engines=engines, wanted=1)
    # titled as in the tables
    titles = ["onnxruntime fp32 (x86-cpu)", "onnxruntime fp32 (x86-cpu, batch 2)"]
    assert list(sample.masks) == titles
    for title, name in zip(titles, NAMES, strict=True):
        np.testing.assert_array_equal(sample.masks[title], found[name])
