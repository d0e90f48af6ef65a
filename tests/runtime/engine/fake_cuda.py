"""A GPU whose memory is NumPy's, behind cuda-python's and pycuda's calls.

What is put on a stream happens when the stream, or an event on it, is waited for, so that a result that is read too
early is wrong here as it would be there. Streams that nobody waits for may go on as well, by chance: see
``Device.restless``.
"""

import enum
import itertools
import random
import threading
import time
from types import SimpleNamespace
from typing import Callable, Optional

import numpy as np

_handles = itertools.count(1000)
# Of every wait: other threads get their turn, as they do there.
_SECONDS_TO_WAIT = 0.0003


class Status(enum.IntEnum):
    cudaSuccess = 0
    cudaErrorInvalidValue = 1
    cudaErrorMemoryAllocation = 2
    cudaErrorInvalidDevice = 101
    cudaErrorNotReady = 600
    cudaErrorIllegalAddress = 700
    cudaErrorStreamCaptureUnsupported = 900


_TEXTS = {
    Status.cudaErrorInvalidValue: b"invalid argument",
    Status.cudaErrorMemoryAllocation: b"out of memory",
    Status.cudaErrorInvalidDevice: b"invalid device ordinal",
    Status.cudaErrorNotReady: b"device not ready",
    Status.cudaErrorIllegalAddress: b"an illegal memory access was encountered",
    Status.cudaErrorStreamCaptureUnsupported: b"operation not permitted when stream is capturing",
}


class CudaError(Exception):
    """What a call of the device failed with."""

    def __init__(self, status: Status) -> None:
        super().__init__(_TEXTS[status].decode())
        self.status = status


# By address or handle, whichever device they are of: TensorRT gets nothing but the number.
_memory: dict[int, np.ndarray] = {}
_streams: dict[int, list["Step"]] = {}
# Of what is done on streams: a step begins when the one before has ended, whichever threads wait.
_running = threading.RLock()


class Step:
    """Something on a stream, to be done after what is there already."""

    def __init__(self, stream: int, work: Callable[[], None]) -> None:
        self.stream, self.work, self.is_done = stream, work, False


def memory_at(address: int, num_bytes: int) -> np.ndarray:
    """Return device or page-locked memory as uint8; it has to be allocated."""
    for start, block in list(_memory.items()):
        if start <= int(address) and int(address) + num_bytes <= start + len(block):
            return block[int(address) - start :][:num_bytes]
    raise CudaError(Status.cudaErrorIllegalAddress)


def put_on_stream(stream: int, work: Callable[[], None]) -> Step:
    """Have work done when the stream is waited for."""
    step = Step(int(stream), work)
    _streams[int(stream)].append(step)
    return step


def _run_next(stream: int) -> None:
    """Do the stream's next step, if there is one."""
    with _running:
        if _streams[stream]:
            step = _streams[stream].pop(0)
            step.work()
            step.is_done = True


def _run_until(done: Callable[[], bool], stream: int) -> None:
    while not done() and _streams[stream]:
        _run_next(stream)


