"""Other detectors' ONNX files -> the contract of this tool. Needs onnx, NumPy and onnxruntime; no PyTorch, no mmdet."""

import importlib
from typing import Any

__all__ = ["graft", "grafted", "load_head"]
_PLACES = {"graft": "export.graft.command", "grafted": "export.graft.api", "load_head": "export.graft.head"}


def __getattr__(name: str) -> Any:
    # When it is asked for: --help loads no onnx.
    if name in _PLACES:
        return getattr(importlib.import_module(_PLACES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
