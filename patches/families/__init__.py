"""The families of detectors that can be exported, and which one a model is of."""

from torch import nn

from patches.families.family import Facts, Family, UnsupportedModelError
from patches.families.two_stage import TWO_STAGE
from patches.patch import Patch

__all__ = [
    "FAMILIES",
    "Facts",
    "Family",
    "UnsupportedModelError",
    "check_supported",
    "family_of",
    "patches_for",
]

FAMILIES = (TWO_STAGE,)


def family_of(model: nn.Module) -> Family:
    """Return the family that a model is of.

    Raises:
        UnsupportedModelError: none.
    """
    for family in FAMILIES:
        if isinstance(model, family.owner):
            return family
    known = " or ".join(family.name for family in FAMILIES)
    raise UnsupportedModelError(
        f"expected {known}, found {type(model).__name__}. "
        "One-stage and query-based models are outside this tool's scope."
    )


def check_supported(model: nn.Module) -> None:
    """Raise UnsupportedModelError for the first part that the patches do not cover."""
    family_of(model).check(model)


def patches_for(model: nn.Module) -> tuple[Patch, ...]:
    """Return the patches under which ``model.predict(images, image_sizes)`` can be traced.

    Raises:
        UnsupportedModelError: a part of the model is outside what the patches cover; nothing has been changed.
    """
    family = family_of(model)
    family.check(model)
    return tuple(family.patches(model))
