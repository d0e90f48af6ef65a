"""A model in onnxruntime: the one place that opens sessions."""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Optional

import numpy as np

from runtime.contract import EXPORT_COMMAND, STRINGS, Tensor, check_dtypes, shapes_of
from runtime.files import working_folder
from runtime.graphs.attributes import check_attributes
from runtime.graphs.cuda_provider import (
    CUDA,
    check_cudnn,
    missing_provider,
    not_active,
    not_started,
    preload,
    reason,
    uses_cuda,
    with_options,
)
from runtime.graphs.divisors import check_divisors
from runtime.graphs.load import save_model
from runtime.ranges import MAX_THREADS, checked_count

if TYPE_CHECKING:
    import onnx
    import onnxruntime

DEVICE_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": CUDA}
_LOG_ERRORS_ONLY = 3


def import_onnxruntime() -> Any:
    """Return the package onnxruntime.

    Raises:
        RuntimeError: it is not installed.
    """
    # Its telemetry has threads, which a forked process waits for in vain when it ends (1.31, with nothing but the
    # import).
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    try:
        import onnxruntime
    except ImportError as error:
        raise RuntimeError(
            f"onnxruntime: expected the Python package, found none ({error}); `pip install onnxruntime`"
        ) from error
    return onnxruntime


def provider_names(device: str, providers: Optional[Sequence[str]] = None) -> list[str]:
    """Return the execution providers of a device, or those that are named, if they are there.

    Raises:
        ValueError: no such device.
        RuntimeError: one is missing.
    """
    onnxruntime = import_onnxruntime()
    if providers is None:
        if device not in DEVICE_PROVIDERS:
            raise ValueError(f"device: expected one of {', '.join(DEVICE_PROVIDERS)}, found {device!r}")
        # The CPU follows for operators that CUDA lacks.
        providers = list(dict.fromkeys((DEVICE_PROVIDERS[device], DEVICE_PROVIDERS["cpu"])))
    available = onnxruntime.get_available_providers()
    missing = [name for name in providers if name not in available]
    if missing or not providers:
        raise missing_provider(onnxruntime, providers, available)
    return list(providers)


def inference_session(
    path: Path,
    providers: Sequence[str],
    threads: Optional[int] = None,
    *,
    precision: Optional[str] = None,
    in_file_order: bool = False,
) -> "onnxruntime.InferenceSession":
    """Open a model file.

    Args:
        path: of the .onnx.
        providers: see ``provider_names``.
        threads: inside an operator; None lets onnxruntime choose.
        precision: on CUDA; see ``runtime.graphs.cuda_provider.with_options``.
        in_file_order: run the nodes as they stand in the file, none merged or moved: slower, and a tensor whose
            readers follow it does not wait for them in memory.

    Raises:
        ValueError: not an ONNX, or one that onnxruntime cannot load, or an unusable argument.
        RuntimeError: the first provider does not work.
    """
    onnxruntime = import_onnxruntime()
    if threads is not None:
        threads = checked_count("threads", threads, MAX_THREADS)
    check_name(path)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _LOG_ERRORS_ONLY
    if threads is not None:
        options.intra_op_num_threads = threads
    if in_file_order:
        options.execution_order = onnxruntime.ExecutionOrder.PRIORITY_BASED
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    check_attributes(path)
    check_divisors(path)
    try:
        session = _opened(onnxruntime, path, options, providers, precision)
    except _errors("InvalidProtobuf")[0] as error:
        raise ValueError(
            f"model {path}: expected an ONNX file, found {_first_bytes(path)}; make one with `{EXPORT_COMMAND}`"
        ) from error
    except load_errors() as error:
        raise ValueError(
            f"model {path}: onnxruntime {onnxruntime.__version__} cannot load it: {one_line(error)}; "
            f"export it again with `{EXPORT_COMMAND}`, or use a newer onnxruntime"
        ) from error
    _check_active(providers, session.get_providers())
    if uses_cuda(providers):
        check_cudnn(onnxruntime)
    return session


def _opened(
    onnxruntime: Any, path: Path, options: Any, providers: Sequence[str], precision: Optional[str]
) -> "onnxruntime.InferenceSession":
    if not uses_cuda(providers):
        return onnxruntime.InferenceSession(str(path), options, providers=list(providers))
    preload(onnxruntime)
    # Its kernels warn through the process's logger, ScatterND of indices that occur twice, which ours never do.
    onnxruntime.set_default_logger_severity(_LOG_ERRORS_ONLY)
    # With its fallback, a session that fails on the GPU prints so, and goes on in another on the CPU.
    try:
        return onnxruntime.InferenceSession(
            str(path), options, providers=with_options(providers, precision), enable_fallback=0
        )
    except RuntimeError as error:  # none of the exceptions that onnxruntime has for models
        raise not_started(onnxruntime, error) from error


