"""Average precision equals that of mmdet's own ``CocoMetric``, for every file that both take."""

import contextlib
import io
import json
from pathlib import Path
from typing import Any, Callable, Optional

import cv2
import numpy as np
import pytest
import torch
from mmdet.evaluation.metrics import coco_metric
from pycocotools import mask as coco_mask

from runtime.comparison.average_precision import (
    METRICS,
    average_precision,
    category_ids,
    read_dataset,
    result_rows,
)
from runtime.detections import Detections
from runtime.rle import RunLengthMasks

CLASSES = ("square", "circle", "star", "ring")
SIZES = {31: (200, 320), 7: (240, 180), 12: (300, 300), 5: (100, 100)}
# Both add up the same numbers, in another order.
TOLERANCE = 1e-6


def _truth(generator: np.random.Generator) -> dict:
    """Return objects of all sizes: polygons, run lengths of both kinds, crowds; no star in any image."""
    truth: dict = {
        "images": [
            {"id": i, "file_name": f"{i}.png", "height": h, "width": w} for i, (h, w) in SIZES.items()
        ],
        "categories": [{"id": i, "name": name} for i, name in enumerate(CLASSES, 1)],
        "annotations": [],
    }
    for number in range(40):
        image = list(SIZES)[number % len(SIZES)]
        height, width = SIZES[image]
        w, h = generator.uniform(4, 0.9 * width), generator.uniform(4, 0.9 * height)
        x, y = generator.uniform(0, width - w), generator.uniform(0, height - h)
        polygon = [x, y, x + w, y + 0.2 * h, x + 0.8 * w, y + h, x + 0.1 * w, y + 0.9 * h]
        lengths = coco_mask.merge(coco_mask.frPyObjects([polygon], height, width))
        annotation = {
            "id": number + 1,
            "image_id": image,
            "category_id": (1, 2, 4)[number % 3],
            "bbox": [x, y, w, h],
            "area": float(coco_mask.area(lengths)),
            "iscrowd": int(number % 10 == 9),
            "segmentation": [polygon, [x, y, x + 3, y + 3]],
        }
        if number % 4 == 1:
            annotation["segmentation"] = {**lengths, "counts": lengths["counts"].decode()}
        if number % 4 == 2:
            mask = coco_mask.decode(lengths)
            flat = np.concatenate(([0], mask.T.ravel(), [2]))
            counts = np.diff(np.concatenate(([0], np.flatnonzero(np.diff(flat)))))
            annotation["segmentation"] = {"size": [height, width], "counts": counts.tolist()}
        truth["annotations"].append(annotation)
    return truth


def _found(truth: dict, image: dict, generator: np.random.Generator) -> Detections:
    """Return detections near the objects, false ones, and several of one score."""
    size = (image["height"], image["width"])
    boxes, labels, masks = [], [], []
    for annotation in [a for a in truth["annotations"] if a["image_id"] == image["id"]] * 2:
        x, y, w, h = np.array(annotation["bbox"]) + generator.normal(0, 3, 4)
        w, h = max(w, 2), max(h, 2)
        boxes.append([x, y, x + w, y + h])
        is_false = generator.random() < 0.2
        labels.append(int(generator.integers(0, 4)) if is_false else annotation["category_id"] - 1)
        polygon = [x, y, x + w, y + 0.2 * h, x + 0.8 * w, y + h, x + 0.1 * w, y + 0.9 * h]
        masks.append(coco_mask.merge(coco_mask.frPyObjects([polygon], *size))["counts"])
    scores = np.sort(generator.integers(1, 20, len(boxes)) / 20)[::-1].astype(np.float32)
    return Detections(
        np.array(boxes, np.float32),
        scores,
        np.array(labels, np.int32),
        size,
        CLASSES,
        RunLengthMasks(tuple(masks), size),
    )


