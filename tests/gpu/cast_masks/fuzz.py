"""Garbage for the kernel of ``plugins/cast_masks``."""

import numpy as np

from tests.gpu.cast_masks.kernel import cast_masks
from tests.gpu.fuzzing import garbage


def fuzz(rng: np.random.Generator) -> None:
    num = int(rng.choice([0, 1, 3, 4, 1023, 1027, 70_001]))
    # Past a multiple of 16 bytes the kernel goes value by value.
    skipped = int(rng.integers(0, 4))
    cast_masks(garbage(rng, (num + skipped,))[skipped:])
