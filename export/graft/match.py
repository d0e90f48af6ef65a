"""Which outputs of a network a head reads, and which heads a network fits."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Optional

from export.graft.forms import Output
from export.graft.grid import Size
from export.graft.head import Head, head_names, load_head

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Match:
    """Where a head finds what it reads.

    Attributes:
        tensors: names of outputs by role, in the order of the strides.
        num_classes: by their shapes.
    """

    tensors: Mapping[str, tuple[str, ...]]
    num_classes: int


class MismatchError(ValueError):
    """A network's outputs are not what a head reads."""


def match(head: Head, shapes: Mapping[str, Shape], size: Size) -> Match:
    """Assign outputs to what a head reads: by the names in its file, else by shape, in their order.

    Args:
        head: whose form says what there has to be.
        shapes: of each output in their order, without the batch, at a size.
        size: (height, width) of the input, px.

    Raises:
        MismatchError: an output is missing or left over; says what was expected and what was found.
    """
    expected = head.form.outputs(size, len(head.keypoints))
    left = dict(shapes)
    symbols: dict[str, int] = {}
    found: dict[str, list[str]] = {}
    for output in expected:
        names = head.names.get(output.role, ())
        position = len(found.get(output.role, ()))
        only = names[position] if position < len(names) else None
        name = next(
            (n for n, s in left.items() if only in (n, None) and _fits(s, output.shape, symbols)), None
        )
        if name is None:
            raise _mismatch(head, expected, shapes, size, f"none for {output}")
        _bind(left.pop(name), output.shape, symbols)
        found.setdefault(output.role, []).append(name)
    rest = [name for name, shape in left.items() if not _is_ignored(shape, expected)]
    if rest:
        raise _mismatch(head, expected, shapes, size, f"{', '.join(rest)} left over")
    by_role = {role: [shapes[name] for name in names] for role, names in found.items()}
    num_classes = head.form.num_classes(by_role, len(head.keypoints))
    if num_classes < 1:
        raise _mismatch(head, expected, shapes, size, f"room for {num_classes} classes")
    if head.classes and len(head.classes) != num_classes:
        raise _mismatch(
            head, expected, shapes, size, f"{num_classes} classes, where the head names {len(head.classes)}"
        )
    return Match({role: tuple(names) for role, names in found.items()}, num_classes)


def fitting(shapes: Mapping[str, Shape], size: Size) -> list[Head]:
    """Return the heads that a network with these outputs fits."""
    return [head for head in map(load_head, head_names()) if _matches(head, shapes, size)]


def proposal(shapes: Mapping[str, Shape], size: Size) -> str:
    """Return in words which head to name."""
    heads = fitting(shapes, size)
    if not heads:
        return "no head that comes with the tool fits; write one, see docs/detectors.md"
    if len(heads) == 1:
        return f"it fits {heads[0].title}: if that is what it is, --head {heads[0].name}"
    named = " or ".join(f"--head {head.name} ({head.title})" for head in heads)
    return f"it fits several: {named}; name the one that it is"


def _matches(head: Head, shapes: Mapping[str, Shape], size: Size) -> bool:
    try:
        match(head, shapes, size)
    except MismatchError:
        return False
    return True


def _fits(shape: Shape, expected: Sequence[object], symbols: Mapping[str, int]) -> bool:
    if len(shape) != len(expected):
        return False
    pairs = ((n, symbols.get(m) if isinstance(m, str) else m) for n, m in zip(shape, expected))
    return all(m in (n, None) for n, m in pairs)


def _bind(shape: Shape, expected: Sequence[object], symbols: dict[str, int]) -> None:
    symbols.update({m: n for n, m in zip(shape, expected) if isinstance(m, str)})


def _is_ignored(shape: Shape, expected: Sequence[Output]) -> bool:
    """Whether an output may be left over: YOLOv5's own maps beside the rows that were decoded from them."""
    return len(shape) == 4 and [o.role for o in expected] == ["rows"]


def _mismatch(
    head: Head, expected: Sequence[Output], shapes: Mapping[str, Shape], size: Size, what: str
) -> MismatchError:
    wanted = ", ".join(map(str, expected))
    found = ", ".join(f"{name} {described(shape)}" for name, shape in shapes.items()) or "none"
    return MismatchError(
        f"head {head.name}: expected the outputs {wanted} at {size[0]}x{size[1]} px, found {found}: {what}"
    )


def described(shape: Optional[Shape]) -> str:
    """Return a shape in words, with the batch."""
    return f"(B{''.join(f', {n}' for n in shape or ())})"
