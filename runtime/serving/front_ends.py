"""A service in several processes: front ends that speak HTTP, and this one, which has the models.

One process of Python answers some hundred requests a second, whatever the model: reading HTTP and writing JSON takes
about a millisecond of its interpreter. Here front ends do that, and decode the images. Each has a socket of its own at
the same port, between which Linux divides the connections.
"""

import math
import multiprocessing
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from multiprocessing import connection as connections
from multiprocessing import resource_tracker
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any, Callable

from runtime.closing import Closing
from runtime.detector import Detector
from runtime.pipeline import num_cores
from runtime.serving.exchange import ModelFacts
from runtime.serving.front_end import (
    LOST,
    FrontEndPlan,
    ignored_signals,
    run_front_end,
    share_of,
)
from runtime.serving.metrics import forget_moment, make_files
from runtime.serving.model_turns import Turns
from runtime.serving.options import ServingOptions
from runtime.serving.peer import Peer
from runtime.serving.server import url_of

# A front end that does not begin to listen is not tried for ever.
MOST_TRIES = 3
START_SECONDS = 120.0
# One that is well says something every few seconds. One that is stopped keeps the connections that it is given.
MOST_SILENT_SECONDS = 30.0
# Where this process did not look for so long, it was stopped itself.
_STOPPED_SECONDS = 5.0
_POLL_SECONDS = 0.1
# Beyond what uvicorn takes to end.
_SLACK_SECONDS = 30.0
# Threads of a front end that decode, where there are few cores.
_LEAST_THREADS = 2
# Batches of a front end: one is run while the one before is answered.
_LEAST_SLOTS = 2


def check_processes(number: int) -> None:
    """Refuse several processes where the system does not divide connections between them.

    Raises:
        ValueError: it does not.
    """
    if number > 1 and not (sys.platform == "linux" and hasattr(socket, "SO_REUSEPORT")):
        raise ValueError(
            f"--processes: expected 1 on {sys.platform}, found {number}; it takes Linux, which divides connections "
            "between processes"
        )


class _FrontEnd(Closing):
    """A front end that runs, or is about to."""

    def __init__(
        self, target: Callable[..., None], plan: FrontEndPlan, turns: Mapping[str, Turns], index: int
    ) -> None:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        self.process: SpawnProcess = context.Process(
            target=target, args=(plan, theirs), daemon=True, name=f"front-end-{index}"
        )
        # Its own first step is to ignore them; until then they are kept from it. Starting the tracker unblocks them.
        resource_tracker.ensure_running()
        before = signal.pthread_sigmask(signal.SIG_BLOCK, ignored_signals())
        try:
            self.process.start()
        except BaseException:
            ours.close()
            raise
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            theirs.close()
        self.started = time.monotonic()
        self.is_silent = False
        self.peer = Peer(ours, turns)

    @property
    def has_ended(self) -> bool:
        """Whether it is of no more use: it has ended, is cut off, or does not begin."""
        is_late = not self.peer.is_listening and time.monotonic() > self.started + START_SECONDS
        self.is_silent = self.peer.is_listening and self.peer.silence_s > MOST_SILENT_SECONDS
        return is_late or self.is_silent or self.peer.is_gone or not self.process.is_alive()

    @property
    def end_in_words(self) -> str:
        """How it ended; of one that was closed."""
        if self.is_silent:
            return f"was not heard of for {MOST_SILENT_SECONDS:g} s"
        status = self.process.exitcode or 0
        how = f"by {signal.Signals(-status).name}" if status < 0 else f"with status {status}"
        return f"ended {how}{f': {self.peer.refusal}' if self.peer.refusal else ''}"

    def close(self) -> None:
        """Kill it, where it has not ended, and release its memory."""
        if self.peer.is_gone:  # it is about to end by itself, and that status says more
            self.process.join(1)
        self.process.kill()
        self.process.join()
        self.peer.close()


