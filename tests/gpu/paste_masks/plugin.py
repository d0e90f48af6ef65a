"""PasteMasks in TensorRT: inputs, the oracle, and the cases that ``plugin_cases`` gathers."""

from __future__ import annotations

import numpy as np
import tensorrt as trt

from tests.gpu import numpy_oracles as oracles
from tests.gpu import trt_harness as harness
from tests.gpu.tolerances import (
    NEAR_THRESHOLD,
)
from tests.gpu.trt_harness import Input

OPS = ["PasteMasks"]
OUTPUTS = ["masks_out"]

ATTRIBUTES = {"threshold": 0.5}


def make_feeds(batch=2, num_masks=6, size=(96, 130), seed=0) -> dict:
    rng = np.random.default_rng(seed)
    low = rng.uniform(-10, 60, (batch, num_masks, 2))
    high = low + rng.uniform(1, 80, (batch, num_masks, 2))
    return {
        "masks": rng.random((batch, num_masks, 28, 28)).astype(np.float32),
        "boxes": np.concatenate([low, high], 2).astype(np.float32),
        "canvas": np.zeros((batch, 3, *size), np.float32),
    }


def make_inputs() -> list[Input]:
    limits = [(1, 1, 32, 32), (2, 6, 96, 130), (4, 20, 300, 300)]  # batch, masks, height, width
    return [
        Input("masks", np.float32, tuple((b, k, 28, 28) for b, k, _, _ in limits)),
        Input("boxes", np.float32, tuple((b, k, 4) for b, k, _, _ in limits)),
        Input("canvas", np.float32, tuple((b, 3, h, w) for b, _, h, w in limits)),
    ]


def check_masks(result: np.ndarray, feeds: dict, threshold: float) -> int:
    """Return how many pixels are set."""
    height, width = feeds["canvas"].shape[2:]
    flat = [feeds[name].reshape(-1, *feeds[name].shape[2:]) for name in ("masks", "boxes")]
    probabilities = oracles.pasted_probabilities(*flat, height, width).reshape(*result.shape)
    decided = np.abs(probabilities - threshold) > NEAR_THRESHOLD
    np.testing.assert_array_equal(result.astype(np.uint8)[decided], (probabilities >= threshold)[decided])
    return int(result.sum(dtype=np.int64))


def case_paste_masks() -> dict:
    """In the output type that the library chooses for this TensorRT."""
    results = {}
    for fp16 in (False, True):
        plan = harness.plan_of("PasteMasks", ATTRIBUTES, make_inputs(), ["masks_out"], fp16=fp16)
        engine = harness.engine_from(plan)
        for batch, num_masks, size in [(1, 1, (32, 32)), (2, 6, (96, 130)), (4, 20, (300, 300))]:
            feeds = make_feeds(batch, num_masks, size, seed=batch)
            found = harness.run_once(engine, feeds)["masks_out"]
            results[f"fp16={fp16} B={batch} K={num_masks}"] = check_masks(found, feeds, 0.5)
            output_type = str(found.dtype)
    return {"equal_to_oracle": True, "output_type": output_type, "pixels": results}


def paste_plan(output_type: str, *, to_uint8: bool, fp16: bool) -> bytes:
    """Return an engine whose plugin writes `output_type`, converted by an IdentityLayer where to_uint8 says so."""
    net = harness.new_network(fp16=fp16)
    tensors = harness.add_inputs(net, make_inputs())
    layer = harness.add_plugin(net, tensors, "PasteMasks", {**ATTRIBUTES, "output_type": output_type})
    if output_type == "int8" and harness.TRT_MAJOR < 10:
        net.config.set_flag(trt.BuilderFlag.INT8)
        layer.get_output(0).dynamic_range = (-127.0, 127.0)
    if to_uint8:
        layer = net.network.add_identity(layer.get_output(0))
        layer.set_output_type(0, trt.uint8)
    dtype = {"int8": np.int8, "float16": np.float16}.get(output_type)
    harness.mark_outputs(net, layer, ["masks_out"], dtype=np.uint8 if to_uint8 else dtype)
    return harness.serialized(net)


def case_paste_masks_output_types() -> dict:
    """Which output types this TensorRT takes from a plugin. Informative: at least one has to work."""
    variants = [(name, False, False) for name in ("uint8", "bool", "int8", "float32")]
    variants += [("float16", False, True), ("float32", True, False), ("float32", True, True)]
    outcome = {}
    for output_type, to_uint8, fp16 in variants:
        name = (
            output_type + (" -> IdentityLayer -> uint8" if to_uint8 else "") + (", FP16 flag" if fp16 else "")
        )
        harness.LOG.errors.clear()
        try:
            engine = harness.engine_from(paste_plan(output_type, to_uint8=to_uint8, fp16=fp16))
            feeds = make_feeds()
            found = harness.run_once(engine, feeds)["masks_out"]
            check_masks(found, feeds, 0.5)
            outcome[name] = {"works_as": str(found.dtype), "layers": harness.layer_formats(engine)}
        except Exception as error:
            outcome[name] = f"{type(error).__name__}: {error}"[:400]
    assert any("works_as" in result for result in outcome.values()), outcome
    return outcome


REFUSED = [
    # creator, attributes, words of the message
    ("PasteMasks", {"threshold": -0.1}, "threshold"),
    ("PasteMasks", {"output_type": "int64"}, "uint8, bool"),
]

BAD_NETWORKS = [
    # what is wrong, attributes, inputs, words of the message
    (
        "rank",
        ATTRIBUTES,
        [*make_inputs()[:1], Input("boxes", np.float32, ((2, 6, 4, 1),)), make_inputs()[2]],
        "input boxes of shape",
    ),
]

TIMED = [("paste", 1, None)]


def check(result: dict, feeds: dict) -> int:
    return check_masks(result["masks_out"], feeds, ATTRIBUTES["threshold"])


def timed_case(kind: str, batch: int, dtype: None) -> tuple:
    """Return attributes and feeds at the size of an 800 x 1216 image."""
    rng = np.random.default_rng(0)
    low = rng.uniform(0, 1, (batch, 100, 2)) * [1000, 600]
    boxes = np.concatenate([low, low + rng.uniform(16, 300, low.shape)], 2).astype(np.float32)
    masks = rng.random((batch, 100, 28, 28)).astype(np.float32)
    canvas = np.zeros((batch, 3, 800, 1216), np.float32)
    return ATTRIBUTES, {"masks": masks, "boxes": boxes, "canvas": canvas}


ONNX_FILES = (("paste_masks", check),)
CASES = (case_paste_masks,)
# Those that might take the process down.
LAST_CASES = (case_paste_masks_output_types,)
