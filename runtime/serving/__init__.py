"""An HTTP service over ``Detector``: ``create_app({"maskrcnn": detector})`` is an ASGI app.

Needs the extra ``serve``; nothing of it is imported before it is used, and neither is NumPy.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from runtime.serving.app import create_app
    from runtime.serving.options import ServingOptions

__all__ = ["ServingOptions", "create_app"]

_MODULES = {"ServingOptions": "runtime.serving.options", "create_app": "runtime.serving.app"}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)
