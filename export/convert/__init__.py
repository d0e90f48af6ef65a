"""A model -> the files that another program wants, and the command that runs them. Needs onnx; no PyTorch, no mmdet.

``convert`` is the command ``python -m export.convert`` as a function.
"""

import importlib
from typing import Any

__all__ = ["convert", "with_pixel_input"]
_PLACES = {"convert": "export.convert.api", "with_pixel_input": "export.convert.pixels"}


def __getattr__(name: str) -> Any:
    # When it is asked for: --help loads no onnx.
    if name in _PLACES:
        return getattr(importlib.import_module(_PLACES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
