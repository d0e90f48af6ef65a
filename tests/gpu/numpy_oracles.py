"""The operators in plain NumPy, float64 where that is not what is being tested: nothing in common with the kernels.

They run where the plugins run, which has no torch: Python 3.9, NumPy, TensorRT.
"""

from __future__ import annotations

from itertools import product

import numpy as np

MAX_POOL_START = -10000.0  # what mmcv returns for a bin without samples, mode max


def axis_weights(begin, end, scale, *, aligned: bool, bins: int, ratio: int, size: int) -> np.ndarray:
    """Return (bins, samples, size): the weight of every feature pixel in every sample. Positions are float32."""
    scale, half = np.float32(scale), np.float32(0.5)
    offset = half if aligned else np.float32(0)
    start, stop = np.float32(begin) * scale - offset, np.float32(end) * scale - offset
    length = stop - start if aligned else max(stop - start, np.float32(1))
    bin_size = np.float32(length / np.float32(bins))
    samples = ratio if ratio > 0 else int(max(np.ceil(bin_size), 0))
    steps = (np.arange(samples, dtype=np.float32) + half) * bin_size / np.float32(max(samples, 1))
    position = (start + np.arange(bins, dtype=np.float32)[:, None] * bin_size + steps).astype(np.float64)
    inside = (position >= -1) & (position <= size)
    distance = np.abs(np.arange(size) - np.clip(position, 0, size - 1)[..., None])
    return np.clip(1 - distance, 0, 1) * inside[..., None]


def roi_align(features, rois, output_size, scale, *, ratio: int, mode: str, aligned: bool) -> np.ndarray:
    """Return (R, C, *output_size) float64. features: (B, C, H, W), rois: (R, 5)."""
    features = features.astype(np.float64)
    out = np.zeros((len(rois), features.shape[1], *output_size))
    for result, (image, x1, y1, x2, y2) in zip(out, rois):
        if not 0 <= image < len(features) or np.isnan([x1, y1, x2, y2]).any():
            continue
        shared = {"aligned": aligned, "ratio": ratio}
        rows = axis_weights(y1, y2, scale, bins=output_size[0], size=features.shape[2], **shared)
        columns = axis_weights(x1, x2, scale, bins=output_size[1], size=features.shape[3], **shared)
        samples = np.einsum("psh,chw,qtw->cpqst", rows, features[int(image)], columns, optimize=True)
        samples = samples.reshape(*samples.shape[:3], -1)
        if samples.shape[3] == 0:
            result[:] = 0 if mode == "avg" else MAX_POOL_START
        else:
            result[:] = samples.mean(3) if mode == "avg" else samples.max(3)
    return out


def multi_level_roi_align(
    features, rois, output_size, scales, *, finest_scale: float, ratio: int, mode: str, aligned: bool
) -> np.ndarray:
    """Return (R, C, *output_size) float64: every RoI from the level that mmdet's SingleRoIExtractor picks."""
    with np.errstate(invalid="ignore"):
        side = np.sqrt((rois[:, 3] - rois[:, 1]) * (rois[:, 4] - rois[:, 2]))
        level = np.floor(np.log2(side / finest_scale + 1e-6))
    level = np.clip(np.nan_to_num(level), 0, len(features) - 1)
    out = np.zeros((len(rois), features[0].shape[1], *output_size))
    for i, (feature, scale) in enumerate(zip(features, scales)):
        own = level == i
        out[own] = roi_align(feature, rois[own], output_size, scale, ratio=ratio, mode=mode, aligned=aligned)
    return out


def grouped_nms(boxes, scores, groups, *, iou_threshold, score_threshold, max_output, shift_groups: bool):
    """Return indices (B, max_output) and count (B,): greedy NMS in float32, group by group."""
    indices = np.full((len(boxes), max_output), -1, np.int32)
    count = np.zeros(len(boxes), np.int32)
    for image in range(len(boxes)):
        group = np.broadcast_to(groups, scores.shape)[image]
        candidates = np.flatnonzero(scores[image] > np.float32(score_threshold))
        own = boxes[image].copy()
        if shift_groups and len(candidates):
            own += (group.astype(np.float32) * (own[candidates].max() + np.float32(1)))[:, None]
        kept = []
        for g in np.unique(group[candidates]):
            kept += greedy_nms(
                own, scores[image], candidates[group[candidates] == g], np.float32(iou_threshold)
            )
        kept.sort(key=lambda i: (-scores[image][i], i))
        count[image] = min(len(kept), max_output)
        indices[image, : count[image]] = kept[:max_output]
    return indices, count


