"""Videos, streams and cameras through a detector: a line of JSON for each frame, and a video with what was found."""

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Optional

from runtime import interrupts
from runtime.coco_writer import coco_results
from runtime.console import say, status
from runtime.detections import Detections
from runtime.detector import Detector
from runtime.draw import draw_detections
from runtime.files import make_folder, refuse_inputs, remove_abandoned, whole_file
from runtime.inference.json_lines import LINES, JsonLinesWriter
from runtime.inference.options import InferenceOptions, chosen_labels
from runtime.inference.overlays import numbered_names
from runtime.inference.report import EXIT_ERROR, EXIT_OK, shown
from runtime.inference.resuming import ResumeError, check_same, whole_lines
from runtime.interop.coco import detections_from_rows
from runtime.interrupts import Interrupted, held, released
from runtime.messages import counted, in_utf8, printable
from runtime.tracking import Tracker
from runtime.video.reader import Frame, VideoReader
from runtime.video.writer import VideoWriter, suffix_of

# Beside the input's name, so that no video is written over its source.
ENDING = "-detections"
# What ends a run with a message; the rest is a defect of ours.
_ENDS = (KeyboardInterrupt, OSError, ValueError, RuntimeError, MemoryError)
_OF_A_RESULT = ("image_id", "file_name")


@dataclass
class VideoReport:
    """What was done.

    Attributes:
        num_frames, num_detections, num_tracks: over all videos; detections and tracks of the score that is drawn.
        num_resumed: frames that an earlier run had finished.
        num_dropped: frames of live sources that nobody had time for.
        videos: those that were written.
        seconds: in all.
        end: what ended the run before it was through; None where nothing did.
    """

    num_frames: int = 0
    num_detections: int = 0
    num_tracks: int = 0
    num_resumed: int = 0
    num_dropped: int = 0
    videos: list[Path] = field(default_factory=list)
    seconds: float = 0.0
    end: Optional[BaseException] = None

    @property
    def exit_status(self) -> int:
        """0; 2 after an error; 128 + its number after a signal."""
        number = interrupts.received()
        if number is not None:
            return Interrupted(number).exit_status
        return EXIT_OK if self.end is None else EXIT_ERROR


def detect_videos(sources: Sequence[str], detector: Detector, options: InferenceOptions) -> VideoReport:
    """Detect in every frame of videos, one after the other; write the JSON lines, and videos that are drawn on.

    Args:
        sources: files, ``rtsp://...``, ``camera:0``.
        detector: which detects.
        options: see there.

    Returns:
        What was done; of a run that ended early, what of it was finished, and why it ended.

    Raises:
        OSError, ValueError, RuntimeError: nothing could be done: no such video, PyAV or trackers not installed.
    """
    run = _Run(sources, detector, options)
    make_folder(options.out)
    remove_abandoned(options.out)
    start = time.perf_counter()
    with held():
        run.write_all()
    run.report.seconds = time.perf_counter() - start
    return run.report


def print_video_report(report: VideoReport, options: InferenceOptions) -> None:
    """Print the totals, and on standard error what ended the run early."""
    line = (
        f"{counted(report.num_detections, 'detection')} of score {options.score:g} or more in "
        f"{counted(report.num_frames, 'frame')}"
    )
    if options.track:
        line += f", {counted(report.num_tracks, 'track')}"
    print(line)
    if report.num_resumed:
        print(f"resumed: {report.num_resumed} of them were finished before")
    new = report.num_frames - report.num_resumed
    if new:
        print(f"{new / max(report.seconds, 1e-9):.2f} frames/s")
    if report.num_dropped:
        print(
            f"{report.num_dropped} frames of live sources dropped, which came faster than they were detected in"
        )
    names = "".join(f", {path.name}" for path in report.videos)
    if report.num_frames:
        print(printable(f"wrote {LINES}{names} to {options.out}"))
    number = interrupts.received()
    if number is not None:
        say(
            f"{Interrupted(number)}: {counted(report.num_frames, 'frame')} finished, in {options.out / LINES}"
        )
    elif report.end is not None:
        say(f"error: {report.end or type(report.end).__name__}")
        say(f"ended early: {counted(report.num_frames, 'frame')} finished, in {options.out / LINES}")


