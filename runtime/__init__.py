"""From an exported model to detections: ``Detector("maskrcnn.onnx")(images) -> list[Detections]``.

Needs NumPy, OpenCV and one backend; the backend's library is imported when a ``Detector`` is made. Each name here is
loaded when it is used.
"""

import importlib
import signal
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from runtime.comparison.detections import compare
    from runtime.comparison.evaluation import evaluate
    from runtime.detections import Detections
    from runtime.detector import Detector
    from runtime.engine.builds import build_engine

__all__ = ["Detections", "Detector", "build_engine", "compare", "evaluate"]

_MODULES = {
    "Detections": "runtime.detections",
    "Detector": "runtime.detector",
    "build_engine": "runtime.engine.builds",
    "compare": "runtime.comparison.detections",
    "evaluate": "runtime.comparison.evaluation",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_MODULES[name]), name)
    globals()[name] = value
    return value


def _is_command() -> bool:
    """Return whether Python is about to run a module of ours as a program, ``python -m runtime.infer``."""
    words = getattr(sys, "orig_argv", [])
    named = words[words.index("-m") + 1 :][:1] if "-m" in words else []
    return sys.argv[:1] == ["-m"] and any(name.startswith(("runtime.", "export.")) for name in named)


if _is_command() and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    # Until the command handles its signals, Ctrl-C ends it without a traceback: it has not begun.
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class _Package(ModuleType):
    """Keeps ``compare`` and ``evaluate`` the functions, when the commands' modules of these names are imported too."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _MODULES and isinstance(value, ModuleType):
            return
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
