"""The whole command on a tiny recipe, stopped and repeated."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from running import in_session, pipelines_in, wait_for
from safetensors.torch import save_file
from tiny import TINY

from benchmarks import distillation, distillation_cells
from benchmarks.distillation_table import format_table
from brd_edge.data.scenes import CLASSES, draw_scene
from brd_edge.distill.methods import METHODS
from brd_edge.models.segmentation import ModelSpec, build_model
from brd_edge.recipe import load_recipe
from brd_edge.recipe_training import DistillSection
from brd_edge.runtime.files import write_json_atomic

ROOT = Path(__file__).parents[2]


ALL = {"curriculum", "compile_teacher"}
_TERMS: dict[str, tuple[str, ...]] = {
    "kd": ("kd_", *ALL),
    "skd": (*ALL,),
    "cwd": ("cwd_", *ALL),
    "cirkd_batch": (*ALL,),
    "cirkd_memory": (*ALL,),
    "boundary": ("boundary_operator", "boundary_kernel", "boundary_strides", "band_weight", *ALL),
    "boundary_classes": ("boundary_class_", "band_weight", *ALL),
    "relation": ("relation_", *ALL),
}
"""The terms, and the names or beginnings of names of what changes them beside their weight."""


def _arguments(directory: Path, *more: str) -> list[str]:
    overrides = [part for setting in TINY for part in ("--set", setting)]
    places = ["--directory", str(directory / "runs"), "--output", str(directory / "result.json")]
    return [str(ROOT / "pipelines" / "quickstart.yaml"), *overrides, *places, *more]


@pytest.fixture
def in_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def test_every_setting_belongs_to_the_methods_that_it_changes() -> None:
    # the student of `none` is recorded, too, sees other colours, and learns from images that the teacher labelled
    everyones = {"cuda_graphs", "teacher_sees_jitter", "unlabelled", "unlabelled_confidence"}
    assert all(distillation_cells.decides(setting, method) for setting in everyones for method in METHODS)
    for setting in set(DistillSection.model_fields) - {"method", "train", *everyones}:
        having = {method for method in METHODS if distillation_cells.decides(setting, method)}
        terms = {term for term in _TERMS if setting.removeprefix("lambda_") == term or setting.startswith(_TERMS[term])}
        assert having == {method for method, names in METHODS.items() if terms & set(names)}, setting


@pytest.mark.usefixtures("in_root")
def test_every_arm_of_the_ablation_can_be_chosen_and_is_a_recipe(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UNLABELLED", "frames")
    recipe, file = "benchmarks/camvid_cpu_24.yaml", "benchmarks/ablation.yaml"
    for name, settings in yaml.safe_load(Path(file).read_text(encoding="utf-8")).items():
        arguments = [recipe, "--arms", file, "--finished", "--directory", "nowhere", "--only", name]
        assert distillation.main(arguments) == 2
        assert "--only" not in capsys.readouterr().err, name
        load_recipe(Path(recipe), overrides=settings)


@pytest.mark.usefixtures("in_root")
def test_cells_share_the_teacher_and_are_not_done_twice(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert distillation.main(_arguments(tmp_path, "--methods", "none", "--seeds", "0,1")) == 0
    first = json.loads((tmp_path / "result.json").read_text(encoding="utf-8"))
    capfd.readouterr()

    assert distillation.main(_arguments(tmp_path, "--methods", "none,kd", "--seeds", "0,1")) == 0

    told = capfd.readouterr()
    assert "none, seed" not in told.err, "what is done is not done again"
    assert "kd, seed 1: mIoU" in told.err
    other_terms = ("--set", "distill.lambda_relation=3", "--set", "distill.boundary_class_kernels=[5]")
    assert distillation.main(_arguments(tmp_path, *other_terms, "--methods", "none,kd", "--seeds", "0,1")) == 0
    assert "training" not in capfd.readouterr().err, "the weights of terms that a method has not decide nothing"
    result = json.loads((tmp_path / "result.json").read_text(encoding="utf-8"))
    assert distillation.main(_arguments(tmp_path, "--methods", "none,kd,cwd", "--seeds", "0,1,2", "--finished")) == 0
    assert "training" not in capfd.readouterr().err
    finished = json.loads((tmp_path / "result.json").read_text(encoding="utf-8"))
    assert (finished["cells"], result["not_done"]) == (result["cells"], [])
    left = [("cwd", 0), ("cwd", 1), ("none", 2), ("kd", 2), ("cwd", 2)]
    assert [(cell["arm"], cell["seed"]) for cell in finished["not_done"]] == left
    table = (tmp_path / "result.md").read_text(encoding="utf-8")
    assert "\nNot done yet: cwd, seeds 0, 1, 2; none, seed 2; kd, seed 2.\n" in table
    assert "in place of the recipe's own: `data.size=[64, 96]`, " in table
    assert result["cells"][0] == first["cells"][0]
    assert [(cell["arm"], cell["seed"]) for cell in result["cells"]] == [("none", 0), ("kd", 0), ("none", 1), ("kd", 1)]
    assert all(cell["images"] == 3 for cell in result["cells"])
    for cell in result["cells"]:
        steps = [validation["step"] for validation in cell["validations"]]
        assert steps == sorted(set(steps)) and steps[-1] == cell["steps"]
        on_the_way = {validation["step"]: validation["miou"] for validation in cell["validations"]}
        assert on_the_way[cell["best_step"]] == max(on_the_way.values())
    against = result["summary"]["kd"]["miou"]["against"]["none"]
    scores = {(cell["arm"], cell["seed"]): cell["miou"] for cell in result["cells"]}
    differences = [scores["kd", seed] - scores["none", seed] for seed in (0, 1)]
    assert scores["none", 0] != scores["none", 1], "each seed trains a student of its own"
    assert against["mean"] == pytest.approx(sum(differences) / 2)
    assert table == format_table(finished)
    result["summary"]["kd"]["miou"]["count"] = 1
    assert "\n| kd (1 of 2 seeds) |" in format_table(result)
    assert "Difference to `none`, paired by seed" in table
    checkpoints = {
        json.loads((tmp_path / "runs" / cell / "stages" / "teacher.json").read_text(encoding="utf-8"))["outputs"][
            "teacher/model/model.safetensors"
        ]
        for cell in ("teacher", "none-0", "kd-1")
    }
    assert len(checkpoints) == 1, "every cell has the same teacher"


@pytest.mark.usefixtures("in_root")
def test_cells_are_done_again_where_their_files_changed(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The paths of the data set and of the student's first weights stay the same."""
    here = tmp_path / "of: [me] #1"  # YAML would see more in it than text
    root, weights = here / "scenes", here / "weights.safetensors"
    _save_scenes(root)
    _save_encoder_weights(weights, seed=1)
    data = json.dumps({"layout": "folder", "root": str(root), "size": [64, 96], "loader": "torch"})
    settings = [f"data={data}", f"student.encoder_weights={json.dumps(str(weights))}"]
    arguments = _arguments(here, "--methods", "none", "--seeds", "0", *(f"--set={each}" for each in settings))
    finished = [*arguments, "--finished"]
    assert distillation.main(arguments) == 0
    cell, teacher = (here / "runs" / name / "scores.json" for name in ("none-0", "teacher"))
    assert set(json.loads(cell.read_text(encoding="utf-8"))["files"]) == {"data set", "encoder weights"}
    (root / "images" / ".DS_Store").write_bytes(b"what a file manager leaves")
    capfd.readouterr()
    assert distillation.main(arguments) == 0
    assert "training" not in capfd.readouterr().err, "no stage reads a hidden file"
    before = json.loads(cell.read_text(encoding="utf-8"))
    write_json_atomic(cell, {name: value for name, value in before.items() if name != "files"})
    assert distillation.main(finished) == 0, "scores that do not tell their files are those of the run beside them"

    _save_encoder_weights(weights, seed=2)
    assert distillation.main(finished) == 2
    assert "none of the 1 cells is done with these settings and files" in capfd.readouterr().err
    _save_encoder_weights(weights, seed=1)
    assert distillation.main(finished) == 0
    label = root / "labels" / "val" / "0.png"
    Image.fromarray(np.zeros((64, 96), np.uint8)).save(label)
    assert distillation.main(finished) == 2
    scored = json.loads(teacher.read_text(encoding="utf-8"))
    capfd.readouterr()

    assert distillation.main(arguments) == 0

    assert "none, seed 0: training" in capfd.readouterr().err
    again = json.loads(teacher.read_text(encoding="utf-8"))
    assert again["data_set"] != scored["data_set"]
    assert again["miou"] != scored["miou"]
    smaller = [*TINY, *settings, "data.size=[32, 48]"]
    recipe = ROOT / "pipelines" / "quickstart.yaml"
    found = distillation_cells.score_teacher(recipe, smaller, here / "runs" / "teacher")
    assert (found["weights"], found["contract"] != again["contract"]) == (again["weights"], True)
    assert found["boundary_iou"] != again["boundary_iou"], "the same weights on frames of another size"


