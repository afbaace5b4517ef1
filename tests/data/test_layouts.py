from __future__ import annotations

import importlib.util
import os
import re
import shutil
import struct
import sys
import zlib
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import yaml
from cityscapesscripts.helpers.labels import labels as cityscapes_labels
from numpy.typing import NDArray
from PIL import Image
from scipy.io import savemat

from brd_edge.data.layouts import LAYOUTS, Content, find_base, find_layout_problem, make_palette
from brd_edge.data.layouts._files import read_ids
from brd_edge.runtime.errors import DataError

CAMVID = Path(os.environ.get("CAMVID_ROOT") or Path(__file__).parents[3] / "shared/camvid")
needs_camvid = pytest.mark.skipif(
    not (CAMVID / "train").is_dir(), reason=f"CamVid is not at {CAMVID}; set CAMVID_ROOT to its directory"
)


@pytest.fixture(scope="module")
def torchvision_names() -> ModuleType:
    """Torchvision's lists of class names, read without importing torch."""
    found = importlib.util.find_spec("torchvision")
    if found is None or found.origin is None:
        pytest.skip("torchvision is not installed; its class names are the reference")
    spec = importlib.util.spec_from_file_location("names", Path(found.origin).parent / "models/_meta.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def save(path: Path, pixels: Any, mode: str | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(np.asarray(pixels))
    if mode == "P":
        image.putpalette([value for color in reversed(range(256)) for value in (color, 7, 9)])
    image.save(path)


def save_blank(*paths: Path) -> None:
    for path in paths:
        save(path, np.zeros((2, 3, 3), np.uint8))


def write(path: Path, lines: Iterable[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))


def scan(name: str, root: Path) -> Content:
    layout = LAYOUTS[name]
    assert find_layout_problem(layout, root) is None
    base = find_base(layout, root)
    assert base is not None
    return layout.scan(base)


def ids_of(content: Content, split: str) -> list[str]:
    return [source.id for source in content.splits[split]]


# all layouts


def test_every_layout_is_listed_under_its_name() -> None:
    assert all(layout.name == name for name, layout in LAYOUTS.items())
    assert len({layout.variable for layout in LAYOUTS.values()}) == len(LAYOUTS)


@pytest.mark.parametrize("name", sorted(LAYOUTS))
def test_problem_says_what_to_set_and_where_to_get_it(name: str, tmp_path: Path) -> None:
    layout = LAYOUTS[name]
    (tmp_path / "holiday.jpg").touch()
    (tmp_path / "file").touch()
    for root, expected in (
        (None, f"{layout.variable} is not set"),
        (tmp_path / "nowhere", f"{tmp_path / 'nowhere'} does not exist"),
        (tmp_path / "file", "is not a directory"),
        (tmp_path, f"lacks {layout.required[0]}"),
        (tmp_path, "it holds file, holiday.jpg"),
    ):
        problem = find_layout_problem(layout, root)
        assert problem is not None
        assert expected in problem
        cure = f"Set {layout.variable} to" if root is None else f"data.root, or {layout.variable} where"
        assert cure in problem
        assert layout.homepage in problem
        assert layout.expected_tree.strip().splitlines()[-1].split()[0] in problem


def test_problem_names_only_what_is_missing_and_shortens_long_directories(tmp_path: Path) -> None:
    for name in ("train", "trainannot", "val"):
        (tmp_path / name).mkdir()
    for i in range(20):
        (tmp_path / f"extra{i:02d}").touch()
    problem = find_layout_problem(LAYOUTS["camvid"], tmp_path)
    assert problem is not None
    assert "lacks valannot;" in problem
    assert "extra09 and 13 more" in problem


def test_palette_is_the_voc_colour_map() -> None:
    # published values of the VOC development kit: aeroplane, bicycle, person, tvmonitor
    palette = make_palette(255)
    assert [palette[i - 1] for i in (1, 2, 15, 20)] == [(128, 0, 0), (0, 128, 0), (192, 128, 128), (0, 64, 128)]
    assert len({*palette, (0, 0, 0)}) == 256


# reading ids


def save_grey_png(path: Path, ids: NDArray[np.uint8], depth: int) -> None:
    """Write a greyscale PNG of 1, 2, 4 or 8 bits by the PNG specification alone."""
    bits = np.unpackbits(ids[..., None], axis=-1)[..., 8 - depth :].reshape(len(ids), -1)
    rows = b"".join(b"\0" + np.packbits(row).tobytes() for row in bits)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", ids.shape[1], len(ids), depth, 0, 0, 0, 0)
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + parts)


@pytest.mark.parametrize("depth", [1, 2, 4, 8])
def test_grey_ids_of_few_bits_are_not_stretched(tmp_path: Path, depth: int) -> None:
    ids = (np.arange(40).reshape(5, 8) * 7 % 2**depth).astype(np.uint8)
    save_grey_png(tmp_path / "label.png", ids, depth)
    np.testing.assert_array_equal(read_ids(tmp_path / "label.png"), ids)


