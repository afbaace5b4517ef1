"""Data sets as they are published, from the disk to the trainer and to the scores of the official scripts."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cityscapesscripts.helpers.labels import labels as official_labels
from numpy.typing import NDArray
from PIL import Image
from scipy.io import savemat

from brd_edge.data.dataset import Dataset, Sample
from brd_edge.data.evaluation import read_for_evaluation
from brd_edge.data.layouts import LAYOUTS
from brd_edge.data.loader import open_train_loader
from brd_edge.data.plan import Augmentation
from brd_edge.data.prepare import prepare
from brd_edge.evaluate.accuracy import evaluate_predictor
from brd_edge.runtime.contract import SLIDING_WINDOW, InputContract
from brd_edge.runtime.metrics import SegmentationMetrics

BACKENDS = ("torch", "dali")
CONTRACT = InputContract(height=24, width=32, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
PLAIN = Augmentation(crop=(24, 32), scale=(1.0, 1.0), flip=0.0, brightness=0.0, contrast=0.0, saturation=0.0)
# rows and columns, broad, tall and square; scaled to 24x32 no pixel has two nearest ones
SIZES = ((24, 32), (40, 25), (7, 61), (33, 33), (55, 31))


def save(path: Path, pixels: NDArray[Any], **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)


def write_lines(path: Path, lines: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


# scores


def random_ids(rng: np.random.Generator, height: int, width: int, known: list[int]) -> NDArray[np.uint8]:
    blocks = rng.choice(known, (height // 8, width // 8))
    return np.kron(blocks, np.ones((8, 8))).astype(np.uint8)


def write_cityscapes(root: Path, sizes: list[tuple[int, int]]) -> list[Path]:
    """Write a tree of two cities a split; returns the validation labels, whose place the images tell by their red."""
    rng = np.random.default_rng(6)
    # some classes are nowhere; licence plates (-1) are 255 in eight bits, which the official score refuses in labels
    known = [item.id for item in official_labels if item.id >= 0 and item.name not in {"train", "bus", "motorcycle"}]
    found = []
    for place, (height, width) in enumerate(sizes):
        for split, cities in (("train", ("aachen", "bochum")), ("val", ("frankfurt", "lindau"))):
            city = cities[place % 2]
            name = f"{city}/{city}_{place:06d}_000019"
            label = root / f"gtFine/{split}/{name}_gtFine_labelIds.png"
            save(label, random_ids(rng, height, width, known if split == "val" else [*known, 255]))
            save(
                root / f"leftImg8bit/{split}/{name}_leftImg8bit.png",
                np.full((height, width, 3), (place * 50, 90, 120), np.uint8),
            )
            found += [label] if split == "val" else []
    return found


@pytest.mark.parametrize("backend", BACKENDS)
def test_scores_are_those_of_the_official_script(tmp_path: Path, backend: Any) -> None:
    cs = pytest.importorskip("cityscapesscripts.evaluation.evalPixelLevelSemanticLabeling")
    labels = write_cityscapes(tmp_path / "in", [(48, 96), (48, 96), (72, 144), (24, 48), (96, 192)])
    dataset = prepare(LAYOUTS["cityscapes"], tmp_path / "in", tmp_path / "out", workers=2)
    table = {item.trainId: item for item in official_labels if 0 <= item.trainId < 19}
    by_name = {path.name.partition("_gtFine")[0]: path for path in labels}
    truth = [np.asarray(Image.open(by_name[sample.id])) for sample in dataset.val]
    reds = [int(np.asarray(Image.open(sample.image))[0, 0, 0]) for sample in dataset.val]
    contract = replace(CONTRACT, height=24, width=48)

    def predict(frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """What the label holds at the contract's size, but for every third pixel."""
        place = reds.index(round(int(frame[12, 24, 0]) / 50) * 50)
        step = truth[place].shape[0] // 24
        rng = np.random.default_rng(place)
        ids = truth[place][::step, ::step]
        right = np.select([ids == item.id for item in table.values()], list(table), rng.integers(0, 12, ids.shape))
        return np.where(rng.random(ids.shape) < 1 / 3, rng.integers(0, 17, ids.shape), right).astype(np.uint8)

    maps: dict[int, NDArray[np.uint8]] = {}
    metrics = evaluate_predictor(
        predict,
        dataset.val,
        contract=contract,
        metrics=SegmentationMetrics(19),
        on_class_map=lambda index, class_map: maps.update({index: class_map}),
        backend=backend,
        threads=2,
    )
    for index, class_map in maps.items():
        ids = np.array([table[i].id for i in range(19)], np.uint8)[class_map]
        factor = truth[index].shape[0] // 24
        save(tmp_path / f"results/{dataset.val[index].id}_pred.png", np.kron(ids, np.ones((factor, factor), np.uint8)))
    args = copy.copy(cs.args)
    args.evalInstLevelScore, args.JSONOutput, args.quiet = False, False, True
    args.predictionPath, args.predictionWalk = str(tmp_path / "results"), None
    paths = [str(path) for path in labels]
    expected = cs.evaluateImgLists([cs.getPrediction(args, path) for path in paths], paths, args)
    scores = [expected["classScores"][table[i].name] for i in range(19)]
    np.testing.assert_allclose(metrics.class_iou(), scores, rtol=0, atol=1e-9)
    assert metrics.miou() == pytest.approx(expected["averageScoreClasses"], abs=1e-9)
    # motorcycles are in neither, buses are only predicted
    assert math.isnan(metrics.class_iou()[17]) and metrics.class_iou()[15] == 0
    assert 0.3 < metrics.miou() < 0.8
    assert metrics.confusion.sum() == sum(np.isin(ids, [item.id for item in table.values()]).sum() for ids in truth)


