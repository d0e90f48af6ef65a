"""Outlines of masks: polygons along the edges of pixels, as annotation tools and COCO's polygons have them."""

from collections.abc import Sequence
from functools import reduce

import cv2
import numpy as np

from runtime.masks import MaskCrop

HOLES = ("seam", "fill")


def polygons_from_crop(crop: MaskCrop, *, tolerance: float = 0.0, holes: str = "seam") -> list[np.ndarray]:
    """Return a mask's outlines in the image's px, one for each of its parts, the largest first.

    They run along the edges of pixels: what covers column 3 alone goes from x = 3 to x = 4. Without a tolerance,
    ``pycocotools.mask.frPyObjects`` makes the very mask of them again.

    Args:
        crop: the mask; an empty one has no polygon.
        tolerance: px by which an outline may be off, so that it needs fewer points.
        holes: ``seam`` joins a hole to the outline around it by a line that is walked twice, there and back, so that
            one polygon holds both; ``fill`` leaves holes out.

    Returns:
        (P, 2) float32 arrays, x and y, P >= 3, not closed.

    Raises:
        ValueError: another value of ``holes``, or a negative tolerance.
    """
    if holes not in HOLES:
        raise ValueError(f"holes: expected one of {', '.join(HOLES)}, found {holes!r}")
    if not tolerance >= 0:
        raise ValueError(f"tolerance: expected 0 px or more, found {tolerance!r}")
    if not crop.pixels.any():
        return []
    # Twice as large, a contour's points tell on which edge of a pixel they lie: 2a on its first, 2a + 1 on its second.
    doubled = np.repeat(np.repeat(crop.pixels.astype(np.uint8), 2, 0), 2, 1)
    contours, hierarchy = cv2.findContours(doubled, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    rings = [_simplified(_along_edges(contour), tolerance) for contour in contours]
    parents = hierarchy.reshape(-1, 4)[:, 3].tolist()
    inside: dict[int, list[np.ndarray]] = {index: [] for index, parent in enumerate(parents) if parent < 0}
    for ring, parent in zip(rings, parents):
        if parent >= 0 and holes == "seam":
            inside[parent].append(ring)
    offset = np.array((crop.left, crop.top), np.float32)
    outer = sorted(inside, key=lambda index: -abs(_area(rings[index])))
    return [reduce(_with_seam, inside[index], rings[index]) + offset for index in outer]


def joined(polygons: Sequence[np.ndarray]) -> np.ndarray:
    """Return one polygon that holds several, joined by seams; for formats in which an object has one.

    Args:
        polygons: (P, 2) float32 arrays, one or more.
    """
    return reduce(_with_seam, polygons[1:], polygons[0])


def _along_edges(contour: np.ndarray) -> np.ndarray:
    """Return (P, 2) float32 corners of pixels from a contour of the doubled mask."""
    ring = ((contour.reshape(-1, 2) + 1) // 2).astype(np.float32)
    ring = ring[(ring != np.roll(ring, 1, 0)).any(1)]
    before, after = ring - np.roll(ring, 1, 0), np.roll(ring, -1, 0) - ring
    return ring[before[:, 0] * after[:, 1] != before[:, 1] * after[:, 0]]


def _simplified(ring: np.ndarray, tolerance: float) -> np.ndarray:
    if not tolerance:
        return ring
    fewer = cv2.approxPolyDP(ring[:, None], tolerance, True).reshape(-1, 2)
    return fewer if len(fewer) >= 3 else ring


def _with_seam(ring: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Return the ring with another one in it: from its point nearest to the other's first, around it and back."""
    start = int(other[:, 0].argmin())
    nearest = int(((ring - other[start]) ** 2).sum(1).argmin())
    around = np.roll(other, -start, 0)
    return np.concatenate((ring[: nearest + 1], around, around[:1], ring[nearest:]))


def _area(ring: np.ndarray) -> float:
    x, y = ring.astype(np.float64).T
    return float(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2
