"""What changed from one run to another: settings, accuracy, latency, size, gates, and the zero-cost proof."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from brd_edge.evaluate.benchmark.entries import EngineEntry
from brd_edge.evaluate.benchmark.file import Benchmark
from brd_edge.evaluate.benchmark.images import ImageCounts
from brd_edge.evaluate.changes.latency import LatencyChange
from brd_edge.evaluate.intervals import ScoreChange, score_changes
from brd_edge.evaluate.proof import judge_proof
from brd_edge.runtime.errors import RunError

__all__ = [
    "SCORE_NAMES",
    "Changes",
    "CommonImages",
    "Difference",
    "EngineChange",
    "RunRecord",
    "compare_runs",
    "require_comparable",
]

SCORE_NAMES = {
    "miou": "mIoU",
    "boundary_iou": "Boundary IoU",
    "boundary_f": "boundary F",
    "connectivity_error": "connectivity error",
    "pixel_accuracy": "pixel accuracy",
}
"""How the scores that are compared are called for people; all but the connectivity error are the better the larger."""

Overall = Literal["worse", "undecided", "better", "equivalent"]


@dataclass(frozen=True)
class RunRecord:
    """What a run left, as far as it is compared.

    Attributes:
        name: How it is called in messages and in the output: its directory.
        benchmark: Its `benchmark.json`.
        counts: Its `images.npz`.
        recipe: Its resolved recipe.
        contents: What tells each validation image and its label from others, by id; None where it is not known.
    """

    name: str
    benchmark: Benchmark
    counts: ImageCounts
    recipe: Mapping[str, Any]
    contents: Mapping[str, str] | None = None


@dataclass(frozen=True)
class Difference:
    """A value that differs: its key with dots, and what it was before and after; None where it was not there."""

    key: str
    before: Any
    after: Any


@dataclass(frozen=True)
class CommonImages:
    """The validation images that scores are compared on.

    Attributes:
        count: Images with the same id, and the same content as far as that is known.
        only_before: Images that only A has.
        only_after: Images that only B has.
        altered: Images with the same id, but another picture or label; they are left out.
        checked: Whether the content was compared; else the id alone decides.
    """

    count: int
    only_before: int
    only_after: int
    altered: int
    checked: bool


@dataclass(frozen=True)
class EngineChange:
    """What became of an engine; None where a run does not have it.

    Attributes:
        name: Its name.
        status: Before and after.
        reason: Why it was not measured, of B.
        size_bytes: Before and after.
        latency: None where one of the runs does not have the engine built.
        gates_newly_broken: What it missed in B and not in A, as B says it.
        gates_still_broken: What it missed in both.
        gates_no_longer_broken: What it missed in A only, as A says it.
    """

    name: str
    status: tuple[str | None, str | None]
    reason: str
    size_bytes: tuple[int | None, int | None]
    latency: LatencyChange | None
    gates_newly_broken: tuple[str, ...]
    gates_still_broken: tuple[str, ...]
    gates_no_longer_broken: tuple[str, ...]

    @property
    def both_measured(self) -> bool:
        """Whether both runs measured it."""
        return self.status == ("measured", "measured")

    @property
    def lost(self) -> str | None:
        """Why it is worse that its status changed, if it is."""
        before, after = self.status
        if before == "measured" and after != "measured":
            return f"no longer measured ({after or 'not in the recipe'})"
        return "failed" if after == "failed" and before != "failed" else None


@dataclass(frozen=True)
class Changes:
    """What changed from A to B.

    Attributes:
        recipe: Keys of the resolved recipes that differ.
        environment: Hardware and versions that differ.
        dataset: What differs in the data sets' descriptions.
        contract: What differs in the input contracts.
        images: The images that scores were compared on.
        margin: Largest change of a score that counts as none, as a fraction.
        scores: Changes by the names of `SCORE_NAMES`, by `"teacher"`, `"student"` and the names of engines.
        engines: Every engine that a run has.
        proof: Whether the zero-cost proof held before and after; None where it is undecided.
    """

    recipe: tuple[Difference, ...]
    environment: tuple[Difference, ...]
    dataset: tuple[Difference, ...]
    contract: tuple[Difference, ...]
    images: CommonImages
    margin: float
    scores: Mapping[str, Mapping[str, ScoreChange]]
    engines: tuple[EngineChange, ...]
    proof: tuple[bool | None, bool | None]

    @property
    def worse(self) -> list[str]:
        """What is worse, slower or newly failing, a few words each."""
        found = self._scores("worse")
        for engine in self.engines:
            if engine.lost is not None:
                found.append(f"{engine.name} {engine.lost}")
            if engine.latency is not None and engine.latency.verdict == "slower":
                found.append(f"{engine.name} is slower")
            found += [f"{engine.name} gate {_gate(line)}" for line in engine.gates_newly_broken]
        if self.proof[1] is False and self.proof[0] is not False:
            found.append("the zero-cost proof no longer holds")
        return found

    @property
    def undecided(self) -> list[str]:
        """What could not be decided although both runs have it, a few words each."""
        found = self._scores("undecided")
        for engine in self.engines:
            verdict = None if engine.latency is None else engine.latency.verdict
            # an engine that no run could measure is not missed
            if verdict == "undecided" or (verdict is None and engine.both_measured):
                found.append(f"{engine.name} latency")
        if self.proof == (True, None):
            found.append("the zero-cost proof")
        return found

    @property
    def better(self) -> list[str]:
        """What is better or faster, a few words each."""
        faster = [e.name for e in self.engines if e.latency is not None and e.latency.verdict == "faster"]
        return self._scores("better") + [f"{name} is faster" for name in faster]

    @property
    def overall(self) -> Overall:
        """The verdict on all of it."""
        if self.worse:
            return "worse"
        if self.undecided:
            return "undecided"
        return "better" if self.better else "equivalent"

    def to_json(self) -> dict[str, Any]:
        """Return everything as JSON types; scores are fractions."""
        return {
            **asdict(self),
            "scores": {
                title: {name: change.to_json() for name, change in found.items()}
                for title, found in self.scores.items()
            },
            **{key: getattr(self, key) for key in ("worse", "undecided", "better", "overall")},
        }

    def _scores(self, verdict: str) -> list[str]:
        return [
            f"{name} {SCORE_NAMES[score]}"
            for name, changes in self.scores.items()
            for score, change in ((key, changes[key]) for key in SCORE_NAMES if key in changes)
            if change.verdict == verdict
        ]


def compare_runs(
    before: RunRecord, after: RunRecord, *, margin: float, latencies: Mapping[str, LatencyChange]
) -> Changes:
    """Compare two runs.

    Args:
        before: Run A.
        after: Run B, which is judged.
        margin: Largest change of a score that counts as none, as a fraction above 0.
        latencies: What came of comparing the engines' latencies, by name.

    Raises:
        RunError: The classes differ, or the runs have no validation image in common.
    """
    images, places = _common_images(before, after)
    a, b = before.benchmark, after.benchmark
    names = [name for name in before.counts.counts if name in after.counts.counts]
    scores = {
        name: score_changes(before.counts.counts[name][places[0]], after.counts.counts[name][places[1]], margin=margin)
        for name in names
    }
    return Changes(
        recipe=_differences(before.recipe, after.recipe),
        environment=_differences(_environment(a), _environment(b)),
        dataset=_differences(a.dataset.model_dump(), b.dataset.model_dump()),
        contract=_differences(a.contract.model_dump(), b.contract.model_dump()),
        images=images,
        margin=margin,
        scores=scores,
        engines=tuple(_engine_changes(a.engines, b.engines, latencies)),
        proof=(_proof(a), _proof(b)),
    )


def require_comparable(before: RunRecord, after: RunRecord) -> None:
    """Refuse runs whose scores cannot be compared, before any time is spent on them.

    Raises:
        RunError: The classes differ, or the runs have no validation image in common.
    """
    _common_images(before, after)


def _require_same_classes(before: RunRecord, after: RunRecord) -> None:
    mine, theirs = before.benchmark.dataset.classes, after.benchmark.dataset.classes
    if mine != theirs:
        raise RunError(
            f"{after.name}: expected the classes of {before.name} ({len(mine)}: {_shortened(mine)}), got "
            f"{len(theirs)}: {_shortened(theirs)}; only runs on the same classes, in the same order, can be compared"
        )


def _shortened(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + (", …" if len(names) > 4 else "")


def _common_images(before: RunRecord, after: RunRecord) -> tuple[CommonImages, tuple[list[int], list[int]]]:
    """Return the images that both runs have, and their places in both."""
    _require_same_classes(before, after)
    for run in (before, after):
        _require_counts(run)
    places = {name: index for index, name in enumerate(after.counts.ids)}
    shared = [name for name in before.counts.ids if name in places]
    mine, theirs = before.contents, after.contents
    checked = mine is not None and theirs is not None
    kept = shared
    if mine is not None and theirs is not None:
        kept = [name for name in shared if mine.get(name) == theirs.get(name)]
    if not kept:
        why = "other pictures or labels under the same ids" if shared else "other ids"
        raise RunError(f"{after.name}: expected validation images of {before.name}, got none: it has {why}")
    found = CommonImages(
        len(kept), len(before.counts.ids) - len(shared), len(places) - len(shared), len(shared) - len(kept), checked
    )
    own = {name: index for index, name in enumerate(before.counts.ids)}
    return found, ([own[name] for name in kept], [places[name] for name in kept])


def _require_counts(run: RunRecord) -> None:
    """Refuse counts that are not those of the benchmark beside them."""
    shape = (run.benchmark.dataset.val, 10, len(run.benchmark.dataset.classes))
    measured = [engine.name for engine in run.benchmark.engines if engine.status == "measured"]
    for name in ("teacher", "student", *measured):
        counts = run.counts.counts.get(name)
        if counts is None or counts.shape != shape:
            raise RunError(
                f"{run.name}: images.npz: {name}: expected counts {shape}, as benchmark.json has it, got "
                f"{'none' if counts is None else counts.shape}; run the benchmark stage again with --from benchmark"
            )


def _engine_changes(
    before: Iterable[EngineEntry], after: Iterable[EngineEntry], latencies: Mapping[str, LatencyChange]
) -> Iterable[EngineChange]:
    mine, theirs = ({engine.name: engine for engine in engines} for engines in (before, after))
    for name in [*mine, *(name for name in theirs if name not in mine)]:
        a, b = mine.get(name), theirs.get(name)
        old, new = ({_gate(line): line for line in engine.gates_broken} if engine else {} for engine in (a, b))
        yield EngineChange(
            name=name,
            status=(a.status if a else None, b.status if b else None),
            reason=b.reason if b else "",
            size_bytes=(a.size_bytes if a else None, b.size_bytes if b else None),
            latency=latencies.get(name),
            gates_newly_broken=tuple(line for gate, line in new.items() if gate not in old),
            gates_still_broken=tuple(line for gate, line in new.items() if gate in old),
            gates_no_longer_broken=tuple(line for gate, line in old.items() if gate not in new),
        )


def _gate(line: str) -> str:
    """Return the gate's name from a line such as `size_bytes_max: 10 bytes, …`."""
    return line.partition(":")[0]


def _proof(benchmark: Benchmark) -> bool | None:
    # what was not compared is told from what is null by not being there
    return judge_proof(benchmark.zero_cost.model_dump(mode="json", exclude_unset=True)).held


def _environment(benchmark: Benchmark) -> dict[str, Any]:
    versions = {engine.name: engine.runtime_version for engine in benchmark.engines if engine.runtime_version}
    return {**benchmark.environment.model_dump(), "runtime_version": versions}


def _differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> tuple[Difference, ...]:
    mine, theirs = dict(_leaves(before)), dict(_leaves(after))
    return tuple(
        Difference(key, mine.get(key), theirs.get(key))
        for key in dict.fromkeys([*mine, *theirs])
        if mine.get(key) != theirs.get(key)
    )


def _leaves(values: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    """Yield every value with its key, such as `distill.train.epochs`; lists of sections by number, others whole."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        elif isinstance(value, list | tuple) and value and all(isinstance(item, Mapping) for item in value):
            yield from _leaves({str(index): item for index, item in enumerate(value)}, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", list(value) if isinstance(value, tuple) else value
