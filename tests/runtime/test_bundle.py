from __future__ import annotations

import gzip
import io
import os
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest

from brd_edge.runtime import engine
from brd_edge.runtime.archive import opened_bundle, unpack_archive, verify_archive, write_archive
from brd_edge.runtime.bundle import open_bundle
from brd_edge.runtime.errors import BundleError
from brd_edge.runtime.signature import read_public_key
from brd_edge.ship.bundle import bundle_files, pack_bundle
from brd_edge.ship.keys import make_keys, read_private_key, sign_bundle

MUTATIONS = 1_000


@pytest.fixture
def trusted(bundle):
    return dict([read_public_key(bundle.public)])


@pytest.fixture
def copy(bundle, tmp_path: Path) -> Path:
    return shutil.copytree(bundle.directory, tmp_path / "copy")


@pytest.fixture(scope="module")
def small(make_bundle, tmp_path_factory: pytest.TempPathFactory):
    return make_bundle(tmp_path_factory.mktemp("small") / "bundle")


@pytest.fixture(scope="module")
def archive(small, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("archive") / "bundle.tar.gz"
    write_archive(path, small.directory, bundle_files(small.directory))
    return path


def test_a_signed_bundle_opens(bundle, trusted) -> None:
    opened = open_bundle(bundle.directory, trusted)
    assert set(opened.engines) == {"onnxruntime-fp32", "openvino-fp32", "tensorrt-fp32"}
    frame, class_map = opened.golden("00")
    assert np.array_equal(frame, bundle.frame)
    assert np.array_equal(class_map, bundle.class_map)
    assert [path for path in bundle.directory.rglob("*") if "key" in path.name] == []


def test_unsigned_is_refused(copy: Path, trusted) -> None:
    (copy / "manifest.sig").unlink()
    with pytest.raises(BundleError, match="not signed"):
        open_bundle(copy, trusted)
    archive = pack_bundle(copy)
    with pytest.raises(BundleError, match="not signed"):
        verify_archive(archive, trusted)


def test_every_file_is_under_the_signature(bundle, copy: Path, trusted) -> None:
    for name in bundle_files(bundle.directory):
        path = copy / name
        content = path.read_bytes()
        for altered in (content[:-1], content + b"\0", bytes([content[0] ^ 1]) + content[1:], b""):
            path.write_bytes(altered)
            with pytest.raises(BundleError):
                open_bundle(copy, trusted)
        path.unlink()
        with pytest.raises(BundleError):
            open_bundle(copy, trusted)
        path.write_bytes(content)
    open_bundle(copy, trusted)


def test_more_than_was_signed_is_refused(bundle, copy: Path, trusted) -> None:
    (copy / "engines" / "onnxruntime-fp32" / "extra.so").write_bytes(b"")
    with pytest.raises(BundleError, match=r"extra\.so: not in the manifest"):
        open_bundle(copy, trusted)
    (copy / "engines" / "onnxruntime-fp32" / "extra.so").unlink()
    graph = copy / "student.onnx"
    graph.unlink()
    graph.symlink_to(bundle.directory / "student.onnx")
    with pytest.raises(BundleError, match="a link or a device"):
        open_bundle(copy, trusted)
    graph.unlink()
    os.mkfifo(graph)
    with pytest.raises(BundleError, match="a link or a device"):
        open_bundle(copy, trusted)


def test_only_some_engines_may_be_here_if_that_is_said(copy: Path, trusted) -> None:
    shutil.rmtree(copy / "engines" / "tensorrt-fp32")
    with pytest.raises(BundleError, match="missing"):
        open_bundle(copy, trusted)
    assert open_bundle(copy, trusted, engines=["onnxruntime-fp32", "openvino-fp32"]).engines == (
        "onnxruntime-fp32",
        "openvino-fp32",
    )
    with pytest.raises(BundleError, match="not in the manifest"):
        open_bundle(copy, trusted, engines=["openvino-fp32"])
    with pytest.raises(BundleError, match="has no engine 'x'"):
        open_bundle(copy, trusted, engines=["x"])


def test_a_manifest_that_lies_about_an_engine_is_refused(make_bundle, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="its sidecar"):
        make_bundle(tmp_path / "bundle", targets={"onnxruntime": "arm64-cpu"})


def test_an_engine_of_another_version_is_refused_with_the_bundle(
    bundle, trusted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "SCHEMA_VERSION", engine.SCHEMA_VERSION + 1)
    with pytest.raises(BundleError, match=r"engine onnxruntime-fp32 cannot be used here: .*schema_version: expected"):
        open_bundle(bundle.directory, trusted)


def test_signing_looks_at_the_files_first(bundle, copy: Path, tmp_path: Path) -> None:
    (copy / "student.onnx").write_bytes(b"other")
    make_keys(tmp_path / "new.key")
    before = (copy / "manifest.sig").read_bytes()
    for key in (tmp_path / "new.key", bundle.private):
        with pytest.raises(BundleError, match=r"altered|bytes"):
            sign_bundle(copy, read_private_key(key))
        assert (copy / "manifest.sig").read_bytes() == before


def test_an_archive_is_the_bundle(small, archive: Path, trusted, tmp_path: Path) -> None:
    assert verify_archive(archive, trusted).name == "small"
    opened = unpack_archive(archive, tmp_path / "out", trusted)
    for name in bundle_files(small.directory):
        assert (opened.directory / name).read_bytes() == (small.directory / name).read_bytes()
    with tarfile.open(archive) as tar:
        assert tar.getnames() == bundle_files(small.directory)
    with pytest.raises(BundleError, match="exists already"):
        unpack_archive(archive, tmp_path / "out", trusted)
    with opened_bundle(archive, trusted) as temporary:
        assert temporary.directory.is_dir()
    assert not temporary.directory.exists()


def test_the_same_bundle_gives_the_same_bytes(make_bundle, tmp_path: Path) -> None:
    made = [make_bundle(tmp_path / name / "bundle") for name in ("a", "b")]
    archives = [pack_bundle(item.directory).read_bytes() for item in made]
    assert archives[0] == archives[1]


def test_every_byte_of_the_archives_head_and_tail_counts(archive: Path, trusted, tmp_path: Path) -> None:
    content = archive.read_bytes()
    altered = tmp_path / "altered.tar.gz"
    for index in [*range(64), *range(len(content) - 64, len(content))]:
        for flip in (1, 0x80):
            changed = bytearray(content)
            changed[index] ^= flip
            altered.write_bytes(changed)
            try:
                verify_archive(altered, trusted)
            except BundleError:
                continue
            # some bits of a deflate stream carry nothing: codes of symbols that do not occur, the rest of the last byte
            assert gzip.decompress(bytes(changed)) == gzip.decompress(content), index
    for changed in (content[:-1], content + b"\0", content + content, b"", content[: len(content) // 2]):
        altered.write_bytes(changed)
        with pytest.raises(BundleError):
            verify_archive(altered, trusted)


def test_random_mutations_are_refused_and_nothing_is_left(archive: Path, trusted, tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    packed = archive.read_bytes()
    plain = gzip.decompress(packed)
    altered = tmp_path / "in" / "altered.tar.gz"
    altered.parent.mkdir()
    for number in range(MUTATIONS):
        # of the file as it is, and of the tar inside, packed again as we pack
        source = bytearray(packed if number % 2 else plain)
        kind, start = int(rng.integers(4)), int(rng.integers(len(source)))
        if kind == 0:
            source[start] ^= 1 << int(rng.integers(8))
        elif kind == 1:
            del source[start:]
        elif kind == 2:
            del source[start : start + int(rng.integers(1, 700))]
        else:
            source[start:start] = rng.integers(0, 256, int(rng.integers(1, 700)), dtype=np.uint8).tobytes()
        if number % 2:
            if bytes(source) == packed:
                continue
            altered.write_bytes(source)
        else:
            altered.write_bytes(_packed(bytes(source)))
        with pytest.raises(BundleError):
            unpack_archive(altered, tmp_path / "out" / "bundle", trusted)
        assert list((tmp_path / "out").iterdir()) == []


def _packed(plain: bytes) -> bytes:
    buffer = io.BytesIO()
    with gzip.GzipFile(filename="", fileobj=buffer, mode="wb", compresslevel=9, mtime=0) as file:
        file.write(plain)
    return buffer.getvalue()


def _member(name: str, content: bytes = b"", **changes: object) -> tuple[tarfile.TarInfo, bytes]:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    for key, value in changes.items():
        setattr(member, key, value)
    return member, content


@pytest.mark.parametrize(
    ("evil", "words"),
    [
        (_member("/etc/passwd"), "its path leads out"),
        (_member("../outside"), "its path leads out"),
        (_member("a/../../outside"), "its path leads out"),
        (_member("link", type=tarfile.SYMTYPE, linkname="/etc/passwd"), "it is a link"),
        (_member("link", type=tarfile.LNKTYPE, linkname="manifest.json"), "it is a link"),
        (_member("device", type=tarfile.CHRTYPE), "it is a device"),
        (_member("fifo", type=tarfile.FIFOTYPE), "it is a device"),
        (_member("folder", type=tarfile.DIRTYPE), "it is not a plain file"),
        (_member("surplus", b"x"), "not what was signed"),
        (_member("engines/onnxruntime-fp32/engine.json", b"", mode=0o777), "was altered"),
        (_member("manifest.json", b"{}"), "not what was signed"),
    ],
)
@pytest.mark.parametrize("place", [0, 2])
def test_evil_members_are_refused(small, trusted, tmp_path: Path, evil, words: str, place: int) -> None:
    path = tmp_path / "evil.tar.gz"
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for index, name in enumerate(bundle_files(small.directory)):
            if index == place:
                tar.addfile(evil[0], io.BytesIO(evil[1]))
            content = (small.directory / name).read_bytes()
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    path.write_bytes(_packed(buffer.getvalue()))
    with pytest.raises(BundleError) as caught:
        unpack_archive(path, tmp_path / "out" / "bundle", trusted)
    if place == 2 or evil[0].name != "manifest.json":
        assert words in str(caught.value) or "expected" in str(caught.value)
    assert list((tmp_path / "out").iterdir()) == []


def test_a_bomb_is_not_unpacked(trusted, tmp_path: Path) -> None:
    """A small file that would unpack to gigabytes: reading ends at the size that the header may state."""
    header = tarfile.TarInfo("manifest.json")
    header.size = 4 << 30
    path = tmp_path / "bomb.tar.gz"
    path.write_bytes(_packed(header.tobuf(tarfile.USTAR_FORMAT) + bytes(64 << 20)))
    with pytest.raises(BundleError, match="at most"):
        unpack_archive(path, tmp_path / "out", trusted)
