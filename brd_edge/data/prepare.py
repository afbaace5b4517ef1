"""Turning any data set into the canonical form that `brd_edge.data.dataset` reads.

Labels become PNGs of train ids; images stay where they are unless they are not plain 8-bit RGB. A
journal beside the index remembers what is done, so an interrupted preparation goes on where it was.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import BrokenExecutor, Executor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from PIL import Image

from brd_edge.data._convert import Job, cannot_convert, convert, write_file
from brd_edge.data._images import encode_png
from brd_edge.data._journal import Converted, open_journal, read_journal
from brd_edge.data.dataset import Dataset, Sample, find_class_pixels, hold_out_split, require_hold_out
from brd_edge.data.findings import SKIPPED_NAME, Findings, describe_problems, find_repeated, save_skipped
from brd_edge.data.index import INDEX_NAME, save_index
from brd_edge.data.layouts.base import Content, Layout, Source, find_base, find_layout_problem
from brd_edge.data.workers import closing_pool, drain, open_processes, run_jobs
from brd_edge.runtime.errors import DataError

__all__ = ["JOURNAL_NAME", "prepare", "prepare_scenes"]

JOURNAL_NAME = "journal.jsonl"

# raise it when the journal itself is written otherwise
_JOURNAL_VERSION = 5
_SCENES_PER_SEED = 1_000_000
_SCENE_WORKERS = 2
_FEW_SCENES = 8


def prepare(
    layout: Layout,
    root: Path,
    out: Path,
    *,
    workers: int,
    maker: str = "",
    hold_out: str | None = None,
    skip_bad: bool = False,
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
        workers: Processes that read and convert (threads where there are few files), at least 1. A script
            that calls this does its work inside `if __name__ == "__main__":`.
        maker: What tells the code that converts from another; what another maker left is converted again.
        hold_out: Pattern of the train ids that become the validation split, as in `hold_out_split`, in place of
            the data set's own, in which nothing is looked for then.
        skip_bad: Leave out samples that cannot be used and list them in `out/skipped.json`, with the reasons.
        progress: Called in this thread with the number of samples done and the number of all.

    Returns:
        The prepared data set, as `load_dataset(out)` reads it.

    Raises:
        DataError: The directory is not laid out as expected; or files are missing, unreadable, of different
            sizes, hold unknown ids or lie outside the root, or a split is empty, also after skipping and
            holding out. One error lists all of them; no index is written.

    Example:
        >>> prepare(LAYOUTS["camvid"], Path("CamVid"), Path("runs/camvid/prepare"), workers=2)
    """
    out = out.absolute()
    content = _scan(layout, root, out)
    if hold_out is not None:
        content = content.without_val()
        # before the index of an earlier preparation makes way; what is left out later may change the answer
        ids = [source.id for source in content.splits["train"]]
        if ids:
            require_hold_out(ids, hold_out)
    try:
        # without an index nobody takes a half-finished directory for a prepared one
        out.mkdir(parents=True, exist_ok=True)
        for name in (INDEX_NAME, SKIPPED_NAME):
            (out / name).unlink(missing_ok=True)
        header = _journal_header(layout, content, maker)
        done, bad = _convert_all(content, root.resolve(), out, header, workers, progress)
    except OSError as error:
        raise DataError(f"{layout.title}: {cannot_convert(root, out, error)}") from error
    findings = Findings([*content.problems, *content.val_problems], find_repeated(content), bad)
    kept = _keep(content, findings, done, out)
    wanted = kept if hold_out is None else ("train",)
    empty = [_describe_empty(name, len(content.splits[name])) for name in wanted if not kept[name]]
    if empty or (findings.sentences and not skip_bad):
        problems = [*empty, *findings.sentences]
        raise DataError(describe_problems(layout.title, root, problems, skippable=not empty))
    if findings.sentences:
        save_skipped(out, findings.skipped(content))
    dataset = Dataset(layout.name, content.classes, content.palette, kept["train"], kept["val"])
    if hold_out is not None:
        dataset = hold_out_split(dataset, hold_out)
    checksums = {out / item.image: item.image_sha256 for item in done.values()}
    checksums |= {out / item.label: item.label_sha256 for item in done.values()}
    save_index(out, dataset, checksums=checksums)
    return dataset


