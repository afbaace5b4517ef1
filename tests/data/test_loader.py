from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image, ImageEnhance
from scipy import ndimage, stats

from brd_edge.data.dataset import Sample, read_frame
from brd_edge.data.loader import Batch, TrainLoader, open_train_loader
from brd_edge.data.plan import Augmentation, Draw, Plan
from brd_edge.distill.jitter import jitter_colours
from brd_edge.evaluate.accuracy import evaluate_predictor
from brd_edge.runtime.contract import InputContract
from brd_edge.runtime.errors import DataError, RuntimeMissingError
from brd_edge.runtime.metrics import SegmentationMetrics

BACKENDS = ("dali", "torch")
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CONTRACT = InputContract(height=48, width=64, mean=MEAN, std=STD)
PLAIN = Augmentation(crop=(48, 64), scale=(1.0, 1.0), flip=0.0, brightness=0.0, contrast=0.0, saturation=0.0)
GEOMETRY = replace(PLAIN, crop=(40, 56), scale=(0.5, 2.0), flip=0.5)
FULL = replace(GEOMETRY, brightness=0.3, contrast=0.3, saturation=0.3)
# native sizes above, at and below the contract's, with ratios that are not simple fractions
SIZES = ((75, 101), (48, 64), (31, 40), (96, 128), (67, 53))
COLOURS = np.random.default_rng(7).integers(0, 256, (256, 3), dtype=np.uint8)

Opener = Callable[..., TrainLoader]


def write_sample(
    directory: Path, name: str, image: npt.NDArray[Any], label: npt.NDArray[Any], **options: Any
) -> Sample:
    paths = directory / f"{name}.{options.pop('suffix', 'png')}", directory / f"{name}_label.png"
    Image.fromarray(image).save(paths[0], **options)
    Image.fromarray(label).save(paths[1])
    return Sample(id=name, image=paths[0], label=paths[1], height=label.shape[0], width=label.shape[1], classes=())


def make_samples(
    directory: Path, count: int, *, suffix: str = "png", ids: tuple[int, ...] = (0, 3, 7, 18, 255)
) -> list[Sample]:
    """Random blobs: noise images, and labels of a few ids."""
    samples = []
    for i in range(count):
        generator = np.random.default_rng(i)
        height, width = SIZES[i % len(SIZES)]
        image = generator.integers(0, 256, (height, width, 3), dtype=np.uint8)
        label = np.array(ids, dtype=np.uint8)[generator.integers(0, len(ids), (height, width))]
        samples.append(write_sample(directory, f"s{i}", image, label, suffix=suffix))
    return samples


@pytest.fixture
def opener() -> Iterator[Opener]:
    """Open loaders that are closed after the test."""
    opened: list[TrainLoader] = []

    def open_(samples: list[Sample], backend: Any, augmentation: Augmentation = FULL, **options: Any) -> TrainLoader:
        settings: dict[str, Any] = {"contract": CONTRACT, "batch_size": 3, "seed": 5, "threads": 2, **options}
        opened.append(open_train_loader(samples, augmentation=augmentation, backend=backend, **settings))
        return opened[-1]

    yield open_
    for loader in opened:
        loader.close()


def levels(images: torch.Tensor) -> npt.NDArray[np.float64]:
    """Undo the normalisation: (N, h, w, 3) on the scale 0 to 255, in float64."""
    return (images.permute(0, 2, 3, 1).double().numpy() * STD + MEAN) * 255


def cut(plan: Plan, batch: int, mask: Callable[[Draw], npt.NDArray[np.bool_]]) -> npt.NDArray[np.bool_]:
    """Cut each sample's mask, made at the scaled image's size, as the loader cuts its pixels: (N, h, w)."""
    masks = np.zeros((plan.batch_size, *plan.augmentation.crop), dtype=bool)
    for out, draw in zip(masks, plan.draws(batch), strict=True):
        (top, left), (rows, cols), (down, right) = draw.origin, draw.size, draw.offset
        window = mask(draw)[top : top + rows, left : left + cols]
        out[down : down + rows, right : right + cols] = window[:, ::-1] if draw.flip else window
    return masks