class Device:
    """A GPU.

    Attributes:
        memory, pinned: what is allocated, bytes by address.
        streams, events, graphs: handles of those that exist.
        num_mallocs: of device memory, so far.
        limit: bytes of device memory that may be allocated at once.
        pinned_limit: the same for page-locked memory.
        calls: names of the calls so far.
        restless: where it is set, a source of chance: at every wait, and look at an event, any streams do some of what
            they may do, so that what runs too early for lack of a wait in between is found out.
    """

    def __init__(
        self, name: str = "Fake GPU", compute_capability: tuple[int, int] = (9, 0), limit: int = 1 << 30
    ) -> None:
        self.name, self.compute_capability, self.limit = name, compute_capability, limit
        self.pinned_limit = 1 << 30
        self.memory: dict[int, int] = {}
        self.pinned: dict[int, int] = {}
        self.streams: set[int] = set()
        self.events: dict[int, Optional[float]] = {}
        self.graphs: dict[int, list[Callable[[], None]]] = {}
        self.restless: Optional[random.Random] = None
        self.num_mallocs = 0
        self.calls: list[str] = []
        self._clock = itertools.count()
        self._captured: dict[int, list[Step]] = {}
        self._recorded: dict[int, Step] = {}
        self._lock = threading.Lock()

    @property
    def is_clean(self) -> bool:
        """Whether nothing is left of what was allocated."""
        return not (self.memory or self.pinned or self.streams or self.events or self.graphs)

    def malloc(self, num_bytes: int, pinned: bool = False) -> int:
        blocks, limit = (self.pinned, self.pinned_limit) if pinned else (self.memory, self.limit)
        with self._lock:
            if num_bytes < 1:
                raise CudaError(Status.cudaErrorInvalidValue)
            if sum(blocks.values()) + num_bytes > limit:
                raise CudaError(Status.cudaErrorMemoryAllocation)
            # Random bytes: fresh memory is not zero there either.
            block = np.random.default_rng(0).integers(1, 256, num_bytes, np.uint8)
            address = block.ctypes.data
            _memory[address] = block
            blocks[address] = num_bytes
            self.num_mallocs += not pinned
            return address

    def is_pinned(self, address: int) -> bool:
        """Return whether page-locked memory lies at the address."""
        return any(start <= int(address) < start + size for start, size in list(self.pinned.items()))

    def free(self, address: int, pinned: bool = False) -> None:
        with self._lock:
            if (self.pinned if pinned else self.memory).pop(int(address), None) is None:
                raise CudaError(Status.cudaErrorInvalidValue)
            del _memory[int(address)]

    def new_stream(self) -> int:
        handle = next(_handles)
        self.streams.add(handle)
        _streams[handle] = []
        return handle

    def free_stream(self, handle: int) -> None:
        if handle not in self.streams:
            raise CudaError(Status.cudaErrorInvalidValue)
        self.streams.remove(handle)
        del _streams[handle]

    def copy(self, target: int, source: int, num_bytes: int, stream: int) -> None:
        """Copy when the stream gets there; addresses that are not allocated fail then."""

        def work() -> None:
            memory_at(target, num_bytes)[:] = memory_at(source, num_bytes)

        put_on_stream(stream, work)

    def begin_capture(self, stream: int) -> None:
        """Keep what is enqueued from now on apart; what was before stays to be done."""
        self._captured[stream] = _streams[stream]
        _streams[stream] = []

    def end_capture(self, stream: int) -> int:
        handle = next(_handles)
        self.graphs[handle] = [step.work for step in _streams[stream]]
        _streams[stream] = self._captured.pop(stream)
        return handle

    def instantiate(self, graph: int) -> int:
        handle = next(_handles)
        self.graphs[handle] = list(self.graphs[graph])
        return handle

    def launch(self, graph: int, stream: int) -> None:
        for step in self.graphs[graph]:
            put_on_stream(stream, step)

    def free_graph(self, graph: int) -> None:
        if self.graphs.pop(graph, None) is None:
            raise CudaError(Status.cudaErrorInvalidValue)

    def synchronize(self, stream: int) -> None:
        if stream in self._captured:
            raise CudaError(Status.cudaErrorStreamCaptureUnsupported)
        time.sleep(_SECONDS_TO_WAIT)
        self._be_restless()
        _run_until(lambda: not _streams[stream], stream)

    def _be_restless(self) -> None:
        streams = sorted(self.streams - set(self._captured)) if self.restless else []
        for _ in range(self.restless.randrange(20) if streams else 0):
            _run_next(self.restless.choice(streams))

    def new_event(self) -> int:
        handle = next(_handles)
        self.events[handle] = None
        return handle

    def free_event(self, handle: int) -> None:
        if handle not in self.events:
            raise CudaError(Status.cudaErrorInvalidValue)
        del self.events[handle]
        self._recorded.pop(handle, None)

    def record(self, event: int, stream: int) -> None:
        self.events[event] = None

        def work() -> None:
            self.events[event] = float(next(self._clock))

        self._recorded[event] = put_on_stream(stream, work)

    def wait_event(self, stream: int, event: int) -> None:
        """Have the stream wait for what the event was recorded after by now; nothing, if it never was."""
        step = self._recorded.get(event)

        def work() -> None:
            if step is not None:
                _run_until(lambda: step.is_done, step.stream)

        put_on_stream(stream, work)

    def has_happened(self, event: int) -> bool:
        """Look at an event. The stream makes progress by being looked at."""
        self._be_restless()
        step = self._recorded.get(event)
        if step is not None and not step.is_done:
            _run_next(step.stream)
        return step is None or step.is_done

    def milliseconds(self, start: int, end: int) -> float:
        if self.events[start] is None or self.events[end] is None:
            raise CudaError(Status.cudaErrorNotReady)
        return self.events[end] - self.events[start]


class _Handle:
    """cuda-python's handles are objects that int() takes."""

    def __init__(self, value: int) -> None:
        self._value = value

    def __int__(self) -> int:
        return self._value


