"""Independent decoders in NumPy, one loop a form, that a grafted file is held against.

Nothing here is shared with what builds graphs: each decoder is written from the sources that the head files name, image
by image, with its own resize, its own NMS and its own masks. Only the numbers of the head file are read.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Optional

import cv2
import numpy as np


@dataclass(frozen=True, eq=False)
class Found:
    """What a decoder finds in one image, best first.

    Attributes:
        boxes: (n, 4) float32, px of the network's input, or of the image once ``in_image`` has moved them.
        scores: (n,) float32.
        labels: (n,) int.
        keypoints: (n, P, 3) float32, or None.
        grids: (n, h, w) float32 probabilities over the network's input, or None.
    """

    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    keypoints: Optional[np.ndarray] = None
    grids: Optional[np.ndarray] = None


@dataclass(frozen=True)
class Prepared:
    """An image as the network takes it, and how to get back.

    Attributes:
        pixels: (3, H, W) float32.
        scale: (x, y), px of the input per px of the image.
        shift: (x, y) px of the image's first pixel in the input.
        image_size: (height, width) of the image.
    """

    pixels: np.ndarray
    scale: tuple[float, float]
    shift: tuple[int, int]
    image_size: tuple[int, int]


def content_size(image_size: tuple[int, int], head: Any, size: tuple[int, int]) -> tuple[int, int]:
    """Return the (height, width) px that an image is brought to for an input of ``size``."""
    if head.input.resize != "fit":
        return size
    ratio = min(size[0] / image_size[0], size[1] / image_size[1])
    rounded = {"floor": np.floor, "half_even": np.rint, "half_up": lambda v: np.floor(v + 0.5)}
    height, width = (max(1, int(rounded[head.input.rounding](v * ratio))) for v in image_size)
    return height, width


def batch_size(image_sizes: Sequence[tuple[int, int]], head: Any, size: tuple[int, int]) -> tuple[int, int]:
    """Return the (height, width) px of the input of a batch, where the network takes any: whole cells around each."""
    if head.input.place == "center":
        return size
    contents = np.array([content_size(image_size, head, size) for image_size in image_sizes])
    height, width = (-(-contents.max(0) // head.input.divisor) * head.input.divisor).tolist()
    return height, width


def prepare(
    image: np.ndarray, head: Any, size: tuple[int, int], canvas_size: Optional[tuple[int, int]] = None
) -> Prepared:
    """Return a (H, W, 3) uint8 BGR image, fitted into ``size``, in an input of ``canvas_size``; (height, width)."""
    given = head.input
    height, width = image.shape[:2]
    new_height, new_width = content_size((height, width), head, size)
    canvas_size = canvas_size or size
    small = _resized(image, new_height, new_width, given.backend)
    top, left = 0, 0
    if given.place == "center":
        top, left = (round((a - b) / 2 - 0.1) for a, b in ((size[0], new_height), (size[1], new_width)))
    values = small[..., ::-1] if given.color_order == "rgb" else small
    normal = (values.astype(np.float32) - np.float32(given.mean)) / np.float32(given.std)
    pad = np.zeros(3) if given.pad is None else (np.array(given.pad) - given.mean) / given.std
    canvas = np.empty((*canvas_size, 3), np.float32)
    canvas[:] = pad.astype(np.float32)
    canvas[top : top + new_height, left : left + new_width] = normal
    return Prepared(
        canvas.transpose(2, 0, 1), (new_width / width, new_height / height), (left, top), (height, width)
    )


def _resized(image: np.ndarray, height: int, width: int, backend: str) -> np.ndarray:
    if backend == "cv2":
        return cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
    from PIL import Image

    return np.array(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))


def decode(outputs: Mapping[str, Sequence[np.ndarray]], head: Any, size: tuple[int, int]) -> Found:
    """Return what a network's outputs say of one image, in px of its input.

    Args:
        outputs: by role, in the order of the strides, without the batch.
        head: whose form and numbers are read.
        size: (height, width) of the input, px.
    """
    decoder = _DECODERS[type(head.form).__name__]
    arrays = {role: [np.asarray(a, np.float32) for a in found] for role, found in outputs.items()}
    with np.errstate(all="ignore"):
        return _suppressed(decoder(arrays, head, size), head)


def in_image(found: Found, prepared: Prepared, head: Any) -> Found:
    """Return the same in px of the image."""
    scale, shift = np.array(prepared.scale), np.array(prepared.shift)
    boxes = ((found.boxes.reshape(-1, 2, 2) - shift) / scale).reshape(-1, 4)
    if head.clip:
        height, width = prepared.image_size
        boxes = boxes.clip(0, (width, height, width, height))
    keypoints = found.keypoints
    if keypoints is not None:
        keypoints = keypoints.copy()
        keypoints[..., :2] = (keypoints[..., :2] - shift) / scale
    return Found(boxes.astype(np.float32), found.scores, found.labels, keypoints, found.grids)


def masks_in_image(found: Found, prepared: Prepared, size: tuple[int, int], threshold: float) -> np.ndarray:
    """Return (n, H, W) bool of what ``in_image`` returned: each pixel's own place on the grid, one by one axis."""
    height, width = prepared.image_size
    masks = np.zeros((len(found.boxes), height, width), bool)
    for mask, grid, box in zip(masks, found.grids, found.boxes):
        rows = (np.arange(height) + 0.5) * prepared.scale[1] + prepared.shift[1]
        columns = (np.arange(width) + 0.5) * prepared.scale[0] + prepared.shift[0]
        v = rows * grid.shape[0] / size[0] - 0.5
        u = columns * grid.shape[1] / size[1] - 0.5
        maps = np.meshgrid(u.astype(np.float32), v.astype(np.float32))
        values = cv2.remap(grid, *maps, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        y, x = np.mgrid[:height, :width]
        inside = (x >= box[0]) & (x < box[2]) & (y >= box[1]) & (y < box[3])
        mask[:] = (values > threshold) & inside
    return masks


def _distances(outputs: Mapping[str, list], head: Any, size: tuple[int, int]) -> Found:
    form, parts = head.form, []
    for level, stride in enumerate(form.strides):
        scores = _activated(outputs["scores"][level], form.activation)
        for row, place in enumerate(_places(size, stride, form.per_cell)):
            if not _counts(scores[row], head):
                continue
            x, y = ((v + form.center) * stride for v in place)
            left, top, right, bottom = outputs["boxes"][level][row] * stride
            points = None
            if head.keypoints:
                points = outputs["keypoints"][level][row].reshape(-1, 2) * stride + (x, y)
            parts.append(((x - left, y - top, x + right, y + bottom), scores[row], points))
    return _found(parts)


def _priors(outputs: Mapping[str, list], head: Any, size: tuple[int, int]) -> Found:
    form, parts, row = head.form, [], -1
    scores = _activated(outputs["scores"][0], form.activation)[:, form.first_class :]
    for stride, anchors in zip(form.strides, form.anchors):
        for index, (x, y) in enumerate(_places(size, stride, len(anchors))):
            row += 1
            if not _counts(scores[row], head):
                continue
            prior = np.array(anchors[index % len(anchors)], np.float32)
            center = np.array(((x + 0.5) * stride, (y + 0.5) * stride), np.float32)
            offsets = outputs["boxes"][0][row]
            middle = center + offsets[:2] * form.variances[0] * prior
            half = prior * np.exp(offsets[2:] * form.variances[1]) / 2
            points = None
            if head.keypoints:
                points = center + outputs["keypoints"][0][row].reshape(-1, 2) * form.variances[0] * prior
            parts.append(((*(middle - half), *(middle + half)), scores[row], points))
    return _found(parts)


def _centers(outputs: Mapping[str, list], head: Any, size: tuple[int, int]) -> Found:
    form, parts = head.form, []
    (heat,), (scale,), (offset,) = outputs["heat"], outputs["scale"], outputs["offset"]
    heat = _activated(heat, form.activation)
    first, second = (1, 0) if form.order == "yx" else (0, 1)
    for y in range(heat.shape[1]):
        for x in range(heat.shape[2]):
            if not _counts(heat[:, y, x], head):
                continue
            width, height = (np.exp(scale[i, y, x]) * form.stride for i in (first, second))
            middle = (
                (x + offset[first, y, x] + 0.5) * form.stride,
                (y + offset[second, y, x] + 0.5) * form.stride,
            )
            low = (middle[0] - width / 2, middle[1] - height / 2)
            points = None
            if head.keypoints:
                shares = outputs["keypoints"][0][:, y, x].reshape(-1, 2)[:, [first, second]]
                points = shares * (width, height) + low
            parts.append(((*low, low[0] + width, low[1] + height), heat[:, y, x], points))
    return _found(parts)


def _rows(outputs: Mapping[str, list], head: Any, size: tuple[int, int]) -> Found:
    form = head.form
    if form.layout == "pair":
        boxes, scores = outputs["boxes"][0][:, 0], outputs["scores"][0]
        return Found(_corners(boxes, form, size), scores, np.zeros(0))
    rows = outputs["rows"][0] if form.layout == "rows" else outputs["rows"][0].T
    num_points = len(head.keypoints)
    end = rows.shape[1] - form.coefficients
    points = rows[:, end - 3 * num_points : end].reshape(len(rows), num_points, 3) if num_points else None
    scores = rows[:, 5 if form.has_objectness else 4 : end - 3 * num_points]
    if form.has_objectness:
        scores = scores * rows[:, 4:5]
    grids = None
    if form.coefficients:
        grids = (rows[:, end:], outputs["prototypes"][0])  # multiplied for what is kept
    return Found(_corners(rows[:, :4], form, size), scores, np.zeros(0), points, grids)


def _corners(boxes: np.ndarray, form: Any, size: tuple[int, int]) -> np.ndarray:
    if form.unit == "share":
        boxes = boxes * np.float32((size[1], size[0], size[1], size[0]))
    if form.box == "xyxy":
        return boxes
    x, y, width, height = boxes.T
    return np.stack((x - width / 2, y - height / 2, x + width / 2, y + height / 2), 1)


def _maps(outputs: Mapping[str, list], head: Any, size: tuple[int, int]) -> Found:
    form, parts = head.form, []
    for level, (stride, anchors) in enumerate(zip(form.strides, form.anchors)):
        values = outputs["maps"][level]
        if form.layout == "anchors_first":
            values = values.reshape(len(anchors), -1, *values.shape[1:]).transpose(2, 3, 0, 1)
        elif form.layout == "anchors_apart":
            values = values.transpose(1, 2, 0, 3)
        for y in range(values.shape[0]):
            for x in range(values.shape[1]):
                for anchor, row in zip(anchors, values[y, x]):
                    found = _map_row(row, (x, y), anchor, stride, form, form.scales[level])
                    parts += [found] if _counts(found[1], head) else []
    return _found(parts)


def _map_row(
    row: np.ndarray, cell: tuple[int, int], anchor: Any, stride: int, form: Any, scale: float
) -> tuple:
    share = _sigmoid(row)
    middle = (share[:2] * scale - (scale - 1) / 2 + cell) * stride
    grown = np.exp(row[2:4]) if form.sizes == "exp" else (share[2:4] * 2) ** 2
    half = grown * anchor / 2
    return (*(middle - half), *(middle + half)), share[4] * share[5:], None


def _places(size: tuple[int, int], stride: int, per_cell: int) -> list[tuple[int, int]]:
    """Return (x, y) of the cell of each anchor: rows of cells, and in a cell its anchors one after the other."""
    height, width = int(np.ceil(size[0] / stride)), int(np.ceil(size[1] / stride))
    return [(x, y) for y in range(height) for x in range(width) for _ in range(per_cell)]


def _counts(scores: np.ndarray, head: Any) -> bool:
    """Whether a candidate is one: NaN is not."""
    return bool((scores > head.score_threshold).any())


def _found(parts: list) -> Found:
    if not parts:
        return Found(np.zeros((0, 4), np.float32), np.zeros((0, 1), np.float32), np.zeros(0))
    boxes, scores, points = zip(*parts)
    keypoints = None if points[0] is None else np.array(points, np.float32)
    return Found(np.array(boxes, np.float32), np.array(scores, np.float32), np.zeros(0), keypoints)


def _sigmoid(values: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-values))


