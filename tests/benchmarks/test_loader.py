from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks import loader
from benchmarks.loader import Settings, StepSettings
from benchmarks.loader_contenders import CONTENDERS, Contender, Workload, open_contender, unavailable
from benchmarks.loader_files import Case, make_files
from brd_edge.data.dataset import IGNORE_ID, Sample
from brd_edge.runtime.errors import DataError

SIZE, CROP, BATCH = (48, 64), (40, 72), 3
PNG = Case("png-tiny", "png", SIZE, CROP, 8)
JPEG = Case("jpeg-tiny", "jpeg", SIZE, CROP, 8)
HERE = tuple(name for name in CONTENDERS if unavailable(name) is None)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Sample, ...]]:
    return make_files(tmp_path_factory.mktemp("files"), [PNG, JPEG], None)


def work(samples: tuple[Sample, ...], size: tuple[int, int] = SIZE, seed: int = 0) -> Workload:
    return loader.workload(samples, size, CROP, Settings(batch_size=BATCH), seed)


@contextmanager
def opened(name: str, workload: Workload) -> Iterator[Contender]:
    contender = open_contender(name, workload)
    try:
        yield contender
    finally:
        contender.close()


def read(path: Path) -> Any:
    with Image.open(path) as image:
        return np.array(image)


@pytest.mark.parametrize("case", [PNG, JPEG], ids=lambda case: case.format)
def test_files_are_of_the_format_and_size(files: dict[str, tuple[Sample, ...]], case: Case) -> None:
    assert len(files[case.name]) == case.images
    for sample in files[case.name]:
        with Image.open(sample.image) as image:
            assert (image.format, image.mode, image.size) == (case.format.upper(), "RGB", SIZE[::-1])
        label = read(sample.label)
        assert label.shape == SIZE
        assert label.dtype == np.uint8


def test_camvid_is_enlarged_with_its_labels(tmp_path: Path) -> None:
    for folder in ("train", "trainannot"):
        (tmp_path / folder).mkdir()
    ids = np.repeat(np.array([[0, 11], [3, 10]], np.uint8), 8, axis=0).repeat(8, axis=1)
    for i in range(5):
        Image.fromarray(np.full((16, 16, 3), 40 * i + 20, np.uint8)).save(tmp_path / "train" / f"{i}.png")
        Image.fromarray(ids).save(tmp_path / "trainannot" / f"{i}.png")
    case = Case("png", "png", (32, 64), (32, 64), 2)
    (tmp_path / "made").mkdir()

    samples = make_files(tmp_path / "made", [case], tmp_path)["png"]

    # spread over all, not the first ones: they are frames of a video
    assert [round(read(sample.image).mean()) for sample in samples] == [20, 100]
    for sample in samples:
        expected = np.where(ids == 11, IGNORE_ID, ids).repeat(2, axis=0).repeat(4, axis=1)
        assert np.array_equal(read(sample.label), expected)
    with pytest.raises(DataError, match="at least 6 images, found 5"):
        make_files(tmp_path / "made", [Case("png", "png", (32, 64), (32, 64), 6)], tmp_path)
    (tmp_path / "trainannot" / "0.png").unlink()
    with pytest.raises(DataError, match=r"0.png: it or its label in trainannot cannot be read \(.*No such file"):
        make_files(tmp_path / "made", [case], tmp_path)


def test_a_wrong_camvid_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert loader.main(["--camvid", str(tmp_path / "nowhere"), "--case", JPEG.name], cases=[JPEG]) == 1
    (line,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("loader: error: "))
    assert "nowhere/train: expected at least" in line
    assert "give --camvid the directory with train and trainannot" in line


@pytest.mark.parametrize("name", HERE)
# the second size is not that of the files, as in a training on reduced frames
@pytest.mark.parametrize("size", [SIZE, (24, 40)])
def test_batches_have_the_crops_shape_and_the_sources_labels(
    files: dict[str, tuple[Sample, ...]], name: str, size: tuple[int, int]
) -> None:
    samples = files[PNG.name]
    with opened(name, work(samples, size)) as contender:
        batches = [contender.next_batch() for _ in range(4)]

    for batch in batches:
        assert batch.images.shape == (BATCH, 3, *CROP)
        assert batch.images.dtype == torch.float32
        assert batch.labels.shape == (BATCH, *CROP)
        assert batch.labels.dtype == torch.int64
        for index, labels in zip(batch.indices, batch.labels, strict=True):
            assert set(labels.unique().tolist()) <= {*np.unique(read(samples[index].label)).tolist(), IGNORE_ID}
    images = torch.cat([batch.images for batch in batches])
    assert images.isfinite().all()
    # normalised: black and white lie at -2.2 and 2.7
    assert images.min() >= -2.2
    assert images.max() <= 2.7
    assert images.std() > 0.3
    indices = [batch.indices for batch in batches]
    # two batches an epoch: none is seen twice, and the order is new in the next one
    assert len({*indices[0], *indices[1]}) == len({*indices[2], *indices[3]}) == 2 * BATCH
    assert indices[:2] != indices[2:]


