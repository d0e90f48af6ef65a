"""MultiLevelRoiAlign and mmcv 1.x's RoiAlign in TensorRT: inputs, the oracle, cases that ``plugin_cases`` gathers."""

from __future__ import annotations

import numpy as np
import tensorrt as trt

from tests.gpu import numpy_oracles as oracles
from tests.gpu import trt_harness as harness
from tests.gpu.tolerances import (
    FLOAT_TOLERANCE,
    HALF_TOLERANCE,
)
from tests.gpu.trt_harness import Input

OPS = ["MultiLevelRoiAlign", "MMCVRoiAlign"]
OUTPUTS = ["out"]

ATTRIBUTES = {
    "output_height": 7,
    "output_width": 7,
    "spatial_scales": [1 / 4, 1 / 8, 1 / 16, 1 / 32],
    "finest_scale": 56.0,
    "sampling_ratio": 0,
    "mode": "avg",
    "coordinate_transformation_mode": "half_pixel",
}


MMCV_ATTRIBUTES = {
    "output_height": 5,
    "output_width": 6,
    "spatial_scale": 0.25,
    "sampling_ratio": 2,
    "mode": "max",
    "aligned": 0,
}


LIMITS = [(1, 64, 64), (2, 128, 160), (4, 192, 192)]  # batch, height, width of the profile


def make_feeds(batch=2, num_rois=60, channels=16, size=(128, 160), dtype=np.float32, seed=0) -> dict:
    rng = np.random.default_rng(seed)
    corners = rng.uniform(-20, 140, (num_rois, 2))
    sides = np.exp(rng.uniform(np.log(2), np.log(500), (num_rois, 2)))
    image = rng.integers(0, batch, (num_rois, 1))
    rois = np.hstack([image, corners, corners + sides]).astype(np.float32)
    rois[::17, 0] = batch  # no such image: zeros
    feeds = {"rois": rois}
    for level in range(4):
        shape = (batch, channels, size[0] >> (level + 2), size[1] >> (level + 2))
        feeds[f"feature_{level}"] = rng.standard_normal(shape).astype(dtype)
    return feeds


def make_inputs(channels=16, dtype=np.float32, formats=None) -> list[Input]:
    def sizes(level):
        return [(b, channels, h >> (level + 2), w >> (level + 2)) for b, h, w in LIMITS]

    rois = Input("rois", np.float32, ((1, 5), (60, 5), (200, 5)))
    return [rois] + [Input(f"feature_{i}", dtype, tuple(sizes(i)), formats) for i in range(4)]


def oracle(feeds: dict, attributes: dict) -> np.ndarray:
    return oracles.multi_level_roi_align(
        [feeds[f"feature_{i}"] for i in range(4)],
        feeds["rois"],
        (attributes["output_height"], attributes["output_width"]),
        attributes["spatial_scales"],
        finest_scale=attributes["finest_scale"],
        ratio=attributes["sampling_ratio"],
        mode=attributes["mode"],
        aligned=attributes["coordinate_transformation_mode"] == "half_pixel",
    )


def check_with(result: dict, feeds: dict, attributes: dict, tolerance: float) -> float:
    features = [feeds[f"feature_{i}"] for i in range(4)]
    return harness.check_close(
        result["out"], oracle(feeds, attributes), harness.largest(*features), tolerance
    )


def case_roi_align_float() -> dict:
    """One engine, several batches and sizes; every mode is an engine of its own."""
    errors = {}
    variants = {
        "avg": ATTRIBUTES,
        "max_unaligned": {
            **ATTRIBUTES,
            "mode": "max",
            "sampling_ratio": 2,
            "coordinate_transformation_mode": "output_half_pixel",
        },
    }
    for name, attributes in variants.items():
        plan = harness.plan_of("MultiLevelRoiAlign", attributes, make_inputs(), ["out"])
        engine = harness.engine_from(plan)
        for batch, num_rois, size in [
            (1, 1, (64, 64)),
            (2, 60, (128, 160)),
            (4, 200, (192, 192)),
            (3, 33, (96, 64)),
        ]:
            feeds = make_feeds(batch, num_rois, size=size, seed=batch)
            result = harness.run_once(engine, feeds)
            errors[f"{name} B={batch} R={num_rois}"] = check_with(result, feeds, attributes, FLOAT_TOLERANCE)
    return {"max_error": max(errors.values()), "errors": errors}


