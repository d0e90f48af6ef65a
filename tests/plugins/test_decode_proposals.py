"""plugins._reference.decode_proposals against NumPy and mmdet's own decoder."""

import numpy as np
import pytest
import torch
from mmdet.models.task_modules.coders import DeltaXYWHBBoxCoder

from plugins import _reference
from tests.gpu import numpy_oracles
from tests.gpu.decode_proposals.inputs import KINDS, MAX_RATIO, proposals_case

NAN, INF = float("nan"), float("inf")
# Two units in the last place of a coordinate from 1024 to 2048 px: exp may round the other way.
BOX_TOLERANCE = 2.5e-4
# exp, then a sum and a division, each rounded.
SCORE_TOLERANCE = 3e-7


def check(case: dict, *, num_anchors: int, **settings) -> tuple[np.ndarray, np.ndarray]:
    settings = {"max_ratio": MAX_RATIO, **settings}
    boxes, scores = _reference.decode_proposals(**case, num_anchors=num_anchors, **settings)
    assert (boxes.dtype, scores.dtype) == (np.float32, np.float32)
    expected_boxes, expected_scores = numpy_oracles.decode_proposals(**case, **settings)
    np.testing.assert_allclose(scores, expected_scores, rtol=SCORE_TOLERANCE, atol=0)
    np.testing.assert_allclose(boxes, expected_boxes, rtol=0, atol=BOX_TOLERANCE)
    return boxes, scores


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("sizes", "num_anchors", "top"),
    [
        ([(1, 1)], 1, [1]),
        ([(5, 7)], 3, [10]),
        ([(20, 31), (10, 16), (5, 8), (3, 4), (2, 2)], 3, [100, 100, 100, 36, 12]),
        (
            [(20, 31), (10, 16), (5, 8), (3, 4), (2, 2)],
            3,
            [200, 200, 200, 200, 200],
        ),  # the last three have fewer
        ([(1, 3)] * 8, 9, [1, 2, 3, 4, 5, 6, 7, 40]),
        ([(9, 1), (1, 9)], 2, [1, 18]),
    ],
)
def test_levels_of_different_images(kind: str, sizes: list, num_anchors: int, top: list) -> None:
    rng = np.random.default_rng(len(sizes) + num_anchors)
    case = proposals_case(rng, sizes, num_anchors=num_anchors, kind=kind)
    check(case, num_anchors=num_anchors, top=top)


def row_of_anchors(logits: list, *, deltas: float = 0.0) -> dict:
    """One image, one level of one row and one anchor per pixel; anchor i is at x = 100 * i."""
    num = len(logits)
    x = np.arange(num, dtype=np.float32)[:, None] * 100
    return {
        "logits": [np.array(logits, np.float32).reshape(1, 1, 1, num)],
        "deltas": [np.full((1, 4, 1, num), deltas, np.float32)],
        "priors": np.hstack([x, x * 0, x + 50, x * 0 + 20]),
        "image_sizes": np.array([[1000, 1000]], np.float32),
    }


@pytest.mark.parametrize(
    ("logits", "top", "anchors", "scores"),
    [
        ([0], 1, [0], [0.5]),
        ([0, 0, 0, 0], 3, [0, 1, 2], [0.5, 0.5, 0.5]),
        ([-INF, 0, INF], 3, [2, 1, 0], [1, 0.5, 0]),
        ([17, 30, 16.75, 16], 3, [0, 1, 2], [1, 1, 1]),  # saturated: by anchor, not by logit
        ([-INF, -200, -110, 0], 4, [3, 0, 1, 2], [0.5, 0, 0, 0]),
        ([NAN, -INF, 0, NAN], 4, [2, 1, 0, 3], [0.5, 0, NAN, NAN]),  # NaN after -inf
        ([NAN, -INF, 0, NAN], 2, [2, 1], [0.5, 0]),
    ],
)
def test_order(logits: list, top: int, anchors: list, scores: list) -> None:
    case = row_of_anchors(logits)
    found_boxes, found_scores = check(case, num_anchors=1, top=[top])
    np.testing.assert_array_equal(found_scores, [scores])
    np.testing.assert_array_equal(found_boxes[0], case["priors"][anchors])


