"""What follows the decoding: the best candidates, NMS, and the outputs of the contract.

Outside the bodies of ``SelectTop`` and ``GroupedNMS`` no shape depends on the data.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Optional

import numpy as np
from onnx import TensorProto, helper

from export.graft.builder import FLOAT, INT32, Builder
from export.graft.forms import Candidates
from export.graft.head import Head

BATCH = "batch"


@dataclass(frozen=True)
class _Columns:
    """Where what belongs to a candidate stands in its row: (start, stop) of each part, after the box."""

    label: Optional[tuple[int, int]]
    keypoints: Optional[tuple[int, int]]
    coefficients: Optional[tuple[int, int]]
    width: int


def append_tail(b: Builder, found: Candidates, head: Head, num_classes: int, num_rows: Optional[int]) -> None:
    """Select, suppress, and declare the outputs.

    Args:
        b: of the graph, which has ``image_sizes`` as an input.
        found: every candidate.
        head: thresholds and numbers of rows.
        num_classes: C.
        num_rows: N; None where it depends on the size of the input.
    """
    scores, label = _best_class(b, found.scores, num_classes)
    # NaN fails the comparison: it is nobody's detection. An image without a size has none; TensorRT would take an input
    # that nothing reads out of the engine.
    is_image = b.op("Greater", b.columns("image_sizes", 0, 1, 1), 0.0)
    is_candidate = b.op("And", b.op("Greater", scores, head.score_threshold), is_image)
    scores = b.op("Where", is_candidate, scores, -1.0)
    parts = [found.boxes, label, found.keypoints, found.coefficients]
    rows = b.concat([part for part in parts if part is not None], 2)
    columns = _columns(found, head, label is not None)
    num_selected = head.pre_nms if num_rows is None else min(head.pre_nms, num_rows)
    if num_rows is None:
        # SelectTop takes rows of at least k.
        scores = b.op("Pad", scores, b.ints(0, 0, 0, num_selected), -1.0)
        rows = b.op("Pad", rows, b.ints(0, 0, 0, 0, num_selected, 0), 0.0)
    values, chosen = b.own("SelectTop", [scores], 2, k=num_selected)
    rows = _taken(b, rows, chosen, columns.width)
    indices, count = b.own(
        "GroupedNMS",
        [_finite(b, b.columns(rows, 0, 4)), values, _groups(b, rows, columns, head, num_selected)],
        2,
        iou_threshold=float(head.iou_threshold),
        score_threshold=float(head.score_threshold),
        max_output=head.max_per_img,
    )
    b.rename(count, "num_dets")
    present = b.op("GreaterOrEqual", indices, b.int32(0))
    safe = b.op("Max", indices, b.int32(0))
    kept = _taken(
        b, b.op("Concat", rows, b.op("Unsqueeze", values, b.ints(2)), axis=2), safe, columns.width + 1
    )
    kept = b.op("Where", b.op("Unsqueeze", present, b.ints(2)), kept, 0.0)
    _outputs(b, _Kept(kept, present, columns), found, head)
    b.graph.output.extend(output_infos(head))


@dataclass(frozen=True)
class _Kept:
    """The rows of detections (B, K, width + 1), their score last, zeros where (B, K) ``present`` is false."""

    rows: str
    present: str
    columns: _Columns


def _columns(found: Candidates, head: Head, has_label: bool) -> _Columns:
    per_point = 3 if found.has_keypoint_scores else 2
    lengths = (
        1 if has_label else 0,
        per_point * len(head.keypoints) if found.keypoints else 0,
        getattr(head.form, "coefficients", 0) if found.coefficients else 0,
    )
    ends = np.cumsum((4, *lengths)).tolist()
    spans = [(start, stop) if stop > start else None for start, stop in zip(ends, ends[1:])]
    return _Columns(*spans, width=ends[-1])


def _best_class(b: Builder, scores: str, num_classes: int) -> tuple[str, Optional[str]]:
    """Return (B, N) scores and (B, N, 1) labels of each candidate's best class, float32; no labels of one class."""
    if num_classes == 1:
        return b.op("Squeeze", scores, b.ints(2)), None
    # NaN would hide the other classes.
    clean = b.op("Where", b.op("Greater", scores, -1.0), scores, -1.0)
    best, label = b.node("TopK", [clean, b.ints(1)], 2, axis=2)
    return b.op("Squeeze", best, b.ints(2)), b.op("Cast", label, to=FLOAT)


