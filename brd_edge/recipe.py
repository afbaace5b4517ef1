"""The recipe: its schema, and how it is read.

A recipe is read in four steps: parse the YAML, apply `--set` overrides, resolve `${VAR}` and
`${VAR:-default}` from the environment, validate. All errors of a step are shown together, each
with its path in the file.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, ValidationError, field_validator, model_validator

from brd_edge.recipe_errors import describe_errors
from brd_edge.recipe_fields import Deviation, OptionalText, Positive, Section, Unit, require_known
from brd_edge.recipe_gates import GatesSection
from brd_edge.recipe_training import DistillSection, ModelSection, TeacherSection
from brd_edge.recipe_yaml import apply_override, read_yaml, resolve_variables
from brd_edge.runtime.errors import RecipeError

__all__ = [
    "BenchmarkSection",
    "BundleSection",
    "DataSection",
    "EngineSection",
    "ExportSection",
    "GatesSection",
    "Int8Section",
    "Recipe",
    "ShipSection",
    "TrackingSection",
    "load_recipe",
]


def _layouts() -> list[str]:
    from brd_edge.data.layouts import LAYOUTS

    return ["scenes", *LAYOUTS]


class ScenesSection(Section):
    """How many street scenes to draw (layout `scenes` only)."""

    train: Positive = 160
    """Scenes in the train split."""
    val: Positive = 40
    """Scenes in the validation split; no scene is in both."""


class DataSection(Section):
    """The data set, and the size and normalisation of the frames that the engines will get."""

    layout: Annotated[str, Field(json_schema_extra=lambda schema: schema.update(enum=_layouts()))]
    """Which directory tree the data set has; `scenes` draws its own."""
    root: OptionalText = None
    """Directory of the data set; not used by `scenes`."""
    size: tuple[Positive, Positive]
    """Height and width in pixels of the frames that the engines get."""
    mean: tuple[Unit, Unit, Unit] = (0.485, 0.456, 0.406)
    """Mean per RGB channel, on the scale 0 to 1."""
    std: tuple[Deviation, Deviation, Deviation] = (0.229, 0.224, 0.225)
    """Standard deviation per RGB channel, on the scale 0 to 1."""
    loader: Literal["auto", "dali", "torch"] = "auto"
    """Which training loader reads the files; `auto` takes DALI where it is installed."""
    threads: Positive = 2
    """Processes for preparation and threads for loading."""
    on_bad_sample: Literal["stop", "skip"] = "stop"
    """Files that cannot be used: list them and stop, or leave them out and list them in `data/skipped.json`."""
    sliding_window: bool = False
    """Segment images at their own size in windows of `size`, which overlap, instead of resizing them to `size`."""
    hold_out: OptionalText = None
    """Shell pattern of train image names to validate on, in place of the validation split (not for `scenes`)."""
    scenes: ScenesSection = ScenesSection()
    """How many scenes to draw."""

    @field_validator("layout")
    @classmethod
    def _known_layout(cls, layout: str) -> str:
        return require_known("layout", layout, _layouts())

    @model_validator(mode="after")
    def _hold_out_of_files(self) -> DataSection:
        if self.hold_out is not None and self.layout == "scenes":
            raise ValueError("hold_out: drawn scenes have no sequences to hold out; leave it out")
        if self.root is not None and self.layout == "scenes":
            raise ValueError("root: drawn scenes are read from nowhere; did you mean layout: folder?")
        return self


class ExportSection(Section):
    """The ONNX graph."""

    opset: Annotated[int, Field(ge=18, le=23)] = 20
    """ONNX operator set."""


class EngineSection(Section):
    """One engine to build."""

    runtime: Literal["onnxruntime", "openvino", "tensorrt"]
    """What runs the engine."""
    precision: Literal["fp32", "fp16", "bf16", "int8", "int8-fp16", "int8-bf16"] = "fp32"
    """Number format of the engine; what stands behind int8 is that of the layers which are not quantised."""
    target: str = "x86-cpu"
    """Device profile."""
    output: Literal["auto", "dense", "sparse"] = "auto"
    """Where the class map is computed: `dense` in the graph; `sparse` from coarse logits, only where classes meet;
    `auto` times both and takes sparse where it is clearly faster. TensorRT, and what does not run here, is dense."""

    batch_max: Annotated[int, Field(ge=1, le=64)] = 1
    """How many frames the engine takes at once, at most; latency is always that of one."""

    @model_validator(mode="after")
    def _can_work(self) -> EngineSection:
        from brd_edge.runtime.targets import check_combination

        problem = check_combination(self.runtime, self.precision, self.target, self.batch_max)
        if problem is not None:
            raise ValueError(problem)
        if self.output == "sparse" and self.runtime == "tensorrt":
            raise ValueError("output: tensorrt keeps the class map on the GPU, in the graph; leave it out or say dense")
        return self


class Int8Section(Section):
    """How int8 engines are calibrated, and what they may get back where they miss a gate of accuracy."""

    images: Annotated[int, Field(ge=1, le=4096)] = 64
    """Train images that ranges are taken from, spread evenly over those of `choice`."""
    choice: str = "*"
    """Shell pattern of the names of train images to choose from."""
    method: Literal["percentile", "minmax", "entropy"] = "percentile"
    """How a range is found (ONNX Runtime and TensorRT; NNCF, which quantises for OpenVINO, has a way of its own)."""
    reduce_range: Literal["auto", True, False] = "auto"
    """Whether int8 weights keep to 7 bits (ONNX Runtime and OpenVINO), as x86 processors without VNNI need them:
    their 16-bit sums saturate. `auto`: for `x86-cpu` yes, since an engine may go to any such processor, else no."""
    keep: tuple[str, ...] = ()
    """Groups of layers that stay in floating point from the first, such as `encoder.conv_stem` or `head`."""
    keep_max: Annotated[int, Field(ge=0, le=64)] = 4
    """Most groups that go back to floating point, one at a time, while a gate of accuracy is missed."""


class BenchmarkSection(Section):
    """How the engines are measured."""

    threads: Positive = 2
    """Threads of every engine."""
    samples_min: Positive = 50
    """Fewest timed inferences per engine, whatever they cost."""
    samples_max: Positive = 10_000
    """Most timed inferences per engine."""
    budget_s: Annotated[float, Field(gt=0)] = 10.0
    """Seconds after which timing stops once `samples_min` is reached."""
    narrow_after_s: Annotated[float, Field(ge=0)] = 3.0
    """Seconds of samples before which a narrow interval does not end the timing."""
    narrow_after_samples: Positive = 300
    """Timed inferences before which a narrow interval does not end the timing."""
    cost_margin_percent: Annotated[float, Field(gt=0, le=20)] = 1.0
    """Zero added cost: difference of latency, in percent, to the undistilled student's engine that counts as none."""
    cost_budget_s: Annotated[float, Field(gt=0)] = 60.0
    """Seconds for comparing an engine's latency with the undistilled student's; it ends sooner once that is clear."""
    attribution: bool = True
    """Whether to measure where accuracy went between the trained student and each engine."""
    report_images: Annotated[int, Field(ge=1, le=24)] = 4
    """Validation images shown in the report."""
    saturated: bool = False
    """Whether to measure throughput too: as many streams at once as `threads`, with one thread each."""
    compare_run: OptionalText = None
    """Run directory of an earlier student (for example one trained with `distill.method: none`)."""

    @model_validator(mode="after")
    def _samples_in_order(self) -> BenchmarkSection:
        if self.samples_min > self.samples_max:
            raise ValueError(f"samples_min {self.samples_min} is above samples_max {self.samples_max}")
        return self


