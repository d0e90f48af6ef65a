"""Frames of a video file, a stream or a camera, decoded in a thread while others are looked at."""

import math
import queue
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Optional, Union

import numpy as np

from runtime.closing import Closing
from runtime.messages import said
from runtime.video.package import load_av

LIVE_SCHEMES = ("rtsp", "rtsps")
CAMERA = "camera:"
# Of a stream that says nothing: to connect, and between two packets.
SECONDS = 10.0
# Frames that are decoded ahead; a 1080p one takes 6 MB.
_AHEAD = 8
_POLL_SECONDS = 0.1
_USUAL_RATE = 25.0
# What a file may have FFmpeg open: itself. A playlist in it could lead anywhere.
_FILE_PROTOCOLS = "file"
_LIVE_PROTOCOLS = "rtsp,rtsps,rtp,srtp,udp,tcp,tls,crypto"


@dataclass(frozen=True, eq=False)
class Frame:
    """One frame.

    Attributes:
        number: of the frame in its source, from 0; those that are left out count.
        seconds: when it is shown.
        pts: the same in the source's own unit.
        image: (H, W, 3) uint8 BGR, upright.
    """

    number: int
    seconds: float
    pts: int
    image: np.ndarray


@dataclass(frozen=True)
class _Opened:
    """How FFmpeg is asked for a source."""

    name: str
    is_live: bool
    format: Optional[str] = None
    options: dict[str, str] = field(default_factory=dict)