def _mmdets(path: Path, found: dict[Any, Detections], names: list, monkeypatch: pytest.MonkeyPatch) -> dict:
    """Return CocoMetric's figures before it rounds them; labels are places in ``names``, of the file's order."""
    stats = []

    class Recorded(coco_metric.COCOeval):
        def summarize(self) -> None:
            super().summarize()
            stats.append(self.stats[: len(METRICS)])

    monkeypatch.setattr(coco_metric, "COCOeval", Recorded)
    with contextlib.redirect_stdout(io.StringIO()):
        metric = coco_metric.CocoMetric(ann_file=str(path), metric=["bbox", "segm"])
        metric.dataset_meta = {"classes": names}
        for image_id, detections in found.items():
            kept = detections.select(np.array([name in names for name in detections.names]))
            predictions = {
                "bboxes": torch.from_numpy(kept.boxes),
                "scores": torch.from_numpy(kept.scores),
                "labels": torch.tensor([names.index(name) for name in kept.names]),
                "masks": kept.rle(),
            }
            sample = {"pred_instances": predictions, "img_id": image_id, "ori_shape": kept.image_size}
            metric.process({}, [sample])
        metric.evaluate(len(found))
    return {
        kind: {name: float(v) if v >= 0 else None for name, v in zip(METRICS, values)}
        for kind, values in zip(("box", "mask"), stats)
    }


def _ours(path: Path, found: dict[Any, Detections]) -> dict[str, dict[str, Optional[float]]]:
    dataset = read_dataset(path, path.parent)
    categories = category_ids(CLASSES, dataset)
    rows = [row for image, detections in found.items() for row in result_rows(detections, image, categories)]
    shared = [identity for identity in categories if identity is not None]
    return average_precision(dataset.truth, rows, category_ids=shared)


def _renumber(name: str, key: str, new: Callable[[int], Any]) -> Callable[[dict], None]:
    def change(truth: dict) -> None:
        for entry in truth[name]:
            entry["id"] = new(entry["id"])
        for annotation in truth["annotations"]:
            annotation[key] = new(annotation[key])

    return change


def _without_the_square(truth: dict) -> None:
    truth["categories"] = truth["categories"][1:]
    truth["annotations"] = [a for a in truth["annotations"] if a["category_id"] != 1]


VARIANTS: dict[str, Callable[[dict], Any]] = {
    "plain": lambda truth: None,
    "gaps": _renumber("categories", "category_id", lambda i: 7 * i + 3),
    "from zero": _renumber("categories", "category_id", lambda i: i - 1),
    "reversed ids": _renumber("categories", "category_id", lambda i: -i),
    "another order": lambda truth: truth["categories"].reverse(),
    "images in another order": lambda truth: truth["images"].reverse(),
    "strings": _renumber("images", "image_id", lambda i: f"image {i}"),
    "floats": _renumber("images", "image_id", float),
    "a category more": lambda truth: truth["categories"].insert(0, {"id": 999, "name": "background"}),
    "a category less": _without_the_square,
    "no crowd": lambda truth: [a.update(iscrowd=0) for a in truth["annotations"]],
    "an image less": lambda truth: truth.update(
        annotations=[a for a in truth["annotations"] if a["image_id"] != 7]
    ),
    "no annotations": lambda truth: truth["annotations"].clear(),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_average_precision_is_mmdets(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(len(name))
    original = _truth(generator)
    detections = [_found(original, image, generator) for image in original["images"]]
    truth = json.loads(json.dumps(original))
    for image in truth["images"]:
        pixels = np.zeros((image["height"], image["width"], 3), np.uint8)
        (tmp_path / image["file_name"]).write_bytes(cv2.imencode(".png", pixels)[1].tobytes())
    by_file = dict(zip((image["file_name"] for image in truth["images"]), detections))
    VARIANTS[name](truth)
    path = tmp_path / "annotations.json"
    path.write_text(json.dumps(truth))
    found = {image["id"]: by_file[image["file_name"]] for image in truth["images"]}
    names = [category["name"] for category in truth["categories"] if category["name"] in CLASSES]

    ours = _ours(path, found)
    assert ours == {
        kind: pytest.approx(values, abs=TOLERANCE)
        for kind, values in _mmdets(path, found, names, monkeypatch).items()
    }
    if name != "no annotations":
        assert 0.1 < ours["mask"]["AP"] < 0.95
        assert None not in ours["box"].values()
