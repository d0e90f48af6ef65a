"""Images of many clients through one model, in batches.

An image waits as the bytes that came; threads decode and stage a few of them ahead of the model. One thread more forms
batches, has as many under way as the runner has slots, and hands out the results. A batch is taken when it is full, or
when its first image has waited for ``max_delay_ms``.
"""

import math
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Callable, Optional

import numpy as np

from runtime.closing import Closing
from runtime.detections import Detections
from runtime.host.preprocess import size_alone
from runtime.messages import counted, said
from runtime.metadata import ModelMetadata
from runtime.pipeline import num_cores
from runtime.runner import Pending, Runner
from runtime.serving.images import decoded
from runtime.serving.options import ServingOptions
from runtime.serving.priority import yield_to_answers
from runtime.serving.refusals import (
    BAD_IMAGE,
    EXPIRED,
    MODEL_FAILED,
    NO_MEMORY,
    NOT_READY,
    QUEUE_FULL,
    Refused,
)

# Share of the newest batch in the mean time per image, from which clients are told when to come again.
_NEWEST = 0.2


@dataclass(frozen=True, eq=False)
class Found:
    """What was found in an image.

    Attributes:
        detections: of score ``min_score`` or more.
        image: its pixels as they were decoded, where they were asked for.
    """

    detections: Detections
    image: Optional[np.ndarray] = None


@dataclass(eq=False)
class Job:
    """One image on its way.

    Attributes:
        data: of the image file.
        name: of the image, for messages.
        deadline: of ``time.monotonic``; it does not run after that.
        min_score: detections below it are left out.
        keep_image: whether its pixels are part of the result.
        future: the ``Found``, or ``Refused``; cancelled where nobody waits.
        staged, image, size: what the model takes, the pixels, and the size of the batch's images it can be among.
        ready_at: when it was staged, of ``time.monotonic``.
    """

    data: bytes
    name: str
    deadline: float
    min_score: float = 0.0
    keep_image: bool = False
    future: "Future[Found]" = field(default_factory=Future)
    staged: Any = None
    image: Optional[np.ndarray] = None
    size: Optional[tuple[int, int]] = None
    ready_at: float = 0.0


@dataclass(frozen=True)
class Observer:
    """What is called as batches go by.

    Attributes:
        batch: with the number of its images and each stage's ms.
    """

    batch: Callable[[int, Mapping[str, float]], None] = lambda size, timings: None


class Place:
    """Room in the queue for one image, until it is left."""

    def __init__(self, leave: Callable[[], None]) -> None:
        self._leave: Optional[Callable[[], None]] = leave

    def leave(self) -> None:
        """Give it up, once; under the queue's lock."""
        leave, self._leave = self._leave, None
        if leave is not None:
            leave()


