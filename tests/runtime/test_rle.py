import sys

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from runtime.detections import MaskCrop
from runtime.rle import rle_from_crop, run_lengths

# height, width of the image; top, left, height, width of the crop
PLACES = [
    (9, 7, 0, 0, 9, 7),
    (9, 7, 2, 3, 4, 2),
    (9, 7, 0, 2, 9, 3),
    (9, 7, 5, 0, 4, 7),
    (9, 7, 0, 0, 3, 7),
    (9, 7, 8, 6, 1, 1),
    (1, 7, 0, 1, 1, 5),
    (9, 1, 2, 0, 5, 1),
    (9, 7, 4, 4, 0, 0),
    (9, 7, 4, 4, 3, 0),
]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("fill", ["zeros", "ones", "random", "columns"])
def test_a_crop_is_encoded_as_pycocotools_encodes_the_whole_mask(place: tuple, fill: str) -> None:
    height, width, top, left, crop_height, crop_width = place
    shape = (crop_height, crop_width)
    pixels = {
        "zeros": np.zeros(shape, bool),
        "ones": np.ones(shape, bool),
        "random": np.random.default_rng(1).random(shape) > 0.4,
        "columns": np.broadcast_to(np.arange(crop_width) % 3 != 1, shape).copy(),
    }[fill]
    whole = np.zeros((height, width), np.uint8)
    whole[top : top + crop_height, left : left + crop_width] = pixels
    expected = coco_mask.encode(np.asfortranarray(whole))

    found = rle_from_crop(MaskCrop(pixels, top, left), (height, width))

    assert found == {"size": [height, width], "counts": expected["counts"].decode()}
    np.testing.assert_array_equal(coco_mask.decode(found), whole)


def test_run_lengths_are_column_major_and_begin_with_zeros() -> None:
    crop = MaskCrop(np.array([[True, False], [True, True]]), top=1, left=0)
    # columns of 3: 0 1 1 | 0 0 1 | 0 0 0
    assert run_lengths(crop, (3, 3)) == [1, 2, 2, 1, 3]
    assert run_lengths(MaskCrop(np.ones((2, 2), bool), 0, 0), (2, 2)) == [0, 4]
    assert run_lengths(MaskCrop(np.zeros((0, 0), bool), 0, 0), (2, 2)) == [4]


def test_a_missing_pycocotools_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pycocotools", None)
    with pytest.raises(RuntimeError, match="expected pycocotools, found .*; `pip install pycocotools`"):
        rle_from_crop(MaskCrop(np.zeros((2, 2), bool), 0, 0), (2, 2))
