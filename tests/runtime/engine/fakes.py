"""The package ``tensorrt`` in the style of 8.4, 8.5, 10.0, 10.13 and 11, without a GPU.

An engine is the ONNX that was parsed, its profiles and its flags; running it is onnxruntime on ``fake_cuda``'s memory.
What a release does not have is not there: a wrong call is an ``AttributeError``, a wrong flag a failed build.
"""

import enum
import json
import sys
import time
from collections.abc import Collection, Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, Callable, Optional, Union

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto

from runtime.engine import library as engine_library
from runtime.engine import plugins as engine_plugins
from runtime.engine.compat import TensorRT
from runtime.engine.library import Library
from tests.runtime.engine import fake_cuda, fake_kernels

V8_4, V8_5, V10_0, V10_13, V11 = "8.4.1.5", "8.5.3.1", "10.0.1.6", "10.13.3.9", "11.1.0.106"
RELEASES = (V8_4, V8_5, V10_0, V10_13, V11)
# Of these the network is weakly typed: FP16 is a flag of the builder.
WEAKLY_TYPED = (V8_4, V8_5, V10_0)

# What a context needs on the device.
CONTEXT_BYTES = 4096
_MAGIC = b"fake engine\n"
_DTYPES = {"FLOAT": 0, "HALF": 1, "INT8": 2, "INT32": 3, "BOOL": 4, "UINT8": 5, "INT64": 8}
_NUMPY = {
    "FLOAT": "float32",
    "HALF": "float16",
    "INT8": "int8",
    "INT32": "int32",
    "BOOL": "bool",
    "UINT8": "uint8",
    "INT64": "int64",
}
_FROM_ONNX = {
    TensorProto.FLOAT: "FLOAT",
    TensorProto.FLOAT16: "HALF",
    TensorProto.INT8: "INT8",
    TensorProto.INT32: "INT32",
    TensorProto.INT64: "INT64",
    TensorProto.BOOL: "BOOL",
    TensorProto.UINT8: "UINT8",
}


def library(version: str = V8_5, **options: Any) -> Library:
    """Return a ``Library`` of the fake; options as for ``tensorrt``."""
    return Library(TensorRT(tensorrt(version, **options)))


def tensorrt(
    version: str = V8_5,
    *,
    unsupported: Collection[str] = (),
    plugins: Sequence[str] = (),
    build_seconds: float = 0.0,
    on_build: Callable[[], None] = lambda: None,
    failure: Union[str, Callable[[onnx.ModelProto], str]] = "",
) -> ModuleType:
    """Return the package.

    Args:
        version: one of ``RELEASES``, or any other.
        unsupported: operators that the parser refuses.
        plugins: names of the creators that are registered from the beginning.
        build_seconds: that a build takes.
        on_build: called when one begins.
        failure: what a build logs, and then fails with; or what a function of the model returns, empty: it builds.
    """
    release = tuple(int(n) for n in version.split("."))
    trt = ModuleType("tensorrt")
    trt.__version__ = version
    trt.__spec__ = ModuleSpec("tensorrt", None)
    _add_enums(trt, release)
    _add_logger(trt)
    creators = [_creator(name) for name in plugins]
    attribute = "all_creators" if release >= (11,) else "plugin_creator_list"
    registry = SimpleNamespace(**{attribute: creators})
    if (10,) <= release < (11,):
        registry.all_creators = creators
    trt.get_plugin_registry = lambda: registry
    trt.init_libnvinfer_plugins = lambda logger, namespace: True
    trt.created = SimpleNamespace(builds=[], configs=[], contexts=[])
    _add_builder(trt, release, build_seconds, on_build, failure)
    _add_parser(trt, release, frozenset(unsupported))
    _add_runtime(trt, release)
    return trt