def inside(draw: Draw) -> npt.NDArray[np.bool_]:
    """All but the outermost ring of the scaled image, where DALI repeats the edge and Pillow ends the filter."""
    full = np.zeros(draw.scaled, dtype=bool)
    full[1:-1, 1:-1] = True
    return full


def ties(samples: list[Sample], draw: Draw) -> npt.NDArray[np.bool_]:
    """Where two label pixels are equally near: whole numbers and DALI's float32 may choose differently there alone."""
    native = samples[draw.index].height, samples[draw.index].width
    rows, cols = ((2 * np.arange(s) + 1) * n % (2 * s) == 0 for s, n in zip(draw.scaled, native, strict=True))
    return rows[:, None] | cols


def assert_equal(a: Batch, b: Batch) -> None:
    assert a.indices == b.indices
    assert torch.equal(a.images, b.images)
    assert torch.equal(a.labels, b.labels)


@pytest.mark.parametrize("backend", BACKENDS)
def test_without_augmentation_the_images_are_the_contracts_frames(tmp_path: Path, opener: Opener, backend: str) -> None:
    samples = make_samples(tmp_path, 6)
    batch = opener(samples, backend, PLAIN).next_batch()
    assert batch.images.shape == (3, 3, 48, 64) and batch.images.dtype == torch.float32 and batch.images.is_contiguous()
    assert batch.labels.shape == (3, 48, 64) and batch.labels.dtype == torch.int64
    for image, label, index in zip(levels(batch.images), batch.labels, batch.indices, strict=True):
        frame = read_frame(samples[index], CONTRACT)
        if backend == "dali":
            # Pillow rounds between its two passes and DALI does not: one level at most, off the edge
            assert np.abs(image - frame)[1:-1, 1:-1].max() < 1.001
        else:
            assert np.abs(image - frame).max() < 0.001
        with Image.open(samples[index].label) as opened:
            nearest = np.asarray(opened.resize((64, 48), Image.Resampling.NEAREST))
        assert np.array_equal(label.numpy(), nearest)


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_label_value_is_kept(tmp_path: Path, opener: Opener, backend: str) -> None:
    label = np.random.default_rng(0).permutation(np.arange(48 * 64) % 256).astype(np.uint8).reshape(48, 64)
    sample = write_sample(tmp_path, "all", np.zeros((48, 64, 3), np.uint8), label)
    batch = opener([sample], backend, PLAIN, batch_size=1).next_batch()
    assert np.array_equal(batch.labels[0].numpy(), label)


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_backends_cut_the_same_pixels(tmp_path: Path, opener: Opener, suffix: str) -> None:
    samples = make_samples(tmp_path, 10, suffix=suffix)
    dali, reference = (opener(samples, backend, GEOMETRY) for backend in BACKENDS)
    plan = Plan(tuple(samples), CONTRACT, GEOMETRY, 3, 5, "dali")
    inner, edge = [], []
    for i in range(8):
        a, b, mask = dali.next_batch(), reference.next_batch(), cut(plan, i, inside)
        assert a.indices == b.indices
        difference = np.abs(levels(a.images) - levels(b.images))
        inner.append(difference[mask])
        edge.append(difference[~mask])
        assert not ((a.labels != b.labels).numpy() & ~cut(plan, i, partial(ties, samples))).any()
    # Pillow rounds to 8 bits after each of its two passes, DALI once: the results round apart by one level at most,
    # with a probability of at most the mean of |e|, e uniform in +-0.5, so 0.25. Both decode JPEG by libjpeg-turbo.
    assert np.concatenate(inner).max() < 1.001
    assert np.concatenate(inner).mean() < 0.25
    # an eighth of a triangle filter's mass can lie beyond one edge; in a corner twice that
    assert np.concatenate(edge).max() < 2 * 255 / 8 + 1


def test_backends_jitter_the_same_way(tmp_path: Path, opener: Opener) -> None:
    samples = make_samples(tmp_path, 6)
    dali, reference = (opener(samples, backend, FULL) for backend in BACKENDS)
    plan = Plan(tuple(samples), CONTRACT, FULL, 3, 5, "dali")
    found = np.concatenate(
        [
            np.abs(levels(dali.next_batch().images) - levels(reference.next_batch().images))[cut(plan, i, inside)]
            for i in range(8)
        ]
    )
    # the resize's one level (0.25 in the mean) times the largest gain: saturation s gains s + 2 (s - 1) (1 - w) where
    # the channels err apart, w = 0.114 the least weight in the luma
    gain = 1.3 * 1.3 * (1.3 + 2 * 0.3 * (1 - 0.114))
    assert found.max() < gain + 0.001
    assert found.mean() < 0.25 * gain