def test_ids_of_16_bits_and_palette_indices_are_read_as_stored(tmp_path: Path) -> None:
    save(tmp_path / "wide.png", np.array([[0, 300, 65535]], np.uint16))
    np.testing.assert_array_equal(read_ids(tmp_path / "wide.png"), [[0, 300, 65535]])
    save(tmp_path / "palette.png", np.array([[0, 20, 255]], np.uint8), mode="P")
    np.testing.assert_array_equal(read_ids(tmp_path / "palette.png"), [[0, 20, 255]])


def test_colour_image_is_no_label(tmp_path: Path) -> None:
    save_blank(tmp_path / "label.png")
    with pytest.raises(DataError, match=r"label\.png: expected a single-channel image of ids, got mode RGB"):
        read_ids(tmp_path / "label.png")


# Cityscapes


def make_cityscapes(root: Path) -> None:
    for split, city in (("train", "aachen"), ("train", "bochum"), ("val", "lindau")):
        name = f"{city}_000000_000019"
        save_blank(root / "leftImg8bit" / split / city / f"{name}_leftImg8bit.png")
        for kind in ("labelIds", "color", "instanceIds"):
            save(root / "gtFine" / split / city / f"{name}_gtFine_{kind}.png", np.zeros((2, 3), np.uint8))


def test_cityscapes_ids_are_those_of_the_official_table(tmp_path: Path) -> None:
    make_cityscapes(tmp_path)
    content = scan("cityscapes", tmp_path)
    official = [label for label in cityscapes_labels if label.id >= 0]
    label = content.splits["val"][0].label
    save(label, np.array([[item.id for item in official]], np.uint8))
    np.testing.assert_array_equal(content.read_label(label), [[item.trainId for item in official]])
    counted = sorted((item for item in official if item.trainId != 255), key=lambda item: item.trainId)
    assert content.classes == tuple(item.name for item in counted)
    assert content.palette == tuple(item.color for item in counted)


def test_cityscapes_pairs_by_city(tmp_path: Path) -> None:
    make_cityscapes(tmp_path)
    content = scan("cityscapes", tmp_path)
    assert ids_of(content, "train") == ["aachen_000000_000019", "bochum_000000_000019"]
    assert ids_of(content, "val") == ["lindau_000000_000019"]
    assert all(s.image.is_file() and s.label.is_file() for split in content.splits.values() for s in split)
    assert content.problems == ()


def test_cityscapes_halves_and_strangers_are_kept_in_sight(tmp_path: Path) -> None:
    make_cityscapes(tmp_path)
    (tmp_path / "leftImg8bit/train/aachen/aachen_000000_000019_leftImg8bit.png").unlink()
    save_blank(tmp_path / "leftImg8bit/val/lindau/holiday.png")
    content = scan("cityscapes", tmp_path)
    assert "aachen_000000_000019" in ids_of(content, "train")
    assert content.problems == ()
    (stranger,) = content.val_problems
    assert "holiday.png" in stranger
    unused = content.without_val()
    assert (unused.splits["val"], unused.val_problems) == ((), ())
    assert unused.splits["train"] == content.splits["train"]


def test_cityscapes_unknown_id(tmp_path: Path) -> None:
    make_cityscapes(tmp_path)
    content = scan("cityscapes", tmp_path)
    label = content.splits["val"][0].label
    save(label, np.array([[7, 34, 34]], np.uint8))
    with pytest.raises(DataError, match=r"labelIds\.png: unknown id 34 in 2 of 3 pixels; expected 7-8, 11-13, 17"):
        content.read_label(label)


# PASCAL VOC


def make_voc(base: Path) -> None:
    for name in ("2007_000032", "2007_000033", "2007_000039"):
        save_blank(base / f"JPEGImages/{name}.jpg")
        save(base / f"SegmentationClass/{name}.png", np.array([[0, 20, 255]], np.uint8), mode="P")
    write(base / "ImageSets/Segmentation/train.txt", ["2007_000032"])
    write(base / "ImageSets/Segmentation/val.txt", ["2007_000033"])


@pytest.mark.parametrize("base", [".", "VOCdevkit/VOC2012", "VOC2012"])
def test_voc_reads_palette_indices_below_any_of_its_roots(tmp_path: Path, base: str) -> None:
    make_voc(tmp_path / base)
    content = scan("voc2012", tmp_path)
    assert (ids_of(content, "train"), ids_of(content, "val")) == (["2007_000032"], ["2007_000033"])
    np.testing.assert_array_equal(content.read_label(content.splits["train"][0].label), [[0, 20, 255]])


def test_voc_names_are_those_of_torchvision(tmp_path: Path, torchvision_names: ModuleType) -> None:
    make_voc(tmp_path)
    assert list(scan("voc2012", tmp_path).classes[1:]) == torchvision_names._VOC_CATEGORIES[1:]