def _describe_empty(split: str, samples: int) -> str:
    if not samples:
        return f"split {split!r} is empty: expected at least one image with its label"
    every = "its one sample has a problem" if samples == 1 else f"all of its {samples} samples have problems"
    return f"split {split!r} is empty without what cannot be used: {every}, which are told below"


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
    for name in (INDEX_NAME, SKIPPED_NAME):
        (out / name).unlink(missing_ok=True)
    first = seed * _SCENES_PER_SEED
    seeds = {"train": range(first, first + train), "val": range(first + limit, first + limit + val)}
    jobs = [
        (number, out, f"{split}/{i:06d}", height, width)
        for split, numbers in seeds.items()
        for i, number in enumerate(numbers)
    ]
    try:
        with closing_pool(_open_scene_pool(len(jobs))) as pool:
            drawn = drain([pool.submit(_draw, *job) for job in jobs], progress)
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
    return open_processes(_SCENE_WORKERS)


def _draw(seed: int, out: Path, key: str, height: int, width: int) -> Sample:
    from brd_edge.data.scenes import draw_scene

    image, label = draw_scene(seed, height, width)
    image_path, label_path = (out / kind / f"{key}.png" for kind in ("images", "labels"))
    write_file(image_path, encode_png(Image.fromarray(image)))
    write_file(label_path, encode_png(Image.fromarray(label)))
    return Sample(Path(key).name, image_path, label_path, height, width, find_class_pixels(label))


def _scan(layout: Layout, root: Path, out: Path) -> Content:
    """Read what lies under `root`, after checking that it is the layout's and not the output itself."""
    problem = find_layout_problem(layout, root)
    base = find_base(layout, root)
    if problem is not None or base is None:
        raise DataError(problem or f"{root}: not laid out as {layout.title}")
    try:
        if out.resolve() in {root.resolve(), base.resolve()}:
            raise DataError(f"{out}: the data set itself lies here; choose another directory to write to")
        return layout.scan(base.resolve())
    # a loop of links is a RuntimeError before Python 3.13
    except (OSError, RuntimeError) as error:
        raise DataError(f"{layout.title}: {root} cannot be read, or {out} not be written ({error})") from error


def _convert_all(
    content: Content,
    root: Path,
    out: Path,
    header: Mapping[str, Any],
    workers: int,
    progress: Callable[[int, int], None] | None,
) -> tuple[dict[str, Converted], dict[str, list[str]]]:
    """Convert every sample; return the finished ones and what is wrong with the others, by `SPLIT/ID`."""
    sources = {f"{split}/{source.id}": source for split, found in content.splits.items() for source in found}
    journal = out / JOURNAL_NAME
    known = {key: item for key, item in read_journal(journal, header).items() if key in sources}
    done: dict[str, Converted] = {}
    bad: dict[str, list[str]] = {}
    job = Job(content.read_label, root, out)
    with open_journal(journal, header, known) as note:

        def collect(key: str, result: Converted | list[str] | None) -> None:
            if isinstance(result, Converted):
                done[key] = result
                if result != known.get(key):
                    note(key, result)
            else:
                pair = f"{sources[key].image}, or its label {sources[key].label}"
                bad[key] = result or [f"{pair}: reading it ended the process (a damaged file, or no memory left)"]

        jobs = {key: (job, key, source, known.get(key)) for key, source in sources.items()}
        run_jobs(jobs, convert, workers=workers, collect=collect, progress=progress)
    return done, {key: bad[key] for key in sources if key in bad}


def _as_sample(source: Source, item: Converted, out: Path) -> Sample:
    return Sample(source.id, out / item.image, out / item.label, item.height, item.width, item.classes)


def _keep(
    content: Content, findings: Findings, done: Mapping[str, Converted], out: Path
) -> dict[str, tuple[Sample, ...]]:
    """Return the samples of each split that nothing was found wrong with."""
    return {
        split: tuple(
            _as_sample(source, done[f"{split}/{source.id}"], out)
            for place, source in enumerate(sources)
            if f"{split}/{source.id}" in done and (split, place) not in findings.repeated
        )
        for split, sources in content.splits.items()
    }


def _journal_header(layout: Layout, content: Content, maker: str) -> dict[str, Any]:
    """What a journal must have been written for to be of use."""
    return {
        "version": _JOURNAL_VERSION,
        "maker": maker,
        "layout": layout.name,
        "classes": list(content.classes),
        "fingerprint": content.fingerprint,
    }
