"""Whatever goes wrong in a delivery, the device serves the old release or the new one, and the next one succeeds."""

from __future__ import annotations

import asyncio
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ship.harness import Server, faulty_python, proxied
from ship.test_delivery import opened, options

from brd_edge.runtime.errors import BundleError
from brd_edge.runtime.segmenter import Segmenter
from brd_edge.ship.delivery import Delivered, deliver
from brd_edge.ship.transport import Device

CRASHES = 16
CUTS = 8
AT_ONCE = 3


class Field:
    """Devices that serve an old release, and a new one to ship to them."""

    def __init__(self, server: Server, directory: Path, make_bundle) -> None:
        self.server, self.directory, self.runs = server, directory, 0
        runtimes = ("onnxruntime", "openvino")
        self.old = make_bundle(directory / "old", name="old", signed_at=1_000)
        settings = {"runtimes": runtimes, "plans": ("openvino",), "padding_bytes": 1 << 20}
        self.new = make_bundle(directory / "new", name="new", signed_at=2_000, **settings)
        self.template = directory / "template"
        result = asyncio.run(self.ship(server.device(self.template), self.old))
        assert result.status == "serving", result.message

    def root(self) -> Path:
        """Return a fresh device that serves the old release."""
        self.runs += 1
        return Path(shutil.copytree(self.template, self.directory / f"device{self.runs}", symlinks=True))

    async def ship(self, device: Device, made, say=lambda _line: None) -> Delivered:
        return await deliver(device, opened(made), options(made), say)

    def serving(self, root: Path) -> str:
        """Return which release serves, after a golden frame was run through it."""
        with Segmenter.open(root / "current") as segmenter:
            assert np.array_equal(segmenter.infer(self.new.frame), self.new.class_map)
        return (root / "current").resolve().name.split("-")[1]

    async def recovers(self, root: Path) -> None:
        """Check that a device is whole after a fault, and that shipping again succeeds."""
        assert self.serving(root) in ("old", "new")
        result = await self.ship(self.server.device(root), self.new)
        assert result.status == "serving", result.message
        assert self.serving(root) == "new"
        assert not (root / "staging").exists()


@pytest.fixture(scope="module")
def field(server, make_bundle, tmp_path_factory: pytest.TempPathFactory) -> Field:
    return Field(server, tmp_path_factory.mktemp("field"), make_bundle)


async def _together(work) -> None:
    limit = asyncio.Semaphore(AT_ONCE)

    async def one(item) -> None:
        async with limit:
            await item

    await asyncio.gather(*(one(item) for item in work))


def _moments(field: Field, count: int) -> list[int]:
    """Count the moments at which a delivery changes files, and return some that are spread over all of them."""
    root, log = field.root(), field.directory / "count"
    python = faulty_python(field.directory / "counting", FAULT="count", FAULT_ROOT=root, FAULT_LOG=log)
    result = asyncio.run(field.ship(field.server.device(root, python=str(python)), field.new))
    assert result.status == "serving", result.message
    events = log.read_text().splitlines()
    assert len(events) > 30
    spread = {1 + round(index * (len(events) - 1) / (count - 1)) for index in range(count)}
    # and each moment around the switch: before the link is made, before it is renamed into place, and after
    first = next(number for number, event in enumerate(events, 1) if ".current.new" in event and "symlink" in event)
    return sorted(spread | {first, first + 1, first + 2})


@pytest.mark.parametrize("kind", ["kill", "full"])
def test_the_device_is_killed_or_full_at_any_moment(field: Field, kind: str) -> None:
    moments = _moments(field, CRASHES)
    assert len(moments) >= CRASHES
    ends = []

    async def one(moment: int) -> None:
        root = field.root()
        python = faulty_python(root.with_name(f"{root.name}-python"), FAULT=kind, FAULT_AT=moment, FAULT_ROOT=root)
        result = await field.ship(field.server.device(root, python=str(python)), field.new)
        ends.append(field.serving(root))
        # towards the end nothing needs room on the disk any more, and only what was uploaded is cleared away
        assert result.status == "failed" or (kind == "full" and ends[-1] == "new"), f"{kind} at {moment}"
        await field.recovers(root)

    asyncio.run(_together([one(moment) for moment in moments]))
    assert ends.count("old") >= CRASHES // 2


def test_the_connection_is_cut_in_the_upload(field: Field) -> None:
    async def upload_bytes() -> int:
        async with proxied(field.server.port) as proxy:
            device = field.server.through(field.server.device(field.root()), proxy.port)
            assert (await field.ship(device, field.new)).status == "serving"
            return proxy.sent

    async def one(cut: int) -> None:
        root = field.root()
        async with proxied(field.server.port, cut) as proxy:
            device = field.server.through(field.server.device(root), proxy.port)
            result = await field.ship(device, field.new)
            assert result.status == "failed"
        assert field.serving(root) == "old"
        await _lock_is_free(field, root)
        await field.recovers(root)

    whole = asyncio.run(upload_bytes())
    asyncio.run(_together([one(round(whole * (index + 0.5) / (CUTS + 1))) for index in range(CUTS)]))


