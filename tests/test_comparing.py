"""`brd-edge compare` on made runs; the engines are real and small."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest
from made_runs import CLASSES, CONTRACT, ENGINE, PALETTE, made_samples, write_run

from brd_edge.cli import main
from brd_edge.runtime.builders import build_engine

GRAPH = """<ir_version: 10, opset_import: ["" : 20]>
student (uint8[1,48,64,3] image) => (uint8[1,48,64] class_map) {
    pixels = Cast<to=1>(image)
    planes = Transpose<perm=[0,3,1,2]>(pixels)
    hidden = Conv<pads=[1,1,1,1]>(planes, w1)
    active = Relu(hidden)
    scores = Conv<pads=[1,1,1,1]>(active, w2)
    ids = ArgMax<axis=1, keepdims=0>(scores)
    class_map = Cast<to=2>(ids)
}"""


def add_engine(run: Path, *, channels: int = 4) -> None:
    model = onnx.parser.parse_model(GRAPH)
    rng = np.random.default_rng(0)
    for title, shape in (("w1", (channels, 3, 3, 3)), ("w2", (len(CLASSES), channels, 3, 3))):
        model.graph.initializer.append(onnx.numpy_helper.from_array(rng.normal(size=shape).astype(np.float32), title))
    onnx.save(model, run / "student.onnx")
    build_engine(
        runtime="onnxruntime",
        precision="fp32",
        target="x86-cpu",
        onnx=run / "student.onnx",
        out=run / "engines" / ENGINE,
        contract=CONTRACT,
        classes=CLASSES,
        palette=PALETTE,
    )


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = write_run(tmp_path_factory.mktemp("runs") / "base")
    add_engine(run)
    return run


def compare(*arguments: object) -> int:
    return main(["compare", *map(str, arguments)])


def test_a_copy_is_equivalent_everywhere(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(base, copy)
    # a margin that no load on the machine exceeds: how narrow the interval gets in a second is its affair
    assert compare(base, copy, "--budget", 1, "--margin-percent", 100000, "--undecided", "fail") == 0
    output = capsys.readouterr()
    lines = output.out.splitlines()
    assert lines[-1] == "verdict: equivalent in all that was compared"
    assert sum("+0.00 [+0.00, +0.00]" in line for line in lines) == 15
    assert "timed now, in turns A B B A, on a random frame, as B's validation images are not there, 1 threads" in lines
    assert output.err.startswith(f"timing {ENGINE} of both runs\n")


def test_recorded_samples_a_fifth_slower_fail(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    slower = write_run(tmp_path / "slower", samples=made_samples(slower=1.2, seed=1))
    assert compare(base, slower, "--recorded") == 3
    output = capsys.readouterr()
    assert output.out.splitlines()[-1] == f"verdict: 1 worse ({ENGINE} is slower)"
    assert "the sessions were not paired" in output.out
    assert output.err == ""
    assert compare(slower, base, "--recorded") == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"verdict: nothing is worse, 1 better ({ENGINE} is faster)"
    assert compare(base, slower, "--recorded", "--margin-percent", 35) == 0
    # what sessions of one engine may differ by fails nothing
    near = write_run(tmp_path / "near", samples=made_samples(slower=1.09, seed=1))
    assert compare(base, near, "--recorded") == 0
    assert "1 undecided" in capsys.readouterr().out.splitlines()[-1]


def test_recorded_in_other_circumstances_nothing_is_judged(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = write_run(
        tmp_path / "other",
        samples=made_samples(slower=1.1),
        threads=4,
        change=lambda b: b["environment"].update(cpu="Another CPU"),
    )
    assert compare(base, other, "--recorded") == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "the 10 % that sessions of one engine may differ by" in text
    assert "recorded in other circumstances (cpu A CPU against Another CPU; threads 1 against 4)" in text
    assert text.endswith(f"verdict: nothing is worse, 1 undecided ({ENGINE} latency)")
    assert compare(base, other, "--recorded", "--undecided", "fail") == 3


@pytest.mark.parametrize(("measured", "recipes", "told"), [((1, 4), (1, 1), True), ((1, 1), (1, 4), False)])
def test_threads_are_those_of_the_measurement(
    measured: tuple[int, int],
    recipes: tuple[int, int],
    told: bool,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The recipe may have been written anew since, by a later run of later stages."""
    runs = [
        write_run(
            tmp_path / name,
            samples=made_samples(slower=slower, seed=seed),
            threads=recipe,
            change=lambda b, threads=threads: b.update(threads=threads),  # type: ignore[misc]
        )
        for seed, (name, slower, threads, recipe) in enumerate(
            zip(("a", "b"), (1.0, 1.3), measured, recipes, strict=True)
        )
    ]
    assert compare(*runs, "--recorded") == (0 if told else 3)
    assert ("threads 1 against 4" in capsys.readouterr().out) is told