@pytest.mark.parametrize("line", ["{0}", "/JPEGImages/{0}.jpg /SegmentationClassAug/{0}.png"])
def test_voc_takes_the_augmented_training_labels(tmp_path: Path, line: str) -> None:
    make_voc(tmp_path)
    for name in ("2007_000032", "2007_000039"):
        save(tmp_path / f"SegmentationClassAug/{name}.png", np.array([[1, 2, 3]], np.uint8))
    lists = tmp_path / "ImageSets/Segmentation"
    write(lists / "train_aug.txt", [line.format(name) for name in ("2007_000032", "2007_000039")])
    content = scan("voc2012", tmp_path)
    assert ids_of(content, "train") == ["2007_000032", "2007_000039"]
    np.testing.assert_array_equal(content.read_label(content.splits["train"][1].label), [[1, 2, 3]])
    assert content.splits["val"][0].label.parent.name == "SegmentationClass"
    (lists / "train_aug.txt").unlink()
    assert "train_aug.txt: missing" in scan("voc2012", tmp_path).problems[0]


# ADE20K


@pytest.mark.parametrize("base", [".", "ADEChallengeData2016"])
def test_ade20k_shifts_ids_and_ignores_void(tmp_path: Path, base: str) -> None:
    for split in ("training", "validation"):
        save_blank(tmp_path / base / f"images/{split}/ADE_{split}_00000001.jpg")
        label = np.arange(151, dtype=np.uint8)[None]
        save(tmp_path / base / f"annotations/{split}/ADE_{split}_00000001.png", label)
    content = scan("ade20k", tmp_path)
    assert ids_of(content, "val") == ["ADE_validation_00000001"]
    np.testing.assert_array_equal(content.read_label(content.splits["train"][0].label), [[255, *range(150)]])
    assert len(set(content.classes)) == len(content.palette) == 150
    # published colours of wall, sky, person and flag; road and skyscraper have the same one
    assert [content.palette[i] for i in (0, 2, 12, 149)] == [(120, 120, 120), (6, 230, 230), (150, 5, 61), (92, 0, 255)]
    assert len(set(content.palette)) == 149
    # ids 1, 13, 75, 101 and 150 of the benchmark's objectInfo150.txt
    assert [content.classes[i - 1] for i in (1, 13, 75, 101, 150)] == ["wall", "person", "computer", "poster", "flag"]


# COCO-Stuff


def make_cocostuff(base: Path) -> None:
    for name, list_file in (("COCO_train2014_000000000077", "train"), ("COCO_train2014_000000001374", "test")):
        save_blank(base / f"images/{name}.jpg")
        (base / "annotations").mkdir(exist_ok=True)
        write(base / f"imageLists/{list_file}.txt", [name])
        savemat(base / f"annotations/{name}.mat", {"S": np.zeros((2, 3), np.uint16), "captions": "x"})


def test_cocostuff_things_have_the_ids_of_coco(tmp_path: Path, torchvision_names: ModuleType) -> None:
    make_cocostuff(tmp_path)
    content = scan("cocostuff10k", tmp_path)
    assert ids_of(content, "val") == ["COCO_train2014_000000001374"]
    # 91 (hair brush) was reserved after the last thing; stuff begins at 92 and has no gap
    coco = {i: name for i, name in enumerate(torchvision_names._COCO_CATEGORIES) if i and name != "N/A"}
    ids = [*coco, *range(92, 183)]
    label = content.splits["train"][0].label
    savemat(label, {"S": np.array([[0, *ids]], np.uint16)}, do_compression=True)
    np.testing.assert_array_equal(content.read_label(label), [[255, *range(171)]])
    assert list(content.classes[:80]) == list(coco.values())
    # stuff is sorted by name, as the data set's authors say of their list
    assert list(content.classes[80:]) == sorted(content.classes[80:])
    assert [content.classes[content.read_label(label)[0, 1 + ids.index(i)]] for i in (92, 149, 182)] == [
        "banner",
        "road",
        "wood",
    ]
    assert len(set(content.classes)) == len(set(content.palette)) == 171


def test_cocostuff_reads_whole_numbers_stored_as_doubles(tmp_path: Path) -> None:
    make_cocostuff(tmp_path)
    content = scan("cocostuff10k", tmp_path)
    label = content.splits["train"][0].label
    savemat(label, {"S": np.array([[0.0, 1.0, 92.0]])})
    np.testing.assert_array_equal(content.read_label(label), [[255, 0, 80]])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"S": np.array([[12, 1]], np.uint16)}, "unknown id 12 in 1 of 2 pixels"),
        ({"S": np.array([[183, 300]], np.uint16)}, "unknown id 183, 300 in 2 of 2 pixels"),
        ({"S": np.array([[0.5, 1.0]])}, "expected a matrix of whole numbers, got float64"),
        ({"S": np.zeros((2, 2, 2), np.uint16)}, "expected a matrix of whole numbers"),
        ({"T": np.zeros((2, 2), np.uint16)}, "expected the variable 'S'"),
        ({"S": np.ones((2, 2), np.uint16), "names": np.array(["x"] * 172, object)}, "version 1.0"),
    ],
)
def test_cocostuff_refuses_other_label_files(tmp_path: Path, content: dict[str, Any], message: str) -> None:
    make_cocostuff(tmp_path)
    savemat(tmp_path / "label.mat", content)
    with pytest.raises(DataError, match=f"label.mat: .*{re.escape(message)}"):
        scan("cocostuff10k", tmp_path).read_label(tmp_path / "label.mat")


