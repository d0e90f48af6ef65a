"""Detections as LabelMe's JSON, one file beside each image.

An object is a ``polygon`` for each part of its mask, a ``rectangle`` where there is no mask, and a ``point`` for each
key point; what belongs to one object has the same ``group_id``. LabelMe's polygons have no holes: a seam holds them
(``runtime.polygons``). The score is the shape's description, which LabelMe shows and keeps.
"""

from typing import Any

import numpy as np

from runtime.detections import Detections

# LabelMe reads files of every version; this is what wrote such files.
VERSION = "5.5.0"


def labelme_from_detections(
    detections: Detections, image_path: str, *, tolerance: float = 0.0
) -> dict[str, Any]:
    """Return the content of a file.

    Args:
        detections: of the image.
        image_path: the image's file as seen from the JSON's folder.
        tolerance: see ``runtime.polygons.polygons_from_crop``.
    """
    height, width = detections.image_size
    shapes: list[dict[str, Any]] = []
    for number, detection in enumerate(detections, 1):
        own = _shapes(detection, tolerance)
        group = number if len(own) > 1 else None
        shapes += [{**shape, "group_id": group} for shape in own]
    return {
        "version": VERSION,
        "flags": {},
        "shapes": shapes,
        "imagePath": image_path,
        "imageData": None,
        "imageHeight": height,
        "imageWidth": width,
    }


def _shapes(detection: Detections, tolerance: float) -> list[dict[str, Any]]:
    """Return the shapes of one detection."""
    (name,), score = detection.names, float(detection.scores[0])
    polygons = detection.polygons(tolerance=tolerance)[0] if detection.has_masks else []
    shapes = [_shape(name, "polygon", polygon, score) for polygon in polygons]
    if not shapes:
        shapes = [_shape(name, "rectangle", detection.boxes.reshape(2, 2), score)]
    if detection.keypoints is not None:
        shapes += [
            _shape(point_name, "point", point[None, :2], float(point[2]))
            for point_name, point in zip(detection.keypoint_names, detection.keypoints[0])
        ]
    return shapes


def _shape(label: str, kind: str, points: np.ndarray, score: float) -> dict[str, Any]:
    return {
        "label": label,
        "points": [[round(float(x), 3), round(float(y), 3)] for x, y in points],
        "shape_type": kind,
        "flags": {},
        "description": f"score {score:.3f}",
        "mask": None,
    }
