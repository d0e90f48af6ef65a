"""Run an engine: NumPy arrays in and out, tensors by name."""

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Optional

import numpy as np

from runtime.engine.cuda import Cuda, open_cuda
from runtime.engine.library import Library, last, open_library

# Not 0, which some drivers answer with no address.
_LEAST_BYTES = 256


@dataclass(frozen=True)
class EngineTensor:
    """One input or output: NumPy dtype name, shape with None for a free dimension, and an input's profile."""

    dtype: str
    shape: tuple[Optional[int], ...]
    profile: Optional[tuple[tuple[int, ...], ...]] = None


class _Buffer:
    """Device memory and its page-locked counterpart for one tensor, grown when more is needed."""

    def __init__(self, cuda: Cuda) -> None:
        self._cuda = cuda
        self.num_bytes = 0
        self.address = 0
        self._pinned: Optional[np.ndarray] = None

    def reserve(self, num_bytes: int) -> None:
        if num_bytes <= self.num_bytes:
            return
        self.free()
        self.address = self._cuda.malloc(max(num_bytes, _LEAST_BYTES))
        self._pinned = self._cuda.pinned(max(num_bytes, _LEAST_BYTES))
        self.num_bytes = num_bytes

    def host(self, shape: tuple[int, ...], dtype: str) -> np.ndarray:
        """Return the page-locked memory as an array of that shape."""
        num_bytes = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
        return self._pinned[:num_bytes].view(dtype).reshape(shape)

    def free(self) -> None:
        if self._pinned is not None:
            self._cuda.free(self.address)
            self._cuda.free_pinned(self._pinned)
            self._pinned, self.address, self.num_bytes = None, 0, 0