class BundleSection(Section):
    """What is shipped with the engines."""

    key: OptionalText = None
    """Private key (`brd-edge keys` makes one) that signs the bundle; not signed when not given."""
    licence: str = "not stated"
    """Licence of the model, for whoever gets the bundle."""
    golden_frames: Annotated[int, Field(ge=1, le=16)] = 2
    """Validation frames that are bundled with the class maps an engine must return."""


class ShipSection(Section):
    """Where the bundle goes."""

    devices: tuple[OptionalText, ...] = ()
    """Devices as `user@host[:port]`; empty entries are left out."""
    fleet: OptionalText = None
    """Fleet file (YAML) with devices, waves and limits, in place of `devices`."""
    root: str = "brd-edge"
    """Device root of `devices`; relative to the account's home where it does not begin with `/`."""
    python: str = "python3"
    """Python of `devices` that has brd-edge installed."""

    @model_validator(mode="after")
    def _one_list(self) -> ShipSection:
        if self.fleet is not None and any(self.devices):
            raise ValueError("give either `devices` or `fleet`")
        return self


class TrackingSection(Section):
    """Where a run is written down beside its directory; `tracking: mlflow` is short for `{backend: mlflow}`."""

    backend: Literal["none", "mlflow"]
    """What keeps the record: nothing, or MLflow."""
    uri: OptionalText = None
    """MLflow's tracking URI; else `MLFLOW_TRACKING_URI`, else the SQLite file `mlflow.db` beside the run directory."""
    experiment: OptionalText = None
    """MLflow's experiment; else `MLFLOW_EXPERIMENT_NAME`, else the recipe's name."""
    bundle: bool = False
    """Keep `bundle.tar.gz` there too."""

    @model_validator(mode="before")
    @classmethod
    def _backend_alone(cls, value: Any) -> Any:
        return {"backend": value or "none"} if value is None or isinstance(value, str) else value

    @field_validator("uri")
    @classmethod
    def _without_password(cls, uri: str | None) -> str | None:
        if uri is not None and "@" in urlsplit(uri).netloc:
            raise ValueError(
                "a name or password would be copied into recipe.yaml; leave it out, and set "
                "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or the whole URI as MLFLOW_TRACKING_URI"
            )
        return uri


