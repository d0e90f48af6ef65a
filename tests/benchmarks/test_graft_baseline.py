"""``benchmarks.graft_baseline`` compares detections by where they are."""

import numpy as np
import pytest

from benchmarks.graft_baseline import Decoded, _same

SIZE = (40, 60)
DETS = np.array(
    [[[1, 2, 11, 12, 0.9], [20, 5, 31, 17, 0.8], [21, 6, 32, 18, 0.795], [0, 0, 0, 0, 0]]], np.float32
)
COUNTS = np.array([3])


def decoded(order: tuple[int, ...] = (0, 1, 2), changes: tuple = ()) -> list[Decoded]:
    """What was found in the one image: ``DETS`` in an order, then changed at (row, column) by so much."""
    rows = DETS[0].copy()
    for row, column, change in changes:
        rows[row, column] += change
    rows = rows[list(order)]
    return [(rows[:, :4], rows[:, 4], np.zeros((len(rows), 5, 2), np.float32))]


def same(found: list[Decoded]) -> int:
    return _same(found, COUNTS, DETS, SIZE)


@pytest.mark.parametrize("order", [(0, 1, 2), (0, 2, 1), (2, 1, 0)])
def test_order_says_nothing(order: tuple[int, ...]) -> None:
    assert same(decoded(order)) == 3
    assert same(decoded(order, ((1, 0, 0.25), (2, 4, -0.005)))) == 3


def test_edges_are_those_of_the_image() -> None:
    boxes, scores, keypoints = decoded()[0]
    dets = DETS.copy()
    boxes[0], dets[0, 0, :4] = (-3, -3, 70, 50), (0, 0, 60, 40)
    assert _same([(boxes, scores, keypoints)], COUNTS, dets, SIZE) == 3


@pytest.mark.parametrize(
    ("order", "changes", "message"),
    [
        ((0, 1, 0), (), "expected corners"),  # the second is near the third too, but is used once
        ((0, 1, 2), ((0, 2, 1.5),), "expected corners"),
        ((0, 1, 2), ((0, 4, 0.02),), "expected score"),
        ((0, 1, 2), ((1, 3, np.nan),), "expected corners"),
        ((0, 1, 2), ((1, 4, np.nan),), "expected score"),
        ((0, 1), (), "expected 3 detections, found 2"),
    ],
)
def test_what_differs_is_said(order: tuple[int, ...], changes: tuple, message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        same(decoded(order, changes))


def test_nothing_to_compare_is_refused() -> None:
    empty = (np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros((0, 5, 2), np.float32))
    with pytest.raises(RuntimeError, match="found none"):
        _same([empty], np.array([0]), DETS, SIZE)
