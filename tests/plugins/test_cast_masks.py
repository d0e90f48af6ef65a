"""plugins._reference.cast_masks against NumPy's own cast."""

import numpy as np
import pytest

from plugins import _reference


def cast_by_numpy(values: np.ndarray) -> np.ndarray:
    return np.clip(np.nan_to_num(values, nan=0.0, posinf=255.0, neginf=0.0), 0, 255).astype(np.uint8)


@pytest.mark.parametrize("num", [0, 1, 3, 1000, (1 << 16) - 1, 1 << 16, (1 << 18) + 7])
def test_masks_keep_their_pixels(num: int) -> None:
    masks = np.random.default_rng(num).random(num) < 0.3
    found = _reference.cast_masks(masks.astype(np.float32))
    assert (found.dtype, found.shape) == (np.uint8, (num,))
    np.testing.assert_array_equal(found, masks.astype(np.uint8))


@pytest.mark.parametrize(
    ("value", "byte"),
    [
        (0.0, 0),
        (-0.0, 0),
        (1.0, 1),
        (0.99999994, 0),
        (1e-45, 0),
        (-0.5, 0),
        (-1.0, 0),
        (254.99998, 254),
        (255.0, 255),
        (255.99998, 255),
        (256.0, 255),
        (257.0, 255),
        (3e38, 255),
        (np.inf, 255),
        (-np.inf, 0),
        (np.nan, 0),
    ],
)
def test_what_becomes_of_a_value(value: float, byte: int) -> None:
    assert _reference.cast_masks(np.array([value], np.float32)).tolist() == [byte]


def test_any_bits_are_as_numpy_casts_them() -> None:
    bits = np.random.default_rng(0).integers(0, 1 << 32, 1 << 20, np.uint32)
    values = np.concatenate([bits.view(np.float32), np.linspace(-2, 258, 1 << 16, dtype=np.float32)])
    np.testing.assert_array_equal(_reference.cast_masks(values), cast_by_numpy(values))


@pytest.mark.parametrize("values", [np.zeros(3), np.zeros((2, 3), np.float32), np.zeros(3, np.uint8)])
def test_other_arrays_are_refused(values: np.ndarray) -> None:
    with pytest.raises(ValueError, match="values: expected"):
        _reference.cast_masks(values)
