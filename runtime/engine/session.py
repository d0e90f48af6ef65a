"""Run an engine: NumPy arrays in and out, or tensors that lie on the device; by name."""

import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Callable, Optional, Union

import numpy as np

from runtime.cuda.binding import Cuda, active, open_cuda, wait
from runtime.engine.buffers import Buffer, ByteBuffer, Cast
from runtime.engine.library import Library, last, open_library
from runtime.forks import check_process


@dataclass(frozen=True)
class EngineTensor:
    """One input or output: NumPy dtype name, shape with None for a free dimension, and an input's profile."""

    dtype: str
    shape: tuple[Optional[int], ...]
    profile: Optional[tuple[tuple[int, ...], ...]] = None


class _GraphCache:
    """The network's launches for the latest shapes, captured as one CUDA graph for each set of addresses.

    Of the latest shapes only: a graph may read host memory that the context rewrites when its shapes change.
    """

    def __init__(self) -> None:
        self.failure = ""
        self._shapes: Any = None
        self._graphs: dict[Any, Any] = {}
        self._num_calls: dict[Any, int] = {}

    def run(self, addresses: Any, shapes: Any, enqueue: Callable[[], None], cuda: Cuda, stream: Any) -> None:
        if shapes != self._shapes:
            self.clear(cuda)
            self._shapes = shapes
        if self._is_due(addresses):
            self._capture(addresses, enqueue, cuda, stream)
        self._num_calls[addresses] = self._num_calls.get(addresses, 0) + 1
        if addresses in self._graphs:
            cuda.launch(self._graphs[addresses], stream)
        else:
            enqueue()

    def _is_due(self, addresses: Any) -> bool:
        # The first call of new shapes, and of new addresses, does work on the host that must not be captured.
        warm = sum(self._num_calls.values()) >= 2 and addresses in self._num_calls
        return warm and addresses not in self._graphs and not self.failure

    def _capture(self, addresses: Any, enqueue: Callable[[], None], cuda: Cuda, stream: Any) -> None:
        try:
            cuda.begin_capture(stream)
            try:
                enqueue()
            finally:
                graph = cuda.end_capture(stream)
        except RuntimeError as error:
            self.failure = str(error)
        else:
            self._graphs[addresses] = graph

    def clear(self, cuda: Cuda) -> None:
        for graph in self._graphs.values():
            cuda.free_graph(graph)
        self._graphs, self._num_calls, self._shapes = {}, {}, None


