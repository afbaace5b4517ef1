from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from brd_edge.data.dataset import Dataset, Sample, count_class_pixels, find_class_pixels, read_frame, read_label
from brd_edge.data.index import load_contents, load_dataset, save_index
from brd_edge.runtime.contract import InputContract
from brd_edge.runtime.errors import DataError


def make_contract(height: int, width: int) -> InputContract:
    return InputContract(height=height, width=width, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))


def make_sample(directory: Path, name: str, height: int = 6, width: int = 8) -> Sample:
    rng = np.random.default_rng(len(name))
    image, label = directory / "images" / f"{name}.png", directory / "labels" / f"{name}.png"
    image.parent.mkdir(parents=True, exist_ok=True)
    label.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8)).save(image)
    ids = rng.choice(np.array([0, 1, 255], np.uint8), (height, width))
    Image.fromarray(ids).save(label)
    return Sample(name, image, label, height, width, find_class_pixels(ids))


def make_dataset(directory: Path, elsewhere: Path) -> Dataset:
    return Dataset(
        name="tiny",
        classes=("road", "car"),
        palette=((128, 64, 128), (0, 0, 142)),
        train=(make_sample(directory, "a"), make_sample(elsewhere, "outside")),
        val=(make_sample(directory, "bb"),),
    )


@pytest.fixture
def prepared(tmp_path: Path) -> Path:
    directory = tmp_path / "prepared"
    save_index(directory, make_dataset(directory, tmp_path / "source"))
    return directory


def test_index_is_read_back_as_it_was_saved(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path / "prepared", tmp_path / "source")
    save_index(tmp_path / "prepared", dataset)
    assert load_dataset(tmp_path / "prepared") == dataset


def test_contents_tell_samples_apart_by_picture_and_label(prepared: Path, tmp_path: Path) -> None:
    before = load_contents(prepared)
    assert list(before) == ["bb"]
    # the same pixels in other bytes, as another version of the PNG writer may write them
    label = prepared / "labels" / "bb.png"
    with Image.open(label) as picture:
        ids = np.asarray(picture)
        picture.save(label, compress_level=0)
    save_index(prepared, load_dataset(prepared))
    assert load_contents(prepared) == before
    # another label; then another picture
    sample = load_dataset(prepared).val[0]
    other = ids.copy()
    other[0, 0] = 1 if ids[0, 0] == 0 else 0
    relabelled = replace(sample, classes=find_class_pixels(other))
    save_index(prepared, replace(load_dataset(prepared), val=(relabelled,)))
    assert load_contents(prepared) != before
    Image.fromarray(np.zeros((6, 8, 3), np.uint8)).save(sample.image)
    save_index(prepared, replace(load_dataset(prepared), val=(sample,)))
    assert load_contents(prepared) != before
    # the index is enough
    shutil.rmtree(prepared / "images")
    assert list(load_contents(prepared)) == ["bb"]
    with pytest.raises(DataError, match="no index here"):
        load_contents(tmp_path)


def test_paths_inside_are_relative_and_others_absolute(prepared: Path, tmp_path: Path) -> None:
    entries = json.loads((prepared / "index.json").read_text())["splits"]["train"]
    assert entries[0]["image"] == "images/a.png"
    assert entries[0]["label"] == "labels/a.png"
    assert entries[1]["image"] == str(tmp_path / "source/images/outside.png")
    moved = tmp_path / "moved"
    shutil.move(prepared, moved)
    assert load_dataset(moved).train[0].image == moved / "images/a.png"


def test_checksums_are_those_of_sha256sum(prepared: Path) -> None:
    entry = json.loads((prepared / "index.json").read_text())["splits"]["val"][0]
    for key in ("image", "label"):
        output = subprocess.run(["sha256sum", prepared / entry[key]], check=True, capture_output=True, text=True).stdout
        assert entry[f"{key}_sha256"] == output.split()[0]


