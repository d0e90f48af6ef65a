"""Garbage for the kernel of ``plugins/grid_sample``."""

import numpy as np
import torch

from tests.gpu.fuzzing import garbage
from tests.gpu.grid_sample.kernel import grid_sample


def fuzz(rng: np.random.Generator) -> None:
    spatial = rng.integers(1, 12, int(rng.integers(2, 4))).tolist()
    modes = ["bilinear", "nearest", "bicubic"][: 5 - len(spatial)]
    dtype = torch.float16 if rng.random() < 0.5 else torch.float32
    grid_sample(
        garbage(rng, (2, 19, *spatial), special=0.01).to(dtype),
        garbage(rng, (2, *spatial[::-1], len(spatial))).to(dtype),
        mode=str(rng.choice(modes)),
        padding_mode=str(rng.choice(["zeros", "border", "reflection"])),
        align_corners=bool(rng.random() < 0.5),
    )
