"""What a recipe's training section asks of the loader."""

from __future__ import annotations

from brd_edge.data.plan import Augmentation
from brd_edge.recipe_training import TrainSection
from brd_edge.runtime.contract import InputContract
from brd_edge.stages.training import augmentation_of


def test_every_variation_of_the_recipe_reaches_the_loader() -> None:
    section = TrainSection(
        epochs=1, crop=(40, 56), scale=(0.5, 2), flip=0.25, jitter=(0.1, 0.2, 0.3), gamma=1.5, class_balance=0.75
    )
    contract = InputContract(height=48, width=64, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))

    expected = Augmentation(
        crop=(40, 56),
        scale=(0.5, 2),
        flip=0.25,
        brightness=0.1,
        contrast=0.2,
        saturation=0.3,
        gamma=1.5,
        class_balance=0.75,
    )
    assert augmentation_of(section, contract) == expected
    assert augmentation_of(section, contract, scale=2).crop == (80, 112)
    assert augmentation_of(section.model_copy(update={"crop": None}), contract).crop == (48, 64)
