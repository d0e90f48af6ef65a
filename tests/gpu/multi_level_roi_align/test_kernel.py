"""The kernel of ``plugins/multi_level_roi_align`` against NumPy and torch, without TensorRT."""

import numpy as np
import pytest

from tests.gpu import oracles
from tests.gpu.kernel_library import NCHW, NCHW32, NHWC, NHWC8, to_layout
from tests.gpu.kernel_testing import MARKS, cuda, torch
from tests.gpu.multi_level_roi_align.kernel import multi_level_roi_align
from tests.gpu.tolerances import (
    FLOAT_TOLERANCE,
    HALF_TOLERANCE,
)

pytestmark = MARKS


SCALES = (1 / 4, 1 / 8, 1 / 16, 1 / 32)


def random_rois(rng: np.random.Generator, num_rois: int, batch: int, height: int, width: int) -> np.ndarray:
    """RoIs of all sizes, a third of them special: outside, without extent, huge, reversed, NaN, without an image."""
    rois = np.empty((num_rois, 5), np.float32)
    rois[:, 0] = rng.integers(0, batch, num_rois)
    centers = rng.uniform(0, 1, (num_rois, 2)) * (width, height)
    sides = np.exp(rng.uniform(np.log(4), np.log(1.2 * width), (num_rois, 2)))
    rois[:, 1:3], rois[:, 3:5] = centers - sides / 2, centers + sides / 2
    special = rng.integers(0, 24, num_rois)
    rois[special == 0, 1:] += 2 * width
    rois[special == 1, 1:] -= 3 * width
    rois[special == 2, 3] = rois[special == 2, 1]
    rois[special == 3, 1:] = 0
    rois[special == 4, 1:] *= 300
    rois[special == 5, 1:] = rois[special == 5][:, [3, 4, 1, 2]]
    rois[special == 6, rng.integers(0, 5)] = np.nan
    rois[special == 7, 0] = rng.choice([-1, batch, 1e9, -1e30, np.inf])
    return rois


def expected_rois(oracle, features, rois, output_size, ratio, aligned) -> torch.Tensor:
    levels = oracles.level_oracle(rois, len(features), 56.0)
    out = torch.zeros((len(rois), features[0].shape[1], *output_size), dtype=torch.float64, device="cuda")
    for level, (feature, scale) in enumerate(zip(features, SCALES)):
        own = np.flatnonzero(levels == level)
        if len(own):
            out[cuda(own)] = oracle(feature.double(), rois[own], output_size, scale, ratio, aligned)
    return out


def from_layout(out: torch.Tensor, layout: int, channels: int) -> torch.Tensor:
    if layout == NCHW:
        return out
    if layout == NCHW32:
        out = out.permute(0, 2, 3, 1, 4).flatten(3)
    assert not out[..., channels:].any()  # the padding
    return out[..., :channels].permute(0, 3, 1, 2)


ROI_CASES = [
    # dtype, layout, output layout, output dtype, channels, output size, ratio, mode, aligned, number of RoIs
    (torch.float32, NCHW, NCHW, None, 8, (7, 7), 0, "avg", True, 3000),
    (torch.float32, NHWC, NCHW, None, 8, (7, 7), 0, "avg", True, 3000),
    (torch.float32, NHWC, NHWC, None, 12, (14, 14), 2, "avg", False, 1000),
    (torch.float32, NHWC8, NHWC8, None, 5, (7, 3), 0, "avg", False, 1000),
    (torch.float32, NHWC, NCHW, torch.float16, 5, (2, 9), 3, "avg", True, 1000),
    (torch.float16, NCHW, NCHW, None, 8, (7, 7), 0, "avg", True, 3000),
    (torch.float16, NHWC8, NCHW, None, 16, (7, 7), 0, "avg", True, 3000),
    (torch.float16, NHWC8, NHWC8, None, 13, (14, 14), 0, "avg", True, 1000),
    (torch.float16, NHWC8, NCHW, torch.float32, 300, (3, 3), 0, "avg", True, 300),
    (torch.float16, NCHW, NHWC8, torch.float32, 13, (7, 7), 2, "avg", True, 1000),
    (torch.float32, NCHW, NCHW, None, 3, (65, 2), 0, "avg", True, 200),  # beyond the tables
    (torch.float32, NCHW, NCHW, None, 8, (7, 7), 0, "max", True, 300),
    (torch.float16, NHWC8, NHWC8, None, 12, (5, 7), 2, "max", False, 300),
]


