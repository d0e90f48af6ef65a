"""What the kernels must compute, in NumPy and torch: shares nothing with the C++ maths.

Positions are float32, operation by operation, as every implementation has them: whether a sample lies inside the map,
and how many samples adaptive sampling takes, are steps that a more precise position would put elsewhere.
"""

import numpy as np
import torch
from torch import Tensor

MAX_SAMPLES = 512
HALF = np.float32(0.5)


def nms_oracle(boxes: np.ndarray, scores: np.ndarray, iou_threshold: float) -> list[int]:
    """Greedy NMS in float32, as mmcv computes it, one row of the IoU matrix at a time."""
    x1, y1, x2, y2 = boxes.T
    areas = (x2 - x1) * (y2 - y1)
    alive = np.argsort(-scores, kind="stable")
    kept = []
    while len(alive):
        i, rest = alive[0], alive[1:]
        kept.append(int(i))
        width = np.minimum(x2[i], x2[rest]) - np.maximum(x1[i], x1[rest])
        height = np.minimum(y2[i], y2[rest]) - np.maximum(y1[i], y1[rest])
        intersection = np.maximum(width, 0) * np.maximum(height, 0)
        iou = intersection / (areas[i] + areas[rest] - intersection)
        alive = rest[~(iou > np.float32(iou_threshold))]
    return kept


