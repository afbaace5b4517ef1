from __future__ import annotations

import codecs
import errno
import hashlib
import io
import json
import os
import shutil
import struct
import subprocess
import sys
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from numpy.typing import NDArray
from PIL import Image, ImageOps
from running import goes_on, wait_for

from brd_edge.data import workers as pools
from brd_edge.data._convert import cannot_convert
from brd_edge.data.dataset import Dataset, read_label
from brd_edge.data.findings import SKIPPED_NAME, load_skipped
from brd_edge.data.index import load_dataset
from brd_edge.data.layouts import LAYOUTS, Content, Layout
from brd_edge.data.prepare import JOURNAL_NAME, prepare, prepare_scenes
from brd_edge.runtime.errors import DataError

FOLDER = LAYOUTS["folder"]
CAMVID = Path(os.environ.get("CAMVID_ROOT") or Path(__file__).parents[3] / "shared/camvid")


def save_pair(root: Path, key: str, label: Any = None, size: tuple[int, int] = (6, 8)) -> None:
    """Write `images/KEY` and `labels/KEY`, where a key is `split/id`."""
    rng = np.random.default_rng(list(key.encode()))
    image, ids = root / "images" / f"{key}.png", root / "labels" / f"{key}.png"
    image.parent.mkdir(parents=True, exist_ok=True)
    ids.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(rng.integers(0, 256, (*size, 3), np.uint8)).save(image)
    pixels = rng.choice(np.array([0, 1, 255], np.uint8), size) if label is None else np.asarray(label, np.uint8)
    Image.fromarray(pixels).save(ids)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    directory = tmp_path / "data"
    for key in ("train/a", "train/b", "train/c", "val/d"):
        save_pair(directory, key)
    (directory / "classes.yaml").write_text(yaml.safe_dump({"names": ["road", "car"]}))
    return directory


def run(root: Path, out: Path, layout: Layout = FOLDER, **settings: Any) -> Dataset:
    return prepare(layout, root, out, **{"workers": 2, **settings})


def counting(layout: Layout, counts: Counter[str]) -> Layout:
    """Return the layout with a `read_label` that counts the files it converts."""

    def scan(base: Path) -> Content:
        content = layout.scan(base)

        def read(path: Path) -> NDArray[np.uint8]:
            counts[path.stem] += 1
            return content.read_label(path)

        return replace(content, read_label=read)

    return replace(layout, scan=scan)