@pytest.mark.parametrize("case", ROI_CASES)
def test_multi_level_roi_align(case: tuple) -> None:
    dtype, layout, output_layout, output_dtype, channels, output_size, ratio, mode, aligned, num_rois = case
    rng = np.random.default_rng(4)
    batch, height, width = 2, 256, 320
    generator = torch.Generator("cuda").manual_seed(3)
    sizes = [(int(height * scale), int(width * scale)) for scale in SCALES]
    features = [
        torch.randn((batch, channels, *size), device="cuda", generator=generator).to(dtype) for size in sizes
    ]
    rois = random_rois(rng, num_rois, batch, height, width)
    out = multi_level_roi_align(
        [to_layout(feature, layout) for feature in features],
        cuda(rois),
        channels=channels,
        output_size=output_size,
        spatial_scales=SCALES,
        sampling_ratio=ratio,
        mode=mode,
        aligned=aligned,
        layout=layout,
        output_layout=output_layout,
        output_dtype=output_dtype,
    )
    oracle = oracles.average_oracle if mode == "avg" else oracles.maximum_oracle
    expected = expected_rois(oracle, features, rois, output_size, ratio, aligned)
    found = from_layout(out, output_layout, channels).double()
    half = torch.float16 in (dtype, output_dtype)
    scale = max(feature.abs().max().item() for feature in features)
    real = expected > -9999
    assert torch.equal(found > -9999, real)
    error = ((found - expected).abs() * real).max().item() / scale
    assert error <= (HALF_TOLERANCE if half else FLOAT_TOLERANCE), error


INT8_CASES = [
    # dtype, layout, output layout, channels, output size, mode, number of RoIs
    (torch.float32, NCHW, NCHW, 8, (7, 7), "avg", 1000),
    (torch.float32, NHWC, NCHW, 8, (7, 7), "avg", 1000),
    (torch.float32, NHWC8, NCHW, 20, (14, 14), "avg", 300),
    (torch.float32, NHWC, NCHW, 5, (2, 9), "avg", 1000),
    (torch.float16, NCHW, NCHW, 8, (3, 3), "avg", 1000),
    (torch.float16, NHWC8, NCHW, 256, (7, 7), "avg", 1000),
    (torch.float16, NHWC8, NCHW, 256, (14, 14), "avg", 100),
    (torch.float16, NHWC8, NCHW, 13, (7, 7), "avg", 1000),
    (torch.float16, NHWC8, NCHW, 300, (1, 1), "avg", 300),
    (torch.float32, NHWC, NCHW, 3, (65, 2), "avg", 200),  # beyond the tables
    (torch.float16, NHWC8, NCHW, 12, (5, 7), "max", 300),
    (torch.float16, NHWC8, NCHW32, 256, (14, 14), "avg", 100),
    (torch.float16, NHWC8, NCHW32, 300, (7, 7), "avg", 300),
    (torch.float16, NHWC8, NCHW32, 13, (7, 3), "avg", 1000),
    (torch.float32, NHWC, NCHW32, 36, (7, 7), "avg", 300),
    (torch.float32, NHWC, NCHW32, 33, (2, 3), "avg", 1000),
    (torch.float16, NCHW, NCHW32, 70, (3, 3), "avg", 300),
    (torch.float16, NHWC8, NCHW32, 40, (2, 65), "avg", 100),
    (torch.float32, NCHW, NCHW32, 40, (5, 7), "max", 100),
]


