"""Objects followed from frame to frame: ByteTrack, as the package ``trackers`` has it."""

from dataclasses import replace
from typing import Any

import numpy as np

from runtime.detections import Detections

NO_TRACK = -1


class Tracker:
    """Gives the same number to the same object in every frame.

    A track begins with a detection of the least score or more, found in two frames in a row; fainter ones go on with
    it. Classes are not told apart: an object keeps its number where its class flickers.
    """

    def __init__(self, score: float) -> None:
        """Begin without tracks.

        Args:
            score: least score of a detection that begins a track.

        Raises:
            RuntimeError: trackers is not installed.
        """
        self._supervision, tracker = _packages()
        self._tracker = tracker(track_activation_threshold=score, high_conf_det_threshold=score)

    def __call__(self, detections: Detections, seconds: float) -> Detections:
        """Return a frame's detections with ``track_ids``; the frames come in order.

        Args:
            detections: of the frame.
            seconds: the frame's time.
        """
        track_ids = np.full(len(detections), NO_TRACK, np.int64)
        boxes = self._supervision.Detections(
            xyxy=detections.boxes.astype(np.float64),
            confidence=detections.scores.astype(np.float64),
            class_id=detections.labels.astype(int),
            data={"place": np.arange(len(detections))},
        )
        tracked = self._tracker.update(boxes, timestamp=seconds)
        if len(tracked):  # in another order
            track_ids[tracked.data["place"]] = tracked.tracker_id
        return replace(detections, track_ids=track_ids)


def _packages() -> tuple[Any, Any]:
    try:
        import supervision
        from trackers import ByteTrackTracker
    except ImportError as error:
        raise RuntimeError(
            f"--track: expected the Python package trackers, found {error}; "
            "`pip install trackers`, or `pip install '.[track]'`"
        ) from error
    return supervision, ByteTrackTracker
