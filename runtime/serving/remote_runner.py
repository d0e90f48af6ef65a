"""A model of another process, as a front end sees it: images go there in shared memory, results come back."""

import itertools
import os
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.reduction import send_handle
from typing import Callable

import numpy as np

from runtime.detections import Detections
from runtime.host.preprocess import check_image, network_size
from runtime.metadata import ModelMetadata
from runtime.runner import Problems, Timings, add_timings
from runtime.serving.exchange import (
    Answer,
    Batch,
    End,
    Failure,
    FromFrontEnd,
    ModelFacts,
    Ping,
    Pong,
    Share,
    Unshare,
)
from runtime.serving.shared_images import SegmentPool, StagedImage

# The model's process has not answered for so long: it is not ready.
SILENCE_SECONDS = 5.0
_PING_SECONDS = 1.0
# So long an answer to one is waited for: that process wants to hear something, too.
_PATIENCE_SECONDS = 5.0
# In which this process ends, where the other one has.
_END_SECONDS = 5.0


class Link:
    """The connection to the model's process. For any thread.

    Attributes:
        pool: of shared memory.
        is_alive: whether the threads of all models run there.
    """

    def __init__(self, connection: Connection, on_lost: Callable[[], None]) -> None:
        """Start the thread that reads.

        Args:
            connection: to the model's process.
            on_lost: called, in that thread, when the model's process has ended, before anybody who waits is told.
        """
        self._connection, self._on_lost = connection, on_lost
        self._sending = threading.Lock()
        self._numbers = itertools.count()
        self._waiting: dict[int, Future[Answer]] = {}
        self._is_over, self._is_lost = threading.Event(), threading.Event()
        self._heard = self._asked = time.monotonic()
        self._is_asking = False
        self.is_alive = True
        self.pool = SegmentPool(self._share, lambda number: self.send(Unshare(number)))
        threading.Thread(target=self._read, daemon=True, name="answers-of-models").start()

    @property
    def is_answering(self) -> bool:
        """Whether the model's process was heard of within the last seconds."""
        return time.monotonic() < self._heard + SILENCE_SECONDS

    def is_over(self) -> bool:
        """Return whether the model's process wants this one to end."""
        return self._is_over.is_set()

    def send(self, message: FromFrontEnd) -> None:
        """Send a message.

        Raises:
            RuntimeError: the model's process has ended.
        """
        try:
            with self._sending:
                self._connection.send(message)
        except OSError as error:
            raise self._lost(error) from error

    def run(
        self, model: str, images: Sequence[StagedImage], min_score: float, *, check_masks: bool
    ) -> "Future[Answer]":
        """Have a batch run; see ``Runner.submit``."""
        number, future = next(self._numbers), Future[Answer]()
        self._waiting[number] = future
        try:
            self.send(Batch(number, model, tuple(i.shared for i in images), min_score, check_masks))
        except RuntimeError:
            del self._waiting[number]
            raise
        return future

    def keep_up(self) -> None:
        """Ask now and then whether the model's process answers; called several times a second."""
        now = time.monotonic()
        if now > self._asked + (_PATIENCE_SECONDS if self._is_asking else _PING_SECONDS):
            self._is_asking, self._asked = True, now
            self.send(Ping())
        self.pool.trim()

    def _share(self, number: int, num_bytes: int, descriptor: int) -> None:
        try:
            with self._sending:
                self._connection.send(Share(number, num_bytes))
                send_handle(self._connection, descriptor, os.getppid())
        except OSError as error:
            raise self._lost(error) from error

    def _lost(self, error: OSError) -> RuntimeError:
        """Return what is raised where nothing can be sent, when it is sure that the other process has ended."""
        self._is_lost.wait(_END_SECONDS)
        return RuntimeError(f"the model's process: expected it to run, found {error}")

    def _read(self) -> None:
        while True:
            try:
                message = self._connection.recv()
            except (EOFError, OSError):
                break
            self._heard = time.monotonic()
            if isinstance(message, Answer):
                self._waiting.pop(message.number).set_result(message)
            elif isinstance(message, Failure):
                kind = ValueError if message.is_refusal else RuntimeError
                self._waiting.pop(message.number).set_exception(kind(message.reason))
            elif isinstance(message, Pong):
                self._is_asking, self.is_alive = False, message.is_alive
            elif isinstance(message, End):
                self._is_over.set()
        # First: a client whose connection ends asks another service, one with an answer blames its image.
        self._on_lost()
        self._is_lost.set()
        for future in self._waiting.values():
            future.set_exception(
                RuntimeError("the model's process: expected an answer, found that it has ended")
            )


class RemoteRunner:
    """Has another process run batches; fulfils ``runtime.runner.Runner``."""

    num_stagers = 1

    def __init__(self, link: Link, model: str, facts: ModelFacts) -> None:
        self._link, self._model, self._metadata = link, model, facts.metadata
        self.num_slots, self.largest_batch = facts.num_slots, facts.largest_batch
        self.device_failure = facts.device_failure
        # Called with what the model ran, as `runtime.serving.batching.Observer.batch` is.
        self.observe: Callable[[int, Mapping[str, float]], None] = lambda num_images, timings: None

    def stage(self, image: np.ndarray) -> StagedImage:
        """Copy an image into shared memory, having checked that it fits; see ``Runner.stage``."""
        check_image(image, metadata=self._metadata)
        network_size(image.shape[0], image.shape[1], self._metadata)
        return self._link.pool.staged(image)

    def submit(
        self, staged: Sequence[StagedImage], min_score: float = 0.0, *, check_masks: bool = False
    ) -> "RemoteBatch":
        """Send a batch on its way; see ``Runner.submit``. What the model refuses, the result raises."""
        answer = self._link.run(self._model, staged, min_score, check_masks=check_masks)
        return RemoteBatch(answer, staged, lambda *run: self.observe(*run))

    def close(self) -> None:
        """Do nothing: the model is another process's."""


class RemoteBatch:
    """A batch that another process runs; fulfils ``runtime.runner.Pending``."""

    def __init__(
        self,
        answer: "Future[Answer]",
        staged: Sequence[StagedImage],
        observe: Callable[[int, Mapping[str, float]], None],
    ) -> None:
        # The images stay where they are until there is an answer.
        self._answer, self._staged, self._observe = answer, staged, observe

    def result(self, timings: Timings = None, problems: Problems = None) -> list[Detections]:
        """Wait for the detections; see ``Pending.result``.

        Raises:
            ValueError: a size that the model does not take.
        """
        answer = self._answer.result()
        self._staged = ()
        for run in answer.runs:
            add_timings(timings, run.timings)
            self._observe(run.num_images, run.timings)
        if problems is None and answer.problems:
            raise RuntimeError(next(iter(answer.problems.values())))
        if problems is not None:
            problems.update(answer.problems)
        return answer.found


@dataclass(frozen=True)
class RemoteBackend:
    """The name of a backend in another process."""

    name: str


@dataclass(frozen=True, eq=False)
class RemoteModel:
    """What the service needs of a ``Detector``, of one in another process."""

    metadata: ModelMetadata
    runner: RemoteRunner
    backend: RemoteBackend


def remote_models(link: Link, facts: Mapping[str, ModelFacts]) -> dict[str, RemoteModel]:
    """Return the models of the other process by name."""
    return {
        name: RemoteModel(one.metadata, RemoteRunner(link, name, one), RemoteBackend(one.backend))
        for name, one in facts.items()
    }
