"""Models and recordings behind one protocol."""

from pathlib import Path
from typing import Optional

import cv2
import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from runtime import Detector
from runtime.comparison.sources import MadeBy, open_artifact, record
from runtime.images import read_image
from runtime.metadata import ModelMetadata
from runtime.transforms import Resize
from tests.runtime import fakes


@pytest.fixture
def images(tmp_path: Path) -> list[Path]:
    """Five images of mixed sizes; the third has no detections."""
    arrays = [
        fakes.random_image(h, w, i) for i, (h, w) in enumerate([(64, 96), (96, 64), (200, 333), (33, 41)])
    ]
    arrays.insert(2, np.zeros((50, 60, 3), np.uint8))
    paths = [tmp_path / f"{index}.png" for index in range(5)]
    for path, array in zip(paths, arrays):
        path.write_bytes(cv2.imencode(".png", array)[1].tobytes())
    return paths


def changed_model(
    path: Path, tensor: str, place: tuple, value: float, facts: Optional[ModelMetadata] = None
) -> Path:
    """Save the fake with one value of an initializer replaced."""
    model = fakes.model(facts)
    initializer = next(t for t in model.graph.initializer if t.name == tensor)
    array = numpy_helper.to_array(initializer).copy()
    array[place] = value
    initializer.CopyFrom(numpy_helper.from_array(array, tensor))
    onnx.save(model, str(path))
    return path


def _assert_same(found: object, expected: object) -> None:
    for field in ("boxes", "scores", "labels", "masks"):
        np.testing.assert_array_equal(getattr(found, field), getattr(expected, field))
    assert found.image_size == expected.image_size


@pytest.mark.parametrize("masks", ["crop", "full"])
@pytest.mark.parametrize("batch", [1, 2, 5, 9])
def test_a_model_gives_what_its_detector_gives(
    batch: int, masks: str, images: list[Path], tmp_path: Path
) -> None:
    model = fakes.save(tmp_path / "m.onnx", fakes.metadata(masks=masks))
    expected = Detector(model)([read_image(path) for path in images])
    with open_artifact(model, batch_size=batch, threads=1) as artifact:
        results = list(artifact(images))
        assert (artifact.name, artifact.classes) == (str(model), fakes.CLASSES)
        assert artifact.model_seconds > 0
    assert [r.path for r in results] == images
    for result, detections in zip(results, expected):
        assert result.problem == ""
        _assert_same(result.detections, detections)


@pytest.mark.parametrize("masks", ["crop", "full"])
def test_a_recorded_model_is_the_model(masks: str, images: list[Path], tmp_path: Path) -> None:
    model = fakes.save(tmp_path / "m.onnx", fakes.metadata(masks=masks))
    with open_artifact(model, "onnxruntime", batch_size=2) as artifact:
        expected = list(record(artifact, images, tmp_path / "r.npz"))
    with open_artifact(tmp_path / "r.npz", "onnxruntime", batch_size=3) as recorded:
        assert recorded.model_seconds is None
        assert recorded.classes == fakes.CLASSES
        assert "onnxruntime" in recorded.recording.source
        assert len(recorded.recording.made_with["model_sha256"]) == 64
        found = list(recorded(images[::-1]))
    for result, before in zip(found[::-1], expected):
        _assert_same(result.detections, before.detections)


PROBLEMS = {
    "a box": ("unit_boxes", (0, 1, 2), np.nan, "dets[0, 1]: expected finite boxes and scores"),
    "a score": ("scores", (0, 2, 0), np.inf, "dets[0, 2]: expected finite boxes and scores"),
    "a mask": ("discs", (0, 1, 3, 4), np.nan, "masks[1]: expected finite probabilities, found nan at [3, 4]"),
    "a label": ("class_ids", (0, 0), 7, "labels[0]: expected 0 to 2"),
}


@pytest.mark.parametrize("name", PROBLEMS)
@pytest.mark.parametrize("batch", [1, 5])
def test_what_is_no_result_is_said_and_the_run_goes_on(
    batch: int, name: str, images: list[Path], tmp_path: Path
) -> None:
    """The image without detections has no such row, so it is right."""
    tensor, place, value, message = PROBLEMS[name]
    model = changed_model(tmp_path / "m.onnx", tensor, place, value)
    with open_artifact(model, batch_size=batch) as artifact:
        results = list(artifact(images))
        with pytest.raises(RuntimeError, match="expected"):
            list(record(artifact, images, tmp_path / "r.npz"))
    assert [message in r.problem for r in results] == [True, True, False, True, True]
    assert [len(r.detections) for r in results] == [0] * 5
    assert not (tmp_path / "r.npz").exists()


def test_padding_rows_are_no_results(images: list[Path], tmp_path: Path) -> None:
    """The fourth row is past num_dets."""
    model = changed_model(tmp_path / "m.onnx", "discs", (0, 3), np.nan)
    with open_artifact(model) as artifact:
        assert not any(r.problem for r in artifact(images))


def test_a_missing_image_is_named_before_the_first_runs(images: list[Path], fake_model: Path) -> None:
    images[-1].unlink()
    with open_artifact(fake_model) as artifact:
        with pytest.raises(FileNotFoundError, match=r"4\.png: expected a file, found nothing"):
            artifact(images)
        assert artifact.model_seconds == 0


def test_an_image_that_does_not_fit_is_named(images: list[Path], tmp_path: Path) -> None:
    facts = fakes.metadata(steps=(Resize(scale=(96, 64), keep_ratio=True),))
    with open_artifact(fakes.save(tmp_path / "m.onnx", facts), batch_size=2) as artifact:
        with pytest.raises(ValueError, match=r"1\.png: image of 96x64 px .*expected to fit"):
            list(artifact(images))
        images[0].write_bytes(b"not an image")
        with pytest.raises(ValueError, match=r"0\.png: expected an image, found 12 bytes"):
            list(artifact(images))


def test_results_are_made_when_they_are_asked_for(images: list[Path], fake_model: Path) -> None:
    """But for those that threads have read in advance."""
    with open_artifact(fake_model) as artifact:
        results = artifact(images[:1] * 200 + images[1:2])
        next(results)
        images[1].unlink()
        with pytest.raises(OSError, match="1.png"):
            list(results)


def test_it_is_said_which_way_results_were_made(images: list[Path], fake_model: Path, tmp_path: Path) -> None:
    with open_artifact(fake_model, "onnxruntime") as artifact:
        assert artifact.made_by == MadeBy("host", "onnxruntime takes arrays from the host")
        assert str(artifact.made_by) == "host path (onnxruntime takes arrays from the host)"
        list(record(artifact, images, tmp_path / "r.npz"))
    with open_artifact(tmp_path / "r.npz") as recorded:
        assert recorded.made_by == MadeBy("host", "onnxruntime takes arrays from the host")
        assert recorded.recording.made_with["path"] == "host"
