import re

import numpy as np
import pytest
import torch
from mmdet.models.roi_heads.mask_heads.fcn_mask_head import FCNMaskHead, _do_paste_mask
from mmengine.config import ConfigDict
from mmengine.structures import InstanceData

from runtime.host.postprocess import (
    CroppedMasks,
    FullMasks,
    detections_from_outputs,
    paste_mask,
    paste_probabilities,
    rescale_boxes,
)
from runtime.host.preprocess import Batch
from tests.runtime import fakes

HEIGHT, WIDTH = 61, 83
THRESHOLD = 0.5
# Four products and three sums of float32 numbers below 1, in another order than torch's; coordinates of up to
# 28 cells are good to 28 * 2**-24 each.
PASTE_TOLERANCE = 1e-5

BOXES = {
    "inside": (10.3, 5.7, 40.2, 33.9),
    "whole image": (0, 0, WIDTH, HEIGHT),
    "at the origin": (0, 0, 3.5, 2.5),
    "at the far corner": (WIDTH - 4.25, HEIGHT - 7.5, WIDTH, HEIGHT),
    "one pixel": (7, 9, 8, 10),
    "inside one pixel": (7.2, 9.2, 7.6, 9.9),
    "no width": (12.25, 4, 12.25, 30),
    "no height": (4, 12.25, 30, 12.25),
    "no width, on a pixel's centre": (12.5, 4, 12.5, 30),
    "no size": (20, 20, 20, 20),
    "no size, on a pixel's centre": (20.5, 20.5, 20.5, 20.5),
    "no width, at the border": (WIDTH, 3, WIDTH, 30),
    "a little beyond the border": (-0.3, -0.2, WIDTH + 0.4, HEIGHT + 0.3),
    "partly outside": (-15, -9, 20, 20),
    "infinitely wide": (5, 5, np.inf, 20),
    "infinite to the left": (-np.inf, 5, 20, 20),
}


def _random_mask(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).random((28, 28), np.float32)


def _mmdet_paste(mask: np.ndarray, box: np.ndarray) -> tuple[np.ndarray, int, int]:
    pasted, (rows, columns) = _do_paste_mask(
        torch.from_numpy(mask)[None, None], torch.from_numpy(box)[None], HEIGHT, WIDTH, skip_empty=True
    )
    return pasted[0].numpy(), int(rows.start), int(columns.start)


def _assert_pasted_as_mmdet(mask: np.ndarray, box: np.ndarray) -> None:
    expected, top, left = _mmdet_paste(mask, box)
    probabilities, found_top, found_left = paste_probabilities(mask, box, (HEIGHT, WIDTH))
    assert (found_top, found_left, probabilities.shape) == (top, left, expected.shape)
    np.testing.assert_allclose(probabilities, expected, rtol=0, atol=PASTE_TOLERANCE)
    crop = paste_mask(mask, box, (HEIGHT, WIDTH), THRESHOLD)
    # ~(>), so that NaN counts as away from the threshold and must be False in both.
    sure = ~(np.abs(expected - THRESHOLD) <= PASTE_TOLERANCE)
    np.testing.assert_array_equal(crop.pixels[sure], (expected >= THRESHOLD)[sure])


@pytest.mark.parametrize("name", BOXES)
def test_a_pasted_mask_is_mmdets(name: str) -> None:
    _assert_pasted_as_mmdet(_random_mask(3), np.array(BOXES[name], np.float32))


def test_many_random_boxes_are_pasted_as_mmdets() -> None:
    generator = np.random.default_rng(11)
    for seed in range(300):
        x = np.sort(generator.uniform(0, WIDTH, 2))
        y = np.sort(generator.uniform(0, HEIGHT, 2))
        _assert_pasted_as_mmdet(_random_mask(seed), np.array([x[0], y[0], x[1], y[1]], np.float32))


@pytest.mark.parametrize(
    "box",
    [
        (np.nan, 1, 5, 5),
        (1, 1, 5, np.nan),
        (np.inf, 1, np.inf, 5),
        (-np.inf, 1, -np.inf, 5),
        (200, 1, 210, 5),
        (-50, 1, -40, 5),
        (9, 9, 1, 1),
        (1e30, 1e30, 2e30, 2e30),
    ],
)
def test_a_box_off_the_image_or_without_meaning_has_no_pixels(box: tuple) -> None:
    crop = paste_mask(np.ones((28, 28), np.float32), np.array(box, np.float32), (HEIGHT, WIDTH), THRESHOLD)
    assert not crop.pixels.any()
    image = np.zeros((HEIGHT, WIDTH), bool)
    image[crop.window] = crop.pixels


def test_a_pixel_at_the_threshold_belongs_to_the_object() -> None:
    # One mask cell per pixel, so that sampling returns the cell itself.
    mask = np.full((4, 4), THRESHOLD, np.float32)
    crop = paste_mask(mask, np.array((2, 3, 6, 7), np.float32), (HEIGHT, WIDTH), THRESHOLD)
    image = np.zeros((HEIGHT, WIDTH), bool)
    image[crop.window] = crop.pixels
    assert image[3:7, 2:6].all()
    assert image.sum() == 16