class EngineSession:
    """An engine with one execution context, one stream and its own buffers.

    Calls from several threads are safe and run one after the other; for calls side by side, make a session per
    thread. Sessions of one process do not disturb each other.

    Attributes:
        inputs, outputs: ``EngineTensor`` by name.
    """

    def __init__(
        self, data: bytes, *, library: Optional[Library] = None, cuda: Optional[Cuda] = None
    ) -> None:
        """Load a serialised engine.

        Args:
            data: as ``build_engine`` made it. Its plugin library has to be loaded.
            library: TensorRT; None opens the installed one.
            cuda: the device; None opens device 0.

        Raises:
            ValueError: TensorRT cannot read it.
            RuntimeError: no TensorRT, no CUDA binding, no GPU, or too little memory.
        """
        self._library = library or open_library()
        self._tensorrt = self._library.tensorrt
        self._lock = threading.Lock()
        self._cuda = cuda or open_cuda()
        # Closes what was opened if the constructor fails on its way.
        with ExitStack() as self._open, self._active():
            self._engine = self._library.engine_from(data)
            self._context = self._engine.create_execution_context()
            if self._context is None:
                raise RuntimeError(
                    f"{self._tensorrt.name}: expected memory for an execution context, found too little; use a smaller "
                    "profile or free the GPU"
                )
            self._stream = self._cuda.new_stream()
            self._open.callback(self._cuda.free_stream, self._stream)
            inputs, outputs = self._tensorrt.tensor_names(self._engine)
            self.inputs = {name: self._tensor(name, profile=True) for name in inputs}
            self.outputs = {name: self._tensor(name, profile=False) for name in outputs}
            self._buffers = {name: _Buffer(self._cuda) for name in (*inputs, *outputs)}
            for buffer in self._buffers.values():
                self._open.callback(buffer.free)
            self._events = [self._cuda.new_event() for _ in range(4)]
            self._reserve_largest()
            self._open = self._open.pop_all()

    def _tensor(self, name: str, profile: bool) -> EngineTensor:
        return EngineTensor(
            self._tensorrt.tensor_dtype(self._engine, name),
            self._tensorrt.tensor_shape(self._engine, name),
            self._tensorrt.profile_shapes(self._engine, name) if profile else None,
        )

    @contextmanager
    def _active(self) -> Iterator[None]:
        """Make the device the calling thread's."""
        self._cuda.activate()
        try:
            yield
        finally:
            self._cuda.release()

    def _reserve_largest(self) -> None:
        """Take the profile's most memory at once, so that a long-running service does not run out of it later."""
        self._set_shapes({name: tensor.profile[2] for name, tensor in self.inputs.items()})

    def _set_shapes(self, shapes: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
        """Set the inputs' shapes, reserve buffers for everything, return the outputs' shapes."""
        for name, shape in shapes.items():
            if not self._tensorrt.set_input_shape(self._context, name, shape):
                raise ValueError(f"input {name}: {self._refusal(name, shape)}")
            self._reserve(name, self.inputs[name], shape)
        found = {name: self._tensorrt.output_shape(self._context, name) for name in self.outputs}
        for name, shape in found.items():
            if any(size < 0 for size in shape):
                raise ValueError(
                    f"output {name}: expected a size that follows from the inputs' sizes, found {shape}; give it a "
                    "fixed number of rows in the ONNX, padded"
                )
            self._reserve(name, self.outputs[name], shape)
        return found

    def _reserve(self, name: str, tensor: EngineTensor, shape: tuple[int, ...]) -> None:
        self._buffers[name].reserve(int(np.prod(shape, dtype=np.int64)) * np.dtype(tensor.dtype).itemsize)

    def _refusal(self, name: str, shape: tuple[int, ...]) -> str:
        low, _, high = self.inputs[name].profile
        return (
            f"expected a shape from {low} to {high}, found {tuple(shape)}; build the engine with a wider range, "
            "`python -m runtime.build --batch ... --size ...`"
        )

    def run(
        self, feeds: dict[str, np.ndarray], timings: Optional[dict[str, float]] = None
    ) -> dict[str, np.ndarray]:
        """Run the network once.

        Args:
            feeds: every input by name, of its dtype, within the profile.
            timings: if given, gets ``copy_in``, ``engine`` and ``copy_out``, ms on the device.

        Returns:
            The outputs by name; the caller's own arrays.

        Raises:
            ValueError: a missing or unknown input, another dtype, a shape outside the profile.
            RuntimeError: the session is closed, or the device failed.
        """
        with self._lock:
            if self._engine is None:
                raise RuntimeError("engine: expected an open session, found it closed; make a new one")
            self._check_feeds(feeds)
            with self._active():
                return self._run(
                    {name: np.ascontiguousarray(array) for name, array in feeds.items()}, timings
                )

    def _run(
        self, feeds: dict[str, np.ndarray], timings: Optional[dict[str, float]]
    ) -> dict[str, np.ndarray]:
        shapes = self._set_shapes({name: array.shape for name, array in feeds.items()})
        cuda, stream = self._cuda, self._stream
        start, copied, computed, end = self._events
        for name, array in feeds.items():
            np.copyto(self._buffers[name].host(array.shape, self.inputs[name].dtype), array)
        cuda.record(start, stream)
        for name, array in feeds.items():
            buffer = self._buffers[name]
            cuda.to_device(buffer.address, buffer.host(array.shape, self.inputs[name].dtype), stream)
        cuda.record(copied, stream)
        addresses = {name: buffer.address for name, buffer in self._buffers.items()}
        with self._library.errors() as errors:
            started = self._tensorrt.enqueue(self._context, addresses, cuda.stream_address(stream))
        if not started:
            raise RuntimeError(f"{self._tensorrt.name}: expected the engine to run, found: {last(errors)}")
        cuda.record(computed, stream)
        hosts = {n: self._buffers[n].host(shape, self.outputs[n].dtype) for n, shape in shapes.items()}
        for name, host in hosts.items():
            cuda.to_host(host, self._buffers[name].address, stream)
        cuda.record(end, stream)
        cuda.synchronize(stream)
        if timings is not None:
            timings["copy_in"] = cuda.milliseconds(start, copied)
            timings["engine"] = cuda.milliseconds(copied, computed)
            timings["copy_out"] = cuda.milliseconds(computed, end)
        return {name: host.copy() for name, host in hosts.items()}

    def _check_feeds(self, feeds: dict[str, np.ndarray]) -> None:
        if set(feeds) != set(self.inputs):
            raise ValueError(f"inputs: expected {', '.join(self.inputs)}, found {', '.join(feeds) or 'none'}")
        for name, array in feeds.items():
            if str(array.dtype) != self.inputs[name].dtype:
                raise ValueError(f"input {name}: expected {self.inputs[name].dtype}, found {array.dtype}")
            low, _, high = self.inputs[name].profile
            inside = array.ndim == len(low) and all(a <= s <= b for a, s, b in zip(low, array.shape, high))
            if not inside:
                raise ValueError(f"input {name}: {self._refusal(name, array.shape)}")

    def layer_information(self) -> str:
        """Return TensorRT's description of the engine's layers, JSON, at the shapes that were last set."""
        inspector = self._engine.create_engine_inspector()
        # Without a context, layers of dynamic shape have no formats.
        inspector.execution_context = self._context
        return inspector.get_engine_information(self._tensorrt.trt.LayerInformationFormat.JSON)

    def close(self) -> None:
        """Release context, engine, buffers and stream. Calling it again does nothing; ``run`` raises afterwards."""
        with self._lock:
            if self._engine is None:
                return
            with self._active():
                self._cuda.synchronize(self._stream)
                self._context = self._engine = None
                self._open.close()

    def __enter__(self) -> "EngineSession":
        return self

    def __exit__(
        self,
        kind: Optional[type[BaseException]],
        error: Optional[BaseException],
        traceback: Optional[TracebackType],
    ) -> None:
        self.close()
