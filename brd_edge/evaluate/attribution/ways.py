"""Ways from image files to class maps: by the training loader, by the reference, and by parts of an exported graph."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from brd_edge.data.dataset import Sample
from brd_edge.data.evaluation import read_for_evaluation
from brd_edge.data.loader import Backend, open_train_loader
from brd_edge.data.plan import Augmentation
from brd_edge.evaluate.accuracy import ByteArray, Predictor, network_predictor
from brd_edge.runtime.class_map import dense_class_map
from brd_edge.runtime.contract import InputContract
from brd_edge.runtime.engine import Runner
from brd_edge.runtime.errors import EngineError
from brd_edge.runtime.frames import segment_image
from brd_edge.runtime.runners.checks import check_class_maps, import_runtime
from brd_edge.runtime.runners.onnxruntime import INSTALL

if TYPE_CHECKING:
    import onnx
    import torch

__all__ = [
    "ClassMaps",
    "dense_predictor",
    "graph_logits_predictor",
    "graph_normalisation",
    "graph_normalisation_predictor",
    "graph_predictor",
    "plain_batches",
    "run_graph",
    "segment_frames",
    "segment_plain_batches",
]

ClassMaps = Generator[tuple[int, ByteArray]]
"""Each sample's position and class map, uint8 (H, W), in any order."""


def plain_batches(
    samples: Sequence[Sample], *, contract: InputContract, backend: Backend, threads: int, gpu: int | None = None
) -> Generator[tuple[torch.Tensor, torch.Tensor, int]]:
    """Yield each sample once, in any order, as a training loader gives it without augmentation.

    Args:
        samples: What to read.
        contract: Size and normalisation; images must be resized to it, not segmented in windows.
        backend: Of the loader.
        threads: Decoding threads, at least 1.
        gpu: Number of the CUDA GPU on which DALI decodes; None uses the CPU.

    Yields:
        float32 (1, 3, H, W), int64 (1, H, W), and the sample's position.

    Raises:
        DataError: A file cannot be read.
        RuntimeMissingError: DALI was asked for and is not installed.
    """
    size = (contract.height, contract.width)
    plain = Augmentation(crop=size, scale=(1.0, 1.0), flip=0.0, brightness=0.0, contrast=0.0, saturation=0.0)
    loader = open_train_loader(
        samples,
        contract=contract,
        augmentation=plain,
        batch_size=1,
        seed=0,
        backend=backend,
        threads=threads,
        gpu=gpu,
    )
    try:
        for _ in samples:
            batch = loader.next_batch()
            yield batch.images, batch.labels, batch.indices[0]
    finally:
        loader.close()


def segment_plain_batches(
    model: torch.nn.Module,
    samples: Sequence[Sample],
    *,
    contract: InputContract,
    device: torch.device,
    backend: Backend,
    threads: int,
    gpu: int | None = None,
) -> ClassMaps:
    """Segment what a training loader gives without augmentation by a PyTorch model; see `plain_batches`."""
    predict = network_predictor(model, device)
    with closing(plain_batches(samples, contract=contract, backend=backend, threads=threads, gpu=gpu)) as batches:
        for images, _, index in batches:
            yield index, predict(images)


def segment_frames(
    predict: Predictor,
    samples: Sequence[Sample],
    *,
    contract: InputContract,
    threads: int,
    backend: Backend = "torch",
    gpu: int | None = None,
) -> ClassMaps:
    """Segment samples as they are read for evaluation, resized or in windows as the contract says.

    Args:
        predict: Frame of the contract's size to class map.
        samples: What to read.
        contract: Size of the frames, and how images are brought to it.
        threads: Reading threads, at least 1.
        backend: What reads the images; `"torch"` is the contract's own rule, to the bit.
        gpu: Number of the CUDA GPU on which DALI decodes; None uses the CPU.
    """
    for item in read_for_evaluation(samples, contract=contract, backend=backend, threads=threads, gpu=gpu):
        yield item.index, segment_image(predict, item.image, contract)


def graph_normalisation(path: Path, *, threads: int | None = None) -> Callable[[ByteArray], NDArray[np.float32]]:
    """Return what an exported graph computes before its first convolution.

    Args:
        path: ONNX graph with a uint8 frame as input.
        threads: Threads within an operator; None leaves the choice to ONNX Runtime.

    Returns:
        Frame uint8 (H, W, 3) to float32 (1, 3, H, W).

    Raises:
        EngineError: The graph cannot be read, or has no convolution.
        RuntimeMissingError: ONNX Runtime is not installed.
    """
    model = _load(path)
    first = next((node for node in model.graph.node if node.op_type == "Conv"), None)
    if first is None:
        raise EngineError(f"{path}: expected a convolution after the preprocessing, the graph has none")
    return run_graph(_cut(model, first.input[0]), threads=threads)