class VideoReader(Closing):
    """Frames, and where they are asked for the packets of other streams, in the file's order.

    Of a file every frame comes. Of a live source the latest does: those that nobody has asked for in time are dropped,
    and counted.
    """

    def __init__(
        self,
        source: str,
        *,
        stride: int = 1,
        max_fps: Optional[float] = None,
        with_audio: bool = False,
        format: Optional[str] = None,
        options: Optional[dict[str, str]] = None,
    ) -> None:
        """Open a source.

        Args:
            source: a file, ``rtsp://...``, or ``camera:0``.
            stride: every so manieth frame.
            max_fps: frames come at least 1 / max_fps seconds apart; None: as they are.
            with_audio: yield the packets of audio streams too (``av.Packet``); not of live sources.
            format, options: of FFmpeg, for a source that it has to be told about; such a source is live.

        Raises:
            RuntimeError: PyAV is not installed.
            OSError: there is no such source, or it does not answer.
            ValueError: it has no video.
        """
        self._av = load_av()
        opened = _opened(source) if format is None else _Opened(source, True, format, options or {})
        self.source, self.is_live = source, opened.is_live
        self.container = self._open(opened)
        if not self.container.streams.video:
            self.container.close()
            raise ValueError(f"{source}: expected a video, found none in it; name another file")
        self.stream = self.container.streams.video[0]
        self.stream.thread_type = "AUTO"
        self.audio = list(self.container.streams.audio) if with_audio and not self.is_live else []
        self.num_read = self.num_dropped = 0
        self._seconds = -math.inf
        self._stride, self._gap = stride, 1 / max_fps if max_fps else 0.0
        self._items: queue.Queue = queue.Queue(1 if self.is_live else _AHEAD)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._feed, daemon=True, name="video")
        self._thread.start()

    def __iter__(self) -> Iterator[Union[Frame, Any]]:
        """Yield frames and packets.

        Raises:
            OSError: the source cannot be read on.
        """
        while True:
            item = self._items.get()
            if item is None:
                return
            if isinstance(item, BaseException):
                raise OSError(
                    f"{self.source}: expected a video that can be read on, found {said(item)} after "
                    f"{self.num_read} frames"
                ) from item
            yield item

    @property
    def frame_rate(self) -> Optional[float]:
        """Frames per second on average, as the source says; None where it does not."""
        rate = self.stream.average_rate
        return float(rate) if rate else None

    @property
    def num_frames(self) -> Optional[int]:
        """How many frames there are, as the source says; None where it does not."""
        return self.stream.frames or None

    def close(self) -> None:
        """Stop reading."""
        self._stopped.set()
        self._thread.join(2 * SECONDS)
        if not self._thread.is_alive():  # else its container is in use
            self.container.close()

    def _open(self, opened: _Opened) -> Any:
        try:
            return self._av.open(
                opened.name,
                format=opened.format,
                options=opened.options,
                timeout=SECONDS if opened.is_live else None,
            )
        except (OSError, ValueError) as error:  # PyAV's errors are kinds of both
            kind = "a stream or a camera" if opened.is_live else "a video"
            # Without the number, which means nothing to people.
            found = getattr(error, "strerror", None) or said(error)
            raise OSError(
                f"{self.source}: expected {kind} that FFmpeg can open, found: {found}; check its name"
            ) from error

    def _feed(self) -> None:
        """Put what comes into the queue; at the end None, or what went wrong."""
        end: Optional[BaseException] = None
        try:
            last = -math.inf
            for packet in self.container.demux(self.stream, *self.audio):
                if self._stopped.is_set():
                    return
                if packet.stream is not self.stream:
                    self._put(packet)
                    continue
                for frame in packet.decode():
                    last = self._take(frame, last)
        except Exception as error:  # in the thread that reads it is raised again
            end = error
        self._put(end)

    def _take(self, frame: Any, last: float) -> float:
        """Put a frame that is wanted into the queue; return the time of the last one that was."""
        number, rate = self.num_read, self.frame_rate or _USUAL_RATE
        self.num_read += 1
        pts = frame.pts
        seconds = number / rate if pts is None else float(pts * frame.time_base)
        if seconds <= self._seconds:  # AVI has no times, and damaged files the same ones
            pts, seconds = None, self._seconds + 1 / rate
        self._seconds = seconds
        # Times of frames are rounded: those that are just as far apart as asked are far enough.
        if number % self._stride or (self._gap and seconds - last < self._gap * (1 - 1e-3)):
            return last
        if pts is None:
            pts = round(seconds / self.stream.time_base)
        self._put(Frame(number, seconds, pts, _upright(frame)))
        return seconds

    def _put(self, item: Any) -> None:
        """Put into the queue, once there is room; of a live source, in the place of the frame that waits there."""
        replaces = self.is_live and isinstance(item, Frame)
        while not self._stopped.is_set():
            try:
                self._items.put(item, timeout=0 if replaces else _POLL_SECONDS)
                return
            except queue.Full:
                if replaces:
                    self._drop_waiting()

    def _drop_waiting(self) -> None:
        try:
            self._items.get_nowait()
            self.num_dropped += 1
        except queue.Empty:
            pass


def _opened(source: str) -> _Opened:
    scheme = source.partition("://")[0].lower() if "://" in source else ""
    if scheme in LIVE_SCHEMES:
        # TCP: over UDP, what a full network loses makes torn frames.
        return _Opened(source, True, options={"rtsp_transport": "tcp", "protocol_whitelist": _LIVE_PROTOCOLS})
    if source.startswith(CAMERA):
        device = source[len(CAMERA) :]
        return _Opened(f"/dev/video{device}" if device.isdigit() else device, True, "v4l2")
    if "://" in source:
        raise ValueError(
            f"{source}: expected a video file, {CAMERA}0 or {LIVE_SCHEMES[0]}://, found another address; download it"
        )
    if not Path(source).is_file():
        raise FileNotFoundError(f"{source}: expected a video, found no file by that name; check the path")
    # An address in its name stays a name.
    return _Opened(f"file:{source}", False, options={"protocol_whitelist": _FILE_PROTOCOLS})


def _upright(frame: Any) -> np.ndarray:
    """Return the pixels as a player shows them: phones write how they were held beside the frames."""
    image = frame.to_ndarray(format="bgr24")
    turns = round(getattr(frame, "rotation", 0) / 90) % 4
    return np.ascontiguousarray(np.rot90(image, turns)) if turns else image
