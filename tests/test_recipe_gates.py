"""Gates of a recipe: for all engines and for some, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from brd_edge.recipe import Recipe, load_recipe
from brd_edge.recipe_gates import limits_of
from brd_edge.runtime.errors import RecipeError

GATES = """
miou_drop_max: 0.5
latency_ms_p95_max: 20
overrides:
  - {runtime: openvino, miou_drop_max: 1.0}
  - {target: rtx, latency_ms_p95_max: null}
  - {runtime: openvino, precision: fp32, miou_drop_max: 2.0, uncertain: held}
"""


@pytest.fixture
def recipe(pytestconfig: pytest.Config, tmp_path: Path) -> Path:
    """The quickstart with gates of its own."""
    content = yaml.safe_load((pytestconfig.rootpath / "pipelines/quickstart.yaml").read_text())
    content["gates"] = yaml.safe_load(GATES)
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def limits(recipe: Recipe, runtime: str, target: str) -> tuple[object, ...]:
    found = limits_of(recipe.gates, runtime=runtime, precision="fp32", target=target)
    return found["miou_drop_max"], found["latency_ms_p95_max"], found["uncertain"], found["size_bytes_max"]


def test_the_last_override_that_names_an_engine_counts(recipe: Path) -> None:
    read = load_recipe(recipe)
    assert limits(read, "onnxruntime", "x86-cpu") == (0.5, 20, "broken", None)
    assert limits(read, "openvino", "x86-cpu") == (2.0, 20, "held", None)
    assert limits(read, "tensorrt", "rtx") == (0.5, None, "broken", None)


def test_a_resolved_recipe_has_the_same_gates(recipe: Path, tmp_path: Path) -> None:
    read = load_recipe(recipe)
    resolved = tmp_path / "resolved.yaml"
    resolved.write_text(yaml.safe_dump(read.model_dump(mode="json")))
    assert load_recipe(resolved) == read
    assert limits(load_recipe(resolved), "tensorrt", "rtx") == limits(read, "tensorrt", "rtx")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("{miou_drop_max: 1.0}", "for which engines.*runtime, precision, target"),
        ("{runtime: openvino}", "has no limit.*miou_drop_max"),
        ("{runtime: openvnio, miou_drop_max: 1.0}", "no engine of this recipe has 'openvnio'.*openvino"),
        ("{target: jetson-orin, size_bytes_max: 1}", "overrides.0.target.*'jetson-orin'"),
        ("{runtime: openvino, target: rtx, size_bytes_max: 1}", "overrides.0: no engine .*openvino and rtx; they are "),
        ("{runtime: openvino, miou_drop: 1.0}", "gates.overrides.0.miou_drop"),
    ],
)
def test_what_cannot_be_meant_is_refused(recipe: Path, override: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        load_recipe(recipe, overrides=[f"gates.overrides=[{override}]"])
