"""From an exported model to detections: ``Detector("maskrcnn.onnx")(images) -> list[Detections]``.

Needs NumPy, OpenCV and one backend; the backend's library is imported when a ``Detector`` is made.
"""

from runtime.detections import Detections
from runtime.detector import Detector

__all__ = ["Detections", "Detector"]