def test_other_mask_sizes_are_pasted_too() -> None:
    for size in (1, 14, 56):
        mask = np.random.default_rng(size).random((size, size), np.float32)
        _assert_pasted_as_mmdet(mask, np.array((10.3, 5.7, 40.2, 33.9), np.float32))


def test_boxes_and_masks_are_those_of_mmdets_mask_head() -> None:
    """FCNMaskHead from logits and boxes in input px, with rescale=True, against the graph's outputs."""
    generator = np.random.default_rng(5)
    num_dets, original, scale_factor = 6, (61, 83), (96 / 83, 64 / 61)
    corners = (
        np.sort(generator.uniform(0, 60, (num_dets, 2, 2)), axis=1).reshape(num_dets, 4).astype(np.float32)
    )
    logits = generator.normal(0, 2, (num_dets, 3, 28, 28)).astype(np.float32)
    labels = generator.integers(0, 3, num_dets)
    head = FCNMaskHead(num_convs=0, num_classes=3)
    results = InstanceData(
        bboxes=torch.from_numpy(corners.copy()), labels=torch.from_numpy(labels), scores=torch.ones(num_dets)
    )
    meta = {"scale_factor": scale_factor, "ori_shape": original}
    (expected,) = head.predict_by_feat(
        (torch.from_numpy(logits),), [results], [meta], ConfigDict(mask_thr_binary=0.5), rescale=True
    )

    probabilities = torch.from_numpy(logits).sigmoid().numpy()[np.arange(num_dets), labels]
    (found,) = detections_from_outputs(
        _outputs(corners, labels, masks=probabilities), _batch(original, scale_factor), fakes.metadata()
    )

    np.testing.assert_array_equal(found.boxes, expected.bboxes.numpy())
    different = found.masks != expected.masks.numpy()
    pasted = _soft_masks(probabilities, found.boxes, original)
    assert (np.abs(pasted[different] - THRESHOLD) <= PASTE_TOLERANCE).all()


def _soft_masks(probabilities: np.ndarray, boxes: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    soft = np.zeros((len(boxes), *size), np.float32)
    for out, mask, box in zip(soft, probabilities, boxes):
        window, top, left = paste_probabilities(mask, box, size)
        out[top : top + window.shape[0], left : left + window.shape[1]] = window
    return soft


def _outputs(boxes: np.ndarray, labels: np.ndarray, *, masks: np.ndarray, num_rows: int = 8) -> dict:
    """One image's outputs, padded to ``num_rows``."""
    num_dets = len(boxes)
    dets = np.zeros((1, num_rows, 5), np.float32)
    dets[0, :num_dets, :4], dets[0, :num_dets, 4] = boxes, 0.9
    padded_labels = np.full((1, num_rows), -1, np.int32)
    padded_labels[0, :num_dets] = labels
    padded_masks = np.zeros((1, num_rows, *masks.shape[1:]), masks.dtype)
    padded_masks[0, :num_dets] = masks
    num_dets_array = np.array([num_dets], np.int32)
    return {"num_dets": num_dets_array, "dets": dets, "labels": padded_labels, "masks": padded_masks}


def _batch(original: tuple[int, int], scale_factor: tuple[float, float]) -> Batch:
    return Batch(
        images=np.zeros((1, 3, 64, 96), np.float32),
        image_sizes=np.array([[64, 96]], np.float32),
        scale_factors=np.array([scale_factor]),
        original_sizes=(original,),
    )


def test_no_detections_have_empty_arrays_of_the_right_shapes() -> None:
    outputs = _outputs(np.zeros((0, 4)), np.zeros(0), masks=np.zeros((0, 28, 28), np.float32))
    (found,) = detections_from_outputs(outputs, _batch((61, 83), (1.0, 1.0)), fakes.metadata())
    assert len(found) == 0
    assert (found.boxes.shape, found.boxes.dtype) == ((0, 4), np.float32)
    assert (found.scores.shape, found.scores.dtype) == ((0,), np.float32)
    assert (found.labels.shape, found.labels.dtype) == ((0,), np.int32)
    assert (found.masks.shape, found.masks.dtype) == ((0, 61, 83), bool)
    assert found.rle() == []


def test_boxes_are_divided_in_float32_as_torch_divides() -> None:
    boxes = np.random.default_rng(0).uniform(0, 1333, (500, 4)).astype(np.float32)
    scale_factor = (1333 / 1919, 750 / 1080)
    tensor = torch.from_numpy(boxes.copy())
    tensor /= tensor.new_tensor(scale_factor).repeat((1, 2))
    found = rescale_boxes(boxes, np.array(scale_factor))
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, tensor.numpy())


