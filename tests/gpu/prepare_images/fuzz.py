"""Garbage for the kernel of ``plugins/prepare_images``."""

import numpy as np
import torch

from tests.gpu.fuzzing import SPECIAL, garbage
from tests.gpu.prepare_images.kernel import prepare_images


def fuzz(rng: np.random.Generator) -> None:
    """Any bytes, and sizes at which a read past either end of an image would leave its allocation."""
    num_images = int(rng.choice([1, 3, 40]))
    height, width = rng.integers(1, 100, 2).tolist()
    images = [
        torch.from_numpy(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).cuda()
        for size in rng.choice([1, 2, 3, 5, 31, 64, 131], (num_images, 2)).tolist()
    ]
    sizes = [(int(rng.integers(1, height + 1)), int(rng.integers(1, width + 1))) for _ in images]
    prepare_images(
        images,
        sizes,
        (height, width),
        tables=garbage(rng, (3, 256)),
        reverse_channels=bool(rng.random() < 0.5),
        pad_value=float(rng.choice(SPECIAL)),
    )
