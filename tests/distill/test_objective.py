from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from torch import nn

from brd_edge.distill.boundary import OPERATORS
from brd_edge.distill.matching import layer_channels, pick_layer
from brd_edge.distill.objective import CURRICULA, METHODS, DistillSettings, distillation
from brd_edge.distill.overlap import boundary_overlap_loss
from brd_edge.distill.peers import PixelMemory
from brd_edge.distill.supervised import cross_entropy
from brd_edge.models.segmentation import ModelSpec, build_model, feature_table, forward_features
from brd_edge.recipe_training import DistillSection, TrainSection
from brd_edge.runtime.errors import ModelError
from brd_edge.stages.training import distill_settings

SETTINGS = distill_settings(DistillSection(train=TrainSection(epochs=1)))


def _model(arch: str, encoder: str, *, classes: int = 3, **options: object) -> nn.Module:
    return build_model(ModelSpec(arch, encoder, classes, dict(options)), encoder_weights=None, seed=0)


@pytest.fixture(scope="module")
def teacher() -> nn.Module:
    return _model("FPN", "resnet18")


@pytest.fixture(scope="module")
def student() -> nn.Module:
    return _model("DeepLabV3Plus", "tu-mobilenetv3_small_050", decoder_channels=32)


def _loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return cross_entropy(logits, labels, None)


def test_every_setting_of_the_recipe_reaches_the_objective() -> None:
    # the stage makes of them what the student sees
    elsewhere = {"train", "teacher_sees_jitter", "unlabelled", "unlabelled_confidence"}
    assert {field.name for field in fields(DistillSettings)} == set(DistillSection.model_fields) - elsewhere
    methods = DistillSection.model_fields["method"].annotation
    assert set(methods.__args__) == set(METHODS)
    operators = DistillSection.model_fields["boundary_operator"].annotation
    assert set(operators.__args__) == {*OPERATORS, "projected"}
    curricula = DistillSection.model_fields["curriculum"].annotation
    assert set(curricula.__args__) == set(CURRICULA)


@pytest.mark.parametrize("method", [name for name in METHODS if name != "none"])
def test_every_method_trains_a_pair_of_unlike_architectures(
    teacher: nn.Module, student: nn.Module, method: str
) -> None:
    """The teacher is not dilated and has other channels and another decoder than the student."""
    settings = replace(SETTINGS, method=method, relation_layers=("deepest", "decoder", 8))
    objective = distillation(teacher, student, settings, _loss, classes=3)
    images = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    labels = torch.randint(0, 3, (2, 64, 96), generator=torch.Generator().manual_seed(1))
    assert objective.teacher is not None
    student.train()
    theirs, mine = objective.teacher(images), forward_features(student, images)

    for _ in range(2):  # CIRKD's memory is empty at first
        values = {name: weight * term(theirs, mine, labels) for name, (weight, term) in objective.terms.items()}
    sum(values.values(), torch.zeros(())).backward()

    assert tuple(values) == METHODS[method]
    assert all(torch.isfinite(value) and float(value.detach()) > 0 for value in values.values())
    assert not any(parameter.grad is not None for parameter in teacher.parameters())
    reached = [parameter.grad is not None for name, parameter in student.named_parameters() if "encoder" in name]
    assert any(reached)
    student.zero_grad(set_to_none=True)


@pytest.mark.parametrize(
    ("changes", "strides"),
    [
        ({"method": "cirkd"}, set()),
        ({"method": "relation", "relation_layers": ("decoder",)}, set()),
        ({"method": "relation", "relation_layers": ("deepest", 4)}, {4, 16}),
        ({"method": "brd", "boundary_strides": (2, 8), "relation_layers": ("deepest", "decoder")}, {2, 8, 16}),
        ({"method": "boundary", "boundary_strides": (4, 8), "boundary_operator": "projected"}, {4, 8}),
        ({"method": "boundary"}, {16}),
        ({"method": "boundary", "boundary_strides": (16, "auto", 4)}, {4, 16}),
        ({"method": "brd", "boundary_strides": (2,), "lambda_boundary": 0.0, "relation_layers": (8,)}, {8}),
    ],
)
def test_the_terms_read_the_stages_that_the_objective_names(
    teacher: nn.Module, student: nn.Module, changes: dict[str, Any], strides: set[int]
) -> None:
    objective = distillation(teacher, student, replace(SETTINGS, **changes), _loss, classes=3)
    images = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    labels = torch.randint(0, 3, (2, 64, 96), generator=torch.Generator().manual_seed(1))
    assert objective.teacher is not None
    mine = forward_features(student, images)
    leaves = {stride: stage.detach().requires_grad_() for stride, stage in mine.encoder.items()}
    theirs = objective.teacher(images)

    for _, term in objective.terms.values():
        term(theirs, replace(mine, encoder=leaves), labels).backward(retain_graph=True)

    assert {stride for stride, leaf in leaves.items() if leaf.grad is not None} == strides
    assert objective.strides == strides
    student.zero_grad(set_to_none=True)


