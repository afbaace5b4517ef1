"""The recipe: its schema, and how it is read.

A recipe is read in four steps: parse the YAML, apply `--set` overrides, resolve `${VAR}` and
`${VAR:-default}` from the environment, validate. All errors of a step are shown together, each
with its path in the file.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator, model_validator

from brd_edge.recipe_errors import describe_errors
from brd_edge.recipe_yaml import apply_override, read_yaml, resolve_variables
from brd_edge.runtime.errors import RecipeError

__all__ = [
    "BenchmarkSection",
    "BundleSection",
    "DataSection",
    "DistillSection",
    "EngineSection",
    "ExportSection",
    "GatesSection",
    "ModelSection",
    "Recipe",
    "ShipSection",
    "TeacherSection",
    "TrainSection",
    "load_recipe",
]

Positive = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(ge=0, le=1)]
NotNegative = Annotated[float, Field(ge=0)]
Unit = Annotated[float, Field(ge=0, le=1)]
Deviation = Annotated[float, Field(gt=0, le=1)]
# an environment variable that is not set and has an empty default means "not given"
OptionalText = Annotated[str | None, BeforeValidator(lambda value: None if value == "" else value)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)


class ScenesSection(_Section):
    """How many street scenes to draw (layout `scenes` only)."""

    train: Positive = 160
    """Scenes in the train split."""
    val: Positive = 40
    """Scenes in the validation split; no scene is in both."""


class DataSection(_Section):
    """The data set, and the size and normalisation of the frames that the engines will get."""

    layout: Literal["scenes", "camvid", "cityscapes", "voc2012", "ade20k", "cocostuff10k", "folder"]
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

    @model_validator(mode="after")
    def _hold_out_of_files(self) -> DataSection:
        if self.hold_out is not None and self.layout == "scenes":
            raise ValueError("hold_out: drawn scenes have no sequences to hold out; leave it out")
        return self


class ModelSection(_Section):
    """A segmentation_models_pytorch model."""

    arch: str
    """Architecture, for example `DeepLabV3Plus`."""
    encoder: str
    """Encoder name, for example `resnet18` or `tu-mobilenetv3_small_050` (`tu-` marks timm's)."""
    encoder_weights: OptionalText = None
    """`imagenet`, a local safetensors file in timm's naming, or nothing for random weights."""
    options: dict[str, Any] = {}
    """More keyword arguments of the architecture, for example `decoder_channels: 128`."""

    @field_validator("arch")
    @classmethod
    def _known_architecture(cls, arch: str) -> str:
        from brd_edge.models.spec import ARCHITECTURES

        if arch not in ARCHITECTURES:
            nearest = difflib.get_close_matches(arch, ARCHITECTURES, n=1)
            hint = f"did you mean {nearest[0]}? " if nearest else ""
            raise ValueError(f"unknown architecture {arch!r}; {hint}There are {', '.join(ARCHITECTURES)}")
        return arch


class TrainSection(_Section):
    """One training run."""

    epochs: Positive
    """Passes over the train split."""
    batch_size: Positive = 8
    """Images per step, over all processes together."""
    accumulate: Positive = 1
    """Parts that a process divides its share of the batch into, one after the other, to save memory."""
    crop: tuple[Positive, Positive] | None = None
    """Height and width of training crops; the frame size when not given."""
    scale: tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]] = (0.75, 1.5)
    """Smallest and largest random scale."""
    flip: Fraction = 0.5
    """Probability of a horizontal flip."""
    jitter: tuple[Fraction, Fraction, Fraction] = (0.2, 0.2, 0.2)
    """Strength of brightness, contrast and saturation jitter."""
    class_balance: Fraction = 0.0
    """Probability that a crop is laid around a pixel of a class of the image drawn with equal chances, not anywhere."""
    lr: Annotated[float, Field(gt=0)] = 1e-3
    """Highest learning rate (AdamW)."""
    encoder_lr_factor: Annotated[float, Field(gt=0)] = 1.0
    """The encoder learns at `lr` times this; below 1 where its weights are pretrained."""
    weight_decay: NotNegative = 1e-2
    """AdamW's weight decay; not applied to biases and normalisation."""
    schedule: Literal["poly", "cosine"] = "poly"
    """How the learning rate falls to zero; `poly` has the power 0.9."""
    warmup: Fraction = 0.05
    """Share of the steps in which the learning rate rises."""
    class_weights: Literal["none", "log_frequency"] = "log_frequency"
    """Weights of the classes in cross-entropy; `log_frequency` is 1 / ln(1.1 + share of pixels)."""
    loss: Literal["ce", "ohem"] = "ce"
    """Cross-entropy over all pixels, or over the hard ones only (online hard example mining)."""
    ohem_probability: Annotated[float, Field(gt=0, lt=1)] = 0.7
    """`ohem`: a pixel is hard if its true class has less than this probability."""
    ohem_kept_min: Annotated[float, Field(gt=0, le=1)] = 0.1
    """`ohem`: this share of the pixels, the hardest ones, always counts."""
    grad_clip: NotNegative = 5.0
    """Largest gradient norm; 0 does not clip."""
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Decay of the running mean of the weights; 0 uses the weights themselves."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Of the forward pass; `auto`: bf16 where the processor computes it fast, else fp16 on a GPU, fp32 on a CPU."""
    validate_every: Positive = 5
    """Epochs between validations; the first and the last epoch are always validated."""
    checkpoint_s: Annotated[float, Field(gt=0, le=60)] = 30.0
    """Seconds between checkpoints."""

    @model_validator(mode="after")
    def _scale_in_order(self) -> TrainSection:
        if self.scale[0] > self.scale[1]:
            raise ValueError(f"scale: the smallest comes first, got {list(self.scale)}")
        return self

    @model_validator(mode="after")
    def _batch_in_parts(self) -> TrainSection:
        if self.batch_size % self.accumulate:
            raise ValueError(f"accumulate: batch_size {self.batch_size} cannot be divided into {self.accumulate} parts")
        return self


