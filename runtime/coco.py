"""Detections against a dataset in COCO's format: average precision, as pycocotools' own ``COCOeval`` has it."""

import contextlib
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

from runtime.detections import Detections
from runtime.rle import load_pycocotools

METRICS = ("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large")
_ANNOTATION_KEYS = ("image_id", "category_id", "bbox", "area", "iscrowd")
# COCO's number of detections per image; those of the lowest scores beyond it do not count.
_MAX_DETECTIONS = 100


@dataclass(frozen=True)
class DatasetImage:
    """One image of a dataset: its COCO id and its file."""

    image_id: int
    path: Path


@dataclass(frozen=True, eq=False)
class CocoDataset:
    """Images with their annotations.

    Attributes:
        path: the annotations' file.
        truth: its content.
        images: those to evaluate, all there are or the first few.
    """

    path: Path
    truth: dict
    images: tuple[DatasetImage, ...]

    @property
    def has_masks(self) -> bool:
        """Whether the annotations have masks."""
        return all("segmentation" in annotation for annotation in self.truth["annotations"])


def read_dataset(annotations: Path, folder: Path, limit: Optional[int] = None) -> CocoDataset:
    """Read annotations and find their images.

    Args:
        annotations: JSON in COCO's format.
        folder: where the ``file_name`` of its images lie.
        limit: take the first so many images only.

    Raises:
        FileNotFoundError: no such file, or images are missing; names them.
        ValueError: not COCO's format.
    """
    if not annotations.is_file():
        raise FileNotFoundError(
            f"annotations {annotations}: expected a file in COCO's format, found nothing; "
            "name it with --annotations, and its images' folder with --images"
        )
    truth = _read_truth(annotations)
    entries = truth["images"][:limit]
    images = tuple(DatasetImage(entry["id"], folder / entry["file_name"]) for entry in entries)
    missing = [image.path.name for image in images if not image.path.is_file()]
    if missing:
        raise FileNotFoundError(
            f"{annotations}: expected its {len(images)} images in {folder}, "
            f"found {len(missing)} missing: {_listed(missing)}; name their folder with --images"
        )
    return CocoDataset(annotations, truth, images)


def category_ids(classes: Sequence[str], dataset: CocoDataset) -> tuple[int, ...]:
    """Return each label's category id: the category of the same name.

    Raises:
        ValueError: names do not match one to one; says which only one side has.
    """
    names = [category["name"] for category in dataset.truth["categories"]]
    if len(set(names)) < len(names) or len(set(classes)) < len(classes):
        raise ValueError(
            f"classes: expected every name once, found {len(classes)} classes of {len(set(classes))} names and "
            f"{len(names)} categories of {len(set(names))} names in {dataset.path}"
        )
    if set(names) != set(classes):
        only_model = [name for name in classes if name not in names]
        only_dataset = [name for name in names if name not in classes]
        raise ValueError(
            f"classes: expected the categories of {dataset.path}, "
            f"found only in the model: {_listed(only_model)}; only in the dataset: {_listed(only_dataset)}; "
            "evaluate on a dataset of the model's classes"
        )
    ids = {category["name"]: category["id"] for category in dataset.truth["categories"]}
    return tuple(ids[name] for name in classes)


def result_rows(detections: Detections, image_id: int, categories: Sequence[int]) -> list[dict]:
    """Return one row of COCO's results format per detection, unrounded, with its mask if there is one.

    Args:
        detections: in original px.
        image_id: the image's COCO id.
        categories: category id of each label.
    """
    corners = detections.boxes.astype(float)
    sizes = corners[:, 2:] - corners[:, :2]
    rows = [
        {
            "image_id": image_id,
            "category_id": categories[label],
            "bbox": [*corner, *size],
            "score": score,
        }
        for corner, size, label, score in zip(
            corners[:, :2].tolist(), sizes.tolist(), detections.labels.tolist(), detections.scores.tolist()
        )
    ]
    if detections.has_masks:
        for row, lengths in zip(rows, detections.rle()):
            row["segmentation"] = lengths
    return rows


def average_precision(
    truth: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
    *,
    masks: bool = True,
    image_ids: Optional[Sequence[int]] = None,
) -> dict[str, dict[str, Optional[float]]]:
    """Return COCO's average precision, 0 to 1.

    Args:
        truth: annotations in COCO's format. They are not changed.
        rows: detections in COCO's results format, with ``bbox`` and, for masks, ``segmentation``.
        masks: measure masks too.
        image_ids: evaluate these images only; None for all.

    Returns:
        ``METRICS`` under ``box`` and ``mask``; None where the dataset has no object of that size. Sizes are areas:
        of boxes for ``box``, of masks for ``mask``, as mmdet and detectron2 count them.

    Raises:
        RuntimeError: pycocotools is not installed.
    """
    load_pycocotools()
    values = {"box": _evaluated(truth, rows, "bbox", "segmentation", image_ids)}
    if masks:
        # Given a box, pycocotools would take the box's area for the mask's.
        values["mask"] = _evaluated(truth, rows, "segm", "bbox", image_ids)
    return values


def _evaluated(
    truth: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
    iou_type: str,
    without: str,
    image_ids: Optional[Sequence[int]],
) -> dict[str, Optional[float]]:
    from pycocotools.cocoeval import COCOeval

    # COCOeval prints its progress and its tables.
    with contextlib.redirect_stdout(io.StringIO()):
        expected = _indexed(truth, truth["annotations"])
        results = [{k: v for k, v in row.items() if k != without} for row in rows]
        found = expected.loadRes(results) if results else _indexed(truth, [])
        evaluation = COCOeval(expected, found, iou_type)
        if image_ids is not None:
            evaluation.params.imgIds = list(image_ids)
        evaluation.params.maxDets = [1, 10, _MAX_DETECTIONS]
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    # -1 stands for "no object of that size".
    return {name: float(v) if v >= 0 else None for name, v in zip(METRICS, evaluation.stats)}


def _indexed(truth: Mapping[str, Any], annotations: Sequence[Mapping[str, Any]]) -> Any:
    """Return a ``COCO`` with copies of the annotations, numbered from 1: to COCOeval, id 0 means "no match"."""
    from pycocotools.coco import COCO

    coco = COCO()
    numbered = [{**annotation, "id": number} for number, annotation in enumerate(annotations, 1)]
    coco.dataset = {"info": {}, **truth, "annotations": numbered}
    coco.createIndex()
    return coco


def _read_truth(path: Path) -> dict:
    try:
        truth = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"annotations {path}: expected JSON, found {error}") from error
    lists = ("images", "annotations", "categories")
    if not isinstance(truth, dict) or not all(isinstance(truth.get(name), list) for name in lists):
        found = ", ".join(truth) if isinstance(truth, dict) else f"a {type(truth).__name__}"
        raise ValueError(
            f"annotations {path}: expected COCO's format with the lists {', '.join(lists)}, found {found}"
        )
    required = {"images": ("id", "file_name"), "categories": ("id", "name"), "annotations": _ANNOTATION_KEYS}
    for name, keys in required.items():
        for index, entry in enumerate(truth[name]):
            missing = [key for key in keys if key not in entry]
            if missing:
                raise ValueError(
                    f"annotations {path}: {name}[{index}]: expected {', '.join(keys)}, "
                    f"found no {', '.join(missing)}"
                )
    if not truth["images"]:
        raise ValueError(f"annotations {path}: expected at least one image, found none")
    return truth


def _listed(names: Sequence[str], limit: int = 6) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return (", ".join(names[:limit]) or "none") + more
