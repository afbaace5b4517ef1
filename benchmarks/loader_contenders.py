"""The loaders that `benchmarks.loader` compares, behind one interface.

All read the same files in the same order and give out the same kind of batch. `dali-cpu`, `dali-gpu`,
`reference` and `dataloader` carry out the same draws; `albumentations` draws its own from the same ranges.
Everything is drawn from the workload's seed. Worker processes come from a fork server, because this process
has threads of torch and DALI, which a fork does not survive.
"""

from __future__ import annotations

import gc
import itertools
import multiprocessing
import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from brd_edge.data.dataset import IGNORE_ID, Sample
from brd_edge.data.loader import Batch, open_train_loader
from brd_edge.data.plan import Augmentation, Draw, Plan
from brd_edge.data.torch_loader import DecodedSamples, _load
from brd_edge.runtime.contract import InputContract

__all__ = ["CONTENDERS", "Contender", "Workload", "open_contender", "unavailable"]

CONTENDERS = ("dali-cpu", "dali-gpu", "reference", "dataloader", "albumentations")
PREFETCH = 2
"""Batches that each worker process makes ahead."""

# otherwise its import asks the network for a newer version; worker processes inherit this
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

# image float32 (3, h, w), label (h, w), position in the sequence of samples
_Item = tuple[npt.NDArray[np.float32], npt.NDArray[np.int64], int]
_TensorItem = tuple[Tensor, Tensor, int]


class Contender(Protocol):
    """What is measured."""

    def next_batch(self) -> Batch:
        """Return the next batch; endless."""
        ...

    def close(self) -> None:
        """End threads and processes."""
        ...


@dataclass(frozen=True)
class Workload:
    """What every contender is given.

    Attributes:
        samples: Files, at least one batch of them.
        contract: Size that scale 1 stands for, and the normalisation.
        augmentation: How samples are varied.
        batch_size: Images in a batch.
        threads: Decoding threads, or worker processes.
        seed: Of the order and the variation, from 0.
    """

    samples: tuple[Sample, ...]
    contract: InputContract
    augmentation: Augmentation
    batch_size: int
    threads: int
    seed: int

    @property
    def plan(self) -> Plan:
        """The order and the draws, which are the same for every backend."""
        return Plan(self.samples, self.contract, self.augmentation, self.batch_size, self.seed, "torch")


def unavailable(name: str) -> str | None:
    """Return why a contender cannot be measured here; nothing if it can."""
    try:
        if name.startswith("dali"):
            import nvidia.dali  # noqa: F401  (only whether it imports)
        elif name == "albumentations":
            import albumentations  # noqa: F401
            import cv2  # noqa: F401
    except ImportError as error:
        return f"not installed: {error}"
    return "no GPU here" if name == "dali-gpu" and not torch.cuda.is_available() else None


def open_contender(name: str, workload: Workload) -> Contender:
    """Open one of `CONTENDERS`; it may start its threads or processes at once or with the first batch."""
    if name == "dataloader":
        plan = workload.plan
        draws = (list(plan.draws(batch)) for batch in itertools.count())
        return _Workers(_Planned(plan), draws, workload)
    if name == "albumentations":
        plan = workload.plan
        order = ([draw.index for draw in plan.draws(batch)] for batch in itertools.count())
        return _Workers(_Albumentations(workload), order, workload)
    backend: Literal["dali", "torch"] = "torch" if name == "reference" else "dali"
    return open_train_loader(
        workload.samples,
        contract=workload.contract,
        augmentation=workload.augmentation,
        batch_size=workload.batch_size,
        seed=workload.seed,
        backend=backend,
        threads=workload.threads,
        gpu=0 if name == "dali-gpu" else None,
        # every contender decodes each sample each time, as with a data set that memory cannot hold
        kept_bytes_max=0,
    )


