"""Bodies of the fused decodings and of the masks' selection in onnxruntime, against mmdet's own box coder and torch."""

from collections.abc import Sequence
from typing import Any, Optional

import numpy as np
import onnxruntime
import pytest
import torch
from mmdet.models.task_modules.coders import DeltaXYWHBBoxCoder
from mmdet.models.task_modules.prior_generators import AnchorGenerator
from onnx import TensorProto, helper

from export.functions import DOMAIN
from patches.decoding import can_decode
from patches.operators import NO_CANDIDATE
from tests.export.test_functions import OPSETS, session_for

FLOAT, INT32 = TensorProto.FLOAT, TensorProto.INT32
MAX_RATIO = float(abs(np.log(16 / 1000)))
# exp and sigmoid differ in the last bits from library to library.
RTOL, ATOL = 1e-6, 1e-4
SIZES = np.float32([[60, 100], [33, 47]])
# (anchors of a place, height, width): the last has fewer anchors than are asked for.
LEVELS = [(3, 6, 8), (3, 3, 4), (3, 1, 2)]
TOP = [40, 20, 10]


def coder_of(
    means: tuple = (0.0,) * 4, stds: tuple = (1.0,) * 4, clip: bool = True
) -> tuple[DeltaXYWHBBoxCoder, dict]:
    coder = DeltaXYWHBBoxCoder(target_means=means, target_stds=stds, clip_border=clip)
    return coder, {"means": means, "stds": stds, "max_ratio": MAX_RATIO, "clip": int(clip)}


def proposals_session(
    top: list[int], attributes: dict, min_size: float, opset: int = 16, strides: Sequence[float] = ()
) -> onnxruntime.InferenceSession:
    levels = range(len(top))
    maps = [f"logits_{i}" for i in levels] + [f"deltas_{i}" for i in levels]
    node = helper.make_node(
        "DecodeProposals",
        [*maps, "priors", "image_sizes"],
        ["boxes", "scores"],
        domain=DOMAIN,
        top=top,
        min_size=min_size,
        **attributes,
        **({"strides": list(strides)} if strides else {}),
    )
    inputs = {name: (FLOAT, ["B", f"{name}_c", f"h{name[-1]}", f"w{name[-1]}"]) for name in maps}
    inputs |= {"priors": (FLOAT, ["N", 4]), "image_sizes": (FLOAT, ["B", 2])}
    outputs = {"boxes": (FLOAT, ["B", sum(top), 4]), "scores": (FLOAT, ["B", sum(top)])}
    return session_for(node, inputs, outputs, opset)


def proposals_feed(seed: int, levels: list = LEVELS, batch: int = 2) -> dict[str, np.ndarray]:
    """Logits with ties and saturated ones among them, and deltas beyond what exp may take."""
    rng = np.random.default_rng(seed)
    feed: dict[str, np.ndarray] = {"image_sizes": SIZES[:batch]}
    for level, (anchors, height, width) in enumerate(levels):
        logits = np.round(rng.standard_normal((batch, anchors, height, width)) * 4) / 2
        logits[rng.random(logits.shape) < 0.2] = rng.choice([20.0, 30.0, -200.0])
        feed[f"logits_{level}"] = logits.astype(np.float32)
        deltas = rng.standard_normal((batch, anchors * 4, height, width)) * 1.5
        feed[f"deltas_{level}"] = deltas.astype(np.float32)
    num = sum(int(np.prod(level)) for level in levels)
    corners = rng.uniform(-20, 90, (num, 2))
    feed["priors"] = np.concatenate([corners, corners + rng.uniform(1, 60, (num, 2))], 1).astype(np.float32)
    return feed


def moved(feed: dict, levels: list, strides: Sequence[float]) -> dict:
    """Return the feed with the priors of every place: mmdet's own, of the base anchors that ``feed`` has."""
    generator = AnchorGenerator(
        strides=list(zip(strides[::2], strides[1::2])), ratios=[1.0], scales=[1.0] * levels[0][0]
    )
    generator.base_anchors = list(torch.from_numpy(feed["priors"]).reshape(len(levels), -1, 4))
    sizes = [(height, width) for _, height, width in levels]
    return {**feed, "priors": torch.cat(generator.grid_priors(sizes, device="cpu")).numpy()}


def with_base_anchors(feed: dict, levels: list) -> dict:
    return {**feed, "priors": feed["priors"][: sum(anchors for anchors, _, _ in levels)]}