def case_roi_align_half() -> dict:
    inputs = make_inputs(dtype=np.float16)
    plan = harness.plan_of("MultiLevelRoiAlign", ATTRIBUTES, inputs, ["out"], fp16=True, dtype=np.float16)
    engine = harness.engine_from(plan)
    errors = {}
    for batch, num_rois in [(1, 20), (2, 60), (4, 200)]:
        feeds = make_feeds(batch, num_rois, dtype=np.float16, seed=batch)
        result = harness.run_once(engine, feeds)
        assert result["out"].dtype == np.float16
        errors[f"B={batch} R={num_rois}"] = check_with(result, feeds, ATTRIBUTES, HALF_TOLERANCE)
    return {"max_error": max(errors.values()), "errors": errors, "layers": harness.layer_formats(engine)}


def case_roi_align_half_channels_last() -> dict:
    """Features as HWC8, which convolutions write in FP16: no reformat may be needed."""
    hwc8 = 1 << int(trt.TensorFormat.HWC8)
    inputs = make_inputs(dtype=np.float16, formats=hwc8)
    plan = harness.plan_of(
        "MultiLevelRoiAlign", ATTRIBUTES, inputs, ["out"], fp16=True, formats=hwc8, dtype=np.float16
    )
    engine = harness.engine_from(plan)
    feeds = make_feeds(dtype=np.float16)
    stored = {
        k: np.ascontiguousarray(v.transpose(0, 2, 3, 1)) if v.ndim == 4 else v for k, v in feeds.items()
    }
    session = harness.Session(engine, feeds)
    try:
        for name, (pointer, _) in list(session.inputs.items()):
            session.inputs[name] = (pointer, stored[name])
        session.upload()
        found = session.run()["out"]
    finally:
        session.close()
    num_rois, channels, height, width = found.shape
    found = found.reshape(num_rois, height, width, channels).transpose(0, 3, 1, 2)
    error = check_with({"out": found}, feeds, ATTRIBUTES, HALF_TOLERANCE)
    return {"max_error": error, "layers": harness.layer_formats(engine)}


def case_mmcv_roi_align() -> dict:
    errors = {}
    for dtype, tolerance in ((np.float32, FLOAT_TOLERANCE), (np.float16, HALF_TOLERANCE)):
        inputs = [
            Input("input", dtype, ((1, 8, 16, 16), (2, 8, 32, 40), (4, 8, 64, 64))),
            Input("rois", np.float32, ((1, 5), (60, 5), (200, 5))),
        ]
        half = dtype == np.float16
        engine = harness.engine_from(
            harness.plan_of("MMCVRoiAlign", MMCV_ATTRIBUTES, inputs, ["out"], fp16=half)
        )
        source = make_feeds(2, 60, 8, dtype=dtype)
        feeds = {"input": source["feature_0"], "rois": source["rois"]}
        expected = oracles.roi_align(*feeds.values(), (5, 6), 0.25, ratio=2, mode="max", aligned=False)
        found = harness.run_once(engine, feeds)["out"]
        errors[np.dtype(dtype).name] = harness.check_close(
            found, expected, harness.largest(feeds["input"]), tolerance
        )
    return {"errors": errors}


def case_roi_align_no_rois() -> dict:
    inputs = make_inputs()
    inputs[0] = Input("rois", np.float32, ((0, 5), (60, 5), (200, 5)))
    plan = harness.plan_of("MultiLevelRoiAlign", ATTRIBUTES, inputs, ["out"])
    feeds = {**make_feeds(1, 2, size=(64, 64)), "rois": np.zeros((0, 5), np.float32)}
    result = harness.run_once(harness.engine_from(plan), feeds)
    assert result["out"].shape == (0, 16, 7, 7), result["out"].shape
    return {}


INT8_SCALE = 0.013  # 127 of it are less than the largest features


# TensorRT 8.5 lets a plugin write INT8 only where its maps are INT8 too.
INT8_REFUSED = "typeConstraint == DataType::kINT8"


