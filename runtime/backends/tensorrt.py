"""TensorRT: an engine, or an ONNX whose engine is built on first use and kept beside it."""

import importlib.util
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, Optional, Union

import numpy as np

from runtime.contract import (
    Tensor,
    check_contract,
    check_dtypes,
    check_model_file,
    check_run_inputs,
    contract_inputs,
    contract_outputs,
)
from runtime.cuda.binding import Cuda, open_cuda
from runtime.device.kernels import ImageKernels, MaskCast
from runtime.device.runner import DeviceRunner
from runtime.device.streams import StreamsRunner
from runtime.engine.builder import build_engine
from runtime.engine.config import EngineConfig
from runtime.engine.files import (
    EngineRequest,
    Machine,
    ReadyEngine,
    checked_engine,
    default_precision,
    engine_path,
    ready_engine,
    resolve,
)
from runtime.engine.library import Library, open_library
from runtime.engine.plugins import find_plugins, load_plugins
from runtime.engine.profiles import with_default_sizes
from runtime.engine.progress import Monitor
from runtime.engine.session import EngineSession, EngineTensor
from runtime.engine.sidecar import Sidecar
from runtime.files import sha256_of
from runtime.graphs.load import load_onnx, metadata_of
from runtime.host.preprocess import device_plan
from runtime.host.runner import HostRunner
from runtime.precision.choice import chosen_plan
from runtime.precision.plan import plan_sha256
from runtime.ranges import MAX_STREAMS, checked_count
from runtime.runner import Feeds, LayerRunner, LayerRunnerFactory, Runner, add_timings

if TYPE_CHECKING:
    import onnx

NAME = "tensorrt"
SUFFIXES = (".onnx", ".engine", ".plan", ".trt")


@dataclass(frozen=True)
class TensorRTOptions:
    """How an engine is found, built and run.

    Attributes:
        device_index: of the GPU.
        plugins: path of the plugin library; None looks where it is built.
        batch: most images at once that the engine has to take; more are split. Used for a model given as ONNX.
        config: what an engine built from an ONNX has to be; None takes any good one that is there.
        rebuild: ``auto``, ``never`` or ``always``; see ``ensure_engine``.
        cuda_graphs: see ``EngineSession``.
        streams: batches that the GPU computes at once, each with memory of its own; see ``StreamsRunner``.
        monitor, notify: see ``ensure_engine``.
    """

    device_index: int = 0
    plugins: Optional[Union[str, Path]] = None
    batch: Optional[int] = None
    config: Optional[EngineConfig] = None
    rebuild: str = "auto"
    cuda_graphs: bool = True
    streams: Optional[int] = None
    monitor: Optional[Monitor] = None
    notify: Optional[Callable[[str], None]] = None


