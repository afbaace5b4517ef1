"""The names of encoders: those of `segmentation_models_pytorch`, and `tu-` with those of timm.

Both libraries import torch, which takes seconds; so a name is looked for in their source first, and they are asked
only about one that is not found there.
"""

from __future__ import annotations

import difflib
import re
from functools import cache
from importlib.util import find_spec
from pathlib import Path

__all__ = ["encoder_problem", "names_in_source"]

_SMP, _TIMM = "segmentation_models_pytorch", "timm"
_SOURCES = (
    (_SMP, "encoders", re.compile(r'^    "([\w.-]+)": \{$', re.MULTILINE), ""),
    (_TIMM, "models", re.compile(r"^@register_model\s+def (\w+)\(", re.MULTILINE), "tu-"),
)
_SUGGESTED = 3


def encoder_problem(name: str) -> str | None:
    """Say what is wrong with the name of an encoder.

    Args:
        name: As in `ModelSpec`.

    Returns:
        That there is no such encoder, the closest few that there are, and where all are listed. None where there is
        one, and where it cannot be told: the libraries are not installed, or it is a place and not a name (`hf-hub:…`).
    """
    if not _bare(name) or ":" in name or _bare(name) in names_in_source():
        return None
    if find_spec(_SMP) is None or find_spec(_TIMM) is None:
        return None
    import timm
    from segmentation_models_pytorch.encoders import get_encoder_names

    prefix, _, rest = _bare(name).partition("-")
    # "timm-" encoders are deprecated: they load, but are not suggested
    if _bare(name) in get_encoder_names() or (prefix in ("tu", "timm") and timm.is_model(rest)):
        return None
    theirs = [f"tu-{model}" for model in timm.list_models()]
    own = [item for item in get_encoder_names() if not item.startswith("timm-")]
    close = difflib.get_close_matches(_bare(name), theirs if prefix == "tu" else [*own, *theirs], n=_SUGGESTED)
    if f"tu-{_bare(name)}" in theirs:
        # timm's name without the mark
        close = [f"tu-{_bare(name)}", *(item for item in close if item != f"tu-{_bare(name)}")][:_SUGGESTED]
    *others, last = [repr(item) for item in close] or [""]
    hint = f" (did you mean {', '.join(others)}{' or ' if others else ''}{last}?)" if close else ""
    return (
        f"unknown encoder {name!r}{hint}; segmentation_models_pytorch.encoders.get_encoder_names() lists what there "
        "is, and timm.list_models() what there is with 'tu-' before it"
    )


@cache
def names_in_source() -> frozenset[str]:
    """Return the encoders that the installed libraries define, read from their source; none where it is not there."""
    found: set[str] = set()
    for package, part, pattern, prefix in _SOURCES:
        spec = find_spec(package)
        if spec is not None and spec.origin is not None:
            for path in (Path(spec.origin).parent / part).glob("*.py"):
                found.update(prefix + name for name in pattern.findall(path.read_text(encoding="utf-8")))
    return frozenset(found)


def _bare(name: str) -> str:
    # timm's names may end in that of the weights, as in `tu-resnet50.a1_in1k`
    return name.partition(".")[0] if name.startswith("tu-") else name
