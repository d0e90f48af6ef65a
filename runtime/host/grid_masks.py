"""Masks of prototypes: probabilities on a grid over the network's whole input -> masks in the original image.

What Ultralytics' ``process_mask_native`` does (``ultralytics/utils/ops.py``, as of 8.3): the grid is brought to the
image's own size bilinearly, cut by the box, and a pixel belongs to the object where the result is above the threshold.
There the padding is cut off in whole cells of the grid; here each pixel is sampled where it lies, to the last bit of
its coordinate.
"""

from dataclasses import dataclass

import numpy as np

from runtime.host.products import thin_product
from runtime.masks import MaskCrop


@dataclass(frozen=True)
class Placement:
    """Where an image lies in the network's input.

    Attributes:
        scale: (x, y), px of the input per px of the image.
        offset: (x, y) of the image's first pixel in the input, px.
        padded: (height, width) of the input, px.
    """

    scale: tuple[float, float]
    offset: tuple[float, float]
    padded: tuple[int, int]


@dataclass(frozen=True, eq=False)
class GridMasks:
    """Masks of a model of mode ``grid``, made on demand.

    Attributes:
        probabilities: (n, h, w) float32, on a grid over the network's input.
        boxes: (n, 4) float32 xyxy in original px.
        image_size: (height, width) of the original image, px.
        placement: of the image in the network's input.
        threshold: probability above which a pixel is set.
    """

    probabilities: np.ndarray
    boxes: np.ndarray
    image_size: tuple[int, int]
    placement: Placement
    threshold: float

    def crop(self, index: int) -> MaskCrop:
        """Return mask ``index`` inside its box; empty where the box lies outside the image or is not finite."""
        x1, y1, x2, y2 = (float(v) for v in self.boxes[index])
        top, bottom = _pixels(y1, y2, self.image_size[0])
        left, right = _pixels(x1, x2, self.image_size[1])
        grid = np.asarray(self.probabilities[index], np.float32)
        rows = self._weights(1, top, bottom, grid.shape[0])
        columns = self._weights(0, left, right, grid.shape[1])
        stretched = thin_product(columns, grid.T)
        return MaskCrop(thin_product(rows, stretched.T) > np.float32(self.threshold), top, left)

    def _weights(self, axis: int, start: int, stop: int, cells: int) -> np.ndarray:
        """Return (stop - start, cells) float32: each cell's share in each pixel; beyond the border its cell's value."""
        scale, offset = self.placement.scale[axis], self.placement.offset[axis]
        centres = (np.arange(start, stop) + 0.5) * scale + offset
        places = centres * (cells / self.placement.padded[1 - axis]) - 0.5
        places = np.clip(places, 0, cells - 1)
        distances = np.abs(places[:, None] - np.arange(cells))
        return np.maximum(0, 1 - distances).astype(np.float32)

    def select(self, keep: np.ndarray) -> "GridMasks":
        """Return the masks at ``keep`` ((n,) bool or indices)."""
        return GridMasks(
            self.probabilities[keep], self.boxes[keep], self.image_size, self.placement, self.threshold
        )


def _pixels(low: float, high: float, limit: int) -> tuple[int, int]:
    """Return the pixels [start, stop) of one axis with ``low <= pixel < high``, as ``crop_mask`` cuts them."""
    # Written so that NaN fails it.
    if not (low < limit and high > 0 and low < high):
        return 0, 0
    start, stop = int(np.ceil(max(low, 0.0))), int(np.ceil(min(high, float(limit))))
    return start, max(start, stop)
