"""The plugin library inside TensorRT: built, run, stored, read back, refused.

Two ways to run it. With pytest: ``pytest -m tensorrt tests/gpu/test_tensorrt.py``. Without pytest or torch (TensorRT 8
has bindings for Python 3.10 at most), on NumPy and cuda-python alone, with a report:

    MASKRCNN_PLUGINS=build/libmaskrcnn_plugins.so python -m tests.gpu.test_tensorrt --json OUT.json
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from pathlib import Path

import numpy as np

try:
    import pytest
except ImportError:  # the report needs none
    pytest = None
try:
    import tensorrt as trt

    from tests.gpu import trt_harness as harness
    from tests.gpu.trt_harness import Input
except ImportError as error:
    if pytest is None:
        raise
    pytest.skip(f"TensorRT, or cuda-python, is not installed: {error}", allow_module_level=True)

from tests.gpu import numpy_oracles as oracles
from tests.gpu import proposals

ROOT = Path(__file__).parents[2]
ONNX_VARIABLE = "MASKRCNN_TEST_ONNX"  # a folder with the files of tests/gpu/onnx_models.py
OPS = ["MultiLevelRoiAlign", "GroupedNMS", "PasteMasks", "MMCVRoiAlign", "grid_sampler", "SelectTop"]
OPS += ["DecodeProposals", "DecodeDetections", "SelectMasks"]

FLOAT_TOLERANCE = (
    1e-5  # relative to the largest feature: float32 rounding of positions and of up to 512 x 512 samples
)
HALF_TOLERANCE = 2e-3  # the same with a result rounded to 11 bits
PROBABILITY_TOLERANCE = 2e-6  # float32 against float64: exp, a sum, a quotient
BOX_TOLERANCE = {"rtol": 1e-6, "atol": 5e-4}  # px: two units of exp on half a side of 2000 px
UNDECIDED = 1e-5  # rounding moves a probability this close to the threshold to either side

ROI_ATTRIBUTES = {
    "output_height": 7,
    "output_width": 7,
    "spatial_scales": [1 / 4, 1 / 8, 1 / 16, 1 / 32],
    "finest_scale": 56.0,
    "sampling_ratio": 0,
    "mode": "avg",
    "coordinate_transformation_mode": "half_pixel",
}
NMS_ATTRIBUTES = {"iou_threshold": 0.5, "score_threshold": 0.1, "max_output": 50}
PASTE_ATTRIBUTES = {"threshold": 0.5}
SELECT_ATTRIBUTES = {"k": 100}
PROPOSAL_ATTRIBUTES = {"top": [300, 300, 100], "max_ratio": proposals.MAX_RATIO, "min_size": 10.0}
DECODE_ATTRIBUTES = {"max_ratio": 4.135166556742356, "stds": [0.1, 0.1, 0.2, 0.2]}
NUM_CLASSES = 80
MMCV_ATTRIBUTES = {
    "output_height": 5,
    "output_width": 6,
    "spatial_scale": 0.25,
    "sampling_ratio": 2,
    "mode": "max",
    "aligned": 0,
}


# --- Inputs -------------------------------------------------------------------------------------------------------


def roi_feeds(batch=2, num_rois=60, channels=16, size=(128, 160), dtype=np.float32, seed=0) -> dict:
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


def roi_inputs(channels=16, dtype=np.float32, formats=None) -> list[Input]:
    def sizes(level):
        return [(b, channels, h >> (level + 2), w >> (level + 2)) for b, h, w in LIMITS]

    rois = Input("rois", np.float32, ((1, 5), (60, 5), (200, 5)))
    return [rois] + [Input(f"feature_{i}", dtype, tuple(sizes(i)), formats) for i in range(4)]


LIMITS = [(1, 64, 64), (2, 128, 160), (4, 192, 192)]  # batch, height, width of the profile


def roi_oracle(feeds: dict, attributes: dict) -> np.ndarray:
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


def nms_feeds(batch=2, num_boxes=400, seed=0, shared_groups=False) -> dict:
    rng = np.random.default_rng(seed)
    boxes = rng.uniform(0, 100, (batch, num_boxes, 4)).astype(np.float32)
    boxes[..., 2:] = boxes[..., :2] + boxes[..., 2:] * 0.5
    scores = np.round(rng.random((batch, num_boxes)), 2).astype(np.float32)  # many ties
    scores[:, ::31] = np.nan
    groups = rng.integers(0, 5, (1 if shared_groups else batch, num_boxes)).astype(np.int32)
    return {"boxes": boxes, "scores": scores, "groups": groups}


def nms_inputs(shared_groups=False) -> list[Input]:
    batches = [(1, 1), (2, 400), (4, 5000)]
    groups = [(1 if shared_groups else b, m) for b, m in batches]
    return [
        Input("boxes", np.float32, tuple((b, m, 4) for b, m in batches)),
        Input("scores", np.float32, tuple(batches)),
        Input("groups", np.int32, tuple(groups)),
    ]


def paste_feeds(batch=2, num_masks=6, size=(96, 130), seed=0) -> dict:
    rng = np.random.default_rng(seed)
    low = rng.uniform(-10, 60, (batch, num_masks, 2))
    high = low + rng.uniform(1, 80, (batch, num_masks, 2))
    return {
        "masks": rng.random((batch, num_masks, 28, 28)).astype(np.float32),
        "boxes": np.concatenate([low, high], 2).astype(np.float32),
        "canvas": np.zeros((batch, 3, *size), np.float32),
    }


def paste_inputs() -> list[Input]:
    limits = [(1, 1, 32, 32), (2, 6, 96, 130), (4, 20, 300, 300)]  # batch, masks, height, width
    return [
        Input("masks", np.float32, tuple((b, k, 28, 28) for b, k, _, _ in limits)),
        Input("boxes", np.float32, tuple((b, k, 4) for b, k, _, _ in limits)),
        Input("canvas", np.float32, tuple((b, 3, h, w) for b, _, h, w in limits)),
    ]


def select_feeds(batch=2, num_scores=20000, seed=0) -> dict:
    rng = np.random.default_rng(seed)
    scores = 1 / (1 + np.exp(-rng.normal(12, 5, (batch, num_scores)).astype(np.float32)))  # ties at 1
    scores[:, ::31] = np.nan
    return {"scores": scores.astype(np.float32)}


def select_inputs() -> list[Input]:
    return [Input("scores", np.float32, ((1, 100), (2, 20000), (8, 182400)))]


def proposal_sizes(size: int, num_levels: int) -> list:
    """Heights and widths of an image of `size` x 5/4 `size` px at strides 8, 16, ..."""
    return [
        (-(-size // stride), -(-size * 5 // 4 // stride)) for stride in (8 << i for i in range(num_levels))
    ]


def proposal_feeds(batch=2, size=400, seed=0, dtype=np.float32, sizes=None) -> dict:
    """Inputs by name; float16 holds the maps as well, so that the type in which the plugin reads them is no matter."""
    sizes = sizes or proposal_sizes(size, 3)
    rng = np.random.default_rng(seed)
    case = proposals.proposals_case(
        rng, sizes, num_anchors=3, batch=batch, kind="saturated" if seed % 2 else "rpn"
    )
    feeds = {
        f"{kind}_{level}": case[kind][level].astype(dtype)
        for kind in ("logits", "deltas")
        for level in range(len(sizes))
    }
    return {**feeds, "priors": case["priors"], "image_sizes": case["image_sizes"]}


def proposal_inputs(dtype=np.float32) -> list[Input]:
    limits = [(1, 64), (2, 400), (8, 1200)]  # batch, size
    sizes = [(batch, proposal_sizes(size, 3)) for batch, size in limits]
    maps = [
        Input(f"{kind}_{level}", dtype, tuple((batch, channels, *own[level]) for batch, own in sizes))
        for kind, channels in (("logits", 3), ("deltas", 12))
        for level in range(3)
    ]
    num_priors = [3 * sum(height * width for height, width in own) for _, own in sizes]
    return [
        *maps,
        Input("priors", np.float32, tuple((num, 4) for num in num_priors)),
        Input("image_sizes", np.float32, tuple((batch, 2) for batch, _ in limits)),
    ]


def decode_feeds(batch=2, num_proposals=300, seed=0, dtype=np.float32, agnostic=False) -> dict:
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


def decode_inputs(dtype=np.float32, agnostic=False) -> list[Input]:
    limits = [(1, 1), (2, 300), (8, 1000)]  # batch, proposals
    widths = {"logits": NUM_CLASSES + 1, "deltas": 4 if agnostic else 4 * NUM_CLASSES, "proposals": 4}
    types = {"logits": dtype, "deltas": dtype, "proposals": np.float32}
    rows = [Input(name, types[name], tuple((b, p, n) for b, p in limits)) for name, n in widths.items()]
    count = Input("count", np.int32, tuple((b,) for b, _ in limits))
    return [*rows, count, Input("image_sizes", np.float32, tuple((b, 2) for b, _ in limits))]


def mask_feeds(batch=2, num_masks=20, seed=0, dtype=np.float32, channels=NUM_CLASSES) -> dict:
    rng = np.random.default_rng(seed)
    return {
        "logits": rng.normal(0, 4, (batch * num_masks, channels, 28, 28)).astype(dtype),
        "labels": rng.integers(-1, NUM_CLASSES, (batch, num_masks)).astype(np.int32),
    }


def mask_inputs(dtype=np.float32, channels=NUM_CLASSES, formats=None) -> list[Input]:
    limits = [(1, 1), (2, 20), (8, 100)]  # batch, masks
    shapes = tuple((b * k, channels, 28, 28) for b, k in limits)
    return [Input("logits", dtype, shapes, formats), Input("labels", np.int32, tuple(limits))]


# --- Comparisons --------------------------------------------------------------------------------------------------


def check_close(found: np.ndarray, expected: np.ndarray, scale: float, tolerance: float) -> float:
    """Return the largest error relative to `scale`."""
    assert found.shape == expected.shape, f"expected shape {expected.shape}, found {found.shape}"
    if found.size == 0:
        return 0.0
    error = np.abs(found.astype(np.float64) - expected) / scale
    worst = np.unravel_index(np.argmax(np.where(np.isnan(error), np.inf, error)), error.shape)
    assert error[worst] <= tolerance, (
        f"expected {expected[worst]} at {tuple(int(i) for i in worst)}, found {found[worst]}: "
        f"error {error[worst]} above {tolerance}"
    )
    return float(error[worst])


def largest(*arrays: np.ndarray) -> float:
    return max(float(np.abs(a).max()) for a in arrays)


def check_rois(result: dict, feeds: dict, attributes: dict, tolerance: float) -> float:
    features = [feeds[f"feature_{i}"] for i in range(4)]
    return check_close(result["out"], roi_oracle(feeds, attributes), largest(*features), tolerance)


def check_nms(result: dict, feeds: dict, attributes: dict) -> int:
    options = {"shift_groups": attributes.get("shift_groups", 1) == 1}
    options.update({k: v for k, v in attributes.items() if k != "shift_groups"})
    indices, count = oracles.grouped_nms(feeds["boxes"], feeds["scores"], feeds["groups"], **options)
    np.testing.assert_array_equal(result["count"], count)
    np.testing.assert_array_equal(result["indices"], indices)
    return int(count.sum())


def check_select(result: dict, feeds: dict, attributes: dict) -> int:
    expected = oracles.select_top(feeds["scores"], attributes["k"])
    np.testing.assert_array_equal(result["indices"], expected)
    assert result["values"].dtype == np.float32
    np.testing.assert_array_equal(result["values"], np.take_along_axis(feeds["scores"], expected, axis=1))
    return expected.size


def check_proposals(result: dict, feeds: dict, attributes: dict) -> int:
    """Return how many proposals there are."""
    maps = {
        kind: [feeds[f"{kind}_{level}"] for level in range(len(attributes["top"]))]
        for kind in ("logits", "deltas")
    }
    others = {name: feeds[name] for name in ("priors", "image_sizes")}
    boxes, scores = oracles.decode_proposals(**maps, **others, **attributes)
    assert {array.dtype for array in result.values()} == {np.dtype(np.float32)}
    np.testing.assert_allclose(result["scores"], scores, rtol=0, atol=PROBABILITY_TOLERANCE)
    np.testing.assert_array_equal(result["scores"] == -1, scores == -1)
    np.testing.assert_allclose(result["boxes"], boxes, **BOX_TOLERANCE)
    return int((scores >= 0).sum())


def check_decoded(result: dict, feeds: dict, attributes: dict) -> int:
    """Return how many candidates there are."""
    boxes, scores = oracles.decode_detections(**feeds, **attributes)
    assert {array.dtype for array in result.values()} == {np.dtype(np.float32)}
    np.testing.assert_allclose(result["scores"], scores, rtol=0, atol=PROBABILITY_TOLERANCE)
    np.testing.assert_array_equal(result["scores"] == -1, scores == -1)
    np.testing.assert_allclose(result["boxes"], boxes, **BOX_TOLERANCE)
    return int((scores >= 0).sum())


def check_selected(masks: np.ndarray, feeds: dict) -> float:
    """Return the largest error."""
    expected = oracles.select_masks(feeds["logits"], feeds["labels"])
    assert masks.dtype == np.float32
    return check_close(masks, expected, 1.0, PROBABILITY_TOLERANCE)


def check_masks(result: np.ndarray, feeds: dict, threshold: float) -> int:
    """Return how many pixels are set."""
    height, width = feeds["canvas"].shape[2:]
    flat = [feeds[name].reshape(-1, *feeds[name].shape[2:]) for name in ("masks", "boxes")]
    probabilities = oracles.pasted_probabilities(*flat, height, width).reshape(*result.shape)
    decided = np.abs(probabilities - threshold) > UNDECIDED
    np.testing.assert_array_equal(result.astype(np.uint8)[decided], (probabilities >= threshold)[decided])
    return int(result.sum(dtype=np.int64))


# --- Cases --------------------------------------------------------------------------------------------------------


def case_registered() -> dict:
    """Every creator is there; handing them to loadLibrary and registering them again works."""
    missing = [op for op in OPS if harness.find_creator(op) is None]
    assert not missing, f"expected creators {OPS}, missing {missing}"
    library = harness.load_library()
    registered = library.maskrcnn_plugins_register()
    assert registered == len(OPS), f"expected {len(OPS)} registered creators, found {registered}"
    return {"creators": OPS, "compiled_for_tensorrt": library.maskrcnn_plugins_tensorrt_version()}


REFUSED = [
    ("MultiLevelRoiAlign", {**ROI_ATTRIBUTES, "output_height": 0}, "from 1 to 32767"),
    ("MultiLevelRoiAlign", {**ROI_ATTRIBUTES, "mode": "median"}, "avg, max"),
    ("MultiLevelRoiAlign", {**ROI_ATTRIBUTES, "spatial_scales": [0.25] * 9}, "1 to 8 numbers"),
    ("MultiLevelRoiAlign", {**ROI_ATTRIBUTES, "spatial_scales": [0.25, -1.0]}, "above 0"),
    ("MultiLevelRoiAlign", {**ROI_ATTRIBUTES, "finest_scale": float("nan")}, "found nan"),
    ("MultiLevelRoiAlign", {**ROI_ATTRIBUTES, "output_width": 7.5}, "int32"),
    ("MultiLevelRoiAlign", {**ROI_ATTRIBUTES, "colour": 1}, "unknown name"),
    ("MultiLevelRoiAlign", {"output_height": 7}, "output_width"),
    ("GroupedNMS", {**NMS_ATTRIBUTES, "max_output": 0}, "max_output"),
    ("GroupedNMS", {**NMS_ATTRIBUTES, "iou_threshold": 1.5}, "iou_threshold"),
    ("PasteMasks", {"threshold": -0.1}, "threshold"),
    ("SelectTop", {"k": 0}, "from 1 to 4096"),
    ("SelectTop", {"k": 4097}, "from 1 to 4096"),
    ("SelectTop", {}, "k"),
    ("DecodeProposals", {"top": [100]}, "max_ratio"),
    ("DecodeProposals", {"max_ratio": 4.0}, "top"),
    ("DecodeProposals", {"max_ratio": 4.0, "top": [1] * 9}, "1 to 8 integers"),
    ("DecodeProposals", {"max_ratio": 4.0, "top": [1, 0]}, "from 1 to 4096"),
    ("DecodeProposals", {"max_ratio": 4.0, "top": [4097]}, "from 1 to 4096"),
    ("DecodeProposals", {**PROPOSAL_ATTRIBUTES, "stds": [1.0] * 5}, "4 numbers"),
    ("DecodeProposals", {**PROPOSAL_ATTRIBUTES, "min_size": float("nan")}, "min_size"),
    ("DecodeProposals", {**PROPOSAL_ATTRIBUTES, "clip": -1}, "from 0 to 1"),
    ("DecodeDetections", {}, "max_ratio"),
    ("DecodeDetections", {**DECODE_ATTRIBUTES, "max_ratio": -1.0}, "max_ratio"),
    ("DecodeDetections", {**DECODE_ATTRIBUTES, "stds": [0.1, 0.2]}, "4 numbers"),
    ("DecodeDetections", {**DECODE_ATTRIBUTES, "means": [0.0, 0.0, 0.0, float("inf")]}, "finite"),
    ("DecodeDetections", {**DECODE_ATTRIBUTES, "clip": 2}, "from 0 to 1"),
    ("SelectMasks", {"threshold": 0.5}, "unknown name"),
    ("PasteMasks", {"output_type": "int64"}, "uint8, bool"),
    ("MMCVRoiAlign", {**MMCV_ATTRIBUTES, "aligned": 2}, "aligned"),
    ("grid_sampler", {"interpolation_mode": 3}, "interpolation_mode"),
]


def case_refused_attributes() -> dict:
    for op, attributes, words in REFUSED:
        harness.LOG.errors.clear()
        assert harness.create_plugin(op, attributes) is None, f"{op} accepted {attributes}"
        assert any(words in message for message in harness.LOG.errors), (words, harness.LOG.errors)
    return {"refused": len(REFUSED), "example": harness.LOG.errors[-1]}


def case_serialised_attributes() -> dict:
    """What IPluginV2 stores is read back, and anything else is refused."""
    if harness.TRT_MAJOR >= 10:
        return {"skipped": "IPluginV3 stores its fields through TensorRT"}
    creator = harness.find_creator("MultiLevelRoiAlign")
    stored = bytes(harness.create_plugin("MultiLevelRoiAlign", ROI_ATTRIBUTES).serialize())
    again = creator.deserialize_plugin("plugin", stored)
    assert bytes(again.serialize()) == stored
    damaged = [
        stored[:-1],
        stored[:6],
        stored + b"x",
        b"XXXX" + stored[4:],
        stored[:4] + b"\x09" + stored[5:],
        b"M",
    ]
    for data in damaged:
        harness.LOG.errors.clear()
        assert creator.deserialize_plugin("plugin", data) is None
        assert any("rebuild it" in message or "attribute" in message for message in harness.LOG.errors)
    return {"bytes": len(stored), "damaged_refused": len(damaged)}


def case_roi_align_float() -> dict:
    """One engine, several batches and sizes; every mode is an engine of its own."""
    errors = {}
    variants = {
        "avg": ROI_ATTRIBUTES,
        "max_unaligned": {
            **ROI_ATTRIBUTES,
            "mode": "max",
            "sampling_ratio": 2,
            "coordinate_transformation_mode": "output_half_pixel",
        },
    }
    for name, attributes in variants.items():
        plan = harness.plan_of("MultiLevelRoiAlign", attributes, roi_inputs(), ["out"])
        engine = harness.engine_from(plan)
        for batch, num_rois, size in [
            (1, 1, (64, 64)),
            (2, 60, (128, 160)),
            (4, 200, (192, 192)),
            (3, 33, (96, 64)),
        ]:
            feeds = roi_feeds(batch, num_rois, size=size, seed=batch)
            result = harness.run_once(engine, feeds)
            errors[f"{name} B={batch} R={num_rois}"] = check_rois(result, feeds, attributes, FLOAT_TOLERANCE)
    return {"max_error": max(errors.values()), "errors": errors}


def case_roi_align_half() -> dict:
    inputs = roi_inputs(dtype=np.float16)
    plan = harness.plan_of("MultiLevelRoiAlign", ROI_ATTRIBUTES, inputs, ["out"], fp16=True, dtype=np.float16)
    engine = harness.engine_from(plan)
    errors = {}
    for batch, num_rois in [(1, 20), (2, 60), (4, 200)]:
        feeds = roi_feeds(batch, num_rois, dtype=np.float16, seed=batch)
        result = harness.run_once(engine, feeds)
        assert result["out"].dtype == np.float16
        errors[f"B={batch} R={num_rois}"] = check_rois(result, feeds, ROI_ATTRIBUTES, HALF_TOLERANCE)
    return {"max_error": max(errors.values()), "errors": errors, "layers": layer_formats(engine)}


def case_roi_align_half_channels_last() -> dict:
    """Features as HWC8, which convolutions write in FP16: no reformat may be needed."""
    hwc8 = 1 << int(trt.TensorFormat.HWC8)
    inputs = roi_inputs(dtype=np.float16, formats=hwc8)
    plan = harness.plan_of(
        "MultiLevelRoiAlign", ROI_ATTRIBUTES, inputs, ["out"], fp16=True, formats=hwc8, dtype=np.float16
    )
    engine = harness.engine_from(plan)
    feeds = roi_feeds(dtype=np.float16)
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
    error = check_rois({"out": found}, feeds, ROI_ATTRIBUTES, HALF_TOLERANCE)
    return {"max_error": error, "layers": layer_formats(engine)}


def case_roi_align_no_rois() -> dict:
    inputs = roi_inputs()
    inputs[0] = Input("rois", np.float32, ((0, 5), (60, 5), (200, 5)))
    plan = harness.plan_of("MultiLevelRoiAlign", ROI_ATTRIBUTES, inputs, ["out"])
    feeds = {**roi_feeds(1, 2, size=(64, 64)), "rois": np.zeros((0, 5), np.float32)}
    result = harness.run_once(harness.engine_from(plan), feeds)
    assert result["out"].shape == (0, 16, 7, 7), result["out"].shape
    return {}


def case_grouped_nms() -> dict:
    kept = {}
    for shift_groups in (0, 1):
        attributes = {**NMS_ATTRIBUTES, "shift_groups": shift_groups}
        engine = harness.engine_from(
            harness.plan_of("GroupedNMS", attributes, nms_inputs(), ["indices", "count"])
        )
        for batch, num_boxes in [(1, 1), (2, 400), (4, 5000), (3, 777)]:
            feeds = nms_feeds(batch, num_boxes, seed=num_boxes)
            kept[f"shift_groups={shift_groups} B={batch} M={num_boxes}"] = check_nms(
                harness.run_once(engine, feeds), feeds, attributes
            )
    return {"equal_to_oracle": True, "kept": kept}


def case_grouped_nms_half_network() -> dict:
    """With the FP16 flag and groups (1, M): scores and boxes stay float32, so that the result is the same."""
    plan = harness.plan_of("GroupedNMS", NMS_ATTRIBUTES, nms_inputs(True), ["indices", "count"], fp16=True)
    feeds = nms_feeds(3, 500, shared_groups=True)
    kept = check_nms(harness.run_once(harness.engine_from(plan), feeds), feeds, NMS_ATTRIBUTES)
    return {"equal_to_oracle": True, "kept": kept}


def case_select_top() -> dict:
    """One engine for several batches and row lengths; with the FP16 flag scores stay float32, and so do ties."""
    taken = {}
    for fp16 in (False, True):
        for k in (100, 1000):
            low = select_inputs()[0].shapes[0][1] if k == 100 else k
            shapes = ((1, low), *select_inputs()[0].shapes[1:])
            inputs = [Input("scores", np.float32, shapes)]
            plan = harness.plan_of("SelectTop", {"k": k}, inputs, ["values", "indices"], fp16=fp16)
            engine = harness.engine_from(plan)
            for batch, num_scores in [(1, low), (2, 20000), (3, 8193), (1, 182400), (8, 182400)]:
                feeds = select_feeds(batch, num_scores, seed=num_scores)
                name = f"fp16={fp16} k={k} B={batch} N={num_scores}"
                taken[name] = check_select(harness.run_once(engine, feeds), feeds, {"k": k})
    return {"equal_to_oracle": True, "taken": taken}


def case_decode_proposals() -> dict:
    """One engine for several batches and sizes: priors of another number, levels with fewer anchors than rows."""
    found = {}
    free = {**PROPOSAL_ATTRIBUTES, "min_size": -1.0, "clip": 0, "stds": [0.5, 0.5, 0.25, 0.25]}
    for dtype, fp16, attributes in [
        (np.float32, False, PROPOSAL_ATTRIBUTES),
        (np.float32, True, PROPOSAL_ATTRIBUTES),
        (np.float16, True, PROPOSAL_ATTRIBUTES),
        (np.float32, False, {**free, "means": [0.125, -0.25, 0.0, 0.5]}),
    ]:
        plan = harness.plan_of(
            "DecodeProposals", attributes, proposal_inputs(dtype), ["boxes", "scores"], fp16=fp16
        )
        engine = harness.engine_from(plan)
        for batch, size in [(1, 64), (2, 400), (3, 333), (8, 1200)]:
            feeds = proposal_feeds(batch, size, seed=batch, dtype=dtype)
            name = (
                f"{np.dtype(dtype).name} fp16={fp16} clip={attributes.get('clip', 1)} B={batch} size={size}"
            )
            found[name] = check_proposals(harness.run_once(engine, feeds), feeds, attributes)
    return {"equal_to_oracle": True, "proposals": found}


def case_decode_proposals_after_convolutions() -> dict:
    """FP16 convolutions -> DecodeProposals, 3 and 12 channels: which formats TensorRT picks, how many reformats."""
    sizes, attributes = [(50, 76), (25, 38)], {**PROPOSAL_ATTRIBUTES, "top": [1000, 500]}
    feeds = proposal_feeds(2, sizes=sizes, seed=1)
    net = harness.new_network(fp16=True)
    stacked = {}  # the maps of a level side by side: convolutions of 1 x 1 take them apart again, exactly
    for level in range(2):
        maps = [feeds[f"{kind}_{level}"] for kind in ("logits", "deltas")]
        stacked[f"map_{level}"] = np.concatenate([*maps, maps[0][:, :1]], axis=1)
    others = {"image_sizes": feeds["image_sizes"]}
    specs = [Input(name, np.float32, (array.shape,)) for name, array in {**stacked, **others}.items()]
    *maps, image_sizes = harness.add_inputs(net, specs)
    # Anchors are a constant, as in an exported graph of fixed size: rounded to FP16 they would be half a pixel off.
    keep: list[np.ndarray] = [np.ascontiguousarray(feeds["priors"])]
    constant = net.network.add_constant(keep[0].shape, trt.Weights(keep[0]))
    constant.set_output_type(0, trt.float32)
    priors = constant.get_output(0)

    def channels(tensor, first: int, count: int):
        weights = np.ascontiguousarray(np.eye(16, dtype=np.float32)[first : first + count])
        keep.append(weights)
        return net.network.add_convolution_nd(tensor, count, (1, 1), trt.Weights(weights)).get_output(0)

    split = [channels(tensor, 0, 3) for tensor in maps] + [channels(tensor, 3, 12) for tensor in maps]
    layer = harness.add_plugin(net, [*split, priors, image_sizes], "DecodeProposals", attributes)
    harness.mark_outputs(net, layer, ["boxes", "scores"])
    engine = harness.engine_from(harness.serialized(net))
    found = check_proposals(harness.run_once(engine, {**stacked, **others}), feeds, attributes)
    layers = layer_formats(engine)
    return {
        "proposals": found,
        "plugin": [text for text in layers if "PluginV" in text],
        "reformats": [text for text in layers if "eformat" in text],
    }


def case_decode_detections() -> dict:
    """One engine for several batches and numbers of proposals, of which the outputs' are a multiple."""
    candidates = {}
    variants = [
        (np.float32, False, DECODE_ATTRIBUTES),
        (np.float16, False, DECODE_ATTRIBUTES),
        (np.float32, True, {**DECODE_ATTRIBUTES, "means": [0.1, -0.2, 0.3, -0.4], "clip": 0}),
    ]
    for dtype, agnostic, attributes in variants:
        inputs = decode_inputs(dtype, agnostic)
        half = dtype == np.float16
        plan = harness.plan_of("DecodeDetections", attributes, inputs, ["boxes", "scores"], fp16=half)
        engine = harness.engine_from(plan)
        for batch, num_proposals in [(1, 1), (2, 300), (3, 77), (8, 1000)]:
            feeds = decode_feeds(batch, num_proposals, seed=batch, dtype=dtype, agnostic=agnostic)
            name = f"{np.dtype(dtype).name} agnostic={agnostic} B={batch} P={num_proposals}"
            candidates[name] = check_decoded(harness.run_once(engine, feeds), feeds, attributes)
    return {"equal_to_oracle": True, "candidates": candidates}