@pytest.mark.parametrize("name", HERE)
def test_images_and_labels_are_varied_alike(tmp_path: Path, name: str) -> None:
    samples = []
    for i in range(BATCH):
        ids = np.zeros(SIZE, np.uint8)
        ids[8 * i : 8 * i + 20, 10 * i : 10 * i + 30] = 1
        Image.fromarray(np.where(ids[..., None] == 1, 255, 0).repeat(3, axis=2).astype(np.uint8)).save(
            tmp_path / f"{i}.png"
        )
        Image.fromarray(ids).save(tmp_path / f"{i}_label.png")
        samples.append(Sample(str(i), tmp_path / f"{i}.png", tmp_path / f"{i}_label.png", *SIZE, classes=()))
    with opened(name, work(tuple(samples))) as contender:
        batches = [contender.next_batch() for _ in range(6)]

    padded = 0
    for batch in batches:
        known = batch.labels != IGNORE_ID
        padded += int((~known).sum())
        # padding has the mean colour; albumentations pads before the colours are varied
        padding = batch.images.permute(0, 2, 3, 1)[~known]
        assert (padding.abs() < (1.0 if name == "albumentations" else 1e-6)).all()
        bright = batch.images.mean(1) > 0
        assert (bright[known] == (batch.labels[known] == 1)).float().mean() > 0.95
    assert padded > 0


def test_worker_processes_do_what_the_reference_does(files: dict[str, tuple[Sample, ...]]) -> None:
    with opened("reference", work(files[PNG.name])) as contender:
        expected = [contender.next_batch() for _ in range(5)]
    with opened("dataloader", work(files[PNG.name])) as contender:
        found = [contender.next_batch() for _ in range(5)]

    for ours, theirs in zip(found, expected, strict=True):
        assert ours.indices == theirs.indices
        assert torch.equal(ours.images, theirs.images)
        assert torch.equal(ours.labels, theirs.labels)


@pytest.mark.skipif("albumentations" not in HERE, reason="albumentations is not installed")
def test_workers_of_albumentations_draw_differently(tmp_path: Path) -> None:
    samples = make_files(tmp_path, [Case("png", "png", SIZE, CROP, 1)], None)["png"]
    one = Workload(**{**vars(work(samples)), "batch_size": 1})
    with opened("albumentations", one) as contender:
        # one after the other from either worker
        first, second = (contender.next_batch() for _ in range(2))
    with opened("albumentations", one) as contender:
        again = contender.next_batch()

    assert not torch.equal(first.images, second.images)
    assert torch.equal(first.images, again.images)


def test_ratio_of_pairs() -> None:
    found = loader.summarise_ratio([2.0, 6.0, 5.0, 8.0, 10.0], [1.0, 2.0, 2.0, 2.0, 2.0])
    assert found["median"] == 3.0
    low, high = found["low"], found["high"]
    assert low is not None
    assert high is not None
    assert 2.0 <= low <= 3.0 <= high <= 5.0
    assert loader.summarise_ratio([3.0], [2.0]) == {"median": 1.5, "low": None, "high": None}


def test_every_contender_is_first_as_often() -> None:
    turns = [loader.rotated("abc", turn) for turn in range(3)]
    assert [turn[0] for turn in turns] == ["a", "b", "c"]
    assert all(sorted(turn) == ["a", "b", "c"] for turn in turns)


def test_counts_are_whole_groups_of_workers() -> None:
    assert Settings(threads=3).warm_up == 3
    assert [Settings(threads=2).whole(batches) for batches in (0, 0.1, 2, 2.1)] == [2, 2, 2, 4]


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Threads of torch wait for each other for seconds a step where other programs hold the cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def check_missing(entry: dict[str, Any]) -> None:
    assert entry["status"] == "not measured"
    assert entry["reason"]


@pytest.mark.usefixtures("one_thread")
def test_the_command_measures_all_that_is_here(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CAMVID_ROOT", raising=False)
    output = tmp_path / "loader.json"
    step = StepSettings(case=PNG, frame=(64, 96), steps=1, warm_up=1, rounds=1)
    arguments = ["--case", JPEG.name, "--rounds", "1", "--seconds", "0.01", "--step", "--output", str(output)]

    assert loader.main(arguments, cases=[PNG, JPEG], step=step) == 0

    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result == json.loads(output.read_text(encoding="utf-8"))
    assert result["benchmark"] == "loader"
    assert result["settings"]["pictures"] == "drawn scenes"
    assert {"python", "packages"} <= result["environment"].keys()
    (case,) = result["cases"]
    assert (case["case"], case["format"], case["size"], case["crop"]) == ("jpeg-tiny", "jpeg", [*SIZE], [*CROP])
    assert case["file_bytes_mean"] > 0
    assert tuple(case["contenders"]) == CONTENDERS
    for name, entry in case["contenders"].items():
        if name not in HERE:
            check_missing(entry)
            continue
        assert len(entry["rounds"]) == 1
        assert entry["images_per_s"] == entry["rounds"][0] > 0
        for base in loader.BASES:
            expected = entry["images_per_s"] / case["contenders"][base]["images_per_s"]
            assert entry[f"ratio_to_{base}"]["median"] == pytest.approx(expected)
    for name, entry in result["step"]["contenders"].items():
        if name not in HERE:
            check_missing(entry)
            continue
        assert 0 <= entry["wait_share"] <= 1
        assert entry["step_ms"] > 0
        assert len(entry["rounds"]) == 1


def test_what_is_not_there_is_not_measured(
    files: dict[str, tuple[Sample, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(name: str) -> str | None:
        return "not installed: none of it" if name not in loader.BASES else None

    monkeypatch.setattr(loader, "unavailable", missing)
    settings = Settings(batch_size=BATCH, rounds=2, seconds=0.01)
    with loader.progress_bar(4, "test") as bar:
        case = loader.measure_case(PNG, files[PNG.name], settings, bar)

    assert {name for name, entry in case["contenders"].items() if "status" not in entry} == set(loader.BASES)
    check_missing(case["contenders"]["albumentations"])
    result = {"cases": [case], "step": None}
    assert "not installed: none of it" in loader.format_result(result)
