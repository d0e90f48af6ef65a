"""Detections as COCO files.

``results.json`` is COCO's results format: a bare list of ``{image_id, category_id, bbox, score,
segmentation}``, with ``file_name`` beside them; ``bbox`` is [x, y, width, height] in px. What a bare list
cannot hold is in ``images.json``, in the format of COCO's annotations: the images and categories behind the
ids. Together::

    COCO("out/images.json").loadRes("out/results.json")

A ``category_id`` is the label's index + 1, since COCO's ids start at 1; an ``image_id`` is the number of the
image in the run, from 1. Both are the user's own where there are annotations (``runtime.inference.own_ids``).
"""

import json
import os
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import IO, Optional, Union

from runtime.detections import Detections
from runtime.files import append_whole, whole_file, withdraw
from runtime.rle import load_pycocotools

RESULTS, IMAGES = "results.json", "images.json"


Identity = Union[int, str]


def coco_results(
    detections: Detections,
    image_id: Identity,
    file_name: str,
    category_ids: Optional[Sequence[Identity]] = None,
) -> list[dict]:
    """Return one COCO result per detection, with ``segmentation`` and ``keypoints`` where the model has them.

    The third number of a key point, which COCO leaves open in results, is its score.

    Args:
        detections: of the image.
        image_id, file_name: the image's.
        category_ids: of each label; None: the label + 1.
    """
    corners = detections.boxes.astype(float)
    sizes = corners[:, 2:] - corners[:, :2]
    results = [
        {
            "image_id": image_id,
            "category_id": int(label) + 1 if category_ids is None else category_ids[label],
            "bbox": [round(v, 3) for v in (*corner.tolist(), *size.tolist())],
            "score": round(float(score), 6),
            "file_name": file_name,
        }
        for corner, size, label, score in zip(corners[:, :2], sizes, detections.labels, detections.scores)
    ]
    if detections.has_masks:
        for result, segmentation in zip(results, detections.rle()):
            result["segmentation"] = segmentation
    if detections.keypoints is not None:
        for result, points in zip(results, detections.keypoints.astype(float)):
            result["keypoints"] = [round(v, 3) for v in points.ravel().tolist()]
    if detections.track_ids is not None:
        for result, track_id in zip(results, detections.track_ids.tolist()):
            result["track_id"] = track_id
    return results


class ResultsWriter:
    """Writes both files image by image, so that a long run needs no memory for its results.

    The files appear under their names when the run ends without an exception. A process that is killed meanwhile leaves
    no file of one run beside another's: first the old ``images.json`` goes, without which COCO's tools read no
    ``results.json``, then the new results take their name, and last the new images.
    """

    def __init__(
        self,
        folder: Path,
        classes: tuple[str, ...],
        *,
        category_ids: Optional[Sequence[Identity]] = None,
        categories: Optional[Sequence[dict]] = None,
    ) -> None:
        """Prepare to write into a folder; as a context, open its files.

        Args:
            folder: where to.
            classes: the model's.
            category_ids: see ``coco_results``.
            categories: what ``images.json`` has of them; None: the classes.

        Raises:
            RuntimeError: pycocotools is not installed. Said here, not after the first batch.
        """
        load_pycocotools()
        self._folder = folder
        self._classes, self._category_ids, self._categories = classes, category_ids, categories
        self._images: list[dict] = []
        self._num_results = 0
        self._last = (0, 0)
        self._keypoints: dict[str, list] = {}
        self._stack = ExitStack()
        self._file: Optional[IO[bytes]] = None
        self._images_file: Optional[IO[bytes]] = None

    def add(self, detections: Detections, image_id: Identity, file_name: str) -> list[dict]:
        """Append one image and its results; return these.

        Raises:
            OSError: there is no room for them; none of them is in the file.
        """
        results = coco_results(detections, image_id, file_name, self._category_ids)
        if detections.keypoint_names:
            self.set_keypoints(detections.keypoint_names, detections.skeleton)
        self.add_results(results, image_id, file_name, detections.image_size)
        return results

    def set_keypoints(self, names: Sequence[str], skeleton: Sequence[tuple[int, int]]) -> None:
        """Say which key points the results have."""
        # COCO's skeletons count from 1.
        self._keypoints = {"keypoints": list(names), "skeleton": [[a + 1, b + 1] for a, b in skeleton]}

    def add_results(
        self, results: Sequence[dict], image_id: Identity, file_name: str, size: tuple[int, int]
    ) -> None:
        """Append one image, (height, width) px, and results that are made already; see ``add``."""
        height, width = size
        # Not json.dump: it encodes in Python, four times as slowly.
        rows = "".join(
            f"{',' if number else ''}\n{json.dumps(result)}"
            for number, result in enumerate(results, self._num_results)
        )
        end = append_whole(self._file, rows.encode("ascii"), self._folder / RESULTS)
        self._last = (end, self._num_results)
        self._images.append({"id": image_id, "file_name": file_name, "width": width, "height": height})
        self._num_results += len(results)

    def remove_last(self) -> None:
        """Take back the image that was added last."""
        end, self._num_results = self._last
        os.ftruncate(self._file.fileno(), end)
        self._images.pop()

    def __enter__(self) -> "ResultsWriter":
        # Left last.
        self._images_file = self._stack.enter_context(whole_file(self._folder / IMAGES))
        self._file = self._stack.enter_context(whole_file(self._folder / RESULTS))
        append_whole(self._file, b"[", self._folder / RESULTS)
        return self

    def __exit__(
        self,
        kind: Optional[type[BaseException]],
        error: Optional[BaseException],
        traceback: Optional[TracebackType],
    ) -> None:
        if kind is not None:
            self._stack.__exit__(kind, error, traceback)
            return
        with self._stack:
            append_whole(self._file, b"\n]\n", self._folder / RESULTS)
            self._images_file.write(self._dataset().encode("ascii"))
            self._images_file.flush()
            # Either there is room for both, or neither takes its name.
            for file in (self._images_file, self._file):
                os.fsync(file.fileno())
            withdraw(self._folder / IMAGES)

    def _dataset(self) -> str:
        categories = self._categories
        if categories is None:
            categories = [{"id": label + 1, "name": name} for label, name in enumerate(self._classes)]
        categories = [{**category, **self._keypoints} for category in categories]
        dataset = {"info": {}, "images": self._images, "categories": categories, "annotations": []}
        return json.dumps(dataset, indent=1) + "\n"