def case_decode_detections_half_network() -> dict:
    """With the FP16 flag and float32 inputs: coordinates and scores stay float32, whatever is chosen for the rest."""
    plan = harness.plan_of(
        "DecodeDetections", DECODE_ATTRIBUTES, decode_inputs(), ["boxes", "scores"], fp16=True
    )
    feeds = decode_feeds()
    # What FP16 holds: the type in which the plugin reads them then makes no difference.
    feeds.update({name: feeds[name].astype(np.float16).astype(np.float32) for name in ("logits", "deltas")})
    engine = harness.engine_from(plan)
    candidates = check_decoded(harness.run_once(engine, feeds), feeds, DECODE_ATTRIBUTES)
    return {"candidates": candidates, "layers": layer_formats(engine)}


def case_select_masks() -> dict:
    """In FP32 and FP16, of a class each and of one channel for all."""
    errors = {}
    for dtype in (np.float32, np.float16):
        for channels in (NUM_CLASSES, 1):
            half = dtype == np.float16
            plan = harness.plan_of("SelectMasks", {}, mask_inputs(dtype, channels), ["masks"], fp16=half)
            engine = harness.engine_from(plan)
            for batch, num_masks in [(1, 1), (2, 20), (3, 7), (8, 100)]:
                feeds = mask_feeds(batch, num_masks, batch, dtype, channels)
                masks = harness.run_once(engine, feeds)["masks"]
                assert masks.shape == (batch, num_masks, 28, 28)
                name = f"{np.dtype(dtype).name} C={channels} B={batch} K={num_masks}"
                errors[name] = check_selected(masks, feeds)
    return {"max_error": max(errors.values()), "errors": errors}


