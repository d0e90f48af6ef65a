"""Average precision and datasets; the numbers are small enough to be known."""

import copy
import json
from pathlib import Path
from typing import Optional

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from runtime.coco import METRICS, average_precision, category_ids, read_dataset, result_rows
from runtime.detections import Detections, MaskCrop

SIZE = (120, 200)
# Areas of COCO's sizes: below 32 * 32, below 96 * 96, and above; category ids in no order.
OBJECTS = ((1, 7, (10, 10, 20, 20)), (1, 3, (50, 10, 60, 60)), (2, 7, (0, 0, 150, 110)))
CATEGORIES = ((7, "circle"), (3, "square"))


def rectangle(box: tuple) -> dict:
    """Return the run lengths of a filled box, x, y, width, height."""
    x, y, width, height = box
    mask = np.zeros(SIZE, np.uint8, order="F")
    mask[y : y + height, x : x + width] = 1
    lengths = coco_mask.encode(mask)
    return {"size": list(SIZE), "counts": lengths["counts"].decode()}


def annotations(first_id: int = 1) -> dict:
    """Return two images with three objects."""
    return {
        "images": [{"id": i, "file_name": f"{i}.png", "height": SIZE[0], "width": SIZE[1]} for i in (1, 2)],
        "categories": [{"id": i, "name": name} for i, name in CATEGORIES],
        "annotations": [
            {
                "id": number,
                "image_id": image,
                "category_id": category,
                "bbox": list(box),
                "area": box[2] * box[3],
                "iscrowd": 0,
                "segmentation": rectangle(box),
            }
            for number, (image, category, box) in enumerate(OBJECTS, first_id)
        ],
    }


def row(image: int, category: int, box: tuple, score: float = 0.9, mask: Optional[tuple] = None) -> dict:
    """Return a detection in COCO's results format; its mask is its box unless another is given."""
    lengths = rectangle(mask or box)
    return {
        "image_id": image,
        "category_id": category,
        "bbox": list(box),
        "score": score,
        "segmentation": lengths,
    }


PERFECT = [row(*found) for found in OBJECTS]


@pytest.mark.parametrize("first_id", [0, 1])
def test_the_truth_is_perfect(first_id: int) -> None:
    """An annotation of id 0 counts as well, which to COCOeval itself would be none."""
    truth = annotations(first_id)
    before = copy.deepcopy(truth)
    values = average_precision(truth, PERFECT)
    assert values == {kind: dict.fromkeys(METRICS, pytest.approx(1.0)) for kind in ("box", "mask")}
    assert truth == before


def test_nothing_is_zero() -> None:
    assert average_precision(annotations(), [])["mask"] == dict.fromkeys(METRICS, 0.0)


def test_sizes_without_objects_have_no_figure() -> None:
    truth = annotations()
    truth["annotations"] = truth["annotations"][:1]
    values = average_precision(truth, PERFECT[:1])["box"]
    assert (values["AP"], values["AP_small"]) == (pytest.approx(1), pytest.approx(1))
    assert values["AP_medium"] is None
    assert values["AP_large"] is None


def test_known_values() -> None:
    """One of a category's two objects is found: precision 1 up to recall 0.5, 51 of COCO's 101 recalls."""
    values = average_precision(annotations(), PERFECT[:2])
    assert values["box"]["AP"] == pytest.approx((51 / 101 + 1) / 2)
    # Shifted by a quarter of its width: IoU 0.6, so that the thresholds 0.5, 0.55 and 0.6 of ten are met.
    moved = row(1, 3, (65, 10, 60, 60), mask=OBJECTS[1][2])
    values = average_precision(annotations(), [PERFECT[0], moved, PERFECT[2]])
    assert values["box"]["AP"] == pytest.approx((1 + 0.3) / 2)
    assert values["box"]["AP75"] == pytest.approx(0.5)
    assert values["mask"]["AP"] == pytest.approx(1)


def test_only_the_images_that_were_evaluated_count() -> None:
    assert average_precision(annotations(), PERFECT[:2], image_ids=[1])["box"]["AP"] == pytest.approx(1)


def test_a_masks_size_is_its_own_area() -> None:
    """A false positive of a small mask in a large box counts among the small ones, where it takes the first place."""
    false = row(1, 7, (40, 0, 150, 110), score=1.0, mask=(180, 100, 5, 5))
    values = average_precision(annotations(), [false, *PERFECT])
    assert values["mask"]["AP_small"] == pytest.approx(0.5)
    assert values["mask"]["AP_large"] == pytest.approx(1)
    assert values["box"]["AP_small"] == pytest.approx(1)
    assert values["box"]["AP_large"] == pytest.approx(0.5)


