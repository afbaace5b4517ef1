"""Stage `export`: the student's ONNX graph, and the proof that distillation added nothing to it."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from brd_edge.environment import package_version
from brd_edge.recipe import Recipe
from brd_edge.runtime.errors import EngineError
from brd_edge.runtime.files import write_json_atomic
from brd_edge.stages.context import Context, Outcome, Stage, input_contract
from brd_edge.stages.training import load_run_dataset, model_spec

__all__ = ["STAGE"]


def _settings(recipe: Recipe) -> dict[str, Any]:
    return {
        "contract": input_contract(recipe).to_json(),
        "student": recipe.student.model_dump(mode="json", exclude={"encoder_weights"}),
        "export": recipe.export.model_dump(mode="json"),
        "metadata": _metadata(recipe, recipe.distill.method),
    }


def _metadata(recipe: Recipe, method: str) -> dict[str, str]:
    return {"recipe": recipe.name, "method": method}


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
    paths = {}
    for name, model in (("student", student), ("plain", plain)):
        paths[name] = context.run.path("export", f"{name}.onnx")
        context.say(f"export: writing {name}.onnx")
        export_onnx(
            model,
            paths[name],
            contract=contract,
            classes=dataset.classes,
            palette=dataset.palette,
            metadata=_metadata(recipe, recipe.distill.method if name == "student" else "none"),
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