def case_select_masks_channels_last() -> dict:
    """Logits as HWC8, which convolutions write in FP16: no reformat may be needed."""
    inputs = mask_inputs(np.float16, formats=1 << int(trt.TensorFormat.HWC8))
    engine = harness.engine_from(harness.plan_of("SelectMasks", {}, inputs, ["masks"], fp16=True))
    feeds = mask_feeds(dtype=np.float16)
    session = harness.Session(engine, feeds)
    try:
        pointer, logits = session.inputs["logits"]
        session.inputs["logits"] = pointer, np.ascontiguousarray(logits.transpose(0, 2, 3, 1))
        session.upload()
        found = session.run()["masks"]
    finally:
        session.close()
    layers = layer_formats(engine)
    assert not any("eformat" in layer for layer in layers), layers
    return {"max_error": check_selected(found, feeds), "layers": layers}


def case_paste_masks() -> dict:
    """In the output type that the library chooses for this TensorRT."""
    results = {}
    for fp16 in (False, True):
        plan = harness.plan_of("PasteMasks", PASTE_ATTRIBUTES, paste_inputs(), ["masks_out"], fp16=fp16)
        engine = harness.engine_from(plan)
        for batch, num_masks, size in [(1, 1, (32, 32)), (2, 6, (96, 130)), (4, 20, (300, 300))]:
            feeds = paste_feeds(batch, num_masks, size, seed=batch)
            found = harness.run_once(engine, feeds)["masks_out"]
            results[f"fp16={fp16} B={batch} K={num_masks}"] = check_masks(found, feeds, 0.5)
            output_type = str(found.dtype)
    return {"equal_to_oracle": True, "output_type": output_type, "pixels": results}


