"""OpenVINO: the faster one on a CPU. It gets the ONNX with its functions inlined, on others it crashes; or its own IR.

Of a model of any size OpenVINO fuses less than of one whose height and width it knows, so that the sizes that come
often get a network of their own.
"""

import errno
import importlib.util
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, Optional, Union

import numpy as np

from runtime.backends.openvino_quantized import separate_quantizers
from runtime.contract import (
    EXPORT_COMMAND,
    Tensor,
    check_contract,
    check_dtypes,
    check_model_file,
    check_run_inputs,
    contract_inputs,
    contract_outputs,
    failed_on,
    images_shape,
    images_size,
    model_metadata,
    not_a_tensor,
)
from runtime.files import working_folder
from runtime.forks import LibraryCalls
from runtime.graphs.attributes import check_attributes
from runtime.graphs.divisors import check_divisors
from runtime.graphs.inlining import inlined
from runtime.graphs.load import (
    LARGE_BYTES,
    graph_errors,
    graph_inputs,
    graph_outputs,
    load_onnx,
    save_model,
)
from runtime.graphs.session import one_line
from runtime.graphs.view import sort_nodes
from runtime.host.runner import HostRunner
from runtime.loaded import ProcessModel
from runtime.messages import said
from runtime.metadata import KEY
from runtime.quantization import KEY as QUANTIZATION_KEY
from runtime.quantization import is_quantized
from runtime.ranges import CPU_PRECISIONS, MAX_THREADS, checked_count
from runtime.runner import Feeds, LayerRunner, LayerRunnerFactory, Runner

if TYPE_CHECKING:
    import onnx
    import openvino

NAME = "openvino"
SUFFIXES = (".onnx", ".xml")
IR = ".xml"

# Of the metadata, in the rt_info of an IR.
_KEYS = (KEY, QUANTIZATION_KEY)
# Of Linux's /proc/cpuinfo; OpenVINO emulates bfloat16, slowly, where there is AVX-512 without them.
_BF16_FLAGS = ("amx_bf16", "avx512_bf16", "avx_ne_convert")
_INT8_FLAGS = ("avx512_vnni", "avx_vnni", "amx_int8")
_CPUINFO = Path("/proc/cpuinfo")
# What a size's own network saves of a batch's time; it is compiled when it would have saved what compiling takes.
_SAVED_SHARE = 0.15
# Of an operator set: OpenVINO counts from the file's down to one that it knows, a second for a million.
_MOST_VERSION = 10_000
# Sizes of which it is known how long their batches took.
_MAX_TIMED = 256


@dataclass(frozen=True)
class OpenVINOOptions:
    """How OpenVINO runs a model.

    Attributes:
        threads: in all; None lets OpenVINO choose (all physical cores).
        precision: of floats, ``fp32`` or ``bf16``; what the file has in INT8 runs in INT8 either way.
        streams: batches that run at once; the threads are divided among them.
        cache: folder in which OpenVINO keeps compiled models; None keeps none.
        sizes: of a model of any size, how many sizes that come often get a network of their own, each of which takes
            the weights' memory; 0 for none.
    """

    threads: Optional[int] = None
    precision: str = "fp32"
    streams: int = 1
    cache: Optional[Union[str, Path]] = None
    sizes: int = 4


