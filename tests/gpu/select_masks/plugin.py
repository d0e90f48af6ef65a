"""SelectMasks in TensorRT: inputs, the oracle, and the cases that ``plugin_cases`` gathers."""

from __future__ import annotations

import numpy as np
import tensorrt as trt

from tests.gpu import numpy_oracles as oracles
from tests.gpu import trt_harness as harness
from tests.gpu.tolerances import (
    PROBABILITY_TOLERANCE,
)
from tests.gpu.trt_harness import Input

OPS = ["SelectMasks"]
OUTPUTS = ["masks"]

ATTRIBUTES: dict = {}
NUM_CLASSES = 80


def make_feeds(batch=2, num_masks=20, seed=0, dtype=np.float32, channels=NUM_CLASSES) -> dict:
    rng = np.random.default_rng(seed)
    return {
        "logits": rng.normal(0, 4, (batch * num_masks, channels, 28, 28)).astype(dtype),
        "labels": rng.integers(-1, NUM_CLASSES, (batch, num_masks)).astype(np.int32),
    }


def make_inputs(dtype=np.float32, channels=NUM_CLASSES, formats=None) -> list[Input]:
    limits = [(1, 1), (2, 20), (8, 100)]  # batch, masks
    shapes = tuple((b * k, channels, 28, 28) for b, k in limits)
    return [Input("logits", dtype, shapes, formats), Input("labels", np.int32, tuple(limits))]


def check_selected(masks: np.ndarray, feeds: dict) -> float:
    """Return the largest error."""
    expected = oracles.select_masks(feeds["logits"], feeds["labels"])
    assert masks.dtype == np.float32
    return harness.check_close(masks, expected, 1.0, PROBABILITY_TOLERANCE)


def case_select_masks() -> dict:
    """In FP32 and FP16, of a class each and of one channel for all."""
    errors = {}
    for dtype in (np.float32, np.float16):
        for channels in (NUM_CLASSES, 1):
            half = dtype == np.float16
            plan = harness.plan_of("SelectMasks", {}, make_inputs(dtype, channels), ["masks"], fp16=half)
            engine = harness.engine_from(plan)
            for batch, num_masks in [(1, 1), (2, 20), (3, 7), (8, 100)]:
                feeds = make_feeds(batch, num_masks, batch, dtype, channels)
                masks = harness.run_once(engine, feeds)["masks"]
                assert masks.shape == (batch, num_masks, 28, 28)
                name = f"{np.dtype(dtype).name} C={channels} B={batch} K={num_masks}"
                errors[name] = check_selected(masks, feeds)
    return {"max_error": max(errors.values()), "errors": errors}


def case_select_masks_channels_last() -> dict:
    """Logits as HWC8, which convolutions write in FP16: no reformat may be needed."""
    inputs = make_inputs(np.float16, formats=1 << int(trt.TensorFormat.HWC8))
    engine = harness.engine_from(harness.plan_of("SelectMasks", {}, inputs, ["masks"], fp16=True))
    feeds = make_feeds(dtype=np.float16)
    session = harness.Session(engine, feeds)
    try:
        pointer, logits = session.inputs["logits"]
        session.inputs["logits"] = pointer, np.ascontiguousarray(logits.transpose(0, 2, 3, 1))
        session.upload()
        found = session.run()["masks"]
    finally:
        session.close()
    layers = harness.layer_formats(engine)
    assert not any("eformat" in layer for layer in layers), layers
    return {"max_error": check_selected(found, feeds), "layers": layers}


REFUSED = [
    # creator, attributes, words of the message
    ("SelectMasks", {"threshold": 0.5}, "unknown name"),
]

BAD_NETWORKS = [
    # what is wrong, attributes, inputs, words of the message
    (
        "rows of other detections",
        {},
        [Input("logits", np.float32, ((7, 80, 28, 28),)), Input("labels", np.int32, ((2, 4),))],
        "the rows of logits and the labels",
    ),
]

TIMED = [("select_masks", 1, np.float16), ("select_masks", 8, np.float16)]


def check(result: dict, feeds: dict) -> float:
    return check_selected(result["masks"], feeds)


def timed_case(kind: str, batch: int, dtype: type) -> tuple:
    """Return attributes and feeds of an 800 x 1216 image: linear; benchmarks.kernels has the channels-last ones."""
    return ATTRIBUTES, make_feeds(batch, 100, dtype=dtype)


CASES = (case_select_masks, case_select_masks_channels_last)