def paste_plan(output_type: str, *, to_uint8: bool, fp16: bool) -> bytes:
    """Return an engine whose plugin writes `output_type`, converted by an IdentityLayer where to_uint8 says so."""
    net = harness.new_network(fp16=fp16)
    tensors = harness.add_inputs(net, paste_inputs())
    layer = harness.add_plugin(net, tensors, "PasteMasks", {**PASTE_ATTRIBUTES, "output_type": output_type})
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
            feeds = paste_feeds()
            found = harness.run_once(engine, feeds)["masks_out"]
            check_masks(found, feeds, 0.5)
            outcome[name] = {"works_as": str(found.dtype), "layers": layer_formats(engine)}
        except Exception as error:
            outcome[name] = f"{type(error).__name__}: {error}"[:400]
    assert any("works_as" in result for result in outcome.values()), outcome
    return outcome


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
        source = roi_feeds(2, 60, 8, dtype=dtype)
        feeds = {"input": source["feature_0"], "rois": source["rois"]}
        expected = oracles.roi_align(*feeds.values(), (5, 6), 0.25, ratio=2, mode="max", aligned=False)
        found = harness.run_once(engine, feeds)["out"]
        errors[np.dtype(dtype).name] = check_close(found, expected, largest(feeds["input"]), tolerance)
    return {"errors": errors}


