"""The teacher's labels within a run: a real, tiny one, which learns nothing but goes the whole way."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import PIL
import pytest
import torch
from PIL import Image
from tiny import TINY

from brd_edge.data.dataset import IGNORE_ID, read_frame
from brd_edge.data.index import load_dataset
from brd_edge.data.prepare import prepare_scenes
from brd_edge.data.scenes import CLASSES
from brd_edge.models.segmentation import load_model
from brd_edge.pipeline import main
from brd_edge.recipe import load_recipe
from brd_edge.run import Run
from brd_edge.runtime.frames import resize_class_map
from brd_edge.stages import STAGES, unlabelled
from brd_edge.stages.context import teacher_contract

QUICKSTART = Path(__file__).parents[2] / "pipelines" / "quickstart.yaml"
SETTINGS = (*TINY, "teacher.scale=2")


def _arguments(run: Path, *settings: str) -> list[str]:
    overrides = [part for setting in (*SETTINGS, *settings) for part in ("--set", setting)]
    return [str(QUICKSTART), "--run-dir", str(run), "--until", "distill", *overrides]


@pytest.fixture(scope="module")
def frames(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scenes of another seed and size, without their labels."""
    directory = tmp_path_factory.mktemp("drawn")
    prepare_scenes(directory, train=5, val=1, height=80, width=120, seed=9)
    return directory / "images" / "train"


