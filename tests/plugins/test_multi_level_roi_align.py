"""plugins._reference.multi_level_roi_align: which level an RoI is read from, and what is read there."""

import numpy as np
import pytest
import torch

from plugins import _reference
from tests.plugins.roi_align_oracle import roi_align_oracle

FORWARD_ATOL = 1e-5  # float32 sums of some hundred standard normal values against float64 sums
STRIDES = (4, 8, 16, 32)
SCALES = [1 / stride for stride in STRIDES]


def pyramid(image_px: int, *, channels: int = 2, batch: int = 2) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    sizes = [(image_px // stride, image_px // stride + 3) for stride in STRIDES]
    return [rng.standard_normal((batch, channels, *size)).astype(np.float32) for size in sizes]


def level_of(width_px: float, height_px: float, num_levels: int = 4) -> int:
    """Read the level off feature maps that hold nothing but their level's number."""
    maps = [np.full((1, 1, 64, 64), level, np.float32) for level in range(num_levels)]
    rois = np.array([[0, 8, 8, 8 + width_px, 8 + height_px]], np.float32)
    # Large RoIs leave the map; a maximum sees the number all the same.
    out = _reference.multi_level_roi_align(
        maps, rois, 2, 2, SCALES[:num_levels], mode="max", sampling_ratio=2
    )
    return int(out.max())


@pytest.mark.parametrize(
    ("side_px", "level"),
    [(1, 0), (56, 0), (111.9, 0), (112, 1), (223.9, 1), (224, 2), (447.9, 2), (448, 3), (896, 3), (2000, 3)],
)
def test_level_changes_exactly_at_powers_of_two(side_px: float, level: int) -> None:
    assert level_of(side_px, side_px) == level


def test_level_is_that_of_the_area() -> None:
    assert level_of(448, 28) == level_of(28, 448) == level_of(112, 112) == 1
    assert level_of(300, 300, num_levels=1) == 0


def test_each_roi_is_read_from_its_level() -> None:
    rng = np.random.default_rng(1)
    maps = pyramid(256)
    corners = rng.uniform(-20, 200, (60, 2))
    sizes = np.exp(rng.uniform(np.log(4), np.log(900), (60, 2)))
    rois = np.hstack([rng.integers(0, 2, (60, 1)), corners, corners + sizes]).astype(np.float32)
    sides = np.sqrt((rois[:, 3] - rois[:, 1]) * (rois[:, 4] - rois[:, 2]))
    levels = np.clip(np.floor(np.log2(sides / np.float32(56) + np.float32(1e-6))), 0, 3).astype(int)
    assert set(levels) == {0, 1, 2, 3}
    out = _reference.multi_level_roi_align(maps, rois, 7, 5, SCALES)
    for roi, level, values in zip(rois, levels, out):
        features = torch.from_numpy(maps[level]).double()
        expected = roi_align_oracle(features, roi[None], (7, 5), spatial_scale=SCALES[level])[0]
        np.testing.assert_allclose(values, expected.numpy(), rtol=0, atol=FORWARD_ATOL)


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    "roi",
    [
        [0, 9, 9, 3, 20],
        [0, NAN, 0, 9, 9],
        [2, 0, 0, 9, 9],
        [NAN, 0, 0, 9, 9],
        [0, 4, 4, 4, 4],
        [0, INF, 0, INF, 9],
    ],
)
def test_rois_without_a_meaning_give_zeros(roi: list[float]) -> None:
    out = _reference.multi_level_roi_align(pyramid(64), np.array([roi], np.float32), 7, 7, SCALES)
    assert (out == 0).all()


def test_int8_is_what_quantizelinear_makes_of_the_floats() -> None:
    """Rounded half to even, as torch rounds, and clamped: ties are pixels of half a step more."""
    step = np.float32(0.1)
    ramp = ((np.arange(-16 * 16, 16 * 16, 2) * 0.5 + 0.5).astype(np.float32) * step).reshape(1, 1, 16, 16)
    y, x = np.mgrid[:16, :16].reshape(2, -1)
    # One sample in the middle of a pixel is that pixel.
    rois = np.stack([0 * x, x, y, x + 1, y + 1], axis=1).astype(np.float32)
    arguments = ([ramp], rois, 1, 1, [1.0])
    floats = _reference.multi_level_roi_align(*arguments, sampling_ratio=1)
    np.testing.assert_array_equal(floats.ravel(), ramp.ravel())
    found = _reference.multi_level_roi_align(*arguments, sampling_ratio=1, output_scale=float(step))
    assert found.dtype == np.int8
    quotients = torch.from_numpy(floats / step)
    np.testing.assert_array_equal(found, quotients.round().clamp(-128, 127).numpy())
    coarse = _reference.multi_level_roi_align(*arguments, sampling_ratio=1, output_scale=0.02)
    assert (coarse.min(), coarse.max()) == (-128, 127)


def test_int8_of_nan_is_zero_and_of_huge_values_the_ends() -> None:
    maps = [np.array([NAN, 1e30, -1e30], np.float32).reshape(3, 1, 1, 1)]
    rois = np.array([[i, 0, 0, 1, 1] for i in range(3)], np.float32)
    out = _reference.multi_level_roi_align(maps, rois, 1, 1, [1.0], output_scale=0.5)
    assert out.ravel().tolist() == [0, 127, -128]


@pytest.mark.parametrize("scale", [-0.5, NAN, INF])
def test_an_output_scale_without_a_meaning_is_refused(scale: float) -> None:
    with pytest.raises(ValueError, match="output_scale: expected a positive number, or 0 for float32"):
        _reference.multi_level_roi_align(
            pyramid(64), np.zeros((1, 5), np.float32), 7, 7, SCALES, output_scale=scale
        )


def test_no_rois() -> None:
    out = _reference.multi_level_roi_align(
        pyramid(64, channels=3), np.zeros((0, 5), np.float32), 7, 7, SCALES
    )
    assert out.shape == (0, 3, 7, 7)


@pytest.mark.parametrize(
    ("maps", "scales", "message"),
    [
        ([], [], "at least one, found 0 maps, 0 scales"),
        (pyramid(64), SCALES[:3], "found 4 maps, 3 scales"),
        (
            [*pyramid(64)[:1], *pyramid(64, channels=5)[:1]],
            SCALES[:2],
            "same batch and channels on every level",
        ),
    ],
)
def test_wrong_pyramids_are_named(maps: list[np.ndarray], scales: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _reference.multi_level_roi_align(maps, np.zeros((1, 5), np.float32), 7, 7, scales)
