"""Models that are served: who may ask, what becomes of a request, and how it all ends."""

import asyncio
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, Callable, Optional, Protocol

import numpy as np

from runtime.closing import Closing
from runtime.detector import Detector
from runtime.messages import listed, said, shown
from runtime.metadata import ModelMetadata
from runtime.pipeline import num_cores
from runtime.rle import load_pycocotools
from runtime.runner import Runner
from runtime.serving.batching import Batcher, Found, Job, Observer, Place
from runtime.serving.bodies import Memory, NamedImage, Receive
from runtime.serving.metrics import Metrics
from runtime.serving.options import ServingOptions
from runtime.serving.refusals import CLIENT_GONE, EXPIRED, MODEL_FAILED, NOT_FOUND, Refused

_WARM_UP_EDGE = 64  # px


class Named(Protocol):
    """Something with a name."""

    @property
    def name(self) -> str:
        """The name."""


class OpenedModel(Protocol):
    """What a service needs of a ``Detector``."""

    @property
    def metadata(self) -> ModelMetadata:
        """The model's facts."""

    @property
    def runner(self) -> Runner:
        """What takes its batches."""

    @property
    def backend(self) -> Named:
        """What runs it."""


@dataclass(frozen=True, eq=False)
class ServedModel:
    """A model, its name, and its queue."""

    name: str
    detector: OpenedModel
    batcher: Batcher

    @property
    def platform(self) -> str:
        """What runs it, in the words of the protocol: ``onnxruntime_onnx``."""
        return (
            f"{self.detector.backend.name}_{'plan' if self.detector.backend.name == 'tensorrt' else 'onnx'}"
        )


@dataclass(frozen=True)
class Wish:
    """What is wanted of a request's images.

    Attributes:
        min_score: detections below it are left out.
        timeout_s: for the answer; None: the service's.
        keep_images: whether the pixels are needed with the results.
    """

    min_score: float = 0.0
    timeout_s: Optional[float] = None
    keep_images: bool = False


