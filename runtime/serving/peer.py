"""A front end, as the model's process sees it."""

import os
import queue
import threading
import time
from collections.abc import Mapping
from dataclasses import replace
from multiprocessing.connection import Connection
from multiprocessing.reduction import recv_handle
from typing import Any, Optional

import numpy as np

from runtime.closing import Closing
from runtime.detections import Detections
from runtime.messages import said
from runtime.rle import RunLengthMasks
from runtime.serving.exchange import (
    Answer,
    Batch,
    End,
    Listening,
    NotStarted,
    Ping,
    Pong,
    Share,
    ToFrontEnd,
    Unshare,
)
from runtime.serving.model_turns import Turns, failure_of
from runtime.serving.shared_images import mapped, shown

# Masks of one image that take more are sent as run lengths: bytes of probabilities of 100 boxes take less.
_MOST_MASK_BYTES = 1 << 20


class Peer(Closing):
    """A front end, as the model's process sees it: threads that read its messages and answer them.

    Attributes:
        refusal: why it did not start; empty where it did not say.
    """

    def __init__(self, connection: Connection, turns: Mapping[str, Turns]) -> None:
        """Start the threads.

        Args:
            connection: to the front end.
            turns: of each model.
        """
        self._connection, self._turns = connection, turns
        self.refusal = ""
        self._listening, self._gone = threading.Event(), threading.Event()
        self._segments: dict[int, np.ndarray] = {}
        # Those that no image was in yet: their files' descriptors and bytes.
        self._new: dict[int, tuple[int, int]] = {}
        # Of `time.monotonic`; None while what it said is seen to.
        self._silent_since: Optional[float] = time.monotonic()
        self._excused_at = 0.0
        self._answers: queue.SimpleQueue[Optional[ToFrontEnd]] = queue.SimpleQueue()
        self._threads = [
            threading.Thread(target=run, daemon=True, name=name)
            for run, name in ((self._read, "batches-of-front-end"), (self._write, "answers-to-front-end"))
        ]
        for thread in self._threads:
            thread.start()

    @property
    def is_listening(self) -> bool:
        """Whether it has begun to take connections."""
        return self._listening.is_set()

    @property
    def is_gone(self) -> bool:
        """Whether nothing comes from it any more."""
        return self._gone.is_set()

    @property
    def silence_s(self) -> float:
        """For how long nothing has come from it; one that is well says something every few seconds."""
        since = self._silent_since
        return 0.0 if since is None else time.monotonic() - max(since, self._excused_at)

    def excuse(self) -> None:
        """Count its silence from now on."""
        self._excused_at = time.monotonic()

    def end(self) -> None:
        """Have it answer what it took, and end."""
        self._answers.put(End())

    def close(self) -> None:
        """Release its memory; its process has ended."""
        self._gone.set()
        self._answers.put(None)
        for thread in self._threads:
            thread.join()
        self._connection.close()

    def _read(self) -> None:
        try:
            while True:
                self._silent_since = time.monotonic()
                message = self._connection.recv()
                self._silent_since = None
                self._take(message)
        except (EOFError, OSError, RuntimeError):
            pass  # it has ended, maybe in the middle of a message, or there is no descriptor for what it shares
        finally:
            self._gone.set()
            self._segments.clear()
            for number in list(self._new):
                self._forget(number)

    def _take(self, message: Any) -> None:
        if isinstance(message, Batch):
            self._stage(message)
        elif isinstance(message, Share):
            self._new[message.segment] = recv_handle(self._connection), message.num_bytes
        elif isinstance(message, Unshare):
            self._forget(message.segment)
        elif isinstance(message, Ping):
            self._answers.put(Pong(all(turns.is_alive for turns in self._turns.values())))
        elif isinstance(message, NotStarted):
            self.refusal = message.reason
        elif isinstance(message, Listening):
            self._listening.set()

    def _stage(self, batch: Batch) -> None:
        try:
            images = [shown(image, self._pixels(image.segment)) for image in batch.images]
            self._turns[batch.model].put(batch, images, self._answers.put, lambda: not self._gone.is_set())
        except Exception as error:
            self._answers.put(failure_of(batch, error))

    def _pixels(self, number: int) -> np.ndarray:
        """Return the bytes of a segment.

        Raises:
            RuntimeError: there is no room for them here; the next time there may be.
        """
        if number in self._new:
            try:
                pixels = mapped(*self._new[number])
            except OSError as error:
                raise RuntimeError(f"expected room for an image, found none ({said(error)})") from error
            self._forget(number)
            self._segments[number] = pixels
        return self._segments[number]

    def _forget(self, number: int) -> None:
        """Give up a segment."""
        self._segments.pop(number, None)
        descriptor, _ = self._new.pop(number, (None, 0))
        if descriptor is not None:
            os.close(descriptor)

    def _write(self) -> None:
        """Send answers: a front end that does not read them keeps nobody else waiting."""
        try:
            for message in iter(self._answers.get, None):
                self._connection.send(_compact(message) if isinstance(message, Answer) else message)
        except OSError:
            pass  # it has ended
        finally:
            self._gone.set()


def _compact(answer: Answer) -> Answer:
    """Have large masks be run lengths: every pixel stays the same."""
    problems = dict(answer.problems)
    found = [_compact_masks(index, detections, problems) for index, detections in enumerate(answer.found)]
    return replace(answer, found=found, problems=problems)


def _compact_masks(index: int, detections: Detections, problems: dict[int, str]) -> Detections:
    source = detections.mask_source
    if source is None or sum(getattr(v, "nbytes", 0) for v in vars(source).values()) <= _MOST_MASK_BYTES:
        return detections
    try:
        counts = tuple(lengths["counts"].encode("ascii") for lengths in detections.rle())
    except Exception as error:  # OpenCV's, or there is no memory
        problems[index] = f"the masks cannot be encoded: {said(error)}"
        return replace(detections, mask_source=RunLengthMasks((), detections.image_size)).select(
            np.zeros(0, int)
        )
    return replace(detections, mask_source=RunLengthMasks(counts, detections.image_size))
