"""Batches over one engine on the device, several at once: while one computes, others are copied in and out."""

from collections import deque
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Optional

import numpy as np

from runtime.cuda.memory import DeviceMemory, PinnedMemory, PinnedPool
from runtime.detections import Detections
from runtime.device.kernels import ImageKernels
from runtime.device.slot import Frame, Job, Slot
from runtime.engine.session import EngineSession
from runtime.host.postprocess import detections_from_outputs
from runtime.host.preprocess import DevicePlan, network_size
from runtime.metadata import ModelMetadata
from runtime.runner import Problems, Timings, add_timings
from runtime.transforms import applied

NUM_SLOTS = 3
# Copying pixels into page-locked memory: a few threads take all the bandwidth of the host's memory.
_NUM_STAGERS = 4


class DeviceRunner:
    """Runs a model with images prepared and masks encoded on the device; fulfils ``runtime.runner.Runner``.

    For any thread. Its memory is released with the session.
    """

    num_slots = NUM_SLOTS
    num_stagers = _NUM_STAGERS
    device_failure = ""

    def __init__(
        self, session: EngineSession, kernels: ImageKernels, metadata: ModelMetadata, plan: DevicePlan
    ) -> None:
        """Copy the plan's tables to the device.

        Raises:
            RuntimeError: the session is closed, or too little memory.
        """
        self._kernels = kernels
        self._session, self._metadata, self._plan = session, metadata, plan
        self.largest_batch: Optional[int] = session.inputs["images"].profile[2][0]
        self._pool = PinnedPool(session.cuda)
        with session.exclusive(), ExitStack() as stack:
            stack.callback(self._pool.close)
            self._tables = DeviceMemory(session.cuda)
            stack.callback(self._tables.free)
            self._copy_tables(self._tables)
            # The one that has been used the longest ago comes first.
            self._slots: deque[Slot] = deque()
            self._memory = stack.pop_all()
            session.on_close(self._memory.close)

    def _copy_tables(self, memory: DeviceMemory) -> None:
        values = self._plan.tables
        cuda = self._session.cuda
        stream = cuda.new_stream()
        pinned = PinnedMemory(cuda)
        try:
            memory.reserve(values.nbytes)
            pinned.reserve(values.nbytes)
            host = pinned.bytes(0, values.nbytes)
            host[:] = values.view(np.uint8).ravel()
            cuda.to_device(memory.address, host, stream)
            cuda.synchronize(stream)
        finally:
            pinned.free()
            cuda.free_stream(stream)

    def stage(self, image: np.ndarray) -> Frame:
        """Copy an image, (H, W, 3) uint8 BGR, to where the device can fetch it, after what the host does to it.

        Raises:
            ValueError: it does not fit into the model's fixed size.
            RuntimeError: the process was forked after the model was loaded.
        """
        self._session.check_process()
        size = (image.shape[0], image.shape[1])
        network_size(*size, self._metadata)
        pixels = applied(image, self._plan.host_steps)
        return Frame(pixels, size, self._plan.content_size(*size), self._pool)

    def submit(
        self, frames: Sequence[Frame], min_score: float = 0.0, *, check_masks: bool = False
    ) -> "DeviceBatch":
        """Put staged images, 1 to ``largest_batch``, on their way.

        Where all slots are taken, the oldest batch is waited for; whoever asks for its results has them. A slot is
        allocated when a batch is the first to need it. See ``Runner.submit``.

        Raises:
            ValueError: a size outside the engine's profile.
            RuntimeError: the session is closed, the device failed, or it has too little memory.
        """
        job = Job(frames, min_score, self._metadata, check_masks=check_masks)
        with self._session.exclusive() as compute:
            slot = self._next_slot()
            slot.finish()
            try:
                slot.start(job, compute)
            except BaseException:
                slot.abandon(compute)
                raise
            self._slots.rotate(-1)
        return DeviceBatch(self._session, slot, job, self._metadata)

    def _next_slot(self) -> Slot:
        """Return the one that has been used the longest ago, or while that has a batch, a new one."""
        if len(self._slots) < self.num_slots and not (self._slots and self._slots[0].is_idle):
            slot = Slot(self._session, self._kernels, self._metadata, self._plan, self._tables.address)
            self._memory.callback(slot.close)
            self._slots.appendleft(slot)
        return self._slots[0]

    def close(self) -> None:
        """Do nothing: what there is to release goes with the session."""


class DeviceBatch:
    """A batch under way; fulfils ``runtime.runner.Pending``."""

    def __init__(self, session: EngineSession, slot: Slot, job: Job, metadata: ModelMetadata) -> None:
        self._session, self._slot, self._job, self._metadata = session, slot, job, metadata

    def result(self, timings: Timings = None, problems: Problems = None) -> list[Detections]:
        """Wait for the detections of at least ``min_score``, one ``Detections`` per image.

        Args:
            timings: ms of ``copy_in``, ``prepare``, ``engine``, ``encode`` and ``copy_out`` on the device are added.
            problems: see ``Pending.result``.

        Raises:
            RuntimeError: the device failed, or the model's output is none.
        """
        job = self._job
        if not job.is_done:
            with self._session.exclusive():
                # Another thread may have finished it, and the slot have another batch by now.
                if not job.is_done:
                    self._slot.finish()
        if job.error is not None:
            raise job.error
        add_timings(timings, job.milliseconds)
        found = detections_from_outputs(
            job.outputs, job.geometry, self._metadata, problems=problems, check_masks=job.check_masks
        )
        return [detections.filter(job.min_score) for detections in found] if job.min_score > 0 else found
