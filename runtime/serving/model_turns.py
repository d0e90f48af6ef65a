"""The model's side of front ends in other processes: their batches, in the order in which they came."""

import os
import queue
import threading
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from multiprocessing.reduction import recv_handle
from typing import Any, Callable, Optional, Union

import numpy as np

from runtime.closing import Closing
from runtime.detections import Detections
from runtime.messages import said
from runtime.rle import RunLengthMasks
from runtime.runner import Pending, Runner
from runtime.serving.exchange import (
    Answer,
    Batch,
    End,
    Failure,
    Listening,
    NotStarted,
    Ping,
    Pong,
    Share,
    ToFrontEnd,
    Unshare,
)
from runtime.serving.priority import yield_to_answers
from runtime.serving.shared_images import mapped, shown

# Masks of one image that take more are sent as run lengths: bytes of probabilities of 100 boxes take less.
_MOST_MASK_BYTES = 1 << 20

Reply = Callable[[ToFrontEnd], None]


@dataclass(frozen=True, eq=False)
class Work:
    """A staged batch, and where its answer goes.

    Attributes:
        batch: as it came.
        staged: of its images.
        reply: takes what comes of it.
        is_wanted: whether the front end is still there.
    """

    batch: Batch
    staged: list[Any]
    reply: Reply
    is_wanted: Callable[[], bool]


class Turns(Closing):
    """One model, and the thread that runs the batches of all front ends: as many at once as it has slots."""

    def __init__(self, runner: Runner, name: str) -> None:
        """Start the thread.

        Args:
            runner: the model; closed by its owner, after this.
            name: of the model.
        """
        self.runner = runner
        self._work: queue.SimpleQueue[Optional[Work]] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, daemon=True, name=f"turns-{name}")
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        """Whether batches are run."""
        return self._thread.is_alive()

    def put(self, work: Work) -> None:
        """Have a batch run when those before it are on their way."""
        self._work.put(work)

    def close(self) -> None:
        """Run what is there, and end the thread."""
        self._work.put(None)
        self._thread.join()

    def _run(self) -> None:
        if self.runner.device_failure:  # this thread computes
            yield_to_answers()
        under_way: deque[tuple[Work, Union[Pending, Exception]]] = deque()
        is_over = False
        while under_way or not is_over:
            work = None
            try:
                if not is_over:
                    work = self._work.get(block=not under_way)
                    is_over = work is None
            except queue.Empty:
                pass
            if work is not None and work.is_wanted():
                under_way.append((work, self._submitted(work)))
            # Only where nothing waits, or nothing more has room, is the oldest waited for.
            if under_way and (work is None or len(under_way) >= self.runner.num_slots):
                work, pending = under_way.popleft()
                work.reply(_outcome(work.batch, pending))

    def _submitted(self, work: Work) -> Union[Pending, Exception]:
        batch = work.batch
        try:
            return self.runner.submit(work.staged, batch.min_score, check_masks=batch.check_masks)
        except Exception as error:
            return error


def _outcome(batch: Batch, pending: Union[Pending, Exception]) -> Union[Answer, Failure]:
    """Wait for a batch; return what its front end is told."""
    timings: dict[str, float] = {}
    problems: dict[int, str] = {}
    try:
        if isinstance(pending, Exception):
            raise pending
        return Answer(batch.number, pending.result(timings, problems), timings, problems)
    except Exception as error:
        return _failure(batch, error)


def _failure(batch: Batch, error: Exception) -> Failure:
    is_refusal = isinstance(error, ValueError)
    known = is_refusal or isinstance(error, RuntimeError)
    return Failure(batch.number, str(error) if known else said(error), is_refusal)


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
                self._take(self._connection.recv())
        except (EOFError, OSError, RuntimeError):
            pass  # it has ended, maybe in the middle of a message, or there is no memory for what it shares
        finally:
            self._gone.set()
            self._segments.clear()

    def _take(self, message: Any) -> None:
        if isinstance(message, Batch):
            self._stage(message)
        elif isinstance(message, Share):
            descriptor = recv_handle(self._connection)
            try:
                self._segments[message.segment] = mapped(descriptor, message.num_bytes)
            finally:
                os.close(descriptor)
        elif isinstance(message, Unshare):
            del self._segments[message.segment]
        elif isinstance(message, Ping):
            self._answers.put(Pong(all(turns.is_alive for turns in self._turns.values())))
        elif isinstance(message, NotStarted):
            self.refusal = message.reason
        elif isinstance(message, Listening):
            self._listening.set()

    def _stage(self, batch: Batch) -> None:
        turns = self._turns[batch.model]
        try:
            staged = [turns.runner.stage(shown(image, self._segments)) for image in batch.images]
        except Exception as error:
            self._answers.put(_failure(batch, error))
            return
        turns.put(Work(batch, staged, self._answers.put, lambda: not self._gone.is_set()))

    def _write(self) -> None:
        """Send answers: a front end that does not read them keeps nobody else waiting."""
        for message in iter(self._answers.get, None):
            try:
                self._connection.send(_compact(message) if isinstance(message, Answer) else message)
            except OSError:  # it has ended
                return


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
    except (ValueError, RuntimeError, MemoryError) as error:
        problems[index] = f"the masks cannot be encoded: {said(error)}"
        return replace(detections, mask_source=RunLengthMasks((), detections.image_size)).select(
            np.zeros(0, int)
        )
    return replace(detections, mask_source=RunLengthMasks(counts, detections.image_size))
