"""Ed25519 keys, and signing a bundle with them.

The private key is a PEM file that only its owner may read. It is never copied anywhere: a bundle
holds the signature, and devices hold the public key.
"""

from __future__ import annotations

import os
import stat
import time
from pathlib import Path
from typing import TYPE_CHECKING

from brd_edge.runtime.bundle import Bundle, open_bundle
from brd_edge.runtime.errors import BundleError
from brd_edge.runtime.files import write_bytes_atomic
from brd_edge.runtime.manifest import MANIFEST_NAME
from brd_edge.runtime.signature import (
    SIGNATURE_NAME,
    Signature,
    format_signature,
    key_id,
    message_of,
    verify_manifest,
)

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

__all__ = ["make_keys", "open_to_sign", "public_pem", "read_private_key", "sign_bundle"]


def make_keys(path: Path) -> tuple[Path, str]:
    """Make a pair of keys.

    Args:
        path: The private key's file; the public key gets the same name with `.pub`. Neither may exist.

    Returns:
        The public key's file and the key id.

    Raises:
        BundleError: A file is there already, or cannot be written.
    """
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    public_path = path.with_name(f"{path.name.removesuffix('.key')}.pub")
    for taken in (path, public_path):
        if taken.exists():
            raise BundleError(f"{taken}: exists already, and a lost key cannot be made again; choose another name")
    key = Ed25519PrivateKey.generate()
    content = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    made = False
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # the mode is given when the file is made, so that it is never readable for others
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            made = True
            file.write(content)
        write_bytes_atomic(public_path, public_pem(key).encode())
    except OSError as error:
        if made:
            # half a pair is of no use, and would be taken for a key that must not be lost
            path.unlink(missing_ok=True)
        raise BundleError(f"{path}: cannot be written ({error.strerror})") from error
    return public_path, key_id(key.public_key().public_bytes_raw())


def public_pem(key: Ed25519PrivateKey) -> str:
    """Return the public half of a key as PEM."""
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


def read_private_key(path: Path) -> Ed25519PrivateKey:
    """Read a private key.

    Raises:
        BundleError: It cannot be read, is no Ed25519 private key, or others may read it.
    """
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        content, mode = path.read_bytes(), stat.S_IMODE(path.stat().st_mode)
    except OSError as error:
        reason = f"the private key cannot be read ({error.strerror})"
        raise BundleError(f"{path}: {reason}; brd-edge keys makes one") from None
    if b"PUBLIC KEY" in content:
        raise BundleError(f"{path}: a public key; give the private one, which signs (NAME.key)")
    if mode & 0o077:
        raise BundleError(f"{path}: others may read this private key (mode {mode:04o}); chmod 600 {path}")
    try:
        key = load_pem_private_key(content, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        reason = "not a private key in PEM form without a password"
        raise BundleError(f"{path}: {reason}; brd-edge keys makes one") from None
    if not isinstance(key, Ed25519PrivateKey):
        raise BundleError(f"{path}: expected an Ed25519 key; brd-edge keys makes one")
    return key


def open_to_sign(directory: Path, key: Ed25519PrivateKey) -> Bundle:
    """Open a bundle as it is once this key has signed it; nothing is written.

    A signature that this key made already is kept. The time of a new one is now, or `SOURCE_DATE_EPOCH` where that
    is set, for bytes that can be reproduced.

    Args:
        directory: The bundle.
        key: The private key.

    Raises:
        BundleError: It is no bundle, or its files are not those of its manifest.
    """
    path = directory / MANIFEST_NAME
    if not path.is_file():
        raise BundleError(f"{directory}: has no {MANIFEST_NAME}; expected the directory of a bundle")
    manifest, target = path.read_bytes(), directory / SIGNATURE_NAME
    public = key.public_key()
    mine = {key_id(public.public_bytes_raw()): public}
    if target.is_file():
        try:
            verify_manifest(manifest, target.read_bytes(), mine, str(directory))
        except BundleError:
            pass
        else:
            return open_bundle(directory, mine)
    given = os.environ.get("SOURCE_DATE_EPOCH", "")
    signed_at = int(given) if given.isdigit() else int(time.time())
    signature = Signature(next(iter(mine)), signed_at, key.sign(message_of(manifest, signed_at)))
    return open_bundle(directory, mine, signed=format_signature(signature))


def sign_bundle(directory: Path, key: Ed25519PrivateKey) -> Signature:
    """Sign a bundle, whose files are checked first; see `open_to_sign`.

    Args:
        directory: The bundle.
        key: The private key.

    Raises:
        BundleError: It is no bundle, or its files are not those of its manifest.
    """
    signature = open_to_sign(directory, key).signature
    target, content = directory / SIGNATURE_NAME, format_signature(signature)
    if not target.is_file() or target.read_bytes() != content:
        write_bytes_atomic(target, content)
    return signature
