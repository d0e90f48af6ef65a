"""Distances from points to the four edges, level by level: SCRFD, FCOS.

Source: InsightFace, ``python-package/insightface/model_zoo/scrfd.py``: ``distance2bbox`` and ``distance2kps``.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from export.graft.builder import Builder
from export.graft.forms.form import (
    ACTIVATIONS,
    Candidates,
    Output,
    check_choice,
    check_number,
    check_strides,
    check_whole,
)
from export.graft.grid import Grid, Size, cells


@dataclass(frozen=True)
class Distances:
    """Outputs ``scores`` (B, N, C), ``boxes`` (B, N, 4) and ``keypoints`` (B, N, 2 P) of each level.

    Attributes:
        strides: of the levels, px.
        per_cell: points at each cell; they differ in what they have learned alone.
        center: of a cell, in cells from its top left corner.
        activation: of the scores, as far as it is not in the graph.
    """

    strides: tuple[int, ...]
    per_cell: int = 1
    center: float = 0.0
    activation: str = "none"

    def __post_init__(self) -> None:
        object.__setattr__(self, "strides", check_strides(self.strides))
        check_whole("per_cell", self.per_cell)
        check_number("center", self.center)
        check_choice("activation", self.activation, ACTIVATIONS)

    def outputs(self, size: Size, num_keypoints: int) -> list[Output]:
        """See ``Form.outputs``."""
        roles: dict[str, object] = {"scores": "C", "boxes": 4}
        if num_keypoints:
            roles["keypoints"] = 2 * num_keypoints
        return [Output(role, (count, width)) for role, width in roles.items() for count in self._counts(size)]

    def num_candidates(self, size: Size) -> int:
        """See ``Form.num_candidates``."""
        return sum(self._counts(size))

    def _counts(self, size: Size) -> list[int]:
        return [self.per_cell * cells(size[0], s) * cells(size[1], s) for s in self.strides]

    def num_classes(self, shapes: Mapping[str, Sequence[Sequence[int]]], num_keypoints: int) -> int:
        """See ``Form.num_classes``."""
        return shapes["scores"][0][-1]

    def decode(
        self, builder: Builder, grid: Grid, tensors: Mapping[str, Sequence[str]], num_keypoints: int
    ) -> Candidates:
        """See ``Form.decode``."""
        b, boxes, keypoints = builder, [], []
        for level, stride in enumerate(self.strides):
            cell = b.op("Add", grid.corners(stride, self.per_cell), self.center)
            points = b.op("Mul", cell, float(stride))
            distances = b.op("Mul", tensors["boxes"][level], float(stride))
            low = b.op("Sub", points, b.columns(distances, 0, 2))
            high = b.op("Add", points, b.columns(distances, 2, 4))
            boxes.append(b.op("Concat", low, high, axis=-1))
            if num_keypoints:
                moved = b.op("Mul", tensors["keypoints"][level], float(stride))
                by_point = b.op("Reshape", moved, b.ints(0, -1, num_keypoints, 2))
                placed = b.op("Add", by_point, b.op("Unsqueeze", points, b.ints(1)))
                keypoints.append(b.op("Reshape", placed, b.ints(0, -1, 2 * num_keypoints)))
        scores = b.activated(b.concat(tensors["scores"], 1), self.activation)
        return Candidates(b.concat(boxes, 1), scores, b.concat(keypoints, 1) if num_keypoints else None)