class TensorRTBackend:
    """An engine with its buffers on one GPU; fulfils ``runtime.runner.Backend``.

    Calls from several threads are safe and run one after the other. Several backends in one process, of one engine or
    of different ones, run side by side.
    """

    name = NAME

    def __init__(self, model: Union[str, Path], **options: Any) -> None:
        """Open an engine; build it first if the model is an ONNX without a good one.

        Args:
            model: an .engine with its sidecar, or an .onnx: its engine is the file beside it.
            options: see ``TensorRTOptions``.

        Raises:
            FileNotFoundError: no such file.
            ValueError: not a model of ours; or a stale engine that may not be rebuilt, by field.
            RuntimeError: no TensorRT, no CUDA, no GPU, or the build failed.
        """
        path = check_model_file(model)
        self.options = TensorRTOptions(**options)
        self._num_streams = checked_count(
            "streams", 1 if self.options.streams is None else self.options.streams, MAX_STREAMS
        )
        self._device_failure = ""
        library = open_library()
        cuda = open_cuda(self.options.device_index)
        self._plugins = load_plugins(self.options.plugins, library.tensorrt)
        found = _engine_of(path, Machine(library, cuda, self._plugins), self.options)
        self.engine, self.sidecar = found.path, found.sidecar
        self.metadata = _metadata(self.engine, self.sidecar)
        self._session = self._opened(found.data, library, cuda)
        try:
            self._check_contract()
        except ValueError:
            self._session.close()
            raise
        # Of the other streams, opened where there is work for them.
        self._more: list[EngineSession] = []
        self._data = found.data if self._num_streams > 1 else b""
        self._batches = [shape[0] for shape in self._session.inputs["images"].profile]

    def _opened(self, data: bytes, library: Library, cuda: Cuda) -> EngineSession:
        return EngineSession(
            data, library=library, cuda=cuda, cuda_graphs=self.options.cuda_graphs, casts=self._casts()
        )

    def _casts(self) -> dict[str, MaskCast]:
        """Return what makes uint8 of outputs that TensorRT 8 has in float32; nothing without the library's function."""
        try:
            cast = MaskCast(self._plugins.handle if self._plugins else None)
        except RuntimeError:
            return {}
        return {n: cast for n, tensor in contract_outputs(self.metadata).items() if tensor.dtype == "uint8"}

    def _check_contract(self) -> None:
        expected = contract_outputs(self.metadata)
        # Masks may have another type inside: TensorRT 8 has no uint8.
        outputs = {
            name: Tensor(expected[name].dtype if name in expected else tensor.dtype, tensor.shape)
            for name, tensor in self._session.outputs.items()
        }
        inputs = {n: Tensor(t.dtype, (None, *t.shape[1:])) for n, t in self._session.inputs.items()}
        check_contract(self.engine, "input", contract_inputs(self.metadata), inputs)
        outputs = {n: Tensor(t.dtype, (None, *t.shape[1:])) for n, t in outputs.items()}
        check_contract(self.engine, "output", expected, outputs)

    def run(
        self, images: np.ndarray, image_sizes: np.ndarray, timings: Optional[dict[str, float]] = None
    ) -> dict[str, np.ndarray]:
        """Run one batch; see ``Backend.run``. A batch larger than the profile is split, a smaller one is filled up.

        Args:
            images, image_sizes: see ``Backend.run``.
            timings: if given, ``copy_in``, ``engine`` and ``copy_out`` in ms are added to it.

        Raises:
            ValueError: arrays of another rank, dtype or size, or a size outside the profile, which is named.
            RuntimeError: the backend is closed, or the device failed.
        """
        check_run_inputs(self.metadata, images, image_sizes)
        least, _, most = self._batches
        parts = [
            self._run_part(images[start : start + most], image_sizes[start : start + most], least, timings)
            for start in range(0, len(images), most)
        ]
        if len(parts) == 1:
            return parts[0]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def _run_part(
        self, images: np.ndarray, image_sizes: np.ndarray, least: int, timings: Optional[dict[str, float]]
    ) -> dict[str, np.ndarray]:
        num_images = len(images)
        if num_images < least:
            fill = [(0, least - num_images)]
            images = np.pad(images, fill + [(0, 0)] * 3, mode="edge")
            image_sizes = np.pad(image_sizes, fill + [(0, 0)], mode="edge")
        spent: dict[str, float] = {}
        outputs = self._session.run({"images": images, "image_sizes": image_sizes}, spent)
        add_timings(timings, spent)
        expected = contract_outputs(self.metadata)
        return {
            name: array[:num_images].astype(expected[name].dtype, copy=False)
            for name, array in outputs.items()
        }

    def new_runner(self, *, host: bool = False) -> Runner:
        """Return a ``DeviceRunner``, or where that cannot be, or is not asked for, a ``HostRunner`` that says why.

        Of several streams it is a ``StreamsRunner``; the host has one batch at a time computed.
        """
        plan = "the host path was asked for" if host else device_plan(self.metadata)
        try:
            if isinstance(plan, str):
                raise RuntimeError(plan)
            kernels = self._image_kernels()
        except RuntimeError as error:
            self._device_failure = str(error)
            return HostRunner(self, str(error))
        library, cuda = open_library(), self._session.cuda
        while len(self._more) < self._num_streams - 1:
            self._more.append(self._opened(self._data, library, cuda))
        runners = [
            DeviceRunner(session, kernels, self.metadata, plan) for session in (self._session, *self._more)
        ]
        return StreamsRunner(runners) if len(runners) > 1 else runners[0]

    @property
    def notes(self) -> list[str]:
        """Why images are not prepared on the device, and why the engine is not launched as a CUDA graph."""
        notes = []
        if self._device_failure:
            notes.append(f"images prepared and masks pasted on the CPU: {self._device_failure}")
            if self._num_streams > 1:
                notes.append(
                    "one batch at a time, as images are prepared on the CPU: streams are of the GPU's path"
                )
        if self.cuda_graph_failure:
            notes.append(f"engine launched without a CUDA graph: {self.cuda_graph_failure}")
        return notes

    def _image_kernels(self) -> ImageKernels:
        if self.metadata.masks in ("full", "grid"):
            raise RuntimeError(
                f"masks: expected crop or none, found {self.metadata.masks}: masks of the "
                "network's size are only copied"
            )
        if self._plugins is None:
            raise RuntimeError("plugin library: expected the functions of images, found no library")
        for name, tensor in contract_outputs(self.metadata).items():
            found = self._session.outputs[name].dtype
            if found != tensor.dtype:
                raise RuntimeError(f"output {name}: expected {tensor.dtype} on the device, found {found}")
        return ImageKernels(self._plugins.handle)

    @property
    def cuda_graph_failure(self) -> str:
        """See ``EngineSession.cuda_graph_failure``; of the first stream that has one."""
        failures = (session.cuda_graph_failure for session in (self._session, *self._more))
        return next(filter(None, failures), "")

    def close(self) -> None:
        """Release the engine and its memory on the GPU."""
        with ExitStack() as stack:
            for session in (self._session, *self._more):
                stack.callback(session.close)