def test_an_upload_goes_on_where_it_was_cut(field: Field) -> None:
    root, said = field.root(), []
    graph = opened(field.new).manifest.files["student.onnx"]

    async def cut_then_again() -> Delivered:
        async with proxied(field.server.port, graph.size_bytes // 2) as proxy:
            device = field.server.through(field.server.device(root), proxy.port)
            assert (await field.ship(device, field.new)).status == "failed"
        await _lock_is_free(field, root)
        return await field.ship(field.server.device(root), field.new, said.append)

    result = asyncio.run(cut_then_again())
    assert result.status == "serving", result.message
    assert 0 < result.uploaded_bytes < graph.size_bytes
    assert any("from an earlier try" in line for line in said)
    assert field.serving(root) == "new"


async def _lock_is_free(field: Field, root: Path) -> None:
    """A device that lost its shipper notices at once or when it next speaks; wait for that."""
    for _ in range(100):
        result = await deliver(
            field.server.device(root), opened(field.new), replace(options(field.new), engines=("none",)), lambda _: None
        )
        if "another delivery" not in result.message:
            return
        await asyncio.sleep(0.1)
    raise AssertionError("the lock was never given back")


@pytest.mark.parametrize("moment", ["building", "done in", "golden", "timing", "openvino-fp32: timing"])
def test_the_connection_is_cut_while_the_device_works(field: Field, moment: str) -> None:
    async def one() -> None:
        root = field.root()
        async with proxied(field.server.port) as proxy:
            device = field.server.through(field.server.device(root), proxy.port)

            def cut(line: str) -> None:
                if moment in line:
                    proxy.cut()

            result = await field.ship(device, field.new, cut)
            assert result.status == "failed"
            assert "--status" in result.message
        for _ in range(100):
            again = await field.ship(field.server.device(root), field.new)
            if "another delivery" not in again.message:
                break
            await asyncio.sleep(0.1)
        await field.recovers(root)

    asyncio.run(one())


def test_a_delivery_that_is_given_up_does_not_switch(field: Field) -> None:
    async def one() -> None:
        root = field.root()

        def give_up(line: str) -> None:
            if "building" in line:
                task.cancel()

        task = asyncio.ensure_future(field.ship(field.server.device(root), field.new, give_up))
        with pytest.raises(asyncio.CancelledError):
            await task
        await _lock_is_free(field, root)
        assert field.serving(root) == "old"
        await field.recovers(root)

    asyncio.run(one())


def test_bad_releases_do_not_serve(field: Field, make_bundle, tmp_path: Path) -> None:
    cases = {
        "golden frame 00": make_bundle(tmp_path / "wrong", name="wrong", signed_at=2_000, wrong=True),
        "latency_ms_p95_max": make_bundle(tmp_path / "slow", name="slow", signed_at=2_000, latency_ms_p95_max=1e-6),
        "the device has": make_bundle(tmp_path / "gpu", name="gpu", signed_at=2_000, runtimes=("tensorrt",)),
    }

    async def one(words: str, made) -> None:
        root = field.root()
        result = await field.ship(field.server.device(root), made)
        assert result.status == "failed"
        assert words in result.message
        assert field.serving(root) == "old"
        await field.recovers(root)

    asyncio.run(_together([one(words, made) for words, made in cases.items()]))


def test_a_damaged_upload_is_noticed_and_sent_again(field: Field) -> None:
    root = field.root()
    graph = opened(field.new).manifest.files["student.onnx"]
    (root / "incoming").mkdir()
    (root / "incoming" / graph.sha256).write_bytes(bytes(graph.size_bytes))
    result = asyncio.run(field.ship(field.server.device(root), field.new))
    assert result.status == "failed"
    assert "student.onnx: the upload is damaged" in result.message
    asyncio.run(field.recovers(root))


def test_a_release_that_was_damaged_later_is_refused_and_repaired(field: Field) -> None:
    root = field.root()
    (root / "current" / "bundle" / "golden" / "01.frame.png").write_bytes(b"other")
    with pytest.raises(BundleError, match=r"01\.frame\.png"):
        Segmenter.open(root / "current")
    result = asyncio.run(field.ship(field.server.device(root), field.old))
    assert result.status == "serving", result.message
    assert result.uploaded_bytes > 0
    assert field.serving(root) == "old"


def test_two_shippers_at_once(field: Field) -> None:
    async def both(root: Path) -> list[Delivered]:
        device = field.server.device(root)
        return await asyncio.gather(field.ship(device, field.new), field.ship(device, field.new))

    root = field.root()
    results = asyncio.run(both(root))
    assert "serving" in [result.status for result in results]
    for result in results:
        assert result.status == "serving" or "another delivery" in result.message
    asyncio.run(field.recovers(root))
