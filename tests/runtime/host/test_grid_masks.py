"""Masks on the network's grid, beside torch's interpolate, and the letterbox beside its formula."""

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from runtime.host.grid_masks import GridMasks, Placement
from runtime.transforms import CenterPad, Fit, final_offset, final_scale_factor, step_from_dict, step_to_dict


def smooth(shape: tuple[int, int], seed: int = 0) -> np.ndarray:
    noise = np.random.default_rng(seed).uniform(0, 1, shape).astype(np.float32)
    return cv2.GaussianBlur(noise, (0, 0), 2) * 4 % 1


def ultralytics(grid: np.ndarray, box: np.ndarray, height: int, width: int, threshold: float) -> np.ndarray:
    """``F.interpolate`` without align_corners, ``crop_mask``, threshold: of a grid without padding."""
    values = F.interpolate(torch.from_numpy(grid)[None, None], (height, width), mode="bilinear")[0, 0].numpy()
    y, x = np.mgrid[:height, :width]
    x1, y1, x2, y2 = box
    return (values > threshold) & (x >= x1) & (x < x2) & (y >= y1) & (y < y2)


def whole(masks: GridMasks, index: int = 0) -> np.ndarray:
    canvas = np.zeros(masks.image_size, bool)
    crop = masks.crop(index)
    canvas[crop.window] = crop.pixels
    return canvas


@pytest.mark.parametrize("size", [(160, 240), (97, 131), (40, 300)])
@pytest.mark.parametrize("box", [(10.2, 7.9, 88.5, 60.1), (-20, -20, 1000, 1000), (30, 30, 31, 31)])
def test_without_padding_it_is_ultralytics_masks(size: tuple[int, int], box: tuple) -> None:
    grid = smooth((40, 60))
    height, width = size
    place = Placement((240 / width, 160 / height), (0, 0), (160, 240))
    masks = GridMasks(grid[None], np.array([box], np.float32), size, place, 0.5)
    expected = ultralytics(grid, np.float32(box), height, width, 0.5)
    assert (whole(masks) != expected).sum() <= 2  # pixels at the threshold but for rounding
    assert expected.any() or box[2] - box[0] == 1


def test_padding_of_a_letterbox_is_left_out() -> None:
    """An image of 40x80 px in 64x64: rows 12 to 52 of the input at scale 0.8, each four px of it a cell."""
    grid = np.zeros((16, 16), np.float32)
    grid[4:12] = 1  # rows 16 to 48 of the input: the image whole
    place = Placement((0.8, 0.8), (0, 16), (64, 64))
    masks = GridMasks(grid[None], np.array([[0, 0, 80, 40]], np.float32), (40, 80), place, 0.5)
    assert whole(masks).all()
    grid[4:8] = 0
    lower = whole(GridMasks(grid[None], masks.boxes, (40, 80), place, 0.5))
    assert not lower[:20].any()
    assert lower[20:].all()


@pytest.mark.parametrize(
    "box",
    [(200, 10, 300, 20), (-30, 10, -5, 20), (50, 50, 40, 40), (np.nan, 0, 9, 9), (0, 0, np.inf, np.inf)],
)
def test_boxes_that_hold_nothing_or_everything(box: tuple) -> None:
    place = Placement((1, 1), (0, 0), (64, 64))
    masks = GridMasks(np.ones((1, 16, 16), np.float32), np.array([box], np.float32), (64, 64), place, 0.5)
    expected = 64 * 64 if np.isinf(box).any() else 0
    assert whole(masks).sum() == expected
    assert len(masks.select(np.array([False])).boxes) == 0


@pytest.mark.parametrize("shape", [(480, 640), (641, 333), (1080, 810), (77, 640), (640, 640), (3, 900)])
def test_the_letterbox_is_ultralytics(shape: tuple[int, int]) -> None:
    """``LetterBox.__call__`` with auto=False: round(), half the rest on each side with 0.1 px of bias."""
    height, width = shape
    ratio = min(640 / height, 640 / width)
    new_width, new_height = round(width * ratio), round(height * ratio)
    dw, dh = (640 - new_width) / 2, (640 - new_height) / 2
    top, bottom = round(dh - 0.1), round(dh + 0.1)
    left, right = round(dw - 0.1), round(dw + 0.1)
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    small = image if shape == (640, 640) else cv2.resize(image, (max(1, new_width), max(1, new_height)))
    expected = cv2.copyMakeBorder(small, top, bottom, left, right, cv2.BORDER_CONSTANT, value=(114, 114, 114))
    steps = (Fit((640, 640), rounding="half_even"), CenterPad((640, 640), (114, 114, 114)))
    found = image
    for step in steps:
        found = step.apply(found)
    np.testing.assert_array_equal(found, expected)
    assert final_offset(*shape, steps) == (left, top)
    assert final_scale_factor(*shape, steps) == (new_width / width, new_height / height)
    assert tuple(step_from_dict(step_to_dict(step), "step") for step in steps) == steps


def test_a_resize_after_padding_moves_the_offset() -> None:
    steps = (CenterPad((100, 100)), Fit((50, 50)))
    assert final_offset(60, 80, steps) == (5.0, 10.0)


@pytest.mark.parametrize(("rounding", "expected"), [("floor", (360, 479)), ("half_up", (360, 480))])
def test_edges_are_rounded_as_asked(rounding: str, expected: tuple[int, int]) -> None:
    assert Fit((360, 480), rounding=rounding).size(1000, 1332) == expected
    with pytest.raises(ValueError, match="rounding: expected one of"):
        Fit((360, 480), rounding="up")
