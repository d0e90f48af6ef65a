"""The kernel of ``plugins/decode_detections`` against NumPy and torch, without TensorRT."""

import numpy as np
import pytest

from tests.gpu import numpy_oracles
from tests.gpu.decode_detections.kernel import decode_detections
from tests.gpu.kernel_testing import MARKS, cuda, torch
from tests.gpu.tolerances import (
    BOX_TOLERANCE,
    PROBABILITY_TOLERANCE,
)

pytestmark = MARKS


RCNN_DECODING = {"max_ratio": 4.135166556742356, "stds": (0.1, 0.1, 0.2, 0.2)}


def detection_inputs(
    batch: int,
    num_proposals: int,
    num_classes: int,
    *,
    agnostic: bool = False,
    dtypes: tuple = (np.float32, np.float32),
) -> dict:
    """Arrays by the names of the kernel's arguments: images of different sizes, any count."""
    rng = np.random.default_rng(num_classes + num_proposals)
    corners = rng.uniform(-20, 1000, (batch, num_proposals, 2))
    sides = np.exp(rng.uniform(0, 6, corners.shape))
    num_deltas = 4 if agnostic else 4 * num_classes
    return {
        "logits": rng.normal(0, 4, (batch, num_proposals, num_classes + 1)).astype(dtypes[0]),
        "deltas": rng.normal(0, 1.5, (batch, num_proposals, num_deltas)).astype(dtypes[1]),
        "proposals": np.concatenate([corners, corners + sides], axis=2).astype(np.float32),
        "count": rng.integers(-1, num_proposals + 2, batch).astype(np.int32),
        "image_sizes": rng.uniform(100, 1300, (batch, 2)).astype(np.float32),
    }


def check_decode_detections(arrays: dict, **settings: object) -> None:
    settings = {**RCNN_DECODING, **settings}
    boxes, scores = decode_detections(**{k: cuda(v) for k, v in arrays.items()}, **settings)
    expected_boxes, expected_scores = numpy_oracles.decode_detections(**arrays, **settings)
    np.testing.assert_allclose(scores.cpu().numpy(), expected_scores, rtol=0, atol=PROBABILITY_TOLERANCE)
    # Exactly: what NMS takes for no candidate.
    np.testing.assert_array_equal(scores.cpu().numpy() == -1, expected_scores == -1)
    np.testing.assert_allclose(boxes.cpu().numpy(), expected_boxes, **BOX_TOLERANCE)


@pytest.mark.parametrize("agnostic", [False, True])
@pytest.mark.parametrize(
    ("batch", "num_proposals", "num_classes"),
    [
        (1, 1000, 80),
        (8, 1000, 80),
        (2, 1000, 1203),  # LVIS
        (3, 1000, 1),
        *((2, 33, classes) for classes in (2, 30, 31, 32, 33, 127, 128, 129, 160)),  # around lanes and loads
        *((2, proposals, 5) for proposals in (1, 3, 4, 5)),  # around the proposals of a block
    ],
)
def test_decode_detections(batch: int, num_proposals: int, num_classes: int, agnostic: bool) -> None:
    check_decode_detections(detection_inputs(batch, num_proposals, num_classes, agnostic=agnostic))


@pytest.mark.parametrize(
    "dtypes", [(a, b) for a in (np.float32, np.float16) for b in (np.float32, np.float16)]
)
@pytest.mark.parametrize("agnostic", [False, True])
def test_decode_detections_of_half_inputs(dtypes: tuple, agnostic: bool) -> None:
    """The oracle has the rounded inputs: arithmetic is float32 all the same."""
    check_decode_detections(detection_inputs(2, 1000, 80, agnostic=agnostic, dtypes=dtypes))


@pytest.mark.parametrize(
    "settings",
    [{"clip": False}, {"means": (0.1, -0.2, 0.3, -0.4)}, {"stds": (1, 1, 1, 1)}, {"max_ratio": 0.1}],
)
def test_decode_detections_settings(settings: dict) -> None:
    check_decode_detections(detection_inputs(2, 100, 7), **settings)