class FrontEnds(Closing):
    """Front ends of opened models, which listen when this is made.

    Attributes:
        url: where they listen.
    """

    def __init__(
        self,
        detectors: Mapping[str, Detector],
        options: ServingOptions,
        number: int,
        reserved: socket.socket,
        *,
        target: Callable[..., None] = run_front_end,
    ) -> None:
        """Start them, and wait until they listen.

        Args:
            detectors: by name; the first is the default. Closed by their owner, after this.
            options: of the service, whose limits are divided among the front ends.
            number: of front ends, 2 or more.
            reserved: of ``reserved_socket``; closed at the end.
            target: what runs in a front end.

        Raises:
            RuntimeError: one did not start.
        """
        self.url = url_of(reserved)
        self._options, self._reserved, self._target = options, reserved, target
        self._folder = Path(tempfile.mkdtemp(prefix="maskrcnn-metrics-"))
        self._turns = {
            name: Turns(detector.runner, detector.metadata, options.max_batch, name)
            for name, detector in detectors.items()
        }
        self._plans = self._planned(detectors, number)
        self._num_tries = [0] * number
        self._running: dict[int, _FrontEnd] = {}
        self._looked_at = time.monotonic()
        try:
            make_files(self._folder, number)
            for index in range(number):
                self._start(index)
            while not all(one.peer.is_listening for one in self._running.values()):
                self._look(is_starting=True)
        except BaseException:
            self.close()
            raise

    def run(self, is_over: Callable[[], bool]) -> None:
        """Serve until it is over, then have them finish what was taken; one that ends before is started again.

        Args:
            is_over: asked ten times a second.

        Raises:
            RuntimeError: one does not start again, however often it is tried.
        """
        try:
            while not is_over():
                self._look(is_starting=False)
        finally:
            self._end()

    def close(self) -> None:
        """Kill front ends that run still, and remove what there was of them."""
        for front_end in self._running.values():
            front_end.close()
        self._running.clear()
        for turns in self._turns.values():
            turns.close()
        self._reserved.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _planned(self, detectors: Mapping[str, Detector], number: int) -> list[FrontEndPlan]:
        models = {
            name: ModelFacts(
                metadata=detector.metadata,
                backend=detector.backend.name,
                num_slots=max(_LEAST_SLOTS, math.ceil(detector.runner.num_slots / number) + 1),
                largest_batch=detector.runner.largest_batch,
                device_failure=detector.runner.device_failure,
            )
            for name, detector in detectors.items()
        }
        threads = max(_LEAST_THREADS, math.ceil(num_cores() / number))
        place = self._reserved.getsockname()
        return [
            FrontEndPlan(
                index=index,
                models=models,
                options=share_of(self._options, index, number),
                family=int(self._reserved.family),
                place=place[:2],
                folder=str(self._folder),
                threads=threads,
            )
            for index in range(number)
        ]

    def _start(self, index: int) -> None:
        self._num_tries[index] += 1
        self._running[index] = _FrontEnd(self._target, self._plans[index], self._turns, index)

    def _look(self, *, is_starting: bool) -> None:
        """Wait a moment; replace those that have ended."""
        self._wait()
        for index, front_end in list(self._running.items()):
            if front_end.peer.is_listening:
                self._num_tries[index] = 0
            if front_end.has_ended:
                self._replace(index, is_starting=is_starting)

    def _wait(self) -> None:
        """Wait a moment, or until one ends."""
        sentinels: Sequence[Any] = [one.process.sentinel for one in self._running.values()]
        connections.wait(sentinels, _POLL_SECONDS)
        before, self._looked_at = self._looked_at, time.monotonic()
        if self._looked_at > before + _STOPPED_SECONDS:
            for front_end in self._running.values():
                front_end.peer.excuse()

    def _replace(self, index: int, *, is_starting: bool) -> None:
        front_end = self._running.pop(index)
        self._released(index, front_end)
        # At the beginning, what one cannot do, the next cannot either.
        if self._num_tries[index] >= MOST_TRIES or (is_starting and front_end.peer.refusal):
            raise RuntimeError(
                f"front end: expected it to start, found that it {front_end.end_in_words}"
                f"{f', {self._num_tries[index]} times in a row' if self._num_tries[index] > 1 else ''}"
            )
        _say(f"front end {front_end.process.pid} {front_end.end_in_words}; another one takes its place")
        self._start(index)

    def _released(self, index: int, front_end: _FrontEnd) -> None:
        front_end.close()
        forget_moment(self._folder, index)

    def _end(self) -> None:
        """Have all finish what they took; those that do not end in time are killed."""
        options = self._options
        most = options.drain_delay_s + 2 * options.client_timeout_s + options.timeout_s + _SLACK_SECONDS
        until = time.monotonic() + most
        for front_end in self._running.values():
            front_end.peer.end()
        while self._running and time.monotonic() < until:
            self._wait()
            for index, front_end in list(self._running.items()):
                if front_end.has_ended:
                    del self._running[index]
                    self._released(index, front_end)
                    if front_end.is_silent or front_end.process.exitcode not in (0, LOST):
                        _say(f"front end {front_end.process.pid} {front_end.end_in_words}")


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