def case_roi_align_int8() -> dict:
    """With ``output_scale`` alone, a plugin of float maps is its own QuantizeLinear; TensorRT 8.5 builds none."""
    errors, refused = {}, {}
    for dtype in (np.float32, np.float16):
        name = np.dtype(dtype).name
        try:
            engine = int8_engine_of(dtype)
        except RuntimeError as error:
            if INT8_REFUSED not in str(error):
                raise
            refused[name] = str(error)
            continue
        assert not trt.__version__.startswith("8.5."), f"{name}: expected to be refused, found an engine"
        for batch, num_rois in [(1, 1), (2, 60), (4, 200)]:
            error = check_int8(engine, make_feeds(batch, num_rois, dtype=dtype, seed=batch), dtype)
            errors[f"{name} B={batch} R={num_rois}"] = error
    return {"errors": errors, "refused": refused}


def int8_engine_of(dtype: type):
    """Return an engine of float maps -> plugin -> DequantizeLinear.

    Raises:
        RuntimeError: TensorRT builds none.
    """
    net = harness.new_network(fp16=dtype == np.float16, int8=True)
    tensors = harness.add_inputs(net, make_inputs(dtype=dtype))
    attributes = {**ATTRIBUTES, "output_scale": INT8_SCALE}
    layer = harness.add_plugin(net, tensors, "MultiLevelRoiAlign", attributes)
    out = harness.dequantized(net, layer.get_output(0), INT8_SCALE)
    out.name = "out"
    net.network.mark_output(out)
    harness.LOG.errors.clear()
    return harness.engine_from(harness.serialized(net))


def check_int8(engine, feeds: dict, dtype: type) -> float:
    """Compare what DequantizeLinear made; return the largest error in steps."""
    found = harness.run_once(engine, feeds)["out"].astype(np.float64) / INT8_SCALE
    steps = np.rint(found)
    # FP16 holds no multiple of the scale exactly.
    assert np.abs(found - steps).max() <= (0.1 if dtype == np.float16 else 1e-3)
    expected = oracle(feeds, ATTRIBUTES) / INT8_SCALE
    if len(feeds["rois"]) > 1:
        assert (steps.min(), steps.max()) == (-128, 127)
    # Half a step, and what positions in float32 are worth.
    largest = harness.largest(*(feeds[f"feature_{i}"] for i in range(4)))
    tolerance = 0.5 + FLOAT_TOLERANCE * largest / INT8_SCALE
    return harness.check_close(steps, expected.clip(-128, 127), 1.0, tolerance)


FEATURE_SCALES = [0.031, 0.017, 0.05, 0.11]
INT8_ATTRIBUTES = {**ATTRIBUTES, "output_scale": INT8_SCALE, "feature_scales": FEATURE_SCALES}


def case_roi_align_of_int8_maps() -> dict:
    """With ``feature_scales`` the plugin is its own DequantizeLinear too."""
    net = harness.new_network(fp16=True, int8=True)
    rois, *maps = harness.add_inputs(net, make_inputs())
    quantized = [harness.quantized(net, each, scale) for each, scale in zip(maps, FEATURE_SCALES)]
    layer = harness.add_plugin(net, [rois, *quantized], "MultiLevelRoiAlign", INT8_ATTRIBUTES)
    out = harness.dequantized(net, layer.get_output(0), INT8_SCALE)
    out.name = "out"
    net.network.mark_output(out)
    engine = harness.engine_from(harness.serialized(net))
    errors = {}
    for batch, num_rois in [(1, 1), (2, 60), (4, 200)]:
        feeds = make_feeds(batch, num_rois, seed=batch)
        # Multiples of the scales, so that QuantizeLinear has nothing to round.
        for i, scale in enumerate(np.float32(FEATURE_SCALES)):
            feeds[f"feature_{i}"] = np.rint(feeds[f"feature_{i}"] / scale).clip(-128, 127) * scale
        found = harness.run_once(engine, feeds)["out"].astype(np.float64) / INT8_SCALE
        steps = np.rint(found)
        assert np.abs(found - steps).max() <= 0.1
        expected = (oracle(feeds, ATTRIBUTES) / INT8_SCALE).clip(-128, 127)
        largest = harness.largest(*(feeds[f"feature_{i}"] for i in range(4)))
        tolerance = 0.5 + FLOAT_TOLERANCE * largest / INT8_SCALE
        errors[f"B={batch} R={num_rois}"] = harness.check_close(steps, expected, 1.0, tolerance)
    return {"errors": errors}