class Service(Closing):
    """Opened models and their queues. ``detect`` is for one event loop."""

    def __init__(
        self,
        detectors: Mapping[str, OpenedModel],
        options: ServingOptions,
        *,
        metrics: Optional[Metrics] = None,
        threads: Optional[int] = None,
    ) -> None:
        """Start the queues.

        Args:
            detectors: by name, one or more; closed by their owner, after this.
            options: of the service.
            metrics: that it counts in; None: of its own.
            threads: that decode images, of each model, and that write answers; None: as many as there are cores.

        Raises:
            ValueError: there is none.
            RuntimeError: the extra ``serve`` is not installed.
        """
        if not detectors:
            raise ValueError("models: expected one or more, found none")
        self.options, self.metrics = options, metrics or Metrics()
        self._num_threads = threads or num_cores()
        self.memory = Memory(options.max_memory_bytes)
        self._is_draining = False
        # For reading requests and writing answers, so that neither keeps the event loop.
        self._threads = ThreadPoolExecutor(self._num_threads, thread_name_prefix="answers")
        self.models = {name: self._served(name, detector) for name, detector in detectors.items()}
        self.metrics.watch_ready(lambda: self.is_ready)

    @property
    def is_alive(self) -> bool:
        """Whether every model's batches are formed."""
        return all(model.batcher.is_alive for model in self.models.values())

    @property
    def is_draining(self) -> bool:
        """Whether it ends when what was taken is answered."""
        return self._is_draining

    @property
    def is_ready(self) -> bool:
        """Whether requests are taken."""
        return not self._is_draining and self.is_alive

    def drain(self) -> None:
        """Say from now on that no more requests are wanted; those that come are answered still."""
        self._is_draining = True
        for model in self.models.values():
            model.batcher.hurry()

    def model(self, name: Optional[str] = None) -> ServedModel:
        """Return a model; the first one without a name.

        Raises:
            Refused: there is none of that name.
        """
        if name is None:
            return next(iter(self.models.values()))
        if name not in self.models:
            raise Refused(
                NOT_FOUND, f"model: expected one of {listed(list(self.models))}, found {shown(name)}"
            )
        return self.models[name]

    async def in_thread(self, function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        """Return what a function returns that takes more than a moment."""
        call = partial(function, *arguments, **options)
        return await asyncio.get_running_loop().run_in_executor(self._threads, call)

    async def detect(
        self,
        model: ServedModel,
        images: Sequence[NamedImage],
        wish: Wish,
        *,
        receive: Receive,
        place: Optional[Place] = None,
    ) -> list[Found]:
        """Return what is found in the images of a request.

        Args:
            model: which detects.
            images: of the request, looked at by ``check_declared``.
            wish: what is wanted.
            receive: of ASGI, after the request's last byte: the client may go.
            place: in the model's queue, that was kept while the request was looked at.

        Raises:
            Refused: an image cannot be used, there is no room or no time, the model failed, or the client has gone.
        """
        timeout_s = min(wish.timeout_s or self.options.timeout_s, self.options.timeout_s)
        deadline = time.monotonic() + timeout_s
        jobs = [Job(i.data, i.name, deadline, wish.min_score, wish.keep_images) for i in images]
        model.batcher.submit(jobs, place)
        waiting = asyncio.gather(*(asyncio.wrap_future(job.future) for job in jobs))
        waiting.add_done_callback(_looked_at)
        gone = asyncio.ensure_future(_left(receive))
        try:
            await asyncio.wait((waiting, gone), timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
            if waiting.done():
                return _results(waiting)
            if gone.done():
                raise Refused(CLIENT_GONE, "the client went before its answer was there")
            raise Refused(EXPIRED, f"expected an answer within {timeout_s:g} s, found none; ask again later")
        finally:
            gone.cancel()
            # Those that have not begun do not; the first that failed ends the others of its request, too.
            for job in jobs:
                job.future.cancel()
            waiting.cancel()

    def close(self) -> None:
        """Answer what was taken, and end the threads."""
        self.drain()
        for model in self.models.values():
            model.batcher.close()
        self._threads.shutdown()

    def _served(self, name: str, detector: OpenedModel) -> ServedModel:
        batcher = Batcher(
            detector.runner,
            detector.metadata,
            self.options,
            name=name,
            observer=self._observer(name, detector),
            threads=self._num_threads,
        )
        return ServedModel(name, detector, batcher)

    def _observer(self, name: str, detector: OpenedModel) -> Observer:
        """Return what a model's queue tells of its batches."""
        del detector
        # The gauge asks the queue, which does not exist yet.
        return self.metrics.observer(name, lambda: self.models[name].batcher.num_queued)


async def _left(receive: Receive) -> None:
    """Return when the client has gone."""
    while (await receive())["type"] != "http.disconnect":
        pass


def _looked_at(waiting: "asyncio.Future[list[Found]]") -> None:
    """Have asyncio not complain about what nobody waits for any more."""
    if not waiting.cancelled():
        waiting.exception()


def _results(waiting: "asyncio.Future[list[Found]]") -> list[Found]:
    try:
        return waiting.result()
    except Refused:
        raise
    except Exception as error:
        raise Refused(MODEL_FAILED, f"the model failed: {said(error)}") from error


def warm_up(detector: Detector) -> None:
    """Run a model once: what it cannot do is said before anybody asks, and the first request is no slower than others.

    Raises:
        RuntimeError: it cannot run, or pycocotools is not installed.
    """
    metadata = detector.metadata
    shape = (
        (_WARM_UP_EDGE, _WARM_UP_EDGE)
        if metadata.load.is_grey
        else (_WARM_UP_EDGE, _WARM_UP_EDGE, metadata.channels)
    )
    if metadata.masks != "none":
        load_pycocotools()
    with suppress(ValueError):  # an image that the model does not take
        detector([np.full(shape, 128, np.uint8)])
