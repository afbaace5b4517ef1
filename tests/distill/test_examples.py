"""The examples in the losses' docstrings run, and show what they say."""

from __future__ import annotations

import doctest
import inspect
from types import ModuleType

import pytest
import torch

from brd_edge.distill import boundary, logits, overlap, peers, prototypes, relation, similarities, supervised

_PUBLIC = {
    f"{module.__name__.rpartition('.')[2]}.{name}": (module, name)
    for module in (boundary, logits, overlap, peers, prototypes, relation, similarities, supervised)
    for name in module.__all__
    if inspect.isfunction(getattr(module, name))
}
_LOSSES = {name for name in _PUBLIC if name.endswith(("_loss", "_losses", "cross_entropy", "_relation", "_divergence"))}


@pytest.mark.parametrize("name", _PUBLIC)
def test_examples(name: str) -> None:
    module, attribute = _PUBLIC[name]
    found = _tests(module, attribute)
    assert found or name not in _LOSSES, "a loss shows how it is called"

    torch.manual_seed(0)
    for test in found:
        said: list[str] = []
        results = doctest.DocTestRunner().run(test, out=said.append)
        assert results.failed == 0, "".join(said)


def _tests(module: ModuleType, attribute: str) -> list[doctest.DocTest]:
    finder = doctest.DocTestFinder(exclude_empty=True, recurse=False)
    globals_ = vars(module) | {"torch": torch}
    return [test for test in finder.find(getattr(module, attribute), attribute, module, globals_) if test.examples]
