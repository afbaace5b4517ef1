from __future__ import annotations

import subprocess
from pathlib import Path
from shutil import which

import pytest

from brd_edge.runtime.errors import BundleError
from brd_edge.runtime.signature import (
    message_of,
    read_public_key,
    read_signature,
    trust_key,
    trusted_keys,
    verify_manifest,
)
from brd_edge.ship.keys import make_keys


def test_openssl_finds_the_signature_good(bundle, tmp_path: Path) -> None:
    openssl = which("openssl")
    if openssl is None:
        pytest.skip("openssl is not installed")
    manifest = (bundle.directory / "manifest.json").read_bytes()
    signature = read_signature((bundle.directory / "manifest.sig").read_bytes(), "here")
    (tmp_path / "message").write_bytes(message_of(manifest, signature.signed_at))
    (tmp_path / "signature").write_bytes(signature.signature)
    command = [openssl, "pkeyutl", "-verify", "-pubin", "-inkey", str(bundle.public), "-rawin"]
    command += ["-in", str(tmp_path / "message"), "-sigfile", str(tmp_path / "signature")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "Signature Verified Successfully" in done.stdout, done.stderr


def test_every_changed_byte_of_the_signature_is_refused(bundle) -> None:
    manifest = (bundle.directory / "manifest.json").read_bytes()
    content = (bundle.directory / "manifest.sig").read_bytes()
    trusted = dict([read_public_key(bundle.public)])
    assert verify_manifest(manifest, content, trusted, "it").signed_at == 1_000
    for index in range(len(content)):
        for flip in (1, 0x20, 0x80):
            altered = bytearray(content)
            altered[index] ^= flip
            with pytest.raises(BundleError):
                verify_manifest(manifest, bytes(altered), trusted, "it")


def test_a_later_date_cannot_be_written_into_a_signature(bundle) -> None:
    manifest = (bundle.directory / "manifest.json").read_bytes()
    content = (bundle.directory / "manifest.sig").read_bytes()
    later = content.replace(b'"signed_at": 1000', b'"signed_at": 2000')
    assert later != content
    with pytest.raises(BundleError, match="does not belong to this manifest"):
        verify_manifest(manifest, later, dict([read_public_key(bundle.public)]), "it")


def test_a_stranger_is_not_trusted(bundle, tmp_path: Path) -> None:
    public, _ = make_keys(tmp_path / "stranger.key")
    manifest, signature = ((bundle.directory / name).read_bytes() for name in ("manifest.json", "manifest.sig"))
    with pytest.raises(BundleError, match="which is not trusted here"):
        verify_manifest(manifest, signature, dict([read_public_key(public)]), "it")


def test_what_is_no_public_key_is_explained(bundle, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="a private key; give the public one"):
        read_public_key(bundle.private)
    (tmp_path / "x.pub").write_text("hello")
    with pytest.raises(BundleError, match="not a public key in PEM form"):
        read_public_key(tmp_path / "x.pub")
    with pytest.raises(BundleError, match="cannot be read"):
        read_public_key(tmp_path / "y.pub")


def test_trusting_a_key(bundle, tmp_path: Path) -> None:
    assert trusted_keys(tmp_path / "none") == {}
    name = trust_key(tmp_path / "trusted", bundle.public.read_text())
    assert set(trusted_keys(tmp_path / "trusted")) == {name}
    with pytest.raises(BundleError):
        trust_key(tmp_path / "trusted", "no key")
    # what a writer left that was killed
    (tmp_path / "trusted" / f".{name}-x1.pub").touch()
    assert set(trusted_keys(tmp_path / "trusted")) == {name}