# every layout, from its official tree to both backends


@dataclass(frozen=True)
class Tree:
    """What was written: the train id of each id in the files, by hand, and each sample's ids."""

    ids: dict[int, int]
    splits: dict[str, dict[str, NDArray[Any]]] = field(default_factory=lambda: {"train": {}, "val": {}})

    def draw(self, split: str, name: str, kind: type = np.uint8) -> tuple[NDArray[np.uint8], NDArray[Any]]:
        """Return image and ids of the next sample: all ids are in it, and the red tells which it is."""
        place = sum(map(len, self.splits.values()))
        height, width = SIZES[place]
        label = np.random.default_rng(place).choice(list(self.ids), (height, width)).astype(kind)
        label.ravel()[: len(self.ids)] = list(self.ids)
        self.splits[split][name] = label
        return np.full((height, width, 3), (place * 40, 120, 60), np.uint8), label


def samples_of(names: list[str]) -> list[tuple[str, str]]:
    return [*(("train", name) for name in names[:3]), *(("val", name) for name in names[3:])]


def cityscapes(root: Path) -> Tree:
    tree = Tree({0: 255, 7: 0, 8: 1, 9: 255, 11: 2, 14: 255, 19: 6, 29: 255, 31: 16, 33: 18, 255: 255})
    for split, name in samples_of([f"ulm_00000{i}_000019" for i in range(5)]):
        image, label = tree.draw(split, name)
        save(root / f"leftImg8bit/{split}/ulm/{name}_leftImg8bit.png", image)
        save(root / f"gtFine/{split}/ulm/{name}_gtFine_labelIds.png", label)
        # the other files of the release lie beside them
        save(root / f"gtFine/{split}/ulm/{name}_gtFine_instanceIds.png", label.astype(np.uint16) * 100)
        save(root / f"gtFine/{split}/ulm/{name}_gtFine_color.png", image)
    return tree


