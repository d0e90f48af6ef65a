"""Everything in which TensorRT releases differ, 8.4 to 11 and RTX. No other module knows a version.

| 8.4                                   | since                    | now                                       |
| bindings by index                     | gone in 10               | tensors by name (8.5)                     |
| FP16 flag and ``layer.precision``     | deprecated 10.12, gone 11 | types in the ONNX, strongly typed network |
| ``EXPLICIT_BATCH``                    | the default in 10        | no flag                                   |
| verbose log lines                     |                          | ``IProgressMonitor`` (10)                 |
"""

import importlib
import re
from collections.abc import Collection
from types import ModuleType
from typing import Any, Callable, Optional

from runtime.engine.config import Shapes

# `tensorrt_rtx` has the same classes; it takes no plugins of ours, and its networks are all strongly typed.
MODULES = ("tensorrt", "tensorrt_rtx")
_STRONGLY_TYPED_SINCE = (10, 12)
_DTYPE_NAMES = {
    "FLOAT": "float32",
    "HALF": "float16",
    "INT8": "int8",
    "INT32": "int32",
    "INT64": "int64",
    "BOOL": "bool",
    "UINT8": "uint8",
}

ProgressCallback = Callable[[str, int, int], None]

# Lines of the verbose log of releases without a progress monitor.
LOG_ORIGINAL = re.compile(r"^Original: \d+ layers")  # once for each build, before its fusions
LOG_LAYERS = re.compile(r"^After .*: (\d+) layers")
LOG_COSTS = re.compile(r"^=+ Computing costs for")
LOG_CHOSEN = "Formats and tactics selection completed"


