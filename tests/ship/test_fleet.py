from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from brd_edge.runtime.errors import RecipeError
from brd_edge.ship.delivery import Delivered
from brd_edge.ship.fleet import Fleet, loopback_root, read_fleet, serve_in_waves, wave_sizes
from brd_edge.ship.transport import parse_device


def _fleet(count: int, **changes) -> Fleet:
    return Fleet(tuple(parse_device(f"edge@camera-{index}") for index in range(count)), **changes)


@pytest.mark.parametrize(
    ("waves", "count", "sizes"),
    [
        ([1, "25%", "100%"], 20, [1, 4, 15]),
        ([1, "100%"], 1, [1]),
        ([2], 5, [2, 3]),
        (["10%"], 3, [1, 2]),
        ([50], 3, [3]),
    ],
)
def test_wave_sizes(waves: list, count: int, sizes: list[int]) -> None:
    assert wave_sizes(waves, count) == sizes
    assert sum(sizes) == count


@pytest.mark.parametrize("wave", ["x", "0%", 0, -1, "150%", "1.5", "²", "²%"])
def test_waves_that_are_none(wave: object) -> None:
    with pytest.raises(RecipeError, match="waves: expected numbers"):
        wave_sizes([wave], 3)


def test_waves_end_when_too_many_fail_and_only_so_many_run_at_once() -> None:
    running, most = 0, 0

    async def deliver(device) -> Delivered:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.01)
        running -= 1
        failed = device.host in ("camera-1", "camera-2")
        return Delivered(device.address, "failed" if failed else "serving")

    said: list[str] = []
    fleet = _fleet(20, waves=(1, "50%", "100%"), parallel=3, failures_max=1)
    results = asyncio.run(serve_in_waves(fleet, deliver, said.append))
    assert [result.status for result in results] == ["serving", "failed", "failed"] + ["serving"] * 7 + [
        "not tried"
    ] * 10
    assert most == 3
    assert "2 failed, at most 1 may" in said[-1]
    assert [result.device for result in results] == [device.address for device in fleet.devices]


def test_a_fleet_file(tmp_path: Path) -> None:
    path = tmp_path / "fleet.yaml"
    path.write_text(
        "devices:\n  - edge@camera-1\n  - {address: 'edge@camera-2:2222', root: /data, python: /opt/python, "
        "latency_ms_p95_max: 40}\nwaves: [1, 25%]\nparallel: 2\n"
    )
    fleet = read_fleet(path)
    first, second = fleet.devices
    assert (first.user, first.host, first.port, first.root, first.python) == (
        "edge",
        "camera-1",
        None,
        "brd-edge",
        "python3",
    )
    assert (second.port, second.root, second.python, second.latency_ms_p95_max) == (2222, "/data", "/opt/python", 40)
    assert (fleet.waves, fleet.parallel, fleet.failures_max) == ((1, "25%"), 2, 0)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("devices: []", "devices: at least one is needed"),
        ("devices: [a@b]\npassword: secret", "password"),
        ("devices: [{address: a@b, colour: red}]", r"devices\.0\.colour: there is no such key"),
        ("devices: [{adress: a@b}]", r"devices\.0\.address: is missing"),
        ("devices: [a@b, a@b]", "stand twice: a@b"),
        ("devices: [a b]", "expected user@host"),
        ("devices: [a@b]\nwaves: [0]", "waves"),
        ("devices: [", "not YAML"),
        ("devices: [a@b]\nwaves: [2001-99-99]", "not YAML"),
        (f"devices: {'[' * 3000}", "not YAML"),
        ("devices: [a]\nparallel: 1\nparallel: 2", "the key parallel stands twice"),
        ("- a", "expected devices"),
    ],
)
def test_a_fleet_file_that_is_wrong(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "fleet.yaml"
    path.write_text(text)
    with pytest.raises(RecipeError, match=words):
        read_fleet(path)


@pytest.mark.parametrize(
    ("address", "user", "host", "port"),
    [
        ("me@jetson", "me", "jetson", None),
        ("jetson:2222", None, "jetson", 2222),
        ("me@[fe80::1]:22", "me", "fe80::1", 22),
        ("10.0.0.7", None, "10.0.0.7", None),
    ],
)
def test_addresses(address: str, user: str | None, host: str, port: int | None) -> None:
    device = parse_device(address)
    assert (device.user, device.host, device.port) == (user, host, port)


def test_a_loopbacks_root_may_lie_in_ones_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert loopback_root("loopback:~/device") == {"root": "/home/me/device"}
    assert loopback_root("loopback:~nobody-of-this-name/device") == {"root": "~nobody-of-this-name/device"}
    assert loopback_root("me@~/device") == {}


@pytest.mark.parametrize("address", ["", "me@", "a@b:0", "a@b:99999", "a@b:x", "loopback:", "me@fe80::1"])
def test_addresses_that_are_none(address: str) -> None:
    with pytest.raises(RecipeError):
        parse_device(address)


def test_an_interrupted_fleet_tells_what_came_of_every_device() -> None:
    started: list[str] = []

    async def deliver(device) -> Delivered:
        started.append(device.host)
        if device.host == "camera-0":
            return Delivered(device.address, "serving")
        if len(started) == 3:
            task.cancel()
        await asyncio.sleep(20)
        return Delivered(device.address, "serving")

    async def work() -> list[Delivered]:
        nonlocal task
        task = asyncio.ensure_future(serve_in_waves(fleet, deliver, lambda _line: None))
        return await task

    task: asyncio.Future[list[Delivered]] = None  # type: ignore[assignment]
    fleet = _fleet(5, waves=(1, 3, "100%"), parallel=2)
    results = asyncio.run(work())
    assert [result.status for result in results] == ["serving", "interrupted", "interrupted", "not tried", "not tried"]
    assert [result.device for result in results] == [device.address for device in fleet.devices]
    assert results[-1].message == "the delivery was interrupted"


def test_what_goes_wrong_unexpectedly_on_one_device_spares_the_others() -> None:
    async def deliver(device) -> Delivered:
        if device.host == "camera-1":
            raise ZeroDivisionError("of this device")
        return Delivered(device.address, "serving")

    results = asyncio.run(serve_in_waves(_fleet(3, waves=("100%",)), deliver, lambda _line: None))
    assert [result.status for result in results] == ["serving", "failed", "serving"]
    assert "ZeroDivisionError: of this device" in results[1].message