def _returning_status(method: Callable) -> Callable:
    """cuda-python raises nothing: every call returns a tuple that begins with its status."""

    def call(self: "Cudart", *args: object) -> tuple:
        self.device.calls.append(method.__name__)
        try:
            value = method(self, *args)
        except CudaError as error:
            return (error.status, None)
        values = () if value is None else value if isinstance(value, tuple) else (value,)
        return (Status.cudaSuccess, *values)

    return call


class Cudart:
    """The module ``cuda.cudart`` (``cuda.bindings.runtime``) for one or several devices."""

    cudaStreamNonBlocking = 1
    cudaError_t = Status
    cudaMemcpyKind = SimpleNamespace(cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2)
    cudaStreamCaptureMode = SimpleNamespace(cudaStreamCaptureModeThreadLocal=1)

    def __init__(self, *devices: Device) -> None:
        self.devices = devices
        self.current = 0

    @property
    def device(self) -> Device:
        return self.devices[self.current] if self.devices else Device()

    def cudaGetErrorString(self, status: Status) -> tuple:
        return Status.cudaSuccess, _TEXTS[status]

    @_returning_status
    def cudaGetDeviceCount(self) -> int:
        return len(self.devices)

    @_returning_status
    def cudaSetDevice(self, index: int) -> None:
        if not 0 <= index < len(self.devices):
            raise CudaError(Status.cudaErrorInvalidDevice)
        self.current = index

    @_returning_status
    def cudaGetDeviceProperties(self, index: int) -> SimpleNamespace:
        device = self.devices[index]
        major, minor = device.compute_capability
        return SimpleNamespace(
            name=device.name.encode(), major=major, minor=minor, totalGlobalMem=device.limit
        )

    @_returning_status
    def cudaMemGetInfo(self) -> tuple[int, int]:
        return self.device.limit - sum(self.device.memory.values()), self.device.limit

    @_returning_status
    def cudaMalloc(self, num_bytes: int) -> int:
        return self.device.malloc(num_bytes)

    @_returning_status
    def cudaFree(self, address: int) -> None:
        self.device.free(address)

    @_returning_status
    def cudaMallocHost(self, num_bytes: int) -> int:
        return self.device.malloc(num_bytes, pinned=True)

    @_returning_status
    def cudaFreeHost(self, address: int) -> None:
        self.device.free(address, pinned=True)

    @_returning_status
    def cudaStreamCreateWithFlags(self, flags: int) -> _Handle:
        if flags != self.cudaStreamNonBlocking:
            raise CudaError(Status.cudaErrorInvalidValue)
        return _Handle(self.device.new_stream())

    @_returning_status
    def cudaStreamDestroy(self, stream: _Handle) -> None:
        self.device.free_stream(int(stream))

    @_returning_status
    def cudaStreamSynchronize(self, stream: _Handle) -> None:
        self.device.synchronize(int(stream))

    @_returning_status
    def cudaMemcpyAsync(self, target: int, source: int, num_bytes: int, kind: int, stream: _Handle) -> None:
        host = {1: source, 2: target}[kind]
        if not self.device.is_pinned(host):
            raise CudaError(Status.cudaErrorInvalidValue)  # not asynchronous
        self.device.copy(target, source, num_bytes, int(stream))

    @_returning_status
    def cudaEventCreate(self) -> _Handle:
        return _Handle(self.device.new_event())

    @_returning_status
    def cudaEventDestroy(self, event: _Handle) -> None:
        self.device.free_event(int(event))

    @_returning_status
    def cudaEventRecord(self, event: _Handle, stream: _Handle) -> None:
        self.device.record(int(event), int(stream))

    @_returning_status
    def cudaStreamWaitEvent(self, stream: _Handle, event: _Handle, flags: int) -> None:
        assert flags == 0
        self.device.wait_event(int(stream), int(event))

    @_returning_status
    def cudaEventQuery(self, event: _Handle) -> None:
        if not self.device.has_happened(int(event)):
            raise CudaError(Status.cudaErrorNotReady)

    @_returning_status
    def cudaEventElapsedTime(self, start: _Handle, end: _Handle) -> float:
        return self.device.milliseconds(int(start), int(end))

    @_returning_status
    def cudaStreamBeginCapture(self, stream: _Handle, mode: int) -> None:
        assert mode == 1
        self.device.begin_capture(int(stream))

    @_returning_status
    def cudaStreamEndCapture(self, stream: _Handle) -> _Handle:
        return _Handle(self.device.end_capture(int(stream)))

    @_returning_status
    def cudaGraphInstantiate(self, graph: _Handle, flags: int) -> _Handle:
        return _Handle(self.device.instantiate(int(graph)))

    @_returning_status
    def cudaGraphDestroy(self, graph: _Handle) -> None:
        self.device.free_graph(int(graph))

    @_returning_status
    def cudaGraphLaunch(self, graph: _Handle, stream: _Handle) -> None:
        self.device.launch(int(graph), int(stream))

    @_returning_status
    def cudaGraphExecDestroy(self, graph: _Handle) -> None:
        self.device.free_graph(int(graph))


