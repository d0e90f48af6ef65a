"""plugins._reference.decode_detections against softmax and box regression in NumPy, and against mmdet's delta2bbox."""

import math

import numpy as np
import pytest
import torch

from plugins import _reference

MAX_RATIO = abs(math.log(16 / 1000))
STDS = (0.1, 0.1, 0.2, 0.2)
# Relative: the difference of two logits of up to 20, rounded, goes through exp; two units of exp itself.
SCORE_TOLERANCE = 2e-6
# px, and relative: two units of float32's exp on half a side of a few hundred px, and the roundings of the rest.
BOX_TOLERANCE = 1e-4
BOX_RELATIVE_TOLERANCE = 1e-6
NAN, INF = float("nan"), float("inf")


def softmax_oracle(logits: np.ndarray, count: np.ndarray) -> np.ndarray:
    """Return (B, P * C) float64."""
    scores = torch.from_numpy(logits).double().softmax(-1)[..., :-1].numpy().copy()
    for own, real in zip(scores, count):
        own[max(int(real), 0) :] = -1
    return scores.reshape(len(logits), -1)


def decode_oracle(
    deltas: np.ndarray,
    proposals: np.ndarray,
    image_sizes: np.ndarray,
    num_classes: int,
    *,
    max_ratio: float = MAX_RATIO,
    means: tuple = (0, 0, 0, 0),
    stds: tuple = (1, 1, 1, 1),
    clip: bool = True,
) -> np.ndarray:
    """Return (B, P * C, 4) float64: R-CNN's box regression, one image at a time."""
    out = []
    for own, boxes, (height, width) in zip(*(a.astype(np.float64) for a in (deltas, proposals, image_sizes))):
        own = own.reshape(len(own), -1, 4) * stds + means
        own = np.broadcast_to(own, (len(own), num_classes, 4))
        sides = (boxes[:, 2:] - boxes[:, :2])[:, None]
        centers = (boxes[:, 2:] + boxes[:, :2])[:, None] / 2 + sides * own[..., :2]
        halves = sides * np.exp(np.clip(own[..., 2:], -max_ratio, max_ratio)) / 2
        corners = np.concatenate([centers - halves, centers + halves], axis=-1)
        out.append(np.clip(corners, 0, [width, height, width, height]) if clip else corners)
    return np.stack(out).reshape(len(deltas), -1, 4)