@pytest.mark.parametrize("content", [b"", b"MATLAB 5.0 MAT-file, cut short", b"\0" * 300])
def test_cocostuff_names_damaged_files(tmp_path: Path, content: bytes) -> None:
    make_cocostuff(tmp_path)
    (tmp_path / "label.mat").write_bytes(content)
    with pytest.raises(DataError, match=r"label\.mat: "):
        scan("cocostuff10k", tmp_path).read_label(tmp_path / "label.mat")


# CamVid


def make_camvid(base: Path, suffix: str = ".png") -> None:
    for split, names in (("train", ("0001TP_1", "0001TP_2")), ("val", ("0016E5_1",))):
        for name in names:
            save_blank(base / split / f"{name}{suffix}")
            save(base / f"{split}annot" / f"{name}.png", np.arange(12, dtype=np.uint8).reshape(3, 4))


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
@pytest.mark.parametrize("base", [".", "CamVid"])
def test_camvid_lists_its_directories_without_a_list(tmp_path: Path, suffix: str, base: str) -> None:
    make_camvid(tmp_path / base, suffix)
    content = scan("camvid", tmp_path)
    assert ids_of(content, "train") == ["0001TP_1", "0001TP_2"]
    assert content.splits["val"][0].image == tmp_path / base / f"val/0016E5_1{suffix}"
    label = content.read_label(content.splits["val"][0].label)
    np.testing.assert_array_equal(label, [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 255]])


@pytest.mark.parametrize(
    "text",
    [
        "0001TP_2\n",
        "0001TP_2.png\n",
        "/SegNet/CamVid/train/0001TP_2.png /SegNet/CamVid/trainannot/0001TP_2.png\n",
    ],
)
def test_camvid_lists_hold_ids_or_the_publishers_paths(tmp_path: Path, text: str) -> None:
    make_camvid(tmp_path, ".jpg")
    (tmp_path / "train.txt").write_text(text)
    content = scan("camvid", tmp_path)
    assert ids_of(content, "train") == ["0001TP_2"]
    assert content.splits["train"][0].image == tmp_path / "train/0001TP_2.jpg"
    assert content.splits["train"][0].label == tmp_path / "trainannot/0001TP_2.png"


@pytest.mark.parametrize("listed", ["\u00fcbung", "u\u0308bung"])
@pytest.mark.parametrize("stored", ["\u00fcbung", "u\u0308bung"])
def test_camvid_lists_name_images_in_either_unicode_form(tmp_path: Path, listed: str, stored: str) -> None:
    make_camvid(tmp_path, ".jpg")
    (tmp_path / "train/0001TP_1.jpg").rename(tmp_path / f"train/{stored}.jpg")
    (tmp_path / "train.txt").write_text(f"{listed}\n", encoding="utf-8")

    (pair,) = scan("camvid", tmp_path).splits["train"]

    assert pair.id == "\u00fcbung"
    assert pair.image.is_file()


def test_camvid_list_on_one_line_with_labels_of_other_names(tmp_path: Path) -> None:
    make_camvid(tmp_path)
    pairs = [f"/SegNet/train/train_{i}.png /SegNet/trainannot/trainannot_{i}.png" for i in range(3)]
    (tmp_path / "train.txt").write_text(" ".join(pairs))
    train = scan("camvid", tmp_path).splits["train"]
    assert [(s.image.name, s.label.name) for s in train] == [
        (f"train_{i}.png", f"trainannot_{i}.png") for i in range(3)
    ]


@needs_camvid
def test_camvid_as_published() -> None:
    content = scan("camvid", CAMVID)
    assert (len(content.splits["train"]), len(content.splits["val"])) == (367, 101)
    assert content.problems == ()
    assert content.classes == (
        "sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car", "pedestrian", "bicyclist",
    )  # fmt: skip
    for source in content.splits["train"][::90]:
        raw = np.asarray(Image.open(source.label))
        label = content.read_label(source.label)
        np.testing.assert_array_equal(label, np.where(raw == 11, 255, raw))
        assert np.asarray(Image.open(source.image)).shape == (*label.shape, 3)


# a user's own data set


def make_folder(root: Path, classes: Any) -> None:
    for split in ("train", "val"):
        save_blank(root / f"images/{split}/a.png")
        save(root / f"labels/{split}/a.png", np.zeros((2, 3), np.uint8))
    (root / "classes.yaml").write_text(yaml.safe_dump(classes, sort_keys=False))