@pytest.mark.skipif(not torch.cuda.is_available(), reason="loading on a GPU needs a CUDA GPU, there is none here")
def test_the_gpu_loads_what_the_cpu_loads(tmp_path: Path, opener: Opener) -> None:
    pytest.importorskip("nvidia.dali", reason="nvidia-dali, which loads on a GPU, is not installed")
    samples = make_samples(tmp_path, 6)
    there, here = (opener(samples, "dali", FULL, gpu=gpu) for gpu in (0, None))
    for _ in range(8):
        a, b = there.next_batch(), here.next_batch()
        assert a.images.is_cuda
        assert torch.equal(a.labels.cpu(), b.labels.cpu())
        # both round to 8 bits after resizing, which jitter enlarges, and once more after it
        difference = np.abs(levels(a.images.cpu()) - levels(b.images))
        assert difference.max() < 1.3 * 1.3 * (1.3 + 2 * 0.3 * (1 - 0.114)) + 1.001
        assert difference.mean() < 0.25


def with_pillow(kind: str, frame: Image.Image, factor: float) -> Image.Image:
    if kind == "brightness":
        return ImageEnhance.Brightness(frame).enhance(factor)
    if kind == "saturation":
        return ImageEnhance.Color(frame).enhance(factor)
    if kind == "gamma":
        return frame.point([round(255 * (level / 255) ** factor) for level in range(256)] * 3)
    return Image.blend(Image.new("RGB", frame.size, (128, 128, 128)), frame, factor)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", ["brightness", "contrast", "saturation", "gamma"])
def test_jitter_is_that_of_pillow(tmp_path: Path, opener: Opener, backend: str, kind: str) -> None:
    samples = [sample for sample in make_samples(tmp_path, 10) if (sample.height, sample.width) == (48, 64)]
    augmentation = replace(PLAIN, **{kind: 0.5})
    plan = Plan(tuple(samples), CONTRACT, augmentation, 2, 5, backend)
    batch = opener(samples, backend, augmentation, batch_size=2).next_batch()
    for draw, image in zip(plan.draws(0), levels(batch.images), strict=True):
        frame = Image.fromarray(read_frame(samples[draw.index], CONTRACT))
        factor = draw.jitter[("brightness", "contrast", "saturation", "gamma").index(kind)]
        assert abs(factor - 1) > 0.01
        expected = np.asarray(with_pillow(kind, frame, factor))
        # Pillow cuts the fraction off and rounds its grey first: each at most one level
        assert np.abs(image - expected).max() < 2.001
        assert np.abs(image - expected).mean() < 0.8


@pytest.mark.parametrize("gamma", [0.0, 1.0])
@pytest.mark.parametrize("backend", BACKENDS)
def test_jitter_that_is_left_for_later_is_the_loaders(
    tmp_path: Path, opener: Opener, backend: str, gamma: float
) -> None:
    samples = make_samples(tmp_path, 6)
    augmentation = replace(FULL, gamma=gamma)
    now, later = (opener(samples, backend, replace(augmentation, jitter_later=is_later)) for is_later in (False, True))
    for _ in range(4):
        jittered, plain = now.next_batch(), later.next_batch()
        assert jittered.jitter is None
        assert plain.jitter is not None
        found = jitter_colours(plain.images, plain.jitter, mean=MEAN, std=STD)

        assert plain.indices == jittered.indices
        assert not torch.equal(plain.images, jittered.images)
        # the padding included; DALI computes saturation in another space, a quarter of a level of 8 bits off at most.
        # Near black a root enlarges what was rounded: of 1e-7 it is 3e-4
        tolerance = (1e-3 if gamma else 1e-5) if backend == "torch" else 0.25 / 255 / min(STD)
        torch.testing.assert_close(found, jittered.images, rtol=0.0, atol=tolerance)


