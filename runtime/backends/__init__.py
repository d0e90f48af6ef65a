"""What runs an exported model: each backend is a module here that fulfils ``base.Backend``."""

from pathlib import Path
from typing import Any, Union

from runtime.backends.base import Backend

__all__ = ["BACKENDS", "Backend", "backend_name", "load_backend"]

# TensorRT's place is runtime/backends/tensorrt.py, its suffix .engine: see load_backend.
BACKENDS = ("auto", "onnxruntime", "tensorrt")


def backend_name(model: Union[str, Path], backend: str) -> str:
    """Return the backend that runs the model: ``backend``, or what ``auto`` means for the suffix.

    Raises:
        ValueError: no such backend, or ``auto`` for a suffix that no backend reads.
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend: expected one of {', '.join(BACKENDS)}, found {backend!r}")
    if backend != "auto":
        return backend
    suffix = Path(model).suffix.lower()
    if suffix == ".onnx":
        return "onnxruntime"
    if suffix in (".engine", ".plan", ".trt"):
        return "tensorrt"
    raise ValueError(
        f"model {model}: expected a name ending in .onnx, found {suffix or 'no suffix'!r}; "
        "rename the file or name its backend, e.g. `--backend onnxruntime`"
    )


def load_backend(model: Union[str, Path], backend: str = "auto", **options: Any) -> Backend:
    """Open the model with a backend.

    Args:
        model: path of an exported model.
        backend: one of ``BACKENDS``.
        options: the backend's own; see ``OnnxRuntimeBackend``.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no such backend, or the file is not a model of ours.
        RuntimeError: the backend is not available here.
    """
    if backend_name(model, backend) == "tensorrt":
        raise RuntimeError(
            f"model {model}: the TensorRT backend is not part of this version; "
            "run the .onnx with `--backend onnxruntime`"
        )
    # Imported here, so that a box without onnxruntime can use another backend.
    from runtime.backends.onnxruntime import OnnxRuntimeBackend

    return OnnxRuntimeBackend(model, **options)
