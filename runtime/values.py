"""Checks of single values; messages name the field, not the file."""

from collections.abc import Sequence
from typing import Any

from runtime.messages import shown

# Of float32.
_LARGEST = 3.4e38


def check_choice(name: str, value: Any, choices: Sequence[str]) -> None:
    """Refuse, as ``ValueError``, what is none of the choices."""
    if value not in choices:
        raise ValueError(f"{name}: expected one of {', '.join(choices)}, found {shown(value)}")


def check_bool(name: str, value: Any) -> None:
    """Refuse, as ``ValueError``, what is neither true nor false."""
    if not isinstance(value, bool):
        raise ValueError(f"{name}: expected true or false, found {shown(value)}")


def is_number(value: Any) -> bool:
    """Return whether the value is a finite number that float32 holds."""
    # NaN fails the comparison; an integer may be too large for math.isfinite.
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= _LARGEST


def numbers(name: str, values: Any) -> tuple[float, ...]:
    """Return a list's finite numbers, one or more.

    Raises:
        ValueError: they are none.
    """
    if not isinstance(values, (list, tuple)) or not values or not all(is_number(v) for v in values):
        raise ValueError(f"{name}: expected numbers, found {shown(values)}")
    return tuple(values)


def whole_pair(name: str, values: Any) -> tuple[int, int]:
    """Return two positive whole numbers.

    Raises:
        ValueError: they are none.
    """
    first, second = pair(name, values)
    if first != int(first) or second != int(second):
        raise ValueError(f"{name}: expected two whole numbers, found {shown(values)}")
    return int(first), int(second)


def pair(name: str, values: Any) -> tuple:
    """Return two positive numbers.

    Raises:
        ValueError: they are none.
    """
    if not isinstance(values, (list, tuple)) or len(values) != 2 or not all(is_number(v) for v in values):
        raise ValueError(f"{name}: expected two numbers, found {shown(values)}")
    if min(values) <= 0:
        raise ValueError(f"{name}: expected two positive numbers, found {shown(values)}")
    return tuple(values)
