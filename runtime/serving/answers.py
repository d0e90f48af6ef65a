"""What a plain request is answered with: JSON, or the image with what was found drawn over it."""

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Optional

import cv2
import numpy as np

from runtime.coco_writer import coco_results
from runtime.detections import Detections
from runtime.draw import draw_detections
from runtime.png_marks import marked

MASKS = ("rle", "polygon", "none")
FORMATS = ("json", "overlay")
PNG, JPEG = "image/png", "image/jpeg"
_SUFFIXES = {PNG: ".png", JPEG: ".jpg"}
# Of HTTP: what weight a kind has in a header `Accept`.
_WEIGHT = re.compile(r"[01](\.\d{0,3})?", re.ASCII)


def image_answer(detections: Detections, masks: str = "rle") -> dict[str, Any]:
    """Return what was found in an image, in the keys of ``detections.jsonl``.

    Args:
        detections: of the image.
        masks: ``rle``, COCO's compressed run lengths; ``polygon``, COCO's polygons (``runtime.polygons``); ``none``.
    """
    height, width = detections.image_size
    bare = detections if masks == "rle" else replace(detections, mask_source=None)
    # COCO's, without the image that they belong to.
    results = [
        {"category": name, **{k: v for k, v in result.items() if k not in ("image_id", "file_name")}}
        for name, result in zip(detections.names, coco_results(bare, 0, ""))
    ]
    if masks == "polygon" and detections.has_masks:
        for result, outlines in zip(results, detections.polygons()):
            # Without a tolerance they go from corner to corner of pixels, which are whole numbers.
            result["segmentation"] = [outline.astype(int).ravel().tolist() for outline in outlines]
    return {"width": width, "height": height, "detections": results}


def overlay(image: np.ndarray, detections: Detections, kind: str = JPEG) -> bytes:
    """Return the image with what was found drawn over it, as a file.

    Args:
        image: as ``draw_detections`` takes it.
        detections: of the image.
        kind: ``image/jpeg`` or ``image/png``.

    Raises:
        RuntimeError: OpenCV cannot draw or encode it.
    """
    try:
        done, data = cv2.imencode(_SUFFIXES[kind], draw_detections(image, detections))
    except cv2.error as error:
        raise RuntimeError(f"OpenCV cannot draw the overlay: {error.err or error}") from error
    if not done:
        raise RuntimeError(f"OpenCV cannot encode the overlay as {kind}")
    return marked(data.tobytes()) if kind == PNG else data.tobytes()


def wanted_kind(form: Optional[str], accept: str) -> Optional[str]:
    """Return the kind of image that a client asks for by ``format`` or its header ``Accept``; None for JSON."""
    kinds = _by_preference(accept)
    image = next((kind for kind in kinds if kind in _SUFFIXES), None)
    if form == "json":
        return None
    if form == "overlay":
        return image or JPEG
    # What is named first; `*/*` and `image/*` come from browsers and curl, which mean nothing by it.
    first: Sequence[str] = [kind for kind in kinds if kind in (PNG, JPEG, "application/json")][:1]
    return first[0] if first and first[0] in _SUFFIXES else None


def _by_preference(accept: str) -> list[str]:
    """Return the kinds of a header ``Accept``, the one most wanted first; without those of ``q=0``, not wanted."""
    weights = {}
    for part in accept.split(","):
        kind, *parameters = (text.strip().lower() for text in part.split(";"))
        weight = next((text[2:] for text in parameters if text.startswith("q=")), "1")
        weights[kind] = float(weight) if _WEIGHT.fullmatch(weight) else 1.0
    return sorted((kind for kind in weights if weights[kind]), key=lambda kind: -weights[kind])