def install(
    monkeypatch: pytest.MonkeyPatch, version: str = V8_5, *devices: fake_cuda.Device, **options: Any
) -> ModuleType:
    """Put the package, and cuda-python for the devices (None: one), where ``import`` finds them; return it.

    No plugin library is found.
    """
    trt = tensorrt(version, **options)
    for name in ("cuda.bindings.runtime", "pycuda.driver"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, "tensorrt", trt)
    monkeypatch.setitem(sys.modules, "cuda.cudart", fake_cuda.Cudart(*(devices or (fake_cuda.Device(),))))
    monkeypatch.setattr(engine_library, "_libraries", {})
    monkeypatch.setattr(engine_plugins, "FOLDERS", ())
    monkeypatch.setattr(engine_plugins, "_loaded", {})
    monkeypatch.delenv(engine_plugins.VARIABLE, raising=False)
    return trt


def put_plugins(
    monkeypatch: pytest.MonkeyPatch, folder: Path, handle: Optional[fake_kernels.FakeLibrary] = None
) -> Path:
    """Have a plugin library found, which registers nothing; return its path."""
    handle = handle or fake_kernels.FakeLibrary()
    path = folder / engine_plugins.FILE_NAME
    path.write_bytes(b"plugins")
    monkeypatch.setenv(engine_plugins.VARIABLE, str(path))
    monkeypatch.setattr(engine_plugins, "_load", lambda path, tensorrt: handle)
    return path