def random_inputs(
    num_classes: int, *, batch: int = 2, num_proposals: int = 13, agnostic: bool = False, spread: float = 3.0
) -> dict:
    """Proposals in and around images of different sizes."""
    rng = np.random.default_rng(num_classes)
    corners = rng.uniform(-20, 500, (batch, num_proposals, 2))
    sides = np.exp(rng.uniform(0, math.log(400), corners.shape))
    widths = 4 if agnostic else 4 * num_classes
    arrays = {
        "logits": rng.normal(0, spread, (batch, num_proposals, num_classes + 1)),
        "deltas": rng.normal(0, 2, (batch, num_proposals, widths)),
        "proposals": np.concatenate([corners, corners + sides], axis=-1),
        "image_sizes": np.array([[480, 640], [333, 517], [1, 1]])[:batch],
    }
    arrays = {name: array.astype(np.float32) for name, array in arrays.items()}
    return {**arrays, "count": np.array([num_proposals, num_proposals // 2, 0][:batch], np.int32)}


def decode(inputs: dict, **settings: object) -> tuple[np.ndarray, np.ndarray]:
    return _reference.decode_detections(**inputs, **{"max_ratio": MAX_RATIO, "stds": STDS, **settings})


def check(inputs: dict, **settings: object) -> None:
    settings = {"max_ratio": MAX_RATIO, "stds": STDS, **settings}
    boxes, scores = decode(inputs, **settings)
    assert (boxes.dtype, scores.dtype) == (np.float32, np.float32)
    expected = softmax_oracle(inputs["logits"], inputs["count"])
    assert scores.shape == expected.shape
    np.testing.assert_allclose(scores, expected, rtol=SCORE_TOLERANCE, atol=1e-37)
    places = [inputs[name] for name in ("deltas", "proposals", "image_sizes")]
    expected = decode_oracle(*places, inputs["logits"].shape[2] - 1, **settings)
    assert boxes.shape == expected.shape
    np.testing.assert_allclose(boxes, expected, rtol=BOX_RELATIVE_TOLERANCE, atol=BOX_TOLERANCE)


@pytest.mark.parametrize("agnostic", [False, True])
@pytest.mark.parametrize("num_classes", [1, 2, 31, 32, 80, 128, 1203])
def test_classes(num_classes: int, agnostic: bool) -> None:
    check(random_inputs(num_classes, agnostic=agnostic))


@pytest.mark.parametrize(
    "settings",
    [
        {"clip": False},
        {"stds": (1.0, 1.0, 1.0, 1.0)},
        {"means": (0.1, -0.2, 0.3, -0.4)},
        {"max_ratio": 0.1},  # nearly every side is limited
        {"max_ratio": 0.0},
    ],
)
def test_settings(settings: dict) -> None:
    check(random_inputs(7, batch=3), **settings)


def test_defaults_are_no_scaling_and_clipping() -> None:
    inputs = random_inputs(3)
    found = _reference.decode_detections(**inputs, max_ratio=MAX_RATIO)
    named = decode(inputs, means=(0, 0, 0, 0), stds=(1, 1, 1, 1), clip=True)
    np.testing.assert_array_equal(found[0], named[0])
    assert (found[0] >= 0).all()


@pytest.mark.parametrize("num_classes", [1, 80])
def test_boxes_equal_mmdets(num_classes: int) -> None:
    """mmdet decodes one image at a time, all classes of a proposal in a row."""
    from mmdet.models.task_modules.coders.delta_xywh_bbox_coder import delta2bbox

    inputs = random_inputs(num_classes, num_proposals=200)
    boxes, _ = decode(inputs)
    for b, (height, width) in enumerate(inputs["image_sizes"].tolist()):
        expected = delta2bbox(
            torch.from_numpy(inputs["proposals"][b]),
            torch.from_numpy(inputs["deltas"][b]),
            stds=STDS,
            max_shape=(height, width),
        )
        expected = expected.reshape(-1, 4).numpy()
        np.testing.assert_allclose(boxes[b], expected, rtol=BOX_RELATIVE_TOLERANCE, atol=BOX_TOLERANCE)


def test_a_candidate_is_a_class_of_a_proposal() -> None:
    """Candidate p * C + c; class-agnostic deltas give one box to all of them."""
    num_classes, proposals = 3, np.array([[[0, 0, 10, 10], [20, 20, 40, 40]]], np.float32)
    deltas = np.zeros((1, 2, 3, 4), np.float32)
    deltas[0, 1, 2, 0] = 1  # proposal 1 as class 2: to the right by its width
    inputs = {
        "logits": np.zeros((1, 2, num_classes + 1), np.float32),
        "proposals": proposals,
        "count": np.array([2], np.int32),
        "image_sizes": np.array([[100, 100]], np.float32),
    }
    boxes, scores = _reference.decode_detections(
        **inputs, deltas=deltas.reshape(1, 2, -1), max_ratio=MAX_RATIO
    )
    expected = proposals[0].repeat(num_classes, axis=0)
    expected[5, [0, 2]] += 20
    np.testing.assert_array_equal(boxes[0], expected)
    np.testing.assert_array_equal(scores, np.full((1, 6), 0.25, np.float32))
    shared = np.ascontiguousarray(deltas[:, :, 2])
    boxes, _ = _reference.decode_detections(**inputs, deltas=shared, max_ratio=MAX_RATIO)
    expected[3:5, [0, 2]] += 20
    np.testing.assert_array_equal(boxes[0], expected)


@pytest.mark.parametrize(("count", "num_real"), [(0, 0), (1, 1), (4, 4), (5, 5), (9, 5), (-3, 0)])
def test_rows_past_the_count_have_no_score(count: int, num_real: int) -> None:
    inputs = random_inputs(3, batch=1, num_proposals=5)
    full_boxes, full_scores = decode(inputs)
    boxes, scores = decode({**inputs, "count": np.array([count], np.int32)})
    np.testing.assert_array_equal(scores[:, : num_real * 3], full_scores[:, : num_real * 3])
    assert (scores[:, num_real * 3 :] == -1).all()
    np.testing.assert_array_equal(boxes, full_boxes)


@pytest.mark.parametrize(
    ("logits", "expected"),
    [
        ([500, 499, -500], [1 / (1 + math.exp(-1)), 1 / (1 + math.exp(1))]),  # exp overflows
        ([3e38, -3e38, 0], [1, 0]),
        ([-3e38, -3e38, -3e38], [1 / 3, 1 / 3]),
        ([-INF, 0, 0], [0, 0.5]),
        ([0, 0, 200], [math.exp(-200) / (1 + 2 * math.exp(-200))] * 2),  # nothing is left of the classes
        ([65504, 65504, -65504], [0.5, 0.5]),
        ([0, NAN, 0], [NAN, NAN]),
        ([0, 0, NAN], [NAN, NAN]),  # the background's counts, too
        ([NAN, NAN, NAN], [NAN, NAN]),
        ([INF, 0, 0], [NAN, NAN]),
        ([0, 0, INF], [NAN, NAN]),
        ([INF, INF, 0], [NAN, NAN]),
        ([-INF, -INF, -INF], [NAN, NAN]),
    ],
)
def test_extreme_logits(logits: list, expected: list) -> None:
    inputs = {**random_inputs(2, batch=1, num_proposals=2), "count": np.array([2], np.int32)}
    inputs["logits"][0, 0] = logits
    scores = decode(inputs)[1]
    np.testing.assert_allclose(scores[0, :2], expected, rtol=SCORE_TOLERANCE, atol=1e-38)
    assert np.isfinite(scores[0, 2:]).all()  # the other proposal's


@pytest.mark.parametrize("value", [NAN, INF, -INF, 3e38, -3e38])
@pytest.mark.parametrize("name", ["deltas", "proposals"])
def test_one_bad_box_leaves_the_others(name: str, value: float) -> None:
    inputs = random_inputs(3, batch=1, num_proposals=4)
    boxes, scores = decode(inputs)
    inputs[name][0, 1, :4] = value
    bad_boxes, bad_scores = decode(inputs)
    np.testing.assert_array_equal(bad_scores, scores)
    touched = [3] if name == "deltas" else [3, 4, 5]
    others = [i for i in range(12) if i not in touched]
    np.testing.assert_array_equal(bad_boxes[0, others], boxes[0, others])
    if math.isnan(value):
        assert np.isnan(bad_boxes[0, touched]).all()


@pytest.mark.parametrize(("batch", "num_proposals"), [(0, 5), (2, 0)])
def test_nothing_to_decode(batch: int, num_proposals: int) -> None:
    boxes, scores = decode(random_inputs(3, batch=batch, num_proposals=num_proposals))
    assert (boxes.shape, scores.shape) == ((batch, num_proposals * 3, 4), (batch, num_proposals * 3))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"logits": np.zeros((2, 13, 1), np.float32)}, "logits: expected 1 to 16777216 classes"),
        ({"logits": np.zeros((2, 13, 4))}, "logits: .*float32.*found float64"),
        ({"deltas": np.zeros((2, 13, 8), np.float32)}, "deltas: expected 4, or 4 for each of 3 classes"),
        ({"deltas": np.zeros((2, 12, 12), np.float32)}, r"deltas: .*\(2, 13, \*\)"),
        ({"proposals": np.zeros((2, 13, 5), np.float32)}, r"proposals: .*\(2, 13, 4\)"),
        ({"count": np.zeros(2, np.int64)}, "count: .*int32.*found int64"),
        ({"image_sizes": np.zeros((1, 2), np.float32)}, r"image_sizes: .*\(2, 2\)"),
        ({"means": [0.0]}, "means, stds: expected 4 numbers each, found 1 and 4"),
        ({"max_ratio": -1.0}, "max_ratio: expected a finite number of at least 0"),
        ({"max_ratio": NAN}, "max_ratio: expected a finite number of at least 0"),
    ],
)
def test_wrong_arguments_are_named(changed: dict, message: str) -> None:
    arguments = {**random_inputs(3), "max_ratio": MAX_RATIO, **changed}
    with pytest.raises(ValueError, match=message):
        _reference.decode_detections(**arguments)