@pytest.mark.usefixtures("in_root")
def test_a_table_can_be_made_in_parts(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """As on two machines: the second part has directories, a data set and a teacher's training of its own."""

    def run(part: str, methods: str, *more: str) -> tuple[int, str]:
        root = tmp_path / part / "scenes"
        if not root.exists():
            _save_scenes(root)
        data = json.dumps({"layout": "folder", "root": str(root), "size": [64, 96], "loader": "torch"})
        choice = (f"--set=data={data}", "--methods", methods, "--seeds", "0", *more)
        code = distillation.main(_arguments(tmp_path / part, *choice))
        return code, capfd.readouterr().err

    assert run("first", "none")[0] == 0
    reuse = ("--reuse", str(tmp_path / "first" / "result.json"))
    code, told = run("second", "none,kd", *reuse)
    assert code == 0
    assert "result.json: 1 of 2 cells are taken from it" in told
    assert "none, seed" not in told and "kd, seed 0: mIoU" in told
    first, second = (
        json.loads((tmp_path / part / "result.json").read_text(encoding="utf-8")) for part in ("first", "second")
    )
    assert second["cells"][0] == first["cells"][0]
    kd = second["summary"]["kd"]["miou"]
    assert kd["against"]["none"]["mean"] == pytest.approx(kd["mean"] - first["cells"][0]["miou"])
    assert run("second", "none", *reuse, "--finished")[0] == 0
    code, told = run("second", "none", *reuse, "--set=distill.train.lr=0.001", "--finished")
    assert (code, "0 of 1 cells are taken from it\n" in told) == (2, True), "another setting"
    label = tmp_path / "second" / "scenes" / "labels" / "val" / "0.png"
    Image.fromarray(np.zeros((64, 96), np.uint8)).save(label)
    code, told = run("second", "none", *reuse, "--finished")
    assert (code, "0 of 1 cells are taken from it (its data set is another)" in told) == (2, True)
    of_older_code = tmp_path / "older.json"
    of_older_code.write_text(json.dumps({**first, "teacher": {**first["teacher"], "code": "0"}, "cells": []}))
    code, told = run("first", "none", "--reuse", str(of_older_code), "--finished")
    assert (code, "0 of 1 cells are taken from it (its code of the training is another)" in told) == (0, True)
    code, told = run("first", "none", "--reuse", str(label))
    assert code == 2 and "0.png: expected a result of benchmarks.distillation" in told


@pytest.mark.usefixtures("in_root")
def test_the_teacher_sees_nothing_that_is_held_out(tmp_path: Path) -> None:
    _save_scenes(tmp_path / "scenes")
    data = json.dumps({"layout": "folder", "root": str(tmp_path / "scenes"), "size": [64, 96], "loader": "torch"})
    choice = ("--methods", "kd", "--seeds", "0", f"--set=data={data}", "--set=teacher.scale=2", "--hold-out", "[34]")

    assert distillation.main(_arguments(tmp_path, *choice)) == 0

    for run in ("teacher", "kd-0"):
        index = json.loads((tmp_path / "runs" / run / "data" / "index.json").read_text(encoding="utf-8"))
        ids = {split: [sample["id"] for sample in samples] for split, samples in index["splits"].items()}
        assert ids == {"train": ["10", "5", "6", "7", "8", "9"], "val": ["3", "4"]}, run
    result = json.loads((tmp_path / "result.json").read_text(encoding="utf-8"))
    (cell,) = result["cells"]
    assert (result["hold_out"], cell["images"]) == ("[34]", 2)
    # the teacher is scored on frames of its own size, as when its best epoch was chosen
    taken = json.loads((tmp_path / "runs" / "teacher" / "stages" / "teacher.json").read_text(encoding="utf-8"))[
        "result"
    ]
    assert result["teacher"]["miou"] == pytest.approx(taken["miou"], abs=1e-6)


def test_seeds_and_methods_stand_once(capsys: pytest.CaptureFixture[str]) -> None:
    for option, twice in (("--seeds", "0,1,00"), ("--methods", "none,kd,none")):
        with pytest.raises(SystemExit):
            distillation.main(["recipe.yaml", option, twice])
        assert f"twice stands {'0' if option == '--seeds' else 'none'}" in capsys.readouterr().err


def _save_scenes(root: Path) -> None:
    (root / "images").mkdir(parents=True)
    (root / "classes.yaml").write_text(yaml.safe_dump({"names": list(CLASSES)}), encoding="utf-8")
    for seed in range(11):
        split, (pixels, labels) = "val" if seed < 3 else "train", draw_scene(seed, 64, 96)
        for kind, content in (("images", pixels), ("labels", labels)):
            path = root / kind / split / f"{seed}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(content).save(path)


def _save_encoder_weights(path: Path, seed: int) -> None:
    spec = ModelSpec("FPN", "tu-mobilenetv3_small_050", classes=4)
    encoder = build_model(spec, encoder_weights=None, seed=seed).get_submodule("encoder.model")
    save_file(encoder.state_dict(), path)


@pytest.mark.usefixtures("in_root")
def test_what_is_wrong_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert distillation.main(_arguments(tmp_path, "--methods", "none,magic")) == 2
    assert "--methods: unknown magic; there are none, kd, skd" in capsys.readouterr().err
    assert distillation.main(_arguments(tmp_path, "--methods", "none", "--seeds", "0", "--finished")) == 2
    assert "--finished: none of the 1 cells is done" in capsys.readouterr().err
    for pattern in ("abc*", "*_L", "[ab]*", "0001", "yes", "\N{GRINNING FACE}: *"):
        assert distillation.main(_arguments(tmp_path, "--hold-out", pattern)) == 2
        assert "drawn scenes have no sequences to hold out" in capsys.readouterr().err, pattern
    for wrong, message in (
        (("--only", "brd"), "--only chooses among --arms, which is not given"),
        (("--jobs", "0"), "argument --jobs: expected a whole number from 1, got '0'"),
        (("--seeds", "0,a"), "expected whole numbers such as 0,1,2, came '0,a'"),
        (("--seeds", ","), "expected whole numbers such as 0,1,2, came ','"),
        (("--methods", ""), "argument --methods: expected one name or more, separated by commas, came ''"),
        (("--methods", ","), "argument --methods: expected one name or more, separated by commas, came ','"),
        (("--arms", "a.yaml", "--only", ","), "argument --only: expected one name or more, separated by commas"),
        (("--arms", "a.yaml", "--methods", "kd"), "--methods: --arms compares settings instead of methods"),
    ):
        with pytest.raises(SystemExit, match="2"):
            distillation.main(_arguments(tmp_path, *wrong))
        assert message in capsys.readouterr().err
    assert not (tmp_path / "runs").exists(), "what cannot work leaves nothing behind"


@pytest.mark.usefixtures("in_root")
@pytest.mark.parametrize(
    ("arms", "message"),
    [
        ("[1, 2]", "expected a mapping of names to lists of KEY=VALUE, such as `kd: [distill.method=kd]`, came [1, 2]"),
        ("{}", "expected a mapping of names to lists of KEY=VALUE, such as `kd: [distill.method=kd]`, came {}"),
        ("{a: [}", "expected a mapping of names to lists of KEY=VALUE, such as `kd: [distill.method=kd]` ("),
        ("mine: distill.method=kd", 'mine: expected a list of KEY=VALUE, such as `mine: ["distill.method=kd"]` ('),
        (
            "mine:",
            'mine: expected a list of KEY=VALUE, such as `mine: ["distill.method=kd"]` (`mine: []` changes nothing',
        ),
        ("mine: [distill.method: kd]", "came [{'distill.method': 'kd'}]"),
        ("{good: [], mine: [distill.metod=kd]}", "mine: pipelines/quickstart.yaml: 1 error\n  distill.metod: "),
        ("mine: [distill.train.epochs=none]", "mine: pipelines/quickstart.yaml: 1 error\n  distill.train.epochs: "),
        ("mine: [distill.method]", "mine: --set distill.method: expected key=value"),
        ("mine: [student.encoder=resnet81]", "mine: student.encoder: "),
    ],
)
def test_wrong_arms_are_found_before_a_teacher_is_trained(
    arms: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "arms.yaml"
    file.write_text(arms, encoding="utf-8")
    arguments = ["pipelines/quickstart.yaml", "--arms", str(file), "--directory", str(tmp_path / "runs")]
    assert distillation.main([*arguments, "--output", str(tmp_path / "result.json")]) == 2
    told = capsys.readouterr().err
    assert told.startswith(f"benchmarks.distillation: error: {file}: ") and message in told, told
    assert not (tmp_path / "runs").exists()


@pytest.mark.usefixtures("in_root")
def test_what_else_cells_lack_is_found_before_a_teacher_is_trained(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other.json"
    other.write_text('{"benchmark": "loader"}', encoding="utf-8")
    for given, code, message in (
        (("--reuse", str(tmp_path / "none.json")), 2, "none.json: expected a result of benchmarks.distillation"),
        (("--reuse", str(other)), 2, "other.json: expected a result of benchmarks.distillation"),
        (("--seeds", "0,2147483648"), 2, "  seed: "),
        (("--set", "student.encoder_weights=nowhere.safetensors"), 1, "there is no file nowhere.safetensors"),
    ):
        assert distillation.main(_arguments(tmp_path, "--methods", "none", *given)) == code
        assert message in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


@pytest.mark.usefixtures("in_root")
@pytest.mark.parametrize(
    ("number", "send"), [(signal.SIGINT, os.killpg), (signal.SIGTERM, os.kill), (signal.SIGHUP, os.kill)]
)
def test_an_interruption_saves_the_training_and_is_one_line(
    number: int, send: Callable[[int, int], None], tmp_path: Path
) -> None:
    """A terminal's Ctrl-C reaches every process of the group, the others the first alone.

    Another process waits for cells to score.
    """
    training = tmp_path / "runs" / "long-0"
    with _long_training(tmp_path) as running:
        pipelines = pipelines_in(training)
        send(running.pid, number)
        code = running.wait(timeout=120)
        left = pipelines_in(training)
    told = (tmp_path / "stderr").read_text(encoding="utf-8")
    assert code == 130, told
    assert len(pipelines) == 1
    assert left == []
    assert "Traceback" not in told, told
    assert re.search(r"stopped (at step \d+ of 19998|while validating); run it again to go on", told), told
    assert told.endswith("benchmarks.distillation: long, seed 0 was interrupted; run it again to go on\n"), told
    assert (tmp_path / "runs" / "short-0" / "scores.json").exists()
    assert not (training / "scores.json").exists()


@pytest.mark.usefixtures("in_root")
def test_nothing_goes_on_when_the_command_is_killed(tmp_path: Path) -> None:
    """The training saves what it has, and lets go of the run directory."""
    with _long_training(tmp_path) as running:
        assert len(in_session(running.pid)) > 2, "the command, the training, and a worker that waits for cells to score"
        running.kill()
        running.wait()
        wait_for(lambda: not in_session(running.pid))
    told = (tmp_path / "stderr").read_text(encoding="utf-8")
    assert "Traceback" not in told, told
    assert re.search(r"stopped (at step \d+ of 19998|while validating); run it again to go on", told), told


@contextmanager
def _long_training(directory: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run the command until one cell is scored and the next one, of many epochs, has a checkpoint."""
    arms, training = directory / "arms.yaml", directory / "runs" / "long-0"
    arms.write_text("{short: [distill.method=none], long: [distill.method=kd, distill.train.epochs=9999]}")
    arguments = _arguments(directory, "--arms", str(arms), "--seeds", "0", "--set", "distill.train.checkpoint_s=1")
    # whoever runs the tests in the background lets them ignore the signal, and a program inherits that
    heeding = (
        "import os, signal, sys; [signal.signal(n, signal.SIG_DFL) for n in (signal.SIGINT, signal.SIGHUP)]; "
        "os.execv(sys.argv[1], sys.argv[1:])"
    )
    command = [sys.executable, "-c", heeding, sys.executable, "-m", "benchmarks.distillation", *arguments]
    with (
        (directory / "stderr").open("w") as stderr,
        subprocess.Popen(command, stderr=stderr, start_new_session=True) as running,
    ):
        try:
            wait_for((training / "distill" / "checkpoint.safetensors").exists, running)
            yield running
        finally:
            for process in in_session(running.pid):
                os.kill(process, signal.SIGKILL)
