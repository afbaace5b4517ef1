"""From a verified bundle or release to class maps: the Python API of the device."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from brd_edge.runtime.archive import opened_bundle
from brd_edge.runtime.builders import built_directory
from brd_edge.runtime.bundle import Bundle, open_bundle
from brd_edge.runtime.device import describe_device, misfit
from brd_edge.runtime.engine import SIDECAR, Runner, open_engine
from brd_edge.runtime.errors import BundleError, EngineError
from brd_edge.runtime.frames import resize_class_map, segment_image
from brd_edge.runtime.manifest import MANIFEST_NAME, BundledEngine
from brd_edge.runtime.releases import RELEASE_NAME, read_release
from brd_edge.runtime.runners.frame_advice import frame_advice
from brd_edge.runtime.signature import read_public_key, trusted_keys

if TYPE_CHECKING:
    from typing import Self  # novm

    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

__all__ = ["Segmenter", "keys_for", "require_bundle", "trusted_directory"]


def trusted_directory() -> Path:
    """Return where this account keeps the public keys that it trusts."""
    base = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    return Path(base) / "brd-edge" / "trusted"


def require_bundle(path: Path) -> None:
    """Refuse a path that is no bundle, archive or release by its looks; nothing of it is read.

    Raises:
        BundleError: There is nothing, or a directory of something else.
    """
    if path.is_file() or any(os.path.lexists(path / name) for name in (MANIFEST_NAME, RELEASE_NAME)):
        return
    inside = path / "bundle"
    hint = f": {inside} is one" if (inside / MANIFEST_NAME).is_file() else ", its archive, or a release"
    if (path / SIDECAR).is_file():
        hint += f"; this is an engine alone: name the run's bundle and --engine {path.name}"
    raise BundleError(f"{path}: expected the directory of a bundle, with {MANIFEST_NAME} in it{hint}")


def keys_for(path: Path, keys: Sequence[Path] = ()) -> Mapping[str, Ed25519PublicKey]:
    """Return the public keys that a bundle's signature is checked with.

    Args:
        path: A bundle or a release.
        keys: Public key files; where there are none, the keys of the device root that the release
            lies in count, or else those in `trusted_directory()`.

    Raises:
        BundleError: A key cannot be read, or there is none.
    """
    if keys:
        return dict(read_public_key(key) for key in keys)
    release = path.resolve()
    root = release.parents[1] if (release / RELEASE_NAME).is_file() else None
    directory = root / "trusted" if root is not None else trusted_directory()
    found = trusted_keys(directory)
    if not found:
        raise BundleError(f"no key to verify {path} with: give one with --key KEY.pub, or put it into {directory}")
    return found


class Segmenter:
    """A model that is ready to use. Not thread-safe: open one a thread.

    Example:
        >>> with Segmenter.open("device/current") as segmenter:
        ...     class_map = segmenter.infer(image)
    """

    def __init__(self, bundle: Bundle, engine: str, runner: Runner, stack: ExitStack) -> None:
        """Take an opened engine over; `Segmenter.open` makes one."""
        self.engine = engine
        self.classes = bundle.manifest.classes
        self.palette = bundle.manifest.palette
        self.contract = bundle.manifest.contract
        self._runner = runner
        self._stack = stack

    @classmethod
    def open(
        cls,
        path: str | Path,
        *,
        keys: Sequence[Path] = (),
        engine: str | None = None,
        threads: int | None = None,
    ) -> Self:
        """Verify a bundle and load one of its engines.

        Args:
            path: A device's `current`, a release, a bundle's directory or its archive.
            keys: Public key files; see `keys_for`.
            engine: Which engine; None takes the one that the release serves with; of a bundle's, the one
                that was measured to be the fastest among those that fit.
            threads: Threads of the runtime; None leaves the choice to it.

        Raises:
            BundleError: The bundle is refused; nothing of it was loaded.
            EngineError: No engine fits this machine, or it cannot be loaded.
        """
        path = Path(path)
        require_bundle(path)
        with ExitStack() as stack:
            trusted = keys_for(path, keys)
            if (path / RELEASE_NAME).is_file():
                release = read_release(path)
                bundle = open_bundle(release.bundle_directory, trusted, engines=release.engines)
                name = engine or release.engine
                _require_engine(bundle, name)
                directory = release.engine_directory(name)
            else:
                bundle = stack.enter_context(opened_bundle(path, trusted))
                name = engine or _fastest_fitting(bundle, path)
                _require_engine(bundle, name)
                directory = built_directory(bundle, name)
            runner = stack.enter_context(open_engine(directory, contract=bundle.manifest.contract, threads=threads))
            return cls(bundle, name, runner, stack.pop_all())

    def infer(self, image: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """Segment one image.

        Args:
            image: uint8 (H, W, 3), RGB, of any size; it is resized, or cut into windows, as the input contract says.

        Returns:
            uint8 (H, W) class ids at the image's own size, the caller's own.

        Raises:
            EngineError: The image has another shape or dtype, or the runtime failed.
        """
        if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            got = f"{image.dtype} {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
            more = "give one image at a time" if getattr(image, "ndim", 0) == 4 else frame_advice(image, None)
            raise EngineError(f"image: expected uint8 (H, W, 3) in RGB, got {got}: {more}")
        class_map = segment_image(self._runner.infer, image, self.contract)
        return resize_class_map(class_map, image.shape[0], image.shape[1])

    def close(self) -> None:
        """Free the engine; calling it again does nothing."""
        self._stack.close()

    def __enter__(self) -> Self:
        """Return the segmenter itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the segmenter."""
        self.close()


def _require_engine(bundle: Bundle, name: str) -> None:
    if name not in bundle.engines:
        raise BundleError(f"{bundle.directory}: has no engine {name!r}: there are {', '.join(bundle.engines)}")


def _fastest_fitting(bundle: Bundle, path: Path) -> str:
    device = describe_device(bundle.directory)
    reasons = {name: misfit(bundle.manifest.engines[name], device) for name in bundle.engines}
    fitting = [name for name, reason in reasons.items() if reason is None]
    if not fitting:
        lines = "\n".join(f"  {name}: {reason}" for name, reason in reasons.items())
        raise EngineError(f"{path}: no engine fits this machine\n{lines}")
    ready = [name for name in fitting if built_directory(bundle, name).is_dir()]
    if not ready:
        raise EngineError(
            f"{fitting[0]} has to be built on this machine first: python -m brd_edge.runtime build {path}"
        )
    # what was measured elsewhere orders the engines of one kind of device well enough; what was not comes last
    return min(ready, key=lambda name: _measured_ms(bundle.manifest.engines[name]))


def _measured_ms(engine: BundledEngine) -> float:
    """Return the median latency that the bundle's manifest tells, or infinity."""
    latency = engine.metrics.get("latency_ms")
    median = latency.get("p50") if isinstance(latency, dict) else None
    return float(median) if isinstance(median, int | float) else math.inf