def case_grid_sampler() -> dict:
    rng = np.random.default_rng(0)
    errors = {}
    cases = [
        (4, 0, 1, np.float32),
        (4, 1, 0, np.float32),
        (5, 0, 0, np.float32),
        (4, 0, 1, np.float16),
        (5, 1, 0, np.float16),
    ]
    for rank, padding, align_corners, dtype in cases:
        half = dtype == np.float16
        shapes = ((2, 3, 5, 9, 11), (2, 4, 6, 7, 3)) if rank == 5 else ((2, 3, 9, 11), (2, 6, 7, 2))
        image, grid = rng.standard_normal(shapes[0]), rng.uniform(-1.2, 1.2, shapes[1])
        feeds = {"input": image.astype(dtype), "grid": grid.astype(dtype)}
        inputs = [Input(name, dtype, (array.shape,)) for name, array in feeds.items()]
        attributes = {"interpolation_mode": 0, "padding_mode": padding, "align_corners": align_corners}
        engine = harness.engine_from(harness.plan_of("grid_sampler", attributes, inputs, ["out"], fp16=half))
        named = {"padding": ("zeros", "border")[padding], "align_corners": align_corners == 1}
        expected = oracles.grid_sample(*(array.astype(np.float32) for array in feeds.values()), **named)
        name = f"{rank}-D {named['padding']} align_corners={align_corners} {np.dtype(dtype).name}"
        tolerance = HALF_TOLERANCE if half else FLOAT_TOLERANCE
        errors[name] = check_close(
            harness.run_once(engine, feeds)["out"], expected, largest(image), tolerance
        )
    return {"errors": errors}


