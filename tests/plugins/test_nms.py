"""plugins._reference.nms and grouped_nms against greedy NMS written in NumPy."""

import numpy as np
import pytest

from plugins import _reference

NUM_RANDOM_CASES = 1000


def nms_oracle(boxes: np.ndarray, scores: np.ndarray, iou_threshold: float, offset: int) -> list[int]:
    """Greedy NMS in float32, as mmcv computes it, one row of the IoU matrix at a time."""
    x1, y1, x2, y2 = boxes.T
    one = np.float32(offset)
    areas = (x2 - x1 + one) * (y2 - y1 + one)
    # NumPy sorts NaN last; a stable sort leaves ties in their order.
    alive = np.argsort(-scores, kind="stable")
    kept = []
    while len(alive):
        i, rest = alive[0], alive[1:]
        kept.append(int(i))
        width = np.minimum(x2[i], x2[rest]) - np.maximum(x1[i], x1[rest]) + one
        height = np.minimum(y2[i], y2[rest]) - np.maximum(y1[i], y1[rest]) + one
        intersection = np.maximum(width, 0) * np.maximum(height, 0)
        with np.errstate(all="ignore"):
            iou = intersection / (areas[i] + areas[rest] - intersection)
        alive = rest[~(iou > np.float32(iou_threshold))]
    return kept