def test_a_pair_without_stride_16_has_its_boundaries_where_both_are_deepest(student: nn.Module) -> None:
    """PSPNet's encoder ends at stride 8, as others do that are dilated."""
    objective = distillation(_model("PSPNet", "resnet18"), student, SETTINGS, _loss, classes=3)

    assert "boundary" in objective.terms
    assert objective.strides == {8}


def test_overlaps_are_of_the_probabilities_and_averaged_over_the_windows(
    teacher: nn.Module, student: nn.Module
) -> None:
    settings = replace(SETTINGS, method="boundary", boundary_class_space="overlaps", boundary_class_kernels=(0, 5))
    images = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    labels = torch.randint(0, 3, (2, 64, 96), generator=torch.Generator().manual_seed(1))
    labels[0, :30] = 255
    objective = distillation(teacher, student, settings, _loss, classes=3)
    assert objective.teacher is not None
    with torch.no_grad():
        theirs, mine = objective.teacher(images), forward_features(student.eval(), images)
    found = float(objective.terms["boundary_classes"][1](theirs, mine, labels))

    shares = theirs.coarse_logits.softmax(1), mine.coarse_logits.softmax(1)
    losses = [boundary_overlap_loss(*shares, labels, kernel=kernel) for kernel in (0, 5)]
    assert found == pytest.approx(sum(map(float, losses)) / 2, rel=1e-5)


def test_projected_boundaries_have_a_layer_for_every_stage(teacher: nn.Module, student: nn.Module) -> None:
    settings = replace(SETTINGS, method="boundary", boundary_operator="projected", boundary_strides=(4, 16))

    objective = distillation(teacher, student, settings, _loss, classes=3)

    projections = objective.layers["boundary"]
    assert list(projections) == ["4", "16"]
    assert projections["4"][0].weight.shape == (64, 8, 1, 1)
    assert projections["16"][0].weight.shape == (256, 288, 1, 1)


def test_layers_for_distillation_lie_outside_the_student(teacher: nn.Module, student: nn.Module) -> None:
    names = set(student.state_dict())

    objective = distillation(teacher, student, replace(SETTINGS, method="cirkd"), _loss, classes=3)

    assert list(objective.layers) == ["memory"]
    memory = objective.layers["memory"]
    assert isinstance(memory, PixelMemory)
    # the paper's authors keep as many of every class, not of all together
    assert (memory.pixels.shape[:2], memory.regions.shape[:2]) == ((3, 20_000), (3, 2_000))
    again = distillation(teacher, student, replace(SETTINGS, method="cirkd"), _loss, classes=3)
    for first, second in zip(objective.layers.parameters(), again.layers.parameters(), strict=True):
        assert torch.equal(first, second), "every process starts from the same layers"
    assert set(student.state_dict()) == names


def test_a_weight_of_zero_leaves_the_term_out(teacher: nn.Module, student: nn.Module) -> None:
    objective = distillation(teacher, student, replace(SETTINGS, lambda_relation=0.0), _loss, classes=3)

    assert list(objective.terms) == ["boundary", "boundary_classes"]
    settings = replace(SETTINGS, method="cirkd", lambda_cirkd_memory=0.0)
    assert list(distillation(teacher, student, settings, _loss, classes=3).layers) == []
    unmatched = replace(SETTINGS, lambda_boundary=0.0, boundary_strides=(32,))
    assert "boundary" not in distillation(teacher, student, unmatched, _loss, classes=3).terms


