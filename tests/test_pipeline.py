"""The whole command on a tiny recipe: every stage is real, only the sizes are small."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image
from safetensors.torch import save_file
from tiny import TINY

from brd_edge import execution
from brd_edge.comparing import compare
from brd_edge.data.index import load_dataset
from brd_edge.distill.checkpoint import load_tensors
from brd_edge.evaluate.benchmark.file import read_benchmark
from brd_edge.evaluate.benchmark.images import read_image_counts
from brd_edge.models.segmentation import ModelSpec, build_model, save_model
from brd_edge.pipeline import main
from brd_edge.recipe import load_recipe
from brd_edge.run import Run, changed_inputs
from brd_edge.runtime.archive import verify_archive
from brd_edge.runtime.segmenter import keys_for
from brd_edge.ship.keys import make_keys
from brd_edge.stages import STAGES

ROOT = Path(__file__).parents[1]
MODELS = ("teacher", "distill")
STAGE_NAMES = list(STAGES)
QUICKSTART = str(ROOT / "pipelines" / "quickstart.yaml")
SETTINGS = (
    *TINY,
    "teacher.scale=2",
    "teacher.train.epochs=2",
    "teacher.train.lambda_overlap=1",
    "distill.train.epochs=3",
    "distill.train.lambda_overlap=1",
    "benchmark.samples_min=5",
    "benchmark.budget_s=0.5",
    "benchmark.cost_budget_s=0.5",
    "benchmark.report_images=2",
)


def _arguments(run: Path, *more: str, settings: Sequence[str] = ()) -> list[str]:
    overrides = [part for setting in (*SETTINGS, *settings) for part in ("--set", setting)]
    return [QUICKSTART, "--run-dir", str(run), *overrides, *more]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("run")
    assert main(_arguments(run)) in (0, 3), "a tiny student may miss its gates, but nothing may fail"
    return run


def test_a_run_leaves_everything(finished: Path) -> None:
    for name in (
        "recipe.yaml",
        "environment.json",
        "run.log",
        "data/index.json",
        "teacher/model/model.safetensors",
        "teacher/metrics.jsonl",
        "distill/model/config.json",
        "export/student.onnx",
        "export/zero_cost.json",
        "benchmark.json",
        "images.npz",
        "latency.npz",
        "report.html",
        "bundle/manifest.json",
    ):
        assert (finished / name).is_file(), name
    assert {path.stem for path in (finished / "stages").iterdir()} == set(STAGES)
    sizes = [json.loads((finished / stage / "model" / "brd_edge.json").read_text())["contract"] for stage in MODELS]
    assert [(size["height"], size["width"]) for size in sizes] == [(128, 192), (64, 96)]
    logged = [
        next(
            json.loads(line)["loss"]
            for line in (finished / stage / "metrics.jsonl").read_text().splitlines()
            if "loss" in line
        )
        for stage in MODELS
    ]
    assert [list(terms)[:2] for terms in logged] == [["ce", "overlap"]] * 2
    exported = json.loads((finished / "stages" / "export.json").read_text(encoding="utf-8"))["result"]
    assert exported["agreement"] >= 0.9999, "the graph says what PyTorch says"
    assert not list(finished.rglob("checkpoint.safetensors")), "unfinished work is cleared away"
    assert str(ROOT) not in (finished / "export" / "student.onnx").read_bytes().decode("latin-1")


def test_graphs_say_where_they_come_from(finished: Path) -> None:
    read = {
        name: {item.key: item.value for item in onnx.load(finished / "export" / f"{name}.onnx").metadata_props}
        for name in ("student", "plain")
    }
    assert set(read["student"]) == set(read["plain"]) >= {"recipe", "method", "commit", "val_miou"}
    assert (read["student"]["method"], read["plain"]["method"]) == ("brd", "none")
    trained = [json.loads(line) for line in (finished / "distill" / "metrics.jsonl").read_text().splitlines()]
    best = max(entry["miou"] for entry in trained if "miou" in entry)
    assert float(read["student"]["val_miou"]) == pytest.approx(best, abs=1e-6)
    assert read["plain"]["val_miou"] == "not trained"
    assert read["student"]["commit"] == read["plain"]["commit"]
    assert re.fullmatch(r"unknown|[0-9a-f]{40}( with changes)?", read["student"]["commit"])
    # or else every commit would export anew
    assert "commit" not in (finished / "stages" / "export.json").read_text()


def test_benchmark_json_has_what_is_documented(finished: Path) -> None:
    benchmark = json.loads((finished / "benchmark.json").read_text(encoding="utf-8"))

    assert read_benchmark(finished / "benchmark.json").schema_version == benchmark["schema_version"] == 3
    assert benchmark["timed_images"] == [sample.id for sample in load_dataset(finished / "data").val]
    proof = benchmark["zero_cost"]
    assert [proof[key] for key in ("equal", "params_equal", "macs_equal", "differences")] == [True, True, True, []]
    costs = {entry["name"].split("-")[0]: entry for entry in proof["engines"]}
    for runtime, entry in costs.items():
        # four rounds do not decide about the latency; size and layers are what they are
        assert entry["differences"] == [], runtime
        assert (entry["layers"] is None) == (runtime == "tensorrt")
        assert (entry["latency"] is None) == (runtime == "tensorrt")
    assert costs["onnxruntime"]["latency"]["comparison"]["pairs"] >= 72
    graph = onnx.load(finished / "export" / "student.onnx").graph
    assert benchmark["zero_cost"]["nodes"] == len(graph.node)
    assert benchmark["student"]["params"] > 0
    # the teacher too is compared with the student on the same images
    gap = benchmark["student"]["miou"] - benchmark["teacher"]["miou"]
    assert benchmark["teacher"]["lost"]["miou"]["value"] == pytest.approx(gap, abs=1e-9)
    assert benchmark["student"]["method"] == "brd"
    engines = {entry["runtime"]: entry for entry in benchmark["engines"]}
    assert set(engines) == {"onnxruntime", "openvino", "tensorrt"}
    assert all(len(entry["agreement"]) == 2 for entry in engines.values()), "each graph was checked in two runtimes"
    for runtime in ("onnxruntime", "openvino"):
        entry = engines[runtime]
        assert entry["status"] == "measured", entry["reason"]
        assert entry["argmax_agreement"] >= 0.9999
        assert entry["miou"] == pytest.approx(benchmark["student"]["miou"], abs=0.002)
        latency = entry["latency_ms"]
        assert latency["n"] == len(entry["samples_ms"]) >= 5
        assert latency["p50"] == pytest.approx(np.percentile(entry["samples_ms"], 50))
        assert 0 < latency["min"] <= latency["p50"] <= latency["p95"] <= latency["p99"]
        assert entry["engine_latency_ms"]["n"] >= 5
        assert (latency["frames"], entry["engine_latency_ms"]["frames"]) == (3, 1)
        assert (entry["throughput"], entry["gates"]["miou_drop_max"]) == (None, 0.5)
        for name in ("miou", "boundary_iou", "pixel_accuracy", "boundary_f", "connectivity_error", "argmax_agreement"):
            low, high = entry["intervals"][name]
            assert low <= entry[name] + 1e-9, name
            assert entry[name] - 1e-9 <= high, name
        files = list((finished / "engines" / entry["name"]).iterdir())
        assert entry["size_bytes"] == sum(path.stat().st_size for path in files if path.name != "engine.json")
    assert engines["tensorrt"]["status"] in {"built", "measured", "skipped"}
    if engines["tensorrt"]["status"] != "measured":
        assert engines["tensorrt"]["reason"]
    attribution = benchmark["attribution"]
    assert attribution["images"] == benchmark["dataset"]["val"] == 3
    measured = [entry["name"] for entry in benchmark["engines"] if entry["status"] == "measured"]
    assert list(dict.fromkeys(step["engine"] for step in attribution["steps"])) == [None, *measured]
    assert all(step["agreement"] >= 0.999 for step in attribution["steps"])
    assert attribution["steps"][0]["miou"] == pytest.approx(benchmark["student"]["miou"], abs=1e-9)
    last = attribution["steps"][-1]
    assert last["miou"] == pytest.approx(engines[last["engine"].split("-")[0]]["miou"], abs=1e-9)


def test_benchmark_json_is_valid_under_its_published_schema(finished: Path) -> None:
    jsonschema = pytest.importorskip("jsonschema", reason="jsonschema is not installed: make install")
    schema = json.loads((ROOT / "docs" / "benchmark.schema.json").read_text(encoding="utf-8"))
    benchmark = json.loads((finished / "benchmark.json").read_text(encoding="utf-8"))
    assert list(jsonschema.Draft202012Validator(schema).iter_errors(benchmark)) == []


def test_counts_of_images_sum_up_to_the_scores(finished: Path) -> None:
    benchmark = read_benchmark(finished / "benchmark.json")
    found = read_image_counts(finished / "images.npz")
    measured = {engine.name: engine for engine in benchmark.engines if engine.status == "measured"}
    assert found.ids == tuple(sample.id for sample in load_dataset(finished / "data").val)
    assert set(found.counts) == {"teacher", "student", *measured}
    for name, scores in {"teacher": benchmark.teacher, "student": benchmark.student, **measured}.items():
        hit, either, *_ = found.counts[name].sum(0)
        assert np.mean(hit[either > 0] / either[either > 0]) == pytest.approx(scores.miou)
    outputs = json.loads((finished / "stages" / "benchmark.json").read_text(encoding="utf-8"))["outputs"]
    assert set(outputs) == {"benchmark.json", "images.npz", "latency.npz"}


def test_ratios_and_percentiles_follow_from_the_recorded_times(finished: Path) -> None:
    benchmark = read_benchmark(finished / "benchmark.json")
    with np.load(finished / "latency.npz", allow_pickle=False) as times:
        for engine in benchmark.engines:
            if engine.status != "measured":
                assert not any(name.startswith(f"{engine.name}/") for name in times.files)
                continue
            assert engine.latency_ms is not None
            assert engine.engine_latency_ms is not None
            assert tuple(times[f"{engine.name}/frame_to_class_map"]) == engine.samples_ms
            alone = times[f"{engine.name}/engine_alone"]
            assert np.percentile(alone, 95) == pytest.approx(engine.engine_latency_ms.p95)
            (cost,) = (item for item in benchmark.zero_cost.engines if item.name == engine.name)
            assert cost.latency is not None
            a, b, control = (
                times[f"{engine.name}/cost/{name}"].reshape(-1, 2).sum(1) for name in ("a", "b", "control")
            )
            for found, mine in ((cost.latency.comparison, b), (cost.latency.control, control)):
                assert found.pairs == len(a)
                assert found.ratio.value == pytest.approx(np.exp(np.median(np.log(mine / a))))


def test_a_run_compared_with_itself(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # a margin that no load on the machine exceeds: what four rounds decide is its affair, but they were made
    assert compare([str(finished), str(finished), "--budget", "0.5", "--margin-percent", "100000", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["worse"] == found["better"] == found["recipe"] == found["environment"] == []
    assert found["images"] == {"count": 3, "only_before": 0, "only_after": 0, "altered": 0, "checked": True}
    assert all(score["verdict"] == "equivalent" for scores in found["scores"].values() for score in scores.values())
    assert "on 3 of B's validation images" in found["latency_method"]
    timed = {engine["name"]: engine["latency"] for engine in found["engines"]}
    assert timed["onnxruntime-fp32-x86-cpu"]["ratio"]["value"] > 0


def test_int8_gets_layers_back_while_it_misses_a_gate(finished: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    engines = (
        "engines=[{runtime: onnxruntime, precision: int8}, "
        "{runtime: tensorrt, precision: fp16, target: jetson-orin, batch_max: 4}, "
        "{runtime: tensorrt, precision: int8-fp16, target: jetson-orin}, {runtime: openvino, batch_max: 2}]"
    )
    gates = "gates={miou_drop_max: 0, overrides: [{runtime: tensorrt, miou_drop_max: null}]}"
    settings = (engines, gates, "int8={images: 4, keep: [head], keep_max: 2}")
    code = main(_arguments(run, "--until", "bundle", settings=settings))

    read_benchmark(run / "benchmark.json")
    entry = json.loads((run / "benchmark.json").read_text(encoding="utf-8"))["engines"][0]
    *before, last = entry["attempts"]
    assert [attempt["kept"] for attempt in entry["attempts"]] == [
        entry["kept"][: 1 + n] for n in range(1 + len(before))
    ]
    assert entry["kept"][0] == "head"
    assert before
    assert all("miou_drop_max" in attempt["missed"][0] for attempt in before)
    # it ended because the gate holds, or else because no more may be given back
    assert len(entry["kept"]) == 3 or not last["missed"]
    assert code == (3 if entry["gates_broken"] else 0)
    quantised = onnx.load(run / entry["graph"]).graph
    scales = {node.input[0] for node in quantised.node if node.op_type == "DequantizeLinear"}
    kept = [
        name for name in scales if any(group.replace("head", "segmentation_head") in name for group in entry["kept"])
    ]
    assert scales
    assert not kept
    # what a device builds comes in the precision that it is built in
    bundled = json.loads((run / "bundle" / "manifest.json").read_text(encoding="utf-8"))["engines"]
    planned = [engine for engine in bundled if engine["build"]]
    assert [engine["name"] for engine in planned] == [
        "tensorrt-fp16-jetson-orin-batch4",
        "tensorrt-int8-fp16-jetson-orin",
    ]
    assert {engine["name"]: engine["batch_max"] for engine in bundled if engine["batch_max"] > 1} == {
        "openvino-fp32-x86-cpu-batch2": 2,
        "tensorrt-fp16-jetson-orin-batch4": 4,
    }
    for engine in planned:
        graph = onnx.load(run / "bundle" / "engines" / engine["name"] / "graph.onnx").graph
        assert onnx.TensorProto.FLOAT16 in {tensor.data_type for tensor in graph.initializer}
        quantised_nodes = [node for node in graph.node if node.op_type == "QuantizeLinear"]
        assert bool(quantised_nodes) == ("int8" in engine["precision"])
        first = graph.input[0].type.tensor_type.shape.dim[0]
        assert bool(first.dim_param) == (engine["batch_max"] > 1)
    several = read_benchmark(run / "benchmark.json").engines[3]
    assert (several.name, several.status) == ("openvino-fp32-x86-cpu-batch2", "measured")
    assert (run / "plain" / several.name / "engine.json").is_file()


def test_a_bundle_holds_golden_frames_that_the_engine_reproduces(finished: Path) -> None:
    ort = pytest.importorskip("onnxruntime")
    bundle = finished / "bundle"
    manifest = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))

    session = ort.InferenceSession(bundle / "student.onnx")
    for name in manifest["golden"]["frames"]:
        frame = np.asarray(Image.open(bundle / "golden" / f"{name}.frame.png"))
        expected = np.asarray(Image.open(bundle / "golden" / f"{name}.class_map.png"))
        (found,) = session.run(None, {"image": frame[None]})
        assert np.mean(found[0] == expected) >= 0.999
    assert {engine["agreement_min"] for engine in manifest["engines"]} <= {0.999}
    found = {path.relative_to(bundle).as_posix() for path in bundle.rglob("*") if path.is_file()}
    assert found == {*manifest["files"], "manifest.json"}


def test_a_second_run_does_nothing(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in (finished / "stages").iterdir()}

    main(_arguments(finished))

    output = capsys.readouterr()
    assert output.err.count(": unchanged") == len(STAGES)
    assert "onnxruntime" in output.out, "the table is shown again"
    assert {path: path.stat().st_mtime_ns for path in (finished / "stages").iterdir()} == before


def test_a_second_run_loads_neither_torch_nor_an_engine(finished: Path) -> None:
    code = (
        "import sys; from brd_edge.pipeline import main; main(sys.argv[1:]); "
        "print('loaded:', sorted({'torch', 'openvino', 'onnxruntime', 'nvidia.dali'} & set(sys.modules)))"
    )
    arguments = _arguments(finished)
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)

    assert "loaded: []" in done.stdout


def test_an_export_setting_does_not_train_again(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(_arguments(finished, "--plan", settings=["export.opset=21"]))

    plan = capsys.readouterr().out
    actions = dict(re.findall(r"^(\w+) +(run|cached|kept|left out) ", plan, re.MULTILINE))
    assert actions == {name: "run" if name not in {"prepare", "teacher", "distill"} else "cached" for name in STAGES}
    assert "changed settings: export" in plan


def test_the_last_stages_sign_and_ship(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], signing_key: Path
) -> None:
    run = tmp_path / "run"
    subprocess.run(["cp", "-r", str(finished), str(run)], check=True)
    device = [f"ship.devices=['loopback:{tmp_path / 'device'}']"]
    assert main(_arguments(run, settings=device)) == 1
    assert "devices take signed bundles only" in capsys.readouterr().err
    settings = [*device, f"bundle.key={signing_key}"]
    assert main(_arguments(run, settings=settings)) in (0, 3)
    output = capsys.readouterr()
    assert output.err.count(": unchanged") == STAGE_NAMES.index("bundle")
    outcome = json.loads((run / "ship.json").read_text(encoding="utf-8"))
    (delivered,) = outcome["devices"]
    assert delivered["status"] == "serving"
    assert delivered["engine"] in (run / "report.html").read_text(encoding="utf-8").split("<!-- devices -->")[1]
    assert verify_archive(run / "bundle.tar.gz", keys_for(run, [signing_key.with_suffix(".pub")])).name == "quickstart"
    assert main(_arguments(run, settings=settings)) in (0, 3)
    assert capsys.readouterr().err.count(": unchanged") == len(STAGES)
    # without a key it is not, and the one that was is not taken away unsaid
    copy = tmp_path / "copy"
    subprocess.run(["cp", "-r", str(run), str(copy)], check=True)
    assert main(_arguments(copy, "--until", "bundle")) in (0, 3)
    assert "note: that bundle was signed; the new one is not before you sign it" in capsys.readouterr().err
    # another key in the same file: signed and delivered again
    signing = tmp_path / "team.key"
    make_keys(signing)
    assert main(_arguments(run, "--plan", settings=[*device, f"bundle.key={signing}"])) == 0
    plan = capsys.readouterr().out
    assert re.search(r"^bundle +run .*signing key", plan, re.MULTILINE | re.DOTALL)
    # who shows the report elsewhere may have moved it
    (run / "report.html").unlink()
    assert main(_arguments(run, "--from", "ship", settings=settings)) in (0, 3)
    assert "report.html is missing, so the devices' figures stand in" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("settings", "message", "code"),
    [
        (["distill.train.crop=[50, 50]"], r"student on distill\.train\.crop: .* divisible by", 1),
        (["distill.train.batch_size=64"], "student: a batch_size of 64 is more than the 8 train images", 1),
        (["teacher.train.batch_size=64"], "teacher: a batch_size of 64 is more than the 8 train images", 1),
        (
            ["int8.keep=[head, foo]", "engines.0.precision=int8"],
            r"int8\.keep: the student has no group or node 'foo'; its groups are encoder\.",
            2,
        ),
    ],
    ids=["crop", "student's batch", "teacher's batch", "layers"],
)
def test_settings_that_cannot_be_used_cost_no_result(
    finished: Path, tmp_path: Path, settings: list[str], message: str, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    subprocess.run(["cp", "-r", str(finished), str(run)], check=True)

    assert main(_arguments(run, settings=settings)) == code

    assert re.search(message, capsys.readouterr().err)
    assert main(_arguments(run)) in (0, 3)
    assert capsys.readouterr().err.count(": unchanged") == len(STAGES)


def test_a_teacher_that_does_not_fit_costs_no_result(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its classes are others: the teacher's stage refuses it, and a training that was interrupted stays as well."""
    run, other = tmp_path / "run", tmp_path / "other"
    subprocess.run(["cp", "-r", str(finished), str(run)], check=True)
    (run / "teacher" / "checkpoint.safetensors").write_bytes(b"unfinished")
    spec = ModelSpec("FPN", "tu-mobilenetv3_small_050", 2, {})
    save_model(build_model(spec, encoder_weights=None, seed=0), spec, other)
    given = ["teacher.train=null", f"teacher.checkpoint={other}", "teacher.scale=1"]
    settings = [setting for setting in SETTINGS if not setting.startswith("teacher.")]
    arguments = [part for setting in (*settings, *given) for part in ("--set", setting)]

    assert main([QUICKSTART, "--run-dir", str(run), *arguments]) == 1

    assert "the teacher has 2 classes" in capsys.readouterr().err
    assert (run / "benchmark.json").is_file()
    spec = ModelSpec("FPN", "tu-mobilenetv3_small_050", 9, {})
    save_model(build_model(spec, encoder_weights=None, seed=0), spec, other)
    assert main([QUICKSTART, "--run-dir", str(run), "--until", "teacher", *arguments]) == 0
    assert (run / "teacher" / "other-settings.checkpoint.safetensors").read_bytes() == b"unfinished"
    # a file of a known name further down hides no change of the one that is read
    subprocess.run(["cp", "-r", str(other), str(tmp_path / "old")], check=True)
    (tmp_path / "old").rename(other / "old")
    recipe = load_recipe(Path(QUICKSTART), overrides=given)
    before = STAGES["teacher"].files(recipe)
    save_model(build_model(spec, encoder_weights=None, seed=1), spec, other)
    assert changed_inputs(before, STAGES["teacher"].files(recipe)) == [
        "teacher brd_edge.json",
        "teacher model.safetensors",
    ]


