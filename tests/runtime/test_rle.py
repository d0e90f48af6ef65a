import sys

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from runtime.masks import MaskCrop
from runtime.rle import checked_counts, counts_from_runs, rle_from_crop, run_lengths, runs_from_counts

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


def _masks(num: int) -> list:
    """Return masks of all kinds: empty, full, thin, noisy, large."""
    generator = np.random.default_rng(0)
    shapes = [(1, 1), (1, 9), (9, 1), (30, 40), (333, 200), (1000, 900)]
    masks = []
    for index in range(num):
        shape = shapes[index % len(shapes)]
        masks.append(generator.random(shape) < (0, 1, 0.5, 0.01, 0.99)[index // len(shapes) % 5])
    return masks


def test_a_string_is_read_as_pycocotools_reads_it() -> None:
    for mask in _masks(60):
        counts = coco_mask.encode(np.asfortranarray(mask, np.uint8))["counts"]
        flat = mask.T.ravel()
        bounds = np.flatnonzero(np.diff(flat, prepend=False))
        expected = np.diff(np.concatenate(([0], bounds, [flat.size])))
        if len(expected) > 1 and expected[-1] == 0:
            expected = expected[:-1]
        np.testing.assert_array_equal(runs_from_counts(counts), expected)
        assert checked_counts(counts, mask.shape) == counts
        assert checked_counts(counts.decode(), mask.shape) == counts
        assert counts_from_runs(expected, mask.shape) == counts


@pytest.mark.parametrize(
    ("runs", "expected"),
    [
        ([3, 0, 3], [6]),
        ([0, 2, 0, 2, 2], [0, 4, 2]),
        ([2, 2, 2, 0], [2, 2, 2]),
        ([0, 0, 6], [6]),
        ([0, 0, 0, 6], [0, 6]),
        ([1, 2, 0, 0, 0, 1, 2], [1, 3, 2]),
        ([6, 0], [6]),
    ],
)
def test_empty_runs_between_others_are_joined(runs: list, expected: list) -> None:
    counts = coco_mask.frPyObjects({"size": [2, 3], "counts": runs}, 2, 3)["counts"]
    cleaned = checked_counts(counts, (2, 3))
    np.testing.assert_array_equal(runs_from_counts(cleaned), expected)
    np.testing.assert_array_equal(
        coco_mask.decode({"size": [2, 3], "counts": cleaned}),
        coco_mask.decode({"size": [2, 3], "counts": counts}),
    )


GOOD = coco_mask.encode(np.asfortranarray(np.eye(20, dtype=np.uint8)))["counts"].decode()
DAMAGED = {
    "": r"expected runs of 20 \* 20 = 400 pixels, found 0 in 0 runs",
    GOOD[:-1]: "pixels, found",
    GOOD + "1": "found 421 in",
    GOOD + "P": "expected a string with a whole last number",
    " " + GOOD: r"expected the characters '0' to 'o', found b' ' at 0",
    GOOD + "p": "found b'p' at",
    GOOD + "\x00": r"found b'\\x00' at",
    "é": r"found b'\\xc3' at 0",
    "\ud800": "expected the characters",
    "PPPPPP0": "expected numbers of up to 6 characters, found one of 7",
    "O": "expected runs of 0 or more pixels, found one of -1",
}


@pytest.mark.parametrize("counts", DAMAGED)
def test_a_damaged_string_is_refused(counts: str) -> None:
    with pytest.raises(ValueError, match=DAMAGED[counts]):
        checked_counts(counts, (20, 20))


def test_one_wrong_character_is_always_seen_or_harmless() -> None:
    """What passes, pycocotools computes with."""
    for index in range(len(GOOD)):
        for character in range(256):
            data = GOOD[:index].encode() + bytes([character]) + GOOD[index + 1 :].encode()
            try:
                counts = checked_counts(data, (20, 20))
            except ValueError:
                continue
            lengths = {"size": [20, 20], "counts": counts}
            assert coco_mask.iou([lengths], [{"size": [20, 20], "counts": GOOD.encode()}], [0])[0, 0] <= 1
