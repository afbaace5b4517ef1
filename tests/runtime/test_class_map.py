"""The sparse class map equals the dense one byte for byte; the dense one is checked against slow sums and PyTorch."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from brd_edge.runtime import class_map as module
from brd_edge.runtime.class_map import ClassMapper, class_map_from_logits, dense_class_map
from brd_edge.runtime.class_map_compiled import compiled_kernel, make_kernel
from brd_edge.runtime.class_map_grid import interpolation_axis
from brd_edge.runtime.errors import EngineError, RuntimeMissingError

ROOT = Path(__file__).parents[2]
CAMVID = Path(os.environ.get("CAMVID_ROOT") or ROOT.parent / "shared/camvid")
RUN = Path(os.environ.get("CAMVID_RUN") or ROOT / "runs/camvid_cpu")

# classes, rows, columns, height, width: strides whole and not, odd and even, one logit, one class, a smaller map
SIZES = [
    (3, 4, 5, 16, 20),
    (19, 6, 8, 48, 64),
    (5, 7, 3, 21, 9),
    (4, 5, 6, 5, 6),
    (4, 3, 4, 20, 37),
    (3, 1, 6, 8, 48),
    (3, 6, 1, 24, 4),
    (2, 1, 1, 7, 5),
    (1, 3, 4, 6, 8),
    (6, 9, 11, 4, 5),
    (6, 3, 3, 1, 1),
    (255, 3, 4, 6, 8),
    (2, 2, 2, 128, 96),
]


@pytest.fixture(autouse=True)
def _never_dense(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small and adversarial logits have mostly mixed cells; they are here to be computed the sparse way."""
    monkeypatch.setattr(module, "_MIXED_MAX", 1.0)


Exact = Callable[[np.ndarray, int, int], None]


@pytest.fixture(params=["numpy", "numba"])
def exact(request: pytest.FixtureRequest) -> Exact:
    """Compares the class map of logits at a size, by numpy or compiled, with the dense one, for both kinds of grids."""
    if request.param == "numba":
        # compiled once for the process
        pytest.importorskip("numba", reason='numba is not installed: pip install "brd-edge[fast]"')
    return partial(_exact, compiled=request.param == "numba")


def _exact(logits: np.ndarray, height: int, width: int, *, compiled: bool) -> None:
    for align_corners in (False, True):
        expected = dense_class_map(logits, height, width, align_corners=align_corners)
        mapper = ClassMapper(*logits.shape[1:], height, width, align_corners=align_corners, compiled=compiled)
        assert (mapper._kernel is not None) == compiled
        found = mapper.class_map(logits)
        assert found.dtype == np.uint8
        assert np.array_equal(found, expected), f"{np.sum(found != expected)} pixels, align_corners={align_corners}"


