"""Running engines on the fake device, where what is on a stream happens when it is waited for."""

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Callable

import numpy as np
import onnx
import pytest
from onnx import parser

from runtime.cuda.binding import Cuda, CudaPython, PyCuda
from runtime.engine.builder import build_engine
from runtime.engine.config import EngineConfig
from runtime.engine.library import Library
from runtime.engine.session import EngineSession, EngineTensor
from tests.runtime.engine import fakes
from tests.runtime.engine.fake_cuda import Cudart, Device, PyCudaDriver, Status
from tests.runtime.processes import SECONDS

MODEL = """<ir_version: 8, opset_import: ["": 17]>
net (float[B, 2, W] x, int32[3] offsets) => (float[B, 2, W] doubled, int32[3] moved, float[B] total, bool[B] positive) {
    doubled = Add(x, x)
    one = Constant<value = int32[3] {1, 1, 1}>()
    moved = Add(offsets, one)
    total = ReduceSum<keepdims = 0>(x, axes)
    zero = Constant<value = float {0}>()
    positive = Greater(total, zero)
}"""
SHAPES = (("x", ((1, 2, 4), (2, 2, 8), (4, 2, 16))),)
OFFSETS = np.array([10, -3, 7], np.int32)
# Largest bytes: x and doubled 4 * 2 * 16 * 4, offsets and moved 3 * 4, total 4 * 4, positive 4.
NUM_BUFFERS = 6


def _model() -> onnx.ModelProto:
    model = parser.parse_model(MODEL)
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([1, 2]), "axes"))
    return model


def _engine(library: Library, model: object = None, shapes: tuple = SHAPES) -> bytes:
    config = EngineConfig(batch=(1, 2, 4), shapes=shapes, precision="fp32")
    return build_engine(model or _model(), config, library=library).data


def _session(device: Device, library: Library, data: bytes = b"") -> EngineSession:
    return EngineSession(data or _engine(library), library=library, cuda=CudaPython(Cudart(device)))


def _array(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def _check(outputs: dict, x: np.ndarray, offsets: np.ndarray = OFFSETS) -> None:
    assert set(outputs) == {"doubled", "moved", "total", "positive"}
    np.testing.assert_array_equal(outputs["doubled"], 2 * x)
    np.testing.assert_array_equal(outputs["moved"], offsets + 1)
    np.testing.assert_allclose(outputs["total"], x.sum((1, 2)), rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(outputs["positive"], outputs["total"] > 0)
    assert [str(outputs[n].dtype) for n in ("doubled", "moved", "positive")] == ["float32", "int32", "bool"]


@pytest.mark.parametrize(
    "binding",
    [lambda d: CudaPython(Cudart(d)), lambda d: PyCuda(PyCudaDriver(d))],
    ids=["cuda-python", "pycuda"],
)
@pytest.mark.parametrize("version", fakes.RELEASES)
def test_every_release_and_binding_computes_the_same(
    version: str, binding: Callable[[Device], Cuda], device: Device
) -> None:
    """Tensors by name, in whatever order the engine has them; several sizes in one session."""
    library = fakes.library(version)
    with EngineSession(_engine(library), library=library, cuda=binding(device)) as session:
        for shape in ((2, 2, 8), (1, 2, 4), (4, 2, 16), (3, 2, 5), (2, 2, 8)):
            x = _array(*shape, seed=sum(shape))
            _check(session.run({"x": x, "offsets": OFFSETS}), x)
    del session
    assert device.is_clean


def test_inputs_and_outputs_are_described(device: Device, library: Library) -> None:
    with _session(device, library) as session:
        assert session.inputs == {
            "x": EngineTensor("float32", (None, 2, None), ((1, 2, 4), (2, 2, 8), (4, 2, 16))),
            "offsets": EngineTensor("int32", (3,), ((3,),) * 3),
        }
        assert session.outputs == {
            "doubled": EngineTensor("float32", (None, 2, None)),
            "moved": EngineTensor("int32", (3,)),
            "total": EngineTensor("float32", (None,)),
            "positive": EngineTensor("bool", (None,)),
        }


def test_memory_is_taken_once_for_the_largest_shapes(device: Device, library: Library) -> None:
    with _session(device, library) as session:
        assert device.num_mallocs == NUM_BUFFERS
        assert sorted(device.memory.values())[-2:] == [512, 512]
        before = dict(device.memory), dict(device.pinned)
        for batch in (1, 4, 2, 4, 1):
            session.run({"x": _array(batch, 2, 16), "offsets": OFFSETS})
        assert (device.memory, device.pinned) == before
        assert device.num_mallocs == NUM_BUFFERS


def test_outputs_are_the_callers_own(device: Device, library: Library) -> None:
    first, second = _array(2, 2, 8, seed=1), _array(2, 2, 8, seed=2)
    with _session(device, library) as session:
        results = session.run({"x": first, "offsets": OFFSETS})
        later = session.run({"x": second, "offsets": OFFSETS + 5})
        results["doubled"][0] += 0  # writable
    _check(results, first)
    _check(later, second, OFFSETS + 5)


def test_any_memory_layout_is_taken(device: Device, library: Library) -> None:
    x = _array(16, 2, 4).transpose(2, 1, 0)[::2]
    assert not x.flags.c_contiguous
    with _session(device, library) as session:
        _check(session.run({"offsets": OFFSETS, "x": x}), x)


def test_an_empty_output_is_an_empty_array(device: Device, library: Library) -> None:
    model = parser.parse_model(
        '<ir_version: 8, opset_import: ["": 17]> net (float[B, 4] x) => (float[B, 0] nothing, float[B, 4] y) '
        "{ nothing = Slice(x, zero, zero, axis) y = Relu(x) }"
    )
    for name, value in (("zero", [0]), ("axis", [1])):
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(value), name))
    with _session(device, library, _engine(library, model, ())) as session:
        outputs = session.run({"x": np.float32([[1, -1, 2, -2]])})
    assert outputs["nothing"].shape == (1, 0)
    np.testing.assert_array_equal(outputs["y"], [[1, 0, 2, 0]])