def _activated(scores: np.ndarray, activation: str) -> np.ndarray:
    if activation == "softmax":
        grown = np.exp(scores - scores.max(-1, keepdims=True))
        return grown / grown.sum(-1, keepdims=True)
    return _sigmoid(scores) if activation == "sigmoid" else scores


def _suppressed(found: Found, head: Any) -> Found:
    """Return each candidate's best class, the best candidates, and of those what greedy NMS keeps."""
    scores = np.where(np.isnan(found.scores), -np.inf, found.scores)
    labels, best = scores.argmax(1), scores.max(1)
    order = [i for i in np.argsort(-best, kind="stable") if best[i] > head.score_threshold][: head.pre_nms]
    kept: list[int] = []
    for index in order:
        rivals = kept if head.class_agnostic else [k for k in kept if labels[k] == labels[index]]
        if not any(_overlap(found.boxes[k], found.boxes[index]) > head.iou_threshold for k in rivals):
            kept.append(int(index))
    kept = kept[: head.max_per_img]
    return Found(
        found.boxes[kept],
        best[kept].astype(np.float32),
        labels[kept],
        _kept_points(found, kept, best, len(head.keypoints)),
        _grids(found, kept),
    )


def _kept_points(found: Found, kept: list[int], best: np.ndarray, num_keypoints: int) -> Optional[np.ndarray]:
    if found.keypoints is None:
        return np.zeros((0, num_keypoints, 3), np.float32) if num_keypoints else None
    points = found.keypoints[kept]
    if points.shape[-1] == 3:
        return points
    scores = np.repeat(best[kept, None, None], points.shape[1], 1)
    return np.concatenate((points, scores), 2).astype(np.float32)


def _grids(found: Found, kept: list[int]) -> Optional[np.ndarray]:
    if found.grids is None:
        return None
    coefficients, prototypes = found.grids
    return _sigmoid(np.einsum("nm,mhw->nhw", coefficients[kept], prototypes))


def _overlap(one: np.ndarray, other: np.ndarray) -> float:
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    inside = max(width, 0) * max(height, 0)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    return inside / (sum(areas) - inside)


_DECODERS = {
    "Distances": _distances,
    "Priors": _priors,
    "Centers": _centers,
    "Rows": _rows,
    "Maps": _maps,
}
