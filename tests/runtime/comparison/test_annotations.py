"""Annotations: what cocoapi takes is taken, and what it falls over is refused with its place."""

import json
from pathlib import Path
from typing import Any, Callable

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from runtime.comparison.annotations import read_annotations, with_masks
from tests.runtime.comparison.test_average_precision import SIZE, annotations

SIZES = {1: SIZE, 2: SIZE}


def _write(folder: Path, truth: Any) -> Path:
    path = folder / "a.json"
    path.write_bytes(truth if isinstance(truth, bytes) else json.dumps(truth).encode())
    return path


def _read(folder: Path, change: Callable[[dict], Any]) -> tuple[dict, list[dict]]:
    truth = annotations()
    change(truth)
    path = _write(folder, truth)
    content = read_annotations(path)
    return content, with_masks(path, content["annotations"], SIZES)


def _first(**values: Any) -> Callable[[dict], None]:
    return lambda truth: truth["annotations"][0].update(values)


def _drop(*keys: str) -> Callable[[dict], None]:
    def drop(truth: dict) -> None:
        for key in keys:
            truth["annotations"][0].pop(key)

    return drop


TRIANGLE = [10, 10, 30, 10, 30, 30]


def _area(polygons: list) -> float:
    return float(coco_mask.area(coco_mask.merge(coco_mask.frPyObjects(polygons, *SIZE))))


# What of the first annotation is then so.
TAKEN = {
    "plain": (lambda truth: None, {"id": 1, "area": 400, "iscrowd": 0}),
    "no id": (_drop("id"), {"id": None}),
    "a whole float": (_first(image_id=1.0, id=5.0), {"image_id": 1, "id": 5}),
    "no iscrowd": (_drop("iscrowd"), {"iscrowd": 0}),
    "null iscrowd": (_first(iscrowd=None), {"iscrowd": 0}),
    "true": (_first(iscrowd=True), {"iscrowd": 1}),
    "the mask's area": (_first(area=None, segmentation=[TRIANGLE]), {"area": _area([TRIANGLE])}),
    "the box's area": (_drop("area", "segmentation"), {"area": 400}),
    "float box": (_first(bbox=[-0.5, 1e3, 0.0, 7]), {"bbox": [-0.5, 1e3, 0.0, 7]}),
    "outside the image": (
        _first(area=None, segmentation=[[-50, -50, 1000, -50, 1000, 900, -50, 900]]),
        {"area": 24000.0},
    ),
    "a line among polygons": (
        _first(area=None, segmentation=[[1, 1, 5, 5], TRIANGLE]),
        {"area": _area([TRIANGLE, [1, 1, 5, 5]])},
    ),
}


@pytest.mark.parametrize("name", TAKEN)
def test_what_is_taken(name: str, tmp_path: Path) -> None:
    change, expected = TAKEN[name]
    _, (first, *_) = _read(tmp_path, change)
    assert {key: first[key] for key in expected} == expected


@pytest.mark.parametrize("segmentation", [[], None, "missing"])
def test_an_object_may_have_no_mask(segmentation: Any, tmp_path: Path) -> None:
    change = _drop("segmentation") if segmentation == "missing" else _first(segmentation=segmentation)
    _, (first, second, _) = _read(tmp_path, change)
    assert "segmentation" not in first
    assert "segmentation" in second


def test_polygons_and_run_lengths_become_what_pycocotools_makes_of_them(tmp_path: Path) -> None:
    polygons = [TRIANGLE, [50.5, 20.25, 90, 20, 90, 60, 40, 70]]
    mask = np.zeros(SIZE, np.uint8)
    mask[5:50, 7:80] = 1
    flat = mask.T.ravel()
    runs = np.diff(np.concatenate(([0], np.flatnonzero(np.diff(flat)) + 1, [flat.size]))).tolist()
    cases = (
        (polygons, coco_mask.merge(coco_mask.frPyObjects(polygons, *SIZE))),
        ({"size": list(SIZE), "counts": runs}, coco_mask.encode(np.asfortranarray(mask))),
        ({"size": [120.0, 200.0], "counts": [2.0, 0, *runs[:1], -2 + 2, *runs[1:-1], runs[-1] - 2]}, None),
    )
    for segmentation, expected in cases:
        _, (first, *_) = _read(tmp_path, _first(segmentation=segmentation))
        assert first["segmentation"]["size"] == list(SIZE)
        if expected is not None:
            assert first["segmentation"]["counts"].encode() == expected["counts"]
    json.dumps(first)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_encodings(encoding: str, tmp_path: Path) -> None:
    truth = annotations()
    truth["categories"][0]["name"] = "Fußgänger"
    path = _write(tmp_path, json.dumps(truth, ensure_ascii=False).encode(encoding))
    assert read_annotations(path)["categories"][0]["name"] == "Fußgänger"


