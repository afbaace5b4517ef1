from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from brd_edge.data.layouts import LAYOUTS
from brd_edge.json_schemas import SCHEMAS, json_schema, main
from brd_edge.planning import format_plan, plan
from brd_edge.recipe import DataSection, load_recipe
from brd_edge.recipe_yaml import read_yaml, used_variables
from brd_edge.run import Run
from brd_edge.runtime.contract import InputContract
from brd_edge.runtime.errors import RecipeError
from brd_edge.stages import STAGES

ROOT = Path(__file__).parents[1]
QUICKSTART = ROOT / "pipelines" / "quickstart.yaml"


@pytest.mark.parametrize("path", sorted((ROOT / "pipelines").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_recipe_is_valid_and_can_be_planned(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for layout in LAYOUTS.values():
        monkeypatch.delenv(layout.variable, raising=False)
    recipe = load_recipe(path, environment={})

    assert recipe.name == path.stem, "the run directory is named after the recipe"
    run = Run(tmp_path)
    text = format_plan(run, plan(run, recipe, list(STAGES), first=None, force=False), recipe, list(STAGES))
    for name in STAGES:
        assert name in text
    if recipe.data.layout != "scenes":
        variable = LAYOUTS[recipe.data.layout].variable
        assert f"missing: {LAYOUTS[recipe.data.layout].title}: {variable} is not set" in text
    assert list(tmp_path.iterdir()) == [], "a plan changes nothing"


def test_a_teacher_of_other_frames_is_told_before_the_run(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    contract = InputContract(height=64, width=96, mean=(0.1, 0.2, 0.3), std=(1.0, 1.0, 1.0))
    sidecar = {"contract": contract.to_json()}
    (tmp_path / "brd_edge.json").write_text(json.dumps(sidecar), encoding="utf-8")
    overrides = ["teacher.train=null", f"teacher.checkpoint={tmp_path}"]
    recipe = load_recipe(QUICKSTART, overrides=overrides, environment={})
    (problem,) = STAGES["teacher"].missing(recipe)
    assert problem.startswith(f"teacher.checkpoint: {tmp_path} was trained with another input contract (mean: ")
    same = load_recipe(
        QUICKSTART, overrides=[*overrides, "data.mean=[0.1,0.2,0.3]", "data.std=[1,1,1]"], environment={}
    )
    assert STAGES["teacher"].missing(same) == []


def test_crops_that_are_larger_than_frames_are_told() -> None:
    recipe = load_recipe(ROOT / "pipelines" / "camvid_cpu.yaml", overrides=["data.size=[96, 128]"], environment={})
    (note,) = STAGES["teacher"].notes(recipe)
    assert note.startswith("teacher.train.crop: 128x176 (height x width) is larger than a frame of 96x128")
    assert STAGES["distill"].notes(recipe) == []


def test_layouts_of_the_schema_are_those_of_the_package() -> None:
    schema = DataSection.model_json_schema()

    assert set(schema["properties"]["layout"]["enum"]) == {"scenes", *LAYOUTS}


@pytest.mark.parametrize(("name", "directory"), [("recipe", "pipelines"), ("benchmark", "docs")])
def test_committed_json_schema_is_current(
    name: str, directory: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main([name, "--check", str(ROOT / directory / f"{name}.schema.json")]) == 0

    stale = tmp_path / "schema.json"
    stale.write_text("{}", encoding="utf-8")
    assert main([name, "--check", str(stale)]) == 1
    assert "make schema" in capsys.readouterr().err


@pytest.mark.parametrize("kind", SCHEMAS)
def test_json_schema_describes_every_key(kind: str) -> None:
    schema = json_schema(kind)

    parts = schema["$defs"] | ({kind: schema} if kind == "benchmark" else {})
    for name, section in parts.items():
        for key, value in section["properties"].items():
            assert "description" in value or "$ref" in value or "allOf" in value, f"{name}.{key} has no description"
    json.dumps(schema, allow_nan=False)


def test_a_key_of_other_sections_is_told_with_its_paths() -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(QUICKSTART, overrides=["epochs=3"], environment={})
    assert "epochs: unknown key; did you mean teacher.train.epochs or distill.train.epochs?" in str(caught.value)


def test_all_errors_are_shown_together_with_their_paths() -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(
            QUICKSTART,
            overrides=[
                "distil.method=kd",
                "distill.lamda_kd=3",
                "distill.train.epochs=0",
                "data.layout=camvidd",
                "data.size=[128]",
                "data.mean=0.5",
                "distill.boundary_strides=16",
                "engines.0.target=toaster",
                "teacher.train=",
            ],
            environment={},
        )

    message = str(caught.value)
    assert "9 errors" in message
    # a line each, also where a key's description has more
    assert len(message.splitlines()) == 1 + 9
    assert "distil: unknown key; did you mean distill?" in message
    assert "distill.lamda_kd: unknown key; did you mean lambda_kd?" in message
    assert "distill.train.epochs: expected greater than or equal to 1, got 0" in message
    assert "data.layout: unknown layout 'camvidd'; did you mean camvid? there are scenes, ade20k, camvid" in message
    assert "data.size.1: missing" in message
    assert "data.mean: expected a list in brackets (Mean per RGB channel, on the scale 0 to 1), got 0.5" in message
    assert "unknown target 'toaster'" in message
    assert "teacher.train: expected a section with keys of its own, got ''" in message


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["student.arch=MAnet"], "with encoder tu-mobilenetv3_small_050 does"),
        (["student.encoder=mit_b0", "engines.2.target=rtx-sm75"], "in place of rtx-sm75: rtx-sm80, rtx-sm86"),
        (["student.encoder=mit_b0", "engines.2.precision=int8"], "take fp16 or int8-fp16 in place of int8"),
    ],
)
def test_matrices_that_turing_cannot_multiply_are_refused(settings: list[str], words: str) -> None:
    overrides = ["student.options={}", *settings]
    with pytest.raises(RecipeError, match=r"engines\.2: TensorRT-RTX multiplies no float32 matrices on SM75") as caught:
        load_recipe(QUICKSTART, overrides=overrides)
    assert words in str(caught.value)
    load_recipe(QUICKSTART, overrides=[*overrides, "engines.2.precision=fp16"])
    load_recipe(QUICKSTART, overrides=[*overrides, "engines.2={runtime: tensorrt, target: rtx-sm80}"])


def test_an_npu_takes_one_frame_at_a_time() -> None:
    engine = "engines.0={runtime: openvino, precision: fp16, target: TARGET, batch_max: 2}"
    with pytest.raises(RecipeError, match=r"engines\.0: target 'intel-npu' takes graphs of fixed shape"):
        load_recipe(QUICKSTART, overrides=[engine.replace("TARGET", "intel-npu")])
    load_recipe(QUICKSTART, overrides=[engine.replace("TARGET", "intel-igpu")])


@pytest.mark.parametrize("arch", ["Unet", "Linknet"])
def test_sparse_output_needs_a_head_that_upsamples(arch: str) -> None:
    overrides = [f"student.arch={arch}", "student.options={}", "engines.1.output=sparse"]
    with pytest.raises(RecipeError, match=rf"1 error\n  engines\.1: output: .* that of {arch} does") as caught:
        load_recipe(QUICKSTART, overrides=overrides)
    assert "say auto (as when it is left out) or dense" in str(caught.value)
    assert "student.arch is one of DeepLabV3, DeepLabV3Plus, FPN, PSPNet, Segformer, UPerNet" in str(caught.value)
    load_recipe(QUICKSTART, overrides=[*overrides, "engines.1.output=auto"])
    load_recipe(QUICKSTART, overrides=[*overrides, "student.arch=FPN"])


def test_a_list_is_empty_only_where_nothing_stands_in_it() -> None:
    with pytest.raises(RecipeError, match=r"1 error\n  engines\.0: unknown target 'toaster'"):
        load_recipe(QUICKSTART, overrides=["engines=[{runtime: openvino, target: toaster}]"])
    with pytest.raises(RecipeError, match=r"1 error\n  engines: expected at least 1 item, got \[\]"):
        load_recipe(QUICKSTART, overrides=["engines=[]"])
    # of another list nothing is hidden
    with pytest.raises(RecipeError, match="2 errors"):
        load_recipe(QUICKSTART, overrides=["engines=[]", "distill.relation_layers=[64]"])


def test_a_teacher_sees_more_only_of_frames_that_are_resized() -> None:
    with pytest.raises(RecipeError, match=r"teacher\.scale: 2 needs frames that are resized"):
        load_recipe(QUICKSTART, overrides=["teacher.scale=2", "data.sliding_window=true"])
    assert load_recipe(QUICKSTART, overrides=["teacher.scale=2"]).teacher.scale == 2


def test_missing_keys_say_what_is_expected(tmp_path: Path) -> None:
    path = tmp_path / "empty.yaml"
    path.write_text("name: x\ndata: {layout: scenes}\n", encoding="utf-8")

    with pytest.raises(RecipeError) as caught:
        load_recipe(path)

    assert "data.size: missing; expected: Height and width in pixels" in str(caught.value)
    assert "teacher: missing; expected a section: The large model" in str(caught.value)


def test_values_that_would_fail_late_are_refused_at_once() -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(
            QUICKSTART,
            overrides=[
                "student.arch=DeepLabV3Plsu",
                "benchmark.samples_min=14000",
                "data.std=[0, 1, 1]",
                "data.mean=[.nan, 0, 0]",
                "int8.reduce_range=maybe",
            ],
        )

    message = str(caught.value)
    assert "student.arch: unknown architecture 'DeepLabV3Plsu'; did you mean DeepLabV3Plus?" in message
    assert "samples_min 14000 is above samples_max" in message
    assert "data.std.0: expected greater than 0, got 0" in message
    assert "data.mean.0: expected" in message
    assert "int8.reduce_range: expected 'auto', True or False, got 'maybe'" in message


def test_teacher_needs_exactly_one_source() -> None:
    with pytest.raises(RecipeError, match="give either `checkpoint`"):
        load_recipe(QUICKSTART, overrides=["teacher.checkpoint=/some/teacher"])


def test_an_engine_stands_once() -> None:
    engine = "{runtime: openvino, precision: fp32, target: x86-cpu}"

    with pytest.raises(RecipeError, match="stand twice: openvino/fp32/x86-cpu"):
        load_recipe(QUICKSTART, overrides=[f"engines=[{engine}, {engine}]"])
    several = engine.replace("}", ", batch_max: 4}")
    assert [
        found.batch_max for found in load_recipe(QUICKSTART, overrides=[f"engines=[{engine}, {several}]"]).engines
    ] == [
        1,
        4,
    ]
    with pytest.raises(RecipeError, match="stand twice: openvino/fp32/x86-cpu/batch4"):
        load_recipe(QUICKSTART, overrides=[f"engines=[{several}, {several}]"])
    with pytest.raises(RecipeError, match=r"engines\.0\.batch_max"):
        load_recipe(QUICKSTART, overrides=["engines.0.batch_max=65"])


def test_variables_that_are_used_are_named() -> None:
    content = read_yaml(ROOT / "pipelines" / "camvid_cpu.yaml")
    assert used_variables(content, {}) == []
    assert used_variables(content, {"CAMVID_ROOT": "/data", "TEACHER_WEIGHTS": "", "HOME": "/"}) == ["CAMVID_ROOT"]
    both = {"TEACHER_WEIGHTS": "w", "CAMVID_ROOT": "/data"}
    assert used_variables(content, both) == ["CAMVID_ROOT", "TEACHER_WEIGHTS"]
    assert used_variables({"a": ["${A}/${B:-c}", 3, {"b": "${A}"}]}, {"A": "1", "B": "2"}) == ["A", "B"]


def test_variables_come_from_the_environment() -> None:
    camvid = ROOT / "pipelines" / "camvid.yaml"

    found = load_recipe(camvid, environment={"CAMVID_ROOT": "/data/cam vid", "TEACHER_WEIGHTS": "w.safetensors"})
    unset = load_recipe(camvid, environment={})

    assert (found.data.root, found.teacher.encoder_weights) == ("/data/cam vid", "w.safetensors")
    assert (unset.data.root, unset.teacher.encoder_weights) == (None, "imagenet")


def test_a_variable_without_default_must_be_set() -> None:
    overrides = ["data.root=${NOWHERE}", "name=${ALSO_NOWHERE}"]

    with pytest.raises(RecipeError) as caught:
        load_recipe(QUICKSTART, overrides=overrides, environment={})

    assert "data.root: ${NOWHERE} needs the environment variable NOWHERE" in str(caught.value)
    assert "name: ${ALSO_NOWHERE}" in str(caught.value)


def test_overrides_reach_lists_and_keep_types() -> None:
    recipe = load_recipe(
        QUICKSTART, overrides=["distill.train.epochs=3", "data.size=[64, 96]", "engines.1.runtime=openvino"]
    )

    assert (recipe.distill.train.epochs, recipe.data.size, recipe.engines[1].runtime) == (3, (64, 96), "openvino")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("epochs", "expected key=value"),
        ("=3", "expected key=value"),
        ("engines.9.target=x", "a list of 3"),
        ("name.first=x", "has no keys"),
        ("name=[", "not valid YAML"),
        (f"name={'[' * 2000}", "not valid YAML"),
        ("student.options={a: 1, a: 2}", "the key a stands twice"),
        ("student.options=&a [*a]", r"an alias \(\*name\) stands within the value that it names"),
    ],
)
def test_bad_overrides_are_named(override: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message) as caught:
        load_recipe(QUICKSTART, overrides=[override])

    assert f"--set {override}" in str(caught.value)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["distill.boundary_strides=[]"], "distill.boundary_strides: expected at least 1 item, got []"),
        (
            ["distill.method=skd", "distill.lambda_kd=0", "distill.lambda_skd=0"],
            "distill: method `skd` distils nothing with lambda_kd = lambda_skd = 0; make one larger, or take method: n",
        ),
    ],
)
def test_a_distillation_of_nothing_is_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(QUICKSTART, overrides=overrides)

    assert f"1 error\n  {message}" in str(caught.value)
    plain = load_recipe(QUICKSTART, overrides=["distill.method=none", "distill.lambda_kd=0"])
    assert plain.distill.method == "none"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seed=no", "seed: expected a number, got False (YAML reads yes, on and true as True, no, off and false as"),
        ("distill.train.epochs=yes", "distill.train.epochs: expected a number, got True"),
        ("distill.train.lr=on", "distill.train.lr: expected a number, got True"),
        ("distill.boundary_kernel=off", "distill.boundary_kernel: expected a number, got False"),
        ("distill.boundary_class_kernels=[off, 3]", "distill.boundary_class_kernels: expected numbers, got [False, 3]"),
        ("data.size=[64, true]", "data.size: expected numbers, got [64, True]"),
        ("data.mean=[0.5, 0.5, no]", "data.mean: expected numbers, got [0.5, 0.5, False]"),
        ("gates.size_bytes_max=true", "gates.size_bytes_max: expected a number, got True"),
        ("engines.0.batch_max=true", "engines.0.batch_max: expected a number, got True"),
    ],
)
def test_a_boolean_is_no_number(override: str, message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(QUICKSTART, overrides=[override])
    assert f"1 error\n  {message}" in str(caught.value)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("distill.train.lr=viel", "distill.train.lr: expected a number, got 'viel'"),
        ("distill.train.epochs=viele", "distill.train.epochs: expected a whole number, got 'viele'"),
        ("distill.train.epochs=2.5", "distill.train.epochs: expected a whole number, got 2.5"),
        (
            "name=../x",
            "name: expected letters, digits, dots, dashes and underscores, a letter or digit first, got '../x'",
        ),
    ],
)
def test_what_is_expected_is_told_in_words(override: str, message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(QUICKSTART, overrides=[override])
    assert f"1 error\n  {message}" in str(caught.value)


def test_booleans_and_numbers_in_text_are_taken_where_they_are_meant() -> None:
    overrides = [
        "benchmark.saturated=yes",
        "int8.reduce_range=off",
        "distill.train.crop=null",
        "distill.train.epochs='3'",
    ]
    overrides += ["student.options={encoder_depth: 5, some: true}", "gates.miou_drop_max=null"]
    recipe = load_recipe(QUICKSTART, overrides=overrides)
    assert (recipe.benchmark.saturated, recipe.int8.reduce_range) == (True, False)
    assert (recipe.distill.train.crop, recipe.distill.train.epochs) == (None, 3)
    assert recipe.student.options == {"encoder_depth": 5, "some": True}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "expected a mapping"),
        (b"- a\n- b\n", "expected a mapping"),
        (b"", "expected a mapping with name, data, teacher, …; got an empty file"),
        (b"name: [", "not valid YAML"),
        (b"name: a\nname: b\n", "the key name stands twice"),
        (b"data: {<<: {a: 1, a: 2}}", "the key a stands twice"),
        (b"name: a\ndata: &d {b: [1, {c: *d}]}\n", r"an alias \(\*name\) stands within the value that it names"),
        (b"\xff\xfe\x00", "cannot be read as UTF-8|not valid YAML"),
        (b"name: !!python/object/apply:os.system ['true']", "not valid YAML"),
    ],
)
def test_files_that_are_no_recipe(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_bytes(content)

    with pytest.raises(RecipeError, match=message) as caught:
        load_recipe(path)

    assert str(path) in str(caught.value)


def test_merge_keys_bring_what_a_mapping_does_not_say(tmp_path: Path) -> None:
    text = """
    teacher:
      train: &short
        <<: [&speed {lr: 0.01, ema: 0.9}, {ema: 0.5, warmup: 0.1}]
        lr: 0.02
    student: {nested: {deep: &deep {<<: *speed, ema: 0.1}}}
    distill: {<<: *deep, train: {epochs: 3, <<: *short, ema: 0}}
    again: [*short, *short]
    """
    path = tmp_path / "merged.yaml"
    path.write_text(text, encoding="utf-8")

    found = read_yaml(path)

    assert found == yaml.safe_load(text)
    assert found["distill"] == {"lr": 0.01, "ema": 0.1, "train": {"epochs": 3, "lr": 0.02, "ema": 0, "warmup": 0.1}}


def test_a_recipe_that_is_not_there() -> None:
    with pytest.raises(RecipeError, match="no such recipe"):
        load_recipe(Path("pipelines/nowhere.yaml"))


def test_drawn_scenes_have_no_sequences_to_hold_out() -> None:
    with pytest.raises(RecipeError, match="drawn scenes have no sequences to hold out"):
        load_recipe(QUICKSTART, overrides=["data.hold_out=a*"])
    recipe = load_recipe(ROOT / "pipelines" / "camvid_cpu.yaml", overrides=["data.hold_out=0001TP_*"], environment={})
    assert recipe.data.hold_out == "0001TP_*"
