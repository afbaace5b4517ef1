"""Stage `export`: the student's ONNX graph, and the proof that distillation added nothing to it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from brd_edge.data.dataset import read_frame
from brd_edge.environment import describe_environment, package_version
from brd_edge.recipe import Recipe
from brd_edge.runtime.errors import EngineError, RuntimeMissingError
from brd_edge.runtime.files import write_json_atomic
from brd_edge.stages.context import Context, Outcome, Stage, input_contract
from brd_edge.stages.reporting import sample_indices
from brd_edge.stages.training import load_run_dataset, model_spec

if TYPE_CHECKING:
    import torch

    from brd_edge.data.dataset import Dataset
    from brd_edge.evaluate.accuracy import ByteArray, Predictor

__all__ = ["STAGE", "graph_agreement", "graph_metadata"]

# frames on which the graph is compared with PyTorch, and the share of their pixels that must be the same:
# both compute in float32, so only near ties may fall differently
_FRAMES = 4
_AGREEMENT_MIN = 0.9999

_PACKAGES = ("torch", "onnx", "onnxscript", "onnxruntime")


def _settings(recipe: Recipe) -> dict[str, Any]:
    return {
        "contract": input_contract(recipe).to_json(),
        "student": recipe.student.model_dump(mode="json", exclude={"encoder_weights"}),
        "export": recipe.export.model_dump(mode="json"),
        "metadata": {"recipe": recipe.name, "method": recipe.distill.method},
    }


def graph_metadata(recipe: str, method: str, *, commit: str | None, val_miou: float | None) -> dict[str, str]:
    """Return what an exported graph says of itself beside its contract; every graph has the same keys.

    Args:
        recipe: Name of the recipe.
        method: How the model was distilled.
        commit: The commit of the source that exported it, where that is known.
        val_miou: What training saw on the validation split, 0 to 1; None for a model that was not trained.
    """
    return {
        "recipe": recipe,
        "method": method,
        "commit": commit or "unknown",
        "val_miou": "not trained" if val_miou is None else f"{val_miou:.6f}",
    }


def _about(context: Context) -> dict[str, dict[str, str]]:
    recipe, val_miou = context.recipe, float(context.inputs["distill"].result["miou"])
    # not among the settings: another commit alone is no reason to export anew
    commit = describe_environment()["commit"]
    return {
        "student": graph_metadata(recipe.name, recipe.distill.method, commit=commit, val_miou=val_miou),
        "plain": graph_metadata(recipe.name, "none", commit=commit, val_miou=None),
    }


def _files(_recipe: Recipe) -> dict[str, str]:
    # the exporters decide the graph as much as the model does; ONNX Runtime compares it with the model
    return {f"package {name}": package_version(name) or "not installed" for name in _PACKAGES}


def _plan(recipe: Recipe) -> str:
    height, width = recipe.data.size
    what = f"opset {recipe.export.opset}, uint8 {width}x{height} frame in, class map out"
    return f"write ONNX ({what}), compare it with PyTorch, prove zero cost"


def _work(context: Context) -> Outcome:
    from brd_edge.deploy.export import export_onnx
    from brd_edge.evaluate.zero_cost import compare_graphs
    from brd_edge.models.segmentation import build_stand_in, count_macs, count_parameters, load_model, require_contract

    recipe = context.recipe
    contract = input_contract(recipe)
    dataset = load_run_dataset(context)
    student, _ = load_model(context.run.path("distill", "model"))
    require_contract(context.run.path("distill", "model"), contract)
    # the same recipe section, never distilled: what the student would be without the product
    plain = build_stand_in(model_spec(recipe.student, dataset), seed=recipe.seed + 1)
    about, paths = _about(context), {}
    for name, model in (("student", student), ("plain", plain)):
        paths[name] = context.run.path("export", f"{name}.onnx")
        context.say(f"export: writing {name}.onnx")
        export_onnx(
            model,
            paths[name],
            contract=contract,
            classes=dataset.classes,
            palette=dataset.palette,
            metadata=about[name],
            opset=recipe.export.opset,
        )
    agreement = _compare_with_pytorch(context, student, paths["student"], dataset)
    graphs = compare_graphs(paths["student"], paths["plain"])
    params = [count_parameters(model) for model in (student, plain)]
    macs = [count_macs(model, contract.height, contract.width) for model in (student, plain)]
    proof = {
        **asdict(graphs),
        "differences": list(graphs.differences),
        "params_equal": params[0] == params[1],
        "macs_equal": macs[0] == macs[1],
        "params": params[0],
        "macs": macs[0],
    }
    proof["equal"] = graphs.equal and proof["params_equal"] and proof["macs_equal"]
    evidence = context.run.path("export", "zero_cost.json")
    write_json_atomic(evidence, proof)
    if not proof["equal"]:
        shown = "\n".join(f"  {line}" for line in graphs.differences)
        raise EngineError(
            "zero added cost does not hold: the distilled student's graph differs from an undistilled one's "
            f"(parameters {params[0]} against {params[1]}, MACs {macs[0]} against {macs[1]}); see {evidence}\n{shown}"
        )
    return Outcome(
        [*paths.values(), evidence],
        {**proof, "agreement": agreement},
        f"{graphs.nodes} nodes, {params[0]:,} parameters, {macs[0]:,} MACs; equal to an undistilled student",
    )


def graph_agreement(expect: Predictor, predict: Predictor, frames: Sequence[ByteArray], graph: Path) -> float:
    """Compare the class maps of an exported graph with those of the model that it was exported from.

    Args:
        expect: The model: frame uint8 (H, W, 3) to class map uint8 (H, W).
        predict: The graph, the same way.
        frames: What both are run on, at least one.
        graph: The graph's file, for the message.

    Returns:
        The share of all pixels that have the same class, 0 to 1.

    Raises:
        EngineError: It is below 0.9999.
    """
    equal = [predict(frame) == expect(frame) for frame in frames]
    share = float(np.mean(equal))
    if share < _AGREEMENT_MIN:
        worst = min(range(len(equal)), key=lambda index: float(np.mean(equal[index])))
        raise EngineError(
            f"{graph}: expected the class maps of the PyTorch student on at least {100 * _AGREEMENT_MIN:.2f} % of the "
            f"pixels, got {100 * share:.3f} % over {len(equal)} validation frames ({100 * np.mean(equal[worst]):.3f} % "
            f"in the worst, number {worst}): the export changed the model; try another export.opset, or another "
            "student.arch or student.encoder"
        )
    return share


def _compare_with_pytorch(context: Context, model: torch.nn.Module, graph: Path, dataset: Dataset) -> float | None:
    import torch

    from brd_edge.deploy.agreement import stand_in
    from brd_edge.evaluate.accuracy import model_predictor

    contract = input_contract(context.recipe)
    try:
        predict = stand_in(graph, runtime="onnxruntime")
    except RuntimeMissingError as error:
        context.say(f"export: student.onnx was not compared with PyTorch: {error}")
        return None
    frames = [read_frame(dataset.val[index], contract) for index in sample_indices(len(dataset.val), _FRAMES)]
    return graph_agreement(model_predictor(model.eval(), contract, torch.device("cpu")), predict, frames, graph)


STAGE = Stage(
    name="export",
    needs=("prepare", "distill"),
    code=(
        "data/dataset.py",
        "deploy/agreement.py",
        "deploy/export.py",
        "deploy/frame_model.py",
        "evaluate/accuracy.py",
        "evaluate/zero_cost.py",
        "models",
        "runtime/frames.py",
        "stages/export.py",
    ),
    files=_files,
    settings=_settings,
    work=_work,
    plan=_plan,
)
