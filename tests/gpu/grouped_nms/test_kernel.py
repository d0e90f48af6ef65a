"""The kernel of ``plugins/grouped_nms`` against NumPy and torch, without TensorRT."""

import ctypes

import numpy as np
import pytest

from tests.gpu import oracles
from tests.gpu.grouped_nms.kernel import grouped_nms
from tests.gpu.kernel_library import load_library
from tests.gpu.kernel_testing import MARKS, cuda, torch

pytestmark = MARKS


def random_boxes(rng: np.random.Generator, num_boxes: int, *, extent: float, whole: bool) -> np.ndarray:
    boxes = rng.uniform(0, extent, (num_boxes, 4))
    boxes[:, 2:] = boxes[:, :2] + boxes[:, 2:] * 0.6
    boxes = np.round(boxes) if whole else boxes  # whole numbers: many exact IoUs, boxes without area
    if rng.random() < 0.2:
        boxes[num_boxes // 2 :] = boxes[: num_boxes - num_boxes // 2]
    if rng.random() < 0.1:
        boxes -= extent / 2
    return boxes.astype(np.float32)


def random_scores(rng: np.random.Generator, num_boxes: int) -> np.ndarray:
    scores = rng.random(num_boxes).astype(np.float32)
    if rng.random() < 0.5:
        scores = np.round(scores, 1) - np.float32(0.5)  # ties, and zero of either sign
    if rng.random() < 0.2:
        scores[rng.random(num_boxes) < 0.2] = np.nan
    return scores


def check_grouped_nms(boxes, scores, groups, **settings) -> None:
    indices, counts = grouped_nms(cuda(boxes), cuda(scores), cuda(groups), **settings)
    indices, counts = indices.cpu().numpy(), counts.cpu().numpy()
    for b in range(len(boxes)):
        own_groups = groups[b if len(groups) > 1 else 0]
        expected = oracles.grouped_nms_oracle(boxes[b], scores[b], own_groups, **settings)
        assert counts[b] == len(expected), settings
        padding = [-1] * (settings["max_output"] - len(expected))
        assert indices[b].tolist() == expected + padding, settings


@pytest.mark.parametrize("shift_groups", [True, False])
def test_grouped_nms_keeps_what_greedy_nms_keeps(shift_groups: bool) -> None:
    rng = np.random.default_rng(int(shift_groups))
    num_cases = 0
    while num_cases < 1000:
        batch, num_boxes = int(rng.integers(1, 9)), int(rng.choice([0, 1, 2, 31, 33, 60, 200, 600, 1100]))
        extent, whole = float(rng.choice([20, 60, 1300])), bool(rng.random() < 0.5)
        boxes = np.stack([random_boxes(rng, num_boxes, extent=extent, whole=whole) for _ in range(batch)])
        scores = np.stack([random_scores(rng, num_boxes) for _ in range(batch)])
        ids = [[0], range(5), range(80), [-7, 0, 3, 2**31 - 1]][int(rng.integers(0, 4))]
        groups = rng.choice(list(ids), (1 if rng.random() < 0.3 else batch, num_boxes)).astype(np.int32)
        if shift_groups and np.abs(groups).max(initial=0) > 100:
            groups %= 50
        check_grouped_nms(
            boxes.reshape(batch, num_boxes, 4),
            scores,
            groups,
            iou_threshold=float(rng.choice([0.0, 0.3, 0.5, 0.7, 1.0])),
            score_threshold=float(rng.choice([-np.inf, 0.0, 0.3, 2.0])),
            max_output=int(rng.choice([1, 7, 100, 1000])),
            shift_groups=shift_groups,
        )
        num_cases += batch


@pytest.mark.parametrize(
    ("num_boxes", "num_groups", "max_output"),
    [(4800, 5, 1000), (4800, 1, 4800), (5000, 5000, 100), (20000, 1, 300), (80000, 80, 100)],
)
def test_grouped_nms_of_many_candidates(num_boxes: int, num_groups: int, max_output: int) -> None:
    rng = np.random.default_rng(num_boxes)
    boxes = np.stack([random_boxes(rng, num_boxes, extent=1200, whole=False) for _ in range(2)])
    scores = rng.random((2, num_boxes)).astype(np.float32)
    groups = rng.integers(0, num_groups, (1, num_boxes)).astype(np.int32)
    settings = {"iou_threshold": 0.7, "score_threshold": -1.0, "shift_groups": True}
    check_grouped_nms(boxes, scores, groups, max_output=max_output, **settings)


UNIT, FAR, NAN, INF = [0.0, 0.0, 10.0, 10.0], [50.0, 50.0, 60.0, 60.0], float("nan"), float("inf")


@pytest.mark.parametrize(
    ("boxes", "scores", "kept"),
    [
        ([], [], []),
        ([UNIT], [0.5], [0]),
        ([UNIT, UNIT], [0.5, 0.5], [0]),  # a tie: the lower index
        ([UNIT, UNIT], [0.4, 0.5], [1]),
        ([UNIT, FAR], [0.4, 0.5], [1, 0]),
        ([UNIT, [0, 0, 10, 5]], [0.9, 0.8], [0, 1]),  # IoU is exactly the threshold: kept
        ([UNIT, UNIT], [NAN, 0.1], [1]),
        ([UNIT, FAR], [NAN, NAN], []),
        ([UNIT, FAR], [-0.0, 0.0], [0, 1]),
        ([[5, 5, 5, 5], [5, 5, 5, 5]], [0.9, 0.8], [0, 1]),  # 0 / 0
        ([[NAN, 0, 10, 10], UNIT, UNIT], [0.9, 0.8, 0.7], [0, 1]),
        ([[-INF, -INF, INF, INF], UNIT], [0.9, 0.8], [0, 1]),
    ],
)
def test_grouped_nms_of_small_cases(boxes: list, scores: list, kept: list) -> None:
    boxes, scores = np.array(boxes, np.float32).reshape(1, -1, 4), np.array(scores, np.float32)[None]
    groups = np.zeros(scores.shape, np.int32)
    settings = {"iou_threshold": 0.5, "score_threshold": -1.0, "max_output": 4, "shift_groups": False}
    indices, count = grouped_nms(cuda(boxes), cuda(scores), cuda(groups), **settings)
    assert (indices[0].tolist(), count.tolist()) == (kept + [-1] * (4 - len(kept)), [len(kept)])


def test_grouped_nms_of_an_empty_batch() -> None:
    indices, count = grouped_nms(
        torch.empty((0, 3, 4), device="cuda"),
        torch.empty((0, 3), device="cuda"),
        torch.empty((1, 3), dtype=torch.int32, device="cuda"),
        iou_threshold=0.5,
        score_threshold=0.0,
        max_output=4,
    )
    assert (indices.shape, count.shape) == ((0, 4), (0,))


def test_grouped_nms_is_captured_in_a_graph() -> None:
    rng = np.random.default_rng(9)
    boxes = cuda(random_boxes(rng, 500, extent=100, whole=False)[None])
    scores, groups = (
        torch.rand((1, 500), device="cuda"),
        torch.zeros((1, 500), dtype=torch.int32, device="cuda"),
    )
    settings = {"iou_threshold": 0.5, "score_threshold": 0.2, "max_output": 100}
    grouped_nms(boxes, scores, groups, **settings)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = grouped_nms(boxes, scores, groups, **settings)
    for _ in range(3):
        scores.copy_(torch.rand((1, 500), device="cuda"))
        graph.replay()
        eager = grouped_nms(boxes, scores, groups, **settings)
        assert torch.equal(captured[0], eager[0])
        assert torch.equal(captured[1], eager[1])


def test_scratch_for_the_most_boxes_is_enough_for_fewer() -> None:
    """An engine reserves it for the largest shape of its profile."""
    size = load_library().maskrcnn_grouped_nms_workspace_size
    size.restype = ctypes.c_size_t
    counts = [0, 1, 511, 512, 4741, 16383, 16384, 16385, 20_000, 80_000, 200_000]
    for batch in (1, 3):
        found = [size(batch, count) for count in counts]
        assert found == sorted(found)
        assert found[1] > 0