def voc(root: Path, augmented: bool = False, names: list[str] | None = None) -> Tree:
    tree, base = Tree({0: 0, 1: 1, 15: 15, 20: 20, 255: 255}), root / "VOCdevkit/VOC2012"
    palette = [value for i in range(256) for value in voc_color(i)]
    chosen = names or [f"2007_00000{i}" for i in range(5)]
    for split, name in samples_of(chosen):
        image, label = tree.draw(split, name)
        save(base / f"JPEGImages/{name}.jpg", image, quality=95)
        indexed = Image.fromarray(label)
        indexed.putpalette(palette)
        plain = augmented and split == "train"
        (base / "SegmentationClass").mkdir(exist_ok=True)
        indexed.save(base / f"SegmentationClass/{name}.png")
        if plain:
            # the augmented labels are grey, and not those of the first release
            save(base / f"SegmentationClass/{name}.png", np.zeros_like(label))
            save(base / f"SegmentationClassAug/{name}.png", label)
    lists = base / "ImageSets/Segmentation"
    write_lines(lists / "train.txt", chosen[:1] if augmented else chosen[:3])
    write_lines(lists / "val.txt", chosen[3:])
    if augmented:
        pairs = [f"/JPEGImages/{name}.jpg /SegmentationClassAug/{name}.png" for name in chosen[:3]]
        write_lines(lists / "train_aug.txt", pairs)
    return tree


def voc_color(index: int) -> tuple[int, int, int]:
    bits = [[index >> (3 * place + channel) & 1 for place in range(8)] for channel in range(3)]
    red, green, blue = (sum(bit << (7 - place) for place, bit in enumerate(channel)) for channel in bits)
    return red, green, blue


def voc_augmented(root: Path) -> Tree:
    return voc(root, augmented=True)


def voc_named(root: Path) -> Tree:
    return voc(root, names=["two words", "Straße 1", "道路", "a.b c", "été"])


def ade20k(root: Path) -> Tree:
    tree = Tree({0: 255, 1: 0, 2: 1, 13: 12, 150: 149})
    for split, name in samples_of([f"ADE_{i:08d}" for i in range(5)]):
        image, label = tree.draw(split, name)
        directory = {"train": "training", "val": "validation"}[split]
        save(root / f"images/{directory}/{name}.jpg", image, quality=95)
        save(root / f"annotations/{directory}/{name}.png", label)
    return tree


def cocostuff10k(root: Path) -> Tree:
    # 12 and 91 were never annotated: 13 follows 11, and stuff begins at 92
    tree = Tree({0: 255, 1: 0, 11: 10, 13: 11, 90: 79, 92: 80, 182: 170})
    for split, name in samples_of([f"COCO_train2014_{i:012d}" for i in range(5)]):
        image, label = tree.draw(split, name, np.uint16)
        save(root / f"images/{name}.jpg", image, quality=95)
        (root / "annotations").mkdir(exist_ok=True)
        variables = {"S": label, "names": np.array([["a"], ["b"]], object), "captions": ["a", "street"]}
        savemat(root / f"annotations/{name}.mat", variables, do_compression=split == "train")
    for split, file in (("train", "train"), ("val", "test")):
        write_lines(root / f"imageLists/{file}.txt", list(tree.splits[split]))
    return tree


def camvid(root: Path) -> Tree:
    tree = Tree({0: 0, 3: 3, 10: 10, 11: 255})
    for split, name in samples_of([f"0001TP_00{i}" for i in range(5)]):
        image, label = tree.draw(split, name)
        save(root / f"{split}/{name}.png", image)
        save(root / f"{split}annot/{name}.png", label)
    for split in ("train", "val"):
        pairs = [f"/SegNet/CamVid/{split}/{n}.png /SegNet/CamVid/{split}annot/{n}.png" for n in tree.splits[split]]
        write_lines(root / f"{split}.txt", pairs)
    return tree


