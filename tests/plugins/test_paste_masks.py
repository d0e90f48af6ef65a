"""plugins._reference.paste_masks against mmdet's own _do_paste_mask, pixel for pixel."""

import numpy as np
import pytest
import torch

from patches.mmcv_ops import ensure_mmcv_ops
from plugins import _reference

# Float32 rounding moves a probability this close to the threshold to either side.
UNDECIDED = 1e-5
NAN, INF = float("nan"), float("inf")


def pasted_by_mmdet(masks: np.ndarray, boxes: np.ndarray, height: int, width: int) -> np.ndarray:
    """Return (N, height, width) probabilities, NaN where nothing is pasted; one mask at a time, as on a CPU."""
    ensure_mmcv_ops()
    from mmdet.models.roi_heads.mask_heads.fcn_mask_head import _do_paste_mask

    images = np.full((len(masks), height, width), NAN, np.float32)
    for image, mask, box in zip(images, torch.from_numpy(masks), torch.from_numpy(boxes)):
        values, region = _do_paste_mask(mask[None, None], box[None], height, width, skip_empty=True)
        image[region] = values[0].numpy()
    return images


def check_against_mmdet(
    masks: np.ndarray, boxes: np.ndarray, height: int, width: int, threshold: float
) -> None:
    probabilities = pasted_by_mmdet(masks, boxes, height, width)
    pasted = _reference.paste_masks(masks, boxes, height, width, threshold)
    assert pasted.dtype == np.uint8
    assert pasted.shape == (len(masks), height, width)
    decided = ~(np.abs(probabilities - threshold) < UNDECIDED)
    np.testing.assert_array_equal(pasted[decided], (probabilities >= threshold)[decided])


def smooth_masks(rng: np.random.Generator, num_masks: int, size: tuple[int, int] = (28, 28)) -> np.ndarray:
    coarse = torch.from_numpy(rng.random((num_masks, 1, 4, 4)).astype(np.float32))
    return torch.nn.functional.interpolate(coarse, size=size, mode="bilinear")[:, 0].contiguous().numpy()


@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.5, 1.0])
def test_random_boxes_equal_mmdet(threshold: float) -> None:
    rng = np.random.default_rng(0)
    corners = rng.uniform([-20, -20], [150, 90], (60, 2))
    sizes = np.exp(rng.uniform(np.log(0.05), np.log(200), (60, 2)))
    boxes = np.hstack([corners, np.maximum(corners + sizes, 0.5)]).astype(np.float32)
    check_against_mmdet(smooth_masks(rng, 60), boxes, 97, 160, threshold)


@pytest.mark.parametrize(
    "box",
    [
        [10, 12, 10, 30],  # no width: mmdet shows the mask's middle column
        [10.5, 12, 10.5, 30],  # no width, on a pixel's centre: 0 / 0
        [10, 12, 30, 12],
        [10.5, 12.5, 10.5, 12.5],
        [0, 0, 64, 48],  # the whole image
        [0, 0, 1, 1],
        [63, 47, 64, 48],
        [-30, -30, 90, 90],
        [-5, -6, 0, 0],  # touches the corner
        [64, 48, 70, 60],
        [3.7, 4.2, 9.1, 40.9],
        [5, 5, 5.0000005, 9],  # all but no width: huge, not infinite, coordinates
    ],
)
def test_special_boxes_equal_mmdet(box: list[float]) -> None:
    rng = np.random.default_rng(1)
    masks = rng.random((1, 28, 28)).astype(np.float32)
    check_against_mmdet(masks, np.array([box], np.float32), 48, 64, 0.5)


def test_masks_that_are_not_square_equal_mmdet() -> None:
    rng = np.random.default_rng(2)
    boxes = np.array([[3, 4, 40, 30], [-9, 10, 22, 60]], np.float32)
    check_against_mmdet(smooth_masks(rng, 2, (14, 56)), boxes, 48, 64, 0.5)
    check_against_mmdet(rng.random((2, 1, 1)).astype(np.float32), boxes, 48, 64, 0.3)


@pytest.mark.parametrize(
    "box",
    [
        [
            80,
            5,
            90,
            20,
        ],  # mmdet raises for boxes right of, or below, the image: its range of pixels runs backwards
        [5, 70, 20, 90],
        [-90, -90, -50, -50],
        [NAN, 5, 20, 20],
        [5, NAN, 20, 20],
        [5, 5, NAN, 20],
        [5, 5, 20, NAN],
        [30, 30, 10, 10],
        [INF, 5, INF, 20],
        [-INF, 5, 20, 20],
    ],
)
def test_boxes_that_mmdet_cannot_paste_give_zeros(box: list[float]) -> None:
    pasted = _reference.paste_masks(
        np.ones((1, 28, 28), np.float32), np.array([box], np.float32), 48, 64, 0.5
    )
    assert (pasted == 0).all()


def test_nan_in_the_mask_is_background() -> None:
    masks = np.ones((1, 4, 4), np.float32)
    masks[0, 1, 1] = NAN
    boxes = np.array([[0, 0, 40, 40]], np.float32)
    check_against_mmdet(masks, boxes, 40, 40, 0.5)
    pasted = _reference.paste_masks(masks, boxes, 40, 40, 0.5)[0]
    assert (pasted[10:20, 10:20] == 0).all()
    assert pasted[30, 30] == 1


@pytest.mark.parametrize(("num_masks", "height", "width"), [(0, 48, 64), (2, 0, 64), (2, 48, 0)])
def test_nothing_to_paste(num_masks: int, height: int, width: int) -> None:
    masks, boxes = np.ones((num_masks, 28, 28), np.float32), np.ones((num_masks, 4), np.float32)
    assert _reference.paste_masks(masks, boxes, height, width).shape == (num_masks, height, width)


MASKS, BOXES = np.zeros((2, 28, 28), np.float32), np.zeros((2, 4), np.float32)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((MASKS, BOXES[:1], 48, 64), r"boxes: .*\(2, 4\), found float32 \(1, 4\)"),
        ((MASKS > 0, BOXES, 48, 64), "masks: .*float32.*found bool"),
        ((MASKS[:, :0], BOXES, 48, 64), "masks: expected at least 1 x 1 cells"),
        ((MASKS, BOXES, -1, 64), "height, width: expected 0 to 16777216, found -1, 64"),
        ((MASKS, BOXES, 48, 64, -1.0), "threshold: expected a probability"),
        ((MASKS, BOXES, 48, 64, NAN), "threshold: expected a probability"),
    ],
)
def test_wrong_arguments_are_named(arguments: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _reference.paste_masks(*arguments)