def random_boxes(rng: np.random.Generator, num_boxes: int, *, whole: bool = False) -> np.ndarray:
    boxes = rng.uniform(0, 60, (num_boxes, 4))
    boxes[:, 2:] = boxes[:, :2] + boxes[:, 2:] * 0.6
    boxes = np.round(boxes) if whole else boxes  # whole numbers: many exact IoUs, boxes without area
    boxes[num_boxes // 2 :] = (
        boxes[: num_boxes - num_boxes // 2] if rng.random() < 0.2 else boxes[num_boxes // 2 :]
    )
    return boxes.astype(np.float32)


def random_scores(rng: np.random.Generator, shape: int | tuple[int, ...]) -> np.ndarray:
    scores = rng.random(shape).astype(np.float32)
    if rng.random() < 0.5:
        scores = np.round(scores, 1)  # ties
    if rng.random() < 0.2:
        scores[rng.random(shape) < 0.2] = np.nan
    return scores


@pytest.mark.parametrize("offset", [0, 1])
def test_nms_keeps_what_the_oracle_keeps(offset: int) -> None:
    rng = np.random.default_rng(offset)
    for case in range(NUM_RANDOM_CASES):
        num_boxes = int(rng.integers(0, 50))
        boxes, scores = random_boxes(rng, num_boxes, whole=case % 2 == 0), random_scores(rng, num_boxes)
        threshold = float(rng.choice([0.0, 0.3, 0.5, 0.7, 1.0]))
        kept = _reference.nms(boxes, scores, threshold, offset)
        assert kept.dtype == np.int64
        assert kept.tolist() == nms_oracle(boxes, scores, threshold, offset), (case, threshold)


UNIT = [0.0, 0.0, 10.0, 10.0]
FAR = [50.0, 50.0, 60.0, 60.0]
NAN = float("nan")


@pytest.mark.parametrize(
    ("boxes", "scores", "kept"),
    [
        ([], [], []),
        ([UNIT], [0.5], [0]),
        ([UNIT, UNIT], [0.5, 0.5], [0]),  # a tie: the lower index
        ([UNIT, UNIT], [0.4, 0.5], [1]),
        ([UNIT, FAR], [0.4, 0.5], [1, 0]),
        ([UNIT, [0, 0, 10, 5]], [0.9, 0.8], [0, 1]),  # IoU is exactly the threshold: kept
        ([UNIT, UNIT], [NAN, 0.1], [1]),  # NaN sorts last
        ([UNIT, FAR], [NAN, NAN], [0, 1]),
        ([UNIT, UNIT, FAR], [NAN, NAN, -np.inf], [2, 0]),
        ([[5, 5, 5, 5], [5, 5, 5, 5]], [0.9, 0.8], [0, 1]),  # 0 / 0
        ([[NAN, 0, 10, 10], UNIT], [0.9, 0.8], [0, 1]),
        ([[-np.inf, -np.inf, np.inf, np.inf], UNIT], [0.9, 0.8], [0, 1]),
    ],
)
def test_nms_of_small_cases(boxes: list, scores: list, kept: list[int]) -> None:
    boxes = np.array(boxes, dtype=np.float32).reshape(-1, 4)
    assert _reference.nms(boxes, np.array(scores, dtype=np.float32), 0.5, 0).tolist() == kept


def test_nms_with_offset_counts_the_last_pixel() -> None:
    boxes = np.array(
        [[0, 0, 1, 1], [0, 0, 1, 0]], dtype=np.float32
    )  # 4 px and 2 px: IoU 0.5; without offset 0
    scores = np.array([0.9, 0.8], dtype=np.float32)
    assert _reference.nms(boxes, scores, 0.4, 1).tolist() == [0]
    assert _reference.nms(boxes, scores, 0.4, 0).tolist() == [0, 1]


def grouped_oracle(boxes, scores, groups, iou_threshold, score_threshold, max_output) -> list[int]:
    """NMS of one group after the other, then one sort of everything kept."""
    kept = []
    for group in np.unique(groups):
        members = np.flatnonzero((groups == group) & (scores > np.float32(score_threshold)))
        kept += members[nms_oracle(boxes[members], scores[members], iou_threshold, 0)].tolist()
    return sorted(kept, key=lambda i: (-scores[i], i))[:max_output]


def test_grouped_nms_keeps_what_the_oracle_keeps() -> None:
    rng = np.random.default_rng(2)
    for case in range(NUM_RANDOM_CASES):
        batch, num_boxes, max_output = (
            int(rng.integers(low, high)) for low, high in ((1, 4), (0, 60), (1, 70))
        )
        boxes = np.stack([random_boxes(rng, num_boxes, whole=case % 2 == 0) for _ in range(batch)])
        scores = random_scores(rng, (batch, num_boxes))
        groups = rng.choice([-7, 0, 3, 2**31 - 1], (batch, num_boxes)).astype(np.int32)
        thresholds = float(rng.choice([0.3, 0.5, 0.7])), float(rng.choice([-np.inf, 0.0, 0.5, 2.0]))
        indices, counts = _reference.grouped_nms(boxes, scores, groups, *thresholds, max_output)
        assert (indices.dtype, indices.shape, counts.dtype) == (np.int32, (batch, max_output), np.int32)
        for b in range(batch):
            expected = grouped_oracle(boxes[b], scores[b], groups[b], *thresholds, max_output)
            assert counts[b] == len(expected), case
            assert indices[b].tolist() == expected + [-1] * (max_output - len(expected)), case


def test_grouped_nms_keeps_equal_boxes_of_different_groups() -> None:
    boxes = np.array([[UNIT, UNIT, UNIT], [UNIT, FAR, UNIT]], dtype=np.float32)
    scores = np.array([[0.1, 0.9, 0.9], [NAN, 0.05, 0.5]], dtype=np.float32)
    groups = np.array([[1, 0, 1], [0, 0, 0]], dtype=np.int32)
    indices, counts = _reference.grouped_nms(boxes, scores, groups, 0.5, 0.05, 4)
    assert indices.tolist() == [[1, 2, -1, -1], [2, -1, -1, -1]]  # 0.05 is not above the threshold
    assert counts.tolist() == [2, 1]


def test_grouped_nms_stops_at_max_output() -> None:
    boxes = np.array([[UNIT, FAR]], dtype=np.float32)
    args = (boxes, np.array([[0.5, 0.9]], np.float32), np.zeros((1, 2), np.int32), 0.5, 0.0)
    indices, counts = _reference.grouped_nms(*args, 1)
    assert (indices.tolist(), counts.tolist()) == ([[1]], [1])


F4, F1, I1 = np.zeros((1, 3, 4), np.float32), np.zeros((1, 3), np.float32), np.zeros((1, 3), np.int32)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: _reference.nms(np.zeros((2, 4)), F1[0], 0.5, 0),
            r"boxes: .*float32.* found float64 \(2, 4\)",
        ),
        (lambda: _reference.nms(F4[0], F1[0, :2], 0.5, 0), r"scores: .*\(3,\), found float32 \(2,\)"),
        (lambda: _reference.nms(F4[0, :, ::2], F1[0], 0.5, 0), r"boxes: .*\(\*, 4\), found float32 \(3, 2\)"),
        (
            lambda: _reference.nms(np.asfortranarray(np.ones((3, 4), np.float32)), F1[0], 0.5, 0),
            "ascontiguousarray",
        ),
        (lambda: _reference.nms(F4[0], F1[0], 0.5, 2), "offset: expected 0 or 1, found 2"),
        (
            lambda: _reference.grouped_nms(F4, F1, I1.astype(np.int64), 0.5, 0.0, 5),
            "groups: .*int32.*found int64",
        ),
        (lambda: _reference.grouped_nms(F4, F1, I1, 0.5, 0.0, 0), "max_output: expected at least 1, found 0"),
    ],
)
def test_wrong_arguments_are_named(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
