"""`brd-edge data` on a small data set of one's own."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from brd_edge.cli import main
from brd_edge.run import Artifact, Run

RECIPE = Path(__file__).parents[1] / "pipelines/quickstart.yaml"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    base = tmp_path / "data"
    for split, count in (("train", 5), ("val", 2)):
        for kind in ("images", "labels"):
            (base / kind / split).mkdir(parents=True)
        for i in range(count):
            Image.fromarray(rng.integers(0, 256, (40, 60, 3), np.uint8)).save(base / f"images/{split}/{i}.png")
            label = np.zeros((40, 60), np.uint8)
            label[:, 30:] = 1
            label[:4] = 255
            Image.fromarray(label).save(base / f"labels/{split}/{i}.png")
    (base / "classes.yaml").write_text("names: [road, car, tram]\n")
    return base


def arguments(root: Path) -> list[str]:
    run = root.parent / "run"
    settings = ["--set", "data.layout=folder", "--set", f"data.root={root}", "--set", "data.size=[32, 64]"]
    crop = ["--set", "distill.train.crop=[32, 64]", "--set", "distill.train.batch_size=4"]
    return [str(RECIPE), "--run-dir", str(run), *settings, *crop]


def look(root: Path, *more: str) -> int:
    return main(["data", *arguments(root), *more])


def test_numbers_and_sheet(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert look(root, "--images", "7") == 0
    out = capsys.readouterr().out
    assert "train: 5 images, 60x40 (5); 5 png; 10.0 % of the pixels ignored" in out
    assert [line.split() for line in out.splitlines() if line.strip().startswith(("0 ", "1 ", "2 "))] == [
        ["0", "road", "50.00", "50.00", "5", "2"],
        ["1", "car", "50.00", "50.00", "5", "2"],
        ["2", "tram", "none", "none", "0", "0"],
    ]
    assert "tram is in no train image: it cannot be learnt (10 % of the pixels are ignored)" in out
    sheet = root.parent / "run/data/contact_sheet.png"
    assert out.splitlines()[-1] == f"contact sheet: {sheet}"
    before = sheet.read_bytes()
    with Image.open(sheet) as picture:
        # three rows of three samples, each 256x128 twice
        assert picture.size[0] == 2 * 20 + 3 * (2 * 256 + 6) + 2 * 20
    # again: nothing is prepared anew, and the sheet is the same
    assert look(root, "--images", "7") == 0
    assert "prepare: unchanged" in capsys.readouterr().err
    assert sheet.read_bytes() == before


def test_bad_files_are_listed_or_left_out(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (root / "images/train/2.png").write_bytes(b"")
    assert look(root) == 1
    assert "images/train/2.png: the image cannot be read" in capsys.readouterr().err
    sheet = root.parent / "other.png"
    assert look(root, "--set", "data.on_bad_sample=skip", "-o", str(sheet), "--images", "1") == 0
    out = capsys.readouterr().out
    assert "train: 4 images" in out
    assert "left out of train: " in out
    assert "images/train/2.png: the image cannot be read" in out
    assert sheet.is_file()


def test_class_names_may_end_in_a_line_break(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (root / "classes.yaml").write_text("names:\n  - |\n    road\n  - car\n  - |\n    tram\n")
    assert look(root, "--images", "1") == 0
    out = capsys.readouterr().out
    assert [line.split()[:3] for line in out.splitlines() if line.startswith("   0")] == [["0", "road", "50.00"]]
    assert "- tram is in no train image: it cannot be learnt" in out


def test_a_look_at_other_data_spares_a_run(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert look(root) == 0
    run = Run(root.parent / "run")
    prepared = run.artifact("prepare")
    assert prepared is not None
    run.keep(Artifact("teacher", "", {}, {}, ""), [])
    run.keep(Artifact("benchmark", "", {}, {"stage prepare": prepared.content}, ""), [])
    for name in ("benchmark.json", "report.html"):
        run.path(name).write_text("{}")
    run.path("bundle").mkdir()
    before = sorted(path.name for path in run.directory.iterdir())

    def kept() -> bool:
        return sorted(path.name for path in run.directory.iterdir()) == before

    assert look(root, "--set", "data.hold_out=0*") == 1
    assert "holds other data (hold_out differs); look at these with a --run-dir" in capsys.readouterr().err
    assert kept()
    # what a file manager leaves is no change at all, and the same files at another time are the same data
    (root / ".DS_Store").touch()
    assert look(root) == 0
    assert "prepare: unchanged" in capsys.readouterr().err
    (root / "images/train/0.png").touch()
    assert look(root) == 0
    assert "(changed: data set)" in capsys.readouterr().err
    assert kept()
    # a file that cannot be used makes no earlier result untrue
    content = (root / "images/train/0.png").read_bytes()
    (root / "images/train/0.png").write_bytes(b"")
    assert look(root) == 1
    assert kept()
    (root / "images/train/0.png").write_bytes(content)
    assert look(root) == 0
    assert kept()
    # other images do
    (root / "images/train/4.png").unlink()
    (root / "labels/train/4.png").unlink()
    capsys.readouterr()
    assert look(root) == 0
    assert "removed, as it is made anew: benchmark.json, report.html, bundle" in capsys.readouterr().err
    assert not run.path("bundle").exists()


def test_runs_below_the_data_are_no_data(root: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.chdir(root)
    settings = ["--set", "data.layout=folder", "--set", "data.root=.", "--set", "data.size=[32, 64]"]
    for expected in ("prepare: check folder", "prepare: unchanged"):
        assert main([str(RECIPE), *settings, "--until", "prepare"]) == 0
        assert expected in capsys.readouterr().err


def test_the_same_data_at_another_place_are_the_same_data(root: Path) -> None:
    Image.fromarray(np.full((40, 60), 99, np.uint8)).save(root / "images/train/0.png")  # grey: a copy is converted
    assert look(root) == 0
    run = Run(root.parent / "run")
    first = run.artifact("prepare")
    moved = root.rename(root.with_name("moved"))
    assert main(["run", *arguments(moved), "--until", "prepare"]) == 0
    second = run.artifact("prepare")
    assert first is not None and second is not None
    assert second.outputs != first.outputs, "the index names files where they lie"
    assert second.content == first.content


@pytest.mark.parametrize("option", ["--force", "--from"])
def test_force_converts_labels_that_look_unchanged(root: Path, option: str) -> None:
    arguments_ = [*arguments(root), "--until", "prepare"]
    label = root / "labels/train/0.png"
    for pixel, more in ((0, []), (1, []), (1, ["--force"] if option == "--force" else ["--from", "prepare"])):
        # uncompressed, so that the file keeps its size
        Image.fromarray(np.full((40, 60), pixel, np.uint8)).save(label, compress_level=0)
        os.utime(label, (1, 1))
        assert main(["run", *arguments_, *more]) == 0
        with Image.open(root.parent / "run/data/labels/train/0.png") as converted:
            found = np.unique(np.asarray(converted)).tolist()
        assert found == [1 if more else 0]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("[road]", "folder: road is the only class, so that there is nothing to tell apart"),
        ("[ground, road]", "folder: of 2 classes only ground is in the train labels, so that there is nothing"),
    ],
)
def test_a_mask_of_0_and_255_without_its_colours_is_refused_with_the_cure(
    root: Path, names: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (root / "classes.yaml").write_text(f"names: {names}\n")
    for path in (root / "labels").rglob("*.png"):
        label = np.zeros((40, 60), np.uint8)
        label[:, 30:] = 255
        Image.fromarray(label).save(path)
    assert look(root) == 1
    told = capsys.readouterr().err
    assert message in told
    cure = "colors: [[0, 0, 0], [255, 255, 255]]"
    assert cure in told
    (root / "classes.yaml").write_text(f"names: [ground, road]\n{cure}\n")
    assert look(root) == 0
    assert "0.0 % of the pixels ignored" in capsys.readouterr().out


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_split_without_labels_is_refused(root: Path, split: str, capsys: pytest.CaptureFixture[str]) -> None:
    for path in (root / "labels" / split).iterdir():
        Image.fromarray(np.full((40, 60), 255, np.uint8)).save(path)
    assert look(root) == 1
    assert f"labels of the split {split} is of a known class" in capsys.readouterr().err


def test_wrong_arguments(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        look(root, "--images", "0")
    assert caught.value.code == 2
    assert "expected 1 to 60, got '0'" in capsys.readouterr().err
    assert look(root, "-o", "sheet.jpg") == 1
    assert "sheet.jpg: expected a name that ends in .png" in capsys.readouterr().err
    assert not (root.parent / "run").exists()
