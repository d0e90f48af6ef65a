"""plugins._reference.select_masks against the sigmoid of the channel that NumPy picks."""

import numpy as np
import pytest

from plugins import _reference

# Three roundings of float32 (exp, sum, quotient) and two units of exp itself, of probabilities up to 1.
TOLERANCE = 5e-7
NAN, INF = float("nan"), float("inf")


def select_masks_oracle(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return (B, K, h, w) float64, one detection at a time. logits: (B * K, C, h, w)."""
    masks = np.zeros((*labels.shape, *logits.shape[2:]))
    for row, (b, k) in enumerate(np.ndindex(*labels.shape)):
        if labels[b, k] >= 0:
            channel = min(int(labels[b, k]), logits.shape[1] - 1)
            with np.errstate(over="ignore"):
                masks[b, k] = 1 / (1 + np.exp(-logits[row, channel].astype(np.float64)))
    return masks


def stored(logits: np.ndarray, layout: str) -> np.ndarray:
    """Return (R, C, h, w) logits in a layout; what pads the channels is NaN, which shows where it is read."""
    if layout == "nchw":
        return logits
    padding = -logits.shape[1] % 8 if layout == "nhwc8" else 0
    logits = np.pad(logits, ((0, 0), (0, padding), (0, 0), (0, 0)), constant_values=NAN)
    return np.ascontiguousarray(logits.transpose(0, 2, 3, 1))


def check(logits: np.ndarray, labels: np.ndarray, layout: str = "nchw") -> None:
    masks = _reference.select_masks(stored(logits, layout), labels, logits.shape[1], layout)
    expected = select_masks_oracle(logits, labels)
    assert (masks.dtype, masks.shape) == (np.float32, expected.shape)
    np.testing.assert_allclose(masks, expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("layout", ["nchw", "nhwc", "nhwc8"])
@pytest.mark.parametrize("channels", [1, 2, 7, 8, 9, 80, 1203])
@pytest.mark.parametrize("size", [(28, 28), (1, 1), (3, 5)])
def test_every_layout_equals_the_oracle(channels: int, size: tuple, layout: str) -> None:
    rng = np.random.default_rng(channels)
    labels = rng.integers(-1, channels, (2, 5)).astype(np.int32)
    labels[0, 0], labels[1, 4], labels[1, 0] = channels - 1, 0, -1
    check(rng.normal(0, 4, (10, channels, *size)).astype(np.float32), labels, layout)


@pytest.mark.parametrize(
    ("label", "channels", "channel"),
    [
        (0, 3, 0),
        (2, 3, 2),
        (3, 3, 2),  # no such class: the last
        (2**31 - 1, 3, 2),
        (-1, 3, None),
        (-(2**31), 3, None),
        (0, 1, 0),
        (79, 1, 0),  # one mask for all classes
        (-1, 1, None),
    ],
)
def test_labels_pick_the_channel(label: int, channels: int, channel: "int | None") -> None:
    logits = np.arange(channels, dtype=np.float32)[None, :, None, None] + 1
    mask = _reference.select_masks(logits, np.array([[label]], np.int32), channels)
    expected = 0 if channel is None else 1 / (1 + np.exp(-(channel + 1)))
    assert mask.item() == pytest.approx(expected, abs=TOLERANCE)


def test_extreme_logits() -> None:
    logits = np.array([0, -0.0, 88, -88, 104, -104, 3e38, -3e38, INF, -INF, NAN, 1e-45], np.float32)
    masks = _reference.select_masks(logits.reshape(1, 1, 3, 4), np.zeros((1, 1), np.int32), 1).ravel()
    assert masks[[0, 1, 11]].tolist() == [0.5] * 3
    assert masks[[2, 4, 6, 8]].tolist() == [1] * 4
    assert masks[[5, 7, 9]].tolist() == [0] * 3
    assert 0 < masks[3] < 1e-37
    assert np.isnan(masks[10])


def test_nan_of_rows_without_a_label_is_not_read() -> None:
    masks = _reference.select_masks(np.full((2, 3, 4, 4), NAN, np.float32), np.full((1, 2), -1, np.int32), 3)
    assert (masks == 0).all()


def test_batches_keep_their_rows() -> None:
    """Row b * K + k of the logits is detection k of image b."""
    logits = np.arange(6, dtype=np.float32).reshape(6, 1, 1, 1)
    masks = _reference.select_masks(logits, np.zeros((2, 3), np.int32), 1)
    assert masks.shape == (2, 3, 1, 1)
    assert (np.diff(masks.ravel()) > 0).all()


@pytest.mark.parametrize("shape", [(0, 5), (2, 0)])
def test_no_detections(shape: tuple) -> None:
    masks = _reference.select_masks(np.zeros((0, 3, 28, 28), np.float32), np.zeros(shape, np.int32), 3)
    assert masks.shape == (*shape, 28, 28)


LOGITS, LABELS = np.zeros((4, 3, 2, 2), np.float32), np.zeros((2, 2), np.int32)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((LOGITS[:3], LABELS, 3), r"logits: .*\(4, 3, \*, \*\), found float32 \(3, 3, 2, 2\)"),
        ((LOGITS, LABELS, 2), r"logits: .*\(4, 2, \*, \*\)"),
        ((LOGITS, LABELS, 0), "channels: expected at least 1, found 0"),
        ((LOGITS, LABELS.astype(np.int64), 3), "labels: .*int32.*found int64"),
        ((LOGITS, LABELS, 3, "nhwc"), r"logits: .*\(4, \*, \*, 3\)"),
        ((LOGITS, LABELS, 3, "nhwc8"), r"logits: .*\(4, \*, \*, 8\)"),
        ((LOGITS, LABELS, 3, "chw"), "layout: expected 'nchw', 'nhwc' or 'nhwc8', found 'chw'"),
    ],
)
def test_wrong_arguments_are_named(arguments: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _reference.select_masks(*arguments)