def read_folder(root: Path, pixels: Any, mode: str | None = None) -> NDArray[np.uint8]:
    content = scan("folder", root)
    save(root / "labels/val/a.png", pixels, mode)
    return content.read_label(root / "labels/val/a.png")


def test_folder_names_in_a_list_have_the_ids_0_1_2(tmp_path: Path) -> None:
    make_folder(tmp_path, {"names": ["road", "car"]})
    content = scan("folder", tmp_path)
    assert content.classes == ("road", "car")
    assert content.palette == make_palette(2)
    np.testing.assert_array_equal(read_folder(tmp_path, np.array([[0, 1, 255]], np.uint8), "P"), [[0, 1, 255]])
    with pytest.raises(DataError, match=r"unknown id 2 in 1 of 2 pixels; expected 0-1 and 255 \(ignored\)"):
        read_folder(tmp_path, np.array([[2, 1]], np.uint8))


def test_folder_names_in_two_unicode_forms_are_one(tmp_path: Path) -> None:
    """As where macOS packed the labels: letters with accents taken apart, which looks the same."""
    make_folder(tmp_path, {"names": ["road"]})
    composed, apart = "Stra\u00dfe \u00fcbung", "Stra\u00dfe u\u0308bung"
    (tmp_path / "images/train/a.png").rename(tmp_path / f"images/train/{composed}.png")
    (tmp_path / "labels/train/a.png").rename(tmp_path / f"labels/train/{apart}.png")

    (pair,) = scan("folder", tmp_path).splits["train"]

    assert (pair.id, pair.image.stem, pair.label.stem) == (composed, composed, apart)
    assert pair.image.is_file()
    assert pair.label.is_file()


def test_folder_names_by_id_and_several_ignored_ids(tmp_path: Path) -> None:
    make_folder(tmp_path, {"names": {1000: "car", 7: "road"}, "ignore": [0, 65535]})
    content = scan("folder", tmp_path)
    assert content.classes == ("road", "car")
    label = read_folder(tmp_path, np.array([[0, 7, 1000, 65535]], np.uint16))
    np.testing.assert_array_equal(label, [[255, 0, 1, 255]])


@pytest.mark.parametrize("alpha", [False, True])
def test_folder_colours_become_ids(tmp_path: Path, alpha: bool) -> None:
    colors = [[128, 64, 128], [0, 0, 142], [0, 142, 0]]
    make_folder(tmp_path, {"names": ["road", "car", "tree"], "colors": colors, "ignore_color": [0, 0, 0]})
    pixels = np.array([[colors[2], colors[0], [0, 0, 0]], [colors[1], colors[1], colors[2]]], np.uint8)
    if alpha:
        pixels = np.concatenate([pixels, np.full((2, 3, 1), 255, np.uint8)], -1)
    np.testing.assert_array_equal(read_folder(tmp_path, pixels), [[2, 0, 255], [1, 1, 2]])
    assert scan("folder", tmp_path).palette == tuple(tuple(color) for color in colors)
    # ids are still read as ids
    np.testing.assert_array_equal(read_folder(tmp_path, np.array([[2, 255]], np.uint8)), [[2, 255]])


CLASS_COLORS = [[128, 64, 128], [0, 0, 142], [0, 142, 0]]


def read_palette(root: Path, indices: Any, entries: Any, **options: Any) -> NDArray[np.uint8]:
    make_folder(root, {"names": ["road", "car", "tree"], "colors": CLASS_COLORS, "ignore_color": [0, 0, 0]})
    image = Image.fromarray(np.array(indices, np.uint8))
    image.putpalette([value for color in entries for value in color])
    image.save(root / "labels/train/a.png", **options)
    with Image.open(root / "labels/train/a.png") as written:
        assert written.mode == "P"
    content = scan("folder", root)
    return content.read_label(content.splits["train"][0].label)


@pytest.mark.parametrize("options", [{}, {"transparency": 0}, {"transparency": b"\x00\x80\xff\x07"}])
def test_folder_palette_labels_are_read_by_their_colours(tmp_path: Path, options: dict[str, Any]) -> None:
    road, car, tree = CLASS_COLORS
    entries = [tree, [0, 0, 0], road, car]
    found = read_palette(tmp_path, [[0, 1, 2, 3], [3, 3, 0, 2]], entries, **options)
    np.testing.assert_array_equal(found, [[2, 255, 0, 1], [1, 1, 2, 0]])


def test_folder_palette_of_class_colours_may_leave_void_without_one(tmp_path: Path) -> None:
    road, car, tree = CLASS_COLORS
    entries = [car, road, tree, *[[9, 9, 9]] * 252, [224, 224, 192]]
    np.testing.assert_array_equal(read_palette(tmp_path, [[0, 1, 2, 255]], entries), [[1, 0, 2, 255]])