class OpenVINOBackend:
    """An ONNX, or an IR, in OpenVINO; fulfils ``runtime.runner.Backend``."""

    name = NAME

    def __init__(self, model: Union[str, Path], **options: Any) -> None:
        """Open the model and check it against the contract.

        Args:
            model: path of the .onnx.
            options: see ``OpenVINOOptions``.

        Raises:
            FileNotFoundError: no such file.
            ValueError: not an ONNX, not a model of ours, or an unusable argument.
            RuntimeError: OpenVINO or ``onnx`` is not installed, or the processor has not got the precision.
        """
        path = check_model_file(model)
        self.options = _checked_options(OpenVINOOptions(**options))
        opened = path.absolute()
        with _calls():
            self._model = ProcessModel(path, lambda: _Model(opened, self.options))
            loaded = self._model.here()
        self.metadata, self._is_quantized = loaded.metadata, loaded.is_quantized

    def run(self, images: np.ndarray, image_sizes: np.ndarray) -> dict[str, np.ndarray]:
        """Run one batch; see ``Backend.run``.

        Raises:
            ValueError: arrays of another rank, dtype or size.
            RuntimeError: the backend is closed, or OpenVINO failed (out of memory, for example), or this process was
                forked off the one that loaded the model, and the model cannot be loaded again.
        """
        with _calls():
            return self._run(images, image_sizes)

    def _run(self, images: np.ndarray, image_sizes: np.ndarray) -> dict[str, np.ndarray]:
        model = self._model.here()
        check_run_inputs(self.metadata, images, image_sizes)
        try:
            return model.run({"images": images, "image_sizes": image_sizes})
        except (RuntimeError, MemoryError) as error:
            raise RuntimeError(
                f"OpenVINO {_version()} failed on images of shape {images.shape}: {one_line(error)}; if memory ran "
                "out, use a smaller batch"
            ) from error

    def new_runner(self, *, host: bool = True) -> Runner:
        """Return a ``HostRunner``, asked for or not, that runs as many batches at once as there are streams."""
        del host
        return HostRunner(self, "OpenVINO takes arrays from the host", parallel=self.options.streams)

    @property
    def notes(self) -> list[str]:
        """That INT8 is slower and less accurate here than elsewhere."""
        flags = _processor_flags()
        if not self._is_quantized or not flags or not flags.isdisjoint(_INT8_FLAGS):
            return []
        return [
            "INT8 on a processor without VNNI: sums of two products saturate at 16 bits, so that results are worse "
            "than elsewhere; quantize with weights of 7 bits, or use the file before quantization"
        ]

    def close(self) -> None:
        """Release the model and its memory."""
        with _CALLS.under_way():
            self._model.close()


class _Model:
    """A model that is loaded: the network of any size, and of a model of any size those of its frequent sizes."""

    def __init__(self, path: Path, options: OpenVINOOptions) -> None:
        self._core, self._config = _core(options), _config(options)
        file = _opened(self._core, path)
        self.metadata = model_metadata(path, file.properties)
        check_contract(path, "input", contract_inputs(self.metadata), file.inputs)
        check_contract(path, "output", contract_outputs(self.metadata), file.outputs)
        self._names = list(file.outputs)
        self.is_quantized = file.is_quantized
        with _load_errors(path, f"export it again with `{EXPORT_COMMAND}`, or use a newer OpenVINO"):
            self._source = file.model()
            start = time.perf_counter()
            self._any = self._compiled(self._source)
            self._compile_seconds = time.perf_counter() - start
        self._num_own = 0 if self.metadata.size else options.sizes
        if not self._num_own:
            self._source = None
        self._own: OrderedDict[tuple[int, ...], _Network] = OrderedDict()
        self._seconds: OrderedDict[tuple[int, ...], float] = OrderedDict()
        self._lock = threading.Lock()

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run one batch; see ``_Network.run``."""
        if not self._num_own:
            return self._any.run(feeds)
        size = images_size(self.metadata, feeds["images"].shape)
        network = self._own_network(size)
        if network is not None:
            return network.run(feeds)
        start = time.perf_counter()
        outputs = self._any.run(feeds)
        self._count(size, time.perf_counter() - start)
        return outputs

    def _own_network(self, size: tuple[int, int]) -> "Optional[_Network]":
        with self._lock:
            if size in self._own:
                self._own.move_to_end(size)
            elif self._seconds.get(size, 0) * _SAVED_SHARE >= self._compile_seconds:
                del self._seconds[size]
                while len(self._own) >= self._num_own:
                    self._own.popitem(last=False)
                self._own[size] = self._compiled(self._at_size(size))
            return self._own.get(size)

    def _count(self, size: tuple[int, ...], seconds: float) -> None:
        with self._lock:
            self._seconds[size] = self._seconds.pop(size, 0) + seconds
            if len(self._seconds) > _MAX_TIMED:
                self._seconds.popitem(last=False)

    def _at_size(self, size: tuple[int, int]) -> "openvino.Model":
        model = self._source.clone()
        model.reshape({"images": list(images_shape(self.metadata, size, -1))})
        return model

    def _compiled(self, model: "openvino.Model") -> "_Network":
        return _Network(self._core.compile_model(model, "CPU", self._config), self._names)


@dataclass(frozen=True)
class _File:
    """What a file says; its model is read when it is asked for.

    Attributes:
        properties: its metadata.
        inputs, outputs: by name, in the file's order.
        is_quantized: it has layers in INT8.
        model: returns OpenVINO's model.
    """

    properties: dict[str, str]
    inputs: dict[str, Tensor]
    outputs: dict[str, Tensor]
    is_quantized: bool
    model: Callable[[], "openvino.Model"]


def _opened(core: "openvino.Core", path: Path) -> _File:
    if path.suffix.lower() == IR:
        return _opened_ir(core, path)
    check_attributes(path)
    check_divisors(path)
    proto = load_onnx(path)
    with graph_errors(path, proto):
        _check_are_tensors(path, proto)
        return _File(
            {p.key: p.value for p in proto.metadata_props},
            graph_inputs(proto),
            graph_outputs(proto),
            is_quantized(proto),
            lambda: _read(core, proto),
        )


def _opened_ir(core: "openvino.Core", path: Path) -> _File:
    """Read an IR; its ``.bin`` lies beside it.

    Raises:
        ValueError: OpenVINO does not take it, or a port has several names or none.
    """
    try:
        model = core.read_model(path)
        separate_quantizers(model)
        inputs, outputs = (
            {port.get_any_name(): _tensor(port) for port in ports} for ports in (model.inputs, model.outputs)
        )
    except RuntimeError as error:
        raise ValueError(
            f"model {path}: expected an IR of OpenVINO with its .bin beside it, found one that OpenVINO {_version()} "
            f"cannot read: {one_line(error)}; make it with `python -m export.convert MODEL.onnx --for openvino`"
        ) from error
    properties = {key: model.get_rt_info([key]).astype(str) for key in _KEYS if model.has_rt_info([key])}
    quantized = any(node.get_type_name() == "FakeQuantize" for node in model.get_ops())
    return _File(properties, inputs, outputs, quantized, lambda: model)


def _tensor(port: Any) -> Tensor:
    shape = port.get_partial_shape()
    return Tensor(
        str(port.get_element_type().to_dtype()),
        tuple(d.get_length() if d.is_static else None for d in shape),
    )


class _Network:
    """A compiled model with requests, one per thread that runs it at a time."""

    def __init__(self, compiled: "openvino.CompiledModel", names: Iterable[str]) -> None:
        self._compiled = compiled
        self._outputs = tuple(
            names
        )  # in the file's order: what is passed through has the names of several tensors
        self._inputs = {
            name for port in compiled.inputs for name in port.get_names()
        }  # what nobody reads is none
        self._idle: list[openvino.InferRequest] = []

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return the outputs by name, in arrays that are the caller's.

        Raises:
            RuntimeError: OpenVINO failed.
        """
        request = self._request()
        arrays = {n: np.ascontiguousarray(a) for n, a in feeds.items() if n in self._inputs}
        found = request.infer(arrays, share_inputs=True)
        outputs = {name: found[index] for index, name in enumerate(self._outputs)}
        self._idle.append(request)  # not one that failed
        return outputs

    def _request(self) -> "openvino.InferRequest":
        with suppress(IndexError):
            return self._idle.pop()
        return self._compiled.create_infer_request()


