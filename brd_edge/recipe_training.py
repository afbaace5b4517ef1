"""The sections of a recipe that say which models are trained, and how."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from brd_edge.recipe_fields import Fraction, NotNegative, OptionalText, Positive, Section, require_known

__all__ = ["DistillSection", "ModelSection", "TeacherSection", "TrainSection"]


class ModelSection(Section):
    """A segmentation_models_pytorch model."""

    arch: str
    """Architecture, for example `DeepLabV3Plus`."""
    encoder: str
    """Encoder name, for example `resnet18` or `tu-mobilenetv3_small_050` (`tu-` marks timm's)."""
    encoder_weights: OptionalText = None
    """`imagenet`, a local safetensors file in timm's naming, or nothing for random weights."""
    options: dict[str, Any] = Field(default_factory=dict)
    """More keyword arguments of the architecture, for example `decoder_channels: 128`."""

    @field_validator("arch")
    @classmethod
    def _known_architecture(cls, arch: str) -> str:
        from brd_edge.models.spec import ARCHITECTURES

        return require_known("architecture", arch, list(ARCHITECTURES))


class TrainSection(Section):
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
    gamma: NotNegative = 0.0
    """Largest gamma, less one: colours from 0 to 1 are raised to a power from 1 / (1 + gamma) to 1 + gamma. Unlike
    brightness it darkens and brightens without cutting anything off."""
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
    lambda_overlap: NotNegative = 0.0
    """Weight of one minus the Jaccard index of each class's regions and boundaries with the labels', which joins the
    cross-entropy; 0 leaves it out."""
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

    scale: Annotated[int, Field(ge=1, le=4)] = 1
    """How many times as high and as wide the teacher's frames are as the student's, so that it sees small things.
    `teacher.train.crop` counts the teacher's pixels. Not with `data.sliding_window`."""
    checkpoint: OptionalText = None
    """Directory with `config.json` and `model.safetensors` of a trained teacher."""
    train: TrainSection | None = None
    """How to train the teacher; needed unless `checkpoint` is given."""

    @model_validator(mode="after")
    def _one_source(self) -> TeacherSection:
        if (self.checkpoint is None) == (self.train is None):
            raise ValueError(
                "give either `checkpoint` (a trained teacher) or `train` (how to train one); a checkpoint in place of "
                "the training of a ready-made recipe also takes --set teacher.train=null"
            )
        return self


class DistillSection(Section):
    """How the student learns from the teacher."""

    method: Literal["none", "kd", "skd", "cwd", "cirkd", "boundary", "relation", "brd", "brd_kd"] = "brd"
    """Which terms join the cross-entropy; `brd` is boundary and relation together, `brd_kd` these and kd; skd, cwd and
    cirkd are peers."""
    curriculum: Literal["constant", "fall", "rise"] = "constant"
    """How the distillation terms are weighted over the training: alike, falling to 0, or rising from 0 (cosine)."""
    teacher_sees_jitter: bool = True
    """Whether the teacher sees the colours of `train.jitter` and `train.gamma` like the student, or the frame's own."""
    compile_teacher: bool = False
    """Whether the teacher's forward pass is compiled (torch.compile): a minute at the start, then faster."""
    cuda_graphs: bool = True
    """Whether, in distillation on one GPU, the models' passes and the losses are recorded as CUDA graphs and replayed:
    the same arithmetic with a launch each, which is faster where the student is small."""
    lambda_kd: NotNegative = 1.0
    """Weight of the logit distillation."""
    lambda_boundary: NotNegative = 0.5
    """Weight of the boundary distillation on the backbone's features."""
    lambda_boundary_classes: NotNegative = 6.0
    """Weight of the boundary distillation on classes."""
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
    kd_class_balance: Fraction = 0.0
    """How far rare classes count more in the logit distillation; 0: all pixels alike, 1: all classes alike."""
    cwd_temperature: Annotated[float, Field(gt=0)] = 4.0
    """Temperature of CWD."""
    boundary_operator: Literal["residual", "neighbours", "projected"] = "residual"
    """How boundaries are read from features: by their energy, by direction, or channel by channel."""
    boundary_kernel: Literal[0, 3, 5, 7, 9] = 3
    """Side of the window in which boundaries of features are read, in grid cells; 0 is the whole image (not for
    `neighbours`)."""
    boundary_strides: Annotated[tuple[Literal["auto", 2, 4, 8, 16, 32], ...], Field(min_length=1)] = ("auto",)
    """Which backbone stages give boundaries, by stride: of these, all that both backbones have; at least one. `auto` is
    16, or where one has no such stage the deepest that both have."""
    band_weight: NotNegative = 4.0
    """How much more pixels near a label boundary count; 0 counts all alike."""
    boundary_class_space: Literal["probabilities", "logits", "places", "overlaps"] = "places"
    """How the boundaries of classes are compared: by the probabilities, by the logits, by where in the image they lie,
    or by how far they overlap; in all but the first every class counts alike."""
    boundary_class_kernels: Annotated[tuple[Literal[0, 3, 5, 7, 9], ...], Field(min_length=1)] = (0, 3)
    """Sides of the windows of the boundaries of classes; 0 is the whole image."""
    boundary_class_balance: Fraction = 0.0
    """How far rare classes count more in the boundaries of classes; 0: all pixels alike, 1: all classes alike. `places`
    and `overlaps` have neither this nor the band: every class counts alike there anyway."""
    relation_to: Literal["pixels", "classes"] = "classes"
    """What every pixel is related to: all other pixels, or the mean feature of each class (its prototype)."""
    relation_layers: Annotated[tuple[Literal["deepest", "decoder", 2, 4, 8, 16, 32], ...], Field(min_length=1)] = (
        "decoder",
    )
    """Which layers are related: the backbone's last stage, the decoder's output, or a backbone stage by stride."""
    relation_class_balance: Fraction = 0.5
    """How far rare classes count more in the relations to classes; 0: all pixels alike, 1: all classes alike."""
    relation_temperature: Annotated[float, Field(ge=0.02)] = 0.1
    """Temperature of the self-relation's softmax."""
    relation_across_images: bool = False
    """`pixels`: whether a pixel is related to those of all images of the batch (of the same process)."""
    relation_cells_max: Annotated[int, Field(ge=16)] = 32768
    """`pixels`: most cells that are related to each other; finer grids are averaged down to it."""
    unlabelled: OptionalText = None
    """Directory of more images, without labels and searched with all below it: the teacher labels them, and the student
    learns from them too, with any method. Images that the data set has are left out."""
    unlabelled_confidence: Fraction = 0.0
    """Pixels of `unlabelled` whose class has a lower probability with the teacher (0 to 1) get no label."""
    train: TrainSection
    """How the student is trained."""

    @model_validator(mode="after")
    def _something_is_distilled(self) -> DistillSection:
        from brd_edge.distill.methods import METHODS

        weights = [f"lambda_{term}" for term in METHODS[self.method]]
        if weights and not any(getattr(self, weight) for weight in weights):
            raise ValueError(
                f"method `{self.method}` distils nothing with {' = '.join(weights)} = 0; "
                "make one larger, or take method: none"
            )
        return self

    @model_validator(mode="after")
    def _neighbours_have_a_distance(self) -> DistillSection:
        if self.boundary_operator == "neighbours" and self.boundary_kernel == 0:
            raise ValueError("boundary_operator `neighbours` needs a boundary_kernel of 3, 5, 7 or 9, got 0")
        return self
