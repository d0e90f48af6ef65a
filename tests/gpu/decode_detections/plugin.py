"""DecodeDetections in TensorRT: inputs, the oracle, and the cases that ``plugin_cases`` gathers."""

from __future__ import annotations

import numpy as np

from tests.gpu import numpy_oracles as oracles
from tests.gpu import trt_harness as harness
from tests.gpu.tolerances import (
    BOX_TOLERANCE,
    PROBABILITY_TOLERANCE,
)
from tests.gpu.trt_harness import Input

OPS = ["DecodeDetections"]
OUTPUTS = ["boxes", "scores"]

ATTRIBUTES = {"max_ratio": 4.135166556742356, "stds": [0.1, 0.1, 0.2, 0.2]}


NUM_CLASSES = 80


def make_feeds(batch=2, num_proposals=300, seed=0, dtype=np.float32, agnostic=False) -> dict:
    rng = np.random.default_rng(seed)
    corners = rng.uniform(-20, 1000, (batch, num_proposals, 2))
    sides = np.exp(rng.uniform(0, 6, corners.shape))
    num_deltas = 4 if agnostic else 4 * NUM_CLASSES
    return {
        "logits": rng.normal(0, 4, (batch, num_proposals, NUM_CLASSES + 1)).astype(dtype),
        "deltas": rng.normal(0, 1.5, (batch, num_proposals, num_deltas)).astype(dtype),
        "proposals": np.concatenate([corners, corners + sides], axis=2).astype(np.float32),
        "count": rng.integers(0, num_proposals + 1, batch).astype(np.int32),
        "image_sizes": rng.uniform(100, 1300, (batch, 2)).astype(np.float32),
    }


def make_inputs(dtype=np.float32, agnostic=False) -> list[Input]:
    limits = [(1, 1), (2, 300), (8, 1000)]  # batch, proposals
    widths = {"logits": NUM_CLASSES + 1, "deltas": 4 if agnostic else 4 * NUM_CLASSES, "proposals": 4}
    types = {"logits": dtype, "deltas": dtype, "proposals": np.float32}
    rows = [Input(name, types[name], tuple((b, p, n) for b, p in limits)) for name, n in widths.items()]
    count = Input("count", np.int32, tuple((b,) for b, _ in limits))
    return [*rows, count, Input("image_sizes", np.float32, tuple((b, 2) for b, _ in limits))]


def check_with(result: dict, feeds: dict, attributes: dict) -> int:
    """Return how many candidates there are."""
    boxes, scores = oracles.decode_detections(**feeds, **attributes)
    assert {array.dtype for array in result.values()} == {np.dtype(np.float32)}
    np.testing.assert_allclose(result["scores"], scores, rtol=0, atol=PROBABILITY_TOLERANCE)
    np.testing.assert_array_equal(result["scores"] == -1, scores == -1)
    np.testing.assert_allclose(result["boxes"], boxes, **BOX_TOLERANCE)
    return int((scores >= 0).sum())


def case_decode_detections() -> dict:
    """One engine for several batches and numbers of proposals, of which the outputs' are a multiple."""
    candidates = {}
    variants = [
        (np.float32, False, ATTRIBUTES),
        (np.float16, False, ATTRIBUTES),
        (np.float32, True, {**ATTRIBUTES, "means": [0.1, -0.2, 0.3, -0.4], "clip": 0}),
    ]
    for dtype, agnostic, attributes in variants:
        inputs = make_inputs(dtype, agnostic)
        half = dtype == np.float16
        plan = harness.plan_of("DecodeDetections", attributes, inputs, ["boxes", "scores"], fp16=half)
        engine = harness.engine_from(plan)
        for batch, num_proposals in [(1, 1), (2, 300), (3, 77), (8, 1000)]:
            feeds = make_feeds(batch, num_proposals, seed=batch, dtype=dtype, agnostic=agnostic)
            name = f"{np.dtype(dtype).name} agnostic={agnostic} B={batch} P={num_proposals}"
            candidates[name] = check_with(harness.run_once(engine, feeds), feeds, attributes)
    return {"equal_to_oracle": True, "candidates": candidates}


def case_decode_detections_half_network() -> dict:
    """With the FP16 flag and float32 inputs: coordinates and scores stay float32, whatever is chosen for the rest."""
    plan = harness.plan_of("DecodeDetections", ATTRIBUTES, make_inputs(), ["boxes", "scores"], fp16=True)
    feeds = make_feeds()
    # What FP16 holds: the type in which the plugin reads them then makes no difference.
    feeds.update({name: feeds[name].astype(np.float16).astype(np.float32) for name in ("logits", "deltas")})
    engine = harness.engine_from(plan)
    candidates = check_with(harness.run_once(engine, feeds), feeds, ATTRIBUTES)
    return {"candidates": candidates, "layers": harness.layer_formats(engine)}


REFUSED = [
    # creator, attributes, words of the message
    ("DecodeDetections", {}, "max_ratio"),
    ("DecodeDetections", {**ATTRIBUTES, "max_ratio": -1.0}, "max_ratio"),
    ("DecodeDetections", {**ATTRIBUTES, "stds": [0.1, 0.2]}, "4 numbers"),
    ("DecodeDetections", {**ATTRIBUTES, "means": [0.0, 0.0, 0.0, float("inf")]}, "finite"),
    ("DecodeDetections", {**ATTRIBUTES, "clip": 2}, "from 0 to 1"),
]

BAD_NETWORKS = [
    # what is wrong, attributes, inputs, words of the message
    (
        "deltas of other classes",
        ATTRIBUTES,
        [make_inputs()[0], Input("deltas", np.float32, ((2, 300, 4 * 79),)), *make_inputs()[2:]],
        "4, or 4 for each of 80 classes",
    ),
    (
        "a number of classes that is not fixed",
        ATTRIBUTES,
        [Input("logits", np.float32, ((2, 300, 2), (2, 300, 81))), *make_inputs()[1:]],
        "their number fixed in the graph",
    ),
]

TIMED = [("decode_detections", 1, np.float16), ("decode_detections", 8, np.float16)]


def check(result: dict, feeds: dict) -> int:
    return check_with(result, feeds, ATTRIBUTES)


def timed_case(kind: str, batch: int, dtype: type) -> tuple:
    """Return attributes and feeds at the size of an 800 x 1216 image."""
    return ATTRIBUTES, make_feeds(batch, 1000, dtype=dtype)


CASES = (case_decode_detections, case_decode_detections_half_network)
