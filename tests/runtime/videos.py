"""Small videos for tests, and what is in them, read by PyAV alone."""

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Optional

import av
import numpy as np

from tests.runtime import fakes

SIZE = (64, 96)
MILLISECOND = Fraction(1, 1000)
SAMPLES = 1024
RATE = 48000


@dataclass(frozen=True, eq=False)
class Content:
    """What a video has: frames' times in s, their images, and the bytes of its audio packets with their times."""

    times: list[float]
    images: list[np.ndarray]
    audio: list[tuple[float, bytes]]


def times_of(number: int, seed: int = 0) -> list[int]:
    """Return so many times that are not evenly apart, ms."""
    gaps = np.random.default_rng(seed).integers(15, 90, number - 1)
    return [0, *np.cumsum(gaps).tolist()]


def write_video(
    path: Path,
    times: list[int],
    *,
    size: tuple[int, int] = SIZE,
    audio: bool = True,
    dark: Optional[int] = None,
    codec: str = "libx264",
) -> Path:
    """Write H.264 with AAC; frame ``dark`` is black."""
    with av.open(str(path), "w") as container:
        video = container.add_stream(codec, rate=25, options={"crf": "8"} if codec == "libx264" else {})
        video.height, video.width = size
        video.pix_fmt = "yuv420p"
        if path.suffix != ".avi":  # whose frames are evenly apart
            video.codec_context.time_base = MILLISECOND
        sound = container.add_stream("aac", rate=RATE, layout="mono") if audio else None
        for index, time in enumerate(times):
            image = np.zeros((*size, 3), np.uint8) if index == dark else fakes.random_image(*size, 3)
            frame = av.VideoFrame.from_ndarray(image, format="bgr24")
            frame.pts = index if path.suffix == ".avi" else time
            if path.suffix != ".avi":
                frame.time_base = MILLISECOND
            container.mux(video.encode(frame))
        for index in range((times[-1] * RATE // 1000 // SAMPLES + 1) if audio else 0):
            tone = (np.sin(np.arange(SAMPLES) / 20) * 8000).astype(np.int16)[None]
            samples = av.AudioFrame.from_ndarray(tone, format="s16", layout="mono")
            samples.sample_rate, samples.pts, samples.time_base = RATE, index * SAMPLES, Fraction(1, RATE)
            container.mux(sound.encode(samples))
        for stream in (video, sound):
            if stream is not None:
                container.mux(stream.encode(None))
    return path


def read_video(path: Path) -> Content:
    """Read a video back."""
    with av.open(str(path)) as container:
        frames = [
            (float(frame.pts * frame.time_base), frame.to_ndarray(format="bgr24"))
            for frame in container.decode(video=0)
        ]
        sounds = bool(container.streams.audio)
    packets = []
    if sounds:
        with av.open(str(path)) as container:
            packets = [
                (float(packet.pts * packet.time_base), bytes(packet))
                for packet in container.demux(audio=0)
                if packet.pts is not None
            ]
    return Content([time for time, _ in frames], [image for _, image in frames], packets)
