"""The function for CVAT with its SDK's own classes: labels, shapes, and what the SDK's driver makes of them."""

import logging
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import PIL.Image
import pytest
from cvat_sdk import auto_annotation, models
from cvat_sdk.auto_annotation.driver import _AnnotationMapper, _DetectionFunctionContextImpl
from cvat_sdk.masks import decode_mask

from runtime import Detector
from runtime.detections import Detections
from runtime.interop.cvat import CvatFunction, create
from tests.runtime import fakes

HEIGHT, WIDTH = 64, 96


def _image() -> PIL.Image.Image:
    return PIL.Image.fromarray(np.ascontiguousarray(fakes.random_image(HEIGHT, WIDTH)[..., ::-1]))


def _context(score: float | None = None, *, polygons: bool = False) -> _DetectionFunctionContextImpl:
    return _DetectionFunctionContextImpl(frame_name="a.jpg", conf_threshold=score, conv_mask_to_poly=polygons)


def _dataset_labels(function: CvatFunction, polygons: bool) -> list[SimpleNamespace]:
    """Return the labels of a CVAT project that has the function's, with ids of its own."""
    return [
        SimpleNamespace(
            id=100 + label.id,
            name=label.name,
            type="polygon" if polygons else str(label.type),
            attributes=[],
            sublabels=[
                SimpleNamespace(id=500 + s.id, name=s.name, type="points", attributes=[])
                for s in getattr(label, "sublabels", [])
            ],
        )
        for label in function.spec.labels
    ]


def _mapped(function: CvatFunction, shapes: list, *, polygons: bool = False) -> list:
    """Have the SDK's driver check the shapes and give them the project's ids, as ``annotate_task`` does."""
    mapper = _AnnotationMapper(
        logging.getLogger(),
        function.spec.labels,
        _dataset_labels(function, polygons),
        allow_unmatched_labels=False,
        conv_mask_to_poly=polygons,
    )
    mapper.validate_and_remap(shapes, 7)
    return shapes


def test_masks_are_those_of_the_detector(fake_model: Path) -> None:
    with create(str(fake_model), backend="onnxruntime", score=0.4) as function:
        assert isinstance(function.spec, auto_annotation.DetectionFunctionSpec)
        assert [(x.id, x.name, str(x.type)) for x in function.spec.labels] == [
            (0, "circle", "mask"),
            (1, "square", "mask"),
            (2, "triangle", "mask"),
        ]
        shapes = function.detect(_context(), _image())
        assert [s.label_id for s in shapes] == [1, 0]
        assert len(function.detect(_context(0.1), _image())) == 3
        assert len(function.detect(_context(0.95), _image())) == 0
        shapes = _mapped(function, shapes)
    assert [s.label_id for s in shapes] == [101, 100]
    assert {s.frame for s in shapes} == {7}
    with Detector(fake_model, "onnxruntime") as detector:
        (found,) = detector([fakes.random_image(HEIGHT, WIDTH)])
    for shape, mask in zip(shapes, found.masks):
        decoded = decode_mask(shape.points, image_width=WIDTH, image_height=HEIGHT)
        np.testing.assert_array_equal(decoded, mask)


def test_polygons_where_cvat_asks_for_them(fake_model: Path) -> None:
    with create(str(fake_model), backend="onnxruntime", tolerance=0) as function:
        shapes = _mapped(function, function.detect(_context(polygons=True), _image()), polygons=True)
    assert {s.type.value for s in shapes} == {"polygon"}
    with Detector(fake_model, "onnxruntime") as detector:
        (found,) = detector([fakes.random_image(HEIGHT, WIDTH)])
    for shape, mask in zip(shapes, found.masks):
        points = np.array(shape.points, np.float32).reshape(-1, 2)
        assert cv2.contourArea(points) == mask.sum()


def test_a_model_without_masks_has_rectangles(tmp_path: Path) -> None:
    model = fakes.save(tmp_path / "m.onnx", fakes.metadata(masks="none"))
    with create(str(model), backend="onnxruntime") as function:
        assert {str(label.type) for label in function.spec.labels} == {"rectangle"}
        first, second = _mapped(function, function.detect(_context(), _image()))
    assert first.points == pytest.approx([24, 16, 72, 48])
    assert second.type.value == "rectangle"


class _Points:
    """A detector of key points, as far as the function looks at it."""

    metadata = fakes.metadata(masks="none", keypoints=("nose", "tail"), skeleton=((0, 1),))

    def __call__(self, images: list[np.ndarray]) -> list[Detections]:
        assert [image.shape for image in images] == [(HEIGHT, WIDTH, 3)]
        return [
            Detections(
                boxes=np.array([[1, 2, 30, 40]], np.float32),
                scores=np.array([0.75], np.float32),
                labels=np.array([2], np.int32),
                image_size=(HEIGHT, WIDTH),
                classes=self.metadata.classes,
                keypoints=np.array([[[3, 4, 0.9], [5, 6, 0.1]]], np.float32),
                keypoint_names=self.metadata.keypoints,
            )
        ]


def test_key_points_are_skeletons() -> None:
    function = CvatFunction(_Points(), score=0.3, tolerance=1)  # type: ignore[arg-type]
    assert [s.name for s in function.spec.labels[0].sublabels] == ["nose", "tail"]
    (shape,) = _mapped(function, function.detect(_context(), _image()))
    assert shape.type.value == "skeleton"
    assert shape.label_id == 102
    assert [(e.label_id, e.points, e.occluded) for e in shape.elements] == [
        (500, [3, 4], False),
        (501, [5, 6], True),
    ]


def test_an_image_is_turned_as_its_file_says(fake_model: Path) -> None:
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # 90 degrees
    image = _image()
    image.getexif().update(exif)
    with create(str(fake_model), backend="onnxruntime", score=0.4) as function:
        seen: list[np.ndarray] = []
        function._detector = _Seen(function._detector, seen)  # type: ignore[assignment]
        function.detect(_context(), image)
    np.testing.assert_array_equal(seen[0], np.rot90(fakes.random_image(HEIGHT, WIDTH), -1))


class _Seen:
    def __init__(self, detector: Detector, seen: list[np.ndarray]) -> None:
        self._detector, self._seen = detector, seen
        self.metadata, self.close = detector.metadata, detector.close

    def __call__(self, images: list[np.ndarray]) -> list[Detections]:
        self._seen += images
        return self._detector([np.ascontiguousarray(np.rot90(image)) for image in images])


def test_an_empty_mask_is_no_shape(fake_model: Path) -> None:
    from runtime.masks import MaskCrop
    from runtime.rle import RunLengthMasks, rle_from_crop

    nothing = rle_from_crop(MaskCrop(np.zeros((0, 0), bool), 0, 0), (HEIGHT, WIDTH))["counts"].encode()
    with create(str(fake_model), backend="onnxruntime") as function:
        (found,) = function._detector([fakes.random_image(HEIGHT, WIDTH)])
        empty = replace(found[0], mask_source=RunLengthMasks((nothing,), (HEIGHT, WIDTH)))
        assert list(function._shapes(empty, False)) == []
        assert list(function._shapes(empty, True)) == []


def test_without_the_sdk_it_says_what_to_install(fake_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "cvat_sdk", None)
    with pytest.raises(RuntimeError, match="`pip install cvat-sdk pillow`"):
        create(str(fake_model))


def test_the_models_are_the_sdks() -> None:
    assert models.LabeledShapeRequest is type(auto_annotation.rectangle(1, [0, 0, 1, 1]))
