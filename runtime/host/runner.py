"""Batches of images through a model that takes arrays."""

import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Optional

import numpy as np

from runtime.detections import Detections
from runtime.forks import check_process
from runtime.host.postprocess import detections_from_outputs
from runtime.host.preprocess import Batch, check_image, network_size, prepare
from runtime.metadata import ModelMetadata
from runtime.runner import ArrayModel, Problems, Timings, add_timings


class HostRunner:
    """Prepares images on the CPU, in a thread, while the model runs the batch before; masks are pasted on demand."""

    num_slots = 2
    num_stagers = 1
    largest_batch: Optional[int] = None

    def __init__(self, model: ArrayModel, device_failure: str) -> None:
        self.device_failure = device_failure
        self._is_closed = False
        self._model = model
        self._process, self._preparing = os.getpid(), _new_thread()

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
        prepared = self._thread().submit(_prepare, staged, self._model.metadata, spent)
        return HostBatch(self._model, prepared, spent, min_score=min_score, check_masks=check_masks)

    def _thread(self) -> ThreadPoolExecutor:
        """Return the thread of this process: a forked one has none of its parent's."""
        if self._process != os.getpid():
            self._preparing = _new_thread()
            self._process = os.getpid()
        return self._preparing

    def close(self) -> None:
        """End the thread."""
        self._is_closed = True
        if self._process == os.getpid():
            self._preparing.shutdown()


class HostBatch:
    """A batch of ``HostRunner``; fulfils ``Pending``."""

    def __init__(
        self,
        model: ArrayModel,
        prepared: "Future[Batch]",
        spent: dict[str, float],
        *,
        min_score: float,
        check_masks: bool,
    ) -> None:
        self._model, self._prepared, self._spent = model, prepared, spent
        self._min_score, self._check_masks = min_score, check_masks
        self._process = os.getpid()

    def result(self, timings: Timings = None, problems: Problems = None) -> list[Detections]:
        """Run the model; see ``Pending.result``. The stages are ``prepare``, ``engine`` and ``results``."""
        check_process(self._process, "batch")
        batch = self._prepared.result()
        with _timed(self._spent, "engine"):
            outputs = self._model.run(batch.images, batch.image_sizes)
        with _timed(self._spent, "results"):
            found = detections_from_outputs(
                outputs, batch, self._model.metadata, problems=problems, check_masks=self._check_masks
            )
        add_timings(timings, self._spent)
        return [d.filter(self._min_score) for d in found] if self._min_score > 0 else found


def _new_thread() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(1, thread_name_prefix="prepare")


def _prepare(images: Sequence[np.ndarray], metadata: ModelMetadata, spent: dict[str, float]) -> Batch:
    with _timed(spent, "prepare"):
        return prepare(images, metadata)


@contextmanager
def _timed(timings: dict[str, float], stage: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    timings[stage] = timings.get(stage, 0.0) + (time.perf_counter() - start) * 1e3
