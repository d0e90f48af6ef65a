"""A video of frames that were drawn on: their times are kept, and audio is copied as it is."""

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import IO, Any, Optional

import numpy as np

from runtime.video.package import load_av
from runtime.video.reader import Frame, VideoReader

# What holds frames at any times, and the audio that files of that kind have.
_FORMATS = {".mp4": "mp4", ".m4v": "mp4", ".mov": "mov", ".mkv": "matroska"}
_OTHER = ".mkv"
# Of x264: near the original, and fast.
_QUALITY = {"crf": "20", "preset": "veryfast"}
_BITS_PER_SECOND = 8_000_000  # where there is no x264


def suffix_of(source: str) -> str:
    """Return the suffix of a video made of a source: its own where such a file holds what is written."""
    suffix = Path(source).suffix.lower()
    return suffix if suffix in _FORMATS else _OTHER


class VideoWriter:
    """H.264 in MP4, MOV or Matroska, written into a file that is open."""

    def __init__(self, file: IO[bytes], suffix: str, reader: VideoReader) -> None:
        """Begin a video.

        Args:
            file: that can be sought in.
            suffix: of ``suffix_of``.
            reader: whose frames and audio are written.
        """
        self._av, self._reader = load_av(), reader
        self._container = self._av.open(file, "w", format=_FORMATS[suffix])
        self._stream: Any = None
        self._audio: dict[int, Any] = {}
        self._waiting: list[Any] = []
        self._last_pts: Optional[int] = None
        self.num_frames = 0

    def write(self, frame: Frame, image: np.ndarray) -> None:
        """Write a frame's drawn image, (H, W, 3) uint8 BGR, of the same size each time.

        Raises:
            OSError: it cannot be written.
            ValueError: it cannot be encoded.
        """
        image = _even(image)
        if self._stream is None:
            self._begin(image.shape[1], image.shape[0])
        encoded = self._av.VideoFrame.from_ndarray(image, format="bgr24")
        # A damaged file may have the same time twice, which no encoder takes.
        pts = frame.pts if self._last_pts is None else max(frame.pts, self._last_pts + 1)
        encoded.pts, encoded.time_base, self._last_pts = pts, self._reader.stream.time_base, pts
        self._mux(self._stream.encode(encoded))
        self.num_frames += 1

    def copy(self, packet: Any) -> None:
        """Write a packet of an audio stream as it is."""
        if packet.dts is None:  # the end of its stream
            return
        if self._stream is None:
            self._waiting.append(packet)
            return
        packet.stream = self._audio[packet.stream.index]
        self._container.mux(packet)

    def close(self) -> None:
        """Write the end; a video without frames is left without."""
        if self._stream is not None:
            self._mux(self._stream.encode(None))
        self._container.close()

    def _begin(self, width: int, height: int) -> None:
        codec = "libx264" if "libx264" in self._av.codecs_available else "mpeg4"
        rate = self._reader.stream.average_rate or Fraction(25)
        stream = self._container.add_stream(codec, rate=rate)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        if codec == "libx264":
            stream.options = _QUALITY
        else:
            stream.bit_rate = _BITS_PER_SECOND
        stream.codec_context.time_base = self._reader.stream.time_base
        for audio in self._reader.audio:
            self._audio[audio.index] = self._container.add_stream_from_template(audio)
        self._stream = stream
        for packet in self._waiting:
            self.copy(packet)
        self._waiting.clear()

    def _mux(self, packets: Sequence[Any]) -> None:
        for packet in packets:
            self._container.mux(packet)


def _even(image: np.ndarray) -> np.ndarray:
    """Return the image with an even height and width, which the colours of H.264 need."""
    height, width = image.shape[:2]
    return (
        np.pad(image, ((0, height % 2), (0, width % 2), (0, 0)), "edge") if height % 2 or width % 2 else image
    )
