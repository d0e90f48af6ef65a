"""Replace attributes of somebody else's classes for a while, and know that every replacement was used."""

import functools
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Callable

_INHERITED = object()


@dataclass(frozen=True)
class Patch:
    """One attribute to replace.

    Attributes:
        owner: the class or module whose attribute it is.
        name: the attribute. It must exist, own or inherited: a patch whose target has gone is an error.
        replacement: the function that stands in for it. Its signature is the original's.
        reason: why the original cannot be traced, in one sentence.
    """

    owner: Any
    name: str
    replacement: Callable
    reason: str

    def __str__(self) -> str:
        owner = self.owner
        where = (
            owner.__name__ if isinstance(owner, ModuleType) else f"{owner.__module__}.{owner.__qualname__}"
        )
        return f"{where}.{self.name}"


@contextmanager
def applied(patches: Sequence[Patch]) -> Iterator[dict[Patch, int]]:
    """Apply the patches in order; restore in reverse order on exit, whatever happened inside.

    Yields:
        The number of calls of each replacement so far.

    Raises:
        AttributeError: an owner lacks the name; nothing stays replaced.
        RuntimeError: the block ended without an exception and a replacement was never called, so that the code
            it was meant to replace ran, or nothing did.
    """
    calls = dict.fromkeys(patches, 0)
    with ExitStack() as stack:
        for patch in patches:
            stack.callback(_replace(patch, calls))
        yield calls
    unused = [str(patch) for patch, count in calls.items() if count == 0]
    if unused:
        raise RuntimeError(
            f"expected every patch to be called, found {len(unused)} never called: {', '.join(unused)}. "
            "The model does not use this code, or calls it by another way: "
            "choose the patches with `patches_for(model)`."
        )


def _replace(patch: Patch, calls: dict[Patch, int]) -> Callable[[], None]:
    """Put the replacement in place and return the function that takes it out again."""
    if not hasattr(patch.owner, patch.name):
        raise AttributeError(
            f"patch target missing: expected {patch} to exist, found no attribute {patch.name!r}. "
            "The installed version differs from the one this patch was written for (mmdet 3.3, mmcv 2.0-2.1)."
        )
    original = vars(patch.owner).get(patch.name, _INHERITED)

    @functools.wraps(patch.replacement)
    def counted(*args: Any, **kwargs: Any) -> Any:
        calls[patch] += 1
        return patch.replacement(*args, **kwargs)

    setattr(patch.owner, patch.name, counted)
    if original is _INHERITED:
        return lambda: delattr(patch.owner, patch.name)
    return lambda: setattr(patch.owner, patch.name, original)
