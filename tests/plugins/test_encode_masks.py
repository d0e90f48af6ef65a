"""plugins._reference.encode_masks against pycocotools, and masks pasted by torch and by the runtime."""

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask

from plugins import _reference
from runtime.host.postprocess import paste_mask, paste_probabilities, rescale_boxes
from runtime.rle import rle_from_crop
from tests.gpu.oracles import paste_oracle

# Two orders of the same float32 arithmetic: a probability this close to the threshold may fall to either side.
UNDECIDED = 1e-6
NAN, INF = float("nan"), float("inf")


def encoded(
    masks: np.ndarray,
    boxes: np.ndarray,
    size: tuple[int, int],
    *,
    scale: tuple[float, float] = (1, 1),
    **settings,
) -> list[bytes]:
    """Encode masks (K, h, w) at boxes (K, 4) of one image of (height, width)."""
    dets = np.column_stack([boxes, np.ones(len(boxes))]).astype(np.float32)[None]
    masks = np.ascontiguousarray(masks, np.float32)[None]
    num_dets, sizes = np.array([len(boxes)], np.int32), np.array([size], np.int32)
    return _reference.encode_masks(masks, dets, num_dets, sizes, np.array([scale], np.float32), **settings)[0]


def decoded(counts: bytes, size: tuple[int, int]) -> np.ndarray:
    return coco_mask.decode({"size": list(size), "counts": counts})


def coco_counts(image: np.ndarray) -> bytes:
    return coco_mask.encode(np.asfortranarray(image.astype(np.uint8)))["counts"]


def smooth_masks(rng: np.random.Generator, num_masks: int, size: tuple[int, int] = (28, 28)) -> np.ndarray:
    coarse = torch.from_numpy(rng.random((num_masks, 1, 4, 4)).astype(np.float32))
    return torch.nn.functional.interpolate(coarse, size=size, mode="bilinear")[:, 0].contiguous().numpy()


def random_boxes(rng: np.random.Generator, num_boxes: int, size: tuple[int, int]) -> np.ndarray:
    height, width = size
    centers = rng.uniform(-0.1, 1.1, (num_boxes, 2)) * (width, height)
    sides = np.exp(rng.uniform(np.log(0.01), np.log(1.5), (num_boxes, 2))) * (width, height)
    return np.hstack([centers - sides / 2, centers + sides / 2]).astype(np.float32)


# height, width of the image; top, left, height, width of a box with a mask cell per pixel
PLACES = [
    (9, 7, 2, 3, 4, 2),
    (9, 7, 0, 0, 9, 7),
    (9, 7, 0, 2, 9, 3),  # as high as the image: runs go on from a column's bottom at the next one's top
    (9, 7, 0, 4, 9, 3),
    (9, 7, 5, 0, 4, 7),  # reaches the bottom, and the next column begins with zeros
    (9, 7, 0, 0, 3, 7),
    (9, 7, 8, 6, 1, 1),
    (9, 7, 0, 0, 1, 1),
    (9, 7, -3, -2, 20, 30),
    (9, 7, -3, -2, 5, 4),
    (9, 7, 6, 5, 9, 9),
    (1, 7, 0, 1, 1, 5),
    (9, 1, 2, 0, 5, 1),
    (1, 1, 0, 0, 1, 1),
    (80, 70, 10, 20, 60, 50),
    (80, 70, 0, 0, 80, 70),
]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("fill", ["zeros", "ones", "random", "columns", "rows"])
def test_pixels_are_packed_as_pycocotools_packs_them(place: tuple, fill: str) -> None:
    height, width, top, left, mask_height, mask_width = place
    shape = (mask_height, mask_width)
    mask = {
        "zeros": np.zeros(shape, bool),
        "ones": np.ones(shape, bool),
        "random": np.random.default_rng(1).random(shape) > 0.4,
        "columns": np.broadcast_to(np.arange(mask_width) % 3 != 1, shape),
        "rows": np.broadcast_to((np.arange(mask_height) % 3 != 1)[:, None], shape),
    }[fill]
    around = np.pad(np.zeros((height, width), bool), 40)
    around[40 + top : 40 + top + mask_height, 40 + left : 40 + left + mask_width] = mask
    image = around[40 : 40 + height, 40 : 40 + width]

    box = np.array([[left, top, left + mask_width, top + mask_height]], np.float32)
    assert encoded(mask[None], box, (height, width)) == [coco_counts(image)]


