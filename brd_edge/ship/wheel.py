"""The wheel of the bare runtime, for a bundle: what a device installs, and nothing of the training side.

It is put together from the files of the package that is running, so that it is there also where
brd-edge itself was installed from a wheel; and its bytes depend on nothing else.
"""

from __future__ import annotations

import base64
import hashlib
import importlib.metadata
import zipfile
from pathlib import Path

import brd_edge
from brd_edge.runtime.errors import BundleError

__all__ = ["write_runtime_wheel"]

_EXTRAS = ("onnxruntime", "openvino", "tensorrt", "video", "fast")
# older than training asks for: JetPack 6 has Python 3.10; `make check` looks for what that would not know
_PYTHON = ">=3.10"
_EPOCH = (1980, 1, 1, 0, 0, 0)


def write_runtime_wheel(directory: Path) -> Path:
    """Write `brd_edge-VERSION-py3-none-any.whl` and return its path.

    Args:
        directory: Where to; it is made when it is not there.

    Raises:
        BundleError: The package that is running was not installed, so that its requirements are not known.
    """
    package = Path(brd_edge.__file__).parent
    sources = [package / "__init__.py", package / "py.typed", *package.joinpath("runtime").rglob("*.py")]
    files = {f"brd_edge/{path.relative_to(package).as_posix()}": path.read_bytes() for path in sources}
    info = f"brd_edge-{brd_edge.__version__}.dist-info"
    files[f"{info}/METADATA"] = _metadata().encode()
    files[f"{info}/WHEEL"] = b"Wheel-Version: 1.0\nGenerator: brd-edge\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    record = [f"{name},{_digest(content)},{len(content)}" for name, content in sorted(files.items())]
    files[f"{info}/RECORD"] = "\n".join([*record, f"{info}/RECORD,,", ""]).encode()
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"brd_edge-{brd_edge.__version__}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as wheel:
        for name, content in sorted(files.items()):
            member = zipfile.ZipInfo(name, _EPOCH)
            member.external_attr, member.create_system = 0o644 << 16, 3
            member.compress_type = zipfile.ZIP_DEFLATED
            wheel.writestr(member, content)
    return path


def _metadata() -> str:
    """Return the metadata of the installed package, with the requirements that a device has."""
    # in a source tree there may also be what an earlier build left behind; only what was installed counts
    installed = importlib.metadata.distributions(name="brd-edge")
    found = next((item.metadata for item in installed if item.read_text("WHEEL") is not None), None)
    if found is None:
        raise BundleError("brd-edge is not installed, so that its wheel cannot be made; pip install -e . does that")
    kept = []
    for requirement in found.get_all("Requires-Dist") or []:
        extra = next((name for name in _EXTRAS if f'extra == "{name}"' in requirement), None)
        if "extra ==" not in requirement or extra is not None:
            kept.append(requirement)
    lines = [
        "Metadata-Version: 2.1",
        "Name: brd-edge",
        f"Version: {brd_edge.__version__}",
        "Summary: The runtime of brd_edge for devices",
        f"Requires-Python: {_PYTHON}",
        "License: Apache-2.0",
        *(f"Provides-Extra: {name}" for name in _EXTRAS),
        *(f"Requires-Dist: {requirement}" for requirement in sorted(kept)),
    ]
    return "\n".join([*lines, "", ""])


def _digest(content: bytes) -> str:
    return "sha256=" + base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
