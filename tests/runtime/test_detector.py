from pathlib import Path

import numpy as np
import pytest

from runtime import Detections, Detector
from runtime.transforms import Resize
from tests.runtime import fakes

DARK_IMAGE = np.zeros((50, 70, 3), np.uint8)
IMAGES = [
    fakes.random_image(64, 96, 1),
    fakes.random_image(200, 100, 2),
    DARK_IMAGE,
    fakes.random_image(33, 47, 3),
    fakes.random_image(128, 192, 4),
]


def _assert_same(found: Detections, expected: Detections) -> None:
    np.testing.assert_array_equal(found.boxes, expected.boxes)
    np.testing.assert_array_equal(found.scores, expected.scores)
    np.testing.assert_array_equal(found.labels, expected.labels)
    assert found.image_size == expected.image_size
    if expected.has_masks:
        np.testing.assert_array_equal(found.masks, expected.masks)


def test_results_are_in_the_original_images_pixels(fake_model: Path) -> None:
    image = fakes.random_image(128, 192)
    (found,) = Detector(fake_model)([image])
    unit = np.array(fakes.UNIT_BOXES[: fakes.NUM_DETS], np.float32)
    np.testing.assert_allclose(found.boxes, unit * (192, 128, 192, 128), rtol=1e-6)
    np.testing.assert_array_equal(found.scores, np.array(fakes.SCORES, np.float32))
    assert found.names == ["square", "circle", "triangle"]
    assert found.image_size == (128, 192)
    # A disc of radius 0.35 in the middle of the second box, which is the whole image.
    assert found.masks.shape == (3, 128, 192)
    assert found.masks[1, 64, 96]
    assert not found.masks[1, 0, 0]
    assert found.masks[1].mean() == pytest.approx(np.pi * 0.35**2, rel=0.02)


@pytest.mark.parametrize("masks", ["crop", "full", "none"])
@pytest.mark.parametrize("batch_size", [1, 2, 5, 9, None])
def test_a_batch_has_the_results_of_its_images(batch_size: object, masks: str, tmp_path: Path) -> None:
    """Mixed sizes, one image without detections, a smaller last batch; fixed size, so padding is the same."""
    path = fakes.save(tmp_path / "m.onnx", fakes.metadata(masks=masks))
    alone = Detector(path)
    together = Detector(path, batch_size=batch_size)(IMAGES)
    assert [len(d) for d in together] == [3, 3, 0, 3, 3]
    for image, found in zip(IMAGES, together):
        _assert_same(found, alone([image])[0])


def test_a_dynamic_size_takes_every_image(tmp_path: Path) -> None:
    facts = fakes.metadata(size=None, steps=(Resize(scale=(160, 96), keep_ratio=True),))
    found = Detector(fakes.save(tmp_path / "m.onnx", facts), batch_size=2)(IMAGES)
    assert [d.image_size for d in found] == [image.shape[:2] for image in IMAGES]


def test_full_masks_follow_the_image_and_not_its_padding(tmp_path: Path) -> None:
    image = np.full((128, 60, 3), 255, np.uint8)
    image[:, :30] = 0
    image[0, 0] = 255
    (found,) = Detector(fakes.save(tmp_path / "m.onnx", fakes.metadata(masks="full")))([image])
    assert found.masks.shape == (3, 128, 60)
    assert found.masks[:, :, 32:].all()
    assert not found.masks[:, 8:, :28].any()


def test_no_images_give_no_detections(fake_model: Path) -> None:
    assert Detector(fake_model)([]) == []


def test_a_single_array_is_refused(fake_model: Path) -> None:
    with pytest.raises(
        ValueError, match=r"expected a list .* found one array of shape \(64, 96, 3\); pass \[image\]"
    ):
        Detector(fake_model)(IMAGES[0])


def test_a_batch_size_below_one_is_refused(fake_model: Path) -> None:
    with pytest.raises(ValueError, match="batch_size: expected a whole number from 1 to 1024, found"):
        Detector(fake_model, batch_size=0)


def test_leaving_the_context_closes_the_model(fake_model: Path) -> None:
    with Detector(fake_model, threads=1) as detector:
        assert detector.metadata.classes == fakes.CLASSES
    with pytest.raises(RuntimeError, match="closed"):
        detector([DARK_IMAGE])
