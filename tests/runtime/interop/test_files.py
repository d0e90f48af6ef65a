"""One image's detections as files and objects, read back by the programs that they are for."""

import json
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import supervision
from pycocotools.coco import COCO

from runtime.detections import Detections
from runtime.draw import draw_detections
from runtime.rle import RunLengthMasks
from tests.runtime import fakes

HEIGHT, WIDTH = 60, 80
CLASSES = ('a "quoted" class', "b: c", "café")


def _masks() -> np.ndarray:
    """A ring, two parts, and nothing."""
    masks = np.zeros((3, HEIGHT, WIDTH), bool)
    masks[0, 5:35, 10:40] = True
    masks[0, 15:25, 20:30] = False
    masks[1, 40:50, 5:25] = masks[1, 40:58, 45:70] = True
    return masks


def _detections(*, masks: bool = True, points: bool = False) -> Detections:
    from pycocotools import mask as coco_mask

    counts = [coco_mask.encode(np.asfortranarray(m.astype(np.uint8)))["counts"] for m in _masks()]
    return Detections(
        boxes=np.array([[10, 5, 40, 35], [5, 40, 70, 58], [50, 2, 75, 20.5]], np.float32),
        scores=np.array([0.9, 0.5, 0.25], np.float32),
        labels=np.array([2, 0, 1], np.int32),
        image_size=(HEIGHT, WIDTH),
        classes=CLASSES,
        mask_source=RunLengthMasks(tuple(counts), (HEIGHT, WIDTH)) if masks else None,
        keypoints=np.arange(18, dtype=np.float32).reshape(3, 2, 3) if points else None,
        keypoint_names=("left", "right") if points else (),
        skeleton=((0, 1),) if points else (),
    )


def _image() -> np.ndarray:
    return fakes.random_image(HEIGHT, WIDTH)


def _iou(one: np.ndarray, other: np.ndarray) -> float:
    return (one & other).sum() / (one | other).sum()


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp"])
def test_an_overlay_is_what_draw_makes(suffix: str, tmp_path: Path) -> None:
    found = _detections()
    found.save(tmp_path / f"a{suffix}", _image())
    drawn = draw_detections(_image(), found)
    np.testing.assert_array_equal(found.plot(_image()), drawn)
    difference = np.abs(cv2.imread(str(tmp_path / f"a{suffix}")).astype(int) - drawn)
    assert difference.max() == 0 if suffix == ".png" else difference.mean() < 8


def test_json_is_a_dataset_of_which_pycocotools_makes_the_same_masks(tmp_path: Path) -> None:
    _detections().save(tmp_path / "a.json")
    coco = COCO(str(tmp_path / "a.json"))
    assert coco.loadImgs(1) == [{"id": 1, "file_name": "a.jpg", "width": WIDTH, "height": HEIGHT}]
    assert [c["name"] for c in coco.loadCats(coco.getCatIds())] == list(CLASSES)
    annotations = coco.loadAnns(coco.getAnnIds())
    assert [a["category_id"] for a in annotations] == [3, 1, 2]
    assert annotations[0]["bbox"] == [10, 5, 30, 30]
    assert [a["area"] for a in annotations] == [800, 650, 25 * 18.5]
    for annotation, mask in zip(annotations[:2], _masks()):
        np.testing.assert_array_equal(coco.annToMask(annotation), mask)
    assert annotations[2]["segmentation"] == []


def test_key_points_are_cocos(tmp_path: Path) -> None:
    _detections(points=True).save(tmp_path / "a.json", file_name="b.png")
    content = json.loads((tmp_path / "a.json").read_text())
    assert content["categories"][0]["keypoints"] == ["left", "right"]
    assert content["categories"][0]["skeleton"] == [[1, 2]]
    assert content["annotations"][1]["keypoints"] == [6, 7, 2, 9, 10, 2]
    assert content["annotations"][1]["num_keypoints"] == 2
    assert content["images"][0]["file_name"] == "b.png"


def test_supervision_reads_yolo_outlines(tmp_path: Path) -> None:
    found = _detections()
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
    cv2.imwrite(str(tmp_path / "images" / "a.png"), _image())
    found.save(tmp_path / "labels" / "a.txt")
    from runtime.interop.yolo import data_yaml

    (tmp_path / "data.yaml").write_text(data_yaml(found.classes), encoding="utf-8")
    dataset = supervision.DetectionDataset.from_yolo(
        str(tmp_path / "images"), str(tmp_path / "labels"), str(tmp_path / "data.yaml"), force_masks=True
    )
    assert dataset.classes == list(CLASSES)
    ((_, _, read),) = list(dataset)
    assert read.class_id.tolist() == [2, 0, 1]
    # OpenCV fills the pixels under an outline too: half a pixel more at the right and the bottom, and the seams.
    assert _iou(read.mask[0], _masks()[0]) > 0.85
    assert _iou(read.mask[1], _masks()[1]) > 0.85
    np.testing.assert_allclose(read.xyxy[2], found.boxes[2], atol=1)


def test_yolo_boxes_are_shares_around_the_centre(tmp_path: Path) -> None:
    _detections(masks=False).save(tmp_path / "a.txt")
    lines = (tmp_path / "a.txt").read_text().splitlines()
    assert lines[0].split() == ["2", "0.312500", "0.333333", "0.375000", "0.500000"]
    assert len(lines) == 3
    _detections().filter(1.0).save(tmp_path / "none.txt")
    assert (tmp_path / "none.txt").read_text() == ""


