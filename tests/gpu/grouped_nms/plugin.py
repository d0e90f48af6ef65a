"""GroupedNMS in TensorRT: inputs, the oracle, and the cases that ``plugin_cases`` gathers."""

from __future__ import annotations

import numpy as np

from tests.gpu import numpy_oracles as oracles
from tests.gpu import trt_harness as harness
from tests.gpu.trt_harness import Input

OPS = ["GroupedNMS"]
OUTPUTS = ["indices", "count"]

ATTRIBUTES = {"iou_threshold": 0.5, "score_threshold": 0.1, "max_output": 50}


def make_feeds(batch=2, num_boxes=400, seed=0, shared_groups=False) -> dict:
    rng = np.random.default_rng(seed)
    boxes = rng.uniform(0, 100, (batch, num_boxes, 4)).astype(np.float32)
    boxes[..., 2:] = boxes[..., :2] + boxes[..., 2:] * 0.5
    scores = np.round(rng.random((batch, num_boxes)), 2).astype(np.float32)  # many ties
    scores[:, ::31] = np.nan
    groups = rng.integers(0, 5, (1 if shared_groups else batch, num_boxes)).astype(np.int32)
    return {"boxes": boxes, "scores": scores, "groups": groups}


def make_inputs(shared_groups=False) -> list[Input]:
    batches = [(1, 1), (2, 400), (4, 5000)]
    groups = [(1 if shared_groups else b, m) for b, m in batches]
    return [
        Input("boxes", np.float32, tuple((b, m, 4) for b, m in batches)),
        Input("scores", np.float32, tuple(batches)),
        Input("groups", np.int32, tuple(groups)),
    ]


def check_with(result: dict, feeds: dict, attributes: dict) -> int:
    options = {"shift_groups": attributes.get("shift_groups", 1) == 1}
    options.update({k: v for k, v in attributes.items() if k != "shift_groups"})
    indices, count = oracles.grouped_nms(feeds["boxes"], feeds["scores"], feeds["groups"], **options)
    np.testing.assert_array_equal(result["count"], count)
    np.testing.assert_array_equal(result["indices"], indices)
    return int(count.sum())


def case_grouped_nms() -> dict:
    kept = {}
    for shift_groups in (0, 1):
        attributes = {**ATTRIBUTES, "shift_groups": shift_groups}
        engine = harness.engine_from(
            harness.plan_of("GroupedNMS", attributes, make_inputs(), ["indices", "count"])
        )
        for batch, num_boxes in [(1, 1), (2, 400), (4, 5000), (3, 777)]:
            feeds = make_feeds(batch, num_boxes, seed=num_boxes)
            kept[f"shift_groups={shift_groups} B={batch} M={num_boxes}"] = check_with(
                harness.run_once(engine, feeds), feeds, attributes
            )
    return {"equal_to_oracle": True, "kept": kept}


def case_grouped_nms_half_network() -> dict:
    """With the FP16 flag and groups (1, M): scores and boxes stay float32, so that the result is the same."""
    plan = harness.plan_of("GroupedNMS", ATTRIBUTES, make_inputs(True), ["indices", "count"], fp16=True)
    feeds = make_feeds(3, 500, shared_groups=True)
    kept = check_with(harness.run_once(harness.engine_from(plan), feeds), feeds, ATTRIBUTES)
    return {"equal_to_oracle": True, "kept": kept}


REFUSED = [
    # creator, attributes, words of the message
    ("GroupedNMS", {**ATTRIBUTES, "max_output": 0}, "max_output"),
    ("GroupedNMS", {**ATTRIBUTES, "iou_threshold": 1.5}, "iou_threshold"),
]

BAD_NETWORKS = [
    # what is wrong, attributes, inputs, words of the message
    ("too few inputs", ATTRIBUTES, make_inputs()[:2], "expected 3 inputs, found 2"),
    (
        "type",
        ATTRIBUTES,
        [*make_inputs()[:2], Input("groups", np.float32, make_inputs()[2].shapes)],
        "input groups of type int32, found float32",
    ),
]

TIMED = [("nms_rpn", 1, None), ("nms_rpn", 8, None), ("nms_classes", 1, None), ("nms_classes", 8, None)]


def check(result: dict, feeds: dict) -> int:
    return check_with(result, feeds, ATTRIBUTES)


def timed_case(kind: str, batch: int, dtype: None) -> tuple:
    """Return attributes and feeds at the size of an 800 x 1216 image."""
    rng = np.random.default_rng(0)
    num_boxes, num_groups, max_output = (4741, 5, 1000) if kind == "nms_rpn" else (80000, 80, 100)
    low = rng.uniform(0, 1, (batch, num_boxes, 2)) * [1000, 600]
    boxes = np.concatenate([low, low + rng.uniform(16, 200, low.shape)], 2).astype(np.float32)
    scores = rng.random((batch, num_boxes)).astype(np.float32)
    if kind == "nms_classes":  # 1000 RoIs x 80 classes, of which softmax leaves about one per RoI above 0.05
        scores *= rng.random(scores.shape) < 1 / 80
    groups = np.broadcast_to(np.arange(num_boxes) % num_groups, scores.shape).astype(np.int32)
    attributes = {"iou_threshold": 0.7 if kind == "nms_rpn" else 0.5, "score_threshold": 0.05}
    attributes["max_output"] = max_output
    return attributes, {"boxes": boxes, "scores": scores, "groups": groups}


# Of two contexts at once: batch and boxes of each.
CONTEXT_SIZES = ((2, 400), (3, 900))
ONNX_FILES = (
    ("grouped_nms", check),
    ("grouped_nms_with_body", check),
)
CASES = (case_grouped_nms,)
# Those that might take the process down.
LAST_CASES = (case_grouped_nms_half_network,)
