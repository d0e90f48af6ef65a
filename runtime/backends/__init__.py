"""What runs an exported model. Each backend is a module here and a row of ``NAMES``, loaded when it is named.

A module declares ``NAME`` and ``SUFFIXES`` (of the files that it reads), ``Options`` (a frozen dataclass),
``open_model`` (a path and options -> ``runtime.runner.Backend``), ``open_tensors`` (the same ->
``runtime.runner.TensorModel``), ``is_usable`` (whether ``auto`` may choose it),
``ignores`` (options of others that ask nothing of it) and ``layers`` (what runs a model with extra outputs).
"""

import difflib
import importlib
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Optional, Union

if TYPE_CHECKING:
    from runtime.runner import Backend, BackendModule, TensorModel

__all__ = ["BACKENDS", "backend_module", "backend_name", "load_backend", "load_tensors", "supported_options"]

# In the order in which `auto` asks them.
NAMES = ("tensorrt", "openvino", "onnxruntime")
BACKENDS = ("auto", *sorted(NAMES))


def backend_module(name: str) -> "BackendModule":
    """Return the module of a backend, one of ``NAMES``."""
    module: Any = importlib.import_module(f"runtime.backends.{name}")
    return module


def backend_name(model: Union[str, Path], backend: str, device: Optional[str] = None) -> str:
    """Return the backend that runs the model: ``backend``, or what ``auto`` means.

    ``auto`` takes the one that reads the file; of several, the first that is usable here: an ONNX is run by TensorRT
    where it, onnx, the plugin library and a GPU are at hand and no ``device`` is named, on a CPU by OpenVINO where it
    and onnx are installed, otherwise by onnxruntime.

    Raises:
        ValueError: no such backend, or ``auto`` for a suffix that no backend reads.
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend: expected one of {', '.join(BACKENDS)}, found {backend!r}")
    if backend != "auto":
        return backend
    suffix = Path(model).suffix.lower()
    reading = [name for name in NAMES if suffix in backend_module(name).SUFFIXES]
    if not reading:
        raise ValueError(
            f"model {model}: expected a name ending in .onnx, .xml or .engine, found {suffix or 'no suffix'!r}; "
            "rename the file or name its backend, e.g. `--backend onnxruntime`"
        )
    return next((name for name in reading[:-1] if backend_module(name).is_usable(device)), reading[-1])


def load_backend(model: Union[str, Path], backend: str = "auto", **options: Any) -> "Backend":
    """Open the model with a backend.

    Args:
        model: path of an exported model, or of an engine.
        backend: one of ``BACKENDS``.
        options: the backend's own; see ``OnnxRuntimeOptions``, ``OpenVINOOptions`` and ``TensorRTOptions``. None is the
            default, of an option of another backend too. ``providers`` make ``auto`` mean onnxruntime.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no such backend, an option that it has not got, or the file is not a model of ours.
        RuntimeError: the backend is not available here.
    """
    if backend == "auto" and options.get("providers") is not None:
        backend = "onnxruntime"
    module = backend_module(backend_name(model, backend, options.get("device")))
    return module.open_model(model, **_own_options(module, options))


def load_tensors(model: Union[str, Path], backend: str = "auto", **options: Any) -> "TensorModel":
    """Open a model of any inputs and outputs; see ``load_backend``."""
    module = backend_module(backend_name(model, backend, options.get("device")))
    return module.open_tensors(model, **_own_options(module, options))


def supported_options(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of the options that a backend has."""
    own = _option_names(backend_module(name))
    return {option: value for option, value in options.items() if option in own}


def _own_options(module: "BackendModule", options: Mapping[str, Any]) -> dict[str, Any]:
    own = _option_names(module)
    others = {option for name in NAMES for option in _option_names(backend_module(name))}.difference(own)
    for option, value in options.items():
        if option in own or (option in others and (value is None or module.ignores(option, value))):
            continue
        if option in others:
            raise ValueError(
                f"{option}: expected an option of {module.NAME}, found one of another backend ({value!r}); leave it "
                "out, or name the backend"
            )
        near = difflib.get_close_matches(option, own, 1)
        meant = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(
            f"{option}: expected an option of {module.NAME} ({', '.join(own)}), found none of that name{meant}"
        )
    return {option: value for option, value in options.items() if option in own and value is not None}


def _option_names(module: "BackendModule") -> list[str]:
    return [field.name for field in fields(module.Options)]