def test_a_box_beyond_the_image_stays_inside(tmp_path: Path) -> None:
    wide = replace(_detections(masks=False)[0], boxes=np.array([[-5, -5, 500, 500]], np.float32))
    wide.save(tmp_path / "a.txt")
    assert max(map(float, (tmp_path / "a.txt").read_text().split()[1:])) <= 1


def test_supervision_reads_labelme(tmp_path: Path) -> None:
    found = _detections()
    cv2.imwrite(str(tmp_path / "a.png"), _image())
    found.save(tmp_path / "a.json", format="labelme", file_name="a.png")
    dataset = supervision.DetectionDataset.from_labelme(str(tmp_path), str(tmp_path), force_masks=True)
    ((_, _, read),) = list(dataset)
    names = [dataset.classes[i] for i in read.class_id]
    assert names == [CLASSES[2], CLASSES[0], CLASSES[1]]  # the parts of the second are one object
    assert _iou(read.mask[0], _masks()[0]) > 0.85
    assert _iou(read.mask[1], _masks()[1]) > 0.85


def _check_labelme(content: dict) -> None:
    """Check a file as LabelMe's own reader does (labelme/_label_file.py), which needs Qt to be imported."""
    assert {"version", "imagePath", "imageData", "shapes", "flags", "imageHeight", "imageWidth"} == set(
        content
    )
    assert isinstance(content["imagePath"], str)
    assert content["imageData"] is None
    for shape in content["shapes"]:
        assert isinstance(shape["label"], str)
        assert shape["points"]
        assert all(len(p) == 2 and all(isinstance(v, (int, float)) for v in p) for p in shape["points"])
        assert shape["shape_type"] in ("polygon", "rectangle", "point")
        assert shape["group_id"] is None or isinstance(shape["group_id"], int)
        assert isinstance(shape["description"], str)
        least = {"polygon": 3, "rectangle": 2, "point": 1}[shape["shape_type"]]
        assert len(shape["points"]) >= least


def test_labelme_has_a_shape_for_each_part_and_key_point(tmp_path: Path) -> None:
    _detections(points=True).save(tmp_path / "a.json", format="labelme")
    content = json.loads((tmp_path / "a.json").read_text())
    _check_labelme(content)
    shapes = content["shapes"]
    kinds = [shape["shape_type"] for shape in shapes]
    points = ["point", "point"]
    assert kinds == ["polygon", *points, "polygon", "polygon", *points, "rectangle", *points]
    assert [shape["group_id"] for shape in shapes] == [1, 1, 1, 2, 2, 2, 2, 3, 3, 3]
    assert shapes[0]["description"] == "score 0.900"
    assert [s["label"] for s in shapes[1:3]] == ["left", "right"]
    _detections(masks=False).save(tmp_path / "b.json", format="labelme")
    boxes = json.loads((tmp_path / "b.json").read_text())
    _check_labelme(boxes)
    assert [s["points"] for s in boxes["shapes"]][0] == [[10, 5], [40, 35]]
    assert {s["group_id"] for s in boxes["shapes"]} == {None}


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (
            "a.xml",
            {},
            r"a suffix of .json, .txt, .* or a format of overlay, coco, labelme, yolo, found '.xml'",
        ),
        ("a.json", {"format": "voc"}, "found 'voc'"),
        ("a.jpg", {}, r"expected the image to draw on, found none; save\(path, image\)"),
        ("a.txt", {"format": "overlay", "image": _image()}, "expected one of .jpg, .*, found '.txt'"),
    ],
)
def test_what_cannot_be_saved_is_refused(name: str, options: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        _detections().save(tmp_path / name, **options)
    assert list(tmp_path.iterdir()) == []


def test_a_dictionary_is_a_line_of_the_lines(tmp_path: Path) -> None:
    from runtime.coco_writer import coco_results
    from runtime.inference.json_lines import JsonLinesWriter

    found = replace(_detections(points=True), track_ids=np.array([4, -1, 9]))
    with JsonLinesWriter(tmp_path) as lines:
        lines.add(1, "a.jpg", found.image_size, coco_results(found, 1, "a.jpg"), found.classes)
    line = json.loads((tmp_path / "detections.jsonl").read_text())
    assert json.loads(json.dumps(found.to_dict())) == {
        k: v for k, v in line.items() if k not in ("image_id", "file_name")
    }
    assert [d["track_id"] for d in line["detections"]] == [4, -1, 9]


def test_supervision_gets_boxes_masks_names_and_tracks() -> None:
    found = replace(_detections(points=True), track_ids=np.array([4, -1, 9]))
    read = found.to_supervision()
    assert isinstance(read, supervision.Detections)
    np.testing.assert_array_equal(read.xyxy, found.boxes)
    np.testing.assert_array_equal(read.mask, _masks())
    assert read.data["class_name"].tolist() == found.names
    assert read.tracker_id.tolist() == [4, -1, 9]
    assert len(read[read.confidence > 0.4]) == 2
    annotated = supervision.MaskAnnotator().annotate(_image(), read)
    assert (annotated != _image()).any()
    empty = _detections(masks=False).filter(1.0).to_supervision()
    assert len(empty) == 0
    assert supervision.Detections.merge([empty, _detections(masks=False).to_supervision()]).xyxy.shape == (
        3,
        4,
    )


def test_without_supervision_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(RuntimeError, match="`pip install supervision`"):
        _detections().to_supervision()
