"""What runs an exported model: each backend is a module here that fulfils ``base.Backend``."""

import importlib.util
from pathlib import Path
from typing import Any, Optional, Union

from runtime.runner import Backend

__all__ = ["BACKENDS", "Backend", "backend_name", "load_backend", "tensorrt_is_usable"]

BACKENDS = ("auto", "onnxruntime", "tensorrt")
_ENGINE_SUFFIXES = (".engine", ".plan", ".trt")
# Options of one backend that the other ignores where they are not set.
_OF_ONNXRUNTIME = ("device", "providers", "threads")
_OF_TENSORRT = ("batch", "config", "cuda_graphs", "device_index", "monitor", "notify", "plugins", "rebuild")


def backend_name(model: Union[str, Path], backend: str, device: Optional[str] = None) -> str:
    """Return the backend that runs the model: ``backend``, or what ``auto`` means.

    ``auto`` runs an engine with TensorRT, and an ONNX with TensorRT where it, onnx, the plugin library and a GPU
    are at hand and no ``device`` is named, otherwise with onnxruntime.

    Raises:
        ValueError: no such backend, or ``auto`` for a suffix that no backend reads.
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend: expected one of {', '.join(BACKENDS)}, found {backend!r}")
    if backend != "auto":
        return backend
    suffix = Path(model).suffix.lower()
    if suffix in _ENGINE_SUFFIXES:
        return "tensorrt"
    if suffix == ".onnx":
        return "tensorrt" if device is None and tensorrt_is_usable() else "onnxruntime"
    raise ValueError(
        f"model {model}: expected a name ending in .onnx or .engine, found {suffix or 'no suffix'!r}; "
        "rename the file or name its backend, e.g. `--backend onnxruntime`"
    )


def tensorrt_is_usable() -> bool:
    """Return whether TensorRT, ``onnx`` (to build with), the plugin library and a CUDA device are there."""
    if any(importlib.util.find_spec(name) is None for name in ("tensorrt", "onnx")):
        return False
    from runtime.cuda.binding import open_cuda
    from runtime.engine.library import open_library
    from runtime.engine.plugins import find_plugins

    try:
        open_library()
        open_cuda()
        return find_plugins() is not None
    except (RuntimeError, FileNotFoundError):
        return False


def load_backend(model: Union[str, Path], backend: str = "auto", **options: Any) -> Backend:
    """Open the model with a backend.

    Args:
        model: path of an exported model, or of an engine.
        backend: one of ``BACKENDS``.
        options: the backend's own; see ``OnnxRuntimeBackend`` and ``TensorRTBackend``. What belongs to the other one is
            ignored where it is None.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no such backend, an option of the other backend, or the file is not a model of ours.
        RuntimeError: the backend is not available here.
    """
    name = backend_name(model, backend, options.get("device"))
    options = _own_options(name, options)
    # Imported here, so that a box without the one library can use the other backend.
    if name == "tensorrt":
        from runtime.backends.tensorrt import TensorRTBackend

        return TensorRTBackend(model, **options)
    from runtime.backends.onnxruntime import OnnxRuntimeBackend

    return OnnxRuntimeBackend(model, **options)


def _own_options(name: str, options: dict[str, Any]) -> dict[str, Any]:
    others = _OF_ONNXRUNTIME if name == "tensorrt" else _OF_TENSORRT
    # A batch is no demand on onnxruntime, and TensorRT is on the GPU anyway.
    harmless = {"batch": options.get("batch"), "device": "cuda"}
    for option in others:
        value = options.get(option)
        if value is not None and harmless.get(option) != value:
            raise ValueError(
                f"{option}: expected an option of {name}, found one of the other backend ({value!r}); leave it out, or "
                "name the backend"
            )
    return {option: value for option, value in options.items() if option not in others and value is not None}