@pytest.mark.parametrize(
    "entries",
    [
        [[1, 2, 3], [4, 5, 6], [7, 8, 9]],
        # a listed colour that no pixel has decides nothing
        [[1, 2, 3], [4, 5, 6], [7, 8, 9], CLASS_COLORS[0]],
        # as Pillow writes ids; black is listed as ignored
        [[i, i, i] for i in range(256)],
    ],
)
def test_folder_palettes_of_other_colours_hold_ids(tmp_path: Path, entries: Any) -> None:
    np.testing.assert_array_equal(read_palette(tmp_path, [[0, 1, 2]], entries), [[0, 1, 2]])


@pytest.mark.parametrize("colors", [CLASS_COLORS, {7: CLASS_COLORS[0], 24: CLASS_COLORS[2], 26: CLASS_COLORS[1]}])
def test_folder_a_list_of_colours_follows_the_names_as_they_are_written(tmp_path: Path, colors: Any) -> None:
    make_folder(tmp_path, {"names": {7: "road", 26: "car", 24: "tree"}, "colors": colors})
    content = scan("folder", tmp_path)
    road, car, tree = (tuple(color) for color in CLASS_COLORS)
    assert content.classes == ("road", "tree", "car")
    assert content.palette == (road, tree, car)
    np.testing.assert_array_equal(read_folder(tmp_path, np.array([[road, car, tree]], np.uint8)), [[0, 2, 1]])


BLACK_AND_WHITE: dict[str, Any] = {"names": ["ground", "weed"], "colors": [[0, 0, 0], [255, 255, 255]]}


@pytest.mark.parametrize(
    ("classes", "levels", "mode", "expected"),
    [
        (BLACK_AND_WHITE, [0, 255], "L", [0, 1]),
        (BLACK_AND_WHITE, [0, 255], "P", [0, 1]),
        (BLACK_AND_WHITE, [0, 255], "1", [0, 1]),
        (BLACK_AND_WHITE, [255, 255], "L", [1, 1]),
        # ids, among which 255 is void
        (BLACK_AND_WHITE, [0, 1], "L", [0, 1]),
        (BLACK_AND_WHITE, [1, 255], "L", [1, 255]),
        (BLACK_AND_WHITE | {"ignore": 255}, [0, 255], "L", [0, 255]),
        # black is the second class, and 0 its level
        (BLACK_AND_WHITE | {"colors": [[255, 255, 255], [0, 0, 0]]}, [0, 255], "L", [1, 0]),
        (BLACK_AND_WHITE | {"colors": [[255, 255, 255], [0, 0, 0]]}, [0, 255], "1", [1, 0]),
        (BLACK_AND_WHITE | {"ignore_color": [128, 128, 128]}, [128, 255], "L", [255, 1]),
        # red is in no greyscale file
        (BLACK_AND_WHITE | {"colors": [[0, 0, 0], [255, 0, 0]]}, [1, 255], "L", [1, 255]),
        ({"names": {0: "ground", 255: "weed"}}, [0, 255], "L", [0, 1]),
    ],
)
def test_folder_black_and_white_masks(
    tmp_path: Path, classes: Any, levels: list[int], mode: str, expected: list[int]
) -> None:
    make_folder(tmp_path, classes)
    path = tmp_path / "labels/val/a.png"
    image = Image.fromarray(np.array([levels], np.uint8))
    if mode == "P":
        image.putpalette([level for level in range(256) for _ in "rgb"])
    (image.convert("1") if mode == "1" else image).save(path)
    with Image.open(path) as stored:
        assert stored.mode == mode
    np.testing.assert_array_equal(scan("folder", tmp_path).read_label(path), [expected])


def test_folder_a_smoothed_mask_is_refused_as_one(tmp_path: Path) -> None:
    make_folder(tmp_path, BLACK_AND_WHITE)
    with pytest.raises(DataError, match=r"a\.png: grey level 3, 250 beside those of colors \(0, 255\); .*smoothing"):
        read_folder(tmp_path, np.array([[0, 3, 250, 255]], np.uint8))
    # ids of no class, without a level of a colour, are ids
    with pytest.raises(DataError, match="unknown id 7 in 1 of 2 pixels"):
        read_folder(tmp_path, np.array([[1, 7]], np.uint8))


def test_folder_palette_of_some_known_colours_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a\.png: unknown color \[1, 2, 3\] in the palette"):
        read_palette(tmp_path, [[0, 1]], [CLASS_COLORS[1], [1, 2, 3]])


