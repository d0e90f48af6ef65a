"""Outlines: pycocotools makes the same masks of them, whatever parts and holes there are."""

import cv2
import numpy as np
import pytest
from pycocotools import mask as coco_mask

from runtime.masks import MaskCrop
from runtime.polygons import joined, polygons_from_crop

TOP, LEFT, MARGIN = 3, 4, 2
# Square px: a 3x3 ring.
RING = np.array([[1, 1, 1], [1, 0, 1], [1, 1, 1]], bool)


def _image_of(pixels: np.ndarray) -> np.ndarray:
    image = np.zeros((TOP + pixels.shape[0] + MARGIN, LEFT + pixels.shape[1] + MARGIN), bool)
    image[TOP : TOP + pixels.shape[0], LEFT : LEFT + pixels.shape[1]] = pixels
    return image


def _drawn(polygons: list[np.ndarray], shape: tuple[int, ...]) -> np.ndarray:
    lengths = coco_mask.frPyObjects([polygon.ravel().tolist() for polygon in polygons], *shape)
    return coco_mask.decode(coco_mask.merge(lengths)).astype(bool)


def _random(seed: int) -> np.ndarray:
    """Return noise, or blobs with holes."""
    generator = np.random.default_rng(seed)
    height, width = generator.integers(1, 40, 2)
    noise = generator.random((height, width))
    return cv2.GaussianBlur(noise, (0, 0), 2) > 0.5 if seed % 2 else noise < generator.random()


def test_an_outline_runs_along_the_edges_of_pixels() -> None:
    ((one,),) = [polygons_from_crop(MaskCrop(np.ones((2, 3), bool), TOP, LEFT))]
    assert sorted(map(tuple, one.tolist())) == [(4, 3), (4, 5), (7, 3), (7, 5)]


@pytest.mark.parametrize("seed", range(200))
def test_pycocotools_makes_the_same_mask_again(seed: int) -> None:
    pixels = _random(seed)
    image = _image_of(pixels)
    polygons = polygons_from_crop(MaskCrop(pixels, TOP, LEFT))
    if not pixels.any():
        assert polygons == []
        return
    np.testing.assert_array_equal(_drawn(polygons, image.shape), image)
    np.testing.assert_array_equal(_drawn([joined(polygons)], image.shape), image)


def test_holes_are_kept_or_filled() -> None:
    image = _image_of(RING)
    (seam,) = polygons_from_crop(MaskCrop(RING, TOP, LEFT))
    np.testing.assert_array_equal(_drawn([seam], image.shape), image)
    (filled,) = polygons_from_crop(MaskCrop(RING, TOP, LEFT), holes="fill")
    np.testing.assert_array_equal(_drawn([filled], image.shape), _image_of(np.ones((3, 3), bool)))


def test_the_largest_part_comes_first() -> None:
    pixels = np.zeros((10, 20), bool)
    pixels[0, 0] = pixels[4:9, 5:15] = pixels[1:3, 17:19] = True
    sizes = [cv2.contourArea(p) for p in polygons_from_crop(MaskCrop(pixels, 0, 0))]
    assert sizes == [50, 4, 1]


def test_a_tolerance_needs_fewer_points() -> None:
    disc = np.hypot(*np.mgrid[-40:41, -40:41]) <= 40
    image = _image_of(disc)
    (exact,), (rough,) = (polygons_from_crop(MaskCrop(disc, TOP, LEFT), tolerance=t) for t in (0, 1))
    assert len(rough) < len(exact) / 4
    drawn = _drawn([rough], image.shape)
    assert (drawn & image).sum() / (drawn | image).sum() > 0.97


def test_a_tolerance_never_loses_a_part() -> None:
    (one,) = polygons_from_crop(MaskCrop(np.ones((1, 1), bool), 0, 0), tolerance=50)
    assert len(one) == 4


def test_what_is_no_argument_is_refused() -> None:
    crop = MaskCrop(RING, 0, 0)
    with pytest.raises(ValueError, match="holes: expected one of seam, fill, found 'drop'"):
        polygons_from_crop(crop, holes="drop")
    with pytest.raises(ValueError, match="tolerance: expected 0 px or more, found nan"):
        polygons_from_crop(crop, tolerance=float("nan"))