def test_stages_are_timed_on_the_device(device: Device, library: Library) -> None:
    timings: dict[str, float] = {}
    with _session(device, library) as session:
        session.run({"x": _array(2, 2, 8), "offsets": OFFSETS}, timings)
    assert timings == {"copy_in": 1.0, "engine": 1.0, "copy_out": 1.0}  # the fake's clock counts events


X = _array(2, 2, 8)


@pytest.mark.parametrize(
    ("feeds", "message"),
    [
        ({"x": X}, "inputs: expected x, offsets, found x"),
        ({}, "inputs: expected x, offsets, found none"),
        ({"x": X, "offsets": OFFSETS, "y": X}, "inputs: expected x, offsets, found x, offsets, y"),
        ({"x": X.astype("f8"), "offsets": OFFSETS}, "input x: expected float32, found float64"),
        ({"x": X, "offsets": OFFSETS.astype("i8")}, "input offsets: expected int32, found int64"),
        (
            {"x": _array(5, 2, 8), "offsets": OFFSETS},
            r"input x: expected a shape from \(1, 2, 4\) to \(4, 2, 16\), found \(5, 2, 8\); build the engine with a "
            r"wider range, `python -m runtime.build --batch ... --size ...`",
        ),
        ({"x": _array(2, 2, 3), "offsets": OFFSETS}, r"found \(2, 2, 3\)"),
        ({"x": _array(2, 3, 8), "offsets": OFFSETS}, r"found \(2, 3, 8\)"),
        ({"x": _array(2, 8), "offsets": OFFSETS}, r"found \(2, 8\)"),
        ({"x": _array(0, 2, 8), "offsets": OFFSETS}, r"found \(0, 2, 8\)"),
        (
            {"x": X, "offsets": OFFSETS[:2]},
            r"input offsets: expected a shape from \(3,\) to \(3,\), found \(2,\)",
        ),
    ],
)
def test_feeds_that_do_not_fit_are_refused(
    feeds: dict, message: str, device: Device, library: Library
) -> None:
    with _session(device, library) as session:
        with pytest.raises(ValueError, match=message):
            session.run(feeds)
        _check(session.run({"x": X, "offsets": OFFSETS}), X)  # and the session lives on


def test_an_output_whose_size_depends_on_the_data_is_refused(device: Device, library: Library) -> None:
    model = parser.parse_model(
        '<ir_version: 8, opset_import: ["": 17]> net (float[B, 4] x) => (int64[2, N] y) { y = NonZero(x) }'
    )
    message = r"output y: expected a size that follows from the inputs' sizes, found \(2, -1\); give it a fixed number"
    with pytest.raises(ValueError, match=message):
        _session(device, library, _engine(library, model, ()))
    assert device.is_clean