def test_known_checksums_are_not_computed_again(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path, tmp_path)
    save_index(tmp_path, dataset, checksums={dataset.val[0].image: "0" * 64})
    entry = json.loads((tmp_path / "index.json").read_text())["splits"]["val"][0]
    assert entry["image_sha256"] == "0" * 64
    assert entry["label_sha256"] != "0" * 64


def test_classes_are_counted_and_points_lie_in_them() -> None:
    label = np.random.default_rng(3).choice(
        np.array([0, 4, 9, 254, 255], np.uint8), (37, 53), p=[0.6, 0.3, 0.09, 0, 0.01]
    )
    label[36, 52] = 254
    found = find_class_pixels(label)
    assert {item.id: item.count for item in found} == {
        int(number): int(count)
        for number, count in zip(*np.unique(label, return_counts=True), strict=True)
        if number < 255
    }
    for item in found:
        assert all(label[point] == item.id for point in item.points)
        assert len(set(item.points)) == len(item.points) == min(4, item.count)
    # spread from top to bottom: one in each quarter of the class's pixels
    rows = [row for row, _ in found[0].points]
    assert [row // (37 / 4) for row in rows] == [0, 1, 2, 3]
    assert find_class_pixels(np.full((3, 3), 255, np.uint8)) == ()


def test_counts_add_up(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path / "prepared", tmp_path / "source")
    labels = np.concatenate([np.asarray(Image.open(sample.label)).ravel() for sample in dataset.train])
    assert count_class_pixels(dataset.train, 2) == [int((labels == 0).sum()), int((labels == 1).sum())]


def drop(key: str) -> Callable[[dict[str, Any]], None]:
    return lambda values: values.pop(key)


def put(value: Any, *keys: str | int) -> Callable[[dict[str, Any]], None]:
    def change(values: Any) -> None:
        for key in keys[:-1]:
            values = values[key]
        values[keys[-1]] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop("classes"), r"classes: missing"),
        (drop("version"), r"version: missing"),
        (put(99, "version"), r"version: expected 2, got 99"),
        (put("road", "classes"), r"classes: expected list, got str"),
        (put(3, "classes", 1), r"classes\[1\]: expected str, got int"),
        (put([], "classes"), r"classes: expected 1 to 255 names, got 0"),
        (put([[0, 0, 0]], "palette"), r"palette: expected one colour a class \(2\), got 1"),
        (put([0, 0, 256], "palette", 1), r"palette\[1\]: expected \[red, green, blue\]"),
        (put([], "splits", "val"), r"splits\.val: expected at least one sample"),
        (put("a", "splits", "train", 1, "id"), r"splits\.train\[1\]\.id: 'a' is there twice"),
        (put("images/x.png", "splits", "train", 0, "image"), r"splits\.train\[0\]\.image: no file at .*x\.png"),
        (put(0, "splits", "val", 0, "height"), r"splits\.val\[0\]\.height: expected at least 1, got 0"),
        (put(True, "splits", "val", 0, "width"), r"splits\.val\[0\]\.width: expected int, got bool"),
        (put("abc", "splits", "val", 0, "label_sha256"), r"splits\.val\[0\]\.label_sha256: expected 64"),
        (put(7, "splits", "train", 0), r"splits\.train\[0\]: expected an object, got int"),
        (put([0, 1, 2], "splits", "val", 0, "classes", 0), r"splits\.val\[0\]\.classes\[0\]: expected \[id, pixels,"),
        (put([2, 1, 0, 0], "splits", "val", 0, "classes", 0), r"classes\[0\]: expected an id below 2, .* got \[2, 1"),
        (put([0, 1, 6, 0], "splits", "val", 0, "classes", 0), r"points inside the image, got \[0, 1, 6, 0\]"),
    ],
)
def test_damaged_index_names_file_and_key(
    prepared: Path, change: Callable[[dict[str, Any]], None], message: str
) -> None:
    index = prepared / "index.json"
    values = json.loads(index.read_text())
    change(values)
    index.write_text(json.dumps(values))
    with pytest.raises(DataError, match=message) as caught:
        load_dataset(prepared)
    assert str(caught.value).startswith(f"{index}: ")


