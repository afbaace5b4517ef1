"""Counts of images, written and read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from made_runs import made_metrics

from brd_edge.evaluate.benchmark.images import read_image_counts, write_image_counts
from brd_edge.runtime.errors import DataError, RunError

IDS = ("a", "straße/ü", "日本", "x" * 90)
COUNTS = np.stack(made_metrics(0.1, images=4).per_image)


def test_what_was_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "images.npz"
    other = np.zeros((4, 10, 3), np.int64)
    write_image_counts(path, IDS, {"student": COUNTS, "onnxruntime-fp32-x86-cpu": other})
    found = read_image_counts(path)
    assert found.ids == IDS
    assert set(found.counts) == {"student", "onnxruntime-fp32-x86-cpu"}
    assert found.counts["student"].dtype == np.int64
    np.testing.assert_array_equal(found.counts["student"], COUNTS)
    np.testing.assert_array_equal(found.counts["onnxruntime-fp32-x86-cpu"], other)
    with np.load(path, allow_pickle=False) as archive:
        assert set(archive.files) == {"ids", "student", "onnxruntime-fp32-x86-cpu"}


def test_sums_over_images_are_the_scores(tmp_path: Path) -> None:
    metrics = made_metrics(0.1)
    write_image_counts(tmp_path / "images.npz", [str(i) for i in range(24)], {"student": np.stack(metrics.per_image)})
    hit, either, near, band, *_ = read_image_counts(tmp_path / "images.npz").counts["student"].sum(0)
    assert np.mean(hit / either) == pytest.approx(metrics.miou(), abs=1e-12)
    assert np.mean(near / band) == pytest.approx(metrics.boundary_iou(), abs=1e-12)


@pytest.mark.parametrize(
    ("ids", "counts"),
    [
        (IDS[:3], {"student": COUNTS}),
        (("a", "a", "b", "c"), {"student": COUNTS}),
        ((), {}),
        (IDS, {"student": COUNTS.astype(np.float64)}),
        (IDS, {"student": COUNTS, "teacher": COUNTS[:, :, :2]}),
        (IDS, {"student": -COUNTS}),
        (IDS, {"student": COUNTS[0]}),
    ],
)
def test_counts_that_do_not_fit_are_neither_written_nor_read(
    ids: tuple[str, ...], counts: dict[str, np.ndarray], tmp_path: Path
) -> None:
    path = tmp_path / "images.npz"
    with pytest.raises(DataError, match=r"images\.npz: .*expected"):
        write_image_counts(path, ids, counts)
    assert not path.exists()
    np.savez(path, ids=np.array(ids, np.str_), **counts)
    with pytest.raises(RunError, match=r"images\.npz: .*expected.*--from benchmark"):
        read_image_counts(path)


def test_damaged_files_are_one_error(tmp_path: Path) -> None:
    path = tmp_path / "images.npz"
    with pytest.raises(RunError, match="not found; run the benchmark stage again"):
        read_image_counts(path)
    write_image_counts(path, IDS, {"student": COUNTS})
    whole = path.read_bytes()
    for content in (b"", b"nothing", whole[: len(whole) // 2], whole[:60] + b"\0" * 40 + whole[100:]):
        path.write_bytes(content)
        with pytest.raises(RunError, match=r"images\.npz"):
            read_image_counts(path)
    np.savez(path, student=COUNTS)
    with pytest.raises(RunError, match="ids: expected texts"):
        read_image_counts(path)


def test_pickled_objects_are_not_read(tmp_path: Path) -> None:
    path = tmp_path / "images.npz"
    np.savez(path, ids=np.array([{"a": 1}], object))
    with pytest.raises(RunError, match="not a readable NumPy archive"):
        read_image_counts(path)
    np.save(path.with_suffix(".npy"), COUNTS)
    path.with_suffix(".npy").rename(path)
    with pytest.raises(RunError, match="not a readable NumPy archive"):
        read_image_counts(path)
