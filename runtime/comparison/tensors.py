"""Two models by their tensors' names, on the same inputs: how far is each output from what is expected?"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Optional

import numpy as np
from rich.table import Table
from rich.text import Text

from runtime.console import table_console
from runtime.messages import listed


@dataclass(frozen=True)
class TensorDifference:
    """How far an output is from what is expected.

    Attributes:
        name: the output's.
        dtype, shape: of the expected one.
        largest: of the finite expected values, absolute.
        difference: the largest absolute one; None where nothing can be subtracted (strings) or nothing is there.
        relative: ``difference`` over ``largest``.
        num_beyond: values that are further apart than the tolerance, or not finite on one side alone.
        problem: what cannot be compared: another shape, another kind of dtype; else empty.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    largest: float
    difference: Optional[float]
    relative: Optional[float]
    num_beyond: int
    problem: str = ""

    @property
    def agrees(self) -> bool:
        """Whether every value is within the tolerance."""
        return not self.problem and not self.num_beyond


def compare_tensors(
    expected: Mapping[str, np.ndarray], found: Mapping[str, np.ndarray], tolerance: float
) -> tuple[TensorDifference, ...]:
    """Compare outputs by name, in the order of ``expected``.

    Args:
        expected, found: arrays by name.
        tolerance: largest difference of a float, relative to the output's largest expected value. Whole numbers and
            strings have to be equal.

    Raises:
        ValueError: they have no output in common, or one side lacks an output of the other.
    """
    if set(expected) != set(found):
        only = [f"{listed(sorted(set(a) - set(b)))} in {side} alone" for side, a, b in (
            ("A", expected, found), ("B", found, expected)) if set(a) - set(b)]  # fmt: skip
        raise ValueError(f"outputs: expected the same names in A and B, found {' and '.join(only)}")
    if not expected:
        raise ValueError("outputs: expected some to compare, found none")
    return tuple(_compared(name, expected[name], found[name], tolerance) for name in expected)


def _compared(name: str, expected: np.ndarray, found: np.ndarray, tolerance: float) -> TensorDifference:
    facts = (name, str(expected.dtype), expected.shape)
    if expected.shape != found.shape:
        return TensorDifference(*facts, 0.0, None, None, 0, f"shape {found.shape}")
    if _is_number(expected) != _is_number(found):
        return TensorDifference(*facts, 0.0, None, None, 0, f"dtype {found.dtype}")
    if not _is_number(expected):
        return TensorDifference(*facts, 0.0, None, None, int((expected != found).sum()))
    a, b = expected.astype(np.float64), found.astype(np.float64)
    finite = np.isfinite(a) & np.isfinite(b)
    largest = float(np.abs(a[np.isfinite(a)]).max(initial=0.0))
    apart = np.abs(a[finite] - b[finite])
    unlike = int((~finite & ~((a == b) | (np.isnan(a) & np.isnan(b)))).sum())
    difference = float(apart.max(initial=0.0))
    beyond = int((apart > tolerance * (largest or 1.0)).sum()) + unlike
    if "f" not in (expected.dtype.kind, found.dtype.kind):
        beyond = int((expected != found).sum())
    return TensorDifference(*facts, largest, difference, difference / (largest or 1.0), beyond)


def _is_number(array: np.ndarray) -> bool:
    return array.dtype.kind in "fiub"


def print_tensor_differences(differences: Sequence[TensorDifference], tolerance: float) -> None:
    """Print a row per output."""
    table = Table("output", "dtype", "shape")
    for column in ("largest", "difference", "relative", f"beyond {tolerance:g}"):
        table.add_column(column, justify="right")
    for row in differences:
        shape = "x".join(map(str, row.shape)) or "scalar"
        figures = ("-" if value is None else f"{value:.3g}" for value in (row.difference, row.relative))
        beyond = row.problem or (
            str(row.num_beyond) if row.num_beyond else "equal" if not row.difference else "0"
        )
        table.add_row(
            Text(row.name, overflow="fold"), row.dtype, shape, f"{row.largest:.3g}", *figures, beyond
        )
    table_console().print(table)
