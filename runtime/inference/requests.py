"""Images as lines of JSON on standard input, answered in their order by lines of JSON on standard output.

A request is ``{"id": ..., "image": "<base64 of an image file>"}``. Its answer has the ``id``, ``width`` and ``height``,
and ``detections``; or, of a line that cannot be answered, the ``id``, the number of the ``line``, and ``error``.
"""

import base64
import binascii
import json
import queue
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Any, Optional

import numpy as np

from runtime.detections import Detections
from runtime.detector import Detector
from runtime.documents import parsed
from runtime.host.preprocess import check_image, network_size
from runtime.images import BYTES_VARIABLE, MAX_BYTES, decode_image
from runtime.inference.options import InferenceOptions, chosen_labels
from runtime.interop.coco import dict_from_detections
from runtime.interrupts import released
from runtime.messages import said, shown
from runtime.reading import limit

EXIT_OK, EXIT_BAD_LINES = 0, 1
# Of JSON around an image.
_ROOM = 1 << 16
_CHUNK = 1 << 20


@dataclass(frozen=True, eq=False)
class Request:
    """A line.

    Attributes:
        number: of the line, from 1.
        identity: the ``id``; None where the line has none.
        image: (H, W, 3) uint8 BGR pixels; None with an error.
        error: why it cannot be answered.
    """

    number: int
    identity: Any = None
    image: Optional[np.ndarray] = None
    error: str = ""


@dataclass
class Answered:
    """What a run has done.

    Attributes:
        num_images, num_errors: lines that were answered with detections, and with an error.
    """

    num_images: int = 0
    num_errors: int = 0

    @property
    def exit_status(self) -> int:
        """0; 1 where a line was answered with an error."""
        return EXIT_BAD_LINES if self.num_errors else EXIT_OK


def answer_requests(stream: IO[bytes], detector: Detector, options: InferenceOptions) -> Answered:
    """Answer the lines of a stream until it ends, or nobody reads the answers.

    What has come runs together, up to ``detector.file_batch`` images; nothing is waited for, so that a program may send
    a line and read its answer before it sends the next.

    Args:
        stream: of lines.
        detector: which detects.
        options: ``json_score`` and ``classes`` count.

    Raises:
        ValueError: a class that the model has not.
        RuntimeError: the model fails.
    """
    chosen = chosen_labels(detector.metadata.classes, options.classes)
    answered = Answered()
    for requests in _batches(stream, detector.file_batch):
        read = [_read(number, line, detector) for number, line in requests]
        images = [request.image for request in read if request.image is not None]
        found = iter(detector(images) if images else [])
        for request in read:
            if request.image is None:
                answered.num_errors += 1
                _say({"id": request.identity, "line": request.number, "error": request.error})
            else:
                answered.num_images += 1
                _say(_answer(request, chosen.of(next(found)).filter(options.json_score)))
        if not getattr(sys.stdout, "is_open", True):
            break
    return answered


def _batches(stream: IO[bytes], size: int) -> Iterator[list[tuple[int, Optional[bytes]]]]:
    """Yield what has come, one line or more, up to a number of them."""
    lines: queue.Queue = queue.Queue(2 * size)
    threading.Thread(target=_read_lines, args=(stream, lines), daemon=True, name="lines").start()
    is_open = True
    while is_open:
        with released():
            batch = [lines.get()]
        while len(batch) < size and batch[-1] is not None and not lines.empty():
            batch.append(lines.get())
        if batch[-1] is None:
            is_open = False
            batch.pop()
        if batch:
            yield batch


def _read_lines(stream: IO[bytes], lines: queue.Queue) -> None:
    """Put numbers and lines into a queue, None for the content of one that is too long; at the end, None."""
    # Past its buffer, whose lock a thread that waits would keep while the process ends.
    source, most = getattr(stream, "raw", stream), limit(BYTES_VARIABLE, MAX_BYTES) * 4 // 3 + _ROOM
    line, number = _Line(most), 0
    try:
        while data := source.read(_CHUNK):
            *ends, rest = data.split(b"\n")
            for end in ends:
                number += 1
                line.add(end)
                line.put(lines, number)
            line.add(rest)
        line.put(lines, number + 1)
    finally:
        lines.put(None)


class _Line:
    """A line while it comes."""

    def __init__(self, most: int) -> None:
        self._most, self._data, self._is_too_long = most, bytearray(), False

    def add(self, data: bytes) -> None:
        if not self._is_too_long:
            self._data += data
        if len(self._data) > self._most:
            self._data, self._is_too_long = bytearray(), True

    def put(self, lines: queue.Queue, number: int) -> None:
        """Put it into the queue, an empty one excepted, and begin the next."""
        if self._is_too_long or self._data.strip():
            lines.put((number, None if self._is_too_long else bytes(self._data)))
        self._data, self._is_too_long = bytearray(), False


def _read(number: int, line: Optional[bytes], detector: Detector) -> Request:
    identity = None
    try:
        if line is None:
            raise ValueError(f"expected a shorter line; set {BYTES_VARIABLE} to as much as its image has")
        content = parsed(line)
        if not isinstance(content, dict) or not isinstance(content.get("image"), str):
            identity = content.get("id") if isinstance(content, dict) else None
            raise ValueError(f'expected {{"id": ..., "image": "<base64>"}}, found {shown(content)}')
        identity = content.get("id")
        image = decode_image(_decoded(content["image"]), detector.metadata.load, name="image")
        check_image(image, "image", detector.metadata)
        network_size(image.shape[0], image.shape[1], detector.metadata)
    except (OSError, ValueError) as error:
        return Request(number, identity, error=said(error))
    return Request(number, identity, image)


def _decoded(text: str) -> bytes:
    # A browser's data address has the base64 behind a comma.
    encoded = text.partition(",")[2] if text.startswith("data:") else text
    try:
        return base64.b64decode(encoded.encode("ascii"), validate=True)
    except (binascii.Error, UnicodeEncodeError) as error:
        raise ValueError(f"image: expected base64, found {shown(text)} ({said(error)})") from error


def _answer(request: Request, found: Detections) -> dict[str, Any]:
    content = dict_from_detections(found)
    for row, one in zip(content["detections"], found):
        if one.keypoints is not None:
            row["keypoints"] = [
                {"id": number, "name": name, "x": x, "y": y, "score": score}
                for number, (name, (x, y, score)) in enumerate(
                    zip(one.keypoint_names, np.round(one.keypoints[0].astype(float), 3).tolist())
                )
            ]
    return {"id": request.identity, **content}


def _say(content: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(content) + "\n")
    sys.stdout.flush()