def test_random_bits_are_packed_as_pycocotools_packs_them() -> None:
    rng = np.random.default_rng(2)
    for _ in range(300):
        size = tuple(rng.integers(1, 90, 2).tolist())
        image = rng.random(size) < rng.choice([0.02, 0.5, 0.98])
        box = np.array([[0, 0, size[1], size[0]]], np.float32)
        assert encoded(image[None], box, size) == [coco_counts(image)]


def test_runs_of_billions_of_pixels() -> None:
    size, box = (40000, 50000), np.array([[49990, 39990, 49994, 39995]], np.float32)
    runs = [49990 * 40000 + 39990, *[5, 39995] * 3, 5]
    runs.append(size[0] * size[1] - sum(runs))
    expected = coco_mask.frPyObjects({"size": list(size), "counts": runs}, *size)["counts"]
    assert encoded(np.ones((1, 28, 28)), box, size, threshold=0.75) == [expected]
    outside = coco_mask.frPyObjects({"size": list(size), "counts": [size[0] * size[1]]}, *size)["counts"]
    assert encoded(np.ones((1, 28, 28)), box + 60000, size) == [outside]


@pytest.mark.parametrize("threshold", [0.3, 0.5])
@pytest.mark.parametrize("size", [(97, 160), (300, 41)])
def test_pixels_are_those_of_grid_sample(size: tuple[int, int], threshold: float) -> None:
    rng = np.random.default_rng(3)
    masks, boxes = smooth_masks(rng, 60), random_boxes(rng, 60, size)
    boxes[0] = (0, 0, size[1], size[0])
    boxes[1] = (-30, -30, size[1] + 30, size[0] + 30)
    boxes[2] = (10, 12, 10, 30)  # no width: mmdet shows the mask's middle column
    boxes[3] = (10.5, 12, 10.5, 30)  # no width, on a pixel's centre: 0 / 0
    boxes[4] = (10, 12, 30, 12)
    boxes[5] = (10.5, 12.5, 10.5, 12.5)
    boxes[6] = (10.2, 12.2, 9.9, 11.9)
    probabilities = paste_oracle(torch.from_numpy(masks), torch.from_numpy(boxes), *size).numpy()
    for counts, expected in zip(encoded(masks, boxes, size, threshold=threshold), probabilities):
        found = decoded(counts, size)
        decided = ~(np.abs(expected - threshold) < UNDECIDED)
        np.testing.assert_array_equal(found[decided], (expected >= threshold)[decided])
        assert counts == coco_counts(found)


@pytest.mark.parametrize("mask_size", [(28, 28), (14, 56), (1, 1)])
def test_strings_are_the_runtimes(mask_size: tuple[int, int]) -> None:
    rng = np.random.default_rng(4)
    size, scale = (211, 333), (0.7123, 1.3)
    masks = smooth_masks(rng, 80, mask_size) * (2 if mask_size == (1, 1) else 1)
    dets = random_boxes(rng, 80, (int(size[0] * scale[1]), int(size[1] * scale[0])))
    boxes = rescale_boxes(dets, np.array(scale))
    num_equal = 0
    for counts, mask, box in zip(encoded(masks, dets, size, scale=scale), masks, boxes):
        crop = paste_mask(mask, box, size, 0.5)
        probabilities = paste_probabilities(mask, box, size)[0]
        decided = ~(np.abs(probabilities - 0.5) < UNDECIDED)
        np.testing.assert_array_equal(decoded(counts, size)[crop.window][decided], crop.pixels[decided])
        num_equal += counts.decode() == rle_from_crop(crop, size)["counts"]
    assert num_equal >= 75


@pytest.mark.parametrize("threshold", [0.5, 0.0, -1.0])
@pytest.mark.parametrize(
    "box",
    [
        [80, 5, 90, 20],
        [5, 70, 20, 90],
        [-90, -90, -50, -50],
        [NAN, 5, 20, 20],
        [5, NAN, 20, 20],
        [5, 5, NAN, 20],
        [5, 5, 20, NAN],
        [30, 30, 10, 10],
        [INF, 5, INF, 20],
        [-INF, 5, 20, 20],
        [-INF, -INF, INF, INF],
    ],
)
def test_boxes_without_pixels_are_one_run_of_zeros(box: list[float], threshold: float) -> None:
    masks = np.ones((1, 28, 28), np.float32)
    assert len(paste_mask(masks[0], np.array(box, np.float32), (48, 64), threshold).pixels.nonzero()[0]) == 0
    found = encoded(masks, np.array([box], np.float32), (48, 64), threshold=threshold)
    assert found == [coco_counts(np.zeros((48, 64)))]