class TeacherSection(ModelSection):
    """The large model; trained here, or loaded from `checkpoint`."""

    checkpoint: OptionalText = None
    """Directory with `config.json` and `model.safetensors` of a trained teacher."""
    train: TrainSection | None = None
    """How to train the teacher; needed unless `checkpoint` is given."""

    @model_validator(mode="after")
    def _one_source(self) -> TeacherSection:
        if (self.checkpoint is None) == (self.train is None):
            raise ValueError("give either `checkpoint` (a trained teacher) or `train` (how to train one)")
        return self


class DistillSection(_Section):
    """How the student learns from the teacher."""

    method: Literal["none", "kd", "skd", "cwd", "cirkd", "boundary", "relation", "brd"] = "brd"
    """Which terms join the cross-entropy; `brd` is kd, boundary and relation together, skd, cwd and cirkd are peers."""
    curriculum: Literal["constant", "fall", "rise"] = "constant"
    """How the distillation terms are weighted over the training: alike, falling to 0, or rising from 0 (cosine)."""
    compile_teacher: bool = False
    """Whether the teacher's forward pass is compiled (torch.compile): a minute at the start, then faster."""
    lambda_kd: NotNegative = 1.0
    """Weight of the logit distillation."""
    lambda_boundary: NotNegative = 0.5
    """Weight of the boundary distillation on the backbone's features."""
    lambda_boundary_classes: NotNegative = 2.0
    """Weight of the boundary distillation on class probabilities."""
    lambda_relation: NotNegative = 0.5
    """Weight of the relation distillation."""
    lambda_skd: NotNegative = 1.0
    """Weight of SKD's pair-wise distillation."""
    lambda_cwd: NotNegative = 3.0
    """Weight of CWD, the channel-wise distillation."""
    lambda_cirkd_batch: NotNegative = 1.0
    """Weight of CIRKD's relations between the images of a batch."""
    lambda_cirkd_memory: NotNegative = 0.1
    """Weight of CIRKD's relations to remembered pixels and regions."""
    kd_temperature: Annotated[float, Field(gt=0)] = 2.0
    """Temperature of the logit distillation."""
    cwd_temperature: Annotated[float, Field(gt=0)] = 4.0
    """Temperature of CWD."""
    boundary_operator: Literal["residual", "neighbours", "projected"] = "residual"
    """How boundaries are read from features: by their energy, by direction, or channel by channel."""
    boundary_kernel: Literal[3, 5, 7, 9] = 3
    """Side of the boundary operator's window, in grid cells."""
    boundary_strides: tuple[Literal[2, 4, 8, 16, 32], ...] = (4, 8, 16)
    """Which backbone stages give boundaries, by stride."""
    band_weight: NotNegative = 4.0
    """How much more pixels near a label boundary count; 0 counts all alike."""
    relation_layers: Annotated[tuple[Literal["deepest", "decoder", 2, 4, 8, 16, 32], ...], Field(min_length=1)] = (
        "deepest",
    )
    """Which layers are related: the backbone's last stage, the decoder's output, or a backbone stage by stride."""
    relation_temperature: Annotated[float, Field(ge=0.02)] = 0.1
    """Temperature of the self-relation's softmax."""
    relation_across_images: bool = False
    """Whether a pixel is related to the pixels of all images of the batch (of the same process)."""
    relation_cells_max: Annotated[int, Field(ge=16)] = 32768
    """Most cells that are related to each other; finer grids are averaged down to it."""
    train: TrainSection
    """How the student is trained."""


