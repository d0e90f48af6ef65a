"""Average precision and datasets; the numbers are small enough to be known."""

import copy
import json
from pathlib import Path
from typing import Optional

import cv2
import numpy as np
import pytest
from pycocotools import mask as coco_mask

from runtime.comparison.average_precision import (
    METRICS,
    CocoDataset,
    average_precision,
    category_ids,
    read_dataset,
    result_rows,
)
from runtime.detections import Detections
from runtime.images import read_image
from runtime.masks import MaskCrop

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

    def select(self, keep: np.ndarray) -> "Boxes":
        return Boxes(self.boxes[keep])


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


def test_no_annotations(tmp_path: Path) -> None:
    with pytest.raises(
        FileNotFoundError, match="expected a file in COCO's format, found nothing; name it with --ann"
    ):
        read_dataset(tmp_path / "gone.json", tmp_path)
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(ValueError, match="expected JSON, found"):
        read_dataset(tmp_path / "a.json", tmp_path)


def test_what_both_have_counts(tmp_path: Path) -> None:
    """Categories that the model has not, and classes that the dataset has not, are no mistake."""
    truth = annotations()
    truth["categories"].append({"id": 999, "name": "background"})
    dataset = read_dataset(write_dataset(tmp_path, truth), tmp_path)
    assert category_ids(("square", "disc", "circle"), dataset) == (3, None, 7)
    assert category_ids(("square",), dataset) == (3,)


CLASSES = {
    "none": (
        ("star", "disc"),
        r"expected categories of the model's names in .*, found none of star, disc, but circle",
    ),
    "twice": (
        ("square", "square"),
        r"expected every name once, found 2 classes of 1 names and 2 categories of 2",
    ),
    "other letters": (
        ("Square", "circle"),
        r"letter for letter, found 'square' for 'Square'; rename the categories",
    ),
    "spaces": (("_squ are", "cir-cle"), r"found 'circle' for 'cir-cle', 'square' for '_squ are'; rename"),
}


@pytest.mark.parametrize("name", CLASSES)
def test_other_classes_are_refused(name: str, tmp_path: Path) -> None:
    classes, message = CLASSES[name]
    dataset = read_dataset(write_dataset(tmp_path), tmp_path)
    with pytest.raises(ValueError, match=message):
        category_ids(classes, dataset)


def test_two_categories_of_one_name(tmp_path: Path) -> None:
    truth = annotations()
    truth["categories"] += [{"id": 20, "name": "circle"}, {"id": 21, "name": "x"}, {"id": 22, "name": "x"}]
    dataset = read_dataset(write_dataset(tmp_path, truth), tmp_path)
    assert category_ids(("square",), dataset) == (3,)
    with pytest.raises(ValueError, match="expected every name once"):
        category_ids(("square", "circle"), dataset)


def test_detections_of_other_classes_are_left_out() -> None:
    boxes = np.array([[10, 10, 30, 30], [50, 10, 110, 70]], np.float32)
    found = Detections(
        boxes, np.ones(2, np.float32), np.array([1, 0], np.int32), SIZE, ("a", "b"), Boxes(boxes)
    )
    (kept,) = result_rows(found, "first", [3, None])
    assert (kept["image_id"], kept["category_id"], kept["bbox"]) == ("first", 3, [50, 10, 60, 60])
    assert kept["segmentation"] == rectangle((50, 10, 60, 60))


def test_ids_of_any_kind() -> None:
    """Strings among them, and numbers that no array holds."""
    names = {1: "first", 2: 10**30, 7: "round", 3: -1}
    truth = annotations()
    for entry in (*truth["images"], *truth["categories"]):
        entry["id"] = names[entry["id"]]
    for entry in truth["annotations"]:
        entry.update(image_id=names[entry["image_id"]], category_id=names[entry["category_id"]])
    rows = [{**r, "image_id": names[r["image_id"]], "category_id": names[r["category_id"]]} for r in PERFECT]
    for ids in (None, ["first", 10**30]):
        assert average_precision(truth, rows, image_ids=ids)["mask"]["AP"] == pytest.approx(1)
    values = average_precision(truth, rows[1:2], image_ids=["first"], category_ids=[-1])
    assert values["box"]["AP"] == pytest.approx(1)
    with pytest.raises(ValueError, match=r"rows\[0\].image_id: expected an id of the images, found 1"):
        average_precision(truth, PERFECT)


def _image(folder: Path, name: str, size: tuple = SIZE) -> None:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(cv2.imencode(".png", np.zeros((*size, 3), np.uint8))[1].tobytes())


