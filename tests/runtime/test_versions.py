from __future__ import annotations

import itertools

import pytest
from packaging.specifiers import SpecifierSet

from brd_edge.runtime.errors import EngineError
from brd_edge.runtime.versions import is_specifier, version_fits, version_range

VERSIONS = ("1", "1.2", "1.10", "1.10.0", "1.7.1", "1.7.1.116", "2024.0.0", "2026.4.1")
SPECIFIERS = (">=1.2", "==1.7.1", "<2", ">=1.2,<1.10", "==1.10", ">=2024.0")


@pytest.mark.parametrize(("version", "specifier"), list(itertools.product(VERSIONS, SPECIFIERS)))
def test_ranges_mean_what_packaging_says(version: str, specifier: str) -> None:
    assert is_specifier(specifier)
    assert version_fits(version, specifier) == (version in SpecifierSet(specifier))


def test_what_is_no_range() -> None:
    assert not any(is_specifier(text) for text in ("", "1.0", ">=", "~=1", None, 3))
    assert not version_fits("unknown", ">=1")
    assert not version_fits("1.0", "nonsense")


def test_ranges_of_runtimes() -> None:
    assert version_range("openvino", "2026.4.1") == ">=2026.0"
    assert version_range("tensorrt", "tensorrt_rtx 1.7.1.116") == "==1.7.1.116"
    assert version_fits("1.32.0", version_range("onnxruntime", "1.32.0"))
    # the exported graph itself, which does not depend on who checked it
    assert version_fits("1.20.0", version_range("onnxruntime", "1.32.0"))
    for opset, versions in ((18, ">=1.18"), (21, ">=1.18"), (22, ">=1.21"), (23, ">=1.23")):
        assert version_range("onnxruntime", "1.32.0", opset=opset) == versions
    with pytest.raises(EngineError, match="up to 23, got 24"):
        version_range("onnxruntime", "1.32.0", opset=24)
    with pytest.raises(EngineError, match="got 'abc'"):
        version_range("onnxruntime", "abc")