@pytest.mark.parametrize("case", INT8_CASES)
def test_int8_is_the_value_in_steps_of_the_scale(case: tuple) -> None:
    """Within half a step of the value, or at an end beyond which it lies."""
    dtype, layout, output_layout, channels, output_size, mode, num_rois = case
    rng = np.random.default_rng(5)
    batch, height, width = 2, 256, 320
    generator = torch.Generator("cuda").manual_seed(6)
    features = [
        torch.randn(
            (batch, channels, int(height * scale), int(width * scale)), device="cuda", generator=generator
        ).to(dtype)
        for scale in SCALES
    ]
    rois = random_rois(rng, num_rois, batch, height, width)
    step = 0.0073  # 127 of it are less than what a pixel may be
    out = multi_level_roi_align(
        [to_layout(feature, layout) for feature in features],
        cuda(rois),
        channels=channels,
        output_size=output_size,
        spatial_scales=SCALES,
        mode=mode,
        layout=layout,
        output_layout=output_layout,
        output_dtype=torch.int8,
        output_scale=step,
    )
    out = from_layout(out, output_layout, channels)
    oracle = oracles.average_oracle if mode == "avg" else oracles.maximum_oracle
    expected = expected_rois(oracle, features, rois, output_size, 0, True) / step
    largest = max(feature.abs().max().item() for feature in features)
    assert out.shape == expected.shape
    assert (out == 127).any()
    assert (out == -128).any()
    assert len(out.unique()) > 200
    error = (out.double() - expected.clamp(-128, 127)).abs().max().item()
    assert error <= 0.5 + FLOAT_TOLERANCE * largest / step, error


INT8_FEATURES = [
    # layout, output layout, channels, output size, mode, number of RoIs
    (NCHW32, NCHW, 256, (7, 7), "avg", 1000),
    (NCHW32, NCHW32, 256, (14, 14), "avg", 100),
    (NCHW32, NCHW, 40, (7, 3), "avg", 1000),
    (NCHW32, NCHW32, 13, (5, 5), "avg", 1000),
    (NCHW32, NCHW, 1000, (1, 1), "avg", 300),
    (NCHW32, NCHW32, 70, (65, 2), "avg", 100),  # beyond the tables
    (NCHW32, NCHW, 36, (5, 7), "max", 100),
    (NCHW, NCHW, 20, (7, 7), "avg", 1000),
    (NCHW, NCHW32, 40, (3, 3), "avg", 300),
    (NCHW, NCHW, 8, (7, 7), "max", 100),
    (NHWC, NCHW, 21, (7, 7), "avg", 300),  # a channel at a time
    (NHWC, NCHW32, 48, (7, 7), "avg", 300),
]


@pytest.mark.parametrize("case", INT8_FEATURES)
def test_int8_features_are_steps_of_their_levels_scale(case: tuple) -> None:
    layout, output_layout, channels, output_size, mode, num_rois = case
    rng = np.random.default_rng(8)
    batch, height, width = 2, 256, 320
    generator = torch.Generator("cuda").manual_seed(9)
    steps = [
        torch.tensor(step).item() for step in (0.031, 0.017, 0.05, 0.11)
    ]  # float32, as the kernel gets them
    features = [
        torch.randint(
            -128,
            128,
            (batch, channels, int(height * scale), int(width * scale)),
            device="cuda",
            generator=generator,
            dtype=torch.int8,
        )
        for scale in SCALES
    ]
    rois = random_rois(rng, num_rois, batch, height, width)
    output_step = 0.019
    out = multi_level_roi_align(
        [to_layout(feature, layout) for feature in features],
        cuda(rois),
        channels=channels,
        output_size=output_size,
        spatial_scales=SCALES,
        mode=mode,
        layout=layout,
        output_layout=output_layout,
        output_dtype=torch.int8,
        output_scale=output_step,
        feature_scales=steps,
    )
    out = from_layout(out, output_layout, channels)
    oracle = oracles.average_oracle if mode == "avg" else oracles.maximum_oracle
    real = [feature.double() * step for feature, step in zip(features, steps)]
    expected = expected_rois(oracle, real, rois, output_size, 0, True) / output_step
    assert out.shape == expected.shape
    assert len(out.unique()) > 200
    largest = max(feature.abs().max().item() for feature in real)
    error = (out.double() - expected.clamp(-128, 127)).abs().max().item()
    assert error <= 0.5 + FLOAT_TOLERANCE * largest / output_step, error


