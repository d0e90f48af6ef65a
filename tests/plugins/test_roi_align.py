"""plugins._reference.roi_align_forward and roi_align_backward against the float64 oracle and its autograd."""

import itertools
import time

import numpy as np
import pytest
import torch

from plugins import _reference
from tests.plugins.roi_align_oracle import MAX_POOL_START, roi_align_oracle

# Float32 sums of some hundred standard normal values against float64 sums.
FORWARD_ATOL = 1e-5
# Gradients add up over all RoIs that cover a pixel.
BACKWARD_ATOL = 1e-4

INF, NAN = float("inf"), float("nan")

ROIS = {
    "inside": [[0, 2.3, 1.7, 20.9, 14.2], [1, 8, 8, 24, 16]],
    "partly outside": [[0, -12.5, -3, 9.1, 11], [1, 20, 10, 70.3, 55]],
    "outside": [[0, 100, 100, 130, 120], [1, -90, -80, -60, -50]],
    # Not -40: a maximum at exactly -1 gets no gradient, as -1 is also mmcv's mark for "no maximum".
    "whole map and more": [[0, 0, 0, 28, 22], [1, -40.6, -40.6, 100, 100]],
    "no size": [[0, 5, 5, 5, 5], [1, 5, 5, 5, 12], [0, 0, 0, 0, 0]],
    "less than a pixel": [[0, 5.2, 5.4, 5.6, 5.5]],
    "huge": [[0, -1e6, -1e6, 1e6, 1e6], [1, 0, 0, 5e4, 9]],
    "NaN": [[0, NAN, 1, 5, 5], [0, 1, NAN, 5, 5], [1, 1, 1, NAN, 5], [1, 1, 1, 5, NAN], [NAN, 1, 1, 5, 5]],
    "no such image": [[2, 1, 1, 9, 9], [-1, 1, 1, 9, 9], [1, 1, 1, 9, 9]],
    "none": [],
}
OPTIONS = list(itertools.product([0, 2, 3], ["avg", "max"], [True, False]))


def as_rois(rows: list) -> np.ndarray:
    return np.array(rows, dtype=np.float32).reshape(-1, 5)