@pytest.mark.parametrize(
    ("name", "index", "value", "message"),
    [
        ("num_dets", 0, 9, r"num_dets\[0\]: expected 0 to 8, found 9; .*export it again"),
        ("num_dets", 0, -1, r"num_dets\[0\]: expected 0 to 8, found -1"),
        ("dets", (0, 1, 4), np.nan, r"dets\[0, 1\]: expected finite .* found .*nan.* half-precision"),
        ("dets", (0, 0, 2), np.inf, r"dets\[0, 0\]: expected finite .* found .*inf"),
        (
            "labels",
            (0, 0),
            3,
            r"labels\[0\]: expected 0 to 2 for the 3 classes .* found 0 to 3; .*another model's",
        ),
        ("labels", (0, 1), -1, r"labels\[0\]: expected 0 to 2 .* found -1 to 0"),
    ],
)
def test_outputs_that_no_valid_model_returns_are_refused(
    name: str, index: object, value: float, message: str
) -> None:
    outputs = _outputs(np.ones((2, 4)), np.zeros(2), masks=np.zeros((2, 28, 28), np.float32))
    outputs[name][index] = value
    with pytest.raises(RuntimeError, match=message):
        detections_from_outputs(outputs, _batch((61, 83), (1.0, 1.0)), fakes.metadata())


@pytest.mark.parametrize(
    ("name", "shape", "least"),
    [
        ("num_dets", (0,), "(1,)"),
        ("num_dets", (1, 1), "(1,)"),
        ("dets", (0, 8, 5), "(1, 0, 5)"),
        ("dets", (1, 8, 4), "(1, 0, 5)"),
        ("dets", (8, 5), "(1, 0, 5)"),
        ("labels", (0, 8), "(1, 2)"),
        ("labels", (1, 1), "(1, 2)"),
        ("masks", (0, 8, 28, 28), "(1, 2)"),
        ("masks", (1, 1, 28, 28), "(1, 2)"),
    ],
)
def test_outputs_of_fewer_images_or_rows_are_refused(name: str, shape: tuple, least: str) -> None:
    """What a damaged model declares and what it makes are two things."""
    outputs = _outputs(np.ones((2, 4)), np.zeros(2), masks=np.zeros((2, 28, 28), np.float32))
    outputs[name] = np.zeros(shape, outputs[name].dtype)
    problems: dict[int, str] = {}
    batch, expected = (
        _batch((61, 83), (1.0, 1.0)),
        f"model output {name}: expected at least the shape {least} for",
    )
    with pytest.raises(RuntimeError, match=re.escape(expected)):
        detections_from_outputs(outputs, batch, fakes.metadata())
    assert len(detections_from_outputs(outputs, batch, fakes.metadata(), problems=problems)[0]) == 0
    assert problems[0].startswith(expected)


def test_padding_rows_are_not_looked_at() -> None:
    outputs = _outputs(np.ones((2, 4)), np.zeros(2), masks=np.zeros((2, 28, 28), np.float32))
    outputs["dets"][0, 2:] = np.nan
    (found,) = detections_from_outputs(outputs, _batch((61, 83), (1.0, 1.0)), fakes.metadata())
    assert len(found) == 2


def test_full_masks_lose_their_padding_and_get_the_original_size() -> None:
    masks = np.zeros((1, 64, 96), np.uint8)
    masks[0, 10:30, 20:40] = 1
    masks[0, :, 48:] = 1  # the padding of an image of 64x48
    batch = Batch(
        images=np.zeros((1, 3, 64, 96), np.float32),
        image_sizes=np.array([[64, 48]], np.float32),
        scale_factors=np.array([[0.5, 0.5]]),
        original_sizes=((128, 96),),
    )
    outputs = _outputs(np.ones((1, 4)), np.zeros(1), masks=masks)
    (found,) = detections_from_outputs(outputs, batch, fakes.metadata(masks="full"))
    expected = np.zeros((1, 128, 96), bool)
    expected[0, 20:60, 40:80] = True
    assert found.masks.shape == expected.shape
    # Linear interpolation rounds the four corners off.
    assert (found.masks != expected).sum() <= 4


def test_full_masks_lose_less_with_linear_than_with_nearest() -> None:
    """Enlarged four times, against the same outline pasted at the original size."""
    size, network, num_masks = (400, 600), (100, 150), 20
    generator = np.random.default_rng(2)
    probabilities = np.stack([fakes.disc()] * num_masks)
    corners = generator.uniform(0, 60, (num_masks, 2))
    boxes = np.hstack((corners, corners + generator.uniform(15, 40, (num_masks, 2)))).astype(np.float32)
    exact = CroppedMasks(probabilities, boxes * 4, size, THRESHOLD)
    small = np.zeros((num_masks, *network), np.uint8)
    for index in range(num_masks):
        crop = paste_mask(probabilities[index], boxes[index], network, THRESHOLD)
        small[index][crop.window] = crop.pixels
    full = FullMasks(small, size)
    linear, nearest = [], []
    for index in range(num_masks):
        expected = np.zeros(size, bool)
        crop = exact.crop(index)
        expected[crop.window] = crop.pixels
        linear.append(_iou(full.crop(index).pixels, expected))
        nearest.append(_iou(np.kron(small[index], np.ones((4, 4))) > 0, expected))
    assert np.mean(linear) > np.mean(nearest)
    assert np.mean(linear) > 0.95


def _iou(a: np.ndarray, b: np.ndarray) -> float:
    return float((a & b).sum() / (a | b).sum())
