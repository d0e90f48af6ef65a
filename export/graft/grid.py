"""The cells of a network's levels: their places as constants, or as nodes where the size is dynamic."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Optional

import numpy as np

from export.graft.builder import FLOAT, Builder

Size = tuple[int, int]


def cells(edge: int, stride: int) -> int:
    """Return how many cells a level has along an edge of the input, px."""
    return -(-edge // stride)


@dataclass(frozen=True)
class Grid:
    """Makes what belongs to each anchor of each cell, in the order y, x, anchor.

    Attributes:
        builder: where nodes go.
        images: name of the network's input, (B, C, H, W).
        size: its (height, width) in px; None where they are dynamic.
    """

    builder: Builder
    images: str
    size: Optional[Size]

    def corners(self, stride: int, per_cell: int) -> str:
        """Return (N, 2) float32: x and y of the top left corner of each anchor's cell, in cells."""
        if self.size is not None:
            height, width = (cells(edge, stride) for edge in self.size)
            y, x = np.mgrid[:height, :width].astype(np.float32)
            return self._flat(np.repeat(np.stack((x, y), -1)[:, :, None], per_cell, 2))
        b, (height, width) = self.builder, self._cells(stride)
        shape = b.op("Concat", height, width, b.ints(per_cell, 1), axis=0)
        x = b.op("Unsqueeze", self._range(width), b.ints(0, 2, 3))
        y = b.op("Unsqueeze", self._range(height), b.ints(1, 2, 3))
        both = b.op("Concat", b.op("Expand", x, shape), b.op("Expand", y, shape), axis=-1)
        return b.op("Reshape", both, b.ints(-1, 2))

    def anchors(self, stride: int, sizes: Sequence[Sequence[float]]) -> str:
        """Return (N, 2) float32: width and height of each anchor."""
        values = np.array(sizes, np.float32)[None, None]
        if self.size is not None:
            height, width = (cells(edge, stride) for edge in self.size)
            return self._flat(np.broadcast_to(values, (height, width, *values.shape[2:])))
        b, (height, width) = self.builder, self._cells(stride)
        shape = b.op("Concat", height, width, b.ints(len(sizes), 2), axis=0)
        return b.op("Reshape", b.op("Expand", values, shape), b.ints(-1, 2))

    def extent(self) -> str:
        """Return (2,) float32: the input's width and height, px."""
        b = self.builder
        if self.size is not None:
            return b.op("Identity", np.array(self.size[::-1], np.float32))
        shape = b.op("Shape", self.images)
        sides = b.op("Concat", b.columns(shape, 3, 4, 0), b.columns(shape, 2, 3, 0), axis=0)
        return b.op("Cast", sides, to=FLOAT)

    def _flat(self, values: np.ndarray) -> str:
        return self.builder.op("Identity", np.ascontiguousarray(values.reshape(-1, 2)))

    def _cells(self, stride: int) -> tuple[str, str]:
        """Return (1,) int64 each: the level's height and width in cells."""
        b = self.builder
        shape = b.op("Shape", self.images)
        sides = (b.columns(shape, axis, axis + 1, 0) for axis in (2, 3))
        height, width = (b.op("Div", b.op("Add", side, b.ints(stride - 1)), b.ints(stride)) for side in sides)
        return height, width

    def _range(self, count: str) -> str:
        b = self.builder
        stop = b.op("Squeeze", count, b.ints(0))
        zero, one = (b.op("Squeeze", b.ints(v), b.ints(0)) for v in (0, 1))
        return b.op("Cast", b.op("Range", zero, stop, one), to=FLOAT)