def case_new_process() -> dict:
    """An engine written by this process gives the same results in another one."""
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        for op, plan, feeds in stored_engines():
            Path(folder, "plan").write_bytes(plan)
            np.savez(Path(folder, "feeds.npz"), **feeds)
            here = harness.run_once(harness.engine_from(plan), feeds)
            command = [sys.executable, "-m", "tests.gpu.test_tensorrt", "--replay", folder]
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
            assert done.returncode == 0, done.stderr[-2000:]
            with np.load(Path(folder, "results.npz")) as there:
                for name, array in here.items():
                    np.testing.assert_array_equal(there[name], array, err_msg=f"{op} {name}")
            results[op] = f"equal, engine of {len(plan)} bytes"
    return results


def stored_engines():
    yield (
        "MultiLevelRoiAlign",
        harness.plan_of("MultiLevelRoiAlign", ROI_ATTRIBUTES, roi_inputs(), ["out"]),
        roi_feeds(),
    )
    yield (
        "GroupedNMS",
        harness.plan_of("GroupedNMS", NMS_ATTRIBUTES, nms_inputs(), ["indices", "count"]),
        nms_feeds(),
    )
    yield (
        "PasteMasks",
        harness.plan_of("PasteMasks", PASTE_ATTRIBUTES, paste_inputs(), ["masks_out"]),
        paste_feeds(),
    )
    yield (
        "SelectTop",
        harness.plan_of("SelectTop", SELECT_ATTRIBUTES, select_inputs(), ["values", "indices"]),
        select_feeds(),
    )
    yield (
        "DecodeProposals",
        harness.plan_of("DecodeProposals", PROPOSAL_ATTRIBUTES, proposal_inputs(), ["boxes", "scores"]),
        proposal_feeds(),
    )
    yield (
        "DecodeDetections",
        harness.plan_of("DecodeDetections", DECODE_ATTRIBUTES, decode_inputs(), ["boxes", "scores"]),
        decode_feeds(),
    )
    yield "SelectMasks", harness.plan_of("SelectMasks", {}, mask_inputs(), ["masks"]), mask_feeds()


def replay(folder: Path) -> None:
    harness.load_library()
    with np.load(folder / "feeds.npz") as stored:
        feeds = {name: stored[name] for name in stored.files}
    results = harness.run_once(harness.engine_from((folder / "plan").read_bytes()), feeds)
    np.savez(folder / "results.npz", **results)


