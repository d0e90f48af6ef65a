"""Small networks of one plugin: built through its creator or from an ONNX file, run with NumPy arrays.

Python 3.9, TensorRT 8.5 or later, NumPy, cuda-python; no torch, no pytest.
"""

from __future__ import annotations

import ctypes
import json
import os
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import tensorrt as trt
from cuda import cudart

LIBRARY_VARIABLE = "MASKRCNN_PLUGINS"
ROOT = Path(__file__).parents[2]
LIBRARY = ROOT / "build" / "libmaskrcnn_plugins.so"
# cuBLAS and cuDNN are not needed for the layers here, and not every box has them.
TACTIC_SOURCES = 0
TRT_MAJOR = int(trt.__version__.split(".")[0])

# trt.nptype breaks with NumPy 1.24 on TensorRT 8.
NUMPY_TYPES = {
    trt.float32: np.float32,
    trt.float16: np.float16,
    trt.int8: np.int8,
    trt.int32: np.int32,
    trt.bool: np.bool_,
}
if hasattr(trt, "uint8"):
    NUMPY_TYPES[trt.uint8] = np.uint8
TRT_TYPES = {np.dtype(numpy_type): trt_type for trt_type, numpy_type in NUMPY_TYPES.items()}


class Log(trt.ILogger):
    """Keeps the errors, so that tests can read the messages."""

    def __init__(self) -> None:
        trt.ILogger.__init__(self)
        self.errors: list[str] = []

    def log(self, severity, message) -> None:
        if severity <= trt.ILogger.ERROR:
            self.errors.append(message)


# One for the process: TensorRT's registry, and with it the plugins, log to the first logger there was.
LOG = Log()
RUNTIME = trt.Runtime(LOG)  # TensorRT forgets the logger with the last object that uses it


def library_path() -> Path:
    return Path(os.environ.get(LIBRARY_VARIABLE, LIBRARY))


def load_library() -> ctypes.CDLL:
    return ctypes.CDLL(str(library_path()), ctypes.RTLD_GLOBAL)


def check(status) -> tuple:
    """Return what a call of cuda-python returned besides its status."""
    if status[0] != cudart.cudaError_t.cudaSuccess:
        raise RuntimeError(f"expected cudaSuccess, found {status[0]}")
    return status[1:]


@dataclass(frozen=True)
class Input:
    """One input of a network: `shapes` are the profile's min, opt, max; one shape alone is static."""

    name: str
    dtype: type
    shapes: tuple
    formats: int | None = None  # a mask of trt.TensorFormat bits

    @property
    def network_shape(self) -> tuple:
        low, high = self.shapes[0], self.shapes[-1]
        return tuple(a if a == b else -1 for a, b in zip(low, high))


@dataclass
class Network:
    """A network under construction and what keeps it alive."""

    builder: object
    network: object
    config: object
    inputs: list = field(default_factory=list)
    keep: list = field(default_factory=list)


def new_network(*, fp16: bool = False, int8: bool = False) -> Network:
    builder = trt.Builder(LOG)
    explicit = getattr(trt.NetworkDefinitionCreationFlag, "EXPLICIT_BATCH", None) if TRT_MAJOR < 11 else None
    network = builder.create_network(0 if explicit is None else 1 << int(explicit))
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, 2 << 30)
    config.set_tactic_sources(TACTIC_SOURCES)
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if fp16 and TRT_MAJOR < 11:
        config.set_flag(trt.BuilderFlag.FP16)
    if int8 and TRT_MAJOR < 11:
        config.set_flag(trt.BuilderFlag.INT8)
    return Network(builder, network, config)


def add_inputs(net: Network, inputs: list[Input]) -> list:
    tensors = []
    for spec in inputs:
        tensor = net.network.add_input(spec.name, TRT_TYPES[np.dtype(spec.dtype)], spec.network_shape)
        if spec.formats is not None:
            tensor.allowed_formats = spec.formats
        tensors.append(tensor)
    add_profile(net, inputs)
    return tensors


