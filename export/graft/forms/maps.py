"""Maps of the last convolutions, to be decoded with anchors: YOLOv4 and YOLOv5 without their own decoding.

Sources: Darknet, ``src/yolo_layer.c``: ``get_yolo_box`` with ``scale_x_y``, and ``new_coords`` for squared sizes;
YOLOv5, ``models/yolo.py``: ``Detect.forward``.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from export.graft.builder import Builder
from export.graft.forms.form import (
    Candidates,
    Output,
    check_anchors,
    check_choice,
    check_numbers,
    check_strides,
)
from export.graft.grid import Grid, Size, cells

LAYOUTS = ("anchors_first", "anchors_apart", "anchors_last")


@dataclass(frozen=True)
class Maps:
    """Outputs ``maps`` of each level: of each anchor of each cell x, y, width, height, objectness and C scores.

    Centres are ``(scale * sigmoid(t) - (scale - 1) / 2 + index) * stride``, sizes ``exp(t) * anchor`` or
    ``(2 * sigmoid(t)) ** 2 * anchor``, scores ``sigmoid(objectness) * sigmoid(class)``.

    Attributes:
        strides: of the levels, px.
        anchors: of each level, (width, height) px.
        layout: ``anchors_first`` (B, A * F, h, w), ``anchors_apart`` (B, A, h, w, F) or ``anchors_last``
            (B, h, w, A, F).
        scales: of the centres, one for each level.
        sizes: ``exp`` or ``square``.
    """

    strides: tuple[int, ...]
    anchors: tuple[tuple[tuple[float, float], ...], ...]
    scales: tuple[float, ...]
    layout: str = "anchors_first"
    sizes: str = "exp"

    def __post_init__(self) -> None:
        object.__setattr__(self, "strides", check_strides(self.strides))
        object.__setattr__(self, "anchors", check_anchors(self.anchors, len(self.strides)))
        object.__setattr__(self, "scales", check_numbers("scales", self.scales, len(self.strides)))
        check_choice("layout", self.layout, LAYOUTS)
        check_choice("sizes", self.sizes, ("exp", "square"))

    def outputs(self, size: Size, num_keypoints: int) -> list[Output]:
        """See ``Form.outputs``."""
        found = []
        for stride, level in zip(self.strides, self.anchors):
            place = (cells(size[0], stride), cells(size[1], stride))
            shapes = {
                "anchors_first": ("F", *place),
                "anchors_apart": (len(level), *place, "F"),
                "anchors_last": (*place, len(level), "F"),
            }
            found.append(Output("maps", shapes[self.layout]))
        return found

    def num_candidates(self, size: Size) -> int:
        """See ``Form.num_candidates``."""
        return sum(
            len(level) * cells(size[0], stride) * cells(size[1], stride)
            for stride, level in zip(self.strides, self.anchors)
        )

    def num_classes(self, shapes: Mapping[str, Sequence[Sequence[int]]], num_keypoints: int) -> int:
        """See ``Form.num_classes``."""
        shape = shapes["maps"][0]
        if self.layout != "anchors_first":
            return shape[-1] - 5
        width, rest = divmod(shape[0], len(self.anchors[0]))
        return 0 if rest else width - 5

    def decode(
        self, builder: Builder, grid: Grid, tensors: Mapping[str, Sequence[str]], num_keypoints: int
    ) -> Candidates:
        """See ``Form.decode``."""
        b, boxes, scores = builder, [], []
        for level, (stride, anchors) in enumerate(zip(self.strides, self.anchors)):
            rows = self._rows(b, tensors["maps"][level], len(anchors))
            scale = self.scales[level]
            share = b.op("Sigmoid", b.columns(rows, 0, 2))
            moved = b.op("Add", b.op("Mul", share, scale), -(scale - 1) / 2)
            cell = b.op("Add", moved, grid.corners(stride, len(anchors)))
            grown = self._grown(b, b.columns(rows, 2, 4))
            sizes = b.op("Mul", grown, grid.anchors(stride, anchors))
            boxes.append(b.corners(b.op("Mul", cell, float(stride)), sizes))
            sure = b.op("Sigmoid", b.columns(rows, 4, 2**31 - 1))
            scores.append(b.op("Mul", b.columns(sure, 1, 2**31 - 1), b.columns(sure, 0, 1)))
        return Candidates(b.concat(boxes, 1), b.concat(scores, 1))

    def _grown(self, b: Builder, sizes: str) -> str:
        if self.sizes == "exp":
            return b.op("Exp", sizes)
        doubled = b.op("Mul", b.op("Sigmoid", sizes), 2.0)
        return b.op("Mul", doubled, doubled)

    def _rows(self, b: Builder, maps: str, num_anchors: int) -> str:
        """Return (B, h w A, F)."""
        if self.layout == "anchors_first":
            # (B, A F, h w) -> (B, A, F, h w) -> (B, h w, A, F)
            flat = b.op("Reshape", maps, b.ints(0, 0, -1))
            width = b.columns(b.op("Shape", maps), 1, 2, 0)
            each = b.op("Div", width, b.ints(num_anchors))
            shape = b.op("Concat", b.ints(0), b.ints(num_anchors), each, b.ints(-1), axis=0)
            maps = b.op("Transpose", b.op("Reshape", flat, shape), perm=[0, 3, 1, 2])
        elif self.layout == "anchors_apart":
            maps = b.op("Transpose", maps, perm=[0, 2, 3, 1, 4])
        width = b.columns(b.op("Shape", maps), -1, 2**31 - 1, 0)
        return b.op("Reshape", maps, b.op("Concat", b.ints(0), b.ints(-1), width, axis=0))
