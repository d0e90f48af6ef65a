"""Do two sets of detections say the same? Matched by class and box before anything is compared."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Optional

import numpy as np

# Two boxes further apart than this, in px at any corner, are different detections and not one that moved.
MATCH_LIMIT_PX = 10.0


@dataclass(frozen=True)
class Tolerance:
    """How far results may differ.

    Attributes:
        box_px: largest difference of a coordinate, px.
        score: largest difference of a score.
        mask: largest share of an image's mask pixels (union of both sides) that differ.
        mask_px: this many pixels per image may differ in any case: in a small object one pixel, whose probability
            is the threshold but for rounding, is more than the share.
    """

    box_px: float = 0.01
    score: float = 1e-4
    mask: float = 1e-4
    mask_px: int = 4


@dataclass(frozen=True, eq=False)
class DetectionArrays:
    """One image's detections as plain arrays.

    Attributes:
        boxes: (n, 4) float32, [x1, y1, x2, y2] in px.
        scores: (n,) float32.
        labels: (n,) int.
        masks: (n, H, W) bool or uint8, or None.
    """

    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    masks: Optional[np.ndarray] = None


@dataclass(frozen=True)
class Difference:
    """How one image's detections differ.

    Attributes:
        expected, found, matched: numbers of detections.
        box_px, score: largest difference among the matched, 0 without any.
        mask: share of differing mask pixels among the matched; None without masks.
        mask_px: number of differing mask pixels among the matched.
        mask_size_px: number of pixels, n * H * W, of the matched masks.
        worst: where the largest box difference is, in words.
    """

    expected: int
    found: int
    matched: int
    box_px: float
    score: float
    mask: Optional[float]
    mask_px: int
    mask_size_px: int
    worst: str

    def within(self, tolerance: Tolerance) -> bool:
        """Return whether every detection has its counterpart, as close as the tolerance asks."""
        return (
            self.expected == self.found == self.matched
            and self.box_px <= tolerance.box_px
            and self.score <= tolerance.score
            and (self.mask is None or self.mask <= tolerance.mask or self.mask_px <= tolerance.mask_px)
        )


def match_detections(expected: DetectionArrays, found: DetectionArrays) -> list[tuple[int, int]]:
    """Pair detections of the same label, closest boxes first, up to ``MATCH_LIMIT_PX`` apart.

    Returns:
        (index in expected, index in found), each index at most once, ordered by the first.
    """
    distance = np.abs(expected.boxes[:, None, :] - found.boxes[None, :, :]).max(axis=2, initial=0.0)
    distance[expected.labels[:, None] != found.labels[None, :]] = np.inf
    pairs: list[tuple[int, int]] = []
    used_expected, used_found = set(), set()
    for flat in np.argsort(distance, axis=None, kind="stable"):
        i, j = (int(v) for v in np.unravel_index(flat, distance.shape))
        if not distance[i, j] <= MATCH_LIMIT_PX:
            break
        if i in used_expected or j in used_found:
            continue
        pairs.append((i, j))
        used_expected.add(i)
        used_found.add(j)
    return sorted(pairs)


def compare_image(expected: DetectionArrays, found: DetectionArrays) -> Difference:
    """Match two sets of detections of one image and measure what differs. Either may be empty."""
    pairs = match_detections(expected, found)
    left, right = [i for i, _ in pairs], [j for _, j in pairs]
    boxes = np.abs(expected.boxes[left] - found.boxes[right]).max(axis=1, initial=0.0)
    scores = np.abs(expected.scores[left] - found.scores[right])
    different, union = _mask_pixels(expected, found, pairs)
    has_masks = expected.masks is not None and found.masks is not None
    return Difference(
        expected=len(expected.boxes),
        found=len(found.boxes),
        matched=len(pairs),
        box_px=float(boxes.max(initial=0.0)),
        score=float(scores.max(initial=0.0)),
        mask=different / max(union, 1) if has_masks else None,
        mask_px=different,
        mask_size_px=expected.masks[left].size if has_masks else 0,
        worst=_worst(expected, found, pairs, boxes),
    )


def compare(expected: Sequence[DetectionArrays], found: Sequence[DetectionArrays]) -> list[Difference]:
    """Compare image by image.

    Raises:
        ValueError: different numbers of images.
    """
    if len(expected) != len(found):
        raise ValueError(
            f"compare: expected the same number of images, found {len(expected)} and {len(found)}"
        )
    return [compare_image(a, b) for a, b in zip(expected, found)]


def _mask_pixels(
    expected: DetectionArrays, found: DetectionArrays, pairs: Sequence[tuple[int, int]]
) -> tuple[int, int]:
    """Count the pixels in which the pairs' masks differ, and those that either has."""
    different = union = 0
    if expected.masks is None or found.masks is None:
        return different, union
    for i, j in pairs:
        a, b = expected.masks[i].astype(bool), found.masks[j].astype(bool)
        different += int(np.count_nonzero(a ^ b))
        union += int(np.count_nonzero(a | b))
    return different, union


def _worst(
    expected: DetectionArrays, found: DetectionArrays, pairs: Sequence[tuple[int, int]], boxes: np.ndarray
) -> str:
    unmatched = sorted(set(range(len(expected.boxes))) - {i for i, _ in pairs})
    extra = sorted(set(range(len(found.boxes))) - {j for _, j in pairs})
    if unmatched:
        return f"no counterpart of expected {_described(expected, unmatched[0])}"
    if extra:
        return f"no counterpart of found {_described(found, extra[0])}"
    if not pairs:
        return ""
    i, j = pairs[int(boxes.argmax())]
    return f"expected {_described(expected, i)}, found {_described(found, j)}"


def _described(detections: DetectionArrays, index: int) -> str:
    box = ", ".join(f"{v:.3f}" for v in detections.boxes[index])
    return f"#{index} label {detections.labels[index]} score {detections.scores[index]:.6f} box [{box}]"
