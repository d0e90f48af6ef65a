"""Garbage for the kernel of ``plugins/select_top``."""

import numpy as np

from tests.gpu.fuzzing import garbage
from tests.gpu.select_top.kernel import select_top


def fuzz(rng: np.random.Generator) -> None:
    k = int(rng.choice([1, 33, 1000, 4096]))
    shape = (int(rng.integers(1, 4)), k + int(rng.choice([0, 1, 7000, 50000])))
    select_top(garbage(rng, shape), k)
