"""RoIAlign as two matrix products per RoI, in float64 and differentiable: shares nothing with the C++ maths.

Positions are float32, as every implementation has them: whether a sample lies inside the map, and how many samples
adaptive sampling takes, are steps that a more precise position would put elsewhere.
"""

import numpy as np
import torch

MAX_SAMPLES = 512
MAX_POOL_START = -10000.0  # what mmcv's maximum starts with


def axis_matrix(begin: float, end: float, scale: float, aligned: bool, bins: int, ratio: int, size: int):
    """Return (bins, samples, size) float64: the weights of the feature pixels in every sample of every bin."""
    scale, half = np.float32(scale), np.float32(0.5)
    start, stop = np.float32(begin) * scale, np.float32(end) * scale
    if aligned:
        start, stop = start - half, stop - half
    length = stop - start if aligned else max(stop - start, np.float32(1))
    bin_size = np.float32(length / np.float32(bins))
    samples = ratio if ratio > 0 else int(min(max(np.ceil(bin_size), 0), MAX_SAMPLES))
    matrix = np.zeros((bins, samples, size))
    for b in range(bins):
        for s in range(samples):
            step = (np.float32(s) + half) * bin_size / np.float32(samples)
            position = start + np.float32(b) * bin_size + step
            if -1 <= position <= size:
                position = min(max(position, 0), size - 1)
                # The triangle filter is linear interpolation.
                matrix[b, s] = np.clip(1 - np.abs(np.arange(size) - np.float64(position)), 0, 1)
    return torch.from_numpy(matrix)


def roi_align_oracle(
    features: torch.Tensor,
    rois: np.ndarray,
    output_size: tuple[int, int],
    *,
    spatial_scale: float = 1.0,
    sampling_ratio: int = 0,
    mode: str = "avg",
    aligned: bool = True,
) -> torch.Tensor:
    """Return (R, C, *output_size) float64. features: (N, C, H, W) float64. rois: (R, 5) float32, in input px."""
    num_images, channels, height, width = features.shape
    results = [features.new_zeros((0, channels, *output_size))]
    for batch, x1, y1, x2, y2 in rois:
        if not (0 <= batch < num_images) or np.isnan([x1, y1, x2, y2]).any():
            results.append(features.new_zeros((1, channels, *output_size)))
            continue
        shared = (spatial_scale, aligned)
        rows = axis_matrix(y1, y2, *shared, output_size[0], sampling_ratio, height)
        columns = axis_matrix(x1, x2, *shared, output_size[1], sampling_ratio, width)
        samples = torch.einsum("psh,chw,qtw->cpqst", rows, features[int(batch)], columns).flatten(3)
        if samples.shape[3] == 0:
            results.append(torch.full((1, *samples.shape[:3]), 0.0 if mode == "avg" else MAX_POOL_START))
        elif mode == "avg":
            results.append(samples.mean(3)[None])
        else:
            results.append(samples.max(3).values[None])
    return torch.cat(results)
