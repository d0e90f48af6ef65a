"""Checkpoint -> ONNX, which needs PyTorch and mmdet, and ONNX -> INT8, which does not.

The modules here that need mmdet import ``patches`` first. ``export_model`` is the command ``python -m export.maskrcnn``
as a function, ``quantize_model`` that of ``python -m export.quantize``.
``export.graft`` completes the ONNX of another detector, without either.
"""

import importlib
from typing import Any

from export.siblings import check_siblings

check_siblings(("patches", "plugins", "runtime"))

import runtime  # noqa: E402, F401  (first: it makes Ctrl-C end a command that has not begun)

_MODULES = {
    "ExportResult": "export.api",
    "VerificationError": "export.api",
    "export_model": "export.api",
    "QuantizeResult": "export.quantization.api",
    "quantize_model": "export.quantization.api",
}
__all__ = list(_MODULES)


def __getattr__(name: str) -> Any:
    # When it is asked for: what quantizes a file runs without PyTorch and mmdet.
    if name in _MODULES:
        return getattr(importlib.import_module(_MODULES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
