"""How good class maps are: any predictor over a whole validation split."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from brd_edge.data.dataset import IGNORE_ID, Sample
from brd_edge.data.evaluation import read_for_evaluation
from brd_edge.data.loader import Backend, require_known_ids
from brd_edge.runtime.contract import InputContract
from brd_edge.runtime.frames import resize_class_map, segment_image
from brd_edge.runtime.metrics import SegmentationMetrics

if TYPE_CHECKING:
    import torch

__all__ = ["evaluate_predictor", "model_predictor", "network_predictor"]

ByteArray = NDArray[np.uint8]
Predictor = Callable[[ByteArray], ByteArray]
"""Frame uint8 (H, W, 3) of the contract's size to class map uint8 (H, W)."""


def evaluate_predictor(
    predict: Predictor,
    samples: Sequence[Sample],
    *,
    contract: InputContract,
    metrics: SegmentationMetrics,
    on_class_map: Callable[[int, ByteArray], None] | None = None,
    backend: Backend = "torch",
    threads: int = 1,
    gpu: int | None = None,
) -> SegmentationMetrics:
    """Run a predictor over samples and compare with the labels at the labels' own size.

    Args:
        predict: Frame to class map.
        samples: What to run it on, each exactly once; they may differ in size.
        contract: Size of the frames, and whether images are resized to it or segmented in windows.
        metrics: Taken as they are and updated.
        on_class_map: Told each sample's index and class map, in order: of the contract's size, or of the
            image's where it is segmented in windows.
        backend: What reads the images; `"torch"` is the contract's own rule, to the bit.
        threads: Reading threads.
        gpu: Number of the CUDA GPU on which DALI decodes; None uses the CPU.

    Returns:
        `metrics`.
    """
    items = read_for_evaluation(samples, contract=contract, backend=backend, threads=threads, gpu=gpu)
    for item in items:
        require_known_ids(samples[item.index], item.label, metrics.classes)
        class_map = segment_image(predict, item.image, contract)
        metrics.update(resize_class_map(class_map, item.label.shape[0], item.label.shape[1]), item.label)
        if on_class_map is not None:
            on_class_map(item.index, class_map)
    return metrics


def model_predictor(
    model: torch.nn.Module, contract: InputContract, device: torch.device, *, confidence_min: float = 0.0
) -> Predictor:
    """Return a predictor that runs a PyTorch model in fp32, with the contract's normalisation.

    On a GPU, TF32 is switched off: engines are compared with what this returns.

    Args:
        model: The network, used in the mode that it is in; put it into eval mode first.
        contract: Gives the normalisation.
        device: Where the network is.
        confidence_min: Pixels whose class has a lower probability (softmax, 0 to 1) are 255 in the class map.
    """
    import torch

    mean = torch.tensor(contract.mean, device=device).view(1, 3, 1, 1)
    std = torch.tensor(contract.std, device=device).view(1, 3, 1, 1)
    classify = network_predictor(model, device, confidence_min=confidence_min)

    def predict(frame: ByteArray) -> ByteArray:
        pixels = torch.from_numpy(frame).to(device).permute(2, 0, 1).unsqueeze(0).float()
        return classify((pixels / 255 - mean) / std)

    return predict


def network_predictor(
    model: torch.nn.Module, device: torch.device, *, confidence_min: float = 0.0
) -> Callable[[torch.Tensor], ByteArray]:
    """Return what runs a PyTorch model in fp32 on one image that is normalised already.

    On a GPU, TF32 is switched off. The model is used in the mode that it is in; `confidence_min` is that of
    `model_predictor`.

    Returns:
        float32 (1, 3, H, W), on any device, to class map uint8 (H, W).
    """
    import torch

    def predict(images: torch.Tensor) -> ByteArray:
        exact = _without_tf32() if device.type == "cuda" else nullcontext()
        with torch.inference_mode(), exact:
            logits: Any = model(images.to(device).contiguous(memory_format=torch.channels_last))
            ids = logits.argmax(1)[0].to(torch.uint8)
            if confidence_min > 0:
                ids[logits[0].softmax(0).amax(0) < confidence_min] = IGNORE_ID
            result: ByteArray = ids.cpu().numpy()
            return result

    return predict


def _without_tf32() -> Any:
    import torch

    settings = torch.backends.cudnn
    # what is not given would be set to a default, which for `enabled` is off
    return settings.flags(
        enabled=settings.enabled,
        benchmark=settings.benchmark,
        deterministic=settings.deterministic,
        allow_tf32=False,
    )