def select_top(scores, k: int) -> np.ndarray:
    """Return indices (B, k): best first, ties by index, NaN last. A stable sort of NumPy does just that."""
    return np.argsort(-scores, axis=1, kind="stable")[:, :k].astype(np.int32)


def decode_proposals(
    logits,
    deltas,
    priors,
    image_sizes,
    *,
    top,
    max_ratio,
    means=(0,) * 4,
    stds=(1,) * 4,
    clip=True,
    min_size=-1.0,
):
    """Return boxes (B, M, 4) and scores (B, M), float32 in mmdet's order of operations. Maps are (B, C, H, W)."""
    parts, first = [], 0
    for level_logits, level_deltas, num_rows in zip(logits, deltas, top):
        scores = sigmoid(channels_last(level_logits, 1)[..., 0])
        own = slice(first, first + scores.shape[1])  # of the priors
        best = select_top(scores, num_rows)
        scores = np.take_along_axis(scores, best, axis=1)
        taken = np.take_along_axis(channels_last(level_deltas, 4), best[..., None], axis=1)
        boxes = decoded(priors[own][best], taken, means, stds, max_ratio)
        if clip:
            limits = np.tile(image_sizes[:, None, ::-1], 2)
            boxes = np.minimum(np.maximum(boxes, np.float32(0)), limits)
        if min_size >= 0:
            sides = boxes[..., 2:] - boxes[..., :2]
            scores = np.where((sides > np.float32(min_size)).all(axis=2), scores, np.float32(-1))
        missing = num_rows - best.shape[1]
        scores = np.pad(scores, ((0, 0), (0, missing)), constant_values=-1)
        parts.append((np.pad(boxes, ((0, 0), (0, missing), (0, 0))), scores))
        first = own.stop
    return tuple(np.concatenate(kind, axis=1) for kind in zip(*parts))


def sigmoid(logits) -> np.ndarray:
    with np.errstate(over="ignore"):
        return np.float32(1) / (np.float32(1) + np.exp(-logits.astype(np.float32)))


def channels_last(maps, group: int) -> np.ndarray:
    """Return (B, H * W * C / group, group) float32."""
    batch, channels, height, width = maps.shape
    rows = height * width * channels // group
    return maps.astype(np.float32).transpose(0, 2, 3, 1).reshape(batch, rows, group)


def decoded(priors, deltas, means, stds, max_ratio) -> np.ndarray:
    """Return mmdet's delta2bbox, float32. priors, deltas: (B, N, 4)."""
    deltas = deltas * np.array(stds, np.float32) + np.array(means, np.float32)
    center = (priors[..., :2] + priors[..., 2:]) * np.float32(0.5)
    size = priors[..., 2:] - priors[..., :2]
    center = center + size * deltas[..., :2]
    scale = np.clip(deltas[..., 2:], -np.float32(max_ratio), np.float32(max_ratio))
    half = size * np.exp(scale) * np.float32(0.5)
    return np.concatenate([center - half, center + half], axis=2)


def decode_detections(
    logits, deltas, proposals, count, image_sizes, *, max_ratio, means=(0, 0, 0, 0), stds=(1, 1, 1, 1), clip=1
):
    """Return boxes (B, P * C, 4), as delta2bbox, and scores (B, P * C), softmax without the background; float64."""
    batch, num_proposals, num_classes = logits.shape[0], logits.shape[1], logits.shape[2] - 1
    with np.errstate(all="ignore"):
        powers = np.exp(logits.astype(np.float64) - logits.max(axis=2, keepdims=True).astype(np.float64))
        scores = (powers / powers.sum(axis=2, keepdims=True))[:, :, :-1]
    scores[np.arange(num_proposals) >= count[:, None]] = -1
    deltas = deltas.astype(np.float64).reshape(batch, num_proposals, -1, 4) * stds + means
    deltas = np.broadcast_to(deltas, (batch, num_proposals, num_classes, 4))
    low, high = (proposals[:, :, None, i : i + 2].astype(np.float64) for i in (0, 2))
    center = (low + high) / 2 + (high - low) * deltas[..., :2]
    half = (high - low) / 2 * np.exp(np.clip(deltas[..., 2:], -max_ratio, max_ratio))
    boxes = np.concatenate([center - half, center + half], axis=3)
    if clip:
        boxes = np.clip(boxes, 0, np.tile(image_sizes[:, None, None, ::-1], 2))
    return boxes.reshape(batch, -1, 4), scores.reshape(batch, -1)