def expected_proposals(
    feed: dict, top: list[int], coder: DeltaXYWHBBoxCoder, min_size: float
) -> list[list[tuple[np.ndarray, np.ndarray]]]:
    """For each image and level the boxes and scores of the best anchors: a stable sort, and mmdet's own decoding."""
    found, begin = [[] for _ in feed["image_sizes"]], 0
    for level, k in enumerate(top):
        logits, deltas = torch.from_numpy(feed[f"logits_{level}"]), torch.from_numpy(feed[f"deltas_{level}"])
        scores = logits.permute(0, 2, 3, 1).flatten(1).sigmoid()
        deltas = deltas.permute(0, 2, 3, 1).reshape(len(scores), -1, 4)
        priors = torch.from_numpy(feed["priors"][begin : begin + scores.shape[1]])
        begin += scores.shape[1]
        for image, size in enumerate(feed["image_sizes"]):
            order = torch.sort(scores[image], descending=True, stable=True).indices[:k]
            boxes = coder.decode(priors[order], deltas[image, order], max_shape=tuple(size.tolist()))
            best = scores[image, order]
            extent = boxes[:, 2:] - boxes[:, :2]
            best = torch.where((extent > min_size).all(1), best, torch.tensor(NO_CANDIDATE))
            found[image].append((boxes.numpy(), best.numpy()))
    return found


def assert_proposals(outputs: list, expected: list, top: list[int]) -> None:
    boxes, scores = outputs
    for image, levels in enumerate(expected):
        begin = 0
        for k, (level_boxes, level_scores) in zip(top, levels):
            num = len(level_boxes)
            np.testing.assert_allclose(
                boxes[image, begin : begin + num],
                level_boxes,
                rtol=RTOL,
                atol=ATOL,
                err_msg=f"{image} {begin}",
            )
            np.testing.assert_allclose(scores[image, begin : begin + num], level_scores, rtol=RTOL, atol=1e-7)
            assert (scores[image, begin + num : begin + k] == NO_CANDIDATE).all()
            begin += k


@pytest.mark.parametrize("opset", OPSETS)
def test_proposals_in_every_opset(opset: int) -> None:
    coder, attributes = coder_of()
    feed = proposals_feed(0)
    outputs = proposals_session(TOP, attributes, -1.0, opset).run(None, feed)
    assert_proposals(outputs, expected_proposals(feed, TOP, coder, -1.0), TOP)
    assert (outputs[1] == NO_CANDIDATE).sum() == 2 * 4  # what the last level lacks


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    ("coder", "min_size"),
    [
        ({}, 0.0),
        ({}, 12.0),
        ({"clip": False}, -1.0),
        ({"means": (0.1, -0.2, 0.05, 0.0), "stds": (0.1, 0.1, 0.2, 0.2)}, 0.0),
    ],
    ids=["min_size 0", "min_size 12", "not clipped", "normalised"],
)
def test_proposals(seed: int, coder: dict, min_size: float) -> None:
    own, attributes = coder_of(**coder)
    feed = proposals_feed(seed)
    outputs = proposals_session(TOP, attributes, min_size).run(None, feed)
    assert_proposals(outputs, expected_proposals(feed, TOP, own, min_size), TOP)


@pytest.mark.parametrize("opset", OPSETS)
def test_proposals_of_base_anchors_and_strides(opset: int) -> None:
    """What a graph of dynamic size has: the operator moves the anchors as mmdet's generator does."""
    coder, attributes = coder_of()
    strides = [4.0, 8.0, 7.5, 16.0, 32.0, 0.1]
    feed = with_base_anchors(proposals_feed(2), LEVELS)
    session = proposals_session(TOP, attributes, 5.0, opset, strides)
    expected = expected_proposals(moved(feed, LEVELS, strides), TOP, coder, 5.0)
    assert_proposals(session.run(None, feed), expected, TOP)


def test_proposals_of_one_level_and_image() -> None:
    coder, attributes = coder_of()
    feed = proposals_feed(1, LEVELS[:1], batch=1)
    outputs = proposals_session([144], attributes, 0.0).run(None, feed)
    assert_proposals(outputs, expected_proposals(feed, [144], coder, 0.0), [144])


