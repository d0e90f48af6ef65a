import json
from pathlib import Path

import numpy as np
import pytest
from pycocotools.coco import COCO

from runtime.coco_writer import ResultsWriter, coco_results
from runtime.detections import Detections
from tests.runtime import fakes
from tests.runtime.test_detections import _detections


def test_boxes_become_xywh_and_labels_ids_from_one() -> None:
    first = coco_results(_detections(), 7, "a/b.jpg")[0]
    assert first["bbox"] == [1.0, 2.0, 19.0, 28.0]
    assert first["score"] == 0.9
    assert (first["image_id"], first["category_id"], first["file_name"]) == (7, 2, "a/b.jpg")
    assert first["segmentation"]["size"] == [40, 50]


def test_without_masks_there_is_no_segmentation() -> None:
    assert all("segmentation" not in result for result in coco_results(_detections(masks=False), 1, "a.jpg"))


def test_pycocotools_loads_both_files(tmp_path: Path) -> None:
    with ResultsWriter(tmp_path, fakes.CLASSES) as writer:
        writer.add(_detections(), 1, "a.jpg")
        writer.add(_detections().filter(1.0), 2, "none.jpg")
        writer.add(_detections(), 3, "b.jpg")
    dataset = COCO(str(tmp_path / "images.json"))
    results = dataset.loadRes(str(tmp_path / "results.json"))
    assert len(results.getAnnIds(imgIds=[1])) == 3
    assert results.getAnnIds(imgIds=[2]) == []
    assert [c["name"] for c in dataset.loadCats([1, 2, 3])] == list(fakes.CLASSES)
    annotation = results.loadAnns(results.getAnnIds(imgIds=[3]))[0]
    np.testing.assert_array_equal(results.annToMask(annotation), _detections().masks[0])
    assert not list(tmp_path.glob("*.part"))


def test_no_images_make_valid_empty_files(tmp_path: Path) -> None:
    with ResultsWriter(tmp_path, fakes.CLASSES):
        pass
    assert json.loads((tmp_path / "results.json").read_text()) == []
    assert json.loads((tmp_path / "images.json").read_text())["images"] == []


def test_a_failed_run_leaves_the_last_results_alone(tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text("[]")
    broken = Detections(
        np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int32), (1, 1), fakes.CLASSES
    )
    with pytest.raises(RuntimeError, match="stop"), ResultsWriter(tmp_path, fakes.CLASSES) as writer:
        writer.add(broken, 1, "a.jpg")
        raise RuntimeError("stop")
    assert (tmp_path / "results.json").read_text() == "[]"
