"""The overview against counts by plain numpy on the label files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from brd_edge.data.dataset import Dataset, Sample, find_class_pixels
from brd_edge.data.findings import Skipped, SkippedSample
from brd_edge.data.overview import describe_dataset

CLASSES = ("road", "car", "pole", "tram")
SIZES = {"train": ((6, 8), (6, 8), (5, 9)), "val": ((7, 7), (6, 8))}
IDS = {"train": (0, 1, 2, 255), "val": (0, 2, 255)}


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    splits: dict[str, list[Sample]] = {}
    rng = np.random.default_rng(0)
    for split, sizes in SIZES.items():
        for i, size in enumerate(sizes):
            label = rng.choice(np.array(IDS[split], np.uint8), size)
            if (split, i) == ("train", 2):
                label[:3] = 255
            path = tmp_path / f"{split}{i}.png"
            Image.fromarray(label).save(path)
            image = tmp_path / f"{split}{i}.{'jpg' if i else 'PNG'}"
            splits.setdefault(split, []).append(Sample(path.stem, image, path, *size, find_class_pixels(label)))
    return Dataset("tiny", CLASSES, ((0, 0, 0),) * 4, tuple(splits["train"]), tuple(splits["val"]))


def labels(samples: tuple[Sample, ...]) -> list[np.ndarray]:
    return [np.asarray(Image.open(sample.label)) for sample in samples]


def test_shares_and_images_are_those_of_the_label_files(dataset: Dataset) -> None:
    overview = describe_dataset(dataset, Skipped(), {"train": {}, "val": {}})
    for split, found in zip((dataset.train, dataset.val), overview.splits, strict=True):
        maps = labels(split)
        flat = np.concatenate([pixels.ravel() for pixels in maps])
        assert found.images == len(split)
        assert found.ignored == pytest.approx((flat == 255).mean())
        for item in overview.classes:
            assert item.share[found.name] == pytest.approx((flat == item.id).sum() / (flat != 255).sum())
            assert item.images[found.name] == sum((pixels == item.id).any() for pixels in maps)
    assert overview.splits[0].sizes == ((6, 8, 2), (5, 9, 1))
    assert overview.splits[0].formats == {"jpg": 2, "png": 1}
    assert [item.name for item in overview.classes] == list(CLASSES)


def test_what_is_odd_is_said(dataset: Dataset) -> None:
    skipped = Skipped((SkippedSample("train", "x", ("x.png: empty", "y.png: missing")),), ("odd: a directory",))
    checksums = {"train": {"train0": "aa", "train1": "bb"}, "val": {"val0": "cc", "val1": "bb"}}
    ignored = {
        name: 100 * np.concatenate([pixels.ravel() == 255 for pixels in labels(samples)]).mean()
        for name, samples in (("train", dataset.train), ("val", dataset.val))
    }
    assert describe_dataset(dataset, skipped, checksums).problems == (
        "left out of train: x.png: empty; y.png: missing",
        "odd: a directory",
        f"tram is in no train image: it cannot be learnt ({ignored['train']:.0f} % of the pixels are ignored)",
        f"car, tram are in no val image: they cannot be judged ({ignored['val']:.0f} % of the pixels are ignored)",
        "val image val1 is train image train1, to the byte: scores on it flatter",
        f"train image train2: {100 * np.mean(labels(dataset.train)[2] == 255):.0f} % of its label is ignored",
    )


def test_long_lists_are_cut_and_counted(dataset: Dataset) -> None:
    skipped = Skipped(tuple(SkippedSample("val", f"{i}", (f"{i}: bad",)) for i in range(25)))
    problems = describe_dataset(dataset, skipped, {"train": {}, "val": {}}).problems
    assert problems[9] == "left out of val: 9: bad"
    assert problems[10] == "... and 15 more like these"
