"""The teacher's labels within a run: a real, tiny one, which learns nothing but goes the whole way."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from brd_edge.data.dataset import IGNORE_ID, read_frame
from brd_edge.data.index import load_dataset
from brd_edge.data.prepare import prepare_scenes
from brd_edge.models.segmentation import load_model
from brd_edge.pipeline import main
from brd_edge.recipe import load_recipe
from brd_edge.run import Run
from brd_edge.stages.context import teacher_contract

QUICKSTART = Path(__file__).parents[2] / "pipelines" / "quickstart.yaml"
TINY = (
    "data.size=[64, 96]",
    "data.scenes={train: 8, val: 3}",
    "data.loader=torch",
    "teacher.options={decoder_channels: 16}",
    "teacher.encoder=tu-mobilenetv3_small_050",
    "teacher.scale=2",
    "teacher.train.epochs=1",
    "teacher.train.batch_size=4",
    "student.options={decoder_channels: 16}",
    "distill.train.epochs=1",
    "distill.train.batch_size=4",
)


def _arguments(run: Path, *settings: str) -> list[str]:
    overrides = [part for setting in (*TINY, *settings) for part in ("--set", setting)]
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
    recipe = load_recipe(QUICKSTART, overrides=TINY)
    contract = teacher_contract(recipe)
    teacher, _ = load_model(finished / "teacher" / "model")
    labels = sorted((finished / "unlabelled" / "labels").iterdir())
    assert [path.name for path in labels] == [f"{path.name}.png" for path in sorted(frames.iterdir())]
    for path, image in zip(labels, sorted(frames.iterdir()), strict=True):
        frame = Image.open(image).resize((contract.width, contract.height), Image.Resampling.BILINEAR)
        pixels = (np.asarray(frame, np.float32) / 255 - contract.mean) / contract.std
        with torch.inference_mode():
            logits = teacher.eval()(torch.from_numpy(pixels).float().permute(2, 0, 1)[None])
        ids = Image.fromarray(logits.argmax(1)[0].to(torch.uint8).numpy())
        # 128x192 to 80x120: the centre of each pixel lies within one of those, so that nearest is not a matter of taste
        expected = np.asarray(ids.resize((120, 80), Image.Resampling.NEAREST))
        assert (np.asarray(Image.open(path)) == expected).mean() > 0.99
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


def test_a_pixel_that_the_teacher_is_unsure_of_has_no_label(finished: Path, frames: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    recipe = load_recipe(QUICKSTART, overrides=TINY)
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
    expected = np.asarray(Image.fromarray(ids).resize(label.shape[::-1], Image.Resampling.NEAREST))
    assert (label == expected).mean() > 0.99
    assert 0.3 < (label == IGNORE_ID).mean() < 0.7


@pytest.mark.parametrize(
    ("given", "message"),
    [("nowhere", "nowhere does not exist; expected a directory of images"), ("empty", "there is no image in")],
)
def test_what_is_no_directory_of_images_is_told_before_anything_is_done(
    tmp_path: Path, given: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    setting = f"distill.unlabelled={tmp_path / given}"

    assert main([*_arguments(tmp_path / "run", setting), "--plan"]) == 0
    assert f"missing: distill.unlabelled: {tmp_path / given}" in capsys.readouterr().out or given == "empty"
    assert main(_arguments(tmp_path / "run", setting)) == 1
    assert message in capsys.readouterr().err


def test_the_runs_own_pictures_are_no_images(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    before = json.loads((run / "stages" / "distill.json").read_text(encoding="utf-8"))
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")

    assert main(_arguments(run, f"distill.unlabelled={tmp_path}")) == 1

    assert "lies within" in capsys.readouterr().err
    assert json.loads((run / "stages" / "distill.json").read_text(encoding="utf-8")) == before
