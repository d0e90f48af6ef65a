"""Matching and comparing detections."""

import numpy as np
import pytest

from runtime.comparison.difference import DetectionArrays, Tolerance, compare, compare_image, match_detections

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


MIN_SCORE_CASES = {
    "a faint one is missing": ((A, (50, 50, 80, 90, 0.06, 2)), (A,), True),
    "a faint one is extra": ((A,), (A, (50, 50, 80, 90, 0.06, 2)), True),
    "a clear one is missing": ((A, B), (A,), False),
    "a faint and a clear one are missing": ((A, B, (20, 0, 30, 9, 0.06, 2)), (A,), False),
    "of exactly the score": ((A, (50, 50, 80, 90, 0.25, 2)), (A,), False),
    "its score is NaN": ((A,), (A, (50, 50, 80, 90, np.nan, 2)), False),
    "matched ones are held to the tolerance all the same": (
        ((0, 0, 10, 10, 0.06, 1),),
        ((0, 0, 10, 11, 0.06, 1),),
        False,
    ),
}


@pytest.mark.parametrize("name", MIN_SCORE_CASES)
def test_faint_detections_need_no_counterpart(name):
    expected, found, within = MIN_SCORE_CASES[name]
    difference = compare_image(arrays(*expected), arrays(*found))
    assert difference.within(Tolerance(min_score=0.25)) == within
    assert not difference.within(TOLERANCE)


def test_unmatched_scores_are_kept_best_first():
    faint, clear = (20, 0, 30, 9, 0.25, 2), (50, 50, 80, 90, 0.75, 2)
    assert compare_image(arrays(faint, A, clear), arrays(A)).missing == (0.75, 0.25)
    assert compare_image(arrays(A), arrays(faint, A, clear)).extra == (0.75, 0.25)


def test_what_is_beyond_the_tolerance_is_said_in_words():
    expected, found = arrays(A, B), arrays(A, (50, 50, 80, 91, 0.5, 2), (20, 0, 30, 9, 0.25, 3))
    extra, box, score = compare_image(expected, found).violations(TOLERANCE)
    assert extra.startswith("no counterpart of found #2 label 3 score 0.25")
    assert box.startswith("box 1 px: expected #1 label 2")
    assert score.startswith("score 0.3: expected #1 label 2 score 0.8")


@pytest.mark.parametrize("column", [0, 4])
def test_nan_is_named(column):
    row = list(A)
    row[column] = np.nan
    for expected, found in ((arrays(A), arrays(row)), (arrays(row), arrays(row))):
        difference = compare_image(expected, found)
        loose = Tolerance(box_px=np.inf, score=np.inf, min_score=1.0)
        assert "nan" in " ".join(difference.violations(loose))


def test_masks_may_be_made_one_at_a_time():
    class Masks(list):
        def __getitem__(self, index: int) -> np.ndarray:
            mask = np.zeros((20, 30), bool)
            mask[: super().__getitem__(index)] = True
            return mask

    difference = compare_image(arrays(A, B, masks=Masks([5, 7])), arrays(B, A, masks=Masks([8, 5])))
    assert (difference.mask_px, difference.mask_size_px, difference.mask) == (30, 1200, 30 / 390)
    assert difference.worst_mask.startswith("30 of 240 px differ: expected #1 label 2")