def check_name(path: Path) -> None:
    """Refuse a path that onnxruntime cannot be told.

    Raises:
        ValueError: it is not UTF-8.
    """
    try:
        str(path).encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(
            f"model {path}: expected a path in UTF-8, which onnxruntime takes, found other bytes; rename it"
        ) from error


# onnxruntime's exceptions share no base class but Exception.
def load_errors() -> tuple[type[Exception], ...]:
    """Return what onnxruntime raises for a model that it cannot load."""
    return _errors("Fail", "InvalidArgument", "InvalidGraph", "NoModel", "NotImplemented", "RuntimeException")


def run_errors() -> tuple[type[Exception], ...]:
    """Return what onnxruntime raises while it runs a model: ``RuntimeError`` where inputs and outputs are bound."""
    names = ("Fail", "EPFail", "InvalidArgument", "InvalidGraph", "NotImplemented", "RuntimeException")
    return (RuntimeError, *_errors(*names))


def _errors(*names: str) -> tuple[type[Exception], ...]:
    """Return onnxruntime's exceptions, and what becomes of one whose message has bytes of a damaged file in it."""
    from onnxruntime.capi import onnxruntime_pybind11_state as errors

    return (*(getattr(errors, name) for name in names), UnicodeDecodeError)


def one_line(error: BaseException) -> str:
    """Return what an error says in one line."""
    return reason(str(error)) or " ".join(str(error).split())[:300]


def _check_active(wanted: Sequence[str], active: Sequence[str]) -> None:
    """Refuse a session that fell back: onnxruntime only logs it when CUDA's libraries do not load."""
    if wanted[0] not in active:
        raise not_active(import_onnxruntime(), wanted[0], active)


def _first_bytes(path: Path) -> str:
    with path.open("rb") as file:
        start = file.read(24)
    return f"{path.stat().st_size} bytes starting {start!r}"


class Session:
    """A model that exists in memory only, run by tensor names. Feeds are cast to the types of the inputs."""

    def __init__(
        self,
        path: Path,
        device: str = "cpu",
        threads: Optional[int] = None,
        *,
        precision: Optional[str] = None,
        in_file_order: bool = False,
    ) -> None:
        """Open a model file; see ``inference_session``.

        Raises:
            RuntimeError: onnxruntime is not installed, or does not take the model.
        """
        onnxruntime = import_onnxruntime()
        try:
            self._session = inference_session(
                path, provider_names(device), threads, precision=precision, in_file_order=in_file_order
            )
            inputs = {i.name: Tensor(dtype_name(i.type), ()) for i in self._session.get_inputs()}
            check_dtypes(path, inputs, {}, strings=True)
        except ValueError as error:
            reason = error.__cause__ or error
            raise RuntimeError(
                f"onnxruntime {onnxruntime.__version__}: expected a model that it can run, found one that it cannot "
                f"load: {one_line(reason)}; operators of TensorRT plugins need their bodies in the file"
            ) from error
        self._names = [output.name for output in self._session.get_outputs()]
        self._dtypes = {name: np.dtype(tensor.dtype) for name, tensor in inputs.items()}

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return the outputs by name; feeds that are no inputs are left out.

        Raises:
            RuntimeError: onnxruntime failed, for want of memory for example.
        """
        arrays = {
            name: feeds[name].astype(dtype, copy=False)
            for name, dtype in self._dtypes.items()
            if name in feeds
        }
        try:
            return dict(zip(self._names, self._session.run(self._names, arrays)))
        except run_errors() as error:
            raise RuntimeError(
                f"onnxruntime: expected to run the model on {shapes_of(feeds)}, found: {one_line(error)}; if "
                "memory ran out, use a smaller batch"
            ) from error


@contextmanager
def open_session(
    model: "onnx.ModelProto",
    *,
    device: str = "cpu",
    threads: Optional[int] = None,
    precision: Optional[str] = None,
    in_file_order: bool = False,
) -> Iterator[Session]:
    """Open a model for as long as the context lasts; see ``Session``.

    Raises:
        RuntimeError: see ``Session``.
    """
    # Through a file: a model of 2 GB cannot be handed over as one string.
    with working_folder() as folder:
        path = folder / "model.onnx"
        save_model(model, path)
        yield Session(path, device, threads, precision=precision, in_file_order=in_file_order)


def dtype_name(kind: str) -> str:
    """Return NumPy's name of what onnxruntime calls ``tensor(float)``; of a type that NumPy has not, onnxruntime's."""
    name = kind[len("tensor(") : -1]
    return {"float": "float32", "double": "float64", "string": STRINGS}.get(name, name)
