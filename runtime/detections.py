"""The one result type: what was found in one image, in that image's own pixels."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Optional

import numpy as np

from runtime.masks import MaskCrop, MaskSource
from runtime.rle import rle_from_crop


@dataclass(frozen=True, eq=False)
class Detections:
    """The detections of one image, best first; n may be 0.

    Attributes:
        boxes: (n, 4) float32, [x1, y1, x2, y2] in original px.
        scores: (n,) float32, 0 to 1.
        labels: (n,) int32, indices into ``classes``.
        image_size: (height, width) of the original image, px.
        classes: every class name of the model.
        mask_source: makes the masks on demand; None for a model without a mask head.
        keypoints: (n, P, 3) float32, x and y in original px and a score; None for a model without key points.
        keypoint_names: of the P.
        skeleton: pairs of them, as indices, between which a line is drawn.
    """

    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    image_size: tuple[int, int]
    classes: tuple[str, ...]
    mask_source: Optional[MaskSource] = None
    keypoints: Optional[np.ndarray] = None
    keypoint_names: tuple[str, ...] = ()
    skeleton: tuple[tuple[int, int], ...] = ()

    def __post_init__(self) -> None:
        num_dets = len(self.boxes)
        for name, shape in (("boxes", (num_dets, 4)), ("scores", (num_dets,)), ("labels", (num_dets,))):
            found = getattr(self, name).shape
            if found != shape:
                raise ValueError(f"{name}: expected shape {shape} for {num_dets} boxes, found {found}")
        points = None if self.keypoints is None else self.keypoints.shape
        expected = (num_dets, len(self.keypoint_names), 3)
        if points not in (None, expected):
            raise ValueError(f"keypoints: expected shape {expected} for {num_dets} boxes, found {points}")

    def __len__(self) -> int:
        return len(self.boxes)

    def __repr__(self) -> str:
        height, width = self.image_size
        return f"Detections({len(self)} in an image of {height}x{width} px)"

    @property
    def names(self) -> list[str]:
        """Each detection's class name."""
        return [self.classes[label] for label in self.labels]

    @property
    def has_masks(self) -> bool:
        """Whether the model has a mask head."""
        return self.mask_source is not None

    @cached_property
    def masks(self) -> np.ndarray:
        """(n, H, W) bool masks at the original image's resolution, pasted at first use and then kept.

        They take n * H * W bytes: 100 masks of a 1080x1920 image are 207 MB. ``rle`` and ``mask_crops`` give
        the same masks one at a time.

        Raises:
            ValueError: the model has no mask head.
        """
        masks = np.zeros((len(self), *self.image_size), bool)
        for mask, crop in zip(masks, self.mask_crops()):
            mask[crop.window] = crop.pixels
        return masks

    def mask_crops(self) -> Iterator[MaskCrop]:
        """Yield each detection's mask, pasted when it is asked for and kept nowhere.

        Raises:
            ValueError: the model has no mask head.
        """
        if self.mask_source is None:
            raise ValueError(
                "masks: expected a model with masks, found one without a mask head; check has_masks first, or use a "
                "model that has one (Mask R-CNN)"
            )
        source = self.mask_source
        return (source.crop(index) for index in range(len(self)))

    def rle(self) -> list[dict]:
        """Return each mask as COCO's compressed run lengths, ``{"size": [H, W], "counts": str}``.

        Where the source has none, they are made one mask at a time from its crop, in the memory of one mask.

        Raises:
            ValueError: the model has no mask head.
        """
        crops = self.mask_crops()
        rle = getattr(self.mask_source, "rle", None)
        if rle is not None:
            return [rle(index) for index in range(len(self))]
        return [rle_from_crop(crop, self.image_size) for crop in crops]

    def filter(self, score: float) -> "Detections":
        """Return the detections whose score is at least ``score``."""
        return self.select(self.scores >= score)

    def select(self, keep: np.ndarray) -> "Detections":
        """Return the detections at ``keep``, (n,) bool or indices."""
        source, points = self.mask_source, self.keypoints
        return replace(
            self,
            boxes=self.boxes[keep],
            scores=self.scores[keep],
            labels=self.labels[keep],
            mask_source=None if source is None else source.select(keep),
            keypoints=None if points is None else points[keep],
        )