def test_closing_twice_is_fine_and_running_afterwards_is_not(device: Device, library: Library) -> None:
    session = _session(device, library)
    session.close()
    session.close()
    assert device.is_clean
    with pytest.raises(
        RuntimeError, match="engine: expected an open session, found it closed; make a new one"
    ):
        session.run({"x": X, "offsets": OFFSETS})
    with pytest.raises(RuntimeError, match="found it closed"):
        session.layer_information()


@pytest.mark.parametrize("limit", [0, 256, 600, 1200])
@pytest.mark.parametrize("which", ["limit", "pinned_limit"])
@pytest.mark.parametrize(
    "binding",
    [lambda d: CudaPython(Cudart(d)), lambda d: PyCuda(PyCudaDriver(d))],
    ids=["cuda-python", "pycuda"],
)
def test_a_constructor_that_fails_leaves_nothing(
    binding: Callable[[Device], Cuda], which: str, limit: int, device: Device, library: Library
) -> None:
    setattr(device, which, limit)
    data = _engine(library)
    with pytest.raises(Exception, match="out of memory"):
        EngineSession(data, library=library, cuda=binding(device))
    assert (device.memory, device.pinned) == ({}, {})
    if isinstance(binding(device), CudaPython):  # pycuda's streams go with the last reference
        assert device.is_clean


def test_an_engine_that_cannot_be_read_leaves_nothing(device: Device, library: Library) -> None:
    message = (
        "engine: expected one that TensorRT 8.5.3.1 reads, found: .*No magic tag; build it again on this machine with "
        "`python -m runtime.build`"
    )
    with pytest.raises(ValueError, match=message):
        _session(device, library, b"not an engine")
    other = _engine(fakes.library(fakes.V8_4))
    with pytest.raises(ValueError, match="found: .*expecting version 8.5.3.1 got 8.4.1.5"):
        _session(device, library, other)
    assert device.is_clean