def remove(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the packages tensorrt and cuda-python impossible to import, installed or not."""
    for name in ("tensorrt", "cuda.bindings.runtime", "cuda.cudart", "pycuda.driver"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setattr(engine_library, "_libraries", {})


def _creator(name: str, attributes: Collection[str] = ()) -> SimpleNamespace:
    fields = [SimpleNamespace(name=attribute) for attribute in attributes]
    return SimpleNamespace(name=name, plugin_version="1", field_names=fields)


def register(trt: ModuleType, *names: str, attributes: Collection[str] = ()) -> None:
    """Add plugin creators, as loading a library does; they take these attributes."""
    registry = trt.get_plugin_registry()
    creators = getattr(registry, "plugin_creator_list", None)
    (registry.all_creators if creators is None else creators).extend(
        _creator(name, attributes) for name in names
    )


def opened(data: bytes) -> dict:
    """Return what a fake engine says about its build."""
    return json.loads(data[len(_MAGIC) :].split(b"\n", 1)[0])


def onnx_in(data: bytes) -> onnx.ModelProto:
    """Return the ONNX that a fake engine was built from."""
    return onnx.load_model_from_string(data[len(_MAGIC) :].split(b"\n", 1)[1])


def _add_enums(trt: ModuleType, release: tuple) -> None:
    dtypes = {
        name: value
        for name, value in _DTYPES.items()
        if not (name == "INT64" and release < (10,)) and not (name == "UINT8" and release < (8, 5))
    }
    # Not an IntEnum: str() has to be "DataType.FLOAT".
    trt.DataType = enum.Enum("DataType", dtypes)
    for name in dtypes:
        short = {"FLOAT": "float32", "HALF": "float16"}.get(name, name.lower())
        setattr(trt, short, trt.DataType[name])
    network_flags = {"EXPLICIT_BATCH": 0} if release < (11,) else {}
    if (10,) <= release < (11,):
        network_flags["STRONGLY_TYPED"] = 1
    trt.NetworkDefinitionCreationFlag = enum.IntEnum("NetworkDefinitionCreationFlag", network_flags)
    flags = {"TF32": 7, "REFIT": 4}
    if release < (11,):
        flags.update(
            {"FP16": 0, "INT8": 1, "PREFER_PRECISION_CONSTRAINTS": 10, "OBEY_PRECISION_CONSTRAINTS": 11}
        )
    trt.BuilderFlag = enum.IntEnum("BuilderFlag", flags)
    trt.MemoryPoolType = enum.IntEnum("MemoryPoolType", {"WORKSPACE": 0})
    sources = {"CUBLAS": 0, "CUBLAS_LT": 1, "CUDNN": 2, "EDGE_MASK_CONVOLUTIONS": 3}
    if release >= (8, 5):
        sources["JIT_CONVOLUTIONS"] = 4
    trt.TacticSource = enum.IntEnum("TacticSource", sources)
    trt.ProfilingVerbosity = enum.IntEnum("ProfilingVerbosity", {"LAYER_NAMES_ONLY": 0, "DETAILED": 2})
    trt.LayerInformationFormat = enum.IntEnum("LayerInformationFormat", {"ONELINE": 0, "JSON": 1})
    trt.LayerType = enum.IntEnum(
        "LayerType", {"CONVOLUTION": 0, "CONSTANT": 22, "SHAPE": 26, "ELEMENTWISE": 8}
    )
    if release >= (8, 5):
        trt.TensorIOMode = enum.IntEnum("TensorIOMode", {"NONE": 0, "INPUT": 1, "OUTPUT": 2})


def _add_logger(trt: ModuleType) -> None:
    class ILogger:
        INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)

        def __init__(self) -> None:
            self.is_made = True

        def log(self, severity: int, message: str) -> None:
            raise NotImplementedError

    class IProfiler:
        def __init__(self) -> None:
            self.is_made = True

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            raise NotImplementedError

    trt.ILogger, trt.IProfiler = ILogger, IProfiler


class _Tensor:
    """One of a network: name, shape with -1, and type."""

    def __init__(self, name: str, shape: tuple, dtype: Any) -> None:
        self.name, self.shape, self.dtype = name, shape, dtype


class _Layer:
    """One layer. What 11 does not have, ``precision`` and ``set_output_type``, is in ``_WeakLayer``."""

    __slots__ = ("inputs", "name", "outputs", "type")

    def __init__(self, name: str, kind: Any, inputs: list, outputs: list) -> None:
        self.name, self.type, self.inputs, self.outputs = name, kind, inputs, outputs

    @property
    def num_inputs(self) -> int:
        return len(self.inputs)

    def get_input(self, index: int) -> Optional[_Tensor]:
        return self.inputs[index]

    @property
    def num_outputs(self) -> int:
        return len(self.outputs)

    def get_output(self, index: int) -> _Tensor:
        return self.outputs[index]


class _WeakLayer(_Layer):
    __slots__ = ("output_types", "precision")

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.precision, self.output_types = None, {}

    def set_output_type(self, index: int, dtype: Any) -> None:
        if not 0 <= index < self.num_outputs:
            raise IndexError(index)
        self.output_types[index] = dtype


class _Network:
    def __init__(self, flags: int) -> None:
        self.flags = flags
        self.inputs: list[_Tensor] = []
        self.layers: list[_Layer] = []
        self.model: Optional[onnx.ModelProto] = None

    num_inputs = property(lambda self: len(self.inputs))
    num_layers = property(lambda self: len(self.layers))

    def get_input(self, index: int) -> _Tensor:
        return self.inputs[index]

    def get_layer(self, index: int) -> _Layer:
        return self.layers[index]


class _Profile:
    def __init__(self) -> None:
        self.shapes: dict[str, list] = {}

    def set_shape(self, name: str, low: tuple, best: tuple, high: tuple) -> None:
        self.shapes[name] = [list(low), list(best), list(high)]


class _TimingCache:
    def __init__(self, data: bytes) -> None:
        self.data = data

    def serialize(self) -> bytes:
        return self.data


def _add_builder(
    trt: ModuleType,
    release: tuple,
    build_seconds: float,
    on_build: Callable[[], None],
    failure: Union[str, Callable],
) -> None:
    cache_header = f"timing cache of {trt.__version__}\n".encode()

    class IBuilderConfig:
        def __init__(self) -> None:
            self.flags = {trt.BuilderFlag.TF32}
            self.pools: dict[str, int] = {}
            self.tactic_sources: Optional[int] = None
            self.profiling_verbosity = trt.ProfilingVerbosity.LAYER_NAMES_ONLY
            self.profiles: list[_Profile] = []
            self.cache: Optional[_TimingCache] = None
            if release >= (10,):
                self.progress_monitor = None
            trt.created.configs.append(self)

        def set_flag(self, flag: Any) -> None:
            self.flags.add(trt.BuilderFlag(flag))

        def clear_flag(self, flag: Any) -> None:
            self.flags.discard(trt.BuilderFlag(flag))

        def set_memory_pool_limit(self, pool: Any, num_bytes: int) -> None:
            self.pools[pool.name] = num_bytes

        def set_tactic_sources(self, bits: int) -> bool:
            self.tactic_sources = bits
            return True

        def add_optimization_profile(self, profile: _Profile) -> int:
            ordered = all(a <= b <= c for shape in profile.shapes.values() for a, b, c in zip(*shape))
            if not ordered:
                return -1
            self.profiles.append(profile)
            return len(self.profiles) - 1

        def create_timing_cache(self, data: bytes) -> _TimingCache:
            return _TimingCache(bytes(data))

        def set_timing_cache(self, cache: _TimingCache, ignore_mismatch: bool) -> bool:
            if cache.data and not cache.data.startswith(cache_header) and not ignore_mismatch:
                return False
            self.cache = cache
            return True

        def get_timing_cache(self) -> Optional[_TimingCache]:
            return self.cache

    class Builder:
        def __init__(self, logger: Any) -> None:
            self.logger = logger

        def create_network(self, flags: int = 0) -> _Network:
            known = sum(1 << int(flag) for flag in trt.NetworkDefinitionCreationFlag)
            if flags & ~known:
                raise TypeError(f"unknown network flags {flags:b}")
            return _Network(flags)

        def create_builder_config(self) -> IBuilderConfig:
            return IBuilderConfig()

        def create_optimization_profile(self) -> _Profile:
            return _Profile()

        def build_serialized_network(self, network: _Network, config: IBuilderConfig) -> Optional[bytes]:
            trt.created.builds.append(config)
            on_build()
            error = failure(network.model) if callable(failure) else failure
            error = error or _build_error(network, config)
            if error:
                self.logger.log(trt.ILogger.ERROR, error)
                return None
            self._report(network, config)
            time.sleep(build_seconds)
            if config.cache is not None:
                config.cache.data = (
                    cache_header + (config.cache.data[len(cache_header) :] or b"") + b"kernel\n"
                )
            header = {
                "version": trt.__version__,
                "flags": sorted(flag.name for flag in config.flags),
                "pools": config.pools,
                "tactic_sources": config.tactic_sources,
                "detailed": config.profiling_verbosity == trt.ProfilingVerbosity.DETAILED,
                "strongly_typed": _is_strongly_typed(network),
                "float32": [
                    layer.name for layer in network.layers if getattr(layer, "precision", None) == trt.float32
                ],
                "profiles": [profile.shapes for profile in config.profiles],
            }
            return _MAGIC + json.dumps(header).encode() + b"\n" + network.model.SerializeToString()

        def _report(self, network: _Network, config: IBuilderConfig) -> None:
            monitor = getattr(config, "progress_monitor", None)
            if monitor is not None:
                monitor.phase_start("Building Engine", None, network.num_layers)
                for index in range(network.num_layers):
                    if not monitor.step_complete("Building Engine", index):
                        return
                monitor.phase_finish("Building Engine")
            verbose = [f"After final dead-layer removal: {network.num_layers} layers"]
            verbose += ["=============== Computing costs for "] * network.num_layers
            verbose += ["Formats and tactics selection completed in 0.1 seconds."]
            for line in verbose:
                self.logger.log(trt.ILogger.VERBOSE, line)
            self.logger.log(
                trt.ILogger.WARNING, "TensorRT was linked against cuDNN 8.6.0 but loaded cuDNN 8.5.0"
            )
            self.logger.log(
                trt.ILogger.WARNING, "TensorRT was linked against cuDNN 8.6.0 but loaded cuDNN 8.5.0"
            )

    def _is_strongly_typed(network: _Network) -> bool:
        return release >= (11,) or bool(release >= (10,) and network.flags & 2)

    def _build_error(network: _Network, config: IBuilderConfig) -> str:
        names = {flag.name for flag in config.flags}
        if _is_strongly_typed(network) and names & {
            "FP16",
            "INT8",
            "PREFER_PRECISION_CONSTRAINTS",
            "OBEY_PRECISION_CONSTRAINTS",
        }:
            return "fp16 precision has been set for a network that is strongly typed"
        for tensor in network.inputs:
            if -1 in tensor.shape and not (config.profiles and tensor.name in config.profiles[0].shapes):
                return f"Network has dynamic or shape inputs, but no optimization profile for {tensor.name}"
        return ""

    if release >= (10,):

        class IProgressMonitor:
            def __init__(self) -> None:
                pass

        trt.IProgressMonitor = IProgressMonitor
    trt.Builder = Builder


class _ParserError:
    def __init__(self, node: int, desc: str) -> None:
        self._node, self._desc = node, desc

    def node(self) -> int:
        return self._node

    def desc(self) -> str:
        return self._desc


def _add_parser(trt: ModuleType, release: tuple, unsupported: frozenset) -> None:
    layer_class = _Layer if release >= (11,) else _WeakLayer

    class OnnxParser:
        def __init__(self, network: _Network, logger: Any) -> None:
            self._network, self._logger, self._errors = network, logger, []

        num_errors = property(lambda self: len(self._errors))

        def get_error(self, index: int) -> _ParserError:
            return self._errors[index]

        def parse(self, data: bytes) -> bool:
            model = onnx.load_model_from_string(data)
            self._errors = self._found_errors(model)
            for error in self._errors:
                self._logger.log(trt.ILogger.ERROR, f"[{error.node()}] {error.desc()}")
            if not self._errors:
                self._fill(model)
            return not self._errors

        def _found_errors(self, model: onnx.ModelProto) -> list[_ParserError]:
            if release < (10,) and not self._network.flags & 1:
                return [_ParserError(-1, "this version requires an explicit batch network")]
            known = {creator.name for creator in _creators(trt)}
            errors = []
            for index, node in enumerate(model.graph.node):
                custom = node.domain not in ("", "ai.onnx")
                if node.op_type in unsupported or (custom and node.op_type not in known):
                    desc = f"No importer registered for op: {node.op_type}.\n Plugin not found"
                    errors.append(_ParserError(index, desc))
                elif release < (10,) and _casts_to_uint8(node):
                    errors.append(_ParserError(index, "Cast output type does not support UINT8"))
            # 8 stops at the first one.
            return errors[:1] if release < (10,) else errors

        def _fill(self, model: onnx.ModelProto) -> None:
            network = self._network
            network.model = model
            initializers = {tensor.name for tensor in model.graph.initializer}
            inferred = onnx.shape_inference.infer_shapes(model).graph
            types = {
                value.name: value.type.tensor_type.elem_type
                for value in (*inferred.input, *inferred.value_info, *inferred.output)
            }
            for value in model.graph.input:
                if value.name not in initializers:
                    kind = value.type.tensor_type
                    network.inputs.append(_Tensor(value.name, _shape(value), _dtype(trt, kind.elem_type)))
            kinds = {"Constant": "CONSTANT", "Shape": "SHAPE", "Conv": "CONVOLUTION"}
            for node in model.graph.node:
                inputs, outputs = (
                    [_Tensor(n, (), _dtype(trt, types.get(n, TensorProto.FLOAT))) for n in names]
                    for names in (node.input, node.output)
                )
                kind = trt.LayerType[kinds.get(node.op_type, "ELEMENTWISE")]
                network.layers.append(layer_class(node.name, kind, inputs, outputs))

    trt.OnnxParser = OnnxParser


def _creators(trt: ModuleType) -> list:
    registry = trt.get_plugin_registry()
    return getattr(registry, "plugin_creator_list", None) or getattr(registry, "all_creators", [])


def _casts_to_uint8(node: onnx.NodeProto) -> bool:
    return node.op_type == "Cast" and any(a.name == "to" and a.i == TensorProto.UINT8 for a in node.attribute)


def _dtype(trt: ModuleType, elem_type: int) -> Any:
    name = _FROM_ONNX[elem_type]
    if name == "INT64" and not hasattr(trt, "int64"):
        name = "INT32"  # 8 computes on int32
    return trt.DataType[name]


def _shape(value: onnx.ValueInfoProto) -> tuple[int, ...]:
    return tuple(d.dim_value if d.HasField("dim_value") else -1 for d in value.type.tensor_type.shape.dim)


class _Engine:
    """What all releases' engines have."""

    def __init__(self, trt: ModuleType, data: bytes, logger: Any) -> None:
        self.trt, self.logger, self.header = trt, logger, opened(data)
        self.model = onnx_in(data)
        initializers = {tensor.name for tensor in self.model.graph.initializer}
        self.inputs = [v for v in self.model.graph.input if v.name not in initializers]
        self.outputs = list(self.model.graph.output)
        # Outputs first, the last before the others: whoever counts on an order is wrong.
        self.values = {v.name: v for v in (*reversed(self.outputs), *self.inputs)}
        self.num_optimization_profiles = len(self.header["profiles"])

    def dtype(self, name: str) -> Any:
        return _dtype(self.trt, self.values[name].type.tensor_type.elem_type)

    def profile(self, index: int, name: str) -> tuple:
        return tuple(tuple(shape) for shape in self.header["profiles"][index][name])

    def create_engine_inspector(self) -> "_Inspector":
        return _Inspector(self)


class _NamedTensors:
    """Tensors by name, since 8.5."""

    @property
    def num_io_tensors(self) -> int:
        return len(self.values)

    def get_tensor_name(self, index: int) -> str:
        return list(self.values)[index]

    def get_tensor_mode(self, name: str) -> Any:
        mode = self.trt.TensorIOMode
        return mode.INPUT if name in {v.name for v in self.inputs} else mode.OUTPUT

    def get_tensor_dtype(self, name: str) -> Any:
        return self.dtype(name)

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return _shape(self.values[name])

    def get_tensor_profile_shape(self, name: str, profile: int) -> list:
        return list(self.profile(profile, name))


class _Bindings:
    """Bindings by index, until 9: once for each profile, with the profile's number in the name after the first."""

    @property
    def num_bindings(self) -> int:
        return len(self.values) * self.num_optimization_profiles

    def get_binding_name(self, index: int) -> str:
        profile, position = divmod(index, len(self.values))
        return list(self.values)[position] + (f" [profile {profile}]" if profile else "")

    def get_binding_index(self, name: str) -> int:
        return [self.get_binding_name(i) for i in range(self.num_bindings)].index(name)

    def binding_is_input(self, index: int) -> bool:
        return self._value(index).name in {v.name for v in self.inputs}

    def get_binding_dtype(self, binding: Any) -> Any:
        return self.dtype(self._value(binding).name)

    def get_binding_shape(self, binding: Any) -> tuple[int, ...]:
        return _shape(self._value(binding))

    def get_profile_shape(self, profile: int, binding: Any) -> list:
        return list(self.profile(profile, self._value(binding).name))

    def _value(self, binding: Any) -> onnx.ValueInfoProto:
        index = self.get_binding_index(binding) if isinstance(binding, str) else binding
        return list(self.values.values())[index % len(self.values)]


class _Context:
    """What all releases' contexts have."""

    has_memory = False

    def __init__(self, engine: Any) -> None:
        self.engine = engine
        self.active_optimization_profile = 0
        self.memory: tuple = ()
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.profiler: Any = None
        self.num_enqueued = 0
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 4
        self._session = onnxruntime.InferenceSession(engine.model.SerializeToString(), options)

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
        if not 0 <= profile_index < self.engine.num_optimization_profiles:
            return False
        self.active_optimization_profile = profile_index
        return True

    def set_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        own = _shape(self.engine.values[name])
        profile = self.active_optimization_profile
        limits = self.engine.profile(profile, name) if -1 in own else (own,) * 3
        low, _, high = limits
        if len(low) != len(shape) or not all(a <= s <= b for a, s, b in zip(low, shape, high)):
            self.engine.logger.log(1, f"setInputShape: {name} outside the profile")
            return False
        self.shapes[name] = tuple(shape)
        return True

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a tensor's shape; -1 for what only the data decides."""
        if name in self.shapes:
            return self.shapes[name]
        known: dict[str, int] = {}
        for value in self.engine.inputs:
            dims = value.type.tensor_type.shape.dim
            known.update(zip((d.dim_param for d in dims), self.shapes.get(value.name, (-1,) * len(dims))))
        dims = self.engine.values[name].type.tensor_type.shape.dim
        return tuple(d.dim_value if d.HasField("dim_value") else known.get(d.dim_param, -1) for d in dims)

    def enqueue(self, addresses: dict[str, int], stream: int) -> bool:
        if not self.has_memory and not self.memory:
            self.engine.logger.log(1, "enqueue: no device memory")
            return False
        missing = [name for name in self.engine.values if not addresses.get(name)]
        if missing or len(self.shapes) < len(self.engine.inputs):
            self.engine.logger.log(1, f"enqueue: no address or shape for {missing}")
            return False
        self.num_enqueued += 1
        for node in self.engine.model.graph.node if self.profiler is not None else ():
            self.profiler.report_layer_time(node.name, 0.5 * self.num_enqueued)
        fake_cuda.put_on_stream(stream, lambda: self._compute(addresses))
        return True

    def _compute(self, addresses: dict[str, int]) -> None:
        # As they are now: on its way, the network may read what the context keeps on the host.
        shapes = {name: self.shape(name) for name in self.engine.values}
        feeds = {
            value.name: self._array(value.name, addresses, shapes).astype(
                onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
            )
            for value in self.engine.inputs
        }
        names = [value.name for value in self.engine.outputs]
        for name, result in zip(names, self._session.run(names, feeds)):
            self._array(name, addresses, shapes)[...] = result

    def _array(self, name: str, addresses: dict[str, int], shapes: dict[str, tuple]) -> np.ndarray:
        dtype = np.dtype(_NUMPY[self.engine.dtype(name).name])
        num_bytes = int(np.prod(shapes[name], dtype=np.int64)) * dtype.itemsize
        return fake_cuda.memory_at(addresses[name], num_bytes).view(dtype).reshape(shapes[name])


class _NamedContext:
    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        return self.set_shape(name, shape)

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self.shape(name)

    def set_tensor_address(self, name: str, address: int) -> None:
        self.__dict__.setdefault("addresses", {})[name] = address

    def execute_async_v3(self, stream_handle: int) -> bool:
        return self.enqueue(dict(self.addresses), stream_handle)


class _BindingContext:
    def set_binding_shape(self, index: int, shape: tuple[int, ...]) -> bool:
        return self.set_shape(self._name(index), shape)

    def get_binding_shape(self, index: int) -> tuple[int, ...]:
        return self.shape(self._name(index))

    def _name(self, index: int) -> str:
        """Those of another profile than the context's are nobody's."""
        profile, position = divmod(index, len(self.engine.values))
        if profile != self.active_optimization_profile:
            raise ValueError(f"binding {index} belongs to profile {profile}")
        return list(self.engine.values)[position]

    def execute_async_v2(self, bindings: list[int], stream_handle: int) -> bool:
        self.bindings = list(bindings)
        if len(bindings) != self.engine.num_bindings:
            raise ValueError(f"expected {self.engine.num_bindings} bindings, found {len(bindings)}")
        num = len(self.engine.values)
        first = num * self.active_optimization_profile
        if any(bindings[:first] + bindings[first + num :]):
            raise ValueError("bindings of other profiles than the context's are set")
        return self.enqueue(dict(zip(self.engine.values, bindings[first : first + num])), stream_handle)


class _Inspector:
    def __init__(self, engine: _Engine) -> None:
        self._engine = engine
        self.execution_context: Any = None

    def get_engine_information(self, kind: Any) -> str:
        assert kind.name == "JSON"
        engine = self._engine
        if not engine.header["detailed"]:
            return json.dumps(
                {"Layers": [n.name for n in engine.model.graph.node], "Bindings": list(engine.values)}
            )
        layers = [self._layer(node) for node in engine.model.graph.node]
        return json.dumps({"Layers": layers, "Bindings": list(engine.values)})

    def _layer(self, node: onnx.NodeProto) -> dict:
        header = self._engine.header
        is_half = "FP16" in header["flags"] and node.name not in header["float32"]
        text = "Channel major FP16 format where channel % 8 == 0" if is_half else "Row major linear FP32"
        tensors = [{"Name": n, "Dimensions": [1], "Format/Datatype": text} for n in node.input[:1]]
        kind = {"Conv": "CaskConvolution", "Constant": "Constant"}.get(node.op_type, "PointWiseV2")
        outputs = [{"Name": n, "Dimensions": [1], "Format/Datatype": text} for n in node.output]
        return {"Name": node.name, "LayerType": kind, "Inputs": tensors, "Outputs": outputs}


def _add_runtime(trt: ModuleType, release: tuple) -> None:
    engine_bases = (_NamedTensors,) * (release >= (8, 5)) + (_Bindings,) * (release < (10,))
    context_bases = (_NamedContext,) * (release >= (8, 5)) + (_BindingContext,) * (release < (10,))
    context_class = type("IExecutionContext", (*context_bases, _Context), {})

    def without_memory(self: Any) -> Any:
        trt.created.contexts.append(context_class(self))
        return trt.created.contexts[-1]

    def create_execution_context(self: Any, strategy: Any = None) -> Any:
        context = without_memory(self)
        context.has_memory = strategy is None
        return context

    def set_memory(self: Any, memory: int, size: Optional[int] = None) -> None:
        self.memory = (memory, size)

    methods: dict[str, Any] = {"create_execution_context": create_execution_context}
    if release >= (10,):
        names = {"STATIC": 0, "ON_PROFILE_CHANGE": 1, "USER_MANAGED": 2}
        trt.ExecutionContextAllocationStrategy = enum.IntEnum("ExecutionContextAllocationStrategy", names)
    else:
        methods["create_execution_context"] = lambda self: create_execution_context(self)
        methods["create_execution_context_without_device_memory"] = without_memory
    if release >= (10, 1):
        methods["device_memory_size_v2"] = CONTEXT_BYTES
        context_class.set_device_memory = set_memory
    else:
        methods["device_memory_size"] = CONTEXT_BYTES
        context_class.device_memory = property(None, set_memory)
    trt.ICudaEngine = type("ICudaEngine", (*engine_bases, _Engine), methods)

    class Runtime:
        def __init__(self, logger: Any) -> None:
            self._logger = logger

        def deserialize_cuda_engine(self, data: bytes) -> Optional[Any]:
            error = self._refusal(bytes(data))
            if error:
                self._logger.log(trt.ILogger.ERROR, error)
                return None
            return trt.ICudaEngine(trt, bytes(data), self._logger)

        def _refusal(self, data: bytes) -> str:
            if not data.startswith(_MAGIC) or data.count(b"\n") < 2:
                return "Serialization assertion stdVersionRead == serializationVersion failed.\nNo magic tag"
            found = opened(data)["version"]
            if found != trt.__version__:
                return (
                    f"The engine plan file is not compatible: expecting version {trt.__version__} got {found}"
                )
            return ""

    trt.Runtime = Runtime