@pytest.fixture(scope="module")
def finished(frames: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("run")
    assert main(_arguments(run, f"distill.unlabelled={frames}")) == 0
    return run


def test_the_student_learns_from_what_the_teacher_says(finished: Path, frames: Path) -> None:
    recipe = load_recipe(QUICKSTART, overrides=SETTINGS)
    contract = teacher_contract(recipe)
    teacher, _ = load_model(finished / "teacher" / "model")
    labels = sorted((finished / "unlabelled" / "labels").iterdir())
    assert [path.name for path in labels] == [f"{path.name}.png" for path in sorted(frames.iterdir())]
    for path, image in zip(labels, sorted(frames.iterdir()), strict=True):
        frame = Image.open(image).resize((contract.width, contract.height), Image.Resampling.BILINEAR)
        pixels = (np.asarray(frame, np.float32) / 255 - contract.mean) / contract.std
        with torch.inference_mode():
            logits = teacher.eval()(torch.from_numpy(pixels).float().permute(2, 0, 1)[None])
        ids = logits.argmax(1)[0].to(torch.uint8).numpy()
        np.testing.assert_array_equal(np.asarray(Image.open(path)), resize_class_map(ids, 80, 120))
    artifact = Run(finished).artifact("distill")
    assert artifact is not None
    # 8 scenes and 5 images are three batches of 4 in an epoch, 8 scenes alone two
    assert artifact.result["steps"] == 3
    assert artifact.result["unlabelled"] == 5
    with Image.open(finished / "unlabelled" / "contact_sheet.png") as sheet:
        assert sheet.width > 500


def test_the_same_images_elsewhere_train_nothing_again(
    finished: Path, frames: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(frames, tmp_path / "moved")

    assert main(_arguments(finished, f"distill.unlabelled={tmp_path / 'moved'}")) == 0
    assert "[3/8] distill: unchanged" in capsys.readouterr().err
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    (tmp_path / "moved" / "000000.png").unlink()
    assert main(_arguments(run, f"distill.unlabelled={tmp_path / 'moved'}")) == 0
    told = capsys.readouterr().err
    assert "[2/8] teacher: unchanged" in told
    assert "(changed: unlabelled images)" in told
    assert "the teacher labelled 4 images" in told


def test_a_pixel_that_the_teacher_is_unsure_of_has_no_label(
    finished: Path, frames: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    recipe = load_recipe(QUICKSTART, overrides=SETTINGS)
    contract = teacher_contract(recipe)
    teacher, _ = load_model(run / "teacher" / "model")
    sample = load_dataset(run / "data").train[0]
    pixels = (read_frame(sample, contract).astype(np.float32) / 255 - contract.mean) / contract.std
    with torch.inference_mode():
        logits = teacher.eval()(torch.from_numpy(pixels).float().permute(2, 0, 1)[None])[0].double().numpy()
    powers = np.exp(logits - logits.max(0))
    confidence = (powers / powers.sum(0)).max(0)
    least = float(np.median(confidence))
    # a copy that is not the data set's own to the byte
    (tmp_path / "frames").mkdir()
    Image.open(sample.image).save(tmp_path / "frames" / "a.png", compress_level=1)
    for path in sorted(frames.iterdir())[:2]:
        shutil.copy(path, tmp_path / "frames" / f"b{path.name}")

    settings = [f"distill.unlabelled={tmp_path / 'frames'}", f"distill.unlabelled_confidence={least}"]
    assert main(_arguments(run, *settings)) == 0

    label = np.asarray(Image.open(run / "unlabelled" / "labels" / "a.png.png"))
    ids = np.where(confidence < least, IGNORE_ID, logits.argmax(0)).astype(np.uint8)
    # float64 here: a pixel that is as sure as the limit may fall on the other side
    assert (label == resize_class_map(ids, *label.shape)).mean() > 0.999
    labels = [np.asarray(Image.open(path)).ravel() for path in (run / "unlabelled" / "labels").iterdir()]
    counts = np.bincount(np.concatenate(labels), minlength=256)[:IGNORE_ID]
    most = f"{CLASSES[counts.argmax()]} {100 * counts.max() / counts.sum():.0f} %"
    share = 100 * counts.sum() / (label.size + 2 * 80 * 120)
    told = capsys.readouterr().err
    assert f"the teacher labelled 3 images of {tmp_path / 'frames'}, {share:.0f} % of their pixels" in told
    assert f"they are {most}, " in told
    assert 0.3 < (label == IGNORE_ID).mean() < 0.7


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("nowhere", "{} does not exist; expected a directory of images, or none (null)"),
        ("empty", "there is no image in {} or below it"),
        ("file", "{} is a file; expected a directory of images, or none (null)"),
    ],
)
def test_what_is_no_directory_of_images_is_told_before_anything_is_done(
    tmp_path: Path, given: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("", encoding="utf-8")
    expected = "distill.unlabelled: " + message.format(tmp_path / given)
    arguments = _arguments(tmp_path / "run", f"distill.unlabelled={tmp_path / given}")

    assert main([*arguments, "--plan"]) == 0
    assert f"missing: {expected}\n" in capsys.readouterr().out
    assert main(arguments) == 1
    assert f"error: {expected}\n" in capsys.readouterr().err


def test_labels_of_the_data_set_are_no_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "data"
    for kind in ("images", "labels"):
        for split in ("train", "val"):
            (root / kind / split).mkdir(parents=True)
            Image.new("RGB" if kind == "images" else "L", (8, 8)).save(root / kind / split / "a.png")
    settings = ["data.layout=folder", f"data.root={root}", f"distill.unlabelled={root}"]

    assert main([*_arguments(tmp_path / "run", *settings), "--plan"]) == 0
    assert f"the data set {root} lies in {root}" in capsys.readouterr().out
    settings[-1] = f"distill.unlabelled={root / 'images'}"
    assert main([*_arguments(tmp_path / "run", *settings), "--plan"]) == 0
    plan = " ".join(capsys.readouterr().out.split())
    assert "missing: distill" not in plan
    assert "also on up to 2 images of" in plan


def test_pictures_of_runs_are_no_images(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of the own run and of others, in the directory or around it."""
    run = tmp_path / "frames" / "run"
    shutil.copytree(finished, run)
    Image.new("RGB", (40, 30), (90, 90, 90)).save(tmp_path / "frames" / "a.png")

    assert main(_arguments(run, f"distill.unlabelled={tmp_path / 'frames'}")) == 0
    assert "the teacher labelled 1 image of" in capsys.readouterr().err
    before = (run / "stages" / "distill.json").read_bytes()
    shutil.copy(tmp_path / "frames" / "a.png", run / "unlabelled")
    assert main(_arguments(run, f"distill.unlabelled={run / 'unlabelled'}")) == 1
    assert "lies in the run directory, whose own pictures would be taken for images" in capsys.readouterr().err
    assert (run / "stages" / "distill.json").read_bytes() == before


def test_an_image_that_cannot_be_read_costs_no_result_and_no_time(
    finished: Path, frames: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    (run / "report.html").write_text("results", encoding="utf-8")
    shutil.copytree(frames, tmp_path / "frames")
    broken = tmp_path / "frames" / "b.png"
    broken.write_bytes((frames / "000000.png").read_bytes()[:200])
    setting = f"distill.unlabelled={tmp_path / 'frames'}"

    assert main(_arguments(run, setting)) == 1
    assert str(broken) in capsys.readouterr().err
    assert (run / "report.html").exists()
    assert main(_arguments(run, f"distill.unlabelled={frames}")) == 0
    assert "[3/8] distill: unchanged" in capsys.readouterr().err
    # in a new run it is known before the teacher is trained
    assert main(_arguments(tmp_path / "new", setting)) == 1
    told = capsys.readouterr().err
    assert str(broken) in told
    assert not (tmp_path / "new" / "teacher").exists()
    assert main(_arguments(run, setting, "data.on_bad_sample=skip")) == 0
    assert "the teacher labelled 5 images" in (told := capsys.readouterr().err)
    assert f"; 1 problem: see {run / 'unlabelled' / 'skipped.json'}" in told


def test_a_stage_that_is_done_anew_labels_anew(finished: Path, frames: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    label = run / "unlabelled" / "labels" / "000000.png.png"
    before = label.stat().st_mtime_ns

    assert main([*_arguments(run, f"distill.unlabelled={frames}"), "--from", "distill"]) == 0

    assert label.stat().st_mtime_ns > before


def test_settings_of_images_that_there_are_not_change_nothing(tmp_path: Path) -> None:
    recipe, other = (
        load_recipe(QUICKSTART, overrides=[*SETTINGS, f"distill.unlabelled_confidence={least}"]) for least in (0, 0.5)
    )
    assert STAGES["distill"].settings(recipe) == STAGES["distill"].settings(other)
    given = [f"distill.unlabelled={tmp_path}"]
    recipe, other = (
        load_recipe(QUICKSTART, overrides=[*SETTINGS, *given, f"distill.unlabelled_confidence={least}"])
        for least in (0, 0.5)
    )
    assert STAGES["distill"].settings(recipe) != STAGES["distill"].settings(other)


def test_one_of_several_processes_labels(finished: Path, frames: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    shutil.copytree(frames, tmp_path / "frames")
    Image.new("RGB", (40, 30), (90, 90, 90)).save(tmp_path / "frames" / "a.png")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = [*launcher, "-m", "brd_edge.pipeline", *_arguments(run, f"distill.unlabelled={tmp_path / 'frames'}")]

    done = subprocess.run(
        command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=300, check=False
    )

    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stderr.count("the teacher labelled 6 images") == 1
    artifact = Run(run).artifact("distill")
    assert artifact is not None
    assert artifact.result["unlabelled"] == 6


def test_an_interrupted_labelling_goes_on(finished: Path, frames: Path, tmp_path: Path) -> None:
    run, journal = tmp_path / "run", tmp_path / "run" / "unlabelled" / "journal.jsonl"
    shutil.copytree(finished, run)
    journal.unlink()
    (tmp_path / "frames").mkdir()
    for number in range(150):
        shutil.copy(frames / f"00000{number % 5}.png", tmp_path / "frames" / f"{number}.png")
    command = [sys.executable, "-m", "brd_edge.pipeline", *_arguments(run, f"distill.unlabelled={tmp_path / 'frames'}")]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    while not journal.exists() or len(journal.read_bytes().splitlines()) < 4:
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.01)

    process.send_signal(signal.SIGINT)

    _, told = process.communicate(timeout=60)
    assert process.returncode == 130, told
    assert "stopped by SIGINT; run it again to go on" in told
    done = journal.read_bytes().splitlines()[1:]
    assert 3 <= len(done) < 150
    first = run / "unlabelled" / "labels" / "0.png.png"
    before = first.stat().st_mtime_ns
    again = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert again.returncode == 0, again.stderr
    assert "the teacher labelled 150 images" in again.stderr
    assert first.stat().st_mtime_ns == before


def test_few_labels_and_many_images_fill_a_batch(finished: Path, frames: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished, run)

    assert main(_arguments(run, f"distill.unlabelled={frames}", "distill.train.batch_size=12")) == 0
    assert main(_arguments(run, f"distill.unlabelled={frames}", "distill.train.batch_size=14")) == 1


def _context(directory: Path, *settings: str) -> Any:
    said: list[str] = []
    recipe = load_recipe(QUICKSTART, overrides=[*SETTINGS, *settings])
    return SimpleNamespace(recipe=recipe, run=Run(directory), say=said.append, said=said)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """As much of a run as labelling reads: a teacher's files, whatever is in them."""
    model = tmp_path / "run" / "teacher" / "model"
    model.mkdir(parents=True)
    (model / "model.safetensors").write_bytes(b"weights")
    (model / "spec.json").write_text("{}", encoding="utf-8")
    return tmp_path / "run"


def test_images_of_both_splits_are_left_out(directory: Path, frames: Path, tmp_path: Path) -> None:
    """The student is validated on some: what the teacher says of these must not be trained on."""
    dataset = prepare_scenes(directory / "data", train=2, val=1, height=64, width=96, seed=0)
    (tmp_path / "frames").mkdir()
    for name, image in (("train", dataset.train[1].image), ("val", dataset.val[0].image)):
        shutil.copy(image, tmp_path / "frames" / f"{name}.png")
    shutil.copy(frames / "000000.png", tmp_path / "frames" / "other.png")
    context = _context(directory, f"distill.unlabelled={tmp_path / 'frames'}")

    torch.manual_seed(0)
    unlabelled.label_unlabelled(context, torch.nn.Conv2d(3, len(CLASSES), 1), dataset)

    assert "the teacher labelled 1 image of" in context.said[0]
    assert "; 2 images left out: the data set's own" in context.said[0]
    trained = unlabelled.with_teacher_labels(context, dataset).train
    assert [sample.id for sample in trained] == [*(sample.id for sample in dataset.train), "other.png"]


def _write_weights(directory: Path) -> None:
    (directory / "teacher" / "model" / "model.safetensors").write_bytes(b"other weights")


@pytest.mark.parametrize(
    ("settings", "change"),
    [
        ((), lambda directory, _patch: _write_weights(directory)),
        (("data.size=[64, 128]",), None),
        (("distill.unlabelled_confidence=0.25",), None),
        ((), lambda _directory, patch: patch.setattr(unlabelled, "code_digest", lambda _names: "other")),
        ((), lambda _directory, patch: patch.setattr(PIL, "__version__", "other")),
    ],
    ids=["model", "contract", "confidence", "code", "Pillow"],
)
def test_labels_are_of_all_that_decides_them(
    directory: Path, monkeypatch: pytest.MonkeyPatch, settings: tuple[str, ...], change: Any
) -> None:
    """Otherwise labels of an earlier teacher would be taken for those of this one."""
    before = unlabelled._maker(_context(directory))
    assert unlabelled._maker(_context(directory, "distill.unlabelled=elsewhere")) == before

    if change is not None:
        change(directory, monkeypatch)

    assert unlabelled._maker(_context(directory, *settings)) != before
