"""DecodeProposals, DecodeDetections, SelectMasks: function body, CPU reference, and mmdet's coder or torch."""

from functools import lru_cache

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper

from export.functions import DOMAIN
from plugins import _reference
from tests.export.test_decoding import (
    ATOL,
    RTOL,
    SIZES,
    assert_proposals,
    coder_of,
    detections_session,
    expected_proposals,
    moved,
    proposals_feed,
    proposals_session,
    with_base_anchors,
)
from tests.export.test_functions import session_for

CODERS = st.sampled_from(
    [{}, {"clip": False}, {"means": (0.1, -0.2, 0.05, 0.0), "stds": (0.1, 0.1, 0.2, 0.2)}]
)
LEVELS = st.lists(
    st.tuples(st.integers(1, 6), st.integers(1, 6), st.integers(1, 70)), min_size=1, max_size=4
)  # (height, width, rows in the result)

detections = lru_cache(None)(
    lambda coder, classes, boxes: detections_session(coder_of(**dict(coder))[1], classes, boxes)
)


@given(LEVELS, st.integers(1, 3), st.integers(1, 2), CODERS, st.sampled_from([-1.0, 0.0, 9.0]), st.data())
def test_proposals(levels, anchors, batch, coder, min_size, data):
    """As many rows as anchors, fewer and more; a tie at the cut, probabilities that are 1, boxes outside the image."""
    own, attributes = coder_of(**coder)
    top = [k for _, _, k in levels]
    seed = data.draw(st.integers(0, 2**32 - 1))
    feed = proposals_feed(seed, [(anchors, h, w) for h, w, _ in levels], batch)
    expected = expected_proposals(feed, top, own, min_size)
    body = proposals_session(top, attributes, min_size).run(None, feed)
    maps = [[feed[f"{kind}_{i}"] for i in range(len(top))] for kind in ("logits", "deltas")]
    arguments = {**attributes, "clip": bool(attributes["clip"]), "num_anchors": anchors, "min_size": min_size}
    reference = _reference.decode_proposals(*maps, feed["priors"], feed["image_sizes"], top, **arguments)
    assert_proposals(body, expected, top)
    assert_proposals(list(reference), expected, top)
    strides = data.draw(
        st.lists(st.sampled_from([0.1, 4.0, 16.0, 50.0]), min_size=2 * len(top), max_size=2 * len(top))
    )
    shapes = [(anchors, h, w) for h, w, _ in levels]
    feed = with_base_anchors(feed, shapes)
    expected = expected_proposals(moved(feed, shapes, strides), top, own, min_size)
    reference = _reference.decode_proposals(
        *maps, feed["priors"], feed["image_sizes"], top, **arguments, strides=strides
    )
    assert_proposals(list(reference), expected, top)


@given(
    st.integers(1, 2), st.integers(1, 20), st.integers(1, 9), st.booleans(), CODERS, st.integers(0, 2**32 - 1)
)
def test_detections(batch, rows, classes, agnostic, coder, seed):
    """Logits up to hundreds; images with all their proposals, some and none."""
    rng = np.random.default_rng(seed)
    boxes = 1 if agnostic else classes
    corners = rng.uniform(-20, 90, (batch, rows, 2))
    extents = rng.uniform(0, 60, corners.shape)
    feed = {
        "logits": (rng.standard_normal((batch, rows, classes + 1)) * rng.choice([1, 200])).astype(np.float32),
        "deltas": (rng.standard_normal((batch, rows, 4 * boxes)) * 2).astype(np.float32),
        "proposals": np.concatenate([corners, corners + extents], -1).astype(np.float32),
        "count": rng.integers(0, rows + 1, batch).astype(np.int32),
        "image_sizes": SIZES[:batch],
    }
    own, attributes = coder_of(**coder)
    attributes["clip"] = bool(attributes["clip"])
    body = detections(tuple(coder.items()), classes, boxes).run(None, feed)
    reference = _reference.decode_detections(*feed.values(), **attributes)
    scores = torch.from_numpy(feed["logits"]).softmax(-1)[..., :-1].numpy()
    scores[np.arange(rows) >= feed["count"][:, None]] = -1
    for found_boxes, found_scores in (body, reference):
        np.testing.assert_allclose(found_scores, scores.reshape(batch, -1), rtol=RTOL, atol=1e-7)
        for image, size in enumerate(feed["image_sizes"].tolist()):
            priors = torch.from_numpy(feed["proposals"][image]).repeat_interleave(classes, 0)
            deltas = feed["deltas"][image].reshape(rows, boxes, 4)
            deltas = torch.from_numpy(np.broadcast_to(deltas, (rows, classes, 4)).reshape(-1, 4).copy())
            decoded = own.decode(priors, deltas, max_shape=tuple(size)).numpy()
            np.testing.assert_allclose(found_boxes[image], decoded, rtol=RTOL, atol=ATOL)


@lru_cache(None)
def masks_session(channels):
    node = helper.make_node("SelectMasks", ["logits", "labels"], ["masks"], domain=DOMAIN)
    logits = (TensorProto.FLOAT, ["R", channels, "h", "w"])
    labels = (TensorProto.INT32, ["B", "K"])
    return session_for(
        node, {"logits": logits, "labels": labels}, {"masks": (TensorProto.FLOAT, ["B", "K", "h", "w"])}
    )


@given(st.integers(1, 2), st.integers(1, 6), st.integers(1, 5), st.integers(0, 2**32 - 1))
def test_masks(batch, rows, channels, seed):
    """Labels of every channel, none and too large."""
    rng = np.random.default_rng(seed)
    logits = (rng.standard_normal((batch * rows, channels, 3, 4)) * rng.choice([1, 50])).astype(np.float32)
    labels = rng.integers(-1, channels + 2, (batch, rows)).astype(np.int32)
    channel = labels.flatten().clip(0, channels - 1)
    expected = torch.from_numpy(logits[np.arange(len(logits)), channel]).sigmoid().numpy()
    expected = np.where(labels[..., None, None] >= 0, expected.reshape(batch, rows, 3, 4), 0)
    (body,) = masks_session(channels).run(None, {"logits": logits, "labels": labels})
    for found in (body, _reference.select_masks(logits, labels, channels)):
        np.testing.assert_allclose(found, expected, rtol=RTOL, atol=1e-7)
