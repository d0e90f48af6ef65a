"""Boxes that the network has decoded, a row each: YOLOv5, YOLOv8 with and without masks, YOLOv4 of pytorch-YOLOv4.

Sources: YOLOv5, ``utils/general.py``: ``non_max_suppression``; Ultralytics, ``utils/ops.py``: ``non_max_suppression``
and ``process_mask``; pytorch-YOLOv4 (Tianxiaomo), ``tool/utils.py``: ``post_processing``.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from export.graft.builder import Builder
from export.graft.forms.form import Candidates, Output, check_choice, check_flag, check_strides, check_whole
from export.graft.grid import Grid, Size, cells


@dataclass(frozen=True)
class Rows:
    """Output ``rows`` (B, N, F), with ``layout`` columns (B, F, N), or ``boxes`` (B, N, 1, 4) and ``scores`` (B, N, C).

    F: 4 of the box, one with ``has_objectness``, C, 3 P, and the coefficients of ``prototypes`` (B, M, h, w).

    Attributes:
        strides: of the levels, px; with ``per_cell`` they say how many rows there are.
        per_cell: rows of each cell.
        layout: ``rows``, ``columns`` or ``pair``, the last with boxes and scores apart.
        box: ``cxcywh`` or ``xyxy``.
        unit: of the boxes: ``px``, or ``share`` of the input's edges.
        has_objectness: the score of a class is its own times the objectness.
        coefficients: M, the number of prototypes; 0 without masks.
        prototype_stride: px of the input per cell of the prototypes.
    """

    strides: tuple[int, ...]
    per_cell: int = 1
    layout: str = "rows"
    box: str = "cxcywh"
    unit: str = "px"
    has_objectness: bool = False
    coefficients: int = 0
    prototype_stride: int = 4

    def __post_init__(self) -> None:
        object.__setattr__(self, "strides", check_strides(self.strides))
        check_whole("per_cell", self.per_cell)
        check_choice("layout", self.layout, ("rows", "columns", "pair"))
        check_choice("box", self.box, ("cxcywh", "xyxy"))
        check_choice("unit", self.unit, ("px", "share"))
        check_flag("has_objectness", self.has_objectness)
        check_whole("coefficients", self.coefficients, 0)
        check_whole("prototype_stride", self.prototype_stride)
        if self.layout == "pair" and (self.has_objectness or self.coefficients):
            raise ValueError("layout: expected rows or columns with objectness or coefficients, found pair")

    def outputs(self, size: Size, num_keypoints: int) -> list[Output]:
        """See ``Form.outputs``."""
        count = self.num_candidates(size)
        if self.layout == "pair":
            return [Output("boxes", (count, 1, 4)), Output("scores", (count, "C"))]
        found = [Output("rows", (count, "F") if self.layout == "rows" else ("F", count))]
        if self.coefficients:
            place = (cells(size[0], self.prototype_stride), cells(size[1], self.prototype_stride))
            found.append(Output("prototypes", (self.coefficients, *place)))
        return found

    def num_candidates(self, size: Size) -> int:
        """See ``Form.num_candidates``."""
        return sum(self.per_cell * cells(size[0], s) * cells(size[1], s) for s in self.strides)

    def num_classes(self, shapes: Mapping[str, Sequence[Sequence[int]]], num_keypoints: int) -> int:
        """See ``Form.num_classes``."""
        if self.layout == "pair":
            return shapes["scores"][0][-1]
        width = shapes["rows"][0][-1 if self.layout == "rows" else 0]
        return width - self._first_class - self.coefficients - 3 * num_keypoints

    @property
    def _first_class(self) -> int:
        return 5 if self.has_objectness else 4

    def decode(
        self, builder: Builder, grid: Grid, tensors: Mapping[str, Sequence[str]], num_keypoints: int
    ) -> Candidates:
        """See ``Form.decode``."""
        b = builder
        if self.layout == "pair":
            boxes = b.op("Reshape", tensors["boxes"][0], b.ints(0, -1, 4))
            return Candidates(self._boxes(b, grid, boxes), tensors["scores"][0])
        (rows,) = tensors["rows"]
        if self.layout == "columns":
            rows = b.op("Transpose", rows, perm=[0, 2, 1])
        behind = self.coefficients + 3 * num_keypoints
        scores = b.columns(rows, self._first_class, -behind if behind else 2**31 - 1)
        if self.has_objectness:
            scores = b.op("Mul", scores, b.columns(rows, 4, 5))
        keypoints, coefficients = None, None
        if num_keypoints:
            end = -self.coefficients if self.coefficients else 2**31 - 1
            keypoints = b.columns(rows, -behind, end)
        if self.coefficients:
            coefficients = b.columns(rows, -self.coefficients, 2**31 - 1)
        return Candidates(
            self._boxes(b, grid, b.columns(rows, 0, 4)),
            scores,
            keypoints,
            coefficients,
            tensors["prototypes"][0] if self.coefficients else None,
            has_keypoint_scores=True,
        )

    def _boxes(self, b: Builder, grid: Grid, boxes: str) -> str:
        if self.unit == "share":
            extent = grid.extent()
            boxes = b.op("Mul", boxes, b.op("Concat", extent, extent, axis=0))
        if self.box == "xyxy":
            return boxes
        return b.corners(b.columns(boxes, 0, 2), b.columns(boxes, 2, 4))