@pytest.mark.parametrize("backend", BACKENDS)
def test_image_and_label_stay_aligned_and_padding_is_neutral(tmp_path: Path, opener: Opener, backend: str) -> None:
    samples = []
    for i, (height, width) in enumerate(SIZES):
        rows, cols = np.arange(height) * 6 // height, np.arange(width) * 8 // width
        label = np.random.default_rng(i).integers(0, 20, (6, 8), dtype=np.uint8)[np.ix_(rows, cols)]
        samples.append(write_sample(tmp_path, f"a{i}", COLOURS[label], label))
    loader = opener(samples, backend, GEOMETRY, batch_size=5)
    padded = checked = 0
    for _ in range(6):
        batch = loader.next_batch()
        for image, normalised, label in zip(levels(batch.images), batch.images, batch.labels.numpy(), strict=True):
            assert set(np.unique(label)) <= {*range(20), 255}
            outside = label == 255
            assert (normalised.numpy()[:, outside] == 0).all()
            # away from transitions, and from the crop's edge that may hide one, the filter sees one colour
            low, high = (
                rank(label, 9, mode="constant", cval=fill)
                for rank, fill in ((ndimage.minimum_filter, 0), (ndimage.maximum_filter, 255))
            )
            inner = low == high
            inner &= ~outside
            assert np.abs(image[inner] - COLOURS[label[inner]]).max(initial=0) < 1.001
            padded, checked = padded + int(outside.sum()), checked + int(inner.sum())
            rows, cols = np.flatnonzero((~outside).any(1)), np.flatnonzero((~outside).any(0))
            assert not outside[rows[0] : rows[-1] + 1, cols[0] : cols[-1] + 1].any()
    assert padded > 1000
    assert checked > 5000


@pytest.mark.parametrize("backend", BACKENDS)
def test_flip_mirrors_image_and_label(tmp_path: Path, opener: Opener, backend: str) -> None:
    samples = make_samples(tmp_path, 3)
    augmentation = replace(PLAIN, crop=(30, 41), scale=(0.8, 1.7))
    straight, mirrored = (opener(samples, backend, replace(augmentation, flip=p)) for p in (0.0, 1.0))
    plan = Plan(tuple(samples), CONTRACT, augmentation, 3, 5, backend)
    for i in range(3):
        a, b = straight.next_batch(), mirrored.next_batch()
        assert np.abs(levels(a.images) - levels(b.images.flip(-1))).max() < 1.001
        assert not ((a.labels != b.labels.flip(-1)).numpy() & ~cut(plan, i, partial(ties, samples))).any()
        assert (a.labels != b.labels).double().mean() > 0.5


def test_draws_fill_their_ranges() -> None:
    samples = tuple(Sample(f"{i}", Path("i"), Path("l"), 48, 64, ()) for i in range(100))
    plan = Plan(samples, CONTRACT, GEOMETRY, 10, 0, "torch")
    draws = [draw for batch in range(100) for draw in plan.draws(batch)]
    heights, widths = np.array([draw.scaled for draw in draws]).T
    assert (heights.min(), heights.max(), widths.min(), widths.max()) == (24, 96, 32, 128)
    # 1,000 coin flips: 500 +- 5 standard deviations
    assert abs(sum(draw.flip for draw in draws) - 500) < 80
    assert abs(heights.mean() - 60) < 3.3
    for draw in draws:
        for scaled, crop, origin, size, offset in zip(
            draw.scaled, (40, 56), draw.origin, draw.size, draw.offset, strict=True
        ):
            assert size == min(scaled, crop)
            assert 0 <= origin <= scaled - size
            assert 0 <= offset <= crop - size
    for axis, low in ((0, 0), (1, 0)):
        spare = [draw.scaled[axis] - draw.size[axis] - draw.origin[axis] for draw in draws if draw.origin[axis] == low]
        assert any(value > 0 for value in spare)
    assert all(draw.jitter == (1, 1, 1, 1) for draw in draws)


