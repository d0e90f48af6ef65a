"""plugins._reference.prepare_images against cv2.resize and runtime.host.preprocess.prepare, bit for bit."""

from collections.abc import Sequence

import cv2
import numpy as np
import pytest

from plugins import _reference
from runtime.host.preprocess import prepare
from runtime.transforms import Fit, Resize, Step
from tests.runtime import fakes

# One value per pixel value and channel, none of them twice: a wrong pixel is a wrong float.
TABLES = (np.arange(3 * 256, dtype=np.float32) + 1).reshape(3, 256)


def random_image(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    if rng.random() < 0.3:  # the largest steps there are
        return rng.choice(np.array([0, 255], np.uint8), (height, width, 3))
    return rng.integers(0, 256, (height, width, 3), dtype=np.uint8)


def check(
    images: Sequence[np.ndarray],
    sizes: Sequence[tuple[int, int]],
    size: tuple[int, int],
    *,
    reverse_channels: bool = False,
) -> None:
    expected = np.zeros((len(images), 3, *size), np.float32)
    for image, (height, width), out in zip(images, sizes, expected):
        resized = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
        for channel in range(3):
            values = resized[..., 2 - channel if reverse_channels else channel]
            out[channel, :height, :width] = TABLES[channel][values]
    found = _reference.prepare_images(list(images), list(sizes), *size, TABLES, reverse_channels)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("largest", [8, 60, 400])
def test_random_sizes_equal_cv2(largest: int) -> None:
    rng = np.random.default_rng(largest)
    for _ in range(700):
        height, width, *size = np.exp(rng.uniform(0, np.log(largest + 1), 4)).astype(int).tolist()
        check([random_image(rng, height, width)], [tuple(size)], tuple(size))


@pytest.mark.parametrize(
    ("size", "resized"),
    [
        ((1, 1), (1, 1)),
        ((1, 1), (37, 53)),
        ((1, 2), (1, 9)),
        ((2, 1), (9, 1)),
        ((1, 5000), (3, 700)),  # one row, one column
        ((5000, 1), (1333, 2)),
        ((3, 4000), (40, 40)),
        ((64, 96), (64, 96)),  # cv2 copies
        ((128, 192), (64, 96)),  # cv2 changes to INTER_AREA
        ((2, 2), (1, 1)),
        ((128, 96), (64, 96)),  # half the height only
        ((64, 192), (64, 96)),
        ((256, 384), (64, 96)),
        ((192, 288), (64, 96)),
        ((129, 193), (64, 96)),  # all but half
        ((127, 191), (64, 96)),
        ((32, 48), (64, 96)),
        ((63, 95), (64, 96)),
        ((600, 1000), (1, 1)),
        ((2, 3), (300, 500)),  # most of the output lies beyond the outermost centres
        ((1080, 1920), (750, 1333)),
        ((1080, 1920), (684, 1216)),
        ((480, 640), (800, 1067)),
        ((427, 640), (800, 1199)),
        ((2160, 3840), (750, 1333)),
    ],
)
def test_special_sizes_equal_cv2(size: tuple[int, int], resized: tuple[int, int]) -> None:
    check([random_image(np.random.default_rng(0), *size)], [resized], resized)


@pytest.mark.parametrize("reverse_channels", [False, True])
def test_a_batch_is_padded_with_zeros(reverse_channels: bool) -> None:
    rng = np.random.default_rng(2)
    images = [random_image(rng, *size) for size in [(30, 40), (90, 20), (7, 5), (64, 96)]]
    sizes = [(48, 64), (64, 14), (64, 46), (1, 96)]
    check(images, sizes, (64, 96), reverse_channels=reverse_channels)


@pytest.mark.parametrize("color_order", ["rgb", "bgr"])
@pytest.mark.parametrize(
    ("step", "size"),
    [
        (Resize(scale=(1333, 800), keep_ratio=True), None),
        (Fit((800, 1216)), (800, 1216)),
        (Resize(scale=(256, 320)), (320, 256)),
    ],
)
def test_batches_equal_the_runtimes(step: Step, size: "tuple[int, int] | None", color_order: str) -> None:
    rng = np.random.default_rng(3)
    images = [random_image(rng, *size) for size in [(1080, 1920), (480, 640), (640, 427), (31, 33)]]
    facts = fakes.metadata(
        mean=(103.53, 116.28, 123.675),
        std=(57.375, 1.0, 58.395),
        color_order=color_order,
        steps=(step,),
        size=size,
    )
    expected = prepare(images, facts)
    mean, std = np.array(facts.mean, np.float32), np.array(facts.std, np.float32)
    tables = (np.arange(256, dtype=np.float32) - mean[:, None]) / std[:, None]

    sizes = [tuple(size) for size in expected.image_sizes.astype(int).tolist()]
    found = _reference.prepare_images(images, sizes, *expected.images.shape[2:], tables, color_order == "rgb")

    np.testing.assert_array_equal(found, expected.images)


def test_no_images() -> None:
    assert _reference.prepare_images([], [], 64, 96, TABLES, False).shape == (0, 3, 64, 96)


IMAGE = np.zeros((4, 5, 3), np.uint8)


@pytest.mark.parametrize(
    ("images", "sizes", "size", "message"),
    [
        ([IMAGE], [(8, 9)], (0, 9), "height, width: expected 1 to 1048576, found 0, 9"),
        ([IMAGE], [(8, 9)], (8, 1 << 21), "height, width: expected 1 to 1048576"),
        ([IMAGE], [(9, 9)], (8, 9), "sizes: expected 1 x 1 to 8 x 9, found 9 x 9"),
        ([IMAGE], [(8, 0)], (8, 9), "sizes: expected 1 x 1 to 8 x 9, found 8 x 0"),
        ([IMAGE], [], (8, 9), "sizes: expected one .* per image, found 1 images, 0 sizes"),
        (
            [IMAGE[..., 0]],
            [(8, 9)],
            (8, 9),
            r"images: expected a C-contiguous uint8 array of shape \(\*, \*, 3\)",
        ),
        ([IMAGE[:, ::-1]], [(8, 9)], (8, 9), "images: expected .* not C-contiguous"),
        ([IMAGE.astype(np.float32)], [(8, 9)], (8, 9), "images: expected .* found float32"),
        ([IMAGE[:0]], [(8, 9)], (8, 9), "images: expected a height and width of 1 to 1048576"),
    ],
)
def test_bad_arguments_are_refused(images: list, sizes: list, size: tuple[int, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _reference.prepare_images(images, sizes, *size, TABLES, False)


def test_bad_tables_are_refused() -> None:
    with pytest.raises(
        ValueError, match=r"tables: expected a C-contiguous float32 array of shape \(3, 256\)"
    ):
        _reference.prepare_images([IMAGE], [(8, 9)], 8, 9, TABLES[:, :255], False)
