import mmcv
import numpy as np
import pytest
import torch
from mmdet.datasets import transforms as mmdet
from mmdet.models.data_preprocessors import DetDataPreprocessor

from runtime.host.preprocess import network_size, prepare
from runtime.transforms import Fit, Resize
from tests.runtime import fakes

# height, width: landscape, portrait, tiny, square, extreme, and edges whose scaled length is near a half
SIZES = [
    (480, 640),
    (640, 480),
    (17, 23),
    (64, 64),
    (30, 299),
    (299, 30),
    (427, 639),
    (333, 501),
    (1, 1),
    (1080, 1919),
]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("scale", [(1333, 800), (96, 64), (256, 320)])
def test_keep_ratio_is_mmcvs_rescale_size(size: tuple[int, int], scale: tuple[int, int]) -> None:
    height, width = size
    expected_width, expected_height = mmcv.rescale_size((width, height), scale)
    assert Resize(scale=scale, keep_ratio=True).size(height, width) == (expected_height, expected_width)


@pytest.mark.parametrize("size", SIZES)
def test_fit_touches_the_box_and_never_exceeds_it(size: tuple[int, int]) -> None:
    height, width = Fit((64, 96)).size(*size)
    assert (height == 64 and width <= 96) or (width == 96 and height <= 64)
    # At most half a pixel off the aspect ratio, except where one pixel is the least there can be.
    scale = min(64 / size[0], 96 / size[1])
    assert abs(height - size[0] * scale) <= 0.5 or height == 1
    assert abs(width - size[1] * scale) <= 0.5 or width == 1


def test_stretch_is_the_size_itself() -> None:
    assert Resize(scale=(96, 64)).size(10, 999) == (64, 96)


def test_an_edge_is_never_rounded_to_nothing() -> None:
    assert Resize(scale=(96, 64), keep_ratio=True).size(1, 5000) == (1, 96)
    assert Fit((64, 96)).size(1, 5000) == (1, 96)


@pytest.mark.parametrize("color_order", ["rgb", "bgr"])
@pytest.mark.parametrize(
    ("mean", "std"),
    [
        ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375)),
        ((103.53, 116.28, 123.675), (1.0, 1.0, 1.0)),
        ((0.1, 0.3, 127.7), (255.0, 3.3, 0.7)),
    ],
)
def test_a_batch_is_mmdets_to_the_last_bit(mean: tuple, std: tuple, color_order: str) -> None:
    """The whole way: mmdet's Resize, then its DetDataPreprocessor, on a batch of mixed sizes."""
    images = [
        fakes.random_image(h, w, seed)
        for seed, (h, w) in enumerate([(120, 200), (201, 90), (64, 96), (33, 31)])
    ]
    facts = fakes.metadata(
        mean=mean,
        std=std,
        color_order=color_order,
        size=None,
        steps=(Resize(scale=(160, 96), keep_ratio=True),),
    )
    resize = mmdet.Resize(scale=(160, 96), keep_ratio=True)
    resized = [resize.transform({"img": image}) for image in images]
    preprocessor = DetDataPreprocessor(
        mean=list(mean), std=list(std), bgr_to_rgb=color_order == "rgb", pad_size_divisor=facts.size_divisor
    )
    tensors = [torch.from_numpy(np.ascontiguousarray(r["img"].transpose(2, 0, 1))) for r in resized]
    expected = preprocessor({"inputs": tensors}, training=False)["inputs"].numpy()

    batch = prepare(images, facts)

    assert batch.images.dtype == np.float32
    np.testing.assert_array_equal(batch.images, expected)
    assert batch.image_sizes.dtype == np.float32
    np.testing.assert_array_equal(batch.image_sizes, [r["img_shape"] for r in resized])
    np.testing.assert_array_equal(batch.scale_factors, [r["scale_factor"] for r in resized])
    assert batch.original_sizes == ((120, 200), (201, 90), (64, 96), (33, 31))


def test_stretch_is_mmdets_resize_without_keep_ratio() -> None:
    image = fakes.random_image(50, 70)
    expected = mmdet.Resize(scale=(96, 64), keep_ratio=False).transform({"img": image})
    batch = prepare([image], fakes.metadata(steps=(Resize(scale=(96, 64)),)))
    np.testing.assert_array_equal(batch.image_sizes, [expected["img_shape"]])
    np.testing.assert_array_equal(batch.scale_factors, [expected["scale_factor"]])


def test_a_fixed_size_pads_with_zeros_after_normalisation() -> None:
    batch = prepare([np.zeros((64, 48, 3), np.uint8)], fakes.metadata())
    assert batch.images.shape == (1, 3, 64, 96)
    assert (batch.images[..., 48:] == 0).all()
    assert (batch.images[..., :48] < -1).all()


def test_a_non_contiguous_image_is_read_by_its_strides() -> None:
    image = fakes.random_image(64, 96)
    mirrored = image[:, ::-1]
    expected = prepare([mirrored.copy()], fakes.metadata()).images
    np.testing.assert_array_equal(prepare([mirrored], fakes.metadata()).images, expected)


def test_no_images_make_an_empty_batch() -> None:
    batch = prepare([], fakes.metadata())
    assert batch.images.shape == (0, 3, 64, 96)
    assert batch.image_sizes.shape == batch.scale_factors.shape == (0, 2)
    assert len(batch) == 0


def test_an_image_that_does_not_fit_the_fixed_size_is_refused() -> None:
    facts = fakes.metadata(steps=(Resize(scale=(96, 64), keep_ratio=True),))
    assert network_size(48, 96, facts) == (48, 96)
    with pytest.raises(
        ValueError,
        match=r"image of 96x48 px .* fixed 64x96 .* found 96x48; export the model without --size",
    ):
        prepare([fakes.random_image(96, 48)], facts)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        ("street.jpg", r"images\[0\]: expected .* found str; read files with runtime.images.read_image"),
        (np.zeros((4, 4), np.uint8), r"found shape \(4, 4\) uint8; convert grey images with cv2.cvtColor"),
        (np.zeros((4, 4, 1), np.uint8), r"found shape \(4, 4, 1\) uint8; convert grey images"),
        (np.zeros((4, 4, 4), np.uint8), r"found shape \(4, 4, 4\) uint8; drop the alpha channel"),
        (
            np.zeros((3, 4, 5), np.uint8),
            r"found shape \(3, 4, 5\) uint8; pass a list of images, .* channels last",
        ),
        (np.zeros((1, 4, 4, 3), np.uint8), r"found shape \(1, 4, 4, 3\) uint8; pass a list"),
        (
            np.zeros((4, 4, 3), np.float32),
            r"found shape \(4, 4, 3\) float32; pass pixel values of 0 to 255 as uint8",
        ),
        (np.zeros((0, 4, 3), np.uint8), r"found shape \(0, 4, 3\) uint8; it has no pixels"),
    ],
)
def test_what_is_not_an_image_is_refused(image: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        prepare([image], fakes.metadata())
