"""The few CUDA calls that running an engine needs, through cuda-python or pycuda, whichever is installed."""

import ctypes
import importlib
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Optional, Protocol

import numpy as np

# Of every look at an event: a tenth of what the fastest engines take, at most.
_SECONDS_BETWEEN_LOOKS = 5e-5


class Cuda(Protocol):
    """A CUDA device. Addresses, streams and events are integers or the binding's own handles."""

    binding: str

    def activate(self) -> None:
        """Make the device the calling thread's; needed once per thread and call that uses it."""

    def release(self) -> None:
        """Undo ``activate``."""

    def device(self) -> dict[str, Any]:
        """Return ``name``, ``compute_capability`` (``9.0``), ``memory_mib``."""

    def memory_info(self) -> tuple[int, int]:
        """Return the free and all of the device's memory, bytes."""

    def malloc(self, num_bytes: int) -> int:
        """Return the address of new device memory."""

    def free(self, address: int) -> None:
        """Release device memory."""

    def pinned(self, num_bytes: int) -> np.ndarray:
        """Return new page-locked host memory, (num_bytes,) uint8."""

    def free_pinned(self, array: np.ndarray) -> None:
        """Release page-locked host memory."""

    def new_stream(self) -> Any:
        """Return a stream."""

    def stream_address(self, stream: Any) -> int:
        """Return a stream's handle as TensorRT takes it."""

    def free_stream(self, stream: Any) -> None:
        """Release a stream."""

    def to_device(self, address: int, array: np.ndarray, stream: Any) -> None:
        """Copy a contiguous host array, asynchronously where it is page-locked."""

    def to_host(self, array: np.ndarray, address: int, stream: Any) -> None:
        """Copy into a contiguous host array, asynchronously where it is page-locked."""

    def synchronize(self, stream: Any) -> None:
        """Wait for the stream."""

    def new_event(self) -> Any:
        """Return an event that keeps the time."""

    def free_event(self, event: Any) -> None:
        """Release an event."""

    def record(self, event: Any, stream: Any) -> None:
        """Note the time when the stream gets here."""

    def wait_event(self, stream: Any, event: Any) -> None:
        """Have the stream wait for what the event was last recorded after; the host does not wait."""

    def has_happened(self, event: Any) -> bool:
        """Return whether the stream has come to where the event was last recorded."""

    def milliseconds(self, start: Any, end: Any) -> float:
        """Return the time between two events that have happened."""

    def begin_capture(self, stream: Any) -> None:
        """Record what the calling thread enqueues on the stream from now on, instead of doing it."""

    def end_capture(self, stream: Any) -> Any:
        """Return what was recorded as a graph to launch.

        Raises:
            RuntimeError: something was enqueued that a graph cannot hold, or the binding has no graphs.
        """

    def launch(self, graph: Any, stream: Any) -> None:
        """Enqueue a graph."""

    def free_graph(self, graph: Any) -> None:
        """Release a graph."""