def case_two_contexts() -> dict:
    """Two contexts of one engine with different inputs, on two streams, from two threads, at once."""
    rounds = 200
    plans = {
        roi_feeds: ("MultiLevelRoiAlign", ROI_ATTRIBUTES, roi_inputs(), ["out"]),
        nms_feeds: ("GroupedNMS", NMS_ATTRIBUTES, nms_inputs(), ["indices", "count"]),
        select_feeds: ("SelectTop", SELECT_ATTRIBUTES, select_inputs(), ["values", "indices"]),
        proposal_feeds: ("DecodeProposals", PROPOSAL_ATTRIBUTES, proposal_inputs(), ["boxes", "scores"]),
    }
    for make, plan in plans.items():
        engine = harness.engine_from(harness.plan_of(*plan, profiles=2))
        feeds = [
            make(2, 60 if make is roi_feeds else 400, seed=1),
            make(3, 150 if make is roi_feeds else 900, seed=2),
        ]
        sessions = [harness.Session(engine, f, profile=i) for i, f in enumerate(feeds)]
        expected = [session.run() for session in sessions]
        failures: list[str] = []

        def work(session, wanted, failures=failures) -> None:
            try:
                with harness.new_stream() as stream:
                    for _ in range(rounds):
                        session.enqueue(stream)
                    harness.check(harness.cudart.cudaStreamSynchronize(stream))
                for name, array in session.download().items():
                    np.testing.assert_array_equal(array, wanted[name])
            except Exception:
                failures.append(traceback.format_exc())

        threads = [threading.Thread(target=work, args=pair) for pair in zip(sessions, expected)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for session in sessions:
            session.close()
        assert not failures, failures[0]
    return {"rounds": rounds, "equal": True}


def case_made_up_inputs() -> dict:
    """NaN, infinities, huge boxes and ids in every input: it ends, and the next run is right."""
    results = {}
    for op, plan, feeds in stored_engines():
        engine = harness.engine_from(plan)
        start = time.perf_counter()
        for value in (np.nan, np.inf, -np.inf, 1e30, -1e9):
            bad = {k: np.full_like(v, value if v.dtype.kind == "f" else 2**31 - 1) for k, v in feeds.items()}
            harness.run_once(engine, bad)
        results[op] = {"seconds": round(time.perf_counter() - start, 3)}
        result = harness.run_once(engine, feeds)
        if op == "GroupedNMS":
            check_nms(result, feeds, NMS_ATTRIBUTES)
        elif op == "MultiLevelRoiAlign":
            check_rois(result, feeds, ROI_ATTRIBUTES, FLOAT_TOLERANCE)
        elif op == "SelectTop":
            check_select(result, feeds, SELECT_ATTRIBUTES)
        elif op == "DecodeProposals":
            check_proposals(result, feeds, PROPOSAL_ATTRIBUTES)
        elif op == "DecodeDetections":
            check_decoded(result, feeds, DECODE_ATTRIBUTES)
        elif op == "SelectMasks":
            check_selected(result["masks"], feeds)
        else:
            check_masks(result["masks_out"], feeds, 0.5)
    return results


def layer_formats(engine) -> list[str]:
    """Return each layer with the formats of its tensors, as the engine inspector tells them."""
    inspector = engine.create_engine_inspector()
    layers = json.loads(inspector.get_engine_information(trt.LayerInformationFormat.JSON))["Layers"]

    def formats(layer: dict, key: str) -> list[str]:
        return sorted({t.get("Format/Datatype", "?").replace(" format", "") for t in layer.get(key, [])})

    return [
        f"{layer['Name'][:60]} ({layer.get('LayerType', '?')}): "
        f"{formats(layer, 'Inputs')} -> {formats(layer, 'Outputs')}"
        for layer in layers
        if isinstance(layer, dict)
    ]


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
    layer = harness.add_plugin(net, [rois_tensor, *maps], "MultiLevelRoiAlign", ROI_ATTRIBUTES)
    out = convolution(layer.get_output(0), 1)
    out.name = "out"
    net.network.mark_output(out)
    engine = harness.engine_from(harness.serialized(net))
    layers = layer_formats(engine)
    plugin = [text for text in layers if "(PluginV" in text or "PluginV2" in text]
    return {
        "plugin": plugin,
        "reformats": [text for text in layers if "eformat" in text],
        "layers": len(layers),
    }


TIMED = [
    # op, attributes, shapes of the inputs, dtype of the features
    ("roi_align", 1, np.float32),
    ("roi_align", 1, np.float16),
    ("roi_align", 8, np.float16),
    ("nms_rpn", 1, None),
    ("nms_rpn", 8, None),
    ("nms_classes", 1, None),
    ("nms_classes", 8, None),
    ("paste", 1, None),
    ("select_top", 1, None),
    ("select_top", 8, None),
    ("decode_proposals", 1, np.float16),
    ("decode_proposals", 8, np.float16),
    ("decode_detections", 1, np.float16),
    ("decode_detections", 8, np.float16),
    ("select_masks", 1, np.float16),
    ("select_masks", 8, np.float16),
]


def timed_case(kind: str, batch: int, dtype):
    """Return op, attributes, feeds at the size of an 800 x 1216 image."""
    rng = np.random.default_rng(0)
    if kind == "roi_align":
        corners = rng.uniform(0, 1, (1000 * batch, 2)) * [1000, 600]
        sides = np.exp(rng.uniform(np.log(16), np.log(500), (1000 * batch, 2)))
        image = np.repeat(np.arange(batch), 1000)[:, None]
        feeds = {"rois": np.hstack([image, corners, corners + sides]).astype(np.float32)}
        for level in range(4):
            shape = (batch, 256, 200 >> level, 304 >> level)
            feeds[f"feature_{level}"] = rng.standard_normal(shape, np.float32).astype(dtype)
        return "MultiLevelRoiAlign", ROI_ATTRIBUTES, feeds, ["out"]
    if kind == "select_top":  # RPN's finest level
        scores = 1 / (1 + np.exp(-rng.normal(-8, 3, (batch, 182400)).astype(np.float32)))
        return "SelectTop", {"k": 1000}, {"scores": scores}, ["values", "indices"]
    if kind == "decode_proposals":  # linear; benchmarks.kernels has the channels-last ones
        attributes = {"top": proposals.RESNET_50_TOP, "max_ratio": proposals.MAX_RATIO}
        feeds = proposal_feeds(batch, dtype=dtype, sizes=proposals.RESNET_50_SIZES)
        return "DecodeProposals", attributes, feeds, ["boxes", "scores"]
    if kind == "decode_detections":
        return (
            "DecodeDetections",
            DECODE_ATTRIBUTES,
            decode_feeds(batch, 1000, dtype=dtype),
            ["boxes", "scores"],
        )
    if kind == "select_masks":  # linear; benchmarks.kernels has the channels-last ones
        return "SelectMasks", {}, mask_feeds(batch, 100, dtype=dtype), ["masks"]
    if kind == "paste":
        low = rng.uniform(0, 1, (batch, 100, 2)) * [1000, 600]
        boxes = np.concatenate([low, low + rng.uniform(16, 300, low.shape)], 2).astype(np.float32)
        masks = rng.random((batch, 100, 28, 28)).astype(np.float32)
        canvas = np.zeros((batch, 3, 800, 1216), np.float32)
        return "PasteMasks", PASTE_ATTRIBUTES, {"masks": masks, "boxes": boxes, "canvas": canvas}, ["out"]
    num_boxes, num_groups, max_output = (4741, 5, 1000) if kind == "nms_rpn" else (80000, 80, 100)
    low = rng.uniform(0, 1, (batch, num_boxes, 2)) * [1000, 600]
    boxes = np.concatenate([low, low + rng.uniform(16, 200, low.shape)], 2).astype(np.float32)
    scores = rng.random((batch, num_boxes)).astype(np.float32)
    if kind == "nms_classes":  # 1000 RoIs x 80 classes, of which softmax leaves about one per RoI above 0.05
        scores *= rng.random(scores.shape) < 1 / 80
    groups = np.broadcast_to(np.arange(num_boxes) % num_groups, scores.shape).astype(np.int32)
    attributes = {"iou_threshold": 0.7 if kind == "nms_rpn" else 0.5, "score_threshold": 0.05}
    attributes["max_output"] = max_output
    return (
        "GroupedNMS",
        attributes,
        {"boxes": boxes, "scores": scores, "groups": groups},
        ["indices", "count"],
    )


def case_times() -> dict:
    """Median enqueue, launch overhead included, and the same in a CUDA graph: nothing may need the host."""
    times = {}
    for kind, batch, dtype in TIMED:
        op, attributes, feeds, outputs = timed_case(kind, batch, dtype)
        inputs = [Input(name, array.dtype.type, (array.shape,)) for name, array in feeds.items()]
        half = dtype == np.float16
        engine = harness.engine_from(harness.plan_of(op, attributes, inputs, outputs, fp16=half))
        session = harness.Session(engine, feeds)
        name = f"{kind} B={batch}" + ("" if dtype is None else f" {np.dtype(dtype).name}")
        times[name] = {"enqueue_ms": round(session.time_ms(), 4)}
        times[name]["graph_launch_ms"] = round(harness.graph_time_ms(session), 4)
        session.close()
    return times


BAD_NETWORKS = [
    ("too few inputs", "GroupedNMS", NMS_ATTRIBUTES, nms_inputs()[:2], "expected 3 inputs, found 2"),
    (
        "too many levels",
        "MultiLevelRoiAlign",
        {**ROI_ATTRIBUTES, "spatial_scales": [0.25]},
        roi_inputs(),
        "expected 2",
    ),
    (
        "rank",
        "PasteMasks",
        PASTE_ATTRIBUTES,
        [*paste_inputs()[:1], Input("boxes", np.float32, ((2, 6, 4, 1),)), paste_inputs()[2]],
        "input boxes of shape",
    ),
    (
        "type",
        "GroupedNMS",
        NMS_ATTRIBUTES,
        [*nms_inputs()[:2], Input("groups", np.float32, nms_inputs()[2].shapes)],
        "input groups of type int32, found float32",
    ),
    (
        "rows shorter than k",
        "SelectTop",
        SELECT_ATTRIBUTES,
        [Input("scores", np.float32, ((2, 99),))],
        "rows of k = 100 to",
    ),
    (
        "fewer levels than top",
        "DecodeProposals",
        PROPOSAL_ATTRIBUTES,
        [*proposal_inputs()[:2], *proposal_inputs()[3:5], *proposal_inputs()[6:]],
        "expected 8 inputs, found 6",
    ),
    (
        "anchors of another number",
        "DecodeProposals",
        {"top": [5], "max_ratio": 4.0},
        [
            Input("logits_0", np.float32, ((2, 3, 4, 5),)),
            Input("deltas_0", np.float32, ((2, 12, 4, 5),)),
            Input("priors", np.float32, ((59, 4),)),
            Input("image_sizes", np.float32, ((2, 2),)),
        ],
        "input priors of shape (60, 4)",
    ),
    (
        "deltas of other anchors",
        "DecodeProposals",
        {"top": [5], "max_ratio": 4.0},
        [
            Input("logits_0", np.float32, ((2, 3, 4, 5),)),
            Input("deltas_0", np.float32, ((2, 9, 4, 5),)),
            Input("priors", np.float32, ((60, 4),)),
            Input("image_sizes", np.float32, ((2, 2),)),
        ],
        "input deltas_0 of shape (2, 12, 4, 5)",
    ),
    (
        "deltas of other classes",
        "DecodeDetections",
        DECODE_ATTRIBUTES,
        [decode_inputs()[0], Input("deltas", np.float32, ((2, 300, 4 * 79),)), *decode_inputs()[2:]],
        "4, or 4 for each of 80 classes",
    ),
    (
        "a number of classes that is not fixed",
        "DecodeDetections",
        DECODE_ATTRIBUTES,
        [Input("logits", np.float32, ((2, 300, 2), (2, 300, 81))), *decode_inputs()[1:]],
        "their number fixed in the graph",
    ),
    (
        "rows of other detections",
        "SelectMasks",
        {},
        [Input("logits", np.float32, ((7, 80, 28, 28),)), Input("labels", np.int32, ((2, 4),))],
        "the rows of logits and the labels",
    ),
]


def case_refused_networks() -> dict:
    """Inputs that cannot be: the build fails with a message, and the process lives."""
    messages = {}
    for name, op, attributes, inputs, words in BAD_NETWORKS:
        harness.LOG.errors.clear()
        try:
            harness.plan_of(op, attributes, inputs, ["out"])
            raise AssertionError(f"{name}: expected no engine")
        except RuntimeError:
            pass
        assert any(words in message for message in harness.LOG.errors), (name, words, harness.LOG.errors)
        messages[name] = next(message for message in harness.LOG.errors if words in message)
    return messages


# --- ONNX files ---------------------------------------------------------------------------------------------------


def case_onnx_files() -> dict:
    """Files of tests/gpu/onnx_models.py, parsed, built in FP32 and FP16, run."""
    folder = os.environ.get(ONNX_VARIABLE)
    if not folder:
        return {
            "skipped": f"{ONNX_VARIABLE} is not set: it names the folder that tests/gpu/onnx_models.py wrote"
        }
    checks = {
        "multi_level_roi_align": (
            roi_inputs(),
            roi_feeds(),
            lambda r, f: check_rois(r, f, ROI_ATTRIBUTES, HALF_TOLERANCE),
        ),
        "grouped_nms": (nms_inputs(), nms_feeds(), lambda r, f: check_nms(r, f, NMS_ATTRIBUTES)),
        "decode_proposals": (
            proposal_inputs(),
            proposal_feeds(),
            lambda r, f: check_proposals(r, f, PROPOSAL_ATTRIBUTES),
        ),
        "select_top": (select_inputs(), select_feeds(), lambda r, f: check_select(r, f, SELECT_ATTRIBUTES)),
        "paste_masks": (paste_inputs(), paste_feeds(), lambda r, f: check_masks(r["masks_out"], f, 0.5)),
        "grouped_nms_with_body": (nms_inputs(), nms_feeds(), lambda r, f: check_nms(r, f, NMS_ATTRIBUTES)),
    }
    outcome = {}
    for name, (inputs, feeds, verify) in checks.items():
        for fp16 in (False, True):
            net = harness.new_network(fp16=fp16)
            parser = trt.OnnxParser(net.network, harness.LOG)
            parsed = parser.parse(Path(folder, f"{name}.onnx").read_bytes())
            assert parsed, [str(parser.get_error(i)) for i in range(parser.num_errors)]
            harness.add_profile(net, inputs)
            engine = harness.engine_from(harness.serialized(net))
            verify(harness.run_once(engine, feeds), feeds)
        outcome[name] = "parsed, built in FP32 and FP16, equal to the oracle"
    return outcome


# In the order of a report: the cheap ones first, those that might take the process down last.
CASES = {
    name[len("case_") :]: globals()[name]
    for name in (
        "case_registered",
        "case_refused_attributes",
        "case_serialised_attributes",
        "case_roi_align_float",
        "case_grouped_nms",
        "case_select_top",
        "case_decode_proposals",
        "case_decode_proposals_after_convolutions",
        "case_decode_detections",
        "case_select_masks",
        "case_select_masks_channels_last",
        "case_decode_detections_half_network",
        "case_paste_masks",
        "case_roi_align_half",
        "case_roi_align_half_channels_last",
        "case_mmcv_roi_align",
        "case_grid_sampler",
        "case_new_process",
        "case_two_contexts",
        "case_onnx_files",
        "case_times",
        "case_grouped_nms_half_network",
        "case_made_up_inputs",
        "case_roi_align_no_rois",
        "case_refused_networks",
        "case_paste_masks_output_types",
        "case_formats_between_convolutions",
    )
}

if pytest is not None:

    @pytest.fixture(scope="module", autouse=True)
    def library():
        path = harness.library_path()
        if not path.is_file():
            pytest.skip(f"no {path}: run `make plugins`, or name the library in {harness.LIBRARY_VARIABLE}")
        harness.load_library()

    @pytest.mark.gpu
    @pytest.mark.tensorrt
    @pytest.mark.parametrize("name", CASES)
    def test_plugins(name: str) -> None:
        outcome = CASES[name]()
        if "skipped" in outcome:
            pytest.skip(outcome["skipped"])


# --- The report ---------------------------------------------------------------------------------------------------


def run_case(name: str) -> dict:
    start = time.perf_counter()
    try:
        outcome = CASES[name]()
        status = "skipped" if "skipped" in outcome else "passed"
        report = {"status": status, "details": outcome}
    except Exception as error:
        report = {"status": "failed", "error": f"{type(error).__name__}: {error}"[:2000]}
        report["traceback"] = traceback.format_exc()[-3000:]
    report["seconds"] = round(time.perf_counter() - start, 2)
    return report


def run_cases(out: Path) -> None:
    """Run what the report does not have yet, and write it after every case."""
    report = json.loads(out.read_text()) if out.is_file() else {"cases": {}}
    harness.load_library()
    report["versions"] = harness.versions()
    for name in CASES:
        if name in report["cases"]:
            continue
        # If the process dies, this is what the report says.
        report["cases"][name] = {"status": "crashed"}
        out.write_text(json.dumps(report, indent=1))
        report["cases"][name] = run_case(name)
        out.write_text(json.dumps(report, indent=1))
        print(name, json.dumps(report["cases"][name])[:600], flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, help="write the report here")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--replay", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.replay:
        replay(arguments.replay)
        return 0
    if arguments.child:
        run_cases(arguments.child)
        return 0
    out = arguments.json or Path("plugins_report.json")
    out.unlink(missing_ok=True)
    # A case that takes its process down costs itself, not those after it.
    for _ in range(len(CASES)):
        command = [sys.executable, "-m", "tests.gpu.test_tensorrt", "--child", str(out.resolve())]
        if subprocess.run(command, cwd=ROOT).returncode == 0:
            break
    cases = json.loads(out.read_text())["cases"]
    failed = {name: case["status"] for name, case in cases.items() if case["status"] in ("failed", "crashed")}
    print(f"{len(cases) - len(failed)} of {len(CASES)} cases passed or skipped; failed: {failed}")
    return 1 if failed or len(cases) < len(CASES) else 0


if __name__ == "__main__":
    sys.exit(main())
