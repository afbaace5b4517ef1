"""A bundle to a fleet: sign or verify it once, then deliver it everywhere."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from brd_edge.runtime.archive import opened_bundle
from brd_edge.runtime.bundle import Bundle
from brd_edge.runtime.errors import BundleError
from brd_edge.runtime.manifest import MANIFEST_NAME
from brd_edge.runtime.signature import SIGNATURE_NAME, parse_public_key, read_public_key
from brd_edge.ship.bundle import pack_bundle
from brd_edge.ship.delivery import Delivered, Options, deliver
from brd_edge.ship.fleet import Fleet, serve_in_waves
from brd_edge.ship.keys import open_to_sign, public_pem, read_private_key, sign_bundle
from brd_edge.ship.outcome import delivery_json

__all__ = ["ship_bundle"]


def ship_bundle(
    path: Path, fleet: Fleet, options: Options, *, key: Path | None, public_key: Path | None, say: Callable[[str], None]
) -> tuple[list[Delivered], dict[str, Any]]:
    """Deliver a bundle to a fleet and return what came of it, also as the content of `ship.json`.

    Args:
        path: The bundle's directory or archive.
        fleet: The devices.
        options: How to deliver; its `public_key` is filled in here.
        key: Private key that signs the bundle first, but for a dry run; None expects it to be signed.
        public_key: Public key that an already signed bundle is verified with.
        say: Is told what happens.

    Raises:
        BundleError: The bundle is refused; no device was touched.
    """
    private = None if key is None else read_private_key(key)
    if private is not None:
        if path.is_dir() and not options.dry_run:
            before = _signature_of(path)
            sign_bundle(path, private)
            if _signature_of(path) != before:
                pack_bundle(path)
        pem = public_pem(private)
        trusted = dict([parse_public_key(pem.encode(), str(key))])
    elif public_key is not None:
        trusted = dict([read_public_key(public_key)])
        pem = public_key.read_text(encoding="utf-8")
    else:
        raise BundleError(
            f"{path}: give the key that signs it (--key NAME.key), or that signed it (--public-key NAME.pub)"
        )
    unsigned = nullcontext(open_to_sign(path, private)) if private and path.is_dir() and options.dry_run else None
    with unsigned or opened_bundle(path, trusted) as bundle:
        unknown = sorted(set(options.engines or ()) - set(bundle.engines))
        if unknown:
            raise BundleError(f"{path}: has no engine {unknown[0]!r}: there are {', '.join(bundle.engines)}")
        results = asyncio.run(_serve(fleet, bundle, replace(options, public_key=pem), say))
        about = {
            "name": bundle.manifest.name,
            "manifest_sha256": hashlib.sha256((bundle.directory / MANIFEST_NAME).read_bytes()).hexdigest(),
            "signed_at": bundle.signature.signed_at,
            "key_id": bundle.signature.key_id,
        }
    return results, delivery_json(results, about)


def _signature_of(directory: Path) -> bytes | None:
    path = directory / SIGNATURE_NAME
    return path.read_bytes() if path.is_file() else None


async def _serve(fleet: Fleet, bundle: Bundle, options: Options, say: Callable[[str], None]) -> list[Delivered]:
    return await serve_in_waves(fleet, lambda device: deliver(device, bundle, options, say), say)
