"""Garbage for the kernel of ``plugins/padded_space_to_depth``."""

import numpy as np
import torch

from tests.gpu.fuzzing import garbage
from tests.gpu.padded_space_to_depth.kernel import padded_space_to_depth


def fuzz(rng: np.random.Generator) -> None:
    height, width = (int(n) for n in rng.choice([1, 2, 7, 64, 131, 260], 2))
    top, left = (int(n) for n in rng.integers(0, 6, 2))
    # Even with the image and the pads before it.
    bottom, right = (int(rng.integers(0, 3)) * 2 + (n % 2) for n in (top + height, left + width))
    image_dtype, dtype = (torch.float16 if rng.random() < 0.5 else torch.float32 for _ in range(2))
    images = garbage(rng, (2, int(rng.choice([1, 2, 3, 4, 7])), height, width)).to(image_dtype)
    padded_space_to_depth(images, (top, left, bottom, right), dtype=dtype, layout=int(rng.integers(0, 3)))