class _Run:
    """One run: its lines, and its videos."""

    def __init__(self, sources: Sequence[str], detector: Detector, options: InferenceOptions) -> None:
        self._sources, self._detector, self._options = sources, detector, options
        self._chosen = chosen_labels(detector.metadata.classes, options.classes)
        self._names = numbered_names([_as_path(source) for source in sources])
        self.report = VideoReport()
        self._lines: JsonLinesWriter
        self._path, self._place = options.out / LINES, 0
        earlier = (line.get("file_name") for line in self._earlier_lines())
        self._num_earlier, self._kept = _kept(earlier, detector.file_batch)
        self._before = self._earlier_lines()

    def write_all(self) -> None:
        """Detect in all sources, and write; what ends it is in the report once something is finished."""
        with JsonLinesWriter(self._options.out, least=max(1, self._num_earlier)) as self._lines:
            try:
                for source, name in zip(self._sources, self._names):
                    with ExitStack() as stack:
                        self._write(source, name, stack)
                self._check_end()
            except ResumeError:
                raise
            except _ENDS as error:
                if not self.report.num_frames:
                    raise
                self.report.end = error

    def _write(self, source: str, name: str, stack: ExitStack) -> None:
        options = self._options
        with released():
            reader = stack.enter_context(_reader(source, options))
        if options.resume and reader.is_live:
            raise ValueError(
                f"--resume {source}: expected video files, found a live source; leave --resume out"
            )
        path = options.out / f"{name}{ENDING}{suffix_of(source)}"
        if not reader.is_live:
            refuse_inputs(path, [source])
        writer = None
        if options.overlays:
            writer = stack.enter_context(_whole_video(path, reader, self.report))
        tracker = Tracker(options.score) if options.track else None
        label = in_utf8(source) if reader.is_live else shown(Path(source))
        self._detect(_Video(label, reader, writer, tracker))

    def _detect(self, video: "_Video") -> None:
        before = self.report.num_frames
        try:
            with status(f"detecting in {video.label}") as change:
                for frames in self._batches(video):
                    self._add(frames, video)
                    change(_progress(video, self.report.num_frames - before))
        finally:
            self.report.num_dropped += video.reader.num_dropped
            self.report.num_tracks += len(video.track_ids)

    def _batches(self, video: "_Video") -> Iterator[list[Frame]]:
        """Yield frames that run together: those of a batch of the detector, of a live source one."""
        size = 1 if video.reader.is_live else self._detector.file_batch
        frames = video.frames()
        while True:
            with released():
                batch = list(islice(frames, size))
            if not batch:
                return
            yield batch

    def _check_end(self) -> None:
        after = next(self._before, None)
        if after is not None:
            raise ResumeError(
                f"--resume {self._path}: expected {counted(self._place, 'frame')}, found one more of "
                f"{after.get('file_name')}; name the videos and the options of the run that was interrupted, or leave "
                "--resume out: the run then begins anew"
            )

    def _earlier_lines(self) -> Iterator[dict]:
        return whole_lines(self._path) if self._options.resume else iter(())

    def _add(self, frames: list[Frame], video: "_Video") -> None:
        lines = before = list(islice(self._before, len(frames)))
        for frame, line in zip(frames, before):
            _check_frame(self._path, line, frame, video.label)
        if self._place + len(frames) <= self._kept:
            self.report.num_resumed += len(frames)
        else:
            lines = self._detected(frames, video)
            for old, new in zip(before, lines):
                check_same(self._path, old, new)
        for frame, line in zip(frames, lines):
            self._finish(frame, line, video)

    def _detected(self, frames: list[Frame], video: "_Video") -> list[dict]:
        """Return the lines of frames, without tracks."""
        with released():
            found = self._detector([frame.image for frame in frames])
        return [
            _line(video.label, frame, self._chosen.of(detections).filter(self._options.json_score))
            for frame, detections in zip(frames, found)
        ]

    def _finish(self, frame: Frame, line: dict, video: "_Video") -> None:
        """Write a frame's line and its picture, both of what the line has, so that a resumed run's are the same."""
        self._place += 1
        rows = [_row(detection) for detection in line["detections"]]
        for row in rows:
            row.pop("track_id", None)
        size = (line["height"], line["width"])
        found = detections_from_rows(rows, size, self._detector.metadata)
        if video.tracker is not None:
            found = video.tracker(found, frame.seconds)
            for detection, track_id in zip(line["detections"], found.track_ids.tolist()):
                detection["track_id"] = track_id
        drawn = found.filter(self._options.score)
        if video.writer is not None:
            video.writer.write(frame, draw_detections(frame.image, drawn))
        self._lines.add_line(line)
        self.report.num_frames += 1
        self.report.num_detections += len(drawn)
        if drawn.track_ids is not None:
            video.track_ids.update(t for t in drawn.track_ids.tolist() if t >= 0)


