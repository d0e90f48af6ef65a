"""onnxruntime: the backend that is always there, on the CPU or through one of its execution providers."""

import os
from collections.abc import Mapping, Sequence
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
    failed_on,
    model_metadata,
    not_a_tensor,
)
from runtime.cuda.binding import open_cuda
from runtime.cuda.memory import PinnedArrays
from runtime.forks import check_process
from runtime.graphs.bound import BoundSession
from runtime.graphs.cuda_provider import CUDA, PRECISIONS
from runtime.graphs.load import invalid_names, load_onnx
from runtime.graphs.session import (
    DEVICE_PROVIDERS,
    dtype_name,
    import_onnxruntime,
    inference_session,
    one_line,
    open_session,
    provider_names,
    run_errors,
)
from runtime.host.runner import HostRunner
from runtime.loaded import ProcessModel
from runtime.quantization import Quantization, quantization_from_properties
from runtime.runner import Feeds, LayerRunner, LayerRunnerFactory, Runner

NAME = "onnxruntime"
SUFFIXES = (".onnx",)

if TYPE_CHECKING:
    import onnx
    import onnxruntime

_ON_CPU = [DEVICE_PROVIDERS["cpu"]]
# Inputs and results of two batches under way, and of the one that a caller works on.
_MOST_PINNED = 8


@dataclass(frozen=True)
class OnnxRuntimeOptions:
    """How onnxruntime runs a model.

    Attributes:
        device: ``cpu`` or ``cuda``.
        providers: onnxruntime's provider names in order of preference, instead of ``device``.
        threads: threads inside an operator; None lets onnxruntime choose (all physical cores).
        precision: of float32 on a GPU: ``tf32`` (None), where convolutions and matrix products round their inputs to
            10 bits, or ``fp32``. A CPU computes in ``fp32``.
    """

    device: str = "cpu"
    providers: Optional[Sequence[str]] = None
    threads: Optional[int] = None
    precision: Optional[str] = None


class OnnxRuntimeBackend:
    """An ONNX model in an onnxruntime session; fulfils ``runtime.runner.Backend``.

    Attributes:
        quantization: what the file says of its quantization, None for a float one.
    """

    name = NAME

    def __init__(self, model: Union[str, Path], **options: Any) -> None:
        """Open the model and check it against the contract.

        Args:
            model: path of the .onnx.
            options: see ``OnnxRuntimeOptions``.

        Raises:
            FileNotFoundError: no such file.
            ValueError: not an ONNX, not a model of ours, or an unusable argument.
            RuntimeError: the execution provider is not available.
        """
        path = check_model_file(model)
        self.options = OnnxRuntimeOptions(**options)
        names = _checked_providers(self.options)
        self._session = _process_session(path, names, self.options)
        session = self._session.here()
        try:
            properties = session.get_modelmeta().custom_metadata_map
            self.metadata = model_metadata(path, properties)
            self.quantization = _quantization(path, properties)
            inputs, outputs = _tensors(session.get_inputs()), _tensors(session.get_outputs())
        except UnicodeDecodeError as error:
            raise invalid_names(path, error) from error
        check_contract(path, "input", contract_inputs(self.metadata), inputs)
        check_contract(path, "output", contract_outputs(self.metadata), outputs)
        self._output_names = list(outputs)
        self._memory, self._copies = _page_locked() if names[0] == CUDA else (None, "")
        new_array = np.empty if self._memory is None else self._memory.empty
        self._bound = BoundSession(session, new_array) if names[0] == CUDA else None

    def run(self, images: np.ndarray, image_sizes: np.ndarray) -> dict[str, np.ndarray]:
        """Run one batch; see ``Backend.run``.

        Raises:
            ValueError: arrays of another rank, dtype or size.
            RuntimeError: the backend is closed, or onnxruntime failed (out of memory, for example), or this process was
                forked off the one that loaded the model, and the model cannot be loaded again.
        """
        session = self._session.here()
        check_run_inputs(self.metadata, images, image_sizes)
        feeds = {"images": images, "image_sizes": image_sizes}
        bound = self._bound
        try:
            if bound is not None:
                return bound.run(feeds)
            return dict(zip(self._output_names, session.run(self._output_names, feeds)))
        except run_errors() as error:
            raise RuntimeError(
                f"onnxruntime {import_onnxruntime().__version__}: expected to run the model on images of shape "
                f"{images.shape}, found: {one_line(error)}; if memory ran out, use a smaller batch"
            ) from error

    def new_runner(self, *, host: bool = True) -> Runner:
        """Return a ``HostRunner``, asked for or not."""
        del host
        new_array = None if self._memory is None else self._memory.empty
        return HostRunner(self, "onnxruntime takes arrays from the host", new_array=new_array)

    @property
    def notes(self) -> list[str]:
        """That symmetric INT8 is no faster here than float32, or that copies to the GPU are slow."""
        if self._copies:
            return [f"copies to and from the GPU go through ordinary memory, not page-locked: {self._copies}"]
        record = self.quantization
        if record is None or record.activations != "int8" or self.options.device != "cpu":
            return []
        return [
            "INT8 for TensorRT and OpenVINO: onnxruntime computes it in float32 on a CPU; "
            "`python -m export.quantize --activations uint8` makes a file that is faster here"
        ]

    def close(self) -> None:
        """Release the session and its memory."""
        self._session.close()
        self._bound = None
        if self._memory is not None:
            self._memory.close()
            self._memory = None