@pytest.mark.parametrize("count", [1, 5])
def test_recorded_times_too_few_for_an_interval_are_not_compared(
    count: int, base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = write_run(tmp_path / "other", samples=[13.0 + place / 10 for place in range(count)])
    assert compare(base, other, "--recorded") == 0
    text = " ".join(capsys.readouterr().out.split())
    assert f"too few times to tell how sure their median is (B recorded {count})" in text


def test_a_larger_engine_is_found_slower(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    larger = write_run(tmp_path / "larger")
    add_engine(larger, channels=256)
    # some forty times as slow, against a margin of three times, so that the control's own noise decides nothing
    assert compare(base, larger, "--budget", 1, "--margin-percent", 200, "--json") == 3
    found = json.loads(capsys.readouterr().out)
    assert found["worse"] == [f"{ENGINE} is slower"]
    (latency,) = [engine["latency"] for engine in found["engines"] if engine["name"] == ENGINE]
    assert latency["ratio"]["low"] > 1.5
    assert latency["after_ms"] > latency["before_ms"] > 0


def test_worse_counts_fail_and_the_json_tells_all(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    worse = write_run(tmp_path / "worse", engine=0.1)
    assert compare(base, worse, "--recorded", "--json") == 3
    output = capsys.readouterr()
    found = json.loads(output.out)
    assert output.err == ""
    assert found["schema_version"] == 1
    assert found["exit_code"] == 3
    assert found["overall"] == "worse"
    names = ("mIoU", "Boundary IoU", "boundary F", "connectivity error", "pixel accuracy")
    assert found["worse"] == [f"{ENGINE} {name}" for name in names]
    assert (found["a"]["directory"], found["b"]["directory"]) == (str(base), str(worse))
    change = found["scores"][ENGINE]["miou"]
    assert change["verdict"] == "worse"
    assert change["difference"]["value"] == pytest.approx(change["after"] - change["before"])
    assert found["scores"]["student"]["miou"]["verdict"] == "equivalent"
    assert found["images"]["count"] == 24
    assert found["proof"] == [True, True]
    assert compare(base, worse, "--recorded", "--margin-points", 500) == 0


def test_engines_that_cannot_be_timed_say_why(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bare = write_run(tmp_path / "bare")
    assert compare(base, bare) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert f"{ENGINE}: not compared: {bare / 'engines' / ENGINE / 'engine.json'}: not found" in text
    assert text.endswith(f"verdict: nothing is worse, 1 undecided ({ENGINE} latency)")
    other = write_run(tmp_path / "other", change=lambda b: b["contract"].update(height=96))
    assert compare(base, other) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "the frames have other sizes, 48x64 against 96x64" in text
    assert "height: 48 → 96" in text


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("benchmark.json", None, "benchmark.json: not found; expected the run directory"),
        (
            "benchmark.json",
            '{"schema_version": 1}',
            "schema_version: expected 3, got 1: it was written by another",
        ),
        ("images.npz", None, "images.npz: not found; run the benchmark stage again with --from benchmark"),
        ("images.npz", "nothing", "images.npz: not a readable NumPy archive"),
        ("recipe.yaml", None, "recipe.yaml: not found; expected the resolved recipe"),
        ("recipe.yaml", "a: [", "recipe.yaml: not readable as YAML"),
        ("recipe.yaml", "3", "recipe.yaml: expected a mapping"),
    ],
)
def test_unusable_runs_are_one_line(
    name: str, content: str | None, message: str, base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(base, run)
    (run / name).unlink()
    if content is not None:
        (run / name).write_text(content, encoding="utf-8")
    for pair in ((base, run), (run, base)):
        assert compare(*pair, "--recorded") == 1
        output = capsys.readouterr()
        assert output.out == ""
        assert output.err.startswith(f"brd-edge: error: {run / name}")
        assert message in output.err
        assert output.err.count("\n") == 1


def test_other_classes_are_one_line(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = write_run(tmp_path / "other", change=lambda b: b["dataset"].update(classes=["a", "b", "c"]))
    assert compare(base, other) == 1
    error = capsys.readouterr().err
    assert error.startswith(
        f"brd-edge: error: {other}: expected the classes of {base} (3: road, sky, car), got 3: a, b"
    )
    assert error.count("\n") == 1
    assert compare(base / "benchmark.json", base) == 1
    assert "expected a run directory, such as runs/quickstart, got a file" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--margin-points", "0"],
        ["--margin-percent", "much"],
        ["--budget", "inf"],
        ["--undecided", "maybe"],
        ["--recorded", "--budget", "3"],
    ],
)
def test_wrong_command_lines_are_exit_code_2(arguments: list[str], base: Path) -> None:
    with pytest.raises(SystemExit) as caught:
        compare(*([base, base] if arguments else [base]), *arguments)
    assert caught.value.code == 2