def test_no_annotations(tmp_path: Path) -> None:
    content, masked = _read(tmp_path, lambda truth: truth["annotations"].clear())
    assert (len(content["images"]), content["annotations"], masked) == (2, [], [])


def test_annotations_of_other_images_are_left_out(tmp_path: Path) -> None:
    path = _write(tmp_path, annotations())
    entries = read_annotations(path)["annotations"]
    assert [a["id"] for a in with_masks(path, entries, {2: SIZE})] == [3]


FILES = {
    "no JSON": (b"{", "expected JSON, found"),
    "no text": (b"\xff\xfe\x00", "expected JSON, found"),
    "deep": (b"[" * 100_000, "expected JSON, found"),
    "no list": (
        {"images": []},
        "expected COCO's format with the lists images, annotations, categories, found 'im",
    ),
    "results": ([], "found a list"),
    "null": ({**annotations(), "annotations": None}, "expected COCO's format with the lists"),
    "no image": ({**annotations(), "images": []}, "expected at least one image, found none"),
}


@pytest.mark.parametrize("name", FILES)
def test_what_is_not_cocos_format_is_refused(name: str, tmp_path: Path) -> None:
    content, message = FILES[name]
    path = _write(tmp_path, content)
    with pytest.raises(ValueError, match=message) as error:
        read_annotations(path)
    assert str(path) in str(error.value)


def _image(**values: Any) -> Callable[[dict], None]:
    return lambda truth: truth["images"][1].update(values)


def _category(**values: Any) -> Callable[[dict], None]:
    return lambda truth: truth["categories"][1].update(values)


def _rle(**values: Any) -> Callable[[dict], None]:
    return lambda truth: truth["annotations"][0]["segmentation"].update(values)


