from __future__ import annotations

from copy import deepcopy
from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from torch import nn

from brd_edge.distill.boundary import (
    OPERATORS,
    boundary_class_loss,
    boundary_feature_loss,
    boundary_logit_loss,
    boundary_place_loss,
    boundary_projections,
    projected_boundary_loss,
)
from brd_edge.distill.logits import logit_loss
from brd_edge.distill.matching import layer_channels, pick_layer
from brd_edge.distill.methods import METHODS
from brd_edge.distill.objective import CURRICULA, DistillSettings, Term, distillation
from brd_edge.distill.overlap import boundary_overlap_loss
from brd_edge.distill.peers import PixelMemory, channel_wise_loss, cross_image_loss, memory_losses, pair_wise_loss
from brd_edge.distill.prototypes import class_relation_loss
from brd_edge.distill.relation import relation_loss
from brd_edge.distill.supervised import cross_entropy
from brd_edge.models.segmentation import Features, ModelSpec, build_model, feature_table, forward_features
from brd_edge.recipe_training import DistillSection, TrainSection
from brd_edge.runtime.errors import ModelError
from brd_edge.stages.training import distill_settings

SETTINGS = distill_settings(DistillSection(train=TrainSection(epochs=1)))
# without the dry runs that say what a CUDA graph can hold, which are most of what an objective takes to make
_PLAIN: dict[str, Any] = {"cuda_graphs": False}
_ONE_WINDOW: dict[str, Any] = {"boundary_class_kernels": (5,), "band_weight": 1.5, "boundary_class_balance": 0.3}


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