def detections_session(
    attributes: dict, num_classes: int, num_boxes: int, opset: int = 16
) -> onnxruntime.InferenceSession:
    node = helper.make_node(
        "DecodeDetections",
        ["logits", "deltas", "proposals", "count", "image_sizes"],
        ["boxes", "scores"],
        domain=DOMAIN,
        **attributes,
    )
    inputs = {
        "logits": (FLOAT, ["B", "P", num_classes + 1]),
        "deltas": (FLOAT, ["B", "P", 4 * num_boxes]),
        "proposals": (FLOAT, ["B", "P", 4]),
        "count": (INT32, ["B"]),
        "image_sizes": (FLOAT, ["B", 2]),
    }
    return session_for(node, inputs, {"boxes": (FLOAT, ["B", "M", 4]), "scores": (FLOAT, ["B", "M"])}, opset)


@pytest.mark.parametrize("opset", [16, 18, 20])
@pytest.mark.parametrize("agnostic", [False, True])
@pytest.mark.parametrize("num_classes", [1, 5])
@pytest.mark.parametrize(
    "coder", [{"stds": (0.1, 0.1, 0.2, 0.2)}, {"clip": False, "means": (0.0, 0.1, 0.0, 0.2)}]
)
def test_detections(coder: dict, num_classes: int, agnostic: bool, opset: int) -> None:
    """Every class of every proposal by mmdet's coder; the first image has 7 proposals, the second none."""
    own, attributes = coder_of(**coder)
    rng = np.random.default_rng(num_classes)
    num_rows, num_boxes = 9, 1 if agnostic else num_classes
    corners = rng.uniform(-10, 80, (2, num_rows, 2))
    feed = {
        "logits": (rng.standard_normal((2, num_rows, num_classes + 1)) * 30).astype(np.float32),
        "deltas": rng.standard_normal((2, num_rows, 4 * num_boxes)).astype(np.float32),
        "proposals": np.concatenate([corners, corners + rng.uniform(0, 60, corners.shape)], -1).astype(
            np.float32
        ),
        "count": np.int32([7, 0]),
        "image_sizes": SIZES,
    }
    boxes, scores = detections_session(attributes, num_classes, num_boxes, opset).run(None, feed)
    assert boxes.shape == (2, num_rows * num_classes, 4)
    for image, (size, count) in enumerate(zip(SIZES, feed["count"])):
        for c in range(num_classes):
            deltas = feed["deltas"][image].reshape(num_rows, num_boxes, 4)[:, 0 if agnostic else c]
            priors = torch.from_numpy(feed["proposals"][image])
            decoded = own.decode(priors, torch.from_numpy(deltas), max_shape=tuple(size.tolist())).numpy()
            np.testing.assert_allclose(boxes[image, c::num_classes], decoded, rtol=RTOL, atol=ATOL)
        probabilities = torch.from_numpy(feed["logits"][image]).softmax(-1)[:, :-1].numpy()
        probabilities[count:] = NO_CANDIDATE
        found = scores[image].reshape(num_rows, num_classes)
        np.testing.assert_allclose(found, probabilities, rtol=RTOL, atol=1e-7)


@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize("num_classes", [1, 4])
def test_masks(num_classes: int, opset: int) -> None:
    node = helper.make_node("SelectMasks", ["logits", "labels"], ["masks"], domain=DOMAIN)
    session = session_for(
        node,
        {"logits": (FLOAT, ["R", num_classes, "h", "w"]), "labels": (INT32, ["B", "K"])},
        {"masks": (FLOAT, ["B", "K", "h", "w"])},
        opset,
    )
    rng = np.random.default_rng(2)
    logits = (rng.standard_normal((6, num_classes, 5, 7)) * 9).astype(np.float32)
    labels = np.int32([[0, 3, -1], [2, -1, 1]])
    (masks,) = session.run(None, {"logits": logits, "labels": labels})
    assert masks.shape == (2, 3, 5, 7)
    for row, label in enumerate(labels.flatten()):
        found = masks.reshape(6, 5, 7)[row]
        channel = min(label, num_classes - 1)
        own = torch.from_numpy(logits[row, channel]).sigmoid().numpy() if label >= 0 else np.zeros((5, 7))
        np.testing.assert_allclose(found, own, rtol=RTOL, atol=1e-7)


class _OwnCoder(DeltaXYWHBBoxCoder):
    pass


@pytest.mark.parametrize(
    ("coder", "expected"),
    [
        (DeltaXYWHBBoxCoder(), True),
        (DeltaXYWHBBoxCoder(clip_border=False), True),
        (DeltaXYWHBBoxCoder(add_ctr_clamp=True), False),
        (_OwnCoder(), False),
        (None, False),
    ],
)
def test_only_the_plain_coder(coder: Optional[Any], expected: bool) -> None:
    assert can_decode(coder) == expected
