"""Reading for evaluation: every sample once, at its own size, by either backend."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from brd_edge.data.dataset import Sample, find_class_pixels, read_frame
from brd_edge.data.evaluation import read_for_evaluation
from brd_edge.evaluate.accuracy import evaluate_predictor
from brd_edge.runtime.contract import SLIDING_WINDOW, InputContract
from brd_edge.runtime.errors import DataError
from brd_edge.runtime.metrics import SegmentationMetrics

BACKENDS = ("dali", "torch")
CONTRACT = InputContract(height=24, width=32, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
WINDOWS = replace(CONTRACT, resize=SLIDING_WINDOW)
SIZES = ((40, 60), (24, 32), (61, 33), (10, 90), (48, 64), (25, 31), (7, 5))


@pytest.fixture
def samples(tmp_path: Path) -> list[Sample]:
    """Pictures whose colour says what their class is, in many sizes."""
    made = []
    for i, (height, width) in enumerate(SIZES):
        label = np.random.default_rng(i).integers(0, 4, (height, width), np.uint8)
        label[0, 0] = 255
        image = np.repeat((label % 4 * 60)[..., None], 3, 2)
        paths = tmp_path / f"{i} ä.png", tmp_path / f"{i}_label.png"
        Image.fromarray(image).save(paths[0])
        Image.fromarray(label).save(paths[1])
        made.append(Sample(f"{i}", *paths, height, width, find_class_pixels(label)))
    return made


def colour_to_class(frame: np.ndarray) -> np.ndarray:
    return np.rint(frame[..., 0] / 60).astype(np.uint8)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("threads", [1, 3])
def test_every_sample_comes_once_in_order(samples: list[Sample], backend: Any, threads: int) -> None:
    items = list(read_for_evaluation(samples, contract=CONTRACT, backend=backend, threads=threads))
    assert [item.index for item in items] == list(range(7))
    for item, sample in zip(items, samples, strict=True):
        assert item.image.shape == (24, 32, 3)
        assert item.image.dtype == item.label.dtype == np.uint8
        np.testing.assert_array_equal(item.label, np.asarray(Image.open(sample.label)))
        inner = np.abs(item.image.astype(int) - read_frame(sample, CONTRACT))[1:-1, 1:-1]
        assert inner.max() <= (0 if backend == "torch" else 1)


@pytest.mark.parametrize("backend", BACKENDS)
def test_processes_share_the_samples(samples: list[Sample], backend: Any) -> None:
    found = [
        [
            item.index
            for item in read_for_evaluation(samples, contract=CONTRACT, backend=backend, threads=2, rank=r, world=3)
        ]
        for r in range(3)
    ]
    assert found == [[0, 3, 6], [1, 4], [2, 5]]


@pytest.mark.parametrize("backend", BACKENDS)
def test_images_in_windows_stay_as_they_are(samples: list[Sample], backend: Any) -> None:
    for item, sample in zip(
        read_for_evaluation(samples, contract=WINDOWS, backend=backend, threads=2), samples, strict=True
    ):
        np.testing.assert_array_equal(item.image, np.asarray(Image.open(sample.image)))


@pytest.mark.parametrize("backend", BACKENDS)
def test_windows_score_at_full_resolution_what_resizing_blurs(samples: list[Sample], backend: Any) -> None:
    scores = {}
    for contract in (WINDOWS, CONTRACT):
        metrics = SegmentationMetrics(4, boundaries=False, connectivity=False)
        shapes = []
        evaluate_predictor(
            colour_to_class,
            samples,
            contract=contract,
            metrics=metrics,
            on_class_map=lambda _index, found, shapes=shapes: shapes.append(found.shape),  # type: ignore[misc]
            backend=backend,
        )
        assert metrics.images == len(samples)
        assert metrics.confusion.sum() == sum(height * width - 1 for height, width in SIZES)
        assert shapes == (list(SIZES) if contract.slides else [(24, 32)] * 7)
        scores[contract.slides] = metrics.miou()
    assert scores[True] == 1.0
    assert scores[False] < 0.6


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_bad_file_is_named_when_it_is_reached(samples: list[Sample], backend: Any) -> None:
    samples[4].image.write_bytes(samples[4].image.read_bytes()[:60])
    with pytest.raises(DataError, match=r"4 ä\.png"):
        list(read_for_evaluation(samples, contract=CONTRACT, backend=backend, threads=1))
    Image.new("L", (3, 3)).save(samples[2].label)
    with pytest.raises(DataError, match=r"2_label\.png"):
        list(read_for_evaluation(samples[:4], contract=CONTRACT, backend=backend, threads=2))


def test_stopping_early_ends_the_threads(samples: list[Sample]) -> None:
    before = threading.active_count()
    items = read_for_evaluation(samples, contract=CONTRACT, backend="torch", threads=2)
    next(items)
    items.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before


def test_no_samples_and_wrong_arguments(samples: list[Sample]) -> None:
    for backend in BACKENDS:
        assert list(read_for_evaluation([], contract=CONTRACT, backend=backend, threads=1)) == []
    with pytest.raises(DataError, match="at least 1 thread and a rank below world, got threads=0, rank=0, world=1"):
        read_for_evaluation(samples, contract=CONTRACT, backend="torch", threads=0)
