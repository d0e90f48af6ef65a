"""Batches over several sessions of one engine, in turn: what one leaves of the device, the others take."""

import itertools
from collections.abc import Sequence
from typing import Optional

import numpy as np

from runtime.device.runner import DeviceBatch, DeviceRunner
from runtime.device.slot import Frame


class StreamsRunner:
    """Several ``DeviceRunner``, a batch each in turn; fulfils ``runtime.runner.Runner``.

    For any thread. Each runs on a stream of its own, with memory of its own: an engine's small kernels (selection, NMS)
    leave most of a device to the other streams. What is found does not depend on the stream.
    """

    device_failure = ""

    def __init__(self, runners: Sequence[DeviceRunner]) -> None:
        """Take runners of sessions of one engine, in one device's context; one or more."""
        self._runners = tuple(runners)
        self.num_slots = sum(runner.num_slots for runner in runners)
        self.num_stagers = runners[0].num_stagers
        self.largest_batch: Optional[int] = runners[0].largest_batch
        # ``next`` of it is one step of Python's: threads need no lock.
        self._turn = itertools.cycle(self._runners)

    def stage(self, image: np.ndarray) -> Frame:
        """See ``DeviceRunner.stage``; every runner of the device can fetch it."""
        return self._runners[0].stage(image)

    def submit(
        self, frames: Sequence[Frame], min_score: float = 0.0, *, check_masks: bool = False
    ) -> DeviceBatch:
        """Put staged images on their way, on the stream whose turn it is; see ``DeviceRunner.submit``."""
        return next(self._turn).submit(frames, min_score, check_masks=check_masks)

    def close(self) -> None:
        """Do nothing: what there is to release goes with the sessions."""
