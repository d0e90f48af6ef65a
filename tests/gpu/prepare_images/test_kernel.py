"""The kernel that prepares images against cv2, the runtime and the CPU reference, bit for bit."""

import cv2
import numpy as np
import pytest

from tests.gpu.kernel_testing import MARKS, torch
from tests.gpu.prepare_images.kernel import prepare_images

pytestmark = MARKS

# One value per pixel value and channel, none of them twice: a wrong pixel is a wrong float.
TABLES = (np.arange(3 * 256, dtype=np.float32) + 1).reshape(3, 256)


def random_image(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    if rng.random() < 0.3:  # the largest steps there are
        return rng.choice(np.array([0, 255], np.uint8), (height, width, 3))
    return rng.integers(0, 256, (height, width, 3), dtype=np.uint8)


def random_sizes(rng: np.random.Generator, num: int, largest: int) -> list:
    return [
        tuple(size) for size in np.exp(rng.uniform(0, np.log(largest + 1), (num, 2))).astype(int).tolist()
    ]


def prepared_by_cv2(
    images: list, sizes: list, size: tuple, *, reverse_channels: bool, pad_value: float = 0.0
) -> np.ndarray:
    out = np.full((len(images), 3, *size), pad_value, np.float32)
    for image, (height, width), own in zip(images, sizes, out):
        resized = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
        for channel in range(3):
            values = resized[..., 2 - channel if reverse_channels else channel]
            own[channel, :height, :width] = TABLES[channel][values]
    return out


def prepared_by_kernel(
    images: list, sizes: list, size: tuple, *, reverse_channels: bool, pad_value: float = 0.0
) -> np.ndarray:
    tables = torch.from_numpy(TABLES).cuda()
    tensors = [image if torch.is_tensor(image) else torch.from_numpy(image).cuda() for image in images]
    # What the kernel does not write shows: its output comes from this block of torch's memory pool.
    torch.full((max(len(images), 1), 3, *size), float("nan"), device="cuda")
    found = prepare_images(
        tensors, sizes, size, tables=tables, reverse_channels=reverse_channels, pad_value=pad_value
    )
    return found.cpu().numpy()


def check(
    images: list, sizes: list, size: tuple, *, reverse_channels: bool = False, pad_value: float = 0.0
) -> None:
    settings = {"reverse_channels": reverse_channels, "pad_value": pad_value}
    expected = prepared_by_cv2(images, sizes, size, **settings)
    found = prepared_by_kernel(images, sizes, size, **settings)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("largest", [8, 60, 400, 2000])
def test_random_sizes_equal_cv2(largest: int) -> None:
    rng = np.random.default_rng(largest)
    for _ in range(200 if largest < 1000 else 20):
        batch = int(rng.integers(1, 5))
        sizes = random_sizes(rng, batch, largest)
        images = [random_image(rng, *size) for size in random_sizes(rng, batch, largest)]
        height, width = (max(size[axis] for size in sizes) + int(rng.integers(0, 40)) for axis in (0, 1))
        check(images, sizes, (height, width), reverse_channels=bool(rng.random() < 0.5))


@pytest.mark.parametrize(
    ("size", "resized"),
    [
        ((1, 1), (37, 53)),
        ((1, 5000), (3, 700)),  # one row, one column
        ((5000, 1), (1333, 2)),
        ((64, 96), (64, 96)),  # cv2 copies
        ((128, 192), (64, 96)),  # cv2 changes to INTER_AREA
        ((2, 2), (1, 1)),
        ((600, 1000), (1, 1)),
        ((2, 3), (300, 500)),
        ((1080, 1920), (750, 1333)),
        ((480, 640), (800, 1067)),
        ((2160, 3840), (800, 1216)),
    ],
)
def test_special_sizes_equal_cv2(size: tuple, resized: tuple) -> None:
    check([random_image(np.random.default_rng(0), *size)], [resized], resized)


@pytest.mark.parametrize("batch", [1, 8, 32, 33, 70])
def test_batches_of_any_number(batch: int) -> None:
    """More than 32 images take several launches."""
    rng = np.random.default_rng(batch)
    sizes = [(int(rng.integers(1, 65)), int(rng.integers(1, 97))) for _ in range(batch)]
    check([random_image(rng, *size) for size in random_sizes(rng, batch, 100)], sizes, (64, 96))


@pytest.mark.parametrize("top", range(4))
@pytest.mark.parametrize("left", range(4))
def test_crops_are_read_by_their_strides(top: int, left: int) -> None:
    """The first pixel at any address, and rows at any distance."""
    rng = np.random.default_rng(4)
    for width in (37, 38, 39, 40):
        whole = random_image(rng, 50, width + 7)
        crop = torch.from_numpy(whole).cuda()[top : top + 40, left : left + width]
        expected = prepared_by_cv2(
            [np.ascontiguousarray(whole[top : top + 40, left : left + width])],
            [(64, 96)],
            (64, 96),
            reverse_channels=True,
        )
        found = prepared_by_kernel([crop], [(64, 96)], (64, 96), reverse_channels=True)
        np.testing.assert_array_equal(found, expected)


def test_random_sizes_equal_the_cpu_reference() -> None:
    reference = pytest.importorskip("plugins._reference")
    rng = np.random.default_rng(5)
    for _ in range(300):
        sizes = random_sizes(rng, 2, 200)
        images = [random_image(rng, *size) for size in random_sizes(rng, 2, 200)]
        size = tuple(np.max(sizes, axis=0).tolist())
        expected = reference.prepare_images(images, sizes, *size, TABLES, True)
        np.testing.assert_array_equal(
            prepared_by_kernel(images, sizes, size, reverse_channels=True), expected
        )


@pytest.mark.parametrize("reverse_channels", [False, True])
@pytest.mark.parametrize(
    "pad_value", [0.0, -0.0, 114.0, -2.1179039, 0.5, 3e38, 1e-45, float("inf"), float("nan")]
)
def test_what_is_outside_an_image_is_the_pad_value(pad_value: float, reverse_channels: bool) -> None:
    """Images of several sizes in a batch: padded below, on the right, on both sides, by one pixel, not at all."""
    rng = np.random.default_rng(11)
    size = (65, 99)
    sizes = [(65, 99), (64, 99), (65, 98), (1, 1), (33, 50), (7, 99), (65, 3)]
    images = [random_image(rng, *own) for own in random_sizes(rng, len(sizes), 120)]
    settings = {"reverse_channels": reverse_channels, "pad_value": pad_value}
    check(images, sizes, size, **settings)
    found = prepared_by_kernel(images, sizes, size, **settings)
    for (height, width), own in zip(sizes, found):
        outside = np.ones(size, bool)
        outside[:height, :width] = False
        # Bit for bit: -0 is not 0, and NaN is the NaN that was asked for.
        bits = np.float32(pad_value).view(np.uint32)
        np.testing.assert_array_equal(own[:, outside].view(np.uint32), np.full((3, outside.sum()), bits))


@pytest.mark.parametrize("pad_value", [114.0, -1.5])
@pytest.mark.parametrize("reverse_channels", [False, True])
def test_a_pad_value_in_several_launches(reverse_channels: bool, pad_value: float) -> None:
    """Every image of more than one launch gets it."""
    rng = np.random.default_rng(12)
    sizes = random_sizes(rng, 40, 48)
    images = [random_image(rng, *own) for own in random_sizes(rng, 40, 60)]
    check(images, sizes, (48, 50), reverse_channels=reverse_channels, pad_value=pad_value)


@pytest.mark.parametrize("pad_value", [0.0, 7.25])
def test_a_pad_value_equals_the_cpu_references(pad_value: float) -> None:
    reference = pytest.importorskip("plugins._reference")
    rng = np.random.default_rng(13)
    for reverse_channels in (False, True):
        sizes = random_sizes(rng, 3, 90)
        images = [random_image(rng, *own) for own in random_sizes(rng, 3, 90)]
        expected = reference.prepare_images(images, sizes, 95, 91, TABLES, reverse_channels, pad_value)
        settings = {"reverse_channels": reverse_channels, "pad_value": pad_value}
        np.testing.assert_array_equal(prepared_by_kernel(images, sizes, (95, 91), **settings), expected)


def test_no_images() -> None:
    assert prepared_by_kernel([], [], (64, 96), reverse_channels=False).shape == (0, 3, 64, 96)


@pytest.mark.parametrize(
    ("resized", "size"), [((65, 96), (64, 96)), ((64, 97), (64, 96)), ((0, 96), (64, 96)), ((1, 1), (0, 96))]
)
def test_sizes_that_do_not_fit_are_refused(resized: tuple, size: tuple) -> None:
    image = torch.zeros((4, 5, 3), dtype=torch.uint8, device="cuda")
    with pytest.raises(RuntimeError, match="prepare_images: invalid argument"):
        prepare_images(
            [image], [resized], size, tables=torch.from_numpy(TABLES).cuda(), reverse_channels=False
        )


def test_images_without_dense_rows_are_refused() -> None:
    image = torch.zeros((4, 5, 4), dtype=torch.uint8, device="cuda")[..., :3]
    with pytest.raises(
        ValueError, match=r"images\[0\]: expected .* dense rows, found \(4, 5, 3\) torch.uint8"
    ):
        prepare_images(
            [image], [(8, 9)], (8, 9), tables=torch.from_numpy(TABLES).cuda(), reverse_channels=False
        )


def test_capture_in_a_graph_reads_the_images_again() -> None:
    rng = np.random.default_rng(6)
    image = torch.from_numpy(random_image(rng, 100, 150)).cuda()
    tables = torch.from_numpy(TABLES).cuda()
    arguments = {"tables": tables, "reverse_channels": True}
    prepare_images([image], [(64, 96)], (64, 96), **arguments)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = prepare_images([image], [(64, 96)], (64, 96), **arguments)
    for _ in range(3):
        pixels = random_image(rng, 100, 150)
        image.copy_(torch.from_numpy(pixels))
        graph.replay()
        expected = prepared_by_cv2([pixels], [(64, 96)], (64, 96), reverse_channels=True)
        np.testing.assert_array_equal(output.cpu().numpy(), expected)
