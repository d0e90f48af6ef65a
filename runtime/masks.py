"""A mask without the empty part of the image around it, and where masks come from."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np


@dataclass(frozen=True, eq=False)
class MaskCrop:
    """A binary mask, without the empty part of the image around it.

    Attributes:
        pixels: (h, w) bool; may be empty.
        top, left: where it lies in the image, px.
    """

    pixels: np.ndarray
    top: int
    left: int

    @property
    def window(self) -> tuple[slice, slice]:
        """The rows and columns of the image that ``pixels`` covers."""
        height, width = self.pixels.shape
        return slice(self.top, self.top + height), slice(self.left, self.left + width)


class MaskSource(Protocol):
    """Where the masks of n detections come from, one at a time.

    A source that has COCO's run lengths already returns them from ``rle(index)``, in the form of ``Detections.rle``.
    """

    def crop(self, index: int) -> MaskCrop:
        """Return mask ``index`` at the original image's resolution."""

    def select(self, keep: np.ndarray) -> "MaskSource":
        """Return the source of the masks at ``keep`` ((n,) bool or indices)."""