def add_profile(net: Network, inputs: list[Input]) -> None:
    profile = net.builder.create_optimization_profile()
    for spec in inputs:
        low, opt, high = spec.shapes[0], spec.shapes[len(spec.shapes) // 2], spec.shapes[-1]
        profile.set_shape(spec.name, low, opt, high)
    net.config.add_optimization_profile(profile)


def plugin_fields(attributes: dict) -> tuple[trt.PluginFieldCollection, list]:
    """Return the fields, and the arrays they point to: TensorRT's bindings do not keep those alive."""
    fields, keep = [], []
    for name, value in attributes.items():
        if isinstance(value, str):
            data, kind = np.array(bytearray(value.encode()), np.int8), trt.PluginFieldType.CHAR
        else:
            values = np.atleast_1d(np.asarray(value))
            whole = values.dtype.kind in "iub"
            data = values.astype(np.int32 if whole else np.float32)
            kind = trt.PluginFieldType.INT32 if whole else trt.PluginFieldType.FLOAT32
        fields.append(trt.PluginField(name, data, kind))
        keep.append(data)
    return trt.PluginFieldCollection(fields), keep


def find_creator(op: str):
    registry = trt.get_plugin_registry()
    return (registry.get_plugin_creator if TRT_MAJOR < 10 else registry.get_creator)(op, "1", "")


def create_plugin(op: str, attributes: dict):
    """Return the plugin, None where the creator refuses the attributes."""
    phase = () if TRT_MAJOR < 10 else (trt.TensorRTPhase.BUILD,)
    fields, keep = plugin_fields(attributes)
    plugin = find_creator(op).create_plugin("plugin", fields, *phase)
    del keep  # not before
    return plugin


def added(layer, what: str):
    """Return the layer.

    Raises:
        RuntimeError: TensorRT refused it, which its bindings tell as None; names the errors that it logged.
    """
    if layer is None:
        raise RuntimeError(f"{what}: expected a layer, found errors: {LOG.errors[-4:]}")
    return layer


def add_plugin(net: Network, tensors: list, op: str, attributes: dict):
    plugin = create_plugin(op, attributes)
    if plugin is None:
        raise ValueError(f"{op}: {LOG.errors[-1:]}")
    if TRT_MAJOR < 10:
        return added(net.network.add_plugin_v2(tensors, plugin), op)
    return added(net.network.add_plugin_v3(tensors, [], plugin), op)


def _scale(net: Network, scale: float | np.ndarray):
    # TensorRT reads the weights when it builds.
    net.keep.append(np.atleast_1d(np.asarray(scale, np.float32)))
    shape = net.keep[-1].shape
    return added(net.network.add_constant(shape, trt.Weights(net.keep[-1])), f"scales {shape}").get_output(0)


def quantized(net: Network, tensor, scale: float | np.ndarray, axis: int | None = None):
    """Return the INT8 tensor of a float one, in steps of ``scale``: one number, or with ``axis`` one for each index."""
    kind = (trt.int8,) if TRT_MAJOR >= 11 else ()
    return _scaled(net.network.add_quantize, kind, net, tensor, scale, axis)


def dequantized(net: Network, tensor, scale: float | np.ndarray, axis: int | None = None):
    """Return the floats of an INT8 tensor, in steps as ``quantized`` has them."""
    kind = (trt.float32,) if TRT_MAJOR >= 11 else ()
    return _scaled(net.network.add_dequantize, kind, net, tensor, scale, axis)


def _scaled(add, kind: tuple, net: Network, tensor, scale: float | np.ndarray, axis: int | None):
    # The tensor's shape is not asked for: where TensorRT cannot tell it, its bindings raise.
    what = f"{add.__name__}: {tensor.name}, scales {np.shape(scale)}"
    layer = added(add(tensor, _scale(net, scale), *kind), what)
    if axis is not None:
        layer.axis = axis
    return layer.get_output(0)


def mark_outputs(net: Network, layer, names: list[str], formats: int | None = None, dtype=None) -> None:
    """Name and mark a layer's outputs. TensorRT 8 makes float16 outputs float32 unless `dtype` says otherwise."""
    for i, name in enumerate(names):
        tensor = layer.get_output(i)
        tensor.name = name
        net.network.mark_output(tensor)
        if dtype is not None:
            tensor.dtype = TRT_TYPES[np.dtype(dtype)]
        if formats is not None:
            tensor.allowed_formats = formats


def serialized(net: Network) -> bytes:
    plan = net.builder.build_serialized_network(net.network, net.config)
    if plan is None:
        raise RuntimeError(f"expected an engine, found errors: {LOG.errors[-4:]}")
    return bytes(plan)


def engine_from(plan: bytes):
    engine = RUNTIME.deserialize_cuda_engine(plan)
    if engine is None:
        raise RuntimeError(f"expected an engine, found errors: {LOG.errors[-4:]}")
    return engine


def plan_of(
    op,
    attributes: dict,
    inputs: list[Input],
    outputs: list[str],
    *,
    fp16=False,
    formats=None,
    dtype=None,
    profiles=1,
):
    net = new_network(fp16=fp16)
    layer = add_plugin(net, add_inputs(net, inputs), op, attributes)
    for _ in range(profiles - 1):  # TensorRT 8 gives each profile to one context at a time
        add_profile(net, inputs)
    mark_outputs(net, layer, outputs, formats, dtype)
    return serialized(net)


@contextmanager
def new_stream():
    (stream,) = check(cudart.cudaStreamCreate())
    try:
        yield stream
    finally:
        cudart.cudaStreamDestroy(stream)


class Session:
    """One execution context with buffers for one set of inputs. Buffers hold 8 elements more than the shapes say."""

    def __init__(self, engine, feeds: dict, *, output_shapes: dict | None = None, profile: int = 0) -> None:
        self.context = engine.create_execution_context()
        if profile:
            with new_stream() as stream:
                self.context.set_optimization_profile_async(profile, int(stream))
                check(cudart.cudaStreamSynchronize(stream))
        self.buffers, self.outputs, self.inputs = [], {}, {}
        for name, array in feeds.items():
            self.context.set_input_shape(name, array.shape)
            self.inputs[name] = (self._allocate(name, array.nbytes), np.ascontiguousarray(array))
        self.upload()
        for i in range(engine.num_io_tensors):
            name = engine.get_tensor_name(i)
            if engine.get_tensor_mode(name) == trt.TensorIOMode.OUTPUT:
                shape = (output_shapes or {}).get(name) or tuple(self.context.get_tensor_shape(name))
                host = np.empty(shape, NUMPY_TYPES[engine.get_tensor_dtype(name)])
                self.outputs[name] = (self._allocate(name, host.nbytes), host)

    def _allocate(self, name: str, num_bytes: int) -> int:
        (pointer,) = check(cudart.cudaMalloc(num_bytes + 256))
        self.buffers.append(pointer)
        # Garbage, so that what a plugin leaves unwritten shows.
        check(cudart.cudaMemset(pointer, 0xA5, num_bytes + 256))
        self.context.set_tensor_address(name, pointer)
        return pointer

    def upload(self) -> None:
        kind = cudart.cudaMemcpyKind.cudaMemcpyHostToDevice
        for pointer, array in self.inputs.values():
            if array.nbytes:
                check(cudart.cudaMemcpy(pointer, array.ctypes.data, array.nbytes, kind))

    def enqueue(self, stream) -> None:
        if not self.context.execute_async_v3(int(stream)):
            raise RuntimeError(f"expected execute_async_v3 to succeed, found errors: {LOG.errors[-4:]}")

    def download(self) -> dict:
        kind = cudart.cudaMemcpyKind.cudaMemcpyDeviceToHost
        for pointer, host in self.outputs.values():
            if host.nbytes:
                check(cudart.cudaMemcpy(host.ctypes.data, pointer, host.nbytes, kind))
        return {name: host.copy() for name, (_, host) in self.outputs.items()}

    def run(self) -> dict:
        with new_stream() as stream:
            self.enqueue(stream)
            check(cudart.cudaStreamSynchronize(stream))
        return self.download()

    def time_ms(self, iterations: int = 50) -> float:
        """Return the median time of one enqueue, from CUDA events."""
        with new_stream() as stream:
            events = [check(cudart.cudaEventCreate())[0] for _ in range(iterations + 1)]
            for _ in range(5):
                self.enqueue(stream)
            check(cudart.cudaEventRecord(events[0], stream))
            for event in events[1:]:
                self.enqueue(stream)
                check(cudart.cudaEventRecord(event, stream))
            check(cudart.cudaStreamSynchronize(stream))
            pairs = zip(events, events[1:])
            return float(np.median([check(cudart.cudaEventElapsedTime(a, b))[0] for a, b in pairs]))

    def close(self) -> None:
        for pointer in self.buffers:
            cudart.cudaFree(pointer)
        self.buffers = []


def run_once(engine, feeds: dict, **options) -> dict:
    session = Session(engine, feeds, **options)
    try:
        return session.run()
    finally:
        session.close()


def graph_time_ms(session: Session, iterations: int = 50) -> float:
    """Capture one enqueue in a CUDA graph and return the time of one launch."""
    with new_stream() as stream:
        session.enqueue(stream)
        check(cudart.cudaStreamSynchronize(stream))
        check(
            cudart.cudaStreamBeginCapture(
                stream, cudart.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
            )
        )
        session.enqueue(stream)
        (graph,) = check(cudart.cudaStreamEndCapture(stream))
        (instance,) = check(cudart.cudaGraphInstantiate(graph, 0))
        check(cudart.cudaGraphLaunch(instance, stream))
        check(cudart.cudaStreamSynchronize(stream))
        start = time.perf_counter()
        for _ in range(iterations):
            check(cudart.cudaGraphLaunch(instance, stream))
        check(cudart.cudaStreamSynchronize(stream))
        return (time.perf_counter() - start) * 1e3 / iterations


def versions() -> dict:
    (properties,) = check(cudart.cudaGetDeviceProperties(0))
    (driver,) = check(cudart.cudaDriverGetVersion())
    return {
        "tensorrt": trt.__version__,
        "gpu": properties.name.decode() if isinstance(properties.name, bytes) else str(properties.name),
        "compute_capability": f"{properties.major}.{properties.minor}",
        "cuda_driver": driver,
        "numpy": np.__version__,
    }


def check_close(found: np.ndarray, expected: np.ndarray, scale: float, tolerance: float) -> float:
    """Return the largest error relative to ``scale``."""
    assert found.shape == expected.shape, f"expected shape {expected.shape}, found {found.shape}"
    if found.size == 0:
        return 0.0
    error = np.abs(found.astype(np.float64) - expected) / scale
    worst = np.unravel_index(np.argmax(np.where(np.isnan(error), np.inf, error)), error.shape)
    assert error[worst] <= tolerance, (
        f"expected {expected[worst]} at {tuple(int(i) for i in worst)}, found {found[worst]}: "
        f"error {error[worst]} above {tolerance}"
    )
    return float(error[worst])


def largest(*arrays: np.ndarray) -> float:
    return max(float(np.abs(a).max()) for a in arrays)


def layer_formats(engine) -> list[str]:
    """Return each layer with the formats of its tensors, as the engine inspector tells them."""
    inspector = engine.create_engine_inspector()
    layers = json.loads(inspector.get_engine_information(trt.LayerInformationFormat.JSON))["Layers"]

    def formats(layer: dict, key: str) -> list[str]:
        return sorted({t.get("Format/Datatype", "?").replace(" format", "") for t in layer.get(key, [])})

    return [
        f"{layer['Name'][:60]} ({layer.get('LayerType', '?')}): "
        f"{formats(layer, 'Inputs')} -> {formats(layer, 'Outputs')}"
        for layer in layers
        if isinstance(layer, dict)
    ]
