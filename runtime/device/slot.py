"""One batch on its way through the device: pixels in, images prepared, network, masks encoded, results out."""

from collections.abc import Sequence
from contextlib import ExitStack
from sys import is_finalizing
from typing import Any, Callable, Optional

import numpy as np

from runtime.contract import contract_outputs
from runtime.cuda.binding import wait
from runtime.cuda.memory import Block, DeviceMemory, PinnedMemory, PinnedPool, aligned
from runtime.device.kernels import (
    EncodeMasksArguments,
    ImageKernels,
    PrepareImagesArguments,
    SourceImage,
    TargetImage,
)
from runtime.engine.session import EngineSession
from runtime.host.preprocess import BatchGeometry, DevicePlan, batch_geometry, padded_size
from runtime.metadata import ModelMetadata

# Room for the run lengths of so many bytes a mask at first.
_BYTES_PER_MASK = 512
# The stages, and the events that they begin and end with.
_STAGES = {
    "copy_in": ("begun", "copied"),
    "prepare": ("started", "prepared"),
    "engine": ("prepared", "computed"),
    "encode": ("computed", "encoded"),
    "copy_out": ("encoded", "done"),
}
_EVENTS = tuple(dict.fromkeys(event for pair in _STAGES.values() for event in pair))


class Frame:
    """An image in page-locked memory, which goes back to its pool with the last reference.

    Attributes:
        original: (height, width) of the image as it was decoded, px.
        size: (height, width) of its pixels here, px.
        content: (height, width) of these pixels inside the network's input, px.
    """

    def __init__(
        self, image: np.ndarray, original: tuple[int, int], content: tuple[int, int], pool: PinnedPool
    ) -> None:
        self._piece: Optional[np.ndarray] = None
        self._pool = pool
        self.original, self.size, self.content = original, image.shape[:2], content
        self._num_bytes = image.size
        self._piece = pool.take(self._num_bytes)
        np.copyto(self.pixels.reshape(image.shape), image)

    @property
    def pixels(self) -> np.ndarray:
        """(H * W * 3,) uint8, BGR."""
        return self._piece[: self._num_bytes]

    def __del__(self, is_ending: Callable[[], bool] = is_finalizing) -> None:
        # With the process all of its memory goes, and much of Python, names of modules too, has gone before.
        if self._piece is not None and not is_ending():
            self._pool.give(self._piece)


class Job:
    """A batch that was given to a slot.

    Attributes:
        frames: its images.
        geometry: where they lie in the network's input.
        padded: (height, width) of the network's input, px.
        min_score: detections below it get no mask.
        check_masks: fetch the masks' probabilities too.
        outputs: what ``detections_from_outputs`` takes, once it is done.
        milliseconds: of each stage on the device.
        error: why it failed.
    """

    def __init__(
        self, frames: Sequence[Frame], min_score: float, metadata: ModelMetadata, *, check_masks: bool = False
    ) -> None:
        self.frames = tuple(frames)
        self.geometry: BatchGeometry = batch_geometry([frame.original for frame in frames], metadata)
        self.padded = padded_size([(int(h), int(w)) for h, w in self.geometry.image_sizes], metadata)
        self.min_score = min_score
        self.check_masks = check_masks and metadata.masks == "crop"
        self.outputs: dict[str, Any] = {}
        self.milliseconds: dict[str, float] = {}
        self.error: Optional[Exception] = None

    @property
    def is_done(self) -> bool:
        """Whether there are results, or an error."""
        return bool(self.outputs) or self.error is not None