class OpenVINOTensors:
    """An ONNX of any inputs and outputs; fulfils ``runtime.runner.TensorModel``."""

    def __init__(self, model: Union[str, Path], **options: Any) -> None:
        """Open the model; see ``OpenVINOBackend``."""
        path = check_model_file(model)
        chosen = _checked_options(OpenVINOOptions(**options))
        opened = path.absolute()
        with _calls():
            self._model = ProcessModel(path, lambda: _AnyModel(opened, chosen))
            loaded = self._model.here()
        self.inputs, self.outputs = loaded.inputs, loaded.outputs

    def run(self, feeds: Feeds) -> dict[str, np.ndarray]:
        """See ``TensorModel.run``."""
        try:
            with _calls():
                found = self._model.here().network.run(feeds)
        except (RuntimeError, MemoryError) as error:
            raise failed_on(f"OpenVINO {_version()}", feeds, one_line(error)) from error
        return {name: found[name].astype(tensor.dtype, copy=False) for name, tensor in self.outputs.items()}

    def close(self) -> None:
        """Release the model and its memory."""
        with _CALLS.under_way():
            self._model.close()


class _AnyModel:
    """A model of any inputs and outputs that is loaded."""

    def __init__(self, path: Path, options: OpenVINOOptions) -> None:
        core = _core(options)
        file = _opened(core, path)
        self.inputs, self.outputs = file.inputs, file.outputs
        check_dtypes(path, self.inputs, self.outputs)
        with _load_errors(path, "use --backend onnxruntime"):
            compiled = core.compile_model(file.model(), "CPU", _config(options))
            self.network = _Network(compiled, file.outputs)


@contextmanager
def _load_errors(path: Path, remedy: str) -> Iterator[None]:
    """Say which file OpenVINO did not take, and what to do."""
    try:
        yield
    except (
        RuntimeError,
        UnicodeDecodeError,
    ) as error:  # the latter of a message with a damaged file's bytes in it
        raise ValueError(
            f"model {path}: OpenVINO {_version()} cannot load it: {one_line(error)}; {remedy}"
        ) from error