def shifted_boxes(boxes: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """mmcv's batched_nms: boxes + group * (max coordinate + 1) in float32, further apart by the lowest coordinate."""
    largest = np.float32(max(np.fmax.reduce(boxes, axis=None, initial=0), 0))
    lowest = np.float32(min(np.fmin.reduce(boxes, axis=None, initial=0), 0))
    stride = (largest - lowest) + np.float32(1)
    return boxes + (groups.astype(np.float32) * stride)[:, None]


def grouped_nms_oracle(
    boxes: np.ndarray,
    scores: np.ndarray,
    groups: np.ndarray,
    *,
    iou_threshold: float,
    score_threshold: float,
    max_output: int,
    shift_groups: bool,
) -> list[int]:
    """NMS of one group after the other, then one sort of everything kept. One image."""
    with np.errstate(all="ignore"):
        candidates = np.flatnonzero(scores > np.float32(score_threshold))
        boxes, scores, groups = boxes[candidates], scores[candidates], groups[candidates]
        if shift_groups and len(boxes):
            boxes = shifted_boxes(boxes, groups)
        kept = []
        for group in np.unique(groups):
            members = np.flatnonzero(groups == group)
            kept += members[nms_oracle(boxes[members], scores[members], iou_threshold)].tolist()
    return [int(candidates[i]) for i in sorted(kept, key=lambda i: (-scores[i], i))][:max_output]


def axis_positions(begin, end, scale: float, aligned: bool, bins: int, ratio: int):
    """Positions (R, bins, samples) float32, NaN where an RoI has fewer samples, and the samples per bin (R,)."""
    scale = np.float32(scale)
    offset = HALF if aligned else np.float32(0)
    start = begin * scale - offset
    length = (end * scale - offset) - start
    if not aligned:
        length = np.where(length > 1, length, np.float32(1))
    bin_size = (length / np.float32(bins)).astype(np.float32)
    if ratio > 0:
        samples = np.full(len(begin), ratio)
    else:
        samples = np.clip(np.ceil(np.nan_to_num(bin_size, nan=0)), 0, MAX_SAMPLES).astype(np.int64)
    number = np.arange(max(samples.max(initial=0), 1), dtype=np.float32)
    step = (number + HALF)[None] * bin_size[:, None] / np.maximum(samples, 1).astype(np.float32)[:, None]
    corner = start[:, None] + np.arange(bins, dtype=np.float32)[None] * bin_size[:, None]
    positions = corner[:, :, None] + step[:, None, :]
    positions[np.broadcast_to(number >= samples[:, None, None], positions.shape)] = np.nan
    return positions, samples


def axis_matrix(positions: np.ndarray, size: int) -> np.ndarray:
    """(R, bins, size) float64: how much each pixel weighs in the sum over a bin's samples."""
    num_rois, bins, samples = positions.shape
    matrix = np.zeros((num_rois * bins, size))
    rows = np.arange(num_rois * bins)
    for s in range(samples):
        position = positions[:, :, s].reshape(-1)
        inside = (position >= -1) & (position <= size)
        clamped = np.clip(np.where(inside, position, 0), 0, size - 1).astype(np.float64)
        low = np.floor(clamped).astype(np.int64)
        high = np.minimum(low + 1, size - 1)
        matrix[rows, low] += inside * (1 - (clamped - low))
        matrix[rows, high] += inside * (clamped - low)
    return matrix.reshape(num_rois, bins, size)


def average_oracle(
    features: Tensor, rois: np.ndarray, output_size: tuple, scale: float, ratio: int, aligned: bool
) -> Tensor:
    """RoIAlign of one level, mode avg: (R, C, *output_size) float64. features: (N, C, H, W) float64."""
    height, width = features.shape[2:]
    with np.errstate(all="ignore"):
        has_image = (rois[:, 0] >= 0) & (rois[:, 0] < len(features)) & ~np.isnan(rois).any(axis=1)
        y, num_y = axis_positions(rois[:, 2], rois[:, 4], scale, aligned, output_size[0], ratio)
        x, num_x = axis_positions(rois[:, 1], rois[:, 3], scale, aligned, output_size[1], ratio)
        rows, columns = axis_matrix(y, height), axis_matrix(x, width)
    image = torch.from_numpy(np.where(has_image, rois[:, 0], 0).astype(np.int64)).to(features.device)
    divisor = np.maximum(num_y * num_x, 1)
    columns *= (has_image / divisor)[:, None, None]
    rows, columns = (torch.from_numpy(matrix).to(features.device) for matrix in (rows, columns))
    half = torch.einsum("rph,rchw->rcpw", rows, features[image])
    return torch.einsum("rcpw,rqw->rcpq", half, columns)


def maximum_oracle(
    features: Tensor, rois: np.ndarray, output_size: tuple, scale: float, ratio: int, aligned: bool
) -> Tensor:
    """RoIAlign of one level, mode max; one RoI at a time."""
    num_images, channels, height, width = features.shape
    out = features.new_zeros((len(rois), channels, *output_size))
    for r, roi in enumerate(rois):
        if not 0 <= roi[0] < num_images or np.isnan(roi).any():
            continue
        with np.errstate(all="ignore"):
            y, num_y = axis_positions(roi[None, 2], roi[None, 4], scale, aligned, output_size[0], ratio)
            x, num_x = axis_positions(roi[None, 1], roi[None, 3], scale, aligned, output_size[1], ratio)
        if num_y[0] * num_x[0] == 0:
            out[r] = -10000  # what mmcv's maximum starts with
            continue
        rows = torch.from_numpy(axis_matrix(y.reshape(-1, 1, 1), height)[:, 0]).to(features.device)
        columns = torch.from_numpy(axis_matrix(x.reshape(-1, 1, 1), width)[:, 0]).to(features.device)
        samples = torch.einsum("ph,chw,qw->cpq", rows, features[int(roi[0])], columns)
        samples = samples.reshape(channels, output_size[0], y.shape[2], output_size[1], x.shape[2])
        out[r] = samples.amax(dim=(2, 4))
    return out


def level_oracle(rois: np.ndarray, num_levels: int, finest_scale: float) -> np.ndarray:
    """The FPN level of each RoI (mmdet's SingleRoIExtractor)."""
    with np.errstate(all="ignore"):
        scale = np.sqrt((rois[:, 3] - rois[:, 1]) * (rois[:, 4] - rois[:, 2])) / np.float32(finest_scale)
        return sum((scale + np.float32(1e-6) >= 2**k).astype(int) for k in range(1, num_levels)) + np.zeros(
            len(rois), dtype=int
        )


def paste_oracle(masks: Tensor, boxes: Tensor, height: int, width: int) -> Tensor:
    """mmdet's ``_do_paste_mask`` with ``skip_empty=True``, each mask with a region of its own.

    masks: (N, h, w). boxes: (N, 4). Returns probabilities (N, height, width), 0 outside the region.
    """
    x1, y1, x2, y2 = (boxes[:, i, None] for i in range(4))
    rows = torch.arange(height, device=masks.device)
    columns = torch.arange(width, device=masks.device)
    y = (rows + 0.5 - y1) / (y2 - y1) * 2 - 1
    x = (columns + 0.5 - x1) / (x2 - x1) * 2 - 1
    y[torch.isinf(y)], x[torch.isinf(x)] = 0, 0
    shape = (len(masks), height, width)
    grid = torch.stack([x[:, None, :].expand(shape), y[:, :, None].expand(shape)], dim=3)
    image = torch.nn.functional.grid_sample(masks[:, None].float(), grid, align_corners=False)[:, 0]
    inside_y = (rows >= torch.floor(y1) - 1) & (rows < torch.ceil(y2) + 1)
    inside_x = (columns >= torch.floor(x1) - 1) & (columns < torch.ceil(x2) + 1)
    return torch.where(inside_y[:, :, None] & inside_x[:, None, :], image, 0)
