"""Do two sets of detections say the same? Matched by class and box before anything is compared."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Optional, Protocol

import numpy as np

# Two boxes further apart than this, in px at any corner, are different detections and not one that moved.
MATCH_LIMIT_PX = 10.0


@dataclass(frozen=True)
class Tolerance:
    """How far results may differ.

    Attributes:
        box_px: largest difference of a coordinate, of boxes and key points, px.
        score: largest difference of a score.
        mask: largest share of an image's mask pixels (union of both sides) that differ.
        mask_px: this many pixels per image may differ in any case: in a small object one pixel, whose probability
            is the threshold but for rounding, is more than the share.
        min_score: a detection of a lower score needs no counterpart. In half precision the least certain ones
            cross the model's score threshold.
    """

    box_px: float = 0.01
    score: float = 1e-4
    mask: float = 1e-4
    mask_px: int = 4
    min_score: float = 0.0


class Masks(Protocol):
    """(H, W) masks by index: an array, or what makes each when it is asked for."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> np.ndarray: ...


@dataclass(frozen=True, eq=False)
class DetectionArrays:
    """One image's detections as plain arrays.

    Attributes:
        boxes: (n, 4) float32, [x1, y1, x2, y2] in px.
        scores: (n,) float32.
        labels: (n,) int.
        masks: (n, H, W) bool or uint8, or a sequence that makes each (H, W) mask when it is asked for; None
            without masks.
        keypoints: (n, P, 3) float32, x and y in px and a score; None without.
    """

    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    masks: Optional[Masks] = None
    keypoints: Optional[np.ndarray] = None


@dataclass(frozen=True, eq=False)
class Difference:
    """How one image's detections differ.

    Attributes:
        expected, found, matched: numbers of detections.
        missing, extra: scores of the expected, and of the found, without a counterpart, best first.
        boxes_px: (matched,) float, largest difference of a coordinate of each matched pair.
        box_px, score: largest difference among the matched, 0 without any; NaN where a value is NaN.
        mask: share of differing mask pixels among the matched; None without masks.
        mask_px: number of differing mask pixels among the matched.
        mask_size_px: number of pixels, n * H * W, of the matched masks.
        worst_missing, worst_extra, worst_box, worst_score, worst_mask: where each kind of difference is
            largest, in words; empty where there is none.
        not_finite: the first detection with NaN or an infinity, in words; empty where there is none.
        keypoint_px: largest difference of a key point's coordinate among the matched; None without key points.
        worst_keypoint: where that is, in words.
    """

    expected: int
    found: int
    matched: int
    missing: tuple[float, ...]
    extra: tuple[float, ...]
    boxes_px: np.ndarray
    box_px: float
    score: float
    mask: Optional[float]
    mask_px: int
    mask_size_px: int
    worst_missing: str
    worst_extra: str
    worst_box: str
    worst_score: str
    worst_mask: str
    not_finite: str
    keypoint_px: Optional[float] = None
    worst_keypoint: str = ""

    @property
    def worst(self) -> str:
        """The first of a missing detection, an extra one and the largest box difference, in words."""
        return self.worst_missing or self.worst_extra or self.worst_box

    def within(self, tolerance: Tolerance) -> bool:
        """Return whether every detection has its counterpart, as close as the tolerance asks."""
        return not self.violations(tolerance)

    def violations(self, tolerance: Tolerance) -> list[str]:
        """Return what is beyond the tolerance, in words. NaN always is."""
        mask_agrees = self.mask is None or self.mask <= tolerance.mask or self.mask_px <= tolerance.mask_px
        checks = (
            (not self.not_finite, self.not_finite),
            (all(score < tolerance.min_score for score in self.missing), self.worst_missing),
            (all(score < tolerance.min_score for score in self.extra), self.worst_extra),
            (self.box_px <= tolerance.box_px, f"box {self.box_px:.3g} px: {self.worst_box}"),
            (self.score <= tolerance.score, f"score {self.score:.2g}: {self.worst_score}"),
            (mask_agrees, f"masks: {self.worst_mask}"),
            (
                self.keypoint_px is None or self.keypoint_px <= tolerance.box_px,
                f"key point {self.keypoint_px or 0:.3g} px: {self.worst_keypoint}",
            ),
        )
        return [words for agrees, words in checks if not agrees]