class TensorRTTensors:
    """An engine of any inputs and outputs; fulfils ``runtime.runner.TensorModel``."""

    def __init__(self, model: Union[str, Path], **options: Any) -> None:
        """Open an engine; build it first if the model is an ONNX without a good one. See ``TensorRTBackend``."""
        path = check_model_file(model)
        chosen = TensorRTOptions(**options)
        library, cuda = open_library(), open_cuda(chosen.device_index)
        plugins = load_plugins(chosen.plugins, library.tensorrt)
        found = _engine_of(path, Machine(library, cuda, plugins), chosen)
        declared = found.sidecar.tensors or {"inputs": {}, "outputs": {}}
        inputs, outputs = (
            {name: Tensor(dtype, ()) for name, dtype in declared[kind].items()}
            for kind in ("inputs", "outputs")
        )
        check_dtypes(path, inputs, outputs)
        self._session = EngineSession(found.data, library=library, cuda=cuda, cuda_graphs=chosen.cuda_graphs)
        self.inputs = _declared(self._session.inputs, declared["inputs"])
        self.outputs = _declared(self._session.outputs, declared["outputs"])

    def run(self, feeds: Feeds) -> dict[str, np.ndarray]:
        """See ``TensorModel.run``."""
        arrays = {
            name: _converted(name, array, self._session.inputs[name].dtype) for name, array in feeds.items()
        }
        found = self._session.run(arrays)
        return {name: found[name].astype(tensor.dtype, copy=False) for name, tensor in self.outputs.items()}

    def close(self) -> None:
        """Release the engine and its memory on the GPU."""
        self._session.close()


def _declared(tensors: Mapping[str, EngineTensor], dtypes: Mapping[str, str]) -> dict[str, Tensor]:
    """Return what the engine has in the order of the ONNX, with its dtypes; TensorRT 8 has int32 for int64."""
    names = dtypes if set(dtypes) == set(tensors) else tensors
    return {name: Tensor(dtypes.get(name, tensors[name].dtype), tensors[name].shape) for name in names}


def _converted(name: str, array: np.ndarray, dtype: str) -> np.ndarray:
    """Return a feed as the engine takes it."""
    converted = array.astype(dtype, copy=False)
    if array.dtype.kind in "iu" and not np.array_equal(converted, array):
        raise ValueError(
            f"input {name}: expected whole numbers that {dtype} holds, which this engine has in the place of "
            f"{array.dtype}, found {int(array.min())} to {int(array.max())}; run the ONNX with `--backend onnxruntime`"
        )
    return converted


def _metadata(engine: Path, sidecar: Sidecar) -> Any:
    if sidecar.metadata is None:
        raise ValueError(
            f"engine {engine}: expected one of a model of ours, found one of an ONNX without our metadata; run it with "
            "runtime.engine.session.EngineSession, or export with `python -m export.maskrcnn`"
        )
    return sidecar.metadata


def _engine_of(path: Path, machine: Machine, options: TensorRTOptions) -> ReadyEngine:
    if path.suffix.lower() != ".onnx":
        return checked_engine(path, machine)
    request = EngineRequest(path, engine_path(path), options.config, batch=options.batch)
    notify = options.notify or _silent
    return ready_engine(resolve(request), machine, options.rebuild, monitor=options.monitor, notify=notify)


def _silent(text: str) -> None:
    pass


