"""The plugin library: found, loaded, and asked which operators it has."""

import ctypes
import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Optional, Union

from runtime.engine import blocks
from runtime.engine.compat import TensorRT
from runtime.files import sha256_of
from runtime.graphs.operators import PLUGINS

VARIABLE = "MASKRCNN_PLUGINS"
FILE_NAME = "libmaskrcnn_plugins.so"
ROOT = Path(__file__).resolve().parents[2]
# Where `make plugins` and `pip install .` put it.
FOLDERS = (ROOT / "build", ROOT / "plugins")
# Those of files, and the one that lowering writes.
OPS = PLUGINS | {blocks.OPERATOR}


@dataclass(frozen=True)
class PluginLibrary:
    """A loaded plugin library.

    Attributes:
        path: of the file.
        sha256: of its bytes.
        ops: names of the operators that it registered.
        handle: its ``ctypes.CDLL``.
        attributes: names of the attributes that each operator takes.
    """

    path: Path
    sha256: str
    ops: frozenset
    handle: Any = field(default=None, compare=False, repr=False)
    attributes: Mapping[str, frozenset] = field(default_factory=dict, compare=False, repr=False)


_REGISTER = "maskrcnn_plugins_register"

_lock = threading.Lock()
# A library registers its creators once per process, whoever asks.
_loaded: dict[Path, PluginLibrary] = {}


def find_plugins(path: Optional[Union[str, Path]] = None) -> Optional[Path]:
    """Return the library's path: the argument, ``$MASKRCNN_PLUGINS``, or where it is built; None without any.

    Raises:
        FileNotFoundError: one is named and is not there.
    """
    named = path or os.environ.get(VARIABLE)
    if named:
        found = Path(named)
        if not found.is_file():
            source = "--plugins" if path else f"${VARIABLE}"
            raise FileNotFoundError(
                f"{source}: expected the plugin library, found no file {found}; build it with `make plugins`"
            )
        return found.resolve()
    return next((f / FILE_NAME for f in FOLDERS if (f / FILE_NAME).is_file()), None)


def load_plugins(path: Optional[Union[str, Path]], tensorrt: TensorRT) -> Optional[PluginLibrary]:
    """Load the library that ``find_plugins`` finds; None where there is none, or for TensorRT-RTX, which takes none.

    Raises:
        FileNotFoundError: one is named and is not there.
        RuntimeError: it does not load, or was compiled for another TensorRT.
    """
    found = find_plugins(path) if tensorrt.takes_plugins else None
    if found is None:
        return None
    with _lock:
        if found not in _loaded:
            before = tensorrt.plugin_names()
            handle = _load(found, tensorrt)
            after = tensorrt.plugin_names()
            # Someone else may have loaded ours before: then its creators are no news, and there all the same.
            is_ours = hasattr(handle, _REGISTER)
            ops = (after - before) | (OPS & after if is_ours else set())
            sha256 = sha256_of(found)
            attributes = tensorrt.plugin_attributes(ops)
            _loaded[found] = PluginLibrary(found, sha256, frozenset(ops), handle, attributes)
        return _loaded[found]


def _load(path: Path, tensorrt: TensorRT) -> Any:
    """Load a library; one of this project has ``_REGISTER``."""
    try:
        library = ctypes.CDLL(str(path), ctypes.RTLD_GLOBAL)
    except OSError as error:
        raise RuntimeError(
            f"plugins {path}: expected a library that loads, found: {error}; build it on this machine with "
            "`make plugins`"
        ) from error
    register = getattr(library, _REGISTER, None)
    if register is not None and register() < 0:
        raise RuntimeError(
            f"plugins {path}: expected a library for {tensorrt.name}, found one that was compiled for another major "
            "version; build it with `make plugins TENSORRT_ROOT=...` of the TensorRT that is installed"
        )
    return library