def case_int8_between_convolutions() -> dict:
    """Quantized convolutions -> RoI features -> a quantized convolution, and a product: no reformat, no float."""
    channels, num_rois = 256, 200
    net = harness.new_network(fp16=True, int8=True)
    # Of fixed sizes: the inspector tells no formats of others.
    maps = [Input(f"feature_{i}", np.float32, ((2, channels, 200 >> i, 304 >> i),)) for i in range(4)]
    rois = Input("rois", np.float32, ((num_rois, 5),))
    rois_tensor, *images = harness.add_inputs(net, [rois, *maps])
    rng = np.random.default_rng(0)

    def weights(shape, axis):
        """Weights as quantized files have them: a scale for each output channel."""
        values = (rng.standard_normal(shape) * 0.02).astype(np.float32)
        net.keep.append(values)
        constant = harness.added(net.network.add_constant(shape, trt.Weights(values)), f"weights {shape}")
        scales = np.abs(values).max(axis=tuple(i for i in range(len(shape)) if i != axis)) / 127
        steps = harness.quantized(net, constant.get_output(0), scales, axis)
        return harness.dequantized(net, steps, scales, axis)

    def convolved(tensor):
        layer = net.network.add_convolution_nd(tensor, channels, (3, 3), trt.Weights())
        harness.added(layer, "convolution").set_input(1, weights((channels, channels, 3, 3), axis=0))
        layer.padding_nd = (1, 1)
        return layer

    def map_of(image, scale):
        data = harness.dequantized(net, harness.quantized(net, image, 0.03), 0.03)
        return harness.quantized(net, convolved(data).get_output(0), scale)

    tensors = [rois_tensor, *map(map_of, images, FEATURE_SCALES)]

    def features(bins):
        attributes = {**INT8_ATTRIBUTES, "output_height": bins, "output_width": bins}
        return harness.add_plugin(net, tensors, "MultiLevelRoiAlign", attributes).get_output(0)

    convolution = convolved(harness.dequantized(net, features(14), INT8_SCALE))
    shuffle = net.network.add_shuffle(features(7))
    shuffle.reshape_dims = (num_rois, channels * 49)
    flat = harness.dequantized(net, shuffle.get_output(0), INT8_SCALE)
    none = trt.MatrixOperation.NONE
    product = net.network.add_matrix_multiply(flat, none, weights((channels * 49, 1024), axis=1), none)
    harness.added(product, "product")
    for name, layer in (("maps", convolution), ("flat", product)):
        layer.get_output(0).name = name
        net.network.mark_output(layer.get_output(0))
    engine = harness.engine_from(harness.serialized(net))
    layers = harness.layer_formats(engine)
    plugins = [text for text in layers if "(PluginV" in text]
    assert len(plugins) == 2, layers
    assert all("int8" in text.split(" -> ")[1].lower() for text in plugins), plugins
    return {
        "plugins": plugins,
        "reformats": [text for text in layers if "eformat" in text],
        "layers": layers,
    }


def case_formats_between_convolutions() -> dict:
    """FP16 convolution -> MultiLevelRoiAlign -> FP16 convolution: which formats TensorRT picks, how many reformats."""
    channels = 256
    net = harness.new_network(fp16=True)
    image = Input("x", np.float32, ((2, channels, 200, 304),))
    rois = Input("rois", np.float32, ((1000, 5),))
    x, rois_tensor = harness.add_inputs(net, [image, rois])
    rng = np.random.default_rng(0)

    def convolution(tensor, stride):
        weights = rng.standard_normal((channels, channels, 3, 3)).astype(np.float32) * 0.02
        layer = net.network.add_convolution_nd(tensor, channels, (3, 3), trt.Weights(weights))
        keep.append(weights)
        layer.stride_nd, layer.padding_nd = (stride, stride), (1, 1)
        return layer.get_output(0)

    keep: list[np.ndarray] = []
    maps = [convolution(x, 2**i) for i in range(4)]
    layer = harness.add_plugin(net, [rois_tensor, *maps], "MultiLevelRoiAlign", ATTRIBUTES)
    out = convolution(layer.get_output(0), 1)
    out.name = "out"
    net.network.mark_output(out)
    engine = harness.engine_from(harness.serialized(net))
    layers = harness.layer_formats(engine)
    plugin = [text for text in layers if "(PluginV" in text or "PluginV2" in text]
    return {
        "plugin": plugin,
        "reformats": [text for text in layers if "eformat" in text],
        "layers": len(layers),
    }


