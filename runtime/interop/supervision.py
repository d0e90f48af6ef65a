"""Detections as Roboflow's ``supervision.Detections``, for its annotators, zones, trackers and metrics."""

from typing import Any

import numpy as np

from runtime.detections import Detections


def supervision_from_detections(detections: Detections) -> Any:
    """Return a ``supervision.Detections``.

    ``xyxy``, ``confidence``, ``class_id``, and where there are any ``mask`` ((n, H, W) bool) and ``tracker_id``;
    ``data`` has ``class_name``, and ``keypoints`` ((n, P, 3)) of a model that finds some.

    Raises:
        RuntimeError: supervision is not installed.
    """
    data: dict[str, Any] = {"class_name": np.array(detections.names, dtype=str)}
    if detections.keypoints is not None:
        data["keypoints"] = detections.keypoints
    return _package().Detections(
        xyxy=detections.boxes.astype(np.float32),
        mask=detections.masks if detections.has_masks else None,
        confidence=detections.scores.astype(np.float32),
        class_id=detections.labels.astype(int),
        tracker_id=detections.track_ids,
        data=data,
    )


def _package() -> Any:
    try:
        import supervision
    except ImportError as error:
        raise RuntimeError(
            f"supervision: expected the Python package supervision, found {error}; "
            "`pip install supervision`, or `pip install '.[interop]'`"
        ) from error
    return supervision