def test_a_plan_tells_what_would_be_refused_before_the_data_are_prepared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = ["data.size=[63, 95]", "student.options={decoder_chanels: 64}", "device=cpu"]

    assert main(_arguments(tmp_path / "run", "--plan", settings=settings)) == 0

    lines = capsys.readouterr().out.splitlines()
    refused = [line for line in lines if line.startswith("refused: ")]
    assert len(refused) == 2
    assert "teacher on data.size times 2: DeepLabV3Plus needs a height and width divisible by 16" in refused[0]
    assert refused[1].startswith("refused: student: ")
    assert "decoder_chanels" in refused[1]
    assert main(_arguments(tmp_path / "run", "--plan")) == 0
    assert "refused" not in capsys.readouterr().out


def test_a_plan_refuses_models_that_cannot_be_matched_and_names_the_terms(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = ["distill.relation_layers=[32]", "distill.lambda_boundary=0", "distill.lambda_relation=0.25"]

    assert main(_arguments(tmp_path / "run", "--plan", settings=settings)) == 0

    printed = " ".join(capsys.readouterr().out.split())
    assert "with brd (boundary_classes 6, relation 0.25)" in printed
    assert "refused: distill.relation_layers: [32] are not stages of both backbones" in printed
    assert "student encoder.16: stride 16" in printed


def test_a_plan_refuses_a_teacher_of_other_classes_than_the_prepared_data(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = ModelSpec("FPN", "resnet18", classes=19)
    save_model(build_model(spec, encoder_weights=None, seed=0), spec, tmp_path)
    settings = ["teacher.train=null", f"teacher.checkpoint={tmp_path}"]

    assert main(_arguments(finished, "--plan", settings=settings)) == 0

    (refused,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("refused: "))
    assert f"{tmp_path}: the teacher has 19 classes, the data set has 9" in refused


def test_a_plan_refuses_a_directory_that_the_run_would_refuse(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "thesis.tex").touch()
    itself = f"benchmark.compare_run={finished}"
    for directory, settings, why in (
        (tmp_path, [], "is no run directory, and holds something else (thesis.tex)"),
        (tmp_path / "thesis.tex", [], "cannot be used as a run directory: it is a file"),
        (finished, ["name=other"], "holds a run of the recipe 'quickstart', this is 'other'"),
        (finished, [itself], "is the run directory itself"),
    ):
        assert main(_arguments(directory, "--plan", settings=settings)) == 0
        refused = [line for line in capsys.readouterr().out.splitlines() if line.startswith("refused: ")]
        assert [why in line for line in refused] == [True], (why, refused)
        assert main(_arguments(directory, settings=settings)) in (1, 2)
        assert why in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_data_that_are_refused_cost_no_recipe(finished: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    subprocess.run(["cp", "-r", str(finished), str(run)], check=True)
    before = (run / "recipe.yaml").read_bytes()
    settings = ["data.layout=folder", f"data.root={tmp_path / 'data'}"]
    for kind in ("images", "labels"):
        for split in ("train", "val"):
            (tmp_path / "data" / kind / split).mkdir(parents=True)
    (tmp_path / "data" / "classes.yaml").write_text("names: [road, car]", encoding="utf-8")

    assert main(_arguments(run, "--until", "prepare", settings=settings)) == 1

    assert (run / "recipe.yaml").read_bytes() == before


def test_a_broken_gate_is_exit_code_3_and_is_not_bundled(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = main(_arguments(finished, settings=["gates.size_bytes_max=10"]))

    output = capsys.readouterr()
    assert code == 3
    assert "size_bytes_max" in output.err
    manifest = json.loads((finished / "bundle" / "manifest.json").read_text(encoding="utf-8"))
    assert not any(entry["runtime"] in ("onnxruntime", "openvino") for entry in manifest["engines"])


def test_a_run_is_not_compared_with_itself_while_it_is_made(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (finished / "benchmark.json").read_bytes()
    settings = [f"benchmark.compare_run={finished}"]
    assert main(_arguments(finished, "--from", "benchmark", settings=settings)) == 2
    assert "benchmark.compare_run" in capsys.readouterr().err
    assert (finished / "benchmark.json").read_bytes() == before


def test_a_compared_run_of_another_format_is_told(finished: Path, tmp_path: Path) -> None:
    recipe = load_recipe(Path(QUICKSTART), overrides=[f"benchmark.compare_run={tmp_path}"])
    benchmark = json.loads((finished / "benchmark.json").read_text(encoding="utf-8"))
    for content in ("[]", "{}", json.dumps({**benchmark, "schema_version": 1})):
        (tmp_path / "benchmark.json").write_text(content, encoding="utf-8")
        (problem,) = STAGES["benchmark"].missing(recipe)
        assert problem.startswith(f"benchmark.compare_run: {tmp_path / 'benchmark.json'}: ")
        STAGES["benchmark"].files(recipe)


@pytest.mark.parametrize(
    ("what", "message"),
    [("size", r"compare_run: the engine .*height"), ("classes", "compare_run: .* has other classes than this run")],
)
def test_a_run_that_cannot_be_compared_costs_no_result(
    finished: Path, tmp_path: Path, what: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other"
    shutil.copytree(finished, other)
    if what == "classes":
        benchmark = json.loads((other / "benchmark.json").read_text(encoding="utf-8"))
        benchmark["dataset"]["classes"][0] = "kerb"
        (other / "benchmark.json").write_text(json.dumps(benchmark), encoding="utf-8")
    else:
        for sidecar in other.glob("engines/*/engine.json"):
            engine = json.loads(sidecar.read_text(encoding="utf-8"))
            engine["contract"]["height"] *= 2
            sidecar.write_text(json.dumps(engine), encoding="utf-8")
    before = {path: path.read_bytes() for path in finished.glob("*.*") if path.name != "run.log"}

    assert main(_arguments(finished, settings=[f"benchmark.compare_run={other}"])) == 1

    assert re.search(message, capsys.readouterr().err)
    assert {path: path.read_bytes() for path in before} == before
    assert (finished / "bundle" / "manifest.json").is_file()


def test_what_is_chosen_by_time_depends_on_the_threads() -> None:
    def key(*more: str) -> str:
        recipe = load_recipe(Path(QUICKSTART), overrides=more)
        return str(STAGES["build"].settings(recipe)) + str(STAGES["build"].files(recipe))

    threads, dense = "benchmark.threads=1", "engines=[{runtime: onnxruntime, output: dense}]"
    assert key() != key(threads)
    assert key(dense) == key(dense, threads)


@pytest.mark.parametrize("stage", ["build", "benchmark"])
def test_what_was_timed_is_timed_again_where_something_changes_speed(
    stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = load_recipe(Path(QUICKSTART))
    monkeypatch.delenv("BRD_EDGE_NO_MODEL_CACHE", raising=False)
    before = STAGES[stage].files(recipe)
    monkeypatch.setenv("BRD_EDGE_NO_MODEL_CACHE", "1")
    without_cache = STAGES[stage].files(recipe)
    monkeypatch.setattr("brd_edge.stages.build.package_version", lambda name: None if name == "numba" else "1")
    without_numba = STAGES[stage].files(recipe)
    assert changed_inputs(before, without_cache) == ["OpenVINO's model cache"]
    assert "package numba" in changed_inputs(without_cache, without_numba)


def test_until_and_from(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(_arguments(tmp_path, "--until", "prepare")) == 0
    assert main(_arguments(tmp_path, "--from", "distill")) == 1
    assert "the stage teacher has not been done" in capsys.readouterr().err
    assert main(_arguments(tmp_path, "--from", "prepare", "--until", "prepare")) == 0
    assert "(--from)" in capsys.readouterr().err
    with pytest.raises(SystemExit) as caught:
        main(_arguments(tmp_path, "--from", "build", "--until", "export"))
    assert caught.value.code == 2


def test_a_missing_data_set_is_one_clear_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CITYSCAPES_ROOT", raising=False)
    recipe = str(ROOT / "pipelines" / "cityscapes_jetson.yaml")

    assert main([recipe, "--run-dir", str(tmp_path)]) == 1

    error = capsys.readouterr().err
    assert "CITYSCAPES_ROOT is not set" in error
    assert "Traceback" not in error


def test_a_wrong_recipe_is_exit_code_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([QUICKSTART, "--run-dir", str(tmp_path), "--set", "distill.methd=kd"]) == 2
    assert "did you mean method?" in capsys.readouterr().err


def test_a_runtime_that_is_not_installed_is_skipped(finished: Path, tmp_path: Path) -> None:
    """In a process where OpenVINO cannot be found, the other engine is built all the same."""
    blocker = (
        "import sys, importlib.metadata as m\n"
        "class Block:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] == 'openvino': raise ModuleNotFoundError(name, name=name)\n"
        "sys.meta_path.insert(0, Block())\n"
        "real = m.version\n"
        "def version(name):\n"
        "    if name == 'openvino': raise m.PackageNotFoundError(name)\n"
        "    return real(name)\n"
        "m.version = version\n"
        "from brd_edge.pipeline import main\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    run = tmp_path / "run"
    subprocess.run(["cp", "-r", str(finished), str(run)], check=True)
    engines = "engines=[{runtime: openvino}, {runtime: onnxruntime}]"

    done = subprocess.run(
        [sys.executable, "-c", blocker, *_arguments(run, settings=[engines, "gates={}"])],
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    benchmark = json.loads((run / "benchmark.json").read_text(encoding="utf-8"))
    skipped, measured = benchmark["engines"]
    assert skipped["status"] == "skipped"
    assert 'pip install "brd-edge[openvino]"' in skipped["reason"]
    assert measured["status"] == "measured"


def test_a_failed_engine_is_told_wherever_the_run_ends(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    subprocess.run(["cp", "-r", str(finished), str(run)], check=True)
    settings = ["engines=[{runtime: onnxruntime, precision: int8}]", "int8.choice=no such image"]
    for again in ("onnxruntime-int8-x86-cpu failed", "build: unchanged"):
        assert main(_arguments(run, "--until", "build", settings=settings)) == 1
        error = capsys.readouterr().err
        assert again in error
        assert "engines that failed (--from build tries again):\n  onnxruntime-int8-x86-cpu: int8.choice:" in error
    assert main(_arguments(run, "--until", "export", settings=settings)) == 0


def test_the_command_names_the_variables_that_it_needs_and_not_what_they_hold(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SCENES_NAME", "private")
    assert main(_arguments(tmp_path, "--until", "prepare", settings=["name=${SCENES_NAME:-quickstart}"])) == 0
    log = (tmp_path / "run.log").read_text(encoding="utf-8")
    assert f"SCENES_NAME=… python -m brd_edge.pipeline {QUICKSTART} " in log
    assert "SCENES_NAME=private" not in log


def test_the_command_can_be_written_whatever_the_recipes_file_is_called(tmp_path: Path) -> None:
    recipe = tmp_path / os.fsdecode(b"rec\xe9.yaml")
    shutil.copy(QUICKSTART, recipe)
    given = [str(recipe), "--until", "prepare", "--run-dir", str(tmp_path / "run")]

    command = execution._command(execution._parser().parse_args(given), given)

    assert command.encode("utf-8").decode() == command
    assert "rec\\udce9.yaml" in command


def _training(stage: str, run: Path) -> list[str]:
    """Return the command that trains one stage for a while."""
    settings = [
        "teacher.train.epochs=2",
        "distill.train.epochs=2",
        f"{stage}.train.epochs=20",
        f"{stage}.train.checkpoint_s=0.3",
        f"{stage}.train.validate_every=3",
        "data.loader=auto",
    ]
    return [sys.executable, "-m", "brd_edge.pipeline", *_arguments(run, "--until", stage, settings=settings)]


@pytest.fixture(scope="module")
def uninterrupted(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Train one stage in a run directory of its own that nobody disturbs; once for all tests."""

    @cache
    def train(stage: str) -> Path:
        run = tmp_path_factory.mktemp("whole") / stage
        # the same prepared data; and for distill the same teacher
        subprocess.run(["cp", "-r", str(finished), str(run)], check=True)
        subprocess.run(_training(stage, run), check=True, capture_output=True)
        return run

    return train


@pytest.mark.parametrize(
    ("stage", "number"), [("teacher", signal.SIGKILL), ("distill", signal.SIGKILL), ("distill", signal.SIGTERM)]
)
def test_an_interrupted_training_ends_with_the_same_weights(
    finished: Path, uninterrupted: Callable[[str], Path], tmp_path: Path, stage: str, number: signal.Signals
) -> None:
    whole, broken = uninterrupted(stage), tmp_path / "broken"
    subprocess.run(["cp", "-r", str(finished), str(broken)], check=True)
    command = _training(stage, broken)

    delay_s = random.SystemRandom().uniform(0.0, 1.0)
    print(f"{number.name} {delay_s:.3f} s after the first checkpoint")
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    _wait_for_file(broken / stage / "checkpoint.safetensors", process)
    time.sleep(delay_s)
    process.send_signal(number)
    _, error = process.communicate(timeout=60)

    assert process.returncode == (130 if number == signal.SIGTERM else -signal.SIGKILL), error
    assert not (broken / "stages" / f"{stage}.json").exists(), "the training was over before the signal"
    _add_an_hour(broken / stage / "checkpoint.safetensors")
    subprocess.run(command, check=True, capture_output=True)
    artifact = Run(broken).artifact(stage)
    assert artifact is not None
    assert 3600 < artifact.duration_s < 2 * 3600
    for name in (f"{stage}/model/model.safetensors", f"{stage}/metrics.jsonl"):
        assert (whole / name).read_bytes() == (broken / name).read_bytes(), name


def _add_an_hour(checkpoint: Path) -> None:
    """Let an interrupted training have taken an hour more than it did."""
    tensors, metadata = load_tensors(checkpoint)
    state = json.loads(metadata["state"])
    assert 0 < state["seconds"] < 600
    state["seconds"] += 3600
    save_file(tensors, checkpoint, {**metadata, "state": json.dumps(state)})


def test_an_interrupted_benchmark_is_not_a_failed_engine(finished: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    subprocess.run(["cp", "-r", str(finished), str(run)], check=True)
    endless = ["benchmark.samples_min=1000000", "benchmark.samples_max=1000000"]
    command = [sys.executable, "-u", "-m", "brd_edge.pipeline", *_arguments(run, settings=endless)]
    earlier = len((run / "run.log").read_text(encoding="utf-8"))
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    while "timing" not in (line := process.stderr.readline()):
        assert line, "the benchmark was not reached"
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)

    assert process.returncode == 130, error
    log = (run / "run.log").read_text(encoding="utf-8")[earlier:]
    assert "not finished: interrupted" in log
    assert "Traceback" not in error + log
    assert not (run / "stages" / "benchmark.json").exists()
    assert not (run / "report.html").exists(), "no report of another benchmark stays"


def _wait_for_file(path: Path, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while not path.exists():
        if time.monotonic() > deadline or process.poll() is not None:
            process.kill()
            raise AssertionError(f"{path} was not written: {process.communicate()[1]}")
        time.sleep(0.002)


def test_a_run_directory_of_another_recipe_is_refused(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(_arguments(finished, settings=["name=other"])) == 1
    assert "holds a run of the recipe 'quickstart'" in capsys.readouterr().err


def test_models_that_cannot_work_are_refused_before_training(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    subprocess.run(["cp", "-r", str(finished), str(run)], check=True)
    weights = tmp_path / "weights.safetensors"
    weights.write_bytes(b"of nothing")
    swin = ["teacher.arch=FPN", "teacher.encoder=tu-swin_tiny_patch4_window7_224", "teacher.options={}"]
    for settings, message in (
        (["teacher.encoder=tu-vit_tiny_patch16_224"], "cannot be built"),
        (["distill.train.crop=[60, 96]"], "student on distill.train.crop"),
        (["data.size=[60, 96]"], "teacher on data.size times 2"),
        (swin, "teacher on data.size times 2: FPN takes no images of 128x192: Input height (128) doesn't match"),
        (["teacher.train.accumulate=4"], "teacher: a batch_size of 4 in 4 part(s) is one image at a time"),
        (["distill.train.batch_size=1"], "student: a batch_size of 1 in 1 part(s) is one image at a time"),
        (["teacher.train.batch_size=9"], "teacher: a batch_size of 9 is more than the 8 train images"),
        (["distill.train.batch_size=9"], "student: a batch_size of 9 is more than the 8 train images"),
        ([f"student.encoder_weights={weights}"], "weights.safetensors"),
    ):
        assert main(_arguments(run, "--from", "teacher", settings=settings)) == 1
        assert message in capsys.readouterr().err
    # where the teacher is done, too
    shutil.rmtree(run)
    subprocess.run(["cp", "-r", str(finished), str(run)], check=True)
    assert main(_arguments(run, settings=["distill.train.batch_size=1"])) == 1
    error = capsys.readouterr().err
    assert "student: a batch_size of 1 in 1 part(s) is one image at a time" in error
    assert "[2/8] teacher: unchanged" in error


@pytest.mark.parametrize("more", [(), ("--plan",)])
def test_encoders_that_there_are_not_are_refused_before_anything_is_done(
    more: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = ["teacher.encoder=resnet99", "student.encoder=mobilenetv3_small_050"]
    assert main(_arguments(tmp_path / "run", *more, settings=settings)) == 2
    error = capsys.readouterr().err
    assert "quickstart.yaml: 2 errors\n  teacher.encoder: unknown encoder 'resnet99'" in error
    assert "student.encoder: unknown encoder 'mobilenetv3_small_050' (did you mean 'tu-mobilenetv3_small_050'" in error
    assert len(error) < 900, "not all encoders are listed"
    assert not (tmp_path / "run").exists()


def test_a_plan_that_trains_nothing_does_not_load_torch(finished: Path) -> None:
    code = (
        "import sys; from brd_edge.pipeline import main; assert main(sys.argv[1:]) == 0; "
        "print('loaded:', sorted({'torch', 'timm'} & set(sys.modules)))"
    )
    arguments = _arguments(finished, "--plan", settings=["export.opset=21"])
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    assert "loaded: []" in done.stdout


def test_a_device_without_the_training_packages_gets_a_clear_error() -> None:
    code = (
        "import sys\n"
        "class Block:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] in {'pydantic', 'yaml', 'torch'}: raise ModuleNotFoundError(name, name=name)\n"
        "sys.meta_path.insert(0, Block())\n"
        "from brd_edge.pipeline import main\n"
        "sys.exit(main(['pipelines/quickstart.yaml']))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)

    assert done.returncode == 1
    assert 'pip install "brd-edge[all]"' in done.stderr
    assert "Traceback" not in done.stderr
