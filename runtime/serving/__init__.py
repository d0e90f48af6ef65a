"""An HTTP service over ``Detector``: ``create_app({"maskrcnn": detector})`` is an ASGI app.

Needs the extra ``serve``; nothing of it is imported before it is used.
"""

from runtime.serving.app import create_app
from runtime.serving.options import ServingOptions

__all__ = ["ServingOptions", "create_app"]