def test_the_gamma_darkens_as_often_as_it_brightens_and_leaves_the_other_draws() -> None:
    samples = tuple(Sample(f"{i}", Path("i"), Path("l"), 48, 64, ()) for i in range(100))
    plans = [Plan(samples, CONTRACT, replace(FULL, gamma=x), 10, 0, "torch") for x in (0.0, 2.0)]
    without, drawn = ([draw for batch in range(100) for draw in plan.draws(batch)] for plan in plans)
    assert [replace(draw, jitter=(*draw.jitter[:3], 1.0)) for draw in drawn] == without
    exponents = np.array([draw.jitter[3] for draw in drawn])
    # uniform logarithms, 1,000 of them: as evenly spread as the Kolmogorov-Smirnov test of 0.1 % asks
    assert stats.kstest(np.log(exponents), stats.uniform(-np.log(3), 2 * np.log(3)).cdf).pvalue > 0.001


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_epoch_is_a_new_permutation(tmp_path: Path, opener: Opener, backend: str) -> None:
    samples = make_samples(tmp_path, 6)
    loader = opener(samples, backend, replace(PLAIN, crop=(8, 8)), batch_size=2)
    assert loader.steps_per_epoch == 3
    epochs = [tuple(i for _ in range(3) for i in loader.next_batch().indices) for _ in range(4)]
    assert all(sorted(epoch) == list(range(6)) for epoch in epochs)
    assert len(set(epochs)) == 4


def test_the_incomplete_last_batch_is_dropped(tmp_path: Path, opener: Opener) -> None:
    loader = opener(make_samples(tmp_path, 8), "dali", replace(PLAIN, crop=(8, 8)))
    assert loader.steps_per_epoch == 2
    epochs = [{i for _ in range(2) for i in loader.next_batch().indices} for _ in range(8)]
    assert all(len(epoch) == 6 for epoch in epochs)
    assert set.union(*epochs) == set(range(8))


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_stream_follows_from_the_seed_alone(tmp_path: Path, opener: Opener, backend: str) -> None:
    samples = make_samples(tmp_path, 6)
    one, two, other = (opener(samples, backend, seed=s, threads=t) for s, t in ((5, 1), (5, 2), (6, 2)))
    for _ in range(3):
        first = one.next_batch()
        assert_equal(first, two.next_batch())
        assert not torch.equal(first.images, other.next_batch().images)


@pytest.mark.parametrize("backend", BACKENDS)
def test_resume_is_exact_at_every_position(tmp_path: Path, opener: Opener, backend: str) -> None:
    samples = make_samples(tmp_path, 7)
    loader = opener(samples, backend)
    states, batches = [loader.state()], []
    for _ in range(9):
        batches.append(loader.next_batch())
        states.append(loader.state())
    # two steps an epoch: the start, mid-epoch, an epoch's end, and after several epochs
    for position in (0, 1, 2, 5, 6):
        resumed = opener(samples, backend)
        resumed.restore(states[position])
        assert resumed.state() == states[position]
        for expected in batches[position : position + 3]:
            assert_equal(resumed.next_batch(), expected)
    loader.restore(states[3])
    assert_equal(loader.next_batch(), batches[3])


RESUME_SCRIPT = """
import hashlib, sys
from pathlib import Path
from brd_edge.data.dataset import Sample
from brd_edge.data.loader import open_train_loader
from brd_edge.data.plan import Augmentation
from brd_edge.runtime.contract import InputContract

samples = [eval(line, {"Sample": Sample, "PosixPath": Path}) for line in Path("samples.txt").read_text().splitlines()]
contract = eval(Path("contract.txt").read_text(), {"InputContract": InputContract})
augmentation = eval(Path("augmentation.txt").read_text(), {"Augmentation": Augmentation})
for backend in ("dali", "torch"):
    loader = open_train_loader(samples, contract=contract, augmentation=augmentation, batch_size=3, seed=5,
                               backend=backend, threads=1)
    loader.restore(Path(f"{backend}.state").read_bytes())
    for _ in range(3):
        batch = loader.next_batch()
        print(hashlib.sha256(batch.images.numpy().tobytes() + batch.labels.numpy().tobytes()).hexdigest())
    loader.close()
"""