def _network(core: "openvino.Core", model: "onnx.ModelProto", options: OpenVINOOptions) -> _Network:
    compiled = core.compile_model(_read(core, model), "CPU", _config(options))
    return _Network(compiled, [output.name for output in model.graph.output])


def _check_are_tensors(path: Path, model: "onnx.ModelProto") -> None:
    for kind, values in (("input", model.graph.input), ("output", model.graph.output)):
        for value in values:
            if not value.type.HasField("tensor_type"):
                found = value.type.WhichOneof("value").replace("_type", "")
                raise not_a_tensor(path, kind, value.name, f"a {found}")


def import_openvino() -> Any:
    """Return the package openvino.

    Raises:
        RuntimeError: it is not installed.
    """
    try:
        import openvino
    except ImportError as error:
        raise RuntimeError(
            f"openvino: expected the Python package, found none ({error}); `pip install openvino`, or use "
            "--backend onnxruntime"
        ) from error
    return openvino


def _version() -> str:
    return str(import_openvino().__version__).split("-")[0]


def _checked_options(options: OpenVINOOptions) -> OpenVINOOptions:
    """Return the options with plain whole numbers.

    Raises:
        ValueError: names the option and its range.
    """
    if options.precision not in CPU_PRECISIONS:
        raise ValueError(
            f"precision: expected one of {', '.join(CPU_PRECISIONS)}, found {options.precision!r}"
        )
    threads = options.threads
    if options.cache is not None:
        _check_cache(Path(options.cache))
    return replace(
        options,
        threads=None if threads is None else checked_count("threads", threads, MAX_THREADS),
        streams=checked_count("streams", options.streams, MAX_THREADS),
        sizes=checked_count("sizes", options.sizes, _MAX_TIMED, least=0),
    )


def _check_cache(folder: Path) -> None:
    """Make the folder: OpenVINO says of one that it cannot write to what reads as if the model were at fault."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        found = "" if os.access(folder, os.W_OK | os.X_OK) else os.strerror(errno.EACCES)
    except OSError as error:
        found = error.strerror or said(error)
    if found:
        raise ValueError(
            f"cache: expected a folder that can be made and written to, found {folder}: {found}; name another, or none"
        )


def _core(options: OpenVINOOptions) -> "openvino.Core":
    core = _loaded_elsewhere()
    if options.precision == "bf16":
        _check_bf16(core)
    return core


def _loaded_elsewhere() -> "openvino.Core":
    """Return a new core whose plugin for the CPU was loaded in a thread of its own.

    The plugin gives the thread that loads it a stack for signal handlers, and puts the one before back when it goes. Of
    two that go in the order they came, the second puts back the first's, which is no more: the next signal then ends
    the process.
    """
    module = import_openvino()

    def load() -> "openvino.Core":
        core = module.Core()
        core.get_property("CPU", "FULL_DEVICE_NAME")
        return core

    with ThreadPoolExecutor(1) as thread:
        return thread.submit(load).result()


def _end_idle_threads() -> None:
    """Have OpenVINO give up the threads of networks that are no more.

    It keeps them for the next network with the same options, which waits for them without end in a forked process. With
    any plugin that goes they go too.
    """
    _loaded_elsewhere()


_CALLS = LibraryCalls("OpenVINO", _end_idle_threads)


@contextmanager
def _calls() -> Iterator[None]:
    """Call OpenVINO, in a process in which it works.

    Raises:
        RuntimeError: see ``LibraryCalls.check``.
    """
    _CALLS.check()
    with _CALLS.under_way():
        yield


def _processor_flags() -> set[str]:
    """Return what Linux says that an x86 processor has; nothing elsewhere."""
    with suppress(OSError):
        lines = _CPUINFO.read_text(errors="replace").splitlines()
        return set(next((line for line in lines if line.startswith("flags")), "").split())
    return set()


def _check_bf16(core: "openvino.Core") -> None:
    flags = _processor_flags()
    has_it = "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    if not has_it or (flags and flags.isdisjoint(_BF16_FLAGS)):
        processor = core.get_property("CPU", "FULL_DEVICE_NAME").strip()
        raise RuntimeError(
            f"precision: expected fp32 on this processor ({processor}), found bf16, for which it has no instructions "
            "(AMX-BF16 or AVX512-BF16); leave the precision out"
        )


def _config(options: OpenVINOOptions) -> dict[str, Any]:
    """Return OpenVINO's properties. Its own default is bfloat16 where the processor has it."""
    precision = {"fp32": "f32", "bf16": "bf16"}[options.precision]
    mode = {"fp32": "ACCURACY", "bf16": "PERFORMANCE"}[options.precision]
    config: dict[str, Any] = {
        "INFERENCE_PRECISION_HINT": precision,
        "EXECUTION_MODE_HINT": mode,
        "NUM_STREAMS": options.streams,
        # Of several processes with few threads each, all would be bound to the first cores.
        "ENABLE_CPU_PINNING": options.threads is None,
    }
    if options.threads is not None:
        config["INFERENCE_NUM_THREADS"] = options.threads
    if options.cache is not None:
        config["CACHE_DIR"] = str(options.cache)
    return config


