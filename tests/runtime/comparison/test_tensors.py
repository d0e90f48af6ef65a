"""Outputs by name: what differs is named, and nothing agrees that was not compared."""

import numpy as np
import pytest

from runtime.comparison.tensors import compare_tensors, print_tensor_differences

HEAT = np.linspace(-4, 2, 12, dtype=np.float32).reshape(1, 3, 4)


def _one(expected: np.ndarray, found: np.ndarray, tolerance: float = 1e-3):  # type: ignore[no-untyped-def]
    (row,) = compare_tensors({"y": expected}, {"y": found}, tolerance)
    return row


def test_a_difference_is_relative_to_the_largest_value() -> None:
    found = HEAT.copy()
    found[0, 1, 2] += 0.02
    row = _one(HEAT, found)
    assert row.largest == 4
    assert row.difference == pytest.approx(0.02, rel=1e-4)
    assert row.relative == pytest.approx(0.005, rel=1e-4)
    assert (row.num_beyond, row.agrees) == (1, False)
    assert _one(HEAT, found, 0.006).agrees


def test_half_against_float_is_compared() -> None:
    row = _one(HEAT, HEAT.astype(np.float16))
    assert row.agrees
    assert 0 < row.relative < 1e-3


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_on_one_side_alone_is_beyond_every_tolerance(value: float) -> None:
    other = HEAT.copy()
    other[0, 0, 0] = value
    assert _one(HEAT, other, 1e9).num_beyond == 1
    assert _one(other, HEAT, 1e9).num_beyond == 1
    assert _one(other, other).agrees
    assert not _one(other, -other, 1e9).agrees or np.isnan(value)


def test_whole_numbers_are_equal_or_not() -> None:
    large = np.array([2**62, 2**62 + 1], np.int64)
    assert _one(large, large.copy()).agrees
    assert _one(large, large + np.array([0, 1]), 1.0).num_beyond == 1
    assert _one(np.array([True, False]), np.array([True, True]), 1.0).num_beyond == 1


def test_another_shape_or_kind_is_a_problem() -> None:
    assert _one(HEAT, HEAT.reshape(-1)).problem == "shape (12,)"
    row = _one(HEAT, HEAT.astype(str))
    assert row.problem.startswith("dtype")
    assert not row.agrees
    names = np.array(["a", "b"], object)
    assert _one(names, names.copy()).agrees
    assert _one(names, np.array(["a", "c"], object)).num_beyond == 1


def test_an_empty_output_agrees_with_an_empty_one() -> None:
    assert _one(HEAT[:0], HEAT[:0]).agrees


def test_zeros_have_an_absolute_tolerance() -> None:
    assert _one(np.zeros(3, np.float32), np.full(3, 1e-4, np.float32)).agrees
    assert not _one(np.zeros(3, np.float32), np.full(3, 1e-2, np.float32)).agrees


def test_outputs_that_one_side_lacks_are_named() -> None:
    with pytest.raises(
        ValueError, match="expected the same names in A and B, found tags in A alone and z in B alone"
    ):
        compare_tensors({"heat": HEAT, "tags": HEAT}, {"heat": HEAT, "z": HEAT}, 1e-3)
    with pytest.raises(ValueError, match="expected some to compare, found none"):
        compare_tensors({}, {}, 1e-3)


def test_the_table(capsys: pytest.CaptureFixture) -> None:
    rows = compare_tensors({"heat": HEAT, "n": np.array([3])}, {"heat": HEAT, "n": np.array([4])}, 1e-3)
    print_tensor_differences(rows, 1e-3)
    said = capsys.readouterr().out
    assert "heat" in said
    assert "equal" in said
    assert "beyond 0.001" in said
