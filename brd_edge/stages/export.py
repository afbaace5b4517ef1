"""Stage `export`: the student's ONNX graph, and the proof that distillation added nothing to it."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from brd_edge.environment import describe_environment, package_version
from brd_edge.recipe import Recipe
from brd_edge.runtime.errors import EngineError
from brd_edge.runtime.files import write_json_atomic
from brd_edge.stages.context import Context, Outcome, Stage, input_contract
from brd_edge.stages.training import load_run_dataset, model_spec

__all__ = ["STAGE", "graph_metadata"]


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
    # the exporters decide the graph as much as the model does
    return {f"package {name}": package_version(name) or "not installed" for name in ("torch", "onnx", "onnxscript")}


def _plan(recipe: Recipe) -> str:
    height, width = recipe.data.size
    return f"write ONNX (opset {recipe.export.opset}, uint8 {width}x{height} frame in, class map out), prove zero cost"


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
        proof,
        f"{graphs.nodes} nodes, {params[0]:,} parameters, {macs[0]:,} MACs; equal to an undistilled student",
    )


STAGE = Stage(
    name="export",
    needs=("prepare", "distill"),
    code=("deploy/export.py", "deploy/frame_model.py", "evaluate/zero_cost.py", "models", "stages/export.py"),
    files=_files,
    settings=_settings,
    work=_work,
    plan=_plan,
)
