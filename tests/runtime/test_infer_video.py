"""Videos through ``runtime.infer``: a line for each frame, a video with the same times and the same sound, tracks."""

import json
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runtime import Detector, infer
from runtime.detections import Detections
from runtime.draw import draw_detections
from runtime.inference.options import InferenceOptions
from runtime.inference.videos import detect_videos
from runtime.tracking import Tracker
from runtime.video.reader import Frame, VideoReader
from tests.runtime import fakes
from tests.runtime.processes import ROOT, ended, leftovers, lines_of, run, start, wait_for
from tests.runtime.videos import SIZE, Content, read_video, times_of, write_video

TIMES = times_of(30)


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A second and a half with a tone, frames unevenly apart, one of them dark."""
    return write_video(tmp_path_factory.mktemp("video") / "clip.mp4", TIMES, dark=7)


def _run(*arguments: object) -> int:
    return infer.main([str(a) for a in arguments])


@pytest.mark.parametrize("batch", [1, 4])
def test_a_video_is_detected_in_and_drawn_on(
    batch: int, video: Path, fake_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert _run(video, "--model", fake_model, "--out", tmp_path, "--batch", batch) == 0
    printed = capsys.readouterr().out
    assert "58 detections of score 0.3 or more in 30 frames\n" in printed
    assert f"wrote detections.jsonl, clip-detections.mp4 to {tmp_path}\n" in printed
    lines = lines_of(tmp_path)
    assert [line["frame"] for line in lines] == list(range(30))
    assert [round(1000 * line["time"]) for line in lines] == TIMES
    assert [len(line["detections"]) for line in lines] == [0 if i == 7 else 3 for i in range(30)]
    source, drawn = read_video(video), read_video(tmp_path / "clip-detections.mp4")
    assert drawn.times == source.times
    assert drawn.audio == source.audio
    assert len(drawn.audio) > 40
    _check_drawn(fake_model, source, drawn)
    assert leftovers(tmp_path) == []


def _check_drawn(model: Path, source: Content, drawn: Content) -> None:
    """Compare some frames with the overlay that they should be, as far as the codec keeps it."""
    with Detector(model, "onnxruntime") as detector:
        for index in (0, 7, 29):
            (found,) = detector([source.images[index]])
            expected = draw_detections(source.images[index], found.filter(0.3))
            assert drawn.images[index].shape == expected.shape
            assert np.abs(drawn.images[index].astype(int) - expected).mean() < 12
            other = draw_detections(source.images[index], found.filter(1.0))
            if index != 7:
                assert np.abs(drawn.images[index].astype(int) - other).mean() > 15


def test_lines_are_what_the_detector_finds(video: Path, fake_model: Path, tmp_path: Path) -> None:
    options = ("--no-overlays", "--json-score", 0.4, "--classes", "square")
    assert _run(video, "--model", fake_model, "--out", tmp_path, *options) == 0
    assert [p.name for p in tmp_path.iterdir()] == ["detections.jsonl"]
    with Detector(fake_model, "onnxruntime") as detector:
        for line, image in zip(lines_of(tmp_path), read_video(video).images):
            (found,) = detector([image])
            expected = json.loads(json.dumps(found[found.labels == 1].to_dict()))
            assert {k: v for k, v in line.items() if k not in ("file_name", "frame", "time")} == expected


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("--stride", 4), list(range(0, 30, 4))),
        (("--max-fps", 5), None),
        (("--stride", 100), [0]),
    ],
)
def test_some_frames_are_enough(
    options: tuple, expected: list[int] | None, video: Path, fake_model: Path, tmp_path: Path
) -> None:
    assert _run(video, "--model", fake_model, "--out", tmp_path, *options) == 0
    if expected is None:  # each at least 200 ms after the last
        expected, last = [], -1000
        for index, milliseconds in enumerate(TIMES):
            if milliseconds - last >= 200:
                expected.append(index)
                last = milliseconds
    assert [line["frame"] for line in lines_of(tmp_path)] == expected
    drawn = read_video(tmp_path / "clip-detections.mp4")
    assert [round(1000 * t) for t in drawn.times] == [TIMES[i] for i in expected]
    assert drawn.audio == read_video(video).audio


def test_a_pattern_stands_for_its_videos(
    video: Path, fake_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    for name in ("b.mp4", "a.mp4"):
        (tmp_path / name).write_bytes(video.read_bytes())
    options = ("--model", fake_model, "--out", tmp_path / "out", "--stride", 10)
    assert _run(tmp_path / "*.mp4", *options) == 0
    lines = lines_of(tmp_path / "out")
    assert [Path(line["file_name"]).name for line in lines] == ["a.mp4"] * 3 + ["b.mp4"] * 3
    assert sorted(p.name for p in (tmp_path / "out").glob("*.mp4")) == [
        "a-detections.mp4",
        "b-detections.mp4",
    ]
    assert _run(tmp_path / "*.mkv", *options) == 2
    assert "expected videos, found none" in capsys.readouterr().err


@pytest.mark.parametrize(("suffix", "made"), [(".mkv", ".mkv"), (".mov", ".mov"), (".avi", ".mkv")])
def test_containers(suffix: str, made: str, fake_model: Path, tmp_path: Path) -> None:
    times = list(range(0, 400, 40))
    codec = "mpeg4" if suffix == ".avi" else "libx264"
    source = write_video(tmp_path / f"a{suffix}", times, audio=suffix != ".avi", codec=codec)
    assert _run(source, "--model", fake_model, "--out", tmp_path / "out") == 0
    drawn = read_video(tmp_path / "out" / f"a-detections{made}")
    assert drawn.times == pytest.approx([t / 1000 for t in times], abs=2e-3)
    assert [line["time"] for line in lines_of(tmp_path / "out")] == pytest.approx(drawn.times, abs=2e-3)
    assert [data for _, data in drawn.audio] == [data for _, data in read_video(source).audio]


def test_times_that_go_backwards_are_counted_on(fake_model: Path, tmp_path: Path) -> None:
    """AVI has no times of frames: those of H.264 with frames between others come in the order of decoding."""
    source = write_video(tmp_path / "a.avi", list(range(0, 400, 40)), audio=False)
    assert _run(source, "--model", fake_model, "--out", tmp_path / "out") == 0
    times = [line["time"] for line in lines_of(tmp_path / "out")]
    assert len(times) == 10
    assert all(b > a for a, b in zip(times, times[1:]))
    drawn = read_video(tmp_path / "out" / "a-detections.mkv").times
    assert drawn == pytest.approx(times, abs=2e-3)


def test_an_odd_size_is_made_even(fake_model: Path, tmp_path: Path) -> None:
    """H.264 of 4:2:0 has even sizes alone; other codecs have odd ones."""
    import av

    source = tmp_path / "odd.mkv"
    with av.open(str(source), "w") as container:
        stream = container.add_stream("mjpeg", rate=25)
        stream.width, stream.height, stream.pix_fmt = 501, 333, "yuvj420p"
        for index in range(3):
            frame = av.VideoFrame.from_ndarray(fakes.random_image(333, 501, 3), format="bgr24")
            frame.pts = index
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    assert _run(source, "--model", fake_model, "--out", tmp_path / "out") == 0
    assert [i.shape for i in read_video(tmp_path / "out" / "odd-detections.mkv").images] == [
        (334, 502, 3)
    ] * 3
    assert {(line["height"], line["width"]) for line in lines_of(tmp_path / "out")} == {(333, 501)}


def test_a_video_that_was_held_sideways_is_turned(video: Path, fake_model: Path, tmp_path: Path) -> None:
    """The matrix in an MP4's track header says how a phone was held."""
    data = bytearray(video.read_bytes())
    place = data.index(b"tkhd") + 4 + 40
    one, minus = (65536).to_bytes(4, "big"), (-65536).to_bytes(4, "big", signed=True)
    none = bytes(4)
    data[place : place + 36] = (
        none + one + none + minus + none + none + none + none + (1 << 30).to_bytes(4, "big")
    )
    turned = tmp_path / "turned.mp4"
    turned.write_bytes(data)
    with VideoReader(str(video)) as reader, VideoReader(str(turned)) as other:
        upright, sideways = next(iter(reader)), next(iter(other))
    # A quarter clockwise, as FFmpeg's own player turns it.
    np.testing.assert_array_equal(sideways.image, np.rot90(upright.image, -1))
    assert _run(turned, "--model", fake_model, "--out", tmp_path / "out", "--stride", 20) == 0
    assert {(line["height"], line["width"]) for line in lines_of(tmp_path / "out")} == {SIZE[::-1]}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.mp4", None, "none.mp4: expected a video, found no file by that name"),
        ("bad.mp4", b"no video" * 100, "bad.mp4: expected a video that FFmpeg can open, found"),
        ("list.mp4", b"#EXTM3U\n#EXTINF:1,\n{video}\n", "list.mp4: expected a video that"),
        ("out/x/clip.mp4", b"", "expected a video that FFmpeg can open"),
    ],
)
def test_what_is_no_video_is_refused(
    name: str,
    content: bytes | None,
    message: str,
    video: Path,
    fake_model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
) -> None:
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if content is not None:
        path.write_bytes(content.replace(b"{video}", str(video).encode()))
    assert _run(path, "--model", fake_model, "--out", tmp_path / "out") == 2
    assert message in capsys.readouterr().err
    assert not list((tmp_path / "out").glob("*.*"))