@pytest.mark.parametrize("content", ['{"version": 1,', "[]", "\xff"])
def test_index_that_is_no_json_object(prepared: Path, content: str) -> None:
    (prepared / "index.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(DataError, match=r"index\.json: (not valid JSON|expected a JSON object)"):
        load_dataset(prepared)


def test_missing_index(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="prepare the data set first"):
        load_dataset(tmp_path)


def triangle_resize(pixels: NDArray[np.uint8], size: int) -> NDArray[np.float64]:
    """Resample axis 0 with a triangle filter as wide as the reduction, in float64."""
    scale = len(pixels) / size
    support = max(scale, 1.0)
    centres = (np.arange(size) + 0.5) * scale
    distance = np.abs(np.arange(len(pixels)) + 0.5 - centres[:, None]) / support
    weights = np.clip(1 - distance, 0, None)
    weights /= weights.sum(1, keepdims=True)
    return np.einsum("oi,i...->o...", weights, pixels.astype(np.float64))


@pytest.mark.parametrize("size", [(8, 10), (13, 31), (40, 60)])
def test_frame_is_resampled_with_an_antialiased_triangle(tmp_path: Path, size: tuple[int, int]) -> None:
    sample = make_sample(tmp_path, "a", height=24, width=30)
    frame = read_frame(sample, make_contract(*size))
    assert frame.shape == (*size, 3)
    assert frame.dtype == np.uint8
    source = np.asarray(Image.open(sample.image))
    rows = np.clip(np.round(triangle_resize(source, size[0])), 0, 255)
    both = np.swapaxes(triangle_resize(np.swapaxes(rows, 0, 1).astype(np.uint8), size[1]), 0, 1)
    # Pillow rounds to 8 bits between its two passes, columns first
    assert np.abs(frame - both).max() <= 1.5


def test_frame_at_native_size_is_untouched(tmp_path: Path) -> None:
    sample = make_sample(tmp_path, "a")
    frame = read_frame(sample, make_contract(sample.height, sample.width))
    np.testing.assert_array_equal(frame, np.asarray(Image.open(sample.image)))
    frame[0, 0] = 0


def test_grey_image_becomes_rgb(tmp_path: Path) -> None:
    sample = make_sample(tmp_path, "a")
    grey = np.arange(48, dtype=np.uint8).reshape(6, 8)
    Image.fromarray(grey).save(sample.image)
    np.testing.assert_array_equal(read_frame(sample, make_contract(6, 8)), np.stack([grey] * 3, -1))


def test_truncated_image_and_label_are_named(tmp_path: Path) -> None:
    sample = make_sample(tmp_path, "a", height=64, width=64)
    for path in (sample.image, sample.label):
        path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(DataError, match=r"images/a\.png: the image cannot be read"):
        read_frame(sample, make_contract(6, 8))
    with pytest.raises(DataError, match=r"labels/a\.png: the label cannot be read"):
        read_label(sample)


def test_label_is_read_at_native_size(tmp_path: Path) -> None:
    sample = make_sample(tmp_path, "a")
    label = read_label(sample)
    assert label.dtype == np.uint8
    assert set(np.unique(label)) <= {0, 1, 255}
    np.testing.assert_array_equal(label, np.asarray(Image.open(sample.label)))


@pytest.mark.parametrize(("mode", "size"), [("RGB", (8, 6)), ("L", (6, 8))])
def test_label_of_another_kind_or_size_is_refused(tmp_path: Path, mode: str, size: tuple[int, int]) -> None:
    sample = make_sample(tmp_path, "a")
    Image.new(mode, size).save(sample.label)
    with pytest.raises(DataError, match="expected a single-channel 8-bit label of 8x6 pixels, got mode"):
        read_label(sample)