@dataclass(eq=False)
class _Video:
    """A source while it is read."""

    label: str
    reader: VideoReader
    writer: Optional[VideoWriter]
    tracker: Optional[Tracker]
    track_ids: set[int] = field(default_factory=set)

    def frames(self) -> Iterator[Frame]:
        """Yield the frames; audio in between is copied."""
        for item in self.reader:
            if isinstance(item, Frame):
                yield item
            elif self.writer is not None:
                self.writer.copy(item)


class _NoFramesError(Exception):
    """A video of a source without frames is none."""


@contextmanager
def _whole_video(path: Path, reader: VideoReader, report: VideoReport) -> Iterator[VideoWriter]:
    """Write a video that takes its name when it is whole; what ends a run ends the video with what is in it."""
    end: Optional[BaseException] = None
    with suppress(_NoFramesError), whole_file(path) as file:
        writer = VideoWriter(file, path.suffix, reader)
        try:
            yield writer
        except _ENDS as error:
            if not writer.num_frames or isinstance(error, ResumeError):
                raise
            end = error
        if not writer.num_frames:
            raise _NoFramesError
        writer.close()
    if writer.num_frames:
        report.videos.append(path)
    if end is not None:
        raise end


def _reader(source: str, options: InferenceOptions) -> VideoReader:
    return VideoReader(source, stride=options.stride, max_fps=options.max_fps, with_audio=options.overlays)


def _as_path(source: str) -> Path:
    """Return a path after which a source's files are called."""
    name = source.rstrip("/").rpartition("/")[2] if "://" in source else source.replace(":", "")
    return Path(name or "stream")


def _line(label: str, frame: Frame, found: Detections) -> dict[str, Any]:
    height, width = found.image_size
    rows = [
        {"category": name, **{k: v for k, v in row.items() if k not in _OF_A_RESULT}}
        for name, row in zip(found.names, coco_results(found, 0, ""))
    ]
    return {
        "file_name": label,
        "frame": frame.number,
        "time": round(frame.seconds, 6),
        "width": width,
        "height": height,
        "detections": rows,
    }


def _row(detection: dict) -> dict:
    return {key: value for key, value in detection.items() if key != "category"}


def _kept(names: Iterable[str], batch: int) -> tuple[int, int]:
    """Return how many lines there are, and how many stay: whole batches, without the last, which is made again."""
    last, kept, begin, number, video = 0, 0, 0, 0, None
    for number, name in enumerate(names, 1):
        if name != video:  # the first line of a video
            begin, video = number - 1, name
            last, kept = (begin, last) if begin > last else (last, kept)
        if (number - begin) % batch == 0:
            last, kept = number, last
    return number, kept


def _check_frame(path: Path, line: dict, frame: Frame, label: str) -> None:
    expected = {"file_name": label, "frame": frame.number, "time": round(frame.seconds, 6)}
    found = {key: line.get(key) for key in expected}
    if found != expected:
        raise ResumeError(
            f"--resume {path}: expected {label}, frame {frame.number} at {frame.seconds:.3f} s, found "
            f"{found['file_name']}, frame {found['frame']} at {found['time']} s; name the videos and the options "
            "of the run that was interrupted, or leave --resume out: the run then begins anew"
        )


def _progress(video: _Video, number: int) -> str:
    total = video.reader.num_frames
    return f"detecting in {video.label}: {counted(number, 'frame')}" + (f" of {total}" if total else "")
