"""plugins._reference.select_top against a stable sort in NumPy."""

import numpy as np
import pytest

from plugins import _reference

NAN, INF = float("nan"), float("inf")


def select_top_oracle(scores: np.ndarray, k: int) -> np.ndarray:
    """Return indices (B, k): NumPy sorts NaN last, and a stable sort leaves ties in their order."""
    return np.argsort(-scores, axis=1, kind="stable")[:, :k]


def check(scores: np.ndarray, k: int) -> None:
    values, indices = _reference.select_top(scores, k)
    assert (values.dtype, indices.dtype) == (np.float32, np.int32)
    expected = select_top_oracle(scores, k)
    np.testing.assert_array_equal(indices, expected)
    # As bits: NaN equals itself, and zero keeps its sign.
    best = np.take_along_axis(scores, expected, axis=1)
    np.testing.assert_array_equal(values.view(np.uint32), best.view(np.uint32))


@pytest.mark.parametrize(
    ("scores", "k", "expected"),
    [
        ([0.5], 1, [0]),
        ([0.1, 0.9, 0.5], 2, [1, 2]),
        ([0.1, 0.9, 0.5], 3, [1, 2, 0]),
        ([0.5, 0.5, 0.5, 0.5], 3, [0, 1, 2]),  # all equal: by index
        ([0.2, 0.7, 0.2, 0.7], 3, [1, 3, 0]),  # a tie at the cut: the lower index
        ([-0.0, 0.0, -0.0], 3, [0, 1, 2]),  # equal
        ([-1e-45, 0.0, 1e-45], 3, [2, 1, 0]),  # denormals are not zero
        ([NAN, -INF, 0.0, INF], 4, [3, 2, 1, 0]),
        ([NAN, 0.1, NAN, -INF], 4, [1, 3, 0, 2]),  # NaN last, by index
        ([NAN, NAN, NAN], 2, [0, 1]),
    ],
)
def test_small_cases(scores: list, k: int, expected: list) -> None:
    scores = np.array([scores], np.float32)
    assert _reference.select_top(scores, k)[1].tolist() == [expected]
    check(scores, k)


def test_every_nan_counts_the_same() -> None:
    scores = np.array([[0xFFFFFFFF, 0x7F800001, 0xFF800000, 0x7FC00000]], np.uint32).view(np.float32)
    assert _reference.select_top(scores, 4)[1].tolist() == [[2, 0, 1, 3]]


@pytest.mark.parametrize("kind", ["uniform", "rounded", "saturated", "any bits"])
@pytest.mark.parametrize(("num_scores", "k"), [(1, 1), (1001, 1000), (1000, 1000), (5000, 7), (5000, 4096)])
def test_rows_of_a_batch(kind: str, num_scores: int, k: int) -> None:
    rng = np.random.default_rng(num_scores + k)
    shape = (3, num_scores)
    scores = {
        "uniform": lambda: rng.random(shape),
        "rounded": lambda: np.round(rng.random(shape), 1) - 0.5,
        "saturated": lambda: 1 / (1 + np.exp(-rng.normal(15, 5, shape).astype(np.float32))),
        "any bits": lambda: rng.integers(0, 2**32, shape, dtype=np.uint32).view(np.float32),
    }[kind]()
    check(scores.astype(np.float32), k)


def test_no_rows() -> None:
    values, indices = _reference.select_top(np.zeros((0, 5), np.float32), 3)
    assert (values.shape, indices.shape) == ((0, 3), (0, 3))


@pytest.mark.parametrize(
    ("scores", "k", "message"),
    [
        (np.zeros((2, 5), np.float32), 6, "k: expected 1 to the number of scores, 5, found 6"),
        (np.zeros((2, 5), np.float32), 0, "k: expected 1 to the number of scores, 5, found 0"),
        (np.zeros((2, 5)), 3, "scores: expected a C-contiguous float32 array .* found float64"),
        (np.zeros(5, np.float32), 3, "scores: expected a C-contiguous float32 array of shape"),
    ],
)
def test_bad_arguments_are_refused(scores: np.ndarray, k: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _reference.select_top(scores, k)