def test_decode_detections_equals_the_reference() -> None:
    reference = pytest.importorskip("plugins._reference", reason="the CPU reference is not built")
    arrays = detection_inputs(2, 1000, 80)
    boxes, scores = decode_detections(**{k: cuda(v) for k, v in arrays.items()}, **RCNN_DECODING)
    expected_boxes, expected_scores = reference.decode_detections(**arrays, **RCNN_DECODING)
    np.testing.assert_allclose(scores.cpu().numpy(), expected_scores, rtol=0, atol=PROBABILITY_TOLERANCE)
    np.testing.assert_allclose(boxes.cpu().numpy(), expected_boxes, **BOX_TOLERANCE)


@pytest.mark.parametrize("num_classes", [2, 80, 200])
@pytest.mark.parametrize(
    ("values", "nan"),
    [
        ((500, 499, -500), False),  # exp overflows
        ((3e38, -3e38, 0), False),
        ((-np.inf, 0, 0), False),
        ((0, np.nan, 0), True),
        ((0, 0, np.nan), True),  # the background's counts, too
        ((np.nan, np.nan, np.nan), True),
        ((np.inf, 0, 0), True),
        ((-np.inf, -np.inf, -np.inf), True),
    ],
)
def test_decode_detections_of_extreme_logits(values: tuple, nan: bool, num_classes: int) -> None:
    arrays = detection_inputs(1, 9, num_classes)
    arrays["count"][:] = 9
    logits = arrays["logits"]
    logits[0, 4] = values[1]
    logits[0, 4, 0], logits[0, 4, -1] = values[0], values[2]
    check_decode_detections(arrays)
    scores = decode_detections(**{k: cuda(v) for k, v in arrays.items()}, **RCNN_DECODING)[1]
    bad = scores.isnan().view(9, num_classes)
    assert bad[4].all() == nan
    assert bad.sum().item() == nan * num_classes


@pytest.mark.parametrize("count", [-(2**31), -1, 0, 1, 999, 1000, 1001, 2**31 - 1])
def test_decode_detections_past_the_count(count: int) -> None:
    arrays = {**detection_inputs(1, 1000, 80), "count": np.array([count], np.int32)}
    arrays["logits"][0, min(max(count, 0), 1000) :] = np.nan  # not real: not read
    check_decode_detections(arrays)


def test_decode_detections_of_more_images_than_a_grid_has() -> None:
    check_decode_detections(detection_inputs(70000, 2, 3))


@pytest.mark.parametrize(("batch", "num_proposals"), [(0, 5), (2, 0)])
def test_decode_detections_of_nothing(batch: int, num_proposals: int) -> None:
    arrays = detection_inputs(batch, num_proposals, 3)
    boxes, scores = decode_detections(**{k: cuda(v) for k, v in arrays.items()}, **RCNN_DECODING)
    assert (boxes.shape, scores.shape) == ((batch, num_proposals * 3, 4), (batch, num_proposals * 3))


def test_decode_detections_refuses_arguments() -> None:
    tensors = {k: cuda(v) for k, v in detection_inputs(1, 4, 2).items()}
    with pytest.raises(RuntimeError, match="decode_detections: invalid argument"):  # the background alone
        decode_detections(**{**tensors, "logits": tensors["logits"][..., :1].contiguous()}, **RCNN_DECODING)
    misaligned = torch.zeros(4 * 4 + 1, device="cuda")[1:].view(1, 4, 4)
    with pytest.raises(RuntimeError, match="decode_detections: invalid argument"):
        decode_detections(**{**tensors, "proposals": misaligned}, **RCNN_DECODING)


def test_decode_detections_is_captured_in_a_graph() -> None:
    tensors = {k: cuda(v) for k, v in detection_inputs(2, 1000, 80).items()}
    decode_detections(**tensors, **RCNN_DECODING)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        boxes, scores = decode_detections(**tensors, **RCNN_DECODING)
    for count in (1000, 3, 0):
        tensors["logits"].normal_(0, 3)
        tensors["deltas"].normal_()
        tensors["count"].fill_(count)
        graph.replay()
        expected = decode_detections(**tensors, **RCNN_DECODING)
        assert torch.equal(boxes, expected[0])
        assert torch.equal(scores, expected[1])
