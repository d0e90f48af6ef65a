"""Tiny ONNX models that honour the graph's contract, so that the runtime is tested without the exporter.

Every image gets K = 4 rows of which 3 are detections, at fixed places relative to ``image_sizes``; an image
whose top left pixel is black gets none. Values depend on nothing but the image's own row of the batch.
"""

from pathlib import Path
from typing import Optional

import numpy as np
import onnx
from onnx import numpy_helper, parser

from runtime.metadata import KEY, ModelMetadata
from runtime.transforms import Fit

NUM_ROWS = 4
NUM_DETS = 3
SCORES = (0.9, 0.5, 0.2)
LABELS = (1, 0, 2)
# Shares of the image's width and height, xyxy.
UNIT_BOXES = ((0.25, 0.25, 0.75, 0.75), (0.0, 0.0, 1.0, 1.0), (0.5, 0.1, 0.9, 0.3), (0.0, 0.0, 0.5, 0.5))
CLASSES = ("circle", "square", "triangle")

# The rule: boxes from the sizes, the rows past num_dets zero and -1.
_BODY = """
    order = Constant<value = int64[4] {1, 0, 1, 0}>()
    whwh = Gather<axis = 1>(image_sizes, order)
    one = Constant<value = int64[1] {1}>()
    whwh3 = Unsqueeze(whwh, one)
    boxes = Mul(whwh3, unit_boxes)
    first = Constant<value = int64 {0}>()
    left_edge = Gather<axis = 3>(images, first)
    corner = Gather<axis = 2>(left_edge, first)
    peak = ReduceMax<axes = [1], keepdims = 0>(corner)
    dark = Constant<value = float[1] {-1.0}>()
    lit = Greater(peak, dark)
    all_rows = Constant<value = int32[1] {3}>()
    no_rows = Constant<value = int32[1] {0}>()
    num_dets = Where(lit, all_rows, no_rows)
    index = Constant<value = int32[1, 4] {0, 1, 2, 3}>()
    count = Unsqueeze(num_dets, one)
    valid = Less(index, count)
    no_label = Constant<value = int32[1] {-1}>()
    labels = Where(valid, class_ids, no_label)
    batch = Shape<start = 0, end = 1>(images)
    two = Constant<value = int64[1] {2}>()
    valid3 = Unsqueeze(valid, two)
    tail = Constant<value = int64[2] {4, 1}>()
    scores_shape = Concat<axis = 0>(batch, tail)
    all_scores = Expand(scores, scores_shape)
    rows = Concat<axis = 2>(boxes, all_scores)
    zero = Constant<value = float[1] {0.0}>()
    dets = Where(valid3, rows, zero)
"""
_MASKS = {
    "crop": """
    mask_tail = Constant<value = int64[3] {4, 28, 28}>()
    mask_shape = Concat<axis = 0>(batch, mask_tail)
    masks = Expand(discs, mask_shape)
""",
    # Bright pixels of the image itself, the same for every row.
    "full": """
    brightest = ReduceMax<axes = [1], keepdims = 1>(images)
    bright = Greater(brightest, dark)
    bytes = Cast<to = 2>(bright)
    mask_tail = Constant<value = int64[3] {4, 1, 1}>()
    mask_shape = Concat<axis = 0>(batch, mask_tail)
    masks = Expand(bytes, mask_shape)
""",
    "none": "",
}


def metadata(**changes: object) -> ModelMetadata:
    """Return metadata of a fixed 64x96 model with cropped masks, changed as told."""
    values = {
        "classes": CLASSES,
        "mean": (123.675, 116.28, 103.53),
        "std": (58.395, 57.12, 57.375),
        "color_order": "rgb",
        "steps": (Fit((64, 96)),),
        "size": (64, 96),
        "size_divisor": 32,
        "masks": "crop",
        "mask_threshold": 0.5,
        "score_threshold": 0.05,
        "max_per_img": NUM_ROWS,
    }
    return ModelMetadata(**{**values, **changes})


def disc(size: int = 28) -> np.ndarray:
    """Return (size, size) float32 probabilities of a soft disc."""
    grid = np.arange(size) - (size - 1) / 2
    radius = np.hypot(grid[:, None], grid[None, :])
    return (1 / (1 + np.exp(radius - size * 0.35))).astype(np.float32)


def model(
    facts: Optional[ModelMetadata] = None, *, with_metadata: bool = True, **types: str
) -> onnx.ModelProto:
    """Return the fake for this metadata.

    ``types`` replaces the declared type of an input or output (``images="float16[B, 3, 64, 96]"``), to make
    models that break the contract.
    """
    facts = facts or metadata()
    size = "H, W" if facts.size is None else f"{facts.size[0]}, {facts.size[1]}"
    inputs = {"images": f"float[B, 3, {size}]", "image_sizes": "float[B, 2]"}
    outputs = {"num_dets": "int32[B]", "dets": "float[B, 4, 5]", "labels": "int32[B, 4]"}
    if facts.masks != "none":
        outputs["masks"] = "float[B, 4, 28, 28]" if facts.masks == "crop" else f"uint8[B, 4, {size}]"
    declared_in, declared_out = (
        ", ".join(f"{types.get(name, kind)} {name}" for name, kind in side.items())
        for side in (inputs, outputs)
    )
    text = f'<ir_version: 8, opset_import: ["": 17]>\nfake ({declared_in}) => ({declared_out}) {{'
    proto = parser.parse_model(text + _BODY + _MASKS[facts.masks] + "}")
    proto.graph.initializer.extend(
        [
            numpy_helper.from_array(np.array([UNIT_BOXES], np.float32), "unit_boxes"),
            numpy_helper.from_array(np.array([[[v] for v in (*SCORES, 0)]], np.float32), "scores"),
            numpy_helper.from_array(np.array([[*LABELS, 0]], np.int32), "class_ids"),
            numpy_helper.from_array(np.tile(disc(), (1, NUM_ROWS, 1, 1)), "discs"),
        ]
    )
    if with_metadata:
        onnx.helper.set_model_props(proto, {KEY: facts.to_json()})
    return proto


def save(path: Path, facts: Optional[ModelMetadata] = None, **options: object) -> Path:
    """Write the fake to a file and return the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model(facts, **options), str(path))
    return path


def random_image(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Return a (height, width, 3) uint8 image with smooth and noisy parts."""
    generator = np.random.default_rng(seed)
    image = generator.integers(0, 256, (height, width, 3), np.uint8)
    image[: height // 2] = np.linspace(120, 255, width, dtype=np.uint8)[None, :, None]
    return image