def folder(root: Path, names: list[str] | None = None) -> Tree:
    tree = Tree({0: 255, 7: 0, 300: 1, 65535: 255})
    write_lines(root / "classes.yaml", ["names: {7: road, 300: car}", "ignore: [0, 65535]"])
    for split, name in samples_of(names or ["a", "day/b", "night/b", "c", "d"]):
        image, label = tree.draw(split, name, np.uint16)
        save(root / f"images/{split}/{name}.{'bmp' if split == 'val' else 'png'}", image)
        save(root / f"labels/{split}/{name}.png", label)
    return tree


def folder_named(root: Path) -> Tree:
    return folder(root, ["two words", "Straße 1", "道路/ü 🚗", "a.b c", "été 100%"])


def check_sample(sample: Sample, tree: Tree, split: str) -> NDArray[np.uint8]:
    """Return the train ids that the sample should have."""
    written = tree.splits[split][sample.id]
    assert (sample.height, sample.width) == written.shape
    expected = np.full(written.shape, 254, np.uint8)
    for number, train_id in tree.ids.items():
        expected[written == number] = train_id
    counts = {found.id: found.count for found in sample.classes}
    assert counts == {int(i): int(n) for i, n in zip(*np.unique(expected, return_counts=True), strict=True) if i != 255}
    return expected


def check_training(dataset: Dataset, expected: list[NDArray[np.uint8]], places: list[int], backend: Any) -> None:
    loader = open_train_loader(
        dataset.train, contract=CONTRACT, augmentation=PLAIN, batch_size=3, seed=0, backend=backend, threads=2
    )
    try:
        batch = loader.next_batch()
    finally:
        loader.close()
    assert sorted(batch.indices) == [0, 1, 2]
    for image, label, index in zip(batch.images.numpy(), batch.labels.numpy(), batch.indices, strict=True):
        rows, columns = (
            (2 * np.arange(size) + 1) * native // (2 * size)
            for size, native in zip((24, 32), expected[index].shape, strict=True)
        )
        np.testing.assert_array_equal(label, expected[index][np.ix_(rows, columns)])
        assert np.abs((image[0] * 0.5 + 0.5) * 255 - places[index] * 40).max() < 3


TREES: tuple[tuple[str, Callable[[Path], Tree]], ...] = (
    ("cityscapes", cityscapes),
    ("voc2012", voc),
    ("voc2012", voc_augmented),
    ("voc2012", voc_named),
    ("ade20k", ade20k),
    ("cocostuff10k", cocostuff10k),
    ("camvid", camvid),
    ("folder", folder),
    ("folder", folder_named),
)


@pytest.mark.parametrize(("layout", "write"), TREES, ids=[write.__name__ for _, write in TREES])
def test_ids_arrive_as_they_were_written(tmp_path: Path, layout: str, write: Callable[[Path], Tree]) -> None:
    tree = write(tmp_path / "in")
    dataset = prepare(LAYOUTS[layout], tmp_path / "in", tmp_path / "out", workers=2)
    order = [name for split in ("train", "val") for name in tree.splits[split]]
    assert sorted(sample.id for sample in dataset.train) == sorted(tree.splits["train"])
    assert sorted(sample.id for sample in dataset.val) == sorted(tree.splits["val"])
    places = [order.index(sample.id) for sample in (*dataset.train, *dataset.val)]
    expected = [check_sample(sample, tree, "train") for sample in dataset.train]
    expected += [check_sample(sample, tree, "val") for sample in dataset.val]
    samples, whole = [*dataset.train, *dataset.val], replace(CONTRACT, resize=SLIDING_WINDOW)
    for backend in BACKENDS:
        check_training(dataset, expected, places, backend)
        items = list(read_for_evaluation(samples, contract=whole, backend=backend, threads=2))
        assert [item.index for item in items] == list(range(5))
        for item in items:
            np.testing.assert_array_equal(item.label, expected[item.index])
            assert item.image.shape == (*item.label.shape, 3)
            assert np.abs(item.image[..., 0].astype(int) - places[item.index] * 40).max() < 3