def _checked_providers(options: OnnxRuntimeOptions) -> list[str]:
    """Return the execution providers that are meant.

    Raises:
        ValueError: no such device, or a precision that it has not got.
        RuntimeError: a provider is missing.
    """
    names = provider_names(options.device, options.providers)
    known = PRECISIONS if names[0] == CUDA else ("fp32",)
    if options.precision is not None and options.precision not in known:
        raise ValueError(
            f"precision: expected {' or '.join(known)} of onnxruntime on this device, found {options.precision!r}; "
            "leave it out, or name another backend"
        )
    return names


def _page_locked() -> tuple[Optional[PinnedArrays], str]:
    """Return what makes page-locked arrays, or None and why there is none."""
    try:
        return PinnedArrays(open_cuda(), _MOST_PINNED), ""
    except RuntimeError as error:
        return None, str(error)


def _process_session(
    path: Path, names: list[str], options: OnnxRuntimeOptions
) -> "ProcessModel[onnxruntime.InferenceSession]":
    # With one thread there is nothing to miss in a forked process.
    is_inherited = names == _ON_CPU and options.threads == 1
    return ProcessModel(path, _opener(path, names, options), is_inherited=is_inherited)


def _opener(
    path: Path, providers: list[str], options: OnnxRuntimeOptions
) -> "Callable[[], onnxruntime.InferenceSession]":
    """Return what opens a session; in a forked process it refuses a device that the first one has."""
    process, path = os.getpid(), path.absolute()

    def open_session() -> "onnxruntime.InferenceSession":
        if providers != _ON_CPU:
            check_process(process, providers[0])
        return inference_session(path, providers, options.threads, precision=options.precision)

    return open_session


def _quantization(path: Path, properties: Mapping[str, str]) -> Optional[Quantization]:
    try:
        return quantization_from_properties(properties)
    except ValueError as error:
        raise ValueError(f"model {path}: {error}") from error


def _tensors(arguments: Sequence["onnxruntime.NodeArg"]) -> dict[str, Tensor]:
    """Return name -> tensor; a dimension with a name, or none, is free."""
    return {
        argument.name: Tensor(
            dtype_name(argument.type),
            tuple(v if isinstance(v, int) and v >= 0 else None for v in argument.shape),
        )
        for argument in arguments
    }


class OnnxRuntimeTensors:
    """An ONNX of any inputs and outputs; fulfils ``runtime.runner.TensorModel``."""

    def __init__(self, model: Union[str, Path], **options: Any) -> None:
        """Open the model; see ``OnnxRuntimeBackend``."""
        path = check_model_file(model)
        chosen = OnnxRuntimeOptions(**options)
        self._session = _process_session(path, _checked_providers(chosen), chosen)
        session = self._session.here()
        for kind, arguments in (("input", session.get_inputs()), ("output", session.get_outputs())):
            _check_are_tensors(path, kind, arguments)
        self.inputs, self.outputs = _tensors(session.get_inputs()), _tensors(session.get_outputs())
        check_dtypes(path, self.inputs, self.outputs, strings=True)

    def run(self, feeds: Feeds) -> dict[str, np.ndarray]:
        """See ``TensorModel.run``."""
        session = self._session.here()
        try:
            return dict(zip(self.outputs, session.run(list(self.outputs), dict(feeds))))
        except run_errors() as error:
            version = import_onnxruntime().__version__
            raise failed_on(f"onnxruntime {version}", feeds, one_line(error)) from error

    def close(self) -> None:
        """Release the session and its memory."""
        self._session.close()


def _check_are_tensors(path: Path, kind: str, arguments: Sequence["onnxruntime.NodeArg"]) -> None:
    for argument in arguments:
        if not argument.type.startswith("tensor("):
            raise not_a_tensor(path, kind, argument.name, argument.type)


def layer_runner(
    device: str = "cpu", threads: Optional[int] = None, precision: Optional[str] = None
) -> LayerRunnerFactory:
    """Return what runs models with onnxruntime.

    Raises:
        RuntimeError, from the factory and its runners: onnxruntime is missing, or cannot load or run the model.
    """

    def make(model: "onnx.ModelProto") -> LayerRunner:
        with open_session(model, device=device, threads=threads, precision=precision) as session:
            return session.run

    return make


def is_usable(device: Optional[str]) -> bool:
    """Return True: it is what a box has that has nothing else."""
    del device
    return True


def ignores(option: str, value: Any) -> bool:
    """Return whether another backend's option asks nothing of this one: it takes any batch, one at once."""
    return option == "batch" or (option, value) == ("streams", 1)


def layers(
    path: Path, other: Path, batch: int, **options: Any
) -> tuple["onnx.ModelProto", LayerRunnerFactory]:
    """Return the ONNX, and what runs it with extra outputs; see ``BackendModule.layers``."""
    del other, batch
    return load_onnx(path), layer_runner(**options)


Options, open_model, open_tensors = OnnxRuntimeOptions, OnnxRuntimeBackend, OnnxRuntimeTensors