def test_resume_in_a_new_process(tmp_path: Path, opener: Opener) -> None:
    samples = make_samples(tmp_path, 7)
    expected = []
    for backend in BACKENDS:
        loader = opener(samples, backend)
        for _ in range(3):
            loader.next_batch()
        (tmp_path / f"{backend}.state").write_bytes(loader.state())
        for _ in range(3):
            batch = loader.next_batch()
            content = batch.images.numpy().tobytes() + batch.labels.numpy().tobytes()
            expected.append(hashlib.sha256(content).hexdigest())
    (tmp_path / "samples.txt").write_text("\n".join(map(repr, samples)))
    (tmp_path / "contract.txt").write_text(repr(CONTRACT))
    (tmp_path / "augmentation.txt").write_text(repr(FULL))
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    result = subprocess.run(
        [sys.executable, "-c", RESUME_SCRIPT],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == expected


def test_a_foreign_state_is_refused(tmp_path: Path, opener: Opener) -> None:
    samples = make_samples(tmp_path, 7)
    state = opener(samples, "dali").state()
    others = {
        "backend": opener(samples, "torch"),
        "seed": opener(samples, "dali", seed=6),
        "batch_size": opener(samples, "dali", batch_size=2),
        "samples": opener(samples[:-1], "dali"),
        "sample_ids": opener(samples[::-1], "dali"),
        "augmentation": opener(samples, "dali", GEOMETRY),
        "contract": opener(samples, "dali", contract=replace(CONTRACT, width=65)),
    }
    for name, loader in others.items():
        with pytest.raises(DataError, match=rf"other settings \(.*\b{name}: "):
            loader.restore(state)
    for damaged in (b"", b"\xff\xfe\x00", b"[]", b"{}", state[:-5], state.replace(b'"batches": 0', b'"batches": -1')):
        with pytest.raises(DataError, match="saved state"):
            opener(samples, "dali").restore(damaged)


def spoil(sample: Sample, how: str) -> Path:
    image, label = sample.image, sample.label
    if how == "garbage image":
        image.write_bytes(b"this is not an image")
    elif how == "truncated image":
        image.write_bytes(image.read_bytes()[: image.stat().st_size // 2])
    elif how == "missing image":
        image.unlink()
    elif how == "image of another size":
        Image.new("RGB", (20, 10)).save(image)
    else:
        image = label
    if how == "empty label":
        label.write_bytes(b"")
    elif how == "palette label":
        with Image.open(label) as opened:
            ids = np.asarray(opened)
        painted = Image.fromarray(ids).convert("P")
        painted.putpalette(COLOURS.tobytes())
        painted.save(label)
    elif how == "16-bit label":
        Image.fromarray(np.zeros((sample.height, sample.width), np.uint16)).save(label)
    return image


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "how",
    [
        "garbage image",
        "truncated image",
        "missing image",
        "image of another size",
        "empty label",
        "palette label",
        "16-bit label",
    ],
)
def test_a_bad_file_is_named(tmp_path: Path, opener: Opener, backend: str, how: str) -> None:
    samples = make_samples(tmp_path, 4)
    bad = spoil(samples[2], how)
    loader = opener(samples, backend, batch_size=2)
    with pytest.raises(DataError) as caught:
        for _ in range(2):
            loader.next_batch()
    lines = str(caught.value).splitlines()
    assert len(lines) == 1
    assert str(bad) in lines[0]
    position = loader.state()
    with pytest.raises(DataError, match=bad.name):
        loader.next_batch()
    assert loader.state() == position


def test_wrong_arguments_are_refused(tmp_path: Path, opener: Opener) -> None:
    samples = make_samples(tmp_path, 2)
    with pytest.raises(DataError, match="needs 3 samples and there are 2"):
        opener(samples, "torch")
    with pytest.raises(DataError, match="backend must be"):
        opener(samples, "cuda", batch_size=1)
    for name in ("batch_size", "threads"):
        with pytest.raises(DataError, match=f"{name} must be at least 1, got 0"):
            opener(samples, "torch", **{"batch_size": 1, name: 0})
    with pytest.raises(DataError, match="seed must be at least 0"):
        opener(samples, "torch", batch_size=1, seed=-1)
    wrong: dict[str, Any] = {"crop": (0, 4), "scale": (2.0, 1.0), "flip": 1.5, "contrast": -0.1}
    for name, value in wrong.items():
        with pytest.raises(DataError, match=f"augmentation: {name} must be"):
            replace(FULL, **{name: value})


def test_backend_selection(tmp_path: Path, opener: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
    samples = make_samples(tmp_path, 3)
    assert type(opener(samples, "auto")).__name__ == "DaliLoader"
    # None makes the import statement fail as it does where the package is not installed
    monkeypatch.setitem(sys.modules, "nvidia.dali", None)
    assert type(opener(samples, "auto")).__name__ == "TorchLoader"
    with pytest.raises(RuntimeMissingError, match=r'pip install "brd-edge\[train\]"'):
        opener(samples, "dali")


def threads() -> set[str]:
    return {task.name for task in Path("/proc/self/task").iterdir()}


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="lists threads in /proc, which only Linux has")
@pytest.mark.parametrize("backend", BACKENDS)
def test_close_ends_the_threads(tmp_path: Path, opener: Opener, backend: str) -> None:
    samples = make_samples(tmp_path, 3)
    warm = opener(samples, backend)
    warm.next_batch()  # the libraries start threads of their own at first use
    warm.close()
    before = threads()
    loader = opener(samples, backend)
    loader.next_batch()
    started = threads() - before
    assert started
    loader.close()
    loader.close()
    # the system may list a thread for a moment after it was joined
    deadline = time.monotonic() + 10
    while started & threads() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not started & threads()
    with pytest.raises(DataError, match="closed"):
        loader.next_batch()


@pytest.mark.parametrize("backend", BACKENDS)
def test_processes_share_every_batch(tmp_path: Path, opener: Opener, backend: str) -> None:
    """Together the processes see what one sees; a position saved by one process serves two."""
    samples = make_samples(tmp_path, 9)
    whole = opener(samples, backend, batch_size=4)
    parts = [opener(samples, backend, batch_size=4, rank=rank, world=2) for rank in (0, 1)]
    whole.next_batch()
    for part in parts:
        part.restore(whole.state())

    for _ in range(3):
        expected, found = whole.next_batch(), [part.next_batch() for part in parts]
        for rank, batch in enumerate(found):
            assert batch.indices == expected.indices[rank::2]
            assert torch.equal(batch.images, expected.images[rank::2])
            assert torch.equal(batch.labels, expected.labels[rank::2])

    with pytest.raises(DataError, match="batch_size 4 cannot be divided among 3 processes"):
        opener(samples, backend, batch_size=4, rank=0, world=3)


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_id_that_is_no_class_is_refused_with_its_file(tmp_path: Path, opener: Opener, backend: str) -> None:
    samples = make_samples(tmp_path, 3, ids=(0, 1, 2, 255))
    opener(samples, backend, PLAIN, classes=3).next_batch()
    with Image.open(samples[1].label) as opened:
        label = np.array(opened)
    label[10, 20] = 77
    Image.fromarray(label).save(samples[1].label)
    with pytest.raises(DataError, match=rf"{samples[1].label}: holds the id 77, expected ids below 3 or 255"):
        opener(samples, backend, PLAIN, classes=3).next_batch()
    metrics = SegmentationMetrics(3)
    with pytest.raises(DataError, match=rf"{samples[1].label}: holds the id 77"):
        evaluate_predictor(
            lambda frame: np.zeros(frame.shape[:2], np.uint8),
            samples,
            contract=CONTRACT,
            metrics=metrics,
            backend=cast("Any", backend),
        )


def test_what_is_kept_decoded_changes_nothing_and_is_limited(tmp_path: Path, opener: Opener) -> None:
    samples = make_samples(tmp_path, 5)
    # two of the five samples fit, or all, or none
    loaders = [opener(samples, "torch", kept_bytes_max=limit) for limit in (0, 70_000, 10**9)]

    for _ in range(4):
        fresh, *kept = [loader.next_batch() for loader in loaders]
        assert all(
            torch.equal(batch.images, fresh.images) and torch.equal(batch.labels, fresh.labels) for batch in kept
        )
    for sample in samples:
        sample.image.unlink()
    with pytest.raises(DataError, match="cannot be decoded"):
        for _ in range(4):
            loaders[1].next_batch()
    for _ in range(4):
        loaders[2].next_batch()