class _PinnedOwner:
    """What ``array.base`` of pycuda's page-locked arrays is."""

    def __init__(self, driver: "PyCudaDriver", num_bytes: int) -> None:
        self._driver = driver
        self.address = driver.active.malloc(num_bytes, pinned=True)
        self.num_bytes = num_bytes

    @property
    def __array_interface__(self) -> dict:
        return {"data": (self.address, False), "shape": (self.num_bytes,), "typestr": "|u1", "version": 3}

    def free(self) -> None:
        self._driver.active.free(self.address, pinned=True)


class PyCudaDriver:
    """The module ``pycuda.driver``. Every call wants a context that the calling thread has pushed."""

    def __init__(self, *devices: Device) -> None:
        self.devices = devices
        self.is_initialised = False
        self._pushed = threading.local()
        driver = self

        class _Context:
            def __init__(self, device: Device) -> None:
                self._device = device

            def push(self) -> None:
                driver.stack.append(self._device)

            @staticmethod
            def pop() -> None:
                driver.stack.pop()

        class _Device:
            def __init__(self, index: int) -> None:
                self._device = driver.devices[index]

            @staticmethod
            def count() -> int:
                if not driver.is_initialised:
                    raise RuntimeError("cuDeviceGetCount failed: initialization error")
                return len(driver.devices)

            def retain_primary_context(self) -> _Context:
                return _Context(self._device)

            def name(self) -> str:
                return self._device.name

            def compute_capability(self) -> tuple[int, int]:
                return self._device.compute_capability

            def total_memory(self) -> int:
                return self._device.limit

        class _Allocation:
            def __init__(self, num_bytes: int) -> None:
                self._address = driver.active.malloc(num_bytes)

            def __int__(self) -> int:
                return self._address

            def free(self) -> None:
                driver.active.free(self._address)

        class _Stream:
            def __init__(self) -> None:
                self._device = driver.active
                self.handle = self._device.new_stream()

            def synchronize(self) -> None:
                driver.active.synchronize(self.handle)

            def wait_for_event(self, event: "_Event") -> None:
                driver.active.wait_event(self.handle, event._handle)

            def __del__(self) -> None:
                self._device.free_stream(self.handle)

        class _Event:
            def __init__(self) -> None:
                self._device = driver.active
                self._handle = self._device.new_event()

            def record(self, stream: _Stream) -> None:
                driver.active.record(self._handle, stream.handle)

            def query(self) -> bool:
                return driver.active.has_happened(self._handle)

            def time_till(self, end: "_Event") -> float:
                return driver.active.milliseconds(self._handle, end._handle)

            def __del__(self) -> None:
                self._device.free_event(self._handle)

        self.Device, self.mem_alloc, self.Stream, self.Event = _Device, _Allocation, _Stream, _Event

    def init(self) -> None:
        self.is_initialised = True

    @property
    def stack(self) -> list[Device]:
        if not hasattr(self._pushed, "stack"):
            self._pushed.stack = []
        return self._pushed.stack

    @property
    def active(self) -> Device:
        if not self.stack:
            raise RuntimeError("cuda call failed: invalid device context - no currently active context?")
        return self.stack[-1]

    def mem_get_info(self) -> tuple[int, int]:
        return self.active.limit - sum(self.active.memory.values()), self.active.limit

    def pagelocked_empty(self, shape: int, dtype: type) -> np.ndarray:
        array = np.asarray(_PinnedOwner(self, int(shape)))
        assert array.dtype == dtype
        return array

    def memcpy_htod_async(self, address: int, array: np.ndarray, stream: object) -> None:
        self.active.copy(address, _pinned_address(self.active, array), array.nbytes, stream.handle)

    def memcpy_dtoh_async(self, array: np.ndarray, address: int, stream: object) -> None:
        self.active.copy(_pinned_address(self.active, array), address, array.nbytes, stream.handle)


def _pinned_address(device: Device, array: np.ndarray) -> int:
    address = array.ctypes.data
    if not array.flags.c_contiguous or not device.is_pinned(address):
        raise ValueError("expected contiguous page-locked memory")
    return address
