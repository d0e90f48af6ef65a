"""Rows that two networks ordered by scores: which of one are which of the other."""

from collections.abc import Sequence

import numpy as np

_CHUNK = 256  # rows compared with all others at once


def pair_rows(
    expected: tuple[np.ndarray, np.ndarray],
    found: tuple[np.ndarray, np.ndarray],
    lengths: Sequence[int],
    tolerance: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Put rows into the order of the expected ones, each that which is nearest in box and score.

    Where scores are equal but for rounding, two networks order rows differently, and of those at the end of a level
    each takes others. The former is undone, and the latter left out: an expected row without a partner whose score is
    its level's lowest, within the tolerance, is returned in the place of what was found. So is one of a negative score,
    which is no candidate.

    Args:
        expected, found: boxes (B, R, 4), and scores (B, R).
        lengths: rows of each level; a row's partner is one of its level.
        tolerance: of scores, and of coordinates relative to the largest.

    Returns:
        Boxes and scores as found, reordered, float32. What was found, unchanged, if shapes differ.
    """
    (boxes, scores), (other_boxes, other_scores) = expected, found
    if (
        boxes.shape != other_boxes.shape
        or scores.shape != other_scores.shape
        or sum(lengths) != scores.shape[1]
    ):
        return found
    scale = float(np.abs(boxes, where=np.isfinite(boxes), out=np.zeros_like(boxes)).max(initial=0)) or 1.0
    a = np.concatenate([boxes / scale, scores[..., None]], axis=2).astype(np.float32)
    b = np.concatenate([other_boxes / scale, other_scores[..., None]], axis=2).astype(np.float32)
    result = b.copy()
    starts = np.cumsum([0, *lengths])
    for image in range(len(a)):
        for start, end in zip(starts, starts[1:]):
            if end > start:
                result[image, start:end] = _paired(a[image, start:end], b[image, start:end], tolerance)
    return result[..., :4] * np.float32(scale), result[..., 4]


def _paired(a: np.ndarray, b: np.ndarray, tolerance: float) -> np.ndarray:
    """Do so for the rows (R, 5) of one level."""
    result = np.empty_like(a)
    # Rows of boxes that are too small have negative scores, and say nothing about where the level ends.
    last = max(scores.min(where=scores >= 0, initial=1) for scores in (a[:, 4], b[:, 4])) + tolerance
    for start in range(0, len(a), _CHUNK):
        rows = a[start : start + _CHUNK]
        with np.errstate(invalid="ignore"):
            apart = np.abs(rows[:, None] - b)
        apart[(rows[:, None] == b) | (np.isnan(rows[:, None]) & np.isnan(b))] = 0
        apart = np.nan_to_num(apart, nan=np.inf).max(axis=2)
        nearest = apart.argmin(axis=1)
        lost = (apart.min(axis=1) > tolerance) & (rows[:, 4] <= last)
        result[start : start + _CHUNK] = np.where(lost[:, None], rows, b[nearest])
    return result