def test_without_masks() -> None:
    rows = [{key: value for key, value in found.items() if key != "segmentation"} for found in PERFECT]
    assert average_precision(annotations(), rows, masks=False) == {
        "box": dict.fromkeys(METRICS, pytest.approx(1.0))
    }


def test_nothing_is_printed(capsys: pytest.CaptureFixture) -> None:
    average_precision(annotations(), PERFECT)
    average_precision(annotations(), [])
    assert capsys.readouterr() == ("", "")


class Boxes:
    """Masks that fill their boxes; a ``MaskSource``."""

    def __init__(self, boxes: np.ndarray) -> None:
        self.boxes = boxes.astype(int)

    def crop(self, index: int) -> MaskCrop:
        x1, y1, x2, y2 = self.boxes[index]
        return MaskCrop(np.ones((y2 - y1, x2 - x1), bool), y1, x1)


def test_rows_of_detections() -> None:
    boxes = np.array([[10, 10, 30, 30], [50, 10, 110, 70]], np.float32)
    scores = np.array([0.9, 0.123456789], np.float32)
    found = Detections(boxes, scores, np.array([1, 0], np.int32), SIZE, ("square", "circle"), Boxes(boxes))
    rows = result_rows(found, 1, [3, 7])
    assert rows == [row(*OBJECTS[0], score=pytest.approx(0.9)), row(*OBJECTS[1], score=float(scores[1]))]
    json.dumps(rows)
    bare = Detections(boxes, scores, found.labels, SIZE, found.classes)
    assert "segmentation" not in result_rows(bare, 1, [3, 7])[0]


def write_dataset(folder: Path, truth: Optional[dict] = None) -> Path:
    """Write annotations beside empty images, and return the annotations' path."""
    truth = truth or annotations()
    folder.mkdir(parents=True, exist_ok=True)
    for image in truth["images"]:
        (folder / image["file_name"]).write_bytes(b"")
    (folder / "annotations.json").write_text(json.dumps(truth))
    return folder / "annotations.json"


def test_a_dataset(tmp_path: Path) -> None:
    path = write_dataset(tmp_path)
    dataset = read_dataset(path, tmp_path)
    assert [(i.image_id, i.path) for i in dataset.images] == [
        (1, tmp_path / "1.png"),
        (2, tmp_path / "2.png"),
    ]
    assert dataset.has_masks
    assert category_ids(("square", "circle"), dataset) == (3, 7)
    (tmp_path / "2.png").unlink()
    assert len(read_dataset(path, tmp_path, limit=1).images) == 1
    with pytest.raises(FileNotFoundError, match=r"expected its 2 images in .*found 1 missing: 2\.png; name"):
        read_dataset(path, tmp_path)


def _without(truth: dict, name: str, key: str) -> dict:
    del truth[name][-1][key]
    return truth


BROKEN = {
    "no list": (
        {"images": []},
        r"expected COCO's format with the lists images, annotations, categories, found images",
    ),
    "results": ([], "found a list"),
    "no image": ({**annotations(), "images": []}, "expected at least one image, found none"),
    "no area": (
        _without(annotations(), "annotations", "area"),
        r"annotations\[2\]: expected .*found no area",
    ),
    "no name": (
        _without(annotations(), "categories", "name"),
        r"categories\[1\]: expected id, name, found no name",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_not_cocos_format_is_refused(name: str, tmp_path: Path) -> None:
    content, message = BROKEN[name]
    path = tmp_path / "annotations.json"
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message) as error:
        read_dataset(path, tmp_path)
    assert str(path) in str(error.value)


def test_no_annotations(tmp_path: Path) -> None:
    with pytest.raises(
        FileNotFoundError, match="expected a file in COCO's format, found nothing; name it with --ann"
    ):
        read_dataset(tmp_path / "gone.json", tmp_path)
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(ValueError, match="expected JSON, found"):
        read_dataset(tmp_path / "a.json", tmp_path)


CLASSES = {
    "fewer": (("square",), r"only in the model: none; only in the dataset: circle"),
    "others": (("square", "disc"), r"only in the model: disc; only in the dataset: circle"),
    "twice": (
        ("square", "square"),
        r"expected every name once, found 2 classes of 1 names and 2 categories of 2",
    ),
}


@pytest.mark.parametrize("name", CLASSES)
def test_other_classes_are_refused(name: str, tmp_path: Path) -> None:
    classes, message = CLASSES[name]
    dataset = read_dataset(write_dataset(tmp_path), tmp_path)
    with pytest.raises(ValueError, match=message):
        category_ids(classes, dataset)
