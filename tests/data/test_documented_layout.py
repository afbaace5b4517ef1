"""The layout in docs/data.md works as it stands there."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import numpy as np
from PIL import Image

from brd_edge.data.dataset import read_label
from brd_edge.data.prepare import prepare

DOCS = Path(__file__).parents[2] / "docs/data.md"


def test_documented_layout_prepares_a_data_set(tmp_path: Path) -> None:
    code = re.findall(r"```python\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)[-1]
    file = tmp_path / "harbour.py"
    file.write_text(code, encoding="utf-8")
    spec = importlib.util.spec_from_file_location("harbour", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    label = np.array([[0, 1, 2, 3]], np.uint8)
    for split in ("train", "test"):
        for kind, pixels in (("images", np.zeros((1, 4, 3), np.uint8)), ("masks", label)):
            path = tmp_path / "root" / split / kind / "a.png"
            path.parent.mkdir(parents=True)
            Image.fromarray(pixels).save(path)
    dataset = prepare(module.LAYOUT, tmp_path / "root", tmp_path / "out", workers=1)
    assert dataset.classes == ("water", "boat", "shore")
    np.testing.assert_array_equal(read_label(dataset.val[0]), [[255, 0, 1, 2]])