def match_detections(expected: DetectionArrays, found: DetectionArrays) -> list[tuple[int, int]]:
    """Pair detections of the same label, closest boxes first, up to ``MATCH_LIMIT_PX`` apart.

    Returns:
        (index in expected, index in found), each index at most once, ordered by the first. A box with NaN has
        no counterpart.
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
    missing, extra = _unmatched(expected, left), _unmatched(found, right)
    masks = _mask_differences(expected, found, pairs)
    different = int(masks[:, 0].sum())
    has_masks = expected.masks is not None and found.masks is not None
    points = _keypoint_differences(expected, found, pairs)
    return Difference(
        expected=len(expected.boxes),
        found=len(found.boxes),
        matched=len(pairs),
        missing=tuple(float(expected.scores[i]) for i in missing),
        extra=tuple(float(found.scores[j]) for j in extra),
        boxes_px=boxes.astype(float),
        box_px=float(boxes.max(initial=0.0)),
        score=float(scores.max(initial=0.0)),
        mask=different / max(int(masks[:, 1].sum()), 1) if has_masks else None,
        mask_px=different,
        mask_size_px=int(masks[:, 2].sum()),
        worst_missing=f"no counterpart of expected {_described(expected, missing[0])}" if missing else "",
        worst_extra=f"no counterpart of found {_described(found, extra[0])}" if extra else "",
        worst_box=_worst_pair(expected, found, pairs, boxes),
        worst_score=_worst_pair(expected, found, pairs, scores),
        worst_mask=_worst_mask(expected, found, pairs, masks),
        not_finite=_not_finite("expected", expected) or _not_finite("found", found),
        keypoint_px=None if points is None else float(points.max(initial=0.0)),
        worst_keypoint="" if points is None else _worst_pair(expected, found, pairs, points),
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


def _unmatched(detections: DetectionArrays, matched: Sequence[int]) -> list[int]:
    """Return the other detections' indices, best score first, NaN before all."""
    others = sorted(set(range(len(detections.boxes))) - set(matched))
    return sorted(others, key=lambda i: -np.nan_to_num(detections.scores[i], nan=np.inf))


def _mask_differences(
    expected: DetectionArrays, found: DetectionArrays, pairs: Sequence[tuple[int, int]]
) -> np.ndarray:
    """Return (pairs, 3) int64: pixels in which the pair's masks differ, that either has, and H * W."""
    counts = np.zeros((len(pairs), 3), np.int64)
    if expected.masks is None or found.masks is None:
        return counts
    for row, (i, j) in zip(counts, pairs):
        a, b = expected.masks[i].astype(bool, copy=False), found.masks[j].astype(bool, copy=False)
        row[:] = np.count_nonzero(a ^ b), np.count_nonzero(a | b), a.size
    return counts


def _keypoint_differences(
    expected: DetectionArrays, found: DetectionArrays, pairs: Sequence[tuple[int, int]]
) -> Optional[np.ndarray]:
    """Return (pairs,) the largest difference of a coordinate, px; None where a side has no key points."""
    if expected.keypoints is None or found.keypoints is None:
        return None
    left, right = [i for i, _ in pairs], [j for _, j in pairs]
    apart = np.abs(expected.keypoints[left, :, :2] - found.keypoints[right, :, :2])
    return apart.max(axis=(1, 2), initial=0.0)


def _worst_pair(
    expected: DetectionArrays,
    found: DetectionArrays,
    pairs: Sequence[tuple[int, int]],
    differences: np.ndarray,
) -> str:
    if not pairs:
        return ""
    i, j = pairs[int(differences.argmax())]  # the first NaN, if there is one
    return f"expected {_described(expected, i)}, found {_described(found, j)}"


def _worst_mask(
    expected: DetectionArrays, found: DetectionArrays, pairs: Sequence[tuple[int, int]], masks: np.ndarray
) -> str:
    different = masks[:, 0]
    if not different.any():
        return ""
    worst = int(different.argmax())
    words = _worst_pair(expected, found, pairs, different)
    return f"{different[worst]} of {masks[worst, 1]} px differ: {words}"


def _not_finite(side: str, detections: DetectionArrays) -> str:
    finite = np.isfinite(detections.boxes).all(axis=1) & np.isfinite(detections.scores)
    if finite.all():
        return ""
    return f"not finite: {side} {_described(detections, int(finite.argmin()))}"


def _described(detections: DetectionArrays, index: int) -> str:
    box = ", ".join(f"{v:.3f}" for v in detections.boxes[index])
    return f"#{index} label {detections.labels[index]} score {detections.scores[index]:.6f} box [{box}]"