def layer_runner(config: Any, *, plan: Any = None) -> LayerRunnerFactory:
    """Return what builds engines of models and runs them; builds share a timing cache.

    Args:
        config: an ``EngineConfig``.
        plan: a ``PrecisionPlan``, or None.

    Raises:
        RuntimeError, ValueError, from the factory and its runners: TensorRT or a GPU is missing, or TensorRT cannot
            build or run the model.
    """
    timing_cache = b""

    def make(model: "onnx.ModelProto") -> LayerRunner:
        nonlocal timing_cache
        library = open_library()
        plugins = load_plugins(None, library.tensorrt)
        built = build_engine(
            model, config, plan=plan, plugins=plugins, timing_cache=timing_cache, library=library
        )
        timing_cache = built.timing_cache
        return _EngineRunner(built.data)

    return make


class _EngineRunner:
    """An engine in memory, for one run."""

    def __init__(self, data: bytes) -> None:
        self._session = EngineSession(data)

    def __call__(self, feeds: Feeds) -> Mapping[str, np.ndarray]:
        # TensorRT 8 has int32 in the place of int64.
        kinds = {name: tensor.dtype for name, tensor in self._session.inputs.items()}
        return self._session.run({name: feeds[name].astype(kind, copy=False) for name, kind in kinds.items()})

    def close(self) -> None:
        self._session.close()


def is_usable(device: Optional[str]) -> bool:
    """Return whether TensorRT, ``onnx`` (to build with), the plugin library and a CUDA device are there.

    A ``device`` that is named means onnxruntime's.
    """
    if device is not None or any(importlib.util.find_spec(name) is None for name in ("tensorrt", "onnx")):
        return False
    try:
        open_library()
        open_cuda()
        return find_plugins() is not None
    except (RuntimeError, FileNotFoundError):
        return False


def ignores(option: str, value: Any) -> bool:
    """Return whether another backend's option asks nothing of this one: it is on the GPU anyway."""
    return option == "device" and value == "cuda"


def layers(
    path: Path, other: Path, batch: int, **options: Any
) -> tuple["onnx.ModelProto", LayerRunnerFactory]:
    """Return the ONNX, and what builds and runs engines of it; see ``BackendModule.layers``."""
    del options
    return (
        _layers_from_onnx(path, batch) if path.suffix.lower() == ".onnx" else _layers_from_engine(path, other)
    )


def _layers_from_onnx(path: Path, batch: int) -> tuple["onnx.ModelProto", LayerRunnerFactory]:
    """Engines as ``Detector(path, backend="tensorrt")`` would build them."""
    model = load_onnx(path)
    metadata = metadata_of(model, path)
    config = EngineConfig(batch=(1, batch, batch), precision=default_precision(model))
    if metadata is not None:
        config = with_default_sizes(config, metadata)
    return model, _engine_runner(path, model, config)


def _layers_from_engine(path: Path, other: Path) -> tuple["onnx.ModelProto", LayerRunnerFactory]:
    """Engines as the one in the file was built, so that they differ from it by the marked outputs alone."""
    sidecar = Sidecar.load(path)
    beside = path.parent / sidecar.onnx
    candidates = [p for p in (beside, other) if p.suffix.lower() == ".onnx" and p.is_file()]
    matching = [p for p in candidates if sha256_of(p) == sidecar.provenance.onnx_sha256]
    if not matching:
        listed = ", ".join(map(str, candidates)) or "no ONNX"
        raise ValueError(
            f"engine {path}: expected the ONNX that it was built from (SHA-256 "
            f"{sidecar.provenance.onnx_sha256[:12]}) as {beside} or as the other model, found {listed}; "
            "name that ONNX, or build the engine again"
        )
    model = load_onnx(matching[0])
    return model, _engine_runner(matching[0], model, sidecar.config, sidecar)


def _engine_runner(onnx: Path, model: Any, config: Any, sidecar: Any = None) -> LayerRunnerFactory:
    with_plan = config.follows_plan and (sidecar is None or sidecar.plan_sha256 is not None)
    plan = chosen_plan(onnx, model) if with_plan else None
    found = plan_sha256(plan)
    if sidecar is not None and found != sidecar.plan_sha256:
        raise ValueError(
            f"precision plan: expected the one that the engine was built with (SHA-256 {sidecar.plan_sha256[:12]}), "
            f"found {found[:12]} beside {onnx}; put that plan beside the ONNX, or build the engine again"
        )
    return layer_runner(config, plan=plan)


Options, open_model, open_tensors = TensorRTOptions, TensorRTBackend, TensorRTTensors