def _or_backend(schema: dict[str, Any]) -> None:
    schema["anyOf"] = [{"$ref": schema.pop("$ref")}, {"enum": ["none", "mlflow"]}]


class Recipe(Section):
    """A whole run, from a data set to measured engines."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=64)]
    """Name of the recipe and of its run directory."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Seed of everything that is random."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where models are trained; `auto` takes a CUDA GPU where there is one."""
    data: DataSection
    teacher: TeacherSection
    student: ModelSection
    distill: DistillSection
    export: ExportSection = ExportSection()
    engines: Annotated[tuple[EngineSection, ...], Field(min_length=1)]
    int8: Int8Section = Int8Section()
    benchmark: BenchmarkSection = BenchmarkSection()
    gates: GatesSection = GatesSection()
    bundle: BundleSection = BundleSection()
    ship: ShipSection = ShipSection()
    tracking: Annotated[TrackingSection, Field(json_schema_extra=_or_backend)] = TrackingSection(backend="none")

    @model_validator(mode="after")
    def _engines_differ(self) -> Recipe:
        keys = [
            (engine.runtime, engine.precision, engine.target, *([f"batch{engine.batch_max}"] * (engine.batch_max > 1)))
            for engine in self.engines
        ]
        twice = sorted({"/".join(key) for key in keys if keys.count(key) > 1})
        if twice:
            raise ValueError(f"engines: every engine stands once, but these stand twice: {', '.join(twice)}")
        return self

    @model_validator(mode="after")
    def _larger_frames_for_the_teacher(self) -> Recipe:
        if self.teacher.scale > 1 and self.data.sliding_window:
            raise ValueError(
                f"teacher.scale: {self.teacher.scale} needs frames that are resized, and with data.sliding_window they "
                "are not: set it to 1, or data.sliding_window to false"
            )
        return self

    @model_validator(mode="after")
    def _engines_for_the_student(self) -> Recipe:
        from brd_edge.models.spec import has_matrix_products
        from brd_edge.runtime.targets import TARGETS, lacks_matrix_products

        student = self.student
        if not has_matrix_products(student.arch, student.encoder, student.options):
            return self
        for number, engine in enumerate(self.engines):
            if lacks_matrix_products(engine.runtime, engine.precision, engine.target):
                others = [name for name in TARGETS if name.startswith("rtx-") and name != "rtx-sm75"]
                raise ValueError(
                    f"engines.{number}: TensorRT-RTX multiplies no float32 matrices on SM75 (Turing), which "
                    f"{student.arch} with encoder {student.encoder} does (attention or linear layers): take fp16 or "
                    f"int8-fp16 in place of {engine.precision}, or a target without SM75 in place of {engine.target}: "
                    f"{', '.join(others)}"
                )
        return self

    @model_validator(mode="after")
    def _outputs_for_the_student(self) -> Recipe:
        from brd_edge.models.spec import ARCHITECTURES

        arch = self.student.arch
        asked = [f"engines.{number}" for number, engine in enumerate(self.engines) if engine.output == "sparse"]
        if asked and not ARCHITECTURES[arch].upsamples:
            able = ", ".join(name for name, architecture in ARCHITECTURES.items() if architecture.upsamples)
            raise ValueError(
                f"{', '.join(asked)}: output: sparse needs a head that ends in bilinear upsampling, which that of "
                f"{arch} does not: say auto (as when it is left out) or dense; with output: sparse, student.arch is "
                f"one of {able}"
            )
        return self

    @model_validator(mode="after")
    def _gates_of_engines(self) -> Recipe:
        names = ("runtime", "precision", "target")
        for number, override in enumerate(self.gates.overrides):
            for name in names:
                wanted = getattr(override, name)
                there = sorted({getattr(engine, name) for engine in self.engines})
                if wanted is not None and wanted not in there:
                    raise ValueError(
                        f"gates.overrides.{number}.{name}: no engine of this recipe has {wanted!r}; "
                        f"they have {', '.join(there)}"
                    )
            given = {name: value for name in names if (value := getattr(override, name)) is not None}
            if not any(all(getattr(engine, name) == value for name, value in given.items()) for engine in self.engines):
                raise ValueError(
                    f"gates.overrides.{number}: no engine of this recipe has {' and '.join(given.values())}; they are "
                    + ", ".join(" ".join(getattr(engine, name) for name in names) for engine in self.engines)
                )
        return self


def load_recipe(path: Path, *, overrides: Sequence[str] = (), environment: Mapping[str, str] | None = None) -> Recipe:
    """Read, resolve and validate a recipe.

    Args:
        path: The YAML file.
        overrides: `key.path=value` strings; the value is read as YAML, a list item is addressed by
            its number (`engines.0.target=x86-cpu`).
        environment: Variables for `${VAR}`; the process's own when not given.

    Returns:
        The recipe, with all defaults filled in.

    Raises:
        RecipeError: The file cannot be read or is wrong; the message lists every error.

    Example:
        >>> load_recipe(Path("pipelines/quickstart.yaml"), overrides=["distill.train.epochs=2"]).name
        'quickstart'
    """
    content = read_yaml(path)
    for override in overrides:
        apply_override(content, override)
    missing: list[str] = []
    resolved = resolve_variables(content, os.environ if environment is None else environment, missing)
    if missing:
        raise RecipeError(f"{path}: variables that are not set\n" + "\n".join(f"  {line}" for line in missing))
    try:
        return Recipe.model_validate(resolved)
    except ValidationError as error:
        lines = describe_errors(error, Recipe, resolved)
        count = f"{len(lines)} error" + ("s" if len(lines) > 1 else "")
        raise RecipeError(f"{path}: {count}\n" + "\n".join(f"  {line}" for line in lines)) from None
