"""Files of one image's detections."""

import json
from pathlib import Path
from typing import Any, Callable, Optional, Union

import cv2
import numpy as np

from runtime.detections import Detections
from runtime.draw import draw_detections
from runtime.files import write_whole
from runtime.interop.coco import dataset_from_detections
from runtime.interop.labelme import labelme_from_detections
from runtime.interop.yolo import yolo_from_detections
from runtime.messages import shown

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
_FORMAT_OF_SUFFIX = {".json": "coco", ".txt": "yolo", **dict.fromkeys(IMAGE_SUFFIXES, "overlay")}


def save_detections(
    detections: Detections,
    path: Union[str, Path],
    image: Optional[np.ndarray] = None,
    *,
    format: Optional[str] = None,
    file_name: Optional[str] = None,
    tolerance: float = 0.0,
) -> None:
    """Write one image's detections, whole or not at all.

    Args:
        detections: of the image.
        path: of the file.
        image: what an overlay is drawn on, (H, W, 3) uint8 BGR; the other formats need none.
        format: ``overlay``, ``coco`` (annotations of one image), ``labelme`` or ``yolo``; None: by the suffix, overlay
            for that of an image, COCO for ``.json``, YOLO for ``.txt``.
        file_name: the image's file, which COCO and LabelMe name; None: the path's own name with ``.jpg``.
        tolerance: px by which the outlines of LabelMe and YOLO may be off, so that they need fewer points.

    Raises:
        ValueError: no such format or suffix, or an overlay without an image.
        OSError: the file cannot be written.
    """
    path = Path(path)
    chosen = _FORMAT_OF_SUFFIX.get(path.suffix.lower(), "") if format is None else format
    if chosen == "overlay":
        write_whole(path, _overlay(detections, path, image))
        return
    if chosen not in _TEXTS:
        raise ValueError(
            f"{path}: expected a suffix of {', '.join(_FORMAT_OF_SUFFIX)} or a format of overlay, "
            f"{', '.join(_TEXTS)}, found {shown(path.suffix if format is None else format)}"
        )
    name = path.with_suffix(".jpg").name if file_name is None else file_name
    write_whole(path, _TEXTS[chosen](detections, name, tolerance).encode("utf-8", "surrogateescape"))


def as_json(content: Any) -> str:
    """Return JSON of ASCII characters alone, so that a file name of any bytes survives."""
    return json.dumps(content, indent=1) + "\n"


def _overlay(detections: Detections, path: Path, image: Optional[np.ndarray]) -> bytes:
    if image is None:
        raise ValueError(f"{path}: expected the image to draw on, found none; save(path, image)")
    suffix = path.suffix.lower()
    if suffix not in IMAGE_SUFFIXES:
        raise ValueError(
            f"{path}: expected one of {', '.join(IMAGE_SUFFIXES)}, found {suffix or 'no suffix'!r}"
        )
    done, data = cv2.imencode(suffix, draw_detections(image, detections))
    if not done:
        raise ValueError(f"{path}: OpenCV cannot encode the overlay as {suffix}")
    return data.tobytes()


_TEXTS: dict[str, Callable[[Detections, str, float], str]] = {
    "coco": lambda detections, name, _: as_json(dataset_from_detections(detections, name)),
    "labelme": lambda detections, name, tolerance: as_json(
        labelme_from_detections(detections, name, tolerance=tolerance)
    ),
    "yolo": lambda detections, _, tolerance: yolo_from_detections(detections, tolerance=tolerance),
}