def test_nan_in_the_mask_is_background() -> None:
    masks = np.ones((1, 4, 4), np.float32)
    masks[0, 1, 1] = NAN
    pixels = decoded(encoded(masks, np.array([[0, 0, 40, 40]], np.float32), (40, 40))[0], (40, 40))
    assert (pixels[5:25, 5:25] == 0).all()
    assert pixels[:4, 6:34].all()
    assert pixels[26:34, 6:34].all()


def test_threshold_zero_fills_the_window() -> None:
    expected = np.zeros((40, 32))
    expected[5:23, 4:21] = 1  # one pixel more than the box on every side, as mmdet
    box = np.array([[5.5, 6.0, 20.0, 21.5]], np.float32)
    assert encoded(np.zeros((1, 28, 28)), box, (40, 32), threshold=0.0) == [coco_counts(expected)]


def test_two_images_of_their_own_sizes_counts_and_scales() -> None:
    rng = np.random.default_rng(5)
    sizes, scales = np.array([[48, 64], [70, 31]], np.int32), np.array([[0.5, 0.5], [2, 1]], np.float32)
    masks, boxes = smooth_masks(rng, 6).reshape(2, 3, 28, 28), random_boxes(rng, 6, (40, 50)).reshape(2, 3, 4)
    scores = np.array([[0.9, 0.5, 0.3], [0.8, NAN, 0.7]], np.float32)
    dets = np.concatenate([boxes, scores[..., None]], axis=2)
    num_dets = np.array([3, 2], np.int32)
    found = _reference.encode_masks(masks, dets, num_dets, sizes, scales, min_score=0.5)
    own = [
        encoded(masks[b], boxes[b], tuple(sizes[b].tolist()), scale=tuple(scales[b].tolist())) for b in (0, 1)
    ]
    assert found == [[own[0][0], own[0][1], b""], [own[1][0], b"", b""]]
    assert all(own[0] + own[1])
    for counts in (np.array([-1, 0], np.int32), np.array([0, -(2**31)], np.int32)):
        assert _reference.encode_masks(masks, dets, counts, sizes, scales) == [[b""] * 3] * 2


@pytest.mark.parametrize(("batch", "num_masks"), [(0, 3), (2, 0)])
def test_nothing_to_encode(batch: int, num_masks: int) -> None:
    masks, dets = np.ones((batch, num_masks, 28, 28), np.float32), np.ones((batch, num_masks, 5), np.float32)
    num_dets, sizes = np.zeros(batch, np.int32), np.ones((batch, 2), np.int32)
    assert _reference.encode_masks(masks, dets, num_dets, sizes, sizes.astype(np.float32)) == [[]] * batch


MASKS, DETS = np.zeros((1, 2, 28, 28), np.float32), np.zeros((1, 2, 5), np.float32)
NUM_DETS, SIZES, SCALES = np.array([2], np.int32), np.array([[48, 64]], np.int32), np.ones((1, 2), np.float32)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"dets": DETS[:, :1]}, r"dets: .*\(1, 2, 5\), found float32 \(1, 1, 5\)"),
        ({"masks": MASKS > 0}, "masks: .*float32.*found bool"),
        ({"masks": np.zeros((1, 2, 28, 0), np.float32)}, "masks: expected 1 to 1024 cells"),
        ({"masks": np.zeros((1, 2, 1025, 1), np.float32)}, "masks: expected 1 to 1024 cells"),
        ({"num_dets": NUM_DETS.astype(np.int64)}, "num_dets: .*int32.*found int64"),
        ({"sizes": SIZES * -1}, "sizes: expected heights and widths .*, found -48 x -64"),
        ({"sizes": SIZES * 1000}, "sizes: expected .*at most 2147483647 pixels.*, found 48000 x 64000"),
        ({"scales": SCALES[:, :1]}, r"scales: .*\(1, 2\), found float32 \(1, 1\)"),
    ],
)
def test_wrong_arguments_are_named(changed: dict, message: str) -> None:
    arguments = {"masks": MASKS, "dets": DETS, "num_dets": NUM_DETS, "sizes": SIZES, "scales": SCALES}
    with pytest.raises(ValueError, match=message):
        _reference.encode_masks(**{**arguments, **changed})
