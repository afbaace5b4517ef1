"""Images without labels and a model that labels them: here one whose answer can be computed from the pixels."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from brd_edge.data.dataset import IGNORE_ID, read_label
from brd_edge.data.findings import load_skipped
from brd_edge.data.unlabelled import (
    JOURNAL_NAME,
    LabelledImages,
    check_images,
    find_images,
    label_images,
    load_labelled,
)
from brd_edge.runtime.errors import DataError, InterruptedRunError


class Brightness:
    """Says whether a pixel's red is bright, is unsure where it is dark, and counts the images that it sees."""

    def __init__(self) -> None:
        self.seen = 0

    def __call__(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        self.seen += 1
        red = image[..., 0]
        return np.where(red < 20, IGNORE_ID, red // 128).astype(np.uint8)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    directory = tmp_path / "frames"
    (directory / "night").mkdir(parents=True)
    for name in ("a.png", "b.png", "night/a.png"):
        rng = np.random.default_rng(list(name.encode()))
        Image.fromarray(rng.integers(0, 256, (6, 8, 3), np.uint8)).save(directory / name)
    (directory / "notes.txt").write_text("no image", encoding="utf-8")
    return directory


def label(root: Path, model: Brightness, known: Collection[str] = (), **settings: Any) -> LabelledImages:
    out = root.parent / "out"
    return label_images(
        find_images(root), out, segment=model, known=known, **{"maker": "first", "threads": 2, **settings}
    )


def test_every_image_gets_what_the_model_says(root: Path) -> None:
    model, calls = Brightness(), list[tuple[int, int]]()

    found = label(root, model, progress=lambda done, total: calls.append((done, total)))

    assert [sample.id for sample in found.samples] == ["a.png", "b.png", "night/a.png"]
    assert calls == [(1, 3), (2, 3), (3, 3)]
    assert (found.known, bool(found.skipped)) == (0, False)
    for sample in found.samples:
        red = np.asarray(Image.open(root / sample.id))[..., 0]
        expected = np.where(red < 20, 255, red // 128)
        np.testing.assert_array_equal(read_label(sample), expected)
        assert {item.id: item.count for item in sample.classes} == {i: int((expected == i).sum()) for i in (0, 1)}
        assert sample.image == root / sample.id
    assert load_labelled(root.parent / "out", "first") == found.samples


def test_only_what_changed_is_labelled_again(root: Path) -> None:
    model = Brightness()
    before = label(root, model)

    assert label(root, model) == before
    assert model.seen == 3
    Image.fromarray(np.full((4, 4, 3), 200, np.uint8)).save(root / "b.png")
    before.samples[2].label.write_bytes(b"damaged")
    (root / "a.png").unlink()
    after = label(root, model)
    assert model.seen == 5
    assert not before.samples[0].label.exists()
    assert [(sample.id, sample.height) for sample in after.samples] == [("b.png", 4), ("night/a.png", 6)]
    assert after.samples[1] == before.samples[2]
    assert read_label(after.samples[1]).shape == (6, 8)
    # another teacher says something else about all of them
    assert len(label(root, model, maker="second").samples) == 2
    assert model.seen == 7
    with pytest.raises(DataError, match="holds no labels of this teacher; run it again"):
        load_labelled(root.parent / "out", "first")


def test_an_interrupted_labelling_goes_on(root: Path) -> None:
    class Interrupted(Brightness):
        def __call__(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
            if self.seen == 2:
                raise InterruptedRunError("stopped")
            return super().__call__(image)

    with pytest.raises(InterruptedRunError):
        label(root, Interrupted())
    # as a killed process leaves it
    journal = root.parent / "out" / JOURNAL_NAME
    journal.write_bytes(journal.read_bytes()[:-20])
    model = Brightness()

    found = label(root, model)

    assert model.seen == 2, "of the journal's two lines one is cut short"
    shutil.rmtree(root.parent / "out")
    assert label(root, model) == found


def test_images_of_the_data_set_are_left_out(root: Path) -> None:
    own = hashlib.sha256((root / "b.png").read_bytes()).hexdigest()

    model = Brightness()
    found = label(root, model, {own})

    assert ([sample.id for sample in found.samples], found.known, model.seen) == (["a.png", "night/a.png"], 1, 2)
    # also when they were labelled before they came into the data set
    label(root, model)
    assert label(root, model, {own}) == found
    # what is trained on is what the journal holds
    assert load_labelled(root.parent / "out", "first") == found.samples
    every = {hashlib.sha256(path.read_bytes()).hexdigest() for path in root.rglob("*.png")}
    with pytest.raises(DataError, match="got none; 3 of the data set's own are there"):
        label(root, model, every)


def test_other_kinds_of_images_become_plain(root: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7), np.uint8)
    Image.fromarray(pixels).save(root / "grey.tif")

    found = {sample.id: sample for sample in label(root, Brightness()).samples}

    image = Image.open(found["grey.tif"].image)
    assert (image.format, image.mode, image.size) == ("PNG", "RGB", (7, 5))
    np.testing.assert_array_equal(np.asarray(image)[..., 1], pixels)
    np.testing.assert_array_equal(read_label(found["grey.tif"]), np.where(pixels < 20, 255, pixels // 128))


@pytest.mark.parametrize("scale", [np.uint8(1), np.uint16(257)], ids=["8 bits", "16 bits"])
def test_images_that_the_data_set_holds_as_png_are_left_out(root: Path, scale: np.integer[Any]) -> None:
    """The data set's checksum is of its own copy, not of the file that both were made from."""
    grey = np.random.default_rng(0).integers(0, 256, (5, 7), np.uint8)
    Image.fromarray(grey * scale).save(root / "grey.tif")
    copy = io.BytesIO()
    Image.fromarray(np.stack([grey] * 3, axis=-1)).save(copy, "PNG")

    found = label(root, Brightness(), {hashlib.sha256(copy.getvalue()).hexdigest()})

    assert [sample.id for sample in found.samples] == ["a.png", "b.png", "night/a.png"]
    assert found.known == 1


def test_an_image_that_changed_but_in_size_is_labelled_again(root: Path) -> None:
    (image := root / "c.bmp").touch()
    for value, seen in ((200, 4), (100, 1)):
        model = Brightness()
        Image.new("RGB", (4, 3), (value, 0, 0)).save(image)
        # clocks of file systems are coarse
        os.utime(image, (value, value))

        found = label(root, model)

        assert (image.stat().st_size, model.seen) == (54 + 3 * 4 * 3, seen)
        assert (read_label(found.samples[2]) == value // 128).all()


def test_all_that_is_wrong_is_told_at_once_or_left_out(root: Path) -> None:
    (root / "b.png").write_bytes((root / "a.png").read_bytes()[:60])
    (root / "c.jpg").write_text("no image", encoding="utf-8")
    (root / "link").symlink_to(root / "night")

    with pytest.raises(DataError) as refused:
        label(root, Brightness())

    text = str(refused.value)
    assert "distill.unlabelled: " in text
    assert "3 problems; mend them and run it again (or leave the samples out: data.on_bad_sample=skip)" in text
    with pytest.raises(DataError) as checked:
        check_images(find_images(root), threads=2)
    assert str(checked.value) == text
    assert all(str(root / name) in text for name in ("b.png", "c.jpg", "link"))
    assert "data.on_bad_sample=skip" in text
    found = label(root, Brightness(), skip_bad=True)
    assert [sample.id for sample in found.samples] == ["a.png", "night/a.png"]
    assert load_skipped(root.parent / "out") == found.skipped
    assert [sample.id for sample in found.skipped.samples] == ["b.png", "c.jpg"]
    assert len(found.skipped.general) == 1
    # mended: nothing is left out any more
    shutil.copy(root / "a.png", root / "b.png")
    (root / "c.jpg").unlink()
    (root / "link").unlink()
    assert len(label(root, Brightness(), skip_bad=True).samples) == 3
    assert not (root.parent / "out" / "skipped.json").exists()


def test_nothing_but_what_is_wrong_is_told_even_where_it_may_be_left_out(root: Path) -> None:
    paths = sorted(root.rglob("*.png"))
    for path in paths:
        path.write_text("no image", encoding="utf-8")

    with pytest.raises(DataError, match="3 problems; mend them and run it again:") as refused:
        label(root, Brightness(), skip_bad=True)

    assert all(str(path) in str(refused.value) for path in paths)


def test_labels_without_a_pixel_are_refused(root: Path) -> None:
    with pytest.raises(DataError, match=r"sure of no pixel of the 3 images .*; lower distill.unlabelled_confidence"):
        label_images(
            find_images(root),
            root.parent / "out",
            segment=lambda image: np.full(image.shape[:2], IGNORE_ID, np.uint8),
            maker="",
            known=(),
            threads=1,
        )


def test_one_image_without_a_sure_pixel_spoils_no_others(root: Path) -> None:
    Image.new("RGB", (4, 4)).save(root / "dark.png")

    found = label(root, Brightness())

    assert [bool(sample.classes) for sample in found.samples] == [True, True, False, True]


def test_a_smaller_class_map_is_brought_to_the_images_size(root: Path) -> None:
    found = label_images(
        find_images(root),
        root.parent / "out",
        segment=lambda _image: np.array([[0, 1]], np.uint8),
        maker="",
        known=(),
        threads=1,
    )

    np.testing.assert_array_equal(read_label(found.samples[0]), np.repeat([[0, 1]], [4, 4], axis=1).repeat(6, axis=0))


def test_what_is_no_regular_file_is_told_and_not_waited_for(root: Path) -> None:
    os.mkfifo(root / "pipe.png")
    (root / "gone.png").symlink_to(root / "nothing.png")

    for found in (lambda: check_images(find_images(root), threads=2), lambda: label(root, Brightness())):
        with pytest.raises(DataError) as refused:
            found()
        assert f"{root / 'pipe.png'}: not a regular file; take it away" in str(refused.value)
        assert f"{root / 'gone.png'}: a link to nothing; take it away" in str(refused.value)


def test_directories_can_be_left_out(root: Path) -> None:
    assert list(find_images(root, skip=lambda directory: directory.name == "night").paths) == ["a.png", "b.png"]


def test_endings_count_in_any_case(root: Path) -> None:
    for name in ("C.PNG", "d.JpG"):
        (root / name).touch()
    assert list(find_images(root).paths) == ["C.PNG", "a.png", "b.png", "d.JpG", "night/a.png"]
