"""Turning any data set into the canonical form that `brd_edge.data.dataset` reads.

Labels become PNGs of train ids; images stay where they are unless they are not plain 8-bit RGB. A
journal beside the index remembers what is done, so an interrupted preparation goes on where it was.
"""

from __future__ import annotations

import hashlib
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import (
    BrokenExecutor,
    Executor,
    Future,
    ProcessPoolExecutor,
    ThreadPoolExecutor,
    as_completed,
)
from contextlib import contextmanager
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import Any

from PIL import Image

from brd_edge.data._images import check_image, encode_png
from brd_edge.data._journal import Converted, open_journal, read_journal
from brd_edge.data.dataset import INDEX_NAME, Dataset, Sample, hold_out_split, save_index
from brd_edge.data.layouts.base import Content, Layout, Source, find_base, find_layout_problem
from brd_edge.runtime.errors import DataError
from brd_edge.runtime.files import sha256_file, write_bytes_atomic

__all__ = ["JOURNAL_NAME", "prepare", "prepare_scenes"]

JOURNAL_NAME = "journal.jsonl"

# raise it when the same source would be converted differently
_JOURNAL_VERSION = 1
_SHOWN_PROBLEMS = 50
_SCENES_PER_SEED = 1_000_000
_SCENE_WORKERS = 2
_FEW_SCENES = 8

# writing atomically reads the umask by setting it, and the umask belongs to the whole process
_WRITING = threading.Lock()


