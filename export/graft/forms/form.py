"""What a form of decoding says of a network's outputs, and what it makes of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Optional, Protocol, Union

from export.graft.builder import Builder
from export.graft.grid import Grid, Size

# A length; a letter is one that every output with the same letter shares; None is any.
Length = Union[int, str, None]
ACTIVATIONS = ("none", "sigmoid", "softmax")


@dataclass(frozen=True)
class Output:
    """An output that a form reads.

    Attributes:
        role: by which the form knows it; those of levels come in the order of the strides.
        shape: without the batch.
    """

    role: str
    shape: tuple[Length, ...]

    def __str__(self) -> str:
        return f"{self.role} (B, {', '.join('?' if v is None else str(v) for v in self.shape)})"


@dataclass(frozen=True)
class Candidates:
    """What there is before the selection: names of float32 tensors.

    Attributes:
        boxes: (B, N, 4) x1, y1, x2, y2 in px of the input.
        scores: (B, N, C).
        keypoints: (B, N, 2 P), x and y of each, or (B, N, 3 P) with a score; None without.
        coefficients: (B, N, M) of the prototypes; None without.
        prototypes: (B, M, h, w); None without.
        has_keypoint_scores: key points have scores of their own; others get their box's.
    """

    boxes: str
    scores: str
    keypoints: Optional[str] = None
    coefficients: Optional[str] = None
    prototypes: Optional[str] = None
    has_keypoint_scores: bool = False


class Form(Protocol):
    """A form of decoding."""

    def outputs(self, size: Size, num_keypoints: int) -> list[Output]:
        """Return what the network has to return for one image of this (height, width) in px."""

    def num_candidates(self, size: Size) -> int:
        """Return N for an input of this (height, width) in px."""

    def num_classes(self, shapes: Mapping[str, Sequence[Sequence[int]]], num_keypoints: int) -> int:
        """Return the number of classes by the outputs' shapes, without the batch, by role."""

    def decode(
        self, builder: Builder, grid: Grid, tensors: Mapping[str, Sequence[str]], num_keypoints: int
    ) -> Candidates:
        """Append what makes candidates of the outputs, whose names are given by role."""


def check_numbers(place: str, values: Any, count: Optional[int] = None, *, above: float = 0.0) -> tuple:
    """Return a list of numbers as a tuple.

    Raises:
        ValueError: it is none, or of another length, or has a number that is not above ``above``.
    """
    good = isinstance(values, (list, tuple)) and values and (count is None or len(values) == count)
    if not good or not all(type(v) in (int, float) and above < v < float("inf") for v in values):
        many = "numbers" if count is None else f"{count} numbers"
        raise ValueError(f"{place}: expected {many} above {above:g}, found {values!r}")
    return tuple(values)


def check_strides(values: Any) -> tuple[int, ...]:
    """Return strides.

    Raises:
        ValueError: not whole numbers of 1 or more.
    """
    found = check_numbers("strides", values)
    if not all(type(v) is int for v in found):
        raise ValueError(f"strides: expected whole numbers, found {values!r}")
    return found


def check_whole(place: str, value: Any, least: int = 1) -> int:
    """Return a whole number.

    Raises:
        ValueError: another type, or below ``least``.
    """
    if type(value) is not int or value < least:
        raise ValueError(f"{place}: expected a whole number of {least} or more, found {value!r}")
    return value


def check_anchors(values: Any, num_levels: int) -> tuple[tuple[tuple[float, float], ...], ...]:
    """Return (width, height) of each anchor of each level; a number stands for a square.

    Raises:
        ValueError: other than that.
    """
    if not isinstance(values, (list, tuple)) or len(values) != num_levels:
        raise ValueError(f"anchors: expected a list for each of {num_levels} strides, found {values!r}")
    levels = []
    for index, level in enumerate(values):
        if not isinstance(level, (list, tuple)) or not level:
            raise ValueError(f"anchors[{index}]: expected anchors, found {level!r}")
        pairs = [(v, v) if isinstance(v, (int, float)) else v for v in level]
        levels.append(tuple(check_numbers(f"anchors[{index}]", pair, 2) for pair in pairs))
    return tuple(levels)


def check_flag(place: str, value: Any) -> bool:
    """Return a flag.

    Raises:
        ValueError: neither true nor false.
    """
    if not isinstance(value, bool):
        raise ValueError(f"{place}: expected true or false, found {value!r}")
    return value


def check_number(place: str, value: Any) -> float:
    """Return a finite number.

    Raises:
        ValueError: something else.
    """
    if type(value) not in (int, float) or not abs(value) < float("inf"):
        raise ValueError(f"{place}: expected a number, found {value!r}")
    return value


def check_choice(place: str, value: Any, choices: Sequence[str]) -> str:
    """Return one of the choices.

    Raises:
        ValueError: it is none.
    """
    if value not in choices:
        raise ValueError(f"{place}: expected one of {', '.join(choices)}, found {value!r}")
    return value