def _taken(b: Builder, rows: str, indices: str, width: int) -> str:
    """Return (B, k, width) rows at (B, k) indices."""
    repeated = b.op("Expand", b.op("Unsqueeze", indices, b.ints(2)), b.ints(1, 1, width))
    return b.op("GatherElements", rows, repeated, axis=1)


def _finite(b: Builder, boxes: str) -> str:
    """Return boxes for the NMS, an empty one for each that is not finite: NaN spreads over all boxes of an image.

    The detection keeps its own box, so that the runtime sees what happened.
    """
    total = b.op("ReduceSum", boxes, b.ints(2), keepdims=1)
    return b.op("Where", b.op("Less", b.op("Abs", total), 1e30), boxes, 0.0)


def _groups(b: Builder, rows: str, columns: _Columns, head: Head, num_selected: int) -> str:
    """Return int32 ids of what may suppress each other: (B, k), or (1, k) where that is everything."""
    if columns.label is None or head.class_agnostic:
        return b.op("Cast", np.zeros((1, num_selected), np.float32), to=INT32)
    label = b.op("Squeeze", b.columns(rows, *columns.label), b.ints(2))
    return b.op("Cast", label, to=INT32)


def _outputs(b: Builder, kept: _Kept, found: Candidates, head: Head) -> None:
    columns = kept.columns
    boxes, score = b.columns(kept.rows, 0, 4), b.columns(kept.rows, columns.width, columns.width + 1)
    if head.clip:
        boxes = _clipped(b, boxes)
    b.rename(b.op("Concat", boxes, score, axis=2), "dets")
    label = b.int32(0)
    if columns.label is not None:
        label = b.op("Cast", b.op("Squeeze", b.columns(kept.rows, *columns.label), b.ints(2)), to=INT32)
    b.rename(b.op("Where", kept.present, label, b.int32(-1)), "labels")
    if columns.keypoints is not None:
        b.rename(_keypoints(b, kept, score, found, len(head.keypoints)), "keypoints")
    if columns.coefficients is not None:
        b.rename(_masks(b, b.columns(kept.rows, *columns.coefficients), found.prototypes), "masks")


def _clipped(b: Builder, boxes: str) -> str:
    """Return boxes cut to their images."""
    sizes = b.op("Unsqueeze", "image_sizes", b.ints(1))
    height, width = (b.columns(sizes, axis, axis + 1, 2) for axis in (0, 1))
    limits = b.op("Concat", width, height, width, height, axis=2)
    return b.op("Min", b.op("Max", boxes, 0.0), limits)


def _keypoints(b: Builder, kept: _Kept, score: str, found: Candidates, num_keypoints: int) -> str:
    """Return (B, K, P, 3): x, y and a score, which is the box's where a point has none."""
    flat = b.columns(kept.rows, *kept.columns.keypoints)
    if found.has_keypoint_scores:
        return b.op("Reshape", flat, b.ints(0, -1, num_keypoints, 3))
    points = b.op("Reshape", flat, b.ints(0, -1, num_keypoints, 2))
    scores = b.op("Expand", b.op("Unsqueeze", score, b.ints(3)), b.ints(1, 1, num_keypoints, 1))
    return b.op("Concat", points, scores, axis=3)


def _masks(b: Builder, coefficients: str, prototypes: str) -> str:
    """Return (B, K, h, w) probabilities: a sum of the prototypes, weighted by the coefficients."""
    flat = b.op("Reshape", prototypes, b.ints(0, 0, -1))
    sums = b.op("Sigmoid", b.op("MatMul", coefficients, flat))
    place = b.columns(b.op("Shape", prototypes), 2, 4, 0)
    rows = b.columns(b.op("Shape", sums), 0, 2, 0)
    return b.op("Reshape", sums, b.op("Concat", rows, place, axis=0))


def output_infos(head: Head) -> list:
    """Return the outputs' names, types and shapes."""
    rows = head.max_per_img
    shapes: list[tuple[str, int, Sequence[object]]] = [
        ("num_dets", TensorProto.INT32, (BATCH,)),
        ("dets", TensorProto.FLOAT, (BATCH, rows, 5)),
        ("labels", TensorProto.INT32, (BATCH, rows)),
    ]
    if head.keypoints:
        shapes.append(("keypoints", TensorProto.FLOAT, (BATCH, rows, len(head.keypoints), 3)))
    if head.has_masks:
        shapes.append(("masks", TensorProto.FLOAT, (BATCH, rows, "mask_height", "mask_width")))
    return [helper.make_tensor_value_info(name, kind, shape) for name, kind, shape in shapes]
