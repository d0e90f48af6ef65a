"""The one result type: what was found in one image, in that image's own pixels."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Optional, Union

import numpy as np

from runtime.masks import MaskCrop, MaskSource
from runtime.polygons import polygons_from_crop
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
        track_ids: (n,) int64, the same number for the same object in every frame of a video, -1 for none; None without
            tracking.
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
    track_ids: Optional[np.ndarray] = None

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
        if self.track_ids is not None and self.track_ids.shape != (num_dets,):
            raise ValueError(
                f"track_ids: expected shape {(num_dets,)} for {num_dets} boxes, found {self.track_ids.shape}"
            )

    def __len__(self) -> int:
        return len(self.boxes)

    def __repr__(self) -> str:
        height, width = self.image_size
        return f"Detections({len(self)} in an image of {height}x{width} px)"

    def __getitem__(self, key: Union[int, slice, np.ndarray, list]) -> "Detections":
        """Return some of the detections: those of a mask or of indices, a slice, or one, which is a ``Detections`` too.

        Raises:
            IndexError: there are not so many, or a mask has another length.
            TypeError: a key of another kind.
        """
        return self.select(_indices(key, len(self)))

    def __iter__(self) -> Iterator["Detections"]:
        return (self[index] for index in range(len(self)))

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

    def polygons(self, *, tolerance: float = 0.0, holes: str = "seam") -> list[list[np.ndarray]]:
        """Return the outlines of each mask, one for each of its parts, the largest first; none for an empty mask.

        Args:
            tolerance, holes: see ``runtime.polygons.polygons_from_crop``.

        Returns:
            (P, 2) float32 arrays, x and y in the image's px.

        Raises:
            ValueError: the model has no mask head, or an argument is unusable.
        """
        return [polygons_from_crop(crop, tolerance=tolerance, holes=holes) for crop in self.mask_crops()]

    def to_dict(self) -> dict[str, Any]:
        """Return what a line of ``detections.jsonl`` has of an image, of Python's own types: JSON can hold it.

        ``width``, ``height`` (px), and ``detections``, each with ``category``, ``category_id`` (the label + 1),
        ``bbox`` ([x, y, width, height] px), ``score``, and where there are any ``segmentation``, ``keypoints``,
        ``track_id``.
        """
        from runtime.interop.coco import dict_from_detections

        return dict_from_detections(self)

    def plot(self, image: np.ndarray) -> np.ndarray:
        """Return the image with everything drawn on it; see ``runtime.draw.draw_detections``."""
        from runtime.draw import draw_detections

        return draw_detections(image, self)

    def save(self, path: Union[str, Path], image: Optional[np.ndarray] = None, **options: Any) -> None:
        """Write a file: an overlay (``.jpg``, ``.png``), COCO or LabelMe (``.json``), YOLO (``.txt``).

        See ``runtime.interop.files.save_detections`` for the arguments.
        """
        from runtime.interop.files import save_detections

        save_detections(self, path, image, **options)

    def to_supervision(self) -> Any:
        """Return a ``supervision.Detections``; see ``runtime.interop.supervision``.

        Raises:
            RuntimeError: supervision is not installed.
        """
        from runtime.interop.supervision import supervision_from_detections

        return supervision_from_detections(self)

    def filter(self, score: float) -> "Detections":
        """Return the detections whose score is at least ``score``."""
        return self.select(self.scores >= score)

    def select(self, keep: np.ndarray) -> "Detections":
        """Return the detections at ``keep``, (n,) bool or indices."""
        source, points, tracks = self.mask_source, self.keypoints, self.track_ids
        return replace(
            self,
            boxes=self.boxes[keep],
            scores=self.scores[keep],
            labels=self.labels[keep],
            mask_source=None if source is None else source.select(keep),
            keypoints=None if points is None else points[keep],
            track_ids=None if tracks is None else tracks[keep],
        )


def _indices(key: Any, number: int) -> np.ndarray:
    """Return the indices, (k,) intp, that a key means among so many."""
    if isinstance(key, slice):
        return np.arange(number)[key]
    if isinstance(key, (str, bytes, tuple)) or key is None:
        raise TypeError(f"index: expected a number, a slice, a mask or indices, found {key!r}")
    keys = np.asarray(key)
    if keys.dtype == bool and keys.shape != (number,):
        raise IndexError(f"mask: expected shape {(number,)}, found {keys.shape}")
    if not keys.size:
        return np.zeros(0, np.intp)
    if keys.dtype != bool and not np.issubdtype(keys.dtype, np.integer):
        raise TypeError(f"index: expected a number, a slice, a mask or indices, found {keys.dtype}")
    if keys.dtype != bool and (keys.min() < -number or keys.max() >= number):
        raise IndexError(f"index: expected {-number} to {number - 1} of {number} detections, found {key}")
    return np.atleast_1d(np.arange(number)[keys])
