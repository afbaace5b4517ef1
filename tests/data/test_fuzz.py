"""Damaged and hostile files: preparation and the loaders take them, or name them, and never leave one out silently."""

from __future__ import annotations

import faulthandler
import gc
import io
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data import mutations as mutate
from PIL import Image
from scipy.io import savemat

from brd_edge.data import findings
from brd_edge.data.dataset import Dataset, Sample
from brd_edge.data.evaluation import read_for_evaluation
from brd_edge.data.findings import Skipped, load_skipped
from brd_edge.data.layouts import LAYOUTS
from brd_edge.data.loader import open_train_loader
from brd_edge.data.plan import Augmentation
from brd_edge.data.prepare import prepare
from brd_edge.runtime.contract import InputContract
from brd_edge.runtime.errors import DataError

BACKENDS = ("torch", "dali")
HEIGHT, WIDTH = 24, 32
CONTRACT = InputContract(height=HEIGHT, width=WIDTH, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
PLAIN = Augmentation(crop=(HEIGHT, WIDTH), scale=(1.0, 1.0), flip=0.0, brightness=0.0, contrast=0.0, saturation=0.0)
LEAST_FILES, HANG_S = 500, 100
RNG = np.random.default_rng(20)
RGB = RNG.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
# blocks, so that labels are compressed as real ones are
IDS = np.kron(RNG.integers(0, 3, (HEIGHT // 4, WIDTH // 4)), np.ones((4, 4))).astype(np.uint8)
PNG, JPEG, LABEL = mutate.encode(RGB), mutate.encode(RGB, "JPEG"), mutate.encode(IDS)
VOC_LABEL = mutate.encode(Image.fromarray(IDS), mode="P")

# Pillow warns of damaged metadata and goes on, and leaves some files that it gives up to the garbage collector
pytestmark = [
    pytest.mark.filterwarnings(r"ignore::UserWarning:PIL\."),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]
tried: Counter[str] = Counter()


@pytest.fixture(autouse=True)
def watchdog(capfd: pytest.CaptureFixture[str]) -> Iterator[None]:
    """A hang ends the tests, and says where."""
    with capfd.disabled():
        terminal = os.dup(2)
    faulthandler.dump_traceback_later(HANG_S, exit=True, file=terminal)
    yield
    gc.collect()
    faulthandler.cancel_dump_traceback_later()
    os.close(terminal)


@pytest.fixture(autouse=True)
def every_problem_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(findings, "_SHOWN_PROBLEMS", 100_000)


def put(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def put_folder(root: Path, key: str, image: bytes = PNG, label: bytes = LABEL) -> None:
    put(root / f"images/{key}.png", image)
    put(root / f"labels/{key}.png", label)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A healthy data set of three, of the layout `folder`."""
    for key in ("train/t0", "train/t1", "val/v0"):
        put_folder(tmp_path / "in", key)
    put(tmp_path / "in/classes.yaml", b"names: [road, car, tree]")
    return tmp_path / "in"


def prepare_both(layout: str, root: Path, out: Path) -> tuple[Dataset, Skipped]:
    """Prepare with and without what is bad; both must agree on what that is."""
    dataset = prepare(LAYOUTS[layout], root, out, workers=2, skip_bad=True)
    skipped = load_skipped(out)
    reasons = [*skipped.general, *(reason for sample in skipped.samples for reason in sample.reasons)]
    if not reasons:
        return dataset, skipped
    with pytest.raises(DataError) as caught:
        prepare(LAYOUTS[layout], root, out, workers=2)
    missing = [reason for reason in reasons if f"  - {reason}" not in str(caught.value)]
    assert missing == []
    assert f"{len(reasons)} problem" in str(caught.value)
    return dataset, skipped


def as_text(name: str) -> str:
    """What stands in an id for a name that may hold bytes which are no UTF-8, or letters that are taken apart."""
    return unicodedata.normalize("NFC", name.encode(errors="backslashreplace").decode())


def check_accounts(dataset: Dataset, skipped: Skipped, expected: dict[str, set[str]]) -> None:
    """Every sample is used, or left out for a reason that names one of its files; never both, never neither."""
    for split, samples in (("train", dataset.train), ("val", dataset.val)):
        used = [sample.id for sample in samples]
        left = [sample.id for sample in skipped.samples if sample.split == split]
        assert sorted(used + left) == sorted(expected[split])
    for sample in skipped.samples:
        assert sample.reasons
        for reason in sample.reasons:
            assert f"/{sample.id}." in as_text(reason)
            assert "ended the process" not in reason


def train_once(samples: list[Sample], backend: Any) -> None:
    """Take each sample through training once."""
    loader = open_train_loader(
        samples, contract=CONTRACT, augmentation=PLAIN, batch_size=1, seed=0, backend=backend, threads=2
    )
    try:
        seen = []
        for _ in samples:
            batch = loader.next_batch()
            seen += batch.indices
            assert batch.images.isfinite().all()
        assert sorted(seen) == list(range(len(samples)))
    finally:
        loader.close()


def check_loading(dataset: Dataset) -> None:
    """What was prepared can be read by all, with ids in range."""
    samples, known = [*dataset.train, *dataset.val], [*range(len(dataset.classes)), 255]
    for backend in BACKENDS:
        train_once(samples, backend)
        items = list(read_for_evaluation(samples, contract=CONTRACT, backend=backend, threads=4))
        assert [item.index for item in items] == list(range(len(samples)))
        for item, sample in zip(items, samples, strict=True):
            assert item.label.shape == (sample.height, sample.width)
            assert np.isin(item.label, known).all()


# before preparation


def mutated_images(rng: np.random.Generator) -> Iterator[tuple[bytes, bytes]]:
    """Yield pairs whose image or label is not what it should be."""
    for _, content in mutate.odd_images(RGB):
        yield content, LABEL
        yield PNG, content
    for number in range(50):
        yield mutate.damage(rng, PNG, JPEG, number), LABEL
        yield mutate.damage(rng, JPEG, PNG, number), LABEL
        yield mutate.damage_png(rng, PNG, number), LABEL
        yield PNG, mutate.damage(rng, LABEL, PNG, number)
        yield PNG, mutate.damage_png(rng, LABEL, number)


def test_mutated_pictures_and_labels(root: Path, tmp_path: Path) -> None:
    names = {"t0", "t1"}
    for number, pair in enumerate(mutated_images(np.random.default_rng(1))):
        put_folder(root, f"train/m{number}", *pair)
        names.add(f"m{number}")
    tried["folder"] += len(names) - 2
    dataset, skipped = prepare_both("folder", root, tmp_path / "out")
    check_accounts(dataset, skipped, {"train": names, "val": {"v0"}})
    assert len(dataset.train) > 60 and len(skipped.samples) > 150
    assert skipped.general == ()
    check_loading(dataset)


def test_a_damaged_label_is_refused_and_not_read_otherwise(root: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    for number in range(120):
        put_folder(root, f"train/m{number}", PNG, mutate.damage(rng, LABEL, PNG, number))
    tried["labels"] += 120
    dataset = prepare(LAYOUTS["folder"], root, tmp_path / "out", workers=2, skip_bad=True)
    for item in read_for_evaluation(dataset.train, contract=CONTRACT, backend="torch", threads=2):
        np.testing.assert_array_equal(item.label, IDS)


def mat(variables: dict[str, Any], compressed: bool) -> bytes:
    buffer = io.BytesIO()
    savemat(buffer, variables, do_compression=compressed)
    return buffer.getvalue()


def mutated_mats(rng: np.random.Generator) -> Iterator[bytes]:
    variables = {"S": IDS.astype(np.uint16), "captions": "a street"}
    plain, packed = (mat(variables, compressed) for compressed in (False, True))
    for _, wrong in mutate.odd_mats(IDS):
        yield mat(wrong, compressed=True)
    for number in range(44):
        yield mutate.damage(rng, plain, packed, number)
        yield mutate.damage(rng, packed, plain, number)
    # the first bytes: header, tags, dimensions
    for _ in range(60):
        head = bytearray(plain)
        head[int(rng.integers(120, 192))] = int(rng.integers(256))
        yield bytes(head)
    yield savemat_4(variables)


def savemat_4(variables: dict[str, Any]) -> bytes:
    buffer = io.BytesIO()
    savemat(buffer, variables, format="4")
    return buffer.getvalue()


def test_mutated_matlab_labels(tmp_path: Path) -> None:
    root, names = tmp_path / "in", ["t0"]
    contents = [mat({"S": IDS.astype(np.uint16)}, True), *mutated_mats(np.random.default_rng(3))]
    for number, content in enumerate(contents):
        put(root / f"annotations/t{number}.mat", content)
        put(root / f"images/t{number}.jpg", JPEG)
        names.append(f"t{number}")
    put(root / "annotations/v0.mat", contents[0])
    put(root / "images/v0.jpg", JPEG)
    put(root / "imageLists/train.txt", "\n".join(names[1:]).encode())
    put(root / "imageLists/test.txt", b"v0\n")
    tried["cocostuff10k"] += len(contents) - 1
    dataset, skipped = prepare_both("cocostuff10k", root, tmp_path / "out")
    check_accounts(dataset, skipped, {"train": set(names), "val": {"v0"}})
    assert len(dataset.train) > 5 and len(skipped.samples) > 80
    check_loading(dataset)


@pytest.mark.parametrize("word", sorted(mutate.LISTS))
def test_mutated_lists(tmp_path: Path, word: str) -> None:
    root, lists = tmp_path / "in", tmp_path / "in/ImageSets/Segmentation"
    for name in ("t0", "t1", "v0"):
        put(root / f"JPEGImages/{name}.jpg", JPEG)
        put(root / f"SegmentationClass/{name}.png", VOC_LABEL)
    put(lists / "train.txt", mutate.LISTS[word])
    put(lists / "val.txt", b"v0\n")
    tried["lists"] += 1
    try:
        dataset, skipped = prepare_both("voc2012", root, tmp_path / "out")
    except DataError as error:
        assert any(text in str(error) for text in ("split 'train' is empty", f"{lists / 'train.txt'}: cannot be read"))
        return
    used = {sample.id for sample in dataset.train}
    assert used <= {"t0", "t1"}
    if word in {"byte-order-mark", "carriage-returns"}:
        assert used == {"t0", "t1"} and not skipped
    listed = len([line for line in mutate.LISTS[word].decode().splitlines() if line.strip()])
    assert len(dataset.train) + len(skipped.samples) == listed
    check_loading(dataset)


def test_mutated_class_files(root: Path, tmp_path: Path) -> None:
    rng, good = np.random.default_rng(4), b"names: {0: road, 1: car, 2: tree}\nignore: [255, 7]\n"
    contents = [*mutate.CLASS_FILES, *(mutate.damage(rng, good, b"- [x, y]", number) for number in range(66))]
    tried["classes"] += len(contents)
    results = Counter[bool]()
    for content in contents:
        put(root / "classes.yaml", content)
        try:
            dataset = prepare(LAYOUTS["folder"], root, tmp_path / "out", workers=1)
        except DataError as error:
            assert len(str(error)) < 20_000
            results[False] += 1
        else:
            assert dataset.classes
            results[True] += 1
    assert results[True] >= 2 and results[False] > 80


# the file system


def test_hostile_names(root: Path, tmp_path: Path) -> None:
    names = {"t0", "t1"}
    for number, name in enumerate(mutate.HOSTILE_NAMES):
        key = f"train/{name}"
        if number % 4 == 0:
            put_folder(root, key, PNG[:40])
        else:
            put_folder(root, key)
        # hidden files are no samples
        names |= {as_text(name)} - {"..a"}
    tried["names"] += len(mutate.HOSTILE_NAMES)
    dataset, skipped = prepare_both("folder", root, tmp_path / "out")
    check_accounts(dataset, skipped, {"train": names, "val": {"v0"}})
    # a name may be too long for what is written beside it; all others with whole files are used
    short = {name for name in names if len(os.fsencode(name)) < 240}
    whole = {as_text(name) for number, name in enumerate(mutate.HOSTILE_NAMES) if number % 4}
    assert {sample.id for sample in dataset.train} >= short & whole
    check_loading(dataset)


def test_what_is_no_regular_file(root: Path, tmp_path: Path) -> None:
    train, labels = root / "images/train", root / "labels/train"
    for name in ("pipe", "directory", "broken", "loop", "outside", "device", "inside"):
        put(labels / f"{name}.png", LABEL)
    put(tmp_path / "elsewhere.png", PNG)
    os.mkfifo(train / "pipe.png")
    (train / "directory.png").mkdir()
    for name, target in (
        ("broken", "nowhere.png"),
        ("loop", "loop.png"),
        ("outside", str(tmp_path / "elsewhere.png")),
        ("device", "/dev/zero"),
        ("inside", "../train/t0.png"),
    ):
        (train / f"{name}.png").symlink_to(target)
    put_folder(root, "train/x.png/y")
    put(root / "images/train/x.jpg", JPEG)
    put(root / "labels/train/x.PNG", LABEL)
    tried["file system"] += 9
    dataset, skipped = prepare_both("folder", root, tmp_path / "out")
    both = {"t0", "t1", "inside", "x", "x.png/y", "pipe", "directory", "broken", "loop", "outside", "device"}
    check_accounts(dataset, skipped, {"train": both, "val": {"v0"}})
    assert {sample.id for sample in dataset.train} >= {"t0", "t1", "inside"}
    # one is a file where the other needs a directory
    assert len({sample.id for sample in dataset.train} & {"x", "x.png/y"}) == 1
    check_loading(dataset)


@pytest.mark.parametrize("kind", ["pipe", "directory", "loop", "device"])
@pytest.mark.parametrize("name", ["classes.yaml", "images/val"])
def test_a_pipe_in_the_place_of_a_part_is_not_waited_for(root: Path, tmp_path: Path, kind: str, name: str) -> None:
    path = root / name
    path.rename(tmp_path / "away")
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "directory":
        path.mkdir()
    else:
        path.symlink_to("/dev/zero" if kind == "device" else path)
    tried["file system"] += 1
    with pytest.raises(DataError):
        prepare(LAYOUTS["folder"], root, tmp_path / "out", workers=1, skip_bad=True)


# after preparation


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", ["image", "label"])
def test_files_that_change_after_preparation_are_named(root: Path, tmp_path: Path, backend: Any, kind: str) -> None:
    dataset = prepare(LAYOUTS["folder"], root, tmp_path / "out", workers=1)
    sample, rng = dataset.val[0], np.random.default_rng(5)
    path = getattr(sample, kind)
    good = path.read_bytes()
    contents = [content for _, content in mutate.odd_images(RGB)]
    contents += [mutate.damage(rng, good, JPEG, i) for i in range(22)]
    contents += [mutate.damage_png(rng, good, i) for i in range(15)]
    tried["afterwards"] += len(contents)
    refused = Counter[str]()
    for content in contents:
        path.write_bytes(content)
        try:
            train_once([sample], backend)
        except DataError as error:
            refused["train"] += 1
            assert str(path) in str(error)
        try:
            list(read_for_evaluation([sample], contract=CONTRACT, backend=backend, threads=1))
        except DataError as error:
            refused["evaluation"] += 1
            assert str(path) in str(error)
    assert min(refused.values()) > (25 if kind == "image" else 40)


@pytest.mark.parametrize("kind", ["image", "label"])
def test_a_part_that_pillow_stumbles_over_is_named_in_evaluation(root: Path, tmp_path: Path, kind: str) -> None:
    sample = prepare(LAYOUTS["folder"], root, tmp_path / "out", workers=1).val[0]
    path = getattr(sample, kind)
    path.write_bytes(mutate.with_part(path.read_bytes(), b"iCCP", b"name\0"))
    with pytest.raises(DataError, match=re.escape(str(path))):
        train_once([sample], "torch")
    with pytest.raises(DataError, match=re.escape(str(path))):
        list(read_for_evaluation([sample], contract=CONTRACT, backend="torch", threads=1))


def test_enough_files_were_tried() -> None:
    if set(tried) < {"folder", "labels", "cocostuff10k", "lists", "classes", "names", "file system", "afterwards"}:
        pytest.skip("counts what the other tests of this file tried, and not all of them ran")
    assert tried.total() >= LEAST_FILES
