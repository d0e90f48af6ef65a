"""Garbage for the kernels: NaN, Inf, huge and tiny numbers."""

import numpy as np
import torch
from torch import Tensor

SPECIAL = np.array(
    [np.nan, np.inf, -np.inf, 0, -0.0, 1, -1, 1e-45, 3e38, -3e38, 1e9, -1e9, 1e5, 16777217, 2**31, 0.5, 100],
    np.float32,
)


def garbage(rng: np.random.Generator, shape: tuple, *, special: float = 0.5) -> Tensor:
    """Return numbers of any magnitude, a share of them special."""
    values = (rng.standard_normal(shape) * 10.0 ** rng.integers(-2, 4, shape)).astype(np.float32)
    mask = rng.random(shape) < special
    values[mask] = rng.choice(SPECIAL, int(mask.sum()))
    return torch.from_numpy(values).cuda()