class _Workers:
    """A torch `DataLoader` with worker processes, over a dataset and an endless stream of batches of its keys.

    An endless stream, because at the end of an epoch the workers would run dry, and the epochs of so few
    files are short.
    """

    def __init__(self, dataset: Dataset[Any], keys: Iterator[list[Any]], workload: Workload) -> None:
        context = multiprocessing.get_context("forkserver")
        # each worker would import them otherwise; what is not there is passed over
        context.set_forkserver_preload([__name__, "albumentations.pytorch"])
        with warnings.catch_warnings():
            # the number of workers is the caller's, also where there are fewer cores
            warnings.filterwarnings("ignore", message="This DataLoader will create", category=UserWarning)
            loader = DataLoader(
                dataset,
                batch_sampler=_Once(keys),
                num_workers=workload.threads,
                prefetch_factor=PREFETCH,
                persistent_workers=True,
                multiprocessing_context=context,
                # the workers' seeds follow from it
                generator=torch.Generator().manual_seed(workload.seed),
            )
            self._batches: Iterator[Any] | None = iter(loader)

    def next_batch(self) -> Batch:
        assert self._batches is not None
        images, labels, indices = next(self._batches)
        # bytes travel between the processes faster than 64-bit integers
        return Batch(images, labels.to(torch.int64), tuple(indices.tolist()))

    def close(self) -> None:
        # the iterator ends its workers, and waits for them, when it is collected
        self._batches = None
        gc.collect()


class _Once:
    """The sampler of one endless epoch."""

    def __init__(self, keys: Iterator[list[Any]]) -> None:
        self._keys = keys

    def __iter__(self) -> Iterator[list[Any]]:
        return self._keys


class _Planned(Dataset[_Item]):
    """What the reference does for one sample; the keys are draws."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan

    def __getitem__(self, draw: Draw) -> _Item:
        return *_load(self._plan, draw, DecodedSamples(0)), draw.index


class _Albumentations(Dataset[_TensorItem]):
    """The same work by OpenCV and albumentations; the keys are positions in the sequence of samples."""

    def __init__(self, workload: Workload) -> None:
        self._workload = workload
        self._transform: Any = None

    def __getitem__(self, index: int) -> _TensorItem:
        import cv2

        if self._transform is None:
            # in the worker: there are as many processes as may run at once, and each needs a seed of its own
            cv2.setNumThreads(0)
            self._transform = _compose(self._workload, seed=torch.initial_seed() % 2**32)
        sample = self._workload.samples[index]
        image, label = cv2.imread(str(sample.image)), cv2.imread(str(sample.label), cv2.IMREAD_GRAYSCALE)
        varied = self._transform(image=cv2.cvtColor(image, cv2.COLOR_BGR2RGB), mask=label)
        return varied["image"], varied["mask"], index


def _compose(workload: Workload, *, seed: int) -> Any:
    import albumentations as A
    import cv2
    from albumentations.pytorch import ToTensorV2

    contract, augmentation = workload.contract, workload.augmentation
    height, width = augmentation.crop
    base = (contract.height, contract.width)
    resizes = any((sample.height, sample.width) != base for sample in workload.samples)
    return A.Compose(
        [
            *([A.Resize(*base, area_for_downscale="image")] if resizes else []),
            # an area filter for reduction: the others resize without aliasing, too
            A.RandomScale(
                tuple(factor - 1 for factor in augmentation.scale),
                interpolation=cv2.INTER_LINEAR,
                mask_interpolation=cv2.INTER_NEAREST,
                area_for_downscale="image",
                p=1,
            ),
            # before the colours, as is usual: the padding's vary with them, a little unlike the others'
            A.PadIfNeeded(
                height,
                width,
                position="random",
                border_mode=cv2.BORDER_CONSTANT,
                fill=tuple(255 * value for value in contract.mean),
                fill_mask=IGNORE_ID,
            ),
            A.RandomCrop(height, width),
            A.HorizontalFlip(p=augmentation.flip),
            A.ColorJitter(augmentation.brightness, augmentation.contrast, augmentation.saturation, hue=0, p=1),
            A.Normalize(contract.mean, contract.std),
            ToTensorV2(),
        ],
        seed=seed,
    )
