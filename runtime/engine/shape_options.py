"""The command line's ways to write sizes, shapes and lists."""

from collections.abc import Sequence
from typing import Optional

from runtime.engine.config import Shapes


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