def _made_features() -> tuple[Features, Features, torch.Tensor]:
    """Random features of the two models' sizes, in which every setting is seen, and labels with an unknown corner.

    What the student's terms may be differentiated by are leaves.
    """
    generator = torch.Generator().manual_seed(0)

    def of_model(channels: dict[int, int], decoder: int) -> Features:
        encoder = {
            stride: torch.randn(2, count, 64 // stride, 96 // stride, generator=generator)
            for stride, count in channels.items()
        }
        others = (torch.randn(2, count, 16, 24, generator=generator) for count in (decoder, 3))
        return Features(torch.randn(2, 3, 64, 96, generator=generator), encoder, *others)

    theirs, mine = of_model({4: 64, 8: 128, 16: 256, 32: 512}, 128), of_model({4: 8, 8: 16, 16: 288}, 32)
    for leaf in (mine.logits, *mine.encoder.values(), mine.decoder, mine.coarse_logits):
        leaf.requires_grad_()
    labels = torch.randint(0, 3, (2, 4, 6), generator=generator).repeat_interleave(16, 1).repeat_interleave(16, 2)
    labels[0, :30, :20] = 255
    return theirs, mine, labels


def _mean(*losses: torch.Tensor) -> torch.Tensor:
    return torch.stack(losses).mean()


def _overlap(theirs: Features, mine: Features, labels: torch.Tensor, kernel: int) -> torch.Tensor:
    shares = theirs.coarse_logits.softmax(1), mine.coarse_logits.softmax(1)
    return boundary_overlap_loss(*shares, labels, kernel=kernel)


@pytest.mark.parametrize(
    ("term", "changes", "direct"),
    [
        (
            "kd",
            {"method": "kd", "kd_temperature": 3.0, "kd_class_balance": 0.4},
            lambda t, s, y: logit_loss(t.coarse_logits, s.coarse_logits, y, temperature=3.0, class_balance=0.4),
        ),
        (
            "cwd",
            {"method": "cwd", "cwd_temperature": 2.5},
            lambda t, s, _y: channel_wise_loss(t.coarse_logits, s.coarse_logits, temperature=2.5),
        ),
        ("skd", {"method": "skd"}, lambda t, s, _y: pair_wise_loss(t.decoder, s.decoder, patch=2)),
        ("cirkd_batch", {"method": "cirkd"}, lambda t, s, _y: cross_image_loss(t.decoder, s.decoder, temperature=0.1)),
        (
            "boundary",
            {"boundary_operator": "neighbours", "boundary_kernel": 5, "band_weight": 1.5, "boundary_strides": (4, 16)},
            lambda t, s, y: boundary_feature_loss(
                t.encoder, s.encoder, y, strides=(4, 16), operator="neighbours", kernel=5, band_weight=1.5
            ),
        ),
        (
            "boundary",
            {"boundary_operator": "projected", "boundary_kernel": 5, "band_weight": 1.5, "boundary_strides": (4, 8)},
            lambda t, s, y: projected_boundary_loss(
                t.encoder,
                s.encoder,
                y,
                projections=boundary_projections({4: (64, 8), 8: (128, 16)}),
                kernel=5,
                band_weight=1.5,
            ),
        ),
        (
            "boundary_classes",
            {"boundary_class_space": "places", "boundary_class_kernels": (0, 5)},
            lambda t, s, y: _mean(
                boundary_place_loss(t.coarse_logits, s.coarse_logits, y, kernel=0, temperature=4.0),
                boundary_place_loss(t.coarse_logits, s.coarse_logits, y, kernel=5, temperature=1.0),
            ),
        ),
        (
            "boundary_classes",
            {"boundary_class_space": "overlaps", "boundary_class_kernels": (0, 5)},
            lambda t, s, y: _mean(_overlap(t, s, y, 0), _overlap(t, s, y, 5)),
        ),
        (
            "boundary_classes",
            {"boundary_class_space": "probabilities", **_ONE_WINDOW},
            lambda t, s, y: boundary_class_loss(
                t.coarse_logits, s.coarse_logits, y, kernel=5, band_weight=1.5, class_balance=0.3
            ),
        ),
        (
            "boundary_classes",
            {"boundary_class_space": "logits", **_ONE_WINDOW},
            lambda t, s, y: boundary_logit_loss(
                t.coarse_logits, s.coarse_logits, y, kernel=5, band_weight=1.5, class_balance=0.3
            ),
        ),
        (
            "relation",
            {
                "relation_to": "classes",
                "relation_layers": ("decoder", 8),
                "relation_temperature": 0.3,
                "relation_class_balance": 0.2,
            },
            lambda t, s, y: _mean(
                class_relation_loss(t.decoder, s.decoder, y, temperature=0.3, class_balance=0.2),
                class_relation_loss(t.encoder[8], s.encoder[8], y, temperature=0.3, class_balance=0.2),
            ),
        ),
        (
            "relation",
            {
                "relation_to": "pixels",
                "relation_layers": (8,),
                "relation_temperature": 0.3,
                "relation_across_images": True,
                "relation_cells_max": 60,
            },
            lambda t, s, y: relation_loss(
                t.encoder[8], s.encoder[8], y, temperature=0.3, across_images=True, cells_max=60
            ),
        ),
        (
            "relation",
            {
                "relation_to": "pixels",
                "relation_layers": (8,),
                "relation_temperature": 0.3,
                "relation_across_images": False,
                "relation_cells_max": 60,
            },
            lambda t, s, y: relation_loss(
                t.encoder[8], s.encoder[8], y, temperature=0.3, across_images=False, cells_max=60
            ),
        ),
    ],
)
def test_a_term_is_its_loss_with_the_numbers_of_the_settings(
    teacher: nn.Module, student: nn.Module, term: str, changes: dict[str, Any], direct: Term
) -> None:
    settings = replace(SETTINGS, **_PLAIN, **changes)
    objective = distillation(teacher, student, settings, _loss, classes=3, size=(64, 96))
    theirs, mine, labels = _made_features()

    found = objective.terms[term][1](theirs, mine, labels)
    found.backward()

    assert float(found.detach()) == pytest.approx(float(direct(theirs, mine, labels).detach()), rel=1e-5)
    leaves = (*mine.encoder.values(), mine.decoder, mine.coarse_logits)
    assert any(leaf.grad is not None and leaf.grad.any() for leaf in leaves), "the student is what it trains"


def test_the_term_of_the_memory_is_the_sum_over_pixels_and_regions(teacher: nn.Module, student: nn.Module) -> None:
    settings = replace(SETTINGS, method="cirkd", **_PLAIN)
    objective = distillation(teacher, student, settings, _loss, classes=3, size=(64, 96))
    memory = deepcopy(objective.layers["memory"])
    assert isinstance(memory, PixelMemory)
    theirs, mine, labels = _made_features()

    for _ in range(2):  # it is empty at first
        found = objective.terms["cirkd_memory"][1](theirs, mine, labels)
        both = memory_losses(memory, theirs.decoder, mine.decoder, labels)
    found.backward()

    assert all(float(loss.detach()) > 0 for loss in both)
    assert float(found.detach()) == pytest.approx(sum(float(loss.detach()) for loss in both), rel=1e-5)
    assert mine.decoder.grad is not None
    assert mine.decoder.grad.any()


@pytest.mark.parametrize("method", ["none", "cirkd", "brd_kd"])
def test_weights_curriculum_and_what_else_is_given_reach_the_objective(
    teacher: nn.Module, student: nn.Module, method: str
) -> None:
    names = sorted({name for terms in METHODS.values() for name in terms})
    lambdas: dict[str, Any] = {f"lambda_{name}": 0.25 + place for place, name in enumerate(names)}
    settings = replace(SETTINGS, method=method, curriculum="fall", **_PLAIN, **lambdas)
    label_terms = {"overlap": (0.5, _loss)}

    def student_view(images: torch.Tensor, _factors: torch.Tensor) -> torch.Tensor:
        return images

    objective = distillation(
        teacher,
        student,
        settings,
        _loss,
        classes=3,
        label_terms=label_terms,
        teacher_scale=2,
        student_view=student_view,
        size=(32, 32),
    )

    weights = {name: weight for name, (weight, _) in objective.terms.items()}
    assert weights == {name: lambdas[f"lambda_{name}"] for name in METHODS[method]}
    # without a term there is nothing that a curriculum weights
    assert objective.curriculum is CURRICULA["fall" if weights else "constant"]
    assert objective.label_terms == label_terms
    assert (objective.supervised, objective.student_view) == (_loss, student_view)
    assert objective.teacher_scale == 2


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