REFUSED = [
    # creator, attributes, words of the message
    ("MultiLevelRoiAlign", {**ATTRIBUTES, "output_height": 0}, "from 1 to 32767"),
    ("MultiLevelRoiAlign", {**ATTRIBUTES, "mode": "median"}, "avg, max"),
    ("MultiLevelRoiAlign", {**ATTRIBUTES, "spatial_scales": [0.25] * 9}, "1 to 8 numbers"),
    ("MultiLevelRoiAlign", {**ATTRIBUTES, "spatial_scales": [0.25, -1.0]}, "above 0"),
    ("MultiLevelRoiAlign", {**ATTRIBUTES, "finest_scale": float("nan")}, "found nan"),
    ("MultiLevelRoiAlign", {**ATTRIBUTES, "output_width": 7.5}, "int32"),
    ("MultiLevelRoiAlign", {**ATTRIBUTES, "output_scale": -0.5}, "from 0 to"),
    ("MultiLevelRoiAlign", {**ATTRIBUTES, "output_scale": float("inf")}, "found inf"),
    ("MultiLevelRoiAlign", {**ATTRIBUTES, "feature_scales": [0.5] * 4}, "output_scale above 0"),
    ("MultiLevelRoiAlign", {**ATTRIBUTES, "output_scale": 0.5, "feature_scales": [0.5] * 3}, "found 3"),
    ("MultiLevelRoiAlign", {**ATTRIBUTES, "output_scale": 0.5, "feature_scales": [-0.5] * 4}, "above 0"),
    ("MultiLevelRoiAlign", {**ATTRIBUTES, "colour": 1}, "unknown name"),
    ("MultiLevelRoiAlign", {"output_height": 7}, "output_width"),
    ("MMCVRoiAlign", {**MMCV_ATTRIBUTES, "aligned": 2}, "aligned"),
]

BAD_NETWORKS = [
    # what is wrong, attributes, inputs, words of the message
    (
        "too many levels",
        {**ATTRIBUTES, "spatial_scales": [0.25]},
        make_inputs(),
        "expected 2",
    ),
]

TIMED = [("roi_align", 1, np.float32), ("roi_align", 1, np.float16), ("roi_align", 8, np.float16)]


def check(result: dict, feeds: dict) -> float:
    return check_with(result, feeds, ATTRIBUTES, FLOAT_TOLERANCE)


def check_half(result: dict, feeds: dict) -> float:
    return check_with(result, feeds, ATTRIBUTES, HALF_TOLERANCE)


def timed_case(kind: str, batch: int, dtype: type) -> tuple:
    """Return attributes and feeds at the size of an 800 x 1216 image."""
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, 1, (1000 * batch, 2)) * [1000, 600]
    sides = np.exp(rng.uniform(np.log(16), np.log(500), (1000 * batch, 2)))
    image = np.repeat(np.arange(batch), 1000)[:, None]
    feeds = {"rois": np.hstack([image, corners, corners + sides]).astype(np.float32)}
    for level in range(4):
        shape = (batch, 256, 200 >> level, 304 >> level)
        feeds[f"feature_{level}"] = rng.standard_normal(shape, np.float32).astype(dtype)
    return ATTRIBUTES, feeds


# Of two contexts at once: batch and RoIs of each.
CONTEXT_SIZES = ((2, 60), (3, 150))
ONNX_FILES = (("multi_level_roi_align", check_half),)
CASES = (case_roi_align_float, case_roi_align_half, case_roi_align_half_channels_last, case_mmcv_roi_align)
# Those that might take the process down.
LAST_CASES = (
    case_roi_align_no_rois,
    case_formats_between_convolutions,
    case_roi_align_int8,
    case_roi_align_of_int8_maps,
    case_int8_between_convolutions,
)
