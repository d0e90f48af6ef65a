"""PaddedSpaceToDepth in TensorRT: inputs, the oracle, and the cases that ``plugin_cases`` gathers."""

from __future__ import annotations

import numpy as np
import tensorrt as trt

from tests.gpu import numpy_oracles as oracles
from tests.gpu import trt_harness as harness
from tests.gpu.tolerances import HALF_TOLERANCE
from tests.gpu.trt_harness import Input

OPS = ["PaddedSpaceToDepth"]
OUTPUTS = ["blocks"]

ATTRIBUTES = {"pads": [4, 4, 2, 2], "blocksize": 2}
LIMITS = [(1, 32, 32), (2, 64, 96), (4, 128, 160)]  # batch, height, width of the profile
# Those of a model of any size.
REAL_LIMITS = [(1, 64, 64), (8, 800, 1216), (8, 1344, 1344)]


def make_feeds(batch=2, height=64, width=96, seed=0, dtype=np.float32) -> dict:
    images = np.random.default_rng(seed).uniform(-2, 2, (batch, 3, height, width))
    return {"images": images.astype(dtype)}


def make_inputs(dtype=np.float32, limits=LIMITS) -> list[Input]:
    return [Input("images", dtype, tuple((b, 3, h, w) for b, h, w in limits))]


def check_with(result: dict, feeds: dict, tolerance: float, pads=(4, 4, 2, 2)) -> float:
    expected = oracles.padded_space_to_depth(feeds["images"], pads)
    return harness.check_close(result["blocks"], expected, harness.largest(feeds["images"]), tolerance)


def case_padded_space_to_depth() -> dict:
    """In FP32 and FP16, of images of either type; one engine, several batches and sizes."""
    errors = {}
    for fp16, dtype in ((False, np.float32), (True, np.float32), (True, np.float16)):
        for pads in ((4, 4, 2, 2), (3, 3, 3, 3)):
            attributes = {**ATTRIBUTES, "pads": list(pads)}
            plan = harness.plan_of(OPS[0], attributes, make_inputs(dtype), OUTPUTS, fp16=fp16)
            engine = harness.engine_from(plan)
            for size in [(1, 32, 32), (2, 64, 96), (3, 32, 160), (4, 128, 160)]:
                feeds = make_feeds(*size, seed=size[0], dtype=dtype)
                name = f"fp16={fp16} {np.dtype(dtype).name} {size} {pads}"
                tolerance = HALF_TOLERANCE if fp16 else 0.0
                errors[name] = check_with(harness.run_once(engine, feeds), feeds, tolerance, pads)
    return {"max_error": max(errors.values()), "errors": errors}


def case_padded_space_to_depth_channels_last() -> dict:
    """float32 images become HWC8, which FP16 convolutions read: no reformat and no cast may be needed."""
    hwc8 = 1 << int(trt.TensorFormat.HWC8)
    plan = harness.plan_of(
        OPS[0], ATTRIBUTES, make_inputs(), OUTPUTS, fp16=True, formats=hwc8, dtype=np.float16
    )
    engine = harness.engine_from(plan)
    feeds = make_feeds()
    expected = oracles.padded_space_to_depth(feeds["images"], ATTRIBUTES["pads"])
    batch, channels, height, width = expected.shape
    stored = (batch, height, width, (channels + 7) // 8 * 8)
    found = harness.run_once(engine, feeds, output_shapes={"blocks": stored})["blocks"]
    assert found.dtype == np.float16
    np.testing.assert_array_equal(found[..., :channels].transpose(0, 3, 1, 2), expected.astype(np.float16))
    assert (found[..., channels:] == 0).all()
    layers = harness.layer_formats(engine)
    assert not any("eformat" in layer for layer in layers), layers
    return {"layers": layers}


def case_padded_space_to_depth_before_a_convolution() -> dict:
    """float32 images of any size -> blocks -> FP16 convolution: which formats TensorRT picks, how many reformats."""
    net = harness.new_network(fp16=True)
    (images,) = harness.add_inputs(net, make_inputs(limits=REAL_LIMITS))
    plugin = harness.add_plugin(net, [images], OPS[0], ATTRIBUTES)
    weights = np.random.default_rng(0).standard_normal((64, 12, 4, 4)).astype(np.float32)
    layer = net.network.add_convolution_nd(plugin.get_output(0), 64, (4, 4), trt.Weights(weights))
    harness.mark_outputs(net, layer, ["maps"])
    engine = harness.engine_from(harness.serialized(net))
    feeds = make_feeds()
    blocks = oracles.padded_space_to_depth(feeds["images"], ATTRIBUTES["pads"]).astype(np.float64)
    windows = np.lib.stride_tricks.sliding_window_view(blocks, (4, 4), axis=(2, 3))
    expected = np.einsum("bchwyx,ocyx->bohw", windows, weights, optimize=True)
    found = harness.run_once(engine, feeds)["maps"]
    error = harness.check_close(found, expected, harness.largest(expected), HALF_TOLERANCE)
    session = harness.Session(engine, make_feeds(*REAL_LIMITS[1]))
    milliseconds = session.time_ms()
    session.close()
    layers = harness.layer_formats(engine)
    return {
        "max_error": error,
        "ms_at_8_images": round(milliseconds, 4),
        "reformats": [text for text in layers if "eformat" in text],
        "layers": layers,
    }


REFUSED = [
    # creator, attributes, words of the message
    ("PaddedSpaceToDepth", {}, "pads"),
    ("PaddedSpaceToDepth", {"pads": [4, 4, 2]}, "top, left, bottom and right, found 3 integers"),
    ("PaddedSpaceToDepth", {"pads": [4, 4, 2, -2]}, "from 0 to 32767"),
    ("PaddedSpaceToDepth", {"pads": [4, 4, 2, 2, 0]}, "1 to 4 integers"),
    ("PaddedSpaceToDepth", {"pads": [4, 4, 2, 2], "blocksize": 4}, "from 2 to 2"),
]

BAD_NETWORKS = [
    # what is wrong, attributes, inputs, words of the message
    ("odd height", ATTRIBUTES, [Input("images", np.float32, ((2, 3, 33, 32),))], "even with the pads"),
    ("no batch", ATTRIBUTES, [Input("images", np.float32, ((3, 32, 32),))], "expected input images of shape"),
]

TIMED = [("padded_space_to_depth", 1, np.float16), ("padded_space_to_depth", 8, np.float16)]


def check(result: dict, feeds: dict) -> float:
    return check_with(result, feeds, 0.0)


def check_half(result: dict, feeds: dict) -> float:
    return check_with(result, feeds, HALF_TOLERANCE)


def timed_case(kind: str, batch: int, dtype: type) -> tuple:
    """Return attributes and feeds of 800 x 1216 images: linear; benchmarks.kernels has the channels-last ones."""
    return ATTRIBUTES, make_feeds(batch, 800, 1216, dtype=dtype)


# Of two contexts at once: batch, height and width of each.
CONTEXT_SIZES = ((2, 64, 96), (3, 32, 128))
ONNX_FILES = (("padded_space_to_depth", check_half),)
CASES = (
    case_padded_space_to_depth,
    case_padded_space_to_depth_channels_last,
    case_padded_space_to_depth_before_a_convolution,
)
