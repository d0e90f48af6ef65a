"""One model for front ends in other processes: their images run in the order in which they came."""

import threading
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Callable, Optional, Union

import numpy as np

from runtime.closing import Closing
from runtime.detections import Detections
from runtime.host.preprocess import size_alone
from runtime.messages import said
from runtime.metadata import ModelMetadata
from runtime.runner import Pending, Runner
from runtime.serving.exchange import Answer, Batch, Failure, Run, ToFrontEnd
from runtime.serving.priority import yield_to_answers
from runtime.transforms import Size

Reply = Callable[[ToFrontEnd], None]
# So many batches are put on their way at once, however small: one that is run, and one behind it.
_LEAST_UNDER_WAY = 2


class Work:
    """The images of a front end's batch, which may run in several parts, with images of others. For one thread.

    Attributes:
        batch: as it came.
        staged: its images.
        size: of the network's input for them; None where all have the same.
        num_taken: how many of them are on their way.
    """

    def __init__(
        self,
        batch: Batch,
        staged: list[Any],
        size: Optional[Size],
        reply: Reply,
        is_wanted: Callable[[], bool] = lambda: True,
    ) -> None:
        """Begin.

        Args:
            batch, staged, size: see above.
            reply: takes what comes of all of them.
            is_wanted: whether the front end is still there.
        """
        self.batch, self.staged, self.size = batch, staged, size
        self.num_taken = 0
        self.is_wanted = is_wanted
        self._reply, self._num_left = reply, len(staged)
        self._found: dict[int, Detections] = {}
        self._problems: dict[int, str] = {}
        self._runs: list[Run] = []
        self._failure: Optional[Failure] = None

    def add(
        self,
        first: int,
        found: Sequence[Detections],
        problems: Mapping[int, str],
        run: Optional[Run],
    ) -> None:
        """Take results.

        Args:
            first: index of the image that the first of them is of.
            found: of each image.
            problems: by index among ``found``.
            run: to be counted with them.
        """
        self._found.update({first + index: detections for index, detections in enumerate(found)})
        self._problems.update({first + index: problem for index, problem in problems.items()})
        self._runs += [run] if run is not None else []
        self._end(len(found))

    def fail(self, number: int, error: Exception) -> None:
        """Take the failure of so many images; the front end tries each alone."""
        self._failure = failure_of(self.batch, error)
        self._end(number)

    def _end(self, number: int) -> None:
        self._num_left -= number
        if self._num_left:
            return
        found = [self._found[index] for index in sorted(self._found)]
        answer = Answer(self.batch.number, found, self._problems, tuple(self._runs))
        self._reply(self._failure or answer)


@dataclass(frozen=True, eq=False)
class _Part:
    """Some of the images of a ``Work``, which run at once."""

    work: Work
    first: int
    number: int

    @property
    def staged(self) -> list[Any]:
        return self.work.staged[self.first : self.first + self.number]


