"""Outputs that are cast on the device, and handed out where they arrive, on the fake device."""

import gc
import random
from typing import Callable, Optional

import numpy as np
import onnx
import pytest
from onnx import parser

from runtime.cuda.binding import Cuda, CudaPython, PyCuda
from runtime.device.kernels import MaskCast
from runtime.engine.buffers import ByteBuffer
from runtime.engine.builder import build_engine
from runtime.engine.config import EngineConfig
from runtime.engine.library import Library
from runtime.engine.session import EngineSession
from tests.runtime.engine.fake_cuda import Cudart, Device, PyCudaDriver
from tests.runtime.engine.fake_kernels import FakeLibrary

MODEL = """<ir_version: 8, opset_import: ["": 17]>
net (float[B, 4, W] x) => (float[B, 4, W] masks, float[B, 4, W] doubled) {
    zero = Constant<value = float {0}>()
    above = Greater(x, zero)
    masks = Cast<to = 1>(above)
    doubled = Add(x, x)
}"""
LARGEST = (2, 4, 16)
SHAPES = (("x", ((1, 4, 4), (1, 4, 8), LARGEST)),)


@pytest.fixture
def kernels() -> FakeLibrary:
    return FakeLibrary()


def _session(
    device: Device, library: Library, kernels: FakeLibrary, *, cuda: Optional[Cuda] = None, **options: bool
) -> EngineSession:
    config = EngineConfig(batch=(1, 1, 2), shapes=SHAPES, precision="fp32")
    data = build_engine(parser.parse_model(MODEL), config, library=library).data
    cuda = cuda or CudaPython(Cudart(device))
    return EngineSession(data, library=library, cuda=cuda, casts={"masks": MaskCast(kernels)}, **options)