def test_anchors_lie_by_row_column_and_anchor() -> None:
    """In the map, anchors are channels; among the priors they are the fastest."""
    logits = np.zeros((1, 3, 2, 4), np.float32)
    logits[0, 2, 1, 3] = 1  # the last prior
    logits[0, 1, 0, 2] = 0.5
    priors = np.arange(24 * 4, dtype=np.float32).reshape(24, 4)
    deltas = np.zeros((1, 12, 2, 4), np.float32)
    deltas[0, 4 + 1, 0, 2] = 0.5  # dy of anchor 1 there
    boxes, _ = _reference.decode_proposals(
        [logits],
        [deltas],
        priors,
        np.array([[1000, 1000]], np.float32),
        top=[2],
        num_anchors=3,
        max_ratio=MAX_RATIO,
    )
    moved = priors[2 * 3 + 1] + [0, 1, 0, 1]  # half of the height, 2
    np.testing.assert_array_equal(boxes[0], [priors[23], moved])


def test_missing_anchors_have_no_box_and_no_score() -> None:
    boxes, scores = check(row_of_anchors([0, 1]), num_anchors=1, top=[4])
    assert scores[0, 2:].tolist() == [-1, -1]
    assert not boxes[0, 2:].any()


@pytest.mark.parametrize(
    ("min_size", "kept"),
    [(-1, True), (0, True), (19.5, True), (20, False), (25, False), (49.5, False), (1e6, False)],
)
def test_sides_of_min_size_are_too_short(min_size: float, kept: bool) -> None:
    _, scores = check(row_of_anchors([0]), num_anchors=1, top=[1], min_size=min_size)  # 50 x 20 px
    assert scores[0, 0] == (0.5 if kept else -1)


@pytest.mark.parametrize(("clip", "score"), [(True, -1), (False, 0.5)])
def test_min_size_is_of_the_clipped_box(clip: bool, score: float) -> None:
    case = row_of_anchors([0])  # 50 x 20 px
    case["image_sizes"][:] = (15, 1000)
    _, scores = check(case, num_anchors=1, top=[1], min_size=17, clip=clip)
    assert scores[0, 0] == score


@pytest.mark.parametrize(("min_size", "score"), [(-1, 0.5), (0, -1)])
def test_a_nan_box_is_too_small(min_size: float, score: float) -> None:
    boxes, scores = check(row_of_anchors([0], deltas=NAN), num_anchors=1, top=[1], min_size=min_size)
    assert scores.tolist() == [[score]]
    assert np.isnan(boxes).all()


def test_boxes_are_clipped_to_their_own_image() -> None:
    rng = np.random.default_rng(3)
    case = proposals_case(rng, [(6, 8)], num_anchors=3)
    case["image_sizes"] = np.array([[200, 900], [700, 300]], np.float32)
    boxes, _ = check(case, num_anchors=3, top=[144])
    assert boxes.min() == 0
    np.testing.assert_array_equal(boxes.max(axis=1), [[900, 200, 900, 200], [300, 700, 300, 700]])
    free, _ = check(case, num_anchors=3, top=[144], clip=False)
    assert free.min() < 0
    assert free[1, :, 2].max() > 900


@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize(
    ("means", "stds"),
    [((0,) * 4, (1,) * 4), ((0.1, -0.2, 0.05, -0.3), (0.1, 0.1, 0.2, 0.2)), ((0,) * 4, (0.5, 2, 3, 0.1))],
)
def test_boxes_are_mmdets(means: tuple, stds: tuple, clip: bool) -> None:
    rng = np.random.default_rng(5)
    case = proposals_case(rng, [(4, 5)], num_anchors=3, batch=1)
    case["deltas"][0][0, :, 0, 0] = 9  # beyond max_ratio
    case["deltas"][0][0, :, 1, 1] = -9
    settings = {"means": means, "stds": stds, "clip": clip}
    boxes, _ = check(case, num_anchors=3, top=[60], **settings)
    coder = DeltaXYWHBBoxCoder(target_means=means, target_stds=stds, clip_border=clip)
    deltas = torch.from_numpy(case["deltas"][0]).permute(0, 2, 3, 1).reshape(-1, 4)
    size = tuple(float(side) for side in case["image_sizes"][0])
    expected = coder.decode(torch.from_numpy(case["priors"]), deltas, max_shape=size).numpy()
    scores = numpy_oracles.sigmoid(case["logits"][0].transpose(0, 2, 3, 1).ravel())
    expected = expected[np.argsort(-scores, kind="stable")]
    # Widths grow up to 62.5 times before boxes are clipped.
    tolerance = BOX_TOLERANCE if clip else BOX_TOLERANCE * 16
    np.testing.assert_allclose(boxes[0], expected, rtol=0, atol=tolerance)