def test_an_input_is_not_written_over(video: Path, fake_model: Path, tmp_path: Path, capsys: Any) -> None:
    source = tmp_path / "a.mp4"
    source.write_bytes(video.read_bytes())
    (tmp_path / "a-detections.mp4").symlink_to(source)
    assert _run(source, "--model", fake_model, "--out", tmp_path) == 2
    assert "expected a file that is not read, found the input" in capsys.readouterr().err
    assert source.read_bytes() == video.read_bytes()


def test_a_cut_video_gives_what_there_is(video: Path, fake_model: Path, tmp_path: Path) -> None:
    from tests.runtime.videos import write_video as write

    whole = write(tmp_path / "w.mkv", TIMES)
    cut = tmp_path / "cut.mkv"
    cut.write_bytes(whole.read_bytes()[: len(whole.read_bytes()) * 2 // 3])
    code = _run(cut, "--model", fake_model, "--out", tmp_path / "out")
    lines = lines_of(tmp_path / "out")
    assert code in (0, 2)
    assert 3 < len(lines) < 30
    assert len(read_video(tmp_path / "out" / "cut-detections.mkv").times) == len(lines)


class _Moving:
    """A detector that finds two objects which cross each other's way, one of them faint in between."""

    file_batch = 2
    metadata = fakes.metadata(masks="none")

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, images: list[np.ndarray]) -> list[Detections]:
        return [self._next() for _ in images]

    def _next(self) -> Detections:
        step = 3.0 * self.count
        faint = 8 <= self.count < 12
        self.count += 1
        boxes = np.array(
            [[step, 5, step + 30, 25], [64 - step / 2, 35, 94 - step / 2, 60], [70, 0, 75, 4]], np.float32
        )
        scores = np.array([0.9, 0.15 if faint else 0.8, 0.1], np.float32)
        order = np.argsort(-scores, kind="stable")
        labels = np.array([0, 1, 2], np.int32)
        return Detections(boxes[order], scores[order], labels[order], SIZE, fakes.CLASSES)


def test_objects_keep_their_number(video: Path, tmp_path: Path) -> None:
    options = InferenceOptions(tmp_path, track=True)
    report = detect_videos([str(video)], _Moving(), options)  # type: ignore[arg-type]
    assert report.exit_status == 0
    assert report.num_tracks == 2
    numbers: dict[str, list[int]] = {name: [] for name in fakes.CLASSES}
    for line in lines_of(tmp_path):
        for detection in line["detections"]:
            numbers[detection["category"]].append(detection["track_id"])
    assert numbers["circle"][0] == numbers["square"][0] == -1  # seen once
    for name in ("circle", "square"):
        assert len(set(numbers[name][1:])) == 1, name
        assert numbers[name][1] >= 0
    assert numbers["circle"][1] != numbers["square"][1]
    assert set(numbers["triangle"]) == {-1}  # too faint to begin a track


def test_tracks_are_those_of_the_package() -> None:
    """Against ByteTrack called by hand, frame by frame."""
    import supervision
    from trackers import ByteTrackTracker

    ours, detector = Tracker(0.3), _Moving()
    theirs = ByteTrackTracker(track_activation_threshold=0.3, high_conf_det_threshold=0.3)
    for index in range(20):
        (found,) = detector([np.zeros((*SIZE, 3))])
        boxes = supervision.Detections(xyxy=found.boxes.astype(float), confidence=found.scores.astype(float))
        expected = theirs.update(boxes, timestamp=index / 25)
        by_box = {
            tuple(box): number for box, number in zip(expected.xyxy.tolist(), expected.tracker_id.tolist())
        }
        tracked = ours(found, index / 25)
        assert [
            by_box[tuple(box)] for box in tracked.boxes.astype(float).tolist()
        ] == tracked.track_ids.tolist()
    assert len(ours(found[[]], 1.0)) == 0


def test_without_the_packages_it_says_what_to_install(
    video: Path,
    fake_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    for package, options in (("trackers", ["--track"]), ("av", [])):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, package, None)
            assert _run(video, "--model", fake_model, "--out", tmp_path, *options) == 2
        assert f"`pip install {package}`" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def long_video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_video(tmp_path_factory.mktemp("long") / "long.mp4", times_of(150), dark=20)


def _options(model: Path, out: Path) -> tuple:
    return ("--model", model, "--out", out, "--batch", 4, "--track", "--threads", 1)


@pytest.fixture(scope="module")
def whole(
    long_video: Path, fake_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[bytes, Content]:
    """What an uninterrupted run writes."""
    out = tmp_path_factory.mktemp("whole")
    assert infer.main([str(a) for a in (long_video, *_options(fake_model, out))]) == 0
    return (out / "detections.jsonl").read_bytes(), read_video(out / "long-detections.mp4")


@pytest.mark.parametrize("after", [(1, 50), (100,)])
def test_a_killed_run_goes_on(
    after: tuple[int, ...], long_video: Path, fake_model: Path, whole: tuple[bytes, Content], tmp_path: Path
) -> None:
    path = tmp_path / "detections.jsonl"
    for number in after:
        process = start("runtime.infer", long_video, *_options(fake_model, tmp_path), "--resume")
        wait_for(lambda number=number: path.exists() and path.read_bytes().count(b"\n") >= number, process)
        process.send_signal(signal.SIGKILL)
        assert ended(process)[0] == -signal.SIGKILL
        assert not (tmp_path / "long-detections.mp4").exists()
    code, printed, said = run("runtime.infer", long_video, *_options(fake_model, tmp_path), "--resume")
    assert code == 0, said
    assert "of them were finished before" in printed or after == (1,)
    lines, content = whole
    assert path.read_bytes() == lines
    drawn = read_video(tmp_path / "long-detections.mp4")
    assert drawn.times == content.times
    assert drawn.audio == content.audio
    # The encoder shares its work among threads: not to the last bit.
    assert max(np.abs(a.astype(int) - b).mean() for a, b in zip(drawn.images, content.images)) < 1
    assert leftovers(tmp_path) == []


def test_a_signal_leaves_a_whole_video(long_video: Path, fake_model: Path, tmp_path: Path) -> None:
    path = tmp_path / "detections.jsonl"
    process = start("runtime.infer", long_video, *_options(fake_model, tmp_path))
    wait_for(lambda: path.exists() and path.read_bytes().count(b"\n") >= 20, process)
    process.send_signal(signal.SIGINT)
    code, printed, said = ended(process)
    assert code == 130, said
    assert "Traceback" not in said
    lines = lines_of(tmp_path)
    assert f"interrupted by SIGINT: {len(lines)} frames finished, in" in said
    assert 20 <= len(lines) < 150
    assert len(read_video(tmp_path / "long-detections.mp4").times) == len(lines)
    assert leftovers(tmp_path) == []


def test_another_video_is_not_gone_on_with(
    long_video: Path, video: Path, fake_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert _run(video, *_options(fake_model, tmp_path)) == 0
    before = (tmp_path / "detections.jsonl").read_bytes()
    assert _run(long_video, *_options(fake_model, tmp_path), "--resume") == 2
    assert "name the videos and the options of the run that was interrupted" in capsys.readouterr().err
    assert (tmp_path / "detections.jsonl").read_bytes() == before


class _Slow:
    """A detector that takes longer than a frame of a camera."""

    file_batch = 8
    metadata = fakes.metadata(masks="none")

    def __call__(self, images: list[np.ndarray]) -> list[Detections]:
        assert len(images) == 1
        time.sleep(0.05)
        none = np.zeros(0, np.float32)
        return [
            Detections(np.zeros((0, 4), np.float32), none, none.astype(np.int32), (48, 64), fakes.CLASSES)
        ]


def test_of_a_live_source_the_latest_frame_comes_and_others_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A virtual camera of FFmpeg at 100 frames per second for a second."""
    source = "testsrc=size=64x48:rate=100:duration=1,realtime"

    def reader(_: str, options: InferenceOptions) -> VideoReader:
        return VideoReader(source, format="lavfi", stride=options.stride, max_fps=options.max_fps)

    monkeypatch.setattr("runtime.inference.videos._reader", reader)
    report = detect_videos(["camera:0"], _Slow(), InferenceOptions(tmp_path))  # type: ignore[arg-type]
    lines = lines_of(tmp_path)
    assert 5 <= report.num_frames == len(lines) <= 25
    assert report.num_frames + report.num_dropped == 100
    numbers = [line["frame"] for line in lines]
    assert numbers == sorted(set(numbers))
    assert numbers[-1] == 99
    assert {line["file_name"] for line in lines} == {"camera:0"}
    assert [p.name for p in report.videos] == ["camera0-detections.mkv"]
    with pytest.raises(ValueError, match="--resume camera:0: expected video files, found a live source"):
        detect_videos(["camera:0"], _Slow(), InferenceOptions(tmp_path, resume=True))  # type: ignore[arg-type]


_SENDER = """
import sys, time, av, numpy as np
for _ in range(100):
    try:
        container = av.open(sys.argv[1], "w", format="rtsp", options={"rtsp_transport": "tcp"})
        stream = container.add_stream("libx264", rate=25, options={"tune": "zerolatency", "g": "5"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for index in range(40):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 5 * index, np.uint8), format="bgr24")
            frame.pts = index
            container.mux(stream.encode(frame))
            time.sleep(0.01)
        container.mux(stream.encode(None))
        container.close()
        break
    except OSError:
        time.sleep(0.1)
"""


@pytest.fixture
def sender() -> Iterator[tuple[str, subprocess.Popen]]:
    """A process that sends frames by RTSP to whoever listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"rtsp://127.0.0.1:{free.getsockname()[1]}/camera"
    process = subprocess.Popen([sys.executable, "-c", _SENDER, address], cwd=ROOT)
    try:
        yield address, process
    finally:
        process.kill()
        process.wait(20)


def test_frames_come_by_rtsp(sender: tuple[str, subprocess.Popen]) -> None:
    """FFmpeg's own sender, to a reader that listens: there is no RTSP server among PyPI's packages."""
    options = {"rtsp_flags": "listen", "rtsp_transport": "tcp", "listen_timeout": "20"}
    with VideoReader(sender[0], format="rtsp", options=options) as reader:
        frames = list(reader)
    assert reader.is_live
    assert len(frames) + reader.num_dropped == reader.num_read > 30
    assert all(isinstance(frame, Frame) for frame in frames)
    means = [frame.image.mean() for frame in frames]
    assert means == sorted(means)
    assert means[-1] > 150


def test_a_stream_that_nobody_sends_is_refused(fake_model: Path, tmp_path: Path, capsys: Any) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and does not listen
        source = f"rtsp://127.0.0.1:{taken.getsockname()[1]}/x"
        assert _run(source, "--model", fake_model, "--out", tmp_path) == 2
    assert re.search("expected a stream or a camera that FFmpeg can open, found", capsys.readouterr().err)
    assert _run("https://127.0.0.1/clip.mp4", "--model", fake_model, "--out", tmp_path) == 2
    assert "found another address; download it" in capsys.readouterr().err
    assert _run("camera:77", "--model", fake_model, "--out", tmp_path) == 2
    assert "camera:77: expected a stream or a camera" in capsys.readouterr().err