def graph_normalisation_predictor(
    path: Path, model: torch.nn.Module, device: torch.device, *, threads: int | None = None
) -> Predictor:
    """Return a predictor whose preprocessing is an exported graph's and whose network is PyTorch's.

    Raises:
        EngineError: The graph cannot be read or cut; or, on a frame, what lies before its first convolution is
            no normalised image.
        RuntimeMissingError: ONNX Runtime is not installed.
    """
    import torch

    normalise, classify = graph_normalisation(path, threads=threads), network_predictor(model, device)

    def predict(frame: ByteArray) -> ByteArray:
        images, expected = normalise(frame), (1, 3, *frame.shape[:2])
        if images.shape != expected:
            raise EngineError(
                f"{path}: expected {expected} before the first convolution, got {images.shape}: the graph's "
                "preprocessing cannot be told from its network"
            )
        return classify(torch.from_numpy(images))

    return predict


def graph_logits_predictor(path: Path, *, threads: int | None = None) -> Predictor:
    """Return a predictor that takes an exported graph's logits and chooses the classes outside of it.

    Args:
        path: ONNX graph that ends in an ArgMax over axis 1.
        threads: Threads within an operator; None leaves the choice to ONNX Runtime.

    Raises:
        EngineError: The graph cannot be read, or has no ArgMax; or, on a frame, its logits have another size.
        RuntimeMissingError: ONNX Runtime is not installed.
    """
    model = _load(path)
    last = next((node for node in reversed(model.graph.node) if node.op_type == "ArgMax"), None)
    if last is None:
        raise EngineError(f"{path}: expected an ArgMax that makes the class map, the graph has none")
    logits = run_graph(_cut(model, last.input[0]), threads=threads)

    def predict(frame: ByteArray) -> ByteArray:
        found = logits(frame)
        height, width = frame.shape[:2]
        if found.shape[:1] + found.shape[2:] != (1, height, width):
            raise EngineError(f"{path}: expected (1, K, {height}, {width}) before the ArgMax, got {found.shape}")
        # the lower id wins a tie, as it must in the graph
        return np.asarray(found[0].argmax(0).astype(np.uint8))

    return predict


def graph_predictor(path: Path, contract: InputContract, *, threads: int | None = None) -> Predictor:
    """Return a predictor that runs an exported graph as it is in ONNX Runtime.

    Raises:
        EngineError: ONNX Runtime cannot load the graph; or, on a frame, the output is no class map.
        RuntimeMissingError: ONNX Runtime is not installed.
    """
    run = run_graph(str(path), threads=threads)
    return lambda frame: check_class_maps(run(frame), contract)[0]


def dense_predictor(runner: Runner) -> Predictor:
    """Return a predictor that upsamples an engine's coarse logits and compares all classes at every pixel.

    Args:
        runner: An engine that returns coarse logits to its runtime.

    Raises:
        EngineError: The engine makes the class map itself; or, on a frame, its logits do not come to this processor.
    """
    form = runner.info.logits
    if form is None:
        raise EngineError(f"{runner.info.runtime}: expected an engine of coarse logits, its class map is in its graph")

    def predict(frame: ByteArray) -> ByteArray:
        logits = runner.bind(frame)()
        if not isinstance(logits, np.ndarray):
            raise EngineError(f"{runner.info.runtime}: the engine's logits stay on its device")
        return dense_class_map(logits, *frame.shape[:2], align_corners=form.align_corners)

    return predict


def run_graph(model: bytes | str, *, threads: int | None = None) -> Callable[[ByteArray], NDArray[Any]]:
    """Return what runs a graph, given by its bytes or its path, on one frame by ONNX Runtime.

    Args:
        model: The graph; it takes uint8 (1, H, W, 3).
        threads: Threads within an operator; None leaves the choice to ONNX Runtime.

    Returns:
        Frame uint8 (H, W, 3) to the first output.

    Raises:
        EngineError: ONNX Runtime cannot load the graph.
        RuntimeMissingError: ONNX Runtime is not installed.
    """
    ort = import_runtime("onnxruntime", INSTALL)
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads or 0
    options.inter_op_num_threads = 1
    try:
        session = ort.InferenceSession(model, sess_options=options, providers=["CPUExecutionProvider"])
    except Exception as error:
        what = model if isinstance(model, str) else "a part of the exported graph"
        raise EngineError(f"{what}: ONNX Runtime {ort.__version__} cannot load it: {error}") from error
    name = session.get_inputs()[0].name

    def run(frame: ByteArray) -> NDArray[Any]:
        result: NDArray[Any] = session.run(None, {name: frame[None]})[0]
        return result

    return run


def _load(path: Path) -> onnx.ModelProto:
    import onnx

    try:
        return onnx.load(path)
    except Exception as error:
        # protobuf's own errors have no common kind
        raise EngineError(
            f"{path}: expected an ONNX graph, it cannot be read ({error}); run the stage export again"
        ) from error


def _cut(model: onnx.ModelProto, tensor: str) -> bytes:
    """Return a graph that ends in one of its inner float32 tensors."""
    import onnx

    del model.graph.output[:]
    model.graph.output.append(onnx.helper.make_tensor_value_info(tensor, onnx.TensorProto.FLOAT, None))
    content: bytes = model.SerializeToString()
    return content
