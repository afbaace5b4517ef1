"""Windows against a brute-force search for the nearest middle, and segmentation in windows."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from brd_edge.runtime.builders import build_engine
from brd_edge.runtime.contract import SLIDING_WINDOW, InputContract
from brd_edge.runtime.engine import open_engine
from brd_edge.runtime.errors import ContractError
from brd_edge.runtime.frames import fit_frame, segment_image
from brd_edge.runtime.windows import place_windows

CONTRACT = InputContract(height=24, width=40, mean=(0.5, 0.25, 0.0), std=(1, 1, 1), resize=SLIDING_WINDOW)


@pytest.mark.parametrize("length", [1, 23, 24, 25, 42, 43, 61, 100, 257])
def test_every_pixel_comes_from_the_window_whose_middle_is_nearest(length: int) -> None:
    windows = place_windows(length, 24)
    starts = [start for start, _, _ in windows]
    assert starts[0] == 0
    assert starts[-1] == max(0, length - 24)
    assert all(0 < b - a <= 18 for a, b in pairwise(starts))
    owner = np.full(length, -1)
    for i, (_, first, last) in enumerate(windows):
        assert (owner[first:last] == -1).all()
        owner[first:last] = i
    distance = np.abs(np.arange(length)[:, None] + 0.5 - (np.array(starts) + 12.0))
    assert (distance[np.arange(length), owner] <= distance.min(1) + 0.5).all()


def test_as_few_windows_as_the_overlap_allows() -> None:
    assert len(place_windows(42, 24)) == 2
    assert len(place_windows(43, 24)) == 3


@pytest.mark.parametrize("size", [(24, 40), (100, 90), (25, 41), (7, 200), (10, 12)])
def test_a_map_from_pixels_to_ids_is_the_same_in_windows(size: tuple[int, int]) -> None:
    image = np.random.default_rng(1).integers(0, 256, (*size, 3), np.uint8)
    found = segment_image(lambda frame: (frame.sum(2) % 7).astype(np.uint8), image, CONTRACT)
    np.testing.assert_array_equal(found, image.sum(2) % 7)


def test_windows_have_the_contracts_size_and_padding_is_the_mean_colour() -> None:
    seen = []

    def infer(frame: np.ndarray) -> np.ndarray:
        assert frame.flags.c_contiguous
        seen.append(frame)
        return np.zeros(frame.shape[:2], np.uint8)

    assert segment_image(infer, np.full((10, 60, 3), 9, np.uint8), CONTRACT).shape == (10, 60)
    assert [frame.shape for frame in seen] == [(24, 40, 3)] * 2
    assert (seen[0][:10] == 9).all()
    assert (seen[0][10:] == (128, 64, 0)).all()


def test_a_frame_of_a_large_image_is_the_window_in_its_middle() -> None:
    image = np.random.default_rng(1).integers(0, 256, (100, 90, 3), np.uint8)
    np.testing.assert_array_equal(fit_frame(image, CONTRACT), image[38:62, 25:65])


def test_resize_is_part_of_the_hash_and_unknown_ones_are_refused() -> None:
    resized = InputContract(height=24, width=40, mean=(0.5, 0.25, 0.0), std=(1, 1, 1))
    assert resized.hash != CONTRACT.hash
    assert InputContract.from_json(CONTRACT.to_json()) == CONTRACT
    with pytest.raises(ContractError, match="resize: bilinear-antialias against sliding-window"):
        resized.require_equal(CONTRACT, "engine")
    with pytest.raises(ContractError, match="resize must be 'bilinear-antialias' or 'sliding-window', got 'crop'"):
        InputContract(height=24, width=40, mean=(0, 0, 0), std=(1, 1, 1), resize="crop")


def test_an_engine_in_windows_refuses_the_resized_contract(
    tmp_path: Path, graph: Path, contract: InputContract
) -> None:
    sliding = replace(contract, resize=SLIDING_WINDOW)
    build_engine(
        runtime="onnxruntime",
        precision="fp32",
        target="x86-cpu",
        onnx=graph,
        out=tmp_path / "engine",
        contract=sliding,
        classes=tuple("abcde"),
        palette=((0, 0, 0), (9, 9, 9), (70, 0, 0), (0, 80, 0), (0, 0, 90)),
    )
    with pytest.raises(ContractError, match="resize: bilinear-antialias against sliding-window"):
        open_engine(tmp_path / "engine", contract=contract)
    image = np.random.default_rng(4).integers(0, 256, (60, 100, 3), np.uint8)
    with open_engine(tmp_path / "engine", contract=sliding) as engine:
        found = segment_image(engine.infer, image, sliding)
        # the graph looks one pixel around: a window's own pixels, but for the image's edge, are those of the whole
        expected = engine.infer(np.ascontiguousarray(image[10:34, 20:60]))
    np.testing.assert_array_equal(found[11:33, 21:59], expected[1:-1, 1:-1])