class TensorRT:
    """One installed TensorRT.

    Attributes:
        trt: the module, ``tensorrt`` or ``tensorrt_rtx``.
        version: its version as text.
        release: its version as numbers, (8, 5, 3, 1); RTX counts as the newest.
    """

    def __init__(self, module: ModuleType) -> None:
        self.trt: Any = module
        self.version: str = module.__version__
        self.is_rtx = module.__name__ == "tensorrt_rtx"
        numbers = tuple(int(n) for n in re.findall(r"\d+", self.version)[:4])
        self.release = (99, *numbers) if self.is_rtx else numbers

    @property
    def name(self) -> str:
        """The release in words: ``TensorRT 8.5.3.1``."""
        return f"TensorRT{'-RTX' if self.is_rtx else ''} {self.version}"

    @property
    def strongly_typed(self) -> bool:
        """Whether FP16 is written in the ONNX rather than asked of the builder."""
        return self.release >= _STRONGLY_TYPED_SINCE

    # --- building ---

    def new_network(self, builder: Any) -> Any:
        """Return an empty network whose batch is a dimension like any other."""
        flags = self.trt.NetworkDefinitionCreationFlag
        bits = 0
        if self.release < (10,):
            bits |= 1 << int(flags.EXPLICIT_BATCH)
        elif self.strongly_typed and not self.release >= (11,):
            bits |= 1 << int(flags.STRONGLY_TYPED)
        return builder.create_network(bits)

    def new_logger(self, listen: Callable[[str, str], None]) -> Any:
        """Return an ``ILogger`` that calls ``listen(severity, message)``; severities in lower case."""
        severity_names = {
            int(getattr(self.trt.ILogger, name)): name.lower()
            for name in ("INTERNAL_ERROR", "ERROR", "WARNING", "INFO", "VERBOSE")
        }
        base = self.trt.ILogger

        class Logger(base):  # type: ignore[misc, valid-type]
            def __init__(self) -> None:
                base.__init__(self)

            def log(self, severity: Any, message: str) -> None:
                listen(severity_names.get(int(severity), "info"), message)

        return Logger()

    def set_precision(self, config: Any, precision: str, constrained: bool) -> None:
        """Ask the builder for a precision.

        Args:
            config: an ``IBuilderConfig``.
            precision: ``fp32``, ``tf32``, ``fp16`` or ``int8``.
            constrained: some layers have a precision of their own, which is then obeyed; beside INT8 it is preferred:
                8.5.3.1 fails to build a quantized network that has to obey ("candidates were removed ... incorrectly
                marked as an int8 node").
        """
        flags = self.trt.BuilderFlag
        if precision == "fp32":
            config.clear_flag(flags.TF32)
        else:
            config.set_flag(flags.TF32)
        if precision in ("fp16", "int8") and not self.strongly_typed:
            config.set_flag(flags.FP16)
            if precision == "int8":
                config.set_flag(flags.INT8)
            if constrained and precision == "int8":
                config.set_flag(flags.PREFER_PRECISION_CONSTRAINTS)
            elif constrained:
                config.set_flag(flags.OBEY_PRECISION_CONSTRAINTS)

    def set_workspace(self, config: Any, num_bytes: int) -> None:
        """Limit the memory that layers may use while they run."""
        config.set_memory_pool_limit(self.trt.MemoryPoolType.WORKSPACE, num_bytes)

    def tactic_source_names(self) -> list[str]:
        """Return the names that ``set_tactic_sources`` takes here, in lower case."""
        return sorted(name.lower() for name in self.trt.TacticSource.__members__)

    def set_tactic_sources(self, config: Any, names: Any) -> None:
        """Restrict the libraries that kernels come from; no name leaves TensorRT's own kernels.

        Raises:
            ValueError: this release has no such source.
        """
        known = self.tactic_source_names()
        unknown = [name for name in names if name.lower() not in known]
        if unknown:
            raise ValueError(
                f"--tactic-sources: expected some of {', '.join(known)} ({self.name}), found {', '.join(unknown)}"
            )
        bits = 0
        for name in names:
            bits |= 1 << int(getattr(self.trt.TacticSource, name.upper()))
        config.set_tactic_sources(bits)

    @property
    def has_uint8_outputs(self) -> bool:
        """Whether uint8 is a type of outputs."""
        return self.release >= (10,)

    @property
    def takes_plugins(self) -> bool:
        """Whether plugin libraries can be loaded."""
        return not self.is_rtx

    @property
    def has_progress_monitor(self) -> bool:
        """Whether ``set_progress`` does anything; otherwise the verbose log says how far a build is."""
        return hasattr(self.trt, "IProgressMonitor")

    def set_progress(self, config: Any, callback: ProgressCallback) -> Optional[Any]:
        """Report phases to ``callback(phase, step, steps)``, where the release can; return what to keep alive."""
        if not self.has_progress_monitor:
            return None
        base = self.trt.IProgressMonitor
        num_steps: dict[str, int] = {}

        class Monitor(base):  # type: ignore[misc, valid-type]
            def __init__(self) -> None:
                base.__init__(self)

            def phase_start(self, phase_name: str, parent_phase: Optional[str], steps: int) -> None:
                num_steps[phase_name] = steps
                callback(phase_name, 0, steps)

            def step_complete(self, phase_name: str, step: int) -> bool:
                callback(phase_name, step + 1, num_steps.get(phase_name, 0))
                return True

            def phase_finish(self, phase_name: str) -> None:
                num_steps.pop(phase_name, None)

        config.progress_monitor = Monitor()
        return config.progress_monitor

    def set_timing_cache(self, config: Any, data: bytes) -> bool:
        """Give the builder a timing cache, empty or stored; return whether the stored one was taken.

        RTX has none: it chooses kernels where the engine runs.
        """
        if self.is_rtx:
            return False
        cache = config.create_timing_cache(data)
        if cache is not None and config.set_timing_cache(cache, False):
            return True
        config.set_timing_cache(config.create_timing_cache(b""), False)
        return False

    def timing_cache(self, config: Any) -> bytes:
        """Return the builder's timing cache as it is after the build; empty if it has none."""
        cache = None if self.is_rtx else config.get_timing_cache()
        return b"" if cache is None else bytes(memoryview(cache.serialize()))

    def set_detailed_names(self, config: Any) -> None:
        """Keep the layers' names and types in the engine, for the inspector."""
        config.profiling_verbosity = self.trt.ProfilingVerbosity.DETAILED

    def keep_float32(self, layer: Any) -> bool:
        """Have a layer compute in FP32 and store its float outputs so; return whether it has any.

        Only where the network is weakly typed.
        """
        trt = self.trt
        if layer.type in (trt.LayerType.CONSTANT, trt.LayerType.SHAPE):
            return False
        floats = (trt.float32, trt.float16)
        outputs = [i for i in range(layer.num_outputs) if layer.get_output(i).dtype in floats]
        if not outputs:
            # Comparisons and NMS. What they read is FP32 since the layers before them store it so; told to compute in
            # FP32 themselves, TensorRT 8.5 finds no format for those with integer outputs.
            return False
        inputs = [layer.get_input(i) for i in range(layer.num_inputs)]
        if inputs and not any(tensor is not None and tensor.dtype in floats for tensor in inputs):
            # A cast of integers, whose type the network has fixed. Told to compute in FP32, TensorRT 8.5 finds no
            # format for it where INT8 is allowed as well.
            return False
        if len(outputs) < layer.num_outputs and "PLUGIN" in str(layer.type):
            # The same of a plugin with outputs of both kinds, whose formats say what it takes.
            return False
        layer.precision = trt.float32
        for index in outputs:
            layer.set_output_type(index, trt.float32)
        return True

    def is_constant(self, layer: Any) -> bool:
        """Return whether the layer is a constant."""
        return layer.type == self.trt.LayerType.CONSTANT

    def store_float32(self, layer: Any) -> None:
        """Have a layer's outputs stored in FP32 where they are floats. Only where the network is weakly typed."""
        floats = (self.trt.float32, self.trt.float16)
        for index in range(layer.num_outputs):
            if layer.get_output(index).dtype in floats:
                layer.set_output_type(index, self.trt.float32)

    # --- plugins ---

    def plugin_names(self) -> set[str]:
        """Return the names of all registered plugin creators."""
        return {creator.name for creator in self._plugin_creators()}

    def plugin_attributes(self, names: Collection[str]) -> dict[str, frozenset[str]]:
        """Return the attributes of the plugin creators of these names; of several, those that all of them have."""
        found: dict[str, frozenset[str]] = {}
        for creator in self._plugin_creators():
            if creator.name in names:
                own = frozenset(field.name for field in creator.field_names)
                found[creator.name] = found.get(creator.name, own) & own
        return found

    def _plugin_creators(self) -> Any:
        registry = self.trt.get_plugin_registry()
        creators = (
            registry.all_creators if hasattr(registry, "all_creators") else registry.plugin_creator_list
        )
        return creators or ()

    # --- engines ---

    def dtype_name(self, dtype: Any) -> str:
        """Return NumPy's name of a TensorRT type (``trt.nptype`` breaks with NumPy 1.24 on TensorRT 8)."""
        name = str(dtype).rsplit(".", 1)[-1]
        if name not in _DTYPE_NAMES:
            raise ValueError(f"tensor: expected one of {', '.join(_DTYPE_NAMES.values())}, found {dtype}")
        return _DTYPE_NAMES[name]

    def tensor_names(self, engine: Any) -> tuple[list[str], list[str]]:
        """Return the names of inputs and outputs (of one profile)."""
        if hasattr(engine, "num_io_tensors"):
            names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
            is_input = [engine.get_tensor_mode(n) == self.trt.TensorIOMode.INPUT for n in names]
        else:
            # With several profiles, the bindings are there once for each.
            num = engine.num_bindings // self.num_profiles(engine)
            names = [engine.get_binding_name(i) for i in range(num)]
            is_input = [engine.binding_is_input(i) for i in range(num)]
        return (
            [name for name, flag in zip(names, is_input) if flag],
            [name for name, flag in zip(names, is_input) if not flag],
        )

    def tensor_dtype(self, engine: Any, name: str) -> str:
        """Return the NumPy name of an input's or output's type."""
        by_name = hasattr(engine, "get_tensor_dtype")
        dtype = engine.get_tensor_dtype(name) if by_name else engine.get_binding_dtype(name)
        return self.dtype_name(dtype)

    def tensor_shape(self, engine: Any, name: str) -> tuple[Optional[int], ...]:
        """Return an input's or output's shape, None for a free dimension."""
        by_name = hasattr(engine, "get_tensor_shape")
        shape = engine.get_tensor_shape(name) if by_name else engine.get_binding_shape(name)
        return tuple(None if v < 0 else int(v) for v in shape)

    def profile_shapes(self, engine: Any, name: str, profile: int = 0) -> Shapes:
        """Return an input's least, best and largest shape."""
        fixed = self.tensor_shape(engine, name)
        if None not in fixed:
            return fixed, fixed, fixed
        if hasattr(engine, "get_tensor_profile_shape"):
            shapes = engine.get_tensor_profile_shape(name, profile)
        else:
            shapes = engine.get_profile_shape(profile, name)
        low, best, high = (tuple(int(v) for v in shape) for shape in shapes)
        return low, best, high

    def num_profiles(self, engine: Any) -> int:
        """Return how many profiles the engine has."""
        return max(1, int(engine.num_optimization_profiles))

    def new_context(self, engine: Any, *, has_memory: bool) -> Any:
        """Return an execution context, None where memory is too little; without memory, it gets the caller's."""
        if has_memory:
            return engine.create_execution_context()
        if self.release < (10,):
            return engine.create_execution_context_without_device_memory()
        return engine.create_execution_context(self.trt.ExecutionContextAllocationStrategy.USER_MANAGED)

    def context_memory_size(self, engine: Any) -> int:
        """Return the bytes on the device that a context of any of the profiles needs."""
        size = getattr(engine, "device_memory_size_v2", None)
        return int(engine.device_memory_size if size is None else size)

    def set_context_memory(self, context: Any, address: int, num_bytes: int) -> None:
        """Have a context compute in the caller's memory on the device."""
        if hasattr(context, "set_device_memory"):
            context.set_device_memory(address, num_bytes)
        else:
            context.device_memory = address

    def select_profile(self, context: Any, profile: int, stream: int) -> None:
        """Have a context use a profile.

        Raises:
            RuntimeError: it cannot.
        """
        if not context.set_optimization_profile_async(profile, stream):
            raise RuntimeError(
                f"{self.name}: expected a context of profile {profile}, found that it is refused"
            )

    def _first_binding(self, context: Any) -> int:
        """Return the index of the first binding of the context's profile."""
        engine = context.engine
        return int(context.active_optimization_profile) * (engine.num_bindings // self.num_profiles(engine))

    def set_input_shape(self, context: Any, name: str, shape: tuple[int, ...]) -> bool:
        """Tell the context the shape of an input; False if the profile does not have it."""
        if hasattr(context, "set_input_shape"):
            return bool(context.set_input_shape(name, shape))
        index = self._first_binding(context) + context.engine.get_binding_index(name)
        return bool(context.set_binding_shape(index, shape))

    def output_shape(self, context: Any, name: str) -> tuple[int, ...]:
        """Return an output's shape for the inputs' shapes as they are set."""
        if hasattr(context, "get_tensor_shape"):
            return tuple(int(v) for v in context.get_tensor_shape(name))
        index = self._first_binding(context) + context.engine.get_binding_index(name)
        return tuple(int(v) for v in context.get_binding_shape(index))

    def set_profiler(self, context: Any, report: Callable[[str, float], None]) -> Any:
        """Have the context call ``report(layer, ms)`` for every layer it runs; return what to keep alive."""
        base = self.trt.IProfiler

        class Profiler(base):  # type: ignore[misc, valid-type]
            def __init__(self) -> None:
                base.__init__(self)

            def report_layer_time(self, layer_name: str, ms: float) -> None:
                report(layer_name, ms)

        context.profiler = Profiler()
        return context.profiler

    def enqueue(self, context: Any, addresses: dict[str, int], stream: int) -> bool:
        """Start the network on a stream; ``addresses`` are device pointers by tensor name."""
        if hasattr(context, "execute_async_v3"):
            for name, address in addresses.items():
                context.set_tensor_address(name, address)
            return bool(context.execute_async_v3(stream))
        engine = context.engine
        # Those of other profiles stay empty.
        bindings = [0] * engine.num_bindings
        for name, address in addresses.items():
            bindings[self._first_binding(context) + engine.get_binding_index(name)] = address
        return bool(context.execute_async_v2(bindings, stream))


def named_release(version: str) -> TensorRT:
    """Return a release by its number, for files that another machine builds: it need not be installed.

    Raises:
        ValueError: no number of a release, or one older than 8.4.
    """
    module = ModuleType(MODULES[0])
    module.__version__ = version  # type: ignore[attr-defined]
    if not re.fullmatch(r"\d{1,3}(\.\d{1,4}){1,3}", version) or TensorRT(module).release < (8, 4):
        raise ValueError(
            f"TensorRT: expected a release such as 8.5.3 or 10.3, 8.4 or later, found {version!r}"
        )
    return TensorRT(module)


def load_tensorrt(module: Optional[str] = None) -> TensorRT:
    """Import TensorRT.

    Args:
        module: one of ``MODULES``; None takes ``tensorrt``.

    Raises:
        RuntimeError: it is not installed, its libraries do not load, or it is older than 8.4.
    """
    name = module or MODULES[0]
    try:
        found = TensorRT(importlib.import_module(name))
    except (ImportError, OSError, FileNotFoundError) as error:
        raise RuntimeError(
            f"TensorRT: expected the Python package {name}, found none that loads ({error}); "
            "`pip install tensorrt` (8.4 or later), or run the .onnx with `--backend onnxruntime`"
        ) from error
    if found.release < (8, 4):
        raise RuntimeError(f"TensorRT: expected 8.4 or later, found {found.version}; upgrade it")
    return found