@pytest.mark.parametrize(("unlisted", "index"), [([220, 20, 60], 0), ([220, 20, 60], 1)])
def test_folder_an_unlisted_colour_is_not_void_by_its_place(tmp_path: Path, unlisted: Any, index: int) -> None:
    """Tools order palettes as they like: `ignore` numbers ids, and black alone is what nobody drew."""
    road, car, _ = CLASS_COLORS
    make_folder(tmp_path, {"names": {1: "road", 2: "car"}, "colors": [road, car], "ignore": [0, 255]})
    for color, fits in ((unlisted, False), ([0, 0, 0], index == 0)):
        entries = [road, car]
        entries.insert(index, color)
        image = Image.fromarray(np.array([[0, 1, 2]], np.uint8))
        image.putpalette([value for entry in entries for value in entry])
        image.save(tmp_path / "labels/train/a.png")
        content = scan("folder", tmp_path)
        path = content.splits["train"][0].label
        if fits:
            np.testing.assert_array_equal(content.read_label(path), [[255, 0, 1]])
        else:
            with pytest.raises(DataError, match=r"unknown color \[\d+, \d+, \d+\] in the palette"):
                content.read_label(path)


def test_folder_unknown_colour_is_named(tmp_path: Path) -> None:
    make_folder(tmp_path, {"names": ["road"], "colors": [[128, 64, 128]]})
    with pytest.raises(DataError, match=r"unknown color \[127, 64, 128\] in 1 of 2 pixels"):
        read_folder(tmp_path, np.array([[[128, 64, 128], [127, 64, 128]]], np.uint8))


def test_folder_colour_labels_need_colours(tmp_path: Path) -> None:
    make_folder(tmp_path, {"names": ["road"]})
    with pytest.raises(DataError, match="the label is a colour image"):
        read_folder(tmp_path, np.zeros((2, 3, 3), np.uint8))


def test_folder_keeps_sub_directories_halves_and_strangers(tmp_path: Path) -> None:
    make_folder(tmp_path, {"names": ["road"]})
    save_blank(tmp_path / "images/train/day/b.jpg")
    save(tmp_path / "labels/train/night/c.png", np.zeros((2, 3), np.uint8))
    (tmp_path / "images/train/notes.txt").touch()
    save_blank(tmp_path / "images/train/a.bmp")
    (tmp_path / "images/train/.hidden").touch()
    content = scan("folder", tmp_path)
    assert ids_of(content, "train") == ["a", "day/b", "night/c"]
    assert [source.label.is_file() for source in content.splits["train"]] == [True, False, True]
    assert len(content.problems) == 2
    assert "a.png: the same name as a.bmp" in content.problems[0]
    assert "notes.txt: not one of" in content.problems[1]


def _named(root: Path, images: list[str], labels: list[str]) -> list[tuple[str, str, str]]:
    """Return id, image and label, from their split on, of train samples with these names."""
    for name in ("images/train", "labels/train"):
        shutil.rmtree(root / name)
    for name in images:
        save_blank(root / f"images/train/{name}.jpg")
    for name in labels:
        save(root / f"labels/train/{name}.png", np.zeros((2, 3), np.uint8))
    sources = scan("folder", root).splits["train"]
    pairs = [(s.image.relative_to(root / "images/train"), s.label.relative_to(root / "labels/train")) for s in sources]
    return [(s.id, str(image), str(label)) for s, (image, label) in zip(sources, pairs, strict=True)]


def test_folder_labels_may_all_have_one_ending_more(tmp_path: Path) -> None:
    make_folder(tmp_path, {"names": ["road"]})

    # longer names of images begin with shorter ones, and one has no label
    found = _named(tmp_path, ["a", "a_b", "day/c.1", "d"], ["a_b_mask", "a_mask", "day/c.1_mask"])

    assert found == [
        ("a", "a.jpg", "a_mask.png"),
        ("a_b", "a_b.jpg", "a_b_mask.png"),
        ("d", "d.jpg", "d_mask.png"),
        ("day/c.1", "day/c.1.jpg", "day/c.1_mask.png"),
    ]


@pytest.mark.parametrize(
    ("images", "labels"),
    [
        (["1", "2"], ["10", "20"]),
        (["a", "b"], ["a_mask", "b_label"]),
        (["a", "b"], ["a_mask", "b"]),
        (["a"], ["a_mask", "b_mask"]),
        (["a", "a_b"], ["a_b_c"]),
    ],
    ids=["no sign before it", "two endings", "one has none", "one without an image", "of either image"],
)
def test_folder_names_of_labels_that_are_not_of_one_ending(
    tmp_path: Path, images: list[str], labels: list[str]
) -> None:
    make_folder(tmp_path, {"names": ["road"]})

    found = _named(tmp_path, images, labels)

    assert [name for name, *_ in found] == sorted({*images, *labels})


NO_UTF8 = os.fsdecode(b"caf\xe9")