class Slot:
    """The memory of one batch, and a stream for its copies. Used inside ``EngineSession.exclusive`` alone.

    The network's ``images`` are the session's, as all slots fill and read them on its one stream; everything else is
    the slot's own, so that a batch can be fetched, and its masks encoded again, while the next ones compute.
    """

    def __init__(
        self,
        session: EngineSession,
        kernels: ImageKernels,
        metadata: ModelMetadata,
        plan: DevicePlan,
        tables: int,
    ) -> None:
        """Allocate for the engine's largest batch.

        Args:
            session: the engine.
            kernels: the plugin library's.
            metadata: the model's facts.
            plan: how its images are prepared.
            tables: address of the plan's tables on the device.
        """
        self._session, self._kernels, self._metadata = session, kernels, metadata
        self._plan, self._tables = plan, tables
        self._cuda = cuda = session.cuda
        self._encodes = metadata.masks == "crop"
        self._names = tuple(name for name in contract_outputs(metadata) if name != "masks")
        self._least, _, self._most = (shape[0] for shape in session.inputs["images"].profile)
        self._job: Optional[Job] = None
        with ExitStack() as stack:
            self._stream = cuda.new_stream()
            stack.callback(cuda.free_stream, self._stream)
            self._events = {name: cuda.new_event() for name in _EVENTS}
            for event in self._events.values():
                stack.callback(cuda.free_event, event)
            self._sizes = Block(cuda, {"image_sizes": ((self._most, 2), "float32")})
            stack.callback(self._sizes.free)
            self._results = Block(cuda, self._result_arrays())
            stack.callback(self._results.free)
            self._pixels, self._masks, self._strings = (DeviceMemory(cuda) for _ in range(3))
            for memory in (self._pixels, self._masks, self._strings):
                stack.callback(memory.free)
            self._host_strings, self._host_masks = PinnedMemory(cuda), PinnedMemory(cuda)
            stack.callback(self._host_strings.free)
            stack.callback(self._host_masks.free)
            if self._encodes:
                self._masks.reserve(4 * int(np.prod(session.largest_outputs["masks"])))
                self._reserve_strings(_BYTES_PER_MASK * self._most * metadata.max_per_img)
            self._memory = stack.pop_all()

    def _result_arrays(self) -> dict[str, tuple[tuple[int, ...], str]]:
        arrays = {n: (self._session.largest_outputs[n], self._session.outputs[n].dtype) for n in self._names}
        if self._encodes:
            rows = (self._most, self._metadata.max_per_img)
            arrays.update(offsets=(rows, "int64"), lengths=(rows, "int32"), used=((1,), "int64"))
        return arrays

    def _reserve_strings(self, num_bytes: int) -> None:
        self._strings.reserve(num_bytes)
        self._host_strings.reserve(self._strings.num_bytes)
        # Copied before it is known how many there are.
        self._expected_bytes = self._strings.num_bytes

    @property
    def is_idle(self) -> bool:
        """Whether there is no batch in it."""
        return self._job is None

    def _num_mask_bytes(self, job: Job) -> int:
        return 4 * len(job.frames) * int(np.prod(self._session.largest_outputs["masks"][1:]))

    def _record(self, event: str, stream: Any) -> None:
        self._cuda.record(self._events[event], stream)

    def start(self, job: Job, compute: Any) -> None:
        """Put a batch on its way; nothing is waited for.

        Args:
            job: 1 to the engine's largest batch of images.
            compute: the session's stream.

        Raises:
            ValueError: a size outside the engine's profile.
            RuntimeError: the device failed.
        """
        # A batch below the engine's least is filled up with its last image.
        batch = max(self._least, len(job.frames))
        shapes = {"images": (batch, 3, *job.padded), "image_sizes": (batch, 2)}
        self._session.check_shapes(shapes)
        self._job = job
        sources = self._copy_in(job, batch)
        self._cuda.wait_event(compute, self._events["copied"])
        self._record("started", compute)
        self._prepare(sources, job, compute)
        self._record("prepared", compute)
        self._session.start(shapes, self._addresses())
        self._record("computed", compute)
        if self._encodes:
            self._encode(job, compute)
        self._record("encoded", compute)
        self._cuda.wait_event(self._stream, self._events["encoded"])
        if job.check_masks:
            self._host_masks.reserve(self._num_mask_bytes(job))
            masks = self._host_masks.bytes(0, self._num_mask_bytes(job))
            self._cuda.to_host(masks, self._masks.address, self._stream)
        self._copy_out()

    def _copy_in(self, job: Job, batch: int) -> list[SourceImage]:
        self._pixels.reserve(sum(aligned(frame.pixels.nbytes) for frame in job.frames))
        sizes = self._sizes.host("image_sizes", (batch, 2))
        sizes[: len(job.frames)] = job.geometry.image_sizes
        sizes[len(job.frames) :] = job.geometry.image_sizes[-1]
        self._record("begun", self._stream)
        self._sizes.to_device(self._stream)
        sources = []
        address = self._pixels.address
        for frame in job.frames:
            self._cuda.to_device(address, frame.pixels, self._stream)
            sources.append(SourceImage(address, 3 * frame.size[1], *frame.size, *frame.content))
            address += aligned(frame.pixels.nbytes)
        self._record("copied", self._stream)
        return sources + sources[-1:] * (batch - len(sources))

    def _prepare(self, sources: list[SourceImage], job: Job, compute: Any) -> None:
        arguments = PrepareImagesArguments(
            images=(SourceImage * len(sources))(*sources),
            batch=len(sources),
            height=job.padded[0],
            width=job.padded[1],
            tables=self._tables,
            reverse_channels=int(self._plan.reverse_channels),
            pad_value=self._metadata.pad_value,
            output=self._session.address("images"),
        )
        self._kernels.prepare_images(arguments, self._cuda.stream_address(compute))

    def _addresses(self) -> dict[str, int]:
        addresses = {name: self._results.address(name) for name in self._names}
        addresses["image_sizes"] = self._sizes.address("image_sizes")
        if self._encodes:
            addresses["masks"] = self._masks.address
        return addresses

    def _encode(self, job: Job, stream: Any) -> None:
        geometry = job.geometry
        scales = geometry.scale_factors.astype(np.float32).tolist()
        targets = [TargetImage(*size, *scale) for size, scale in zip(geometry.original_sizes, scales)]
        mask_height, mask_width = self._session.largest_outputs["masks"][2:]
        arguments = EncodeMasksArguments(
            images=(TargetImage * len(targets))(*targets),
            batch=len(targets),
            max_dets=self._metadata.max_per_img,
            masks=self._masks.address,
            dets=self._results.address("dets"),
            num_dets=self._results.address("num_dets"),
            mask_height=mask_height,
            mask_width=mask_width,
            threshold=self._metadata.mask_threshold,
            min_score=job.min_score,
            strings=self._strings.address,
            capacity=self._strings.num_bytes,
            offsets=self._results.address("offsets"),
            lengths=self._results.address("lengths"),
            used=self._results.address("used"),
        )
        self._kernels.encode_masks(arguments, self._cuda.stream_address(stream))

    def _copy_out(self) -> None:
        self._results.to_host(self._stream)
        if self._encodes:
            self._copy_strings(0, self._expected_bytes)
        self._record("done", self._stream)

    def _copy_strings(self, start: int, stop: int) -> None:
        self._cuda.to_host(self._host_strings.bytes(start, stop), self._strings.address + start, self._stream)

    def finish(self) -> None:
        """Wait for the batch, if there is one, and put its results, or the error, into its ``Job``."""
        job = self._job
        if job is None:
            return
        try:
            wait(self._cuda, self._events["done"])
            job.milliseconds = self._times()
            outputs = self._fetched(job)
            job.outputs = {**outputs, **self._fetched_counts(job)}
        except Exception as error:
            job.error = error
        # Not where the wait was interrupted: the device may still be reading the frames.
        self._job, job.frames = None, ()

    def _times(self) -> dict[str, float]:
        events = self._events
        return {
            stage: self._cuda.milliseconds(events[start], events[end])
            for stage, (start, end) in _STAGES.items()
        }

    def _fetched(self, job: Job) -> dict[str, np.ndarray]:
        num_images = len(job.frames)
        largest = self._session.largest_outputs
        outputs = {
            name: self._results.host(name, (num_images, *largest[name][1:])).copy() for name in self._names
        }
        if job.check_masks:
            masks = self._host_masks.bytes(0, self._num_mask_bytes(job)).view("float32")
            outputs["masks"] = masks.reshape(num_images, *largest["masks"][1:]).copy()
        return outputs

    def _fetched_counts(self, job: Job) -> dict[str, list[list[bytes]]]:
        if not self._encodes:
            return {}
        strings = self._fetched_strings(job)
        shape = (len(job.frames), self._metadata.max_per_img)
        starts = self._results.host("offsets", shape).tolist()
        lengths = self._results.host("lengths", shape).tolist()
        return {
            "counts": [
                [strings[start : start + length] for start, length in zip(*rows)]
                for rows in zip(starts, lengths)
            ]
        }

    def _fetched_strings(self, job: Job) -> bytes:
        """Return all run lengths, having encoded again where they did not fit."""
        used = int(self._results.host("used", (1,))[0])
        if used > self._strings.num_bytes:
            self._reserve_strings(used)
            self._encode(job, self._stream)
            self._copy_out()
            wait(self._cuda, self._events["done"])
        elif used > self._expected_bytes:
            self._copy_strings(self._expected_bytes, used)
            self._record("done", self._stream)
            wait(self._cuda, self._events["done"])
        self._expected_bytes = min(self._strings.num_bytes, aligned(used + used // 4))
        return self._host_strings.bytes(0, used).tobytes()

    def abandon(self, compute: Any) -> None:
        """Forget a batch that did not get on its way, when what it did put on the streams is done."""
        self._cuda.synchronize(self._stream)
        self._cuda.synchronize(compute)
        self._job = None

    def close(self) -> None:
        """Release everything, when the batch is done."""
        self.finish()
        self._memory.close()
        self._stream, self._events = None, {}