def _array(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def _check(outputs: dict, x: np.ndarray) -> None:
    assert {n: str(a.dtype) for n, a in outputs.items()} == {"masks": "uint8", "doubled": "float32"}
    np.testing.assert_array_equal(outputs["masks"], x > 0)
    np.testing.assert_array_equal(outputs["doubled"], 2 * x)


def _is_pinned(device: Device, array: np.ndarray) -> bool:
    return device.is_pinned(array.ctypes.data)


def test_a_quarter_of_the_bytes_is_copied_after_network_and_cast(
    device: Device, library: Library, kernels: FakeLibrary, monkeypatch: pytest.MonkeyPatch
) -> None:
    copies = []
    copy = Device.copy

    def recording(self: Device, target: int, source: int, num_bytes: int, stream: int) -> None:
        copies.append((device.is_pinned(target), num_bytes, len(kernels.num_cast)))
        copy(self, target, source, num_bytes, stream)

    monkeypatch.setattr(Device, "copy", recording)
    x = _array(2, 4, 8)
    with _session(device, library, kernels) as session:
        _check(session.run({"x": x}), x)
        assert session.outputs["masks"].dtype == "float32"
    assert kernels.num_cast == [x.size]
    # Page-locked or not, bytes, and casts before it: the input, then the masks, and what is not cast as it is.
    assert copies[0] == (False, 4 * x.size, 0)
    assert (True, x.size, 1) in copies
    assert sorted(copied[:2] for copied in copies[1:]) == [(True, x.size), (True, 4 * x.size)]


@pytest.mark.parametrize("cuda_graphs", [False, True])
def test_results_stay_what_they_are(
    cuda_graphs: bool, device: Device, library: Library, kernels: FakeLibrary
) -> None:
    """However many are kept, whatever comes after them, and in whichever order the streams get on."""
    device.restless = random.Random(0)
    arrays = [_array(1 + i % 2, 4, 4 + i, seed=i) for i in range(8) for _ in range(4)]
    with _session(device, library, kernels, cuda_graphs=cuda_graphs) as session:
        kept = [session.run({"x": x}) for x in arrays]
        for outputs, x in zip(kept, arrays):
            _check(outputs, x)
            outputs["masks"][...] += 1  # writable, and nobody else's
        _check(session.run({"x": arrays[0]}), arrays[0])
    for outputs, x in zip(kept, arrays):
        np.testing.assert_array_equal(outputs["masks"], 1 + (x > 0))


def test_the_latest_results_are_where_they_arrived(
    device: Device, library: Library, kernels: FakeLibrary
) -> None:
    """Two of them; a third that is kept as well is a copy, and what is dropped is used again."""
    x = _array(*LARGEST)
    with _session(device, library, kernels) as session:
        kept = [session.run({"x": x})["masks"] for _ in range(4)]
        assert [_is_pinned(device, masks) for masks in kept] == [True, True, False, False]
        before = dict(device.pinned)
        part = kept[0][1:, 2]
        del kept
        assert _is_pinned(device, session.run({"x": x})["masks"])
        np.testing.assert_array_equal(part, x[1:, 2] > 0)
        del part
        for _ in range(5):
            masks = session.run({"x": x})["masks"]
            assert _is_pinned(device, masks)
        assert device.pinned == before


def test_page_locked_memory_is_taken_for_the_largest_shapes(
    device: Device, library: Library, kernels: FakeLibrary
) -> None:
    with _session(device, library, kernels) as session:
        before = dict(device.memory), dict(device.pinned)
        for batch in (1, 2, 1):
            session.run({"x": _array(batch, 4, 16)})
        assert (device.memory, device.pinned) == before


@pytest.mark.parametrize(
    "binding",
    [lambda d: CudaPython(Cudart(d)), lambda d: PyCuda(PyCudaDriver(d))],
    ids=["cuda-python", "pycuda"],
)
def test_a_result_outlives_its_session(
    binding: Callable[[Device], Cuda], device: Device, library: Library, kernels: FakeLibrary
) -> None:
    x = _array(*LARGEST)
    with _session(device, library, kernels, cuda=binding(device)) as session:
        masks = session.run({"x": x})["masks"]
    assert (device.memory, len(device.pinned)) == ({}, 1)
    np.testing.assert_array_equal(masks, x > 0)
    view = masks[0]
    del masks
    np.testing.assert_array_equal(view, x[0] > 0)
    del view, session
    gc.collect()
    assert device.is_clean


def test_a_cast_that_does_not_start_is_an_error_and_the_next_call_works(
    device: Device, library: Library, kernels: FakeLibrary
) -> None:
    x = _array(1, 4, 8)
    with _session(device, library, kernels) as session:
        kernels.failing.add("cast_masks")
        with pytest.raises(
            RuntimeError, match="cast_masks: expected the kernels to start, found invalid device"
        ):
            session.run({"x": x})
        kernels.failing.clear()
        _check(session.run({"x": x}), x)
    gc.collect()
    assert device.is_clean


def test_what_is_no_float_is_not_cast(device: Device, library: Library, kernels: FakeLibrary) -> None:
    model = parser.parse_model(
        '<ir_version: 8, opset_import: ["": 17]> net (float[B, 4, W] x) => (bool[B, 4, W] masks) '
        "{ zero = Constant<value = float {0}>() masks = Greater(x, zero) }"
    )
    onnx.checker.check_model(model)
    config = EngineConfig(batch=(1, 1, 2), shapes=SHAPES, precision="fp32")
    data = build_engine(model, config, library=library).data
    casts = {"masks": MaskCast(kernels), "x": MaskCast(kernels), "other": MaskCast(kernels)}
    x = _array(1, 4, 8)
    with EngineSession(data, library=library, cuda=CudaPython(Cudart(device)), casts=casts) as session:
        masks = session.run({"x": x})["masks"]
    assert (masks.dtype, kernels.num_cast) == (bool, [])
    np.testing.assert_array_equal(masks, x > 0)
    assert device.is_clean


@pytest.mark.parametrize(("what", "number"), [("malloc", 1), ("malloc", 2), ("pinned", 1)])
def test_memory_that_was_refused_is_asked_for_again(
    what: str, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing may be taken for reserved that is not."""
    device = Device()
    cuda = CudaPython(Cudart(device))
    buffer = ByteBuffer(cuda, MaskCast(FakeLibrary()))
    own, sizes = getattr(cuda, what), []

    def refusing(num_bytes: int) -> object:
        sizes.append(num_bytes)
        if len(sizes) == number:
            raise RuntimeError(f"out of memory: {num_bytes} bytes")
        return own(num_bytes)

    monkeypatch.setattr(cuda, what, refusing)
    with pytest.raises(RuntimeError, match="out of memory"):
        buffer.reserve(4096)
    buffer.reserve(4096)
    values = cuda.pinned(16).view(np.float32)
    values[:] = 0, 1, 0, 1
    stream = cuda.new_stream()
    cuda.to_device(buffer.address, values, stream)
    found = buffer.fetch(values.shape, "float32", stream)
    cuda.synchronize(stream)
    assert found.tolist() == values.astype(np.uint8).tolist()
    del found
    gc.collect()
    buffer.free()