def _read(folder: Path, truth: dict, images: Optional[Path] = None) -> CocoDataset:
    (folder / "annotations.json").write_text(json.dumps(truth))
    return read_dataset(folder / "annotations.json", images or folder)


@pytest.mark.parametrize(
    ("names", "files"),
    [
        (("val\\1.png", "val\\2.png"), ("val/1.png", "val/2.png")),
        (("val\\1.png", "val/2.png"), ("val\\1.png", "val/2.png")),
        (("{folder}/1.png", "2.png"), ("1.png", "2.png")),
        (("/gone/1.png", "C:\\gone\\2.png"), ("1.png", "2.png")),
    ],
)
def test_names_of_files(names: tuple, files: tuple, tmp_path: Path) -> None:
    truth = annotations()
    for entry, name, file in zip(truth["images"], names, files):
        entry["file_name"] = name.format(folder=tmp_path)
        _image(tmp_path, file)
    dataset = _read(tmp_path, truth)
    assert [i.path for i in dataset.images] == [tmp_path / file for file in files]
    assert [i.size for i in dataset.images] == [SIZE, SIZE]
    assert len(dataset.notes) == names[0].startswith("/gone")
    assert all("2 of 2 images were found in" in note for note in dataset.notes)


def test_a_bare_name_stands_for_one_image(tmp_path: Path) -> None:
    truth = annotations()
    _image(tmp_path, "1.png")
    for entry, name in zip(truth["images"], ("a/1.png", "b/1.png")):
        entry["file_name"] = name
    with pytest.raises(FileNotFoundError, match=r"found 2 missing: a/1\.png, b/1\.png"):
        _read(tmp_path, truth)


@pytest.mark.parametrize("name", ["x" * 5000, "\x00", "\ud800", ".", "..", "x/" * 200])
def test_names_that_no_file_has(name: str, tmp_path: Path) -> None:
    truth = annotations()
    truth["images"][0]["file_name"] = name
    _image(tmp_path, "2.png")
    with pytest.raises(FileNotFoundError, match="found 1 missing"):
        _read(tmp_path, truth)


def test_sizes_that_are_not_said_are_the_files(tmp_path: Path) -> None:
    truth = annotations()
    for entry in truth["images"]:
        _image(tmp_path, entry["file_name"])
        del entry["height"], entry["width"]
    truth["annotations"][0]["segmentation"] = [[10, 10, 30, 10, 30, 30, 10, 30]]
    del truth["annotations"][2]["segmentation"]
    dataset = _read(tmp_path, truth)
    assert [i.size for i in dataset.images] == [SIZE, None]
    assert dataset.truth["annotations"][0]["segmentation"] == rectangle((10, 10, 20, 20))


@pytest.mark.parametrize(("size", "found"), [(SIZE[::-1], "swapped"), ((119, 200), "of another image")])
def test_sizes_that_are_not_the_files_are_refused(size: tuple, found: str, tmp_path: Path) -> None:
    truth = annotations()
    _image(tmp_path, "1.png")
    _image(tmp_path, "2.png", size)
    message = (
        rf"images\[1\] \(id 2, 2\.png\): expected its file's height {size[0]} and width {size[1]}, found 120 and "
        rf"200, which are {found}; correct them"
    )
    with pytest.raises(ValueError, match=message):
        _read(tmp_path, truth)


def test_the_size_may_be_the_turned_images(tmp_path: Path) -> None:
    """As the file stores it, or as its orientation turns it."""
    truth = annotations()
    exif = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"
    data = cv2.imencode(".jpg", np.zeros((*SIZE[::-1], 3), np.uint8))[1].tobytes()
    turned = data[:2] + b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif + data[2:]
    for entry in truth["images"]:
        (tmp_path / entry["file_name"]).write_bytes(turned)
    assert read_image(tmp_path / "1.png").shape[:2] == SIZE
    assert len(_read(tmp_path, truth).images) == 2
    for entry in truth["images"]:
        entry["height"], entry["width"] = SIZE[::-1]
    truth["annotations"] = []
    assert len(_read(tmp_path, truth).images) == 2


def test_only_the_annotations_of_the_first_images_are_kept(tmp_path: Path) -> None:
    path = write_dataset(tmp_path)
    dataset = read_dataset(path, tmp_path, limit=1)
    assert [a["id"] for a in dataset.truth["annotations"]] == [1, 2]
    assert [i["id"] for i in dataset.truth["images"]] == [1]
