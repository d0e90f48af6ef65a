"""Recorded results: what is read is what was written, and everything else is refused by name."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from runtime.comparison.recording import RecordingWriter, RunLengthMasks, read_recording
from runtime.detections import Detections
from runtime.masks import MaskCrop
from tests.runtime import fakes


class Masks:
    """(n, H, W) bool arrays as a ``MaskSource``."""

    def __init__(self, masks: np.ndarray) -> None:
        self.masks = masks

    def crop(self, index: int) -> MaskCrop:
        return MaskCrop(self.masks[index], 0, 0)


def _detections(num: int, size: tuple[int, int], seed: int) -> Detections:
    generator = np.random.default_rng(seed)
    masks = generator.random((num, *size)) > 0.7
    masks[1:2] = False
    return Detections(
        boxes=generator.random((num, 4), np.float32) * 40,
        scores=np.sort(generator.random(num, np.float32))[::-1],
        labels=generator.integers(0, 3, num).astype(np.int32),
        image_size=size,
        classes=fakes.CLASSES,
        mask_source=Masks(masks),
    )


RESULTS = {
    "a.jpg": _detections(4, (30, 40), 1),
    "none.jpg": _detections(0, (20, 10), 2),
    "b.jpg": _detections(1, (7, 9), 3),
}


def _image(folder: Path, name: str, data: bytes = b"") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(data or name.encode())
    return folder / name


def _record(folder: Path, **facts: object) -> Path:
    path = folder / "deep" / "r.npz"
    with RecordingWriter(path, fakes.metadata(**facts), source="a test", made_with={"batch": 2}) as writer:
        for name, detections in RESULTS.items():
            writer.add(_image(folder, name), detections)
    return path


def test_what_is_read_is_what_was_written(tmp_path: Path) -> None:
    path = _record(tmp_path)
    recording = read_recording(path)
    assert [p.name for p in path.parent.iterdir()] == ["r.npz"]
    assert recording.metadata == fakes.metadata()
    assert (recording.source, recording.made_with) == ("a test", {"batch": 2})
    assert [(i.name, i.height, i.width) for i in recording.images] == [
        ("a.jpg", 30, 40),
        ("none.jpg", 20, 10),
        ("b.jpg", 7, 9),
    ]
    for name, expected in RESULTS.items():
        found = recording.find(tmp_path / name)
        for field in ("boxes", "scores", "labels"):
            np.testing.assert_array_equal(getattr(found, field), getattr(expected, field))
            assert getattr(found, field).dtype == getattr(expected, field).dtype
        np.testing.assert_array_equal(found.masks, expected.mask_source.masks)
        assert found.rle() == expected.rle()
        assert (found.image_size, found.classes) == (expected.image_size, fakes.CLASSES)


@pytest.mark.parametrize("facts", [{}, {"masks": "none"}, {"keypoints": ("a", "b")}], ids=str)
def test_a_recording_of_no_detection_at_all(facts: dict, tmp_path: Path) -> None:
    nothing = RESULTS["none.jpg"]
    if "keypoints" in facts:
        points = np.zeros((0, 2, 3), np.float32)
        nothing = replace(nothing, keypoints=points, keypoint_names=facts["keypoints"])
    path = tmp_path / "r.npz"
    with RecordingWriter(path, fakes.metadata(**facts), source="", made_with={}) as writer:
        writer.add(_image(tmp_path, "none.jpg"), nothing)
    (image,) = read_recording(path).images
    assert len(read_recording(path).find(tmp_path / image.name)) == 0


def test_a_model_without_masks(tmp_path: Path) -> None:
    recording = read_recording(_record(tmp_path, masks="none"))
    assert not recording.find(tmp_path / "a.jpg").has_masks


@pytest.mark.parametrize("fill", ["zeros", "ones", "random", "last pixel"])
def test_a_mask_is_decoded_into_its_bounding_box(fill: str) -> None:
    mask = np.zeros((9, 14), bool)
    if fill == "ones":
        mask[:] = True
    if fill == "random":
        mask[2:6, 3:9] = np.random.default_rng(0).random((4, 6)) > 0.5
    if fill == "last pixel":
        mask[-1, -1] = True
    counts = coco_mask.encode(np.asfortranarray(mask, np.uint8))["counts"]
    crop = RunLengthMasks((b"", counts), mask.shape).select(np.array([False, True])).crop(0)
    whole = np.zeros_like(mask)
    whole[crop.window] = crop.pixels
    np.testing.assert_array_equal(whole, mask)
    assert crop.pixels.dtype == bool


def test_images_of_one_name_are_told_apart_by_their_bytes(tmp_path: Path) -> None:
    path = tmp_path / "r.npz"
    images = [_image(tmp_path / folder, "x.jpg", folder.encode()) for folder in ("one", "two")]
    with RecordingWriter(path, fakes.metadata(), source="", made_with={}) as writer:
        for image, detections in zip(images, (RESULTS["a.jpg"], RESULTS["b.jpg"])):
            writer.add(image, detections)
    assert [len(read_recording(path).find(image)) for image in images] == [4, 1]


def test_other_images_are_refused(tmp_path: Path) -> None:
    recording = read_recording(_record(tmp_path))
    other = _image(tmp_path, "other.jpg")
    with pytest.raises(
        ValueError, match=r"expected results of other\.jpg, found those of a\.jpg, none\.jpg, b"
    ):
        recording.find(other)
    with pytest.raises(FileNotFoundError, match=r"image .*gone\.jpg: expected a file, found nothing"):
        recording.find(tmp_path / "gone.jpg")
    _image(tmp_path, "a.jpg", b"edited")
    with pytest.raises(
        ValueError, match=r"a\.jpg: expected the file that was recorded \(SHA-256 \w{12}\), found"
    ):
        recording.find(tmp_path / "a.jpg")


def _changed(path: Path, **changes: object) -> Path:
    with np.load(path) as content:
        arrays = {name: content[name] for name in content.files}
    header = json.loads(arrays["header"].tobytes())
    header.update(changes.pop("header", {}))
    arrays["header"] = np.frombuffer(json.dumps(header).encode(), np.uint8)
    arrays.update(changes)
    np.savez(path, **{name: value for name, value in arrays.items() if value is not None})
    return path


DAMAGES = {
    "format": ({"header": {"format": 7}}, "expected format 1, found 7; record it again"),
    "no boxes": ({"boxes": None}, "expected the arrays header, num_detections, boxes, scores"),
    "fewer scores": (
        {"scores": np.zeros(3, np.float32)},
        "arrays of 5 detections in 3 images have other lengths",
    ),
    "fewer images": ({"header": {"images": []}}, "arrays of 5 detections in 0 images"),
    "negative count": (
        {"num_detections": np.array([6, -1, 0])},
        r"num_detections\[1\]: expected 0 or more, found -1",
    ),
    "masks": ({"masks": np.zeros(3, np.uint8)}, "masks of 5 detections have other lengths"),
    "negative length": (
        {"mask_bytes": np.array([-1, 1, 1, 1, 1])},
        "masks of 5 detections have other lengths",
    ),
    "label": (
        {"labels": np.array([0, 1, 2, 9, -1], np.int32)},
        r"labels\[3\] \(image a\.jpg\): expected indices of the model's classes, found 9 and 1 more of them; record",
    ),
    "score": (
        {"scores": np.array([1, 1, 1, 1, np.nan], np.float32)},
        r"scores\[4\] \(image b\.jpg\): expected finite numbers, found nan; record it again",
    ),
    "box": (
        {"boxes": np.full((5, 4), np.inf, np.float32)},
        r"boxes\[0\] \(image a\.jpg\): expected finite numbers, found \[inf, inf, inf, inf\] and 4 more",
    ),
    "type": ({"boxes": np.zeros((5, 4))}, r"boxes: expected float32 \(\?, 4\), found float64 \(5, 4\)"),
    "shape": (
        {"boxes": np.zeros((4, 5), np.float32)},
        r"boxes: expected float32 \(\?, 4\), found float32 \(4, 5\)",
    ),
    "rank": (
        {"scores": np.zeros((5, 1), np.float32)},
        r"scores: expected float32 \(\?\), found float32 \(5, 1\)",
    ),
    "order": ({"boxes": np.zeros((4, 5), np.float32).T}, "expected arrays row by row"),
    "byte order": ({"scores": np.zeros(5, ">f4")}, r"expected float32 \(\?\), found >f4 \(5,\)"),
    "image": ({"header": {"images": [7]}}, r"header\.images\[0\]: expected an object, found 7"),
    "image name": ({"header": {"images": [{}]}}, r"header\.images\[0\]\.name: expected a string, found none"),
    "image size": (
        {"header": {"images": [{"name": "x", "sha256": "", "height": 0, "width": 5}]}},
        r"header\.images\[0\] \('x'\): expected a height and a width of 1 or more .*, found 0 and 5",
    ),
    "image side": (
        {"header": {"images": [{"name": "x", "sha256": "", "height": True, "width": 5}]}},
        r"header\.images\[0\]\.height: expected a whole number, found True",
    ),
    "source": ({"header": {"source": None}}, r"header\.source: expected a string, found None"),
    "metadata": ({"header": {"model": {}}}, "expected a whole recording, found a damaged one"),
    "pickle": ({"boxes": np.array([{}], object)}, "expected an .npz of plain arrays"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_recording_is_refused(name: str, tmp_path: Path) -> None:
    changes, message = DAMAGES[name]
    path = _changed(_record(tmp_path), **changes)
    with pytest.raises(ValueError, match=message) as error:
        read_recording(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("data", [b"", b"not a zip file", b"PK\x03\x04 cut off"])
def test_what_is_no_recording_is_refused(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "r.npz"
    path.write_bytes(data)
    with pytest.raises(
        ValueError, match=r"expected an \.npz of plain arrays, found a file that cannot be read so"
    ):
        read_recording(path)
    with pytest.raises(
        FileNotFoundError, match=r"expected a file, found nothing; make it with `python -m export"
    ):
        read_recording(tmp_path / "gone.npz")


def test_a_damaged_mask_is_refused(tmp_path: Path) -> None:
    path = _record(tmp_path)
    with np.load(path) as content:
        masks, lengths = content["masks"].copy(), content["mask_bytes"]
    masks[-lengths[-1]] ^= 1
    with pytest.raises(
        ValueError, match=r"masks\[4\] \(image b\.jpg\): expected runs of 7 \* 9 = 63 pixels, found"
    ):
        read_recording(_changed(path, masks=masks))


def test_large_arrays_are_refused_before_they_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = _record(tmp_path)
    num_bytes = 1000
    with pytest.raises(
        ValueError, match=rf"expected arrays of up to {num_bytes} bytes, found \d+; .*set MASKRCNN_MAX"
    ):
        read_recording(path, max_bytes=num_bytes)
    monkeypatch.setenv("MASKRCNN_MAX_RECORDING_BYTES", str(num_bytes))
    with pytest.raises(ValueError, match=f"up to {num_bytes} bytes"):
        read_recording(path)
    monkeypatch.setenv("MASKRCNN_MAX_RECORDING_BYTES", "much")
    with pytest.raises(
        ValueError, match="MASKRCNN_MAX_RECORDING_BYTES: expected a whole number, found 'much'"
    ):
        read_recording(path)


def test_arrays_may_be_written_to(tmp_path: Path) -> None:
    found = read_recording(_record(tmp_path)).detections[0]
    found.boxes[:] = 0


def test_two_writers_of_one_file_do_not_mix(tmp_path: Path) -> None:
    path = tmp_path / "r.npz"
    image = _image(tmp_path, "a.jpg")
    with RecordingWriter(path, fakes.metadata(), source="one", made_with={}) as one:
        with RecordingWriter(path, fakes.metadata(), source="two", made_with={}) as two:
            one.add(image, RESULTS["a.jpg"])
            two.add(image, RESULTS["a.jpg"])
        assert read_recording(path).source == "two"
    assert read_recording(path).source == "one"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.jpg", "r.npz"]


def test_a_run_that_fails_leaves_the_file_before_it(tmp_path: Path) -> None:
    path = tmp_path / "r.npz"
    path.write_bytes(b"the one before")
    with pytest.raises(KeyError), RecordingWriter(path, fakes.metadata(), source="", made_with={}) as writer:
        writer.add(_image(tmp_path, "a.jpg"), RESULTS["a.jpg"])
        raise KeyError
    assert path.read_bytes() == b"the one before"


def test_another_suffix_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"expected a name ending in \.npz, found '\.json'"):
        RecordingWriter(tmp_path / "r.json", fakes.metadata(), source="", made_with={})
