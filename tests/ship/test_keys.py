from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest

from brd_edge.cli import main
from brd_edge.runtime.errors import BundleError
from brd_edge.ship.keys import make_keys, read_private_key


def test_the_private_key_is_for_its_owner_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["keys", str(tmp_path / "team")]) == 0
    private = tmp_path / "team.key"
    assert stat.S_IMODE(private.stat().st_mode) == 0o600
    assert sorted(path.name for path in tmp_path.iterdir()) == ["team.key", "team.pub"]
    assert "PRIVATE" not in capsys.readouterr().out
    before = private.read_bytes()
    assert main(["keys", str(tmp_path / "team")]) == 1
    assert "exists already" in capsys.readouterr().err
    assert private.read_bytes() == before


def test_private_keys_that_cannot_be_used(tmp_path: Path) -> None:
    public, _ = make_keys(tmp_path / "a.key")
    (tmp_path / "a.key").chmod(0o640)
    with pytest.raises(BundleError, match="others may read this private key"):
        read_private_key(tmp_path / "a.key")
    public.chmod(0o600)
    with pytest.raises(BundleError, match="a public key; give the private one"):
        read_private_key(public)
    (tmp_path / "b.key").write_text("hello")
    (tmp_path / "b.key").chmod(0o600)
    with pytest.raises(BundleError, match="not a private key"):
        read_private_key(tmp_path / "b.key")
    with pytest.raises(BundleError, match="cannot be read"):
        read_private_key(tmp_path / "none.key")


def test_signing_is_kept_and_leaves_no_key(make_bundle, tmp_path: Path) -> None:
    made = make_bundle(tmp_path / "made" / "bundle", sign=False)
    arguments = ["sign", str(made.directory), "--key", str(made.private)]
    assert main(arguments) == 0
    first = (made.directory / "manifest.sig").read_bytes()
    archive = made.directory.with_name("bundle.tar.gz")
    packed = archive.read_bytes()
    assert main(arguments) == 0
    assert (made.directory / "manifest.sig").read_bytes() == first
    assert archive.read_bytes() == packed
    secret = made.private.read_bytes().splitlines()[1]
    for path in [archive, *made.directory.rglob("*")]:
        assert path.is_dir() or secret not in path.read_bytes()
    assert set(json.loads(first)) == {"algorithm", "key_id", "signed_at", "signature"}


def test_what_is_no_bundle_is_explained(bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sign", str(tmp_path), "--key", str(bundle.private)]) == 1
    assert "expected the directory of a bundle" in capsys.readouterr().err
