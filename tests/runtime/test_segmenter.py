from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from brd_edge.runtime.__main__ import main
from brd_edge.runtime.errors import BundleError, DataError, EngineError, RuntimeMissingError
from brd_edge.runtime.frames import fit_frame, overlay, read_image, resize_class_map
from brd_edge.runtime.inference import infer
from brd_edge.runtime.segmenter import Segmenter
from brd_edge.runtime.sources import Pace, VideoWriter, open_video
from brd_edge.ship.bundle import pack_bundle


@pytest.mark.parametrize("engine", ["onnxruntime-fp32", "openvino-fp32"])
def test_frames_of_any_size(bundle, engine: str) -> None:
    with Segmenter.open(bundle.directory, keys=[bundle.public], engine=engine) as segmenter:
        assert np.array_equal(segmenter.infer(bundle.frame), bundle.class_map)
        large = np.asarray(Image.fromarray(bundle.frame).resize((200, 120), Image.Resampling.BICUBIC))
        found = segmenter.infer(large)
        assert found.shape == (120, 200)
        small = np.asarray(Image.fromarray(large).resize((40, 24), Image.Resampling.BILINEAR))
        expected = Image.fromarray(segmenter.infer(small)).resize((200, 120), Image.Resampling.NEAREST)
        assert np.array_equal(found, np.asarray(expected))
        with pytest.raises(EngineError, match=r"expected uint8 \(H, W, 3\) in RGB, got uint8 \(120, 200\): it is grey"):
            segmenter.infer(large[:, :, 0])
        with pytest.raises(EngineError, match="one image at a time"):
            segmenter.infer(large[None])
        with pytest.raises(EngineError, match=r"got float64 \(120, 200, 3\): give the pixels as they come[^;]*$"):
            segmenter.infer(large / 255)


