"""A heat map of centres with maps of sizes and offsets: CenterFace.

Source: CenterFace (Star-Clouds), ``prj-python/centerface.py``: ``decode``. There a box that begins outside the image is
moved into it before its second corner and its key points are computed; here corners and key points lie where the
network puts them, and the box is cut.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from export.graft.builder import Builder
from export.graft.forms.form import ACTIVATIONS, Candidates, Output, check_choice, check_whole
from export.graft.grid import Grid, Size, cells


@dataclass(frozen=True)
class Centers:
    """Outputs ``heat`` (B, C, h, w), ``scale`` and ``offset`` (B, 2, h, w), ``keypoints`` (B, 2 P, h, w).

    Sizes are ``exp(scale) * stride``, centres ``(index + offset + 0.5) * stride``, key points in shares of the size
    from the box's first corner.

    Attributes:
        stride: px.
        order: of each pair of maps, ``yx`` or ``xy``.
        activation: of the heat map, as far as it is not in the graph.
    """

    stride: int
    order: str = "yx"
    activation: str = "none"

    def __post_init__(self) -> None:
        check_whole("stride", self.stride)
        check_choice("order", self.order, ("yx", "xy"))
        check_choice("activation", self.activation, ACTIVATIONS[:2])

    def outputs(self, size: Size, num_keypoints: int) -> list[Output]:
        """See ``Form.outputs``."""
        lengths: dict[str, object] = {"heat": "C", "scale": 2, "offset": 2}
        if num_keypoints:
            lengths["keypoints"] = 2 * num_keypoints
        place = (cells(size[0], self.stride), cells(size[1], self.stride))
        return [Output(role, (length, *place)) for role, length in lengths.items()]

    def num_candidates(self, size: Size) -> int:
        """See ``Form.num_candidates``."""
        return cells(size[0], self.stride) * cells(size[1], self.stride)

    def num_classes(self, shapes: Mapping[str, Sequence[Sequence[int]]], num_keypoints: int) -> int:
        """See ``Form.num_classes``."""
        return shapes["heat"][0][0]

    def decode(
        self, builder: Builder, grid: Grid, tensors: Mapping[str, Sequence[str]], num_keypoints: int
    ) -> Candidates:
        """See ``Form.decode``."""
        b = builder
        sizes = b.op("Mul", b.op("Exp", self._pairs(b, tensors["scale"][0])), float(self.stride))
        cell = b.op("Add", grid.corners(self.stride, 1), 0.5)
        centers = b.op("Mul", b.op("Add", cell, self._pairs(b, tensors["offset"][0])), float(self.stride))
        boxes = b.corners(centers, sizes)
        scores = b.activated(_by_cell(b, tensors["heat"][0]), self.activation)
        if not num_keypoints:
            return Candidates(boxes, scores)
        shares = b.op("Reshape", _by_cell(b, tensors["keypoints"][0]), b.ints(0, -1, num_keypoints, 2))
        shares = self._swapped(b, shares)
        moved = b.op("Mul", shares, b.op("Unsqueeze", sizes, b.ints(2)))
        placed = b.op("Add", moved, b.op("Unsqueeze", b.columns(boxes, 0, 2), b.ints(2)))
        return Candidates(boxes, scores, b.op("Reshape", placed, b.ints(0, -1, 2 * num_keypoints)))

    def _pairs(self, b: Builder, tensor: str) -> str:
        """Return (B, N, 2) x and y of (B, 2, h, w)."""
        return self._swapped(b, _by_cell(b, tensor))

    def _swapped(self, b: Builder, tensor: str) -> str:
        if self.order == "xy":
            return tensor
        return b.op("Concat", b.columns(tensor, 1, 2), b.columns(tensor, 0, 1), axis=-1)


def _by_cell(b: Builder, tensor: str) -> str:
    """Return (B, h w, n) of (B, n, h, w)."""
    flat = b.op("Reshape", tensor, b.ints(0, 0, -1))
    return b.op("Transpose", flat, perm=[0, 2, 1])