class CudaPython:
    """cuda-python (NVIDIA's binding; package ``cuda``), on the device's primary context."""

    binding = "cuda-python"

    def __init__(self, runtime: Any, device_index: int = 0) -> None:
        self._rt = runtime
        self._device_index = device_index
        num_devices = self._check(runtime.cudaGetDeviceCount())
        _check_device(device_index, num_devices)
        self._check(runtime.cudaSetDevice(device_index))

    def _check(self, result: Any) -> Any:
        status, *values = result
        if int(status) != 0:
            text = self._rt.cudaGetErrorString(status)[1]
            text = text.decode() if isinstance(text, bytes) else text
            raise RuntimeError(
                f"CUDA: expected the call to succeed, found {text}; if memory ran out, use a smaller batch or profile"
            )
        return values[0] if len(values) == 1 else values

    def activate(self) -> None:
        self._check(self._rt.cudaSetDevice(self._device_index))

    def release(self) -> None:
        pass

    def device(self) -> dict[str, Any]:
        properties = self._check(self._rt.cudaGetDeviceProperties(self._device_index))
        name = properties.name
        return {
            "name": name.decode() if isinstance(name, bytes) else str(name),
            "compute_capability": f"{properties.major}.{properties.minor}",
            "memory_mib": int(properties.totalGlobalMem) >> 20,
        }

    def memory_info(self) -> tuple[int, int]:
        free, total = self._check(self._rt.cudaMemGetInfo())
        return int(free), int(total)

    def malloc(self, num_bytes: int) -> int:
        return int(self._check(self._rt.cudaMalloc(num_bytes)))

    def free(self, address: int) -> None:
        self._check(self._rt.cudaFree(address))

    def pinned(self, num_bytes: int) -> np.ndarray:
        return host_array(num_bytes, int(self._check(self._rt.cudaMallocHost(num_bytes))))

    def free_pinned(self, array: np.ndarray) -> None:
        self._check(self._rt.cudaFreeHost(array.ctypes.data))

    def new_stream(self) -> Any:
        return self._check(self._rt.cudaStreamCreateWithFlags(self._rt.cudaStreamNonBlocking))

    def stream_address(self, stream: Any) -> int:
        return int(stream)

    def free_stream(self, stream: Any) -> None:
        self._check(self._rt.cudaStreamDestroy(stream))

    def to_device(self, address: int, array: np.ndarray, stream: Any) -> None:
        kind = self._rt.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._check(self._rt.cudaMemcpyAsync(address, array.ctypes.data, array.nbytes, kind, stream))

    def to_host(self, array: np.ndarray, address: int, stream: Any) -> None:
        kind = self._rt.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._check(self._rt.cudaMemcpyAsync(array.ctypes.data, address, array.nbytes, kind, stream))

    def synchronize(self, stream: Any) -> None:
        self._check(self._rt.cudaStreamSynchronize(stream))

    def new_event(self) -> Any:
        return self._check(self._rt.cudaEventCreate())

    def free_event(self, event: Any) -> None:
        self._check(self._rt.cudaEventDestroy(event))

    def record(self, event: Any, stream: Any) -> None:
        self._check(self._rt.cudaEventRecord(event, stream))

    def wait_event(self, stream: Any, event: Any) -> None:
        self._check(self._rt.cudaStreamWaitEvent(stream, event, 0))

    def has_happened(self, event: Any) -> bool:
        result = self._rt.cudaEventQuery(event)
        if int(result[0]) == int(self._rt.cudaError_t.cudaErrorNotReady):
            return False
        self._check(result)
        return True

    def milliseconds(self, start: Any, end: Any) -> float:
        return float(self._check(self._rt.cudaEventElapsedTime(start, end)))

    def begin_capture(self, stream: Any) -> None:
        mode = self._rt.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._check(self._rt.cudaStreamBeginCapture(stream, mode))

    def end_capture(self, stream: Any) -> Any:
        graph = self._check(self._rt.cudaStreamEndCapture(stream))
        try:
            return self._check(self._rt.cudaGraphInstantiate(graph, 0))
        finally:
            self._check(self._rt.cudaGraphDestroy(graph))

    def launch(self, graph: Any, stream: Any) -> None:
        self._check(self._rt.cudaGraphLaunch(graph, stream))

    def free_graph(self, graph: Any) -> None:
        self._check(self._rt.cudaGraphExecDestroy(graph))