def _smooth(shape: tuple[int, ...], seed: int, scale: float = 4.0) -> np.ndarray:
    """Logits with regions: noise on a grid a third as fine, enlarged."""
    rng = np.random.default_rng(seed)
    coarse = torch.from_numpy(rng.standard_normal((1, shape[0], shape[1] // 3 + 2, shape[2] // 3 + 2)) * scale)
    return F.interpolate(coarse, size=shape[1:], mode="bicubic").numpy().astype(np.float32)


def _slow(logits: np.ndarray, height: int, width: int, align_corners: bool) -> np.ndarray:
    """The definition pixel by pixel, coordinates as fractions, values as numpy's float32 scalars."""
    rows, columns = logits.shape[2:]

    def source(pixel: int, count: int, pixels: int) -> tuple[int, int, np.float32, np.float32]:
        if align_corners:
            place = Fraction(pixel * (count - 1), max(pixels - 1, 1))
        else:
            place = Fraction(2 * pixel + 1, 2) * Fraction(count, pixels) - Fraction(1, 2)
        place = min(max(place, Fraction(0)), Fraction(count - 1))
        low = math.floor(place)
        after = np.float32(float(place - low))
        return low, min(low + 1, count - 1), np.float32(1) - after, after

    result = np.empty((height, width), np.uint8)
    for y in range(height):
        above, below, up, down = source(y, rows, height)
        for x in range(width):
            left, right, before, after = source(x, columns, width)
            a, b, c, d = (logits[0, :, i, j] for i in (above, below) for j in (left, right))
            values = up * (before * a + after * b) + down * (before * c + after * d)
            result[y, x] = np.argmax(values)
    return result


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("align_corners", [False, True])
def test_the_dense_class_map_is_what_is_written_down(size: tuple[int, ...], align_corners: bool) -> None:
    classes, rows, columns, height, width = size
    logits = np.random.default_rng(0).standard_normal((1, classes, rows, columns)).astype(np.float32)

    found = dense_class_map(logits, height, width, align_corners=align_corners)

    assert np.array_equal(found, _slow(logits, height, width, align_corners))


def _differs_only_at_ties(found: np.ndarray, logits: np.ndarray, align_corners: bool) -> None:
    """Compare with PyTorch: where it differs the two classes must be as good, but for rounded coordinates."""
    planes = torch.from_numpy(logits)
    size = found.shape
    theirs = F.interpolate(planes, size=size, mode="bilinear", align_corners=align_corners).argmax(1)[0].numpy()
    exact = F.interpolate(planes.double(), size=size, mode="bilinear", align_corners=align_corners)[0].numpy()
    y, x = np.nonzero(theirs != found)
    gap = np.abs(exact[theirs[y, x], y, x] - exact[found[y, x], y, x])
    # a coordinate up to h or w is rounded to 2^-24 of itself a few times, and moves the value by what neighbours differ
    tolerance = 2.0**-21 * sum(logits.shape[2:]) * np.abs(logits).max()
    assert (gap <= tolerance).all()
    assert len(y) <= 1e-4 * found.size


@pytest.mark.parametrize("stride", [2, 3, 4, 8, 16])
@pytest.mark.parametrize("align_corners", [False, True])
def test_pytorch_agrees_but_for_ties(stride: int, align_corners: bool) -> None:
    logits = _smooth((19, 20, 28), seed=stride)
    found = class_map_from_logits(logits, 20 * stride, 28 * stride, align_corners=align_corners)

    assert len(np.unique(found)) > 10
    _differs_only_at_ties(found, logits, align_corners)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_noise(exact: Exact, size: tuple[int, ...]) -> None:
    classes, rows, columns, height, width = size
    for seed in range(5):
        logits = np.random.default_rng(seed).standard_normal((1, classes, rows, columns)).astype(np.float32)
        exact(logits, height, width)
        exact(_smooth((classes, rows, columns), seed), height, width)


def _adversarial() -> Iterator[tuple[str, np.ndarray]]:
    rng = np.random.default_rng(3)
    shape = (1, 6, 9, 12)
    noise = rng.standard_normal(shape).astype(np.float32)
    yield "zeros", np.zeros(shape, np.float32)
    yield "constant", np.full(shape, -7.3, np.float32)
    yield "constant classes", np.broadcast_to(noise[:, :, :1, :1], shape).copy()
    board = np.indices(shape[2:]).sum(axis=0) % 2
    yield "checkerboard", np.stack([np.where(board == k % 2, 1, -1) for k in range(6)])[None].astype(np.float32)
    yield "ties of few levels", rng.integers(0, 3, shape).astype(np.float32)
    yield "negative", noise - 100
    yield "huge", noise * np.float32(1e29)
    yield "beyond the sparse way", noise * np.float32(1e37)
    yield "at the end of float32", np.sign(noise) * np.finfo(np.float32).max
    yield "tiny", noise * np.float32(1e-37)
    yield "denormal", noise * np.float32(1e-42)
    yield "least denormals", (rng.integers(-2, 3, shape) * np.float32(1e-45)).astype(np.float32)
    yield "very different", (noise * 10.0 ** rng.integers(-40, 28, shape)).astype(np.float32)
    yield "signed zeros", np.where(noise > 0, np.float32(0.0), np.float32(-0.0))
    yield "half precision", noise.astype(np.float16)
    yield "coarse half precision", (noise + 100).astype(np.float16)
    for name, value in (("masked", -1e9), ("masked by infinity", -np.inf), ("infinite", np.inf)):
        marked = noise.copy()
        marked[:, 2], marked[0, 4, 3:5, 2:9] = (value, value) if value < 0 else (0, value)
        yield name, marked
    yield "all of a place -inf", np.where(np.indices(shape)[2] == 4, np.float32(-np.inf), noise)
    wide = _smooth((6, 9, 12), 5)
    for ulps in (1, 2, 5, 17):
        # the best class again, with a lower and with a higher id, and hardly different
        top = wide.max(axis=1)
        near = top + rng.integers(-ulps, ulps + 1, top.shape) * np.spacing(np.abs(top))
        for ids in ((0, 5), (5, 0), (2, 3)):
            close = wide.copy()
            close[:, ids[0]], close[:, ids[1]] = top, near
            yield f"{ulps} ulps, {ids}", close


ADVERSARIAL = dict(_adversarial())


@pytest.mark.parametrize("name", ADVERSARIAL)
@pytest.mark.parametrize("factor", [(4, 4), (8, 8), (3, 5), (2.5, 7.3), (0.5, 1)], ids=str)
def test_adversarial(exact: Exact, name: str, factor: tuple[float, float]) -> None:
    logits = ADVERSARIAL[name]
    exact(logits, round(logits.shape[2] * factor[0]), round(logits.shape[3] * factor[1]))


def _rounded_alike() -> np.ndarray:
    """Class 1 is above class 0 everywhere, by the least that can be."""
    low = np.random.default_rng(0).uniform(1, 2, (1, 1, 12, 12)).astype(np.float32)
    return np.concatenate([low, np.nextafter(low, np.float32(9))], axis=1)


def test_the_margin_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = _rounded_alike()
    expected = dense_class_map(logits, 96, 96, align_corners=True)

    # at the corners class 1 is alone the best, and between them rounding makes them equal: the lower id wins
    assert (logits.argmax(1) == 1).all()
    assert 0 < np.mean(expected == 0) < 1
    assert np.array_equal(class_map_from_logits(logits, 96, 96, align_corners=True), expected)
    monkeypatch.setattr(module, "_MARGIN_SHARE", 0.0)
    assert not np.array_equal(class_map_from_logits(logits, 96, 96, align_corners=True), expected)


def test_a_class_that_is_deep_somewhere_leaves_no_other_out(exact: Exact) -> None:
    """Between a place of class 1 and one of class 2, where 0 and 1 are so deep that rounding is beyond the margin."""
    rng = np.random.default_rng(0)
    steps = rng.integers(1, 1 << 22, (9, 6)).astype(np.float32)
    logits = np.empty((1, 3, 9, 12), np.float32)
    logits[0, :, :, ::2] = np.array([1, 1.001, -1e12], np.float32)[:, None, None]
    # neighbours in float32
    logits[0, 0, :, 1::2], logits[0, 1, :, 1::2] = -(2.0**30) + 64 * steps, -(2.0**30) + 64 * (steps + 1)
    logits[0, 2, :, 1::2] = 1
    expected = dense_class_map(logits, 9, 96, align_corners=False)

    assert set(np.unique(expected)) == {0, 1, 2}
    assert (logits.argmax(1) != 0).all()
    exact(logits, 9, 96)
    exact(logits, 72, 96)


def test_ties_go_to_the_lowest_class() -> None:
    logits = np.zeros((1, 5, 4, 4), np.float32)
    logits[0, 2:4] = 1

    assert (class_map_from_logits(logits, 16, 16, align_corners=False) == 2).all()


def test_a_third_class_may_win_between_two() -> None:
    # class 2 is nowhere the best of the logits
    logits = np.array([[10, 0], [0, 10], [7, 7]], np.float32).reshape(1, 3, 1, 2)

    found = class_map_from_logits(logits, 1, 9, align_corners=True)

    assert found.tolist() == [[0, 0, 0, 2, 2, 2, 1, 1, 1]]


def test_only_mixed_cells_are_interpolated() -> None:
    logits = np.zeros((1, 2, 8, 8), np.float32)
    logits[0, 0], logits[0, 1, :, 4:] = 1, 3
    mapper = ClassMapper(2, 8, 8, 64, 64, align_corners=False)
    mapper.class_map(logits)

    # one column of nine, in all nine rows of cells
    assert mapper.mixed_share == pytest.approx(1 / 9)


def test_logits_that_are_mixed_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    logits = np.random.default_rng(0).standard_normal((1, 19, 6, 8)).astype(np.float32)
    mapper = ClassMapper(19, 6, 8, 48, 64, align_corners=True)
    expected = dense_class_map(logits, 48, 64, align_corners=True)
    called: list[int] = []
    monkeypatch.setattr(mapper, "_paint", lambda *_: called.append(1))

    assert np.array_equal(mapper.class_map(logits), expected)
    assert (mapper.mixed_share, called) == (1, [])


@pytest.mark.parametrize("align_corners", [False, True])
def test_float16_is_computed_as_float32(align_corners: bool) -> None:
    half = _smooth((7, 10, 12), 1).astype(np.float16)

    found = class_map_from_logits(half, 80, 96, align_corners=align_corners)

    assert np.array_equal(found, class_map_from_logits(half.astype(np.float32), 80, 96, align_corners=align_corners))


def test_class_maps_belong_to_the_caller() -> None:
    mapper = ClassMapper(5, 6, 7, 48, 56, align_corners=True)
    logits = [_smooth((5, 6, 7), seed) for seed in range(2)]
    first = mapper.class_map(logits[0])
    kept, before = first.copy(), logits[1].copy()
    given = np.full((48, 56), 9, np.uint8)
    second = mapper.class_map(logits[1], out=given)

    assert second is given
    assert np.array_equal(first, kept)
    assert np.array_equal(second, dense_class_map(logits[1], 48, 56, align_corners=True))
    assert np.array_equal(logits[1], before)


def test_logits_that_are_not_contiguous(exact: Exact) -> None:
    logits = np.asfortranarray(_smooth((5, 6, 7), 0))
    exact(logits, 24, 28)
    exact(logits[:, ::-1, ::2, 1:], 24, 28)


@pytest.mark.parametrize("name", ["masked by infinity", "least denormals", "1 ulps, (0, 5)", "ties of few levels"])
@pytest.mark.parametrize("align_corners", [False, True])
def test_the_loops_for_numba_are_right_uncompiled_too(name: str, align_corners: bool) -> None:
    logits = ADVERSARIAL[name]
    mapper = ClassMapper(6, 9, 12, 36, 60, align_corners=align_corners)
    mapper._kernel = make_kernel(lambda function: function)

    found = mapper.class_map(logits)

    assert mapper.mixed_share > 0
    assert np.array_equal(found, dense_class_map(logits, 36, 60, align_corners=align_corners))


def test_it_is_compiled_once() -> None:
    pytest.importorskip("numba", reason='numba is not installed: pip install "brd-edge[fast]"')
    kernels = {id(ClassMapper(2, 3, 3, size, size, align_corners=False, compiled=True)._kernel) for size in (6, 7)}
    assert len(kernels) == 1


def test_numba_is_asked_for_where_it_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "numba", None)
    # what was compiled already stays
    with pytest.raises(RuntimeMissingError, match=r"pip install \"brd-edge\[fast\]\""):
        compiled_kernel.__wrapped__()


@pytest.mark.parametrize("way", [class_map_from_logits, dense_class_map])
def test_what_is_refused(way: Any) -> None:
    good = np.zeros((1, 3, 4, 4), np.float32)
    broken = good.copy()
    broken[0, 1, 2, 3] = np.nan
    for logits, size, message in (
        (broken, (8, 8), r"came 1 NaN among 48 logits \(the first in class 1\)"),
        (np.full_like(good, np.nan), (8, 8), "48 NaN"),
        (good.astype(np.float64), (8, 8), r"float32 or float16 \(1, K, h, w\), came float64"),
        (good[0], (8, 8), r"came float32 \(3, 4, 4\)"),
        (np.zeros((2, 3, 4, 4), np.float32), (8, 8), r"came float32 \(2, 3, 4, 4\)"),
        (np.zeros((1, 256, 2, 2), np.float32), (8, 8), "1 to 255 classes"),
        (np.zeros((1, 3, 0, 2), np.float32), (8, 8), "sizes of at least 1"),
        (good, (0, 8), "class map 0x8"),
    ):
        with pytest.raises(EngineError, match=message):
            way(logits, *size, align_corners=False)


def test_a_mapper_refuses_other_shapes() -> None:
    mapper = ClassMapper(3, 4, 4, 8, 8, align_corners=False)
    with pytest.raises(EngineError, match=r"expected logits \(1, 3, 4, 4\), came \(1, 3, 4, 5\)"):
        mapper.class_map(np.zeros((1, 3, 4, 5), np.float32))
    for out in (np.zeros((8, 9), np.uint8), np.zeros((8, 8), np.int32), np.zeros((8, 16), np.uint8)[:, ::2]):
        with pytest.raises(EngineError, match=r"expected out uint8 \(8, 8\)"):
            mapper.class_map(np.zeros((1, 3, 4, 4), np.float32), out=out)


@pytest.mark.parametrize(("logits", "pixels"), [(1, 1), (1, 9), (7, 1), (7, 7), (7, 28), (7, 21), (128, 1023), (9, 4)])
@pytest.mark.parametrize("align_corners", [False, True])
def test_axes(logits: int, pixels: int, align_corners: bool) -> None:
    axis = interpolation_axis(logits, pixels, align_corners=align_corners)
    place = axis.before[axis.cell] * axis.weight_before.astype(float) + axis.after[axis.cell] * axis.weight_after
    if align_corners:
        expected = np.linspace(0, logits - 1, pixels)
    else:
        expected = np.clip((np.arange(pixels) + 0.5) * logits / pixels - 0.5, 0, logits - 1)

    np.testing.assert_allclose(place, expected, rtol=0, atol=1e-7 * logits)
    assert (axis.start[0], axis.start[-1]) == (0, pixels)
    for cell in range(logits + 1):
        assert (axis.cell[axis.start[cell] : axis.start[cell + 1]] == cell).all()


@pytest.fixture(scope="module")
def network_logits() -> list[tuple[np.ndarray, np.ndarray]]:
    """Logits and class maps of a network with its own upsampling: trained, of CamVid, or fresh, of drawn scenes."""
    from brd_edge.data.scenes import draw_scene
    from brd_edge.models.segmentation import ModelSpec, build_model, load_model
    from brd_edge.runtime.frames import read_image

    files = sorted(file for file in (CAMVID / "val").glob("*") if file.suffix in (".jpg", ".png"))[::51]
    if files and (RUN / "distill/model").is_dir():
        model: Any = load_model(RUN / "distill/model")[0]
        frames = [read_image(file)[:352:2, ::2] for file in files]
    else:
        spec = ModelSpec("DeepLabV3Plus", "tu-mobilenetv3_small_050", classes=11, options={"decoder_channels": 32})
        model = build_model(spec, encoder_weights=None, seed=0).eval()
        frames = [draw_scene(seed, 176, 240)[0] for seed in range(2)]
    mean, std = torch.tensor((0.485, 0.456, 0.406)), torch.tensor((0.229, 0.224, 0.225))
    found = []
    for frame in frames:
        image = ((torch.from_numpy(frame.copy()) / 255 - mean) / std).permute(2, 0, 1)[None]
        with torch.inference_mode():
            coarse = model.segmentation_head[0](model.decoder(model.encoder(image)))
            found.append((coarse.numpy(), model(image).argmax(1)[0].numpy()))
    return found


def test_logits_of_a_network(exact: Exact, network_logits: list[tuple[np.ndarray, np.ndarray]]) -> None:
    for logits, theirs in network_logits:
        height, width = theirs.shape
        assert logits.shape[2:] == (height // 4, width // 4)
        exact(logits, height, width)
        exact(logits, 360, 480)
        # its head upsamples with align_corners=True
        found = class_map_from_logits(logits, height, width, align_corners=True)
        assert np.mean(found == theirs) > 0.9999
        _differs_only_at_ties(found, logits, align_corners=True)


def test_importing_it_needs_numpy_only() -> None:
    code = (
        "import sys; import brd_edge.runtime.class_map; heavy = {'torch', 'numba', 'scipy', 'PIL', 'onnxruntime'}; "
        "print(*sorted(heavy & {name.split('.')[0] for name in sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == ""