def test_a_compiled_teacher_says_the_same(teacher: nn.Module, student: nn.Module) -> None:
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    plain, compiled = (
        distillation(teacher, student, replace(SETTINGS, compile_teacher=flag), _loss, classes=3).teacher
        for flag in (False, True)
    )
    assert plain is not None
    assert compiled is not None

    torch.testing.assert_close(compiled(images).coarse_logits, plain(images).coarse_logits, rtol=1e-3, atol=1e-4)


def test_pairs_that_cannot_be_matched_are_refused_with_both_tables(teacher: nn.Module, student: nn.Module) -> None:
    with pytest.raises(ModelError) as caught:
        distillation(teacher, student, replace(SETTINGS, boundary_strides=(32,)), _loss, classes=3)

    text = str(caught.value)
    assert text.startswith("distill.boundary_strides: none of [32] is a stage of both backbones")
    assert "teacher encoder.32: stride 32, 512 channels" in text
    assert "student encoder.16: stride 16, 288 channels" in text
    with pytest.raises(ModelError, match=r"distill\.relation_layers: \[32\] are not stages"):
        distillation(teacher, student, replace(SETTINGS, relation_layers=("deepest", 32)), _loss, classes=3)
    with pytest.raises(ModelError, match="the teacher has 4 classes, the student 3"):
        distillation(_model("FPN", "resnet18", classes=4), student, SETTINGS, _loss, classes=3)


@pytest.mark.parametrize(
    ("encoder", "arch", "options", "side"),
    [
        # takes 224 x 224 alone
        ("tu-swin_tiny_patch4_window7_224", "FPN", {}, 224),
        ("tu-convnext_atto", "Unet", {}, 64),
        # dilated: two stages at stride 8
        ("resnet18", "DeepLabV3Plus", {"encoder_output_stride": 8, "decoder_channels": 16}, 64),
    ],
)
@pytest.mark.parametrize("teaches", [True, False])
def test_any_encoder_teaches_and_learns(
    encoder: str, arch: str, options: dict[str, object], side: int, teaches: bool
) -> None:
    models = _model(arch, encoder, **options), _model("FPN", "tu-mobilenetv3_small_050", decoder_pyramid_channels=16)
    teacher, student = models if teaches else reversed(models)
    settings = replace(SETTINGS, relation_layers=("deepest", "decoder", 8))
    objective = distillation(teacher, student, settings, _loss, classes=3, size=(side, side))
    images = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    labels = torch.randint(0, 3, (2, side, side), generator=torch.Generator().manual_seed(1))
    assert objective.teacher is not None

    theirs, mine = objective.teacher(images), forward_features(student.train(), images)
    values = [term(theirs, mine, labels) for _, term in objective.terms.values()]
    torch.stack(values).sum().backward()

    assert all(torch.isfinite(value) and float(value.detach()) > 0 for value in values)
    assert any(parameter.grad is not None for parameter in student.encoder.parameters())  # type: ignore[operator, union-attr]


def test_a_model_of_another_size_is_refused(student: nn.Module) -> None:
    swin = _model("FPN", "tu-swin_tiny_patch4_window7_224")
    with pytest.raises(ModelError, match=r"^teacher on .* times 2: FPN takes no images of 448x448: Input height"):
        distillation(swin, student, SETTINGS, _loss, classes=3, size=(224, 224), teacher_scale=2)


def test_layers_by_name(student: nn.Module) -> None:
    features = forward_features(student.eval(), torch.zeros(1, 3, 64, 96))
    table = feature_table(student, 64, 96)

    assert pick_layer(features, "deepest") is features.encoder[16]
    assert pick_layer(features, 8) is features.encoder[8]
    assert pick_layer(features, "decoder") is features.decoder
    for layer in ("deepest", "decoder", 8):
        assert layer_channels(table, layer) == pick_layer(features, layer).shape[1]


def test_curricula() -> None:
    assert [CURRICULA["constant"](done) for done in (0, 0.5, 1)] == [1, 1, 1]
    assert [CURRICULA["fall"](done) for done in (0, 0.5, 1)] == pytest.approx([1, 0.5, 0])
    assert [CURRICULA["rise"](done) for done in (0, 0.5, 1)] == pytest.approx([0, 0.5, 1])
