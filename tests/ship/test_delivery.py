"""Deliveries to a real SSH server, with a device root in a temporary directory."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from brd_edge.runtime.__main__ import main as runtime
from brd_edge.runtime.bundle import Bundle, open_bundle
from brd_edge.runtime.checking import Bench
from brd_edge.runtime.releases import current_release, list_releases
from brd_edge.runtime.segmenter import Segmenter
from brd_edge.runtime.signature import read_public_key
from brd_edge.ship.delivery import Delivered, Options, deliver, roll_back
from brd_edge.ship.transport import Device

QUICK = Bench(threads=1, samples_min=3, samples_max=5, budget_s=0.1)


def opened(made) -> Bundle:
    return open_bundle(made.directory, dict([read_public_key(made.public)]))


def options(made, **changes: object) -> Options:
    return replace(Options(public_key=made.public.read_text(), bench=QUICK), **changes)


def ship(device: Device, made, said: list[str] | None = None, **changes: object) -> Delivered:
    lines = [] if said is None else said
    return asyncio.run(deliver(device, opened(made), options(made, **changes), lines.append))


def serves(root: Path, made) -> bool:
    with Segmenter.open(root / "current") as segmenter:
        return np.array_equal(segmenter.infer(made.frame), made.class_map)


def test_a_bundle_is_delivered_and_serves(any_server, bundle, tmp_path: Path) -> None:
    root, said = tmp_path / "device", []
    result = ship(any_server.device(root), bundle, said)
    assert result.status == "serving", result.message
    assert set(result.engines) == {"onnxruntime-fp32", "openvino-fp32"}
    assert "no NVIDIA GPU" in result.left_out["tensorrt-fp32"] or "GPU" in result.left_out["tensorrt-fp32"]
    assert result.engine in result.engines
    check = result.checks[result.engine]
    assert check["agreement"] == 1.0
    assert 0 < check["latency_ms"]["min"] <= check["latency_ms"]["p50"] <= check["latency_ms"]["p95"]
    assert result.uploaded_bytes > 0
    assert serves(root, bundle)
    assert any("trusts the key" in line for line in said)
    # only what fits went over the network
    assert not (root / "current" / "bundle" / "engines" / "tensorrt-fp32").exists()
    assert not (root / "incoming").exists()
    again = ship(any_server.device(root), bundle)
    assert (again.status, again.release, again.uploaded_bytes) == ("serving", result.release, 0)
    assert len(list_releases(root)) == 1


def test_new_releases_roll_back_and_are_pruned(server, make_bundle, tmp_path: Path) -> None:
    root = tmp_path / "device"
    device, releases = server.device(root), []
    for number in range(4):
        made = make_bundle(tmp_path / f"bundle{number}", name=f"model{number}", signed_at=1_000 + number)
        result = ship(device, made, keep=2)
        assert result.status == "serving", result.message
        # every file but the manifest is on the device already
        assert (result.uploaded_bytes == 0) == (number > 0)
        releases.append(result.release)
    assert [release.name for release in list_releases(root)] == releases[-2:]
    back = asyncio.run(roll_back(device, lambda _line: None))
    assert (back.status, back.release) == ("serving", releases[-2])
    serving = current_release(root)
    assert serving is not None
    assert serving.name == releases[-2]
    assert serves(root, made)


def test_an_uncertain_latency_is_held_to_the_gate_as_at_home(server, make_bundle, tmp_path: Path) -> None:
    """Five samples do not tell how high p95 may be, however high the limit is."""
    strict, lenient = (
        make_bundle(tmp_path / uncertain, name=uncertain, latency_ms_p95_max=60_000, uncertain=uncertain)
        for uncertain in ("broken", "held")
    )
    device = server.device(tmp_path / "device")
    refused = ship(device, strict)
    assert refused.status == "failed"
    assert "ms (too few samples for more), limit 60000" in refused.message
    result = ship(device, lenient)
    assert result.status == "serving", result.message
    # how many samples are enough depends on how much the machine's other load makes neighbours alike
    for count in (1_000, 10_000, 100_000):
        result = ship(device, strict, bench=replace(QUICK, samples_min=count, samples_max=count))
        if result.status == "serving":
            return
        assert "ms (too few samples for more), limit 60000" in result.message
    pytest.skip("this machine's other load comes and goes so slowly that 100000 samples do not bound p95")


def test_an_older_bundle_needs_a_word(server, make_bundle, tmp_path: Path) -> None:
    device = server.device(tmp_path / "device")
    newer = make_bundle(tmp_path / "newer", name="newer", signed_at=2_000)
    older = make_bundle(tmp_path / "older", name="older", signed_at=1_000)
    assert ship(device, newer).status == "serving"
    refused = ship(device, older)
    assert refused.status == "failed"
    assert "--allow-downgrade" in refused.message
    assert ship(device, older, allow_downgrade=True).status == "serving"
    # and that does not make the device forget what it has seen
    assert "--allow-downgrade" in ship(device, older).message


def test_another_key_is_refused(server, bundle, make_bundle, tmp_path: Path) -> None:
    from brd_edge.ship.keys import make_keys, read_private_key, sign_bundle

    root = tmp_path / "device"
    assert ship(server.device(root), bundle).status == "serving"
    public, _ = make_keys(tmp_path / "stranger.key")
    foreign = make_bundle(tmp_path / "foreign", name="foreign", sign=False)
    sign_bundle(foreign.directory, read_private_key(tmp_path / "stranger.key"))
    foreign = replace(foreign, public=public)
    result = ship(server.device(root), foreign)
    assert result.status == "failed"
    assert "not trusted here" in result.message
    assert serves(root, bundle)


def test_a_key_is_trusted_only_once_its_bundle_serves(server, make_bundle, tmp_path: Path) -> None:
    root = tmp_path / "device"
    wrong = make_bundle(tmp_path / "wrong", wrong=True)
    assert "golden frame" in ship(server.device(root), wrong).message
    assert list((root / "trusted").iterdir()) == []
    assert not (root / "current").exists()


def test_dry_run_changes_nothing(server, bundle, tmp_path: Path) -> None:
    root = tmp_path / "device"
    result = ship(server.device(root), bundle, dry_run=True)
    assert result.status == "would serve"
    assert "onnxruntime-fp32" in result.message
    assert not root.exists()


def test_what_fits_no_device_is_refused(server, make_bundle, tmp_path: Path) -> None:
    made = make_bundle(tmp_path / "bundle", runtimes=("tensorrt",))
    result = ship(server.device(tmp_path / "device"), made)
    assert result.status == "failed"
    assert "tensorrt-fp32: it needs a GPU" in result.message
    # of what was not asked for nothing is told but how much there is
    several = make_bundle(tmp_path / "b2", runtimes=("onnxruntime", "openvino", "tensorrt"))
    wanted = ship(server.device(tmp_path / "device"), several, engines=("tensorrt-fp32",))
    assert wanted.message.startswith("no engine of the bundle fits it: tensorrt-fp32: it needs a GPU")
    assert wanted.message.endswith("; 2 others were not asked for")
    assert "onnxruntime-fp32" not in wanted.message


def test_an_engine_is_built_on_the_device(server, make_bundle, tmp_path: Path) -> None:
    root = tmp_path / "device"
    made = make_bundle(tmp_path / "bundle", runtimes=("openvino",), plans=("openvino",))
    said: list[str] = []
    result = ship(server.device(root), made, said)
    assert result.status == "serving", result.message
    assert any("building: done in" in line for line in said)
    assert (root / "current" / "built" / "openvino-fp32" / "model.xml").is_file()
    assert serves(root, made)


def test_the_engine_that_the_new_canary_finds_fastest_serves(server, bundle, tmp_path: Path) -> None:
    root = tmp_path / "device"
    first = ship(server.device(root), bundle)
    slow = next(name for name in first.engines if name != first.engine)
    # as after a canary on a device that was busy
    record = root / "current" / "release.json"
    record.write_text(json.dumps({**json.loads(record.read_text()), "engine": slow}))
    again = ship(server.device(root), bundle)
    p50_ms = {name: check["latency_ms"]["p50"] for name, check in again.checks.items()}
    assert again.engine == min(p50_ms, key=p50_ms.__getitem__)
    serving = current_release(root)
    assert serving is not None
    assert serving.engine == again.engine


def test_a_device_without_brd_edge_is_explained(server, bundle, tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho 'No module named brd_edge' >&2\nexit 1\n")
    python.chmod(0o755)
    result = ship(server.device(tmp_path / "device", python=str(python)), bundle)
    assert result.status == "failed"
    assert "No module named brd_edge" in result.message
    assert "pip install" in result.message


def test_hosts_and_keys_are_checked(server, bundle, tmp_path: Path) -> None:
    import asyncssh

    unknown = tmp_path / "empty"
    unknown.write_text("")
    result = ship(server.device(tmp_path / "device", known_hosts=unknown), bundle)
    assert "its host key is not known here" in result.message
    changed = tmp_path / "changed"
    fresh = asyncssh.generate_private_key("ssh-ed25519").export_public_key().decode()
    changed.write_text(f"[127.0.0.1]:{server.port} {fresh}")
    result = ship(server.device(tmp_path / "device", known_hosts=changed), bundle)
    assert "its host key is not the one in" in result.message
    result = ship(server.device(tmp_path / "device", identity=tmp_path / "none"), bundle)
    assert f"{tmp_path / 'none'}: not found" in result.message
    other = asyncssh.generate_private_key("ssh-ed25519")
    other.write_private_key(tmp_path / "other")
    result = ship(server.device(tmp_path / "device", identity=tmp_path / "other"), bundle)
    assert "does not accept your SSH keys" in result.message
    gone = replace(server.device(tmp_path / "device"), port=1)
    assert "cannot be reached" in ship(gone, bundle).message
    assert not (tmp_path / "device").exists()


def test_what_a_delivery_leaves_works_from_the_command_line(
    server, bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from PIL import Image

    root = tmp_path / "device"
    assert ship(server.device(root), bundle).status == "serving"
    Image.fromarray(bundle.frame).save(tmp_path / "frame.png")
    assert runtime(["infer", str(root / "current"), str(tmp_path / "frame.png"), "-o", str(tmp_path / "out")]) == 0
    found = np.asarray(Image.open(tmp_path / "out" / "frame.class_map.png"))
    assert np.array_equal(found, bundle.class_map)
    assert runtime(["verify", str(root / "current")]) == 0
    assert runtime(["status", "--root", str(root)]) == 0
    assert "* 0001-small" in capsys.readouterr().out
    asked = ["--budget-s", "0.1", "--streams", "2", "-o", str(tmp_path / "bench.json")]
    assert runtime(["bench", str(root / "current"), *asked]) == 0
    measured = json.loads((tmp_path / "bench.json").read_text())
    for engine in measured["engines"]:
        assert engine["latency_ms"]["p50"] == pytest.approx(np.percentile(engine["samples_ms"], 50))
        assert engine["engine_latency_ms"]["n"] >= 1
        assert (engine["throughput"]["streams"], engine["throughput"]["rate_hz"] > 0) == (2, True)
