"""What ``runtime.infer`` is asked to write."""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Optional

import numpy as np

from runtime.coco_writer import Identity
from runtime.detections import Detections
from runtime.messages import listed


@dataclass(frozen=True)
class InferenceOptions:
    """What is written, and where to.

    Attributes:
        out: the folder.
        score: least score in table and overlays.
        json_score: least score in the files.
        overlays: whether images are drawn on.
        classes: only these are written; none: all.
        formats, crops: see ``runtime.inference.label_files``.
        resume: go on where an earlier run into the folder ended.
        by_size: images of one size in the network run together; see ``Detector.detect_files``.
        stride, max_fps: which frames of a video; see ``runtime.video.reader``.
        track: whether objects in videos are followed.
    """

    out: Path
    score: float = 0.3
    json_score: float = 0.05
    overlays: bool = True
    classes: tuple[str, ...] = ()
    formats: tuple[str, ...] = ()
    crops: Optional[str] = None
    resume: bool = False
    by_size: bool = False
    stride: int = 1
    max_fps: Optional[float] = None
    track: bool = False


@dataclass(frozen=True, eq=False)
class Chosen:
    """Which detections are written: those of the chosen classes, and of those that have an id.

    Attributes:
        labels: (classes,) bool.
        category_ids: of each class; None: the label + 1.
    """

    labels: np.ndarray
    category_ids: Optional[tuple[Optional[Identity], ...]] = None

    def of(self, detections: Detections) -> Detections:
        """Return those that are written."""
        return detections if self.labels.all() else detections.select(self.labels[detections.labels])


def chosen_labels(
    classes: Sequence[str],
    names: Sequence[str],
    category_ids: Optional[tuple[Optional[Identity], ...]] = None,
) -> Chosen:
    """Return which of the model's classes are written.

    Args:
        classes: the model's.
        names: the chosen ones; none: all.
        category_ids: of each class, None for one that is not written.

    Raises:
        ValueError: a name is none of the model's, or nothing is left.
    """
    unknown = [name for name in names if name not in classes]
    if unknown:
        near = difflib.get_close_matches(unknown[0], classes, 1)
        meant = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(
            f"--classes: expected names of the model's {len(classes)} classes ({listed(classes, 12)}), "
            f"found {listed(unknown)}{meant}"
        )
    ids = category_ids or tuple(range(1, len(classes) + 1))
    labels = np.array([(not names or name in names) and i is not None for name, i in zip(classes, ids)], bool)
    if not labels.any():
        raise ValueError(
            f"--classes: expected classes that the annotations have a category for, found {listed(names)}; "
            "leave --classes or --annotations out"
        )
    return Chosen(labels, category_ids)
