"""Garbage for the kernel of ``plugins/paste_masks``."""

import numpy as np
import torch

from tests.gpu.fuzzing import garbage
from tests.gpu.paste_masks.kernel import paste_masks


def fuzz(rng: np.random.Generator) -> None:
    num_masks, (height, width) = 20, rng.choice([1, 16, 33, 64], 2).tolist()
    dtype = torch.float16 if rng.random() < 0.5 else torch.float32
    mask_size = rng.choice([1, 28, 400, 6500], 2, p=[0.2, 0.6, 0.1, 0.1]).tolist()
    mask_size = mask_size if mask_size[0] * mask_size[1] < 300000 else [28, 28]
    paste_masks(
        garbage(rng, (1, num_masks, *mask_size), special=0.1).to(dtype),
        garbage(rng, (1, num_masks, 4), special=0.3),
        (height, width),
        threshold=float(rng.choice([0, 0.5, 1])),
        dtype=[torch.uint8, torch.float16, torch.float32][int(rng.integers(0, 3))],
    )
