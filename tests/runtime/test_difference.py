"""Matching and comparing detections."""

import numpy as np
import pytest

from runtime.difference import DetectionArrays, Tolerance, compare, compare_image, match_detections

TOLERANCE = Tolerance()


def arrays(*rows: tuple, masks: object = None) -> DetectionArrays:
    """Rows of (x1, y1, x2, y2, score, label)."""
    table = np.array(rows, np.float32).reshape(-1, 6)
    return DetectionArrays(table[:, :4], table[:, 4], table[:, 5].astype(int), masks)


A = (0, 0, 10, 10, 0.9, 1)
B = (50, 50, 80, 90, 0.8, 2)
NEAR_A = (0, 0, 10, 12, 0.7, 1)


def test_equal_detections_in_another_order():
    difference = compare_image(arrays(A, B), arrays(B, A))
    assert (difference.matched, difference.box_px, difference.score, difference.mask) == (2, 0, 0, None)
    assert difference.within(TOLERANCE)


CASES = {
    "both empty": ((), (), 0, True),
    "expected empty": ((), (A,), 0, False),
    "found empty": ((A,), (), 0, False),
    "another label": ((A,), ((0, 0, 10, 10, 0.9, 2),), 0, False),
    "too far away": ((A,), ((0, 0, 10, 21, 0.9, 1),), 0, False),
    "one more": ((A,), (A, B), 1, False),
    "a little moved": ((A,), ((0, 0, 10.005, 10, 0.9, 1),), 1, True),
    "moved": ((A,), ((0, 0, 10.02, 10, 0.9, 1),), 1, False),
    "another score": ((A,), ((0, 0, 10, 10, 0.8998, 1),), 1, False),
}


@pytest.mark.parametrize("name", CASES)
def test_cases(name):
    expected, found, matched, within = CASES[name]
    difference = compare_image(arrays(*expected), arrays(*found))
    assert difference.matched == matched
    assert difference.within(TOLERANCE) == within
    assert bool(difference.worst) == bool(expected or found)


def test_the_closest_pair_first():
    assert match_detections(arrays(NEAR_A, A), arrays(A, NEAR_A)) == [(0, 1), (1, 0)]


def test_nan_matches_nothing():
    assert match_detections(arrays((np.nan, 0, 1, 1, 0.5, 0)), arrays((np.nan, 0, 1, 1, 0.5, 0))) == []


def test_the_worst_is_described():
    worst = compare_image(arrays(A, B), arrays(A, (50, 50, 80, 91, 0.8, 2))).worst
    assert worst.startswith(
        "expected #1 label 2 score 0.800000 box [50.000, 50.000, 80.000, 90.000], found #1"
    )
    assert "no counterpart of expected #1" in compare_image(arrays(A, B), arrays(A)).worst
    assert "no counterpart of found #1" in compare_image(arrays(A), arrays(A, B)).worst


def test_masks():
    mask = np.zeros((1, 100, 200), bool)
    mask[0, :50] = True
    other = mask.copy()
    other[0, 50, :5] = True
    difference = compare_image(arrays(A, masks=mask), arrays(A, masks=other))
    assert (difference.mask_px, difference.mask) == (5, 5 / 10005)
    assert not difference.within(TOLERANCE)
    assert difference.within(Tolerance(mask=1e-3))
    other[0, 50, 4] = False  # four pixels may differ in any case
    assert compare_image(arrays(A, masks=mask), arrays(A, masks=other)).within(TOLERANCE)


def test_different_numbers_of_images():
    with pytest.raises(ValueError, match="expected the same number of images, found 1 and 2"):
        compare([arrays(A)], [arrays(A), arrays(B)])
