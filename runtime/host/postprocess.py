"""The network's output -> ``Detections`` in the original image's pixels, as mmdet's heads do it.

Pure functions of arrays. ``paste_mask`` is mmdet's ``_do_paste_mask`` with ``skip_empty=True`` followed by
the threshold (``FCNMaskHead._predict_by_feat_single``): since a box is axis-aligned, its bilinear
``grid_sample`` is two small matrix products.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Optional, Union

import cv2
import numpy as np

from runtime.detections import Detections
from runtime.host.grid_masks import GridMasks, Placement
from runtime.host.preprocess import BatchGeometry, padded_size
from runtime.host.products import thin_product
from runtime.masks import MaskCrop
from runtime.metadata import ModelMetadata
from runtime.rle import RunLengthMasks
from runtime.transforms import final_offset


def detections_from_outputs(
    outputs: Mapping[str, Any],
    batch: BatchGeometry,
    metadata: ModelMetadata,
    *,
    problems: Optional[dict[int, str]] = None,
    check_masks: bool = False,
) -> list[Detections]:
    """Return one ``Detections`` per image of the batch, in original px.

    Args:
        outputs: what the graph returns: ``num_dets`` (B,) int32, ``dets`` (B, K, 5) float32, ``labels`` (B,
            K) int32, and by ``metadata.masks`` ``masks`` (B, K, m, m) float32 or (B, K, H, W) uint8. Masks that were
            pasted on the device come as ``counts``: of each image, of each row, COCO's run lengths as bytes. With
            key points in the metadata ``keypoints`` (B, K, P, 3) float32.
        batch: what the graph was given.
        metadata: the model's facts.
        problems: if given, an image whose outputs are no result counts as one without detections, and its index gets
            the reason.
        check_masks: look for NaN among ``masks`` too, which pasting makes an empty mask of.

    Raises:
        RuntimeError: ``problems`` is None, and there are counts, labels or coordinates that no valid model returns
            (NaN, a label without a class).
    """
    found = []
    for index in range(len(batch)):
        try:
            found.append(_detections_of_image(outputs, index, batch, metadata, problems is not None))
            if check_masks:
                _check_masks(outputs, index, len(found[-1]))
        except RuntimeError as error:
            if problems is None:
                raise
            problems[index] = str(error)
            found[index:] = [_no_detections(batch.original_sizes[index], metadata)]
    return found


def _check_masks(outputs: Mapping[str, Any], index: int, num_dets: int) -> None:
    masks = outputs.get("masks")
    if masks is None or masks.dtype.kind != "f" or np.isfinite(masks[index, :num_dets]).all():
        return
    row, *cell = (int(v) for v in np.argwhere(~np.isfinite(masks[index, :num_dets]))[0])
    value = masks[index, row][tuple(cell)]
    raise RuntimeError(
        f"model output masks[{row}]: expected finite probabilities, found {value} at {cell}; "
        "a half-precision model has overflowed: run it in FP32"
    )


def _no_detections(image_size: tuple[int, int], metadata: ModelMetadata) -> Detections:
    return Detections(
        boxes=np.zeros((0, 4), np.float32),
        scores=np.zeros(0, np.float32),
        labels=np.zeros(0, np.int32),
        image_size=image_size,
        classes=metadata.classes,
        keypoints=np.zeros((0, len(metadata.keypoints), 3), np.float32) if metadata.keypoints else None,
        keypoint_names=metadata.keypoints,
        skeleton=metadata.skeleton,
    )


def rescale_boxes(boxes: np.ndarray, scale_factor: np.ndarray) -> np.ndarray:
    """Return (n, 4) float32 boxes in original px from boxes in input px: mmdet's ``bboxes /= scale_factor``.

    Args:
        boxes: (n, 4) float32, xyxy.
        scale_factor: (2,) float64, (width, height). It is rounded to float32 first, as mmdet's ``new_tensor``
            does.
    """
    return boxes / np.tile(np.asarray(scale_factor, np.float32), 2)


def paste_mask(mask: np.ndarray, box: np.ndarray, image_size: tuple[int, int], threshold: float) -> MaskCrop:
    """Paste one mask at its box and binarise it.

    Args:
        mask: (m, m) float32, the probability on a grid over the box.
        box: (4,) float32, xyxy in px of the target image.
        image_size: (height, width) of the target image, px.
        threshold: probability at and above which a pixel is set.

    Returns:
        The part of the image that the box can touch; empty where the box lies outside the image or is not
        finite. A box of no width or height samples the middle of the mask, because mmdet replaces infinite
        coordinates with 0.
    """
    probabilities, top, left = paste_probabilities(mask, box, image_size)
    # NaN coordinates (0 / 0) make NaN probabilities, which no threshold is below: False, as in mmdet.
    return MaskCrop(probabilities >= np.float32(threshold), top, left)


def paste_probabilities(
    mask: np.ndarray, box: np.ndarray, image_size: tuple[int, int]
) -> tuple[np.ndarray, int, int]:
    """Sample one mask at the pixel centres around its box: ``_do_paste_mask(..., skip_empty=True)``.

    Arguments as for ``paste_mask``.

    Returns:
        (h, w) float32 probabilities of the window, its top and its left in px.
    """
    x0, y0, x1, y1 = np.asarray(box, np.float32)
    top, bottom = _window(y0, y1, image_size[0])
    left, right = _window(x0, x1, image_size[1])
    rows = _sampling_weights(y0, y1, top, bottom, mask.shape[0])
    columns = _sampling_weights(x0, x1, left, right, mask.shape[1])
    with np.errstate(invalid="ignore"):
        stretched = thin_product(columns, np.asarray(mask, np.float32).T)
        return thin_product(rows, stretched.T), top, left


def _window(low: np.float32, high: np.float32, limit: int) -> tuple[int, int]:
    """Return the pixels [start, stop) of one axis that a box from ``low`` to ``high`` can touch."""
    # Written so that NaN fails it: int(NaN) has no meaning.
    if not (low < limit + 1 and high > -2):
        return 0, 0
    start = max(0, int(np.floor(max(low, np.float32(-1)))) - 1)
    stop = min(limit, int(np.ceil(min(high, np.float32(limit)))) + 1)
    return start, max(start, stop)


def _sampling_weights(low: np.float32, high: np.float32, start: int, stop: int, size: int) -> np.ndarray:
    """Return (stop - start, size) float32: the share of each cell of the mask in each pixel of one axis.

    The coordinates are those of ``_do_paste_mask`` and ``grid_sample(align_corners=False,
    padding_mode="zeros")`` with the same float32 operations in the same order, so that even half-way pixels
    round alike.
    """
    half = np.float32(0.5)
    centres = np.arange(start, stop, dtype=np.float32) + half
    with np.errstate(divide="ignore", invalid="ignore"):
        grid = (centres - low) / (high - low) * np.float32(2) - np.float32(1)
        grid[np.isinf(grid)] = 0
        cells = (grid + np.float32(1)) * np.float32(size / 2) - half
        distances = np.abs(cells[:, None] - np.arange(size, dtype=np.float32))
        return np.maximum(np.float32(0), np.float32(1) - distances)


@dataclass(frozen=True, eq=False)
class CroppedMasks:
    """Masks of a ``--masks crop`` model: a small probability grid per box, pasted on demand.

    Attributes:
        probabilities: (n, m, m) float32.
        boxes: (n, 4) float32 xyxy in original px.
        image_size: (height, width) of the original image, px.
        threshold: probability at and above which a pixel is set.
    """

    probabilities: np.ndarray
    boxes: np.ndarray
    image_size: tuple[int, int]
    threshold: float

    def crop(self, index: int) -> MaskCrop:
        """Paste mask ``index``; see ``paste_mask``."""
        return paste_mask(self.probabilities[index], self.boxes[index], self.image_size, self.threshold)

    def select(self, keep: np.ndarray) -> "CroppedMasks":
        """Return the masks at ``keep`` ((n,) bool or indices)."""
        return CroppedMasks(self.probabilities[keep], self.boxes[keep], self.image_size, self.threshold)


@dataclass(frozen=True, eq=False)
class FullMasks:
    """Masks of a ``--masks full`` model: pasted in the graph at network size, resized on demand.

    Resizing cannot bring back what the network's grid lost. Linear interpolation of the 0/1 masks, cut at one
    half, keeps a little more than the nearest pixel, which leaves stairs: with masks of 1080x1920 images from a
    network of 750x1333, a mean IoU of 0.990 instead of 0.988 with the masks pasted at the original size, and of
    0.971 instead of 0.967 from 270x480.

    Attributes:
        masks: (n, h, w) uint8 {0, 1} at network size, padding cut off.
        image_size: (height, width) of the original image, px.
    """

    masks: np.ndarray
    image_size: tuple[int, int]

    def crop(self, index: int) -> MaskCrop:
        """Resize mask ``index`` to the original image."""
        height, width = self.image_size
        # 255 instead of 1: cv2 rounds to integers, and 128 is then the half.
        mask = cv2.resize(self.masks[index] * np.uint8(255), (width, height), interpolation=cv2.INTER_LINEAR)
        return MaskCrop(mask >= 128, 0, 0)

    def select(self, keep: np.ndarray) -> "FullMasks":
        """Return the masks at ``keep`` ((n,) bool or indices)."""
        return FullMasks(self.masks[keep], self.image_size)


def _detections_of_image(
    outputs: Mapping[str, Any], index: int, batch: BatchGeometry, metadata: ModelMetadata, alone: bool
) -> Detections:
    _check_shape(outputs, "num_dets", len(batch))
    _check_shape(outputs, "dets", len(batch), 0, 5)
    # In messages; those of `problems` speak of one image, wherever in a batch it was.
    place = 0 if alone else index
    num_dets = int(outputs["num_dets"][index])
    num_rows = outputs["dets"].shape[1]
    if not 0 <= num_dets <= num_rows:
        raise RuntimeError(
            f"model output num_dets[{place}]: expected 0 to {num_rows}, found {num_dets}; "
            "the model is damaged or not one of ours, export it again with `python -m export.maskrcnn`"
        )
    for name in {"labels", "masks", "keypoints"} & set(outputs):
        _check_shape(outputs, name, len(batch), num_dets)
    rows = outputs["dets"][index, :num_dets].astype(np.float32, copy=False)
    labels = outputs["labels"][index, :num_dets].astype(np.int32)
    _check_rows(rows, labels, place, metadata)
    size = batch.original_sizes[index]
    offset = final_offset(*size, metadata.steps)
    boxes = rescale_boxes(_moved(rows[:, :4], offset), batch.scale_factors[index])
    if metadata.clip:
        boxes = np.clip(boxes, 0, np.tile(np.array(size[::-1], np.float32), 2))
    return Detections(
        boxes=boxes,
        scores=rows[:, 4].copy(),
        labels=labels,
        image_size=batch.original_sizes[index],
        classes=metadata.classes,
        mask_source=_mask_source(outputs, index, boxes, batch, metadata),
        keypoints=_keypoints(outputs, index, num_dets, batch, metadata),
        keypoint_names=metadata.keypoints,
        skeleton=metadata.skeleton,
    )


def _check_shape(outputs: Mapping[str, Any], name: str, *least: int) -> None:
    """Refuse an array of fewer images or rows than there should be: a file may declare one shape and make another."""
    found = outputs[name].shape[: 3 if name == "dets" else 2]
    if len(found) != len(least) or any(a < b for a, b in zip(found, least)):
        raise RuntimeError(
            f"model output {name}: expected at least the shape {least} for this batch, found {found}; the model is "
            "damaged or not one of ours, export it again with `python -m export.maskrcnn`"
        )


def _moved(boxes: np.ndarray, offset: tuple[float, float]) -> np.ndarray:
    """Return boxes from the image's first pixel on; bit for bit the same where that is the input's."""
    return boxes - np.tile(np.array(offset, np.float32), 2) if any(offset) else boxes


def _keypoints(
    outputs: Mapping[str, Any], index: int, num_dets: int, batch: BatchGeometry, metadata: ModelMetadata
) -> Optional[np.ndarray]:
    """Return (n, P, 3) float32 in original px."""
    if not metadata.keypoints:
        return None
    points = outputs["keypoints"][index, :num_dets].astype(np.float32)
    if not np.isfinite(points).all():
        row, point, _ = (int(v) for v in np.argwhere(~np.isfinite(points))[0])
        raise RuntimeError(
            f"model output keypoints[{row}]: expected finite key points, found {points[row, point].tolist()}; "
            "a half-precision model has overflowed: run it in FP32"
        )
    offset = final_offset(*batch.original_sizes[index], metadata.steps)
    points[..., :2] -= np.array(offset, np.float32)
    points[..., :2] /= batch.scale_factors[index].astype(np.float32)
    return points


def _check_rows(rows: np.ndarray, labels: np.ndarray, index: int, metadata: ModelMetadata) -> None:
    if not np.isfinite(rows).all():
        row = int(np.flatnonzero(~np.isfinite(rows).all(axis=1))[0])
        raise RuntimeError(
            f"model output dets[{index}, {row}]: expected finite boxes and scores, "
            f"found {rows[row].tolist()}; "
            "a half-precision model has overflowed: keep its geometry in FP32, or run it in FP32"
        )
    if len(labels) and not (labels.min() >= 0 and labels.max() < len(metadata.classes)):
        raise RuntimeError(
            f"model output labels[{index}]: expected 0 to {len(metadata.classes) - 1} for the "
            f"{len(metadata.classes)} classes in the metadata, found {labels.min()} to {labels.max()}; "
            "the metadata is another model's, export it again with `python -m export.maskrcnn`"
        )


def _mask_source(
    outputs: Mapping[str, Any],
    index: int,
    boxes: np.ndarray,
    batch: BatchGeometry,
    metadata: ModelMetadata,
) -> Optional[Union[CroppedMasks, FullMasks, GridMasks, RunLengthMasks]]:
    if metadata.masks == "none":
        return None
    if "counts" in outputs:
        return RunLengthMasks(tuple(outputs["counts"][index][: len(boxes)]), batch.original_sizes[index])
    # Copies: a view would keep the whole batch's output in memory for as long as one image's detections live.
    masks = outputs["masks"][index, : len(boxes)]
    image_size = batch.original_sizes[index]
    if metadata.masks == "crop":
        return CroppedMasks(masks.astype(np.float32), boxes, image_size, metadata.mask_threshold)
    if metadata.masks == "grid":
        placement = _placement(batch, index, metadata)
        return GridMasks(masks.astype(np.float32), boxes, image_size, placement, metadata.mask_threshold)
    height, width = (int(v) for v in batch.image_sizes[index])
    return FullMasks(masks[:, :height, :width].astype(np.uint8), image_size)


def _placement(batch: BatchGeometry, index: int, metadata: ModelMetadata) -> Placement:
    x, y = (float(v) for v in batch.scale_factors[index])
    padded = padded_size([(int(height), int(width)) for height, width in batch.image_sizes], metadata)
    return Placement((x, y), final_offset(*batch.original_sizes[index], metadata.steps), padded)
