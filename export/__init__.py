"""Checkpoint -> ONNX. Needs PyTorch and mmdet; what comes out needs neither.

The modules here that need mmdet import ``patches`` first. ``export_model`` is the command ``python -m export.maskrcnn``
as a function.
"""

import importlib
from typing import Any

from export.siblings import check_siblings

check_siblings(("patches", "plugins", "runtime"))

import runtime  # noqa: E402, F401  (first: it makes Ctrl-C end a command that has not begun)

__all__ = ["ExportResult", "VerificationError", "export_model"]


def __getattr__(name: str) -> Any:
    # When it is asked for: a command of this package that only prints its help loads no PyTorch.
    if name in __all__:
        return getattr(importlib.import_module("export.api"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
