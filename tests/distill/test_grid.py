from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from brd_edge.data.plan import Draw
from brd_edge.data.torch_loader import _resize_label
from brd_edge.distill.grid import reduce_batch


@pytest.mark.parametrize("factor", [1, 2, 3, 4])
def test_a_reduced_batch_is_what_the_loader_makes_of_the_frame(factor: int) -> None:
    generator = np.random.default_rng(factor)
    height, width = 12, 20
    images = generator.integers(0, 256, (2, factor * height, factor * width, 3), dtype=np.uint8)
    labels = generator.integers(0, 19, images.shape[:3], dtype=np.uint8)

    small, ids = reduce_batch(
        torch.from_numpy(images).permute(0, 3, 1, 2).float().contiguous(memory_format=torch.channels_last),
        torch.from_numpy(labels.astype(np.int64)),
        factor,
    )

    for index in range(2):
        wanted = Image.fromarray(images[index]).resize((width, height), Image.Resampling.BILINEAR)
        # Pillow rounds to whole levels after each direction
        np.testing.assert_allclose(small[index].permute(1, 2, 0).numpy(), np.asarray(wanted), atol=1.01)
        draw = Draw(index, (height, width), (0, 0), (height, width), (0, 0), False, (1.0, 1.0, 1.0))
        np.testing.assert_array_equal(ids[index].numpy(), _resize_label(labels[index], draw))
