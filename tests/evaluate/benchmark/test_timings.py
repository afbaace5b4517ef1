"""Times, written and read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from brd_edge.evaluate.benchmark.timings import read_timings, write_timings
from brd_edge.runtime.errors import DataError, RunError

TIMES = np.random.default_rng(0).uniform(3, 4, (5, 36))


def test_what_was_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "latency.npz"
    timings = {"openvino-fp32/frame_to_class_map": TIMES[0], "openvino-fp32/cost/control": TIMES}
    write_timings(path, timings)
    found = read_timings(path)
    assert set(found) == set(timings)
    for name, array in timings.items():
        np.testing.assert_array_equal(found[name], array)
    write_timings(path, {})
    assert read_timings(path) == {}


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        ("openvino", TIMES[0], "expected an engine and one of"),
        ("openvino/cost/c", TIMES, "expected an engine and one of"),
        ("openvino/cost/a", TIMES[0], "2 dimensions"),
        ("openvino/engine_alone", TIMES[0].astype(np.float32), "float64"),
        ("openvino/engine_alone", TIMES[0][:0], "float64"),
        ("openvino/engine_alone", -TIMES[0], "from 0"),
        ("openvino/engine_alone", TIMES[0] * np.nan, "finite"),
    ],
)
def test_what_does_not_fit_is_neither_written_nor_read(
    name: str, array: np.ndarray, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "latency.npz"
    with pytest.raises(DataError, match=rf"latency\.npz: {name}: expected.*") as caught:
        write_timings(path, {name: array})
    assert message in str(caught.value)
    assert not path.exists()
    np.savez(path, **{name: array})
    with pytest.raises(RunError, match=r"latency\.npz: .*expected.*--from benchmark"):
        read_timings(path)


def test_damaged_files(tmp_path: Path) -> None:
    path = tmp_path / "latency.npz"
    with pytest.raises(RunError, match=r"not found.*--from benchmark"):
        read_timings(path)
    np.savez(path, **{"openvino/engine_alone": np.array([{}], dtype=object)})
    with pytest.raises(RunError, match="not a readable NumPy archive"):
        read_timings(path)
    path.write_bytes(b"PK")
    with pytest.raises(RunError, match="not a readable NumPy archive"):
        read_timings(path)
