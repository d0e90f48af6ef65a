"""Detections as Python dictionaries in COCO's words."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Optional

import numpy as np

from runtime.coco_writer import Identity, coco_results
from runtime.detections import Detections
from runtime.metadata import ModelMetadata
from runtime.rle import RunLengthMasks, load_pycocotools

_OF_THE_LINE = ("image_id", "file_name")


def dict_from_detections(detections: Detections) -> dict[str, Any]:
    """Return what a line of ``detections.jsonl`` has of an image; see ``Detections.to_dict``."""
    height, width = detections.image_size
    rows = [
        {"category": name, **{k: v for k, v in row.items() if k not in _OF_THE_LINE}}
        for name, row in zip(detections.names, coco_results(detections, 1, ""))
    ]
    return {"width": width, "height": height, "detections": rows}


def detections_from_rows(
    rows: Sequence[Mapping[str, Any]],
    image_size: tuple[int, int],
    facts: ModelMetadata,
    category_ids: Optional[Sequence[Identity]] = None,
) -> Detections:
    """Return the detections of which COCO's results were made, with what these have rounded.

    Args:
        rows: of one image; see ``coco_results``.
        image_size: (height, width) px.
        facts: of the model that has found them.
        category_ids: see ``coco_results``.
    """
    ids = range(1, len(facts.classes) + 1) if category_ids is None else category_ids
    labels = {identity: label for label, identity in enumerate(ids) if identity is not None}
    boxes = np.array([row["bbox"] for row in rows], np.float64).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    points, tracks, masks = None, None, None
    if facts.keypoints:
        points = np.array([row["keypoints"] for row in rows], np.float32).reshape(-1, len(facts.keypoints), 3)
    if rows and all("track_id" in row for row in rows):
        tracks = np.array([row["track_id"] for row in rows], np.int64)
    if facts.masks != "none":
        masks = RunLengthMasks(tuple(row["segmentation"]["counts"].encode() for row in rows), image_size)
    return Detections(
        boxes=boxes.astype(np.float32),
        scores=np.array([row["score"] for row in rows], np.float32),
        labels=np.array([labels[row["category_id"]] for row in rows], np.int32),
        image_size=image_size,
        classes=facts.classes,
        mask_source=masks,
        keypoints=points,
        keypoint_names=facts.keypoints,
        skeleton=facts.skeleton,
        track_ids=tracks,
    )


def dataset_from_detections(detections: Detections, file_name: str) -> dict[str, Any]:
    """Return a dataset of one image in COCO's annotations format, which ``COCO(path)`` and annotation tools read.

    Masks are polygons without a tolerance: pycocotools makes the same masks of them. An object whose mask is empty has
    its box alone. Scores stand beside, as ``score``; of a key point's three numbers the last is 2 (visible).
    """
    height, width = detections.image_size
    boxes = replace(detections, mask_source=None)
    annotations = [
        {**row, "id": number, "iscrowd": 0, "area": row["bbox"][2] * row["bbox"][3], "segmentation": []}
        for number, row in enumerate(coco_results(boxes, 1, file_name), 1)
    ]
    for annotation in annotations:
        del annotation["file_name"]
        if "keypoints" in annotation:
            annotation["keypoints"][2::3] = [2] * (len(annotation["keypoints"]) // 3)
            annotation["num_keypoints"] = len(annotation["keypoints"]) // 3
    if detections.has_masks:
        _add_polygons(annotations, detections)
    points: dict[str, Any] = {}
    if detections.keypoint_names:
        lines = [[a + 1, b + 1] for a, b in detections.skeleton]  # COCO's count from 1
        points = {"keypoints": list(detections.keypoint_names), "skeleton": lines}
    return {
        "info": {},
        "images": [{"id": 1, "file_name": file_name, "width": width, "height": height}],
        "categories": [{"id": n, "name": name, **points} for n, name in enumerate(detections.classes, 1)],
        "annotations": annotations,
    }


def _add_polygons(annotations: list[dict], detections: Detections) -> None:
    coco_mask = load_pycocotools()
    for annotation, polygons, lengths in zip(annotations, detections.polygons(), detections.rle()):
        if polygons:
            annotation["segmentation"] = [polygon.ravel().tolist() for polygon in polygons]
            annotation["area"] = int(coco_mask.area(lengths))
