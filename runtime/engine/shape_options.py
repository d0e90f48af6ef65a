"""The command line's ways to write sizes, shapes and lists."""

from collections.abc import Sequence
from typing import Optional

from runtime.engine.config import Range, Shapes
from runtime.ranges import MAX_BATCH


def batch_ranges(texts: Optional[Sequence[str]]) -> Optional[tuple[Range, ...]]:
    """Parse ``1``, ``2:4:8``: the least, best and largest batch of each profile."""
    return None if texts is None else tuple(_batch_range(text) for text in texts)


def _batch_range(text: str) -> Range:
    parts = text.split(":")
    numbers = [int(part) for part in parts if part.isdecimal() and 1 <= int(part) <= MAX_BATCH]
    if len(numbers) != len(parts) or len(parts) not in (1, 3):
        raise ValueError(
            f"--profiles: expected numbers from 1 to {MAX_BATCH}, or MIN:OPT:MAX of them, such as 1 2:4:8, found "
            f"{text[:40]!r}"
        )
    low, best, high = numbers * 3 if len(numbers) == 1 else numbers
    return low, best, high


def size_ranges(texts: Optional[Sequence[str]]) -> tuple:
    """Return the ranges of height and width that one or three ``HxW`` mean."""
    if not texts:
        return None, None
    sizes = [_numbers(text, "--size", 2) for text in texts]
    if len(sizes) == 1:
        sizes *= 3
    if len(sizes) != 3:
        raise ValueError(f"--size: expected HxW, or MIN OPT MAX of it, found {' '.join(texts)}")
    return tuple(zip(*sizes))


def shape_option(text: str) -> tuple[str, Shapes]:
    """Parse ``name=1x3x320x320,2x3x800x1216,8x3x1344x1344``."""
    name, _, shapes = text.partition("=")
    parsed = tuple(_numbers(shape, f"--shape {name}") for shape in shapes.split(","))
    if not name or len(parsed) != 3:
        raise ValueError(
            f"--shape: expected NAME=MIN,OPT,MAX with shapes such as 1x3x800x1216, found {text!r}"
        )
    return name, parsed


def _numbers(text: str, option: str, count: Optional[int] = None) -> tuple[int, ...]:
    try:
        numbers = tuple(int(part) for part in text.lower().split("x"))
    except ValueError:
        numbers = ()
    if not numbers or (count is not None and len(numbers) != count):
        raise ValueError(f"{option}: expected numbers joined by x, such as 800x1216, found {text!r}")
    return numbers


def tactic_sources(text: Optional[str]) -> Optional[tuple[str, ...]]:
    if text is None:
        return None
    return () if text == "none" else tuple(part for part in text.split(",") if part)
