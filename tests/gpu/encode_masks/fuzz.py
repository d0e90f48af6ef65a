"""Garbage for the kernel of ``plugins/encode_masks``."""

import numpy as np
import torch

from tests.gpu.encode_masks.kernel import encode_masks
from tests.gpu.fuzzing import SPECIAL, garbage


def fuzz(rng: np.random.Generator) -> None:
    batch, num_dets = int(rng.integers(1, 4)), 20
    sizes = rng.choice([0, 1, 33, 700], (batch, 2)).tolist()
    mask_size = [(28, 28), (1, 1), (1024, 3), (3, 1024), (65, 64)][int(rng.integers(0, 5))]
    encode_masks(
        garbage(rng, (batch, num_dets, *mask_size), special=0.1),
        garbage(rng, (batch, num_dets, 5), special=0.3),
        torch.from_numpy(rng.choice([-1, 0, 5, 20, 2**31 - 1], batch).astype(np.int32)).cuda(),
        sizes=sizes,
        scales=rng.choice(SPECIAL, (batch, 2)).tolist() if rng.random() < 0.3 else [(1, 0.7)] * batch,
        capacity=int(rng.choice([0, 100, 1 << 20])),
        threshold=float(rng.choice([np.nan, 0, 0.5, -np.inf])),
        min_score=float(rng.choice([-np.inf, 0, np.nan])),
    )