def test_result_is_what_the_index_says(root: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    calls: list[tuple[int, int]] = []
    dataset = run(root, out, progress=lambda done, total: calls.append((done, total)))
    assert dataset == load_dataset(out)
    assert dataset.classes == ("road", "car")
    assert [sample.id for sample in dataset.train] == ["a", "b", "c"]
    assert calls == [(i, 4) for i in range(1, 5)]
    for sample in (*dataset.train, *dataset.val):
        assert sample.image.parent.parent == root / "images"
        assert sample.label.is_relative_to(out / "labels")
        np.testing.assert_array_equal(read_label(sample), np.asarray(Image.open(root / sample.label.relative_to(out))))
    for entry in json.loads((out / "index.json").read_text())["splits"]["train"]:
        assert entry["label"] == f"labels/train/{entry['id']}.png"
        for key in ("image", "label"):
            assert entry[f"{key}_sha256"] == hashlib.sha256((out / entry[key]).read_bytes()).hexdigest()


@pytest.mark.skipif(not (CAMVID / "train").is_dir(), reason=f"CamVid is not at {CAMVID}; set CAMVID_ROOT")
def test_real_images(tmp_path: Path) -> None:
    for split, every in (("train", 60), ("val", 25)):
        for kind in (split, f"{split}annot"):
            (tmp_path / "camvid" / kind).mkdir(parents=True)
            for path in sorted((CAMVID / kind).iterdir())[::every]:
                shutil.copy(path, tmp_path / "camvid" / kind)
    dataset = run(tmp_path / "camvid", tmp_path / "out", LAYOUTS["camvid"])
    assert (len(dataset.train), len(dataset.val)) == (7, 5)
    for sample in (*dataset.train, *dataset.val):
        assert (sample.height, sample.width) == (360, 480)
        annotation = next(CAMVID.glob(f"*annot/{sample.id}.png"))
        raw = np.asarray(Image.open(annotation))
        np.testing.assert_array_equal(read_label(sample), np.where(raw == 11, 255, raw))


# conversion


def encode_rgb_16(pixels: NDArray[np.uint16]) -> bytes:
    """Write a 16-bit RGB PNG, which Pillow cannot, by the PNG specification."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", pixels.shape[1], pixels.shape[0], 16, 2, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def encode(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


RGB = Image.fromarray(np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8))
GREY = np.arange(48, dtype=np.uint8).reshape(6, 8) * 5
WIDE = np.linspace(0, 65535, 6 * 8 * 3).astype(np.uint16).reshape(6, 8, 3)


def see_through() -> Image.Image:
    image = RGB.convert("RGBA")
    image.putalpha(Image.fromarray(GREY))
    return image


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        pytest.param(encode(see_through(), "PNG"), np.asarray(RGB), id="rgba"),
        pytest.param(encode(Image.fromarray(GREY), "PNG"), np.stack([GREY] * 3, -1), id="grey"),
        pytest.param(
            encode(Image.fromarray(WIDE[..., 0]), "PNG"),
            np.stack([np.round(WIDE[..., 0] / 257)] * 3, -1),
            id="grey-16-bit",
        ),
        pytest.param(encode_rgb_16(WIDE), WIDE >> 8, id="rgb-16-bit"),
        pytest.param(encode(RGB, "TIFF"), np.asarray(RGB), id="tiff"),
        pytest.param(encode(RGB, "BMP"), np.asarray(RGB), id="bmp"),
        pytest.param(encode(RGB, "WEBP", lossless=True), np.asarray(RGB), id="webp"),
        pytest.param(encode(RGB, "PNG", transparency=(1, 2, 3)), np.asarray(RGB), id="rgb-with-transparent-colour"),
        pytest.param(
            encode(RGB.quantize(16), "PNG", transparency=bytes(range(16))),
            np.asarray(RGB.quantize(16).convert("RGB")),
            id="palette-with-transparency",
        ),
    ],
)
def test_other_images_become_8_bit_rgb_png(root: Path, tmp_path: Path, content: bytes, expected: NDArray[Any]) -> None:
    source = root / "images/train/b.png"
    source.write_bytes(content)
    out = tmp_path / "out"
    sample = run(root, out).train[1]
    assert sample.image == out / "images/train/b.png"
    with Image.open(sample.image) as image:
        assert (image.format, image.mode, image.info) == ("PNG", "RGB", {})
        np.testing.assert_array_equal(np.asarray(image), expected)
    assert sample.image.read_bytes()[24] == 8
    assert source.read_bytes() == content


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_other_jpegs_become_rgb(root: Path, tmp_path: Path, mode: str) -> None:
    (root / "images/train/b.png").unlink()
    RGB.convert(mode).save(root / "images/train/b.jpg", quality=95)
    sample = run(root, tmp_path / "out").train[1]
    with Image.open(root / "images/train/b.jpg") as source, Image.open(sample.image) as image:
        np.testing.assert_array_equal(np.asarray(image), np.asarray(source.convert("RGB")))
        assert image.mode == "RGB"


def test_plain_jpeg_stays_where_it_is(root: Path, tmp_path: Path) -> None:
    (root / "images/train/b.png").unlink()
    RGB.save(root / "images/train/b.jpg")
    assert run(root, tmp_path / "out").train[1].image == root / "images/train/b.jpg"
    assert not (tmp_path / "out/images").exists()


@pytest.mark.parametrize("orientation", [2, 3, 4, 5, 6, 7, 8])
def test_rotated_jpeg_is_turned_upright(root: Path, tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    (root / "images/train/b.png").unlink()
    RGB.save(root / "images/train/b.jpg", exif=exif, quality=95)
    with Image.open(root / "images/train/b.jpg") as source:
        expected = np.asarray(ImageOps.exif_transpose(source))
    save_pair(root, "train/b", size=expected.shape[:2])
    (root / "images/train/b.png").unlink()
    sample = run(root, tmp_path / "out").train[1]
    with Image.open(sample.image) as image:
        np.testing.assert_array_equal(np.asarray(image), expected)
    assert (sample.height, sample.width) == expected.shape[:2]


def test_a_label_that_was_not_turned_with_its_image_is_told_why(root: Path, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    save_pair(root, "train/b", size=(RGB.height, RGB.width))
    (root / "images/train/b.png").unlink()
    RGB.save(root / "images/train/b.jpg", exif=exif)
    with pytest.raises(DataError, match=r"b\.png: \d+x\d+ pixels, .* upright \(EXIF orientation\): turn the"):
        run(root, tmp_path / "out")


@pytest.mark.parametrize("skip_bad", [False, True])
def test_where_nothing_can_be_used_nobody_is_told_to_leave_it_out(root: Path, tmp_path: Path, skip_bad: bool) -> None:
    for path in (root / "labels/train").iterdir():
        path.write_bytes(b"")
    with pytest.raises(DataError, match="all of its 3 samples have problems, which are told below") as caught:
        run(root, tmp_path / "out", skip_bad=skip_bad)
    assert "on_bad_sample" not in str(caught.value)


# what is wrong is found, all at once


def test_all_offenders_are_listed_together(root: Path, tmp_path: Path) -> None:
    images, labels = root / "images/train", root / "labels/train"
    for name in ("empty", "short", "size", "ids", "both", "text"):
        save_pair(root, f"train/{name}", size=(64, 64))
    (labels / "a.png").unlink()
    (images / "b.png").unlink()
    (images / "empty.png").write_bytes(b"")
    (images / "short.png").write_bytes((images / "short.png").read_bytes()[:-100])
    Image.new("L", (64, 63)).save(labels / "size.png")
    Image.new("L", (64, 64), 7).save(labels / "ids.png")
    (images / "both.png").write_bytes(b"\x89PNG")
    (labels / "both.png").write_bytes(b"")
    (images / "text.png").write_text("this is no picture")
    (images / "notes.md").touch()
    with pytest.raises(DataError) as caught:
        run(root, tmp_path / "out")
    message = str(caught.value)
    assert "10 problems" in message
    for expected in (
        f"{labels / 'a.png'}: this label is missing; its image is there",
        f"{images / 'b.png'}: this image is missing; its label is there",
        f"{images / 'empty.png'}: the image cannot be read",
        f"{images / 'short.png'}: the image cannot be read",
        f"{labels / 'size.png'}: 64x63 pixels, but its image size.png has 64x64",
        f"{labels / 'ids.png'}: unknown id 7 in 4096 of 4096 pixels; expected 0-1 and 255 (ignored); "
        "what is void stands under `ignore` in classes.yaml",
        f"{images / 'both.png'}: the image cannot be read",
        f"{labels / 'both.png'}: the label cannot be read",
        f"{images / 'text.png'}: the image cannot be read",
        f"{images / 'notes.md'}: not one of",
    ):
        assert message.count(f"  - {expected}") == 1, expected
    assert not (tmp_path / "out/index.json").exists()


def test_a_long_list_is_cut_and_counted(root: Path, tmp_path: Path) -> None:
    for i in range(70):
        (root / f"images/train/x{i:02d}.png").write_bytes(b"")
        (root / f"labels/train/x{i:02d}.png").write_bytes(b"")
    with pytest.raises(DataError) as caught:
        run(root, tmp_path / "out")
    lines = str(caught.value).splitlines()
    assert "140 problems" in lines[0]
    assert len(lines) == 1 + 50 + 1
    assert lines[-1] == "  ... and 90 more"


def test_empty_split(root: Path, tmp_path: Path) -> None:
    (root / "images/val/d.png").unlink()
    (root / "labels/val/d.png").unlink()
    with pytest.raises(DataError, match="split 'val' is empty: expected at least one image with its label"):
        run(root, tmp_path / "out")


def test_doubled_and_shared_images(tmp_path: Path) -> None:
    voc = tmp_path / "voc"
    for directory in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (voc / directory).mkdir(parents=True)
    for name in ("a", "b"):
        RGB.save(voc / f"JPEGImages/{name}.jpg")
        Image.new("P", RGB.size).save(voc / f"SegmentationClass/{name}.png")
    (voc / "ImageSets/Segmentation/train.txt").write_text("a\nb\nb\n")
    (voc / "ImageSets/Segmentation/val.txt").write_text("a\n")
    with pytest.raises(DataError) as caught:
        run(voc, tmp_path / "out", LAYOUTS["voc2012"])
    assert f"{voc / 'JPEGImages/b.jpg'}: listed twice in split 'train'" in str(caught.value)
    assert f"{voc / 'JPEGImages/a.jpg'}: in both splits, train and val" in str(caught.value)


def test_wrong_root_says_what_to_set(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"does not exist\. Let the recipe's data\.root, or CITYSCAPES_ROOT where"):
        run(tmp_path / "nowhere", tmp_path / "out", LAYOUTS["cityscapes"])
    assert not (tmp_path / "out").exists()


def test_source_is_never_the_output(root: Path) -> None:
    before = {path: path.read_bytes() for path in root.rglob("*.png")}
    with pytest.raises(DataError, match="the data set itself lies here"):
        run(root, root / "images/..")
    assert {path: path.read_bytes() for path in root.rglob("*.png")} == before


# going on after an interruption


def test_unchanged_sources_are_not_converted_again(root: Path, tmp_path: Path) -> None:
    out, counts = tmp_path / "out", Counter[str]()
    layout = counting(FOLDER, counts)
    first = run(root, out, layout)
    index = (out / "index.json").read_bytes()
    assert run(root, out, layout) == first
    assert (out / "index.json").read_bytes() == index
    assert counts == {"a": 1, "b": 1, "c": 1, "d": 1}


def change_label(root: Path, _: Path) -> None:
    save_pair(root, "train/b", label=np.ones((6, 8)))


def change_image(root: Path, _: Path) -> None:
    Image.new("RGB", (8, 6), (1, 2, 3)).save(root / "images/train/b.png")


def lose_output(_: Path, out: Path) -> None:
    (out / "labels/train/b.png").unlink()


def damage_output(_: Path, out: Path) -> None:
    path = out / "labels/train/b.png"
    path.write_bytes(path.read_bytes()[:-1] + b"x")


def cut_journal(_: Path, out: Path) -> None:
    lines = [line for line in (out / JOURNAL_NAME).read_bytes().splitlines() if b'"train/b"' not in line]
    (out / JOURNAL_NAME).write_bytes(b"\n".join(lines) + b'\n{"key": "train/b", "ima')


@pytest.mark.parametrize("damage", [change_label, change_image, lose_output, damage_output, cut_journal])
def test_only_what_changed_is_converted_again(root: Path, tmp_path: Path, damage: Callable[[Path, Path], None]) -> None:
    out, counts = tmp_path / "out", Counter[str]()
    layout = counting(FOLDER, counts)
    run(root, out, layout)
    damage(root, out)
    dataset = run(root, out, layout)
    assert counts == {"a": 1, "b": 2, "c": 1, "d": 1}
    np.testing.assert_array_equal(read_label(dataset.train[1]), np.asarray(Image.open(root / "labels/train/b.png")))
    run(root, out, layout)
    assert counts["b"] == 2


def test_converted_image_is_part_of_what_must_be_there(root: Path, tmp_path: Path) -> None:
    out, counts = tmp_path / "out", Counter[str]()
    layout = counting(FOLDER, counts)
    Image.fromarray(GREY).save(root / "images/train/b.png")
    content = run(root, out, layout).train[1].image.read_bytes()
    (out / "images/train/b.png").unlink()
    assert run(root, out, layout).train[1].image.read_bytes() == content
    assert counts["b"] == 2


def test_other_classes_convert_everything_again(root: Path, tmp_path: Path) -> None:
    out, counts = tmp_path / "out", Counter[str]()
    layout = counting(FOLDER, counts)
    run(root, out, layout)
    (root / "classes.yaml").write_text(yaml.safe_dump({"names": {0: "road", 1: "car"}, "ignore": [255, 254]}))
    run(root, out, layout)
    assert set(counts.values()) == {2}


def test_other_code_converts_everything_again(root: Path, tmp_path: Path) -> None:
    out, counts = tmp_path / "out", Counter[str]()
    layout = counting(FOLDER, counts)
    for maker in ("first", "first", "second"):
        run(root, out, layout, maker=maker)
    assert set(counts.values()) == {2}


def test_interrupted_preparation_goes_on(root: Path, tmp_path: Path) -> None:
    out, counts = tmp_path / "out", Counter[str]()
    layout = counting(FOLDER, counts)

    def interrupt(done: int, _: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(root, out, layout, workers=1, progress=interrupt)
    assert not (out / "index.json").exists()
    journal = (out / JOURNAL_NAME).read_text().splitlines()[1:]
    finished = {json.loads(line)["key"].split("/")[1] for line in journal}
    assert len(finished) == 2
    resumed = run(root, out, layout)
    assert all(counts[name] == 1 for name in finished)
    fresh = run(root, tmp_path / "fresh")
    for ours, theirs in zip((*resumed.train, *resumed.val), (*fresh.train, *fresh.val), strict=True):
        assert ours.label.read_bytes() == theirs.label.read_bytes()


def test_a_failed_run_leaves_no_index_of_the_run_before(root: Path, tmp_path: Path) -> None:
    run(root, tmp_path / "out")
    (root / "labels/train/a.png").unlink()
    with pytest.raises(DataError):
        run(root, tmp_path / "out")
    with pytest.raises(DataError, match="prepare the data set first"):
        load_dataset(tmp_path / "out")


# drawn scenes


def test_scenes_are_drawn_from_disjoint_seeds(tmp_path: Path) -> None:
    from brd_edge.data.scenes import CLASSES, PALETTE, draw_scene

    calls: list[tuple[int, int]] = []
    settings: dict[str, Any] = {"train": 3, "val": 2, "height": 64, "width": 96}
    dataset = prepare_scenes(tmp_path / "a", **settings, seed=1, progress=lambda *at: calls.append(at))
    assert dataset == load_dataset(tmp_path / "a")
    assert (dataset.classes, dataset.palette) == (tuple(CLASSES), tuple(PALETTE))
    assert (len(dataset.train), len(dataset.val)) == (3, 2)
    assert calls == [(i, 5) for i in range(1, 6)]
    image, label = draw_scene(1_000_000, 64, 96)
    np.testing.assert_array_equal(np.asarray(Image.open(dataset.train[0].image)), image)
    np.testing.assert_array_equal(read_label(dataset.train[0]), label)
    other = prepare_scenes(tmp_path / "b", **settings, seed=2)
    pictures = [s.image.read_bytes() for d in (dataset, other) for s in (*d.train, *d.val)]
    assert len(set(pictures)) == 10
    again = prepare_scenes(tmp_path / "c", **settings, seed=1)
    assert (tmp_path / "a/index.json").read_bytes() == (tmp_path / "c/index.json").read_bytes()
    assert [s.id for s in again.train] == [s.id for s in dataset.train]


def test_many_scenes_are_drawn_by_processes_as_here(tmp_path: Path) -> None:
    from brd_edge.data.scenes import draw_scene

    dataset = prepare_scenes(tmp_path, train=7, val=1, height=48, width=64, seed=0)
    assert len({sample.image.read_bytes() for sample in (*dataset.train, *dataset.val)}) == 8
    for sample, seed in ((dataset.train[6], 6), (dataset.val[0], 500_000)):
        image, label = draw_scene(seed, 48, 64)
        np.testing.assert_array_equal(np.asarray(Image.open(sample.image)), image)
        np.testing.assert_array_equal(read_label(sample), label)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads process states from /proc")
def test_drawing_processes_end_with_a_killed_parent(tmp_path: Path) -> None:
    script = (
        "from pathlib import Path; from brd_edge.data.prepare import prepare_scenes;"
        f"prepare_scenes(Path({str(tmp_path)!r}), train=4000, val=1, height=48, width=64, seed=0,"
        "progress=lambda done, total: print(done, flush=True))"
    )
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    with parent, parent.stdout:
        parent.stdout.readline()
        children = [int(i) for i in Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text().split()]
        parent.kill()
    assert len(children) >= 2
    wait_for(lambda: not any(map(goes_on, children)))
    assert not (tmp_path / "index.json").exists()


@pytest.mark.parametrize("wrong", [{"seed": -1}, {"train": 0}, {"val": 0}, {"train": 500_001}])
def test_scenes_out_of_range(tmp_path: Path, wrong: dict[str, int]) -> None:
    settings: dict[str, Any] = {"train": 1, "val": 1, "height": 64, "width": 96, "seed": 0, **wrong}
    with pytest.raises(DataError, match="expected seed >= 0 and 1 to 500000 scenes a split"):
        prepare_scenes(tmp_path, **settings)


def test_whole_sequences_are_held_out(root: Path, tmp_path: Path) -> None:
    held = run(root, tmp_path / "held", hold_out="[ab]")

    assert held == load_dataset(tmp_path / "held")
    assert [sample.id for sample in held.train] == ["c"]
    assert [sample.id for sample in held.val] == ["a", "b"], "the published validation split is left out"
    for pattern, count in (("nothing*", 0), ("*", 3)):
        with pytest.raises(DataError, match=rf"data\.hold_out: .* matches {count} of 3 train"):
            run(root, tmp_path / "held", hold_out=pattern)


def test_what_is_held_out_needs_no_validation_split(root: Path, tmp_path: Path) -> None:
    """Damaged, with a stranger, with an image that is a train image: none of it is used."""
    whole = run(root, tmp_path / "whole", hold_out="a")
    (root / "labels/val/d.png").write_bytes(b"damaged")
    (root / "images/val/notes.txt").touch()
    shutil.copyfile(root / "images/train/a.png", root / "images/val/e.png")
    with pytest.raises(DataError, match=r"4 problems(.|\n)*notes\.txt"):
        run(root, tmp_path / "used")
    held = run(root, tmp_path / "held", hold_out="a")
    assert [[sample.id for sample in split] for split in (held.train, held.val)] == [["b", "c"], ["a"]]
    assert [sample.id for sample in whole.val] == ["a"]
    for name in ("d.png", "e.png", "notes.txt"):
        (root / "images/val" / name).unlink()
    (root / "labels/val/d.png").unlink()
    with pytest.raises(DataError, match="split 'val' is empty"):
        run(root, tmp_path / "used")
    assert [sample.id for sample in run(root, tmp_path / "empty", hold_out="a").val] == ["a"]


@pytest.mark.parametrize("pattern", ["nothing*", "*"])
def test_a_pattern_that_holds_out_none_or_all_costs_no_index(root: Path, tmp_path: Path, pattern: str) -> None:
    out = tmp_path / "out"
    whole = run(root, out)
    with pytest.raises(DataError, match=r"data\.hold_out: .* matches \d of 3 train images"):
        run(root, out, hold_out=pattern)
    assert load_dataset(out) == whole


def test_drawn_scenes_leave_nothing_out(root: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    (root / "images/train/b.png").write_bytes(b"")
    run(root, out, skip_bad=True)
    assert load_skipped(out)
    prepare_scenes(out, train=1, val=1, height=32, width=48, seed=0)
    assert not load_skipped(out)


def test_nothing_to_hold_out_of_is_said(root: Path, tmp_path: Path) -> None:
    for path in (*(root / "images/train").iterdir(), *(root / "labels/train").iterdir()):
        path.unlink()
    with pytest.raises(DataError, match="split 'train' is empty"):
        run(root, tmp_path / "out", hold_out="a")


def test_a_train_image_may_be_in_a_validation_list_that_is_not_used(tmp_path: Path) -> None:
    directory = tmp_path / "data"
    for kind in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (directory / kind).mkdir(parents=True)
    for split, names in (("train", "ab"), ("val", "a")):
        (directory / f"ImageSets/Segmentation/{split}.txt").write_text("\n".join(names))
        for name in names:
            Image.fromarray(np.full((6, 8, 3), ord(name), np.uint8)).save(directory / f"JPEGImages/{name}.jpg")
            Image.fromarray(np.zeros((6, 8), np.uint8)).save(directory / f"SegmentationClass/{name}.png")
    with pytest.raises(DataError, match="in both splits"):
        run(directory, tmp_path / "used", LAYOUTS["voc2012"])
    held = run(directory, tmp_path / "held", LAYOUTS["voc2012"], hold_out="b")
    assert [sample.id for sample in held.train] == ["a"]


@pytest.mark.skipif(sys.platform != "linux", reason="other systems allow no such names")
def test_every_name_becomes_an_id_that_files_can_hold(root: Path, tmp_path: Path) -> None:
    name = os.fsdecode(b"val/caf\xe9")
    save_pair(root, "val/plain")
    for kind in ("images", "labels"):
        (root / kind / "val/plain.png").rename(root / kind / f"{name}.png")
    out = tmp_path / "out"
    dataset = run(root, out)
    assert dataset == load_dataset(out)
    found = dataset.val[0]
    assert found.id == r"caf\udce9"
    found.id.encode()
    assert found.image == root / "images" / f"{name}.png", "the file keeps its name"
    assert found.label == out / r"labels/val/caf\udce9.png"


# links, permissions, and what is no regular file


def test_links_may_not_leave_the_root(root: Path, tmp_path: Path) -> None:
    away = tmp_path / "away.png"
    RGB.save(away)
    for name, target in (("out", away), ("in", root / "images/train/a.png"), ("broken", root / "nowhere.png")):
        save_pair(root, f"train/{name}")
        (root / f"images/train/{name}.png").unlink()
        (root / f"images/train/{name}.png").symlink_to(target)
    with pytest.raises(DataError) as caught:
        run(root, tmp_path / "out")
    assert "2 problems" in str(caught.value)
    for name, expected in (
        ("out", f"a symbolic link leads out of {root}, to {away}"),
        ("broken", f"this image is a broken symbolic link (to {root / 'nowhere.png'})"),
    ):
        assert f"  - {root / 'images/train'}/{name}.png: {expected}" in str(caught.value)
    kept = run(root, tmp_path / "out", skip_bad=True)
    assert [sample.id for sample in kept.train] == ["a", "b", "c", "in"]


def test_a_root_that_is_itself_a_link_is_followed(root: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(root)
    assert len(run(tmp_path / "link", tmp_path / "out").train) == 3


def test_links_to_directories_are_reported_and_not_followed(root: Path, tmp_path: Path) -> None:
    (root / "images/train/again").symlink_to(root / "images/train")
    with pytest.raises(DataError, match=r"train/again: a link to a directory, which is not followed") as caught:
        run(root, tmp_path / "out")
    assert "1 problem;" in str(caught.value)
    assert len(run(root, tmp_path / "out", skip_bad=True).train) == 3
    assert [reason.split(": ")[0] for reason in load_skipped(tmp_path / "out").general] == [
        str(root / "images/train/again")
    ]


def test_a_pipe_is_not_waited_for(root: Path, tmp_path: Path) -> None:
    (root / "images/train/b.png").unlink()
    os.mkfifo(root / "images/train/b.png")
    with pytest.raises(DataError, match=r"b\.png: this image is not a regular file; its label is there"):
        run(root, tmp_path / "out")


@pytest.mark.parametrize("mode", [0o000, 0o444])
def test_an_unreadable_directory_is_named(root: Path, tmp_path: Path, mode: int) -> None:
    """Without any right nothing of it is known; with that of listing alone its files are, and cannot be opened."""
    user, closed = os.geteuid(), root / "images/train"
    # Python imports a codec when it is first used, from where another user may not read
    codecs.lookup("utf-8-sig")
    base = next(path for path in tmp_path.parents if path.name.startswith("pytest-of-"))
    (tmp_path / "out").mkdir(mode=0o777)
    for directory in (*tmp_path.parents, tmp_path):
        if directory.stat().st_uid == user and directory.is_relative_to(base):
            directory.chmod(directory.stat().st_mode | 0o055)
    (tmp_path / "out").chmod(0o777)
    closed.chmod(mode)
    try:
        if user == 0:
            os.seteuid(65534)
        if os.access(closed, os.X_OK, effective_ids=True):
            pytest.skip("this user may read directories without permission to")
        with pytest.raises(DataError) as caught:
            run(root, tmp_path / "out")
    finally:
        if user == 0:
            os.seteuid(user)
        closed.chmod(0o755)
    expected = "this directory cannot be read (Permission denied)" if mode == 0 else "Permission denied"
    assert f"{closed}" in str(caught.value)
    assert expected in str(caught.value)
    if mode:
        assert all(f"  - {closed / name}.png: cannot be looked at" in str(caught.value) for name in "abc")


# leaving bad samples out


def test_bad_samples_are_left_out_and_listed(root: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    (root / "images/train/b.png").write_bytes(b"")
    (root / "labels/train/c.png").unlink()
    (root / "images/train/notes.md").touch()
    dataset = run(root, out, skip_bad=True)
    assert dataset == load_dataset(out)
    assert [sample.id for sample in dataset.train] == ["a"]
    skipped = load_skipped(out)
    assert [(sample.split, sample.id) for sample in skipped.samples] == [("train", "b"), ("train", "c")]
    assert [len(sample.reasons) for sample in skipped.samples] == [1, 1]
    assert skipped.samples[0].reasons[0].startswith(f"{root / 'images/train/b.png'}: the image cannot be read")
    assert skipped.general[0].startswith(f"{root / 'images/train/notes.md'}: not one of")
    # mended, they are taken, and the list goes
    save_pair(root, "train/b")
    save_pair(root, "train/c")
    (root / "images/train/notes.md").unlink()
    assert len(run(root, out, skip_bad=True).train) == 3
    assert not load_skipped(out)
    assert not (out / SKIPPED_NAME).exists()


def test_a_split_that_skipping_empties_is_an_error(root: Path, tmp_path: Path) -> None:
    (root / "images/val/d.png").write_bytes(b"")
    with pytest.raises(DataError, match="split 'val' is empty") as caught:
        run(root, tmp_path / "out", skip_bad=True)
    assert f"{root / 'images/val/d.png'}: the image cannot be read" in str(caught.value)
    assert not (tmp_path / "out/index.json").exists()


def test_a_full_disk_is_not_blamed_on_the_data() -> None:
    full, other = (OSError(number, os.strerror(number)) for number in (errno.ENOSPC, errno.EIO))
    root, out = Path("photos"), Path("run/data")

    assert cannot_convert(root, out, full) == (
        "cannot write run/data (No space left on device); make room there, and run it again to go on"
    )
    assert cannot_convert(root, out, other).startswith("cannot read photos or write run/data (")


def test_processes_give_what_threads_give(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for i in range(66):
        save_pair(root, f"train/x{i:02d}")
    Image.fromarray(GREY).save(root / "images/train/x07.png")
    (root / "labels/train/x09.png").write_bytes(b"")
    opened = []

    def open_processes(workers: int) -> Any:
        opened.append(workers)
        return pools.ProcessPoolExecutor(workers, mp_context=pools.get_context("spawn"))

    monkeypatch.setattr(pools, "open_processes", open_processes)
    many = run(root, tmp_path / "processes", skip_bad=True)
    assert opened == [2]
    monkeypatch.setattr(pools, "_FEW_JOBS", 1000)
    few = run(root, tmp_path / "threads", skip_bad=True)
    assert opened == [2]
    assert len(many.train) == len(few.train) == 68
    written = [{p.relative_to(d): p.read_bytes() for p in sorted(d.rglob("*.png"))} for d in tmp_path.glob("[pt]*s")]
    assert written[0] == written[1] and len(written[0]) == 70
    for name in ("index.json", SKIPPED_NAME):
        assert (tmp_path / "processes" / name).read_bytes() == (tmp_path / "threads" / name).read_bytes()


# damage that Pillow looks away from


def cut_the_end(content: bytes) -> bytes:
    return content[:-12]


def change_a_checksum(content: bytes) -> bytes:
    place = content.index(b"IEND") - 8
    return content[:place] + bytes(byte ^ 1 for byte in content[place : place + 4]) + content[place + 4 :]


def lose_rows(content: bytes) -> bytes:
    start, end = content.index(b"IDAT"), content.index(b"IEND") - 4
    rows = zlib.decompress(content[start + 4 : end - 4])
    data = b"IDAT" + zlib.compress(rows[: len(rows) // 2])
    chunk = struct.pack(">I", len(data) - 4) + data + struct.pack(">I", zlib.crc32(data))
    return content[: start - 4] + chunk + content[end:]


@pytest.mark.parametrize("kind", ["images", "labels"])
@pytest.mark.parametrize(
    ("damage", "reason"),
    [(cut_the_end, "cut short"), (change_a_checksum, "checksum of its part 'IDAT'"), (lose_rows, "pixels are missing")],
)
def test_png_damage_that_pillow_lets_pass_is_found(
    root: Path, tmp_path: Path, kind: str, damage: Callable[[bytes], bytes], reason: str
) -> None:
    path = root / kind / "train/b.png"
    path.write_bytes(damage(path.read_bytes()))
    with Image.open(path) as image:
        image.load()
    with pytest.raises(DataError, match=rf"train/b\.png: the (image|label) cannot be read \(.*{reason}"):
        run(root, tmp_path / "out")


@pytest.mark.parametrize("mode", ["1", "L", "RGB"])
def test_interlaced_png_is_whole(root: Path, tmp_path: Path, mode: str) -> None:
    """Adam7 by the PNG specification alone: seven passes, each with a filter byte a row."""
    rows, depth, color = b"", 1 if mode == "1" else 8, 2 if mode == "RGB" else 0
    picture = np.asarray(RGB.convert(mode)).astype(np.uint8)
    for top, left, down, right in (
        (0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1),
    ):  # fmt: skip
        for row in picture[top::down, left::right]:
            rows += (b"\0" + (np.packbits(row) if mode == "1" else row).tobytes()) if row.size else b""
    parts = [(b"IHDR", struct.pack(">IIBBBBB", 8, 6, depth, color, 0, 0, 1)), (b"IDAT", zlib.compress(rows))]
    content = b"\x89PNG\r\n\x1a\n"
    for name, data in (*parts, (b"IEND", b"")):
        content += struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
    (root / "images/train/b.png").write_bytes(content)
    sample = run(root, tmp_path / "out").train[1]
    with Image.open(sample.image) as image:
        np.testing.assert_array_equal(np.asarray(image), np.asarray(RGB.convert(mode).convert("RGB")))
    (root / "images/train/b.png").write_bytes(content.replace(zlib.compress(rows), zlib.compress(rows[:-1])))
    with pytest.raises(DataError, match=r"train/b\.png"):
        run(root, tmp_path / "out")


def test_jpeg_that_stops_some_decoders_becomes_png(root: Path, tmp_path: Path) -> None:
    content = encode(RGB, "JPEG")
    place = content.index(b"\xff\xdb")
    (root / "images/train/b.png").write_bytes(content[:place] + b"garbage" + content[place:])
    sample = run(root, tmp_path / "out").train[1]
    assert sample.image.suffix == ".png" and sample.image.is_relative_to(tmp_path / "out")
    with Image.open(sample.image) as image:
        assert image.format == "PNG"
        np.testing.assert_array_equal(np.asarray(image), np.asarray(Image.open(io.BytesIO(content))))


def test_a_label_that_lost_its_ids_to_compression_is_refused(root: Path, tmp_path: Path) -> None:
    Image.new("L", (8, 6), 1).save(root / "labels/train/b.png", "JPEG")
    with pytest.raises(DataError, match=r"b\.png: a label compressed as JPEG, which changes ids; export PNG"):
        run(root, tmp_path / "out")


def test_a_name_that_is_too_long_is_its_samples_fault(tmp_path: Path) -> None:
    # a list may name anything
    voc, lists = tmp_path / "voc", tmp_path / "voc/ImageSets/Segmentation"
    for directory in (voc / "JPEGImages", voc / "SegmentationClass", lists):
        directory.mkdir(parents=True)
    for name in ("a", "v"):
        RGB.save(voc / f"JPEGImages/{name}.jpg")
        Image.new("P", RGB.size).save(voc / f"SegmentationClass/{name}.png")
    (lists / "train.txt").write_text(f"a\n{'x' * 300}\n")
    (lists / "val.txt").write_text("v\n")
    dataset = run(voc, tmp_path / "out", LAYOUTS["voc2012"], skip_bad=True)
    assert [sample.id for sample in dataset.train] == ["a"]
    (left,) = load_skipped(tmp_path / "out").samples
    assert left.id == "x" * 300
    assert "File name too long" in left.reasons[0]
