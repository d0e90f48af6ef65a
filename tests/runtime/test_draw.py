import numpy as np
import pytest

from runtime.detections import Detections
from runtime.draw import class_color, draw_detections
from runtime.host.postprocess import CroppedMasks
from tests.runtime import fakes


def _detections(boxes: list, size: tuple[int, int], *, masks: bool = True) -> Detections:
    array = np.array(boxes, np.float32).reshape(-1, 4)
    num_dets = len(array)
    discs = np.zeros((0, 28, 28), np.float32) if not num_dets else np.stack([fakes.disc()] * num_dets)
    return Detections(
        boxes=array,
        scores=np.linspace(0.9, 0.4, num_dets).astype(np.float32),
        labels=(np.arange(num_dets) % 3).astype(np.int32),
        image_size=size,
        classes=fakes.CLASSES,
        mask_source=CroppedMasks(discs, array, size, 0.5) if masks else None,
    )


def test_colours_are_stable_and_distinct() -> None:
    colors = [class_color(label) for label in range(80)]
    assert colors == [class_color(label) for label in range(80)]
    assert len(set(colors)) == 80
    neighbours = np.abs(np.diff(np.array(colors), axis=0)).sum(axis=1)
    assert neighbours.min() > 100


@pytest.mark.parametrize("masks", [True, False])
@pytest.mark.parametrize(
    "boxes",
    [
        [],
        [[100, 100, 300, 300]],
        [[0, 0, 640, 500], [639.5, 499.5, 640, 500], [0, 0, 0, 0], [-50, -50, 900, 900]],
        [[100, 100, 120, 120]] * 60,
    ],
)
def test_overlays_keep_the_size_and_leave_the_image_alone(boxes: list, masks: bool) -> None:
    image = fakes.random_image(500, 640)
    before = image.copy()
    overlay = draw_detections(image, _detections(boxes, (500, 640), masks=masks))
    assert overlay.shape == image.shape
    assert overlay.dtype == np.uint8
    np.testing.assert_array_equal(image, before)
    assert (overlay != image).any() == bool(boxes)


def test_small_images_are_enlarged_by_a_whole_factor() -> None:
    overlay = draw_detections(fakes.random_image(100, 60), _detections([[5, 5, 50, 90]], (100, 60)))
    assert overlay.shape == (500, 300, 3)


def test_a_single_pixel_can_be_drawn_on() -> None:
    assert draw_detections(fakes.random_image(1, 1), _detections([[0, 0, 1, 1]], (1, 1))).shape == (
        480,
        480,
        3,
    )


def test_the_mask_is_tinted_in_its_classs_colour() -> None:
    image = np.zeros((500, 640, 3), np.uint8)
    overlay = draw_detections(image, _detections([[100, 100, 400, 400]], (500, 640)))
    np.testing.assert_allclose(overlay[250, 250], np.array(class_color(0)) * 0.4, atol=1)


def test_another_images_detections_are_refused() -> None:
    with pytest.raises(ValueError, match=r"expected the detections' \(50, 60\) .*found \(60, 50\)"):
        draw_detections(fakes.random_image(60, 50), _detections([], (50, 60)))