@pytest.mark.skipif(sys.platform != "linux", reason="other systems allow no such names")
def test_names_that_are_no_utf8_have_ids_that_are(tmp_path: Path) -> None:
    make_folder(tmp_path, {"names": ["road"]})
    save_blank(tmp_path / f"images/train/{NO_UTF8}/{NO_UTF8}.png", tmp_path / f"images/train/{NO_UTF8}.b.png")
    save(tmp_path / f"labels/train/{NO_UTF8}/{NO_UTF8}.png", np.zeros((2, 3), np.uint8))
    # as the escape of the other is written
    save_blank(tmp_path / r"images/train/caf\udce9.b.jpg")
    content = scan("folder", tmp_path)
    sources = {source.id: source for source in content.splits["train"]}
    assert list(sources) == ["a", r"caf\udce9.b", r"caf\udce9/caf\udce9"]
    pair = sources[r"caf\udce9/caf\udce9"]
    assert pair.image.is_file() and pair.label.is_file()
    assert sources[r"caf\udce9.b"].label.name == sources[r"caf\udce9.b"].image.with_suffix(".png").name
    (twice,) = content.problems
    assert "the same name as" in twice


@pytest.mark.skipif(sys.platform != "linux", reason="other systems allow no such names")
def test_cityscapes_names_that_are_no_utf8(tmp_path: Path) -> None:
    make_cityscapes(tmp_path)
    save_blank(tmp_path / f"leftImg8bit/val/lindau/{NO_UTF8}_leftImg8bit.png")
    save_blank(tmp_path / f"gtFine/val/lindau/{NO_UTF8}_gtFine_labelIds.png")
    content = scan("cityscapes", tmp_path)
    (found,) = (source for source in content.splits["val"] if source.id == r"caf\udce9")
    assert found.image.is_file() and found.label.is_file()
    assert content.val_problems == ()


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ([], "expected the key 'names'"),
        ({"classes": ["road"]}, "expected the key 'names'"),
        ({"names": ["road"], "colours": [[0, 0, 0]]}, "unknown key 'colours'; there are names, colors"),
        ({"names": []}, "names: expected a list"),
        ({"names": "road"}, "names: expected a list"),
        ({"names": {-1: "road"}}, "names: expected a list, or a mapping by id"),
        ({"names": ["road", 3]}, "names: expected text for id 1, got 3"),
        ({"names": ["road", "car", "road"]}, "names: expected 1 to 255 different names, got 'road' more than once"),
        ({"names": [f"c{i}" for i in range(256)], "ignore": 300}, "names: expected 1 to 255 .* names, got 256 names"),
        ({"names": ["a", "b"], "colors": [[0, 0, 0]]}, "colors: expected 2 entries, one a name, got 1"),
        ({"names": {1: "a", 2: "b"}, "colors": {1: [0, 0, 0]}}, r"colors: expected the ids \[1, 2\], as in names"),
        ({"names": ["a"], "colors": [[0, 0, 256]]}, r"colors: a: expected \[red, green, blue\]"),
        ({"names": ["a", "b"], "colors": [[1, 1, 1], [1, 1, 1]]}, "colors: two classes have the same colour"),
        ({"names": ["a"], "colors": [[1, 1, 1]], "ignore_color": [1, 1, 1]}, "ignore_color: .* is a class's colour"),
        ({"names": ["a", "b"], "ignore": 0}, "ignore: 0 is the id of 'a' as well"),
        ({"names": ["a"], "ignore": "void"}, "ignore: expected an id"),
    ],
)
def test_folder_wrong_classes_file(tmp_path: Path, classes: Any, message: str) -> None:
    make_folder(tmp_path, classes)
    with pytest.raises(DataError, match=rf"classes\.yaml: {message}"):
        scan("folder", tmp_path)


@pytest.mark.parametrize(
    ("text", "key"), [("names: {0: road, 1: car, 1: person}", "1"), ("names: [road]\nignore: 9\nignore: 8", "ignore")]
)
def test_folder_classes_file_that_says_something_twice(tmp_path: Path, text: str, key: str) -> None:
    make_folder(tmp_path, {"names": ["road"]})
    (tmp_path / "classes.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=rf"classes\.yaml: not valid YAML \(the key {key} stands twice"):
        scan("folder", tmp_path)


@pytest.mark.parametrize("content", [b"names: [road", b"names: !!python/object/apply:os.getcwd []", b"\xff\xfe\xfa"])
def test_folder_classes_file_that_is_no_plain_yaml(tmp_path: Path, content: bytes) -> None:
    make_folder(tmp_path, {"names": ["road"]})
    (tmp_path / "classes.yaml").write_bytes(content)
    with pytest.raises(DataError, match=r"classes\.yaml: (not valid YAML|cannot be read as text)"):
        scan("folder", tmp_path)


@pytest.mark.parametrize(
    ("gone", "told"), [(("images/val", "labels/val"), True), (("images/val", "labels/train"), False)]
)
def test_folder_without_a_validation_split_is_told_of_holding_out(
    tmp_path: Path, gone: tuple[str, ...], told: bool
) -> None:
    make_folder(tmp_path, {"names": ["road", "car"]})
    for name in gone:
        shutil.rmtree(tmp_path / name)
    problem = find_layout_problem(LAYOUTS["folder"], tmp_path)
    assert problem is not None
    assert ("let data.hold_out name the train images" in problem) is told