def test_no_memory_for_the_context_is_said(
    device: Device, library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = _engine(library)
    monkeypatch.setattr(library.tensorrt.trt.ICudaEngine, "create_execution_context", lambda self: None)
    message = (
        "TensorRT 8.5.3.1: expected memory for an execution context, found too little; use a smaller profile"
    )
    with pytest.raises(RuntimeError, match=message):
        _session(device, library, data)
    assert device.is_clean


def test_a_run_that_fails_says_what_tensorrt_says(
    device: Device, library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(context: object, stream: int) -> bool:
        library.logger.log(1, "1: [runner.cpp] Cuda failure:\n an illegal memory access")
        return False

    with _session(device, library) as session:
        with monkeypatch.context() as patched:
            patched.setattr(type(library.tensorrt.trt.created.contexts[0]), "execute_async_v3", failing)
            message = r"TensorRT 8.5.3.1: expected the engine to run, found: 1: \[runner.cpp\] Cuda failure: an illegal"
            with pytest.raises(RuntimeError, match=message):
                session.run({"x": X, "offsets": OFFSETS})
        _check(session.run({"x": X, "offsets": OFFSETS}), X)


def _run_in_threads(sessions: list[EngineSession], num_threads: int = 8, num_runs: int = 20) -> None:
    """Each thread has its own arrays, of its own shape, and checks its own results."""
    barrier = threading.Barrier(num_threads)

    def work(thread: int) -> None:
        barrier.wait(SECONDS)
        for turn in range(num_runs):
            x = _array(1 + (thread + turn) % 4, 2, 4 + thread, seed=100 * thread + turn)
            offsets = np.array([thread, turn, -thread], np.int32)
            _check(sessions[thread % len(sessions)].run({"x": x, "offsets": offsets}), x, offsets)

    with ThreadPoolExecutor(num_threads) as pool:
        list(pool.map(work, range(num_threads)))


@pytest.mark.parametrize(
    "binding",
    [lambda d: CudaPython(Cudart(d)), lambda d: PyCuda(PyCudaDriver(d))],
    ids=["cuda-python", "pycuda"],
)
def test_threads_get_their_own_results(
    binding: Callable[[Device], Cuda], device: Device, library: Library
) -> None:
    with EngineSession(_engine(library), library=library, cuda=binding(device)) as session:
        _run_in_threads([session])
    assert device.num_mallocs == NUM_BUFFERS


def test_two_sessions_at_once_do_not_disturb_each_other(device: Device, library: Library) -> None:
    data = _engine(library)
    first, second = _session(device, library, data), _session(device, library, data)
    _run_in_threads([first, second])
    first.close()
    _check(second.run({"x": X, "offsets": OFFSETS}), X)
    second.close()
    assert device.is_clean


def test_a_session_can_be_closed_by_another_thread(device: Device, library: Library) -> None:
    session = EngineSession(_engine(library), library=library, cuda=PyCuda(PyCudaDriver(device)))
    thread = threading.Thread(target=session.close)
    thread.start()
    thread.join(SECONDS)
    assert not thread.is_alive()
    assert (device.memory, device.pinned) == ({}, {})
    with pytest.raises(RuntimeError, match="closed"):
        session.run({"x": X, "offsets": OFFSETS})


def test_the_engines_layers_are_told_at_the_shapes_that_were_set(device: Device, library: Library) -> None:
    with _session(device, library) as session:
        information = session.layer_information()
    assert '"LayerType": "PointWiseV2"' in information


@pytest.mark.parametrize("version", fakes.RELEASES)
def test_a_cuda_graph_is_launched_for_shapes_that_repeat(version: str, device: Device) -> None:
    library = fakes.library(version)
    runtime = Cudart(device)
    with EngineSession(
        _engine(library), library=library, cuda=CudaPython(runtime), cuda_graphs=True
    ) as session:
        (context,) = library.tensorrt.trt.created.contexts
        for turn, shape in enumerate([(2, 2, 8)] * 5 + [(1, 2, 4)] * 4 + [(2, 2, 8)] * 3):
            x = _array(*shape, seed=turn)
            _check(session.run({"x": x, "offsets": OFFSETS + turn}), x, OFFSETS + turn)
        # The third call of each shape is captured.
        assert context.num_enqueued == 9
        assert device.calls.count("cudaGraphLaunch") == 3 + 2 + 1
        assert session.cuda_graph_failure == ""
        assert len(device.graphs) == 1
    assert device.is_clean


def test_without_cuda_graphs_the_network_runs_all_the_same(device: Device, library: Library) -> None:
    """pycuda has none."""
    cuda = PyCuda(PyCudaDriver(device))
    with EngineSession(_engine(library), library=library, cuda=cuda, cuda_graphs=True) as session:
        for turn in range(5):
            x = _array(2, 2, 8, seed=turn)
            _check(session.run({"x": x, "offsets": OFFSETS}), x)
        assert "CUDA graphs: expected cuda-python, found pycuda" in session.cuda_graph_failure


def test_a_graph_that_cannot_be_captured_is_done_without(
    device: Device, library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = Cudart(device)
    with EngineSession(
        _engine(library), library=library, cuda=CudaPython(runtime), cuda_graphs=True
    ) as session:
        failure = Status.cudaErrorStreamCaptureUnsupported
        monkeypatch.setattr(runtime, "cudaGraphInstantiate", lambda graph, flags: (failure, None))
        for turn in range(5):
            x = _array(2, 2, 8, seed=turn)
            _check(session.run({"x": x, "offsets": OFFSETS}), x)
        assert "found operation not permitted when stream is capturing" in session.cuda_graph_failure
    assert device.is_clean


def test_layers_are_timed(device: Device, library: Library) -> None:
    with _session(device, library) as session:
        times = session.layer_times({"x": X, "offsets": OFFSETS}, repeat=3)
    names = [node.name for node in fakes.onnx_in(_engine(library)).graph.node]
    assert times == dict.fromkeys(names, 1.5)  # 1.0, 1.5 and 2.0


class _OnDevice:
    """Inputs and outputs in memory of their own, for ``EngineSession.start``."""

    def __init__(self, session: EngineSession, x: np.ndarray) -> None:
        self.session, self.cuda, self.x = session, session.cuda, x
        self.arrays = {
            "x": x,
            "offsets": OFFSETS,
            "doubled": np.empty_like(x),
            "moved": np.empty_like(OFFSETS),
            "total": np.empty(len(x), np.float32),
            "positive": np.empty(len(x), bool),
        }
        with session.exclusive():
            self.pinned = {name: self.cuda.pinned(array.nbytes) for name, array in self.arrays.items()}
            self.addresses = {name: self.cuda.malloc(array.nbytes) for name, array in self.arrays.items()}
            session.on_close(self.free)
        for name in ("x", "offsets"):
            self.pinned[name][:] = self.arrays[name].view(np.uint8).ravel()

    def start(self) -> None:
        with self.session.exclusive() as stream:
            for name in ("x", "offsets"):
                self.cuda.to_device(self.addresses[name], self.pinned[name], stream)
            shapes = {"x": self.x.shape, "offsets": OFFSETS.shape}
            found = self.session.start(shapes, self.addresses)
            assert found == {name: self.arrays[name].shape for name in self.session.outputs}

    def check(self) -> None:
        with self.session.exclusive() as stream:
            for name in self.session.outputs:
                self.cuda.to_host(self.pinned[name], self.addresses[name], stream)
            self.cuda.synchronize(stream)
        outputs = {
            name: self.pinned[name].view(self.arrays[name].dtype).reshape(self.arrays[name].shape)
            for name in self.session.outputs
        }
        _check(outputs, self.x)

    def free(self) -> None:
        for name in self.arrays:
            self.cuda.free(self.addresses[name])
            self.cuda.free_pinned(self.pinned[name])


@pytest.mark.parametrize("version", fakes.RELEASES)
@pytest.mark.parametrize("cuda_graphs", [False, True])
def test_what_lies_on_the_device_stays_there(cuda_graphs: bool, version: str, device: Device) -> None:
    """Several sets of addresses under way at once, and arrays of the host in between."""
    library = fakes.library(version)
    cuda = CudaPython(Cudart(device))
    with EngineSession(_engine(library), library=library, cuda=cuda, cuda_graphs=cuda_graphs) as session:
        assert session.largest_outputs["doubled"] == (4, 2, 16)
        sets = [_OnDevice(session, _array(2, 2, 8, seed=seed)) for seed in range(3)]
        for _ in range(4):
            for each in sets:
                each.start()
            _check(session.run({"x": X, "offsets": OFFSETS}), X)
            for each in sets:
                each.check()
        # One for each set, and for the session's own buffers; the first call of each is not captured.
        assert len(device.graphs) == (4 if cuda_graphs else 0)
        other = _OnDevice(session, _array(1, 2, 4))
        other.start()
        sets[0].start()
        other.check()
        sets[0].check()
        assert len(device.graphs) == 0  # those of other shapes are gone
    assert device.is_clean


def test_own_buffers_are_used_where_no_address_is_named(device: Device, library: Library) -> None:
    with _session(device, library) as session:
        own = _OnDevice(session, X)
        with session.exclusive() as stream:
            for name in ("x", "offsets"):
                session.cuda.to_device(session.address(name), own.pinned[name], stream)
            outputs = {name: own.addresses[name] for name in session.outputs}
            session.start({"x": X.shape, "offsets": OFFSETS.shape}, outputs)
        own.check()
    assert device.is_clean


def test_shapes_on_the_device_are_checked_before_anything_starts(device: Device, library: Library) -> None:
    with _session(device, library) as session:
        (context,) = library.tensorrt.trt.created.contexts
        with session.exclusive(), pytest.raises(ValueError, match=r"input x: .* found \(5, 2, 8\)"):
            session.start({"x": (5, 2, 8), "offsets": (3,)}, {})
        assert context.num_enqueued == 0
        _check(session.run({"x": X, "offsets": OFFSETS}), X)
    with pytest.raises(RuntimeError, match="found it closed"), session.exclusive():
        pass


def test_a_forked_process_has_no_session(
    device: Device, library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever holds the lock at the fork holds it in the child for ever."""
    session = _session(device, library)
    x = _array(1, 2, 4)
    process = os.getpid()
    with session.exclusive(), monkeypatch.context() as patch:
        patch.setattr(os, "getpid", lambda: process + 1)
        message = rf"engine: expected to be used in process {process}, .*make the Detector after the fork"
        with pytest.raises(RuntimeError, match=message):
            session.run({"x": x, "offsets": OFFSETS})
        with pytest.raises(RuntimeError, match=message), session.exclusive():
            pass
        session.close()
    _check(session.run({"x": x, "offsets": OFFSETS}), x)


PROFILES = ((1, 1, 1), (2, 3, 4))
BATCH_MODEL = """<ir_version: 8, opset_import: ["": 17]>
net (float[B, 3] x) => (float[B, 3] doubled) {
    doubled = Add(x, x)
}"""


def _profiled(library: Library, profiles: tuple = PROFILES) -> bytes:
    config = EngineConfig(profiles=profiles, precision="fp32")
    return build_engine(parser.parse_model(BATCH_MODEL), config, library=library).data


def _run(session: EngineSession, batch: int) -> None:
    x = _array(batch, 3, seed=batch)
    np.testing.assert_array_equal(session.run({"x": x})["doubled"], 2 * x)


@pytest.mark.parametrize("cuda_graphs", [False, True])
@pytest.mark.parametrize("version", fakes.RELEASES)
def test_each_shape_runs_in_the_profile_that_is_tuned_for_it(
    version: str, cuda_graphs: bool, device: Device
) -> None:
    library = fakes.library(version)
    cuda = CudaPython(Cudart(device))
    with EngineSession(_profiled(library), library=library, cuda=cuda, cuda_graphs=cuda_graphs) as session:
        assert session.inputs["x"].profile == ((1, 3), (3, 3), (4, 3))
        assert session.largest_outputs == {"doubled": (4, 3)}
        for batch in (1, 4, 1, 2, 3, 1, 4):
            _run(session, batch)
        alone, several = library.tensorrt.trt.created.contexts[-2:]
        assert (alone.num_enqueued, several.num_enqueued) == (3, 4)
        assert (alone.active_optimization_profile, several.active_optimization_profile) == (0, 1)
        with pytest.raises(
            ValueError, match=r"input x: expected a shape from \(1, 3\) to \(4, 3\), found \(5, 3\)"
        ):
            session.run({"x": _array(5, 3)})
        _run(session, 1)
    assert device.is_clean


@pytest.mark.parametrize("version", fakes.RELEASES)
def test_profiles_compute_in_the_same_memory(version: str, device: Device) -> None:
    library = fakes.library(version)
    with EngineSession(_profiled(library), library=library, cuda=CudaPython(Cudart(device))):
        memories = {context.memory[0] for context in library.tensorrt.trt.created.contexts[-2:]}
        assert len(memories) == 1
        assert device.memory[memories.pop()] == fakes.CONTEXT_BYTES
        # Beside it, an input and an output.
        assert len(device.memory) == 3
    assert device.is_clean


def test_a_profile_keeps_its_cuda_graph_while_others_run(device: Device, library: Library) -> None:
    data = _profiled(library)
    cuda = CudaPython(Cudart(device))
    with EngineSession(data, library=library, cuda=cuda, cuda_graphs=True) as session:
        for _ in range(4):
            _run(session, 1)
            _run(session, 4)
        # Captured with the third call of each, and launched in the third and the fourth.
        assert device.calls.count("cudaStreamBeginCapture") == 2
        assert device.calls.count("cudaGraphLaunch") == 4
        assert len(device.graphs) == 2
        _run(session, 3)  # another shape of the second profile
        assert len(device.graphs) == 1
    assert device.is_clean


def test_too_little_memory_for_the_contexts_leaves_nothing(device: Device, library: Library) -> None:
    data = _profiled(library)
    device.limit = fakes.CONTEXT_BYTES - 1
    with pytest.raises(Exception, match="out of memory"):
        EngineSession(data, library=library, cuda=CudaPython(Cudart(device)))
    assert device.is_clean


def test_shapes_of_two_profiles_at_once_are_refused(device: Device, library: Library) -> None:
    model = parser.parse_model(
        """<ir_version: 8, opset_import: ["": 17]>
        net (float[B, 3] x, float[C, 3] y) => (float[B, 3] a, float[C, 3] b) {
            a = Add(x, x)
            b = Add(y, y)
        }"""
    )
    config = EngineConfig(profiles=PROFILES, precision="fp32")
    data = build_engine(model, config, library=library).data
    with EngineSession(data, library=library, cuda=CudaPython(Cudart(device))) as session:
        message = (
            r"inputs: expected shapes that one profile has \(x \(1, 3\) to \(1, 3\), y .*; or x \(2, 3\) to "
        )
        with pytest.raises(ValueError, match=message):
            session.run({"x": _array(1, 3), "y": _array(4, 3)})
        x, y = _array(3, 3, seed=1), _array(2, 3, seed=2)
        found = session.run({"x": x, "y": y})
        np.testing.assert_array_equal(found["a"], 2 * x)
        np.testing.assert_array_equal(found["b"], 2 * y)
