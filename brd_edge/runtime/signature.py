"""Ed25519 signatures over a bundle's manifest, and the public keys that a device trusts.

The manifest names the SHA-256 of every file, so one signature covers the bundle. `manifest.sig`
also holds when the bundle was signed, and signs that too: a device does not go back to an older
bundle unless it is told to.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from brd_edge.runtime.errors import BundleError
from brd_edge.runtime.files import write_bytes_atomic

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

__all__ = [
    "SIGNATURE_NAME",
    "Signature",
    "format_signature",
    "key_id",
    "message_of",
    "parse_public_key",
    "read_public_key",
    "read_signature",
    "trust_key",
    "trusted_keys",
    "verify_manifest",
]

SIGNATURE_NAME = "manifest.sig"
SIGNATURE_BYTES_MAX = 4096
_KEYS = {"algorithm", "key_id", "signed_at", "signature"}
_LATEST = 1 << 53


@dataclass(frozen=True)
class Signature:
    """What `manifest.sig` holds.

    Attributes:
        key_id: Which key signed; see `key_id`.
        signed_at: Seconds since 1970 (UTC).
        signature: The 64 bytes of Ed25519.
    """

    key_id: str
    signed_at: int
    signature: bytes


def key_id(public: bytes) -> str:
    """Return 16 hexadecimal digits that name a raw public key of 32 bytes."""
    return hashlib.sha256(public).hexdigest()[:16]


def message_of(manifest: bytes, signed_at: int) -> bytes:
    """Return the bytes that are signed for a manifest."""
    digest = hashlib.sha256(manifest).hexdigest()
    return f"brd-edge bundle\nsigned_at {signed_at}\nmanifest sha256 {digest}\n".encode()


def format_signature(signature: Signature) -> bytes:
    """Return the content of `manifest.sig`."""
    values = {
        "algorithm": "ed25519",
        "key_id": signature.key_id,
        "signed_at": signature.signed_at,
        "signature": base64.b64encode(signature.signature).decode(),
    }
    return (json.dumps(values, indent=2) + "\n").encode()


def read_signature(content: bytes, what: str) -> Signature:
    """Parse `manifest.sig`; only the exact bytes that `format_signature` writes are taken.

    Args:
        content: The file's bytes.
        what: The file, for the message.

    Raises:
        BundleError: It is not such a file.
    """
    try:
        values: Any = json.loads(content.decode("utf-8"))
        if not isinstance(values, dict) or set(values) != _KEYS or values["algorithm"] != "ed25519":
            raise ValueError(f"expected the keys {sorted(_KEYS)} and the algorithm ed25519")
        signed_at = values["signed_at"]
        if type(signed_at) is not int or not 0 <= signed_at < _LATEST:
            raise ValueError("signed_at must be whole seconds since 1970")
        found = Signature(str(values["key_id"]), signed_at, base64.b64decode(values["signature"], validate=True))
        if format_signature(found) != content:
            raise ValueError("it was changed after signing")
    except (ValueError, TypeError, binascii.Error) as error:
        raise BundleError(f"{what}: not a signature ({error}); sign the bundle again") from error
    return found


def verify_manifest(manifest: bytes, signature: bytes, trusted: Mapping[str, Ed25519PublicKey], what: str) -> Signature:
    """Check that a trusted key signed a manifest.

    Args:
        manifest: The bytes of `manifest.json`.
        signature: The bytes of `manifest.sig`.
        trusted: Public keys by key id.
        what: The bundle, for the message.

    Returns:
        The signature, which holds.

    Raises:
        BundleError: The key is not trusted, or the signature does not belong to this manifest.
    """
    from cryptography.exceptions import InvalidSignature

    found = read_signature(signature, f"{what}: {SIGNATURE_NAME}")
    if found.key_id not in trusted:
        known = ", ".join(sorted(trusted)) or "none"
        raise BundleError(f"{what}: signed by the key {found.key_id}, which is not trusted here (trusted: {known})")
    try:
        trusted[found.key_id].verify(found.signature, message_of(manifest, found.signed_at))
    except InvalidSignature:
        raise BundleError(
            f"{what}: the signature does not belong to this manifest: one of the two was altered. "
            "Nothing of the bundle was loaded; get it again from whoever signed it"
        ) from None
    return found


def read_public_key(path: Path) -> tuple[str, Ed25519PublicKey]:
    """Read a public key file (PEM) and return it with its key id.

    Raises:
        BundleError: The file cannot be read, or holds no Ed25519 public key.
    """
    try:
        return parse_public_key(path.read_bytes(), str(path))
    except OSError as error:
        raise BundleError(f"{path}: the public key cannot be read ({error.strerror})") from error


def parse_public_key(content: bytes, what: str) -> tuple[str, Ed25519PublicKey]:
    """Parse a public key in PEM form and return it with its key id.

    Raises:
        BundleError: It is no Ed25519 public key.
    """
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    if b"PRIVATE KEY" in content:
        raise BundleError(f"{what}: a private key; give the public one (.pub), and keep this one to yourself")
    try:
        key = load_pem_public_key(content)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise BundleError(f"{what}: not a public key in PEM form; brd-edge keys makes one") from error
    if not isinstance(key, Ed25519PublicKey):
        raise BundleError(f"{what}: expected an Ed25519 key, got {type(key).__name__}; brd-edge keys makes one")
    return key_id(key.public_bytes_raw()), key


def trusted_keys(directory: Path) -> dict[str, Ed25519PublicKey]:
    """Read all `*.pub` of a directory; none where it does not exist.

    Hidden files are what an interrupted writer left, and no keys.

    Raises:
        BundleError: One of the files is no public key.
    """
    paths = sorted(path for path in directory.glob("*.pub") if not path.name.startswith("."))
    return dict(read_public_key(path) for path in paths)


def trust_key(directory: Path, content: str) -> str:
    """Add a public key (PEM) to a directory of trusted keys and return its key id.

    Raises:
        BundleError: It is no public key.
    """
    found, _ = parse_public_key(content.encode(), "the key that was sent")
    write_bytes_atomic(directory / f"{found}.pub", content.encode())
    return found