class Batcher(Closing):
    """The queue of one model, and the threads that serve it. For any thread."""

    def __init__(
        self,
        runner: Runner,
        metadata: ModelMetadata,
        options: ServingOptions,
        *,
        name: str = "model",
        observer: Observer = Observer(),
        threads: Optional[int] = None,
    ) -> None:
        """Start the threads.

        Args:
            runner: the model; closed by its owner, after this.
            metadata: the model's facts.
            options: of the service.
            name: of the model, for messages and threads.
            observer: of the batches.
            threads: that decode; None: as many as there are cores.
        """
        self._runner, self._metadata, self._options = runner, metadata, options
        self._name, self._observer = name, observer
        self.max_batch = min(options.max_batch, runner.largest_batch or options.max_batch)
        self._changed = threading.Condition()
        self._waiting: deque[Job] = deque()
        self._ready: list[Job] = []
        self._num_staging, self._num_kept = 0, 0
        self._is_closing, self._is_hurried, self._seconds_per_image = False, False, 0.0
        self._num_failed = 0
        threads = threads or num_cores()
        self._stagers = ThreadPoolExecutor(threads, f"stage-{name}", initializer=yield_to_answers)
        self._worker = threading.Thread(target=self._run, daemon=True, name=f"batches-{name}")
        self._worker.start()

    @property
    def num_queued(self) -> int:
        """How many images wait for the model, those that are being read among them."""
        return self._num_kept + len(self._waiting) + self._num_staging + len(self._ready)

    @property
    def num_failed(self) -> int:
        """On how many images the model has failed."""
        return self._num_failed

    @property
    def is_alive(self) -> bool:
        """Whether batches are formed."""
        return self._worker.is_alive()

    def check_room(self, num_images: int = 1) -> None:
        """Refuse images for which the queue has no room.

        Raises:
            Refused: it is full, or closing.
        """
        if self._is_closing:
            raise Refused(NOT_READY, "the service is ending; ask another one", retry_after_s=1)
        queued = self.num_queued
        if queued + num_images > self._options.max_queue:
            raise Refused(
                QUEUE_FULL,
                f"model {self._name}: expected room in the queue for {counted(num_images, 'image')}, found {queued} "
                f"of {self._options.max_queue} waiting; send it again later, or to another server",
                retry_after_s=max(1, math.ceil(queued * self._seconds_per_image)),
            )

    @contextmanager
    def place(self) -> Iterator["Place"]:
        """Keep room for one image while its request is looked at: what is refused is refused before that.

        Raises:
            Refused: see ``check_room``.
        """
        with self._changed:
            self.check_room()
            self._num_kept += 1
        place = Place(self._leave)
        try:
            yield place
        finally:
            with self._changed:
                place.leave()

    def _leave(self) -> None:
        self._num_kept -= 1

    def submit(self, jobs: Sequence[Job], place: "Optional[Place]" = None) -> None:
        """Queue the images of a request, all or none.

        Args:
            jobs: an image each.
            place: what was kept for the first of them.

        Raises:
            Refused: see ``check_room``.
        """
        with self._changed:
            if place is not None:
                place.leave()
            self.check_room(len(jobs))
            self._waiting.extend(jobs)
            self._stage_more()
        for job in jobs:
            job.future.add_done_callback(partial(self._forget, job))

    def hurry(self) -> None:
        """Have no image wait for others from now on."""
        with self._changed:
            self._is_hurried = True
            self._changed.notify_all()

    def close(self) -> None:
        """Take nothing more, and wait until what was taken is answered."""
        self._is_closing = True
        self.hurry()
        self._worker.join()
        self._stagers.shutdown()

    def _forget(self, job: Job, future: "Future[Found]") -> None:
        """Release an image that is answered; make room where nobody waits for one."""
        job.staged = job.image = None  # at once: the future and the job refer to each other
        if not future.cancelled():
            return
        with self._changed:
            for queue in (self._waiting, self._ready):
                if job in queue:
                    queue.remove(job)
            self._stage_more()
            self._changed.notify_all()

    def _stage_more(self) -> None:
        """Have images decoded, as many as two batches; the lock is held."""
        while self._waiting and self._num_staging + len(self._ready) < 2 * self.max_batch:
            self._num_staging += 1
            self._stagers.submit(self._stage, self._waiting.popleft())

    def _stage(self, job: Job) -> None:
        """Decode and stage one image, in a thread."""
        problem = self._unusable(job)
        if problem is None and not job.future.done():
            try:
                self._decode(job)
            except Refused as error:
                problem = error
            except (MemoryError, OSError) as error:
                problem = Refused(
                    NO_MEMORY,
                    f"{job.name}: expected room for its pixels, found none ({said(error)}); send it again later",
                    retry_after_s=1,
                )
            except Exception as error:
                problem = Refused(MODEL_FAILED, f"{job.name}: cannot be prepared: {said(error)}")
        with self._changed:
            self._num_staging -= 1
            if problem is None and not job.future.cancelled():
                job.ready_at = time.monotonic()
                self._ready.append(job)
            else:
                job.staged = job.image = None
            self._stage_more()
            self._changed.notify_all()
        if problem is not None:
            _refuse(job, problem)

    def _decode(self, job: Job) -> None:
        image = decoded(job.data, job.name, self._metadata.load, self._options.max_pixels)
        try:
            job.staged = self._runner.stage(image)
            if self._metadata.size is None:
                job.size = size_alone(image.shape[0], image.shape[1], self._metadata)
        except ValueError as error:
            raise Refused(BAD_IMAGE, f"{job.name}: {error}") from error
        job.data, job.image = b"", image if job.keep_image else None

    def _unusable(self, job: Job) -> Optional[Refused]:
        if time.monotonic() < job.deadline:
            return None
        return Refused(
            EXPIRED,
            f"{job.name}: expected its turn before the deadline, found others before it; ask again later",
        )

    def _run(self) -> None:
        """Form batches and collect them, until the queue is closed and empty."""
        yield_to_answers()
        under_way: deque[tuple[list[Job], Optional[Pending], float]] = deque()
        while True:
            jobs = self._next_batch(is_idle=not under_way)
            if jobs is None and not under_way:
                return
            if jobs:
                under_way.append((jobs, self._submitted(jobs), time.monotonic()))
            if under_way and (not jobs or len(under_way) >= self._runner.num_slots):
                self._collect(*under_way.popleft())

    def _next_batch(self, *, is_idle: bool) -> Optional[list[Job]]:
        """Return the images of the next batch; none where none is due and others are under way; None at the end."""
        with self._changed:
            while True:
                jobs = self._batch_of(self._ready[:1])
                if jobs and self._is_due(jobs):
                    for job in jobs:
                        self._ready.remove(job)
                    self._stage_more()
                    break
                if self._is_closing and not self.num_queued:
                    return None
                if not is_idle:
                    return []
                self._changed.wait(self._patience(jobs))
        return self._claimed(jobs)

    def _batch_of(self, first: Sequence[Job]) -> list[Job]:
        """Return the first and those that can be in its batch.

        Of a model of any size they are those that are padded to the same size: what is found in an image does not
        depend on the images of others.
        """
        return [job for job in self._ready if job.size == first[0].size][: self.max_batch] if first else []

    def _is_due(self, jobs: Sequence[Job]) -> bool:
        return len(jobs) == self.max_batch or self._is_hurried or self._patience(jobs) == 0

    def _patience(self, jobs: Sequence[Job]) -> Optional[float]:
        """Return how long the first waits for others, s."""
        if not jobs:
            return None
        return max(0.0, jobs[0].ready_at + self._options.max_delay_ms / 1e3 - time.monotonic())

    def _claimed(self, jobs: Sequence[Job]) -> list[Job]:
        """Return those that somebody waits for, and whose time is not over."""
        claimed = []
        for job in jobs:
            problem = self._unusable(job)
            if problem is not None:
                _refuse(job, problem)
            elif job.future.set_running_or_notify_cancel():
                claimed.append(job)
        return claimed

    def _submitted(self, jobs: Sequence[Job]) -> Optional[Pending]:
        """Return the batch under way; None where the runner did not take it."""
        try:
            return self._runner.submit([job.staged for job in jobs], min(job.min_score for job in jobs))
        except Exception:
            return None  # each image says why, when it is tried alone

    def _collect(self, jobs: Sequence[Job], pending: Optional[Pending], start: float) -> None:
        timings: dict[str, float] = {}
        problems: dict[int, str] = {}
        try:
            if pending is None:
                raise RuntimeError("the batch was not taken")
            found = pending.result(timings, problems)
        except Exception:
            for job in jobs:
                self._run_alone(job)
            return
        seconds = (time.monotonic() - start) / len(jobs)
        self._seconds_per_image += (seconds - self._seconds_per_image) * _NEWEST
        self._observer.batch(len(jobs), timings)
        for index, (job, detections) in enumerate(zip(jobs, found)):
            _answer(job, detections, problems.get(index, ""))

    def _run_alone(self, job: Job) -> None:
        """Run an image of a batch that failed: the others are not spoilt by it."""
        problems: dict[int, str] = {}
        try:
            (found,) = self._runner.submit([job.staged], job.min_score).result(None, problems)
        except ValueError as error:
            _refuse(job, Refused(BAD_IMAGE, f"{job.name}: {error}"))
        except Exception as error:
            self._num_failed += 1
            _refuse(job, Refused(MODEL_FAILED, f"{job.name}: the model failed on it: {said(error)}"))
        else:
            self._observer.batch(1, {})
            _answer(job, found, problems.get(0, ""))


def _answer(job: Job, detections: Detections, problem: str) -> None:
    if problem:
        _refuse(job, Refused(MODEL_FAILED, f"{job.name}: the model's output is not a result: {problem}"))
        return
    job.future.set_result(Found(detections.filter(job.min_score), job.image))


def _refuse(job: Job, problem: Refused) -> None:
    # Somebody may have stopped waiting, or does so now.
    if job.future.running() or job.future.set_running_or_notify_cancel():
        job.future.set_exception(problem)
