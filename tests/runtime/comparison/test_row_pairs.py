"""Rows of two networks that order them by scores."""

import numpy as np
import pytest

from runtime.comparison.row_pairs import pair_rows

LENGTHS = [6, 4]


def rows(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    boxes = rng.uniform(0, 800, (2, 10, 4)).astype(np.float32)
    return boxes, rng.uniform(0.2, 1, (2, 10)).astype(np.float32)


def reordered(found: tuple, order: list[int]) -> tuple[np.ndarray, np.ndarray]:
    return found[0][:, order], found[1][:, order]


def test_rows_come_back_in_the_order_of_the_expected():
    expected = rows()
    boxes, scores = pair_rows(expected, reordered(expected, [3, 5, 0, 1, 2, 4, 9, 8, 7, 6]), LENGTHS, 1e-3)
    np.testing.assert_allclose(boxes, expected[0], rtol=1e-6)
    np.testing.assert_array_equal(scores, expected[1])


def test_a_row_of_another_level_is_no_partner():
    expected = rows()
    swapped = reordered(expected, [6, 1, 2, 3, 4, 5, 0, 7, 8, 9])
    expected[1][:, [0, 6]] = 1  # nobody's lowest score
    boxes, _ = pair_rows(expected, swapped, LENGTHS, 1e-3)
    assert (np.abs(boxes - expected[0]).max(axis=2) > 1).tolist() == [[i in (0, 6) for i in range(10)]] * 2


def test_the_lowest_scores_row_may_be_another():
    boxes, scores = rows()
    scores[:, 5] = 0.1
    other = boxes.copy()
    other[:, 5] += 50
    found = pair_rows((boxes, scores), (other, scores), LENGTHS, 1e-3)
    np.testing.assert_allclose(found[0], boxes, rtol=1e-6)
    other[:, 4] += 50
    found = pair_rows((boxes, scores), (other, scores), LENGTHS, 1e-3)
    assert (np.abs(found[0] - boxes).max(axis=2) > 1).tolist() == [[i == 4 for i in range(10)]] * 2


def test_a_score_that_differs_is_shown():
    boxes, scores = rows()
    scores[:, 2] = 0.95
    other = scores.copy()
    other[:, 2] -= 0.1
    found = pair_rows((boxes, scores), (boxes, other), LENGTHS, 1e-3)
    assert np.abs(found[1] - scores).max() == pytest.approx(0.1, rel=1e-3)


def test_nan_is_equal_to_nan_alone():
    boxes, scores = rows()
    scores[:, 1] = 0.9
    boxes[:, 1] = np.nan
    found = pair_rows((boxes, scores), (boxes, scores), LENGTHS, 1e-3)
    np.testing.assert_allclose(found[0], boxes, rtol=1e-6)
    other = boxes.copy()
    other[:, 1] = 0
    found = pair_rows((boxes, scores), (other, scores), LENGTHS, 1e-3)
    assert not np.isnan(found[0][:, 1]).any()


def test_other_shapes_are_left_alone():
    expected, found = rows(), (np.zeros((2, 9, 4), np.float32), np.zeros((2, 9), np.float32))
    assert pair_rows(expected, found, LENGTHS, 1e-3) is found
    assert pair_rows(expected, expected, [6, 3], 1e-3) is expected


def test_rows_that_are_no_candidates_do_not_matter():
    """Their boxes mean nothing, and their scores are not where a level ends."""
    boxes, scores = rows()
    scores[:, 5] = 0.1
    scores[:, 3] = -1
    other = boxes.copy()
    other[:, [3, 5]] += 50
    found = pair_rows((boxes, scores), (other, scores), LENGTHS, 1e-3)
    np.testing.assert_allclose(found[0], boxes, rtol=1e-6)