class Turns(Closing):
    """One model, and the thread that runs the batches of all front ends in the order in which they came.

    Where others wait, a batch is filled with their images, so that many front ends do not make small batches.
    """

    def __init__(self, runner: Runner, metadata: ModelMetadata, max_batch: int, name: str) -> None:
        """Start the thread.

        Args:
            runner: the model; closed by its owner, after this.
            metadata: the model's facts.
            max_batch: most images of one batch.
            name: of the model.
        """
        self.runner = runner
        self._metadata, self._max_batch = metadata, min(max_batch, runner.largest_batch or max_batch)
        # The last slot is for a full batch: the device has enough to do while it gathers.
        self._enough = max(_LEAST_UNDER_WAY, runner.num_slots - 1)
        self._changed = threading.Condition()
        self._waiting: list[Work] = []
        self._is_closing = False
        self._thread = threading.Thread(target=self._run, daemon=True, name=f"turns-{name}")
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        """Whether batches are run."""
        return self._thread.is_alive()

    @property
    def num_waiting(self) -> int:
        """How many images are not on their way."""
        with self._changed:
            return sum(len(work.staged) - work.num_taken for work in self._waiting)

    def put(
        self, batch: Batch, images: Sequence[np.ndarray], reply: Reply, is_wanted: Callable[[], bool]
    ) -> None:
        """Stage a batch in the calling thread, and have it run when its turn comes; see ``Work``.

        Raises:
            ValueError: an image does not fit.
        """
        staged = [self.runner.stage(image) for image in images]
        height, width = images[0].shape[:2]
        size = None if self._metadata.size is not None else size_alone(height, width, self._metadata)
        with self._changed:
            self._waiting.append(Work(batch, staged, size, reply, is_wanted))
            self._changed.notify()

    def close(self) -> None:
        """Run what is there, and end the thread."""
        with self._changed:
            self._is_closing = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        if self.runner.device_failure:  # this thread computes
            yield_to_answers()
        under_way: deque[tuple[list[_Part], Union[Pending, Exception]]] = deque()
        while True:
            parts = self._next_parts(len(under_way))
            if parts:
                under_way.append((parts, self._submitted(parts)))
            elif under_way:
                self._collect(*under_way.popleft())
            else:
                return

    def _next_parts(self, num_under_way: int) -> list[_Part]:
        """Return the next batch; none where another is to be collected first, or at the end."""
        with self._changed:
            while True:
                self._waiting = [work for work in self._waiting if work.is_wanted()]
                parts = self._parts() if num_under_way < self.runner.num_slots else []
                is_full = sum(part.number for part in parts) == self._max_batch
                if parts and (is_full or num_under_way < self._enough):
                    for part in parts:
                        part.work.num_taken += part.number
                    self._waiting = [work for work in self._waiting if work.num_taken < len(work.staged)]
                    return parts
                if num_under_way or self._is_closing:
                    return []
                self._changed.wait()

    def _parts(self) -> list[_Part]:
        """Return images that may run with the first that waits, itself included; the lock is held."""
        parts, room = [], self._max_batch
        for work in self._waiting:
            first = self._waiting[0]
            if (work.size, work.batch.check_masks) == (first.size, first.batch.check_masks) and room:
                number = min(room, len(work.staged) - work.num_taken)
                parts.append(_Part(work, work.num_taken, number))
                room -= number
        return parts

    def _submitted(self, parts: Sequence[_Part]) -> Union[Pending, Exception]:
        batches = [part.work.batch for part in parts]
        staged = [image for part in parts for image in part.staged]
        try:
            return self.runner.submit(staged, _min_score(parts), check_masks=batches[0].check_masks)
        except Exception as error:
            return error

    def _collect(self, parts: Sequence[_Part], pending: Union[Pending, Exception]) -> None:
        """Wait for a batch, and hand out what came of it; where it failed, one front end does not spoil another's."""
        timings: dict[str, float] = {}
        problems: dict[int, str] = {}
        try:
            if isinstance(pending, Exception):
                raise pending
            found = pending.result(timings, problems)
        except Exception as error:
            if len(parts) == 1:
                parts[0].work.fail(parts[0].number, error)
                return
            for part in parts:
                self._collect([part], self._submitted([part]))
            return
        _hand_out(parts, found, problems, Run(len(found), timings))


def _hand_out(
    parts: Sequence[_Part], found: Sequence[Detections], problems: Mapping[int, str], run: Run
) -> None:
    """Give each part its results; the first one tells of the run."""
    least, start = _min_score(parts), 0
    for part in parts:
        end, min_score = start + part.number, part.work.batch.min_score
        own = found[start:end] if min_score == least else [d.filter(min_score) for d in found[start:end]]
        own_problems = {index - start: text for index, text in problems.items() if start <= index < end}
        part.work.add(part.first, own, own_problems, run if start == 0 else None)
        start = end


def _min_score(parts: Sequence[_Part]) -> float:
    return min(part.work.batch.min_score for part in parts)


def failure_of(batch: Batch, error: Exception) -> Failure:
    """Return what a front end is told of a batch that came to nothing."""
    is_refusal = isinstance(error, ValueError)
    known = is_refusal or isinstance(error, RuntimeError)
    return Failure(batch.number, str(error) if known else said(error), is_refusal)
