"""Images per second of a pipeline that is full: it is neither filled nor drained while it is timed."""

import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

from runtime.detector import Detector


@dataclass(frozen=True)
class Throughput:
    """What came out in so many seconds: images, and detections with their masks as run lengths."""

    images: int
    detections: int
    seconds: float

    @property
    def images_per_s(self) -> float:
        """The rate."""
        return self.images / self.seconds


def full_pipeline(
    detector: Detector, paths: Sequence[Path], seconds: float, warm_seconds: float, **options: Any
) -> Throughput:
    """Run image files to COCO run lengths, again and again, images of one size together.

    Args:
        detector: runs them.
        paths: of the images.
        seconds: that are timed.
        warm_seconds: before these.
        options: more of ``Detector.detect_files``.

    Raises:
        RuntimeError: an image has no result, or nothing is found in any.
    """
    results = detector.detect_files(cycle(paths), by_size=True, **options)

    def run(for_seconds: float) -> Throughput:
        start, num_images, num_found = time.monotonic(), 0, 0
        while time.monotonic() - start < for_seconds:
            result = next(results)
            if result.detections is None:
                raise RuntimeError(f"expected detections of every image, found {result.error}")
            num_images, num_found = num_images + 1, num_found + len(result.detections.rle())
        return Throughput(num_images, num_found, time.monotonic() - start)

    with closing(results):
        warm, found = run(warm_seconds), run(seconds)
    if not warm.detections + found.detections:
        raise RuntimeError("expected detections in the images, found none")
    return found