class ExportSection(_Section):
    """The ONNX graph."""

    opset: Annotated[int, Field(ge=18, le=23)] = 20
    """ONNX operator set."""


class EngineSection(_Section):
    """One engine to build."""

    runtime: Literal["onnxruntime", "openvino", "tensorrt"]
    """What runs the engine."""
    precision: Literal["fp32"] = "fp32"
    """Number format of the engine."""
    target: str = "x86-cpu"
    """Device profile."""

    @model_validator(mode="after")
    def _can_work(self) -> EngineSection:
        from brd_edge.runtime.targets import check_combination

        problem = check_combination(self.runtime, self.precision, self.target)
        if problem is not None:
            raise ValueError(problem)
        return self


class BenchmarkSection(_Section):
    """How the engines are measured."""

    threads: Positive = 2
    """Threads of every engine."""
    samples_min: Positive = 50
    """Fewest timed inferences per engine."""
    samples_max: Positive = 300
    """Most timed inferences per engine."""
    budget_s: Annotated[float, Field(gt=0)] = 10.0
    """Seconds after which timing stops once `samples_min` is reached."""
    report_images: Annotated[int, Field(ge=1, le=24)] = 4
    """Validation images shown in the report."""
    compare_run: OptionalText = None
    """Run directory of an earlier student (for example one trained with `distill.method: none`)."""

    @model_validator(mode="after")
    def _samples_in_order(self) -> BenchmarkSection:
        if self.samples_min > self.samples_max:
            raise ValueError(f"samples_min {self.samples_min} is above samples_max {self.samples_max}")
        return self


class GatesSection(_Section):
    """Limits that a measured engine must hold before it is bundled."""

    miou_drop_max: NotNegative | None = None
    """Largest loss of mIoU against PyTorch, in points (0.5 is half a percent)."""
    boundary_iou_drop_max: NotNegative | None = None
    """Largest loss of Boundary IoU against PyTorch, in points."""
    latency_ms_p95_max: Annotated[float, Field(gt=0)] | None = None
    """Largest p95 latency in milliseconds."""
    size_bytes_max: Positive | None = None
    """Largest size of the engine's files."""


class BundleSection(_Section):
    """What is shipped with the engines."""

    key: OptionalText = None
    """Private key (`brd-edge keys` makes one) that signs the bundle; not signed when not given."""
    licence: str = "not stated"
    """Licence of the model, for whoever gets the bundle."""
    golden_frames: Annotated[int, Field(ge=1, le=16)] = 2
    """Validation frames that are bundled with the class maps an engine must return."""


class ShipSection(_Section):
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


class Recipe(_Section):
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
    benchmark: BenchmarkSection = BenchmarkSection()
    gates: GatesSection = GatesSection()
    bundle: BundleSection = BundleSection()
    ship: ShipSection = ShipSection()

    @model_validator(mode="after")
    def _engines_differ(self) -> Recipe:
        keys = [(engine.runtime, engine.precision, engine.target) for engine in self.engines]
        twice = sorted({"/".join(key) for key in keys if keys.count(key) > 1})
        if twice:
            raise ValueError(f"engines: every engine stands once, but these stand twice: {', '.join(twice)}")
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
