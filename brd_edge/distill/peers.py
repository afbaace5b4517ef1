"""Published distillation losses, each from its paper's formula, to compare BRD with."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from brd_edge.distill.checks import (
    COLDEST,
    check_labels,
    check_maps,
    check_number,
    check_same_classes,
    check_temperature,
)
from brd_edge.distill.distributed import global_mean
from brd_edge.distill.grid import IGNORE, full_precision, known_cells, on_coarser_grid, wide
from brd_edge.distill.similarities import similarity_divergence

__all__ = ["PixelMemory", "channel_wise_loss", "cross_image_loss", "memory_losses", "pair_wise_loss"]


def pair_wise_loss(teacher: Tensor, student: Tensor, *, patch: int = 2) -> Tensor:
    """Compare the cosine similarities of all pairs of patches (SKD).

    `1 / N^2 sum_ij (a^S_ij - a^T_ij)^2` with `a_ij = <f_i, f_j> / (|f_i| |f_j|)`, over the N cells
    of one image after max pooling by `patch` (Liu et al., "Structured Knowledge Distillation for
    Semantic Segmentation", CVPR 2019, arXiv 1903.04197, eq. 2, with the whole image as connection
    range). Labels are not used, as in the paper.

    Args:
        teacher: (N, C_T, H, W) features, in the paper those before the classifier; no gradient is taken.
        student: (N, C_S, H', W'); both are compared on the coarser grid.
        patch: Side of the pooled patches, in cells; at least 1.

    Returns:
        A scalar, 0 when the similarities are equal.

    Raises:
        ValueError: Maps that are not of the same N images, or a patch below 1.

    Example:
        >>> teacher, student = torch.randn(2, 64, 16, 24), torch.randn(2, 16, 8, 12, requires_grad=True)
        >>> pair_wise_loss(teacher, student).backward()
        >>> student.grad.shape
        torch.Size([2, 16, 8, 12])
    """
    check_maps(teacher, student)
    check_number("patch", patch, 1)
    theirs, mine = on_coarser_grid(wide(teacher.detach()), wide(student))

    def similarities(features: Tensor) -> Tensor:
        pooled = F.max_pool2d(features, patch, ceil_mode=True)
        pixels = F.normalize(pooled.flatten(2), dim=1, eps=1e-6)
        return pixels.transpose(1, 2) @ pixels

    with full_precision(mine):
        return (similarities(theirs) - similarities(mine)).square().mean()


def channel_wise_loss(teacher: Tensor, student: Tensor, *, temperature: float = 4.0) -> Tensor:
    """Compare where in the image each class is seen (CWD).

    `t^2 / C sum_c KL(softmax_p(z^T_c / t) || softmax_p(z^S_c / t))`, the softmax over the pixels p
    of one image (Shu et al., "Channel-wise Knowledge Distillation for Dense Prediction", ICCV 2021,
    arXiv 2011.13256, eq. 4). Labels are not used, as in the paper.

    Args:
        teacher: Logits (N, K, H, W); no gradient is taken.
        student: Logits (N, K, H', W'); both are compared on the coarser grid.
        temperature: t, above 0; the paper's 4.

    Returns:
        A scalar, not negative; 0 when the logits are equal up to a constant per channel.

    Raises:
        ValueError: Logits that are not of the same N images or have unlike numbers of classes, or a temperature that
            is not above 0.

    Example:
        >>> teacher, student = torch.randn(2, 5, 16, 24), torch.randn(2, 5, 16, 24, requires_grad=True)
        >>> channel_wise_loss(teacher, student).backward()
        >>> student.grad.shape
        torch.Size([2, 5, 16, 24])
    """
    check_maps(teacher, student)
    check_same_classes(teacher, student)
    check_temperature(temperature)
    theirs, mine = on_coarser_grid(wide(teacher.detach()), wide(student))
    target = (theirs.flatten(2) / temperature).log_softmax(2)
    found = (mine.flatten(2) / temperature).log_softmax(2)
    return (target.exp() * (target - found)).sum(2).mean() * temperature**2


def cross_image_loss(teacher: Tensor, student: Tensor, *, temperature: float = 0.1) -> Tensor:
    """Compare the similarities of every pixel with the pixels of every image of the batch (CIRKD).

    `1 / B^2 sum_nm mean_i KL(softmax_j(<f^T_ni, f^T_mj> / t) || softmax_j(<f^S_ni, f^S_mj> / t))`
    with L2-normalised f, after average pooling by 2 (Yang et al., "Cross-Image Relational Knowledge
    Distillation for Semantic Segmentation", CVPR 2022, arXiv 2204.06986, section 3.2).

    Args:
        teacher: (N, C_T, H, W); no gradient is taken.
        student: (N, C_S, H', W'); both are compared on the coarser grid.
        temperature: t, at least 0.02.

    Returns:
        A scalar, not negative; 0 when the similarities are equal. It can be differentiated once; `backward` with
        `create_graph=True` raises a RuntimeError.

    Raises:
        ValueError: Maps that are not of the same N images, or a temperature below 0.02.

    Example:
        >>> teacher, student = torch.randn(2, 64, 16, 24), torch.randn(2, 16, 8, 12, requires_grad=True)
        >>> cross_image_loss(teacher, student).backward()
        >>> student.grad.shape
        torch.Size([2, 16, 8, 12])
    """
    check_maps(teacher, student)
    check_temperature(temperature, least=COLDEST)
    theirs, mine = on_coarser_grid(wide(teacher.detach()), wide(student))

    def pixels(features: Tensor) -> Tensor:
        pooled = F.avg_pool2d(features, 2, ceil_mode=True)
        return F.normalize(pooled.flatten(2).transpose(1, 2), dim=2, eps=1e-6)

    teacher_pixels, student_pixels = pixels(theirs), pixels(mine)
    teacher_rows, student_rows = teacher_pixels.flatten(0, 1), student_pixels.flatten(0, 1)
    images, count = student_pixels.shape[:2]
    weights = mine.new_full((images * count,), 1 / (images**2 * count))
    losses = [
        similarity_divergence((teacher_rows, teacher_keys), (student_rows, keys), weights, temperature=temperature)
        for teacher_keys, keys in zip(teacher_pixels, student_pixels, strict=True)
    ]
    return torch.stack(losses).sum()


class PixelMemory(nn.Module):
    """The queues of teacher embeddings of CIRKD, and the student's projection into their space.

    Yang et al., CVPR 2022, arXiv 2204.06986, section 3.3. The queues are buffers, so that a resumed
    training has the same memory. What is drawn depends on how much was ever remembered alone: torch's own
    generator is left as it was, so that the student's dropout is the same as under every other method.

    Attributes:
        pixels: (K, pixels a class, C_T) unit embeddings.
        regions: (K, regions a class, C_T) unit class centres of single images.
        counts: (2, K) int64, how many embeddings were ever put into each queue.
    """

    pixels: Tensor
    regions: Tensor
    counts: Tensor

    def __init__(
        self, classes: int, teacher_channels: int, student_channels: int, *, pixel_slots: int, region_slots: int
    ) -> None:
        """Start with empty queues.

        Args:
            classes: Number of classes K.
            teacher_channels: Channels of the teacher's features.
            student_channels: Channels of the student's features.
            pixel_slots: Pixel embeddings kept per class, at least 1.
            region_slots: Region embeddings kept per class, at least 1.

        Raises:
            ValueError: A queue without a slot.
        """
        super().__init__()
        check_number("pixel_slots", pixel_slots, 1)
        check_number("region_slots", region_slots, 1)
        self.project = nn.Sequential(
            nn.Conv2d(student_channels, teacher_channels, 1, bias=False),
            nn.BatchNorm2d(teacher_channels),
            nn.ReLU(),
            nn.Conv2d(teacher_channels, teacher_channels, 1, bias=False),
        )
        self.register_buffer("pixels", torch.zeros(classes, pixel_slots, teacher_channels))
        self.register_buffer("regions", torch.zeros(classes, region_slots, teacher_channels))
        self.register_buffer("counts", torch.zeros(2, classes, dtype=torch.int64))

    @torch.no_grad()
    def remember(self, embeddings: Tensor, labels: Tensor, *, pixels_per_image: int = 16) -> None:
        """Put some pixels and the centre of every class in every image into the queues.

        Args:
            embeddings: (N, H * W, C_T) unit rows.
            labels: (N, H * W) int64 class ids on the same grid, 255 unknown.
            pixels_per_image: Most pixels of one class taken from one image.
        """
        generator = self._generator(2)
        for rows, ids in zip(embeddings, labels, strict=True):
            for name in torch.unique(ids[ids != IGNORE]).tolist():
                members = rows[ids == name]
                drawn = torch.randperm(len(members), generator=generator)[:pixels_per_image]
                chosen = members[drawn.to(members.device)]
                self._push(0, self.pixels, name, chosen)
                self._push(1, self.regions, name, F.normalize(members.mean(0, keepdim=True), dim=1))

    def sample(self, kind: int, most: int) -> Tensor:
        """Return up to `most` embeddings (kind 0 pixels, 1 regions), spread evenly over the classes."""
        queue = (self.pixels, self.regions)[kind]
        filled = self.counts[kind].clamp_max(queue.shape[1]).tolist()
        each, generator = max(1, most // len(filled)), self._generator(kind)
        drawn = [torch.randperm(count, generator=generator)[:each].to(queue.device) for count in filled]
        return torch.cat([queue[name, places] for name, places in enumerate(drawn)])

    def _generator(self, use: int) -> torch.Generator:
        """Return a generator for one draw from the queues as they are, of three uses."""
        return torch.Generator().manual_seed(3 * int(self.counts.sum()) + use)

    def _push(self, kind: int, queue: Tensor, name: int, rows: Tensor) -> None:
        slots = queue.shape[1]
        places = (int(self.counts[kind, name]) + torch.arange(len(rows), device=rows.device)) % slots
        queue[name, places] = rows.to(queue.dtype)
        self.counts[kind, name] += len(rows)


def memory_losses(
    memory: PixelMemory,
    teacher: Tensor,
    student: Tensor,
    labels: Tensor,
    *,
    temperature: float = 0.1,
    pixels: int = 4096,
    regions: int = 1024,
) -> tuple[Tensor, Tensor]:
    """Compare the similarities of every pixel with remembered pixels and regions (CIRKD).

    `mean_i KL(softmax_k(<f^T_i, v_k> / t) || softmax_k(<g(f^S_i), v_k> / t))`, v from the queues and
    g the student's projection (Yang et al., CVPR 2022, arXiv 2204.06986, section 3.3). The batch is
    put into the queues afterwards.

    Args:
        memory: The queues and the projection.
        teacher: (N, C_T, H, W); no gradient is taken.
        student: (N, C_S, H', W'); both are compared on the coarser grid.
        labels: (N, h, w) int64 class ids, 255 unknown.
        temperature: t, at least 0.02.
        pixels: Remembered pixels to compare with, of all classes together (the authors' code draws so many of each).
        regions: Remembered regions to compare with, likewise.

    Returns:
        The loss over pixels and the loss over regions; 0 while the queues are empty. They can be differentiated once;
        `backward` with `create_graph=True` raises a RuntimeError.

    Raises:
        ValueError: Maps or labels that are not of the same N images, a teacher of other channels than the memory's, a
            temperature below 0.02, or nothing to compare with (`pixels` or `regions` below 1).

    Example:
        >>> memory = PixelMemory(5, 64, 16, pixel_slots=100, region_slots=10)
        >>> teacher, student = torch.randn(2, 64, 16, 24), torch.randn(2, 16, 8, 12, requires_grad=True)
        >>> labels = torch.randint(0, 5, (2, 64, 96))
        >>> for _ in range(2):  # nothing is remembered before the first batch
        ...     pixels, regions = memory_losses(memory, teacher, student, labels)
        >>> (pixels + regions).backward()
        >>> student.grad.shape
        torch.Size([2, 16, 8, 12])
    """
    check_maps(teacher, student)
    check_labels(labels, student)
    if teacher.shape[1] != memory.pixels.shape[2]:
        raise ValueError(
            f"teacher must have the {memory.pixels.shape[2]} channels of the memory, got {teacher.shape[1]} in "
            f"{tuple(teacher.shape)}: make a PixelMemory with these teacher_channels"
        )
    check_temperature(temperature, least=COLDEST)
    check_number("pixels", pixels, 1)
    check_number("regions", regions, 1)
    theirs, mine = on_coarser_grid(wide(teacher.detach()), wide(student))
    height, width = theirs.shape[-2:]
    theirs, mine = (
        F.normalize(wide(values).flatten(2).transpose(1, 2), dim=2, eps=1e-6)
        for values in (theirs, memory.project(mine))
    )
    # nearest neighbours: class ids cannot be averaged
    ids = F.interpolate(labels[:, None].float(), (height, width), mode="nearest").flatten(1).long()
    known = known_cells(labels, height, width).flatten()
    losses = []
    for kind, most in enumerate((pixels, regions)):
        bank = memory.sample(kind, most)
        # a scalar of zero that still belongs to the student's graph
        divergence = mine.sum() * 0
        if len(bank):
            divergence = similarity_divergence(
                (theirs.flatten(0, 1), bank), (mine.flatten(0, 1), bank), known, temperature=temperature
            )
        # also without a bank: the other processes, which may have one, wait here
        losses.append(global_mean(divergence, known.sum()))
    memory.remember(theirs, ids)
    return losses[0], losses[1]