def random_features(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def random_rois(rng: np.random.Generator, num_rois: int, num_images: int) -> np.ndarray:
    corners = rng.uniform(-10, 40, (num_rois, 2))
    sizes = rng.uniform(0, 60, (num_rois, 2))
    return np.hstack([rng.integers(0, num_images, (num_rois, 1)), corners, corners + sizes]).astype(
        np.float32
    )


@pytest.mark.parametrize("name", ROIS)
@pytest.mark.parametrize(("ratio", "mode", "aligned"), OPTIONS)
def test_forward_and_backward_equal_the_oracle(name: str, ratio: int, mode: str, aligned: bool) -> None:
    check_against_oracle(
        random_features((2, 3, 11, 14)), as_rois(ROIS[name]), (5, 4), 0.5, ratio, mode, aligned
    )


def test_random_shapes_equal_the_oracle() -> None:
    rng = np.random.default_rng(1)
    for case in range(60):
        shape = tuple(int(rng.integers(1, high)) for high in (4, 70, 12, 12))
        size = (int(rng.integers(1, 8)), int(rng.integers(1, 8)))
        rois = random_rois(rng, int(rng.integers(0, 9)), shape[0])
        options = OPTIONS[case % len(OPTIONS)]
        check_against_oracle(random_features(shape, case), rois, size, float(rng.choice([1, 0.25])), *options)


def check_against_oracle(features, rois, size, scale, ratio, mode, aligned) -> None:
    options = {"spatial_scale": scale, "sampling_ratio": ratio, "mode": mode, "aligned": aligned}
    leaf = torch.from_numpy(features).double().requires_grad_()
    expected = roi_align_oracle(leaf, rois, size, **options)
    out, argmax_y, argmax_x = _reference.roi_align_forward(features, rois, *size, **options)
    assert out.shape == (len(rois), features.shape[1], *size)
    assert argmax_y.shape == argmax_x.shape == (out.shape if mode == "max" else (0,))
    np.testing.assert_allclose(out, expected.detach().numpy(), rtol=0, atol=FORWARD_ATOL)

    grad_output = random_features(out.shape, seed=9)
    # RoIs that read nothing leave no graph: the leaf itself stands in for them.
    ((expected * torch.from_numpy(grad_output)).sum() + 0 * leaf.sum()).backward()
    grad = _reference.roi_align_backward(grad_output, rois, argmax_y, argmax_x, *features.shape, **options)
    np.testing.assert_allclose(grad, leaf.grad.numpy(), rtol=0, atol=BACKWARD_ATOL)


def test_constant_and_linear_features_are_reproduced() -> None:
    ramp = np.broadcast_to(np.arange(32, dtype=np.float32), (1, 1, 32, 32)).copy()
    rois = as_rois([[0, 4, 4, 12, 12]])
    out, _, _ = _reference.roi_align_forward(ramp, rois, 2, 2, 1.0, 0, "avg", True)
    np.testing.assert_allclose(out[0, 0], [[5.5, 9.5]] * 2)  # bins 4-8 and 8-12, less the half pixel
    out, _, _ = _reference.roi_align_forward(ramp, rois, 2, 2, 1.0, 0, "avg", False)
    np.testing.assert_allclose(out[0, 0], [[6, 10]] * 2)


def test_roi_of_4096_px_takes_every_adaptive_sample() -> None:
    features = random_features((1, 1, 1024, 1024))
    rois = as_rois([[0, 0, 0, 4096, 4096], [0, 3.3, 100, 4001, 4096]])
    check_against_oracle(features, rois, (7, 7), 0.25, 0, "avg", True)


@pytest.mark.parametrize("mode", ["avg", "max"])
def test_made_up_rois_end_quickly_with_finite_values(mode: str) -> None:
    """TensorRT times plugins on whatever the memory holds."""
    corners = [INF, -INF, 3.4e38, -3.4e38, 1e9, 0, 7, 1e-40]
    rois = as_rois([[0, *corner] for corner in list(itertools.product(corners, repeat=4))[::16]])
    start = time.perf_counter()
    out, _, _ = _reference.roi_align_forward(random_features((1, 4, 16, 16)), rois, 7, 7, 0.25, 0, mode, True)
    assert np.isfinite(out).all()
    assert time.perf_counter() - start < 20  # without the cap: never


def test_rois_without_a_sample() -> None:
    """As in mmcv: an average of nothing is 0, a maximum over nothing its starting value, without a position."""
    features, rois = random_features((1, 2, 8, 8)), as_rois([[0, 3, 3, 3, 3]])
    out, _, _ = _reference.roi_align_forward(features, rois, 2, 2, 1.0, 0, "avg", True)
    assert (out == 0).all()
    out, argmax_y, argmax_x = _reference.roi_align_forward(features, rois, 2, 2, 1.0, 0, "max", True)
    assert (out == MAX_POOL_START).all()
    assert (argmax_y == -1).all()
    assert (argmax_x == -1).all()


def test_nan_features_stay_in_their_bins() -> None:
    features = random_features((1, 1, 16, 16))
    features[0, 0, 0, 0] = NAN
    rois = as_rois([[0, 0, 0, 16, 16]])
    out, _, _ = _reference.roi_align_forward(features, rois, 4, 4, 1.0, 2, "avg", True)
    assert np.isnan(out[0, 0, 0, 0])
    assert np.isnan(out).sum() == 1
    # A sample outside the map is 0, not 0 times whatever is in the corner.
    outside, _, _ = _reference.roi_align_forward(
        features, as_rois([[0, 90, 90, 99, 99]]), 4, 4, 1.0, 2, "avg", True
    )
    assert (outside == 0).all()


FEATURES, ROI = np.zeros((1, 2, 4, 4), np.float32), as_rois([[0, 0, 0, 2, 2]])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"features": FEATURES[0]}, r"features: .*\(\*, \*, \*, \*\), found float32 \(2, 4, 4\)"),
        ({"features": FEATURES.astype(np.float16)}, "features: expected .*float32.*found float16"),
        ({"features": FEATURES[:, :, :0]}, "height and width from 1"),
        ({"rois": ROI[:, :4].copy()}, r"rois: .*\(\*, 5\), found float32 \(1, 4\)"),
        ({"output_height": 0}, "output_height, output_width: expected 1 to 32767, found 0, 7"),
        ({"sampling_ratio": 513}, "sampling_ratio: expected at most 512"),
        ({"mode": "mean"}, "mode: expected 'avg' or 'max', found 'mean'"),
        ({"spatial_scale": 0.0}, "spatial_scale: expected a positive number"),
    ],
)
def test_wrong_arguments_are_named(changes: dict, message: str) -> None:
    arguments = {"features": FEATURES, "rois": ROI, "output_height": 7, "output_width": 7, **changes}
    with pytest.raises(ValueError, match=message):
        _reference.roi_align_forward(**arguments)


def test_backward_checks_its_shapes() -> None:
    grad_output, empty = np.zeros((1, 2, 7, 7), np.float32), np.zeros(0, np.float32)
    with pytest.raises(ValueError, match=r"grad_output: .*\(1, 3, \*, \*\), found float32 \(1, 2, 7, 7\)"):
        _reference.roi_align_backward(grad_output, ROI, empty, empty, 1, 3, 4, 4)
    with pytest.raises(ValueError, match=r"argmax_y: .*\(1, 2, 7, 7\), found float32 \(0,\)"):
        _reference.roi_align_backward(grad_output, ROI, empty, empty, 1, 2, 4, 4, mode="max")
