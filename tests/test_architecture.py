"""Arrows between the parts of the package point one way."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "brd_edge"
MODULES = sorted(PACKAGE.rglob("*.py"))
LIBRARY = ("data", "models", "distill", "deploy", "evaluate", "ship", "runtime")
COMMAND = (
    "recipe",
    "recipe_yaml",
    "recipe_errors",
    "stages",
    "planning",
    "execution",
    "following",
    "pipeline",
    "run",
    "tracking",
)


def _imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            found.add(str(node.module))
    return found


def _parts(path: Path) -> set[str]:
    return {name.split(".")[1] for name in _imports(path) if name.startswith("brd_edge.")}


@pytest.mark.parametrize("part", LIBRARY)
def test_library_code_knows_no_recipe(part: str) -> None:
    for path in (PACKAGE / part).rglob("*.py"):
        assert not _parts(path) & set(COMMAND), f"{path.relative_to(PACKAGE)} must take plain arguments"


def test_the_runtime_depends_on_nothing_else() -> None:
    for path in (PACKAGE / "runtime").rglob("*.py"):
        assert _parts(path) <= {"runtime"}, path
        found = {name.split(".")[0] for name in _imports(path)} & {"torch", "pydantic", "yaml", "scipy", "timm"}
        # connected regions need scipy, which is imported only where they are asked for
        assert found <= ({"scipy"} if path.name == "regions.py" else set()), path


def test_modules_stay_readable() -> None:
    long = {str(path.relative_to(PACKAGE)): len(path.read_text(encoding="utf-8").splitlines()) for path in MODULES}

    assert {name: lines for name, lines in long.items() if lines > 400} == {}


def test_no_unsafe_readers() -> None:
    for path in MODULES:
        names = _imports(path)
        assert not names & {"pickle", "dill", "joblib", "marshal", "shelve"}, path
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                text = ast.unparse(node)
                assert not text.startswith(("yaml.load(", "torch.load(", "eval(", "exec(", "os.system(")), text
                assert "shell=True" not in text, text