def prepare(
    layout: Layout,
    root: Path,
    out: Path,
    *,
    workers: int,
    hold_out: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Dataset:
    """Convert the data set under `root` into canonical form under `out`.

    Writes `out/labels/SPLIT/ID.png` (train ids, 255 ignored), `out/images/SPLIT/ID.png` for images that
    are not 8-bit RGB JPEG or PNG or that carry a rotation, and at the end `out/index.json`. Samples whose
    source files are unchanged since an earlier, even interrupted, preparation are not converted again.

    Args:
        layout: How the data set lies on the disk, from `LAYOUTS`.
        root: The data set's directory; nothing in it is changed.
        out: Directory to write, which must be another one than the data set's.
        workers: Threads that read and convert, at least 1.
        hold_out: Pattern of the train ids that become the validation split, as in `hold_out_split`;
            the data set's own validation split is used when not given.
        progress: Called in this thread with the number of samples done and the number of all.

    Returns:
        The prepared data set, as `load_dataset(out)` reads it.

    Raises:
        DataError: The directory is not laid out as expected; or files are missing, unreadable, of different
            sizes or hold unknown ids, or a split is empty, also after holding out. One error lists all of
            them; no index is written.

    Example:
        >>> prepare(LAYOUTS["camvid"], Path("CamVid"), Path("runs/camvid/prepare"), workers=2)
    """
    out = out.absolute()
    content = _scan(layout, root, out)
    try:
        # without an index nobody takes a half-finished directory for a prepared one
        out.mkdir(parents=True, exist_ok=True)
        (out / INDEX_NAME).unlink(missing_ok=True)
        done, problems = _convert_all(content, out, _journal_header(layout, content), workers, progress)
    except OSError as error:
        raise DataError(f"{layout.title}: cannot read {root} or write {out} ({error})") from error
    problems = [*content.problems, *_find_split_problems(content), *problems]
    if problems:
        raise DataError(_describe(layout, root, problems))
    samples = {
        split: tuple(_as_sample(source, done[f"{split}/{source.id}"], out) for source in sources)
        for split, sources in content.splits.items()
    }
    dataset = Dataset(layout.name, content.classes, content.palette, samples["train"], samples["val"])
    if hold_out is not None:
        dataset = hold_out_split(dataset, hold_out)
    checksums = {out / item.image: item.image_sha256 for item in done.values()}
    checksums |= {out / item.label: item.label_sha256 for item in done.values()}
    save_index(out, dataset, checksums=checksums)
    return dataset


def prepare_scenes(
    out: Path,
    *,
    train: int,
    val: int,
    height: int,
    width: int,
    seed: int,
    progress: Callable[[int, int], None] | None = None,
) -> Dataset:
    """Draw a data set of street scenes in canonical form under `out`.

    Equal arguments give equal files. No scene of the validation split shares its seed with one of the
    training split, and different values of `seed` share no scene.

    Args:
        out: Directory to write.
        train: Scenes to train on, at least 1.
        val: Scenes to validate on, at least 1.
        height: Rows of each scene, in pixels.
        width: Columns of each scene, in pixels.
        seed: Which scenes, 0 or above.
        progress: Called in this thread with the number of scenes done and the number of all.

    Returns:
        The data set, as `load_dataset(out)` reads it.

    Raises:
        DataError: A count or the seed is out of its range.
    """
    from brd_edge.data.scenes import CLASSES, PALETTE

    limit = _SCENES_PER_SEED // 2
    if seed < 0 or not (1 <= train <= limit and 1 <= val <= limit):
        raise DataError(
            f"scenes: expected seed >= 0 and 1 to {limit} scenes a split, got seed={seed}, train={train}, val={val}"
        )
    out = out.absolute()
    (out / INDEX_NAME).unlink(missing_ok=True)
    first = seed * _SCENES_PER_SEED
    seeds = {"train": range(first, first + train), "val": range(first + limit, first + limit + val)}
    jobs = [
        (number, out, f"{split}/{i:06d}", height, width)
        for split, numbers in seeds.items()
        for i, number in enumerate(numbers)
    ]
    try:
        with _closing(_open_scene_pool(len(jobs))) as pool:
            futures = [pool.submit(_draw, *job) for job in jobs]
            _drain(futures, Future.result, progress)
            drawn = [future.result() for future in futures]
    except BrokenExecutor as error:
        raise DataError(
            "scenes: a drawing process ended early: out of memory, or the calling script does its work outside "
            f"`if __name__ == '__main__':` ({error})"
        ) from error
    dataset = Dataset("scenes", tuple(CLASSES), tuple(PALETTE), tuple(drawn[:train]), tuple(drawn[train:]))
    save_index(out, dataset)
    return dataset


def _open_scene_pool(scenes: int) -> Executor:
    """Drawing is mostly Python, so threads do not speed it up; a few scenes are not worth a process."""
    if scenes < _FEW_SCENES:
        return ThreadPoolExecutor(1)
    return ProcessPoolExecutor(_SCENE_WORKERS, mp_context=get_context("spawn"), initializer=_follow_parent)


def _follow_parent() -> None:
    """Leave Ctrl-C to the parent, and end with it even when it is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = parent_process()

    def end() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=end, daemon=True).start()


def _draw(seed: int, out: Path, key: str, height: int, width: int) -> Sample:
    from brd_edge.data.scenes import draw_scene

    image, label = draw_scene(seed, height, width)
    sample = Sample(Path(key).name, out / "images" / f"{key}.png", out / "labels" / f"{key}.png", height, width)
    _write(sample.image, encode_png(Image.fromarray(image)))
    _write(sample.label, encode_png(Image.fromarray(label)))
    return sample


def _scan(layout: Layout, root: Path, out: Path) -> Content:
    """Read what lies under `root`, after checking that it is the layout's and not the output itself."""
    problem = find_layout_problem(layout, root)
    base = find_base(layout, root)
    if problem is not None or base is None:
        raise DataError(problem or f"{root}: not laid out as {layout.title}")
    if out.resolve() in {root.resolve(), base.resolve()}:
        raise DataError(f"{out}: the data set itself lies here; choose another directory to write to")
    try:
        return layout.scan(base.resolve())
    except OSError as error:
        raise DataError(f"{layout.title}: {root} cannot be read ({error})") from error


def _convert_all(
    content: Content,
    out: Path,
    header: Mapping[str, Any],
    workers: int,
    progress: Callable[[int, int], None] | None,
) -> tuple[dict[str, Converted], list[str]]:
    """Convert every sample; return the finished ones by `SPLIT/ID` and what is wrong with the others."""
    jobs = {f"{split}/{source.id}": source for split, sources in content.splits.items() for source in sources}
    journal = out / JOURNAL_NAME
    known = {key: item for key, item in read_journal(journal, header).items() if key in jobs}
    done: dict[str, Converted] = {}
    reasons: dict[str, list[str]] = {}
    with open_journal(journal, header, known) as note, _closing(ThreadPoolExecutor(max(1, workers))) as pool:
        keys = {pool.submit(_convert, key, source, known.get(key), content, out): key for key, source in jobs.items()}

        def collect(future: Future[Converted | list[str]]) -> None:
            key, result = keys[future], future.result()
            if isinstance(result, list):
                reasons[key] = result
                return
            done[key] = result
            if result != known.get(key):
                note(key, result)

        _drain(keys, collect, progress)
    return done, [reason for key in jobs for reason in reasons.get(key, ())]


def _convert(key: str, source: Source, earlier: Converted | None, content: Content, out: Path) -> Converted | list[str]:
    """Convert one sample, unless that was done earlier; return what is wrong when it cannot be used."""
    reasons = _find_missing(source)
    if reasons:
        return reasons
    state = _state(source)
    if earlier is not None and earlier.state == state and _is_intact(earlier, out):
        return earlier
    image = _attempt(reasons, lambda: check_image(source.image))
    label = _attempt(reasons, lambda: content.read_label(source.label))
    if image is None or label is None:
        return reasons
    width, height, png = image
    if label.shape != (height, width):
        found = "x".join(str(size) for size in label.shape[::-1])
        return [f"{source.label}: {found} pixels, but its image {source.image.name} has {width}x{height}"]
    label_path, image_path = f"labels/{key}.png", f"images/{key}.png"
    label_sha256 = _write(out / label_path, encode_png(Image.fromarray(label)))
    if png is None:
        image_path, image_sha256 = str(source.image), sha256_file(source.image)
    else:
        image_sha256 = _write(out / image_path, png)
    return Converted(image_path, label_path, height, width, image_sha256, label_sha256, state)


def _find_missing(source: Source) -> list[str]:
    halves = (("image", source.image, "label", source.label), ("label", source.label, "image", source.image))
    return [
        f"{path}: this {what} is missing; its {other} is {'there' if partner.is_file() else 'missing as well'}"
        for what, path, other, partner in halves
        if not path.is_file()
    ]


def _attempt(reasons: list[str], read: Callable[[], Any]) -> Any:
    """Return what `read` returns; on `DataError` note the reason and return None."""
    try:
        return read()
    except DataError as error:
        reasons.append(str(error))
        return None


def _state(source: Source) -> tuple[str | int, ...]:
    """Path, size and modification time of both files."""
    image, label = source.image.stat(), source.label.stat()
    return (str(source.image), image.st_size, image.st_mtime_ns, str(source.label), label.st_size, label.st_mtime_ns)


def _is_intact(item: Converted, out: Path) -> bool:
    """Say whether what was written for an unchanged source is still there, byte for byte."""
    files = {out / item.label: item.label_sha256}
    if not Path(item.image).is_absolute():
        files[out / item.image] = item.image_sha256
    return all(path.is_file() and sha256_file(path) == digest for path, digest in files.items())


def _write(path: Path, content: bytes) -> str:
    """Write atomically and return the SHA-256 of the content."""
    with _WRITING:
        write_bytes_atomic(path, content)
    return hashlib.sha256(content).hexdigest()


def _as_sample(source: Source, item: Converted, out: Path) -> Sample:
    return Sample(source.id, out / item.image, out / item.label, item.height, item.width)


def _find_split_problems(content: Content) -> list[str]:
    """Find empty splits, ids that come twice, and images that both train and validate."""
    problems = []
    for split, sources in content.splits.items():
        if not sources:
            problems.append(f"split {split!r} is empty: expected at least one image with its label")
        seen: set[str] = set()
        for source in sources:
            if source.id in seen:
                problems.append(f"{source.image}: listed twice in split {split!r}; list it once")
            seen.add(source.id)
    trained = {source.image for source in content.splits["train"]}
    problems += [
        f"{source.image}: in both splits, train and val; take it out of one"
        for source in content.splits["val"]
        if source.image in trained
    ]
    return problems


def _describe(layout: Layout, root: Path, problems: list[str]) -> str:
    shown = [f"  - {problem}" for problem in problems[:_SHOWN_PROBLEMS]]
    more = len(problems) - _SHOWN_PROBLEMS
    tail = [f"  ... and {more} more"] if more > 0 else []
    noun = "problem" if len(problems) == 1 else "problems"
    head = f"{layout.title}: {root} cannot be used, {len(problems)} {noun}; mend them and prepare again:"
    return "\n".join([head, *shown, *tail])


def _journal_header(layout: Layout, content: Content) -> dict[str, Any]:
    """What a journal must have been written for to be of use."""
    return {
        "version": _JOURNAL_VERSION,
        "layout": layout.name,
        "classes": list(content.classes),
        "fingerprint": content.fingerprint,
    }


@contextmanager
def _closing(pool: Executor) -> Iterator[Executor]:
    """Close the pool at the end; when interrupted, drop what it has not begun."""
    try:
        yield pool
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _drain(
    futures: Iterable[Future[Any]],
    collect: Callable[[Future[Any]], None],
    progress: Callable[[int, int], None] | None,
) -> None:
    """Collect every future as it ends, and report how far it is."""
    pending = list(futures)
    for i, future in enumerate(as_completed(pending)):
        collect(future)
        if progress is not None:
            progress(i + 1, len(pending))
