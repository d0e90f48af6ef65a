"""The kernel of ``plugins/paste_masks`` against NumPy and torch, without TensorRT."""

import numpy as np
import pytest

from tests.gpu import oracles
from tests.gpu.kernel_testing import MARKS, cuda, torch
from tests.gpu.paste_masks.kernel import paste_masks
from tests.gpu.tolerances import (
    NEAR_THRESHOLD,
)

pytestmark = MARKS


def random_mask_boxes(rng: np.random.Generator, num_masks: int, height: int, width: int) -> np.ndarray:
    boxes = rng.uniform(-20, max(height, width), (num_masks, 4)).astype(np.float32)
    boxes[:, 2:] = boxes[:, :2] + np.exp(rng.uniform(-2, np.log(width), (num_masks, 2)))
    boxes[0] = (0, 0, width, height)
    boxes[1] = (-10, -10, 900, 900)
    boxes[2] = (20, 10, 20, 30)  # no width: mmdet reads the middle column everywhere in the region
    boxes[3] = (10.5, 10, 10.5, 30)  # no width, on a pixel's centre: 0 / 0
    boxes[4] = 0
    boxes[5] = (2000, 2000, 2200, 2200)
    boxes[6, 1] = np.nan
    boxes[7] = (-np.inf, 0, np.inf, 30)
    boxes[8] = (30, 30, 10, 10)
    boxes[9] = (-1e30, -1e30, 1e30, 1e30)
    return boxes


@pytest.mark.parametrize(
    ("size", "mask_size", "dtype", "output_dtype"),
    [
        ((200, 304), (28, 28), torch.float32, torch.uint8),
        ((200, 304), (28, 28), torch.float16, torch.uint8),
        ((101, 333), (28, 28), torch.float32, torch.uint8),  # a width of no multiple of 16
        ((101, 332), (14, 56), torch.float32, torch.float32),
        ((65, 2504), (28, 28), torch.float32, torch.float16),  # more than one tile of columns
        ((100, 96), (3, 700), torch.float32, torch.int8),  # fewer rows per tile
        ((40, 48), (2, 7000), torch.float32, torch.bool),  # mask rows beyond shared memory
        ((17, 16), (1, 1), torch.float32, torch.uint8),
    ],
)
def test_paste_masks(size: tuple, mask_size: tuple, dtype: torch.dtype, output_dtype: torch.dtype) -> None:
    rng = np.random.default_rng(6)
    num_masks = 300 if mask_size[1] < 100 else 30
    masks = cuda(rng.random((2, num_masks // 2, *mask_size)).astype(np.float32)).to(dtype)
    boxes = random_mask_boxes(rng, num_masks, *size)
    found = paste_masks(masks, cuda(boxes.reshape(2, -1, 4)), size, dtype=output_dtype)
    assert found.shape == (2, num_masks // 2, *size)
    probability = oracles.paste_oracle(masks.flatten(0, 1), cuda(boxes), *size)
    finite = cuda(np.isfinite(boxes).all(axis=1))[:, None, None]
    clear = ((probability - 0.5).abs() >= NEAR_THRESHOLD) & finite
    found = found.flatten(0, 1).float()
    assert torch.equal(found[clear.expand_as(found)], (probability >= 0.5).float()[clear.expand_as(found)])
    assert ((found == 0) | (found == 1)).all()
    assert not found[6].any()


def test_nan_in_a_mask_is_background() -> None:
    masks = torch.full((1, 1, 28, 28), float("nan"), device="cuda")
    found = paste_masks(masks, torch.tensor([[[2.0, 2.0, 30.0, 30.0]]], device="cuda"), (32, 32))
    assert not found.any()


@pytest.mark.parametrize("width", [32, 33])
def test_threshold_zero_fills_the_region_only(width: int) -> None:
    masks = torch.zeros((1, 1, 28, 28), device="cuda")
    found = paste_masks(
        masks, torch.tensor([[[5.5, 6.0, 20.0, 21.5]]], device="cuda"), (40, width), threshold=0.0
    )
    expected = torch.zeros((40, width), dtype=torch.uint8, device="cuda")
    expected[5:23, 4:21] = 1  # one pixel more than the box on every side, as mmdet
    assert torch.equal(found[0, 0], expected)


@pytest.mark.parametrize("shape", [(0, 5), (2, 0)])
def test_no_masks(shape: tuple) -> None:
    found = paste_masks(
        torch.zeros((*shape, 28, 28), device="cuda"), torch.zeros((*shape, 4), device="cuda"), (32, 32)
    )
    assert found.shape == (*shape, 32, 32)