def select_masks(logits, labels) -> np.ndarray:
    """Return (B, K, h, w) float64: the sigmoid of each row's own channel, or zeros. logits: (B * K, C, h, w)."""
    own = np.clip(labels.ravel(), 0, logits.shape[1] - 1)
    with np.errstate(over="ignore"):
        masks = 1 / (1 + np.exp(-logits[np.arange(len(own)), own].astype(np.float64)))
    masks[labels.ravel() < 0] = 0
    return masks.reshape(*labels.shape, *logits.shape[2:])


def padded_space_to_depth(images, pads) -> np.ndarray:
    """Return (B, 4 * C, rows, columns): every second row and column, from four beginnings. pads: top, left, ..."""
    top, left, bottom, right = pads
    padded = np.pad(images, ((0, 0), (0, 0), (top, bottom), (left, right)))
    return np.concatenate([padded[:, :, y::2, x::2] for y, x in product((0, 1), repeat=2)], axis=1)


def greedy_nms(boxes, scores, candidates, iou_threshold) -> list[int]:
    """Return which of the candidates are kept."""
    x1, y1, x2, y2 = boxes.T
    areas = (x2 - x1) * (y2 - y1)
    alive = candidates[np.argsort(-scores[candidates], kind="stable")]
    kept = []
    while len(alive):
        i, rest = alive[0], alive[1:]
        kept.append(int(i))
        width = np.minimum(x2[i], x2[rest]) - np.maximum(x1[i], x1[rest])
        height = np.minimum(y2[i], y2[rest]) - np.maximum(y1[i], y1[rest])
        intersection = np.maximum(width, 0) * np.maximum(height, 0)
        with np.errstate(all="ignore"):
            overlap = intersection / (areas[i] + areas[rest] - intersection)
        alive = rest[~(overlap > iou_threshold)]
    return kept


def pasted_probabilities(masks, boxes, height: int, width: int) -> np.ndarray:
    """Return (N, height, width) float64: mmdet's _do_paste_mask. masks: (N, h, w), boxes: (N, 4)."""
    out = np.zeros((len(masks), height, width))
    for image, mask, (x1, y1, x2, y2) in zip(out, masks.astype(np.float64), boxes):
        rows = paste_weights(y1, y2, height, mask.shape[0])
        columns = paste_weights(x1, x2, width, mask.shape[1])
        image[:] = rows @ mask @ columns.T
    return out


def paste_weights(begin, end, pixels: int, cells: int) -> np.ndarray:
    """Return (pixels, cells): bilinear weights of one axis, zero away from the box."""
    center = np.arange(pixels, dtype=np.float32) + np.float32(0.5)
    position = ((center - begin) / (end - begin) * cells - np.float32(0.5)).astype(np.float64)
    weights = np.clip(1 - np.abs(position[:, None] - np.arange(cells)), 0, 1)
    pixel = np.arange(pixels)
    weights[(pixel < np.floor(begin) - 1) | (pixel >= np.ceil(end) + 1)] = 0
    return weights


def grid_sample(image, grid, *, padding: str, align_corners: bool) -> np.ndarray:
    """Return torch's grid_sample, (tri)linear, zeros or border, float64. image: (N, C, *in), grid: (N, *out, D)."""
    sizes = image.shape[2:]
    out = np.zeros((*image.shape[:2], *grid.shape[1:-1]))
    for n in range(len(image)):
        positions = []
        for axis, size in enumerate(sizes):
            x = grid[n, ..., len(sizes) - 1 - axis].astype(np.float64)
            x = (x + 1) / 2 * (size - 1) if align_corners else ((x + 1) * size - 1) / 2
            positions.append(np.clip(x, 0, size - 1) if padding == "border" else x)
        low = [np.floor(x).astype(int) for x in positions]
        for corner in product((0, 1), repeat=len(sizes)):
            index = [lo + c for lo, c in zip(low, corner)]
            weight = np.prod([1 - np.abs(x - i) for x, i in zip(positions, index)], axis=0)
            inside = np.all([(i >= 0) & (i < s) for i, s in zip(index, sizes)], axis=0)
            clipped = tuple(np.clip(i, 0, s - 1) for i, s in zip(index, sizes))
            out[n] += image[n].astype(np.float64)[(slice(None), *clipped)] * (weight * inside)
    return out


def image_of_counts(counts: bytes, height: int, width: int) -> np.ndarray:
    """Return the (height, width) bool mask of COCO's compressed counts (pycocotools' rleFrString, rleDecode)."""
    runs, entry, shift = [], 0, 0
    for byte in counts:
        bits = byte - 48
        entry |= (bits & 0x1F) << shift
        shift += 5
        if bits & 0x20:  # more follow
            continue
        if bits & 0x10:
            entry -= 1 << shift
        runs.append(entry + (runs[-2] if len(runs) > 2 else 0))
        entry, shift = 0, 0
    return np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(width, height).T
