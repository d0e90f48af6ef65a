"""Offsets from prior boxes, as in SSD: RetinaFace.

Source: Pytorch_Retinaface (biubug6), ``layers/functions/prior_box.py`` and ``decode``, ``decode_landm`` of
``utils/box_utils.py``; there in shares of the image, here in px of the input.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from export.graft.builder import Builder
from export.graft.forms.form import (
    ACTIVATIONS,
    Candidates,
    Output,
    check_anchors,
    check_choice,
    check_numbers,
    check_strides,
    check_whole,
)
from export.graft.grid import Grid, Size, cells


@dataclass(frozen=True)
class Priors:
    """Outputs ``boxes`` (B, N, 4), ``scores`` (B, N, first_class + C), ``keypoints`` (B, N, 2 P), levels joined.

    Attributes:
        strides: of the levels, px.
        anchors: of each level, (width, height) or the edge of a square, px.
        variances: of centres and of sizes.
        first_class: index of the first score that is a class's: 1 where background comes before.
        activation: of the scores, as far as it is not in the graph.
    """

    strides: tuple[int, ...]
    anchors: tuple[tuple[tuple[float, float], ...], ...]
    variances: tuple[float, float]
    first_class: int = 1
    activation: str = "none"

    def __post_init__(self) -> None:
        object.__setattr__(self, "strides", check_strides(self.strides))
        object.__setattr__(self, "anchors", check_anchors(self.anchors, len(self.strides)))
        object.__setattr__(self, "variances", check_numbers("variances", self.variances, 2))
        check_whole("first_class", self.first_class, 0)
        check_choice("activation", self.activation, ACTIVATIONS)

    def outputs(self, size: Size, num_keypoints: int) -> list[Output]:
        """See ``Form.outputs``."""
        count = self.num_candidates(size)
        found = [Output("boxes", (count, 4)), Output("scores", (count, "C"))]
        return [*found, Output("keypoints", (count, 2 * num_keypoints))] if num_keypoints else found

    def num_candidates(self, size: Size) -> int:
        """See ``Form.num_candidates``."""
        return sum(
            len(level) * cells(size[0], stride) * cells(size[1], stride)
            for stride, level in zip(self.strides, self.anchors)
        )

    def num_classes(self, shapes: Mapping[str, Sequence[Sequence[int]]], num_keypoints: int) -> int:
        """See ``Form.num_classes``."""
        return shapes["scores"][0][-1] - self.first_class

    def decode(
        self, builder: Builder, grid: Grid, tensors: Mapping[str, Sequence[str]], num_keypoints: int
    ) -> Candidates:
        """See ``Form.decode``."""
        b = builder
        centers, sizes = self._priors(b, grid)
        steps = b.op("Mul", sizes, self.variances[0])
        (offsets,) = tensors["boxes"]
        found = b.op("Add", centers, b.op("Mul", b.columns(offsets, 0, 2), steps))
        grown = b.op("Exp", b.op("Mul", b.columns(offsets, 2, 4), self.variances[1]))
        boxes = b.corners(found, b.op("Mul", sizes, grown))
        scores = b.activated(tensors["scores"][0], self.activation)
        if self.first_class:
            scores = b.columns(scores, self.first_class, 2**31 - 1)
        if not num_keypoints:
            return Candidates(boxes, scores)
        by_point = b.op("Reshape", tensors["keypoints"][0], b.ints(0, -1, num_keypoints, 2))
        scaled = b.op("Mul", by_point, b.op("Unsqueeze", steps, b.ints(1)))
        placed = b.op("Add", scaled, b.op("Unsqueeze", centers, b.ints(1)))
        return Candidates(boxes, scores, b.op("Reshape", placed, b.ints(0, -1, 2 * num_keypoints)))

    def _priors(self, b: Builder, grid: Grid) -> tuple[str, str]:
        """Return (N, 2) centres, and widths and heights, px."""
        centers, sizes = [], []
        for stride, level in zip(self.strides, self.anchors):
            cell = b.op("Add", grid.corners(stride, len(level)), 0.5)
            centers.append(b.op("Mul", cell, float(stride)))
            sizes.append(grid.anchors(stride, level))
        return b.concat(centers, 0), b.concat(sizes, 0)
