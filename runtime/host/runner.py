"""Batches of images through a model that takes arrays."""

import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Callable, Optional

import numpy as np

from runtime.detections import Detections
from runtime.forks import check_process
from runtime.host.postprocess import detections_from_outputs
from runtime.host.preprocess import Batch, check_image, network_size, prepare
from runtime.metadata import ModelMetadata
from runtime.runner import ArrayModel, NewArray, Problems, Timings, add_timings

# Runs a batch, or waits for it: the prepared images, and what the model makes of them.
Run = Callable[[], tuple[Batch, dict[str, np.ndarray]]]


class HostRunner:
    """Prepares images on the CPU, in a thread, while the model runs the batch before; masks are pasted on demand."""

    num_stagers = 1
    largest_batch: Optional[int] = None

    def __init__(
        self,
        model: ArrayModel,
        device_failure: str,
        *,
        parallel: int = 1,
        new_array: Optional[NewArray] = None,
    ) -> None:
        """Begin.

        Args:
            model: runs the batches; in threads of the runner's own where ``parallel`` is more than 1.
            device_failure: why it is not the device.
            parallel: batches that the model runs at once.
            new_array: see ``prepare``.
        """
        self.device_failure = device_failure
        self.num_slots = parallel + 1  # one more is prepared meanwhile
        self._is_closed = False
        self._model, self._parallel, self._new_array = model, parallel, new_array
        self._process, self._threads = os.getpid(), _Threads(parallel)

    def stage(self, image: np.ndarray) -> np.ndarray:
        """Return the image, having checked that it fits; see ``Runner.stage``."""
        check_image(image, metadata=self._model.metadata)
        network_size(image.shape[0], image.shape[1], self._model.metadata)
        return image

    def submit(
        self, staged: Sequence[np.ndarray], min_score: float = 0.0, *, check_masks: bool = False
    ) -> "HostBatch":
        """Begin to prepare a batch; see ``Runner.submit``."""
        if self._is_closed:
            raise RuntimeError("model: expected an open one, found it closed; make a new Detector")
        spent: dict[str, float] = {}
        threads = self._own_threads()
        prepared = threads.preparing.submit(_prepare, staged, self._model.metadata, spent, self._new_array)
        run: Run = partial(_run, self._model, prepared, spent)
        if threads.running is not None:
            run = threads.running.submit(run).result
        return HostBatch(self._model.metadata, run, spent, min_score=min_score, check_masks=check_masks)

    def _own_threads(self) -> "_Threads":
        """Return the threads of this process: a forked one has none of its parent's."""
        if self._process != os.getpid():
            self._threads = _Threads(self._parallel)
            self._process = os.getpid()
        return self._threads

    def close(self) -> None:
        """End the threads."""
        self._is_closed = True
        if self._process == os.getpid():
            self._threads.end()


class _Threads:
    """One that prepares, and where batches run side by side those that run them."""

    def __init__(self, parallel: int) -> None:
        self.preparing = ThreadPoolExecutor(1, thread_name_prefix="prepare")
        self.running = ThreadPoolExecutor(parallel, thread_name_prefix="run") if parallel > 1 else None

    def end(self) -> None:
        """Wait for what is under way."""
        self.preparing.shutdown()
        if self.running is not None:
            self.running.shutdown()


class HostBatch:
    """A batch of ``HostRunner``; fulfils ``Pending``."""

    def __init__(
        self,
        metadata: ModelMetadata,
        run: Run,
        spent: dict[str, float],
        *,
        min_score: float,
        check_masks: bool,
    ) -> None:
        self._metadata, self._run, self._spent = metadata, run, spent
        self._min_score, self._check_masks = min_score, check_masks
        self._process = os.getpid()

    def result(self, timings: Timings = None, problems: Problems = None) -> list[Detections]:
        """Run the model or wait for it; see ``Pending.result``. The stages are ``prepare``, ``engine``, ``results``."""
        check_process(self._process, "batch")
        batch, outputs = self._run()
        with _timed(self._spent, "results"):
            found = detections_from_outputs(
                outputs, batch, self._metadata, problems=problems, check_masks=self._check_masks
            )
        add_timings(timings, self._spent)
        return [d.filter(self._min_score) for d in found] if self._min_score > 0 else found


def _run(
    model: ArrayModel, prepared: "Future[Batch]", spent: dict[str, float]
) -> tuple[Batch, dict[str, np.ndarray]]:
    """Return the batch and what the model makes of it."""
    batch = prepared.result()
    with _timed(spent, "engine"):
        return batch, model.run(batch.images, batch.image_sizes)


def _prepare(
    images: Sequence[np.ndarray],
    metadata: ModelMetadata,
    spent: dict[str, float],
    new_array: Optional[NewArray],
) -> Batch:
    with _timed(spent, "prepare"):
        return prepare(images, metadata, new_array)


@contextmanager
def _timed(timings: dict[str, float], stage: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    timings[stage] = timings.get(stage, 0.0) + (time.perf_counter() - start) * 1e3