@pytest.mark.parametrize("layout", [NCHW, NHWC, NCHW32])
@pytest.mark.parametrize("mode", ["avg", "max"])
def test_every_int8_is_read_as_itself(layout: int, mode: str) -> None:
    """In steps of the output that are those of the features, a sample in the middle of a pixel is the pixel."""
    generator = torch.Generator("cuda").manual_seed(1)
    feature = torch.randint(-128, 128, (1, 32, 40, 50), device="cuda", generator=generator, dtype=torch.int8)
    assert len(feature.unique()) == 256
    y, x = np.mgrid[:40, :50].reshape(2, -1).astype(np.float32)
    out = multi_level_roi_align(
        [to_layout(feature, layout)],
        cuda(np.stack([np.zeros_like(x), x, y, x + 1, y + 1], axis=1)),
        channels=32,
        output_size=(1, 1),
        spatial_scales=(1.0,),
        sampling_ratio=1,
        mode=mode,
        layout=layout,
        output_dtype=torch.int8,
        output_scale=0.25,
        feature_scales=[0.25],
    )
    assert torch.equal(out[:, :, 0, 0], feature[0].flatten(1).T)


@pytest.mark.parametrize("step", [0.0, -0.1, float("nan"), float("inf")])
@pytest.mark.parametrize("output_dtype", [torch.int8, torch.float32])
def test_int8_features_want_a_scale_and_an_int8_output(step: float, output_dtype: torch.dtype) -> None:
    with pytest.raises(RuntimeError, match="multi_level_roi_align: invalid argument"):
        multi_level_roi_align(
            [torch.zeros((1, 8, 4, 4), device="cuda", dtype=torch.int8)],
            torch.zeros((1, 5), device="cuda"),
            channels=8,
            output_size=(7, 7),
            spatial_scales=(1.0,),
            output_dtype=output_dtype,
            output_scale=0.5,
            feature_scales=[step if output_dtype == torch.int8 else 0.5],
        )


@pytest.mark.parametrize("mode", ["avg", "max"])
@pytest.mark.parametrize(
    ("dtype", "layout"),
    [(torch.float32, NCHW), (torch.float32, NHWC), (torch.float16, NHWC8)],
)
@pytest.mark.parametrize("step", [0.25, 0.1, 0.0123, 3e-39, 2e-39])  # the last has no finite reciprocal
def test_int8_is_rounded_half_to_even_of_a_true_quotient(
    dtype: torch.dtype, layout: int, step: float, mode: str
) -> None:
    """One sample in the middle of a pixel is that pixel: what is rounded is known to the bit."""
    rng = np.random.default_rng(7)
    halves = (np.arange(-140, 140) + 0.5).astype(np.float32) * np.float32(step)
    near = np.concatenate([np.nextafter(halves, np.float32(s)) for s in (-np.inf, np.inf)])
    others = rng.uniform(-200, 200, 2000).astype(np.float32) * np.float32(step)
    special = np.array([0, -0.0, np.inf, -np.inf, 3e4, -3e4], np.float32)
    values = np.concatenate([halves, near, others, special])
    side = 64
    pixels = np.zeros(side * side, np.float32)
    pixels[: len(values)] = values
    with np.errstate(over="ignore"):
        pixels = pixels.astype(np.float16 if dtype == torch.float16 else np.float32)
    feature = cuda(np.stack([pixels, pixels[::-1]]).reshape(1, 2, side, side))
    y, x = np.mgrid[:side, :side].reshape(2, -1).astype(np.float32)
    rois = np.stack([np.zeros_like(x), x, y, x + 1, y + 1], axis=1)
    out = multi_level_roi_align(
        [to_layout(feature, layout)],
        cuda(rois),
        channels=2,
        output_size=(1, 1),
        spatial_scales=(1.0,),
        sampling_ratio=1,
        mode=mode,
        layout=layout,
        output_dtype=torch.int8,
        output_scale=step,
    )
    with np.errstate(over="ignore"):
        quotients = pixels.astype(np.float32) / np.float32(step)
    for channel, order in ((0, slice(None)), (1, slice(None, None, -1))):
        expected = np.clip(np.rint(quotients[order]), -128, 127)
        real = np.isfinite(pixels[order]) & _neighbours_are_finite(pixels[order], side)
        assert real.sum() > side * side // 2
        found = out[:, channel, 0, 0].cpu().numpy()
        np.testing.assert_array_equal(found[real], expected[real])


