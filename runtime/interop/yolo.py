"""Detections as YOLO's labels: a text file for each image, a line for each object, coordinates as shares of the image.

A line is ``class x1 y1 x2 y2 ...``, an outline, where the model has masks, else ``class x y width height``, a box
around its centre. An object has one outline: parts and holes are joined to it by seams (``runtime.polygons``).
Key points have no place in it.
"""

import json
from collections.abc import Sequence

import numpy as np

from runtime.detections import Detections
from runtime.polygons import joined

_DIGITS = 6


def yolo_from_detections(detections: Detections, *, tolerance: float = 0.0) -> str:
    """Return the content of an image's file; empty without detections.

    An object whose mask is empty has the outline of its box: a file's lines are of one kind.

    Args:
        detections: of the image.
        tolerance: see ``runtime.polygons.polygons_from_crop``.
    """
    size = np.array(detections.image_size[::-1], np.float64)
    values = _outlines(detections, tolerance) if detections.has_masks else _boxes(detections.boxes)
    lines = []
    for label, points in zip(detections.labels.tolist(), values):
        shares = np.clip(points / size, 0, 1).ravel()
        lines.append(f"{label} " + " ".join(f"{share:.{_DIGITS}f}" for share in shares) + "\n")
    return "".join(lines)


def data_yaml(classes: Sequence[str]) -> str:
    """Return the content of ``data.yaml``: the class names by number."""
    # A string of JSON is one of YAML, whatever is in it.
    names = "".join(f"  {number}: {json.dumps(name)}\n" for number, name in enumerate(classes))
    return f"nc: {len(classes)}\nnames:\n{names}"


def _outlines(detections: Detections, tolerance: float) -> list[np.ndarray]:
    return [
        joined(polygons) if polygons else np.array([[x1, y1], [x2, y1], [x2, y2], [x1, y2]])
        for polygons, (x1, y1, x2, y2) in zip(
            detections.polygons(tolerance=tolerance), detections.boxes.tolist()
        )
    ]


def _boxes(boxes: np.ndarray) -> np.ndarray:
    """Return (n, 2, 2): centres, and widths and heights."""
    corners = boxes.astype(np.float64).reshape(-1, 2, 2)
    return np.stack((corners.mean(1), corners[:, 1] - corners[:, 0]), 1)
