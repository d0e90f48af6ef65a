"""The stand-in's deformable convolution against loops written from mmcv's kernel, and against a plain convolution."""

import math

import numpy as np
import pytest
import torch

from patches.deform_conv import deform_conv2d

ATOL = 1e-5  # another order of sums
CASES = [
    {"stride": (1, 1), "padding": (1, 1), "dilation": (1, 1), "groups": 1, "deform_groups": 1},
    {"stride": (2, 1), "padding": (1, 2), "dilation": (1, 2), "groups": 2, "deform_groups": 2},
    {"stride": (1, 2), "padding": (0, 1), "dilation": (2, 1), "groups": 4, "deform_groups": 2},
]
CHANNELS, OUTPUTS, KERNEL, SIZE = 4, 8, (3, 2), (7, 9)


def inputs(case: dict, scale: float) -> tuple[torch.Tensor, ...]:
    torch.manual_seed(0)
    features = torch.randn(2, CHANNELS, *SIZE)
    weight = torch.randn(OUTPUTS, CHANNELS // case["groups"], *KERNEL)
    size = [
        (n + 2 * p - d * (k - 1) - 1) // s + 1
        for n, p, d, k, s in zip(SIZE, case["padding"], case["dilation"], KERNEL, case["stride"])
    ]
    taps = KERNEL[0] * KERNEL[1]
    offset = torch.randn(2, case["deform_groups"] * taps * 2, *size) * scale
    mask = torch.rand(2, case["deform_groups"] * taps, *size)
    return features, offset, weight, mask


def sampled(image: np.ndarray, y: float, x: float) -> float:
    """Return mmcv's bilinear sample of an (H, W) image."""
    height, width = image.shape
    if not (-1 < y < height and -1 < x < width):
        return 0.0
    total = 0.0
    for row in (math.floor(y), math.floor(y) + 1):
        for column in (math.floor(x), math.floor(x) + 1):
            if 0 <= row < height and 0 <= column < width:
                total += (1 - abs(y - row)) * (1 - abs(x - column)) * image[row, column]
    return total


def looped(features, offset, weight, mask, case: dict) -> np.ndarray:
    features, offset, weight = (t.double().numpy() for t in (features, offset, weight))
    out = np.zeros((2, OUTPUTS, *offset.shape[2:]))
    per_deform, per_group = CHANNELS // case["deform_groups"], CHANNELS // case["groups"]
    taps = KERNEL[0] * KERNEL[1]
    for n, c_out, i, j in np.ndindex(*out.shape):
        first = c_out // (OUTPUTS // case["groups"]) * per_group
        for c, ky, kx in np.ndindex(*weight.shape[1:]):
            tap, group = ky * KERNEL[1] + kx, (first + c) // per_deform
            y = i * case["stride"][0] - case["padding"][0] + ky * case["dilation"][0]
            x = j * case["stride"][1] - case["padding"][1] + kx * case["dilation"][1]
            dy, dx = offset[n, (group * taps + tap) * 2 : (group * taps + tap) * 2 + 2, i, j]
            factor = 1.0 if mask is None else float(mask[n, group * taps + tap, i, j])
            out[n, c_out, i, j] += (
                weight[c_out, c, ky, kx] * factor * sampled(features[n, first + c], y + dy, x + dx)
            )
    return out


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("modulated", [False, True])
@pytest.mark.parametrize("scale", [0.5, 5.0])
def test_against_loops(case, modulated, scale):
    features, offset, weight, mask = inputs(case, scale)
    mask = mask if modulated else None
    found = deform_conv2d(features, offset, weight, mask, **case)
    np.testing.assert_allclose(found.numpy(), looped(features, offset, weight, mask, case), rtol=0, atol=ATOL)


@pytest.mark.parametrize("case", CASES)
def test_without_offsets_it_is_a_convolution(case):
    features, offset, weight, _ = inputs(case, 0.0)
    plain = {k: v for k, v in case.items() if k != "deform_groups"}
    expected = torch.nn.functional.conv2d(features, weight, **plain)
    torch.testing.assert_close(deform_conv2d(features, offset, weight, **case), expected, rtol=0, atol=ATOL)


def test_offsets_far_outside_read_zeros():
    case = CASES[0]
    features, offset, weight, _ = inputs(case, 0.0)
    found = deform_conv2d(features, offset + 1e6, weight, **case)
    assert not found.any()