def test_what_is_not_there_or_not_trusted(bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    with pytest.raises(BundleError, match="no key to verify"):
        Segmenter.open(bundle.directory)
    trusted = tmp_path / "brd-edge" / "trusted"
    trusted.mkdir(parents=True)
    (trusted / "team.pub").write_bytes(bundle.public.read_bytes())
    Segmenter.open(bundle.directory).close()
    with pytest.raises(BundleError, match="has no engine 'x'"):
        Segmenter.open(bundle.directory, engine="x")
    with pytest.raises(BundleError, match="expected the directory of a bundle"):
        Segmenter.open(tmp_path / "none")


@pytest.mark.parametrize("command", ["verify", "build", "bench"])
def test_a_mistyped_path_is_told_before_a_missing_key(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert main([command, str(tmp_path / "nope")]) == 1
    expected = "nope: expected the directory of a bundle, with manifest.json in it, its archive, or a release\n"
    assert capsys.readouterr().err.endswith(expected)
    with pytest.raises(BundleError, match="nope: expected the directory of a bundle, with manifest"):
        Segmenter.open(str(tmp_path / "nope"))
    (tmp_path / "run" / "bundle").mkdir(parents=True)
    (tmp_path / "run" / "bundle" / "manifest.json").touch()
    assert main([command, str(tmp_path / "run")]) == 1
    assert capsys.readouterr().err.endswith(f"manifest.json in it: {tmp_path / 'run' / 'bundle'} is one\n")
    engine = tmp_path / "run" / "engines" / "openvino-fp32-x86-cpu"
    engine.mkdir(parents=True)
    (engine / "engine.json").touch()
    assert main([command, str(engine)]) == 1
    assert capsys.readouterr().err.endswith("alone: name the run's bundle and --engine openvino-fp32-x86-cpu\n")


def test_an_engine_that_must_be_built_first(
    make_bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    made = make_bundle(tmp_path / "bundle", runtimes=("openvino",), plans=("openvino",))
    with pytest.raises(EngineError, match="has to be built on this machine first"):
        Segmenter.open(made.directory, keys=[made.public])
    assert main(["build", str(made.directory), "--key", str(made.public)]) == 0
    built = Path(capsys.readouterr().out.strip())
    assert (built / "model.xml").is_file()
    with Segmenter.open(made.directory, keys=[made.public]) as segmenter:
        assert np.array_equal(segmenter.infer(made.frame), made.class_map)
    # of an archive just so
    archive = pack_bundle(made.directory)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
    with pytest.raises(EngineError, match=f"runtime build {archive}$"):
        Segmenter.open(archive, keys=[made.public])
    assert main(["build", str(archive), "--key", str(made.public)]) == 0
    with Segmenter.open(archive, keys=[made.public]) as segmenter:
        assert np.array_equal(segmenter.infer(made.frame), made.class_map)
    # a bundle that brings a built engine of its own is not believed
    smuggled = made.directory / "built"
    smuggled.mkdir()
    (smuggled / "engine.json").write_text("{}")
    with pytest.raises(BundleError, match=r"built/engine\.json: not in the manifest"):
        Segmenter.open(made.directory, keys=[made.public])


@pytest.mark.parametrize(
    ("measured_ms", "expected"),
    [
        ({}, "onnxruntime-fp32"),
        ({"onnxruntime": 3.0, "openvino": 2.0}, "openvino-fp32"),
        ({"onnxruntime": 2.0, "openvino": 3.0}, "onnxruntime-fp32"),
        ({"openvino": 9.0}, "openvino-fp32"),
    ],
)
def test_the_engine_that_was_measured_to_be_fastest_is_taken(
    make_bundle, tmp_path: Path, measured_ms: dict[str, float], expected: str
) -> None:
    made = make_bundle(tmp_path / "bundle", runtimes=("onnxruntime", "openvino", "tensorrt"), measured_ms=measured_ms)

    with Segmenter.open(made.directory, keys=[made.public]) as segmenter:
        assert segmenter.engine == expected


def test_an_altered_engine_is_not_loaded(make_bundle, tmp_path: Path) -> None:
    made = make_bundle(tmp_path / "bundle")
    path = made.directory / "engines" / "onnxruntime-fp32" / "model.onnx"
    path.write_bytes(path.read_bytes()[:-1] + b"\0")
    code = (
        "import sys; from pathlib import Path; from brd_edge.runtime.segmenter import Segmenter\n"
        "try: Segmenter.open(sys.argv[1], keys=[Path(sys.argv[2])])\n"
        "except Exception as error: print(type(error).__name__, 'onnxruntime' in sys.modules)"
    )
    command = [sys.executable, "-c", code, str(made.directory), str(made.public)]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "BundleError False\n"


def test_a_folder_of_images(bundle, tmp_path: Path) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    (source / "deep").mkdir(parents=True)
    for name in ("a.png", "deep/b.png"):
        Image.fromarray(bundle.frame).save(source / name)
    (source / "notes.txt").write_text("no image")
    (source / "._a.png").write_bytes(b"what macOS notes of a.png")
    (source / ".thumbs").mkdir()
    (source / ".thumbs" / "a.png").write_bytes(b"no image either")
    for name in ("a.class_map.png", "deep/b.overlay.png"):
        Image.fromarray(bundle.frame).save(source / name)
    with Segmenter.open(bundle.directory, keys=[bundle.public]) as segmenter:
        assert infer(segmenter, str(source), out) == {"frames": 2}
        with pytest.raises(DataError, match="no image in this folder"):
            infer(segmenter, str(_empty(tmp_path)), out)
        (tmp_path / "empty" / "a.overlay.png").touch()
        with pytest.raises(DataError, match=r"no image in this folder.* but for \*\.class_map\.png"):
            infer(segmenter, str(tmp_path / "empty"), out)
        with pytest.raises(DataError, match=r"nope\.png: there is no such file"):
            infer(segmenter, str(tmp_path / "nope.png"), out)
        broken = tmp_path / "broken.png"
        broken.write_bytes(b"\x89PNG")
        with pytest.raises(DataError, match=r"broken\.png: the image cannot be read"):
            infer(segmenter, str(broken), out)
    class_map = Image.open(out / "deep" / "b.class_map.png")
    assert class_map.mode == "P"
    assert np.array_equal(np.asarray(class_map), bundle.class_map)
    shown = np.asarray(Image.open(out / "a.overlay.png"))
    assert np.array_equal(shown, overlay(bundle.frame, bundle.class_map, segmenter.palette))


def test_an_image_that_cannot_be_read_keeps_no_other_waiting(bundle, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for name in ("a", "c"):
        Image.fromarray(bundle.frame).save(tmp_path / "in" / f"{name}.png")
    (tmp_path / "in" / "b.png").write_bytes(b"\x89PNG")

    with (
        Segmenter.open(bundle.directory, keys=[bundle.public]) as segmenter,
        pytest.raises(DataError, match=r"b\.png: the image cannot be read.*; the other 2 of 3 are done: .*/out$"),
    ):
        infer(segmenter, str(tmp_path / "in"), tmp_path / "out")

    done = sorted(path.name for path in (tmp_path / "out").glob("*.class_map.png"))
    assert done == ["a.class_map.png", "c.class_map.png"]


def test_what_needs_opencv_is_told_with_what_was_given(bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    (tmp_path / "classes.yaml").touch()
    with Segmenter.open(bundle.directory, keys=[bundle.public]) as segmenter:
        with pytest.raises(DataError, match=r"film\.mp4: not found"):
            infer(segmenter, str(tmp_path / "film.mp4"), tmp_path / "out")
        with pytest.raises(RuntimeMissingError, match=r"classes\.yaml: no image by its name .*; a video needs OpenCV"):
            infer(segmenter, str(tmp_path / "classes.yaml"), tmp_path / "out")
        with pytest.raises(RuntimeMissingError, match=r"^camera: cv2 cannot be imported here"):
            infer(segmenter, "camera", tmp_path / "out")


def test_images_of_one_name_keep_their_endings(bundle, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for name, frame in (("a.png", bundle.frame), ("a.jpg", bundle.frame[:20]), ("b.png", bundle.frame)):
        Image.fromarray(frame).save(tmp_path / "in" / name)
    with Segmenter.open(bundle.directory, keys=[bundle.public]) as segmenter:
        assert infer(segmenter, str(tmp_path / "in"), tmp_path / "out") == {"frames": 3}
    found = {path.name: read_image(path).shape[:2] for path in (tmp_path / "out").glob("*.class_map.png")}
    assert found == {"a.png.class_map.png": (24, 40), "a.jpg.class_map.png": (20, 40), "b.class_map.png": (24, 40)}


def _empty(tmp_path: Path) -> Path:
    (tmp_path / "empty").mkdir()
    return tmp_path / "empty"


def _film(path: Path, frames: int, rate_hz: float) -> list[np.ndarray]:
    cv2 = pytest.importorskip("cv2", reason="OpenCV is not installed")
    # lossless, so that what is read is what was written
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"FFV1"), rate_hz, (40, 24))
    made = [np.random.default_rng(index).integers(0, 256, (24, 40, 3), dtype=np.uint8) for index in range(frames)]
    for frame in made:
        writer.write(frame[:, :, ::-1])
    writer.release()
    return made


def test_every_frame_of_a_video(bundle, tmp_path: Path) -> None:
    made = _film(tmp_path / "film.avi", 6, 30)
    import cv2

    capture = cv2.VideoCapture(str(tmp_path / "film.avi"))
    with Segmenter.open(bundle.directory, keys=[bundle.public]) as segmenter:
        result = infer(segmenter, str(tmp_path / "film.avi"), tmp_path / "out")
        assert (result["frames"], result["dropped"]) == (len(made), 0)
        for index in range(len(made)):
            frame = capture.read()[1][:, :, ::-1]
            found = np.asarray(Image.open(tmp_path / "out" / "class_map" / f"{index:06d}.png"))
            assert np.array_equal(found, segmenter.infer(np.ascontiguousarray(frame)))
    assert json.loads((tmp_path / "out" / "infer.json").read_text()) == result
    shown = cv2.VideoCapture(str(tmp_path / "out" / "overlay.mp4"))
    assert shown.get(cv2.CAP_PROP_FRAME_COUNT) == len(made)


def test_only_what_an_earlier_video_left_is_removed(bundle, tmp_path: Path) -> None:
    _film(tmp_path / "film.avi", 3, 30)
    out = tmp_path / "out"
    (out / "class_map").mkdir(parents=True)
    photo, six = out / "class_map" / "2024-photo.png", out / "class_map" / "000007.png"
    for path in (photo, six):
        path.write_bytes(b"not ours")
    (out / "infer.json").write_text('{"frames": 400}')
    with Segmenter.open(bundle.directory, keys=[bundle.public]) as segmenter:
        infer(segmenter, str(tmp_path / "film.avi"), out)
        assert (photo.read_bytes(), six.read_bytes()) == (b"not ours", b"not ours")
        # now the folder is one of ours
        infer(segmenter, str(tmp_path / "film.avi"), out, frames_max=1)
    assert sorted(path.name for path in (out / "class_map").iterdir()) == ["000000.png", "2024-photo.png"]


def test_a_folder_is_ours_from_the_first_frame_on(bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _film(tmp_path / "film.avi", 3, 30)
    seen: list[bool] = []
    with Segmenter.open(bundle.directory, keys=[bundle.public]) as segmenter:
        segment = segmenter.infer

        def look(frame: np.ndarray) -> np.ndarray:
            seen.append(json.loads((tmp_path / "out" / "infer.json").read_text())["interrupted"])
            return segment(frame)

        monkeypatch.setattr(segmenter, "infer", look)
        assert not infer(segmenter, str(tmp_path / "film.avi"), tmp_path / "out")["interrupted"]
    assert seen == [True] * 3, "else nobody would know after a power failure whose the files are"


def test_a_video_is_not_written_over_itself(bundle, tmp_path: Path) -> None:
    _film(tmp_path / "film.avi", 3, 30)
    with Segmenter.open(bundle.directory, keys=[bundle.public]) as segmenter:
        infer(segmenter, str(tmp_path / "film.avi"), tmp_path / "out")
        source = tmp_path / "out" / "overlay.mp4"
        before = source.read_bytes()
        with pytest.raises(DataError, match=r"overlay\.mp4: the overlay would be written over this video; choose"):
            infer(segmenter, str(source), tmp_path / "out")
        assert source.read_bytes() == before


def test_a_video_that_a_service_manager_stops(bundle, tmp_path: Path) -> None:
    _film(tmp_path / "film.avi", 200, 30)
    import cv2

    out = tmp_path / "out"
    out.mkdir()
    (out / "infer.json").write_text('{"frames": 400}')  # of an earlier run
    command = [sys.executable, "-m", "brd_edge.runtime", "infer", str(bundle.directory), str(tmp_path / "film.avi")]
    process = subprocess.Popen([*command, "-o", str(out), "--key", str(bundle.public), "--rate", "10"])
    while len(list(out.glob("class_map/*.png"))) < 3:
        assert process.poll() is None
        time.sleep(0.05)
    process.terminate()
    assert process.wait(30) == 130
    result = json.loads((out / "infer.json").read_text())
    assert result["interrupted"]
    assert 3 <= result["frames"] < 200
    frames = cv2.VideoCapture(str(out / "overlay.mp4")).get(cv2.CAP_PROP_FRAME_COUNT)
    # it may have ended between counting a frame and writing it
    assert result["frames"] - 1 <= frames <= result["frames"]


@pytest.mark.parametrize(
    ("rate_hz", "held"),
    [(239.873, 239.87), (29.97002997, 29.97), (12.3456, 12.346), (655.37, 655.4), (90000.0, 65535.0), (1e-5, 0.01)],
)
def test_a_video_is_written_at_the_nearest_rate_that_it_can_hold(tmp_path: Path, rate_hz: float, held: float) -> None:
    cv2 = pytest.importorskip("cv2", reason="OpenCV is not installed")
    writer = VideoWriter(tmp_path / "overlay.mp4", rate_hz)
    for _ in range(2):
        writer.write(np.zeros((24, 40, 3), np.uint8))
    writer.close()
    found = cv2.VideoCapture(str(tmp_path / "overlay.mp4"))
    assert found.get(cv2.CAP_PROP_FPS) == pytest.approx(held, rel=1e-5)


def test_odd_sides_of_a_video_are_padded_and_not_cut(tmp_path: Path) -> None:
    cv2 = pytest.importorskip("cv2", reason="OpenCV is not installed")
    frame = np.zeros((23, 41, 3), np.uint8)
    frame[-8:, -8:] = 255
    writer = VideoWriter(tmp_path / "overlay.mp4", 25)
    writer.write(frame)
    writer.close()
    _, found = cv2.VideoCapture(str(tmp_path / "overlay.mp4")).read()
    assert found.shape == (24, 42, 3)
    assert found[-4:, -4:].min() > 200


def test_a_video_that_cannot_be_written_is_named_with_its_rate(tmp_path: Path) -> None:
    pytest.importorskip("cv2", reason="OpenCV is not installed")
    writer = VideoWriter(tmp_path / "nowhere" / "overlay.mp4", 239.873)
    with pytest.raises(DataError, match=r"overlay\.mp4: OpenCV cannot write .* of 40 x 24 pixels at 239\.87 frames"):
        writer.write(np.zeros((24, 40, 3), np.uint8))


@pytest.mark.parametrize("source", ["camera:99999999999999999999", "camera:2147483648", "camera:²", "camera:-1"])
def test_what_is_no_number_of_a_camera_is_refused(source: str) -> None:
    pytest.importorskip("cv2", reason="OpenCV is not installed")
    with pytest.raises(DataError, match=rf"{source}: not found; expected .* or camera\[:N\]"), open_video(source):
        pass


def test_what_is_no_image_and_no_video(bundle, tmp_path: Path) -> None:
    pytest.importorskip("cv2", reason="OpenCV is not installed")
    (tmp_path / "README.md").write_text("words")
    with (
        Segmenter.open(bundle.directory, keys=[bundle.public]) as segmenter,
        pytest.raises(DataError, match=r"README\.md: no image by its name.*\(\.png, .*a folder.*\.mp4.*camera\[:N\]"),
    ):
        infer(segmenter, str(tmp_path / "README.md"), tmp_path / "out")


def test_a_video_at_a_steady_rate(bundle, tmp_path: Path) -> None:
    made = _film(tmp_path / "film.avi", 20, 40)
    with Segmenter.open(bundle.directory, keys=[bundle.public]) as segmenter:
        result = infer(segmenter, str(tmp_path / "film.avi"), tmp_path / "out", rate_hz=40)
        assert result["frames"] + result["dropped"] == len(made)
        assert result["rate_hz"] <= 60
        assert infer(segmenter, str(tmp_path / "film.avi"), tmp_path / "out", frames_max=3)["frames"] == 3


def test_what_is_late_is_dropped_and_what_is_early_waits() -> None:
    now, waits = 0.0, []

    def sleep(seconds: float) -> None:
        nonlocal now
        waits.append(seconds)
        now += seconds

    pace = Pace(10.0, clock=lambda: now, sleep=sleep)
    shown = []
    frame = 0
    for work in (0.01, 0.01, 0.35, 0.01, 0.01):
        late = pace.overdue()
        pace.dropped += late
        frame += late
        pace.wait()
        shown.append((frame, round(now, 6)))
        frame += 1
        now += work
    # frames are due at 0, 100, 200 ms …; the third takes 350 ms, in which frames 3 and 4 pass by
    assert shown == [(0, 0.0), (1, 0.1), (2, 0.2), (5, 0.55), (6, 0.6)]
    assert (pace.done, pace.dropped) == (5, 2)


def test_resizing_never_mixes_classes() -> None:
    class_map = np.random.default_rng(0).integers(0, 2, (7, 9), dtype=np.uint8) * 200
    assert set(np.unique(resize_class_map(class_map, 31, 17))) <= {0, 200}


def test_a_frame_that_fits_is_taken_as_it_is(bundle, contract) -> None:
    assert np.array_equal(fit_frame(bundle.frame, contract), bundle.frame)


@pytest.mark.parametrize(
    "wrong",
    [
        ["--threads", "0"],
        ["--threads", "5000000000"],
        ["--streams", "4097"],
        ["--budget-s", "nan"],
        ["--streams", "-1"],
        ["--samples-min", "9", "--samples-max", "5"],
    ],
)
def test_wrong_numbers_are_refused_at_once(wrong: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["bench", "bundle", *wrong])
    assert caught.value.code == 2
    assert wrong[1] in capsys.readouterr().err
