"""onnxruntime: the default backend, on the CPU or through one of its execution providers."""

import os
import threading
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Optional, Union

import numpy as np

from runtime.contract import (
    EXPORT_COMMAND,
    Tensor,
    check_contract,
    check_model_file,
    check_run_inputs,
    contract_inputs,
    contract_outputs,
)
from runtime.files import file_identity
from runtime.forks import check_process, never_free
from runtime.graphs.load import load_onnx
from runtime.graphs.session import (
    DEVICE_PROVIDERS,
    import_onnxruntime,
    inference_session,
    one_line,
    open_session,
    provider_names,
    run_errors,
)
from runtime.host.runner import HostRunner
from runtime.metadata import KEY, ModelMetadata
from runtime.quantization import Quantization, quantization_from_properties
from runtime.runner import LayerRunner, LayerRunnerFactory, Runner

NAME = "onnxruntime"
SUFFIXES = (".onnx",)

if TYPE_CHECKING:
    import onnx
    import onnxruntime

_NUMPY_DTYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(int32)": "int32",
    "tensor(int64)": "int64",
    "tensor(uint8)": "uint8",
    "tensor(bool)": "bool",
}


@dataclass(frozen=True)
class OnnxRuntimeOptions:
    """How onnxruntime runs a model.

    Attributes:
        device: ``cpu`` or ``cuda``.
        providers: onnxruntime's provider names in order of preference, instead of ``device``.
        threads: threads inside an operator; None lets onnxruntime choose (all physical cores).
    """

    device: str = "cpu"
    providers: Optional[Sequence[str]] = None
    threads: Optional[int] = None


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
        names = provider_names(self.options.device, self.options.providers)
        self._session = _ProcessSession(path, names, self.options.threads)
        session = self._session.here()
        self.metadata, self.quantization = _read_metadata(path, session)
        inputs, outputs = session.get_inputs(), session.get_outputs()
        check_contract(path, "input", contract_inputs(self.metadata), _tensors(inputs))
        check_contract(path, "output", contract_outputs(self.metadata), _tensors(outputs))
        self._output_names = [output.name for output in outputs]

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
        try:
            return dict(zip(self._output_names, session.run(self._output_names, feeds)))
        except run_errors() as error:
            raise RuntimeError(
                f"onnxruntime {import_onnxruntime().__version__} failed on images of shape {images.shape}: "
                f"{one_line(error)}; if memory ran out, use a smaller batch"
            ) from error

    def new_runner(self, *, host: bool = True) -> Runner:
        """Return a ``HostRunner``, asked for or not."""
        del host
        return HostRunner(self, "onnxruntime takes arrays from the host")

    @property
    def notes(self) -> list[str]:
        """That symmetric INT8 is no faster here than float32."""
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


class _ProcessSession:
    """An onnxruntime session, and in a forked process another one: the threads of the first are not there.

    With one thread there is nothing to miss, and a forked process shares the session's memory.
    """

    def __init__(self, path: Path, providers: list[str], threads: Optional[int]) -> None:
        self._path, self._providers, self._threads = path.absolute(), providers, threads
        self._file = file_identity(path)
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._session: Optional[onnxruntime.InferenceSession] = inference_session(path, providers, threads)
        self._is_closed = False
        _sessions.add(self)

    def here(self) -> "onnxruntime.InferenceSession":
        """Return the session of this process.

        Raises:
            RuntimeError: it is closed, or cannot be made again after a fork.
        """
        session = self._session
        if session is None:
            with self._lock:
                if self._is_closed:
                    raise RuntimeError("model: expected an open one, found it closed; make a new Detector")
                session = self._session = self._session or self._opened_again()
        return session

    def leave_to_parent(self) -> None:
        """Have another session made when it is needed; called in a forked process, before anything else runs."""
        on_cpu = self._providers == [DEVICE_PROVIDERS["cpu"]]
        self._lock = threading.Lock()  # another thread of the parent may have had it
        if self._session is None or (on_cpu and self._threads == 1):
            return
        never_free(self._session)
        self._session = None

    def close(self) -> None:
        """Release the session."""
        with self._lock:
            self._is_closed, self._session = True, None

    def _opened_again(self) -> "onnxruntime.InferenceSession":
        if self._providers != [DEVICE_PROVIDERS["cpu"]]:
            check_process(self._process, self._providers[0])
        found = file_identity(self._path)
        if found != self._file:
            raise RuntimeError(
                f"model {self._path}: expected the file that was loaded before this process was forked, found "
                f"{'another' if found else 'nothing'}; make the Detector after the fork"
            )
        return inference_session(self._path, self._providers, self._threads)


_sessions: "weakref.WeakSet[_ProcessSession]" = weakref.WeakSet()


def _leave_sessions_to_parent() -> None:
    for session in list(_sessions):
        session.leave_to_parent()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_sessions_to_parent)


def _read_metadata(
    path: Path, session: "onnxruntime.InferenceSession"
) -> tuple[ModelMetadata, Optional[Quantization]]:
    found = session.get_modelmeta().custom_metadata_map
    if KEY not in found:
        keys = ", ".join(sorted(found)) or "none"
        raise ValueError(
            f"model {path}: expected the metadata key {KEY!r} that `{EXPORT_COMMAND}` writes, "
            f"found the keys: {keys}; export the checkpoint with `{EXPORT_COMMAND}`"
        )
    try:
        return ModelMetadata.from_json(found[KEY]), quantization_from_properties(found)
    except ValueError as error:
        raise ValueError(f"model {path}: {error}") from error


def _tensors(arguments: Sequence["onnxruntime.NodeArg"]) -> dict[str, Tensor]:
    """Return name -> tensor; a dimension with a name, or none, is free."""
    return {
        argument.name: Tensor(
            _NUMPY_DTYPES.get(argument.type, argument.type),
            tuple(v if isinstance(v, int) and v >= 0 else None for v in argument.shape),
        )
        for argument in arguments
    }


def layer_runner(device: str = "cpu", threads: Optional[int] = None) -> LayerRunnerFactory:
    """Return what runs models with onnxruntime.

    Raises:
        RuntimeError, from the factory and its runners: onnxruntime is missing, or cannot load or run the model.
    """

    def make(model: "onnx.ModelProto") -> LayerRunner:
        with open_session(model, device=device, threads=threads) as session:
            return session.run

    return make


def is_usable(device: Optional[str]) -> bool:
    """Return True: it is what a box has that has nothing else."""
    del device
    return True


def ignores(option: str, value: Any) -> bool:
    """Return whether another backend's option asks nothing of this one: it takes any batch."""
    del value
    return option == "batch"


def layers(
    path: Path, other: Path, batch: int, **options: Any
) -> tuple["onnx.ModelProto", LayerRunnerFactory]:
    """Return the ONNX, and what runs it with extra outputs; see ``BackendModule.layers``."""
    del other, batch
    return load_onnx(path), layer_runner(**options)


Options, open_model = OnnxRuntimeOptions, OnnxRuntimeBackend