class PyCuda:
    """pycuda, on the device's primary context, which TensorRT uses as well."""

    binding = "pycuda"

    def __init__(self, driver: Any, device_index: int = 0) -> None:
        self._driver = driver
        driver.init()
        _check_device(device_index, driver.Device.count())
        self._device = driver.Device(device_index)
        self._context = self._device.retain_primary_context()
        self._memory: dict[int, Any] = {}

    def activate(self) -> None:
        self._context.push()

    def release(self) -> None:
        self._context.pop()

    def device(self) -> dict[str, Any]:
        return {
            "name": self._device.name(),
            "compute_capability": ".".join(str(n) for n in self._device.compute_capability()),
            "memory_mib": int(self._device.total_memory()) >> 20,
        }

    def memory_info(self) -> tuple[int, int]:
        free, total = self._driver.mem_get_info()
        return int(free), int(total)

    def malloc(self, num_bytes: int) -> int:
        allocation = self._driver.mem_alloc(num_bytes)
        self._memory[int(allocation)] = allocation
        return int(allocation)

    def free(self, address: int) -> None:
        self._memory.pop(address).free()

    def pinned(self, num_bytes: int) -> np.ndarray:
        return self._driver.pagelocked_empty(num_bytes, np.uint8)

    def free_pinned(self, array: np.ndarray) -> None:
        memory: Any = array.base
        memory.free()

    def new_stream(self) -> Any:
        return self._driver.Stream()

    def stream_address(self, stream: Any) -> int:
        return int(stream.handle)

    def free_stream(self, stream: Any) -> None:
        del stream  # pycuda destroys it with its last reference

    def to_device(self, address: int, array: np.ndarray, stream: Any) -> None:
        self._driver.memcpy_htod_async(address, array, stream)

    def to_host(self, array: np.ndarray, address: int, stream: Any) -> None:
        self._driver.memcpy_dtoh_async(array, address, stream)

    def synchronize(self, stream: Any) -> None:
        stream.synchronize()

    def new_event(self) -> Any:
        return self._driver.Event()

    def free_event(self, event: Any) -> None:
        del event  # as a stream

    def record(self, event: Any, stream: Any) -> None:
        event.record(stream)

    def wait_event(self, stream: Any, event: Any) -> None:
        stream.wait_for_event(event)

    def has_happened(self, event: Any) -> bool:
        return bool(event.query())

    def milliseconds(self, start: Any, end: Any) -> float:
        return float(start.time_till(end))

    def begin_capture(self, stream: Any) -> None:
        raise RuntimeError(
            "CUDA graphs: expected cuda-python, found pycuda, which has none; `pip install cuda-python`"
        )

    def end_capture(self, stream: Any) -> Any:
        raise NotImplementedError

    def launch(self, graph: Any, stream: Any) -> None:
        raise NotImplementedError

    def free_graph(self, graph: Any) -> None:
        raise NotImplementedError


# cuda-python 13 has moved the module that 12 has under the first name.
_BINDINGS = (("cuda.bindings.runtime", CudaPython), ("cuda.cudart", CudaPython), ("pycuda.driver", PyCuda))


@contextmanager
def active(cuda: Cuda) -> Iterator[None]:
    """Make the device the calling thread's inside."""
    cuda.activate()
    try:
        yield
    finally:
        cuda.release()


def wait(cuda: Cuda, event: Any) -> None:
    """Wait for an event while other Python threads go on.

    Not by ``synchronize``: cuda-python before 12.9.1 keeps the interpreter's lock while it waits, and nothing would be
    read or decoded meanwhile.
    """
    while not cuda.has_happened(event):
        time.sleep(_SECONDS_BETWEEN_LOOKS)


def open_cuda(device_index: int = 0) -> Cuda:
    """Return the device through the first binding that is installed.

    Raises:
        RuntimeError: no binding, or no such device.
    """
    failures: list[str] = []
    for name, binding in _BINDINGS:
        module = _module(name, failures)
        if module is not None:
            return binding(module, device_index)
    raise RuntimeError(
        f"CUDA: expected cuda-python or pycuda, found neither ({'; '.join(failures)}); `pip install cuda-python` "
        "(12.x beside a CUDA 12 driver), or pycuda where that is what the box has"
    )


def _module(name: str, failures: list) -> Optional[Any]:
    try:
        return importlib.import_module(name)
    except (ImportError, OSError) as error:
        failures.append(f"{name}: {error}")
        return None


def _check_device(index: int, count: int) -> None:
    if not 0 <= index < count:
        raise RuntimeError(
            f"CUDA: expected device {index}, found {count} device{'' if count == 1 else 's'}; see nvidia-smi and "
            "CUDA_VISIBLE_DEVICES"
        )


def host_array(num_bytes: int, address: int) -> np.ndarray:
    """Return the bytes at a host address as a uint8 array that does not own them."""
    buffer = (ctypes.c_uint8 * num_bytes).from_address(address)
    return np.frombuffer(memoryview(buffer), np.uint8)