NAN = float("nan")
REFUSED = {
    "no object": (lambda t: t["images"].append(7), r"images\[2\]: expected an object, found 7"),
    "image id": (_image(id=[1]), r"images\[1\]\.id: expected a whole number or a string, found \[1\]"),
    "image id null": (_image(id=None), r"images\[1\]\.id: expected .*, found None"),
    "image id bool": (_image(id=True), r"images\[1\]\.id: expected .*, found True"),
    "image twice": (
        _image(id=1),
        r"images\[1\]\.id: expected an id of its own, found 1, which images\[0\] has",
    ),
    "no name": (
        _image(file_name=""),
        r"images\[1\]\.file_name \(id 2\): expected the name of the image's file",
    ),
    "height": (
        _image(height=0),
        r"images\[1\]\.height \(id 2\): expected a number of pixels.* found 0; leave it",
    ),
    "pixels": (
        _image(height=10**5, width=10**5),
        r"images\[1\]\.height, width \(id 2\): expected up to 536870912",
    ),
    "category": (_category(name=5), r"categories\[1\]\.name \(id 3\): expected the category's name, found 5"),
    "category twice": (_category(id=7), r"categories\[1\]\.id: expected an id of its own, found 7"),
    "id twice": (
        _first(id=2),
        r"annotations\[1\]\.id: expected an id of its own, found 2, which annotations\[0\]",
    ),
    "orphan": (
        _first(image_id=9),
        r"annotations\[0\]\.image_id \(id 1\): expected an id of images, found 9; remove",
    ),
    "other form": (
        _first(image_id="1"),
        r"image_id \(id 1\): expected an id of images, found '1'; write it as.*: 1$",
    ),
    "orphan category": (
        _first(category_id=8),
        r"category_id \(id 1\): expected an id of categories, found 8",
    ),
    "no box": (
        _drop("bbox"),
        r"annotations\[0\]\.bbox \(id 1\): expected \[x, y, width, height\] in px, found none",
    ),
    "box of three": (_first(bbox=[1, 2, 3]), r"bbox \(id 1\): expected .*, found \[1, 2, 3\]"),
    "NaN box": (_first(bbox=[1, NAN, 3, 4]), r"bbox\[1\] \(id 1\): expected a number from -6.*, found nan"),
    "negative width": (
        _first(bbox=[1, 2, -3, 4]),
        r"bbox\[2\] \(id 1\): expected a number from 0 to .*, found -3",
    ),
    "huge": (_first(bbox=[10**400, 2, 3, 4]), r"bbox\[0\] \(id 1\): expected .*, found 1000.*\.\.\."),
    "area": (_first(area="5"), r"annotations\[0\]\.area \(id 1\): expected a number from 0 to .*, found '5'"),
    "negative area": (_first(area=-1), r"area \(id 1\): expected a number from 0"),
    "crowd": (_first(iscrowd=2), r"annotations\[0\]\.iscrowd \(id 1\): expected 0 or 1, found 2"),
    "text": (
        _first(segmentation="x"),
        r"segmentation \(id 1\): expected a list of polygons, run lengths, or null",
    ),
    "flat polygon": (
        _first(segmentation=TRIANGLE),
        r"segmentation\[0\] \(id 1\): expected a polygon, .*found 10;",
    ),
    "two points": (
        _first(segmentation=[[1, 1, 5, 5]]),
        r"segmentation \(id 1\): expected a polygon of at least 3 points \(6 numbers\), found \[\[1, 1, 5, 5\]\]; draw",
    ),
    "odd": (
        _first(segmentation=[[*TRIANGLE, 1]]),
        r"segmentation\[0\] \(id 1\): expected .*, found 7 numbers: \[",
    ),
    "no point": (
        _first(segmentation=[TRIANGLE, []]),
        r"segmentation\[1\] \(id 1\): expected .*, found 0 numbers",
    ),
    "NaN point": (_first(segmentation=[[*TRIANGLE, 1, NAN]]), r"expected finite coordinates, found"),
    "NaN first": (_first(segmentation=[[NAN, 1e300, *TRIANGLE]]), r"expected coordinates from"),
    "far": (
        _first(segmentation=[[*TRIANGLE, 1e7, 1e7]]),
        r"expected an outline of up to 4194304 px, found one of",
    ),
    "far int": (_first(segmentation=[[*TRIANGLE, 1, 10**400]]), r"expected coordinates from"),
    "size": (
        _rle(size=[200, 120]),
        r"segmentation\.size \(id 1\): expected .* \[120, 200\], found \[200, 120\]; the",
    ),
    "no pixels": (_rle(size=[0, 0]), r"segmentation\.size \(id 1\): expected .*, found \[0, 0\]"),
    "no size": (_first(segmentation={}), r"segmentation\.size \(id 1\): expected .*, found none"),
    "no counts": (
        _rle(counts=None),
        r"segmentation\.counts \(id 1\): expected a string, or a list of whole n",
    ),
    "cut counts": (
        _rle(counts="1"),
        r"annotations\[0\]\.segmentation\.counts \(id 1\): expected runs of 120 \* 200 = 24000 pixels, found 1 in 1 "
        r"runs; encode the mask again",
    ),
    "runs": (_rle(counts=[100, 23000]), r"expected runs of 120 \* 200 = 24000 pixels, found 23100 in 2 runs"),
    "negative runs": (
        _rle(counts=[-1, 24001]),
        r"expected runs of 0 to 536870912 pixels, found \[-1, 24001\]",
    ),
    "half runs": (
        _rle(counts=[0.5, 23999.5]),
        r"counts \(id 1\): expected a string, or a list of whole numbers",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused(name: str, tmp_path: Path) -> None:
    change, message = REFUSED[name]
    with pytest.raises(ValueError, match=message) as error:
        _read(tmp_path, change)
    assert str(error.value).startswith(f"annotations {tmp_path / 'a.json'}: ")
    assert len(str(error.value)) < 500
