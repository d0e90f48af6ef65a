"""Run an engine: NumPy arrays in and out, or tensors that lie on the device; by name."""

import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Callable, Optional, Union

import numpy as np

from runtime.closing import Closing
from runtime.cuda.binding import Cuda, active, open_cuda, wait
from runtime.engine.buffers import Buffer, ByteBuffer, Cast
from runtime.engine.config import Shapes
from runtime.engine.contexts import ProfileContext, is_within, open_contexts, union
from runtime.engine.library import Library, last, open_library
from runtime.forks import check_process

_REBUILD = "build the engine with a wider range, `python -m runtime.build --batch ... --size ...`"


@dataclass(frozen=True)
class EngineTensor:
    """One input or output: NumPy dtype name, shape with None for a free dimension, and what an input's profiles take.

    Of several profiles ``profile`` has the least and the largest shape, and the best of the last.
    """

    dtype: str
    shape: tuple[Optional[int], ...]
    profile: Optional[Shapes] = None


class EngineSession(Closing):
    """An engine with an execution context for each of its profiles, one stream and its own buffers.

    Calls from several threads are safe and run one after the other; for calls side by side, make a session per
    thread. Sessions of one process do not disturb each other. A process that is forked off cannot use them: CUDA does
    not survive a fork.

    ``run`` takes and returns arrays. ``exclusive`` and ``start`` leave everything on the device, and the host free
    while it computes. One thing is computed at a time: all of it is on one stream. The profile that is tuned for the
    nearest shapes runs; each keeps CUDA graphs of its own.

    Attributes:
        inputs, outputs: ``EngineTensor`` by name.
        largest_outputs: the outputs' shapes for the largest inputs that a profile has.
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
        self.cuda = cuda or open_cuda()
        # Closes what was opened if the constructor fails on its way, while the device is still this thread's.
        with active(self.cuda), ExitStack() as self._open:
            self._engine = self._library.engine_from(data)
            self._stream = self.cuda.new_stream()
            self._open.callback(self.cuda.free_stream, self._stream)
            inputs, outputs = self._tensorrt.tensor_names(self._engine)
            self._contexts = open_contexts(
                self._engine,
                inputs,
                library=self._library,
                cuda=self.cuda,
                stream=self._stream,
                cuda_graphs=cuda_graphs,
                stack=self._open,
            )
            self._active = self._contexts[-1]
            self.inputs = {name: self._tensor(name, self._limits(name)) for name in inputs}
            self.outputs = {name: self._tensor(name, None) for name in outputs}
            self._buffers = {name: self._buffer(name, casts or {}) for name in (*inputs, *outputs)}
            # Arrays are written to these; what is cast is an output.
            self._fed = {name: b for name, b in self._buffers.items() if isinstance(b, Buffer)}
            for buffer in self._buffers.values():
                self._open.callback(buffer.free)
            self._events = [self._new_event() for _ in range(4)]
            self._idle = self._new_event()
            self._reserve_largest()
            self._open = self._open.pop_all()

    def _limits(self, name: str) -> Shapes:
        return union([profile.limits[name] for profile in self._contexts])

    def _tensor(self, name: str, profile: Optional[Shapes]) -> EngineTensor:
        return EngineTensor(
            self._tensorrt.tensor_dtype(self._engine, name),
            self._tensorrt.tensor_shape(self._engine, name),
            profile,
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
        """Take the profiles' most memory at once, so that a long-running service does not run out of it later."""
        found = [
            self._set_shapes({name: limits[2] for name, limits in profile.limits.items()})
            for profile in self._contexts
        ]
        self.largest_outputs = {
            name: tuple(max(sizes) for sizes in zip(*(shapes[name] for shapes in found)))
            for name in self.outputs
        }

    def _profile_of(self, shapes: dict[str, tuple[int, ...]]) -> ProfileContext:
        """Return the profile that is tuned for the shapes nearest to these."""
        fitting = [profile for profile in self._contexts if profile.takes(shapes)]
        if fitting:
            return min(fitting, key=lambda profile: profile.distance(shapes))
        self.check_shapes(shapes)
        listed = "; or ".join(
            ", ".join(f"{name} {low} to {high}" for name, (low, _, high) in profile.limits.items())
            for profile in self._contexts
        )
        raise ValueError(
            f"inputs: expected shapes that one profile has ({listed}), found {shapes}; {_REBUILD}"
        )

    def _set_shapes(self, shapes: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
        """Choose a profile, set the inputs' shapes, reserve buffers for everything, return the outputs' shapes."""
        if shapes == self._active.shapes:  # the context computes all shapes anew when told one, even the same
            return self._active.output_shapes
        self._active = profile = self._profile_of(shapes)
        if shapes == profile.shapes:
            return profile.output_shapes
        # What was started with other shapes may still read what the context now rewrites.
        self.cuda.record(self._idle, self._stream)
        wait(self.cuda, self._idle)
        profile.shapes, profile.output_shapes = {}, {}
        for name, shape in shapes.items():
            if not self._tensorrt.set_input_shape(profile.context, name, shape):
                raise ValueError(f"input {name}: {self._refusal(name, shape)}")
            self._reserve(name, self.inputs[name], shape)
        found = {name: self._tensorrt.output_shape(profile.context, name) for name in self.outputs}
        for name, shape in found.items():
            if any(size < 0 for size in shape):
                raise ValueError(
                    f"output {name}: expected a size that follows from the inputs' sizes, found {shape}; give it a "
                    "fixed number of rows in the ONNX, padded"
                )
            self._reserve(name, self.outputs[name], shape)
        profile.shapes, profile.output_shapes = shapes, found
        return found

    def _reserve(self, name: str, tensor: EngineTensor, shape: tuple[int, ...]) -> None:
        self._buffers[name].reserve(int(np.prod(shape, dtype=np.int64)) * np.dtype(tensor.dtype).itemsize)

    def _refusal(self, name: str, shape: tuple[int, ...]) -> str:
        low, _, high = self.inputs[name].profile
        return f"expected a shape from {low} to {high}, found {tuple(shape)}; {_REBUILD}"

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
        profile = self._active

        def enqueue() -> None:
            with self._library.errors() as errors:
                stream = self.cuda.stream_address(self._stream)
                started = self._tensorrt.enqueue(profile.context, addresses, stream)
            if not started:
                raise RuntimeError(
                    f"{self._tensorrt.name}: expected the engine to run, found: {last(errors)}"
                )

        if profile.graphs is None:
            enqueue()
        else:
            shapes = tuple(profile.shapes.items())
            profile.graphs.run(tuple(addresses.items()), shapes, enqueue, self.cuda, self._stream)

    @property
    def cuda_graph_failure(self) -> str:
        """Why the network runs without a CUDA graph although one was asked for; empty if it does not."""
        return next((p.graphs.failure for p in self._contexts if p.graphs and p.graphs.failure), "")

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
        """Refuse inputs' shapes that no profile has.

        Raises:
            ValueError: names the input and the range.
        """
        for name, shape in shapes.items():
            if not is_within(shape, self.inputs[name].profile):
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
            profilers = [self._tensorrt.set_profiler(p.context, report) for p in self._contexts]
        for _ in range(repeat):
            self.run(feeds)
        del profilers
        return {layer: float(np.median(values)) for layer, values in times.items()}

    def layer_information(self) -> str:
        """Return TensorRT's description of the engine's layers, JSON, at the shapes that were last set."""
        self._check_open()
        inspector = self._engine.create_engine_inspector()
        # Without a context, layers of dynamic shape have no formats.
        inspector.execution_context = self._active.context
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
                for profile in self._contexts:
                    if profile.graphs is not None:
                        profile.graphs.clear(self.cuda)
                self._contexts, self._active = [], None
                self._engine = None
                self._open.close()
                self._stream, self._events = None, []
