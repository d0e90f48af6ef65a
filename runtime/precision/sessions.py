"""Models that exist in memory only, in onnxruntime on the CPU."""

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Optional

import numpy as np

from runtime.precision.typed import save_model

if TYPE_CHECKING:
    import onnx


class Session:
    """An onnxruntime session that is run by tensor names."""

    def __init__(self, path: Path, threads: Optional[int] = None, *, in_file_order: bool = False) -> None:
        """Open a model file.

        Args:
            path: of the .onnx.
            threads: CPU threads; None lets onnxruntime choose.
            in_file_order: run the nodes as they stand in the file, none merged or moved: slower, and a tensor whose
                readers follow it does not wait for them in memory.

        Raises:
            RuntimeError: onnxruntime is not installed, or does not take the model.
        """
        try:
            import onnxruntime
            from onnxruntime.capi import onnxruntime_pybind11_state as errors
        except ImportError:
            raise RuntimeError(
                "precision: expected the package onnxruntime, found none; install it: `pip install onnxruntime`"
            ) from None
        # They share no base class but Exception.
        self._errors = (
            errors.Fail,
            errors.InvalidArgument,
            errors.InvalidGraph,
            errors.NotImplemented,
            errors.RuntimeException,
        )
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        if threads is not None:
            options.intra_op_num_threads = threads
        if in_file_order:
            options.execution_order = onnxruntime.ExecutionOrder.PRIORITY_BASED
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        try:
            self._session = onnxruntime.InferenceSession(
                str(path), options, providers=["CPUExecutionProvider"]
            )
        except self._errors as error:
            raise RuntimeError(
                f"onnxruntime {onnxruntime.__version__}: expected a model that it can run, found one that it cannot "
                f"load: {_one_line(error)}; operators of TensorRT plugins need their bodies in the file"
            ) from error
        self._names = [output.name for output in self._session.get_outputs()]

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return the outputs by name.

        Raises:
            RuntimeError: onnxruntime failed, for want of memory for example.
        """
        try:
            return dict(zip(self._names, self._session.run(self._names, dict(feeds))))
        except self._errors as error:
            shapes = ", ".join(f"{name} {value.shape}" for name, value in feeds.items())
            raise RuntimeError(f"onnxruntime failed on {shapes}: {_one_line(error)}") from error


@contextmanager
def open_session(
    model: "onnx.ModelProto", *, threads: Optional[int] = None, in_file_order: bool = False
) -> Iterator[Session]:
    """Open a model for as long as the context lasts; see ``Session``.

    Raises:
        RuntimeError: see ``Session``.
    """
    # Through a file: a model of 2 GB cannot be handed over as one string.
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        save_model(model, path)
        yield Session(path, threads, in_file_order=in_file_order)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