def to_layout(maps: np.ndarray, layout: str) -> np.ndarray:
    if layout == "nhwc8":
        maps = np.pad(maps, ((0, 0), (0, -maps.shape[1] % 8), (0, 0), (0, 0)), constant_values=NAN)
    return np.ascontiguousarray(maps.transpose(0, 2, 3, 1))


@pytest.mark.parametrize("layout", ["nhwc", "nhwc8"])
@pytest.mark.parametrize("num_anchors", [1, 2, 3, 8, 9])
def test_layouts(layout: str, num_anchors: int) -> None:
    rng = np.random.default_rng(num_anchors)
    sizes, top = [(6, 11), (3, 5), (1, 1)], [30, 40, 5]
    case = proposals_case(rng, sizes, num_anchors=num_anchors)
    settings = {"num_anchors": num_anchors, "top": top, "max_ratio": MAX_RATIO}
    expected = _reference.decode_proposals(**case, **settings)
    stored = {
        **case,
        **{kind: [to_layout(maps, layout) for maps in case[kind]] for kind in ("logits", "deltas")},
    }
    found = _reference.decode_proposals(**stored, **settings, layout=layout)
    for a, b in zip(found, expected):
        np.testing.assert_array_equal(a, b)


def test_an_empty_batch() -> None:
    case = proposals_case(np.random.default_rng(0), [(2, 3)], num_anchors=3, batch=0)
    boxes, scores = check(case, num_anchors=3, top=[7])
    assert (boxes.shape, scores.shape) == ((0, 7, 4), (0, 7))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"top": [3]}, "expected one of each per level and at least one level, found 2, 2, 1"),
        ({"top": [], "logits": [], "deltas": []}, "at least one level, found 0, 0, 0"),
        ({"top": [3, 0]}, "top: expected numbers of at least 1, found 0"),
        ({"num_anchors": 0}, "num_anchors: expected at least 1, found 0"),
        ({"num_anchors": 2}, r"logits: expected a C-contiguous float32 array of shape \(2, 2, \*, \*\)"),
        ({"layout": "hwc"}, "layout: expected 'nchw', 'nhwc' or 'nhwc8', found 'hwc'"),
        (
            {"layout": "nhwc8"},
            r"logits: expected .* of shape \(2, \*, \*, 8\), found float32 \(2, 3, 4, 5\)",
        ),
        (
            {"priors": np.zeros((77, 4), np.float32)},
            r"priors: expected .* \(78, 4\), found float32 \(77, 4\)",
        ),
        ({"image_sizes": np.zeros((2, 2))}, "image_sizes: expected a C-contiguous float32 .* found float64"),
        ({"image_sizes": np.zeros((3, 2), np.float32)}, r"logits: expected .* \(3, 3, \*, \*\)"),
        ({"means": [0, 0]}, "means, stds: expected 4 numbers each, found 2 and 4"),
        ({"max_ratio": NAN}, "max_ratio: expected a finite number"),
        ({"max_ratio": -1}, "max_ratio: expected a finite number"),
    ],
)
def test_bad_arguments_are_refused(changes: dict, message: str) -> None:
    case = proposals_case(np.random.default_rng(0), [(4, 5), (2, 3)], num_anchors=3)
    arguments = {**case, "num_anchors": 3, "top": [3, 4], "max_ratio": MAX_RATIO, **changes}
    with pytest.raises(ValueError, match=message):
        _reference.decode_proposals(**arguments)


def test_deltas_of_another_size_are_refused() -> None:
    case = proposals_case(np.random.default_rng(0), [(4, 5)], num_anchors=3)
    case["deltas"][0] = np.zeros((2, 12, 5, 4), np.float32)
    with pytest.raises(
        ValueError, match=r"deltas: expected .* \(2, 12, 4, 5\), found float32 \(2, 12, 5, 4\)"
    ):
        check(case, num_anchors=3, top=[3])
