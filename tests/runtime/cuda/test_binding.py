"""The two CUDA bindings do the same, on the fake device."""

import sys
from typing import Callable

import numpy as np
import pytest

from runtime.cuda import binding as engine_cuda
from runtime.cuda.binding import Cuda, CudaPython, PyCuda, active, open_cuda, wait
from tests.runtime.engine.fake_cuda import Cudart, Device, PyCudaDriver

Opener = Callable[..., Cuda]


def _cuda_python(*devices: Device, index: int = 0) -> Cuda:
    return CudaPython(Cudart(*devices), index)


def _pycuda(*devices: Device, index: int = 0) -> Cuda:
    return PyCuda(PyCudaDriver(*devices), index)


both = pytest.mark.parametrize("opener", [_cuda_python, _pycuda])


@both
def test_data_goes_to_the_device_and_back(opener: Opener) -> None:
    device = Device()
    cuda = opener(device)
    cuda.activate()
    address, stream = cuda.malloc(16), cuda.new_stream()
    sent, received = cuda.pinned(16), cuda.pinned(16)
    sent[:], received[:] = np.arange(16), 0
    assert (sent.dtype, sent.shape) == (np.uint8, (16,))
    cuda.to_device(address, sent, stream)
    cuda.to_host(received, address, stream)
    assert not received.any()  # asynchronous
    cuda.synchronize(stream)
    np.testing.assert_array_equal(received, np.arange(16))
    assert cuda.stream_address(stream) in device.streams
    cuda.free_stream(stream)
    for array in (sent, received):
        cuda.free_pinned(array)
    cuda.free(address)
    cuda.release()
    del stream
    assert device.is_clean


@both
def test_events_keep_the_time(opener: Opener) -> None:
    device = Device()
    cuda = opener(device)
    cuda.activate()
    stream = cuda.new_stream()
    events = [cuda.new_event() for _ in range(3)]
    for event in events:
        cuda.record(event, stream)
    cuda.synchronize(stream)
    assert [cuda.milliseconds(events[0], event) for event in events] == [0.0, 1.0, 2.0]
    while events:
        cuda.free_event(events.pop())
    cuda.free_stream(stream)
    del stream, event
    assert device.is_clean


@both
def test_the_device_is_described(opener: Opener) -> None:
    cuda = opener(Device("NVIDIA H100 80GB HBM3", (9, 0), 80 << 30))
    assert cuda.device() == {
        "name": "NVIDIA H100 80GB HBM3",
        "compute_capability": "9.0",
        "memory_mib": 80 << 10,
    }


@both
def test_the_device_is_the_one_of_the_index(opener: Opener) -> None:
    first, second = Device("A"), Device("B", (8, 6))
    cuda = opener(first, second, index=1)
    assert cuda.device()["name"] == "B"
    cuda.activate()
    cuda.malloc(8)
    cuda.release()
    assert (first.memory, len(second.memory)) == ({}, 1)


@both
@pytest.mark.parametrize(
    ("devices", "index", "found"),
    [(1, 1, "found 1 device;"), (2, -1, "found 2 devices;"), (0, 0, "found 0 devices;")],
)
def test_a_device_that_is_not_there_is_refused(opener: Opener, devices: int, index: int, found: str) -> None:
    message = f"CUDA: expected device {index}, {found} see nvidia-smi and CUDA_VISIBLE_DEVICES"
    with pytest.raises(RuntimeError, match=message):
        opener(*(Device() for _ in range(devices)), index=index)


def test_a_failed_call_says_what_cuda_says() -> None:
    cuda = _cuda_python(Device(limit=100))
    message = (
        "CUDA: expected the call to succeed, found out of memory; if memory ran out, use a smaller batch"
    )
    with pytest.raises(RuntimeError, match=message):
        cuda.malloc(101)
    with pytest.raises(RuntimeError, match="found invalid argument"):
        cuda.free(12345)


def test_threads_make_the_device_theirs() -> None:
    """cuda-python's current device is the thread's, and 0 in a new one."""
    runtime = Cudart(Device(), Device())
    cuda = CudaPython(runtime, 1)
    runtime.current = 0
    cuda.activate()
    assert runtime.current == 1


def test_pycudas_context_is_left_as_it_was() -> None:
    driver = PyCudaDriver(Device())
    cuda = PyCuda(driver)
    assert driver.stack == []
    cuda.activate()
    assert len(driver.stack) == 1
    cuda.release()
    assert driver.stack == []


@pytest.mark.parametrize(
    ("modules", "binding"),
    [
        (("cuda.bindings.runtime", "pycuda.driver"), "cuda-python"),
        (("cuda.cudart", "pycuda.driver"), "cuda-python"),
        (("pycuda.driver",), "pycuda"),
    ],
)
def test_the_binding_that_is_installed_is_taken(
    modules: tuple, binding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, _ in engine_cuda._BINDINGS:
        monkeypatch.setitem(sys.modules, name, None)
    for name in modules:
        fake = PyCudaDriver(Device()) if name == "pycuda.driver" else Cudart(Device())
        monkeypatch.setitem(sys.modules, name, fake)
    assert open_cuda().binding == binding


def test_without_a_binding_both_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, _ in engine_cuda._BINDINGS:
        monkeypatch.setitem(sys.modules, name, None)
    message = r"expected cuda-python or pycuda, found neither \(cuda.bindings.runtime: .*\); `pip install cuda-python`"
    with pytest.raises(RuntimeError, match=message):
        open_cuda()


@both
def test_a_stream_waits_for_another_ones_event(opener: Opener) -> None:
    """What one stream copies in is there when the other copies it out, although the host waits for the other alone."""
    device = Device()
    cuda = opener(device)
    with active(cuda):
        address, first, second = cuda.malloc(16), cuda.new_stream(), cuda.new_stream()
        sent, received, event = cuda.pinned(16), cuda.pinned(16), cuda.new_event()
        sent[:], received[:] = np.arange(16), 0
        cuda.to_device(address, sent, first)
        cuda.record(event, first)
        cuda.wait_event(second, event)
        cuda.to_host(received, address, second)
        assert not cuda.has_happened(event) or not received.any()
        cuda.synchronize(second)
        assert cuda.has_happened(event)
        np.testing.assert_array_equal(received, np.arange(16))


@both
def test_an_event_is_waited_for_while_other_threads_go_on(opener: Opener) -> None:
    device = Device()
    cuda = opener(device)
    with active(cuda):
        address, stream, event = cuda.malloc(16), cuda.new_stream(), cuda.new_event()
        sent, received = cuda.pinned(16), cuda.pinned(16)
        sent[:], received[:] = np.arange(16), 0
        cuda.to_device(address, sent, stream)
        cuda.to_host(received, address, stream)
        cuda.record(event, stream)
        assert not cuda.has_happened(event)
        wait(cuda, event)
        np.testing.assert_array_equal(received, np.arange(16))
    # Not by a call that may keep the interpreter's lock.
    assert "cudaStreamSynchronize" not in device.calls


@both
def test_memory_is_counted(opener: Opener) -> None:
    device = Device(limit=1000)
    cuda = opener(device)
    with active(cuda):
        assert cuda.memory_info() == (1000, 1000)
        cuda.malloc(256)
        assert cuda.memory_info() == (744, 1000)