def read_onnx(model: "onnx.ModelProto") -> "openvino.Model":
    """Return OpenVINO's model of an ONNX.

    Raises:
        RuntimeError: OpenVINO is not installed, or does not take it.
    """
    with _calls():
        return _read(_loaded_elsewhere(), model)


def _read(core: "openvino.Core", model: "onnx.ModelProto") -> "openvino.Model":
    """Read a model in memory; it is inlined and sorted first.

    OpenVINO does not survive a local function, and searches without end for a tensor that is made behind its reader.

    Raises:
        RuntimeError: OpenVINO does not take it.
    """
    _check_versions(model)
    try:
        model = inlined(model)
        sort_nodes(model.graph)
    except Exception as error:  # onnx's own errors have no other base
        raise RuntimeError(said(error)) from error
    found = _read_whole(core, model)
    separate_quantizers(found)
    return found


def _read_whole(core: "openvino.Core", model: "onnx.ModelProto") -> "openvino.Model":
    if sum(len(tensor.raw_data) for tensor in model.graph.initializer) < LARGE_BYTES:
        return core.read_model(model.SerializeToString())
    # Through a file: a model of 2 GB cannot be handed over as one string.
    with working_folder() as folder:
        path = folder / "model.onnx"
        save_model(model, path)
        return core.read_model(path)


def _check_versions(model: "onnx.ModelProto") -> None:
    for opset in (
        *model.opset_import,
        *(each for function in model.functions for each in function.opset_import),
    ):
        if not 0 <= opset.version <= _MOST_VERSION:
            raise RuntimeError(
                f"opset {opset.domain or 'ai.onnx'}: expected a version up to {_MOST_VERSION}, found {opset.version}"
            )


def layer_runner(threads: Optional[int] = None, precision: str = "fp32") -> LayerRunnerFactory:
    """Return what runs models with OpenVINO.

    Raises:
        RuntimeError, from the factory and its runners: OpenVINO is missing, or cannot load or run the model.
    """
    options = _checked_options(OpenVINOOptions(threads=threads, precision=precision))

    def make(model: "onnx.ModelProto") -> LayerRunner:
        with _calls():
            network, inputs = _network(_core(options), model, options), graph_inputs(model)

        def run(feeds: Feeds) -> Mapping[str, np.ndarray]:
            known = {name: array for name, array in feeds.items() if name in inputs}
            with _calls():
                return network.run({n: a.astype(inputs[n].dtype, copy=False) for n, a in known.items()})

        return run

    return make


def is_usable(device: Optional[str]) -> bool:
    """Return whether OpenVINO, and ``onnx`` to inline with, are here, and the CPU is not ruled out."""
    found = (importlib.util.find_spec(name) is not None for name in ("openvino", "onnx"))
    return device in (None, "cpu") and all(found)


def ignores(option: str, value: Any) -> bool:
    """Return whether another backend's option asks nothing of this one: it takes any batch, and is on the CPU."""
    return option == "batch" or (option == "device" and value == "cpu")


def layers(
    path: Path, other: Path, batch: int, **options: Any
) -> tuple["onnx.ModelProto", LayerRunnerFactory]:
    """Return the ONNX, and what runs it with extra outputs; see ``BackendModule.layers``."""
    del other, batch
    if path.suffix.lower() == IR:
        raise ValueError(
            f"model {path}: expected an ONNX, whose layers can be told apart, found an IR; give the .onnx that it was "
            "made of"
        )
    settings = {name: options[name] for name in ("threads", "precision") if options.get(name) is not None}
    return load_onnx(path), layer_runner(**settings)


Options, open_model, open_tensors = OpenVINOOptions, OpenVINOBackend, OpenVINOTensors