def _neighbours_are_finite(pixels: np.ndarray, side: int) -> np.ndarray:
    """Whether the pixels right and below, which weigh 0, are finite: infinity times 0 is NaN."""
    finite = np.pad(np.isfinite(pixels).reshape(side, side), (0, 1), constant_values=True)
    return (finite[1:, :-1] & finite[:-1, 1:] & finite[1:, 1:]).ravel()


@pytest.mark.parametrize("step", [0.0, -0.1, float("nan"), float("inf")])
def test_int8_without_a_scale_is_refused(step: float) -> None:
    with pytest.raises(RuntimeError, match="multi_level_roi_align: invalid argument"):
        multi_level_roi_align(
            [torch.zeros((1, 8, 4, 4), device="cuda")],
            torch.zeros((1, 5), device="cuda"),
            channels=8,
            output_size=(7, 7),
            spatial_scales=(1.0,),
            output_dtype=torch.int8,
            output_scale=step,
        )


def test_roi_align_of_a_map_too_large_for_the_tables() -> None:
    feature = torch.randn((1, 4, 8, 3000), device="cuda")
    rois = np.array([[0, 0, 0, 3000, 8], [0, -50, 1, 5000, 6], [0, 10, 1, 300, 6]], np.float32)
    for layout in (NCHW, NHWC):
        found = multi_level_roi_align(
            [to_layout(feature, layout)],
            cuda(rois),
            channels=4,
            output_size=(7, 7),
            spatial_scales=(1.0,),
            layout=layout,
        )
        expected = oracles.average_oracle(feature.double(), rois, (7, 7), 1.0, 0, True)
        assert (found - expected).abs().max().item() <= FLOAT_TOLERANCE * feature.abs().max().item()


def test_roi_align_equals_torchvision() -> None:
    torchvision = pytest.importorskip("torchvision")
    feature = torch.randn((2, 16, 50, 60), device="cuda")
    rois = cuda(random_rois(np.random.default_rng(1), 500, 2, 50, 60))
    rois = rois[((rois[:, 0] >= 0) & (rois[:, 0] < 2) & rois.isfinite().all(1) & (rois.abs().amax(1) < 500))]
    found = multi_level_roi_align([feature], rois, channels=16, output_size=(7, 7), spatial_scales=(1.0,))
    expected = torchvision.ops.roi_align(feature, rois, (7, 7), 1.0, -1, True)
    assert (found - expected).abs().max().item() <= 10 * FLOAT_TOLERANCE  # torchvision sums in float32, too


def test_no_rois() -> None:
    out = multi_level_roi_align(
        [torch.zeros((1, 8, 4, 4), device="cuda")],
        torch.zeros((0, 5), device="cuda"),
        channels=8,
        output_size=(7, 7),
        spatial_scales=(1.0,),
    )
    assert out.shape == (0, 8, 7, 7)