class EngineSession:
    """An engine with one execution context, one stream and its own buffers.

    Calls from several threads are safe and run one after the other; for calls side by side, make a session per
    thread. Sessions of one process do not disturb each other. A process that is forked off cannot use them: CUDA does
    not survive a fork.

    ``run`` takes and returns arrays. ``exclusive`` and ``start`` leave everything on the device, and the host free
    while it computes. One context computes one thing at a time: all of it is on one stream.

    Attributes:
        inputs, outputs: ``EngineTensor`` by name.
        largest_outputs: the outputs' shapes for the profile's largest inputs.
        cuda: the device.
    """

    def __init__(
        self,
        data: bytes,
        *,
        library: Optional[Library] = None,
        cuda: Optional[Cuda] = None,
        cuda_graphs: bool = False,
        casts: Optional[Mapping[str, Cast]] = None,
    ) -> None:
        """Load a serialised engine.

        Args:
            data: as ``build_engine`` made it. Its plugin library has to be loaded.
            library: TensorRT; None opens the installed one.
            cuda: the device; None opens device 0.
            cuda_graphs: launch the network as one CUDA graph from the third call of the same shapes on.
            casts: what makes uint8 of outputs, by name: those that are float32 in the engine are uint8 in ``run``.

        Raises:
            ValueError: TensorRT cannot read it.
            RuntimeError: no TensorRT, no CUDA binding, no GPU, or too little memory.
        """
        self._library = library or open_library()
        self._tensorrt = self._library.tensorrt
        self._lock = threading.Lock()
        self._process = os.getpid()
        self._graphs = _GraphCache() if cuda_graphs else None
        self.cuda = cuda or open_cuda()
        # Those of the inputs as the context knows them, and of the outputs that follow.
        self._shapes: tuple[dict, dict] = ({}, {})
        # Closes what was opened if the constructor fails on its way, while the device is still this thread's.
        with active(self.cuda), ExitStack() as self._open:
            self._engine = self._library.engine_from(data)
            self._context = self._engine.create_execution_context()
            if self._context is None:
                raise RuntimeError(
                    f"{self._tensorrt.name}: expected memory for an execution context, found too little; use a smaller "
                    "profile or free the GPU"
                )
            self._stream = self.cuda.new_stream()
            self._open.callback(self.cuda.free_stream, self._stream)
            inputs, outputs = self._tensorrt.tensor_names(self._engine)
            self.inputs = {name: self._tensor(name, profile=True) for name in inputs}
            self.outputs = {name: self._tensor(name, profile=False) for name in outputs}
            self._buffers = {name: self._buffer(name, casts or {}) for name in (*inputs, *outputs)}
            # Arrays are written to these; what is cast is an output.
            self._fed = {name: b for name, b in self._buffers.items() if isinstance(b, Buffer)}
            for buffer in self._buffers.values():
                self._open.callback(buffer.free)
            self._events = [self._new_event() for _ in range(4)]
            self._idle = self._new_event()
            self._reserve_largest()
            self._open = self._open.pop_all()

    def _tensor(self, name: str, profile: bool) -> EngineTensor:
        return EngineTensor(
            self._tensorrt.tensor_dtype(self._engine, name),
            self._tensorrt.tensor_shape(self._engine, name),
            self._tensorrt.profile_shapes(self._engine, name) if profile else None,
        )

    def _buffer(self, name: str, casts: Mapping[str, Cast]) -> Union[Buffer, ByteBuffer]:
        if name in casts and name in self.outputs and self.outputs[name].dtype == "float32":
            return ByteBuffer(self.cuda, casts[name])
        return Buffer(self.cuda)

    def _new_event(self) -> Any:
        event = self.cuda.new_event()
        self._open.callback(self.cuda.free_event, event)
        return event

    def _reserve_largest(self) -> None:
        """Take the profile's most memory at once, so that a long-running service does not run out of it later."""
        self.largest_outputs = self._set_shapes(
            {name: tensor.profile[2] for name, tensor in self.inputs.items()}
        )

    def _set_shapes(self, shapes: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
        """Set the inputs' shapes, reserve buffers for everything, return the outputs' shapes."""
        if shapes == self._shapes[0]:  # the context computes all shapes anew when told one, even the same
            return self._shapes[1]
        # What was started with other shapes may still read what the context now rewrites.
        self.cuda.record(self._idle, self._stream)
        wait(self.cuda, self._idle)
        self._shapes = ({}, {})
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
        self._shapes = (shapes, found)
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
            timings: if given, gets ``copy_in``, ``engine`` and ``copy_out``, casts included, ms on the device.

        Returns:
            The outputs by name; the caller's own arrays. Those that were cast keep page-locked memory for as long as
            they are there, beyond ``close`` too.

        Raises:
            ValueError: a missing or unknown input, another dtype, a shape outside the profile.
            RuntimeError: the session is closed, or the device failed, or this process was forked off the session's.
        """
        self.check_process()
        with self._lock:
            self._check_open()
            self._check_feeds(feeds)
            with active(self.cuda):
                return self._run(
                    {name: np.ascontiguousarray(array) for name, array in feeds.items()}, timings
                )

    def _run(
        self, feeds: dict[str, np.ndarray], timings: Optional[dict[str, float]]
    ) -> dict[str, np.ndarray]:
        shapes = self._set_shapes({name: array.shape for name, array in feeds.items()})
        cuda, stream = self.cuda, self._stream
        start, copied, computed, end = self._events
        for name, array in feeds.items():
            np.copyto(self._fed[name].host(array.shape, self.inputs[name].dtype), array)
        cuda.record(start, stream)
        for name, array in feeds.items():
            buffer = self._fed[name]
            cuda.to_device(buffer.address, buffer.host(array.shape, self.inputs[name].dtype), stream)
        cuda.record(copied, stream)
        self._start({})
        cuda.record(computed, stream)
        hosts = {
            n: self._buffers[n].fetch(shape, self.outputs[n].dtype, stream) for n, shape in shapes.items()
        }
        cuda.record(end, stream)
        cuda.synchronize(stream)
        if timings is not None:
            timings["copy_in"] = cuda.milliseconds(start, copied)
            timings["engine"] = cuda.milliseconds(copied, computed)
            timings["copy_out"] = cuda.milliseconds(computed, end)
        return {name: self._buffers[name].result(host) for name, host in hosts.items()}

    @contextmanager
    def exclusive(self) -> Iterator[Any]:
        """Keep the session, and the device, for the calling thread; yields the stream that the network runs on.

        Raises:
            RuntimeError: the session is closed, or this process was forked off the session's.
        """
        self.check_process()
        with self._lock:
            self._check_open()
            with active(self.cuda):
                yield self._stream

    def address(self, name: str) -> int:
        """Return where the session's own buffer of an input or output lies on the device.

        It holds the largest shape, and what is written into it is read by the next run.
        """
        return self._buffers[name].address

    def start(
        self, shapes: dict[str, tuple[int, ...]], addresses: dict[str, int]
    ) -> dict[str, tuple[int, ...]]:
        """Enqueue the network on what lies on the device, inside ``exclusive``; nothing is waited for.

        Args:
            shapes: of every input.
            addresses: of inputs and outputs, on the device; the session's own buffers for those that are not named.
                With CUDA graphs, each set of addresses gets its own: use a few, again and again.

        Returns:
            The outputs' shapes.

        Raises:
            ValueError: a shape outside the profile.
            RuntimeError: the device failed.
        """
        self.check_shapes(shapes)
        found = self._set_shapes(shapes)
        self._start(addresses)
        return found

    def on_close(self, release: Callable[[], None]) -> None:
        """Have something released when the session closes, before what was there earlier; inside ``exclusive``."""
        self._open.callback(release)

    def _start(self, addresses: dict[str, int]) -> None:
        """Enqueue the network for the shapes that are set, as a graph where there is one."""
        addresses = {name: addresses.get(name, buffer.address) for name, buffer in self._buffers.items()}

        def enqueue() -> None:
            with self._library.errors() as errors:
                stream = self.cuda.stream_address(self._stream)
                started = self._tensorrt.enqueue(self._context, addresses, stream)
            if not started:
                raise RuntimeError(
                    f"{self._tensorrt.name}: expected the engine to run, found: {last(errors)}"
                )

        if self._graphs is None:
            enqueue()
        else:
            shapes = tuple(self._shapes[0].items())
            self._graphs.run(tuple(addresses.items()), shapes, enqueue, self.cuda, self._stream)

    @property
    def cuda_graph_failure(self) -> str:
        """Why the network runs without a CUDA graph although one was asked for; empty if it does not."""
        return "" if self._graphs is None else self._graphs.failure

    def check_process(self) -> None:
        """Refuse to be used in a process that was forked off, where another thread's lock would stay locked.

        Raises:
            RuntimeError: this is another process than the session's.
        """
        check_process(self._process, "engine")

    def _check_open(self) -> None:
        if self._engine is None:
            raise RuntimeError("engine: expected an open session, found it closed; make a new one")

    def _check_feeds(self, feeds: dict[str, np.ndarray]) -> None:
        if set(feeds) != set(self.inputs):
            raise ValueError(f"inputs: expected {', '.join(self.inputs)}, found {', '.join(feeds) or 'none'}")
        for name, array in feeds.items():
            if str(array.dtype) != self.inputs[name].dtype:
                raise ValueError(f"input {name}: expected {self.inputs[name].dtype}, found {array.dtype}")
            self.check_shapes({name: array.shape})

    def check_shapes(self, shapes: dict[str, tuple[int, ...]]) -> None:
        """Refuse inputs' shapes that the profile does not have.

        Raises:
            ValueError: names the input and the range.
        """
        for name, shape in shapes.items():
            low, _, high = self.inputs[name].profile
            if len(shape) != len(low) or not all(a <= s <= b for a, s, b in zip(low, shape, high)):
                raise ValueError(f"input {name}: {self._refusal(name, shape)}")

    def layer_times(self, feeds: dict[str, np.ndarray], repeat: int = 20) -> dict[str, float]:
        """Return each layer's median time in ms, in the engine's order.

        Timing single layers takes time itself: their sum is more than a run. The context stays slow afterwards; close
        the session.
        """
        times: dict[str, list[float]] = {}

        def report(layer: str, milliseconds: float) -> None:
            times.setdefault(layer, []).append(milliseconds)

        self.run(feeds)
        with self._lock, active(self.cuda):
            profiler = self._tensorrt.set_profiler(self._context, report)
        for _ in range(repeat):
            self.run(feeds)
        del profiler
        return {layer: float(np.median(values)) for layer, values in times.items()}

    def layer_information(self) -> str:
        """Return TensorRT's description of the engine's layers, JSON, at the shapes that were last set."""
        self._check_open()
        inspector = self._engine.create_engine_inspector()
        # Without a context, layers of dynamic shape have no formats.
        inspector.execution_context = self._context
        return inspector.get_engine_information(self._tensorrt.trt.LayerInformationFormat.JSON)

    def close(self) -> None:
        """Release context, engine, buffers and stream. Calling it again does nothing; ``run`` raises afterwards.

        In a process that was forked off, there is nothing that it could release.
        """
        if self._process != os.getpid():
            return
        with self._lock:
            if self._engine is None:
                return
            with active(self.cuda):
                self.cuda.synchronize(self._stream)
                if self._graphs is not None:
                    self._graphs.clear(self.cuda)
                self._context = self._engine = None
                self._open.close()
                self._stream, self._events = None, []

    def __enter__(self) -> "EngineSession":
        return self

    def __exit__(
        self,
        kind: Optional[type[BaseException]],
        error: Optional[BaseException],
        traceback: Optional[TracebackType],
    ) -> None:
        self.close()
